//! Node configuration: `/etc/vrouter/node.toml`, flags on top of it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::{
    agent,
    connections::{Timeout, Timeouts, timeouts::parse_assignment},
};

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
    /// Seconds after which a remembered decision (a flow of no connection) without packets is forgotten
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub flow_idle_seconds: Option<u32>,
    /// How long a silent connection is kept, by state, as in tcp_established=86400; may be given more than once
    #[arg(long = "timeout", value_name = "NAME=SECONDS", value_parser = parse_assignment)]
    pub timeouts: Vec<(Timeout, u32)>,
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
    timeouts: Option<Timeouts>,
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
    pub timeouts: Timeouts,
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
            timeouts: file.timeouts.unwrap_or_default().with(&args.timeouts),
            data_path_log: args.data_path_log,
            discard_state: args.discard_state,
        })
    }

    /// Where socket and lock are.
    pub fn run_dir(&self) -> PathBuf {
        agent::run_dir(&self.instance)
    }
}

/// Timeouts and idle seconds as an agent would be configured that is started without flags: for commands that
/// find none running.
pub fn timeouts_of_file() -> (Timeouts, u32) {
    let file = read(Path::new(DEFAULT_CONFIG)).unwrap_or_default();
    (file.timeouts.unwrap_or_default(), file.flow_idle_seconds.unwrap_or(DEFAULT_FLOW_IDLE_SECONDS).max(1))
}

fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not in order", path.display()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timeouts_come_from_the_file_and_flags_go_over_them() {
        let file: File =
            toml::from_str("[timeouts]\ntcp_established = 3600\nudp = 10").expect("a file in order");
        let timeouts = file.timeouts.expect("timeouts").with(&[parse_assignment("udp=20").expect("a flag")]);
        for (timeout, seconds) in
            [(Timeout::TcpEstablished, 3600), (Timeout::Udp, 20), (Timeout::TcpTimeWait, 120)]
        {
            assert_eq!(timeouts.get(timeout), Duration::from_secs(seconds), "{timeout}");
        }
    }

    #[test]
    fn the_packaged_file_shows_every_timeout_with_its_default() {
        let packaged = include_str!("../../packaging/node.toml");
        // What is commented out without a space is an example.
        let lines = packaged.lines().map(|line| match line.strip_prefix('#') {
            Some(example) if !example.starts_with(' ') => example,
            _ => line,
        });
        let file: File = toml::from_str(&lines.collect::<Vec<_>>().join("\n")).expect("examples in order");
        assert_eq!(file.timeouts, Some(Timeouts::default()));
        for timeout in Timeout::ALL {
            assert!(packaged.contains(&format!("\n#{timeout} = ")), "{timeout}");
        }
    }

    #[test]
    fn a_timeout_that_is_none_is_refused_with_its_place_and_what_there_is() {
        for (text, complaints) in [
            (
                "[timeouts]\ntcp_estab = 1",
                &["line 2", "there is no timeout \"tcp_estab\"", "tcp_established"][..],
            ),
            ("[timeouts]\nudp = 1\nicmp = 0", &["line 3", "0 is no timeout", "1 to 2592000"]),
            ("[timeouts]\nudp = -5", &["line 2", "-5 is no timeout"]),
            ("[timeouts]\nudp = 99999999999", &["line 2", "99999999999 is no timeout"]),
            ("[timeouts]\nudp = \"10\"", &["line 2", "invalid type"]),
            ("timeouts = 5", &["line 1", "invalid type"]),
        ] {
            let error = toml::from_str::<File>(text).expect_err(text).to_string();
            for complaint in complaints {
                assert!(error.contains(complaint), "{text}: {error}");
            }
        }
        for (text, complaint) in [
            ("udp", "NAME=SECONDS"),
            ("udp=", "not a whole number"),
            ("udp=1.5", "not a whole number"),
            ("udp=0", "udp: 0 is no timeout"),
            ("tcp=5", "there is no timeout \"tcp\""),
            ("generic=2592001", "generic: 2592001 is no timeout"),
        ] {
            let error = parse_assignment(text).expect_err(text);
            assert!(error.contains(complaint), "{text}: {error}");
        }
        assert_eq!(parse_assignment("generic = 2592000"), Ok((Timeout::Generic, 2_592_000)));
    }
}
