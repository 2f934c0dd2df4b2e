//! Behaviours of routers: R1 to R5, R8, R9. Two nodes, real agents, frames exactly as sent and received.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use vrouter_tests::frame::{
    Addressing, BROADCAST, EXPERIMENT, Frame, Mac, Packet, TCP, UDP, contains, set_ipv4_checksum,
};
use vrouter_tests::host::parse_mac;
use vrouter_tests::sockets::{noise, tcp_exchange, tcp_refused, udp_exchange, udp_refused};
use vrouter_tests::tools::traceroute;
use vrouter_tests::topology::{self, Network, Router, Topology, standard_port};
use vrouter_tests::{Sniffer, System, Workload};

const PATIENCE: Duration = Duration::from_secs(10);
/// What must not come has this long to come.
const MOMENT: Duration = Duration::from_millis(50);
/// What is said "at once" is said sooner: before anybody tries a second time.
const AT_ONCE: Duration = Duration::from_millis(900);
const FAMILIES: [bool; 2] = [false, true];
const EVERY_WORKLOAD: [&str; 6] = ["vm1", "vm2", "vm3", "vm4", "vm5", "vm6"];

/// The router's address on the network numbered 1 (`web`) or 2 (`db`) of the standard lab.
fn gateway(number: u8, is_v6: bool) -> IpAddr {
    if is_v6 {
        Ipv6Addr::new(0xfd00, number.into(), 0, 0, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(10, 0, number, 1).into()
    }
}

/// The hardware address ARP or ND gives a workload for its gateway.
fn router_mac(vm: &Workload, gateway: IpAddr) -> Mac {
    assert!(vm.ping(gateway, 1, &[]).unwrap().is_clean(), "{} has no gateway", vm.name());
    let neighbours = vm.neighbours().unwrap();
    let entry = neighbours.iter().find(|neighbour| neighbour.dst == gateway.to_string()).unwrap();
    parse_mac(entry.lladdr.as_ref().unwrap()).unwrap()
}

/// From a workload to an address behind its router.
fn to_router(vm: &Workload, destination: IpAddr) -> Addressing {
    let is_v6 = destination.is_ipv6();
    let number = if vm.v4().starts_with("10.0.1.") { 1 } else { 2 };
    Addressing {
        from: vm.spec_mac(),
        to: router_mac(vm, gateway(number, is_v6)),
        source: vm.ip(is_v6),
        destination,
        ttl: 64,
    }
}

/// The next frame that satisfies `wanted`, which must be valid.
fn receive(sniffer: &Sniffer, wanted: impl Fn(&[u8]) -> bool) -> Frame {
    Frame::check(&sniffer.expect(PATIENCE, wanted).unwrap()).unwrap()
}

/// The next ICMP error of that type and code, which must be valid and quote the packet of `sent`, unchanged
/// but for what routers on the way there have to change.
fn receive_error(sniffer: &Sniffer, kind: (u8, u8), sent: &[u8]) -> Frame {
    let at = if sent[12] == 8 { 34 } else { 54 };
    let is_error = |bytes: &[u8]| {
        bytes[12..14] == sent[12..14]
            && bytes.len() > at + 8
            && [bytes[at], bytes[at + 1]] == [kind.0, kind.1]
            && bytes[at + 8..].starts_with(&sent[14..34])
    };
    let frame = receive(sniffer, is_error);
    let packet = frame.ip().unwrap();
    assert_eq!(packet.icmp(), Some(kind));
    let quoted = packet.payload();
    let most = if sent[12] == 8 { 576 - 28 } else { 1280 - 48 };
    assert_eq!(quoted, &sent[14..][..quoted.len()], "what is quoted is what was sent");
    assert_eq!(quoted.len(), most.min(sent.len() - 14), "as much as may be quoted");
    frame
}

/// Nothing that satisfies `unwanted` comes, though the router is awake: it answers a ping sent afterwards.
fn assert_silence(vm: &Workload, sniffer: &Sniffer, gateway: IpAddr, unwanted: impl Fn(&[u8]) -> bool) {
    assert!(vm.ping(gateway, 1, &["-p", "5e5e5e5e"]).unwrap().is_clean());
    let frames = sniffer.collect(MOMENT, |bytes| !contains(bytes, &[0x5e; 8]) && unwanted(bytes)).unwrap();
    assert!(frames.is_empty(), "{frames:02x?}");
}

/// Whether a frame has this protocol: IPv4 without options, IPv6 without extension headers.
fn is_protocol(bytes: &[u8], is_v6: bool, protocol: u8) -> bool {
    let (ethertype, at) = if is_v6 { ([0x86, 0xdd], 20) } else { ([8, 0], 23) };
    bytes[12..14] == ethertype && bytes[at] == protocol
}

/// An ICMP error or answer of any kind, as opposed to neighbour discovery.
fn is_icmp_of_router(bytes: &[u8], router: Mac) -> bool {
    let v4 = is_protocol(bytes, false, 1);
    let v6 = is_protocol(bytes, true, 58) && !matches!(bytes[54], 133..=137);
    bytes[6..12] == router && (v4 || v6 || is_protocol(bytes, false, TCP) || is_protocol(bytes, true, TCP))
}

/// R1: routing on one node and across nodes: TTL minus one, the router's MAC as source, nothing else changed.
#[test]
fn r1_routing_changes_the_ttl_and_the_macs_only() {
    let system = System::start(&topology::standard()).unwrap();
    let vm1 = system.workload("vm1");
    // The kernel verifies what it receives: first as kernels send, with offloads.
    for (from, to) in [("vm1", "vm3"), ("vm1", "vm5"), ("vm6", "vm2")] {
        let (from, to) = (system.workload(from), system.workload(to));
        for is_v6 in FAMILIES {
            let ping = from.ping(to.address(is_v6), 3, &[]).unwrap();
            assert!(ping.is_clean() && ping.output.contains("ttl=63"), "{}", ping.output);
            tcp_exchange(from, to, to.ip(is_v6), 4 << 20).unwrap();
            for length in [0, 1, 1000, 1402] {
                udp_exchange(from, from.ip(is_v6), to, to.ip(is_v6), &noise(length)).unwrap();
            }
        }
    }
    for name in EVERY_WORKLOAD {
        system.workload(name).offloads_off().unwrap();
    }
    for to in ["vm3", "vm5"] {
        let to = system.workload(to);
        for is_v6 in FAMILIES {
            let (near, far) = (router_mac(vm1, gateway(1, is_v6)), router_mac(to, gateway(2, is_v6)));
            assert_ne!(near, far, "an interface has an address of its own");
            let (source, destination) = (vm1.ip(is_v6), to.ip(is_v6));
            let (there, here) = (to.sniff().unwrap(), vm1.sniff().unwrap());
            // An exact datagram.
            let sent = Addressing { from: vm1.spec_mac(), to: near, source, destination, ttl: 64 };
            let payload = noise(333);
            to.run("ip link show").unwrap();
            vm1.raw_send(&sent.udp(4000, 4001, &payload)).unwrap();
            let frame = receive(&there, |bytes| contains(bytes, &payload[..200]));
            let Packet { transport, .. } =
                Frame::check(&sent.udp(4000, 4001, &payload)).unwrap().packet.unwrap();
            let packet = Packet { source, destination, ttl: 63, protocol: UDP, transport };
            let expected =
                Frame { to: to.spec_mac(), from: far, ethertype: frame.ethertype, packet: Some(packet) };
            assert_eq!(frame, expected);
            // A ping, both ways.
            let ping = vm1.ping(destination, 2, &["-p", "a1a2a3a4"]).unwrap();
            assert!(ping.is_clean(), "{}", ping.output);
            let is_ping = |bytes: &[u8]| contains(bytes, &[0xa1, 0xa2, 0xa3, 0xa4]);
            for (at, to, from) in [(&there, to.spec_mac(), far), (&here, vm1.spec_mac(), near)] {
                let frame = receive(at, is_ping);
                assert_eq!((frame.to, frame.from, frame.ip().unwrap().ttl), (to, from, 63));
                let ends = (frame.ip().unwrap().source, frame.ip().unwrap().destination);
                let request = (source, destination);
                assert!(ends == request || ends == (destination, source), "{ends:?}");
                assert_eq!(at.collect(MOMENT, is_ping).unwrap().len(), 1, "one frame for each");
            }
            // TCP, every segment.
            let capture = to.capture("tcp").unwrap();
            let back = vm1.capture("tcp").unwrap();
            tcp_exchange(vm1, to, destination, 100_000).unwrap();
            for frames in [capture.stop().unwrap(), back.stop().unwrap()] {
                assert!(frames.len() > 100_000 / 1450);
                for bytes in frames {
                    let frame = Frame::check(&bytes).unwrap();
                    let packet = frame.ip().unwrap();
                    let came = packet.ttl == 63;
                    assert!(packet.ttl == 64 || [far, near].contains(&frame.from), "{frame:02x?}");
                    assert!(!came || [to.spec_mac(), vm1.spec_mac()].contains(&frame.to), "{frame:02x?}");
                }
            }
        }
    }
    for node in ["node-a", "node-b"] {
        // What was sent raw is refused by its receiver, not dropped here.
        assert_eq!(system.drops(node).unwrap().values().sum::<u64>(), 0, "{node}");
    }
}

/// R2: the longest prefix wins; static routes through a workload; blackhole and unreachable routes.
#[test]
fn r2_longest_prefix_static_blackhole_and_unreachable_routes() {
    let mut topology = topology::standard();
    topology.router_mut("r1").routes.extend(
        [
            "{ destination: 10.9.0.0/16, nexthop: 10.0.2.13 }",
            "{ destination: 10.9.7.7/32, nexthop: 10.0.2.15 }",
            "{ destination: 10.9.8.0/24, nexthop: unreachable }",
            "{ destination: 10.9.9.0/24, nexthop: blackhole }",
            "{ destination: 10.9.9.9/32, nexthop: 10.0.1.14 }",
            "{ destination: \"fd09::/32\", nexthop: \"fd00:2::d\" }",
            "{ destination: \"fd09:0:7::7/128\", nexthop: \"fd00:2::f\" }",
            "{ destination: \"fd09:0:8::/48\", nexthop: unreachable }",
            "{ destination: \"fd09:0:9::/48\", nexthop: blackhole }",
            "{ destination: \"fd09:0:9::9/128\", nexthop: \"fd00:1::e\" }",
        ]
        .map(str::to_owned),
    );
    // vm3 forwards to vm6, which has 10.9.1.1; vm3's neighbours may be anybody of web.
    topology.port_mut("vm3").extra.extend(
        ["allowed_address_pairs:", "  - { ip: 10.0.1.0/24 }", "  - { ip: \"fd00:1::/64\" }"]
            .map(str::to_owned),
    );
    topology.port_mut("vm6").extra.push("port_security: false".to_owned());
    let system = System::start(&topology).unwrap();
    let (vm1, vm3, vm6) = (system.workload("vm1"), system.workload("vm3"), system.workload("vm6"));
    for (key, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/eth0/send_redirects", "0"),
    ] {
        vm3.netns().set_sysctl(key, value).unwrap();
    }
    vm3.run("ip route add 10.9.1.1 via 10.0.2.16").unwrap();
    vm3.run("ip -6 route add fd09:0:1::1 via fd00:2::10").unwrap();
    vm6.netns().ip(&["address add 10.9.1.1/32 dev lo", "address add fd09:0:1::1/128 dev lo nodad"]).unwrap();

    for (client, is_v6) in
        [(vm1, false), (vm1, true), (system.workload("vm4"), false), (system.workload("vm4"), true)]
    {
        let (far, longer, beside, unreachable, blackhole) = if is_v6 {
            ("fd09:0:1::1", "fd09:0:7::7", "fd09:0:7::6", "fd09:0:8::1", "fd09:0:9::1")
        } else {
            ("10.9.1.1", "10.9.7.7", "10.9.7.6", "10.9.8.1", "10.9.9.1")
        };
        let node = if client.name() == "vm1" { "node-a" } else { "node-b" };
        let [to_vm3, to_vm6] = ["vm3", "vm6"].map(|name| system.workload(name).sniff().unwrap());
        let ping = client.ping(far, 2, &["-p", "b1b2b3b4"]).unwrap();
        assert!(ping.is_clean(), "{}: {}", client.name(), ping.output);
        let is_ping = |bytes: &[u8]| contains(bytes, &[0xb1, 0xb2, 0xb3, 0xb4]);
        let ttl = |bytes: &[u8]| bytes[if is_v6 { 21 } else { 22 }];
        assert_eq!(ttl(&to_vm3.expect(PATIENCE, is_ping).unwrap()), 63, "the router's hop");
        assert_eq!(ttl(&to_vm6.expect(PATIENCE, is_ping).unwrap()), 62, "the workload's hop");
        // From vm4: through a tunnel, a workload's kernel, and a tunnel again, with all offloads. IPv6
        // super-packets are lost on that way, so TCP crawls there, and is not asked for.
        if client.name() == "vm1" || !is_v6 {
            tcp_exchange(client, vm6, far.parse().unwrap(), 1 << 20).unwrap();
        }
        for node in ["node-a", "node-b"] {
            assert_eq!(system.drops(node).unwrap()["no_room"], 0, "{node}, {}", client.name());
        }

        // Listeners of their own: a megabyte is more than one keeps.
        let [to_vm3, to_vm5] = ["vm3", "vm5"].map(|name| system.workload(name).sniff().unwrap());
        // One address of the range goes another way, the one beside it does not.
        let sent = to_router(client, longer.parse().unwrap());
        client.raw_send(&sent.udp(1, 2, b"longest")).unwrap();
        let frame = receive(&to_vm5, |bytes| contains(bytes, b"longest"));
        assert_eq!((frame.to, frame.ip().unwrap().ttl), (system.workload("vm5").spec_mac(), 63));
        let sent = to_router(client, beside.parse().unwrap());
        client.raw_send(&sent.udp(1, 2, b"beside")).unwrap();
        receive(&to_vm3, |bytes| contains(bytes, b"beside"));
        assert!(to_vm5.collect(MOMENT, |bytes| contains(bytes, b"beside")).unwrap().is_empty());
        assert!(to_vm3.collect(Duration::ZERO, |bytes| contains(bytes, b"longest")).unwrap().is_empty());

        // Silence.
        let own = client.sniff().unwrap();
        system
            .expect_drops(node, &[("route_blackhole", 3)], || {
                let ping = client.ping(blackhole, 3, &["-W", "0.3"])?;
                assert_eq!((ping.received, ping.errors), (0, 0), "{}", ping.output);
                Ok(())
            })
            .unwrap();
        let router = sent.to;
        let said = own.collect(Duration::ZERO, |bytes| is_icmp_of_router(bytes, router)).unwrap();
        assert!(said.is_empty(), "{said:02x?}");
        // Unless a longer prefix leads somewhere.
        if client.name() == "vm1" {
            let to_vm4 = system.workload("vm4").sniff().unwrap();
            let inside = if is_v6 { "fd09:0:9::9" } else { "10.9.9.9" };
            let sent = to_router(client, inside.parse().unwrap());
            client.raw_send(&sent.udp(1, 2, b"inside")).unwrap();
            receive(&to_vm4, |bytes| contains(bytes, b"inside"));
        }

        // An answer.
        let sent = to_router(client, unreachable.parse().unwrap()).udp(1, 2, b"unreachable");
        let kind = if is_v6 { (1, 0) } else { (3, 1) };
        system
            .expect_drops(node, &[("route_unreachable", 2)], || {
                client.raw_send(&sent)?;
                let error = receive_error(&own, kind, &sent);
                assert_eq!(error.ip()?.source, gateway(1, is_v6));
                let ping = client.ping(unreachable, 1, &[])?;
                let says =
                    if is_v6 { "Destination unreachable: No route" } else { "Destination Host Unreachable" };
                assert_eq!((ping.received, ping.errors), (0, 1), "{}", ping.output);
                assert!(ping.complaints[0].contains(says), "{}", ping.output);
                Ok(())
            })
            .unwrap();
    }
}

/// R3: the router answers pings on each of its addresses, from every port.
#[test]
fn r3_the_router_answers_pings_on_each_of_its_addresses() {
    let system = System::start(&topology::standard()).unwrap();
    for name in EVERY_WORKLOAD {
        let vm = system.workload(name);
        for is_v6 in FAMILIES {
            for number in [1, 2] {
                let ping = vm.ping(gateway(number, is_v6), 2, &["-i", "0.01"]).unwrap();
                assert!(ping.is_clean() && ping.output.contains("ttl=64"), "{name}: {}", ping.output);
            }
        }
        let own = if vm.v4().starts_with("10.0.1.") { 1 } else { 2 };
        let [a, b, c, d, e, f] = router_mac(vm, gateway(own, false));
        let [x, y] = [u16::from_be_bytes([a ^ 2, b]), u16::from_be_bytes([c, 0xff])];
        let link_local =
            Ipv6Addr::new(0xfe80, 0, 0, 0, x, y, 0xfe00 | u16::from(d), u16::from_be_bytes([e, f]));
        let ping = vm.ping(format!("{link_local}%eth0"), 1, &[]).unwrap();
        assert!(ping.is_clean(), "{name}: {}", ping.output);
    }
    // To the byte: any length, odd and even, first and last.
    let vm1 = system.workload("vm1");
    vm1.offloads_off().unwrap();
    let own = vm1.sniff().unwrap();
    for is_v6 in FAMILIES {
        let sent = to_router(vm1, gateway(2, is_v6));
        for length in [0, 1, 7, 56, 1001, if is_v6 { 1402 } else { 1422 }] {
            let mut payload = noise(length);
            let id = 0x7100 | u16::from(is_v6);
            vm1.raw_send(&sent.ttl(1).echo(id, &payload)).unwrap();
            let reply = if is_v6 { 129 } else { 0 };
            let at = if is_v6 { 54 } else { 34 };
            let frame = receive(&own, |bytes| {
                is_icmp_of_router(bytes, sent.to)
                    && bytes[at] == reply
                    && bytes[at + 4..at + 6] == id.to_be_bytes()
            });
            let packet = frame.ip().unwrap();
            assert_eq!((packet.source, packet.destination, packet.ttl), (sent.destination, sent.source, 64));
            payload.splice(0..0, [(id >> 8) as u8, id as u8, 0, 1]);
            assert_eq!(packet.transport[4..], payload, "{length}");
        }
    }
}

/// R3: UDP to the router gets port unreachable, TCP a reset, other protocols protocol unreachable.
#[test]
fn r3_the_router_refuses_what_it_does_not_speak() {
    let system = System::start(&topology::standard()).unwrap();
    for name in EVERY_WORKLOAD {
        let vm = system.workload(name);
        for is_v6 in FAMILIES {
            for number in [1, 2] {
                let address = gateway(number, is_v6);
                let took = tcp_refused(vm, SocketAddr::new(address, 22)).unwrap();
                assert!(took < AT_ONCE, "{name}: TCP to {address} took {took:?}");
                let took = udp_refused(vm, SocketAddr::new(address, 53)).unwrap();
                assert!(took < AT_ONCE, "{name}: UDP to {address} took {took:?}");
            }
        }
    }
    let vm1 = system.workload("vm1");
    vm1.offloads_off().unwrap();
    let own = vm1.sniff().unwrap();
    for is_v6 in FAMILIES {
        let to = to_router(vm1, gateway(2, is_v6));
        for length in [1, 64, 1300] {
            let payload = noise(length);
            let sent = to.protocol(EXPERIMENT, &payload);
            let error = system
                .expect_drops("node-a", &[("router_protocol", 1)], || {
                    vm1.raw_send(&sent)?;
                    Ok(receive_error(&own, if is_v6 { (4, 1) } else { (3, 2) }, &sent))
                })
                .unwrap();
            let packet = error.ip().unwrap();
            assert_eq!((packet.source, packet.destination), (to.destination, to.source));
            // IPv6 points at the next header field.
            assert_eq!(packet.icmp_word(), if is_v6 { 6 } else { 0 });
            let sent = to.udp(4000, 5000, &payload);
            let error = system
                .expect_drops("node-a", &[("router_port_unreachable", 1)], || {
                    vm1.raw_send(&sent)?;
                    Ok(receive_error(&own, if is_v6 { (1, 4) } else { (3, 3) }, &sent))
                })
                .unwrap();
            assert_eq!(error.ip().unwrap().source, to.destination);
            assert_eq!((error.from, error.to), (to.to, to.from));
        }
        // A reset, to the letter.
        system
            .expect_drops("node-a", &[("router_refused", 1)], || {
                tcp_refused(vm1, SocketAddr::new(to.destination, 80))?;
                let frame = receive(&own, |bytes| is_protocol(bytes, is_v6, TCP));
                let packet = frame.ip()?;
                assert_eq!((packet.source, packet.ttl, packet.transport[13]), (to.destination, 64, 0x14));
                Ok(())
            })
            .unwrap();
    }
}

/// R3: nothing for later fragments, multicast, broadcast, ICMP errors or resets.
#[test]
fn r3_the_router_is_silent_where_it_must_be() {
    // Stateless: what comes to the router is about nothing that was ever sent, and policy must not stop it before.
    let mut topology = topology::standard();
    topology.add_group("free", &["{ direction: ingress }", "{ direction: egress }"]);
    topology.group_mut("free").stateless = true;
    topology.put_into("vm1", &["free"]);
    let system = System::start(&topology).unwrap();
    let vm1 = system.workload("vm1");
    for is_v6 in FAMILIES {
        let to = to_router(vm1, gateway(2, is_v6));
        let own = vm1.sniff().unwrap();
        let near = gateway(1, is_v6);
        let is_answer = |bytes: &[u8]| is_icmp_of_router(bytes, to.to);
        let quoted = &to.udp(1, 2, b"quoted")[14..];
        let later_fragment = if is_v6 {
            // A fragment header: next header UDP, offset 8 bytes.
            to.protocol(44, &[&[UDP, 0, 0, 8, 0, 0, 0, 1], &noise(64)[..]].concat())
        } else {
            let mut frame = to.protocol(UDP, &noise(64));
            frame[20..22].copy_from_slice(&[0, 1]);
            set_ipv4_checksum(&mut frame);
            frame
        };
        let error = if is_v6 { to.icmpv6(1, 4, [0; 4], quoted) } else { to.icmpv4(3, 3, [0; 4], quoted) };
        let exceeded = if is_v6 { to.icmpv6(3, 0, [0; 4], quoted) } else { to.icmpv4(11, 0, [0; 4], quoted) };
        for (sent, reason) in [
            (later_fragment, "fragment_unmatched"),
            (error.clone(), "router_ignored"),
            (exceeded, "router_ignored"),
            (to.tcp_reset(1, 2), "router_ignored"),
        ] {
            system
                .expect_drops("node-a", &[(reason, 2)], || {
                    vm1.raw_send(&sent)?;
                    vm1.raw_send(&sent)?;
                    assert_silence(vm1, &own, near, is_answer);
                    Ok(())
                })
                .unwrap_or_else(|error| panic!("{sent:02x?}: {error:#}"));
        }
        // Nor are errors that cannot be forwarded answered.
        let nowhere: IpAddr = if is_v6 { "fdff::1" } else { "10.99.0.1" }.parse().unwrap();
        let lost = Addressing { destination: nowhere, ..to };
        let lost = if is_v6 { lost.icmpv6(1, 4, [0; 4], quoted) } else { lost.icmpv4(3, 3, [0; 4], quoted) };
        system
            .expect_drops("node-a", &[("no_route", 1)], || {
                vm1.raw_send(&lost)?;
                assert_silence(vm1, &own, near, is_answer);
                Ok(())
            })
            .unwrap();
        // An echo request to everybody is for the ports; one to a broadcast address with the router's MAC
        // is for nobody.
        let groups: &[(&str, Mac)] = if is_v6 {
            &[("ff02::1", [0x33, 0x33, 0, 0, 0, 1]), ("ff02::2", [0x33, 0x33, 0, 0, 0, 2])]
        } else {
            &[("224.0.0.1", [1, 0, 0x5e, 0, 0, 1]), ("10.0.1.255", BROADCAST), ("255.255.255.255", BROADCAST)]
        };
        for &(address, mac) in groups {
            let echo = Addressing { to: mac, destination: address.parse().unwrap(), ..to };
            system
                .expect_drops("node-a", &[], || {
                    vm1.raw_send(&echo.echo(5, b"anybody"))?;
                    assert_silence(vm1, &own, near, is_answer);
                    Ok(())
                })
                .unwrap();
            let echo = Addressing { to: to.to, ..echo };
            system
                .expect_drops("node-a", &[("multicast_routed", 1)], || {
                    vm1.raw_send(&echo.echo(5, b"anybody"))?;
                    assert_silence(vm1, &own, near, is_answer);
                    Ok(())
                })
                .unwrap_or_else(|error| panic!("{address}: {error:#}"));
        }
    }
    // The far network's broadcast address is not routed either, and reaches nobody.
    let there = system.workload("vm3").sniff().unwrap();
    let to = to_router(vm1, "10.0.2.255".parse().unwrap());
    let own = vm1.sniff().unwrap();
    system
        .expect_drops("node-a", &[("multicast_routed", 1)], || {
            vm1.raw_send(&to.echo(5, b"directed"))?;
            assert_silence(vm1, &own, gateway(1, false), |bytes| is_icmp_of_router(bytes, to.to));
            Ok(())
        })
        .unwrap();
    assert!(there.collect(MOMENT, |bytes| contains(bytes, b"directed")).unwrap().is_empty());
}

/// R4: TTL 1 gets time exceeded from the interface where it came in; traceroute shows each router once.
#[test]
fn r4_traceroute_shows_each_router_once() {
    let system = System::start(&topology::standard()).unwrap();
    for (from, to, number) in [("vm1", "vm3", 1), ("vm1", "vm5", 1), ("vm6", "vm2", 2)] {
        let (from, to) = (system.workload(from), system.workload(to));
        for is_v6 in FAMILIES {
            let hops = [Some(gateway(number, is_v6).to_string()), Some(to.address(is_v6).to_owned())];
            for method in ["-I", "-U", "-T", ""] {
                let (found, output) = traceroute(from, format!("{method} {}", to.address(is_v6))).unwrap();
                assert_eq!(found, hops, "{method}: {output}");
            }
        }
    }
    let vm1 = system.workload("vm1");
    vm1.offloads_off().unwrap();
    let own = vm1.sniff().unwrap();
    for to in ["vm3", "vm5"] {
        let there = system.workload(to).sniff().unwrap();
        for is_v6 in FAMILIES {
            let to = to_router(vm1, system.workload(to).ip(is_v6));
            // Known flows and new ones, TTL 0 too, which a router must not forward.
            vm1.raw_send(&to.udp(6, 6, b"before")).unwrap();
            receive(&there, |bytes| contains(bytes, b"before"));
            let frames = [
                to.ttl(1).udp(6, 6, b"expired"),
                to.ttl(1).udp(6, 7, &[b"expired", &noise(1300)[..]].concat()),
                to.ttl(1).echo(6, b"expired"),
                to.ttl(1).protocol(EXPERIMENT, b"expired"),
                to.ttl(0).udp(6, 6, b"expired"),
            ];
            for sent in frames {
                system
                    .expect_drops("node-a", &[("ttl_exceeded", 1)], || {
                        vm1.raw_send(&sent)?;
                        let error = receive_error(&own, if is_v6 { (3, 0) } else { (11, 0) }, &sent);
                        let packet = error.ip()?;
                        assert_eq!((packet.source, packet.ttl), (gateway(1, is_v6), 64));
                        assert_eq!(packet.destination, vm1.ip(is_v6));
                        assert_eq!((error.from, error.to), (to.to, vm1.spec_mac()));
                        Ok(())
                    })
                    .unwrap();
            }
            assert!(there.collect(MOMENT, |bytes| contains(bytes, b"expired")).unwrap().is_empty());
            vm1.raw_send(&to.ttl(2).udp(6, 6, b"just alive")).unwrap();
            assert_eq!(receive(&there, |bytes| contains(bytes, b"just alive")).ip().unwrap().ttl, 1);
        }
    }
}

/// R5: no route: network unreachable; an address nobody has: host unreachable; at once.
#[test]
fn r5_what_cannot_be_reached_is_said_at_once() {
    let mut topology = topology::standard();
    let mut unbound = standard_port("nowhere", "db", 77, "");
    unbound.interface.clear();
    topology.ports.push(unbound);
    let system = System::start(&topology).unwrap();
    let cases = [
        ("10.99.0.1", "no_route", (3, 0), "Destination Net Unreachable"),
        ("fdff::1", "no_route", (1, 0), "Destination unreachable: No route"),
        ("10.0.2.99", "next_hop_unknown", (3, 1), "Destination Host Unreachable"),
        ("fd00:2::63", "next_hop_unknown", (1, 3), "Destination unreachable: Address unreachable"),
        ("10.0.2.77", "port_unbound", (3, 1), "Destination Host Unreachable"),
        ("fd00:2::4d", "port_unbound", (1, 3), "Destination unreachable: Address unreachable"),
    ];
    for (name, node) in [("vm1", "node-a"), ("vm4", "node-b")] {
        let vm = system.workload(name);
        let listeners = system.listen(&["vm3", "vm5", "vm6"]).unwrap();
        for (address, reason, kind, says) in cases {
            let own = vm.sniff().unwrap();
            let sent = to_router(vm, address.parse().unwrap()).udp(1, 2, b"unreachable");
            system
                .expect_drops(node, &[(reason, 3)], || {
                    let started = Instant::now();
                    let ping = vm.ping(address, 1, &[])?;
                    assert!(started.elapsed() < AT_ONCE, "{address}: {:?}", started.elapsed());
                    assert_eq!((ping.received, ping.errors), (0, 1), "{address}: {}", ping.output);
                    assert!(ping.complaints[0].contains(says), "{address}: {}", ping.output);
                    let is_v6 = address.contains(':');
                    let from = format!("From {} ", gateway(1, is_v6));
                    assert!(ping.complaints[0].starts_with(&from), "{}", ping.output);
                    for _ in 0..2 {
                        vm.raw_send(&sent)?;
                        let error = receive_error(&own, kind, &sent);
                        assert_eq!(error.ip()?.source, gateway(1, is_v6));
                    }
                    Ok(())
                })
                .unwrap_or_else(|error| panic!("{name} to {address}: {error:#}"));
            let again = own.collect(MOMENT, |bytes| contains(bytes, b"unreachable")).unwrap();
            assert!(again.is_empty(), "one error for each: {again:02x?}");
        }
        let heard = listeners.heard(&[], b"no marker", |bytes| contains(bytes, b"unreachable")).unwrap();
        assert!(heard.values().all(Vec::is_empty), "{heard:02x?}");
        // UDP sockets hear of it.
        let error = vm.output("traceroute -n -q 1 -w 2 -m 3 10.99.0.1").unwrap();
        let output = String::from_utf8_lossy(&error.stdout).into_owned();
        assert!(output.contains("10.0.1.1") && output.contains("!N"), "{output}");
    }
}

/// R8: IP options, source routing, VLAN tags, jumbo frames, unknown protocols: by a stated rule.
#[test]
fn r8_unusual_packets_are_routed_or_refused_by_rule() {
    let system = System::start(&topology::standard()).unwrap();
    let vm1 = system.workload("vm1");
    for to in ["vm2", "vm4", "vm3", "vm5"] {
        let to = system.workload(to);
        for extra in [&["-R"][..], &["-T", "tsonly"]] {
            let ping = vm1.ping(to.v4(), 3, extra).unwrap();
            assert!(ping.is_clean(), "{} {extra:?}: {}", to.name(), ping.output);
        }
    }
    for to in ["vm3", "vm5"] {
        let to = system.workload(to);
        let there = to.sniff().unwrap();
        let way = to_router(vm1, to.ip(false));
        // Every length of options; no-operations, then the end.
        for words in 1..=10 {
            let mut options = vec![1; words * 4];
            options[words * 4 - 1] = 0;
            let payload = format!("options of {words} words");
            vm1.raw_send(&way.udp_with_options(&options, 2, payload.as_bytes())).unwrap();
            let bytes = there.expect(PATIENCE, |bytes| contains(bytes, payload.as_bytes())).unwrap();
            assert_eq!(&bytes[34..34 + words * 4], options);
            assert_eq!(Frame::check(&bytes).unwrap().ip().unwrap().ttl, 63);
        }
        // Loose and strict source routing, first and behind others; options that contradict themselves.
        let route = [to.v4().parse::<Ipv4Addr>().unwrap().octets().as_slice(), &[0]].concat();
        let refused = [
            ("ipv4_source_route", [&[131, 7, 4], &route[..]].concat()),
            ("ipv4_source_route", [&[137, 7, 4], &route[..]].concat()),
            ("ipv4_source_route", [&[1, 1, 1, 1, 131, 7, 4], &route[..]].concat()),
            ("ipv4_source_route", [&[68, 4, 5, 0, 137, 7, 4], &route[..]].concat()),
            ("ipv4_malformed", vec![7, 0, 0, 0]),
            ("ipv4_malformed", vec![7, 1, 0, 0]),
        ];
        for (reason, options) in refused {
            system
                .expect_drops("node-a", &[(reason, 1)], || {
                    vm1.raw_send(&way.udp_with_options(&options, 2, b"refused"))?;
                    vm1.raw_send(&way.udp(1, 2, b"behind it"))?;
                    there.expect(PATIENCE, |bytes| {
                        assert!(!contains(bytes, b"refused"), "{bytes:02x?}");
                        contains(bytes, b"behind it")
                    })
                })
                .unwrap_or_else(|error| panic!("{options:?}: {error:#}"));
        }
    }
    for to in ["vm2", "vm4", "vm3", "vm5"] {
        let to = system.workload(to);
        let is_routed = to.v4().starts_with("10.0.2.");
        let there = to.sniff().unwrap();
        for is_v6 in FAMILIES {
            let mut way = to_router(vm1, to.ip(is_v6));
            if !is_routed {
                way.to = to.spec_mac();
            }
            // A protocol nobody speaks, also of no length and an odd one.
            for payload in [&b"unknown protocol"[..], b"", b"1"] {
                vm1.raw_send(&way.protocol(EXPERIMENT, payload)).unwrap();
                let frame = receive(&there, |bytes| is_protocol(bytes, is_v6, EXPERIMENT));
                let packet = frame.ip().unwrap();
                assert_eq!((packet.protocol, packet.ttl), (EXPERIMENT, if is_routed { 63 } else { 64 }));
                assert_eq!(packet.transport, payload);
            }
            // Tagged frames are refused, however the tag looks.
            let plain = way.udp(1, 2, b"tagged");
            for tag in [
                &[0x81, 0, 0, 5][..],
                &[0x81, 0, 0, 0],
                &[0x88, 0xa8, 0, 5],
                &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6],
            ] {
                let tagged = [&plain[..12], tag, &plain[12..]].concat();
                system
                    .expect_drops("node-a", &[("vlan_tagged", 1)], || {
                        vm1.raw_send(&tagged)?;
                        vm1.raw_send(&way.udp(1, 2, b"plain"))?;
                        there.expect(PATIENCE, |bytes| {
                            assert!(!contains(bytes, b"tagged"), "{bytes:02x?}");
                            contains(bytes, b"plain")
                        })
                    })
                    .unwrap_or_else(|error| panic!("{tag:02x?}: {error:#}"));
            }
            let mut unknown = plain.clone();
            unknown[12..14].copy_from_slice(&[0x88, 0xb5]);
            system
                .expect_drops("node-a", &[("ethertype_unknown", 1)], || {
                    vm1.raw_send(&unknown)?;
                    vm1.raw_send(&way.udp(1, 2, b"plain"))?;
                    there.expect(PATIENCE, |bytes| contains(bytes, b"plain"))
                })
                .unwrap();
        }
    }
}

