//! Stage 3d: where on a network a packet goes: the exit, towards a station.
//!
//! Reads: stations, the underlay. Writes: [`Plan::flow`]. Drops: `mac_unknown`, `router_ignored`, `hairpin`,
//! `port_unplugged`, `port_unbound`.

use crate::{
    flow::{EXIT_PORT, EXIT_TUNNEL, FLOW_FRAMES},
    parse::Headers,
    plan::{Decision, Plan},
    reason::DropReason,
    tables::*,
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
}

/// Switches a frame that is not IP to a station of the sender's netplan.
#[inline(always)]
pub fn deliver_frame<T: Tables>(
    tables: &T,
    bank: u32,
    binding: &Binding,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let station =
        tables.fdb(&FdbKey::new(bank, binding.network, headers.macs.dst())).ok_or(DropReason::MacUnknown)?;
    if station.kind == STATION_ROUTER {
        return Err(DropReason::RouterIgnored);
    }
    if station.owner == binding.port {
        return Err(DropReason::Hairpin);
    }
    plan.flow.in_macs = headers.macs;
    plan.flow.out_macs = headers.macs;
    deliver(tables, 0, station, binding.vni, binding.mtu, plan)?;
    Ok(Decision::ForwardOnce)
}

/// Fills in the exit towards a port on a network; `hash` spreads over the underlay's paths.
#[inline(always)]
pub fn deliver<T: Tables>(
    tables: &T,
    hash: u32,
    station: &Station,
    vni: u32,
    mtu: u32,
    plan: &mut Plan,
) -> Result<(), DropReason> {
    plan.flow.mtu = if mtu > u16::MAX as u32 { u16::MAX } else { mtu as u16 };
    match station.place {
        PLACE_LOCAL | PLACE_LOCAL_FRAMES => to_port(station, plan),
        PLACE_REMOTE => {
            plan.flow.exit = EXIT_TUNNEL;
            plan.flow.target = station.at;
            plan.flow.vni = vni;
            plan.flow.outer_sport = tunnel::outer_sport(hash);
            if let Some(way) = tables.underlay(station.at)
                && way.flags & UNDERLAY_FRAMES != 0
            {
                plan.flow.flags |= FLOW_FRAMES;
            }
        }
        PLACE_UNPLUGGED => return Err(DropReason::PortUnplugged),
        PLACE_UNBOUND => return Err(DropReason::PortUnbound),
        _ => return Err(DropReason::Internal),
    }
    Ok(())
}
