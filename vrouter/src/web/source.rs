//! One look at the kernel's maps.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;
use vrouter_common::reason::DropReason;

use super::objects::Objects;
use crate::{
    banks,
    clock::Ticks,
    commands::{InstanceArgs, flows::Looker, status},
    connections::{Flows, Names, Standing, filter::FilterArgs},
    counters::{Counters, Tally},
    rates::index::Index,
};

/// Connections looked at in one go. With more, the drawing shows rates of these, and says so.
pub const FLOWS_MAX: usize = 50_000;
/// Next hops change without a commit.
const NAMES_AGE: Duration = Duration::from_secs(10);

/// What was there at one moment.
#[derive(Clone)]
pub struct Look {
    pub objects: Arc<Objects>,
    pub names: Arc<Names>,
    pub index: Arc<Index>,
    /// When flows were looked at, by the clock of their entries.
    pub ticks: Ticks,
    pub flows: Vec<(Flows, Standing)>,
    /// Whether these are all.
    pub complete: bool,
    pub drops: Vec<(DropReason, Tally)>,
    /// `vrouter status --output json`.
    pub status: Value,
}

/// Where looks come from.
pub trait Source: Send {
    /// Looks.
    fn look(&mut self) -> Result<Look>;
}

/// The pins of an instance.
pub struct PinSource {
    instance: InstanceArgs,
    open: Option<Open>,
}

struct Open {
    looker: Looker,
    counters: Counters,
    banks: banks::Maps,
    /// Of the pin: maps that were discarded and made anew are others.
    inode: u64,
    names: Arc<Names>,
    objects: Arc<Objects>,
    index: Arc<Index>,
    named: Instant,
}

impl PinSource {
    /// Of an instance, which must have pins.
    pub fn new(instance: InstanceArgs) -> Result<Self> {
        let mut source = Self { instance, open: None };
        source.open = Some(source.open()?);
        Ok(source)
    }

    fn inode(&self) -> Result<u64> {
        let pin = self.instance.pins()?.maps().join("COMMIT");
        Ok(fs::metadata(&pin).with_context(|| format!("cannot read {}", pin.display()))?.ino())
    }

    fn open(&self) -> Result<Open> {
        let inode = self.inode()?;
        let looker = Looker::open(&self.instance)?;
        let names = Arc::new(Names::read(looker.maps())?);
        Ok(Open {
            counters: Counters::open(looker.maps())?,
            banks: banks::Maps::open(looker.maps())?,
            objects: Arc::new(Objects::read(looker.maps(), &names)?),
            index: Arc::new(Index::read(looker.maps())?),
            inode,
            looker,
            names,
            named: Instant::now(),
        })
    }
}

impl Source for PinSource {
    fn look(&mut self) -> Result<Look> {
        let inode = self.inode()?;
        let open = match self.open.take() {
            Some(open) if open.inode == inode => open,
            _ => self.open()?,
        };
        let open = self.open.insert(open);
        let has_changed = open.banks.commit()?.epoch != open.objects.epoch;
        if has_changed || open.named.elapsed() > NAMES_AGE {
            open.names = Arc::new(Names::read(open.looker.maps())?);
            open.named = Instant::now();
        }
        if has_changed {
            open.objects = Arc::new(Objects::read(open.looker.maps(), &open.names)?);
            open.index = Arc::new(Index::read(open.looker.maps())?);
        }
        let names = Names::default();
        let everything = FilterArgs { all: true, ..FilterArgs::default() }
            .resolve_with(&names, |_| Ok(Default::default()))?;
        let ticks = open.looker.ticks()?;
        let (mut flows, mut complete) = (Vec::new(), true);
        open.looker.look(&names, &everything, |connection, standing| {
            complete = flows.len() < FLOWS_MAX;
            if complete {
                flows.push((*connection, *standing));
            }
            Ok(complete)
        })?;
        let drops = DropReason::ALL.iter().map(|&reason| Ok((reason, open.counters.drops(reason)?)));
        Ok(Look {
            drops: drops.collect::<Result<_>>()?,
            status: status::json(&self.instance)?,
            objects: Arc::clone(&open.objects),
            names: Arc::clone(&open.names),
            index: Arc::clone(&open.index),
            ticks,
            flows,
            complete,
        })
    }
}
