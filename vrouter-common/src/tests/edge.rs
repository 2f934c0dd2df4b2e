//! The edge: a node without a way out of its own, gateways that carry for it, addresses that several gateways
//! could answer for, and routes with several next hops (behaviours N9, R2).

use std::collections::{BTreeMap, BTreeSet};

use super::{fixture::*, world::*};
use crate::{
    addr::Ip,
    flow::FROM_BLOCK,
    memory::{Entry, MemoryPacket, MemoryTables, Verdict},
    reason::DropReason,
    tables::*,
    wire::*,
};

/// Hosts of node 2.
const THERE: [Host; 4] = [A3, A4, B2, C2];

/// The world with node 2 off the external network: node 1 carries for it.
fn world() -> World {
    let mut world = World::new(RULE_STATEFUL);
    let tables = &mut world.nodes[1];
    tables.commit.externals = Default::default();
    for slot in 0..SLOTS {
        tables.image.gateways.insert(GatewayKey { network: Scoped::new(0, PUBLIC), slot }, 1);
    }
    // Between nodes a router has the same hardware address everywhere.
    for node in &mut world.nodes {
        for router in [RA, RB] {
            let key = RouterLegKey { router: Scoped::new(0, router), network: PUBLIC };
            let mac = node.image.router_legs[&key].tunnel_mac;
            let station =
                Station { mac, kind: STATION_ROUTER, place: PLACE_EVERYWHERE, at: 0, owner: router };
            node.image.fdb.insert(FdbKey::new(0, PUBLIC, mac), station);
        }
    }
    world
}

/// From outside, to node 1, whoever the address's workload is.
fn from_outside(world: &World, pkt: &Pkt, router: u32) -> Arrived {
    let frame = pkt.clone().via(gateway_mac(router, 0)).frame();
    world.carry(0, Entry::External(EXT), MemoryPacket::new(&frame))
}

#[test]
fn a_node_without_a_way_out_goes_by_a_gateway_which_keeps_no_connections() {
    for f in BOTH {
        let world = world();
        for host in THERE {
            for sport in 1500..1520 {
                let frame = from(f, End::Inside(host), remote(f)).ports(sport, 53).frame();
                let Arrived::Outside(node, out) = world.send(End::Inside(host), &frame) else {
                    panic!("{host:?}: not sent outside");
                };
                assert_eq!(node, 0, "by node 1");
                assert_valid(&out);
                let out = read(&out);
                let seen = match host.floating {
                    Some(_) => host.floating(f),
                    None if f == Family::V4 => gateway(f, host.router()),
                    None => host.ip(f),
                };
                assert_eq!(
                    (out.src, out.dst, out.ttl),
                    (seen, remote(f), 63),
                    "one router: the TTL falls by one"
                );
                let port = u16::from_be_bytes([out.l4[0], out.l4[1]]);
                // Untranslated, outside would need a route to it.
                let to = if seen == host.ip(f) { host.ip(f) } else { seen };
                let answer = from(f, End::Outside, to).ports(53, port);
                let arrived = from_outside(&world, &answer, host.router());
                let Arrived::Port(at, inside) = arrived else { panic!("{host:?} {seen}: {arrived:?}") };
                assert_eq!((at, read(&inside).ttl), (host, 63));
                assert_valid(&inside);
            }
        }
        let gateway = &world.nodes[0];
        let kept: Vec<_> =
            gateway.transients().into_iter().filter(|(key, _)| key.from != FROM_BLOCK).collect();
        // What is not translated is routed by the gateway as by any node: a decision, not a connection.
        let untranslated = |flow: &crate::flow::Flow| flow.role == crate::flow::ROLE_NONE && f == Family::V6;
        assert!(kept.iter().all(|(_, flow)| untranslated(flow)), "{kept:?}");
        assert_eq!(connections(gateway), (0, 0));
        assert!(gateway.transients().len() <= if f == Family::V4 { 8 } else { 40 });
    }
}

#[test]
fn errors_find_their_way_through_a_gateway() {
    let f = Family::V4;
    for host in THERE {
        let world = world();
        let frame = from(f, End::Inside(host), remote(f)).ports(1500, 53).frame();
        let Arrived::Outside(0, out) = world.send(End::Inside(host), &frame) else { panic!("not sent") };
        // An error about it, from a router out there.
        let payload = out[ETH_LEN..ETH_LEN + 28].to_vec();
        let to = read(&out).src;
        let error = from(f, End::Outside, to).from(beyond(f, 99)).icmp(3, 1, &payload);
        let arrived = from_outside(&world, &error, host.router());
        let Arrived::Port(at, inside) = arrived else { panic!("{arrived:?}") };
        assert_eq!(at, host);
        assert_valid(&inside);
        assert_eq!(read(&inside).dst, host.ip(f));
    }
}

