//! Whole documents: what is accepted and how it reads, what is refused and in which words.

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
    assert_eq!((gateway.address, gateway.snat), (IpAddr::from([203, 0, 113, 10]), true));
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
