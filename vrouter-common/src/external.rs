//! External networks: what comes in from one, and how it is left by (behaviours N1, N2, R5).
//!
//! Reads: stations, translations, next hops. Writes: [`Plan`]. Drops: `arp_malformed`, `nd_malformed`,
//! `tunnel_misdelivered`, `ttl_exceeded`, `too_big`, `external_absent`, `next_hop_*`.
//!
//! An external network reaches a node by its interface there, or, for addresses this node translates, by a
//! tunnel from the node that received the packet (which has lowered its TTL). This node's addresses on it are
//! the floating IPs of its ports and the routers' addresses it owns; it answers for no other, and leaves
//! everything else to the kernel.

use crate::{
    addr::{Be16, Be32, Ip, Macs},
    answer::{self, Refusal},
    balance,
    deliver::tunnel_to,
    flow::{EXIT_EXTERNAL, FLOW_BLOCK, FLOW_FRAMES, ROLE_NONE, Tuple},
    nat,
    packet::{Packet, View},
    parse::{Headers, Quoted},
    plan::{self, ASKED_ALL, ASKED_NOBODY, ASKED_ONE, Decision, Ingress, KNOWN_NOWHERE, Plan},
    reason::{DropReason, Event},
    route,
    tables::*,
    wire::*,
};

/// Decides a packet from an external network.
#[inline(always)]
pub fn enter<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    ingress: &Ingress,
    network: u32,
    headers: &Headers,
    quoted: &Quoted,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let bank = plan.bank;
    if !ingress.tunnelled() {
        if headers.arp {
            return arp(packet, tables, bank, network, headers, plan);
        }
        if headers.is_neighbour_discovery() {
            return neighbour(packet, tables, bank, network, headers, plan);
        }
        if headers.proto == PROTO_VRRP {
            hear(packet, tables, network, headers);
            return Ok(Decision::Pass);
        }
    }
    let station = match tables.fdb(&FdbKey::new(bank, network, headers.macs.dst())) {
        Some(station) if station.kind == STATION_ROUTER && !headers.arp => station,
        // Only between nodes.
        Some(station) if station.kind == STATION_MEMBER && ingress.tunnelled() && !headers.arp => station,
        _ if ingress.tunnelled() => return Err(DropReason::TunnelMisdelivered),
        _ => return Ok(Decision::Pass),
    };
    if station.place == PLACE_SHARED
        && !tables.carries(&MasterKey::new(network, station.at as u8, headers.v6))
    {
        return Ok(Decision::Pass);
    }
    plan.flow.in_macs = headers.macs;
    plan.flow.in_vtep = ingress.vtep;
    let mut router = station.owner;
    if station.kind == STATION_MEMBER {
        plan.named = station.at + 1;
        plan.asked = asked(&headers.macs);
    }
    if router == ROUTER_BY_DESTINATION {
        // The interface's own address, on a routed network: the router's whose address it is sent to. What is sent to
        // the node itself is not ours.
        let Some(to) = tables.address(&AddressKey::new(bank, network, headers.dst)) else {
            return if ingress.tunnelled() {
                Err(DropReason::TunnelMisdelivered)
            } else {
                Ok(Decision::Pass)
            };
        };
        router = to.owner;
    }
    plan.entered_network = network;
    plan.entered_vni = ingress.zone;
    plan.entered_router = router;
    if !nat::holds(tables, network, plan) {
        // Decided as if nothing were known of it.
        plan.role = ROLE_NONE;
        plan.known_in = KNOWN_NOWHERE;
    }
    if plan.follows() {
        plan.tuple.dst = plan.known.dst;
        plan.tuple.dport = plan.known.dport;
    } else if headers.is_icmp_error() {
        // About a connection of another node, or of nobody.
        let about = if quoted.known { quoted.tuple.reversed() } else { headers.tuple() };
        plan.about = about;
        if let Some(nat) = nat::inside(tables, bank, network, &about)
            && nat.node == NODE_BALANCED
        {
            plan.entered_router = nat.router;
            return about_member(packet, tables, headers, nat.inside_network, nat.inside, plan);
        }
        if let Some(way) = elsewhere(tables, bank, network, &about) {
            return pass_on(packet, tables, headers, way, plan);
        }
    } else {
        if let Some(nat) = nat::inside(tables, bank, network, &plan.tuple) {
            let node = holder(tables, nat);
            if node != 0 {
                let way = SnatOwner { node, mac: nat.mac, zero: 0 };
                // The whole address is that node's, so each block of its ports is.
                let whole = nat.inside_port.get() == 0 && nat.node != NODE_LEARNED;
                let decision = pass_on(packet, tables, headers, way, plan)?;
                return Ok(if whole { remember_block(headers, ingress, decision, plan) } else { decision });
            }
            router = nat.router;
            nat::destination(nat, plan);
        } else if let Some(way) = owner(tables, bank, network, &plan.tuple) {
            let decision = pass_on(packet, tables, headers, way, plan)?;
            return Ok(remember_block(headers, ingress, decision, plan));
        }
    }
    route::route(network, router, headers, plan, ingress.tunnelled())
}

