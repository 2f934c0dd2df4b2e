//! Stage 1: reads a frame into [`Headers`].
//!
//! Reads: Ethernet, IPv4, IPv6 with extension headers, the first bytes of the transport. Writes: nothing.
//! Drops: `frame_truncated`, `vlan_tagged`, `ethertype_unknown`, `ethernet_source`, `ipv4_*`, `ipv6_*`,
//! `transport_truncated`, `arp_malformed` (cut short; what it says is read where it is answered).
//!
//! [`Depth::Fast`] reads what almost every packet is (IPv4 without options, IPv6 without extension
//! headers, no fragments) and calls the rest [`Parsed::Unusual`]; [`Depth::Full`] reads it all.

use crate::{
    addr::{Be16, Be32, Ip, Macs},
    checksum,
    packet::{Packet, View},
    reason::DropReason,
    wire::*,
};

/// What a frame says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Ethernet addresses.
    pub macs: Macs,
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Source port; ICMP echo: identifier; else 0.
    pub sport: Be16,
    /// Destination port; ICMP: type and code; else 0.
    pub dport: Be16,
    /// Offset of the IP header in the packet; see [`Self::l3`].
    l3_at: u16,
    /// Offset of the transport header in the packet; see [`Self::l4`].
    l4_at: u16,
    /// Bytes of the IP packet.
    pub l3_len: u16,
    /// Offset within the IP packet of the field that named `proto`.
    pub proto_at: u16,
    /// Transport protocol.
    pub proto: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// ARP: nothing else but the Ethernet addresses is set.
    pub arp: bool,
    /// IPv6.
    pub v6: bool,
    /// A fragment: first or later.
    pub fragment: bool,
    /// A fragment without the transport header.
    pub later_fragment: bool,
    /// IPv4: must not be fragmented.
    pub dont_fragment: bool,
    /// IPv4 options or IPv6 extension headers: always decided, never stored.
    pub options: bool,
}

/// How much to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What flow entries are made of.
    Fast,
    /// Everything.
    Full,
}

/// The outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An IP or ARP packet.
    Known(Headers),
    /// Not for the fast path.
    Unusual,
}

/// IPv6 extension headers that are walked; a packet with more is refused.
const EXTENSIONS_MAX: usize = 6;
/// IPv4 options that are walked: at most 40 bytes of them exist.
const OPTIONS_MAX: usize = 40;

/// Reads the frame that starts at `at`.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, at: usize, depth: Depth) -> Result<Parsed, DropReason> {
    if packet.has_vlan_tag() {
        return Err(DropReason::VlanTagged);
    }
    let eth = packet.view(at, ETH_LEN).ok_or(DropReason::FrameTruncated)?;
    let macs = eth.macs(0);
    let ethertype = eth.be16(12);
    if macs.is_source_invalid() {
        return Err(DropReason::EthernetSource);
    }
    const IPV4: Be16 = Be16::new(ETHERTYPE_IPV4);
    const IPV6: Be16 = Be16::new(ETHERTYPE_IPV6);
    const ARP: Be16 = Be16::new(ETHERTYPE_ARP);
    const VLAN: Be16 = Be16::new(ETHERTYPE_VLAN);
    const QINQ: Be16 = Be16::new(ETHERTYPE_QINQ);
    match ethertype {
        IPV4 => ipv4(packet, macs, at + ETH_LEN, depth),
        IPV6 => ipv6(packet, macs, at + ETH_LEN, depth),
        ARP => {
            // From a tunnel nothing else looks at it, and the kernel takes no outer headers off a stub.
            packet.view(at + ETH_LEN, ARP_LEN).ok_or(DropReason::ArpMalformed)?;
            Ok(Parsed::Known(Headers { macs, arp: true, ..Headers::default() }))
        }
        VLAN | QINQ => Err(DropReason::VlanTagged),
        _ => Err(DropReason::EthertypeUnknown),
    }
}