#[test]
fn without_a_gateway_the_sender_is_told() {
    for f in BOTH {
        let mut world = world();
        world.nodes[1].image.gateways.clear();
        let frame = from(f, End::Inside(A4), remote(f)).ports(1500, 53).frame();
        let arrived = world.send(End::Inside(A4), &frame);
        let Arrived::Else(1, verdict) = arrived else { panic!("{arrived:?}") };
        assert_eq!(answered(verdict).1, Some(DropReason::ExternalAbsent));
    }
}

#[test]
fn a_gateway_that_lost_its_interface_sends_to_no_other() {
    let mut world = world();
    world.nodes[0].commit.externals = Default::default();
    for slot in 0..SLOTS {
        world.nodes[0].image.gateways.insert(GatewayKey { network: Scoped::new(0, PUBLIC), slot }, 2);
    }
    let frame = from(Family::V4, End::Inside(A4), remote(Family::V4)).frame();
    let arrived = world.send(End::Inside(A4), &frame);
    assert_eq!(arrived, Arrived::Else(0, Verdict::Dropped(DropReason::ExternalAbsent)));
}

#[test]
fn flows_are_dealt_out_to_gateways_and_a_flow_stays_with_its_own() {
    let mut world = world();
    for slot in 0..SLOTS {
        let key = GatewayKey { network: Scoped::new(0, PUBLIC), slot };
        world.nodes[1].image.gateways.insert(key, 1 + slot % 2 * 6);
    }
    let way = world.nodes[1].underlay[&1];
    world.nodes[1].underlay.insert(7, Underlay { dst: be32([192, 0, 2, 7]), ..way });
    let mut by = BTreeMap::new();
    for sport in 2000..2200 {
        let frame = from(Family::V4, End::Inside(A4), remote(Family::V4)).ports(sport, 53).frame();
        let to: BTreeSet<u8> =
            (0..3).map(|_| sent(run(&world.nodes[1], Entry::Port(A4.ifindex), &frame)).1[33]).collect();
        assert_eq!(to.len(), 1, "a flow has one way");
        *by.entry(to.into_iter().next().unwrap()).or_insert(0) += 1;
    }
    assert_eq!(by.keys().copied().collect::<Vec<_>>(), [1, 7]);
    assert!(by.values().all(|&flows| flows > 60), "{by:?}");
}

// ---- virtual routers ----

const VRID: u8 = 17;

/// Node 1 with the address of router RA shared between gateways.
fn shared(is_master: bool) -> MemoryTables {
    let [mut tables, _] = World::new(0).nodes;
    for f in BOTH {
        let key = AddressKey::new(0, PUBLIC, gateway(f, RA).into());
        let mac = virtual_mac(f);
        let station =
            Station { mac, kind: STATION_ROUTER, place: PLACE_SHARED, at: u32::from(VRID), owner: RA };
        tables.image.addresses.insert(key, station);
        tables.image.fdb.insert(FdbKey::new(0, PUBLIC, mac), station);
        let master = Master { until: 1000, is_master: u32::from(is_master), silenced: 0 };
        tables.masters.borrow_mut().insert(MasterKey::new(PUBLIC, VRID, f == Family::V6), master);
    }
    tables
}

fn virtual_mac(f: Family) -> Mac {
    [0, 0, 0x5e, 0, if f == Family::V4 { 1 } else { 2 }, VRID]
}

/// What a host outside gets for asking who has the router's address.
fn who_has(tables: &MemoryTables, f: Family) -> Option<Vec<u8>> {
    let asker = (GW_MAC, public(f, 1));
    let frame = match f {
        Family::V4 => arp(BROADCAST, GW_MAC, 1, asker, gateway(f, RA)),
        Family::V6 => solicit(asker, gateway(f, RA)).frame(),
    };
    match run(tables, Entry::External(EXT), &frame) {
        Verdict::Passed => None,
        verdict => Some(answered(verdict).0),
    }
}

