//! A packet as it is written down, and as a frame.
//!
//! ```text
//! tcp 10.0.1.10:40000 > 10.0.2.20:5432 [flags SA] [ttl 64] [length 100]
//! udp 10.0.1.10 > [fd00:2::14]:53         without a source port: 40000
//! sctp 10.0.1.10:40000 > 10.0.2.20:5060
//! icmp > 8.8.8.8 [type 8] [code 0] [id 7] without a source: the port's own address
//! ip gre 10.0.1.10 > 10.0.2.20            any other protocol, by name or number
//! arp 10.0.1.1                            who has it?
//! frame 020000...                         hexadecimal, from the Ethernet header on
//! ```
//!
//! and `from MAC`, `to MAC` behind any of them: without, what a workload would write.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, bail};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, IpNumber, PacketBuilder, PacketBuilderStep, TcpHeader,
};

use crate::{connections::filter::parse_protocol, topology::model::Mac};

/// What a workload's kernel would have chosen.
const SOURCE_PORT: u16 = 40_000;
const ECHO_ID: u16 = 40_000;
const TTL: u8 = 64;
/// So that an encapsulated packet still fits what the kernel runs on trial.
const LENGTH_MAX: usize = 3000;

/// A packet as it was written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub what: Payload,
    pub from: Option<[u8; 6]>,
    pub to: Option<[u8; 6]>,
}

/// What is in the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// An IP packet.
    Ip(IpRequest),
    /// An ARP request for an address.
    Arp(Ipv4Addr),
    /// All of it.
    Frame(Vec<u8>),
}

/// An IP packet as it was written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpRequest {
    pub transport: Transport,
    pub src: Option<IpAddr>,
    pub dst: IpAddr,
    pub ttl: u8,
    /// Bytes behind the last header.
    pub length: usize,
}

/// What is in the IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, and its flags.
    Tcp { sport: u16, dport: u16, flags: u8 },
    /// UDP.
    Udp { sport: u16, dport: u16 },
    /// SCTP.
    Sctp { sport: u16, dport: u16 },
    /// ICMP of the packet's family.
    Icmp { kind: u8, code: u8, id: u16 },
    /// Another protocol.
    Other(u8),
}

impl Request {
    /// Reads the text.
    pub fn parse(text: &str) -> Result<Self> {
        let spaced = text.replace('>', " > ");
        let mut words: Vec<&str> = spaced.split_whitespace().collect();
        let (from, to) = (option(&mut words, "from")?, option(&mut words, "to")?);
        let mac = |text: Option<String>| -> Result<Option<[u8; 6]>> {
            let Some(text) = text else { return Ok(None) };
            let mac: Mac = text.parse().map_err(|_| anyhow::anyhow!("{text} is no hardware address"))?;
            Ok(Some(mac.0))
        };
        let (from, to) = (mac(from)?, mac(to)?);
        let what = match words.split_first() {
            None => bail!("the packet is empty: write for example 'tcp 10.0.1.10:40000 > 10.0.2.20:5432'"),
            Some((&"arp", rest)) => match rest {
                [address] | ["who-has", address] => Payload::Arp(
                    address.parse().with_context(|| format!("{address} is no IPv4 address to ask for"))?,
                ),
                _ => bail!("write 'arp ADDRESS'"),
            },
            Some((&"frame", rest)) => Payload::Frame(hexadecimal(&rest.concat())?),
            Some((_, _)) => Payload::Ip(ip(words)?),
        };
        Ok(Self { what, from, to })
    }

