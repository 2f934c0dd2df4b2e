//! Tables that say what was asked of them, and change nothing: what a trace runs on.
//!
//! The decision is the one that forwards; only what it looks things up in is another. In the kernel that is
//! `vr_trace`, a program of the same source over the same maps; in user space it is tables in memory.

use crate::{
    flow::{Flow, FlowKey},
    reason::{DropReason, Event},
    tables::*,
};

/// What was asked, or done. The numbers are what is written in a [`StepHead`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Answered flows: [`FlowKey`], [`Flow`].
    Flow = 1,
    /// Unanswered flows and remembered decisions: the same.
    Transient = 2,
    /// [`BindingKey`], [`Binding`].
    Binding = 3,
    /// [`NetworkKey`], [`Network`].
    Network = 4,
    /// [`VniKey`], a network's number.
    Vni = 5,
    /// [`VtepKey`], a node's number.
    Vtep = 6,
    /// [`FdbKey`], [`Station`].
    Fdb = 7,
    /// [`AddressKey`], [`Station`].
    Address = 8,
    /// [`AllowedKey`], nothing.
    Allowed = 9,
    /// [`RouteKey`], [`Route`].
    Route = 10,
    /// [`RouterLegKey`], [`RouterLeg`].
    RouterLeg = 11,
    /// A node's number, [`Underlay`].
    Underlay = 12,
    /// [`NatKey`], [`Nat`].
    Nat = 13,
    /// [`FloatingKey`], [`Floating`].
    Floating = 14,
    /// [`SnatBlockKey`], [`SnatBlock`].
    SnatBlock = 15,
    /// [`SnatOwnerKey`], [`SnatOwner`].
    SnatOwner = 16,
    /// [`GatewayKey`], a node's number.
    Gateway = 17,
    /// [`MemberKey`], [`Member`].
    Member = 18,
    /// [`MasterKey`], nothing: whether this node answers.
    Master = 19,
    /// [`MasterKey`], nothing: whether it carries.
    Carries = 20,
    /// [`ClassKey`], the class.
    Class = 21,
    /// [`RuleKey`], [`Rule`].
    Rule = 22,
    /// [`LearnedKey`], [`Learned`].
    Learned = 23,
    /// [`HopKey`], the index.
    HopIndex = 24,
    /// The index, [`Hop`].
    Hop = 25,
    /// [`FragmentKey`], [`Fragment`].
    Fragment = 26,
    /// A flow that would be stored: [`FlowKey`], [`Flow`]. Not found: there is another.
    Store = 27,
    /// The number of a [`DropReason`], the packet's length.
    Drop = 28,
    /// The number of an [`Event`], nothing.
    Event = 29,
    /// Where it leaves: [`Leaves`], nothing.
    Leave = 30,
    /// A copy of a flooded frame: [`Copied`], nothing.
    Copy = 31,
    /// [`ListenerKey`], [`Listener`].
    Listener = 32,
    /// [`PoolSlotsKey`], nothing.
    PoolSlots = 33,
    /// [`PoolMemberKey`], [`PoolMember`].
    PoolMember = 34,
    /// [`PoolMemberAt`], the index.
    PoolMemberAt = 35,
}

impl What {
    /// All of them.
    pub const ALL: [Self; 35] = [
        Self::Flow,
        Self::Transient,
        Self::Binding,
        Self::Network,
        Self::Vni,
        Self::Vtep,
        Self::Fdb,
        Self::Address,
        Self::Allowed,
        Self::Route,
        Self::RouterLeg,
        Self::Underlay,
        Self::Nat,
        Self::Floating,
        Self::SnatBlock,
        Self::SnatOwner,
        Self::Gateway,
        Self::Member,
        Self::Master,
        Self::Carries,
        Self::Class,
        Self::Rule,
        Self::Learned,
        Self::HopIndex,
        Self::Hop,
        Self::Fragment,
        Self::Store,
        Self::Drop,
        Self::Event,
        Self::Leave,
        Self::Copy,
        Self::Listener,
        Self::PoolSlots,
        Self::PoolMember,
        Self::PoolMemberAt,
    ];
}

