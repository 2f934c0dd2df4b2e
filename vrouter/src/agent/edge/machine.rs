//! A virtual router's state machine (RFC 5798, 6.4), without clock or sockets.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// A master that is no more gave up with this one.
pub const RESIGN: u8 = 0;

/// What a virtual router is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// 1 to 254.
    pub priority: u8,
    pub interval: Duration,
    pub preempt: bool,
    /// Who this is to others: of two with one priority, the higher is the master.
    pub source: IpAddr,
}

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not taking part.
    Initialize,
    /// Another is the master, or is waited for, until then.
    Backup { down: Instant },
    /// This is the master; the next announcement is due then.
    Master { announce: Instant },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Announce with this priority.
    Announce(u8),
    /// Be the master: announce, and tell everybody whose the addresses are now.
    TakeOver,
    /// Be silent.
    Yield,
}

/// A virtual router of one family.
#[derive(Clone, Debug)]
pub struct Machine {
    setting: Setting,
    state: State,
    /// How often the master announces itself, by its own word. As the master: how often this does.
    master_interval: Duration,
}

impl Machine {
    /// Not taking part yet.
    pub fn new(setting: Setting) -> Self {
        Self { setting, state: State::Initialize, master_interval: setting.interval }
    }

    /// What it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether it is the master.
    pub fn is_master(&self) -> bool {
        matches!(self.state, State::Master { .. })
    }

