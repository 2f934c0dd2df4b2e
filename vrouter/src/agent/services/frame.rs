//! Frames to and from a workload: what is around the packet.

use std::net::IpAddr;

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet};

/// Bytes in front of the packet.
pub const HEADER: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// A frame with a whole IP packet in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// Hardware address it was sent to.
    pub to: [u8; 6],
    /// Hardware address it was sent from.
    pub from: [u8; 6],
    pub src: IpAddr,
    pub dst: IpAddr,
    /// Of what is right behind the IP header.
    pub protocol: IpProtocol,
    /// From the IP header on, without padding.
    pub packet: &'a [u8],
    /// Behind the IP header.
    pub payload: &'a [u8],
}

impl<'a> Received<'a> {
    /// Reads a frame; `None`: no IP in it, not all of it, or a fragment.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (header, rest) = frame.split_at_checked(HEADER)?;
        let (to, from) = (header[..6].try_into().ok()?, header[6..12].try_into().ok()?);
        if header[12..] == IPV4 {
            let ip = Ipv4Packet::new_checked(rest).ok()?;
            if ip.version() != 4 || ip.more_frags() || ip.frag_offset() != 0 {
                return None;
            }
            let packet = rest.get(..usize::from(ip.total_len()))?;
            let payload = packet.get(usize::from(ip.header_len())..)?;
            let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
            Some(Self { to, from, src, dst, protocol: ip.next_header(), packet, payload })
        } else if header[12..] == IPV6 {
            let ip = Ipv6Packet::new_checked(rest).ok()?;
            if ip.version() != 6 {
                return None;
            }
            let packet = rest.get(..ip.total_len())?;
            let payload = packet.get(ip.header_len()..)?;
            let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
            Some(Self { to, from, src, dst, protocol: ip.next_header(), packet, payload })
        } else {
            None
        }
    }

    /// Ports of TCP, from and to; `None`: not TCP, or cut off.
    pub fn tcp_ports(&self) -> Option<(u16, u16)> {
        let ports = self.payload.get(..4).filter(|_| self.protocol == IpProtocol::Tcp)?;
        Some((u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
    }
}

/// Puts an IP packet into a frame.
pub fn wrap(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + packet.len());
    frame.extend(to);
    frame.extend(from);
    frame.extend(if packet.first().is_some_and(|first| first >> 4 == 6) { IPV6 } else { IPV4 });
    frame.extend(packet);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 packet of 24 bytes, TCP, in a frame padded to 60.
    fn frame() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 169, 254, 169, 254];
        packet.extend([0x9c, 0x40, 0, 80]);
        let mut frame = wrap([2; 6], [4; 6], &packet);
        frame.resize(60, 0);
        frame
    }

    #[test]
    fn a_frame_is_read_without_its_padding() {
        let frame = frame();
        let received = Received::parse(&frame).expect("a whole packet");
        assert_eq!((received.to, received.from), ([2; 6], [4; 6]));
        assert_eq!(received.packet.len(), 24);
        assert_eq!(received.tcp_ports(), Some((40000, 80)));
        assert_eq!(received.dst.to_string(), "169.254.169.254");
    }

    #[test]
    fn fragments_and_what_is_cut_off_are_none() {
        for (at, value) in [(20, 0x20), (21, 1), (14, 0x65), (14, 0x44), (17, 200), (12, 9)] {
            let mut frame = frame();
            frame[at] = value;
            assert_eq!(Received::parse(&frame), None, "byte {at} is {value}");
        }
        let frame = frame();
        for len in 0..38 {
            assert_eq!(Received::parse(&frame[..len]), None, "{len} bytes");
        }
    }
}
