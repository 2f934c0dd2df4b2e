//! Connections: made, answered, full tables, ports shared, evicted halves, ended, begun again.

use core::net::IpAddr;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use proptest::prelude::*;

use super::{fixture::*, world::*};
use crate::{
    addr::Be16,
    flow::{FlowKey, ROLE_ORIGINAL, ROLE_REPLY},
    memory::{Entry, MemoryPacket, MemoryTables, Verdict, run_with},
    plan::Work,
    reason::{DropReason, Event},
    tables::*,
    traced::{Recorder, Traced, What},
    wire::*,
};

const V4: Family = Family::V4;

fn event(tables: &MemoryTables, event: Event) -> u64 {
    tables.events.borrow().get(&event).copied().unwrap_or(0)
}

fn tcp(sport: u16, dport: u16, flags: u8) -> L4 {
    L4::Tcp { sport, dport, seq: 1, ack: 1, flags, payload: vec![] }
}

/// A segment from a host to a host beyond the gateway: what outside sees as its source, or why not.
fn out(world: &World, host: Host, sport: u16, dst: IpAddr, flags: u8) -> Result<(IpAddr, u16), DropReason> {
    let frame = from(V4, End::Inside(host), dst).l4(tcp(sport, 80, flags)).frame();
    match world.send(End::Inside(host), &frame) {
        Arrived::Outside(_, frame) => {
            let seen = read(&frame);
            assert_eq!(seen.dst, dst);
            Ok((seen.src, u16::from_be_bytes([seen.l4[0], seen.l4[1]])))
        }
        Arrived::Else(_, Verdict::Dropped(reason)) => Err(reason),
        other => panic!("{other:?}"),
    }
}

/// The answer to what [`out`] sent: whose it is and to which port, or what became of it.
fn back(world: &World, src: IpAddr, to: (IpAddr, u16), flags: u8) -> Result<(Host, u16), Verdict> {
    let frame = from(V4, End::Outside, to.0).from(src).l4(tcp(80, to.1, flags)).frame();
    match world.send(End::Outside, &frame) {
        Arrived::Port(host, frame) => {
            let seen = read(&frame);
            assert_eq!((seen.src, seen.dst), (src, host.ip(V4)));
            Ok((host, u16::from_be_bytes([seen.l4[2], seen.l4[3]])))
        }
        Arrived::Else(_, verdict) => Err(verdict),
        Arrived::Outside(..) => panic!("sent out again"),
    }
}

/// Removes a connection as the agent does when it is idle.
fn expire(tables: &MemoryTables, key: &FlowKey) {
    for table in [FlowTable::Flows, FlowTable::Transient] {
        let (flows, transient) = legs(tables);
        let entries = if table == FlowTable::Flows { flows } else { transient };
        if let Some((key, leg)) = entries.into_iter().find(|(there, _)| there == key) {
            tables.remove(table, &leg.peer_key(&key));
            tables.remove(table, &key);
        }
    }
}

/// The node's ports: those of the world, less.
fn blocks(tables: &mut MemoryTables, blocks: &[(u16, u16)]) {
    tables.image.snat_blocks.clear();
    for (slot, &(first, last)) in blocks.iter().enumerate() {
        let key = SnatBlockKey { router: Scoped::new(0, RA), network: PUBLIC, slot: slot as u32 };
        tables.image.snat_blocks.insert(key, SnatBlock { first, last });
    }
    gateway_leg(tables).snat_blocks = blocks.len() as u32;
}

fn gateway_leg(tables: &mut MemoryTables) -> &mut RouterLeg {
    tables.image.router_legs.get_mut(&RouterLegKey { router: Scoped::new(0, RA), network: PUBLIC }).unwrap()
}

/// Everything is decided again.
fn changed(tables: &mut MemoryTables) {
    tables.commit.epoch += 2;
    for network in [A, B, C, PUBLIC] {
        tables.revisions.insert(network, tables.commit.epoch);
    }
}

