//! Every reason to drop: provoked by TC and by XDP, and counted exactly once.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use vrouter_common::reason::DropReason;

use crate::{forwarding::fix_ipv4, frames::*, harness::*, topology::*};

struct Case {
    reason: DropReason,
    name: &'static str,
    at: &'static str,
    frame: Vec<u8>,
}

/// Not provoked: what the kernel must refuse first, or what is a defect.
const NOT_PROVOKED: [DropReason; 4] =
    [DropReason::NoRoom, DropReason::Internal, DropReason::FlowReused, DropReason::HopTableFull];

/// It takes more than one packet: see `connections`.
const BY_SEVERAL: [DropReason; 11] = [
    // See `services`.
    DropReason::ServiceBusy,
    DropReason::ServiceTooLong,
    DropReason::ServiceUnknown,
    DropReason::ServiceRate,
    DropReason::FlowTableFull,
    DropReason::SnatExhausted,
    DropReason::NatClash,
    DropReason::ExternalAbsent,
    DropReason::HopPending,
    DropReason::HopUnanswered,
    DropReason::FragmentOverlap,
];

/// Always answered: see `answers`.
const ANSWERED: [DropReason; 3] =
    [DropReason::RouterRefused, DropReason::RouterPortUnreachable, DropReason::RouterProtocol];

fn edited(mut frame: Vec<u8>, edits: &[(usize, u8)]) -> Vec<u8> {
    for &(at, byte) in edits {
        frame[at] = byte;
    }
    frame
}

fn checked(frame: Vec<u8>, edits: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = edited(frame, edits);
    fix_ipv4(&mut frame);
    frame
}

/// An IPv4 packet with options behind its header.
fn with_options(options: &[u8]) -> Vec<u8> {
    let mut frame = edited(v4_frame(), &[(14, 0x45 + options.len() as u8 / 4)]);
    frame[17] += options.len() as u8;
    frame.splice(34..34, options.iter().copied());
    fix_ipv4(&mut frame);
    frame
}

/// An IPv6 packet with extension headers, each as its number and bytes 1..8.
fn with_extensions(headers: &[(u8, [u8; 7])]) -> Vec<u8> {
    let mut frame = v6_frame();
    let mut bytes = Vec::new();
    for (i, (_, rest)) in headers.iter().enumerate() {
        bytes.push(headers.get(i + 1).map_or(17, |(number, _)| *number));
        bytes.extend(rest);
    }
    frame[20] = headers[0].0;
    frame[19] += bytes.len() as u8;
    frame.splice(54..54, bytes);
    frame
}

fn v4_frame() -> Vec<u8> {
    Packet::routed(11, port_v4(21)).build()
}

fn v6_frame() -> Vec<u8> {
    Packet::routed(11, port_v6(21)).build()
}

