//! What holds for every packet and every topology.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::fixture::*;
use crate::{
    memory::{Entry, MemoryPacket, MemoryTables, Verdict},
    reason::DropReason,
    tables::*,
    wire::*,
};

/// The ports of [`builder`], one that does not exist, and the uplink.
fn entry() -> impl Strategy<Value = Entry> {
    let ports = [WEB1, WEB2, WEB_OPEN, DB1, OTHER1, OTHER2, ISLAND1, ISLAND2, FAR1, LAB1, 99];
    prop_oneof![10 => prop::sample::select(ports.to_vec()).prop_map(Entry::Port), 3 => Just(Entry::Uplink)]
}

fn family() -> impl Strategy<Value = Family> {
    prop::sample::select(BOTH.to_vec())
}

/// A transport, its ports and numbers from few, so that flows meet.
fn l4(f: Family) -> impl Strategy<Value = L4> {
    let port = || prop::sample::select(vec![53_u16, 67, 68, 546, 547, 4789, 40000]);
    let payload = || prop::collection::vec(any::<u8>(), 0..40);
    let (echo, nd) = match f {
        Family::V4 => (vec![ICMP_ECHO, ICMP_ECHO_REPLY, 3, 5, 11, 13], vec![ICMP_ECHO]),
        Family::V6 => {
            (vec![ICMPV6_ECHO, ICMPV6_ECHO_REPLY, 1, 2, 3, 131, 143], vec![133, 134, 135, 136, 137])
        }
    };
    let target = (1_u32..4, prop::sample::select(vec![1_u32, 11, 12, 13, 99]));
    let option = prop::option::weighted(0.3, (prop::sample::select(vec![1_u8, 2, 14]), host()));
    prop_oneof![
        4 => (port(), port(), payload())
            .prop_map(|(sport, dport, payload)| L4::Udp { sport, dport, payload }),
        3 => (port(), port(), any::<(u32, u32)>(), any::<u8>(), payload())
            .prop_map(|(sport, dport, (seq, ack), flags, payload)| L4::Tcp { sport, dport, seq, ack, flags, payload }),
        3 => (prop::sample::select(echo), 0..2_u8, 0..2_u8, payload())
            .prop_map(|(kind, code, id, payload)| L4::Icmp { kind, code, rest: [0, id, 0, 0], payload }),
        2 => (prop::sample::select(nd), target, option).prop_map(|(kind, (subnet, host), option)| {
            let IpAddr::V6(target) = ip(Family::V6, subnet, host) else { unreachable!() };
            let mut payload = target.octets().to_vec();
            if let Some((kind, (subnet, host))) = option {
                payload.extend([kind, 1]);
                payload.extend(port_mac(subnet, host));
            }
            L4::Icmp { kind, code: 0, rest: [0; 4], payload }
        }),
        1 => (prop::sample::select(vec![4_u8, 47, 50, 59, PROTO_SCTP, 253]), prop::collection::vec(any::<u8>(), 12..40))
            .prop_map(|(proto, bytes)| L4::Raw(proto, bytes)),
    ]
}

/// `(subnet, host)`, known or not.
fn host() -> impl Strategy<Value = (u32, u32)> {
    let subnet = prop_oneof![4 => prop::sample::select(vec![1_u32, 2, 6]), 1 => 1_u32..9];
    let host = prop_oneof![
        4 => 11_u32..13,
        2 => prop::sample::select(vec![1_u32, 13]),
        1 => prop::sample::select(vec![2_u32, 3, 4, 14, 15, 16, 17, 18, 99, 255]),
    ];
    (subnet, host)
}

