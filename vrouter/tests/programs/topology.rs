//! The topology of every test, written by hand as the compiler would produce it.
//!
//! ```text
//! network 1    10.1.0.0/24  2001:db8:1::/64  mtu 1450  p11 p12 p13(plain) p19(no security)
//! network 2    10.2.0.0/24  2001:db8:2::/64  mtu 1450  p21 p22(plain)
//! network 3    10.3.0.0/24  2001:db8:3::/64  mtu 1280  p31
//! network 4    10.4.0.0/24  2001:db8:4::/64  mtu 1450  p41 p42, no router
//! network 6    10.6.0.0/24  2001:db8:6::/64  mtu 1450  p61
//! network 7    10.7.0.0/24  2001:db8:7::/64  mtu 1450  p71 p72 (policy 1, stateful) p74 (policy 2)
//! network 8    10.8.0.0/24  2001:db8:8::/64  mtu 1450  external, by the interface x80
//! router 1     on networks 1, 2, 3, 7 at .1;  router 2 on 2 at .254 and on 6 at .1;  router 3 is half removed
//! gateways     router 1 at 10.8.0.1, this node's; router 2 at 10.8.0.2, node 2's; 10.88.0.0/16 is behind 10.8.0.254
//! elsewhere    15, 25, 75 on node 2; 16, 26 on 3; 23 on 4; 24 on 5; 17, 27 unplugged; 18, 28 unbound
//! floating     12, 71 here and 75 on node 2, at the host of the external network that is called like them; 18 nowhere
//! forwarded    10.8.0.1 tcp 2222, udp 2223 to 72's 2000 and 2001; tcp 2224 to 75's 2000
//! balanced     10.1.0.50, at 50 outside, tcp and udp 2000 to 21, 25, 12, 24 and 13 (which leaves); tcp 2001 to nobody, udp 2001 down
//! nodes        1 is here; 2 reachable; 3 not resolved; 4 without a route; 5 reachable, not from XDP
//! ```
//!
//! Port `n` of network `n / 10` has the addresses `.n` and `::n`, and the hardware address
//! `02:00:00:00:<network>:<n>`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use vrouter_common::{
    addr::{Be16, Be32, Ip, Macs},
    memory::Image,
    tables::*,
    wire::ROUTER_MAC,
};

pub type Mac = [u8; 6];

/// This node.
pub const NODE: u32 = 1;
pub const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const UPLINK: &str = "up0";
/// This node's interface on the external network.
pub const EXTERNAL: &str = "x80";
/// Number of the external network.
pub const OUTSIDE: u32 = 8;
/// Whoever is on the external network, and its hardware address.
pub const NEIGHBOUR: u8 = 254;
pub const NEIGHBOUR_MAC: Mac = [2, 0xee, 0, 0, 0, 254];
/// Prefix behind it: `10.88.0.0/16`, `2001:db8:88::/64`.
pub const BEHIND: u32 = 88;
/// This node's ports of router 1's address, and of router 2's.
pub const BLOCKS: [SnatBlock; 2] =
    [SnatBlock { first: 1024, last: 1031 }, SnatBlock { first: 2048, last: 2050 }];
pub const BLOCK_OF_ROUTER_2: SnatBlock = SnatBlock { first: 5120, last: 6143 };
/// Security groups of ports.
pub const STATEFUL: u32 = 1;
pub const MIXED: u32 = 2;
/// A VIP, and at the same number its floating IP; members of its pools, one of which takes nothing new.
pub const VIP: u32 = 50;
pub const BALANCED: [u32; 5] = [21, 25, 12, 24, 13];
pub const LEAVING: u32 = 13;
/// An interface that is no port.
pub const UNKNOWN: &str = "p99";
pub const INTERFACES: &[&str] = &[
    "p11", "p12", "p13", "p19", "p21", "p22", "p31", "p41", "p42", "p61", "p71", "p72", "p74", UNKNOWN,
    UPLINK, EXTERNAL,
];
/// What the underlay's Ethernet looks like towards every node.
pub const UNDERLAY_DST: Mac = [0x02, 0xaa, 0, 0, 0, 2];
pub const UNDERLAY_SRC: Mac = [0x02, 0xaa, 0, 0, 0, 1];
pub const NETWORKS: [u32; 7] = [1, 2, 3, 4, 6, 7, OUTSIDE];
/// Everywhere without another.
pub const MTU: u32 = 1450;
pub const SMALL_MTU: u32 = 1280;

