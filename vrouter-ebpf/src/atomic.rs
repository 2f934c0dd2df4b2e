//! Atomics the compiler's BPF back end does not offer.

use core::arch::asm;

/// Compares and swaps; returns what was there before.
///
/// # Safety
///
/// `p` must be valid for writes and 4-byte aligned.
#[inline(always)]
pub unsafe fn cmpxchg32(p: *mut u32, old: u32, new: u32) -> u32 {
    let mut r = old;
    // SAFETY: the caller's promise; one instruction of the BPF instruction set (v3).
    unsafe { asm!("w0 = cmpxchg32_32({p} + 0, w0, {n})", p = in(reg) p, n = in(wreg) new, inout("w0") r) };
    r
}
