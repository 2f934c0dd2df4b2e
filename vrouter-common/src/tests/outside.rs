//! External networks: next hops, what is answered to outside, and what a gateway passes on to other nodes
//! (behaviours N1, N2, N9, R5, R6).

use core::net::IpAddr;

use super::{fixture::*, world::*};
use crate::{
    addr::Ip,
    flow::FROM_BLOCK,
    memory::{Entry, MemoryPacket, MemoryTables, Verdict},
    reason::{DropReason, Event},
    tables::*,
    wire::*,
};

const ANY4: IpAddr = IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED);

fn event(tables: &MemoryTables, event: Event) -> u64 {
    tables.events.borrow().get(&event).copied().unwrap_or(0)
}

/// A packet from a host to the remote host, which needs the gateway as next hop.
fn outwards(f: Family, host: Host, sport: u16) -> Vec<u8> {
    from(f, End::Inside(host), remote(f)).ports(sport, 53).frame()
}

/// The one next hop.
fn hop(tables: &MemoryTables) -> (u32, Hop) {
    let hops = tables.hops();
    assert_eq!(hops.len(), 1, "{hops:?}");
    hops[0]
}

/// The request for the gateway that a packet of `host` has to have caused.
#[track_caller]
fn request(world: &World, host: Host, frame: &[u8]) -> Option<Vec<u8>> {
    match world.send(End::Inside(host), frame) {
        Arrived::Else(node, Verdict::Waiting { request, .. }) => {
            assert_eq!(node, host.node);
            request.map(|(ifindex, frame)| {
                assert_eq!(ifindex, EXT);
                frame
            })
        }
        other => panic!("not waiting: {other:?}"),
    }
}

#[test]
fn r5_packets_wait_for_a_next_hop_and_one_request_is_sent() {
    for f in BOTH {
        for host in [A1, A2, A3, A4] {
            let world = World::unresolved(0);
            let tables = &world.nodes[host.node];
            tables.clock.set(1000);
            let mac = gateway_mac(RA, host.node);
            let asked = request(&world, host, &outwards(f, host, 1500)).expect("no request");
            assert_eq!(asked[6..12], mac);
            if f == Family::V4 {
                // The router's address only where that is this node's.
                let owned = owner(RA) == host.node;
                let sender = if owned { gateway(f, RA) } else { ANY4 };
                let expected = arp(BROADCAST, mac, 1, (mac, sender), public(f, 1));
                assert_eq!(asked, expected[..ETH_LEN + ARP_LEN]);
            } else {
                let expected = solicit((mac, link_local(mac)), public(f, 1)).frame();
                assert_eq!(asked, expected);
                assert_valid(&asked);
            }
            let (_, made) = hop(tables);
            assert_eq!((made.network, made.ifindex, made.flags), (PUBLIC, EXT, HOP_USED));
            // Others wait with it; nobody asks again before it is time.
            for n in 0..5 {
                assert_eq!(request(&world, host, &outwards(f, host, 1501 + n)), None);
            }
            tables.clock.set(1000 + ASK_TICKS - 1);
            assert_eq!(request(&world, host, &outwards(f, host, 1500)), None);
            tables.clock.set(1000 + ASK_TICKS);
            assert_eq!(request(&world, host, &outwards(f, host, 1500)), Some(asked));
            assert_eq!((event(tables, Event::HopAsked), event(tables, Event::HopQueued)), (2, 8));
            assert!(tables.drops.borrow().is_empty());
            hop(tables);
            // What waits has its port already: six connections.
            let tracked = f == Family::V4 || host.floating.is_some();
            assert_eq!(connections(tables), (0, if tracked { 6 } else { 0 }));
        }
    }
}

