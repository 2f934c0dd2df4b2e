//! A namespace with interfaces, loaded programs and their maps, for the length of one test.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use aya::{
    maps::{Map as AyaMap, MapData, RingBuf, Stack},
    programs::{ProgramFd, ProgramInfo},
};
use vrouter::{
    banks::{Banks, Published, Touch},
    counters::Counters,
    data_path::{self, DataPath, Hook, Pins},
    kernel::{Map, PerCpu},
};
use vrouter_common::{
    flow::{Flow, FlowKey},
    memory::Image,
    reason::{DropReason, Event},
    tables::*,
};

use crate::topology::{self, NODE, VTEP};

/// The programs' verdicts (`linux/pkt_cls.h`, `linux/bpf.h`).
pub const TC_ACT_UNSPEC: u32 = u32::MAX;
pub const TC_ACT_SHOT: u32 = 2;
pub const TC_ACT_REDIRECT: u32 = 7;
pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_REDIRECT: u32 = 4;

const BPFFS: &str = "/sys/fs/bpf";
/// Bytes of the kernel's `struct __sk_buff`, and where the fields set here are.
const SKB_LEN: usize = 192;
const SKB_INGRESS_IFINDEX: usize = 36;
const SKB_IFINDEX: usize = 40;
const SKB_GSO_SIZE: usize = 176;
/// The same of `struct xdp_md`.
const XDP_LEN: usize = 24;
const XDP_DATA_END: usize = 4;
const XDP_INGRESS_IFINDEX: usize = 12;

/// Which of the two programs of an entry runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Tc,
    Xdp,
}

impl Via {
    pub const BOTH: [Self; 2] = [Self::Tc, Self::Xdp];

    /// The verdict that sends a frame on.
    pub fn redirect(self) -> u32 {
        match self {
            Self::Tc => TC_ACT_REDIRECT,
            Self::Xdp => XDP_REDIRECT,
        }
    }

    /// The verdict that ends it.
    pub fn drop(self) -> u32 {
        match self {
            Self::Tc => TC_ACT_SHOT,
            Self::Xdp => XDP_DROP,
        }
    }

    /// Whether the kernel runs a test with this frame: none without an Ethernet header, and by TC no IP
    /// packet without its IP header.
    pub fn runs(self, frame: &[u8]) -> bool {
        let l3 = match frame.get(12..14) {
            Some([0x08, 0x00]) if self == Self::Tc => 20,
            Some([0x86, 0xdd]) if self == Self::Tc => 40,
            _ => 0,
        };
        frame.len() >= 14 + l3
    }

    /// The verdict that leaves it to others.
    pub fn pass(self) -> u32 {
        match self {
            Self::Tc => TC_ACT_UNSPEC,
            Self::Xdp => XDP_PASS,
        }
    }
}

/// What a program did to a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub verdict: u32,
    pub frame: Vec<u8>,
}

/// A record of the ring buffer: what the data path hands to the agent.
pub struct Record {
    pub upcall: Upcall,
    /// As it came in.
    pub frame: Vec<u8>,
}

impl Record {
    pub fn read(bytes: &[u8]) -> Self {
        let (header, rest) = bytes.split_at(size_of::<Upcall>());
        // SAFETY: as many bytes as the type has, all of whose values are integers.
        let upcall = unsafe { std::ptr::read_unaligned(header.as_ptr().cast::<Upcall>()) };
        Self { upcall, frame: rest.get(..upcall.len as usize).expect("a whole frame").to_vec() }
    }
}

/// What XDP counts for a frame that it leaves to TC: what is noted or answered there (ARP, fragments, neighbour
/// discovery) before it is decided, anything else after.
pub fn left_by_xdp(frame: &[u8]) -> Counts {
    let at_once = match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x06, ..] => true,
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, ..] => frame[20] & 0x3f != 0 || frame[21] != 0,
        _ => frame.len() > 54 && frame[20] == 58 && matches!(frame[54], 133..=137),
    };
    if at_once { [("xdp_passed", 1)].into() } else { [("flow_miss", 1), ("xdp_passed", 1)].into() }
}

/// Counters by name: drops (packets) and events.
pub type Counts = BTreeMap<&'static str, u64>;

