//! Reads the pins, again and again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use aya::Pod;
use vrouter_common::{
    flow::{Flow, FlowKey},
    reason::{DropReason, Event},
    tables::*,
};

use super::{
    fleet::Fleet,
    sample::{PerSecond, Sample, TableRow},
    sheet::Sheet,
};
use crate::{
    agent::{self, Pressure},
    banks,
    clock::Clock,
    commands::{InstanceArgs, status},
    connections::{FlowTables, Table},
    counters::{Counters, Tally},
    data_path::Pins,
    kernel::{Cursor, Map},
    rates::{
        index::Index,
        meter::{Meter, growth, since},
    },
};

/// At most this part of the time is spent on reading.
const IDLE_PER_READ: u32 = 10;

/// What is kept from one read to the next.
pub struct Sampler {
    instance: InstanceArgs,
    maps: PathBuf,
    clock: Clock,
    meter: Meter,
    index: Index,
    compiled: Vec<TableRow>,
    pressure: Pressure,
    drops: BTreeMap<DropReason, Tally>,
    decided: u64,
    last: Option<Instant>,
    fleet: Option<Fleet>,
}

impl Sampler {
    /// Opens the pins. Other nodes are asked how they are if `fleet` is given.
    pub fn open(instance: &InstanceArgs, fleet: Option<Fleet>) -> Result<Self> {
        let pins: Pins = instance.pins()?;
        let maps = pins.maps();
        Ok(Self {
            instance: instance.clone(),
            clock: Clock::open(&pins)?,
            index: Index::read(&maps)?,
            compiled: compiled(&maps)?,
            maps,
            meter: Meter::default(),
            pressure: Pressure::default(),
            drops: BTreeMap::new(),
            decided: 0,
            last: None,
            fleet,
        })
    }

    /// Reads everything once. The first sample has no rates.
    ///
    /// Maps are opened each time: an agent that discarded its state has made new ones.
    pub fn read(&mut self) -> Result<Sample> {
        let start = Instant::now();
        let commit = banks::Maps::open(&self.maps)?.commit()?;
        if !self.index.is_of(&commit) {
            self.index = Index::read(&self.maps)?;
            self.compiled = compiled(&self.maps)?;
        }
        let ways: Map<u32, Underlay> = Map::open(&self.maps, "UNDERLAY")?;
        let counters = Counters::open(&self.maps)?;
        let reading = Instant::now();
        let sheet = self.read_flows()?;
        let seconds = self.last.replace(reading).map(|last| (reading - last).as_secs_f64());
        let per_second = PerSecond::over(seconds);
        let mut sample = Sample {
            at_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
            instance: self.instance.instance.clone(),
            node: self.index.name(NAME_NODE, self.index.node),
            epoch: commit.epoch,
            interval_seconds: seconds.map(|seconds| (seconds * 1000.0).round() / 1000.0),
            ..Sample::default()
        };
        sample.add_flows(&self.index, &sheet, per_second);
        for (node, way) in ways.entries()?.into_iter().filter(|(_, way)| way.dst.get() != 0) {
            let status = agent::peer_status(node, &way, &self.index.identities);
            let traffic = sheet.nodes.get(&node).copied().unwrap_or_default();
            sample.add_node(status.node, (status.vtep, status.state), &traffic, per_second);
        }
        if let Some(fleet) = &self.fleet {
            sample.add_told(fleet.told());
        }
        self.count_drops(&counters, &mut sample, per_second)?;
        sample.tables = self.tables(&sheet)?;
        sample.status = status::summary(&self.instance)?;
        sample.read_seconds = (start.elapsed().as_secs_f64() * 10_000.0).round() / 10_000.0;
        Ok(sample)
    }

    fn read_flows(&mut self) -> Result<Sheet> {
        let tables = FlowTables::open(&self.maps)?;
        let mut sheet = Sheet::default();
        self.meter.begin(self.clock.read()?);
        // From TRANSIENT to FLOWS, as flows move: so none that moves is missed.
        for table in Table::ALL {
            let mut cursor: Cursor<FlowKey, Flow> = Cursor::new();
            while let Some(batch) = tables.map(table).next_batch(&mut cursor)? {
                for (key, flow) in batch {
                    let growth = self.meter.note(key, flow);
                    sheet.add(&self.index, table, key, flow, &growth);
                }
            }
        }
        self.meter.end();
        Ok(sheet)
    }

