//! Frames that go on: local, bridged, into a tunnel and out of one, by TC and by XDP.

use std::collections::BTreeMap;

use vrouter_common::{
    addr::{Be16, Be32, Ip, Macs},
    flow::*,
    tables::{UNDERLAY_FRAMES, Underlay},
    tunnel,
};

use crate::{
    frames::*,
    harness::*,
    topology::{self, *},
};

/// A frame that is forwarded, and everything that must be seen of it.
struct Case {
    name: &'static str,
    /// The interface it comes in on.
    at: &'static str,
    input: Vec<u8>,
    output: Vec<u8>,
    exit: Exit,
    hops: u8,
    /// Whether XDP forwards it.
    frames: bool,
}

#[derive(Clone, Copy)]
enum Exit {
    Port(&'static str),
    /// To a node, with a VNI.
    Node(u32, u32),
}

/// What the flow key of a packet must be.
fn key(world: &World, at: &str, packet: &Packet) -> FlowKey {
    let (proto, sport, dport) = match (&packet.transport, packet.src.is_ipv6()) {
        (&Transport::Udp { sport, dport }, _) => (17, sport, dport),
        (&Transport::Tcp { sport, dport, .. }, _) => (6, sport, dport),
        (&Transport::Echo { request, id }, false) => (1, id, if request { 0x0800 } else { 0 }),
        (&Transport::Echo { request, id }, true) => (58, id, if request { 0x8000 } else { 0x8100 }),
        (other, _) => panic!("no key for {other:?}"),
    };
    FlowKey {
        src: Ip::from(packet.src),
        dst: Ip::from(packet.dst),
        zone: world.ifindex(at),
        sport: Be16::new(sport),
        dport: Be16::new(dport),
        proto,
        from: FROM_PORT,
        zero: 0,
    }
}

/// The outer source port a packet's hash gives it.
fn outer_sport(packet: &Packet, world: &World, at: &str) -> u16 {
    tunnel::outer_sport(key(world, at, packet).tuple_hash()).get()
}

fn macs(port: u32, router: u32) -> (Mac, Mac) {
    (port_mac(port), router_mac(router, port / 10))
}

fn cases(world: &World) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut routed = |name, packet: &Packet, to: u32, interface, frames| {
        let (dst, src) = macs(to, 1);
        cases.push(Case {
            name,
            at: "p11",
            input: packet.build(),
            output: packet.clone().macs(dst, src).ttl(packet.ttl - 1).build(),
            exit: Exit::Port(interface),
            hops: 1,
            frames,
        });
    };
    let syn = Transport::Tcp { sport: 40_000, dport: 80, seq: 7, ack: None, syn: true, rst: false };
    let echo = Transport::Echo { request: true, id: 77 };
    routed("routed UDP over IPv4", &Packet::routed(11, port_v4(21)), 21, "p21", true);
    routed("routed UDP over IPv6", &Packet::routed(11, port_v6(21)), 21, "p21", true);
    routed(
        "routed TCP over IPv4",
        &Packet::routed(11, port_v4(21)).transport(syn.clone()).len(0),
        21,
        "p21",
        true,
    );
    routed("routed TCP over IPv6", &Packet::routed(11, port_v6(21)).transport(syn).len(0), 21, "p21", true);
    routed(
        "routed echo over IPv4",
        &Packet::routed(11, port_v4(21)).transport(echo.clone()),
        21,
        "p21",
        true,
    );
    routed("routed echo over IPv6", &Packet::routed(11, port_v6(21)).transport(echo), 21, "p21", true);
    routed("the smallest TTL", &Packet::routed(11, port_v4(21)).ttl(2), 21, "p21", true);
    // The sum of the header crosses 0xffff on one side of the decrement or the other for some of these.
    for ttl in [255, 254, 129, 128, 100, 65, 3] {
        routed("another TTL", &Packet::routed(11, port_v4(21)).ttl(ttl), 21, "p21", true);
    }
    routed("routed to a next hop", &Packet::routed(11, v4(5, 9)), 21, "p21", true);
    routed("routed to a next hop over IPv6", &Packet::routed(11, v6(5, 9)), 21, "p21", true);
    routed("to a port that XDP does not serve", &Packet::routed(11, port_v4(22)), 22, "p22", false);
    routed("to a port that XDP does not serve, IPv6", &Packet::routed(11, port_v6(22)), 22, "p22", false);
    routed("as large as the MTU", &Packet::routed(11, port_v4(21)).len(MTU as usize - 28), 21, "p21", true);

