//! What a packet becomes before the agent sends it: what the data path would have made of it, in user space.

use vrouter_common::{
    addr::{Be16, Be32, Macs},
    answer, apply,
    apply::{Exit, Hook},
    checksum,
    flow::{EXIT_PORT, FLOW_PEER, Flow},
    memory::{MemoryPacket, MemoryTables},
    parse::{self, Headers},
    plan::Ingress,
    reason::DropReason,
    tables::{Hop, UNDERLAY_RESOLVED, UNDERLAY_ROUTED, Underlay},
    tunnel,
    wire::*,
};

use super::{
    fragments,
    frames::{put16, sum},
    upcall::Held,
};

/// Where a packet leaves.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// By the interface of a port.
    Port(u32),
    /// To a next hop, whose hardware address is known.
    External(Hop),
    /// To another node.
    Tunnel(Underlay),
}

/// What is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A frame by an interface.
    Frame { ifindex: u32, frame: Vec<u8> },
    /// An IPv4 packet, to whom the kernel has to find out how.
    Datagram { dst: Be32, packet: Vec<u8> },
}

/// Why a packet cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsendable {
    /// What the data path would have said.
    #[error("{}", .0.describe())]
    Dropped(DropReason),
    /// Larger than its way takes, and not to be cut.
    #[error("cannot be cut: {0}")]
    Uncuttable(#[from] fragments::Uncuttable),
}