/// What is passed on by its block alone is remembered by it.
#[inline(always)]
fn remember_block(headers: &Headers, ingress: &Ingress, decision: Decision, plan: &mut Plan) -> Decision {
    if decision != Decision::ForwardOnce || plan.too_big || plan::block_key(headers, ingress.zone).is_none() {
        return decision;
    }
    plan.block = true;
    plan.flow.flags |= FLOW_BLOCK;
    Decision::Forward
}

/// The node that an outside tuple belongs to, if it is another.
#[inline(always)]
fn elsewhere<T: Tables>(tables: &T, bank: u32, network: u32, outside: &Tuple) -> Option<SnatOwner> {
    match nat::inside(tables, bank, network, outside) {
        Some(nat) => {
            let node = holder(tables, nat);
            if node != 0 { Some(SnatOwner { node, mac: nat.mac, zero: 0 }) } else { None }
        }
        None => owner(tables, bank, network, outside),
    }
}

/// The other node that translates an address; 0: this one.
#[inline(always)]
fn holder<T: Tables>(tables: &T, nat: &Nat) -> u32 {
    if nat.node == NODE_BALANCED {
        // Wherever it enters: see `balance`.
        return 0;
    }
    if nat.node != NODE_LEARNED {
        return nat.node;
    }
    match tables.learned(&LearnedKey { network: nat.inside_network, ip: nat.inside }) {
        Some(learned) if learned.station.place == PLACE_REMOTE => learned.station.at,
        _ => 0,
    }
}

/// Whether this node answers for an address.
#[inline(always)]
fn answers<T: Tables>(tables: &T, bank: u32, network: u32, station: &Station, ip: Ip) -> bool {
    if station.place == PLACE_SHARED {
        return tables.is_master(&MasterKey::new(network, station.at as u8, !ip.is_v4()));
    }
    if station.place != PLACE_LEARNED {
        return station.place == PLACE_EVERYWHERE;
    }
    let key = NatKey { network: Scoped::new(bank, network), ip, port: Be16::new(0), proto: 0, zero: 0 };
    let Some(nat) = tables.nat(&key) else { return false };
    match tables.learned(&LearnedKey { network: nat.inside_network, ip: nat.inside }) {
        Some(learned) => learned.station.is_here(),
        None => false,
    }
}

/// Whether the packet's destination, an address of a router on an external network, is a forwarded port, or a
/// port that another node has.
#[inline(always)]
pub fn leads_on<T: Tables>(tables: &T, network: u32, plan: &Plan) -> bool {
    let outside = towards(plan);
    !plan.follows() && nat::inside(tables, plan.bank, network, &outside).is_some()
        || owner(tables, plan.bank, network, &outside).is_some()
}

/// The tuple that says where on an external network a packet goes: of what follows a connection, an ICMP error
/// included, that of the packets it follows.
#[inline(always)]
fn towards(plan: &Plan) -> Tuple {
    if plan.follows() { plan.known.translated(&plan.known_key) } else { plan.tuple }
}

/// The other node that has the port of a router's address.
#[inline(always)]
fn owner<T: Tables>(tables: &T, bank: u32, network: u32, outside: &Tuple) -> Option<SnatOwner> {
    let port = plan::outside_port(outside.proto, outside.sport, outside.dport)?;
    if !outside.dst.is_v4() {
        return None;
    }
    let key = SnatOwnerKey {
        network: Scoped::new(bank, network),
        ip: outside.dst.as_v4(),
        block: port as u32 / SNAT_BLOCK,
    };
    tables.snat_owner(&key).copied()
}

/// Passes a packet on, as it is, to the node that translates it. A gateway keeps no connections.
#[inline(always)]
fn pass_on<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    headers: &Headers,
    way: SnatOwner,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    if plan.mute {
        // Two nodes that do not agree on whose it is.
        return Err(DropReason::TunnelMisdelivered);
    }
    pass(packet, tables, headers, way, plan)
}

