//! Frames taken apart, with every checksum verified, and frames built.
//!
//! [`Frame::check`] is strict: what it accepts a real receiver accepts. The sender's offloads must be off
//! ([`Host::offloads_off`](crate::Host::offloads_off)), or its checksums are not there yet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::checksum::Sum16BitWords;
use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, Ipv4Header, Ipv6Header, NetSlice,
    PacketBuilder, PacketBuilderStep, SlicedPacket,
};

/// A hardware address.
pub type Mac = [u8; 6];

/// Everybody on the link.
pub const BROADCAST: Mac = [0xff; 6];
/// Ethertype of ARP.
pub const ARP: u16 = 0x0806;
/// Protocol numbers.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;
/// A protocol nobody speaks (RFC 3692).
pub const EXPERIMENT: u8 = 253;

const ETHERNET_LEN: usize = 14;
/// Outer Ethernet, IPv4, UDP and VXLAN.
const VXLAN_LEN: usize = 50;
const VXLAN_PORT: u16 = 4789;

/// A frame whose lengths and checksums are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Ethernet destination.
    pub to: Mac,
    /// Ethernet source.
    pub from: Mac,
    /// Ethertype; that of the tag if there is one.
    pub ethertype: u16,
    /// The IP packet, if it is one.
    pub packet: Option<Packet>,
}

/// An IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// What is inside, after IPv6's extension headers.
    pub protocol: u8,
    /// Transport header and payload.
    pub transport: Vec<u8>,
}

impl Frame {
    /// Takes a frame apart and fails if anything about it is wrong.
    pub fn check(bytes: &[u8]) -> Result<Self> {
        Self::read(bytes).with_context(|| format!("in the frame {}", hex(bytes)))
    }

    fn read(bytes: &[u8]) -> Result<Self> {
        let sliced = SlicedPacket::from_ethernet(bytes)?;
        let (ethernet, rest) = bytes.split_at_checked(ETHERNET_LEN).context("shorter than Ethernet")?;
        let mut frame = Self {
            to: ethernet[..6].try_into()?,
            from: ethernet[6..12].try_into()?,
            ethertype: u16::from_be_bytes(ethernet[12..].try_into()?),
            packet: None,
        };
        let (packet, length, fragmented) = match &sliced.net {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header();
                let sum = Sum16BitWords::new().add_slice(header.slice()).ones_complement();
                ensure!(sum == 0, "the IPv4 header checksum is wrong");
                let packet = Packet {
                    source: header.source_addr().into(),
                    destination: header.destination_addr().into(),
                    ttl: header.ttl(),
                    protocol: ip.payload().ip_number.0,
                    transport: ip.payload().payload.to_vec(),
                };
                (packet, usize::from(header.total_len()), ip.payload().fragmented)
            }
            Some(NetSlice::Ipv6(ip)) => {
                let header = ip.header();
                let packet = Packet {
                    source: header.source_addr().into(),
                    destination: header.destination_addr().into(),
                    ttl: header.hop_limit(),
                    protocol: ip.payload().ip_number.0,
                    transport: ip.payload().payload.to_vec(),
                };
                (packet, 40 + usize::from(header.payload_length()), ip.payload().fragmented)
            }
            _ => return Ok(frame),
        };
        let rest = if frame.ethertype == 0x8100 { &rest[4..] } else { rest };
        let padding = &rest[length..];
        ensure!(padding.is_empty() || bytes.len() <= 60, "{} bytes behind the packet", padding.len());
        if !fragmented {
            packet.verify_transport()?;
        }
        frame.packet = Some(packet);
        Ok(frame)
    }

    /// Its IP packet.
    pub fn ip(&self) -> Result<&Packet> {
        self.packet.as_ref().with_context(|| format!("not IP, but {:#06x}", self.ethertype))
    }
}

