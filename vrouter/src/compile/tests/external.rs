//! What routers are to the outside, as several nodes see it.

use std::collections::BTreeMap;

use super::*;
use crate::topology::derive_external_mac;

const DOCUMENT: &str = r#"
networks:
  - name: web
    subnets:
      - { name: web4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }
      - { name: web6, cidr: "fd00:1::/64", gateway: "fd00:1::1" }
  - name: db
    subnets: [{ name: db4, cidr: 10.0.2.0/24, gateway: 10.0.2.1 }]
  - name: lab
    subnets: [{ name: lab4, cidr: 10.0.3.0/24, gateway: 10.0.3.1 }]
  - name: public
    vni: 900
    external: true
    subnets:
      - { name: public4, cidr: 203.0.113.0/24, gateway: 203.0.113.1 }
      - { name: public6, cidr: "2001:db8::/64", gateway: "2001:db8::1" }
routers:
  - name: r1
    interfaces: [web4, web6, db4]
    gateway: { network: public, address: [203.0.113.10, "2001:db8::10"] }
    routes: [{ destination: 198.51.100.0/24, nexthop: 203.0.113.7 }]
  - name: r2
    interfaces: [lab4]
    gateway: { network: public, address: 203.0.113.11 }
    routes: [{ destination: 0.0.0.0/0, nexthop: unreachable }]
ports:
  - { name: vm1, network: web, mac: "02:00:00:00:01:0b", fixed_ips: [10.0.1.11, "fd00:1::b"], node: a, interface: tap1 }
  - { name: vm2, network: web, mac: "02:00:00:00:01:0c", fixed_ips: [10.0.1.12, 10.0.1.13], node: b, interface: tap2 }
  - { name: vm3, network: lab, mac: "02:00:00:00:03:0b", fixed_ips: [10.0.3.11], node: b, interface: tap3 }
  - { name: idle, network: web, mac: "02:00:00:00:01:0e", fixed_ips: [10.0.1.14] }
floating_ips:
  - { address: 203.0.113.50, port: vm1 }
  - { address: 203.0.113.51, port: vm2, fixed_ip: 10.0.1.13 }
  - { address: 203.0.113.52, port: vm3 }
  - { address: 203.0.113.53, port: idle }
  - { address: "2001:db8::50", port: vm1 }
  - address: 203.0.113.60
    port_forwardings:
      - { protocol: tcp, external_port: 2222, port: vm1, internal_port: 22 }
      - { protocol: udp, external_port: 2222, port: vm2, internal_port: 53 }
      - { protocol: tcp, external_port: 80, port: idle, internal_port: 80 }
  - { address: 203.0.113.61 }
nodes:
  - { name: a, vtep: 192.0.2.1 }
  - { name: b, vtep: 192.0.2.2 }
  - { name: c, vtep: 192.0.2.3 }
"#;
const NODES: [&str; 3] = ["a", "b", "c"];

/// A node's tables, and the numbers in them.
struct Node {
    name: &'static str,
    out: Compiled,
    ids: Identities,
}

impl Node {
    /// With an interface on the external network, if it has a number.
    fn new(document: &str, name: &'static str, external: Option<u32>) -> Self {
        Self::alive(document, name, external, Liveness::default())
    }

    /// The same, with what is known of others.
    fn alive(document: &str, name: &'static str, external: Option<u32>, liveness: Liveness) -> Self {
        let topology = topology::parse("test.yaml", document).unwrap_or_else(|problems| panic!("{problems}"));
        let interface = |ifindex| ExternalInterface { ifindex: Some(ifindex), mtu: Some(1500), mac: None };
        let around = Surroundings {
            metadata: false,
            node: name.to_owned(),
            interfaces: HashMap::from(
                [("tap1", 11), ("tap3", 13)]
                    .map(|(name, index)| (name.to_owned(), Interface { index, peer: false })),
            ),
            underlay_mtu: 1500,
            externals: external
                .map(|ifindex| ("public".to_owned(), interface(ifindex)))
                .into_iter()
                .collect(),
            liveness,
            shares: None,
            learned: Default::default(),
        };
        let mut ids = Identities::default();
        // Numbers are each node's own: start elsewhere on each.
        for i in 0..name.as_bytes()[0] {
            for kind in [NAME_NETWORK, NAME_ROUTER, NAME_PORT, NAME_NODE] {
                ids.id(kind, &format!("other {i}")).unwrap();
            }
        }
        let out = compile(&topology, &around, &mut ids).unwrap();
        Self { name, out, ids }
    }

    fn id(&self, kind: u32, name: &str) -> u32 {
        self.ids.clone().id(kind, name).unwrap()
    }

    fn address(&self, address: &str) -> Option<Station> {
        let key = AddressKey::new(0, self.id(NAME_NETWORK, "public"), ip(address));
        self.out.image.addresses.get(&key).copied()
    }

