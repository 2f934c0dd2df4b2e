//! Load balancing (behaviours B1-B4): every kind of client, every member, both directions, over both nodes.

use core::net::IpAddr;

use proptest::prelude::*;

use super::{fixture::*, world::*};
use crate::{
    addr::{Be16, Ip},
    memory::{MemoryTables, Verdict},
    reason::DropReason,
    tables::*,
    wire::*,
};

const MEMBERS: [Host; 3] = [A2, A4, C2];
const VIP: u32 = 200;
const FLOATING: u32 = 80;
const PORT: u16 = 80;
const DNS: u16 = 53;
const INSIDE: u16 = 8080;
const SLOTS: u32 = 256;
const NOBODY: Slot = Slot { member: 0, other: SLOT_NOBODY };

fn vip(f: Family) -> IpAddr {
    ip(f, A, VIP)
}

fn pool(f: Family) -> u32 {
    if f == Family::V4 { 1 } else { 2 }
}

fn member_mac(f: Family, index: usize) -> Mac {
    [2, 0xba, 0, 0, pool(f) as u8, index as u8]
}

/// The slots of both pools.
fn deal(tables: &mut MemoryTables, deal: impl Fn(u32) -> Slot) {
    for f in BOTH {
        for chunk in 0..SLOTS / SLOTS_IN_CHUNK {
            let key = PoolSlotsKey { pool: Scoped::new(0, pool(f)), chunk };
            let mut slots = [NOBODY; SLOTS_IN_CHUNK as usize];
            for (i, slot) in slots.iter_mut().enumerate() {
                *slot = deal(chunk * SLOTS_IN_CHUNK + i as u32);
            }
            tables.image.pool_mut(pool(f)).slots.insert(key, PoolSlots(slots));
        }
    }
}

fn evenly(slot: u32) -> Slot {
    let member = (slot % 3) as u16;
    Slot { member, other: (member + 1) % 3 }
}

fn listeners(tables: &mut MemoryTables, change: impl Fn(&mut Listener)) {
    for f in BOTH {
        for (proto, port, number) in [(PROTO_TCP, PORT, 7), (PROTO_UDP, DNS, 8)] {
            let key = ListenerKey {
                network: Scoped::new(0, A),
                ip: vip(f).into(),
                port: Be16::new(port),
                proto,
                zero: 0,
            };
            let mut listener = Listener { pool: pool(f), slots: SLOTS, flags: 0, number, router: RA };
            change(&mut listener);
            tables.image.listeners.insert(key, listener);
        }
    }
}

fn flags(tables: &mut MemoryTables, index: u32, flags: u16) {
    for f in BOTH {
        let key = PoolMemberKey { pool: Scoped::new(0, pool(f)), index };
        tables.image.pool_mut(pool(f)).members.get_mut(&key).expect("a member").flags = flags;
    }
}

fn world(rules: u32) -> World {
    let mut world = World::new(rules);
    for (node, tables) in world.nodes.iter_mut().enumerate() {
        for f in BOTH {
            let mac = router_mac(A, 1);
            let station = Station { mac, kind: STATION_VIP, place: PLACE_EVERYWHERE, at: 0, owner: RA };
            tables.image.addresses.insert(AddressKey::new(0, A, vip(f).into()), station);
            for (index, host) in MEMBERS.into_iter().enumerate() {
                let member = PoolMember {
                    ip: host.ip(f).into(),
                    network: host.network,
                    port: Be16::new(INSIDE),
                    flags: MEMBER_UP,
                    number: 1 + index as u32,
                    mac: member_mac(f, index),
                    zero: 0,
                };
                let pool = pool(f);
                let key = PoolMemberKey { pool: Scoped::new(0, pool), index: index as u32 };
                tables.image.pool_mut(pool).members.insert(key, member);
                let at = PoolMemberAt::new(0, pool, member.ip, member.port);
                tables.image.pool_mut(pool).members_at.insert(at, index as u32);
                tables
                    .image
                    .pool_mut(pool)
                    .members_at
                    .insert(PoolMemberAt::mac(0, pool, member.mac), index as u32);
                if host.node == node {
                    let at = index as u32;
                    let station = Station {
                        mac: member.mac,
                        kind: STATION_MEMBER,
                        place: PLACE_EVERYWHERE,
                        at,
                        owner: RA,
                    };
                    tables.image.pool_mut(pool).stations.insert(FdbKey::new(0, PUBLIC, member.mac), station);
                }
            }
            // As the router's own address: node 1 answers for it.
            let outside: Ip = public(f, FLOATING).into();
            let own = tables.image.addresses[&AddressKey::new(0, PUBLIC, gateway(f, RA).into())];
            let station = Station { kind: STATION_FLOATING, ..own };
            tables.image.addresses.insert(AddressKey::new(0, PUBLIC, outside), station);
            let key = RouteKey::lookup(0, RA, outside);
            let route = Route { kind: ROUTE_SELF, network: PUBLIC, nexthop: Ip::UNSPECIFIED };
            tables.image.routes.insert(key, route);
            let key = NatKey {
                network: Scoped::new(0, PUBLIC),
                ip: outside,
                port: Be16::new(0),
                proto: 0,
                zero: 0,
            };
            let nat = Nat {
                inside: vip(f).into(),
                router: RA,
                port: 0,
                node: NODE_BALANCED,
                inside_network: A,
                inside_port: Be16::new(0),
                mac: [0; 6],
            };
            tables.image.nat.insert(key, nat);
        }
        listeners(tables, |_| {});
        deal(tables, evenly);
    }
    world
}

