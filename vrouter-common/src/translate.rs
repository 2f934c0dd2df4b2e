//! Part of stage 4: rewrites addresses, ports and every checksum over them (RFC 3022; RFC 1624).
//!
//! Reads: the flow. Writes: the packet. Drops: `internal` where bytes that were there are gone.

use crate::{
    addr::Be16,
    checksum,
    flow::{Flow, FlowKey},
    packet::{Packet, View},
    parse::Quoted,
    reason::DropReason,
    wire::*,
};

/// Translates a packet of the flow whose Ethernet header is at 0. `l4`: offset of its transport header, 0 if
/// it has none (a later fragment).
#[inline(always)]
pub fn packet<P: Packet>(
    packet: &mut P,
    flow: &Flow,
    v6: bool,
    proto: u8,
    l4: usize,
) -> Result<(), DropReason> {
    if v6 {
        let ip = packet.view(ETH_LEN, IPV6_LEN).ok_or(DropReason::Internal)?;
        ip.put_ip6(8, &flow.src);
        ip.put_ip6(24, &flow.dst);
    } else {
        let ip = packet.view(ETH_LEN, IPV4_LEN).ok_or(DropReason::Internal)?;
        ip.put_be32(12, flow.src.as_v4());
        ip.put_be32(16, flow.dst.as_v4());
        ip.put_be16(10, checksum::adjust(ip.be16(10), flow.l3_delta));
    }
    if l4 == 0 {
        return Ok(());
    }
    match proto {
        PROTO_TCP => {
            let tcp = packet.view(l4, 4).ok_or(DropReason::Internal)?;
            tcp.put_be16(0, flow.sport);
            tcp.put_be16(2, flow.dport);
            packet.adjust_checksum(l4 + 16, flow.l3_delta, flow.l4_delta, v6, false)
        }
        PROTO_UDP => {
            let udp = packet.view(l4, 4).ok_or(DropReason::Internal)?;
            udp.put_be16(0, flow.sport);
            udp.put_be16(2, flow.dport);
            packet.adjust_checksum(l4 + 6, flow.l3_delta, flow.l4_delta, v6, true)
        }
        PROTO_ICMP if flow.l4_delta != 0 => {
            let icmp = packet.view(l4, 8).ok_or(DropReason::Internal)?;
            icmp.put_be16(4, flow.sport);
            packet.adjust_checksum(l4 + 2, 0, flow.l4_delta, v6, false)
        }
        PROTO_ICMPV6 => packet.adjust_checksum(l4 + 2, flow.l3_delta, 0, v6, false),
        _ => Ok(()),
    }
    .map_err(|_| DropReason::Internal)
}

/// Translates an ICMP error about the other direction of a connection: its own addresses, and inside it those
/// and the ports of the packet it quotes, which travelled the other way (RFC 5508, 4.2). `leg` with
/// `key`: the direction the error travels in. `flow`: the error's own translated addresses. `moved`: bytes
/// that were taken from the front since the offsets were read.
#[inline(always)]
pub fn error<P: Packet>(
    packet: &mut P,
    flow: &Flow,
    leg: &Flow,
    key: &FlowKey,
    quoted: &Quoted,
    l4: usize,
    moved: usize,
) -> Result<(), DropReason> {
    let v6 = quoted.tuple.v6;
    // What its bytes add to the ICMP checksum after and before.
    let mut change = 0;
    let inner = quoted.l3().wrapping_sub(moved) & 0x3ff;
    if v6 {
        let ip = packet.view(inner, IPV6_LEN).ok_or(DropReason::Internal)?;
        ip.put_ip6(8, &leg.dst);
        ip.put_ip6(24, &leg.src);
        change = sums(change, leg.l3_delta);
    } else {
        // An IPv4 header's sum stays what it is: its checksum takes up the difference.
        let ip = packet.view(inner, IPV4_LEN).ok_or(DropReason::Internal)?;
        ip.put_be32(12, leg.dst.as_v4());
        ip.put_be32(16, leg.src.as_v4());
        let (old, new) = (ip.be16(10), checksum::adjust(ip.be16(10), leg.l3_delta));
        ip.put_be16(10, new);
        change = sums(change, leg.l3_delta);
        change = sums(sums(change, !old.memory()), new.memory());
    }
    change = inner_transport(packet, leg, key, quoted, moved, change)?;
    // Its own addresses.
    let mut outer = 0;
    if v6 {
        let ip = packet.view(ETH_LEN, IPV6_LEN).ok_or(DropReason::Internal)?;
        outer = checksum::add_ip(checksum::add_ip(outer, &flow.src), &flow.dst);
        let gone = checksum::add_ip(checksum::add_ip(0, &ip.ip6(8)), &ip.ip6(24));
        outer = checksum::difference(outer, gone) as u32;
        ip.put_ip6(8, &flow.src);
        ip.put_ip6(24, &flow.dst);
    } else {
        let ip = packet.view(ETH_LEN, IPV4_LEN).ok_or(DropReason::Internal)?;
        let (src, dst) = (flow.src.as_v4(), flow.dst.as_v4());
        let new = checksum::add32(checksum::add32(0, src.memory()), dst.memory());
        let old = checksum::add32(checksum::add32(0, ip.be32(12).memory()), ip.be32(16).memory());
        let delta = checksum::difference(new, old);
        ip.put_be32(12, src);
        ip.put_be32(16, dst);
        ip.put_be16(10, checksum::adjust(ip.be16(10), delta));
    }
    let outer = checksum::fold(outer);
    packet.adjust_checksum(l4 + 2, outer, checksum::fold(change), v6, false).map_err(|_| DropReason::Internal)
}

#[inline(always)]
const fn sums(sum: u32, word: u16) -> u32 {
    sum + word as u32
}

/// The quoted packet's ports and checksum, as far as they are quoted.
#[inline(always)]
fn inner_transport<P: Packet>(
    packet: &P,
    leg: &Flow,
    key: &FlowKey,
    quoted: &Quoted,
    moved: usize,
    mut change: u32,
) -> Result<u32, DropReason> {
    let at = quoted.l4().wrapping_sub(moved) & 0x3ff;
    let view = packet.view(at, 8).ok_or(DropReason::Internal)?;
    let (checksum_at, address_delta, optional) = match quoted.tuple.proto {
        PROTO_TCP => (16, leg.l3_delta, false),
        PROTO_UDP => (6, leg.l3_delta, true),
        PROTO_ICMP => (2, 0, false),
        PROTO_ICMPV6 => (2, leg.l3_delta, false),
        _ => return Ok(change),
    };
    match quoted.tuple.proto {
        PROTO_TCP | PROTO_UDP => {
            // It travelled the other way.
            view.put_be16(0, leg.dport);
            view.put_be16(2, leg.sport);
            change = sums(change, leg.l4_delta);
        }
        _ if quoted.tuple.is_echo() && leg.sport != key.sport => {
            view.put_be16(4, leg.sport);
            change = sums(change, leg.l4_delta);
        }
        _ => {}
    }
    if (quoted.l4_len as usize) < checksum_at + 2 {
        return Ok(change);
    }
    let Some(field) = packet.view(at + checksum_at, 2) else { return Ok(change) };
    let old = field.be16(0);
    if optional && old == Be16::new(0) {
        return Ok(change);
    }
    let delta = checksum::fold(address_delta as u32 + leg.l4_delta as u32);
    let mut new = checksum::adjust(old, delta);
    if optional && new == Be16::new(0) {
        new = Be16::new(0xffff);
    }
    field.put_be16(0, new);
    Ok(sums(sums(change, !old.memory()), new.memory()))
}
