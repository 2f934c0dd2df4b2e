//! Every kind of translation with every kind of packet, both directions and errors (behaviours N1-N6), from
//! the sender to the receiver over both nodes.

use core::net::IpAddr;

use super::{fixture::*, world::*};
use crate::{
    memory::{MemoryPacket, Verdict},
    reason::DropReason,
    tables::*,
    wire::*,
};

/// What travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    /// UDP without a checksum.
    UdpZero,
    Echo,
}

const KINDS: [Kind; 4] = [Kind::Tcp, Kind::Udp, Kind::UdpZero, Kind::Echo];

/// How the receiver sees the sender.
#[derive(Clone, Copy, Debug)]
enum Seen {
    As(IpAddr),
    /// At a router's address, by a port of a node.
    Shared(u32, usize),
}

/// A connection between two ends.
#[derive(Clone, Copy, Debug)]
struct Case {
    from: End,
    to: End,
    /// What the sender sends to; a port stands for itself.
    dst: IpAddr,
    /// Forwarded port, and the port inside.
    forwarded: Option<(u16, u16)>,
    seen: Seen,
    /// Routers passed each way.
    routers: (u8, u8),
    /// Connections on each node, where nothing but translation asks for one.
    states: [usize; 2],
    /// The same where policy asks for them.
    stateful: [usize; 2],
}

fn case(from: End, to: End, dst: IpAddr, seen: Seen, routers: u8, states: [usize; 2]) -> Case {
    let mut stateful = states;
    for end in [from, to] {
        if let End::Inside(host) = end {
            stateful[host.node] = 1;
        }
    }
    Case { from, to, dst, forwarded: None, seen, routers: (routers, routers), states, stateful }
}

fn cases(f: Family) -> Vec<Case> {
    use End::{Inside, Outside};
    let v4 = f == Family::V4;
    let seen = |host: Host| Seen::As(host.floating(f));
    let plain = |host: Host| Seen::As(host.ip(f));
    let mut all = vec![
        // Floating IPs, outwards and inwards.
        case(Inside(A1), Outside, remote(f), seen(A1), 1, [1, 0]),
        case(Inside(B2), Outside, remote(f), seen(B2), 1, [0, 1]),
        case(Outside, Inside(A1), A1.floating(f), Seen::As(remote(f)), 1, [1, 0]),
        case(Outside, Inside(A3), A3.floating(f), Seen::As(remote(f)), 1, [0, 1]),
        // Nothing (N4): within a network, through a router, to a port that has a floating IP, too.
        case(Inside(A2), Inside(A1), A1.ip(f), plain(A2), 0, [0, 0]),
        case(Inside(A1), Inside(A4), A4.ip(f), plain(A1), 0, [0, 0]),
        case(Inside(A1), Inside(C1), C1.ip(f), plain(A1), 1, [0, 0]),
        case(Inside(C2), Inside(A1), A1.ip(f), plain(C2), 1, [0, 0]),
        case(Inside(A4), Inside(C1), C1.ip(f), plain(A4), 1, [0, 0]),
        // One's own floating IP, another's on the same router: here and there.
        case(Inside(A1), Inside(A1), A1.floating(f), seen(A1), 2, [1, 0]),
        case(Inside(A1), Inside(A5), A5.floating(f), seen(A1), 2, [1, 0]),
        case(Inside(A1), Inside(A3), A3.floating(f), seen(A1), 2, [1, 1]),
        case(Inside(A3), Inside(A5), A5.floating(f), seen(A3), 2, [1, 1]),
        // Between two routers.
        case(Inside(A1), Inside(B1), B1.floating(f), seen(A1), 2, [1, 0]),
        case(Inside(A1), Inside(B2), B2.floating(f), seen(A1), 2, [1, 1]),
        case(Inside(B2), Inside(A1), A1.floating(f), seen(B2), 2, [1, 1]),
    ];
    if !v4 {
        // Without a floating IP IPv6 leaves as it is.
        all.push(case(Inside(A2), Outside, remote(f), plain(A2), 1, [0, 0]));
        all.push(case(Inside(A4), Outside, remote(f), plain(A4), 1, [0, 0]));
        all.push(case(Outside, Inside(A2), A2.ip(f), Seen::As(remote(f)), 1, [0, 0]));
    }
    if v4 {
        let shared = |host: Host| Seen::Shared(host.router(), host.node);
        all.extend([
            case(Inside(A2), Outside, remote(f), shared(A2), 1, [1, 0]),
            case(Inside(A4), Outside, remote(f), shared(A4), 1, [0, 1]),
            // To floating IPs of one's own router and of another.
            case(Inside(A2), Inside(A1), A1.floating(f), shared(A2), 2, [1, 0]),
            case(Inside(A2), Inside(A3), A3.floating(f), shared(A2), 2, [1, 1]),
            case(Inside(A4), Inside(A1), A1.floating(f), shared(A4), 2, [1, 1]),
            case(Inside(A4), Inside(A3), A3.floating(f), shared(A4), 2, [0, 1]),
            case(Inside(A2), Inside(B1), B1.floating(f), shared(A2), 2, [1, 0]),
            case(Inside(A2), Inside(B2), B2.floating(f), shared(A2), 2, [1, 1]),
            case(Inside(A4), Inside(B1), B1.floating(f), shared(A4), 2, [1, 1]),
            case(Inside(A4), Inside(B2), B2.floating(f), shared(A4), 2, [0, 1]),
        ]);
    }
    all
}

