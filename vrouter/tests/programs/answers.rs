//! Packets that are answered in place, by TC; XDP leaves them to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{frames::*, harness::*, topology::*};

struct Case {
    name: &'static str,
    at: &'static str,
    input: Vec<u8>,
    output: Vec<u8>,
    counts: Counted,
}

type Counted = &'static [(&'static str, u64)];

const ARP: &[(&str, u64)] = &[("arp_answered", 1), ("flow_miss", 1)];
const ND: &[(&str, u64)] = &[("nd_answered", 1), ("flow_miss", 1)];
const ECHO: &[(&str, u64)] = &[("echo_answered", 1), ("flow_miss", 1)];

macro_rules! refused {
    ($reason:literal) => {
        &[($reason, 1), ("error_sent", 1), ("flow_miss", 1)]
    };
}

fn arp_reply(port: u32, mac: Mac, ip: Ipv4Addr) -> Vec<u8> {
    arp(port_mac(port), mac, 2, (mac, ip), (port_mac(port), port_v4(port)))
}

/// The advertisement a solicitation is answered with; flags: router, solicited, override.
fn advert(to: (Mac, Ipv6Addr), mac: Mac, ip: Ipv6Addr, flags: u32) -> Vec<u8> {
    nd(136, (to.0, mac), (ip, to.1), flags << 29, ip, Some((2, mac))).build()
}

fn addresses() -> Vec<Case> {
    let all_nodes: Ipv6Addr = "ff02::1".parse().expect("an address");
    let asker = (port_mac(11), port_v6(11));
    let probe = Packet { src: Ipv6Addr::UNSPECIFIED.into(), ..nd_solicit(11, port_v6(12)) };
    let probe = Packet { payload: probe.payload[..16].to_vec(), ..probe };
    let mut unicast = nd_solicit(11, v6(1, 1));
    (unicast.dst_mac, unicast.dst) = (router_mac(1, 1), v6(1, 1).into());
    let mut padded = arp_request(11, v4(1, 1));
    padded.resize(60, 0);
    let mut padded_reply = arp_reply(11, router_mac(1, 1), v4(1, 1));
    padded_reply.resize(60, 0);
    let case = |name, input, output, counts| Case { name, at: "p11", input, output, counts };
    vec![
        case("who is the router", arp_request(11, v4(1, 1)), arp_reply(11, router_mac(1, 1), v4(1, 1)), ARP),
        case("a padded request", padded, padded_reply, ARP),
        case(
            "who is a local port",
            arp_request(11, port_v4(12)),
            arp_reply(11, port_mac(12), port_v4(12)),
            ARP,
        ),
        case(
            "who is a remote port",
            arp_request(11, port_v4(15)),
            arp_reply(11, port_mac(15), port_v4(15)),
            ARP,
        ),
        case(
            "an ARP probe for another's address",
            arp(BROADCAST, port_mac(11), 1, (port_mac(11), Ipv4Addr::UNSPECIFIED), ([0; 6], port_v4(12))),
            arp(
                port_mac(11),
                port_mac(12),
                2,
                (port_mac(12), port_v4(12)),
                (port_mac(11), Ipv4Addr::UNSPECIFIED),
            ),
            ARP,
        ),
        case(
            "ND: the router",
            nd_solicit(11, v6(1, 1)).build(),
            advert(asker, router_mac(1, 1), v6(1, 1), 0b111),
            ND,
        ),
        case("ND: unicast", unicast.build(), advert(asker, router_mac(1, 1), v6(1, 1), 0b111), ND),
        case(
            "ND: a local port",
            nd_solicit(11, port_v6(12)).build(),
            advert(asker, port_mac(12), port_v6(12), 0b011),
            ND,
        ),
        case(
            "ND: a remote port",
            nd_solicit(11, port_v6(15)).build(),
            advert(asker, port_mac(15), port_v6(15), 0b011),
            ND,
        ),
        case(
            "ND: a link-local address",
            nd_solicit(11, link_local(port_mac(12))).build(),
            advert(asker, port_mac(12), link_local(port_mac(12)), 0b011),
            ND,
        ),
        case(
            "ND: duplicate address detection finds one",
            probe.build(),
            advert(([0x33, 0x33, 0, 0, 0, 1], all_nodes), port_mac(12), port_v6(12), 0b001),
            ND,
        ),
    ]
}