    /// The frame. `src`: the address it is sent from unless it says so itself, by family.
    pub fn frame(&self, from: [u8; 6], to: [u8; 6], src: IpAddr) -> Result<Vec<u8>> {
        let (from, to) = (self.from.unwrap_or(from), self.to.unwrap_or(to));
        let ip = match &self.what {
            Payload::Frame(bytes) => return Ok(bytes.clone()),
            Payload::Arp(target) => {
                let IpAddr::V4(own) = src else { bail!("a port without an IPv4 address asks nobody by ARP") };
                let arp = ArpPacket::new(
                    ArpHardwareId::ETHERNET,
                    EtherType::IPV4,
                    ArpOperation::REQUEST,
                    &from,
                    &own.octets(),
                    &[0; 6],
                    &target.octets(),
                )?;
                let builder = PacketBuilder::ethernet2(from, self.to.unwrap_or([0xff; 6])).arp(arp);
                let mut frame = Vec::with_capacity(builder.size());
                builder.write(&mut frame)?;
                return Ok(frame);
            }
            Payload::Ip(ip) => ip,
        };
        let src = ip.src.unwrap_or(src);
        let ethernet = PacketBuilder::ethernet2(from, to);
        let builder = match (src, ip.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet.ipv4(src.octets(), dst.octets(), ip.ttl),
            (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet.ipv6(src.octets(), dst.octets(), ip.ttl),
            _ => bail!("{src} and {} are of two families", ip.dst),
        };
        transport(builder, ip)
    }
}

fn transport(builder: PacketBuilderStep<etherparse::IpHeaders>, ip: &IpRequest) -> Result<Vec<u8>> {
    let payload = vec![0; ip.length];
    let mut frame = Vec::new();
    match ip.transport {
        Transport::Udp { sport, dport } => builder.udp(sport, dport).write(&mut frame, &payload)?,
        Transport::Tcp { sport, dport, flags } => {
            let mut header = TcpHeader::new(sport, dport, 1, 65_535);
            let has = |flag: u8| flags & flag != 0;
            (header.fin, header.syn, header.rst, header.psh) = (has(1), has(2), has(4), has(8));
            (header.ack, header.urg) = (has(16), has(32));
            builder.tcp_header(header).write(&mut frame, &payload)?;
        }
        Transport::Sctp { sport, dport } => {
            // The common header: ports, a tag and a checksum. The data path looks at the ports.
            let header = [sport.to_be_bytes(), dport.to_be_bytes(), [0, 1], [0; 2], [0; 2], [0; 2]].concat();
            builder.write(&mut frame, IpNumber::SCTP, &[header, payload].concat())?;
        }
        Transport::Icmp { kind, code, id } => {
            // An identifier and a sequence number, or what an error has there.
            let [high, low] = id.to_be_bytes();
            let rest = [high, low, 0, 1];
            if ip.dst.is_ipv6() {
                builder.icmpv6_raw(kind, code, rest).write(&mut frame, &payload)?;
            } else {
                builder.icmpv4_raw(kind, code, rest).write(&mut frame, &payload)?;
            }
        }
        Transport::Other(number) => builder.write(&mut frame, IpNumber(number), &payload)?,
    }
    Ok(frame)
}

/// Takes `NAME VALUE` out of the words.
fn option(words: &mut Vec<&str>, name: &str) -> Result<Option<String>> {
    let Some(at) = words.iter().position(|word| *word == name) else { return Ok(None) };
    let Some(value) = words.get(at + 1).map(|value| (*value).to_owned()) else {
        bail!("{name} says nothing: write '{name} VALUE'")
    };
    words.drain(at..at + 2);
    Ok(Some(value))
}

fn number<T: std::str::FromStr>(words: &mut Vec<&str>, name: &str, default: T) -> Result<T> {
    match option(words, name)? {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| anyhow::anyhow!("{name} {text}: no number that fits")),
    }
}

