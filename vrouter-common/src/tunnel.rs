//! VXLAN over IPv4 (RFC 7348): what an arriving outer header must be, and how a leaving one is written.
//!
//! Drops: `vxlan_malformed`, `vtep_unknown`, `vni_unknown`.

use crate::{
    addr::{Be16, Be32, Macs},
    checksum,
    packet::{Packet, View},
    reason::DropReason,
    tables::Underlay,
    wire::*,
};

/// What the outer headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// The sender's tunnel address.
    pub vtep: Be32,
    /// VXLAN network identifier, host order.
    pub vni: u32,
}

impl Outer {
    /// None: no sender has this address.
    pub const NONE: Self = Self { vtep: Be32::from_memory(0), vni: 0 };
}

/// Reads the outer headers of a frame that came in on an uplink. `None`: not VXLAN for `local`, the
/// kernel's business.
#[inline(always)]
pub fn open<P: Packet>(packet: &P, local: Be32) -> Result<Option<Outer>, DropReason> {
    if packet.has_vlan_tag() {
        return Ok(None);
    }
    let Some(headers) = packet.view(0, ETH_LEN + IPV4_LEN + 8) else {
        return Ok(None);
    };
    let ihl_is_5 = headers.u8(14) == 0x45;
    if headers.be16(12) != Be16::new(ETHERTYPE_IPV4)
        || headers.u8(14) >> 4 != 4
        || headers.u8(23) != PROTO_UDP
        || headers.be32(30) != local
        || local == Be32::new(0)
    {
        return Ok(None);
    }
    if !ihl_is_5 {
        // Outer options: nobody sends them; where the UDP header is, is not worth finding out.
        return Err(DropReason::VxlanMalformed);
    }
    if headers.be16(20).get() & 0x1fff != 0 {
        // A later fragment has no ports: leave it to the kernel's reassembly, which has nowhere to put it.
        return Ok(None);
    }
    if headers.be16(36) != Be16::new(VXLAN_PORT) {
        return Ok(None);
    }
    let vtep = headers.be32(26);
    // A VXLAN packet must not be fragmented (RFC 7348, 4.3), must say I, and must hold an inner frame.
    if headers.be16(20).get() & 0x2000 != 0 {
        return Err(DropReason::VxlanMalformed);
    }
    let vxlan = packet.view(0, OUTER_LEN + ETH_LEN).ok_or(DropReason::VxlanMalformed)?;
    let outer_len = vxlan.be16(16).get() as usize;
    let udp_len = vxlan.be16(38).get() as usize;
    if vxlan.u8(42) & 0x08 == 0 || outer_len < IPV4_LEN + udp_len || udp_len < 16 + ETH_LEN {
        // The length of a super-packet may be that of one segment or of all.
        return Err(DropReason::VxlanMalformed);
    }
    let vni = vxlan.be32(46).get() >> 8;
    Ok(Some(Outer { vtep, vni }))
}

/// Writes outer headers and the inner Ethernet header over the first [`OUTER_LEN`] + [`ETH_LEN`] bytes of
/// a packet that was grown by [`OUTER_LEN`].
#[inline(always)]
pub fn write<P: Packet>(
    packet: &P,
    way: &Underlay,
    vni: u32,
    outer_sport: Be16,
    inner_macs: &Macs,
    inner_ethertype: Be16,
) -> Result<(), DropReason> {
    let frame_len = packet.len();
    let out = packet.view(0, OUTER_LEN + ETH_LEN).ok_or(DropReason::NoRoom)?;
    let ip_len = frame_len - ETH_LEN;
    // A super-packet can exceed 16 bits with the outer headers; its segments' lengths are set when it is
    // cut, so the field only has to be harmless.
    let ip_len = if ip_len > u16::MAX as usize { u16::MAX as usize } else { ip_len };
    out.put_macs(0, &way.macs);
    out.put_be16(12, Be16::new(ETHERTYPE_IPV4));
    // Version, header length, no DSCP; DF set: the overlay's MTU keeps packets whole.
    let words = [
        Be32::new(0x4500_0000 | ip_len as u32),
        Be32::new(0x0000_4000),
        Be32::new((64 << 24) | (PROTO_UDP as u32) << 16),
        way.src,
        way.dst,
    ];
    let mut sum = 0;
    let mut i = 0;
    while i < 5 {
        sum = checksum::add32(sum, words[i].memory());
        i += 1;
    }
    out.put_be32(14, words[0]);
    out.put_be32(18, words[1]);
    out.put_be32(22, words[2]);
    out.put_be16(24, checksum::finish(sum));
    out.put_be32(26, words[3]);
    out.put_be32(30, words[4]);
    out.put_be16(34, outer_sport);
    out.put_be16(36, Be16::new(VXLAN_PORT));
    out.put_be16(38, Be16::new((ip_len - IPV4_LEN) as u16));
    // No UDP checksum (RFC 7348, 5): the inner packet has its own.
    out.put_be16(40, Be16::new(0));
    out.put_be32(42, Be32::new(0x0800_0000));
    out.put_be32(46, Be32::new(vni << 8));
    out.put_macs(OUTER_LEN, inner_macs);
    out.put_be16(OUTER_LEN + 12, inner_ethertype);
    Ok(())
}

/// The outer UDP source port for a flow: 49152..=65535 by its hash (RFC 7348, 5).
#[inline(always)]
pub const fn outer_sport(hash: u32) -> Be16 {
    Be16::new(0xc000 | (hash as u16 & 0x3fff))
}
