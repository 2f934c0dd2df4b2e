//! A small world in memory, packets to send through it, and a strict reader of what comes out.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::collections::BTreeMap;

use crate::{
    addr::{Be32, Ip, Macs},
    memory::{self, Entry, Image, MemoryPacket, MemoryTables, Verdict},
    reason::DropReason,
    tables::*,
    wire::*,
};

pub type Mac = [u8; 6];

/// Both families, for tests that hold in each.
pub const BOTH: [Family; 2] = [Family::V4, Family::V6];
pub const BROADCAST: Mac = [0xff; 6];

pub const WEB: u32 = 1;
pub const DB: u32 = 2;
pub const OTHER: u32 = 3;
pub const ISLAND: u32 = 4;
pub const TRANSIT: u32 = 5;
pub const FAR: u32 = 6;
pub const LAB: u32 = 7;
pub const LOOP: u32 = 8;

pub const R1: u32 = 1;
pub const R2: u32 = 2;
pub const R3: u32 = 3;
pub const R4: u32 = 4;
pub const R5: u32 = 5;

pub const WEB1: u32 = 11;
pub const WEB2: u32 = 12;
pub const WEB_OPEN: u32 = 16;
pub const DB1: u32 = 21;
pub const OTHER1: u32 = 31;
pub const OTHER2: u32 = 32;
pub const ISLAND1: u32 = 41;
pub const ISLAND2: u32 = 42;
pub const FAR1: u32 = 61;
pub const LAB1: u32 = 71;

pub const UPLINK: u32 = 2;
pub const NODE2: u32 = 2;
pub const VTEP1: [u8; 4] = [192, 0, 2, 1];
pub const VTEP2: [u8; 4] = [192, 0, 2, 2];
pub const UPLINK_MAC: Mac = [2, 0xee, 0, 0, 0, 1];
pub const GATEWAY_MAC: Mac = [2, 0xee, 0, 0, 0, 2];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// 10.0.`subnet`.`host` or fd00:`subnet`::`host`.
pub fn ip(family: Family, subnet: u32, host: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 0, subnet as u8, host as u8).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, subnet as u16, 0, 0, 0, 0, 0, host as u16).into(),
    }
}

/// 172.16.`subnet`.`host` or fd10:0:`subnet`::`host`: behind static routes.
pub fn outside(family: Family, subnet: u32, host: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(172, 16, subnet as u8, host as u8).into(),
        Family::V6 => Ipv6Addr::new(0xfd10, 0, subnet as u16, 0, 0, 0, 0, host as u16).into(),
    }
}

/// The prefix of the subnet of [`ip`].
pub fn subnet_len(family: Family) -> u32 {
    if family == Family::V4 { 24 } else { 64 }
}

pub fn port_mac(subnet: u32, host: u32) -> Mac {
    [2, 0, subnet as u8, 0, 0, host as u8]
}

pub fn router_mac(subnet: u32, host: u32) -> Mac {
    [ROUTER_MAC, 0xff, 0, 0, subnet as u8, host as u8]
}

pub fn link_local(mac: Mac) -> IpAddr {
    Ip::link_local_of(mac).into()
}

pub fn be32(octets: [u8; 4]) -> Be32 {
    Be32::new(u32::from_be_bytes(octets))
}

/// Where a port of the builder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Local(u32),
    Remote(u32),
    Unplugged,
    Unbound,
}

/// Builds an [`Image`] as a compiler would.
#[derive(Debug, Default)]
pub struct Builder {
    pub image: Image,
    ports: u32,
}

impl Builder {
    pub fn network(&mut self, network: u32, mtu: u32) {
        let vni = 1000 + network;
        self.image
            .networks
            .insert(NetworkKey { network: Scoped::new(0, network) }, Network { vni, mtu, flags: 0 });
        self.image.vnis.insert(VniKey { vni: Scoped::new(0, vni) }, network);
    }