fn ip(mut words: Vec<&str>) -> Result<IpRequest> {
    let protocol = words.remove(0);
    let ttl = number(&mut words, "ttl", TTL)?;
    let length = number(&mut words, "length", 0_usize)?;
    if length > LENGTH_MAX {
        bail!("length {length}: at most {LENGTH_MAX} bytes can be traced");
    }
    let flags = option(&mut words, "flags")?;
    let kind = option(&mut words, "type")?;
    let code = number(&mut words, "code", 0)?;
    let id = number(&mut words, "id", ECHO_ID)?;
    let other = match protocol {
        "ip" if !words.is_empty() => Some(words.remove(0)),
        _ => None,
    };
    let (src, dst) = match words[..] {
        [src, ">", dst] => (Some(src), dst),
        [">", dst] => (None, dst),
        _ => bail!(
            "'{}' is not understood: write for example '{protocol} 10.0.1.10 > 10.0.2.20', with [flags ..], [ttl ..], \
             [length ..], [type ..], [id ..], [from MAC], [to MAC] behind it",
            words.join(" ")
        ),
    };
    let with_ports = matches!(protocol, "tcp" | "udp" | "sctp");
    let src = src.map(|text| end(text, with_ports)).transpose()?;
    let (dst, dport) = end(dst, with_ports)?;
    let port = |what| dport.with_context(|| format!("{what} needs a port to go to: write {dst}:PORT"));
    let sport = src.and_then(|(_, port)| port).unwrap_or(SOURCE_PORT);
    let transport = match protocol {
        "tcp" => Transport::Tcp { sport, dport: port("tcp")?, flags: tcp_flags(flags.as_deref())? },
        "udp" => Transport::Udp { sport, dport: port("udp")? },
        "icmp" | "icmpv6" => {
            let echo = if dst.is_ipv6() { 128 } else { 8 };
            let kind = kind.map_or(Ok(echo), |text| text.parse().with_context(|| format!("type {text}")))?;
            Transport::Icmp { kind, code, id }
        }
        "sctp" => Transport::Sctp { sport, dport: port("sctp")? },
        "ip" => {
            let text = other.unwrap_or("");
            let number = parse_protocol(text).map_err(|error| anyhow::anyhow!("'ip {text}': {error}"))?;
            Transport::Other(number)
        }
        _ => {
            let hint = if parse_protocol(protocol).is_ok() {
                format!("; write 'ip {protocol} ...'")
            } else {
                String::new()
            };
            bail!(
                "{protocol} is no protocol known here: tcp, udp, sctp, icmp, icmpv6, ip PROTOCOL, arp or frame{hint}"
            )
        }
    };
    Ok(IpRequest { transport, src: src.map(|(ip, _)| ip), dst, ttl, length })
}

/// `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.
fn end(text: &str, with_ports: bool) -> Result<(IpAddr, Option<u16>)> {
    let plain = text.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = plain.parse() {
        return Ok((ip, None));
    }
    let end: std::net::SocketAddr =
        text.parse().with_context(|| format!("{text} is neither an address nor ADDRESS:PORT"))?;
    if !with_ports {
        bail!("{text}: only tcp, udp and sctp have ports");
    }
    Ok((end.ip(), Some(end.port())))
}

fn tcp_flags(text: Option<&str>) -> Result<u8> {
    let Some(text) = text else { return Ok(2) };
    let mut flags = 0;
    for letter in text.chars() {
        flags |= match letter.to_ascii_uppercase() {
            'F' => 1,
            'S' => 2,
            'R' => 4,
            'P' => 8,
            'A' | '.' => 16,
            'U' => 32,
            _ => bail!("flags {text}: {letter} is none of F S R P A U"),
        };
    }
    Ok(flags)
}

