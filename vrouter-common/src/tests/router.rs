//! Packets for a router itself.

use core::net::IpAddr;

use super::fixture::*;
use crate::{
    memory::{Entry, MemoryTables, Verdict},
    reason::{DropReason, Event},
    wire::*,
};

/// Every address that answers, seen from web1, and how many routers it is away.
fn addresses(f: Family) -> Vec<(IpAddr, u8)> {
    let mut all = vec![(ip(f, 1, 1), 0), (ip(f, 2, 1), 0), (ip(f, 5, 1), 0), (ip(f, 6, 1), 1)];
    if f == Family::V6 {
        all.push((link_local(router_mac(1, 1)), 0));
    }
    all
}

fn to(f: Family, dst: IpAddr) -> Pkt {
    Pkt::udp(f, (1, 11), (2, 11)).to(dst)
}

#[track_caller]
fn ignored(tables: &MemoryTables, pkt: &Pkt) {
    let verdict = run(tables, Entry::Port(WEB1), &pkt.frame());
    assert_eq!(verdict, Verdict::Dropped(DropReason::RouterIgnored));
}

#[test]
fn r3_every_address_of_a_router_answers_pings() {
    for f in BOTH {
        let tables = tables();
        for (dst, hops) in addresses(f) {
            for payload in [&b""[..], b"odd", &[0xff; 1000], &[0; 56]] {
                for ttl in [64, 255, hops + 1] {
                    let frame = to(f, dst).ttl(ttl).ping(0x1234, payload).frame();
                    let (answer, refused) = answered(run(&tables, Entry::Port(WEB1), &frame));
                    assert_eq!(refused, None);
                    let (asked, reply) = (read(&frame), read(&answer));
                    assert_eq!((reply.dst_mac, reply.src_mac), (asked.src_mac, asked.dst_mac));
                    assert_eq!((reply.src, reply.dst, reply.ttl), (dst, asked.src, 64 - hops));
                    assert_eq!(reply.l4[0], if f == Family::V4 { 0 } else { 129 });
                    assert_eq!((reply.l4[1], &reply.l4[4..]), (0, &asked.l4[4..]));
                    assert_eq!(answer.len(), frame.len());
                }
            }
        }
        assert!(tables.transients().is_empty());
        assert!(tables.drops.borrow().is_empty());
    }
}

/// A message of zeros has the checksum 0xffff: RFC 1624's update alone gives 0, which is wrong there.
#[test]
fn r3_a_ping_of_zeros_is_answered_validly() {
    let zeros = |payload| L4::Icmp { kind: ICMP_ECHO, code: 0, rest: [0; 4], payload };
    for len in [0, 1, 56] {
        let pkt = to(Family::V4, ip(Family::V4, 1, 1)).l4(zeros(vec![0; len]));
        let (answer, _) = answered(run(&tables(), Entry::Port(WEB1), &pkt.frame()));
        assert_eq!(sum16(0, &read(&answer).l4), 0xffff);
    }
}

#[test]
fn r3_pings_behind_headers_are_answered() {
    let tables = tables();
    let mut pkt = to(Family::V4, ip(Family::V4, 2, 1)).ping(1, b"options");
    pkt.options = vec![1, 1, 1, 0];
    answered(run(&tables, Entry::Port(WEB1), &pkt.frame()));
    let mut pkt = to(Family::V6, ip(Family::V6, 2, 1)).ping(1, b"extensions");
    pkt.extensions = vec![(PROTO_DSTOPTS, vec![0, 0, 1, 4, 0, 0, 0, 0])];
    answered(run(&tables, Entry::Port(WEB1), &pkt.frame()));
}

#[test]
fn r3_udp_to_a_router_gets_port_unreachable_from_the_address_asked() {
    for f in BOTH {
        let tables = tables();
        for (dst, hops) in addresses(f) {
            for len in [60, 1300] {
                let frame = to(f, dst).sized(len).frame();
                let (answer, refused) = answered(run(&tables, Entry::Port(WEB1), &frame));
                assert_eq!(refused, Some(DropReason::RouterPortUnreachable));
                assert_icmp_error(&answer, &frame, dst, if f == Family::V4 { (3, 3) } else { (1, 4) });
                assert_eq!(read(&answer).ttl, 64 - hops);
            }
        }
        assert!(tables.events.borrow().contains_key(&Event::ErrorSent));
    }
}

