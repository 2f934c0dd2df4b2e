//! Stage 3: decides a packet that no flow entry decides.
//!
//! Reads: the compiled topology. Writes: [`Plan`]. Drops: what [`parse`](mod@crate::parse),
//! [`admit`], [`mod@policy`], [`mod@route`], [`external`] and the checks here name.
//!
//! The node where a packet enters decides everything (`from_port`, [`external::enter`]); the node it is
//! tunnelled to only finds the port and asks its policy (`from_tunnel`).

use crate::{
    admit, answer,
    deliver::{deliver, to_port},
    external,
    flow::{EXIT_PORT, FROM_PORT, Flow},
    learn,
    packet::Packet,
    parse::{Headers, Quoted},
    plan::{ASKED_NOBODY, Decision, Ingress, Plan, ROLE_RELATED, remember, segment_len},
    policy,
    reason::DropReason,
    route,
    service::{self, Asked},
    tables::*,
    track::{self, REPLY_NOWHERE},
    wire::*,
};

/// What comes before the decision: what is known of the packet's connection, and whether the port it came
/// from may send it.
#[inline(always)]
pub fn recall<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    ingress: &Ingress,
    headers: &Headers,
    quoted: &Quoted,
    plan: &mut Plan,
) -> Result<(), DropReason> {
    plan.commit = *tables.commit().ok_or(DropReason::PortUnknown)?;
    plan.flow = Flow::default();
    plan.flow.epoch = plan.commit.epoch;
    plan.bank = plan.commit.bank();
    plan.snat = false;
    plan.unresolved = false;
    plan.too_big = false;
    plan.mute = ingress.tunnelled();
    plan.home_vni = 0;
    plan.reply_from = REPLY_NOWHERE;
    plan.answer.kind = 0;
    plan.answer.hops = 0;
    plan.moved = 0;
    plan.block = false;
    plan.service = Asked::Nothing;
    plan.asked = ASKED_NOBODY;
    plan.way_moves = false;
    plan.entered_network = 0;
    plan.named = 0;
    plan.listener = 0;
    track::recall(tables, ingress, headers, quoted, plan);
    if ingress.from != FROM_PORT {
        return Ok(());
    }
    let key = BindingKey { ifindex: Scoped::new(plan.bank, ingress.zone) };
    plan.binding = *tables.binding(&key).ok_or(DropReason::PortUnknown)?;
    if headers.arp {
        return Ok(());
    }
    let binding = &plan.binding;
    admit::ip(packet, tables, plan.bank, binding, headers)?;
    plan.service = service::asked(tables, headers, plan);
    match plan.service {
        Asked::Always | Asked::Probed => Ok(()),
        Asked::Nothing | Asked::ByRules => policy::leaving(tables, headers, plan),
    }
}

/// Decides. `Err`: dropped, with no answer.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    ingress: &Ingress,
    headers: &Headers,
    quoted: &Quoted,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    if ingress.from == FROM_PORT {
        from_port(packet, tables, ingress, headers, plan)
    } else {
        from_network(packet, tables, ingress, headers, quoted, plan)
    }
}

/// What a decision to forward comes to, with what was found on the way.
#[inline(always)]
pub fn conclude<P: Packet>(packet: &P, plan: &Plan, decision: Decision) -> Result<Decision, DropReason> {
    match decision {
        Decision::Forward | Decision::ForwardOnce if plan.too_big => {
            if packet.gso_size() != 0 {
                Err(DropReason::TooBig)
            } else {
                Ok(Decision::Fragment)
            }
        }
        // An error about a connection cannot wait: what it quotes is translated here.
        Decision::Forward | Decision::ForwardOnce if plan.unresolved && plan.role == ROLE_RELATED => {
            Err(DropReason::HopPending)
        }
        Decision::Forward | Decision::ForwardOnce if plan.unresolved => Ok(Decision::Wait),
        decision => Ok(decision),
    }
}

/// What comes after it: whether the port the packet goes to accepts it.
#[inline(always)]
pub fn accept<T: Tables>(tables: &T, headers: &Headers, plan: &mut Plan) -> Result<(), DropReason> {
    if plan.flow.exit != EXIT_PORT || headers.arp {
        return Ok(());
    }
    let key = BindingKey { ifindex: Scoped::new(plan.bank, plan.flow.target) };
    let binding = tables.binding(&key).ok_or(DropReason::PortUnplugged)?;
    policy::arriving(tables, binding, headers, plan)
}

