//! Hands what is for a service of this node to the agent, by a ring that all ports share.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT},
    helpers::generated as helpers,
};
use vrouter_common::{
    packet::Packet as _,
    plan::Work,
    reason::{DropReason, Event},
    tables::{ServiceCall, Tables as _, UPCALL_FRAME_MAX},
};

#[cfg(not(feature = "trace"))]
use crate::share::{self, Part};
use crate::{
    Maps, maps,
    tc::{Skb, dropped},
};

/// Bytes of a record, whatever the packet's length: the verifier wants a constant.
pub const RECORD: usize = size_of::<ServiceCall>() + UPCALL_FRAME_MAX;

/// Hands the packet to the agent, which serves it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_serve(skb: *mut __sk_buff) -> i32 {
    let bytes = Skb::new(skb).len() as u64;
    if bytes == 0 || bytes > UPCALL_FRAME_MAX as u64 {
        return dropped(DropReason::ServiceTooLong, bytes);
    }
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: this CPU's own scratch; programs on one CPU do not interrupt each other here.
    let part = match part(unsafe { &*work }) {
        Ok(part) => part,
        Err(reason) => return dropped(reason, bytes),
    };
    let Some(mut record) = maps::SERVICES.reserve_bytes(RECORD, 0) else {
        return dropped(DropReason::ServiceBusy, bytes);
    };
    part.take();
    let at = record.as_mut_ptr();
    // SAFETY: the record has room for both; ring buffer records are aligned to 8 bytes.
    let loaded = unsafe {
        let call = at.cast::<ServiceCall>();
        (*call).ifindex = (*skb).ifindex;
        (*call).len = bytes as u32;
        let len = core::hint::black_box(bytes as u32);
        if len == 0 || len > UPCALL_FRAME_MAX as u32 {
            -1
        } else {
            helpers::bpf_skb_load_bytes(skb.cast(), 0, at.add(size_of::<ServiceCall>()).cast(), len)
        }
    };
    if loaded != 0 {
        record.discard(0);
        return dropped(DropReason::Internal, bytes);
    }
    record.submit(0);
    Maps.count(Event::ServiceQueued);
    TC_ACT_SHOT
}

/// The part of the ring that is the packet's port's, if there is room for one more in it.
#[cfg(not(feature = "trace"))]
#[inline(always)]
fn part(work: &Work) -> Result<Part, DropReason> {
    share::part(work.ingress.zone, work.plan.service)
}

/// A trace takes nothing of it.
#[cfg(feature = "trace")]
struct Part;

#[cfg(feature = "trace")]
impl Part {
    #[inline(always)]
    fn take(&self) {}
}

#[cfg(feature = "trace")]
#[inline(always)]
fn part(_work: &Work) -> Result<Part, DropReason> {
    Ok(Part)
}
