//! One check of a member: what is sent, what an answer means. Without clock or sockets.
//!
//! A check by TCP ends with the handshake, one by HTTP with the status line; either is reset, so that the member keeps
//! nothing of it. Checksums of what comes are not verified: a frame that never was on a wire may have none yet.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use etherparse::{
    Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, IpNumber, NetSlice, PacketBuilder, PacketBuilderStep,
    SlicedPacket, TcpOptionElement, TcpSlice, TransportSlice, ip_number,
};

use super::machine::Outcome;
use crate::topology::model::{HealthCheck, HealthMonitor};

/// How long to wait for an answer before what was sent is sent again; each time twice as long.
const PATIENCE: Duration = Duration::from_millis(250);
const TTL: u8 = 64;
/// Of each echo: their identifiers differ.
const SEQUENCE: u16 = 1;
/// What the smallest IPv6 packet carries.
const MSS: u16 = 1220;
/// So much that no frame is larger than what the data path hands over, even if the member's kernel leaves cutting to its
/// network card.
const WINDOW: u16 = 1800;
/// As much of a status line as says the status: `HTTP/1.1 200`.
const STATUS_LINE: usize = 12;

/// Between whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    pub source: IpAddr,
    pub source_mac: [u8; 6],
    pub address: IpAddr,
    pub mac: [u8; 6],
    /// The port that asks, or the echo's identifier.
    pub number: u16,
}