/// A port's number, as its interface is called after.
pub const fn port_mac(port: u32) -> Mac {
    [2, 0, 0, 0, (port / 10) as u8, port as u8]
}

pub fn port_v4(port: u32) -> Ipv4Addr {
    v4(port / 10, port as u8)
}

pub fn port_v6(port: u32) -> Ipv6Addr {
    v6(port / 10, port as u16)
}

pub fn v4(network: u32, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, network as u8, 0, host)
}

pub fn v6(network: u32, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, network as u16, 0, 0, 0, 0, host)
}

/// The floating IPs of a port that has them.
pub fn floating_v4(port: u32) -> Ipv4Addr {
    v4(OUTSIDE, port as u8)
}

pub fn floating_v6(port: u32) -> Ipv6Addr {
    v6(OUTSIDE, port as u16)
}

pub const fn member_mac(pool: u32, index: u32) -> Mac {
    [2, 0xba, 0, 0, pool as u8, index as u8]
}

pub const fn router_mac(router: u32, network: u32) -> Mac {
    [ROUTER_MAC, router as u8, 0xff, 0, 0, network as u8]
}

pub fn link_local(mac: Mac) -> Ipv6Addr {
    match IpAddr::from(Ip::link_local_of(mac)) {
        IpAddr::V6(address) => address,
        IpAddr::V4(_) => unreachable!("a link-local address is IPv6"),
    }
}

pub const fn vni(network: u32) -> u32 {
    100 + network
}

pub fn vtep(node: u32) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, node as u8)
}

fn mtu(network: u32) -> u32 {
    if network == 3 { SMALL_MTU } else { MTU }
}

/// A router's hardware address on the external network at another node.
pub const fn gateway_mac(router: u32, node: u32) -> Mac {
    [2, router as u8, 0xfe, 0, node as u8, OUTSIDE as u8]
}

/// Adds to the state in force what is this node's own: its interface on the external network, and what its
/// tunnels carry.
pub fn complete(mut commit: Commit, ifindexes: &BTreeMap<&'static str, u32>) -> Commit {
    commit.overlay_mtu = MTU;
    commit.externals[0] =
        External { ifindex: ifindexes[EXTERNAL], vni: vni(OUTSIDE), flags: EXTERNAL_FRAMES };
    commit
}

/// Ways to the other nodes.
pub fn underlay(ifindexes: &BTreeMap<&'static str, u32>) -> BTreeMap<u32, Underlay> {
    let way = |node, flags| {
        let macs = if flags & UNDERLAY_RESOLVED != 0 {
            Macs::new(UNDERLAY_DST, UNDERLAY_SRC)
        } else {
            Macs::default()
        };
        let way = Underlay {
            flags,
            ifindex: ifindexes[UPLINK],
            src: Be32::new(VTEP.to_bits()),
            dst: Be32::new(vtep(node).to_bits()),
            nexthop: Be32::new(vtep(node).to_bits()),
            mtu: 1500,
            macs,
        };
        (node, way)
    };
    BTreeMap::from([
        way(2, UNDERLAY_ROUTED | UNDERLAY_RESOLVED | UNDERLAY_FRAMES),
        way(3, UNDERLAY_ROUTED | UNDERLAY_FRAMES),
        way(4, UNDERLAY_FRAMES),
        way(5, UNDERLAY_ROUTED | UNDERLAY_RESOLVED),
    ])
}

