//! Stage 3c: load balancing (behaviours B1-B4): which member of a pool a packet to a VIP goes to.
//!
//! Reads: listeners, pools, who is where. Writes: [`Plan::tuple`], or the node to pass it on to. Drops: `pool_empty`,
//! `listener_down`, by way of a refusal that the client sees.
//!
//! A packet of a known connection stays with its member as long as that may still serve it. Others take the slot of
//! their hash; which member has it is worked out by every node alike ([`PoolSlots`]), so a packet from a workload is
//! translated where it enters. One from outside is passed on, as it is, to the node of its member, which translates
//! it and keeps the connection: a gateway keeps none. The hardware address it is passed on to says which member was
//! chosen ([`STATION_MEMBER`]).
//!
//! Gateways only know the slots, so a slot that moves takes the packets of running connections along, to a node that
//! does not know them. That node asks the slot's other candidate ([`Slot::other`]), who had the slot before or would
//! have it: if the connection is known there, it goes on there. If not, it is sent to who has the slot, and served there
//! ([`Plan::asked`]): however much nodes differ in what they know of members, a packet is passed on three times at most.

use crate::{
    addr::{Be16, Ip},
    flow::{EXIT_TUNNEL, Flow, ROLE_ORIGINAL, Tuple, tuple_hash},
    parse::Headers,
    plan::{ASKED_ALL, ASKED_NOBODY, ASKED_ONE, ASKED_TOO_MANY, KNOWN_ANSWERED, KNOWN_NOWHERE, Plan},
    reason::DropReason,
    tables::*,
    wire::*,
};

/// What becomes of a packet to a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balanced {
    /// It is translated here.
    Here,
    /// It is passed on to [`Plan::way_node`], [`Plan::way_mac`].
    There,
    /// Nothing listens.
    Closed,
    /// Nobody serves it at the moment.
    Nobody(DropReason),
}

/// Balances the packet to the VIP `plan.tuple.dst` on a network; `router`: whose VIP it is.
#[inline(always)]
pub fn balance<T: Tables>(
    tables: &T,
    network: u32,
    router: u32,
    headers: &Headers,
    plan: &mut Plan,
) -> Balanced {
    plan.way_node = 0;
    let Some(listener) = listener(tables, plan.bank, network, &plan.tuple) else { return Balanced::Closed };
    if listener.flags & LISTENER_DOWN != 0 {
        return Balanced::Nobody(DropReason::ListenerDown);
    }
    let kept = kept(tables, listener, plan);
    let mut index = kept;
    if kept == NO_MEMBER {
        let Some(slot) = slot(tables, plan.bank, listener, &headers.tuple()) else {
            return Balanced::Nobody(DropReason::PoolEmpty);
        };
        index = choose(tables, listener, slot, headers, plan);
    } else if plan.entered_network != 0 && !pass_to(tables, listener.pool, kept, plan) {
        // It has moved to another node since, which is not to ask whose it is.
        plan.asked = if plan.asked < ASKED_ALL { ASKED_ALL } else { ASKED_TOO_MANY };
    }
    if plan.way_node != 0 {
        return Balanced::There;
    }
    let Some(member) = member(tables, plan.bank, listener.pool, index) else {
        return Balanced::Nobody(DropReason::PoolEmpty);
    };
    let vip = plan.tuple.dst;
    plan.tuple.dst = member.ip;
    plan.tuple.dport = member.port;
    if plan.tuple.src == member.ip {
        // To itself: it would take its own address for the sender's.
        plan.tuple.src = vip;
    }
    if kept != NO_MEMBER && !plan.snat {
        plan.tuple.sport = plan.known.sport;
    }
    if plan.flow.router == 0 {
        plan.flow.router = router;
    }
    plan.listener = listener.number;
    plan.member = member.number;
    Balanced::Here
}

/// The index of nobody.
const NO_MEMBER: u32 = u32::MAX;

/// The member that a known connection has, if it may stay.
#[inline(always)]
fn kept<T: Tables>(tables: &T, listener: &Listener, plan: &Plan) -> u32 {
    if plan.known_in == KNOWN_NOWHERE || plan.role != ROLE_ORIGINAL {
        return NO_MEMBER;
    }
    let key = PoolMemberAt::new(plan.bank, listener.pool, plan.known.dst, plan.known.dport);
    let Some(index) = tables.pool_member_at(&key) else { return NO_MEMBER };
    match member(tables, plan.bank, listener.pool, index) {
        Some(member) if may_stay(member, plan.tuple.proto, plan.known_in) => index,
        _ => NO_MEMBER,
    }
}

/// Whether a member goes on with a connection it has. If it is down, only a TCP connection that it has answered: nothing
/// ends a stream of datagrams, and a connection that was never there loses nothing at another.
#[inline(always)]
fn may_stay(member: &PoolMember, proto: u8, known_in: u8) -> bool {
    member.flags & MEMBER_DOWN == 0 || proto == PROTO_TCP && known_in == KNOWN_ANSWERED
}

