//! The flow table's clock (the kernel's tick counter), read by running the pinned `vr_clock`.

use std::{
    fs,
    io::Read,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};

use crate::{data_path::Pins, kernel::Map};

/// Reads ticks, and knows how long one is.
pub struct Clock {
    program: SchedClassifier,
    value: Map<u32, u64>,
    ticks_per_second: u64,
}

impl Clock {
    /// Opens the pins.
    pub fn open(pins: &Pins) -> Result<Self> {
        let path = pins.programs().join("vr_clock");
        let program =
            SchedClassifier::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let value = Map::open(&pins.maps(), "CLOCK")?;
        let mut clock = Self { program, value, ticks_per_second: 0 };
        clock.ticks_per_second = match configured_hz() {
            Some(hz) => hz,
            None => clock.measure()?,
        };
        Ok(clock)
    }

    /// The tick counter's low bits, as flow entries hold them.
    pub fn now(&self) -> Result<u32> {
        Ok(self.ticks()? as u32)
    }

    fn ticks(&self) -> Result<u64> {
        let frame = [0; 64];
        self.program
            .test_run(TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() })
            .context("cannot run the pinned vr_clock")?;
        self.value.lookup(&0)?.context("the clock map has no entry")
    }

    /// How long ago `then` was, if it is not in the future.
    pub fn age(&self, now: u32, then: u32) -> Duration {
        let ticks = now.wrapping_sub(then) as i32;
        Duration::from_millis(u64::from(ticks.max(0).unsigned_abs()) * 1000 / self.ticks_per_second)
    }

    fn measure(&self) -> Result<u64> {
        let (start, first) = (Instant::now(), self.ticks()?);
        std::thread::sleep(Duration::from_millis(100));
        let ticks = self.ticks()?.wrapping_sub(first);
        let hz = u128::from(ticks) * 1000 / start.elapsed().as_millis().max(1);
        // The kernel is built with one of these.
        Ok([100, 250, 300, 1000]
            .into_iter()
            .min_by_key(|known: &u64| known.abs_diff(hz as u64))
            .unwrap_or(250))
    }
}

/// `CONFIG_HZ`, where the kernel or the distribution says it.
fn configured_hz() -> Option<u64> {
    let release = nix::sys::utsname::uname().ok()?.release().to_string_lossy().into_owned();
    let mut text = String::new();
    fs::File::open(Path::new("/boot").join(format!("config-{release}")))
        .ok()?
        .read_to_string(&mut text)
        .ok()?;
    text.lines().find_map(|line| line.strip_prefix("CONFIG_HZ=")?.parse().ok())
}