/// A packet from a host to anybody, right or wrong in its hardware addresses, ttl, headers.
fn packet(src: (u32, u32)) -> impl Strategy<Value = Pkt> {
    let mac = (0..16_u32, host());
    (family(), host(), mac, any::<u8>(), 0..8_u32).prop_flat_map(move |(f, dst, mac, ttl, odd)| {
        let to = match odd {
            0 => prop_oneof![
                (0..10_u32, 0..2_u32).prop_map(move |(b, host)| outside(f, b, host)),
                Just(if f == Family::V4 { [224, 0, 0, 1].into() } else { "ff02::1".parse().unwrap() }),
                Just(if f == Family::V4 { [255; 4].into() } else { link_local(port_mac(dst.0, dst.1)) }),
                Just(if f == Family::V4 { [127, 0, 0, 1].into() } else { "::1".parse().unwrap() }),
            ]
            .boxed(),
            _ => Just(ip(f, dst.0, dst.1)).boxed(),
        };
        let headers = prop_oneof![
            16 => Just((vec![], vec![])),
            1 => prop::sample::select(vec![vec![1, 1, 1, 0], vec![148, 4, 0, 0], vec![1; 40], vec![131, 4, 0, 0]])
                .prop_map(|options| (options, vec![])),
            1 => (
                prop::option::of(Just(PROTO_HOPOPTS)),
                prop::collection::vec(prop::sample::select(vec![PROTO_DSTOPTS, PROTO_ROUTING]), 0..7),
            )
                .prop_map(|(first, others)| {
                    let kinds = first.into_iter().chain(others);
                    (vec![], kinds.map(|kind| (kind, vec![0, 0, 4, 0, 0, 0, 0, 0])).collect())
                }),
        ];
        let fragment = prop_oneof![16 => Just(DF), 1 => Just(0), 1 => Just(MF), 1 => Just(100)];
        (to, l4(f), headers, fragment, prop::option::weighted(0.1, 1000..1500_usize)).prop_map(
            move |(to, l4, (options, extensions), fragment, size)| {
                let mut pkt = Pkt::udp(f, src, dst).to(to).l4(l4);
                pkt.dst_mac = match mac.0 {
                    0 => port_mac(mac.1.0, mac.1.1),
                    1 => BROADCAST,
                    2 => [0x33, 0x33, 0, 0, 0, 1],
                    3 => port_mac(src.0, 12),
                    4 => router_mac(src.0, mac.1.1),
                    _ if dst.0 == src.0 && dst.1 > 10 => port_mac(dst.0, dst.1),
                    _ => router_mac(src.0, 1),
                };
                let nd = matches!(pkt.l4, L4::Icmp { kind: 133..=137, .. });
                pkt.ttl = match ttl {
                    32.. if nd && f == Family::V6 => 255,
                    0..160 => 64,
                    160..240 => ttl & 7,
                    _ => 255,
                };
                if let Some(size) = size {
                    pkt = pkt.sized(size);
                }
                pkt.options = if f == Family::V4 { options } else { vec![] };
                pkt.extensions = if f == Family::V6 { extensions } else { vec![] };
                pkt.fragment = if f == Family::V4 { fragment } else { 0 };
                pkt
            },
        )
    })
}

/// A host of the fixture and what it sends; one in ten frames has a byte changed, checksum mended.
fn traffic() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let hosts = [
        (WEB1, (1, 11)),
        (WEB2, (1, 12)),
        (WEB_OPEN, (1, 16)),
        (DB1, (2, 11)),
        (OTHER1, (1, 12)),
        (FAR1, (6, 11)),
        (LAB1, (7, 11)),
        (0, (1, 13)),
    ];
    let host = prop::sample::select(hosts.to_vec());
    let change = prop::option::weighted(0.1, (any::<prop::sample::Index>(), any::<u8>()));
    (host, change).prop_flat_map(|((ifindex, src), change)| {
        packet(src).prop_map(move |pkt| {
            let mut frame = pkt.frame();
            if let Some((at, byte)) = &change {
                let at = at.index(frame.len());
                frame[at] = *byte;
                if frame[12..14] == ETHERTYPE_IPV4.to_be_bytes() && frame[14] & 15 >= 5 && frame.len() >= 74 {
                    fix_ipv4(&mut frame);
                }
            }
            if ifindex == 0 {
                (Entry::Uplink, vxlan(VTEP2, 1001, &frame))
            } else {
                (Entry::Port(ifindex), frame)
            }
        })
    })
}

