//! Behaviours of security groups: P1 to P6. The matrix of who may reach whom runs against Linux too.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vrouter_tests::frame::{Addressing, Frame, contains, vxlan_payload};
use vrouter_tests::sockets::noise;
use vrouter_tests::system::{Check, check_all};
use vrouter_tests::topology::{AddressGroup, Topology, with_outside};
use vrouter_tests::{AgentOptions, Lab, Linux, Outcome, Probe, Services, System, Talk, Workload, wait};

const PATIENCE: Duration = Duration::from_secs(10);
/// What must not come has this long to come.
const MOMENT: Duration = Duration::from_millis(150);
/// How long something takes that is not answered.
const SILENCE: Duration = Duration::from_millis(1200);
/// What the topology says now is in force, for those who are not asked when.
const SOON: Duration = Duration::from_secs(60);
const FAMILIES: [bool; 2] = [false, true];

const OF_VM1: &str = "203.0.113.51";
const OF_VM5: &str = "203.0.113.55";

/// Everybody serves here.
const SERVED: [u16; 4] = [7, 22, 53, 80];
/// Nobody serves here, but somebody may ask.
const CLOSED: u16 = 9;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The lab with an outside, its workloads in groups: vm1 hears nobody, vm5 serves, vm3 is choosy, vm2 and vm6
/// are friends, vm4 may hardly speak.
fn guarded() -> Topology {
    let mut topology = with_outside();
    topology.add_group("closed", &["{ direction: egress }"]);
    topology.add_group(
        "web",
        &[
            "{ direction: ingress, protocol: tcp, ports: 7-9 }",
            "{ direction: ingress, protocol: udp, ports: 9 }",
            "{ direction: egress }",
        ],
    );
    topology.add_group("friends", &["{ direction: egress }"]);
    topology.add_group(
        "choosy",
        &[
            "{ direction: ingress, protocol: udp, ports: 53, remote_group: friends }",
            "{ direction: ingress, protocol: tcp, ports: 22, remote_address_group: offices }",
            "{ direction: ingress, protocol: icmp, icmp_type: 8, icmp_code: 0, remote: 10.0.1.11/32 }",
            "{ direction: ingress, protocol: icmpv6, icmp_type: 128, remote_group: friends }",
            "{ direction: ingress, protocol: udp, ports: 7, remote: \"fd00:1::/64\" }",
            "{ direction: ingress, protocol: tcp, ports: 80, ethertype: ipv4 }",
            "{ direction: egress }",
        ],
    );
    topology.add_group(
        "quiet",
        &[
            "{ direction: egress, protocol: udp, ports: 7, remote: 198.51.100.0/24 }",
            "{ direction: egress, protocol: tcp, ports: 7-22, remote_group: web }",
            "{ direction: egress, protocol: icmp, icmp_type: 8, remote_group: friends }",
            "{ direction: egress, protocol: icmpv6, icmp_type: 128 }",
        ],
    );
    topology
        .address_groups
        .push(AddressGroup::new("offices", &["198.51.100.20/32", "10.0.1.12/32", "2001:db8:aa::20/128"]));
    for (port, groups) in [
        ("vm1", &["closed"][..]),
        ("vm2", &["friends"]),
        ("vm3", &["choosy"]),
        ("vm4", &["quiet"]),
        ("vm5", &["web"]),
        ("vm6", &["friends", "web"]),
    ] {
        topology.put_into(port, groups);
    }
    topology
}

/// A way to try.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Udp(u16),
    Tcp(u16),
    Ping,
}
use Way::{Ping, Tcp, Udp};

/// Whether a try gets through: an answer, or the complaint of the very host that its port is closed.
fn gets_through(lab: &Lab, from: &str, to: IpAddr, way: Way) -> bool {
    let host = lab.host(from);
    let probe = match way {
        Udp(port) => Probe::udp(to, port),
        Ping => Probe::ping(to),
        Tcp(port) => {
            return match Talk::open(host, SocketAddr::new(to, port), None, SILENCE) {
                Ok(mut talk) => talk.exchange(1000).is_ok(),
                Err(error) => format!("{error:#}").contains("refused"),
            };
        }
    };
    match probe.timeout(SILENCE).send(host).unwrap() {
        Outcome::Answer { from, intact, .. } => from == to && intact,
        Outcome::Error(error) => error.source == to,
        Outcome::Silence | Outcome::Refused(_) => false,
    }
}

