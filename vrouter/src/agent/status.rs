//! What the agent says of itself.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Serialize, Serializer};

use super::{
    bgp::BgpStatus,
    edge::EdgeStatus,
    external::NextHopsStatus,
    flows::FlowsStatus,
    health::HealthStatus,
    records::RecordsStatus,
    services::{Tally, metadata},
};
use crate::{
    compile::LocalPort, config::AgentConfig, connections::Timeouts, netlink, store::follow::Link,
    topology::Problem,
};

/// The agent's half of `vrouter status`.
#[derive(Clone, Debug, Serialize)]
pub struct AgentStatus {
    pub alive: bool,
    pub pid: u32,
    pub version: &'static str,
    pub node: String,
    pub topology: String,
    pub wanted: Option<Wanted>,
    /// How it stands with etcd, if the topology comes from there.
    #[serde(serialize_with = "link")]
    pub store: Option<Link>,
    /// Why the last apply failed.
    pub error: Option<String>,
    pub uplinks: Vec<UplinkStatus>,
    pub externals: Vec<ExternalStatus>,
    pub ports: Vec<PortStatus>,
    pub peers: Vec<PeerStatus>,
    /// Virtual routers this node takes part in, and gateways it depends on.
    pub edge: EdgeStatus,
    /// Addresses of routed external networks, and the daemon that announces them.
    pub bgp: BgpStatus,
    /// Next hops on external networks, and the packets that wait for them.
    pub next_hops: NextHopsStatus,
    /// Members of pools: how those are that this node checks, and which of the others are not up.
    pub health: HealthStatus,
    /// What workloads asked this node's services, and what came of it.
    pub services: Tally,
    /// Requests for metadata, if this node has a server to put them to.
    pub metadata: Option<metadata::counts::Tally>,
    /// How long silent connections are kept, and remembered decisions.
    pub timeouts: Timeouts,
    pub flow_idle_seconds: u32,
    /// What the last pass through the flow tables found.
    pub flows: Option<FlowsStatus>,
    /// How it goes with records of connections that ended, if there are to be any.
    pub flow_records: Option<RecordsStatus>,
}

/// The document as it was read last.
#[derive(Clone, Debug, Serialize)]
pub struct Wanted {
    pub digest: String,
    pub problems: Vec<Problem>,
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct UplinkStatus {
    pub name: String,
    pub ifindex: Option<u32>,
    pub mtu: u32,
    pub up: bool,
    /// Whether XDP is attached in front of TC.
    pub xdp: bool,
    /// What is wrong.
    pub note: Option<String>,
    /// What could be better, but is in order.
    pub warning: Option<String>,
}

/// An interface on an external network.
#[derive(Clone, Debug, Serialize)]
pub struct ExternalStatus {
    /// `None`: the topology does not say yet which.
    pub network: Option<String>,
    #[serde(flatten)]
    pub interface: UplinkStatus,
}

#[derive(Clone, Debug, Serialize)]
pub struct PortStatus {
    pub name: String,
    pub interface: String,
    /// `None`: missing.
    pub ifindex: Option<u32>,
    /// `up`, `no_carrier` (the workload's end is down), `down` or `missing`.
    pub state: &'static str,
}

#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus {
    pub node: String,
    pub vtep: String,
    /// `resolved`, `resolving` (the kernel is asked for each packet) or `unreachable`.
    pub state: &'static str,
    pub ifindex: u32,
    pub nexthop: String,
    pub mac: String,
}

impl AgentStatus {
    pub fn new(config: &AgentConfig) -> Self {
        Self {
            alive: true,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
            node: config.node.clone(),
            topology: config.origin(),
            wanted: None,
            store: None,
            error: None,
            uplinks: Vec::new(),
            externals: Vec::new(),
            ports: Vec::new(),
            peers: Vec::new(),
            edge: EdgeStatus::default(),
            bgp: BgpStatus::default(),
            next_hops: NextHopsStatus::default(),
            health: HealthStatus::default(),
            services: Tally::default(),
            metadata: config.metadata.as_ref().map(metadata::counts::Tally::of),
            timeouts: config.timeouts.clone(),
            flow_idle_seconds: config.flow_idle_seconds,
            flows: None,
            flow_records: None,
        }
    }
}

impl UplinkStatus {
    pub fn new(link: &netlink::Link) -> Self {
        Self {
            name: link.name.clone(),
            ifindex: Some(link.index),
            mtu: link.mtu,
            up: link.up,
            xdp: false,
            note: None,
            warning: None,
        }
    }

    pub fn missing(name: &str) -> Self {
        let note = Some("the interface does not exist".to_owned());
        Self { name: name.to_owned(), ifindex: None, mtu: 0, up: false, xdp: false, note, warning: None }
    }
}

impl PortStatus {
    /// A port, and the link it is at, if there is one.
    pub fn new(port: &LocalPort, link: Option<&netlink::Link>) -> Self {
        let state = match link.filter(|_| port.ifindex.is_some()) {
            Some(link) if link.up && link.carrier => "up",
            Some(link) if link.up => "no_carrier",
            Some(_) => "down",
            None => "missing",
        };
        Self { name: port.name.clone(), interface: port.interface.clone(), ifindex: port.ifindex, state }
    }
}

fn link<S: Serializer>(link: &Option<Link>, serializer: S) -> Result<S::Ok, S::Error> {
    link.as_ref().map(Link::state).serialize(serializer)
}

/// A panic elsewhere does not make a status unreadable.
pub fn lock(status: &Mutex<AgentStatus>) -> MutexGuard<'_, AgentStatus> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}
