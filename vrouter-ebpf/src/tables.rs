//! The decision's tables, read from the kernel's maps.

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::generated as helpers};
use vrouter_common::{
    flow::{Flow, FlowKey},
    reason::{DropReason, Event},
    tables::*,
};

use crate::{
    atomic::{add64, cmpxchg32},
    maps::{self, AllowedData, ClassData, RouteData, RuleData},
};

/// The maps of the running instance.
pub struct Maps;

/// The kernel's tick counter: one load, where a clock would be a call.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { helpers::bpf_jiffies64() }
}

/// ICMP errors and resets a CPU may send: as many at once, and as many more per tick of 1 to 10 ms.
const ANSWERS_MAX: u64 = 256;
const ANSWERS_PER_TICK: u64 = 4;

macro_rules! get {
    ($map:ident, $key:expr) => {{
        // SAFETY: compiled topology is never changed in the bank packets read, so what the reference points
        // to stays as it is for the few hundred nanoseconds a program runs.
        unsafe { maps::$map.get($key) }
    }};
}

impl Tables for Maps {
    #[inline(always)]
    fn commit(&self) -> Option<&Commit> {
        maps::COMMIT.get(0).filter(|commit| commit.epoch != 0)
    }

    #[inline(always)]
    fn revision(&self, network: u32) -> u32 {
        match maps::REVISIONS.get(network) {
            Some(revision) => *revision,
            None => u32::MAX,
        }
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        get!(FLOWS, key)
    }

    #[inline(always)]
    fn transient(&self, key: &FlowKey) -> Option<&Flow> {
        get!(TRANSIENT, key)
    }

    #[inline(always)]
    fn store(&self, table: FlowTable, key: &FlowKey, flow: &Flow, how: Store) -> Result<(), StoreError> {
        const BPF_NOEXIST: u64 = 1;
        const EEXIST: i32 = -17;
        let flags = if how == Store::New { BPF_NOEXIST } else { 0 };
        let result = match table {
            FlowTable::Flows => maps::FLOWS.insert(key, flow, flags),
            FlowTable::Transient => maps::TRANSIENT.insert(key, flow, flags),
        };
        match result {
            Ok(()) => Ok(()),
            Err(EEXIST) => Err(StoreError::Exists),
            Err(_) => Err(StoreError::Full),
        }
    }

    #[inline(always)]
    fn remove(&self, table: FlowTable, key: &FlowKey) {
        let _ = match table {
            FlowTable::Flows => maps::FLOWS.remove(key),
            FlowTable::Transient => maps::TRANSIENT.remove(key),
        };
    }

    #[inline(always)]
    fn note_tcp(&self, flow: &Flow, flags: u8) {
        let flow = core::ptr::from_ref(flow).cast_mut();
        // SAFETY: a live map value; a byte that only this direction's packets write, a bit lost to a race is
        // seen again or belongs to a connection that ends anyway.
        // Volatile for the reason below.
        unsafe {
            let seen = &raw mut (*flow).tcp_flags;
            core::ptr::write_volatile(seen, core::ptr::read_volatile(seen) | flags);
        }
    }

    #[inline(always)]
    fn touch(&self, flow: &Flow, bytes: u64) {
        let flow = core::ptr::from_ref(flow).cast_mut();
        let now = jiffies() as u32;
        // SAFETY: `flow` is a live map value. Plain loads and stores: two CPUs that carry one direction of a flow
        // in the same nanosecond may count one packet less; locked ones would cost every packet a fifth more.
        unsafe {
            // Volatile: the compiler takes what is behind a shared reference for constant, and drops the store.
            let seen = &raw mut (*flow).seen;
            if core::ptr::read_volatile(seen) != now {
                core::ptr::write_volatile(seen, now);
            }
            let packets = &raw mut (*flow).packets;
            core::ptr::write_volatile(packets, core::ptr::read_volatile(packets).wrapping_add(1));
            let total = &raw mut (*flow).bytes;
            core::ptr::write_volatile(total, core::ptr::read_volatile(total).wrapping_add(bytes));
        }
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        jiffies() as u32
    }

    #[inline(always)]
    fn binding(&self, key: &BindingKey) -> Option<&Binding> {
        get!(BINDINGS, key)
    }

    #[inline(always)]
    fn network(&self, key: &NetworkKey) -> Option<&Network> {
        get!(NETWORKS, key)
    }

    #[inline(always)]
    fn vni(&self, key: &VniKey) -> Option<u32> {
        get!(VNIS, key).copied()
    }

    #[inline(always)]
    fn vtep(&self, key: &VtepKey) -> Option<u32> {
        get!(VTEPS, key).copied()
    }

    #[inline(always)]
    fn fdb(&self, key: &FdbKey) -> Option<&Station> {
        get!(FDB, key)
    }

