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
    addr::{Be16, Be32, Ip},
    flow::{Flow, FlowKey},
    reason::{DropReason, Event},
};

/// The version of everything below. Raised with every change of layout or meaning; an agent refuses pins
/// of another version.
pub const SCHEMA: u32 = if cfg!(feature = "next-layout") { 4 } else { 3 };

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
    /// Largest L3 packet the tunnels carry.
    pub overlay_mtu: u32,
    /// Zero.
    pub zero: u32,
    /// This node's interfaces on external networks; unused ones are zero.
    pub externals: [External; EXTERNALS_MAX],
}
const _: () = assert!(size_of::<Commit>() == 40 + EXTERNALS_MAX * 12 + 4 * (EXTERNALS_MAX & 1));

/// External networks a node can have interfaces on.
pub const EXTERNALS_MAX: usize = 8;

/// An interface of this node on an external network.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct External {
    /// Interface index; 0: none.
    pub ifindex: u32,
    /// The network's VNI.
    pub vni: u32,
    /// `EXTERNAL_*`.
    pub flags: u32,
}
const _: () = assert!(size_of::<External>() == 12);

/// The interface takes frames from XDP.
pub const EXTERNAL_FRAMES: u32 = 1;

impl Commit {
    /// The bank packets read.
    #[inline(always)]
    pub const fn bank(&self) -> u32 {
        self.epoch & 1
    }

    /// The external network (its VNI) behind an interface.
    #[inline(always)]
    pub fn external_vni(&self, ifindex: u32) -> Option<u32> {
        let mut i = 0;
        while i < EXTERNALS_MAX {
            if self.externals[i].ifindex == ifindex {
                return Some(self.externals[i].vni);
            }
            i += 1;
        }
        None
    }

    /// The interface on an external network.
    #[inline(always)]
    pub fn external(&self, vni: u32) -> Option<&External> {
        let mut i = 0;
        while i < EXTERNALS_MAX {
            if self.externals[i].vni == vni && self.externals[i].ifindex != 0 {
                return Some(&self.externals[i]);
            }
            i += 1;
        }
        None
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// Policy number: which security groups it is in.
    pub policy: u32,
}
const _: () = assert!(size_of::<Binding>() == 28);

/// Neither anti-spoofing nor policy on this port.
pub const BINDING_NO_SECURITY: u16 = 1;
/// The node answers the port's DHCP over IPv4.
pub const BINDING_DHCP: u16 = 2;
/// The node answers the port's router solicitations and DHCP over IPv6.
pub const BINDING_DHCPV6: u16 = 4;
/// The node answers the port's requests for metadata.
pub const BINDING_METADATA: u16 = 8;
/// The node asks the port for its health, with the address of a router on the port's network.
pub const BINDING_MONITORED: u16 = 16;

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
    /// `NETWORK_*`.
    pub flags: u32,
}
const _: () = assert!(size_of::<Network>() == 12);

/// Reached through the nodes' external interfaces; its VNI is only between nodes.
pub const NETWORK_EXTERNAL: u32 = 1;
/// An external network that is routed: nobody asks there who has an address of a router or a floating IP.
pub const NETWORK_ROUTED: u32 = 2;

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
    /// Interface index ([`PLACE_LOCAL`] and its kinds), node number ([`PLACE_REMOTE`]) or VRID
    /// ([`PLACE_SHARED`]), else 0.
    pub at: u32,
    /// Port or router number.
    pub owner: u32,
}
const _: () = assert!(size_of::<Station>() == 16);

/// The station is a port.
pub const STATION_PORT: u8 = 1;
/// The station is a VIP: the router [`Station::owner`] balances what is sent to it.
pub const STATION_VIP: u8 = 5;
/// On external networks, between nodes: a member of a pool, on this node, of the index [`Station::at`], for which the
/// router [`Station::owner`] translates.
pub const STATION_MEMBER: u8 = 6;
/// The station is a router's interface.
pub const STATION_ROUTER: u8 = 2;
/// A floating IP, on an external network: the station is the router that translates it.
pub const STATION_FLOATING: u8 = 3;
/// The services of whichever node is asked (see [`mod@crate::service`]).
pub const STATION_SERVICE: u8 = 4;
/// On this node: a distributed router's interface; on an external network, an address this node answers for.
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