    /// Kind, place, the node if it is another, and the hardware address.
    fn place(&self, address: &str) -> Option<(u8, u8, Option<String>, [u8; 6])> {
        let Station { mac, kind, place, at, .. } = self.address(address)?;
        Some((kind, place, self.ids.name(NAME_NODE, at).map(str::to_owned), mac))
    }

    fn leg(&self, router: &str) -> Option<RouterLeg> {
        let key = RouterLegKey {
            router: Scoped::new(0, self.id(NAME_ROUTER, router)),
            network: self.id(NAME_NETWORK, "public"),
        };
        self.out.image.router_legs.get(&key).copied()
    }

    fn nat(&self, address: &str, port: u16, proto: u8) -> Option<Nat> {
        let network = Scoped::new(0, self.id(NAME_NETWORK, "public"));
        let key =
            NatKey { network, ip: ip(address), port: vrouter_common::addr::Be16::new(port), proto, zero: 0 };
        self.out.image.nat.get(&key).copied()
    }

    fn route(&self, router: &str, destination: &str) -> Option<Route> {
        let mut tables = MemoryTables::default();
        tables.image = self.out.image.clone();
        tables.route(&RouteKey::lookup(0, self.id(NAME_ROUTER, router), ip(destination))).copied()
    }

    /// The ports this node may use of a router's address.
    fn blocks(&self, router: &str) -> Vec<SnatBlock> {
        let router = self.id(NAME_ROUTER, router);
        let all = self.out.image.snat_blocks.iter().filter(|(key, _)| key.router.id() == router);
        let all: Vec<(u32, SnatBlock)> = all.map(|(key, block)| (key.slot, *block)).collect();
        assert!(all.iter().enumerate().all(|(i, (slot, _))| *slot == i as u32), "slots are counted from 0");
        all.into_iter().map(|(_, block)| block).collect()
    }

    /// Whose the others' blocks of an address are, by block.
    fn owners(&self, address: &str) -> BTreeMap<u32, String> {
        let all = self.out.image.snat_owners.iter();
        let of_address = all.filter(|(key, _)| Ip::v4(key.ip) == ip(address));
        of_address
            .map(|(key, owner)| {
                let node = self.ids.name(NAME_NODE, owner.node).unwrap().to_owned();
                assert_eq!(owner.mac, mac(router_of(address), &node));
                (key.block, node)
            })
            .collect()
    }
}

fn ip(address: &str) -> Ip {
    Ip::from(address.parse::<IpAddr>().unwrap())
}

fn mac(router: &str, node: &str) -> [u8; 6] {
    derive_external_mac(router, "public", node).0
}

fn router_of(address: &str) -> &'static str {
    if address == "203.0.113.11" { "r2" } else { "r1" }
}

fn nodes(document: &str, external: Option<u32>) -> [Node; 3] {
    NODES.map(|name| Node::new(document, name, external))
}

/// The one node that answers for a router; the others know which.
fn owner(nodes: &[Node], router: &str, address: &str, kind: u8) -> String {
    let here = |node: &&Node| node.address(address).is_some_and(|station| station.place == PLACE_EVERYWHERE);
    let owners: Vec<&str> = nodes.iter().filter(here).map(|node| node.name).collect();
    let [owner] = owners[..] else { panic!("{address} is answered for by {owners:?}") };
    for node in nodes {
        let expected = if node.name == owner {
            (kind, PLACE_EVERYWHERE, None, mac(router, owner))
        } else {
            (kind, PLACE_REMOTE, Some(owner.to_owned()), mac(router, owner))
        };
        assert_eq!(node.place(address), Some(expected), "{address} seen from {}", node.name);
        let station = node.address(address).unwrap();
        assert_eq!(node.ids.name(NAME_ROUTER, station.owner), Some(router));
    }
    owner.to_owned()
}

/// Any of the nodes may answer for an address of a router, with the virtual hardware address.
#[track_caller]
fn shared(nodes: &[Node], router: &str, address: &str, kind: u8) {
    let topology = topology::parse("test.yaml", DOCUMENT).unwrap();
    let vrid = crate::topology::Vrids::of(&topology).get(router).unwrap();
    let mac = [0, 0, 0x5e, 0, if address.contains(':') { 2 } else { 1 }, vrid];
    for node in nodes {
        let owner = node.id(NAME_ROUTER, router);
        let expected = Station { mac, kind, place: PLACE_SHARED, at: u32::from(vrid), owner };
        assert_eq!(node.address(address), Some(expected), "{address} seen from {}", node.name);
    }
}

