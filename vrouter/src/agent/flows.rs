//! Expires idle flow entries. A stateless entry is only a remembered decision: one deleted a moment too
//! early is made again by its next packet.

use std::time::Duration;

use anyhow::Result;
use vrouter_common::flow::{Flow, FlowKey};

use crate::{clock::Clock, data_path::Pins, kernel::Map};

/// Entries looked at between two yields to everything else the agent does.
const STEP: usize = 1024;

/// Walks the flow table.
pub struct Sweeper {
    flows: Map<FlowKey, Flow>,
    clock: Clock,
    idle: Duration,
}

impl Sweeper {
    /// Opens the pins.
    pub fn open(pins: &Pins, idle_seconds: u32) -> Result<Self> {
        Ok(Self {
            flows: Map::open(&pins.maps(), "FLOWS")?,
            clock: Clock::open(pins)?,
            idle: Duration::from_secs(u64::from(idle_seconds)),
        })
    }

    /// Deletes entries without a packet for the idle time.
    pub async fn sweep(&mut self) -> Result<usize> {
        let now = self.clock.now()?;
        let keys = self.flows.keys()?;
        let mut deleted = 0;
        for step in keys.chunks(STEP) {
            for key in step {
                if let Some(flow) = self.flows.lookup(key)?
                    && self.clock.age(now, flow.seen) >= self.idle
                {
                    self.flows.remove(key)?;
                    deleted += 1;
                }
            }
            tokio::task::yield_now().await;
        }
        Ok(deleted)
    }
}
