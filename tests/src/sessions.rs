//! Many sessions with a server at once, for as long as something else happens to the network, and what they noticed.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::Host;
use crate::service::RETURN;

/// How often a session says something.
const INTERVAL: Duration = Duration::from_millis(40);
/// How often all sessions are looked at.
const TURN: Duration = Duration::from_millis(5);
/// How long the last answers may take; those of TCP come for certain.
const DRAIN: Duration = Duration::from_secs(10);
/// The same of datagrams: on a busy machine the last ones are still on their way when the sessions end.
const DRAIN_UDP: Duration = Duration::from_secs(2);
/// Width of a step of the timeline.
const STEP: Duration = Duration::from_millis(50);
const MESSAGE: usize = 16;

/// Sessions of one host with one server of [`crate::Services`], until they are finished.
#[derive(Debug)]
pub struct Sessions {
    name: String,
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    timeline: Arc<Mutex<Vec<u32>>>,
    unanswered: Arc<AtomicU64>,
    thread: Option<JoinHandle<Report>>,
}

/// What became of them.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many there were of TCP, and of UDP.
    pub sessions: (usize, usize),
    /// Sessions that ended, with the reason: none of them should.
    pub lost: Vec<String>,
    /// Datagrams without an answer.
    pub unanswered: u64,
    /// Messages that came back.
    pub answered: u64,
    /// The longest any session waited between two answers; of TCP with its retransmissions.
    pub longest_tcp: Duration,
    /// The same of UDP.
    pub longest_udp: Duration,
}

struct Tcp {
    stream: TcpStream,
    /// Bytes of the server's first line and of messages that came back so far.
    greeted: bool,
    sent: u64,
    buffer: Vec<u8>,
    next: u64,
    due: Instant,
    last: Instant,
    dead: bool,
}

struct Udp {
    socket: UdpSocket,
    sent: u64,
    answered: u64,
    newest: u64,
    due: Instant,
    last: Instant,
}

impl Sessions {
    /// Opens them, and waits until each has had an answer.
    pub fn start(from: &Host, to: SocketAddr, tcp: usize, udp: usize) -> Result<Self> {
        let name = format!("{} to {to}", from.name());
        let any: SocketAddr = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse()?;
        let open = || -> std::io::Result<(Vec<TcpStream>, Vec<UdpSocket>)> {
            let streams = (0..tcp).map(|_| {
                let stream = TcpStream::connect_timeout(&to, DRAIN)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            let streams = streams.collect::<std::io::Result<Vec<_>>>()?;
            let sockets = (0..udp).map(|_| {
                let socket = UdpSocket::bind(any)?;
                socket.connect(to)?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            });
            Ok((streams, sockets.collect::<std::io::Result<Vec<_>>>()?))
        };
        let (streams, sockets) =
            from.netns().enter(open)?.with_context(|| format!("{name}: cannot open sessions"))?;
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let timeline = Arc::new(Mutex::new(Vec::new()));
        let unanswered = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let (stop, answers) = (stop.clone(), answers.clone());
            let (timeline, unanswered) = (timeline.clone(), unanswered.clone());
            move || run(streams, sockets, &stop, &answers, &timeline, &unanswered)
        });
        let sessions = Self { name, stop, answers, timeline, unanswered, thread: Some(thread) };
        sessions.wait_for_more((tcp + udp) as u64 * 3)?;
        Ok(sessions)
    }

