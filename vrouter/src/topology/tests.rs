//! Whole documents: what is accepted and how it reads, what is refused and in which words.

mod balancer;
mod hostile;
mod refused;

use std::net::{IpAddr, Ipv6Addr};

use super::model::{Direction, EtherFamily, Hook, Mac, Remote, RouteTarget};
use super::*;

/// The document users see first.
const EXAMPLE: &str = include_str!("../../../docs/topology.example.yaml");
/// A document in order that has something of everything; the tests of refusals change one thing in it.
const BASE: &str = include_str!("tests/base.yaml");

fn accepted(text: &str) -> Topology {
    parse("topology.yaml", text).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn the_example_means_what_it_says() {
    let topology = accepted(EXAMPLE);
    let web = topology.network("web").expect("web");
    assert_eq!((web.vni, web.mtu, web.external), (1001, Some(1450), false));
    let db = topology.network("db").expect("db");
    assert_eq!((db.vni, db.mtu), (derive_vni("db"), None));
    assert!(topology.network("public").expect("public").external);
    let (network, web6) = topology.subnet("web6").expect("web6");
    assert_eq!((network.name.as_str(), web6.cidr.to_string().as_str()), ("web", "fd00:1::/64"));

    let r1 = topology.router("r1").expect("r1");
    let addresses: Vec<String> = r1.interfaces.iter().map(|leg| leg.address.to_string()).collect();
    assert_eq!(addresses, ["10.0.1.1", "fd00:1::1", "10.0.2.1"]);
    let gateway = r1.gateway.as_ref().expect("gateway");
    assert_eq!((&gateway.addresses[..], gateway.snat), (&[IpAddr::from([203, 0, 113, 10])][..], true));
    assert_eq!(gateway.snat_ports, (1024, 65535));
    assert_eq!(r1.routes[0].target, RouteTarget::Nexthops(vec![IpAddr::from([10, 0, 2, 9])]));

    let rules = &topology.security_group("web-sg").expect("web-sg").rules;
    assert_eq!((rules[0].protocol, rules[0].ports), (Some(6), Some((80, 443))));
    assert_eq!(rules[1].remote, Some(Remote::Group("web-sg".to_owned())));
    assert_eq!((rules[2].direction, rules[2].protocol), (Direction::Egress, None));

    let vm1 = topology.port("vm1").expect("vm1");
    assert_eq!(vm1.mac, Mac([2, 0, 0, 0, 1, 10]));
    let v6 = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 10);
    assert_eq!(vm1.fixed_ips, [IpAddr::from([10, 0, 1, 10]), IpAddr::from(v6)]);
    assert_eq!(vm1.allowed_address_pairs[0].ip.to_string(), "10.0.1.100/32");
    assert_eq!((vm1.port_security, vm1.hook), (true, Hook::Tc));

    let forwarding = &topology.floating_ips[1].port_forwardings[0];
    assert_eq!((forwarding.protocol, forwarding.external_port, forwarding.internal_port), (6, 2222, 22));
    assert!(topology.node("node-b").expect("node-b").gateway);
}

#[test]
fn the_base_is_in_order() {
    let topology = accepted(BASE);
    assert_eq!(topology.router("r1").expect("r1").routes[2].target, RouteTarget::Blackhole);
    assert_eq!(topology.port("vm2").expect("vm2").hook, Hook::Xdp);
    let echo = &topology.security_groups[0].rules[2];
    assert_eq!(
        (echo.ports, echo.icmp_code, echo.ethertype),
        (Some((8, 8)), Some(0), Some(EtherFamily::Ipv4))
    );
}

