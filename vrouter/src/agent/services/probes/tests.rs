//! Questions to members that are stacks themselves, with a clock that is moved by hand.

use super::*;
use crate::agent::services::{frame::wrap, stack::Stack};

const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MEMBER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const SECOND: Duration = Duration::from_secs(1);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn target(member: &str) -> Target {
    let source = if member.contains(':') { ip("fd00::1") } else { ip("10.0.0.1") };
    Target { ifindex: 7, source, source_mac: ROUTER_MAC, member: ip(member), member_mac: MEMBER_MAC }
}

fn http(expected: &[(u16, u16)]) -> Check {
    Check::Http {
        port: 80,
        method: "GET".to_owned(),
        path: "/healthy?x=1".to_owned(),
        host: None,
        expected: expected.to_vec(),
    }
}

/// A member that serves what it is told to on port 80, or accepts and is silent.
struct Member {
    stack: Stack,
    handle: smoltcp::iface::SocketHandle,
    answer: Option<&'static str>,
    asked: Vec<u8>,
}

impl Member {
    fn new(address: &str, answer: Option<&'static str>, now: Instant) -> Self {
        let mut stack = Stack::new(&[ip(address)], 1500, 1, now);
        let handle = stack.listen(80, 4096);
        Self { stack, handle, answer, asked: Vec::new() }
    }

    fn work(&mut self, frames: Vec<Vec<u8>>, now: Instant) -> Vec<Vec<u8>> {
        for frame in frames {
            let received = Received::parse(&frame).expect("a frame in order");
            assert_eq!((received.to, received.from), (MEMBER_MAC, ROUTER_MAC));
            self.stack.receive(received.packet);
        }
        self.stack.poll(now);
        let socket = self.stack.socket(self.handle);
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), self.asked.extend(&*bytes))).expect("bytes");
        }
        if let Some(answer) = self.answer.filter(|_| self.asked.ends_with(b"\r\n\r\n")) {
            socket.send_slice(answer.as_bytes()).expect("room");
            socket.close();
            self.answer = None;
        }
        self.stack.poll(now);
        std::iter::from_fn(|| self.stack.transmit())
            .map(|packet| wrap(ROUTER_MAC, MEMBER_MAC, &packet))
            .collect()
    }
}

/// What the probes send now.
fn sent(probes: &mut Probes, now: Instant) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    probes.work(now, &mut |ifindex, frame| {
        assert_eq!(ifindex, 7);
        frames.push(frame.to_vec());
        Ok(())
    });
    frames
}

/// Runs a question and a member against each other, a millisecond for each way.
fn run(check: Check, member: &mut Member, address: &str, start: Instant) -> Result<Duration, Failure> {
    let mut probes = Probes::default();
    probes.start(1, target(address), check, 5 * SECOND, start);
    let mut now = start;
    loop {
        let frames = sent(&mut probes, now);
        now += Duration::from_millis(1);
        for frame in member.work(frames, now) {
            probes.receive(7, &frame);
        }
        now += Duration::from_millis(1);
        if let Some((id, result)) = probes.outcome() {
            assert_eq!((id, probes.len(), probes.next_due()), (1, 0, None));
            return result;
        }
        assert!(now < start + 10 * SECOND, "it never ends");
    }
}

#[test]
fn a_port_that_takes_connections_is_well_and_is_left_with_a_reset() {
    for address in ["10.0.0.9", "fd00::9"] {
        let start = Instant::now();
        let mut member = Member::new(address, None, start);
        let result = run(Check::Tcp { port: 80 }, &mut member, address, start);
        assert_eq!(result, Ok(Duration::from_millis(2)), "{address}");
        let state = member.stack.socket(member.handle).state();
        assert_eq!(state, smoltcp::socket::tcp::State::Closed, "{address}: nothing is left of it");
    }
}

#[test]
fn a_port_where_nothing_listens_refuses() {
    let start = Instant::now();
    let mut member = Member::new("10.0.0.9", None, start);
    let result = run(Check::Tcp { port: 81 }, &mut member, "10.0.0.9", start);
    assert_eq!(result, Err(Failure::Refused { port: 81 }));
}

#[test]
fn a_status_counts() {
    for (answer, expected, result) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", &[(200, 200)][..], Ok(())),
        ("HTTP/1.0 204 No Content\n\n", &[(200, 200), (202, 204)], Ok(())),
        ("HTTP/1.1 503 Busy\r\n\r\n", &[(200, 299), (301, 301)], Err("status 503, expected 200-299, 301")),
        ("220 mail.example ESMTP\r\n", &[(200, 299)], Err("the answer is no HTTP")),
        ("HTTP/1.1 2", &[(200, 299)], Err("the connection ended before a status came")),
    ] {
        let start = Instant::now();
        let mut member = Member::new("10.0.0.9", Some(answer), start);
        let got = run(http(expected), &mut member, "10.0.0.9", start);
        assert_eq!(got.map(|_| ()).map_err(|failure| failure.to_string()), result.map_err(str::to_owned));
        let asked = String::from_utf8_lossy(&member.asked);
        assert!(asked.starts_with("GET /healthy?x=1 HTTP/1.1\r\nHost: 10.0.0.9:80\r\n"), "{asked}");
    }
}

#[test]
fn who_connects_and_says_nothing_is_silent() {
    let start = Instant::now();
    let mut member = Member::new("10.0.0.9", None, start);
    let result = run(http(&[(200, 200)]), &mut member, "10.0.0.9", start);
    assert_eq!(result, Err(Failure::Silent { after: 5 * SECOND }));
}