// ---- random topologies ----

/// A topology by numbers; what does not fit is ignored.
#[derive(Clone, Debug)]
struct Plan {
    /// Subnet of each network: several may have the same.
    subnets: Vec<u32>,
    /// MTU of each network.
    mtus: Vec<u32>,
    /// Router, network: router `r` is host `r + 1` there.
    legs: Vec<(usize, usize)>,
    /// Network, place: the n-th port is host `11 + n`.
    ports: Vec<(usize, u8)>,
    /// Router, destination subnet (0: everywhere), kind, network, next hop's host: from 16 on a port's or
    /// nobody's, below one of the network's routers'.
    routes: Vec<(usize, u32, u32, usize, u32)>,
    /// Each router also has a route to every network it can reach through others.
    routed: bool,
}

const ROUTERS: usize = 4;

fn plan() -> impl Strategy<Value = Plan> {
    // Mostly through a next hop: the rest ends a packet's way.
    let kind = prop::sample::select(vec![ROUTE_VIA, ROUTE_VIA, ROUTE_VIA, ROUTE_VIA, 1, 4, 5, 6]);
    (2..6_usize).prop_flat_map(move |networks| {
        (
            prop::collection::vec(prop_oneof![4 => Just(0), 1 => 1..5_u32], networks),
            prop::collection::vec(1300..1500_u32, networks),
            prop::collection::vec((0..ROUTERS, 0..networks), 2..10),
            prop::collection::vec((0..networks, 0..6_u8), 2..10),
            prop::collection::vec((0..ROUTERS, 0..5_u32, kind.clone(), 0..networks, 1..22_u32), 0..12),
            any::<bool>(),
        )
            .prop_map(|(mut subnets, mtus, legs, ports, routes, routed)| {
                for (network, subnet) in subnets.iter_mut().enumerate().filter(|(_, subnet)| **subnet == 0) {
                    *subnet = network as u32 + 1;
                }
                Plan { subnets, mtus, legs, ports, routes, routed }
            })
    })
}

/// A local port of a plan: interface, network, subnet, host.
type Local = (u32, usize, u32, u32);

impl Plan {
    fn tables(&self) -> (MemoryTables, Vec<Local>) {
        let mut b = Builder::default();
        for (network, &mtu) in self.mtus.iter().enumerate() {
            b.network(network as u32, mtu);
        }
        for &(router, network) in &self.legs {
            b.leg(router as u32, network as u32, self.subnets[network], router as u32 + 1);
        }
        let mut locals = vec![];
        for (n, &(network, place)) in self.ports.iter().enumerate() {
            let (subnet, host) = (self.subnets[network], 11 + n as u32);
            let ifindex = 100 + n as u32;
            let place = match place {
                0 => Place::Remote(NODE2),
                1 => Place::Unplugged,
                2 => Place::Unbound,
                _ => Place::Local(ifindex),
            };
            b.port(network as u32, subnet, host, place, 0);
            if place == Place::Local(ifindex) {
                locals.push((ifindex, network, subnet, host));
            }
        }
        for &(router, subnet, kind, network, nexthop) in &self.routes {
            // Through its own networks: what validation sees to.
            if kind == ROUTE_SELF || kind <= ROUTE_VIA && !self.legs.contains(&(router, network)) {
                continue;
            }
            let routers: Vec<usize> =
                self.legs.iter().filter(|leg| leg.1 == network).map(|leg| leg.0).collect();
            let nexthop = match nexthop {
                n @ ..16 if !routers.is_empty() => routers[n as usize % routers.len()] as u32 + 1,
                n => n,
            };
            for f in BOTH {
                let via = (kind == ROUTE_VIA).then(|| ip(f, self.subnets[network], nexthop));
                let (dst, len) = if subnet == 0 {
                    (if f == Family::V4 { [0; 4].into() } else { [0; 16].into() }, 0)
                } else {
                    (ip(f, subnet, 0), subnet_len(f))
                };
                b.route(router as u32, dst, len, kind, network as u32, via);
            }
        }
        if self.routed {
            self.add_routes(&mut b);
        }
        (b.tables(), locals)
    }

