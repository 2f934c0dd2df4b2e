//! How long an agent takes: from its start, and from a changed rule, until what is wanted is in force; and how
//! much memory it and its maps need.

use std::{
    cell::{Cell, RefCell},
    fs,
    os::fd::AsRawFd as _,
    path::{Path as FilePath, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use vrouter_tests::{
    Agent, AgentOptions, Cluster, Lab, clean, etcd,
    topology::{self, NodeEntry, Port, Router, Topology},
};

use super::{bpf, vrouter};
use crate::repository;

/// Networks, and ports of each.
const NETWORKS: u32 = 100;
const PORTS: u32 = 100;
const GROUP: &str = "changing";
const PATIENCE: Duration = Duration::from_secs(60);
/// Looks whether it is in force.
const LOOK: Duration = Duration::from_micros(200);
/// Changes of one round.
const CHANGES: u16 = 12;
/// Between changes: an agent prepares for the next one when it has been left alone.
const PAUSE: Duration = Duration::from_millis(400);

/// What an agent has much of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Much {
    /// Ports on other nodes.
    Ports,
    /// Load balancers that it serves: 1,000 VIPs, each with a pool of 100 members.
    Balancers,
    /// The same, in etcd.
    BalancersInEtcd,
}

impl Much {
    fn name(self) -> &'static str {
        match self {
            Self::Ports => "c",
            Self::Balancers => "l",
            Self::BalancersInEtcd => "e",
        }
    }
}

/// An agent with many ports, or load balancers.
pub struct Control {
    much: Much,
    binary: PathBuf,
    lab: Lab,
    /// Where the topology is, unless it is in a file.
    cluster: Option<Cluster>,
    agent: RefCell<Agent>,
    wanted: RefCell<Topology>,
    /// Milliseconds of every change so far.
    changes: RefCell<Vec<f64>>,
    is_warm: Cell<bool>,
    /// Changes, those included that do not count.
    made: Cell<usize>,
}

impl Control {
    /// Starts it.
    pub fn new(binary: &FilePath, much: Much) -> Result<Self> {
        let (lab, wanted) = lab(much, much.name(), binary)?;
        let (cluster, options) = match much {
            Much::Ports | Much::Balancers => (None, AgentOptions::default()),
            Much::BalancersInEtcd => {
                let cluster = Cluster::start(&lab, &[], false)?;
                let mut apply = lab.foreign(etcd::MEMBERS[0].0).netns().command(binary);
                apply.args(["apply", "-f"]).arg(lab.topology_path()).args(cluster.arguments(""));
                repository::run(apply.stdout(Stdio::null()))?;
                let options = cluster.agent(&lab, "node-a");
                (Some(cluster), options)
            }
        };
        let mut agent = lab.start_agent("node-a", &options)?;
        agent.wait_ready(PATIENCE)?;
        Ok(Self {
            much,
            binary: binary.to_owned(),
            lab,
            cluster,
            agent: RefCell::new(agent),
            wanted: RefCell::new(wanted),
            changes: RefCell::new(Vec::new()),
            is_warm: Cell::new(false),
            made: Cell::new(0),
        })
    }

    /// Seconds from the start of an agent on a fresh node until everything is in force.
    pub fn start(&self) -> Result<f64> {
        let (lab, _) = lab(self.much, &format!("{}-fresh", self.much.name()), &self.binary)?;
        let start = Instant::now();
        let agent = lab.start_agent("node-a", &AgentOptions::default())?;
        wait_for_commits(&agent, 1)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Changes a rule some times; milliseconds from a change until it is in force, of all but one in a hundred of
    /// the changes so far. The first time, which warms up, does not count.
    pub fn change(&self) -> Result<f64> {
        if !self.is_warm.replace(true) {
            self.change_some()?;
            self.changes.borrow_mut().clear();
        }
        self.change_some()?;
        self.within(99)
    }

    /// The milliseconds within which so many of a hundred changes so far were in force.
    pub fn within(&self, percent: usize) -> Result<f64> {
        if self.changes.borrow().is_empty() {
            self.change_some()?;
        }
        let mut changes = self.changes.borrow().clone();
        changes.sort_by(f64::total_cmp);
        Ok(changes[changes.len() * percent / 100])
    }

    fn change_some(&self) -> Result<()> {
        let (agent, mut wanted) = (self.agent.borrow(), self.wanted.borrow_mut());
        for _ in 0..CHANGES {
            std::thread::sleep(PAUSE);
            // Each is another than those before.
            let number = self.made.replace(self.made.get() + 1);
            if let Some(cluster) = &self.cluster {
                let took = change_in(cluster, &agent, number)?;
                self.changes.borrow_mut().push(took);
                continue;
            }
            match self.much {
                Much::Ports => {
                    wanted.group_mut(GROUP).rules[1] =
                        format!("{{ direction: ingress, protocol: tcp, ports: {} }}", 2000 + number);
                }
                // A member's weight.
                Much::Balancers | Much::BalancersInEtcd => {
                    wanted.pools[number % 1000] = pool(number as u32 % 1000, 2 + number)
                }
            }
            let before = commits(&agent);
            let text = wanted.to_string();
            let start = Instant::now();
            self.lab.write_topology(text)?;
            wait_for_commits(&agent, before + 1)?;
            self.changes.borrow_mut().push(start.elapsed().as_secs_f64() * 1000.0);
        }
        Ok(())
    }

    /// The agent's memory in MiB.
    pub fn resident(&self) -> Result<f64> {
        let id = self.agent.borrow().id().context("the agent is gone")?;
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024.0)
    }
}

