//! The TC half: packets with all their offloads, and everything XDP leaves to it.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
        BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_SHOT, TC_ACT_UNSPEC,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh,
    },
    helpers::generated as helpers,
    programs::TcContext,
};
use aya_log_ebpf::debug;
use core::ffi::c_void;
use vrouter_common::{
    addr::{Be16, Be32},
    answer,
    apply::{Exit, Hook},
    flood::{Next, RECEIVERS_MAX, Round},
    monitor::{MONITOR_KNOWN_DECISION, MONITOR_KNOWN_NOTHING, MONITOR_KNOWN_PACKET, MONITOR_KNOWN_PLACE},
    packet::{NoRoom, Packet, SUM_MAX, View},
    pipeline,
    plan::{self, Decision, Ingress, Work},
    reason::{DropReason, Event},
    route::ROUTERS_MAX,
    tables::*,
    track::{self, Search, Settled},
    tunnel::{self, Outer},
    wire::*,
};

#[cfg(feature = "trace")]
use vrouter_common::traced::Copied;

use crate::{Maps, maps, monitor, serve};

/// Bytes of headers that must be directly readable: outer and inner, with the longest IPv4 header.
const HEADERS: u32 = 160;

/// The same where a chain of extension headers or options to ND may be read.
const HEADERS_FULL: u32 = 512;

/// A socket buffer, and whether its bounds are kept: see `bounds`.
pub struct Skb {
    context: *mut __sk_buff,
    kept: bool,
}

// The offsets the macro below loads from.
const _: () = assert!(core::mem::offset_of!(__sk_buff, data) == 76);
const _: () = assert!(core::mem::offset_of!(__sk_buff, data_end) == 80);

/// Loads the packet's start and end from a context. In assembly, because LLVM likes to compute the address
/// of a context's field apart from the load, which the verifier refuses ("modified ctx ptr"). `$kept`: once for
/// all views, which is for the fast path; elsewhere there are too few registers, and of a packet's end put on
/// the stack LLVM may take half back. What moves the packet must then make the context a [`fresh`] one.
macro_rules! bounds {
    ($ctx:expr, $kept:expr, $data:literal, $data_end:literal) => {{
        let (start, end): (usize, usize);
        // SAFETY: loads two fields of the context the program was given.
        unsafe {
            if $kept {
                core::arch::asm!(
                    concat!("{start} = *(u32 *)({ctx} + ", $data, ")"),
                    concat!("{end} = *(u32 *)({ctx} + ", $data_end, ")"),
                    start = out(reg) start, end = lateout(reg) end, ctx = in(reg) $ctx as usize,
                    options(pure, nomem, nostack)
                );
            } else {
                core::arch::asm!(
                    concat!("{start} = *(u32 *)({ctx} + ", $data, ")"),
                    concat!("{end} = *(u32 *)({ctx} + ", $data_end, ")"),
                    start = out(reg) start, end = lateout(reg) end, ctx = in(reg) $ctx,
                    options(pure, readonly, nostack)
                );
            }
        }
        (start, end)
    }};
}
pub(crate) use bounds;

/// The same context, of which the compiler knows nothing any more: the packet may have moved.
#[inline(always)]
pub(crate) fn fresh<T>(context: *mut T) -> *mut T {
    let mut address = context as usize;
    // SAFETY: copies a register to itself. Without an instruction the line table, too, has one entry too many,
    // and the kernel refuses that.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) address, options(nomem, nostack, preserves_flags)) };
    address as *mut T
}

/// Bytes between the packet's start and end, as checked.
#[derive(Clone, Copy)]
pub struct Bytes(pub *mut u8);

impl View for Bytes {
    #[inline(always)]
    fn u8(&self, at: usize) -> u8 {
        // SAFETY: inside the checked bytes, or the verifier refuses the program.
        unsafe { *self.0.add(at) }
    }

    #[inline(always)]
    fn be16(&self, at: usize) -> Be16 {
        // SAFETY: as above. BPF on this architecture loads unaligned words.
        Be16::from_memory(unsafe { *self.0.add(at).cast::<u16>() })
    }

    #[inline(always)]
    fn be32(&self, at: usize) -> Be32 {
        // SAFETY: as above.
        Be32::from_memory(unsafe { *self.0.add(at).cast::<u32>() })
    }

    #[inline(always)]
    fn put_u8(&self, at: usize, value: u8) {
        // SAFETY: as above.
        unsafe { *self.0.add(at) = value }
    }

