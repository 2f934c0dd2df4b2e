//! The decision in user space: a packet in memory, tables in memory, and the same pipeline.

use core::cell::{Cell, RefCell};
use std::{collections::BTreeMap, sync::Arc};

use crate::{
    addr::{Be16, Be32},
    answer,
    apply::{Exit, Hook},
    checksum,
    flood::{Next, Round},
    flow::{FLOW_FRAMES, Flow, FlowKey},
    packet::{NoRoom, Packet, View},
    parse::Headers,
    pipeline,
    plan::{Decision, Ingress, Plan, Work},
    reason::{DropReason, Event},
    tables::*,
    traced::Copied,
    track::{self, Search, Settled},
    tunnel,
    wire::*,
};

/// A frame in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryPacket {
    bytes: Vec<Cell<u8>>,
    /// Set for a super-packet.
    pub gso_size: u32,
    /// The transport checksum is not complete yet: its field holds the pseudo-header's sum, not complemented,
    /// and whoever sends the packet out finishes it (the kernel's `CHECKSUM_PARTIAL`).
    pub partial: bool,
}

impl MemoryPacket {
    /// A copy of a frame.
    pub fn new(frame: &[u8]) -> Self {
        Self { bytes: frame.iter().map(|&byte| Cell::new(byte)).collect(), ..Self::default() }
    }

    /// The frame as it is now.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes.iter().map(Cell::get).collect()
    }
}

impl Packet for MemoryPacket {
    type View<'a> = &'a [Cell<u8>];

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn view(&self, at: usize, len: usize) -> Option<Self::View<'_>> {
        self.bytes.get(at..at.checked_add(len)?)
    }

    fn gso_size(&self) -> u32 {
        self.gso_size
    }

    fn push_outer(&mut self) -> Result<(), NoRoom> {
        self.push_front(OUTER_LEN)
    }

    fn pop_outer(&mut self) -> Result<(), NoRoom> {
        if self.bytes.len() < OUTER_LEN + ETH_LEN {
            return Err(NoRoom);
        }
        self.bytes.drain(..OUTER_LEN);
        Ok(())
    }

    fn push_front(&mut self, bytes: usize) -> Result<(), NoRoom> {
        self.bytes.splice(0..0, core::iter::repeat_n(Cell::new(0), bytes));
        Ok(())
    }

    fn resize(&mut self, len: usize) -> Result<(), NoRoom> {
        self.bytes.resize(len, Cell::new(0));
        Ok(())
    }

    fn adjust_checksum(
        &mut self,
        at: usize,
        addresses: u16,
        own: u16,
        _v6: bool,
        optional: bool,
    ) -> Result<(), NoRoom> {
        // As `bpf_l4_csum_replace` does it, once for each.
        for (delta, pseudo) in [(addresses, true), (own, false)] {
            let field = self.view(at, 2).ok_or(NoRoom)?;
            let old = field.be16(0);
            if delta == 0 || optional && old == Be16::new(0) || self.partial && !pseudo {
                continue;
            }
            let new = if self.partial {
                Be16::from_memory(checksum::fold(u32::from(old.memory()) + u32::from(delta)))
            } else {
                checksum::adjust(old, delta)
            };
            field.put_be16(0, if optional && new == Be16::new(0) { Be16::new(0xffff) } else { new });
        }
        Ok(())
    }

    fn sum(&self, at: usize, len: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(len)?)?;
        let mut sum = 0;
        for pair in bytes.chunks(2) {
            let second = pair.get(1).map_or(0, Cell::get);
            sum += u32::from(u16::from_ne_bytes([pair[0].get(), second]));
        }
        Some(u32::from(checksum::fold(sum)))
    }
}

impl View for &[Cell<u8>] {
    fn u8(&self, at: usize) -> u8 {
        self[at].get()
    }

    fn be16(&self, at: usize) -> Be16 {
        Be16::from_memory(u16::from_ne_bytes([self[at].get(), self[at + 1].get()]))
    }

    fn be32(&self, at: usize) -> Be32 {
        Be32::from_memory(u32::from_ne_bytes([0, 1, 2, 3].map(|i| self[at + i].get())))
    }

