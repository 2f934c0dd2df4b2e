//! Neighbour discovery (RFC 4861) answered from the topology, on the asker's node (behaviour L2).
//!
//! Drops: nothing of its own; the solicitation was checked by [`crate::admit`].

use crate::{
    addr::{Be16, Be32, Ip, Macs},
    checksum, learn,
    packet::{Packet, View},
    parse::Headers,
    plan::{Answer, Decision, Ingress, ND_ADVERT, Plan},
    reason::DropReason,
    tables::*,
    wire::*,
};

/// A neighbour advertisement with its link-layer address option.
const ADVERT_LEN: usize = 32;
/// ff02::1
const ALL_NODES: Ip = Ip([0xff02_0000_u32.to_be(), 0, 0, 1_u32.to_be()]);

/// Decides a solicitation; `None`: nobody is known to have the address, or it is the asker's own.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Option<Decision>, DropReason> {
    let (bank, binding) = (plan.bank, plan.binding);
    // Without port security nobody checked it before.
    let len = headers.l4_len();
    if headers.ttl != 255 || headers.fragment || headers.dport.get() & 0xff != 0 || len < 24 {
        return Err(DropReason::NdMalformed);
    }
    let nd = packet.view(headers.l4(), 24).ok_or(DropReason::NdMalformed)?;
    let target = nd.ip6(8);
    if target.is_v4() || target.is_multicast() {
        return Err(DropReason::NdMalformed);
    }
    let Some(station) = tables.address(&AddressKey::new(bank, binding.network, target)) else {
        return Ok(None);
    };
    if station.place == PLACE_UNBOUND || station.kind == STATION_PORT && station.owner == binding.port {
        return Ok(None);
    }
    plan.answer.kind = ND_ADVERT;
    plan.answer.mac = station.mac;
    plan.answer.router = (station.kind == STATION_ROUTER) as u8;
    plan.answer.source = target;
    Ok(Some(Decision::Answer))
}

/// Notes what an advertisement claims.
#[inline(always)]
pub fn claims<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    ingress: &Ingress,
    network: u32,
    headers: &Headers,
    plan: &mut Plan,
) {
    if headers.ttl == 255
        && !headers.fragment
        && headers.l4_len() >= 24
        && let Some(nd) = packet.view(headers.l4(), 24)
    {
        learn::claim(tables, ingress, network, nd.ip6(8), headers.macs.src(), plan);
    }
}

/// Turns the solicitation into the advertisement.
#[inline(always)]
pub fn write<P: Packet>(packet: &mut P, headers: &Headers, answer: &Answer) -> Result<(), DropReason> {
    const LEN: usize = ETH_LEN + IPV6_LEN + ADVERT_LEN;
    // A duplicate address detection is answered to everybody (RFC 4861, 7.2.4): the asker has no address.
    let probe = headers.src == Ip::UNSPECIFIED;
    let dst = if probe { ALL_NODES } else { headers.src };
    let dst_mac = if probe { [0x33, 0x33, 0, 0, 0, 1] } else { headers.macs.src() };
    packet.resize(LEN).map_err(|_| DropReason::NoRoom)?;
    let out = packet.view(0, LEN).ok_or(DropReason::NoRoom)?;
    out.put_macs(0, &Macs::new(dst_mac, answer.mac));
    out.put_be16(12, Be16::new(ETHERTYPE_IPV6));
    out.put_be32(14, Be32::new(0x6000_0000));
    out.put_be32(18, Be32::new((ADVERT_LEN as u32) << 16 | (PROTO_ICMPV6 as u32) << 8 | 255));
    out.put_ip6(22, &answer.source);
    out.put_ip6(38, &dst);
    let flags = (answer.router as u32) << 31 | (!probe as u32) << 30 | 1 << 29;
    let mac = answer.mac;
    let words = [
        Be32::new((ND_NEIGHBOR_ADVERT as u32) << 24),
        Be32::new(flags),
        Be32::from_memory(answer.source.0[0]),
        Be32::from_memory(answer.source.0[1]),
        Be32::from_memory(answer.source.0[2]),
        Be32::from_memory(answer.source.0[3]),
        // Target link-layer address, length 1 (8 bytes).
        Be32::new(0x0201_0000 | (mac[0] as u32) << 8 | mac[1] as u32),
        Be32::from_memory(u32::from_ne_bytes([mac[2], mac[3], mac[4], mac[5]])),
    ];
    let mut sum = checksum::pseudo_v6(&answer.source, &dst, ADVERT_LEN as u16, PROTO_ICMPV6);
    let mut i = 0;
    while i < 8 {
        sum = checksum::add32(sum, words[i].memory());
        out.put_be32(54 + i * 4, words[i]);
        i += 1;
    }
    out.put_be16(56, checksum::finish(sum));
    Ok(())
}
