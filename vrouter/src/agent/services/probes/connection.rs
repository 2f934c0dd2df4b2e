//! One TCP connection to a member, and an HTTP request over it if that is what is asked.

use std::time::{Duration, Instant};

use smoltcp::{iface::SocketHandle, socket::tcp::State};

use super::{Check, Failure, Target};
use crate::agent::services::{
    frame::{Received, wrap},
    stack::Stack,
};

/// Of an answer only its first line counts.
const LINE_MAX: usize = 1024;
/// What any link can carry.
const MTU: u32 = 1280;

/// A connection under way.
pub struct Connection {
    stack: Stack,
    handle: SocketHandle,
    port: u16,
    http: Option<Http>,
    is_connected: bool,
}

struct Http {
    request: Vec<u8>,
    expected: Vec<(u16, u16)>,
    is_asked: bool,
    answer: Vec<u8>,
}

impl Connection {
    pub fn new(target: &Target, local: u16, check: Check, seed: u64, now: Instant) -> Result<Self, Failure> {
        let (port, http) = match check {
            Check::Tcp { port } => (port, None),
            Check::Http { port, method, path, host, expected } => {
                let host = host.unwrap_or_else(|| host_of(target, port));
                (port, Some(Http::new(&method, &path, &host, expected)?))
            }
            Check::Ping => return Err(Failure::Impossible("a ping has no connection")),
        };
        let mut stack = Stack::new(&[target.source], MTU, seed, now);
        let handle = stack.tcp(http.as_ref().map_or(1, |http| http.request.len()));
        if !stack.connect(handle, (target.source, local), (target.member, port)) {
            return Err(Failure::Impossible("no connection can go to such an address or port"));
        }
        Ok(Self { stack, handle, port, http, is_connected: false })
    }

    /// Takes what may be an answer; whether it is.
    pub fn receive(&mut self, received: &Received<'_>) -> bool {
        let is = received.tcp_ports().is_some_and(|(from, _)| from == self.port);
        if is {
            self.stack.receive(received.packet);
        }
        is
    }

    /// Does what is to be done now. `Some`: it has ended, and the member is told so.
    pub fn work(
        &mut self,
        target: &Target,
        now: Instant,
        out: &mut Vec<Vec<u8>>,
    ) -> Option<Result<(), Failure>> {
        self.stack.poll(now);
        let answer = self.answer();
        if answer.is_some() {
            self.stack.socket(self.handle).abort();
        }
        // A request, or the farewell.
        self.stack.poll(now);
        self.flush(target, out);
        answer
    }

    /// There is no more time.
    pub fn give_up(
        &mut self,
        target: &Target,
        after: Duration,
        now: Instant,
        out: &mut Vec<Vec<u8>>,
    ) -> Failure {
        self.stack.socket(self.handle).abort();
        self.stack.poll(now);
        self.flush(target, out);
        if self.is_connected { Failure::Silent { after } } else { Failure::TimedOut { after } }
    }

    pub fn next_due(&mut self, now: Instant) -> Option<Instant> {
        self.stack.next_due(now)
    }

    fn answer(&mut self) -> Option<Result<(), Failure>> {
        let socket = self.stack.socket(self.handle);
        let state = socket.state();
        match state {
            State::SynSent | State::SynReceived => return None,
            State::Closed if !self.is_connected => {
                return Some(Err(Failure::Refused { port: self.port }));
            }
            _ => self.is_connected = true,
        }
        let Some(http) = &mut self.http else { return Some(Ok(())) };
        if !http.is_asked && socket.can_send() {
            // There is room for all of it.
            http.is_asked = socket.send_slice(&http.request).is_ok();
        }
        while socket.can_recv() && http.answer.len() < LINE_MAX {
            let mut bytes = [0; LINE_MAX];
            let Ok(read) = socket.recv_slice(&mut bytes) else { break };
            http.answer.extend(&bytes[..read]);
        }
        let status = http.status();
        if status.is_none() && !socket.may_recv() {
            return Some(Err(Failure::Closed));
        }
        status
    }

    fn flush(&mut self, target: &Target, out: &mut Vec<Vec<u8>>) {
        while let Some(packet) = self.stack.transmit() {
            out.push(wrap(target.member_mac, target.source_mac, &packet));
        }
    }
}

impl Http {
    fn new(method: &str, path: &str, host: &str, expected: Vec<(u16, u16)>) -> Result<Self, Failure> {
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_plain(method) || !is_plain(path) || !path.starts_with('/') || !is_plain(host) {
            return Err(Failure::Impossible("method, path or host of the check cannot be sent"));
        }
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: vrouter\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        Ok(Self { request: request.into_bytes(), expected, is_asked: false, answer: Vec::new() })
    }

    /// Whether the status is one that is expected, once its line is there.
    fn status(&self) -> Option<Result<(), Failure>> {
        let Some(end) = self.answer.iter().position(|&byte| byte == b'\n') else {
            return (self.answer.len() >= LINE_MAX).then_some(Err(Failure::NotHttp));
        };
        // As if there were no headers.
        let line = [&self.answer[..=end], b"\r\n"].concat();
        let mut response = httparse::Response::new(&mut []);
        let status = match response.parse(&line) {
            Ok(_) => response.code,
            Err(_) => None,
        };
        let Some(status) = status else { return Some(Err(Failure::NotHttp)) };
        if self.expected.iter().any(|&(from, to)| (from..=to).contains(&status)) {
            return Some(Ok(()));
        }
        Some(Err(Failure::Status { status, expected: ranges(&self.expected) }))
    }
}

fn host_of(target: &Target, port: u16) -> String {
    std::net::SocketAddr::new(target.member, port).to_string()
}

fn ranges(expected: &[(u16, u16)]) -> String {
    let one = |&(from, to): &(u16, u16)| if from == to { from.to_string() } else { format!("{from}-{to}") };
    expected.iter().map(one).collect::<Vec<_>>().join(", ")
}