/// The pins of one test, removed whatever happens.
struct OwnPins(Pins);

impl Drop for OwnPins {
    fn drop(&mut self) {
        if let Err(error) = self.0.discard() {
            eprintln!("pins are left: {error:#}");
        }
    }
}

/// Loaded programs over the maps of [`topology`].
pub struct World {
    // Before `pins`: dropped first.
    pub data_path: DataPath,
    pub banks: Banks,
    pub flows: Map<FlowKey, Flow>,
    pub transient: Map<FlowKey, Flow>,
    pub underlay: Map<u32, Underlay>,
    pub hops: Map<u32, Hop>,
    clock: Map<u32, u64>,
    expire: Map<u32, Expire>,
    nat_tries: PerCpu<u64>,
    counters: Counters,
    programs: Programs,
    pub ifindexes: BTreeMap<&'static str, u32>,
    pins: OwnPins,
}

/// The programs, opened by their pins as any tool would.
struct Programs {
    tc_port: ProgramFd,
    tc_uplink: ProgramFd,
    tc_external: ProgramFd,
    xdp_port: ProgramFd,
    xdp_uplink: ProgramFd,
    xdp_external: ProgramFd,
    clock: ProgramFd,
    expire: ProgramFd,
}

impl Programs {
    fn open(pins: &Pins) -> Self {
        let open = |name: &str| {
            let info = ProgramInfo::from_pin(pins.programs().join(name)).expect("a pinned program");
            info.fd().expect("a program")
        };
        Self {
            tc_port: open("vr_tc_port"),
            tc_uplink: open("vr_tc_uplink"),
            tc_external: open("vr_tc_external"),
            xdp_port: open("vr_xdp_port"),
            xdp_uplink: open("vr_xdp_uplink"),
            xdp_external: open("vr_xdp_external"),
            clock: open("vr_clock"),
            expire: open("vr_expire"),
        }
    }
}

/// `bpf_attr` of `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    program_fd: u32,
    verdict: u32,
    data_in_len: u32,
    data_out_len: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_len: u32,
    context_out_len: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    zero: u32,
}

/// Runs a program once. A call of its own: aya 0.14 opens a pinned XDP program only for those who name a
/// type it does not export.
fn test_run(program: &ProgramFd, frame: &[u8], context: &[u8]) -> io::Result<Ran> {
    const BPF_PROG_TEST_RUN: libc::c_long = 10;
    let mut out = vec![0; frame.len() + 256];
    let mut attr = TestRunAttr {
        program_fd: program.as_fd().as_raw_fd() as u32,
        data_in_len: frame.len() as u32,
        data_out_len: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        context_in_len: context.len() as u32,
        // Without one the kernel wants no address either.
        context_in: if context.is_empty() { 0 } else { context.as_ptr() as u64 },
        ..TestRunAttr::default()
    };
    // SAFETY: the buffers have the lengths given and outlive the call, which writes only to `out` and `attr`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attr,
            size_of::<TestRunAttr>() as libc::c_uint,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    out.truncate(attr.data_out_len as usize);
    Ok(Ran { verdict: attr.verdict, frame: out })
}

/// Runs a test in a thread with a network namespace of its own; nothing of it is left afterwards.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "these tests load eBPF programs and make network namespaces: run them as root"
    );
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("cannot make a network namespace");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a test over a world whose topology is in force.
pub fn with_world(test: impl FnOnce(&mut World) + Send + 'static) {
    in_namespace(|| {
        let mut world = World::new(FLOW_ENTRIES);
        world.apply(topology::image(&world.ifindexes));
        test(&mut world);
    });
}

/// What every test publishes with a topology: the digest of its document.
pub fn published(digest: u64, ifindexes: &BTreeMap<&'static str, u32>) -> Published {
    let Commit { overlay_mtu, externals, .. } = topology::complete(Commit::default(), ifindexes);
    Published { node: NODE, vtep: VTEP.to_bits(), digest, overlay_mtu, externals }
}

/// Enough for every test that does not ask for less.
pub const FLOW_ENTRIES: u32 = 8192;

/// Instances of these tests are called this, their process and their number in it.
const INSTANCE: &str = "test-programs-";