#[track_caller]
fn assert_through(lab: &Lab, cases: &[(&str, &str, &[Way])], expected: bool) {
    // All at once: what is refused is silent, and silence takes its time.
    let tries: Vec<_> =
        cases.iter().flat_map(|&(from, to, ways)| ways.iter().map(move |&way| (from, to, way))).collect();
    let wrong = std::thread::scope(|scope| {
        let each = tries.iter().map(|&(from, to, way)| {
            scope.spawn(move || {
                let is_right = gets_through(lab, from, ip(to), way) == expected;
                if is_right { String::new() } else { format!("{from} to {to}, {way:?}\n") }
            })
        });
        let each: Vec<_> = each.collect();
        each.into_iter().map(|thread| thread.join().unwrap()).collect::<String>()
    });
    assert!(wrong.is_empty(), "{}:\n{wrong}", if expected { "does not get through" } else { "gets through" });
}

// ---- Checks of any implementation.

/// P1: nothing comes in that no rule lets in; answers and related errors do.
fn p1_default_deny_and_stateful(lab: &Lab) {
    // An error about a connection does not wait for its next hop: let the neighbours be known.
    // The first of all gets its time, should the request for one be lost; below, the same has none to lose.
    let mut first = Talk::open(lab.host("outside1"), SocketAddr::new(ip(OF_VM5), 7), None, PATIENCE).unwrap();
    first.exchange(1000).unwrap();
    let everything = &[Udp(7), Tcp(7), Ping, Udp(CLOSED), Tcp(CLOSED)][..];
    assert_through(
        lab,
        &[
            ("vm2", "10.0.1.11", everything),
            ("vm3", "10.0.1.11", everything),
            ("vm5", "10.0.1.11", everything),
            ("vm5", "fd00:1::b", everything),
            ("vm6", "fd00:1::b", everything),
            ("outside1", OF_VM1, everything),
            ("server1", OF_VM1, everything),
            ("outside1", "fd00:1::b", everything),
        ],
        false,
    );
    assert_through(
        lab,
        &[
            ("vm1", "10.0.2.15", &[Tcp(7), Tcp(CLOSED), Udp(CLOSED)]),
            ("vm1", "fd00:2::f", &[Tcp(7), Tcp(CLOSED), Udp(CLOSED)]),
            ("vm1", "198.51.100.10", everything),
            ("vm1", "2001:db8:aa::10", everything),
            ("vm2", "203.0.113.101", everything),
            ("outside1", OF_VM5, &[Tcp(7), Udp(CLOSED)]),
        ],
        true,
    );
    // In the middle of a conversation the other end still may not begin one.
    for is_v6 in FAMILIES {
        let (vm1, vm5) = (lab.workload("vm1"), lab.workload("vm5"));
        let mut talk = Talk::open(vm1, SocketAddr::new(vm5.ip(is_v6), 7), Some(33_000), PATIENCE).unwrap();
        talk.exchange(100_000).unwrap();
        assert!(!gets_through(lab, "vm5", vm1.ip(is_v6), Tcp(33_000)));
        assert!(!gets_through(lab, "vm5", vm1.ip(is_v6), Udp(33_000)));
        talk.exchange(100_000).unwrap();
    }
    // Errors from the middle of the way are related: of its own router and of one outside.
    for (to, ttl, kind) in
        [("198.51.100.10", 1, 11), ("198.51.100.10", 2, 11), ("2001:db8:aa::10", 2, 3), ("198.18.0.1", 64, 3)]
    {
        let outcome = Probe::udp(ip(to), 7).ttl(ttl).send(lab.host("vm1")).unwrap();
        assert_eq!(outcome.error().map(|error| error.kind), Some(kind), "{to}: {outcome}");
    }
}