/// On external networks: a floating IP of a port that is bound nowhere, whose fixed IP is held by whoever
/// claims it by ARP or ND; the node where that is answers for it.
pub const PLACE_LEARNED: u8 = 6;

/// An interface of this node, one end of a veth whose other end is in another network namespace.
pub const PLACE_LOCAL_PEER: u8 = 7;

/// On external networks: an address that this node answers for as long as it is the master of a virtual router
/// (RFC 5798), whose VRID is in [`Station::at`].
pub const PLACE_SHARED: u8 = 8;

impl Station {
    /// Whether it is an interface of this node.
    #[inline(always)]
    pub const fn is_here(&self) -> bool {
        matches!(self.place, PLACE_LOCAL | PLACE_LOCAL_FRAMES | PLACE_LOCAL_PEER)
    }
}

/// Key of [`Learned`]: an address of an allowed address pair, or of a port that is bound nowhere.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LearnedKey {
    /// Network number.
    pub network: u32,
    /// Address; a hardware address as [`Self::mac`].
    pub ip: Ip,
}
const _: () = assert!(size_of::<LearnedKey>() == 20);

impl LearnedKey {
    /// Of a hardware address that is no port's own.
    #[inline(always)]
    pub const fn mac(network: u32, mac: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = mac;
        let high = u32::from_ne_bytes([0xff, 0xff, a, b]);
        // No IPv6 source is multicast.
        Self { network, ip: Ip([u32::MAX, u32::MAX, high, u32::from_ne_bytes([c, d, e, f])]) }
    }
}

/// Who claimed an address last, by ARP or ND (behaviour L4). Not part of a bank.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learned {
    /// Where it is.
    pub station: Station,
    /// What a later version may want to know of it.
    #[cfg(feature = "next-layout")]
    pub later: u64,
}
const _: () = assert!(size_of::<Learned>() == if cfg!(feature = "next-layout") { 24 } else { 16 });

impl Learned {
    /// At a station.
    #[inline(always)]
    pub const fn at(station: Station) -> Self {
        Self {
            station,
            #[cfg(feature = "next-layout")]
            later: 0,
        }
    }
}

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
    /// Number of the network it leads to ([`ROUTE_CONNECTED`], [`ROUTE_VIA`]); of an address outside
    /// ([`ROUTE_SELF`]), the external network's; of several next hops ([`ROUTE_MULTI`]), their group; else 0.
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
/// No route: keeps IPv4 destinations from an IPv6 route to a range around all of them, such as `::/0`.
pub const ROUTE_NONE: u32 = 7;

/// Through one of several next hops: see [`Member`].
pub const ROUTE_MULTI: u32 = 8;

/// Flows of a route with several next hops, or to several gateways, are dealt out to this many slots by their
/// hash; each slot is one next hop's. What comes or goes takes or leaves its share of slots, and no other moves.
pub const SLOTS: u32 = 64;

/// Key of [`Member`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberKey {
    /// Number of the group of next hops.
    pub group: Scoped,
    /// 0 to [`SLOTS`] - 1.
    pub slot: u32,
}
const _: () = assert!(size_of::<MemberKey>() == 8);

/// The next hop that has a slot of a route with several.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Number of the network it is on.
    pub network: u32,
    /// Its address.
    pub nexthop: Ip,
}
const _: () = assert!(size_of::<Member>() == 20);

/// Key of the gateways by which a node reaches an external network on which it has no interface. The value is
/// the number of the node that has the slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayKey {
    /// External network's number.
    pub network: Scoped,
    /// 0 to [`SLOTS`] - 1.
    pub slot: u32,
}
const _: () = assert!(size_of::<GatewayKey>() == 8);

/// Key of [`Master`]. Not part of a bank.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MasterKey {
    /// External network's number.
    pub network: u32,
    /// The virtual router's number there, 1 to 255.
    pub vrid: u8,
    /// 1: IPv6.
    pub v6: u8,
    /// Zero.
    pub zero: u16,
}
const _: () = assert!(size_of::<MasterKey>() == 8);