fn malformed() -> Vec<Case> {
    let case = |reason, name, frame| Case { reason, name, at: "p11", frame };
    let v4 = v4_frame;
    let v6 = v6_frame;
    let pad = |len: usize| vec![0; len];
    let mut mapped = v6();
    mapped[22..38].copy_from_slice(&Ipv4Addr::new(10, 1, 0, 11).to_ipv6_mapped().octets());
    let mut truncated_vxlan = arriving(2, vni(1), &Packet::switched(15, 11, false).build());
    truncated_vxlan.truncate(50 + 14 + 19);
    use DropReason::*;
    vec![
        case(FrameTruncated, "no IPv4 header", v4()[..33].to_vec()),
        case(FrameTruncated, "less than the total length", v4()[..67].to_vec()),
        case(FrameTruncated, "no IPv6 header", v6()[..53].to_vec()),
        case(FrameTruncated, "less than the payload length", v6()[..87].to_vec()),
        case(EthernetSource, "zero", edited(v4(), &[(6, 0), (7, 0), (10, 0), (11, 0)])),
        case(EthernetSource, "a group", edited(v4(), &[(6, 3)])),
        case(VlanTagged, "802.1Q", ethernet(router_mac(1, 1), port_mac(11), 0x8100, &v4()[10..])),
        case(VlanTagged, "802.1ad", ethernet(router_mac(1, 1), port_mac(11), 0x88a8, &v4()[10..])),
        case(EthertypeUnknown, "LLDP", ethernet(router_mac(1, 1), port_mac(11), 0x88cc, &pad(46))),
        case(EthertypeUnknown, "a length", ethernet(router_mac(1, 1), port_mac(11), 46, &pad(46))),
        case(EthertypeUnknown, "nothing behind", ethernet(router_mac(1, 1), port_mac(11), 0x88cc, &[])),
        case(Ipv4Malformed, "version", edited(v4(), &[(14, 0x55)])),
        case(Ipv4Malformed, "header length", edited(v4(), &[(14, 0x44)])),
        case(Ipv4Malformed, "total length", edited(v4(), &[(17, 19)])),
        case(Ipv4Malformed, "an option of no length", with_options(&[7, 0, 0, 0])),
        case(Ipv4Malformed, "an option of too great a length", with_options(&[7, 41, 0, 0])),
        case(Ipv4Checksum, "one bit", edited(v4(), &[(24, v4()[24] ^ 1)])),
        case(Ipv4Checksum, "in an option", edited(with_options(&[148, 4, 0, 0]), &[(37, 1)])),
        case(Ipv4SourceRoute, "loose", with_options(&[131, 7, 4, 10, 2, 0, 21, 0])),
        case(Ipv4SourceRoute, "strict, behind others", with_options(&[1, 7, 3, 0, 137, 3, 4, 0])),
        case(Ipv6Malformed, "version", edited(v6(), &[(14, 0x50)])),
        case(Ipv6Malformed, "an IPv4-mapped source", mapped.clone()),
        case(Ipv6Malformed, "a multicast source", edited(v6(), &[(22, 0xff)])),
        case(
            Ipv6Malformed,
            "an extension longer than the packet",
            with_extensions(&[(0, [30, 0, 0, 0, 0, 0, 0])]),
        ),
        case(Ipv6Extension, "type 0 routing", with_extensions(&[(43, [0, 0, 0, 0, 0, 0, 0])])),
        case(Ipv6Extension, "seven headers", with_extensions(&[(60, [0, 1, 4, 0, 0, 0, 0]); 7])),
        case(TransportTruncated, "TCP", checked(Packet::routed(11, port_v4(21)).len(11).build(), &[(23, 6)])),
        case(
            TransportTruncated,
            "UDP",
            Packet::routed(11, port_v4(21)).transport(Transport::Other(17)).len(7).build(),
        ),
        case(
            TransportTruncated,
            "ICMPv6",
            Packet::routed(11, port_v6(21)).transport(Transport::Other(58)).len(7).build(),
        ),
        case(ArpMalformed, "operation", edited(arp_request(11, self::v4_of_router()), &[(21, 3)])),
        case(ArpMalformed, "hardware type", edited(arp_request(11, self::v4_of_router()), &[(15, 6)])),
        case(ArpMalformed, "short", arp_request(11, self::v4_of_router())[..41].to_vec()),
        case(NdMalformed, "through a router", nd_solicit(11, crate::topology::v6(1, 1)).ttl(254).build()),
        case(NdMalformed, "an option of no length", {
            let mut nd = nd_solicit(11, crate::topology::v6(1, 1));
            nd.payload[17] = 0;
            nd.build()
        }),
        Case { reason: VxlanMalformed, name: "no VNI flag", at: UPLINK, frame: vxlan_edited(&[(42, 0)]) },
        Case {
            reason: VxlanMalformed,
            name: "outer options",
            at: UPLINK,
            frame: vxlan_edited(&[(14, 0x46)]),
        },
        Case {
            reason: VxlanMalformed,
            name: "an outer fragment",
            at: UPLINK,
            frame: vxlan_edited(&[(20, 0x20)]),
        },
        Case { reason: VxlanMalformed, name: "UDP length", at: UPLINK, frame: vxlan_edited(&[(39, 29)]) },
        Case { reason: VxlanMalformed, name: "cut", at: UPLINK, frame: vxlan_edited(&[])[..63].to_vec() },
        Case {
            reason: ArpMalformed,
            name: "short, out of a tunnel",
            at: UPLINK,
            frame: arriving(
                2,
                vni(1),
                &arp(port_mac(11), port_mac(15), 2, ([0; 6], v4_of_router()), ([0; 6], v4_of_router()))[..41],
            ),
        },
        Case { reason: FrameTruncated, name: "inner IPv4 header", at: UPLINK, frame: truncated_vxlan },
        Case {
            reason: VlanTagged,
            name: "inner tag",
            at: UPLINK,
            frame: vxlan_edited(&[(62, 0x81), (63, 0)]),
        },
    ]
}

