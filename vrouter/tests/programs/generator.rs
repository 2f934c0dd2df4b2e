//! Random frames: mostly sensible ones, so that every stage is reached, then damaged.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use vrouter_common::flow::{FROM_PORT, Flow, FlowKey, ROLE_NONE, Tuple};

use crate::{
    frames::{BROADCAST, ethernet},
    topology::*,
};

/// A generator of numbers (SplitMix64): the same for the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// Below `limit`, which is not zero.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// True once in `odds`.
    pub fn once_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

const LOCAL_PORTS: [u32; 13] = [11, 12, 13, 19, 21, 22, 31, 41, 42, 61, 71, 72, 74];
const PORTS: [u32; 24] =
    [11, 12, 13, 15, 16, 17, 18, 19, 21, 22, 23, 24, 25, 26, 27, 28, 31, 41, 42, 61, 71, 72, 74, 75];
/// With floating IPs.
const FLOATING: [u32; 5] = [12, 71, 75, 18, VIP];

/// What is known of connections, for frames that belong to them.
pub struct Live {
    names: BTreeMap<u32, &'static str>,
    pub flows: Vec<(FlowKey, Flow)>,
}

impl Live {
    pub fn new(ifindexes: &BTreeMap<&'static str, u32>) -> Self {
        Self { names: ifindexes.iter().map(|(&name, &index)| (index, name)).collect(), flows: Vec::new() }
    }
}

/// Where frames enter, and their bytes: one frame, or the fragments of one.
pub fn frames(random: &mut Random, live: &Live) -> Vec<(&'static str, Vec<u8>)> {
    let (interface, mut frame) = match random.below(8) {
        0..=2 if !live.flows.is_empty() => related(random, live),
        3 => (EXTERNAL, from_outside(random)),
        _ => return vec![self::frame(random)],
    };
    if random.once_in(12)
        && let Some(pieces) = fragments(random, interface, &frame)
    {
        return pieces.into_iter().map(|piece| (interface, piece)).collect();
    }
    if random.once_in(12) {
        damage(random, &mut frame);
    }
    vec![(interface, frame)]
}

/// One more packet of a connection, a reply, or an ICMP error about one.
fn related(random: &mut Random, live: &Live) -> (&'static str, Vec<u8>) {
    let connections = live.flows.iter().filter(|(_, flow)| flow.role != ROLE_NONE).count();
    let (key, flow) = if connections > 0 && !random.once_in(5) {
        let mut tracked = live.flows.iter().filter(|(_, flow)| flow.role != ROLE_NONE);
        *tracked.nth(random.below(connections)).expect("counted")
    } else {
        live.flows[random.below(live.flows.len())]
    };
    let reply = if flow.role == ROLE_NONE { key } else { flow.peer_key(&key) };
    let at = if random.once_in(4) { key } else { reply };
    let tuple = at.tuple();
    let l3 = if random.once_in(3) && at == reply {
        // It quotes what went the other way, as that left.
        let quoted = packet(random, &tuple.reversed());
        error(random, &tuple, quoted)
    } else {
        packet(random, &tuple)
    };
    let ethertype = if tuple.v6 { 0x86dd } else { 0x0800 };
    if at.from == FROM_PORT {
        let name = live.names.get(&at.zone).copied().unwrap_or(UNKNOWN);
        let port = name[1..].parse().unwrap_or(11);
        let dst = destination_mac(random, port / 10);
        return (name, ethernet(dst, port_mac(port), ethertype, &l3));
    }
    let network = at.zone - vni(0);
    if network == OUTSIDE {
        let router = random.pick(&[1, 1, 1, 2]);
        let frame = ethernet(router_mac(router, OUTSIDE), NEIGHBOUR_MAC, ethertype, &l3);
        if random.once_in(3) {
            return (UPLINK, tunnelled(random, OUTSIDE, &frame));
        }
        return (EXTERNAL, frame);
    }
    // From another node, if the frame finds its port.
    let dst = match IpAddr::from(tuple.dst) {
        IpAddr::V4(address) => u32::from(address.octets()[3]),
        IpAddr::V6(address) => u32::from(address.segments()[7]),
    };
    let src = random.pick(&[router_mac(1, network), port_mac(15), port_mac(25)]);
    let frame = ethernet(port_mac(dst), src, ethertype, &l3);
    (UPLINK, tunnelled(random, network, &frame))
}