/// P2: directions, protocols, port ranges, ICMP types, ranges, groups; IPv4 and IPv6.
fn p2_rules_by_everything(lab: &Lab) {
    assert_through(
        lab,
        &[
            ("vm2", "10.0.2.13", &[Udp(53), Tcp(22), Tcp(80)]),
            ("vm6", "10.0.2.13", &[Udp(53), Tcp(80)]),
            ("vm1", "10.0.2.13", &[Ping, Tcp(80)]),
            ("vm2", "fd00:2::d", &[Udp(53), Udp(7), Ping]),
            ("vm6", "fd00:2::d", &[Udp(53), Ping]),
            ("vm1", "fd00:2::d", &[Udp(7)]),
            ("server2", "fd00:2::d", &[Tcp(22)]),
            ("server2", "203.0.113.60", &[]),
            ("outside1", "10.0.2.13", &[Tcp(80)]),
            ("server2", "203.0.113.61", &[Tcp(2222)]),
        ],
        true,
    );
    assert_through(
        lab,
        &[
            ("vm2", "10.0.2.13", &[Udp(7), Udp(52), Udp(54), Tcp(53), Ping, Tcp(23), Tcp(79), Tcp(81)]),
            ("vm6", "10.0.2.13", &[Tcp(22), Ping, Udp(22)]),
            ("vm1", "10.0.2.13", &[Udp(53), Tcp(22), Udp(7)]),
            ("vm2", "fd00:2::d", &[Tcp(22), Tcp(80)]),
            ("vm6", "fd00:2::d", &[Udp(7), Tcp(80)]),
            ("vm1", "fd00:2::d", &[Udp(53), Ping, Tcp(22), Tcp(80)]),
            ("server1", "fd00:2::d", &[Tcp(22), Ping, Udp(7)]),
            ("server2", "fd00:2::d", &[Tcp(80), Ping, Udp(7)]),
            ("outside1", "10.0.2.13", &[Udp(53), Ping, Tcp(22)]),
            ("server1", "203.0.113.61", &[Tcp(2222)]),
        ],
        false,
    );
    // Out.
    assert_through(
        lab,
        &[
            ("vm4", "198.51.100.10", &[Udp(7)]),
            ("vm4", "10.0.2.15", &[Tcp(7), Tcp(CLOSED)]),
            ("vm4", "10.0.2.16", &[Tcp(7)]),
            ("vm4", "fd00:2::f", &[Tcp(7)]),
            ("vm4", "2001:db8:aa::10", &[Ping]),
        ],
        true,
    );
    assert_through(
        lab,
        &[
            ("vm4", "198.51.100.10", &[Udp(8), Tcp(7), Ping]),
            ("vm4", "198.51.101.10", &[Udp(7)]),
            ("vm4", "10.0.2.15", &[Udp(CLOSED), Ping]),
            ("vm4", "10.0.2.13", &[Tcp(7)]),
            ("vm4", "10.0.2.13", &[Tcp(80), Ping]),
            ("vm4", "2001:db8:aa::10", &[Udp(7), Tcp(7)]),
        ],
        false,
    );
}

const CHECKS: &[Check<Lab>] = &[
    ("P1 default deny, stateful", p1_default_deny_and_stateful),
    ("P2 rules by everything", p2_rules_by_everything),
];

// ---- Checks of vrouter alone.

/// From one workload to another's address.
fn towards(from: &Workload, to: IpAddr) -> Addressing {
    Addressing {
        from: from.spec_mac(),
        to: from.gateway_mac(to.is_ipv6()).unwrap(),
        source: from.ip(to.is_ipv6()),
        destination: to,
        ttl: 64,
    }
}

/// The node a workload is on.
fn node(system: &System, workload: &str) -> String {
    system.workload(workload).spec().node.clone()
}