#[test]
fn an_address_is_answered_for_by_one_node() {
    let all = nodes(DOCUMENT, Some(5));
    // Which of the gateways it is they agree on when they run.
    shared(&all, "r1", "203.0.113.10", STATION_ROUTER);
    shared(&all, "r1", "2001:db8::10", STATION_ROUTER);
    shared(&all, "r1", "203.0.113.60", STATION_FLOATING);
    shared(&all, "r2", "203.0.113.11", STATION_ROUTER);
    for node in &all {
        for router in ["r1", "r2"] {
            let flags = LEG_EXTERNAL | LEG_SNAT | LEG_SHARED;
            assert_eq!(node.leg(router).unwrap().flags, flags, "{router} at {}: not the master", node.name);
        }
    }
    assert_eq!(owner(&all, "r1", "203.0.113.50", STATION_FLOATING), "a", "where vm1 is");
    assert_eq!(owner(&all, "r1", "2001:db8::50", STATION_FLOATING), "a");
    assert_eq!(owner(&all, "r1", "203.0.113.51", STATION_FLOATING), "b");
    assert_eq!(owner(&all, "r2", "203.0.113.52", STATION_FLOATING), "b");
    for node in &all {
        // Of idle, which is bound nowhere: whoever holds its address.
        let expected = (STATION_FLOATING, PLACE_LEARNED, None, mac("r1", node.name));
        assert_eq!(node.place("203.0.113.53"), Some(expected));
        assert_eq!(node.address("203.0.113.61"), None, "it is bound to nothing");
    }
}

#[test]
fn only_gateway_nodes_own_if_there_are_any() {
    for gateway in NODES {
        let line = format!("name: {gateway}, ");
        let document = DOCUMENT.replace(&line, &format!("{line}gateway: true, "));
        let all = nodes(&document, Some(5));
        for (router, address) in [("r1", "203.0.113.10"), ("r2", "203.0.113.11")] {
            assert_eq!(owner(&all, router, address, STATION_ROUTER), gateway);
        }
        assert_eq!(owner(&all, "r1", "203.0.113.50", STATION_FLOATING), "a", "floating ips do not mind");
        // Ports for SNAT are everybody's.
        assert!(all.iter().all(|node| !node.blocks("r1").is_empty()));
    }
}

#[test]
fn a_leg_outside_is_each_nodes_own() {
    let all = nodes(DOCUMENT, Some(5));
    for node in &all {
        let own = mac("r1", node.name);
        let leg = node.leg("r1").unwrap();
        assert_eq!((leg.mac, leg.vni, leg.mtu), (own, 900, 1500));
        assert_eq!((leg.v4, leg.v6), (ip("203.0.113.10"), ip("2001:db8::10")));
        assert_eq!(leg.snat_blocks as usize, node.blocks("r1").len());
        let r2 = node.leg("r2").unwrap();
        assert_eq!(r2.v6, Ip::link_local_of(mac("r2", node.name)), "it has no IPv6 address");
        let network = node.id(NAME_NETWORK, "public");
        let router = node.id(NAME_ROUTER, "r1");
        let here = Station { mac: own, kind: STATION_ROUTER, place: PLACE_EVERYWHERE, at: 0, owner: router };
        assert_eq!(node.out.image.fdb.get(&FdbKey::new(0, network, own)), Some(&here));
        assert_eq!(leg.tunnel_mac, derive_router_mac("r1", "public").0);
        assert_eq!(node.out.image.fdb.get(&FdbKey::new(0, network, leg.tunnel_mac)), Some(&here));
        let link_local = AddressKey::new(0, network, Ip::link_local_of(own));
        assert_eq!(node.out.image.addresses.get(&link_local), Some(&here));
        let value = node.out.image.networks[&NetworkKey { network: Scoped::new(0, network) }];
        assert_eq!((value.flags, value.vni, value.mtu), (NETWORK_EXTERNAL, 900, 1500));
        assert_eq!(node.out.externals, [External { ifindex: 5, vni: 900, flags: 0 }]);
        assert_eq!(node.out.overlay_mtu, 1450);
    }
    let macs: BTreeSet<_> = all.iter().map(|node| node.leg("r1").unwrap().mac).collect();
    assert_eq!(macs.len(), 3);
}

