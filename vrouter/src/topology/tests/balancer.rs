//! Load balancers and pools: what is accepted, and what is refused in which words.

use super::refused::{Row, assert_one, edited_in};
use super::*;

const BALANCERS: &str = r#"
load_balancers:
  - name: lb1
    network: web
    vip_addresses: [10.0.1.200, "fd00:1::200"]
    listeners:
      - { name: http, protocol: tcp, protocol_port: 80, default_pool: pool1 }
      - { name: dns, protocol: udp, protocol_port: 53, default_pool: pool2 }
pools:
  - name: pool1
    session_persistence: source_ip
    members:
      - { name: m1, address: 10.0.1.11, protocol_port: 8080, weight: 2 }
      - { name: m2, address: 10.0.1.10, protocol_port: 8080 }
      - { name: m3, address: "fd00:1::a", protocol_port: 8080 }
  - name: pool2
    members:
      - { name: ns4, address: 10.0.2.53, protocol_port: 53 }
      - { name: ns6, address: "fd00:1::53", protocol_port: 53, admin_state_up: false }
"#;

/// The base with load balancers, and a floating IP for one.
fn balanced() -> String {
    let floating = "floating_ips:\n  - { address: 203.0.113.53, load_balancer: lb1 }\n";
    BASE.replacen("floating_ips:\n", floating, 1) + BALANCERS
}

#[test]
fn what_is_in_order_means_what_it_says() {
    let topology = accepted(&balanced());
    let balancer = topology.load_balancer("lb1").expect("lb1");
    assert_eq!((balancer.vip_addresses.len(), balancer.admin_state_up), (2, true));
    let listener = &balancer.listeners[1];
    assert_eq!((listener.protocol, listener.protocol_port, &*listener.default_pool), (17, 53, "pool2"));
    let pool = topology.pool("pool1").expect("pool1");
    assert!(pool.source_ip);
    assert_eq!((pool.members[0].weight, pool.members[1].weight), (2, 1));
    assert!(!topology.pool("pool2").expect("pool2").members[1].admin_state_up);
    let balancers = Balancers::of(&topology);
    let router = balancers.router("web", balancer.vip_addresses[0]).expect("a router");
    assert_eq!(router.name, "r1");
    let of = |address: &str| balancers.network_of(router, address.parse().expect("an address"));
    assert_eq!(of("10.0.2.53").map(|network| &*network.name), Some("db"));
    assert!(of("203.0.113.9").is_none() && of("10.0.7.1").is_none());
}

#[test]
fn a_pool_may_be_taken_down_member_by_member() {
    let text = balanced()
        .replace("protocol_port: 53 }\n", "protocol_port: 53, weight: 0, admin_state_up: false }\n");
    let pool = accepted(&text).pool("pool2").expect("pool2").clone();
    assert!(pool.members.iter().all(|member| !member.admin_state_up), "{pool:?}");
}

