//! Routing between networks.

use core::net::IpAddr;

use super::fixture::*;
use crate::{
    addr::Macs,
    flow::EXIT_PORT,
    memory::{Entry, MemoryPacket, MemoryTables, Verdict},
    reason::DropReason,
    tables::*,
    wire::*,
};

/// `frame` as it must look `hops` routers on.
fn routed(frame: &[u8], dst_mac: Mac, src_mac: Mac, hops: u8) -> Vec<u8> {
    let mut out = [dst_mac.as_slice(), &src_mac, &frame[12..]].concat();
    if frame[14] >> 4 == 4 {
        out[22] -= hops;
        fix_ipv4(&mut out);
    } else {
        out[21] -= hops;
    }
    out
}

/// No route, unreachable, host, time exceeded, too big: type and code in either family.
fn type_code(f: Family, v4: (u8, u8), v6: (u8, u8)) -> (u8, u8) {
    if f == Family::V4 { v4 } else { v6 }
}

#[track_caller]
fn dropped(tables: &MemoryTables, pkt: &Pkt, reason: DropReason) {
    for _ in 0..2 {
        assert_eq!(run(tables, Entry::Port(WEB1), &pkt.frame()), Verdict::Dropped(reason));
    }
}

#[test]
fn r1_a_packet_crosses_the_router_within_a_node() {
    for f in BOTH {
        let tables = tables();
        let pkt = Pkt::udp(f, (1, 11), (2, 11));
        for pkt in [
            pkt.clone(),
            pkt.clone().ping(7, b"odd"),
            pkt.clone().tcp(1, 0, TCP_SYN, b""),
            pkt.clone().l4(L4::Raw(47, vec![0; 5])),
            pkt.clone().ttl(255),
            pkt.ttl(2),
        ] {
            let frame = pkt.frame();
            let expected = routed(&frame, port_mac(2, 11), router_mac(2, 1), 1);
            for _ in 0..2 {
                assert_eq!(sent(run(&tables, Entry::Port(WEB1), &frame)), (DB1, expected.clone()));
            }
        }
        let frame = Pkt::udp(f, (2, 11), (1, 11)).frame();
        let expected = routed(&frame, port_mac(1, 11), router_mac(1, 1), 1);
        assert_eq!(sent(run(&tables, Entry::Port(DB1), &frame)), (WEB1, expected));
    }
}

#[test]
fn r1_a_packet_crosses_the_router_to_another_node() {
    for f in BOTH {
        let tables = tables();
        let frame = Pkt::udp(f, (1, 11), (2, 12)).frame();
        let (ifindex, out) = sent(run(&tables, Entry::Port(WEB1), &frame));
        assert_eq!(ifindex, UPLINK);
        let expected = routed(&frame, port_mac(2, 12), router_mac(2, 1), 1);
        assert_eq!(inner(&out), (1002, expected));

        let (ip_len, udp_len) = (36 + frame.len() as u16, 16 + frame.len() as u16);
        assert_eq!(out[..14], [GATEWAY_MAC.as_slice(), &UPLINK_MAC, &[8, 0]].concat());
        let ip_sum = [out[24], out[25]];
        let outer_ip =
            [&[0x45, 0][..], &ip_len.to_be_bytes(), &[0, 0, 0x40, 0, 64, PROTO_UDP], &ip_sum, &VTEP1, &VTEP2];
        assert_eq!(out[14..34], outer_ip.concat());
        assert_eq!(sum16(0, &out[14..34]), 0xffff);
        let sport = u16::from_be_bytes([out[34], out[35]]);
        assert!(sport >= 0xc000);
        let outer_udp = [&VXLAN_PORT.to_be_bytes()[..], &udp_len.to_be_bytes(), &[0, 0]];
        assert_eq!(out[36..42], outer_udp.concat());
        assert_eq!(out[42..50], [8, 0, 0, 0, 0, 1002_u16.to_be_bytes()[0], 1002_u16.to_be_bytes()[1], 0]);
        assert_eq!(out.len(), frame.len() + OUTER_LEN);
    }
}

