//! Questions to members of load balancers' pools whether they are well: a TCP connection, an HTTP request, a ping.
//!
//! They leave by the member's own interface, from the address of the router on its network, and never touch the
//! underlay; answers come by the services channel. Nothing here waits: what is to be done is done by
//! [`Probes::work`], when a frame came ([`Probes::receive`]) or its time has ([`Probes::next_due`]).

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

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
pub struct Probes {}

impl Probes {
    /// Asks; one under way with this number is given up.
    pub fn start(&mut self, _id: u64, _target: Target, _check: Check, _timeout: Duration, _now: Instant) {}

    /// Gives a question up: there is no outcome.
    pub fn stop(&mut self, _id: u64) {}

    /// Takes a frame that came from an interface; whether it is an answer.
    pub fn receive(&mut self, _ifindex: u32, _frame: &[u8]) -> bool {
        false
    }

    /// Does what is to be done now.
    pub fn work(&mut self, _now: Instant, _send: Send<'_>) {}

    /// When to work next, if nothing comes before.
    pub fn next_due(&self) -> Option<Instant> {
        None
    }

    /// The next question that has ended.
    pub fn outcome(&mut self) -> Option<Outcome> {
        None
    }

    /// Questions under way.
    pub fn len(&self) -> usize {
        0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