#[test]
fn r3_tcp_to_a_router_gets_the_right_reset() {
    for f in BOTH {
        let tables = tables();
        let data = [7; 33];
        for (dst, hops) in addresses(f) {
            // Flags and payload, then sequence, acknowledgement and flags of the reset (RFC 9293, 3.10.7.1).
            for (flags, payload, expected) in [
                (TCP_SYN, &data[..0], (0, 1001, TCP_RST | TCP_ACK)),
                (TCP_SYN, &data, (0, 1034, TCP_RST | TCP_ACK)),
                (TCP_SYN | TCP_FIN, &data, (0, 1035, TCP_RST | TCP_ACK)),
                (TCP_FIN, &data[..0], (0, 1001, TCP_RST | TCP_ACK)),
                (0, &data, (0, 1033, TCP_RST | TCP_ACK)),
                (TCP_ACK, &data[..0], (77, 0, TCP_RST)),
                (TCP_ACK | TCP_FIN, &data, (77, 0, TCP_RST)),
                (TCP_SYN | TCP_ACK, &data[..0], (77, 0, TCP_RST)),
            ] {
                let frame = to(f, dst).tcp(1000, 77, flags, payload).frame();
                let (answer, refused) = answered(run(&tables, Entry::Port(WEB1), &frame));
                assert_eq!(refused, Some(DropReason::RouterRefused));
                let (asked, reset) = (read(&frame), read(&answer));
                assert_eq!((reset.dst_mac, reset.src_mac), (asked.src_mac, asked.dst_mac));
                assert_eq!((reset.src, reset.dst, reset.ttl), (dst, asked.src, 64 - hops));
                let tcp = etherparse::TcpSlice::from_slice(&reset.l4).unwrap();
                assert_eq!((tcp.source_port(), tcp.destination_port()), (80, 40000));
                let said = (tcp.sequence_number(), tcp.acknowledgment_number(), reset.l4[13]);
                assert_eq!(said, expected);
                assert_eq!((tcp.window_size(), tcp.slice().len(), reset.l4[12]), (0, 20, 0x50));
                let head = if f == Family::V4 { IPV4_LEN } else { IPV6_LEN };
                assert_eq!(answer.len(), ETH_LEN + head + 20);
            }
            for flags in [TCP_RST, TCP_RST | TCP_ACK] {
                ignored(&tables, &to(f, dst).tcp(1000, 77, flags, b""));
            }
        }
        // The sequence number wraps.
        let frame = to(f, ip(f, 1, 1)).tcp(u32::MAX, 0, TCP_SYN, b"").frame();
        let (answer, _) = answered(run(&tables, Entry::Port(WEB1), &frame));
        assert_eq!(read(&answer).l4[8..12], [0; 4]);
    }
}

#[test]
fn r3_a_reset_for_a_segment_behind_headers_is_plain() {
    let tables = tables();
    let mut pkt = to(Family::V4, ip(Family::V4, 1, 1)).tcp(1000, 0, TCP_SYN, b"abc");
    pkt.options = vec![1; 40];
    let (answer, _) = answered(run(&tables, Entry::Port(WEB1), &pkt.frame()));
    assert_eq!((answer.len(), &read(&answer).l4[8..12]), (54, &1004_u32.to_be_bytes()[..]));
    let mut pkt = to(Family::V6, ip(Family::V6, 1, 1)).tcp(1000, 0, TCP_SYN, b"abc");
    pkt.extensions = vec![(PROTO_DSTOPTS, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])];
    let (answer, _) = answered(run(&tables, Entry::Port(WEB1), &pkt.frame()));
    assert_eq!((answer.len(), &read(&answer).l4[8..12]), (74, &1004_u32.to_be_bytes()[..]));
}