#[test]
fn r5_a_next_hop_that_answers_is_used() {
    for f in BOTH {
        for host in [A1, A2, A4] {
            let world = World::unresolved(0);
            let tables = &world.nodes[host.node];
            request(&world, host, &outwards(f, host, 1500));
            let mac = gateway_mac(RA, host.node);
            let gw = (GW_MAC, public(f, 1));
            let answer = |mac_of_gw: Mac| match f {
                Family::V4 => arp(mac, mac_of_gw, 2, (mac_of_gw, gw.1), gateway(f, RA)),
                Family::V6 => {
                    let to = (mac, link_local(mac));
                    nd(ND_NEIGHBOR_ADVERT, (mac_of_gw, gw.1), to, gw.1, Some((2, mac_of_gw))).frame()
                }
            };
            // The kernel may hear it as well.
            assert_eq!(run(tables, Entry::External(EXT), &answer(GW_MAC)), Verdict::Passed);
            let (_, learned) = hop(tables);
            assert_eq!((learned.mac, learned.flags), (GW_MAC, HOP_USED | HOP_RESOLVED));
            assert_eq!(event(tables, Event::HopResolved), 1);
            let out = |expected: Mac| {
                let Arrived::Outside(node, frame) = world.send(End::Inside(host), &outwards(f, host, 1500))
                else {
                    panic!("not sent");
                };
                assert_eq!((node, &frame[..6], &frame[6..12]), (host.node, &expected[..], &mac[..]));
            };
            out(GW_MAC);
            out(GW_MAC);
            // It says the same again; then it is another machine: flows follow at once.
            run(tables, Entry::External(EXT), &answer(GW_MAC));
            assert_eq!(event(tables, Event::HopResolved), 1, "nothing new");
            let other = [2, 0xcc, 0, 0, 0, 2];
            run(tables, Entry::External(EXT), &answer(other));
            out(other);
            assert_eq!(event(tables, Event::HopResolved), 2);
        }
    }
}

#[test]
fn r5_gratuitous_announcements_are_heard_of_known_next_hops_alone() {
    let world = World::unresolved(0);
    let tables = &world.nodes[0];
    let entry = Entry::External(EXT);
    let gw = |f| (GW_MAC, public(f, 1));
    let all = ([0x33, 0x33, 0, 0, 0, 1], "ff02::1".parse().unwrap());
    let announce = |kind: u16, f: Family| match f {
        Family::V4 => arp(BROADCAST, GW_MAC, kind, gw(f), gw(f).1),
        Family::V6 => nd(ND_NEIGHBOR_ADVERT, gw(f), all, gw(f).1, Some((2, GW_MAC))).frame(),
    };
    // Nobody has asked for it.
    for f in BOTH {
        for kind in [1, 2] {
            assert_eq!(run(tables, entry, &announce(kind, f)), Verdict::Passed);
        }
    }
    assert_eq!(tables.hops(), []);
    for (n, f) in BOTH.into_iter().enumerate() {
        request(&world, A1, &outwards(f, A1, 1500));
        run(tables, entry, &announce(1 + n as u16, f));
        let hops = tables.hops();
        assert_eq!(hops.len(), n + 1);
        assert_eq!((hops[n].1.mac, hops[n].1.flags), (GW_MAC, HOP_USED | HOP_RESOLVED));
    }
    // Its own request says where it is, too.
    let world = World::unresolved(0);
    let tables = &world.nodes[0];
    request(&world, A1, &outwards(Family::V4, A1, 1500));
    let asks = arp(BROADCAST, GW_MAC, 1, gw(Family::V4), A1.floating(Family::V4));
    answered(run(tables, entry, &asks));
    assert_eq!(hop(tables).1.mac, GW_MAC);
    let world = World::unresolved(0);
    let tables = &world.nodes[0];
    request(&world, A1, &outwards(Family::V6, A1, 1500));
    answered(run(tables, entry, &solicit(gw(Family::V6), A1.floating(Family::V6)).frame()));
    assert_eq!(hop(tables).1.mac, GW_MAC);
}