/// A new epoch: everything is decided again.
fn commit(world: &mut World, change: impl Fn(&mut MemoryTables)) {
    for tables in &mut world.nodes {
        tables.commit.epoch += 2;
        for network in [A, B, C, PUBLIC] {
            tables.revisions.insert(network, tables.commit.epoch);
        }
        change(tables);
    }
}

fn question(f: Family, proto: u8, client: End, to: IpAddr, sport: u16, flags: u8) -> Vec<u8> {
    let mut pkt = from(f, client, to);
    if let End::Inside(host) = client {
        pkt.dst_mac = router_mac(host.network, 1);
    }
    let payload = b"a question".to_vec();
    pkt.l4(match proto {
        PROTO_TCP => L4::Tcp { sport, dport: PORT, seq: 1, ack: 0, flags, payload },
        _ => L4::Udp { sport, dport: DNS, payload },
    })
    .frame()
}

fn ports(read: &Read) -> (u16, u16) {
    let word = |at: usize| u16::from_be_bytes([read.l4[at], read.l4[at + 1]]);
    (word(0), word(2))
}

/// The member a frame arrived at.
#[track_caller]
fn served(arrived: Arrived) -> (usize, Read) {
    let Arrived::Port(host, frame) = arrived else { panic!("not served: {arrived:?}") };
    assert_valid(&frame);
    let index = MEMBERS.into_iter().position(|member| member == host).expect("a member");
    let seen = read(&frame);
    assert_eq!((seen.dst_mac, ports(&seen).1), (host.mac(), INSIDE));
    assert_eq!(seen.dst, host.ip(if seen.dst.is_ipv4() { Family::V4 } else { Family::V6 }));
    (index, seen)
}

/// What a member answers.
fn answer(f: Family, proto: u8, member: usize, seen: &Read) -> Vec<u8> {
    let mut pkt = from(f, End::Inside(MEMBERS[member]), seen.src);
    if seen.src == vip(f)
        || !HOSTS.iter().any(|host| host.network == MEMBERS[member].network && host.ip(f) == seen.src)
    {
        pkt.dst_mac = router_mac(MEMBERS[member].network, 1);
    }
    let (sport, dport) = (INSIDE, ports(seen).0);
    let payload = b"an answer".to_vec();
    pkt.l4(match proto {
        PROTO_TCP => L4::Tcp { sport, dport, seq: 9, ack: 2, flags: TCP_SYN | TCP_ACK, payload },
        _ => L4::Udp { sport, dport, payload },
    })
    .frame()
}

/// A question, its answer, and both again; returns the member.
#[track_caller]
fn exchange(world: &World, f: Family, proto: u8, client: End, to: IpAddr, sport: u16) -> usize {
    let mut found = None;
    for flags in [TCP_SYN, TCP_ACK] {
        let (member, seen) = served(world.send(client, &question(f, proto, client, to, sport, flags)));
        let same = found.is_none_or(|before| before == member);
        assert!(same, "{client} {sport}: another member");
        found = Some(member);
        let arrived = world.send(End::Inside(MEMBERS[member]), &answer(f, proto, member, &seen));
        let frame = match (client, arrived) {
            (End::Inside(host), Arrived::Port(at, frame)) if host == at => frame,
            (End::Outside, Arrived::Outside(_, frame)) => frame,
            (_, other) => panic!("the answer of member {member} is not at {client}: {other:?}"),
        };
        assert_valid(&frame);
        let got = read(&frame);
        let port = if proto == PROTO_TCP { PORT } else { DNS };
        assert_eq!((got.src, ports(&got)), (to, (port, sport)), "from whom it was asked");
    }
    found.expect("served")
}

fn clients(f: Family) -> Vec<(End, IpAddr)> {
    let floating = public(f, FLOATING);
    let mut clients: Vec<(End, IpAddr)> =
        [A1, A3, A5, C1].into_iter().map(|host| (End::Inside(host), vip(f))).collect();
    // Members themselves, and whoever comes by the floating IP: from outside, from another router, from the same.
    clients.extend(MEMBERS.into_iter().map(|host| (End::Inside(host), vip(f))));
    clients.extend([(End::Outside, floating), (End::Inside(B1), floating), (End::Inside(B2), floating)]);
    clients.extend([(End::Inside(A1), floating), (End::Inside(A3), floating)]);
    if f == Family::V4 {
        clients.extend([(End::Inside(A2), floating), (End::Inside(A4), floating)]);
    } else {
        clients.push((End::Outside, vip(f)));
    }
    clients
}

