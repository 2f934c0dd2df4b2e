//! A lab with an agent at work on its nodes: what most tests start from.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use serde_json::Value;

use crate::topology::Topology;
use crate::{Agent, AgentOptions, Host, Lab, Sniffer};

/// Loading the programs takes seconds, and many times that while other labs do the same.
const PATIENCE: Duration = Duration::from_secs(120);
/// For what has been sent to be counted.
const COUNTED: Duration = Duration::from_secs(10);

/// A lab and its agents.
#[derive(Debug)]
pub struct System {
    // Before the lab: an agent that outlived its pins would complain.
    agents: BTreeMap<String, Agent>,
    lab: Lab,
}

impl System {
    /// Builds the lab of a topology, with an agent on each node, and waits until all are at work.
    pub fn start(topology: &Topology) -> Result<Self> {
        Self::start_with(topology, &AgentOptions::default())
    }

    /// The same with agents started another way.
    pub fn start_with(topology: &Topology, options: &AgentOptions) -> Result<Self> {
        let nodes: Vec<&str> = topology.nodes.iter().map(|node| node.name.as_str()).collect();
        Self::start_agents(Lab::builder().topology(topology).build()?, &nodes, options)
    }

    /// Starts agents on these nodes of a lab and waits until all are at work.
    pub fn start_in(lab: Lab, nodes: &[&str]) -> Result<Self> {
        Self::start_agents(lab, nodes, &AgentOptions::default())
    }

    fn start_agents(lab: Lab, nodes: &[&str], options: &AgentOptions) -> Result<Self> {
        let mut agents = BTreeMap::new();
        for &node in nodes {
            agents.insert(node.to_owned(), lab.start_agent(node, options)?);
        }
        Self::adopt(agents, lab)
    }

    /// Agents that were started in a lab; waits until all are at work.
    pub fn adopt(agents: BTreeMap<String, Agent>, lab: Lab) -> Result<Self> {
        let mut system = Self { agents, lab };
        for agent in system.agents.values_mut() {
            agent.wait_ready(PATIENCE)?;
            wait_for_underlay(agent)?;
        }
        Ok(system)
    }

    /// The agent of a node.
    ///
    /// # Panics
    /// If there is none.
    pub fn agent(&self, node: &str) -> &Agent {
        self.agents.get(node).unwrap_or_else(|| panic!("there is no agent on {node}"))
    }

    /// The same, to be restarted.
    ///
    /// # Panics
    /// If there is none.
    pub fn agent_mut(&mut self, node: &str) -> &mut Agent {
        self.agents.get_mut(node).unwrap_or_else(|| panic!("there is no agent on {node}"))
    }

    /// Puts another topology in force on every node.
    pub fn apply(&mut self, topology: &Topology) -> Result<()> {
        let mut digests = BTreeMap::new();
        for (node, agent) in &self.agents {
            digests.insert(node.clone(), agent.status()?["in_force"]["digest"].clone());
        }
        self.lab.write_topology(topology)?;
        for (node, agent) in &mut self.agents {
            let old = &digests[node];
            agent.wait_for_status(PATIENCE, "put the new topology in force", |status| {
                let digest = &status["in_force"]["digest"];
                digest != old && status["wanted"]["digest"] == *digest
            })?;
            wait_for_underlay(agent)?;
        }
        Ok(())
    }

    /// The packets a node has dropped, by reason.
    pub fn drops(&self, node: &str) -> Result<BTreeMap<String, u64>> {
        self.counts(node, "drops", "reason", "packets")
    }

    /// How many packets a node has dropped for one reason.
    pub fn dropped(&self, node: &str, reason: &str) -> Result<u64> {
        let drops = self.drops(node)?;
        drops.get(reason).copied().with_context(|| format!("there is no drop reason {reason}"))
    }

    /// The rows of `vrouter flows` on a node in which each of these words is a value, or a part of one: an
    /// address, a port's name, a state. The one place that knows how flows are printed.
    pub fn flows_with(&self, node: &str, words: &[&str]) -> Result<Vec<Value>> {
        let rows = self.agent(node).json(&["flows"])?;
        let rows = rows.as_array().or_else(|| rows["flows"].as_array());
        let rows = rows.context("`vrouter flows` is no list")?;
        let has = |row: &Value, word: &str| values(row).iter().any(|value| value.contains(word));
        Ok(rows.iter().filter(|row| words.iter().all(|word| has(row, word))).cloned().collect())
    }

    /// How many entries a map of a node holds.
    pub fn entries(&self, node: &str, map: &str) -> Result<usize> {
        let dumps = self.agent(node).json(&["map-dump", map])?;
        Ok(dumps[0]["entries"].as_array().context("the dump has no entries")?.len())
    }

    /// The other things a node has counted.
    pub fn events(&self, node: &str) -> Result<BTreeMap<String, u64>> {
        self.counts(node, "events", "event", "count")
    }