impl Packet {
    /// Type and code, if it is ICMP of its family.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        let is_icmp = self.protocol == if self.source.is_ipv6() { ICMPV6 } else { ICMP };
        is_icmp.then(|| (self.transport[0], self.transport[1]))
    }

    /// The four bytes behind an ICMP message's checksum: MTU, pointer, identifier and sequence number.
    pub fn icmp_word(&self) -> u32 {
        u32::from_be_bytes([4, 5, 6, 7].map(|at| self.transport[at]))
    }

    /// What follows the eight bytes of a UDP or ICMP header: payload, or the packet an error is about.
    pub fn payload(&self) -> &[u8] {
        &self.transport[8..]
    }

    /// Fails unless this ICMP error quotes a packet as its sender, who sent it in the frame `sent`, knows it: as
    /// much as is quoted is the same but for what every router changes, and the quoted header is sound.
    pub fn quotes(&self, sent: &[u8]) -> Result<()> {
        ensure!(self.icmp().is_some(), "not ICMP, but protocol {}", self.protocol);
        let (quoted, sent) = (self.payload(), &sent[ETHERNET_LEN..]);
        let is_v4 = self.source.is_ipv4();
        let at_least = if is_v4 { 28 } else { 48 };
        ensure!(quoted.len() >= at_least.min(sent.len()), "only {} bytes are quoted", quoted.len());
        ensure!(quoted.len() <= sent.len(), "more is quoted than was sent");
        // TTL and header checksum, or the hop limit.
        let may_differ: &[usize] = if is_v4 { &[8, 10, 11] } else { &[7] };
        let differ: Vec<usize> =
            (0..quoted.len()).filter(|at| quoted[*at] != sent[*at] && !may_differ.contains(at)).collect();
        ensure!(differ.is_empty(), "bytes {differ:?} differ: sent {}, quoted {}", hex(sent), hex(quoted));
        if is_v4 {
            let sum = Sum16BitWords::new().add_slice(&quoted[..20]).ones_complement();
            ensure!(sum == 0, "the quoted header's checksum is wrong: {}", hex(quoted));
        }
        Ok(())
    }

    /// Source and destination port, or those bytes of another protocol.
    pub fn ports(&self) -> (u16, u16) {
        let word = |at: usize| u16::from_be_bytes([self.transport[at], self.transport[at + 1]]);
        (word(0), word(2))
    }

    fn verify_transport(&self) -> Result<()> {
        let sum = Sum16BitWords::new().add_slice(&self.transport);
        let (sum, at) = match self.protocol {
            ICMP => (sum, 2),
            TCP => (self.add_pseudo_header(sum)?, 16),
            UDP => {
                let length = self.transport.get(4..6).context("UDP is cut")?;
                ensure!(length == u16::try_from(self.transport.len())?.to_be_bytes(), "wrong UDP length");
                (self.add_pseudo_header(sum)?, 6)
            }
            ICMPV6 => (self.add_pseudo_header(sum)?, 2),
            _ => return Ok(()),
        };
        let field = self.transport.get(at..at + 2).context("the transport header is cut")?;
        if self.protocol == UDP && field == [0, 0] {
            // No checksum, which only IPv4 may do.
            ensure!(self.source.is_ipv4(), "UDP over IPv6 without checksum");
            return Ok(());
        }
        if sum.ones_complement() != 0 {
            bail!("the checksum of protocol {} is wrong", self.protocol);
        }
        Ok(())
    }

    fn add_pseudo_header(&self, sum: Sum16BitWords) -> Result<Sum16BitWords> {
        let mut sum = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                sum.add_slice(&source.octets()).add_slice(&destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                sum.add_slice(&source.octets()).add_slice(&destination.octets())
            }
            _ => bail!("two families in one packet"),
        };
        sum = sum.add_2bytes(u16::try_from(self.transport.len())?.to_be_bytes());
        Ok(sum.add_2bytes([0, self.protocol]))
    }
}

/// The inner frame and VNI of a VXLAN frame.
pub fn open_vxlan(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let is_vxlan = bytes.get(12..14)? == [8, 0]
        && bytes.get(23) == Some(&UDP)
        && bytes.get(36..38)? == VXLAN_PORT.to_be_bytes();
    let vni = u32::from_be_bytes(bytes.get(46..50)?.try_into().ok()?) >> 8;
    is_vxlan.then(|| (vni, &bytes[VXLAN_LEN..]))
}