/// An IP packet with a tuple.
fn packet(random: &mut Random, tuple: &Tuple) -> Vec<u8> {
    let (sport, dport) = (tuple.sport.get().to_be_bytes(), tuple.dport.get().to_be_bytes());
    let mut l4 = match tuple.proto {
        1 | 58 if tuple.is_echo() => [dport.as_slice(), &random.bytes(2), &sport, &[0, 1]].concat(),
        1 | 58 => [dport.as_slice(), &random.bytes(6)].concat(),
        6 => {
            let mut l4 = [sport, dport].concat();
            l4.extend(random.bytes(8));
            l4.extend([0x50, random.pick(&[16, 16, 24, 18, 17, 4, 2])]);
            l4.extend(random.bytes(6));
            l4
        }
        _ => [sport, dport].concat(),
    };
    let payload = random.below(60);
    if tuple.proto == 17 {
        l4.extend(((8 + payload) as u16).to_be_bytes());
        l4.extend(if random.once_in(6) { vec![0, 0] } else { random.bytes(2) });
    }
    l4.extend(random.bytes(payload));
    header(random, tuple, tuple.proto, &l4)
}

fn header(random: &mut Random, tuple: &Tuple, proto: u8, l4: &[u8]) -> Vec<u8> {
    let around = crate::frames::Packet {
        src: tuple.src.into(),
        dst: tuple.dst.into(),
        ttl: random.pick(&[64, 64, 63, 2, 1]),
        dont_fragment: !random.once_in(3),
        ..crate::frames::Packet::routed(11, port_v4(11))
    };
    around.around(proto, l4)
}

/// An ICMP error that travels with the addresses of `tuple`, from its source or from somebody on the way.
fn error(random: &mut Random, tuple: &Tuple, mut quoted: Vec<u8>) -> Vec<u8> {
    let is_v6 = tuple.v6;
    if random.once_in(4) {
        // As much as RFC 792 asks for.
        quoted.truncate(if is_v6 { 48 } else { 28 });
    }
    let kinds: &[[u8; 2]] =
        if is_v6 { &[[1, 4], [2, 0], [3, 0], [4, 1]] } else { &[[3, 3], [3, 4], [11, 0], [12, 0], [5, 1]] };
    let mut icmp = random.pick(kinds).to_vec();
    icmp.extend(random.bytes(2));
    icmp.extend([0, 0, 5, 0]);
    icmp.extend(quoted);
    let mut tuple = *tuple;
    if random.once_in(2) {
        let hop = IpAddr::from(tuple.src);
        tuple.src = match hop {
            IpAddr::V4(_) => {
                IpAddr::from(random.pick(&[v4(OUTSIDE, NEIGHBOUR), v4(BEHIND, 77), v4(7, 1), v4(1, 11)]))
            }
            IpAddr::V6(_) => random.pick(&[v6(OUTSIDE, 254), v6(BEHIND, 77), v6(7, 1), v6(1, 11)]).into(),
        }
        .into();
    }
    header(random, &tuple, if is_v6 { 58 } else { 1 }, &icmp)
}