    #[inline(always)]
    fn put_be16(&self, at: usize, value: Be16) {
        // SAFETY: as above.
        unsafe { *self.0.add(at).cast::<u16>() = value.memory() }
    }

    #[inline(always)]
    fn put_be32(&self, at: usize, value: Be32) {
        // SAFETY: as above.
        unsafe { *self.0.add(at).cast::<u32>() = value.memory() }
    }
}

impl Skb {
    /// Of a program's context, whose headers lie in the linear part.
    #[inline(always)]
    pub fn new(context: *mut __sk_buff) -> Self {
        Self { context, kept: false }
    }

    /// For the fast path: makes sure that they do.
    #[inline(always)]
    fn fast(skb: *mut __sk_buff) -> Self {
        Self { kept: true, ..Self::with_linear(skb, HEADERS) }
    }

    /// The same for the first `wanted` bytes.
    #[inline(always)]
    fn with_linear(skb: *mut __sk_buff, wanted: u32) -> Self {
        // SAFETY: `skb` is the program's context; the helper may move the data, nothing points to it yet.
        unsafe {
            let linear = (*skb).data_end - (*skb).data;
            if linear < wanted && linear < (*skb).len {
                let wanted = if (*skb).len < wanted { (*skb).len } else { wanted };
                helpers::bpf_skb_pull_data(skb, wanted);
            }
        }
        Self::new(fresh(skb))
    }

    #[inline(always)]
    fn protocol_is_ip(&self) -> bool {
        // SAFETY: the program's context.
        let protocol = unsafe { (*self.context).protocol } as u16;
        protocol == ETHERTYPE_IPV4.to_be() || protocol == ETHERTYPE_IPV6.to_be()
    }
}