fn v4_of_router() -> Ipv4Addr {
    v4(1, 1)
}

fn vxlan_edited(edits: &[(usize, u8)]) -> Vec<u8> {
    edited(arriving(2, vni(1), &Packet::switched(15, 11, false).build()), edits)
}

fn senders() -> Vec<Case> {
    use DropReason::*;
    let case = |reason, name, frame| Case { reason, name, at: "p11", frame };
    let other = port_mac(12);
    let own = port_mac(11);
    let udp = |sport, dport| Transport::Udp { sport, dport };
    let from = |src: IpAddr| {
        let dst = if src.is_ipv4() { port_v4(21).into() } else { IpAddr::from(port_v6(21)) };
        Packet { src, ..Packet::routed(11, dst) }.build()
    };
    let solicit = |edit: fn(&mut Packet)| {
        let mut packet = nd_solicit(11, v6(1, 1));
        edit(&mut packet);
        packet.build()
    };
    let advert = |target: Ipv6Addr| {
        nd(136, (port_mac(12), own), (port_v6(11), port_v6(12)), 1 << 29, target, Some((2, own))).build()
    };
    vec![
        Case { reason: PortUnknown, name: "no port", at: UNKNOWN, frame: v4_frame() },
        case(SpoofedMac, "IPv4", edited(v4_frame(), &[(11, 12)])),
        case(SpoofedMac, "IPv6", edited(v6_frame(), &[(11, 12)])),
        case(SpoofedMac, "ARP", arp(BROADCAST, other, 1, (other, port_v4(11)), ([0; 6], v4(1, 1)))),
        case(SpoofedIp, "a neighbour's", from(port_v4(12).into())),
        case(SpoofedIp, "a neighbour's, IPv6", from(port_v6(12).into())),
        case(SpoofedIp, "unspecified, and no DHCP", from(Ipv4Addr::UNSPECIFIED.into())),
        case(SpoofedIp, "unspecified, and no ND", from(Ipv6Addr::UNSPECIFIED.into())),
        Case {
            reason: SpoofedIp,
            name: "beside the allowed pair",
            at: "p12",
            frame: Packet { src: v4(1, 127).into(), ..Packet::routed(12, port_v4(21)) }.build(),
        },
        case(
            SpoofedArp,
            "a neighbour's address",
            arp(BROADCAST, own, 1, (own, port_v4(12)), ([0; 6], v4(1, 1))),
        ),
        case(
            SpoofedArp,
            "a neighbour's hardware",
            arp(BROADCAST, own, 2, (other, port_v4(12)), ([0; 6], v4(1, 1))),
        ),
        case(SpoofedNd, "advertises a neighbour's address", advert(port_v6(12))),
        case(SpoofedNd, "says a neighbour's hardware", solicit(|nd| nd.payload[23] = 12)),
        case(RogueDhcp, "IPv4", Packet::switched(11, 12, false).transport(udp(67, 68)).build()),
        case(RogueDhcp, "IPv6", Packet::switched(11, 12, true).transport(udp(547, 546)).build()),
        case(
            RogueRa,
            "router advertisement",
            solicit(|nd| nd.transport = Transport::Icmp { kind: 134, code: 0, rest: [0; 4] }),
        ),
        case(
            RogueRa,
            "redirect",
            solicit(|nd| nd.transport = Transport::Icmp { kind: 137, code: 0, rest: [0; 4] }),
        ),
    ]
}

