//! VRRP version 3 (RFC 5798) on the wire: announcements as Ethernet frames.
//!
//! ```text
//!  0: version 3, type 1 | VRID | priority | count of addresses
//!  4: maximum advertisement interval (12 bits, hundredths of a second) | checksum
//!  8: addresses, 4 or 16 bytes each
//! ```
//!
//! The checksum is over this and the pseudo-header, in both families.

use std::{net::IpAddr, time::Duration};

use vrouter_common::{addr::Ip, checksum, wire::*};

/// 224.0.0.18 and ff02::12.
const GROUP_V4: [u8; 4] = [224, 0, 0, 18];
const GROUP_V6: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12];
/// The hardware addresses of the groups.
pub const GROUP_MAC_V4: [u8; 6] = [1, 0, 0x5e, 0, 0, 0x12];
pub const GROUP_MAC_V6: [u8; 6] = [0x33, 0x33, 0, 0, 0, 0x12];
const VERSION_AND_TYPE: u8 = 0x31;
const HEADER_LEN: usize = 8;
/// What it must be received with: nobody is between.
const TTL: u8 = 255;

/// An announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertisement {
    pub vrid: u8,
    /// 0: the master gives up.
    pub priority: u8,
    /// Between two of them: 10 ms to 40.95 s.
    pub interval: Duration,
    /// Who sent it: an IPv4 address, or a link-local IPv6 one.
    pub source: IpAddr,
    pub addresses: Vec<IpAddr>,
}

/// Why a frame is no announcement that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Wrong {
    /// Cut off, or lengths that do not fit.
    Malformed,
    /// It has been through a router.
    Ttl,
    /// Another version, or not to the group.
    Version,
    Checksum,
}

impl Advertisement {
    /// As a frame.
    pub fn frame(&self, virtual_mac: [u8; 6]) -> Vec<u8> {
        let v6 = self.source.is_ipv6();
        let mut message = vec![VERSION_AND_TYPE, self.vrid, self.priority, self.addresses.len() as u8];
        let centiseconds = (self.interval.as_millis() / 10).clamp(1, 0xfff) as u16;
        message.extend(centiseconds.to_be_bytes());
        message.extend([0, 0]);
        for address in &self.addresses {
            match address {
                IpAddr::V4(address) => message.extend(address.octets()),
                IpAddr::V6(address) => message.extend(address.octets()),
            }
        }
        let group = if v6 { IpAddr::from(GROUP_V6) } else { IpAddr::from(GROUP_V4) };
        let sum = message_sum(self.source, group, &message);
        message[6..8].copy_from_slice(&(!sum).to_be_bytes());
        let mut frame = Vec::with_capacity(ETH_LEN + IPV6_LEN + message.len());
        frame.extend(if v6 { GROUP_MAC_V6 } else { GROUP_MAC_V4 });
        frame.extend(virtual_mac);
        match self.source {
            IpAddr::V4(source) => {
                frame.extend(ETHERTYPE_IPV4.to_be_bytes());
                let at = frame.len();
                // Internetwork control, as every routing protocol.
                frame.extend([0x45, 0xc0]);
                frame.extend(((IPV4_LEN + message.len()) as u16).to_be_bytes());
                frame.extend([0, 0, 0, 0, TTL, PROTO_VRRP, 0, 0]);
                frame.extend(source.octets());
                frame.extend(GROUP_V4);
                let sum = !sum_of(0, &frame[at..]);
                frame[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
            }
            IpAddr::V6(source) => {
                frame.extend(ETHERTYPE_IPV6.to_be_bytes());
                frame.extend([0x6c, 0, 0, 0]);
                frame.extend((message.len() as u16).to_be_bytes());
                frame.extend([PROTO_VRRP, TTL]);
                frame.extend(source.octets());
                frame.extend(GROUP_V6);
            }
        }
        frame.extend(message);
        frame
    }

    /// Reads a frame of protocol 112, as RFC 5798, 7.1 demands.
    pub fn read(frame: &[u8]) -> Result<Self, Wrong> {
        let ethertype = frame.get(12..14).ok_or(Wrong::Malformed)?;
        let ip = &frame[ETH_LEN..];
        let (source, group, ttl, message) = if ethertype == ETHERTYPE_IPV4.to_be_bytes() {
            let header = ip.get(..IPV4_LEN).ok_or(Wrong::Malformed)?;
            let header_len = usize::from(header[0] & 15) * 4;
            let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
            if header[0] >> 4 != 4 || header_len < IPV4_LEN || header[6] & 0x3f != 0 || header[7] != 0 {
                return Err(Wrong::Malformed);
            }
            let message = ip.get(header_len..total).ok_or(Wrong::Malformed)?;
            (
                IpAddr::from(octets::<4>(&header[12..])),
                IpAddr::from(octets::<4>(&header[16..])),
                header[8],
                message,
            )
        } else {
            let header = ip.get(..IPV6_LEN).ok_or(Wrong::Malformed)?;
            let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            let message = ip.get(IPV6_LEN..IPV6_LEN + len).ok_or(Wrong::Malformed)?;
            let address = |at: usize| IpAddr::from(octets::<16>(&header[at..]));
            (address(8), address(24), header[7], message)
        };
        if ttl != TTL {
            return Err(Wrong::Ttl);
        }
        let v6 = source.is_ipv6();
        let address_len = if v6 { 16 } else { 4 };
        let header = message.get(..HEADER_LEN).ok_or(Wrong::Malformed)?;
        if header[0] != VERSION_AND_TYPE || group != if v6 { GROUP_V6.into() } else { IpAddr::from(GROUP_V4) }
        {
            return Err(Wrong::Version);
        }
        let count = usize::from(header[3]);
        let addresses = message.get(HEADER_LEN..HEADER_LEN + count * address_len).ok_or(Wrong::Malformed)?;
        if header[1] == 0 || count == 0 {
            return Err(Wrong::Malformed);
        }
        if message_sum(source, group, message) != 0xffff {
            return Err(Wrong::Checksum);
        }
        let addresses = addresses.chunks(address_len).map(|bytes| match v6 {
            true => IpAddr::from(octets::<16>(bytes)),
            false => IpAddr::from(octets::<4>(bytes)),
        });
        let centiseconds = u16::from_be_bytes([header[4], header[5]]) & 0xfff;
        Ok(Self {
            vrid: header[1],
            priority: header[2],
            interval: Duration::from_millis(u64::from(centiseconds.max(1)) * 10),
            source,
            addresses: addresses.collect(),
        })
    }
}

fn octets<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut octets = [0; N];
    octets.copy_from_slice(&bytes[..N]);
    octets
}

