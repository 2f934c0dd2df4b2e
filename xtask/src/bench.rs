//! `cargo xtask bench`: measures vrouter beside the bound and beside Linux, in one run, in turns.
//!
//! Packets: one core makes 64-byte frames in the kernel (`BPF_F_TEST_XDP_LIVE_FRAMES`) and sends them into
//! a workload's interface; what is measured takes them from the other end to the next workload, whose
//! interface counts and drops them. All of it runs on that core, so the rows differ only in the middle.
//! Streams: one iperf3 TCP connection. Every round measures every row once; reported are medians, spread
//! and ratios, because the machine is shared and absolute numbers drift.

mod frames;
mod linux;
mod record;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use vrouter_tests::{AgentOptions, Host, Lab, clean, require_root, tools, topology};

use crate::{report, repository, setup};
use frames::{Attached, Generator};
use linux::LinuxLab;
use record::{Record, Row};

/// Measure vrouter beside bare XDP and beside Linux: table on stdout, JSON in target/bench/report.json.
#[derive(clap::Args)]
pub struct Args {
    /// Fewer and shorter rounds: a rough picture in about a minute.
    #[arg(long)]
    quick: bool,
    /// Only rows whose id contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

const PREFIX: &str = "vrbench";

/// One thing that is measured.
struct Subject<'a> {
    id: &'static str,
    unit: &'static str,
    /// Rows it is compared with.
    peers: &'static [&'static str],
    what: &'static str,
    measure: Box<dyn Fn(Duration) -> Result<f64> + 'a>,
}

/// Measures and reports.
pub fn run(args: Args) -> Result<()> {
    require_root()?;
    setup::ensure(setup::Needs::LABS)?;
    println!("Building the release.");
    repository::run(&mut repository::cargo("build --release -p vrouter"))?;
    let vrouter = repository::target_dir()?.join("release/vrouter");
    clean::remove_on_signal(PREFIX)?;
    clean::remove(PREFIX)?;

    println!("Making the labs: two vrouter nodes, and the same in Linux routes and kernel VXLAN.");
    // vm1 and vm2 are on web, vm3 and vm5 on db; what measures frames gets ports of its own, with XDP.
    let mut wanted = topology::standard();
    for (name, network, number) in [("xdp1", "web", 21), ("xdp2", "db", 22)] {
        let mut port = topology::standard_port(name, network, number, "node-a");
        port.extra.push("hook: xdp".to_owned());
        wanted.ports.push(port);
    }
    for (name, network, number) in [("tc1", "web", 31), ("tc2", "db", 32)] {
        wanted.ports.push(topology::standard_port(name, network, number, "node-a"));
    }
    let lab = Lab::builder().prefix(PREFIX).topology(&wanted).vrouter(&vrouter).build()?;
    let mut agents = Vec::new();
    for node in ["node-a", "node-b"] {
        let mut agent = lab.start_agent(node, &AgentOptions::default())?;
        agent.wait_ready(Duration::from_secs(10))?;
        agents.push(agent);
    }
    let linux = LinuxLab::new(&lab)?;
    let rows = measure(&args, &lab, &linux)?;
    let record = Record::new(args.quick, rows)?;
    println!("\n{}", record.table());
    let path = record.write(&repository::target_dir()?.join("bench"))?;
    println!("\nThe same as JSON: {}", path.display());
    Ok(())
}

fn measure(args: &Args, lab: &Lab, linux: &LinuxLab) -> Result<Vec<Row>> {
    let (rounds, length) =
        if args.quick { (3, Duration::from_millis(500)) } else { (9, Duration::from_secs(1)) };
    let subjects = subjects(lab, linux)?;
    let subjects: Vec<_> = subjects
        .into_iter()
        .filter(|subject| args.only.as_ref().is_none_or(|text| subject.id.contains(text)))
        .collect();
    let mut values: Vec<Vec<f64>> = vec![Vec::new(); subjects.len()];
    let start = Instant::now();
    for round in 0..=rounds {
        for (subject, values) in subjects.iter().zip(&mut values) {
            let value = (subject.measure)(length).with_context(|| format!("measuring {}", subject.id))?;
            // The first round warms caches, page pools and neighbours.
            if round > 0 {
                values.push(value);
            }
        }
        println!("round {round} of {rounds} done, {}", report::duration(start.elapsed()));
    }
    Ok(subjects
        .iter()
        .zip(values)
        .map(|(subject, values)| Row::new(subject.id, subject.unit, subject.what, subject.peers, values))
        .collect())
}

