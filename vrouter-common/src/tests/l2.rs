//! Switching within a network; ARP and neighbour discovery answered in place.

use core::net::IpAddr;

use super::fixture::*;
use crate::{
    addr::Ip,
    memory::{Entry, Verdict},
    reason::{DropReason, Event},
    tables::*,
    wire::*,
};

const ANY6: IpAddr = IpAddr::V6(core::net::Ipv6Addr::UNSPECIFIED);

#[test]
fn l1_two_ports_of_one_network_reach_each_other() {
    for f in BOTH {
        let tables = tables();
        let frame = Pkt::udp(f, (1, 11), (1, 12)).frame();
        for _ in 0..2 {
            assert_eq!(sent(run(&tables, Entry::Port(WEB1), &frame)), (WEB2, frame.clone()));
        }
        let back = Pkt::udp(f, (1, 12), (1, 11)).frame();
        assert_eq!(sent(run(&tables, Entry::Port(WEB2), &back)), (WEB1, back));
    }
}

#[test]
fn l1_a_port_of_another_node_is_reached_through_a_tunnel_and_reaches_back() {
    for f in BOTH {
        let tables = tables();
        let frame = Pkt::udp(f, (1, 11), (1, 13)).frame();
        let (ifindex, out) = sent(run(&tables, Entry::Port(WEB1), &frame));
        assert_eq!(ifindex, UPLINK);
        assert_eq!(inner(&out), (1001, frame));
        let back = Pkt::udp(f, (1, 13), (1, 11)).frame();
        for _ in 0..2 {
            let verdict = run(&tables, Entry::Uplink, &vxlan(VTEP2, 1001, &back));
            assert_eq!(sent(verdict), (WEB1, back.clone()));
        }
    }
}

#[test]
fn l1_networks_with_the_same_addresses_never_leak() {
    for f in BOTH {
        let tables = tables();
        // The very same bytes, on two networks: each reaches its own network's station.
        let frame = Pkt::udp(f, (1, 11), (1, 12)).frame();
        for _ in 0..2 {
            assert_eq!(sent(run(&tables, Entry::Port(WEB1), &frame)).0, WEB2);
            assert_eq!(sent(run(&tables, Entry::Port(OTHER2), &frame)).0, OTHER1);
            for (vni, ifindex) in [(1001, WEB2), (1003, OTHER1)] {
                assert_eq!(sent(run(&tables, Entry::Uplink, &vxlan(VTEP2, vni, &frame))).0, ifindex);
            }
        }
    }
}

#[test]
fn l1_a_station_of_another_network_is_unknown() {
    for f in BOTH {
        let tables = tables();
        for (entry, pkt) in [
            (WEB1, Pkt::udp(f, (1, 11), (4, 11)).via(port_mac(4, 11))),
            (ISLAND1, Pkt::udp(f, (4, 11), (1, 11)).via(port_mac(1, 11))),
            (ISLAND1, Pkt::udp(f, (4, 11), (1, 11)).via(router_mac(1, 1))),
        ] {
            let verdict = run(&tables, Entry::Port(entry), &pkt.frame());
            assert_eq!(verdict, Verdict::Dropped(DropReason::MacUnknown));
        }
        let island = Pkt::udp(f, (4, 11), (4, 12)).frame();
        assert_eq!(sent(run(&tables, Entry::Port(ISLAND1), &island)).0, ISLAND2);
        // Misdelivered by the other node: a station of another network, and one that is not here.
        for frame in [island, Pkt::udp(f, (1, 11), (1, 13)).frame()] {
            let verdict = run(&tables, Entry::Uplink, &vxlan(VTEP2, 1001, &frame));
            assert_eq!(verdict, Verdict::Dropped(DropReason::TunnelMisdelivered));
        }
    }
}

#[test]
fn l1_a_port_without_an_interface_is_named_as_the_reason() {
    for f in BOTH {
        let tables = tables();
        for (host, reason) in [(14, DropReason::PortUnplugged), (15, DropReason::PortUnbound)] {
            let frame = Pkt::udp(f, (1, 11), (1, host)).frame();
            assert_eq!(run(&tables, Entry::Port(WEB1), &frame), Verdict::Dropped(reason));
        }
        let frame = Pkt::udp(f, (1, 13), (1, 14)).frame();
        let verdict = run(&tables, Entry::Uplink, &vxlan(VTEP2, 1001, &frame));
        assert_eq!(verdict, Verdict::Dropped(DropReason::PortUnplugged));
        let own = Pkt::udp(f, (1, 11), (1, 11)).frame();
        assert_eq!(run(&tables, Entry::Port(WEB1), &own), Verdict::Dropped(DropReason::Hairpin));
        assert_eq!(run(&tables, Entry::Port(99), &own), Verdict::Dropped(DropReason::PortUnknown));
    }
}

