//! Node configuration: `/etc/vrouter/node.toml`, flags on top of it.

use std::{
    collections::{BTreeMap, HashSet},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use vrouter_common::tables::EXTERNALS_MAX;

use crate::{
    agent::{
        self,
        records::Target,
        services::metadata::config::{MetadataArgs, MetadataConfig, MetadataTable},
    },
    connections::{Timeout, Timeouts, timeouts::parse_assignment},
    store::{StoreArgs, StoreConfig, config::StoreTable},
};

/// Where the configuration is unless told otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/vrouter/node.toml";
/// The instance unless told otherwise.
pub const DEFAULT_INSTANCE: &str = "default";
/// bpffs unless told otherwise.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
const DEFAULT_STATE_DIR: &str = "/var/lib/vrouter";
const DEFAULT_TOPOLOGY: &str = "/etc/vrouter/topology.yaml";
/// nf_conntrack's default on a machine of 16 GiB.
const DEFAULT_FLOW_ENTRIES: u32 = 262_144;
const DEFAULT_FLOW_IDLE_SECONDS: u32 = 300;
const DEFAULT_GATEWAY_PROBE_MS: u32 = 200;
/// Whoever may log in may read them; others ask a proxy.
const DEFAULT_METRICS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9476));

/// Which hook an uplink or an external interface gets.
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
    /// Interface on an external network of the topology; may be given more than once. The network may be left
    /// out while the topology has just one
    #[arg(long = "external", value_name = "NETWORK=INTERFACE")]
    pub externals: Vec<String>,
    /// Hook of the external interfaces
    #[arg(long, value_enum)]
    pub external_hook: Option<UplinkHook>,
    /// Topology file, re-read when it changes
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,
    /// Where the last good topology is kept if it comes from etcd [default: /var/lib/vrouter]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    #[command(flatten)]
    pub store: StoreArgs,
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
    /// Milliseconds between two questions to a gateway whether it carries for this node; it is taken for dead after
    /// three without an answer [default: 200]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(10..=60_000))]
    pub gateway_probe_ms: Option<u32>,
    /// Where FRR's daemons listen to vtysh, if not where Debian's do; asked how BGP is on routed external networks
    #[arg(long, value_name = "DIR")]
    pub frr_sockets: Option<PathBuf>,
    /// Where Prometheus finds metrics: ADDRESS:PORT, or `off` [default: 127.0.0.1:9476]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_metrics)]
    pub metrics: Option<Metrics>,
    /// Where a JSON line goes for each connection that ended: a file's absolute path, or udp:ADDRESS:PORT
    #[arg(long, value_name = "TARGET")]
    pub flow_records: Option<Target>,
    #[command(flatten)]
    pub metadata: MetadataArgs,
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
    externals: Option<Externals>,
    external_hook: Option<UplinkHook>,
    topology: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    etcd: Option<StoreTable>,
    bpffs: Option<PathBuf>,
    flow_entries: Option<u32>,
    flow_idle_seconds: Option<u32>,
    timeouts: Option<Timeouts>,
    gateway_probe_ms: Option<u32>,
    frr_sockets: Option<PathBuf>,
    metrics: Option<Metrics>,
    flow_records: Option<Target>,
    metadata: Option<MetadataTable>,
}

/// Where metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Metrics {
    Off,
    At(SocketAddr),
}

impl TryFrom<String> for Metrics {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse_metrics(&text)
    }
}

fn parse_metrics(text: &str) -> Result<Metrics, String> {
    match text {
        "off" => Ok(Metrics::Off),
        _ => text.parse().map(Metrics::At).map_err(|_| {
            format!("{text} is not ADDRESS:PORT, like 127.0.0.1:9476 or [::1]:9476, and not `off`")
        }),
    }
}

/// `{ public = "eth1" }`, or a list as the flags take it.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "externals: write a table, like { public = \"eth1\" }, or a list, like [\"public=eth1\"]"
)]
enum Externals {
    ByNetwork(BTreeMap<String, String>),
    List(Vec<String>),
}

/// An interface of this node on an external network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalConfig {
    /// `None`: the topology's only one.
    pub network: Option<String>,
    pub interface: String,
}

