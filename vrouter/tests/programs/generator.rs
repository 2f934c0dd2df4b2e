//! Random frames: mostly sensible ones, so that every stage is reached, then damaged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

const LOCAL_PORTS: [u32; 10] = [11, 12, 13, 19, 21, 22, 31, 41, 42, 61];
const PORTS: [u32; 20] = [11, 12, 13, 15, 16, 17, 18, 19, 21, 22, 23, 24, 25, 26, 27, 28, 31, 41, 42, 61];

/// Where a frame enters, and its bytes.
pub fn frame(random: &mut Random) -> (&'static str, Vec<u8>) {
    let (interface, mut frame) = if random.once_in(3) {
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
        2 => random.pick(&[
            Ipv4Addr::BROADCAST,
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::new(224, 0, 0, 5),
            Ipv4Addr::new(250, 1, 2, 3),
        ]),
        3 | 4 => v4(random.pick(&[1, 2, 3]), 1),
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
        2 => random.pick(&[
            Ipv6Addr::UNSPECIFIED,
            Ipv6Addr::LOCALHOST,
            "ff02::1".parse().expect("an address"),
            v4(2, 21).to_ipv6_mapped(),
        ]),
        3 | 4 => v6(random.pick(&[1, 2, 3]), 1),
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
        2 => 1380 + random.below(60),
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
