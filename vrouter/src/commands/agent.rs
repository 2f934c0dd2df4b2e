//! `vrouter agent`: the privileged loader.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::{
    agent,
    config::{AgentArgs, AgentConfig},
};

/// Load and attach the data path, compile the topology into it, and follow changes
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    pub agent: AgentArgs,
}

/// Runs until a signal; what is pinned stays.
pub fn run(args: Args) -> Result<ExitCode> {
    let config = AgentConfig::new(args.agent)?;
    // One thread: nothing here is worth two, and nothing can race.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, agent::run(config))?;
    Ok(ExitCode::SUCCESS)
}
