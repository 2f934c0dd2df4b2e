//! Behaviours of load balancing: B1 to B4, with real clients and servers on two nodes and outside.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use vrouter_tests::frame::{Frame, TCP};
use vrouter_tests::named::ask;
use vrouter_tests::sockets::{tcp_refused, udp_refused};
use vrouter_tests::topology::{FloatingIp, Topology, with_outside};
use vrouter_tests::{Named, Served, System, wait};

const VIP: &str = "10.0.1.200";
const VIP6: &str = "fd00:1::c8";
const FLOATING: &str = "203.0.113.70";
/// Where members serve.
const INSIDE: u16 = 8080;
/// `vm2` is on node-a, the others on node-b, `vm6` on another network.
const MEMBERS: [&str; 3] = ["vm2", "vm4", "vm6"];
const PATIENCE: Duration = Duration::from_secs(10);
/// A refusal takes less than any retry of the client's: of three, on a machine that is busy, one at least.
const AT_ONCE: Duration = Duration::from_millis(800);

#[track_caller]
fn assert_at_once(what: &str, refused: impl Fn() -> anyhow::Result<Duration>) {
    let took: Vec<Duration> =
        (0..3).map(|_| refused().unwrap_or_else(|error| panic!("{what}: {error:#}"))).collect();
    assert!(took.iter().any(|took| *took < AT_ONCE), "{what}: {took:?}");
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(text), port)
}

fn member(name: &str, weight: u16) -> String {
    let (network, number) = match name {
        "vm2" => (1, 12),
        "vm4" => (1, 14),
        "vm6" => (2, 16),
        "vm5" => (2, 15),
        other => panic!("{other} is no member"),
    };
    format!(
        "{{ name: {name}, address: 10.0.{network}.{number}, protocol_port: {INSIDE}, weight: {weight} }}, \
         {{ name: {name}-6, address: \"fd00:{network}::{number:x}\", protocol_port: {INSIDE}, weight: {weight} }}"
    )
}

/// The lab with outside, and a load balancer for these members; what is `more` is written to the pool.
fn balanced(members: &[(&str, u16)], more: &str) -> Topology {
    let mut topology = with_outside();
    topology.floating_ips.push(FloatingIp::balanced(FLOATING, "lb1"));
    topology.load_balancers = vec![format!(
        "{{ name: lb1, network: web, vip_addresses: [{VIP}, \"{VIP6}\"], listeners: [\
         {{ name: http, protocol: tcp, protocol_port: 80, default_pool: pool1 }}, \
         {{ name: dns, protocol: udp, protocol_port: 53, default_pool: pool1 }}] }}"
    )];
    let members: Vec<String> = members.iter().map(|(name, weight)| member(name, *weight)).collect();
    topology.pools = vec![format!("{{ name: pool1, {more}members: [{}] }}", members.join(", "))];
    topology
}

fn servers(system: &System, names: &[&str]) -> Vec<Named> {
    names.iter().map(|name| Named::start(system.host(name), INSIDE).unwrap()).collect()
}

/// Who serves `from` at an address, of `count` connections and datagrams each.
fn served(system: &System, from: &str, to: &str, count: usize) -> BTreeMap<String, usize> {
    let host = system.host(from);
    let mut counts = BTreeMap::new();
    for _ in 0..count {
        let mut served =
            Served::open(host, at(to, 80)).unwrap_or_else(|error| panic!("{from} to {to}: {error:#}"));
        served.echo().unwrap_or_else(|error| panic!("{from} to {to}, {}: {error:#}", served.by));
        *counts.entry(served.by).or_default() += 1;
        let (by, _) = ask(host, 0, at(to, 53)).unwrap_or_else(|error| panic!("{from} to {to}: {error:#}"));
        *counts.entry(by).or_default() += 1;
    }
    counts
}

