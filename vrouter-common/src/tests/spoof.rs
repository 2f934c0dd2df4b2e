//! What a port may claim to be.

use core::net::IpAddr;

use super::fixture::*;
use crate::{
    memory::{Entry, MemoryTables, Verdict},
    reason::DropReason,
    wire::*,
};

const ANY6: IpAddr = IpAddr::V6(core::net::Ipv6Addr::UNSPECIFIED);
const ANY4: IpAddr = IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED);
/// `port_mac(1, 11)`
const ME: Mac = [2, 0, 1, 0, 0, 11];

#[track_caller]
fn dropped(tables: &MemoryTables, pkt: &Pkt, reason: DropReason) {
    for _ in 0..2 {
        assert_eq!(run(tables, Entry::Port(WEB1), &pkt.frame()), Verdict::Dropped(reason));
    }
}

#[test]
fn l3_a_foreign_source_mac_is_refused() {
    for f in BOTH {
        let tables = tables();
        for dst in [(1, 12), (2, 11)] {
            let mut pkt = Pkt::udp(f, (1, 11), dst);
            // The honest flow is there, and does not help.
            sent(run(&tables, Entry::Port(WEB1), &pkt.frame()));
            for mac in [port_mac(1, 12), router_mac(1, 1), [2, 9, 9, 9, 9, 9]] {
                pkt.src_mac = mac;
                dropped(&tables, &pkt, DropReason::SpoofedMac);
            }
        }
    }
}

#[test]
fn l3_a_foreign_source_address_is_refused() {
    for f in BOTH {
        let tables = tables();
        for dst in [(1, 12), (1, 13), (2, 11), (6, 11)] {
            for src in [ip(f, 1, 12), ip(f, 1, 1), ip(f, 2, 11), ip(f, 1, 255)] {
                dropped(&tables, &Pkt::udp(f, (1, 11), dst).from(src), DropReason::SpoofedIp);
            }
            dropped(
                &tables,
                &Pkt::udp(f, (1, 11), dst).from(ip(f, 1, 12)).via(BROADCAST),
                DropReason::SpoofedIp,
            );
        }
    }
}

#[test]
fn l3_an_invalid_source_mac_is_refused() {
    let tables = tables();
    for mac in [[0; 6], [1, 0, 0, 0, 0, 1], BROADCAST] {
        let mut pkt = Pkt::udp(Family::V4, (1, 11), (1, 12));
        pkt.src_mac = mac;
        dropped(&tables, &pkt, DropReason::EthernetSource);
        let verdict = run(&tables, Entry::Port(WEB_OPEN), &pkt.frame());
        assert_eq!(verdict, Verdict::Dropped(DropReason::EthernetSource));
    }
}

#[test]
fn l3_arp_must_speak_for_its_sender() {
    let tables = tables();
    let mine = ip(Family::V4, 1, 11);
    let theirs = ip(Family::V4, 1, 12);
    for operation in [1, 2] {
        for (src, sender, reason) in [
            (ME, (ME, theirs), DropReason::SpoofedArp),
            (ME, (port_mac(1, 12), mine), DropReason::SpoofedArp),
            (ME, (port_mac(1, 12), theirs), DropReason::SpoofedArp),
            (port_mac(1, 12), (ME, mine), DropReason::SpoofedArp),
            (port_mac(1, 12), (port_mac(1, 12), mine), DropReason::SpoofedMac),
            (port_mac(1, 12), (port_mac(1, 12), theirs), DropReason::SpoofedMac),
            (port_mac(1, 12), (port_mac(1, 12), ANY4), DropReason::SpoofedMac),
        ] {
            for target in [ip(Family::V4, 1, 1), ip(Family::V4, 1, 99), sender.1] {
                let frame = arp(BROADCAST, src, operation, sender, target);
                assert_eq!(run(&tables, Entry::Port(WEB1), &frame), Verdict::Dropped(reason));
            }
        }
    }
}