/// What a port sent to a router's address, as far as it may be an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard<'f> {
    source: IpAddr,
    destination: IpAddr,
    /// The port that asked, or the echo's identifier.
    pub number: u16,
    what: Answer<'f>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer<'f> {
    Segment(Segment<'f>),
    Echo { sequence: u16 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment<'f> {
    source_port: u16,
    sequence: u32,
    acknowledged: Option<u32>,
    syn: bool,
    fin: bool,
    rst: bool,
    payload: &'f [u8],
}

/// See the module.
#[derive(Debug)]
pub struct Probe {
    reach: Reach,
    what: What,
    /// When what was sent is sent again.
    repeat: Instant,
    patience: Duration,
}

#[derive(Debug)]
enum What {
    Ping,
    Tcp(Connection),
}

#[derive(Debug)]
struct Connection {
    port: u16,
    /// The first sequence number.
    initial: u32,
    /// What is asked once it is established: nothing, or an HTTP request.
    request: Option<Request>,
    /// The next sequence number of the other side, once it is established.
    next: Option<u32>,
    /// The other side keeps nothing that has to be reset.
    is_over: bool,
}

#[derive(Debug)]
struct Request {
    text: Vec<u8>,
    expected: Vec<(u16, u16)>,
    answer: Vec<u8>,
    /// The other side has it.
    is_acknowledged: bool,
}

impl Probe {
    /// Begins a check, with what is to be sent.
    pub fn start(reach: Reach, port: u16, monitor: &HealthMonitor, now: Instant) -> (Self, Vec<Vec<u8>>) {
        let request = (monitor.kind == HealthCheck::Http).then(|| Request {
            text: request(monitor, SocketAddr::new(reach.address, port)),
            expected: monitor.expected_codes.clone(),
            answer: Vec::new(),
            is_acknowledged: false,
        });
        let what = match monitor.kind {
            HealthCheck::Ping => What::Ping,
            HealthCheck::Tcp | HealthCheck::Http => {
                // Nobody else can guess it.
                let initial = RandomState::new().hash_one((reach.number, now)) as u32;
                What::Tcp(Connection { port, initial, request, next: None, is_over: false })
            }
        };
        let mut probe = Self { reach, what, repeat: now, patience: PATIENCE };
        let frames = probe.tick(now);
        (probe, frames)
    }

    /// When something is to be sent again.
    pub fn due(&self) -> Option<Instant> {
        Some(self.repeat)
    }

    /// Sends it again, if it is time.
    pub fn tick(&mut self, now: Instant) -> Vec<Vec<u8>> {
        if now < self.repeat {
            return Vec::new();
        }
        self.repeat = now + self.patience;
        self.patience *= 2;
        match &self.what {
            What::Ping => self.reach.echo(),
            What::Tcp(connection) => match (&connection.next, &connection.request) {
                (None, _) => self.reach.segment(connection.port, connection.initial, None, Flags::Syn, &[]),
                (Some(next), Some(request)) if !request.is_acknowledged => {
                    let first = connection.initial.wrapping_add(1);
                    self.reach.segment(connection.port, first, Some(*next), Flags::Push, &request.text)
                }
                _ => None,
            },
        }
        .into_iter()
        .collect()
    }

    /// Takes what may be an answer: what is to be sent then, and what the check found, if that ends it.
    pub fn hear(&mut self, heard: &Heard<'_>, now: Instant) -> (Vec<Vec<u8>>, Option<Outcome>) {
        let nothing = (Vec::new(), None);
        let (reach, what) = (self.reach, &mut self.what);
        if (heard.source, heard.destination, heard.number) != (reach.address, reach.source, reach.number) {
            return nothing;
        }
        match (what, &heard.what) {
            (What::Ping, Answer::Echo { sequence: SEQUENCE }) => (Vec::new(), Some(Outcome::Good)),
            (What::Tcp(connection), Answer::Segment(segment)) if segment.source_port == connection.port => {
                let (frames, outcome, asks) = connection.hear(reach, segment);
                if asks {
                    (self.repeat, self.patience) = (now + PATIENCE, PATIENCE * 2);
                }
                (frames, outcome)
            }
            _ => nothing,
        }
    }

    /// Why a check has failed to which the answer did not come in time.
    pub fn silence(&self) -> String {
        match &self.what {
            What::Ping => "no answer to the ping",
            What::Tcp(Connection { next: None, .. }) => "no answer by TCP",
            What::Tcp(_) => "no answer by HTTP",
        }
        .to_owned()
    }

    /// The check ended: what is to be sent then.
    pub fn leave(&mut self) -> Option<Vec<u8>> {
        let What::Tcp(connection) = &mut self.what else { return None };
        if std::mem::replace(&mut connection.is_over, true) {
            return None;
        }
        let asked = connection.request.as_ref().filter(|_| connection.next.is_some());
        let length = asked.map_or(0, |request| request.text.len() as u32);
        let next = connection.initial.wrapping_add(1).wrapping_add(length);
        self.reach.segment(connection.port, next, connection.next, Flags::Rst, &[])
    }
}

impl Connection {
    /// As [`Probe::hear`], and whether something was asked that has to be asked again if there is no answer.
    fn hear(&mut self, reach: Reach, segment: &Segment<'_>) -> (Vec<Vec<u8>>, Option<Outcome>, bool) {
        let first = self.initial.wrapping_add(1);
        let nothing = (Vec::new(), None, false);
        let Some(next) = self.next else {
            return match segment.acknowledged {
                Some(acknowledged) if acknowledged == first && segment.rst => {
                    self.is_over = true;
                    (Vec::new(), Some(Outcome::Bad("connection refused".to_owned())), false)
                }
                Some(acknowledged) if acknowledged == first && segment.syn => {
                    let next = segment.sequence.wrapping_add(1);
                    self.next = Some(next);
                    match &self.request {
                        None => (Vec::new(), Some(Outcome::Good), false),
                        Some(request) => {
                            let push =
                                reach.segment(self.port, first, Some(next), Flags::Push, &request.text);
                            (push.into_iter().collect(), None, true)
                        }
                    }
                }
                // Of a connection that had these ports before (RFC 9293, 3.10.7.3): it ends, and the next try succeeds.
                Some(acknowledged) if !segment.rst => {
                    let reset = reach.segment(self.port, acknowledged, None, Flags::Rst, &[]);
                    (reset.into_iter().collect(), None, false)
                }
                _ => nothing,
            };
        };
        let Some(request) = &mut self.request else { return nothing };
        let after = first.wrapping_add(request.text.len() as u32);
        if segment.rst {
            // Only what is exactly in turn (RFC 5961, 3.2).
            if segment.sequence != next {
                return nothing;
            }
            self.is_over = true;
            return (Vec::new(), Some(Outcome::Bad("connection reset".to_owned())), false);
        }
        if segment.syn {
            return nothing;
        }
        request.is_acknowledged |= segment.acknowledged == Some(after);
        // What of it is new, if nothing is missing before it.
        let known = next.wrapping_sub(segment.sequence) as usize;
        if known <= segment.payload.len() {
            let news = &segment.payload[known..];
            let room = STATUS_LINE - request.answer.len();
            request.answer.extend(&news[..news.len().min(room)]);
            self.next = Some(next.wrapping_add(news.len() as u32));
        }
        if let Some(outcome) = judge(&request.answer, &request.expected) {
            return (Vec::new(), Some(outcome), false);
        }
        if segment.fin && known <= segment.payload.len() {
            return (Vec::new(), Some(Outcome::Bad("closed without an answer by HTTP".to_owned())), false);
        }
        let frames = if segment.payload.is_empty() {
            None
        } else {
            reach.segment(self.port, after, self.next, Flags::Ack, &[])
        };
        (frames.into_iter().collect(), None, false)
    }
}

/// What the beginning of an answer means, if it is enough to tell.
fn judge(answer: &[u8], expected: &[(u16, u16)]) -> Option<Outcome> {
    const PROTOCOL: &[u8] = b"HTTP/1.";
    let no_http = Some(Outcome::Bad("answers, but not by HTTP".to_owned()));
    let length = answer.len().min(PROTOCOL.len());
    if answer[..length] != PROTOCOL[..length] {
        return no_http;
    }
    let line: &[u8; STATUS_LINE] = answer.try_into().ok()?;
    let code = std::str::from_utf8(&line[9..]).ok().filter(|code| code.bytes().all(|it| it.is_ascii_digit()));
    match code.and_then(|code| code.parse::<u16>().ok()) {
        Some(code) if line[8] == b' ' => {
            let is_good = expected.iter().any(|&(low, high)| (low..=high).contains(&code));
            Some(if is_good { Outcome::Good } else { Outcome::Bad(format!("HTTP {code}")) })
        }
        _ => no_http,
    }
}

fn request(monitor: &HealthMonitor, to: SocketAddr) -> Vec<u8> {
    format!(
        "{} {} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: vrouter-health/{}\r\nAccept: */*\r\nConnection: close\r\n\
         Content-Length: 0\r\n\r\n",
        monitor.http_method,
        monitor.url_path,
        env!("CARGO_PKG_VERSION")
    )
    .into_bytes()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flags {
    Syn,
    Ack,
    Push,
    Rst,
}

impl Reach {
    fn ip(&self) -> Option<PacketBuilderStep<etherparse::IpHeaders>> {
        let ethernet = PacketBuilder::ethernet2(self.source_mac, self.mac);
        let headers = match (self.source, self.address) {
            (IpAddr::V4(source), IpAddr::V4(address)) => {
                let header =
                    etherparse::Ipv4Header::new(0, TTL, ip_number::TCP, source.octets(), address.octets());
                etherparse::IpHeaders::Ipv4(header.ok()?, etherparse::Ipv4Extensions::default())
            }
            (IpAddr::V6(source), IpAddr::V6(address)) => {
                let header = etherparse::Ipv6Header {
                    source: source.octets(),
                    destination: address.octets(),
                    hop_limit: TTL,
                    next_header: IpNumber::TCP,
                    ..etherparse::Ipv6Header::default()
                };
                etherparse::IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default())
            }
            _ => return None,
        };
        Some(ethernet.ip(headers))
    }

    fn segment(
        &self,
        port: u16,
        sequence: u32,
        acknowledged: Option<u32>,
        flags: Flags,
        payload: &[u8],
    ) -> Option<Vec<u8>> {
        let mut builder = self.ip()?.tcp(self.number, port, sequence, WINDOW);
        if let Some(acknowledged) = acknowledged {
            builder = builder.ack(acknowledged);
        }
        builder = match flags {
            Flags::Syn => builder.syn().options(&[TcpOptionElement::MaximumSegmentSize(MSS)]).ok()?,
            Flags::Ack => builder,
            Flags::Push => builder.psh(),
            Flags::Rst => builder.rst(),
        };
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut frame, payload).ok()?;
        Some(frame)
    }

    fn echo(&self) -> Option<Vec<u8>> {
        const PAYLOAD: &[u8] = b"vrouter health check";
        let (id, sequence) = (self.number, SEQUENCE);
        let mut frame = Vec::new();
        let ip = self.ip()?;
        match self.address {
            IpAddr::V4(_) => ip.icmpv4_echo_request(id, sequence).write(&mut frame, PAYLOAD),
            IpAddr::V6(_) => ip.icmpv6_echo_request(id, sequence).write(&mut frame, PAYLOAD),
        }
        .ok()?;
        Some(frame)
    }
}

impl<'f> Heard<'f> {
    /// Reads a frame.
    pub fn read(frame: &'f [u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let (source, destination): (IpAddr, IpAddr) = match packet.net.as_ref()? {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into())
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into())
            }
            _ => return None,
        };
        let (number, what) = match packet.transport? {
            TransportSlice::Tcp(tcp) => (tcp.destination_port(), Answer::Segment(segment(tcp))),
            TransportSlice::Icmpv4(icmp) => reply4(&icmp)?,
            TransportSlice::Icmpv6(icmp) => reply6(&icmp)?,
            TransportSlice::Udp(_) => return None,
            _ => return None,
        };
        Some(Self { source, destination, number, what })
    }

    /// A reset for who begins a connection, which nobody is there to take. `frame`: what was read.
    pub fn refusal(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let Answer::Segment(segment) = &self.what else { return None };
        if !segment.syn || segment.rst || segment.acknowledged.is_some() {
            return None;
        }
        let (&ours, rest) = frame.split_first_chunk::<6>()?;
        let &theirs = rest.first_chunk::<6>()?;
        // A router speaks from no address of a group.
        if (ours[0] | theirs[0]) & 1 != 0 {
            return None;
        }
        let back = Reach {
            source: self.destination,
            source_mac: ours,
            address: self.source,
            mac: theirs,
            number: self.number,
        };
        let next = segment.sequence.wrapping_add(1).wrapping_add(segment.payload.len() as u32);
        back.segment(segment.source_port, 0, Some(next), Flags::Rst, &[])
    }
}

fn segment<'f>(tcp: TcpSlice<'f>) -> Segment<'f> {
    Segment {
        source_port: tcp.source_port(),
        sequence: tcp.sequence_number(),
        acknowledged: tcp.ack().then(|| tcp.acknowledgment_number()),
        syn: tcp.syn(),
        fin: tcp.fin(),
        rst: tcp.rst(),
        payload: tcp.payload(),
    }
}

fn reply4(icmp: &Icmpv4Slice<'_>) -> Option<(u16, Answer<'static>)> {
    match icmp.icmp_type() {
        Icmpv4Type::EchoReply(echo) => Some((echo.id, Answer::Echo { sequence: echo.seq })),
        _ => None,
    }
}

fn reply6(icmp: &Icmpv6Slice<'_>) -> Option<(u16, Answer<'static>)> {
    match icmp.icmp_type() {
        Icmpv6Type::EchoReply(echo) => Some((echo.id, Answer::Echo { sequence: echo.seq })),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests;