#[test]
fn r5_false_announcements_are_not_believed() {
    let entry = Entry::External(EXT);
    let evil = [2, 0x66, 0x66, 0, 0, 1];
    for f in BOTH {
        let world = World::unresolved(0);
        let tables = &world.nodes[0];
        request(&world, A1, &outwards(f, A1, 1500));
        let gw = public(f, 1);
        let mac = gateway_mac(RA, 0);
        let to = (mac, link_local(mac));
        let frames = match f {
            Family::V4 => vec![
                // Somebody else's frame; a group address; not Ethernet and IPv4.
                arp(mac, [2, 1, 1, 1, 1, 1], 2, (evil, gw), gateway(f, RA)),
                arp(mac, evil, 2, ([3, 1, 1, 1, 1, 1], gw), gateway(f, RA)),
                {
                    let mut frame = arp(mac, evil, 2, (evil, gw), gateway(f, RA));
                    frame[18] = 8;
                    frame
                },
            ],
            Family::V6 => {
                let good = nd(ND_NEIGHBOR_ADVERT, (evil, gw), to, gw, Some((2, evil)));
                let foreign = nd(ND_NEIGHBOR_ADVERT, (evil, gw), to, gw, Some((2, [2, 1, 1, 1, 1, 1])));
                let none = nd(ND_NEIGHBOR_ADVERT, (evil, gw), to, gw, None);
                vec![foreign.frame(), none.frame(), good.ttl(254).frame()]
            }
        };
        for frame in frames {
            let verdict = run(tables, entry, &frame);
            assert!(matches!(verdict, Verdict::Passed | Verdict::Dropped(DropReason::NdMalformed)));
            assert_eq!(hop(tables).1.flags, HOP_USED, "{frame:02x?}");
        }
        // Somebody claims our addresses, which once were next hops.
        for ours in [A1.floating(f), A3.floating(f), gateway(f, RA), gateway(f, RB), public(f, FORWARDING)] {
            let hop =
                Hop { flags: HOP_USED, ifindex: EXT, network: PUBLIC, ip: ours.into(), ..Hop::default() };
            tables.set_hop(77, hop);
            let claim = match f {
                Family::V4 => arp(BROADCAST, evil, 2, (evil, ours), ours),
                Family::V6 => nd(ND_NEIGHBOR_ADVERT, (evil, ours), to, ours, Some((2, evil))).frame(),
            };
            run(tables, entry, &claim);
            let now = tables.hops().into_iter().find(|hop| hop.0 == 77).unwrap().1;
            assert_eq!(now, hop, "{ours} is ours");
        }
    }
}

#[test]
fn r5_a_next_hop_that_never_answers_is_host_unreachable_from_the_inside_address() {
    for f in BOTH {
        for host in [A1, A2, C1, B1] {
            let world = World::unresolved(0);
            let tables = &world.nodes[0];
            let frame = outwards(f, host, 1500);
            request(&world, host, &frame);
            let (index, made) = hop(tables);
            tables.set_hop(index, Hop { flags: made.flags | HOP_FAILED, ..made });
            let before = connections(tables);
            for _ in 0..2 {
                let Arrived::Else(0, verdict) = world.send(End::Inside(host), &frame) else { panic!("sent") };
                let (answer, refused) = answered(verdict);
                assert_eq!(refused, Some(DropReason::HopUnanswered));
                let code = if f == Family::V4 { (3, 1) } else { (1, 3) };
                assert_icmp_error(&answer, &frame, ip(f, host.network, 1), code);
            }
            assert_eq!(connections(tables), before, "nothing more is kept");
            // It speaks: all is well.
            assert!(tables.learn(index, GW_MAC));
            assert!(matches!(world.send(End::Inside(host), &frame), Arrived::Outside(0, _)));
        }
    }
}

#[test]
fn n2_outside_addresses_are_answered_by_their_owner_alone() {
    let world = World::new(0);
    let asker = GW_MAC;
    for f in BOTH {
        let mut targets = vec![(gateway(f, RA), owner(RA), RA), (gateway(f, RB), owner(RB), RB)];
        targets.push((public(f, FORWARDING), 0, RA));
        for host in HOSTS.into_iter().filter(|host| host.floating.is_some()) {
            targets.push((host.floating(f), host.node, host.router()));
        }
        for (target, owner, router) in targets {
            let ask = match f {
                Family::V4 => arp(BROADCAST, asker, 1, (asker, public(f, 1)), target),
                Family::V6 => solicit((asker, public(f, 1)), target).frame(),
            };
            let mac = gateway_mac(router, owner);
            for (node, tables) in world.nodes.iter().enumerate() {
                let verdict = run(tables, Entry::External(EXT), &ask);
                if node != owner {
                    assert_eq!(verdict, Verdict::Passed, "{target} is answered by node {}", node + 1);
                    continue;
                }
                let (answer, refused) = answered(verdict);
                assert_eq!(refused, None);
                assert_eq!((&answer[..6], &answer[6..12]), (&asker[..], &mac[..]));
                if f == Family::V4 {
                    let expected = arp(asker, mac, 2, (mac, target), public(f, 1));
                    assert_eq!(answer[..32], expected[..32]);
                    assert_eq!(answer[32..38], asker);
                    assert_eq!(answer[38..42], expected[38..42]);
                } else {
                    let said = read(&answer);
                    assert_eq!((said.src, said.dst, said.ttl), (target, public(f, 1), 255));
                    assert_eq!(said.l4[0], ND_NEIGHBOR_ADVERT);
                    assert_eq!(said.l4[4] & 0x40, 0x40, "solicited");
                    let IpAddr::V6(wanted) = target else { unreachable!() };
                    assert_eq!((&said.l4[8..24], &said.l4[24..26]), (&wanted.octets()[..], &[2, 1][..]));
                    assert_eq!(said.l4[26..32], mac);
                }
            }
        }
        // Inside addresses, free ones and other hosts' are nobody's.
        for target in [A1.ip(f), public(f, 200), public(f, 1), remote(f), ip(f, A, 1)] {
            let ask = match f {
                Family::V4 => arp(BROADCAST, asker, 1, (asker, public(f, 9)), target),
                Family::V6 => solicit((asker, public(f, 9)), target).frame(),
            };
            for tables in &world.nodes {
                assert_eq!(run(tables, Entry::External(EXT), &ask), Verdict::Passed);
            }
        }
    }
}