fn destinations() -> Vec<Case> {
    use DropReason::*;
    let case = |reason, name, packet: Packet| Case { reason, name, at: "p11", frame: packet.build() };
    // Nobody may be told about an error's error.
    let error = Transport::Icmp { kind: 3, code: 3, rest: [0; 4] };
    let error6 = Transport::Icmp { kind: 1, code: 4, rest: [0; 4] };
    let silent = |dst: Ipv4Addr| Packet::routed(11, dst).transport(error.clone());
    let silent6 = |dst: Ipv6Addr| Packet::routed(11, dst).transport(error6.clone());
    let to_mac = |mac: Mac| Packet { dst_mac: mac, ..Packet::routed(11, port_v4(21)) };
    let from_unchecked =
        |src: IpAddr, dst: IpAddr| Packet { src_mac: port_mac(19), src, ..Packet::routed(11, dst) };
    let mut cases = vec![
        case(MacUnknown, "switched", to_mac([2, 0, 0, 0, 1, 99])),
        case(PortUnplugged, "switched", Packet::switched(11, 17, false)),
        case(PortUnbound, "switched", Packet::switched(11, 18, true)),
        case(Hairpin, "to oneself", Packet::switched(11, 11, false)),
        case(TtlExceeded, "an error's", silent(port_v4(21)).ttl(1)),
        case(TtlExceeded, "an error's, IPv6", silent6(port_v6(21)).ttl(1)),
        case(NoRoute, "an error's", silent(v4(77, 1))),
        case(NoRoute, "an error's, IPv6", silent6(v6(77, 1))),
        case(RouteBlackhole, "IPv4", Packet::routed(11, v4(66, 1))),
        case(RouteBlackhole, "IPv6", Packet::routed(11, v6(66, 1))),
        case(RouteUnreachable, "an error's", silent(v4(67, 1))),
        case(NextHopUnknown, "an error's", silent(v4(2, 99))),
        case(PortUnplugged, "an error's", silent(port_v4(27))),
        case(PortUnbound, "an error's", silent6(port_v6(28))),
        case(RouterLoop, "IPv4", Packet::routed(11, v4(9, 1))),
        case(RouterLoop, "IPv6", Packet::routed(11, v6(9, 1))),
        case(Martian, "loopback", Packet::routed(11, Ipv4Addr::LOCALHOST)),
        case(Martian, "class E", Packet::routed(11, Ipv4Addr::new(240, 0, 0, 1))),
        case(Martian, "this network", Packet::routed(11, Ipv4Addr::new(0, 0, 0, 1))),
        case(Martian, "loopback, IPv6", Packet::routed(11, Ipv6Addr::LOCALHOST)),
        case(
            LinkLocalRouted,
            "an error's",
            Packet { src: link_local(port_mac(11)).into(), ..silent6(port_v6(21)) },
        ),
        case(MulticastRouted, "multicast", Packet::routed(11, Ipv4Addr::new(224, 0, 0, 5))),
        case(
            MulticastRouted,
            "multicast, IPv6",
            Packet::routed(11, Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 2)),
        ),
        case(MulticastRouted, "broadcast", Packet::routed(11, Ipv4Addr::BROADCAST)),
        case(MulticastRouted, "a subnet's broadcast", Packet::routed(11, v4(2, 255))),
        case(MulticastRouted, "a subnet itself", Packet::routed(11, v4(2, 0))),
        case(TooBig, "switched", Packet::switched(11, 12, false).len(MTU as usize - 27)),
        case(TooBig, "switched, IPv6", Packet::switched(11, 12, true).len(MTU as usize - 47)),
        case(
            RouterIgnored,
            "an echo reply",
            Packet::routed(11, v4(1, 1)).transport(Transport::Echo { request: false, id: 1 }),
        ),
        case(RouterIgnored, "an error", silent(v4(1, 1))),
        case(RouterIgnored, "a reset", {
            let reset = Transport::Tcp { sport: 1, dport: 2, seq: 3, ack: None, syn: false, rst: true };
            Packet::routed(11, v4(1, 1)).transport(reset).len(0)
        }),
        case(RouterDetached, "half removed", to_mac(router_mac(3, 1))),
        case(UnderlayUnreachable, "routed", Packet::routed(11, port_v4(23))),
        Case {
            reason: Martian,
            name: "a martian source",
            at: "p19",
            frame: from_unchecked(Ipv4Addr::LOCALHOST.into(), port_v4(21).into()).build(),
        },
        Case {
            reason: Martian,
            name: "a multicast source",
            at: "p19",
            frame: from_unchecked(Ipv4Addr::new(224, 0, 0, 9).into(), port_v4(21).into()).build(),
        },
    ];
    let inner = Packet::switched(15, 11, false);
    // What node 2 has from outside, for a member of a pool.
    let to_member = |proto, dport| {
        let transport = match proto {
            6 => Transport::Tcp { sport: 1, dport, seq: 3, ack: None, syn: true, rst: false },
            _ => Transport::Udp { sport: 1, dport },
        };
        let packet = Packet::routed(11, floating_v4(VIP)).macs(member_mac(1, 0), gateway_mac(1, 2));
        let packet = Packet { src: v4(BEHIND, 5).into(), ..packet.transport(transport) };
        arriving(2, vni(OUTSIDE), &packet.build())
    };
    let uplink = |reason, name, frame| Case { reason, name, at: UPLINK, frame };
    cases.extend([
        uplink(VtepUnknown, "a node nobody knows", arriving(9, vni(1), &inner.build())),
        uplink(VniUnknown, "a network nobody knows", arriving(2, 999, &inner.build())),
        uplink(
            TunnelMisdelivered,
            "for another node",
            arriving(2, vni(1), &Packet::switched(15, 16, false).build()),
        ),
        uplink(
            TunnelMisdelivered,
            "for nobody",
            arriving(2, vni(1), &Packet::switched(15, 14, false).build()),
        ),
        uplink(TunnelMisdelivered, "for a router", {
            arriving(2, vni(1), &Packet { dst_mac: router_mac(1, 1), ..inner.clone() }.build())
        }),
        uplink(VipClosed, "passed on by another node", to_member(6, 2002)),
        uplink(PoolEmpty, "passed on by another node", to_member(6, 2001)),
        uplink(ListenerDown, "passed on by another node", to_member(17, 2001)),
        uplink(
            PortUnplugged,
            "out of a tunnel",
            arriving(2, vni(1), &Packet::switched(15, 17, true).build()),
        ),
        uplink(Ipv4Checksum, "out of a tunnel", vxlan_edited(&[(50 + 24, 0), (50 + 25, 0)])),
    ]);
    cases
}

