//! Storing the legs of a connection. One try at reserving a translated tuple is a function of its own, so that
//! the verifier checks it once and not for each of the tries.

use vrouter_common::{plan::Work, reason::DropReason, track};

use crate::{Maps, maps};

const TAKEN: u32 = 0;
const CLAIMED: u32 = 1;
const FULL: u32 = 2;
const CLASH: u32 = 3;

/// Tries the connection in the scratch with a port (0: as it is).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_claim(port: u16) -> u32 {
    let Some(work) = maps::WORK.get_ptr_mut(0) else {
        return CLASH;
    };
    // SAFETY: this CPU's own scratch; programs on one CPU do not interrupt each other here.
    let Work { plan, .. } = unsafe { &mut *work };
    match track::claim(&Maps, plan, port) {
        Ok(false) => TAKEN,
        Ok(true) => CLAIMED,
        Err(DropReason::FlowTableFull) => FULL,
        Err(_) => CLASH,
    }
}

/// What it said.
#[inline(always)]
pub fn result(code: u32) -> Result<bool, DropReason> {
    match code {
        TAKEN => Ok(false),
        CLAIMED => Ok(true),
        FULL => Err(DropReason::FlowTableFull),
        _ => Err(DropReason::NatClash),
    }
}

/// Stores the packet's own leg.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vr_finish() -> u32 {
    if let Some(work) = maps::WORK.get_ptr_mut(0) {
        // SAFETY: as in `vr_claim`.
        let Work { headers, plan, .. } = unsafe { &mut *work };
        track::finish(&Maps, headers, plan);
    }
    0
}