    /// A port `host` on `network` with both families' addresses of `subnet`; returns its number.
    pub fn port(&mut self, network: u32, subnet: u32, host: u32, place: Place, flags: u16) -> u32 {
        self.ports += 1;
        let port = self.ports;
        let mac = port_mac(subnet, host);
        let (place, at) = match place {
            Place::Local(ifindex) => (PLACE_LOCAL, ifindex),
            Place::Remote(node) => (PLACE_REMOTE, node),
            Place::Unplugged => (PLACE_UNPLUGGED, 0),
            Place::Unbound => (PLACE_UNBOUND, 0),
        };
        let station = Station { mac, kind: STATION_PORT, place, at, owner: port };
        self.image.fdb.insert(FdbKey::new(0, network, mac), station);
        let mine = [ip(Family::V4, subnet, host), ip(Family::V6, subnet, host), link_local(mac)];
        for addr in mine {
            self.image.addresses.insert(AddressKey::new(0, network, addr.into()), station);
            self.allow(port, mac, addr, 128);
        }
        if place == PLACE_LOCAL {
            let Network { vni, mtu, .. } =
                self.image.networks[&NetworkKey { network: Scoped::new(0, network) }];
            self.image.bindings.insert(
                BindingKey { ifindex: Scoped::new(0, at) },
                Binding { port, network, vni, mtu, mac, flags, policy: 0 },
            );
        }
        port
    }

    /// An allowed address pair; `len` counts the bits of the mapped address.
    pub fn allow(&mut self, port: u32, mac: Mac, addr: IpAddr, len: u32) {
        let key = AllowedKey {
            prefix_len: AllowedKey::FIXED_BITS + len,
            port: Scoped::new(0, port),
            mac,
            zero: 0,
            ip: addr.into(),
        };
        self.image.allowed.insert(key, 1);
    }

    /// A router's interface `host` on `network`.
    pub fn leg(&mut self, router: u32, network: u32, subnet: u32, host: u32) {
        let mac = router_mac(subnet, host);
        let Network { vni, mtu, .. } = self.image.networks[&NetworkKey { network: Scoped::new(0, network) }];
        let (v4, v6) = (ip(Family::V4, subnet, host), ip(Family::V6, subnet, host));
        self.image.router_legs.insert(
            RouterLegKey { router: Scoped::new(0, router), network },
            RouterLeg {
                vni,
                mtu,
                mac,
                flags: 0,
                v4: v4.into(),
                v6: v6.into(),
                snat_blocks: 0,
                tunnel_mac: [0; 6],
                zero: 0,
            },
        );
        let station = Station { mac, kind: STATION_ROUTER, place: PLACE_EVERYWHERE, at: 0, owner: router };
        self.image.fdb.insert(FdbKey::new(0, network, mac), station);
        for addr in [v4, v6, link_local(mac)] {
            self.image.addresses.insert(AddressKey::new(0, network, addr.into()), station);
            self.route(router, addr, full(addr), ROUTE_SELF, 0, None);
        }
        for family in BOTH {
            self.route(router, ip(family, subnet, 0), subnet_len(family), ROUTE_CONNECTED, network, None);
        }
        for host in [0, 255] {
            self.route(router, ip(Family::V4, subnet, host), 32, ROUTE_BROADCAST, network, None);
        }
    }

    /// A route; `len` in the family's own terms.
    pub fn route(
        &mut self,
        router: u32,
        dst: IpAddr,
        len: u32,
        kind: u32,
        network: u32,
        via: Option<IpAddr>,
    ) {
        let len = if dst.is_ipv4() { len + 96 } else { len };
        let key = RouteKey {
            prefix_len: RouteKey::FIXED_BITS + len,
            router: Scoped::new(0, router),
            dst: dst.into(),
        };
        let nexthop = via.map_or(Ip::UNSPECIFIED, Ip::from);
        self.image.routes.insert(key, Route { kind, network, nexthop });
    }

