//! The maps. Their names are the names of their pins, at most 15 characters. Sizes of hashes and tries are
//! upper bounds of entries that cost memory only when used, except [`FLOWS`], which is preallocated.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, Stack},
    macros::btf_map,
};
use vrouter_common::{
    addr::{Be16, Be32, Ip},
    flow::{Flow, FlowKey},
    monitor::{MONITOR_COUNTS, MonitorScratch, MonitorSet},
    packet::SUM_MAX,
    plan::Work,
    reason::{DropReason, Event},
    tables::*,
};

const NO_PREALLOC: usize = 1;
const STATIONS: usize = 1 << 20;
const CHUNKS: usize = (2 * POOLS_MAX * (POOL_SLOTS_MAX / SLOTS_IN_CHUNK)) as usize;
const SUMMED_LEN: usize = 3 * 512 + 8;
const _: () = assert!(SUM_MAX + 4 <= SUMMED_LEN);

/// The published state.
#[btf_map]
pub static COMMIT: Array<Commit, 1> = Array::new();
/// Per network number: the epoch of the last apply that touched what it can reach.
#[btf_map]
pub static REVISIONS: Array<u32, { NETWORKS_MAX as usize }> = Array::new();
/// Answered flows. The loader sets the size.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, 262_144> = HashMap::new();
/// Unanswered flows and remembered stateless decisions. The loader sets the size.
#[btf_map]
pub static TRANSIENT: LruHashMap<FlowKey, Flow, 65_536> = LruHashMap::new();
/// Who claimed addresses by ARP and ND.
#[btf_map]
pub static LEARNED: LruHashMap<LearnedKey, Learned, 65_536> = LruHashMap::new();
/// Datagrams that come in pieces.
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, Fragment, 16_384> = LruHashMap::new();
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
/// Where outside addresses lead.
#[btf_map]
pub static NAT: HashMap<NatKey, Nat, 262_144, NO_PREALLOC> = HashMap::new();
/// Floating IPs by fixed IP.
#[btf_map]
pub static FLOATING: HashMap<FloatingKey, Floating, 262_144, NO_PREALLOC> = HashMap::new();
/// Blocks of ports of this node.
#[btf_map]
pub static SNAT_BLOCKS: HashMap<SnatBlockKey, SnatBlock, STATIONS, NO_PREALLOC> = HashMap::new();
/// Blocks of ports of other nodes.
#[btf_map]
pub static SNAT_OWNERS: HashMap<SnatOwnerKey, SnatOwner, STATIONS, NO_PREALLOC> = HashMap::new();
/// Gateways' node numbers.
#[btf_map]
pub static GATEWAYS: HashMap<GatewayKey, u32, STATIONS, NO_PREALLOC> = HashMap::new();
/// Next hops of routes with several.
#[btf_map]
pub static MEMBERS: HashMap<MemberKey, Member, STATIONS, NO_PREALLOC> = HashMap::new();
/// Ports of VIPs.
#[btf_map]
pub static LISTENERS: HashMap<ListenerKey, Listener, { 4 * LISTENERS_MAX as usize }, NO_PREALLOC> =
    HashMap::new();
/// Who has which slots of pools.
#[btf_map]
pub static POOL_SLOTS: HashMap<PoolSlotsKey, PoolSlots, { CHUNKS }, NO_PREALLOC> = HashMap::new();
/// Members of pools.
#[btf_map]
pub static POOL_MEMBERS: HashMap<PoolMemberKey, PoolMember, { 4 * POOL_MEMBERS_MAX as usize }, NO_PREALLOC> =
    HashMap::new();
/// Their indexes by where they are.
#[btf_map]
pub static MEMBERS_AT: HashMap<PoolMemberAt, u32, { 4 * POOL_MEMBERS_MAX as usize }, NO_PREALLOC> =
    HashMap::new();
