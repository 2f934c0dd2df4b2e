//! Behaviours of networks: L1 to L7. Two nodes, real agents, frames exactly as sent and received.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use vrouter_tests::frame::{
    self, Addressing, Arp, BROADCAST, Frame, ICMPV6, Mac, contains, multicast_mac, open_vxlan,
    set_ipv4_checksum, solicited_node, vxlan_payload,
};
use vrouter_tests::sockets::{tcp_exchange, udp_socket};
use vrouter_tests::topology::{self, Network, NodeEntry, Topology, standard_port};
use vrouter_tests::{Host, Lab, System, Workload};

const PATIENCE: Duration = Duration::from_secs(10);
const FAMILIES: [bool; 2] = [false, true];

/// A UDP datagram from one workload to another, as a frame of one network.
fn way(from: &Workload, to: &Workload, is_v6: bool) -> Addressing {
    Addressing {
        from: from.spec_mac(),
        to: to.spec_mac(),
        source: from.ip(is_v6),
        destination: to.ip(is_v6),
        ttl: 64,
    }
}

/// To everybody on the sender's network.
fn broadcast(from: &Workload) -> Addressing {
    Addressing {
        from: from.spec_mac(),
        to: BROADCAST,
        source: from.ip(false),
        destination: Ipv4Addr::BROADCAST.into(),
        ttl: 64,
    }
}

/// Sends what reaches every other port of the sender's network; it carries `text`.
fn send_marker(from: &Workload, text: &[u8]) {
    from.raw_send(&broadcast(from).udp(9, 9, text)).unwrap();
}

fn v4(workload: &Workload) -> Ipv4Addr {
    workload.v4().parse().unwrap()
}

fn v6(workload: &Workload) -> Ipv6Addr {
    workload.v6().parse().unwrap()
}

/// Whether a frame is ARP or neighbour discovery, in VXLAN or not.
fn is_resolution(bytes: &[u8]) -> bool {
    let bytes = open_vxlan(bytes).map_or(bytes, |(_, inner)| inner);
    bytes[12..14] == frame::ARP.to_be_bytes() || neighbour_kind(bytes).is_some()
}

/// The ICMP type of a neighbour solicitation or advertisement.
fn neighbour_kind(bytes: &[u8]) -> Option<u8> {
    let is_icmp = bytes[12..14] == [0x86, 0xdd] && bytes[20] == ICMPV6;
    let kind = bytes.get(54).copied()?;
    (is_icmp && matches!(kind, 135 | 136)).then_some(kind)
}

/// Number of frames by place.
fn counts<'a>(heard: &BTreeMap<&'a str, Vec<Vec<u8>>>) -> BTreeMap<&'a str, usize> {
    heard.iter().map(|(&name, frames)| (name, frames.len())).collect()
}

/// L1: two ports of one network reach each other, on one node and on two, by what is sent unchanged.
#[test]
fn l1_ports_of_one_network_reach_each_other() {
    let system = System::start(&topology::standard()).unwrap();
    for (from, to) in [("vm1", "vm2"), ("vm1", "vm4"), ("vm4", "vm2"), ("vm3", "vm5"), ("vm6", "vm5")] {
        let (from, to) = (system.workload(from), system.workload(to));
        for is_v6 in FAMILIES {
            let ping = from.ping(to.address(is_v6), 3, &[]).unwrap();
            assert!(ping.is_clean(), "{} to {}: {}", from.name(), to.name(), ping.output);
            assert!(ping.output.contains("ttl=64"), "nothing is routed: {}", ping.output);
            tcp_exchange(from, to, to.ip(is_v6), 1 << 20).unwrap();
        }
    }
    // The very bytes arrive, and at nobody else: first of a flow, and later.
    let others = ["vm1", "vm3", "vm5", "vm6"];
    for (to, other) in [("vm2", "vm4"), ("vm4", "vm2")] {
        let (from, to) = (system.workload("vm1"), system.workload(to));
        for is_v6 in FAMILIES {
            let sent = way(from, to, is_v6).udp(4000, 4001, b"exactly this");
            let ours = |frame: &[u8]| contains(frame, b"exactly this") && frame[12..14] == sent[12..14];
            let listeners = system.listen(&[others.as_slice(), &[other, to.name()]].concat()).unwrap();
            for _ in 0..3 {
                from.raw_send(&sent).unwrap();
            }
            send_marker(from, b"L1 marker");
            let heard = listeners.heard(&["vm2", "vm4"], b"L1 marker", |frame| {
                // Receivers complain of closed ports, quoting the datagram.
                ours(frame) && frame[6..12] == sent[6..12]
            });
            for (name, frames) in heard.unwrap() {
                let expected = if name == to.name() { vec![sent.clone(); 3] } else { vec![] };
                assert_eq!(frames, expected, "at {name}, sent to {}", to.name());
            }
        }
    }
}

