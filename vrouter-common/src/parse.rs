//! Stage 1: reads a frame into [`Headers`].
//!
//! Reads: Ethernet, IPv4, IPv6 with extension headers, the first bytes of the transport. Writes: nothing.
//! Drops: `frame_truncated`, `vlan_tagged`, `ethertype_unknown`, `ethernet_source`, `ipv4_*`, `ipv6_*`,
//! `transport_truncated`, `arp_malformed` (cut short; what it says is read where it is answered).
//!
//! [`fast`] reads what almost every packet is (IPv4 without options, IPv6 without extension
//! headers, no fragments) and leaves the rest to [`full`].

use crate::{
    addr::{Be16, Be32, Ip, Macs},
    checksum,
    flow::Tuple,
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
    /// TCP flags, if they are in this packet.
    pub tcp_flags: u8,
    /// A fragment that is not the last.
    pub more_fragments: bool,
    /// Bytes of the largest IP packet seen of a fragment's datagram, this one included. Later fragments take
    /// the way of the largest, or they would overtake it.
    pub largest_fragment: u16,
    /// Where a fragment's bytes belong in its datagram.
    pub fragment_at: u32,
    /// Identification of a fragment's datagram.
    pub fragment_id: u32,
}

/// The packet an ICMP error quotes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quoted {
    /// Its addresses, protocol and ports.
    pub tuple: Tuple,
    /// Offset of its IP header in the packet; see [`Self::l3`].
    l3_at: u16,
    /// Offset of its transport header in the packet.
    l4_at: u16,
    /// Bytes of it that are quoted, from the transport header on.
    pub l4_len: u16,
    /// Whether there is one that can be told.
    pub known: bool,
}

impl Quoted {
    /// Offset of its IP header in the packet.
    #[inline(always)]
    pub fn l3(&self) -> usize {
        self.l3_at as usize & 0x3ff
    }

    /// Offset of its transport header in the packet.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        self.l4_at as usize & 0x3ff
    }
}

/// How much to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// What flow entries are made of.
    Fast,
    /// Everything.
    Full,
}

/// IPv6 extension headers that are walked; a packet with more is refused.
const EXTENSIONS_MAX: usize = 6;
/// IPv4 options that are walked: at most 40 bytes of them exist.
const OPTIONS_MAX: usize = 40;

/// Reads the IP packet of a frame that starts at `at`, as far as flow entries are made of it, without the
/// frame's own addresses. `None`: not for the fast path, which may be no fault.
#[inline(always)]
pub fn fast<P: Packet>(packet: &P, at: usize, v6: bool) -> Option<Headers> {
    let l3 = at + ETH_LEN;
    let read = match v6 {
        true => ipv6(packet, l3, Depth::Fast),
        false => ipv4(packet, l3, Depth::Fast),
    };
    read.ok()?
}

/// Reads the whole frame that starts at `at`.
#[inline(always)]
pub fn full<P: Packet>(packet: &P, at: usize) -> Result<Headers, DropReason> {
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
    let read = match ethertype {
        IPV4 => ipv4(packet, at + ETH_LEN, Depth::Full)?,
        IPV6 => ipv6(packet, at + ETH_LEN, Depth::Full)?,
        ARP => {
            // From a tunnel nothing else looks at it, and the kernel takes no outer headers off a stub.
            packet.view(at + ETH_LEN, ARP_LEN).ok_or(DropReason::ArpMalformed)?;
            Some(Headers { arp: true, ..Headers::default() })
        }
        VLAN | QINQ => return Err(DropReason::VlanTagged),
        _ => return Err(DropReason::EthertypeUnknown),
    };
    let mut headers = read.ok_or(DropReason::Internal)?;
    headers.macs = macs;
    Ok(headers)
}