/// P1: what is refused never reaches the workload's interface, is counted where it is refused, and makes no
/// conversation.
fn p1_refused_packets_are_counted_and_go_nowhere(system: &System) {
    for is_v6 in FAMILIES {
        for (from, to, at, reason) in [
            ("vm2", "vm1", "vm1", "policy_ingress"),
            ("vm5", "vm1", "vm1", "policy_ingress"),
            ("vm3", "vm2", "vm2", "policy_ingress"),
            ("vm4", "vm5", "vm4", "policy_egress"),
        ] {
            let (from, to) = (system.workload(from), system.workload(to));
            let (sniffer, payload) = (to.sniff().unwrap(), noise(88));
            let way = if from.spec().addresses[0][..7] == to.spec().addresses[0][..7] {
                Addressing { to: to.spec_mac(), ..towards(from, to.ip(is_v6)) }
            } else {
                towards(from, to.ip(is_v6))
            };
            system
                .expect_drops(&node(system, at), &[(reason, 3)], || {
                    from.raw_send(&way.udp(34_000, 8, &payload))?;
                    from.raw_send(&way.tcp_syn(34_001, 1008))?;
                    from.raw_send(&way.udp(34_000, 8, &payload))
                })
                .unwrap();
            let is_it = |bytes: &[u8]| {
                bytes[6..12] != [0xff; 6] && bytes.len() > 60 && {
                    Frame::check(bytes).is_ok_and(|frame| {
                        frame.packet.is_some_and(|packet| {
                            packet.source == way.source && matches!(packet.protocol, 6 | 17)
                        })
                    })
                }
            };
            assert_eq!(sniffer.collect(MOMENT, is_it).unwrap(), Vec::<Vec<u8>>::new());
        }
    }
}

/// P1: ICMP errors and resets about nothing go nowhere, even to who hears everything else.
fn p1_unrelated_errors_go_nowhere(system: &System) {
    for (from, to) in [("vm2", "vm1"), ("vm5", "vm1"), ("vm6", "vm5"), ("vm1", "vm6")] {
        let (from, to) = (system.workload(from), system.workload(to));
        let sniffer = to.sniff().unwrap();
        let before = system.dropped(&node(system, to.name()), "icmp_unrelated").unwrap()
            + system.dropped(&node(system, from.name()), "icmp_unrelated").unwrap();
        for is_v6 in FAMILIES {
            let way = if from.spec().addresses[0][..7] == to.spec().addresses[0][..7] {
                Addressing { to: to.spec_mac(), ..towards(from, to.ip(is_v6)) }
            } else {
                towards(from, to.ip(is_v6))
            };
            // As if the receiver had sent that.
            let back = Addressing { source: way.destination, destination: way.source, ..way };
            let quoted = back.udp(35_000, 35_001, &noise(20))[14..].to_vec();
            let error = |kind, code| {
                if is_v6 {
                    way.icmpv6(kind, code, [0; 4], &quoted)
                } else {
                    way.icmpv4(kind, code, [0; 4], &quoted)
                }
            };
            from.raw_send(&if is_v6 { error(1, 4) } else { error(3, 3) }).unwrap();
            from.raw_send(&if is_v6 { error(2, 0) } else { error(3, 4) }).unwrap();
        }
        let is_error = |bytes: &[u8]| match bytes[12..14] {
            [8, 0] => bytes[23] == 1 && bytes[34] == 3,
            [0x86, 0xdd] => bytes[20] == 58 && matches!(bytes[54], 1 | 2),
            _ => false,
        };
        assert_eq!(sniffer.collect(MOMENT, is_error).unwrap(), Vec::<Vec<u8>>::new(), "{}", from.name());
        wait::until("they are counted", PATIENCE, || {
            let now = system.dropped(&node(system, to.name()), "icmp_unrelated")?
                + system.dropped(&node(system, from.name()), "icmp_unrelated")?;
            let is_local = node(system, to.name()) == node(system, from.name());
            Ok(now >= before + if is_local { 8 } else { 4 })
        })
        .unwrap();
    }
}