fn forwardings(f: Family, kind: Kind) -> Vec<Case> {
    use End::{Inside, Outside};
    let proto = match kind {
        Kind::Tcp => PROTO_TCP,
        Kind::Udp | Kind::UdpZero => PROTO_UDP,
        Kind::Echo => return vec![],
    };
    let mut all = vec![];
    for (_, port, to, inside) in FORWARDED.into_iter().filter(|forwarded| forwarded.0 == proto) {
        let here = usize::from(to.node == 0);
        let mut add = |from: End, seen, routers, states| {
            all.push(Case {
                forwarded: Some((port, inside)),
                ..case(from, Inside(to), public(f, FORWARDING), seen, routers, states)
            });
        };
        add(Outside, Seen::As(remote(f)), 1, [here, 1 - here]);
        let states = |from: Host| {
            let mut states = [here, 1 - here];
            states[from.node] = 1;
            states
        };
        for from in [A1, A3, B1, B2] {
            add(Inside(from), Seen::As(from.floating(f)), 2, states(from));
        }
        if f == Family::V4 {
            // From itself, and from another without a floating IP.
            for from in [A2, A4] {
                add(Inside(from), Seen::Shared(RA, from.node), 2, states(from));
            }
        }
    }
    all
}

/// A frame between two ends.
fn frame(pkt: &Pkt, kind: Kind, sport: u16, dport: u16, reply: bool) -> Vec<u8> {
    let payload = if reply { b"an answer.".to_vec() } else { b"a question of odd length".to_vec() };
    let v4 = pkt.src.is_ipv4();
    let l4 = match kind {
        Kind::Tcp => {
            let flags = if reply { TCP_SYN | TCP_ACK } else { TCP_SYN };
            L4::Tcp { sport, dport, seq: 7, ack: 9, flags, payload }
        }
        Kind::Udp | Kind::UdpZero => L4::Udp { sport, dport, payload },
        Kind::Echo => {
            let (request, answer) =
                if v4 { (ICMP_ECHO, ICMP_ECHO_REPLY) } else { (ICMPV6_ECHO, ICMPV6_ECHO_REPLY) };
            let id = (if reply { dport } else { sport }).to_be_bytes();
            L4::Icmp {
                kind: if reply { answer } else { request },
                code: 0,
                rest: [id[0], id[1], 0, 1],
                payload,
            }
        }
    };
    let mut frame = pkt.clone().l4(l4).frame();
    if kind == Kind::UdpZero && v4 {
        frame[40..42].fill(0);
    }
    frame
}

/// Source and destination port; an echo's identifier twice.
fn ports(read: &Read) -> (u16, u16) {
    let word = |at: usize| u16::from_be_bytes([read.l4[at], read.l4[at + 1]]);
    if matches!(read.proto, PROTO_ICMP | PROTO_ICMPV6) { (word(4), word(4)) } else { (word(0), word(2)) }
}

