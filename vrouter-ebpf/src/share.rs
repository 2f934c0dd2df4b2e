//! What a port may have of the ring to the services (behaviour L8): one that floods it keeps no other from being served.
//!
//! **Room**: a quarter as many unread packets as there is room for more. A port alone has a fifth of the ring at most; ten
//! that flood it leave a quarter free; who has nothing in it finds room. The agent's reading is the clock, so this holds
//! however slow it is. **Pace**: so many a second, which spares the agent's time.
//!
//! Answers to the node's own checks count apart from what the workload asks for.

use aya_ebpf::{btf_maps::LruHashMap, helpers::generated as helpers, macros::btf_map};
use vrouter_common::{reason::DropReason, service::Asked};

use crate::{atomic::add64, maps, serve::RECORD};

/// Between two packets of a port, in the long run: 4,000 a second.
const PACE_NS: u64 = 250_000;
/// How much of that may come at once.
const BURST_NS: u64 = 1_000_000_000;

/// Room there has to be for each packet that a port has in the ring.
const ROOM: u64 = 4;

/// `linux/bpf.h`: what the kernel tells of a ring.
const RING_SIZE: u64 = 1;
const READ_TO: u64 = 2;
const WRITTEN_TO: u64 = 3;
/// Bytes of the kernel's header of a record.
const HEADER: usize = 8;

/// Whose share.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ShareKey {
    pub ifindex: u32,
    /// Whether it is of answers to checks.
    pub probed: u32,
}

/// What a port has in the ring. Exact counts would have to be told by the reader; these are never too small, but for
/// what two CPUs do to one port's in the same moment.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Share {
    /// A place in the ring.
    pub mark: u64,
    /// Packets before it that may be unread: none, once it is read.
    pub before: u64,
    /// Packets behind it.
    pub behind: u64,
    /// When it may send [`BURST_NS`]'s worth at once again.
    pub rested: u64,
}

/// Of each port that ever sent something.
#[btf_map]
pub static SHARES: LruHashMap<ShareKey, Share, 16_384> = LruHashMap::new();

/// A port's part, with room for one more.
pub struct Part(Option<*mut Share>);

impl Part {
    /// Takes that room.
    #[inline(always)]
    pub fn take(&self) {
        let Some(share) = self.0 else { return };
        // SAFETY: a live map value; the word is only ever added to or replaced.
        unsafe { add64(&raw mut (*share).behind, 1) };
    }
}

/// The part of the port behind an interface, if it may send one more.
#[inline(always)]
pub fn part(ifindex: u32, asked: Asked) -> Result<Part, DropReason> {
    const BPF_NOEXIST: u64 = 1;
    let key = ShareKey { ifindex, probed: (asked == Asked::Probed) as u32 };
    if SHARES.get_ptr_mut(key).is_none() {
        let new = Share { mark: 0, before: 0, behind: 0, rested: 0 };
        let _ = SHARES.insert(key, new, BPF_NOEXIST);
    }
    // No room for one more port: what the ring has room for will do.
    let Some(share) = SHARES.get_ptr_mut(key) else { return Ok(Part(None)) };
    // SAFETY: a live map value.
    let Share { mark, mut before, mut behind, rested } = unsafe { core::ptr::read_volatile(share) };
    // SAFETY: a helper without arguments.
    let now = unsafe { helpers::bpf_ktime_get_ns() };
    let rested = if rested > now { rested } else { now };
    if rested > now + BURST_NS {
        return Err(DropReason::ServiceRate);
    }
    let (size, read, written) = (ring(RING_SIZE), ring(READ_TO), ring(WRITTEN_TO));
    if read >= mark {
        (before, behind) = (if read == written { 0 } else { behind }, 0);
        // SAFETY: as above; words that two CPUs write at once are off by one packet at the most.
        unsafe {
            (*share).before = before;
            (*share).behind = behind;
            (*share).mark = written;
        }
    }
    let room = size.saturating_sub(written.wrapping_sub(read)) / (RECORD + HEADER) as u64;
    if (before + behind) * ROOM >= room {
        return Err(DropReason::ServiceBusy);
    }
    // SAFETY: as above.
    unsafe { (*share).rested = rested + PACE_NS };
    Ok(Part(Some(share)))
}

/// Asks the kernel about the ring.
#[inline(always)]
fn ring(what: u64) -> u64 {
    let ring = (&raw const maps::SERVICES).cast_mut();
    // SAFETY: a map of this program.
    unsafe { helpers::bpf_ringbuf_query(ring.cast(), what) }
}
