//! The kernel's half: `vr_trace`, of the same source as what forwards, over the same maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, RingBuf},
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use vrouter_common::{
    flow::FlowKey,
    tables::*,
    traced::{TRACE_EXTERNAL, TRACE_PORT, TRACE_UPLINK, TraceInput},
};

use super::{Engine, Entry, Run, Source, World};
use crate::{
    agent, banks,
    data_path::{PINNED_MAPS, Pins},
    identities::Identities,
    kernel::Map,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("VR_EBPF_TRACE_OBJECT"));

/// The kernel's trial runs take a page, less what it needs around the packet.
const FRAME_MAX: usize = 3500;

/// What a trace has of its own, though it is pinned for the programs that forward: counters, and ways to the agent.
const OWN: [&str; 11] = [
    "DROPS",
    "EVENTS",
    "NAT_TRIES",
    "UPCALLS",
    "SERVICES",
    "EXPIRE",
    "CLOCK",
    "NAMES",
    "MONITOR",
    "MONITOR_SET",
    "MONITOR_COUNT",
];

/// The loaded program.
pub struct Program {
    ebpf: Ebpf,
    steps: RingBuf<MapData>,
    input: aya::maps::Array<MapData, TraceInput>,
    /// Of answered and of other flows: what the last run would have removed.
    forgotten: [aya::maps::HashMap<MapData, FlowKey, u8>; 2],
}

impl Program {
    /// Loads it over the pinned maps.
    pub fn load(pins: &Pins) -> Result<Self> {
        if OBJECT.is_empty() {
            bail!(
                "this vrouter was built without the program that traces (VR_EBPF): build it with `cargo build`, or trace \
                 a topology with --topology"
            );
        }
        let maps = pins.maps();
        let mut loader = EbpfLoader::new();
        for name in PINNED_MAPS.iter().filter(|name| !OWN.contains(name)) {
            loader.map_pin_path(name, maps.join(name));
        }
        let mut ebpf = loader.load(OBJECT).context("cannot create the maps for a trace")?;
        let program: &mut SchedClassifier =
            ebpf.program_mut("vr_trace").context("the object has no program vr_trace")?.try_into()?;
        program.load().map_err(|error| crate::data_path::loading("vr_trace", error))?;
        let steps = RingBuf::try_from(ebpf.take_map("STEPS").context("the object has no map STEPS")?)?;
        let input =
            aya::maps::Array::try_from(ebpf.take_map("TRACE").context("the object has no map TRACE")?)?;
        let mut forgotten = |name: &str| -> Result<aya::maps::HashMap<MapData, FlowKey, u8>> {
            let map = ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))?;
            Ok(aya::maps::HashMap::try_from(map)?)
        };
        let forgotten = [forgotten("FORGOTTEN_FLOWS")?, forgotten("FORGOTTEN_TRANSIENT")?];
        Ok(Self { ebpf, steps, input, forgotten })
    }

    /// What the verifier walked through, if the kernel says so.
    pub fn verified_instructions(&self) -> Option<u32> {
        let program: &SchedClassifier = self.ebpf.program("vr_trace")?.try_into().ok()?;
        program.info().ok()?.verified_instruction_count()
    }

    /// Runs a frame.
    pub fn run(&mut self, entry: Entry, frame: &[u8], afresh: bool) -> Result<Run> {
        let (entry, ifindex) = match entry {
            Entry::Port(ifindex) => (TRACE_PORT, ifindex),
            Entry::Uplink => (TRACE_UPLINK, 0),
            Entry::External(ifindex) => (TRACE_EXTERNAL, ifindex),
        };
        if frame.len() > FRAME_MAX {
            bail!("a frame of {} bytes: the kernel runs at most {FRAME_MAX} on trial", frame.len());
        }
        let input = TraceInput { entry, ifindex, afresh: afresh.into(), zero: 0 };
        self.input.set(0, input, 0).context("cannot say what is to be traced")?;
        while self.steps.next().is_some() {}
        for map in &mut self.forgotten {
            for key in map.keys().collect::<Result<Vec<_>, _>>().context("cannot begin a trace")? {
                map.remove(&key).context("cannot begin a trace")?;
            }
        }
        let program: &mut SchedClassifier =
            self.ebpf.program_mut("vr_trace").context("the object has no program vr_trace")?.try_into()?;
        // Room for what is pushed in front.
        let mut out = vec![0; FRAME_MAX + 256];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = program.test_run(options).context("the kernel does not run vr_trace on this frame")?;
        out.truncate(result.data_size_out as usize);
        let mut records = Vec::new();
        while let Some(record) = self.steps.next() {
            records.push(record.to_vec());
        }
        Run::of_records(records, out)
    }
}

/// The node behind an instance's pins, as it decides at this moment.
pub fn world(bpffs: &Path, instance: &str) -> Result<World> {
    let pins = &Pins::new(bpffs, instance);
    let maps = pins.maps();
    let banks = banks::Maps::open(&maps)?;
    let commit = banks.commit()?;
    if commit.epoch == 0 {
        bail!("no topology is in force on this node: `vrouter status` says why");
    }
    let names = Identities::read(&Map::open(&maps, "NAMES")?)?;
    let node = names.name(NAME_NODE, commit.node).unwrap_or("this node").to_owned();
    let image = banks.read(commit.bank())?;
    let engine = Engine::Live(Box::new(Program::load(pins)?));
    let status = agent::ask(&agent::run_dir(instance), "status").unwrap_or_default();
    let ports = status["ports"].as_array().into_iter().flatten();
    let (mut interfaces, mut down) = (BTreeMap::new(), BTreeSet::new());
    for port in ports {
        if let (Some(index), Some(interface)) = (port["ifindex"].as_u64(), port["interface"].as_str()) {
            interfaces.insert(index as u32, interface.to_owned());
        }
        if port["state"] == "down" {
            down.extend(port["name"].as_str().map(str::to_owned));
        }
    }
    Ok(World { node, source: Source::Live, commit, image, names, interfaces, down, engine })
}