/// A master's announcement.
fn announcement(f: Family, vrid: u8, priority: u8, ttl: u8) -> Vec<u8> {
    let group: std::net::IpAddr = match f {
        Family::V4 => "224.0.0.18".parse().unwrap(),
        Family::V6 => "ff02::12".parse().unwrap(),
    };
    let mut payload = vec![0x31, vrid, priority, 1, 0, 20, 0, 0];
    payload.extend([203, 0, 113, 10]);
    let mut pkt = from(f, End::Outside, group).via([1, 0, 0x5e, 0, 0, 0x12]).ttl(ttl);
    pkt.l4 = L4::Raw(PROTO_VRRP, payload);
    pkt.frame()
}

#[test]
fn a_shared_address_is_answered_for_by_the_master_alone_with_the_virtual_address() {
    for f in BOTH {
        assert_eq!(who_has(&shared(false), f), None);
        let answer = who_has(&shared(true), f).expect("the master answers");
        assert_eq!(answer[6..12], virtual_mac(f));
        // What comes is carried by the master, and a moment longer by the one that was: not everybody knows yet.
        for (is_master, now, carried) in [(false, 999, true), (false, 1000, false), (true, 2000, true)] {
            let tables = shared(is_master);
            tables.nanoseconds.set(now);
            let ping = from(f, End::Outside, gateway(f, RA)).via(virtual_mac(f)).ping(7, b"there?").frame();
            let verdict = run(&tables, Entry::External(EXT), &ping);
            if carried {
                assert_eq!(answered(verdict).1, None);
            } else {
                assert_eq!(verdict, Verdict::Passed);
            }
        }
    }
}

#[test]
fn without_an_agent_the_last_master_speaks_until_another_does() {
    for f in BOTH {
        let tables = shared(true);
        let hear = |at: u64, frame: &[u8]| {
            tables.nanoseconds.set(at);
            assert_eq!(
                run(&tables, Entry::External(EXT), frame),
                Verdict::Passed,
                "the agent reads it as well"
            );
        };
        // As long as the agent's word counts, it is for the agent to judge.
        hear(1000, &announcement(f, VRID, 200, 255));
        assert!(who_has(&tables, f).is_some());
        // Then, of others than a master of this virtual router, nothing.
        hear(1001, &announcement(f, VRID + 1, 200, 255));
        hear(1001, &announcement(f, VRID, 0, 255));
        hear(1001, &announcement(f, VRID, 200, 254));
        assert!(who_has(&tables, f).is_some());
        hear(1001, &announcement(f, VRID, 1, 255));
        assert_eq!(who_has(&tables, f), None, "two would answer");
        // Not everybody knows yet: it carries for a moment, however often the other announces itself.
        hear(900_000_000, &announcement(f, VRID, 1, 255));
        for (now, carried) in [(1001 + MASTER_LINGER - 1, true), (1001 + MASTER_LINGER, false)] {
            tables.nanoseconds.set(now);
            let ping = from(f, End::Outside, gateway(f, RA)).via(virtual_mac(f)).ping(7, b"there?").frame();
            let verdict = run(&tables, Entry::External(EXT), &ping);
            assert_eq!(verdict != Verdict::Passed, carried, "{verdict:?}");
        }
    }
}

// ---- several next hops ----

#[test]
fn r2_several_next_hops_share_by_flow_and_each_node_chooses_alike() {
    const GROUP: u32 = 4;
    for f in BOTH {
        let mut world = World::new(0);
        let next = [A1, A3, A4];
        for tables in &mut world.nodes {
            // One sends as the other.
            for binding in tables.image.bindings.values_mut() {
                binding.flags |= BINDING_NO_SECURITY;
            }
            let key = |len| RouteKey {
                prefix_len: RouteKey::FIXED_BITS + len,
                router: Scoped::new(0, RA),
                dst: Ip::from(beyond(f, 0)),
            };
            let route = Route { kind: ROUTE_MULTI, network: GROUP, nexthop: Ip::UNSPECIFIED };
            tables.image.routes.insert(key(if f == Family::V4 { 120 } else { 64 }), route);
            for slot in 0..SLOTS {
                let nexthop = next[slot as usize % next.len()].ip(f).into();
                let key = MemberKey { group: Scoped::new(0, GROUP), slot };
                tables.image.members.insert(key, Member { network: A, nexthop });
            }
        }
        let mut by = BTreeMap::new();
        for sport in 3000..3300 {
            // The same flow from either node, as it would be after its port moved.
            let at: Vec<Host> = [C1, C2]
                .into_iter()
                .map(|host| {
                    let mut pkt = from(f, End::Inside(host), remote(f)).ports(sport, 53);
                    pkt.src = C1.ip(f);
                    pkt.src_mac = host.mac();
                    let arrived = world.send(End::Inside(host), &pkt.frame());
                    let Arrived::Port(at, frame) = arrived else { panic!("{arrived:?}") };
                    assert_valid(&frame);
                    assert_eq!((read(&frame).dst, read(&frame).ttl), (remote(f), 63));
                    at
                })
                .collect();
            assert_eq!(at[0], at[1], "both nodes choose alike");
            *by.entry(at[0].host).or_insert(0) += 1;
        }
        assert_eq!(by.len(), 3, "{by:?}");
        assert!(by.values().all(|&flows| flows > 60), "{by:?}");
        for tables in &mut world.nodes {
            tables.image.members.clear();
        }
        for tables in &mut world.nodes {
            for network in [A, C] {
                tables.revisions.insert(network, tables.commit.epoch + 1);
            }
        }
        let frame = from(f, End::Inside(C1), remote(f)).frame();
        let Arrived::Else(0, verdict) = world.send(End::Inside(C1), &frame) else { panic!("nobody is left") };
        assert_eq!(answered(verdict).1, Some(DropReason::NoRoute));
    }
}