    for (name, v6) in [("two routers in a row", false), ("two routers in a row, IPv6", true)] {
        let to = if v6 { port_v6(61).into() } else { std::net::IpAddr::from(port_v4(61)) };
        let packet = Packet::routed(11, to);
        let (dst, src) = macs(61, 2);
        cases.push(Case {
            name,
            at: "p11",
            input: packet.build(),
            output: packet.macs(dst, src).ttl(62).build(),
            exit: Exit::Port("p61"),
            hops: 2,
            frames: true,
        });
    }
    for (name, to, interface, v6, frames) in [
        ("bridged IPv4", 12, "p12", false, true),
        ("bridged IPv6", 12, "p12", true, true),
        ("bridged to a port that XDP does not serve", 13, "p13", false, false),
    ] {
        let input = Packet::switched(11, to, v6).ttl(1).build();
        let output = input.clone();
        cases.push(Case { name, at: "p11", input, output, exit: Exit::Port(interface), hops: 0, frames });
    }
    for (name, v6, node, to, frames) in [
        ("routed into a tunnel", false, 2, 25, true),
        ("routed into a tunnel, IPv6", true, 2, 25, true),
        ("into a tunnel XDP cannot send to", false, 5, 24, false),
    ] {
        let dst = if v6 { port_v6(to).into() } else { std::net::IpAddr::from(port_v4(to)) };
        let packet = Packet::routed(11, dst);
        let (dst, src) = macs(to, 1);
        let inner = packet.clone().macs(dst, src).ttl(63).build();
        cases.push(Case {
            name,
            at: "p11",
            input: packet.build(),
            output: leaving(node, outer_sport(&packet, world, "p11"), vni(2), &inner),
            exit: Exit::Node(node, vni(2)),
            hops: 1,
            frames,
        });
    }
    for (name, v6) in [("bridged into a tunnel", false), ("bridged into a tunnel, IPv6", true)] {
        let packet = Packet::switched(11, 15, v6);
        cases.push(Case {
            name,
            at: "p11",
            input: packet.build(),
            output: leaving(
                2,
                {
                    // A switched frame's hash leaves the port it came from out.
                    let key = FlowKey { zone: 0, ..key(world, "p11", &packet) };
                    tunnel::outer_sport(key.tuple_hash()).get()
                },
                vni(1),
                &packet.build(),
            ),
            exit: Exit::Node(2, vni(1)),
            hops: 0,
            frames: true,
        });
    }
    for (name, to, interface, v6, frames) in [
        ("out of a tunnel, IPv4", 11, "p11", false, true),
        ("out of a tunnel, IPv6", 11, "p11", true, true),
        ("out of a tunnel to a port that XDP does not serve", 13, "p13", false, false),
        ("out of a tunnel to a port that XDP does not serve, IPv6", 13, "p13", true, false),
    ] {
        let inner = Packet::switched(15, to, v6).ttl(1).build();
        cases.push(Case {
            name,
            at: UPLINK,
            input: arriving(2, vni(1), &inner),
            output: inner,
            exit: Exit::Port(interface),
            hops: 0,
            frames,
        });
    }
    cases
}

fn check(world: &World, case: &Case, via: Via) {
    let name = format!("{}, by {via:?}", case.name);
    world.forget_flows();
    let misses = Counts::from([("flow_miss", 1)]);
    if via == Via::Xdp && !case.frames {
        passes(world, case, &name);
        return;
    }
    let (ran, counts) = world.run_counted(via, case.at, &case.input);
    assert_eq!(ran.verdict, via.redirect(), "{name}: verdict; {counts:?}");
    assert_frame(&name, &ran.frame, &case.output);
    assert_eq!(counts, misses, "{name}: counters of the first packet");
    let (key, flow) = world.only_flow();
    assert_eq!(
        (flow.packets, flow.bytes),
        (1, case.input.len() as u64),
        "{name}: the first packet in the flow"
    );
    check_flow(world, case, &name, &key, &flow);

    let (ran, counts) = world.run_counted(via, case.at, &case.input);
    assert_eq!(ran.verdict, via.redirect(), "{name}: verdict of the second packet");
    assert_frame(&name, &ran.frame, &case.output);
    assert_eq!(counts, Counts::new(), "{name}: counters of the second packet");
    let (second_key, second) = world.only_flow();
    assert_eq!(second_key, key, "{name}: the second packet's key");
    let touched = Flow { packets: 2, bytes: 2 * case.input.len() as u64, seen: second.seen, ..flow };
    assert_eq!(second, touched, "{name}: the flow after the second packet");
}