impl Packet for Skb {
    type View<'a> = Bytes;

    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the program's context.
        unsafe { (*self.context).len as usize }
    }

    #[inline(always)]
    fn view(&self, at: usize, len: usize) -> Option<Bytes> {
        let (start, end) = bounds!(self.context, self.kept, 76, 80);
        // This exact shape is what the verifier learns from.
        if start + at + len > end {
            return None;
        }
        Some(Bytes((start + at) as *mut u8))
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: the program's context.
        unsafe { (*self.context).gso_size }
    }

    #[inline(always)]
    fn has_vlan_tag(&self) -> bool {
        // SAFETY: the program's context.
        unsafe { (*self.context).vlan_present != 0 }
    }

    /// IP packets become encapsulated ones the kernel knows how to segment; anything else just grows.
    #[inline(always)]
    fn push_outer(&mut self) -> Result<(), NoRoom> {
        const FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
            | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
            | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
            | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
            | (ETH_LEN as u64) << 56;
        // SAFETY: the program's context; no view is alive.
        let result = unsafe {
            if self.protocol_is_ip() {
                let room = OUTER_LEN as i32;
                let result = helpers::bpf_skb_adjust_room(self.context, room, BPF_ADJ_ROOM_MAC, FLAGS);
                self.context = fresh(self.context);
                if result == 0 {
                    return Ok(());
                }
                // EALREADY: it came through a tunnel, and a workload has forwarded it as it is. The kernel
                // still knows it as encapsulated, with its inner headers where they are about to be again.
                let fixed = BPF_F_ADJ_ROOM_FIXED_GSO as u64;
                helpers::bpf_skb_adjust_room(self.context, room, BPF_ADJ_ROOM_MAC, fixed)
            } else {
                helpers::bpf_skb_change_head(self.context, OUTER_LEN as u32, 0)
            }
        };
        self.context = fresh(self.context);
        if result == 0 { Ok(()) } else { Err(NoRoom) }
    }

    /// Removes the outer IPv4, UDP, VXLAN and the inner Ethernet header behind the outer Ethernet header.
    #[inline(always)]
    fn pop_outer(&mut self) -> Result<(), NoRoom> {
        let v6 = match self.view(0, OUTER_LEN + ETH_LEN) {
            Some(view) => view.be16(OUTER_LEN + 12) == Be16::new(ETHERTYPE_IPV6),
            None => return Err(NoRoom),
        };
        let fixed = BPF_F_ADJ_ROOM_FIXED_GSO as u64;
        // SAFETY: the program's context; no view is alive.
        let result = unsafe {
            let room = -(OUTER_LEN as i32);
            // Tells the kernel that the packet is IPv6 now. Kernels before 6.3 have no such flag.
            let flags = fixed | BPF_F_ADJ_ROOM_DECAP_L3_IPV6 as u64;
            if v6 && helpers::bpf_skb_adjust_room(self.context, room, BPF_ADJ_ROOM_MAC, flags) == 0 {
                0
            } else {
                helpers::bpf_skb_adjust_room(self.context, room, BPF_ADJ_ROOM_MAC, fixed)
            }
        };
        self.context = fresh(self.context);
        if result == 0 { Ok(()) } else { Err(NoRoom) }
    }

    #[inline(always)]
    fn push_front(&mut self, bytes: usize) -> Result<(), NoRoom> {
        // SAFETY: the program's context; no view is alive.
        let result = unsafe { helpers::bpf_skb_change_head(self.context, bytes as u32, 0) };
        self.context = fresh(self.context);
        if result == 0 { Ok(()) } else { Err(NoRoom) }
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) -> Result<(), NoRoom> {
        if len == self.len() {
            return Ok(());
        }
        // SAFETY: the program's context; no view is alive.
        let result = unsafe { helpers::bpf_skb_change_tail(self.context, len as u32, 0) };
        self.context = fresh(self.context);
        if result == 0 { Ok(()) } else { Err(NoRoom) }
    }

    /// By the kernel's helper, which alone knows whether the checksum is complete, and keeps the sum a device
    /// may have taken over the packet.
    #[inline(always)]
    fn adjust_checksum(
        &mut self,
        at: usize,
        addresses: u16,
        own: u16,
        v6: bool,
        optional: bool,
    ) -> Result<(), NoRoom> {
        const BPF_F_PSEUDO_HDR: u64 = 0x10;
        const BPF_F_MARK_MANGLED_0: u64 = 0x20;
        // Since kernel 6.16: an IPv6 header has no checksum that takes up the difference.
        const BPF_F_IPV6: u64 = 0x80;
        let flags = if optional { BPF_F_MARK_MANGLED_0 } else { 0 };
        // SAFETY: the program's context; no view is alive.
        unsafe {
            if addresses != 0 {
                let pseudo = flags | BPF_F_PSEUDO_HDR;
                let (at, by) = (at as u32, addresses as u64);
                let done =
                    v6 && helpers::bpf_l4_csum_replace(self.context, at, 0, by, pseudo | BPF_F_IPV6) == 0;
                if !done && helpers::bpf_l4_csum_replace(self.context, at, 0, by, pseudo) != 0 {
                    return Err(NoRoom);
                }
            }
            if own != 0 && helpers::bpf_l4_csum_replace(self.context, at as u32, 0, own as u64, flags) != 0 {
                return Err(NoRoom);
            }
        }
        // The helper makes the header writable, which may move it.
        self.context = fresh(self.context);
        Ok(())
    }

    #[inline(always)]
    fn sum(&self, at: usize, len: usize) -> Option<u32> {
        let buffer = maps::SUMMED.get_ptr_mut(0)?.cast::<u8>();
        if len == 0 || len > SUM_MAX {
            return None;
        }
        let len = core::hint::black_box(len);
        if len == 0 || len > SUM_MAX {
            return None;
        }
        // SAFETY: the buffer has room for SUM_MAX bytes and the padding behind them.
        unsafe {
            if helpers::bpf_skb_load_bytes(self.context.cast(), at as u32, buffer.cast(), len as u32) != 0 {
                return None;
            }
            for i in 0..4 {
                *buffer.add(len + i) = 0;
            }
            let mut sum = 0;
            let mut done = 0;
            // bpf_csum_diff takes whole words, and 512 bytes of them on older kernels.
            while done < SUM_MAX {
                if done >= len {
                    break;
                }
                let left = (len - done + 3) & !3;
                let chunk = if left > 512 { 512 } else { left };
                let chunk = core::hint::black_box(chunk) & 0x3fc;
                let chunk = if chunk > 512 { 512 } else { chunk };
                sum = helpers::bpf_csum_diff(
                    core::ptr::null_mut(),
                    0,
                    buffer.add(done).cast(),
                    chunk as u32,
                    sum as u32,
                );
                done += 512;
            }
            Some(sum as u32)
        }
    }
}

/// Ends a packet's way with a reason, which [`ended`] turns into the program's result.
#[inline(always)]
pub fn dropped(reason: DropReason, bytes: u64) -> i32 {
    Maps.count_drop(reason, bytes);
    DROPPED | reason as i32
}

/// The same on the fast path, which leaves the counting to [`go`].
#[inline(always)]
fn refused(reason: DropReason) -> i32 {
    DROPPED | reason as i32
}