impl From<DropReason> for Unsendable {
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

/// Everything to be sent for a packet: itself, or its fragments.
pub fn outputs(held: &Held, way: &Way) -> Result<Vec<Output>, Unsendable> {
    let flow = &held.upcall.flow;
    let mut held = held.clone();
    complete(&mut held.frame, held.upcall.at as usize);
    let frame = render(&held, way)?;
    let packet = &frame[ETH_LEN..];
    if flow.mtu == 0 || packet.len() <= usize::from(flow.mtu) || packet[0] >> 4 != 4 {
        return Ok(vec![output(frame, flow, way)?]);
    }
    let fragments = fragments::cut(packet, usize::from(flow.mtu))?;
    fragments
        .into_iter()
        .map(|fragment| Ok(output([&frame[..ETH_LEN], &fragment[..]].concat(), flow, way)?))
        .collect()
}

/// The packet as it leaves, in a frame of the network it leaves on, without what Ethernet has padded it with,
/// and not yet in a tunnel.
///
/// This is the one place where the agent depends on how a decided packet is rewritten.
fn render(held: &Held, way: &Way) -> Result<Vec<u8>, DropReason> {
    let flow = &held.upcall.flow;
    let out_macs = match way {
        Way::External(hop) => Macs::new(hop.mac, flow.out_macs.src()),
        Way::Port(_) | Way::Tunnel(_) => flow.out_macs,
    };
    let headers = headers(&held.frame, held.upcall.at as usize)?;
    let ingress = Ingress { at: held.upcall.at as usize, ..Ingress::default() };
    // As if for a port: where it leaves is up to `output`, which may have fragments to send.
    let flow = Flow { exit: EXIT_PORT, target: 0, out_macs, flags: flow.flags & !FLOW_PEER, ..*flow };
    let mut packet = MemoryPacket::new(&held.frame);
    let shape = apply::Shape::new(&headers, &ingress);
    match apply::apply(&mut packet, &MemoryTables::default(), &flow, &shape, Hook::Tc) {
        Some(Ok(Exit::Interface(_))) => {}
        Some(Err(reason)) => return Err(reason),
        Some(Ok(Exit::Peer(_) | Exit::Neighbour { .. } | Exit::NextHook)) | None => {
            return Err(DropReason::Internal);
        }
    }
    let mut frame = packet.to_vec();
    frame.truncate(ETH_LEN + usize::from(headers.l3_len));
    Ok(frame)
}

/// Puts a frame on its way.
fn output(frame: Vec<u8>, flow: &Flow, way: &Way) -> Result<Output, DropReason> {
    let way = match way {
        Way::Port(ifindex) => return Ok(Output::Frame { ifindex: *ifindex, frame }),
        Way::External(hop) => return Ok(Output::Frame { ifindex: hop.ifindex, frame }),
        Way::Tunnel(way) => way,
    };
    if way.flags & UNDERLAY_ROUTED == 0 {
        return Err(DropReason::UnderlayUnreachable);
    }
    let ethertype = Be16::new(u16::from_be_bytes([frame[12], frame[13]]));
    let packet = MemoryPacket::new(&[&[0; OUTER_LEN], &frame[..]].concat());
    tunnel::write(&packet, way, flow.vni, flow.outer_sport, &flow.out_macs, ethertype)?;
    let frame = packet.to_vec();
    Ok(if way.flags & UNDERLAY_RESOLVED != 0 {
        Output::Frame { ifindex: way.ifindex, frame }
    } else {
        Output::Datagram { dst: way.dst, packet: frame[ETH_LEN..].to_vec() }
    })
}

/// The error about a packet whose next hop does not answer, for the interface it came in by. `None`: nobody is
/// told, because it came from another node, or is nothing an error may be sent about.
pub fn refusal(held: &Held) -> Option<Vec<u8>> {
    if held.tunnelled() || held.upcall.answer.kind == 0 {
        return None;
    }
    let mut frame = held.frame.clone();
    complete(&mut frame, 0);
    let headers = headers(&frame, 0).ok()?;
    let mut packet = MemoryPacket::new(&frame);
    answer::write(&mut packet, &headers, &held.upcall.answer).ok()?;
    Some(packet.to_vec())
}

fn headers(frame: &[u8], at: usize) -> Result<Headers, DropReason> {
    match parse::full(&MemoryPacket::new(frame), at)? {
        headers if !headers.arp => Ok(headers),
        _ => Err(DropReason::Internal),
    }
}

/// Completes the transport checksum of the frame at `at` if its sender left that to a device: then the field
/// holds the sum of the pseudo-header alone (SCTP: nothing). Should a complete checksum happen to be the same
/// number, completing it gives that number again.
pub fn complete(frame: &mut [u8], at: usize) {
    let Ok(headers) = headers(frame, at) else { return };
    if headers.fragment {
        return;
    }
    let (start, len) = (headers.l4(), headers.l4_len());
    let Some(transport) = frame.get_mut(start..start + len) else { return };
    let field = match headers.proto {
        PROTO_TCP => 16,
        PROTO_UDP => 6,
        PROTO_SCTP => return complete_sctp(transport),
        _ => return,
    };
    if transport.len() < field + 2 {
        return;
    }
    let pseudo = if headers.v6 {
        checksum::pseudo_v6(&headers.src, &headers.dst, len as u16, headers.proto)
    } else {
        checksum::pseudo_v4(&headers.src, &headers.dst, len as u16, headers.proto)
    };
    let found = u16::from_ne_bytes([transport[field], transport[field + 1]]);
    if found != checksum::fold(pseudo) {
        return;
    }
    let mut complete = checksum::finish(sum(transport));
    if headers.proto == PROTO_UDP && complete.get() == 0 {
        // Zero would say that there is none (RFC 768).
        complete = Be16::new(0xffff);
    }
    put16(transport, field, complete);
}

/// CRC32c (RFC 9260, appendix A), little-endian, over the packet with a field of zeros.
fn complete_sctp(transport: &mut [u8]) {
    if transport.len() < 12 || transport[8..12] != [0; 4] {
        return;
    }
    let mut crc = u32::MAX;
    for byte in &*transport {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    transport[8..12].copy_from_slice(&(!crc).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use etherparse::{IpNumber, Ipv4Header, PacketBuilder, SlicedPacket};
    use vrouter_common::{
        addr::Ip,
        flow::{EXIT_EXTERNAL, EXIT_TUNNEL},
        plan::{Answer, ICMP_ERROR},
        tables::{HOP_RESOLVED, HOP_USED, Upcall},
    };

    use super::*;

    const WORKLOAD: [u8; 6] = [2, 0, 0, 0, 1, 0x0a];
    const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OUT: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
    const HOP: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];

    /// A frame from a workload, complete.
    fn complete_frame(v6: bool, tcp: bool, len: usize) -> Vec<u8> {
        let payload: Vec<u8> = (0..len).map(|i| (i * 3) as u8).collect();
        let eth = PacketBuilder::ethernet2(WORKLOAD, ROUTER);
        let ip = if v6 {
            let address = |last| [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
            eth.ipv6(address(1), address(2), 64)
        } else {
            eth.ipv4([10, 0, 1, 10], [198, 51, 100, 7], 64)
        };
        let mut frame = Vec::new();
        let written: Result<(), _> = if tcp {
            ip.tcp(1000, 80, 7, 1024).ack(9).write(&mut frame, &payload)
        } else {
            ip.udp(1000, 53).write(&mut frame, &payload)
        };
        written.expect("short");
        if !v6 {
            // etherparse sets don't-fragment.
            frame[20] = 0;
            fix_ipv4(&mut frame);
        }
        frame
    }

    fn fix_ipv4(frame: &mut [u8]) {
        put16(frame, 24, Be16::new(0));
        let sum = sum(&frame[14..34]);
        put16(frame, 24, checksum::finish(sum));
    }

    fn l4_at(v6: bool) -> usize {
        ETH_LEN + if v6 { IPV6_LEN } else { IPV4_LEN }
    }

    fn field_at(v6: bool, tcp: bool) -> usize {
        l4_at(v6) + if tcp { 16 } else { 6 }
    }

    /// The same as a veth leaves it: the field holds the pseudo-header's sum, summed here word by word.
    fn partial(mut frame: Vec<u8>, v6: bool, tcp: bool) -> Vec<u8> {
        let len = frame.len() - l4_at(v6);
        let addresses = if v6 { &frame[22..54] } else { &frame[26..34] };
        let words = addresses.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let mut sum = words.sum::<u32>() + len as u32 + if tcp { 6 } else { 17 };
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        frame[field_at(v6, tcp)..][..2].copy_from_slice(&(sum as u16).to_be_bytes());
        frame
    }

    #[test]
    fn partial_checksums_are_completed_and_complete_ones_left_alone() {
        for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
            for len in [0, 1, 2, 3, 100, 1399] {
                let complete = complete_frame(v6, tcp, len);
                let mut frame = partial(complete.clone(), v6, tcp);
                assert_ne!(frame, complete);
                super::complete(&mut frame, 0);
                assert_eq!(frame, complete, "v6 {v6} tcp {tcp} {len} bytes");
                super::complete(&mut frame, 0);
                assert_eq!(frame, complete, "twice is once");
                // A wrong one is not made right: the receiver is to see it.
                frame[field_at(v6, tcp)] ^= 0x55;
                let wrong = frame.clone();
                super::complete(&mut frame, 0);
                assert_eq!(frame, wrong);
            }
        }
    }

    #[test]
    fn a_complete_checksum_that_looks_partial_stays_as_it_is() {
        // The payload is chosen so that data and ports sum to what makes both numbers equal.
        let mut found = 0;
        for word in 0..=u16::MAX {
            let mut frame = complete_frame(false, false, 2);
            frame[l4_at(false) + 8..][..2].copy_from_slice(&word.to_be_bytes());
            let mut frame = partial(frame, false, false);
            let looks_partial = frame[field_at(false, false)..][..2].to_vec();
            super::complete(&mut frame, 0);
            if frame[field_at(false, false)..][..2] == looks_partial[..] {
                let complete = frame.clone();
                super::complete(&mut frame, 0);
                assert_eq!(frame, complete);
                found += 1;
            }
        }
        assert!(found > 0, "there is such a payload");
    }

    #[test]
    fn a_udp_checksum_of_zero_is_written_as_ones_and_none_stays_none() {
        let mut none = complete_frame(false, false, 4);
        none[field_at(false, false)..][..2].fill(0);
        let unchanged = none.clone();
        super::complete(&mut none, 0);
        assert_eq!(none, unchanged, "no checksum (RFC 768)");
        let ones = (0..=u16::MAX).any(|word| {
            let mut frame = complete_frame(false, false, 2);
            frame[l4_at(false) + 8..][..2].copy_from_slice(&word.to_be_bytes());
            let mut frame = partial(frame, false, false);
            super::complete(&mut frame, 0);
            let field = &frame[field_at(false, false)..][..2];
            assert_ne!(field, [0, 0]);
            field == [0xff, 0xff]
        });
        assert!(ones, "one of all payloads sums to it");
    }

    #[test]
    fn behind_outer_headers_and_in_fragments() {
        let complete = complete_frame(false, true, 33);
        let outer = vec![0x11; OUTER_LEN];
        let mut frame = [outer.clone(), partial(complete.clone(), false, true)].concat();
        super::complete(&mut frame, OUTER_LEN);
        assert_eq!(frame, [outer, complete.clone()].concat());
        let mut fragment = partial(complete, false, true);
        fragment[20] = 0x20;
        fix_ipv4(&mut fragment);
        let unchanged = fragment.clone();
        super::complete(&mut fragment, 0);
        assert_eq!(fragment, unchanged, "a fragment's checksum is over what is not there");
    }

    #[test]
    fn sctp_without_a_checksum_gets_one() {
        // CRC32c of 32 zero bytes is 0x8a9136aa (RFC 3720, B.4).
        let mut zeros = [0; 32];
        complete_sctp(&mut zeros);
        assert_eq!(zeros[8..12], 0x8a91_36aa_u32.to_le_bytes());
        let unchanged = zeros;
        complete_sctp(&mut zeros);
        assert_eq!(zeros, unchanged);
    }

    fn flow(exit: u8, mtu: u16) -> Flow {
        Flow {
            exit,
            hops: 2,
            mtu,
            target: 5,
            vni: 7000,
            outer_sport: Be16::new(50_000),
            out_macs: Macs::new(if exit == EXIT_EXTERNAL { [0; 6] } else { WORKLOAD }, OUT),
            ..Flow::default()
        }
    }

    fn held(frame: Vec<u8>, flow: Flow) -> Held {
        let upcall = Upcall { len: frame.len() as u32, ifindex: 3, flow, ..Upcall::default() };
        Held { upcall, frame }
    }

    fn hop() -> Hop {
        Hop { flags: HOP_USED | HOP_RESOLVED, ifindex: 9, mac: HOP, ..Hop::default() }
    }

    fn way(flags: u32) -> Underlay {
        let address = |last: u32| Be32::new(0xc000_0200 | last);
        let macs = Macs::new([2, 0, 0, 0, 9, 2], [2, 0, 0, 0, 9, 1]);
        Underlay { flags, ifindex: 4, src: address(1), dst: address(2), nexthop: address(2), mtu: 1500, macs }
    }

    fn frame_of(output: &Output) -> (u32, &[u8]) {
        match output {
            Output::Frame { ifindex, frame } => (*ifindex, frame),
            Output::Datagram { .. } => panic!("a frame expected"),
        }
    }

    #[test]
    fn a_packet_leaves_for_its_next_hop_as_the_data_path_would_send_it() {
        for v6 in [false, true] {
            let sent = complete_frame(v6, true, 100);
            let mut padded = partial(sent.clone(), v6, true);
            padded.extend([0xee; 6]);
            let outputs =
                outputs(&held(padded, flow(EXIT_EXTERNAL, 1500)), &Way::External(hop())).expect("sent");
            let [output] = &outputs[..] else { panic!("{outputs:?}") };
            let (ifindex, frame) = frame_of(output);
            assert_eq!((ifindex, &frame[..6], &frame[6..12]), (9, &HOP[..], &OUT[..]));
            let mut want = sent;
            want[..12].copy_from_slice(&frame[..12]);
            if v6 {
                want[21] = 62;
            } else {
                want[22] = 62;
                fix_ipv4(&mut want);
            }
            assert_eq!(frame, want, "TTL 62, checksums complete, no padding");
        }
    }

    fn l3_headers(frames: &[(u32, &[u8])]) -> Vec<Ipv4Header> {
        frames.iter().map(|(_, frame)| Ipv4Header::from_slice(&frame[14..]).expect("a header").0).collect()
    }

    #[test]
    fn what_is_too_large_leaves_in_fragments_by_every_exit() {
        let whole = complete_frame(false, false, 1400);
        let ways = [
            (EXIT_PORT, Way::Port(5), 5, 0),
            (EXIT_EXTERNAL, Way::External(hop()), 9, 0),
            (EXIT_TUNNEL, Way::Tunnel(way(UNDERLAY_ROUTED | UNDERLAY_RESOLVED)), 4, OUTER_LEN),
        ];
        for (exit, way, ifindex, outer) in ways {
            let held = held(partial(whole.clone(), false, false), flow(exit, 600));
            let outputs = outputs(&held, &way).expect("sent");
            let frames: Vec<_> = outputs.iter().map(frame_of).collect();
            assert!(frames.iter().all(|(by, frame)| *by == ifindex && frame.len() <= outer + 14 + 600));
            let inner: Vec<_> = frames.iter().map(|(by, frame)| (*by, &frame[outer..])).collect();
            let headers = l3_headers(&inner);
            let places: Vec<_> = headers
                .iter()
                .map(|header| {
                    (header.fragment_offset.value() * 8, header.more_fragments, header.time_to_live)
                })
                .collect();
            assert_eq!(places, [(0, true, 62), (576, true, 62), (1152, false, 62)]);
            let data: Vec<u8> = inner.iter().flat_map(|(_, frame)| frame[34..].to_vec()).collect();
            assert_eq!(data, whole[34..], "the checksum is that of the whole");
            for (_, frame) in &inner {
                assert_eq!(frame[6..12], OUT);
            }
            if outer > 0 {
                for (_, frame) in &frames {
                    let outer = SlicedPacket::from_ethernet(frame).expect("outer headers");
                    assert_eq!(u16::from_be_bytes([frame[16], frame[17]]) as usize, frame.len() - 14);
                    assert!(outer.transport.is_some());
                    assert_eq!(frame[46..49], [0, 0x1b, 0x58], "VNI 7000");
                }
            }
        }
    }

    #[test]
    fn to_an_unresolved_underlay_the_kernel_is_asked() {
        let held = held(complete_frame(false, false, 10), flow(EXIT_TUNNEL, 1450));
        let outputs = outputs(&held, &Way::Tunnel(way(UNDERLAY_ROUTED))).expect("sent");
        let [Output::Datagram { dst, packet }] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!(dst.get(), 0xc000_0202);
        assert_eq!(packet[0], 0x45);
        let unroutable = super::outputs(&held, &Way::Tunnel(way(0)));
        assert_eq!(unroutable, Err(Unsendable::Dropped(DropReason::UnderlayUnreachable)));
    }

    #[test]
    fn what_came_through_a_tunnel_loses_its_outer_headers() {
        let inner = complete_frame(false, false, 50);
        let mut held = held([vec![0x11; OUTER_LEN], inner.clone()].concat(), flow(EXIT_EXTERNAL, 1500));
        held.upcall.at = OUTER_LEN as u32;
        let outputs = outputs(&held, &Way::External(hop())).expect("sent");
        let (_, frame) = frame_of(&outputs[0]);
        assert_eq!(frame.len(), inner.len());
        assert_eq!((&frame[..6], &frame[6..12], &frame[12..14]), (&HOP[..], &OUT[..], &[8, 0][..]));
        assert_eq!(frame[26..], inner[26..]);
        assert_eq!(refusal(&held), None, "there is no way back to its sender");
    }

    #[test]
    fn what_must_not_be_cut_is_not_sent() {
        let mut frame = complete_frame(false, true, 1400);
        frame[20] = 0x40;
        fix_ipv4(&mut frame);
        let outcome = outputs(&held(frame, flow(EXIT_PORT, 600)), &Way::Port(5));
        assert_eq!(outcome, Err(Unsendable::Uncuttable(fragments::Uncuttable::DontFragment)));
        let arp = super::super::frames::request(WORKLOAD, Ip::default(), Ip::V4_BROADCAST, None);
        let outcome = outputs(&held(arp, flow(EXIT_PORT, 600)), &Way::Port(5));
        assert_eq!(outcome, Err(Unsendable::Dropped(DropReason::Internal)));
    }

    #[test]
    fn the_sender_of_a_packet_in_vain_is_told() {
        let source = Ip::from("10.0.1.1".parse::<IpAddr>().expect("an address"));
        let complete = complete_frame(false, true, 100);
        let mut held = held(partial(complete.clone(), false, true), flow(EXIT_EXTERNAL, 1500));
        assert_eq!(refusal(&held), None, "nothing to say");
        held.upcall.answer = Answer {
            kind: ICMP_ERROR,
            icmp_type: ICMP_UNREACHABLE,
            icmp_code: 1,
            source,
            ..Answer::default()
        };
        let frame = refusal(&held).expect("an answer");
        assert_eq!((&frame[..6], &frame[6..12]), (&WORKLOAD[..], &ROUTER[..]));
        let header = Ipv4Header::from_slice(&frame[14..]).expect("a header").0;
        assert_eq!((header.source, header.destination), ([10, 0, 1, 1], [10, 0, 1, 10]));
        assert_eq!(header.protocol, IpNumber::ICMP);
        assert_eq!(frame[34..36], [3, 1], "host unreachable");
        assert_eq!(sum(&frame[34..]), 0xffff, "the ICMP checksum");
        assert_eq!(frame[42..], complete[14..], "the packet as it came, its checksum complete");
    }
}
