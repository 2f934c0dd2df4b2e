//! All members this node checks: whose turn it is, which frame is whose answer, what to say. Without clock or sockets.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use vrouter_common::service::PROBE_PORT_FIRST;

use super::{
    machine::{Machine, Outcome, State},
    probe::{Heard, Probe, Reach},
    shared::MemberName,
};
use crate::{compile::MonitoredMember, store::health::Words};

/// Ports and identifiers of checks, as RFC 6335 has them for what comes and goes.
const NUMBERS: std::ops::RangeInclusive<u16> = PROBE_PORT_FIRST..=u16::MAX;

/// A frame to be sent by an interface.
pub type Sent = (u32, Vec<u8>);

/// A member, as this node's agent tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    pub pool: String,
    pub member: String,
    pub address: String,
    /// `up`, `down`, or `unknown`: not checked often enough yet, and used.
    pub state: &'static str,
    /// Why it is down.
    pub reason: Option<String>,
    /// Seconds since 1970 when it became so.
    pub since: u64,
    /// Checks by result.
    pub good: u64,
    pub bad: u64,
    /// Those that could not be made.
    pub void: u64,
}

struct Entry {
    target: MonitoredMember,
    machine: Machine,
    probe: Option<(Probe, u16)>,
    /// When the check in progress has failed.
    deadline: Instant,
    /// Where it is in [`Checker::timers`].
    timer: Option<Instant>,
    since: u64,
    counts: [u64; 3],
}

/// See the module.
#[derive(Default)]
pub struct Checker {
    members: BTreeMap<MemberName, Entry>,
    timers: BTreeSet<(Instant, MemberName)>,
    /// Whose check has which number on an interface.
    asked: HashMap<(u32, u16), MemberName>,
    next_number: u16,
    /// What is down, if it is known from an earlier agent.
    remembered: Words,
}

impl Checker {
    /// What is remembered holds until it is found to be otherwise.
    pub fn new(remembered: Words) -> Self {
        Self { remembered, next_number: *NUMBERS.start(), ..Self::default() }
    }

    /// From now on these; whether there is something else to say.
    pub fn follow(&mut self, wanted: &[MonitoredMember], now: Instant, out: &mut Vec<Sent>) -> bool {
        let names: BTreeSet<MemberName> =
            wanted.iter().map(|target| (target.pool.clone(), target.member.clone())).collect();
        let gone: Vec<MemberName> =
            self.members.keys().filter(|name| !names.contains(*name)).cloned().collect();
        let mut differs = !gone.is_empty();
        for name in gone {
            self.forget(&name, out);
        }
        for target in wanted {
            let name = (target.pool.clone(), target.member.clone());
            if self.members.get(&name).is_some_and(|entry| entry.target == *target) {
                continue;
            }
            let before = self.forget(&name, out);
            let (state, mut since, counts) = match before {
                // Asked in another way, it is as it was found before, and for as long.
                Some(entry) if entry.target.address == target.address => {
                    (entry.machine.state().clone(), entry.since, entry.counts)
                }
                Some(_) => (State::Unknown, seconds(), [0; 3]),
                None => (self.recalled(&name), seconds(), [0; 3]),
            };
            let mut machine = Machine::new(&target.monitor, state, phase(&name), now);
            let missing = target.ifindex.is_none().then_some(target.interface.as_str());
            if machine.plug(missing, now) {
                since = seconds();
                tell(&name, &machine);
            }
            let entry = Entry {
                target: target.clone(),
                machine,
                probe: None,
                deadline: now,
                timer: None,
                since,
                counts,
            };
            self.members.insert(name.clone(), entry);
            self.schedule(&name);
            differs = true;
        }
        self.remembered = Words::default();
        differs
    }

    /// What is down by what this node said last, of which nothing was remembered so far; whether there is something else
    /// to say. What was found meanwhile holds.
    pub fn recall(&mut self, words: Words) -> bool {
        self.remembered = words;
        let mut differs = false;
        for (name, entry) in &mut self.members {
            if *entry.machine.state() == State::Unknown
                && let Some(why) = down_in(&self.remembered, name)
            {
                entry.machine.recall(why.clone());
                differs = true;
            }
        }
        differs
    }

