//! The packet's way, in order.

use crate::{
    addr::Be16,
    apply::{self, Exit, Hook},
    decide,
    flow::{FLOW_BLOCK, FLOW_FRAMES, Flow, FlowKey},
    packet::{Packet, View},
    parse::{self, Headers, Quoted},
    plan::{self, Decision, Ingress, Plan, ROLE_RELATED, Work},
    reason::{DropReason, Event},
    route,
    tables::Tables,
    track::{self, Choice, Search, Settled, TRIES_MAX},
    tunnel,
    wire::*,
};

/// The way of an established packet: parse, one lookup, apply. `None`: no current entry decides it; then
/// `unknown`, for [`crate::plan::Plan::unknown`], says whether it is certain that there is none at all.
#[inline(always)]
pub fn established<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    ingress: &Ingress,
    hook: Hook,
    unknown: &mut bool,
) -> Option<Result<Exit, DropReason>> {
    if packet.has_vlan_tag() {
        return None;
    }
    const IPV4: Be16 = Be16::new(ETHERTYPE_IPV4);
    const IPV6: Be16 = Be16::new(ETHERTYPE_IPV6);
    // Compiled twice: with the family known, half of the key and every offset is a constant.
    match packet.view(ingress.at, ETH_LEN)?.be16(12) {
        IPV4 => established_ip(packet, tables, ingress, hook, false, unknown),
        IPV6 => established_ip(packet, tables, ingress, hook, true, unknown),
        // What is wrong with it is said once, where everything is checked.
        _ => None,
    }
}

#[inline(always)]
fn established_ip<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    ingress: &Ingress,
    hook: Hook,
    v6: bool,
    unknown: &mut bool,
) -> Option<Result<Exit, DropReason>> {
    let headers = parse::fast(packet, ingress.at, v6)?;
    let key = plan::key(&headers, ingress.from, ingress.zone);
    // Before the lookup: so far half of the key is constants.
    let mut tag = key.tag();
    let known = match tables.flow(&key) {
        Some(flow) => Some(flow),
        None => tables.transient(&key),
    };
    let flow = match known {
        Some(flow) => flow,
        None => match block(tables, ingress, &headers, &mut tag) {
            Some(flow) => flow,
            None => {
                *unknown = true;
                return None;
            }
        },
    };
    if !is_current(packet, tables, flow, tag, ingress, &headers) {
        return None;
    }
    if hook == Hook::Xdp && flow.flags & FLOW_FRAMES == 0 {
        return Some(Ok(Exit::NextHook));
    }
    if headers.tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK) & !flow.tcp_flags != 0 {
        tables.note_tcp(flow, headers.tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK));
    }
    tables.touch(flow, headers.frame_len());
    let mut shape = apply::Shape::new(&headers, ingress);
    if ingress.outside() && flow.flags & FLOW_BLOCK != 0 {
        shape.outer_sport = tunnel::outer_sport(headers.tuple_hash());
    }
    match apply::apply(packet, tables, flow, &shape, hook)? {
        Ok(_) if flow.tag_end != tag => Some(Err(DropReason::FlowReused)),
        applied => Some(applied),
    }
}

/// The way of all packets from outside to a block of ports, if it is another node's. Asked last, as in deciding:
/// a connection of this node may have a port of a block that went to another since it began.
#[inline(always)]
fn block<'t, T: Tables>(
    tables: &'t T,
    ingress: &Ingress,
    headers: &Headers,
    tag: &mut u32,
) -> Option<&'t Flow> {
    if !ingress.outside() {
        return None;
    }
    let key = plan::block_key(headers, ingress.zone)?;
    let flow = tables.transient(&key)?;
    *tag = key.tag();
    Some(flow)
}

/// Whether what was checked when the flow was decided holds for this packet.
#[inline(always)]
fn is_current<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    flow: &Flow,
    tag: u32,
    ingress: &Ingress,
    headers: &Headers,
) -> bool {
    const SYN: u8 = TCP_SYN | TCP_ACK | TCP_RST;
    let Some(eth) = packet.view(ingress.at, ETH_LEN) else { return false };
    flow.tag == tag
        && flow.epoch != 0
        && flow.epoch >= tables.revision(flow.network)
        && flow.epoch >= tables.revision(flow.network_out)
        && flow.in_macs == eth.macs(0)
        && flow.in_vtep == ingress.vtep
        && headers.ttl > flow.hops
        && plan::segment_len(packet, headers) <= flow.mtu as u32
        // Another connection with the ports of one that ended.
        && !(headers.tcp_flags & SYN == TCP_SYN && flow.tcp_flags & (TCP_FIN | TCP_RST) != 0)
}