#[test]
fn b1_everybody_is_served_by_every_member_and_answered_by_the_vip() {
    for rules in [0, RULE_STATEFUL] {
        for f in BOTH {
            for (client, to) in clients(f) {
                for proto in [PROTO_TCP, PROTO_UDP] {
                    let world = world(rules);
                    let mut counts = [0; 3];
                    for sport in 1500..1530 {
                        counts[exchange(&world, f, proto, client, to, sport)] += 1;
                    }
                    assert!(counts.iter().all(|&count| count > 0), "{client} to {to}: {counts:?}");
                    let counted: u64 = world
                        .nodes
                        .iter()
                        .flat_map(|node| node.balanced.borrow().clone().into_values())
                        .sum();
                    assert_eq!(counted, 30, "{client} to {to}: each connection is counted once");
                }
            }
        }
    }
}

#[test]
fn b1_a_client_keeps_its_address_and_pays_one_router() {
    for f in BOTH {
        let world = world(RULE_STATEFUL);
        for client in [A1, A3, C1, C2] {
            for sport in 1600..1620 {
                let frame = question(f, PROTO_TCP, End::Inside(client), vip(f), sport, TCP_SYN);
                let (member, seen) = served(world.send(End::Inside(client), &frame));
                assert_eq!(seen.ttl, 63);
                if MEMBERS[member] == client {
                    assert_eq!(seen.src, vip(f), "to itself it comes from the VIP");
                } else {
                    assert_eq!((seen.src, ports(&seen).0), (client.ip(f), sport));
                }
            }
        }
        // From outside: the gateway and the member's node are one router, and the gateway keeps its own alone.
        let (mut own, outside) = (0, public(f, FLOATING));
        for sport in 1600..1620 {
            let frame = question(f, PROTO_TCP, End::Outside, outside, sport, TCP_SYN);
            let (member, seen) = served(world.send(End::Outside, &frame));
            assert_eq!((seen.src, seen.ttl), (remote(f), 63));
            own += usize::from(MEMBERS[member].node == 0);
        }
        let (_, legs) = legs(&world.nodes[0]);
        assert_eq!(legs.iter().filter(|(key, _)| key.dst == outside.into()).count(), own);
    }
}

#[test]
fn b2_source_ip_persistence() {
    for f in BOTH {
        let mut world = world(0);
        for tables in &mut world.nodes {
            listeners(tables, |listener| listener.flags = LISTENER_SOURCE_IP);
        }
        for (client, to) in clients(f) {
            let member = exchange(&world, f, PROTO_TCP, client, to, 1500);
            for sport in 1501..1510 {
                assert_eq!(exchange(&world, f, PROTO_TCP, client, to, sport), member, "{client} to {to}");
            }
            assert_eq!(exchange(&world, f, PROTO_UDP, client, to, 1500), member, "the same pool");
        }
    }
}

/// Every slot goes to the next member, as if the first to the second had come anew: what is known stays.
#[test]
fn b2_connections_stay_through_changes() {
    for f in BOTH {
        for (client, to) in clients(f) {
            for proto in [PROTO_TCP, PROTO_UDP] {
                // A gateway knows slots alone; of datagrams nothing says that they are not the first.
                let forgets = proto == PROTO_UDP && client == End::Outside;
                let mut world = world(RULE_STATEFUL);
                let before: Vec<usize> =
                    (1500..1520).map(|sport| exchange(&world, f, proto, client, to, sport)).collect();
                commit(&mut world, |tables| {
                    deal(tables, |slot| {
                        let Slot { member, other } = evenly(slot);
                        let leaves = if forgets { SLOT_LEAVES } else { 0 };
                        Slot { member: other, other: member | leaves }
                    });
                });
                for (sport, member) in (1500..1520).zip(before) {
                    for _ in 0..2 {
                        let frame = question(f, proto, client, to, sport, TCP_ACK);
                        let (now, seen) = served(world.send(client, &frame));
                        assert_eq!(now, member, "{client} to {to}, {sport}");
                        let back = world.send(End::Inside(MEMBERS[now]), &answer(f, proto, now, &seen));
                        assert!(matches!(back, Arrived::Port(..) | Arrived::Outside(..)), "{back:?}");
                    }
                }
                // New ones go where the slots are now.
                let mut counts = [0; 3];
                for sport in 1600..1630 {
                    counts[exchange(&world, f, proto, client, to, sport)] += 1;
                }
                assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
            }
        }
    }
}

#[test]
fn b3_a_member_that_is_down_keeps_its_connections_and_gets_no_datagrams() {
    for f in BOTH {
        for client in [End::Inside(A1), End::Inside(C1), End::Outside] {
            let to = if client == End::Outside { public(f, FLOATING) } else { vip(f) };
            let mut world = world(RULE_STATEFUL);
            let of = |world: &World, proto| -> Vec<usize> {
                (1500..1530).map(|sport| exchange(world, f, proto, client, to, sport)).collect()
            };
            let (tcp, udp) = (of(&world, PROTO_TCP), of(&world, PROTO_UDP));
            commit(&mut world, |tables| {
                flags(tables, 1, MEMBER_DOWN);
                deal(tables, |slot| match evenly(slot) {
                    Slot { member: 1, other } => Slot { member: other, other: 1 | SLOT_LEAVES },
                    slot => slot,
                });
            });
            for (at, sport) in (1500..1530).enumerate() {
                let (now, _) =
                    served(world.send(client, &question(f, PROTO_TCP, client, to, sport, TCP_ACK)));
                assert_eq!(now, tcp[at], "{client}: a connection goes on");
                let (now, _) = served(world.send(client, &question(f, PROTO_UDP, client, to, sport, 0)));
                assert_ne!(now, 1, "{client}: datagrams go where they are served");
                if udp[at] != 1 {
                    assert_eq!(now, udp[at]);
                }
                let frame = question(f, PROTO_TCP, client, to, sport + 1000, TCP_SYN);
                assert_ne!(served(world.send(client, &frame)).0, 1, "{client}: nothing new");
            }
        }
    }
}

