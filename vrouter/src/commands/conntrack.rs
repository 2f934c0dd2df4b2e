//! `vrouter conntrack`: live connections as `conntrack -L` prints them, for tools that read that.

use std::{io::Write, process::ExitCode};

use anyhow::Result;

use super::{
    InstanceArgs,
    flows::{Looker, hung_up_is_fine},
};
use crate::connections::{Names, conntrack, filter::FilterArgs};

/// Print live connections in the format of `conntrack -L`
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    pub filter: FilterArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

/// Prints them.
pub fn run(args: &Args) -> Result<ExitCode> {
    let looker = Looker::open(&args.instance)?;
    let names = Names::read(looker.maps())?;
    let filter = args.filter.resolve(&names, looker.maps())?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut shown = 0_u64;
    let printed = looker.look(&names, &filter, |flows, standing| {
        // Ours are the networks' VNIs: addresses are only unique within one.
        let network = flows.original().map_or(flows.first().flow.network_out, |leg| leg.flow.network);
        let zone = names.networks.get(&network).map_or(0, |network| network.vni);
        if let Some(line) = conntrack::line(flows, standing, zone) {
            writeln!(out, "{line}")?;
            shown += 1;
        }
        Ok(true)
    });
    hung_up_is_fine(printed.and_then(|()| Ok(out.flush()?)))?;
    eprintln!("vrouter: {shown} flow entries have been shown.");
    Ok(ExitCode::SUCCESS)
}
