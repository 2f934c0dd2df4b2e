//! Tells whoever runs `vrouter monitor` of drops and of flows that begin and end. Nobody listens nearly always: then
//! it is one load, where packets are dropped or decided, and nothing for packets of established flows.
//!
//! What is told here of a packet lies in the scratch: `MONITOR_KNOWN_*` says how much of that is this packet's own.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::generated as helpers,
};
use vrouter_common::{
    flow::{FLOW_NAT, FROM_PORT, Flow, FlowKey, ROLE_NONE, ROLE_ORIGINAL},
    monitor::*,
    plan::{KNOWN_NOWHERE, Work},
    reason::DropReason,
    tables::{FlowTable, Tables},
};

use crate::{
    atomic::cmpxchg64,
    maps,
    tables::{Maps, jiffies},
};

/// What [`about`] is told: nothing to be told of.
const NOTHING: u32 = 0;

/// Whether anybody listens: never to the variant that explains, which drops nothing.
#[inline(always)]
fn is_on() -> bool {
    if cfg!(feature = "trace") {
        return false;
    }
    let set = maps::MONITOR_SET.get_ptr(0);
    // SAFETY: a live map value, one aligned word.
    set.is_some_and(|set| unsafe { core::ptr::read_volatile(&raw const (*set).deadline) != 0 })
}

/// A packet was dropped for a reason; without one (0): it was decided, and began a flow if it did.
#[inline(always)]
pub fn tc(skb: *mut __sk_buff, known: u32, reason: u32) {
    if is_on() {
        vr_tc_monitor(skb, known, reason);
    }
}

/// The same in XDP.
#[inline(always)]
pub fn xdp(ctx: *mut xdp_md, known: u32, reason: u32) {
    if is_on() {
        vr_xdp_monitor(ctx, known, reason);
    }
}

/// What an entry says of a decision.
#[inline(always)]
fn decided(record: &mut MonitorRecord, flow: &Flow) {
    record.network = flow.network;
    record.network_out = flow.network_out;
    record.exit = flow.exit;
    record.target = flow.target;
    record.router = flow.router;
    record.rule = flow.rule;
    record.role = flow.role;
}

/// The connection in a slot of [`maps::EXPIRE`] is about to be removed.
#[inline(always)]
pub fn closed(slot: u32) {
    if is_on() {
        vr_closed(slot);
    }
}

/// See [`tc`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_monitor(skb: *mut __sk_buff, known: u32, reason: u32) -> i32 {
    let Some(scratch) = maps::MONITOR_BUF.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own scratch; programs on one CPU do not interrupt each other here. The program's context.
    let (scratch, ifindex, len) = unsafe { (&mut *scratch, (*skb).ifindex, (*skb).len) };
    let captured = about(scratch, known, reason, ifindex, len);
    if captured == NOTHING {
        return 0;
    }
    let wanted = core::hint::black_box(captured);
    if wanted > 0 && wanted <= MONITOR_CAPTURE_MAX as u32 {
        let to = (&raw mut scratch.packet).cast();
        // SAFETY: the program's context; the buffer has room for the bytes, as was just checked.
        if unsafe { helpers::bpf_skb_load_bytes(skb.cast(), 0, to, wanted) } != 0 {
            scratch.record.captured = 0;
        }
    }
    submit(scratch);
    0
}

/// See [`xdp`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_xdp_monitor(ctx: *mut xdp_md, known: u32, reason: u32) -> i32 {
    let Some(scratch) = maps::MONITOR_BUF.get_ptr_mut(0) else { return 0 };
    // SAFETY: as in `vr_tc_monitor`.
    let (scratch, ifindex, len) =
        unsafe { (&mut *scratch, (*ctx).ingress_ifindex, helpers::bpf_xdp_get_buff_len(ctx) as u32) };
    let captured = about(scratch, known, reason, ifindex, len);
    if captured == NOTHING {
        return 0;
    }
    scratch.record.xdp = 1;
    let wanted = core::hint::black_box(captured);
    if wanted > 0 && wanted <= MONITOR_CAPTURE_MAX as u32 {
        let to = (&raw mut scratch.packet).cast();
        // SAFETY: as in `vr_tc_monitor`.
        if unsafe { helpers::bpf_xdp_load_bytes(ctx, 0, to, wanted) } != 0 {
            scratch.record.captured = 0;
        }
    }
    submit(scratch);
    0
}

