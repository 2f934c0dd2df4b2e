//! Stage 3d: translation at a router's gateway (behaviours N1-N8).
//!
//! Reads: floating IPs, forwarded ports, blocks of ports. Writes: [`Plan::tuple`]. Drops: `nat_protocol`,
//! `martian`.
//!
//! Sources are translated where a packet leaves to an external network, destinations where it enters from
//! one; the other direction of a connection, and ICMP errors about it, follow what was chosen for its first
//! packet. Nothing else is translated (N4).

use crate::{
    flow::{FLOW_SNAT, ROLE_ORIGINAL, Tuple},
    plan::{KNOWN_NOWHERE, Plan, ROLE_RELATED},
    reason::DropReason,
    tables::*,
    wire::*,
};

/// Chooses the source a packet leaves with. The port, if one must be found, is found when everything else
/// is decided.
#[inline(always)]
pub fn source<T: Tables>(
    tables: &T,
    router: u32,
    network: u32,
    leg: &RouterLeg,
    plan: &mut Plan,
) -> Result<(), DropReason> {
    if plan.follows() {
        // An error may come from a router in between: it keeps its own address unless the leg hides sources.
        if plan.role != ROLE_RELATED || plan.known.src != plan.known_key.src {
            plan.tuple.src = plan.known.src;
            plan.tuple.sport = plan.known.sport;
        }
        return Ok(());
    }
    if plan.snat {
        // Translated by the router before this one.
        return Ok(());
    }
    let key = FloatingKey { router: Scoped::new(plan.bank, router), ip: plan.tuple.src };
    if let Some(floating) = tables.floating(&key) {
        plan.tuple.src = floating.ip;
        plan.flow.router = router;
        return Ok(());
    }
    if leg.flags & LEG_SNAT == 0 || plan.tuple.v6 {
        return Ok(());
    }
    if matches!(plan.tuple.proto, PROTO_ICMP) && !plan.tuple.is_echo() {
        return Err(DropReason::NatProtocol);
    }
    plan.tuple.src = leg.v4;
    plan.snat = true;
    plan.snat_blocks = leg.snat_blocks;
    plan.leaves_on = network;
    plan.leaves_by = router;
    plan.flow.router = router;
    if plan.known_in != KNOWN_NOWHERE
        && plan.role == ROLE_ORIGINAL
        && plan.known.flags & FLOW_SNAT != 0
        && plan.known.src == leg.v4
    {
        plan.tuple.sport = plan.known.sport;
    }
    Ok(())
}

/// Where an address of an external network leads: a forwarded port, or a floating IP.
#[inline(always)]
pub fn inside<'a, T: Tables>(tables: &'a T, bank: u32, network: u32, outside: &Tuple) -> Option<&'a Nat> {
    let network = Scoped::new(bank, network);
    if matches!(outside.proto, PROTO_TCP | PROTO_UDP) {
        let key = NatKey { network, ip: outside.dst, port: outside.dport, proto: outside.proto, zero: 0 };
        if let Some(nat) = tables.nat(&key) {
            return Some(nat);
        }
    }
    tables.nat(&NatKey { network, ip: outside.dst, port: crate::addr::Be16::new(0), proto: 0, zero: 0 })
}

/// Translates the destination of a packet that enters a router of this node from an external network.
#[inline(always)]
pub fn destination(nat: &Nat, plan: &mut Plan) {
    plan.tuple.dst = nat.inside;
    if nat.inside_port.get() != 0 {
        plan.tuple.dport = nat.inside_port;
    }
    // The router that translated the source, if one did, is where replies have to go through.
    if plan.flow.router == 0 {
        plan.flow.router = nat.router;
    }
}
