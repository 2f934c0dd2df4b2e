//! Frames around what services say.

use std::net::{Ipv4Addr, Ipv6Addr};

use vrouter_common::{addr::Ip, checksum, wire::*};

use crate::agent::external::frames::{put16, sum};

/// Who says it to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends<A> {
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    pub src: A,
    pub dst: A,
}

/// A UDP datagram over IPv4.
pub fn udp_v4(ends: &Ends<Ipv4Addr>, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    const TTL: u8 = 64;
    let udp = udp(sport, dport, payload);
    let mut frame = ethernet(ends.src_mac, ends.dst_mac, ETHERTYPE_IPV4);
    frame.extend([0x45, 0]);
    frame.extend(((IPV4_LEN + udp.len()) as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, TTL, PROTO_UDP, 0, 0]);
    frame.extend(ends.src.octets());
    frame.extend(ends.dst.octets());
    let header = checksum::finish(sum(&frame[ETH_LEN..]));
    put16(&mut frame, ETH_LEN + 10, header);
    let (src, dst) = (Ip::from(std::net::IpAddr::from(ends.src)), Ip::from(std::net::IpAddr::from(ends.dst)));
    let pseudo = checksum::pseudo_v4(&src, &dst, udp.len() as u16, PROTO_UDP);
    with_checksum(frame, &udp, pseudo, 6, true)
}

/// A UDP datagram over IPv6.
pub fn udp_v6(ends: &Ends<Ipv6Addr>, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    const HOP_LIMIT: u8 = 64;
    let udp = udp(sport, dport, payload);
    let (frame, pseudo) = ipv6(ends, PROTO_UDP, HOP_LIMIT, udp.len());
    with_checksum(frame, &udp, pseudo, 6, true)
}

/// An ICMPv6 message of neighbour discovery, its checksum not filled in.
pub fn nd(ends: &Ends<Ipv6Addr>, message: &[u8]) -> Vec<u8> {
    const HOP_LIMIT: u8 = 255;
    let (frame, pseudo) = ipv6(ends, PROTO_ICMPV6, HOP_LIMIT, message.len());
    with_checksum(frame, message, pseudo, 2, false)
}

fn ethernet(src: [u8; 6], dst: [u8; 6], ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(600);
    frame.extend(dst);
    frame.extend(src);
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn udp(sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let len = 8 + payload.len();
    let mut udp = Vec::with_capacity(len);
    udp.extend(sport.to_be_bytes());
    udp.extend(dport.to_be_bytes());
    udp.extend((len as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    udp
}

fn ipv6(ends: &Ends<Ipv6Addr>, proto: u8, hop_limit: u8, len: usize) -> (Vec<u8>, u32) {
    let mut frame = ethernet(ends.src_mac, ends.dst_mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((len as u16).to_be_bytes());
    frame.extend([proto, hop_limit]);
    frame.extend(ends.src.octets());
    frame.extend(ends.dst.octets());
    let (src, dst) = (Ip::from(std::net::IpAddr::from(ends.src)), Ip::from(std::net::IpAddr::from(ends.dst)));
    (frame, checksum::pseudo_v6(&src, &dst, len as u16, proto))
}

/// Appends a transport message, and fills in its checksum at `at`. `optional`: zero would say that there is none.
fn with_checksum(mut frame: Vec<u8>, message: &[u8], pseudo: u32, at: usize, optional: bool) -> Vec<u8> {
    let start = frame.len();
    frame.extend(message);
    let mut checksum = checksum::finish(pseudo + sum(message));
    if optional && checksum.get() == 0 {
        checksum = vrouter_common::addr::Be16::new(0xffff);
    }
    put16(&mut frame, start + at, checksum);
    frame
}

/// The hardware address of an IPv6 multicast group.
pub fn multicast_mac(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    #[test]
    fn checksums_are_right() {
        let v4 = Ends {
            src_mac: [2; 6],
            dst_mac: [4; 6],
            src: Ipv4Addr::new(10, 0, 1, 1),
            dst: Ipv4Addr::new(10, 0, 1, 11),
        };
        let v6 = Ends {
            src_mac: [2; 6],
            dst_mac: [4; 6],
            src: "fe80::1".parse().unwrap(),
            dst: "fe80::2".parse().unwrap(),
        };
        for len in 0..64 {
            let payload: Vec<u8> = (0..len).map(|byte: u8| byte.wrapping_mul(37)).collect();
            for frame in [udp_v4(&v4, 67, 68, &payload), udp_v6(&v6, 547, 546, &payload)] {
                let packet = SlicedPacket::from_ethernet(&frame).unwrap();
                let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP") };
                let right = match packet.net.unwrap() {
                    NetSlice::Ipv4(ip) => {
                        assert_eq!(
                            ip.header().to_header().calc_header_checksum(),
                            ip.header().header_checksum()
                        );
                        udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), &payload)
                    }
                    NetSlice::Ipv6(ip) => {
                        udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), &payload)
                    }
                    NetSlice::Arp(_) => panic!("ARP"),
                };
                assert_eq!(udp.checksum(), right.unwrap());
                assert_eq!(udp.payload(), payload);
            }
        }
    }
}
