//! Ports of a router's address under contention: two CPUs send first packets with the same ports to the same
//! destinations at the same moment, from two workloads behind one address with few ports.
//!
//! `VROUTER_TEST_SEED` repeats the choices (not the races), `VROUTER_TEST_ROUNDS` makes it longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
};

use vrouter::kernel::Map;
use vrouter_common::{
    addr::Ip,
    flow::{Flow, FlowKey, ROLE_NONE, ROLE_ORIGINAL, ROLE_REPLY},
    tables::*,
};

use crate::{
    differential::{number, random_seed},
    frames::*,
    generator::Random,
    harness::*,
    topology::*,
};

/// The workloads that contend, each on a CPU of its own.
const SENDERS: [u32; 2] = [11, 21];
/// First packets of each sender to one destination: together more than there are ports.
const SPORTS: u16 = 8;

/// What a sender saw: (destination port, its own port) to the port it got.
type Got = BTreeMap<(u16, u16), u16>;

fn ports() -> usize {
    BLOCKS.iter().map(|block| usize::from(block.last - block.first) + 1).sum()
}

/// Half of the destinations: ports both senders would keep if they could. The other half: ports out of reach,
/// for which one is searched.
fn sport(round: u16, number: u16) -> u16 {
    if round.is_multiple_of(2) { BLOCKS[0].first + number } else { 40_000 + number }
}

fn first(sender: u32, round: u16, number: u16) -> Packet {
    let udp = Transport::Udp { sport: sport(round, number), dport: 1 + round };
    Packet::routed(sender, v4(BEHIND, 5)).transport(udp).len(8)
}

fn answer(round: u16, port: u16) -> Packet {
    let macs = (router_mac(1, OUTSIDE), NEIGHBOUR_MAC);
    Packet { src: v4(BEHIND, 5).into(), dst: v4(OUTSIDE, 1).into(), ..Packet::routed(11, v4(OUTSIDE, 1)) }
        .macs(macs.0, macs.1)
        .transport(Transport::Udp { sport: 1 + round, dport: port })
        .len(8)
}

/// Keeps this thread on one CPU.
fn pin(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).expect("a CPU's number");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).expect("this CPU is not to be had");
}

/// The port a frame left with, if it left.
fn port_of(ran: &Ran) -> Option<u16> {
    (ran.verdict == TC_ACT_REDIRECT && ran.frame[26..30] == v4(OUTSIDE, 1).octets())
        .then(|| u16::from_be_bytes([ran.frame[34], ran.frame[35]]))
}

/// One sender: meets the other at every destination, sends first packets, and has some of them answered.
fn send(runner: Runner, index: usize, rounds: u16, meet: &Barrier, seed: u64, answers: usize) -> Got {
    pin(index);
    let mut random = Random::new(seed + index as u64);
    let at = format!("p{}", SENDERS[index]);
    let mut got = Got::new();
    for round in 0..rounds {
        let frames: Vec<Vec<u8>> =
            (0..SPORTS).map(|number| first(SENDERS[index], round, number).build()).collect();
        meet.wait();
        for (number, frame) in (0..SPORTS).zip(&frames) {
            let Some(port) = port_of(&runner.run(Via::Tc, &at, frame)) else { continue };
            got.insert((round, sport(round, number)), port);
            if random.once_in(answers) {
                runner.run(Via::Tc, EXTERNAL, &answer(round, port).build());
            }
        }
    }
    got
}

/// Legs of translated connections, by key.
fn legs(map: &Map<FlowKey, Flow>) -> BTreeMap<FlowKey, Flow> {
    map.entries().expect("flows").into_iter().filter(|(_, leg)| leg.role != ROLE_NONE).collect()
}

/// Both tables, of which none may have a key of the other.
fn all_legs(world: &World) -> BTreeMap<FlowKey, Flow> {
    let mut all = legs(&world.flows);
    for (key, leg) in legs(&world.transient) {
        assert!(all.insert(key, leg).is_none(), "in both tables: {key:?}");
    }
    all
}

/// Every original leg has a key of its own to be answered by, and every two legs point at each other. Returns the
/// connections.
fn assert_paired(all: &BTreeMap<FlowKey, Flow>) -> usize {
    let mut taken = BTreeMap::new();
    for (key, leg) in all {
        let peer = leg.peer_key(key);
        let other = all.get(&peer).unwrap_or_else(|| panic!("{key:?} points at nothing: {leg:?}"));
        assert_eq!(other.peer_key(&peer), *key, "the other leg of {key:?} points elsewhere: {other:?}");
        assert_eq!(leg.role + other.role, ROLE_ORIGINAL + ROLE_REPLY, "roles of {key:?}");
        if leg.role == ROLE_ORIGINAL
            && let Some(twin) = taken.insert(peer, *key)
        {
            panic!("{key:?} and {twin:?} are both answered by {peer:?}");
        }
    }
    taken.len()
}

/// Answered legs never point at a leg that points elsewhere, also while both CPUs are at it. What was read in
/// between two writes is read again.
fn assert_answered_paired(flows: &Map<FlowKey, Flow>) -> usize {
    let mut checked = 0;
    for (key, _) in legs(flows) {
        let elsewhere = || {
            let leg = flows.lookup(&key).expect("FLOWS")?;
            let peer = leg.peer_key(&key);
            let other = flows.lookup(&peer).expect("FLOWS")?;
            (other.peer_key(&peer) != key).then_some((leg, other))
        };
        checked += 1;
        assert!(
            (0..100).any(|_| elsewhere().is_none()),
            "{key:?}: two connections in one: {:?}",
            elsewhere()
        );
    }
    checked
}