/// L1: two networks never leak, even with the same addresses, hardware addresses included.
#[test]
fn l1_networks_with_the_same_addresses_never_leak() {
    let mut topology = Topology {
        networks: vec![
            Network::new("red", &[("red4", "10.0.1.0/24", ""), ("red6", "fd00:1::/64", "")]),
            Network::new("blue", &[("blue4", "10.0.1.0/24", ""), ("blue6", "fd00:1::/64", "")]),
        ],
        nodes: vec![NodeEntry::new("node-a", "192.0.2.1"), NodeEntry::new("node-b", "192.0.2.2")],
        ..Topology::default()
    };
    for (network, name, number, node) in [
        ("red", "red1", 11, "node-a"),
        ("red", "red2", 12, "node-a"),
        ("red", "red3", 13, "node-b"),
        ("blue", "blue1", 11, "node-a"),
        ("blue", "blue2", 12, "node-b"),
        // The same address as red3's is on the other node, and 14 is nobody's in red.
        ("blue", "blue3", 13, "node-a"),
        ("blue", "blue4", 14, "node-b"),
    ] {
        let mut port = standard_port(name, "web", number, node);
        port.network = network.to_owned();
        topology.ports.push(port);
    }
    let system = System::start(&topology).unwrap();
    let (red, blue) = (["red1", "red2", "red3"], ["blue1", "blue2", "blue3", "blue4"]);
    let listeners = system.listen(&blue).unwrap();
    for is_v6 in FAMILIES {
        for (from, to) in [("red1", "red2"), ("red1", "red3"), ("red3", "red2")] {
            let ping = system.workload(from).ping(system.workload(to).address(is_v6), 2, &[]).unwrap();
            assert!(ping.is_clean(), "{from} to {to}: {}", ping.output);
        }
        // Blue's alone: flooded in red, answered by nobody.
        let red1 = system.workload("red1");
        let nobody = if is_v6 { "fd00:1::e" } else { "10.0.1.14" };
        assert_eq!(red1.ping(nobody, 1, &[]).unwrap().received, 0);
        let sent = way(red1, system.workload("blue2"), is_v6).udp(7, 7, b"for red only");
        red1.raw_send(&sent).unwrap();
    }
    for name in red {
        send_marker(system.workload(name), b"for red only");
    }
    send_marker(system.workload("blue1"), b"marker 1");
    let heard = listeners.heard(&["blue2", "blue3", "blue4"], b"marker 1", |_| true).unwrap();
    for (name, frames) in heard {
        // Blue speaks for itself (listener reports); nothing of red's is among it.
        let leaked = frames.iter().filter(|frame| frame[12..14] == [8, 0] || is_resolution(frame));
        assert_eq!(leaked.collect::<Vec<_>>(), Vec::<&Vec<u8>>::new(), "at {name}");
        assert!(!frames.iter().any(|frame| contains(frame, b"for red only")), "at {name}");
    }
    // And each blue port answers for itself while its twin in red is silent.
    let listeners = system.listen(&red).unwrap();
    for is_v6 in FAMILIES {
        for (from, to) in [("blue1", "blue2"), ("blue1", "blue3"), ("blue4", "blue3")] {
            let ping = system.workload(from).ping(system.workload(to).address(is_v6), 2, &[]).unwrap();
            assert!(ping.is_clean(), "{from} to {to}: {}", ping.output);
        }
    }
    send_marker(system.workload("red1"), b"marker 2");
    let heard = listeners.heard(&["red2", "red3"], b"marker 2", |frame| {
        frame[12..14] == [8, 0] || is_resolution(frame) || contains(frame, b"\x3a\x40") && frame[20] == ICMPV6
    });
    assert_eq!(counts(&heard.unwrap()), BTreeMap::from([("red1", 0), ("red2", 0), ("red3", 0)]));
}