impl MasterKey {
    /// Of a virtual router of a family.
    #[inline(always)]
    pub const fn new(network: u32, vrid: u8, v6: bool) -> Self {
        Self { network, vrid, v6: v6 as u8, zero: 0 }
    }
}

/// Whether this node is the master of a virtual router. The agent says so, and confirms it again and again. If it
/// is not there to do so, what it said last holds, until another node announces that it is the master.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Master {
    /// Nanoseconds of the monotonic clock. As long as this node answers: until when the agent's word counts whatever
    /// others announce. Else: until when what still comes is carried, since not everybody has heard yet that it is
    /// another now ([`MASTER_LINGER`]).
    pub until: u64,
    /// 1: it is the master.
    pub is_master: u32,
    /// 1: another announced itself after the agent's word had run out.
    pub silenced: u32,
}
const _: () = assert!(size_of::<Master>() == 16);

impl Master {
    /// Whether this node answers for the virtual router's addresses.
    #[inline(always)]
    pub const fn speaks(&self) -> bool {
        self.is_master != 0 && self.silenced == 0
    }

    /// Whether it carries what is sent to the virtual router. Where frames reach every node, as on a hub, one has to.
    #[inline(always)]
    pub const fn carries(&self, now: u64) -> bool {
        self.speaks() || now < self.until
    }

    /// What it is after another announced itself as the master.
    #[inline(always)]
    pub const fn heard(self, now: u64) -> Self {
        if self.speaks() && now > self.until {
            Self { until: now + MASTER_LINGER, silenced: 1, ..self }
        } else {
            self
        }
    }
}

/// How long a former master carries what is still sent to it; nanoseconds.
pub const MASTER_LINGER: u64 = 3_000_000_000;

/// [`Station::owner`] of a hardware address that several routers share.
pub const ROUTER_BY_DESTINATION: u32 = 0;

/// Virtual routers an instance can know.
pub const MASTERS_MAX: u32 = 4096;

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
    /// Hardware address: the same on every node, but on external networks each node's own.
    pub mac: [u8; 6],
    /// `LEG_*`.
    pub flags: u16,
    /// IPv4 address, or [`Ip::UNSPECIFIED`].
    pub v4: Ip,
    /// IPv6 address (global before link-local), or [`Ip::UNSPECIFIED`].
    pub v6: Ip,
    /// Blocks of ports of `v4` this node may use ([`LEG_SNAT`]): slots 0.. of [`SnatBlock`].
    pub snat_blocks: u32,
    /// On external networks: the hardware address of the router between nodes, the same on every one.
    pub tunnel_mac: [u8; 6],
    /// Zero.
    pub zero: u16,
}
const _: () = assert!(size_of::<RouterLeg>() == 60);

impl RouterLeg {
    /// Whether this node may send from the router's own addresses with the leg's hardware address.
    #[inline(always)]
    pub const fn speaks_for_itself(&self) -> bool {
        self.flags & (LEG_OWNED | LEG_SHARED) == LEG_OWNED
    }
}

/// The leg is on an external network: the router's gateway.
pub const LEG_EXTERNAL: u16 = 1;
/// What leaves by it and has no floating IP gets its IPv4 address.
pub const LEG_SNAT: u16 = 2;
/// What outside sends to the router's own addresses arrives at this node.
pub const LEG_OWNED: u16 = 4;
/// Together with [`LEG_OWNED`]: the addresses are a virtual router's, whose hardware address is not this leg's.
/// Nothing may be sent from them with this leg's.
pub const LEG_SHARED: u16 = 8;

/// Key of [`Nat`]: an address of an external network that is translated to an inside one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NatKey {
    /// Number of the external network.
    pub network: Scoped,
    /// The address outside.
    pub ip: Ip,
    /// The port outside (port forwarding), or zero (floating IP).
    pub port: Be16,
    /// IP protocol (port forwarding), or zero.
    pub proto: u8,
    /// Zero.
    pub zero: u8,
}
const _: () = assert!(size_of::<NatKey>() == 24);

