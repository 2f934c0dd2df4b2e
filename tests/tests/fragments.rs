//! Behaviour R7: fragments follow the first through policy and translation, as they came; what does not belong
//! together is dropped and counted, and costs bounded memory.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use vrouter_tests::frame::{Addressing, TCP, UDP, contains, fragments, piece};
use vrouter_tests::sockets::noise;
use vrouter_tests::system::{Check, check_all};
use vrouter_tests::topology::{Topology, with_outside};
use vrouter_tests::{Host, Probe, Services, Sniffer, System, Talk, Workload};

const PATIENCE: Duration = Duration::from_secs(10);
/// What must not come has this long to come.
const MOMENT: Duration = Duration::from_millis(150);
const FAMILIES: [bool; 2] = [false, true];

const ROUTER: &str = "203.0.113.10";
const OF_VM1: &str = "203.0.113.51";
const OF_VM5: &str = "203.0.113.55";
const OUTSIDE1: [&str; 2] = ["203.0.113.101", "2001:db8:ff::101"];

/// The lab with an outside; vm3 and vm5 take UDP and TCP at port 7 and nothing else.
fn topology() -> Topology {
    let mut topology = with_outside();
    topology.add_group(
        "seven",
        &[
            "{ direction: ingress, protocol: udp, ports: 7 }",
            "{ direction: ingress, protocol: tcp, ports: 7 }",
            "{ direction: egress }",
        ],
    );
    topology.put_into("vm3", &["seven"]);
    topology.put_into("vm5", &["seven"]);
    topology
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// From a workload to somebody behind its router.
fn towards(from: &Workload, to: IpAddr) -> Addressing {
    Addressing {
        from: from.spec_mac(),
        to: from.gateway_mac(to.is_ipv6()).unwrap(),
        source: from.ip(to.is_ipv6()),
        destination: to,
        ttl: 64,
    }
}

/// From `outside1` to an address the router answers for.
fn inwards(system: &System, to: &str) -> Addressing {
    let outside1 = system.host("outside1");
    let owners = outside1.who_has(ip(OUTSIDE1[0]), ip(to), MOMENT).unwrap();
    assert_eq!(owners.len(), 1, "answers for {to}");
    Addressing {
        from: outside1.mac().unwrap(),
        to: owners[0],
        source: ip(OUTSIDE1[0]),
        destination: ip(to),
        ttl: 64,
    }
}

/// One fragment as it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    id: u32,
    offset: usize,
    more: bool,
    payload: Vec<u8>,
}

/// Reads a frame, if it is a fragment.
fn read(bytes: &[u8]) -> Option<Piece> {
    let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    match bytes.get(12..14)? {
        [8, 0] => {
            let (field, end) = (word(20), 14 + usize::from(word(16)));
            let address = |at: usize| IpAddr::from([0, 1, 2, 3].map(|i| bytes[at + i]));
            (field & 0x3fff != 0).then(|| Piece {
                source: address(26),
                destination: address(30),
                ttl: bytes[22],
                id: word(18).into(),
                offset: usize::from(field & 0x1fff) * 8,
                more: field & 0x2000 != 0,
                payload: bytes[34..end].to_vec(),
            })
        }
        [0x86, 0xdd] if *bytes.get(20)? == 44 => {
            let end = 54 + usize::from(word(18));
            let address = |at: usize| {
                let octets: [u8; 16] = bytes[at..at + 16].try_into().unwrap();
                IpAddr::from(octets)
            };
            let field = word(56);
            Some(Piece {
                source: address(22),
                destination: address(38),
                ttl: bytes[21],
                id: u32::from_be_bytes(bytes[58..62].try_into().unwrap()),
                offset: usize::from(field & !7),
                more: field & 1 != 0,
                payload: bytes[62..end].to_vec(),
            })
        }
        _ => None,
    }
}

/// The fragments of one datagram that have arrived.
fn arrived(sniffer: &Sniffer, id: u32, count: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while pieces.len() < count {
        let frame = sniffer.expect(PATIENCE, |bytes| read(bytes).is_some_and(|piece| piece.id == id));
        let frame = frame.unwrap_or_else(|error| panic!("{} of {count} fragments: {error:#}", pieces.len()));
        pieces.extend(read(&frame));
    }
    let more = sniffer.collect(MOMENT, |bytes| read(bytes).is_some_and(|piece| piece.id == id));
    pieces.extend(more.unwrap().iter().filter_map(|frame| read(frame)));
    pieces
}

/// Nothing of a datagram has arrived, or does soon.
#[track_caller]
fn assert_nothing(sniffer: &Sniffer, id: u32) {
    let frames = sniffer.collect(MOMENT, |bytes| read(bytes).is_some_and(|piece| piece.id == id)).unwrap();
    assert_eq!(frames, Vec::<Vec<u8>>::new(), "of {id}");
}