    #[inline(always)]
    fn address(&self, key: &AddressKey) -> Option<&Station> {
        get!(ADDRESSES, key)
    }

    #[inline(always)]
    fn allowed(&self, key: &AllowedKey) -> bool {
        let data = AllowedData { port: key.port, mac: key.mac, zero: 0, ip: key.ip };
        maps::ALLOWED.get(&Key::new(key.prefix_len, data)).is_some()
    }

    #[inline(always)]
    fn route(&self, key: &RouteKey) -> Option<&Route> {
        maps::ROUTES.get(&Key::new(key.prefix_len, RouteData { router: key.router, dst: key.dst }))
    }

    #[inline(always)]
    fn router_leg(&self, key: &RouterLegKey) -> Option<&RouterLeg> {
        get!(ROUTER_LEGS, key)
    }

    #[inline(always)]
    fn underlay(&self, node: u32) -> Option<&Underlay> {
        maps::UNDERLAY.get(node)
    }

    #[inline(always)]
    fn nat(&self, key: &NatKey) -> Option<&Nat> {
        get!(NAT, key)
    }

    #[inline(always)]
    fn floating(&self, key: &FloatingKey) -> Option<&Floating> {
        get!(FLOATING, key)
    }

    #[inline(always)]
    fn snat_block(&self, key: &SnatBlockKey) -> Option<&SnatBlock> {
        get!(SNAT_BLOCKS, key)
    }

    #[inline(always)]
    fn snat_owner(&self, key: &SnatOwnerKey) -> Option<&SnatOwner> {
        get!(SNAT_OWNERS, key)
    }

    #[inline(always)]
    fn gateway(&self, key: &GatewayKey) -> Option<u32> {
        get!(GATEWAYS, key).copied()
    }

    #[inline(always)]
    fn member(&self, key: &MemberKey) -> Option<&Member> {
        get!(MEMBERS, key)
    }

    #[inline(always)]
    fn listener(&self, key: &ListenerKey) -> Option<&Listener> {
        get!(LISTENERS, key)
    }

    #[inline(always)]
    fn pool_slots(&self, key: &PoolSlotsKey) -> Option<&PoolSlots> {
        get!(POOL_SLOTS, key)
    }

    #[inline(always)]
    fn pool_member(&self, key: &PoolMemberKey) -> Option<&PoolMember> {
        get!(POOL_MEMBERS, key)
    }

    #[inline(always)]
    fn pool_member_at(&self, key: &PoolMemberAt) -> Option<u32> {
        get!(MEMBERS_AT, key).copied()
    }

    #[inline(always)]
    fn flood(&self, key: &FloodKey) -> Option<&Flood> {
        get!(FLOODS, key)
    }

    #[inline(always)]
    fn is_master(&self, key: &MasterKey) -> bool {
        get!(MASTERS, key).is_some_and(Master::speaks)
    }

    #[inline(always)]
    fn carries(&self, key: &MasterKey) -> bool {
        // SAFETY: a helper without arguments.
        get!(MASTERS, key).is_some_and(|master| master.carries(unsafe { helpers::bpf_ktime_get_ns() }))
    }

    #[inline(always)]
    fn heard_master(&self, key: &MasterKey) {
        let Some(master) = maps::MASTERS.get_ptr_mut(key) else { return };
        // SAFETY: a live map value. The agent replaces it as a whole; a word lost to that is written again at the
        // next announcement.
        unsafe {
            let before = core::ptr::read_volatile(master);
            let after = before.heard(helpers::bpf_ktime_get_ns());
            if after.silenced != before.silenced {
                // First how long, then that it is: nobody takes the old time for it.
                core::ptr::write_volatile(&raw mut (*master).until, after.until);
                core::ptr::write_volatile(&raw mut (*master).silenced, after.silenced);
            }
        }
    }

