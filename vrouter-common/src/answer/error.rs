//! ICMP errors (RFC 792, RFC 1812 4.3.2; RFC 4443): as much of the refused packet as fits 576 or 1280 bytes.

use super::ROUTER_TTL;
use crate::{
    addr::{Be16, Be32, Ip},
    checksum,
    packet::{Packet, SUM_MAX, View},
    parse::Headers,
    plan::{Answer, swapped},
    reason::DropReason,
    wire::*,
};

const ICMP_LEN: usize = 8;
/// RFC 1812, 4.3.2.3: the whole datagram at most 576 bytes.
const QUOTE_V4: usize = 576 - IPV4_LEN - ICMP_LEN;
/// RFC 4443, 2.4 c: the whole packet at most 1280 bytes.
const QUOTE_V6: usize = 1280 - IPV6_LEN - ICMP_LEN;
const _: () = assert!(QUOTE_V6 <= SUM_MAX);

/// Turns the refused packet into the error about it.
#[inline(always)]
pub fn write<P: Packet>(packet: &mut P, headers: &Headers, answer: &Answer) -> Result<(), DropReason> {
    let ttl = ROUTER_TTL - (answer.hops & 0xf);
    let most = if headers.v6 { QUOTE_V6 } else { QUOTE_V4 };
    let l3_len = headers.l3_len as usize;
    let quote = if l3_len > most { most } else { l3_len };
    packet.resize(ETH_LEN + quote).map_err(|_| DropReason::NoRoom)?;
    let quoted = packet.sum(ETH_LEN, quote).ok_or(DropReason::Internal)?;
    let quoted = checksum::fold(quoted) as u32;
    let first = Be32::new((answer.icmp_type as u32) << 24 | (answer.icmp_code as u32) << 16);
    let rest = Be32::new(answer.rest);
    let sum = checksum::add32(checksum::add32(quoted, first.memory()), rest.memory());
    let macs = swapped(&headers.macs);
    if headers.v6 {
        packet.push_front(IPV6_LEN + ICMP_LEN).map_err(|_| DropReason::NoRoom)?;
        let out = packet.view(0, ETH_LEN + IPV6_LEN + ICMP_LEN).ok_or(DropReason::NoRoom)?;
        let len = (ICMP_LEN + quote) as u16;
        out.put_macs(0, &macs);
        out.put_be16(12, Be16::new(ETHERTYPE_IPV6));
        out.put_be32(14, Be32::new(0x6000_0000));
        out.put_be32(18, Be32::new((len as u32) << 16 | (PROTO_ICMPV6 as u32) << 8 | ttl as u32));
        out.put_ip6(22, &answer.source);
        out.put_ip6(38, &headers.src);
        let sum =
            sum + checksum::fold(checksum::pseudo_v6(&answer.source, &headers.src, len, PROTO_ICMPV6)) as u32;
        put_icmp(&out, ETH_LEN + IPV6_LEN, first, rest, sum);
    } else {
        packet.push_front(IPV4_LEN + ICMP_LEN).map_err(|_| DropReason::NoRoom)?;
        let out = packet.view(0, ETH_LEN + IPV4_LEN + ICMP_LEN).ok_or(DropReason::NoRoom)?;
        out.put_macs(0, &macs);
        out.put_be16(12, Be16::new(ETHERTYPE_IPV4));
        put_ipv4(&out, (IPV4_LEN + ICMP_LEN + quote) as u16, ttl, PROTO_ICMP, &answer.source, &headers.src);
        put_icmp(&out, ETH_LEN + IPV4_LEN, first, rest, sum);
    }
    Ok(())
}

#[inline(always)]
fn put_icmp<V: View>(out: &V, at: usize, first: Be32, rest: Be32, sum: u32) {
    out.put_be32(at, first);
    out.put_be16(at + 2, checksum::finish(sum));
    out.put_be32(at + 4, rest);
}

/// Writes an IPv4 header behind an Ethernet header: precedence internetwork control, as Linux marks its
/// errors (RFC 1812, 4.3.2.5), don't fragment, identification 0 (RFC 6864, 4.1).
#[inline(always)]
pub fn put_ipv4<V: View>(out: &V, len: u16, ttl: u8, proto: u8, src: &Ip, dst: &Ip) {
    let tos = if proto == PROTO_ICMP { 0xc0_u32 } else { 0 };
    let words = [
        Be32::new(0x4500_0000 | tos << 16 | len as u32),
        Be32::new(0x0000_4000),
        Be32::new((ttl as u32) << 24 | (proto as u32) << 16),
        src.as_v4(),
        dst.as_v4(),
    ];
    let mut sum = 0;
    let mut i = 0;
    while i < 5 {
        sum = checksum::add32(sum, words[i].memory());
        out.put_be32(ETH_LEN + i * 4, words[i]);
        i += 1;
    }
    out.put_be16(ETH_LEN + 10, checksum::finish(sum));
}
