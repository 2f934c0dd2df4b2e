//! The two flow tables, walked by batches: whatever their size, a walk holds some hundred entries.

use std::path::Path;

use anyhow::Result;
use vrouter_common::flow::{Flow, FlowKey, ROLE_NONE, ROLE_ORIGINAL, ROLE_REPLY};

use super::legs::{Flows, Leg, Table};
use crate::kernel::{Cursor, Map};

/// The pinned tables.
pub struct FlowTables {
    flows: Map<FlowKey, Flow>,
    transient: Map<FlowKey, Flow>,
}

/// A walk through both tables.
pub struct Walk {
    cursor: Cursor<FlowKey, Flow>,
    /// Index into [`Table::ALL`].
    table: usize,
}

/// What one batch was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    pub table: Table,
    /// Entries in it.
    pub entries: u64,
}

impl FlowTables {
    /// Opens the pins.
    pub fn open(maps: &Path) -> Result<Self> {
        Ok(Self {
            flows: Map::open(maps, Table::Flows.pin())?,
            transient: Map::open(maps, Table::Transient.pin())?,
        })
    }

    /// A table.
    pub fn map(&self, table: Table) -> &Map<FlowKey, Flow> {
        match table {
            Table::Flows => &self.flows,
            Table::Transient => &self.transient,
        }
    }

    /// Takes one batch and tells of the connections whose first leg is in it; `None`: the walk is at its end.
    /// Replies are told of only if their original is gone, which costs a look-up: `doubts` says for which it is
    /// worth one.
    pub fn step(
        &self,
        walk: &mut Walk,
        doubts: impl Fn(&Flow) -> bool,
        mut tell: impl FnMut(&Flows) -> Result<()>,
    ) -> Result<Option<Batch>> {
        let Some(&table) = Table::ALL.get(walk.table) else { return Ok(None) };
        let Some(batch) = self.map(table).next_batch(&mut walk.cursor)? else {
            walk.table += 1;
            walk.cursor = Cursor::new();
            return Ok(Some(Batch { table, entries: 0 }));
        };
        let mut entries = 0;
        for (key, flow) in batch {
            entries += 1;
            let leg = Leg { key: *key, flow: *flow, table };
            match flow.role {
                ROLE_NONE => tell(&Flows::Decision(leg))?,
                ROLE_REPLY if !doubts(flow) => {}
                role => match self.peer(&leg)? {
                    Some(reply) if role == ROLE_ORIGINAL => {
                        tell(&Flows::Connection { original: leg, reply })?;
                    }
                    // Told of by its original.
                    Some(_) => {}
                    // Unless it went with its other half since it was copied.
                    None => {
                        if let Some(flow) = self.map(table).lookup(key)? {
                            tell(&Flows::Half(Leg { flow, ..leg }))?;
                        }
                    }
                },
            }
        }
        Ok(Some(Batch { table, entries }))
    }

    /// Tells of all.
    pub fn for_each(&self, mut tell: impl FnMut(&Flows) -> Result<()>) -> Result<()> {
        let mut walk = Walk::new();
        while self.step(&mut walk, |_| true, &mut tell)?.is_some() {}
        Ok(())
    }

    /// The other leg, in whichever table it is.
    fn peer(&self, leg: &Leg) -> Result<Option<Leg>> {
        let key = leg.peer_key();
        // The last again: it may have moved between the looks.
        for table in [leg.table, leg.table.other(), leg.table] {
            if let Some(flow) = self.map(table).lookup(&key)? {
                let peer = Leg { key, flow, table };
                if peer.is_paired_with(leg) {
                    return Ok(Some(peer));
                }
            }
        }
        Ok(None)
    }

    /// Removes entries whatever they are doing; for an operator who says so.
    pub fn remove(&self, flows: &Flows) -> Result<()> {
        flows.legs().try_for_each(|leg| self.map(leg.table).remove(&leg.key))
    }
}

impl Walk {
    /// The beginning.
    pub fn new() -> Self {
        Self { cursor: Cursor::new(), table: 0 }
    }
}

impl Default for Walk {
    fn default() -> Self {
        Self::new()
    }
}
