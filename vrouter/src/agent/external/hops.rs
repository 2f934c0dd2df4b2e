//! What is to be done about each next hop, and when: a state machine without clock, maps or sockets.
//!
//! ```text
//!            a packet           answered
//!   (none) ----------> Asking ------------> Fresh <---------+
//!                        | 3 tries            | 30 s old    | answered
//!                        v                    v             |
//!                      Failed <---------- Checking ---------+
//!                        | asked every 3 s  3 tries to its address, 3 to everybody
//!                        +--- answered ---> Fresh
//! ```
//!
//! What a next hop is, the map says ([`Seen`]); the data path may have changed it at any moment. So a step
//! begins with what the map says now, and the phase only remembers what was tried.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Between two requests.
pub const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// Requests to everybody before a next hop has failed, and to its last address before everybody is asked.
pub const TRIES: u32 = 3;
/// Between two requests for one that has failed.
pub const FAILED_INTERVAL: Duration = Duration::from_secs(3);
/// An answer older than this is checked.
pub const FRESH: Duration = Duration::from_secs(30);
/// Without a flow that refers to it for this long a next hop is forgotten.
pub const KEEP: Duration = Duration::from_secs(600);
/// Of next hops that others can stand in for, as of routes with several: how old an answer may be, between two
/// requests, and between two to one that has failed. One that dies is left within
/// `WATCHED_FRESH + TRIES * WATCHED_INTERVAL`.
pub const WATCHED_FRESH: Duration = Duration::from_millis(700);
pub const WATCHED_INTERVAL: Duration = Duration::from_millis(300);
pub const WATCHED_FAILED_INTERVAL: Duration = Duration::from_secs(1);
/// How long a next hop may be on a network that is not known.
const UNTOLD: Duration = Duration::from_secs(1);
/// A request this young was sent for a packet that came just now: no need for another.
const ASKED_JUST_NOW: Duration = Duration::from_millis(900);

/// What the map says of a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The slot is free.
    Unused,
    /// Its hardware address is not known; how old the last request is, if there was one.
    Unresolved(Option<Duration>),
    /// It is known; how old the last answer is.
    Resolved(Duration),
    /// It did not answer.
    Failed,
    /// This node has no interface on its network at the moment.
    Unreachable,
}

/// What becomes of a packet for a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Send it.
    Ready,
    /// Keep it.
    Wait,
    /// Answer it.
    Failed,
}

/// What has to be done about a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is as it should be.
    Nothing,
    /// Ask everybody.
    Ask,
    /// Ask it at its last address.
    AskKnown,
    /// Mark it as failed.
    Fail,
    /// It is marked as failed: ask everybody.
    Probe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Asking { tries: u32 },
    Fresh,
    Checking { tries: u32 },
    Failed,
}

#[derive(Clone, Debug)]
struct Tracked {
    phase: Phase,
    due: Instant,
    /// When it was last known that somebody wants it.
    wanted: Instant,
}

/// How many there are of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub resolved: usize,
    pub waiting: usize,
    pub failed: usize,
}

/// Every next hop that is in use, by index.
#[derive(Debug, Default)]
pub struct Hops {
    tracked: BTreeMap<u32, Tracked>,
    timers: BTreeSet<(Instant, u32)>,
    /// Those that others can stand in for.
    watched: BTreeSet<u32>,
}

impl Hops {
    /// Others can stand in for these: it matters to know soon whether they are there.
    pub fn watch(&mut self, watched: BTreeSet<u32>, now: Instant) {
        for &index in watched.difference(&self.watched.clone()) {
            if self.phase(index) == Some(Phase::Fresh) {
                self.set(index, Phase::Fresh, now, now);
            }
        }
        self.watched = watched;
    }

    fn fresh(&self, index: u32) -> Duration {
        if self.watched.contains(&index) { WATCHED_FRESH } else { FRESH }
    }

    /// A packet wants it.
    pub fn arrive(&mut self, index: u32, seen: Seen, now: Instant) -> Readiness {
        if let Some(tracked) = self.tracked.get_mut(&index) {
            tracked.wanted = tracked.wanted.max(now);
        }
        self.observe(index, seen, now)
    }

