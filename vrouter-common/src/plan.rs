//! What is worked out for one packet, and the small questions every stage asks of it.

use crate::{
    addr::{Be32, Ip, Macs},
    flow::{FROM_NETWORK, FROM_PORT, Flow, FlowKey},
    packet::{Packet, View},
    parse::Headers,
    reason::DropReason,
    tunnel::Outer,
    wire::*,
};

/// Where a packet came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// [`FROM_PORT`] or [`FROM_NETWORK`].
    pub from: u8,
    /// Interface index or VNI.
    pub zone: u32,
    /// The sending node, or zero.
    pub vtep: Be32,
    /// Where the (inner) frame starts.
    pub at: usize,
}

impl Ingress {
    /// From a port's interface.
    #[inline(always)]
    pub const fn port(ifindex: u32) -> Self {
        Self { from: FROM_PORT, zone: ifindex, vtep: Be32::from_memory(0), at: 0 }
    }

    /// From another node.
    #[inline(always)]
    pub const fn tunnel(outer: &Outer) -> Self {
        Self { from: FROM_NETWORK, zone: outer.vni, vtep: outer.vtep, at: OUTER_LEN }
    }

    /// Whether it still has outer headers.
    #[inline(always)]
    pub const fn tunnelled(&self) -> bool {
        self.from == FROM_NETWORK
    }
}

/// Scratch of one packet: too large for the kernel's stack of 512 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// What the packet says.
    pub headers: Headers,
    /// What becomes of it.
    pub plan: Plan,
}

/// A decision under construction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// The decision under construction.
    pub flow: Flow,
    /// What to send back.
    pub answer: Answer,
    /// Which network to flood ([`Decision::Flood`]).
    pub flood_network: u32,
    /// Its VNI.
    pub flood_vni: u32,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Forward as `plan.flow` says, and remember it under its key.
    Forward,
    /// Forward as `plan.flow` says, this once.
    ForwardOnce,
    /// Answer as `plan.answer` says.
    Answer,
    /// Drop, and answer as `plan.answer` says.
    Reject(DropReason),
    /// Copy to every receiver of `plan.flood_network`.
    Flood,
}

/// What to send back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// `ARP_REPLY` and its siblings.
    pub kind: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// Routers between the asker and who answers.
    pub hops: u8,
    /// The ICMP header's second word: MTU or pointer, host order.
    pub rest: u32,
    /// Who has the address asked for.
    pub mac: [u8; 6],
    /// The address asked for is a router's.
    pub router: u8,
    /// Zero.
    pub zero: u8,
    /// Who answers.
    pub source: Ip,
}
const _: () = assert!(size_of::<Answer>() == 32);

/// An ARP reply.
pub const ARP_REPLY: u8 = 1;
/// A neighbour advertisement.
pub const ND_ADVERT: u8 = 2;
/// An ICMP echo reply.
pub const ECHO_REPLY: u8 = 3;
/// An ICMP error.
pub const ICMP_ERROR: u8 = 4;
/// A TCP reset.
pub const TCP_RESET: u8 = 5;

/// Whether a decision may be stored under the packet's key.
#[inline(always)]
pub fn remember(headers: &Headers) -> Decision {
    // What neighbour discovery claims is in its payload, which no key covers: each one is checked.
    if headers.options || headers.fragment || headers.arp || headers.is_neighbour_discovery() {
        Decision::ForwardOnce
    } else {
        Decision::Forward
    }
}

/// The key of a packet's flow.
#[inline(always)]
pub fn key(headers: &Headers, from: u8, zone: u32) -> FlowKey {
    FlowKey {
        src: headers.src,
        dst: headers.dst,
        zone,
        sport: headers.sport,
        dport: headers.dport,
        proto: headers.proto,
        from,
        zero: 0,
    }
}

/// Bytes of the largest L3 packet this becomes on a wire: its own length, or that of one segment.
#[inline(always)]
pub fn segment_len<P: Packet>(packet: &P, headers: &Headers) -> u32 {
    let gso_size = packet.gso_size();
    if gso_size == 0 {
        return headers.l3_len as u32;
    }
    let transport = match headers.proto {
        PROTO_TCP => match packet.view(headers.l4(), 14) {
            Some(tcp) => (tcp.u8(12) >> 4) as u32 * 4,
            None => 20,
        },
        _ => 8,
    };
    gso_size + (headers.l3_len as u32).wrapping_sub(headers.l4_len() as u32) + transport
}

/// Swaps the two addresses: for an answer.
#[inline(always)]
pub fn swapped(macs: &Macs) -> Macs {
    Macs::new(macs.src(), macs.dst())
}