#[test]
fn r1_the_outer_source_port_keeps_to_the_flow_and_spreads_over_flows() {
    for f in BOTH {
        let tables = tables();
        let mut seen = std::collections::BTreeSet::new();
        for sport in 0..256 {
            let frame = Pkt::udp(f, (1, 11), (2, 12)).ports(1024 + sport, 53).frame();
            let ports = [0; 2].map(|_| {
                let (_, out) = sent(run(&tables, Entry::Port(WEB1), &frame));
                u16::from_be_bytes([out[34], out[35]])
            });
            assert_eq!(ports[0], ports[1]);
            assert!(ports[0] >= 0xc000);
            seen.insert(ports[0]);
        }
        assert!(seen.len() > 200, "{} of 256 flows told apart", seen.len());
    }
}

#[test]
fn r2_the_longest_prefix_wins() {
    for f in BOTH {
        let tables = tables();
        let pkt = Pkt::udp(f, (1, 11), (2, 11));
        // /16 (/32) via db1; /24 (/48) via a web port on node 2; one address via web2.
        let frame = pkt.clone().to(outside(f, 1, 9)).frame();
        let expected = routed(&frame, port_mac(2, 11), router_mac(2, 1), 1);
        assert_eq!(sent(run(&tables, Entry::Port(WEB1), &frame)), (DB1, expected));
        let frame = pkt.clone().to(outside(f, 5, 9)).frame();
        let (_, out) = sent(run(&tables, Entry::Port(WEB1), &frame));
        assert_eq!(inner(&out), (1001, routed(&frame, port_mac(1, 13), router_mac(1, 1), 1)));
        let frame = pkt.to(outside(f, 5, 7)).frame();
        let expected = routed(&frame, port_mac(1, 12), router_mac(1, 1), 1);
        assert_eq!(sent(run(&tables, Entry::Port(WEB1), &frame)), (WEB2, expected));
    }
}

#[test]
fn r2_a_blackhole_route_is_silent_and_an_unreachable_one_says_so() {
    for f in BOTH {
        let tables = tables();
        let pkt = Pkt::udp(f, (1, 11), (2, 11));
        dropped(&tables, &pkt.clone().to(outside(f, 9, 1)), DropReason::RouteBlackhole);
        let frame = pkt.to(outside(f, 8, 1)).frame();
        let (answer, refused) = answered(run(&tables, Entry::Port(WEB1), &frame));
        assert_eq!(refused, Some(DropReason::RouteUnreachable));
        assert_icmp_error(&answer, &frame, ip(f, 1, 1), type_code(f, (3, 1), (1, 0)));
    }
}

#[test]
fn r4_an_ending_ttl_is_answered_from_where_the_packet_came_in() {
    for f in BOTH {
        for (entry, src, leg) in [(WEB1, (1, 11), ip(f, 1, 1)), (DB1, (2, 11), ip(f, 2, 1))] {
            for (dst, ttls) in [((6, 11), 0..=1), ((1, 12), 0..=1), ((2, 12), 0..=1)] {
                for ttl in ttls {
                    let tables = tables();
                    let pkt = Pkt::udp(f, src, dst).via(router_mac(src.0, 1));
                    // With the flow stored by a packet that got through, and without.
                    for _ in 0..2 {
                        let frame = pkt.clone().ttl(ttl).frame();
                        let (answer, refused) = answered(run(&tables, Entry::Port(entry), &frame));
                        assert_eq!(refused, Some(DropReason::TtlExceeded));
                        let rest = assert_icmp_error(&answer, &frame, leg, type_code(f, (11, 0), (3, 0)));
                        assert_eq!((rest, read(&answer).ttl), (0, 64));
                        run(&tables, Entry::Port(entry), &pkt.frame());
                    }
                }
            }
        }
    }
}

