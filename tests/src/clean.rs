//! Leaving nothing behind.
//!
//! Everything a lab makes carries its prefix in its name: namespaces, pins, run-time files, its directory.
//! Removal goes by that prefix alone and needs no record of what was made, so it works half-way through
//! building, after a panic, and from another process.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::fd::IntoRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;

use crate::netns::{NETNS_DIRECTORY, check};

/// One directory per lab: topology, logs, and the lock that says its process lives.
const LABS: &str = "/run/vrouter-lab";
/// Where agents pin programs, maps and links, one directory per instance.
pub(crate) const PINS: &str = "/sys/fs/bpf/vrouter";
/// Where agents keep sockets and the like, one directory per instance.
pub(crate) const RUNTIME: &str = "/run/vrouter";

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A lab's directory, locked for as long as its process lives.
#[derive(Debug)]
pub(crate) struct LabDirectory {
    path: PathBuf,
    _lock: Flock<File>,
}

impl LabDirectory {
    pub(crate) fn create(prefix: &str) -> Result<Self> {
        let _lock = global_lock()?;
        let path = Path::new(LABS).join(prefix);
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let lock = lock(&path.join("lock"), FlockArg::LockExclusiveNonblock)?;
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Removes every trace of the lab called `prefix`: its processes, pins, namespaces and files.
///
/// Goes on after an error and reports them all, so that one obstacle leaves as little as possible behind.
pub fn remove(prefix: &str) -> Result<()> {
    let mut errors = Vec::new();
    let namespaces = namespaces(prefix);
    kill_inside(&namespaces);
    // Pins first: they hold programs on devices that go away with the namespaces.
    for directory in [PINS, RUNTIME] {
        for name in names(directory, &format!("{prefix}-")) {
            remove_tree(&Path::new(directory).join(name)).unwrap_or_else(|error| errors.push(error));
        }
    }
    for name in &namespaces {
        let deleted = check(std::process::Command::new("ip").args(["netns", "delete", name]));
        deleted.unwrap_or_else(|error| errors.push(error));
    }
    remove_tree(&Path::new(LABS).join(prefix)).unwrap_or_else(|error| errors.push(error));
    if !errors.is_empty() {
        let errors: Vec<String> = errors.iter().map(|error| format!("{error:#}")).collect();
        bail!("the lab {prefix} is not gone completely: {}", errors.join("; "));
    }
    Ok(())
}

/// Removes labs whose process ended without doing so itself, such as by SIGKILL. Only labs named after a
/// process count; one kept on purpose has a name of its own.
pub fn sweep_stale() -> Result<()> {
    let _lock = global_lock()?;
    let mut prefixes = HashSet::new();
    for directory in [NETNS_DIRECTORY, PINS, RUNTIME, LABS] {
        prefixes
            .extend(names(directory, "").iter().filter_map(|name| process_prefix(name).map(str::to_owned)));
    }
    for prefix in prefixes {
        let lock_file = Path::new(LABS).join(&prefix).join("lock");
        let is_alive = lock_file.exists() && lock(&lock_file, FlockArg::LockExclusiveNonblock).is_err();
        if !is_alive {
            remove(&prefix)?;
        }
    }
    Ok(())
}

/// The namespaces of the lab called `prefix`.
pub fn namespaces(prefix: &str) -> Vec<String> {
    names(NETNS_DIRECTORY, &format!("{prefix}-"))
}

/// Whether anything of the lab called `prefix` is left.
pub fn exists(prefix: &str) -> bool {
    let dashed = format!("{prefix}-");
    Path::new(LABS).join(prefix).exists()
        || [NETNS_DIRECTORY, PINS, RUNTIME].iter().any(|directory| !names(directory, &dashed).is_empty())
}

/// Removes the directories all labs share, where they are empty.
pub fn remove_shared_directories() {
    let Ok(_lock) = global_lock() else { return };
    if names(LABS, "") == ["lock"] {
        let _ = std::fs::remove_file(Path::new(LABS).join("lock"));
    }
    for directory in [PINS, RUNTIME, LABS] {
        // Not empty: somebody else's, who still needs it.
        let _ = std::fs::remove_dir(directory);
    }
}

/// From now on SIGINT and SIGTERM remove the lab called `prefix` before they end the process.
///
/// A handler that writes to a pipe, not a blocked signal that a thread waits for: children would inherit the
/// block, and `tcpdump` could no longer be stopped by SIGINT.
pub fn remove_on_signal(prefix: &str) -> Result<()> {
    let (mut reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    SIGNAL_PIPE.store(writer.into_raw_fd(), Ordering::SeqCst);
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler does nothing but an atomic load and write(2), both async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot handle {signal}"))?;
    }
    let prefix = prefix.to_owned();
    std::thread::spawn(move || {
        let mut number = [0];
        if reader.read_exact(&mut number).is_err() {
            return;
        }
        INTERRUPTED.store(true, Ordering::SeqCst);
        eprintln!("\ninterrupted: removing the lab");
        if let Err(error) = remove(&prefix) {
            eprintln!("{error:#}");
        }
        std::process::exit(128 + i32::from(number[0]));
    });
    Ok(())
}

/// The writing end of the pipe of [`remove_on_signal`].
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(number: i32) {
    let byte = number as u8;
    // SAFETY: one byte of a local; the descriptor is never closed.
    unsafe { libc::write(SIGNAL_PIPE.load(Ordering::SeqCst), (&raw const byte).cast(), 1) };
}

/// Returns at once, or never if a signal has come: the thread that removes the lab ends the process, and until
/// then nothing new may be made or said.
pub fn stop_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// Serialises what labs of several processes must not do at the same time.
pub(crate) fn global_lock() -> Result<Flock<File>> {
    let path = Path::new(LABS).join("lock");
    loop {
        std::fs::create_dir_all(LABS).with_context(|| format!("cannot create {LABS}"))?;
        let lock = lock(&path, FlockArg::LockExclusive)?;
        // Whoever had it may have removed the file: then a lock on it keeps nobody out.
        let is_in_place = std::fs::metadata(&path).is_ok_and(|named| {
            lock.metadata().is_ok_and(|held| (held.dev(), held.ino()) == (named.dev(), named.ino()))
        });
        if is_in_place {
            return Ok(lock);
        }
    }
}

fn lock(path: &Path, how: FlockArg) -> Result<Flock<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, how)
        .map_err(|(_, error)| error)
        .with_context(|| format!("cannot lock {}", path.display()))
}