#[test]
fn a_gateway_may_have_an_address_of_each_family_and_a_range_of_ports() {
    let text = BASE.replace("snat: true", "snat: false, snat_ports: 50000-50999");
    let topology = accepted(&text);
    let gateway = topology.router("r1").and_then(|router| router.gateway.as_ref()).expect("gateway");
    assert_eq!((gateway.snat, gateway.snat_ports), (false, (50000, 50999)));
    assert_eq!(gateway.address(false), Some(IpAddr::from([203, 0, 113, 10])));
    assert_eq!(gateway.address(true), "2001:db8::a".parse().ok());
    let topology = accepted(BASE);
    assert_eq!(topology.router("r2").and_then(|router| router.gateway.as_ref()?.address(true)), None);
    let text = BASE.replace("snat: true", "snat_ports: 7");
    assert_eq!(accepted(&text).routers[0].gateway.as_ref().map(|gateway| gateway.snat_ports), Some((7, 7)));
}

#[test]
fn ports_without_groups_are_in_the_default_group() {
    let topology = accepted(BASE);
    let groups = |name: &str| topology.port(name).map(|port| port.security_groups.clone());
    assert_eq!(groups("vm1"), Some(vec!["web-sg".to_owned()]));
    assert_eq!(groups("vm2"), Some(vec!["default".to_owned()]));
    assert_eq!(groups("vm3"), Some(Vec::new()), "it has no port security");
    let default = topology.security_group("default").expect("implicit");
    assert_eq!(*default, model::SecurityGroup::implicit_default());
    assert_eq!((default.line, default.stateful, default.rules.len()), (0, true, 2));

    // No group at all is another thing than the default one.
    let none = BASE.replace("fixed_ips: [10.0.1.11]", "fixed_ips: [10.0.1.11]\n    security_groups: []");
    let topology = accepted(&none);
    assert_eq!(topology.port("vm2").map(|port| port.security_groups.len()), Some(0));
    assert_eq!(topology.security_group("default"), None, "nobody refers to it");
    // A rule may refer to it, too.
    let by_rule = none.replace("remote_group: web-sg", "remote_group: default");
    assert!(accepted(&by_rule).security_group("default").is_some());
    // One that is defined replaces it.
    let own = BASE.replace("address_groups:", "  - { name: default, rules: [] }\naddress_groups:");
    let topology = accepted(&own);
    let defaults = topology.security_groups.iter().filter(|group| group.name == "default");
    assert_eq!(defaults.map(|group| group.rules.len()).collect::<Vec<_>>(), [0]);
}

#[test]
fn floating_ips_choose_an_address_of_their_family() {
    let bound = |fields: &str, fixed_ips: &str| {
        let text = BASE
            .replace("{ address: 203.0.113.52 }", &format!("{{ {fields} }}"))
            .replace("fixed_ips: [10.0.1.11]", fixed_ips);
        let topology = accepted(&text);
        let port = topology.port("vm2").expect("vm2");
        topology.floating_ips[2].inside(port).map(|address| address.to_string())
    };
    let fixed_ips = "fixed_ips: [10.0.1.11, 10.0.1.12, \"fd00:1::b\", \"fd00:1::c\"]";
    let chosen = |fields| bound(fields, fixed_ips).unwrap_or_default();
    assert_eq!(chosen("address: 203.0.113.52, port: vm2"), "10.0.1.11");
    assert_eq!(chosen("address: 203.0.113.52, port: vm2, fixed_ip: 10.0.1.12"), "10.0.1.12");
    assert_eq!(chosen("address: \"2001:db8::52\", port: vm2"), "fd00:1::b");
    assert_eq!(chosen("address: \"2001:db8::52\", port: vm2, fixed_ip: \"fd00:1::c\""), "fd00:1::c");
    // Each address of a port may have one.
    let two =
        "address: 203.0.113.52, port: vm2 }\n  - { address: 203.0.113.53, port: vm2, fixed_ip: 10.0.1.12";
    assert_eq!(chosen(two), "10.0.1.11");
}

#[test]
fn objects_know_their_lines() {
    let topology = accepted(BASE);
    assert_eq!(topology.network("db").map(|network| network.line), Some(8));
    assert_eq!(topology.subnet("web6").map(|(_, subnet)| subnet.line), Some(7));
    assert_eq!(topology.router("r1").map(|router| router.routes[1].line), Some(21));
    assert_eq!(topology.port("vm1").map(|port| port.line), Some(37));
}