/// Where an outside address leads.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nat {
    /// The fixed IP.
    pub inside: Ip,
    /// The router that translates.
    pub router: u32,
    /// Port number of the workload.
    pub port: u32,
    /// The node that hosts the workload and translates for it; 0: this node; or [`NODE_LEARNED`].
    pub node: u32,
    /// Number of the workload's network.
    pub inside_network: u32,
    /// The workload's port (port forwarding), or zero.
    pub inside_port: Be16,
    /// The router's hardware address on that node ([`NODE_LEARNED`]: between nodes).
    pub mac: [u8; 6],
}
const _: () = assert!(size_of::<Nat>() == 40);

/// [`Nat::node`]: the inside is a VIP; the node of the member that a packet goes to.
pub const NODE_BALANCED: u32 = u32::MAX - 1;
/// [`Nat::node`]: the workload's port is bound nowhere; the node where its address is claimed.
pub const NODE_LEARNED: u32 = u32::MAX;

/// Key of [`Listener`]: a protocol and port of a VIP.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerKey {
    /// Number of the VIP's network.
    pub network: Scoped,
    /// The VIP.
    pub ip: Ip,
    /// Port.
    pub port: Be16,
    /// IP protocol: TCP or UDP.
    pub proto: u8,
    /// Zero.
    pub zero: u8,
}
const _: () = assert!(size_of::<ListenerKey>() == 24);

/// Who serves it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// Number of the pool.
    pub pool: u32,
    /// Slots of the pool, a power of two; 0: it has no member.
    pub slots: u32,
    /// `LISTENER_*`.
    pub flags: u32,
    /// Listener number.
    pub number: u32,
    /// Number of the router that balances.
    pub router: u32,
}
const _: () = assert!(size_of::<Listener>() == 20);

/// Refuses everybody: it, or its load balancer, is down by `admin_state_up`.
pub const LISTENER_DOWN: u32 = 1;
/// No member takes new connections.
pub const LISTENER_EMPTY: u32 = 4;
/// All connections of a client's address go to one member.
pub const LISTENER_SOURCE_IP: u32 = 2;

/// Key of [`PoolSlots`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolSlotsKey {
    /// Pool number.
    pub pool: Scoped,
    /// Slot / [`SLOTS_IN_CHUNK`].
    pub chunk: u32,
}
const _: () = assert!(size_of::<PoolSlotsKey>() == 8);

/// Slots in one entry.
pub const SLOTS_IN_CHUNK: u32 = 256;

/// Who has some of a pool's slots. New connections are dealt out to slots by their hash. Each slot has an order of
/// the members of its own, the first that may serve has it, so one that comes or goes takes or leaves its share of
/// slots, and no other moves. The order follows from names and weights alone: it is the same on every node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSlots(pub [Slot; SLOTS_IN_CHUNK as usize]);
const _: () = assert!(size_of::<PoolSlots>() == 1024);

/// A slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index of the member that has it; [`SLOT_NOBODY`]: none takes new connections.
    pub member: u16,
    /// Index of the member that has the slot's earlier connections, if the one that has it does not know them: one that
    /// is leaving, with [`SLOT_LEAVES`], or the next in the slot's order, who had it if the first is new.
    /// [`SLOT_NOBODY`]: there is none.
    pub other: u16,
}
const _: () = assert!(size_of::<Slot>() == 4);

/// [`Slot::other`] takes no new connections any more.
pub const SLOT_LEAVES: u16 = 1 << 15;
/// Nobody.
pub const SLOT_NOBODY: u16 = u16::MAX;

/// Key of [`PoolMember`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolMemberKey {
    /// Pool number.
    pub pool: Scoped,
    /// Its index in the pool.
    pub index: u32,
}
const _: () = assert!(size_of::<PoolMemberKey>() == 8);

/// A member of a pool.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolMember {
    /// Its address.
    pub ip: Ip,
    /// Number of the network it is on.
    pub network: u32,
    /// Its port.
    pub port: Be16,
    /// `MEMBER_*`.
    pub flags: u16,
    /// Member number.
    pub number: u32,
    /// What packets from outside are passed on to it with, between nodes: [`STATION_MEMBER`].
    pub mac: [u8; 6],
    /// Zero.
    pub zero: u16,
}
const _: () = assert!(size_of::<PoolMember>() == 36);

