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
    flow::FROM_PORT,
    packet::{NoRoom, Packet, SUM_MAX, View},
    pipeline,
    plan::{Decision, Ingress, Work},
    reason::{DropReason, Event},
    tables::*,
    tunnel,
    wire::*,
};

use crate::{maps, tables::Maps};

/// Bytes of headers that must be directly readable: outer and inner, with the longest IPv4 header.
const HEADERS: u32 = 160;

/// The same where a chain of extension headers or options to ND may be read.
const HEADERS_FULL: u32 = 512;

/// A socket buffer.
pub struct Skb(*mut __sk_buff);

// The offsets the macro below loads from.
const _: () = assert!(core::mem::offset_of!(__sk_buff, data) == 76);
const _: () = assert!(core::mem::offset_of!(__sk_buff, data_end) == 80);

/// Loads the packet's start and end from a context. In assembly, because LLVM likes to compute the address
/// of a context's field apart from the load, which the verifier refuses ("modified ctx ptr").
macro_rules! bounds {
    ($ctx:expr, $data:literal, $data_end:literal) => {{
        let (start, end): (usize, usize);
        // SAFETY: loads two fields of the context the program was given.
        unsafe {
            core::arch::asm!(
                concat!("{start} = *(u32 *)({ctx} + ", $data, ")"),
                concat!("{end} = *(u32 *)({ctx} + ", $data_end, ")"),
                start = out(reg) start, end = lateout(reg) end, ctx = in(reg) $ctx,
                options(pure, readonly, nostack)
            );
        }
        (start, end)
    }};
}
pub(crate) use bounds;

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
    /// Takes the context, and makes sure that the headers lie in the linear part.
    #[inline(always)]
    fn new(skb: *mut __sk_buff) -> Self {
        Self::with_linear(skb, HEADERS)
    }

    /// The same for the first `wanted` bytes.
    #[inline(always)]
    fn with_linear(skb: *mut __sk_buff, wanted: u32) -> Self {
        let this = Self(skb);
        // SAFETY: `skb` is the program's context; the helper may move the data, nothing points to it yet.
        unsafe {
            let linear = (*skb).data_end - (*skb).data;
            if linear < wanted && linear < (*skb).len {
                let wanted = if (*skb).len < wanted { (*skb).len } else { wanted };
                helpers::bpf_skb_pull_data(skb, wanted);
            }
        }
        this
    }

    #[inline(always)]
    fn protocol_is_ip(&self) -> bool {
        // SAFETY: the program's context.
        let protocol = unsafe { (*self.0).protocol } as u16;
        protocol == ETHERTYPE_IPV4.to_be() || protocol == ETHERTYPE_IPV6.to_be()
    }
}