#[test]
fn n1_a_connection_is_kept_with_the_answered_from_its_first_answer_on() {
    let world = World::new(0);
    let tables = &world.nodes[0];
    for n in 1..=3 {
        assert_eq!(out(&world, A2, 1500, remote(V4), TCP_SYN), Ok((gateway(V4, RA), 1500)));
        assert_eq!((connections(tables), event(tables, Event::FlowMiss)), ((0, 1), n));
    }
    assert_eq!(back(&world, remote(V4), (gateway(V4, RA), 1500), TCP_SYN | TCP_ACK), Ok((A2, 1500)));
    assert_eq!((connections(tables), event(tables, Event::FlowAnswered)), ((1, 0), 1));
    assert!(tables.transients().is_empty());
    // Decided once more each way, and never after.
    for _ in 0..4 {
        out(&world, A2, 1500, remote(V4), TCP_ACK).unwrap();
        back(&world, remote(V4), (gateway(V4, RA), 1500), TCP_ACK).unwrap();
    }
    let misses = event(tables, Event::FlowMiss);
    assert!(misses <= 6, "{misses} decided");
    out(&world, A2, 1500, remote(V4), TCP_ACK).unwrap();
    back(&world, remote(V4), (gateway(V4, RA), 1500), TCP_ACK).unwrap();
    assert_eq!(event(tables, Event::FlowMiss), misses);
    // Each leg has counted its own.
    for (key, leg) in legs(tables).0 {
        let expected = if leg.role == ROLE_ORIGINAL { 3 + 5 } else { 1 + 5 };
        assert_eq!(leg.packets, expected, "{key:?}");
        assert_eq!(leg.tcp_flags, TCP_SYN | TCP_ACK);
    }
}

#[test]
fn c8_a_full_table_refuses_new_connections_and_keeps_the_others() {
    for room in [2, 3] {
        let mut world = World::new(0);
        let to = |port| (gateway(V4, RA), port);
        world.nodes[0].flows_max = Some(room);
        out(&world, A2, 1500, remote(V4), TCP_SYN).unwrap();
        back(&world, remote(V4), to(1500), TCP_SYN | TCP_ACK).unwrap();
        let kept: Vec<FlowKey> = legs(&world.nodes[0]).0.iter().map(|leg| leg.0).collect();
        for _ in 0..3 {
            out(&world, A2, 1501, remote(V4), TCP_SYN).unwrap();
            let refused = back(&world, remote(V4), to(1501), TCP_SYN | TCP_ACK);
            assert_eq!(refused, Err(Verdict::Dropped(DropReason::FlowTableFull)));
            let now: Vec<FlowKey> = legs(&world.nodes[0]).0.iter().map(|leg| leg.0).collect();
            assert_eq!(now, kept, "nothing more, nothing less");
            assert_eq!(connections(&world.nodes[0]), (1, 1));
        }
        // The one that is answered goes on, decided again, too.
        for _ in 0..3 {
            assert_eq!(out(&world, A2, 1500, remote(V4), TCP_ACK), Ok(to(1500)));
            assert_eq!(back(&world, remote(V4), to(1500), TCP_ACK), Ok((A2, 1500)));
            changed(&mut world.nodes[0]);
        }
        // And as soon as there is room the other is answered.
        expire(&world.nodes[0], &kept[0]);
        assert_eq!(back(&world, remote(V4), to(1501), TCP_SYN | TCP_ACK), Ok((A2, 1501)));
        assert_eq!(connections(&world.nodes[0]), (1, 0));
    }
}

#[test]
fn n1_thousands_of_connections_have_a_port_each() {
    let world = World::new(0);
    let mut seen = BTreeMap::new();
    for (host, sports) in [(A2, 1024..2048_u16), (C1, 1024..1700)] {
        for sport in sports {
            let (ip, port) = out(&world, host, sport, remote(V4), TCP_SYN).unwrap();
            assert_eq!(ip, gateway(V4, RA));
            assert!((1024..=3071).contains(&port), "{port}");
            assert_eq!(seen.insert(port, (host, sport)), None, "port {port} twice");
            if host == A2 {
                assert_eq!(port, sport, "its own is free");
            }
        }
    }
    for (port, (host, sport)) in &seen {
        let got = back(&world, remote(V4), (gateway(V4, RA), *port), TCP_SYN | TCP_ACK);
        assert_eq!(got, Ok((*host, *sport)));
    }
    assert_eq!(connections(&world.nodes[0]), (1700, 0));
    let tries = world.nodes[0].tries.borrow();
    assert_eq!(tries.values().sum::<u64>(), 1700);
    assert!(tries[&0] >= 1024 && !tries.contains_key(&(NAT_TRIES_BUCKETS - 1)), "{tries:?}");
}

