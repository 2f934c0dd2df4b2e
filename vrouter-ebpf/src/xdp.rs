//! The XDP half: frames that stay frames. What needs an answer, a copy, or offloads goes on to TC, which
//! sits behind every XDP program with the same decision.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::generated as helpers,
};
use vrouter_common::{
    apply::{Exit, Hook},
    flow::FLOW_FRAMES,
    monitor::{MONITOR_KNOWN_DECISION, MONITOR_KNOWN_NOTHING, MONITOR_KNOWN_PACKET, MONITOR_KNOWN_PLACE},
    packet::{NoRoom, Packet},
    pipeline,
    plan::{Decision, Ingress, Plan, Work},
    reason::{DropReason, Event},
    route::ROUTERS_MAX,
    tables::Tables,
    track::{self, Search, Settled},
    tunnel::{self, Outer},
    wire::*,
};

use crate::{
    Maps, maps, monitor,
    tc::{Bytes, bounds, fresh},
};

/// An XDP frame, and whether its bounds are kept: see `bounds`.
pub struct Frame {
    context: *mut xdp_md,
    kept: bool,
}

impl Frame {
    /// Of a program's context.
    #[inline(always)]
    fn new(context: *mut xdp_md) -> Self {
        Self { context, kept: false }
    }
}

impl Packet for Frame {
    type View<'a> = Bytes;

    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the program's context.
        unsafe { helpers::bpf_xdp_get_buff_len(self.context) as usize }
    }

    /// Frames are in one piece, nearly always.
    #[inline(always)]
    fn reaches(&self, end: usize) -> bool {
        let (first, last) = bounds!(self.context, self.kept, 0, 4);
        end <= last - first || end <= self.len()
    }

    #[inline(always)]
    fn view(&self, at: usize, len: usize) -> Option<Bytes> {
        let (start, end) = bounds!(self.context, self.kept, 0, 4);
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
        let result = unsafe { helpers::bpf_xdp_adjust_head(self.context, OUTER_LEN as i32) };
        self.context = fresh(self.context);
        if result == 0 { Ok(()) } else { Err(NoRoom) }
    }

    #[inline(always)]
    fn push_front(&mut self, bytes: usize) -> Result<(), NoRoom> {
        // SAFETY: the program's context; no view is alive.
        let result = unsafe { helpers::bpf_xdp_adjust_head(self.context, -(bytes as i32)) };
        self.context = fresh(self.context);
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

/// See its namesake in `tc`.
#[inline(always)]
fn dropped(reason: DropReason, bytes: u64) -> u32 {
    Maps.count_drop(reason, bytes);
    DROPPED | reason as u32
}

/// See its namesake in `tc`.
#[inline(always)]
fn refused(reason: DropReason) -> u32 {
    DROPPED | reason as u32
}

/// See its namesake in `tc`.
#[inline(always)]
fn ended(ctx: *mut xdp_md, verdict: u32, known: u32) -> u32 {
    if verdict < DROPPED {
        return verdict;
    }
    monitor::xdp(ctx, known, verdict & 0xff);
    xdp_action::XDP_DROP
}

#[inline(always)]
fn to_tc() -> u32 {
    Maps.count(Event::XdpPassed);
    xdp_action::XDP_PASS
}

#[inline(always)]
fn emit(exit: Exit) -> u32 {
    match exit {
        // SAFETY: a helper of scalars.
        Exit::Interface(ifindex) => unsafe { helpers::bpf_redirect(ifindex, 0) as u32 },
        Exit::NextHook => to_tc(),
        // Not asked for by this hook.
        Exit::Neighbour { .. } | Exit::Peer(_) => refused(DropReason::Internal),
    }
}

/// From a packet-processing workload.
#[inline(always)]
pub fn port(ctx: *mut xdp_md) -> u32 {
    go(ctx, fast_port(ctx))
}

/// From the underlay.
#[inline(always)]
pub fn uplink(ctx: *mut xdp_md) -> u32 {
    go(ctx, fast_uplink(ctx))
}

/// From an external network.
#[inline(always)]
pub fn external(ctx: *mut xdp_md) -> u32 {
    go(ctx, fast_external(ctx))
}

/// No flow entry decides the frame; the scratch says where it came in.
const MISS: u32 = 0x200;
/// Dropped, with its reason. Larger than all other results.
const DROPPED: u32 = 0x400;

/// See its namesake in `tc`.
#[inline(always)]
fn go(ctx: *mut xdp_md, verdict: u32) -> u32 {
    if verdict < MISS {
        verdict
    } else if verdict == MISS {
        first(ctx)
    } else {
        // SAFETY: `refused` has put a reason's number there.
        let reason = unsafe { core::mem::transmute::<u8, DropReason>(verdict as u8) };
        ended(ctx, dropped(reason, Frame::new(ctx).len() as u64), MONITOR_KNOWN_NOTHING)
    }
}

#[inline(never)]
fn fast_port(ctx: *mut xdp_md) -> u32 {
    // SAFETY: the program's context.
    let ingress = Ingress::port(unsafe { (*ctx).ingress_ifindex });
    fast(ctx, &ingress)
}

#[inline(never)]
fn fast_uplink(ctx: *mut xdp_md) -> u32 {
    let frame = Frame::new(ctx);
    let vtep = match maps::COMMIT.get(0) {
        Some(commit) => commit.vtep,
        None => return xdp_action::XDP_PASS,
    };
    let outer = match tunnel::open(&frame, vtep) {
        Ok(outer) => outer.unwrap_or(Outer::NONE),
        Err(reason) => return refused(reason),
    };
    if outer == Outer::NONE {
        return xdp_action::XDP_PASS;
    }
    fast(ctx, &Ingress::tunnel(&outer))
}

#[inline(never)]
fn fast_external(ctx: *mut xdp_md) -> u32 {
    // SAFETY: the program's context.
    let ifindex = unsafe { (*ctx).ingress_ifindex };
    match maps::COMMIT.get(0).and_then(|commit| commit.external_vni(ifindex)) {
        Some(vni) => fast(ctx, &Ingress::external(vni)),
        None => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn fast(ctx: *mut xdp_md, ingress: &Ingress) -> u32 {
    let mut frame = Frame { context: ctx, kept: true };
    let mut unknown = false;
    match pipeline::established(&mut frame, &Maps, ingress, Hook::Xdp, &mut unknown) {
        Some(Ok(exit)) => emit(exit),
        Some(Err(reason)) => refused(reason),
        None => {
            let Some(work) = maps::WORK.get_ptr_mut(0) else {
                return refused(DropReason::Internal);
            };
            // SAFETY: this CPU's own scratch; programs on one CPU do not interrupt each other here.
            unsafe {
                (*work).ingress = *ingress;
                (*work).plan.unknown = unknown;
            }
            MISS
        }
    }
}

/// What `vr_xdp_first` decided.
const TO_FORWARD: u32 = 0x100;
const TO_FORWARD_ONCE: u32 = 0x101;
const TO_ROUTE: u32 = 0x103;
/// What is left to remember.
const SETTLED: u32 = 0x110;
const TO_RESERVE: u32 = 0x111;
const TO_FINISH: u32 = 0x112;
/// `vr_xdp_read`: go on.
const READ: u32 = 0x102;

/// The first packet of a flow: see its namesake in `tc`. What is not a frame to be forwarded as one is left
/// to TC before anything is remembered.
#[inline(always)]
fn first(ctx: *mut xdp_md) -> u32 {
    let read = vr_xdp_read(ctx);
    if read != READ {
        return ended(ctx, read, MONITOR_KNOWN_PLACE);
    }
    let recalled = vr_xdp_recall(ctx);
    if recalled != 0 {
        return ended(ctx, recalled, MONITOR_KNOWN_PACKET);
    }
    let mut verdict = vr_xdp_first(ctx);
    let mut passed = 0;
    while verdict == TO_ROUTE && passed <= ROUTERS_MAX {
        verdict = vr_xdp_pass(ctx);
        passed += 1;
    }
    if verdict != TO_FORWARD && verdict != TO_FORWARD_ONCE {
        return ended(ctx, verdict, MONITOR_KNOWN_DECISION);
    }
    verdict = vr_xdp_settle(ctx, verdict);
    if verdict == TO_RESERVE {
        verdict = vr_xdp_reserve(ctx);
    }
    if verdict == TO_FINISH {
        crate::claim::vr_finish();
        verdict = SETTLED;
    }
    if verdict == SETTLED {
        monitor::xdp(ctx, MONITOR_KNOWN_DECISION, 0);
        verdict = vr_xdp_apply(ctx);
    }
    ended(ctx, verdict, MONITOR_KNOWN_DECISION)
}

/// Reads the frame into the scratch: see `vr_tc_read`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_xdp_read(ctx: *mut xdp_md) -> u32 {
    let frame = Frame::new(ctx);
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, 0);
    };
    // SAFETY: as in `first`.
    let Work { ingress, headers, quoted, .. } = unsafe { &mut *work };
    let ingress = ingress.plain();
    match pipeline::read(&frame, &Maps, &ingress, headers, quoted, Hook::Xdp) {
        Ok(()) if pipeline::is_for_tc(headers) => to_tc(),
        Ok(()) => READ,
        Err(reason) => dropped(reason, frame.len() as u64),
    }
}