    /// The tables of node 1 with this image in force.
    pub fn tables(self) -> MemoryTables {
        let mut tables = MemoryTables::default();
        let mut image = self.image;
        image.allow_all(0, 0);
        tables.image = image;
        tables.commit.epoch = 2;
        tables.commit.node = 1;
        tables.commit.vtep = be32(VTEP1);
        for (node, flags) in
            [(2, UNDERLAY_ROUTED | UNDERLAY_RESOLVED), (3, UNDERLAY_ROUTED), (4, UNDERLAY_RESOLVED)]
        {
            let dst = be32([192, 0, 2, node]);
            tables.image.vteps.insert(VtepKey { bank: Scoped::new(0, 0), addr: dst }, node.into());
            let way = Underlay {
                flags,
                ifindex: UPLINK,
                src: be32(VTEP1),
                dst,
                nexthop: dst,
                mtu: 1500,
                macs: Macs::new(GATEWAY_MAC, UPLINK_MAC),
            };
            tables.underlay.insert(node.into(), way);
        }
        tables
    }
}

pub fn full(addr: IpAddr) -> u32 {
    if addr.is_ipv4() { 32 } else { 128 }
}

/// The fixture:
///
/// ```text
/// web(1001) --r1-- db(1002)        other(1003, web's addresses) --r5      island(1004)
///            |
///         transit(1005) --r2-- far(1006)          lab(1007) --r3-- loop(1008) --r4
/// ```
pub fn builder() -> Builder {
    let mut b = Builder::default();
    for (network, mtu) in [
        (WEB, 1450),
        (DB, 1400),
        (OTHER, 1450),
        (ISLAND, 1450),
        (TRANSIT, 1350),
        (FAR, 1450),
        (LAB, 1450),
        (LOOP, 1450),
    ] {
        b.network(network, mtu);
    }
    b.port(WEB, 1, 11, Place::Local(WEB1), 0);
    b.port(WEB, 1, 12, Place::Local(WEB2), 0);
    b.port(WEB, 1, 13, Place::Remote(NODE2), 0);
    b.port(WEB, 1, 14, Place::Unplugged, 0);
    b.port(WEB, 1, 15, Place::Unbound, 0);
    b.port(WEB, 1, 16, Place::Local(WEB_OPEN), BINDING_NO_SECURITY);
    b.port(WEB, 1, 17, Place::Remote(3), 0);
    b.port(WEB, 1, 18, Place::Remote(4), 0);
    b.port(DB, 2, 11, Place::Local(DB1), 0);
    b.port(DB, 2, 12, Place::Remote(NODE2), 0);
    b.port(DB, 2, 14, Place::Unplugged, 0);
    b.port(DB, 2, 15, Place::Unbound, 0);
    // The same addresses as web, hardware addresses too.
    b.port(OTHER, 1, 12, Place::Local(OTHER1), 0);
    b.port(OTHER, 1, 11, Place::Local(OTHER2), 0);
    b.port(ISLAND, 4, 11, Place::Local(ISLAND1), 0);
    b.port(ISLAND, 4, 12, Place::Local(ISLAND2), 0);
    b.port(FAR, 6, 11, Place::Local(FAR1), 0);
    b.port(FAR, 6, 12, Place::Remote(NODE2), 0);
    b.port(LAB, 7, 11, Place::Local(LAB1), 0);
    b.leg(R1, WEB, 1, 1);
    b.leg(R1, DB, 2, 1);
    b.leg(R1, TRANSIT, 5, 1);
    b.leg(R2, TRANSIT, 5, 2);
    b.leg(R2, FAR, 6, 1);
    b.leg(R3, LAB, 7, 1);
    b.leg(R3, LOOP, 8, 3);
    b.leg(R4, LOOP, 8, 4);
    b.leg(R5, OTHER, 1, 1);
    for f in BOTH {
        let len = subnet_len(f);
        let (wide, narrow) = if f == Family::V4 { (16, 24) } else { (32, 48) };
        b.route(R1, ip(f, 6, 0), len, ROUTE_VIA, TRANSIT, Some(ip(f, 5, 2)));
        b.route(R2, ip(f, 1, 0), len, ROUTE_VIA, TRANSIT, Some(ip(f, 5, 1)));
        b.route(R2, ip(f, 2, 0), len, ROUTE_VIA, TRANSIT, Some(ip(f, 5, 1)));
        let any = if f == Family::V4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        b.route(R3, any, 0, ROUTE_VIA, LOOP, Some(ip(f, 8, 4)));
        b.route(R4, any, 0, ROUTE_VIA, LOOP, Some(ip(f, 8, 3)));
        b.route(R1, outside(f, 0, 0), wide, ROUTE_VIA, DB, Some(ip(f, 2, 11)));
        b.route(R1, outside(f, 5, 0), narrow, ROUTE_VIA, WEB, Some(ip(f, 1, 13)));
        b.route(
            R1,
            outside(f, 5, 7),
            if f == Family::V4 { 32 } else { 128 },
            ROUTE_VIA,
            WEB,
            Some(ip(f, 1, 12)),
        );
        b.route(R1, outside(f, 7, 0), narrow, ROUTE_VIA, DB, Some(ip(f, 2, 99)));
        b.route(R1, outside(f, 8, 0), narrow, ROUTE_UNREACHABLE, 0, None);
        b.route(R1, outside(f, 9, 0), narrow, ROUTE_BLACKHOLE, 0, None);
    }
    b
}

