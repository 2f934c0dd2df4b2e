//! Two nodes, two routers with gateways on an external network, and a host beyond it.
//!
//! ```text
//! a(1020) --ra--+               +-- node 1: router ra's address
//! c(1022) --ra--+-- public(1030)|                              -- gw -- the remote host
//! b(1021) --rb--+               +-- node 2: router rb's address
//! ```

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::fixture::*;
use crate::{
    addr::{Be16, Be32, Ip, Macs},
    flow::{Flow, FlowKey, ROLE_NONE, ROLE_ORIGINAL, ROLE_REPLY},
    memory::{Entry, MemoryPacket, MemoryTables, Verdict},
    tables::*,
    wire::*,
};

pub const A: u32 = 20;
pub const B: u32 = 21;
pub const C: u32 = 22;
pub const PUBLIC: u32 = 30;
pub const PUBLIC_VNI: u32 = 1030;
pub const RA: u32 = 10;
pub const RB: u32 = 20;
/// The interface on the external network, on either node.
pub const EXT: u32 = 3;
pub const GW_MAC: Mac = [2, 0xcc, 0, 0, 0, 1];

/// A port: its network (and subnet) and number there, its node (0 or 1), interface and floating IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    pub network: u32,
    pub host: u32,
    pub node: usize,
    pub ifindex: u32,
    pub floating: Option<u32>,
}

const fn host(network: u32, host: u32, node: usize, floating: Option<u32>) -> Host {
    Host { network, host, node, ifindex: network * 10 + host, floating }
}

pub const A1: Host = host(A, 11, 0, Some(51));
pub const A2: Host = host(A, 12, 0, None);
pub const A3: Host = host(A, 13, 1, Some(53));
pub const A4: Host = host(A, 14, 1, None);
pub const A5: Host = host(A, 15, 0, Some(55));
pub const B1: Host = host(B, 11, 0, Some(61));
pub const B2: Host = host(B, 12, 1, Some(62));
pub const C1: Host = host(C, 11, 0, None);
pub const C2: Host = host(C, 12, 1, None);
pub const HOSTS: [Host; 9] = [A1, A2, A3, A4, A5, B1, B2, C1, C2];
/// The address whose ports are forwarded, each to a port of a host.
pub const FORWARDING: u32 = 70;
pub const FORWARDED: [(u8, u16, Host, u16); 4] = [
    (PROTO_TCP, 2222, A2, 22),
    (PROTO_UDP, 5353, A2, 53),
    (PROTO_TCP, 2223, A4, 22),
    (PROTO_UDP, 5354, A4, 53),
];
/// Router, node, first and last port.
pub const BLOCKS: [(u32, usize, u16, u16); 6] = [
    (RA, 0, 1024, 2047),
    (RA, 0, 2048, 3071),
    (RA, 1, 3072, 4095),
    (RA, 1, 4096, 5119),
    (RB, 1, 1024, 2047),
    (RB, 0, 2048, 3071),
];

impl Host {
    pub fn ip(&self, f: Family) -> IpAddr {
        ip(f, self.network, self.host)
    }

    pub fn mac(&self) -> Mac {
        port_mac(self.network, self.host)
    }

    pub fn router(&self) -> u32 {
        if self.network == B { RB } else { RA }
    }

    pub fn floating(&self, f: Family) -> IpAddr {
        public(f, self.floating.unwrap())
    }
}

/// 203.0.113.`n` or 2001:db8:0:1::`n`.
pub fn public(f: Family, n: u32) -> IpAddr {
    match f {
        Family::V4 => Ipv4Addr::new(203, 0, 113, n as u8).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, n as u16).into(),
    }
}

/// Hosts behind the gateway.
pub fn beyond(f: Family, n: u32) -> IpAddr {
    match f {
        Family::V4 => Ipv4Addr::new(198, 51, 100, n as u8).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, n as u16).into(),
    }
}

/// The remote host.
pub fn remote(f: Family) -> IpAddr {
    beyond(f, 7)
}

/// A router's address on the external network: its number.
pub fn gateway(f: Family, router: u32) -> IpAddr {
    public(f, router)
}

/// A router's hardware address on the external network, each node's own.
pub fn gateway_mac(router: u32, node: usize) -> Mac {
    [2, 0xfe, 0, router as u8, 0, node as u8 + 1]
}

/// The node that answers for a router's address.
pub fn owner(router: u32) -> usize {
    usize::from(router == RB)
}