#[track_caller]
fn at(arrived: Arrived, end: End) -> Vec<u8> {
    match (arrived, end) {
        (Arrived::Port(host, frame), End::Inside(to)) if host == to => frame,
        (Arrived::Outside(_, frame), End::Outside) => frame,
        (arrived, end) => panic!("not at {end:?}: {arrived:?}"),
    }
}

/// What must hold for the hardware addresses a frame arrives with.
#[track_caller]
fn assert_macs(read: &Read, from: End, to: End) {
    match to {
        End::Inside(host) => {
            assert_eq!(read.dst_mac, host.mac());
            match from {
                End::Inside(from)
                    if from.network == host.network && read.src == from.ip(family(read.src)) =>
                {
                    assert_eq!(read.src_mac, from.mac());
                }
                _ => assert_eq!(read.src_mac, router_mac(host.network, 1)),
            }
        }
        End::Outside => {
            assert_eq!(read.dst_mac, GW_MAC);
            let End::Inside(from) = from else { panic!("from outside to outside") };
            assert_eq!(read.src_mac, gateway_mac(from.router(), from.node));
        }
    }
}

fn family(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// Types and codes of errors, and whether the second word is an MTU.
fn errors(f: Family) -> &'static [(u8, u8, u32)] {
    match f {
        Family::V4 => &[(3, 0, 0), (3, 1, 0), (3, 3, 0), (3, 4, 1300), (3, 13, 0), (11, 0, 0), (12, 0, 0)],
        Family::V6 => &[(1, 0, 0), (1, 4, 0), (2, 0, 1300), (3, 0, 0), (4, 1, 40)],
    }
}

struct Run {
    world: World,
    case: Case,
    kind: Kind,
    f: Family,
}

impl Run {
    /// Sends what `about` (as it arrived at `reporter`) is worth: an error to its source, from the address it
    /// was sent to or from `router`. `original`: the frame as its sender sent it; `seen`: the address its
    /// sender sent to.
    #[track_caller]
    fn error(&self, reporter: End, receiver: End, about: &[u8], original: &[u8], router: Option<IpAddr>) {
        let seen = read(about);
        let quoted = read(original);
        let head = if seen.src.is_ipv4() { IPV4_LEN } else { IPV6_LEN };
        for &(kind, code, second) in errors(self.f) {
            for quote in [head + 8, about.len() - ETH_LEN] {
                let mut pkt = from(self.f, reporter, seen.src).from(router.unwrap_or(seen.dst));
                if reporter == End::Outside {
                    pkt.src_mac = GW_MAC;
                } else if let End::Inside(_) = reporter {
                    // Back by where it came from.
                    pkt.dst_mac = seen.src_mac;
                }
                let payload = about[ETH_LEN..ETH_LEN + quote].to_vec();
                let pkt = pkt.l4(L4::Icmp { kind, code, rest: second.to_be_bytes(), payload });
                let error = read(&at(self.world.send(reporter, &pkt.frame()), receiver));
                assert_eq!((error.l4[0], error.l4[1]), (kind, code));
                assert_eq!(error.l4[4..8], second.to_be_bytes());
                assert_eq!(error.dst, quoted.src, "whom it is for");
                assert_eq!(error.src, router.unwrap_or(quoted.dst), "whom it is from");
                assert_quote_header(&error);
                assert_eq!(
                    unrouted(&error.l4[8..]),
                    unrouted(&original[ETH_LEN..ETH_LEN + quote]),
                    "{kind}/{code}: the quote is what was sent"
                );
                assert_macs_of_error(&error, receiver);
            }
        }
    }