fn check_flow(world: &World, case: &Case, name: &str, key: &FlowKey, flow: &Flow) {
    assert_eq!(flow.hops, case.hops, "{name}: hops");
    assert_eq!(flow.epoch, world.banks.commit().epoch, "{name}: epoch");
    assert_eq!(flow.flags & FLOW_FRAMES != 0, case.frames, "{name}: whether XDP may");
    let tunnelled = case.at == UPLINK;
    let from = if tunnelled { (FROM_NETWORK, vni(1)) } else { (FROM_PORT, world.ifindex(case.at)) };
    assert_eq!((key.from, key.zone), from, "{name}: where it came in");
    let vtep = if tunnelled { Be32::new(topology::vtep(2).to_bits()) } else { Be32::new(0) };
    assert_eq!(flow.in_vtep, vtep, "{name}: which node it came from");
    let inner = &case.input[if tunnelled { 50 } else { 0 }..];
    let mac = |at: usize| -> Mac { inner[at..at + 6].try_into().expect("six") };
    assert_eq!(flow.in_macs, Macs::new(mac(0), mac(6)), "{name}: the addresses it must have");
    match case.exit {
        Exit::Port(interface) => {
            assert_eq!((flow.exit, flow.target), (EXIT_PORT, world.ifindex(interface)), "{name}: exit");
        }
        Exit::Node(node, vni) => {
            assert_eq!((flow.exit, flow.target, flow.vni), (EXIT_TUNNEL, node, vni), "{name}: exit");
        }
    }
}

/// Without a way for frames XDP leaves the packet as it is and remembers nothing; TC decides and remembers.
fn passes(world: &World, case: &Case, name: &str) {
    for (packets_before, counts, by_tc) in [
        (0, [("flow_miss", 1), ("xdp_passed", 1)].as_slice(), [("flow_miss", 1)].as_slice()),
        (1, [("xdp_passed", 1)].as_slice(), [].as_slice()),
    ] {
        let (ran, counted) = world.run_counted(Via::Xdp, case.at, &case.input);
        assert_eq!(ran.verdict, XDP_PASS, "{name}: verdict");
        assert_frame(name, &ran.frame, &case.input);
        assert_eq!(counted, counts.iter().copied().collect::<BTreeMap<_, _>>(), "{name}: counters of XDP");
        let packets: u64 = world.flow_entries().values().map(|flow| flow.packets).sum();
        assert_eq!(packets, packets_before, "{name}: XDP counts nothing it leaves to TC");
        assert_eq!(world.flow_entries().len() as u64, packets_before, "{name}: XDP remembers nothing of it");

        let (ran, counted) = world.run_counted(Via::Tc, case.at, &case.input);
        assert_eq!(ran.verdict, TC_ACT_REDIRECT, "{name}: verdict of TC");
        assert_frame(name, &ran.frame, &case.output);
        assert_eq!(counted, by_tc.iter().copied().collect::<BTreeMap<_, _>>(), "{name}: counters of TC");
        let (key, flow) = world.only_flow();
        let packets = packets_before + 1;
        assert_eq!(
            (flow.packets, flow.bytes),
            (packets, packets * case.input.len() as u64),
            "{name}: TC counts"
        );
        check_flow(world, case, name, &key, &flow);
    }
}

#[test]
fn frames_in_frames_out() {
    with_world(|world| {
        for case in cases(world) {
            for via in Via::BOTH {
                check(world, &case, via);
            }
        }
    });
}

