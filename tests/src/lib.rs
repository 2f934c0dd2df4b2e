//! Labs in network namespaces: several nodes, their workloads and the underlay between them, on one machine.
//!
//! System tests, `cargo xtask demo` and `cargo xtask bench` all build their surroundings here. Start at
//! [`Lab::builder`]; `docs/design/labs.md` draws a lab and states what it guarantees.

pub mod agent;
pub mod browser;
pub mod capture;
pub mod clean;
pub mod etcd;
pub mod frame;
pub mod frr;
pub mod guest;
pub mod host;
pub mod lab;
pub mod linux;
pub mod load;
pub mod mirror;
pub mod named;
pub mod netns;
pub mod outside;
pub mod packet;
pub mod ping;
pub mod probe;
pub mod process;
pub mod service;
pub mod sessions;
mod sockaddr;
pub mod sockets;
pub mod system;
pub mod terminal;
pub mod tools;
pub mod topology;
pub mod wait;

pub use agent::{Agent, AgentOptions};
pub use browser::Browser;
pub use capture::Capture;
pub use etcd::Cluster;
pub use frr::Frr;
pub use guest::Guest;
pub use host::{Host, Neighbour};
pub use lab::{Lab, LabBuilder, Node, Workload, WorkloadSpec};
pub use linux::Linux;
pub use load::{Datagrams, TcpLoad, UdpLoad};
pub use mirror::Mirror;
pub use named::{Named, Served};
pub use netns::Netns;
pub use outside::Outside;
pub use packet::Sniffer;
pub use ping::{Ping, RunningPing};
pub use probe::{IcmpError, Outcome, Probe};
pub use process::Process;
pub use service::{Services, Talk};
pub use sessions::{Report, Sessions};
pub use system::{Listeners, System};
pub use terminal::Terminal;

/// Fails, naming the remedy, unless the effective user is root.
pub fn require_root() -> anyhow::Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        anyhow::bail!(
            "a lab makes network namespaces and needs root; run this as root, for example `sudo -E cargo xtask test`"
        );
    }
    Ok(())
}
