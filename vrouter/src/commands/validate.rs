//! `vrouter validate`: check a topology without privileges.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use crate::output::{Format, OutputArgs};
use crate::topology::model::Topology;
use crate::topology::{self, Problems};

/// Check a topology document and report everything that is wrong with it
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The document, in YAML or JSON; `-` reads standard input
    pub file: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What a document holds, or what is wrong with it.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    InOrder {
        ok: bool,
        counts: Counts,
    },
    Refused {
        ok: bool,
        #[serde(flatten)]
        problems: Problems,
    },
}

/// How many objects of each kind there are.
#[derive(Serialize)]
struct Counts {
    networks: usize,
    subnets: usize,
    routers: usize,
    security_groups: usize,
    address_groups: usize,
    ports: usize,
    floating_ips: usize,
    load_balancers: usize,
    pools: usize,
    nodes: usize,
}

/// Reads the document and prints the verdict; problems make it exit with 1.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (name, verdict) = if args.file.as_os_str() == "-" {
        ("standard input".to_owned(), topology::load_from("standard input", io::stdin().lock()))
    } else {
        (args.file.display().to_string(), topology::load(&args.file))
    };
    let code = if verdict.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    print(&name, verdict, args.output.output).context("printing the verdict")?;
    Ok(code)
}

fn print(name: &str, verdict: Result<Topology, Problems>, format: Format) -> anyhow::Result<()> {
    match (format, verdict) {
        (Format::Table, Ok(topology)) => {
            writeln!(io::stdout(), "{name}: in order: {}", Counts::of(&topology))?;
        }
        (Format::Table, Err(problems)) => {
            let count = problems.count();
            let noun = if count == 1 { "problem" } else { "problems" };
            writeln!(io::stderr(), "{problems}\n{count} {noun}; nothing was changed")?;
        }
        (Format::Json, verdict) => {
            let outcome = match verdict {
                Ok(topology) => Outcome::InOrder { ok: true, counts: Counts::of(&topology) },
                Err(problems) => Outcome::Refused { ok: false, problems },
            };
            let mut stdout = io::stdout().lock();
            serde_json::to_writer_pretty(&mut stdout, &outcome)?;
            writeln!(stdout)?;
        }
    }
    Ok(())
}

impl Counts {
    fn of(topology: &Topology) -> Self {
        Self {
            networks: topology.networks.len(),
            subnets: topology.networks.iter().map(|network| network.subnets.len()).sum(),
            routers: topology.routers.len(),
            // The group `default` may be there without being written.
            security_groups: topology.security_groups.iter().filter(|group| group.line > 0).count(),
            address_groups: topology.address_groups.len(),
            ports: topology.ports.len(),
            floating_ips: topology.floating_ips.len(),
            load_balancers: topology.load_balancers.len(),
            pools: topology.pools.len(),
            nodes: topology.nodes.len(),
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.networks, "network"),
            (self.subnets, "subnet"),
            (self.routers, "router"),
            (self.security_groups, "security group"),
            (self.address_groups, "address group"),
            (self.ports, "port"),
            (self.floating_ips, "floating ip"),
            (self.load_balancers, "load balancer"),
            (self.pools, "pool"),
            (self.nodes, "node"),
        ];
        let mut words = Vec::new();
        for (count, noun) in all.into_iter().filter(|(count, _)| *count > 0) {
            words.push(format!("{count} {noun}{}", if count == 1 { "" } else { "s" }));
        }
        if words.is_empty() {
            words.push("no objects".to_owned());
        }
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_leave_out_what_is_not_there() {
        let topology = topology::parse(
            "x",
            "nodes: [{ name: a, vtep: 192.0.2.1 }]\nnetworks: [{ name: b }, { name: c }]",
        );
        let counts = topology.map(|topology| Counts::of(&topology).to_string());
        assert_eq!(counts, Ok("2 networks, 1 node".to_owned()));
        assert_eq!(Counts::of(&Topology::default()).to_string(), "no objects");
    }

    #[test]
    fn json_holds_the_problems_beside_the_verdict() {
        let Err(problems) = topology::parse("x", "nodes: [{ name: a }]") else { panic!("accepted") };
        let outcome = serde_json::to_value(Outcome::Refused { ok: false, problems }).expect("JSON");
        assert_eq!(outcome["ok"], false);
        assert_eq!(outcome["problems"][0]["object"], "node a");
        assert_eq!(outcome["problems"][0]["line"], 1);
    }

    #[test]
    fn the_exit_code_tells() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let code = |text: &str| {
            std::fs::write(file.path(), text).expect("written");
            let args = Args { file: file.path().to_owned(), output: OutputArgs::default() };
            format!("{:?}", run(args).expect("printed"))
        };
        assert_eq!(code("{}"), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(code("nodes: 1"), format!("{:?}", ExitCode::FAILURE));
    }
}