/// What security groups, translation and the rules for fragments refuse.
fn connections() -> Vec<Case> {
    use DropReason::*;
    let udp = |sport, dport| Transport::Udp { sport, dport };
    let echo = Transport::Echo { request: true, id: 7 };
    let error = Transport::Icmp { kind: 3, code: 3, rest: [0; 4] };
    let reset = Transport::Tcp { sport: 1, dport: 2000, seq: 3, ack: None, syn: false, rst: true };
    let case = |reason, name, at, packet: Packet| Case { reason, name, at, frame: packet.build() };
    // Flags and offset of a fragment, in its header's seventh and eighth byte.
    let fragment = |len, bytes: [u8; 2]| {
        checked(Packet::routed(11, port_v4(21)).len(len).build(), &[(20, bytes[0]), (21, bytes[1])])
    };
    let piece = |reason, name, frame| Case { reason, name, at: "p11", frame };
    let outside = |transport| Packet::routed(11, v4(BEHIND, 5)).transport(transport);
    vec![
        case(
            PolicyEgress,
            "no rule for ICMP",
            "p74",
            Packet::routed(74, port_v4(21)).transport(echo.clone()),
        ),
        case(PolicyEgress, "IPv6", "p74", Packet::routed(74, port_v6(21)).transport(echo.clone())),
        case(PolicyIngress, "another port", "p11", Packet::routed(11, port_v4(71)).transport(udp(1, 2002))),
        case(
            PolicyIngress,
            "another protocol",
            "p11",
            Packet::routed(11, port_v4(74)).transport(Transport::Other(132)),
        ),
        case(
            PolicyIngress,
            "a remote that is not in the group",
            "p31",
            Packet::routed(31, port_v4(71)).transport(echo),
        ),
        case(PolicyIngress, "switched", "p72", Packet::switched(72, 74, true).transport(udp(1, 2001))),
        case(IcmpUnrelated, "about nothing", "p71", Packet::routed(71, port_v4(21)).transport(error)),
        case(TcpUnrelated, "a reset out of nothing", "p71", Packet::routed(71, port_v4(21)).transport(reset)),
        case(
            NatProtocol,
            "a timestamp request",
            "p11",
            outside(Transport::Icmp { kind: 13, code: 0, rest: [0; 4] }),
        ),
        piece(FragmentTiny, "not a multiple of eight bytes", fragment(17, [0x20, 0])),
        piece(FragmentUnmatched, "without a first", fragment(16, [0x20, 9])),
        piece(FragmentTooLong, "beyond any datagram", fragment(16, [0x1f, 0xff])),
    ]
}