#[test]
fn json_is_read() {
    let json = r#"{"networks": [{"name": "web", "vni": 7, "external": false, "mtu": null,
        "subnets": [{"name": "web4", "cidr": "10.0.1.0\/24", "gateway": "10.0.1.1"}]}], "ports": []}"#;
    let topology = accepted(json);
    assert_eq!(topology.networks[0].vni, 7);
    assert_eq!(topology.networks[0].subnets[0].cidr.to_string(), "10.0.1.0/24");
}

#[test]
fn sections_without_content_are_empty() {
    for text in ["{}", "ports:\n", "ports: ~\nnodes: []\n", "---\nnetworks: null\n...\n", "\u{feff}{}"] {
        assert_eq!(accepted(text), Topology::default(), "{text:?}");
    }
}

#[test]
fn icmp_takes_the_family_of_its_rule() {
    for (fields, protocol) in [
        ("protocol: icmp", Some(1)),
        ("protocol: icmp, remote: 10.0.0.0/8", Some(1)),
        ("protocol: icmp, remote: \"fd00::/8\"", Some(58)),
        ("protocol: icmp, ethertype: ipv6", Some(58)),
        ("protocol: ipv6-icmp", Some(58)),
        ("protocol: 58", Some(58)),
        ("protocol: sctp", Some(132)),
        ("protocol: any", None),
    ] {
        let text = format!("security_groups: [{{ name: a, rules: [{{ direction: egress, {fields} }}] }}]");
        assert_eq!(accepted(&text).security_groups[0].rules[0].protocol, protocol, "{fields}");
    }
}

#[test]
fn a_route_takes_one_or_several_next_hops() {
    let routed = |target: &str| {
        let text = BASE.replace("nexthop: blackhole", target);
        accepted(&text).router("r1").expect("r1").routes[2].target.clone()
    };
    let hops =
        |last: &[u8]| RouteTarget::Nexthops(last.iter().map(|n| IpAddr::from([10, 0, 1, *n])).collect());
    assert_eq!(routed("nexthop: 10.0.1.7"), hops(&[7]));
    assert_eq!(routed("nexthop: [10.0.1.7, 10.0.1.8]"), hops(&[7, 8]));
    assert_eq!(routed("nexthops: [10.0.1.7]"), hops(&[7]));
    assert_eq!(routed("nexthop: unreachable"), RouteTarget::Unreachable);
}

#[test]
fn a_problem_reads_as_documented() {
    let text = BASE.replace("10.0.1.10, ", "10.0.9.5, ");
    let problems = parse("topology.yaml", &text).expect_err("10.0.9.5 is nowhere");
    assert_eq!(
        problems.to_string(),
        "topology.yaml:40: port vm1: 10.0.9.5 is outside every subnet of network web\n    \
         mend: use an address of 10.0.1.0/24 or fd00:1::/64"
    );
}

#[test]
fn files_that_cannot_be_read_are_problems_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("missing.yaml");
    let problems = load(&missing).expect_err("no such file");
    assert!(problems.to_string().contains("missing.yaml: document: cannot be opened"), "{problems}");
    let problems = load(directory.path()).expect_err("a directory");
    assert!(problems.to_string().contains("cannot be read"), "{problems}");

    let problems = load_from("x", &b"a: 1\nb: \xff\n"[..]).expect_err("not UTF-8");
    assert!(problems.to_string().starts_with("x:2: document: this line is not UTF-8"), "{problems}");
    let problems = load_from("x", std::io::repeat(b'a')).expect_err("endless");
    assert!(problems.to_string().contains("at most 67108864"), "{problems}");

    let file = directory.path().join("topology.yaml");
    std::fs::write(&file, EXAMPLE).expect("written");
    assert_eq!(load(&file), Ok(accepted(EXAMPLE)));
}