#[test]
fn r4_traceroute_shows_each_router_of_a_chain_once() {
    for f in BOTH {
        let tables = tables();
        let pkt = Pkt::udp(f, (1, 11), (6, 11));
        for _ in 0..2 {
            for (ttl, source, hops) in [(1, ip(f, 1, 1), 0), (2, ip(f, 5, 2), 1)] {
                let frame = pkt.clone().ttl(ttl).frame();
                let (answer, refused) = answered(run(&tables, Entry::Port(WEB1), &frame));
                assert_eq!(refused, Some(DropReason::TtlExceeded));
                assert_icmp_error(&answer, &frame, source, type_code(f, (11, 0), (3, 0)));
                assert_eq!(read(&answer).ttl, 64 - hops);
            }
            let frame = pkt.clone().ttl(3).frame();
            let (ifindex, out) = sent(run(&tables, Entry::Port(WEB1), &frame));
            assert_eq!((ifindex, read(&out).ttl), (FAR1, 1));
        }
        // Traceroute by echo requests does the same.
        let frame = pkt.ttl(2).ping(1, b"traceroute").frame();
        let (answer, _) = answered(run(&tables, Entry::Port(WEB1), &frame));
        assert_icmp_error(&answer, &frame, ip(f, 5, 2), type_code(f, (11, 0), (3, 0)));
    }
}

#[test]
fn r4_an_error_quotes_what_fits_and_answers_no_error() {
    for f in BOTH {
        let tables = tables();
        let pkt = Pkt::udp(f, (1, 11), (2, 11)).ttl(1);
        for len in [60, 547, 548, 549, 900, 1231, 1232, 1233, 1450] {
            let frame = pkt.clone().sized(len).frame();
            let (answer, _) = answered(run(&tables, Entry::Port(WEB1), &frame));
            assert_icmp_error(&answer, &frame, ip(f, 1, 1), type_code(f, (11, 0), (3, 0)));
        }
        let errors: &[u8] = if f == Family::V4 { &[3, 4, 5, 11, 12] } else { &[1, 2, 3, 4, 100, 127] };
        for &kind in errors {
            let error = pkt.clone().icmp(kind, 0, &[0x45; 28]);
            dropped(&tables, &error, DropReason::TtlExceeded);
        }
        // A later fragment whose first was seen.
        let first = pkt.clone().l4(L4::Raw(PROTO_UDP, vec![0; 16])).piece(9, 0, true);
        answered(run(&tables, Entry::Port(WEB1), &first.frame()));
        for _ in 0..2 {
            let later = pkt.clone().l4(L4::Raw(PROTO_UDP, vec![0; 8])).piece(9, 16, false).frame();
            let verdict = run(&tables, Entry::Port(WEB1), &later);
            assert_eq!(verdict, Verdict::Dropped(DropReason::TtlExceeded));
            answered(run(&tables, Entry::Port(WEB1), &first.frame()));
        }
    }
}

#[test]
fn r4_padding_behind_the_packet_is_not_quoted() {
    for f in BOTH {
        let frame = Pkt::udp(f, (1, 11), (2, 11)).ttl(1).ports(1, 2).frame();
        let padded = [frame.as_slice(), &[0xa5; 30]].concat();
        let (answer, _) = answered(run(&tables(), Entry::Port(WEB1), &padded));
        assert_icmp_error(&answer, &frame, ip(f, 1, 1), type_code(f, (11, 0), (3, 0)));
    }
}

#[test]
fn r5_no_route_is_network_unreachable() {
    for f in BOTH {
        let tables = tables();
        for (entry, src, dst, source) in
            // At the first router, and at the second.
            [(WEB1, (1, 11), ip(f, 99, 1), ip(f, 1, 1)), (FAR1, (6, 11), ip(f, 7, 11), ip(f, 6, 1))]
        {
            let frame = Pkt::udp(f, src, (2, 11)).to(dst).frame();
            let (answer, refused) = answered(run(&tables, Entry::Port(entry), &frame));
            assert_eq!(refused, Some(DropReason::NoRoute));
            assert_icmp_error(&answer, &frame, source, type_code(f, (3, 0), (1, 0)));
        }
    }
}

#[test]
fn r5_a_second_router_without_a_route_says_so_itself() {
    for f in BOTH {
        let mut b = builder();
        let len = if f == Family::V4 { 24 } else { 64 };
        b.route(R1, ip(f, 90, 0), len, ROUTE_VIA, TRANSIT, Some(ip(f, 5, 2)));
        let frame = Pkt::udp(f, (1, 11), (2, 11)).to(ip(f, 90, 1)).frame();
        let (answer, refused) = answered(run(&b.tables(), Entry::Port(WEB1), &frame));
        assert_eq!(refused, Some(DropReason::NoRoute));
        assert_icmp_error(&answer, &frame, ip(f, 5, 2), type_code(f, (3, 0), (1, 0)));
    }
}