/// Unused pins.
pub fn new_pins() -> Pins {
    static TESTS: AtomicU32 = AtomicU32::new(0);
    data_path::mount_bpffs(Path::new(BPFFS)).expect("bpffs");
    let number = TESTS.fetch_add(1, Ordering::Relaxed);
    if number == 0 {
        remove_left_pins();
    }
    Pins::new(Path::new(BPFFS), &format!("{INSTANCE}{}-{number}", std::process::id()))
}

/// Removes the pins of processes that were killed in the middle of a test.
fn remove_left_pins() {
    let Ok(instances) = std::fs::read_dir(Path::new(BPFFS).join("vrouter")) else { return };
    for instance in instances.flatten() {
        let name = instance.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(INSTANCE)?.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            std::fs::remove_dir_all(instance.path()).ok();
        }
    }
}

/// Makes one veth pair per port of the topology, and the uplink. The other ends are called like them with
/// an `x`; nobody is there.
fn interfaces() -> BTreeMap<&'static str, u32> {
    // Otherwise the kernel's own neighbour discovery would be counted.
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("cannot switch IPv6 off");
    let mut batch = String::new();
    for name in topology::INTERFACES {
        batch += &format!("link add {name} mtu 9000 type veth peer name {name}x mtu 9000\n");
        batch += &format!("link set {name} up\nlink set {name}x up\n");
    }
    // A child inherits the namespace of the thread that starts it.
    let mut ip =
        Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("cannot run ip");
    ip.stdin.take().expect("piped").write_all(batch.as_bytes()).expect("cannot write to ip");
    assert!(ip.wait().expect("ip").success(), "ip could not make the interfaces");
    let index = |name: &str| nix::net::if_::if_nametoindex(name).expect("an interface just made");
    topology::INTERFACES.iter().map(|&name| (name, index(name))).collect()
}

/// Runs the programs of a [`World`].
#[derive(Clone, Copy)]
pub struct Runner<'a> {
    programs: &'a Programs,
    ifindexes: &'a BTreeMap<&'static str, u32>,
}

impl Runner<'_> {
    /// Runs a frame that came in on an interface through its program.
    pub fn run(&self, via: Via, interface: &str, frame: &[u8]) -> Ran {
        self.run_gso(via, interface, frame, 0)
    }

    /// The same for a frame that is cut into segments of `gso_size` later.
    pub fn run_gso(&self, via: Via, interface: &str, frame: &[u8], gso_size: u32) -> Ran {
        let ifindex = self.ifindexes[interface].to_ne_bytes();
        let mut context = vec![0; if via == Via::Tc { SKB_LEN } else { XDP_LEN }];
        let mut put = |at: usize, word: [u8; 4]| context[at..at + 4].copy_from_slice(&word);
        match via {
            Via::Tc => {
                put(SKB_INGRESS_IFINDEX, ifindex);
                put(SKB_IFINDEX, ifindex);
                put(SKB_GSO_SIZE, gso_size.to_ne_bytes());
            }
            Via::Xdp => {
                assert_eq!(gso_size, 0, "XDP sees no super-packets");
                put(XDP_DATA_END, (frame.len() as u32).to_ne_bytes());
                put(XDP_INGRESS_IFINDEX, ifindex);
            }
        }
        let program = match (via, interface) {
            (Via::Tc, topology::UPLINK) => &self.programs.tc_uplink,
            (Via::Tc, topology::EXTERNAL) => &self.programs.tc_external,
            (Via::Tc, _) => &self.programs.tc_port,
            (Via::Xdp, topology::UPLINK) => &self.programs.xdp_uplink,
            (Via::Xdp, topology::EXTERNAL) => &self.programs.xdp_external,
            (Via::Xdp, _) => &self.programs.xdp_port,
        };
        test_run(program, frame, &context).unwrap_or_else(|error| {
            panic!("the kernel does not run {} bytes by {via:?}: {error}", frame.len())
        })
    }
}

