//! Connections: translated out and in, answered, refused, and what of them goes to the agent.

use std::net::IpAddr;

use vrouter::trace;
use vrouter_common::{
    addr::Be16,
    flow::{EXIT_EXTERNAL, EXIT_PORT, FLOW_NAT, ROLE_ORIGINAL, ROLE_REPLY},
    tables::*,
};

use crate::{
    frames::*,
    harness::*,
    topology::{self, *},
};

/// A connection as its two ends see it. Both packets travel from the port outwards.
struct Conversation {
    name: &'static str,
    port: u32,
    /// As the port sends it.
    inside: Packet,
    /// As it is outside.
    outside: Packet,
    /// Whether the port speaks first.
    from_inside: bool,
}

/// The packet that answers, with the Ethernet addresses given.
fn reply(packet: &Packet, macs: (Mac, Mac)) -> Packet {
    let transport = match packet.transport.clone() {
        Transport::Udp { sport, dport } => Transport::Udp { sport: dport, dport: sport },
        Transport::Tcp { sport, dport, .. } => {
            Transport::Tcp { sport: dport, dport: sport, seq: 5, ack: Some(8), syn: true, rst: false }
        }
        Transport::Echo { request, id } => Transport::Echo { request: !request, id },
        other => other,
    };
    Packet { src: packet.dst, dst: packet.src, ..packet.clone() }.macs(macs.0, macs.1).transport(transport)
}

/// An ICMP error about a packet, from `src`, with the Ethernet addresses and the TTL given.
fn error(about: &Packet, src: IpAddr, macs: (Mac, Mac), ttl: u8) -> Vec<u8> {
    let (kind, code) = if src.is_ipv4() { (3, 3) } else { (1, 4) };
    Packet { src, dst: about.src, ttl, payload: about.l3(), ..about.clone().macs(macs.0, macs.1) }
        .transport(Transport::Icmp { kind, code, rest: [0; 4] })
        .build()
}

fn neighbour(v6: bool) -> IpAddr {
    if v6 { topology::v6(OUTSIDE, u16::from(NEIGHBOUR)).into() } else { v4(OUTSIDE, NEIGHBOUR).into() }
}

/// Towards and from the external network.
const OUT: (Mac, Mac) = (NEIGHBOUR_MAC, router_mac(1, OUTSIDE));
const IN: (Mac, Mac) = (router_mac(1, OUTSIDE), NEIGHBOUR_MAC);

fn conversations() -> Vec<Conversation> {
    let tcp = |sport, dport| Transport::Tcp { sport, dport, seq: 7, ack: None, syn: true, rst: false };
    let udp = |sport, dport| Transport::Udp { sport, dport };
    let echo = |id| Transport::Echo { request: true, id };
    let mut all = Vec::new();
    let mut add = |name, port, src: IpAddr, transport: Transport, changed: Transport, from_inside| {
        let dst: IpAddr = if src.is_ipv4() { v4(BEHIND, 5).into() } else { v6(BEHIND, 5).into() };
        let inside = Packet::routed(port, dst).transport(transport);
        let outside = Packet { src, ..inside.clone() }.transport(changed).macs(OUT.0, OUT.1).ttl(63);
        all.push(Conversation { name, port, inside, outside, from_inside });
    };
    let gateway = IpAddr::from(v4(OUTSIDE, 1));
    // The sender's own port, if it is one of this node's and free.
    for port in [11, 71] {
        add("source of UDP", port, gateway, udp(1026, 53), udp(1026, 53), true);
        add("source of TCP", port, gateway, tcp(1026, 80), tcp(1026, 80), true);
        add("source of an echo", port, gateway, echo(1026), echo(1026), true);
    }
    for port in [12, 71] {
        for src in [IpAddr::from(floating_v4(port)), floating_v6(port).into()] {
            if port == 71 && src.is_ipv4() {
                // Also with a floating IP: that comes before the router's address.
                continue;
            }
            for from_inside in [true, false] {
                if port == 71 && !from_inside {
                    continue;
                }
                add("floating IP, UDP", port, src, udp(40_000, 2000), udp(40_000, 2000), from_inside);
                add("floating IP, TCP", port, src, tcp(2000, 40_000), tcp(2000, 40_000), from_inside);
                add("floating IP, echo", port, src, echo(9), echo(9), from_inside);
            }
        }
    }
    add("forwarded TCP", 72, gateway, tcp(2000, 40_000), tcp(2222, 40_000), false);
    add("forwarded UDP", 72, gateway, udp(2001, 40_000), udp(2223, 40_000), false);
    all.retain(|one| !(one.port == 71 && one.outside.src == gateway));
    all
}

