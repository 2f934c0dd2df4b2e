//! Behaviours of address translation: N1 to N8, and R6 through it. The checks that ask for nothing of vrouter's
//! own run against Linux too, which shows that they ask for the right things.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use vrouter_tests::frame::{Addressing, Arp, Frame, ICMP, Packet, TCP, UDP, contains};
use vrouter_tests::sockets::noise;
use vrouter_tests::system::{Check, check_all};
use vrouter_tests::topology::{FloatingIp, Topology, standard_port, with_outside};
use vrouter_tests::{Host, Lab, Linux, Outcome, Probe, Services, Sniffer, System, Talk, Workload, wait};

const PATIENCE: Duration = Duration::from_secs(10);
/// What must not come has this long to come.
const MOMENT: Duration = Duration::from_millis(150);
/// How long something takes that is not answered.
const SILENCE: Duration = Duration::from_millis(700);

/// The router's address.
const ROUTER: &str = "203.0.113.10";
/// The floating IP of vm1, on node-a.
const OF_VM1: &str = "203.0.113.51";
/// The floating IP of vm5, on node-b.
const OF_VM5: &str = "203.0.113.55";
/// The shared address.
const SHARED: &str = "203.0.113.60";
const OUTSIDE1: &str = "203.0.113.101";
const SERVER1: &str = "198.51.100.10";
const SERVER2: &str = "198.51.100.20";
const NARROW: &str = "198.51.101.10";
const GW: &str = "203.0.113.1";

/// Everybody serves here.
const SERVED: [u16; 4] = [7, 22, 53, 80];
/// Nobody serves here.
const CLOSED: u16 = 9;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(text), port)
}

/// Whom the server sees when `from` sends a probe; it must be answered from where it was sent to.
#[track_caller]
fn seen(lab: &Lab, from: &str, to: &str, probe: &Probe) -> SocketAddr {
    let outcome = probe.send(lab.host(from)).unwrap();
    outcome.seen(ip(to)).unwrap_or_else(|| panic!("{from} to {to}: {outcome}"))
}

/// UDP, TCP and a ping from a host to an address; each must be answered, and the server must see `expected`.
#[track_caller]
fn reaches_as(lab: &Lab, from: &str, to: &str, expected: &str) {
    assert_eq!(seen(lab, from, to, &Probe::udp(ip(to), 7)).ip(), ip(expected), "UDP from {from} to {to}");
    let mut talk = Talk::open(lab.host(from), at(to, 7), None, PATIENCE).unwrap();
    assert_eq!(talk.seen().ip(), ip(expected), "TCP from {from} to {to}");
    talk.exchange(100_000).unwrap();
    let ping = Probe::ping(ip(to)).send(lab.host(from)).unwrap();
    assert!(ping.is_answer(ip(to)), "ping from {from} to {to}: {ping}");
}

/// From a workload to an address behind its router.
fn outwards(vm: &Workload, to: &str) -> Addressing {
    let is_v6 = ip(to).is_ipv6();
    Addressing {
        from: vm.spec_mac(),
        to: vm.gateway_mac(is_v6).unwrap(),
        source: vm.ip(is_v6),
        destination: ip(to),
        ttl: 64,
    }
}

/// From `outside1` to an address that somebody answers for on the external network.
fn inwards(lab: &Lab, to: &str) -> Addressing {
    let outside1 = lab.host("outside1");
    let owners = outside1.who_has(ip(OUTSIDE1), ip(to), MOMENT).unwrap();
    assert_eq!(owners.len(), 1, "answers for {to}");
    Addressing {
        from: outside1.mac().unwrap(),
        to: owners[0],
        source: ip(OUTSIDE1),
        destination: ip(to),
        ttl: 64,
    }
}

/// The next frame that satisfies `wanted`, which must be valid.
#[track_caller]
fn receive(sniffer: &Sniffer, wanted: impl Fn(&[u8]) -> bool) -> Frame {
    Frame::check(&sniffer.expect(PATIENCE, wanted).unwrap()).unwrap()
}

/// Whether a frame is an ICMP (IPv4) message of this type and code.
fn is_icmp(bytes: &[u8], (kind, code): (u8, u8)) -> bool {
    bytes.get(12..14) == Some(&[8, 0])
        && bytes.get(23) == Some(&ICMP)
        && bytes.get(34..36) == Some(&[kind, code])
}

/// Whether a frame's IPv4 source is an address of the inside.
fn comes_from_inside(bytes: &[u8]) -> bool {
    bytes.get(12..14) == Some(&[8, 0]) && bytes.get(26..28) == Some(&[10, 0])
}

/// Sends a frame and receives the ICMP error it causes, which must quote it as it was sent.
#[track_caller]
fn provoke(host: &Host, sent: &[u8], error: (u8, u8)) -> Packet {
    let sniffer = host.sniff().unwrap();
    host.raw_send(sent).unwrap();
    let frame = receive(&sniffer, |bytes| is_icmp(bytes, error));
    let packet = frame.packet.unwrap();
    packet.quotes(sent).unwrap();
    packet
}

// ---- Checks of any implementation.

