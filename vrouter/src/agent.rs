//! The agent: keeps what is in force equal to what is wanted.
//!
//! One task owns everything and does one thing at a time: it waits for a change (of the topology file, of
//! the kernel's links, routes or neighbours, a request, a signal), then reconciles. Nothing here is on a
//! packet's way: whatever happens to the agent, what is pinned goes on.

pub mod bgp;
mod control;
pub mod edge;
mod environment;
pub mod external;
mod flows;
mod frame_socket;
pub mod health;
pub mod metrics;
mod ports;
pub mod records;
pub mod services;
mod source;
mod status;
mod surroundings;
mod underlay;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use vrouter_common::{
    tables::{
        self, EXTERNAL_FRAMES, EXTERNALS_MAX, Learned, LearnedKey, MasterKey, NAME_ROUTER, Name, NameKey,
    },
    wire::OVERLAY_OVERHEAD,
};

pub use control::ask;
pub use environment::lock_file;
pub use flows::{FlowsStatus, Pressure, Sweeper};
pub use status::{AgentStatus, ExternalStatus, PeerStatus, PortStatus, UplinkStatus, Wanted};
pub use underlay::peer_status;

use crate::{
    banks::{Banks, Published, Touch},
    compile::{self, Compiled, ExternalInterface, Liveness, LocalPort, Surroundings},
    config::{AgentConfig, ExternalConfig, UplinkHook},
    counters::Balanced,
    data_path::{self, DataPath, Hook, Pins},
    identities::Identities,
    kernel::Map,
    netlink::{Change, Link, Netlink},
    store::{follow::Report, report::PortState},
    topology::{
        Problem, Problems,
        model::{Network, Topology},
    },
};
use edge::Edge;
use external::{External, Outside};
use health::Health;
use ports::Ports;
use services::Services;
use source::{Read, Source};
use underlay::Underlays;