/// R8: frames up to the MTU pass; one byte more is refused with the right MTU by a router, counted by a switch.
#[test]
fn r8_frames_up_to_the_mtu_pass_and_not_one_byte_more() {
    let system = System::start(&topology::standard()).unwrap();
    let vm1 = system.workload("vm1");
    for to in ["vm2", "vm4", "vm3", "vm5"] {
        for is_v6 in FAMILIES {
            let to = system.workload(to).address(is_v6);
            let largest = if is_v6 { "1402" } else { "1422" };
            let ping = vm1.ping(to, 3, &["-M", "do", "-s", largest]).unwrap();
            assert!(ping.is_clean(), "{to}: {}", ping.output);
        }
    }
    // A workload that does not know the MTU.
    system.node("node-a").netns().ip(&["link set tap-vm1 mtu 9000"]).unwrap();
    vm1.netns().ip(&["link set eth0 mtu 9000"]).unwrap();
    vm1.offloads_off().unwrap();
    for to in ["vm3", "vm5"] {
        let to = system.workload(to);
        for is_v6 in FAMILIES {
            let there = to.sniff().unwrap();
            let way = to_router(vm1, to.ip(is_v6));
            let own = vm1.sniff().unwrap();
            let overhead = if is_v6 { 48 } else { 28 };
            vm1.raw_send(&way.udp(1, 2, &noise(1450 - overhead))).unwrap();
            assert_eq!(there.expect(PATIENCE, |bytes| bytes.len() > 1400).unwrap().len(), 14 + 1450);
            for size in [1451, 2000, 8900] {
                let sent = way.udp(1, 2, &noise(size - overhead));
                system
                    .expect_drops("node-a", &[("too_big", 1)], || {
                        vm1.raw_send(&sent)?;
                        let error = receive_error(&own, if is_v6 { (2, 0) } else { (3, 4) }, &sent);
                        assert_eq!(error.ip()?.icmp_word(), 1450);
                        assert_eq!(error.ip()?.source, gateway(1, is_v6));
                        Ok(())
                    })
                    .unwrap_or_else(|error| panic!("{size}: {error:#}"));
            }
            assert!(there.collect(MOMENT, |bytes| bytes.len() > 14 + 1400).unwrap().is_empty());
            // As ping words it. The kernel remembers what it was told by the frames above only if they were
            // its own, so that this is the first it hears.
            let size = (1451 - overhead).to_string();
            let ping = vm1.ping(to.address(is_v6), 1, &["-M", "do", "-s", &size]).unwrap();
            let says = if is_v6 { "Packet too big: mtu=1450" } else { "Frag needed and DF set (mtu = 1450)" };
            assert!(ping.complaints.iter().any(|line| line.contains(says)), "{}", ping.output);
            // TCP needs no manual MSS.
            tcp_exchange(vm1, to, to.ip(is_v6), 1 << 20).unwrap();
        }
    }
    for to in ["vm2", "vm4"] {
        let to = system.workload(to);
        let there = to.sniff().unwrap();
        for is_v6 in FAMILIES {
            let way = Addressing { to: to.spec_mac(), ..to_router(vm1, to.ip(is_v6)) };
            let overhead = if is_v6 { 48 } else { 28 };
            system
                .expect_drops("node-a", &[("too_big", 1)], || {
                    vm1.raw_send(&way.udp(1, 2, &noise(1451 - overhead)))?;
                    vm1.raw_send(&way.udp(1, 2, &noise(1450 - overhead)))?;
                    there.expect(PATIENCE, |bytes| bytes.len() >= 1464)
                })
                .map(|bytes| assert_eq!(bytes.len(), 1464))
                .unwrap();
        }
    }
}

