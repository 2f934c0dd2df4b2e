//! Frames, built by an independent library, and what a router or a tunnel must make of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber,
    Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader,
};

use crate::topology::{self, Mac, UNDERLAY_DST, UNDERLAY_SRC, VTEP, port_mac, port_v4, port_v6, router_mac};

/// The transport of a [`Packet`].
#[derive(Clone, Debug)]
pub enum Transport {
    Udp { sport: u16, dport: u16 },
    Tcp { sport: u16, dport: u16, seq: u32, ack: Option<u32>, syn: bool, rst: bool },
    Echo { request: bool, id: u16 },
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    Other(u8),
}

/// A packet that can be built again with something changed.
#[derive(Clone, Debug)]
pub struct Packet {
    pub dst_mac: Mac,
    pub src_mac: Mac,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub tos: u8,
    pub dont_fragment: bool,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

pub const UDP: Transport = Transport::Udp { sport: 1000, dport: 2000 };

/// Bytes that are not all the same.
pub fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + 1) as u8).collect()
}

impl Packet {
    /// From a port to a destination behind router 1.
    pub fn routed(port: u32, dst: impl Into<IpAddr>) -> Self {
        let dst = dst.into();
        let src = if dst.is_ipv4() { port_v4(port).into() } else { port_v6(port).into() };
        Self {
            dst_mac: router_mac(1, port / 10),
            src_mac: port_mac(port),
            src,
            dst,
            ttl: 64,
            tos: 0,
            dont_fragment: true,
            transport: UDP,
            payload: payload(26),
        }
    }

    /// From a port to another on its network.
    pub fn switched(port: u32, to: u32, v6: bool) -> Self {
        let dst: IpAddr = if v6 { port_v6(to).into() } else { port_v4(to).into() };
        Self { dst_mac: port_mac(to), ..Self::routed(port, dst) }
    }

    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    pub fn macs(self, dst_mac: Mac, src_mac: Mac) -> Self {
        Self { dst_mac, src_mac, ..self }
    }

    pub fn transport(self, transport: Transport) -> Self {
        Self { transport, ..self }
    }

    pub fn len(self, len: usize) -> Self {
        Self { payload: payload(len), ..self }
    }

    pub fn fragmentable(self) -> Self {
        Self { dont_fragment: false, ..self }
    }

    fn l4(&self) -> (u8, Vec<u8>) {
        let mut out = Vec::new();
        let len = self.payload.len();
        let proto = match (&self.transport, self.src, self.dst) {
            (&Transport::Udp { sport, dport }, src, dst) => {
                let mut udp = UdpHeader {
                    source_port: sport,
                    destination_port: dport,
                    length: 8 + len as u16,
                    checksum: 0,
                };
                udp.checksum = match (src, dst) {
                    (IpAddr::V4(src), IpAddr::V4(dst)) => {
                        udp.calc_checksum_ipv4_raw(src.octets(), dst.octets(), &self.payload)
                    }
                    (IpAddr::V6(src), IpAddr::V6(dst)) => {
                        udp.calc_checksum_ipv6_raw(src.octets(), dst.octets(), &self.payload)
                    }
                    _ => panic!("two families"),
                }
                .expect("a length that fits");
                out.extend(udp.to_bytes());
                17
            }
            (&Transport::Tcp { sport, dport, seq, ack, syn, rst }, src, dst) => {
                let mut tcp = TcpHeader::new(sport, dport, seq, 0);
                (tcp.ack, tcp.acknowledgment_number, tcp.syn, tcp.rst) =
                    (ack.is_some(), ack.unwrap_or(0), syn, rst);
                tcp.checksum = match (src, dst) {
                    (IpAddr::V4(src), IpAddr::V4(dst)) => {
                        tcp.calc_checksum_ipv4_raw(src.octets(), dst.octets(), &self.payload)
                    }
                    (IpAddr::V6(src), IpAddr::V6(dst)) => {
                        tcp.calc_checksum_ipv6_raw(src.octets(), dst.octets(), &self.payload)
                    }
                    _ => panic!("two families"),
                }
                .expect("a length that fits");
                out.extend(&tcp.to_bytes()[..]);
                6
            }
            (&Transport::Echo { request, id }, IpAddr::V4(_), _) => {
                let echo = IcmpEchoHeader { id, seq: 1 };
                let kind = if request { Icmpv4Type::EchoRequest(echo) } else { Icmpv4Type::EchoReply(echo) };
                out.extend(&Icmpv4Header::with_checksum(kind, &self.payload).to_bytes()[..]);
                1
            }
            (&Transport::Echo { request, id }, IpAddr::V6(src), IpAddr::V6(dst)) => {
                let echo = IcmpEchoHeader { id, seq: 1 };
                let kind = if request { Icmpv6Type::EchoRequest(echo) } else { Icmpv6Type::EchoReply(echo) };
                let icmp = Icmpv6Header::with_checksum(kind, src.octets(), dst.octets(), &self.payload);
                out.extend(&icmp.expect("a length that fits").to_bytes()[..]);
                58
            }
            (&Transport::Icmp { kind, code, rest }, IpAddr::V4(_), _) => {
                let kind = Icmpv4Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest };
                out.extend(&Icmpv4Header::with_checksum(kind, &self.payload).to_bytes()[..]);
                1
            }
            (&Transport::Icmp { kind, code, rest }, IpAddr::V6(src), IpAddr::V6(dst)) => {
                let kind = Icmpv6Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest };
                let icmp = Icmpv6Header::with_checksum(kind, src.octets(), dst.octets(), &self.payload);
                out.extend(&icmp.expect("a length that fits").to_bytes()[..]);
                58
            }
            (&Transport::Other(proto), ..) => proto,
            _ => panic!("two families"),
        };
        out.extend(&self.payload);
        (proto, out)
    }

    /// The IP packet.
    pub fn l3(&self) -> Vec<u8> {
        let (proto, l4) = self.l4();
        self.around(proto, &l4)
    }

    /// The IP header around a transport.
    pub fn around(&self, proto: u8, l4: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut ip =
                    Ipv4Header::new(l4.len() as u16, self.ttl, IpNumber(proto), src.octets(), dst.octets())
                        .expect("a length that fits");
                ip.dscp = (self.tos >> 2).try_into().expect("six bits");
                ip.dont_fragment = self.dont_fragment;
                ip.header_checksum = ip.calc_header_checksum();
                out.extend(&ip.to_bytes()[..]);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let ip = Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: l4.len() as u16,
                    next_header: IpNumber(proto),
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                };
                out.extend(ip.to_bytes());
            }
            _ => panic!("two families"),
        }
        out.extend(l4);
        out
    }

    /// The frame.
    pub fn build(&self) -> Vec<u8> {
        let ethertype = if self.src.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        ethernet(self.dst_mac, self.src_mac, ethertype.0, &self.l3())
    }

    /// The ICMP error about this packet, from `source`: as much of it as 576 or 1280 bytes hold.
    pub fn error(&self, source: impl Into<IpAddr>, kind: u8, code: u8, rest: u32) -> Vec<u8> {
        let mut quote = self.l3();
        quote.truncate(if self.src.is_ipv4() { 548 } else { 1232 });
        Packet {
            dst_mac: self.src_mac,
            src_mac: self.dst_mac,
            src: source.into(),
            dst: self.src,
            ttl: 64,
            // Internetwork control, as RFC 1812 4.3.2.5 wants it of IPv4.
            tos: if self.src.is_ipv4() { 0xc0 } else { 0 },
            dont_fragment: true,
            transport: Transport::Icmp { kind, code, rest: rest.to_be_bytes() },
            payload: quote,
        }
        .build()
    }
}

