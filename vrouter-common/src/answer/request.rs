//! ARP requests (RFC 826) and neighbour solicitations (RFC 4861) for next hops on external networks.
//!
//! Nobody on such a network may learn a wrong address from them: the sender is the router's address only
//! where this node owns it, else nobody (an ARP probe, RFC 5227); over IPv6 the link-local address made of
//! this node's hardware address.
//!
//! Drops: `no_room`, `internal`.

use crate::{
    addr::{Be16, Be32, Ip, Macs},
    apply::Exit,
    checksum,
    packet::{Packet, View},
    plan::Plan,
    reason::DropReason,
    tables::*,
    wire::*,
};

/// A neighbour solicitation with its link-layer address option.
const SOLICIT_LEN: usize = 32;
const LEN_V4: usize = ETH_LEN + ARP_LEN;
const LEN_V6: usize = ETH_LEN + IPV6_LEN + SOLICIT_LEN;

/// Writes the request for the plan's next hop over the packet, which has no outer headers.
#[inline(always)]
pub fn write<P: Packet, T: Tables>(packet: &mut P, tables: &T, plan: &Plan) -> Result<Exit, DropReason> {
    let hop = tables.hop(plan.flow.target).ok_or(DropReason::Internal)?;
    let key = RouterLegKey { router: Scoped::new(plan.bank, plan.leaves_by), network: plan.leaves_on };
    let leg = tables.router_leg(&key).ok_or(DropReason::RouterDetached)?;
    if hop.ip.is_v4() {
        packet.resize(LEN_V4).map_err(|_| DropReason::NoRoom)?;
        let out = packet.view(0, LEN_V4).ok_or(DropReason::NoRoom)?;
        arp(&out, leg, &hop.ip);
    } else {
        packet.resize(LEN_V6).map_err(|_| DropReason::NoRoom)?;
        let out = packet.view(0, LEN_V6).ok_or(DropReason::NoRoom)?;
        solicit(&out, leg, &hop.ip);
    }
    Ok(Exit::Interface(hop.ifindex))
}

fn arp<V: View>(out: &V, leg: &RouterLeg, target: &Ip) {
    let sender = if leg.speaks_for_itself() { leg.v4.as_v4() } else { Be32::new(0) };
    out.put_macs(0, &Macs::new([0xff; 6], leg.mac));
    out.put_be16(12, Be16::new(ETHERTYPE_ARP));
    out.put_be32(14, Be32::new(0x0001_0800));
    out.put_be32(18, Be32::new(0x0604_0001));
    out.put_mac(22, &leg.mac);
    out.put_be32(28, sender);
    out.put_mac(32, &[0; 6]);
    out.put_be32(38, target.as_v4());
}

fn solicit<V: View>(out: &V, leg: &RouterLeg, target: &Ip) {
    let source = Ip::link_local_of(leg.mac);
    let low = u32::from_be(target.0[3]);
    // ff02::1:ffXX:XXXX
    let group = Ip([0xff02_0000_u32.to_be(), 0, 1_u32.to_be(), (0xff00_0000 | low & 0x00ff_ffff).to_be()]);
    let low = low.to_be_bytes();
    out.put_macs(0, &Macs::new([0x33, 0x33, 0xff, low[1], low[2], low[3]], leg.mac));
    out.put_be16(12, Be16::new(ETHERTYPE_IPV6));
    out.put_be32(14, Be32::new(0x6000_0000));
    out.put_be32(18, Be32::new((SOLICIT_LEN as u32) << 16 | (PROTO_ICMPV6 as u32) << 8 | 255));
    out.put_ip6(22, &source);
    out.put_ip6(38, &group);
    let mac = leg.mac;
    let words = [
        Be32::new((ND_NEIGHBOR_SOLICIT as u32) << 24),
        Be32::new(0),
        Be32::from_memory(target.0[0]),
        Be32::from_memory(target.0[1]),
        Be32::from_memory(target.0[2]),
        Be32::from_memory(target.0[3]),
        // Source link-layer address, length 1 (8 bytes).
        Be32::new(0x0101_0000 | (mac[0] as u32) << 8 | mac[1] as u32),
        Be32::from_memory(u32::from_ne_bytes([mac[2], mac[3], mac[4], mac[5]])),
    ];
    let mut sum = checksum::pseudo_v6(&source, &group, SOLICIT_LEN as u16, PROTO_ICMPV6);
    let mut i = 0;
    while i < 8 {
        sum = checksum::add32(sum, words[i].memory());
        out.put_be32(54 + i * 4, words[i]);
        i += 1;
    }
    out.put_be16(56, checksum::finish(sum));
}
