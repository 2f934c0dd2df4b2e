//! What a packet says that the data path dropped before it had read it: as much as is there.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use vrouter_common::{
    addr::{Be16, Be32},
    flow::FlowKey,
    wire::VXLAN_PORT,
};

/// A packet's protocol and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// ARP; addresses are those it speaks of.
    pub arp: bool,
    /// Addresses, protocol and ports; nothing about where it came in.
    pub key: FlowKey,
}

/// What is around a frame in a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Who sent it.
    pub vtep: Be32,
    pub vni: u32,
    /// Where the frame begins.
    pub at: u32,
}

/// Reads what is around a frame, if that is a tunnel: IPv4 (whole), UDP, VXLAN with a VNI.
pub fn outer(frame: &[u8]) -> Option<Outer> {
    let be16 = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    let first = *frame.get(14)?;
    let udp = 14 + usize::from(first & 0xf) * 4;
    let is_ipv4 = be16(12)? == 0x0800 && first >> 4 == 4 && udp >= 34;
    let is_whole = be16(20)? & 0x3fff == 0;
    if !is_ipv4 || !is_whole || *frame.get(23)? != 17 || be16(udp + 2)? != VXLAN_PORT {
        return None;
    }
    let [flags, _, _, _, a, b, c, _] = *frame.get(udp + 8..)?.first_chunk::<8>()?;
    let src = *frame.get(26..)?.first_chunk::<4>()?;
    let vtep = Be32::new(u32::from_be_bytes(src));
    (flags & 8 != 0).then_some(Outer { vtep, vni: u32::from_be_bytes([0, a, b, c]), at: udp as u32 + 16 })
}

/// Reads a frame, or the beginning of one.
pub fn read(frame: &[u8]) -> Option<Said> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let (src, dst, proto): (IpAddr, IpAddr, u8) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
            ip.payload_ip_number().0,
        ),
        LaxNetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
            ip.payload().ip_number.0,
        ),
        LaxNetSlice::Arp(arp) => {
            let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from);
            let (sender, target) =
                (address(arp.sender_protocol_addr())?, address(arp.target_protocol_addr())?);
            let key = FlowKey {
                src: IpAddr::from(sender).into(),
                dst: IpAddr::from(target).into(),
                ..FlowKey::default()
            };
            return Some(Said { arp: true, key });
        }
    };
    let icmp = |kind: u8, code: u8, rest: [u8; 4]| {
        (Be16::new(u16::from_be_bytes([rest[0], rest[1]])), Be16::new(u16::from_be_bytes([kind, code])))
    };
    let (sport, dport) = match &packet.transport {
        Some(TransportSlice::Udp(udp)) => (Be16::new(udp.source_port()), Be16::new(udp.destination_port())),
        Some(TransportSlice::Tcp(tcp)) => (Be16::new(tcp.source_port()), Be16::new(tcp.destination_port())),
        Some(TransportSlice::Icmpv4(it)) => icmp(it.type_u8(), it.code_u8(), it.bytes5to8()),
        Some(TransportSlice::Icmpv6(it)) => icmp(it.type_u8(), it.code_u8(), it.bytes5to8()),
        _ => (Be16::new(0), Be16::new(0)),
    };
    let key = FlowKey { src: src.into(), dst: dst.into(), sport, dport, proto, ..FlowKey::default() };
    Some(Said { arp: false, key })
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn a_packet_that_was_cut_still_says_whose_it_is() {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([10, 0, 1, 11], [10, 0, 2, 13], 64)
            .udp(4000, 53);
        let payload = [0; 400];
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut frame, &payload).expect("memory");
        let said = read(&frame[..128]).expect("a packet");
        assert_eq!((said.key.sport.get(), said.key.dport.get(), said.key.proto), (4000, 53, 17));
        assert_eq!(IpAddr::from(said.key.src), IpAddr::from([10, 0, 1, 11]));
        assert!(!said.arp);
        let said = read(&frame[..36]).expect("addresses");
        assert_eq!((said.key.sport.get(), IpAddr::from(said.key.dst)), (0, IpAddr::from([10, 0, 2, 13])));
    }

    #[test]
    fn what_is_in_a_tunnel_is_found() {
        let frame = |port, payload: &[u8]| {
            let mut frame = Vec::new();
            let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
            let builder = builder.ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64).udp(50_000, port);
            builder.write(&mut frame, payload).expect("memory");
            frame
        };
        let inner = frame(53, &[]);
        let tunneled = frame(VXLAN_PORT, &[&[8, 0, 0, 0, 0, 0x1b, 0x58, 0][..], &inner].concat());
        let found = outer(&tunneled).expect("a tunnel");
        assert_eq!((found.vni, found.vtep), (7000, Be32::new(0xc000_0201)));
        assert_eq!(&tunneled[found.at as usize..], inner);
        let without_vni = frame(VXLAN_PORT, &[[0; 8].as_slice(), &inner].concat());
        let mut fragment = tunneled.clone();
        fragment[21] = 7;
        for other in [&inner, &without_vni, &fragment, &frame(53, &[8; 100])] {
            assert_eq!(outer(other), None);
        }
        for length in 0..tunneled.len() {
            assert_eq!(outer(&tunneled[..length]), Some(found).filter(|_| length >= 50), "{length}");
        }
    }

    #[test]
    fn nonsense_says_nothing() {
        for length in 0..64 {
            assert_eq!(read(&vec![0xff; length]), None);
            assert_eq!(outer(&vec![0xff; length]), None);
        }
    }
}
