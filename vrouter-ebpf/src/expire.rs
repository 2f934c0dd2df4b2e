//! Removing idle flows, on behalf of user space.

use vrouter_common::tables::{EXPIRE_MAX, FlowTable, Tables};

use crate::{Maps, maps};

/// Goes through [`maps::EXPIRE`].
#[inline(always)]
pub fn run() {
    let mut i = 0;
    while i < EXPIRE_MAX {
        one(i);
        i += 1;
    }
}

#[inline(always)]
fn one(index: u32) {
    let Some(expire) = maps::EXPIRE.get_ptr_mut(index) else { return };
    // SAFETY: a live map value that only user space writes, and not while this runs.
    let expire = unsafe { &mut *expire };
    if expire.legs == 0 || expire.legs > 2 {
        return;
    }
    let table = if expire.table == 0 { FlowTable::Flows } else { FlowTable::Transient };
    if is_busy(table, &expire.key, expire.seen)
        || expire.legs == 2 && is_busy(table, &expire.peer, expire.peer_seen)
    {
        expire.legs = 3;
        return;
    }
    crate::monitor::closed(index);
    Maps.remove(table, &expire.key);
    if expire.legs == 2 {
        Maps.remove(table, &expire.peer);
    }
    expire.legs = 0;
}

/// Whether a packet came by since.
#[inline(always)]
fn is_busy(table: FlowTable, key: &vrouter_common::flow::FlowKey, seen: u32) -> bool {
    let flow = match table {
        FlowTable::Flows => Maps.flow(key),
        FlowTable::Transient => Maps.transient(key),
    };
    flow.is_some_and(|flow| flow.seen != seen)
}