/// Makes the next hops known, as a first packet and the neighbour's answer do.
fn resolve(world: &World) {
    for dst in [IpAddr::from(v4(BEHIND, 99)), v6(BEHIND, 99).into()] {
        world.run(Via::Tc, "p11", &Packet::routed(11, dst).build());
        let (ran, counts) = world.run_counted(Via::Tc, EXTERNAL, &neighbours_answer(dst.is_ipv6()));
        assert_eq!(ran.verdict, TC_ACT_UNSPEC, "the kernel has neighbours, too: {counts:?}");
        assert_eq!(counts.get("next_hop_resolved"), Some(&1), "{counts:?}");
    }
    world.forget_flows();
}

/// What the neighbour says when it is asked who it is.
fn neighbours_answer(v6: bool) -> Vec<u8> {
    if v6 {
        let to = topology::v6(OUTSIDE, 1);
        let IpAddr::V6(own) = neighbour(true) else { unreachable!("IPv6") };
        return nd(136, IN, (own, to), 0x6000_0000, own, Some((2, NEIGHBOUR_MAC))).build();
    }
    let own = (NEIGHBOUR_MAC, v4(OUTSIDE, NEIGHBOUR));
    arp(router_mac(1, OUTSIDE), NEIGHBOUR_MAC, 2, own, (router_mac(1, OUTSIDE), v4(OUTSIDE, 1)))
}

#[test]
fn connections_are_translated_both_ways_and_so_are_errors_about_them() {
    with_world(|world| {
        resolve(world);
        for conversation in conversations() {
            for via in Via::BOTH {
                converse(world, &conversation, via);
            }
        }
    });
}

fn converse(world: &World, conversation: &Conversation, via: Via) {
    let Conversation { name, port, inside, outside, from_inside } = conversation;
    let (port, v6) = (*port, inside.src.is_ipv6());
    let family = if v6 { "IPv6" } else { "IPv4" };
    let first = if *from_inside { "from inside" } else { "from outside" };
    let at = format!("p{port}");
    let router = router_mac(1, port / 10);
    world.forget_flows();
    let from_outside = reply(outside, IN).ttl(64);
    let to_port = reply(inside, (port_mac(port), router)).ttl(63);
    let mut steps = vec![
        ("out", at.as_str(), inside.build(), outside.build()),
        ("in", EXTERNAL, from_outside.build(), to_port.build()),
    ];
    if !from_inside {
        steps.reverse();
    }
    // And again, by what is remembered.
    steps.extend(steps.clone());
    // About what has left, by a router on its way; the port about what it was sent.
    steps.push((
        "an error in",
        EXTERNAL,
        error(outside, neighbour(v6), IN, 64),
        error(&inside.clone().ttl(63), neighbour(v6), (port_mac(port), router), 63),
    ));
    steps.push((
        "an error out",
        at.as_str(),
        error(&to_port, inside.src, (router, port_mac(port)), 64),
        error(&from_outside.ttl(63), outside.src, OUT, 63),
    ));
    for (number, (step, at, input, output)) in steps.iter().enumerate() {
        let context = format!("{name}, {family}, {first}, from p{port} by {via:?}, {step} ({number})");
        let (ran, counts) = world.run_counted(via, at, input);
        assert_eq!(ran.verdict, via.redirect(), "{context}: verdict; {counts:?}");
        assert_frame(&context, &ran.frame, output);
        assert_eq!(
            counts.get("flow_answered").copied().unwrap_or(0),
            u64::from(number == 1),
            "{context}: {counts:?}"
        );
    }
    let legs = world.flows.entries().expect("FLOWS");
    assert!(world.transient.entries().expect("TRANSIENT").is_empty(), "{name}: nothing else is left");
    assert_eq!(legs.len(), 2, "{name}: two legs: {legs:#?}");
    for (key, leg) in &legs {
        let other = legs.iter().find(|(other, _)| other == &leg.peer_key(key));
        let (_, other) = other.unwrap_or_else(|| panic!("{name}: {key:?} points at nothing: {leg:?}"));
        assert_eq!(leg.role + other.role, ROLE_ORIGINAL + ROLE_REPLY, "{name}: roles");
        assert_eq!(leg.packets, 2, "{name}: packets of {leg:?}");
        assert!(leg.flags & FLOW_NAT != 0, "{name}: translated");
    }
}