/// What precedes a key and a value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepHead {
    /// [`What`].
    pub what: u8,
    /// 1: there is one.
    pub found: u8,
    /// Bytes of the key.
    pub key: u16,
    /// Bytes of the value; 0 if there is none.
    pub value: u16,
    /// Zero.
    pub zero: u16,
}
const _: () = assert!(size_of::<StepHead>() == 8);

/// Where a packet leaves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaves {
    /// Interface index.
    pub ifindex: u32,
    /// The IPv4 next hop that the kernel resolves, or zero.
    pub nexthop: crate::addr::Be32,
    /// 1: by the other end of a veth.
    pub peer: u32,
}
const _: () = assert!(size_of::<Leaves>() == 12);

/// Who gets a copy of a flooded frame.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// The interface of a port of this node, or 0.
    pub ifindex: u32,
    /// The number of another node, or 0.
    pub node: u32,
}
const _: () = assert!(size_of::<Copied>() == 8);

/// What a trace is to be of, where the kernel runs it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceInput {
    /// `TRACE_*`.
    pub entry: u32,
    /// Interface it comes in by.
    pub ifindex: u32,
    /// 1: as if nothing were known of its flow.
    pub afresh: u32,
    /// Zero.
    pub zero: u32,
}
const _: () = assert!(size_of::<TraceInput>() == 16);

/// From a workload.
pub const TRACE_PORT: u32 = 1;
/// From the underlay.
pub const TRACE_UPLINK: u32 = 2;
/// From an external network.
pub const TRACE_EXTERNAL: u32 = 3;

/// The index of a next hop that is made for the trace alone.
pub const TRACED_HOP: u32 = u32::MAX;

/// Who takes down what is asked.
pub trait Recorder {
    /// Takes a step down. Keys and values are `repr(C)` without padding.
    fn record<K: Copy, V: Copy>(&self, what: What, found: bool, key: &K, value: Option<&V>);
    /// Whether flows are to be taken for unknown.
    fn afresh(&self) -> bool;
    /// Keeps the next hop that a packet would have made.
    fn keep_hop(&self, hop: &Hop) -> bool;
    /// It.
    fn kept_hop(&self) -> Option<&Hop>;
    /// Takes a flow for removed from here on, if there is room to remember it: the run's own connection has two.
    fn forget(&self, table: FlowTable, key: &FlowKey);
    /// Whether it is.
    fn has_forgotten(&self, table: FlowTable, key: &FlowKey) -> bool;
}

/// See the module.
pub struct Traced<T, R> {
    tables: T,
    recorder: R,
}

impl<T, R: Recorder> Traced<T, R> {
    /// What `tables` say, taken down by `recorder`.
    pub const fn new(tables: T, recorder: R) -> Self {
        Self { tables, recorder }
    }

    /// The packet leaves.
    #[inline(always)]
    pub fn leave(&self, leaves: Leaves) {
        self.recorder.record::<_, ()>(What::Leave, true, &leaves, None);
    }

    /// A frame would be copied.
    #[inline(always)]
    pub fn copy(&self, to: Copied) {
        self.recorder.record::<_, ()>(What::Copy, true, &to, None);
    }

    /// Both.
    pub fn into_parts(self) -> (T, R) {
        (self.tables, self.recorder)
    }

    #[inline(always)]
    fn saw<'v, K: Copy, V: Copy>(&self, what: What, key: &K, value: Option<&'v V>) -> Option<&'v V> {
        self.recorder.record(what, value.is_some(), key, value);
        value
    }

    #[inline(always)]
    fn says<K: Copy>(&self, what: What, key: &K, found: bool) -> bool {
        self.recorder.record::<_, ()>(what, found, key, None);
        found
    }
}

impl<T: Tables, R: Recorder> Traced<T, R> {
    /// What is in a table of flows, less what would be removed by now.
    #[inline(always)]
    fn there(&self, table: FlowTable, key: &FlowKey) -> Option<&Flow> {
        if self.recorder.has_forgotten(table, key) {
            return None;
        }
        match table {
            FlowTable::Flows => self.tables.flow(key),
            FlowTable::Transient => self.tables.transient(key),
        }
    }
}

impl<T: Tables, R: Recorder> Tables for Traced<T, R> {
    #[inline(always)]
    fn commit(&self) -> Option<&Commit> {
        self.tables.commit()
    }