#[test]
fn n2_other_hosts_frames_are_left_to_the_kernel() {
    let world = World::new(0);
    for f in BOTH {
        for mac in [[2, 0xab, 0, 0, 0, 1], BROADCAST, gateway_mac(RA, 1), router_mac(A, 1), A1.mac()] {
            for dst in [A1.floating(f), A1.ip(f), gateway(f, RA)] {
                let frame = from(f, End::Outside, dst).via(mac).frame();
                let verdict = run(&world.nodes[0], Entry::External(EXT), &frame);
                assert_eq!(verdict, Verdict::Passed);
                // From another node it is nobody's business but ours.
                let mut outer = vxlan([192, 0, 2, 2], PUBLIC_VNI, &frame);
                outer[30..34].copy_from_slice(&[192, 0, 2, 1]);
                fix_ipv4(&mut outer);
                let verdict = run(&world.nodes[0], Entry::Uplink, &outer);
                assert_eq!(verdict, Verdict::Dropped(DropReason::TunnelMisdelivered));
            }
        }
        // An interface that is no longer external.
        let frame = from(f, End::Outside, A1.floating(f)).frame();
        assert_eq!(run(&world.nodes[0], Entry::External(99), &frame), Verdict::Passed);
    }
}

/// Packets from outside that node 1 receives and node 2 translates.
fn foreign(f: Family) -> Vec<Pkt> {
    let at_node_1 = |dst: IpAddr| from(f, End::Outside, dst).via(gateway_mac(RA, 0));
    let mut all = vec![
        // A floating IP that moved a moment ago.
        at_node_1(A3.floating(f)),
        at_node_1(A3.floating(f)).ping(7, b"x"),
        at_node_1(A3.floating(f)).l4(L4::Raw(47, vec![1; 30])),
        // A forwarded port.
        at_node_1(public(f, FORWARDING)).ports(1500, 5354),
    ];
    if f == Family::V4 {
        let ra = gateway(f, RA);
        for port in [3072, 4095, 4096, 5119] {
            all.push(at_node_1(ra).ports(53, port));
            all.push(at_node_1(ra).l4(L4::Tcp {
                sport: 80,
                dport: port,
                seq: 1,
                ack: 1,
                flags: TCP_ACK,
                payload: vec![],
            }));
            let id = port.to_be_bytes();
            all.push(at_node_1(ra).l4(L4::Icmp {
                kind: ICMP_ECHO_REPLY,
                code: 0,
                rest: [id[0], id[1], 0, 1],
                payload: vec![],
            }));
            // An error about what node 2 sent.
            let sent = from(f, End::Inside(A4), remote(f)).from(ra).ports(port, 53).frame();
            all.push(at_node_1(ra).icmp(ICMP_UNREACHABLE, 1, &sent[ETH_LEN..ETH_LEN + 28]));
        }
    }
    all
}