    fn put_u8(&self, at: usize, value: u8) {
        self[at].set(value);
    }

    fn put_be16(&self, at: usize, value: Be16) {
        for (i, byte) in value.memory().to_ne_bytes().into_iter().enumerate() {
            self[at + i].set(byte);
        }
    }

    fn put_be32(&self, at: usize, value: Be32) {
        for (i, byte) in value.memory().to_ne_bytes().into_iter().enumerate() {
            self[at + i].set(byte);
        }
    }
}

/// One bank of compiled topology, keys without their bank bit. What the compiler produces, what the agent
/// writes into the maps, and what the decision runs on in user space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Ports by interface.
    pub bindings: BTreeMap<BindingKey, Binding>,
    /// Networks.
    pub networks: BTreeMap<NetworkKey, Network>,
    /// Network numbers by VNI.
    pub vnis: BTreeMap<VniKey, u32>,
    /// Node numbers by VTEP.
    pub vteps: BTreeMap<VtepKey, u32>,
    /// Stations by hardware address.
    pub fdb: BTreeMap<FdbKey, Station>,
    /// Stations by address.
    pub addresses: BTreeMap<AddressKey, Station>,
    /// Allowed sources; the value says nothing.
    pub allowed: BTreeMap<AllowedKey, u32>,
    /// Routes.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Router legs.
    pub router_legs: BTreeMap<RouterLegKey, RouterLeg>,
    /// Flooding lists.
    pub floods: BTreeMap<FloodKey, Flood>,
    /// Where outside addresses lead.
    pub nat: BTreeMap<NatKey, Nat>,
    /// Floating IPs by fixed IP.
    pub floating: BTreeMap<FloatingKey, Floating>,
    /// Blocks of ports of this node.
    pub snat_blocks: BTreeMap<SnatBlockKey, SnatBlock>,
    /// Blocks of ports of others.
    pub snat_owners: BTreeMap<SnatOwnerKey, SnatOwner>,
    /// Gateways of external networks on which this node has no interface.
    pub gateways: BTreeMap<GatewayKey, u32>,
    /// Next hops of routes with several.
    pub members: BTreeMap<MemberKey, Member>,
    /// Ports of VIPs.
    pub listeners: BTreeMap<ListenerKey, Listener>,
    /// Pools, by number. Shared: of thousands few change, and what is the same is not looked into.
    pub pools: BTreeMap<u32, Arc<PoolImage>>,
    /// Classes of remote addresses.
    pub classes: BTreeMap<ClassKey, u32>,
    /// Rules that allow.
    pub rules: BTreeMap<RuleKey, Rule>,
}

/// What there is of one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolImage {
    /// Who has which slots.
    pub slots: BTreeMap<PoolSlotsKey, PoolSlots>,
    /// Its members.
    pub members: BTreeMap<PoolMemberKey, PoolMember>,
    /// The same by where they are.
    pub members_at: BTreeMap<PoolMemberAt, u32>,
    /// Its members' stations on an external network: beside [`Image::fdb`], in the same table of the kernel.
    pub stations: BTreeMap<FdbKey, Station>,
}

impl Image {
    /// A pool, to be changed.
    pub fn pool_mut(&mut self, pool: u32) -> &mut PoolImage {
        Arc::make_mut(self.pools.entry(pool).or_default())
    }

    /// A station by its hardware address, of pools' members as well.
    pub fn station(&self, key: &FdbKey) -> Option<&Station> {
        let of_pools = || self.pools.values().find_map(|pool| pool.stations.get(key));
        self.fdb.get(key).or_else(of_pools)
    }

    /// All stations by hardware address, those of pools' members as well, these last.
    pub fn stations(&self) -> impl Iterator<Item = (&FdbKey, &Station)> {
        self.fdb.iter().chain(self.pools.values().flat_map(|pool| &pool.stations))
    }

    /// Adds rules that allow everything both ways to a policy, with or without replies.
    pub fn allow_all(&mut self, policy: u32, flags: u32) {
        for direction in 0..4 {
            let key = RuleKey {
                prefix_len: RuleKey::ANY_BITS,
                policy: Scoped::new(0, policy),
                class: 0,
                direction,
                proto: 0,
                port: Be16::new(0),
            };
            self.rules.insert(key, Rule { rule: 0, flags });
        }
    }
}