    #[inline(always)]
    fn revision(&self, network: u32) -> u32 {
        self.tables.revision(network)
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        if self.recorder.afresh() {
            return None;
        }
        self.saw(What::Flow, key, self.there(FlowTable::Flows, key))
    }

    #[inline(always)]
    fn transient(&self, key: &FlowKey) -> Option<&Flow> {
        if self.recorder.afresh() {
            return None;
        }
        self.saw(What::Transient, key, self.there(FlowTable::Transient, key))
    }

    #[inline(always)]
    fn store(&self, table: FlowTable, key: &FlowKey, flow: &Flow, how: Store) -> Result<(), StoreError> {
        // A port that another connection has is none for this one.
        let is_there = self.there(table, key).is_some();
        let stored = !(is_there && how == Store::New && !self.recorder.afresh());
        self.recorder.record(What::Store, stored, key, Some(flow));
        if stored { Ok(()) } else { Err(StoreError::Exists) }
    }

    #[inline(always)]
    fn remove(&self, table: FlowTable, key: &FlowKey) {
        self.recorder.forget(table, key);
    }

    #[inline(always)]
    fn note_tcp(&self, _flow: &Flow, _flags: u8) {}

    #[inline(always)]
    fn touch(&self, _flow: &Flow, _bytes: u64) {}

    #[inline(always)]
    fn now(&self) -> u32 {
        self.tables.now()
    }

    #[inline(always)]
    fn binding(&self, key: &BindingKey) -> Option<&Binding> {
        self.saw(What::Binding, key, self.tables.binding(key))
    }

    #[inline(always)]
    fn network(&self, key: &NetworkKey) -> Option<&Network> {
        self.saw(What::Network, key, self.tables.network(key))
    }

    #[inline(always)]
    fn vni(&self, key: &VniKey) -> Option<u32> {
        let value = self.tables.vni(key);
        self.saw(What::Vni, key, value.as_ref()).copied()
    }

    #[inline(always)]
    fn vtep(&self, key: &VtepKey) -> Option<u32> {
        let value = self.tables.vtep(key);
        self.saw(What::Vtep, key, value.as_ref()).copied()
    }

    #[inline(always)]
    fn fdb(&self, key: &FdbKey) -> Option<&Station> {
        self.saw(What::Fdb, key, self.tables.fdb(key))
    }

    #[inline(always)]
    fn address(&self, key: &AddressKey) -> Option<&Station> {
        self.saw(What::Address, key, self.tables.address(key))
    }

    #[inline(always)]
    fn allowed(&self, key: &AllowedKey) -> bool {
        self.says(What::Allowed, key, self.tables.allowed(key))
    }

    #[inline(always)]
    fn route(&self, key: &RouteKey) -> Option<&Route> {
        self.saw(What::Route, key, self.tables.route(key))
    }

    #[inline(always)]
    fn router_leg(&self, key: &RouterLegKey) -> Option<&RouterLeg> {
        self.saw(What::RouterLeg, key, self.tables.router_leg(key))
    }

    #[inline(always)]
    fn underlay(&self, node: u32) -> Option<&Underlay> {
        self.saw(What::Underlay, &node, self.tables.underlay(node))
    }

    #[inline(always)]
    fn nat(&self, key: &NatKey) -> Option<&Nat> {
        self.saw(What::Nat, key, self.tables.nat(key))
    }

    #[inline(always)]
    fn floating(&self, key: &FloatingKey) -> Option<&Floating> {
        self.saw(What::Floating, key, self.tables.floating(key))
    }

    #[inline(always)]
    fn snat_block(&self, key: &SnatBlockKey) -> Option<&SnatBlock> {
        self.saw(What::SnatBlock, key, self.tables.snat_block(key))
    }

    #[inline(always)]
    fn snat_owner(&self, key: &SnatOwnerKey) -> Option<&SnatOwner> {
        self.saw(What::SnatOwner, key, self.tables.snat_owner(key))
    }

    #[inline(always)]
    fn gateway(&self, key: &GatewayKey) -> Option<u32> {
        let value = self.tables.gateway(key);
        self.saw(What::Gateway, key, value.as_ref()).copied()
    }

