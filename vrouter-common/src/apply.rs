//! Stage 4: does to the packet what the flow says.
//!
//! Reads: the flow, the underlay. Writes: the packet. Drops: `underlay_unreachable`, `no_room`.

use crate::{
    addr::{Be16, Be32, Macs},
    checksum,
    flow::{EXIT_PORT, EXIT_TUNNEL, FLOW_NAT, Flow, FlowKey},
    packet::{Packet, View},
    parse::{Headers, Quoted},
    plan::Ingress,
    reason::DropReason,
    tables::{HOP_RESOLVED, Tables, UNDERLAY_RESOLVED, UNDERLAY_ROUTED, Underlay},
    translate, tunnel,
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

/// What the packet is, as far as rewriting it is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// It still has outer headers.
    pub tunnelled: bool,
    /// EtherType of the (inner) frame.
    pub ethertype: u16,
    /// IP protocol.
    pub proto: u8,
    /// An ICMP error about a connection, translated by itself.
    pub error: bool,
    /// Offset of the transport header behind the (inner) frame's start; 0: there is none.
    pub l4: usize,
}

impl Shape {
    /// Of a packet that was read.
    #[inline(always)]
    pub fn new(headers: &Headers, ingress: &Ingress) -> Self {
        let l4 = headers.l4().wrapping_sub(ingress.at) & 0xfff;
        Self {
            tunnelled: ingress.tunnelled(),
            ethertype: if headers.v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 },
            proto: headers.proto,
            error: false,
            l4: if headers.later_fragment { 0 } else { l4 },
        }
    }
}

/// Rewrites the packet. `None`, with nothing changed: the next hop has to be resolved first.
#[inline(always)]
pub fn apply<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    shape: &Shape,
    hook: Hook,
) -> Option<Result<Exit, DropReason>> {
    let way = match way(tables, flow, hook)? {
        Ok(way) => way,
        Err(early) => return Some(early),
    };
    if shape.tunnelled && packet.pop_outer().is_err() {
        return Some(Err(DropReason::NoRoom));
    }
    if flow.flags & FLOW_NAT != 0 {
        let v6 = shape.ethertype == ETHERTYPE_IPV6;
        if let Err(reason) = translate::packet(packet, flow, v6, shape.proto, shape.l4) {
            return Some(Err(reason));
        }
    }
    Some(emit(packet, flow, &way, shape))
}

/// The same for an ICMP error about the connection of `leg`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the error's own way, and the connection it is about")]
pub fn apply_error<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Flow,
    leg: &Flow,
    key: &FlowKey,
    quoted: &Quoted,
    shape: &Shape,
    hook: Hook,
) -> Option<Result<Exit, DropReason>> {
    let way = match way(tables, flow, hook)? {
        Ok(way) => way,
        Err(early) => return Some(early),
    };
    if shape.tunnelled && packet.pop_outer().is_err() {
        return Some(Err(DropReason::NoRoom));
    }
    let moved = if shape.tunnelled { OUTER_LEN } else { 0 };
    if leg.translated(key) != key.tuple()
        && let Err(reason) = translate::error(packet, flow, leg, key, quoted, shape.l4, moved)
    {
        return Some(Err(reason));
    }
    Some(emit(packet, flow, &way, shape))
}

/// The way to where the flow leaves.
enum Way<'a> {
    Port,
    Tunnel(&'a Underlay),
    External(u32, Macs),
}

/// Finds it: `Some(Err)`: what becomes of the packet instead.
#[inline(always)]
fn way<'a, T: Tables>(
    tables: &'a T,
    flow: &Flow,
    hook: Hook,
) -> Option<Result<Way<'a>, Result<Exit, DropReason>>> {
    if flow.exit == EXIT_PORT {
        return Some(Ok(Way::Port));
    }
    if flow.exit == EXIT_TUNNEL {
        let Some(found) = tables.underlay(flow.target) else {
            return Some(Err(Err(DropReason::UnderlayUnreachable)));
        };
        if found.flags & UNDERLAY_ROUTED == 0 {
            return Some(Err(Err(DropReason::UnderlayUnreachable)));
        }
        if found.flags & UNDERLAY_RESOLVED == 0 && hook == Hook::Xdp {
            // Only TC can wait for the kernel to resolve the neighbour.
            return Some(Err(Ok(Exit::NextHook)));
        }
        return Some(Ok(Way::Tunnel(found)));
    }
    let Some(hop) = tables.hop(flow.target) else {
        return Some(Err(Err(DropReason::Internal)));
    };
    if hop.flags & HOP_RESOLVED == 0 {
        return None;
    }
    Some(Ok(Way::External(hop.ifindex, Macs::new(hop.mac, flow.out_macs.src()))))
}

/// What is left to do to the packet, now without outer headers.
#[inline(always)]
fn emit<P: Packet>(packet: &mut P, flow: &Flow, way: &Way, shape: &Shape) -> Result<Exit, DropReason> {
    if flow.hops > 0 {
        lower_ttl(packet, flow.hops, shape.ethertype)?;
    }
    let (ifindex, macs) = match way {
        Way::Port => (flow.target, flow.out_macs),
        Way::External(ifindex, macs) => (*ifindex, *macs),
        Way::Tunnel(way) => {
            packet.push_outer().map_err(|_| DropReason::NoRoom)?;
            let ethertype = Be16::new(shape.ethertype);
            tunnel::write(packet, way, flow.vni, flow.outer_sport, &flow.out_macs, ethertype)?;
            return Ok(if way.flags & UNDERLAY_RESOLVED != 0 {
                Exit::Interface(way.ifindex)
            } else {
                Exit::Neighbour { ifindex: way.ifindex, nexthop: way.nexthop }
            });
        }
    };
    let eth = packet.view(0, ETH_LEN).ok_or(DropReason::Internal)?;
    eth.put_macs(0, &macs);
    if shape.tunnelled {
        eth.put_be16(12, Be16::new(shape.ethertype));
    }
    Ok(Exit::Interface(ifindex))
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