#[test]
fn l1_a_node_without_a_resolved_way_is_left_to_the_kernel_or_named() {
    for f in BOTH {
        let tables = tables();
        for _ in 0..2 {
            let frame = Pkt::udp(f, (1, 11), (1, 17)).frame();
            match run(&tables, Entry::Port(WEB1), &frame) {
                Verdict::SentToNeighbour { ifindex, nexthop, frame: out } => {
                    assert_eq!((ifindex, nexthop), (UPLINK, be32([192, 0, 2, 3])));
                    assert_eq!(inner(&out), (1001, frame));
                }
                other => panic!("{other:?}"),
            }
            let frame = Pkt::udp(f, (1, 11), (1, 18)).frame();
            let verdict = run(&tables, Entry::Port(WEB1), &frame);
            assert_eq!(verdict, Verdict::Dropped(DropReason::UnderlayUnreachable));
        }
    }
}

#[test]
fn l2_arp_for_a_known_address_is_answered_once_and_not_flooded() {
    let tables = tables();
    let me = (port_mac(1, 11), ip(Family::V4, 1, 11));
    for (host, mac) in
        [(12, port_mac(1, 12)), (13, port_mac(1, 13)), (14, port_mac(1, 14)), (1, router_mac(1, 1))]
    {
        let target = ip(Family::V4, 1, host);
        // Asked by broadcast, and by unicast as a neighbour table verifies its entries.
        for dst in [BROADCAST, mac] {
            let (answer, refused) = answered(run(&tables, Entry::Port(WEB1), &arp(dst, me.0, 1, me, target)));
            assert_eq!(refused, None);
            let mut expected = arp(me.0, mac, 2, (mac, target), me.1);
            expected[32..38].copy_from_slice(&me.0);
            assert_eq!(answer, expected);
        }
    }
    assert_eq!(tables.events.borrow()[&Event::ArpAnswered], 8);
    assert!(!tables.events.borrow().contains_key(&Event::FrameFlooded));
    assert!(tables.transients().is_empty());
}

#[test]
fn l2_arp_is_answered_from_the_askers_own_network() {
    let tables = tables();
    // web has 10.0.1.12 as well, elsewhere; island has nobody there.
    let me = (port_mac(1, 11), ip(Family::V4, 1, 11));
    let asked = arp(BROADCAST, me.0, 1, me, ip(Family::V4, 1, 13));
    assert_eq!(run(&tables, Entry::Port(OTHER2), &asked).flooded(), Some(OTHER));
    let me = (port_mac(4, 11), ip(Family::V4, 4, 11));
    let asked = arp(BROADCAST, me.0, 1, me, ip(Family::V4, 1, 12));
    assert_eq!(run(&tables, Entry::Port(ISLAND1), &asked).flooded(), Some(ISLAND));
}

#[test]
fn l2_arp_for_an_unknown_or_own_address_is_flooded_and_its_reply_switched() {
    let tables = tables();
    let me = (port_mac(1, 11), ip(Family::V4, 1, 11));
    for host in [99, 11] {
        let asked = arp(BROADCAST, me.0, 1, me, ip(Family::V4, 1, host));
        assert_eq!(run(&tables, Entry::Port(WEB1), &asked).flooded(), Some(WEB));
    }
    // An announcement in the form of a reply.
    let announced = arp(BROADCAST, me.0, 2, me, me.1);
    assert_eq!(run(&tables, Entry::Port(WEB1), &announced).flooded(), Some(WEB));
    let reply = arp(port_mac(1, 12), me.0, 2, me, ip(Family::V4, 1, 12));
    assert_eq!(sent(run(&tables, Entry::Port(WEB1), &reply)), (WEB2, reply));
    let reply = arp(port_mac(1, 13), me.0, 2, me, ip(Family::V4, 1, 13));
    let (ifindex, out) = sent(run(&tables, Entry::Port(WEB1), &reply));
    assert_eq!((ifindex, inner(&out)), (UPLINK, (1001, reply)));
    let reply = arp(router_mac(1, 1), me.0, 2, me, ip(Family::V4, 1, 1));
    assert_eq!(run(&tables, Entry::Port(WEB1), &reply), Verdict::Dropped(DropReason::RouterIgnored));
    let reply = arp(me.0, me.0, 2, me, me.1);
    assert_eq!(run(&tables, Entry::Port(WEB1), &reply), Verdict::Dropped(DropReason::Hairpin));
    let reply = arp(port_mac(9, 9), me.0, 2, me, me.1);
    assert_eq!(run(&tables, Entry::Port(WEB1), &reply), Verdict::Dropped(DropReason::MacUnknown));
    assert!(tables.transients().is_empty());
}