#[test]
fn one_entry_per_five_tuple() {
    with_world(|world| {
        let packets: Vec<Packet> = [(1000, 2000), (1000, 2001), (1001, 2000)]
            .into_iter()
            .flat_map(|(sport, dport)| {
                let udp = Packet::routed(11, port_v4(21)).transport(Transport::Udp { sport, dport });
                let tcp = Transport::Tcp { sport, dport, seq: 1, ack: Some(2), syn: false, rst: false };
                let v6 = Packet::routed(11, port_v6(21)).transport(udp.transport.clone());
                [udp.clone().transport(tcp), udp, v6]
            })
            .collect();
        for round in 1..=3 {
            for packet in &packets {
                world.run(if round == 2 { Via::Xdp } else { Via::Tc }, "p11", &packet.build());
            }
            let flows = world.flow_entries();
            assert_eq!(flows.len(), packets.len());
            for packet in &packets {
                let flow = &flows[&key(world, "p11", packet)];
                assert_eq!((flow.packets, flow.bytes), (round, round * packet.build().len() as u64));
            }
        }
        // The same addresses from another port are another flow (they are allowed on the one without security).
        let mut copy = packets[1].clone();
        copy.src_mac = port_mac(19);
        world.run(Via::Tc, "p19", &copy.build());
        assert_eq!(world.flow_entries().len(), packets.len() + 1);
    });
}

/// What is not remembered: options, extension headers, fragments. Each is decided every time.
#[test]
fn unusual_packets_are_forwarded_and_forgotten() {
    with_world(|world| {
        // A fragment that is not the last has a multiple of eight bytes.
        let base = Packet::routed(11, port_v4(21)).len(24);
        let mut fragment = base.build();
        // More fragments, and no "don't fragment".
        fragment[20] = 0x20;
        fix_ipv4(&mut fragment);
        let mut later = base.build();
        // Behind the 32 bytes of the first.
        later[20..22].copy_from_slice(&[0, 4]);
        fix_ipv4(&mut later);
        let mut options = base.build();
        // Router alert and padding.
        options.splice(34..34, [148, 4, 0, 0]);
        options[14] = 0x46;
        options[17] += 4;
        fix_ipv4(&mut options);
        let base6 = Packet::routed(11, port_v6(21));
        let mut hop_by_hop = base6.build();
        hop_by_hop.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
        hop_by_hop[20] = 0;
        hop_by_hop[19] += 8;
        let (dst, src) = macs(21, 1);
        let first = fragment.clone();
        for (name, input) in [
            ("first fragment", fragment),
            ("later fragment", later),
            ("options", options),
            ("hop by hop", hop_by_hop),
        ] {
            let mut output = input.clone();
            output[..6].copy_from_slice(&dst);
            output[6..12].copy_from_slice(&src);
            if output[12] == 8 {
                output[22] -= 1;
                fix_ipv4(&mut output);
            } else {
                output[21] -= 1;
            }
            for via in Via::BOTH {
                for _ in 0..2 {
                    if via == Via::Xdp && name.ends_with("fragment") {
                        let (ran, counts) = world.run_counted(via, "p11", &input);
                        assert_eq!((ran.verdict, counts), (XDP_PASS, left_by_xdp(&input)), "{name} by XDP");
                        continue;
                    }
                    if name == "later fragment" {
                        // Begins the datagram again: a piece may not come twice.
                        world.run(via, "p11", &first);
                    }
                    let (ran, counts) = world.run_counted(via, "p11", &input);
                    assert_eq!(ran.verdict, via.redirect(), "{name} by {via:?}: verdict; {counts:?}");
                    assert_frame(name, &ran.frame, &output);
                    let want = Counts::from([("flow_miss", 1), ("flow_not_stored", 0)]);
                    assert_eq!(counts.get("flow_miss"), want.get("flow_miss"), "{name} by {via:?}");
                    assert_eq!(counts.len(), 1, "{name} by {via:?}: {counts:?}");
                }
                assert!(world.flow_entries().is_empty(), "{name} by {via:?}: {:?}", world.flow_entries());
            }
        }
    });
}

/// Sets the checksum of an IPv4 header behind an Ethernet header.
pub fn fix_ipv4(frame: &mut [u8]) {
    let len = usize::from(frame[14] & 15) * 4;
    let header = etherparse::Ipv4Header::from_slice(&frame[14..14 + len]).expect("an IPv4 header").0;
    frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
}