/// L2: ARP and ND for known addresses are answered on the asker's node, exactly once; nothing is flooded.
#[test]
fn l2_arp_and_nd_are_answered_once_on_the_askers_node() {
    let system = System::start(&topology::standard()).unwrap();
    let vm1 = system.workload("vm1");
    let (mac, ip, ip6) = (vm1.spec_mac(), v4(vm1), v6(vm1));
    let router = router_mac(&system, "web");
    let targets: [(IpAddr, IpAddr, Mac); 3] = [
        (v4(system.workload("vm2")).into(), v6(system.workload("vm2")).into(), [2, 0, 0, 0, 1, 12]),
        (v4(system.workload("vm4")).into(), v6(system.workload("vm4")).into(), [2, 0, 0, 0, 1, 14]),
        ("10.0.1.1".parse().unwrap(), "fd00:1::1".parse().unwrap(), router),
    ];
    let others = ["vm2", "vm3", "vm4", "vm5"];
    let listeners = system.listen(&others).unwrap();
    let listeners = listeners
        .with("node-a", system.sniff_underlay("node-a").unwrap())
        .with("node-b", system.sniff_underlay("node-b").unwrap());
    let own = vm1.sniff().unwrap();
    for (target, target6, expected) in targets {
        let (IpAddr::V4(target), IpAddr::V6(target6)) = (target, target6) else { unreachable!() };
        // Broadcast, and unicast to whoever has it, as a neighbour that is verified is asked.
        for to in [BROADCAST, expected] {
            vm1.raw_send(&Arp::request(mac, ip, target).frame(mac, to)).unwrap();
            let answer = own.expect(PATIENCE, is_resolution).unwrap();
            assert_eq!((&answer[..6], &answer[6..12]), (&mac[..], &expected[..]));
            let reply = Arp { operation: 2, sender: expected, sender_ip: target, target: mac, target_ip: ip };
            assert_eq!(Arp::read(&answer), Some(reply));
        }
        let group = solicited_node(target6);
        for (to, destination) in [(multicast_mac(group), group), (expected, target6)] {
            let ask =
                Addressing { from: mac, to, source: ip6.into(), destination: destination.into(), ttl: 255 };
            vm1.raw_send(&ask.neighbour(135, target6, 1, mac)).unwrap();
            let answer = Frame::check(&own.expect(PATIENCE, is_resolution).unwrap()).unwrap();
            let packet = answer.ip().unwrap();
            assert_eq!((answer.to, answer.from), (mac, expected));
            assert_eq!((packet.source, packet.destination), (target6.into(), ip6.into()));
            assert_eq!((packet.ttl, packet.icmp()), (255, Some((136, 0))));
            // Solicited, override, and router where it is one.
            let flags = if expected == router { 0xe000_0000 } else { 0x6000_0000 };
            assert_eq!(packet.icmp_word(), flags);
            assert_eq!(packet.payload(), [&target6.octets()[..], &[2, 1], &expected[..]].concat());
        }
        // Duplicate address detection learns that the address is taken.
        let probe = Addressing {
            from: mac,
            to: multicast_mac(group),
            source: Ipv6Addr::UNSPECIFIED.into(),
            destination: group.into(),
            ttl: 255,
        };
        vm1.raw_send(&probe.icmpv6(135, 0, [0; 4], &target6.octets())).unwrap();
        let answer = Frame::check(&own.expect(PATIENCE, is_resolution).unwrap()).unwrap();
        assert_eq!(answer.ip().unwrap().destination, "ff02::1".parse::<IpAddr>().unwrap());
        assert_eq!(answer.from, expected);
    }
    // iputils' own judgement, and that of its duplicate detection.
    for (target, _, expected) in targets {
        let output = vm1.run(&format!("arping -b -c 2 -I eth0 {target}")).unwrap();
        let expected = expected.map(|byte| format!("{byte:02X}")).join(":");
        assert!(output.contains("Received 2 response(s)"), "{output}");
        assert_eq!(
            output.matches(&format!("Unicast reply from {target} [{expected}]")).count(),
            2,
            "{output}"
        );
        let output = vm1.output(&format!("arping -D -c 1 -w 2 -I eth0 {target}")).unwrap();
        assert_eq!(output.status.code(), Some(1), "{target} is taken");
    }
    send_marker(vm1, b"L2 marker");
    let heard = listeners.heard(&["vm2", "vm4", "node-a"], b"L2 marker", is_resolution).unwrap();
    let own = own.collect(Duration::from_millis(50), |frame| {
        is_resolution(frame) && Arp::read(frame).is_none_or(|arp| arp.operation != 2)
    });
    assert_eq!(own.unwrap(), Vec::<Vec<u8>>::new(), "a second answer");
    for (name, frames) in heard {
        assert!(frames.is_empty(), "at {name}: {frames:02x?}");
    }

    // Nobody is known to have these: everybody on the network is asked, once.
    let listeners = system.listen(&others).unwrap().with("vm1", vm1.sniff().unwrap());
    let unknown6: Ipv6Addr = "fd00:1::63".parse().unwrap();
    let group = solicited_node(unknown6);
    let arp = Arp::request(mac, ip, Ipv4Addr::new(10, 0, 1, 99)).frame(mac, BROADCAST);
    let solicitation = Addressing {
        from: mac,
        to: multicast_mac(group),
        source: ip6.into(),
        destination: group.into(),
        ttl: 255,
    }
    .neighbour(135, unknown6, 1, mac);
    vm1.raw_send(&arp).unwrap();
    vm1.raw_send(&solicitation).unwrap();
    send_marker(vm1, b"L2 second marker");
    for (name, mut frames) in listeners.heard(&["vm2", "vm4"], b"L2 second marker", is_resolution).unwrap() {
        // Their own kernels may ask for vm1, whose marker they refuse.
        frames.retain(|bytes| {
            bytes[6..12] == mac || name == "vm1" && bytes[..6] == mac && !is_solicitation(bytes)
        });
        let expected =
            if ["vm2", "vm4"].contains(&name) { vec![arp.clone(), solicitation.clone()] } else { vec![] };
        assert_eq!(frames, expected, "at {name}");
    }
    let output = vm1.output("arping -c 1 -w 1 -I eth0 10.0.1.99").unwrap();
    assert_eq!(output.status.code(), Some(1), "nobody answers");
    let output = vm1.output("arping -D -c 1 -w 1 -I eth0 10.0.1.99").unwrap();
    assert_eq!(output.status.code(), Some(0), "it is free");
    // One's own address is free, too.
    let output = vm1.output(&format!("arping -D -c 1 -w 1 -I eth0 {ip}")).unwrap();
    assert_eq!(output.status.code(), Some(0), "one's own");
}