impl Packet for Skb {
    type View<'a> = Bytes;

    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the program's context.
        unsafe { (*self.0).len as usize }
    }

    #[inline(always)]
    fn view(&self, at: usize, len: usize) -> Option<Bytes> {
        let (start, end) = bounds!(self.0, 76, 80);
        // This exact shape is what the verifier learns from.
        if start + at + len > end {
            return None;
        }
        Some(Bytes((start + at) as *mut u8))
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: the program's context.
        unsafe { (*self.0).gso_size }
    }

    #[inline(always)]
    fn has_vlan_tag(&self) -> bool {
        // SAFETY: the program's context.
        unsafe { (*self.0).vlan_present != 0 }
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
                let result = helpers::bpf_skb_adjust_room(self.0, room, BPF_ADJ_ROOM_MAC, FLAGS);
                if result == 0 {
                    return Ok(());
                }
                // EALREADY: it came through a tunnel, and a workload has forwarded it as it is. The kernel
                // still knows it as encapsulated, with its inner headers where they are about to be again.
                let fixed = BPF_F_ADJ_ROOM_FIXED_GSO as u64;
                helpers::bpf_skb_adjust_room(self.0, room, BPF_ADJ_ROOM_MAC, fixed)
            } else {
                helpers::bpf_skb_change_head(self.0, OUTER_LEN as u32, 0)
            }
        };
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
        unsafe {
            // Tells the kernel that the packet is IPv6 now. Kernels before 6.3 have no such flag.
            if v6 {
                let flags = fixed | BPF_F_ADJ_ROOM_DECAP_L3_IPV6 as u64;
                if helpers::bpf_skb_adjust_room(self.0, -(OUTER_LEN as i32), BPF_ADJ_ROOM_MAC, flags) == 0 {
                    return Ok(());
                }
            }
            if helpers::bpf_skb_adjust_room(self.0, -(OUTER_LEN as i32), BPF_ADJ_ROOM_MAC, fixed) == 0 {
                return Ok(());
            }
        }
        Err(NoRoom)
    }

    #[inline(always)]
    fn push_front(&mut self, bytes: usize) -> Result<(), NoRoom> {
        // SAFETY: the program's context; no view is alive.
        let result = unsafe { helpers::bpf_skb_change_head(self.0, bytes as u32, 0) };
        if result == 0 { Ok(()) } else { Err(NoRoom) }
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) -> Result<(), NoRoom> {
        if len == self.len() {
            return Ok(());
        }
        // SAFETY: the program's context; no view is alive.
        let result = unsafe { helpers::bpf_skb_change_tail(self.0, len as u32, 0) };
        if result == 0 { Ok(()) } else { Err(NoRoom) }
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
            if helpers::bpf_skb_load_bytes(self.0.cast(), at as u32, buffer.cast(), len as u32) != 0 {
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

/// Ends a packet's way with a reason.
#[inline(always)]
fn dropped(reason: DropReason, bytes: u64) -> i32 {
    Maps.count_drop(reason, bytes);
    TC_ACT_SHOT
}

/// Sends a packet where it leaves.
#[inline(always)]
fn emit(exit: Exit) -> i32 {
    match exit {
        // SAFETY: a helper of scalars.
        Exit::Interface(ifindex) => unsafe { helpers::bpf_redirect(ifindex, 0) as i32 },
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
    let mut packet = Skb::new(skb);
    // SAFETY: the program's context.
    let ingress = Ingress::port(unsafe { (*skb).ifindex });
    let bytes = packet.len() as u64;
    match pipeline::established(&mut packet, &Maps, &ingress, Hook::Tc) {
        Some(Ok(exit)) => emit(exit),
        Some(Err(reason)) => dropped(reason, bytes),
        None => first(skb, &ingress),
    }
}

/// From the underlay.
#[inline(always)]
pub fn uplink(skb: *mut __sk_buff) -> i32 {
    let mut packet = Skb::new(skb);
    let bytes = packet.len() as u64;
    let ingress = match open(&packet) {
        Ok(Some(ingress)) => ingress,
        Ok(None) => {
            Maps.count(Event::ToKernel);
            return TC_ACT_UNSPEC;
        }
        Err(reason) => return dropped(reason, bytes),
    };
    match pipeline::established(&mut packet, &Maps, &ingress, Hook::Tc) {
        Some(Ok(exit)) => emit(exit),
        Some(Err(reason)) => dropped(reason, bytes),
        None => first(skb, &ingress),
    }
}

#[inline(always)]
fn open(packet: &Skb) -> Result<Option<Ingress>, DropReason> {
    let vtep = match maps::COMMIT.get(0) {
        Some(commit) => commit.vtep,
        None => return Ok(None),
    };
    Ok(tunnel::open(packet, vtep)?.map(|outer| Ingress::tunnel(&outer)))
}

/// `vr_tc_first`: the packet needs an answer.
const TO_ANSWER: i32 = 0x100;
/// `vr_tc_first`: the packet needs copies.
const TO_FLOOD: i32 = 0x101;

/// The first packet of a flow, and every packet no flow entry is made of: read, decide, then what the
/// decision asks for. Functions of their own, called from here one after the other: the verifier checks
/// each once, and the stack never holds more than two of them.
#[inline(always)]
fn first(skb: *mut __sk_buff, ingress: &Ingress) -> i32 {
    if vr_tc_read(skb, ingress.at as u32) != 0 {
        return TC_ACT_SHOT;
    }
    let verdict = vr_tc_first(skb, ingress.from as u32);
    vr_tc_log(skb, verdict);
    match verdict {
        TO_ANSWER => vr_tc_answer(skb),
        TO_FLOOD => vr_tc_flood(skb, ingress.from as u32),
        verdict => verdict,
    }
}

/// Decides the packet whose headers are in the scratch, and forwards it if that is the decision.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_first(skb: *mut __sk_buff, from: u32) -> i32 {
    let mut packet = Skb(skb);
    let bytes = packet.len() as u64;
    let ingress = if from == FROM_PORT as u32 {
        // SAFETY: the program's context.
        Ingress::port(unsafe { (*skb).ifindex })
    } else {
        match open(&packet) {
            Ok(Some(ingress)) => ingress,
            Ok(None) => return TC_ACT_UNSPEC,
            Err(reason) => return dropped(reason, bytes),
        }
    };
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: this CPU's own scratch; programs on one CPU do not interrupt each other here.
    let Work { headers, plan } = unsafe { &mut *work };
    let decision = match pipeline::first(&packet, &Maps, &ingress, headers, plan, Hook::Tc) {
        Ok(decision) => decision,
        Err(reason) => return dropped(reason, bytes),
    };
    match decision {
        Decision::Forward | Decision::ForwardOnce => {
            match pipeline::apply_first(&mut packet, &Maps, &ingress, plan, Hook::Tc) {
                Ok(exit) => emit(exit),
                Err(reason) => dropped(reason, bytes),
            }
        }
        Decision::Answer => TO_ANSWER,
        Decision::Reject(reason) => {
            Maps.count_drop(reason, bytes);
            TO_ANSWER
        }
        Decision::Flood => TO_FLOOD,
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
pub extern "C" fn vr_tc_read(skb: *mut __sk_buff, at: u32) -> i32 {
    let packet = Skb::with_linear(skb, HEADERS_FULL);
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, 0);
    };
    // SAFETY: as in `vr_tc_first`.
    let headers = unsafe { &mut (*work).headers };
    let at = if at == 0 { 0 } else { OUTER_LEN };
    match pipeline::read(&packet, at, headers) {
        Ok(()) => 0,
        Err(reason) => dropped(reason, packet.len() as u64),
    }
}

/// Writes the answer in the scratch over the packet and sends it back.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_answer(skb: *mut __sk_buff) -> i32 {
    let mut packet = Skb(skb);
    let bytes = packet.len() as u64;
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `vr_tc_first`.
    let work: &Work = unsafe { &*work };
    match answer::write(&mut packet, &work.headers, &work.plan.answer) {
        Ok(event) => {
            Maps.count(event);
            // SAFETY: the program's context.
            emit(Exit::Interface(unsafe { (*skb).ifindex }))
        }
        Err(reason) => dropped(reason, bytes),
    }
}

/// What a round of flooding needs.
struct Round {
    skb: *mut __sk_buff,
    network: Scoped,
    cursor: u32,
    except: u32,
    vni: u32,
}

/// Receivers one frame is copied to at the most.
const RECEIVERS_MAX: u32 = 8192;

/// Copies a frame to every receiver of its network: the ports of this node, and, if it came from one, the
/// other nodes (behaviour L5).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_tc_flood(skb: *mut __sk_buff, from: u32) -> i32 {
    let mut packet = Skb(skb);
    let bytes = packet.len() as u64;
    let (Some(work), Some(commit)) = (maps::WORK.get_ptr_mut(0), maps::COMMIT.get(0)) else {
        return dropped(DropReason::Internal, bytes);
    };
    // SAFETY: as in `vr_tc_first`.
    let (network, vni) = unsafe { ((*work).plan.flood_network, (*work).plan.flood_vni) };
    Maps.count(Event::FrameFlooded);
    let tunnelled = from != FROM_PORT as u32;
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
    // SAFETY: the program's context.
    let except = if tunnelled { 0 } else { unsafe { (*skb).ifindex } };
    // Work's decision was made under this commit's bank or the one before; both are whole.
    let network = Scoped::new(commit.bank(), network);
    let mut round = Round { skb, network, cursor: FLOOD_LOCAL, except, vni };
    // SAFETY: the callbacks take what they are given here, and live as long as the program.
    unsafe {
        helpers::bpf_loop(RECEIVERS_MAX, flood_port as *mut c_void, (&raw mut round).cast(), 0);
    }
    if tunnelled {
        return TC_ACT_SHOT;
    }
    round.cursor = FLOOD_REMOTE;
    let first = FloodKey { network, cursor: FLOOD_REMOTE };
    // SAFETY: see `Tables`.
    if unsafe { maps::FLOODS.get(first) }.is_none() {
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
        helpers::bpf_loop(RECEIVERS_MAX, flood_node as *mut c_void, (&raw mut round).cast(), 0);
    }
    TC_ACT_SHOT
}

