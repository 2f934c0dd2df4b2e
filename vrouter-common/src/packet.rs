//! A packet the decision can read and rewrite.
//!
//! The kernel's packets are reached by pointers that die with every change of size; so a [`View`] borrows
//! the packet, and growing or shrinking needs it exclusively: what the BPF verifier enforces at load time,
//! the borrow checker says at compile time.

use crate::addr::{Be16, Be32};

/// The kernel would not resize the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// A frame, starting with its Ethernet header.
#[expect(clippy::len_without_is_empty, reason = "a frame is never empty, and nobody asks")]
pub trait Packet {
    /// Bytes that were checked to exist.
    type View<'a>: View + Copy
    where
        Self: 'a;

    /// Bytes of the whole frame.
    fn len(&self) -> usize;

    /// Whether there are at least `end` bytes.
    #[inline(always)]
    fn reaches(&self, end: usize) -> bool {
        end <= self.len()
    }

    /// The `len` bytes from `at` on, if the packet has them.
    fn view(&self, at: usize, len: usize) -> Option<Self::View<'_>>;

    /// Payload bytes per segment if this is a super-packet that is cut later, else 0.
    fn gso_size(&self) -> u32 {
        0
    }

    /// Whether the device moved a VLAN tag out of the frame.
    fn has_vlan_tag(&self) -> bool {
        false
    }

    /// Makes room for the outer headers of a tunnel. The first [`crate::wire::OUTER_LEN`] + 14 bytes are
    /// the caller's to write afterwards: where the old Ethernet header ends up is not defined.
    fn push_outer(&mut self) -> Result<(), NoRoom>;

    /// Removes the outer headers of a tunnel. The first 14 bytes are the caller's to write afterwards.
    fn pop_outer(&mut self) -> Result<(), NoRoom>;

    /// Adds `bytes` in front. Their content, and the old Ethernet header's, are the caller's to write.
    fn push_front(&mut self, bytes: usize) -> Result<(), NoRoom>;

    /// Cuts or extends the frame to `len` bytes.
    fn resize(&mut self, len: usize) -> Result<(), NoRoom>;

    /// Brings a transport checksum at `at` up to date after the pseudo-header changed by `addresses` and what
    /// it covers itself by `own` (see [`crate::checksum::adjust`]). `optional`: UDP, where zero means none.
    /// A packet whose checksum is not complete yet has only the pseudo-header's sum in the field.
    #[inline(always)]
    fn adjust_checksum(
        &mut self,
        at: usize,
        addresses: u16,
        own: u16,
        v6: bool,
        optional: bool,
    ) -> Result<(), NoRoom> {
        let _ = v6;
        let Some(field) = self.view(at, 2) else { return Err(NoRoom) };
        let old = field.be16(0);
        if optional && old == Be16::new(0) {
            return Ok(());
        }
        let new = crate::checksum::adjust(old, crate::checksum::fold(addresses as u32 + own as u32));
        let zero = optional && new == Be16::new(0);
        field.put_be16(0, if zero { Be16::new(0xffff) } else { new });
        Ok(())
    }

    /// The ones' complement sum of `len` bytes (at most [`SUM_MAX`]) from `at` on, not folded, not
    /// complemented.
    fn sum(&self, at: usize, len: usize) -> Option<u32>;
}

/// The most bytes [`Packet::sum`] takes at once: what an ICMPv6 error may quote.
pub const SUM_MAX: usize = 1232;

/// Checked bytes of a packet. Offsets are from the view's start and must lie inside it; in the kernel the
/// verifier refuses a program that breaks this, in user space it panics.
pub trait View {
    /// One byte.
    fn u8(&self, at: usize) -> u8;
    /// Two bytes, as they lie.
    fn be16(&self, at: usize) -> Be16;
    /// Four bytes, as they lie.
    fn be32(&self, at: usize) -> Be32;
    /// Writes one byte.
    fn put_u8(&self, at: usize, value: u8);
    /// Writes two bytes.
    fn put_be16(&self, at: usize, value: Be16);
    /// Writes four bytes.
    fn put_be32(&self, at: usize, value: Be32);

    /// Four words, as they lie.
    #[inline(always)]
    fn ip6(&self, at: usize) -> crate::addr::Ip {
        crate::addr::Ip([
            self.be32(at).memory(),
            self.be32(at + 4).memory(),
            self.be32(at + 8).memory(),
            self.be32(at + 12).memory(),
        ])
    }

    /// Writes an IPv6 address.
    #[inline(always)]
    fn put_ip6(&self, at: usize, ip: &crate::addr::Ip) {
        self.put_be32(at, Be32::from_memory(ip.0[0]));
        self.put_be32(at + 4, Be32::from_memory(ip.0[1]));
        self.put_be32(at + 8, Be32::from_memory(ip.0[2]));
        self.put_be32(at + 12, Be32::from_memory(ip.0[3]));
    }

    /// The first twelve bytes of a frame.
    #[inline(always)]
    fn macs(&self, at: usize) -> crate::addr::Macs {
        crate::addr::Macs([self.be32(at).memory(), self.be32(at + 4).memory(), self.be32(at + 8).memory()])
    }

    /// Writes the first twelve bytes of a frame.
    #[inline(always)]
    fn put_macs(&self, at: usize, macs: &crate::addr::Macs) {
        self.put_be32(at, Be32::from_memory(macs.0[0]));
        self.put_be32(at + 4, Be32::from_memory(macs.0[1]));
        self.put_be32(at + 8, Be32::from_memory(macs.0[2]));
    }

    /// A hardware address.
    #[inline(always)]
    fn mac(&self, at: usize) -> [u8; 6] {
        [self.u8(at), self.u8(at + 1), self.u8(at + 2), self.u8(at + 3), self.u8(at + 4), self.u8(at + 5)]
    }

    /// Writes a hardware address.
    #[inline(always)]
    fn put_mac(&self, at: usize, mac: &[u8; 6]) {
        self.put_be16(at, Be16::from_memory(u16::from_ne_bytes([mac[0], mac[1]])));
        self.put_be16(at + 2, Be16::from_memory(u16::from_ne_bytes([mac[2], mac[3]])));
        self.put_be16(at + 4, Be16::from_memory(u16::from_ne_bytes([mac[4], mac[5]])));
    }
}