#[test]
fn l2_arp_from_another_node_reaches_its_port() {
    let tables = tables();
    let remote = (port_mac(1, 13), ip(Family::V4, 1, 13));
    let reply = arp(port_mac(1, 11), remote.0, 2, remote, ip(Family::V4, 1, 11));
    assert_eq!(sent(run(&tables, Entry::Uplink, &vxlan(VTEP2, 1001, &reply))), (WEB1, reply));
    let asked = arp(BROADCAST, remote.0, 1, remote, ip(Family::V4, 1, 11));
    // Answered where it was asked, or flooded because nobody knew: never answered a second time here.
    assert_eq!(run(&tables, Entry::Uplink, &vxlan(VTEP2, 1001, &asked)).flooded(), Some(WEB));
    assert!(tables.transients().is_empty());
}

#[test]
fn l2_an_arp_probe_for_an_address_in_use_is_answered() {
    let tables = tables();
    let probe = (port_mac(1, 11), IpAddr::from([0; 4]));
    let (answer, refused) =
        answered(run(&tables, Entry::Port(WEB1), &arp(BROADCAST, probe.0, 1, probe, ip(Family::V4, 1, 12))));
    assert_eq!(refused, None);
    assert_eq!(answer[22..32], [port_mac(1, 12).as_slice(), &[10, 0, 1, 12]].concat());
    let own = arp(BROADCAST, probe.0, 1, probe, ip(Family::V4, 1, 11));
    assert_eq!(run(&tables, Entry::Port(WEB1), &own).flooded(), Some(WEB));
}

#[test]
fn l2_arp_that_is_not_ethernet_and_ipv4_is_malformed() {
    let tables = tables();
    let me = (port_mac(1, 11), ip(Family::V4, 1, 11));
    let good = arp(BROADCAST, me.0, 1, me, ip(Family::V4, 1, 12));
    for (at, byte) in [(15, 2), (16, 9), (18, 8), (19, 16), (21, 3), (21, 0)] {
        let mut bad = good.clone();
        bad[at] = byte;
        let verdict = run(&tables, Entry::Port(WEB1), &bad);
        assert_eq!(verdict, Verdict::Dropped(DropReason::ArpMalformed), "byte {at}");
    }
    let verdict = run(&tables, Entry::Port(WEB1), &good[..41]);
    assert_eq!(verdict, Verdict::Dropped(DropReason::ArpMalformed));
    assert!(matches!(run(&tables, Entry::Port(WEB1), &good[..42]), Verdict::Answered { .. }));
}

/// What an advertisement says: target, flags, link-layer address.
fn advert(frame: &[u8]) -> (IpAddr, u8, Mac) {
    let l4 = read(frame).l4;
    assert_eq!((l4.len(), l4[0], l4[1], l4[24], l4[25]), (32, ND_NEIGHBOR_ADVERT, 0, 2, 1));
    let target: [u8; 16] = l4[8..24].try_into().unwrap();
    (target.into(), l4[4], l4[26..32].try_into().unwrap())
}

#[test]
fn l2_nd_for_a_known_address_is_answered_once_and_not_flooded() {
    let tables = tables();
    let f = Family::V6;
    for (target, mac, flags) in [
        (ip(f, 1, 12), port_mac(1, 12), 0x60),
        (ip(f, 1, 13), port_mac(1, 13), 0x60),
        (link_local(port_mac(1, 12)), port_mac(1, 12), 0x60),
        (ip(f, 1, 1), router_mac(1, 1), 0xe0),
        (link_local(router_mac(1, 1)), router_mac(1, 1), 0xe0),
    ] {
        for source in [ip(f, 1, 11), link_local(port_mac(1, 11))] {
            let me = (port_mac(1, 11), source);
            let unicast = nd(ND_NEIGHBOR_SOLICIT, me, (mac, target), target, None);
            for asked in [solicit(me, target), unicast] {
                let (answer, refused) = answered(run(&tables, Entry::Port(WEB1), &asked.frame()));
                assert_eq!(refused, None);
                let ip = read(&answer);
                assert_eq!((ip.dst_mac, ip.src_mac, ip.ttl), (me.0, mac, 255));
                assert_eq!((ip.src, ip.dst), (target, source));
                assert_eq!(advert(&answer), (target, flags, mac));
                assert_eq!(answer.len(), 86);
            }
        }
    }
    assert!(!tables.events.borrow().contains_key(&Event::FrameFlooded));
    assert!(tables.transients().is_empty());
}

