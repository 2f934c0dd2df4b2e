//! Records of connections that ended, for those who keep books: JSON lines, to a file or by UDP.
//!
//! A thread of its own puts names to them and writes; what comes faster than it may, or than it can, is lost and counted.
//! The sweep that finds them, and with it the agent, never waits.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::{FileExt as _, MetadataExt, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    connections::{Flows, Names, Row, Standing, state::State},
    data_path::Pins,
};

/// Records in a second; as many may come at once.
const RATE: u32 = 2000;
/// Records that wait to be written.
const WAITING: usize = 4096;
/// How old names may be.
const NAMES_AGE: Duration = Duration::from_secs(2);
/// A file that is larger is set aside, as `FILE.1`, and begun anew.
const FILE_MAX: u64 = 256 << 20;
/// Between two looks at whether somebody has moved the file, and two tries to open one.
const LOOK: Duration = Duration::from_secs(1);

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Target {
    File(PathBuf),
    Udp(SocketAddr),
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(address) = text.strip_prefix("udp:") {
            return address.parse().map(Self::Udp).map_err(|_| format!("{text} is not udp:ADDRESS:PORT"));
        }
        match Path::new(text) {
            path if path.is_absolute() => Ok(Self::File(path.to_owned())),
            _ => Err(format!("{text} is neither an absolute path nor udp:ADDRESS:PORT")),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Udp(address) => write!(f, "udp:{address}"),
        }
    }
}

/// How it goes, since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RecordsStatus {
    pub target: String,
    pub written: u64,
    /// There were too many, or they could not be written.
    pub lost: u64,
    /// What does not work.
    pub note: Option<String>,
}

/// A connection that ended, as it is written.
#[derive(Serialize)]
struct Record<'a> {
    node: &'a str,
    /// Seconds since 1970.
    start: f64,
    /// When its last packet came by.
    end: f64,
    /// `closed` (by TCP), `refused` (a reset or nothing answered) or `idle`.
    ended: &'static str,
    #[serde(flatten)]
    row: Row,
}

/// The sweep's side.
pub struct Records {
    sender: SyncSender<(Flows, Standing, SystemTime)>,
    status: Arc<Mutex<RecordsStatus>>,
}

impl Records {
    /// Starts the thread, in the network namespace of the calling one.
    pub fn start(target: Target, node: String, pins: &Pins) -> Result<Self> {
        let (sender, receiver) = sync_channel(WAITING);
        let status = RecordsStatus { target: target.to_string(), ..RecordsStatus::default() };
        let status = Arc::new(Mutex::new(status));
        let writer = Writer {
            target,
            node,
            maps: pins.maps(),
            status: status.clone(),
            names: None,
            output: None,
            looked: None,
            tokens: f64::from(RATE),
            filled: Instant::now(),
        };
        std::thread::Builder::new()
            .name("vr-records".to_owned())
            .spawn(move || writer.run(&receiver))
            .context("cannot start the thread for flow records")?;
        Ok(Self { sender, status })
    }

    /// A connection ended.
    pub fn tell(&self, flows: Flows, standing: Standing) {
        match self.sender.try_send((flows, standing, SystemTime::now())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => lock(&self.status).lost += 1,
        }
    }

    /// How it goes.
    pub fn status(&self) -> RecordsStatus {
        lock(&self.status).clone()
    }
}

fn lock(status: &Mutex<RecordsStatus>) -> std::sync::MutexGuard<'_, RecordsStatus> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Output {
    File { file: File, inode: u64, length: u64 },
    Udp(UdpSocket),
}

struct Writer {
    target: Target,
    node: String,
    maps: PathBuf,
    status: Arc<Mutex<RecordsStatus>>,
    names: Option<(Names, Instant)>,
    output: Option<Output>,
    looked: Option<Instant>,
    tokens: f64,
    filled: Instant,
}

