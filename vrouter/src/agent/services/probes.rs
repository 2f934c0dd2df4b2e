//! Questions to members of load balancers' pools whether they are well: a TCP connection, an HTTP request, a ping.
//!
//! They leave by the member's own interface, from the address of the router on its network, and never touch the
//! underlay; answers come by the services channel. Nothing here waits: what is to be done is done by
//! [`Probes::work`], when a frame came ([`Probes::receive`]) or its time has ([`Probes::next_due`]).

mod connection;
mod ping;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use smoltcp::wire::IpProtocol;

use super::frame::Received;
use connection::Connection;
use ping::Ping;

/// Questions at once; each holds some 4 KiB.
const PROBES_MAX: usize = 8192;
/// Of ports that the router's address is not known for otherwise.
const PORTS: std::ops::RangeInclusive<u16> = 32768..=60999;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// Does the port take connections?
    Tcp { port: u16 },
    /// Does an HTTP request get a status of these ranges?
    Http {
        port: u16,
        method: String,
        path: String,
        /// Sent as Host; `None`: the member's address.
        host: Option<String>,
        expected: Vec<(u16, u16)>,
    },
    /// Does the member answer a ping?
    Ping,
}

/// Who is asked, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The member's interface.
    pub ifindex: u32,
    /// The router's on the member's network.
    pub source: IpAddr,
    pub source_mac: [u8; 6],
    pub member: IpAddr,
    pub member_mac: [u8; 6],
}

/// Why a member is not well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("refused: nothing listens on port {port}")]
    Refused { port: u16 },
    #[error("no answer within {} ms", .after.as_millis())]
    TimedOut { after: Duration },
    #[error("connected, but no answer to the request within {} ms", .after.as_millis())]
    Silent { after: Duration },
    #[error("status {status}, expected {expected}")]
    Status { status: u16, expected: String },
    #[error("the connection ended before a status came")]
    Closed,
    #[error("the answer is no HTTP")]
    NotHttp,
    #[error("cannot be sent: {0}")]
    Unsent(String),
    #[error("cannot be asked: {0}")]
    Impossible(&'static str),
}

/// How a question ended: its number, and how long the answer took.
pub type Outcome = (u64, Result<Duration, Failure>);

/// Sends a frame by an interface.
pub type Send<'a> = &'a mut dyn FnMut(u32, &[u8]) -> io::Result<()>;

/// All questions under way.
#[derive(Default)]
pub struct Probes {
    all: HashMap<u64, Probe>,
    /// Whom an answer is for.
    by_way: HashMap<Way, u64>,
    timers: BTreeSet<(Instant, u64)>,
    /// Those that something came for.
    touched: BTreeSet<u64>,
    ended: VecDeque<Outcome>,
}

/// What tells one question's frames from another's: interface, member, router; and the router's port, or what a ping
/// calls itself.
type Way = (u32, IpAddr, IpAddr, Mark);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Mark {
    Port(u16),
    Ident(u16),
}

struct Probe {
    target: Target,
    way: Way,
    started: Instant,
    timeout: Duration,
    due: Instant,
    kind: Kind,
}

enum Kind {
    Connection(Box<Connection>),
    Ping(Ping),
}

impl Probe {
    /// Does what is to be done now; `Some`: it has ended. Frames go to `out`.
    fn work(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) -> Option<Result<Duration, Failure>> {
        let passed = now.saturating_duration_since(self.started);
        let answer = match &mut self.kind {
            Kind::Connection(connection) => connection.work(&self.target, now, out),
            Kind::Ping(ping) => ping.work(&self.target, out),
        };
        match answer {
            Some(Ok(())) => Some(Ok(passed)),
            Some(Err(failure)) => Some(Err(failure)),
            None if passed >= self.timeout => {
                let after = self.timeout;
                Some(Err(match &mut self.kind {
                    Kind::Connection(connection) => connection.give_up(&self.target, after, now, out),
                    Kind::Ping(_) => Failure::TimedOut { after },
                }))
            }
            None => {
                let deadline = self.started + self.timeout;
                self.due = match &mut self.kind {
                    Kind::Connection(connection) => {
                        connection.next_due(now).unwrap_or(deadline).min(deadline)
                    }
                    Kind::Ping(_) => deadline,
                };
                None
            }
        }
    }
}

impl Probes {
    /// Asks; one under way with this number is given up.
    pub fn start(&mut self, id: u64, target: Target, check: Check, timeout: Duration, now: Instant) {
        self.stop(id);
        if let Err(failure) = self.try_start(id, target, check, timeout, now) {
            self.ended.push_back((id, Err(failure)));
        }
    }

