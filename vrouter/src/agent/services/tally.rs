//! What workloads asked services for, and what came of it, since the agent started.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Serialize, Serializer};

/// Counts by service and outcome.
pub type Counts = BTreeMap<&'static str, BTreeMap<&'static str, u64>>;

/// Shared counters.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Mutex<Counts>>);

impl Tally {
    /// Counts one.
    pub fn count(&self, service: &'static str, outcome: &'static str) {
        *self.lock().entry(service).or_default().entry(outcome).or_default() += 1;
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Serialize for Tally {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.lock().serialize(serializer)
    }
}