/// Everything the decision looks up, in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryTables {
    /// The state in force; its epoch must be even, so that its bank is 0, where [`Image`]'s keys are.
    pub commit: Commit,
    /// The compiled topology.
    pub image: Image,
    /// Epochs by network; missing: 0.
    pub revisions: BTreeMap<u32, u32>,
    /// Ways to the nodes.
    pub underlay: BTreeMap<u32, Underlay>,
    /// The tables of flows. Entries are leaked boxes: a reader may hold one while it is replaced.
    flows: RefCell<BTreeMap<FlowKey, &'static Flow>>,
    transient: RefCell<BTreeMap<FlowKey, &'static Flow>>,
    /// Whose value a box is or was, by its address: two keys may have one tag.
    keys: RefCell<BTreeMap<usize, (FlowTable, FlowKey)>>,
    /// Entries the table of answered flows takes; `None`: any number.
    pub flows_max: Option<usize>,
    /// Whether flows are stored.
    pub flows_disabled: bool,
    /// The clock, in ticks.
    pub clock: Cell<u32>,
    /// The monotonic clock.
    pub nanoseconds: Cell<u64>,
    /// Which virtual routers this node is the master of.
    pub masters: RefCell<BTreeMap<MasterKey, Master>>,
    learned: RefCell<BTreeMap<LearnedKey, &'static Learned>>,
    /// Networks whose flows are out of date.
    pub expired: RefCell<BTreeMap<u32, u32>>,
    hop_keys: RefCell<BTreeMap<HopKey, u32>>,
    hops: RefCell<BTreeMap<u32, &'static Hop>>,
    fragments: RefCell<BTreeMap<FragmentKey, Fragment>>,
    /// New connections by listener and member.
    pub balanced: RefCell<BTreeMap<(u32, u32), u64>>,
    /// How many ports were tried, by bucket.
    pub tries: RefCell<BTreeMap<u32, u64>>,
    scratch: RefCell<Work>,
    /// Dropped packets.
    pub drops: RefCell<BTreeMap<DropReason, u64>>,
    /// Other events.
    pub events: RefCell<BTreeMap<Event, u64>>,
}

impl MemoryTables {
    /// The answered flows.
    pub fn flows(&self) -> Vec<(FlowKey, Flow)> {
        self.flows.borrow().iter().map(|(key, flow)| (*key, **flow)).collect()
    }

    /// Unanswered flows and remembered stateless decisions.
    pub fn transients(&self) -> Vec<(FlowKey, Flow)> {
        self.transient.borrow().iter().map(|(key, flow)| (*key, **flow)).collect()
    }

    /// The next hops.
    pub fn hops(&self) -> Vec<(u32, Hop)> {
        self.hops.borrow().iter().map(|(index, hop)| (*index, **hop)).collect()
    }

    /// Changes a next hop, as the agent would.
    pub fn set_hop(&self, index: u32, hop: Hop) {
        self.hop_keys.borrow_mut().insert(HopKey { network: hop.network, ip: hop.ip }, index);
        self.hops.borrow_mut().insert(index, Box::leak(Box::new(hop)));
    }

    fn table(&self, table: FlowTable) -> &RefCell<BTreeMap<FlowKey, &'static Flow>> {
        match table {
            FlowTable::Flows => &self.flows,
            FlowTable::Transient => &self.transient,
        }
    }

    fn leak(&self, table: FlowTable, key: &FlowKey, flow: Flow) -> &'static Flow {
        let leaked = Box::leak(Box::new(flow));
        self.keys.borrow_mut().insert(std::ptr::from_ref(leaked).addr(), (table, *key));
        leaked
    }

    /// Changes the entry of which `flow` is, or was a moment ago, the value.
    fn change(&self, flow: &Flow, change: impl Fn(&mut Flow)) {
        let whose = self.keys.borrow().get(&std::ptr::from_ref(flow).addr()).copied();
        let (table, key) = whose.expect("a flow of these tables");
        let Some(mut changed) = self.table(table).borrow().get(&key).map(|flow| **flow) else {
            return;
        };
        change(&mut changed);
        let changed = self.leak(table, &key, changed);
        self.table(table).borrow_mut().insert(key, changed);
    }
}