fn hexadecimal(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !b":-".contains(byte)).collect();
    let nibble = |digit: u8| (digit as char).to_digit(16).map(|value| value as u8);
    let bytes: Option<Vec<u8>> = digits
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        })
        .collect();
    let bytes = bytes.context("a frame is written in hexadecimal digits, two for each byte")?;
    if bytes.len() < 14 {
        bail!("a frame of {} bytes has no whole Ethernet header", bytes.len());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read() {
        let parse = |text: &str| Request::parse(text).unwrap().what;
        let Payload::Ip(tcp) = parse("tcp 10.0.1.10:40001 > 10.0.2.20:5432 flags SA ttl 3 length 10") else {
            panic!()
        };
        assert_eq!(tcp.transport, Transport::Tcp { sport: 40001, dport: 5432, flags: 18 });
        assert_eq!((tcp.ttl, tcp.length, tcp.src), (3, 10, Some("10.0.1.10".parse().unwrap())));
        let Payload::Ip(udp) = parse("udp fd00::1>[fd00::2]:53") else { panic!() };
        assert_eq!(udp.transport, Transport::Udp { sport: SOURCE_PORT, dport: 53 });
        let Payload::Ip(icmp) = parse("icmp > 8.8.8.8") else { panic!() };
        assert_eq!((icmp.transport, icmp.src), (Transport::Icmp { kind: 8, code: 0, id: ECHO_ID }, None));
        // These as the page writes them.
        let Payload::Ip(icmp) = parse("icmp 10.0.1.10 > 8.8.8.8 type 8 code 0 id 65535") else { panic!() };
        assert_eq!(icmp.transport, Transport::Icmp { kind: 8, code: 0, id: 65535 });
        let Payload::Ip(sctp) = parse("sctp 10.0.1.10:7 > 10.0.2.20:5060") else { panic!() };
        assert_eq!(sctp.transport, Transport::Sctp { sport: 7, dport: 5060 });
        for text in ["ip 47 10.0.1.10 > 10.0.2.20", "ip gre 10.0.1.10 > 10.0.2.20"] {
            let Payload::Ip(gre) = parse(text) else { panic!() };
            assert_eq!(gre.transport, Transport::Other(47));
        }
        assert_eq!(parse("arp who-has 10.0.1.1"), Payload::Arp([10, 0, 1, 1].into()));
        assert_eq!(
            parse("frame 02:00:00:00:00:01 020000000002 0800 45"),
            Payload::Frame(vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45])
        );
        let mac = Request::parse("icmp > 8.8.8.8 to 02:00:00:00:00:09").unwrap().to;
        assert_eq!(mac, Some([2, 0, 0, 0, 0, 9]));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("", "is empty"),
            ("tcp 10.0.1.10 > 10.0.2.20", "needs a port"),
            ("tcp 10.0.1.10 10.0.2.20:1", "is not understood"),
            ("tcp 10.0.1.300 > 10.0.2.20:1", "10.0.1.300"),
            ("sctp > 10.0.2.20", "needs a port"),
            ("icmp 10.0.1.1:5 > 10.0.2.20", "only tcp, udp and sctp"),
            ("icmp > 10.0.2.20 id 65536", "id 65536"),
            ("quic > 10.0.2.20", "no protocol known"),
            ("gre > 10.0.2.20", "write 'ip gre"),
            ("ip quic > 10.0.2.20", "is no protocol"),
            ("udp > 10.0.2.20:5 length 9999", "at most"),
            ("udp > 10.0.2.20:5 ttl 256", "ttl 256"),
            ("udp > 10.0.2.20:5 ttl", "says nothing"),
            ("tcp > 10.0.2.20:5 flags X", "none of"),
            ("icmp > 10.0.2.20 to me", "no hardware address"),
            ("frame 02", "no whole Ethernet header"),
            ("frame 0g", "hexadecimal"),
            ("frame 020", "hexadecimal"),
            ("arp", "arp ADDRESS"),
            ("arp fd00::1", "no IPv4 address"),
        ] {
            let error = format!("{:#}", Request::parse(text).expect_err(text));
            assert!(error.contains(said), "{text}: {error}");
        }
        let mixed = Request::parse("icmp 10.0.0.1 > fd00::1").unwrap();
        assert!(mixed.frame([2; 6], [2; 6], "10.0.0.1".parse().unwrap()).is_err());
    }

    #[test]
    fn frames_are_whole() {
        for text in
            ["tcp > 10.0.2.20:5", "udp > 10.0.2.20:5 length 9", "icmp > 10.0.2.20", "sctp > 10.0.2.20:5"]
        {
            let request = Request::parse(text).unwrap();
            let frame = request.frame([2; 6], [4; 6], "10.0.0.1".parse().unwrap()).unwrap();
            let read = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
            assert!(read.net.is_some(), "{text}");
        }
        let frame = |text: &str| {
            let request = Request::parse(text).unwrap();
            request.frame([2; 6], [4; 6], "10.0.0.1".parse().unwrap()).unwrap()
        };
        // As many bytes as the data path reads of it.
        let sctp = frame("sctp 10.0.0.1:7 > 10.0.2.20:5060 length 3");
        assert_eq!(sctp[34..38], [0, 7, 0x13, 0xc4]);
        assert_eq!(sctp.len(), 34 + 12 + 3);
        assert_eq!(frame("icmp > 10.0.2.20 id 258")[38..42], [1, 2, 0, 1]);
    }
}
