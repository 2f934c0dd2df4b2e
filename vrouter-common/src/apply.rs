//! Stage 4: does to the packet what the flow says.
//!
//! Reads: the flow, the underlay. Writes: the packet. Drops: `underlay_unreachable`, `no_room`.

use crate::{
    addr::{Be16, Be32, Macs},
    checksum,
    flow::{EXIT_PORT, EXIT_TUNNEL, FLOW_NAT, FLOW_PEER, Flow, FlowKey},
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
    /// By an interface that is one end of a veth, straight to what the other end receives.
    Peer(u32),
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
    /// Outer UDP source port; 0: the flow's.
    pub outer_sport: Be16,
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
            outer_sport: Be16::new(0),
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
    let mut way = Way::to_port(flow);
    let found = way.find(tables, flow, hook);
    if found != Found::Way {
        return found.instead();
    }
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
    let mut way = Way::to_port(flow);
    let found = way.find(tables, flow, hook);
    if found != Found::Way {
        return found.instead();
    }
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
struct Way<'a> {
    /// Interface, unless it is a tunnel.
    ifindex: u32,
    /// Ethernet addresses of the (inner) frame.
    macs: Macs,
    /// A tunnel's.
    underlay: Option<&'a Underlay>,
}

/// Whether there is one; without values of its own, which the compiler would carry along where there are none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Way,
    /// The next hop has to be resolved first.
    Unresolved,
    /// Only TC can wait for the kernel to resolve the neighbour.
    NextHook,
    Unreachable,
    Nothing,
}

impl Found {
    /// What becomes of the packet instead of being sent.
    #[inline(always)]
    fn instead(self) -> Option<Result<Exit, DropReason>> {
        match self {
            Self::Unresolved => None,
            Self::NextHook => Some(Ok(Exit::NextHook)),
            Self::Unreachable => Some(Err(DropReason::UnderlayUnreachable)),
            Self::Way | Self::Nothing => Some(Err(DropReason::Internal)),
        }
    }
}

impl<'a> Way<'a> {
    /// To a port of this node.
    #[inline(always)]
    fn to_port(flow: &Flow) -> Self {
        Self { ifindex: flow.target, macs: flow.out_macs, underlay: None }
    }

    /// To wherever it really is.
    #[inline(always)]
    fn find<T: Tables>(&mut self, tables: &'a T, flow: &Flow, hook: Hook) -> Found {
        if flow.exit == EXIT_PORT {
            return Found::Way;
        }
        if flow.exit == EXIT_TUNNEL {
            let Some(underlay) = tables.underlay(flow.target) else { return Found::Unreachable };
            if underlay.flags & UNDERLAY_ROUTED == 0 {
                return Found::Unreachable;
            }
            if underlay.flags & UNDERLAY_RESOLVED == 0 && hook == Hook::Xdp {
                return Found::NextHook;
            }
            self.underlay = Some(underlay);
            return Found::Way;
        }
        let Some(hop) = tables.hop(flow.target) else { return Found::Nothing };
        if hop.flags & HOP_RESOLVED == 0 {
            return Found::Unresolved;
        }
        self.ifindex = hop.ifindex;
        self.macs = Macs::new(hop.mac, flow.out_macs.src());
        Found::Way
    }
}

/// What is left to do to the packet, now without outer headers.
#[inline(always)]
fn emit<P: Packet>(packet: &mut P, flow: &Flow, way: &Way, shape: &Shape) -> Result<Exit, DropReason> {
    if flow.hops > 0 {
        lower_ttl(packet, flow.hops, shape.ethertype)?;
    }
    if let Some(underlay) = way.underlay {
        packet.push_outer().map_err(|_| DropReason::NoRoom)?;
        let ethertype = Be16::new(shape.ethertype);
        let own = shape.outer_sport != Be16::new(0);
        let sport = if own { shape.outer_sport } else { flow.outer_sport };
        tunnel::write(packet, underlay, flow.vni, sport, &way.macs, ethertype)?;
        return Ok(if underlay.flags & UNDERLAY_RESOLVED != 0 {
            Exit::Interface(underlay.ifindex)
        } else {
            Exit::Neighbour { ifindex: underlay.ifindex, nexthop: underlay.nexthop }
        });
    }
    let eth = packet.view(0, ETH_LEN).ok_or(DropReason::Internal)?;
    eth.put_macs(0, &way.macs);
    if shape.tunnelled {
        eth.put_be16(12, Be16::new(shape.ethertype));
    }
    // Only ports have the flag: see `deliver::to_port`. What the kernel takes a packet for is not asked again at the
    // other end, and from a tunnel it took all but IPv6 for IPv4.
    let is_ip = shape.ethertype == ETHERTYPE_IPV4 || shape.ethertype == ETHERTYPE_IPV6;
    if flow.flags & FLOW_PEER != 0 && is_ip {
        return Ok(Exit::Peer(way.ifindex));
    }
    Ok(Exit::Interface(way.ifindex))
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
    ip.put_u8(8, ip.u8(8).wrapping_sub(hops));
    ip.put_be16(10, checksum::lower_ttl(ip.be16(10), hops));
    Ok(())
}
