//! What the decision looks up: the compiled topology, one node's full copy of every network.
//!
//! **Banks.** Every key of the compiled topology carries a bank bit ([`Scoped`]). Both banks hold a whole
//! topology; an apply writes its differences into the bank no packet reads, then publishes a new
//! [`Commit`] whose parity names the bank. A packet reads the commit once, so it sees one topology.
//!
//! **Identities** (networks, routers, ports, nodes) are numbers local to the instance, assigned once per
//! name and kept in the pinned names map, so that adding an object never renumbers another.
//!
//! All structs are `repr(C)` without padding: they are keys and values of kernel maps.

use crate::{
    addr::{Be32, Ip},
    flow::{Flow, FlowKey},
    reason::{DropReason, Event},
};

/// The version of everything below. Raised with every change of layout or meaning; an agent refuses pins
/// of another version.
pub const SCHEMA: u32 = 1;

/// An identity within a bank: `bank << 31 | id`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scoped(pub u32);

impl Scoped {
    /// Identities are below this.
    pub const ID_LIMIT: u32 = 1 << 31;

    /// `id` in `bank` (0 or 1).
    #[inline(always)]
    pub const fn new(bank: u32, id: u32) -> Self {
        Self(bank << 31 | id & (Self::ID_LIMIT - 1))
    }

    /// Without the bank.
    #[inline(always)]
    pub const fn id(self) -> u32 {
        self.0 & (Self::ID_LIMIT - 1)
    }

    /// 0 or 1.
    #[inline(always)]
    pub const fn bank(self) -> u32 {
        self.0 >> 31
    }
}

/// The published state: the only entry of its array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// Counts applies; its parity is the bank in force. 0: nothing was ever applied.
    pub epoch: u32,
    /// This node's VTEP address.
    pub vtep: Be32,
    /// [`SCHEMA`].
    pub schema: u32,
    /// This node's number.
    pub node: u32,
    /// Digest of the document in force.
    pub digest: u64,
    /// When it was published, in seconds since 1970.
    pub applied_at_seconds: u64,
}
const _: () = assert!(size_of::<Commit>() == 32);

impl Commit {
    /// The bank packets read.
    #[inline(always)]
    pub const fn bank(&self) -> u32 {
        self.epoch & 1
    }
}

/// Key of [`Binding`]: an interface of this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BindingKey {
    /// Interface index.
    pub ifindex: Scoped,
}

/// Which port an interface is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Port number.
    pub port: u32,
    /// Network number.
    pub network: u32,
    /// The network's VNI.
    pub vni: u32,
    /// The network's MTU.
    pub mtu: u32,
    /// The port's own hardware address.
    pub mac: [u8; 6],
    /// `BINDING_*`.
    pub flags: u16,
}
const _: () = assert!(size_of::<Binding>() == 24);

/// Neither anti-spoofing nor policy on this port.
pub const BINDING_NO_SECURITY: u16 = 1;

/// Key of [`Network`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkKey {
    /// Network number.
    pub network: Scoped,
}

/// A network.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// VXLAN network identifier.
    pub vni: u32,
    /// Largest L3 packet.
    pub mtu: u32,
}
const _: () = assert!(size_of::<Network>() == 8);

/// Key of the VNI table, whose value is a network number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VniKey {
    /// VXLAN network identifier.
    pub vni: Scoped,
}

/// Key of the VTEP table, whose value is a node number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VtepKey {
    /// Bank, with identity 0.
    pub bank: Scoped,
    /// The other node's tunnel address.
    pub addr: Be32,
}
const _: () = assert!(size_of::<VtepKey>() == 8);

/// Key of the forwarding table: which [`Station`] has a hardware address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbKey {
    /// Network number.
    pub network: Scoped,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Zero.
    pub zero: u16,
}
const _: () = assert!(size_of::<FdbKey>() == 12);

impl FdbKey {
    /// A key.
    #[inline(always)]
    pub const fn new(bank: u32, network: u32, mac: [u8; 6]) -> Self {
        Self { network: Scoped::new(bank, network), mac, zero: 0 }
    }
}

/// Key of the address table: which [`Station`] has an address (what ARP and ND would find).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressKey {
    /// Network number.
    pub network: Scoped,
    /// Address.
    pub ip: Ip,
}
const _: () = assert!(size_of::<AddressKey>() == 20);

impl AddressKey {
    /// A key.
    #[inline(always)]
    pub const fn new(bank: u32, network: u32, ip: Ip) -> Self {
        Self { network: Scoped::new(bank, network), ip }
    }
}

