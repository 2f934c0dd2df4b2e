//! The data path's counters, added up over CPUs.

use std::path::Path;

use anyhow::Result;
use vrouter_common::{
    reason::{DropReason, Event},
    tables::{NAME_LISTENER, NAME_MEMBER},
};

use crate::kernel::{Map, PerCpu};

/// Packets and bytes, as the kernel keeps them per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub packets: u64,
    pub bytes: u64,
}

// SAFETY: two integers without padding.
unsafe impl aya::Pod for Tally {}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }
}

/// The counters of an instance.
pub struct Counters {
    drops: PerCpu<Tally>,
    events: PerCpu<u64>,
}

impl Counters {
    /// Opens the pins.
    pub fn open(maps: &Path) -> Result<Self> {
        Ok(Self { drops: PerCpu::open(maps, "DROPS")?, events: PerCpu::open(maps, "EVENTS")? })
    }

    /// What was dropped for a reason.
    pub fn drops(&self, reason: DropReason) -> Result<Tally> {
        let values = self.drops.values(reason as u32)?;
        Ok(values.iter().fold(Tally::default(), |sum, tally| Tally {
            packets: sum.packets + tally.packets,
            bytes: sum.bytes + tally.bytes,
        }))
    }

    /// How often something happened.
    pub fn event(&self, event: Event) -> Result<u64> {
        Ok(self.events.values(event as u32)?.iter().sum())
    }
}

/// New connections of load balancers, by the numbers of listeners and of members.
pub struct Balanced {
    pub listeners: Map<u32, u64>,
    pub members: Map<u32, u64>,
}

impl Balanced {
    /// Opens the pins.
    pub fn open(maps: &Path) -> Result<Self> {
        Ok(Self { listeners: Map::open(maps, "LISTENER_COUNT")?, members: Map::open(maps, "MEMBER_COUNT")? })
    }

    /// Numbers (with their kinds) are given to others, who begin with nothing.
    pub fn begin(&self, numbers: impl Iterator<Item = (u32, u32)>) -> Result<()> {
        for (kind, number) in numbers {
            let counts = match kind {
                NAME_LISTENER => &self.listeners,
                NAME_MEMBER => &self.members,
                _ => continue,
            };
            if counts.lookup(&number)? != Some(0) {
                counts.set(&number, &0)?;
            }
        }
        Ok(())
    }
}