/// A member whose node is dead: what comes from outside is not passed to that node first.
#[test]
fn b3_new_datagrams_do_not_ask_a_member_that_is_down() {
    for f in BOTH {
        let mut world = world(RULE_STATEFUL);
        commit(&mut world, |tables| {
            flags(tables, 1, MEMBER_DOWN);
            deal(tables, |_| Slot { member: 0, other: 1 | SLOT_LEAVES });
        });
        assert_eq!(MEMBERS[0].node, owner(RA), "on the gateway itself");
        assert_ne!(MEMBERS[0].node, MEMBERS[1].node);
        let way = world.nodes[MEMBERS[0].node].underlay.clone();
        world.nodes[MEMBERS[0].node].underlay.clear();
        let outside = public(f, FLOATING);
        for sport in 1500..1530 {
            assert_eq!(exchange(&world, f, PROTO_UDP, End::Outside, outside, sport), 0, "{sport}");
        }
        // One that drains has streams of its own: it is asked.
        commit(&mut world, |tables| flags(tables, 1, 0));
        let frame = question(f, PROTO_UDP, End::Outside, outside, 1600, 0);
        let arrived = world.send(End::Outside, &frame);
        assert!(matches!(arrived, Arrived::Else(0, _)), "there is no way to who is to be asked: {arrived:?}");
        world.nodes[MEMBERS[0].node].underlay = way;
        assert_eq!(served(world.send(End::Outside, &frame)).0, 0, "it does not know it");
    }
}

/// An unanswered connection has nothing that it could lose: its next try goes to who serves.
#[test]
fn b3_tries_that_nobody_answered_leave_a_member_that_is_down() {
    for f in BOTH {
        for (client, to) in clients(f) {
            let mut world = world(RULE_STATEFUL);
            let mut tried = Vec::new();
            for sport in 1500..1530 {
                let frame = question(f, PROTO_TCP, client, to, sport, TCP_SYN);
                tried.push(served(world.send(client, &frame)).0);
            }
            assert!(tried.contains(&1), "{client} to {to}: {tried:?}");
            commit(&mut world, |tables| {
                flags(tables, 1, MEMBER_DOWN);
                deal(tables, |slot| match evenly(slot) {
                    Slot { member: 1, other } => Slot { member: other, other: 1 | SLOT_LEAVES },
                    slot => slot,
                });
            });
            for (before, sport) in tried.into_iter().zip(1500..) {
                let now = exchange(&world, f, PROTO_TCP, client, to, sport);
                assert!(
                    if before == 1 { now != 1 } else { now == before },
                    "{client} to {to} {sport}: {now}"
                );
            }
        }
    }
}

/// Each node knows of its own members alone which are down: what one passes on is not sent back for ever.
#[test]
fn b3_nodes_that_disagree_about_members_serve_all_the_same() {
    for f in BOTH {
        // A2 is on the gateway, A4 on the other node; each takes its own for down, and the other for up.
        for (own, others) in [(MEMBER_DOWN, MEMBER_UP), (MEMBER_UP, MEMBER_DOWN)] {
            let mut world = world(RULE_STATEFUL);
            commit(&mut world, |_| {});
            for (node, tables) in world.nodes.iter_mut().enumerate() {
                for (index, host) in MEMBERS.into_iter().enumerate() {
                    flags(tables, index as u32, if host.node == node { own } else { others });
                }
                let index = |here: bool| MEMBERS.into_iter().position(|host| (host.node == node) == here);
                let [here, there] = [true, false].map(|here| index(here).expect("a member") as u16);
                let (member, other) = if own == MEMBER_UP { (here, there) } else { (there, here) };
                deal(tables, |_| Slot { member, other: other | SLOT_LEAVES });
            }
            for (client, to) in clients(f) {
                for sport in 1500..1510 {
                    for (proto, flags) in [
                        (PROTO_TCP, TCP_SYN),
                        (PROTO_UDP, 0),
                        // Of a connection that nobody knows.
                        (PROTO_TCP, TCP_ACK),
                    ] {
                        let sport = sport + u16::from(flags) * 100;
                        let frame = question(f, proto, client, to, sport, flags);
                        let (first, _) = served(world.send(client, &frame));
                        let (again, seen) = served(world.send(client, &frame));
                        assert_eq!(first, again, "{client} to {to} {sport}");
                        assert!(seen.ttl >= 60, "{client} to {to} {sport}: {}", seen.ttl);
                    }
                }
            }
        }
    }
}

