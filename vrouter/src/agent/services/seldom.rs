//! Keeps the log short: what a workload can have happen as often as it likes is said once a minute for each port.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::compile::Served;

/// How often it is said again.
const AGAIN: Duration = Duration::from_secs(60);

/// When it was said, by interface.
#[derive(Debug, Default)]
pub struct Seldom(BTreeMap<u32, Instant>);

impl Seldom {
    /// Whether it is to be said of a port now.
    pub fn may(&mut self, ifindex: u32, now: Instant) -> bool {
        let may = self.0.get(&ifindex).is_none_or(|said| now.saturating_duration_since(*said) >= AGAIN);
        if may {
            self.0.insert(ifindex, now);
        }
        may
    }

    /// Forgets ports that are gone.
    pub fn follow(&mut self, served: &Served) {
        self.0.retain(|ifindex, _| served.contains_key(ifindex));
    }
}