#[test]
fn r5_an_unknown_neighbour_is_host_unreachable() {
    for f in BOTH {
        let tables = tables();
        for (dst, reason) in [
            (ip(f, 2, 99), DropReason::NextHopUnknown),
            (outside(f, 7, 1), DropReason::NextHopUnknown),
            (ip(f, 2, 14), DropReason::PortUnplugged),
            (ip(f, 2, 15), DropReason::PortUnbound),
        ] {
            let frame = Pkt::udp(f, (1, 11), (2, 11)).to(dst).frame();
            let (answer, refused) = answered(run(&tables, Entry::Port(WEB1), &frame));
            assert_eq!(refused, Some(reason));
            assert_icmp_error(&answer, &frame, ip(f, 1, 1), type_code(f, (3, 1), (1, 3)));
        }
        assert!(tables.transients().is_empty());
    }
}

#[test]
fn r5_what_no_router_forwards_is_dropped_silently() {
    let f = Family::V4;
    let pkt = Pkt::udp(f, (1, 16), (2, 11));
    let tables = tables();
    let from_open = |pkt: &Pkt| run(&tables, Entry::Port(WEB_OPEN), &pkt.frame());
    for dst in [[0, 0, 0, 0], [0, 1, 2, 3], [127, 0, 0, 1], [240, 0, 0, 1]] {
        assert_eq!(from_open(&pkt.clone().to(dst.into())), Verdict::Dropped(DropReason::Martian));
    }
    for src in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]] {
        assert_eq!(from_open(&pkt.clone().from(src.into())), Verdict::Dropped(DropReason::Martian));
    }
    for dst in [[224, 0, 0, 1], [239, 1, 1, 1], [255, 255, 255, 255], [10, 0, 2, 255], [10, 0, 1, 0]] {
        let verdict = from_open(&pkt.clone().to(dst.into()));
        assert_eq!(verdict, Verdict::Dropped(DropReason::MulticastRouted));
    }
    let pkt = Pkt::udp(Family::V6, (1, 16), (2, 11));
    for dst in ["::", "::1"] {
        let verdict = from_open(&pkt.clone().to(dst.parse().unwrap()));
        assert_eq!(verdict, Verdict::Dropped(DropReason::Martian));
        let verdict = from_open(&pkt.clone().from(dst.parse().unwrap()));
        assert_eq!(verdict, Verdict::Dropped(DropReason::Martian));
    }
    let verdict = from_open(&pkt.clone().to("ff0e::1".parse().unwrap()));
    assert_eq!(verdict, Verdict::Dropped(DropReason::MulticastRouted));
}

#[test]
fn r5_a_link_local_address_stays_on_its_link() {
    let tables = tables();
    let f = Family::V6;
    let me = link_local(port_mac(1, 11));
    let frame = Pkt::udp(f, (1, 11), (2, 11)).from(me).frame();
    let (answer, refused) = answered(run(&tables, Entry::Port(WEB1), &frame));
    assert_eq!(refused, Some(DropReason::LinkLocalRouted));
    assert_icmp_error(&answer, &frame, ip(f, 1, 1), (1, 2));
    // Within the link it is used like any other.
    let frame = Pkt::udp(f, (1, 11), (1, 12)).from(me).to(link_local(port_mac(1, 12))).frame();
    assert_eq!(sent(run(&tables, Entry::Port(WEB1), &frame)).0, WEB2);
}