pub fn tables() -> MemoryTables {
    builder().tables()
}

/// What [`memory::run`] says, with what must hold for every packet: exactly one drop is counted, with the
/// verdict's reason, if and only if something was dropped; what leaves is well-formed if what came was.
#[track_caller]
pub fn run(tables: &MemoryTables, entry: Entry, frame: &[u8]) -> Verdict {
    run_packet(tables, entry, MemoryPacket::new(frame))
}

#[track_caller]
pub fn run_packet(tables: &MemoryTables, entry: Entry, packet: MemoryPacket) -> Verdict {
    let came = packet.to_vec();
    let before = tables.drops.borrow().clone();
    let verdict = memory::run(tables, entry, packet);
    let mut expected: BTreeMap<DropReason, u64> = before;
    if let Verdict::Dropped(reason) | Verdict::Answered { refused: Some(reason), .. } = verdict {
        *expected.entry(reason).or_default() += 1;
    }
    assert_eq!(*tables.drops.borrow(), expected, "drops counted");
    if check(&came).is_ok()
        && let Verdict::Sent { frame, .. }
        | Verdict::SentToNeighbour { frame, .. }
        | Verdict::Answered { frame, .. } = &verdict
    {
        assert_valid(frame);
    }
    verdict
}

#[track_caller]
pub fn sent(verdict: Verdict) -> (u32, Vec<u8>) {
    match verdict {
        Verdict::Sent { ifindex, frame } => (ifindex, frame),
        other => panic!("not sent: {other:?}"),
    }
}

/// The answer and why the packet was refused.
#[track_caller]
pub fn answered(verdict: Verdict) -> (Vec<u8>, Option<DropReason>) {
    match verdict {
        Verdict::Answered { frame, refused } => (frame, refused),
        other => panic!("not answered: {other:?}"),
    }
}

/// The inner frame and VNI of a frame sent to another node.
#[track_caller]
pub fn inner(frame: &[u8]) -> (u32, Vec<u8>) {
    assert_eq!(frame[36..38], VXLAN_PORT.to_be_bytes(), "not VXLAN");
    (u32::from_be_bytes([0, frame[46], frame[47], frame[48]]), frame[OUTER_LEN..].to_vec())
}

// ---- packets ----

/// A packet to build.
#[derive(Clone, Debug)]
pub struct Pkt {
    pub dst_mac: Mac,
    pub src_mac: Mac,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub l4: L4,
    /// IPv4: flags and fragment offset.
    pub fragment: u16,
    /// IPv4: identification.
    pub id: u16,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: number and bytes, whose first is filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
}

