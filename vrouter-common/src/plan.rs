//! What is worked out for one packet, and the small questions every stage asks of it.

use crate::{
    addr::{Be16, Be32, Ip, Macs},
    flow::{FROM_BLOCK, FROM_NETWORK, FROM_PORT, Flow, FlowKey, Tuple},
    packet::{Packet, View},
    parse::{Headers, Quoted},
    reason::DropReason,
    service::Asked,
    tables::{Binding, Commit, SNAT_BLOCK},
    tunnel::Outer,
    wire::*,
};

/// Where a packet came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

    /// From an interface on an external network, given by its VNI: the same zone as what another node sends
    /// on that network.
    #[inline(always)]
    pub const fn external(vni: u32) -> Self {
        Self { from: FROM_NETWORK, zone: vni, vtep: Be32::from_memory(0), at: 0 }
    }

    /// The same with an offset the verifier can see is one of two.
    #[inline(always)]
    pub const fn plain(&self) -> Self {
        Self { at: if self.at == 0 { 0 } else { OUTER_LEN }, ..*self }
    }

    /// Whether it still has outer headers.
    #[inline(always)]
    pub const fn tunnelled(&self) -> bool {
        self.at != 0
    }

    /// Whether it came in by an interface on an external network.
    #[inline(always)]
    pub const fn outside(&self) -> bool {
        self.from == FROM_NETWORK && !self.tunnelled()
    }
}

/// Scratch of one packet: too large for the kernel's stack of 512 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Where it came in.
    pub ingress: Ingress,
    /// What the packet says.
    pub headers: Headers,
    /// What the packet it is an error about said.
    pub quoted: Quoted,
    /// What becomes of it.
    pub plan: Plan,
}

/// A decision under construction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// What the packet will be forwarded by.
    pub flow: Flow,
    /// What to send back.
    pub answer: Answer,
    /// Which network to flood ([`Decision::Flood`]).
    pub flood_network: u32,
    /// Its VNI.
    pub flood_vni: u32,

    /// The state the packet is decided under.
    pub commit: Commit,
    /// What is known of the connection: the leg this packet travels on.
    pub known: Flow,
    /// Its key: the packet's own, or that of the packet an ICMP error is about, reversed.
    pub known_key: FlowKey,
    /// `KNOWN_*`: where it was found.
    pub known_in: u8,
    /// `ROLE_*`, or [`ROLE_RELATED`].
    pub role: u8,
    /// The source is to get a port of a router's external address.
    pub snat: bool,
    /// The next hop is not resolved.
    pub unresolved: bool,
    /// Too large for a network on its way, and may be cut.
    pub too_big: bool,
    /// Came through a tunnel: there is no way to answer.
    pub mute: bool,
    /// `ASKED_*`: how many nodes [`crate::balance`] has asked whether they know the connection.
    pub asked: u8,
    /// The address of the member it is passed on to ([`Self::way_node`]) is whoever's claims it.
    pub way_moves: bool,
    /// The network on which somebody claimed an address anew; 0: none.
    pub moved: u32,
    /// Its way is that of all packets to a block of ports, and remembered as such.
    pub block: bool,
    /// Whether it is for a service of this node.
    pub service: Asked,
    /// No flow has its key: the fast path has looked, and says so for each packet it leaves.
    pub unknown: bool,
    /// The next hop of the router the packet is at.
    pub nexthop: Ip,
    /// The node the packet came from has lowered the TTL for the first router.
    pub paid: bool,
    /// Routers passed so far.
    pub passed: u8,
    /// What TTL loses so far.
    pub hops: u8,
    /// The hardware address of the router on another node.
    pub way_mac: [u8; 6],
    /// That node.
    pub way_node: u32,
    /// The router the packet is at, and the network it came there by.
    pub at_router: u32,
    /// See above.
    pub at_network: u32,
    /// The external network the packet came in from, by its interface or by a tunnel from another node; 0: none.
    pub entered_network: u32,
    /// Its VNI.
    pub entered_vni: u32,
    /// The router it entered.
    pub entered_router: u32,
    /// What an ICMP error from outside is about: a packet of the direction that the error travels in.
    pub about: Tuple,
    /// The member of a pool it was passed on to: its index and one more; 0: none.
    pub named: u32,
    /// Number of the listener it was balanced by; 0: none.
    pub listener: u32,
    /// Number of the member it goes to.
    pub member: u32,
    /// The packet's tuple as translated so far.
    pub tuple: Tuple,
    /// The port it came from, if it came from one.
    pub binding: Binding,
    /// Where replies will come in: `FROM_*`.
    pub reply_from: u32,
    /// The zone they will come in.
    pub reply_zone: u32,
    /// The VNI of the sender's own network.
    pub home_vni: u32,
    /// Network the packet leaves on, and the router it leaves by ([`Self::snat`], requests for next hops).
    pub leaves_on: u32,
    /// See above.
    pub leaves_by: u32,
    /// Bank the decision reads.
    pub bank: u32,
    /// Blocks of ports to choose from.
    pub snat_blocks: u32,
    /// The key of the packet's own leg.
    pub key: FlowKey,
    /// The key of the other.
    pub reply_key: FlowKey,
    /// The other leg.
    pub peer: Flow,
}

