//! Stage 3c: routes a packet that was sent to a router's hardware address (behaviours R1-R6, R9).
//!
//! Reads: the routing tries, router legs, stations. Writes: [`Plan::flow`] or [`Plan::answer`]. Drops:
//! `martian`, `link_local_routed`, `multicast_routed`, `no_route`, `route_*`, `ttl_exceeded`,
//! `next_hop_unknown`, `router_*`, `too_big`, and what translating, leaving and delivering name.
//!
//! Routers in a row, also over an external network, are passed in one go, at most [`ROUTERS_MAX`] of them.
//! The order of checks is Linux's: local delivery, route, TTL, MTU, neighbour; an error comes from the
//! address of the interface where the packet came in.

use crate::{
    addr::{Ip, Macs},
    answer::{self, Refusal},
    balance::{self, Balanced},
    deliver::{deliver, reply_to_home, tunnel_to},
    external::{self, Way},
    flow::FROM_NETWORK,
    nat,
    packet::Packet,
    parse::Headers,
    plan::{self, Decision, Plan},
    reason::DropReason,
    tables::*,
    wire::*,
};

/// Routers a packet may pass on one node.
pub const ROUTERS_MAX: u8 = 8;

/// Begins to route, at `router`, where the packet came in on `network`. `paid`: the node it came from has
/// lowered the TTL for this router.
#[inline(always)]
pub fn route(
    network: u32,
    router: u32,
    headers: &Headers,
    plan: &mut Plan,
    paid: bool,
) -> Result<Decision, DropReason> {
    if headers.dst.is_multicast() || headers.dst == Ip::V4_BROADCAST {
        return Err(DropReason::MulticastRouted);
    }
    if headers.dst.is_martian() || headers.src.is_martian() || headers.src.is_multicast() {
        return Err(DropReason::Martian);
    }
    plan.at_network = network;
    plan.at_router = router;
    plan.passed = 0;
    plan.hops = 0;
    plan.paid = paid;
    plan.flow.mtu = u16::MAX;
    Ok(Decision::Route)
}

/// Passes one router. [`Decision::Route`]: there is another.
#[inline(always)]
pub fn pass<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let bank = plan.bank;
    let router = plan.at_router;
    let hops = plan.hops;
    plan.answer.hops = hops;
    if plan.passed >= ROUTERS_MAX {
        return Err(DropReason::RouterLoop);
    }
    plan.passed += 1;
    let came_in = tables
        .router_leg(&RouterLegKey { router: Scoped::new(bank, router), network: plan.at_network })
        .ok_or(DropReason::RouterDetached)?;
    let Some(route) = tables.route(&RouteKey::lookup(bank, router, plan.tuple.dst)) else {
        return answer::refuse(headers, came_in, Refusal::NoRoute, DropReason::NoRoute, plan);
    };
    let mut network = route.network;
    plan.nexthop = if route.kind == ROUTE_VIA { route.nexthop } else { plan.tuple.dst };
    match route.kind {
        ROUTE_CONNECTED | ROUTE_VIA => {}
        ROUTE_MULTI => {
            let key = MemberKey { group: Scoped::new(bank, route.network), slot: slot(headers) };
            let Some(member) = tables.member(&key) else {
                return answer::refuse(headers, came_in, Refusal::NoRoute, DropReason::NoRoute, plan);
            };
            network = member.network;
            plan.nexthop = member.nexthop;
        }
        ROUTE_SELF if plan.follows() && plan.tuple.dst != plan.known.dst => {
            // To the address the connection's sender was given: it is behind this router.
            turn(plan);
            plan.hops += 1;
            return Ok(Decision::Route);
        }
        // A port of the address may be somebody else's: then it is outside, for this router, too.
        ROUTE_SELF if route.network != 0 && external::leads_on(tables, route.network, plan) => {}
        ROUTE_SELF => return to_router(headers, plan),
        ROUTE_NONE => {
            return answer::refuse(headers, came_in, Refusal::NoRoute, DropReason::NoRoute, plan);
        }
        ROUTE_BLACKHOLE => return Err(DropReason::RouteBlackhole),
        ROUTE_BROADCAST => return Err(DropReason::MulticastRouted),
        _ => {
            let refusal = Refusal::UnreachableRoute;
            return answer::refuse(headers, came_in, refusal, DropReason::RouteUnreachable, plan);
        }
    }
    // Its receiver would not take it: the hop limit would show that it was routed (RFC 4861).
    if headers.v6 && headers.is_neighbour_discovery() {
        return Err(DropReason::LinkLocalRouted);
    }
    if headers.v6 && (headers.src.is_v6_link_local() || headers.dst.is_v6_link_local()) {
        return answer::refuse(headers, came_in, Refusal::Scope, DropReason::LinkLocalRouted, plan);
    }
    if !plan.paid {
        if headers.ttl <= hops + 1 {
            return answer::refuse(headers, came_in, Refusal::TimeExceeded, DropReason::TtlExceeded, plan);
        }
        plan.hops = hops + 1;
    }
    plan.paid = false;
    plan.flow.hops = plan.hops;
    let goes_out = tables
        .router_leg(&RouterLegKey { router: Scoped::new(bank, router), network })
        .ok_or(DropReason::RouterDetached)?;
    let len = plan::datagram_len(packet, headers);
    // What is stored holds for every packet of the flow, so it is the narrowest network's.
    narrow(goes_out.mtu, plan);
    if len > goes_out.mtu {
        if headers.dont_fragment {
            let refusal = Refusal::TooBig(goes_out.mtu);
            return answer::refuse(headers, came_in, refusal, DropReason::TooBig, plan);
        }
        plan.too_big = true;
    }
    let nexthop = plan.nexthop;
    if goes_out.flags & LEG_EXTERNAL != 0 {
        return outwards(tables, network, router, came_in, goes_out, nexthop, headers, len, plan);
    }
    let Some(station) = who_has(tables, bank, network, nexthop) else {
        return answer::refuse(headers, came_in, Refusal::Host, DropReason::NextHopUnknown, plan);
    };
    if station.kind == STATION_ROUTER {
        plan.at_router = station.owner;
        plan.at_network = network;
        return Ok(Decision::Route);
    }
    if station.kind == STATION_VIP && nexthop != plan.tuple.dst {
        // It serves who asks for it, and is nobody's router.
        return answer::refuse(headers, came_in, Refusal::Host, DropReason::NextHopUnknown, plan);
    }
    if station.kind == STATION_VIP {
        return vip(packet, tables, network, station.owner, headers, plan);
    }
    if station.place == PLACE_UNPLUGGED || station.place == PLACE_UNBOUND {
        // What unanswered ARP would tell the sender.
        let reason =
            if station.place == PLACE_UNBOUND { DropReason::PortUnbound } else { DropReason::PortUnplugged };
        return answer::refuse(headers, came_in, Refusal::Host, reason, plan);
    }
    plan.flow.out_macs = Macs::new(station.mac, goes_out.mac);
    let mtu = plan.flow.mtu as u32;
    deliver(tables, headers.tuple_hash(), station, network, goes_out.vni, mtu, plan)?;
    Ok(plan::remember(headers))
}

