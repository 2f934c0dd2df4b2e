//! Where the topology comes from: a file, or etcd (see [`crate::store`]).
//!
//! The file is looked at when its directory says so, and, as a file may be changed where no such notice is
//! given (by another host, behind a symbolic link), again and again.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, AsRawFd, RawFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    config::AgentConfig,
    store::follow::{Follower, News, Options},
    topology::{self, Problems, model::Topology},
};

/// One byte more than a document may have, so that it is refused as too long.
const READ_MAX: u64 = (64 << 20) + 1;

/// How often the file is looked at even if nothing tells that it changed.
const FILE_INTERVAL: Duration = Duration::from_millis(250);

/// Where the topology comes from.
pub enum Source {
    /// A file.
    File { file: FileSource, notices: Notices, ticks: Interval },
    /// etcd.
    Store(Follower),
}

/// What a source has read.
pub struct Read {
    /// Tells one from another: of a file's content, or etcd's revision.
    pub digest: u64,
    /// `Ok(None)`: what is in force is to stay.
    pub topology: Result<Option<Arc<Topology>>, Problems>,
    /// What is left out of it, or stays as it was, and why.
    pub skipped: Problems,
}

impl Source {
    /// As configured.
    pub fn of(config: &AgentConfig) -> Result<Self> {
        if let Some(store) = &config.store {
            let options = Options {
                config: store.clone(),
                node: config.node.clone(),
                externals: config.externals.iter().map(|external| external.network.clone()).collect(),
                cache: Some(config.state_dir.join(&config.instance).join("topology.json")),
            };
            return Ok(Self::Store(Follower::start(options)?));
        }
        let mut ticks = interval(FILE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (file, notices) = (FileSource::new(config.topology.clone()), Notices::of(&config.topology));
        Ok(Self::File { file, notices, ticks })
    }

    /// Waits for something new.
    pub async fn next(&mut self) -> Read {
        match self {
            Self::File { file, notices, ticks } => loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = notices.next() => {}
                }
                if let Some(read) = file.poll() {
                    return read;
                }
            },
            Self::Store(follower) => match follower.news.recv().await {
                Some(News { revision, topology, skipped, .. }) => {
                    Read { digest: u64::try_from(revision).unwrap_or(0), topology: Ok(topology), skipped }
                }
                // Its thread ended; what is in force stays.
                None => std::future::pending().await,
            },
        }
    }
}

/// A file that is read when it changed.
pub struct FileSource {
    path: PathBuf,
    /// Device, inode, size, modification time: another file, or another content.
    seen: Option<(u64, u64, u64, i64, i64)>,
    digest: Option<u64>,
    /// Why it could not be read the last time.
    unreadable: Option<String>,
}

impl FileSource {
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: None, digest: None, unreadable: None }
    }

    /// Reads the file if it changed since the last call.
    pub fn poll(&mut self) -> Option<Read> {
        let name = self.path.display().to_string();
        let meta = match fs::metadata(&self.path) {
            Ok(meta) => meta,
            Err(error) => return self.unreadable(&name, &error),
        };
        let seen = (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
        if self.seen == Some(seen) {
            return None;
        }
        let bytes = match read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) => return self.unreadable(&name, &error),
        };
        self.unreadable = None;
        self.seen = Some(seen);
        let digest = digest(&bytes);
        if self.digest.replace(digest) == Some(digest) {
            return None;
        }
        let topology = match String::from_utf8(bytes) {
            Ok(text) => topology::parse(&name, &text),
            Err(_) => Err(Problems::of_document(&name, "is not UTF-8 text", "save it as UTF-8")),
        };
        let topology = topology.map(|topology| Some(Arc::new(topology)));
        Some(Read { digest, topology, skipped: Problems::default() })
    }

    /// A file that is gone is reported once; it may be on its way back, as when an editor replaces it.
    fn unreadable(&mut self, name: &str, error: &io::Error) -> Option<Read> {
        let what = format!("cannot be read: {error}");
        if self.unreadable.as_ref() == Some(&what) {
            return None;
        }
        (self.seen, self.digest) = (None, None);
        self.unreadable = Some(what.clone());
        let topology = Err(Problems::of_document(name, what, "make it readable; it is looked at again"));
        Some(Read { digest: 0, topology, skipped: Problems::default() })
    }
}

/// Tells that something in the file's directory was written or put in its place. Without it, which is no fault,
/// nothing is ever told.
pub struct Notices(Option<AsyncFd<Watch>>);

/// Tokio asks for the number.
struct Watch(Inotify);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Notices {
    /// Of the directory a file is in.
    pub fn of(file: &Path) -> Self {
        let directory = match file.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let watch = || -> io::Result<AsyncFd<Watch>> {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            inotify.add_watch(directory, AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO)?;
            // SAFETY: it has one descriptor, the same until it is dropped.
            let watch = unsafe { AsyncFd::register_with_interest(Watch(inotify), Interest::READABLE) };
            Ok(watch?)
        };
        Self(
            watch()
                .inspect_err(|error| tracing::debug!(%error, "the topology's directory is not watched"))
                .ok(),
        )
    }

    /// Waits for the next.
    pub async fn next(&mut self) {
        let Some(watch) = &self.0 else { return std::future::pending().await };
        match watch.readable().await {
            Ok(mut ready) => {
                // What happened does not matter: the file is looked at.
                while watch.get_ref().0.read_events().is_ok_and(|events| !events.is_empty()) {}
                ready.clear_ready();
            }
            Err(_) => self.0 = None,
        }
    }
}

/// Reads a regular file, and no more of it than a document may have. A pipe or a device could keep the agent
/// waiting, or never end.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(READ_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// FNV-1a, 64 bits: tells one content from another; it is no defence against somebody who may write the
/// file anyway.
fn digest(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
