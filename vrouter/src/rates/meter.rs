//! What flows carried between two reads of their tables.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
};

use vrouter_common::flow::{Flow, FlowKey};

use crate::{clock::Ticks, counters::Tally};

/// The counters of every flow as they were read last: 32 bytes for each.
#[derive(Default)]
pub struct Meter {
    /// Keys are told apart by a digest with a secret: nobody outside can make two of them alike.
    digests: RandomState,
    known: HashMap<u64, Seen>,
    round: u32,
    /// When the round at hand and the one before began.
    now: Option<Ticks>,
    before: Option<Ticks>,
}

#[derive(Clone, Copy)]
struct Seen {
    tally: Tally,
    created: u32,
    round: u32,
}

/// What is new about an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    pub tally: Tally,
    /// The first time in this round: an entry that moves from one table to the other is in both for a moment.
    pub is_first: bool,
}

impl Meter {
    /// Begins a round.
    pub fn begin(&mut self, now: Ticks) {
        self.round = self.round.wrapping_add(1);
        self.before = self.now.replace(now);
    }

    /// Takes an entry as it was read, the table that flows move from first.
    pub fn note(&mut self, key: &FlowKey, flow: &Flow) -> Growth {
        let tally = Tally { packets: flow.packets, bytes: flow.bytes };
        let seen = Seen { tally, created: flow.created, round: self.round };
        let is_new = match (self.now, self.before) {
            (Some(now), Some(before)) => now.age(flow.created) <= now.age(before.now),
            // Nothing was read before: what it carried, it may have carried long ago.
            _ => false,
        };
        let since_created = if is_new { tally } else { Tally::default() };
        match self.known.entry(self.digests.hash_one(key)) {
            Entry::Vacant(entry) => {
                entry.insert(seen);
                Growth { tally: since_created, is_first: true }
            }
            Entry::Occupied(mut entry) => {
                let old = entry.insert(seen);
                let is_first = old.round != self.round;
                let tally = if !is_first {
                    Tally {
                        packets: tally.packets.saturating_sub(old.tally.packets),
                        bytes: tally.bytes.saturating_sub(old.tally.bytes),
                    }
                } else if old.created == flow.created {
                    growth(old.tally, tally)
                } else {
                    since_created
                };
                Growth { tally, is_first }
            }
        }
    }

    /// Ends the round: what was not there any more is forgotten.
    pub fn end(&mut self) {
        let round = self.round;
        self.known.retain(|_, seen| seen.round == round);
    }

    /// Flows it knows.
    pub fn known(&self) -> usize {
        self.known.len()
    }
}

/// What was counted between two readings of packets and bytes.
pub fn growth(old: Tally, new: Tally) -> Tally {
    Tally { packets: since(old.packets, new.packets), bytes: since(old.bytes, new.bytes) }
}

/// What was counted between two readings of a counter. One that went past its end goes on from zero; one that is
/// lower for another reason began anew, with new maps.
pub fn since(old: u64, new: u64) -> u64 {
    /// More than any counter counts between two readings.
    const IMPLAUSIBLE: u64 = 1 << 48;
    let grown = new.wrapping_sub(old);
    if grown < IMPLAUSIBLE {
        grown
    } else if new < old {
        new
    } else {
        grown
    }
}

#[cfg(test)]
mod tests {
    use vrouter_common::addr::Be16;

    use super::*;

    fn at(seconds: u32) -> Ticks {
        Ticks { now: seconds.wrapping_mul(250), per_second: 250 }
    }

    fn key(port: u16) -> FlowKey {
        FlowKey { sport: Be16::new(port), ..FlowKey::default() }
    }

    fn flow(created: u32, packets: u64) -> Flow {
        Flow { created: created.wrapping_mul(250), packets, bytes: packets * 100, ..Flow::default() }
    }

    /// One round over entries; the packets that are new.
    fn round(meter: &mut Meter, seconds: u32, entries: &[(u16, Flow)]) -> u64 {
        meter.begin(at(seconds));
        let sum = entries.iter().map(|(port, flow)| {
            let Growth { tally, .. } = meter.note(&key(*port), flow);
            assert_eq!(tally.bytes, tally.packets * 100);
            tally.packets
        });
        let sum = sum.sum();
        meter.end();
        sum
    }

    #[test]
    fn the_first_read_measures_nothing_and_the_second_what_is_new() {
        let mut meter = Meter::default();
        assert_eq!(round(&mut meter, 100, &[(1, flow(10, 5_000_000))]), 0);
        assert_eq!(round(&mut meter, 101, &[(1, flow(10, 5_000_070))]), 70);
    }

    #[test]
    fn a_flow_that_began_since_counts_whole_and_an_old_one_never_seen_does_not() {
        let mut meter = Meter::default();
        round(&mut meter, 100, &[]);
        assert_eq!(round(&mut meter, 102, &[(1, flow(101, 30)), (2, flow(50, 1_000_000))]), 30);
        assert_eq!(round(&mut meter, 104, &[(1, flow(101, 31)), (2, flow(50, 1_000_002))]), 3);
    }

    #[test]
    fn a_flow_that_vanished_takes_nothing_away_and_is_forgotten() {
        let mut meter = Meter::default();
        round(&mut meter, 100, &[(1, flow(1, 1000)), (2, flow(1, 1000))]);
        assert_eq!(round(&mut meter, 101, &[(2, flow(1, 1010))]), 10);
        assert_eq!(meter.known(), 1);
    }

    #[test]
    fn another_flow_under_the_same_key_begins_at_zero() {
        let mut meter = Meter::default();
        round(&mut meter, 100, &[(1, flow(1, 1000))]);
        assert_eq!(round(&mut meter, 102, &[(1, flow(101, 4))]), 4);
        assert_eq!(
            round(&mut meter, 104, &[(1, flow(103, 5000))]),
            5000,
            "more than before, and all of it new"
        );
    }

    #[test]
    fn an_entry_seen_in_both_tables_counts_once() {
        let mut meter = Meter::default();
        round(&mut meter, 100, &[(1, flow(1, 10))]);
        assert_eq!(round(&mut meter, 101, &[(1, flow(1, 20)), (1, flow(1, 21))]), 11);
        assert_eq!(
            round(&mut meter, 102, &[(1, flow(1, 25)), (1, flow(1, 23))]),
            4,
            "the staler copy is no reset"
        );
        meter.begin(at(103));
        assert!(meter.note(&key(1), &flow(1, 30)).is_first);
        assert!(!meter.note(&key(1), &flow(1, 30)).is_first);
    }

    #[test]
    fn the_tick_counter_may_begin_again_between_two_reads() {
        let mut meter = Meter::default();
        let before = Ticks { now: u32::MAX - 100, per_second: 250 };
        let after = Ticks { now: 150, per_second: 250 };
        meter.begin(before);
        meter.end();
        meter.begin(after);
        let young = Flow { created: 20, packets: 7, bytes: 700, ..Flow::default() };
        let old = Flow { created: u32::MAX - 5000, ..young };
        assert_eq!(meter.note(&key(1), &young).tally.packets, 7);
        assert_eq!(meter.note(&key(2), &old).tally.packets, 0);
    }

    #[test]
    fn counters_wrap_or_begin_anew() {
        for (old, new, counted) in [
            (0, 0, 0),
            (10, 25, 15),
            (u64::MAX - 4, 5, 10),
            (1000, 10, 10),
            (5, 0, 0),
            (0, u64::MAX / 2, u64::MAX / 2),
        ] {
            assert_eq!(since(old, new), counted, "{old} to {new}");
        }
    }
}
