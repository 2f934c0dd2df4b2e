//! A check against a member that answers as it is told to.

use proptest::prelude::*;

use super::*;

const PORT: u16 = 8080;
/// The member's first sequence number: it wraps soon.
const THEIRS: u32 = u32::MAX - 2;

fn reach(ipv6: bool) -> Reach {
    let (source, address) = if ipv6 { ("fd00:1::1", "fd00:1::11") } else { ("10.0.1.1", "10.0.1.11") };
    Reach {
        source: source.parse().expect("an address"),
        source_mac: [2, 0, 0, 0, 0, 1],
        address: address.parse().expect("an address"),
        mac: [2, 0, 0, 0, 0, 2],
        number: 50000,
    }
}

/// The way back.
fn back(ipv6: bool) -> Reach {
    let Reach { source, source_mac, address, mac, .. } = reach(ipv6);
    Reach { source: address, source_mac: mac, address: source, mac: source_mac, number: PORT }
}

/// Checks each second, and believes the first outcome.
pub fn monitor(kind: HealthCheck) -> HealthMonitor {
    HealthMonitor {
        kind,
        delay_ms: 1000,
        timeout_ms: 1000,
        max_retries: 1,
        max_retries_down: 1,
        http_method: "GET".to_owned(),
        url_path: "/health?a=b".to_owned(),
        expected_codes: vec![(200, 200), (300, 302)],
        monitor_port: None,
        line: 0,
    }
}

/// What a segment says: flags as letters, numbers relative to where each side began, payload.
fn said(frame: &[u8]) -> (String, u32, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a packet");
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
    let flags = [(tcp.syn(), 'S'), (tcp.ack(), 'A'), (tcp.psh(), 'P'), (tcp.rst(), 'R')];
    let flags = flags.iter().filter(|(is, _)| *is).map(|(_, letter)| *letter).collect();
    (flags, tcp.sequence_number(), tcp.payload().to_vec())
}

struct Member {
    ipv6: bool,
    /// The next number of the one who asks.
    next: u32,
}

impl Member {
    fn answer(&self, sequence: u32, flags: Flags, acknowledged: Option<u32>, payload: &[u8]) -> Vec<u8> {
        let back = back(self.ipv6);
        back.segment(reach(self.ipv6).number, sequence, acknowledged, flags, payload).expect("a frame")
    }

    /// Takes the SYN, and answers it.
    fn shake(&mut self, probe: &mut Probe, syn: &[u8], now: Instant) -> (Vec<Vec<u8>>, Option<Outcome>) {
        let (flags, sequence, _) = said(syn);
        assert_eq!(flags, "S");
        self.next = sequence.wrapping_add(1);
        let answer = self.answer(THEIRS, Flags::Syn, Some(self.next), &[]);
        probe.hear(&Heard::read(&answer).expect("an answer"), now)
    }
}

/// What a member answers to a ping over IPv4.
pub fn reply((ifindex, request): &(u32, Vec<u8>)) -> (u32, Vec<u8>) {
    let mut frame = request.clone();
    frame[..12].rotate_left(6);
    frame[26..34].rotate_left(4);
    // Nobody looks at the checksum.
    frame[34] = 0;
    (*ifindex, frame)
}

fn begin(kind: HealthCheck, ipv6: bool) -> (Probe, Vec<u8>, Member, Instant) {
    let now = Instant::now();
    let (probe, mut frames) = Probe::start(reach(ipv6), PORT, &monitor(kind), now);
    assert_eq!(frames.len(), 1);
    (probe, frames.remove(0), Member { ipv6, next: 0 }, now)
}