/// What somebody on the external network might send.
fn from_outside(random: &mut Random) -> Vec<u8> {
    let hop_v4 = v4(OUTSIDE, random.pick(&[NEIGHBOUR, NEIGHBOUR, 253, 1, 12]));
    let hop_v6 = v6(OUTSIDE, u16::from(random.pick(&[NEIGHBOUR, NEIGHBOUR, 253, 1, 12])));
    let mac = if random.once_in(20) { [2, 0xee, 0, 0, 0, random.pick(&[1, 2])] } else { NEIGHBOUR_MAC };
    let router = random.pick(&[1, 1, 1, 1, 2]);
    match random.below(10) {
        0 | 1 => {
            let operation = random.pick(&[1, 1, 2]);
            let target = v4(OUTSIDE, random.pick(&[1, 2, 12, 71, 75, 18, 9]));
            crate::frames::arp(BROADCAST, mac, operation, (mac, hop_v4), ([0; 6], target))
        }
        2 => {
            let kind = random.pick(&[135, 136]);
            let target = if kind == 136 { hop_v6 } else { v6(OUTSIDE, random.pick(&[1, 2, 12, 71, 75, 9])) };
            let option = if random.once_in(5) { None } else { Some((random.pick(&[1, 2]), mac)) };
            let to = (router_mac(router, OUTSIDE), mac);
            crate::frames::nd(kind, to, (hop_v6, v6(OUTSIDE, 1)), 0x6000_0000, target, option).build()
        }
        _ => {
            let dst = random.pick(&[1, 1, 1, 2, 12, 71, 71, 75, 18, 9, VIP as u16, VIP as u16]);
            let behind = random.once_in(3);
            let ports = (
                [7, random.pick(&[0xd0, 0xd1])],
                random.pick(&[2222_u16, 2223, 2224, 2000, 2001, 1026, 4100, 6200]).to_be_bytes(),
            );
            let (proto, mut l4) = transport(random, false);
            if matches!(proto, 6 | 17) && l4.len() >= 4 {
                l4[..2].copy_from_slice(&ports.0);
                l4[2..4].copy_from_slice(&ports.1);
            }
            let dont_fragment = !random.once_in(3);
            let (src, dst): (IpAddr, IpAddr) = if random.once_in(3) {
                (if behind { v6(BEHIND, 5) } else { hop_v6 }.into(), v6(OUTSIDE, dst).into())
            } else {
                (if behind { v4(BEHIND, 5) } else { hop_v4 }.into(), v4(OUTSIDE, dst as u8).into())
            };
            let proto = if proto == 1 && src.is_ipv6() {
                l4[0] = random.pick(&[128, 129, 1]);
                58
            } else {
                proto
            };
            let dst_mac = router_mac(router, OUTSIDE);
            let ttl = random.pick(&[64, 64, 64, 2, 1]);
            let around = crate::frames::Packet::routed(11, port_v4(11)).macs(dst_mac, mac).ttl(ttl);
            let around = crate::frames::Packet { src, dst, dont_fragment, ..around };
            ethernet(dst_mac, mac, if src.is_ipv4() { 0x0800 } else { 0x86dd }, &around.around(proto, &l4))
        }
    }
}

/// Cuts an IPv4 frame without options into two or three pieces, now and then not as one should.
fn fragments(random: &mut Random, interface: &str, frame: &[u8]) -> Option<Vec<Vec<u8>>> {
    if interface == UPLINK || frame.get(12..15)? != [8, 0, 0x45] || frame.len() < 34 + 24 {
        return None;
    }
    let (header, data) = frame.split_at(34);
    let id = random.pick(&[1, 2, 3]);
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let len = if pieces.len() == 2 {
            data.len() - at
        } else {
            (data.len() - at).min(8 * (1 + random.below(5)))
        };
        let more = at + len < data.len();
        let place = if random.once_in(12) { random.below(6) } else { at / 8 } as u16;
        let mut piece = header.to_vec();
        piece[16..18].copy_from_slice(&(20 + len as u16).to_be_bytes());
        piece[18..20].copy_from_slice(&[0, id]);
        piece[20..22].copy_from_slice(&(place | if more { 0x2000 } else { 0 }).to_be_bytes());
        piece[24..26].fill(0);
        let sum = checksum(&piece[14..34]);
        piece[24..26].copy_from_slice(&sum);
        piece.extend(&data[at..at + len]);
        pieces.push(piece);
        at += len;
    }
    if random.once_in(10) {
        pieces.reverse();
    }
    Some(pieces)
}

/// One frame that need not belong to anything.
fn frame(random: &mut Random) -> (&'static str, Vec<u8>) {
    let (interface, mut frame) = if random.once_in(12) {
        // From another node, which was asked for a router's address, or has chosen a member.
        let mut inner = from_outside(random);
        let member = member_mac(1 + random.below(2) as u32, random.below(6) as u32);
        if random.once_in(2) {
            inner[..6].copy_from_slice(&member);
        }
        if random.once_in(4) {
            inner[6..12].copy_from_slice(&member);
        }
        (UPLINK, tunnelled(random, OUTSIDE, &inner))
    } else if random.once_in(3) {
        let (network, inner) = inner(random);
        (UPLINK, tunnelled(random, network, &inner))
    } else {
        let port = random.pick(&LOCAL_PORTS);
        let frame = from_port(random, port);
        let at = if random.once_in(60) { random.pick(INTERFACES) } else { interface_of(port) };
        (at, frame)
    };
    if random.once_in(6) {
        damage(random, &mut frame);
    }
    (interface, frame)
}

fn interface_of(port: u32) -> &'static str {
    let name = format!("p{port}");
    INTERFACES.iter().find(|interface| **interface == name).expect("a local port")
}

/// A frame another node would send, and its network.
fn inner(random: &mut Random) -> (u32, Vec<u8>) {
    let to = random.pick(&LOCAL_PORTS);
    let network = to / 10;
    let from = random.pick(&PORTS);
    let mut frame = from_port(random, from);
    if !random.once_in(6) {
        frame[..6].copy_from_slice(&port_mac(to));
    }
    if random.once_in(8) {
        damage(random, &mut frame);
    }
    (network, frame)
}