/// Fills in the record of the packet in the scratch, if somebody wants to hear of it. How many bytes of the packet
/// are to go with it; [`NOTHING`]: nobody does.
#[inline(always)]
fn about(scratch: &mut MonitorScratch, known: u32, reason: u32, ifindex: u32, len: u32) -> u32 {
    let (Some(work), Some(set)) = (maps::WORK.get_ptr(0), listener(&mut scratch.record)) else {
        return NOTHING;
    };
    // SAFETY: as in `vr_tc_monitor`.
    let Work { ingress, headers, plan, .. } = unsafe { &*work };
    let record = &mut scratch.record;
    record.kinds = if reason != 0 { MONITOR_DROP } else { MONITOR_NEW };
    record.ifindex = ifindex;
    record.len = len;
    record.reason = reason as u8;
    record.known = known as u8;
    if reason == DropReason::PolicyEgress as u32 || reason == DropReason::PolicyIngress as u32 {
        record.kinds |= MONITOR_POLICY;
    }
    if known >= MONITOR_KNOWN_PLACE {
        record.key.from = ingress.from;
        record.key.zone = ingress.zone;
        record.vtep = ingress.vtep;
        record.at = ingress.at as u32;
    }
    if known >= MONITOR_KNOWN_PACKET {
        if headers.arp {
            record.known = MONITOR_KNOWN_PLACE as u8;
        }
        record.key.src = headers.src;
        record.key.dst = headers.dst;
        record.key.sport = headers.sport;
        record.key.dport = headers.dport;
        record.key.proto = headers.proto;
        record.src = headers.src;
        record.dst = headers.dst;
    }
    if known >= MONITOR_KNOWN_DECISION && !headers.arp {
        let (flow, tuple) = (&plan.flow, &plan.tuple);
        if reason == 0 {
            // Known before, or not remembered: the packet began nothing.
            let begun = plan.known_in == KNOWN_NOWHERE
                && plan.key.tag() == flow.tag
                && (flow.role == ROLE_ORIGINAL || flow.role == ROLE_NONE);
            if !begun {
                return NOTHING;
            }
            if flow.flags & FLOW_NAT != 0 {
                record.kinds |= MONITOR_NAT;
            }
            if flow.rule != 0 {
                record.kinds |= MONITOR_POLICY;
            }
        }
        record.src = tuple.src;
        record.dst = tuple.dst;
        record.sport = tuple.sport;
        record.dport = tuple.dport;
        decided(record, flow);
    } else if reason == 0 {
        return NOTHING;
    }
    // Never none: what is dropped has at least a byte.
    let most =
        if set.capture > MONITOR_CAPTURE_MAX as u32 { MONITOR_CAPTURE_MAX as u32 } else { set.capture };
    record.captured = if len < most { len } else { most };
    if !is_wanted(set, record) {
        return NOTHING;
    }
    if record.captured == 0 { 1 } else { record.captured }
}

/// What the listener wants, if there is one, and the time. One that does not say any more that it is there is forgotten.
#[inline(always)]
fn listener(record: &mut MonitorRecord) -> Option<&'static MonitorSet> {
    let set = maps::MONITOR_SET.get_ptr_mut(0)?;
    // SAFETY: a helper without arguments.
    let now = unsafe { helpers::bpf_ktime_get_ns() };
    // SAFETY: a live map value; the word is only read, or swapped: another listener may just have written it.
    unsafe {
        let deadline = core::ptr::read_volatile(&raw const (*set).deadline);
        if now >= deadline {
            if deadline != 0 {
                cmpxchg64(&raw mut (*set).deadline, deadline, 0);
            }
            return None;
        }
    }
    *record = MonitorRecord { time: now, ..MonitorRecord::default() };
    // SAFETY: as above. The listener may write it meanwhile: then one packet is looked at with some of the old and
    // some of the new, and what is told is looked at again in user space.
    Some(unsafe { &*set })
}