/// What a stage, or the packet's whole way, came to; `known`: see [`monitor`].
#[inline(always)]
fn ended(skb: *mut __sk_buff, verdict: i32, known: u32) -> i32 {
    if verdict < DROPPED {
        return verdict;
    }
    monitor::tc(skb, known, verdict as u32 & 0xff);
    TC_ACT_SHOT
}

/// Sends a packet where it leaves.
#[inline(always)]
fn emit(skb: *mut __sk_buff, exit: Exit) -> i32 {
    #[cfg(feature = "trace")]
    crate::trace::leave(&exit);
    match exit {
        // SAFETY: a helper of scalars.
        Exit::Interface(ifindex) => unsafe { helpers::bpf_redirect(ifindex, 0) as i32 },
        Exit::Peer(ifindex) => {
            const PACKET_HOST: u32 = 0;
            // SAFETY: the program's context, and scalars. Whom the frame is for was asked at the interface where
            // it came in; the other end is not asked again.
            unsafe {
                if (*skb).pkt_type != PACKET_HOST {
                    helpers::bpf_skb_change_type(skb, PACKET_HOST);
                }
                helpers::bpf_redirect_peer(ifindex, 0) as i32
            }
        }
        Exit::Neighbour { ifindex, nexthop } => {
            const AF_INET: u32 = 2;
            // SAFETY: plain integers, for which zero is a value.
            let mut neighbour: bpf_redir_neigh = unsafe { core::mem::zeroed() };
            neighbour.nh_family = AF_INET;
            neighbour.__bindgen_anon_1.ipv4_nh = nexthop.memory();
            // SAFETY: the helper reads the struct during the call.
            unsafe {
                helpers::bpf_redirect_neigh(
                    ifindex,
                    &raw mut neighbour,
                    size_of::<bpf_redir_neigh>() as i32,
                    0,
                ) as i32
            }
        }
        Exit::NextHook => TC_ACT_UNSPEC,
    }
}

/// From a workload.
#[inline(always)]
pub fn port(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the program's context.
    port_at(skb, unsafe { (*skb).ifindex })
}

/// From the workload on an interface.
#[inline(always)]
pub fn port_at(skb: *mut __sk_buff, ifindex: u32) -> i32 {
    go(skb, fast_port(skb, ifindex))
}

/// From the underlay.
#[inline(always)]
pub fn uplink(skb: *mut __sk_buff) -> i32 {
    go(skb, fast_uplink(skb))
}

/// From an external network.
#[inline(always)]
pub fn external(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the program's context.
    external_at(skb, unsafe { (*skb).ifindex })
}

/// From the external network behind an interface.
#[inline(always)]
pub fn external_at(skb: *mut __sk_buff, ifindex: u32) -> i32 {
    go(skb, fast_external(skb, ifindex))
}

/// No flow entry decides the packet; the scratch says where it came in.
const MISS: i32 = 0x200;
/// Dropped, but to be answered; with its reason.
const REJECTED: i32 = 0x300;
/// Dropped, with its reason. Larger than all other results.
const DROPPED: i32 = 0x400;

/// What is left to do after the fast path. That is a function of its own, so that its stack is free again.
#[inline(always)]
fn go(skb: *mut __sk_buff, verdict: i32) -> i32 {
    if verdict < MISS {
        verdict
    } else if verdict == MISS {
        first(skb)
    } else {
        // SAFETY: `refused` has put a reason's number there.
        let reason = unsafe { core::mem::transmute::<u8, DropReason>(verdict as u8) };
        ended(skb, dropped(reason, Skb::new(skb).len() as u64), MONITOR_KNOWN_NOTHING)
    }
}

#[inline(never)]
fn fast_port(skb: *mut __sk_buff, ifindex: u32) -> i32 {
    let mut packet = Skb::fast(skb);
    fast(&mut packet, &Ingress::port(ifindex))
}

#[inline(never)]
fn fast_uplink(skb: *mut __sk_buff) -> i32 {
    let mut packet = Skb::fast(skb);
    let vtep = match maps::COMMIT.get(0) {
        Some(commit) => commit.vtep,
        None => return TC_ACT_UNSPEC,
    };
    let outer = match tunnel::open(&packet, vtep) {
        Ok(outer) => outer.unwrap_or(Outer::NONE),
        Err(reason) => return refused(reason),
    };
    if outer == Outer::NONE {
        Maps.count(Event::ToKernel);
        return TC_ACT_UNSPEC;
    }
    fast(&mut packet, &Ingress::tunnel(&outer))
}

