//! The flow table: one lookup decides an established packet.

use crate::{
    addr::{Be16, Be32, Ip, Macs},
    wire::*,
};

/// Where a packet came in, and its 5-tuple. Address spaces overlap between tenants, so the place is part
/// of the identity.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Interface index ([`FROM_PORT`]) or VNI.
    pub zone: u32,
    /// Source port; ICMP echo: the identifier.
    pub sport: Be16,
    /// Destination port; ICMP: type and code.
    pub dport: Be16,
    /// IP protocol.
    pub proto: u8,
    /// `FROM_*`: what `zone` is.
    pub from: u8,
    /// Zero.
    pub zero: u16,
}
const _: () = assert!(size_of::<FlowKey>() == 44);

/// A packet's addresses, protocol and ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Source port; ICMP echo: the identifier.
    pub sport: Be16,
    /// Destination port; ICMP: type and code.
    pub dport: Be16,
    /// IP protocol.
    pub proto: u8,
    /// IPv6.
    pub v6: bool,
    /// Zero.
    pub zero: u16,
}

impl Tuple {
    /// The tuple of replies.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        let mut reply = Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, ..*self };
        if matches!(self.proto, PROTO_ICMP | PROTO_ICMPV6) {
            reply.sport = self.sport;
            reply.dport = echo_reversed(self.dport);
        }
        reply
    }

    /// Whether this is an ICMP echo request or reply.
    #[inline(always)]
    pub const fn is_echo(&self) -> bool {
        let kind = (self.dport.get() >> 8) as u8;
        match self.proto {
            PROTO_ICMP => matches!(kind, ICMP_ECHO | ICMP_ECHO_REPLY),
            PROTO_ICMPV6 => matches!(kind, ICMPV6_ECHO | ICMPV6_ECHO_REPLY),
            _ => false,
        }
    }

    /// The key of a flow that came in at a place.
    #[inline(always)]
    pub const fn key(&self, from: u8, zone: u32) -> FlowKey {
        FlowKey {
            src: self.src,
            dst: self.dst,
            zone,
            sport: self.sport,
            dport: self.dport,
            proto: self.proto,
            from,
            zero: 0,
        }
    }
}

/// Type and code of the other half of an echo; anything else as it is.
#[inline(always)]
const fn echo_reversed(type_code: Be16) -> Be16 {
    match type_code.get() {
        0x0800 => Be16::new(0),
        0 => Be16::new(0x0800),
        0x8000 => Be16::new(0x8100),
        0x8100 => Be16::new(0x8000),
        _ => type_code,
    }
}

/// From a port of this node.
pub const FROM_PORT: u8 = 0;
/// From a network: another node's tunnel, or an external interface.
pub const FROM_NETWORK: u8 = 1;
/// From an external interface, to a block of a router's ports that another node has: see [`FLOW_BLOCK`].
pub const FROM_BLOCK: u8 = 2;

impl FlowKey {
    /// Addresses, protocol and ports.
    #[inline(always)]
    pub const fn tuple(&self) -> Tuple {
        Tuple {
            src: self.src,
            dst: self.dst,
            sport: self.sport,
            dport: self.dport,
            proto: self.proto,
            v6: !self.src.is_v4(),
            zero: 0,
        }
    }

    /// A short digest of the whole key: see [`Flow::tag`]. Never 0.
    #[inline(always)]
    pub const fn tag(&self) -> u32 {
        let src = self.src.0[0] ^ self.src.0[1] ^ self.src.0[2] ^ self.src.0[3];
        let dst = self.dst.0[0] ^ self.dst.0[1] ^ self.dst.0[2] ^ self.dst.0[3];
        let ports = (self.sport.memory() as u32) << 16 | self.dport.memory() as u32;
        let rest = self.zone ^ (self.proto as u32) << 24 ^ (self.from as u32) << 23;
        let tag = src
            .wrapping_mul(0x9e37_79b1)
            .wrapping_add(dst)
            .wrapping_mul(0x85eb_ca77)
            .wrapping_add(ports)
            .wrapping_mul(0xc2b2_ae3d)
            .wrapping_add(rest);
        tag | 1
    }

    /// A hash that depends on the 5-tuple alone, the same on every node.
    #[inline(always)]
    pub fn tuple_hash(&self) -> u32 {
        tuple_hash(&self.src, &self.dst, self.sport, self.dport, self.proto)
    }
}

