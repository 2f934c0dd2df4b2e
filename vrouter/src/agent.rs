//! The agent: keeps what is in force equal to what is wanted.
//!
//! One task owns everything and does one thing at a time: it waits for a change (of the topology file, of
//! the kernel's links, routes or neighbours, a request, a signal), then reconciles. Nothing here is on a
//! packet's way: whatever happens to the agent, what is pinned goes on.

mod control;
mod environment;
mod flows;
pub mod next_hops;
mod source;
mod status;
mod underlay;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};
use vrouter_common::{
    tables::{Name, NameKey},
    wire::OVERLAY_OVERHEAD,
};

pub use control::ask;
pub use status::{AgentStatus, PeerStatus, PortStatus, UplinkStatus, Wanted};
pub use underlay::peer_status;

use crate::{
    banks::Banks,
    compile::{self, Compiled, Surroundings},
    config::{AgentConfig, UplinkHook},
    data_path::{self, DataPath, Hook, Pins},
    identities::Identities,
    kernel::Map,
    netlink::{Change, Link, Netlink},
    topology::{Problem, Problems, model::Topology},
};
use next_hops::{NextHops, Outside};
use source::FileSource;
use underlay::Underlays;

/// How often the topology file is looked at.
const FILE_INTERVAL: Duration = Duration::from_millis(250);
/// How often the underlay is looked at even if the kernel reported nothing.
const UNDERLAY_INTERVAL: Duration = Duration::from_secs(5);
/// Changes of links come in bursts; one round serves them all.
const SETTLE: Duration = Duration::from_millis(10);

/// Runs until a signal.
pub async fn run(config: AgentConfig) -> Result<()> {
    environment::check(&config)?;
    let run_dir = config.run_dir();
    let _lock = environment::lock(&run_dir)?;
    data_path::mount_bpffs(&config.bpffs)?;
    let pins = Pins::new(&config.bpffs, &config.instance);
    if config.discard_state {
        tracing::warn!("discarding the pinned state, as asked");
        pins.discard()?;
    }
    let (netlink, mut changes) = Netlink::new()?;
    let mut agent = Agent::start(config, pins, netlink).await?;
    let mut requests = control::listen(&run_dir, agent.status.clone())?;
    let (mut terminated, mut interrupted) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (mut files, mut underlays) = (interval(FILE_INTERVAL), interval(UNDERLAY_INTERVAL));
    let mut sweeps = interval(agent.config.sweep_interval());
    for ticks in [&mut files, &mut underlays, &mut sweeps] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
            result = &mut requests => result?,
            _ = files.tick() => agent.look_at_file().await,
            _ = underlays.tick() => agent.follow_underlay().await,
            _ = sweeps.tick() => agent.sweep().await,
            change = changes.next() => {
                let mut seen = Seen::default();
                seen.note(change.context("the netlink connection ended")?);
                tokio::time::sleep(SETTLE).await;
                while let Ok(Some(change)) = tokio::time::timeout(Duration::ZERO, changes.next()).await {
                    seen.note(change);
                }
                agent.follow_kernel(seen).await;
            }
        }
    }
    tracing::info!("stopping; what is pinned keeps forwarding");
    Ok(())
}