/// The kernel resolves a neighbour for TC; XDP cannot wait for it.
#[test]
fn to_a_node_whose_neighbour_is_not_resolved() {
    with_world(|world| {
        let packet = Packet::routed(11, port_v4(26));
        let (dst, src) = macs(26, 1);
        let inner = packet.clone().macs(dst, src).ttl(63).build();
        let output = leaving(3, outer_sport(&packet, world, "p11"), vni(2), &inner);
        for misses in [1, 0] {
            let (ran, counts) = world.run_counted(Via::Tc, "p11", &packet.build());
            assert_eq!(ran.verdict, TC_ACT_REDIRECT);
            assert_frame("unresolved", &ran.frame, &output);
            assert_eq!(counts.get("flow_miss").copied().unwrap_or(0), misses);
            assert_eq!(counts.len() as u64, misses, "{counts:?}");
        }
        // The entry that TC made does not outlive what it was made of.
        let (_, flow) = world.only_flow();
        assert_eq!((flow.exit, flow.target, flow.packets), (EXIT_TUNNEL, 3, 2));
    });
}

/// The way to a node is looked up for every packet: it may come and go without any flow being decided again.
#[test]
fn the_way_to_a_node_is_followed() {
    with_world(|world| {
        let frame = Packet::routed(11, port_v4(25)).build();
        let way = topology::underlay(&world.ifindexes)[&2];
        let set = |way| world.underlay.set(&2, &way).expect("UNDERLAY");
        for via in Via::BOTH {
            assert_eq!(world.run(via, "p11", &frame).verdict, via.redirect());
            set(Underlay { flags: UNDERLAY_FRAMES, ..way });
            let (ran, counts) = world.run_counted(via, "p11", &frame);
            assert_eq!(ran.verdict, via.drop());
            assert_eq!(counts, Counts::from([("underlay_unreachable", 1)]));
            let moved = Macs::new([2, 0xbb, 0, 0, 0, 9], UNDERLAY_SRC);
            set(Underlay { macs: moved, ..way });
            let (ran, counts) = world.run_counted(via, "p11", &frame);
            assert_eq!((ran.verdict, &ran.frame[..6]), (via.redirect(), &[2, 0xbb, 0, 0, 0, 9][..]));
            assert_eq!(counts, Counts::new());
            set(way);
        }
        assert_eq!(world.only_flow().1.packets, 6, "every packet met the one entry");
    });
}

/// A flow entry lets nobody in who would not have been let in without it.
#[test]
fn what_was_checked_is_checked_at_every_packet() {
    with_world(|world| {
        let packet = Packet::routed(11, port_v4(31)).len(1000);
        world.run(Via::Tc, "p11", &packet.build());
        let (_, flow) = world.only_flow();
        let spoofed = Packet { src_mac: port_mac(12), ..packet.clone() };
        let other_way = Packet { dst_mac: port_mac(12), ..packet.clone() };
        for (name, changed, counted) in [
            ("another sender", spoofed, [("spoofed_mac", 1)].as_slice()),
            ("TTL", packet.clone().ttl(1), &[("ttl_exceeded", 1), ("error_sent", 1)]),
            ("size", packet.clone().len(SMALL_MTU as usize), &[("too_big", 1), ("error_sent", 1)]),
        ] {
            let (_, counts) = world.run_counted(Via::Tc, "p11", &changed.build());
            let mut want: Counts = counted.iter().copied().collect();
            want.insert("flow_miss", 1);
            assert_eq!(counts, want, "{name}");
            assert_eq!(world.only_flow().1, flow, "{name}: the entry is as it was");
        }
        // Switched, not routed, with the same 5-tuple: another decision, which takes the entry's place.
        assert_eq!(world.run(Via::Tc, "p11", &other_way.build()).verdict, TC_ACT_REDIRECT);
        let (_, switched) = world.only_flow();
        assert_eq!((switched.hops, switched.target, switched.packets), (0, world.ifindex("p12"), 1));

        world.forget_flows();
        let inner = Packet::switched(15, 11, false).build();
        for (node, packets) in [(2, 1), (2, 2), (5, 1), (5, 2)] {
            let ran = world.run(Via::Xdp, UPLINK, &arriving(node, vni(1), &inner));
            assert_eq!(ran.verdict, XDP_REDIRECT);
            let (_, flow) = world.only_flow();
            assert_eq!((flow.in_vtep, flow.packets), (Be32::new(topology::vtep(node).to_bits()), packets));
        }
        let (_, counts) = world.run_counted(Via::Xdp, UPLINK, &arriving(9, vni(1), &inner));
        assert_eq!(counts, Counts::from([("flow_miss", 1), ("vtep_unknown", 1)]));
    });
}

