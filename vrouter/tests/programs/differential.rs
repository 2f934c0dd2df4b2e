//! The same frames through the kernel's programs, over the kernel's maps, and through user space's pipeline,
//! over tables in memory: what leaves, what is counted, and what is remembered must be the same.
//!
//! `VROUTER_TEST_SEED` repeats a run, `VROUTER_TEST_FRAMES` makes it longer.

use std::collections::BTreeMap;

use vrouter_common::{
    addr::Be32,
    flow::{Flow, FlowKey},
    memory::{self, Entry, MemoryPacket, MemoryTables, Verdict},
    tables::*,
};

use crate::{
    generator::{self, Live, Random},
    harness::*,
    topology::{self, *},
};

/// Frames between two applies that make every flow be decided again.
const FRAMES_PER_EPOCH: usize = 700;
/// Frames between two looks at what is alive.
const FRAMES_PER_LOOK: usize = 20;

/// What user space says of a frame, in the terms of a program.
#[derive(Debug)]
struct Expected {
    verdict: u32,
    /// As it leaves; nobody sees what a dropped frame became.
    frame: Option<Vec<u8>>,
    /// What the agent gets, besides the frame.
    upcall: Option<Handed>,
}

/// What of an upcall does not depend on the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handed {
    /// A frame that waits for a next hop.
    Wait(u32),
    /// One to be cut, and how its pieces leave.
    Fragment(Flow),
}

fn by_tc(tables: &MemoryTables, entry: Entry, frame: &[u8]) -> Expected {
    let mut upcall = None;
    let (verdict, frame) = match memory::run(tables, entry, MemoryPacket::new(frame)) {
        Verdict::Sent { frame, .. }
        | Verdict::SentToNeighbour { frame, .. }
        | Verdict::Answered { frame, .. } => (TC_ACT_REDIRECT, Some(frame)),
        // The copies have left, and the original is not needed any more.
        Verdict::Flooded { .. } => (TC_ACT_SHOT, None),
        Verdict::Waiting { hop, request } => {
            upcall = Some(Handed::Wait(hop));
            match request {
                Some((_, frame)) => (TC_ACT_REDIRECT, Some(frame)),
                None => (TC_ACT_SHOT, None),
            }
        }
        Verdict::Fragmented(flow) => {
            upcall = Some(Handed::Fragment(timeless(&flow)));
            (TC_ACT_SHOT, None)
        }
        Verdict::Served => (TC_ACT_SHOT, None),
        Verdict::Passed => (TC_ACT_UNSPEC, Some(frame.to_vec())),
        Verdict::Dropped(_) => (TC_ACT_SHOT, None),
    };
    Expected { verdict, frame, upcall }
}

fn by_xdp(tables: &MemoryTables, entry: Entry, frame: &[u8]) -> Expected {
    let (verdict, frame) = match memory::run_xdp(tables, entry, MemoryPacket::new(frame)) {
        Ok(Some((_, frame))) => (XDP_REDIRECT, Some(frame)),
        Ok(None) => (XDP_PASS, Some(frame.to_vec())),
        Err(_) => (XDP_DROP, None),
    };
    Expected { verdict, frame, upcall: None }
}

fn counts(tables: &MemoryTables) -> Counts {
    let drops = tables.drops.borrow();
    let events = tables.events.borrow();
    let drops = drops.iter().map(|(reason, count)| (reason.name(), *count));
    drops.chain(events.iter().map(|(event, count)| (event.name(), *count))).collect()
}

/// A flow without its times.
fn timeless(flow: &Flow) -> Flow {
    Flow { seen: 0, created: 0, ..*flow }
}

pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

pub fn random_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("a clock").as_nanos() as u64
}

/// Puts every flow out of date on both sides. Twice, so that the kernel's bank is again 0, user space's only.
fn next_epoch(world: &mut World, tables: &mut MemoryTables) {
    let epoch = tables.commit.epoch + 2;
    while world.banks.commit().epoch < epoch {
        world.apply_again(tables.image.clone());
    }
    let commit =
        Commit { epoch, vtep: Be32::new(VTEP.to_bits()), schema: SCHEMA, node: NODE, ..Commit::default() };
    tables.commit = topology::complete(commit, &world.ifindexes);
    tables.revisions = NETWORKS.iter().map(|&network| (network, epoch)).collect();
}

/// Does to the next hops of both sides what time and the agent may have done.
fn age_hops(world: &World, tables: &MemoryTables, random: &mut Random) {
    let now = tables.now();
    for (index, mut hop) in tables.hops() {
        // Long ago, or just now: how long exactly is not the point here.
        hop.asked = if random.once_in(3) { 0 } else { now.wrapping_sub(8) | 1 };
        match random.below(200) {
            0 => hop.flags = HOP_USED | HOP_FAILED,
            1 => hop.flags = HOP_USED,
            2 => hop = Hop { flags: HOP_USED | HOP_RESOLVED, mac: NEIGHBOUR_MAC, ..hop },
            _ => {}
        }
        tables.set_hop(index, hop);
        world.hops.set(&index, &hop).expect("HOPS");
    }
}