fn is_redirect(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.get(20) == Some(&58) && frame.get(54) == Some(&137)
}

fn is_solicitation(bytes: &[u8]) -> bool {
    neighbour_kind(bytes) == Some(135) || Arp::read(bytes).is_some_and(|arp| arp.operation == 1)
}

/// The router's hardware address on a network, as the agent knows it.
fn router_mac(system: &System, network: &str) -> Mac {
    let rows = system.agent("node-a").json(&["show", "arp"]).unwrap();
    let row =
        rows.as_array().unwrap().iter().find(|row| row["network"] == network && row["owner"] == "router r1");
    vrouter_tests::host::parse_mac(row.unwrap()["mac"].as_str().unwrap()).unwrap()
}

/// What vm1 must not send, to `to`, each with the reason it is dropped for.
fn forgeries(
    vm1: &Workload,
    victim: &Workload,
    to: Addressing,
    to6: Addressing,
) -> Vec<(&'static str, Vec<u8>)> {
    let (mac, foreign) = (vm1.spec_mac(), victim.spec_mac());
    let (ip, theirs) = (v4(vm1), v4(victim));
    let (ip6, theirs6) = (v6(vm1), v6(victim));
    let link_local: Ipv6Addr = "fe80::ff:fe00:99".parse().unwrap();
    let arp = |operation, sender, sender_ip| Arp {
        operation,
        sender,
        sender_ip,
        target: to.to,
        target_ip: sender_ip,
    };
    let nd = to6.ttl(255);
    let router_lifetime = [64, 0, 0x07, 0x08];
    vec![
        ("spoofed_mac", to.from(foreign).udp(1, 2, b"spoof")),
        ("spoofed_mac", to6.from(foreign).udp(1, 2, b"spoof")),
        ("spoofed_mac", to.from(foreign).source(theirs.into()).udp(1, 2, b"spoof")),
        ("spoofed_mac", to6.from(foreign).source(theirs6.into()).udp(1, 2, b"spoof")),
        ("spoofed_ip", to.source(theirs.into()).udp(1, 2, b"spoof")),
        ("spoofed_ip", to6.source(theirs6.into()).udp(1, 2, b"spoof")),
        ("spoofed_ip", to.source(Ipv4Addr::UNSPECIFIED.into()).udp(1, 2, b"spoof")),
        ("spoofed_ip", to6.source(Ipv6Addr::UNSPECIFIED.into()).udp(1, 2, b"spoof")),
        ("spoofed_ip", to6.source(link_local.into()).udp(1, 2, b"spoof")),
        ("ethernet_source", to.from([0; 6]).udp(1, 2, b"spoof")),
        ("ethernet_source", to.from([3, 0, 0, 0, 0, 1]).udp(1, 2, b"spoof")),
        // Claims: by reply, by gratuitous request, with a foreign hardware address inside, and outside too.
        ("spoofed_arp", arp(2, mac, theirs).frame(mac, to.to)),
        ("spoofed_arp", arp(1, mac, theirs).frame(mac, to.to)),
        ("spoofed_arp", arp(2, foreign, theirs).frame(mac, to.to)),
        ("spoofed_arp", arp(2, foreign, ip).frame(mac, to.to)),
        ("spoofed_mac", arp(2, foreign, theirs).frame(foreign, to.to)),
        ("spoofed_nd", nd.neighbour(136, theirs6, 2, mac)),
        ("spoofed_nd", nd.neighbour(136, ip6, 2, foreign)),
        ("spoofed_nd", nd.neighbour(135, theirs6, 1, foreign)),
        ("nd_malformed", to6.ttl(64).neighbour(136, ip6, 2, mac)),
        ("rogue_ra", nd.icmpv6(134, 0, router_lifetime, &[0; 8])),
        ("rogue_ra", nd.icmpv6(137, 0, [0; 4], &[theirs6.octets(), ip6.octets()].concat())),
        ("rogue_dhcp", to.udp(67, 68, &[2; 240])),
        ("rogue_dhcp", to6.udp(547, 546, &[2; 40])),
    ]
}