/// Somebody on a network, and where.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// `STATION_*`: what it is.
    pub kind: u8,
    /// `PLACE_*`: where it is.
    pub place: u8,
    /// Interface index ([`PLACE_LOCAL`]) or node number ([`PLACE_REMOTE`]), else 0.
    pub at: u32,
    /// Port or router number.
    pub owner: u32,
}
const _: () = assert!(size_of::<Station>() == 16);

/// The station is a port.
pub const STATION_PORT: u8 = 1;
/// The station is a router's interface.
pub const STATION_ROUTER: u8 = 2;
/// Everywhere: a distributed router.
pub const PLACE_EVERYWHERE: u8 = 0;
/// An interface of this node.
pub const PLACE_LOCAL: u8 = 1;
/// Another node.
pub const PLACE_REMOTE: u8 = 2;
/// Bound to this node, but its interface is missing.
pub const PLACE_UNPLUGGED: u8 = 3;
/// Bound to no node.
pub const PLACE_UNBOUND: u8 = 4;
/// An interface of this node that takes frames from XDP.
pub const PLACE_LOCAL_FRAMES: u8 = 5;

/// Key of the anti-spoofing trie: may `port` send from `mac` and `ip`? Prefix length counts the bits of
/// everything after `prefix_len`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllowedKey {
    /// 96 + the address prefix's length (of 128).
    pub prefix_len: u32,
    /// Port number.
    pub port: Scoped,
    /// Source hardware address.
    pub mac: [u8; 6],
    /// Zero.
    pub zero: u16,
    /// Source address.
    pub ip: Ip,
}
const _: () = assert!(size_of::<AllowedKey>() == 32);

impl AllowedKey {
    /// Bits before the address.
    pub const FIXED_BITS: u32 = 96;

    /// A key for looking up one address.
    #[inline(always)]
    pub const fn lookup(bank: u32, port: u32, mac: [u8; 6], ip: Ip) -> Self {
        Self { prefix_len: Self::FIXED_BITS + 128, port: Scoped::new(bank, port), mac, zero: 0, ip }
    }
}

/// Key of the routing trie of every router.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// 32 + the destination prefix's length (of 128).
    pub prefix_len: u32,
    /// Router number.
    pub router: Scoped,
    /// Destination.
    pub dst: Ip,
}
const _: () = assert!(size_of::<RouteKey>() == 24);

impl RouteKey {
    /// Bits before the address.
    pub const FIXED_BITS: u32 = 32;

    /// A key for looking up one destination.
    #[inline(always)]
    pub const fn lookup(bank: u32, router: u32, dst: Ip) -> Self {
        Self { prefix_len: Self::FIXED_BITS + 128, router: Scoped::new(bank, router), dst }
    }
}

/// A route.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// `ROUTE_*`.
    pub kind: u32,
    /// Number of the network it leads to ([`ROUTE_CONNECTED`], [`ROUTE_VIA`]), else 0.
    pub network: u32,
    /// The next hop ([`ROUTE_VIA`]), else zero.
    pub nexthop: Ip,
}
const _: () = assert!(size_of::<Route>() == 24);

/// The destination is on the network itself.
pub const ROUTE_CONNECTED: u32 = 1;
/// Through a next hop.
pub const ROUTE_VIA: u32 = 2;
/// An address of the router.
pub const ROUTE_SELF: u32 = 3;
/// Dropped silently.
pub const ROUTE_BLACKHOLE: u32 = 4;
/// Refused visibly.
pub const ROUTE_UNREACHABLE: u32 = 5;
/// A subnet's IPv4 broadcast or network address.
pub const ROUTE_BROADCAST: u32 = 6;

/// Key of [`RouterLeg`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterLegKey {
    /// Router number.
    pub router: Scoped,
    /// Network number.
    pub network: u32,
}
const _: () = assert!(size_of::<RouterLegKey>() == 8);

/// A router on a network: one hardware address, and one address per family to speak from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterLeg {
    /// The network's VNI.
    pub vni: u32,
    /// The network's MTU.
    pub mtu: u32,
    /// Hardware address, the same on every node.
    pub mac: [u8; 6],
    /// Zero.
    pub zero: u16,
    /// IPv4 address, or [`Ip::UNSPECIFIED`].
    pub v4: Ip,
    /// IPv6 address (global before link-local), or [`Ip::UNSPECIFIED`].
    pub v6: Ip,
}
const _: () = assert!(size_of::<RouterLeg>() == 48);

/// Key of the flooding list of a network: a linked list, so that a station that comes or goes changes two
/// entries, not all.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FloodKey {
    /// Network number.
    pub network: Scoped,
    /// The entry before's `next`; [`FLOOD_LOCAL`] or [`FLOOD_REMOTE`] for the first of a list.
    pub cursor: u32,
}
const _: () = assert!(size_of::<FloodKey>() == 8);

