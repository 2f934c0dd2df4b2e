//! The next hops' maps: which slots are in use, by whom, and how one is given back.
//!
//! A slot is free, and on the stack; or in use, and then the index leads to it. The data path takes slots, only
//! the agent gives them back. It must never give back one that a flow still refers to, or is about to:
//!
//! 1. a search finds no flow that refers to it ([`Search`]);
//! 2. its entry in the index is removed, so that no new flow finds it; it is *parting*;
//! 3. a second search, which begins when no program runs that has seen the entry, still finds none;
//! 4. it is emptied and pushed, when no program runs that has seen such a flow.
//!
//! If the second search finds one, the entry is put back.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result};
use vrouter_common::{
    flow::{EXIT_EXTERNAL, Flow, FlowKey},
    tables::{HOP_FAILED, HOP_RESOLVED, HOP_USED, HOPS_MAX, Hop, HopKey},
};

use crate::kernel::{self, Cursor, Map, Stack};

/// The maps, and what is between in use and free.
pub struct Slots {
    index: Map<HopKey, u32>,
    hops: Map<u32, Hop>,
    free: Stack<u32>,
    /// Out of the index, but not known to be free of flows. `false`: an earlier agent took it out, or the data
    /// path gave it back; it may be on the stack.
    parting: BTreeMap<u32, bool>,
}

impl Slots {
    /// Opens the pins, and makes every slot that nothing uses free.
    pub fn open(maps: &Path) -> Result<Self> {
        let mut slots = Self {
            index: Map::open(maps, "HOP_INDEX")?,
            hops: Map::open(maps, "HOPS")?,
            free: Stack::open(maps, "FREE_HOPS")?,
            parting: BTreeMap::new(),
        };
        slots.recover().context("cannot recover the next hops of earlier agents")?;
        Ok(slots)
    }

    fn recover(&mut self) -> Result<()> {
        let free = self.list_free()?;
        // Whatever program had taken one before, has put it into the index by then, or given it back.
        kernel::wait_for_readers()?;
        let linked: BTreeSet<u32> = self.list()?.into_iter().map(|(_, index)| index).collect();
        // Downwards: the last one pushed is the first one used.
        for index in (0..HOPS_MAX).rev() {
            if free.contains(&index) || linked.contains(&index) {
                continue;
            }
            if self.hop(index)?.flags & HOP_USED == 0 {
                self.free.push(&index)?;
            } else {
                self.parting.insert(index, false);
            }
        }
        Ok(())
    }

    /// What is on the stack: it is taken, and put back at once. For some microseconds no new next hop is found
    /// room.
    fn list_free(&self) -> Result<BTreeSet<u32>> {
        let mut taken = Vec::new();
        // Bounded, whatever others push meanwhile.
        while let Some(index) = self.free.pop()? {
            taken.push(index);
            if taken.len() as u32 >= HOPS_MAX {
                break;
            }
        }
        let mut free = BTreeSet::new();
        for &index in taken.iter().rev() {
            if index < HOPS_MAX && free.insert(index) {
                self.free.push(&index)?;
            }
        }
        Ok(free)
    }

    /// The next hops in use: key and index.
    pub fn list(&self) -> Result<Vec<(HopKey, u32)>> {
        self.index.entries()
    }

    /// A next hop; of an index out of range, an unused one.
    pub fn hop(&self, index: u32) -> Result<Hop> {
        if index >= HOPS_MAX {
            return Ok(Hop::default());
        }
        Ok(self.hops.lookup(&index)?.unwrap_or_default())
    }

    /// Makes one that no packet has asked for yet. `None`: there is no room.
    pub fn make(&self, key: &HopKey, ifindex: u32, router: u32, now: u32) -> Result<Option<u32>> {
        if let Some(index) = self.index.lookup(key)? {
            return Ok(Some(index));
        }
        let Some(index) = self.free.pop()? else { return Ok(None) };
        let hop = Hop {
            flags: HOP_USED,
            ifindex,
            network: key.network,
            ip: key.ip,
            router,
            confirmed: now,
            ..Hop::default()
        };
        self.hops.set(&index, &hop)?;
        if self.index.set_new(key, &index)? {
            return Ok(Some(index));
        }
        // The data path was quicker.
        self.hops.set(&index, &Hop::default())?;
        self.free.push(&index)?;
        self.index.lookup(key)
    }

    /// Notes that a request was sent, so that the data path sends none for a second. A resolved one is left
    /// alone: nobody asks for it by packets.
    pub fn note_asked(&self, index: u32, now: u32) -> Result<()> {
        let hop = self.hop(index)?;
        if hop.flags & HOP_USED == 0 || hop.flags & HOP_RESOLVED != 0 {
            return Ok(());
        }
        self.hops.set(&index, &Hop { asked: now | 1, ..hop })
    }

    /// Marks one as failed, if nothing was heard since it was `seen`. An answer that arrives in the same
    /// microseconds may be lost: it is asked again soon.
    pub fn fail(&self, index: u32, seen: &Hop) -> Result<()> {
        let hop = self.hop(index)?;
        if hop.flags & HOP_USED == 0 || (hop.flags, hop.confirmed) != (seen.flags, seen.confirmed) {
            return Ok(());
        }
        self.hops.set(&index, &Hop { flags: HOP_USED | HOP_FAILED, ..hop })
    }