    /// When there is something to be done.
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            State::Initialize => None,
            State::Backup { down } => Some(down),
            State::Master { announce } => Some(announce),
        }
    }

    /// How long a backup waits for a word of the master.
    pub fn down_interval(&self) -> Duration {
        self.master_interval * 3 + self.skew()
    }

    /// The better, the shorter, so that one of several takes over.
    fn skew(&self) -> Duration {
        self.master_interval * (256 - u32::from(self.setting.priority)) / 256
    }

    /// Takes part.
    pub fn start(&mut self, now: Instant) {
        if self.state == State::Initialize {
            self.master_interval = self.setting.interval;
            self.state = State::Backup { down: now + self.down_interval() };
        }
    }

    /// Goes on as the master it was.
    pub fn resume(&mut self, now: Instant) {
        self.master_interval = self.setting.interval;
        self.state = State::Master { announce: now + self.setting.interval };
    }

    /// Takes part no longer.
    pub fn stop(&mut self) -> Action {
        let was_master = self.is_master();
        self.state = State::Initialize;
        if was_master { Action::Announce(RESIGN) } else { Action::None }
    }

    /// Goes on with another setting.
    pub fn set(&mut self, setting: Setting) {
        self.setting = setting;
        if self.is_master() {
            self.master_interval = setting.interval;
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) -> Action {
        match self.state {
            State::Backup { down } if down <= now => {
                self.resume(now);
                Action::TakeOver
            }
            State::Master { announce } if announce <= now => {
                // In step, unless this was held up for longer than that.
                let next = announce + self.setting.interval;
                let next = if next <= now { now + self.setting.interval } else { next };
                self.state = State::Master { announce: next };
                Action::Announce(self.setting.priority)
            }
            _ => Action::None,
        }
    }

    /// Another announces itself.
    pub fn hear(&mut self, priority: u8, interval: Duration, source: IpAddr, now: Instant) -> Action {
        match self.state {
            State::Initialize => Action::None,
            State::Backup { .. } if priority == RESIGN => {
                self.state = State::Backup { down: now + self.skew() };
                Action::None
            }
            State::Backup { .. } => {
                if !self.setting.preempt || priority >= self.setting.priority {
                    self.master_interval = interval;
                    self.state = State::Backup { down: now + self.down_interval() };
                }
                Action::None
            }
            State::Master { .. } if priority == RESIGN => {
                self.state = State::Master { announce: now + self.setting.interval };
                Action::Announce(self.setting.priority)
            }
            State::Master { .. } => {
                let own = (self.setting.priority, self.setting.source);
                if (priority, source) <= own {
                    return Action::None;
                }
                self.master_interval = interval;
                self.state = State::Backup { down: now + self.down_interval() };
                Action::Yield
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(priority: u8, preempt: bool) -> Setting {
        let source = IpAddr::from([192, 0, 2, priority]);
        Setting { priority, interval: MS200, preempt, source }
    }

    const MS200: Duration = Duration::from_millis(200);

    /// Machines on one wire, `cut` from each other or not; what each is after some time, and how often each took over.
    struct Wire {
        machines: Vec<Machine>,
        now: Instant,
        /// Machines that are heard by nobody and hear nobody.
        cut: Vec<usize>,
        takeovers: Vec<usize>,
        /// Moments at which two who hear each other were masters.
        twice: usize,
    }

    impl Wire {
        fn new(settings: &[Setting]) -> Self {
            let now = Instant::now();
            let mut machines: Vec<_> = settings.iter().map(|setting| Machine::new(*setting)).collect();
            machines.iter_mut().for_each(|machine| machine.start(now));
            Self { takeovers: vec![0; machines.len()], machines, now, cut: Vec::new(), twice: 0 }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while let Some(due) =
                self.machines.iter().filter_map(Machine::due).min().filter(|due| *due <= end)
            {
                self.now = due.max(self.now);
                for i in 0..self.machines.len() {
                    let action = self.machines[i].tick(self.now);
                    self.act(i, action);
                }
                let masters = (0..self.machines.len())
                    .filter(|i| self.machines[*i].is_master() && !self.cut.contains(i))
                    .count();
                self.twice += usize::from(masters > 1);
            }
            self.now = end;
        }

        fn act(&mut self, i: usize, action: Action) {
            let priority = match action {
                Action::Announce(priority) => priority,
                Action::TakeOver => {
                    self.takeovers[i] += 1;
                    self.machines[i].setting.priority
                }
                Action::None | Action::Yield => return,
            };
            if self.cut.contains(&i) {
                return;
            }
            let Setting { interval, source, .. } = self.machines[i].setting;
            for other in (0..self.machines.len()).filter(|other| *other != i) {
                if !self.cut.contains(&other) {
                    let action = self.machines[other].hear(priority, interval, source, self.now);
                    self.act(other, action);
                }
            }
        }

        fn masters(&self) -> Vec<usize> {
            (0..self.machines.len()).filter(|i| self.machines[*i].is_master()).collect()
        }
    }

    #[test]
    fn the_best_becomes_master_and_the_next_when_it_is_gone() {
        let mut wire = Wire::new(&[setting(230, true), setting(250, true), setting(240, true)]);
        wire.run(Duration::from_millis(599));
        assert_eq!(wire.masters(), [0; 0]);
        wire.run(Duration::from_secs(1));
        assert_eq!((wire.masters(), wire.twice), (vec![1], 0));
        // It dies: within three and a bit of its intervals the next is there, and no other.
        wire.machines[1].state = State::Initialize;
        wire.run(Duration::from_millis(620));
        assert_eq!((wire.masters(), &wire.takeovers[..]), (vec![2], &[0, 1, 1][..]));
        // It gives up: the next is there at once.
        let action = wire.machines[2].stop();
        assert_eq!(action, Action::Announce(RESIGN));
        wire.act(2, action);
        wire.run(Duration::from_millis(30));
        assert_eq!(wire.masters(), [0]);
        // It is back and takes over, but for a moment in which both announced.
        let now = wire.now;
        wire.machines[1].start(now);
        wire.run(Duration::from_secs(1));
        assert_eq!((wire.masters(), wire.twice), (vec![1], 0));
    }

    #[test]
    fn without_preemption_who_is_master_stays_so() {
        let mut wire = Wire::new(&[setting(250, false), setting(240, false)]);
        wire.run(Duration::from_secs(1));
        wire.machines[0].state = State::Initialize;
        wire.run(Duration::from_secs(1));
        let now = wire.now;
        wire.machines[0].start(now);
        wire.run(Duration::from_secs(5));
        assert_eq!((wire.masters(), &wire.takeovers[..]), (vec![1], &[1, 1][..]));
    }

    #[test]
    fn two_parts_of_a_cut_wire_become_one_again() {
        let mut wire = Wire::new(&[setting(250, true), setting(240, true), setting(230, true)]);
        wire.run(Duration::from_secs(1));
        wire.cut = vec![0];
        wire.run(Duration::from_secs(1));
        assert_eq!((wire.masters(), wire.twice), (vec![0, 1], 0), "each part has its master");
        wire.cut.clear();
        wire.run(MS200);
        assert_eq!(wire.masters(), [0], "the first word ends it");
    }

    #[test]
    fn of_two_with_one_priority_the_higher_address_wins() {
        let mut low = setting(250, true);
        low.source = IpAddr::from([192, 0, 2, 1]);
        let mut wire = Wire::new(&[setting(250, true), low]);
        wire.run(Duration::from_secs(2));
        assert_eq!(wire.masters(), [0]);
    }

    #[test]
    fn a_backup_keeps_time_by_the_masters_interval() {
        let now = Instant::now();
        let mut machine = Machine::new(setting(100, true));
        machine.start(now);
        machine.hear(200, Duration::from_secs(2), IpAddr::from([192, 0, 2, 9]), now);
        let down = Duration::from_secs(6) + Duration::from_secs(2) * 156 / 256;
        assert_eq!(machine.state(), State::Backup { down: now + down });
        // A worse one is not taken for the master by one that would preempt it.
        assert_eq!(machine.hear(99, MS200, IpAddr::from([192, 0, 2, 9]), now), Action::None);
        assert_eq!(machine.state(), State::Backup { down: now + down });
        // As the master it keeps time by its own, also when that changes.
        let skewed = |interval: Duration| interval * 3 + interval * 156 / 256;
        assert_eq!((machine.tick(now + down), machine.down_interval()), (Action::TakeOver, skewed(MS200)));
        let slow = Duration::from_secs(1);
        machine.set(Setting { interval: slow, ..setting(100, true) });
        assert_eq!(machine.down_interval(), skewed(slow));
        // As a backup by the master's, whatever its own is.
        machine.hear(200, MS200, IpAddr::from([192, 0, 2, 9]), now);
        machine.set(Setting { interval: slow * 2, ..setting(100, true) });
        assert_eq!(machine.down_interval(), skewed(MS200));
    }
}