/// Longest prefix match by trying every length: slow and plainly right.
fn longest<K: Ord + Copy, V>(
    table: &BTreeMap<K, V>,
    fixed_bits: u32,
    masked: impl Fn(u32) -> K,
) -> Option<&V> {
    (0..=128).rev().find_map(|len| table.get(&masked(fixed_bits + len)))
}

fn mask(ip: crate::addr::Ip, len: u32) -> crate::addr::Ip {
    let mut words = ip.0;
    for (i, word) in words.iter_mut().enumerate() {
        let bits = len.saturating_sub(i as u32 * 32).min(32);
        let mask = if bits == 0 { 0 } else { u32::MAX << (32 - bits) };
        *word = (u32::from_be(*word) & mask).to_be();
    }
    crate::addr::Ip(words)
}

impl Tables for MemoryTables {
    fn commit(&self) -> Option<&Commit> {
        Some(&self.commit)
    }

    fn revision(&self, network: u32) -> u32 {
        let expired = self.expired.borrow().get(&network).copied().unwrap_or(0);
        self.revisions.get(&network).copied().unwrap_or(0).max(expired)
    }

    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.borrow().get(key).copied()
    }

    fn transient(&self, key: &FlowKey) -> Option<&Flow> {
        self.transient.borrow().get(key).copied()
    }

    fn store(&self, table: FlowTable, key: &FlowKey, flow: &Flow, how: Store) -> Result<(), StoreError> {
        if self.flows_disabled {
            return Err(StoreError::Full);
        }
        let mut entries = self.table(table).borrow_mut();
        if entries.contains_key(key) {
            if how == Store::New {
                return Err(StoreError::Exists);
            }
        } else if table == FlowTable::Flows && self.flows_max.is_some_and(|max| entries.len() >= max) {
            return Err(StoreError::Full);
        }
        entries.insert(*key, self.leak(table, key, *flow));
        Ok(())
    }

    fn remove(&self, table: FlowTable, key: &FlowKey) {
        self.table(table).borrow_mut().remove(key);
    }

    fn note_tcp(&self, flow: &Flow, flags: u8) {
        self.change(flow, |flow| flow.tcp_flags |= flags);
    }

    fn touch(&self, flow: &Flow, bytes: u64) {
        let now = self.now();
        self.change(flow, |flow| {
            flow.seen = now;
            flow.packets += 1;
            flow.bytes += bytes;
        });
    }

    fn now(&self) -> u32 {
        self.clock.get()
    }

    fn binding(&self, key: &BindingKey) -> Option<&Binding> {
        self.image.bindings.get(key)
    }

    fn network(&self, key: &NetworkKey) -> Option<&Network> {
        self.image.networks.get(key)
    }

    fn vni(&self, key: &VniKey) -> Option<u32> {
        self.image.vnis.get(key).copied()
    }

    fn vtep(&self, key: &VtepKey) -> Option<u32> {
        self.image.vteps.get(key).copied()
    }

    fn fdb(&self, key: &FdbKey) -> Option<&Station> {
        self.image.station(key)
    }

    fn address(&self, key: &AddressKey) -> Option<&Station> {
        self.image.addresses.get(key)
    }

    fn allowed(&self, key: &AllowedKey) -> bool {
        longest(&self.image.allowed, AllowedKey::FIXED_BITS, |prefix_len| AllowedKey {
            prefix_len,
            ip: mask(key.ip, prefix_len - AllowedKey::FIXED_BITS),
            ..*key
        })
        .is_some()
    }

    fn route(&self, key: &RouteKey) -> Option<&Route> {
        longest(&self.image.routes, RouteKey::FIXED_BITS, |prefix_len| RouteKey {
            prefix_len,
            dst: mask(key.dst, prefix_len - RouteKey::FIXED_BITS),
            ..*key
        })
    }

    fn router_leg(&self, key: &RouterLegKey) -> Option<&RouterLeg> {
        self.image.router_legs.get(key)
    }

    fn underlay(&self, node: u32) -> Option<&Underlay> {
        self.underlay.get(&node)
    }

    fn nat(&self, key: &NatKey) -> Option<&Nat> {
        self.image.nat.get(key)
    }

    fn floating(&self, key: &FloatingKey) -> Option<&Floating> {
        self.image.floating.get(key)
    }

    fn snat_block(&self, key: &SnatBlockKey) -> Option<&SnatBlock> {
        self.image.snat_blocks.get(key)
    }

    fn snat_owner(&self, key: &SnatOwnerKey) -> Option<&SnatOwner> {
        self.image.snat_owners.get(key)
    }

    fn gateway(&self, key: &GatewayKey) -> Option<u32> {
        self.image.gateways.get(key).copied()
    }

    fn member(&self, key: &MemberKey) -> Option<&Member> {
        self.image.members.get(key)
    }

    fn listener(&self, key: &ListenerKey) -> Option<&Listener> {
        self.image.listeners.get(key)
    }

    fn pool_slots(&self, key: &PoolSlotsKey) -> Option<&PoolSlots> {
        self.image.pools.get(&key.pool.id())?.slots.get(key)
    }

    fn pool_member(&self, key: &PoolMemberKey) -> Option<&PoolMember> {
        self.image.pools.get(&key.pool.id())?.members.get(key)
    }

    fn pool_member_at(&self, key: &PoolMemberAt) -> Option<u32> {
        self.image.pools.get(&key.pool.id())?.members_at.get(key).copied()
    }

    fn flood(&self, key: &FloodKey) -> Option<&Flood> {
        self.image.floods.get(key)
    }

    fn is_master(&self, key: &MasterKey) -> bool {
        self.masters.borrow().get(key).is_some_and(Master::speaks)
    }

    fn carries(&self, key: &MasterKey) -> bool {
        self.masters.borrow().get(key).is_some_and(|master| master.carries(self.nanoseconds.get()))
    }

    fn heard_master(&self, key: &MasterKey) {
        if let Some(master) = self.masters.borrow_mut().get_mut(key) {
            *master = master.heard(self.nanoseconds.get());
        }
    }

    fn class(&self, key: &ClassKey) -> u32 {
        longest(&self.image.classes, ClassKey::FIXED_BITS, |prefix_len| ClassKey {
            prefix_len,
            ip: mask(key.ip, prefix_len - ClassKey::FIXED_BITS),
            ..*key
        })
        .copied()
        .unwrap_or(0)
    }

    fn rule(&self, key: &RuleKey) -> Option<&Rule> {
        (RuleKey::ANY_BITS..=RuleKey::ALL_BITS).rev().find_map(|prefix_len| {
            let bits = prefix_len.saturating_sub(RuleKey::PROTO_BITS);
            let port = if bits == 0 { 0 } else { key.port.get() & (u16::MAX << (16 - bits)) };
            let proto = if prefix_len < RuleKey::PROTO_BITS { 0 } else { key.proto };
            self.image.rules.get(&RuleKey { prefix_len, proto, port: Be16::new(port), ..*key })
        })
    }

    fn learned(&self, key: &LearnedKey) -> Option<&Learned> {
        self.learned.borrow().get(key).copied()
    }

    fn store_learned(&self, key: &LearnedKey, learned: &Learned) {
        self.learned.borrow_mut().insert(*key, Box::leak(Box::new(*learned)));
    }

    fn expire_network(&self, network: u32) {
        self.expired.borrow_mut().insert(network, self.commit.epoch + 1);
    }

    fn hop_index(&self, key: &HopKey) -> Option<u32> {
        self.hop_keys.borrow().get(key).copied()
    }

    fn new_hop(&self, key: &HopKey, hop: &Hop) -> Option<u32> {
        if let Some(index) = self.hop_index(key) {
            return Some(index);
        }
        let index = self.hops.borrow().len() as u32;
        self.set_hop(index, *hop);
        Some(index)
    }

    fn hop(&self, index: u32) -> Option<&Hop> {
        self.hops.borrow().get(&index).copied()
    }

    fn may_ask(&self, index: u32) -> bool {
        let Some(hop) = self.hop(index) else { return false };
        let now = self.now().max(1);
        if hop.asked != 0 && now.wrapping_sub(hop.asked) < crate::tables::ASK_TICKS {
            return false;
        }
        self.set_hop(index, Hop { asked: now, ..*hop });
        true
    }

    fn learn(&self, index: u32, mac: [u8; 6]) -> bool {
        let Some(hop) = self.hop(index) else { return false };
        let known = hop.flags & HOP_RESOLVED != 0 && hop.mac == mac;
        let flags = hop.flags & !HOP_FAILED | HOP_RESOLVED;
        self.set_hop(index, Hop { mac, flags, confirmed: self.now(), ..*hop });
        !known
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn store_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *fragment);
    }

    fn may_answer(&self) -> bool {
        true
    }

    fn count_tries(&self, bucket: u32) {
        *self.tries.borrow_mut().entry(bucket).or_default() += 1;
    }

    fn count_balanced(&self, listener: u32, member: u32) {
        *self.balanced.borrow_mut().entry((listener, member)).or_insert(0) += 1;
    }

    fn count_drop(&self, reason: DropReason, _bytes: u64) {
        *self.drops.borrow_mut().entry(reason).or_default() += 1;
    }

    fn count(&self, event: Event) {
        *self.events.borrow_mut().entry(event).or_default() += 1;
    }
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Sent by an interface.
    Sent {
        /// Interface index.
        ifindex: u32,
        /// As it left.
        frame: Vec<u8>,
    },
    /// Sent by an interface to a next hop the kernel resolves.
    SentToNeighbour {
        /// Interface index.
        ifindex: u32,
        /// IPv4 next hop.
        nexthop: Be32,
        /// As it left, without its outer Ethernet addresses.
        frame: Vec<u8>,
    },
    /// Answered to the port it came from; the reason if it was also refused.
    Answered {
        /// The answer.
        frame: Vec<u8>,
        /// Why the packet went no further.
        refused: Option<DropReason>,
    },
    /// Copied to every receiver of a network.
    Flooded {
        /// Network number.
        network: u32,
        /// Who gets a copy: ports, then nodes.
        copies: Vec<Copied>,
    },
    /// Left to the kernel or the next hook.
    Passed,
    /// Waits for a next hop; the request for it, if it is time for one, and where that is sent.
    Waiting {
        /// Index of the next hop.
        hop: u32,
        /// Interface and frame.
        request: Option<(u32, Vec<u8>)>,
    },
    /// To be cut to pieces, which leave as the flow says.
    Fragmented(Box<Flow>),
    /// Handed to the agent, for a service of this node.
    Served,
    /// Dropped.
    Dropped(DropReason),
}