    fn add_routes(&self, b: &mut Builder) {
        for target in 0..self.subnets.len() {
            let distances = self.distances(target);
            let distance = |router: usize| {
                let legs = self.legs.iter().filter(|leg| leg.0 == router);
                legs.filter_map(|leg| distances.get(&leg.1)).min().copied().unwrap_or(u8::MAX)
            };
            for &(router, network) in self.legs.iter().filter(|leg| (1..u8::MAX).contains(&distance(leg.0))) {
                let nearer = |leg: &&(usize, usize)| leg.1 == network && distance(leg.0) < distance(router);
                let Some(&(next, _)) = self.legs.iter().find(nearer) else { continue };
                for f in BOTH {
                    let (dst, via) =
                        (ip(f, self.subnets[target], 0), ip(f, self.subnets[network], next as u32 + 1));
                    b.route(router as u32, dst, subnet_len(f), ROUTE_VIA, network as u32, Some(via));
                }
            }
        }
    }

    /// Routers a packet must pass from a network to each it can reach, by breadth-first search.
    fn distances(&self, from: usize) -> BTreeMap<usize, u8> {
        let mut found = BTreeMap::from([(from, 0)]);
        let mut edge = BTreeSet::from([from]);
        while !edge.is_empty() {
            let mut next = BTreeSet::new();
            for &network in &edge {
                let hops = found[&network];
                for &(router, _) in self.legs.iter().filter(|leg| leg.1 == network) {
                    for &(_, beyond) in self.legs.iter().filter(|leg| leg.0 == router) {
                        found.entry(beyond).or_insert_with(|| {
                            next.insert(beyond);
                            hops + 1
                        });
                    }
                }
            }
            edge = next;
        }
        found
    }

    /// Networks joined by routers, by union-find.
    fn components(&self) -> Vec<usize> {
        fn root(of: &[usize], mut network: usize) -> usize {
            while of[network] != network {
                network = of[network];
            }
            network
        }
        let mut of: Vec<usize> = (0..self.subnets.len()).collect();
        for a in &self.legs {
            for b in self.legs.iter().filter(|b| b.0 == a.0) {
                let (a, b) = (root(&of, a.1), root(&of, b.1));
                of[a] = b;
            }
        }
        (0..of.len()).map(|network| root(&of, network)).collect()
    }
}

/// A topology, and packets: from the n-th local port, to a subnet and host.
fn planned() -> impl Strategy<Value = (Plan, Vec<(prop::sample::Index, Pkt)>)> {
    (plan(), prop::collection::vec((any::<prop::sample::Index>(), packet((1, 11))), 1..25))
}