fn resolve(world: &World) {
    world.run(Via::Tc, "p11", &Packet::routed(11, v4(BEHIND, 99)).build());
    let hop = world.hops.lookup(&0).expect("HOPS").expect("a hop");
    let flags = HOP_USED | HOP_RESOLVED;
    world.hops.set(&0, &Hop { flags, mac: NEIGHBOUR_MAC, ..hop }).expect("HOPS");
    world.forget_flows();
}

fn start() -> (u64, u16) {
    let seed = number("VROUTER_TEST_SEED").unwrap_or_else(random_seed);
    let rounds = number("VROUTER_TEST_ROUNDS").unwrap_or(400) as u16;
    println!("VROUTER_TEST_SEED={seed} VROUTER_TEST_ROUNDS={rounds}");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(cpus >= SENDERS.len(), "this test needs two CPUs to have anything to contend for, not {cpus}");
    (seed, rounds)
}

/// Runs both senders, and something else beside them.
fn contend(world: &World, rounds: u16, seed: u64, answers: usize, mut beside: impl FnMut()) -> [Got; 2] {
    let meet = Barrier::new(SENDERS.len());
    let mut got = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SENDERS.len())
            .map(|index| {
                let (runner, meet) = (world.runner(), &meet);
                scope.spawn(move || send(runner, index, rounds, meet, seed, answers))
            })
            .collect();
        while !threads.iter().all(|thread| thread.is_finished()) {
            beside();
        }
        threads.into_iter().map(|thread| thread.join().expect("a sender")).collect::<Vec<_>>().into_iter()
    });
    [got.next().expect("one"), got.next().expect("two")]
}

#[test]
fn two_cpus_never_hand_out_one_tuple() {
    let (seed, rounds) = start();
    in_namespace(move || {
        let mut world = World::new(65_536);
        world.apply(image(&world.ifindexes));
        resolve(&world);
        let before = world.counts();
        let tries_before: u64 = world.nat_tries().iter().sum();
        let mut looks = 0;
        let got = contend(&world, rounds, seed, 3, || looks += assert_answered_paired(&world.flows));
        let mut given = BTreeSet::new();
        for ((round, own), port) in got.iter().flatten() {
            assert!(
                given.insert((round, port)),
                "port {port} was given twice for destination {round} ({own})"
            );
        }
        let counts = since(&before, &world.counts());
        let all = all_legs(&world);
        let connections = assert_paired(&all);
        println!(
            "{connections} connections of {} tries, {looks} looks at answered legs meanwhile, {counts:?}, tried {:?}",
            usize::from(rounds) * SENDERS.len() * usize::from(SPORTS),
            world.nat_tries()
        );
        assert_eq!(connections, given.len(), "what left and what is remembered");
        // More asked than there are ports: of each destination almost every port was given, and the rest
        // refused.
        let asked = usize::from(rounds) * SENDERS.len() * usize::from(SPORTS);
        let exhausted = counts.get("snat_exhausted").copied().unwrap_or(0) as usize;
        assert_eq!(connections + exhausted, asked, "{counts:?}");
        assert!(connections <= usize::from(rounds) * ports());
        assert!(connections >= usize::from(rounds) * ports() * 9 / 10, "{connections} connections");
        let tries: u64 = world.nat_tries().iter().sum();
        assert_eq!((tries - tries_before) as usize, asked, "every search is counted once");
        assert_eq!(world.nat_tries()[NAT_TRIES_BUCKETS as usize - 1] as usize, exhausted);
    });
}

/// The same while legs disappear one by one, as they do when the table of unanswered flows is too small. A
/// connection that lost a leg makes it again with its next packet, or gets another port.
#[test]
fn nor_while_legs_are_evicted() {
    let (seed, rounds) = start();
    in_namespace(move || {
        let mut world = World::new(65_536);
        world.apply(image(&world.ifindexes));
        resolve(&world);
        let mut random = Random::new(seed);
        let evicted = AtomicUsize::new(0);
        contend(&world, rounds, seed, 4, || {
            for key in world.transient.keys().expect("TRANSIENT") {
                if random.once_in(3) {
                    world.transient.remove(&key).expect("TRANSIENT");
                    evicted.fetch_add(1, Ordering::Relaxed);
                }
            }
            assert_answered_paired(&world.flows);
        });
        // Every connection sends once more: what is left over mends itself, or finds no port.
        let mut refused = BTreeSet::new();
        for _ in 0..2 {
            refused.clear();
            for round in 0..rounds {
                for (sender, number) in
                    SENDERS.into_iter().flat_map(|sender| (0..SPORTS).map(move |n| (sender, n)))
                {
                    let packet = first(sender, round, number);
                    let ran = world.run(Via::Tc, &format!("p{sender}"), &packet.build());
                    if port_of(&ran).is_none() {
                        refused.insert((Ip::from(packet.src), 1 + round, sport(round, number)));
                    }
                }
            }
        }
        let mut all = all_legs(&world);
        let stale = |key: &FlowKey| refused.contains(&(key.src, key.dport.get(), key.sport.get()));
        let before = all.len();
        all.retain(|key, _| !stale(key));
        let stale = before - all.len();
        // A reply's leg whose connection is gone, or has got another, waits to be evicted.
        let left = all.clone();
        all.retain(|key, leg| {
            let peer = leg.peer_key(key);
            leg.role == ROLE_ORIGINAL || left.get(&peer).is_some_and(|other| other.peer_key(&peer) == *key)
        });
        let connections = assert_paired(&all);
        println!(
            "{} evicted, {connections} connections, {} refused, {stale} stale legs, {:?}",
            evicted.load(Ordering::Relaxed),
            refused.len(),
            world.counts()
        );
        assert!(evicted.load(Ordering::Relaxed) > 100, "hardly anything was evicted");
        assert!(connections > usize::from(rounds) * ports() / 2, "{connections} connections");
    });
}