impl Verdict {
    /// The number of the network that a frame was flooded on.
    pub fn flooded(&self) -> Option<u32> {
        match self {
            Self::Flooded { network, .. } => Some(*network),
            _ => None,
        }
    }
}

/// Where a frame enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// From a workload, on the interface of this index.
    Port(u32),
    /// From the underlay.
    Uplink,
    /// From an external network, on the interface of this index.
    External(u32),
}

/// Runs a frame through the decision as a TC program would.
pub fn run(tables: &MemoryTables, entry: Entry, packet: MemoryPacket) -> Verdict {
    run_with(tables, &mut tables.scratch.borrow_mut(), entry, packet)
}

/// The same over other tables. `work`: as the kernel's scratch, it holds what the packet before left in it.
pub fn run_with<T: Tables>(tables: &T, work: &mut Work, entry: Entry, packet: MemoryPacket) -> Verdict {
    let bytes = packet.len() as u64;
    let verdict = try_run(tables, work, entry, packet).unwrap_or_else(Verdict::Dropped);
    match &verdict {
        Verdict::Dropped(reason) | Verdict::Answered { refused: Some(reason), .. } => {
            tables.count_drop(*reason, bytes);
        }
        _ => {}
    }
    verdict
}

fn try_run<T: Tables>(
    tables: &T,
    work: &mut Work,
    entry: Entry,
    mut packet: MemoryPacket,
) -> Result<Verdict, DropReason> {
    let Some(ingress) = enter(tables, entry, &packet)? else {
        tables.count(Event::ToKernel);
        return Ok(Verdict::Passed);
    };
    let mut unknown = false;
    if let Some(exit) = pipeline::established(&mut packet, tables, &ingress, Hook::Tc, &mut unknown) {
        return Ok(sent(exit?, &packet));
    }
    work.plan.unknown = unknown;
    pipeline::read(&packet, tables, &ingress, &mut work.headers, &mut work.quoted, Hook::Tc)?;
    let Work { headers, quoted, plan, .. } = &mut *work;
    pipeline::recall(&packet, tables, &ingress, headers, quoted, plan)?;
    let mut decision = pipeline::first(&packet, tables, &ingress, headers, quoted, plan)?;
    while decision == Decision::Route {
        decision = pipeline::pass(&packet, tables, headers, plan)?;
    }
    if matches!(decision, Decision::Forward | Decision::ForwardOnce | Decision::Wait | Decision::Fragment) {
        settle(tables, &ingress, headers, plan, decision, Hook::Tc)?;
    }
    match decision {
        Decision::Forward | Decision::ForwardOnce => {
            match pipeline::apply_first(&mut packet, tables, &ingress, work, Hook::Tc) {
                Some(exit) => Ok(sent(exit?, &packet)),
                None => Err(DropReason::HopPending),
            }
        }
        Decision::Answer => {
            tables.count(answer::write(&mut packet, headers, &plan.answer)?);
            Ok(Verdict::Answered { frame: packet.to_vec(), refused: None })
        }
        Decision::Reject(reason) => {
            tables.count(answer::write(&mut packet, headers, &plan.answer)?);
            Ok(Verdict::Answered { frame: packet.to_vec(), refused: Some(reason) })
        }
        Decision::Flood => {
            tables.count(Event::FrameFlooded);
            Ok(flood(tables, &ingress, headers, plan, packet.len()))
        }
        Decision::Wait => {
            if packet.len() > UPCALL_FRAME_MAX {
                tables.count_drop(DropReason::HopPending, packet.len() as u64);
            } else {
                tables.count(Event::HopQueued);
            }
            let hop = plan.flow.target;
            let mut request = None;
            // As in the kernel: what still has outer headers cannot become a request.
            if !ingress.tunnelled() && tables.may_ask(hop) {
                tables.count(Event::HopAsked);
                if let Exit::Interface(ifindex) = answer::request::write(&mut packet, tables, plan)? {
                    request = Some((ifindex, packet.to_vec()));
                }
            }
            Ok(Verdict::Waiting { hop, request })
        }
        Decision::Route => Err(DropReason::Internal),
        Decision::Fragment if packet.len() > UPCALL_FRAME_MAX => Err(DropReason::TooBig),
        Decision::Fragment => {
            tables.count(Event::FragmentQueued);
            Ok(Verdict::Fragmented(Box::new(plan.flow)))
        }
        Decision::Service if packet.len() > UPCALL_FRAME_MAX => Err(DropReason::ServiceTooLong),
        Decision::Service => {
            tables.count(Event::ServiceQueued);
            Ok(Verdict::Served)
        }
        Decision::Pass => {
            tables.count(Event::ToKernel);
            Ok(Verdict::Passed)
        }
    }
}