pub fn ethernet(dst: Mac, src: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header { source: src, destination: dst, ether_type: EtherType(ethertype) };
    let mut out = header.to_bytes().to_vec();
    out.extend(payload);
    out
}

/// A frame in VXLAN as it leaves this node or arrives from another.
pub fn vxlan(macs: (Mac, Mac), from: Ipv4Addr, to: Ipv4Addr, sport: u16, vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(inner);
    let udp = UdpHeader {
        source_port: sport,
        destination_port: 4789,
        length: 8 + payload.len() as u16,
        checksum: 0,
    };
    let mut l4 = udp.to_bytes().to_vec();
    l4.extend(payload);
    let outer = Packet { src: from.into(), dst: to.into(), ..Packet::routed(11, to) };
    ethernet(macs.0, macs.1, 0x0800, &outer.around(17, &l4))
}

/// A frame arriving from another node.
pub fn arriving(node: u32, vni: u32, inner: &[u8]) -> Vec<u8> {
    vxlan((UNDERLAY_SRC, UNDERLAY_DST), topology::vtep(node), VTEP, 50_000, vni, inner)
}

/// The same frame leaving towards another node.
pub fn leaving(node: u32, sport: u16, vni: u32, inner: &[u8]) -> Vec<u8> {
    let macs = if node == 3 { ([0; 6], [0; 6]) } else { (UNDERLAY_DST, UNDERLAY_SRC) };
    vxlan(macs, VTEP, topology::vtep(node), sport, vni, inner)
}

/// An Ethernet frame with ARP for IPv4.
pub fn arp(dst: Mac, src: Mac, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut out = vec![0, 1, 8, 0, 6, 4];
    out.extend(operation.to_be_bytes());
    out.extend(sender.0);
    out.extend(sender.1.octets());
    out.extend(target.0);
    out.extend(target.1.octets());
    ethernet(dst, src, 0x0806, &out)
}

pub const BROADCAST: Mac = [0xff; 6];

/// A question of a port for an address.
pub fn arp_request(port: u32, target: Ipv4Addr) -> Vec<u8> {
    let mac = port_mac(port);
    arp(BROADCAST, mac, 1, (mac, port_v4(port)), ([0; 6], target))
}

/// A neighbour discovery message: solicitation 135, advertisement 136, with a link-layer address option.
pub fn nd(
    kind: u8,
    macs: (Mac, Mac),
    ips: (Ipv6Addr, Ipv6Addr),
    flags: u32,
    target: Ipv6Addr,
    option: Option<(u8, Mac)>,
) -> Packet {
    let mut payload = target.octets().to_vec();
    if let Some((option, mac)) = option {
        payload.extend([option, 1]);
        payload.extend(mac);
    }
    Packet {
        dst_mac: macs.0,
        src_mac: macs.1,
        src: ips.0.into(),
        dst: ips.1.into(),
        ttl: 255,
        tos: 0,
        dont_fragment: true,
        transport: Transport::Icmp { kind, code: 0, rest: flags.to_be_bytes() },
        payload,
    }
}

/// A solicitation of a port for an address.
pub fn nd_solicit(port: u32, target: Ipv6Addr) -> Packet {
    let mac = port_mac(port);
    let o = target.octets();
    let group_mac = [0x33, 0x33, 0xff, o[13], o[14], o[15]];
    let group =
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(o[13]), u16::from_be_bytes([o[14], o[15]]));
    nd(135, (group_mac, mac), (port_v6(port), group), 0, target, Some((1, mac)))
}
