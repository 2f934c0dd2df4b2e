//! State, assurance and time left of a connection, from its two legs.
//!
//! A leg says which of FIN, SYN, RST and ACK were ever seen, and when it spoke last. nf_conntrack follows the
//! order of packets; here the order is read from who spoke last, which says the same once the line is quiet,
//! and only then does it matter: a connection's time begins with its last packet.

use std::time::Duration;

use vrouter_common::{
    flow::FlowKey,
    wire::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
};

use super::{
    legs::{Flows, Leg},
    timeouts::{Timeout, Timeouts},
};
use crate::clock::Ticks;

/// UDP that goes both ways for longer is a stream (nf_conntrack: the same).
const STREAM_AFTER: Duration = Duration::from_secs(2);
/// Both have closed and one goes on speaking alone: it does not hear the other's last ACK.
const ALONE_AFTER: Duration = Duration::from_secs(1);

/// Where a connection is, in nf_conntrack's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    SynSent,
    /// Both began at once.
    SynSent2,
    SynRecv,
    Established,
    FinWait,
    CloseWait,
    LastAck,
    TimeWait,
    Close,
    /// Not TCP, without an answer.
    Unreplied,
    /// Not TCP, answered.
    Replied,
    /// Not TCP, and certainly a conversation.
    Assured,
    /// Its other half is gone.
    Half,
    /// A remembered decision.
    Stateless,
}

impl State {
    /// Every one.
    pub const ALL: [Self; 14] = [
        Self::SynSent,
        Self::SynSent2,
        Self::SynRecv,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::Unreplied,
        Self::Replied,
        Self::Assured,
        Self::Half,
        Self::Stateless,
    ];

    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "SYN_SENT",
            Self::SynSent2 => "SYN_SENT2",
            Self::SynRecv => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::Unreplied => "UNREPLIED",
            Self::Replied => "REPLIED",
            Self::Assured => "ASSURED",
            Self::Half => "HALF",
            Self::Stateless => "STATELESS",
        }
    }
}

/// How a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub state: State,
    /// A reply was seen.
    pub replied: bool,
    /// It is no scan and no stray packet: nf_conntrack would not drop it early.
    pub assured: bool,
    /// Since the first packet.
    pub age: Duration,
    /// Since the last packet of either direction.
    pub idle: Duration,
    /// Silence after which it is forgotten.
    pub timeout: Duration,
}

impl Standing {
    /// What is left until it is forgotten.
    pub fn remaining(&self) -> Duration {
        self.timeout.saturating_sub(self.idle)
    }

    /// Whether it is to be forgotten.
    pub fn is_over(&self) -> bool {
        self.idle >= self.timeout
    }
}

/// Judges connections at one moment.
#[derive(Clone, Debug)]
pub struct Judge {
    pub ticks: Ticks,
    pub timeouts: Timeouts,
    /// Silence after which a remembered decision is forgotten.
    pub decision_idle: Duration,
}

impl Judge {
    /// How it is doing.
    pub fn standing(&self, flows: &Flows) -> Standing {
        let idle = flows.legs().map(|leg| self.ticks.age(leg.flow.seen)).min().unwrap_or_default();
        let age = flows.legs().map(|leg| self.ticks.age(leg.flow.created)).max().unwrap_or_default();
        let standing = |state, replied, assured, timeout| Standing {
            state,
            replied,
            assured,
            age,
            idle,
            timeout: self.timeouts.get(timeout),
        };
        match flows {
            Flows::Decision(_) => Standing {
                timeout: self.decision_idle,
                ..standing(State::Stateless, false, false, Timeout::Generic)
            },
            Flows::Half(leg) => standing(State::Half, flows.reply().is_some(), false, shortest_of(&leg.key)),
            Flows::Connection { original, reply } if original.key.proto == PROTO_TCP => {
                let replied = reply.is_used();
                let (state, timeout) = self.tcp(original, reply);
                let spoken = original.flow.tcp_flags & reply.flow.tcp_flags;
                standing(state, replied, replied && spoken & TCP_ACK != 0, timeout)
            }
            Flows::Connection { original, reply } => {
                let replied = reply.is_used();
                let lasted = age.saturating_sub(idle);
                let stream = replied && original.key.proto == PROTO_UDP && lasted > STREAM_AFTER;
                let state = match (replied, stream) {
                    (_, true) => State::Assured,
                    (true, false) => State::Replied,
                    (false, false) => State::Unreplied,
                };
                let timeout = match original.key.proto {
                    PROTO_UDP if stream => Timeout::UdpStream,
                    PROTO_UDP => Timeout::Udp,
                    PROTO_ICMP => Timeout::Icmp,
                    PROTO_ICMPV6 => Timeout::Icmpv6,
                    _ => Timeout::Generic,
                };
                standing(state, replied, stream, timeout)
            }
        }
    }

    fn tcp(&self, original: &Leg, reply: &Leg) -> (State, Timeout) {
        let (there, back) = (original.flow.tcp_flags, reply.flow.tcp_flags);
        if (there | back) & TCP_RST != 0 {
            return (State::Close, Timeout::TcpClose);
        }
        // Ages, not ticks: the counter begins again.
        let (there_idle, back_idle) = (self.ticks.age(original.flow.seen), self.ticks.age(reply.flow.seen));
        let closed = [there & TCP_FIN != 0, back & TCP_FIN != 0];
        match closed {
            [false, false] => {}
            [true, true] if there_idle.abs_diff(back_idle) > ALONE_AFTER => {
                return (State::LastAck, Timeout::TcpLastAck);
            }
            [true, true] => return (State::TimeWait, Timeout::TcpTimeWait),
            [there_closed, _] => {
                let (closer, other) =
                    if there_closed { (there_idle, back_idle) } else { (back_idle, there_idle) };
                let answered = if there_closed { reply.is_used() } else { original.is_used() };
                return if answered && other <= closer {
                    (State::CloseWait, Timeout::TcpCloseWait)
                } else {
                    (State::FinWait, Timeout::TcpFinWait)
                };
            }
        }
        if !reply.is_used() {
            return if there & TCP_SYN != 0 && there & TCP_ACK == 0 {
                (State::SynSent, Timeout::TcpSynSent)
            } else {
                // Picked up in the middle: an open connection of which one direction goes elsewhere, or a scan.
                (State::Established, Timeout::TcpUnacknowledged)
            };
        }
        if there & TCP_SYN != 0 && there & TCP_ACK == 0 {
            return match (back & TCP_SYN != 0, back & TCP_ACK != 0) {
                (true, true) => (State::SynRecv, Timeout::TcpSynRecv),
                (true, false) => (State::SynSent2, Timeout::TcpSynSent),
                // Something old, which the other side will reset.
                (false, _) => (State::SynSent, Timeout::TcpSynSent),
            };
        }
        (State::Established, Timeout::TcpEstablished)
    }
}

/// What a leg without its other half gets: it is of no use to anybody, but its next packet may be about to make
/// the connection anew.
fn shortest_of(key: &FlowKey) -> Timeout {
    match key.proto {
        PROTO_TCP => Timeout::TcpClose,
        PROTO_UDP => Timeout::Udp,
        PROTO_ICMP => Timeout::Icmp,
        PROTO_ICMPV6 => Timeout::Icmpv6,
        _ => Timeout::Generic,
    }
}