    /// Its network is reached by another interface now: nothing is known of it there.
    pub fn move_to(&self, index: u32, ifindex: u32) -> Result<()> {
        let hop = self.hop(index)?;
        if hop.flags & HOP_USED == 0 {
            return Ok(());
        }
        self.hops.set(&index, &Hop { flags: HOP_USED, ifindex, mac: [0; 6], asked: 0, confirmed: 0, ..hop })
    }

    /// Whether any slot is on its way to be free.
    pub fn is_any_parting(&self) -> bool {
        !self.parting.is_empty()
    }

    /// After a search that found `referenced`: frees what has parted, and parts from what nobody wants; both
    /// only if it was not found. Returns how many were freed.
    pub fn part(&mut self, referenced: &BTreeSet<u32>, unwanted: &[u32]) -> Result<usize> {
        let mut free = Vec::new();
        for (index, ours) in self.parting.clone() {
            if referenced.contains(&index) {
                self.put_back(index)?;
            } else {
                free.push((index, ours));
            }
        }
        let freed = self.give_back(free)?;
        for &index in unwanted.iter().filter(|index| !referenced.contains(index)) {
            let hop = self.hop(index)?;
            let key = HopKey { network: hop.network, ip: hop.ip };
            if hop.flags & HOP_USED == 0 || self.index.lookup(&key)? != Some(index) {
                continue;
            }
            self.index.remove(&key)?;
            self.parting.insert(index, true);
        }
        if !unwanted.is_empty() {
            // The next search begins later than this.
            kernel::wait_for_readers()?;
        }
        Ok(freed)
    }

    fn give_back(&mut self, mut free: Vec<(u32, bool)>) -> Result<usize> {
        if free.is_empty() {
            return Ok(0);
        }
        kernel::wait_for_readers()?;
        if free.iter().any(|(_, ours)| !ours) {
            // Of those that somebody else left behind, some may be on the stack, or in use again.
            let on_stack = self.list_free()?;
            kernel::wait_for_readers()?;
            let linked: BTreeSet<u32> = self.list()?.into_iter().map(|(_, index)| index).collect();
            free.retain(|(index, ours)| {
                let is_settled = !ours && (on_stack.contains(index) || linked.contains(index));
                if is_settled {
                    self.parting.remove(index);
                }
                !is_settled
            });
        }
        for (index, _) in &free {
            self.hops.set(index, &Hop::default())?;
            self.free.push(index)?;
            self.parting.remove(index);
        }
        Ok(free.len())
    }

    /// A flow still refers to one that was parted from.
    fn put_back(&mut self, index: u32) -> Result<()> {
        let hop = self.hop(index)?;
        let key = HopKey { network: hop.network, ip: hop.ip };
        if self.index.set_new(&key, &index)? {
            self.parting.remove(&index);
            return Ok(());
        }
        let Some(other) = self.index.lookup(&key)? else { return Ok(()) };
        if other == index {
            self.parting.remove(&index);
            return Ok(());
        }
        // Its address has another slot by now. What is learned, is learned there; flows that refer to this one
        // follow until they end.
        let Hop { flags, ifindex, mac, confirmed, .. } = self.hop(other)?;
        if flags & HOP_USED != 0 {
            self.hops.set(&index, &Hop { flags, ifindex, mac, confirmed, ..hop })?;
        }
        Ok(())
    }
}

/// A search for the next hops that flows refer to. It goes by small steps.
///
/// Unanswered flows are gone through first: an entry moves from there to the answered ones, never back.
pub struct Search {
    cursors: Vec<(Table, Cursor<FlowKey, Flow>)>,
    found: BTreeSet<u32>,
}

#[derive(Clone, Copy)]
enum Table {
    Transient,
    Answered,
}

/// The tables that are searched.
pub struct FlowTables {
    transient: Map<FlowKey, Flow>,
    answered: Map<FlowKey, Flow>,
}

impl FlowTables {
    /// Opens the pins.
    pub fn open(maps: &Path) -> Result<Self> {
        Ok(Self { transient: Map::open(maps, "TRANSIENT")?, answered: Map::open(maps, "FLOWS")? })
    }
}

impl Default for Search {
    fn default() -> Self {
        // The last one first.
        let cursors = vec![(Table::Answered, Cursor::new()), (Table::Transient, Cursor::new())];
        Self { cursors, found: BTreeSet::new() }
    }
}

impl Search {
    /// Goes through some batches; what was found, when it is at the end.
    pub fn go_on(&mut self, flows: &FlowTables, batches: usize) -> Result<Option<BTreeSet<u32>>> {
        for _ in 0..batches {
            let Some((table, cursor)) = self.cursors.last_mut() else {
                return Ok(Some(std::mem::take(&mut self.found)));
            };
            let map = match table {
                Table::Transient => &flows.transient,
                Table::Answered => &flows.answered,
            };
            if let Some(batch) = map.next_batch(cursor)? {
                let external = batch.filter(|(_, flow)| flow.exit == EXIT_EXTERNAL);
                self.found.extend(external.map(|(_, flow)| flow.target));
                continue;
            }
            self.cursors.pop();
        }
        Ok(None)
    }
}
