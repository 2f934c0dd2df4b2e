//! The data path as kernel objects: loading, pinning, attaching, taking over.
//!
//! Everything outlives the agent under `<bpffs>/vrouter/<instance>/`: `maps/`, `programs/`, `links/`. A
//! new agent loads its programs with the pinned maps and replaces the program in each pinned link in one
//! step, so no packet finds an interface without one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::MapType,
    programs::{
        LinkOrder, Program, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
        xdp::XdpLink,
    },
};
use serde::Serialize;
use vrouter_common::{
    flow::{Flow, FlowKey},
    monitor::MonitorSet,
    tables::*,
};

use crate::{
    banks,
    counters::Tally,
    kernel::{Map, check_pin},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("VR_EBPF_OBJECT"));

/// Every map of the object that is pinned, by name. Scratch maps belong to one load of the programs.
pub const PINNED_MAPS: &[&str] = &[
    "COMMIT",
    "REVISIONS",
    "FLOWS",
    "TRANSIENT",
    "FRAGMENTS",
    "LEARNED",
    "BINDINGS",
    "NETWORKS",
    "VNIS",
    "VTEPS",
    "FDB",
    "ADDRESSES",
    "ALLOWED",
    "ROUTES",
    "ROUTER_LEGS",
    "FLOODS",
    "NAT",
    "FLOATING",
    "SNAT_BLOCKS",
    "SNAT_OWNERS",
    "GATEWAYS",
    "MEMBERS",
    "LISTENERS",
    "POOL_SLOTS",
    "POOL_MEMBERS",
    "MEMBERS_AT",
    "LISTENER_COUNT",
    "MEMBER_COUNT",
    "MASTERS",
    "CLASSES",
    "RULES",
    "HOP_INDEX",
    "HOPS",
    "FREE_HOPS",
    "UPCALLS",
    "SERVICES",
    "NAT_TRIES",
    "EXPIRE",
    "UNDERLAY",
    "DROPS",
    "EVENTS",
    "NAMES",
    "CLOCK",
    "MONITOR",
    "MONITOR_SET",
    "MONITOR_COUNT",
];

const CLASSIFIERS: &[&str] = &["vr_tc_port", "vr_tc_uplink", "vr_tc_external", "vr_clock", "vr_expire"];
const XDP_PROGRAMS: &[&str] = &["vr_xdp_port", "vr_xdp_uplink", "vr_xdp_external"];

/// Where the pins of an instance are.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The instance's directory under a mounted bpffs.
    pub fn new(bpffs: &Path, instance: &str) -> Self {
        Self { root: bpffs.join("vrouter").join(instance) }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Whether an agent ever ran.
    pub fn exist(&self) -> bool {
        self.maps().join("COMMIT").exists()
    }

    fn create(&self) -> Result<()> {
        for dir in [self.maps(), self.programs(), self.links()] {
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        Ok(())
    }

    /// Removes every pin: interfaces lose their programs, flows are forgotten.
    pub fn discard(&self) -> Result<()> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.root.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Mounts bpffs where it is missing.
pub fn mount_bpffs(at: &Path) -> Result<()> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    fs::create_dir_all(at).ok();
    let kind = nix::sys::statfs::statfs(at).with_context(|| format!("{} does not exist", at.display()))?;
    if kind.filesystem_type().0 as i64 == BPF_FS_MAGIC {
        return Ok(());
    }
    nix::mount::mount(Some("bpf"), at, Some("bpf"), nix::mount::MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("cannot mount bpffs at {}", at.display()))
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    TcPort,
    TcUplink,
    XdpPort,
    XdpUplink,
    TcExternal,
    XdpExternal,
}

impl Hook {
    const ALL: [Self; 6] =
        [Self::TcPort, Self::TcUplink, Self::XdpPort, Self::XdpUplink, Self::TcExternal, Self::XdpExternal];

    fn program(self) -> &'static str {
        match self {
            Self::TcPort => "vr_tc_port",
            Self::TcUplink => "vr_tc_uplink",
            Self::XdpPort => "vr_xdp_port",
            Self::XdpUplink => "vr_xdp_uplink",
            Self::TcExternal => "vr_tc_external",
            Self::XdpExternal => "vr_xdp_external",
        }
    }

    fn pin_prefix(self) -> &'static str {
        match self {
            Self::TcPort => "tc_port-",
            Self::TcUplink => "tc_uplink-",
            Self::XdpPort => "xdp_port-",
            Self::XdpUplink => "xdp_uplink-",
            Self::TcExternal => "tc_external-",
            Self::XdpExternal => "xdp_external-",
        }
    }

    fn is_xdp(self) -> bool {
        matches!(self, Self::XdpPort | Self::XdpUplink | Self::XdpExternal)
    }
}

