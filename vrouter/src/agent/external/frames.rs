//! ARP (RFC 826) and neighbour discovery (RFC 4861) as the agent speaks them: requests for next hops, and
//! announcements of its own addresses.

use vrouter_common::{
    addr::{Be16, Ip},
    checksum,
    wire::*,
};

const BROADCAST: [u8; 6] = [0xff; 6];
const ARP_REQUEST: u16 = 1;
/// A solicitation or advertisement with one option.
const ND_LEN: usize = 32;
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
/// What neighbour discovery is sent and must be received with.
const ND_HOP_LIMIT: u8 = 255;
const FLAG_ROUTER: u8 = 0x80;
const FLAG_OVERRIDE: u8 = 0x20;

/// Asks who has `target`: everybody (of its solicited-node group), or only the one who had it last.
pub fn request(mac: [u8; 6], source: Ip, target: Ip, to: Option<[u8; 6]>) -> Vec<u8> {
    if target.is_v4() {
        return arp(to.unwrap_or(BROADCAST), mac, source, target);
    }
    let (dst_mac, dst) = match to {
        Some(known) => (known, target),
        None => (solicited_node_mac(target), solicited_node(target)),
    };
    nd(dst_mac, mac, source, dst, ND_NEIGHBOR_SOLICIT, 0, target, SOURCE_LINK_LAYER)
}

/// Tells everybody that `ip` is at `mac`: a gratuitous ARP request (RFC 5227, 3), or an unsolicited
/// advertisement that overrides (RFC 4861, 7.2.6).
pub fn announcement(mac: [u8; 6], ip: Ip, router: bool) -> Vec<u8> {
    if ip.is_v4() {
        return arp(BROADCAST, mac, ip, ip);
    }
    let all_nodes = Ip([0xff02_0000_u32.to_be(), 0, 0, 1_u32.to_be()]);
    let flags = FLAG_OVERRIDE | if router { FLAG_ROUTER } else { 0 };
    nd([0x33, 0x33, 0, 0, 0, 1], mac, ip, all_nodes, ND_NEIGHBOR_ADVERT, flags, ip, TARGET_LINK_LAYER)
}

fn arp(dst_mac: [u8; 6], mac: [u8; 6], sender: Ip, target: Ip) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETH_LEN + ARP_LEN);
    frame.extend(dst_mac);
    frame.extend(mac);
    frame.extend(ETHERTYPE_ARP.to_be_bytes());
    // Ethernet, IPv4, and the lengths of their addresses.
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(ARP_REQUEST.to_be_bytes());
    frame.extend(mac);
    // A router without an IPv4 address there asks as a probe does (RFC 5227, 2.1.1): from 0.0.0.0.
    frame.extend(if sender.is_v4() { sender.as_v4().memory() } else { 0 }.to_ne_bytes());
    frame.extend([0; 6]);
    frame.extend(target.as_v4().memory().to_ne_bytes());
    frame
}

#[expect(clippy::too_many_arguments, reason = "they are the fields of the message")]
fn nd(
    dst_mac: [u8; 6],
    mac: [u8; 6],
    src: Ip,
    dst: Ip,
    kind: u8,
    flags: u8,
    target: Ip,
    option: u8,
) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETH_LEN + IPV6_LEN + ND_LEN);
    frame.extend(dst_mac);
    frame.extend(mac);
    frame.extend(ETHERTYPE_IPV6.to_be_bytes());
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((ND_LEN as u16).to_be_bytes());
    frame.extend([PROTO_ICMPV6, ND_HOP_LIMIT]);
    frame.extend(octets(src));
    frame.extend(octets(dst));
    let at = frame.len();
    frame.extend([kind, 0, 0, 0, flags, 0, 0, 0]);
    frame.extend(octets(target));
    frame.extend([option, 1]);
    frame.extend(mac);
    let sum = checksum::pseudo_v6(&src, &dst, ND_LEN as u16, PROTO_ICMPV6) + sum(&frame[at..]);
    put16(&mut frame, at + 2, checksum::finish(sum));
    frame
}

/// ff02::1:ffXX:XXXX
fn solicited_node(ip: Ip) -> Ip {
    let low = u32::from_be(ip.0[3]) & 0x00ff_ffff;
    Ip([0xff02_0000_u32.to_be(), 0, 1_u32.to_be(), (0xff00_0000 | low).to_be()])
}

fn solicited_node_mac(ip: Ip) -> [u8; 6] {
    let [_, b, c, d] = ip.0[3].to_ne_bytes();
    [0x33, 0x33, 0xff, b, c, d]
}

