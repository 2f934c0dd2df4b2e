//! What is for a service of the node is handed to the agent, and goes nowhere else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vrouter_common::{service::*, tables::*};

use crate::{frames::*, harness::*, topology, topology::*};

const SERVICES: [u8; 6] = [0x0a, 1, 2, 3, 4, 5];

/// The topology, with services for some ports and none for the others.
fn served(world: &mut World, ports: &[u32]) {
    let mut image = topology::image(&world.ifindexes);
    for port in ports {
        let key = BindingKey { ifindex: Scoped::new(0, world.ifindex(&format!("p{port}"))) };
        let binding = image.bindings.get_mut(&key).expect("a port");
        binding.flags |= BINDING_DHCP | BINDING_DHCPV6 | BINDING_METADATA | BINDING_MONITORED;
    }
    let network = 1;
    let station = Station { mac: SERVICES, kind: STATION_SERVICE, place: PLACE_EVERYWHERE, at: 0, owner: 0 };
    image.fdb.insert(FdbKey::new(0, network, SERVICES), station);
    image.addresses.insert(AddressKey::new(0, network, METADATA_IP_V4), station);
    world.apply(image);
}

fn dhcp() -> Packet {
    dhcp_of(11)
}

fn dhcp_of(port: u32) -> Packet {
    Packet {
        src: Ipv4Addr::UNSPECIFIED.into(),
        dst_mac: BROADCAST,
        ..Packet::routed(port, Ipv4Addr::BROADCAST)
    }
    .transport(Transport::Udp { sport: 68, dport: 67 })
}

fn metadata(dport: u16) -> Packet {
    let tcp = Transport::Tcp { sport: 1000, dport, seq: 1, ack: None, syn: true, rst: false };
    Packet::routed(11, Ipv4Addr::from(METADATA_V4)).transport(tcp)
}

fn to_router(dport: u16) -> Packet {
    let tcp = Transport::Tcp { sport: 80, dport, seq: 1, ack: Some(2), syn: true, rst: false };
    Packet::routed(11, v4(1, 1)).transport(tcp)
}

#[test]
fn what_is_for_a_service_goes_to_the_agent_and_nowhere_else() {
    with_world(|world| {
        served(world, &[11]);
        let solicit = Packet {
            src: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            dst_mac: [0x33, 0x33, 0, 0, 0, 2],
            ttl: 255,
            ..Packet::routed(11, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2))
        }
        .transport(Transport::Icmp { kind: 133, code: 0, rest: [0; 4] });
        let mut ring = world.services();
        let to_services = metadata(METADATA_PORT).macs(SERVICES, port_mac(11));
        for (name, packet) in [
            ("DHCP", dhcp()),
            ("a router solicitation", solicit),
            ("metadata, by the router", metadata(METADATA_PORT)),
            ("metadata", to_services),
            ("what a member answers", to_router(PROBE_PORT_FIRST)),
        ] {
            let frame = packet.build();
            let (ran, counts) = world.run_counted(Via::Tc, "p11", &frame);
            assert_eq!(ran.verdict, Via::Tc.drop(), "{name}");
            assert_eq!(counts, Counts::from([("flow_miss", 1), ("service_queued", 1)]), "{name}");
            let record = ring.next().unwrap_or_else(|| panic!("{name}: no record"));
            let word = |at: usize| u32::from_ne_bytes(record[at..at + 4].try_into().expect("four bytes"));
            assert_eq!((word(0), word(4) as usize), (world.ifindex("p11"), frame.len()), "{name}");
            assert_eq!(record[8..8 + frame.len()], frame, "{name}");
            let (ran, _) = world.run_counted(Via::Xdp, "p11", &frame);
            assert_eq!(ran.verdict, Via::Xdp.pass(), "{name}: XDP leaves it to TC");
            assert!(world.flow_entries().is_empty(), "{name}: nothing is remembered");
        }
        // Whatever else a member sends to its router is refused as ever (R3).
        let (_, counts) = world.run_counted(Via::Tc, "p11", &to_router(PROBE_PORT_FIRST - 1).build());
        assert_eq!(
            (counts.get("router_refused"), counts.get("service_queued")),
            (Some(&1), None),
            "{counts:?}"
        );
        // Who is not served is flooded as ever.
        let mut other = dhcp().build();
        other[6..12].copy_from_slice(&port_mac(12));
        let (_, counts) = world.run_counted(Via::Tc, "p12", &other);
        assert_eq!(counts.get("frame_flooded"), Some(&1), "{counts:?}");
        let long = dhcp().len(UPCALL_FRAME_MAX).build();
        let nobodys = metadata(81).macs(SERVICES, port_mac(11)).build();
        for (frame, reason) in [(long, "service_too_long"), (nobodys, "service_unknown")] {
            let (ran, mut counts) = world.run_counted(Via::Tc, "p11", &frame);
            counts.remove("flow_miss");
            assert_eq!((ran.verdict, counts), (Via::Tc.drop(), Counts::from([(reason, 1)])));
        }
    });
}