/// How many packets were dropped for any reason that is about fragments or policy, on all nodes.
fn dropped(system: &System) -> u64 {
    let nodes = system.nodes().map(|node| system.drops(node.name()).unwrap());
    let counts = nodes.flat_map(BTreeMap::into_iter);
    counts
        .filter(|(reason, _)| reason.starts_with("fragment_") || reason.starts_with("policy_"))
        .map(|(_, count)| count)
        .sum()
}

fn send(host: &Host, frames: &[Vec<u8>]) {
    frames.iter().for_each(|frame| host.raw_send(frame).unwrap());
}

/// R7: in is out: the fragments arrive as they were cut, translated all alike, and make the datagram.
fn r7_fragments_follow_the_first(system: &System) {
    let data = noise(2992);
    let ends = [1400, 2000, 2008, 3000];
    let mut id = 100;
    // East-west, on the node and to the other, by a rule that names the port.
    for is_v6 in FAMILIES {
        for (from, to) in [("vm1", "vm3"), ("vm1", "vm5"), ("vm4", "vm3"), ("vm4", "vm5")] {
            id += 1;
            let (from, to) = (system.workload(from), system.workload(to));
            let sniffer = to.sniff().unwrap();
            let whole = towards(from, to.ip(is_v6)).udp(50_000, 7, &data);
            let cut = fragments(&whole, id, &ends);
            send(from, &cut);
            let sent = cut.iter().filter_map(|frame| read(frame));
            let expected: Vec<Piece> = sent.map(|piece| Piece { ttl: 63, ..piece }).collect();
            assert_eq!(arrived(&sniffer, id, 4), expected, "{} to {}", from.name(), to.name());
        }
    }
    // Out, by the router's address or one's own; the answer shows that it was put together.
    let outside1 = system.host("outside1");
    for (name, becomes) in [("vm1", OF_VM1), ("vm2", ROUTER), ("vm4", ROUTER), ("vm5", OF_VM5)] {
        id += 1;
        let vm = system.workload(name);
        let (there, here) = (outside1.sniff().unwrap(), vm.sniff().unwrap());
        let cut = fragments(&towards(vm, ip(OUTSIDE1[0])).udp(50_001, 7, &data), id, &ends);
        send(vm, &cut);
        let pieces = arrived(&there, id, 4);
        let shape = |piece: &Piece| (piece.offset, piece.more, piece.payload.len());
        let sent: Vec<Piece> = cut.iter().filter_map(|frame| read(frame)).collect();
        assert!(pieces.iter().map(shape).eq(sent.iter().map(shape)), "{name}");
        assert!(pieces.iter().all(|piece| piece.source == ip(becomes) && piece.ttl == 63), "{name}");
        assert!(pieces[1..].iter().zip(&sent[1..]).all(|(got, sent)| got.payload == sent.payload), "{name}");
        here.expect(PATIENCE, |bytes| bytes[23] == UDP && bytes[26..30] == [203, 0, 113, 101])
            .unwrap_or_else(|error| panic!("no answer to {name}: {error:#}"));
    }
    // In, through floating IPs.
    for (to, name) in [(OF_VM1, "vm1"), (OF_VM5, "vm5")] {
        id += 1;
        let vm = system.workload(name);
        let (there, here) = (vm.sniff().unwrap(), outside1.sniff().unwrap());
        send(outside1, &fragments(&inwards(system, to).udp(50_002, 7, &data), id, &ends));
        let pieces = arrived(&there, id, 4);
        assert!(pieces.iter().all(|piece| piece.destination == vm.ip(false)), "{name}");
        here.expect(PATIENCE, |bytes| {
            Some(bytes[26..30].to_vec())
                == to.parse::<std::net::Ipv4Addr>().ok().map(|ip| ip.octets().to_vec())
        })
        .unwrap_or_else(|error| panic!("no answer from {to}: {error:#}"));
    }
}