/// The tables of a node of this world, every host's policy `flags` (or what is done to the builder).
fn node_tables(node: usize, flags: u32) -> MemoryTables {
    let mut b = Builder::default();
    for network in [A, B, C] {
        b.network(network, 1450);
    }
    b.network(PUBLIC, 1500);
    b.image.networks.get_mut(&NetworkKey { network: Scoped::new(0, PUBLIC) }).unwrap().flags =
        NETWORK_EXTERNAL;
    for host in HOSTS {
        let place =
            if host.node == node { Place::Local(host.ifindex) } else { Place::Remote(host.node as u32 + 1) };
        b.port(host.network, host.network, host.host, place, 0);
    }
    b.leg(RA, A, A, 1);
    b.leg(RA, C, C, 1);
    b.leg(RB, B, B, 1);
    for router in [RA, RB] {
        b.gateway(router, node);
    }
    for host in HOSTS {
        if let Some(floating) = host.floating {
            b.floating(host, floating, node);
        }
    }
    for f in BOTH {
        let station = external_station(RA, 0, node, STATION_FLOATING);
        b.image.addresses.insert(AddressKey::new(0, PUBLIC, public(f, FORWARDING).into()), station);
    }
    for (proto, port, to, inside_port) in FORWARDED {
        b.forward(proto, port, to, inside_port, node);
    }
    let mut tables = b.tables();
    tables.image.rules.clear();
    tables.image.allow_all(0, flags);
    tables.commit.externals[0] = External { ifindex: EXT, vni: PUBLIC_VNI, flags: 0 };
    tables.commit.overlay_mtu = 1450;
    tables.commit.node = node as u32 + 1;
    tables.commit.vtep = vtep(node);
    tables.image.vteps.clear();
    tables.underlay.clear();
    let other = 1 - node;
    let number = other as u32 + 1;
    tables.image.vteps.insert(VtepKey { bank: Scoped::new(0, 0), addr: vtep(other) }, number);
    let way = Underlay {
        flags: UNDERLAY_ROUTED | UNDERLAY_RESOLVED,
        ifindex: UPLINK,
        src: vtep(node),
        dst: vtep(other),
        nexthop: vtep(other),
        mtu: 1500,
        macs: Macs::new(UPLINK_MAC, UPLINK_MAC),
    };
    tables.underlay.insert(number, way);
    tables
}

fn vtep(node: usize) -> Be32 {
    be32([192, 0, 2, node as u8 + 1])
}

/// Somebody on the external network who is answered for by node `at`, as seen from `node`.
fn external_station(router: u32, at: usize, node: usize, kind: u8) -> Station {
    let (place, number) = if at == node { (PLACE_EVERYWHERE, 0) } else { (PLACE_REMOTE, at as u32 + 1) };
    Station { mac: gateway_mac(router, at), kind, place, at: number, owner: router }
}

impl Builder {
    /// A router's gateway as `node` has it.
    pub fn gateway(&mut self, router: u32, node: usize) {
        let blocks: Vec<_> = BLOCKS.iter().filter(|block| block.0 == router).collect();
        let mine: Vec<_> = blocks.iter().filter(|block| block.1 == node).collect();
        let owned = if owner(router) == node { LEG_OWNED } else { 0 };
        let mac = gateway_mac(router, node);
        let (v4, v6) = (gateway(Family::V4, router), gateway(Family::V6, router));
        self.image.router_legs.insert(
            RouterLegKey { router: Scoped::new(0, router), network: PUBLIC },
            RouterLeg {
                vni: PUBLIC_VNI,
                mtu: 1500,
                mac,
                flags: LEG_EXTERNAL | LEG_SNAT | owned,
                v4: v4.into(),
                v6: v6.into(),
                snat_blocks: mine.len() as u32,
                tunnel_mac: [2, 0xfd, 0, router as u8, 0, 0],
                zero: 0,
            },
        );
        let here = external_station(router, node, node, STATION_ROUTER);
        self.image.fdb.insert(FdbKey::new(0, PUBLIC, mac), here);
        for addr in [v4, v6] {
            let station = external_station(router, owner(router), node, STATION_ROUTER);
            self.image.addresses.insert(AddressKey::new(0, PUBLIC, addr.into()), station);
            self.route(router, addr, full(addr), ROUTE_SELF, PUBLIC, None);
        }
        for f in BOTH {
            self.route(router, public(f, 0), subnet_len(f), ROUTE_CONNECTED, PUBLIC, None);
            let any = if f == Family::V4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
            self.route(router, any, 0, ROUTE_VIA, PUBLIC, Some(public(f, 1)));
        }
        for (slot, block) in mine.iter().enumerate() {
            let key = SnatBlockKey { router: Scoped::new(0, router), network: PUBLIC, slot: slot as u32 };
            self.image.snat_blocks.insert(key, SnatBlock { first: block.2, last: block.3 });
        }
        for block in blocks.iter().filter(|block| block.1 != node) {
            let key = SnatOwnerKey {
                network: Scoped::new(0, PUBLIC),
                ip: Ip::from(v4).as_v4(),
                block: u32::from(block.2) / SNAT_BLOCK,
            };
            let there = SnatOwner { node: block.1 as u32 + 1, mac: gateway_mac(router, block.1), zero: 0 };
            self.image.snat_owners.insert(key, there);
        }
    }

