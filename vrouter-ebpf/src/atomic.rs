//! Atomics the compiler's BPF back end does not offer.

use core::arch::asm;

/// Adds to a counter other CPUs add to as well.
///
/// # Safety
///
/// `p` must be valid for writes and 8-byte aligned.
#[inline(always)]
pub unsafe fn add64(p: *mut u64, v: u64) {
    // SAFETY: the caller's promise; one instruction of the BPF instruction set.
    unsafe { asm!("lock *(u64 *)({p} + 0) += {v}", p = in(reg) p, v = in(reg) v) }
}