fn tunnelled(random: &mut Random, network: u32, inner: &[u8]) -> Vec<u8> {
    let node = if random.once_in(15) { 9 } else { random.pick(&[2, 3, 4, 5]) };
    let vni = if random.once_in(15) { 777 } else { vni(network) };
    let local = if random.once_in(20) { vtep(2) } else { VTEP };
    let sport = random.next() as u16;
    crate::frames::vxlan((UNDERLAY_SRC, UNDERLAY_DST), vtep(node), local, sport, vni, inner)
}

/// What a port might send.
fn from_port(random: &mut Random, port: u32) -> Vec<u8> {
    match random.below(10) {
        0 => arp(random, port),
        1 => neighbour_discovery(random, port),
        _ => ip(random, port),
    }
}

fn source_mac(random: &mut Random, port: u32) -> Mac {
    match random.below(80) {
        0 => port_mac(random.pick(&PORTS)),
        1 => [0; 6],
        _ => port_mac(port),
    }
}

fn destination_mac(random: &mut Random, network: u32) -> Mac {
    match random.below(30) {
        0 => BROADCAST,
        1 => [0x33, 0x33, 0, 0, 0, random.next() as u8],
        2 => [2, 0, 0, 0, network as u8, random.next() as u8],
        3 => router_mac(2, network),
        4 => router_mac(3, network),
        5..=9 => {
            let neighbours: Vec<u32> = PORTS.into_iter().filter(|port| port / 10 == network).collect();
            port_mac(random.pick(&neighbours))
        }
        _ if network == 4 => port_mac(random.pick(&[41, 42])),
        _ => router_mac(if network == 6 { 2 } else { 1 }, network),
    }
}

fn source_v4(random: &mut Random, port: u32) -> Ipv4Addr {
    match random.below(60) {
        0 => port_v4(random.pick(&PORTS)),
        1 => random.pick(&[Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::new(224, 0, 0, 9)]),
        2 => v4(1, random.next() as u8),
        _ => port_v4(port),
    }
}

fn destination_v4(random: &mut Random) -> Ipv4Addr {
    match random.below(16) {
        0 => v4(random.pick(&[1, 2, 3, 6]), random.pick(&[0, 1, 254, 255, 99])),
        1 => v4(random.pick(&[5, 9, 66, 67, 77]), random.next() as u8),
        5 => v4(BEHIND, random.pick(&[5, 6])),
        6 => v4(BEHIND, 5),
        7 => random.pick(&[v4(OUTSIDE, NEIGHBOUR), v4(OUTSIDE, 253), v4(OUTSIDE, 1), v4(OUTSIDE, 2)]),
        8 => floating_v4(random.pick(&FLOATING)),
        2 => random.pick(&[
            Ipv4Addr::BROADCAST,
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::new(224, 0, 0, 5),
            Ipv4Addr::new(250, 1, 2, 3),
        ]),
        3 => v4(random.pick(&[1, 2, 3, 7]), 1),
        4 => v4(1, VIP as u8),
        _ => port_v4(random.pick(&PORTS)),
    }
}

fn source_v6(random: &mut Random, port: u32) -> Ipv6Addr {
    match random.below(80) {
        0 => port_v6(random.pick(&PORTS)),
        1 => {
            random.pick(&[Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST, "ff02::9".parse().expect("an address")])
        }
        2 => v4(1, 11).to_ipv6_mapped(),
        3 | 4 => link_local(port_mac(port)),
        _ => port_v6(port),
    }
}

fn destination_v6(random: &mut Random) -> Ipv6Addr {
    match random.below(16) {
        0 => v6(random.pick(&[1, 2, 3, 6]), random.pick(&[0, 1, 0xfe, 0x99])),
        1 => v6(random.pick(&[5, 9, 66, 67, 77]), random.next() as u16),
        6 => v6(BEHIND, random.pick(&[5, 6])),
        7 => random.pick(&[v6(OUTSIDE, 254), v6(OUTSIDE, 253), v6(OUTSIDE, 1), v6(OUTSIDE, 2)]),
        8 => floating_v6(random.pick(&FLOATING)),
        2 => random.pick(&[
            Ipv6Addr::UNSPECIFIED,
            Ipv6Addr::LOCALHOST,
            "ff02::1".parse().expect("an address"),
            v4(2, 21).to_ipv6_mapped(),
        ]),
        3 => v6(random.pick(&[1, 2, 3]), 1),
        4 => v6(1, VIP as u16),
        5 => link_local(port_mac(random.pick(&PORTS))),
        _ => port_v6(random.pick(&PORTS)),
    }
}