/// `vr123-0-node-a` belongs to the lab `vr123-0`: the first of process 123.
fn process_prefix(name: &str) -> Option<&str> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = name.splitn(3, '-');
    let (process, serial) = (parts.next()?, parts.next()?);
    (is_number(process.strip_prefix("vr")?) && is_number(serial))
        .then(|| &name[..process.len() + 1 + serial.len()])
}

/// The names in a directory that start so; none if there is no such directory.
fn names(directory: &str, start: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(start))
        .collect()
}

/// Kills whatever still runs in the namespaces, and waits until it is gone.
fn kill_inside(namespaces: &[String]) {
    let identities: HashSet<(u64, u64)> = namespaces
        .iter()
        .filter_map(|name| std::fs::metadata(Path::new(NETNS_DIRECTORY).join(name)).ok())
        .map(|metadata| (metadata.dev(), metadata.ino()))
        .collect();
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        let inside = processes_inside(&identities);
        if inside.is_empty() {
            return;
        }
        for process in inside {
            // Gone already is as good.
            let _ = kill(process, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn processes_inside(identities: &HashSet<(u64, u64)>) -> Vec<Pid> {
    if identities.is_empty() {
        return Vec::new();
    }
    let own = Pid::this();
    names("/proc", "")
        .iter()
        .filter_map(|name| name.parse().ok().map(Pid::from_raw))
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let netns = std::fs::metadata(format!("/proc/{pid}/ns/net"));
            netns.is_ok_and(|metadata| identities.contains(&(metadata.dev(), metadata.ino())))
        })
        .collect()
}

fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_whose_a_name_is() {
        assert_eq!(process_prefix("vr123-0-node-a"), Some("vr123-0"));
        assert_eq!(process_prefix("vr123-12"), Some("vr123-12"));
        for other in ["vrdemo-node-a", "vr-0-x", "vr12x-0", "vr12", "vrouter", "vr1-x-y", "eth0"] {
            assert_eq!(process_prefix(other), None, "{other}");
        }
    }
}
