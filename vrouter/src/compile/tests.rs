//! What a document becomes, and what a packet makes of it.

mod balancer;
mod external;
mod policy;

use std::net::IpAddr;

use vrouter_common::{
    memory::{Entry, MemoryPacket, MemoryTables, Verdict, run},
    tables::Tables as _,
};

use super::*;
use crate::topology::{self, derive_router_mac};

const DOCUMENT: &str = r#"
networks:
  - name: web
    vni: 1001
    subnets:
      - { name: web4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }
      - { name: web6, cidr: "fd00:1::/64", gateway: "fd00:1::1" }
  - name: db
    vni: 1002
    subnets: [{ name: db4, cidr: 10.0.2.0/24, gateway: 10.0.2.1 }]
  - name: elsewhere
    vni: 1003
    subnets: [{ name: else4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }]
routers:
  - name: r1
    interfaces: [web4, web6, db4]
    routes:
      - { destination: 10.99.0.0/16, nexthop: 10.0.2.12 }
      - { destination: 10.66.0.0/16, nexthop: blackhole }
ports:
  - { name: vm1, network: web, mac: "02:00:00:00:01:0b", fixed_ips: [10.0.1.11, "fd00:1::b"], node: a, interface: tap1,
      allowed_address_pairs: [{ ip: 10.0.1.100 }, { ip: 10.77.0.0/16, mac: "02:00:00:00:01:77" }] }
  - { name: vm2, network: web, mac: "02:00:00:00:01:0c", fixed_ips: [10.0.1.12], node: a, interface: tap2, port_security: false }
  - { name: vm3, network: db, mac: "02:00:00:00:02:0c", fixed_ips: [10.0.2.12], node: b, interface: tap3 }
  - { name: vm4, network: db, mac: "02:00:00:00:02:0d", fixed_ips: [10.0.2.13], node: a, interface: tap4 }
  - { name: idle, network: db, mac: "02:00:00:00:02:0e", fixed_ips: [10.0.2.14] }
  - { name: far, network: elsewhere, mac: "02:00:00:00:03:0b", fixed_ips: [10.0.1.11], node: b, interface: tap9 }
nodes:
  - { name: a, vtep: 192.0.2.1 }
  - { name: b, vtep: 192.0.2.2 }
"#;

fn around(interfaces: &[(&str, u32)]) -> Surroundings {
    Surroundings {
        metadata: false,
        node: "a".to_owned(),
        interfaces: interfaces
            .iter()
            .map(|&(name, index)| (name.to_owned(), Interface { index, peer: false }))
            .collect(),
        underlay_mtu: 1500,
        externals: BTreeMap::new(),
        liveness: Default::default(),
        shares: None,
        learned: Default::default(),
    }
}

fn compiled(document: &str, ids: &mut Identities) -> Compiled {
    let topology = topology::parse("test.yaml", document).unwrap_or_else(|problems| panic!("{problems}"));
    // tap4 does not exist.
    compile(&topology, &around(&[("tap1", 11), ("tap2", 12), ("eth0", 2)]), ids).unwrap()
}

fn station(compiled: &Compiled, ids: &mut Identities, network: &str, address: &str) -> Option<Station> {
    let network = ids.id(NAME_NETWORK, network).unwrap();
    let ip = Ip::from(address.parse::<IpAddr>().unwrap());
    compiled.image.addresses.get(&AddressKey::new(0, network, ip)).copied()
}

#[test]
fn stations_are_where_the_document_says() {
    let mut ids = Identities::default();
    let out = compiled(DOCUMENT, &mut ids);
    let b = ids.id(NAME_NODE, "b").unwrap();
    let place = |ids: &mut Identities, network: &str, address: &str| {
        station(&out, ids, network, address).map(|station| (station.kind, station.place, station.at))
    };
    assert_eq!(place(&mut ids, "web", "10.0.1.11"), Some((STATION_PORT, PLACE_LOCAL, 11)));
    assert_eq!(place(&mut ids, "web", "fd00:1::b"), Some((STATION_PORT, PLACE_LOCAL, 11)));
    assert_eq!(
        place(&mut ids, "web", "fe80::ff:fe00:10b"),
        Some((STATION_PORT, PLACE_LOCAL, 11)),
        "its link-local"
    );
    assert_eq!(place(&mut ids, "db", "10.0.2.12"), Some((STATION_PORT, PLACE_REMOTE, b)));
    assert_eq!(
        place(&mut ids, "db", "10.0.2.13"),
        Some((STATION_PORT, PLACE_UNPLUGGED, 0)),
        "tap4 is missing"
    );
    assert_eq!(place(&mut ids, "db", "10.0.2.14"), Some((STATION_PORT, PLACE_UNBOUND, 0)));
    assert_eq!(place(&mut ids, "web", "10.0.1.1"), Some((STATION_ROUTER, PLACE_EVERYWHERE, 0)));
    assert_eq!(place(&mut ids, "web", "10.0.1.99"), None);
    assert_eq!(out.local_ports.len(), 3);
}

