//! The vrouter side: a lab whose ports are for one row each.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result};
use vrouter_tests::{
    Agent, AgentOptions, Lab, Process, clean,
    topology::{self, FloatingIp, NodeEntry, SecurityGroup, Topology},
};

use super::{frames::DESTINATION_PORT, table};

/// What everything of the lab is named after.
pub const PREFIX: &str = "vrbench";
/// Flows stay as they are while their row waits for its turn.
const FOREVER: &[&str] = &["udp=86400", "udp_stream=86400"];

/// Stateful: what goes out may be answered, and what is asked for comes in.
const GUARDED: &str = "guarded";
/// Stateless, everything: no connection is tracked.
const FREE: &str = "free";

/// Ports with the network, the number and the node they are on, whether they have XDP, and their group.
const PORTS: &[(&str, &str, u8, &str, bool, &str)] = &[
    ("xdp1", "web", 21, "node-a", true, FREE),
    ("xdp2", "db", 22, "node-a", true, FREE),
    ("xdp3", "web", 23, "node-a", true, FREE),
    ("xdp4", "db", 24, "node-a", true, FREE),
    ("tc1", "web", 31, "node-a", false, FREE),
    ("tc2", "db", 32, "node-a", false, FREE),
    ("policy1", "web", 33, "node-a", false, GUARDED),
    ("policy2", "db", 34, "node-a", false, GUARDED),
    ("xsnat", "web", 41, "node-a", true, GUARDED),
    ("tsnat", "web", 42, "node-a", false, GUARDED),
    ("xfip", "web", 43, "node-a", true, GUARDED),
    ("xnew", "web", 44, "node-a", true, GUARDED),
    ("xsnat1m", "web", 45, "node-b", true, GUARDED),
    ("xfip1m", "web", 46, "node-c", true, GUARDED),
    ("tsnat1m", "web", 47, "node-d", false, GUARDED),
    ("xlb1", "web", 51, "node-a", true, GUARDED),
    ("xlb2", "db", 52, "node-a", true, GUARDED),
    ("xlbnew", "web", 53, "node-a", true, FREE),
];

/// Rows that need another node than node-a.
const LARGE_ROWS: [(&str, &str); 5] = [
    ("node-b", "tcp_vxlan"),
    ("node-b", "rr_vxlan"),
    ("node-b", "xdp_snat_1m"),
    ("node-c", "xdp_fip_1m"),
    ("node-d", "tc_snat_1m"),
];

/// Floating IPs of ports.
pub const FLOATING: [(&str, &str); 2] = [("203.0.113.143", "xfip"), ("203.0.113.146", "xfip1m")];

/// A VIP, which leads to `xlb2`.
pub const VIP: &str = "10.0.1.251";

/// A floating IP that streams go to.
pub const FLOATING_OF_VM3: &str = "203.0.113.150";

/// The lab with its agents. Nodes c and d have but one port each, for a million flows.
pub struct Vrouter {
    pub lab: Lab,
    agents: Vec<Agent>,
}

impl Vrouter {
    /// Makes it. Agents start only on the nodes that some wanted row needs.
    pub fn new(binary: &Path, wants: &dyn Fn(&str) -> bool) -> Result<Self> {
        let topology = topology();
        let lab = Lab::builder().prefix(PREFIX).topology(&topology).vrouter(binary).build()?;
        let mut agents = Vec::new();
        for NodeEntry { name, .. } in &topology.nodes {
            let mut alone = LARGE_ROWS.iter().filter(|(node, _)| node == name);
            if name != "node-a" && !alone.any(|(_, row)| wants(row)) {
                continue;
            }
            let entries = if name == "node-a" { table::SMALL } else { table::LARGE };
            let mut extra = vec!["--external-hook".to_owned(), "xdp".to_owned()];
            extra.extend(FOREVER.iter().flat_map(|timeout| ["--timeout".to_owned(), (*timeout).to_owned()]));
            let options = AgentOptions { flow_entries: Some(entries), extra, ..AgentOptions::default() };
            let mut agent = lab.start_agent(name, &options)?;
            agent.wait_ready(Duration::from_secs(20))?;
            agents.push(agent);
        }
        Ok(Self { lab, agents })
    }

    /// Where a node's agent has pinned everything.
    pub fn pins(&self, node: &str) -> PathBuf {
        Path::new("/sys/fs/bpf/vrouter").join(format!("{}-{node}", self.lab.prefix()))
    }

    fn agent(&self, node: &str) -> Result<&Agent> {
        let agent = self.agents.iter().find(|agent| agent.node().name() == node);
        agent.with_context(|| format!("no agent on {node}"))
    }

    /// Packets with another's source address that a node has dropped.
    pub fn spoofed(&self, node: &str) -> Result<u64> {
        self.agent(node)?.drops("spoofed_ip")
    }

