//! `cargo xtask bench`: measures vrouter beside the bound and beside Linux, in one run, in turns.
//!
//! Packets: one core makes 64-byte frames in the kernel (`BPF_F_TEST_XDP_LIVE_FRAMES`) and sends them into
//! a workload's interface; what is measured takes them from the other end to the next workload, or outside,
//! where they are counted and dropped. All of it runs on that core, so the rows differ only in the middle.
//! Streams: one iperf3 TCP connection. Every round measures every row once; reported are medians, spread
//! and ratios, because the machine is shared and absolute numbers drift.

mod bpf;
mod chart;
mod conntrack;
mod control;
mod cost;
mod frames;
mod latency;
mod linux;
mod many;
mod path;
mod programs;
mod record;
mod rows;
mod scale;
mod table;
mod vrouter;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use vrouter_tests::{clean, require_root};

use crate::{report, repository, setup};
use control::{Control, Much};
use linux::LinuxLab;
use record::{Record, Row};
use scale::Scale;
use vrouter::{Gateway, Vrouter};

/// Measure vrouter beside bare XDP and beside Linux: table on stdout, JSON and a chart in target/bench.
#[derive(clap::Args)]
pub struct Args {
    /// Fewer and shorter rounds: a rough picture in a few minutes.
    #[arg(long)]
    quick: bool,
    /// The control plane instead: 1,000 nodes and 100,000 ports in etcd.
    #[arg(long, conflicts_with = "only")]
    control: bool,
    /// Only rows whose id contains this; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
}

impl Args {
    fn wants(&self, id: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| id.contains(text))
    }
}

/// Measures and reports.
pub fn run(args: Args) -> Result<()> {
    require_root()?;
    setup::ensure(setup::Needs::LABS)?;
    let result = measure_all(args);
    clean::remove_shared_directories();
    result
}

fn measure_all(args: Args) -> Result<()> {
    if args.control {
        clean::remove_on_signal(vrouter::PREFIX)?;
        return many::run(args.quick);
    }
    println!("Building the release.");
    repository::run(&mut repository::cargo("build --release -p vrouter"))?;
    let binary = repository::target_dir()?.join("release/vrouter");
    clean::remove_on_signal(vrouter::PREFIX)?;
    clean::remove(vrouter::PREFIX)?;

    println!("Making the labs: vrouter nodes, and the same in Linux: routes, nftables, kernel VXLAN.");
    let vrouter = Vrouter::new(&binary, &|id| args.wants(id))?;
    let linux = LinuxLab::new(&vrouter.lab)?;
    let extra = Extra::new(&binary, &|id| args.wants(id))?;
    let rows = measure(&args, &vrouter, &linux, &extra)?;
    let record = Record::new(args.quick, rows);
    println!("\n{}", record.table());
    let [json, chart] = record.write(&repository::target_dir()?.join("bench"))?;
    println!("\nThe same as JSON: {}\nAs a chart: {}", json.display(), chart.display());
    Ok(())
}

/// Labs of their own, for rows that ask for more than ports.
pub struct Extra {
    /// With little and with much of everything.
    scales: Option<[Scale; 2]>,
    /// With many ports on other nodes.
    control: Option<Control>,
    /// With many load balancers.
    balancers: Option<Control>,
    /// With many load balancers, in etcd.
    balancers_in_etcd: Option<Control>,
    /// A gateway.
    gateway: Option<Gateway>,
}

impl Extra {
    fn new(binary: &Path, wants: &dyn Fn(&str) -> bool) -> Result<Self> {
        let scales = if rows::SCALE.into_iter().any(wants) {
            let [small, large] = scale::SIZES;
            println!("Making nodes with {small} and with {large} rules, routes and ports.");
            Some([Scale::new(binary, small)?, Scale::new(binary, large)?])
        } else {
            None
        };
        let control = if rows::CONTROL.into_iter().any(wants) {
            println!("Making a node with 100 networks of 100 ports.");
            Some(Control::new(binary, Much::Ports)?)
        } else {
            None
        };
        let balancers = if rows::BALANCERS.into_iter().any(wants) {
            println!("Making a node with 1,000 VIPs of 100 members.");
            Some(Control::new(binary, Much::Balancers)?)
        } else {
            None
        };
        let balancers_in_etcd = if wants(rows::BALANCERS_IN_ETCD) {
            println!("Making a node that has the same from etcd.");
            Some(Control::new(binary, Much::BalancersInEtcd)?)
        } else {
            None
        };
        let gateway = if wants("xdp_transit") { Some(Gateway::new(binary)?) } else { None };
        Ok(Self { scales, control, balancers, balancers_in_etcd, gateway })
    }
}

fn measure(args: &Args, vrouter: &Vrouter, linux: &LinuxLab, extra: &Extra) -> Result<Vec<Row>> {
    let (rounds, length) =
        if args.quick { (3, Duration::from_millis(500)) } else { (9, Duration::from_secs(1)) };
    let start = Instant::now();
    let subjects = rows::subjects(&|id| args.wants(id), vrouter, linux, extra)?;
    if subjects.is_empty() {
        bail!("no row's id contains {}", args.only.join(" or "));
    }
    println!("{} rows are ready, {}", subjects.len(), report::duration(start.elapsed()));
    let mut values: Vec<Vec<f64>> = vec![Vec::new(); subjects.len()];
    for round in 0..=rounds {
        for (subject, values) in subjects.iter().zip(&mut values) {
            let value =
                (subject.measure)(length).with_context(|| format!("measuring {}", subject.label.id))?;
            // The first round warms caches, page pools and neighbours.
            if round > 0 {
                values.push(value);
            }
        }
        println!("round {round} of {rounds} done, {}", report::duration(start.elapsed()));
    }
    Ok(subjects.into_iter().zip(values).map(|(subject, values)| Row::new(subject.label, values)).collect())
}
