//! Addresses and byte order, as types.
//!
//! Words are kept as they lie in the packet (network order), so that comparing and copying never swaps.

/// A 16-bit word in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Be16(u16);

impl Be16 {
    /// From the word as it was loaded from memory.
    #[inline(always)]
    pub const fn from_memory(word: u16) -> Self {
        Self(word)
    }

    /// From a host-order number.
    #[inline(always)]
    pub const fn new(value: u16) -> Self {
        Self(value.to_be())
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The word as it lies in memory.
    #[inline(always)]
    pub const fn memory(self) -> u16 {
        self.0
    }
}

/// A 32-bit word in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Be32(u32);

impl Be32 {
    /// From the word as it was loaded from memory.
    #[inline(always)]
    pub const fn from_memory(word: u32) -> Self {
        Self(word)
    }

    /// From a host-order number.
    #[inline(always)]
    pub const fn new(value: u32) -> Self {
        Self(value.to_be())
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }

    /// The word as it lies in memory.
    #[inline(always)]
    pub const fn memory(self) -> u32 {
        self.0
    }
}

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2); four words as they lie
/// in the packet. IPv4-mapped addresses never travel on a wire: a packet that carries one is refused, so
/// the two families cannot be taken for each other.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ip(pub [u32; 4]);

impl Ip {
    const MAPPED: u32 = 0x0000_ffff_u32.to_be();
    /// `::`, also "none".
    pub const UNSPECIFIED: Self = Self([0; 4]);
    /// 0.0.0.0
    pub const V4_UNSPECIFIED: Self = Self::v4(Be32::from_memory(0));
    /// 255.255.255.255
    pub const V4_BROADCAST: Self = Self::v4(Be32::from_memory(u32::MAX));

    /// An IPv4 address.
    #[inline(always)]
    pub const fn v4(addr: Be32) -> Self {
        Self([0, 0, Self::MAPPED, addr.memory()])
    }

    /// The IPv4 word; meaningful if [`Self::is_v4`].
    #[inline(always)]
    pub const fn as_v4(&self) -> Be32 {
        Be32::from_memory(self.0[3])
    }

    /// Whether this is an IPv4(-mapped) address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::MAPPED
    }

    /// 0.0.0.0 or `::`.
    #[inline(always)]
    pub fn is_unspecified(&self) -> bool {
        *self == Self::UNSPECIFIED || *self == Self::V4_UNSPECIFIED
    }

    /// 224.0.0.0/4 or ff00::/8.
    #[inline(always)]
    pub const fn is_multicast(&self) -> bool {
        if self.is_v4() { self.as_v4().get() >> 28 == 0xe } else { u32::from_be(self.0[0]) >> 24 == 0xff }
    }

    /// fe80::/10; IPv4's 169.254.0.0/16 is routed like any other, as Linux does.
    #[inline(always)]
    pub const fn is_v6_link_local(&self) -> bool {
        u32::from_be(self.0[0]) >> 22 == 0xfe80 >> 6
    }

    /// Destinations no router forwards to: this-network 0/8, loopback, class E, limited broadcast; `::`,
    /// `::1` (RFC 1812 5.3.7, RFC 4291 2.5).
    #[inline(always)]
    pub const fn is_martian(&self) -> bool {
        if self.is_v4() {
            let first = self.as_v4().get() >> 24;
            first == 0 || first == 127 || first >= 240
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && u32::from_be(self.0[3]) <= 1
        }
    }

    /// The link-local address made of a hardware address (RFC 4291, appendix A).
    pub const fn link_local_of(mac: [u8; 6]) -> Self {
        Self([
            0xfe80_0000_u32.to_be(),
            0,
            u32::from_ne_bytes([mac[0] ^ 2, mac[1], mac[2], 0xff]),
            u32::from_ne_bytes([0xfe, mac[3], mac[4], mac[5]]),
        ])
    }
}

#[cfg(any(test, feature = "user"))]
impl From<core::net::IpAddr> for Ip {
    fn from(addr: core::net::IpAddr) -> Self {
        match addr {
            core::net::IpAddr::V4(v4) => Self::v4(Be32::new(v4.to_bits())),
            core::net::IpAddr::V6(v6) => {
                let o = v6.octets();
                Self([0, 4, 8, 12].map(|i| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]])))
            }
        }
    }
}

#[cfg(any(test, feature = "user"))]
impl core::fmt::Display for Ip {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::net::IpAddr::from(*self).fmt(f)
    }
}

impl From<Ip> for core::net::IpAddr {
    fn from(ip: Ip) -> Self {
        if ip.is_v4() {
            return core::net::IpAddr::V4(core::net::Ipv4Addr::from_bits(ip.as_v4().get()));
        }
        let mut octets = [0; 16];
        for (i, word) in ip.0.iter().enumerate() {
            octets[i * 4..i * 4 + 4].copy_from_slice(&word.to_ne_bytes());
        }
        core::net::IpAddr::V6(octets.into())
    }
}

/// The first twelve bytes of a frame, destination then source hardware address, as three words.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Macs(pub [u32; 3]);

impl Macs {
    /// From two addresses.
    #[inline(always)]
    pub const fn new(dst: [u8; 6], src: [u8; 6]) -> Self {
        Self([
            u32::from_ne_bytes([dst[0], dst[1], dst[2], dst[3]]),
            u32::from_ne_bytes([dst[4], dst[5], src[0], src[1]]),
            u32::from_ne_bytes([src[2], src[3], src[4], src[5]]),
        ])
    }

    /// Destination.
    #[inline(always)]
    pub const fn dst(&self) -> [u8; 6] {
        let (a, b) = (self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes());
        [a[0], a[1], a[2], a[3], b[0], b[1]]
    }

    /// Source.
    #[inline(always)]
    pub const fn src(&self) -> [u8; 6] {
        let (b, c) = (self.0[1].to_ne_bytes(), self.0[2].to_ne_bytes());
        [b[2], b[3], c[0], c[1], c[2], c[3]]
    }

    /// Broadcast or multicast destination.
    #[inline(always)]
    pub const fn is_group(&self) -> bool {
        self.0[0].to_ne_bytes()[0] & 1 == 1
    }

    /// A source no station may have: a group address, or zero.
    #[inline(always)]
    pub fn is_source_invalid(&self) -> bool {
        let src = self.src();
        src[0] & 1 == 1 || src == [0; 6]
    }
}