    #[inline(always)]
    fn member(&self, key: &MemberKey) -> Option<&Member> {
        self.saw(What::Member, key, self.tables.member(key))
    }

    #[inline(always)]
    fn listener(&self, key: &ListenerKey) -> Option<&Listener> {
        self.saw(What::Listener, key, self.tables.listener(key))
    }

    #[inline(always)]
    fn pool_slots(&self, key: &PoolSlotsKey) -> Option<&PoolSlots> {
        // Longer than what else is taken down; who is asked about next says what it said.
        let slots = self.tables.pool_slots(key);
        self.recorder.record::<_, ()>(What::PoolSlots, slots.is_some(), key, None);
        slots
    }

    #[inline(always)]
    fn pool_member(&self, key: &PoolMemberKey) -> Option<&PoolMember> {
        self.saw(What::PoolMember, key, self.tables.pool_member(key))
    }

    #[inline(always)]
    fn pool_member_at(&self, key: &PoolMemberAt) -> Option<u32> {
        let value = self.tables.pool_member_at(key);
        self.saw(What::PoolMemberAt, key, value.as_ref()).copied()
    }

    #[inline(always)]
    fn flood(&self, key: &FloodKey) -> Option<&Flood> {
        // Who gets a copy is taken down as such.
        self.tables.flood(key)
    }

    #[inline(always)]
    fn is_master(&self, key: &MasterKey) -> bool {
        self.says(What::Master, key, self.tables.is_master(key))
    }

    #[inline(always)]
    fn carries(&self, key: &MasterKey) -> bool {
        self.says(What::Carries, key, self.tables.carries(key))
    }

    #[inline(always)]
    fn heard_master(&self, _key: &MasterKey) {}

    #[inline(always)]
    fn class(&self, key: &ClassKey) -> u32 {
        let class = self.tables.class(key);
        self.recorder.record(What::Class, class != 0, key, Some(&class));
        class
    }

    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> Option<&Rule> {
        self.saw(What::Rule, key, self.tables.rule(key))
    }

    #[inline(always)]
    fn learned(&self, key: &LearnedKey) -> Option<&Learned> {
        self.saw(What::Learned, key, self.tables.learned(key))
    }

    #[inline(always)]
    fn store_learned(&self, _key: &LearnedKey, _learned: &Learned) {}

    #[inline(always)]
    fn expire_network(&self, _network: u32) {}

    #[inline(always)]
    fn hop_index(&self, key: &HopKey) -> Option<u32> {
        let value = self.tables.hop_index(key);
        self.saw(What::HopIndex, key, value.as_ref()).copied()
    }

    #[inline(always)]
    fn new_hop(&self, _key: &HopKey, hop: &Hop) -> Option<u32> {
        if self.recorder.keep_hop(hop) { Some(TRACED_HOP) } else { None }
    }

    #[inline(always)]
    fn hop(&self, index: u32) -> Option<&Hop> {
        let hop = if index == TRACED_HOP { self.recorder.kept_hop() } else { self.tables.hop(index) };
        self.saw(What::Hop, &index, hop)
    }

    #[inline(always)]
    fn may_ask(&self, _index: u32) -> bool {
        true
    }

    #[inline(always)]
    fn learn(&self, _index: u32, _mac: [u8; 6]) -> bool {
        false
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        let value = self.tables.fragment(key);
        self.saw(What::Fragment, key, value.as_ref()).copied()
    }

    #[inline(always)]
    fn store_fragment(&self, _key: &FragmentKey, _fragment: &Fragment) {}

    #[inline(always)]
    fn may_answer(&self) -> bool {
        true
    }

    #[inline(always)]
    fn count_tries(&self, _bucket: u32) {}

    #[inline(always)]
    fn count_balanced(&self, _listener: u32, _member: u32) {}

    #[inline(always)]
    fn count_drop(&self, reason: DropReason, bytes: u64) {
        // The length says nothing new. But without it some functions would not need the packet, and the compiler would
        // not pass it on, which the verifier insists on.
        self.recorder.record(What::Drop, true, &(reason as u32), Some(&bytes));
    }

    #[inline(always)]
    fn count(&self, event: Event) {
        self.recorder.record::<_, ()>(What::Event, true, &(event as u32), None);
    }
}