#[inline(always)]
fn ipv4<P: Packet>(packet: &P, macs: Macs, l3: usize, depth: Depth) -> Result<Parsed, DropReason> {
    let ip = packet.view(l3, IPV4_LEN).ok_or(DropReason::FrameTruncated)?;
    let version_ihl = ip.u8(0);
    let fragment_word = ip.be16(6).get();
    let fragment = fragment_word & 0x3fff != 0;
    if depth == Depth::Fast && (version_ihl != 0x45 || fragment) {
        return Ok(Parsed::Unusual);
    }
    let header_len = (version_ihl & 15) as usize * 4;
    let l3_len = ip.be16(2).get();
    if version_ihl >> 4 != 4 || header_len < IPV4_LEN || (l3_len as usize) < header_len {
        return Err(DropReason::Ipv4Malformed);
    }
    if l3 + l3_len as usize > packet.len() {
        return Err(DropReason::FrameTruncated);
    }
    let later_fragment = fragment_word & 0x1fff != 0;
    let mut headers = Headers {
        macs,
        src: Ip::v4(ip.be32(12)),
        dst: Ip::v4(ip.be32(16)),
        sport: Be16::new(0),
        dport: Be16::new(0),
        l3_at: l3 as u16,
        l4_at: (l3 + header_len) as u16,
        arp: false,
        l3_len,
        proto_at: 9,
        proto: ip.u8(9),
        ttl: ip.u8(8),
        v6: false,
        fragment,
        later_fragment,
        dont_fragment: fragment_word & 0x4000 != 0,
        options: header_len > IPV4_LEN,
    };
    if depth == Depth::Full {
        ipv4_header(packet, l3, header_len)?;
    }
    if !later_fragment {
        transport(packet, &mut headers, l3_len as usize - header_len)?;
    }
    Ok(Parsed::Known(headers))
}

/// Verifies the header checksum (RFC 1812, 5.2.2) and refuses source routing. A hit in the flow table does
/// without: the addresses it matched were verified when it was decided, and the incremental update keeps
/// any other damage visible to the receiver.
#[inline(always)]
fn ipv4_header<P: Packet>(packet: &P, l3: usize, header_len: usize) -> Result<(), DropReason> {
    let mut sum = 0;
    let mut at = 0;
    while at < 60 {
        if at >= header_len {
            break;
        }
        let word = packet.view(l3 + at, 4).ok_or(DropReason::FrameTruncated)?;
        sum = checksum::add32(sum, word.be32(0).memory());
        at += 4;
    }
    if checksum::fold(sum) != 0xffff {
        return Err(DropReason::Ipv4Checksum);
    }
    // Byte by byte, skipping what belongs to an option: every offset is a constant, which keeps the
    // verifier's states few.
    let mut skip = 0;
    let mut at = IPV4_LEN;
    while at < IPV4_LEN + OPTIONS_MAX {
        if at + 1 >= header_len {
            break;
        }
        let option = packet.view(l3 + at, 2).ok_or(DropReason::FrameTruncated)?;
        if skip > 0 {
            skip -= 1;
        } else {
            match option.u8(0) {
                0 => break,
                1 => {}
                // Loose and strict source routing.
                131 | 137 => return Err(DropReason::Ipv4SourceRoute),
                _ => {
                    let len = option.u8(1);
                    if len < 2 || len as usize > OPTIONS_MAX {
                        return Err(DropReason::Ipv4Malformed);
                    }
                    skip = len - 1;
                }
            }
        }
        at += 1;
    }
    Ok(())
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P, macs: Macs, l3: usize, depth: Depth) -> Result<Parsed, DropReason> {
    let ip = packet.view(l3, IPV6_LEN).ok_or(DropReason::FrameTruncated)?;
    let src = ip.ip6(8);
    let dst = ip.ip6(24);
    let payload = ip.be16(4).get() as usize;
    if ip.u8(0) >> 4 != 6 || src.is_v4() || dst.is_v4() || src.is_multicast() {
        return Err(DropReason::Ipv6Malformed);
    }
    if l3 + IPV6_LEN + payload > packet.len() || payload > u16::MAX as usize - IPV6_LEN {
        return Err(DropReason::FrameTruncated);
    }
    let mut headers = Headers {
        macs,
        src,
        dst,
        sport: Be16::new(0),
        dport: Be16::new(0),
        l3_at: l3 as u16,
        l4_at: (l3 + IPV6_LEN) as u16,
        arp: false,
        l3_len: (payload + IPV6_LEN) as u16,
        proto_at: 6,
        proto: ip.u8(6),
        ttl: ip.u8(7),
        v6: true,
        fragment: false,
        later_fragment: false,
        dont_fragment: true,
        options: false,
    };
    let mut left = payload;
    if is_extension(headers.proto) {
        if depth == Depth::Fast {
            return Ok(Parsed::Unusual);
        }
        left = extensions(packet, &mut headers, payload)?;
    }
    if !headers.later_fragment {
        transport(packet, &mut headers, left)?;
    }
    Ok(Parsed::Known(headers))
}

#[inline(always)]
const fn is_extension(proto: u8) -> bool {
    matches!(proto, PROTO_HOPOPTS | PROTO_ROUTING | PROTO_FRAGMENT | PROTO_AH | PROTO_DSTOPTS)
}

