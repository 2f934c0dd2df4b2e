//! The maps. Their names are the names of their pins, at most 15 characters. Sizes of hashes and tries are
//! upper bounds of entries that cost memory only when used, except [`FLOWS`], which is preallocated.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray},
    macros::btf_map,
};
use vrouter_common::{
    addr::{Be32, Ip},
    flow::{Flow, FlowKey},
    packet::SUM_MAX,
    plan::Work,
    reason::{DropReason, Event},
    tables::*,
};

const NO_PREALLOC: usize = 1;
const STATIONS: usize = 1 << 20;
const SUMMED_LEN: usize = 3 * 512 + 8;
const _: () = assert!(SUM_MAX + 4 <= SUMMED_LEN);

/// The published state.
#[btf_map]
pub static COMMIT: Array<Commit, 1> = Array::new();
/// Per network number: the epoch of the last apply that touched what it can reach.
#[btf_map]
pub static REVISIONS: Array<u32, { NETWORKS_MAX as usize }> = Array::new();
/// Established flows. The loader sets the size.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, 262_144> = HashMap::new();
/// Ports by interface.
#[btf_map]
pub static BINDINGS: HashMap<BindingKey, Binding, 131_072, NO_PREALLOC> = HashMap::new();
/// Networks.
#[btf_map]
pub static NETWORKS: HashMap<NetworkKey, Network, 131_072, NO_PREALLOC> = HashMap::new();
/// Network numbers by VNI.
#[btf_map]
pub static VNIS: HashMap<VniKey, u32, 131_072, NO_PREALLOC> = HashMap::new();
/// Node numbers by VTEP.
#[btf_map]
pub static VTEPS: HashMap<VtepKey, u32, 32_768, NO_PREALLOC> = HashMap::new();
/// Stations by hardware address.
#[btf_map]
pub static FDB: HashMap<FdbKey, Station, STATIONS, NO_PREALLOC> = HashMap::new();
/// Stations by address.
#[btf_map]
pub static ADDRESSES: HashMap<AddressKey, Station, STATIONS, NO_PREALLOC> = HashMap::new();
/// What ports may send from: data after the prefix length as in [`AllowedKey`].
#[btf_map]
pub static ALLOWED: LpmTrie<AllowedData, u32, STATIONS> = LpmTrie::new();
/// Routes: data after the prefix length as in [`RouteKey`].
#[btf_map]
pub static ROUTES: LpmTrie<RouteData, Route, STATIONS> = LpmTrie::new();
/// Router legs.
#[btf_map]
pub static ROUTER_LEGS: HashMap<RouterLegKey, RouterLeg, 131_072, NO_PREALLOC> = HashMap::new();
/// Flooding lists.
#[btf_map]
pub static FLOODS: HashMap<FloodKey, Flood, STATIONS, NO_PREALLOC> = HashMap::new();
/// Ways to the nodes, by node number.
#[btf_map]
pub static UNDERLAY: Array<Underlay, { NODES_MAX as usize }> = Array::new();

/// Packets and bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tally {
    pub packets: u64,
    pub bytes: u64,
}
/// By drop reason.
#[btf_map]
pub static DROPS: PerCpuArray<Tally, { DropReason::COUNT as usize }> = PerCpuArray::new();
/// By event.
#[btf_map]
pub static EVENTS: PerCpuArray<u64, { Event::COUNT as usize }> = PerCpuArray::new();

/// Scratch of the packet at hand.
#[btf_map]
pub static WORK: PerCpuArray<Work, 1> = PerCpuArray::new();
/// Bytes being summed, in up to three blocks of 512.
#[btf_map]
pub static SUMMED: PerCpuArray<[u8; SUMMED_LEN], 1> = PerCpuArray::new();
/// The names behind the numbers. Only user space reads it.
#[btf_map]
pub static NAMES: HashMap<NameKey, Name, STATIONS, NO_PREALLOC> = HashMap::new();
/// Where `vr_clock` leaves the time.
#[btf_map]
pub static CLOCK: Array<u64, 1> = Array::new();

/// [`AllowedKey`] without its prefix length.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AllowedData {
    pub port: Scoped,
    pub mac: [u8; 6],
    pub zero: u16,
    pub ip: Ip,
}

/// [`RouteKey`] without its prefix length.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouteData {
    pub router: Scoped,
    pub dst: Ip,
}

const _: () = assert!(size_of::<AllowedData>() + 4 == size_of::<AllowedKey>());
const _: () = assert!(size_of::<RouteData>() + 4 == size_of::<RouteKey>());
const _: () = assert!(size_of::<Be32>() == 4);