/// The loaded programs and the attachments.
pub struct DataPath {
    ebpf: Ebpf,
    pins: Pins,
    attached: BTreeSet<(u32, Hook)>,
}

impl DataPath {
    /// Loads the programs with the pinned maps, creating what is missing, and takes over every pinned link.
    pub fn load(pins: Pins, flow_entries: u32) -> Result<Self> {
        Self::load_with_log(pins, flow_entries, None)
    }

    /// The same with the programs' own log switched on up to a level, for developers.
    pub fn load_with_log(pins: Pins, flow_entries: u32, log: Option<aya_log::Level>) -> Result<Self> {
        if OBJECT.is_empty() {
            bail!(
                "this vrouter was built without its eBPF object (VR_EBPF=skip): build it with `cargo xtask build-ebpf`"
            );
        }
        pins.create()?;
        let maps = pins.maps();
        // Before anything is touched: what is pinned goes on whatever this says.
        check_pins(&maps)?;
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("FLOWS", flow_entries);
        // Frozen before the programs are verified: what is off costs nothing.
        let log_level = log.map_or(0, |level| level as u8);
        loader.override_global("AYA_LOG_LEVEL", &log_level, false);
        for name in PINNED_MAPS {
            loader.map_pin_path(name, maps.join(name));
        }
        let mut ebpf = loader.load(OBJECT).context("cannot create the maps")?;
        load_programs(&mut ebpf)?;
        let mut data_path = Self { ebpf, pins, attached: BTreeSet::new() };
        data_path.take_over()?;
        data_path.pin_programs()?;
        Ok(data_path)
    }

    /// The reader of the programs' log.
    pub fn logger(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>> {
        aya_log::EbpfLogger::init(&mut self.ebpf).context("cannot read the programs' log")
    }

    /// Puts this load's programs into the links that earlier agents left; drops links whose interface is gone.
    fn take_over(&mut self) -> Result<()> {
        let dir = self.pins.links();
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            let Some((hook, ifindex)) = parse_pin(&path) else { continue };
            let link =
                PinnedLink::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
            match self.replace(hook, FdLink::from(link)) {
                Ok(()) => {
                    self.attached.insert((ifindex, hook));
                }
                Err(error) => {
                    tracing::debug!(link = %path.display(), %error, "link without an interface: removed");
                    fs::remove_file(&path).ok();
                }
            }
        }
        Ok(())
    }

    fn replace(&mut self, hook: Hook, link: FdLink) -> Result<()> {
        let program = self.ebpf.program_mut(hook.program()).context("program missing")?;
        if hook.is_xdp() {
            let program: &mut Xdp = program.try_into()?;
            let id = program.attach_to_link(XdpLink::try_from(link)?)?;
            // The pin keeps the link; what is returned here is only one more reference.
            let _ = program.take_link(id)?;
        } else {
            let program: &mut SchedClassifier = program.try_into()?;
            let id = program.attach_to_link(SchedClassifierLink::try_from(link)?)?;
            let _ = program.take_link(id)?;
        }
        Ok(())
    }

