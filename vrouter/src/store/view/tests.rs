use std::collections::BTreeMap;

use super::*;
use crate::{
    compile::{self, Interface, Surroundings},
    identities::Identities,
    store::record::{objects_of, spec_of},
    topology,
};

/// Three tenants, two of them joined by a router of their own, one with a way out; members of groups on networks
/// that nothing else joins.
const TEXT: &str = r#"
networks:
  - name: web
    subnets: [{ name: web4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }, { name: web6, cidr: "fd00:1::/64", gateway: "fd00:1::1" }]
  - { name: db, subnets: [{ name: db4, cidr: 10.0.2.0/24, gateway: 10.0.2.1 }] }
  - { name: far, subnets: [{ name: far4, cidr: 10.0.3.0/24, gateway: 10.0.3.1 }] }
  - { name: alone, subnets: [{ name: alone4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }] }
  - { name: members, subnets: [{ name: members4, cidr: 10.9.0.0/24, gateway: 10.9.0.1 }] }
  - { name: public, external: true, subnets: [{ name: public4, cidr: 203.0.113.0/24, gateway: 203.0.113.1 }] }
routers:
  - { name: r1, interfaces: [web4, web6, db4], gateway: { network: public, address: 203.0.113.10 } }
  - { name: r2, interfaces: [{ subnet: db4, address: 10.0.2.254 }, far4], routes: [{ destination: 10.99.0.0/16, nexthop: 10.0.3.11 }] }
  - { name: r3, interfaces: [alone4], gateway: { network: public, address: 203.0.113.11 } }
security_groups:
  - { name: front, rules: [{ direction: egress }, { direction: ingress, remote_group: back }, { direction: ingress, remote_address_group: office }] }
  - { name: back, rules: [{ direction: egress }] }
  - { name: other, rules: [{ direction: ingress, remote_group: front }] }
address_groups:
  - { name: office, addresses: [192.0.2.0/24] }
  - { name: unused, addresses: [198.51.100.0/24] }
ports:
  - { name: web1, network: web, mac: "02:00:00:00:01:01", fixed_ips: [10.0.1.11, "fd00:1::b"], security_groups: [front], node: a, interface: tap1 }
  - { name: web2, network: web, mac: "02:00:00:00:01:02", fixed_ips: [10.0.1.12], node: b, interface: tap1 }
  - { name: db1, network: db, mac: "02:00:00:00:02:01", fixed_ips: [10.0.2.11], security_groups: [back], node: b, interface: tap2 }
  - { name: far1, network: far, mac: "02:00:00:00:03:01", fixed_ips: [10.0.3.11], node: c, interface: tap1 }
  - { name: alone1, network: alone, mac: "02:00:00:00:04:01", fixed_ips: [10.0.1.11], security_groups: [other], node: c, interface: tap2 }
  - { name: member1, network: members, mac: "02:00:00:00:05:01", fixed_ips: [10.9.0.11], security_groups: [back], node: d, interface: tap1 }
  - { name: loose, network: web, mac: "02:00:00:00:01:09", fixed_ips: [10.0.1.19] }
floating_ips:
  - { address: 203.0.113.50, port: web1 }
  - { address: 203.0.113.51, port: alone1 }
  - { address: 203.0.113.52, port_forwardings: [{ protocol: tcp, external_port: 22, port: db1, internal_port: 22 }] }
nodes:
  - { name: a, vtep: 192.0.2.1 }
  - { name: b, vtep: 192.0.2.2 }
  - { name: c, vtep: 192.0.2.3 }
  - { name: d, vtep: 192.0.2.4 }
  - { name: e, vtep: 192.0.2.5 }
"#;

/// The values of a document's objects.
fn values(text: &str) -> BTreeMap<ObjectName, Vec<u8>> {
    let root = topology::read_tree("x", text).unwrap();
    objects_of(&root).into_iter().map(|(name, tree)| (name, Record::new(spec_of(tree)).bytes())).collect()
}

fn put(name: &ObjectName, value: &[u8]) -> Change {
    Change::Object(name.clone(), Some(value.to_vec()))
}

fn name(kind: Kind, name: &str) -> ObjectName {
    ObjectName::new(kind, name)
}