/// An HTTP check to which these pieces are the answer, each in a segment.
fn asked(pieces: &[&[u8]], ipv6: bool) -> Option<Outcome> {
    let (mut probe, syn, mut member, now) = begin(HealthCheck::Http, ipv6);
    let (frames, outcome) = member.shake(&mut probe, &syn, now);
    assert_eq!((frames.len(), outcome), (1, None));
    let (flags, _, request) = said(&frames[0]);
    assert_eq!(flags, "AP");
    let text = String::from_utf8(request).expect("text");
    assert!(text.starts_with("GET /health?a=b HTTP/1.1\r\nHost: "), "{text}");
    assert!(text.ends_with("\r\n\r\n"), "{text}");
    member.next = member.next.wrapping_add(text.len() as u32);
    let mut sequence = THEIRS.wrapping_add(1);
    for piece in pieces {
        let answer = member.answer(sequence, Flags::Push, Some(member.next), piece);
        let (_, outcome) = probe.hear(&Heard::read(&answer).expect("an answer"), now);
        if outcome.is_some() {
            let (flags, ..) = said(&probe.leave().expect("a reset"));
            assert_eq!(flags, "AR");
            return outcome;
        }
        sequence = sequence.wrapping_add(piece.len() as u32);
    }
    None
}

fn bad(why: &str) -> Option<Outcome> {
    Some(Outcome::Bad(why.to_owned()))
}

#[test]
fn a_connection_that_is_accepted_is_good_and_leaves_nothing() {
    for ipv6 in [false, true] {
        let (mut probe, syn, mut member, now) = begin(HealthCheck::Tcp, ipv6);
        let (frames, outcome) = member.shake(&mut probe, &syn, now);
        assert_eq!((frames.len(), outcome), (0, Some(Outcome::Good)));
        let (flags, sequence, _) = said(&probe.leave().expect("a reset"));
        assert_eq!((flags.as_str(), sequence), ("AR", member.next));
        assert!(probe.leave().is_none());
    }
}

#[test]
fn a_connection_that_is_refused_is_bad_at_once() {
    let (mut probe, syn, member, now) = begin(HealthCheck::Tcp, false);
    let (_, sequence, _) = said(&syn);
    let other = member.answer(0, Flags::Rst, Some(sequence), &[]);
    assert_eq!(probe.hear(&Heard::read(&other).expect("read"), now).1, None, "of another connection");
    let refusal = member.answer(0, Flags::Rst, Some(sequence.wrapping_add(1)), &[]);
    assert_eq!(probe.hear(&Heard::read(&refusal).expect("read"), now).1, bad("connection refused"));
    assert!(probe.leave().is_none());
}

#[test]
fn what_is_lost_is_sent_again_ever_more_slowly() {
    let (mut probe, syn, mut member, now) = begin(HealthCheck::Http, false);
    let mut at = now;
    for wait in [250, 500, 1000] {
        at += Duration::from_millis(wait);
        assert_eq!(probe.due(), Some(at));
        assert!(probe.tick(at - Duration::from_millis(1)).is_empty());
        assert_eq!(probe.tick(at), std::slice::from_ref(&syn));
    }
    assert_eq!(probe.silence(), "no answer by TCP");
    let (request, _) = member.shake(&mut probe, &syn, at);
    assert_eq!(probe.tick(at + Duration::from_millis(250)), request, "the request, too");
    assert_eq!(probe.silence(), "no answer by HTTP");
    // Once the member has it, nothing is asked again.
    let next = member.next.wrapping_add(said(&request[0]).2.len() as u32);
    let known = member.answer(THEIRS.wrapping_add(1), Flags::Ack, Some(next), &[]);
    assert!(probe.hear(&Heard::read(&known).expect("read"), at).0.is_empty());
    assert!(probe.tick(at + Duration::from_secs(3)).is_empty());
}

#[test]
fn the_status_decides() {
    for (answer, outcome) in [
        (&b"HTTP/1.1 200 OK\r\n"[..], Some(Outcome::Good)),
        (b"HTTP/1.0 302 Found\r\n", Some(Outcome::Good)),
        (b"HTTP/1.1 200\r\n", Some(Outcome::Good)),
        (b"HTTP/1.1 503 Sorry\r\n", bad("HTTP 503")),
        (b"HTTP/1.1 303 Other\r\n", bad("HTTP 303")),
        (b"HTTP/1.1 2x0 OK\r\n", bad("answers, but not by HTTP")),
        (b"HTTP/1.12200 \r\n", bad("answers, but not by HTTP")),
        (b"SSH-2.0-OpenSSH\r\n", bad("answers, but not by HTTP")),
        (b"X", bad("answers, but not by HTTP")),
        (b"HTTP/1.1 20", None),
        (b"", None),
    ] {
        for ipv6 in [false, true] {
            assert_eq!(asked(&[answer], ipv6), outcome, "{}", String::from_utf8_lossy(answer));
        }
        let bytes: Vec<&[u8]> = answer.chunks(1).collect();
        assert_eq!(asked(&bytes, false), outcome, "byte by byte");
    }
}

