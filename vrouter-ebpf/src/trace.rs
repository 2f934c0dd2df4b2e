//! The variant that explains: the same decision over the same maps, which tells what it looked up and changes nothing.
//!
//! Only user space runs it (`BPF_PROG_TEST_RUN`), for `vrouter trace`. It shares the compiled topology, the flows and
//! the next hops with the programs that forward; its scratch and its counters are its own.

use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::{Array, HashMap, RingBuf},
    macros::btf_map,
};
use vrouter_common::{
    addr::Be32,
    apply::Exit,
    flow::FlowKey,
    tables::{FlowTable, Hop},
    traced::{
        Leaves, Recorder, StepHead, TRACE_EXTERNAL, TRACE_PORT, TRACE_UPLINK, TraceInput, Traced, What,
    },
};

use crate::{tables, tc};

/// What is to be traced.
#[btf_map]
pub static TRACE: Array<TraceInput, 1> = Array::new();
/// The steps: a [`StepHead`], the key and the value, a record each.
#[btf_map]
pub static STEPS: RingBuf<(), { 1 << 20 }> = RingBuf::new();
/// A next hop that the packet would have made.
#[btf_map]
pub static TRACED_HOPS: Array<Hop, 1> = Array::new();

/// Flows that the packet would have removed, by table. User space empties them before each run.
#[btf_map]
pub static FORGOTTEN_FLOWS: HashMap<FlowKey, u8, 16> = HashMap::new();
/// See [`FORGOTTEN_FLOWS`].
#[btf_map]
pub static FORGOTTEN_TRANSIENT: HashMap<FlowKey, u8, 16> = HashMap::new();

/// Writes steps to [`STEPS`].
pub struct Steps;

impl Recorder for Steps {
    #[inline(always)]
    fn record<K: Copy, V: Copy>(&self, what: What, found: bool, key: &K, value: Option<&V>) {
        let bytes = if value.is_some() { size_of::<V>() as u16 } else { 0 };
        let head = StepHead {
            what: what as u8,
            found: found as u8,
            key: size_of::<K>() as u16,
            value: bytes,
            zero: 0,
        };
        // A trace that does not fit is seen to be cut short: its last record says how much should follow.
        let _ = STEPS.output_untyped::<StepHead>(&head, 0);
        let _ = STEPS.output_untyped::<K>(key, 0);
        if let Some(value) = value
            && size_of::<V>() > 0
        {
            let _ = STEPS.output_untyped::<V>(value, 0);
        }
    }

    #[inline(always)]
    fn afresh(&self) -> bool {
        TRACE.get(0).is_some_and(|input| input.afresh != 0)
    }

    #[inline(always)]
    fn keep_hop(&self, hop: &Hop) -> bool {
        match TRACED_HOPS.get_ptr_mut(0) {
            Some(slot) => {
                // SAFETY: the array's only entry, which nobody else uses.
                unsafe { *slot = *hop };
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn kept_hop(&self) -> Option<&Hop> {
        TRACED_HOPS.get(0)
    }

    #[inline(always)]
    fn forget(&self, table: FlowTable, key: &FlowKey) {
        // Where there is no room it is found again: it was more than a connection's two.
        let _ = match table {
            FlowTable::Flows => FORGOTTEN_FLOWS.insert(key, 0, 0),
            FlowTable::Transient => FORGOTTEN_TRANSIENT.insert(key, 0, 0),
        };
    }

    #[inline(always)]
    fn has_forgotten(&self, table: FlowTable, key: &FlowKey) -> bool {
        // SAFETY: only whether it is there is looked at.
        unsafe {
            match table {
                FlowTable::Flows => FORGOTTEN_FLOWS.get(key).is_some(),
                FlowTable::Transient => FORGOTTEN_TRANSIENT.get(key).is_some(),
            }
        }
    }
}

/// The maps of the running instance, read only and watched.
#[expect(non_upper_case_globals, reason = "it stands for the unit struct of the same name")]
pub const Maps: Traced<tables::Maps, Steps> = Traced::new(tables::Maps, Steps);

/// Says where a packet leaves.
#[inline(always)]
pub fn leave(exit: &Exit) {
    let nowhere = Be32::from_memory(0);
    let leaves = match *exit {
        Exit::Interface(ifindex) => Leaves { ifindex, nexthop: nowhere, peer: 0 },
        Exit::Peer(ifindex) => Leaves { ifindex, nexthop: nowhere, peer: 1 },
        Exit::Neighbour { ifindex, nexthop } => Leaves { ifindex, nexthop, peer: 0 },
        Exit::NextHook => return,
    };
    Maps.leave(leaves);
}

/// Decides the packet as if it had come in where [`TRACE`] says.
#[inline(always)]
pub fn run(skb: *mut __sk_buff) -> i32 {
    let Some(input) = TRACE.get(0) else { return -1 };
    match input.entry {
        TRACE_PORT => tc::port_at(skb, input.ifindex),
        TRACE_UPLINK => tc::uplink(skb),
        TRACE_EXTERNAL => tc::external_at(skb, input.ifindex),
        _ => -1,
    }
}