/// Networks `web` with r1 and `db` with r2, joined by `transit`: r1 has .1 there, r2 has .2.
fn two_routers() -> Topology {
    let mut topology = topology::standard();
    topology.networks.push(Network::new(
        "transit",
        &[("transit4", "10.0.9.0/24", "10.0.9.1"), ("transit6", "fd00:9::/64", "fd00:9::1")],
    ));
    let mut r1 = Router::new("r1", &["web4", "web6", "transit4", "transit6"]);
    let mut r2 = Router::new(
        "r2",
        &[
            "db4",
            "db6",
            "{ subnet: transit4, address: 10.0.9.2 }",
            "{ subnet: transit6, address: \"fd00:9::2\" }",
        ],
    );
    r1.routes = [
        "{ destination: 10.0.2.0/24, nexthop: 10.0.9.2 }",
        "{ destination: \"fd00:2::/64\", nexthop: \"fd00:9::2\" }",
        // Round and round.
        "{ destination: 10.77.0.0/16, nexthop: 10.0.9.2 }",
        "{ destination: \"fd77::/16\", nexthop: \"fd00:9::2\" }",
        // Nothing behind r2.
        "{ destination: 10.78.0.0/16, nexthop: 10.0.9.2 }",
        // A next hop nobody has.
        "{ destination: 10.79.0.0/16, nexthop: 10.0.9.3 }",
    ]
    .map(str::to_owned)
    .to_vec();
    r2.routes = [
        "{ destination: 10.0.1.0/24, nexthop: 10.0.9.1 }",
        "{ destination: \"fd00:1::/64\", nexthop: \"fd00:9::1\" }",
        "{ destination: 10.77.0.0/16, nexthop: 10.0.9.1 }",
        "{ destination: \"fd77::/16\", nexthop: \"fd00:9::1\" }",
    ]
    .map(str::to_owned)
    .to_vec();
    topology.routers = vec![r1, r2];
    topology
}