// ---- routed networks ----

/// The hardware address of node 1's interface outside, which all its routers share.
const NIC: Mac = [2, 0xaa, 0, 0, 0, 1];

/// Nobody asks on the link who has an address, and nobody is on it but routers: the world beyond is behind `.1`.
fn routed() -> World {
    let mut world = world();
    for (node, tables) in world.nodes.iter_mut().enumerate() {
        tables.image.routes.retain(|_, route| route.kind != ROUTE_CONNECTED || route.network != PUBLIC);
        for (key, station) in tables.image.addresses.iter_mut() {
            if key.network.id() == PUBLIC && station.place == PLACE_EVERYWHERE {
                (station.place, station.at) = (PLACE_SHARED, 0);
            }
        }
        if node == 0 {
            let station = Station {
                mac: NIC,
                kind: STATION_ROUTER,
                place: PLACE_EVERYWHERE,
                at: 0,
                owner: ROUTER_BY_DESTINATION,
            };
            tables.image.fdb.insert(FdbKey::new(0, PUBLIC, NIC), station);
            for leg in tables.image.router_legs.values_mut().filter(|leg| leg.flags & LEG_EXTERNAL != 0) {
                leg.mac = NIC;
            }
        }
    }
    world
}

#[test]
fn on_a_routed_network_the_destination_tells_the_router() {
    for f in BOTH {
        let world = routed();
        let arrives = |to: std::net::IpAddr| {
            let frame = from(f, End::Outside, to).via(NIC).ports(9, 80).frame();
            world.carry(0, Entry::External(EXT), MemoryPacket::new(&frame))
        };
        for host in HOSTS.into_iter().filter(|host| host.floating.is_some()) {
            let arrived = arrives(host.floating(f));
            assert!(matches!(arrived, Arrived::Port(at, _) if at == host), "{host:?}: {arrived:?}");
        }
        // The node's own business, and what is nobody's here, is for the kernel.
        for to in [public(f, 200), beyond(f, 9)] {
            assert_eq!(arrives(to), Arrived::Else(0, Verdict::Passed));
        }
        // Replies to a translated source find the router as well.
        let frame = from(f, End::Inside(B1), remote(f)).ports(1500, 53).frame();
        let Arrived::Outside(0, out) = world.send(End::Inside(B1), &frame) else { panic!("not sent") };
        assert_eq!(out[6..12], NIC, "as others know it");
        let answer = from(f, End::Outside, B1.floating(f)).via(NIC).ports(53, 1500).frame();
        let arrived = world.carry(0, Entry::External(EXT), MemoryPacket::new(&answer));
        assert!(matches!(arrived, Arrived::Port(B1, _)), "{arrived:?}");
        // Nobody is answered who asks on the link.
        assert_eq!(who_has(&world.nodes[0], f), None);
        // From one floating IP to another: no router outside is asked, though the only route leads there.
        for (host, other) in [(A1, B1), (A1, B2), (A3, A1), (B2, A5)] {
            let frame = from(f, End::Inside(host), other.floating(f)).ports(7, 8).frame();
            let arrived = world.send(End::Inside(host), &frame);
            let Arrived::Port(at, frame) = arrived else { panic!("{host:?} to {other:?}: {arrived:?}") };
            assert_eq!((at, read(&frame).src), (other, host.floating(f)));
        }
    }
}