/// What the agent runs with.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    pub node: String,
    pub instance: String,
    pub uplinks: Vec<String>,
    pub uplink_hook: UplinkHook,
    pub externals: Vec<ExternalConfig>,
    pub external_hook: UplinkHook,
    pub topology: PathBuf,
    /// etcd, instead of the file.
    pub store: Option<StoreConfig>,
    pub state_dir: PathBuf,
    pub bpffs: PathBuf,
    pub flow_entries: u32,
    pub flow_idle_seconds: u32,
    pub timeouts: Timeouts,
    /// Between two questions to a gateway.
    pub gateway_probe: Duration,
    pub frr_sockets: Option<PathBuf>,
    /// `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// `None`: connections that ended are forgotten.
    pub flow_records: Option<Target>,
    /// `None`: no metadata is served.
    pub metadata: Option<MetadataConfig>,
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
        let uplinks = if args.uplinks.is_empty() { file.uplinks.unwrap_or_default() } else { args.uplinks };
        let externals = match file.externals {
            _ if !args.externals.is_empty() => read_externals(&args.externals)?,
            Some(Externals::List(list)) => read_externals(&list)?,
            Some(Externals::ByNetwork(by_network)) => by_network
                .into_iter()
                .map(|(network, interface)| ExternalConfig { network: Some(network), interface })
                .collect(),
            None => Vec::new(),
        };
        check_externals(&externals, &uplinks)?;
        // A file that is asked for on the command line is what is wanted, whatever the configuration names.
        let table =
            if args.topology.is_some() { StoreTable::default() } else { file.etcd.unwrap_or_default() };
        let store = StoreConfig::new(args.store, table)?;
        if store.is_some() && (args.topology.is_some() || file.topology.is_some()) {
            bail!("the topology is to come from a file and from etcd: keep `topology`, or `etcd`");
        }
        Ok(Self {
            node,
            instance: args.instance.or(file.instance).unwrap_or_else(|| DEFAULT_INSTANCE.to_owned()),
            uplinks,
            uplink_hook: args.uplink_hook.or(file.uplink_hook).unwrap_or_default(),
            externals,
            external_hook: args.external_hook.or(file.external_hook).unwrap_or_default(),
            topology: args.topology.or(file.topology).unwrap_or_else(|| DEFAULT_TOPOLOGY.into()),
            store,
            state_dir: args.state_dir.or(file.state_dir).unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
            bpffs: args.bpffs.or(file.bpffs).unwrap_or_else(|| DEFAULT_BPFFS.into()),
            flow_entries: args.flow_entries.or(file.flow_entries).unwrap_or(DEFAULT_FLOW_ENTRIES).max(1),
            flow_idle_seconds: args
                .flow_idle_seconds
                .or(file.flow_idle_seconds)
                .unwrap_or(DEFAULT_FLOW_IDLE_SECONDS)
                .max(1),
            timeouts: file.timeouts.unwrap_or_default().with(&args.timeouts),
            gateway_probe: Duration::from_millis(u64::from(
                args.gateway_probe_ms
                    .or(file.gateway_probe_ms)
                    .unwrap_or(DEFAULT_GATEWAY_PROBE_MS)
                    .clamp(10, 60_000),
            )),
            frr_sockets: args.frr_sockets.or(file.frr_sockets),
            metrics: match args.metrics.or(file.metrics).unwrap_or(Metrics::At(DEFAULT_METRICS)) {
                Metrics::Off => None,
                Metrics::At(address) => Some(address),
            },
            flow_records: args.flow_records.or(file.flow_records),
            metadata: MetadataConfig::new(args.metadata, file.metadata.unwrap_or_default())?,
            data_path_log: args.data_path_log,
            discard_state: args.discard_state,
        })
    }

    /// Where the topology comes from, in words.
    pub fn origin(&self) -> String {
        match &self.store {
            Some(store) => format!("etcd at {}", store.endpoints.join(", ")),
            None => self.topology.display().to_string(),
        }
    }

    /// Where socket and lock are.
    pub fn run_dir(&self) -> PathBuf {
        agent::run_dir(&self.instance)
    }
}

/// What commands need to speak to etcd: flags over the table `[etcd]` of a configuration file; and the node's name.
pub fn store(args: StoreArgs, config: Option<&Path>) -> Result<(StoreConfig, Option<String>)> {
    let file = of_commands(config)?;
    match StoreConfig::new(args, file.etcd.unwrap_or_default())? {
        Some(store) => Ok((store, file.node)),
        None => bail!(
            "no etcd is named: give --etcd https://HOST:2379, or write `[etcd] endpoints = [...]` to {DEFAULT_CONFIG}. A \
             topology in a file is changed by editing the file: the agents follow it"
        ),
    }
}

/// The same for commands that can do without etcd.
pub fn store_if_any(args: StoreArgs, config: Option<&Path>) -> Result<Option<StoreConfig>> {
    StoreConfig::new(args, of_commands(config)?.etcd.unwrap_or_default())
}

fn of_commands(config: Option<&Path>) -> Result<File> {
    match config {
        Some(path) => read(path),
        None if Path::new(DEFAULT_CONFIG).exists() => read(Path::new(DEFAULT_CONFIG)),
        None => Ok(File::default()),
    }
}

/// Timeouts and idle seconds as an agent would be configured that is started without flags: for commands that
/// find none running.
pub fn timeouts_of_file() -> (Timeouts, u32) {
    let file = read(Path::new(DEFAULT_CONFIG)).unwrap_or_default();
    (file.timeouts.unwrap_or_default(), file.flow_idle_seconds.unwrap_or(DEFAULT_FLOW_IDLE_SECONDS).max(1))
}