/// R7: what the first was refused, the others are too; and without a first there is nothing to follow.
fn r7_no_fragment_without_its_first(system: &System) {
    let data = noise(1992);
    let ends = [1000, 2000];
    let mut id = 200;
    for is_v6 in FAMILIES {
        for (from, to) in [("vm1", "vm3"), ("vm1", "vm5"), ("vm4", "vm3")] {
            let (from, to) = (system.workload(from), system.workload(to));
            let (sniffer, before) = (to.sniff().unwrap(), dropped(system));
            let way = towards(from, to.ip(is_v6));
            // To a port no rule lets in.
            id += 1;
            send(from, &fragments(&way.udp(51_000, 8, &data), id, &ends));
            assert_nothing(&sniffer, id);
            // The last alone, and the last before the first.
            id += 1;
            let cut = fragments(&way.udp(51_001, 7, &data), id, &ends);
            send(from, &cut[1..]);
            assert_nothing(&sniffer, id);
            assert!(dropped(system) >= before + 2, "{} to {}", from.name(), to.name());
        }
    }
    let outside1 = system.host("outside1");
    for name in ["vm1", "vm2", "vm4"] {
        id += 1;
        let vm = system.workload(name);
        let (sniffer, before) = (outside1.sniff().unwrap(), dropped(system));
        let cut = fragments(&towards(vm, ip(OUTSIDE1[0])).udp(51_002, 7, &data), id, &ends);
        send(vm, &cut[1..]);
        assert_nothing(&sniffer, id);
        assert_eq!(dropped(system), before + 1, "{name}");
    }
    for to in [OF_VM1, OF_VM5, ROUTER] {
        id += 1;
        let sniffers = ["vm1", "vm5", "vm2"].map(|name| system.host(name).sniff().unwrap());
        send(outside1, &fragments(&inwards(system, to).udp(51_003, 7, &data), id, &ends)[1..]);
        sniffers.iter().for_each(|sniffer| assert_nothing(sniffer, id));
    }
}

/// R7: overlapping, tiny, endless and gapped ones are dropped and counted, and never make a datagram that is not
/// what was allowed.
fn r7_hostile_fragments(system: &System) {
    let mut id = 300;
    for is_v6 in FAMILIES {
        for (from, to) in [("vm1", "vm3"), ("vm1", "vm5")] {
            let (from, to) = (system.workload(from), system.workload(to));
            let way = towards(from, to.ip(is_v6));
            let whole = way.udp(52_000, 7, &noise(1992));
            let tcp = way.tcp_syn(52_001, 7);
            let header = if is_v6 { 54 } else { 34 };
            let mut check =
                |what: &str, pieces: Vec<(usize, Vec<u8>, bool)>, frame: &[u8], must_fall: usize| {
                    id += 1;
                    let (sniffer, before) = (to.sniff().unwrap(), dropped(system));
                    let count = pieces.len();
                    for (offset, payload, more) in pieces {
                        from.raw_send(&piece(frame, id, offset, &payload, more)).unwrap();
                    }
                    let frames =
                        sniffer.collect(MOMENT, |bytes| read(bytes).is_some_and(|piece| piece.id == id));
                    let passed = frames.unwrap().len();
                    let fell = (dropped(system) - before) as usize;
                    let name = format!("{what}, {} to {}, IPv6: {is_v6}", from.name(), to.name());
                    assert_eq!(passed + fell, count, "{name}: {passed} passed, {fell} fell");
                    assert!(fell >= must_fall, "{name}: {fell} fell");
                };
            let part = |start: usize, end: usize| whole[header + start..header + end].to_vec();
            check("overlapping", vec![(0, part(0, 1000), true), (992, part(992, 2000), false)], &whole, 1);
            check(
                "one inside another",
                vec![(0, part(0, 1000), true), (8, part(8, 200), true), (1000, part(1000, 2000), false)],
                &whole,
                1,
            );
            check(
                "the first twice, the second time to another port",
                vec![
                    (0, part(0, 1000), true),
                    (0, [&[0xcb, 0x20, 0, 8][..], &part(4, 1000)].concat(), true),
                    (1000, part(1000, 2000), false),
                ],
                &whole,
                0,
            );
            // As if one had been lost on the way.
            check("a gap", vec![(0, part(0, 1000), true), (1008, part(1008, 2000), false)], &whole, 0);
            check(
                "the header in two",
                vec![(0, tcp[header..header + 8].to_vec(), true), (8, tcp[header + 8..].to_vec(), false)],
                &tcp,
                1,
            );
            check(
                "over the flags",
                vec![(0, tcp[header..].to_vec()[..16].to_vec(), true), (8, vec![0; 16], false)],
                &tcp,
                1,
            );
            check("endless", vec![(65_528, noise(100), true)], &whole, 1);
            check("too long", vec![(0, part(0, 1000), true), (65_528, noise(64), false)], &whole, 1);
        }
    }
}