#[test]
fn n9_a_gateway_passes_on_what_another_node_translates_and_keeps_no_connection() {
    for f in BOTH {
        for pkt in foreign(f) {
            let world = World::new(RULE_STATEFUL);
            let tables = &world.nodes[0];
            let frame = pkt.clone().frame();
            for _ in 0..2 {
                let (ifindex, out) = sent(run(tables, Entry::External(EXT), &frame));
                assert_eq!(ifindex, UPLINK);
                assert_eq!(out[30..34], [192, 0, 2, 2], "to node 2");
                let (vni, inner) = inner(&out);
                assert_eq!(vni, PUBLIC_VNI);
                let mut expected = frame.clone();
                expected[..6].copy_from_slice(&gateway_mac(RA, 1));
                expected[6..12].copy_from_slice(&gateway_mac(RA, 0));
                if f == Family::V4 {
                    expected[22] -= 1;
                    fix_ipv4(&mut expected);
                } else {
                    expected[21] -= 1;
                }
                assert_eq!(inner, expected, "as it came, one router on");
            }
            assert!(tables.flows().is_empty());
            let kept = tables.transients();
            assert!(
                kept.iter().all(|(key, _)| key.from == FROM_BLOCK),
                "a gateway keeps no connection: {kept:?}"
            );
            assert!(tables.drops.borrow().is_empty());
        }
    }
}

#[test]
fn n9_a_gateway_keeps_one_entry_for_a_block_of_ports_and_decides_by_it() {
    let mut world = World::new(RULE_STATEFUL);
    let tables = &mut world.nodes[0];
    let pkt = from(Family::V4, End::Outside, gateway(Family::V4, RA)).via(gateway_mac(RA, 0));
    let run = |tables: &MemoryTables, sport: u16, dport: u16| {
        let frame = pkt.clone().ports(sport, dport).frame();
        let (ifindex, out) = sent(run(tables, Entry::External(EXT), &frame));
        assert_eq!((ifindex, &out[30..34]), (UPLINK, &[192, 0, 2, 2][..]), "to node 2");
        let (_, inside) = inner(&out);
        assert_valid(&inside);
        assert_eq!(inside[34..38], frame[34..38], "as it came");
        u16::from_be_bytes([out[34], out[35]])
    };
    let ports: std::collections::BTreeSet<u16> =
        (0..100).map(|i| run(tables, 1000 + i, 3072 + i * 10)).collect();
    assert!(ports.len() > 90, "each spreads over the underlay's paths by itself: {}", ports.len());
    assert_eq!(tables.transients().len(), 1);
    assert_eq!(event(tables, Event::FlowMiss), 1, "all but the first by it");
    run(tables, 1, 4096);
    assert_eq!((tables.transients().len(), event(tables, Event::FlowMiss)), (2, 2), "the next block");
    // What it was decided by changed: it is decided again.
    let (key, flow) = tables.transients()[0];
    tables.revisions.insert(flow.network, flow.epoch + 1);
    run(tables, 1, key.dport.get());
    assert_eq!(event(tables, Event::FlowMiss), 3);
    // From another neighbour, or to another router's hardware address: not by it.
    let misses = event(tables, Event::FlowMiss);
    let mut frame = pkt.clone().ports(9, 4097).frame();
    frame[11] ^= 1;
    super::fixture::run(tables, Entry::External(EXT), &frame);
    assert_eq!(event(tables, Event::FlowMiss), misses + 1);
}

/// A connection that began before its block went to another node stays where it is known.
#[test]
fn n9_a_connection_of_the_gateway_goes_before_its_block() {
    let f = Family::V4;
    let mut world = World::new(RULE_STATEFUL);
    let Arrived::Outside(0, out) = world.send(End::Inside(A2), &outwards(f, A2, 1500)) else {
        panic!("not sent outside by node 1");
    };
    let port = u16::from_be_bytes([out[34], out[35]]);
    let key = SnatOwnerKey {
        network: Scoped::new(0, PUBLIC),
        ip: Ip::from(gateway(f, RA)).as_v4(),
        block: u32::from(port) / SNAT_BLOCK,
    };
    let there = SnatOwner { node: 2, mac: gateway_mac(RA, 1), zero: 0 };
    world.nodes[0].image.snat_owners.insert(key, there);
    let to_port =
        |port| from(f, End::Outside, gateway(f, RA)).via(gateway_mac(RA, 0)).ports(53, port).frame();
    for _ in 0..2 {
        // Another of the block, which makes the block's entry.
        sent(run(&world.nodes[0], Entry::External(EXT), &to_port(port ^ 1)));
    }
    let kept = world.nodes[0].transients();
    assert!(kept.iter().any(|(key, _)| key.from == FROM_BLOCK), "{kept:?}");
    for _ in 0..2 {
        let arrived = world.send(End::Outside, &to_port(port));
        assert!(matches!(arrived, Arrived::Port(A2, _)), "{arrived:?}");
    }
}