#[test]
fn routes_lead_outside() {
    let node = Node::new(DOCUMENT, "a", Some(5));
    let network = node.id(NAME_NETWORK, "public");
    let via = |nexthop| Some(Route { kind: ROUTE_VIA, network, nexthop: ip(nexthop) });
    let plain = |kind, network| Some(Route { kind, network, nexthop: Ip::UNSPECIFIED });
    assert_eq!(node.route("r1", "8.8.8.8"), via("203.0.113.1"));
    assert_eq!(node.route("r1", "2001:db8:9::1"), via("2001:db8::1"));
    assert_eq!(node.route("r1", "198.51.100.9"), via("203.0.113.7"), "a static route outside");
    assert_eq!(node.route("r1", "203.0.113.99"), plain(ROUTE_CONNECTED, network));
    assert_eq!(node.route("r1", "2001:db8::99"), plain(ROUTE_CONNECTED, network));
    assert_eq!(node.route("r1", "203.0.113.10"), plain(ROUTE_SELF, network));
    assert_eq!(
        node.route("r1", "203.0.113.60"),
        plain(ROUTE_SELF, network),
        "what is not forwarded is the router's"
    );
    assert_eq!(node.route("r1", "203.0.113.50"), plain(ROUTE_CONNECTED, network), "a floating ip");
    assert_eq!(node.route("r1", "203.0.113.255"), plain(ROUTE_BROADCAST, network));
    let web = node.id(NAME_NETWORK, "web");
    assert_eq!(node.route("r1", "10.0.1.99"), plain(ROUTE_CONNECTED, web));
    // What the document says of everything wins; without an IPv6 address outside there is no IPv6 outside.
    assert_eq!(node.route("r2", "8.8.8.8"), plain(ROUTE_UNREACHABLE, 0));
    assert_eq!(node.route("r2", "2001:db8:9::1"), None);
    assert_eq!(node.route("r2", "2001:db8::99"), None);
    // A subnet without a gateway is the end of the world.
    let closed = DOCUMENT.replace(", gateway: 203.0.113.1 }", " }");
    let none = plain(ROUTE_NONE, 0);
    assert_eq!(Node::new(&closed, "a", Some(5)).route("r1", "8.8.8.8"), none, "IPv6's way is not IPv4's");
}

#[test]
fn addresses_outside_lead_to_workloads() {
    let [a, b, c] = nodes(DOCUMENT, Some(5));
    for node in [&a, &b, &c] {
        let check = |address, port, proto, at: &str, router, vm, inside, inside_port: u16| {
            let nat = node.nat(address, port, proto).unwrap_or_else(|| panic!("{address} at {}", node.name));
            let expected = Nat {
                inside: ip(inside),
                router: node.id(NAME_ROUTER, router),
                port: node.id(NAME_PORT, vm),
                node: match at {
                    "" => NODE_LEARNED,
                    _ if node.name == at => 0,
                    _ => node.id(NAME_NODE, at),
                },
                inside_network: node.id(NAME_NETWORK, if vm == "vm3" { "lab" } else { "web" }),
                inside_port: vrouter_common::addr::Be16::new(inside_port),
                mac: if at.is_empty() { derive_router_mac(router, "public").0 } else { mac(router, at) },
            };
            assert_eq!(nat, expected, "{address} at {}", node.name);
        };
        check("203.0.113.50", 0, 0, "a", "r1", "vm1", "10.0.1.11", 0);
        check("2001:db8::50", 0, 0, "a", "r1", "vm1", "fd00:1::b", 0);
        check("203.0.113.51", 0, 0, "b", "r1", "vm2", "10.0.1.13", 0);
        check("203.0.113.52", 0, 0, "b", "r2", "vm3", "10.0.3.11", 0);
        check("203.0.113.60", 2222, 6, "a", "r1", "vm1", "10.0.1.11", 22);
        check("203.0.113.60", 2222, 17, "b", "r1", "vm2", "10.0.1.12", 53);
        // Bound nowhere: whoever holds the address.
        check("203.0.113.60", 80, 6, "", "r1", "idle", "10.0.1.14", 80);
        check("203.0.113.53", 0, 0, "", "r1", "idle", "10.0.1.14", 0);
        assert_eq!(node.out.image.nat.len(), 8);
        let floating = |router: &str, inside: &str| {
            let key = FloatingKey { router: Scoped::new(0, node.id(NAME_ROUTER, router)), ip: ip(inside) };
            node.out.image.floating.get(&key).map(|floating| floating.ip)
        };
        assert_eq!(floating("r1", "10.0.1.11"), Some(ip("203.0.113.50")));
        assert_eq!(floating("r1", "10.0.1.12"), None, "the floating ip is of the other address");
        assert_eq!(floating("r1", "10.0.1.13"), Some(ip("203.0.113.51")));
        assert_eq!(floating("r1", "fd00:1::b"), Some(ip("2001:db8::50")));
        assert_eq!(floating("r2", "10.0.3.11"), Some(ip("203.0.113.52")));
        assert_eq!(floating("r1", "10.0.1.14"), Some(ip("203.0.113.53")));
    }
}