impl Writer {
    fn run(mut self, receiver: &Receiver<(Flows, Standing, SystemTime)>) {
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok((flows, standing, ended)) => {
                    let outcome = self.take(&flows, &standing, ended);
                    let mut status = lock(&self.status);
                    match outcome {
                        Ok(true) => (status.written, status.note) = (status.written + 1, None),
                        Ok(false) => status.lost += 1,
                        Err(error) => {
                            let note = format!("flow records are lost: {error:#}");
                            if status.note.as_ref() != Some(&note) {
                                tracing::warn!("{note}");
                            }
                            (status.lost, status.note) = (status.lost + 1, Some(note));
                            drop(status);
                            self.output = None;
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Writes a record; `false`: there are too many.
    fn take(&mut self, flows: &Flows, standing: &Standing, at: SystemTime) -> Result<bool> {
        let now = Instant::now();
        let earned = now.duration_since(self.filled).as_secs_f64() * f64::from(RATE);
        (self.tokens, self.filled) = ((self.tokens + earned).min(f64::from(RATE)), now);
        if self.tokens < 1.0 {
            return Ok(false);
        }
        self.tokens -= 1.0;
        if self.names.as_ref().is_none_or(|(_, read)| read.elapsed() > NAMES_AGE) {
            self.names = Some((Names::read(&self.maps)?, now));
        }
        let Some((names, _)) = &self.names else { return Ok(false) };
        let seconds = |before: Duration| {
            let then = at.checked_sub(before).unwrap_or(UNIX_EPOCH);
            then.duration_since(UNIX_EPOCH).map_or(0.0, |since| (since.as_millis() as f64) / 1000.0)
        };
        let record = Record {
            node: &self.node,
            start: seconds(standing.age),
            end: seconds(standing.idle),
            ended: ended(standing),
            row: Row::new(flows, standing, names),
        };
        let mut line = serde_json::to_vec(&record).context("cannot write a record")?;
        line.push(b'\n');
        self.write(&line)?;
        Ok(true)
    }

    fn write(&mut self, line: &[u8]) -> Result<()> {
        self.look()?;
        let target = &self.target;
        match &mut self.output {
            Some(Output::File { file, length, .. }) => {
                *length += line.len() as u64;
                file.write_all(line).with_context(|| format!("cannot write to {target}"))
            }
            // Whether somebody listens is not known, and is not asked.
            Some(Output::Udp(socket)) => match socket.send(line) {
                Err(error) if error.kind() != std::io::ErrorKind::ConnectionRefused => {
                    Err(error).with_context(|| format!("cannot send to {target}"))
                }
                _ => Ok(()),
            },
            None => anyhow::bail!("{target} is not open"),
        }
    }

    /// Opens what is not open; a file that somebody has moved, or that is too large, anew.
    fn look(&mut self) -> Result<()> {
        let is_due = self.looked.is_none_or(|looked| looked.elapsed() > LOOK);
        if let (Some(Output::File { inode, length, .. }), Target::File(path)) = (&self.output, &self.target) {
            let is_moved = is_due && std::fs::metadata(path).map_or(true, |about| about.ino() != *inode);
            if *length > FILE_MAX {
                let aside = PathBuf::from(format!("{}.1", path.display()));
                std::fs::rename(path, &aside)
                    .with_context(|| format!("cannot set {} aside", path.display()))?;
                self.output = None;
            } else if is_moved {
                self.output = None;
            }
        }
        if is_due {
            self.looked = Some(Instant::now());
        }
        if self.output.is_none() {
            self.output = Some(match &self.target {
                Target::File(path) => {
                    // Who talks to whom is nobody else's business.
                    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
                    let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
                    if ends_within_a_line(path) {
                        file.write_all(b"\n")
                            .with_context(|| format!("cannot write to {}", path.display()))?;
                    }
                    let about = file.metadata()?;
                    Output::File { inode: about.ino(), length: about.len(), file }
                }
                Target::Udp(to) => {
                    let any: SocketAddr =
                        if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
                    let socket = UdpSocket::bind(any).context("cannot open a socket")?;
                    socket.connect(to).with_context(|| format!("cannot send to {to}"))?;
                    Output::Udp(socket)
                }
            });
        }
        Ok(())
    }
}

/// Whether a file's last record is there in part: the disk was full.
fn ends_within_a_line(path: &Path) -> bool {
    let last = || {
        let length = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?.len();
        let mut last = [0];
        File::open(path).ok()?.read_exact_at(&mut last, length.checked_sub(1)?).ok()?;
        Some(last)
    };
    last().is_some_and(|last| last != *b"\n")
}

/// Why it is over.
fn ended(standing: &Standing) -> &'static str {
    match standing.state {
        State::Close if !standing.replied => "refused",
        State::SynSent | State::Unreplied => "refused",
        State::FinWait | State::CloseWait | State::LastAck | State::TimeWait | State::Close => "closed",
        _ => "idle",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connections::tests::tcp;

    fn writer(target: Target) -> Writer {
        Writer {
            target,
            node: "a".to_owned(),
            maps: PathBuf::new(),
            status: Arc::default(),
            names: Some((Names::default(), Instant::now() + Duration::from_secs(3600))),
            output: None,
            looked: None,
            tokens: f64::from(RATE),
            filled: Instant::now(),
        }
    }

    fn standing() -> Standing {
        let second = Duration::from_secs(1);
        Standing {
            state: State::TimeWait,
            replied: true,
            assured: true,
            age: second * 9,
            idle: second * 2,
            timeout: second,
        }
    }

    #[test]
    fn targets_are_read() {
        assert_eq!("/var/log/x".parse(), Ok(Target::File("/var/log/x".into())));
        assert_eq!("udp:192.0.2.1:99".parse(), Ok(Target::Udp("192.0.2.1:99".parse().unwrap())));
        for wrong in ["", "x.json", "udp:", "udp:host:99", "tcp:192.0.2.1:99"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn records_are_lines_and_a_file_that_was_moved_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flows.jsonl");
        let mut writer = writer(Target::File(path.clone()));
        let at = UNIX_EPOCH + Duration::from_secs(1000);
        assert!(writer.take(&tcp(0, 0), &standing(), at).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        let record: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(record["start"], 991.0);
        assert_eq!(record["end"], 998.0);
        assert_eq!((&record["ended"], &record["node"]), (&"closed".into(), &"a".into()));
        assert_eq!(record["protocol"], "tcp");
        let moved = directory.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        writer.looked = None;
        assert!(writer.take(&tcp(0, 0), &standing(), at).unwrap());
        assert_eq!(std::fs::read_to_string(&moved).unwrap().lines().count(), 1);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    }

    #[test]
    fn a_record_follows_one_that_was_cut_short_on_a_line_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flows.jsonl");
        let mut writer = writer(Target::File(path.clone()));
        assert!(writer.take(&tcp(0, 0), &standing(), UNIX_EPOCH).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "root reads it, nobody else");
        let whole = std::fs::read_to_string(&path).unwrap();
        // The disk was full.
        std::fs::write(&path, format!("{whole}{}", &whole[..20])).unwrap();
        writer.output = None;
        for _ in 0..2 {
            assert!(writer.take(&tcp(0, 0), &standing(), UNIX_EPOCH).unwrap());
            writer.output = None;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{whole}{}\n{whole}{whole}", &whole[..20]));
    }

    #[test]
    fn what_comes_too_fast_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(Target::File(directory.path().join("flows.jsonl")));
        let began = Instant::now();
        let written = (0..3 * RATE)
            .filter(|_| writer.take(&tcp(0, 0), &standing(), UNIX_EPOCH).unwrap())
            .count() as f64;
        let most = f64::from(RATE) * (1.0 + began.elapsed().as_secs_f64()) + 1.0;
        assert!(written >= f64::from(RATE) && written <= most, "{written} of at most {most}");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_said() {
        let mut writer = writer(Target::File("/nowhere/flows.jsonl".into()));
        let error = writer.take(&tcp(0, 0), &standing(), UNIX_EPOCH).expect_err("no directory");
        assert!(format!("{error:#}").contains("cannot open /nowhere/flows.jsonl"));
    }
}