#[test]
fn every_reason_is_counted_once() {
    with_world(|world| {
        use DropReason::{ArpMalformed, NdMalformed, PortUnknown};
        let mut seen = BTreeSet::new();
        let cases = malformed().into_iter().chain(senders()).chain(destinations()).chain(connections());
        for Case { reason, name, at, frame } in cases {
            seen.insert(reason);
            for via in Via::BOTH.into_iter().filter(|via| via.runs(&frame)) {
                world.forget_flows();
                // A second packet finds the same, whether or not the first left an entry.
                for packet in 1..=2 {
                    let context = format!("{} ({name}) by {via:?}, packet {packet}", reason.name());
                    let bytes = world.dropped_bytes();
                    let (ran, mut counts) = world.run_counted(via, at, &frame);
                    let read = reason >= PortUnknown
                        || matches!(reason, NdMalformed | ArpMalformed) && !name.starts_with("short");
                    if via == Via::Xdp && at != UPLINK && read && left_by_xdp(&frame).len() == 1 {
                        assert_eq!((ran.verdict, counts), (XDP_PASS, left_by_xdp(&frame)), "{context}");
                        continue;
                    }
                    counts.remove("flow_miss");
                    assert_eq!(ran.verdict, via.drop(), "{context}: verdict; {counts:?}");
                    assert_eq!(counts, Counts::from([(reason.name(), 1)]), "{context}: counters");
                    let bytes = world.dropped_bytes() - bytes;
                    assert_eq!(bytes, frame.len() as u64, "{context}: bytes");
                }
            }
        }
        seen.extend(ANSWERED);
        seen.extend(NOT_PROVOKED);
        seen.extend(BY_SEVERAL);
        let missing: Vec<_> = DropReason::ALL.iter().filter(|reason| !seen.contains(reason)).collect();
        assert!(missing.is_empty(), "nothing provokes {missing:?}");
    });
}

/// What anti-spoofing must let through.
#[test]
fn allowed_senders() {
    with_world(|world| {
        let mac = port_mac(11);
        let dhcp = Packet {
            src: Ipv4Addr::UNSPECIFIED.into(),
            dst_mac: BROADCAST,
            ..Packet::routed(11, Ipv4Addr::BROADCAST)
        }
        .transport(Transport::Udp { sport: 68, dport: 67 });
        let pair = Packet { src: v4(1, 200).into(), ..Packet::routed(12, port_v4(21)) };
        let link_local_neighbour = Packet {
            src: link_local(mac).into(),
            dst: link_local(port_mac(12)).into(),
            ..Packet::switched(11, 12, true)
        };
        let unchecked =
            Packet { src_mac: [2, 9, 9, 9, 9, 9], src: v4(1, 77).into(), ..Packet::routed(11, port_v4(21)) };
        let reply = arp(port_mac(12), mac, 2, (mac, port_v4(11)), (port_mac(12), port_v4(12)));
        for (name, at, frame, verdict) in [
            ("an allowed pair", "p12", pair.build(), TC_ACT_REDIRECT),
            ("no security", "p19", unchecked.build(), TC_ACT_REDIRECT),
            ("link-local", "p11", link_local_neighbour.build(), TC_ACT_REDIRECT),
            ("an ARP reply, switched", "p11", reply, TC_ACT_REDIRECT),
            ("DHCP discovery, flooded", "p11", dhcp.build(), TC_ACT_SHOT),
        ] {
            let (ran, counts) = world.run_counted(Via::Tc, at, &frame);
            assert_eq!(ran.verdict, verdict, "{name}: {counts:?}");
            let mut want = Counts::from([("flow_miss", 1)]);
            if verdict == TC_ACT_SHOT {
                want.insert("frame_flooded", 1);
            }
            assert_eq!(counts, want, "{name}");
        }
    });
}
