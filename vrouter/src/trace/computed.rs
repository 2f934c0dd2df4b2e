//! The half without a kernel: the same decision over a topology that is compiled for a node.
//!
//! What only the node itself knows is taken to be well: interfaces exist, other nodes and next hops answer, the first
//! gateway in order is the master.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
};

use anyhow::{Result, bail};
use vrouter_common::{
    addr::{Be32, Macs},
    flow::FlowKey,
    memory::{self, MemoryPacket, MemoryTables, Verdict},
    plan::Work,
    tables::*,
    traced::{Leaves, Recorder, Traced, What},
    wire::OVERLAY_OVERHEAD,
};

use super::{Engine, Entry, Run, Source, Step, World};
use crate::{
    compile::{ExternalInterface, Interface, Liveness, Surroundings, compile},
    identities::Identities,
    topology::model::Topology,
};

/// Indexes of interfaces that nobody has.
const UPLINK: u32 = 1;
const FIRST_EXTERNAL: u32 = 100;
const FIRST_PORT: u32 = 1000;
/// An even number: its bank is 0, where an image's keys are.
const EPOCH: u32 = 2;
const UNDERLAY_MTU: u32 = 1500;
/// Of those outside, in what is computed.
const SOMEBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];

/// Takes steps down in memory.
#[derive(Default)]
struct Notes {
    steps: RefCell<Vec<Step>>,
    afresh: Cell<bool>,
    hop: OnceCell<Hop>,
    forgotten: RefCell<Vec<(FlowTable, FlowKey)>>,
}

fn bytes_of<T: Copy>(value: &T) -> Vec<u8> {
    // SAFETY: a live value; what is recorded is `repr(C)` without padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }.to_vec()
}

impl Recorder for Notes {
    fn record<K: Copy, V: Copy>(&self, what: What, found: bool, key: &K, value: Option<&V>) {
        let value = value.map(bytes_of).unwrap_or_default();
        self.steps.borrow_mut().push(Step { what, found, key: bytes_of(key), value });
    }

    fn afresh(&self) -> bool {
        self.afresh.get()
    }

    fn keep_hop(&self, hop: &Hop) -> bool {
        // It answers.
        let hop = Hop { flags: HOP_USED | HOP_RESOLVED, mac: SOMEBODY, ..*hop };
        self.hop.set(hop).is_ok()
    }

    fn kept_hop(&self) -> Option<&Hop> {
        self.hop.get()
    }

    fn forget(&self, table: FlowTable, key: &FlowKey) {
        self.forgotten.borrow_mut().push((table, *key));
    }

    fn has_forgotten(&self, table: FlowTable, key: &FlowKey) -> bool {
        self.forgotten.borrow().contains(&(table, *key))
    }
}

/// Runs a frame.
pub fn run(tables: &mut MemoryTables, entry: Entry, frame: &[u8], afresh: bool) -> Run {
    let at = match entry {
        Entry::Port(ifindex) => memory::Entry::Port(ifindex),
        Entry::Uplink => memory::Entry::Uplink,
        Entry::External(ifindex) => memory::Entry::External(ifindex),
    };
    let notes = Notes { afresh: Cell::new(afresh), ..Notes::default() };
    let traced = Traced::new(std::mem::take(tables), notes);
    let mut work = Work::default();
    let verdict = memory::run_with(&traced, &mut work, at, MemoryPacket::new(frame));
    let leaves = |ifindex, nexthop| Leaves { ifindex, nexthop, peer: 0 };
    let nowhere = Be32::new(0);
    let out = match verdict {
        Verdict::Sent { ifindex, frame } => {
            traced.leave(leaves(ifindex, nowhere));
            frame
        }
        Verdict::SentToNeighbour { ifindex, nexthop, frame } => {
            traced.leave(leaves(ifindex, nexthop));
            frame
        }
        Verdict::Answered { frame, .. } => {
            if let Entry::Port(ifindex) | Entry::External(ifindex) = entry {
                traced.leave(leaves(ifindex, nowhere));
            }
            frame
        }
        Verdict::Flooded { copies, .. } => {
            for to in copies {
                traced.copy(to);
            }
            frame.to_vec()
        }
        Verdict::Waiting { request: Some((_, frame)), .. } => frame,
        _ => frame.to_vec(),
    };
    let (mut used, notes) = traced.into_parts();
    std::mem::swap(tables, &mut used);
    Run { steps: notes.steps.into_inner(), frame: out }
}