    fn recalled(&self, name: &MemberName) -> State {
        down_in(&self.remembered, name).map_or(State::Unknown, |why| State::Down(why.clone()))
    }

    fn forget(&mut self, name: &MemberName, out: &mut Vec<Sent>) -> Option<Entry> {
        let mut entry = self.members.remove(name)?;
        if let Some(at) = entry.timer {
            self.timers.remove(&(at, name.clone()));
        }
        leave(&mut entry, &mut self.asked, out);
        Some(entry)
    }

    /// When there is something to be done.
    pub fn due(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Begins checks, repeats questions, gives up; whether there is something else to say.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Sent>) -> bool {
        let mut differs = false;
        while let Some((at, name)) = self.timers.first().cloned() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            if let Some(entry) = self.members.get_mut(&name) {
                entry.timer = None;
            }
            differs |= self.turn(&name, now, out);
            self.schedule(&name);
        }
        differs
    }

    fn turn(&mut self, name: &MemberName, now: Instant, out: &mut Vec<Sent>) -> bool {
        let Some(entry) = self.members.get_mut(name) else { return false };
        let Some(ifindex) = entry.target.ifindex else { return false };
        if let Some((probe, _)) = &mut entry.probe {
            if now < entry.deadline {
                out.extend(probe.tick(now).into_iter().map(|frame| (ifindex, frame)));
                return false;
            }
            let why = probe.silence();
            return self.end(name, Outcome::Bad(why), out);
        }
        if entry.machine.due().is_none_or(|due| due > now) {
            return false;
        }
        let number = self.number(ifindex);
        let Some(entry) = self.members.get_mut(name) else { return false };
        // Its moment has passed, whether or not it can be checked.
        entry.machine.begin(now);
        let Some(number) = number else {
            return self.end(name, Outcome::Void, out);
        };
        let Some(entry) = self.members.get_mut(name) else { return false };
        let target = &entry.target;
        let reach = Reach {
            source: target.source,
            source_mac: target.source_mac,
            address: target.address,
            mac: target.mac,
            number,
        };
        let (probe, frames) = Probe::start(reach, target.protocol_port, &target.monitor, now);
        out.extend(frames.into_iter().map(|frame| (ifindex, frame)));
        entry.deadline = now + Duration::from_millis(target.monitor.timeout_ms.into());
        entry.probe = Some((probe, number));
        self.asked.insert((ifindex, number), name.clone());
        false
    }

    /// A free number on an interface: for a while nobody gets one that was used.
    fn number(&mut self, ifindex: u32) -> Option<u16> {
        for _ in NUMBERS {
            let number = self.next_number;
            self.next_number = if number == *NUMBERS.end() { *NUMBERS.start() } else { number + 1 };
            if !self.asked.contains_key(&(ifindex, number)) {
                return Some(number);
            }
        }
        None
    }

    /// A frame came from a port; whether there is something else to say.
    pub fn hear(&mut self, ifindex: u32, frame: &[u8], now: Instant, out: &mut Vec<Sent>) -> bool {
        let Some(heard) = Heard::read(frame) else { return false };
        let Some(name) = self.asked.get(&(ifindex, heard.number)).cloned() else {
            // Nobody else speaks for the router there.
            out.extend(heard.refusal(frame).map(|reset| (ifindex, reset)));
            return false;
        };
        let Some(entry) = self.members.get_mut(&name) else { return false };
        let Some((probe, _)) = &mut entry.probe else { return false };
        let (frames, outcome) = probe.hear(&heard, now);
        out.extend(frames.into_iter().map(|frame| (ifindex, frame)));
        let differs = outcome.is_some_and(|outcome| self.end(&name, outcome, out));
        self.schedule(&name);
        differs
    }

    /// A check ended; whether there is something else to say.
    fn end(&mut self, name: &MemberName, outcome: Outcome, out: &mut Vec<Sent>) -> bool {
        let Some(entry) = self.members.get_mut(name) else { return false };
        leave(entry, &mut self.asked, out);
        entry.counts[match outcome {
            Outcome::Good => 0,
            Outcome::Bad(_) => 1,
            Outcome::Void => 2,
        }] += 1;
        if let Outcome::Bad(why) = &outcome {
            tracing::debug!(pool = name.0, member = name.1, "a check is bad: {why}");
        }
        let was_down = matches!(entry.machine.state(), State::Down(_));
        if !entry.machine.end(outcome) {
            return false;
        }
        entry.since = seconds();
        tell(name, &entry.machine);
        was_down != matches!(entry.machine.state(), State::Down(_))
    }

    /// Puts a member where its next moment is.
    fn schedule(&mut self, name: &MemberName) {
        let Some(entry) = self.members.get_mut(name) else { return };
        let at = match &entry.probe {
            Some((probe, _)) => Some(probe.due().map_or(entry.deadline, |due| due.min(entry.deadline))),
            None => entry.machine.due(),
        };
        if at == entry.timer {
            return;
        }
        if let Some(before) = std::mem::replace(&mut entry.timer, at) {
            self.timers.remove(&(before, name.clone()));
        }
        self.timers.extend(at.map(|at| (at, name.clone())));
    }

    /// What is to be said of them.
    pub fn words(&self) -> Words {
        let mut words = Words::default();
        for ((pool, member), entry) in &self.members {
            if let State::Down(why) = entry.machine.state() {
                words.down.entry(pool.clone()).or_default().insert(member.clone(), why.clone());
            }
        }
        words
    }

    /// How they are.
    pub fn status(&self) -> Vec<MemberStatus> {
        let of = |((pool, member), entry): (&MemberName, &Entry)| {
            let (state, reason) = match entry.machine.state() {
                State::Unknown => ("unknown", None),
                State::Up => ("up", None),
                State::Down(why) => ("down", Some(why.clone())),
            };
            let [good, bad, void] = entry.counts;
            MemberStatus {
                pool: pool.clone(),
                member: member.clone(),
                address: entry.target.address.to_string(),
                state,
                reason,
                since: entry.since,
                good,
                bad,
                void,
            }
        };
        self.members.iter().map(of).collect()
    }
}

