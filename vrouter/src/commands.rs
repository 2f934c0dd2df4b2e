//! The commands, one file each: `Args` is what clap reads, `run` does it and says how it went.

pub mod agent;
pub mod apply;
mod columns;
pub mod completions;
pub mod conntrack;
pub mod flows;
pub mod get;
pub mod map_dump;
pub mod monitor;
pub mod show;
pub mod status;
mod store;
pub mod top;
pub mod trace;
pub mod validate;
pub mod web;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{
    agent::check_instance,
    config::{DEFAULT_BPFFS, DEFAULT_INSTANCE},
    data_path::Pins,
};

/// Which instance a command looks at.
#[derive(clap::Args, Clone, Debug)]
pub struct InstanceArgs {
    /// Instance name, as given to the agent
    #[arg(long, default_value = DEFAULT_INSTANCE)]
    pub instance: String,
    /// Where bpffs is mounted
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
}

impl InstanceArgs {
    /// The instance's pins, which must exist.
    pub fn pins(&self) -> Result<Pins> {
        check_instance(&self.instance)?;
        if !nix::unistd::geteuid().is_root() {
            bail!("reading the data path's maps needs root: run it with sudo");
        }
        let pins = Pins::new(&self.bpffs, &self.instance);
        if !pins.exist() {
            let dir = self.bpffs.join("vrouter");
            let known: Vec<_> = std::fs::read_dir(&dir)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            bail!(
                "no data path of instance {} under {} (there: {known}). Start the agent, or name an instance with \
                 --instance. Inside `ip netns exec` the host's bpffs is hidden: use nsenter --net instead",
                self.instance,
                dir.display()
            );
        }
        Ok(pins)
    }
}