/// The payload of a UDP datagram that carries a VXLAN frame.
pub fn vxlan_payload(flags: u8, vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![flags, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(inner);
    payload
}

/// Who a frame to be built is from and to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addressing {
    /// Ethernet source.
    pub from: Mac,
    /// Ethernet destination.
    pub to: Mac,
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
}

/// Builders of whole frames. All panic where the two addresses are of different families.
impl Addressing {
    /// The same from another hardware address.
    pub fn from(self, from: Mac) -> Self {
        Self { from, ..self }
    }

    /// The same to another address.
    pub fn destination(self, destination: IpAddr) -> Self {
        Self { destination, ..self }
    }

    /// The same from another address.
    pub fn source(self, source: IpAddr) -> Self {
        Self { source, ..self }
    }

    /// The same with another TTL.
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// A UDP datagram.
    pub fn udp(&self, source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        self.builder(&[]).udp(source_port, destination_port).write(&mut frame, payload).unwrap();
        frame
    }

    /// A TCP segment that opens a connection.
    pub fn tcp_syn(&self, source_port: u16, destination_port: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        self.builder(&[]).tcp(source_port, destination_port, 1, 64240).syn().write(&mut frame, &[]).unwrap();
        frame
    }

    /// A TCP segment with the RST flag.
    pub fn tcp_reset(&self, source_port: u16, destination_port: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        self.builder(&[]).tcp(source_port, destination_port, 1, 0).rst().write(&mut frame, &[]).unwrap();
        frame
    }

    /// An echo request.
    pub fn echo(&self, id: u16, payload: &[u8]) -> Vec<u8> {
        let header = IcmpEchoHeader { id, seq: 1 };
        if self.source.is_ipv4() {
            let mut frame = Vec::new();
            let builder = self.builder(&[]).icmpv4(Icmpv4Type::EchoRequest(header));
            builder.write(&mut frame, payload).unwrap();
            frame
        } else {
            self.icmpv6(128, 0, header.to_bytes(), payload)
        }
    }

    /// An ICMP message of IPv4.
    pub fn icmpv4(&self, kind: u8, code: u8, word: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        self.builder(&[]).icmpv4_raw(kind, code, word).write(&mut frame, payload).unwrap();
        frame
    }

    /// An ICMP message of IPv6.
    pub fn icmpv6(&self, kind: u8, code: u8, word: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let message = Icmpv6Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: word };
        self.builder(&[]).icmpv6(message).write(&mut frame, payload).unwrap();
        frame
    }

    /// A neighbour solicitation or advertisement (135, 136) with an option of type `option`.
    pub fn neighbour(&self, kind: u8, target: Ipv6Addr, option: u8, mac: Mac) -> Vec<u8> {
        let mut payload = target.octets().to_vec();
        payload.extend([option, 1]);
        payload.extend(mac);
        let flags = if kind == 136 { [0x20, 0, 0, 0] } else { [0; 4] };
        self.icmpv6(kind, 0, flags, &payload)
    }

    /// A packet of another protocol.
    pub fn protocol(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        self.builder(&[]).write(&mut frame, IpNumber(protocol), payload).unwrap();
        frame
    }

    /// A UDP datagram with IPv4 options; their length must be a multiple of four.
    pub fn udp_with_options(&self, options: &[u8], destination_port: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        self.builder(options).udp(40_000, destination_port).write(&mut frame, payload).unwrap();
        frame
    }

    fn builder(&self, options: &[u8]) -> PacketBuilderStep<IpHeaders> {
        let ethernet = PacketBuilder::ethernet2(self.from, self.to);
        let headers = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let number = IpNumber(EXPERIMENT);
                let header = Ipv4Header::new(0, self.ttl, number, source.octets(), destination.octets());
                let mut header = header.unwrap();
                header.options = options.try_into().unwrap();
                IpHeaders::Ipv4(header, Default::default())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                IpHeaders::Ipv6(header, Default::default())
            }
            other => panic!("two families: {other:?}"),
        };
        ethernet.ip(headers)
    }
}

/// An ARP packet: Ethernet and IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1: request, 2: reply.
    pub operation: u16,
    /// Who has `sender_ip`.
    pub sender: Mac,
    /// Who speaks.
    pub sender_ip: Ipv4Addr,
    /// Who is spoken to, zero in a request.
    pub target: Mac,
    /// What is asked for.
    pub target_ip: Ipv4Addr,
}

