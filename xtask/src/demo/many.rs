//! `cargo xtask demo --etcd`: three etcd members, three nodes, a change applied live, and a member and an agent
//! killed while traffic runs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use vrouter_tests::{
    Agent, Cluster, Lab, etcd,
    topology::{self, NodeEntry, Topology},
};

use super::{Demo, Finding, PREFIX, end, evidence, join, ping, say, type_in};
use crate::report;

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
/// What is changed live.
const LATER: &str = "192.0.2.0/24";

/// Builds the lab, shows it, sums up; whether everything was as claimed.
pub fn run(vrouter: &Path, keep: bool) -> Result<()> {
    let start = Instant::now();
    say("Making the lab: three nodes with their workloads, and three hosts for etcd, on one underlay.");
    println!(
        "
      node-a 192.0.2.1   vm1 vm2 on web, vm3 on db         etcd1 192.0.2.101
      node-b 192.0.2.2   vm4 on web, vm5 vm6 on db         etcd2 192.0.2.102
      node-c 192.0.2.3   vm7 on web, vm8 on db             etcd3 192.0.2.103"
    );
    let topology = topology();
    let lab = etcd::hosts(Lab::builder().prefix(PREFIX).topology(&topology).vrouter(vrouter)).build()?;
    say(
        "Starting etcd: three members, TLS between all, and users with the roles of packaging/etcd/roles.sh.",
    );
    let mut cluster = Cluster::start(&lab, &NODES, true)?;
    println!("    {} answer after {}", cluster.endpoints(), report::duration(start.elapsed()));
    let mut shown = Shown { vrouter, lab: &lab, agents: Vec::new() };
    let mut demo = Demo { lab: &lab, proofs: Vec::new() };

    say("Storing the topology: every object gets a key of its own, all of them at once or none.");
    let stored = shown.vrouter(&cluster, &["apply", "-f", &lab.topology_path().display().to_string()]);
    demo.prove(
        "the topology is stored",
        stored.map(|text| (text.contains("+ port vm8"), "3 nodes, 8 ports".to_owned())),
    );
    say("Starting one agent per node. Each follows etcd, and compiles what is for its node.");
    for node in NODES {
        let mut agent = lab.start_agent(node, &cluster.agent(&lab, node))?;
        type_in(
            node,
            &format!("vrouter agent --node {node} --uplink eth0 --etcd {} ...", cluster.endpoints()),
        );
        agent.wait_ready(Duration::from_secs(60))?;
        shown.agents.push(agent);
    }
    let nodes = shown.vrouter(&cluster, &["get", "nodes"]);
    demo.prove(
        "every node tells how it is",
        nodes.map(|text| (text.matches(" ok ").count() == 3, "3 nodes are ok".to_owned())),
    );

    let (vm1, vm7, vm8) = (lab.workload("vm1"), lab.workload("vm7"), lab.workload("vm8"));
    say("vm1 on node-a pings vm7 on node-c, on its own network, and vm8, routed.");
    demo.prove("across nodes", ping(vm1, vm7.v4()).and_then(|one| Ok(join(one, ping(vm1, vm8.v6())?))));

    say("Security changes live: the group of vm8 lets in nobody from here any more, then everybody again.");
    let changed = shown.change(&cluster, &topology);
    demo.prove("a change applied live", changed);

    say(
        "The member that leads and the agent of node-a are killed while vm1 pings vm8 each millisecond; a change is applied meanwhile.",
    );
    let survived = shown.survive(&mut cluster);
    demo.prove("a member and an agent die", survived);

    say("Now all of etcd is gone. Traffic does not notice; the agents say so.");
    let alone = shown.alone(&mut cluster);
    demo.prove("without etcd", alone);
    say("Somebody writes nonsense into etcd by hand. It is named, and what was good stays in force.");
    let nonsense = shown.nonsense(&cluster);
    demo.prove("a damaged value", nonsense);

    let is_proved = demo.sum_up(start.elapsed());
    let etcd = cluster.arguments(etcd::WRITER).join(" ");
    let look = format!("nsenter --net=/run/netns/{PREFIX}-node-a {} get nodes {etcd}", vrouter.display());
    let agents = shown.agents;
    end(is_proved, keep.then_some(&*look), "--etcd", agents, Some(cluster), lab)
}

/// The standard lab with a third node, and a group for vm8.
fn topology() -> Topology {
    let mut topology = topology::standard();
    topology.nodes.push(NodeEntry::new("node-c", "192.0.2.3"));
    topology.ports.push(topology::standard_port("vm7", "web", 17, "node-c"));
    topology.ports.push(topology::standard_port("vm8", "db", 18, "node-c"));
    topology.add_group("vm8-sg", &["{ direction: ingress }", "{ direction: egress }"]);
    topology.put_into("vm8", &["vm8-sg"]);
    topology
}

struct Shown<'a> {
    vrouter: &'a Path,
    lab: &'a Lab,
    agents: Vec<Agent>,
}