/// Everything that is remembered, without its times.
#[derive(Debug, PartialEq)]
struct Remembered {
    flows: BTreeMap<FlowKey, Flow>,
    transient: BTreeMap<FlowKey, Flow>,
    hops: Vec<Hop>,
    tries: Vec<u64>,
}

fn all_timeless(entries: Vec<(FlowKey, Flow)>) -> BTreeMap<FlowKey, Flow> {
    entries.iter().map(|(key, flow)| (*key, timeless(flow))).collect()
}

fn in_kernel(world: &World, tables: &MemoryTables) -> Remembered {
    let hop = |(index, _): (u32, Hop)| {
        let hop = world.hops.lookup(&index).expect("HOPS").expect("a slot");
        Hop { asked: 0, confirmed: 0, ..hop }
    };
    Remembered {
        flows: all_timeless(world.flows.entries().expect("FLOWS")),
        transient: all_timeless(world.transient.entries().expect("TRANSIENT")),
        hops: tables.hops().into_iter().map(hop).collect(),
        tries: world.nat_tries(),
    }
}

fn in_user_space(tables: &MemoryTables) -> Remembered {
    let tries = tables.tries.borrow();
    Remembered {
        flows: all_timeless(tables.flows()),
        transient: all_timeless(tables.transients()),
        hops: tables.hops().into_iter().map(|(_, hop)| Hop { asked: 0, confirmed: 0, ..hop }).collect(),
        tries: (0..NAT_TRIES_BUCKETS).map(|bucket| tries.get(&bucket).copied().unwrap_or(0)).collect(),
    }
}

fn assert_remembered(seed: u64, world: &World, tables: &MemoryTables) {
    let (kernel, user) = (in_kernel(world, tables), in_user_space(tables));
    for (name, kernel, user) in
        [("answered", &kernel.flows, &user.flows), ("transient", &kernel.transient, &user.transient)]
    {
        for key in kernel.keys().chain(user.keys()) {
            let (kernel, user) = (kernel.get(key), user.get(key));
            assert_eq!(
                kernel, user,
                "VROUTER_TEST_SEED={seed}: {name}: the kernel's, user space's, of {key:?}"
            );
        }
    }
    assert_eq!(kernel.hops, user.hops, "VROUTER_TEST_SEED={seed}: next hops in the kernel, in user space");
    assert_eq!(
        kernel.tries, user.tries,
        "VROUTER_TEST_SEED={seed}: ports tried in the kernel, in user space"
    );
}

/// Runs a frame in user space as the kernel did at some tick from `before` to `after`: which ports of a
/// router's address are tried depends on it. All but a few frames are run within one tick. Of the ticks at which
/// the same leaves, the one counts at which the same is remembered.
fn at_the_same_tick(
    world: &World,
    tables: &mut MemoryTables,
    (before, after): (u32, u32),
    ran: &Ran,
    run: impl Fn(&MemoryTables) -> Expected,
) -> Expected {
    if before != after {
        let candidates = (before..=after).filter_map(|now| {
            let copy = tables.clone();
            copy.clock.set(now);
            let expected = run(&copy);
            let is_it = expected.verdict == ran.verdict
                && expected.frame.as_ref().is_none_or(|frame| *frame == ran.frame);
            is_it.then_some((copy, expected))
        });
        let mut candidates: Vec<_> = candidates.collect();
        let at = candidates.iter().position(|(copy, _)| in_kernel(world, copy) == in_user_space(copy));
        if let Some(at) = at {
            let (copy, expected) = candidates.swap_remove(at);
            *tables = copy;
            return expected;
        }
    }
    tables.clock.set(after);
    run(tables)
}

#[test]
fn the_kernel_and_user_space_agree() {
    let seed = number("VROUTER_TEST_SEED").unwrap_or_else(random_seed);
    let frames = number("VROUTER_TEST_FRAMES").unwrap_or(3000) as usize;
    println!("VROUTER_TEST_SEED={seed} VROUTER_TEST_FRAMES={frames}");
    in_namespace(move || agree(seed, frames));
}