/// A packet to a VIP on `network`, whose `owner` balances. It goes on from there to a member, at the cost of one router,
/// however often that is asked.
#[inline(always)]
fn vip<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    network: u32,
    owner: u32,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    if plan.follows() {
        if plan.tuple.dst == plan.known.dst {
            return refused_at(headers, DropReason::VipClosed, plan);
        }
        turn(plan);
    } else if headers.is_icmp_error() && plan.entered_network != 0 {
        let vip = plan.tuple.dst;
        return external::about_member(packet, tables, headers, network, vip, plan);
    } else {
        match balance::balance(tables, network, owner, headers, plan) {
            Balanced::Here => {}
            Balanced::There => return external::pass_to_member(packet, tables, headers, plan),
            Balanced::Closed => return refused_at(headers, DropReason::VipClosed, plan),
            Balanced::Nobody(reason) => return refused_at(headers, reason, plan),
        }
    }
    plan.paid = owner == plan.at_router;
    if !plan.paid {
        plan.at_network = network;
    }
    plan.at_router = owner;
    Ok(Decision::Route)
}

/// A VIP refuses.
#[inline(always)]
fn refused_at(headers: &Headers, reason: DropReason, plan: &mut Plan) -> Result<Decision, DropReason> {
    if plan.mute { Err(reason) } else { to_host(headers, reason, reason, plan) }
}

/// The slot of a packet's flow among several ways: the same for all its packets, on every node.
#[inline(always)]
pub fn slot(headers: &Headers) -> u32 {
    headers.tuple_hash() % SLOTS
}

/// Notes a network's MTU.
#[inline(always)]
fn narrow(mtu: u32, plan: &mut Plan) {
    if mtu < plan.flow.mtu as u32 {
        plan.flow.mtu = mtu as u16;
    }
}

/// Translates as the known leg does, at once.
#[inline(always)]
fn turn(plan: &mut Plan) {
    plan.tuple.dst = plan.known.dst;
    plan.tuple.dport = plan.known.dport;
    if plan.role != plan::ROLE_RELATED || plan.known.src != plan.known_key.src {
        plan.tuple.src = plan.known.src;
        plan.tuple.sport = plan.known.sport;
    }
}