    #[inline(always)]
    fn class(&self, key: &ClassKey) -> u32 {
        let data = ClassData { bank: key.bank, ip: key.ip };
        maps::CLASSES.get(&Key::new(key.prefix_len, data)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> Option<&Rule> {
        let RuleKey { prefix_len, policy, class, direction, proto, port } = *key;
        maps::RULES.get(&Key::new(prefix_len, RuleData { policy, class, direction, proto, port }))
    }

    #[inline(always)]
    fn learned(&self, key: &LearnedKey) -> Option<&Learned> {
        get!(LEARNED, key)
    }

    #[inline(always)]
    fn store_learned(&self, key: &LearnedKey, learned: &Learned) {
        let _ = maps::LEARNED.insert(key, learned, 0);
    }

    #[inline(always)]
    fn expire_network(&self, network: u32) {
        let (Some(commit), Some(revision)) = (maps::COMMIT.get(0), maps::REVISIONS.get_ptr_mut(network))
        else {
            return;
        };
        // SAFETY: a live map value, written whole; the agent only ever raises it, to the next epoch or beyond.
        unsafe {
            if *revision <= commit.epoch {
                core::ptr::write_volatile(revision, commit.epoch.wrapping_add(1));
            }
        }
    }

    #[inline(always)]
    fn hop_index(&self, key: &HopKey) -> Option<u32> {
        get!(HOP_INDEX, key).copied()
    }

    #[inline(always)]
    fn new_hop(&self, key: &HopKey, hop: &Hop) -> Option<u32> {
        let index = maps::FREE_HOPS.pop().ok()??;
        if let Some(slot) = maps::HOPS.get_ptr_mut(index) {
            // SAFETY: the slot was taken from the free ones: nobody else has it.
            unsafe { *slot = *hop };
        }
        const BPF_NOEXIST: u64 = 1;
        if maps::HOP_INDEX.insert(key, index, BPF_NOEXIST).is_ok() {
            return Some(index);
        }
        let _ = maps::FREE_HOPS.push(index, 0);
        self.hop_index(key)
    }

    #[inline(always)]
    fn hop(&self, index: u32) -> Option<&Hop> {
        maps::HOPS.get(index)
    }

    #[inline(always)]
    fn may_ask(&self, index: u32) -> bool {
        let Some(hop) = maps::HOPS.get_ptr_mut(index) else { return false };
        let now = jiffies() as u32 | 1;
        // SAFETY: a live map value; the word is only ever swapped.
        unsafe {
            let asked = core::ptr::read_volatile(&raw const (*hop).asked);
            if asked != 0 && now.wrapping_sub(asked) < ASK_TICKS {
                return false;
            }
            cmpxchg32(&raw mut (*hop).asked, asked, now) == asked
        }
    }

    #[inline(always)]
    fn learn(&self, index: u32, mac: [u8; 6]) -> bool {
        let Some(hop) = maps::HOPS.get_ptr_mut(index) else { return false };
        // SAFETY: a live map value. Readers look at the flags first and take the address only if it is said to
        // be there: so it is taken away before it changes.
        unsafe {
            let flags = core::ptr::read_volatile(&raw const (*hop).flags);
            (*hop).confirmed = jiffies() as u32;
            if flags & HOP_RESOLVED != 0 && (*hop).mac == mac {
                return false;
            }
            core::ptr::write_volatile(&raw mut (*hop).flags, HOP_USED);
            (*hop).mac = mac;
            core::ptr::write_volatile(&raw mut (*hop).flags, HOP_USED | HOP_RESOLVED);
        }
        true
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        get!(FRAGMENTS, key).copied()
    }

    #[inline(always)]
    fn store_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        let _ = maps::FRAGMENTS.insert(key, fragment, 0);
    }

    #[inline(always)]
    fn may_answer(&self) -> bool {
        let Some(bucket) = maps::ANSWERS.get_ptr_mut(0) else { return false };
        let now = jiffies();
        // SAFETY: this CPU's own copy.
        unsafe {
            let passed = now.wrapping_sub((*bucket).refilled);
            if passed > 0 {
                (*bucket).refilled = now;
                let tokens = (*bucket).tokens + passed * ANSWERS_PER_TICK;
                (*bucket).tokens = if tokens > ANSWERS_MAX { ANSWERS_MAX } else { tokens };
            }
            if (*bucket).tokens == 0 {
                return false;
            }
            (*bucket).tokens -= 1;
        }
        true
    }

    #[inline(always)]
    fn count_tries(&self, bucket: u32) {
        if let Some(count) = maps::NAT_TRIES.get_ptr_mut(bucket) {
            // SAFETY: this CPU's own copy.
            unsafe { *count += 1 };
        }
    }

    #[inline(always)]
    fn count_balanced(&self, listener: u32, member: u32) {
        // SAFETY: live map values; their words are only ever added to.
        unsafe {
            if let Some(count) = maps::LISTENER_COUNT.get_ptr_mut(listener) {
                add64(count, 1);
            }
            if let Some(count) = maps::MEMBER_COUNT.get_ptr_mut(member) {
                add64(count, 1);
            }
        }
    }

    #[inline(always)]
    fn count_drop(&self, reason: DropReason, bytes: u64) {
        if let Some(tally) = maps::DROPS.get_ptr_mut(reason as u32) {
            // SAFETY: this CPU's own copy; programs on one CPU do not interrupt each other here.
            unsafe {
                (*tally).packets += 1;
                (*tally).bytes += bytes;
            }
        }
    }

    #[inline(always)]
    fn count(&self, event: Event) {
        if let Some(count) = maps::EVENTS.get_ptr_mut(event as u32) {
            // SAFETY: as above.
            unsafe { *count += 1 };
        }
    }
}