    /// Somebody who listens to what a node drops, until it is dropped itself.
    pub fn listener(&self, node: &str) -> Result<Process> {
        let mut command = self.agent(node)?.command(&["monitor", "--drops", "--output", "json"]);
        let mut process = Process::spawn_with_stdout(&mut command, Stdio::null())?;
        process.wait_for_text("listening", Duration::from_secs(20))?;
        Ok(process)
    }

    /// Packets that no flow decided, on a node.
    pub fn misses(&self, node: &str) -> Result<u64> {
        let status = self.agent(node)?.status()?;
        status["counters"]["flow_miss"].as_u64().context("vrouter status has no counter flow_miss")
    }
}

/// A gateway: a node that has nothing but the router's address, with XDP outside and on the underlay.
pub struct Gateway {
    pub lab: Lab,
    agent: Agent,
}

impl Gateway {
    /// Its node.
    pub const NODE: &'static str = "node-a";
    /// The router's address.
    pub const ROUTER: &'static str = "203.0.113.10";

    /// Makes it. The other node, which has half of the ports, needs no agent: what goes there is counted on the
    /// way.
    pub fn new(binary: &Path) -> Result<Self> {
        let prefix = format!("{PREFIX}-g");
        clean::remove(&prefix)?;
        let mut wanted = topology::with_outside();
        wanted.nodes[0].gateway = true;
        wanted.nodes[1].gateway = false;
        let lab = Lab::builder().prefix(&prefix).topology(&wanted).vrouter(binary).build()?;
        let extra = ["--external-hook", "xdp"].map(str::to_owned).to_vec();
        let options = AgentOptions { uplink_hook: Some("xdp".to_owned()), extra, ..AgentOptions::default() };
        let mut agent = lab.start_agent(Self::NODE, &options)?;
        agent.wait_ready(Duration::from_secs(20))?;
        Ok(Self { lab, agent })
    }

    /// A port of the router's address that the other node has.
    pub fn foreign_port(&self) -> Result<u16> {
        let nat = self.agent.json(&["show", "nat"])?;
        let blocks = nat["snat"][0]["blocks"].as_array().context("vrouter show nat has no blocks")?;
        let mut own = Vec::new();
        for block in blocks {
            let (first, last) = block.as_str().and_then(|block| block.split_once('-')).context("no block")?;
            own.push(first.parse::<u16>()?..=last.parse()?);
        }
        let mut ports = (1024..=u16::MAX).step_by(1024);
        ports.find(|port| !own.iter().any(|own| own.contains(port))).context("all ports are its own")
    }
}

fn topology() -> Topology {
    // vm1 and vm2 are on web, vm3 and vm5 on db; what measures frames gets ports of its own.
    let mut wanted = topology::with_outside();
    // Whoever else runs or not, node-a answers for the router's address.
    wanted.nodes[0].gateway = true;
    wanted.nodes[1].gateway = false;
    for (name, vtep) in [("node-c", "192.0.2.3"), ("node-d", "192.0.2.4")] {
        wanted.nodes.push(NodeEntry::new(name, vtep));
    }
    let asked =
        format!("{{ direction: ingress, protocol: udp, ports: {DESTINATION_PORT}, remote: 0.0.0.0/0 }}");
    wanted.add_group(GUARDED, &["{ direction: egress }", &asked]);
    let mut free = SecurityGroup::new(FREE, &["{ direction: ingress }", "{ direction: egress }"]);
    free.stateless = true;
    wanted.security_groups.push(free);
    for &(name, network, number, node, xdp, group) in PORTS {
        let mut port = topology::standard_port(name, network, number, node);
        if xdp {
            port.extra.push("hook: xdp".to_owned());
        }
        wanted.ports.push(port);
        wanted.put_into(name, &[group]);
    }
    // It sends from any address, so that its flows are always new.
    wanted.port_mut("xlbnew").extra.push("port_security: false".to_owned());
    wanted.port_mut("xlbnew").security_groups = Some(Vec::new());
    wanted.load_balancers = vec![format!(
        "{{ name: lb, network: web, vip_addresses: [{VIP}], listeners: [\
         {{ name: udp, protocol: udp, protocol_port: {DESTINATION_PORT}, default_pool: pool }}] }}"
    )];
    wanted.pools = vec![format!(
        "{{ name: pool, members: [{{ name: m, address: 10.0.2.52, protocol_port: {DESTINATION_PORT} }}] }}"
    )];
    let floating = FLOATING.iter().chain(&[(FLOATING_OF_VM3, "vm3")]);
    wanted.floating_ips = floating.map(|(address, port)| FloatingIp::new(address, port)).collect();
    wanted
}
