//! What becomes of a packet, and why: the decision run on a copy of it, with every question it asks taken down.
//!
//! | module | does |
//! |---|---|
//! | [`packet`] | makes a frame of text or takes it from a capture |
//! | [`capture`] | reads capture files |
//! | [`live`] | runs it in the kernel: `vr_trace` over the pinned maps |
//! | [`computed`] | runs it in user space: a topology compiled for a node |
//! | [`steps`] | says in names what was looked up |
//! | [`journey`] | follows it from node to node |
//!
//! Nothing is sent, stored or counted by either.

pub mod capture;
pub mod computed;
pub mod journey;
pub mod live;
pub mod packet;
pub mod steps;

use anyhow::{Result, bail};
use serde::Serialize;
use vrouter_common::{
    memory::Image,
    tables::Commit,
    traced::{StepHead, What},
};

use crate::identities::Identities;

/// Where a packet comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// From the workload on an interface.
    Port(u32),
    /// From another node.
    Uplink,
    /// From outside, on an interface.
    External(u32),
}

/// Something that was looked up or done, as it lay in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub what: What,
    pub found: bool,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

impl Step {
    /// The key, if it is one of those.
    pub fn key<K: aya::Pod>(&self) -> Option<K> {
        read(&self.key)
    }

    /// The value, if there is one of those.
    pub fn value<V: aya::Pod>(&self) -> Option<V> {
        read(&self.value)
    }
}

fn read<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as long as a `T`; any bytes are one (Pod).
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// A run through the decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    pub steps: Vec<Step>,
    /// The frame as it left, or as it was when it was dropped.
    pub frame: Vec<u8>,
}

impl Run {
    /// Puts records together: a head, a key, a value.
    fn of_records(records: Vec<Vec<u8>>, frame: Vec<u8>) -> Result<Self> {
        let mut steps = Vec::new();
        let mut records = records.into_iter();
        while let Some(head) = records.next() {
            let Some(head) = read::<StepHead>(&head) else {
                bail!("the trace is damaged: a record of {} bytes where a step begins", head.len())
            };
            let what = What::ALL.into_iter().find(|what| *what as u8 == head.what);
            let mut next = |length: u16| match length {
                0 => Some(Vec::new()),
                _ => records.next().filter(|record| record.len() == usize::from(length)),
            };
            let (Some(what), Some(key), Some(value)) = (what, next(head.key), next(head.value)) else {
                bail!("the trace is damaged: a step is not whole");
            };
            steps.push(Step { what, found: head.found != 0, key, value });
        }
        Ok(Self { steps, frame })
    }
}

/// Whether it is what the kernel has, or what it would have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The kernel's own program on its own maps.
    Live,
    /// The topology, compiled for the node.
    Computed,
}

/// A node as it decides.
pub struct World {
    pub node: String,
    pub source: Source,
    pub commit: Commit,
    /// What is compiled, by keys without their bank.
    pub image: Image,
    pub names: Identities,
    /// Names of interfaces, by index, as far as they are known.
    pub interfaces: std::collections::BTreeMap<u32, String>,
    /// Ports whose interface is down, as far as an agent says so.
    pub down: std::collections::BTreeSet<String>,
    engine: Engine,
}

enum Engine {
    Live(Box<live::Program>),
    Computed(Box<vrouter_common::memory::MemoryTables>),
}

impl World {
    /// Runs a frame. `afresh`: as if nothing were known of its flow.
    pub fn run(&mut self, entry: Entry, frame: &[u8], afresh: bool) -> Result<Run> {
        match &mut self.engine {
            Engine::Live(program) => program.run(entry, frame, afresh),
            Engine::Computed(tables) => Ok(computed::run(tables, entry, frame, afresh)),
        }
    }

    /// A name, or the number where there is none.
    pub fn name(&self, kind: u32, id: u32) -> String {
        self.names.name(kind, id).map_or_else(|| format!("#{id}"), str::to_owned)
    }
}