/// N1: who has no floating IP reaches outside with the router's address; IPv6 is not translated.
fn n1_out_with_the_routers_address(lab: &Lab) {
    for from in ["vm2", "vm3", "vm4", "vm6"] {
        for to in [OUTSIDE1, SERVER1, GW] {
            reaches_as(lab, from, to, ROUTER);
        }
        let own = lab.workload(from).v6().to_owned();
        reaches_as(lab, from, "2001:db8:aa::10", &own);
        reaches_as(lab, from, "2001:db8:ff::101", &own);
    }
    // Large and long.
    let mut talk = Talk::open(lab.host("vm4"), at(SERVER2, 80), None, PATIENCE).unwrap();
    talk.exchange(4 << 20).unwrap();
}

/// N1: the same source port at several ports, to the same server, at the same time.
fn n1_the_same_source_port_does_not_clash(lab: &Lab) {
    let clients = ["vm2", "vm3", "vm4", "vm6"];
    let open = |from: &&str, to| Talk::open(lab.host(from), at(to, 7), Some(40_000), PATIENCE).unwrap();
    let mut talks: Vec<Talk> = clients.iter().map(|from| open(from, SERVER1)).collect();
    let mut ports: Vec<u16> = talks.iter().map(|talk| talk.seen().port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), clients.len(), "each has a port of its own");
    // Interleaved: nobody gets another's bytes.
    for length in [1, 1000, 70_000] {
        for talk in &mut talks {
            assert_eq!(talk.seen().ip(), ip(ROUTER));
            talk.exchange(length).unwrap();
        }
    }
    std::thread::scope(|scope| {
        let each: Vec<_> = clients
            .iter()
            .map(|from| {
                scope.spawn(move || {
                    let udp = Probe::udp(ip(SERVER1), 53).from_port(21_000).returned();
                    let seen = (0..20).map(|_| seen(lab, from, SERVER1, &udp));
                    let seen: Vec<SocketAddr> = seen.collect();
                    assert!(seen.iter().all(|other| *other == seen[0]), "one flow, one port: {seen:?}");
                    // A ping's identifier is its port.
                    let ping = Probe::ping(ip(SERVER1)).from_port(4242).length(900);
                    for _ in 0..20 {
                        let outcome = ping.send(lab.host(from)).unwrap();
                        assert!(outcome.is_answer(ip(SERVER1)), "{from}: {outcome}");
                    }
                    seen[0].port()
                })
            })
            .collect();
        let mut ports: Vec<u16> = each.into_iter().map(|thread| thread.join().unwrap()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), clients.len());
    });
}

/// N1: nobody outside reaches through a translation but the one it was made for.
fn n1_a_translation_is_for_its_peer_alone(lab: &Lab) {
    let (vm4, outside1) = (lab.workload("vm4"), lab.host("outside1"));
    let port = seen(lab, "vm4", SERVER1, &Probe::udp(ip(SERVER1), 7).from_port(41_000)).port();
    let sniffer = vm4.sniff().unwrap();
    let payload = noise(99);
    let stranger = inwards(lab, ROUTER);
    outside1.raw_send(&stranger.udp(7, port, &payload)).unwrap();
    outside1.raw_send(&stranger.tcp_syn(7, port)).unwrap();
    assert_eq!(seen(lab, "vm4", SERVER1, &Probe::udp(ip(SERVER1), 7).from_port(41_000)).port(), port);
    let strangers = sniffer.collect(MOMENT, |bytes| {
        contains(bytes, &payload[..50]) || bytes.get(26..30) == Some(&[203, 0, 113, 101])
    });
    assert_eq!(strangers.unwrap(), Vec::<Vec<u8>>::new());
}

