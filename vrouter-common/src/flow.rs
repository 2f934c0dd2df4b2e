//! The flow table: one lookup decides an established packet.

use crate::addr::{Be16, Be32, Ip, Macs};

/// Where a packet came in, and its 5-tuple. Address spaces overlap between tenants, so the place is part
/// of the identity.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Interface index ([`FROM_PORT`]) or VNI ([`FROM_TUNNEL`]).
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

/// From a port of this node.
pub const FROM_PORT: u8 = 0;
/// From another node.
pub const FROM_TUNNEL: u8 = 1;

impl FlowKey {
    /// A hash that depends on the 5-tuple alone, the same on every node: FNV-1a over words, and MurmurHash3's
    /// last step, without which the ports, in the upper half of their word, would not reach the low bits.
    #[inline(always)]
    pub fn tuple_hash(&self) -> u32 {
        let mut hash = 0x811c_9dc5_u32;
        let mut i = 0;
        while i < 4 {
            hash = (hash ^ self.src.0[i]).wrapping_mul(0x0100_0193);
            hash = (hash ^ self.dst.0[i]).wrapping_mul(0x0100_0193);
            i += 1;
        }
        let ports = (self.sport.memory() as u32) << 16 | self.dport.memory() as u32;
        hash = (hash ^ ports).wrapping_mul(0x0100_0193);
        hash = (hash ^ self.proto as u32).wrapping_mul(0x0100_0193);
        hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
        hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
        hash ^ hash >> 16
    }
}

/// Everything a packet of the flow needs, in the order it is needed. An entry is valid while `epoch` is
/// not older than the revision of `network`, and only for frames that carry `in_macs` (and, from a tunnel,
/// come from `in_vtep`): what was checked when it was decided stays checked at every hit.
///
/// The translation and state fields are in their places for stateful flows; a stateless entry leaves them
/// zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The commit this was decided under.
    pub epoch: u32,
    /// Number of the network the packet came in on.
    pub network: u32,
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
    /// Interface index ([`EXIT_PORT`]) or node number ([`EXIT_TUNNEL`]).
    pub target: u32,
    /// VNI to send with ([`EXIT_TUNNEL`]).
    pub vni: u32,
    /// Outer UDP source port ([`EXIT_TUNNEL`]): entropy for the underlay's ECMP.
    pub outer_sport: Be16,
    /// The largest L3 packet that may leave.
    pub mtu: u16,
    /// [`crate::tables::Tables::now`] at the last packet, one word, low bits.
    pub seen: u32,
    /// The same at the first packet.
    pub created: u32,

    /// Translated source address.
    pub src: Ip,
    /// Translated destination address.
    pub dst: Ip,
    /// Translated source port.
    pub sport: Be16,
    /// Translated destination port.
    pub dport: Be16,
    /// What the translation adds to the IPv4 header's sum.
    pub l3_delta: u16,
    /// What the translation adds to the transport checksum's sum.
    pub l4_delta: u16,
    /// Connection state.
    pub state: u8,
    /// TCP flags seen.
    pub tcp_flags: u8,
    /// Index into the table of timeouts.
    pub timeout_class: u16,
    /// Zero: room for what stateful flows will name (the rule that allowed it, the connection's other leg).
    pub reserved: [u32; 2],
    /// Packets.
    pub packets: u64,
    /// Bytes of frames as they came in.
    pub bytes: u64,
}
const _: () = assert!(size_of::<Flow>() == 128);

/// To a port of this node.
pub const EXIT_PORT: u8 = 1;
/// To another node.
pub const EXIT_TUNNEL: u8 = 2;

/// The exit takes frames from XDP. Without it XDP leaves the packet to TC, where it keeps its offloads and
/// reaches devices that have no XDP transmit.
pub const FLOW_FRAMES: u16 = 1;