#[test]
fn r3_other_protocols_get_protocol_unreachable() {
    for f in BOTH {
        let tables = tables();
        for (dst, _) in addresses(f) {
            for proto in [47, 50, 89, PROTO_SCTP, 255] {
                let frame = to(f, dst).l4(L4::Raw(proto, vec![9; 32])).frame();
                let (answer, refused) = answered(run(&tables, Entry::Port(WEB1), &frame));
                assert_eq!(refused, Some(DropReason::RouterProtocol));
                let code = if f == Family::V4 { (3, 2) } else { (4, 1) };
                let pointer = assert_icmp_error(&answer, &frame, dst, code);
                assert_eq!(pointer, if f == Family::V4 { 0 } else { 6 });
            }
        }
    }
    // The pointer names the field that named the protocol.
    let mut pkt = to(Family::V6, ip(Family::V6, 1, 1)).l4(L4::Raw(47, vec![9; 32]));
    pkt.extensions = vec![(PROTO_HOPOPTS, vec![0; 8]), (PROTO_DSTOPTS, [vec![0, 1], vec![0; 14]].concat())];
    let frame = pkt.frame();
    let (answer, _) = answered(run(&tables(), Entry::Port(WEB1), &frame));
    let pointer = assert_icmp_error(&answer, &frame, ip(Family::V6, 1, 1), (4, 1));
    assert_eq!((pointer, frame[ETH_LEN + 48]), (48, 47));
}

#[test]
fn r3_what_must_not_be_answered_is_not() {
    for f in BOTH {
        let tables = tables();
        let pkt = to(f, ip(f, 1, 1));
        let kinds = [
            pkt.clone(),
            pkt.clone().ping(1, b"x"),
            pkt.clone().tcp(1, 0, TCP_SYN, b""),
            pkt.clone().l4(L4::Raw(47, vec![0; 16])),
        ];
        // Echo and TCP are not answered by pieces; an error about a first fragment is right.
        for (id, kind) in kinds.iter().enumerate() {
            let piece = |at, len, more| {
                let mut bytes = vec![0; len];
                if let L4::Icmp { kind, .. } = kind.l4 {
                    bytes[0] = kind;
                }
                kind.clone().l4(L4::Raw(kind.proto(), bytes)).piece(id as u16, at, more)
            };
            match kind.proto() {
                PROTO_UDP | 47 => {
                    answered(run(&tables, Entry::Port(WEB1), &piece(0, 24, true).frame()));
                }
                _ => ignored(&tables, &piece(0, 24, true)),
            }
            ignored(&tables, &piece(24, 16, true));
            ignored(&tables, &piece(40, 5, false));
        }

        let errors: &[u8] = if f == Family::V4 { &[3, 4, 5, 11, 12] } else { &[1, 2, 3, 4, 127] };
        let others: &[u8] = if f == Family::V4 { &[0, 13, 17, 40] } else { &[129, 139, 200] };
        for &kind in errors.iter().chain(others) {
            ignored(&tables, &pkt.clone().icmp(kind, 0, &[0; 40]));
        }
        // Multicast is flooded, whatever it asks; to the router's own hardware address it is dropped.
        let group: IpAddr = if f == Family::V4 { [224, 0, 0, 1].into() } else { "ff02::1".parse().unwrap() };
        for kind in &kinds {
            let frame = kind.clone().to(group).via([0x33, 0x33, 0, 0, 0, 1]).frame();
            assert_eq!(run(&tables, Entry::Port(WEB1), &frame).flooded(), Some(WEB));
            let frame = kind.clone().to(group).frame();
            let verdict = run(&tables, Entry::Port(WEB1), &frame);
            assert_eq!(verdict, Verdict::Dropped(DropReason::MulticastRouted));
            // A unicast address in a broadcast frame is not answered either.
            let frame = kind.clone().via(BROADCAST).frame();
            assert_eq!(run(&tables, Entry::Port(WEB1), &frame).flooded(), Some(WEB));
        }
    }
}

#[test]
fn r3_a_solicitation_sent_to_the_router_for_somebody_unknown_is_ignored() {
    let me = (port_mac(1, 11), ip(Family::V6, 1, 11));
    let to = (router_mac(1, 1), ip(Family::V6, 1, 1));
    let tables = tables();
    ignored(&tables, &nd(ND_NEIGHBOR_SOLICIT, me, to, ip(Family::V6, 1, 99), Some((1, me.0))));
    // The reply to a router's own solicitation.
    ignored(&tables, &nd(ND_NEIGHBOR_ADVERT, me, to, me.1, Some((2, me.0))));
}
