//! `vrouter trace`: what becomes of a packet, and why.

use std::{
    cell::OnceCell,
    fs::File,
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::{InstanceArgs, get, store::StoreCommand};
use crate::{
    agent,
    output::OutputArgs,
    topology::{self, model::Topology},
    trace::{
        Source, capture,
        journey::{Fetch, Journey, Start, Worlds},
        packet::Request,
    },
};

/// Run a packet through the live data path, without sending it, and say what becomes of it and why
///
/// A packet is written as
///   tcp 10.0.1.10:40000 > 10.0.2.20:5432 [flags SA] [ttl 64] [length 100]
///   udp > 10.0.2.20:53                    from the port's own address
///   sctp 10.0.1.10:40000 > 10.0.2.20:5060
///   icmp > 8.8.8.8 [type 8] [code 0] [id 7]
///   ip gre 10.0.1.10 > 10.0.2.20          another protocol, by name or number
///   arp 10.0.1.1                          who has it?
///   frame 0200...                         in hexadecimal, from the Ethernet header on
/// and `from MAC`, `to MAC` behind any of them.
#[derive(clap::Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The packet; its words may be quoted or not
    #[arg(value_name = "PACKET", required_unless_present = "pcap", conflicts_with = "pcap")]
    packet: Vec<String>,
    /// It comes from this port's workload
    #[arg(long, value_name = "NAME", required_unless_present = "external")]
    port: Option<String>,
    /// It comes from outside, on this external network
    #[arg(long, value_name = "NETWORK", conflicts_with = "port")]
    external: Option<String>,
    /// Take frames from a capture (pcap or pcapng); `-`: standard input
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Of a capture: at most this many
    #[arg(long, value_name = "N", default_value_t = 10, requires = "pcap")]
    packets: usize,
    /// As if nothing were known of its flow: a first packet
    #[arg(long)]
    afresh: bool,
    /// What nodes that do not run on this machine are computed from; without it, what etcd has, where the agent follows it
    #[arg(long, value_name = "FILE", conflicts_with = "what_if")]
    topology: Option<PathBuf>,
    /// Compute everything from this topology, applied or not: needs no privileges
    #[arg(long, value_name = "FILE")]
    what_if: Option<PathBuf>,
    /// Of what is computed, from outside: the node it comes in at
    #[arg(long, value_name = "NODE", requires = "what_if")]
    node: Option<String>,
    #[command(flatten)]
    store: StoreCommand,
    #[command(flatten)]
    instance: InstanceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What is printed of a capture.
#[derive(Serialize)]
struct Captured {
    number: usize,
    #[serde(flatten)]
    journey: Journey,
}

/// Traces.
pub fn run(args: &Args) -> Result<ExitCode> {
    let start = match (&args.port, &args.external) {
        (Some(port), _) => Start::Port(port.clone()),
        (None, Some(network)) => Start::Outside(network.clone()),
        (None, None) => bail!("say where it comes in: --port NAME or --external NETWORK"),
    };
    // What is wrong with the packet is said before anything is loaded.
    let request = match &args.pcap {
        None => Some(Request::parse(&args.packet.join(" "))?),
        Some(_) => None,
    };
    let pins = match &args.what_if {
        Some(_) => None,
        None => {
            args.instance.pins()?;
            Some((args.instance.bpffs.clone(), args.instance.instance.clone()))
        }
    };
    let topology = args.what_if.as_deref().or(args.topology.as_deref()).map(read).transpose()?;
    let fetch: Option<Fetch> = (pins.is_some() && topology.is_none() && follows_etcd(args)).then(|| {
        let store = args.store.clone();
        Box::new(move || of_etcd(&store)) as Fetch
    });
    let topology = topology.map_or_else(OnceCell::new, OnceCell::from);
    let worlds = Worlds { pins, topology, fetch, node: args.node.clone(), afresh: args.afresh };
    match (request, &args.pcap) {
        (Some(request), _) => args.output.print(&worlds.follow(&start, &request)?, for_people)?,
        (None, Some(path)) => {
            let frames = frames(path, args.packets)?;
            let mut journeys = Vec::new();
            for (number, frame) in (1..).zip(frames) {
                let journey = worlds
                    .follow_frame(&start, frame)
                    .with_context(|| format!("packet {number} of {}", path.display()))?;
                journeys.push(Captured { number, journey });
            }
            args.output.print(&journeys, |journeys| {
                let texts =
                    journeys.iter().map(|it| format!("packet {}: {}", it.number, for_people(&it.journey)));
                texts.collect::<Vec<_>>().join("\n\n")
            })?;
        }
        (None, None) => bail!("write a packet, or name a capture with --pcap"),
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Topology> {
    topology::load(path).map_err(|problems| anyhow::anyhow!("the topology is not in order\n{problems}"))
}

/// Whether there is an etcd that has the topology.
fn follows_etcd(args: &Args) -> bool {
    let status = agent::ask(&agent::run_dir(&args.instance.instance), "status").unwrap_or_default();
    !args.store.store.endpoints.is_empty() || !status["store"].is_null()
}

fn of_etcd(store: &StoreCommand) -> Result<Topology> {
    let mut text = String::new();
    store.run(async |store, _| {
        text = get::exported(store).await?.0;
        Ok(ExitCode::SUCCESS)
    })?;
    topology::parse("etcd", &text)
        .map_err(|problems| anyhow::anyhow!("what etcd has is not in order\n{problems}"))
}

fn frames(path: &Path, most: usize) -> Result<Vec<Vec<u8>>> {
    let input: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(std::io::stdin().lock()),
        _ => Box::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?),
    };
    capture::frames(input, most).with_context(|| format!("cannot use the capture {}", path.display()))
}

/// Colours, where somebody looks.
struct Paint(bool);

impl Paint {
    fn new() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }

    fn text(&self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn for_people(journey: &Journey) -> String {
    let paint = Paint::new();
    let mut out = format!("{}\n", paint.text("1", &journey.packet));
    for hop in &journey.hops {
        let source = match hop.source {
            Source::Live => "",
            Source::Computed => ", computed from the topology",
        };
        out += &format!("\n{}: from {}{source}\n", paint.text("1", &hop.node), hop.entry);
        for step in &hop.steps {
            let mark = if step.found { " " } else { "-" };
            out += &format!("  {mark} {}\n", step.text);
        }
        for rewrite in &hop.rewrites {
            out += &format!("  ~ {rewrite}\n");
        }
        out += &format!("  = {}\n", paint.text(colour(hop.verdict.kind), &hop.verdict.text));
    }
    out
}

fn colour(kind: &str) -> &'static str {
    match kind {
        "dropped" => "31",
        "delivered" | "sent_outside" | "tunnelled" => "32",
        _ => "33",
    }
}