fn ip(random: &mut Random, port: u32) -> Vec<u8> {
    let (dst_mac, src_mac) = (destination_mac(random, port / 10), source_mac(random, port));
    let ttl = match random.below(8) {
        0 => random.pick(&[0, 1, 2, 3]),
        1 => random.next() as u8,
        _ => 64,
    };
    if random.once_in(2) {
        let (src, dst) = (source_v4(random, port), destination_v4(random));
        ethernet(dst_mac, src_mac, 0x0800, &ipv4(random, src, dst, ttl))
    } else {
        let (src, dst) = (source_v6(random, port), destination_v6(random));
        ethernet(dst_mac, src_mac, 0x86dd, &ipv6(random, src, dst, ttl))
    }
}

/// A transport: its protocol and bytes. Few ports, so that flows are met again.
fn transport(random: &mut Random, v6: bool) -> (u8, Vec<u8>) {
    let sport = [3_u8, random.pick(&[0xe8, 0xe9])];
    let dport = [7_u8, random.pick(&[0xd0, 0xd1])];
    let len = match random.below(12) {
        0 => random.below(8),
        1 => 1150 + random.below(150),
        2 => 1380 + random.below(90),
        _ => random.below(80),
    };
    let mut data = random.bytes(len);
    let icmp = if v6 { 58 } else { 1 };
    match random.below(12) {
        0..=4 => {
            let dhcp = random.once_in(40);
            let mut out = if dhcp {
                random.pick(&[[0, 67, 0, 68], [0, 68, 0, 67], [2, 35, 2, 34]]).to_vec()
            } else {
                [sport, dport].concat()
            };
            out.extend(((8 + len) as u16).to_be_bytes());
            out.extend(random.bytes(2));
            out.append(&mut data);
            (17, out)
        }
        5..=7 => {
            let mut out = [sport, dport].concat();
            out.extend(random.bytes(8));
            out.push(random.pick(&[0x50, 0x50, 0x50, 0x60, 0xf0, 0x10]));
            out.push(random.pick(&[2, 16, 24, 17, 4, 20, 18, 0]));
            out.extend(random.bytes(6));
            out.append(&mut data);
            (6, out)
        }
        8..=9 => {
            let echo: [u8; 2] = if v6 { [128, 129] } else { [8, 0] };
            let mut out = vec![random.pick(&echo), 0];
            out.extend(random.bytes(2));
            out.extend([0, random.pick(&[1, 2]), 0, 1]);
            out.append(&mut data);
            (icmp, out)
        }
        10 => {
            let kinds: &[u8] =
                if v6 { &[1, 2, 3, 4, 130, 131, 133, 143, 200] } else { &[3, 4, 5, 11, 12, 13, 40] };
            let mut out = vec![random.pick(kinds), random.pick(&[0, 0, 4])];
            out.extend(random.bytes(6));
            out.append(&mut data);
            (icmp, out)
        }
        _ => {
            let proto = random.pick(&[132, 47, 50, 2, 1, 58, 255]);
            data.splice(0..0, [sport, dport].concat());
            (proto, data)
        }
    }
}

fn ipv4(random: &mut Random, src: Ipv4Addr, dst: Ipv4Addr, ttl: u8) -> Vec<u8> {
    let (proto, l4) = transport(random, false);
    let options = if random.once_in(12) { options(random) } else { Vec::new() };
    let fragment: u16 = match random.below(20) {
        0 => 0x2000,
        1 => random.pick(&[0x2000_u16, 0]) | random.below(0x1fff) as u16,
        2 => 0x8000,
        3..=5 => 0,
        _ => 0x4000,
    };
    let len = 20 + options.len() + l4.len();
    let mut out = vec![0x40 | (5 + options.len() / 4) as u8, random.pick(&[0, 0, 0xb8])];
    out.extend((len as u16).to_be_bytes());
    out.extend(random.bytes(2));
    out.extend(fragment.to_be_bytes());
    out.extend([ttl, proto, 0, 0]);
    out.extend(src.octets());
    out.extend(dst.octets());
    out.extend(options);
    let sum = checksum(&out);
    out[10..12].copy_from_slice(&sum);
    out.extend(l4);
    out
}