/// See `vr_tc_recall`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_xdp_recall(ctx: *mut xdp_md) -> u32 {
    let frame = Frame::new(ctx);
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, 0);
    };
    // SAFETY: as in `first`.
    let Work { ingress, headers, quoted, plan } = unsafe { &mut *work };
    match pipeline::recall(&frame, &Maps, ingress, headers, quoted, plan) {
        Ok(()) => 0,
        Err(reason) => dropped(reason, frame.len() as u64),
    }
}

/// Decides the frame whose headers are in the scratch.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_xdp_first(ctx: *mut xdp_md) -> u32 {
    let frame = Frame::new(ctx);
    let bytes = frame.len() as u64;
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `first`.
    let Work { ingress, headers, quoted, plan } = unsafe { &mut *work };
    let ingress = ingress.plain();
    match pipeline::first(&frame, &Maps, &ingress, headers, quoted, plan) {
        Ok(decision) => code(decision, plan),
        Err(reason) => dropped(reason, bytes),
    }
}

/// See `vr_tc_pass`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_xdp_pass(ctx: *mut xdp_md) -> u32 {
    let frame = Frame::new(ctx);
    let bytes = frame.len() as u64;
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `first`.
    let Work { headers, plan, .. } = unsafe { &mut *work };
    match pipeline::pass(&frame, &Maps, headers, plan) {
        Ok(decision) => code(decision, plan),
        Err(reason) => dropped(reason, bytes),
    }
}

