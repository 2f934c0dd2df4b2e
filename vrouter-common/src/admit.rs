//! Stage 3a: may this port send this? (behaviour L3)
//!
//! Reads: the anti-spoofing trie. Writes: nothing. Drops: `spoofed_mac`, `spoofed_ip`, `spoofed_arp`,
//! `spoofed_nd`, `rogue_dhcp`, `rogue_ra`, `nd_malformed`.
//!
//! The trie holds, per port, its hardware address with each fixed IP and the IPv6 link-local address made
//! of it, and each allowed address pair. Beyond that a port may speak from the unspecified address where a
//! protocol needs it: DHCP discovery, duplicate address detection, multicast listener reports.

use crate::{
    addr::Ip,
    packet::{Packet, View},
    parse::Headers,
    reason::DropReason,
    tables::{AllowedKey, BINDING_NO_SECURITY, Binding, Tables},
    wire::*,
};

const ND_OPTION_SOURCE: u8 = 1;
const ND_OPTION_TARGET: u8 = 2;
const ND_OPTIONS_MAX: usize = 4;

/// Checks an IP packet's sender.
#[inline(always)]
pub fn ip<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    bank: u32,
    binding: &Binding,
    headers: &Headers,
) -> Result<(), DropReason> {
    if binding.flags & BINDING_NO_SECURITY != 0 {
        return Ok(());
    }
    let mac = headers.macs.src();
    let own_mac = mac == binding.mac;
    if !tables.allowed(&AllowedKey::lookup(bank, binding.port, mac, headers.src)) {
        if !own_mac {
            return Err(DropReason::SpoofedMac);
        }
        if !may_be_unspecified(headers) {
            return Err(DropReason::SpoofedIp);
        }
    }
    match headers.proto {
        // A first fragment carries the ports, and is as much of an offer as a whole packet.
        PROTO_UDP if !headers.later_fragment => {
            let (client, server) =
                if headers.v6 { (DHCPV6_CLIENT, DHCPV6_SERVER) } else { (DHCP_CLIENT, DHCP_SERVER) };
            // Clients on the link do not ask which port an answer comes from.
            let is_near = headers.macs.dst()[0] != ROUTER_MAC;
            if headers.dport.get() == client && (is_near || headers.sport.get() == server) {
                return Err(DropReason::RogueDhcp);
            }
        }
        PROTO_ICMPV6 if headers.v6 && !headers.later_fragment => {
            return neighbour_discovery(packet, tables, bank, binding, headers);
        }
        _ => {}
    }
    Ok(())
}

#[inline(always)]
fn may_be_unspecified(headers: &Headers) -> bool {
    if headers.fragment {
        return false;
    }
    if headers.src == Ip::V4_UNSPECIFIED {
        return headers.proto == PROTO_UDP
            && headers.sport.get() == DHCP_CLIENT
            && headers.dport.get() == DHCP_SERVER;
    }
    // Duplicate address detection (RFC 4862), router solicitation (RFC 4861), and multicast listener
    // reports while it goes on (RFC 3810, RFC 2710).
    headers.src == Ip::UNSPECIFIED
        && headers.proto == PROTO_ICMPV6
        && matches!(headers.dport.get() >> 8, 131 | 132 | 133 | 135 | 143)
}

#[inline(always)]
fn neighbour_discovery<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    bank: u32,
    binding: &Binding,
    headers: &Headers,
) -> Result<(), DropReason> {
    let kind = (headers.dport.get() >> 8) as u8;
    match kind {
        ND_ROUTER_ADVERT | ND_REDIRECT => return Err(DropReason::RogueRa),
        ND_NEIGHBOR_SOLICIT | ND_NEIGHBOR_ADVERT => {}
        _ => return Ok(()),
    }
    // RFC 4861, 7.1; RFC 6980 forbids fragments.
    let len = headers.l4_len();
    if headers.ttl != 255 || headers.dport.get() & 0xff != 0 || headers.fragment || len < 24 {
        return Err(DropReason::NdMalformed);
    }
    let nd = packet.view(headers.l4(), 24).ok_or(DropReason::NdMalformed)?;
    let mac = headers.macs.src();
    if kind == ND_NEIGHBOR_ADVERT && !tables.allowed(&AllowedKey::lookup(bank, binding.port, mac, nd.ip6(8)))
    {
        return Err(DropReason::SpoofedNd);
    }
    let mut at = 24;
    let mut walked = 0;
    while walked < ND_OPTIONS_MAX {
        if at + 8 > len {
            return Ok(());
        }
        let option = packet.view(headers.l4() + at, 8).ok_or(DropReason::NdMalformed)?;
        let option_len = option.u8(1) as usize * 8;
        if option_len == 0 || at + option_len > len {
            return Err(DropReason::NdMalformed);
        }
        if matches!(option.u8(0), ND_OPTION_SOURCE | ND_OPTION_TARGET) && option.mac(2) != mac {
            return Err(DropReason::SpoofedNd);
        }
        at += option_len;
        walked += 1;
    }
    if at + 8 > len { Ok(()) } else { Err(DropReason::NdMalformed) }
}

/// Checks what an ARP packet claims: `mac` is at `ip`.
#[inline(always)]
pub fn arp<T: Tables>(
    tables: &T,
    bank: u32,
    binding: &Binding,
    frame_src: [u8; 6],
    mac: [u8; 6],
    ip: Ip,
) -> Result<(), DropReason> {
    if binding.flags & BINDING_NO_SECURITY != 0 {
        return Ok(());
    }
    if mac != frame_src {
        return Err(DropReason::SpoofedArp);
    }
    // A probe claims nothing (RFC 5227).
    if ip == Ip::V4_UNSPECIFIED {
        return if mac == binding.mac { Ok(()) } else { Err(DropReason::SpoofedMac) };
    }
    if tables.allowed(&AllowedKey::lookup(bank, binding.port, mac, ip)) {
        return Ok(());
    }
    Err(if mac == binding.mac { DropReason::SpoofedArp } else { DropReason::SpoofedMac })
}