    fn try_start(
        &mut self,
        id: u64,
        target: Target,
        check: Check,
        timeout: Duration,
        now: Instant,
    ) -> Result<(), Failure> {
        if self.all.len() >= PROBES_MAX {
            return Err(Failure::Impossible("this node asks too many members at once"));
        }
        if target.source.is_ipv4() != target.member.is_ipv4() {
            return Err(Failure::Impossible(
                "the router has no address of the member's family on its network",
            ));
        }
        let seed = getrandom::u64().map_err(|_| Failure::Impossible("the kernel gives no random numbers"))?;
        let mark = self.mark(&target, check == Check::Ping, seed);
        let mark = mark.ok_or(Failure::Impossible("no port is left"))?;
        let kind = match (check, mark) {
            (Check::Ping, Mark::Ident(ident) | Mark::Port(ident)) => Kind::Ping(Ping::new(ident, seed)),
            (check, Mark::Port(port) | Mark::Ident(port)) => {
                Kind::Connection(Box::new(Connection::new(&target, port, check, seed, now)?))
            }
        };
        let way = (target.ifindex, target.member, target.source, mark);
        self.by_way.insert(way, id);
        self.touched.insert(id);
        self.timers.insert((now, id));
        self.all.insert(id, Probe { target, way, started: now, timeout, due: now, kind });
        Ok(())
    }

    /// One that no other question to this member has.
    fn mark(&self, target: &Target, ping: bool, seed: u64) -> Option<Mark> {
        let (first, count) = (*PORTS.start(), u64::try_from(PORTS.len()).ok()?);
        (0..count).find_map(|step| {
            let number = first + u16::try_from((seed % count + step) % count).ok()?;
            let mark = if ping { Mark::Ident(number) } else { Mark::Port(number) };
            let way = (target.ifindex, target.member, target.source, mark);
            (!self.by_way.contains_key(&way)).then_some(mark)
        })
    }

    /// Gives a question up: there is no outcome.
    pub fn stop(&mut self, id: u64) {
        if let Some(probe) = self.all.remove(&id) {
            self.by_way.remove(&probe.way);
            self.timers.remove(&(probe.due, id));
            self.touched.remove(&id);
        }
    }

    /// Takes a frame that came from an interface; whether it is an answer.
    pub fn receive(&mut self, ifindex: u32, frame: &[u8]) -> bool {
        let Some(received) = Received::parse(frame) else { return false };
        let mark = match received.protocol {
            IpProtocol::Tcp => received.tcp_ports().map(|(_, to)| Mark::Port(to)),
            IpProtocol::Icmp | IpProtocol::Icmpv6 => Ping::ident(&received).map(Mark::Ident),
            _ => None,
        };
        let Some(mark) = mark else { return false };
        let Some(&id) = self.by_way.get(&(ifindex, received.src, received.dst, mark)) else { return false };
        let Some(probe) = self.all.get_mut(&id) else { return false };
        let is_answer = match &mut probe.kind {
            Kind::Connection(connection) => connection.receive(&received),
            Kind::Ping(ping) => ping.receive(&received),
        };
        if is_answer {
            self.touched.insert(id);
        }
        is_answer
    }

    /// Does what is to be done now.
    pub fn work(&mut self, now: Instant, send: Send<'_>) {
        while let Some(&(due, id)) = self.timers.first().filter(|(due, _)| *due <= now) {
            self.timers.remove(&(due, id));
            self.touched.insert(id);
        }
        let mut out = Vec::new();
        for id in std::mem::take(&mut self.touched) {
            let Some(probe) = self.all.get_mut(&id) else { continue };
            self.timers.remove(&(probe.due, id));
            let mut result = probe.work(now, &mut out);
            for frame in out.drain(..) {
                if let Err(error) = send(probe.target.ifindex, &frame) {
                    // What was found out is not lost by a farewell that cannot be said.
                    result.get_or_insert(Err(Failure::Unsent(error.to_string())));
                }
            }
            match result {
                None => {
                    self.timers.insert((probe.due, id));
                }
                Some(result) => {
                    self.stop(id);
                    self.ended.push_back((id, result));
                }
            }
        }
    }

    /// When to work next, if nothing comes before.
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|&(due, _)| due)
    }

    /// The next question that has ended.
    pub fn outcome(&mut self) -> Option<Outcome> {
        self.ended.pop_front()
    }

    /// Questions under way.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

#[cfg(test)]
mod tests;