#[derive(Clone, Debug)]
pub enum L4 {
    Udp { sport: u16, dport: u16, payload: Vec<u8> },
    Tcp { sport: u16, dport: u16, seq: u32, ack: u32, flags: u8, payload: Vec<u8> },
    Icmp { kind: u8, code: u8, rest: [u8; 4], payload: Vec<u8> },
    Raw(u8, Vec<u8>),
}

pub const DF: u16 = 0x4000;
pub const MF: u16 = 0x2000;

impl Pkt {
    /// UDP between two hosts of the fixture, each `(subnet, host)`: direct, or through their subnet's
    /// router `.1`.
    pub fn udp(f: Family, src: (u32, u32), dst: (u32, u32)) -> Self {
        let dst_mac = if src.0 == dst.0 { port_mac(dst.0, dst.1) } else { router_mac(src.0, 1) };
        Self {
            dst_mac,
            src_mac: port_mac(src.0, src.1),
            src: ip(f, src.0, src.1),
            dst: ip(f, dst.0, dst.1),
            ttl: 64,
            l4: L4::Udp { sport: 40000, dport: 53, payload: b"a payload of odd length".to_vec() },
            fragment: DF,
            id: 0x1234,
            options: vec![],
            extensions: vec![],
        }
    }

    pub fn to(self, dst: IpAddr) -> Self {
        Self { dst, ..self }
    }

    pub fn from(self, src: IpAddr) -> Self {
        Self { src, ..self }
    }

    pub fn via(self, dst_mac: Mac) -> Self {
        Self { dst_mac, ..self }
    }

    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    pub fn l4(self, l4: L4) -> Self {
        Self { l4, ..self }
    }

    pub fn ports(self, sport: u16, dport: u16) -> Self {
        self.l4(L4::Udp { sport, dport, payload: b"ports".to_vec() })
    }

    /// UDP filled up to `len` bytes of IP packet.
    pub fn sized(self, len: usize) -> Self {
        let headers = if self.src.is_ipv4() { IPV4_LEN } else { IPV6_LEN } + 8;
        let payload = (0..len - headers).map(|i| i as u8).collect();
        self.l4(L4::Udp { sport: 40000, dport: 53, payload })
    }

    pub fn ping(self, id: u16, payload: &[u8]) -> Self {
        let kind = if self.src.is_ipv4() { ICMP_ECHO } else { ICMPV6_ECHO };
        let rest = [(id >> 8) as u8, id as u8, 0, 7];
        self.l4(L4::Icmp { kind, code: 0, rest, payload: payload.to_vec() })
    }

