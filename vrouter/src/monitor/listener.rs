//! The one who listens: a lock, a lease that is put off while it runs, and the ring.
//!
//! The kernel forgets a listener that does not renew its lease, so one that was killed costs nothing soon after.

use std::{
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use aya::maps::{MapData, MapInfo, RingBuf};
use nix::{
    fcntl::{Flock, FlockArg},
    time::{ClockId, clock_gettime},
};
use vrouter_common::monitor::*;

use crate::{
    agent,
    data_path::Pins,
    kernel::{Map, PerCpu},
};

/// How long the kernel believes that somebody listens.
const LEASE: Duration = Duration::from_secs(3);
/// How often it is told.
const RENEWAL: Duration = Duration::from_secs(1);
/// Records of an earlier listener that are thrown away at the most: more than the ring holds.
const STALE_MAX: usize = 1 << 16;

/// What became of the records that were wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Wanted, as far as the kernel's filter can tell.
    pub wanted: u64,
    /// Left out by sampling.
    pub skipped: u64,
    /// Lost: the ring was full.
    pub lost: u64,
    /// For so long nothing was recorded: this process did not get to renew its lease.
    pub deaf_milliseconds: u64,
}

/// Listens as long as it lives.
pub struct Listener {
    set: Map<u32, MonitorSet>,
    counters: PerCpu<u64>,
    before: Counts,
    ring: RingBuf<MapData>,
    /// Where the ring is pinned, and its number.
    path: PathBuf,
    id: u32,
    wanted: MonitorSet,
    since: u64,
    deadline: u64,
    renewal: Instant,
    deaf: Duration,
    /// What CLOCK_MONOTONIC's zero was.
    boot: SystemTime,
    _lock: Flock<File>,
}

impl Listener {
    /// Begins to listen for what `wanted` says (whatever its deadline).
    pub fn open(pins: &Pins, instance: &str, wanted: MonitorSet) -> Result<Self> {
        let maps = pins.maps();
        let path = maps.join("MONITOR");
        if !path.exists() {
            bail!(
                "the data path of instance {instance} was loaded by a vrouter that has no monitor ({} is missing): \
                 restart its agent with this version, traffic goes on meanwhile",
                path.display()
            );
        }
        let lock = lock(&agent::run_dir(instance))?;
        let mut ring = MapData::from_pin(&path)
            .and_then(|data| RingBuf::try_from(aya::maps::Map::RingBuf(data)))
            .with_context(|| format!("cannot open the pinned ring buffer {}", path.display()))?;
        let counters = PerCpu::open(&maps, "MONITOR_COUNT")?;
        for _ in 0..STALE_MAX {
            if ring.next().is_none() {
                break;
            }
        }
        let mut listener = Self {
            set: Map::open(&maps, "MONITOR_SET")?,
            counters,
            before: Counts::default(),
            ring,
            id: map_id(&path)?,
            path,
            wanted,
            since: 0,
            deadline: 0,
            renewal: Instant::now(),
            deaf: Duration::ZERO,
            boot: SystemTime::UNIX_EPOCH,
            _lock: lock,
        };
        listener.before = listener.read_counts()?;
        listener.renew()?;
        listener.since = monotonic()?;
        Ok(listener)
    }

    /// Tells the kernel that somebody is still there.
    fn renew(&mut self) -> Result<()> {
        let now = monotonic()?;
        if self.deadline != 0 && now > self.deadline {
            self.deaf += Duration::from_nanos(now - self.deadline);
        }
        self.boot = SystemTime::now() - Duration::from_nanos(now);
        self.deadline = now + LEASE.as_nanos() as u64;
        self.set.set(&0, &MonitorSet { deadline: self.deadline, ..self.wanted })?;
        self.renewal = Instant::now() + RENEWAL;
        Ok(())
    }

