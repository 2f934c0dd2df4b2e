//! Stage 3b: routes a packet that was sent to a router's hardware address (behaviours R1-R5, R9).
//!
//! Reads: the routing tries, router legs, stations. Writes: [`Plan::flow`] or [`Plan::answer`]. Drops:
//! `martian`, `link_local_routed`, `multicast_routed`, `no_route`, `route_*`, `ttl_exceeded`,
//! `next_hop_unknown`, `router_*`, `too_big`, and what delivering names.
//!
//! Routers in a row are passed in one go, at most [`ROUTERS_MAX`] of them. The order of checks is Linux's:
//! local delivery, route, TTL, MTU, neighbour; an error comes from the address of the interface where the
//! packet came in.

use crate::{
    addr::{Ip, Macs},
    answer::{self, Refusal},
    deliver::deliver,
    flow::FROM_PORT,
    packet::{Packet, View},
    parse::Headers,
    plan::{self, Decision, Plan},
    reason::DropReason,
    tables::*,
    wire::*,
};

/// Routers a packet may pass on one node.
pub const ROUTERS_MAX: u8 = 8;

/// Routes.
#[inline(always)]
pub fn route<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    bank: u32,
    network: u32,
    router: u32,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    if headers.dst.is_multicast() || headers.dst == Ip::V4_BROADCAST {
        return Err(DropReason::MulticastRouted);
    }
    if headers.dst.is_martian() || headers.src.is_martian() || headers.src.is_multicast() {
        return Err(DropReason::Martian);
    }
    let mut network = network;
    let mut router = router;
    let mut hops = 0_u8;
    plan.flow.mtu = u16::MAX;
    while hops < ROUTERS_MAX {
        plan.answer.hops = hops;
        let came_in = tables
            .router_leg(&RouterLegKey { router: Scoped::new(bank, router), network })
            .ok_or(DropReason::RouterDetached)?;
        let Some(route) = tables.route(&RouteKey::lookup(bank, router, headers.dst)) else {
            return answer::refuse(headers, came_in, Refusal::NoRoute, DropReason::NoRoute, plan);
        };
        match route.kind {
            ROUTE_CONNECTED | ROUTE_VIA => {}
            ROUTE_SELF => return to_router(packet, headers, plan),
            ROUTE_BLACKHOLE => return Err(DropReason::RouteBlackhole),
            ROUTE_BROADCAST => return Err(DropReason::MulticastRouted),
            _ => {
                let refusal = Refusal::UnreachableRoute;
                return answer::refuse(headers, came_in, refusal, DropReason::RouteUnreachable, plan);
            }
        }
        if headers.v6 && (headers.src.is_v6_link_local() || headers.dst.is_v6_link_local()) {
            return answer::refuse(headers, came_in, Refusal::Scope, DropReason::LinkLocalRouted, plan);
        }
        if headers.ttl <= hops + 1 {
            return answer::refuse(headers, came_in, Refusal::TimeExceeded, DropReason::TtlExceeded, plan);
        }
        let goes_out = tables
            .router_leg(&RouterLegKey { router: Scoped::new(bank, router), network: route.network })
            .ok_or(DropReason::RouterDetached)?;
        if plan::segment_len(packet, headers) > goes_out.mtu {
            if !headers.dont_fragment {
                return Err(DropReason::TooBig);
            }
            return answer::refuse(headers, came_in, Refusal::TooBig(goes_out.mtu), DropReason::TooBig, plan);
        }
        // What is stored holds for every packet of the flow, so it is the narrowest network's.
        if goes_out.mtu < plan.flow.mtu as u32 {
            plan.flow.mtu = goes_out.mtu as u16;
        }
        let nexthop = if route.kind == ROUTE_VIA { route.nexthop } else { headers.dst };
        let Some(station) = tables.address(&AddressKey::new(bank, route.network, nexthop)) else {
            return answer::refuse(headers, came_in, Refusal::Host, DropReason::NextHopUnknown, plan);
        };
        hops += 1;
        if station.kind == STATION_ROUTER {
            router = station.owner;
            network = route.network;
            continue;
        }
        if station.place == PLACE_UNPLUGGED || station.place == PLACE_UNBOUND {
            // What unanswered ARP would tell the sender.
            let reason = if station.place == PLACE_UNBOUND {
                DropReason::PortUnbound
            } else {
                DropReason::PortUnplugged
            };
            return answer::refuse(headers, came_in, Refusal::Host, reason, plan);
        }
        plan.flow.hops = hops;
        plan.flow.out_macs = Macs::new(station.mac, goes_out.mac);
        let hash = plan::key(headers, FROM_PORT, 0).tuple_hash();
        deliver(tables, hash, station, goes_out.vni, plan.flow.mtu as u32, plan)?;
        return Ok(plan::remember(headers));
    }
    Err(DropReason::RouterLoop)
}

/// A packet for the router itself (behaviour R3).
#[inline(always)]
fn to_router<P: Packet>(packet: &P, headers: &Headers, plan: &mut Plan) -> Result<Decision, DropReason> {
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
        PROTO_UDP => {
            answer::refuse_as(headers, headers.dst, Refusal::Port, DropReason::RouterPortUnreachable, plan)
        }
        PROTO_TCP => {
            let tcp = packet.view(headers.l4(), 20).ok_or(DropReason::TransportTruncated)?;
            // A reset is never answered (RFC 9293, 3.5.2); a fragment cannot be measured.
            if tcp.u8(13) & TCP_RST != 0 || headers.fragment || headers.src.is_unspecified() {
                return Err(DropReason::RouterIgnored);
            }
            plan.answer.kind = plan::TCP_RESET;
            Ok(Decision::Reject(DropReason::RouterRefused))
        }
        _ => answer::refuse_as(headers, headers.dst, Refusal::Protocol, DropReason::RouterProtocol, plan),
    }
}