#[inline(never)]
fn fast_external(skb: *mut __sk_buff, ifindex: u32) -> i32 {
    let mut packet = Skb::fast(skb);
    match maps::COMMIT.get(0).and_then(|commit| commit.external_vni(ifindex)) {
        Some(vni) => fast(&mut packet, &Ingress::external(vni)),
        None => {
            Maps.count(Event::ToKernel);
            TC_ACT_UNSPEC
        }
    }
}

#[inline(always)]
fn fast(packet: &mut Skb, ingress: &Ingress) -> i32 {
    let mut unknown = false;
    match pipeline::established(packet, &Maps, ingress, Hook::Tc, &mut unknown) {
        Some(Ok(exit)) => emit(packet.context, exit),
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

/// What `vr_tc_first` decided.
const TO_FORWARD: i32 = 0x100;
const TO_FORWARD_ONCE: i32 = 0x101;
const TO_ANSWER: i32 = 0x102;
const TO_FLOOD: i32 = 0x103;
const TO_WAIT: i32 = 0x104;
const TO_FRAGMENT: i32 = 0x105;
const TO_PASS: i32 = 0x106;
const TO_ROUTE: i32 = 0x107;
const TO_SERVICE: i32 = 0x108;
/// What is left to remember.
const SETTLED: i32 = 0x110;
const TO_RESERVE: i32 = 0x111;
const TO_FINISH: i32 = 0x112;

/// The first packet of a flow, and every packet no flow entry is made of: read, decide, remember, then what
/// the decision asks for. Functions of their own, called from here one after the other, with what they know
/// of the packet in the scratch: the verifier checks each once, and the stack never holds more than two.
#[inline(always)]
fn first(skb: *mut __sk_buff) -> i32 {
    let read = vr_tc_read(skb);
    if read != 0 {
        return ended(skb, read, MONITOR_KNOWN_PLACE);
    }
    let recalled = vr_tc_recall(skb);
    if recalled != 0 {
        return ended(skb, recalled, MONITOR_KNOWN_PACKET);
    }
    let mut verdict = vr_tc_first(skb);
    let mut passed = 0;
    while verdict == TO_ROUTE && passed <= ROUTERS_MAX {
        verdict = vr_tc_pass(skb);
        passed += 1;
    }
    vr_tc_log(skb, verdict);
    if (REJECTED..DROPPED).contains(&verdict) {
        // Before the answer is written over it.
        monitor::tc(skb, MONITOR_KNOWN_DECISION, verdict as u32 & 0xff);
        verdict = TO_ANSWER;
    }
    let verdict = match verdict {
        TO_FORWARD | TO_FORWARD_ONCE => match settle(skb, verdict) {
            SETTLED => vr_tc_apply(skb),
            refused => refused,
        },
        TO_WAIT => match settle(skb, verdict) {
            SETTLED => {
                ended(skb, vr_tc_upcall(skb, UPCALL_WAIT), MONITOR_KNOWN_DECISION);
                vr_tc_ask(skb)
            }
            refused => refused,
        },
        TO_FRAGMENT => match settle(skb, verdict) {
            SETTLED => {
                ended(skb, vr_tc_upcall(skb, UPCALL_FRAGMENT), MONITOR_KNOWN_DECISION);
                TC_ACT_SHOT
            }
            refused => refused,
        },
        TO_ANSWER => vr_tc_answer(skb),
        TO_FLOOD => vr_tc_flood(skb),
        TO_SERVICE => serve::vr_tc_serve(skb),
        TO_PASS => {
            Maps.count(Event::ToKernel);
            TC_ACT_UNSPEC
        }
        verdict => verdict,
    };
    ended(skb, verdict, MONITOR_KNOWN_DECISION)
}

/// Finds what is known of the packet's connection, and asks its sender's policy.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_recall(skb: *mut __sk_buff) -> i32 {
    let packet = Skb::new(skb);
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, 0);
    };
    // SAFETY: as in `vr_tc_first`.
    let Work { ingress, headers, quoted, plan } = unsafe { &mut *work };
    match pipeline::recall(&packet, &Maps, ingress, headers, quoted, plan) {
        Ok(()) => 0,
        Err(reason) => dropped(reason, packet.len() as u64),
    }
}