#[test]
fn l2_nd_for_an_unknown_or_own_address_is_flooded() {
    let tables = tables();
    let me = (port_mac(1, 11), ip(Family::V6, 1, 11));
    for target in [ip(Family::V6, 1, 99), me.1] {
        let asked = solicit(me, target).frame();
        assert_eq!(run(&tables, Entry::Port(WEB1), &asked).flooded(), Some(WEB));
    }
}

#[test]
fn l2_duplicate_address_detection_is_answered_to_all_nodes() {
    let tables = tables();
    let me = (port_mac(1, 11), ANY6);
    let (answer, refused) =
        answered(run(&tables, Entry::Port(WEB1), &solicit(me, ip(Family::V6, 1, 12)).frame()));
    assert_eq!(refused, None);
    let read = read(&answer);
    assert_eq!(read.dst_mac, [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(read.dst, "ff02::1".parse::<IpAddr>().unwrap());
    // Not solicited: there was no address to solicit from.
    assert_eq!(advert(&answer), (ip(Family::V6, 1, 12), 0x20, port_mac(1, 12)));
    let own = solicit(me, ip(Family::V6, 1, 11)).frame();
    assert_eq!(run(&tables, Entry::Port(WEB1), &own).flooded(), Some(WEB));
}

#[test]
fn l2_malformed_nd_is_dropped() {
    let tables = tables();
    let me = (port_mac(1, 11), ip(Family::V6, 1, 11));
    let target = ip(Family::V6, 1, 12);
    let good = solicit(me, target);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut pkt = good.clone();
        let L4::Icmp { payload, .. } = &mut pkt.l4 else { unreachable!() };
        change(payload);
        pkt
    };
    let mut code = good.clone();
    let L4::Icmp { code: field, .. } = &mut code.l4 else { unreachable!() };
    *field = 1;
    for bad in [
        good.clone().ttl(254),
        code,
        with(&|payload| payload.truncate(15)),
        with(&|payload| payload[17] = 0),
        with(&|payload| payload[17] = 2),
        with(&|payload| payload[..16].copy_from_slice(&[0xff; 16])),
        with(&|payload| payload[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff])),
        // More options than are walked.
        with(&|payload| payload.extend([14, 1, 0, 0, 0, 0, 0, 0].repeat(4))),
    ] {
        // Without port security nobody has looked before: options aside, the same holds.
        let verdict = run(&tables, Entry::Port(WEB1), &bad.frame());
        assert_eq!(verdict, Verdict::Dropped(DropReason::NdMalformed), "{bad:?}");
    }
    let four = with(&|payload| payload.extend([14, 1, 0, 0, 0, 0, 0, 0].repeat(3)));
    assert!(matches!(run(&tables, Entry::Port(WEB1), &four.frame()), Verdict::Answered { .. }));
}

#[test]
fn l5_broadcast_and_multicast_are_flooded_on_their_network_alone() {
    for f in BOTH {
        let tables = tables();
        let pkt = Pkt::udp(f, (1, 11), (1, 12));
        let group: IpAddr =
            if f == Family::V4 { [224, 0, 0, 251].into() } else { "ff02::fb".parse().unwrap() };
        let mut cases =
            vec![pkt.clone().to(group).via([0x33, 0x33, 0, 0, 0, 0xfb]), pkt.clone().via(BROADCAST)];
        if f == Family::V4 {
            cases.push(pkt.to([255; 4].into()).via(BROADCAST));
        }
        for pkt in cases {
            for _ in 0..2 {
                let frame = pkt.frame();
                for (ifindex, network) in [(WEB1, WEB), (OTHER2, OTHER)] {
                    assert_eq!(run(&tables, Entry::Port(ifindex), &frame).flooded(), Some(network));
                }
                let verdict = run(&tables, Entry::Uplink, &vxlan(VTEP2, 1003, &frame));
                assert_eq!(verdict.flooded(), Some(OTHER));
            }
        }
        assert!(tables.transients().is_empty());
    }
}

#[test]
fn l2_an_announced_address_is_told_by_the_topology() {
    // The address table decides, whoever has it: here another port's.
    let mut b = builder();
    let key = AddressKey::new(0, WEB, Ip::from(ip(Family::V4, 1, 50)));
    let station = b.image.fdb[&FdbKey::new(0, WEB, port_mac(1, 12))];
    b.image.addresses.insert(key, station);
    let tables = b.tables();
    let me = (port_mac(1, 11), ip(Family::V4, 1, 11));
    let asked = arp(BROADCAST, me.0, 1, me, ip(Family::V4, 1, 50));
    let (answer, _) = answered(run(&tables, Entry::Port(WEB1), &asked));
    assert_eq!(answer[22..28], port_mac(1, 12));
    assert_eq!(station.kind, STATION_PORT);
}