    fn run(&self) {
        let Self { world, case, kind, f } = self;
        let (sport, dport) = match (kind, case.forwarded) {
            (Kind::Echo, _) => (1500, 1500),
            (_, Some((port, _))) => (1500, port),
            (Kind::Tcp, None) => (1500, 80),
            _ => (1500, 53),
        };
        let question = frame(&from(*f, case.from, case.dst), *kind, sport, dport, false);
        let mut answers = vec![];
        for round in 0..3 {
            let arrived = at(world.send(case.from, &question), case.to);
            let data = read(&arrived);
            let inside_port = case.forwarded.map_or(dport, |(_, inside)| inside);
            let dst = match case.to {
                End::Inside(host) => host.ip(*f),
                End::Outside => case.dst,
            };
            assert_eq!(data.dst, dst);
            let (src, seen_dport) = ports(&data);
            match case.seen {
                Seen::As(ip) => assert_eq!((data.src, src), (ip, sport)),
                Seen::Shared(router, node) => {
                    assert_eq!(data.src, gateway(*f, router));
                    let block = BLOCKS
                        .iter()
                        .find(|block| block.0 == router && (block.2..=block.3).contains(&src))
                        .expect("a port of no block");
                    assert_eq!(block.1, node, "another node's port");
                    // Kept where it is the node's.
                    assert_eq!(src == sport, node == 0, "port {src}");
                }
            }
            if *kind != Kind::Echo {
                assert_eq!(seen_dport, inside_port);
            }
            assert_eq!(data.ttl, 64 - case.routers.0, "routers on the way");
            assert_macs(&data, case.from, case.to);
            if *kind == Kind::UdpZero && *f == Family::V4 {
                assert_eq!(data.l4[6..8], [0, 0], "no checksum stays none");
            }
            let skip = if *kind == Kind::Tcp { 20 } else { 8 };
            assert_eq!(data.l4[skip..], *b"a question of odd length");

            // The answer.
            let mut pkt = from(*f, case.to, data.src);
            pkt.src = data.dst;
            if case.to != End::Outside {
                pkt.dst_mac = data.src_mac;
            }
            let answer = frame(&pkt, *kind, seen_dport, src, true);
            let back = at(world.send(case.to, &answer), case.from);
            let reply = read(&back);
            let expected = read(&question);
            assert_eq!((reply.src, reply.dst), (expected.dst, expected.src));
            let (from, to) = ports(&reply);
            assert_eq!((from, to), (dport, sport));
            assert_eq!(reply.ttl, 64 - case.routers.1, "routers on the way back");
            assert_eq!(reply.l4[skip..], *b"an answer.");
            if let End::Inside(host) = case.from {
                assert_eq!(reply.dst_mac, host.mac());
            }
            for (node, tables) in world.nodes.iter().enumerate() {
                let (answered, unanswered) = connections(tables);
                let stateful = tables.image.rules.values().all(|rule| rule.flags & RULE_STATEFUL != 0);
                let expected = if stateful { case.stateful } else { case.states }[node];
                assert_eq!((answered, unanswered), (expected, 0), "round {round}: node {}", node + 1);
            }
            answers.push((arrived, answer, back));
        }
        let (arrived, answer, back) = answers.pop().unwrap();
        // About the question, from who got it; about the answer, from who asked.
        self.error(case.to, case.from, &arrived, &question, None);
        self.error(case.from, case.to, &back, &answer, None);
        // From routers in between.
        let router = Some(beyond(*f, 1));
        if case.to == End::Outside {
            self.error(case.to, case.from, &arrived, &question, router);
        }
        if case.from == End::Outside {
            self.error(case.from, case.to, &back, &answer, router);
        }
        for (node, tables) in world.nodes.iter().enumerate() {
            let (answered, unanswered) = connections(tables);
            let stateful = tables.image.rules.values().all(|rule| rule.flags & RULE_STATEFUL != 0);
            let expected = if stateful { case.stateful } else { case.states }[node];
            assert_eq!((answered, unanswered), (expected, 0), "errors are no connections");
            let drops = tables.drops.borrow();
            assert!(drops.is_empty(), "{drops:?}");
        }
    }
}

#[track_caller]
fn assert_macs_of_error(error: &Read, receiver: End) {
    match receiver {
        End::Inside(host) => assert_eq!(error.dst_mac, host.mac()),
        End::Outside => assert_eq!(error.dst_mac, GW_MAC),
    }
}