/// Reads the whole of a packet that no flow entry decides.
#[inline(always)]
pub fn read<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    ingress: &Ingress,
    headers: &mut Headers,
    quoted: &mut Quoted,
    hook: Hook,
) -> Result<(), DropReason> {
    *headers = parse::full(packet, ingress.at)?;
    *quoted = parse::quoted(packet, headers);
    // XDP leaves pieces to TC: each is noted once.
    if hook == Hook::Tc { track::reassemble(tables, ingress, headers) } else { Ok(()) }
}

/// Whether XDP leaves a packet that was read to TC before anything is decided: what is noted, or answered.
#[inline(always)]
pub fn is_for_tc(headers: &Headers) -> bool {
    headers.arp || headers.fragment || headers.is_neighbour_discovery()
}

/// Finds what is known of a packet that was [`read`], and asks whether its sender may send it.
#[inline(always)]
pub fn recall<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    ingress: &Ingress,
    headers: &Headers,
    quoted: &Quoted,
    plan: &mut Plan,
) -> Result<(), DropReason> {
    tables.count(Event::FlowMiss);
    decide::recall(packet, tables, ingress, headers, quoted, plan)
}

/// Decides it. [`Decision::Route`]: [`pass`] goes on.
#[inline(always)]
pub fn first<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    ingress: &Ingress,
    headers: &Headers,
    quoted: &Quoted,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let decision = decide::decide(packet, tables, ingress, headers, quoted, plan)?;
    decide::conclude(packet, plan, decision)
}

/// Passes the next router. [`Decision::Route`]: once more.
#[inline(always)]
pub fn pass<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let decision = route::pass(packet, tables, headers, plan)?;
    decide::conclude(packet, plan, decision)
}

/// Asks whether the receiver, if it is a port of this node, accepts a packet that is to be forwarded, and
/// remembers the decision.
#[inline(always)]
pub fn settle<T: Tables>(
    tables: &T,
    ingress: &Ingress,
    headers: &Headers,
    plan: &mut Plan,
    decision: Decision,
    hook: Hook,
) -> Result<Settled, DropReason> {
    // What XDP leaves to TC is counted there.
    decide::accept(tables, headers, plan)?;
    let counted = hook == Hook::Tc || plan.flow.flags & FLOW_FRAMES != 0 && decision != Decision::Wait;
    track::settle(tables, ingress, headers, plan, decision, counted)
}

/// Reserves the reply's leg. `claim`: [`track::claim`] for the port it is given.
#[inline(always)]
pub fn reserve<T: Tables>(
    tables: &T,
    choice: Choice,
    mut search: Search,
    mut claim: impl FnMut(u16) -> Result<bool, DropReason>,
) -> Result<(), DropReason> {
    if choice != Choice::Always {
        match claim(0) {
            Err(DropReason::NatClash) if choice == Choice::IfTaken => {}
            claimed => return claimed.map(|_| ()),
        }
    }
    let mut tried = 0;
    while tried < TRIES_MAX {
        tried += 1;
        let port = search.next(tables);
        if port != 0 && claim(port)? {
            return track::searched(tables, tried, true);
        }
    }
    track::searched(tables, tried, false)
}

/// Applies a decision just made; `None`: its next hop has to be resolved first.
#[inline(always)]
pub fn apply_first<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    ingress: &Ingress,
    work: &Work,
    hook: Hook,
) -> Option<Result<Exit, DropReason>> {
    let Work { headers, quoted, plan, .. } = work;
    if hook == Hook::Xdp && plan.flow.flags & FLOW_FRAMES == 0 {
        return Some(Ok(Exit::NextHook));
    }
    let mut shape = apply::Shape::new(headers, ingress);
    if headers.arp {
        let Some(eth) = packet.view(ingress.at, ETH_LEN) else {
            return Some(Err(DropReason::FrameTruncated));
        };
        shape.ethertype = eth.be16(12).get();
    }
    if plan.role == ROLE_RELATED {
        shape.error = true;
        let key: &FlowKey = &plan.known_key;
        return apply::apply_error(packet, tables, &plan.flow, &plan.known, key, quoted, &shape, hook);
    }
    apply::apply(packet, tables, &plan.flow, &shape, hook)
}