/// A super-packet's size is not its segments': it is compared by those, and leaves whole. To a port only: a
/// test run cannot say what kind of super-packet it is, and the kernel grows none of no kind.
#[test]
fn a_super_packet_larger_than_the_mtu() {
    with_world(|world| {
        let tcp = Transport::Tcp { sport: 40_000, dport: 80, seq: 7, ack: Some(1), syn: false, rst: false };
        let packet = Packet::routed(11, port_v4(21)).transport(tcp).len(3000);
        let (dst, src) = macs(21, 1);
        let output = packet.clone().macs(dst, src).ttl(63).build();
        let fits = MTU - 40;
        for packets in 1..=2 {
            let ran = world.run_gso(Via::Tc, "p11", &packet.build(), fits);
            assert_eq!(ran.verdict, TC_ACT_REDIRECT, "{:?}", world.counts());
            assert_frame("super-packet", &ran.frame, &output);
            assert_eq!(world.only_flow().1.packets, packets);
        }
        let ran = world.run_gso(Via::Tc, "p11", &packet.build(), fits + 1);
        assert_eq!(world.counts().get("too_big"), Some(&1), "{:?}", world.counts());
        assert_eq!(ran.verdict, TC_ACT_REDIRECT, "the sender is told");
        assert_frame("super-packet", &ran.frame, &packet.error(v4(1, 1), 3, 4, MTU));
    });
}

/// What is not VXLAN for this node is the kernel's.
#[test]
fn the_uplinks_other_traffic_passes() {
    with_world(|world| {
        let inner = Packet::switched(15, 11, false).build();
        let mut other_port = arriving(2, vni(1), &inner);
        other_port[37] ^= 1;
        let ours = Packet { dst: VTEP.into(), ..Packet::routed(11, VTEP) };
        for (name, frame) in [
            (
                "for another node",
                vxlan((UNDERLAY_SRC, UNDERLAY_DST), vtep(2), vtep(9), 50_000, vni(1), &inner),
            ),
            ("another UDP port", other_port),
            ("no UDP", ours.clone().transport(Transport::Echo { request: true, id: 1 }).build()),
            ("IPv6", Packet::switched(15, 11, true).build()),
            ("ARP", arp_request(11, v4(1, 1))),
            ("short", ours.build()[..20].to_vec()),
        ] {
            for via in Via::BOTH.into_iter().filter(|via| via.runs(&frame)) {
                let (ran, counts) = world.run_counted(via, UPLINK, &frame);
                assert_eq!(ran, Ran { verdict: via.pass(), frame: frame.clone() }, "{name} by {via:?}");
                // Counted where it is left for good: at TC.
                let events = if via == Via::Tc { Counts::from([("to_kernel", 1)]) } else { Counts::new() };
                assert_eq!(counts, events, "{name} by {via:?}");
            }
        }
    });
}

/// What is only remembered takes nothing from the answered: a table of those for few does not feel it.
#[test]
fn a_full_flow_table_forwards() {
    in_namespace(|| {
        let mut world = World::new(4);
        world.apply(topology::image(&world.ifindexes));
        for sport in 1..200 {
            let packet = Packet::routed(11, port_v4(21)).transport(Transport::Udp { sport, dport: 9 });
            let ran = world.run(Via::Tc, "p11", &packet.build());
            assert_eq!(ran.verdict, TC_ACT_REDIRECT);
        }
        let counts = world.counts();
        assert_eq!(counts["flow_miss"], 199);
        assert!(world.flows.keys().expect("FLOWS").is_empty(), "nobody answered");
        assert_eq!(counts.len(), 1, "{counts:?}");
    });
}