#[test]
fn l3_an_advertisement_must_speak_for_its_target() {
    let tables = tables();
    let me = (ME, ip(Family::V6, 1, 11));
    let to = (port_mac(1, 12), ip(Family::V6, 1, 12));
    let good = nd(ND_NEIGHBOR_ADVERT, me, to, me.1, Some((2, ME)));
    let theirs = nd(ND_NEIGHBOR_ADVERT, me, to, ip(Family::V6, 1, 1), Some((2, ME)));
    dropped(&tables, &theirs, DropReason::SpoofedNd);
    assert_eq!(sent(run(&tables, Entry::Port(WEB1), &good.frame())).0, WEB2);
    // An honest one before changes nothing.
    dropped(&tables, &theirs, DropReason::SpoofedNd);
    let option = nd(ND_NEIGHBOR_ADVERT, me, to, me.1, Some((2, router_mac(1, 1))));
    dropped(&tables, &option, DropReason::SpoofedNd);
    dropped(&tables, &good.clone().ttl(254), DropReason::NdMalformed);
    // The same to everybody.
    let all = ([0x33, 0x33, 0, 0, 0, 1], "ff02::1".parse().unwrap());
    let announced = nd(ND_NEIGHBOR_ADVERT, me, all, me.1, Some((2, ME)));
    assert_eq!(run(&tables, Entry::Port(WEB1), &announced.frame()).flooded(), Some(WEB));
    let theirs = nd(ND_NEIGHBOR_ADVERT, me, all, to.1, Some((2, ME)));
    dropped(&tables, &theirs, DropReason::SpoofedNd);
}

#[test]
fn l3_a_solicitation_must_carry_its_senders_link_layer_address() {
    let tables = tables();
    let me = (ME, ip(Family::V6, 1, 11));
    for target in [ip(Family::V6, 1, 12), ip(Family::V6, 1, 99)] {
        let bad = nd(ND_NEIGHBOR_SOLICIT, me, solicited(target), target, Some((1, port_mac(1, 12))));
        dropped(&tables, &bad, DropReason::SpoofedNd);
    }
    // By unicast, behind another option, and after an honest one.
    let target = ip(Family::V6, 1, 99);
    let to = (port_mac(1, 12), ip(Family::V6, 1, 12));
    let good = nd(ND_NEIGHBOR_SOLICIT, me, to, target, Some((1, ME)));
    sent(run(&tables, Entry::Port(WEB1), &good.frame()));
    let mut bad = nd(ND_NEIGHBOR_SOLICIT, me, to, target, Some((14, ME)));
    let L4::Icmp { payload, .. } = &mut bad.l4 else { unreachable!() };
    payload.extend([1, 1]);
    payload.extend(router_mac(1, 1));
    dropped(&tables, &bad, DropReason::SpoofedNd);
}

#[test]
fn l3_a_unicast_solicitation_is_answered_after_one_that_was_switched() {
    let tables = tables();
    let me = (ME, ip(Family::V6, 1, 11));
    let to = (port_mac(1, 12), ip(Family::V6, 1, 12));
    let unknown = nd(ND_NEIGHBOR_SOLICIT, me, to, ip(Family::V6, 1, 99), Some((1, ME)));
    sent(run(&tables, Entry::Port(WEB1), &unknown.frame()));
    let known = nd(ND_NEIGHBOR_SOLICIT, me, to, to.1, Some((1, ME)));
    answered(run(&tables, Entry::Port(WEB1), &known.frame()));
    assert!(tables.transients().is_empty());
}