fn octets(ip: Ip) -> [u8; 16] {
    let mut octets = [0; 16];
    for (word, bytes) in ip.0.iter().zip(octets.chunks_exact_mut(4)) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    octets
}

/// The ones' complement sum of bytes, folded to 16 bits.
pub fn sum(bytes: &[u8]) -> u32 {
    let mut sum = 0_u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u32
}

/// Writes a word as it lies.
pub fn put16(bytes: &mut [u8], at: usize, word: Be16) {
    bytes[at..at + 2].copy_from_slice(&word.memory().to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use etherparse::{
        ArpEthIpv4Packet, ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, Icmpv6Header,
        Icmpv6Type, IpNumber, Ipv6Header, icmpv6::NeighborAdvertisementHeader,
    };

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
    const PEER: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];

    fn ip(text: &str) -> Ip {
        Ip::from(text.parse::<IpAddr>().expect("an address"))
    }

    fn arp_by_etherparse(dst: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let arp = ArpEthIpv4Packet {
            operation: ArpOperation::REQUEST,
            sender_mac: MAC,
            sender_ipv4: sender,
            target_mac: [0; 6],
            target_ipv4: target,
        };
        let packet = ArpPacket::from(arp);
        assert_eq!(packet.hw_addr_type, ArpHardwareId::ETHERNET);
        let mut frame =
            Ethernet2Header { destination: dst, source: MAC, ether_type: EtherType::ARP }.to_bytes().to_vec();
        frame.extend(packet.to_bytes());
        frame
    }

    fn nd_by_etherparse(
        dst_mac: [u8; 6],
        src: &str,
        dst: &str,
        message: Icmpv6Type,
        target: &str,
        option: u8,
    ) -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv6Addr>().expect("an address").octets();
        let mut payload = address(target).to_vec();
        payload.extend([option, 1]);
        payload.extend(MAC);
        let icmp = Icmpv6Header::with_checksum(message, address(src), address(dst), &payload).expect("short");
        let ip = Ipv6Header {
            payload_length: 32,
            next_header: IpNumber::IPV6_ICMP,
            hop_limit: 255,
            source: address(src),
            destination: address(dst),
            ..Ipv6Header::default()
        };
        let mut frame = Ethernet2Header { destination: dst_mac, source: MAC, ether_type: EtherType::IPV6 }
            .to_bytes()
            .to_vec();
        frame.extend(ip.to_bytes());
        frame.extend(icmp.to_bytes());
        frame.extend(payload);
        frame
    }

    #[test]
    fn arp_requests_are_broadcast_or_sent_to_the_last_owner() {
        let (source, target) = (ip("203.0.113.10"), ip("203.0.113.1"));
        let want = |dst| arp_by_etherparse(dst, [203, 0, 113, 10], [203, 0, 113, 1]);
        assert_eq!(request(MAC, source, target, None), want([0xff; 6]));
        assert_eq!(request(MAC, source, target, Some(PEER)), want(PEER));
        let probe = arp_by_etherparse([0xff; 6], [0; 4], [203, 0, 113, 1]);
        assert_eq!(request(MAC, Ip::UNSPECIFIED, target, None), probe, "without an address");
    }

    #[test]
    fn solicitations_go_to_the_solicited_node_group_or_to_the_last_owner() {
        let (src, target) = ("2001:db8::10", "2001:db8::a1b2:c3d4");
        let want =
            |dst_mac, dst| nd_by_etherparse(dst_mac, src, dst, Icmpv6Type::NeighborSolicitation, target, 1);
        let group = want([0x33, 0x33, 0xff, 0xb2, 0xc3, 0xd4], "ff02::1:ffb2:c3d4");
        assert_eq!(request(MAC, ip(src), ip(target), None), group);
        assert_eq!(request(MAC, ip(src), ip(target), Some(PEER)), want(PEER, target));
    }

    #[test]
    fn announcements_name_the_address_twice_and_override() {
        let want = arp_by_etherparse([0xff; 6], [203, 0, 113, 50], [203, 0, 113, 50]);
        assert_eq!(announcement(MAC, ip("203.0.113.50"), false), want);
        for router in [false, true] {
            let header = NeighborAdvertisementHeader { router, solicited: false, r#override: true };
            let want = nd_by_etherparse(
                [0x33, 0x33, 0, 0, 0, 1],
                "2001:db8::50",
                "ff02::1",
                Icmpv6Type::NeighborAdvertisement(header),
                "2001:db8::50",
                2,
            );
            assert_eq!(announcement(MAC, ip("2001:db8::50"), router), want);
        }
    }
}