#[inline(always)]
fn from_port<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    ingress: &Ingress,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let (network, mtu, vni) = (plan.binding.network, plan.binding.mtu, plan.binding.vni);
    plan.flow.network = network;
    plan.flow.network_out = network;
    plan.flood_network = network;
    plan.flood_vni = vni;
    plan.home_vni = vni;
    if headers.arp {
        return answer::arp::decide(packet, tables, ingress, headers, plan);
    }
    if plan.service != Asked::Nothing {
        return Ok(Decision::Service);
    }
    if headers.v6
        && headers.proto == PROTO_ICMPV6
        && headers.dport.get() >> 8 == ND_NEIGHBOR_SOLICIT as u16
        && let Some(decision) = answer::nd::decide(packet, tables, headers, plan)?
    {
        return Ok(decision);
    }
    if headers.is_neighbour_advert() {
        answer::nd::claims(packet, tables, ingress, network, headers, plan);
    }
    if headers.macs.is_group() {
        learn::mac(tables, ingress, network, headers, plan);
        if segment_len(packet, headers) > mtu {
            // It would not fit the tunnel, and a switch has no address to complain from.
            return Err(DropReason::TooBig);
        }
        return Ok(Decision::Flood);
    }
    plan.flow.in_macs = headers.macs;
    let station = at_mac(tables, network, headers, plan).ok_or(DropReason::MacUnknown)?;
    if station.kind == STATION_ROUTER {
        let router = station.owner;
        return route::route(network, router, headers, plan, false);
    }
    if station.kind == STATION_SERVICE {
        return Err(DropReason::ServiceUnknown);
    }
    if station.owner == plan.binding.port {
        return Err(DropReason::Hairpin);
    }
    plan.flow.out_macs = headers.macs;
    deliver(tables, headers.tuple_hash(), station, network, vni, mtu, plan)?;
    if segment_len(packet, headers) > mtu {
        // A switch has no address to complain from.
        return Err(DropReason::TooBig);
    }
    Ok(remember(headers))
}

#[inline(always)]
fn from_network<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    ingress: &Ingress,
    headers: &Headers,
    quoted: &Quoted,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    if ingress.tunnelled() {
        let key = VtepKey { bank: Scoped::new(plan.bank, 0), addr: ingress.vtep };
        tables.vtep(&key).ok_or(DropReason::VtepUnknown)?;
    }
    let key = VniKey { vni: Scoped::new(plan.bank, ingress.zone) };
    let network = tables.vni(&key).ok_or(DropReason::VniUnknown)?;
    plan.flow.network = network;
    plan.flow.network_out = network;
    let key = NetworkKey { network: Scoped::new(plan.bank, network) };
    let flags = tables.network(&key).ok_or(DropReason::VniUnknown)?.flags;
    if flags & NETWORK_EXTERNAL != 0 {
        external::enter(packet, tables, ingress, network, headers, quoted, plan)
    } else if ingress.tunnelled() {
        from_tunnel(packet, tables, ingress, network, headers, plan)
    } else {
        // An interface that stopped being external a moment ago.
        Ok(Decision::Pass)
    }
}

#[inline(always)]
fn from_tunnel<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    ingress: &Ingress,
    network: u32,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    plan.flood_network = network;
    plan.flood_vni = ingress.zone;
    let macs = headers.macs;
    if headers.arp {
        answer::arp::claims(packet, tables, ingress, network, headers, plan);
    } else if headers.is_neighbour_advert() {
        answer::nd::claims(packet, tables, ingress, network, headers, plan);
    }
    if macs.is_group() {
        learn::mac(tables, ingress, network, headers, plan);
        return Ok(Decision::Flood);
    }
    let station = at_mac(tables, network, headers, plan).ok_or(DropReason::TunnelMisdelivered)?;
    plan.flow.in_macs = macs;
    plan.flow.in_vtep = ingress.vtep;
    plan.flow.out_macs = macs;
    plan.flow.mtu = u16::MAX;
    match station.place {
        PLACE_LOCAL | PLACE_LOCAL_FRAMES | PLACE_LOCAL_PEER => to_port(station, plan),
        PLACE_UNPLUGGED => return Err(DropReason::PortUnplugged),
        _ => return Err(DropReason::TunnelMisdelivered),
    }
    Ok(remember(headers))
}

/// Who has the destination hardware address.
#[inline(always)]
fn at_mac<'a, T: Tables>(tables: &'a T, network: u32, headers: &Headers, plan: &Plan) -> Option<&'a Station> {
    let mac = headers.macs.dst();
    match tables.fdb(&FdbKey::new(plan.bank, network, mac)) {
        Some(station) => Some(station),
        None => tables.learned(&LearnedKey::mac(network, mac)).map(|learned| &learned.station),
    }
}