fn view(node: &str, externals: &[&str], text: &str) -> View {
    let mut view = View::new(node, externals.iter().map(|network| Some((*network).to_owned())).collect());
    view.apply(values(text).iter().map(|(name, value)| put(name, value)));
    view
}

fn assembled(view: &mut View) -> Arc<Topology> {
    let Assembled { topology, skipped } = view.assemble().expect("something for this node");
    assert!(skipped.is_empty(), "{skipped}");
    topology.expect("a topology")
}

fn around(node: &str, externals: &[&str]) -> Surroundings {
    let external = compile::ExternalInterface { ifindex: Some(90), mtu: Some(1500), mac: None };
    Surroundings {
        metadata: false,
        node: node.to_owned(),
        interfaces: (1..5).map(|index| (format!("tap{index}"), Interface { index, peer: false })).collect(),
        underlay_mtu: 1500,
        externals: externals.iter().map(|network| ((*network).to_owned(), external)).collect(),
        liveness: compile::Liveness::default(),
        shares: None,
        learned: Default::default(),
    }
}

/// What a node compiles of its part is what it compiles of the whole.
fn assert_same(node: &str, externals: &[&str], text: &str, part: &Topology) {
    let whole = topology::parse("x", text).unwrap();
    let mut identities = Identities::default();
    let around = around(node, externals);
    let of_whole = compile::compile(&whole, &around, &mut identities).unwrap();
    let of_part = compile::compile(part, &around, &mut identities.clone()).unwrap();
    assert_eq!(of_part.image, of_whole.image, "{node} with {externals:?}");
    let sorted = |ports: &[compile::LocalPort]| {
        let mut ports = ports.to_vec();
        ports.sort();
        ports
    };
    assert_eq!(sorted(&of_part.local_ports), sorted(&of_whole.local_ports));
    assert_eq!((of_part.node, of_part.vtep), (of_whole.node, of_whole.vtep));
    assert_eq!(of_part.externals, of_whole.externals);
    assert_eq!(of_part.warnings, of_whole.warnings);
}

#[test]
fn a_nodes_part_compiles_to_what_the_whole_does() {
    for node in ["a", "b", "c", "d", "e"] {
        for externals in [&[][..], &["public"]] {
            let part = assembled(&mut view(node, externals, TEXT));
            assert_same(node, externals, TEXT, &part);
        }
    }
}

#[test]
fn what_does_not_concern_a_node_is_not_in_its_part() {
    // No gateway, so that no node speaks for another's router.
    let text = TEXT
        .replace(", gateway: { network: public, address: 203.0.113.10 }", "")
        .replace(", gateway: { network: public, address: 203.0.113.11 }", "");
    let text = text.split("floating_ips:").next().unwrap().to_owned()
        + "nodes:"
        + TEXT.split("nodes:").nth(1).unwrap();
    let part = assembled(&mut view("d", &[], &text));
    let ports: Vec<_> = part.ports.iter().map(|port| port.name.as_str()).collect();
    assert_eq!(ports, ["member1"]);
    assert_eq!(part.networks.len(), 1);
    assert_eq!(part.routers.len(), 0);
    let part = assembled(&mut view("a", &[], &text));
    let ports: Vec<_> = part.ports.iter().map(|port| port.name.as_str()).collect();
    assert_eq!(ports, ["db1", "far1", "loose", "member1", "web1", "web2"], "also a member of `back`");
    assert_same("a", &[], &text, &part);
}