#[test]
fn an_ipv6_range_holds_no_ipv4() {
    let ranges = |text: &str| without_mapped(text.parse().unwrap());
    assert_eq!(ranges("10.0.0.0/8"), ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(ranges("fd00::/8"), ["fd00::/8".parse().unwrap()]);
    assert_eq!(ranges("::ffff:10.0.0.0/104"), []);
    assert_eq!(ranges("::ffff:0:0/96"), []);
    for (text, count) in [("::/0", 96), ("::/64", 32), ("::/80", 16), ("::fffe:0:0/95", 1)] {
        let whole: IpNet = text.parse().unwrap();
        let parts = ranges(text);
        assert_eq!(parts.len(), count, "{text}: {parts:?}");
        for address in
            ["::", "::1", "8000::", "fd00::7", "::fffe:1:1", "::1:0:0:0", "::ffff:10.0.0.1", "::ffff:0:0"]
        {
            let address: IpAddr = address.parse().unwrap();
            let IpAddr::V6(v6) = address else { unreachable!() };
            let holding = parts.iter().filter(|part| part.contains(&address)).count();
            let expected = whole.contains(&address) && v6.to_ipv4_mapped().is_none();
            assert_eq!(holding, usize::from(expected), "{address} in {text}");
        }
    }
    // A pair for all of IPv6 lets nobody send from any IPv4 address, and a default route leads no IPv4 anywhere.
    let text = DOCUMENT
        .replace("{ ip: 10.0.1.100 }", "{ ip: \"::/0\" }")
        .replace("routes:\n", "routes:\n      - { destination: \"::/0\", nexthop: \"fd00:1::b\" }\n");
    let mut ids = Identities::default();
    let out = compiled(&text, &mut ids);
    let mut tables = MemoryTables::default();
    tables.image = out.image;
    let vm1 = ids.id(NAME_PORT, "vm1").unwrap();
    let allowed = |address: &str| {
        let ip = Ip::from(address.parse::<IpAddr>().unwrap());
        tables.allowed(&AllowedKey::lookup(0, vm1, [2, 0, 0, 0, 1, 0x0b], ip))
    };
    assert!(allowed("2001:db8::1") && allowed("10.0.1.11") && !allowed("10.0.1.12"));
    let r1 = ids.id(NAME_ROUTER, "r1").unwrap();
    let route = |address: &str| {
        let ip = Ip::from(address.parse::<IpAddr>().unwrap());
        tables.route(&RouteKey::lookup(0, r1, ip)).map(|route| route.kind)
    };
    assert_eq!(route("2001:db8::1"), Some(ROUTE_VIA));
    assert_eq!(route("8.8.8.8"), Some(ROUTE_NONE));
    assert_eq!(route("10.66.1.1"), Some(ROUTE_BLACKHOLE));
    // Where nothing is around IPv4, nothing is said of it.
    let out = compiled(DOCUMENT, &mut ids);
    assert!(out.image.routes.values().all(|route| route.kind != ROUTE_NONE));
}

#[test]
fn only_what_the_node_needs_is_compiled() {
    let mut ids = Identities::default();
    let out = compiled(DOCUMENT, &mut ids);
    let vnis: Vec<_> = out.image.vnis.keys().map(|key| key.vni.id()).collect();
    assert_eq!(vnis, [1001, 1002], "network elsewhere has no port here and no router leads there");
}

#[test]
fn the_overlay_takes_fifty_bytes_of_the_mtu() {
    let out = compiled(DOCUMENT, &mut Identities::default());
    assert!(out.image.networks.values().all(|network| network.mtu == 1450));
    let smaller = DOCUMENT.replace("vni: 1001", "vni: 1001\n    mtu: 1300");
    let out = compiled(&smaller, &mut Identities::default());
    assert!(out.image.networks.values().any(|network| network.mtu == 1300));
}

#[test]
fn nothing_is_renumbered_when_objects_come_and_go() {
    let mut ids = Identities::default();
    let before = compiled(DOCUMENT, &mut ids);
    let port = "  - { name: aaa, network: web, mac: \"02:00:00:00:01:aa\", fixed_ips: [10.0.1.50], node: b, interface: tap7 }\n";
    let more = DOCUMENT.replace("ports:\n", &format!("ports:\n{port}"));
    let after = compiled(&more, &mut ids);
    for (key, station) in &before.image.addresses {
        assert_eq!(after.image.addresses.get(key), Some(station));
    }
    assert_eq!(before.image.routes, after.image.routes);
}

#[test]
fn flood_lists_are_chained_and_complete() {
    let mut ids = Identities::default();
    // Without the pairs, whose claims nodes that only route to them must hear.
    let start = DOCUMENT.find(",\n      allowed_address_pairs").unwrap();
    let end = start + DOCUMENT[start..].find(" }\n").unwrap();
    let out = compiled(&DOCUMENT.replace(&DOCUMENT[start..end], ""), &mut ids);
    let web = ids.id(NAME_NETWORK, "web").unwrap();
    let db = ids.id(NAME_NETWORK, "db").unwrap();
    let walk = |out: &Compiled, network: u32, first: u32| {
        let (mut cursor, mut found) = (first, Vec::new());
        while let Some(flood) = out.image.floods.get(&FloodKey { network: Scoped::new(0, network), cursor }) {
            found.push(flood.at);
            cursor = flood.next;
        }
        assert!(found.is_empty() || cursor == FLOOD_END);
        found
    };
    assert_eq!(walk(&out, web, FLOOD_LOCAL), [11, 12]);
    assert_eq!(walk(&out, web, FLOOD_REMOTE), [] as [u32; 0], "no port of web is elsewhere");
    let b = ids.id(NAME_NODE, "b").unwrap();
    assert_eq!(walk(&out, db, FLOOD_REMOTE), [b]);
    let out = compiled(DOCUMENT, &mut ids);
    assert_eq!(walk(&out, web, FLOOD_REMOTE), [b], "node b routes to web");
}

fn udp(src_mac: [u8; 6], dst_mac: [u8; 6], src: [u8; 4], dst: [u8; 4]) -> MemoryPacket {
    let builder = etherparse::PacketBuilder::ethernet2(src_mac, dst_mac).ipv4(src, dst, 64).udp(4000, 53);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"hello").unwrap();
    MemoryPacket::new(&frame)
}

