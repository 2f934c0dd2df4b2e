//! Stage 3e: where on a network a packet goes: the exit, towards a station.
//!
//! Reads: stations, the underlay. Writes: [`Plan::flow`], where replies will come in. Drops: `mac_unknown`,
//! `router_ignored`, `hairpin`, `port_unplugged`, `port_unbound`.

use crate::{
    flow::{EXIT_PORT, EXIT_TUNNEL, FLOW_FRAMES, FLOW_PEER, FROM_NETWORK, FROM_PORT},
    parse::Headers,
    plan::{Decision, Plan},
    reason::DropReason,
    tables::*,
    track::REPLY_NOWHERE,
    tunnel,
};

/// Fills in the exit by an interface of this node.
#[inline(always)]
pub fn to_port(station: &Station, plan: &mut Plan) {
    plan.flow.exit = EXIT_PORT;
    plan.flow.target = station.at;
    if station.place == PLACE_LOCAL_FRAMES {
        plan.flow.flags |= FLOW_FRAMES;
    }
    if station.place == PLACE_LOCAL_PEER {
        plan.flow.flags |= FLOW_PEER;
    }
    plan.reply_from = FROM_PORT as u32;
    plan.reply_zone = station.at;
}

/// Switches a frame that is not IP to a station of the sender's network.
#[inline(always)]
pub fn deliver_frame<T: Tables>(
    tables: &T,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let binding = plan.binding;
    let station = tables
        .fdb(&FdbKey::new(plan.bank, binding.network, headers.macs.dst()))
        .ok_or(DropReason::MacUnknown)?;
    if station.kind == STATION_ROUTER {
        return Err(DropReason::RouterIgnored);
    }
    if station.kind == STATION_SERVICE {
        return Err(DropReason::ServiceUnknown);
    }
    if station.owner == binding.port {
        return Err(DropReason::Hairpin);
    }
    plan.flow.in_macs = headers.macs;
    plan.flow.out_macs = headers.macs;
    deliver(tables, 0, station, binding.network, binding.vni, binding.mtu, plan)?;
    Ok(Decision::ForwardOnce)
}

/// Fills in the exit by a tunnel; `hash` spreads over the underlay's paths.
#[inline(always)]
pub fn tunnel_to<T: Tables>(tables: &T, hash: u32, node: u32, vni: u32, plan: &mut Plan) {
    plan.flow.exit = EXIT_TUNNEL;
    plan.flow.target = node;
    plan.flow.vni = vni;
    plan.flow.outer_sport = tunnel::outer_sport(hash);
    if let Some(way) = tables.underlay(node)
        && way.flags & UNDERLAY_FRAMES != 0
    {
        plan.flow.flags |= FLOW_FRAMES;
    }
}

/// Fills in the exit towards a port on a network; `hash` spreads over the underlay's paths.
#[inline(always)]
pub fn deliver<T: Tables>(
    tables: &T,
    hash: u32,
    station: &Station,
    network: u32,
    vni: u32,
    mtu: u32,
    plan: &mut Plan,
) -> Result<(), DropReason> {
    plan.flow.network_out = network;
    plan.flow.mtu = if mtu > u16::MAX as u32 { u16::MAX } else { mtu as u16 };
    match station.place {
        PLACE_LOCAL | PLACE_LOCAL_FRAMES | PLACE_LOCAL_PEER => {
            to_port(station, plan);
            Ok(())
        }
        PLACE_REMOTE => {
            tunnel_to(tables, hash, station.at, vni, plan);
            reply_to_home(plan);
            Ok(())
        }
        PLACE_UNPLUGGED => Err(DropReason::PortUnplugged),
        PLACE_UNBOUND => Err(DropReason::PortUnbound),
        _ => Err(DropReason::Internal),
    }
}

/// Replies come from the node that has the other end, on the sender's own network. If the sender is not on
/// this node, they do not come by here.
#[inline(always)]
pub fn reply_to_home(plan: &mut Plan) {
    plan.reply_from = if plan.home_vni != 0 { FROM_NETWORK as u32 } else { REPLY_NOWHERE };
    plan.reply_zone = plan.home_vni;
}