/// Super-packets are translated as they are; the kernel cuts them later.
#[test]
fn what_begins_after_a_connection_that_ended_is_traced_as_it_is_translated() {
    with_world(|world| {
        resolve(world);
        let tcp = |ack, syn, rst| Transport::Tcp { sport: 1028, dport: 80, seq: 7, ack, syn, rst };
        let dst = IpAddr::from(v4(BEHIND, 5));
        let segment = |transport| Packet::routed(11, dst).transport(transport).build();
        let sport = |frame: &[u8]| u16::from_be_bytes([frame[34], frame[35]]);
        let syn = segment(tcp(None, true, false));
        let first = world.run(Via::Tc, "p11", &syn);
        assert_eq!(first.verdict, TC_ACT_REDIRECT);
        let outside = Transport::Tcp {
            sport: sport(&first.frame),
            dport: 80,
            seq: 7,
            ack: None,
            syn: true,
            rst: false,
        };
        let sent = Packet { src: v4(OUTSIDE, 1).into(), ..Packet::routed(11, dst) }.transport(outside);
        world.run(Via::Tc, EXTERNAL, &reply(&sent, IN).build());
        world.run(Via::Tc, "p11", &segment(tcp(Some(1), false, true)));
        let mut program = trace::live::Program::load(world.pins()).expect("vr_trace");
        let traced = [(); 2].map(|()| {
            let run = program.run(trace::Entry::Port(world.ifindex("p11")), &syn, false).expect("a trace");
            sport(&run.frame)
        });
        let second = sport(&world.run(Via::Tc, "p11", &syn).frame);
        assert_eq!((sport(&first.frame), traced), (second, [second; 2]));
    });
}

#[test]
fn super_packets_are_translated() {
    with_world(|world| {
        resolve(world);
        let tcp = Transport::Tcp { sport: 1027, dport: 80, seq: 7, ack: Some(1), syn: false, rst: false };
        let gateway = IpAddr::from(v4(OUTSIDE, 1));
        for (port, src) in [(11, gateway), (12, floating_v4(12).into()), (12, floating_v6(12).into())] {
            let dst: IpAddr = if src.is_ipv4() { v4(BEHIND, 5).into() } else { v6(BEHIND, 5).into() };
            let packet = Packet::routed(port, dst).transport(tcp.clone()).len(3000);
            let output = Packet { src, ..packet.clone() }.macs(OUT.0, OUT.1).ttl(63);
            for _ in 0..2 {
                let ran = world.run_gso(Via::Tc, &format!("p{port}"), &packet.build(), 1000);
                assert_eq!(ran.verdict, TC_ACT_REDIRECT);
                assert_frame("super-packet", &ran.frame, &output.build());
            }
        }
    });
}