/// A packet generated for the fixture's host (1, 11), as another one's in a plan: its hardware address and
/// destination become such as the plan has, most of the time.
fn moved(plan: &Plan, mut pkt: Pkt, local: Local) -> Pkt {
    let (_, network, subnet, host) = local;
    let f = if pkt.src.is_ipv4() { Family::V4 } else { Family::V6 };
    pkt.src = ip(f, subnet, host);
    pkt.src_mac = port_mac(subnet, host);
    let legs: Vec<usize> = plan.legs.iter().filter(|leg| leg.1 == network).map(|leg| leg.0).collect();
    let pick = usize::from(pkt.dst_mac[5]) + usize::from(pkt.dst_mac[4]);
    if pkt.dst_mac[..2] == [ROUTER_MAC, 0xff] {
        let router = legs.get(pick % legs.len().max(1)).copied().unwrap_or(ROUTERS);
        pkt.dst_mac = router_mac(subnet, router as u32 + 1);
    } else if pkt.dst_mac[..2] == [2, 0] {
        pkt.dst_mac = port_mac(subnet, 11 + (pick % plan.ports.len()) as u32);
    }
    let (to_subnet, to_host): (u32, u32) = match pkt.dst {
        IpAddr::V4(dst) if dst.octets()[0] == 10 => (dst.octets()[2].into(), dst.octets()[3].into()),
        IpAddr::V6(dst) if dst.segments()[0] == 0xfd00 => {
            (dst.segments()[1].into(), dst.segments()[7].into())
        }
        _ => return pkt,
    };
    pkt.dst = if to_host == 99 || to_host < 11 {
        ip(f, to_subnet % 5 + 1, to_host)
    } else {
        let n = (to_subnet + to_host) as usize % plan.ports.len();
        ip(f, plan.subnets[plan.ports[n].0], 11 + n as u32)
    };
    pkt
}

fn cases(n: u32) -> ProptestConfig {
    ProptestConfig { cases: n, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(1500))]

    /// `run` itself checks the counters, and that what is valid stays it.
    #[test]
    fn r8_any_bytes_are_survived(entry in entry(), frame in prop::collection::vec(any::<u8>(), 0..200)) {
        run(&tables(), entry, &frame);
    }

    #[test]
    fn r8_any_bytes_behind_good_headers_are_survived(
        entry in entry(),
        ethertype in prop::sample::select(vec![ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_ARP]),
        first in prop::sample::select(vec![0x45_u8, 0x46, 0x4f, 0x60]),
        proto in prop::sample::select(vec![0_u8, 1, 6, 17, 43, 44, 51, 58, 60, 132]),
        dst in prop::sample::select(vec![port_mac(1, 12), router_mac(1, 1), BROADCAST]),
        mut bytes in prop::collection::vec(any::<u8>(), 20..200),
    ) {
        bytes[0] = first;
        let mut frame = [dst.as_slice(), &port_mac(1, 16), &ethertype.to_be_bytes(), &bytes].concat();
        let len = bytes.len() as u16;
        if first == 0x60 {
            frame[18..20].copy_from_slice(&len.saturating_sub(40).to_be_bytes());
            frame[20] = proto;
        } else {
            frame[16..18].copy_from_slice(&len.to_be_bytes());
            frame[23] = proto;
            if bytes.len() >= 60 && ethertype == ETHERTYPE_IPV4 {
                fix_ipv4(&mut frame);
            }
        }
        // Without port security more of it gets further.
        run(&tables(), Entry::Port(WEB_OPEN), &frame);
        run(&tables(), Entry::Uplink, &vxlan(VTEP2, 1001, &frame));
        run(&tables(), entry, &frame);
    }

    #[test]
    fn r8_a_damaged_or_cut_frame_is_survived(
        (entry, mut frame) in traffic(),
        at in any::<prop::sample::Index>(),
        bytes in any::<[u8; 2]>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let i = at.index(frame.len() - 1);
        frame[i..i + 2].copy_from_slice(&bytes);
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len()));
        }
        run(&tables(), entry, &frame);
    }
}

