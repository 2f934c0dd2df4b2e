//! Expires idle connections, and counts what is there meanwhile.
//!
//! A pass goes through both tables by small steps, so that neither the agent nor a CPU is busy with it for
//! long: a step is some milliseconds, and a pass of a million entries takes about twenty seconds, in which a
//! few percent of one CPU are used. When the table of answered flows runs full, passes go faster.

mod census;
mod pressure;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::Serialize;

use super::records::{Records, RecordsStatus};
use crate::{
    clock::Clock,
    connections::{
        FlowTables, Flows, Judge, Table, Timeouts,
        expire::{Expirer, Outcome},
        tables::Walk,
    },
    data_path::Pins,
};
use census::Census;
pub use census::SnatUse;
use pressure::Level;
pub use pressure::Pressure;

/// Between two steps of a pass.
const STEP_INTERVAL: Duration = Duration::from_millis(50);
/// Entries looked at in a second.
const PACE: u64 = 50_000;
/// The same when answered flows run out of room.
const PACE_IN_NEED: u64 = 250_000;
/// Between the beginnings of two passes, at the least.
const PASS_INTERVAL: Duration = Duration::from_secs(2);
/// Of the time between two beginnings, at most this part is work: large tables are read whole, even empty ones.
const WORK_SHARE: u32 = 50;
/// However long the last pass was.
const PASS_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// The flow tables' part of the agent's status.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FlowsStatus {
    /// Answered connections: never evicted.
    pub flows: TableStatus,
    /// Unanswered ones and remembered decisions: the least recently used give way.
    pub transient: TableStatus,
    /// Connections by state.
    pub states: std::collections::BTreeMap<&'static str, u64>,
    /// Forgotten since the agent started.
    pub expired: u64,
    /// Found idle, but had a packet before they were removed.
    pub spared: u64,
    /// Ports of routers' external addresses in use.
    pub snat: Vec<SnatUse>,
    /// How long the last pass through the tables took, and how much of that was work.
    pub pass_milliseconds: u64,
    pub pass_work_milliseconds: u64,
    /// The longest the agent did nothing else, and the longest `vr_expire` kept a CPU.
    pub longest_step_microseconds: u64,
    pub longest_run_microseconds: u64,
}

/// How full a table is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TableStatus {
    pub entries: u64,
    pub entries_max: u64,
    pub pressure: Pressure,
}

/// Walks the flow tables.
pub struct Sweeper {
    tables: FlowTables,
    clock: Clock,
    expirer: Expirer,
    timeouts: Timeouts,
    decision_idle: Duration,
    pass: Option<Pass>,
    passes: u64,
    due: Instant,
    status: FlowsStatus,
    /// Who keeps books of connections that ended.
    records: Option<Records>,
}

struct Pass {
    walk: Walk,
    began: Instant,
    work: Duration,
    census: Census,
}

/// What somebody should be told: under a name, so that the next word about it takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub about: &'static str,
    /// `None`: it is well again.
    pub warning: Option<String>,
}

impl Sweeper {
    /// Opens the pins.
    pub fn open(pins: &Pins, timeouts: Timeouts, decision_idle_seconds: u32) -> Result<Self> {
        let tables = FlowTables::open(&pins.maps())?;
        let mut status = FlowsStatus::default();
        status.flows.entries_max = u64::from(tables.map(Table::Flows).max_entries());
        status.transient.entries_max = u64::from(tables.map(Table::Transient).max_entries());
        Ok(Self {
            tables,
            clock: Clock::open(pins)?,
            expirer: Expirer::open(pins)?,
            timeouts,
            decision_idle: Duration::from_secs(u64::from(decision_idle_seconds)),
            pass: None,
            passes: 0,
            due: Instant::now(),
            status,
            records: None,
        })
    }

    /// Tells of connections that end from here on.
    pub fn keep_records(&mut self, records: Records) {
        self.records = Some(records);
    }

    /// When the next step is to be made.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Passes through the tables that have ended.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// What the last pass found.
    pub fn status(&self) -> &FlowsStatus {
        &self.status
    }

    /// How it goes with records of connections that ended.
    pub fn records(&self) -> Option<RecordsStatus> {
        self.records.as_ref().map(Records::status)
    }