fn echoes() -> Vec<Case> {
    let request = Transport::Echo { request: true, id: 9 };
    let reply = Transport::Echo { request: false, id: 9 };
    let turned = |packet: &Packet| {
        let answer = Packet { src: packet.dst, dst: packet.src, ttl: 64, ..packet.clone() };
        answer.macs(packet.src_mac, packet.dst_mac).transport(reply.clone())
    };
    let mut cases = Vec::new();
    let near: [(&str, IpAddr); 4] = [
        ("echo, IPv4", v4(1, 1).into()),
        ("echo, IPv6", v6(1, 1).into()),
        ("echo to the far side, IPv4", v4(2, 1).into()),
        ("echo to the far side, IPv6", v6(2, 1).into()),
    ];
    for (name, dst) in near {
        for (len, ttl) in [(0, 64), (56, 1), (57, 255), (1400, 64)] {
            let packet = Packet::routed(11, dst).transport(request.clone()).len(len).ttl(ttl);
            let output = turned(&packet).build();
            cases.push(Case { name, at: "p11", input: packet.build(), output, counts: ECHO });
        }
    }
    let far: [(&str, IpAddr); 2] = [
        ("echo to the second router, IPv4", v4(6, 1).into()),
        ("echo to the second router, IPv6", v6(6, 1).into()),
    ];
    for (name, dst) in far {
        let packet = Packet::routed(11, dst).transport(request.clone());
        // One router between: the answer is a hop older.
        let output = turned(&packet).ttl(63).build();
        cases.push(Case { name, at: "p11", input: packet.build(), output, counts: ECHO });
    }
    cases
}

fn refusals() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut both = |name,
                    at: &'static str,
                    packets: [Packet; 2],
                    v4: (u8, u8, u32),
                    v6: (u8, u8, u32),
                    counts: Counted| {
        for (packet, (kind, code, rest)) in packets.into_iter().zip([v4, v6]) {
            let network = packet.src_mac[4].into();
            let source: IpAddr = match (counts, packet.dst) {
                // The router speaks from the address that was asked, or from where the packet came in.
                ([("router_port_unreachable" | "router_protocol", _), ..], dst) => dst,
                (_, IpAddr::V4(_)) => self::v4(network, 1).into(),
                (_, IpAddr::V6(_)) => self::v6(network, 1).into(),
            };
            let output = packet.error(source, kind, code, rest);
            cases.push(Case { name, at, input: packet.build(), output, counts });
        }
    };
    let towards = |v4: Ipv4Addr, v6: Ipv6Addr| [Packet::routed(11, v4), Packet::routed(11, v6)];
    let port = |port| towards(port_v4(port), port_v6(port));
    for len in [0, 1, 26, 519, 520, 521, 600, 1180, 1183, 1184, 1185, 1300, 1402] {
        let expired = port(21).map(|packet| packet.ttl(1).len(len));
        both("time exceeded", "p11", expired, (11, 0, 0), (3, 0, 0), refused!("ttl_exceeded"));
    }
    both(
        "TTL 0",
        "p11",
        port(21).map(|packet| packet.ttl(0)),
        (11, 0, 0),
        (3, 0, 0),
        refused!("ttl_exceeded"),
    );
    both("no route", "p11", towards(v4(77, 1), v6(77, 1)), (3, 0, 0), (1, 0, 0), refused!("no_route"));
    both(
        "unreachable route",
        "p11",
        towards(v4(67, 1), v6(67, 1)),
        (3, 1, 0),
        (1, 0, 0),
        refused!("route_unreachable"),
    );
    both(
        "no such station",
        "p11",
        towards(v4(2, 99), v6(2, 99)),
        (3, 1, 0),
        (1, 3, 0),
        refused!("next_hop_unknown"),
    );
    both("unplugged", "p11", port(27), (3, 1, 0), (1, 3, 0), refused!("port_unplugged"));
    both("unbound", "p11", port(28), (3, 1, 0), (1, 3, 0), refused!("port_unbound"));
    both(
        "too big",
        "p11",
        port(31).map(|packet| packet.len(1300)),
        (3, 4, SMALL_MTU),
        (2, 0, SMALL_MTU),
        refused!("too_big"),
    );
    both(
        "UDP to the router",
        "p11",
        towards(v4(1, 1), v6(1, 1)),
        (3, 3, 0),
        (1, 4, 0),
        refused!("router_port_unreachable"),
    );
    both(
        "UDP to its far side",
        "p11",
        towards(v4(2, 1), v6(2, 1)),
        (3, 3, 0),
        (1, 4, 0),
        refused!("router_port_unreachable"),
    );
    both(
        "an unknown protocol",
        "p11",
        towards(v4(1, 1), v6(1, 1)).map(|packet| packet.transport(Transport::Other(47))),
        (3, 2, 0),
        // The pointer says where the next header field is.
        (4, 1, 6),
        refused!("router_protocol"),
    );
    let scope = Packet { src: link_local(port_mac(11)).into(), ..Packet::routed(11, port_v6(21)) };
    cases.push(Case {
        name: "a link-local source would be routed",
        at: "p11",
        input: scope.build(),
        output: scope.error(v6(1, 1), 1, 2, 0),
        counts: refused!("link_local_routed"),
    });
    cases
}