/// Takes new connections.
pub const MEMBER_UP: u16 = 1;
/// Its health monitor says that it does not serve, or nobody speaks for it any more while others serve.
pub const MEMBER_DOWN: u16 = 2;
/// Nobody speaks for it any more: its node is silent. For who reads of it.
pub const MEMBER_LOST: u16 = 4;

/// Key of the index of a pool's members, by where they are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolMemberAt {
    /// Pool number.
    pub pool: Scoped,
    /// The member's address.
    pub ip: Ip,
    /// Its port.
    pub port: Be16,
    /// Zero.
    pub zero: u16,
}
const _: () = assert!(size_of::<PoolMemberAt>() == 24);

impl PoolMemberAt {
    /// By address and port.
    #[inline(always)]
    pub const fn new(bank: u32, pool: u32, ip: Ip, port: Be16) -> Self {
        Self { pool: Scoped::new(bank, pool), ip, port, zero: 0 }
    }

    /// By [`PoolMember::mac`].
    #[inline(always)]
    pub const fn mac(bank: u32, pool: u32, mac: [u8; 6]) -> Self {
        Self::new(bank, pool, LearnedKey::mac(0, mac).ip, Be16::new(0))
    }
}

/// Listeners an instance can know.
pub const LISTENERS_MAX: u32 = 1 << 16;
/// Pools an instance can know: of each router that balances to them, and each family.
pub const POOLS_MAX: u32 = 1 << 14;
/// Slots of a pool. More members, or fewer, do not change it: every slot's order would be another.
pub const POOL_SLOTS_MAX: u32 = 4096;
/// Members of pools an instance can know.
pub const POOL_MEMBERS_MAX: u32 = 1 << 18;

/// Key of [`Floating`]: a fixed IP behind a router.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FloatingKey {
    /// Router number.
    pub router: Scoped,
    /// Fixed IP.
    pub ip: Ip,
}
const _: () = assert!(size_of::<FloatingKey>() == 20);

/// The floating IP of a fixed IP.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floating {
    /// Address outside.
    pub ip: Ip,
}
const _: () = assert!(size_of::<Floating>() == 16);

/// Ports of an address are handed to nodes in blocks of this many.
pub const SNAT_BLOCK: u32 = 1024;

/// Key of [`SnatBlock`]: the slots of a router's gateway that are this node's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnatBlockKey {
    /// Router number.
    pub router: Scoped,
    /// External network's number.
    pub network: u32,
    /// 0 to [`RouterLeg::snat_blocks`] - 1.
    pub slot: u32,
}
const _: () = assert!(size_of::<SnatBlockKey>() == 12);

/// Ports this node may use of a router's external address, host order, inclusive.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnatBlock {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}
const _: () = assert!(size_of::<SnatBlock>() == 4);

/// Key of [`SnatOwner`]: a block of ports that another node has.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnatOwnerKey {
    /// External network's number.
    pub network: Scoped,
    /// The router's external address.
    pub ip: Be32,
    /// Port / [`SNAT_BLOCK`].
    pub block: u32,
}
const _: () = assert!(size_of::<SnatOwnerKey>() == 12);

/// The node that has a block.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatOwner {
    /// Node number.
    pub node: u32,
    /// The router's hardware address on that node.
    pub mac: [u8; 6],
    /// Zero.
    pub zero: u16,
}
const _: () = assert!(size_of::<SnatOwner>() == 12);

/// Key of the class trie: which set of remotes (groups' members, CIDRs) of any rule an address is in. The
/// value is the class number; an address that is in none has class 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassKey {
    /// 32 + the prefix's length (of 128).
    pub prefix_len: u32,
    /// Bank, with identity 0.
    pub bank: Scoped,
    /// Address.
    pub ip: Ip,
}
const _: () = assert!(size_of::<ClassKey>() == 24);

impl ClassKey {
    /// Bits before the address.
    pub const FIXED_BITS: u32 = 32;
}