    /// A floating IP as `node` has it.
    pub fn floating(&mut self, host: Host, floating: u32, node: usize) {
        let router = host.router();
        for f in BOTH {
            let outside: Ip = public(f, floating).into();
            let station = external_station(router, host.node, node, STATION_FLOATING);
            self.image.addresses.insert(AddressKey::new(0, PUBLIC, outside), station);
            let key = FloatingKey { router: Scoped::new(0, router), ip: host.ip(f).into() };
            self.image.floating.insert(key, Floating { ip: outside });
            let key = NatKey {
                network: Scoped::new(0, PUBLIC),
                ip: outside,
                port: Be16::new(0),
                proto: 0,
                zero: 0,
            };
            self.image.nat.insert(key, nat_to(host, f, 0, node));
        }
    }

    /// A forwarded port as `node` has it.
    pub fn forward(&mut self, proto: u8, port: u16, to: Host, inside_port: u16, node: usize) {
        for f in BOTH {
            let key = NatKey {
                network: Scoped::new(0, PUBLIC),
                ip: public(f, FORWARDING).into(),
                port: Be16::new(port),
                proto,
                zero: 0,
            };
            self.image.nat.insert(key, nat_to(to, f, inside_port, node));
        }
    }
}

fn nat_to(host: Host, f: Family, inside_port: u16, node: usize) -> Nat {
    let (number, mac) = if host.node == node {
        (0, [0; 6])
    } else {
        (host.node as u32 + 1, gateway_mac(host.router(), host.node))
    };
    Nat {
        inside: host.ip(f).into(),
        router: host.router(),
        port: 0,
        inside_network: host.network,
        node: number,
        inside_port: Be16::new(inside_port),
        mac,
    }
}

/// Both nodes.
pub struct World {
    pub nodes: [MemoryTables; 2],
}

/// Who sends or receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Inside(Host),
    Outside,
}

impl core::fmt::Display for End {
    fn fmt(&self, out: &mut core::fmt::Formatter) -> core::fmt::Result {
        match self {
            Self::Inside(host) => write!(out, "{} (node {})", host.ip(Family::V4), host.node + 1),
            Self::Outside => write!(out, "outside"),
        }
    }
}

/// Where a frame ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// At a port.
    Port(Host, Vec<u8>),
    /// On the external network, from a node.
    Outside(usize, Vec<u8>),
    /// Anything else, on a node.
    Else(usize, Verdict),
}

impl World {
    /// Next hops resolved; `flags` of every rule.
    pub fn new(flags: u32) -> Self {
        let world = Self::unresolved(flags);
        for tables in &world.nodes {
            for (index, f) in BOTH.into_iter().enumerate() {
                let hop = Hop {
                    flags: HOP_USED | HOP_RESOLVED,
                    ifindex: EXT,
                    network: PUBLIC,
                    mac: GW_MAC,
                    ip: public(f, 1).into(),
                    router: RA,
                    ..Hop::default()
                };
                tables.set_hop(index as u32, hop);
            }
        }
        world
    }

    pub fn unresolved(flags: u32) -> Self {
        Self { nodes: [node_tables(0, flags), node_tables(1, flags)] }
    }

    /// Carries a frame to where it ends.
    #[track_caller]
    pub fn carry(&self, node: usize, entry: Entry, packet: MemoryPacket) -> Arrived {
        let (mut node, mut entry, mut packet) = (node, entry, packet);
        for _ in 0..4 {
            let (gso_size, partial) = (packet.gso_size, packet.partial);
            let (ifindex, frame) = match run_packet(&self.nodes[node], entry, packet) {
                Verdict::Sent { ifindex, frame } => (ifindex, frame),
                other => return Arrived::Else(node, other),
            };
            match ifindex {
                EXT => return Arrived::Outside(node, frame),
                UPLINK => {
                    let to = usize::from(frame[33]) - 1;
                    assert_ne!(to, node, "sent to itself");
                    (node, entry, packet) = (to, Entry::Uplink, MemoryPacket::new(&frame));
                    (packet.gso_size, packet.partial) = (gso_size, partial);
                }
                _ => {
                    let host = HOSTS.into_iter().find(|host| host.ifindex == ifindex).unwrap();
                    assert_eq!(host.node, node, "an interface of the other node");
                    return Arrived::Port(host, frame);
                }
            }
        }
        panic!("carried from node to node for ever");
    }