/// Every port of an address is exactly one node's, and all agree whose.
fn assert_shared(all: &[Node], router: &str, address: &str, first: u16, last: u16) {
    for port in 0..=u16::MAX {
        let block = u32::from(port) / SNAT_BLOCK;
        let has =
            |node: &&Node| node.blocks(router).iter().any(|block| (block.first..=block.last).contains(&port));
        // Every node's list is long: look at the ends of blocks and of the range alone.
        let edges = [0, 1, SNAT_BLOCK - 1].contains(&(u32::from(port) % SNAT_BLOCK));
        let near = |edge: u16| port.abs_diff(edge) <= 1;
        if !edges && !near(first) && !near(last) {
            continue;
        }
        let holders: Vec<&str> = all.iter().filter(has).map(|node| node.name).collect();
        if !(first..=last).contains(&port) {
            assert!(holders.is_empty(), "{port} is {holders:?}'s");
            continue;
        }
        let [holder] = holders[..] else { panic!("{port} is {holders:?}'s") };
        for node in all {
            let said = node.owners(address).get(&block).cloned();
            let expected = (node.name != holder).then(|| holder.to_owned());
            assert_eq!(said, expected, "block {block} seen from {}", node.name);
        }
    }
}

#[test]
fn every_port_of_an_address_is_one_nodes() {
    let all = nodes(DOCUMENT, Some(5));
    assert_shared(&all, "r1", "203.0.113.10", 1024, 65535);
    assert_shared(&all, "r2", "203.0.113.11", 1024, 65535);
    for node in &all {
        assert!(node.blocks("r1").len() > 10, "63 blocks for three: {}", node.blocks("r1").len());
        assert!(node.out.warnings.is_empty());
    }
}

#[test]
fn ports_for_snat_are_those_of_the_range() {
    let with = |range: &str| {
        DOCUMENT.replace("\"2001:db8::10\"] }", &format!("\"2001:db8::10\"], snat_ports: {range} }}"))
    };
    assert_shared(&nodes(&with("50000-50999"), Some(5)), "r1", "203.0.113.10", 50000, 50999);
    assert_shared(&nodes(&with("1-65535"), Some(5)), "r1", "203.0.113.10", 1, 65535);
    let all = nodes(&with("7"), Some(5));
    assert_shared(&all, "r1", "203.0.113.10", 7, 7);
    for node in &all {
        let warned = node.out.warnings.iter().any(|warning| warning.contains("router r1: "));
        assert_eq!(warned, node.blocks("r1").is_empty(), "{}: {:?}", node.name, node.out.warnings);
    }
    // Without SNAT nobody has any.
    let off = DOCUMENT.replace("\"2001:db8::10\"] }", "\"2001:db8::10\"], snat: false }");
    for node in nodes(&off, Some(5)) {
        assert_eq!(node.leg("r1").unwrap().flags & LEG_SNAT, 0);
        assert!(node.blocks("r1").is_empty() && node.owners("203.0.113.10").is_empty());
    }
    let v6_only = DOCUMENT
        .replace("[203.0.113.10, \"2001:db8::10\"]", "\"2001:db8::10\"")
        .split("floating_ips:")
        .next()
        .unwrap()
        .replace("    routes: [{ destination: 198.51.100.0/24, nexthop: 203.0.113.7 }]\n", "")
        + "nodes: [{ name: a, vtep: 192.0.2.1 }]\n";
    let v6_only = v6_only.replace("node: b", "node: a");
    let node = Node::new(&v6_only, "a", Some(5));
    assert_eq!(node.leg("r1").unwrap().flags & LEG_SNAT, 0, "only IPv4 shares an address");
    assert_eq!(node.leg("r1").unwrap().v4, Ip::UNSPECIFIED);
    assert_eq!(node.route("r1", "203.0.113.99").map(|route| route.kind), Some(ROUTE_NONE));
}

#[test]
fn a_node_compiles_what_it_speaks_for() {
    let has = |node: &Node, router: &str| node.leg(router).is_some();
    let all = nodes(DOCUMENT, None);
    for node in &all {
        // All are gateways.
        assert!(has(node, "r1") && has(node, "r2"), "{}", node.name);
        assert!(node.out.externals.is_empty());
        // With the router come the networks behind it, and who is there.
        let db = NetworkKey { network: Scoped::new(0, node.id(NAME_NETWORK, "db")) };
        assert_eq!(node.out.image.networks.contains_key(&db), has(node, "r1"), "{}", node.name);
    }
    // If one alone is, others have the routers of their ports.
    let document = DOCUMENT.replace("{ name: a, vtep", "{ name: a, gateway: true, vtep");
    for node in &nodes(&document, None) {
        let has_port = |router: &str| matches!((node.name, router), ("a" | "b", "r1") | ("b", "r2"));
        for router in ["r1", "r2"] {
            assert_eq!(has(node, router), has_port(router) || node.name == "a", "{router} at {}", node.name);
        }
    }
    // An interface outside makes a node speak for every router there.
    let node = Node::new(DOCUMENT, "c", Some(5));
    assert!(has(&node, "r1") && has(&node, "r2"));
    let key = AddressKey::new(0, node.id(NAME_NETWORK, "lab"), ip("10.0.3.11"));
    let b = node.id(NAME_NODE, "b");
    assert_eq!(node.out.image.addresses.get(&key).map(|at| (at.place, at.at)), Some((PLACE_REMOTE, b)));
}

