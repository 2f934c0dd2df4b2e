//! What is for a service of the node is handed to the agent, and goes nowhere else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vrouter_common::{service::*, tables::*};

use crate::{frames::*, harness::*, topology, topology::*};

const SERVICES: [u8; 6] = [0x0a, 1, 2, 3, 4, 5];

/// The topology, with services for port 11 and none for port 12.
fn served(world: &mut World) {
    let mut image = topology::image(&world.ifindexes);
    let key = BindingKey { ifindex: Scoped::new(0, world.ifindex("p11")) };
    let binding = image.bindings.get_mut(&key).expect("p11");
    binding.flags |= BINDING_DHCP | BINDING_DHCPV6 | BINDING_METADATA | BINDING_MONITORED;
    let network = binding.network;
    let station = Station { mac: SERVICES, kind: STATION_SERVICE, place: PLACE_EVERYWHERE, at: 0, owner: 0 };
    image.fdb.insert(FdbKey::new(0, network, SERVICES), station);
    image.addresses.insert(AddressKey::new(0, network, METADATA_IP_V4), station);
    world.apply(image);
}

fn dhcp() -> Packet {
    Packet {
        src: Ipv4Addr::UNSPECIFIED.into(),
        dst_mac: BROADCAST,
        ..Packet::routed(11, Ipv4Addr::BROADCAST)
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
        served(world);
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

#[test]
fn a_full_ring_costs_its_own_packets_alone() {
    with_world(|world| {
        served(world);
        let frame = dhcp().build();
        let before = world.counts();
        for _ in 0..200 {
            world.run(Via::Tc, "p11", &frame);
        }
        let counts = since(&before, &world.counts());
        assert_eq!(counts["service_queued"] + counts["service_busy"], 200, "{counts:?}");
        assert!(counts["service_queued"] >= 100, "{counts:?}");
        // As soon as somebody reads, there is room.
        let mut ring = world.services();
        while ring.next().is_some() {}
        let (_, counts) = world.run_counted(Via::Tc, "p11", &frame);
        assert_eq!(counts.get("service_queued"), Some(&1));
    });
}