/// A decision as a function's result: what does not stay a frame is TC's.
#[inline(always)]
fn code(decision: Decision, plan: &Plan) -> u32 {
    match decision {
        Decision::Forward if plan.flow.flags & FLOW_FRAMES != 0 => TO_FORWARD,
        Decision::ForwardOnce if plan.flow.flags & FLOW_FRAMES != 0 => TO_FORWARD_ONCE,
        Decision::Route => TO_ROUTE,
        _ => to_tc(),
    }
}

/// Remembers what was decided.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_xdp_settle(ctx: *mut xdp_md, verdict: u32) -> u32 {
    let bytes = Frame::new(ctx).len() as u64;
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `first`.
    let Work { ingress, headers, plan, .. } = unsafe { &mut *work };
    let decision = if verdict == TO_FORWARD { Decision::Forward } else { Decision::ForwardOnce };
    match pipeline::settle(&Maps, ingress, headers, plan, decision, Hook::Xdp) {
        Ok(Settled::Done) => SETTLED,
        Ok(Settled::Reserve) => TO_RESERVE,
        Ok(Settled::Finish) => TO_FINISH,
        Err(reason) => dropped(reason, bytes),
    }
}

/// See `vr_tc_reserve`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_xdp_reserve(ctx: *mut xdp_md) -> u32 {
    let bytes = Frame::new(ctx).len() as u64;
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `first`; the reference ends before another function has its own.
    let (choice, search) = unsafe {
        let work = &*work;
        (track::choice(&work.plan), Search::new(&Maps, &work.headers, &work.plan))
    };
    let claim = |port| crate::claim::result(crate::claim::vr_claim(port));
    match pipeline::reserve(&Maps, choice, search, claim) {
        Ok(()) => TO_FINISH,
        Err(reason) => dropped(reason, bytes),
    }
}

/// Forwards the frame as was decided.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_xdp_apply(ctx: *mut xdp_md) -> u32 {
    let mut frame = Frame::new(ctx);
    let bytes = frame.len() as u64;
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `first`.
    let work = unsafe { &mut *work };
    let ingress = work.ingress.plain();
    match pipeline::apply_first(&mut frame, &Maps, &ingress, work, Hook::Xdp) {
        Some(Ok(exit)) => match emit(exit) {
            verdict if verdict < DROPPED => verdict,
            _ => dropped(DropReason::Internal, bytes),
        },
        Some(Err(reason)) => dropped(reason, bytes),
        None => to_tc(),
    }
}