/// The sum over the pseudo-header and a message.
fn message_sum(source: IpAddr, group: IpAddr, message: &[u8]) -> u16 {
    let (from, to, len) = (Ip::from(source), Ip::from(group), message.len() as u16);
    let pseudo = match source {
        IpAddr::V4(_) => checksum::pseudo_v4(&from, &to, len, PROTO_VRRP),
        IpAddr::V6(_) => checksum::pseudo_v6(&from, &to, len, PROTO_VRRP),
    };
    let pseudo = u32::from(u16::from_be(checksum::fold(pseudo)));
    sum_of(pseudo, message)
}

/// The Internet checksum's sum (RFC 1071), in host order, not complemented.
fn sum_of(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advertisement(v6: bool) -> Advertisement {
        let addresses: &[&str] =
            if v6 { &["fe80::200:5eff:fe00:207", "2001:db8::10"] } else { &["203.0.113.10"] };
        Advertisement {
            vrid: 7,
            priority: 200,
            interval: Duration::from_millis(200),
            source: if v6 { "fe80::1" } else { "203.0.113.2" }.parse().unwrap(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        }
    }

    /// Byte by byte: the message of RFC 5798, 5.1, its checksum worked out by hand.
    #[test]
    fn an_announcement_is_as_the_rfc_has_it() {
        let frame = advertisement(false).frame([0, 0, 0x5e, 0, 1, 7]);
        assert_eq!(frame[..14], [1, 0, 0x5e, 0, 0, 0x12, 0, 0, 0x5e, 0, 1, 7, 8, 0]);
        assert_eq!(frame[14..24], [0x45, 0xc0, 0, 32, 0, 0, 0, 0, 255, 112]);
        assert_eq!(frame[26..34], [203, 0, 113, 2, 224, 0, 0, 18]);
        assert_eq!(frame[34..40], [0x31, 7, 200, 1, 0, 20]);
        // cb00 + 7102 + e000 + 0012 + 0070 + 000c, 3107 + c801 + 0014 + cb00 + 710a
        let sum: u32 =
            0xcb00 + 0x7102 + 0xe000 + 0x0012 + 0x0070 + 0x000c + 0x3107 + 0xc801 + 0x0014 + 0xcb00 + 0x710a;
        let sum = (sum & 0xffff) + (sum >> 16);
        assert_eq!(frame[40..42], (!(sum as u16)).to_be_bytes());
        assert_eq!(frame[42..], [203, 0, 113, 10]);
    }

    #[test]
    fn what_is_written_is_read_back_and_what_is_wrong_is_refused() {
        for v6 in [false, true] {
            let sent = advertisement(v6);
            let frame = sent.frame([0, 0, 0x5e, 0, if v6 { 2 } else { 1 }, 7]);
            assert_eq!(Advertisement::read(&frame), Ok(sent.clone()));
            // Padded, as short frames are.
            let padded: Vec<u8> = frame.iter().copied().chain([0; 20]).collect();
            assert_eq!(Advertisement::read(&padded), Ok(sent.clone()));
            for len in 0..frame.len() {
                assert_eq!(Advertisement::read(&frame[..len]), Err(Wrong::Malformed), "{len}");
            }
            let ttl = if v6 { 14 + 7 } else { 14 + 8 };
            let message = if v6 { 54 } else { 34 };
            let wrong = |at: usize, value: u8| {
                let mut frame = frame.clone();
                frame[at] = value;
                Advertisement::read(&frame).unwrap_err()
            };
            assert_eq!(wrong(ttl, 254), Wrong::Ttl);
            assert_eq!(wrong(message, 0x21), Wrong::Version);
            assert_eq!(wrong(message + 1, 0), Wrong::Malformed);
            assert_eq!(wrong(message + 2, 201), Wrong::Checksum);
            assert_eq!(wrong(message + 3, 0), Wrong::Malformed);
            assert_eq!(wrong(message + 3, 200), Wrong::Malformed);
            let last = frame.len() - 1;
            assert_eq!(wrong(last, frame[last] ^ 1), Wrong::Checksum);
        }
    }

    #[test]
    fn noise_is_refused() {
        let mut noise = 1_u64;
        for len in 0..400 {
            let frame: Vec<u8> = (0..len)
                .map(|_| {
                    noise = noise.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    (noise >> 56) as u8
                })
                .collect();
            assert!(Advertisement::read(&frame).is_err());
        }
    }
}