/// N1, N2: what arrives, to the byte: hardware addresses, TTL, checksums, payload; both ways.
fn n1_n2_frames_are_exact(lab: &Lab) {
    let (outside1, payload) = (lab.host("outside1"), noise(333));
    outside1.offloads_off().unwrap();
    for (name, expected) in [("vm1", OF_VM1), ("vm5", OF_VM5), ("vm2", ROUTER), ("vm4", ROUTER)] {
        let vm = lab.workload(name);
        vm.offloads_off().unwrap();
        let (there, here) = (outside1.sniff().unwrap(), vm.sniff().unwrap());
        let way = outwards(vm, OUTSIDE1);
        // A datagram to a server, whose answer comes back.
        vm.raw_send(&way.udp(42_000, 7, &payload)).unwrap();
        let frame = receive(&there, |bytes| contains(bytes, &payload[..200]));
        let packet = frame.ip().unwrap();
        assert_eq!((packet.source, packet.destination), (ip(expected), ip(OUTSIDE1)), "{name}");
        assert_eq!((packet.ttl, packet.protocol, packet.payload()), (63, UDP, &payload[..]), "{name}");
        assert_eq!((frame.to, packet.ports().1), (outside1.mac().unwrap(), 7));
        assert!(frame.from != way.from && frame.from != way.to, "the router's own address outside");
        assert_eq!(there.collect(MOMENT, |bytes| contains(bytes, &payload[..200])).unwrap().len(), 0, "once");
        let is_back = |bytes: &[u8]| bytes.get(26..30) == Some(&[203, 0, 113, 101]) && bytes[23] == UDP;
        let back = receive(&here, is_back);
        let packet = back.ip().unwrap();
        assert_eq!((back.from, back.to), (way.to, way.from), "{name}");
        assert_eq!((packet.source, packet.destination), (ip(OUTSIDE1), vm.ip(false)));
        assert_eq!((packet.ttl, packet.ports()), (63, (7, 42_000)));
        // Without a checksum, which stays so.
        let mut bare = way.udp(42_001, 7, &payload);
        bare[40..42].fill(0);
        vm.raw_send(&bare).unwrap();
        let frame = receive(&there, |bytes| contains(bytes, &payload[..200]));
        assert_eq!(frame.ip().unwrap().transport[6..8], [0, 0], "{name}");
        // A ping and every segment of a connection.
        let ping = vm.ping(OUTSIDE1, 1, &["-p", "a1a2a3a4"]).unwrap();
        assert!(ping.is_clean() && ping.output.contains("ttl=63"), "{}", ping.output);
        let frame = receive(&there, |bytes| contains(bytes, &[0xa1, 0xa2, 0xa3, 0xa4]));
        assert_eq!((frame.ip().unwrap().source, frame.ip().unwrap().ttl), (ip(expected), 63));
        let capture = outside1.capture("tcp").unwrap();
        let back = vm.capture("tcp").unwrap();
        Talk::open(vm, at(OUTSIDE1, 7), None, PATIENCE).unwrap().exchange(100_000).unwrap();
        for (frames, far, near) in
            [(capture.stop().unwrap(), OUTSIDE1, expected), (back.stop().unwrap(), OUTSIDE1, vm.v4())]
        {
            assert!(frames.len() > 2 * 100_000 / 1500, "{} frames", frames.len());
            for bytes in frames {
                let packet = Frame::check(&bytes).unwrap().packet.unwrap();
                let ends = (packet.source, packet.destination);
                assert!(ends == (ip(far), ip(near)) || ends == (ip(near), ip(far)), "{ends:?}");
                assert!(matches!(packet.ttl, 63 | 64));
            }
        }
    }
}

/// N2: a floating IP, both directions, near and far, and outside sees only it.
fn n2_floating_ips_both_ways(lab: &Lab) {
    let watchers = ["outside1", "gw"].map(|name| lab.host(name).sniff().unwrap());
    for to in [OF_VM1, OF_VM5] {
        reaches_as(lab, "outside1", to, OUTSIDE1);
        reaches_as(lab, "server1", to, SERVER1);
        reaches_as(lab, "gw", to, GW);
    }
    for (from, own) in [("vm1", OF_VM1), ("vm5", OF_VM5)] {
        reaches_as(lab, from, OUTSIDE1, own);
        reaches_as(lab, from, SERVER2, own);
        // Every port stays what it is.
        let udp = Probe::udp(ip(SERVER1), 7).from_port(43_210);
        assert_eq!(seen(lab, from, SERVER1, &udp), at(own, 43_210));
        let talk = Talk::open(lab.host(from), at(SERVER1, 7), Some(43_211), PATIENCE).unwrap();
        assert_eq!(talk.seen(), at(own, 43_211));
    }
    let mut talk = Talk::open(lab.host("server2"), at(OF_VM5, 80), None, PATIENCE).unwrap();
    talk.exchange(4 << 20).unwrap();
    // Closed is closed, and says so under its name outside.
    for to in [OF_VM1, OF_VM5] {
        let refused = Probe::udp(ip(to), CLOSED).send(lab.host("outside1")).unwrap();
        assert_eq!(refused.to_string(), format!("icmp 3/3 from {to}"));
        let error = Talk::open(lab.host("outside1"), at(to, CLOSED), None, PATIENCE).unwrap_err();
        assert!(format!("{error:#}").contains("refused"), "{error:#}");
    }
    for watcher in watchers {
        assert_eq!(watcher.collect(MOMENT, comes_from_inside).unwrap(), Vec::<Vec<u8>>::new());
    }
}

/// N3: through an address outside and back in; the peer sees an address outside.
fn n3_from_inside_to_floating_ips(lab: &Lab) {
    // Between two, on one network and routed, and to one's own.
    for (from, to, expected) in [
        ("vm1", OF_VM5, OF_VM1),
        ("vm5", OF_VM1, OF_VM5),
        ("vm1", OF_VM1, OF_VM1),
        ("vm5", OF_VM5, OF_VM5),
        // Who has none is the router.
        ("vm2", OF_VM1, ROUTER),
        ("vm2", OF_VM5, ROUTER),
        ("vm4", OF_VM1, ROUTER),
        ("vm6", OF_VM5, ROUTER),
    ] {
        reaches_as(lab, from, to, expected);
    }
    // Two with the same source port, to one.
    let open = |from: &str| Talk::open(lab.host(from), at(OF_VM1, 7), Some(44_000), PATIENCE).unwrap();
    let mut talks = ["vm2", "vm4", "vm6"].map(open);
    for talk in &mut talks {
        talk.exchange(10_000).unwrap();
    }
    assert_ne!(talks[0].seen(), talks[1].seen());
    assert_ne!(talks[1].seen(), talks[2].seen());
}