#[test]
fn n8_without_a_free_port_a_connection_is_refused_until_there_is_one() {
    let mut world = World::new(0);
    blocks(&mut world.nodes[0], &[(1024, 1027), (2048, 2051)]);
    let to = |port| (gateway(V4, RA), port);
    let mut used = BTreeMap::new();
    for sport in 5000..5008 {
        let (_, port) = out(&world, A2, sport, remote(V4), TCP_SYN).unwrap();
        back(&world, remote(V4), to(port), TCP_SYN | TCP_ACK).unwrap();
        used.insert(port, sport);
    }
    assert_eq!(used.keys().copied().collect::<Vec<_>>(), [1024, 1025, 1026, 1027, 2048, 2049, 2050, 2051]);
    for sport in 5008..5012 {
        assert_eq!(out(&world, A2, sport, remote(V4), TCP_SYN), Err(DropReason::SnatExhausted));
    }
    assert_eq!(world.nodes[0].tries.borrow()[&(NAT_TRIES_BUCKETS - 1)], 4);
    assert_eq!(connections(&world.nodes[0]), (8, 0), "nothing is left of the refused");
    // The others go on, decided again, too.
    changed(&mut world.nodes[0]);
    for (&port, &sport) in &used {
        assert_eq!(out(&world, A2, sport, remote(V4), TCP_ACK), Ok(to(port)));
        assert_eq!(back(&world, remote(V4), to(port), TCP_ACK), Ok((A2, sport)));
    }
    // To another destination the same ports are free.
    let mut again = BTreeSet::new();
    for sport in 5000..5008 {
        again.insert(out(&world, A2, sport, beyond(V4, 8), TCP_SYN).unwrap().1);
    }
    assert_eq!(again, used.keys().copied().collect());
    // One ends, and its port is the next one's.
    let (&port, &sport) = used.iter().nth(5).unwrap();
    let original = from(V4, End::Inside(A2), remote(V4)).l4(tcp(sport, 80, 0));
    let key = legs(&world.nodes[0])
        .0
        .into_iter()
        .map(|leg| leg.0)
        .find(|key| key.src == original.src.into() && key.sport.get() == sport)
        .unwrap();
    expire(&world.nodes[0], &key);
    assert_eq!(out(&world, C1, 6000, remote(V4), TCP_SYN), Ok(to(port)));
    assert_eq!(out(&world, C1, 6001, remote(V4), TCP_SYN), Err(DropReason::SnatExhausted));
}

#[test]
fn n1_a_node_without_ports_refuses() {
    let mut world = World::new(0);
    blocks(&mut world.nodes[0], &[]);
    assert_eq!(out(&world, A2, 1500, remote(V4), TCP_SYN), Err(DropReason::SnatExhausted));
    assert_eq!(connections(&world.nodes[0]), (0, 0));
    // Floating IPs need none.
    assert_eq!(out(&world, A1, 1500, remote(V4), TCP_SYN), Ok((A1.floating(V4), 1500)));
}

#[test]
fn n1_one_port_serves_different_destinations() {
    let world = World::new(0);
    for (host, dst) in [(A2, remote(V4)), (C1, beyond(V4, 8)), (A2, beyond(V4, 9))] {
        assert_eq!(out(&world, host, 1500, dst, TCP_SYN), Ok((gateway(V4, RA), 1500)));
        assert_eq!(back(&world, dst, (gateway(V4, RA), 1500), TCP_SYN | TCP_ACK), Ok((host, 1500)));
    }
    assert_eq!(connections(&world.nodes[0]), (3, 0));
}

/// The key of a transient leg.
fn transient(tables: &MemoryTables, role: u8) -> FlowKey {
    legs(tables).1.into_iter().find(|leg| leg.1.role == role).expect("no such leg").0
}

