//! One member's health: when it is checked, and what its checks make of it. Without clock or sockets.
//!
//! A check begins every `delay`, at moments of the member's own, so that a thousand members are not checked at once;
//! it has ended before the next begins. `fall` bad checks in a row take a member out, `rise` good ones bring it back,
//! and whatever happens in between starts the count again.

use std::time::{Duration, Instant};

use crate::topology::model::HealthMonitor;

/// How a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not checked often enough to say. It serves: an agent that starts must take nobody out.
    Unknown,
    Up,
    /// With the reason.
    Down(String),
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Good,
    /// With what was wrong.
    Bad(String),
    /// The check could not be made, for which the member is not to blame.
    Void,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Machine {
    delay: Duration,
    rise: u8,
    fall: u8,
    state: State,
    /// Checks in a row that speak against the state.
    against: u8,
    /// When the next check begins.
    due: Instant,
    checking: bool,
    /// The workload's interface is not there.
    unplugged: bool,
}

impl Machine {
    /// In a state that is remembered, or else unknown. `phase`, from 0 to 1, is the member's own.
    pub fn new(monitor: &HealthMonitor, state: State, phase: f64, now: Instant) -> Self {
        let delay = Duration::from_millis(monitor.delay_ms.into());
        Self {
            delay,
            rise: monitor.max_retries.max(1),
            fall: monitor.max_retries_down.max(1),
            state,
            against: 0,
            due: now + delay.mul_f64(phase.clamp(0.0, 1.0)),
            checking: false,
            unplugged: false,
        }
    }

    /// How it is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// When the next check begins; `None` while one goes on, or there is nobody to check.
    pub fn due(&self) -> Option<Instant> {
        (!self.checking && !self.unplugged).then_some(self.due)
    }

    /// A check begins. What was missed is not made up for.
    pub fn begin(&mut self, now: Instant) {
        self.checking = true;
        let delay = self.delay.max(Duration::from_millis(1));
        let late = now.saturating_duration_since(self.due);
        let periods = late.as_nanos() / delay.as_nanos() + 1;
        self.due += delay.saturating_mul(u32::try_from(periods).unwrap_or(u32::MAX));
    }

    /// A check ended; whether the state is another now.
    pub fn end(&mut self, outcome: Outcome) -> bool {
        self.checking = false;
        if self.unplugged {
            return false;
        }
        match (outcome, &self.state) {
            (Outcome::Void, _) => false,
            (Outcome::Good, State::Up) | (Outcome::Bad(_), State::Down(_)) => {
                self.against = 0;
                false
            }
            // Who has not fallen yet does not need to rise.
            (Outcome::Good, State::Unknown) => self.turn(State::Up),
            (Outcome::Good, State::Down(_)) => {
                self.against += 1;
                self.against >= self.rise && self.turn(State::Up)
            }
            (Outcome::Bad(why), State::Up | State::Unknown) => {
                self.against += 1;
                let why = if self.fall == 1 { why } else { format!("{why} {} times", self.fall) };
                self.against >= self.fall && self.turn(State::Down(why))
            }
        }
    }

    /// The workload's interface is there, or is not; whether the state is another now.
    pub fn plug(&mut self, interface: Option<&str>, now: Instant) -> bool {
        let was = std::mem::replace(&mut self.unplugged, interface.is_some());
        match interface {
            Some(interface) if !was => {
                self.checking = false;
                self.turn(State::Down(format!("interface {interface} does not exist")))
            }
            None if was => {
                // Not in the time that passed meanwhile.
                self.due = self.due.max(now);
                false
            }
            _ => false,
        }
    }

    /// It is down, as was said of it before.
    pub fn recall(&mut self, why: String) {
        self.turn(State::Down(why));
    }