/// N4: east-west is never translated, nor an inside address that outside reaches directly.
fn n4_inside_addresses_stay(lab: &Lab) {
    for (from, to) in [("vm1", "vm2"), ("vm1", "vm3"), ("vm1", "vm5"), ("vm4", "vm3"), ("vm6", "vm1")] {
        let (from, to) = (lab.workload(from), lab.workload(to));
        for is_v6 in [false, true] {
            reaches_as(lab, from.name(), to.address(is_v6), from.address(is_v6));
        }
    }
    // Whoever has a way to the inside uses it, floating IP or not.
    for to in ["vm1", "vm3", "vm4", "vm5"] {
        reaches_as(lab, "outside1", lab.workload(to).v4(), OUTSIDE1);
        reaches_as(lab, "outside1", lab.workload(to).v6(), "2001:db8:ff::101");
        reaches_as(lab, "server1", lab.workload(to).v6(), "2001:db8:aa::10");
    }
    // Direct and through the floating IP at once: each keeps its way.
    let direct = Probe::udp(lab.workload("vm1").ip(false), 7).from_port(45_000);
    // Even from the same port, though inside it would be one connection.
    let floating = Probe::udp(ip(OF_VM1), 7).from_port(45_000);
    for _ in 0..3 {
        seen(lab, "outside1", lab.workload("vm1").v4(), &direct);
        seen(lab, "outside1", OF_VM1, &floating);
    }
}

/// N5: port forwarding, TCP and UDP, from near, far and inside; what is not forwarded arrives nowhere.
fn n5_port_forwarding(lab: &Lab) {
    for (from, expected) in [("outside1", OUTSIDE1), ("server1", SERVER1), ("vm1", OF_VM1), ("vm4", ROUTER)] {
        for port in [2222, 2226] {
            let mut talk = Talk::open(lab.host(from), at(SHARED, port), None, PATIENCE).unwrap();
            assert_eq!(talk.seen().ip(), ip(expected), "from {from} to {port}");
            talk.exchange(50_000).unwrap();
        }
        let udp = Probe::udp(ip(SHARED), 5353).returned();
        assert_eq!(seen(lab, from, SHARED, &udp).ip(), ip(expected), "from {from}");
    }
    let sniffers = ["vm3", "vm6"].map(|name| lab.host(name).sniff().unwrap());
    let outside1 = lab.host("outside1");
    let stray = [Probe::udp(ip(SHARED), 2222), Probe::udp(ip(SHARED), 53), Probe::ping(ip(SHARED))];
    for probe in stray {
        let outcome = probe.timeout(SILENCE).send(outside1).unwrap();
        assert!(!matches!(outcome, Outcome::Answer { seen: Some(_), .. }), "{outcome}");
    }
    assert!(Talk::open(outside1, at(SHARED, 22), None, SILENCE).is_err());
    for sniffer in sniffers {
        let strays = sniffer.collect(MOMENT, |bytes| bytes.get(26..30) == Some(&[203, 0, 113, 101]));
        assert_eq!(strays.unwrap(), Vec::<Vec<u8>>::new());
    }
}

/// N6, R6: an ICMP error about a translated packet quotes it as its sender knows it.
fn n6_errors_come_back_translated(lab: &Lab) {
    for name in ["vm1", "vm4", "vm5", "vm6"] {
        let vm = lab.workload(name);
        vm.offloads_off().unwrap();
        let way = outwards(vm, SERVER1);
        let port = provoke(vm, &way.udp(46_000, CLOSED, &noise(40)), (3, 3));
        assert_eq!((port.source, port.destination), (ip(SERVER1), vm.ip(false)), "{name}");
        for sent in [
            way.ttl(2).udp(46_001, 7, &noise(40)),
            way.ttl(2).tcp_syn(46_002, 7),
            way.ttl(2).echo(4600, &noise(40)),
        ] {
            let exceeded = provoke(vm, &sent, (11, 0));
            assert_eq!((exceeded.source, exceeded.destination), (ip(GW), vm.ip(false)), "{name}");
        }
        // Larger than the way behind `gw`: the sender is told how large it may be.
        let way = outwards(vm, NARROW);
        for sent in [way.udp(46_003, 7, &noise(1372)), way.echo(4601, &noise(1372))] {
            let mut whole = sent;
            whole[20] |= 0x40;
            vrouter_tests::frame::set_ipv4_checksum(&mut whole);
            let too_big = provoke(vm, &whole, (3, 4));
            assert_eq!((too_big.source, too_big.icmp_word()), (ip(GW), 1300), "{name}");
        }
        // Which is all TCP needs.
        let mut talk = Talk::open(vm, at(NARROW, 7), None, PATIENCE).unwrap();
        talk.exchange(300_000).unwrap();
    }
    // From outside in: the error has the address that was asked.
    let outside1 = lab.host("outside1");
    outside1.offloads_off().unwrap();
    for to in [OF_VM1, OF_VM5] {
        let sent = inwards(lab, to).udp(46_004, CLOSED, &noise(40));
        let port = provoke(outside1, &sent, (3, 3));
        assert_eq!((port.source, port.destination), (ip(to), ip(OUTSIDE1)));
    }
    let mut talk = Talk::open(lab.host("narrow"), at(OF_VM1, 7), None, PATIENCE).unwrap();
    talk.exchange(300_000).unwrap();
}