impl Arp {
    /// The question for an address.
    pub fn request(sender: Mac, sender_ip: Ipv4Addr, target_ip: Ipv4Addr) -> Self {
        Self { operation: 1, sender, sender_ip, target: [0; 6], target_ip }
    }

    /// In an Ethernet frame.
    pub fn frame(&self, from: Mac, to: Mac) -> Vec<u8> {
        let mut frame = [to, from].concat();
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4]);
        frame.extend(self.operation.to_be_bytes());
        frame.extend(self.sender);
        frame.extend(self.sender_ip.octets());
        frame.extend(self.target);
        frame.extend(self.target_ip.octets());
        frame
    }

    /// Reads a frame, if it is ARP.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.get(12..20)? != [8, 6, 0, 1, 8, 0, 6, 4] || bytes.len() < 42 {
            return None;
        }
        let mac = |at: usize| [0, 1, 2, 3, 4, 5].map(|i| bytes[at + i]);
        let ip = |at: usize| Ipv4Addr::from([0, 1, 2, 3].map(|i| bytes[at + i]));
        Some(Self {
            operation: u16::from_be_bytes([bytes[20], bytes[21]]),
            sender: mac(22),
            sender_ip: ip(28),
            target: mac(32),
            target_ip: ip(38),
        })
    }
}

/// Cuts a frame's packet, which has neither options nor extension headers, into fragments whose payloads end
/// at these offsets (multiples of eight, but for the last, which is the packet's end).
///
/// # Panics
/// If the offsets do not fit.
pub fn fragments(frame: &[u8], id: u32, ends: &[usize]) -> Vec<Vec<u8>> {
    let starts = [0].iter().chain(ends);
    let pieces = starts.zip(ends).map(|(&start, &end)| (start, end, end != ends[ends.len() - 1]));
    pieces.map(|(start, end, more)| fragment(frame, id, start, end, more)).collect()
}

/// One fragment of a frame's packet: the payload from `start` to `end`, said to be at `start`, whether that is
/// true or not if the payload is shorter.
///
/// # Panics
/// If `start` is not a multiple of eight or `end` lies behind the payload.
pub fn fragment(frame: &[u8], id: u32, start: usize, end: usize, more: bool) -> Vec<u8> {
    let header = if frame[12] == 8 { 34 } else { 54 };
    piece(frame, id, start, &frame[header + start..header + end], more)
}

/// A fragment of a frame's packet with a payload of its own, said to be at `offset`.
///
/// # Panics
/// If the offset is not a multiple of eight.
pub fn piece(frame: &[u8], id: u32, offset: usize, payload: &[u8], more: bool) -> Vec<u8> {
    assert_eq!(offset % 8, 0, "fragments lie at multiples of eight");
    if frame[12] == 8 {
        let mut cut = frame[..34].to_vec();
        let field = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
        cut[16..18].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
        cut[18..20].copy_from_slice(&(id as u16).to_be_bytes());
        cut[20..22].copy_from_slice(&field.to_be_bytes());
        set_ipv4_checksum(&mut cut);
        cut.extend(payload);
        cut
    } else {
        let mut cut = frame[..54].to_vec();
        let next = std::mem::replace(&mut cut[20], 44);
        cut[18..20].copy_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
        cut.extend([next, 0]);
        cut.extend((offset as u16 | u16::from(more)).to_be_bytes());
        cut.extend(id.to_be_bytes());
        cut.extend(payload);
        cut
    }
}

/// The hardware address an IPv6 multicast address is sent to.
pub fn multicast_mac(address: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = address.octets();
    [0x33, 0x33, a, b, c, d]
}

/// The address solicitations for `target` are sent to.
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// Makes the IPv4 header checksum of a frame without options right again.
pub fn set_ipv4_checksum(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = Sum16BitWords::new().add_slice(&frame[14..34]).ones_complement();
    // As it lies in memory.
    frame[24..26].copy_from_slice(&sum.to_ne_bytes());
}