#[test]
fn only_what_concerns_a_node_is_assembled_again() {
    let mut view = view("e", &[], TEXT);
    let _ = assembled(&mut view);
    let web2 = name(Kind::Port, "web2");
    let change = |view: &mut View, from: &str, to: &str| {
        let value = String::from_utf8(values(TEXT)[&web2].clone()).unwrap();
        assert!(value.contains(from));
        view.apply([put(&web2, value.replace(from, to).as_bytes())]);
        view.assemble().is_some()
    };
    // A node without ports: it may speak for a router.
    let reaches = view.part.externals.contains("public");
    assert_eq!(change(&mut view, "10.0.1.12", "10.0.1.13"), reaches || view.part.networks.contains("web"));
    // Now it is on this node.
    assert!(change(&mut view, r#""node":"b""#, r#""node":"e""#));
    assert!(view.part.networks.contains("web"));
    assert!(change(&mut view, r#""node":"b""#, r#""node":"c""#), "and gone again");
    let node = name(Kind::Node, "b");
    view.apply([put(&node, br#"{"schema":1,"spec":{"name":"b","vtep":"192.0.2.99"}}"#)]);
    assert!(view.assemble().is_some(), "every node is everybody's business");
}

/// Numbers below a limit.
fn random() -> impl FnMut(usize) -> usize {
    let seed = std::env::var("VROUTER_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut state: u64 = seed.unwrap_or_else(|| {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |age| age.as_nanos() as u64)
    });
    println!("VROUTER_TEST_SEED={state}");
    move |limit| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    }
}

/// Whatever order things come in, and however they change on the way, what is assembled at the end is what a view
/// makes that has only ever seen the end.
#[test]
fn changes_one_by_one_lead_to_what_all_at_once_does() {
    let mut below = random();
    let all = values(TEXT);
    let names: Vec<&ObjectName> = all.keys().collect();
    let nodes = ["a", "b", "c", "d", "e"];
    for _ in 0..60 {
        let node = nodes[below(nodes.len())];
        let externals: &[&str] = if below(2) == 0 { &[] } else { &["public"] };
        let mut changing =
            View::new(node, externals.iter().map(|network| Some((*network).to_owned())).collect());
        // Some are there at first, some come, some go and come back, some ports move.
        for _ in 0..below(80) {
            let name = names[below(names.len())];
            let change = match below(3) {
                0 => Change::Object(name.clone(), None),
                1 if name.kind == Kind::Port => {
                    let value = String::from_utf8(all[name].clone()).unwrap();
                    let (from, to) = (nodes[below(4)], nodes[below(4)]);
                    put(
                        name,
                        value
                            .replace(&format!(r#""node":"{from}""#), &format!(r#""node":"{to}""#))
                            .as_bytes(),
                    )
                }
                _ => put(name, &all[name]),
            };
            changing.apply([change]);
            if below(4) == 0 {
                changing.assemble();
            }
        }
        changing.apply(all.iter().map(|(name, value)| put(name, value)));
        let part = match changing.assemble() {
            Some(Assembled { topology, skipped }) => {
                assert!(skipped.is_empty(), "{skipped}");
                topology.unwrap()
            }
            // Nothing for this node among the last changes: it is as it was.
            None => {
                changing.assembled = false;
                assembled(&mut changing)
            }
        };
        assert_eq!(part, assembled(&mut view(node, externals, TEXT)), "{node} with {externals:?}");
        assert_same(node, externals, TEXT, &part);
    }
}

/// What a VIP needs, beside a pool.
const BALANCED: &str = r#"
networks:
  - name: web
    subnets: [{ name: web4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }, { name: web6, cidr: "fd00:1::/64", gateway: "fd00:1::1" }]
routers: [{ name: r1, interfaces: [web4, web6] }]
ports: [{ name: web1, network: web, mac: "02:00:00:00:01:01", fixed_ips: [10.0.1.11, "fd00:1::b"], node: a, interface: tap1 }]
load_balancers:
  - { name: lb4, network: web, vip_addresses: [10.0.1.200], listeners: [{ name: l, protocol: tcp, protocol_port: 80, default_pool: p }] }
  - { name: lb, network: web, vip_addresses: [10.0.1.201, "fd00:1::201"], listeners: [{ name: l, protocol: tcp, protocol_port: 80, default_pool: p2 }] }
pools:
  - { name: p, members: [{ name: m0, address: 10.0.1.11, protocol_port: 80 }] }
  - { name: p2 }
nodes: [{ name: a, vtep: 192.0.2.1 }]
"#;

#[test]
fn a_pool_that_is_exchanged_is_as_one_that_is_checked() {
    let mut below = random();
    // The last ones are nobody's to balance to: on no network of the router, a VIP, the router's own, no host's.
    let addresses = [
        "10.0.1.11",
        "10.0.1.12",
        "10.0.1.13",
        "fd00:1::b",
        "fd00:1::c",
        "10.7.0.1",
        "10.0.1.200",
        "10.0.1.1",
        "10.0.1.255",
    ];
    let mut view = view("a", &[], BALANCED);
    let mut before = assembled(&mut view);
    let all = values(BALANCED);
    let mut good: BTreeMap<&str, Vec<u8>> =
        ["p", "p2"].map(|pool| (pool, all[&name(Kind::Pool, pool)].clone())).into();
    let (mut exchanged, mut checked, mut refused) = (0, 0, 0);
    for round in 0..600 {
        let pool = ["p", "p2"][below(2)];
        let known = if round % 3 == 0 { addresses.len() } else { 5 };
        let members: Vec<String> = (0..below(6))
            .map(|member| {
                let (address, weight) = (addresses[below(known)], below(3));
                format!(
                    r#"{{"name":"m{member}","address":"{address}","protocol_port":80,"weight":{weight}}}"#
                )
            })
            .collect();
        let spec = format!(r#"{{"schema":1,"spec":{{"name":"{pool}","members":[{}]}}}}"#, members.join(","));
        view.apply([put(&name(Kind::Pool, pool), spec.as_bytes())]);
        let Assembled { topology, skipped } = view.assemble().expect("a pool in use");
        let topology = topology.expect("a topology");
        let may = topology::may_replace(before.pool(pool).unwrap(), topology.pool(pool).unwrap());
        // Whoever sees all of it for the first time says the same, or refuses it as well.
        let mut new = View::new("a", Vec::new());
        new.apply(view.known().map(|(name, raw)| put(name, raw)).collect::<Vec<_>>());
        let Assembled { topology: anew, skipped: faults } = new.assemble().expect("something");
        assert_eq!(skipped.is_empty(), faults.is_empty(), "{spec}: {skipped}{faults}");
        if skipped.is_empty() {
            assert_eq!(anew.as_ref(), Some(&topology), "{spec}");
            *if may { &mut exchanged } else { &mut checked } += 1;
            good.insert(pool, spec.into_bytes());
            before = topology;
        } else {
            assert_eq!(topology, before, "{spec}: what was in force stays");
            refused += 1;
            view.apply([put(&name(Kind::Pool, pool), &good[pool])]);
            assert_eq!(assembled(&mut view), before);
        }
    }
    println!("{exchanged} exchanged, {checked} checked, {refused} refused");
    assert!(exchanged > 20 && checked > 20 && refused > 20);
    // What stays if a later version cannot be used is what was exchanged last.
    let last = before.pool("p").unwrap().clone();
    view.apply([put(&name(Kind::Pool, "p"), b"damaged")]);
    let Assembled { topology, skipped } = view.assemble().unwrap();
    assert_eq!((topology.unwrap().pool("p"), skipped.is_empty()), (Some(&last), false));
}

#[test]
fn an_object_that_cannot_be_used_stays_as_it_was_or_is_left_out_with_what_needs_it() {
    let web = name(Kind::Network, "web");
    let mut view = view("a", &[], TEXT);
    let good = assembled(&mut view);
    for value in ["", "{}", r#"{"schema":7}"#, r#"{"schema":1,"spec":{"name":"web","subnets":1}}"#] {
        view.apply([put(&web, value.as_bytes())]);
        let Assembled { topology, skipped } = view.assemble().unwrap();
        assert_eq!(topology.as_ref(), Some(&good), "{value}");
        assert_eq!(
            skipped.iter().next().map(|problem| problem.object.as_str()),
            Some("network web"),
            "{value}"
        );
    }
    // A node that never saw it good.
    let mut new = View::new("a", Vec::new());
    new.apply(values(TEXT).iter().map(|(name, value)| put(name, value)));
    new.apply([put(&web, b"{}")]);
    let Assembled { topology, skipped } = new.assemble().unwrap();
    let topology = topology.unwrap();
    assert!(topology.port("web1").is_none() && topology.network("web").is_none());
    let blamed: Vec<_> = skipped.iter().map(|problem| problem.object.as_str()).collect();
    assert!(blamed.contains(&"network web"), "{skipped}");
    // It comes back whole when the object does.
    new.apply([put(&web, &values(TEXT)[&web])]);
    assert_eq!(assembled(&mut new), good);
}

#[test]
fn what_breaks_a_rule_is_left_as_it_was() {
    let db = name(Kind::Network, "db");
    let mut view = view("a", &[], TEXT);
    let good = assembled(&mut view);
    let value = String::from_utf8(values(TEXT)[&db].clone()).unwrap();
    // Overlaps web on r1.
    let value = value.replace("10.0.2.0/24", "10.0.1.0/24").replace("10.0.2.1", "10.0.1.1");
    view.apply([put(&db, value.as_bytes())]);
    let Assembled { topology, skipped } = view.assemble().unwrap();
    assert!(!skipped.is_empty());
    let topology = topology.unwrap();
    assert_eq!(topology.network("db"), good.network("db"), "{skipped}");
    assert!(topology.port("web1").is_some());
}

#[test]
fn what_is_gone_while_others_need_it_stays_until_they_do_not() {
    let r1 = name(Kind::Router, "r1");
    let web = name(Kind::Network, "web");
    let mut view = view("a", &[], TEXT);
    let good = assembled(&mut view);
    view.apply([Change::Object(web.clone(), None)]);
    let Assembled { topology, skipped } = view.assemble().unwrap();
    assert_eq!(topology.as_ref(), Some(&good));
    assert!(skipped.to_string().contains("is gone from etcd, but others still need it"), "{skipped}");
    // All of it goes.
    let ports = ["web1", "web2", "loose"].map(|port| Change::Object(name(Kind::Port, port), None));
    view.apply(ports);
    view.apply([Change::Object(r1, None), Change::Object(name(Kind::FloatingIp, "203.0.113.50"), None)]);
    view.apply([Change::Object(name(Kind::FloatingIp, "203.0.113.52"), None)]);
    let Assembled { topology, skipped } = view.assemble().unwrap();
    assert!(skipped.is_empty(), "{skipped}");
    assert!(topology.unwrap().network("web").is_none());
    assert!(!view.objects.contains_key(&web), "nothing needs it: it is forgotten");
}

#[test]
fn a_port_is_where_it_was_plugged_last_unless_its_object_says_otherwise() {
    let mut view = view("b", &[], TEXT);
    let _ = assembled(&mut view);
    let plug = |port: &str, node: &str, interface: &str, revision| Change::Binding {
        port: port.to_owned(),
        node: node.to_owned(),
        value: Some((Binding::new(interface).bytes(), revision)),
    };
    let place = |view: &mut View, port: &str| {
        let topology = assembled(view);
        let port = topology.port(port).unwrap();
        (port.node.clone(), port.interface.clone())
    };
    let at = |node: &str, interface: &str| (Some(node.to_owned()), Some(interface.to_owned()));
    view.apply([plug("loose", "b", "tap8", 10)]);
    assert_eq!(place(&mut view, "loose"), at("b", "tap8"));
    view.apply([plug("loose", "c", "tap9", 11)]);
    assert_eq!(place(&mut view, "loose"), at("c", "tap9"));
    view.apply([Change::Binding { port: "loose".into(), node: "c".into(), value: None }]);
    assert_eq!(place(&mut view, "loose"), at("b", "tap8"));
    view.apply([Change::Binding { port: "loose".into(), node: "b".into(), value: None }]);
    assert_eq!(place(&mut view, "loose"), (None, None));
    // Its object names b: another node cannot have it, b may use another interface.
    view.apply([plug("web2", "c", "tap9", 12)]);
    assert_eq!(place(&mut view, "web2"), at("b", "tap1"));
    view.apply([plug("web2", "b", "tap7", 13)]);
    assert_eq!(place(&mut view, "web2"), at("b", "tap7"));
    // Nonsense is as none.
    view.apply([Change::Binding {
        port: "loose".into(),
        node: "b".into(),
        value: Some((b"{}".to_vec(), 14)),
    }]);
    assert_eq!(place(&mut view, "loose"), (None, None));
}

#[test]
fn what_an_earlier_agent_had_is_there_until_etcd_says_otherwise() {
    let mut before = view("a", &[], TEXT);
    let good = assembled(&mut before);
    let mut after = View::new("a", Vec::new());
    for (name, raw) in before.in_force() {
        after.remember(name.clone(), raw);
    }
    let Assembled { topology, .. } = after.assemble().unwrap();
    assert_eq!(topology.as_ref(), Some(&good));
    // etcd has the same, but for one that is damaged now.
    after.apply(values(TEXT).iter().map(|(name, value)| put(name, value)));
    after.apply([put(&name(Kind::Network, "web"), b"damaged")]);
    let Assembled { topology, skipped } = after.assemble().unwrap();
    assert_eq!(topology.as_ref(), Some(&good));
    assert_eq!(skipped.count(), 1, "{skipped}");
}