    pub fn tcp(self, seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Self {
        self.l4(L4::Tcp { sport: 40000, dport: 80, seq, ack, flags, payload: payload.to_vec() })
    }

    pub fn icmp(self, kind: u8, code: u8, payload: &[u8]) -> Self {
        self.l4(L4::Icmp { kind, code, rest: [0; 4], payload: payload.to_vec() })
    }

    /// As a fragment, `at` bytes into the datagram `id`, of whatever the transport is.
    pub fn piece(mut self, id: u16, at: u16, more: bool) -> Self {
        assert_eq!(at % 8, 0);
        if self.src.is_ipv4() {
            self.fragment = if more { at / 8 + MF } else { at / 8 };
            self.id = id;
        } else {
            let word = (at | u16::from(more)).to_be_bytes();
            let id = id.to_be_bytes();
            self.extensions.push((PROTO_FRAGMENT, vec![0, 0, word[0], word[1], 0, 0, id[0], id[1]]));
        }
        self
    }

    pub fn proto(&self) -> u8 {
        match self.l4 {
            L4::Udp { .. } => PROTO_UDP,
            L4::Tcp { .. } => PROTO_TCP,
            L4::Icmp { .. } if self.src.is_ipv4() => PROTO_ICMP,
            L4::Icmp { .. } => PROTO_ICMPV6,
            L4::Raw(proto, _) => proto,
        }
    }

    fn transport(&self) -> Vec<u8> {
        let mut out = vec![];
        let field = match &self.l4 {
            L4::Udp { sport, dport, payload } => {
                out.extend(sport.to_be_bytes());
                out.extend(dport.to_be_bytes());
                out.extend((8 + payload.len() as u16).to_be_bytes());
                out.extend([0, 0]);
                out.extend(payload);
                6
            }
            L4::Tcp { sport, dport, seq, ack, flags, payload } => {
                out.extend(sport.to_be_bytes());
                out.extend(dport.to_be_bytes());
                out.extend(seq.to_be_bytes());
                out.extend(ack.to_be_bytes());
                out.extend([0x50, *flags, 0x10, 0, 0, 0, 0, 0]);
                out.extend(payload);
                16
            }
            L4::Icmp { kind, code, rest, payload } => {
                out.extend([*kind, *code, 0, 0]);
                out.extend(rest);
                out.extend(payload);
                2
            }
            L4::Raw(_, bytes) => return bytes.clone(),
        };
        let sum = !sum16(pseudo(self.src, self.dst, self.proto(), out.len()), &out);
        let sum = if field == 6 && sum == 0 { 0xffff } else { sum };
        out[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        out
    }

    pub fn frame(&self) -> Vec<u8> {
        let mut frame = [self.dst_mac, self.src_mac].concat();
        let l4 = self.transport();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header = etherparse::Ipv4Header::new(
                    l4.len() as u16,
                    self.ttl,
                    self.proto().into(),
                    src.octets(),
                    dst.octets(),
                )
                .unwrap();
                header.identification = self.id;
                header.dont_fragment = self.fragment & DF != 0;
                header.more_fragments = self.fragment & MF != 0;
                header.fragment_offset = (self.fragment & 0x1fff).try_into().unwrap();
                header.options = self.options.as_slice().try_into().unwrap();
                header.set_payload_len(l4.len()).unwrap();
                header.header_checksum = header.calc_header_checksum();
                frame.extend(ETHERTYPE_IPV4.to_be_bytes());
                frame.extend(header.to_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut chain = vec![];
                let first = self.extensions.first().map_or(self.proto(), |(kind, _)| *kind);
                for (i, (_, bytes)) in self.extensions.iter().enumerate() {
                    let next = self.extensions.get(i + 1).map_or(self.proto(), |(kind, _)| *kind);
                    chain.push(next);
                    chain.extend(&bytes[1..]);
                }
                let header = etherparse::Ipv6Header {
                    payload_length: (chain.len() + l4.len()) as u16,
                    next_header: first.into(),
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Default::default()
                };
                frame.extend(ETHERTYPE_IPV6.to_be_bytes());
                frame.extend(header.to_bytes());
                frame.extend(chain);
            }
            _ => panic!("families mixed"),
        }
        frame.extend(l4);
        frame
    }
}

/// An ARP packet in a frame of 60 bytes.
pub fn arp(dst_mac: Mac, src_mac: Mac, operation: u16, sender: (Mac, IpAddr), target: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(sender_ip), IpAddr::V4(target)) = (sender.1, target) else { panic!("ARP is IPv4's") };
    let mut frame = [dst_mac, src_mac].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(sender.0);
    frame.extend(sender_ip.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame.resize(60, 0);
    frame
}

/// The frame and address a solicitation for `target` goes to.
pub fn solicited(target: IpAddr) -> (Mac, IpAddr) {
    let IpAddr::V6(target) = target else { panic!("ND is IPv6's") };
    let o = target.octets();
    let group =
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(o[13]), u16::from_be_bytes([o[14], o[15]]));
    ([0x33, 0x33, 0xff, o[13], o[14], o[15]], group.into())
}

/// A neighbour solicitation or advertisement with one link-layer option (none if `option` is `None`).
pub fn nd(
    kind: u8,
    from: (Mac, IpAddr),
    to: (Mac, IpAddr),
    target: IpAddr,
    option: Option<(u8, Mac)>,
) -> Pkt {
    let IpAddr::V6(target) = target else { panic!("ND is IPv6's") };
    let mut payload = target.octets().to_vec();
    if let Some((kind, mac)) = option {
        payload.extend([kind, 1]);
        payload.extend(mac);
    }
    Pkt {
        dst_mac: to.0,
        src_mac: from.0,
        src: from.1,
        dst: to.1,
        ttl: 255,
        l4: L4::Icmp { kind, code: 0, rest: [0; 4], payload },
        fragment: 0,
        id: 0x1234,
        options: vec![],
        extensions: vec![],
    }
}