/// Whether the listener wants the record, and its turn has come.
#[inline(always)]
#[allow(
    clippy::manual_is_multiple_of,
    reason = "its test for zero is a panic to the compiler, which BPF cannot have"
)]
fn is_wanted(set: &MonitorSet, record: &MonitorRecord) -> bool {
    if !set.wants(record) {
        return false;
    }
    let wanted = count(MONITOR_COUNT_WANTED);
    if set.sample > 1 && wanted % set.sample as u64 != 0 {
        count(MONITOR_COUNT_SKIPPED);
        return false;
    }
    true
}

/// What this CPU has counted so far.
#[inline(always)]
fn count(what: u32) -> u64 {
    let Some(counter) = maps::MONITOR_COUNT.get_ptr_mut(what) else { return 0 };
    // SAFETY: this CPU's own copy.
    unsafe {
        *counter += 1;
        *counter
    }
}

/// Puts the record in the ring. A full one is the listener's loss: nothing waits for it.
#[inline(always)]
fn submit(scratch: &MonitorScratch) {
    const HEAD: u64 = size_of::<MonitorRecord>() as u64;
    let captured = core::hint::black_box(scratch.record.captured as u64);
    let captured = if captured > MONITOR_CAPTURE_MAX as u64 { MONITOR_CAPTURE_MAX as u64 } else { captured };
    if output(scratch, HEAD + captured) != 0 {
        count(MONITOR_COUNT_LOST);
    }
}

#[inline(always)]
fn output(scratch: &MonitorScratch, len: u64) -> i64 {
    let from = core::ptr::from_ref(scratch).cast_mut().cast();
    let ring = (&raw const maps::MONITOR).cast_mut().cast();
    // SAFETY: the ring's own map; the scratch has that many bytes.
    unsafe { helpers::bpf_ringbuf_output(ring, from, len, 0) }
}

/// See [`closed`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_closed(slot: u32) -> i32 {
    let (Some(scratch), Some(expire)) = (maps::MONITOR_BUF.get_ptr_mut(1), maps::EXPIRE.get_ptr(slot)) else {
        return 0;
    };
    // SAFETY: this CPU's own scratch, and only this program's, of which one runs at a time; user space does not write the
    // slot meanwhile.
    let (scratch, expire) = unsafe { (&mut *scratch, &*expire) };
    let Some(set) = listener(&mut scratch.record) else { return 0 };
    let table = if expire.table == 0 { FlowTable::Flows } else { FlowTable::Transient };
    let leg = |key: &FlowKey| match table {
        FlowTable::Flows => Maps.flow(key),
        FlowTable::Transient => Maps.transient(key),
    };
    let Some(flow) = leg(&expire.key) else { return 0 };
    let record = &mut scratch.record;
    record.kinds = if flow.flags & FLOW_NAT != 0 { MONITOR_CLOSED | MONITOR_NAT } else { MONITOR_CLOSED };
    record.known = MONITOR_KNOWN_DECISION as u8;
    record.key = expire.key;
    if expire.key.from == FROM_PORT {
        record.ifindex = expire.key.zone;
    }
    record.vtep = flow.in_vtep;
    record.packets = flow.packets;
    record.bytes = flow.bytes;
    record.src = flow.src;
    record.dst = flow.dst;
    record.sport = flow.sport;
    record.dport = flow.dport;
    decided(record, flow);
    record.ticks = (jiffies() as u32).wrapping_sub(flow.created);
    if expire.legs == 2
        && let Some(reply) = leg(&expire.peer)
    {
        record.reply_packets = reply.packets;
        record.reply_bytes = reply.bytes;
    }
    if is_wanted(set, record) {
        submit(scratch);
    }
    0
}