fn flood<T: Tables>(tables: &T, ingress: &Ingress, headers: &Headers, plan: &Plan, len: usize) -> Verdict {
    let mut round = Round::new(plan.bank, plan.flood_network, ingress);
    let mut copies = Vec::new();
    loop {
        match round.port(tables, headers) {
            Next::Port(ifindex) => copies.push(Copied { ifindex, node: 0 }),
            Next::End => break,
            _ => {}
        }
    }
    let bytes = (len + OUTER_LEN) as u64;
    if !ingress.tunnelled() && round.remote(tables) {
        loop {
            match round.node(tables, bytes) {
                Next::Node(node, _) => copies.push(Copied { ifindex: 0, node }),
                Next::End => break,
                _ => {}
            }
        }
    }
    Verdict::Flooded { network: plan.flood_network, copies }
}

fn settle<T: Tables>(
    tables: &T,
    ingress: &Ingress,
    headers: &Headers,
    plan: &mut Plan,
    decision: Decision,
    hook: Hook,
) -> Result<(), DropReason> {
    match pipeline::settle(tables, ingress, headers, plan, decision, hook)? {
        Settled::Done => return Ok(()),
        Settled::Finish => {}
        Settled::Reserve => {
            let (choice, search) = (track::choice(plan), Search::new(tables, headers, plan));
            pipeline::reserve(tables, choice, search, |port| track::claim(tables, plan, port))?;
        }
    }
    track::finish(tables, headers, plan);
    Ok(())
}