    /// Waits for records, but no longer than `most`, and renews the lease.
    pub fn wait(&mut self, most: Duration) -> Result<()> {
        self.keep()?;
        let most = most.min(self.renewal.saturating_duration_since(Instant::now()));
        let mut poll = libc::pollfd { fd: self.ring.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, which outlives the call. Interrupted or not, the caller looks.
        unsafe { libc::poll(&raw mut poll, 1, most.as_millis() as libc::c_int) };
        self.keep()
    }

    /// Renews the lease if it is time.
    pub fn keep(&mut self) -> Result<()> {
        if Instant::now() >= self.renewal { self.renew() } else { Ok(()) }
    }

    /// Fails if packets meet another data path now, which tells nothing here.
    pub fn check(&self) -> Result<()> {
        if map_id(&self.path).ok() != Some(self.id) {
            bail!(
                "{} is another than it was: the agent was started with --discard-state, or the pins were removed. Start \
                 again to listen to what is there now",
                self.path.display()
            );
        }
        Ok(())
    }

    /// The next record and what there is of its packet.
    pub fn take(&mut self) -> Option<(MonitorRecord, Vec<u8>)> {
        loop {
            let read = read(&self.ring.next()?);
            if let Some((record, packet)) = read
                && record.time >= self.since
            {
                return Some((record, packet));
            }
        }
    }

    /// When a record was made.
    pub fn time(&self, record: &MonitorRecord) -> SystemTime {
        self.boot + Duration::from_nanos(record.time)
    }

    /// What became of what was wanted since this began to listen.
    pub fn counts(&self) -> Result<Counts> {
        let now = self.read_counts()?;
        let before = &self.before;
        Ok(Counts {
            wanted: now.wanted.wrapping_sub(before.wanted),
            skipped: now.skipped.wrapping_sub(before.skipped),
            lost: now.lost.wrapping_sub(before.lost),
            deaf_milliseconds: self.deaf.as_millis() as u64,
        })
    }

    fn read_counts(&self) -> Result<Counts> {
        let sum = |index: u32| -> Result<u64> { Ok(self.counters.values(index)?.iter().sum()) };
        Ok(Counts {
            wanted: sum(MONITOR_COUNT_WANTED)?,
            skipped: sum(MONITOR_COUNT_SKIPPED)?,
            lost: sum(MONITOR_COUNT_LOST)?,
            deaf_milliseconds: 0,
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // If this fails, the lease ends soon.
        self.set.set(&0, &MonitorSet::default()).ok();
    }
}

fn monotonic() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the clock")?;
    Ok(Duration::from(now).as_nanos() as u64)
}

fn map_id(path: &Path) -> Result<u32> {
    let info = MapInfo::from_pin(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(info.id())
}

/// Makes sure that there is one listener at a time: the ring has one reader, the data path one filter.
fn lock(run_dir: &Path) -> Result<Flock<File>> {
    let (path, file) = agent::lock_file(run_dir, "monitor.lock")?;
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((mut file, _)) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).ok();
            bail!(
                "another `vrouter monitor` listens to this instance (process {}; {} is locked): one at a time can. End \
                 it, or have it write a file (--write) that all look at",
                pid.trim(),
                path.display()
            );
        }
    };
    let pid = format!("{}\n", std::process::id());
    lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(pid.as_bytes()))?;
    Ok(lock)
}

/// Reads a record; `None`: it is none of ours.
fn read(bytes: &[u8]) -> Option<(MonitorRecord, Vec<u8>)> {
    let (head, rest) = bytes.split_at_checked(size_of::<MonitorRecord>())?;
    // SAFETY: as many bytes as a record has, any of which are one (Pod); they may lie anywhere.
    let record = unsafe { std::ptr::read_unaligned(head.as_ptr().cast::<MonitorRecord>()) };
    let packet = rest.get(..record.captured as usize)?.to_vec();
    Some((record, packet))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(record: &MonitorRecord, packet: &[u8]) -> Vec<u8> {
        let at = std::ptr::from_ref(record).cast::<u8>();
        // SAFETY: the bytes of a struct without padding (asserted where it is defined).
        let mut bytes = unsafe { std::slice::from_raw_parts(at, size_of::<MonitorRecord>()) }.to_vec();
        bytes.extend(packet);
        bytes
    }

    #[test]
    fn records_are_read_wherever_they_lie() {
        let record =
            MonitorRecord { time: 7, len: 900, captured: 3, reason: 113, ..MonitorRecord::default() };
        let shifted = [vec![0], bytes(&record, &[1, 2, 3])].concat();
        assert_eq!(read(&shifted[1..]), Some((record, vec![1, 2, 3])));
    }

    #[test]
    fn records_that_contradict_themselves_are_refused() {
        let record = MonitorRecord { captured: 4, ..MonitorRecord::default() };
        assert_eq!(read(&bytes(&record, &[1, 2, 3])), None);
        let record = MonitorRecord { captured: u32::MAX, ..record };
        assert_eq!(read(&bytes(&record, &[0; 300])), None);
        assert_eq!(read(&[0; size_of::<MonitorRecord>() - 1]), None);
    }

    #[test]
    fn the_second_listener_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = lock(dir.path()).expect("the first");
        let error = lock(dir.path()).expect_err("the second").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        lock(dir.path()).expect("free again");
    }
}