fn agree(seed: u64, frames: usize) {
    let mut world = World::new(65_536);
    let mut tables = MemoryTables::default();
    tables.image = topology::image(&world.ifindexes);
    tables.underlay = topology::underlay(&world.ifindexes);
    let mut random = Random::new(seed);
    let mut upcalls = world.upcalls();
    let mut history: Vec<(&'static str, Vec<u8>)> = Vec::new();
    let mut waiting: Vec<(&'static str, Vec<u8>)> = Vec::new();
    let mut live = Live::new(&world.ifindexes);
    let mut verdicts = BTreeMap::<(&'static str, bool, u32), u32>::new();
    for number in 0..frames {
        if number % FRAMES_PER_EPOCH == 0 {
            next_epoch(&mut world, &mut tables);
        }
        if number % FRAMES_PER_LOOK == 0 {
            live.flows = tables.flows().into_iter().chain(tables.transients()).collect();
        }
        // Flows are met again, by both programs; fragments come one after the other.
        let (interface, frame) = if let Some(next) = waiting.pop() {
            next
        } else if !history.is_empty() && random.once_in(3) {
            let recent = history.len() - history.len().min(40);
            history[recent + random.below(history.len() - recent)].clone()
        } else {
            waiting = generator::frames(&mut random, &live);
            waiting.reverse();
            waiting.pop().expect("at least one frame")
        };
        let via = if random.once_in(2) { Via::Tc } else { Via::Xdp };
        // The kernel runs no test with these at all.
        if !via.runs(&frame) {
            continue;
        }
        let entry = match interface {
            UPLINK => Entry::Uplink,
            EXTERNAL => Entry::External(world.ifindex(interface)),
            _ => Entry::Port(world.ifindex(interface)),
        };
        let before = world.now();
        tables.clock.set(before);
        age_hops(&world, &tables, &mut random);
        let ran = world.run(via, interface, &frame);
        let after = world.now();
        let expected = at_the_same_tick(&world, &mut tables, (before, after), &ran, |tables| match via {
            Via::Tc => by_tc(tables, entry, &frame),
            Via::Xdp => by_xdp(tables, entry, &frame),
        });
        let context = || {
            format!("VROUTER_TEST_SEED={seed}, frame {number} by {via:?} from {interface}:\n{}", hex(&frame))
        };
        assert_eq!(world.counts(), counts(&tables), "counted in the kernel, in user space; {}", context());
        assert_eq!(ran.verdict, expected.verdict, "the kernel's verdict, user space's; {}", context());
        if let Some(frame) = expected.frame {
            assert_frame(&context(), &ran.frame, &frame);
        }
        let handed = std::iter::from_fn(|| upcalls.next().map(|record| Record::read(&record)));
        let handed = handed.filter(|record| record.upcall.kind != UPCALL_MOVED).last();
        if let Some(record) = &handed
            && matches!(record.upcall.kind, UPCALL_WAIT | UPCALL_FRAGMENT)
        {
            assert_eq!(record.frame, frame, "the frame the agent gets; {}", context());
        }
        // A next hop that answered, or an address that moved, says nothing of a packet.
        let handed = handed.and_then(|Record { upcall, .. }| match upcall.kind {
            UPCALL_WAIT => Some(Handed::Wait(upcall.hop)),
            UPCALL_FRAGMENT => Some(Handed::Fragment(timeless(&upcall.flow))),
            _ => None,
        });
        assert_eq!(
            handed,
            expected.upcall,
            "what the agent gets from the kernel, in user space; {}",
            context()
        );
        let entrance = if matches!(interface, UPLINK | EXTERNAL) { interface } else { "port" };
        *verdicts.entry((entrance, via == Via::Xdp, ran.verdict)).or_default() += 1;
        history.push((interface, frame));
        if number % FRAMES_PER_EPOCH == FRAMES_PER_EPOCH / 2 {
            assert_remembered(seed, &world, &tables);
        }
    }
    assert_remembered(seed, &world, &tables);
    report(seed, frames, &world, &verdicts);
}

/// Says what was reached. A generator that stopped reaching things would agree about nothing.
fn report(seed: u64, frames: usize, world: &World, verdicts: &BTreeMap<(&str, bool, u32), u32>) {
    let answered = world.flows.entries().expect("FLOWS");
    let flows = world.flow_entries();
    println!(
        "{} flows, {} of them answered, verdicts (entrance, xdp, verdict): {verdicts:?}",
        flows.len(),
        answered.len()
    );
    let counts = world.counts();
    println!("{counts:?}, ports tried: {:?}", world.nat_tries());
    let packets: u64 = flows.values().map(|flow| flow.packets).sum();
    assert!(packets > flows.len() as u64, "{packets} packets by {} flows", flows.len());
    // A few frames of three thousand are whole, honest pings of a router, and now and then none is: only
    // longer runs must have seen one (the packet tables always do).
    let expected = [
        (3_000, "arp_answered"),
        (3_000, "nd_answered"),
        (3_000, "error_sent"),
        (3_000, "frame_flooded"),
        (3_000, "flow_answered"),
        (3_000, "next_hop_queued"),
        (3_000, "next_hop_resolved"),
        (3_000, "policy_ingress"),
        (30_000, "echo_answered"),
        (30_000, "fragment_queued"),
        (30_000, "snat_exhausted"),
        (30_000, "icmp_unrelated"),
    ];
    let missing: Vec<_> = expected
        .into_iter()
        .filter(|&(enough, event)| frames >= enough && !counts.contains_key(event))
        .collect();
    assert!(missing.is_empty(), "VROUTER_TEST_SEED={seed}: never seen: {missing:?}");
    let translated = |(key, flow): &(FlowKey, Flow)| flow.translated(key) != key.tuple();
    assert!(
        answered.iter().any(translated),
        "VROUTER_TEST_SEED={seed}: no translated connection was answered"
    );
}
