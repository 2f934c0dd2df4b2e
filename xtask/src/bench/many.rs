//! `cargo xtask bench --control`: a topology of 1,000 nodes in a real etcd, agents without kernels that follow it.

use std::{path::PathBuf, process::Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use vrouter_tests::{Cluster, Lab, clean, etcd};

use super::{
    record::{
        Demand::{self, Least, Most},
        Label, Record, Row,
    },
    vrouter,
};
use crate::repository;

/// Ports of a network, nodes of every topology.
const PORTS: u32 = 100;
const NODES: u32 = 1000;
/// Networks: with a tenth, and with all.
const SIZES: [u32; 2] = [100, 1000];
/// Nodes that are played whole, and clients that only watch.
const PLAYED: [u32; 2] = [20, 8];
const WATCHERS: [u32; 2] = [980, 192];

/// Measures and reports.
pub fn run(quick: bool) -> Result<()> {
    println!("Building the simulated agents.");
    repository::run(&mut repository::cargo("build --release -p vrouter --example simulate"))?;
    let binary = repository::target_dir()?.join("release/examples/simulate");
    let (played, watchers) = (PLAYED[usize::from(quick)], WATCHERS[usize::from(quick)]);
    let mut rows = Vec::new();
    for networks in SIZES {
        let ports = networks * PORTS;
        println!("{ports} ports on {NODES} nodes: storing them, then one agent alone.");
        let prefix = format!("{}-m", vrouter::PREFIX);
        clean::remove(&prefix)?;
        let lab = etcd::hosts(Lab::builder().prefix(&prefix)).build()?;
        let cluster = Cluster::start(&lab, &[], false)?;
        let size = |more: &[&str]| -> Result<Value> {
            let networks = networks.to_string();
            simulate(&lab, &cluster, &binary, &[&["--networks", &networks], more].concat())
        };
        let alone = size(&["--fill", "--agents", "1", "--changes", "50", "--writing", "1"])?;
        println!(
            "{} nodes follow, {} more watch; changes one by one, then as many as etcd takes.",
            played, watchers
        );
        let many = size(&["--agents", &played.to_string(), "--watchers", &watchers.to_string()])?;
        let name = if networks == SIZES[0] { "_10k" } else { "" };
        let large = networks == SIZES[1];
        let mut row = |id: &str,
                       unit: &'static str,
                       from: &Value,
                       field: &str,
                       what: &str,
                       peer: Option<Demand>|
         -> Result<()> {
            let value = from[field].as_f64().with_context(|| format!("the simulation says no {field}"))?;
            let peers = if large && peer.is_some() { vec![(format!("{id}_10k"), peer)] } else { Vec::new() };
            let label = Label {
                id: format!("{id}{name}"),
                unit,
                what: format!("{ports} ports: {what}"),
                peers,
                demand: None,
            };
            rows.push(Row::new(label, vec![value]));
            Ok(())
        };
        row("sync", "s", &alone, "sync_s", "one agent, from its start until its part is compiled", None)?;
        row(
            "agent_memory",
            "MiB",
            &alone,
            "memory_mib",
            "resident memory of one agent without its maps",
            None,
        )?;
        row(
            "change_alone_p50",
            "ms",
            &alone,
            "change_p50_ms",
            "a port changed to in force, one agent",
            Some(Most(2.0)),
        )?;
        row(
            "change_p50",
            "ms",
            &many,
            "change_p50_ms",
            "the same, many agents and 1,000 watches on two cores",
            Some(Most(2.0)),
        )?;
        row("change_p99", "ms", &many, "change_p99_ms", "all but one in a hundred", Some(Most(3.0)))?;
        row(
            "compile",
            "ms",
            &many,
            "compile_ms",
            "of a change, compiling on all nodes it is for",
            Some(Most(2.0)),
        )?;
        row(
            "writes",
            "writes/s",
            &many,
            "writes_per_s",
            "ports plugged by 16 at once, all watching",
            Some(Least(0.3)),
        )?;
        row("fill", "s", &alone, "fill_s", "all of it stored by transactions of 100", None)?;
    }
    let record = Record::new(quick, rows);
    println!("\n{}", record.table());
    let [json, chart] = record.write(&repository::target_dir()?.join("bench/control"))?;
    println!("\nThe same as JSON: {}\nAs a chart: {}", json.display(), chart.display());
    Ok(())
}

fn simulate(lab: &Lab, cluster: &Cluster, binary: &PathBuf, arguments: &[&str]) -> Result<Value> {
    let mut command = lab.foreign(etcd::MEMBERS[0].0).netns().command(binary);
    command.args(cluster.arguments("")).args(arguments).args(["--nodes", &NODES.to_string()]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot run the simulation")?;
    if !output.status.success() {
        bail!("the simulation failed");
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
