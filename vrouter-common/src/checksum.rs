//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3).

use crate::addr::{Be16, Ip};

/// Folds a sum of 16-bit words to 16 bits. Two folds suffice for any 32-bit sum.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum field for a header that sums to `sum` (words as they lie in memory).
#[inline(always)]
pub const fn finish(sum: u32) -> Be16 {
    Be16::from_memory(!fold(sum))
}

/// Adds a 32-bit word as two 16-bit words.
#[inline(always)]
pub const fn add32(sum: u32, word: u32) -> u32 {
    sum + (word & 0xffff) + (word >> 16)
}

/// Adds an address's words.
#[inline(always)]
pub const fn add_ip(sum: u32, ip: &Ip) -> u32 {
    let sum = add32(add32(sum, ip.0[3]), ip.0[2]);
    add32(add32(sum, ip.0[1]), ip.0[0])
}

/// The field after one 16-bit word of what it covers changed: HC' = ~(~HC + ~m + m').
#[inline(always)]
pub const fn replace16(field: Be16, old: u16, new: u16) -> Be16 {
    finish((!field.memory()) as u32 + (!old) as u32 + new as u32)
}

/// The field after what it covers changed by `delta` (new words plus complements of old ones, folded).
#[inline(always)]
pub const fn adjust(field: Be16, delta: u16) -> Be16 {
    let sum = (!field.memory()) as u32 + delta as u32;
    // One fold suffices for two words.
    Be16::from_memory(!((sum + (sum >> 16)) as u16))
}

/// The field after a header's TTL went down by `hops`.
#[inline(always)]
pub const fn lower_ttl(field: Be16, hops: u8) -> Be16 {
    adjust(field, !Be16::new((hops as u16) << 8).memory())
}

/// What replacing words that sum to `old` by words that sum to `new` adds to a sum over them; 0 if nothing.
#[inline(always)]
pub const fn difference(new: u32, old: u32) -> u16 {
    let delta = fold(fold(new) as u32 + (!fold(old)) as u32);
    if delta == 0xffff { 0 } else { delta }
}

/// The pseudo-header's sum (RFC 8200, 8.1) for an upper-layer packet of `len` bytes.
#[inline(always)]
pub const fn pseudo_v6(src: &Ip, dst: &Ip, len: u16, proto: u8) -> u32 {
    let sum = fold(add_ip(add_ip(0, src), dst)) as u32;
    sum + len.to_be() as u32 + (proto as u16).to_be() as u32
}

/// The pseudo-header's sum (RFC 9293, 3.1) over IPv4.
#[inline(always)]
pub const fn pseudo_v4(src: &Ip, dst: &Ip, len: u16, proto: u8) -> u32 {
    add32(add32(0, src.0[3]), dst.0[3]) + len.to_be() as u32 + (proto as u16).to_be() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1624's own example: the naive update gives 0xffff, the right one 0x0000.
    #[test]
    fn rfc1624_example() {
        let field = Be16::new(0xdd2f);
        let updated = replace16(field, 0x5555_u16.to_be(), 0x3285_u16.to_be());
        assert_eq!(updated.get(), 0x0000);
    }

    #[test]
    fn fold_takes_the_largest_sum() {
        assert_eq!(fold(u32::MAX), 0xffff);
        assert_eq!(fold(0x0001_ffff), 1);
    }
}