/// First cursor of the ports on this node.
pub const FLOOD_LOCAL: u32 = 0;
/// First cursor of the other nodes.
pub const FLOOD_REMOTE: u32 = 1 << 31;
/// The end of a list.
pub const FLOOD_END: u32 = u32::MAX;

/// One receiver of a network's broadcasts.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    /// Cursor of the entry after this, or [`FLOOD_END`].
    pub next: u32,
    /// Interface index, or node number in the list of nodes.
    pub at: u32,
}
const _: () = assert!(size_of::<Flood>() == 8);

/// How another node is reached over the underlay: what the kernel's own routes and neighbours say. An
/// array by node number, not part of a bank: it follows the kernel, not the topology.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Underlay {
    /// `UNDERLAY_*`.
    pub flags: u32,
    /// Interface the route leaves by.
    pub ifindex: u32,
    /// Outer source: this node's VTEP.
    pub src: Be32,
    /// Outer destination: the other node's VTEP.
    pub dst: Be32,
    /// The neighbour packets go to: `dst`, or a gateway towards it.
    pub nexthop: Be32,
    /// MTU of the route.
    pub mtu: u32,
    /// Outer Ethernet addresses, valid with [`UNDERLAY_RESOLVED`].
    pub macs: crate::addr::Macs,
}
const _: () = assert!(size_of::<Underlay>() == 36);

/// The kernel has a route.
pub const UNDERLAY_ROUTED: u32 = 1;
/// The kernel knows the neighbour's hardware address.
pub const UNDERLAY_RESOLVED: u32 = 2;
/// The uplink takes frames from XDP.
pub const UNDERLAY_FRAMES: u32 = 4;

/// Key of the names: what makes pins readable without an agent, and keeps identities over restarts. No
/// packet reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameKey {
    /// `NAME_*`.
    pub kind: u32,
    /// The identity.
    pub id: u32,
}
const _: () = assert!(size_of::<NameKey>() == 8);

/// Network numbers, below [`NETWORKS_MAX`].
pub const NAME_NETWORK: u32 = 1;
/// Router numbers.
pub const NAME_ROUTER: u32 = 2;
/// Port numbers.
pub const NAME_PORT: u32 = 3;
/// Node numbers, below [`NODES_MAX`].
pub const NAME_NODE: u32 = 4;
/// Networks an instance can know.
pub const NETWORKS_MAX: u32 = 1 << 16;
/// Nodes an instance can know.
pub const NODES_MAX: u32 = 4096;

/// A name, zero-filled.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// At most 255 bytes of UTF-8.
    pub bytes: [u8; 256],
}

/// The compiled topology and the flow table, as the decision sees them. The kernel reads its maps, user
/// space its in-memory tables.
pub trait Tables {
    /// The state in force. Read once per packet.
    fn commit(&self) -> Option<Commit>;
    /// The epoch of the last apply that touched what `network` can reach.
    fn revision(&self, network: u32) -> u32;

    /// The flow entry of a key.
    fn flow(&self, key: &FlowKey) -> Option<&Flow>;
    /// Stores a flow entry, replacing one with this key; false if the table would not take it.
    fn store_flow(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Notes that a packet of `bytes` passed by an entry.
    fn touch(&self, flow: &Flow, bytes: u64);
    /// The clock of [`Flow::seen`].
    fn now(&self) -> u32;

    /// The port an interface is.
    fn binding(&self, key: &BindingKey) -> Option<&Binding>;
    /// A network.
    fn network(&self, key: &NetworkKey) -> Option<&Network>;
    /// The network of a VNI.
    fn vni(&self, key: &VniKey) -> Option<u32>;
    /// The node of a VTEP.
    fn vtep(&self, key: &VtepKey) -> Option<u32>;
    /// Who has a hardware address.
    fn fdb(&self, key: &FdbKey) -> Option<&Station>;
    /// Who has an address.
    fn address(&self, key: &AddressKey) -> Option<&Station>;
    /// Whether a source is allowed.
    fn allowed(&self, key: &AllowedKey) -> bool;
    /// The best route.
    fn route(&self, key: &RouteKey) -> Option<&Route>;
    /// A router's leg on a network.
    fn router_leg(&self, key: &RouterLegKey) -> Option<&RouterLeg>;
    /// The way to a node.
    fn underlay(&self, node: u32) -> Option<&Underlay>;

    /// Counts a dropped packet.
    fn count_drop(&self, reason: DropReason, bytes: u64);
    /// Counts an event.
    fn count(&self, event: Event);
}
