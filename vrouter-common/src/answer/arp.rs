//! ARP (RFC 826) answered from the topology, on the asker's node (behaviour L2).
//!
//! Drops: `arp_malformed`, `spoofed_arp`, `spoofed_mac`, `mac_unknown`, `router_ignored`.

use crate::{
    addr::{Be16, Be32, Ip, Macs},
    admit,
    deliver::deliver_frame,
    learn,
    packet::{Packet, View},
    parse::Headers,
    plan::{ARP_REPLY, Answer, Decision, Ingress, Plan},
    reason::DropReason,
    tables::*,
    wire::*,
};

const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// Decides an ARP packet from a port: a request for an address somebody else has is answered; one nobody
/// is known to have is flooded; a reply is switched.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    ingress: &Ingress,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let (bank, binding) = (plan.bank, plan.binding);
    let arp = packet.view(ETH_LEN, ARP_LEN).ok_or(DropReason::ArpMalformed)?;
    let operation = arp.be16(6).get();
    // Ethernet, IPv4, lengths 6 and 4.
    if arp.be32(0) != Be32::new(0x0001_0800)
        || arp.be16(4) != Be16::new(0x0604)
        || operation != REQUEST && operation != REPLY
    {
        return Err(DropReason::ArpMalformed);
    }
    let sender = Ip::v4(arp.be32(14));
    let target = Ip::v4(arp.be32(24));
    admit::arp(tables, bank, &binding, headers.macs.src(), arp.mac(8), sender)?;
    learn::claim(tables, ingress, binding.network, sender, arp.mac(8), plan);
    if operation == REQUEST
        && let Some(station) = tables.address(&AddressKey::new(bank, binding.network, target))
        // Whoever holds it answers.
        && station.place != PLACE_UNBOUND
        // Asking for one's own address announces it, or probes for somebody else who has it.
        && !(station.kind == STATION_PORT && station.owner == binding.port)
    {
        plan.answer.kind = ARP_REPLY;
        plan.answer.mac = station.mac;
        plan.answer.source = target;
        return Ok(Decision::Answer);
    }
    if headers.macs.is_group() {
        return Ok(Decision::Flood);
    }
    deliver_frame(tables, headers, plan)
}

/// Notes what ARP from another node claims.
#[inline(always)]
pub fn claims<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    ingress: &Ingress,
    network: u32,
    headers: &Headers,
    plan: &mut Plan,
) {
    if let Some(arp) = packet.view(ingress.at + ETH_LEN, ARP_LEN)
        && arp.be32(0) == Be32::new(0x0001_0800)
        && arp.be16(4) == Be16::new(0x0604)
        && arp.mac(8) == headers.macs.src()
    {
        learn::claim(tables, ingress, network, Ip::v4(arp.be32(14)), arp.mac(8), plan);
    }
}

/// Turns the request into the reply.
#[inline(always)]
pub fn write<P: Packet>(packet: &mut P, answer: &Answer) -> Result<(), DropReason> {
    let frame = packet.view(0, ETH_LEN + ARP_LEN).ok_or(DropReason::ArpMalformed)?;
    let asker = frame.mac(ETH_LEN + 8);
    let asker_ip = frame.be32(ETH_LEN + 14);
    frame.put_macs(0, &Macs::new(asker, answer.mac));
    frame.put_be16(ETH_LEN + 6, Be16::new(REPLY));
    frame.put_mac(ETH_LEN + 8, &answer.mac);
    frame.put_be32(ETH_LEN + 14, answer.source.as_v4());
    frame.put_mac(ETH_LEN + 18, &asker);
    frame.put_be32(ETH_LEN + 24, asker_ip);
    Ok(())
}