/// The member for a packet of no known connection. [`Plan::way_node`]: it is on another node, where a packet from
/// outside is passed on to.
#[inline(always)]
fn choose<T: Tables>(tables: &T, listener: &Listener, slot: Slot, headers: &Headers, plan: &mut Plan) -> u32 {
    let owner = slot.member as u32;
    if plan.entered_network == 0 {
        return owner;
    }
    let (bank, pool) = (plan.bank, listener.pool);
    let other = (slot.other & !SLOT_LEAVES) as u32;
    let is_later = match plan.tuple.proto {
        PROTO_TCP => headers.tcp_flags & (TCP_SYN | TCP_ACK) != TCP_SYN,
        // Streams leave a member that is down: it need not be asked, and may be on a node that is.
        _ => {
            slot.other & SLOT_LEAVES != 0
                && member(tables, bank, pool, other).is_some_and(|it| it.flags & MEMBER_DOWN == 0)
        }
    };
    let mut index = owner;
    if plan.named != 0 {
        // The node that passed it on may have asked another hash, before it translated the source; or it knows other
        // things of members.
        let named = plan.named - 1;
        if let Some(member) = member(tables, bank, pool, named)
            && member.mac == headers.macs.dst()
            && match plan.asked {
                ASKED_NOBODY => member.flags & MEMBER_UP != 0,
                ASKED_ONE => member.flags & MEMBER_UP != 0 && (named == owner || !is_later),
                _ => true,
            }
        {
            index = named;
        }
    }
    let may_be_known_there = is_later
        && plan.known_in == KNOWN_NOWHERE
        && plan.asked == ASKED_NOBODY
        && index == owner
        && slot.other != SLOT_NOBODY;
    let here = pass_to(tables, pool, index, plan);
    let asks = here && may_be_known_there && !pass_to(tables, pool, other, plan);
    if asks || !here && plan.named != 0 {
        plan.asked += 1;
    }
    index
}

/// Whether a member is here; else [`Plan::way_node`] and [`Plan::way_mac`] are where it is.
#[inline(always)]
fn pass_to<T: Tables>(tables: &T, pool: u32, index: u32, plan: &mut Plan) -> bool {
    let Some(member) = member(tables, plan.bank, pool, index) else { return true };
    match node_of(tables, plan.bank, member) {
        (0, _) => true,
        (node, moves) => {
            plan.way_node = node;
            plan.way_mac = member.mac;
            plan.way_moves = moves;
            false
        }
    }
}

/// Where the member of a known connection, which leads to a floating IP of a VIP, is now, if it still serves it: its
/// node and hardware address, or `None` inside if it is here.
#[inline(always)]
pub fn known_there<T: Tables>(
    tables: &T,
    bank: u32,
    network: u32,
    vip: Ip,
    sent: &Tuple,
    known: &Flow,
    known_in: u8,
) -> Option<Option<SnatOwner>> {
    let listener = listener(tables, bank, network, &Tuple { dst: vip, ..*sent })?;
    let pool = listener.pool;
    let key = if known.exit == EXIT_TUNNEL && known.dst == sent.dst {
        PoolMemberAt::mac(bank, pool, known.out_macs.dst())
    } else {
        PoolMemberAt::new(bank, pool, known.dst, known.dport)
    };
    let member = member(tables, bank, pool, tables.pool_member_at(&key)?)?;
    if listener.flags & LISTENER_DOWN != 0 || !may_stay(member, sent.proto, known_in) {
        return None;
    }
    Some(match node_of(tables, bank, member).0 {
        0 => None,
        node => Some(SnatOwner { node, mac: member.mac, zero: 0 }),
    })
}

/// The node and the hardware address of the member that a packet from elsewhere goes to, if it is not here. `sent`:
/// as the client sent it; `vip`: where it leads.
#[inline(always)]
pub fn there<T: Tables>(tables: &T, bank: u32, network: u32, vip: Ip, sent: &Tuple) -> Option<SnatOwner> {
    let listener = listener(tables, bank, network, &Tuple { dst: vip, ..*sent })?;
    if listener.flags & LISTENER_DOWN != 0 {
        return None;
    }
    let slot = slot(tables, bank, listener, sent)?;
    let member = member(tables, bank, listener.pool, slot.member as u32)?;
    match node_of(tables, bank, member).0 {
        0 => None,
        node => Some(SnatOwner { node, mac: member.mac, zero: 0 }),
    }
}

/// The node that a member is on, 0: this one, or nobody knows; and whether its address moves between ports.
#[inline(always)]
fn node_of<T: Tables>(tables: &T, bank: u32, member: &PoolMember) -> (u32, bool) {
    match who_has(tables, bank, member.network, member.ip) {
        Some(station) if station.place == PLACE_REMOTE => {
            let by_topology = tables.address(&AddressKey::new(bank, member.network, member.ip));
            (station.at, by_topology.is_none_or(|it| it.place == PLACE_UNBOUND))
        }
        _ => (0, false),
    }
}

#[inline(always)]
fn listener<'a, T: Tables>(tables: &'a T, bank: u32, network: u32, to: &Tuple) -> Option<&'a Listener> {
    tables.listener(&ListenerKey {
        network: Scoped::new(bank, network),
        ip: to.dst,
        port: to.dport,
        proto: to.proto,
        zero: 0,
    })
}

#[inline(always)]
fn member<T: Tables>(tables: &T, bank: u32, pool: u32, index: u32) -> Option<&PoolMember> {
    tables.pool_member(&PoolMemberKey { pool: Scoped::new(bank, pool), index })
}

/// Who has the slot of a packet.
#[inline(always)]
fn slot<T: Tables>(tables: &T, bank: u32, listener: &Listener, sent: &Tuple) -> Option<Slot> {
    if listener.slots == 0 {
        return None;
    }
    let none = Be16::new(0);
    let hash = if listener.flags & LISTENER_SOURCE_IP != 0 {
        tuple_hash(&sent.src, &Ip::UNSPECIFIED, none, none, 0)
    } else {
        tuple_hash(&sent.src, &sent.dst, sent.sport, sent.dport, sent.proto)
    };
    let slot = hash & (listener.slots - 1);
    let key = PoolSlotsKey { pool: Scoped::new(bank, listener.pool), chunk: slot / SLOTS_IN_CHUNK };
    let slots = tables.pool_slots(&key)?;
    Some(slots.0[(slot % SLOTS_IN_CHUNK) as usize])
}
