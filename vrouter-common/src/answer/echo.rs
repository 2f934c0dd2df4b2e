//! Echo replies from a router's address (RFC 792, RFC 4443): the request, turned round.

use super::ROUTER_TTL;
use crate::{
    addr::Be16,
    checksum,
    packet::{Packet, View},
    parse::Headers,
    plan::{Answer, swapped},
    reason::DropReason,
    wire::*,
};

/// Turns the request into the reply. Swapping addresses changes no sum; type and TTL do.
#[inline(always)]
pub fn write<P: Packet>(packet: &mut P, headers: &Headers, answer: &Answer) -> Result<(), DropReason> {
    let ttl = ROUTER_TTL - (answer.hops & 0xf);
    if headers.v6 {
        let ip = packet.view(0, ETH_LEN + IPV6_LEN).ok_or(DropReason::Internal)?;
        ip.put_macs(0, &swapped(&headers.macs));
        ip.put_u8(ETH_LEN + 7, ttl);
        ip.put_ip6(ETH_LEN + 8, &headers.dst);
        ip.put_ip6(ETH_LEN + 24, &headers.src);
    } else {
        let ip = packet.view(0, ETH_LEN + IPV4_LEN).ok_or(DropReason::Internal)?;
        ip.put_macs(0, &swapped(&headers.macs));
        let old = ip.be16(ETH_LEN + 8);
        ip.put_u8(ETH_LEN + 8, ttl);
        let new = ip.be16(ETH_LEN + 8);
        let sum = checksum::replace16(ip.be16(ETH_LEN + 10), old.memory(), new.memory());
        ip.put_be16(ETH_LEN + 10, sum);
        let (src, dst) = headers.v4_words();
        ip.put_be32(ETH_LEN + 12, dst);
        ip.put_be32(ETH_LEN + 16, src);
    }
    let icmp = packet.view(headers.l4(), 8).ok_or(DropReason::Internal)?;
    let (request, reply) =
        if headers.v6 { (ICMPV6_ECHO, ICMPV6_ECHO_REPLY) } else { (ICMP_ECHO, ICMP_ECHO_REPLY) };
    let (old, new) = (Be16::new((request as u16) << 8), Be16::new((reply as u16) << 8));
    icmp.put_be16(0, new);
    let sum = checksum::replace16(icmp.be16(2), old.memory(), new.memory());
    // RFC 1624 takes for granted that something is not zero. A reply may be all zeros (identifier, sequence
    // number, data): then 0 is wrong; and where 0 is right, its other form is, too.
    let sum = if sum == Be16::new(0) { Be16::new(0xffff) } else { sum };
    icmp.put_be16(2, sum);
    Ok(())
}