fn options(random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..random.below(4) {
        let kind = random.pick(&[1, 7, 68, 148, 131, 137, 0, 1, 7, 148]);
        out.push(kind);
        if kind > 1 {
            let len = random.below(8);
            out.push(if random.once_in(6) { random.next() as u8 } else { len as u8 + 2 });
            out.extend(random.bytes(len));
        }
    }
    out.truncate(40);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// The checksum of an IPv4 header whose field is zero; summed the plain way.
fn checksum(header: &[u8]) -> [u8; 2] {
    let mut sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!sum as u16).to_be_bytes()
}

fn ipv6(random: &mut Random, src: Ipv6Addr, dst: Ipv6Addr, ttl: u8) -> Vec<u8> {
    let (mut proto, mut l4) = transport(random, true);
    if random.once_in(8) {
        for _ in 0..random.below(8) {
            let kind = random.pick(&[0, 60, 43, 44, 51, 60, 44]);
            let mut header = vec![proto, 0, 0, 0];
            header.extend(random.bytes(4));
            match kind {
                44 if !random.once_in(3) => header[2..4].fill(0),
                44 => header[2..4].copy_from_slice(&(random.next() as u16).to_be_bytes()),
                43 => header[2] = random.pick(&[0, 2, 4, 4, 4]),
                51 => header[1] = random.pick(&[0, 0, 1, 4]),
                _ => header[1] = random.pick(&[0, 0, 0, 1, 30]),
            }
            let len =
                if kind == 51 { (usize::from(header[1]) + 2) * 4 } else { (usize::from(header[1]) + 1) * 8 };
            if kind != 44 && !random.once_in(8) {
                header.resize(len, 0);
            }
            header.append(&mut l4);
            (proto, l4) = (kind, header);
        }
    }
    let mut out = vec![0x60, 0, 0, 0];
    out.extend((l4.len() as u16).to_be_bytes());
    out.extend([proto, ttl]);
    out.extend(src.octets());
    out.extend(dst.octets());
    out.extend(l4);
    out
}

fn arp(random: &mut Random, port: u32) -> Vec<u8> {
    let mac = source_mac(random, port);
    let sender_mac = if random.once_in(15) { port_mac(random.pick(&PORTS)) } else { mac };
    let dst = if random.once_in(3) { destination_mac(random, port / 10) } else { BROADCAST };
    let operation = random.pick(&[1, 1, 1, 1, 2, 2, 3]);
    let target = if random.once_in(2) { v4(port / 10, 1) } else { destination_v4(random) };
    let sender = (sender_mac, source_v4(random, port));
    crate::frames::arp(dst, mac, operation, sender, ([0; 6], target))
}

fn neighbour_discovery(random: &mut Random, port: u32) -> Vec<u8> {
    let mac = source_mac(random, port);
    let dst_mac =
        if random.once_in(2) { [0x33, 0x33, 0xff, 0, 0, 1] } else { destination_mac(random, port / 10) };
    let dst = if random.once_in(2) {
        "ff02::1:ff00:1".parse().expect("an address")
    } else {
        destination_v6(random)
    };
    let kind = random.pick(&[135, 135, 135, 135, 136, 136, 134, 133, 137]);
    let target = if random.once_in(2) { v6(port / 10, 1) } else { destination_v6(random) };
    let option = match random.below(4) {
        0 => None,
        1 => Some((random.pick(&[1, 2, 14]), port_mac(random.pick(&PORTS)))),
        _ => Some((random.pick(&[1, 2]), mac)),
    };
    let src = source_v6(random, port);
    let mut packet =
        crate::frames::nd(kind, (dst_mac, mac), (src, dst), random.next() as u32, target, option);
    for _ in 0..random.below(5) {
        let more = random.below(3);
        packet.payload.extend([random.pick(&[1, 2, 5, 14]), more as u8]);
        packet.payload.extend(random.bytes(6 + more.saturating_sub(1) * 8));
    }
    if random.once_in(8) {
        packet.ttl = random.next() as u8;
    }
    packet.src = IpAddr::from(src);
    packet.build()
}

/// Changes some bytes, or the length; what remains is a frame with an Ethernet header.
fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(5) {
        0 => frame.truncate(14 + random.below(frame.len() - 13)),
        1 => {
            let more = random.below(64);
            frame.extend(random.bytes(more));
        }
        _ => {
            for _ in 0..1 + random.below(3) {
                let at = random.below(frame.len().min(100));
                frame[at] =
                    if random.once_in(2) { random.next() as u8 } else { frame[at] ^ 1 << random.below(8) };
            }
        }
    }
}