/// Key of the rules trie. Longest prefix match finds a rule that allows, if there is one: for a class, any
/// protocol (72 bits), a protocol (80), a protocol and a range of ports or ICMP type and code (up to 96).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleKey {
    /// Bits that count of what follows.
    pub prefix_len: u32,
    /// Policy number.
    pub policy: Scoped,
    /// Class of the remote address; 0: rules that allow any remote.
    pub class: u32,
    /// `RULE_*` bits.
    pub direction: u8,
    /// IP protocol.
    pub proto: u8,
    /// Destination port; ICMP: type and code.
    pub port: Be16,
}
const _: () = assert!(size_of::<RuleKey>() == 16);

impl RuleKey {
    /// Bits of a rule for any protocol.
    pub const ANY_BITS: u32 = 72;
    /// Bits of a rule for a whole protocol.
    pub const PROTO_BITS: u32 = 80;
    /// All bits.
    pub const ALL_BITS: u32 = 96;
}

/// [`RuleKey::direction`]: to the port (else: from it).
pub const RULE_INGRESS: u8 = 1;
/// [`RuleKey::direction`]: IPv6 (else: IPv4).
pub const RULE_V6: u8 = 2;

/// A rule that allows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Rule number, for its name.
    pub rule: u32,
    /// `RULE_STATEFUL`.
    pub flags: u32,
}
const _: () = assert!(size_of::<Rule>() == 8);

/// Replies are allowed, too.
pub const RULE_STATEFUL: u32 = 1;

/// Key of the index of next hops on external networks.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HopKey {
    /// External network's number.
    pub network: u32,
    /// Address.
    pub ip: Ip,
}
const _: () = assert!(size_of::<HopKey>() == 20);

/// A next hop on an external network, by its index. The data path makes and resolves them, the agent keeps
/// them fresh and gives up on them. Not part of a bank.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// `HOP_*`. Written last when an address was learned.
    pub flags: u32,
    /// Interface it is reached by.
    pub ifindex: u32,
    /// External network's number.
    pub network: u32,
    /// Its hardware address, valid with [`HOP_RESOLVED`].
    pub mac: [u8; 6],
    /// Zero.
    pub zero: u16,
    /// Its address.
    pub ip: Ip,
    /// Router that asked first: whose address requests come from.
    pub router: u32,
    /// [`Tables::now`] at the last request.
    pub asked: u32,
    /// [`Tables::now`] when it last spoke.
    pub confirmed: u32,
    /// Zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<Hop>() == 52);

/// Next hops an instance can know.
pub const HOPS_MAX: u32 = 8192;
/// Ticks between two requests for one next hop. The kernel's ticks are 1 to 10 ms: 0.25 to 2.5 seconds.
pub const ASK_TICKS: u32 = 250;
/// Its hardware address is known.
pub const HOP_RESOLVED: u32 = 1;
/// It did not answer; whoever sends to it is told.
pub const HOP_FAILED: u32 = 2;
/// The slot is in use.
pub const HOP_USED: u32 = 4;

/// Key of [`Fragment`]: one datagram that comes in pieces.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// As in [`FlowKey`].
    pub zone: u32,
    /// Identification, as it lies in the packet; IPv4's 16 bits in the low half.
    pub id: u32,
    /// IP protocol.
    pub proto: u8,
    /// As in [`FlowKey`].
    pub from: u8,
    /// Zero.
    pub zero: u16,
}
const _: () = assert!(size_of::<FragmentKey>() == 44);

/// What its first fragment said.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// Bytes of the datagram so far: where the next fragment may begin.
    pub end: u16,
    /// Bytes of the largest IP packet so far.
    pub largest: u16,
}
const _: () = assert!(size_of::<Fragment>() == 8);

/// What the data path hands to the agent, at the front of a ring buffer record; the packet follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upcall {
    /// `UPCALL_*`.
    pub kind: u32,
    /// Index of the next hop.
    pub hop: u32,
    /// Bytes of the packet, as it came in.
    pub len: u32,
    /// Interface it came in by.
    pub ifindex: u32,
    /// Offset of the (inner) frame.
    pub at: u32,
    /// Zero.
    pub zero: u32,
    /// What was decided.
    pub flow: Flow,
    /// What to answer if the next hop stays silent.
    pub answer: crate::plan::Answer,
}

