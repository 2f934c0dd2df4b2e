//! TCP resets from a router's address (RFC 9293, 3.10.7.1): nothing listens there.

use super::{ROUTER_TTL, error::put_ipv4};
use crate::{
    addr::Be32,
    checksum,
    packet::{Packet, View},
    parse::Headers,
    plan::{Answer, swapped},
    reason::DropReason,
    wire::*,
};

const TCP_LEN: usize = 20;

/// Turns the segment into the reset for it.
#[inline(always)]
pub fn write<P: Packet>(packet: &mut P, headers: &Headers, answer: &Answer) -> Result<(), DropReason> {
    let ttl = ROUTER_TTL - (answer.hops & 0xf);
    let tcp = packet.view(headers.l4(), TCP_LEN).ok_or(DropReason::TransportTruncated)?;
    let (sequence, acknowledged) = (tcp.be32(4), tcp.be32(8));
    let header_len = (tcp.u8(12) >> 4) as u32 * 4;
    let flags = tcp.u8(13);
    let segment = headers.l4_len() as u32;
    let data = segment.saturating_sub(header_len);
    let occupied = data + (flags & TCP_SYN != 0) as u32 + (flags & TCP_FIN != 0) as u32;
    let (seq, ack, out_flags) = if flags & TCP_ACK != 0 {
        (acknowledged, Be32::new(0), TCP_RST)
    } else {
        (Be32::new(0), Be32::new(sequence.get().wrapping_add(occupied)), TCP_RST | TCP_ACK)
    };
    let l4 = if headers.v6 { ETH_LEN + IPV6_LEN } else { ETH_LEN + IPV4_LEN };
    packet.resize(l4 + TCP_LEN).map_err(|_| DropReason::NoRoom)?;
    let macs = swapped(&headers.macs);
    let mut sum = if headers.v6 {
        let out = packet.view(0, ETH_LEN + IPV6_LEN).ok_or(DropReason::NoRoom)?;
        out.put_macs(0, &macs);
        out.put_be32(14, Be32::new(0x6000_0000));
        out.put_be32(18, Be32::new((TCP_LEN as u32) << 16 | (PROTO_TCP as u32) << 8 | ttl as u32));
        out.put_ip6(22, &headers.dst);
        out.put_ip6(38, &headers.src);
        checksum::pseudo_v6(&headers.dst, &headers.src, TCP_LEN as u16, PROTO_TCP)
    } else {
        let out = packet.view(0, ETH_LEN + IPV4_LEN).ok_or(DropReason::NoRoom)?;
        out.put_macs(0, &macs);
        put_ipv4(&out, (IPV4_LEN + TCP_LEN) as u16, ttl, PROTO_TCP, &headers.dst, &headers.src);
        checksum::pseudo_v4(&headers.dst, &headers.src, TCP_LEN as u16, PROTO_TCP)
    };
    let words = [
        Be32::new((headers.dport.get() as u32) << 16 | headers.sport.get() as u32),
        seq,
        ack,
        Be32::new(5 << 28 | (out_flags as u32) << 16),
        Be32::new(0),
    ];
    let out = packet.view(l4, TCP_LEN).ok_or(DropReason::NoRoom)?;
    let mut i = 0;
    while i < 5 {
        sum = checksum::add32(sum, words[i].memory());
        out.put_be32(i * 4, words[i]);
        i += 1;
    }
    out.put_be16(16, checksum::finish(sum));
    Ok(())
}