/// N6: an error that a workload behind the router's address sends is translated on its way out.
fn n6_errors_go_out_translated(lab: &Lab) {
    let server = lab.host("server1");
    server.offloads_off().unwrap();
    for (name, expected) in [("vm2", ROUTER), ("vm4", ROUTER), ("vm1", OF_VM1)] {
        let vm = lab.workload(name);
        vm.offloads_off().unwrap();
        let (sniffer, payload) = (server.sniff().unwrap(), noise(77));
        // Nobody waits for the answer at that port, so the workload complains of it.
        vm.raw_send(&outwards(vm, SERVER1).udp(47_000, 7, &payload)).unwrap();
        let request = receive(&sniffer, |bytes| contains(bytes, &payload[..50]));
        let (port, _) = request.ip().unwrap().ports();
        let error = receive(&sniffer, |bytes| is_icmp(bytes, (3, 3)));
        let error = error.ip().unwrap();
        assert_eq!((error.source, error.destination), (ip(expected), ip(SERVER1)), "{name}");
        // The quotation is the server's own answer, sums and all.
        let quoted = [&[0; 12][..], &[8, 0], error.payload()].concat();
        let quoted = Frame::check(&quoted).unwrap().packet.unwrap();
        assert_eq!((quoted.source, quoted.destination), (ip(SERVER1), ip(expected)), "{name}");
        assert_eq!((quoted.protocol, quoted.ports()), (UDP, (7, port)), "{name}");
    }
}

/// R6: what may be cut is cut, through translation and back together.
fn r6_what_may_be_cut_arrives(lab: &Lab) {
    for (from, to) in [
        ("vm4", SERVER1),
        ("vm1", SERVER1),
        ("outside1", OF_VM1),
        ("outside1", OF_VM5),
        ("server1", OF_VM1),
        ("vm1", NARROW),
        ("vm6", OF_VM1),
    ] {
        for length in [1472, 3000, 8000] {
            let outcome = Probe::udp(ip(to), 7).length(length).returned().send(lab.host(from)).unwrap();
            assert!(outcome.is_answer(ip(to)), "{length} bytes from {from} to {to}: {outcome}");
            let outcome = Probe::ping(ip(to)).length(length).send(lab.host(from)).unwrap();
            assert!(outcome.is_answer(ip(to)), "a ping of {length} bytes from {from} to {to}: {outcome}");
        }
    }
}

const CHECKS: &[Check<Lab>] = &[
    ("N1 out with the router's address", n1_out_with_the_routers_address),
    ("N1 the same source port", n1_the_same_source_port_does_not_clash),
    ("N1 for its peer alone", n1_a_translation_is_for_its_peer_alone),
    ("N2 floating IPs", n2_floating_ips_both_ways),
    ("N3 from inside to floating IPs", n3_from_inside_to_floating_ips),
    ("N4 inside addresses stay", n4_inside_addresses_stay),
    ("N5 port forwarding", n5_port_forwarding),
    ("R6 fragments through translation", r6_what_may_be_cut_arrives),
    ("N1, N2 exact frames", n1_n2_frames_are_exact),
    ("N6 errors come back", n6_errors_come_back_translated),
    ("N6 errors go out", n6_errors_go_out_translated),
];

// ---- Checks of vrouter alone.

/// N2: exactly one node answers for an address, and only for those there are.
fn n2_only_the_owner_answers(system: &System) {
    let outside1 = system.host("outside1");
    let wires = wires(system);
    let mut owners = Vec::new();
    for address in [ROUTER, OF_VM1, OF_VM5, SHARED, "2001:db8:ff::10"] {
        let own = if address.contains(':') { "2001:db8:ff::101" } else { OUTSIDE1 };
        for _ in 0..3 {
            let answers = outside1.who_has(ip(own), ip(address), MOMENT).unwrap();
            assert_eq!(answers.len(), 1, "answers for {address}");
            owners.push((address, answers[0]));
        }
    }
    owners.dedup();
    assert_eq!(owners.len(), 5, "the same each time: {owners:02x?}");
    if wires.len() > 1 {
        assert_ne!(owners[1].1, owners[2].1, "each node has a hardware address of its own");
        // And the answers came out of that node.
        let [a, b] = [0, 1].map(|node: usize| {
            let frames = wires[node].collect(MOMENT, |_| true).unwrap();
            let arps = frames.iter().filter_map(|frame| Arp::read(frame));
            arps.filter(|arp| arp.operation == 2).map(|arp| arp.sender_ip.to_string()).collect::<Vec<_>>()
        });
        assert!(a.contains(&OF_VM1.to_owned()) && !a.contains(&OF_VM5.to_owned()), "{a:?}");
        assert!(b.contains(&OF_VM5.to_owned()) && !b.contains(&OF_VM1.to_owned()), "{b:?}");
    }
    for address in ["203.0.113.77", "10.0.1.1", "10.0.1.11", "203.0.113.255"] {
        let answers = outside1.who_has(ip(OUTSIDE1), ip(address), MOMENT).unwrap();
        assert_eq!(answers.len(), 0, "answers for {address}");
    }
}