/// The topology.
pub fn image(ifindexes: &BTreeMap<&'static str, u32>) -> Image {
    let mut builder = Builder { image: Image::default(), ifindexes };
    builder.image.allow_all(0, 0);
    for network in NETWORKS {
        let mtu = mtu(network);
        builder.image.networks.insert(
            NetworkKey { network: Scoped::new(0, network) },
            Network { vni: vni(network), mtu, flags: if network == OUTSIDE { NETWORK_EXTERNAL } else { 0 } },
        );
        builder.image.vnis.insert(VniKey { vni: Scoped::new(0, vni(network)) }, network);
    }
    for node in 2..=5 {
        let key = VtepKey { bank: Scoped::new(0, 0), addr: Be32::new(vtep(node).to_bits()) };
        builder.image.vteps.insert(key, node);
    }
    for port in [11, 12, 19, 21, 31, 41, 42, 61, 71, 72, 74] {
        builder.local(port, PLACE_LOCAL_FRAMES);
    }
    for port in [13, 22] {
        builder.local(port, PLACE_LOCAL);
    }
    for (port, place, at) in [
        (15, PLACE_REMOTE, 2),
        (16, PLACE_REMOTE, 3),
        (17, PLACE_UNPLUGGED, 0),
        (18, PLACE_UNBOUND, 0),
        (23, PLACE_REMOTE, 4),
        (24, PLACE_REMOTE, 5),
        (25, PLACE_REMOTE, 2),
        (26, PLACE_REMOTE, 3),
        (27, PLACE_UNPLUGGED, 0),
        (28, PLACE_UNBOUND, 0),
        (75, PLACE_REMOTE, 2),
    ] {
        builder.station(port, place, at);
    }
    builder.pair(12, "10.1.0.128".parse().expect("an address"), 25);
    for network in [1, 2, 3, 7] {
        builder.leg(1, network, v4(network, 1), v6(network, 1));
        builder.subnet(1, network);
    }
    builder.leg(2, 2, v4(2, 254), v6(2, 0xfe));
    builder.leg(2, 6, v4(6, 1), v6(6, 1));
    builder.subnet(2, 2);
    builder.subnet(2, 6);
    // Half removed: a station, but no leg.
    builder.image.fdb.insert(
        FdbKey::new(0, 1, router_mac(3, 1)),
        Station { mac: router_mac(3, 1), kind: STATION_ROUTER, place: PLACE_EVERYWHERE, at: 0, owner: 3 },
    );
    builder.prefixes(1, ROUTE_VIA, 6, Some((2, v4(2, 254), v6(2, 0xfe))));
    builder.prefixes(2, ROUTE_VIA, 1, Some((2, v4(2, 1), v6(2, 1))));
    // Each says the other knows the way.
    builder.prefixes(1, ROUTE_VIA, 9, Some((2, v4(2, 254), v6(2, 0xfe))));
    builder.prefixes(2, ROUTE_VIA, 9, Some((2, v4(2, 1), v6(2, 1))));
    builder.prefixes(1, ROUTE_VIA, 5, Some((2, port_v4(21), port_v6(21))));
    builder.prefixes(1, ROUTE_BLACKHOLE, 66, None);
    builder.prefixes(1, ROUTE_UNREACHABLE, 67, None);
    builder.flood(1, &["p11", "p12", "p13", "p19"], &[2]);
    builder.flood(2, &["p21", "p22"], &[2]);
    builder.flood(4, &["p41", "p42"], &[]);
    builder.flood(7, &["p71", "p72", "p74"], &[2]);
    builder.outside();
    builder.balanced();
    builder.policies();
    builder.image
}

struct Builder<'a> {
    image: Image,
    ifindexes: &'a BTreeMap<&'static str, u32>,
}