const _: () = assert!(size_of::<Upcall>() == 200);

/// What stands at the front of a record about a packet for a service of the node; the packet follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCall {
    /// Interface it came in by: a port's.
    pub ifindex: u32,
    /// Bytes of the packet.
    pub len: u32,
}
const _: () = assert!(size_of::<ServiceCall>() == 8);

/// A packet that waits for a next hop.
pub const UPCALL_WAIT: u32 = 1;
/// A next hop answered.
pub const UPCALL_RESOLVED: u32 = 2;
/// An address was claimed by somebody else than before; `hop` is the network.
pub const UPCALL_MOVED: u32 = 4;
/// A packet to be cut into fragments and sent.
pub const UPCALL_FRAGMENT: u32 = 3;
/// Bytes of a packet that an upcall carries at the most.
pub const UPCALL_FRAME_MAX: usize = 2048;
/// Buckets of the histogram of ports tried: 1, 2, 3-4, 5-8, ... 65-128, and none free.
pub const NAT_TRIES_BUCKETS: u32 = 9;

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
/// Policy numbers: sets of security groups.
pub const NAME_POLICY: u32 = 5;
/// Class numbers: sets of remotes.
pub const NAME_CLASS: u32 = 6;
/// Rule numbers.
pub const NAME_RULE: u32 = 7;
/// Numbers of groups of next hops.
pub const NAME_GROUP: u32 = 8;
/// Listener numbers, below [`LISTENERS_MAX`].
pub const NAME_LISTENER: u32 = 9;
/// Pool numbers: of the members of one family.
pub const NAME_POOL: u32 = 10;
/// Pool members' numbers, below [`POOL_MEMBERS_MAX`].
pub const NAME_MEMBER: u32 = 11;
/// Two legs of a connection that user space found idle; they are removed only if still as they were.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expire {
    /// One leg's key.
    pub key: FlowKey,
    /// The other's; meaningful with `legs` = 2.
    pub peer: FlowKey,
    /// [`Flow::seen`] when it was found.
    pub seen: u32,
    /// The same of the other leg.
    pub peer_seen: u32,
    /// 1 or 2; 0: nothing to do. Written back: 0 if they were removed, 3 if not.
    pub legs: u32,
    /// 0: [`FlowTable::Flows`], 1: [`FlowTable::Transient`].
    pub table: u32,
}
const _: () = assert!(size_of::<Expire>() == 104);
/// Connections one run of `vr_expire` takes: so few that no packet waits for long.
pub const EXPIRE_MAX: u32 = 16;

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

/// Who has an address on a network: by the topology, or, where that leaves it open, who claimed it last.
#[inline(always)]
pub fn who_has<T: Tables>(tables: &T, bank: u32, network: u32, ip: Ip) -> Option<&Station> {
    let fixed = tables.address(&AddressKey::new(bank, network, ip));
    match fixed {
        Some(station) if station.place != PLACE_UNBOUND => fixed,
        _ => match tables.learned(&LearnedKey { network, ip }) {
            Some(learned) => Some(&learned.station),
            None => fixed,
        },
    }
}

/// A table of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowTable {
    /// Connections that were answered. Never evicted.
    Flows,
    /// Unanswered ones and remembered stateless decisions. The least recently used give way.
    Transient,
}

/// How to store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Whatever is there.
    Any,
    /// Only if nothing is there.
    New,
}

/// Why an entry was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// There is one.
    Exists,
    /// The table is full (or, for an instant, busy).
    Full,
}

/// The compiled topology and the flow table, as the decision sees them. The kernel reads its maps, user
/// space its in-memory tables.
pub trait Tables {
    /// The state in force. Read once per packet.
    fn commit(&self) -> Option<&Commit>;
    /// The epoch of the last apply that touched what `network` can reach.
    fn revision(&self, network: u32) -> u32;