/// Decides the packet whose headers are in the scratch.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_first(skb: *mut __sk_buff) -> i32 {
    let packet = Skb::new(skb);
    let bytes = packet.len() as u64;
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: this CPU's own scratch; programs on one CPU do not interrupt each other here.
    let Work { ingress, headers, quoted, plan } = unsafe { &mut *work };
    let ingress = ingress.plain();
    match pipeline::first(&packet, &Maps, &ingress, headers, quoted, plan) {
        Ok(decision) => {
            if matches!(decision, Decision::Pass | Decision::Answer) && plan.unresolved {
                notify(UPCALL_RESOLVED, plan.flow.target);
            }
            if plan.moved != 0 {
                notify(UPCALL_MOVED, plan.moved);
            }
            code(decision, bytes)
        }
        Err(reason) => dropped(reason, bytes),
    }
}

/// Passes the next router.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_pass(skb: *mut __sk_buff) -> i32 {
    let packet = Skb::new(skb);
    let bytes = packet.len() as u64;
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `vr_tc_first`.
    let Work { headers, plan, .. } = unsafe { &mut *work };
    match pipeline::pass(&packet, &Maps, headers, plan) {
        Ok(decision) => code(decision, bytes),
        Err(reason) => dropped(reason, bytes),
    }
}

/// A decision as a function's result.
#[inline(always)]
fn code(decision: Decision, bytes: u64) -> i32 {
    match decision {
        Decision::Forward => TO_FORWARD,
        Decision::ForwardOnce => TO_FORWARD_ONCE,
        Decision::Answer => TO_ANSWER,
        Decision::Reject(reason) => {
            Maps.count_drop(reason, bytes);
            REJECTED | reason as i32
        }
        Decision::Flood => TO_FLOOD,
        Decision::Wait => TO_WAIT,
        Decision::Fragment => TO_FRAGMENT,
        Decision::Service => TO_SERVICE,
        Decision::Pass => TO_PASS,
        Decision::Route => TO_ROUTE,
    }
}

/// Remembers what was decided.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_settle(skb: *mut __sk_buff, verdict: i32) -> i32 {
    let bytes = Skb::new(skb).len() as u64;
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `vr_tc_first`.
    let Work { ingress, headers, plan, .. } = unsafe { &mut *work };
    let decision = match verdict {
        TO_FORWARD => Decision::Forward,
        TO_WAIT => Decision::Wait,
        TO_FRAGMENT => Decision::Fragment,
        _ => Decision::ForwardOnce,
    };
    match pipeline::settle(&Maps, ingress, headers, plan, decision, Hook::Tc) {
        Ok(Settled::Done) => SETTLED,
        Ok(Settled::Reserve) => TO_RESERVE,
        Ok(Settled::Finish) => TO_FINISH,
        Err(reason) => dropped(reason, bytes),
    }
}

/// Reserves the reply's leg of the connection.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_reserve(skb: *mut __sk_buff) -> i32 {
    let bytes = Skb::new(skb).len() as u64;
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `vr_tc_first`; the reference ends before another function has its own.
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

/// Everything to be remembered, one after the other. Not [`SETTLED`]: dropped.
#[inline(always)]
fn settle(skb: *mut __sk_buff, verdict: i32) -> i32 {
    let mut verdict = vr_tc_settle(skb, verdict);
    if verdict == TO_RESERVE {
        verdict = vr_tc_reserve(skb);
    }
    if verdict == TO_FINISH {
        crate::claim::vr_finish();
        verdict = SETTLED;
    }
    if verdict == SETTLED {
        monitor::tc(skb, MONITOR_KNOWN_DECISION, 0);
    }
    verdict
}

/// Forwards the packet as was decided.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_apply(skb: *mut __sk_buff) -> i32 {
    let mut packet = Skb::new(skb);
    let bytes = packet.len() as u64;
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `vr_tc_first`.
    let work = unsafe { &mut *work };
    let ingress = work.ingress.plain();
    match pipeline::apply_first(&mut packet, &Maps, &ingress, work, Hook::Tc) {
        Some(Ok(exit)) => emit(packet.context, exit),
        Some(Err(reason)) => dropped(reason, bytes),
        None => dropped(DropReason::HopPending, bytes),
    }
}

/// Tells the agent that whoever waits for a next hop can go, or that somebody claims an address anew.
#[inline(always)]
fn notify(kind: u32, hop: u32) {
    let upcall = Upcall { kind, hop, ..Upcall::default() };
    if let Some(mut record) = maps::UPCALLS.reserve_bytes(size_of::<Upcall>(), 0) {
        // SAFETY: the record has the size of what is written.
        unsafe { core::ptr::write_unaligned(record.as_mut_ptr().cast::<Upcall>(), upcall) };
        record.submit(0);
    }
}