/// B1, B2: everybody reaches every member; what members see, and what is on the wire.
#[test]
fn b1_a_vip_from_everywhere() {
    let mut system = System::start(&balanced(&MEMBERS.map(|name| (name, 1)), "")).unwrap();
    let _servers = servers(&system, &MEMBERS);
    system.outside().route_inside("fd00::/16", "2001:db8:ff::10").unwrap();
    let everybody = BTreeSet::from(MEMBERS.map(str::to_owned));
    for (from, to) in [
        ("vm1", VIP),
        ("vm3", VIP),
        ("vm5", VIP),
        ("vm1", VIP6),
        ("vm3", VIP6),
        ("vm5", VIP6),
        // Members themselves.
        ("vm2", VIP),
        ("vm4", VIP),
        ("vm6", VIP),
        ("vm2", VIP6),
        ("vm6", VIP6),
        // By the floating IP: from outside, with a floating IP of one's own, and without.
        ("outside1", FLOATING),
        ("server1", FLOATING),
        ("vm1", FLOATING),
        ("vm3", FLOATING),
        ("vm5", FLOATING),
        ("vm4", FLOATING),
        // Routed as it is.
        ("outside1", VIP6),
        ("server1", VIP6),
    ] {
        let counts = served(&system, from, to, 20);
        let all: BTreeSet<String> = counts.keys().cloned().collect();
        assert_eq!(all, everybody, "{from} to {to}: {counts:?}");
    }

    // Whom a member sees: the client, or the VIP where it is the client itself.
    for (from, to) in [("vm1", VIP), ("vm2", VIP), ("vm6", VIP6), ("outside1", FLOATING)] {
        for _ in 0..12 {
            let served = Served::open(system.host(from), at(to, 80)).unwrap();
            let own = match from {
                "outside1" => ip("203.0.113.101"),
                vm => system.workload(vm).ip(ip(to).is_ipv6()),
            };
            let expected = if served.by == from { ip(to) } else { own };
            assert_eq!(served.seen.ip(), expected, "{from}, served by {}", served.by);
        }
    }

    // On the wire: valid, one router on the way, and the member's router as the sender.
    for (from, to) in [("vm1", VIP), ("outside1", FLOATING)] {
        // As on a wire, with checksums.
        system.host(from).offloads_off().unwrap();
        let sniffer = system.host("vm4").sniff().unwrap();
        let is_first =
            |bytes: &[u8]| bytes.get(23) == Some(&TCP) && bytes.get(47).is_some_and(|flags| flags & 2 != 0);
        while Served::open(system.host(from), at(to, 80)).unwrap().by != "vm4" {}
        let frame = Frame::check(&sniffer.expect(PATIENCE, is_first).unwrap()).unwrap();
        let packet = frame.packet.unwrap();
        assert_eq!(packet.destination, ip("10.0.1.14"));
        assert_eq!(packet.ttl, 63, "{from} to {to}");
    }

    // The VIP answers pings; a port on which nothing listens is refused.
    assert!(system.host("vm1").ping(VIP, 1, &[]).unwrap().received == 1);
    assert!(system.host("vm5").ping(VIP6, 1, &[]).unwrap().received == 1);
    assert!(system.host("outside1").ping(FLOATING, 1, &[]).unwrap().received == 1);
    for (from, to) in [("vm1", VIP), ("vm5", VIP6), ("outside1", FLOATING)] {
        assert_at_once(&format!("{from} to {to}"), || tcp_refused(system.host(from), at(to, 81)));
    }

    // What a trace says of it.
    let traced = system
        .agent("node-a")
        .vrouter(&["trace", "--port", "vm1", "tcp 10.0.1.11:40000 > 10.0.1.200:80"])
        .unwrap();
    let text = String::from_utf8(traced.stdout).unwrap();
    for words in ["a VIP, balanced by router r1", "listener lb1/http: pool pool1", "member pool1/vm"] {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }

    // `show lb` says what was done. vm5 has asked on node-b alone.
    let report = system.agent("node-b").json(&["show", "lb"]).unwrap();
    let listeners = report["listeners"].as_array().unwrap();
    assert_eq!(listeners.len(), 4, "{report:#}");
    let http = listeners.iter().find(|it| it["vip"] == VIP && it["protocol"] == "tcp").unwrap();
    assert_eq!((http["listener"].as_str(), http["state"].as_str()), (Some("lb1/http"), Some("up")));
    assert_eq!(http["floating_ips"][0], FLOATING);
    let members = http["members"].as_array().unwrap();
    assert_eq!(members.len(), 3);
    let shares: f64 = members.iter().map(|member| member["share"].as_f64().unwrap()).sum();
    assert!((99.9..100.1).contains(&shares), "{shares}");
    let total = |report: &serde_json::Value| {
        let rows = report["listeners"].as_array().unwrap();
        let mut seen = BTreeSet::new();
        // A listener's counter is of both its VIPs.
        let counts = rows.iter().filter(|row| seen.insert(row["listener"].to_string()));
        counts.map(|row| row["connections"].as_u64().unwrap()).sum::<u64>()
    };
    let before = total(&report);
    for _ in 0..10 {
        Served::open(system.host("vm5"), at(VIP, 80)).unwrap();
    }
    let after = total(&system.agent("node-b").json(&["show", "lb"]).unwrap());
    assert_eq!(after - before, 10, "each connection once, at its client's node");

    // B2: source_ip.
    system.apply(&balanced(&MEMBERS.map(|name| (name, 1)), "session_persistence: source_ip, ")).unwrap();
    for (from, to) in [("vm1", VIP), ("vm5", VIP6), ("vm3", VIP), ("outside1", FLOATING)] {
        let counts = served(&system, from, to, 8);
        assert_eq!(counts.len(), 1, "{from} to {to}: {counts:?}");
    }

    // P1: a client's groups are asked about the VIP, and need not let members out or in.
    let mut topology = balanced(&MEMBERS.map(|name| (name, 1)), "");
    let rule = |vip: &str, bits: u8| format!("{{ direction: egress, remote: \"{vip}/{bits}\" }}");
    topology.add_group("clients", &[&rule(VIP, 32), &rule(VIP6, 128)]);
    ["vm1", "vm5"].iter().for_each(|port| topology.put_into(port, &["clients"]));
    system.apply(&topology).unwrap();
    for (from, to) in [("vm1", VIP), ("vm5", VIP), ("vm1", VIP6), ("vm5", VIP6)] {
        let counts = served(&system, from, to, 20);
        assert_eq!(counts.len(), 3, "{from} to {to}: {counts:?}");
    }
    let before = system.dropped("node-a", "policy_egress").unwrap();
    assert!(ask(system.host("vm1"), 0, at("10.0.1.14", INSIDE)).is_err(), "the member itself");
    assert!(system.dropped("node-a", "policy_egress").unwrap() > before);
}