#[test]
fn n1_a_first_packet_whose_original_half_was_evicted_begins_again() {
    let world = World::new(0);
    let tables = &world.nodes[0];
    let first = out(&world, A2, 1500, remote(V4), TCP_SYN).unwrap();
    tables.remove(FlowTable::Transient, &transient(tables, ROLE_ORIGINAL));
    // The answer finds its half and is delivered; nothing is answered yet.
    assert_eq!(back(&world, remote(V4), first, TCP_SYN | TCP_ACK), Ok((A2, 1500)));
    assert_eq!(legs(tables).0, []);
    // Sent again: with whatever port, it is one connection from here on, whoever answers late.
    let second = out(&world, A2, 1500, remote(V4), TCP_SYN).unwrap();
    for _ in 0..2 {
        assert_eq!(back(&world, remote(V4), first, TCP_SYN | TCP_ACK), Ok((A2, 1500)));
    }
    assert_eq!(back(&world, remote(V4), second, TCP_SYN | TCP_ACK), Ok((A2, 1500)));
    for _ in 0..3 {
        assert_eq!(out(&world, A2, 1500, remote(V4), TCP_ACK), Ok(second), "one port for all its life");
        assert_eq!(back(&world, remote(V4), second, TCP_ACK), Ok((A2, 1500)));
    }
    let answered = legs(tables).0;
    assert_eq!(answered.len(), 2);
    assert_eq!(answered[0].1.peer_key(&answered[0].0), answered[1].0);
    assert_eq!(answered[1].1.peer_key(&answered[1].0), answered[0].0);
}

#[test]
fn n1_a_port_whose_reply_half_was_evicted_may_be_another_connections() {
    let mut world = World::new(0);
    blocks(&mut world.nodes[0], &[(1024, 1025)]);
    let first = out(&world, A2, 1024, remote(V4), TCP_SYN).unwrap();
    let evicted = transient(&world.nodes[0], ROLE_REPLY);
    world.nodes[0].remove(FlowTable::Transient, &evicted);
    // Nobody expects an answer there.
    back(&world, remote(V4), first, TCP_SYN | TCP_ACK).unwrap_err();
    // Another takes it.
    assert_eq!(out(&world, C1, 1024, remote(V4), TCP_SYN), Ok(first));
    assert_eq!(back(&world, remote(V4), first, TCP_SYN | TCP_ACK), Ok((C1, 1024)));
    // And the first gets the other one.
    let second = out(&world, A2, 1024, remote(V4), TCP_SYN).unwrap();
    assert_ne!(second, first);
    assert_eq!(back(&world, remote(V4), second, TCP_SYN | TCP_ACK), Ok((A2, 1024)));
    assert_eq!(back(&world, remote(V4), first, TCP_ACK), Ok((C1, 1024)));
    assert_eq!(connections(&world.nodes[0]), (2, 0));
}

#[test]
fn n2_an_answer_whose_own_half_was_evicted_is_no_clash() {
    let world = World::new(0);
    let tables = &world.nodes[0];
    let to = (A1.floating(V4), 1500);
    assert_eq!(back(&world, remote(V4), to, TCP_SYN), Ok((A1, 1500)));
    tables.remove(FlowTable::Transient, &transient(tables, ROLE_REPLY));
    for _ in 0..2 {
        assert_eq!(out(&world, A1, 1500, remote(V4), TCP_SYN | TCP_ACK), Ok(to));
        assert_eq!(back(&world, remote(V4), to, TCP_ACK), Ok((A1, 1500)));
    }
    assert_eq!(legs(tables).1.len() + legs(tables).0.len(), 2, "one connection, of two legs");
}

#[test]
fn n1_a_connection_that_ended_begins_anew() {
    for end in [TCP_FIN | TCP_ACK, TCP_RST] {
        let world = World::new(0);
        let tables = &world.nodes[0];
        let to = out(&world, A2, 1500, remote(V4), TCP_SYN).unwrap();
        back(&world, remote(V4), to, TCP_SYN | TCP_ACK).unwrap();
        for _ in 0..3 {
            out(&world, A2, 1500, remote(V4), TCP_ACK).unwrap();
        }
        // A SYN of a live connection begins nothing.
        out(&world, A2, 1500, remote(V4), TCP_SYN).unwrap();
        assert_eq!(connections(tables), (1, 0));
        out(&world, A2, 1500, remote(V4), end).unwrap();
        back(&world, remote(V4), to, TCP_FIN | TCP_ACK).unwrap();
        out(&world, A2, 1500, remote(V4), TCP_ACK).unwrap();
        assert_eq!(connections(tables), (1, 0), "the last packets pass");
        assert_eq!(out(&world, A2, 1500, remote(V4), TCP_SYN), Ok(to));
        assert_eq!(connections(tables), (0, 1), "another, with nothing of the old");
        for (_, leg) in legs(tables).1 {
            let original = leg.role == ROLE_ORIGINAL;
            assert_eq!(leg.tcp_flags, if original { TCP_SYN } else { 0 });
            assert_eq!(leg.packets, u64::from(original));
        }
        back(&world, remote(V4), to, TCP_SYN | TCP_ACK).unwrap();
        assert_eq!(connections(tables), (1, 0));
    }
}