    #[track_caller]
    pub fn send(&self, from: End, frame: &[u8]) -> Arrived {
        self.send_packet(from, MemoryPacket::new(frame))
    }

    /// From outside it goes where ARP for its destination (or routes to the inside) would have it.
    #[track_caller]
    pub fn send_packet(&self, from: End, packet: MemoryPacket) -> Arrived {
        match from {
            End::Inside(host) => self.carry(host.node, Entry::Port(host.ifindex), packet),
            End::Outside => {
                let node = outside_way(read_dst(&packet.to_vec())).0;
                self.carry(node, Entry::External(EXT), packet)
            }
        }
    }
}

fn read_dst(frame: &[u8]) -> IpAddr {
    if frame[12..14] == ETHERTYPE_IPV4.to_be_bytes() {
        IpAddr::from(<[u8; 4]>::try_from(&frame[30..34]).unwrap())
    } else {
        IpAddr::from(<[u8; 16]>::try_from(&frame[38..54]).unwrap())
    }
}

/// The node and hardware address that what outside sends to `dst` goes to.
pub fn outside_way(dst: IpAddr) -> (usize, Mac) {
    for f in BOTH {
        for router in [RA, RB] {
            if dst == gateway(f, router) {
                return (owner(router), gateway_mac(router, owner(router)));
            }
        }
        for host in HOSTS {
            if host.floating.is_some() && dst == host.floating(f) {
                return (host.node, gateway_mac(host.router(), host.node));
            }
        }
    }
    (owner(RA), gateway_mac(RA, owner(RA)))
}

/// A packet from one end, `sport` and so on to be filled in.
pub fn from(f: Family, end: End, dst: IpAddr) -> Pkt {
    let base = Pkt::udp(f, (A, 11), (A, 12)).to(dst);
    match end {
        End::Inside(host) => {
            let there = HOSTS.into_iter().find(|to| to.network == host.network && to.ip(f) == dst);
            let mut pkt = base.from(host.ip(f)).via(router_mac(host.network, 1));
            if let Some(there) = there.filter(|there| *there != host) {
                pkt.dst_mac = there.mac();
            }
            pkt.src_mac = host.mac();
            pkt
        }
        End::Outside => {
            let mut pkt = base.from(remote(f)).via(outside_way(dst).1);
            pkt.src_mac = GW_MAC;
            pkt
        }
    }
}

// ---- the flow tables ----

type Legs = Vec<(FlowKey, Flow)>;

/// The legs of connections, in the table of answered flows and the other.
pub fn legs(tables: &MemoryTables) -> (Legs, Legs) {
    let is_leg = |leg: &(FlowKey, Flow)| leg.1.role != ROLE_NONE;
    (
        tables.flows().into_iter().filter(is_leg).collect(),
        tables.transients().into_iter().filter(is_leg).collect(),
    )
}

/// The connections: every leg has its other in the same table, which points back.
#[track_caller]
pub fn connections(tables: &MemoryTables) -> (usize, usize) {
    let (answered, unanswered) = legs(tables);
    for legs in [&answered, &unanswered] {
        for (key, leg) in legs {
            let peer = leg.peer_key(key);
            let (_, other) =
                legs.iter().find(|(key, _)| *key == peer).unwrap_or_else(|| panic!("alone: {key:?} {leg:?}"));
            assert_eq!(other.peer_key(&peer), *key, "not its own");
            assert_eq!(leg.role + other.role, ROLE_ORIGINAL + ROLE_REPLY, "roles");
            assert_eq!((leg.tag, leg.tag_end), (key.tag(), key.tag()));
        }
    }
    (answered.len() / 2, unanswered.len() / 2)
}

/// The IPv4 header of the packet an error quotes is right; returns its offset in the transport bytes.
#[track_caller]
pub fn assert_quote_header(error: &Read) {
    if error.src.is_ipv4() {
        let len = usize::from(error.l4[8] & 15) * 4;
        assert_eq!(sum16(0, &error.l4[8..8 + len]), 0xffff, "quoted IPv4 header checksum");
    }
}

/// A copy of an IP packet without what routers change: TTL and the IPv4 header's checksum.
pub fn unrouted(l3: &[u8]) -> Vec<u8> {
    let mut l3 = l3.to_vec();
    if l3[0] >> 4 == 4 {
        l3[8] = 0;
        l3[10..12].fill(0);
    } else {
        l3[7] = 0;
    }
    l3
}