/// Sends a port's request again and again, while nobody reads: how many of them the agent finds in the ring.
fn flood(world: &World, port: u32) -> u64 {
    let (name, frame, before) = (format!("p{port}"), dhcp_of(port).build(), world.counts());
    for _ in 0..200 {
        world.run(Via::Tc, &name, &frame);
    }
    let counts = since(&before, &world.counts());
    let [queued, busy] =
        ["service_queued", "service_busy"].map(|name| counts.get(name).copied().unwrap_or_default());
    assert_eq!(queued + busy, 200, "port {port}: {counts:?}");
    queued
}

#[test]
fn a_port_that_floods_the_ring_keeps_no_other_from_being_served() {
    with_world(|world| {
        let flooding = [12, 13, 19, 21, 22, 31, 41, 42, 61, 71];
        served(world, &[&flooding[..], &[11, 72]].concat());
        // Alone, it has a fifth of the ring; its answers to the node's checks have a part of their own.
        assert_eq!(flood(world, 11), 51);
        let is_taken = |world: &World, interface: &str, frame: &[u8]| {
            world.run_counted(Via::Tc, interface, frame).1.contains_key("service_queued")
        };
        let (mine, others, checked) =
            (dhcp().build(), dhcp_of(12).build(), to_router(PROBE_PORT_FIRST).build());
        assert!(!is_taken(world, "p11", &mine) && is_taken(world, "p12", &others));
        assert!(is_taken(world, "p11", &checked), "nobody is taken for dead who asks for too much");
        // With others that flood it, less; whoever comes next finds room.
        let flooded: Vec<u64> = flooding.iter().map(|port| flood(world, *port)).collect();
        let late = flood(world, 72);
        assert!(late >= 4, "{flooded:?}, then {late}");

        // As the reader goes on, there is room again.
        let mut ring = world.services();
        let mut take = |most: usize| (0..most).take_while(|_| ring.next().is_some()).count();
        while !is_taken(world, "p11", &mine) {
            assert_eq!(take(1), 1, "all is read, and there is no room");
        }
        // Who asks at the reader's pace is not refused, whatever lies before the reader.
        for _ in 0..300 {
            assert!(is_taken(world, "p72", &dhcp_of(72).build()) && take(2) >= 1);
        }
        take(usize::MAX);
        assert_eq!(flood(world, 11), 51);
    });
}

#[test]
fn a_port_has_a_second_s_worth_of_the_agent_s_time() {
    with_world(|world| {
        served(world, &[11, 12]);
        let mut ring = world.services();
        let (mine, others) = (dhcp().build(), dhcp_of(12).build());
        let (begun, before) = (std::time::Instant::now(), world.counts());
        loop {
            world.run(Via::Tc, "p11", &mine);
            if ring.next().is_none() {
                break;
            }
            assert!(begun.elapsed() < std::time::Duration::from_secs(30), "it is never refused");
        }
        let most = 4_001 + begun.elapsed().as_micros() as u64 / 250;
        let counts = since(&before, &world.counts());
        let queued = counts["service_queued"];
        assert!((4_000..=most).contains(&queued), "{queued}, at most {most}");
        assert_eq!(counts.get("service_rate"), Some(&1), "{counts:?}");
        for (interface, frame) in [("p12", others), ("p11", to_router(PROBE_PORT_FIRST).build())] {
            let (_, counts) = world.run_counted(Via::Tc, interface, &frame);
            assert_eq!(counts.get("service_queued"), Some(&1), "{interface}");
        }
    });
}