    /// Waits for so many more answers.
    pub fn wait_for_more(&self, count: u64) -> Result<()> {
        let wanted = self.answers.load(Ordering::Relaxed) + count;
        let deadline = Instant::now() + DRAIN;
        while self.answers.load(Ordering::Relaxed) < wanted {
            if Instant::now() > deadline {
                bail!("{}: nothing comes back", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Answers in each step of 50 ms so far.
    pub fn timeline(&self) -> Vec<u32> {
        self.timeline.lock().map(|timeline| timeline.clone()).unwrap_or_default()
    }

    /// Datagrams so far that were not answered, though others of their flow were that were sent later.
    pub fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// Width of a step of [`Self::timeline`].
    pub const fn step() -> Duration {
        STEP
    }

    /// Ends them, and tells what became of them.
    pub fn finish(mut self) -> Result<Report> {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().context("they are finished")?;
        thread.join().map_err(|_| anyhow::anyhow!("{}: the sessions' thread panicked", self.name))
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Report {
    /// Of several together.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        self.sessions = (self.sessions.0 + other.sessions.0, self.sessions.1 + other.sessions.1);
        self.lost.extend(other.lost.iter().cloned());
        self.unanswered += other.unanswered;
        self.answered += other.answered;
        self.longest_tcp = self.longest_tcp.max(other.longest_tcp);
        self.longest_udp = self.longest_udp.max(other.longest_udp);
        self
    }
}

fn run(
    streams: Vec<TcpStream>,
    sockets: Vec<UdpSocket>,
    stop: &AtomicBool,
    answers: &AtomicU64,
    timeline: &Mutex<Vec<u32>>,
    unanswered: &AtomicU64,
) -> Report {
    let begin = Instant::now();
    let mut report = Report { sessions: (streams.len(), sockets.len()), ..Report::default() };
    let all = (streams.len() + sockets.len()).max(1) as u32;
    // Not all at the same moment.
    let due = |i: usize| begin + INTERVAL * i as u32 / all;
    let mut tcp: Vec<Tcp> = (0..)
        .zip(streams)
        .map(|(i, stream)| Tcp {
            stream,
            greeted: false,
            sent: 0,
            buffer: Vec::new(),
            next: 0,
            due: due(i),
            last: begin,
            dead: false,
        })
        .collect();
    let mut udp: Vec<Udp> = (tcp.len()..)
        .zip(sockets)
        .map(|(i, socket)| Udp { socket, sent: 0, answered: 0, newest: 0, due: due(i), last: begin })
        .collect();
    let mut stopped = None;
    loop {
        let now = Instant::now();
        let stopping = stop.load(Ordering::SeqCst);
        if stopping && stopped.is_none() {
            stopped = Some(now);
        }
        let mut count = 0;
        for session in tcp.iter_mut().filter(|session| !session.dead) {
            match session.turn(now, stopping) {
                Ok(came) if came > 0 => {
                    report.longest_tcp = report.longest_tcp.max(now - session.last);
                    session.last = now;
                    count += came;
                }
                Ok(_) => {}
                Err(error) => {
                    session.dead = true;
                    report.lost.push(format!("TCP {:?}: {error}", session.stream.local_addr()));
                }
            }
        }
        for session in &mut udp {
            let came = session.turn(now, stopping);
            if came > 0 {
                report.longest_udp = report.longest_udp.max(now - session.last);
                session.last = now;
                count += came;
            }
        }
        if count > 0 {
            answers.fetch_add(count, Ordering::Relaxed);
            report.answered += count;
        }
        let missing = udp
            .iter()
            .map(|session| (session.newest + 1).min(session.sent) - session.answered.min(session.newest + 1));
        unanswered.store(missing.sum(), Ordering::Relaxed);
        if let Ok(mut timeline) = timeline.lock() {
            let step = ((now - begin).as_millis() / STEP.as_millis()) as usize;
            if timeline.len() <= step {
                timeline.resize(step + 1, 0);
            }
            timeline[step] += count as u32;
        }
        let is_quiet = tcp.iter().all(|it| it.dead || it.sent == it.next);
        let is_answered = udp.iter().all(|it| it.sent == it.answered);
        let patience = match (is_quiet, is_answered) {
            (true, true) => Duration::ZERO,
            (true, false) => DRAIN_UDP,
            (false, _) => DRAIN,
        };
        if stopped.is_some_and(|stopped| now - stopped >= patience) {
            break;
        }
        std::thread::sleep(TURN);
    }
    for session in tcp.iter().filter(|session| !session.dead && session.sent != session.next) {
        report.lost.push(format!("TCP {:?}: hangs", session.stream.local_addr()));
    }
    for session in &udp {
        report.unanswered += session.sent - session.answered;
        if stopped.is_some_and(|stopped| stopped > session.last + Duration::from_secs(3)) {
            report.lost.push(format!("UDP {:?}: no answers any more", session.socket.local_addr()));
        }
    }
    report
}

impl Tcp {
    /// Says something if it is time, and takes what came; how many messages that were.
    fn turn(&mut self, now: Instant, stopping: bool) -> std::io::Result<u64> {
        if !stopping && self.due <= now && self.greeted {
            self.due = now + INTERVAL;
            let message = message(self.sent);
            match self.stream.write(&message) {
                Ok(MESSAGE) => self.sent += 1,
                Ok(_) => return Err(ErrorKind::WriteZero.into()),
                // It waits for what was sent before.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.buffer.extend(&bytes[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if !self.greeted {
            let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') else { return Ok(0) };
            self.buffer.drain(..=end);
            self.greeted = true;
        }
        let mut came = 0;
        while self.buffer.len() >= MESSAGE {
            if self.buffer[..MESSAGE] != message(self.next) {
                return Err(std::io::Error::other("another's bytes came back"));
            }
            self.buffer.drain(..MESSAGE);
            self.next += 1;
            came += 1;
        }
        Ok(came)
    }
}

impl Udp {
    fn turn(&mut self, now: Instant, stopping: bool) -> u64 {
        if !stopping && self.due <= now {
            self.due = now + INTERVAL;
            let mut message = message(self.sent).to_vec();
            message.insert(0, RETURN);
            // A message of ICMP about one before is no reason to stop.
            if self.socket.send(&message).is_ok() {
                self.sent += 1;
            }
        }
        let mut bytes = [0; 4096];
        let mut came = 0;
        while let Ok(len) = self.socket.recv(&mut bytes) {
            let Some(at) = bytes[..len].iter().position(|&byte| byte == b'\n') else { continue };
            if let Some(number) = bytes[..len].get(at + 2..at + 2 + 8)
                && let Ok(number) = number.try_into()
            {
                self.newest = self.newest.max(u64::from_be_bytes(number));
                self.answered += 1;
                came += 1;
            }
        }
        came
    }
}

fn message(number: u64) -> [u8; MESSAGE] {
    let mut message = *b"--------session\n";
    message[..8].copy_from_slice(&number.to_be_bytes());
    message
}