#[test]
fn n9_a_gateways_errors_come_from_the_routers_outside_address() {
    for f in BOTH {
        for pkt in foreign(f) {
            let world = World::new(0);
            let tables = &world.nodes[0];
            let is_error = matches!(pkt.l4, L4::Icmp { kind: ICMP_UNREACHABLE, .. });
            let frame = pkt.clone().ttl(1).frame();
            // One from inside, through two routers, leaves nothing behind.
            world.send(End::Inside(A1), &from(f, End::Inside(A1), B1.floating(f)).frame());
            let verdict = run(tables, Entry::External(EXT), &frame);
            if is_error {
                assert_eq!(verdict, Verdict::Dropped(DropReason::TtlExceeded), "no error about an error");
                continue;
            }
            let (answer, refused) = answered(verdict);
            assert_eq!(refused, Some(DropReason::TtlExceeded));
            let code = if f == Family::V4 { (11, 0) } else { (3, 0) };
            assert_icmp_error(&answer, &frame, gateway(f, RA), code);
            assert_eq!(read(&answer).ttl, 64, "it comes from the first router");
        }
        let pkt = from(f, End::Outside, A3.floating(f)).via(gateway_mac(RA, 0));
        let world = World::new(0);
        let tables = &world.nodes[0];
        let entry = Entry::External(EXT);
        sent(run(tables, entry, &pkt.clone().sized(1450).frame()));
        let frame = pkt.clone().sized(1451).frame();
        let (answer, refused) = answered(run(tables, entry, &frame));
        assert_eq!(refused, Some(DropReason::TooBig));
        let code = if f == Family::V4 { (3, 4) } else { (2, 0) };
        assert_eq!(assert_icmp_error(&answer, &frame, gateway(f, RA), code), 1450);
        if f == Family::V4 {
            let mut pkt = pkt.clone().sized(1451);
            pkt.fragment = 0;
            let Verdict::Fragmented(flow) = run(tables, entry, &pkt.frame()) else { panic!("not cut") };
            assert_eq!((flow.mtu, flow.vni, flow.target), (1450, PUBLIC_VNI, 2));
        }
        // A super-packet is judged by its segments.
        let payload = vec![7; 20_000];
        let l4 = L4::Tcp { sport: 1, dport: 2, seq: 1, ack: 1, flags: TCP_ACK, payload };
        let mut packet = MemoryPacket::new(&pkt.l4(l4).frame());
        packet.gso_size = 1200;
        sent(run_packet(tables, entry, packet.clone()));
        packet.gso_size = 1440;
        assert_eq!(answered(run_packet(tables, entry, packet)).1, Some(DropReason::TooBig));
        // Nothing of any connection: at most the way to the blocks of ports of an address.
        let kept = tables.transients();
        assert!(tables.flows().is_empty() && kept.iter().all(|(key, _)| key.from == FROM_BLOCK), "{kept:?}");
    }
}

#[test]
fn n9_two_nodes_that_disagree_do_not_play_ball() {
    for f in BOTH {
        for pkt in foreign(f) {
            let world = World::new(0);
            // Node 2 sends to node 1 what node 1 takes for node 2's.
            let mut outer = vxlan([192, 0, 2, 2], PUBLIC_VNI, &pkt.frame());
            outer[30..34].copy_from_slice(&[192, 0, 2, 1]);
            fix_ipv4(&mut outer);
            let verdict = run(&world.nodes[0], Entry::Uplink, &outer);
            assert_eq!(verdict, Verdict::Dropped(DropReason::TunnelMisdelivered));
        }
    }
}

#[test]
fn n9_a_connection_goes_on_through_another_gateway() {
    let f = Family::V4;
    let mut world = World::new(0);
    // Node 2's connection, whose answers node 1 has passed on.
    let frame = from(f, End::Inside(A4), remote(f)).ports(1500, 53).frame();
    let Arrived::Outside(1, out) = world.send(End::Inside(A4), &frame) else { panic!("not sent") };
    let port = u16::from_be_bytes([out[34], out[35]]);
    let answer = from(f, End::Outside, gateway(f, RA)).ports(53, port);
    assert!(matches!(world.send(End::Outside, &answer.frame()), Arrived::Port(A4, _)));
    // Node 1 starts anew; then node 2 itself becomes the gateway.
    world.nodes[0] = World::new(0).nodes.into_iter().next().unwrap();
    assert!(matches!(world.send(End::Outside, &answer.frame()), Arrived::Port(A4, _)));
    let direct = answer.via(gateway_mac(RA, 1)).frame();
    let arrived = world.carry(1, Entry::External(EXT), MemoryPacket::new(&direct));
    assert!(matches!(arrived, Arrived::Port(A4, _)), "{arrived:?}");
    assert_eq!(connections(&world.nodes[1]), (1, 0));
}