/// The first packets to a next hop wait in the agent; one of them becomes the request for it.
#[test]
fn next_hops_are_asked_for_and_packets_wait() {
    with_world(|world| {
        let mut upcalls = world.upcalls();
        let mac = router_mac(1, OUTSIDE);
        for (hop, v6) in [(0, false), (1, true)] {
            let dst: IpAddr = if v6 { topology::v6(BEHIND, 5).into() } else { v4(BEHIND, 5).into() };
            let packet = Packet::routed(12, dst);
            let request = if v6 {
                let IpAddr::V6(target) = neighbour(true) else { unreachable!("IPv6") };
                let group = "ff02::1:ff00:fe".parse().expect("an address");
                nd(
                    135,
                    ([0x33, 0x33, 0xff, 0, 0, 0xfe], mac),
                    (link_local(mac), group),
                    0,
                    target,
                    Some((1, mac)),
                )
                .build()
            } else {
                arp(BROADCAST, mac, 1, (mac, v4(OUTSIDE, 1)), ([0; 6], v4(OUTSIDE, NEIGHBOUR)))
            };
            let (ran, counts) = world.run_counted(Via::Xdp, "p12", &packet.build());
            assert_eq!((ran.verdict, counts), (XDP_PASS, left_by_xdp(&packet.build())), "XDP cannot wait");
            assert!(world.flow_entries().is_empty(), "and remembers nothing");
            for asked in [true, false] {
                let (ran, counts) = world.run_counted(Via::Tc, "p12", &packet.build());
                assert_eq!(counts.get("next_hop_queued"), Some(&1), "{counts:?}");
                assert_eq!(counts.contains_key("next_hop_asked"), asked, "{counts:?}");
                assert_eq!(ran.verdict, if asked { TC_ACT_REDIRECT } else { TC_ACT_SHOT });
                if asked {
                    assert_frame("the request", &ran.frame, &request);
                }
                let record = Record::read(&upcalls.next().expect("a record"));
                let Upcall { kind, ifindex, at, flow, answer, .. } = record.upcall;
                assert_eq!((kind, record.upcall.hop, at), (UPCALL_WAIT, hop, 0));
                assert_eq!(ifindex, world.ifindex("p12"));
                assert_frame("the packet that waits", &record.frame, &packet.build());
                assert_eq!((flow.exit, flow.target, flow.hops), (EXIT_EXTERNAL, hop, 1));
                assert_eq!(flow.out_macs.src(), mac);
                let floating: IpAddr = if v6 { floating_v6(12).into() } else { floating_v4(12).into() };
                assert_eq!(IpAddr::from(flow.src), floating, "how it will be translated");
                let (icmp_type, icmp_code) = if v6 { (1, 3) } else { (3, 1) };
                assert_eq!((answer.icmp_type, answer.icmp_code), (icmp_type, icmp_code), "host unreachable");
            }
            let (_, counts) = world.run_counted(Via::Tc, EXTERNAL, &neighbours_answer(v6));
            assert_eq!(counts.get("next_hop_resolved"), Some(&1), "{counts:?}");
            let record = Record::read(&upcalls.next().expect("a record"));
            assert_eq!((record.upcall.kind, record.upcall.hop), (UPCALL_RESOLVED, hop));
            let ran = world.run(Via::Tc, "p12", &packet.build());
            assert_eq!((ran.verdict, &ran.frame[..6]), (TC_ACT_REDIRECT, &NEIGHBOUR_MAC[..]));
            assert!(upcalls.next().is_none(), "nothing waits any more");
            world.forget_flows();
        }
        // Whoever does not own its address asks as nobody.
        world
            .hops
            .set(
                &0,
                &Hop { flags: HOP_USED, asked: 0, ..world.hops.lookup(&0).expect("HOPS").expect("a hop") },
            )
            .expect("HOPS");
        let packet = Packet { dst_mac: router_mac(2, 6), ..Packet::routed(61, v4(BEHIND, 5)) };
        let ran = world.run(Via::Tc, "p61", &packet.build());
        let mac = router_mac(2, OUTSIDE);
        let request = arp(BROADCAST, mac, 1, (mac, [0, 0, 0, 0].into()), ([0; 6], v4(OUTSIDE, NEIGHBOUR)));
        assert_frame("the request of a router owned elsewhere", &ran.frame, &request);
    });
}