#[test]
fn each_fault_is_one_problem() {
    let rows: &[Row] = &[
        (
            "- name: lb1\n    network: web\n    vip_addresses: [10.0.1.200, \"fd00:1::200\"]\n",
            "- §name: lb1\n    network: web\n",
            "load balancer lb1",
            &["vip_addresses is missing"],
        ),
        ("10.0.1.200, \"fd00:1::200\"", "10.0.1.200, §10.0.1.201", "load balancer lb1", &["of one family"]),
        ("[10.0.1.200,", "[§10.0.1.11,", "load balancer lb1", &["10.0.1.11 is port vm2's already"]),
        ("[10.0.1.200,", "[§10.0.1.1,", "load balancer lb1", &["10.0.1.1 is router r1's address"]),
        (
            "[10.0.1.200,",
            "[§10.0.9.1,",
            "load balancer lb1",
            &["outside every subnet of network web", "10.0.1.0/24"],
        ),
        ("[10.0.1.200,", "[§10.0.1.255,", "load balancer lb1", &["broadcast address"]),
        (
            "network: web\n    vip",
            "network: §wbe\n    vip",
            "load balancer lb1",
            &["no network wbe", "did you mean \"web\"?"],
        ),
        (
            "network: web\n    vip",
            "network: §public\n    vip",
            "load balancer lb1",
            &["external", "floating ip"],
        ),
        (
            "{ name: dns, protocol: udp, protocol_port: 53, default",
            "§{ name: dns, protocol: tcp, protocol_port: 80, default",
            "load balancer lb1",
            &["tcp port 80 is another listener's already"],
        ),
        (
            "protocol: tcp, protocol_port: 80, default",
            "protocol: §icmp, protocol_port: 80, default",
            "load balancer lb1 listeners[0]",
            &["icmp"],
        ),
        (
            "protocol_port: 80, default",
            "protocol_port: §0, default",
            "load balancer lb1 listeners[0]",
            &["from 1 to 65535"],
        ),
        ("{ name: dns,", "§{ name: http,", "load balancer lb1", &["two listeners are called http"]),
        (
            "default_pool: pool1",
            "default_pool: §pool3",
            "load balancer lb1 listeners[0]",
            &["no pool pool3", "did you mean"],
        ),
        ("source_ip", "§cookie", "pool pool1", &["no session persistence", "source_ip"]),
        ("weight: 2", "weight: §257", "pool pool1 members[0]", &["from 0 to 256"]),
        (
            "{ name: m2, address: 10.0.1.10, protocol_port: 8080",
            "§{ name: m2, address: 10.0.1.11, protocol_port: 8080",
            "pool pool1",
            &["another member's already"],
        ),
        ("{ name: m2, address", "§{ name: m1, address", "pool pool1", &["two members are called m1"]),
        (
            "- name: pool2\n    members:\n      - { name: ns4, address: 10.0.2.53, protocol_port: 53 }\n      - { name: ns6, address: \"fd00:1::53\", protocol_port: 53,",
            "- §name: pool2\n    members:\n      - { name: ns4, address: 10.0.2.53, protocol_port: 53, weight: 0 }\n      - { name: ns6, address: \"fd00:1::53\", protocol_port: 53, weight: 0,",
            "pool pool2",
            &["every IPv4 member with admin_state_up has weight 0"],
        ),
        (
            "- name: pool1\n    session_persistence: source_ip\n    members:\n      - { name: m1, address: 10.0.1.11, protocol_port: 8080, weight: 2 }\n      - { name: m2, address: 10.0.1.10, protocol_port: 8080 }\n      - { name: m3, address: \"fd00:1::a\", protocol_port: 8080 }",
            "- §name: pool1\n    session_persistence: source_ip\n    members:\n      - { name: m1, address: 10.0.1.11, protocol_port: 8080, weight: 2 }\n      - { name: m2, address: 10.0.1.10, protocol_port: 8080 }\n      - { name: m3, address: \"fd00:1::a\", protocol_port: 8080, weight: 0 }",
            "pool pool1",
            &["every IPv6 member with admin_state_up has weight 0"],
        ),
        (
            "- name: pool1\n    session_persistence: source_ip\n    members:\n      - { name: m1, address: 10.0.1.11, protocol_port: 8080, weight: 2 }\n      - { name: m2, address: 10.0.1.10, protocol_port: 8080 }",
            "- §name: pool1\n    session_persistence: source_ip\n    members:\n      - { name: m1, address: 10.0.1.11, protocol_port: 8080, weight: 0 }\n      - { name: m2, address: 10.0.1.10, protocol_port: 8080, admin_state_up: false }",
            "pool pool1",
            &["every IPv4 member with admin_state_up has weight 0"],
        ),
        ("load_balancer: lb1", "load_balancer: §lb2", "floating ip 203.0.113.53", &["no load balancer lb2"]),
        (
            "203.0.113.53, load_balancer: lb1",
            "203.0.113.53, §load_balancer: lb1, port: vm1",
            "floating ip 203.0.113.53",
            &["load_balancer and port are both given"],
        ),
    ];
    for (find, replace, object, words) in rows {
        let (text, line) = edited_in(&balanced(), find, replace);
        let line = line.unwrap_or_else(|| panic!("{replace:?} has no mark"));
        assert_one(replace, &text, line, object, words);
    }
}

#[test]
fn a_vip_is_no_next_hop() {
    for (find, replace, vip) in [
        ("nexthop: 10.0.2.9", "nexthop: §10.0.1.200", "10.0.1.200"),
        (
            "destination: 10.99.0.0/16, nexthop: 10.0.2.9",
            "destination: \"fd99::/16\", nexthop: §\"fd00:1::200\"",
            "fd00:1::200",
        ),
        ("nexthops: [10.0.2.9,", "nexthops: [§10.0.1.200,", "10.0.1.200"),
    ] {
        let (text, line) = edited_in(&balanced(), find, replace);
        let line = line.unwrap_or_else(|| panic!("{replace:?} has no mark"));
        let message = format!("the next hop {vip} is the VIP of load balancer lb1");
        assert_one(replace, &text, line, "router r1", &[&message]);
    }
}

/// Faults of what a listener refers to are told at the listener.
#[test]
fn a_pool_fits_its_listeners() {
    let rows: &[Row] = &[
        (
            "address: 10.0.2.53",
            "address: 10.0.1.200",
            "load balancer lb1 listeners[1]",
            &["10.0.1.200 is the VIP of load balancer lb1"],
        ),
        (
            "address: 10.0.2.53",
            "address: 10.0.2.1",
            "load balancer lb1 listeners[1]",
            &["member ns4 of pool pool2: 10.0.2.1 is router r1's address on network db"],
        ),
        (
            "address: 10.0.2.53",
            "address: 10.0.1.254",
            "load balancer lb1 listeners[1]",
            &["10.0.1.254 is router r2's address on network web"],
        ),
        (
            "address: 10.0.2.53",
            "address: 10.0.2.0",
            "load balancer lb1 listeners[1]",
            &["10.0.2.0 is the network address of subnet db4"],
        ),
        (
            "address: 10.0.2.53",
            "address: 10.0.1.255",
            "load balancer lb1 listeners[1]",
            &["10.0.1.255 is the broadcast address of subnet web4"],
        ),
        (
            "address: 10.0.2.53",
            "address: 10.0.7.53",
            "load balancer lb1 listeners[1]",
            &["member ns4", "10.0.7.53 is on no network that router r1"],
        ),
        (
            "address: \"fd00:1::53\"",
            "address: 10.0.2.54",
            "load balancer lb1 listeners[1]",
            &["no IPv6 member for the VIP fd00:1::200"],
        ),
    ];
    for (find, replace, object, words) in rows {
        let (text, _) = edited_in(&balanced(), find, replace);
        let at = text.find("default_pool: pool2").expect("the listener");
        let line = 1 + text[..at].matches('\n').count();
        assert_one(replace, &text, line, object, words);
    }
}
