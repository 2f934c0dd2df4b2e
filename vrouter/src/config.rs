//! Node configuration: `/etc/vrouter/node.toml`, flags on top of it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::agent;

/// Where the configuration is unless told otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/vrouter/node.toml";
/// The instance unless told otherwise.
pub const DEFAULT_INSTANCE: &str = "default";
/// bpffs unless told otherwise.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
const DEFAULT_TOPOLOGY: &str = "/etc/vrouter/topology.yaml";
/// nf_conntrack's default on a machine of 16 GiB.
const DEFAULT_FLOW_ENTRIES: u32 = 262_144;
const DEFAULT_FLOW_IDLE_SECONDS: u32 = 300;

/// Which hook an uplink gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum UplinkHook {
    /// Native XDP in front of TC where the driver has it, except on veth, where it costs offloads.
    #[default]
    Auto,
    /// TC alone.
    Tc,
    /// Native XDP in front of TC.
    Xdp,
}

impl UplinkHook {
    /// Whether a link of this kind gets XDP.
    pub fn wants_xdp(self, kind: Option<&str>) -> bool {
        match self {
            Self::Auto => kind != Some("veth"),
            Self::Tc => false,
            Self::Xdp => true,
        }
    }
}

/// How much the programs log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DataPathLog {
    Error,
    Warn,
    Info,
    Debug,
}

impl From<DataPathLog> for aya_log::Level {
    fn from(level: DataPathLog) -> Self {
        match level {
            DataPathLog::Error => Self::Error,
            DataPathLog::Warn => Self::Warn,
            DataPathLog::Info => Self::Info,
            DataPathLog::Debug => Self::Debug,
        }
    }
}

/// Flags of `vrouter agent`; each overrides the configuration file.
#[derive(Clone, Debug, Default, Args)]
pub struct AgentArgs {
    /// Node configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This node's name in the topology [default: the host name]
    #[arg(long)]
    pub node: Option<String>,
    /// Instance name: pins, socket and devices hang under it
    #[arg(long)]
    pub instance: Option<String>,
    /// Interface that reaches the other nodes; may be given more than once
    #[arg(long = "uplink", value_name = "INTERFACE")]
    pub uplinks: Vec<String>,
    /// Hook of the uplinks
    #[arg(long, value_enum)]
    pub uplink_hook: Option<UplinkHook>,
    /// Topology file, re-read when it changes
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,
    /// Where bpffs is, or is to be mounted
    #[arg(long, value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// Size of the flow table; one that is pinned keeps its own
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub flow_entries: Option<u32>,
    /// Seconds after which a flow without packets is forgotten
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub flow_idle_seconds: Option<u32>,
    /// Log what the programs decide about first packets, for developers
    #[arg(long, value_enum)]
    pub data_path_log: Option<DataPathLog>,
    /// Throw away the pinned state of this instance first: traffic stops until the topology is in force
    #[arg(long)]
    pub discard_state: bool,
}

/// The file; every key is optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: Option<String>,
    instance: Option<String>,
    uplinks: Option<Vec<String>>,
    uplink_hook: Option<UplinkHook>,
    topology: Option<PathBuf>,
    bpffs: Option<PathBuf>,
    flow_entries: Option<u32>,
    flow_idle_seconds: Option<u32>,
}

/// What the agent runs with.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    pub node: String,
    pub instance: String,
    pub uplinks: Vec<String>,
    pub uplink_hook: UplinkHook,
    pub topology: PathBuf,
    pub bpffs: PathBuf,
    pub flow_entries: u32,
    pub flow_idle_seconds: u32,
    pub data_path_log: Option<DataPathLog>,
    pub discard_state: bool,
}

impl AgentConfig {
    /// Flags over file over defaults.
    pub fn new(args: AgentArgs) -> Result<Self> {
        let file = match &args.config {
            Some(path) => read(path)?,
            None if Path::new(DEFAULT_CONFIG).exists() => read(Path::new(DEFAULT_CONFIG))?,
            None => File::default(),
        };
        let host_name = || nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
        let node = match args.node.or(file.node) {
            Some(node) => node,
            None => host_name().context("cannot read the host name; give --node")?,
        };
        Ok(Self {
            node,
            instance: args.instance.or(file.instance).unwrap_or_else(|| DEFAULT_INSTANCE.to_owned()),
            uplinks: if args.uplinks.is_empty() { file.uplinks.unwrap_or_default() } else { args.uplinks },
            uplink_hook: args.uplink_hook.or(file.uplink_hook).unwrap_or_default(),
            topology: args.topology.or(file.topology).unwrap_or_else(|| DEFAULT_TOPOLOGY.into()),
            bpffs: args.bpffs.or(file.bpffs).unwrap_or_else(|| DEFAULT_BPFFS.into()),
            flow_entries: args.flow_entries.or(file.flow_entries).unwrap_or(DEFAULT_FLOW_ENTRIES).max(1),
            flow_idle_seconds: args
                .flow_idle_seconds
                .or(file.flow_idle_seconds)
                .unwrap_or(DEFAULT_FLOW_IDLE_SECONDS)
                .max(1),
            data_path_log: args.data_path_log,
            discard_state: args.discard_state,
        })
    }

    /// Where socket and lock are.
    pub fn run_dir(&self) -> PathBuf {
        agent::run_dir(&self.instance)
    }

    /// How often idle flows are looked for.
    pub fn sweep_interval(&self) -> Duration {
        Duration::from_secs(u64::from(self.flow_idle_seconds.div_ceil(4)).clamp(1, 60))
    }
}

fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not in order", path.display()))
}
