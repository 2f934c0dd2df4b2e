//! `cargo xtask bench`: measures vrouter beside Linux.

use anyhow::{Result, bail};

/// Measure vrouter beside Linux forwarding (not there yet).
#[derive(clap::Args)]
pub struct Args {}

/// Refuses: there is nothing to run yet.
pub fn run(Args {}: Args) -> Result<()> {
    bail!("the measurements are not written yet")
}
