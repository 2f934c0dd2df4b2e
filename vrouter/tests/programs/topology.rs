//! The topology of every test, written by hand as the compiler would produce it.
//!
//! ```text
//! network 1    10.1.0.0/24  2001:db8:1::/64  mtu 1450  p11 p12 p13(plain) p19(no security)
//! network 2    10.2.0.0/24  2001:db8:2::/64  mtu 1450  p21 p22(plain)
//! network 3    10.3.0.0/24  2001:db8:3::/64  mtu 1280  p31
//! network 4    10.4.0.0/24  2001:db8:4::/64  mtu 1450  p41 p42, no router
//! network 6    10.6.0.0/24  2001:db8:6::/64  mtu 1450  p61
//! router 1     on networks 1, 2, 3 at .1;  router 2 on 2 at .254 and on 6 at .1;  router 3 is half removed
//! elsewhere    15, 25 on node 2; 16, 26 on 3; 23 on 4; 24 on 5; 17, 27 unplugged; 18, 28 unbound
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
    addr::{Be32, Ip, Macs},
    memory::Image,
    tables::*,
};

pub type Mac = [u8; 6];

/// This node.
pub const NODE: u32 = 1;
pub const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const UPLINK: &str = "up0";
/// An interface that is no port.
pub const UNKNOWN: &str = "p99";
pub const INTERFACES: &[&str] =
    &["p11", "p12", "p13", "p19", "p21", "p22", "p31", "p41", "p42", "p61", UNKNOWN, UPLINK];
/// What the underlay's Ethernet looks like towards every node.
pub const UNDERLAY_DST: Mac = [0x02, 0xaa, 0, 0, 0, 2];
pub const UNDERLAY_SRC: Mac = [0x02, 0xaa, 0, 0, 0, 1];
pub const NETWORKS: [u32; 5] = [1, 2, 3, 4, 6];
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

pub const fn router_mac(router: u32, network: u32) -> Mac {
    [2, router as u8, 0xff, 0, 0, network as u8]
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
            Network { vni: vni(network), mtu, flags: 0 },
        );
        builder.image.vnis.insert(VniKey { vni: Scoped::new(0, vni(network)) }, network);
    }
    for node in 2..=5 {
        let key = VtepKey { bank: Scoped::new(0, 0), addr: Be32::new(vtep(node).to_bits()) };
        builder.image.vteps.insert(key, node);
    }
    for port in [11, 12, 19, 21, 31, 41, 42, 61] {
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
    ] {
        builder.station(port, place, at);
    }
    builder.pair(12, "10.1.0.128".parse().expect("an address"), 25);
    for network in [1, 2, 3] {
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
                policy: 0,
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