#[test]
fn r3_the_router_answers_pings_from_outside_and_refuses_the_rest() {
    for f in BOTH {
        let world = World::new(RULE_STATEFUL);
        let to = gateway(f, RA);
        let ping = from(f, End::Outside, to).ping(7, b"hello").frame();
        let Arrived::Else(0, verdict) = world.send(End::Outside, &ping) else { panic!("sent on") };
        let (answer, refused) = answered(verdict);
        let pong = read(&answer);
        assert_eq!((refused, pong.src, pong.dst, pong.dst_mac), (None, to, remote(f), GW_MAC));
        // A port of nobody's connection.
        let Arrived::Else(0, verdict) =
            world.send(End::Outside, &from(f, End::Outside, to).ports(53, 1500).frame())
        else {
            panic!("sent on");
        };
        assert_eq!(answered(verdict).1, Some(DropReason::RouterPortUnreachable));
        // An echo reply nobody waits for, an error about nothing.
        let kind = if f == Family::V4 { ICMP_ECHO_REPLY } else { ICMPV6_ECHO_REPLY };
        for pkt in [
            from(f, End::Outside, to).l4(L4::Icmp { kind, code: 0, rest: [4, 1, 0, 1], payload: vec![] }),
            from(f, End::Outside, to).icmp(1 + 2 * u8::from(f == Family::V4), 0, &[0; 48]),
        ] {
            let arrived = world.send(End::Outside, &pkt.frame());
            assert_eq!(arrived, Arrived::Else(0, Verdict::Dropped(DropReason::RouterIgnored)));
        }
        assert!(world.nodes[0].flows().is_empty() && world.nodes[0].transients().is_empty());
    }
}

#[test]
fn n7_a_floating_ip_whose_port_is_nowhere_is_unreachable() {
    for f in BOTH {
        let mut world = World::new(0);
        let key = AddressKey::new(0, PUBLIC, A3.floating(f).into());
        for tables in &mut world.nodes {
            let station = tables.image.addresses.get_mut(&key).unwrap();
            (station.place, station.at) = (PLACE_UNBOUND, 0);
            tables.image.nat.retain(|nat, _| nat.ip != key.ip);
        }
        let frame = from(f, End::Inside(A1), A3.floating(f)).frame();
        let Arrived::Else(0, verdict) = world.send(End::Inside(A1), &frame) else { panic!("sent") };
        let (answer, refused) = answered(verdict);
        assert_eq!(refused, Some(DropReason::PortUnbound));
        let code = if f == Family::V4 { (3, 1) } else { (1, 3) };
        assert_icmp_error(&answer, &frame, ip(f, A, 1), code);
    }
}

#[test]
fn r5_without_an_interface_outside_a_packet_is_refused_with_a_reason() {
    for f in BOTH {
        let mut world = World::new(0);
        world.nodes[0].commit.externals = Default::default();
        let frame = outwards(f, A1, 1500);
        let Arrived::Else(0, verdict) = world.send(End::Inside(A1), &frame) else { panic!("sent") };
        assert_eq!(answered(verdict).1, Some(DropReason::ExternalAbsent));
        // Floating IPs of other nodes are reached all the same.
        let frame = from(f, End::Inside(A1), A3.floating(f)).frame();
        assert!(matches!(world.send(End::Inside(A1), &frame), Arrived::Port(A3, _)));
    }
}

#[test]
fn n4_outside_is_not_translated_to_outside() {
    // Somebody outside uses the router as a way to somebody else outside.
    let f = Family::V4;
    let world = World::new(0);
    let frame = from(f, End::Outside, beyond(f, 9)).via(gateway_mac(RA, 0)).frame();
    match world.send(End::Outside, &frame) {
        Arrived::Outside(0, out) => assert_eq!(read(&out).src, remote(f)),
        Arrived::Else(0, Verdict::Dropped(_) | Verdict::Answered { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(connections(&world.nodes[0]), (0, 0));
}