/// A solicitation by multicast, as a host sends it.
pub fn solicit(from: (Mac, IpAddr), target: IpAddr) -> Pkt {
    let option = (from.1 != IpAddr::from([0; 16])).then_some((1, from.0));
    nd(ND_NEIGHBOR_SOLICIT, from, solicited(target), target, option)
}

/// A frame in VXLAN from another node.
pub fn vxlan(vtep: [u8; 4], vni: u32, frame: &[u8]) -> Vec<u8> {
    let udp = 16 + frame.len() as u16;
    let mut header = etherparse::Ipv4Header::new(udp, 64, etherparse::IpNumber::UDP, vtep, VTEP1).unwrap();
    header.header_checksum = header.calc_header_checksum();
    let mut out = [UPLINK_MAC, GATEWAY_MAC].concat();
    out.extend(ETHERTYPE_IPV4.to_be_bytes());
    out.extend(header.to_bytes());
    out.extend(50000_u16.to_be_bytes());
    out.extend(VXLAN_PORT.to_be_bytes());
    out.extend(udp.to_be_bytes());
    out.extend([0, 0, 8, 0, 0, 0]);
    out.extend((vni << 8).to_be_bytes());
    out.extend(frame);
    out
}

/// Makes the IPv4 header's checksum right again.
pub fn fix_ipv4(frame: &mut [u8]) {
    let header_len = usize::from(frame[14] & 15) * 4;
    frame[24..26].fill(0);
    let sum = !sum16(0, &frame[14..14 + header_len]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

// ---- reading what comes out ----

/// RFC 1071, plainly, in big-endian words.
pub fn sum16(start: u64, bytes: &[u8]) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> u64 {
    if proto == PROTO_ICMP {
        return 0;
    }
    let words = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => u64::from(sum16(0, &v4.octets())),
        IpAddr::V6(v6) => u64::from(sum16(0, &v6.octets())),
    };
    words(src) + words(dst) + u64::from(proto) + len as u64
}

/// What an IP frame says, read by etherparse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub dst_mac: Mac,
    pub src_mac: Mac,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub proto: u8,
    pub l3_len: usize,
    pub l4: Vec<u8>,
    pub fragmented: bool,
}

#[track_caller]
pub fn read(frame: &[u8]) -> Read {
    try_read(frame).unwrap_or_else(|why| panic!("{why}: {frame:02x?}"))
}

fn try_read(frame: &[u8]) -> Result<Read, String> {
    let say = |e: &dyn core::fmt::Debug| format!("{e:?}");
    let eth = etherparse::Ethernet2Slice::from_slice_without_fcs(frame).map_err(|e| say(&e))?;
    let slice = etherparse::IpSlice::from_slice(eth.payload_slice()).map_err(|e| say(&e))?;
    let payload = slice.payload();
    let (ttl, l3_len, v4) = match &slice {
        etherparse::IpSlice::Ipv4(v4) => (v4.header().ttl(), v4.header().total_len().into(), true),
        etherparse::IpSlice::Ipv6(v6) => {
            (v6.header().hop_limit(), IPV6_LEN + usize::from(v6.header().payload_length()), false)
        }
    };
    if eth.ether_type().0 != if v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 } {
        return Err("the Ethernet type is not the IP version's".into());
    }
    Ok(Read {
        dst_mac: eth.destination(),
        src_mac: eth.source(),
        src: slice.source_addr(),
        dst: slice.destination_addr(),
        ttl,
        proto: payload.ip_number.0,
        l3_len,
        l4: payload.payload.to_vec(),
        fragmented: payload.fragmented,
    })
}