fn resets() -> Vec<Case> {
    let mut cases = Vec::new();
    let tcp = |seq, ack, syn, rst| Transport::Tcp { sport: 40_000, dport: 22, seq, ack, syn, rst };
    let answer =
        |seq, ack: Option<u32>| Transport::Tcp { sport: 22, dport: 40_000, seq, ack, syn: false, rst: true };
    for dst in [IpAddr::from(v4(1, 1)), v6(1, 1).into(), v4(2, 1).into()] {
        for (name, sent, len, reset) in [
            ("a connection", tcp(1000, None, true, false), 0, answer(0, Some(1001))),
            (
                "a connection, at the end of the numbers",
                tcp(u32::MAX, None, true, false),
                0,
                answer(0, Some(0)),
            ),
            ("a connection with data", tcp(1000, None, true, false), 33, answer(0, Some(1034))),
            ("data without ACK", tcp(1000, None, false, false), 500, answer(0, Some(1500))),
            ("data with ACK", tcp(1000, Some(555), false, false), 1000, answer(555, None)),
        ] {
            let packet = Packet::routed(11, dst).transport(sent).len(len);
            let output = Packet { src: packet.dst, dst: packet.src, ..packet.clone() }
                .macs(packet.src_mac, packet.dst_mac)
                .transport(reset)
                .len(0);
            let mut output = output.build();
            // A reset has no window; the builder's is zero as well.
            output.truncate(if packet.dst.is_ipv4() { 54 } else { 74 });
            cases.push(Case {
                name,
                at: "p11",
                input: packet.build(),
                output,
                counts: refused!("router_refused"),
            });
        }
    }
    cases
}

fn check(cases: Vec<Case>) {
    with_world(move |world| {
        for Case { name, at, input, output, counts } in cases {
            for _ in 0..2 {
                // XDP first, as in life: nothing of it may be seen afterwards.
                let (ran, counted) = world.run_counted(Via::Xdp, at, &input);
                assert_eq!(ran.verdict, XDP_PASS, "{name}: XDP's verdict; {counted:?}");
                assert_frame(name, &ran.frame, &input);
                assert_eq!(counted, left_by_xdp(&input), "{name}: XDP's counters");

                let (ran, counted) = world.run_counted(Via::Tc, at, &input);
                assert_eq!(ran.verdict, TC_ACT_REDIRECT, "{name}: TC's verdict; {counted:?}");
                assert_frame(name, &ran.frame, &output);
                assert_eq!(counted, counts.iter().copied().collect::<Counts>(), "{name}: TC's counters");
            }
        }
        assert!(world.flow_entries().is_empty(), "answers are no flows: {:?}", world.flow_entries());
    });
}

#[test]
fn addresses_are_answered_for() {
    check(addresses());
}

#[test]
fn routers_answer_echo_requests() {
    check(echoes());
}

#[test]
fn refused_packets_are_answered_with_errors() {
    check(refusals());
}

#[test]
fn connections_to_a_router_are_reset() {
    check(resets());
}

/// The reply's checksums hold for an independent reader, whatever the payload's length and TTL.
#[test]
fn answers_are_valid_to_an_independent_reader() {
    with_world(|world| {
        for len in 0..64 {
            for dst in [IpAddr::from(v4(1, 1)), v6(1, 1).into(), port_v4(21).into(), port_v6(21).into()] {
                let packet =
                    Packet::routed(11, dst).transport(Transport::Echo { request: true, id: len }).ttl(1);
                let ran = world.run(Via::Tc, "p11", &packet.len(len.into()).build());
                assert_eq!(ran.verdict, TC_ACT_REDIRECT);
                valid_checksums(&ran.frame);
            }
        }
    });
}

/// Checks the IP and ICMP checksums of a frame.
fn valid_checksums(frame: &[u8]) {
    let headers = etherparse::PacketHeaders::from_ethernet_slice(frame).expect("a packet");
    let payload = headers.payload.slice();
    match (headers.net, headers.transport) {
        (Some(etherparse::NetHeaders::Ipv4(ip, _)), Some(etherparse::TransportHeader::Icmpv4(icmp))) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(icmp.checksum, icmp.icmp_type.calc_checksum(payload));
        }
        (Some(etherparse::NetHeaders::Ipv6(ip, _)), Some(etherparse::TransportHeader::Icmpv6(icmp))) => {
            let sum = icmp.icmp_type.calc_checksum(ip.source, ip.destination, payload).expect("fits");
            assert_eq!(icmp.checksum, sum);
        }
        other => panic!("not ICMP: {other:?}"),
    }
}