/// Hands a copy of the packet, and what was decided, to the agent.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_upcall(skb: *mut __sk_buff, kind: u32) -> i32 {
    let packet = Skb::new(skb);
    let bytes = packet.len() as u64;
    let reason = if kind == UPCALL_WAIT { DropReason::HopPending } else { DropReason::TooBig };
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `vr_tc_first`.
    let work: &Work = unsafe { &*work };
    if bytes == 0 || bytes > UPCALL_FRAME_MAX as u64 {
        return dropped(reason, bytes);
    }
    const SIZE: usize = size_of::<Upcall>() + UPCALL_FRAME_MAX;
    let Some(mut record) = maps::UPCALLS.reserve_bytes(SIZE, 0) else {
        return dropped(reason, bytes);
    };
    let at = record.as_mut_ptr();
    // SAFETY: the record has room for both; ring buffer records are aligned to 8 bytes.
    let loaded = unsafe {
        let upcall = at.cast::<Upcall>();
        (*upcall).kind = kind;
        (*upcall).hop = work.plan.flow.target;
        (*upcall).len = bytes as u32;
        (*upcall).ifindex = (*skb).ifindex;
        (*upcall).at = work.ingress.at as u32;
        (*upcall).zero = 0;
        (*upcall).flow = work.plan.flow;
        (*upcall).answer = work.plan.answer;
        let len = core::hint::black_box(bytes as u32);
        if len == 0 || len > UPCALL_FRAME_MAX as u32 {
            -1
        } else {
            helpers::bpf_skb_load_bytes(skb.cast(), 0, at.add(size_of::<Upcall>()).cast(), len)
        }
    };
    if loaded != 0 {
        record.discard(0);
        return dropped(reason, bytes);
    }
    record.submit(0);
    Maps.count(if kind == UPCALL_WAIT { Event::HopQueued } else { Event::FragmentQueued });
    0
}

/// Turns the packet, of which the agent has a copy, into the request for its next hop, if it is time for one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_ask(skb: *mut __sk_buff) -> i32 {
    let mut packet = Skb::new(skb);
    let bytes = packet.len() as u64;
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `vr_tc_first`.
    let work: &Work = unsafe { &*work };
    if work.ingress.at != 0 || !Maps.may_ask(work.plan.flow.target) {
        return TC_ACT_SHOT;
    }
    match answer::request::write(&mut packet, &Maps, &work.plan) {
        Ok(exit) => {
            Maps.count(Event::HopAsked);
            emit(skb, exit)
        }
        Err(reason) => dropped(reason, bytes),
    }
}

/// Tells a developer what was decided (`vrouter agent --data-path-log debug`). Off, which is how it is
/// loaded unless asked, the verifier removes the body.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_log(skb: *mut __sk_buff, verdict: i32) -> i32 {
    let ctx = TcContext::new(skb);
    // SAFETY: the program's context.
    let (ifindex, len) = unsafe { ((*skb).ifindex, (*skb).len) };
    debug!(&ctx, "first packet, {} bytes, interface {}: verdict {}", len, ifindex, verdict);
    0
}

/// Reads the packet into the scratch; what it finds is counted here if it is a reason to drop. Apart, so
/// that the verifier follows the ways through the headers once, not once for every decision after them.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_read(skb: *mut __sk_buff) -> i32 {
    let packet = Skb::with_linear(skb, HEADERS_FULL);
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, 0);
    };
    // SAFETY: as in `vr_tc_first`.
    let Work { ingress, headers, quoted, .. } = unsafe { &mut *work };
    let ingress = ingress.plain();
    match pipeline::read(&packet, &Maps, &ingress, headers, quoted, Hook::Tc) {
        Ok(()) => 0,
        Err(reason) => dropped(reason, packet.len() as u64),
    }
}

/// Writes the answer in the scratch over the packet and sends it back.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_answer(skb: *mut __sk_buff) -> i32 {
    let mut packet = Skb::new(skb);
    let bytes = packet.len() as u64;
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `vr_tc_first`.
    let work: &Work = unsafe { &*work };
    if matches!(work.plan.answer.kind, plan::ICMP_ERROR | plan::TCP_RESET) && !Maps.may_answer() {
        Maps.count(Event::AnswerLimited);
        return TC_ACT_SHOT;
    }
    match answer::write(&mut packet, &work.headers, &work.plan.answer) {
        Ok(event) => {
            Maps.count(event);
            // SAFETY: the program's context.
            emit(skb, Exit::Interface(unsafe { (*skb).ifindex }))
        }
        Err(reason) => dropped(reason, bytes),
    }
}