/// What is too large and may be cut goes to the agent, with the way its pieces take.
#[test]
fn what_may_be_cut_goes_to_the_agent() {
    with_world(|world| {
        let mut upcalls = world.upcalls();
        let packet = Packet::routed(11, port_v4(31)).len(1300).fragmentable();
        for _ in 0..2 {
            let (ran, counts) = world.run_counted(Via::Xdp, "p11", &packet.build());
            assert_eq!((ran.verdict, counts), (XDP_PASS, left_by_xdp(&packet.build())));
            let (ran, counts) = world.run_counted(Via::Tc, "p11", &packet.build());
            assert_eq!(ran.verdict, TC_ACT_SHOT);
            assert_eq!(counts, Counts::from([("flow_miss", 1), ("fragment_queued", 1)]));
            let record = Record::read(&upcalls.next().expect("a record"));
            assert_eq!(record.upcall.kind, UPCALL_FRAGMENT);
            assert_frame("the packet to be cut", &record.frame, &packet.build());
            let flow = record.upcall.flow;
            assert_eq!((flow.exit, flow.target), (EXIT_PORT, world.ifindex("p31")));
            assert_eq!((u32::from(flow.mtu), flow.hops), (SMALL_MTU, 1));
            assert_eq!((flow.out_macs.dst(), flow.out_macs.src()), (port_mac(31), router_mac(1, 3)));
        }
    });
}

