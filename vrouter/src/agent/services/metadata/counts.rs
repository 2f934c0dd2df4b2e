//! What workloads asked the metadata service for, and what came of it, since the agent started.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::config::MetadataConfig;
use hyper::StatusCode;
use serde::{Serialize, Serializer};

/// The metadata service's part of the agent's status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MetadataStatus {
    pub server: String,
    /// Whether instances' numbers are signed.
    pub signed: bool,
    /// Connections of workloads at the moment.
    pub connections: usize,
    /// Requests that the server answered, by its status: 2xx, 4xx, ...
    pub answered: BTreeMap<String, u64>,
    /// Requests, connections and segments that were refused here, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Bytes sent to workloads, with all headers.
    pub bytes: u64,
}

/// Shared counters.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Mutex<MetadataStatus>>);

impl Tally {
    pub fn of(config: &MetadataConfig) -> Self {
        let (server, signed) = (config.url(), config.secret.is_some());
        Self(Arc::new(Mutex::new(MetadataStatus { server, signed, ..MetadataStatus::default() })))
    }

    /// How it is.
    pub fn status(&self) -> MetadataStatus {
        self.lock().clone()
    }

    /// A request was answered; `is_whole`: the workload took all of it.
    pub fn answered(&self, status: StatusCode, is_whole: bool) {
        let mut counts = self.lock();
        *counts.answered.entry(format!("{}xx", status.as_u16() / 100)).or_default() += 1;
        if !is_whole {
            *counts.refused.entry("answer_cut").or_default() += 1;
        }
    }

    /// Something was refused.
    pub fn refused(&self, reason: &'static str) {
        *self.lock().refused.entry(reason).or_default() += 1;
    }

    /// A connection came and went.
    pub fn nothing_asked(&self) {
        self.refused("nothing_asked");
    }

    pub fn sent(&self, bytes: usize) {
        self.lock().bytes += bytes as u64;
    }

    pub fn connections(&self, connections: usize) {
        self.lock().connections = connections;
    }

    fn lock(&self) -> MutexGuard<'_, MetadataStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Serialize for Tally {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.lock().serialize(serializer)
    }
}