/// Runs every case and names all that fail.
fn matrix(flags: u32, kinds: &[Kind]) {
    let mut failed = vec![];
    for f in BOTH {
        for &kind in kinds {
            for case in cases(f).into_iter().chain(forwardings(f, kind)) {
                let run = Run { world: World::new(flags), case, kind, f };
                let name = format!("{kind:?} {f:?} {} -> {} at {}", case.from, case.dst, case.to);
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.run()));
                if let Err(why) = outcome {
                    let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
                    failed.push(format!("{name}: {why}"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{} cases:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn n1_to_n6_tcp_through_every_kind_of_translation() {
    matrix(0, &[Kind::Tcp]);
}

#[test]
fn n1_to_n6_udp_through_every_kind_of_translation() {
    matrix(0, &[Kind::Udp, Kind::UdpZero]);
}

#[test]
fn n1_to_n6_pings_through_every_kind_of_translation() {
    matrix(0, &[Kind::Echo]);
}

#[test]
fn n1_to_n6_with_stateful_policy() {
    matrix(RULE_STATEFUL, &KINDS);
}

/// Finishes a partial checksum as a device does: the field holds the pseudo-header's sum.
fn finish_checksum(frame: &mut [u8]) {
    let v4 = frame[12..14] == ETHERTYPE_IPV4.to_be_bytes();
    let (l4, proto) = if v4 { (34, frame[23]) } else { (54, frame[20]) };
    let field = l4 + if proto == PROTO_TCP { 16 } else { 6 };
    let sum = !sum16(0, &frame[l4..]);
    let sum = if sum == 0 && proto == PROTO_UDP { 0xffff } else { sum };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Makes a checksum partial: only the pseudo-header's sum, not complemented.
fn partial(frame: &[u8]) -> MemoryPacket {
    let mut frame = frame.to_vec();
    let v4 = frame[12..14] == ETHERTYPE_IPV4.to_be_bytes();
    let (l4, proto) = if v4 { (34, frame[23]) } else { (54, frame[20]) };
    let field = l4 + if proto == PROTO_TCP { 16 } else { 6 };
    // What is covered but the pseudo-header sums to the complement of the rest.
    let own = {
        let mut bytes = frame[l4..].to_vec();
        bytes[field - l4..field - l4 + 2].fill(0);
        sum16(0, &bytes)
    };
    let whole = !u16::from_be_bytes([frame[field], frame[field + 1]]);
    let pseudo = sum16(u64::from(whole) + u64::from(!own), &[]);
    frame[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
    let mut packet = MemoryPacket::new(&frame);
    packet.partial = true;
    packet
}

#[test]
fn n_partial_checksums_and_super_packets_stay_so_through_translation() {
    for f in BOTH {
        for kind in [Kind::Tcp, Kind::Udp] {
            for case in cases(f).into_iter().chain(forwardings(f, kind)) {
                let world = World::new(0);
                let dport = case.forwarded.map_or(80, |(port, _)| port);
                for (gso_size, bytes) in [(0, 24), (1000, 24_000)] {
                    let payload = vec![0x5a; bytes];
                    let l4 = match kind {
                        Kind::Tcp => L4::Tcp { sport: 1500, dport, seq: 1, ack: 1, flags: TCP_ACK, payload },
                        _ => L4::Udp { sport: 1500, dport, payload },
                    };
                    let frame = from(f, case.from, case.dst).l4(l4).frame();
                    for _ in 0..2 {
                        let mut packet = partial(&frame);
                        packet.gso_size = gso_size;
                        let mut out = at(world.send_packet(case.from, packet), case.to);
                        finish_checksum(&mut out);
                        assert_valid(&out);
                    }
                }
            }
        }
    }
}

#[test]
fn r4_traceroute_shows_every_router_once_through_every_translation() {
    for f in BOTH {
        for case in cases(f) {
            let world = World::new(0);
            for ttl in 1..=case.routers.0 {
                let question = frame(&from(f, case.from, case.dst).ttl(ttl), Kind::Udp, 1500, 53, false);
                let (node, verdict) = match world.send(case.from, &question) {
                    Arrived::Else(node, verdict) => (node, verdict),
                    other => panic!("ttl {ttl} of {case:?}: {other:?}"),
                };
                let Verdict::Answered { frame: answer, refused } = verdict else {
                    panic!("ttl {ttl} of {case:?}: {verdict:?}");
                };
                assert_eq!(refused, Some(DropReason::TtlExceeded));
                let code = if f == Family::V4 { (11, 0) } else { (3, 0) };
                // The first router's address inside, or outside; the second's gateway.
                let source = match (case.from, ttl) {
                    (End::Inside(host), 1) => ip(f, host.network, 1),
                    (End::Inside(_), _) => match case.to {
                        End::Inside(to) => gateway(f, to.router()),
                        End::Outside => unreachable!(),
                    },
                    (End::Outside, _) => match case.to {
                        End::Inside(to) => gateway(f, to.router()),
                        End::Outside => unreachable!(),
                    },
                };
                assert_icmp_error(&answer, &question, source, code);
                if let End::Inside(host) = case.from {
                    assert_eq!(node, host.node, "said where it entered");
                }
                assert!(legs(&world.nodes[node]).0.is_empty());
            }
        }
    }
}

#[test]
fn n4_what_cannot_share_an_address_is_refused_with_a_reason() {
    let f = Family::V4;
    let world = World::new(0);
    // A timestamp request: no identifier that is known.
    let pkt = from(f, End::Inside(A2), remote(f)).icmp(13, 0, &[0; 12]);
    let arrived = world.send(End::Inside(A2), &pkt.frame());
    assert_eq!(arrived, Arrived::Else(0, Verdict::Dropped(DropReason::NatProtocol)));
    // With a floating IP anything passes, its checksums as they are.
    for l4 in [pkt.l4.clone(), L4::Raw(47, vec![1; 20]), L4::Raw(50, vec![2; 20])] {
        let pkt = from(f, End::Inside(A1), remote(f)).l4(l4);
        let out = read(&at(world.send(End::Inside(A1), &pkt.frame()), End::Outside));
        assert_eq!((out.src, out.l4), (A1.floating(f), read(&pkt.frame()).l4));
    }
}

#[test]
fn n1_two_ports_with_one_source_port_do_not_clash() {
    let f = Family::V4;
    let world = World::new(0);
    for kind in [Kind::Tcp, Kind::Udp, Kind::Echo] {
        let mut seen = vec![];
        for host in [A2, C1] {
            let question = frame(
                &from(f, End::Inside(host), remote(f)),
                kind,
                1500,
                if kind == Kind::Echo { 1500 } else { 80 },
                false,
            );
            let data = read(&at(world.send(End::Inside(host), &question), End::Outside));
            assert_eq!(data.src, gateway(f, RA));
            seen.push((host, ports(&data)));
        }
        assert_eq!(seen[0].1.0, 1500, "the first keeps its port");
        assert_ne!(seen[0].1.0, seen[1].1.0);
        for (host, (port, dport)) in seen {
            let mut pkt = from(f, End::Outside, gateway(f, RA));
            pkt.src = remote(f);
            let answer = frame(&pkt, kind, dport, port, true);
            let reply = read(&at(world.send(End::Outside, &answer), End::Inside(host)));
            assert_eq!(ports(&reply).1, 1500);
        }
    }
    assert_eq!(connections(&world.nodes[0]), (6, 0));
}

#[test]
fn n6_a_udp_checksum_that_comes_out_as_zero_is_never_written_as_none() {
    for f in BOTH {
        let world = World::new(0);
        let l4 = if f == Family::V4 { ETH_LEN + IPV4_LEN } else { ETH_LEN + IPV6_LEN };
        let checksum = |frame: &[u8]| u16::from_be_bytes([frame[l4 + 6], frame[l4 + 7]]);
        let pkt = from(f, End::Inside(A1), remote(f));
        let ask = |word: u16| {
            let payload = word.to_be_bytes().to_vec();
            pkt.clone().l4(L4::Udp { sport: 1500, dport: 53, payload }).frame()
        };
        let send = |frame: &[u8]| at(world.send(End::Inside(A1), frame), End::Outside);
        // The words that make the sum come out as zero outside, and inside.
        let after = (0..=u16::MAX).find(|&word| {
            let outside = pkt.clone().from(A1.floating(f)).l4(L4::Udp {
                sport: 1500,
                dport: 53,
                payload: word.to_be_bytes().to_vec(),
            });
            checksum(&outside.frame()) == 0xffff
        });
        assert_eq!(checksum(&send(&ask(after.unwrap()))), 0xffff);
        let question = (0..=u16::MAX).map(ask).find(|frame| checksum(frame) == 0xffff).unwrap();
        let arrived = send(&question);
        assert_ne!(checksum(&arrived), 0);
        // An error has the quote as it was sent.
        let run = Run { world, case: cases(f)[0], kind: Kind::Udp, f };
        run.error(End::Outside, End::Inside(A1), &arrived, &question, None);
    }
}
