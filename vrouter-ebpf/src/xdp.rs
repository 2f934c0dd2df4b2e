//! The XDP half: frames that stay frames. What needs an answer, a copy, or offloads goes on to TC, which
//! sits behind every XDP program with the same decision.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::generated as helpers,
};
use vrouter_common::{
    apply::{Exit, Hook},
    flow::FROM_PORT,
    packet::{NoRoom, Packet},
    pipeline,
    plan::{Decision, Ingress, Work},
    reason::{DropReason, Event},
    tables::Tables,
    tunnel,
    wire::*,
};

use crate::{
    maps,
    tables::Maps,
    tc::{Bytes, bounds},
};

/// An XDP frame.
pub struct Frame(*mut xdp_md);

impl Packet for Frame {
    type View<'a> = Bytes;

    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the program's context.
        unsafe { helpers::bpf_xdp_get_buff_len(self.0) as usize }
    }

    #[inline(always)]
    fn view(&self, at: usize, len: usize) -> Option<Bytes> {
        let (start, end) = bounds!(self.0, 0, 4);
        if start + at + len > end {
            return None;
        }
        Some(Bytes((start + at) as *mut u8))
    }

    #[inline(always)]
    fn push_outer(&mut self) -> Result<(), NoRoom> {
        self.push_front(OUTER_LEN)
    }

    #[inline(always)]
    fn pop_outer(&mut self) -> Result<(), NoRoom> {
        // SAFETY: the program's context; no view is alive.
        let result = unsafe { helpers::bpf_xdp_adjust_head(self.0, OUTER_LEN as i32) };
        if result == 0 { Ok(()) } else { Err(NoRoom) }
    }

    #[inline(always)]
    fn push_front(&mut self, bytes: usize) -> Result<(), NoRoom> {
        // SAFETY: the program's context; no view is alive.
        let result = unsafe { helpers::bpf_xdp_adjust_head(self.0, -(bytes as i32)) };
        if result == 0 { Ok(()) } else { Err(NoRoom) }
    }

    /// Only answers are resized, and those are TC's.
    #[inline(always)]
    fn resize(&mut self, _len: usize) -> Result<(), NoRoom> {
        Err(NoRoom)
    }

    /// Only answers are summed, and those are TC's.
    #[inline(always)]
    fn sum(&self, _at: usize, _len: usize) -> Option<u32> {
        None
    }
}

#[inline(always)]
fn dropped(reason: DropReason, bytes: u64) -> u32 {
    Maps.count_drop(reason, bytes);
    xdp_action::XDP_DROP
}

#[inline(always)]
fn to_tc() -> u32 {
    Maps.count(Event::XdpPassed);
    xdp_action::XDP_PASS
}

#[inline(always)]
fn emit(frame: &Frame, exit: Exit) -> u32 {
    match exit {
        // SAFETY: a helper of scalars.
        Exit::Interface(ifindex) => unsafe { helpers::bpf_redirect(ifindex, 0) as u32 },
        Exit::NextHook => to_tc(),
        // Not asked for by this hook.
        Exit::Neighbour { .. } => dropped(DropReason::Internal, frame.len() as u64),
    }
}

/// From a packet-processing workload.
#[inline(always)]
pub fn port(ctx: *mut xdp_md) -> u32 {
    let mut frame = Frame(ctx);
    // SAFETY: the program's context.
    let ingress = Ingress::port(unsafe { (*ctx).ingress_ifindex });
    match pipeline::established(&mut frame, &Maps, &ingress, Hook::Xdp) {
        Some(Ok(exit)) => emit(&frame, exit),
        Some(Err(reason)) => dropped(reason, frame.len() as u64),
        None => first(ctx, &ingress),
    }
}

/// From the underlay.
#[inline(always)]
pub fn uplink(ctx: *mut xdp_md) -> u32 {
    let mut frame = Frame(ctx);
    let ingress = match open(&frame) {
        Ok(Some(ingress)) => ingress,
        Ok(None) => return xdp_action::XDP_PASS,
        Err(reason) => return dropped(reason, frame.len() as u64),
    };
    match pipeline::established(&mut frame, &Maps, &ingress, Hook::Xdp) {
        Some(Ok(exit)) => emit(&frame, exit),
        Some(Err(reason)) => dropped(reason, frame.len() as u64),
        None => first(ctx, &ingress),
    }
}

#[inline(always)]
fn open(frame: &Frame) -> Result<Option<Ingress>, DropReason> {
    let vtep = match maps::COMMIT.get(0) {
        Some(commit) => commit.vtep,
        None => return Ok(None),
    };
    Ok(tunnel::open(frame, vtep)?.map(|outer| Ingress::tunnel(&outer)))
}

/// The first packet of a flow: see its namesake in `tc`.
#[inline(always)]
fn first(ctx: *mut xdp_md, ingress: &Ingress) -> u32 {
    if vr_xdp_read(ctx, ingress.at as u32) != 0 {
        return xdp_action::XDP_DROP;
    }
    vr_xdp_first(ctx, ingress.from as u32)
}

/// Decides the frame whose headers are in the scratch, and forwards it if that is the decision.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_xdp_first(ctx: *mut xdp_md, from: u32) -> u32 {
    let mut frame = Frame(ctx);
    let bytes = frame.len() as u64;
    let ingress = if from == FROM_PORT as u32 {
        // SAFETY: the program's context.
        Ingress::port(unsafe { (*ctx).ingress_ifindex })
    } else {
        match open(&frame) {
            Ok(Some(ingress)) => ingress,
            Ok(None) => return xdp_action::XDP_PASS,
            Err(reason) => return dropped(reason, bytes),
        }
    };
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: this CPU's own scratch; programs on one CPU do not interrupt each other here.
    let Work { headers, plan } = unsafe { &mut *work };
    match pipeline::first(&frame, &Maps, &ingress, headers, plan, Hook::Xdp) {
        Ok(Decision::Forward | Decision::ForwardOnce) => {
            match pipeline::apply_first(&mut frame, &Maps, &ingress, plan, Hook::Xdp) {
                Ok(exit) => emit(&frame, exit),
                Err(reason) => dropped(reason, bytes),
            }
        }
        Ok(Decision::Answer | Decision::Reject(_) | Decision::Flood) => to_tc(),
        Err(reason) => dropped(reason, bytes),
    }
}

/// Reads the frame into the scratch: see `vr_tc_read`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_xdp_read(ctx: *mut xdp_md, at: u32) -> u32 {
    let frame = Frame(ctx);
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, 0);
    };
    // SAFETY: as in `vr_xdp_first`.
    let headers = unsafe { &mut (*work).headers };
    let at = if at == 0 { 0 } else { OUTER_LEN };
    match pipeline::read(&frame, at, headers) {
        Ok(()) => 0,
        Err(reason) => dropped(reason, frame.len() as u64),
    }
}