/// R9: two routers joined by a network are passed in one go; a loop ends in a counted drop.
#[test]
fn r9_two_routers_in_a_row_and_a_loop() {
    let system = System::start(&two_routers()).unwrap();
    let vm1 = system.workload("vm1");
    for (from, to) in [("vm1", "vm3"), ("vm1", "vm5"), ("vm5", "vm2"), ("vm6", "vm4")] {
        let (from, to) = (system.workload(from), system.workload(to));
        let near = if from.v4().starts_with("10.0.1.") { 1 } else { 2 };
        for is_v6 in FAMILIES {
            let ping = from.ping(to.address(is_v6), 3, &[]).unwrap();
            assert!(ping.is_clean() && ping.output.contains("ttl=62"), "{}", ping.output);
            tcp_exchange(from, to, to.ip(is_v6), 1 << 20).unwrap();
            // The second router answers from where the packet came in: on the transit network.
            let second = match (is_v6, near) {
                (false, 1) => "10.0.9.2",
                (false, _) => "10.0.9.1",
                (true, 1) => "fd00:9::2",
                (true, _) => "fd00:9::1",
            };
            let hops = [&gateway(near, is_v6).to_string(), second, to.address(is_v6)];
            let hops = hops.map(|hop| Some(hop.to_owned()));
            for method in ["-I", "-U", "-T"] {
                let (found, output) = traceroute(from, format!("{method} {}", to.address(is_v6))).unwrap();
                assert_eq!(found, hops, "{method}: {output}");
            }
        }
        // Every router's addresses, near and far.
        for address in ["10.0.1.1", "10.0.2.1", "10.0.9.1", "10.0.9.2", "fd00:1::1", "fd00:2::1", "fd00:9::2"]
        {
            let ping = from.ping(address, 2, &[]);
            // r1 knows web and transit; r2's leg on db is behind r2, and so on: all are reachable.
            let ping = ping.unwrap();
            assert!(ping.is_clean(), "{} to {address}: {}", from.name(), ping.output);
        }
    }
    // To the byte.
    vm1.offloads_off().unwrap();
    for to in ["vm3", "vm5"] {
        let to = system.workload(to);
        let there = to.sniff().unwrap();
        for is_v6 in FAMILIES {
            let way = to_router(vm1, to.ip(is_v6));
            vm1.raw_send(&way.udp(3, 4, b"two routers")).unwrap();
            let frame = receive(&there, |bytes| contains(bytes, b"two routers"));
            let packet = frame.ip().unwrap();
            assert_eq!((frame.from, frame.to), (router_mac(to, gateway(2, is_v6)), to.spec_mac()));
            assert_eq!((packet.source, packet.destination, packet.ttl), (vm1.ip(is_v6), to.ip(is_v6), 62));
        }
    }
    // A loop.
    for is_v6 in FAMILIES {
        let lost: IpAddr = if is_v6 { "fd77::1" } else { "10.77.0.1" }.parse().unwrap();
        system
            .expect_drops("node-a", &[("router_loop", 2)], || {
                let ping = vm1.ping(lost, 2, &["-W", "0.3"])?;
                assert_eq!(ping.received, 0, "{}", ping.output);
                Ok(())
            })
            .unwrap();
        let own = vm1.sniff().unwrap();
        let way = to_router(vm1, lost);
        for (ttl, source) in [
            (1, gateway(1, is_v6)),
            (2, if is_v6 { "fd00:9::2" } else { "10.0.9.2" }.parse().unwrap()),
            (3, if is_v6 { "fd00:9::1" } else { "10.0.9.1" }.parse().unwrap()),
        ] {
            let sent = way.ttl(ttl).udp(1, 2, b"round");
            system
                .expect_drops("node-a", &[("ttl_exceeded", 1)], || {
                    vm1.raw_send(&sent)?;
                    let at = if is_v6 { 54 } else { 34 };
                    let kind = if is_v6 { 3 } else { 11 };
                    let frame = receive(&own, |bytes| contains(bytes, b"round") && bytes[at] == kind);
                    assert_eq!(frame.ip()?.source, source, "TTL {ttl}");
                    Ok(())
                })
                .unwrap();
        }
    }
    // What the second router refuses, it refuses under its own address.
    for (address, reason, source, says) in [
        ("10.78.0.1", "no_route", "10.0.9.2", "Destination Net Unreachable"),
        ("10.0.2.99", "next_hop_unknown", "10.0.9.2", "Destination Host Unreachable"),
        ("10.79.0.1", "next_hop_unknown", "10.0.1.1", "Destination Host Unreachable"),
    ] {
        system
            .expect_drops("node-a", &[(reason, 1)], || {
                let ping = vm1.ping(address, 1, &[])?;
                assert_eq!(ping.errors, 1, "{}", ping.output);
                let line = &ping.complaints[0];
                assert!(line.starts_with(&format!("From {source} ")) && line.contains(says), "{line}");
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{address}: {error:#}"));
    }
}