/// R7: a flood of fragments costs bounded memory and disturbs nobody.
fn r7_a_flood_of_fragments(system: &System) {
    let vm2 = system.workload("vm2");
    let way = towards(vm2, ip(OUTSIDE1[0]));
    let whole = way.udp(53_000, 7, &noise(592));
    let mut talks: Vec<Talk> = [("vm1", "10.0.2.15"), ("vm4", "198.51.100.10")]
        .map(|(from, to)| Talk::open(system.host(from), SocketAddr::new(ip(to), 7), None, PATIENCE).unwrap())
        .into();
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let firsts = (0..40_000_u32).map(|i| {
                let mut whole = whole.clone();
                // Another source port each: another flow each.
                whole[34..36].copy_from_slice(&(i as u16).to_be_bytes());
                if i % 3 == 0 {
                    piece(&whole, i, 600, &whole[100..400], true)
                } else {
                    piece(&whole, i, 0, &whole[34..434], true)
                }
            });
            vm2.flood(firsts).unwrap()
        });
        for _ in 0..10 {
            for talk in &mut talks {
                let took = talk.exchange(20_000).unwrap();
                assert!(took < Duration::from_secs(2), "{took:?}");
            }
            // Others' fragments find their firsts.
            let large = Probe::udp(ip("198.51.100.20"), 7).length(4000).returned();
            let outcome = large.send(system.host("vm6")).unwrap();
            assert!(outcome.is_answer(ip("198.51.100.20")), "{outcome}");
        }
        assert!(flood.join().unwrap() > 10_000);
    });
    // And it is over when it is over.
    let large = Probe::udp(ip("198.51.100.20"), 7).length(4000).returned().send(vm2).unwrap();
    assert!(large.is_answer(ip("198.51.100.20")), "{large}");
}

/// R7: what Linux itself cuts, through every kind of way, arrives whole; TCP does not need it.
fn r7_what_linux_cuts_arrives(system: &System) {
    for (from, to) in [
        ("vm1", "10.0.2.13"),
        ("vm1", "10.0.2.15"),
        ("vm4", "fd00:2::f"),
        ("vm2", "198.51.100.10"),
        ("vm4", "203.0.113.101"),
        ("vm6", OF_VM1),
        ("vm1", OF_VM5),
        ("outside1", OF_VM5),
        ("server1", OF_VM1),
        ("vm6", "2001:db8:aa::10"),
    ] {
        for length in [1500, 2900, 20_000, 60_000] {
            let outcome = Probe::udp(ip(to), 7).length(length).send(system.host(from)).unwrap();
            assert!(outcome.is_answer(ip(to)), "{length} bytes from {from} to {to}: {outcome}");
        }
    }
    let capture = system.host("vm5").capture("tcp").unwrap();
    Talk::open(system.host("vm1"), SocketAddr::new(ip("10.0.2.15"), 7), None, PATIENCE)
        .unwrap()
        .exchange(200_000)
        .unwrap();
    let frames = capture.stop().unwrap();
    assert!(frames.iter().all(|frame| read(frame).is_none() && frame[23] == TCP));
    assert!(frames.iter().any(|frame| contains(frame, &noise(1000)[..500])), "something was captured");
}

const CHECKS: &[Check<System>] = &[
    ("R7 what Linux cuts arrives", r7_what_linux_cuts_arrives),
    ("R7 fragments follow the first", r7_fragments_follow_the_first),
    ("R7 no fragment without its first", r7_no_fragment_without_its_first),
    ("R7 hostile fragments", r7_hostile_fragments),
    ("R7 a flood of fragments", r7_a_flood_of_fragments),
];

fn everything(topology: &Topology) {
    let system = System::start(topology).unwrap();
    // As from an IPv6 host that knows how wide the way is.
    system.outside().route_inside("fd00::/16", "2001:db8:ff::10").unwrap();
    let _services = Services::everywhere(&system, &[7]).unwrap();
    for name in ["vm1", "vm2", "vm4", "vm5", "vm6", "outside1"] {
        system.host(name).offloads_off().unwrap();
    }
    check_all(&system, CHECKS);
    for node in &topology.nodes {
        assert_eq!(system.dropped(&node.name, "internal").unwrap(), 0, "{}", node.name);
    }
}

#[test]
fn fragments_on_two_nodes() {
    everything(&topology());
}

#[test]
fn fragments_on_one_node() {
    everything(&topology().on_one_node());
}

/// What reads fragments here, reads what it must.
#[test]
fn fragments_are_read_as_they_were_cut() {
    for (source, destination) in [("10.0.1.11", "10.0.2.13"), ("fd00:1::b", "fd00:2::d")] {
        let way = Addressing {
            from: [2; 6],
            to: [4; 6],
            source: ip(source),
            destination: ip(destination),
            ttl: 64,
        };
        let cut = fragments(&way.udp(1, 2, &noise(100)), 7, &[48, 108]);
        let pieces: Vec<Piece> = cut.iter().map(|frame| read(frame).unwrap()).collect();
        let shape: Vec<_> =
            pieces.iter().map(|piece| (piece.id, piece.offset, piece.more, piece.payload.len())).collect();
        assert_eq!(shape, [(7, 0, true, 48), (7, 48, false, 60)]);
        assert_eq!((pieces[0].source, pieces[1].ttl), (ip(source), 64));
        assert_eq!(read(&way.udp(1, 2, &noise(100))), None);
    }
}
