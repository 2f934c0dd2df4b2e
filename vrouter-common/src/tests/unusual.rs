//! Odd headers: routed or refused by a stated rule, never misparsed (behaviour R8).

use super::fixture::*;
use crate::{
    memory::{Entry, MemoryTables, Verdict},
    reason::DropReason,
    wire::*,
};

#[track_caller]
fn dropped(tables: &MemoryTables, frame: &[u8], reason: DropReason) {
    assert_eq!(run(tables, Entry::Port(WEB1), frame), Verdict::Dropped(reason));
    // The same inside a tunnel: the receiving node reads as carefully.
    let verdict = run(tables, Entry::Uplink, &vxlan(VTEP2, 1001, frame));
    assert_eq!(verdict, Verdict::Dropped(reason));
}

fn v4() -> Pkt {
    Pkt::udp(Family::V4, (1, 11), (2, 11))
}

fn v6() -> Pkt {
    Pkt::udp(Family::V6, (1, 11), (2, 11))
}

fn changed(pkt: &Pkt, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = pkt.frame();
    change(&mut frame);
    if pkt.src.is_ipv4() && frame.len() >= 34 {
        fix_ipv4(&mut frame);
    }
    frame
}

#[test]
fn r8_ipv4_options_are_routed_and_never_stored() {
    let tables = tables();
    // The same flow without options is stored, and not used.
    sent(run(&tables, Entry::Port(WEB1), &v4().frame()));
    let stored = tables.transients();
    for options in [
        vec![1, 1, 1, 0],
        vec![0, 0xff, 0xff, 0xff],
        // Router alert, record route, timestamp, and as much as there can be.
        vec![148, 4, 0, 0],
        [vec![7, 39, 4], vec![0; 37]].concat(),
        vec![68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![1; 40],
    ] {
        let mut pkt = v4();
        pkt.options = options.clone();
        for dst in [(2, 11, DB1), (1, 12, WEB2)] {
            let mut pkt = pkt.clone().to(ip(Family::V4, dst.0, dst.1));
            if dst.0 == 1 {
                pkt.dst_mac = port_mac(1, 12);
            }
            let (ifindex, out) = sent(run(&tables, Entry::Port(WEB1), &pkt.frame()));
            assert_eq!((ifindex, &out[34..34 + options.len()]), (dst.2, options.as_slice()));
            assert_valid(&out);
        }
    }
    assert_eq!(tables.transients(), stored);
}

#[test]
fn r8_ipv4_source_routing_is_refused() {
    let tables = tables();
    for kind in [131, 137] {
        for at in [0, 1, 8] {
            let mut pkt = v4();
            pkt.options = vec![1; at];
            pkt.options.extend([kind, 7, 4, 10, 0, 2, 12]);
            pkt.options.resize(pkt.options.len().next_multiple_of(4), 0);
            dropped(&tables, &pkt.frame(), DropReason::Ipv4SourceRoute);
        }
        // The same byte inside another option, or behind the end of options, is none.
        for options in [vec![7, 7, kind, 7, 4, 10, 0, 0], vec![0, kind, 7, 4]] {
            let mut pkt = v4();
            pkt.options = options;
            sent(run(&tables, Entry::Port(WEB1), &pkt.frame()));
        }
    }
}

#[test]
fn r8_bad_ipv4_options_are_malformed() {
    let tables = tables();
    for options in [vec![7, 0, 0, 0], vec![7, 1, 0, 0], vec![1, 1, 68, 1], vec![7, 41, 0, 0]] {
        let mut pkt = v4();
        pkt.options = options;
        dropped(&tables, &pkt.frame(), DropReason::Ipv4Malformed);
    }
}

#[test]
fn r8_an_ipv4_header_that_lies_is_refused() {
    let tables = tables();
    for (version_ihl, reason) in [
        (0x44, DropReason::Ipv4Malformed),
        (0x40, DropReason::Ipv4Malformed),
        (0x55, DropReason::Ipv4Malformed),
        (0x65, DropReason::Ipv4Malformed),
        (0x05, DropReason::Ipv4Malformed),
    ] {
        dropped(&tables, &changed(&v4(), |f| f[14] = version_ihl), reason);
    }
    let len = v4().frame().len() - ETH_LEN;
    for (total, reason) in [
        (0, DropReason::Ipv4Malformed),
        (19, DropReason::Ipv4Malformed),
        (20, DropReason::TransportTruncated),
        (27, DropReason::TransportTruncated),
        (len as u16 + 1, DropReason::FrameTruncated),
        (u16::MAX, DropReason::FrameTruncated),
    ] {
        let frame = changed(&v4(), |f| f[16..18].copy_from_slice(&total.to_be_bytes()));
        dropped(&tables, &frame, reason);
    }
    // A header longer than the packet.
    let frame = changed(&v4().l4(L4::Raw(47, vec![1; 60])), |f| {
        f[14] = 0x4f;
        f[16..18].copy_from_slice(&40_u16.to_be_bytes());
    });
    dropped(&tables, &frame, DropReason::Ipv4Malformed);
    let mut frame = v4().frame();
    frame[24] ^= 1;
    dropped(&tables, &frame, DropReason::Ipv4Checksum);
}

#[test]
fn r8_a_frame_cut_anywhere_is_refused() {
    let tables = tables();
    for pkt in
        [v4(), v6(), v4().tcp(1, 1, 0, b"x"), v6().tcp(1, 1, 0, b"x"), v4().ping(1, b"x"), v6().ping(1, b"x")]
    {
        let frame = pkt.frame();
        sent(run(&tables, Entry::Port(WEB1), &frame));
        for len in 0..frame.len() {
            let verdict = run(&tables, Entry::Port(WEB1), &frame[..len]);
            assert_eq!(verdict, Verdict::Dropped(DropReason::FrameTruncated), "{len}");
        }
    }
}

#[test]
fn r8_an_ipv6_header_that_lies_is_refused() {
    let tables = tables();
    for version in [0x40, 0x50, 0x70, 0x00] {
        dropped(&tables, &changed(&v6(), |f| f[14] = version), DropReason::Ipv6Malformed);
    }
    let len = v6().frame().len() - ETH_LEN - IPV6_LEN;
    for (payload, reason) in [
        (0, DropReason::TransportTruncated),
        (7, DropReason::TransportTruncated),
        (len as u16 + 1, DropReason::FrameTruncated),
        (u16::MAX, DropReason::FrameTruncated),
    ] {
        let frame = changed(&v6(), |f| f[18..20].copy_from_slice(&payload.to_be_bytes()));
        dropped(&tables, &frame, reason);
    }
    let group = v6().from("ff02::1".parse().unwrap());
    dropped(&tables, &group.frame(), DropReason::Ipv6Malformed);
}

#[test]
fn r8_ipv4_mapped_addresses_do_not_travel() {
    let tables = tables();
    // The very addresses of stations of this network.
    for (src, dst) in [
        ("fd00:1::b", "::ffff:10.0.2.11"),
        ("::ffff:10.0.1.11", "fd00:2::b"),
        ("::ffff:10.0.1.11", "::ffff:10.0.2.11"),
    ] {
        // std prints and parses mapped addresses as IPv6.
        let pkt = v6().from(src.parse().unwrap()).to(dst.parse().unwrap());
        dropped(&tables, &pkt.frame(), DropReason::Ipv6Malformed);
    }
}

#[test]
fn r8_tagged_and_unknown_frames_are_refused() {
    let tables = tables();
    for tag in [ETHERTYPE_VLAN, ETHERTYPE_QINQ] {
        let mut frame = v4().frame();
        let tag = [tag.to_be_bytes(), [0, 5]].concat();
        frame.splice(12..12, tag);
        dropped(&tables, &frame, DropReason::VlanTagged);
    }
    // LLDP, MPLS, PPPoE, an 802.3 length, jumbo.
    for ethertype in [0x88cc_u16, 0x8847, 0x8864, 46, 0x8870] {
        let mut frame = v4().frame();
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        dropped(&tables, &frame, DropReason::EthertypeUnknown);
    }
}

#[test]
fn r8_jumbo_frames_are_too_big_like_any_other() {
    for f in BOTH {
        let tables = tables();
        let pkt = Pkt::udp(f, (1, 11), (2, 11));
        for len in [9000, 65_535] {
            let frame = pkt.clone().sized(len).frame();
            let (answer, refused) = answered(run(&tables, Entry::Port(WEB1), &frame));
            assert_eq!(refused, Some(DropReason::TooBig));
            assert_icmp_error(&answer, &frame, ip(f, 1, 1), if f == Family::V4 { (3, 4) } else { (2, 0) });
        }
    }
    // And where the network takes them, they pass.
    for f in BOTH {
        let mut b = builder();
        for leg in b.image.router_legs.values_mut() {
            leg.mtu = 9000;
        }
        let tables = b.tables();
        let frame = Pkt::udp(f, (1, 11), (2, 11)).sized(9000).frame();
        for _ in 0..2 {
            assert_eq!(sent(run(&tables, Entry::Port(WEB1), &frame)).0, DB1);
        }
    }
}

#[test]
fn r8_unknown_protocols_are_flows_by_address_and_number() {
    for f in BOTH {
        let tables = tables();
        let pkt = Pkt::udp(f, (1, 11), (2, 11));
        for (n, proto) in [47, 50, 89, 4, 253].into_iter().enumerate() {
            for payload in [vec![], vec![1], vec![0xab; 50], vec![0xcd; 50]] {
                let frame = pkt.clone().l4(L4::Raw(proto, payload)).frame();
                assert_eq!(sent(run(&tables, Entry::Port(WEB1), &frame)).0, DB1);
            }
            let flows = tables.transients();
            assert_eq!(flows.len(), n + 1);
            let (key, flow) = flows.iter().find(|(key, _)| key.proto == proto).unwrap();
            assert_eq!((key.sport.get(), key.dport.get(), flow.packets), (0, 0, 4));
        }
    }
}

fn extension(kind: u8, len8: u8) -> (u8, Vec<u8>) {
    (kind, [vec![0, len8], vec![0; 6 + usize::from(len8) * 8]].concat())
}

#[test]
fn r8_ipv6_extension_headers_are_walked_and_never_stored() {
    let tables = tables();
    sent(run(&tables, Entry::Port(WEB1), &v6().frame()));
    let stored = tables.transients();
    let atomic = (PROTO_FRAGMENT, vec![0, 0, 0, 0, 0, 0, 0, 9]);
    let routing = (PROTO_ROUTING, vec![0, 0, 4, 0, 0, 0, 0, 0]);
    let auth = (PROTO_AH, [vec![0, 4], vec![0; 22]].concat());
    for extensions in [
        vec![extension(PROTO_HOPOPTS, 0)],
        vec![extension(PROTO_DSTOPTS, 3)],
        vec![routing.clone()],
        vec![auth.clone()],
        vec![atomic.clone()],
        vec![
            extension(PROTO_HOPOPTS, 1),
            extension(PROTO_DSTOPTS, 0),
            routing,
            atomic,
            auth,
            extension(PROTO_DSTOPTS, 0),
        ],
    ] {
        for l4 in [v6().l4, v6().ping(1, b"x").l4, v6().tcp(1, 1, 0, b"").l4, L4::Raw(47, vec![])] {
            let mut pkt = v6().l4(l4);
            pkt.extensions = extensions.clone();
            let frame = pkt.frame();
            let (ifindex, out) = sent(run(&tables, Entry::Port(WEB1), &frame));
            assert_eq!((ifindex, &out[22..]), (DB1, &frame[22..]));
        }
        // The transport's own fields are read behind them: this is a DHCPv6 server.
        let mut rogue = v6().ports(547, 546);
        rogue.extensions = extensions;
        let verdict = run(&tables, Entry::Port(WEB1), &rogue.frame());
        assert_eq!(verdict, Verdict::Dropped(DropReason::RogueDhcp));
    }
    assert_eq!(tables.transients(), stored);
}

#[test]
fn r8_too_many_extension_headers_and_routing_header_0_are_refused() {
    let tables = tables();
    let mut pkt = v6();
    pkt.extensions = vec![extension(PROTO_DSTOPTS, 0); 6];
    sent(run(&tables, Entry::Port(WEB1), &pkt.frame()));
    pkt.extensions.push(extension(PROTO_DSTOPTS, 0));
    dropped(&tables, &pkt.frame(), DropReason::Ipv6Extension);
    for left in [0, 1] {
        pkt.extensions =
            vec![(PROTO_ROUTING, vec![0, 2, 0, left, 0, 0, 0, 0].into_iter().chain([0; 16]).collect())];
        dropped(&tables, &pkt.frame(), DropReason::Ipv6Extension);
    }
}

#[test]
fn r8_an_extension_header_beyond_the_packet_is_malformed() {
    let tables = tables();
    for kind in [PROTO_HOPOPTS, PROTO_DSTOPTS, PROTO_AH, PROTO_ROUTING] {
        let mut pkt = v6();
        pkt.extensions = vec![(kind, vec![0, 200, 4, 0, 0, 0, 0, 0])];
        dropped(&tables, &pkt.frame(), DropReason::Ipv6Malformed);
        // Nothing where the header should be.
        pkt.l4 = L4::Raw(kind, vec![0; 7]);
        pkt.extensions = vec![];
        dropped(&tables, &pkt.frame(), DropReason::Ipv6Malformed);
        // The header that ends the first fragment names a transport that is in the second.
        let mut pkt = v6().l4(L4::Raw(PROTO_UDP, vec![]));
        pkt.extensions = vec![(PROTO_FRAGMENT, vec![0, 0, 0, 1, 0, 0, 0, 9]), extension(PROTO_DSTOPTS, 0)];
        dropped(&tables, &pkt.frame(), DropReason::TransportTruncated);
    }
}

#[test]
fn r7_fragments_are_routed_and_never_stored() {
    for f in BOTH {
        let tables = tables();
        sent(run(&tables, Entry::Port(WEB1), &Pkt::udp(f, (1, 11), (2, 11)).frame()));
        let stored = tables.transients();
        for (at, len, more) in [(0, 24, true), (24, 16, true), (40, 3, false)] {
            let bytes = (0..len).map(|i| i as u8 + 7).collect();
            let pkt = Pkt::udp(f, (1, 11), (2, 11)).l4(L4::Raw(PROTO_UDP, bytes)).piece(9, at, more);
            let frame = pkt.frame();
            let (ifindex, out) = sent(run(&tables, Entry::Port(WEB1), &frame));
            assert_eq!((ifindex, &out[26..]), (DB1, &frame[26..]));
            assert_eq!(read(&out).ttl, 63);
            assert_valid(&out);
        }
        assert_eq!(tables.transients(), stored);
    }
}