#[test]
fn an_external_interface_may_be_missing() {
    let topology = topology::parse("test.yaml", DOCUMENT).unwrap();
    let mut around = around(&[]);
    around.externals.insert("public".to_owned(), ExternalInterface::default());
    let mut ids = Identities::default();
    let out = compile(&topology, &around, &mut ids).unwrap();
    assert!(out.externals.is_empty());
    let public = NetworkKey { network: Scoped::new(0, ids.id(NAME_NETWORK, "public").unwrap()) };
    assert_eq!(out.image.networks[&public].mtu, 1500, "as Ethernet has it");
    let mut smaller = around.clone();
    smaller
        .externals
        .insert("public".to_owned(), ExternalInterface { ifindex: Some(3), mtu: Some(1400), mac: None });
    let out = compile(&topology, &smaller, &mut ids).unwrap();
    assert_eq!(out.image.networks[&public].mtu, 1400);
    let text = DOCUMENT.replace("external: true", "external: true\n    mtu: 1300");
    let topology = topology::parse("test.yaml", &text).unwrap();
    let out = compile(&topology, &smaller, &mut ids).unwrap();
    assert_eq!(out.image.networks[&public].mtu, 1300);
}

// ---- gateways ----

/// Node b is on no external network; a and c are gateways.
fn with_gateways() -> String {
    DOCUMENT
        .replace("{ name: a, vtep", "{ name: a, gateway: true, vtep")
        .replace("{ name: b, vtep", "{ name: b, external_networks: [], vtep")
        .replace("{ name: c, vtep", "{ name: c, gateway: true, vtep")
}

fn dead(names: &[&str]) -> Liveness {
    let dead_gateways = names.iter().map(|name| ("public".to_owned(), (*name).to_owned())).collect();
    Liveness { dead_gateways, ..Liveness::default() }
}

impl Node {
    /// The nodes that have the slots of the external network.
    fn slots(&self) -> Vec<String> {
        let network = Scoped::new(0, self.id(NAME_NETWORK, "public"));
        let of = |(key, &node): (&GatewayKey, &u32)| {
            assert_eq!(key.network, network);
            self.ids.name(NAME_NODE, node).unwrap().to_owned()
        };
        self.out.image.gateways.iter().map(of).collect()
    }
}

#[test]
fn a_node_without_an_interface_uses_the_gateways_that_live() {
    let document = with_gateways();
    let node = Node::new(&document, "b", None);
    let all = node.slots();
    assert_eq!(all.len(), SLOTS as usize);
    let of_a = all.iter().filter(|name| *name == "a").count();
    assert!((16..48).contains(&of_a) && all.iter().all(|name| name != "b"), "{all:?}");
    let peers: Vec<&str> = node.out.gateways.iter().map(|peer| peer.node.as_str()).collect();
    assert_eq!(peers, ["a", "c"]);
    // One dies: its slots go to the other, no others move; both dead: as if both lived.
    let without = Node::alive(&document, "b", None, dead(&["c"]));
    assert!(without.slots().iter().all(|name| name == "a"));
    assert_eq!(Node::alive(&document, "b", None, dead(&["a", "c"])).slots(), all);
    // Who has an interface needs nobody; who is to have one and has none, needs the others, and says so.
    let gateway = Node::new(&document, "a", Some(5));
    assert!(gateway.slots().is_empty() && gateway.out.gateways.is_empty());
    assert_eq!(gateway.out.carried, BTreeMap::from([("public".to_owned(), 900)]));
    let blind = Node::new(&document, "a", None);
    assert!(blind.slots().iter().all(|name| name == "c"));
    assert!(blind.out.carried.is_empty());
    assert!(
        blind.out.warnings.iter().any(|warning| warning.contains("no interface")),
        "{:?}",
        blind.out.warnings
    );
    let surprised = Node::new(&document, "b", Some(5));
    assert!(surprised.out.warnings.iter().any(|warning| warning.contains("external_networks")));
}

#[test]
fn what_is_behind_a_node_without_an_interface_is_answered_for_by_the_gateways() {
    let document = with_gateways();
    let all = nodes(&document, Some(5));
    let carriers = [&all[0], &all[2]];
    // vm2 is on b, vm1 on a.
    for node in carriers {
        assert_eq!(node.address("203.0.113.51").unwrap().place, PLACE_SHARED);
        let nat = node.nat("203.0.113.51", 0, 0).unwrap();
        assert_eq!(node.ids.name(NAME_NODE, nat.node), Some("b"), "it is translated there");
    }
    assert_eq!(all[0].address("203.0.113.50").unwrap().place, PLACE_EVERYWHERE);
    assert_eq!(all[2].address("203.0.113.50").unwrap().place, PLACE_REMOTE);
    // Seen from b: here, where it translates; the router's address is at a gateway that lives.
    let b = Node::new(&document, "b", None);
    assert_eq!(b.address("203.0.113.51").unwrap().place, PLACE_EVERYWHERE);
    let at = |node: &Node| node.place("203.0.113.10").unwrap().2.unwrap();
    let first = at(&b);
    let other = if first == "a" { "c" } else { "a" };
    assert_eq!(at(&Node::alive(&document, "b", None, dead(&[&first]))), other);
    assert_eq!(at(&Node::alive(&document, "b", None, dead(&["a", "c"]))), first);
}