    fn counts(&self, node: &str, what: &str, name: &str, count: &str) -> Result<BTreeMap<String, u64>> {
        let rows = self.agent(node).json(&["show", what])?;
        let rows = rows.as_array().with_context(|| format!("`vrouter show {what}` is no list"))?;
        let pairs = rows.iter().map(|row| Some((row[name].as_str()?.to_owned(), row[count].as_u64()?)));
        pairs.collect::<Option<_>>().with_context(|| format!("unexpected `vrouter show {what}`"))
    }

    /// Does something that makes a node drop exactly these packets, and none for another reason. What is done
    /// should end with a sign that all has been seen, such as a marker's arrival.
    pub fn expect_drops<T>(
        &self,
        node: &str,
        expected: &[(&str, u64)],
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let before = self.drops(node)?;
        for (reason, _) in expected {
            ensure!(before.contains_key(*reason), "there is no drop reason {reason}");
        }
        let result = work()?;
        let expected: BTreeMap<String, u64> = expected
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|&(reason, n)| (reason.to_owned(), n))
            .collect();
        let deadline = Instant::now() + COUNTED;
        loop {
            let risen: BTreeMap<String, u64> = self
                .drops(node)?
                .into_iter()
                .map(|(reason, count)| (reason.clone(), count - before.get(&reason).copied().unwrap_or(0)))
                .filter(|(_, count)| *count > 0)
                .collect();
            if risen == expected {
                return Ok(result);
            }
            if Instant::now() > deadline {
                bail!("{node} should have dropped {expected:?}, but dropped {risen:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A view on the underlay: what arrives there from a node.
    pub fn sniff_underlay(&self, node: &str) -> Result<Sniffer> {
        let underlay = Host::new("underlay", self.lab.underlay().clone());
        underlay.sniff_on(self.lab.node(node).underlay_port())
    }

    /// Listens at several workloads at once.
    pub fn listen(&self, workloads: &[&str]) -> Result<Listeners> {
        let mut sniffers = Vec::new();
        for &name in workloads {
            sniffers.push((name.to_owned(), self.lab.workload(name).sniff()?));
        }
        Ok(Listeners { sniffers })
    }
}

impl Deref for System {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

/// All values of a JSON document as text.
fn values(document: &Value) -> Vec<String> {
    match document {
        Value::Object(fields) => fields.values().flat_map(values).collect(),
        Value::Array(items) => items.iter().flat_map(values).collect(),
        Value::String(text) => vec![text.clone()],
        other => vec![other.to_string()],
    }
}

/// A check of a behaviour, and what it is called.
pub type Check<T> = (&'static str, fn(&T));

/// Runs checks one after the other, all of them even if some fail, and then fails with the names of those. An
/// agent takes seconds to start: what can share a lab does, and still tells everything that is wrong.
///
/// # Panics
/// If a check does.
pub fn check_all<T>(on: &T, checks: &[Check<T>]) {
    let mut failed = Vec::new();
    for (name, check) in checks {
        let started = Instant::now();
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(on))).is_err() {
            failed.push(*name);
        }
        println!("{name}: {} ms", started.elapsed().as_millis());
    }
    assert!(failed.is_empty(), "{} of {} checks failed: {}", failed.len(), checks.len(), failed.join("; "));
}

/// Waits until the ways to all other nodes are known: until then floods have nowhere to go.
fn wait_for_underlay(agent: &Agent) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ways = agent.json(&["show", "underlay"])?;
        let ways = ways.as_array().context("`vrouter show underlay` is no list")?;
        if ways.iter().all(|way| way["state"] == "resolved") {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "ways stay unresolved: {ways:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Listeners at several places.
#[derive(Debug)]
pub struct Listeners {
    sniffers: Vec<(String, Sniffer)>,
}

impl Listeners {
    /// Adds a place.
    pub fn with(mut self, name: &str, sniffer: Sniffer) -> Self {
        self.sniffers.push((name.to_owned(), sniffer));
        self
    }

    /// What has arrived everywhere, by place, of what satisfies `wanted`: up to the marker where `marked` says
    /// that it must arrive, and what comes within a moment after.
    pub fn heard(
        &self,
        marked: &[&str],
        marker: &[u8],
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<BTreeMap<&str, Vec<Vec<u8>>>> {
        let mut heard: BTreeMap<&str, Vec<Vec<u8>>> = BTreeMap::new();
        for (name, sniffer) in &self.sniffers {
            let frames = heard.entry(name).or_default();
            let deadline = Instant::now() + PATIENCE;
            let mut is_marked = !marked.contains(&name.as_str());
            while !is_marked {
                let left = deadline.saturating_duration_since(Instant::now());
                let frame = sniffer.next(left)?.with_context(|| format!("no marker at {name}"))?;
                is_marked = crate::frame::contains(&frame, marker);
                frames.push(frame);
            }
        }
        // Copies and answers that the marker has overtaken on another CPU.
        std::thread::sleep(Duration::from_millis(30));
        for (name, sniffer) in &self.sniffers {
            let frames = heard.entry(name).or_default();
            frames.extend(sniffer.collect(Duration::ZERO, |_| true)?);
            frames.retain(|frame| wanted(frame) && !crate::frame::contains(frame, marker));
        }
        Ok(heard)
    }
}