/// Whether `bytes` contain `part`.
pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn hex(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(128)];
    shown.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways() -> [Addressing; 2] {
        [("10.0.1.11", "10.0.2.13"), ("fd00:1::b", "fd00:2::d")].map(|(source, destination)| Addressing {
            from: [2, 0, 0, 0, 1, 11],
            to: [2, 0, 0, 0, 2, 13],
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            ttl: 64,
        })
    }

    #[test]
    fn what_is_built_is_right() {
        for way in ways() {
            let frame = Frame::check(&way.udp(1, 2, b"hello")).unwrap();
            let packet = frame.ip().unwrap();
            assert_eq!((frame.from, frame.to), (way.from, way.to));
            assert_eq!((packet.source, packet.destination), (way.source, way.destination));
            assert_eq!((packet.ttl, packet.protocol, packet.payload()), (64, UDP, &b"hello"[..]));
            Frame::check(&way.echo(7, &[1, 2, 3])).unwrap();
            Frame::check(&way.tcp_reset(1, 2)).unwrap();
            assert_eq!(Frame::check(&way.protocol(EXPERIMENT, &[1])).unwrap().ip().unwrap().protocol, 253);
        }
    }

    #[test]
    fn any_flipped_bit_behind_ethernet_is_found() {
        for way in ways() {
            for frame in [way.udp(1, 2, &[5; 40]), way.echo(7, &[5; 40]), way.tcp_reset(1, 2)] {
                for at in ETHERNET_LEN..frame.len() {
                    let mut damaged = frame.clone();
                    damaged[at] ^= 0x10;
                    // What no sum covers, or makes it another protocol, whose sums are unknown.
                    let uncovered = if way.source.is_ipv4() { vec![] } else { (14..22).collect() };
                    assert!(uncovered.contains(&at) || Frame::check(&damaged).is_err(), "{at}");
                }
            }
        }
    }

    #[test]
    fn fragments_hold_the_packet_between_them() {
        for way in ways() {
            let whole = way.udp(1, 2, &[9; 100]);
            let (ip, behind) = if way.source.is_ipv4() { (34, 34) } else { (54, 62) };
            let cut = fragments(&whole, 77, &[16, 64, 108]);
            let payloads = cut.iter().flat_map(|piece| piece[behind..].to_vec()).collect::<Vec<_>>();
            assert_eq!(payloads, whole[ip..]);
            for piece in &cut {
                let packet = Frame::check(piece).unwrap().packet.unwrap();
                assert_eq!((packet.source, packet.protocol), (way.source, UDP));
            }
            let offsets = if way.source.is_ipv4() { 20..22 } else { 56..58 };
            let offsets: Vec<&[u8]> = cut.iter().map(|piece| &piece[offsets.clone()]).collect();
            let expected: [[u8; 2]; 3] = if way.source.is_ipv4() {
                [[0x20, 0], [0x20, 2], [0, 8]]
            } else {
                [[0, 1], [0, 17], [0, 64]]
            };
            assert_eq!(offsets, expected.iter().map(|pair| &pair[..]).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_quotation_is_compared_byte_by_byte() {
        for way in ways() {
            let sent = way.udp(1, 2, &[9; 100]);
            let back = Addressing { source: way.destination, destination: way.source, ..way };
            // As the next router sees it: one hop further.
            let passed = way.ttl(63).udp(1, 2, &[9; 100])[14..].to_vec();
            let error = |quoted: &[u8]| {
                let frame = if way.source.is_ipv4() {
                    back.icmpv4(3, 3, [0; 4], quoted)
                } else {
                    back.icmpv6(1, 4, [0; 4], quoted)
                };
                Frame::check(&frame).unwrap().packet.unwrap()
            };
            error(&passed).quotes(&sent).unwrap();
            let mut damaged = passed.clone();
            damaged[way.source.is_ipv6() as usize * 20 + 26] ^= 1;
            assert!(error(&damaged).quotes(&sent).is_err(), "a checksum that was not put right again");
            assert!(error(&passed[..20]).quotes(&sent).is_err(), "too little");
        }
    }

    #[test]
    fn arp_comes_back_as_it_was() {
        let arp = Arp::request([2; 6], Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST);
        assert_eq!(Arp::read(&arp.frame([2; 6], BROADCAST)), Some(arp));
    }
}