/// Passes a packet on to the node of the member it was balanced to. It is remembered for its own sake, so that not
/// every packet of a connection is balanced; whoever forgets it balances again.
#[inline(always)]
pub fn pass_to_member<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let way = SnatOwner { node: plan.way_node, mac: plan.way_mac, zero: 0 };
    // As it came in.
    plan.tuple = headers.tuple();
    let decision = pass(packet, tables, headers, way, plan)?;
    if decision != Decision::ForwardOnce {
        // Too long for the tunnel, and its sender is told.
        return Ok(decision);
    }
    match plan.asked {
        ASKED_NOBODY => {}
        ASKED_ONE | ASKED_ALL => plan.flow.out_macs = Macs::new(way.mac, asking(way.mac, plan.asked)),
        // Nodes that do not agree on where it is.
        _ => return Err(DropReason::TunnelMisdelivered),
    }
    // Nobody tells a gateway that an address has moved on a network of others.
    let may_remember = plan.asked == ASKED_NOBODY && !plan.way_moves;
    Ok(if may_remember { plan::remember(headers) } else { Decision::ForwardOnce })
}

/// The sender of a frame that says how many nodes were asked about it: the member's own hardware address, or that with
/// one bit changed.
#[inline(always)]
fn asking(member: [u8; 6], asked: u8) -> [u8; 6] {
    let mut mac = member;
    mac[5] ^= asked - ASKED_ONE;
    mac
}

/// The same, of a frame that came.
#[inline(always)]
fn asked(macs: &Macs) -> u8 {
    let (sender, member) = (macs.src(), macs.dst());
    if sender == member {
        ASKED_ONE
    } else if sender == asking(member, ASKED_ALL) {
        ASKED_ALL
    } else {
        ASKED_NOBODY
    }
}

/// Passes an ICMP error about a connection to a VIP on, to the node of the member that such a connection has.
#[inline(always)]
pub fn about_member<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    headers: &Headers,
    network: u32,
    vip: Ip,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    match balance::there(tables, plan.bank, network, vip, &plan.about) {
        Some(there) if plan.named == 0 => {
            plan.way_node = there.node;
            plan.way_mac = there.mac;
            // Errors are few: none is worth remembering.
            plan.way_moves = true;
            pass_to_member(packet, tables, headers, plan)
        }
        // Nobody knows of it.
        _ => Err(DropReason::IcmpUnrelated),
    }
}

#[inline(always)]
fn pass<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    headers: &Headers,
    way: SnatOwner,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let network = plan.entered_network;
    let key = RouterLegKey { router: Scoped::new(plan.bank, plan.entered_router), network };
    let leg = tables.router_leg(&key).ok_or(DropReason::RouterDetached)?;
    if headers.ttl <= 1 {
        return answer::refuse(headers, leg, Refusal::TimeExceeded, DropReason::TtlExceeded, plan);
    }
    if plan::datagram_len(packet, headers) > plan.commit.overlay_mtu {
        if headers.dont_fragment {
            let refusal = Refusal::TooBig(plan.commit.overlay_mtu);
            return answer::refuse(headers, leg, refusal, DropReason::TooBig, plan);
        }
        plan.too_big = true;
    }
    plan.flow.hops = 1;
    plan.flow.out_macs = Macs::new(way.mac, leg.mac);
    plan.flow.network_out = network;
    plan.flow.mtu =
        if plan.commit.overlay_mtu > u16::MAX as u32 { u16::MAX } else { plan.commit.overlay_mtu as u16 };
    let hash = headers.tuple_hash();
    tunnel_to(tables, hash, way.node, plan.entered_vni, plan);
    Ok(Decision::ForwardOnce)
}

/// An announcement of a virtual router's master (RFC 5798, 5.2). The agent reads it with more care; here it
/// matters if there is no agent.
#[inline(always)]
fn hear<P: Packet, T: Tables>(packet: &P, tables: &T, network: u32, headers: &Headers) {
    const VERSION_3_ADVERTISEMENT: u8 = 0x31;
    const RESIGNED: u8 = 0;
    if headers.ttl == 255
        && headers.dst.is_multicast()
        && !headers.fragment
        && let Some(vrrp) = packet.view(headers.l4(), 8)
        && vrrp.u8(0) == VERSION_3_ADVERTISEMENT
        && vrrp.u8(2) != RESIGNED
    {
        tables.heard_master(&MasterKey::new(network, vrrp.u8(1), headers.v6));
    }
}