/// N1, N2: each node translates for its own workloads and sends by its own interface; what comes back for it
/// takes at most one tunnel.
fn each_node_sends_by_its_own_interface(system: &System) {
    let wires = wires(system);
    if wires.len() < 2 {
        return;
    }
    let expected = [("vm1", 0), ("vm2", 0), ("vm4", 1), ("vm5", 1)];
    for (name, node) in expected {
        let ping = system.host(name).ping(SERVER1, 1, &["-p", &format!("b1b2{node:02x}b4")]).unwrap();
        assert!(ping.is_clean(), "{name}: {}", ping.output);
        let is_request =
            |bytes: &[u8]| contains(bytes, &[0xb1, 0xb2, node, 0xb4]) && bytes.get(34) == Some(&8);
        for (at, wire) in wires.iter().enumerate() {
            let requests = wire.collect(MOMENT, is_request).unwrap().len();
            assert_eq!(requests, usize::from(at == usize::from(node)), "{name} at wire {at}");
        }
    }
}

/// R4, R6: a router's own errors about translated packets, in both directions, have its address.
fn r4_the_routers_own_errors(system: &System) {
    let outside1 = system.host("outside1");
    outside1.offloads_off().unwrap();
    for to in [OF_VM1, OF_VM5, SHARED] {
        let way = inwards(system, to);
        let port = if to == SHARED { 5353 } else { 7 };
        let mut sent = vec![way.ttl(1).udp(48_000, port, &noise(40))];
        if to != SHARED {
            sent.extend([way.ttl(1).echo(4800, &noise(40)), way.ttl(1).tcp_syn(48_001, 7)]);
        }
        for sent in sent {
            let exceeded = provoke(outside1, &sent, (11, 0));
            assert_eq!((exceeded.source, exceeded.destination), (ip(ROUTER), ip(OUTSIDE1)), "{to}");
        }
        let mut whole = way.udp(48_002, port, &noise(1460));
        whole[20] |= 0x40;
        vrouter_tests::frame::set_ipv4_checksum(&mut whole);
        let too_big = provoke(outside1, &whole, (3, 4));
        assert_eq!((too_big.source, too_big.icmp_word()), (ip(ROUTER), 1450), "{to}");
    }
    for name in ["vm1", "vm4"] {
        let vm = system.workload(name);
        let way = outwards(vm, SERVER1).ttl(1);
        for sent in [way.udp(48_003, 7, &noise(40)), way.echo(4801, &noise(40)), way.tcp_syn(48_004, 7)] {
            let exceeded = provoke(vm, &sent, (11, 0));
            assert_eq!((exceeded.source, exceeded.destination), (ip("10.0.1.1"), vm.ip(false)), "{name}");
        }
    }
}

/// N1, N2: the flow table tells of a translated connection: both ends, and what they became.
fn flows_tell_of_translations(system: &System) {
    for (from, node, becomes) in
        [("vm1", "node-a", OF_VM1), ("vm2", "node-a", ROUTER), ("vm6", "node-b", ROUTER)]
    {
        let node = if system.nodes().count() == 1 { "node-a" } else { node };
        let mut talk = Talk::open(system.host(from), at(SERVER2, 22), Some(49_000), PATIENCE).unwrap();
        talk.exchange(1000).unwrap();
        let words = [system.workload(from).v4(), SERVER2, becomes];
        let rows = system.flows_with(node, &words).unwrap();
        assert!(!rows.is_empty(), "no flow of {from} with {words:?} on {node}");
        let port = talk.seen().port().to_string();
        assert!(!system.flows_with(node, &[SERVER2, becomes, &port]).unwrap().is_empty(), "{from}: {rows:?}");
    }
}

const OWN_CHECKS: &[Check<System>] = &[
    ("N2 only the owner answers", n2_only_the_owner_answers),
    ("N1, N2 each node by its own interface", each_node_sends_by_its_own_interface),
    ("R4, R6 the router's own errors", r4_the_routers_own_errors),
    ("N1, N2 the flow table", flows_tell_of_translations),
];

/// What comes out of each node's external interface.
fn wires(system: &System) -> Vec<Sniffer> {
    let internet = Host::new("internet", system.outside().switch().clone());
    system.nodes().map(|node| internet.sniff_on(node.external_port()).unwrap()).collect()
}

/// A way to the inside, as N4 needs it.
fn open_ways(lab: &Lab) {
    lab.outside().route_inside("fd00::/16", "2001:db8:ff::10").unwrap();
    lab.outside().route_inside("10.0.0.0/16", ROUTER).unwrap();
}

fn everything(topology: &Topology) {
    let system = System::start(topology).unwrap();
    open_ways(&system);
    let _services = Services::everywhere(&system, &SERVED).unwrap();
    check_all::<Lab>(&system, CHECKS);
    check_all(&system, OWN_CHECKS);
    for node in &topology.nodes {
        let drops = system.drops(&node.name).unwrap();
        for reason in ["internal", "no_room", "flow_reused", "nat_clash", "spoofed_ip", "tunnel_misdelivered"]
        {
            assert_eq!(drops[reason], 0, "{reason} on {}", node.name);
        }
    }
}