impl World {
    /// Loads the programs; nothing is applied yet.
    pub fn new(flow_entries: u32) -> Self {
        let ifindexes = interfaces();
        let pins = OwnPins(new_pins());
        let mut data_path = DataPath::load(pins.0.clone(), flow_entries).expect("the programs load");
        // A test run on an interface takes its receive queue, which veth sets up with its first program.
        let wanted = ifindexes
            .iter()
            .map(|(&name, &ifindex)| {
                let hook = match name {
                    topology::UPLINK => Hook::XdpUplink,
                    topology::EXTERNAL => Hook::XdpExternal,
                    _ => Hook::XdpPort,
                };
                ((ifindex, hook), name.to_owned())
            })
            .collect();
        let problems = data_path.attach(&wanted);
        assert!(problems.is_empty(), "cannot attach: {problems:?}");
        let world = Self::open(data_path, ifindexes, pins);
        for (node, way) in topology::underlay(&world.ifindexes) {
            world.underlay.set(&node, &way).expect("UNDERLAY");
        }
        // The lowest is taken first, as user space's tables do.
        let mut free =
            Stack::<MapData, u32>::try_from(world.aya_map("FREE_HOPS", AyaMap::Stack)).expect("FREE_HOPS");
        for index in (0..HOPS_MAX).rev() {
            free.push(index, 0).expect("FREE_HOPS");
        }
        world
    }

    /// Over pins that are there.
    fn open(data_path: DataPath, ifindexes: BTreeMap<&'static str, u32>, pins: OwnPins) -> Self {
        let maps = pins.0.maps();
        Self {
            data_path,
            banks: Banks::open(&maps).expect("banks"),
            flows: Map::open(&maps, "FLOWS").expect("FLOWS"),
            transient: Map::open(&maps, "TRANSIENT").expect("TRANSIENT"),
            underlay: Map::open(&maps, "UNDERLAY").expect("UNDERLAY"),
            hops: Map::open(&maps, "HOPS").expect("HOPS"),
            clock: Map::open(&maps, "CLOCK").expect("CLOCK"),
            expire: Map::open(&maps, "EXPIRE").expect("EXPIRE"),
            nat_tries: PerCpu::open(&maps, "NAT_TRIES").expect("NAT_TRIES"),
            counters: Counters::open(&maps).expect("counters"),
            programs: Programs::open(&pins.0),
            ifindexes,
            pins,
        }
    }

    /// Loads the programs again over the same pins, as a restarted agent does.
    pub fn restart(self, flow_entries: u32) -> Self {
        let Self { data_path, ifindexes, pins, .. } = self;
        drop(data_path);
        let data_path = DataPath::load(pins.0.clone(), flow_entries).expect("the programs load again");
        Self::open(data_path, ifindexes, pins)
    }

    fn aya_map(&self, name: &str, kind: fn(MapData) -> AyaMap) -> AyaMap {
        kind(MapData::from_pin(self.pins.0.maps().join(name)).expect(name))
    }

    /// What the data path hands to the agent; records before this call are there, too.
    pub fn upcalls(&self) -> RingBuf<MapData> {
        RingBuf::try_from(self.aya_map("UPCALLS", AyaMap::RingBuf)).expect("UPCALLS")
    }

    /// What it hands to the agent's services.
    pub fn services(&self) -> RingBuf<MapData> {
        RingBuf::try_from(self.aya_map("SERVICES", AyaMap::RingBuf)).expect("SERVICES")
    }

    pub fn pins(&self) -> &Pins {
        &self.pins.0
    }

    /// Puts a topology in force.
    pub fn apply(&mut self, image: Image) -> vrouter::banks::Applied {
        self.banks.apply(image, &published(1, &self.ifindexes), &Touch::Changed).expect("apply")
    }

    /// Makes every flow be decided again.
    pub fn apply_again(&mut self, image: Image) {
        self.banks.apply(image, &published(1, &self.ifindexes), &Touch::All).expect("apply");
    }

    /// What is published beside the topology.
    pub fn published(&self, digest: u64) -> Published {
        published(digest, &self.ifindexes)
    }

    /// The clock of the flow table.
    pub fn now(&self) -> u32 {
        test_run(&self.programs.clock, &[0; 64], &[]).expect("vr_clock");
        self.clock.lookup(&0).expect("CLOCK").expect("CLOCK has one entry") as u32
    }