fn subjects<'a>(lab: &'a Lab, linux: &'a LinuxLab) -> Result<Vec<Subject<'a>>> {
    let xdp = FramePath::vrouter(lab, "xdp1", "xdp2", "10.0.1.21", "10.0.2.22")?;
    let tc = FramePath::vrouter(lab, "tc1", "tc2", "10.0.1.31", "10.0.2.32")?;
    let bare = FramePath::bare(linux)?;
    let forward = FramePath::linux(linux)?;
    let stream =
        |from: &'a Host, to: &'a Host, address: String| -> Box<dyn Fn(Duration) -> Result<f64> + 'a> {
            Box::new(move |length| {
                let seconds = u32::try_from(length.as_secs()).unwrap_or(1).max(1) * 2;
                Ok(tools::iperf3(from, to, &address, seconds, &[])?.bits_per_second / 1e9)
            })
        };
    let frames = |path: FramePath<'a>| -> Box<dyn Fn(Duration) -> Result<f64> + 'a> {
        Box::new(move |length| path.measure(length))
    };
    Ok(vec![
        Subject {
            id: "bare_redirect",
            unit: "Mpps",
            peers: &[],
            what: "XDP: rewrite MACs, redirect; nothing else (the bound)",
            measure: frames(bare),
        },
        Subject {
            id: "xdp_local",
            unit: "Mpps",
            peers: &["bare_redirect", "linux_forward"],
            what: "vrouter, XDP port to XDP port, routed",
            measure: frames(xdp),
        },
        Subject {
            id: "tc_local",
            unit: "Mpps",
            peers: &["linux_forward"],
            what: "vrouter, TC port to TC port, routed",
            measure: frames(tc),
        },
        Subject {
            id: "linux_forward",
            unit: "Mpps",
            peers: &[],
            what: "Linux, veth to veth, ip_forward",
            measure: frames(forward),
        },
        Subject {
            id: "direct_veth",
            unit: "Gb/s",
            peers: &[],
            what: "one TCP stream over one veth pair",
            measure: stream(linux.direct_a(), linux.direct_b(), linux::DIRECT_B.to_owned()),
        },
        Subject {
            id: "tcp_local",
            unit: "Gb/s",
            peers: &["direct_veth", "linux_routed"],
            what: "one TCP stream, vrouter, routed on one node",
            measure: stream(lab.workload("vm1"), lab.workload("vm3"), lab.workload("vm3").v4().to_owned()),
        },
        Subject {
            id: "tcp_vxlan",
            unit: "Gb/s",
            peers: &["linux_vxlan"],
            what: "one TCP stream, vrouter, routed, across VXLAN",
            measure: stream(lab.workload("vm1"), lab.workload("vm5"), lab.workload("vm5").v4().to_owned()),
        },
        Subject {
            id: "linux_routed",
            unit: "Gb/s",
            peers: &[],
            what: "one TCP stream, Linux, routed on one node",
            measure: stream(linux.host("h1"), linux.host("h2"), linux::H2.to_owned()),
        },
        Subject {
            id: "linux_vxlan",
            unit: "Gb/s",
            peers: &[],
            what: "one TCP stream, Linux, routed, across kernel VXLAN",
            measure: stream(linux.host("h1"), linux.host("h3"), linux::H3.to_owned()),
        },
    ])
}

/// A way for made frames: into `from`'s interface, out at `to`'s.
struct FramePath<'a> {
    from: &'a Host,
    to: &'a Host,
    generator: Generator,
    /// Programs that stay attached while it is measured.
    _attached: Vec<Attached>,
}

impl<'a> FramePath<'a> {
    fn new(
        from: &'a Host,
        to: &'a Host,
        gateway: [u8; 6],
        src: &str,
        dst: &str,
        attached: Vec<Attached>,
    ) -> Result<Self> {
        let generator = Generator::new(from, gateway, src.parse()?, dst.parse()?)?;
        let sink = Attached::sink(to)?;
        Ok(Self { from, to, generator, _attached: attached.into_iter().chain([sink]).collect() })
    }

    fn vrouter(lab: &'a Lab, from: &str, to: &str, src: &str, dst: &str) -> Result<Self> {
        let (from, to) = (lab.workload(from), lab.workload(to));
        // Also teaches the sender the gateway's hardware address.
        from.ping(dst, 1, &[])?;
        let gateway = from.neighbours()?.into_iter().find(|neighbour| neighbour.dst == "10.0.1.1");
        let gateway = gateway.and_then(|neighbour| neighbour.lladdr).context("the gateway did not answer")?;
        // Frames handed to a veth need NAPI behind it: GRO on.
        lab.node("node-a").run(&format!("ethtool -K {} gro on", from.spec().tap))?;
        Self::new(from, to, vrouter_tests::host::parse_mac(&gateway)?, src, dst, Vec::new())
    }

    fn bare(linux: &'a LinuxLab) -> Result<Self> {
        let (from, to) = (linux.host("b1"), linux.host("b2"));
        let redirect = Attached::redirect(linux.router(), "tap-b1", "tap-b2", to.mac()?)?;
        Self::new(from, to, linux.mac_of("tap-b1")?, linux::B1, linux::B2, vec![redirect])
    }

    fn linux(linux: &'a LinuxLab) -> Result<Self> {
        let (from, to) = (linux.host("f1"), linux.host("f2"));
        from.ping(linux::F2, 1, &[])?;
        linux.router().run("ethtool -K tap-f1 gro on")?;
        // Whose interface drops everything cannot answer ARP again.
        let mac = linux.mac_text(to)?;
        linux
            .router()
            .ip(&[format!("neighbour replace {} lladdr {mac} dev tap-f2 nud permanent", linux::F2)])?;
        Self::new(from, to, linux.mac_of("tap-f1")?, linux::F1, linux::F2, Vec::new())
    }

    /// Million frames per second that came out.
    fn measure(&self, length: Duration) -> Result<f64> {
        let before = frames::received(self.to)?;
        let elapsed = self.generator.run(self.from, length)?;
        let after = frames::received(self.to)?;
        if after - before < 10_000 {
            bail!("of a flood of frames only {} came out at {}", after - before, self.to.name());
        }
        Ok((after - before) as f64 / elapsed.as_secs_f64() / 1e6)
    }
}
