//! Stage 3: decides a packet that no flow entry decides.
//!
//! Reads: the compiled topology. Writes: [`Plan`]. Drops: what [`parse`](mod@crate::parse),
//! [`admit`], [`mod@route`] and the checks here name.
//!
//! The node where a packet enters decides everything (`from_port`); the node it is tunnelled to only
//! finds the port (`from_tunnel`).

use crate::{
    addr::Macs,
    admit, answer,
    answer::Answer,
    flow::{EXIT_PORT, EXIT_TUNNEL, FLOW_FRAMES, FROM_PORT, Flow, FlowKey},
    packet::{Packet, View},
    parse::Headers,
    pipeline::Ingress,
    reason::DropReason,
    route,
    tables::*,
    tunnel,
    wire::*,
};

/// Scratch of one packet: too large for the kernel's stack of 512 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// What the packet says.
    pub headers: Headers,
    /// What becomes of it.
    pub plan: Plan,
}

/// A decision under construction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// The decision under construction.
    pub flow: Flow,
    /// What to send back.
    pub answer: Answer,
    /// Which network to flood ([`Decision::Flood`]).
    pub flood_network: u32,
    /// Its VNI.
    pub flood_vni: u32,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Forward as `plan.flow` says, and remember it under its key.
    Forward,
    /// Forward as `plan.flow` says, this once.
    ForwardOnce,
    /// Answer as `plan.answer` says.
    Answer,
    /// Drop, and answer as `plan.answer` says.
    Reject(DropReason),
    /// Copy to every receiver of `plan.flood_network`.
    Flood,
}

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

/// Whether a decision may be stored under the packet's key.
#[inline(always)]
pub fn remember(headers: &Headers) -> Decision {
    // What neighbour discovery claims is in its payload, which no key covers: each one is checked.
    if headers.options || headers.fragment || headers.arp || headers.is_neighbour_discovery() {
        Decision::ForwardOnce
    } else {
        Decision::Forward
    }
}

#[inline(always)]
fn to_port(station: &Station, plan: &mut Plan) {
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

/// The key of a packet's flow.
#[inline(always)]
pub fn key(headers: &Headers, from: u8, zone: u32) -> FlowKey {
    FlowKey {
        src: headers.src,
        dst: headers.dst,
        zone,
        sport: headers.sport,
        dport: headers.dport,
        proto: headers.proto,
        from,
        zero: 0,
    }
}

/// Bytes of the largest L3 packet this becomes on a wire: its own length, or that of one segment.
#[inline(always)]
pub fn segment_len<P: Packet>(packet: &P, headers: &Headers) -> u32 {
    let gso_size = packet.gso_size();
    if gso_size == 0 {
        return headers.l3_len as u32;
    }
    let transport = match headers.proto {
        PROTO_TCP => match packet.view(headers.l4(), 14) {
            Some(tcp) => (tcp.u8(12) >> 4) as u32 * 4,
            None => 20,
        },
        _ => 8,
    };
    gso_size + (headers.l3_len as u32).wrapping_sub(headers.l4_len() as u32) + transport
}

/// Swaps the two addresses: for an answer.
#[inline(always)]
pub fn swapped(macs: &Macs) -> Macs {
    Macs::new(macs.src(), macs.dst())
}