    fn pin_programs(&mut self) -> Result<()> {
        let dir = self.pins.programs();
        for (name, program) in self.ebpf.programs_mut() {
            if !CLASSIFIERS.contains(&name) && !XDP_PROGRAMS.contains(&name) {
                continue;
            }
            let (path, new) = (dir.join(name), dir.join(format!("{name}_new")));
            fs::remove_file(&new).ok();
            program.pin(&new).with_context(|| format!("cannot pin {}", new.display()))?;
            fs::rename(&new, &path).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        Ok(())
    }

    /// Attaches and detaches so that exactly `wanted` (interface index and name, by hook) is attached.
    /// Problems are returned by interface; the rest is done.
    pub fn attach(&mut self, wanted: &BTreeMap<(u32, Hook), String>) -> Vec<(String, Hook, anyhow::Error)> {
        let mut problems = Vec::new();
        for (&(ifindex, hook), name) in wanted {
            if self.attached.contains(&(ifindex, hook)) {
                continue;
            }
            match self.attach_one(ifindex, hook, name) {
                Ok(()) => {
                    tracing::info!(interface = %name, ifindex, ?hook, "attached");
                    self.attached.insert((ifindex, hook));
                }
                Err(error) => problems.push((name.clone(), hook, error)),
            }
        }
        let gone: Vec<_> = self.attached.iter().filter(|key| !wanted.contains_key(key)).copied().collect();
        for (ifindex, hook) in gone {
            fs::remove_file(self.link_path(ifindex, hook)).ok();
            self.attached.remove(&(ifindex, hook));
            tracing::info!(ifindex, ?hook, "detached");
        }
        problems
    }

    /// Forgets an interface that the kernel removed, and with it the links.
    pub fn forget(&mut self, ifindex: u32) {
        for hook in Hook::ALL {
            if self.attached.remove(&(ifindex, hook)) {
                fs::remove_file(self.link_path(ifindex, hook)).ok();
            }
        }
    }

    /// What is attached.
    pub fn attached(&self) -> &BTreeSet<(u32, Hook)> {
        &self.attached
    }

    fn link_path(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.pins.links().join(format!("{}{ifindex}", hook.pin_prefix()))
    }

    fn attach_one(&mut self, ifindex: u32, hook: Hook, name: &str) -> Result<()> {
        let path = self.link_path(ifindex, hook);
        fs::remove_file(&path).ok();
        let program = self.ebpf.program_mut(hook.program()).context("program missing")?;
        let link = if hook.is_xdp() {
            let program: &mut Xdp = program.try_into()?;
            let id = program.attach_to_if_index(ifindex, XdpMode::Driver)?;
            FdLink::try_from(program.take_link(id)?).map_err(|error| anyhow!("no XDP link: {error}"))?
        } else {
            let program: &mut SchedClassifier = program.try_into()?;
            let options = TcAttachOptions::TcxOrder(LinkOrder::last());
            let id = program.attach_with_options(name, TcAttachType::Ingress, options)?;
            FdLink::try_from(program.take_link(id)?).map_err(|error| anyhow!("no TCX link: {error}"))?
        };
        link.pin(&path).with_context(|| format!("cannot pin {}", path.display()))?;
        Ok(())
    }
}

/// Refuses what is pinned if its values mean something else.
fn check_schema(maps: &Path) -> Result<()> {
    if !maps.join("COMMIT").exists() {
        return Ok(());
    }
    let commit = Map::<u32, Commit>::open(maps, "COMMIT")?.lookup(&0)?;
    commit.map_or(Ok(()), |commit| banks::check_schema(&commit))
}

/// Refuses pins of another shape: aya 0.14 takes whatever map has the right name.
fn check_pins(maps: &Path) -> Result<()> {
    use MapType::{Array, Hash, LpmTrie, LruHash, PerCpuArray, RingBuf, Stack};
    check_pin::<u32, Commit>(maps, "COMMIT", Array)?;
    check_schema(maps)?;
    check_pin::<u32, u32>(maps, "REVISIONS", Array)?;
    check_pin::<FlowKey, Flow>(maps, "FLOWS", Hash)?;
    check_pin::<FlowKey, Flow>(maps, "TRANSIENT", LruHash)?;
    check_pin::<FragmentKey, Fragment>(maps, "FRAGMENTS", LruHash)?;
    check_pin::<LearnedKey, Learned>(maps, "LEARNED", LruHash)?;
    check_pin::<NatKey, Nat>(maps, "NAT", Hash)?;
    check_pin::<FloatingKey, Floating>(maps, "FLOATING", Hash)?;
    check_pin::<SnatBlockKey, SnatBlock>(maps, "SNAT_BLOCKS", Hash)?;
    check_pin::<SnatOwnerKey, SnatOwner>(maps, "SNAT_OWNERS", Hash)?;
    check_pin::<GatewayKey, u32>(maps, "GATEWAYS", Hash)?;
    check_pin::<MemberKey, Member>(maps, "MEMBERS", Hash)?;
    check_pin::<ListenerKey, Listener>(maps, "LISTENERS", Hash)?;
    check_pin::<PoolSlotsKey, PoolSlots>(maps, "POOL_SLOTS", Hash)?;
    check_pin::<PoolMemberKey, PoolMember>(maps, "POOL_MEMBERS", Hash)?;
    check_pin::<PoolMemberAt, u32>(maps, "MEMBERS_AT", Hash)?;
    check_pin::<u32, u64>(maps, "LISTENER_COUNT", Array)?;
    check_pin::<u32, u64>(maps, "MEMBER_COUNT", Array)?;
    check_pin::<MasterKey, Master>(maps, "MASTERS", Hash)?;
    check_pin::<ClassKey, u32>(maps, "CLASSES", LpmTrie)?;
    check_pin::<RuleKey, Rule>(maps, "RULES", LpmTrie)?;
    check_pin::<HopKey, u32>(maps, "HOP_INDEX", Hash)?;
    check_pin::<u32, Hop>(maps, "HOPS", Array)?;
    check_pin::<(), u32>(maps, "FREE_HOPS", Stack)?;
    check_pin::<(), ()>(maps, "UPCALLS", RingBuf)?;
    check_pin::<(), ()>(maps, "SERVICES", RingBuf)?;
    check_pin::<u32, u64>(maps, "NAT_TRIES", PerCpuArray)?;
    check_pin::<u32, Expire>(maps, "EXPIRE", Array)?;
    check_pin::<BindingKey, Binding>(maps, "BINDINGS", Hash)?;
    check_pin::<NetworkKey, Network>(maps, "NETWORKS", Hash)?;
    check_pin::<VniKey, u32>(maps, "VNIS", Hash)?;
    check_pin::<VtepKey, u32>(maps, "VTEPS", Hash)?;
    check_pin::<FdbKey, Station>(maps, "FDB", Hash)?;
    check_pin::<AddressKey, Station>(maps, "ADDRESSES", Hash)?;
    check_pin::<AllowedKey, u32>(maps, "ALLOWED", LpmTrie)?;
    check_pin::<RouteKey, Route>(maps, "ROUTES", LpmTrie)?;
    check_pin::<RouterLegKey, RouterLeg>(maps, "ROUTER_LEGS", Hash)?;
    check_pin::<FloodKey, Flood>(maps, "FLOODS", Hash)?;
    check_pin::<u32, Underlay>(maps, "UNDERLAY", Array)?;
    check_pin::<u32, Tally>(maps, "DROPS", PerCpuArray)?;
    check_pin::<u32, u64>(maps, "EVENTS", PerCpuArray)?;
    check_pin::<NameKey, Name>(maps, "NAMES", Hash)?;
    check_pin::<u32, u64>(maps, "CLOCK", Array)?;
    check_pin::<(), ()>(maps, "MONITOR", RingBuf)?;
    check_pin::<u32, MonitorSet>(maps, "MONITOR_SET", Array)?;
    check_pin::<u32, u64>(maps, "MONITOR_COUNT", PerCpuArray)
}

fn parse_pin(path: &Path) -> Option<(Hook, u32)> {
    let name = path.file_name()?.to_str()?;
    Hook::ALL.into_iter().find_map(|hook| Some((hook, name.strip_prefix(hook.pin_prefix())?.parse().ok()?)))
}

/// Loads every program, each on a thread of its own: an agent's start is mostly the kernel's verifying them, and
/// it verifies as many at once as there are CPUs.
fn load_programs(ebpf: &mut Ebpf) -> Result<()> {
    let mut programs: BTreeMap<&str, &mut Program> = ebpf.programs_mut().collect();
    let wanted = CLASSIFIERS.iter().chain(XDP_PROGRAMS);
    std::thread::scope(|scope| {
        let mut loads = Vec::new();
        for &name in wanted {
            let program =
                programs.remove(name).with_context(|| format!("the object has no program {name}"))?;
            loads.push(scope.spawn(move || -> Result<()> {
                let loaded = match program {
                    Program::SchedClassifier(program) => program.load(),
                    Program::Xdp(program) => program.load(),
                    _ => bail!("the program {name} is of another kind"),
                };
                loaded.map_err(|error| loading(name, error))
            }));
        }
        for load in loads {
            load.join().map_err(|_| anyhow::anyhow!("loading a program panicked"))??;
        }
        Ok(())
    })
}

/// What the verifier said last.
pub fn loading(name: &str, error: aya::programs::ProgramError) -> anyhow::Error {
    if let aya::programs::ProgramError::LoadError { io_error, verifier_log } = &error {
        let log = verifier_log.to_string();
        let lines: Vec<_> = log.lines().rev().take(30).collect();
        let tail: Vec<_> = lines.into_iter().rev().collect();
        return anyhow!("the kernel refused {name}: {io_error}\n{}", tail.join("\n"));
    }
    anyhow::Error::new(error).context(format!("cannot load {name}"))
}

/// How long a pinned program ran, and how often: counted by the kernel while `kernel.bpf_stats_enabled` is set.
pub fn run_time(pins: &Pins, name: &str) -> Option<(std::time::Duration, u64)> {
    let info = aya::programs::ProgramInfo::from_pin(pins.programs().join(name)).ok()?;
    Some((info.run_time(), info.run_count()))
}

/// The pinned programs: name, kernel id, instructions the verifier went through.
pub fn programs(pins: &Pins) -> Vec<(String, u32, Option<u32>)> {
    let open = |name: &str| {
        let path = pins.programs().join(name);
        let info = aya::programs::ProgramInfo::from_pin(path).ok()?;
        Some((name.to_owned(), info.id(), info.verified_instruction_count()))
    };
    CLASSIFIERS.iter().chain(XDP_PROGRAMS).filter_map(|name| open(name)).collect()
}