/// L3: a port cannot send from a MAC or IP that is not its own, nor answer ARP, ND or DHCP for others.
#[test]
fn l3_forgeries_arrive_nowhere_and_are_counted() {
    let system = System::start(&topology::standard()).unwrap();
    let (vm1, vm2, vm4) = (system.workload("vm1"), system.workload("vm2"), system.workload("vm4"));
    let all = ["vm2", "vm3", "vm4", "vm5", "vm6"];
    let everybody: Ipv6Addr = "ff02::1".parse().unwrap();
    let everybody6 =
        Addressing { to: multicast_mac(everybody), destination: everybody.into(), ..way(vm1, vm4, true) };
    // To a port here, to one there, and to all.
    let destinations = [
        (vm4, way(vm1, vm2, false), way(vm1, vm2, true)),
        (vm2, way(vm1, vm4, false), way(vm1, vm4, true)),
        (vm2, broadcast(vm1), everybody6),
    ];
    let listeners = system.listen(&all).unwrap();
    let listeners = listeners.with("node-a", system.sniff_underlay("node-a").unwrap());
    for (round, (victim, to, to6)) in destinations.into_iter().enumerate() {
        for (reason, frame) in forgeries(vm1, victim, to, to6) {
            let marker = format!("L3 marker {round}.");
            let heard = system
                .expect_drops("node-a", &[(reason, 3)], || {
                    for _ in 0..3 {
                        vm1.raw_send(&frame)?;
                    }
                    send_marker(vm1, marker.as_bytes());
                    listeners.heard(&["vm2", "vm4", "node-a"], marker.as_bytes(), |bytes| {
                        let bytes = open_vxlan(bytes).map_or(bytes, |(_, inner)| inner);
                        // Not what the ports say to each other themselves, such as complaints.
                        bytes == frame || contains(bytes, b"spoof") || bytes[6..12] == vm1.spec_mac()
                    })
                })
                .unwrap_or_else(|error| panic!("{frame:02x?}: {error:#}"));
            for (name, frames) in heard {
                let frames: Vec<_> =
                    frames.iter().filter(|bytes| !is_resolution(bytes) || **bytes == frame).collect();
                assert!(frames.is_empty(), "{reason}: at {name}: {frames:02x?}");
            }
        }
    }
    assert_eq!(system.drops("node-b").unwrap().values().sum::<u64>(), 0, "nothing came so far");
}

/// L3: what an allowed address pair names, and anything where port security is off, is let through.
#[test]
fn l3_address_pairs_and_no_port_security_let_it_through() {
    let pair: Mac = [2, 0, 0, 0, 1, 0x63];
    let (virtual4, virtual6) = (Ipv4Addr::new(10, 0, 1, 99), "fd00:1::63".parse::<Ipv6Addr>().unwrap());
    let mut topology = topology::standard();
    topology.port_mut("vm1").extra.extend([
        "allowed_address_pairs:".to_owned(),
        "  - { ip: 10.0.1.99, mac: \"02:00:00:00:01:63\" }".to_owned(),
        "  - { ip: \"fd00:1::63\", mac: \"02:00:00:00:01:63\" }".to_owned(),
        "  - { ip: 10.8.0.0/16 }".to_owned(),
    ]);
    topology.port_mut("vm4").extra.push("port_security: false".to_owned());
    let system = System::start(&topology).unwrap();
    let (vm1, vm2, vm4) = (system.workload("vm1"), system.workload("vm2"), system.workload("vm4"));
    let listeners = system.listen(&["vm2"]).unwrap();
    let arrives = |from: &Workload, frame: &[u8]| {
        from.raw_send(frame).unwrap();
        send_marker(from, b"pair marker");
        let heard = listeners.heard(&["vm2"], b"pair marker", |bytes| bytes == frame).unwrap();
        heard["vm2"].len() == 1
    };
    let (way4, way6) = (way(vm1, vm2, false), way(vm1, vm2, true));
    assert!(arrives(vm1, &way4.from(pair).source(virtual4.into()).udp(1, 2, b"pair")));
    assert!(arrives(vm1, &way6.from(pair).source(virtual6.into()).udp(1, 2, b"pair")));
    assert!(arrives(vm1, &way4.source("10.8.7.6".parse().unwrap()).udp(1, 2, b"pair")), "the port's MAC");
    assert!(arrives(vm1, &Arp::request(pair, virtual4, virtual4).frame(pair, BROADCAST)), "announcement");
    assert!(arrives(
        vm1,
        &way6.ttl(255).from(pair).source(virtual6.into()).neighbour(136, virtual6, 2, pair)
    ));
    // Not beyond the pair: MAC and IP go together, and the range has an end.
    let forged = [
        ("spoofed_ip", way4.source(virtual4.into()).udp(1, 2, b"pair")),
        ("spoofed_mac", way4.from(pair).udp(1, 2, b"pair")),
        ("spoofed_ip", way4.source("10.9.0.1".parse().unwrap()).udp(1, 2, b"pair")),
        ("spoofed_arp", Arp::request(vm1.spec_mac(), virtual4, virtual4).frame(vm1.spec_mac(), BROADCAST)),
    ];
    for (reason, frame) in forged {
        system
            .expect_drops("node-a", &[(reason, 1)], || {
                assert!(!arrives(vm1, &frame), "{reason}");
                Ok(())
            })
            .unwrap();
    }
    // Without port security, everything a switch carries.
    let (to4, to6) = (way(vm4, vm2, false), way(vm4, vm2, true));
    let skipped = ["ethernet_source", "nd_malformed"];
    for (reason, frame) in forgeries(vm4, vm1, to4, to6) {
        if skipped.contains(&reason) {
            continue;
        }
        // A solicitation for a known address is answered, and a request; that is no matter of security.
        if is_solicitation(&frame) {
            continue;
        }
        // A redirect is an error about no connection: the receiver's policy has no use for it.
        let redirect = is_redirect(&frame);
        let (node, drops): (_, &[_]) =
            if redirect { ("node-a", &[("icmp_unrelated", 1)]) } else { ("node-b", &[]) };
        // What hosts believed of an earlier one they ask about after five seconds, three times, at an address nobody has.
        for host in [vm1, vm2] {
            host.netns().run("ip neigh flush all").unwrap();
        }
        let arrived = system.expect_drops(node, drops, || Ok(arrives(vm4, &frame))).unwrap();
        assert_eq!(arrived, !redirect, "{reason}: {frame:02x?}");
    }
}