/// Where a packet that leaves a router goes on an external network.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Into a router of this node: [`Plan::at_router`].
    Router,
    /// To another node, where a router translates: [`Plan::way_node`], [`Plan::way_mac`],
    /// [`Plan::at_router`].
    Node,
    /// To a next hop outside.
    Outside,
    /// To a next hop outside, by a gateway: this node has no interface there. [`Plan::way_node`].
    Gateway,
    /// Nowhere: the floating IP's port is bound to no node.
    Nowhere,
}

/// Finds it.
#[inline(always)]
pub fn way<T: Tables>(
    tables: &T,
    network: u32,
    leg: &RouterLeg,
    nexthop: Ip,
    slot: u32,
    plan: &mut Plan,
) -> Way {
    // On a routed network addresses of ours are behind no next hop.
    let whole = tables.address(&AddressKey::new(plan.bank, network, plan.tuple.dst));
    let (found, is_destination) = match whole {
        Some(station) => (Some(station), true),
        None => (tables.address(&AddressKey::new(plan.bank, network, nexthop)), false),
    };
    let Some(station) = found else {
        // What came to a gateway by a tunnel goes on to no other.
        if plan.mute || plan.commit.external(leg.vni).is_some() {
            return Way::Outside;
        }
        return match tables.gateway(&GatewayKey { network: Scoped::new(plan.bank, network), slot }) {
            Some(node) => {
                plan.way_node = node;
                Way::Gateway
            }
            None => Way::Outside,
        };
    };
    plan.at_router = station.owner;
    plan.way_node = station.at;
    plan.way_mac = station.mac;
    if is_destination {
        let outside = towards(plan);
        match nat::inside(tables, plan.bank, network, &outside) {
            Some(nat) => {
                if nat.node == NODE_BALANCED
                    && let Some(there) = member_there(tables, nat, plan)
                {
                    plan.at_router = nat.router;
                    plan.way_node = there.node;
                    plan.way_mac = there.mac;
                    return Way::Node;
                }
                let node = holder(tables, nat);
                if node != 0 {
                    plan.at_router = nat.router;
                    plan.way_node = node;
                    plan.way_mac = nat.mac;
                    return Way::Node;
                }
                // What follows a connection is translated already.
                if !plan.follows() {
                    plan.at_router = nat.router;
                    nat::destination(nat, plan);
                    return Way::Router;
                }
            }
            None => {
                if let Some(owner) = owner(tables, plan.bank, network, &outside) {
                    plan.way_node = owner.node;
                    plan.way_mac = owner.mac;
                    return Way::Node;
                }
            }
        }
    }
    match station.place {
        PLACE_EVERYWHERE | PLACE_SHARED => Way::Router,
        PLACE_REMOTE => Way::Node,
        _ => Way::Nowhere,
    }
}

/// The node that hosts the member which a packet to a VIP's floating IP goes to, if it is another. A connection that is
/// known stays where it went.
#[inline(always)]
fn member_there<T: Tables>(tables: &T, nat: &Nat, plan: &Plan) -> Option<SnatOwner> {
    if matches!(plan.tuple.proto, PROTO_ICMP | PROTO_ICMPV6) && !plan.follows() {
        // The VIP itself answers. Of an error about nothing known there is no key.
        return None;
    }
    let (bank, network, vip) = (plan.bank, nat.inside_network, nat.inside);
    let sent = plan.known_key.tuple();
    if plan.known_in != KNOWN_NOWHERE
        && let Some(there) =
            balance::known_there(tables, bank, network, vip, &sent, &plan.known, plan.known_in)
    {
        return there;
    }
    // The source may be another by now, and its port is not chosen.
    balance::there(tables, bank, network, vip, &sent)
}

