//! Fragments through policy and translation (behaviour R7).

use core::net::IpAddr;

use super::{fixture::*, world::*};
use crate::{
    memory::{self, Entry, MemoryPacket, MemoryTables, Verdict},
    reason::DropReason,
    tables::*,
    traced::Copied,
    wire::*,
};

/// A datagram and its pieces, of 40, 48 and the rest of its bytes.
fn cut(pkt: &Pkt, id: u16) -> Vec<Vec<u8>> {
    let whole = read(&pkt.frame()).l4;
    let piece = |at: usize, end: usize| {
        let bytes = whole[at..end].to_vec();
        pkt.clone().l4(L4::Raw(pkt.proto(), bytes)).piece(id, at as u16, end < whole.len()).frame()
    };
    vec![piece(0, 40), piece(40, 88), piece(88, whole.len())]
}

fn datagram(pkt: Pkt, sport: u16, dport: u16) -> Pkt {
    pkt.l4(L4::Udp { sport, dport, payload: (0..133).collect() })
}

/// The whole of pieces, as their receiver puts it together: checked to be right.
#[track_caller]
fn whole(pieces: &[Vec<u8>]) -> Read {
    let v4 = pieces[0][14] >> 4 == 4;
    let head = if v4 { IPV4_LEN } else { IPV6_LEN + 8 };
    let mut bytes = vec![];
    for piece in pieces {
        assert_eq!(piece[..14], pieces[0][..14], "hardware addresses");
        bytes.extend(&piece[ETH_LEN + head..]);
    }
    let mut frame = pieces[0][..ETH_LEN + if v4 { IPV4_LEN } else { IPV6_LEN }].to_vec();
    if v4 {
        frame[16..18].copy_from_slice(&(IPV4_LEN as u16 + bytes.len() as u16).to_be_bytes());
        frame[20..22].fill(0);
        frame.extend(&bytes);
        fix_ipv4(&mut frame);
    } else {
        frame[18..20].copy_from_slice(&(bytes.len() as u16).to_be_bytes());
        frame[20] = pieces[0][ETH_LEN + IPV6_LEN];
        frame.extend(&bytes);
    }
    assert_valid(&frame);
    read(&frame)
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[test]
fn r7_fragments_follow_their_first_through_translation_both_ways() {
    use End::{Inside, Outside};
    for f in BOTH {
        let mut cases: Vec<(End, End, IpAddr, u16, u16)> = vec![
            (Inside(A1), Outside, remote(f), 53, 53),
            (Inside(A3), Outside, remote(f), 53, 53),
            (Outside, Inside(A1), A1.floating(f), 53, 53),
            (Outside, Inside(A3), A3.floating(f), 53, 53),
            (Outside, Inside(A2), public(f, FORWARDING), 5353, 53),
            (Outside, Inside(A4), public(f, FORWARDING), 5354, 53),
            (Inside(A1), Inside(B2), B2.floating(f), 53, 53),
            (Inside(A1), Inside(A1), A1.floating(f), 53, 53),
            (Inside(A2), Inside(C1), C1.ip(f), 53, 53),
            (Inside(A2), Inside(A4), A4.ip(f), 53, 53),
        ];
        if f == Family::V4 {
            cases.push((Inside(A2), Outside, remote(f), 53, 53));
            cases.push((Inside(A4), Outside, remote(f), 53, 53));
            cases.push((Inside(A4), Inside(B1), B1.floating(f), 53, 53));
        }
        for flags in [0, RULE_STATEFUL] {
            for &(from_end, to, dst, dport, inside) in &cases {
                let world = World::new(flags);
                let carry = |end: End, pieces: &[Vec<u8>], to: End| -> Vec<Vec<u8>> {
                    let each = pieces.iter().map(|piece| match (world.send(end, piece), to) {
                        (Arrived::Port(host, frame), Inside(wanted)) if host == wanted => frame,
                        (Arrived::Outside(_, frame), Outside) => frame,
                        (other, _) => panic!("{end} to {to}: {other:?}"),
                    });
                    each.collect()
                };
                for id in 1..=3 {
                    let ask = datagram(from(f, from_end, dst), 1500, dport);
                    let arrived = whole(&carry(from_end, &cut(&ask, id), to));
                    assert_eq!(arrived.l4[8..], read(&ask.frame()).l4[8..]);
                    assert_eq!(word(&arrived.l4, 2), inside);
                    let mut answer = from(f, to, arrived.src).from(arrived.dst);
                    if to != Outside {
                        answer.dst_mac = arrived.src_mac;
                    }
                    let answer = datagram(answer, word(&arrived.l4, 2), word(&arrived.l4, 0));
                    let back = whole(&carry(to, &cut(&answer, 100 + id), from_end));
                    assert_eq!((back.src, back.dst), (ask.dst, ask.src));
                    assert_eq!((word(&back.l4, 0), word(&back.l4, 2)), (dport, 1500));
                    // Whole packets are of the same connection.
                    assert_eq!(carry(from_end, &[ask.frame()], to).len(), 1);
                }
                for tables in &world.nodes {
                    let (answered, unanswered) = connections(tables);
                    assert!(answered <= 1 && unanswered == 0, "one connection");
                    assert!(tables.drops.borrow().is_empty());
                }
            }
        }
    }
}

/// `A2` may send anything, and `server` is let hear UDP port 53; nobody else may do anything.
fn a2_sends_and_53_is_heard(tables: &mut MemoryTables, f: Family, server: Host, flags: u32) {
    tables.image.rules.clear();
    for (key, binding) in &mut tables.image.bindings {
        binding.policy = key.ifindex.id();
    }
    let v6 = if f == Family::V6 { RULE_V6 } else { 0 };
    for (policy, direction, prefix_len, proto, port) in [
        (A2.ifindex, v6, RuleKey::ANY_BITS, 0, 0),
        (server.ifindex, RULE_INGRESS | v6, RuleKey::ALL_BITS, PROTO_UDP, 53),
    ] {
        let (policy, port) = (Scoped::new(0, policy), crate::addr::Be16::new(port));
        let key = RuleKey { prefix_len, policy, class: 0, direction, proto, port };
        tables.image.rules.insert(key, Rule { rule: 0, flags });
    }
}

#[test]
fn r7_fragments_follow_their_first_through_policy() {
    for f in BOTH {
        for server in [C1, A4] {
            let mut world = World::new(0);
            for tables in &mut world.nodes {
                a2_sends_and_53_is_heard(tables, f, server, RULE_STATEFUL);
            }
            let ask = |port| cut(&datagram(from(f, End::Inside(A2), server.ip(f)), 1500, port), port);
            for piece in ask(53) {
                assert!(matches!(world.send(End::Inside(A2), &piece), Arrived::Port(..)));
            }
            // Of another port no piece passes, the later ones no more than the first.
            for piece in ask(54) {
                let refused = Verdict::Dropped(DropReason::PolicyIngress);
                assert_eq!(world.send(End::Inside(A2), &piece), Arrived::Else(server.node, refused));
            }
            // The answer's pieces pass without a rule; another's do not.
            let mut pkt = from(f, End::Inside(server), A2.ip(f));
            pkt.src = server.ip(f);
            for piece in cut(&datagram(pkt.clone(), 53, 1500), 7) {
                assert!(matches!(world.send(End::Inside(server), &piece), Arrived::Port(A2, _)));
            }
            for piece in cut(&datagram(pkt, 53, 1501), 8) {
                let refused = Verdict::Dropped(DropReason::PolicyEgress);
                assert_eq!(world.send(End::Inside(server), &piece), Arrived::Else(server.node, refused));
            }
        }
    }
}

#[test]
fn r7_fragments_that_are_flooded_follow_their_first_through_the_receivers_policies() {
    for f in BOTH {
        let mut world = World::new(0);
        let tables = &mut world.nodes[A2.node];
        a2_sends_and_53_is_heard(tables, f, A1, 0);
        let network = Scoped::new(0, A);
        for (cursor, next, at) in [
            (FLOOD_LOCAL, 1, A2.ifindex),
            (1, FLOOD_END, A1.ifindex),
            (FLOOD_REMOTE, FLOOD_REMOTE + 1, 1 + 1 - A2.node as u32),
            // One that cannot be reached.
            (FLOOD_REMOTE + 1, FLOOD_END, 99),
        ] {
            tables.image.floods.insert(FloodKey { network, cursor }, Flood { next, at });
        }
        let (group, mac) = match f {
            Family::V4 => ("224.0.0.251", [0x01, 0, 0x5e, 0, 0, 0xfb]),
            Family::V6 => ("ff02::fb", [0x33, 0x33, 0, 0, 0, 0xfb]),
        };
        let node = Copied { ifindex: 0, node: 1 + 1 - A2.node as u32 };
        let to_port = Copied { ifindex: A1.ifindex, node: 0 };
        for (port, copies, refused) in [(53, vec![to_port, node], 0), (54, vec![node], 1)] {
            let before = tables.drops.borrow().get(&DropReason::PolicyIngress).copied().unwrap_or(0);
            let pkt = from(f, End::Inside(A2), group.parse().unwrap()).via(mac);
            for piece in cut(&datagram(pkt, 1500, port), port) {
                let verdict = memory::run(tables, Entry::Port(A2.ifindex), MemoryPacket::new(&piece));
                assert_eq!(verdict, Verdict::Flooded { network: A, copies: copies.clone() }, "port {port}");
            }
            assert_eq!(
                tables.drops.borrow().get(&DropReason::PolicyIngress).copied().unwrap_or(0),
                before + 3 * refused
            );
        }
        assert_eq!(tables.drops.borrow()[&DropReason::UnderlayUnreachable], 6);
    }
}

fn piece(f: Family, id: u16, at: u16, len: usize, more: bool) -> Vec<u8> {
    Pkt::udp(f, (1, 11), (2, 11)).l4(L4::Raw(PROTO_UDP, vec![0; len])).piece(id, at, more).frame()
}

#[track_caller]
fn passes(tables: &MemoryTables, frame: &[u8]) {
    assert_eq!(sent(run(tables, Entry::Port(WEB1), frame)).0, DB1);
}

#[track_caller]
fn dropped(tables: &MemoryTables, frame: &[u8], reason: DropReason) {
    assert_eq!(run(tables, Entry::Port(WEB1), frame), Verdict::Dropped(reason));
}

#[test]
fn r7_what_has_no_first_fragment_is_dropped() {
    for f in BOTH {
        let tables = tables();
        dropped(&tables, &piece(f, 1, 40, 16, true), DropReason::FragmentUnmatched);
        passes(&tables, &piece(f, 1, 0, 40, true));
        // Another datagram, another protocol, another place.
        dropped(&tables, &piece(f, 2, 40, 16, true), DropReason::FragmentUnmatched);
        let other = Pkt::udp(f, (1, 11), (2, 11)).l4(L4::Raw(47, vec![0; 16])).piece(1, 40, true).frame();
        dropped(&tables, &other, DropReason::FragmentUnmatched);
        let mut elsewhere =
            Pkt::udp(f, (1, 16), (2, 11)).l4(L4::Raw(PROTO_UDP, vec![0; 16])).piece(1, 40, true);
        elsewhere.src = ip(f, 1, 11);
        let verdict = run(&tables, Entry::Port(WEB_OPEN), &elsewhere.frame());
        assert_eq!(verdict, Verdict::Dropped(DropReason::FragmentUnmatched), "another port's pieces");
        passes(&tables, &piece(f, 1, 40, 16, true));
    }
}

#[test]
fn r7_overlapping_and_disordered_fragments_are_dropped() {
    for f in BOTH {
        let tables = tables();
        passes(&tables, &piece(f, 1, 0, 40, true));
        for at in [8, 16, 32] {
            dropped(&tables, &piece(f, 1, at, 40, true), DropReason::FragmentOverlap);
        }
        passes(&tables, &piece(f, 1, 40, 16, true));
        // The same once more, and one from before.
        dropped(&tables, &piece(f, 1, 40, 16, true), DropReason::FragmentOverlap);
        dropped(&tables, &piece(f, 1, 16, 8, true), DropReason::FragmentOverlap);
        // One was lost: the rest passes, and what was lost may not come late.
        passes(&tables, &piece(f, 1, 64, 16, true));
        dropped(&tables, &piece(f, 1, 56, 8, true), DropReason::FragmentOverlap);
        passes(&tables, &piece(f, 1, 80, 5, false));
    }
}

#[test]
fn r7_tiny_fragments_are_dropped() {
    for f in BOTH {
        let tables = tables();
        // Not a multiple of eight, empty, though more is to come.
        for len in [9, 15, 23] {
            dropped(&tables, &piece(f, 1, 0, len, true), DropReason::FragmentTiny);
        }
        let raw = |proto, len: usize, at, more| {
            Pkt::udp(f, (1, 11), (2, 11)).l4(L4::Raw(proto, vec![0; len])).piece(1, at, more).frame()
        };
        dropped(&tables, &raw(47, 0, 0, true), DropReason::FragmentTiny);
        dropped(&tables, &raw(47, 0, 16, true), DropReason::FragmentTiny);
        // Ports without the rest of the header, and a piece that would write over its flags.
        for len in [8, 16] {
            dropped(&tables, &raw(PROTO_TCP, len, 0, true), DropReason::FragmentTiny);
        }
        passes(&tables, &raw(PROTO_TCP, 24, 0, true));
        dropped(&tables, &raw(PROTO_TCP, 24, 8, true), DropReason::FragmentTiny);
        passes(&tables, &raw(PROTO_TCP, 24, 24, true));
    }
}

#[test]
fn r7_endless_fragments_are_dropped() {
    for f in BOTH {
        let tables = tables();
        passes(&tables, &piece(f, 1, 0, 1200, true));
        let mut end = 1200_u32;
        loop {
            let frame = piece(f, 1, end as u16, 1200, true);
            if end + 1200 > 65535 {
                dropped(&tables, &frame, DropReason::FragmentTooLong);
                break;
            }
            passes(&tables, &frame);
            end += 1200;
        }
        dropped(&tables, &piece(f, 1, 65528, 8, false), DropReason::FragmentTooLong);
        dropped(&tables, &piece(f, 1, 65528, 16, true), DropReason::FragmentTooLong);
    }
}

/// The agent cuts what does not fit, later than the data path sends what does: a datagram's pieces would come
/// in another order than they were sent.
#[test]
fn r7_pieces_that_fit_go_the_way_of_those_that_do_not() {
    let tables = tables();
    let is_cut = |frame: &[u8]| matches!(run(&tables, Entry::Port(WEB1), frame), Verdict::Fragmented(_));
    let fits = 1400 - IPV4_LEN;
    passes(&tables, &piece(Family::V4, 1, 0, fits / 8 * 8, true));
    assert!(is_cut(&piece(Family::V4, 1, 1376, 1384, true)));
    assert!(is_cut(&piece(Family::V4, 1, 2760, 8, true)), "small, after a large one");
    assert!(is_cut(&piece(Family::V4, 1, 2768, 8, false)), "and the one after that");
    // Another datagram, and the same identification once more.
    passes(&tables, &piece(Family::V4, 2, 0, 16, true));
    passes(&tables, &piece(Family::V4, 1, 0, 16, true));
    passes(&tables, &piece(Family::V4, 1, 16, 8, false));
}