proptest! {
    #![proptest_config(cases(400))]

    /// Whatever a flow entry decides, deciding anew says the same: for every packet of a run of them, from a
    /// table with flows, and from one without.
    #[test]
    fn a_hit_is_what_a_miss_would_be(
        pool in prop::collection::vec(traffic(), 1..6),
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..16),
        gso in prop::collection::vec(prop::option::weighted(0.1, 1..1500_u32), 16),
    ) {
        let (kept, mut anew) = (tables(), tables());
        anew.flows_disabled = true;
        for (index, gso_size) in order.iter().zip(gso) {
            let (entry, frame) = &pool[index.index(pool.len())];
            let mut packet = MemoryPacket::new(frame);
            packet.gso_size = gso_size.unwrap_or(0);
            prop_assert_eq!(
                run_packet(&kept, *entry, packet.clone()),
                run_packet(&anew, *entry, packet)
            );
            prop_assert_eq!(&*kept.drops.borrow(), &*anew.drops.borrow());
        }
    }

    /// Packets of one flow that differ in what its key does not hold.
    #[test]
    fn a_hit_is_what_a_miss_would_be_within_one_flow(
        (entry, frame) in traffic(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let (kept, mut anew) = (tables(), tables());
        anew.flows_disabled = true;
        let inner = if entry == Entry::Uplink { OUTER_LEN } else { 0 };
        run(&kept, entry, &frame);
        run(&anew, entry, &frame);
        for (at, byte) in changes {
            let mut other = frame.clone();
            let at = inner + at.index(frame.len() - inner);
            other[at] = byte;
            // A hit does not verify the IPv4 header's checksum: keep it right.
            if other[inner + 12..inner + 14] == ETHERTYPE_IPV4.to_be_bytes() && other[inner + 14] == 0x45 {
                fix_ipv4(&mut other[inner..]);
            }
            prop_assert_eq!(run(&kept, entry, &other), run(&anew, entry, &other), "byte {} is {}", at, byte);
        }
    }

    /// No packet reaches a network that no router joins to its own, none is forwarded with its TTL spent, and
    /// each router on its way lowers it.
    #[test]
    fn l1_r4_no_packet_reaches_what_is_not_connected_and_every_router_lowers_its_ttl(
        (plan, packets) in planned(),
    ) {
        let (tables, locals) = plan.tables();
        prop_assume!(!locals.is_empty());
        let components = plan.components();
        for (index, pkt) in packets {
            let local = locals[index.index(locals.len())];
            let (ifindex, network, ..) = local;
            let pkt = moved(&plan, pkt, local);
            let frame = pkt.frame();
            let routed = pkt.dst_mac[..2] == [ROUTER_MAC, 0xff];
            let distances = plan.distances(network);
            // Twice: decided, and by the flow entry.
            let verdicts = [0; 2].map(|_| run(&tables, Entry::Port(ifindex), &frame));
            // The same piece again overlaps itself, if its first was there.
            let overlap = Verdict::Dropped(DropReason::FragmentOverlap);
            if pkt.fragment & 0x1fff == 0 || verdicts[1] != overlap {
                prop_assert_eq!(&verdicts[0], &verdicts[1]);
            }
            match &verdicts[0] {
                Verdict::Sent { ifindex: out, frame: left } => {
                    let (reached, left) = if *out == UPLINK {
                        let (vni, left) = inner(left);
                        prop_assert_ne!(left[12..14].to_vec(), ETHERTYPE_ARP.to_be_bytes().to_vec());
                        (vni as usize - 1000, left)
                    } else {
                        (locals.iter().find(|local| local.0 == *out).unwrap().1, left.clone())
                    };
                    prop_assert_eq!(components[reached], components[network]);
                    let left = read(&left);
                    if routed {
                        prop_assert!(left.ttl > 0);
                        let passed = pkt.ttl.checked_sub(left.ttl).unwrap();
                        prop_assert!(passed >= 1.max(distances[&reached]), "{} routers passed", passed);
                        let station = &tables.image.fdb[&FdbKey::new(0, reached as u32, left.src_mac)];
                        prop_assert_eq!(station.kind, STATION_ROUTER);
                        prop_assert!(left.l3_len <= plan.mtus[reached] as usize);
                    } else {
                        prop_assert_eq!(reached, network);
                        prop_assert_eq!((left.src_mac, left.ttl), (pkt.src_mac, pkt.ttl));
                    }
                    let station = &tables.image.fdb[&FdbKey::new(0, reached as u32, left.dst_mac)];
                    prop_assert_eq!(station.kind, STATION_PORT);
                    prop_assert_eq!((left.src, left.dst, left.l4), (pkt.src, pkt.dst, read(&frame).l4));
                }
                Verdict::Answered { frame: answer, .. } => {
                    let answer = read(answer);
                    let everybody = answer.dst_mac == [0x33, 0x33, 0, 0, 0, 1];
                    prop_assert!(answer.dst_mac == pkt.src_mac && answer.dst == pkt.src || everybody);
                    // Whoever answers is a router within reach, or the neighbour asked for.
                    let known = components.iter().enumerate().any(|(reached, component)| {
                        *component == components[network]
                            && tables.image.addresses.contains_key(&AddressKey::new(0, reached as u32, answer.src.into()))
                    });
                    prop_assert!(known, "{} answers", answer.src);
                }
                Verdict::Flooded { network: flooded, .. } => {
                    prop_assert_eq!((*flooded as usize, pkt.dst_mac[0] & 1), (network, 1));
                }
                Verdict::Fragmented(flow) => {
                    let (reached, l3_len) = (flow.network_out as usize, read(&frame).l3_len);
                    prop_assert_eq!(components[reached], components[network]);
                    prop_assert!(routed && pkt.src.is_ipv4() && pkt.fragment & DF == 0);
                    prop_assert!(flow.hops >= 1.max(distances[&reached]) && pkt.ttl > flow.hops);
                    prop_assert!(u32::from(flow.mtu) <= plan.mtus[reached] && l3_len > flow.mtu.into());
                }
                Verdict::Dropped(_) => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}

/// The generators are worth something only while every kind of verdict comes out of them.
#[test]
fn the_generated_traffic_meets_every_kind_of_verdict() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let (mut kinds, mut drops) = (BTreeMap::<&str, u32>::new(), BTreeMap::new());
    let mut count = |tables: &MemoryTables, entry, frame: &[u8]| {
        let kind = match run(tables, entry, frame) {
            Verdict::Sent { ifindex: UPLINK, .. } | Verdict::SentToNeighbour { .. } => "tunnel",
            Verdict::Sent { .. } => "port",
            Verdict::Answered { refused: None, .. } => "answer",
            Verdict::Answered { .. } => "refusal",
            Verdict::Flooded { .. } => "flood",
            Verdict::Passed => "kernel",
            Verdict::Waiting { .. } => "waiting",
            Verdict::Fragmented(_) => "fragments",
            Verdict::Served => "service",
            Verdict::Dropped(reason) => {
                *drops.entry(reason).or_insert(0) += 1;
                "drop"
            }
        };
        *kinds.entry(kind).or_default() += 1;
    };
    for _ in 0..1500 {
        let (entry, frame) = traffic().new_tree(&mut runner).unwrap().current();
        count(&tables(), entry, &frame);
    }
    assert!(kinds.len() >= 6 && kinds.values().all(|&n| n >= 10), "{kinds:?}");
    assert!(drops.len() >= 15, "{drops:?}");

    let (mut routed, mut far) = (0, 0);
    for _ in 0..200 {
        let (plan, packets) = planned().new_tree(&mut runner).unwrap().current();
        let (tables, locals) = plan.tables();
        if locals.is_empty() {
            continue;
        }
        for (index, pkt) in packets {
            let local = locals[index.index(locals.len())];
            let pkt = moved(&plan, pkt, local);
            if let Verdict::Sent { ifindex, frame } = run(&tables, Entry::Port(local.0), &pkt.frame()) {
                let left = if ifindex == UPLINK { inner(&frame).1 } else { frame };
                let passed = pkt.ttl - read(&left).ttl;
                routed += u32::from(passed == 1);
                far += u32::from(passed > 1);
            }
        }
    }
    assert!(routed >= 100 && far >= 10, "{routed} packets crossed one router, {far} several");
}