/// A member's own node knows that it is down, the gateway does not yet: what begins goes to one that serves.
#[test]
fn b3_who_knows_of_a_member_that_it_is_down_sends_what_begins_to_another() {
    for f in BOTH {
        let mut world = world(RULE_STATEFUL);
        commit(&mut world, |tables| deal(tables, |_| Slot { member: 1, other: 0 }));
        let knows = &mut world.nodes[MEMBERS[1].node];
        flags(knows, 1, MEMBER_DOWN);
        deal(knows, |_| Slot { member: 0, other: 1 | SLOT_LEAVES });
        for proto in [PROTO_TCP, PROTO_UDP] {
            for sport in 1500..1510 {
                assert_eq!(exchange(&world, f, proto, End::Outside, public(f, FLOATING), sport), 0);
            }
        }
    }
}

/// Nodes that look for a member at one another pass nothing to and fro.
#[test]
fn b3_nodes_that_disagree_where_a_member_is_drop_it() {
    for f in BOTH {
        for known in [false, true] {
            let mut world = world(RULE_STATEFUL);
            commit(&mut world, |tables| deal(tables, |_| Slot { member: 0, other: SLOT_NOBODY }));
            let outside = public(f, FLOATING);
            let mac = member_mac(f, 0);
            let named = Station { mac, kind: STATION_MEMBER, place: PLACE_EVERYWHERE, at: 0, owner: RA };
            let key = AddressKey::new(0, A, MEMBERS[0].ip(f).into());
            let put = |world: &mut World, places: [(u8, u32); 2]| {
                commit(world, |tables| {
                    tables.image.pool_mut(pool(f)).stations.insert(FdbKey::new(0, PUBLIC, mac), named);
                });
                for (tables, (place, at)) in world.nodes.iter_mut().zip(places) {
                    let station = tables.image.addresses.get_mut(&key).expect("it is there");
                    (station.place, station.at) = (place, at);
                }
            };
            let frame = question(f, PROTO_TCP, End::Outside, outside, 1500, TCP_ACK);
            if known {
                // To both, one after the other.
                assert_eq!(exchange(&world, f, PROTO_TCP, End::Outside, outside, 1500), 0);
                put(&mut world, [(PLACE_REMOTE, 2), (PLACE_LOCAL, A4.ifindex)]);
                assert!(matches!(world.send(End::Outside, &frame), Arrived::Port(A4, _)), "it has moved");
                assert!(world.nodes.iter().all(|node| connections(node) != (0, 0)));
            }
            put(&mut world, [(PLACE_REMOTE, 2), (PLACE_REMOTE, 1)]);
            let arrived = world.send(End::Outside, &frame);
            let Arrived::Else(_, Verdict::Dropped(reason)) = arrived else {
                panic!("{known}: not dropped: {arrived:?}")
            };
            assert_eq!(reason, DropReason::TunnelMisdelivered, "{known}");
        }
    }
}

/// A gateway is not told that an address has moved on a network it has no part in: it remembers no way to one that may.
#[test]
fn b1_the_way_to_an_address_that_moves_is_looked_up_each_time() {
    for f in BOTH {
        let mut world = world(RULE_STATEFUL);
        commit(&mut world, |tables| deal(tables, |_| Slot { member: 1, other: SLOT_NOBODY }));
        let outside = public(f, FLOATING);
        let frame = question(f, PROTO_TCP, End::Outside, outside, 1500, TCP_SYN);
        let remembered = |world: &World| world.nodes[0].transients().len() + world.nodes[0].flows().len();
        assert_eq!((served(world.send(End::Outside, &frame)).0, remembered(&world)), (1, 1));
        // The same member, at an address that no port has.
        let mut world = self::world(RULE_STATEFUL);
        commit(&mut world, |tables| deal(tables, |_| Slot { member: 1, other: SLOT_NOBODY }));
        for tables in &mut world.nodes {
            let ip: Ip = MEMBERS[1].ip(f).into();
            let station = tables.image.addresses.remove(&AddressKey::new(0, A, ip)).expect("it is there");
            tables.store_learned(&LearnedKey { network: A, ip }, &Learned::at(station));
        }
        assert_eq!((served(world.send(End::Outside, &frame)).0, remembered(&world)), (1, 0));
    }
}

/// The last of them: who is served goes on, also where a gateway knows nothing of it; nobody else is.
#[test]
fn b4_a_pool_that_runs_empty_keeps_its_connections() {
    for f in BOTH {
        for client in [End::Inside(A1), End::Inside(C1), End::Outside] {
            let to = if client == End::Outside { public(f, FLOATING) } else { vip(f) };
            let mut world = world(RULE_STATEFUL);
            let before: Vec<usize> =
                (1500..1530).map(|sport| exchange(&world, f, PROTO_TCP, client, to, sport)).collect();
            commit(&mut world, |tables| {
                for index in 0..3 {
                    flags(tables, index, 0);
                }
                listeners(tables, |listener| listener.flags = LISTENER_EMPTY);
                deal(tables, |slot| Slot { member: SLOT_NOBODY, other: evenly(slot).member | SLOT_LEAVES });
            });
            for (sport, member) in (1500..1530).zip(before) {
                let frame = question(f, PROTO_TCP, client, to, sport, TCP_ACK);
                assert_eq!(served(world.send(client, &frame)).0, member, "{client} {sport}");
                let frame = question(f, PROTO_TCP, client, to, sport + 1000, TCP_SYN);
                let Arrived::Else(_, Verdict::Answered { refused, .. }) = world.send(client, &frame) else {
                    panic!("{client}: not refused")
                };
                assert_eq!(refused, Some(DropReason::PoolEmpty));
            }
        }
    }
}