/// Takes nothing down but what would be removed.
#[derive(Default)]
struct Forgotten(RefCell<Vec<(FlowTable, FlowKey)>>);

impl Recorder for Forgotten {
    fn record<K: Copy, V: Copy>(&self, _what: What, _found: bool, _key: &K, _value: Option<&V>) {}

    fn afresh(&self) -> bool {
        false
    }

    fn keep_hop(&self, _hop: &Hop) -> bool {
        false
    }

    fn kept_hop(&self) -> Option<&Hop> {
        None
    }

    fn forget(&self, table: FlowTable, key: &FlowKey) {
        self.0.borrow_mut().push((table, *key));
    }

    fn has_forgotten(&self, table: FlowTable, key: &FlowKey) -> bool {
        self.0.borrow().contains(&(table, *key))
    }
}

#[test]
fn what_begins_after_a_connection_that_ended_is_traced_with_the_port_it_gets() {
    let mut world = World::new(0);
    let to = out(&world, A2, 1500, remote(V4), TCP_SYN).unwrap();
    back(&world, remote(V4), to, TCP_SYN | TCP_ACK).unwrap();
    out(&world, A2, 1500, remote(V4), TCP_FIN | TCP_ACK).unwrap();
    back(&world, remote(V4), to, TCP_FIN | TCP_ACK).unwrap();
    let syn = from(V4, End::Inside(A2), remote(V4)).l4(tcp(1500, 80, TCP_SYN)).frame();
    let before = legs(&world.nodes[0]);
    let traced = Traced::new(core::mem::take(&mut world.nodes[0]), Forgotten::default());
    let packet = MemoryPacket::new(&syn);
    let verdict = run_with(&traced, &mut Work::default(), Entry::Port(A2.ifindex), packet);
    let (tables, _) = traced.into_parts();
    world.nodes[0] = tables;
    let Verdict::Sent { frame, .. } = verdict else { panic!("{verdict:?}") };
    let seen = read(&frame);
    let traced = (seen.src, u16::from_be_bytes([seen.l4[0], seen.l4[1]]));
    assert!(legs(&world.nodes[0]) == before, "nothing changed");
    assert_eq!(out(&world, A2, 1500, remote(V4), TCP_SYN), Ok(traced));
}

#[test]
fn n1_ending_takes_nothing_from_another_connection() {
    let mut world = World::new(0);
    blocks(&mut world.nodes[0], &[(1024, 1025)]);
    // The first ends before anybody answered; its reply half is evicted, and its port another's.
    let first = out(&world, A2, 1024, remote(V4), TCP_SYN).unwrap();
    out(&world, A2, 1024, remote(V4), TCP_FIN | TCP_ACK).unwrap();
    let evicted = transient(&world.nodes[0], ROLE_REPLY);
    world.nodes[0].remove(FlowTable::Transient, &evicted);
    assert_eq!(out(&world, C1, 1024, remote(V4), TCP_SYN), Ok(first));
    // It begins again.
    assert_ne!(out(&world, A2, 1024, remote(V4), TCP_SYN), Ok(first));
    assert_eq!(back(&world, remote(V4), first, TCP_SYN | TCP_ACK), Ok((C1, 1024)));
}

#[test]
fn a_reset_begins_no_connection() {
    let world = World::new(0);
    assert_eq!(out(&world, A2, 1500, remote(V4), TCP_RST), Err(DropReason::TcpUnrelated));
    assert_eq!(connections(&world.nodes[0]), (0, 0));
    // Of one that is known it passes.
    let to = out(&world, A2, 1500, remote(V4), TCP_SYN).unwrap();
    assert_eq!(back(&world, remote(V4), to, TCP_RST | TCP_ACK), Ok((A2, 1500)));
    assert_eq!(out(&world, A2, 1500, remote(V4), TCP_RST), Ok(to));
}