/// P4: the receiving port's node judges what comes through a tunnel, whatever its sender says.
fn p4_policy_holds_at_the_receiving_port(system: &System) {
    if system.nodes().count() < 2 {
        return;
    }
    let (vm1, vm5) = (system.workload("vm1"), system.workload("vm5"));
    let networks = system.agent("node-b").json(&["show", "networks"]).unwrap();
    let row = networks.as_array().unwrap().iter().find(|row| row["network"] == "db").cloned();
    let vni = row.unwrap_or_else(|| panic!("no network db in {networks}"))["vni"].as_u64().unwrap();
    let node_a = system.node("node-a");
    let socket = node_a.netns().enter(|| std::net::UdpSocket::bind("192.0.2.1:55555")).unwrap().unwrap();
    let sniffer = vm5.sniff().unwrap();
    let forged = |destination_port: u16, payload: &[u8]| {
        let inner = Addressing {
            from: vm5.gateway_mac(false).unwrap(),
            to: vm5.spec_mac(),
            source: vm1.ip(false),
            destination: vm5.ip(false),
            ttl: 63,
        };
        vxlan_payload(8, vni as u32, &inner.udp(36_000, destination_port, payload))
    };
    let (bad, good) = (noise(111), noise(222));
    let refused = forged(10, &bad);
    let allowed = forged(CLOSED, &good);
    system
        .expect_drops("node-b", &[("policy_ingress", 1)], || {
            socket.send_to(&refused, "192.0.2.2:4789")?;
            socket.send_to(&allowed, "192.0.2.2:4789")?;
            sniffer.expect(PATIENCE, |bytes| bytes.len() > 200 && contains(bytes, &good))
        })
        .unwrap();
    let bad = sniffer.collect(MOMENT, |bytes| bytes.len() < 200 && contains(bytes, &bad)).unwrap();
    assert_eq!(bad, Vec::<Vec<u8>>::new());
}

const OWN_CHECKS: &[Check<System>] = &[
    ("P1 refused packets are counted", p1_refused_packets_are_counted_and_go_nowhere),
    ("P1 unrelated errors", p1_unrelated_errors_go_nowhere),
    ("P4 at the receiving port", p4_policy_holds_at_the_receiving_port),
];

/// [`guarded`], and a port of an address outside for vm3, whose group says who may use it.
fn with_a_forwarding() -> Topology {
    let mut topology = guarded();
    topology
        .floating_ips
        .push(vrouter_tests::topology::FloatingIp::shared("203.0.113.61", &[("tcp", 2222, "vm3", 22)]));
    topology
}

fn furnish(lab: &Lab) -> Services {
    lab.outside().route_inside("fd00::/16", "2001:db8:ff::10").unwrap();
    lab.outside().route_inside("10.0.0.0/16", "203.0.113.10").unwrap();
    Services::everywhere(lab, &SERVED).unwrap()
}

fn everything(topology: &Topology) {
    let system = System::start(topology).unwrap();
    let _services = furnish(&system);
    check_all::<Lab>(&system, CHECKS);
    check_all(&system, OWN_CHECKS);
    for node in &topology.nodes {
        assert_eq!(system.dropped(&node.name, "internal").unwrap(), 0, "{}", node.name);
    }
}

#[test]
fn policy_on_two_nodes() {
    everything(&with_a_forwarding());
}

#[test]
fn policy_on_one_node() {
    everything(&with_a_forwarding().on_one_node());
}

/// The checks themselves ask for what Linux does.
#[test]
fn the_checks_hold_for_linux() {
    let linux = Linux::start(&with_a_forwarding()).unwrap();
    let _services = furnish(&linux);
    check_all::<Lab>(&linux, CHECKS);
}