/// A member's workload is migrated to the other node while it serves.
#[test]
fn c6_a_member_that_moves_is_followed() {
    for f in BOTH {
        for (client, to) in [
            (End::Inside(A1), vip(f)),
            (End::Inside(B1), public(f, FLOATING)),
            (End::Inside(B2), public(f, FLOATING)),
            (End::Outside, public(f, FLOATING)),
        ] {
            let mut world = world(RULE_STATEFUL);
            let before: Vec<usize> =
                (1500..1530).map(|sport| exchange(&world, f, PROTO_TCP, client, to, sport)).collect();
            // Member 0, A2, goes from node 1 to node 2.
            commit(&mut world, |_| {});
            let [there, here] = [0, 1].map(|node| {
                let tables = &mut world.nodes[node];
                let station = Station {
                    place: if node == 0 { PLACE_REMOTE } else { PLACE_LOCAL },
                    at: if node == 0 { 2 } else { A4.ifindex },
                    ..tables.image.addresses[&AddressKey::new(0, A, A2.ip(f).into())]
                };
                tables.image.addresses.insert(AddressKey::new(0, A, A2.ip(f).into()), station);
                tables.image.fdb.insert(FdbKey::new(0, A, A2.mac()), station);
                let key = FdbKey::new(0, PUBLIC, member_mac(f, 0));
                let named = Station {
                    mac: member_mac(f, 0),
                    kind: STATION_MEMBER,
                    place: PLACE_EVERYWHERE,
                    at: 0,
                    owner: RA,
                };
                if node == 0 {
                    tables.image.pool_mut(pool(f)).stations.remove(&key);
                } else {
                    tables.image.pool_mut(pool(f)).stations.insert(key, named);
                }
                station.place
            });
            assert_eq!((there, here), (PLACE_REMOTE, PLACE_LOCAL));
            for (sport, member) in (1500..1530).zip(before) {
                let frame = question(f, PROTO_TCP, client, to, sport, TCP_ACK);
                let arrived = world.send(client, &frame);
                let Arrived::Port(host, frame) = arrived else { panic!("{client} {sport}: {arrived:?}") };
                // The interface of A4 stands for the moved one's, too.
                let expected = if member == 0 { A4 } else { MEMBERS[member] };
                assert_eq!(host, expected, "{client} {sport}");
                assert_eq!(read(&frame).dst, MEMBERS[member].ip(f), "{client} {sport}: translated");
            }
        }
    }
}

/// A member that left the pool: its connections end, at another member, which resets them.
#[test]
fn b2_who_is_removed_keeps_nothing() {
    let f = Family::V4;
    let client = End::Inside(A1);
    let mut world = world(RULE_STATEFUL);
    let before: Vec<usize> =
        (1500..1530).map(|sport| exchange(&world, f, PROTO_TCP, client, vip(f), sport)).collect();
    assert!(before.contains(&1));
    commit(&mut world, |tables| {
        for f in BOTH {
            let at = PoolMemberAt::new(0, pool(f), MEMBERS[1].ip(f).into(), Be16::new(INSIDE));
            tables.image.pool_mut(pool(f)).members_at.remove(&at);
        }
        deal(tables, |slot| Slot { member: (slot % 2 * 2) as u16, other: SLOT_NOBODY });
    });
    for (sport, before) in (1500..1530).zip(before) {
        let frame = question(f, PROTO_TCP, client, vip(f), sport, TCP_ACK);
        let (now, _) = served(world.send(client, &frame));
        assert!(if before == 1 { now != 1 } else { now == before }, "{sport}: {before} {now}");
    }
}

#[test]
fn b4_nobody_there_is_said_at_once() {
    for f in BOTH {
        type Close = fn(&mut Listener);
        let closed: [(Close, DropReason); 2] = [
            (|listener| listener.slots = 0, DropReason::PoolEmpty),
            (|listener| listener.flags = LISTENER_DOWN, DropReason::ListenerDown),
        ];
        for (close, why) in closed {
            for (client, to) in clients(f) {
                let mut world = world(RULE_STATEFUL);
                for tables in &mut world.nodes {
                    listeners(tables, close);
                }
                for proto in [PROTO_TCP, PROTO_UDP] {
                    let frame = question(f, proto, client, to, 1500, TCP_SYN);
                    let Arrived::Else(_, Verdict::Answered { frame, refused }) = world.send(client, &frame)
                    else {
                        panic!("{client} to {to}: not refused");
                    };
                    assert_eq!(refused, Some(why), "{client} to {to}");
                    let told = read(&frame);
                    assert_eq!(told.src, to, "by whom it was asked");
                    if proto == PROTO_TCP {
                        assert_ne!(told.l4[13] & TCP_RST, 0);
                    } else {
                        let code = if f == Family::V4 { (3, 3) } else { (1, 4) };
                        assert_eq!((told.l4[0], told.l4[1]), code);
                    }
                }
            }
        }
    }
}

