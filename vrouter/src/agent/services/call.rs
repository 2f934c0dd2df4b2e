//! What the data path hands over: a record of the ring buffer, the frame in it, and which service it is for.
//!
//! The frame was parsed by the data path, which dropped what contradicts itself; here nothing of that is relied
//! on. Checksums are not looked at: a workload on this machine leaves them to hardware there is none of.

use vrouter_common::{
    service::{METADATA_IP_V6, METADATA_PORT, METADATA_V4},
    tables::{ServiceCall, UPCALL_FRAME_MAX},
    wire::{
        ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP_ECHO_REPLY, ICMPV6_ECHO_REPLY, IPV4_LEN, IPV6_LEN,
        ND_ROUTER_SOLICIT, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP,
    },
};

use super::service::{Kind, Refused};

/// Reads a record: the interface the frame came in by, and the frame. `None`: it is none of ours.
pub fn read(record: &[u8]) -> Option<(u32, &[u8])> {
    let (head, rest) = record.split_at_checked(size_of::<ServiceCall>())?;
    // SAFETY: as many bytes as a `ServiceCall` has, any of which are one (Pod); they may lie anywhere.
    let call = unsafe { std::ptr::read_unaligned(head.as_ptr().cast::<ServiceCall>()) };
    let len = call.len as usize;
    if !(ETH_LEN..=UPCALL_FRAME_MAX).contains(&len) {
        return None;
    }
    Some((call.ifindex, rest.get(..len)?))
}

/// A transport header and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport<'f> {
    pub proto: u8,
    pub v6: bool,
    /// A piece of a datagram.
    pub fragment: bool,
    /// From the transport header to the end of the datagram, without the frame's padding.
    pub bytes: &'f [u8],
}

/// Finds the transport header. `None`: there is none.
pub fn transport(frame: &[u8]) -> Option<Transport<'_>> {
    let ethertype = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let packet = frame.get(ETH_LEN..)?;
    match ethertype {
        ETHERTYPE_IPV4 => {
            let header_len = usize::from(packet.first()? & 0xf) * 4;
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            let offset = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]);
            if header_len < IPV4_LEN || total < header_len {
                return None;
            }
            let bytes = packet.get(header_len..total)?;
            Some(Transport { proto: *packet.get(9)?, v6: false, fragment: offset & 0x3fff != 0, bytes })
        }
        ETHERTYPE_IPV6 => {
            const EXTENSIONS: [u8; 3] = [0, 43, 60];
            const FRAGMENT: u8 = 44;
            const EXTENSIONS_MAX: usize = 8;
            let payload = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
            let mut bytes = packet.get(IPV6_LEN..IPV6_LEN + payload)?;
            let mut proto = *packet.get(6)?;
            let mut fragment = false;
            for _ in 0..EXTENSIONS_MAX {
                let len = match proto {
                    FRAGMENT => {
                        fragment = true;
                        8
                    }
                    proto if EXTENSIONS.contains(&proto) => usize::from(*bytes.get(1)?) * 8 + 8,
                    _ => break,
                };
                proto = *bytes.first()?;
                bytes = bytes.get(len..)?;
            }
            Some(Transport { proto, v6: true, fragment, bytes })
        }
        _ => None,
    }
}

/// What a UDP datagram carries.
pub fn datagram(frame: &[u8]) -> Result<&[u8], Refused> {
    let transport = transport(frame).ok_or(Refused::MALFORMED)?;
    if transport.fragment {
        return Err(Refused::FRAGMENT);
    }
    let len = transport.bytes.get(4..6).ok_or(Refused::MALFORMED)?;
    let len = usize::from(u16::from_be_bytes([len[0], len[1]]));
    transport.bytes.get(8..len).ok_or(Refused::MALFORMED)
}

/// Which service a frame is for. `None`: for none there is.
pub fn kind(frame: &[u8]) -> Option<Kind> {
    let Transport { proto, v6, bytes, .. } = transport(frame)?;
    let port = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    match proto {
        PROTO_UDP => match (v6, port(0)?, port(2)?) {
            (false, 68, 67) => Some(Kind::Dhcp),
            (true, 546, 547) => Some(Kind::Dhcpv6),
            _ => None,
        },
        PROTO_ICMPV6 if v6 && *bytes.first()? == ND_ROUTER_SOLICIT => Some(Kind::Router),
        PROTO_TCP if port(2)? == METADATA_PORT && is_metadata(frame, v6) => Some(Kind::Metadata),
        PROTO_TCP => Some(Kind::Health),
        PROTO_ICMP if !v6 && *bytes.first()? == ICMP_ECHO_REPLY => Some(Kind::Health),
        PROTO_ICMPV6 if v6 && *bytes.first()? == ICMPV6_ECHO_REPLY => Some(Kind::Health),
        _ => None,
    }
}

fn is_metadata(frame: &[u8], v6: bool) -> bool {
    match v6 {
        false => frame.get(30..34) == Some(&METADATA_V4),
        true => match std::net::IpAddr::from(METADATA_IP_V6) {
            std::net::IpAddr::V6(address) => frame.get(38..54) == Some(&address.octets()),
            std::net::IpAddr::V4(_) => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let mut record = 9_u32.to_ne_bytes().to_vec();
        record.extend(60_u32.to_ne_bytes());
        record.extend((0..60_u8).chain(std::iter::repeat_n(0xee, UPCALL_FRAME_MAX - 60)));
        let (ifindex, frame) = read(&record).unwrap();
        assert_eq!((ifindex, frame), (9, &(0..60).collect::<Vec<u8>>()[..]));
        for len in [13, UPCALL_FRAME_MAX as u32 + 1, u32::MAX] {
            record[4..8].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(read(&record), None, "{len} bytes");
        }
        record[4..8].copy_from_slice(&60_u32.to_ne_bytes());
        assert_eq!(read(&record[..67]), None, "shorter than it says");
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn whatever_the_bytes_nothing_is_read_past_their_end() {
        let mut frame = [0_u8; 120];
        for ethertype in [[8, 0], [0x86, 0xdd], [8, 6]] {
            frame[12..14].copy_from_slice(&ethertype);
            for first in 0..=255 {
                frame[14] = first;
                for length in [[0, 0], [0, 20], [0, 106], [0xff, 0xff]] {
                    frame[16..18].copy_from_slice(&length);
                    frame[18..20].copy_from_slice(&length);
                    for len in 0..frame.len() {
                        let _ = (transport(&frame[..len]), kind(&frame[..len]));
                    }
                }
            }
        }
    }
}