#[test]
fn l3_a_port_is_no_dhcp_server() {
    for (f, sport, dport) in [(Family::V4, 67, 68), (Family::V6, 547, 546)] {
        let tables = tables();
        let offer = Pkt::udp(f, (1, 11), (1, 12)).ports(sport, dport);
        dropped(&tables, &offer, DropReason::RogueDhcp);
        dropped(&tables, &offer.clone().via(BROADCAST), DropReason::RogueDhcp);
        // Cut into fragments it is the same offer.
        let payload = vec![0; 16];
        let first = offer.clone().l4(L4::Udp { sport, dport, payload }).piece(9, 0, true);
        dropped(&tables, &first, DropReason::RogueDhcp);
        // Clients take it from whatever port it comes.
        dropped(&tables, &offer.clone().ports(1067, dport), DropReason::RogueDhcp);
        let ask = offer.ports(dport, sport);
        sent(run(&tables, Entry::Port(WEB1), &ask.frame()));
        // Behind a router that is any other port.
        let far = Pkt::udp(f, (1, 11), (2, 11));
        dropped(&tables, &far.clone().ports(sport, dport), DropReason::RogueDhcp);
        sent(run(&tables, Entry::Port(WEB1), &far.ports(1067, dport).frame()));
    }
}

#[test]
fn l3_a_port_is_no_ipv6_router() {
    let tables = tables();
    let me = (ME, link_local(ME));
    let all = ([0x33, 0x33, 0, 0, 0, 1], "ff02::1".parse().unwrap());
    let one = (port_mac(1, 12), ip(Family::V6, 1, 12));
    for to in [all, one] {
        for kind in [ND_ROUTER_ADVERT, ND_REDIRECT] {
            let mut pkt = nd(kind, me, to, me.1, Some((1, ME)));
            dropped(&tables, &pkt, DropReason::RogueRa);
            // Behind extension headers, or the first of two fragments.
            pkt.extensions = vec![(PROTO_DSTOPTS, vec![0; 8])];
            dropped(&tables, &pkt, DropReason::RogueRa);
            pkt.extensions.push((PROTO_FRAGMENT, vec![0, 0, 0, 1, 0, 0, 0, 9]));
            dropped(&tables, &pkt, DropReason::RogueRa);
        }
        let solicit = nd(ND_ROUTER_SOLICIT, me, all, me.1, None);
        assert_eq!(run(&tables, Entry::Port(WEB1), &solicit.frame()).flooded(), Some(WEB));
    }
}

#[test]
fn l3_allowed_address_pairs_may_be_used_with_their_own_mac_alone() {
    for f in BOTH {
        let mut b = builder();
        let vrrp = [0, 0, 0x5e, 0, 1, 7];
        // Port 1 is web's first: a prefix with another hardware address, one address with its own.
        let len = 96 + 28;
        b.allow(1, vrrp, ip(f, 1, 0x40), len);
        b.allow(1, ME, ip(f, 1, 0x60), 128);
        let tables = b.tables();
        let from = |mac, host| {
            let mut pkt = Pkt::udp(f, (1, 11), (1, 12)).from(ip(f, 1, host));
            pkt.src_mac = mac;
            pkt
        };
        for (mac, host) in [(vrrp, 0x40), (vrrp, 0x4f), (ME, 0x60), (ME, 11)] {
            let frame = from(mac, host).frame();
            assert_eq!(sent(run(&tables, Entry::Port(WEB1), &frame)), (WEB2, frame));
        }
        dropped(&tables, &from(vrrp, 0x50), DropReason::SpoofedMac);
        dropped(&tables, &from(vrrp, 11), DropReason::SpoofedMac);
        dropped(&tables, &from(ME, 0x41), DropReason::SpoofedIp);
        if f == Family::V4 {
            let announce = |mac, host| {
                let sender = (mac, ip(f, 1, host));
                run(&tables, Entry::Port(WEB1), &arp(BROADCAST, mac, 2, sender, sender.1))
            };
            assert_eq!(announce(vrrp, 0x4f).flooded(), Some(WEB));
            assert_eq!(announce(vrrp, 0x50), Verdict::Dropped(DropReason::SpoofedMac));
            assert_eq!(announce(ME, 0x40), Verdict::Dropped(DropReason::SpoofedArp));
        } else {
            let all = ([0x33, 0x33, 0, 0, 0, 1], "ff02::1".parse().unwrap());
            let announce = |mac, host| {
                let me = (mac, ip(f, 1, host));
                let pkt = nd(ND_NEIGHBOR_ADVERT, me, all, me.1, Some((2, mac)));
                run(&tables, Entry::Port(WEB1), &pkt.frame())
            };
            assert_eq!(announce(vrrp, 0x4f).flooded(), Some(WEB));
            assert_eq!(announce(vrrp, 0x50), Verdict::Dropped(DropReason::SpoofedMac));
            assert_eq!(announce(ME, 0x60).flooded(), Some(WEB));
        }
    }
}