/// Walks the extension headers; returns the bytes left for the transport.
#[inline(always)]
fn extensions<P: Packet>(packet: &P, headers: &mut Headers, payload: usize) -> Result<usize, DropReason> {
    headers.options = true;
    let mut walked = 0;
    let mut used = 0;
    while walked < EXTENSIONS_MAX {
        if !is_extension(headers.proto) || headers.later_fragment {
            return Ok(payload - used);
        }
        if used + 8 > payload {
            return Err(DropReason::Ipv6Malformed);
        }
        let at = headers.l3() + IPV6_LEN + used;
        let header = packet.view(at, 8).ok_or(DropReason::FrameTruncated)?;
        let len = match headers.proto {
            PROTO_FRAGMENT => {
                let word = header.be16(2).get();
                headers.fragment = word & 0xfff9 != 0;
                headers.later_fragment = word & 0xfff8 != 0;
                8
            }
            PROTO_AH => (header.u8(1) as usize + 2) * 4,
            PROTO_ROUTING if header.u8(2) == 0 => return Err(DropReason::Ipv6Extension),
            _ => (header.u8(1) as usize + 1) * 8,
        };
        headers.proto = header.u8(0);
        headers.proto_at = (IPV6_LEN + used) as u16;
        used += len;
        if used > payload || used > 2048 {
            return Err(DropReason::Ipv6Malformed);
        }
        headers.l4_at = headers.l3_at + (IPV6_LEN + used) as u16;
        walked += 1;
    }
    if is_extension(headers.proto) && !headers.later_fragment {
        return Err(DropReason::Ipv6Extension);
    }
    Ok(payload - used)
}

/// Reads ports, or ICMP type and identifier; `left` bytes of transport exist according to the IP header.
#[inline(always)]
fn transport<P: Packet>(packet: &P, headers: &mut Headers, left: usize) -> Result<(), DropReason> {
    let need = match headers.proto {
        PROTO_TCP => 20,
        PROTO_SCTP => 12,
        PROTO_UDP | PROTO_ICMP | PROTO_ICMPV6 => 8,
        _ => return Ok(()),
    };
    // A first fragment may end inside the TCP header (RFC 791 lets it); ports suffice for routing it.
    if left < if headers.fragment { 8 } else { need } {
        return Err(DropReason::TransportTruncated);
    }
    let l4 = packet.view(headers.l4(), 8).ok_or(DropReason::FrameTruncated)?;
    match headers.proto {
        PROTO_ICMP | PROTO_ICMPV6 => {
            headers.dport = l4.be16(0);
            let kind = l4.u8(0);
            let echo = if headers.proto == PROTO_ICMP {
                matches!(kind, ICMP_ECHO | ICMP_ECHO_REPLY)
            } else {
                matches!(kind, ICMPV6_ECHO | ICMPV6_ECHO_REPLY)
            };
            if echo {
                headers.sport = l4.be16(4);
            }
        }
        _ => {
            headers.sport = l4.be16(0);
            headers.dport = l4.be16(2);
        }
    }
    Ok(())
}

impl Headers {
    /// Offset of the IP header in the packet.
    #[inline(always)]
    pub fn l3(&self) -> usize {
        // The mask is never felt; it tells the verifier a bound.
        self.l3_at as usize & 0xff
    }

    /// Offset of the transport header in the packet.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        self.l4_at as usize & 0xfff
    }

    /// Bytes of transport header and payload, after the IP header and its extensions.
    #[inline(always)]
    pub fn l4_len(&self) -> usize {
        (self.l3_len as usize).wrapping_sub(self.l4().wrapping_sub(self.l3())) & 0xffff
    }

    /// The IPv4 addresses' words, for what is built from them.
    #[inline(always)]
    pub fn v4_words(&self) -> (Be32, Be32) {
        (self.src.as_v4(), self.dst.as_v4())
    }

    /// Whether this is a neighbour discovery message (RFC 4861).
    #[inline(always)]
    pub fn is_neighbour_discovery(&self) -> bool {
        let kind = (self.dport.get() >> 8) as u8;
        self.proto == PROTO_ICMPV6 && matches!(kind, ND_ROUTER_SOLICIT..=ND_REDIRECT)
    }

    /// Whether this is an ICMP error message, or too cut to tell.
    #[inline(always)]
    pub fn is_icmp_error(&self) -> bool {
        let kind = (self.dport.get() >> 8) as u8;
        match self.proto {
            PROTO_ICMP => matches!(
                kind,
                ICMP_UNREACHABLE
                    | ICMP_SOURCE_QUENCH
                    | ICMP_REDIRECT
                    | ICMP_TIME_EXCEEDED
                    | ICMP_PARAMETER_PROBLEM
            ),
            PROTO_ICMPV6 => kind < 128 || kind == ND_REDIRECT,
            _ => false,
        }
    }
}