#[test]
fn r6_a_packet_over_the_mtu_is_answered_with_it() {
    for f in BOTH {
        let tables = tables();
        // Exactly the MTU passes; the flow is stored, and lets nothing larger through.
        for (dst, mtu, source) in [((2, 11), 1400, ip(f, 1, 1)), ((6, 11), 1350, ip(f, 1, 1))] {
            for _ in 0..2 {
                let fits = Pkt::udp(f, (1, 11), dst).sized(mtu).frame();
                sent(run(&tables, Entry::Port(WEB1), &fits));
                for len in [mtu + 1, 1450] {
                    let frame = Pkt::udp(f, (1, 11), dst).sized(len).frame();
                    let (answer, refused) = answered(run(&tables, Entry::Port(WEB1), &frame));
                    assert_eq!(refused, Some(DropReason::TooBig));
                    let code = type_code(f, (3, 4), (2, 0));
                    assert_eq!(assert_icmp_error(&answer, &frame, source, code), mtu as u32);
                }
            }
        }
        // On the way back the transit network is beyond the first router, seen from far, too.
        let frame = Pkt::udp(f, (6, 11), (1, 11)).sized(1351).frame();
        let (answer, _) = answered(run(&tables, Entry::Port(FAR1), &frame));
        let code = type_code(f, (3, 4), (2, 0));
        assert_eq!(assert_icmp_error(&answer, &frame, ip(f, 6, 1), code), 1350);
    }
}

#[test]
fn r6_the_smallest_mtu_on_the_way_holds_for_a_stored_flow() {
    for f in BOTH {
        // The second router's network is the narrow one.
        let mut b = builder();
        for leg in b.image.router_legs.values_mut() {
            leg.mtu = if leg.vni == 1006 { 1300 } else { 1450 };
        }
        let tables = b.tables();
        for len in [100, 1301] {
            let frame = Pkt::udp(f, (1, 11), (6, 11)).sized(len).frame();
            let verdict = run(&tables, Entry::Port(WEB1), &frame);
            if len == 100 {
                sent(verdict);
                continue;
            }
            let (answer, _) = answered(verdict);
            // The packet came to the second router over transit.
            let code = type_code(f, (3, 4), (2, 0));
            assert_eq!(assert_icmp_error(&answer, &frame, ip(f, 5, 2), code), 1300);
        }
    }
}

#[test]
fn r6_a_packet_over_the_mtu_that_may_be_cut_is_cut() {
    let tables = tables();
    let mut pkt = Pkt::udp(Family::V4, (1, 11), (2, 11)).sized(1401);
    pkt.fragment = 0;
    for _ in 0..2 {
        let Verdict::Fragmented(flow) = run(&tables, Entry::Port(WEB1), &pkt.frame()) else {
            panic!("not cut");
        };
        assert_eq!((flow.exit, flow.target, flow.mtu, flow.hops), (EXIT_PORT, DB1, 1400, 1));
        assert_eq!(flow.out_macs, Macs::new(port_mac(2, 11), router_mac(2, 1)));
    }
    assert!(tables.transients().is_empty(), "each is cut by the agent");
    // What fits is not; a super-packet is cut by nobody.
    sent(run(&tables, Entry::Port(WEB1), &pkt.clone().sized(1400).frame()));
    let mut packet = MemoryPacket::new(&pkt.sized(1500).frame());
    packet.gso_size = 1400;
    let verdict = run_packet(&tables, Entry::Port(WEB1), packet);
    assert_eq!(verdict, Verdict::Dropped(DropReason::TooBig));
}

#[test]
fn r6_super_packets_are_judged_by_their_segments() {
    for f in BOTH {
        let tables = tables();
        let headers = if f == Family::V4 { 20 } else { 40 };
        for (l4, transport) in [
            (L4::Tcp { sport: 1, dport: 2, seq: 1, ack: 1, flags: TCP_ACK, payload: vec![7; 30_000] }, 20),
            (L4::Udp { sport: 1, dport: 2, payload: vec![7; 30_000] }, 8),
        ] {
            let frame = Pkt::udp(f, (1, 11), (2, 12)).l4(l4.clone()).frame();
            let run = |gso_size: u32| {
                let mut packet = MemoryPacket::new(&frame);
                packet.gso_size = gso_size;
                run_packet(&tables, Entry::Port(WEB1), packet)
            };
            let fits = 1400 - headers - transport;
            for _ in 0..2 {
                let (answer, refused) = answered(run(fits + 1));
                assert_eq!(refused, Some(DropReason::TooBig));
                let code = type_code(f, (3, 4), (2, 0));
                assert_eq!(assert_icmp_error(&answer, &frame, ip(f, 1, 1), code), 1400);
                assert_eq!(sent(run(fits)).0, UPLINK);
                answered(run(0));
            }
            // Within one network too: there nobody complains.
            let frame = Pkt::udp(f, (1, 11), (1, 12)).l4(l4).frame();
            for (gso_size, ok) in [(1450 - headers - transport, true), (1451 - headers - transport, false)] {
                let mut packet = MemoryPacket::new(&frame);
                packet.gso_size = gso_size;
                match run_packet(&tables, Entry::Port(WEB1), packet) {
                    Verdict::Sent { ifindex, .. } => assert_eq!((ifindex, ok), (WEB2, true)),
                    verdict => assert_eq!((verdict, ok), (Verdict::Dropped(DropReason::TooBig), false)),
                }
            }
        }
    }
}

