//! `cargo xtask build-ebpf`: builds the eBPF objects alone: the one that forwards, and the one that traces.

use anyhow::Result;
use ebpf_build::Toolchain;

use crate::{repository, setup};

/// Build the eBPF objects and say with what and where they are.
#[derive(clap::Args)]
pub struct Args {}

/// Builds the object that `vrouter` embeds.
pub fn run(Args {}: Args) -> Result<()> {
    setup::ensure(setup::Needs::BUILD)?;
    let toolchain = Toolchain::detect()?;
    println!("compiler: {}", toolchain.describe());
    println!("sysroot:  {}", toolchain.sysroot().display());
    let (manifest, target_dir) = (repository::ebpf_manifest(), repository::ebpf_target_dir()?);
    for (what, features, target_dir) in
        [("object:  ", &[][..], target_dir.clone()), ("tracing: ", &["trace"], target_dir.join("trace"))]
    {
        let object = ebpf_build::build(&toolchain, &manifest, &target_dir, features)?;
        println!("{what} {} ({} bytes)", object.display(), object.metadata()?.len());
    }
    Ok(())
}
