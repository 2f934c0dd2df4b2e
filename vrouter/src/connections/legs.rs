//! A connection's two entries, and how one leads to the other.

use serde::Serialize;
use vrouter_common::flow::{Flow, FlowKey, ROLE_NONE, ROLE_ORIGINAL, ROLE_REPLY};

/// Which table an entry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// `FLOWS`: answered connections, never evicted.
    Flows,
    /// `TRANSIENT`: the rest; the least recently used give way.
    Transient,
}

impl Table {
    /// Both. In this order a connection that is answered meanwhile is seen twice rather than never.
    pub const ALL: [Self; 2] = [Self::Transient, Self::Flows];

    /// The name of its pin.
    pub const fn pin(self) -> &'static str {
        match self {
            Self::Flows => "FLOWS",
            Self::Transient => "TRANSIENT",
        }
    }

    /// As `Expire::table` has it.
    pub const fn number(self) -> u32 {
        match self {
            Self::Flows => 0,
            Self::Transient => 1,
        }
    }

    /// The one that is not this.
    pub const fn other(self) -> Self {
        match self {
            Self::Flows => Self::Transient,
            Self::Transient => Self::Flows,
        }
    }
}

/// An entry of a flow table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leg {
    pub key: FlowKey,
    pub flow: Flow,
    pub table: Table,
}

/// What is remembered: entries that belong together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Flows {
    /// Both directions of a connection.
    Connection { original: Leg, reply: Leg },
    /// A leg whose other half is gone: evicted, or about to be removed, too.
    Half(Leg),
    /// A remembered decision: nothing is known of a connection.
    Decision(Leg),
}

impl Leg {
    /// The key of the connection's other leg.
    pub fn peer_key(&self) -> FlowKey {
        self.flow.peer_key(&self.key)
    }

    /// Whether `other` is the other direction of this.
    pub fn is_paired_with(&self, other: &Self) -> bool {
        let roles = [self.flow.role, other.flow.role];
        matches!(roles, [ROLE_ORIGINAL, ROLE_REPLY] | [ROLE_REPLY, ROLE_ORIGINAL])
            && self.peer_key() == other.key
            && other.peer_key() == self.key
    }

    /// Whether a packet ever went this way.
    pub fn is_used(&self) -> bool {
        self.flow.packets > 0 || self.flow.tcp_flags != 0
    }
}

impl Flows {
    /// What belongs to the original direction if it is known, else the leg there is.
    pub fn first(&self) -> &Leg {
        match self {
            Self::Connection { original, .. } => original,
            Self::Half(leg) | Self::Decision(leg) => leg,
        }
    }

    /// The original direction, if it is there.
    pub fn original(&self) -> Option<&Leg> {
        match self {
            Self::Connection { original, .. } => Some(original),
            Self::Half(leg) if leg.flow.role == ROLE_REPLY => None,
            Self::Half(leg) | Self::Decision(leg) => Some(leg),
        }
    }

    /// The direction of the replies, if it is there.
    pub fn reply(&self) -> Option<&Leg> {
        match self {
            Self::Connection { reply, .. } => Some(reply),
            Self::Half(leg) if leg.flow.role == ROLE_REPLY => Some(leg),
            Self::Half(_) | Self::Decision(_) => None,
        }
    }

    /// The entries there are.
    pub fn legs(&self) -> impl Iterator<Item = &Leg> {
        let (first, second) = match self {
            Self::Connection { original, reply } => (original, Some(reply)),
            Self::Half(leg) | Self::Decision(leg) => (leg, None),
        };
        std::iter::once(first).chain(second)
    }

    /// The packet of the original direction as it came in.
    pub fn original_key(&self) -> FlowKey {
        match self.original() {
            Some(leg) => leg.key,
            None => self.first().peer_key(),
        }
    }

    /// A packet of the replies as it comes in.
    pub fn reply_key(&self) -> FlowKey {
        match self.reply() {
            Some(leg) => leg.key,
            None => self.first().peer_key(),
        }
    }

    /// Whether it is a connection, or was: not a mere decision.
    pub fn is_tracked(&self) -> bool {
        self.first().flow.role != ROLE_NONE
    }
}