/// A node of a topology, as it would decide.
pub fn world(topology: &Topology, node: &str) -> Result<World> {
    let Some(model) = topology.nodes.iter().find(|it| it.name == node) else {
        let known: Vec<_> = topology.nodes.iter().map(|node| node.name.as_str()).collect();
        bail!("the topology has no node {node}; it has: {}", known.join(", "));
    };
    let mut names_of = BTreeMap::from([(UPLINK, "the uplink".to_owned())]);
    let mut interfaces = HashMap::new();
    let ports = topology.ports.iter().filter(|port| port.node.as_deref() == Some(node));
    for (index, interface) in (FIRST_PORT..).zip(ports.filter_map(|port| port.interface.clone())) {
        names_of.insert(index, interface.clone());
        interfaces.insert(interface, Interface { index, peer: false });
    }
    let mut externals = BTreeMap::new();
    let outside = topology.networks.iter().filter(|network| network.external && model.reaches(&network.name));
    for (index, network) in (FIRST_EXTERNAL..).zip(outside).take(EXTERNALS_MAX) {
        names_of.insert(index, format!("the interface on {}", network.name));
        let mac = [0x02, 0, 0, 0, 1, index as u8];
        let mtu = Some(network.mtu.map_or(UNDERLAY_MTU, u32::from));
        let interface = ExternalInterface { ifindex: Some(index), mtu, mac: Some(mac) };
        externals.insert(network.name.clone(), interface);
    }
    let largest =
        topology.networks.iter().filter(|network| !network.external).filter_map(|network| network.mtu);
    let largest = largest.map(|mtu| u32::from(mtu) + u32::from(OVERLAY_OVERHEAD)).max().unwrap_or(0);
    let mut around = Surroundings {
        node: node.to_owned(),
        interfaces,
        underlay_mtu: largest.max(UNDERLAY_MTU),
        externals,
        ..Surroundings::default()
    };
    let mut names = Identities::default();
    // Whose turn it is to be master, the compiler says first.
    let first = compile(topology, &around, &mut names)?;
    let is_first = |carriers: &[String]| carriers.first().is_some_and(|first| first == node);
    let mastered: Vec<_> =
        first.virtual_routers.into_iter().filter(|router| is_first(&router.carriers)).collect();
    around.liveness = Liveness {
        mastered: mastered.iter().map(|router| router.router.clone()).collect(),
        ..Liveness::default()
    };
    let compiled = compile(topology, &around, &mut names)?;
    let vtep = compiled.vtep.map_or(0, |vtep| vtep.to_bits());
    let mut commit = Commit {
        epoch: EPOCH,
        vtep: Be32::new(vtep),
        schema: SCHEMA,
        node: compiled.node,
        overlay_mtu: compiled.overlay_mtu,
        ..Commit::default()
    };
    for (slot, external) in commit.externals.iter_mut().zip(&compiled.externals) {
        *slot = *external;
    }
    let mut tables = MemoryTables::default();
    (tables.commit, tables.image) = (commit, compiled.image);
    for (node, peer) in compiled.peers {
        let way = Underlay {
            flags: UNDERLAY_ROUTED | UNDERLAY_RESOLVED,
            ifindex: UPLINK,
            src: Be32::new(vtep),
            dst: Be32::new(peer.to_bits()),
            nexthop: Be32::new(peer.to_bits()),
            mtu: around.underlay_mtu,
            macs: Macs::new(SOMEBODY, [0x02, 0, 0, 0, 2, 0]),
        };
        tables.underlay.insert(node, way);
    }
    for router in &mastered {
        let key = MasterKey::new(router.network_id, router.vrid, router.ipv6);
        let master = Master { until: u64::MAX, is_master: 1, silenced: 0 };
        tables.masters.borrow_mut().insert(key, master);
    }
    Ok(World {
        node: node.to_owned(),
        source: Source::Computed,
        commit,
        image: tables.image.clone(),
        names,
        interfaces: names_of,
        down: BTreeSet::new(),
        engine: Engine::Computed(Box::new(tables)),
    })
}