#[test]
fn virtual_routers_have_a_priority_for_each_gateway() {
    let document = DOCUMENT.replace(
        "2001:db8::10\"] }",
        "2001:db8::10\"], vrrp: { vrid: 9, interval_ms: 30, preempt: false } }",
    );
    let all = nodes(&document, Some(5));
    let mut priorities = Vec::new();
    for node in &all {
        let of_r1: Vec<_> = node.out.virtual_routers.iter().filter(|it| it.router == "r1").collect();
        let [v4, v6] = of_r1[..] else { panic!("{of_r1:?}") };
        assert_eq!((v4.vrid, v4.ipv6, v4.interval_ms, v4.preempt), (9, false, 30, false));
        assert_eq!(v4.addresses, [IpAddr::from([203, 0, 113, 10])]);
        assert_eq!((v6.vrid, v6.ipv6, v6.priority), (9, true, v4.priority));
        let link_local: IpAddr = "fe80::200:5eff:fe00:209".parse().unwrap();
        assert_eq!(v6.addresses, [link_local, "2001:db8::10".parse().unwrap()]);
        let station = node.address("fe80::200:5eff:fe00:209").unwrap();
        assert_eq!((station.place, station.at), (PLACE_SHARED, 9));
        assert_eq!(v4.carriers[usize::from((250 - v4.priority) / 10)], node.name);
        priorities.push(v4.priority);
        let mastered = Liveness { mastered: BTreeSet::from(["r1".to_owned()]), ..Liveness::default() };
        let master = Node::alive(&document, node.name, Some(5), mastered);
        assert_eq!(master.leg("r1").unwrap().flags, LEG_EXTERNAL | LEG_SNAT | LEG_SHARED | LEG_OWNED);
    }
    priorities.sort_unstable();
    assert_eq!(priorities, [230, 240, 250]);
    // One gateway has nobody to agree with.
    let alone = DOCUMENT.replace("{ name: a, vtep", "{ name: a, gateway: true, vtep");
    assert!(nodes(&alone, Some(5)).iter().all(|node| node.out.virtual_routers.is_empty()));
    for node in nodes(&routed(DOCUMENT), Some(5)) {
        assert!(node.out.virtual_routers.is_empty());
        let station = node.address("203.0.113.10").unwrap();
        assert_eq!((station.place, station.at), (PLACE_SHARED, 0), "all carry, nobody is asked");
    }
}

#[test]
fn r2_several_next_hops_have_their_shares_and_dead_ones_none() {
    let hops = "[203.0.113.7, 203.0.113.8, 203.0.113.9]";
    let document = DOCUMENT.replace("nexthop: 203.0.113.7", &format!("nexthops: {hops}"));
    let shares = |node: &Node| {
        let mut shares: BTreeMap<Ip, Vec<u32>> = BTreeMap::new();
        for (key, member) in &node.out.image.members {
            assert_eq!(member.network, node.id(NAME_NETWORK, "public"));
            shares.entry(member.nexthop).or_default().push(key.slot);
        }
        shares
    };
    let a = Node::new(&document, "a", Some(5));
    let route = a.route("r1", "198.51.100.9").unwrap();
    assert_eq!(route.kind, ROUTE_MULTI);
    let all = shares(&a);
    assert_eq!(
        all.keys().copied().collect::<Vec<_>>(),
        ["203.0.113.7", "203.0.113.8", "203.0.113.9"].map(ip)
    );
    assert!(all.values().all(|slots| slots.len() >= 8), "{all:?}");
    assert_eq!(all, shares(&Node::new(&document, "c", Some(5))), "alike on every node");
    assert_eq!(a.out.watched.len(), 3);
    let gone = |names: &[&str]| Liveness {
        dead_nexthops: names.iter().map(|name| ("public".to_owned(), name.parse().unwrap())).collect(),
        ..Liveness::default()
    };
    let without = shares(&Node::alive(&document, "a", Some(5), gone(&["203.0.113.8"])));
    assert_eq!(without.len(), 2);
    for (nexthop, slots) in &without {
        assert!(all[nexthop].iter().all(|slot| slots.contains(slot)), "what it had it keeps");
    }
    let none = gone(&["203.0.113.7", "203.0.113.8", "203.0.113.9"]);
    assert_eq!(
        shares(&Node::alive(&document, "a", Some(5), none)),
        all,
        "each says why it cannot be reached"
    );
    // Ports as next hops: of one that is bound nowhere no use is made.
    let document = DOCUMENT.replace(
        "destination: 198.51.100.0/24, nexthop: 203.0.113.7",
        "destination: 198.51.100.0/24, nexthops: [10.0.1.11, 10.0.1.12, 10.0.1.14]",
    );
    let used = |node: Node| -> BTreeSet<Ip> {
        node.out.image.members.values().map(|member| member.nexthop).collect()
    };
    assert_eq!(used(Node::new(&document, "a", Some(5))), BTreeSet::from(["10.0.1.11", "10.0.1.12"].map(ip)));
    // Nor of one whose interface is missing: b has no tap2.
    assert_eq!(used(Node::new(&document, "b", Some(5))), BTreeSet::from(["10.0.1.11"].map(ip)));
}