impl Shown<'_> {
    /// What an operator types, and reads.
    fn vrouter(&self, cluster: &Cluster, arguments: &[&str]) -> Result<String> {
        type_in("node-a", &format!("vrouter {}", arguments.join(" ")));
        let mut command = self.lab.node("node-a").netns().command(self.vrouter);
        let output = command.args(arguments).args(cluster.arguments(etcd::WRITER)).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().take(24).for_each(|line| println!("    {line}"));
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(text)
    }

    fn apply(&self, cluster: &Cluster, topology: &Topology) -> Result<String> {
        self.lab.write_topology(topology)?;
        self.vrouter(cluster, &["apply", "-f", &self.lab.topology_path().display().to_string(), "--wait"])
    }

    fn change(&self, cluster: &Cluster, topology: &Topology) -> Result<Finding> {
        let (vm1, vm8) = (self.lab.workload("vm1"), self.lab.workload("vm8"));
        let mut closed = topology.clone();
        closed.group_mut("vm8-sg").rules[0] = format!("{{ direction: ingress, remote: {LATER} }}");
        self.apply(cluster, &closed)?;
        let refused = vm1.ping(vm8.v4(), 3, &["-i", "0.1", "-W", "0.3"])?.received == 0;
        println!("    vm1$ ping {}: {}", vm8.v4(), if refused { "no answer" } else { "answered" });
        let start = Instant::now();
        self.apply(cluster, topology)?;
        let elapsed = report::duration(start.elapsed());
        Ok(join((refused, "refused after the first".to_owned()), {
            let (answered, text) = ping(vm1, vm8.v4())?;
            (answered, format!("{text} after the second, which took {elapsed} on three nodes"))
        }))
    }

    fn survive(&mut self, cluster: &mut Cluster) -> Result<Finding> {
        const COUNT: u32 = 4000;
        let (vm1, vm8) = (self.lab.workload("vm1"), self.lab.workload("vm8"));
        type_in("vm1", &format!("ping -i 0.001 -c {COUNT} {}", vm8.v4()));
        let pings = vm1.start_ping(vm8.v4(), COUNT, &["-i", "0.001"])?;
        std::thread::sleep(Duration::from_millis(500));
        let leader = cluster.leader()?;
        type_in(etcd::MEMBERS[leader].0, "kill -9 $(pidof etcd)");
        cluster.kill([leader]);
        let agent = self.agents.first_mut().context("no agent")?;
        type_in("node-a", "kill -9 $(pidof vrouter)");
        agent.kill9();
        std::thread::sleep(Duration::from_millis(500));
        type_in("node-a", "vrouter agent ...    (as before)");
        agent.restart()?;
        let mut topology = topology();
        topology.ports.push(topology::standard_port("vm9", "web", 19, "node-c"));
        let applied = self.apply(cluster, &topology)?;
        cluster.restart([leader])?;
        let agent = self.agents.first_mut().context("no agent")?;
        agent.wait_ready(Duration::from_secs(60))?;
        let pings = pings.finish(Duration::from_secs(60))?;
        println!("    {}", pings.summary());
        let in_force = applied.contains("in force on");
        Ok((
            pings.is_clean() && in_force,
            format!("replies {}, the change is in force", evidence("v4", &pings)),
        ))
    }

    fn alone(&mut self, cluster: &mut Cluster) -> Result<Finding> {
        type_in("etcd1, etcd2, etcd3", "kill -9 $(pidof etcd)");
        cluster.kill(0..3);
        let agent = self.agents.first_mut().context("no agent")?;
        let status = agent.wait_for_status(Duration::from_secs(30), "miss etcd", |status| {
            status["agent"]["store"]["connected"] == false
        })?;
        type_in("node-a", "vrouter status");
        let complaint = status["complaints"][0].as_str().unwrap_or_default().to_owned();
        println!("    attention  {complaint}");
        let found = ping(self.lab.workload("vm1"), self.lab.workload("vm8").v4())?;
        cluster.restart(0..3)?;
        cluster.wait_healthy()?;
        Ok(join(found, (complaint.contains("etcd cannot be reached"), "and said so".to_owned())))
    }

    fn nonsense(&mut self, cluster: &Cluster) -> Result<Finding> {
        let key = format!("{}/config/objects/networks/db", cluster.prefix());
        let good = cluster.etcdctl(&["get", "--print-value-only", &key])?;
        type_in("etcd1", &format!("etcdctl put {key} nonsense"));
        cluster.etcdctl(&["put", &key, "nonsense"])?;
        let agent = self.agents.first_mut().context("no agent")?;
        let status = agent.wait_for_status(Duration::from_secs(30), "name the damaged value", |status| {
            status["wanted"]["problems"].to_string().contains("damaged")
        })?;
        let problem = &status["wanted"]["problems"][0];
        println!(
            "    {}: {}",
            problem["object"].as_str().unwrap_or("?"),
            problem["message"].as_str().unwrap_or("?")
        );
        let found = ping(self.lab.workload("vm1"), self.lab.workload("vm8").v4())?;
        cluster.etcdctl(&["put", &key, good.trim()])?;
        Ok(join(found, (true, "network db is named".to_owned())))
    }
}