/// P3: taking a rule, a member or a group away stops live flows; adding admits at once; others go on.
#[test]
fn p3_changes_apply_to_live_flows() {
    let mut topology = guarded();
    let mut system = System::start(&topology).unwrap();
    let _services = furnish(&system);
    let open = |system: &System, from: &str, to: &str, port: u16| {
        let to = SocketAddr::new(ip(to), port);
        let mut talk = Talk::open(system.host(from), to, None, PATIENCE).unwrap();
        talk.exchange(1000).unwrap();
        talk
    };
    // What must not be disturbed: local, remote, outside.
    let mut steady = [("vm2", "10.0.2.13", 80), ("vm2", "10.0.2.16", 7), ("vm2", "198.51.100.10", 7)]
        .map(|(from, to, port)| open(&system, from, to, port));
    let mut untouched = |when: &str| {
        for talk in &mut steady {
            talk.exchange(10_000).unwrap_or_else(|error| panic!("{when}: {error:#}"));
        }
    };

    // A rule: tcp 7-9 to vm5, local and remote, IPv4 and IPv6, and from outside.
    let mut live = vec![
        open(&system, "vm1", "10.0.2.15", 7),
        open(&system, "vm1", "fd00:2::f", 7),
        open(&system, "vm6", "10.0.2.15", 7),
        open(&system, "outside1", OF_VM5, 7),
    ];
    let saved = topology.clone();
    topology.put_into("vm5", &["closed"]);
    system.apply(&topology).unwrap();
    for talk in &mut live {
        talk.is_cut(SILENCE).unwrap();
    }
    assert!(!gets_through(&system, "vm1", ip("10.0.2.15"), Tcp(7)));
    untouched("a port left its group");
    // Back again: at once, for new ones.
    topology = saved.clone();
    system.apply(&topology).unwrap();
    for (from, to) in [("vm1", "10.0.2.15"), ("vm1", "fd00:2::f"), ("vm6", "10.0.2.15"), ("outside1", OF_VM5)]
    {
        assert!(gets_through(&system, from, ip(to), Tcp(7)), "{from} to {to}");
    }

    // A single rule.
    let mut live = open(&system, "vm1", "10.0.2.15", 7);
    topology.group_mut("web").rules.remove(0);
    system.apply(&topology).unwrap();
    live.is_cut(SILENCE).unwrap();
    assert!(gets_through(&system, "vm1", ip("10.0.2.15"), Udp(CLOSED)), "the other rule still holds");
    topology.group_mut("web").rules.push("{ direction: ingress, protocol: udp, ports: 53 }".to_owned());
    topology.group_mut("web").rules.push("{ direction: ingress, protocol: tcp, ports: 7 }".to_owned());
    system.apply(&topology).unwrap();
    assert!(gets_through(&system, "vm1", ip("10.0.2.15"), Udp(53)), "a new rule");
    assert!(gets_through(&system, "vm1", ip("10.0.2.15"), Tcp(7)));

    // Members of a group that another port's rule names, on both nodes.
    for (member, stranger) in [("vm2", "vm1"), ("vm6", "vm5")] {
        topology = saved.clone();
        system.apply(&topology).unwrap();
        assert!(gets_through(&system, member, ip("10.0.2.13"), Udp(53)), "{member} is a friend");
        assert!(!gets_through(&system, stranger, ip("10.0.2.13"), Udp(53)), "{stranger} is none");
        topology.put_into(member, &["closed"]);
        topology.put_into(stranger, &["closed", "friends"]);
        system.apply(&topology).unwrap();
        assert!(!gets_through(&system, member, ip("10.0.2.13"), Udp(53)), "{member} is none any more");
        assert!(gets_through(&system, stranger, ip("10.0.2.13"), Udp(53)), "{stranger} is now");
    }
    topology = saved.clone();
    system.apply(&topology).unwrap();

    // Ranges of an address group, and a rule of the sender.
    let mut live = open(&system, "vm2", "10.0.2.13", 22);
    topology.address_groups[0].addresses = vec!["10.0.1.11/32".to_owned()];
    system.apply(&topology).unwrap();
    live.is_cut(SILENCE).unwrap();
    assert!(gets_through(&system, "vm1", ip("10.0.2.13"), Tcp(22)));
    let mut live = open(&system, "vm4", "10.0.2.16", 7);
    topology.group_mut("quiet").rules.clear();
    system.apply(&topology).unwrap();
    live.is_cut(SILENCE).unwrap();
    untouched("at the end");
}