/// L5: broadcast and multicast reach every port of the network once, on all nodes, and nobody else.
#[test]
fn l5_broadcast_and_multicast_reach_every_port_once() {
    let mut topology = topology::standard();
    topology.ports.push(standard_port("vm7", "web", 17, "node-b"));
    let system = System::start(&topology).unwrap();
    let all = ["vm1", "vm2", "vm3", "vm4", "vm5", "vm6", "vm7"];
    let web = ["vm1", "vm2", "vm4", "vm7"];
    for sender in ["vm1", "vm7"] {
        let from = system.workload(sender);
        let marked: Vec<&str> = web.into_iter().filter(|name| *name != sender).collect();
        let to = |address: &str| -> Addressing {
            let destination: IpAddr = address.parse().unwrap();
            let to = match destination {
                IpAddr::V6(group) => multicast_mac(group),
                IpAddr::V4(group) if group.is_multicast() => {
                    let [_, a, b, c] = group.octets();
                    [1, 0, 0x5e, a & 0x7f, b, c]
                }
                IpAddr::V4(_) => BROADCAST,
            };
            Addressing {
                from: from.spec_mac(),
                to,
                source: from.ip(destination.is_ipv6()),
                destination,
                ttl: 1,
            }
        };
        let addresses = [
            "255.255.255.255",
            "10.0.1.255",
            "224.0.0.1",
            "224.0.0.251",
            "239.1.2.3",
            "ff02::1",
            "ff02::fb",
            "ff05::1:3",
        ];
        for address in addresses {
            let listeners = system.listen(&all).unwrap();
            let listeners = listeners
                .with("node-a", system.sniff_underlay("node-a").unwrap())
                .with("node-b", system.sniff_underlay("node-b").unwrap());
            let here = if sender == "vm1" { "node-a" } else { "node-b" };
            let sent = to(address).udp(5353, 5353, b"to everybody");
            for _ in 0..2 {
                from.raw_send(&sent).unwrap();
            }
            send_marker(from, b"L5 marker");
            let heard = listeners.heard(&[&marked[..], &[here]].concat(), b"L5 marker", |bytes| {
                let bytes = open_vxlan(bytes).map_or(bytes, |(_, inner)| inner);
                contains(bytes, b"to everybody") && bytes[..6] == sent[..6]
            });
            for (name, frames) in heard.unwrap() {
                let inner: Vec<Vec<u8>> = frames
                    .iter()
                    .map(|bytes| open_vxlan(bytes).map_or(&bytes[..], |(_, inner)| inner).to_vec())
                    .collect();
                let receives = marked.contains(&name) || name == here;
                let expected = if receives { vec![sent.clone(); 2] } else { vec![] };
                assert_eq!(inner, expected, "{address} from {sender}, at {name}");
            }
        }
        // Everybody answers a ping to all nodes, once.
        let own = from.sniff().unwrap();
        from.raw_send(&to("ff02::1").ttl(64).echo(0x4c35, b"all nodes")).unwrap();
        let is_reply = |bytes: &[u8]| contains(bytes, b"all nodes") && bytes[54] == 129;
        let mut replies: Vec<Vec<u8>> =
            marked.iter().map(|_| own.expect(PATIENCE, is_reply).unwrap()).collect();
        replies.extend(own.collect(Duration::from_millis(50), is_reply).unwrap());
        let mut sources: Vec<&[u8]> = replies.iter().map(|bytes| &bytes[6..12]).collect();
        sources.sort_unstable();
        let macs = marked.iter().map(|name| system.workload(name).spec_mac());
        assert_eq!(sources, macs.collect::<Vec<_>>());
    }
    for node in ["node-a", "node-b"] {
        assert_eq!(system.drops(node).unwrap().values().sum::<u64>(), 0, "{node}");
    }
}

const FOREIGN_MAC: &str = "02:00:00:00:01:40";
const VNI: u32 = 1001;

