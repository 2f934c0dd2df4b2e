//! `cargo xtask build-ebpf`: builds the eBPF object alone.

use anyhow::Result;
use ebpf_build::Toolchain;

use crate::{repository, setup};

/// Build the eBPF object and say with what and where it is.
#[derive(clap::Args)]
pub struct Args {}

/// Builds the object that `vrouter` embeds.
pub fn run(Args {}: Args) -> Result<()> {
    setup::ensure(setup::Needs::BUILD)?;
    let toolchain = Toolchain::detect()?;
    println!("compiler: {}", toolchain.describe());
    println!("sysroot:  {}", toolchain.sysroot().display());
    let object =
        ebpf_build::build(&toolchain, &repository::ebpf_manifest(), &repository::ebpf_target_dir()?, &[])?;
    println!("object:   {} ({} bytes)", object.display(), object.metadata()?.len());
    Ok(())
}