/// Where a frame comes in; `None`: not ours.
fn enter<T: Tables>(tables: &T, entry: Entry, packet: &MemoryPacket) -> Result<Option<Ingress>, DropReason> {
    let Some(commit) = tables.commit() else { return Ok(None) };
    Ok(match entry {
        Entry::Port(ifindex) => Some(Ingress::port(ifindex)),
        Entry::Uplink => tunnel::open(packet, commit.vtep)?.map(|outer| Ingress::tunnel(&outer)),
        Entry::External(ifindex) => commit.external_vni(ifindex).map(Ingress::external),
    })
}

/// Runs a frame through the decision as an XDP program would: `None`: left to TC or the kernel.
pub fn run_xdp(
    tables: &MemoryTables,
    entry: Entry,
    packet: MemoryPacket,
) -> Result<Option<(u32, Vec<u8>)>, DropReason> {
    let bytes = packet.len() as u64;
    match try_run_xdp(tables, entry, packet) {
        Ok(Some((Exit::Interface(ifindex) | Exit::Peer(ifindex), frame))) => Ok(Some((ifindex, frame))),
        Ok(Some(_)) => {
            tables.count(Event::XdpPassed);
            Ok(None)
        }
        Ok(None) => Ok(None),
        Err(reason) => {
            tables.count_drop(reason, bytes);
            Err(reason)
        }
    }
}

