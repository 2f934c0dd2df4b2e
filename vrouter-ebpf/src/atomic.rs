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

/// The same for 64 bits.
///
/// # Safety
///
/// `p` must be valid for writes and 8-byte aligned.
#[inline(always)]
pub unsafe fn cmpxchg64(p: *mut u64, old: u64, new: u64) -> u64 {
    let mut r = old;
    // SAFETY: as above.
    unsafe { asm!("r0 = cmpxchg_64({p} + 0, r0, {n})", p = in(reg) p, n = in(reg) new, inout("r0") r) };
    r
}

/// Adds.
///
/// # Safety
///
/// `p` must be valid for writes and 8-byte aligned.
#[inline(always)]
pub unsafe fn add64(p: *mut u64, n: u64) {
    // SAFETY: as above.
    unsafe { asm!("lock *(u64 *)({p} + 0) += {n}", p = in(reg) p, n = in(reg) n) };
}
