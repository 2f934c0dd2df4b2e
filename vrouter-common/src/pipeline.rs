//! The packet's way, in order.

use crate::{
    apply::{self, Exit, Hook},
    decide,
    flow::{FLOW_FRAMES, Flow},
    packet::{Packet, View},
    parse::{self, Depth, Headers, Parsed},
    plan::{self, Decision, Ingress, Plan},
    reason::{DropReason, Event},
    tables::{FlowTable, Store, Tables},
    wire::*,
};

/// The way of an established packet: parse, one lookup, apply. `None`: no current entry decides it.
#[inline(always)]
pub fn established<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    ingress: &Ingress,
    hook: Hook,
) -> Option<Result<Exit, DropReason>> {
    let headers = match parse::parse(packet, ingress.at, Depth::Fast) {
        Ok(Parsed::Known(headers)) if !headers.arp => headers,
        // Said once, where everything is checked.
        _ => return None,
    };
    let key = plan::key(&headers, ingress.from, ingress.zone);
    let flow = tables.flow(&key).or_else(|| tables.transient(&key))?;
    if !is_current(packet, tables, flow, ingress, &headers) {
        return None;
    }
    if hook == Hook::Xdp && flow.flags & FLOW_FRAMES == 0 {
        return Some(Ok(Exit::NextHook));
    }
    tables.touch(flow, packet.len() as u64);
    let ethertype = if headers.v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
    Some(apply::apply(packet, tables, flow, ingress.tunnelled(), ethertype, hook))
}

/// Whether what was checked when the flow was decided holds for this packet.
#[inline(always)]
fn is_current<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    flow: &Flow,
    ingress: &Ingress,
    headers: &Headers,
) -> bool {
    flow.epoch >= tables.revision(flow.network)
        && flow.in_macs == headers.macs
        && flow.in_vtep == ingress.vtep
        && headers.ttl > flow.hops
        && plan::segment_len(packet, headers) <= flow.mtu as u32
}

/// Reads the whole of a packet that no flow entry decides.
#[inline(always)]
pub fn read<P: Packet>(packet: &P, at: usize, headers: &mut Headers) -> Result<(), DropReason> {
    match parse::parse(packet, at, Depth::Full)? {
        Parsed::Known(read) => *headers = read,
        Parsed::Unusual => return Err(DropReason::Internal),
    }
    Ok(())
}

/// Decides a packet that was [`read`], and remembers the decision.
#[inline(always)]
pub fn first<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    ingress: &Ingress,
    headers: &Headers,
    plan: &mut Plan,
    hook: Hook,
) -> Result<Decision, DropReason> {
    tables.count(Event::FlowMiss);
    let commit = tables.commit().ok_or(DropReason::PortUnknown)?;
    let decision = decide::decide(packet, tables, &commit, ingress, headers, plan)?;
    if decision == Decision::Forward {
        // What XDP leaves to TC is counted there.
        if hook == Hook::Tc || plan.flow.flags & FLOW_FRAMES != 0 {
            plan.flow.packets = 1;
            plan.flow.bytes = packet.len() as u64;
        }
        let key = plan::key(headers, ingress.from, ingress.zone);
        if tables.store(FlowTable::Transient, &key, &plan.flow, Store::Any).is_err() {
            tables.count(Event::FlowNotStored);
        }
    }
    Ok(decision)
}

/// Applies a decision just made.
#[inline(always)]
pub fn apply_first<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    ingress: &Ingress,
    plan: &Plan,
    hook: Hook,
) -> Result<Exit, DropReason> {
    if hook == Hook::Xdp && plan.flow.flags & FLOW_FRAMES == 0 {
        return Ok(Exit::NextHook);
    }
    let ethertype = packet.view(ingress.at, ETH_LEN).ok_or(DropReason::FrameTruncated)?.be16(12).get();
    apply::apply(packet, tables, &plan.flow, ingress.tunnelled(), ethertype, hook)
}