    /// It was found, or is seen again: begins to look after it, and takes note of what it has become.
    pub fn observe(&mut self, index: u32, seen: Seen, now: Instant) -> Readiness {
        match seen {
            Seen::Unused => {
                self.forget(index);
                Readiness::Failed
            }
            Seen::Unresolved(asked) => {
                if !matches!(self.phase(index), Some(Phase::Asking { .. })) {
                    self.ask_from(index, asked, now);
                }
                Readiness::Wait
            }
            Seen::Resolved(age) => {
                if !matches!(self.phase(index), Some(Phase::Fresh | Phase::Checking { .. })) {
                    self.set(index, Phase::Fresh, now + self.fresh(index).saturating_sub(age), now);
                }
                Readiness::Ready
            }
            Seen::Unreachable => match self.phase(index) {
                // Packets come as soon as a network is in force, maybe before it is told here.
                None => {
                    self.set(index, Phase::Asking { tries: 0 }, now + UNTOLD, now);
                    Readiness::Wait
                }
                Some(Phase::Asking { tries: 0 }) => Readiness::Wait,
                Some(Phase::Failed) => Readiness::Failed,
                Some(_) => {
                    // It is marked in its turn.
                    self.set(index, Phase::Asking { tries: TRIES }, now, now);
                    Readiness::Failed
                }
            },
            Seen::Failed => {
                if self.phase(index) != Some(Phase::Failed) {
                    self.set(index, Phase::Failed, now + FAILED_INTERVAL, now);
                }
                Readiness::Failed
            }
        }
    }

    /// Begins from the beginning: it was resolved, and what was learned is lost or worth nothing.
    pub fn restart(&mut self, index: u32, now: Instant) {
        self.set(index, Phase::Asking { tries: 0 }, now, now);
    }

    /// Those whose time has come, at most `most` of them.
    pub fn due(&self, now: Instant, most: usize) -> Vec<u32> {
        self.timers.iter().take_while(|(due, _)| *due <= now).take(most).map(|&(_, index)| index).collect()
    }