    /// The entry of a key in the table of answered flows.
    fn flow(&self, key: &FlowKey) -> Option<&Flow>;
    /// The entry of a key in the table of what may be forgotten at any moment.
    fn transient(&self, key: &FlowKey) -> Option<&Flow>;
    /// Stores a flow entry.
    fn store(&self, table: FlowTable, key: &FlowKey, flow: &Flow, how: Store) -> Result<(), StoreError>;
    /// Removes a flow entry.
    fn remove(&self, table: FlowTable, key: &FlowKey);
    /// Notes TCP flags seen on a flow.
    fn note_tcp(&self, flow: &Flow, flags: u8);
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
    /// Where an outside address leads.
    fn nat(&self, key: &NatKey) -> Option<&Nat>;
    /// The floating IP of a fixed IP.
    fn floating(&self, key: &FloatingKey) -> Option<&Floating>;
    /// A block of ports of this node.
    fn snat_block(&self, key: &SnatBlockKey) -> Option<&SnatBlock>;
    /// Who has a block of ports.
    fn snat_owner(&self, key: &SnatOwnerKey) -> Option<&SnatOwner>;
    /// The gateway that has a slot; its node's number.
    fn gateway(&self, key: &GatewayKey) -> Option<u32>;
    /// The next hop that has a slot.
    fn member(&self, key: &MemberKey) -> Option<&Member>;
    /// Who serves a port of a VIP.
    fn listener(&self, key: &ListenerKey) -> Option<&Listener>;
    /// Who has some slots of a pool.
    fn pool_slots(&self, key: &PoolSlotsKey) -> Option<&PoolSlots>;
    /// A member of a pool.
    fn pool_member(&self, key: &PoolMemberKey) -> Option<&PoolMember>;
    /// The index of a member.
    fn pool_member_at(&self, key: &PoolMemberAt) -> Option<u32>;
    /// Who receives a network's broadcasts.
    fn flood(&self, key: &FloodKey) -> Option<&Flood>;
    /// Whether this node answers for a virtual router.
    fn is_master(&self, key: &MasterKey) -> bool;
    /// Whether this node carries what is sent to a virtual router.
    fn carries(&self, key: &MasterKey) -> bool;
    /// Notes that another node announced itself as a virtual router's master.
    fn heard_master(&self, key: &MasterKey);
    /// The class of a remote address; 0: none.
    fn class(&self, key: &ClassKey) -> u32;
    /// The rule that allows.
    fn rule(&self, key: &RuleKey) -> Option<&Rule>;

    /// Who claimed an address last.
    fn learned(&self, key: &LearnedKey) -> Option<&Learned>;
    /// Notes who claims an address.
    fn store_learned(&self, key: &LearnedKey, learned: &Learned);
    /// Puts every flow of a network out of date, until the next commit.
    fn expire_network(&self, network: u32);

    /// The index of a next hop.
    fn hop_index(&self, key: &HopKey) -> Option<u32>;
    /// Makes a next hop that is not resolved yet; an index, or nothing if there is no room.
    fn new_hop(&self, key: &HopKey, hop: &Hop) -> Option<u32>;
    /// A next hop.
    fn hop(&self, index: u32) -> Option<&Hop>;
    /// Whether this caller, and no other within a second, is the one to send a request.
    fn may_ask(&self, index: u32) -> bool;
    /// Notes a next hop's hardware address; true if it was not known.
    fn learn(&self, index: u32, mac: [u8; 6]) -> bool;
    /// Pieces of a datagram.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    /// Notes a piece.
    fn store_fragment(&self, key: &FragmentKey, fragment: &Fragment);
    /// Takes one of the answers this CPU may send at the moment (RFC 1812 4.3.2.8, RFC 4443 2.4 f).
    fn may_answer(&self) -> bool;
    /// Counts how many ports were tried for a translation, in [`NAT_TRIES_BUCKETS`].
    fn count_tries(&self, bucket: u32);

    /// Counts a new connection of a listener and a member, by their numbers.
    fn count_balanced(&self, listener: u32, member: u32);

    /// Counts a dropped packet.
    fn count_drop(&self, reason: DropReason, bytes: u64);
    /// Counts an event.
    fn count(&self, event: Event);
}
