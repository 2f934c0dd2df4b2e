//! What is told of external networks in the agent's status.

use serde::Serialize;

use super::hops::Tally;

/// Counters since the agent started, and what is now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NextHopsStatus {
    pub hops: HopsStatus,
    /// Packets that waited for a next hop.
    pub packets: PacketsStatus,
    /// Packets that were larger than their way takes.
    pub cut: CutStatus,
    /// ARP requests and neighbour solicitations sent by the agent.
    pub requests: u64,
    /// Gratuitous ARP requests and unsolicited advertisements sent.
    pub announcements: u64,
    /// What did not work last.
    pub error: Option<String>,
}

/// Next hops by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HopsStatus {
    pub resolved: usize,
    /// Asked for, and not yet answered.
    pub waiting: usize,
    pub failed: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PacketsStatus {
    /// Waiting now.
    pub waiting: usize,
    pub sent: u64,
    /// Their senders were told that the host is unreachable.
    pub answered: u64,
    pub lost: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CutStatus {
    pub packets: u64,
    pub fragments: u64,
    /// There were too many.
    pub refused: u64,
}

impl From<Tally> for HopsStatus {
    fn from(Tally { resolved, waiting, failed }: Tally) -> Self {
        Self { resolved, waiting, failed }
    }
}