/// How often the underlay is looked at even if the kernel reported nothing.
const UNDERLAY_INTERVAL: Duration = Duration::from_secs(5);
/// Changes of links come in bursts; one round serves them all.
const SETTLE: Duration = Duration::from_millis(10);
/// Without a change for so long the next one is prepared.
const CALM: Duration = Duration::from_millis(100);
/// How long routes are used that the routing daemon has taken back, all of them.
const UNLEARNED: Duration = Duration::from_secs(3);

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
    let mut source = Source::of(&agent.config)?;
    if let Some(address) = agent.config.metrics {
        let (status, instance) = (agent.status.clone(), agent.config.instance.clone());
        let pins = Pins::new(&agent.config.bpffs, &instance);
        metrics::start(address, metrics::Source { status, pins, instance })?;
    }
    if let Source::Store(follower) = &source {
        status::lock(&agent.status).store = Some(follower.link());
        agent.report = Some(follower.report.clone());
        agent.ports = Some(Ports::new(follower.claims.clone(), follower.holders.clone()));
    }
    let mut moves = agent.external.moves();
    let mut held = agent.ports.as_ref().map(Ports::holders);
    let mut health = agent.health.changes();
    let (mut found, mut failed) = (agent.edge.found(), agent.external.failed());
    let mut requests = control::listen(&run_dir, agent.status.clone(), agent.services.served())?;
    let (mut terminated, mut interrupted) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut underlays = interval(UNDERLAY_INTERVAL);
    underlays.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut daemons = interval(bgp::ASK_INTERVAL);
    daemons.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
            result = &mut requests => result?,
            read = source.next() => agent.take(read).await,
            _ = underlays.tick() => agent.follow_underlay().await,
            _ = daemons.tick() => agent.ask_daemon(),
            _ = tokio::time::sleep_until(agent.flows.due().into()) => {
                if agent.sweep() {
                    agent.claim().await;
                }
            }
            () = agent.calm() => agent.even_out(),
            networks = moves.next() => agent.commit(&Touch::Networks(networks)).await,
            Ok(()) = found.changed() => {
                let found = found.borrow_and_update().clone();
                agent.follow_found(found).await;
            }
            () = health.next() => agent.follow_health().await,
            () = Ports::changed(&mut held) => agent.follow_holders().await,
            Ok(()) = failed.changed() => {
                let failed = failed.borrow_and_update().clone();
                agent.follow_failed(&failed).await;
            }
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
    agent.edge.stop();
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
    /// What load balancers have counted.
    balanced: Balanced,
    underlays: Underlays,
    flows: flows::Sweeper,
    external: External,
    edge: Edge,
    health: Health,
    services: Services,
    /// Who claims what the topology leaves open.
    learned: Map<LearnedKey, Learned>,
    topology: Option<(Arc<Topology>, u64)>,
    /// Whether what is announced was made what it has to be.
    announced_once: bool,
    /// When what was brought in force last is written to the bank that is not in force, if it was not yet.
    even_out_at: Option<Instant>,
    /// The digest of what was brought in force last.
    programmed: Option<u64>,
    /// Ports of routers' addresses, where they are leased.
    ports: Option<Ports>,
    /// What others are told of this node, where there is somebody to tell it to.
    report: Option<watch::Sender<Report>>,
    /// What is in force. What could not be brought in force is not here.
    compiled: Compiled,
    /// What is known of gateways and next hops.
    liveness: Liveness,
    /// Virtual routers of which another is the master now, while this node still carries what comes.
    lingering: BTreeSet<MasterKey>,
    /// What a routing daemon has learned on routed external networks.
    learned_routes: bgp::Learned,
    /// Networks of which nothing is learned any more, and since when: the daemon died, or lost its neighbours. Until
    /// everybody goes another way, what was learned last is used.
    unlearned: BTreeMap<String, Instant>,
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
        let balanced = Balanced::open(&maps)?;
        let underlays = Underlays::open(&maps)?;
        let mut flows = flows::Sweeper::open(&pins, config.timeouts.clone(), config.flow_idle_seconds)?;
        if let Some(target) = config.flow_records.clone() {
            flows.keep_records(records::Records::start(target, config.node.clone(), &pins)?);
        }
        let learned = Map::open(&maps, "LEARNED")?;
        let found = Outside::of(banks.in_force(), banks.commit(), &held(&learned)?, &BTreeSet::new());
        let status = Arc::new(Mutex::new(AgentStatus::new(&config)));
        let told = status.clone();
        let tell = Arc::new(move |next_hops: &_| status::lock(&told).next_hops = Clone::clone(next_hops));
        let told = status.clone();
        let edge = Edge::start(&pins, Arc::new(move |edge| status::lock(&told).edge = edge))?;
        let external = External::start(&pins, found, edge.found(), tell)?;
        let told = status.clone();
        let tell = Arc::new(move |members, unsent| {
            let health = &mut status::lock(&told).health;
            (health.members, health.unsent) = (members, unsent);
        });
        let is_in_force = banks.commit().epoch != 0;
        let health = Health::start(&config, config.run_dir().join("health.json"), is_in_force, tell)?;
        let (tally, counts) = {
            let status = status::lock(&status);
            (status.services.clone(), status.metadata.clone())
        };
        let metadata = config.metadata.clone().zip(counts);
        let metadata = metadata.map(|(config, tally)| services::metadata::Setup { config, tally });
        let services = Services::start(&pins, tally, health.ear(), metadata)?;
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
            balanced,
            underlays,
            flows,
            external,
            edge,
            health,
            services,
            learned,
            topology: None,
            announced_once: false,
            even_out_at: None,
            programmed: None,
            ports: None,
            report: None,
            compiled: Compiled::default(),
            liveness: Liveness::default(),
            lingering: BTreeSet::new(),
            learned_routes: bgp::Learned::new(),
            unlearned: BTreeMap::new(),
            links,
            status,
            logged: HashMap::new(),
        };
        agent.attach(&[], &[]);
        Ok(agent)
    }

    /// Takes what the source has read; what is in force stays so if that is not in order.
    async fn take(&mut self, read: Read) {
        let Read { digest, topology, skipped } = read;
        let origin = self.config.origin();
        let outcome = topology.and_then(|topology| match topology {
            Some(topology) => self.fits_node(&topology).map(|()| Some(topology)),
            None => Ok(None),
        });
        match outcome {
            Ok(topology) => {
                if !skipped.is_empty() {
                    tracing::error!("not all of the topology can be used\n{skipped}");
                }
                self.set_wanted(digest, skipped.iter().cloned().collect());
                let Some(topology) = topology else { return self.tell() };
                tracing::info!(%origin, digest = %format!("{digest:016x}"), "topology read");
                self.health.topology(&topology);
                self.liveness.members = self.health.not_up(&topology);
                status::lock(&self.status).health.others = self.health.others();
                self.topology = Some((topology, digest));
                // An agent that starts has no way out without it.
                self.learn().await;
                self.reconcile().await;
            }
            Err(problems) => {
                tracing::error!("topology refused; what is in force stays in force\n{problems}");
                self.set_wanted(digest, problems.iter().cloned().collect());
            }
        }
        self.tell();
    }

    /// Tells other nodes what is in force here, if there is a way.
    fn tell(&self) {
        /// More is in `vrouter status` of the node itself.
        const PROBLEMS: usize = 5;
        let Some(report) = &self.report else { return };
        let status = status::lock(&self.status);
        let problems = status.wanted.iter().flat_map(|wanted| &wanted.problems);
        let problems = problems.map(|problem| format!("{}: {}", problem.object, problem.message));
        let ports = self.compiled.local_ports.iter().map(|port| PortState {
            name: port.name.clone(),
            interface: port.interface.clone(),
            up: port.ifindex.is_some(),
        });
        let now = Report {
            revision: self.programmed.map_or(0, |digest| i64::try_from(digest).unwrap_or(0)),
            vtep: self.compiled.vtep.map(|vtep| vtep.to_string()),
            problems: problems.chain(status.error.clone()).take(PROBLEMS).collect(),
            ports: ports.collect(),
        };
        drop(status);
        report.send_if_modified(|told| {
            let differs = *told != now;
            if differs {
                *told = now;
            }
            differs
        });
    }

    fn set_wanted(&self, digest: u64, problems: Vec<Problem>) {
        let warnings = self.compiled.warnings.clone();
        let mut status = status::lock(&self.status);
        status.wanted = Some(Wanted { digest: format!("{digest:016x}"), problems, warnings });
    }

    /// What a document in order may still ask of this node that it cannot give.
    fn fits_node(&self, topology: &Topology) -> Result<(), Problems> {
        let mut problems = Problems::new(&self.config.origin());
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
            let Some(interface) = &port.interface else { continue };
            let (what, flag) = if self.config.uplinks.contains(interface) {
                ("uplink", "--uplink")
            } else if self.config.externals.iter().any(|external| external.interface == *interface) {
                ("external interface", "--external")
            } else {
                continue;
            };
            problems.push(
                port.line,
                format!("port {}", port.name),
                format!("interface {interface} is this node's {what}"),
                format!("name the interface of the workload, or another {flag}"),
            );
        }
        if let [ExternalConfig { network: None, interface }] = &self.config.externals[..] {
            let networks: Vec<&Network> = external_networks(topology).collect();
            if let [first, second, ..] = networks[..] {
                problems.push(
                    second.line,
                    format!("network {}", second.name),
                    format!(
                        "is a second external network, and the node does not say which one its interface {interface} is on"
                    ),
                    format!(
                        "start the agent with --external {}={interface} or --external {}={interface}",
                        first.name, second.name
                    ),
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

    /// This node's interfaces on external networks of the topology in force.
    fn externals(&self, topology: &Topology) -> BTreeMap<String, ExternalInterface> {
        let mut externals = BTreeMap::new();
        for config in &self.config.externals {
            let Some(network) = network_of(config, topology) else { continue };
            let link = self.links.iter().find(|link| link.name == config.interface);
            let interface = ExternalInterface {
                ifindex: link.map(|link| link.index),
                mtu: link.map(|link| link.mtu),
                mac: link.map(|link| link.mac),
            };
            externals.insert(network.name.clone(), interface);
        }
        externals
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
            Ok(true) => {
                self.learn().await;
                self.commit(&Touch::All).await;
            }
            Ok(false) => self.follow_routes().await,
            Err(error) => self.complain("underlay", format!("cannot follow the underlay: {error:#}")),
        }
        status::lock(&self.status).peers = self.underlays.status(&self.identities);
        if let Err(error) = self.edge.ensure() {
            self.complain("gateways", format!("cannot look after gateways: {error:#}"));
        }
        if let Err(error) = self.external.ensure() {
            self.complain("next hops", format!("cannot look after next hops: {error:#}"));
        }
        if let Err(error) = self.services.ensure() {
            self.complain("services", format!("cannot serve workloads: {error:#}"));
        }
    }

    /// Attaches, then compiles and commits.
    async fn reconcile(&mut self) {
        self.commit(&Touch::Changed).await;
        self.tell();
        self.follow_underlay().await;
    }

    async fn commit(&mut self, touch: &Touch) {
        let Some((topology, digest)) = &self.topology else {
            self.attach(&[], &[]);
            return;
        };
        if let Some(ports) = &mut self.ports {
            // Whatever was heard of first: never without the ports this node has.
            ports.take(&self.config.node);
        }
        let mut around = Surroundings {
            node: self.config.node.clone(),
            interfaces: self
                .links
                .iter()
                .map(|link| (link.name.clone(), compile::Interface::of(link)))
                .collect(),
            underlay_mtu: self.underlay_mtu(),
            externals: self.externals(topology),
            liveness: self.liveness.clone(),
            shares: self.ports.as_ref().map(Ports::shares),
            learned: self.learned_routes.clone(),
            metadata: self.config.metadata.is_some(),
        };
        let mark = self.identities.mark();
        let compiled = loop {
            let compiled = match compile::compile(topology, &around, &mut self.identities) {
                Ok(compiled) => compiled,
                Err(error) => {
                    self.identities.take_back(&mark);
                    return tracing::error!("cannot compile the topology: {error:#}");
                }
            };
            let Some(ports) = &mut self.ports else { break compiled };
            if !ports.claim_first(&self.config.node, &compiled.translated) {
                break compiled;
            }
            // Blocks that retired are used again: at most once, since none retires here.
            around.shares = Some(ports.shares());
        };
        let digest = *digest;
        self.warn(&compiled);
        // Until it is in force, both: what is in force needs its own.
        let before = self.compiled.local_ports.clone();
        self.attach(&compiled.local_ports, &before);
        match self.program(compiled, digest, touch) {
            Ok(()) => {
                if before != self.compiled.local_ports {
                    let now = self.compiled.local_ports.clone();
                    self.attach(&now, &[]);
                }
                if let Some(ports) = &mut self.ports {
                    ports.confirm(self.flows.passes());
                }
            }
            Err(error) => {
                tracing::error!("cannot bring the topology in force; what was in force stays: {error:#}");
                status::lock(&self.status).error = Some(format!("{error:#}"));
            }
        }
        self.follow_edge().await;
        self.announce().await;
    }

    /// Brings it in force; afterwards, and only if that worked, it is [`Self::compiled`].
    fn program(&mut self, compiled: Compiled, digest: u64, touch: &Touch) -> Result<()> {
        // Names first, so that whatever a bank mentions has one; what is gone is forgotten only when no
        // bank mentions it.
        self.balanced.begin(self.identities.fresh())?;
        self.identities.write(&self.names)?;
        let published = Published {
            node: compiled.node,
            vtep: compiled.vtep.map_or(0, |vtep| vtep.to_bits()),
            digest,
            overlay_mtu: compiled.overlay_mtu,
            externals: self.published_externals(&compiled.externals),
        };
        let applied = self.banks.apply(compiled.image.clone(), &published, touch)?;
        self.compiled = compiled;
        self.programmed = Some(digest);
        self.even_out_at = Some(Instant::now() + CALM);
        self.identities.retain(&self.compiled.used, &self.compiled.image.pools);
        self.identities.write(&self.names)?;
        if applied.writes > 0 {
            tracing::info!(
                epoch = applied.epoch,
                writes = applied.writes,
                networks = applied.networks,
                "topology in force"
            );
        }
        let (image, commit, watched) = (self.banks.in_force(), self.banks.commit(), &self.compiled.watched);
        self.health.follow(&self.compiled.monitored);
        self.external.follow(Outside::of(image, commit, &held(&self.learned)?, watched));
        self.services.follow(&self.compiled.served);
        status::lock(&self.status).error = None;
        Ok(())
    }

    /// Waits until nothing has been brought in force for a while, if the other bank is not the same yet.
    async fn calm(&self) {
        match self.even_out_at {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Prepares the bank that is not in force for the next change.
    fn even_out(&mut self) {
        self.even_out_at = None;
        if let Err(error) = self.banks.even_out() {
            // The next change tries again.
            tracing::warn!("cannot prepare the other bank: {error:#}");
        }
    }

    /// The external interfaces the programs may use: those that have one.
    fn published_externals(&self, externals: &[tables::External]) -> [tables::External; EXTERNALS_MAX] {
        let mut published = [tables::External::default(); EXTERNALS_MAX];
        let attached = self.data_path.attached();
        let usable =
            externals.iter().filter(|external| attached.contains(&(external.ifindex, Hook::TcExternal)));
        for (slot, external) in published.iter_mut().zip(usable) {
            let frames = attached.contains(&(external.ifindex, Hook::XdpExternal));
            *slot = tables::External { flags: if frames { EXTERNAL_FRAMES } else { 0 }, ..*external };
        }
        published
    }

    /// Logs what the compiler had to leave undone, and tells it to those who ask.
    fn warn(&mut self, compiled: &Compiled) {
        for warning in &compiled.warnings {
            self.complain(warning, warning.clone());
        }
        if let Some(wanted) = &mut status::lock(&self.status).wanted {
            wanted.warnings.clone_from(&compiled.warnings);
        }
    }

    /// Makes the attachments what they have to be for these ports, and for others that are still in force.
    fn attach(&mut self, ports: &[LocalPort], still: &[LocalPort]) {
        let by_name: HashMap<&str, &Link> =
            self.links.iter().map(|link| (link.name.as_str(), link)).collect();
        let states =
            ports.iter().map(|port| PortStatus::new(port, by_name.get(port.interface.as_str()).copied()));
        let states: Vec<_> = states.collect();
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
        let topology = self.topology.as_ref().map(|(topology, _)| topology);
        let mut externals = Vec::new();
        for config in &self.config.externals {
            let network = topology.and_then(|topology| network_of(config, topology));
            let mut external = ExternalStatus {
                network: network.map(|network| network.name.clone()).or(config.network.clone()),
                interface: UplinkStatus::missing(&config.interface),
            };
            if let Some(link) = by_name.get(config.interface.as_str()) {
                external.interface = UplinkStatus::new(link);
                // A network card drops what is for hardware addresses it does not know, as routers' are.
                if let Err(error) = environment::hear_all(&config.interface) {
                    external.interface.warning = Some(format!(
                        "external interface {}: cannot have it take frames for routers' hardware addresses: {error}",
                        config.interface
                    ));
                }
                // Whatever the topology says: without a network the program leaves everything to the kernel.
                wanted.insert((link.index, Hook::TcExternal), config.interface.clone());
                if self.config.external_hook.wants_xdp(link.kind.as_deref()) {
                    wanted.insert((link.index, Hook::XdpExternal), config.interface.clone());
                }
            }
            if topology.is_some() && network.is_none() {
                external.interface.note = Some(match &config.network {
                    Some(name) => format!(
                        "external interface {}: the topology has no external network {name}; add it, or name another with \
                         --external",
                        config.interface
                    ),
                    None => format!(
                        "external interface {}: the topology has no external network; add one with `external: true`",
                        config.interface
                    ),
                });
            }
            let (mtu, most) = (network.and_then(|network| network.mtu), external.interface.mtu);
            if let Some(mtu) =
                mtu.filter(|&mtu| external.interface.ifindex.is_some() && u32::from(mtu) > most)
            {
                external.interface.note = Some(format!(
                    "external interface {}: its MTU is {most}, the network's {mtu}: larger packets are lost; set the \
                     network's mtu to {most}, or `ip link set {} mtu {mtu}`",
                    config.interface, config.interface
                ));
            }
            externals.push(external);
        }
        // Before the first topology: keep what earlier agents attached.
        if self.topology.is_none() {
            for &(ifindex, hook) in self.data_path.attached() {
                wanted.entry((ifindex, hook)).or_default();
            }
        }
        for port in ports.iter().chain(still) {
            let Some(ifindex) = port.ifindex else { continue };
            wanted.insert((ifindex, Hook::TcPort), port.interface.clone());
            if port.xdp {
                wanted.insert((ifindex, Hook::XdpPort), port.interface.clone());
            }
        }
        let problems = self.data_path.attach(&wanted);
        for (name, hook, error) in problems {
            let text = match hook {
                _ if self.is_default(hook) => {
                    format!(
                        "{name} has no native XDP ({error:#}): using TC alone, which is slower for small packets"
                    )
                }
                Hook::XdpUplink | Hook::XdpPort | Hook::XdpExternal => format!(
                    "{name} has no native XDP ({error:#}): using TC alone; ask for hook tc, or use a driver with native XDP"
                ),
                _ => format!("cannot attach to {name}: {error:#}"),
            };
            let interfaces =
                uplinks.iter_mut().chain(externals.iter_mut().map(|external| &mut external.interface));
            for interface in interfaces.filter(|interface| interface.name == name) {
                // Nobody asked for it to be otherwise.
                let place = if self.is_default(hook) { &mut interface.warning } else { &mut interface.note };
                *place = Some(text.clone());
            }
            self.complain(&format!("{name}{hook:?}"), text);
        }
        for uplink in &mut uplinks {
            let attached = self.data_path.attached();
            uplink.xdp = uplink.ifindex.is_some_and(|ifindex| attached.contains(&(ifindex, Hook::XdpUplink)));
        }
        for ExternalStatus { interface, .. } in &mut externals {
            let attached = self.data_path.attached();
            interface.xdp =
                interface.ifindex.is_some_and(|ifindex| attached.contains(&(ifindex, Hook::XdpExternal)));
            let about = format!("external {}", interface.name);
            match interface.ifindex {
                Some(_) => {
                    self.logged.remove(&about);
                }
                None => {
                    let text = format!(
                        "external interface {} does not exist here yet; it is attached when it appears",
                        interface.name
                    );
                    interface.note = Some(text.clone());
                    self.complain(&about, text);
                }
            }
        }
        for port in states.iter().filter(|port| port.ifindex.is_none()) {
            self.complain(
                &format!("port {}", port.name),
                format!(
                    "port {}: interface {} does not exist here yet; it is attached when it appears",
                    port.name, port.interface
                ),
            );
        }
        for port in states.iter().filter(|port| port.ifindex.is_some()) {
            self.logged.remove(&format!("port {}", port.name));
        }
        let mut status = status::lock(&self.status);
        status.ports = states;
        status.uplinks = uplinks;
        status.externals = externals;
    }

    /// Whether nobody asked for this hook: it was only tried.
    fn is_default(&self, hook: Hook) -> bool {
        match hook {
            Hook::XdpUplink => self.config.uplink_hook == UplinkHook::Auto,
            Hook::XdpExternal => self.config.external_hook == UplinkHook::Auto,
            _ => false,
        }
    }

    /// Makes a step through the flow tables; whether a pass ended.
    fn sweep(&mut self) -> bool {
        let notices = match self.flows.step() {
            Ok(None) => return false,
            Ok(Some(notices)) => notices,
            Err(error) => {
                self.complain("sweep", format!("cannot expire flows: {error:#}"));
                return false;
            }
        };
        self.logged.remove("sweep");
        for notice in notices {
            match notice.warning {
                Some(warning) => self.complain(notice.about, warning),
                None if self.logged.remove(notice.about).is_some() => {
                    tracing::info!("{} has room again", notice.about);
                }
                None => {}
            }
        }
        let mut flows = self.flows.status().clone();
        for snat in &mut flows.snat {
            let name = self.identities.name(NAME_ROUTER, snat.router_id);
            snat.router = name.map_or_else(|| format!("#{}", snat.router_id), str::to_owned);
        }
        let mut status = status::lock(&self.status);
        (status.flows, status.flow_records) = (Some(flows), self.flows.records());
        true
    }

    fn complain(&mut self, about: &str, text: String) {
        if self.logged.get(about) != Some(&text) {
            tracing::warn!("{text}");
            self.logged.insert(about.to_owned(), text);
        }
    }
}

fn external_networks(topology: &Topology) -> impl Iterator<Item = &Network> {
    topology.networks.iter().filter(|network| network.external)
}

/// The network an external interface is on, if the topology has it.
fn network_of<'t>(config: &ExternalConfig, topology: &'t Topology) -> Option<&'t Network> {
    let mut networks = external_networks(topology);
    match &config.network {
        Some(name) => networks.find(|network| network.name == *name),
        None => networks.next().filter(|_| networks.next().is_none()),
    }
}

/// Addresses that workloads of this node claim.
fn held(learned: &Map<LearnedKey, Learned>) -> Result<BTreeSet<external::outside::Address>> {
    let entries = learned.entries()?.into_iter();
    Ok(entries.filter(|(_, it)| it.station.is_here()).map(|(key, _)| (key.network, key.ip)).collect())
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