/// P4: from the very first packet, while agents start, and with state discarded: nothing gets through that no
/// rule lets through.
#[test]
fn p4_policy_holds_from_the_first_packet() {
    let topology = guarded();
    let lab = Lab::builder().topology(&topology).build().unwrap();
    let _services = furnish(&lab);
    let sniffers = ["vm1", "vm5"].map(|name| lab.workload(name).sniff().unwrap());
    let stop = AtomicBool::new(false);
    // Not the noise of all others.
    let refused = vec![0x5e; 140];
    std::thread::scope(|scope| {
        // Without ARP: to be there before anything else is.
        for (from, to) in [("vm2", "vm1"), ("vm6", "vm5"), ("vm4", "vm1"), ("vm6", "vm1")] {
            let (from, to) = (lab.workload(from), lab.workload(to));
            let (stop, refused) = (&stop, &refused);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let is_near = from.spec().addresses[0][..7] == to.spec().addresses[0][..7];
                    // A router's hardware address is asked for as soon as there is somebody to ask.
                    let mac = if is_near { Some(to.spec_mac()) } else { from.gateway_mac(false).ok() };
                    let Some(mac) = mac else { continue };
                    let way = Addressing {
                        from: from.spec_mac(),
                        to: mac,
                        source: from.ip(false),
                        destination: to.ip(false),
                        ttl: 64,
                    };
                    for port in 0..20 {
                        from.raw_send(&way.udp(37_000 + port, 10, refused)).unwrap();
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
        let mut agents: Vec<_> = ["node-a", "node-b"]
            .map(|node| lab.start_agent(node, &AgentOptions::default()).unwrap())
            .into_iter()
            .collect();
        for agent in &mut agents {
            agent.wait_ready(SOON).unwrap();
        }
        wait::until("what is allowed gets through", SOON, || {
            Ok(gets_through(&lab, "vm1", ip("10.0.2.15"), Tcp(7)))
        })
        .unwrap();
        // Once more, from nothing.
        drop(agents);
        let options = AgentOptions { extra: vec!["--discard-state".to_owned()], ..AgentOptions::default() };
        let mut agents: Vec<_> =
            ["node-a", "node-b"].map(|node| lab.start_agent(node, &options).unwrap()).into_iter().collect();
        for agent in &mut agents {
            agent.wait_ready(SOON).unwrap();
        }
        wait::until("what is allowed gets through again", SOON, || {
            Ok(gets_through(&lab, "vm1", ip("10.0.2.15"), Tcp(7)))
        })
        .unwrap();
        stop.store(true, Ordering::SeqCst);
    });
    for sniffer in sniffers {
        let strays =
            sniffer.collect(MOMENT, |bytes| bytes.len() > 150 && contains(bytes, &refused[..100])).unwrap();
        assert_eq!(strays.len(), 0, "{:02x?}", strays.first());
    }
}

/// P5: a stateless group lets no answer in by itself and leaves no flow; without port security anything goes.
#[test]
fn p5_stateless_groups_and_no_port_security() {
    let mut topology = with_outside();
    topology.add_group(
        "stateless",
        &[
            "{ direction: ingress, protocol: udp, ports: 7 }",
            "{ direction: ingress, protocol: tcp, ports: 7 }",
            "{ direction: ingress, protocol: icmp, icmp_type: 8 }",
            "{ direction: egress }",
        ],
    );
    topology.group_mut("stateless").stateless = true;
    topology.put_into("vm2", &["stateless"]);
    topology.put_into("vm4", &["stateless"]);
    topology.put_into("vm3", &[]);
    topology.put_into("vm5", &[]);
    topology.port_mut("vm3").extra.push("port_security: false".to_owned());
    topology.put_into("vm6", &[]);
    let system = System::start(&topology).unwrap();
    let _services = furnish(&system);

    // In and back, by a rule each way.
    assert_through(
        &system,
        &[
            ("vm1", "10.0.1.12", &[Udp(7), Tcp(7), Ping]),
            ("vm1", "10.0.1.14", &[Udp(7), Tcp(7), Ping]),
            ("vm1", "fd00:1::e", &[Udp(7), Tcp(7)]),
            ("vm3", "10.0.1.12", &[Udp(7), Tcp(7)]),
        ],
        true,
    );
    // Out, but no rule lets the answer in.
    assert_through(
        &system,
        &[
            ("vm2", "10.0.1.11", &[Udp(7), Tcp(7), Ping]),
            ("vm4", "10.0.1.11", &[Udp(7), Tcp(7), Ping]),
            ("vm4", "fd00:1::b", &[Udp(7), Tcp(7), Ping]),
        ],
        false,
    );
    // Between two stateless ports nothing is remembered as a connection, however often they talk.
    for _ in 0..3 {
        assert!(
            gets_through(&system, "vm2", ip("10.0.1.14"), Udp(7))
                == gets_through(&system, "vm4", ip("10.0.1.12"), Udp(7))
        );
    }
    for node in ["node-a", "node-b"] {
        // Connections are here; what is remembered of single decisions is elsewhere, and may be forgotten.
        let dump = system.agent(node).json(&["map-dump", "FLOWS"]).unwrap();
        let keys = dump[0]["entries"].as_array().unwrap().iter().map(|entry| entry["key"].to_string());
        let between: Vec<String> =
            keys.filter(|key| key.contains("10.0.1.12") && key.contains("10.0.1.14")).collect();
        assert!(between.is_empty(), "{node}: {between:?}");
    }

    // Without port security: every source and hardware address, and no groups.
    let (vm3, vm1) = (system.workload("vm3"), system.workload("vm1"));
    assert_through(&system, &[("vm1", "10.0.2.13", &[Udp(7), Udp(CLOSED), Tcp(7), Ping])], true);
    let spoofed = towards(vm3, vm1.ip(false)).source(ip("10.0.2.77")).from([2, 0, 0, 0, 9, 9]);
    let (sniffer, payload) = (vm1.sniff().unwrap(), noise(66));
    vm3.raw_send(&spoofed.udp(38_000, CLOSED, &payload)).unwrap();
    let frame = sniffer.expect(PATIENCE, |bytes| bytes.len() > 60 && contains(bytes, &payload)).unwrap();
    assert_eq!(Frame::check(&frame).unwrap().ip().unwrap().source, ip("10.0.2.77"));
    // With it, and in no group: nothing in, nothing out.
    assert_through(
        &system,
        &[
            ("vm1", "10.0.2.15", &[Udp(7), Tcp(7), Ping]),
            ("vm5", "10.0.1.11", &[Udp(7), Tcp(7), Ping]),
            ("vm6", "fd00:1::b", &[Udp(7), Tcp(7), Ping]),
            ("outside1", OF_VM5, &[Udp(7), Tcp(7), Ping]),
        ],
        false,
    );
}

/// P6: ten thousand ranges and thousands of rules come in force in bounded time, hold, and cost an established
/// flow nothing: it is not decided again.
#[test]
fn p6_ten_thousand_rules_cost_an_established_flow_nothing() {
    let mut topology = guarded();
    let mut system = System::start(&topology).unwrap();
    let _services = furnish(&system);
    let vm1 = system.host("vm1").clone();
    let to = SocketAddr::new(ip("10.0.2.15"), 7);
    let mut talk = Talk::open(&vm1, to, None, PATIENCE).unwrap();
    let fastest = |talk: &mut Talk| (0..1500).map(|_| talk.exchange(64).unwrap()).min().unwrap();
    let before = fastest(&mut talk);

    let many =
        (0..10_000_u32).map(|i| format!("172.{}.{}.{}/32", 16 + i % 16, (i >> 4) & 255, (i >> 12) * 8 + 1));
    topology.address_groups.push(AddressGroup { name: "many".to_owned(), addresses: many.collect() });
    let rules = &mut topology.group_mut("web").rules;
    rules.extend(
        (0..2000).map(|i| format!("{{ direction: ingress, protocol: tcp, ports: {} }}", 10_000 + 2 * i)),
    );
    rules.push("{ direction: ingress, protocol: udp, ports: 22, remote_address_group: many }".to_owned());
    rules.push("{ direction: ingress, protocol: udp, ports: 22, remote: 10.0.1.12/32 }".to_owned());
    let started = Instant::now();
    system.apply(&topology).unwrap();
    let took = started.elapsed();
    assert!(took < Duration::from_secs(30), "in force after {took:?}");
    println!("10,000 ranges and 2,000 rules in force after {took:?}");

    assert!(gets_through(&system, "vm1", ip("10.0.2.15"), Tcp(13_998)), "a rule of many");
    assert!(!gets_through(&system, "vm1", ip("10.0.2.15"), Tcp(13_999)), "between two rules");
    assert!(gets_through(&system, "vm2", ip("10.0.2.15"), Udp(22)));
    assert!(!gets_through(&system, "vm1", ip("10.0.2.15"), Udp(22)));

    talk.exchange(64).unwrap();
    let missed = |system: &System| -> u64 {
        ["node-a", "node-b"].iter().map(|node| system.events(node).unwrap()["flow_miss"]).sum()
    };
    let misses = missed(&system);
    let after = fastest(&mut talk);
    let misses = missed(&system) - misses;
    assert!(misses < 50, "{misses} packets of an established flow were decided again");
    assert!(after < before * 2 + Duration::from_micros(100), "{before:?} before, {after:?} with many rules");
}