#[test]
fn a_stream_that_nobody_answers_is_kept_after_64_packets() {
    for host in [A1, A2] {
        let world = World::new(0);
        let tables = &world.nodes[0];
        let l4 = L4::Udp { sport: 1500, dport: 514, payload: vec![1; 10] };
        let frame = from(V4, End::Inside(host), remote(V4)).l4(l4).frame();
        for n in 1..=70 {
            let Arrived::Outside(..) = world.send(End::Inside(host), &frame) else { panic!("packet {n}") };
            assert_eq!(connections(tables), if n < 64 { (0, 1) } else { (1, 0) }, "packet {n}");
        }
        assert_eq!(event(tables, Event::FlowMiss), 64, "after that it is established");
        let original = legs(tables).0.into_iter().find(|leg| leg.1.role == ROLE_ORIGINAL).unwrap();
        assert_eq!((original.1.packets, original.1.bytes), (70, 70 * frame.len() as u64));
    }
}

#[test]
fn c3_a_binding_outlives_changes_that_do_not_concern_it() {
    let mut world = World::new(0);
    let to = out(&world, A2, 1500, remote(V4), TCP_SYN).unwrap();
    back(&world, remote(V4), to, TCP_SYN | TCP_ACK).unwrap();
    let floating = out(&world, A1, 1500, remote(V4), TCP_SYN).unwrap();
    back(&world, remote(V4), floating, TCP_SYN | TCP_ACK).unwrap();
    for n in 0..4 {
        changed(&mut world.nodes[0]);
        if n == 2 {
            // Its block is given to another node: it keeps the port while it lives.
            blocks(&mut world.nodes[0], &[(2048, 2050)]);
        }
        // Whichever side speaks first.
        if n % 2 == 0 {
            assert_eq!(back(&world, remote(V4), to, TCP_ACK), Ok((A2, 1500)));
        }
        assert_eq!(out(&world, A2, 1500, remote(V4), TCP_ACK), Ok(to));
        assert_eq!(back(&world, remote(V4), to, TCP_ACK), Ok((A2, 1500)));
        assert_eq!(out(&world, A1, 1500, remote(V4), TCP_ACK), Ok(floating));
        assert_eq!(back(&world, remote(V4), floating, TCP_ACK), Ok((A1, 1500)));
        assert_eq!(connections(&world.nodes[0]), (2, 0));
    }
}

/// A connection, and a change that makes its translation one the topology no longer makes.
fn void(host: Host, change: impl Fn(&mut MemoryTables), after: (IpAddr, u16)) {
    // Whichever side speaks first.
    for outside_first in [false, true] {
        let mut world = World::new(0);
        let to = out(&world, host, 1500, remote(V4), TCP_SYN).unwrap();
        back(&world, remote(V4), to, TCP_SYN | TCP_ACK).unwrap();
        out(&world, host, 1500, remote(V4), TCP_ACK).unwrap();
        change(&mut world.nodes[0]);
        changed(&mut world.nodes[0]);
        if outside_first {
            back(&world, remote(V4), to, TCP_ACK).expect_err("delivered by a translation that is no more");
        }
        assert_ne!(to, after);
        assert_eq!(out(&world, host, 1500, remote(V4), TCP_ACK), Ok(after));
        for _ in 0..2 {
            back(&world, remote(V4), to, TCP_ACK).expect_err("delivered by a translation that is no more");
        }
    }
}

#[test]
fn n5_a_translation_ends_with_what_asked_for_it() {
    let plain = |host: Host| (host.ip(V4), 1500);
    void(A2, |tables| gateway_leg(tables).flags &= !LEG_SNAT, plain(A2));
    // A floating IP is given to a port that had none.
    let give = |tables: &mut MemoryTables| {
        let mut b = Builder::default();
        core::mem::swap(&mut b.image, &mut tables.image);
        b.floating(A2, 99, 0);
        core::mem::swap(&mut b.image, &mut tables.image);
    };
    void(A2, give, (public(V4, 99), 1500));
    // And taken away, or given to another.
    let take = |tables: &mut MemoryTables| {
        let outside = A1.floating(V4).into();
        tables.image.addresses.remove(&AddressKey::new(0, PUBLIC, outside));
        tables.image.floating.retain(|_, floating| floating.ip != outside);
        tables.image.nat.retain(|key, _| key.ip != outside);
    };
    void(A1, take, (gateway(V4, RA), 1500));
    let mut world = World::new(0);
    let to = out(&world, A1, 1500, remote(V4), TCP_SYN).unwrap();
    back(&world, remote(V4), to, TCP_SYN | TCP_ACK).unwrap();
    let tables = &mut world.nodes[0];
    take(tables);
    let mut b = Builder::default();
    core::mem::swap(&mut b.image, &mut tables.image);
    b.floating(A5, 51, 0);
    core::mem::swap(&mut b.image, &mut tables.image);
    changed(tables);
    assert_eq!(back(&world, remote(V4), to, TCP_ACK), Ok((A5, 1500)), "whose it is now");
}