#[test]
fn translation_on_two_nodes() {
    everything(&with_outside());
}

#[test]
fn translation_on_one_node() {
    everything(&with_outside().on_one_node());
}

/// The checks themselves ask for what Linux does.
#[test]
fn the_checks_hold_for_linux() {
    let linux = Linux::start(&with_outside()).unwrap();
    open_ways(&linux);
    let _services = Services::everywhere(&linux, &SERVED).unwrap();
    check_all::<Lab>(&linux, CHECKS);
}

/// N3: between two routers on one external network, and back; one goes out by its own address.
#[test]
fn n3_between_two_routers() {
    let topology = two_routers();
    let check = |lab: &Lab| {
        let _services = Services::everywhere(lab, &SERVED).unwrap();
        for (from, to, expected) in [
            // Floating IP to floating IP, and without one.
            ("vm1", "203.0.113.59", OF_VM1),
            ("vm9", OF_VM1, "203.0.113.59"),
            ("vm5", "203.0.113.59", OF_VM5),
            ("vm9", OF_VM5, "203.0.113.59"),
            ("vm2", "203.0.113.59", ROUTER),
            ("vm4", "203.0.113.59", ROUTER),
            ("vm8", OF_VM1, "203.0.113.11"),
            ("vm8", OF_VM5, "203.0.113.11"),
            ("vm8", SERVER1, "203.0.113.11"),
            ("vm9", SERVER1, "203.0.113.59"),
            ("outside1", "203.0.113.59", OUTSIDE1),
        ] {
            reaches_as(lab, from, to, expected);
        }
    };
    check(&Linux::start(&topology).unwrap());
    let system = System::start(&topology).unwrap();
    check(&system);
    // No way but through the addresses outside.
    let vm1 = system.host("vm1");
    let direct = Probe::udp(ip("10.0.9.9"), 7).timeout(SILENCE).send(vm1).unwrap();
    assert!(!matches!(direct, Outcome::Answer { .. }), "{direct}");
}

/// [`with_outside`] and beside it a router r9 of its own: vm8 on node-a, vm9 on node-b with a floating IP.
fn two_routers() -> Topology {
    let mut topology = with_outside();
    let mut network =
        vrouter_tests::topology::Network::new("other", &[("other4", "10.0.9.0/24", "10.0.9.1")]);
    network.mtu = Some(1450);
    topology.networks.insert(0, network);
    let mut router = vrouter_tests::topology::Router::new("r9", &["other4"]);
    router.gateway = topology.routers[0].gateway.clone();
    router.gateway.as_mut().unwrap().addresses = vec!["203.0.113.11".to_owned()];
    topology.routers.push(router);
    for (name, number, node) in [("vm8", 8, "node-a"), ("vm9", 9, "node-b")] {
        let mut port = standard_port(name, "db", number, node);
        port.network = "other".to_owned();
        port.mac = format!("02:00:00:00:09:{number:02x}");
        port.fixed_ips = vec![format!("10.0.9.{number}")];
        topology.ports.push(port);
    }
    topology.floating_ips.push(FloatingIp::new("203.0.113.59", "vm9"));
    topology
}