/// Changes a member's weight in etcd; milliseconds until it is in force.
fn change_in(cluster: &Cluster, agent: &Agent, number: usize) -> Result<f64> {
    let key = format!("{}/config/objects/pools/pool{}", cluster.prefix(), number % 1000);
    let mut value: Value = serde_json::from_str(&cluster.etcdctl(&["get", "--print-value-only", &key])?)?;
    let weight = value.pointer_mut("/spec/members/0/weight").context("the pool has no member")?;
    *weight = (2 + number).into();
    let before = commits(agent);
    let start = Instant::now();
    cluster.put(&key, &value.to_string())?;
    wait_for_commits(agent, before + 1)?;
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

/// MiB the kernel has for a pinned map.
pub fn map_memory(path: &FilePath) -> Result<f64> {
    let map = bpf::pinned(path)?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("no memlock")?;
    Ok(line.trim().parse::<f64>()? / f64::from(1 << 20))
}

/// Times a topology came into force, by the agent's log: to ask the agent would take its time.
fn commits(agent: &Agent) -> usize {
    agent.log().matches("topology in force").count()
}

fn wait_for_commits(agent: &Agent, wanted: usize) -> Result<()> {
    let start = Instant::now();
    while commits(agent) < wanted {
        anyhow::ensure!(start.elapsed() < PATIENCE, "a topology is not in force after {PATIENCE:?}");
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// A lab of one node that has its topology, with two ports of its own.
fn lab(much: Much, name: &str, binary: &FilePath) -> Result<(Lab, Topology)> {
    let prefix = format!("{}-{name}", vrouter::PREFIX);
    clean::remove(&prefix)?;
    let mut wanted = topology::standard();
    wanted.nodes.truncate(1);
    wanted.ports.truncate(2);
    wanted.add_group(GROUP, &["{ direction: egress }", "{ direction: ingress, protocol: tcp, ports: 80 }"]);
    wanted.put_into("vm1", &[GROUP]);
    let mut builder = Lab::builder().prefix(&prefix).topology(&wanted).vrouter(binary);
    if much == Much::BalancersInEtcd {
        builder = etcd::hosts(builder);
    }
    let lab = builder.build()?;
    let wanted = match much {
        Much::Ports => fill(wanted),
        Much::Balancers | Much::BalancersInEtcd => balance(fill(wanted)),
    };
    lab.write_topology(&wanted)?;
    Ok((lab, wanted))
}

/// Networks of ports on other nodes, ten networks to a router.
fn fill(mut wanted: Topology) -> Topology {
    for node in 0..20 {
        wanted.nodes.push(NodeEntry::new(&format!("far{node}"), &format!("192.0.2.{}", 100 + node)));
    }
    for network in 0..NETWORKS {
        let (name, prefix) = (format!("net{network}"), format!("10.{}.0", 100 + network));
        let subnet = format!("{name}-v4");
        wanted.networks.push(topology::Network::new(
            &name,
            &[(&subnet, &format!("{prefix}.0/24"), &format!("{prefix}.1"))],
        ));
        match wanted.routers.get_mut(1 + network as usize / 10) {
            Some(router) => router.interfaces.push(subnet),
            None => wanted.routers.push(Router::new(&format!("router{network}"), &[&subnet])),
        }
        for number in 0..PORTS {
            let port = network * PORTS + number;
            wanted.ports.push(Port {
                name: format!("port{network}-{number}"),
                network: name.clone(),
                mac: format!("02:00:01:00:{:02x}:{:02x}", port >> 8, port & 255),
                fixed_ips: vec![format!("{prefix}.{}", 10 + number)],
                security_groups: Some(vec![GROUP.to_owned()]),
                node: format!("far{}", port % 20),
                interface: format!("tap-{port}"),
                extra: Vec::new(),
            });
        }
    }
    wanted
}

/// Networks whose ports are members, joined by the router of this node's ports; VIPs on each.
const BALANCED: u32 = 10;
const VIPS: u32 = 100;

/// The same with [`BALANCED`] of the networks within this node's reach, and load balancers on them.
fn balance(mut wanted: Topology) -> Topology {
    let [mine, other] = wanted.routers.get_disjoint_mut([0, 1]).expect("routers");
    mine.interfaces.append(&mut other.interfaces);
    for number in 0..BALANCED * VIPS {
        let network = number / VIPS;
        wanted.load_balancers.push(format!(
            "{{ name: lb{number}, network: net{network}, vip_addresses: [10.{}.0.{}], listeners: \
             [{{ name: http, protocol: tcp, protocol_port: 80, default_pool: pool{number} }}] }}",
            100 + network,
            120 + number % VIPS
        ));
        wanted.pools.push(pool(number, 1));
    }
    wanted
}

/// A pool of a network's ports; the first has a weight of its own.
fn pool(number: u32, weight: usize) -> String {
    let network = number / VIPS;
    let member = |port: u32| {
        let weight = if port == 0 { weight % 200 } else { 1 };
        format!(
            "{{ name: m{port}, address: 10.{}.0.{}, protocol_port: 80, weight: {weight} }}",
            100 + network,
            10 + port
        )
    };
    let members: Vec<String> = (0..PORTS).map(member).collect();
    let monitor = "health_monitor: { type: tcp, delay: 5, timeout: 2 }";
    format!("{{ name: pool{number}, {monitor}, members: [{}] }}", members.join(", "))
}