#[test]
fn n5_a_forwarded_port_is_changed_for_live_traffic() {
    let mut world = World::new(0);
    let pkt = from(V4, End::Outside, public(V4, FORWARDING)).l4(tcp(1500, 2222, TCP_SYN)).frame();
    let arrives = |world: &World, frame: &[u8]| match world.send(End::Outside, frame) {
        Arrived::Port(host, frame) => (host, u16::from_be_bytes([frame[36], frame[37]])),
        other => panic!("{other:?}"),
    };
    assert_eq!(arrives(&world, &pkt), (A2, 22));
    let reply = |host, sport| {
        let pkt = from(V4, End::Inside(host), remote(V4)).l4(tcp(sport, 1500, TCP_ACK | TCP_SYN));
        match world.send(End::Inside(host), &pkt.frame()) {
            Arrived::Outside(_, frame) => read(&frame),
            other => panic!("{other:?}"),
        }
    };
    let seen = reply(A2, 22);
    assert_eq!((seen.src, &seen.l4[..2]), (public(V4, FORWARDING), &2222_u16.to_be_bytes()[..]));
    let ack = from(V4, End::Outside, public(V4, FORWARDING)).l4(tcp(1500, 2222, TCP_ACK)).frame();
    for nat in world.nodes[0].image.nat.values_mut().filter(|nat| nat.inside_port.get() == 22) {
        (nat.inside, nat.inside_port, nat.node) = (A5.ip(V4).into(), Be16::new(2022), 0);
    }
    changed(&mut world.nodes[0]);
    for _ in 0..2 {
        assert_eq!(arrives(&world, &ack), (A5, 2022));
    }
    // Gone altogether.
    world.nodes[0].image.nat.clear();
    changed(&mut world.nodes[0]);
    let gone = world.send(End::Outside, &ack);
    assert!(matches!(gone, Arrived::Else(0, Verdict::Dropped(_) | Verdict::Answered { .. })), "{gone:?}");
}

// ---- everything in any order ----