#[test]
fn without_an_answer_the_time_runs_out() {
    for check in [Check::Tcp { port: 80 }, http(&[]), Check::Ping] {
        let (start, mut probes) = (Instant::now(), Probes::default());
        probes.start(1, target("10.0.0.9"), check.clone(), 2 * SECOND, start);
        assert_eq!(sent(&mut probes, start).len(), 1, "{check:?}");
        let due = probes.next_due().expect("a time");
        assert!(due > start && due <= start + 2 * SECOND);
        sent(&mut probes, start + 2 * SECOND - Duration::from_millis(1));
        assert_eq!(probes.outcome(), None, "{check:?}");
        sent(&mut probes, start + 2 * SECOND);
        assert_eq!(probes.outcome(), Some((1, Err(Failure::TimedOut { after: 2 * SECOND }))), "{check:?}");
        assert_eq!(probes.next_due(), None);
    }
}

#[test]
fn a_ping_is_answered_by_its_own_answer() {
    for address in ["10.0.0.9", "fd00::9"] {
        let (start, mut probes) = (Instant::now(), Probes::default());
        probes.start(1, target(address), Check::Ping, SECOND, start);
        let frames = sent(&mut probes, start);
        let request = Received::parse(&frames[0]).expect("a frame in order");
        let mut reply = request.packet.to_vec();
        let (at, length) =
            (request.packet.len() - request.payload.len(), if address.contains(':') { 16 } else { 4 });
        // Addresses stand last in both headers.
        reply.copy_within(at - 2 * length..at - length, at - length);
        reply[at - 2 * length..at - length].copy_from_slice(&request.packet[at - length..at]);
        reply[at] = if length == 16 { 129 } else { 0 };
        if length == 4 {
            // The same checksum: the same bytes.
            assert_eq!(
                u16::from_be_bytes([reply[10], reply[11]]),
                u16::from_be_bytes([request.packet[10], request.packet[11]])
            );
        }
        for at in [at, at + 4, at + 6, at + 8] {
            let mut other = reply.clone();
            other[at] ^= 0x40;
            assert!(!probes.receive(7, &wrap(ROUTER_MAC, MEMBER_MAC, &other)), "{address}: byte {at}");
        }
        assert!(!probes.receive(8, &wrap(ROUTER_MAC, MEMBER_MAC, &reply)), "{address}: another interface");
        assert!(probes.receive(7, &wrap(ROUTER_MAC, MEMBER_MAC, &reply)), "{address}");
        sent(&mut probes, start + Duration::from_millis(3));
        assert_eq!(probes.outcome(), Some((1, Ok(Duration::from_millis(3)))));
    }
}

#[test]
fn a_thousand_members_are_asked_at_once_and_each_answers_for_itself() {
    let (start, mut probes) = (Instant::now(), Probes::default());
    let address = |i: u64| format!("10.0.{}.{}", 1 + i / 250, 1 + i % 250);
    let mut members = HashMap::new();
    for i in 0..1000 {
        probes.start(i, target(&address(i)), Check::Tcp { port: 80 }, SECOND, start);
        // Every third is down.
        if i % 3 > 0 {
            members.insert(ip(&address(i)), Member::new(&address(i), None, start));
        }
    }
    let mut now = start;
    while !probes.is_empty() {
        for frame in sent(&mut probes, now) {
            let member = Received::parse(&frame).expect("a frame in order").dst;
            let Some(member) = members.get_mut(&member) else { continue };
            for answer in member.work(vec![frame], now) {
                probes.receive(7, &answer);
            }
        }
        now += Duration::from_millis(10);
        assert!(now < start + 2 * SECOND);
    }
    let outcomes: HashMap<u64, _> = std::iter::from_fn(|| probes.outcome()).collect();
    assert_eq!(outcomes.len(), 1000);
    for (id, outcome) in outcomes {
        assert_eq!(outcome.is_ok(), id % 3 > 0, "{id}: {outcome:?}");
    }
}

#[test]
fn what_cannot_be_asked_says_why() {
    let line_break = Check::Http {
        port: 80,
        method: "GET".to_owned(),
        path: "/\r\nX: y".to_owned(),
        host: None,
        expected: vec![],
    };
    let mixed = Target { source: ip("fd00::1"), ..target("10.0.0.9") };
    for (target, check, words) in [
        (target("10.0.0.9"), line_break, "cannot be sent"),
        (target("10.0.0.9"), Check::Tcp { port: 0 }, "port"),
        (mixed, Check::Ping, "family"),
    ] {
        let mut probes = Probes::default();
        probes.start(5, target, check, SECOND, Instant::now());
        let Some((5, Err(failure))) = probes.outcome() else { panic!("asked: {words}") };
        assert!(failure.to_string().contains(words), "{failure}");
        assert!(probes.is_empty());
    }
    let mut probes = Probes::default();
    probes.start(1, target("10.0.0.9"), Check::Ping, SECOND, Instant::now());
    probes.work(Instant::now(), &mut |_, _| Err(io::Error::from_raw_os_error(libc::ENETDOWN)));
    let Some((1, Err(failure))) = probes.outcome() else { panic!("sent") };
    assert_eq!(failure.to_string(), "cannot be sent: Network is down (os error 100)");
}
