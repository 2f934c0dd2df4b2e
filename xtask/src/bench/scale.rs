//! Nodes with little and with much: rules, routes and ports, of which the frames need the last.

use std::{path::Path as FilePath, time::Duration};

use anyhow::{Context as _, Result};
use vrouter_tests::{
    Agent, AgentOptions, Lab, clean,
    topology::{self, NodeEntry, Port, Topology},
};

use super::{frames::DESTINATION_PORT, programs::PORTS, vrouter};

/// Of each in the small one, and in the large one.
pub const SIZES: [u32; 2] = [10, 10_000];
/// The ports that the frames come from and go to.
pub const FROM: &str = "scale1";
pub const TO: &str = "scale2";
const GROUP: &str = "many";
/// Routes lead to parts of 100.64.0.0/10, /24 each.
const ROUTED: u32 = 0x6440_0000;
/// Networks of ports nobody talks to.
const PORTS_OF_A_NETWORK: u32 = 100;

/// One node with so much of everything.
pub struct Scale {
    pub lab: Lab,
    agent: Agent,
}

impl Scale {
    /// Makes it, and waits until all is in force.
    pub fn new(binary: &FilePath, size: u32) -> Result<Self> {
        let prefix = format!("{}-s{size}", vrouter::PREFIX);
        clean::remove(&prefix)?;
        let topology = small(size);
        let lab = Lab::builder().prefix(&prefix).topology(&topology).vrouter(binary).build()?;
        lab.write_topology(fill(topology, size))?;
        let mut agent = lab.start_agent("node-a", &AgentOptions::default())?;
        agent.wait_ready(Duration::from_secs(120)).with_context(|| format!("{size} of everything"))?;
        Ok(Self { lab, agent })
    }

    /// Packets that no flow decided.
    pub fn misses(&self) -> Result<u64> {
        let status = self.agent.status()?;
        status["counters"]["flow_miss"].as_u64().context("vrouter status has no counter flow_miss")
    }
}

/// What is really there: two ports on one node, rules and routes.
fn small(size: u32) -> Topology {
    let mut wanted = topology::standard();
    wanted.nodes.truncate(1);
    wanted.ports = vec![
        topology::standard_port(FROM, "web", 21, "node-a"),
        topology::standard_port(TO, "db", 22, "node-a"),
    ];
    for port in &mut wanted.ports {
        port.extra.push("hook: xdp".to_owned());
        port.security_groups = Some(vec![GROUP.to_owned()]);
    }
    let mut rules = vec!["{ direction: egress }".to_owned()];
    rules.extend((1..size).map(|n| {
        let (third, fourth) = (n >> 8 & 255, n & 255);
        let port = 1000 + n % 50_000;
        format!("{{ direction: ingress, protocol: udp, ports: {port}, remote: 172.16.{third}.{fourth}/32 }}")
    }));
    rules.push(format!(
        "{{ direction: ingress, protocol: udp, ports: {DESTINATION_PORT}, remote: 10.0.0.0/8 }}"
    ));
    wanted.add_group(GROUP, &rules.iter().map(String::as_str).collect::<Vec<_>>());
    wanted.router_mut("r1").routes = (0..size)
        .map(|n| {
            let destination = std::net::Ipv4Addr::from_bits(ROUTED + (n << 8));
            format!("{{ destination: {destination}/24, nexthop: 10.0.2.22 }}")
        })
        .collect();
    wanted
}

/// And ports on a node that is not there.
fn fill(mut wanted: Topology, size: u32) -> Topology {
    wanted.nodes.push(NodeEntry::new("far", "192.0.2.99"));
    for network in 0..size.div_ceil(PORTS_OF_A_NETWORK) {
        let name = format!("fill{network}");
        let cidr = format!("10.{}.{}.0/24", 100 + (network >> 8), network & 255);
        wanted.networks.push(topology::Network::new(&name, &[(&format!("{name}-v4"), &cidr, "")]));
        for number in 0..PORTS_OF_A_NETWORK.min(size) {
            let port = network * PORTS_OF_A_NETWORK + number;
            wanted.ports.push(Port {
                name: format!("fill{network}-{number}"),
                network: name.clone(),
                mac: format!("02:00:01:{:02x}:{:02x}:{:02x}", port >> 16, port >> 8 & 255, port & 255),
                fixed_ips: vec![format!("{}.{}", cidr.trim_end_matches(".0/24"), 10 + number)],
                security_groups: Some(vec![GROUP.to_owned()]),
                node: "far".to_owned(),
                interface: format!("tap-{port}"),
                extra: Vec::new(),
            });
        }
    }
    wanted
}

/// Flows there are to routed addresses.
pub fn flows(size: u32) -> u64 {
    u64::from(size) * 256 * u64::from(PORTS)
}

/// The first routed address.
pub fn routed() -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from_bits(ROUTED)
}
