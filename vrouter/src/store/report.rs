//! How a node is: what its agent tells while it runs.

use serde::{Deserialize, Serialize};

use crate::output::plain;

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
    /// Reads a value; one that is damaged says so. Its texts are another node's words, for people to read: terminals
    /// find nothing in them to obey.
    pub fn read(value: &[u8]) -> Self {
        let state = serde_json::from_slice(value).unwrap_or_else(|error| Self {
            health: "unknown".to_owned(),
            problems: vec![format!("the state in etcd is damaged: {error}")],
            ..Self::default()
        });
        let Self { version, wanted, in_force, vtep, health, problems, ports, ports_missing, started } = state;
        let port = |PortState { name, interface, up }| PortState {
            name: plain(&name),
            interface: plain(&interface),
            up,
        };
        Self {
            version: plain(&version),
            wanted,
            in_force,
            vtep: vtep.as_deref().map(plain),
            health: plain(&health),
            problems: problems.iter().map(|problem| plain(problem)).collect(),
            ports: ports.into_iter().map(port).collect(),
            ports_missing,
            started,
        }
    }

    /// As it is written.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_words_are_no_commands_to_a_terminal() {
        let said = NodeState {
            version: "1\x1b[8m".to_owned(),
            vtep: Some("\x1b[2J".to_owned()),
            health: "\rok".to_owned(),
            problems: vec!["\x1b]0;all is well\x07".to_owned(), "straße\nnode-b  ok".to_owned()],
            ports: vec![PortState {
                name: "\u{202e}1mv".to_owned(),
                interface: "\x1bc".to_owned(),
                up: true,
            }],
            wanted: 7,
            ..NodeState::default()
        };
        let read = NodeState::read(&said.bytes());
        assert_eq!((read.version.as_str(), read.vtep.as_deref(), read.wanted), ("1?[8m", Some("?[2J"), 7));
        assert_eq!((read.health.as_str(), read.ports[0].up), ("?ok", true));
        assert_eq!(read.problems, ["?]0;all is well?", "straße?node-b  ok"]);
        assert_eq!((read.ports[0].name.as_str(), read.ports[0].interface.as_str()), ("?1mv", "?c"));
        assert!(NodeState::read(b"{").problems[0].contains("damaged"));
    }
}