    fn turn(&mut self, state: State) -> bool {
        self.against = 0;
        let differs = self.state != state;
        self.state = state;
        differs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topology::model::HealthCheck;

    fn monitor(rise: u8, fall: u8) -> HealthMonitor {
        HealthMonitor {
            kind: HealthCheck::Tcp,
            delay_ms: 1000,
            timeout_ms: 500,
            max_retries: rise,
            max_retries_down: fall,
            http_method: "GET".to_owned(),
            url_path: "/".to_owned(),
            expected_codes: vec![(200, 200)],
            monitor_port: None,
            line: 0,
        }
    }

    fn bad() -> Outcome {
        Outcome::Bad("HTTP 503".to_owned())
    }

    #[test]
    fn it_falls_and_rises_by_checks_in_a_row() {
        let now = Instant::now();
        let mut machine = Machine::new(&monitor(2, 3), State::Unknown, 0.0, now);
        let ends: Vec<bool> =
            [bad(), bad(), Outcome::Good, bad(), bad(), bad()].map(|outcome| machine.end(outcome)).to_vec();
        assert_eq!(ends, [false, false, true, false, false, true]);
        assert_eq!(*machine.state(), State::Down("HTTP 503 3 times".to_owned()));
        let ends: Vec<bool> = [Outcome::Good, bad(), Outcome::Good, Outcome::Void, Outcome::Good]
            .map(|outcome| machine.end(outcome))
            .to_vec();
        assert_eq!(
            ends,
            [false, false, false, false, true],
            "a bad one begins the count again, a void one does not"
        );
        assert_eq!(*machine.state(), State::Up);
    }

    #[test]
    fn who_has_no_interface_is_down_at_once_and_has_to_rise() {
        let now = Instant::now();
        let mut machine = Machine::new(&monitor(2, 3), State::Up, 0.0, now);
        machine.begin(now);
        assert!(machine.plug(Some("tap-vm1"), now) && !machine.plug(Some("tap-vm1"), now));
        assert_eq!(*machine.state(), State::Down("interface tap-vm1 does not exist".to_owned()));
        assert_eq!(machine.due(), None);
        assert!(!machine.end(Outcome::Good), "what began before says nothing");
        let later = now + Duration::from_secs(60);
        assert!(!machine.plug(None, later) && machine.due().is_some_and(|due| due >= later));
        assert!(!machine.end(Outcome::Good) && machine.end(Outcome::Good));
    }

    #[test]
    fn after_a_pause_nothing_is_made_up_for() {
        let now = Instant::now();
        let mut machine = Machine::new(&monitor(1, 1), State::Up, 0.25, now);
        let phase = Duration::from_millis(250);
        assert_eq!(machine.due(), Some(now + phase));
        machine.begin(now + Duration::from_millis(5600));
        machine.end(Outcome::Good);
        assert_eq!(machine.due(), Some(now + Duration::from_secs(6) + phase), "its own moment again");
    }

    proptest! {
        /// Against the plain reading of the rule: a member is down if the last checks that count were `fall` bad ones
        /// in a row since it was up, and the other way round.
        #[test]
        fn any_checks_give_what_the_rule_says(
            rise in 1_u8..5, fall in 1_u8..5,
            checks in prop::collection::vec(0_u8..3, 0..60),
        ) {
            let mut machine = Machine::new(&monitor(rise, fall), State::Unknown, 0.0, Instant::now());
            let (mut up, mut streak) = (true, 0_u8);
            for check in checks {
                let before = matches!(machine.state(), State::Down(_));
                let was_unknown = *machine.state() == State::Unknown;
                let changed = machine.end(match check { 0 => Outcome::Good, 1 => bad(), _ => Outcome::Void });
                if check < 2 {
                    let against = (check == 1) == up;
                    streak = if against { streak + 1 } else { 0 };
                    if streak >= if up { fall } else { rise } {
                        (up, streak) = (!up, 0);
                    }
                }
                let down = matches!(machine.state(), State::Down(_));
                prop_assert_eq!(!down, up);
                prop_assert_eq!(changed, before != down || (was_unknown && *machine.state() != State::Unknown));
            }
        }

        /// Whenever the driver comes round, checks do not overlap, come at the member's own moments, and never twice
        /// in one period.
        #[test]
        fn checks_keep_their_distance(
            phase in 0.0_f64..1.0,
            turns in prop::collection::vec((0_u64..2500, 0_u64..500), 1..40),
        ) {
            let start = Instant::now();
            let mut machine = Machine::new(&monitor(1, 1), State::Up, phase, start);
            let first = machine.due().expect("idle");
            prop_assert!(first < start + Duration::from_secs(1));
            let mut now = start;
            let mut last: Option<Instant> = None;
            for (wait, duration) in turns {
                now += Duration::from_millis(wait);
                let due = machine.due().expect("idle");
                let offset = due.duration_since(first).as_nanos() % 1_000_000_000;
                prop_assert_eq!(offset, 0);
                if due > now {
                    continue;
                }
                if let Some(last) = last {
                    prop_assert!(due > last, "one check of each period");
                }
                machine.begin(now);
                last = Some(now);
                prop_assert_eq!(machine.due(), None);
                now += Duration::from_millis(duration);
                machine.end(Outcome::Good);
                prop_assert!(machine.due().expect("idle") > now - Duration::from_millis(duration));
            }
        }
    }
}