#[test]
fn l3_the_unspecified_source_is_for_dhcp_and_address_detection_alone() {
    let tables = tables();
    let discover =
        Pkt::udp(Family::V4, (1, 11), (1, 12)).from(ANY4).to([255; 4].into()).via(BROADCAST).ports(68, 67);
    assert_eq!(run(&tables, Entry::Port(WEB1), &discover.frame()).flooded(), Some(WEB));
    dropped(&tables, &discover.clone().ports(68, 68), DropReason::SpoofedIp);
    dropped(&tables, &discover.clone().ping(1, b""), DropReason::SpoofedIp);
    let payload = vec![0; 16];
    let fragment = discover.clone().l4(L4::Udp { sport: 68, dport: 67, payload }).piece(9, 0, true);
    dropped(&tables, &fragment, DropReason::SpoofedIp);
    let mut foreign = discover;
    foreign.src_mac = port_mac(1, 12);
    dropped(&tables, &foreign, DropReason::SpoofedMac);

    let me = (ME, ANY6);
    let probe = solicit(me, ip(Family::V6, 1, 11));
    assert_eq!(run(&tables, Entry::Port(WEB1), &probe.frame()).flooded(), Some(WEB));
    let mut report = probe.clone().icmp(143, 0, &[0; 20]);
    report.extensions = vec![(PROTO_HOPOPTS, vec![0, 0, 5, 2, 0, 0, 1, 0])];
    assert_eq!(run(&tables, Entry::Port(WEB1), &report.frame()).flooded(), Some(WEB));
    dropped(&tables, &probe.clone().ports(546, 547), DropReason::SpoofedIp);
    dropped(&tables, &probe.clone().ping(1, b""), DropReason::SpoofedIp);
    let mut foreign = probe;
    foreign.src_mac = port_mac(1, 12);
    dropped(&tables, &foreign, DropReason::SpoofedMac);
}

#[test]
fn l3_without_port_security_a_port_may_claim_anything() {
    for f in BOTH {
        let tables = tables();
        let mut pkt = Pkt::udp(f, (1, 16), (1, 12)).from(ip(f, 77, 7));
        pkt.src_mac = [2, 7, 7, 7, 7, 7];
        let frame = pkt.frame();
        assert_eq!(sent(run(&tables, Entry::Port(WEB_OPEN), &frame)), (WEB2, frame));
        // It may route for others.
        let routed = Pkt { dst_mac: router_mac(1, 1), dst: ip(f, 2, 11), ..pkt.clone() };
        assert_eq!(sent(run(&tables, Entry::Port(WEB_OPEN), &routed.frame())).0, DB1);
        let (sport, dport) = if f == Family::V4 { (67, 68) } else { (547, 546) };
        sent(run(&tables, Entry::Port(WEB_OPEN), &pkt.ports(sport, dport).frame()));
    }
    let tables = tables();
    let claim = ([2, 7, 7, 7, 7, 7], ip(Family::V4, 1, 1));
    let frame = arp(BROADCAST, claim.0, 2, claim, claim.1);
    assert_eq!(run(&tables, Entry::Port(WEB_OPEN), &frame).flooded(), Some(WEB));
    let all = ([0x33, 0x33, 0, 0, 0, 1], "ff02::1".parse().unwrap());
    let me = (claim.0, link_local(claim.0));
    for kind in [ND_ROUTER_ADVERT, ND_REDIRECT, ND_NEIGHBOR_ADVERT] {
        let frame = nd(kind, me, all, ip(Family::V6, 1, 1), Some((2, me.0))).frame();
        assert_eq!(run(&tables, Entry::Port(WEB_OPEN), &frame).flooded(), Some(WEB));
    }
}