/// B2, B3: connections stay where they are while members come, drain and go; new ones follow the weights.
#[test]
fn b2_changes_of_a_pool() {
    let three = MEMBERS.map(|name| (name, 1));
    let mut system = System::start(&balanced(&three, "")).unwrap();
    let _servers = servers(&system, &["vm2", "vm4", "vm6", "vm5"]);
    let clients = [("vm1", VIP), ("vm3", VIP6), ("vm5", VIP), ("outside1", FLOATING), ("server1", FLOATING)];
    let mut open: Vec<(&str, Served)> = Vec::new();
    for (from, to) in clients {
        for _ in 0..12 {
            open.push((from, Served::open(system.host(from), at(to, 80)).unwrap()));
        }
    }
    let all_answer = |open: &mut Vec<(&str, Served)>, when: &str| {
        for (from, served) in open.iter_mut() {
            served.echo().unwrap_or_else(|error| panic!("{when}: {from}, {}: {error:#}", served.by));
        }
    };
    all_answer(&mut open, "before");

    // One comes.
    system.apply(&balanced(&[("vm2", 1), ("vm4", 1), ("vm6", 1), ("vm5", 1)], "")).unwrap();
    all_answer(&mut open, "after one came");
    for (from, to) in clients {
        assert!(served(&system, from, to, 20).contains_key("vm5"), "{from}: the new one serves");
    }

    // One drains: nothing new, what there is goes on.
    system.apply(&balanced(&[("vm2", 1), ("vm4", 0), ("vm6", 1), ("vm5", 1)], "")).unwrap();
    all_answer(&mut open, "while one drains");
    for (from, to) in clients {
        assert!(!served(&system, from, to, 20).contains_key("vm4"), "{from}: it drains");
    }
    let report = system.agent("node-a").json(&["show", "lb"]).unwrap();
    let members = report["listeners"][0]["members"].as_array().unwrap();
    let vm4 = members.iter().find(|member| member["member"] == "pool1/vm4").unwrap();
    assert_eq!((vm4["state"].as_str(), vm4["share"].as_f64()), (Some("draining"), Some(0.0)));

    // One is removed: its connections end, the others do not.
    system.apply(&balanced(&[("vm2", 1), ("vm4", 0), ("vm5", 1)], "")).unwrap();
    for (from, served) in &mut open {
        let result = served.echo();
        assert_eq!(result.is_err(), served.by == "vm6", "{from}, {}: {result:?}", served.by);
    }
    open.retain(|(_, served)| served.by != "vm6");

    // B2: weights.
    system.apply(&balanced(&[("vm2", 9), ("vm4", 1)], "")).unwrap();
    // One in ten of 240: that it is one in five has a probability of one in millions.
    let counts = served(&system, "vm1", VIP, 120);
    let of = |name: &str| counts.get(name).copied().unwrap_or_default();
    assert!(of("vm2") > 4 * of("vm4") && of("vm4") > 0, "{counts:?}");
    open.retain(|(_, served)| served.by != "vm5");
    all_answer(&mut open, "at the end");

    // B4: administratively down is refused at once, and comes back.
    let mut down = balanced(&three, "");
    down.load_balancers[0] =
        down.load_balancers[0].replace("name: lb1,", "name: lb1, admin_state_up: false,");
    system.apply(&down).unwrap();
    for (from, to) in clients {
        assert_at_once(&format!("{from} to {to}"), || tcp_refused(system.host(from), at(to, 80)));
        assert_at_once(&format!("{from} to {to}"), || udp_refused(system.host(from), at(to, 53)));
    }
    assert!(system.dropped("node-a", "listener_down").unwrap() > 0);
    let report = system.agent("node-a").json(&["show", "lb"]).unwrap();
    assert_eq!(report["listeners"][0]["state"], "down");
    system.apply(&balanced(&three, "")).unwrap();
    wait::until("served again", PATIENCE, || Ok(Served::open(system.host("vm1"), at(VIP, 80)).is_ok()))
        .unwrap();
}