fn read_externals(texts: &[String]) -> Result<Vec<ExternalConfig>> {
    let mut externals = Vec::new();
    for text in texts {
        // Of the two names only a network's may hold the sign, as far as people are concerned.
        let (network, interface) = match text.rsplit_once('=') {
            Some((network, interface)) => (Some(network.to_owned()), interface),
            None => (None, text.as_str()),
        };
        if interface.is_empty() || network.as_ref().is_some_and(String::is_empty) {
            bail!("external interface {text:?}: write NETWORK=INTERFACE, like --external public=eth1");
        }
        externals.push(ExternalConfig { network, interface: interface.to_owned() });
    }
    Ok(externals)
}

/// Refuses what no topology can make right.
fn check_externals(externals: &[ExternalConfig], uplinks: &[String]) -> Result<()> {
    if externals.len() > EXTERNALS_MAX {
        bail!(
            "{} external interfaces are given, a node can have {EXTERNALS_MAX}: leave some out, or use more nodes",
            externals.len()
        );
    }
    let (mut networks, mut interfaces) = (HashSet::new(), HashSet::new());
    for ExternalConfig { network, interface } in externals {
        if interface.is_empty() || interface.len() > 15 || interface.contains(['/', ' ']) {
            bail!(
                "external interface {interface:?} cannot be an interface's name: write it as `ip link` shows it"
            );
        }
        if uplinks.contains(interface) {
            bail!(
                "interface {interface} is both an uplink and an external interface: use another for one of them; a VLAN of \
                 it will do (`ip link add link {interface} name {interface}.100 type vlan id 100`)"
            );
        }
        if !interfaces.insert(interface) {
            bail!("interface {interface} is given twice as an external interface: give each network its own");
        }
        if !networks.insert(network) {
            match network {
                Some(network) => {
                    bail!("external network {network} is given two interfaces: keep one of them")
                }
                None => bail!(
                    "of two external interfaces each must say its network: write --external NETWORK={interface}"
                ),
            }
        }
    }
    if externals.len() > 1
        && let Some(unnamed) = externals.iter().find(|external| external.network.is_none())
    {
        bail!(
            "of two external interfaces each must say its network: write --external NETWORK={}",
            unnamed.interface
        );
    }
    Ok(())
}

fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not in order", path.display()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The externals of a configuration file and of flags.
    fn externals(file: &str, flags: &[&str]) -> Result<Vec<(Option<String>, String)>> {
        let directory = tempfile::tempdir()?;
        let config = directory.path().join("node.toml");
        std::fs::write(&config, format!("uplinks = [\"eth0\"]\n{file}"))?;
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        let args = AgentArgs { config: Some(config), externals: flags, ..AgentArgs::default() };
        let config = AgentConfig::new(args)?;
        Ok(config.externals.into_iter().map(|external| (external.network, external.interface)).collect())
    }

    fn named(network: &str, interface: &str) -> (Option<String>, String) {
        (Some(network.to_owned()), interface.to_owned())
    }

    #[test]
    fn externals_are_read_from_tables_lists_and_flags() {
        let read = |file, flags: &[&str]| externals(file, flags).unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(read("", &[]), []);
        let table = "externals = { public = \"eth1\", lab = \"eth2\" }";
        assert_eq!(read(table, &[]), [named("lab", "eth2"), named("public", "eth1")]);
        assert_eq!(read("externals = [\"public=eth1\"]", &[]), [named("public", "eth1")]);
        assert_eq!(read("externals = [\"eth1\"]", &[]), [(None, "eth1".to_owned())]);
        assert_eq!(read(table, &["a=b=eth3"]), [named("a=b", "eth3")], "flags replace the file's");
        assert_eq!(read("external_hook = \"xdp\"", &["eth1"]), [(None, "eth1".to_owned())]);
    }

    #[test]
    fn externals_that_cannot_be_are_refused() {
        let nine: Vec<String> = (0..9).map(|i| format!("net{i}=eth{i}0")).collect();
        let nine: Vec<&str> = nine.iter().map(String::as_str).collect();
        for (file, flags, words) in [
            ("", &["public="][..], "NETWORK=INTERFACE"),
            ("", &["=eth1"], "NETWORK=INTERFACE"),
            ("", &["public=eth0"], "eth0 is both an uplink and an external interface"),
            ("", &["a=eth1", "b=eth1"], "eth1 is given twice"),
            ("", &["a=eth1", "a=eth2"], "external network a is given two interfaces"),
            ("", &["eth1", "eth2"], "--external NETWORK=eth2"),
            ("", &["a=eth1", "eth2"], "--external NETWORK=eth2"),
            ("", &["a=an-interface-too-long"], "ip link"),
            ("", &nine, "9 external interfaces are given, a node can have 8"),
            ("externals = 7", &[], "write a table, like { public"),
            ("externals = { public = [\"eth1\"] }", &[], "write a table"),
            ("externals = { public = \"eth0\" }", &[], "both an uplink and"),
            ("external = { public = \"eth1\" }", &[], "unknown field `external`"),
        ] {
            let Err(error) = externals(file, flags) else { panic!("{file} {flags:?}: accepted") };
            let error = format!("{error:#}");
            assert!(error.contains(words), "{file} {flags:?}: no {words:?} in {error}");
        }
    }

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