/// The VIP itself: it answers pings, and closed ports say so.
#[test]
fn b1_a_vip_answers_as_a_host() {
    for f in BOTH {
        let world = world(RULE_STATEFUL);
        for (client, to) in clients(f) {
            let End::Inside(host) = client else { continue };
            if to != vip(f) {
                continue;
            }
            let mut pkt = from(f, client, to).ping(7, b"ping");
            pkt.dst_mac = router_mac(host.network, 1);
            let Arrived::Else(_, Verdict::Answered { frame, refused: None }) =
                world.send(client, &pkt.frame())
            else {
                panic!("{client}: no echo")
            };
            assert_eq!(read(&frame).src, to);
            let mut pkt = from(f, client, to).tcp(1, 0, TCP_SYN, b"").ports(1500, 81);
            pkt.dst_mac = router_mac(host.network, 1);
            let Arrived::Else(_, Verdict::Answered { refused, .. }) = world.send(client, &pkt.frame()) else {
                panic!("{client}: not refused")
            };
            assert_eq!(refused, Some(DropReason::VipClosed));
        }
    }
}

/// What a node believes of the pools.
#[derive(Clone, Debug)]
struct Belief {
    /// Of each member.
    flags: [u16; 3],
    /// The members, and whether the other one leaves, of slots in turn.
    slots: [(u16, u16, bool); 5],
    /// Where each member is: on the node it is on, on the other, on none.
    places: [u8; 3],
}

fn belief() -> impl Strategy<Value = Belief> {
    let flags = prop::sample::select(vec![0, MEMBER_UP, MEMBER_DOWN, MEMBER_DOWN | MEMBER_LOST]);
    let slot = (0_u16..4, 0_u16..4, any::<bool>());
    let place = prop_oneof![4 => Just(0_u8), 1 => Just(1_u8), 1 => Just(2_u8)];
    let (flags, slots) = (prop::array::uniform3(flags), prop::array::uniform5(slot));
    (flags, slots, prop::array::uniform3(place)).prop_map(|(flags, slots, places)| Belief {
        flags,
        slots,
        places,
    })
}

/// Has a node believe it.
fn persuade(tables: &mut MemoryTables, node: usize, belief: &Belief) {
    let named = |index: u16| if index < 3 { index } else { SLOT_NOBODY };
    for (index, host) in MEMBERS.into_iter().enumerate() {
        flags(tables, index as u32, belief.flags[index]);
        let is_here = host.node == node && belief.places[index] == 0;
        for f in BOTH {
            let mac = member_mac(f, index);
            let station =
                Station { mac, kind: STATION_MEMBER, place: PLACE_EVERYWHERE, at: index as u32, owner: RA };
            tables.image.pool_mut(pool(f)).stations.insert(FdbKey::new(0, PUBLIC, mac), station);
            let key = AddressKey::new(0, host.network, host.ip(f).into());
            let at = tables.image.addresses.get_mut(&key).expect("it is there");
            (at.place, at.at) = match belief.places[index] {
                _ if is_here => (PLACE_LOCAL, host.ifindex),
                2 => (PLACE_UNBOUND, 0),
                _ => (PLACE_REMOTE, 2 - node as u32),
            };
        }
    }
    deal(tables, |slot| {
        let (member, other, leaves) = belief.slots[slot as usize % 5];
        let other = named(other);
        let leaves = if leaves && other != SLOT_NOBODY { SLOT_LEAVES } else { 0 };
        Slot { member: named(member), other: other | leaves }
    });
}

/// An answer comes from the VIP, for the client's groups, too (behaviours B1, P1): a client need not know members.
#[test]
fn p1_a_client_needs_a_rule_for_the_vip_alone() {
    for (f, stateful) in BOTH.into_iter().flat_map(|f| [(f, true), (f, false)]) {
        for (client, to) in clients(f) {
            let End::Inside(host) = client else { continue };
            for proto in [PROTO_TCP, PROTO_UDP] {
                let dport = if proto == PROTO_TCP { PORT } else { DNS };
                let mut world = world(0);
                for tables in &mut world.nodes {
                    tables.image.rules.clear();
                    for (key, binding) in &mut tables.image.bindings {
                        binding.policy = key.ifindex.id();
                    }
                    // The VIP, as the client knows it.
                    let class = 7;
                    let key = ClassKey {
                        prefix_len: ClassKey::FIXED_BITS + 128,
                        bank: Scoped::new(0, 0),
                        ip: to.into(),
                    };
                    tables.image.classes.insert(key, class);
                    let flags = if stateful { RULE_STATEFUL } else { 0 };
                    let mut allow = |host: Host, class: u32, direction: u8, port: Option<u16>| {
                        let bits = if port.is_some() { 16 } else { 0 };
                        let key = RuleKey {
                            prefix_len: RuleKey::PROTO_BITS + bits,
                            policy: Scoped::new(0, host.ifindex),
                            class,
                            direction: direction | if f == Family::V6 { RULE_V6 } else { 0 },
                            proto,
                            port: Be16::new(port.unwrap_or(0)),
                        };
                        tables.image.rules.insert(key, Rule { rule: host.ifindex, flags });
                    };
                    allow(host, class, 0, Some(dport));
                    for member in MEMBERS {
                        allow(member, 0, RULE_INGRESS, Some(INSIDE));
                    }
                    if !stateful {
                        // Each direction by itself.
                        allow(host, class, RULE_INGRESS, None);
                        for member in MEMBERS {
                            allow(member, 0, 0, None);
                        }
                    }
                }
                for sport in 1500..1520 {
                    let what = format!("{f:?} {client} to {to}, protocol {proto}, stateful {stateful}");
                    let question = question(f, proto, client, to, sport, TCP_SYN);
                    let (member, seen) = served(world.send(client, &question));
                    let answer = answer(f, proto, member, &seen);
                    let arrived = world.send(End::Inside(MEMBERS[member]), &answer);
                    assert!(matches!(&arrived, Arrived::Port(at, _) if *at == host), "{what}: {arrived:?}");
                }
            }
        }
    }
}