    /// When the next one's time comes.
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|&(due, _)| due)
    }

    /// Not now, there is too much to do.
    pub fn postpone(&mut self, index: u32, until: Instant) {
        if let Some(phase) = self.phase(index) {
            self.set(index, phase, until, until);
        }
    }

    /// What is to be done about one whose time has come.
    pub fn step(&mut self, index: u32, seen: Seen, now: Instant) -> Step {
        let Some(phase) = self.phase(index) else { return Step::Nothing };
        let watched = self.watched.contains(&index);
        let (fresh, ask_interval, failed_interval, checks) = if watched {
            (WATCHED_FRESH, WATCHED_INTERVAL, WATCHED_FAILED_INTERVAL, TRIES)
        } else {
            (FRESH, ASK_INTERVAL, FAILED_INTERVAL, 2 * TRIES)
        };
        let mut next = |phase, after: Duration, step| {
            self.set(index, phase, now + after, now);
            step
        };
        match (seen, phase) {
            (Seen::Unused, _) => {
                self.forget(index);
                Step::Nothing
            }
            (Seen::Unreachable, Phase::Failed) => next(Phase::Failed, failed_interval, Step::Nothing),
            (Seen::Unreachable, _) => next(Phase::Failed, failed_interval, Step::Fail),
            (Seen::Failed, _) => next(Phase::Failed, failed_interval, Step::Probe),
            (Seen::Resolved(age), _) if age < fresh => next(Phase::Fresh, fresh - age, Step::Nothing),
            (Seen::Resolved(_), Phase::Checking { tries }) if tries < checks - TRIES => {
                next(Phase::Checking { tries: tries + 1 }, ask_interval, Step::AskKnown)
            }
            (Seen::Resolved(_), Phase::Checking { tries }) if tries < checks => {
                next(Phase::Checking { tries: tries + 1 }, ask_interval, Step::Ask)
            }
            (Seen::Resolved(_), Phase::Checking { .. }) => next(Phase::Failed, failed_interval, Step::Fail),
            (Seen::Resolved(_), _) => next(Phase::Checking { tries: 1 }, ask_interval, Step::AskKnown),
            (Seen::Unresolved(_), Phase::Asking { tries }) if tries >= TRIES => {
                next(Phase::Failed, failed_interval, Step::Fail)
            }
            (Seen::Unresolved(Some(age)), Phase::Asking { tries })
                if tries > 0 && age < ASKED_JUST_NOW && !watched =>
            {
                // The data path asked, for another packet: that was this try.
                next(Phase::Asking { tries: tries + 1 }, ASK_INTERVAL - age, Step::Nothing)
            }
            (Seen::Unresolved(_), Phase::Asking { tries }) => {
                next(Phase::Asking { tries: tries + 1 }, ask_interval, Step::Ask)
            }
            (Seen::Unresolved(_), _) => next(Phase::Asking { tries: 1 }, ask_interval, Step::Ask),
        }
    }

    /// Notes which ones flows refer to, as found by a search of the flow tables that began at `began`.
    pub fn note_referenced(&mut self, referenced: &BTreeSet<u32>, began: Instant) {
        for (index, tracked) in &mut self.tracked {
            if referenced.contains(index) {
                tracked.wanted = tracked.wanted.max(began);
            }
        }
    }

    /// Those nobody wants, by a search that began at `began`: failed ones at once, others after a while.
    pub fn unwanted(&self, began: Instant) -> Vec<u32> {
        let unwanted = |tracked: &Tracked| match tracked.phase {
            Phase::Failed => tracked.wanted < began,
            Phase::Fresh | Phase::Checking { .. } => tracked.wanted + KEEP <= began,
            Phase::Asking { .. } => false,
        };
        let unwanted =
            self.tracked.iter().filter(|(index, tracked)| unwanted(tracked) && !self.watched.contains(index));
        unwanted.map(|(&index, _)| index).collect()
    }

    /// Looks after it no more.
    pub fn forget(&mut self, index: u32) {
        if let Some(tracked) = self.tracked.remove(&index) {
            self.timers.remove(&(tracked.due, index));
        }
    }

    /// Whether it is looked after.
    pub fn contains(&self, index: u32) -> bool {
        self.tracked.contains_key(&index)
    }

    /// All that are looked after.
    pub fn indexes(&self) -> impl Iterator<Item = u32> {
        self.tracked.keys().copied()
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.tracked.is_empty()
    }

    /// How many there are of each.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for tracked in self.tracked.values() {
            match tracked.phase {
                Phase::Asking { .. } => tally.waiting += 1,
                Phase::Fresh | Phase::Checking { .. } => tally.resolved += 1,
                Phase::Failed => tally.failed += 1,
            }
        }
        tally
    }

    fn phase(&self, index: u32) -> Option<Phase> {
        self.tracked.get(&index).map(|tracked| tracked.phase)
    }

    fn ask_from(&mut self, index: u32, asked: Option<Duration>, now: Instant) {
        match asked {
            Some(age) if age < ASK_INTERVAL => {
                self.set(index, Phase::Asking { tries: 1 }, now + (ASK_INTERVAL - age), now);
            }
            _ => self.set(index, Phase::Asking { tries: 0 }, now, now),
        }
    }

    fn set(&mut self, index: u32, phase: Phase, due: Instant, now: Instant) {
        match self.tracked.get_mut(&index) {
            Some(tracked) => {
                self.timers.remove(&(tracked.due, index));
                (tracked.phase, tracked.due) = (phase, due);
            }
            None => {
                self.tracked.insert(index, Tracked { phase, due, wanted: now });
            }
        }
        self.timers.insert((due, index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOP: u32 = 7;
    const JUST_ASKED: Seen = Seen::Unresolved(Some(Duration::ZERO));
    const A_SECOND: Seen = Seen::Unresolved(Some(Duration::from_secs(1)));

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Runs the one next hop until `until`, the map saying `seen` throughout; what was done, and when.
    fn run(hops: &mut Hops, start: Instant, until: Duration, seen: Seen) -> Vec<(u64, Step)> {
        let mut done = Vec::new();
        while let Some(due) = hops.next_due().filter(|due| *due <= start + until) {
            for index in hops.due(due, 10) {
                let step = hops.step(index, seen, due);
                done.push(((due - start).as_secs(), step));
            }
        }
        done
    }

    #[test]
    fn r2_one_that_others_can_stand_in_for_is_given_up_soon() {
        let start = Instant::now();
        let mut hops = Hops::default();
        let just_now = Seen::Resolved(Duration::ZERO);
        assert_eq!(hops.arrive(HOP, just_now, start), Readiness::Ready);
        hops.watch(BTreeSet::from([HOP]), start);
        assert_eq!(hops.step(HOP, just_now, start), Step::Nothing);
        let silent = Seen::Resolved(WATCHED_FRESH);
        let mut steps = Vec::new();
        while steps.last() != Some(&Step::Fail) {
            let due = hops.next_due().expect("a due time");
            assert!(due <= start + WATCHED_FRESH + TRIES * WATCHED_INTERVAL);
            steps.push(hops.step(HOP, silent, due));
        }
        assert_eq!(steps, [Step::AskKnown, Step::Ask, Step::Ask, Step::Fail]);
        assert!(
            hops.unwanted(start + seconds(9999)).is_empty(),
            "it is asked for as long as there is a route by it"
        );
    }

    #[test]
    fn three_requests_a_second_apart_then_failed() {
        let start = Instant::now();
        let mut hops = Hops::default();
        assert_eq!(hops.arrive(HOP, JUST_ASKED, start), Readiness::Wait);
        assert_eq!(hops.tally(), Tally { waiting: 1, ..Tally::default() });
        // The first one was the data path's.
        let done = run(&mut hops, start, seconds(3), A_SECOND);
        assert_eq!(done, [(1, Step::Ask), (2, Step::Ask), (3, Step::Fail)]);
        assert_eq!(hops.tally(), Tally { failed: 1, ..Tally::default() });
        // As long as it is there it is asked.
        let done = run(&mut hops, start, seconds(12), Seen::Failed);
        assert_eq!(done, [(6, Step::Probe), (9, Step::Probe), (12, Step::Probe)]);
        // And when it answers it is fresh.
        let done = run(&mut hops, start, seconds(15), Seen::Resolved(seconds(1)));
        assert_eq!(done, [(15, Step::Nothing)]);
        assert_eq!(hops.tally(), Tally { resolved: 1, ..Tally::default() });
        assert_eq!(hops.next_due(), Some(start + seconds(15 + 29)));
    }

    #[test]
    fn more_packets_neither_hasten_nor_delay() {
        let start = Instant::now();
        let mut hops = Hops::default();
        for tenth in 0..9 {
            let age = Duration::from_millis(tenth * 100);
            assert_eq!(hops.arrive(HOP, Seen::Unresolved(Some(age)), start + age), Readiness::Wait);
        }
        assert_eq!(hops.next_due(), Some(start + seconds(1)));
    }

    #[test]
    fn a_request_of_the_data_path_counts_as_a_try() {
        let start = Instant::now();
        let mut hops = Hops::default();
        hops.arrive(HOP, JUST_ASKED, start);
        let asked = Seen::Unresolved(Some(Duration::from_millis(100)));
        assert_eq!(hops.step(HOP, asked, start + seconds(1)), Step::Nothing);
        assert_eq!(hops.next_due(), Some(start + Duration::from_millis(1900)));
        assert_eq!(hops.step(HOP, A_SECOND, start + Duration::from_millis(1900)), Step::Ask);
        assert_eq!(hops.step(HOP, A_SECOND, start + Duration::from_millis(2900)), Step::Fail);
    }

    #[test]
    fn one_nobody_asked_for_is_asked_for_at_once() {
        let start = Instant::now();
        let mut hops = Hops::default();
        hops.arrive(HOP, Seen::Unresolved(None), start);
        let done = run(&mut hops, start, seconds(3), A_SECOND);
        assert_eq!(done, [(0, Step::Ask), (1, Step::Ask), (2, Step::Ask), (3, Step::Fail)]);
    }

    #[test]
    fn a_stale_one_is_asked_at_its_address_then_everywhere_then_fails() {
        let start = Instant::now();
        let mut hops = Hops::default();
        assert_eq!(hops.arrive(HOP, Seen::Resolved(seconds(10)), start), Readiness::Ready);
        let done = run(&mut hops, start, seconds(26), Seen::Resolved(seconds(31)));
        let known: Vec<_> = (20..23).map(|at| (at, Step::AskKnown)).collect();
        let all: Vec<_> = (23..26).map(|at| (at, Step::Ask)).collect();
        assert_eq!(done, [known, all, vec![(26, Step::Fail)]].concat());
    }

    #[test]
    fn an_answer_to_a_check_makes_it_fresh() {
        let start = Instant::now();
        let mut hops = Hops::default();
        hops.arrive(HOP, Seen::Resolved(seconds(40)), start);
        assert_eq!(run(&mut hops, start, seconds(1), Seen::Resolved(seconds(40))).len(), 2);
        assert_eq!(hops.step(HOP, Seen::Resolved(seconds(1)), start + seconds(2)), Step::Nothing);
        assert_eq!(hops.next_due(), Some(start + seconds(2 + 29)));
        // The next check begins from the beginning.
        assert_eq!(hops.step(HOP, Seen::Resolved(seconds(30)), start + seconds(31)), Step::AskKnown);
    }

    #[test]
    fn what_was_overwritten_is_asked_for_again() {
        let start = Instant::now();
        let mut hops = Hops::default();
        hops.arrive(HOP, Seen::Resolved(seconds(0)), start);
        hops.restart(HOP, start);
        assert_eq!(hops.due(start, 10), [HOP]);
        assert_eq!(hops.step(HOP, JUST_ASKED, start), Step::Ask);
        // The same if only the map says so.
        hops.arrive(HOP, Seen::Resolved(seconds(0)), start);
        assert_eq!(hops.step(HOP, Seen::Unresolved(None), start + seconds(30)), Step::Ask);
    }

    #[test]
    fn without_an_interface_it_fails_and_is_not_asked_for() {
        let start = Instant::now();
        let mut hops = Hops::default();
        hops.arrive(HOP, JUST_ASKED, start);
        let done = run(&mut hops, start, seconds(7), Seen::Unreachable);
        assert_eq!(done, [(1, Step::Fail), (4, Step::Nothing), (7, Step::Nothing)]);
        let done = run(&mut hops, start, seconds(10), Seen::Unresolved(None));
        assert_eq!(done, [(10, Step::Ask)], "the interface is back");
        // One that was in order is marked at once.
        hops.observe(HOP, Seen::Resolved(seconds(0)), start + seconds(11));
        assert_eq!(hops.observe(HOP, Seen::Unreachable, start + seconds(11)), Readiness::Failed);
        assert_eq!(hops.due(start + seconds(11), 10), [HOP]);
        assert_eq!(hops.step(HOP, Seen::Unreachable, start + seconds(11)), Step::Fail);
    }

    #[test]
    fn a_packet_on_a_network_that_is_told_later_waits_for_that() {
        let start = Instant::now();
        let mut hops = Hops::default();
        assert_eq!(hops.arrive(HOP, Seen::Unreachable, start), Readiness::Wait);
        assert_eq!(hops.arrive(HOP, Seen::Unreachable, start), Readiness::Wait, "and the next");
        assert!(hops.due(start, 10).is_empty());
        // Told, and answered meanwhile.
        assert_eq!(hops.observe(HOP, Seen::Resolved(seconds(0)), start), Readiness::Ready);
        hops.forget(HOP);
        // Told, and not answered yet: it is asked for.
        hops.arrive(HOP, Seen::Unreachable, start);
        assert_eq!(hops.observe(HOP, A_SECOND, start), Readiness::Wait);
        assert_eq!(run(&mut hops, start, seconds(1), A_SECOND), [(1, Step::Ask)]);
        hops.forget(HOP);
        // Never told.
        hops.arrive(HOP, Seen::Unreachable, start);
        assert_eq!(run(&mut hops, start, seconds(1), Seen::Unreachable), [(1, Step::Fail)]);
    }

    #[test]
    fn unwanted_are_failed_ones_at_once_and_others_after_ten_minutes() {
        let start = Instant::now();
        let mut hops = Hops::default();
        hops.arrive(1, Seen::Failed, start);
        hops.arrive(2, Seen::Failed, start);
        hops.arrive(3, Seen::Resolved(seconds(0)), start);
        hops.arrive(4, JUST_ASKED, start);
        assert!(hops.unwanted(start).is_empty(), "what began at the same time may have missed them");
        let search = start + seconds(30);
        hops.note_referenced(&BTreeSet::from([2, 99]), search);
        assert_eq!(hops.unwanted(search), [1]);
        let late = start + KEEP;
        assert_eq!(hops.unwanted(late), [1, 2, 3]);
        hops.note_referenced(&BTreeSet::from([2, 3]), late);
        assert_eq!(hops.unwanted(late), [1]);
        hops.observe(1, Seen::Failed, late + seconds(1));
        assert_eq!(hops.unwanted(late), [1], "to be seen is not to be wanted");
        hops.arrive(1, Seen::Failed, late + seconds(1));
        assert!(hops.unwanted(late).is_empty(), "a packet came after the search began");
    }

    #[test]
    fn forgotten_and_unused_ones_have_no_timers() {
        let start = Instant::now();
        let mut hops = Hops::default();
        hops.arrive(1, JUST_ASKED, start);
        hops.arrive(2, JUST_ASKED, start);
        hops.forget(1);
        assert_eq!(hops.step(2, Seen::Unused, start + seconds(1)), Step::Nothing);
        assert!(hops.is_empty());
        assert_eq!(hops.next_due(), None);
        assert_eq!(hops.arrive(3, Seen::Unused, start), Readiness::Failed);
        assert!(hops.is_empty());
    }
}