/// A packet that leaves by an external network.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "where a packet is, and all there is to decide by")]
fn outwards<T: Tables>(
    tables: &T,
    network: u32,
    router: u32,
    came_in: &RouterLeg,
    leg: &RouterLeg,
    nexthop: Ip,
    headers: &Headers,
    len: u32,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    // From the node that translates, which has no way out of its own: a gateway passes it on as it is.
    let in_transit = plan.mute && plan.at_network == network;
    if !in_transit {
        nat::source(tables, router, network, leg, plan)?;
    }
    let translated = plan.tuple.src != headers.src;
    plan.flow.network_out = network;
    plan.at_network = network;
    if plan.follows() && plan.tuple.dst != plan.known.dst {
        // Translated on this node, by the router that has the address.
        let Some(station) = tables.address(&AddressKey::new(plan.bank, network, plan.tuple.dst)) else {
            return answer::refuse(headers, came_in, Refusal::Host, DropReason::NextHopUnknown, plan);
        };
        plan.at_router = station.owner;
        plan.tuple.dst = plan.known.dst;
        plan.tuple.dport = plan.known.dport;
        return Ok(Decision::Route);
    }
    match external::way(tables, network, leg, nexthop, slot(headers), plan) {
        Way::Router => Ok(Decision::Route),
        Way::Nowhere => answer::refuse(headers, came_in, Refusal::Host, DropReason::PortUnbound, plan),
        Way::Node => {
            // The router there is passed, too: its share is done here.
            if headers.ttl <= plan.hops + 1 {
                let key = RouterLegKey { router: Scoped::new(plan.bank, plan.at_router), network };
                let there = tables.router_leg(&key).ok_or(DropReason::RouterDetached)?;
                plan.answer.hops = plan.hops;
                return answer::refuse(headers, there, Refusal::TimeExceeded, DropReason::TtlExceeded, plan);
            }
            plan.flow.hops = plan.hops + 1;
            over_there(tables, came_in, leg, headers, len, translated, plan)
        }
        Way::Gateway => {
            plan.way_mac = leg.tunnel_mac;
            over_there(tables, came_in, leg, headers, len, translated, plan)
        }
        Way::Outside => {
            if let Some(reason) = external::leave(tables, network, router, leg, nexthop, plan) {
                return answer::refuse(headers, came_in, Refusal::Host, reason, plan);
            }
            reply_outside(translated || leg.flags & LEG_OWNED != 0, leg, plan);
            if plan.unresolved {
                // What to say if it never answers.
                let _ = answer::refuse(headers, came_in, Refusal::Host, DropReason::HopUnanswered, plan);
            }
            // A gateway keeps no connections.
            Ok(if in_transit { Decision::ForwardOnce } else { plan::remember(headers) })
        }
    }
}

/// Fills in the exit by a tunnel, on an external network, to [`Plan::way_node`].
#[inline(always)]
fn over_there<T: Tables>(
    tables: &T,
    came_in: &RouterLeg,
    leg: &RouterLeg,
    headers: &Headers,
    len: u32,
    translated: bool,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let mtu = plan.commit.overlay_mtu;
    narrow(mtu, plan);
    if len > mtu {
        if headers.dont_fragment {
            return answer::refuse(headers, came_in, Refusal::TooBig(mtu), DropReason::TooBig, plan);
        }
        plan.too_big = true;
    }
    plan.flow.out_macs = Macs::new(plan.way_mac, leg.mac);
    tunnel_to(tables, headers.tuple_hash(), plan.way_node, leg.vni, plan);
    reply_outside(translated, leg, plan);
    Ok(plan::remember(headers))
}

/// Replies to a translated packet come in from the external network; to another, by the way its own network
/// has.
#[inline(always)]
fn reply_outside(on_external: bool, leg: &RouterLeg, plan: &mut Plan) {
    reply_to_home(plan);
    if on_external && plan.home_vni != 0 {
        plan.reply_from = FROM_NETWORK as u32;
        plan.reply_zone = leg.vni;
    }
}

/// A packet for the router itself (behaviour R3).
#[inline(always)]
fn to_router(headers: &Headers, plan: &mut Plan) -> Result<Decision, DropReason> {
    to_host(headers, DropReason::RouterRefused, DropReason::RouterPortUnreachable, plan)
}

/// A packet for an address at which nothing listens, but which answers; `tcp` and `udp` say why these are refused.
#[inline(always)]
fn to_host(
    headers: &Headers,
    tcp: DropReason,
    udp: DropReason,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    if plan.mute {
        return Err(DropReason::RouterIgnored);
    }
    if headers.later_fragment {
        return Err(DropReason::RouterIgnored);
    }
    match headers.proto {
        PROTO_ICMP | PROTO_ICMPV6 if (headers.proto == PROTO_ICMPV6) == headers.v6 => {
            let echo = if headers.v6 { ICMPV6_ECHO } else { ICMP_ECHO };
            if headers.dport.get() != (echo as u16) << 8 || headers.fragment {
                return Err(DropReason::RouterIgnored);
            }
            plan.answer.kind = plan::ECHO_REPLY;
            Ok(Decision::Answer)
        }
        PROTO_UDP => answer::refuse_as(headers, headers.dst, Refusal::Port, udp, plan),
        PROTO_TCP => {
            // A reset is never answered (RFC 9293, 3.5.2); a fragment cannot be measured.
            if headers.tcp_flags & TCP_RST != 0 || headers.fragment || headers.src.is_unspecified() {
                return Err(DropReason::RouterIgnored);
            }
            plan.answer.kind = plan::TCP_RESET;
            Ok(Decision::Reject(tcp))
        }
        _ => answer::refuse_as(headers, headers.dst, Refusal::Protocol, DropReason::RouterProtocol, plan),
    }
}