/// What takes more than one packet to be refused.
#[test]
fn what_several_packets_provoke() {
    in_namespace(|| {
        let mut world = World::new(2);
        world.apply(topology::image(&world.ifindexes));
        resolve(&world);
        let drops = |world: &World, at: &str, packet: &Packet, reason: &'static str| {
            let (ran, counts) = world.run_counted(Via::Tc, at, &packet.build());
            assert_eq!(counts.get(reason), Some(&1), "{reason}: {counts:?}");
            ran
        };
        // One connection has room among the answered; the reply of a second is refused, and the first lives.
        let pair = |id| {
            let out = Packet::switched(71, 72, false).transport(Transport::Echo { request: true, id });
            let back = reply(&out, (port_mac(71), port_mac(72)));
            (out, back)
        };
        let (out, back) = pair(1);
        assert_eq!(world.run(Via::Tc, "p71", &out.build()).verdict, TC_ACT_REDIRECT);
        assert_eq!(world.run(Via::Tc, "p72", &back.build()).verdict, TC_ACT_REDIRECT);
        let (second, second_back) = pair(2);
        assert_eq!(world.run(Via::Tc, "p71", &second.build()).verdict, TC_ACT_REDIRECT);
        for _ in 0..2 {
            drops(&world, "p72", &second_back, "flow_table_full");
        }
        let (ran, counts) = world.run_counted(Via::Tc, "p72", &back.build());
        assert_eq!((ran.verdict, counts), (TC_ACT_REDIRECT, Counts::new()));
        world.forget_flows();

        // As many connections to one destination as ports; another destination has them all again.
        let ports: u16 = BLOCKS.iter().map(|block| block.last - block.first + 1).sum();
        let mut chosen = std::collections::BTreeSet::new();
        for sport in 0..ports {
            let packet =
                Packet::routed(11, v4(BEHIND, 5)).transport(Transport::Udp { sport: sport + 1, dport: 53 });
            let ran = world.run(Via::Tc, "p11", &packet.build());
            assert_eq!(ran.verdict, TC_ACT_REDIRECT, "connection {sport}");
            chosen.insert(u16::from_be_bytes([ran.frame[34], ran.frame[35]]));
        }
        let all = BLOCKS.iter().flat_map(|block| block.first..=block.last).collect();
        assert_eq!(chosen, all, "every port once");
        let one_more =
            |dport| Packet::routed(11, v4(BEHIND, 5)).transport(Transport::Udp { sport: 99, dport });
        drops(&world, "p11", &one_more(53), "snat_exhausted");
        assert_eq!(world.run(Via::Tc, "p11", &one_more(54).build()).verdict, TC_ACT_REDIRECT);
        assert_eq!(world.nat_tries()[NAT_TRIES_BUCKETS as usize - 1], 1);
        assert_eq!(
            world.nat_tries().iter().sum::<u64>(),
            u64::from(ports) + 2 + 1,
            "with the one of `resolve`"
        );
        world.forget_flows();

        // Without ports to choose, a second connection to the same place would be the first's twin.
        let gre = |port| Packet::routed(port, v4(BEHIND, 5)).transport(Transport::Other(47));
        assert_eq!(world.run(Via::Tc, "p11", &gre(11).build()).verdict, TC_ACT_REDIRECT);
        drops(&world, "p21", &gre(21), "nat_clash");
        world.forget_flows();

        let piece = |at: u8, more: u8| {
            let mut frame = Packet::routed(11, port_v4(21)).len(16).build();
            (frame[19], frame[20], frame[21]) = (77, more, at);
            crate::forwarding::fix_ipv4(&mut frame);
            frame
        };
        assert_eq!(world.run(Via::Tc, "p11", &piece(0, 0x20)).verdict, TC_ACT_REDIRECT);
        let (_, counts) = world.run_counted(Via::Tc, "p11", &piece(2, 0));
        assert_eq!(counts.get("fragment_overlap"), Some(&1), "{counts:?}");
        assert_eq!(
            world.run(Via::Tc, "p11", &piece(3, 0)).verdict,
            TC_ACT_REDIRECT,
            "right behind the first"
        );

        // A next hop that the agent gave up: the sender is told at once.
        let hop = world.hops.lookup(&0).expect("HOPS").expect("a hop");
        world.hops.set(&0, &Hop { flags: HOP_USED | HOP_FAILED, ..hop }).expect("HOPS");
        let packet = Packet::routed(11, v4(BEHIND, 5));
        let ran = drops(&world, "p11", &packet, "next_hop_unanswered");
        assert_frame("host unreachable", &ran.frame, &packet.error(v4(1, 1), 3, 1, 0));
        // Remembered, but the next hop is being asked for again, and the packet does not fit a record.
        world.hops.set(&0, &Hop { flags: HOP_USED, ..hop }).expect("HOPS");
        let large = Packet::routed(11, v4(BEHIND, 5)).len(3000);
        let (_, counts) = {
            let before = world.counts();
            world.run_gso(Via::Tc, "p11", &large.build(), 1000);
            ((), since(&before, &world.counts()))
        };
        assert_eq!(counts.get("next_hop_pending"), Some(&1), "{counts:?}");
        world.hops.set(&0, &hop).expect("HOPS");
        world.forget_flows();

        // An apply without the interface: its commit has none.
        let image = world.banks.in_force().clone();
        let published = vrouter::banks::Published { externals: Default::default(), ..world.published(2) };
        world.banks.apply(image, &published, &vrouter::banks::Touch::Changed).expect("apply");
        let ran = drops(&world, "p11", &packet, "external_absent");
        assert_frame("host unreachable", &ran.frame, &packet.error(v4(1, 1), 3, 1, 0));
    });
}

/// The TCP flags of both directions are seen, by both programs: the end of a connection is told by them.
#[test]
fn tcp_flags_are_noted() {
    with_world(|world| {
        for via in Via::BOTH {
            world.forget_flows();
            let tcp = |syn, ack, rst| {
                let transport = Transport::Tcp { sport: 1, dport: 2000, seq: 1, ack, syn, rst };
                Packet::routed(11, port_v6(21)).transport(transport)
            };
            let mut bytes = 0;
            for (number, (packet, flags)) in [
                (tcp(true, None, false), 0x02),
                (tcp(false, Some(1), false), 0x12),
                (tcp(false, None, true), 0x16),
                (tcp(true, Some(1), false), 0x16),
            ]
            .into_iter()
            .enumerate()
            {
                let frame = packet.build();
                bytes += frame.len() as u64;
                assert_eq!(world.run(via, "p11", &frame).verdict, via.redirect());
                let (_, flow) = world.only_flow();
                assert_eq!(flow.tcp_flags, flags, "by {via:?}, packet {number}");
                assert_eq!(
                    (flow.packets, flow.bytes),
                    (number as u64 + 1, bytes),
                    "by {via:?}, packet {number}"
                );
            }
        }
    });
}