/// Ends the check in progress, if there is one, of which the member is to keep nothing.
fn leave(entry: &mut Entry, asked: &mut HashMap<(u32, u16), MemberName>, out: &mut Vec<Sent>) {
    if let (Some((mut probe, number)), Some(ifindex)) = (entry.probe.take(), entry.target.ifindex) {
        out.extend(probe.leave().into_iter().map(|frame| (ifindex, frame)));
        asked.remove(&(ifindex, number));
    }
}

fn tell((pool, member): &MemberName, machine: &Machine) {
    match machine.state() {
        State::Down(why) => tracing::warn!(%pool, %member, "pool {pool} member {member}: down: {why}"),
        State::Up => tracing::info!(%pool, %member, "pool {pool} member {member}: up"),
        State::Unknown => {}
    }
}

/// Why a member is down, if it is.
fn down_in<'w>(words: &'w Words, (pool, member): &MemberName) -> Option<&'w String> {
    words.down.get(pool)?.get(member)
}

/// A member's own moment in each period, from 0 to 1.
fn phase((pool, member): &MemberName) -> f64 {
    let mut hasher = DefaultHasher::new();
    (pool, member).hash(&mut hasher);
    (hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{agent::health::probe::tests::monitor, topology::model::HealthCheck};

    fn member(number: usize, ifindex: u32, kind: HealthCheck) -> MonitoredMember {
        MonitoredMember {
            pool: "many".to_owned(),
            member: format!("m{number}"),
            interface: format!("tap{ifindex}"),
            ifindex: Some(ifindex),
            source: [10, 0, 0, 1].into(),
            source_mac: [2; 6],
            address: [10, 0, 0, 2].into(),
            mac: [4; 6],
            protocol_port: 80,
            monitor: monitor(kind),
        }
    }

    /// More members behind one interface than there are numbers for checks at once: the rest waits, and all others
    /// are checked.
    #[test]
    fn who_gets_no_number_is_checked_later() {
        let mut members: Vec<_> =
            (0..NUMBERS.len() + 10).map(|number| member(number, 7, HealthCheck::Ping)).collect();
        members.push(member(members.len(), 8, HealthCheck::Ping));
        let start = Instant::now();
        let mut checker = Checker::new(Words::default());
        let mut out = Vec::new();
        checker.follow(&members, start, &mut out);
        // Everybody's moment has come.
        checker.tick(start + Duration::from_millis(1000), &mut out);
        let sent = |ifindex| out.iter().filter(|(at, _)| *at == ifindex).count();
        assert_eq!((sent(7), sent(8)), (NUMBERS.len(), 1));
        assert!(checker.due().is_some_and(|due| due > start + Duration::from_millis(1000)));
    }

    /// What a frame of TCP is: whether it begins or resets a connection, its source port and sequence number.
    fn segment((ifindex, frame): &Sent) -> (u32, bool, bool, u16, u32) {
        let packet = etherparse::SlicedPacket::from_ethernet(frame).expect("a packet");
        let Some(etherparse::TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
        (*ifindex, tcp.syn(), tcp.rst(), tcp.source_port(), tcp.sequence_number())
    }

    #[test]
    fn who_is_asked_in_another_way_is_as_it_was_and_for_as_long() {
        let mut now = Instant::now();
        let mut checker = Checker::new(Words::default());
        let wanted = member(1, 7, HealthCheck::Tcp);
        let mut out = Vec::new();
        checker.follow(std::slice::from_ref(&wanted), now, &mut out);
        // Two checks that nobody answers.
        for _ in 0..4 {
            now += Duration::from_millis(1000);
            checker.tick(now, &mut out);
        }
        checker.members.values_mut().for_each(|entry| entry.since = 7);
        let how = |checker: &Checker| {
            let status = checker.status().remove(0);
            (status.state, status.reason, status.since, status.bad)
        };
        let was = how(&checker);
        assert!(was.0 == "down" && was.3 > 0, "{was:?}");
        let in_other_way = MonitoredMember { protocol_port: 81, ..wanted.clone() };
        let plugged_again = MonitoredMember { ifindex: Some(8), ..in_other_way.clone() };
        for then in [in_other_way, plugged_again] {
            checker.follow(&[then], now, &mut out);
            assert_eq!(how(&checker), was);
        }
        // Another workload, and one without an interface, begin anew.
        let unplugged = MonitoredMember { ifindex: None, ..wanted.clone() };
        checker.follow(&[unplugged], now, &mut out);
        assert!(how(&checker).2 > 7);
        let elsewhere = MonitoredMember { address: [10, 0, 0, 9].into(), ..wanted };
        checker.follow(&[elsewhere], now, &mut out);
        assert_eq!((how(&checker).0, how(&checker).3), ("unknown", 0));
    }

    #[test]
    fn what_was_said_before_a_reboot_holds_for_who_was_not_found_otherwise() {
        let mut now = Instant::now();
        let mut checker = Checker::new(Words::default());
        let wanted = [1, 2].map(|number| member(number, 7, HealthCheck::Tcp));
        let mut out = Vec::new();
        checker.follow(&wanted[..1], now, &mut out);
        let down = ["m1", "m2", "gone"].map(|name| (name.to_owned(), "HTTP 503".to_owned()));
        let said = Words { down: BTreeMap::from([("many".to_owned(), down.into())]), ..Words::default() };
        let names =
            |words: Words| -> Vec<String> { words.down.into_values().flatten().map(|it| it.0).collect() };
        assert!(checker.recall(said.clone()), "it is not known to be otherwise");
        assert_eq!(names(checker.words()), ["m1"]);
        checker.follow(&wanted, now, &mut out);
        assert_eq!(names(checker.words()), ["m1", "m2"], "nor is who comes now");
        assert!(!checker.recall(said.clone()));
        // It holds until it is found to be otherwise.
        let mut checker = Checker::new(Words::default());
        let wanted = [member(1, 7, HealthCheck::Ping)];
        checker.follow(&wanted, now, &mut out);
        out.clear();
        now += Duration::from_millis(1000);
        checker.tick(now, &mut out);
        let (ifindex, reply) = crate::agent::health::probe::tests::reply(&out[0]);
        checker.hear(ifindex, &reply, now, &mut out);
        assert_eq!(checker.status()[0].state, "up");
        assert!(!checker.recall(said) && checker.words() == Words::default());
    }

    /// Behaviour R3: no port of a router is open.
    #[test]
    fn who_connects_to_a_router_where_nobody_asked_is_refused() {
        let (ours, theirs) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let begin =
            || etherparse::PacketBuilder::ethernet2(theirs, ours).ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64);
        let frame = |builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>, payload: &[u8]| {
            let mut frame = Vec::new();
            builder.write(&mut frame, payload).expect("a frame");
            frame
        };
        let heard = |frame: &[u8]| {
            let mut out = Vec::new();
            assert!(!Checker::new(Words::default()).hear(7, frame, Instant::now(), &mut out));
            out
        };
        let syn = || begin().tcp(40000, 50000, u32::MAX, 1000).syn();
        let out = heard(&frame(syn(), b"!"));
        assert_eq!(out.len(), 1);
        let packet = etherparse::SlicedPacket::from_ethernet(&out[0].1).expect("a packet");
        let Some(etherparse::TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
        assert_eq!((tcp.rst(), tcp.ack(), tcp.syn()), (true, true, false));
        assert_eq!((tcp.source_port(), tcp.destination_port()), (50000, 40000));
        assert_eq!(
            (tcp.sequence_number(), tcp.acknowledgment_number()),
            (0, 1),
            "of the flag and the payload"
        );
        assert_eq!((out[0].0, &out[0].1[..12]), (7, &[theirs, ours].concat()[..]));
        // What begins no connection is not answered, nor is what nobody could have sent to the router by itself.
        for other in [syn().ack(1), syn().rst(), begin().tcp(40000, 50000, 1, 1000).ack(1)] {
            assert_eq!(heard(&frame(other, b"")), []);
        }
        let mut to_all = frame(syn(), b"");
        to_all[..6].fill(0xff);
        assert_eq!(heard(&to_all), []);
    }

    #[test]
    fn a_check_that_is_given_up_leaves_nothing_behind() {
        let start = Instant::now();
        let mut now = start;
        let mut checker = Checker::new(Words::default());
        let mut wanted = member(1, 7, HealthCheck::Tcp);
        let checked_otherwise = MonitoredMember { protocol_port: 81, ..wanted.clone() };
        let plugged_again = MonitoredMember { ifindex: Some(8), ..wanted.clone() };
        for (name, then) in [
            ("it is checked in another way", Some(checked_otherwise)),
            ("its interface is another", Some(plugged_again)),
            ("it leaves", None),
        ] {
            let mut out = Vec::new();
            checker.follow(std::slice::from_ref(&wanted), now, &mut out);
            now += Duration::from_millis(1000);
            checker.tick(now, &mut out);
            let begun = out.iter().map(segment).next_back().expect("a check begins");
            assert_eq!((begun.1, begun.2), (true, false), "{name}");
            out.clear();
            checker.follow(then.as_slice(), now, &mut out);
            let left: Vec<_> = out.iter().map(segment).collect();
            assert_eq!(left, [(begun.0, false, true, begun.3, begun.4.wrapping_add(1))], "{name}");
            assert!(checker.asked.is_empty(), "{name}");
            wanted = then.unwrap_or(wanted);
        }
    }
}