/// FNV-1a over words, and MurmurHash3's last step, without which the ports, in the upper half of their word,
/// would not reach the low bits.
#[inline(always)]
pub fn tuple_hash(src: &Ip, dst: &Ip, sport: Be16, dport: Be16, proto: u8) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    let mut i = 0;
    while i < 4 {
        hash = (hash ^ src.0[i]).wrapping_mul(0x0100_0193);
        hash = (hash ^ dst.0[i]).wrapping_mul(0x0100_0193);
        i += 1;
    }
    let ports = (sport.memory() as u32) << 16 | dport.memory() as u32;
    hash = (hash ^ ports).wrapping_mul(0x0100_0193);
    hash = (hash ^ proto as u32).wrapping_mul(0x0100_0193);
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// Everything a packet of the flow needs, in the order it is needed. An entry is valid while `epoch` is
/// not older than the revisions of `network` and `network_out`, and only for frames that carry `in_macs`
/// (and, from a tunnel, come from `in_vtep`): what was checked when it was decided stays checked at every
/// hit.
///
/// A tracked connection has two entries, its legs: the original direction's and the reply's. Each leg's
/// key is the other's translated tuple, reversed, in the zone `peer_from`, `peer_zone`. A reply leg that no
/// packet used yet has epoch 0: it says that the reply is expected, and how it is translated.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// [`FlowKey::tag`] of the entry's key. With `tag_end` it tells a reader that the entry was not given to
    /// another flow while it was read: the kernel reuses deleted entries at once.
    pub tag: u32,
    /// The commit this was decided under; 0: not decided.
    pub epoch: u32,
    /// Number of the network the packet came in on.
    pub network: u32,
    /// Number of the network it leaves on.
    pub network_out: u32,
    /// Ethernet addresses a frame must have.
    pub in_macs: Macs,
    /// The node a frame must come from, else 0.
    pub in_vtep: Be32,
    /// Ethernet addresses to write.
    pub out_macs: Macs,
    /// `EXIT_*`: where it leaves.
    pub exit: u8,
    /// Routers passed: what TTL or hop limit loses.
    pub hops: u8,
    /// `FLOW_*`.
    pub flags: u16,
    /// Interface index ([`EXIT_PORT`]), node number ([`EXIT_TUNNEL`]) or next hop ([`EXIT_EXTERNAL`]).
    pub target: u32,
    /// VNI to send with ([`EXIT_TUNNEL`]).
    pub vni: u32,
    /// Outer UDP source port ([`EXIT_TUNNEL`]): entropy for the underlay's ECMP.
    pub outer_sport: Be16,
    /// The largest L3 packet that may leave.
    pub mtu: u16,
    /// [`crate::tables::Tables::now`] at the last packet, one word, low bits.
    pub seen: u32,

    /// Translated source address; without [`FLOW_NAT`] the same as before.
    pub src: Ip,
    /// Translated destination address.
    pub dst: Ip,
    /// Translated source port (echo: identifier).
    pub sport: Be16,
    /// Translated destination port (ICMP: type and code).
    pub dport: Be16,
    /// What the translation of addresses adds to a sum over them.
    pub l3_delta: u16,
    /// What the translation of ports adds to a sum over them.
    pub l4_delta: u16,
    /// Zone of the other leg's key.
    pub peer_zone: u32,
    /// `FROM_*` of the other leg's key.
    pub peer_from: u8,
    /// `ROLE_*`.
    pub role: u8,
    /// TCP flags seen in this direction.
    pub tcp_flags: u8,
    /// Zero.
    pub zero: u8,
    /// Number of the rule that allowed it.
    pub rule: u32,
    /// [`crate::tables::Tables::now`] at the first packet.
    pub created: u32,
    /// Packets.
    pub packets: u64,
    /// Bytes of frames as they came in.
    pub bytes: u64,
    /// Number of the router that translates.
    pub router: u32,
    /// As `tag`.
    pub tag_end: u32,
}
const _: () = assert!(size_of::<Flow>() == 144);

/// To a port of this node.
pub const EXIT_PORT: u8 = 1;
/// To another node.
pub const EXIT_TUNNEL: u8 = 2;
/// To a next hop on an external network.
pub const EXIT_EXTERNAL: u8 = 3;

/// The exit takes frames from XDP. Without it XDP leaves the packet to TC, where it keeps its offloads and
/// reaches devices that have no XDP transmit.
pub const FLOW_FRAMES: u16 = 1;
/// Addresses or ports are translated.
pub const FLOW_NAT: u16 = 2;
/// The sender of the original direction, on this node, was allowed with its replies.
pub const FLOW_STATEFUL_OUT: u16 = 4;
/// The receiver of the original direction, on this node, was allowed with its replies.
pub const FLOW_STATEFUL_IN: u16 = 8;
/// The source got a port of a router's external address.
pub const FLOW_SNAT: u16 = 16;

/// The way to the node that has a block of a router's ports, with one entry for all that goes there: a gateway
/// keeps no connections. The outer source port is each packet's own.
pub const FLOW_BLOCK: u16 = 32;

/// The port is one end of a veth, and the packet goes on as received by the other ([`crate::apply::Exit::Peer`]).
pub const FLOW_PEER: u16 = 64;

/// A remembered decision: nothing is known of a connection.
pub const ROLE_NONE: u8 = 0;
/// The direction of a connection's first packet.
pub const ROLE_ORIGINAL: u8 = 1;
/// The other direction.
pub const ROLE_REPLY: u8 = 2;

impl Flow {
    /// The translated tuple of the leg with this key.
    #[inline(always)]
    pub const fn translated(&self, key: &FlowKey) -> Tuple {
        Tuple { src: self.src, dst: self.dst, sport: self.sport, dport: self.dport, ..key.tuple() }
    }

    /// The key of the other leg of the connection.
    #[inline(always)]
    pub const fn peer_key(&self, key: &FlowKey) -> FlowKey {
        self.translated(key).reversed().key(self.peer_from, self.peer_zone)
    }
}
