//! Removal through `vr_expire`: the data path's program looks again whether a packet came by, where it removes.
//! A connection that wakes up between the judgment and the removal stays.

use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use vrouter_common::{
    flow::FlowKey,
    tables::{EXPIRE_MAX, Expire},
};

use super::legs::{Flows, Leg};
use crate::{
    data_path::Pins,
    kernel::{Cursor, Map},
};

/// [`Expire::legs`] of what was found busy.
const BUSY: u32 = 3;

/// What became of connections that were found idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Removed; a connection counts once.
    pub removed: u64,
    /// Had a packet meanwhile.
    pub busy: u64,
    /// The longest run of the program: packets of one CPU waited for it.
    pub longest_run: Duration,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.removed += other.removed;
        self.busy += other.busy;
        self.longest_run = self.longest_run.max(other.longest_run);
    }
}

/// Collects idle connections and removes them by the handful. One process at a time may have it: the agent.
pub struct Expirer {
    program: SchedClassifier,
    requests: Map<u32, Expire>,
    waiting: Vec<Expire>,
    outcome: Outcome,
    /// First legs of what was removed.
    gone: Vec<FlowKey>,
}

impl Expirer {
    /// Opens the pins.
    pub fn open(pins: &Pins) -> Result<Self> {
        let path = pins.programs().join("vr_expire");
        let program =
            SchedClassifier::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self {
            program,
            requests: Map::open(&pins.maps(), "EXPIRE")?,
            waiting: Vec::with_capacity(EXPIRE_MAX as usize),
            outcome: Outcome::default(),
            gone: Vec::new(),
        })
    }

    /// First legs of what was removed since the last time.
    pub fn take_gone(&mut self) -> Vec<FlowKey> {
        std::mem::take(&mut self.gone)
    }

    /// Asks for a removal. It is done when enough are waiting, or at [`Self::finish`].
    pub fn expire(&mut self, flows: &Flows) -> Result<()> {
        for request in requests(flows) {
            self.waiting.push(request);
            if self.waiting.len() == EXPIRE_MAX as usize {
                self.run()?;
            }
        }
        Ok(())
    }

    /// Does what is left; what became of everything since the last time.
    pub fn finish(&mut self) -> Result<Outcome> {
        self.run()?;
        Ok(std::mem::take(&mut self.outcome))
    }

    fn run(&mut self) -> Result<()> {
        // Whatever happens to them: they are found again by the next walk.
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let indexes: Vec<u32> = (0..waiting.len() as u32).collect();
        // Slots behind these hold results of earlier runs, which the program passes over.
        self.requests.set_all(&indexes, &waiting)?;
        // The smallest frame the kernel runs a program with.
        let frame = [0; 64];
        let ran = self
            .program
            .test_run(TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() })
            .context("cannot run the pinned vr_expire")?;
        let mut cursor = Cursor::with_room(EXPIRE_MAX as usize);
        let mut outcome = Outcome { longest_run: ran.duration, ..Outcome::default() };
        while let Some(batch) = self.requests.next_batch(&mut cursor)? {
            for (&index, request) in batch {
                match request.legs {
                    _ if index as usize >= waiting.len() => {}
                    0 => {
                        outcome.removed += 1;
                        self.gone.extend(waiting.get(index as usize).map(|request| request.key));
                    }
                    BUSY => outcome.busy += 1,
                    // Not looked at: a program that is not ours.
                    _ => {}
                }
            }
        }
        self.outcome.add(outcome);
        self.waiting = waiting;
        self.waiting.clear();
        Ok(())
    }
}

/// What `vr_expire` is asked: both legs at once if they are in one table.
fn requests(flows: &Flows) -> impl Iterator<Item = Expire> {
    let alone = |leg: &Leg| Expire {
        key: leg.key,
        peer: FlowKey::default(),
        seen: leg.flow.seen,
        peer_seen: 0,
        legs: 1,
        table: leg.table.number(),
    };
    let requests = match flows {
        Flows::Connection { original, reply } if original.table == reply.table => {
            [Some(Expire { peer: reply.key, peer_seen: reply.flow.seen, legs: 2, ..alone(original) }), None]
        }
        Flows::Connection { original, reply } => [Some(alone(original)), Some(alone(reply))],
        Flows::Half(leg) | Flows::Decision(leg) => [Some(alone(leg)), None],
    };
    requests.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connections::{Table, tests::tcp};

    #[test]
    fn both_legs_are_removed_in_one_step_where_they_can_be() {
        let Flows::Connection { original, mut reply } = tcp(0, 0) else { unreachable!() };
        let together: Vec<_> = requests(&Flows::Connection { original, reply }).collect();
        assert_eq!(together.len(), 1);
        assert_eq!((together[0].key, together[0].peer, together[0].legs), (original.key, reply.key, 2));
        assert_eq!(together[0].table, Table::Flows.number());

        reply.table = Table::Transient;
        let apart: Vec<_> = requests(&Flows::Connection { original, reply }).collect();
        assert_eq!(apart.iter().map(|request| request.legs).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(apart.iter().map(|request| request.table).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(apart[1].key, reply.key);
    }
}