/// N5, N7: what is changed in the topology holds at once: forwardings, and a floating IP that moves to a port
/// on the other node, announced, with its old owner silent.
#[test]
fn n5_n7_changes_apply_to_live_traffic() {
    let mut topology = with_outside();
    let mut system = System::start(&topology).unwrap();
    let _services = Services::everywhere(&system, &SERVED).unwrap();
    let outside1 = system.host("outside1").clone();
    let steady = |system: &System| Talk::open(system.host("vm6"), at(SERVER2, 7), None, PATIENCE).unwrap();
    let mut steady = steady(&system);

    // N5: port 2222 leads from vm3 to vm6, and a new one appears.
    let mut talk = Talk::open(&outside1, at(SHARED, 2222), None, PATIENCE).unwrap();
    talk.exchange(1000).unwrap();
    let at_vm3 = system.host("vm3").sniff().unwrap();
    let forwardings = &mut topology.floating_mut(SHARED).forwardings;
    forwardings[0].port = "vm6".to_owned();
    forwardings[0].internal = 80;
    let mut another = forwardings[1].clone();
    (another.external, another.internal) = (8080, 80);
    forwardings.push(another);
    system.apply(&topology).unwrap();
    at_vm3.collect(Duration::ZERO, |_| true).unwrap();
    let at_vm6 = system.host("vm6").sniff().unwrap();
    for port in [2222, 8080] {
        Talk::open(&outside1, at(SHARED, port), None, PATIENCE).unwrap().exchange(1000).unwrap();
        at_vm6.expect(PATIENCE, |bytes| bytes.get(23) == Some(&TCP) && bytes[36..38] == [0, 80]).unwrap();
    }
    // The old connection must not go on with a workload it no longer leads to.
    talk.is_cut(SILENCE).unwrap();
    let stray = at_vm3.collect(MOMENT, |bytes| bytes.get(23) == Some(&TCP)).unwrap();
    assert_eq!(stray, Vec::<Vec<u8>>::new(), "nothing more comes to vm3");
    // One that is gone leads nowhere.
    topology.floating_mut(SHARED).forwardings.retain(|forwarding| forwarding.external != 8080);
    system.apply(&topology).unwrap();
    assert!(Talk::open(&outside1, at(SHARED, 8080), None, SILENCE).is_err());

    // N7.
    let mut talk = Talk::open(&outside1, at(OF_VM1, 7), None, PATIENCE).unwrap();
    talk.exchange(1000).unwrap();
    let before = outside1.who_has(ip(OUTSIDE1), ip(OF_VM1), MOMENT).unwrap();
    let announced = outside1.sniff().unwrap();
    topology.floating_mut(OF_VM1).port = "vm4".to_owned();
    system.apply(&topology).unwrap();
    let arp = announced
        .expect(PATIENCE, |bytes| {
            Arp::read(bytes)
                .is_some_and(|arp| arp.sender_ip.to_string() == OF_VM1 && arp.sender_ip == arp.target_ip)
        })
        .unwrap();
    let arp = Arp::read(&arp).unwrap();
    assert_ne!(vec![arp.sender], before, "another node has it");
    let after = outside1.who_has(ip(OUTSIDE1), ip(OF_VM1), MOMENT).unwrap();
    assert_eq!(after, [arp.sender], "the old owner is silent");
    let at_vm1 = system.host("vm1").sniff().unwrap();
    let at_vm4 = system.host("vm4").sniff().unwrap();
    for from in ["outside1", "server1"] {
        seen(&system, from, OF_VM1, &Probe::udp(ip(OF_VM1), 7));
        Talk::open(system.host(from), at(OF_VM1, 7), None, PATIENCE).unwrap().exchange(1000).unwrap();
        at_vm4.expect(PATIENCE, |bytes| bytes.get(23) == Some(&TCP)).unwrap();
    }
    reaches_as(&system, "vm4", SERVER1, OF_VM1);
    reaches_as(&system, "vm1", SERVER1, ROUTER);
    let stray = at_vm1.collect(MOMENT, |bytes| bytes.get(26..30) == Some(&[203, 0, 113, 101])).unwrap();
    assert_eq!(stray, Vec::<Vec<u8>>::new());

    steady.exchange(100_000).unwrap();
}

/// N8: no port left is refused and counted; what has one keeps it; as flows end there are ports again.
#[test]
fn n8_running_out_of_ports() {
    let mut topology = with_outside().on_one_node();
    // One block.
    topology.router_mut("r1").gateway.as_mut().unwrap().snat_ports = Some("2048-3071".to_owned());
    let options = vrouter_tests::AgentOptions {
        extra: vec!["--flow-idle-seconds".to_owned(), "10".to_owned()],
        ..vrouter_tests::AgentOptions::default()
    };
    let system = System::start_with(&topology, &options).unwrap();
    let _services = Services::everywhere(&system, &SERVED).unwrap();
    let vm2 = system.host("vm2");
    let mut talk = Talk::open(vm2, at(SERVER1, 7), None, PATIENCE).unwrap();
    assert!((2048..=3071).contains(&talk.seen().port()), "{}", talk.seen());

    // One flow to one server for each port, and a hundred more than there are; all answered, so that none
    // gives way to another.
    let before = system.dropped("node-a", "snat_exhausted").unwrap();
    let answered = |first: u16, count: u16| -> usize {
        let ports = (first..first + count).collect::<Vec<u16>>();
        let send = |ports: &[u16]| {
            let probe = |port: &u16| {
                let probe = Probe::udp(ip(SERVER1), 53).from_port(*port).timeout(SILENCE);
                matches!(probe.send(vm2).unwrap(), Outcome::Answer { .. })
            };
            ports.iter().filter(|port| probe(port)).count()
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = ports.chunks(4).map(|ports| scope.spawn(move || send(ports))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        })
    };
    let got = answered(20_000, 1124);
    assert!((1000..=1024).contains(&got), "{got} of 1124 got a port");
    let dropped = system.dropped("node-a", "snat_exhausted").unwrap() - before;
    assert_eq!(dropped, 1124 - got as u64, "each that was refused is counted, and nothing else");
    talk.exchange(10_000).unwrap();
    // To another server the same ports are free, and so they are for TCP.
    seen(&system, "vm2", SERVER2, &Probe::udp(ip(SERVER2), 53));
    Talk::open(system.host("vm4"), at(SERVER1, 80), None, PATIENCE).unwrap().exchange(1000).unwrap();
    // Those with floating IPs do not need any.
    seen(&system, "vm1", SERVER1, &Probe::udp(ip(SERVER1), 53));

    wait::until("ports are free again", Duration::from_secs(60), || {
        talk.exchange(1)?;
        let outcome = Probe::udp(ip(SERVER1), 53).timeout(SILENCE).send(vm2)?;
        Ok(matches!(outcome, Outcome::Answer { .. }))
    })
    .unwrap();
    talk.exchange(10_000).unwrap();
}