    fn count_drops(&mut self, counters: &Counters, sample: &mut Sample, per_second: PerSecond) -> Result<()> {
        let is_first = self.drops.is_empty();
        let mut dropped = 0;
        for &reason in DropReason::ALL {
            let total = counters.drops(reason)?;
            let old = self.drops.insert(reason, total).unwrap_or(total);
            let since = growth(old, total);
            dropped += since.packets;
            if total.packets > 0 {
                sample.add_drop((reason.name(), reason.describe().trim()), since, total, per_second);
            }
        }
        sample.dropped_per_second = per_second.rate(dropped);
        let decided = counters.event(Event::FlowMiss)?;
        let old = std::mem::replace(&mut self.decided, decided);
        sample.decided_per_second = if is_first { 0.0 } else { per_second.rate(since(old, decided)) };
        Ok(())
    }

    fn tables(&mut self, sheet: &Sheet) -> Result<Vec<TableRow>> {
        let tables = FlowTables::open(&self.maps)?;
        let entries = |table| sheet.entries.get(&table).copied().unwrap_or(0);
        let flows_max = u64::from(tables.map(Table::Flows).max_entries());
        let transient_max = u64::from(tables.map(Table::Transient).max_entries());
        self.pressure.update(entries(Table::Flows), flows_max);
        let hops: Map<HopKey, u32> = Map::open(&self.maps, "HOP_INDEX")?;
        let mut rows = vec![
            TableRow {
                table: "FLOWS",
                entries: entries(Table::Flows),
                entries_max: flows_max,
                pressure: self.pressure.name(),
                holds: "answered connections, two entries each",
            },
            TableRow {
                table: "TRANSIENT",
                entries: entries(Table::Transient),
                entries_max: transient_max,
                // An LRU keeps some entries free on each CPU.
                pressure: if entries(Table::Transient) * 100 >= transient_max * 95 {
                    "full"
                } else {
                    "normal"
                },
                holds: "unanswered ones, decisions; the oldest give way",
            },
            row("HOP_INDEX", entries_of(&hops)?, hops.max_entries(), "next hops on external networks"),
        ];
        rows.extend(self.compiled.iter().cloned());
        Ok(rows)
    }
}

/// When to read again if that took so long: from one read's beginning to the next one's.
pub fn pace(wanted: Duration, took: Duration) -> Duration {
    wanted.max(took.saturating_mul(IDLE_PER_READ))
}

fn row(table: &'static str, entries: u64, entries_max: u32, holds: &'static str) -> TableRow {
    let mut pressure = Pressure::default();
    pressure.update(entries, entries_max.into());
    TableRow { table, entries, entries_max: entries_max.into(), pressure: pressure.name(), holds }
}

fn entries_of<K: Pod, V: Pod>(map: &Map<K, V>) -> Result<u64> {
    let mut cursor = Cursor::new();
    let mut entries = 0;
    while let Some(batch) = map.next_batch(&mut cursor)? {
        entries += batch.count() as u64;
    }
    Ok(entries)
}

/// Counts the tables of the compiled topology. Both banks share them, so what both hold takes two places.
fn compiled(maps: &Path) -> Result<Vec<TableRow>> {
    fn count<K: Pod, V: Pod>(maps: &Path, name: &'static str, holds: &'static str) -> Result<TableRow> {
        let map: Map<K, V> = Map::open(maps, name)?;
        Ok(row(name, entries_of(&map)?, map.max_entries(), holds))
    }
    Ok(vec![
        count::<BindingKey, Binding>(maps, "BINDINGS", "ports of this node")?,
        count::<NetworkKey, Network>(maps, "NETWORKS", "networks")?,
        count::<FdbKey, Station>(maps, "FDB", "hardware addresses")?,
        count::<AddressKey, Station>(maps, "ADDRESSES", "addresses of ports and routers")?,
        count::<RouterLegKey, RouterLeg>(maps, "ROUTER_LEGS", "interfaces of routers")?,
        count::<NatKey, Nat>(maps, "NAT", "floating IPs and port forwardings")?,
        count::<SnatBlockKey, SnatBlock>(maps, "SNAT_BLOCKS", "blocks of ports of this node")?,
        count::<SnatOwnerKey, SnatOwner>(maps, "SNAT_OWNERS", "blocks of ports of other nodes")?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_takes_a_tenth_of_the_time_at_most() {
        let wanted = Duration::from_secs(1);
        for (took, pause) in [(0, 1000), (100, 1000), (500, 5000), (4000, 40_000)] {
            assert_eq!(pace(wanted, Duration::from_millis(took)), Duration::from_millis(pause), "{took} ms");
        }
    }
}