/// Fails unless the frame is ARP or IP with every length and checksum right, tunnelled frames inside too.
#[track_caller]
pub fn assert_valid(frame: &[u8]) {
    check(frame).unwrap_or_else(|why| panic!("{why}: {frame:02x?}"));
}

/// What [`assert_valid`] asserts.
pub fn check(frame: &[u8]) -> Result<(), String> {
    if frame.get(12..14) == Some(&ETHERTYPE_ARP.to_be_bytes()) {
        return if frame.len() >= ETH_LEN + 28 { Ok(()) } else { Err("ARP cut short".into()) };
    }
    let ip = try_read(frame)?;
    if ip.src.is_ipv4() {
        let header_len = usize::from(frame[14] & 15) * 4;
        if sum16(0, &frame[14..14 + header_len]) != 0xffff {
            return Err("IPv4 header checksum".into());
        }
    } else if frame[18..20] == [0, 0] && ip.proto != 59 {
        return Err("a payload without a length".into());
    }
    if ip.fragmented {
        return Ok(());
    }
    let verify = |covered: &[u8]| {
        let sum = sum16(pseudo(ip.src, ip.dst, ip.proto, ip.l4.len()), covered);
        if sum == 0xffff { Ok(()) } else { Err(format!("transport checksum: {sum:04x}")) }
    };
    let v4 = ip.src.is_ipv4();
    match ip.proto {
        PROTO_UDP => {
            let udp = etherparse::UdpSlice::from_slice(&ip.l4).map_err(|e| format!("{e:?}"))?;
            if usize::from(udp.length()) != ip.l4.len() {
                return Err("UDP length".into());
            }
            if udp.destination_port() == VXLAN_PORT && frame.len() > OUTER_LEN {
                if frame[42..46] != [8, 0, 0, 0] || frame[49] != 0 {
                    return Err("VXLAN header".into());
                }
                return check(&frame[OUTER_LEN..]);
            }
            if v4 && udp.checksum() == 0 { Ok(()) } else { verify(&ip.l4) }
        }
        PROTO_TCP => {
            etherparse::TcpSlice::from_slice(&ip.l4).map_err(|e| format!("{e:?}"))?;
            verify(&ip.l4)
        }
        PROTO_ICMP if v4 => {
            etherparse::Icmpv4Slice::from_slice(&ip.l4).map_err(|e| format!("{e:?}"))?;
            verify(&ip.l4)
        }
        PROTO_ICMPV6 if !v4 => {
            etherparse::Icmpv6Slice::from_slice(&ip.l4).map_err(|e| format!("{e:?}"))?;
            verify(&ip.l4)
        }
        _ => Ok(()),
    }
}

/// Fails unless `answer` is the ICMP error `(type, code)` from `source` about `refused`, as long as the
/// family wants it and no longer. Returns the header's second word.
#[track_caller]
pub fn assert_icmp_error(answer: &[u8], refused: &[u8], source: IpAddr, type_code: (u8, u8)) -> u32 {
    assert_valid(answer);
    let (error, about) = (read(answer), read(refused));
    assert_eq!((error.dst_mac, error.src_mac), (about.src_mac, about.dst_mac));
    assert_eq!((error.src, error.dst), (source, about.src));
    assert_eq!((error.l4[0], error.l4[1]), type_code);
    let (proto, most) = if error.src.is_ipv4() { (PROTO_ICMP, 576) } else { (PROTO_ICMPV6, 1280) };
    assert_eq!(error.proto, proto);
    let head = if error.src.is_ipv4() { IPV4_LEN } else { IPV6_LEN } + 8;
    let quote = about.l3_len.min(most - head);
    assert_eq!(error.l3_len, head + quote);
    assert_eq!(answer.len(), ETH_LEN + error.l3_len, "nothing behind the packet");
    assert_eq!(error.l4[8..], refused[ETH_LEN..ETH_LEN + quote]);
    u32::from_be_bytes(error.l4[4..8].try_into().unwrap())
}