#[test]
fn what_is_missing_is_waited_for_and_what_came_twice_counts_once() {
    let (mut probe, syn, mut member, now) = begin(HealthCheck::Http, false);
    member.shake(&mut probe, &syn, now);
    let first = THEIRS.wrapping_add(1);
    let mut hear = |offset: u32, flags: Flags, payload: &[u8]| {
        let answer = member.answer(first.wrapping_add(offset), flags, Some(member.next), payload);
        probe.hear(&Heard::read(&answer).expect("an answer"), now).1
    };
    assert_eq!(hear(9, Flags::Push, b"200 OK"), None, "what is before it is missing");
    assert_eq!(hear(0, Flags::Push, b"HTTP/1."), None);
    assert_eq!(hear(0, Flags::Push, b"HTTP/1."), None);
    assert_eq!(hear(1, Flags::Rst, b""), None, "a reset that is not in turn");
    assert_eq!(hear(3, Flags::Push, b"P/1.1 2"), None);
    assert_eq!(hear(10, Flags::Push, b"00 "), Some(Outcome::Good));
}

#[test]
fn the_rest_of_an_old_connection_is_ended_first() {
    let (mut probe, _, member, now) = begin(HealthCheck::Tcp, false);
    let challenge = member.answer(77, Flags::Ack, Some(1234), &[]);
    let (frames, outcome) = probe.hear(&Heard::read(&challenge).expect("read"), now);
    assert_eq!(outcome, None);
    let (flags, sequence, _) = said(&frames[0]);
    assert_eq!((flags.as_str(), sequence), ("R", 1234));
}

#[test]
fn an_echo_is_answered_by_its_own_reply_alone() {
    for ipv6 in [false, true] {
        let now = Instant::now();
        let (mut probe, frames) = Probe::start(reach(ipv6), 0, &monitor(HealthCheck::Ping), now);
        assert_eq!(Heard::read(&frames[0]), None, "a request is no reply");
        let reply = |number: u16, sequence: u16| {
            let ip = back(ipv6).ip().expect("addresses");
            let mut frame = Vec::new();
            let written = if ipv6 {
                ip.icmpv6_echo_reply(number, sequence).write(&mut frame, &[])
            } else {
                ip.icmpv4_echo_reply(number, sequence).write(&mut frame, &[])
            };
            written.expect("a frame");
            frame
        };
        for (number, sequence, outcome) in
            [(50001, 1, None), (50000, 2, None), (50000, 1, Some(Outcome::Good))]
        {
            let frame = reply(number, sequence);
            let heard = Heard::read(&frame).expect("a reply");
            assert_eq!(probe.hear(&heard, now).1, outcome);
        }
        assert!(probe.leave().is_none());
    }
}

proptest! {
    /// Whatever a workload sends, a check says nothing worse of it than that it is bad.
    #[test]
    fn any_frame_is_taken(
        bytes in prop::collection::vec(any::<u8>(), 0..120),
        sequence in any::<u32>(), acknowledged in any::<u32>(), flags in any::<u8>(),
        payload in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let (mut probe, syn, mut member, now) = begin(HealthCheck::Http, false);
        if let Some(heard) = Heard::read(&bytes) {
            probe.hear(&heard, now);
        }
        let mut frame = member.answer(sequence, Flags::Push, Some(acknowledged), &payload);
        frame[47] = flags;
        for established in [false, true] {
            if established {
                member.shake(&mut probe, &syn, now);
            }
            let near = member.answer(THEIRS.wrapping_add(1), Flags::Push, Some(member.next), &payload);
            for frame in [&frame, &near] {
                if let Some(heard) = Heard::read(frame) {
                    probe.hear(&heard, now);
                }
            }
        }
        probe.tick(now + Duration::from_secs(9));
        probe.leave();
    }
}
