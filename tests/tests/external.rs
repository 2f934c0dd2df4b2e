//! Behaviours at the edge of the external network: R3, R4, R5 and R6 there, and next hops that come, change and
//! go. The checks that ask for nothing of vrouter's own run against Linux too.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use vrouter_tests::frame::{
    Addressing, Arp, EXPERIMENT, Frame, ICMP, ICMPV6, Packet, TCP, UDP, fragments, set_ipv4_checksum,
};
use vrouter_tests::host::parse_mac;
use vrouter_tests::sockets::noise;
use vrouter_tests::system::{Check, check_all};
use vrouter_tests::tools::traceroute;
use vrouter_tests::topology::{Topology, with_outside};
use vrouter_tests::{Host, Lab, Linux, Probe, Services, Sniffer, System, Talk, wait};

const PATIENCE: Duration = Duration::from_secs(10);
/// What must not come has this long to come.
const MOMENT: Duration = Duration::from_millis(150);

/// The router's addresses outside.
const ROUTER: [&str; 2] = ["203.0.113.10", "2001:db8:ff::10"];
const OUTSIDE1: [&str; 2] = ["203.0.113.101", "2001:db8:ff::101"];
const SERVER1: [&str; 2] = ["198.51.100.10", "2001:db8:aa::10"];
const GW: [&str; 2] = ["203.0.113.1", "2001:db8:ff::1"];
const OF_VM1: &str = "203.0.113.51";
const OF_VM5: &str = "203.0.113.55";
const FAMILIES: [bool; 2] = [false, true];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The one of a family.
fn of(pair: [&'static str; 2], is_v6: bool) -> IpAddr {
    ip(pair[usize::from(is_v6)])
}

/// From `outside1` to the router's address.
fn to_router(lab: &Lab, is_v6: bool) -> Addressing {
    let outside1 = lab.host("outside1");
    let (source, destination) = (of(OUTSIDE1, is_v6), of(ROUTER, is_v6));
    let owners = outside1.who_has(source, destination, MOMENT).unwrap();
    assert_eq!(owners.len(), 1, "answers for {destination}");
    Addressing { from: outside1.mac().unwrap(), to: owners[0], source, destination, ttl: 64 }
}

/// Whether a frame is of this address's, and TCP, or ICMP but for neighbour discovery.
fn speaks(bytes: &[u8], source: IpAddr) -> bool {
    let Ok(Frame { packet: Some(packet), .. }) = Frame::check(bytes) else { return false };
    let is_icmp = match packet.protocol {
        ICMP => true,
        ICMPV6 => !matches!(packet.transport[0], 133..=137),
        TCP => true,
        _ => false,
    };
    packet.source == source && is_icmp
}

/// Sends a frame and receives what the router says to it.
#[track_caller]
fn answer(host: &Host, sent: &[u8], router: IpAddr) -> Packet {
    let sniffer = host.sniff().unwrap();
    host.raw_send(sent).unwrap();
    let said = sniffer.expect(PATIENCE, |bytes| speaks(bytes, router));
    let said = said.unwrap_or_else(|error| panic!("no answer to {sent:02x?}: {error:#}"));
    Frame::check(&said).unwrap().packet.unwrap()
}

// ---- Checks of any implementation.

/// R3: the router's address outside answers pings, refuses what it does not speak, and is silent where it must.
fn r3_the_routers_address_outside(lab: &Lab) {
    let outside1 = lab.host("outside1");
    outside1.offloads_off().unwrap();
    for is_v6 in FAMILIES {
        let router = of(ROUTER, is_v6);
        for from in ["outside1", "server1", "vm1", "vm2", "vm4"] {
            let ping = lab.host(from).ping(router, 2, &["-s", "1200"]).unwrap();
            assert!(ping.is_clean(), "{from} pings {router}: {}", ping.output);
        }
        let way = to_router(lab, is_v6);
        let sent = way.udp(5000, 5001, &noise(40));
        let port = answer(outside1, &sent, router);
        assert_eq!(port.icmp(), Some(if is_v6 { (1, 4) } else { (3, 3) }));
        port.quotes(&sent).unwrap();
        let reset = answer(outside1, &way.tcp_syn(5002, 179), router);
        assert_eq!((reset.protocol, reset.ports()), (TCP, (179, 5002)));
        assert_eq!(reset.transport[13] & 0x14, 0x14, "RST and ACK");
        let sent = way.protocol(EXPERIMENT, &noise(40));
        let protocol = answer(outside1, &sent, router);
        assert_eq!(protocol.icmp(), Some(if is_v6 { (4, 1) } else { (3, 2) }));
        protocol.quotes(&sent).unwrap();
        let echo = answer(outside1, &way.echo(77, &noise(900)), router);
        assert_eq!((echo.payload(), echo.ttl), (&noise(900)[..], 64));
        // Nothing for later fragments, resets, and errors about nothing.
        let sniffer = outside1.sniff().unwrap();
        let cut = fragments(&way.udp(5003, 5004, &noise(400)), 99, &[200, 408]);
        outside1.raw_send(&cut[1]).unwrap();
        outside1.raw_send(&way.tcp_reset(5005, 5006)).unwrap();
        let quoted = &way.udp(1, 2, &noise(40))[14..];
        let error = if is_v6 { way.icmpv6(1, 4, [0; 4], quoted) } else { way.icmpv4(3, 3, [0; 4], quoted) };
        outside1.raw_send(&error).unwrap();
        let said = sniffer.collect(MOMENT, |bytes| speaks(bytes, router)).unwrap();
        assert_eq!(said, Vec::<Vec<u8>>::new());
    }
}

/// R4: outwards every router shows once, the address being the one of the interface where the packet came in.
fn r4_traceroute_outwards(lab: &Lab) {
    for name in ["vm1", "vm2", "vm4", "vm5"] {
        let vm = lab.workload(name);
        for is_v6 in FAMILIES {
            let third = if vm.v4().starts_with("10.0.1.") { 1 } else { 2 };
            let first = if is_v6 { format!("fd00:{third}::1") } else { format!("10.0.{third}.1") };
            let expected = [&first[..], &of(GW, is_v6).to_string(), &of(SERVER1, is_v6).to_string()];
            let expected: Vec<Option<String>> = expected.map(|hop| Some(hop.to_owned())).to_vec();
            for method in ["", "-I ", "-T -p 7 "] {
                let to = of(SERVER1, is_v6);
                let (hops, output) = traceroute(vm, format!("{method}{to}")).unwrap();
                assert_eq!(hops, expected, "{name} {method}: {output}");
            }
        }
    }
}

/// R5: nobody has the next hop's address: the sender is told, after a bounded number of questions.
fn r5_an_unanswered_next_hop(lab: &Lab) {
    let watcher = lab.host("outside1").sniff().unwrap();
    // Several senders at once, each with several packets.
    let cases = [("vm1", "203.0.113.90"), ("vm2", "203.0.113.90"), ("vm4", "2001:db8:ff::90")];
    std::thread::scope(|scope| {
        for (name, target) in cases {
            scope.spawn(move || {
                let vm = lab.workload(name);
                let started = Instant::now();
                let probe = Probe::udp(ip(target), 7).timeout(PATIENCE);
                let error = probe.send(vm).unwrap().error();
                let error = error.unwrap_or_else(|| panic!("{name} to {target}: no error"));
                let is_v6 = ip(target).is_ipv6();
                let expected = if is_v6 { (1, 3) } else { (3, 1) };
                assert_eq!((error.kind, error.code), expected, "{name}: {error}");
                let own: IpAddr = vm.spec().gateways[usize::from(is_v6)].parse().unwrap();
                assert_eq!(error.source, own, "{name}");
                let took = started.elapsed();
                assert!(took > Duration::from_millis(300) && took < Duration::from_secs(6), "{took:?}");
            });
        }
    });
    let frames = watcher.collect(MOMENT, |_| true).unwrap();
    let asked = frames.iter().filter_map(|frame| Arp::read(frame));
    let asked = asked.filter(|arp| arp.operation == 1 && arp.target_ip.to_string() == "203.0.113.90");
    let asked: Vec<Arp> = asked.collect();
    assert!((1..=12).contains(&asked.len()), "{} questions", asked.len());
    // Nobody may learn a wrong address from it: the router's where it is at home, the floating IP of whoever
    // wants to know (Linux), or none.
    let known = |arp: &Arp| [ROUTER[0], OF_VM1, "0.0.0.0"].contains(&arp.sender_ip.to_string().as_str());
    assert!(asked.iter().all(known), "{asked:?}");
    // It comes to life: whoever tries again is served.
    let outside2 = lab.host("outside2");
    outside2.run("ip address add 203.0.113.90/24 dev eth0").unwrap();
    outside2.run("ip address add 2001:db8:ff::90/64 dev eth0 nodad").unwrap();
    for (name, target) in cases {
        wait::until(&format!("{name} reaches {target}"), PATIENCE, || {
            Ok(lab.workload(name).ping(target, 1, &[])?.is_clean())
        })
        .unwrap();
    }
    outside2.run("ip address del 203.0.113.90/24 dev eth0").unwrap();
    outside2.run("ip address del 2001:db8:ff::90/64 dev eth0").unwrap();
}

/// R5: the first packets to a neighbour outside wait until it is known; none is lost.
fn r5_the_first_packet_is_not_lost(lab: &Lab) {
    let outside2 = lab.host("outside2");
    for number in 150..156 {
        outside2.run(&format!("ip address add 203.0.113.{number}/24 dev eth0")).unwrap();
        outside2.run(&format!("ip address add 2001:db8:ff::{number}/64 dev eth0 nodad")).unwrap();
        for (name, base) in [("vm1", "203.0.113."), ("vm4", "203.0.113."), ("vm6", "2001:db8:ff::")] {
            let target = ip(&format!("{base}{number}"));
            let outcome = Probe::ping(target).send(lab.host(name)).unwrap();
            assert!(outcome.is_answer(target), "{name} to {target}: {outcome}");
        }
    }
}

/// The next hop's network card is replaced; it announces itself, and everything goes on.
fn a_next_hop_changes_its_hardware_address(lab: &Lab) {
    let gw = lab.host("gw");
    let mut talks: Vec<Talk> = ["vm1", "vm2", "vm4", "vm5"]
        .iter()
        .flat_map(|name| FAMILIES.map(|is_v6| (*name, std::net::SocketAddr::new(of(SERVER1, is_v6), 7))))
        .map(|(name, to)| Talk::open(lab.host(name), to, None, PATIENCE).unwrap())
        .collect();
    let old = gw.mac().unwrap();
    let new = parse_mac("02:00:00:00:99:01").unwrap();
    gw.run("ip link set eth0 address 02:00:00:00:99:01").unwrap();
    gw.run("arping -c 2 -U -I eth0 -s 203.0.113.1 203.0.113.1").ok();
    let IpAddr::V6(own) = of(GW, true) else { unreachable!() };
    let everybody = Addressing {
        from: new,
        to: [0x33, 0x33, 0, 0, 0, 1],
        source: own.into(),
        destination: ip("ff02::1"),
        ttl: 255,
    };
    gw.raw_send(&everybody.neighbour(136, own, 2, new)).unwrap();
    for talk in &mut talks {
        talk.exchange(10_000).unwrap();
    }
    for name in ["vm2", "vm6"] {
        let udp = Probe::udp(of(SERVER1, false), 7).send(lab.host(name)).unwrap();
        assert!(udp.is_answer(of(SERVER1, false)), "{name}: {udp}");
    }
    let address = old.map(|byte| format!("{byte:02x}")).join(":");
    gw.run(&format!("ip link set eth0 address {address}")).unwrap();
    gw.run("arping -c 2 -U -I eth0 -s 203.0.113.1 203.0.113.1").ok();
    gw.raw_send(&everybody.from(old).neighbour(136, own, 2, old)).unwrap();
    for talk in &mut talks {
        talk.exchange(10_000).unwrap();
    }
}

/// R6: a large packet from outside: told the right size if it must stay whole, cut if it may be, TCP just works.
fn r6_from_a_wider_network_outside(lab: &Lab) {
    for to in [ip(OF_VM1), ip(OF_VM5), lab.workload("vm4").ip(true)] {
        let whole = Probe::udp(to, 7).length(1445).dont_fragment().send(lab.host("server1")).unwrap();
        let error = whole.error().unwrap_or_else(|| panic!("{to}: {whole}"));
        let expected = if to.is_ipv6() { (2, 0, 1450) } else { (3, 4, 1450) };
        assert_eq!((error.kind, error.code, error.mtu), expected, "{to}");
        let fits = if to.is_ipv6() { 1402 } else { 1422 };
        let fits = Probe::udp(to, 7).length(fits).dont_fragment().send(lab.host("server2")).unwrap();
        assert!(fits.is_answer(to), "{to}: {fits}");
        let to_tcp = std::net::SocketAddr::new(to, 7);
        let mut talk = Talk::open(lab.host("server2"), to_tcp, None, PATIENCE).unwrap();
        talk.exchange(1 << 20).unwrap();
    }
}

const CHECKS: &[Check<Lab>] = &[
    ("R5 the first packet is not lost", r5_the_first_packet_is_not_lost),
    ("R3 the router's address outside", r3_the_routers_address_outside),
    ("R4 traceroute outwards", r4_traceroute_outwards),
    ("R6 from a wider network", r6_from_a_wider_network_outside),
    ("R5 an unanswered next hop", r5_an_unanswered_next_hop),
    ("a next hop's new hardware address", a_next_hop_changes_its_hardware_address),
];

// ---- Checks of vrouter alone.

/// R4: inwards too, through floating IPs: the router once, then the floating IP.
fn r4_traceroute_inwards(system: &System) {
    for to in [OF_VM1, OF_VM5] {
        // An error about a connection does not wait for its next hop.
        let ping = system.host("outside1").ping(to, 1, &[]).unwrap();
        assert!(ping.is_clean(), "{}", ping.output);
        let near = [Some(ROUTER[0].to_owned()), Some(to.to_owned())];
        for method in ["", "-I ", "-T -p 7 "] {
            let (hops, output) = traceroute(system.host("outside1"), format!("{method}{to}")).unwrap();
            assert_eq!(hops, near, "{output}");
            let (hops, output) = traceroute(system.host("server1"), format!("{method}{to}")).unwrap();
            let far: Vec<_> = [Some("198.51.100.1".to_owned())].into_iter().chain(near.clone()).collect();
            assert_eq!(hops, far, "{output}");
        }
    }
}

/// R5: one question at a time and a few packets kept, however many are sent, and no storm of answers.
fn r5_questions_and_waiting_packets_are_bounded(system: &System) {
    let vm2 = system.workload("vm2");
    let watcher = system.host("outside1").sniff().unwrap();
    let way = Addressing {
        from: vm2.spec_mac(),
        to: vm2.gateway_mac(false).unwrap(),
        source: vm2.ip(false),
        destination: ip("203.0.113.91"),
        ttl: 64,
    };
    let started = Instant::now();
    let frames = (0..20_000_u32).map(|i| {
        let mut frame = way.udp(30_000, 7, &noise(64));
        frame[34..36].copy_from_slice(&(20_000 + (i % 20_000) as u16).to_be_bytes());
        frame[40..42].fill(0);
        frame
    });
    let sent = vm2.flood(frames).unwrap();
    assert!(sent > 10_000, "only {sent} went");
    std::thread::sleep(Duration::from_secs(1));
    let seconds = started.elapsed().as_secs_f64();
    let frames = watcher.collect(Duration::ZERO, |_| true).unwrap();
    let asked = frames.iter().filter_map(|frame| Arp::read(frame));
    let asked = asked.filter(|arp| arp.target_ip.to_string() == "203.0.113.91").count();
    // A question every quarter of a second at the most, by each node that wants to know.
    assert!((1..=3 + (seconds * 5.0) as usize).contains(&asked), "{asked} in {seconds:.1} s");
    // Others are not disturbed.
    let outcome = Probe::udp(of(SERVER1, false), 7).send(system.host("vm1")).unwrap();
    assert!(outcome.is_answer(of(SERVER1, false)), "{outcome}");
    let drops = system.drops("node-a").unwrap();
    assert!(drops["next_hop_pending"] + drops["next_hop_unanswered"] > 0, "{drops:?}");
}

/// What comes from the external interface and is for nobody here goes nowhere, and is not flooded.
fn strangers_frames_go_nowhere(system: &System) {
    let outside1 = system.host("outside1");
    let listeners: Vec<Sniffer> = system.workloads().map(|workload| workload.sniff().unwrap()).collect();
    let owner = to_router(system, false).to;
    let payload = noise(120);
    for (to, destination) in [
        ([2, 0, 0, 0, 0x77, 1], OF_VM1),      // somebody else's hardware address
        ([0xff; 6], OF_VM1),                  // unicast in a broadcast
        (owner, "203.0.113.77"),              // nobody's address
        (owner, "203.0.113.255"),             // the broadcast address
        (owner, "198.51.100.10"),             // back to where it may have come from
        ([1, 0, 0x5e, 0, 0, 5], "224.0.0.5"), // a routing protocol of the outside
        (owner, "127.0.0.1"),
    ] {
        let way = Addressing {
            from: outside1.mac().unwrap(),
            to,
            source: of(OUTSIDE1, false),
            destination: ip(destination),
            ttl: 64,
        };
        outside1.raw_send(&way.udp(5555, 7, &payload)).unwrap();
    }
    // A source that cannot be outside.
    for source in ["127.0.0.1", "224.0.0.1", "0.0.0.0", "255.255.255.255"] {
        let way = to_router(system, false).destination(ip(OF_VM1)).source(ip(source));
        outside1.raw_send(&way.udp(5555, 7, &payload)).unwrap();
    }
    // A frame cut short, a header that lies, and a wrong header checksum.
    let way = to_router(system, false).destination(ip(OF_VM1));
    let whole = way.udp(5555, 7, &payload);
    outside1.raw_send(&whole[..30]).unwrap();
    let mut lies = whole.clone();
    lies[16..18].copy_from_slice(&2000_u16.to_be_bytes());
    set_ipv4_checksum(&mut lies);
    outside1.raw_send(&lies).unwrap();
    let mut damaged = whole;
    damaged[24] ^= 1;
    outside1.raw_send(&damaged).unwrap();
    // And the right one arrives.
    let marker = noise(60);
    let right = Probe::udp(ip(OF_VM1), 7).send(outside1).unwrap();
    assert!(right.is_answer(ip(OF_VM1)), "{right} {}", marker.len());
    for listener in listeners {
        let strays = listener.collect(MOMENT, |bytes| {
            bytes.windows(50).any(|window| window == &payload[..50]) && bytes.get(23) == Some(&UDP)
        });
        assert_eq!(strays.unwrap(), Vec::<Vec<u8>>::new());
    }
}

const OWN_CHECKS: &[Check<System>] = &[
    ("R4 traceroute inwards", r4_traceroute_inwards),
    ("strangers' frames", strangers_frames_go_nowhere),
    ("R5 bounded questions", r5_questions_and_waiting_packets_are_bounded),
];

fn everything(topology: &Topology) {
    let system = System::start(topology).unwrap();
    system.outside().route_inside("fd00::/16", ROUTER[1]).unwrap();
    let _services = Services::everywhere(&system, &[7]).unwrap();
    check_all::<Lab>(&system, CHECKS);
    check_all(&system, OWN_CHECKS);
    for node in &topology.nodes {
        let drops = system.drops(&node.name).unwrap();
        for reason in ["internal", "no_room", "flow_reused", "external_absent"] {
            assert_eq!(drops[reason], 0, "{reason} on {}", node.name);
        }
    }
}

#[test]
fn the_edge_on_two_nodes() {
    everything(&with_outside());
}

#[test]
fn the_edge_on_one_node() {
    everything(&with_outside().on_one_node());
}

/// The checks themselves ask for what Linux does.
#[test]
fn the_checks_hold_for_linux() {
    let linux = Linux::start(&with_outside()).unwrap();
    linux.outside().route_inside("fd00::/16", ROUTER[1]).unwrap();
    let _services = Services::everywhere(&linux, &[7]).unwrap();
    check_all::<Lab>(&linux, CHECKS);
}