/// Idle connections are removed whole, but only if no packet came since they were looked at.
#[test]
fn connections_expire_unless_a_packet_came() {
    with_world(|world| {
        let udp = |sport| Packet::switched(71, 72, false).transport(Transport::Udp { sport, dport: 2000 });
        let back = |packet: &Packet| reply(packet, (port_mac(71), port_mac(72)));
        for sport in 1..=4 {
            assert_eq!(world.run(Via::Tc, "p71", &udp(sport).build()).verdict, TC_ACT_REDIRECT);
            if sport <= 3 {
                let ran = world.run(Via::Tc, "p72", &back(&udp(sport)).build());
                assert_eq!(ran.verdict, TC_ACT_REDIRECT, "{:?}", world.counts());
            }
        }
        let found = |map: &vrouter::kernel::Map<_, vrouter_common::flow::Flow>, table| -> Vec<Expire> {
            let entries = map.entries().expect("flows");
            let originals = entries.iter().filter(|(_, leg)| leg.role == ROLE_ORIGINAL);
            let mut found: Vec<Expire> = originals
                .map(|(key, leg)| {
                    let peer = leg.peer_key(key);
                    let other = entries.iter().find(|(key, _)| *key == peer).expect("the other leg").1;
                    Expire { key: *key, peer, seen: leg.seen, peer_seen: other.seen, legs: 2, table }
                })
                .collect();
            found.sort_by_key(|one| one.key.sport.get());
            found
        };
        let mut wanted = found(&world.flows, 0);
        wanted.extend(found(&world.transient, 1));
        assert_eq!(wanted.iter().map(|one| one.key.sport.get()).collect::<Vec<_>>(), [1, 2, 3, 4]);
        // A later tick, in which the first's original and the second's reply are used.
        let start = world.now();
        while world.now().wrapping_sub(start) < 2 {
            std::thread::yield_now();
        }
        assert_eq!(world.run(Via::Tc, "p71", &udp(1).build()).verdict, TC_ACT_REDIRECT);
        assert_eq!(world.run(Via::Tc, "p72", &back(&udp(2)).build()).verdict, TC_ACT_REDIRECT);
        println!(
            "{wanted:?} {:?}",
            world.flow_entries().iter().map(|(k, f)| (k.sport, k.dport, f.seen)).collect::<Vec<_>>()
        );
        let legs: Vec<u32> = world.expire(&wanted).iter().map(|one| one.legs).collect();
        assert_eq!(legs, [3, 3, 0, 0], "used, used, idle, never answered");
        let left = world.flow_entries();
        assert_eq!(left.len(), 4, "two legs of each that is left: {left:?}");
        for one in &wanted[..2] {
            assert!(left.contains_key(&one.key) && left.contains_key(&one.peer));
        }
        // What is gone already is no mistake, and nothing else is touched.
        let legs: Vec<u32> = world.expire(&wanted[2..]).iter().map(|one| one.legs).collect();
        assert_eq!(legs, [0, 0]);
        assert_eq!(world.flow_entries(), left);
        // One leg of which the other was evicted goes alone.
        let alone = found(&world.flows, 0)[0];
        world.flows.remove(&alone.peer).expect("FLOWS");
        assert_eq!(world.expire(&[Expire { legs: 1, ..alone }])[0].legs, 0);
        assert_eq!(world.flow_entries().len(), 2);
        assert!(left.keys().all(|key| key.dport != Be16::new(0)));
    });
}