impl Builder<'_> {
    fn station(&mut self, port: u32, place: u8, at: u32) {
        let mac = port_mac(port);
        let station = Station { mac, kind: STATION_PORT, place, at, owner: port };
        let network = port / 10;
        self.image.fdb.insert(FdbKey::new(0, network, mac), station);
        let addresses = [port_v4(port).into(), port_v6(port).into(), link_local(mac).into()];
        for address in addresses {
            self.image.addresses.insert(AddressKey::new(0, network, Ip::from(address)), station);
            self.pair(port, address, if address.is_ipv4() { 32 } else { 128 });
        }
    }

    fn local(&mut self, port: u32, place: u8) {
        let ifindex = self.ifindexes[&*format!("p{port}")];
        self.station(port, place, ifindex);
        let network = port / 10;
        self.image.bindings.insert(
            BindingKey { ifindex: Scoped::new(0, ifindex) },
            Binding {
                port,
                network,
                vni: vni(network),
                mtu: mtu(network),
                mac: port_mac(port),
                flags: if port == 19 { BINDING_NO_SECURITY } else { 0 },
                policy: match port {
                    71 | 72 => STATEFUL,
                    74 => MIXED,
                    _ => 0,
                },
            },
        );
    }

    fn pair(&mut self, port: u32, address: IpAddr, len: u32) {
        let len = if address.is_ipv4() { 96 + len } else { len };
        let key = AllowedKey {
            prefix_len: AllowedKey::FIXED_BITS + len,
            ..AllowedKey::lookup(0, port, port_mac(port), Ip::from(address))
        };
        self.image.allowed.insert(key, 1);
    }

    fn leg(&mut self, router: u32, network: u32, v4: Ipv4Addr, v6: Ipv6Addr) {
        let mac = router_mac(router, network);
        let (v4, v6) = (Ip::from(IpAddr::from(v4)), Ip::from(IpAddr::from(v6)));
        self.image.router_legs.insert(
            RouterLegKey { router: Scoped::new(0, router), network },
            RouterLeg {
                vni: vni(network),
                mtu: mtu(network),
                mac,
                flags: 0,
                v4,
                v6,
                snat_blocks: 0,
                tunnel_mac: [0; 6],
                zero: 0,
            },
        );
        let station = Station { mac, kind: STATION_ROUTER, place: PLACE_EVERYWHERE, at: 0, owner: router };
        self.image.fdb.insert(FdbKey::new(0, network, mac), station);
        for address in [v4, v6] {
            self.image.addresses.insert(AddressKey::new(0, network, address), station);
            self.route(
                router,
                address,
                128,
                Route { kind: ROUTE_SELF, network: 0, nexthop: Ip::UNSPECIFIED },
            );
        }
    }

    fn route(&mut self, router: u32, dst: Ip, len: u32, route: Route) {
        let key = RouteKey { prefix_len: RouteKey::FIXED_BITS + len, router: Scoped::new(0, router), dst };
        self.image.routes.insert(key, route);
    }

    fn subnet(&mut self, router: u32, network: u32) {
        let connected = Route { kind: ROUTE_CONNECTED, network, nexthop: Ip::UNSPECIFIED };
        self.route(router, Ip::from(IpAddr::from(v4(network, 0))), 96 + 24, connected);
        self.route(router, Ip::from(IpAddr::from(v6(network, 0))), 64, connected);
        let broadcast = Route { kind: ROUTE_BROADCAST, network: 0, nexthop: Ip::UNSPECIFIED };
        for host in [0, 255] {
            self.route(router, Ip::from(IpAddr::from(v4(network, host))), 128, broadcast);
        }
    }

    /// The prefixes `10.<number>.0.0/16` and `2001:db8:<number>::/64`.
    fn prefixes(&mut self, router: u32, kind: u32, number: u32, via: Option<(u32, Ipv4Addr, Ipv6Addr)>) {
        let network = via.map_or(0, |(network, ..)| network);
        let nexthop = |address: Option<IpAddr>| address.map_or(Ip::UNSPECIFIED, Ip::from);
        let route = |nexthop| Route { kind, network, nexthop };
        let (via4, via6) = (via.map(|(_, v4, _)| v4.into()), via.map(|(.., v6)| v6.into()));
        self.route(router, Ip::from(IpAddr::from(v4(number, 0))), 96 + 16, route(nexthop(via4)));
        self.route(router, Ip::from(IpAddr::from(v6(number, 0))), 64, route(nexthop(via6)));
    }

    /// The external network, the routers' gateways on it, and what they translate.
    fn outside(&mut self) {
        let snat = LEG_EXTERNAL | LEG_SNAT;
        for (router, flags, blocks) in
            [(1, snat | LEG_OWNED, &BLOCKS[..]), (2, snat, &[BLOCK_OF_ROUTER_2][..])]
        {
            self.leg(router, OUTSIDE, v4(OUTSIDE, router as u8), v6(OUTSIDE, router as u16));
            let key = RouterLegKey { router: Scoped::new(0, router), network: OUTSIDE };
            let leg = self.image.router_legs.get_mut(&key).expect("just made");
            leg.flags = flags;
            leg.snat_blocks = blocks.len() as u32;
            for (slot, &block) in blocks.iter().enumerate() {
                let key = SnatBlockKey { router: key.router, network: OUTSIDE, slot: slot as u32 };
                self.image.snat_blocks.insert(key, block);
            }
            self.subnet(router, OUTSIDE);
            let hop = (OUTSIDE, v4(OUTSIDE, NEIGHBOUR), v6(OUTSIDE, u16::from(NEIGHBOUR)));
            self.prefixes(router, ROUTE_VIA, BEHIND, Some(hop));
        }
        // Router 2's addresses are node 2's.
        let theirs = gateway_mac(2, 2);
        let station = Station { mac: theirs, kind: STATION_ROUTER, place: PLACE_REMOTE, at: 2, owner: 2 };
        for address in [IpAddr::from(v4(OUTSIDE, 2)), v6(OUTSIDE, 2).into()] {
            self.image.addresses.insert(AddressKey::new(0, OUTSIDE, address.into()), station);
        }
        let mut owner = |router: u32, block, node| {
            let ip = Be32::new(v4(OUTSIDE, router as u8).to_bits());
            let key = SnatOwnerKey { network: Scoped::new(0, OUTSIDE), ip, block };
            let owner = SnatOwner { node, mac: gateway_mac(router, node), zero: 0 };
            self.image.snat_owners.insert(key, owner);
        };
        owner(1, 4, 2);
        owner(1, 6, 5);
        owner(2, 1, 2);
        for (port, place, at) in [
            (12, PLACE_EVERYWHERE, 0),
            (71, PLACE_EVERYWHERE, 0),
            (75, PLACE_REMOTE, 2),
            (18, PLACE_UNBOUND, 0),
        ] {
            let mac = if at == 0 { router_mac(1, OUTSIDE) } else { gateway_mac(1, at) };
            let station = Station { mac, kind: STATION_FLOATING, place, at, owner: 1 };
            let pairs = [
                (IpAddr::from(port_v4(port)), IpAddr::from(floating_v4(port))),
                (port_v6(port).into(), floating_v6(port).into()),
            ];
            for (inside, outside) in pairs {
                self.image.addresses.insert(AddressKey::new(0, OUTSIDE, outside.into()), station);
                if place == PLACE_UNBOUND {
                    continue;
                }
                self.nat(outside, (0, 0), inside, 0, port, at);
                let key = FloatingKey { router: Scoped::new(0, 1), ip: inside.into() };
                self.image.floating.insert(key, Floating { ip: outside.into() });
            }
        }
        let gateway = IpAddr::from(v4(OUTSIDE, 1));
        self.nat(gateway, (6, 2222), port_v4(72).into(), 2000, 72, 0);
        self.nat(gateway, (17, 2223), port_v4(72).into(), 2001, 72, 0);
        self.nat(gateway, (6, 2224), port_v4(75).into(), 2000, 75, 2);
    }

    fn balanced(&mut self) {
        for (pool, ipv6) in [(1, false), (2, true)] {
            let of = |port: u32| -> IpAddr { if ipv6 { port_v6(port).into() } else { port_v4(port).into() } };
            let pool = Scoped::new(0, pool);
            for (index, port) in BALANCED.into_iter().enumerate() {
                let index = index as u32;
                let member = PoolMember {
                    ip: of(port).into(),
                    network: port / 10,
                    port: Be16::new(2000),
                    flags: if port == LEAVING { 0 } else { MEMBER_UP },
                    number: 1 + index,
                    mac: member_mac(pool.id(), index),
                    zero: 0,
                };
                let image = self.image.pool_mut(pool.id());
                image.members.insert(PoolMemberKey { pool, index }, member);
                image
                    .members_at
                    .insert(PoolMemberAt { pool, ip: member.ip, port: member.port, zero: 0 }, index);
                let mac = PoolMemberAt { pool, ..PoolMemberAt::mac(0, 0, member.mac) };
                image.members_at.insert(mac, index);
                let station = Station {
                    mac: member.mac,
                    kind: STATION_MEMBER,
                    place: PLACE_EVERYWHERE,
                    at: index,
                    owner: 1,
                };
                image.stations.insert(FdbKey::new(0, OUTSIDE, member.mac), station);
            }
            let mut slots = [Slot { member: 0, other: SLOT_NOBODY }; SLOTS_IN_CHUNK as usize];
            for (i, slot) in slots.iter_mut().enumerate() {
                slot.member = (i % 4) as u16;
                slot.other = match i % 3 {
                    0 => SLOT_NOBODY,
                    1 => 4 | SLOT_LEAVES,
                    _ => ((i + 1) % 4) as u16,
                };
            }
            self.image.pool_mut(pool.id()).slots.insert(PoolSlotsKey { pool, chunk: 0 }, PoolSlots(slots));
            let (vip, outside): (IpAddr, IpAddr) = if ipv6 {
                (v6(1, VIP as u16).into(), floating_v6(VIP).into())
            } else {
                (v4(1, VIP as u8).into(), floating_v4(VIP).into())
            };
            let mac = router_mac(1, 1);
            let station = Station { mac, kind: STATION_VIP, place: PLACE_EVERYWHERE, at: 0, owner: 1 };
            self.image.addresses.insert(AddressKey::new(0, 1, vip.into()), station);
            for (proto, port, slots, flags) in [
                (6, 2000, SLOTS_IN_CHUNK, 0),
                (17, 2000, SLOTS_IN_CHUNK, LISTENER_SOURCE_IP),
                (6, 2001, 0, 0),
                (17, 2001, SLOTS_IN_CHUNK, LISTENER_DOWN),
            ] {
                let network = Scoped::new(0, 1);
                let key = ListenerKey { network, ip: vip.into(), port: Be16::new(port), proto, zero: 0 };
                let listener = Listener { pool: pool.id(), slots, flags, number: 1, router: 1 };
                self.image.listeners.insert(key, listener);
            }
            let own = Station { kind: STATION_FLOATING, mac: router_mac(1, OUTSIDE), ..station };
            self.image.addresses.insert(AddressKey::new(0, OUTSIDE, outside.into()), own);
            self.nat(outside, (0, 0), vip, 0, 0, 0);
            let nat = self.image.nat.values_mut().find(|nat| nat.inside == vip.into()).expect("just made");
            (nat.node, nat.inside_network) = (NODE_BALANCED, 1);
            let route = Route { kind: ROUTE_SELF, network: OUTSIDE, nexthop: Ip::UNSPECIFIED };
            self.image.routes.insert(RouteKey::lookup(0, 1, outside.into()), route);
        }
    }

    fn nat(
        &mut self,
        outside: IpAddr,
        (proto, port): (u8, u16),
        inside: IpAddr,
        to: u16,
        owner: u32,
        node: u32,
    ) {
        let key = NatKey {
            network: Scoped::new(0, OUTSIDE),
            ip: outside.into(),
            port: Be16::new(port),
            proto,
            zero: 0,
        };
        let nat = Nat {
            inside: inside.into(),
            router: 1,
            port: owner,
            node,
            inside_network: 0,
            inside_port: Be16::new(to),
            mac: if node == 0 { router_mac(1, OUTSIDE) } else { gateway_mac(1, node) },
        };
        self.image.nat.insert(key, nat);
    }

    /// Policy 1: everything out, in TCP to 2000, UDP to 2000 and 2001, echo from networks 1 and 2, everything
    /// from network 7; with replies. Policy 2: UDP out with replies, TCP out without; UDP to 2000 in, and all
    /// ICMP, without.
    fn policies(&mut self) {
        let near = 1;
        let inside = 2;
        for (network, class) in [(7, near), (1, inside), (2, inside)] {
            let addresses = [(IpAddr::from(v4(network, 0)), 96 + 24), (v6(network, 0).into(), 64)];
            for (address, len) in addresses {
                let key = ClassKey {
                    prefix_len: ClassKey::FIXED_BITS + len,
                    bank: Scoped::new(0, 0),
                    ip: address.into(),
                };
                self.image.classes.insert(key, class);
            }
        }
        for v6 in [0, RULE_V6] {
            let echo = if v6 == 0 { (1, 0x0800) } else { (58, 0x8000) };
            let icmp = echo.0;
            let both = RULE_STATEFUL;
            self.rule(STATEFUL, 0, v6, None, 72, both);
            self.rule(STATEFUL, near, v6 | RULE_INGRESS, None, 72, both);
            self.rule(STATEFUL, 0, v6 | RULE_INGRESS, Some((6, 2000)), 96, both);
            self.rule(STATEFUL, 0, v6 | RULE_INGRESS, Some((17, 2000)), 95, both);
            self.rule(STATEFUL, inside, v6 | RULE_INGRESS, Some(echo), 96, both);
            self.rule(MIXED, 0, v6, Some((17, 0)), 80, both);
            self.rule(MIXED, 0, v6, Some((6, 0)), 80, 0);
            self.rule(MIXED, 0, v6 | RULE_INGRESS, Some((17, 2000)), 96, 0);
            self.rule(MIXED, 0, v6 | RULE_INGRESS, Some((icmp, 0)), 80, 0);
        }
    }

    fn rule(
        &mut self,
        policy: u32,
        class: u32,
        direction: u8,
        what: Option<(u8, u16)>,
        prefix_len: u32,
        flags: u32,
    ) {
        let (proto, port) = what.unwrap_or_default();
        let policy = Scoped::new(0, policy);
        let key = RuleKey { prefix_len, policy, class, direction, proto, port: Be16::new(port) };
        let rule = self.image.rules.len() as u32 + 1;
        self.image.rules.insert(key, Rule { rule, flags });
    }

    fn flood(&mut self, network: u32, ports: &[&str], nodes: &[u32]) {
        let ports: Vec<u32> = ports.iter().map(|name| self.ifindexes[name]).collect();
        for (first, receivers) in [(FLOOD_LOCAL, &ports[..]), (FLOOD_REMOTE, nodes)] {
            for (i, &at) in receivers.iter().enumerate() {
                let cursor = first + i as u32;
                let next = if i + 1 == receivers.len() { FLOOD_END } else { cursor + 1 };
                let key = FloodKey { network: Scoped::new(0, network), cursor };
                self.image.floods.insert(key, Flood { next, at });
            }
        }
    }
}