fn routed(document: &str) -> String {
    // A next hop on the link would be refused.
    let document =
        document.replace("    routes: [{ destination: 198.51.100.0/24, nexthop: 203.0.113.7 }]\n", "");
    document.replace("external: true", "external: true\n    routed: true")
}

#[test]
fn a_routed_network_has_what_was_learned_and_announces_what_is_carried() {
    let document = routed(&with_gateways());
    let topology = topology::parse("test.yaml", &document).unwrap_or_else(|problems| panic!("{problems}"));
    let nic = [2, 0, 0, 0, 9, 9];
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let learned = BTreeMap::from([
        (net("0.0.0.0/0"), vec!["100.64.0.1".parse().unwrap(), "100.64.0.2".parse().unwrap()]),
        (net("198.18.0.0/15"), vec!["100.64.0.2".parse().unwrap()]),
        (net("::/0"), vec!["fe80::1".parse().unwrap()]),
    ]);
    let mut around = around(&[]);
    around.node = "c".to_owned();
    let interface = ExternalInterface { ifindex: Some(5), mtu: Some(1500), mac: Some(nic) };
    around.externals.insert("public".to_owned(), interface);
    around.learned.insert("public".to_owned(), learned);
    let mut ids = Identities::default();
    let out = compile(&topology, &around, &mut ids).unwrap();
    let c = Node { name: "c", out, ids };
    // r1's own route wins over what is learned; everything else is learned.
    let network = c.id(NAME_NETWORK, "public");
    let kind = |to: &str| c.route("r1", to).map(|route| (route.kind, route.network));
    assert_eq!(kind("198.18.0.9"), Some((ROUTE_VIA, network)));
    assert_eq!(kind("8.8.8.8").unwrap().0, ROUTE_MULTI);
    assert_eq!(c.route("r1", "2001:db8:77::1").unwrap().nexthop, ip("fe80::1"));
    assert_eq!(kind("203.0.113.99").unwrap().0, ROUTE_MULTI, "nobody is on the link");
    assert_eq!(c.out.watched.len(), 2);
    let leg = c.leg("r1").unwrap();
    assert_eq!((leg.mac, leg.flags & (LEG_SHARED | LEG_OWNED)), (nic, LEG_SHARED | LEG_OWNED));
    let station = c.out.image.fdb[&FdbKey::new(0, network, nic)];
    assert_eq!((station.kind, station.owner), (STATION_ROUTER, ROUTER_BY_DESTINATION));
    // The node's own address there is no router's.
    let link_local = Ip::link_local_of(nic);
    assert_eq!(c.out.image.addresses.get(&AddressKey::new(0, network, link_local)), None);
    for router in ["r1", "r2"] {
        let key = RouteKey::lookup(0, c.id(NAME_ROUTER, router), link_local);
        assert_eq!(c.out.image.routes.get(&key), None);
    }
    let between = c.out.image.fdb[&FdbKey::new(0, network, mac("r1", "c"))];
    assert_eq!(between.owner, c.id(NAME_ROUTER, "r1"), "other nodes address a router");
    // Routers' addresses, forwardings, and what is on b, which has no interface there; vm1 is a's to announce.
    let announced: Vec<String> = c.out.announced["public"].iter().map(ToString::to_string).collect();
    let expected =
        ["203.0.113.10", "203.0.113.11", "203.0.113.51", "203.0.113.52", "203.0.113.60", "2001:db8::10"];
    assert_eq!(announced, expected);
    // b has everything behind the gateways.
    let b = Node::new(&document, "b", None);
    let network = b.id(NAME_NETWORK, "public");
    for to in ["8.8.8.8", "2001:db8:77::1"] {
        let route = b.route("r1", to).unwrap();
        assert_eq!((route.kind, route.network, route.nexthop), (ROUTE_VIA, network, Ip::UNSPECIFIED));
    }
    assert!(b.out.announced.is_empty());
}
