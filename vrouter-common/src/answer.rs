//! Stage 3c: answers in place: what to send back, and writing it over the packet that asked.
//!
//! Reads: the packet. Writes: [`Answer`] while deciding, then the packet. Drops: nothing of its own but
//! `no_room` when the kernel gives none.
//!
//! An answer always leaves by the port the packet came from, so its headers are the asker's, swapped. TC
//! and user space write answers; XDP leaves the packets that need one to TC.

pub mod arp;
pub mod echo;
pub mod error;
pub mod nd;
pub mod request;
pub mod reset;

use crate::{
    addr::Ip,
    packet::Packet,
    parse::Headers,
    plan::{ARP_REPLY, Answer, Decision, ECHO_REPLY, ICMP_ERROR, ND_ADVERT, Plan, TCP_RESET},
    reason::{DropReason, Event},
    tables::RouterLeg,
    wire::*,
};

/// TTL of what a router sends itself: Linux's default.
pub const ROUTER_TTL: u8 = 64;

/// Why a router refuses, in the terms of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No route.
    NoRoute,
    /// An unreachable route.
    UnreachableRoute,
    /// The next hop cannot be resolved.
    Host,
    /// Nothing listens.
    Port,
    /// Nobody speaks this protocol.
    Protocol,
    /// A link-local address would leave its link.
    Scope,
    /// TTL or hop limit.
    TimeExceeded,
    /// Larger than this MTU.
    TooBig(u32),
}

impl Refusal {
    /// ICMP type, code and second word (RFC 792, RFC 1812 5.2.7; RFC 4443). Where a route is unreachable
    /// Linux says host unreachable over IPv4 and no route over IPv6.
    #[inline(always)]
    const fn icmp(self, v6: bool, proto_at: u16) -> (u8, u8, u32) {
        if v6 {
            match self {
                Self::NoRoute | Self::UnreachableRoute => (ICMPV6_UNREACHABLE, 0, 0),
                Self::Host => (ICMPV6_UNREACHABLE, 3, 0),
                Self::Port => (ICMPV6_UNREACHABLE, 4, 0),
                Self::Protocol => (ICMPV6_PARAMETER_PROBLEM, 1, proto_at as u32),
                Self::Scope => (ICMPV6_UNREACHABLE, 2, 0),
                Self::TimeExceeded => (ICMPV6_TIME_EXCEEDED, 0, 0),
                Self::TooBig(mtu) => (ICMPV6_TOO_BIG, 0, mtu),
            }
        } else {
            match self {
                Self::NoRoute => (ICMP_UNREACHABLE, 0, 0),
                Self::UnreachableRoute | Self::Host | Self::Scope => (ICMP_UNREACHABLE, 1, 0),
                Self::Port => (ICMP_UNREACHABLE, 3, 0),
                Self::Protocol => (ICMP_UNREACHABLE, 2, 0),
                Self::TimeExceeded => (ICMP_TIME_EXCEEDED, 0, 0),
                Self::TooBig(mtu) => (ICMP_UNREACHABLE, 4, mtu),
            }
        }
    }
}

/// Refuses a packet with an ICMP error from the router's address where it came in.
#[inline(always)]
pub fn refuse(
    headers: &Headers,
    came_in: &RouterLeg,
    refusal: Refusal,
    reason: DropReason,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    let source = if headers.v6 { came_in.v6 } else { came_in.v4 };
    refuse_as(headers, source, refusal, reason, plan)
}

/// The same from a given address; silently where no error may be sent (RFC 1122 3.2.2, RFC 4443 2.4 e).
#[inline(always)]
pub fn refuse_as(
    headers: &Headers,
    source: Ip,
    refusal: Refusal,
    reason: DropReason,
    plan: &mut Plan,
) -> Result<Decision, DropReason> {
    if plan.mute
        || headers.later_fragment
        || headers.is_icmp_error()
        || headers.macs.is_group()
        || headers.dst.is_multicast()
        || headers.src.is_unspecified()
        || source == Ip::UNSPECIFIED
    {
        return Err(reason);
    }
    let (icmp_type, icmp_code, rest) = refusal.icmp(headers.v6, headers.proto_at);
    plan.answer.kind = ICMP_ERROR;
    plan.answer.icmp_type = icmp_type;
    plan.answer.icmp_code = icmp_code;
    plan.answer.rest = rest;
    plan.answer.source = source;
    Ok(Decision::Reject(reason))
}

/// Writes the answer over the packet. The packet is as it came in, from a port.
#[inline(always)]
pub fn write<P: Packet>(packet: &mut P, headers: &Headers, answer: &Answer) -> Result<Event, DropReason> {
    match answer.kind {
        ARP_REPLY => arp::write(packet, answer).map(|()| Event::ArpAnswered),
        ND_ADVERT => nd::write(packet, headers, answer).map(|()| Event::NdAnswered),
        ECHO_REPLY => echo::write(packet, headers, answer).map(|()| Event::EchoAnswered),
        ICMP_ERROR => error::write(packet, headers, answer).map(|()| Event::ErrorSent),
        TCP_RESET => reset::write(packet, headers, answer).map(|()| Event::ErrorSent),
        _ => Err(DropReason::Internal),
    }
}
