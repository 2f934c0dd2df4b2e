//! Stage 3: decides a packet that no flow entry decides.
//!
//! Reads: the compiled topology. Writes: [`Plan`]. Drops: what [`parse`](mod@crate::parse),
//! [`admit`], [`mod@route`] and the checks here name.
//!
//! The node where a packet enters decides everything (`from_port`); the node it is tunnelled to only
//! finds the port (`from_tunnel`).

use crate::{
    admit, answer,
    deliver::{deliver, to_port},
    flow::{FROM_PORT, Flow},
    packet::Packet,
    parse::Headers,
    plan::{Decision, Ingress, Plan, key, remember, segment_len},
    reason::DropReason,
    route,
    tables::*,
    wire::*,
};

/// Decides. `Err`: dropped, with no answer.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    commit: &Commit,
    ingress: &Ingress,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    plan.flow = Flow::default();
    plan.flow.epoch = commit.epoch;
    plan.flow.created = tables.now();
    plan.flow.seen = plan.flow.created;
    if ingress.from == FROM_PORT {
        from_port(packet, tables, commit, ingress, headers, plan)
    } else {
        from_tunnel(tables, commit, ingress, headers, plan)
    }
}

#[inline(always)]
fn from_port<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    commit: &Commit,
    ingress: &Ingress,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let bank = commit.bank();
    let binding = tables
        .binding(&BindingKey { ifindex: Scoped::new(bank, ingress.zone) })
        .ok_or(DropReason::PortUnknown)?;
    plan.flow.network = binding.network;
    plan.flood_network = binding.network;
    plan.flood_vni = binding.vni;
    if headers.arp {
        return answer::arp::decide(packet, tables, bank, binding, headers, plan);
    }
    admit::ip(packet, tables, bank, binding, headers)?;
    if headers.v6
        && headers.proto == PROTO_ICMPV6
        && headers.dport.get() >> 8 == ND_NEIGHBOR_SOLICIT as u16
        && let Some(decision) = answer::nd::decide(packet, tables, bank, binding, headers, plan)?
    {
        return Ok(decision);
    }
    if headers.macs.is_group() {
        if segment_len(packet, headers) > binding.mtu {
            // It would not fit the tunnel, and a switch has no address to complain from.
            return Err(DropReason::TooBig);
        }
        return Ok(Decision::Flood);
    }
    plan.flow.in_macs = headers.macs;
    let station =
        tables.fdb(&FdbKey::new(bank, binding.network, headers.macs.dst())).ok_or(DropReason::MacUnknown)?;
    if station.kind == STATION_ROUTER {
        return route::route(packet, tables, bank, binding.network, station.owner, headers, plan);
    }
    if station.owner == binding.port {
        return Err(DropReason::Hairpin);
    }
    plan.flow.out_macs = headers.macs;
    let hash = key(headers, FROM_PORT, 0).tuple_hash();
    deliver(tables, hash, station, binding.vni, binding.mtu, plan)?;
    if segment_len(packet, headers) > binding.mtu {
        // A switch has no address to complain from.
        return Err(DropReason::TooBig);
    }
    Ok(remember(headers))
}

#[inline(always)]
fn from_tunnel<T: Tables>(
    tables: &T,
    commit: &Commit,
    ingress: &Ingress,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let bank = commit.bank();
    tables
        .vtep(&VtepKey { bank: Scoped::new(bank, 0), addr: ingress.vtep })
        .ok_or(DropReason::VtepUnknown)?;
    let network =
        tables.vni(&VniKey { vni: Scoped::new(bank, ingress.zone) }).ok_or(DropReason::VniUnknown)?;
    plan.flow.network = network;
    plan.flood_network = network;
    plan.flood_vni = ingress.zone;
    let macs = headers.macs;
    if macs.is_group() {
        return Ok(Decision::Flood);
    }
    let station =
        tables.fdb(&FdbKey::new(bank, network, macs.dst())).ok_or(DropReason::TunnelMisdelivered)?;
    plan.flow.in_macs = macs;
    plan.flow.in_vtep = ingress.vtep;
    plan.flow.out_macs = macs;
    plan.flow.mtu = u16::MAX;
    match station.place {
        PLACE_LOCAL | PLACE_LOCAL_FRAMES => to_port(station, plan),
        PLACE_UNPLUGGED => return Err(DropReason::PortUnplugged),
        _ => return Err(DropReason::TunnelMisdelivered),
    }
    Ok(remember(headers))
}