#[test]
fn r6_a_switched_frame_over_the_mtu_is_named_as_too_big() {
    for f in BOTH {
        let tables = tables();
        let fits = Pkt::udp(f, (1, 11), (1, 12)).sized(1450);
        sent(run(&tables, Entry::Port(WEB1), &fits.frame()));
        dropped(&tables, &fits.sized(1451), DropReason::TooBig);
    }
}

#[test]
fn r9_two_routers_are_passed_at_once() {
    for f in BOTH {
        let tables = tables();
        for _ in 0..2 {
            let frame = Pkt::udp(f, (1, 11), (6, 11)).frame();
            let expected = routed(&frame, port_mac(6, 11), router_mac(6, 1), 2);
            assert_eq!(sent(run(&tables, Entry::Port(WEB1), &frame)), (FAR1, expected));
            let frame = Pkt::udp(f, (1, 11), (6, 12)).frame();
            let (_, out) = sent(run(&tables, Entry::Port(WEB1), &frame));
            assert_eq!(inner(&out), (1006, routed(&frame, port_mac(6, 12), router_mac(6, 1), 2)));
            let frame = Pkt::udp(f, (6, 11), (2, 11)).frame();
            let expected = routed(&frame, port_mac(2, 11), router_mac(2, 1), 2);
            assert_eq!(sent(run(&tables, Entry::Port(FAR1), &frame)), (DB1, expected));
        }
    }
}

#[test]
fn r9_a_loop_ends_in_a_counted_drop() {
    for f in BOTH {
        let tables = tables();
        let pkt = Pkt::udp(f, (7, 11), (99, 1));
        for _ in 0..2 {
            let verdict = run(&tables, Entry::Port(LAB1), &pkt.frame());
            assert_eq!(verdict, Verdict::Dropped(DropReason::RouterLoop));
        }
        // With fewer hops left than the loop is allowed, TTL ends it, and each router is seen in turn.
        for ttl in 1..8 {
            let frame = pkt.clone().ttl(ttl).frame();
            let (answer, refused) = answered(run(&tables, Entry::Port(LAB1), &frame));
            assert_eq!(refused, Some(DropReason::TtlExceeded));
            let source = match ttl {
                1 => ip(f, 7, 1),
                ttl if ttl % 2 == 0 => ip(f, 8, 4),
                _ => ip(f, 8, 3),
            };
            assert_icmp_error(&answer, &frame, source, type_code(f, (11, 0), (3, 0)));
        }
        // A next hop that is the router itself.
        let mut b = builder();
        let any: IpAddr = if f == Family::V4 { [0; 4].into() } else { [0; 16].into() };
        b.route(R1, any, 0, ROUTE_VIA, WEB, Some(ip(f, 1, 1)));
        let frame = Pkt::udp(f, (1, 11), (99, 1)).frame();
        let verdict = run(&b.tables(), Entry::Port(WEB1), &frame);
        assert_eq!(verdict, Verdict::Dropped(DropReason::RouterLoop));
    }
}

#[test]
fn r1_a_router_detached_from_a_network_says_so() {
    let mut b = builder();
    b.image.router_legs.remove(&RouterLegKey { router: Scoped::new(0, R1), network: DB });
    let tables = b.tables();
    let there = Pkt::udp(Family::V4, (1, 11), (2, 11));
    dropped(&tables, &there, DropReason::RouterDetached);
    let frame = Pkt::udp(Family::V4, (2, 11), (1, 11)).frame();
    let verdict = run(&tables, Entry::Port(DB1), &frame);
    assert_eq!(verdict, Verdict::Dropped(DropReason::RouterDetached));
}