fn try_run_xdp(
    tables: &MemoryTables,
    entry: Entry,
    mut packet: MemoryPacket,
) -> Result<Option<(Exit, Vec<u8>)>, DropReason> {
    let Some(ingress) = enter(tables, entry, &packet)? else { return Ok(None) };
    let left = Ok(Some((Exit::NextHook, Vec::new())));
    let mut unknown = false;
    if let Some(exit) = pipeline::established(&mut packet, tables, &ingress, Hook::Xdp, &mut unknown) {
        return Ok(Some((exit?, packet.to_vec())));
    }
    // As the kernel's, it holds what the packet before left in it.
    let work = &mut *tables.scratch.borrow_mut();
    work.plan.unknown = unknown;
    pipeline::read(&packet, tables, &ingress, &mut work.headers, &mut work.quoted, Hook::Xdp)?;
    let Work { headers, quoted, plan, .. } = &mut *work;
    if pipeline::is_for_tc(headers) {
        return left;
    }
    pipeline::recall(&packet, tables, &ingress, headers, quoted, plan)?;
    let mut decision = pipeline::first(&packet, tables, &ingress, headers, quoted, plan)?;
    while decision == Decision::Route {
        decision = pipeline::pass(&packet, tables, headers, plan)?;
    }
    if !matches!(decision, Decision::Forward | Decision::ForwardOnce) || plan.flow.flags & FLOW_FRAMES == 0 {
        return left;
    }
    settle(tables, &ingress, headers, plan, decision, Hook::Xdp)?;
    match pipeline::apply_first(&mut packet, tables, &ingress, work, Hook::Xdp) {
        Some(exit) => Ok(Some((exit?, packet.to_vec()))),
        None => left,
    }
}

fn sent(exit: Exit, packet: &MemoryPacket) -> Verdict {
    match exit {
        Exit::Interface(ifindex) | Exit::Peer(ifindex) => Verdict::Sent { ifindex, frame: packet.to_vec() },
        Exit::Neighbour { ifindex, nexthop } => {
            Verdict::SentToNeighbour { ifindex, nexthop, frame: packet.to_vec() }
        }
        Exit::NextHook => Verdict::Passed,
    }
}