/// The compiled image decides packets as the document says.
#[test]
fn packets_go_where_the_document_says() {
    let mut ids = Identities::default();
    let out = compiled(DOCUMENT, &mut ids);
    let b = ids.id(NAME_NODE, "b").unwrap();
    let mut tables = MemoryTables::default();
    tables.image = out.image.clone();
    tables.commit = Commit { epoch: 2, vtep: Be32::new(0xc000_0201), ..Commit::default() };
    let way = Underlay { flags: UNDERLAY_ROUTED | UNDERLAY_RESOLVED, ifindex: 2, ..Underlay::default() };
    tables.underlay.insert(b, way);
    let gateway = derive_router_mac("r1", "web").0;
    let vm1 = [2, 0, 0, 0, 1, 0x0b];
    let to = |dst: [u8; 4]| run(&tables, Entry::Port(11), udp(vm1, gateway, [10, 0, 1, 11], dst));
    let sent_to = |verdict: Verdict| match verdict {
        Verdict::Sent { ifindex, frame } => Some((ifindex, frame.len())),
        _ => None,
    };
    let local = |dst: [u8; 4]| sent_to(to(dst)).map(|(ifindex, _)| ifindex);
    assert_eq!(local([10, 0, 1, 12]), Some(12), "through the router and back to web");
    assert_eq!(local([10, 0, 2, 12]), Some(2), "to the other node");
    assert_eq!(local([10, 99, 3, 4]), Some(2), "by the static route");
    assert!(matches!(to([10, 66, 0, 1]), Verdict::Dropped(_)), "blackhole");
    assert!(matches!(to([10, 55, 0, 1]), Verdict::Answered { .. }), "no route");
    // An allowed address pair with a hardware address of its own, and one without.
    let pair =
        |mac: [u8; 6], src: [u8; 4]| run(&tables, Entry::Port(11), udp(mac, gateway, src, [10, 0, 1, 12]));
    assert!(sent_to(pair([2, 0, 0, 0, 1, 0x77], [10, 77, 9, 9])).is_some());
    assert!(sent_to(pair(vm1, [10, 0, 1, 100])).is_some());
    assert!(sent_to(pair(vm1, [10, 77, 9, 9])).is_none(), "the pair has another hardware address");
    assert!(sent_to(pair(vm1, [10, 0, 1, 101])).is_none());
    // Port security off.
    let spoofed = udp([2, 9, 9, 9, 9, 9], gateway, [1, 2, 3, 4], [10, 0, 2, 12]);
    assert!(sent_to(run(&tables, Entry::Port(12), spoofed)).is_some());
}