#[derive(Clone, Debug)]
enum Step {
    /// A host sends: which, its port, the destination, the flags.
    Send(usize, u16, u32, u8),
    /// Outside answers one of the tuples it has seen.
    Answer(prop::sample::Index, u8),
    /// One leg of what is not answered is evicted.
    Evict(prop::sample::Index),
    /// The agent removes a connection.
    Expire(prop::sample::Index),
    /// The topology changes.
    Change,
    /// The node's ports change.
    Blocks(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    let flags = || prop::sample::select(vec![TCP_SYN, TCP_ACK, TCP_ACK, TCP_FIN | TCP_ACK, TCP_RST]);
    prop_oneof![
        8 => (0..3_usize, 1024..1027_u16, 7..9_u32, flags()).prop_map(|(host, sport, dst, flags)| Step::Send(host, sport, dst, flags)),
        5 => (index(), flags()).prop_map(|(tuple, flags)| Step::Answer(tuple, flags)),
        4 => index().prop_map(Step::Evict),
        1 => index().prop_map(Step::Expire),
        1 => Just(Step::Change),
        1 => (0..3_usize).prop_map(Step::Blocks),
    ]
}

/// Who talks to whom, inside.
type Talk = (Host, u16, IpAddr);

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is evicted when: what outside sees as one connection is one inside at any time, an answered
    /// connection keeps its tuple and its answers, and the table of answered flows holds whole connections.
    #[test]
    fn n1_no_two_connections_ever_share_a_tuple(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new(0);
        blocks(&mut world.nodes[0], &[(1024, 1026)]);
        let mut owners: BTreeMap<(IpAddr, u16, IpAddr), Talk> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Send(host, sport, dst, flags) => {
                    let host = [A1, A2, C1][host];
                    let dst = beyond(V4, dst);
                    let own = from(V4, End::Inside(host), dst).l4(tcp(sport, 80, flags));
                    let is_own = |key: &FlowKey| {
                        key.src == own.src.into() && key.dst == dst.into() && key.sport.get() == sport
                    };
                    let before = legs(&world.nodes[0]).0.into_iter().find(|leg| is_own(&leg.0));
                    match out(&world, host, sport, dst, flags) {
                        Ok((ip, port)) => {
                            let (answered, unanswered) = legs(&world.nodes[0]);
                            let all: Vec<_> = answered.into_iter().chain(unanswered).collect();
                            let talk = (host, sport, dst);
                            // The other leg is there, and this connection's. (Whoever spoke first: to a
                            // floating IP that may be outside.)
                            let reply = all.iter().find(|(key, _)| {
                                key.dst == ip.into() && key.dport.get() == port && key.src == dst.into()
                            });
                            match reply {
                                Some((key, leg)) => prop_assert!(is_own(&leg.peer_key(key)), "another's port"),
                                // It answered what outside began, whose half was evicted.
                                None => prop_assert!(
                                    all.iter().any(|(key, leg)| is_own(key) && leg.role == ROLE_REPLY),
                                    "nobody expects answers for {:?}", talk
                                ),
                            }
                            if let Some((key, leg)) = before && !(flags & TCP_SYN != 0 && leg.tcp_flags & (TCP_FIN | TCP_RST) != 0) {
                                let kept = leg.translated(&key);
                                prop_assert_eq!((kept.src, kept.sport.get()), (ip.into(), port), "an answered connection moved");
                            }
                            owners.insert((ip, port, dst), talk);
                        }
                        Err(DropReason::SnatExhausted) => prop_assert!(before.is_none_or(|leg| leg.1.tcp_flags & (TCP_FIN | TCP_RST) != 0)),
                        Err(reason) => prop_assert_eq!(reason, DropReason::TcpUnrelated),
                    }
                }
                Step::Answer(tuple, flags) => {
                    if owners.is_empty() {
                        continue;
                    }
                    let (&(ip, port, dst), &owner) = owners.iter().nth(tuple.index(owners.len())).unwrap();
                    let known = legs(&world.nodes[0]).0.into_iter().find(|(key, _)| {
                        key.dst == ip.into() && key.dport.get() == port && key.src == dst.into()
                    });
                    match back(&world, dst, (ip, port), flags) {
                        Ok((host, sport)) => {
                            // An inbound connection to a floating IP keeps its port.
                            let inbound = ip == A1.floating(V4);
                            prop_assert!((host, sport, dst) == owner || inbound && (host, sport) == (A1, port));
                        }
                        // Evicted, or ended.
                        Err(verdict) => prop_assert!(
                            known.is_none_or(|leg| leg.1.tcp_flags & (TCP_FIN | TCP_RST) != 0),
                            "an answered connection's packet was refused: {:?}", verdict
                        ),
                    }
                }
                Step::Evict(which) => {
                    let unanswered = world.nodes[0].transients();
                    if !unanswered.is_empty() {
                        let key = unanswered[which.index(unanswered.len())].0;
                        world.nodes[0].remove(FlowTable::Transient, &key);
                    }
                }
                Step::Expire(which) => {
                    let answered = legs(&world.nodes[0]).0;
                    if !answered.is_empty() {
                        expire(&world.nodes[0], &answered[which.index(answered.len())].0);
                    }
                }
                Step::Change => changed(&mut world.nodes[0]),
                Step::Blocks(n) => {
                    let some: [&[(u16, u16)]; 3] = [&[(1024, 1026)], &[(1025, 1027), (2048, 2049)], &[(2048, 2048)]];
                    blocks(&mut world.nodes[0], some[n]);
                    changed(&mut world.nodes[0]);
                }
            }
            // Of the answered every leg has its other.
            let answered: BTreeMap<_, _> = legs(&world.nodes[0]).0.into_iter().collect();
            for (key, leg) in &answered {
                let peer = leg.peer_key(key);
                let Some(other) = answered.get(&peer) else {
                    return Err(TestCaseError::fail(format!("half a connection: {key:?}")));
                };
                prop_assert_eq!(other.peer_key(&peer), *key);
            }
            // Of the others, two that name each other name nobody else's.
            let unanswered: BTreeMap<_, _> = legs(&world.nodes[0]).1.into_iter().collect();
            let mut claimed = BTreeSet::new();
            for (key, leg) in unanswered.iter().filter(|leg| leg.1.role == ROLE_ORIGINAL) {
                let peer = leg.peer_key(key);
                if unanswered.get(&peer).is_some_and(|other| other.peer_key(&peer) == *key) {
                    prop_assert!(claimed.insert(peer), "shared");
                }
                prop_assert!(!answered.contains_key(key), "in both tables");
            }
        }
    }
}
