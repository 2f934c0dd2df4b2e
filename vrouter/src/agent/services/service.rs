//! What a service is.

use std::{sync::Arc, time::Instant};

use super::sender::FrameSender;
use crate::compile::{Served, served::ServedPort};

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// DHCP over IPv4.
    Dhcp,
    /// DHCP over IPv6.
    Dhcpv6,
    /// Router solicitations.
    Router,
    /// TCP to the metadata service's addresses.
    Metadata,
    /// TCP and echo replies to a router: what a member of a pool answers.
    Health,
}

impl Kind {
    /// The name in output and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dhcp => "dhcp",
            Self::Dhcpv6 => "dhcpv6",
            Self::Router => "router_advertisement",
            Self::Metadata => "metadata",
            Self::Health => "health",
        }
    }

    /// Frames a port may send in a second, and at once. Beyond that they are refused, counted: a workload must
    /// not keep others from being served.
    pub const fn pace(self) -> (u32, u32) {
        match self {
            Self::Dhcp | Self::Dhcpv6 | Self::Router => (10, 30),
            Self::Metadata | Self::Health => (2000, 4000),
        }
    }
}

/// What was done with a port's word that somebody else answers for its address; the name in output and metrics.
pub const DECLINED: &str = "declined";

/// Why a frame was not answered; the name in output and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused(pub &'static str);

impl Refused {
    /// Not what the protocol calls one of its messages.
    pub const MALFORMED: Self = Self("malformed");
    /// A piece of a datagram.
    pub const FRAGMENT: Self = Self("fragment");
    /// The port sends more than its share.
    pub const TOO_MANY: Self = Self("too_many");
    /// The interface is no port's any more, or the node does not serve it this.
    pub const NOT_SERVED: Self = Self("not_served");
    /// The answer could not be sent.
    pub const NOT_SENT: Self = Self("not_sent");
}

/// Whose frame it is.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'s> {
    pub ifindex: u32,
    pub port: &'s ServedPort,
    pub kind: Kind,
}

/// Answers frames of some kinds. All of it is called by one thread, which must not be kept: what takes longer
/// goes to a thread of its own, with a [`FrameSender`] and a [`super::Tally`].
pub trait Service: Send {
    /// What it answers.
    fn kinds(&self) -> &'static [Kind];

    /// Answers a frame; what was done, for counting.
    fn answer(
        &mut self,
        asker: &Asker<'_>,
        frame: &[u8],
        sender: &FrameSender,
        now: Instant,
    ) -> Result<&'static str, Refused>;

    /// Is told which ports there are, whenever that changes.
    fn follow(&mut self, _served: &Arc<Served>, _now: Instant) {}

    /// When it wants to work next by itself.
    fn next_due(&self) -> Option<Instant> {
        None
    }

    /// Does what is due; what was done, for counting.
    fn work(&mut self, _sender: &FrameSender, _now: Instant) -> Vec<(Kind, &'static str)> {
        Vec::new()
    }
}
