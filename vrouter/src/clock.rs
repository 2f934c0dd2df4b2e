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

/// A reading of the tick counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    /// The counter's low bits, as flow entries hold them.
    pub now: u32,
    /// How many there are in a second.
    pub per_second: u32,
}

impl Ticks {
    /// What is this little in the future was written while the counter was read.
    const FUTURE_SECONDS: u32 = 3600;

    /// How long ago `then` was: up to 49 days (at 1000 ticks per second), then it begins again.
    pub fn age(self, then: u32) -> Duration {
        let ticks = self.now.wrapping_sub(then);
        let per_second = self.per_second.max(1);
        if ticks > u32::MAX - per_second.saturating_mul(Self::FUTURE_SECONDS) {
            return Duration::ZERO;
        }
        Duration::from_millis(u64::from(ticks) * 1000 / u64::from(per_second))
    }
}

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

    /// The same with the length of a tick.
    pub fn read(&self) -> Result<Ticks> {
        Ok(Ticks { now: self.now()?, per_second: self.ticks_per_second as u32 })
    }

    /// How long ago `then` was, if it is not in the future.
    pub fn age(&self, now: u32, then: u32) -> Duration {
        Ticks { now, per_second: self.ticks_per_second as u32 }.age(then)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_survives_the_counter_beginning_again() {
        let ticks = Ticks { now: 500, per_second: 250 };
        for (then, seconds) in [
            (500, 0),
            (0, 2),
            // Before the counter went past zero: five minutes after the boot.
            (u32::MAX - 499, 4),
            (500_u32.wrapping_sub(250 * 432_000), 432_000),
            // Written after the counter was read.
            (501, 0),
            (500 + 250 * 3599, 0),
        ] {
            assert_eq!(ticks.age(then), Duration::from_secs(seconds), "then {then}");
        }
        let fast = Ticks { now: 7, per_second: 1000 };
        let days = 86_400 * 30;
        assert_eq!(fast.age(7_u32.wrapping_sub(days * 1000)), Duration::from_secs(u64::from(days)));
    }
}