    /// Runs `vr_expire` over some connections, and what it made of them.
    pub fn expire(&self, wanted: &[Expire]) -> Vec<Expire> {
        for index in 0..EXPIRE_MAX {
            let one = wanted.get(index as usize).copied().unwrap_or_default();
            self.expire.set(&index, &one).expect("EXPIRE");
        }
        test_run(&self.programs.expire, &[0; 64], &[]).expect("vr_expire");
        let written = |index| self.expire.lookup(&index).expect("EXPIRE").expect("an entry");
        (0..wanted.len() as u32).map(written).collect()
    }

    /// How often how many ports were tried, by bucket.
    pub fn nat_tries(&self) -> Vec<u64> {
        (0..NAT_TRIES_BUCKETS)
            .map(|bucket| self.nat_tries.values(bucket).expect("NAT_TRIES").iter().sum())
            .collect()
    }

    /// The interface of this name.
    pub fn ifindex(&self, name: &str) -> u32 {
        self.ifindexes[name]
    }

    /// Runs a frame that came in on an interface through its program.
    pub fn run(&self, via: Via, interface: &str, frame: &[u8]) -> Ran {
        self.run_gso(via, interface, frame, 0)
    }

    /// The same for a frame that is cut into segments of `gso_size` later.
    pub fn run_gso(&self, via: Via, interface: &str, frame: &[u8], gso_size: u32) -> Ran {
        self.runner().run_gso(via, interface, frame, gso_size)
    }

    /// What runs programs, for other threads.
    pub fn runner(&self) -> Runner<'_> {
        Runner { programs: &self.programs, ifindexes: &self.ifindexes }
    }

    /// All counters that are not zero.
    pub fn counts(&self) -> Counts {
        let drops = DropReason::ALL.iter().map(|&reason| {
            let tally = self.counters.drops(reason).expect("DROPS");
            (reason.name(), tally.packets)
        });
        let events =
            Event::ALL.iter().map(|&event| (event.name(), self.counters.event(event).expect("EVENTS")));
        drops.chain(events).filter(|(_, count)| *count != 0).collect()
    }

    /// Bytes of what was dropped for any reason.
    pub fn dropped_bytes(&self) -> u64 {
        DropReason::ALL.iter().map(|&reason| self.counters.drops(reason).expect("DROPS").bytes).sum()
    }

    /// Runs a frame, and what it counted.
    pub fn run_counted(&self, via: Via, interface: &str, frame: &[u8]) -> (Ran, Counts) {
        let before = self.counts();
        let ran = self.run(via, interface, frame);
        (ran, since(&before, &self.counts()))
    }

    /// Both tables of flows.
    pub fn flow_entries(&self) -> BTreeMap<FlowKey, Flow> {
        let transient = self.transient.entries().expect("TRANSIENT");
        self.flows.entries().expect("FLOWS").into_iter().chain(transient).collect()
    }

    /// The one entry of the flow table.
    pub fn only_flow(&self) -> (FlowKey, Flow) {
        let flows = self.flow_entries();
        assert_eq!(flows.len(), 1, "flow entries: {flows:#?}");
        flows.into_iter().next().expect("one")
    }

    /// Empties the flow table.
    pub fn forget_flows(&self) {
        for map in [&self.flows, &self.transient] {
            for key in map.keys().expect("keys") {
                map.remove(&key).expect("a key");
            }
        }
    }
}

/// What was counted between two readings.
pub fn since(before: &Counts, after: &Counts) -> Counts {
    let change = |(&name, &count): (&&'static str, &u64)| (name, count - before.get(name).unwrap_or(&0));
    after.iter().map(change).filter(|(_, count)| *count != 0).collect()
}

/// A frame for people.
pub fn hex(frame: &[u8]) -> String {
    frame
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x} ")).collect::<String>() + "\n")
        .collect()
}

/// Compares frames, with a readable complaint.
#[track_caller]
pub fn assert_frame(name: &str, got: &[u8], want: &[u8]) {
    if got != want {
        let at = got.iter().zip(want).position(|(a, b)| a != b).unwrap_or(got.len().min(want.len()));
        panic!(
            "{name}: {} bytes instead of {}, different from byte {at} on\ngot\n{}want\n{}",
            got.len(),
            want.len(),
            hex(got),
            hex(want)
        );
    }
}