/// What a round of flooding needs.
struct Copying {
    skb: *mut __sk_buff,
    round: Round,
    vni: u32,
}

/// Copies a frame to every receiver of its network: the ports of this node, and, if it came from one, the
/// other nodes (behaviour L5).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_flood(skb: *mut __sk_buff) -> i32 {
    let mut packet = Skb::new(skb);
    let bytes = packet.len() as u64;
    let (Some(work), Some(commit)) = (maps::WORK.get_ptr_mut(0), maps::COMMIT.get(0)) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `vr_tc_first`.
    let (network, vni, ingress) =
        unsafe { ((*work).plan.flood_network, (*work).plan.flood_vni, (*work).ingress) };
    Maps.count(Event::FrameFlooded);
    let tunnelled = ingress.tunnelled();
    let at = if tunnelled { OUTER_LEN } else { 0 };
    let Some(eth) = packet.view(at, ETH_LEN) else {
        return dropped(DropReason::FrameTruncated, bytes);
    };
    let (macs, ethertype) = (eth.macs(0), eth.be16(12));
    if tunnelled {
        if packet.pop_outer().is_err() {
            return dropped(DropReason::NoRoom, bytes);
        }
        let Some(eth) = packet.view(0, ETH_LEN) else {
            return dropped(DropReason::Internal, bytes);
        };
        eth.put_macs(0, &macs);
        eth.put_be16(12, ethertype);
    }
    // Work's decision was made under this commit's bank or the one before; both are whole.
    let round = Round::new(commit.bank(), network, &ingress);
    let mut copying = Copying { skb, round, vni };
    // SAFETY: the callbacks take what they are given here, and live as long as the program.
    unsafe {
        helpers::bpf_loop(RECEIVERS_MAX, flood_port as *mut c_void, (&raw mut copying).cast(), 0);
    }
    if tunnelled || !copying.round.remote(&Maps) {
        return TC_ACT_SHOT;
    }
    if packet.push_outer().is_err() {
        return dropped(DropReason::NoRoom, bytes);
    }
    let Some(eth) = packet.view(OUTER_LEN, ETH_LEN) else {
        return dropped(DropReason::NoRoom, bytes);
    };
    eth.put_macs(0, &macs);
    eth.put_be16(12, ethertype);
    // SAFETY: as above.
    unsafe {
        helpers::bpf_loop(RECEIVERS_MAX, flood_node as *mut c_void, (&raw mut copying).cast(), 0);
    }
    TC_ACT_SHOT
}

/// Sends a copy by an interface: a port's, or, if it is for another node (else 0), one that leads there.
#[cfg(not(feature = "trace"))]
#[inline(always)]
fn copy(skb: *mut __sk_buff, ifindex: u32, _node: u32) {
    // SAFETY: the program's context, carried through a loop's.
    unsafe { helpers::bpf_clone_redirect(skb, ifindex, 0) };
}

/// Nothing is sent.
#[cfg(feature = "trace")]
#[inline(always)]
fn copy(_skb: *mut __sk_buff, ifindex: u32, node: u32) {
    Maps.copy(Copied { ifindex: if node == 0 { ifindex } else { 0 }, node });
}

/// One port of this node.
extern "C" fn flood_port(_index: u32, copying: *mut c_void) -> i64 {
    // SAFETY: the `Copying` of `vr_tc_flood`.
    let copying = unsafe { &mut *copying.cast::<Copying>() };
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: as in `vr_tc_first`.
    match copying.round.port(&Maps, unsafe { &(*work).headers }) {
        Next::Port(ifindex) => copy(copying.skb, ifindex, 0),
        Next::End => return 1,
        _ => {}
    }
    0
}

/// One other node.
extern "C" fn flood_node(_index: u32, copying: *mut c_void) -> i64 {
    // SAFETY: the `Copying` of `vr_tc_flood`.
    let copying = unsafe { &mut *copying.cast::<Copying>() };
    let packet = Skb::new(copying.skb);
    let (node, way) = match copying.round.node(&Maps, packet.len() as u64) {
        Next::Node(node, way) => (node, way),
        Next::End => return 1,
        _ => return 0,
    };
    let Some(eth) = packet.view(OUTER_LEN, ETH_LEN) else {
        return 1;
    };
    let (macs, ethertype) = (eth.macs(0), eth.be16(12));
    let sport = tunnel::outer_sport(macs.0[2] ^ macs.0[1]);
    if tunnel::write(&packet, way, copying.vni, sport, &macs, ethertype).is_ok() {
        copy(copying.skb, way.ifindex, node);
    }
    0
}