/// Fills in the exit to a next hop outside, or says why there is none.
#[inline(always)]
pub fn leave<T: Tables>(
    tables: &T,
    network: u32,
    router: u32,
    leg: &RouterLeg,
    nexthop: Ip,
    plan: &mut Plan,
) -> Option<DropReason> {
    let Some(&external) = plan.commit.external(leg.vni) else {
        return Some(DropReason::ExternalAbsent);
    };
    let key = HopKey { network, ip: nexthop };
    let index = match tables.hop_index(&key) {
        Some(index) => index,
        None => {
            let hop = Hop {
                flags: HOP_USED,
                ifindex: external.ifindex,
                network,
                ip: nexthop,
                router,
                confirmed: tables.now(),
                ..Hop::default()
            };
            match tables.new_hop(&key, &hop) {
                Some(index) => index,
                None => return Some(DropReason::HopTableFull),
            }
        }
    };
    let Some(hop) = tables.hop(index) else {
        return Some(DropReason::HopTableFull);
    };
    if hop.flags & HOP_FAILED != 0 {
        return Some(DropReason::HopUnanswered);
    }
    plan.flow.exit = EXIT_EXTERNAL;
    plan.flow.target = index;
    plan.flow.out_macs = Macs::new([0; 6], leg.mac);
    plan.unresolved = hop.flags & HOP_RESOLVED == 0;
    plan.leaves_on = network;
    plan.leaves_by = router;
    if external.flags & EXTERNAL_FRAMES != 0 {
        plan.flow.flags |= FLOW_FRAMES;
    }
    None
}

/// ARP from outside: requests for this node's addresses are answered, and who speaks is remembered if it is
/// a next hop.
#[inline(always)]
fn arp<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    bank: u32,
    network: u32,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let arp = packet.view(ETH_LEN, ARP_LEN).ok_or(DropReason::ArpMalformed)?;
    if arp.be32(0) != Be32::new(0x0001_0800) || arp.be16(4) != Be16::new(0x0604) {
        return Ok(Decision::Pass);
    }
    let sender = Ip::v4(arp.be32(14));
    let target = Ip::v4(arp.be32(24));
    // RFC 826's order; nobody may speak for an address of ours.
    let ours = tables.address(&AddressKey::new(bank, network, sender)).is_some();
    if arp.mac(8) == headers.macs.src() && !ours {
        learn(tables, network, sender, arp.mac(8), plan);
    }
    if arp.be16(6) == Be16::new(1)
        && let Some(station) = tables.address(&AddressKey::new(bank, network, target))
        && answers(tables, bank, network, station, target)
    {
        plan.answer.kind = plan::ARP_REPLY;
        plan.answer.mac = station.mac;
        plan.answer.source = target;
        return Ok(Decision::Answer);
    }
    Ok(Decision::Pass)
}

#[inline(always)]
fn learn<T: Tables>(tables: &T, network: u32, ip: Ip, mac: [u8; 6], plan: &mut Plan) {
    if mac[0] & 1 == 0
        && let Some(index) = tables.hop_index(&HopKey { network, ip })
        && tables.learn(index, mac)
    {
        tables.count(Event::HopResolved);
        plan.flow.target = index;
        // Whoever waits for it can go.
        plan.unresolved = true;
    }
}

/// Neighbour discovery from outside (RFC 4861).
#[inline(always)]
fn neighbour<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    bank: u32,
    network: u32,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let kind = (headers.dport.get() >> 8) as u8;
    let len = headers.l4_len();
    if !matches!(kind, ND_NEIGHBOR_SOLICIT | ND_NEIGHBOR_ADVERT) {
        return Ok(Decision::Pass);
    }
    if headers.ttl != 255 || headers.fragment || headers.dport.get() & 0xff != 0 || len < 24 {
        return Err(DropReason::NdMalformed);
    }
    let nd = packet.view(headers.l4(), 24).ok_or(DropReason::NdMalformed)?;
    let target = nd.ip6(8);
    let who = if kind == ND_NEIGHBOR_ADVERT { target } else { headers.src };
    let ours = tables.address(&AddressKey::new(bank, network, who)).is_some();
    // Its address is in an option, which is the first in all that anybody sends, and is who sent the frame.
    if !ours
        && len >= 32
        && let Some(option) = packet.view(headers.l4() + 24, 8)
        && matches!(option.u8(0), 1 | 2)
        && option.u8(1) == 1
        && option.mac(2) == headers.macs.src()
    {
        learn(tables, network, who, headers.macs.src(), plan);
    }
    if kind == ND_NEIGHBOR_SOLICIT
        && let Some(station) = tables.address(&AddressKey::new(bank, network, target))
        && answers(tables, bank, network, station, target)
    {
        plan.answer.kind = plan::ND_ADVERT;
        plan.answer.mac = station.mac;
        plan.answer.router = 1;
        plan.answer.source = target;
        return Ok(Decision::Answer);
    }
    Ok(Decision::Pass)
}