/// Passes on what the programs log.
async fn follow_log(mut logger: AsyncFd<aya_log::EbpfLogger<&'static dyn log::Log>>) {
    while let Ok(mut ready) = logger.readable_mut().await {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}

/// What a burst of kernel changes was about.
#[derive(Default)]
struct Seen {
    links: bool,
    underlay: bool,
    gone: Vec<u32>,
}

impl Seen {
    fn note(&mut self, change: Change) {
        match change {
            Change::Link { index, gone, .. } => {
                self.links = true;
                if gone {
                    self.gone.push(index);
                }
            }
            Change::Neighbour { .. } | Change::RouteOrAddress => self.underlay = true,
            Change::Lost => (self.links, self.underlay) = (true, true),
        }
    }
}

struct Agent {
    config: AgentConfig,
    netlink: Netlink,
    data_path: DataPath,
    banks: Banks,
    names: Map<NameKey, Name>,
    identities: Identities,
    underlays: Underlays,
    next_hops: NextHops,
    flows: flows::Sweeper,
    source: FileSource,
    topology: Option<(Topology, u64)>,
    compiled: Compiled,
    links: Vec<Link>,
    status: Arc<Mutex<AgentStatus>>,
    /// The same complaint is logged once, until it changes.
    logged: HashMap<String, String>,
}

impl Agent {
    async fn start(config: AgentConfig, pins: Pins, netlink: Netlink) -> Result<Self> {
        let links = netlink.links().await?;
        environment::check_uplinks(&config, &links)?;
        let mut data_path =
            DataPath::load_with_log(pins.clone(), config.flow_entries, config.data_path_log.map(Into::into))?;
        if config.data_path_log.is_some() {
            #[expect(deprecated, reason = "its successor needs AsFd, which aya-log 0.3 does not offer")]
            let logger = AsyncFd::with_interest(data_path.logger()?, Interest::READABLE)?;
            tokio::task::spawn_local(follow_log(logger));
        }
        let maps = pins.maps();
        let banks = Banks::open(&maps)?;
        let names = Map::open(&maps, "NAMES")?;
        let identities = Identities::read(&names)?;
        let underlays = Underlays::open(&maps)?;
        let flows = flows::Sweeper::open(&pins, config.flow_idle_seconds)?;
        let source = FileSource::new(config.topology.clone());
        let status = Arc::new(Mutex::new(AgentStatus::new(&config)));
        let told = status.clone();
        let next_hops = NextHops::start(
            &pins,
            Outside::of(banks.in_force(), banks.commit()),
            Arc::new(move |next_hops| status::lock(&told).next_hops = next_hops.clone()),
        )?;
        let commit = banks.commit();
        tracing::info!(
            node = %config.node, instance = %config.instance, epoch = commit.epoch, pins = %pins.root().display(),
            "data path loaded"
        );
        let mut agent = Self {
            config,
            netlink,
            data_path,
            banks,
            names,
            identities,
            underlays,
            next_hops,
            flows,
            source,
            topology: None,
            compiled: Compiled::default(),
            links,
            status,
            logged: HashMap::new(),
        };
        agent.attach();
        Ok(agent)
    }

    /// Reads the file if it changed; what is in force stays so if it is not in order.
    async fn look_at_file(&mut self) {
        let Some(read) = self.source.poll() else { return };
        let digest = read.digest;
        let outcome = read.topology.and_then(|topology| self.fits_node(&topology).map(|()| topology));
        match outcome {
            Ok(topology) => {
                tracing::info!(file = %self.config.topology.display(), digest = %format!("{digest:016x}"), "topology read");
                for warning in not_enforced(&topology) {
                    tracing::warn!("{warning}");
                }
                self.topology = Some((topology, digest));
                self.set_wanted(digest, Vec::new());
                self.reconcile().await;
            }
            Err(problems) => {
                tracing::error!("topology refused; what is in force stays in force\n{problems}");
                self.set_wanted(digest, problems.iter().cloned().collect());
            }
        }
    }

    fn set_wanted(&self, digest: u64, problems: Vec<Problem>) {
        let warnings = self.topology.as_ref().map(|(topology, _)| not_enforced(topology)).unwrap_or_default();
        let mut status = status::lock(&self.status);
        status.wanted = Some(Wanted { digest: format!("{digest:016x}"), problems, warnings });
    }

    /// What a document in order may still ask of this node that it cannot give.
    fn fits_node(&self, topology: &Topology) -> Result<(), Problems> {
        let mut problems = Problems::new(&self.config.topology.display().to_string());
        if !topology.nodes.iter().any(|node| node.name == self.config.node) {
            let known: Vec<_> = topology.nodes.iter().map(|node| node.name.as_str()).collect();
            problems.push(
                0,
                format!("node {}", self.config.node),
                "this node is not in the topology",
                format!(
                    "add it under nodes, or start the agent with --node set to one of: {}",
                    known.join(", ")
                ),
            );
        }
        for port in topology.ports.iter().filter(|port| port.node.as_ref() == Some(&self.config.node)) {
            if let Some(interface) = port.interface.as_ref().filter(|name| self.config.uplinks.contains(name))
            {
                problems.push(
                    port.line,
                    format!("port {}", port.name),
                    format!("interface {interface} is this node's uplink"),
                    "name the interface of the workload, or another --uplink",
                );
            }
        }
        let most = self.underlay_mtu().saturating_sub(u32::from(OVERLAY_OVERHEAD));
        for network in topology.networks.iter().filter(|network| !network.external) {
            if let Some(mtu) = network.mtu.map(u32::from).filter(|&mtu| mtu > most) {
                problems.push(
                    network.line,
                    format!("network {}", network.name),
                    format!(
                        "mtu {mtu} does not fit the overlay: the uplink carries {} bytes, encapsulation takes {OVERLAY_OVERHEAD}",
                        self.underlay_mtu()
                    ),
                    format!("lower the network's mtu to {most}, or raise the uplink's to {}", mtu + u32::from(OVERLAY_OVERHEAD)),
                );
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    fn underlay_mtu(&self) -> u32 {
        let uplinks = self.links.iter().filter(|link| self.config.uplinks.contains(&link.name));
        uplinks.map(|link| link.mtu).min().unwrap_or(1500)
    }

    async fn follow_kernel(&mut self, seen: Seen) {
        for index in seen.gone {
            self.data_path.forget(index);
        }
        if seen.links {
            match self.netlink.links().await {
                Ok(links) => self.links = links,
                Err(error) => return tracing::error!("cannot list interfaces: {error:#}"),
            }
            self.reconcile().await;
        } else if seen.underlay {
            self.follow_underlay().await;
        }
    }

    async fn follow_underlay(&mut self) {
        match self
            .underlays
            .follow(&self.netlink, &self.compiled, &self.links, self.data_path.attached())
            .await
        {
            Ok(true) => self.commit(true).await,
            Ok(false) => {}
            Err(error) => self.complain("underlay", format!("cannot follow the underlay: {error:#}")),
        }
        status::lock(&self.status).peers = self.underlays.status(&self.identities);
        if let Err(error) = self.next_hops.ensure() {
            self.complain("next hops", format!("cannot look after next hops: {error:#}"));
        }
    }

    /// Attaches, then compiles and commits.
    async fn reconcile(&mut self) {
        self.commit(false).await;
        self.follow_underlay().await;
    }

    async fn commit(&mut self, touch_all: bool) {
        let Some((topology, digest)) = &self.topology else {
            self.attach();
            return;
        };
        let around = Surroundings {
            node: self.config.node.clone(),
            interfaces: self.links.iter().map(|link| (link.name.clone(), link.index)).collect(),
            underlay_mtu: self.underlay_mtu(),
        };
        let mut identities = self.identities.clone();
        let compiled = match compile::compile(topology, &around, &mut identities) {
            Ok(compiled) => compiled,
            Err(error) => return tracing::error!("cannot compile the topology: {error:#}"),
        };
        let digest = *digest;
        self.compiled = compiled;
        self.attach();
        if let Err(error) = self.program(identities, digest, touch_all) {
            tracing::error!("cannot bring the topology in force; what was in force stays: {error:#}");
            status::lock(&self.status).error = Some(format!("{error:#}"));
        }
    }

    fn program(&mut self, mut identities: Identities, digest: u64, touch_all: bool) -> Result<()> {
        // Names first, so that whatever a bank mentions has one; what is gone is forgotten only when no
        // bank mentions it.
        identities.write(&self.identities, &self.names)?;
        self.identities = identities.clone();
        let vtep = self.compiled.vtep.map_or(0, |vtep| vtep.to_bits());
        let applied =
            self.banks.apply(self.compiled.image.clone(), self.compiled.node, vtep, digest, touch_all)?;
        identities.retain(&self.compiled.used);
        identities.write(&self.identities, &self.names)?;
        self.identities = identities;
        if applied.writes > 0 {
            tracing::info!(
                epoch = applied.epoch,
                writes = applied.writes,
                networks = applied.networks,
                "topology in force"
            );
        }
        self.next_hops.follow(Outside::of(self.banks.in_force(), self.banks.commit()));
        status::lock(&self.status).error = None;
        Ok(())
    }

    /// Makes the attachments what they have to be.
    fn attach(&mut self) {
        let by_name: HashMap<&str, &Link> =
            self.links.iter().map(|link| (link.name.as_str(), link)).collect();
        let mut wanted = BTreeMap::new();
        let mut uplinks = Vec::new();
        for name in &self.config.uplinks {
            let Some(link) = by_name.get(name.as_str()) else {
                uplinks.push(UplinkStatus::missing(name));
                continue;
            };
            wanted.insert((link.index, Hook::TcUplink), name.clone());
            let xdp = self.config.uplink_hook.wants_xdp(link.kind.as_deref());
            if xdp {
                wanted.insert((link.index, Hook::XdpUplink), name.clone());
            }
            uplinks.push(UplinkStatus::new(link));
        }
        // Before the first topology: keep what earlier agents attached.
        if self.topology.is_none() {
            for &(ifindex, hook) in self.data_path.attached() {
                wanted.entry((ifindex, hook)).or_default();
            }
        }
        for port in &self.compiled.local_ports {
            let Some(ifindex) = port.ifindex else { continue };
            wanted.insert((ifindex, Hook::TcPort), port.interface.clone());
            if port.xdp {
                wanted.insert((ifindex, Hook::XdpPort), port.interface.clone());
            }
        }
        let problems = self.data_path.attach(&wanted);
        for (name, hook, error) in problems {
            let text = match hook {
                Hook::XdpUplink if self.config.uplink_hook == UplinkHook::Auto => {
                    format!(
                        "{name} has no native XDP ({error:#}): using TC alone, which is slower for small packets"
                    )
                }
                Hook::XdpUplink | Hook::XdpPort => format!(
                    "{name} has no native XDP ({error:#}): using TC alone; ask for hook tc, or use a driver with native XDP"
                ),
                _ => format!("cannot attach to {name}: {error:#}"),
            };
            if let Some(uplink) = uplinks.iter_mut().find(|uplink| uplink.name == name) {
                // Nobody asked for it to be otherwise.
                let is_default = hook == Hook::XdpUplink && self.config.uplink_hook == UplinkHook::Auto;
                *(if is_default { &mut uplink.warning } else { &mut uplink.note }) = Some(text.clone());
            }
            self.complain(&format!("{name}{hook:?}"), text);
        }
        for uplink in &mut uplinks {
            let attached = self.data_path.attached();
            uplink.xdp = uplink.ifindex.is_some_and(|ifindex| attached.contains(&(ifindex, Hook::XdpUplink)));
        }
        let ports: Vec<_> = self.compiled.local_ports.iter().map(PortStatus::from).collect();
        for port in ports.iter().filter(|port| port.ifindex.is_none()) {
            self.complain(
                &format!("port {}", port.name),
                format!(
                    "port {}: interface {} does not exist here yet; it is attached when it appears",
                    port.name, port.interface
                ),
            );
        }
        for port in ports.iter().filter(|port| port.ifindex.is_some()) {
            self.logged.remove(&format!("port {}", port.name));
        }
        let mut status = status::lock(&self.status);
        status.ports = ports;
        status.uplinks = uplinks;
    }

    async fn sweep(&mut self) {
        if let Err(error) = self.flows.sweep().await {
            self.complain("sweep", format!("cannot expire flows: {error:#}"));
        }
    }

    fn complain(&mut self, about: &str, text: String) {
        if self.logged.get(about) != Some(&text) {
            tracing::warn!("{text}");
            self.logged.insert(about.to_owned(), text);
        }
    }
}

/// Parts of a topology that are read and checked, but that this version does not act on.
fn not_enforced(topology: &Topology) -> Vec<String> {
    let mut warnings = Vec::new();
    if topology.ports.iter().any(|port| !port.security_groups.is_empty()) {
        warnings.push(
            "security groups are not enforced by this version: every port accepts everything".to_owned(),
        );
    }
    if topology.routers.iter().any(|router| router.gateway.is_some()) {
        warnings
            .push("router gateways (external networks, SNAT) are not acted on by this version".to_owned());
    }
    if !topology.floating_ips.is_empty() {
        warnings.push("floating IPs are not acted on by this version".to_owned());
    }
    if topology.routers.iter().flat_map(|router| &router.routes).any(|route| {
        matches!(&route.target, crate::topology::model::RouteTarget::Nexthops(nexthops) if nexthops.len() > 1)
    }) {
        warnings.push("of several next hops only the first is used by this version (no ECMP yet)".to_owned());
    }
    warnings
}

/// The directory of an instance's socket and lock.
pub fn run_dir(instance: &str) -> PathBuf {
    PathBuf::from("/run/vrouter").join(instance)
}

/// Refuses names that would leave the directories they are part of.
pub fn check_instance(instance: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if instance.is_empty() || instance.len() > 64 || instance.starts_with('.') || !instance.chars().all(plain)
    {
        bail!(
            "instance {instance:?}: use 1 to 64 letters, digits, dashes, dots and underscores, not starting with a dot"
        );
    }
    Ok(())
}