    /// Makes a step. At the end of a pass: what has changed that people should know.
    pub fn step(&mut self) -> Result<Option<Vec<Notice>>> {
        let began = Instant::now();
        let outcome = self.walk_on(began);
        let spent = began.elapsed();
        self.status.longest_step_microseconds =
            self.status.longest_step_microseconds.max(spent.as_micros() as u64);
        self.due = began + STEP_INTERVAL.max(spent * 2);
        let ended = match outcome {
            Ok(ended) => ended,
            Err(error) => {
                // From the beginning, but not at once.
                self.pass = None;
                self.due = began + PASS_INTERVAL;
                return Err(error);
            }
        };
        if let Some(pass) = &mut self.pass {
            pass.work += spent;
        }
        if !ended {
            return Ok(None);
        }
        let Some(pass) = self.pass.take() else { return Ok(None) };
        self.passes += 1;
        let interval = (pass.work * WORK_SHARE).clamp(PASS_INTERVAL, PASS_INTERVAL_MAX);
        self.due = (pass.began + interval).max(began + STEP_INTERVAL);
        Ok(Some(self.conclude(&pass)))
    }

    /// Goes through as many entries as a step may; true at the end of the pass.
    fn walk_on(&mut self, began: Instant) -> Result<bool> {
        let Self { tables, clock, expirer, pass, records, .. } = self;
        let mut over = HashMap::new();
        let judge = Judge {
            ticks: clock.read()?,
            timeouts: self.timeouts.clone(),
            decision_idle: self.decision_idle,
        };
        let shortest = self.timeouts.shortest();
        let pass = pass.get_or_insert_with(|| Pass {
            walk: Walk::new(),
            began,
            work: Duration::ZERO,
            census: Census::default(),
        });
        let pace = if self.status.flows.pressure.level() >= Level::High { PACE_IN_NEED } else { PACE };
        let most = pace * STEP_INTERVAL.as_millis() as u64 / 1000;
        let mut looked_at = 0;
        let mut ended = false;
        while looked_at < most {
            // A reply without its original has to be found only when it is idle.
            let doubts = |flow: &vrouter_common::flow::Flow| judge.ticks.age(flow.seen) >= shortest;
            let census = &mut pass.census;
            let step = tables.step(&mut pass.walk, doubts, |flows| {
                let standing = judge.standing(flows);
                if standing.is_over() {
                    if records.is_some() && !matches!(flows, Flows::Decision(_)) {
                        over.insert(flows.first().key, (*flows, standing));
                    }
                    return expirer.expire(flows);
                }
                census.note(flows, &standing);
                Ok(())
            })?;
            let Some(batch) = step else {
                ended = true;
                break;
            };
            pass.census.add_entries(batch.table, batch.entries);
            looked_at += batch.entries;
        }
        let Outcome { removed, busy, longest_run } = expirer.finish()?;
        let gone = expirer.take_gone();
        if let Some(records) = records {
            for (flows, standing) in gone.iter().filter_map(|key| over.remove(key)) {
                records.tell(flows, standing);
            }
        }
        pass.census.expired += removed;
        self.status.expired += removed;
        self.status.spared += busy;
        self.status.longest_run_microseconds =
            self.status.longest_run_microseconds.max(longest_run.as_micros() as u64);
        Ok(ended)
    }

    fn conclude(&mut self, pass: &Pass) -> Vec<Notice> {
        let status = &mut self.status;
        status.pass_milliseconds = pass.began.elapsed().as_millis() as u64;
        status.pass_work_milliseconds = pass.work.as_millis() as u64;
        status.states = pass.census.states();
        status.snat = pass.census.snat();
        let mut notices = Vec::new();
        for (about, table, entries, remedy) in [
            (
                "the table of answered flows (FLOWS)",
                &mut status.flows,
                pass.census.entries(Table::Flows),
                "when it is full, new connections are refused: raise flow_entries (and start once with \
                 --discard-state), lower [timeouts], or see who has them: vrouter flows --count --port NAME",
            ),
            (
                "the table of unanswered flows (TRANSIENT)",
                &mut status.transient,
                pass.census.entries(Table::Transient),
                "when it is full, the oldest unanswered connections are forgotten: look for a scan or a flood \
                 with vrouter flows --state SYN_SENT",
            ),
        ] {
            table.entries = entries;
            if let Some(level) = table.pressure.update(entries, table.entries_max) {
                let warning = (level > Level::Normal).then(|| {
                    format!(
                        "{about} is {} % full ({entries} of {}): {remedy}",
                        level.percent(),
                        table.entries_max
                    )
                });
                notices.push(Notice { about, warning });
            }
        }
        notices
    }
}