/// One port of this node.
extern "C" fn flood_port(_index: u32, round: *mut c_void) -> i64 {
    // SAFETY: the `Round` of `vr_tc_flood`.
    let round = unsafe { &mut *round.cast::<Round>() };
    // SAFETY: see `Tables`.
    let Some(receiver) =
        (unsafe { maps::FLOODS.get(FloodKey { network: round.network, cursor: round.cursor }) })
    else {
        return 1;
    };
    round.cursor = receiver.next;
    if receiver.at != round.except {
        // SAFETY: the program's context, carried through the loop's.
        unsafe { helpers::bpf_clone_redirect(round.skb, receiver.at, 0) };
    }
    0
}

/// One other node.
extern "C" fn flood_node(_index: u32, round: *mut c_void) -> i64 {
    // SAFETY: the `Round` of `vr_tc_flood`.
    let round = unsafe { &mut *round.cast::<Round>() };
    // SAFETY: see `Tables`.
    let Some(receiver) =
        (unsafe { maps::FLOODS.get(FloodKey { network: round.network, cursor: round.cursor }) })
    else {
        return 1;
    };
    round.cursor = receiver.next;
    let packet = Skb(round.skb);
    let Some(way) = maps::UNDERLAY.get(receiver.at).filter(|way| way.flags & UNDERLAY_RESOLVED != 0) else {
        Maps.count_drop(DropReason::UnderlayUnreachable, packet.len() as u64);
        return 0;
    };
    let Some(eth) = packet.view(OUTER_LEN, ETH_LEN) else {
        return 1;
    };
    let (macs, ethertype) = (eth.macs(0), eth.be16(12));
    let sport = tunnel::outer_sport(macs.0[2] ^ macs.0[1]);
    if tunnel::write(&packet, way, round.vni, sport, &macs, ethertype).is_ok() {
        // SAFETY: as in `flood_port`.
        unsafe { helpers::bpf_clone_redirect(round.skb, way.ifindex, 0) };
    }
    0
}