/// The standard lab with a third node `ext` that runs no agent, and a fourth host `stranger` that is not in
/// the topology; `vmx` is a port of `ext`.
fn with_foreign_host() -> System {
    let mut topology = topology::standard();
    topology.network_mut("web").vni = Some(VNI);
    topology.nodes.push(NodeEntry::new("ext", "192.0.2.3"));
    let lab = Lab::builder().topology(&topology).foreign("stranger", 50).build().unwrap();
    let mut port = standard_port("vmx", "web", 0x40, "ext");
    port.interface = "vxlan0".to_owned();
    topology.ports.push(port);
    lab.write_topology(&topology).unwrap();
    System::start_in(lab, &["node-a", "node-b"]).unwrap()
}

/// L6: a Linux `vxlan` device with the VNI and the VTEPs joins the network and talks to ports both ways.
#[test]
fn l6_a_linux_vxlan_device_joins_the_network() {
    let system = with_foreign_host();
    let ext = system.node("ext");
    ext.netns()
        .ip(&[
            format!("link add vxlan0 mtu 1450 address {FOREIGN_MAC} type vxlan id {VNI} dstport 4789 local 192.0.2.3"),
            "address add 10.0.1.64/24 dev vxlan0".to_owned(),
            "address add fd00:1::40/64 dev vxlan0 nodad".to_owned(),
            "link set vxlan0 up".to_owned(),
        ])
        .unwrap();
    for vtep in ["192.0.2.1", "192.0.2.2"] {
        ext.run(&format!("bridge fdb append 00:00:00:00:00:00 dev vxlan0 dst {vtep}")).unwrap();
    }
    let foreign: [IpAddr; 2] = ["10.0.1.64".parse().unwrap(), "fd00:1::40".parse().unwrap()];
    for name in ["vm1", "vm2", "vm4"] {
        let vm = system.workload(name);
        for is_v6 in FAMILIES {
            let address = foreign[usize::from(is_v6)];
            for (from, to) in [(ext as &Host, vm.ip(is_v6)), (vm, address)] {
                let ping = from.ping(to, 3, &[]).unwrap();
                assert!(ping.is_clean(), "{} to {to}: {}", from.name(), ping.output);
                assert!(ping.output.contains("ttl=64"), "{}", ping.output);
            }
            tcp_exchange(ext, vm, vm.ip(is_v6), 2 << 20).unwrap();
            tcp_exchange(vm, ext, address, 2 << 20).unwrap();
            let largest = if is_v6 { "1402" } else { "1422" };
            assert!(vm.ping(address, 2, &["-M", "do", "-s", largest]).unwrap().is_clean());
        }
    }
    // Its broadcasts are everybody's, once, and it hears those of the ports.
    let listeners = system.listen(&["vm1", "vm2", "vm3", "vm4", "vm5"]).unwrap();
    let foreign_mac = vrouter_tests::host::parse_mac(FOREIGN_MAC).unwrap();
    let sent = Addressing { from: foreign_mac, source: foreign[0], ..broadcast(system.workload("vm1")) };
    let sent = sent.udp(1, 2, b"from abroad");
    let heard_abroad = ext.sniff_on("vxlan0").unwrap();
    ext.raw_send_on("vxlan0", &sent).unwrap();
    let heard = listeners.heard(&["vm1", "vm2", "vm4"], b"from abroad", |_| false).unwrap();
    assert_eq!(counts(&heard).len(), 5);
    ext.raw_send_on("vxlan0", &sent).unwrap();
    send_marker(system.workload("vm1"), b"to abroad");
    assert!(heard_abroad.expect(PATIENCE, |bytes| contains(bytes, b"to abroad")).is_ok());
    let again = heard_abroad.collect(Duration::from_millis(50), |bytes| contains(bytes, b"to abroad"));
    assert_eq!(again.unwrap().len(), 0, "once");
    let heard = listeners.heard(&["vm2", "vm4"], b"to abroad", |bytes| *bytes == sent).unwrap();
    let once = BTreeMap::from([("vm1", 1), ("vm2", 1), ("vm3", 0), ("vm4", 1), ("vm5", 0)]);
    assert_eq!(counts(&heard), once);
    for node in ["node-a", "node-b"] {
        assert_eq!(system.drops(node).unwrap().values().sum::<u64>(), 0, "{node}");
    }
}