/// A network whose MTU is larger than what fits the tunnel (behaviours N6, R5).
#[test]
fn what_is_too_long_for_the_tunnel_to_a_member_is_told_to_its_sender() {
    for f in BOTH {
        let mut world = world(RULE_STATEFUL);
        for tables in &mut world.nodes {
            for leg in tables.image.router_legs.values_mut() {
                leg.mtu = 1500;
            }
            deal(tables, |_| Slot { member: 1, other: SLOT_NOBODY });
        }
        assert_eq!(MEMBERS[1].node, 1, "by a tunnel");
        let l4 = L4::Udp { sport: 1500, dport: DNS, payload: vec![7; 1440] };
        let pkt = from(f, End::Outside, public(f, FLOATING)).l4(l4);
        let arrived = world.send(End::Outside, &pkt.frame());
        let Arrived::Else(0, Verdict::Answered { refused, .. }) = &arrived else { panic!("{arrived:?}") };
        assert_eq!(*refused, Some(DropReason::TooBig));
        assert!(world.nodes[0].transients().is_empty());
    }
}

#[test]
fn a_vip_is_nobodys_router() {
    for f in BOTH {
        let mut world = world(RULE_STATEFUL);
        let somebody = beyond(f, 99);
        for tables in &mut world.nodes {
            let route = Route { kind: ROUTE_VIA, network: A, nexthop: vip(f).into() };
            tables.image.routes.insert(RouteKey::lookup(0, RA, somebody.into()), route);
        }
        let mut ping = from(f, End::Inside(C1), somebody).ping(7, b"ping");
        ping.dst_mac = router_mac(C1.network, 1);
        for frame in [ping.frame(), question(f, PROTO_TCP, End::Inside(C1), somebody, 1500, TCP_SYN)] {
            let arrived = world.send(End::Inside(C1), &frame);
            let Arrived::Else(_, Verdict::Answered { refused, frame }) = &arrived else {
                panic!("{arrived:?}")
            };
            assert_eq!(*refused, Some(DropReason::NextHopUnknown));
            assert_ne!(read(frame).src, somebody, "nobody answers in its name");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever two nodes believe, and however often they change their minds, a packet comes to its end after three
    /// tunnels ([`World::carry`] panics else), and what arrives is what was sent.
    #[test]
    fn b3_no_disagreement_keeps_a_packet_on_its_way(
        minds in prop::collection::vec([belief(), belief()], 1..4),
        packets in prop::collection::vec((0_usize..12, any::<bool>(), 1500_u16..1508, any::<bool>(), any::<bool>()), 1..30),
    ) {
        let mut world = world(RULE_STATEFUL);
        for beliefs in &minds {
            commit(&mut world, |_| {});
            for (node, (tables, belief)) in world.nodes.iter_mut().zip(beliefs).enumerate() {
                persuade(tables, node, belief);
            }
            for &(client, v6, sport, udp, begins) in &packets {
                let f = if v6 { Family::V6 } else { Family::V4 };
                let clients = clients(f);
                let (client, to) = clients[client % clients.len()];
                let proto = if udp { PROTO_UDP } else { PROTO_TCP };
                let flags = if begins { TCP_SYN } else { TCP_ACK };
                match world.send(client, &question(f, proto, client, to, sport, flags)) {
                    Arrived::Port(host, frame) => {
                        assert_valid(&frame);
                        let seen = read(&frame);
                        prop_assert!(MEMBERS.contains(&host) && seen.dst == host.ip(f) && ports(&seen).1 == INSIDE);
                        prop_assert!(seen.ttl >= 60, "{}", seen.ttl);
                    }
                    Arrived::Outside(..) => prop_assert!(false, "to nowhere"),
                    Arrived::Else(_, Verdict::Passed) => prop_assert!(false, "to the kernel"),
                    Arrived::Else(..) => {}
                }
            }
        }
    }
}
