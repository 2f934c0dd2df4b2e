//! The same frames through the kernel's programs, over the kernel's maps, and through user space's pipeline,
//! over tables in memory: what leaves, what is counted, and what is remembered must be the same.
//!
//! `VROUTER_TEST_SEED` repeats a run, `VROUTER_TEST_FRAMES` makes it longer.

use std::collections::BTreeMap;

use vrouter_common::{
    addr::Be32,
    flow::Flow,
    memory::{self, Entry, MemoryPacket, MemoryTables, Verdict},
    tables::{Commit, SCHEMA},
};

use vrouter::banks::Touch;

use crate::{
    generator::{self, Random},
    harness::*,
    topology::{self, *},
};

/// Frames between two applies that make every flow be decided again.
const FRAMES_PER_EPOCH: usize = 700;

/// What user space says of a frame, in the terms of a program.
#[derive(Debug)]
struct Expected {
    verdict: u32,
    /// As it leaves; nobody sees what a dropped frame became.
    frame: Option<Vec<u8>>,
}

fn by_tc(tables: &MemoryTables, entry: Entry, frame: &[u8]) -> Expected {
    let (verdict, frame) = match memory::run(tables, entry, MemoryPacket::new(frame)) {
        Verdict::Sent { frame, .. }
        | Verdict::SentToNeighbour { frame, .. }
        | Verdict::Answered { frame, .. } => (TC_ACT_REDIRECT, Some(frame)),
        // The copies have left, and the original is not needed any more.
        Verdict::Flooded { .. } => (TC_ACT_SHOT, None),
        Verdict::Waiting { request: Some((_, frame)), .. } => (TC_ACT_REDIRECT, Some(frame)),
        // The agent has a copy.
        Verdict::Waiting { request: None, .. } | Verdict::Fragmented(_) => (TC_ACT_SHOT, None),
        Verdict::Passed => (TC_ACT_UNSPEC, Some(frame.to_vec())),
        Verdict::Dropped(_) => (TC_ACT_SHOT, None),
    };
    Expected { verdict, frame }
}

fn by_xdp(tables: &MemoryTables, entry: Entry, frame: &[u8]) -> Expected {
    match memory::run_xdp(tables, entry, MemoryPacket::new(frame)) {
        Ok(Some((_, frame))) => Expected { verdict: XDP_REDIRECT, frame: Some(frame) },
        Ok(None) => Expected { verdict: XDP_PASS, frame: Some(frame.to_vec()) },
        Err(_) => Expected { verdict: XDP_DROP, frame: None },
    }
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

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn random_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("a clock").as_nanos() as u64
}

/// Puts every flow out of date on both sides. Twice, so that the kernel's bank is again 0, user space's only.
fn next_epoch(world: &mut World, tables: &mut MemoryTables) {
    let image = tables.image.clone();
    while world.banks.commit().epoch < tables.commit.epoch + 2 {
        world.banks.apply(image.clone(), &published(1), &Touch::All).expect("apply");
    }
    tables.commit = Commit {
        epoch: tables.commit.epoch + 2,
        vtep: Be32::new(VTEP.to_bits()),
        schema: SCHEMA,
        node: NODE,
        overlay_mtu: published(1).overlay_mtu,
        ..Commit::default()
    };
    tables.revisions = NETWORKS.iter().map(|&network| (network, tables.commit.epoch)).collect();
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
    let mut history: Vec<(&'static str, Vec<u8>)> = Vec::new();
    let mut verdicts = BTreeMap::<(bool, u32), u32>::new();
    for number in 0..frames {
        if number % FRAMES_PER_EPOCH == 0 {
            next_epoch(&mut world, &mut tables);
        }
        // Flows are met again, by both programs.
        let (interface, frame) = if !history.is_empty() && random.once_in(2) {
            let recent = history.len() - history.len().min(40);
            history[recent + random.below(history.len() - recent)].clone()
        } else {
            generator::frame(&mut random)
        };
        let via = if random.once_in(2) { Via::Tc } else { Via::Xdp };
        // The kernel runs no test with these at all.
        if !via.runs(&frame) {
            continue;
        }
        let entry = if interface == UPLINK { Entry::Uplink } else { Entry::Port(world.ifindex(interface)) };
        let expected = match via {
            Via::Tc => by_tc(&tables, entry, &frame),
            Via::Xdp => by_xdp(&tables, entry, &frame),
        };
        let context = || {
            format!("VROUTER_TEST_SEED={seed}, frame {number} by {via:?} from {interface}:\n{}", hex(&frame))
        };
        let ran = world.run(via, interface, &frame);
        assert_eq!(counts(&tables), world.counts(), "counted in user space, in the kernel; {}", context());
        assert_eq!(ran.verdict, expected.verdict, "the kernel's verdict, user space's; {}", context());
        if let Some(frame) = expected.frame {
            assert_frame(&context(), &ran.frame, &frame);
        }
        *verdicts.entry((via == Via::Xdp, ran.verdict)).or_default() += 1;
        history.push((interface, frame));
    }
    let kernel: BTreeMap<_, _> =
        world.flow_entries().iter().map(|(key, flow)| (*key, timeless(flow))).collect();
    let user: BTreeMap<_, _> =
        tables.flows().iter().chain(&tables.transients()).map(|(key, flow)| (*key, timeless(flow))).collect();
    for key in kernel.keys().chain(user.keys()) {
        assert_eq!(
            kernel.get(key),
            user.get(key),
            "VROUTER_TEST_SEED={seed}: the kernel's flow, user space's, of {key:?}"
        );
    }
    println!("{} flows, verdicts (xdp, verdict): {verdicts:?}", kernel.len());
    let counts = world.counts();
    println!("{counts:?}");
    // A generator that stopped reaching things would agree about nothing.
    let packets: u64 = kernel.values().map(|flow| flow.packets).sum();
    assert!(packets > kernel.len() as u64, "{packets} packets by {} flows", kernel.len());
    // A few frames of three thousand are whole, honest pings of a router, and now and then none is: only
    // longer runs must have seen one (the packet tables always do).
    let expected = [
        (3_000, "arp_answered"),
        (3_000, "nd_answered"),
        (3_000, "error_sent"),
        (3_000, "frame_flooded"),
        (30_000, "echo_answered"),
    ];
    let missing: Vec<_> = expected
        .into_iter()
        .filter(|&(enough, event)| frames >= enough && !counts.contains_key(event))
        .collect();
    assert!(missing.is_empty(), "VROUTER_TEST_SEED={seed}: never seen: {missing:?}");
}