#[inline(always)]
fn ipv4<P: Packet>(packet: &P, l3: usize, depth: Depth) -> Result<Option<Headers>, DropReason> {
    let ip = packet.view(l3, IPV4_LEN).ok_or(DropReason::FrameTruncated)?;
    let version_ihl = ip.u8(0);
    let fragment_word = ip.be16(6).get();
    let fragment = fragment_word & 0x3fff != 0;
    if depth == Depth::Fast && (version_ihl != 0x45 || fragment) {
        return Ok(None);
    }
    let header_len = (version_ihl & 15) as usize * 4;
    let l3_len = ip.be16(2).get();
    if version_ihl >> 4 != 4 || header_len < IPV4_LEN || (l3_len as usize) < header_len {
        return Err(DropReason::Ipv4Malformed);
    }
    if !packet.reaches(l3 + l3_len as usize) {
        return Err(DropReason::FrameTruncated);
    }
    let later_fragment = fragment_word & 0x1fff != 0;
    let mut headers = Headers {
        macs: Macs::default(),
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
        tcp_flags: 0,
        more_fragments: fragment_word & 0x2000 != 0,
        largest_fragment: 0,
        fragment_at: (fragment_word as u32 & 0x1fff) * 8,
        fragment_id: ip.be16(4).memory() as u32,
    };
    if depth == Depth::Full {
        ipv4_header(packet, l3, header_len)?;
    }
    if !later_fragment {
        transport(packet, &mut headers, l3_len as usize - header_len)?;
    }
    Ok(Some(headers))
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
fn ipv6<P: Packet>(packet: &P, l3: usize, depth: Depth) -> Result<Option<Headers>, DropReason> {
    let ip = packet.view(l3, IPV6_LEN).ok_or(DropReason::FrameTruncated)?;
    let src = ip.ip6(8);
    let dst = ip.ip6(24);
    let payload = ip.be16(4).get() as usize;
    if ip.u8(0) >> 4 != 6 || src.is_v4() || dst.is_v4() || src.is_multicast() {
        return Err(DropReason::Ipv6Malformed);
    }
    if !packet.reaches(l3 + IPV6_LEN + payload) || payload > u16::MAX as usize - IPV6_LEN {
        return Err(DropReason::FrameTruncated);
    }
    let mut headers = Headers {
        macs: Macs::default(),
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
        tcp_flags: 0,
        more_fragments: false,
        largest_fragment: 0,
        fragment_at: 0,
        fragment_id: 0,
    };
    let mut left = payload;
    if is_extension(headers.proto) {
        if depth == Depth::Fast {
            return Ok(None);
        }
        left = extensions(packet, &mut headers, payload)?;
    }
    if !headers.later_fragment {
        transport(packet, &mut headers, left)?;
    }
    Ok(Some(headers))
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
                headers.more_fragments = word & 1 != 0;
                headers.fragment_at = word as u32 & 0xfff8;
                headers.fragment_id = header.be32(4).memory();
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
    if headers.proto == PROTO_TCP
        && let Some(tcp) = packet.view(headers.l4(), 14)
        && left >= 14
    {
        headers.tcp_flags = tcp.u8(13);
    }
    Ok(())
}

/// Reads the packet that an ICMP error quotes, as far as 8 bytes behind its IP header (RFC 792). What cannot
/// be told (a later fragment, other extension headers, a quote cut shorter) is left unknown.
#[inline(always)]
pub fn quoted<P: Packet>(packet: &P, headers: &Headers) -> Quoted {
    let mut quoted = Quoted::default();
    let at = headers.l4() + 8;
    let len = headers.l4_len();
    if !headers.is_icmp_error() || headers.fragment || at > 0x200 || len < 8 {
        return quoted;
    }
    let at = at & 0x3ff;
    let len = len - 8;
    let header_len;
    let tuple = &mut quoted.tuple;
    if headers.v6 {
        let Some(ip) = packet.view(at, IPV6_LEN) else { return quoted };
        tuple.src = ip.ip6(8);
        tuple.dst = ip.ip6(24);
        tuple.proto = ip.u8(6);
        tuple.v6 = true;
        if ip.u8(0) >> 4 != 6 || tuple.src.is_v4() || tuple.dst.is_v4() {
            return quoted;
        }
        if tuple.proto == PROTO_FRAGMENT {
            // Path MTU discovery of a fragmented datagram.
            let Some(ext) = packet.view((at + IPV6_LEN) & 0x3ff, 8) else { return quoted };
            if ext.be16(2).get() & 0xfff8 != 0 {
                return quoted;
            }
            tuple.proto = ext.u8(0);
            header_len = IPV6_LEN + 8;
        } else {
            header_len = IPV6_LEN;
        }
    } else {
        let Some(ip) = packet.view(at, IPV4_LEN) else { return quoted };
        tuple.src = Ip::v4(ip.be32(12));
        tuple.dst = Ip::v4(ip.be32(16));
        tuple.proto = ip.u8(9);
        header_len = (ip.u8(0) & 15) as usize * 4;
        if ip.u8(0) >> 4 != 4 || header_len < IPV4_LEN || ip.be16(6).get() & 0x1fff != 0 {
            return quoted;
        }
    }
    if len < header_len + 8 {
        return quoted;
    }
    let l4_at = (at + header_len) & 0x3ff;
    let Some(l4) = packet.view(l4_at, 8) else { return quoted };
    match tuple.proto {
        PROTO_TCP | PROTO_UDP | PROTO_SCTP => {
            tuple.sport = l4.be16(0);
            tuple.dport = l4.be16(2);
        }
        PROTO_ICMP | PROTO_ICMPV6 => {
            tuple.dport = l4.be16(0);
            if tuple.is_echo() {
                tuple.sport = l4.be16(4);
            }
        }
        _ => {}
    }
    quoted.l3_at = at as u16;
    quoted.l4_at = l4_at as u16;
    quoted.l4_len = (len - header_len) as u16;
    quoted.known = true;
    quoted
}

impl Headers {
    /// Bytes of the frame they were read from, without what pads it.
    #[inline(always)]
    pub fn frame_len(&self) -> u64 {
        (self.l3() + self.l3_len as usize) as u64
    }

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

    /// Addresses, protocol and ports.
    #[inline(always)]
    pub const fn tuple(&self) -> Tuple {
        Tuple {
            src: self.src,
            dst: self.dst,
            sport: self.sport,
            dport: self.dport,
            proto: self.proto,
            v6: self.v6,
            zero: 0,
        }
    }

    /// See [`crate::flow::FlowKey::tuple_hash`].
    #[inline(always)]
    pub fn tuple_hash(&self) -> u32 {
        crate::flow::tuple_hash(&self.src, &self.dst, self.sport, self.dport, self.proto)
    }

    /// Whether this is a neighbour discovery message (RFC 4861).
    #[inline(always)]
    pub fn is_neighbour_discovery(&self) -> bool {
        let kind = (self.dport.get() >> 8) as u8;
        self.proto == PROTO_ICMPV6 && matches!(kind, ND_ROUTER_SOLICIT..=ND_REDIRECT)
    }

    /// Whether this is a neighbour advertisement.
    #[inline(always)]
    pub fn is_neighbour_advert(&self) -> bool {
        self.v6 && self.proto == PROTO_ICMPV6 && self.dport == Be16::new((ND_NEIGHBOR_ADVERT as u16) << 8)
    }

    /// Whether this is an ICMP error message, or too cut to tell.
    #[inline(always)]
    pub fn is_icmp_error(&self) -> bool {
        let kind = (self.dport.get() >> 8) as u8;
        match self.proto {
            PROTO_ICMP if !self.v6 => matches!(
                kind,
                ICMP_UNREACHABLE
                    | ICMP_SOURCE_QUENCH
                    | ICMP_REDIRECT
                    | ICMP_TIME_EXCEEDED
                    | ICMP_PARAMETER_PROBLEM
            ),
            PROTO_ICMPV6 if self.v6 => kind < 128 || kind == ND_REDIRECT,
            _ => false,
        }
    }
}