/// The packet came to the node of the member that its slot has.
pub const ASKED_NOBODY: u8 = 0;
/// That node sent it to another: to the slot's other candidate, or because the member that it was meant for takes nothing
/// new.
pub const ASKED_ONE: u8 = 1;
/// That one, too: whoever it comes to now serves it.
pub const ASKED_ALL: u8 = 2;
/// Who it came to says that its member is elsewhere.
pub const ASKED_TOO_MANY: u8 = 3;

/// No leg is known.
pub const KNOWN_NOWHERE: u8 = 0;
/// In the table of answered flows.
pub const KNOWN_ANSWERED: u8 = 1;
/// In the table of unanswered ones.
pub const KNOWN_TRANSIENT: u8 = 2;

/// An ICMP error about a packet of the known connection's other direction.
pub const ROLE_RELATED: u8 = 3;

impl Plan {
    /// The key of the packet.
    #[inline(always)]
    pub const fn own_key(&self, headers: &Headers, ingress: &Ingress) -> FlowKey {
        match block_key(headers, ingress.zone) {
            Some(block) if self.block => block,
            _ => key(headers, ingress.from, ingress.zone),
        }
    }

    /// Whether the known leg translates, which this packet then does the same way.
    #[inline(always)]
    pub const fn follows(&self) -> bool {
        self.role == crate::flow::ROLE_REPLY || self.role == ROLE_RELATED
    }
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
    /// Ask [`crate::route::pass`].
    Route,
    /// Forward as `plan.flow` says as soon as its next hop is resolved; `plan.answer` if it never is.
    Wait,
    /// Cut to pieces, and forward those as `plan.flow` says.
    Fragment,
    /// Hand to the agent: it is for a service of this node.
    Service,
    /// Leave to the kernel: not ours.
    Pass,
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
pub const fn key(headers: &Headers, from: u8, zone: u32) -> FlowKey {
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

/// The port of a router's address that a packet from outside goes to, if it says one: for an echo reply, its
/// identifier.
#[inline(always)]
pub const fn outside_port(proto: u8, sport: Be16, dport: Be16) -> Option<u16> {
    match proto {
        PROTO_TCP | PROTO_UDP => Some(dport.get()),
        PROTO_ICMP if dport.get() == (ICMP_ECHO_REPLY as u16) << 8 => Some(sport.get()),
        _ => None,
    }
}

/// The key of all packets from outside to a block of ports of an IPv4 address.
#[inline(always)]
pub const fn block_key(headers: &Headers, zone: u32) -> Option<FlowKey> {
    if headers.v6 || headers.fragment || headers.options {
        return None;
    }
    let Some(port) = outside_port(headers.proto, headers.sport, headers.dport) else { return None };
    Some(FlowKey {
        src: Ip::V4_UNSPECIFIED,
        dst: headers.dst,
        zone,
        sport: Be16::new(0),
        dport: Be16::new((port as u32 / SNAT_BLOCK * SNAT_BLOCK) as u16),
        proto: 0,
        from: FROM_BLOCK,
        zero: 0,
    })
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

/// The same for what is cut if it does not fit: a fragment takes the way of the largest before it, or it
/// would overtake it.
#[inline(always)]
pub fn datagram_len<P: Packet>(packet: &P, headers: &Headers) -> u32 {
    let (len, largest) = (segment_len(packet, headers), headers.largest_fragment as u32);
    if largest > len { largest } else { len }
}

/// Swaps the two addresses: for an answer.
#[inline(always)]
pub fn swapped(macs: &Macs) -> Macs {
    Macs::new(macs.src(), macs.dst())
}
