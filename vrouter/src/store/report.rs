//! How a node is: what its agent tells while it runs.

use serde::{Deserialize, Serialize};

/// The value of a node's state. Unknown fields are ignored, absent ones empty: nodes of several versions run side
/// by side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeState {
    /// Version of its vrouter.
    pub version: String,
    /// The store's revision that is wanted.
    pub wanted: i64,
    /// The revision that is in force: everything up to it that is for this node.
    pub in_force: i64,
    /// Its underlay address.
    pub vtep: Option<String>,
    /// `ok`, or `degraded`: then `problems` says why.
    pub health: String,
    /// What is wrong, a line each; no more than a few.
    pub problems: Vec<String>,
    /// Ports of the topology that are here.
    pub ports: Vec<PortState>,
    /// Ports of which the interface is missing.
    pub ports_missing: u32,
    /// When its agent started, in seconds since 1970.
    pub started: u64,
}

/// A port on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortState {
    pub name: String,
    pub interface: String,
    /// The interface is there.
    pub up: bool,
}

impl NodeState {
    /// Reads a value; one that is damaged says so.
    pub fn read(value: &[u8]) -> Self {
        serde_json::from_slice(value).unwrap_or_else(|error| Self {
            health: "unknown".to_owned(),
            problems: vec![format!("the state in etcd is damaged: {error}")],
            ..Self::default()
        })
    }

    /// As it is written.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}