/// L7: VXLAN from an unknown address, with an unknown VNI or a bad header is dropped, each for its reason.
#[test]
fn l7_vxlan_garbage_is_dropped_and_counted() {
    let system = with_foreign_host();
    let (ext, stranger): (&Host, &Host) = (system.node("ext"), system.foreign("stranger"));
    let (vm1, vm4) = (system.workload("vm1"), system.workload("vm4"));
    let foreign: Addressing = Addressing {
        from: vrouter_tests::host::parse_mac(FOREIGN_MAC).unwrap(),
        source: "10.0.1.64".parse().unwrap(),
        ..way(vm4, vm1, false)
    };
    let inner = foreign.udp(1, 2, b"garbage");
    let for_vm4 = Addressing { to: vm4.spec_mac(), destination: vm4.ip(false), ..foreign };
    let for_all = Addressing { to: BROADCAST, destination: Ipv4Addr::BROADCAST.into(), ..foreign };
    let for_nobody = Addressing { to: [2, 0, 0, 0, 9, 9], ..foreign };
    let tagged = [&inner[..12], &[0x81, 0, 0, 5], &inner[12..]].concat();
    // Of no flow yet: only what is decided anew is verified.
    let mut bad_sum = foreign.udp(3, 4, b"garbage");
    bad_sum[24] ^= 1;
    let good = vxlan_payload(8, VNI, &inner);
    let payload = |inner: &[u8]| vxlan_payload(8, VNI, inner);
    let cases: Vec<(&Host, &str, Vec<u8>)> = vec![
        (stranger, "vtep_unknown", good.clone()),
        (stranger, "vtep_unknown", payload(&for_all.udp(1, 2, b"garbage"))),
        (ext, "vni_unknown", vxlan_payload(8, 999, &inner)),
        (ext, "vni_unknown", vxlan_payload(8, 0, &inner)),
        (ext, "vni_unknown", vxlan_payload(8, 0xff_ffff, &for_all.udp(1, 2, b"garbage"))),
        (ext, "vxlan_malformed", vxlan_payload(0, VNI, &inner)),
        (ext, "vxlan_malformed", vxlan_payload(0xf7, VNI, &inner)),
        (ext, "vxlan_malformed", good[..0].to_vec()),
        (ext, "vxlan_malformed", good[..7].to_vec()),
        (ext, "vxlan_malformed", good[..8].to_vec()),
        (ext, "vxlan_malformed", good[..8 + 13].to_vec()),
        (ext, "frame_truncated", good[..8 + 14].to_vec()),
        (ext, "frame_truncated", good[..8 + 14 + 19].to_vec()),
        (ext, "frame_truncated", good[..good.len() - 1].to_vec()),
        (ext, "vlan_tagged", payload(&tagged)),
        (ext, "ipv4_checksum", payload(&bad_sum)),
        (ext, "ethernet_source", payload(&foreign.from([0xff; 6]).udp(1, 2, b"garbage"))),
        (ext, "tunnel_misdelivered", payload(&for_vm4.udp(1, 2, b"garbage"))),
        (ext, "tunnel_misdelivered", payload(&for_nobody.udp(1, 2, b"garbage"))),
    ];
    let listeners = system.listen(&["vm1", "vm2", "vm3", "vm4", "vm5", "vm6"]).unwrap();
    let listeners = listeners.with("node-a", system.sniff_underlay("node-a").unwrap());
    // What is right arrives: the cases below differ from it in one point each.
    let send = |host: &Host, payload: &[u8]| {
        udp_socket(host, false).unwrap().send_to(payload, "192.0.2.1:4789").unwrap();
    };
    let marker = |text: &str| payload(&for_all.udp(9, 9, text.as_bytes()));
    send(ext, &good);
    send(ext, &marker("L7 start"));
    let heard = listeners.heard(&["vm1", "vm2"], b"L7 start", |bytes| *bytes == inner).unwrap();
    assert_eq!((heard["vm1"].len(), heard["vm2"].len(), heard["vm4"].len()), (1, 0, 0));
    for (at, (host, reason, garbage)) in cases.into_iter().enumerate() {
        let text = format!("L7 marker {at}.");
        let heard = system
            .expect_drops("node-a", &[(reason, 2)], || {
                send(host, &garbage);
                send(host, &garbage);
                send(ext, &marker(&text));
                listeners.heard(&["vm1", "vm2"], text.as_bytes(), |bytes| contains(bytes, b"garbage"))
            })
            .unwrap_or_else(|error| panic!("case {at}, {reason}: {error:#}"));
        assert!(counts(&heard).values().all(|&count| count == 0), "{reason}: {heard:02x?}");
    }

    // What a socket cannot send: fragments, outer options.
    let outer = Addressing {
        from: ext.mac().unwrap(),
        to: system.node("node-a").mac().unwrap(),
        source: "192.0.2.3".parse().unwrap(),
        destination: "192.0.2.1".parse().unwrap(),
        ttl: 64,
    };
    let options = outer.udp_with_options(&[1, 1, 1, 0], 4789, &good);
    let mut first_fragment = outer.udp(40_000, 4789, &good);
    first_fragment[20] = 0x20;
    set_ipv4_checksum(&mut first_fragment);
    // UDP promises more than IP has.
    let mut long = outer.udp(40_000, 4789, &good);
    long[39] += 100;
    for frame in [options, first_fragment, long] {
        let heard = system
            .expect_drops("node-a", &[("vxlan_malformed", 1)], || {
                ext.raw_send(&frame)?;
                send(ext, &marker("L7 last"));
                listeners.heard(&["vm1", "vm2"], b"L7 last", |bytes| contains(bytes, b"garbage"))
            })
            .unwrap_or_else(|error| panic!("{frame:02x?}: {error:#}"));
        assert!(counts(&heard).values().all(|&count| count == 0), "{heard:02x?}");
    }
    assert_eq!(system.drops("node-b").unwrap().values().sum::<u64>(), 0);
}
