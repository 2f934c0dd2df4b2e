//! The decision's tables, read from the kernel's maps.

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::generated as helpers};
use vrouter_common::{
    flow::{Flow, FlowKey},
    reason::{DropReason, Event},
    tables::*,
};

use crate::{
    atomic::add64,
    maps::{self, AllowedData, RouteData},
};

/// The maps of the running instance.
pub struct Maps;

/// The kernel's tick counter: one load, where a clock would be a call.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { helpers::bpf_jiffies64() }
}

macro_rules! get {
    ($map:ident, $key:expr) => {{
        // SAFETY: compiled topology is never changed in the bank packets read, so what the reference points
        // to stays as it is for the few hundred nanoseconds a program runs.
        unsafe { maps::$map.get($key) }
    }};
}

impl Tables for Maps {
    #[inline(always)]
    fn commit(&self) -> Option<Commit> {
        maps::COMMIT.get(0).copied().filter(|commit| commit.epoch != 0)
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
    fn store_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        maps::FLOWS.insert(key, flow, 0).is_ok()
    }

    #[inline(always)]
    fn touch(&self, flow: &Flow, bytes: u64) {
        let flow = core::ptr::from_ref(flow).cast_mut();
        let now = jiffies() as u32;
        // SAFETY: `flow` is a live map value; its counters are changed only atomically, `seen` by plain
        // stores of a word that any CPU may write with the same meaning.
        unsafe {
            if (*flow).seen != now {
                (*flow).seen = now;
            }
            add64(&raw mut (*flow).packets, 1);
            add64(&raw mut (*flow).bytes, bytes);
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
