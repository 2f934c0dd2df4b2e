//! Stage 4: does to the packet what the flow says.
//!
//! Reads: the flow, the underlay. Writes: the packet. Drops: `underlay_unreachable`, `no_room`.

use crate::{
    addr::{Be16, Be32},
    checksum,
    flow::{EXIT_PORT, EXIT_TUNNEL, Flow},
    packet::{Packet, View},
    reason::DropReason,
    tables::{Tables, UNDERLAY_RESOLVED, UNDERLAY_ROUTED},
    tunnel,
    wire::*,
};

/// Where the packet, now as it has to be, leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By an interface.
    Interface(u32),
    /// By an interface, with the Ethernet addresses the kernel's neighbour table has for `nexthop`.
    Neighbour {
        /// Interface index.
        ifindex: u32,
        /// IPv4 next hop.
        nexthop: Be32,
    },
    /// As it came, to the next hook.
    NextHook,
}

/// What can carry a packet on from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Everything.
    Tc,
    /// What is a frame and stays one.
    Xdp,
}

/// Rewrites the packet. `tunnelled`: it still has outer headers. `ethertype`: of the inner frame.
#[inline(always)]
pub fn apply<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    tunnelled: bool,
    ethertype: u16,
    hook: Hook,
) -> Result<Exit, DropReason> {
    let mut way = None;
    if flow.exit == EXIT_TUNNEL {
        let found = tables.underlay(flow.target).ok_or(DropReason::UnderlayUnreachable)?;
        if found.flags & UNDERLAY_ROUTED == 0 {
            return Err(DropReason::UnderlayUnreachable);
        }
        if found.flags & UNDERLAY_RESOLVED == 0 && hook == Hook::Xdp {
            // Only TC can wait for the kernel to resolve the neighbour.
            return Ok(Exit::NextHook);
        }
        way = Some(found);
    }
    if tunnelled {
        packet.pop_outer().map_err(|_| DropReason::NoRoom)?;
    }
    if flow.hops > 0 {
        lower_ttl(packet, flow.hops, ethertype)?;
    }
    if flow.exit == EXIT_PORT {
        let eth = packet.view(0, ETH_LEN).ok_or(DropReason::Internal)?;
        eth.put_macs(0, &flow.out_macs);
        if tunnelled {
            eth.put_be16(12, Be16::new(ethertype));
        }
        return Ok(Exit::Interface(flow.target));
    }
    let way = way.ok_or(DropReason::Internal)?;
    packet.push_outer().map_err(|_| DropReason::NoRoom)?;
    tunnel::write(packet, way, flow.vni, flow.outer_sport, &flow.out_macs, Be16::new(ethertype))?;
    Ok(if way.flags & UNDERLAY_RESOLVED != 0 {
        Exit::Interface(way.ifindex)
    } else {
        Exit::Neighbour { ifindex: way.ifindex, nexthop: way.nexthop }
    })
}

/// Lowers TTL or hop limit. The caller has made sure that it stays above zero.
#[inline(always)]
fn lower_ttl<P: Packet>(packet: &mut P, hops: u8, ethertype: u16) -> Result<(), DropReason> {
    if ethertype == ETHERTYPE_IPV6 {
        let ip = packet.view(ETH_LEN, IPV6_LEN).ok_or(DropReason::Internal)?;
        ip.put_u8(7, ip.u8(7).wrapping_sub(hops));
        return Ok(());
    }
    let ip = packet.view(ETH_LEN, IPV4_LEN).ok_or(DropReason::Internal)?;
    let old = ip.be16(8);
    let new = Be16::new(old.get().wrapping_sub((hops as u16) << 8));
    ip.put_be16(8, new);
    ip.put_be16(10, checksum::replace16(ip.be16(10), old.memory(), new.memory()));
    Ok(())
}