/// New connections by listener.
#[btf_map]
pub static LISTENER_COUNT: Array<u64, { LISTENERS_MAX as usize }> = Array::new();
/// New connections by member.
#[btf_map]
pub static MEMBER_COUNT: Array<u64, { POOL_MEMBERS_MAX as usize }> = Array::new();
/// Which virtual routers this node is the master of; the agent writes it.
#[btf_map]
pub static MASTERS: HashMap<MasterKey, Master, { MASTERS_MAX as usize }, NO_PREALLOC> = HashMap::new();
/// Classes of remote addresses: data after the prefix length as in [`ClassKey`].
#[btf_map]
pub static CLASSES: LpmTrie<ClassData, u32, STATIONS> = LpmTrie::new();
/// Rules that allow: data after the prefix length as in [`RuleKey`].
#[btf_map]
pub static RULES: LpmTrie<RuleData, Rule, { 4 * STATIONS }> = LpmTrie::new();
/// Indexes of next hops on external networks.
#[btf_map]
pub static HOP_INDEX: HashMap<HopKey, u32, { HOPS_MAX as usize }> = HashMap::new();
/// Next hops on external networks.
#[btf_map]
pub static HOPS: Array<Hop, { HOPS_MAX as usize }> = Array::new();
/// Free indexes of [`HOPS`]; the agent fills it.
#[btf_map]
pub static FREE_HOPS: Stack<u32, { HOPS_MAX as usize }> = Stack::new();
/// What the data path hands to the agent.
#[btf_map]
pub static UPCALLS: RingBuf<(), { 1 << 20 }> = RingBuf::new();
/// What workloads send to services of this node. Not in [`UPCALLS`]: whoever floods it keeps no packet from its next
/// hop. What a port may have of it, `share.rs` says.
#[btf_map]
pub static SERVICES: RingBuf<(), { 1 << 19 }> = RingBuf::new();
/// Histogram of ports tried for a translation.
#[btf_map]
pub static NAT_TRIES: PerCpuArray<u64, { NAT_TRIES_BUCKETS as usize }> = PerCpuArray::new();
/// Flows to be expired, for `vr_expire`.
#[btf_map]
pub static EXPIRE: Array<Expire, { EXPIRE_MAX as usize }> = Array::new();
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

/// What a CPU may still send of errors and resets.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Bucket {
    pub tokens: u64,
    pub refilled: u64,
}
/// One for each CPU.
#[btf_map]
pub static ANSWERS: PerCpuArray<Bucket, 1> = PerCpuArray::new();

/// Scratch of the packet at hand.
#[btf_map]
pub static WORK: PerCpuArray<Work, 1> = PerCpuArray::new();
/// Bytes being summed, in up to three blocks of 512.
#[btf_map]
pub static SUMMED: PerCpuArray<[u8; SUMMED_LEN], 1> = PerCpuArray::new();
/// What is told to whoever listens ([`crate::monitor`]).
#[btf_map]
pub static MONITOR: RingBuf<(), { 1 << 21 }> = RingBuf::new();
/// What the listener wants to hear.
#[btf_map]
pub static MONITOR_SET: Array<MonitorSet, 1> = Array::new();
/// What became of what it wants to hear: `MONITOR_COUNT_*`.
#[btf_map]
pub static MONITOR_COUNT: PerCpuArray<u64, { MONITOR_COUNTS as usize }> = PerCpuArray::new();
/// Records being made: of a packet, and of a flow that ends. `vr_expire` may be interrupted by a packet.
#[btf_map]
pub static MONITOR_BUF: PerCpuArray<MonitorScratch, 2> = PerCpuArray::new();
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

/// [`ClassKey`] without its prefix length.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ClassData {
    pub bank: Scoped,
    pub ip: Ip,
}

/// [`RuleKey`] without its prefix length.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RuleData {
    pub policy: Scoped,
    pub class: u32,
    pub direction: u8,
    pub proto: u8,
    pub port: Be16,
}

/// [`RouteKey`] without its prefix length.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouteData {
    pub router: Scoped,
    pub dst: Ip,
}

const _: () = assert!(size_of::<AllowedData>() + 4 == size_of::<AllowedKey>());
const _: () = assert!(size_of::<ClassData>() + 4 == size_of::<ClassKey>());
const _: () = assert!(size_of::<RuleData>() + 4 == size_of::<RuleKey>());
const _: () = assert!(size_of::<RouteData>() + 4 == size_of::<RouteKey>());
const _: () = assert!(size_of::<Be32>() == 4);
