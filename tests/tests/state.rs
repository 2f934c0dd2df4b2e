//! What is remembered: connections and bindings over crashes (C1) and changes (C3), floods that must not push
//! them out (C8), and addresses that move between ports (L4).

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vrouter_tests::frame::{Addressing, Arp, BROADCAST, Mac, piece};
use vrouter_tests::sockets::noise;
use vrouter_tests::system::{Check, check_all};
use vrouter_tests::topology::{FloatingIp, Network, Port, Topology, standard_port, with_outside};
use vrouter_tests::{AgentOptions, Host, Outcome, Probe, Services, System, Talk, UdpLoad, Workload, wait};

const PATIENCE: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(60);
/// How long something takes that is not answered.
const SILENCE: Duration = Duration::from_millis(500);
const FAMILIES: [bool; 2] = [false, true];

const ROUTER: &str = "203.0.113.10";
const OF_VM1: &str = "203.0.113.51";
const OF_VM5: &str = "203.0.113.55";
const SHARED: &str = "203.0.113.60";
const SERVER1: &str = "198.51.100.10";
const SERVER2: &str = "198.51.100.20";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(text), port)
}

fn furnish(system: &System) -> Services {
    system.outside().route_inside("fd00::/16", "2001:db8:ff::10").unwrap();
    Services::everywhere(system, &[7, 22, 53]).unwrap()
}

/// Connections of every kind, that must live on whatever happens: name and connection.
struct Connections(Vec<(String, Talk)>);

impl Connections {
    fn open(system: &System) -> Self {
        let open = |(from, to, port): (&str, &str, u16)| {
            let mut talk = Talk::open(system.host(from), at(to, port), None, PATIENCE).unwrap();
            talk.exchange(1000).unwrap();
            (format!("{from} to {to}"), talk)
        };
        let kinds = [
            // East-west, local and remote.
            ("vm1", "10.0.2.13", 7),
            ("vm1", "10.0.2.15", 7),
            ("vm4", "fd00:2::d", 7),
            // Out by the router's address, from both nodes; by a floating IP; untranslated.
            ("vm2", SERVER1, 7),
            ("vm4", SERVER1, 7),
            ("vm1", SERVER2, 7),
            ("vm6", "2001:db8:aa::10", 7),
            // In, and in and out again.
            ("outside1", OF_VM1, 7),
            ("outside1", OF_VM5, 7),
            ("server2", OF_VM5, 7),
            ("server1", SHARED, 2226),
            ("vm2", OF_VM5, 7),
        ];
        Self(kinds.map(open).into())
    }

    /// Every one still works.
    fn check(&mut self, when: &str) {
        for (name, talk) in &mut self.0 {
            talk.exchange(5000).unwrap_or_else(|error| panic!("{name}, {when}: {error:#}"));
        }
    }
}

/// Flows of datagrams whose translation must stay what it is.
struct Bindings(Vec<(&'static str, Probe, SocketAddr)>);

impl Bindings {
    fn open(system: &System) -> Self {
        let open = |(from, to, port): (&'static str, &str, u16)| {
            let probe = Probe::udp(ip(to), 53).from_port(port);
            let seen = probe.send(system.host(from)).unwrap().seen(ip(to));
            (from, probe, seen.unwrap_or_else(|| panic!("{from} to {to}")))
        };
        Self(
            [
                ("vm2", SERVER1, 40_001),
                ("vm4", SERVER1, 40_001),
                ("vm6", SERVER2, 40_001),
                ("vm3", SERVER1, 40_001),
                ("vm1", SERVER1, 40_001),
                ("vm4", OF_VM1, 40_002),
            ]
            .map(open)
            .into(),
        )
    }

    /// Every server still sees whom it saw.
    fn check(&self, system: &System, when: &str) {
        for (from, probe, seen) in &self.0 {
            let outcome = probe.send(system.host(from)).unwrap();
            let Outcome::Answer { seen: Some(now), intact: true, .. } = outcome else {
                panic!("{from}, {when}: {outcome}");
            };
            assert_eq!(now, *seen, "{from}, {when}");
        }
    }
}

/// C1: agents that are killed and start again cost no connection and no binding; while they are away, what is
/// there goes on and new ones begin.
#[test]
fn c1_killed_agents_cost_no_connection() {
    let mut system = System::start(&with_outside()).unwrap();
    let _services = furnish(&system);
    let (mut connections, bindings) = (Connections::open(&system), Bindings::open(&system));
    let (from, to) = (system.workload("vm1"), system.workload("vm5"));
    let load = UdpLoad::start(from, to, to.v4()).unwrap();
    load.wait_for_more(10).unwrap();
    let ping = system.host("vm4").start_ping(SERVER2, 600, &["-i", "0.01"]).unwrap();
    for round in 0..3 {
        for node in ["node-a", "node-b"] {
            system.agent_mut(node).kill9();
        }
        connections.check(&format!("round {round}, without agents"));
        bindings.check(&system, &format!("round {round}, without agents"));
        // New ones, outwards and inwards, to next hops that are known.
        for (from, to, port) in
            [("vm2", SERVER2, 7), ("vm4", SERVER2, 7), ("outside1", OF_VM5, 7), ("outside1", SHARED, 2222)]
        {
            let mut talk = Talk::open(system.host(from), at(to, port), None, PATIENCE)
                .unwrap_or_else(|error| panic!("round {round}: {error:#}"));
            talk.exchange(5000).unwrap();
        }
        for node in ["node-a", "node-b"] {
            system.agent_mut(node).restart().unwrap();
        }
        connections.check(&format!("round {round}, while agents start"));
        for node in ["node-a", "node-b"] {
            system.agent_mut(node).wait_ready(SOON).unwrap();
        }
        connections.check(&format!("round {round}, with new agents"));
        bindings.check(&system, &format!("round {round}, with new agents"));
    }
    let ping = ping.finish(SOON).unwrap();
    assert!(ping.is_clean(), "{}", ping.summary());
    let datagrams = load.finish().unwrap();
    assert!(datagrams.is_clean(), "{datagrams:?}");
    for (name, node, to) in [("vm2", "node-a", SERVER1), ("vm4", "node-b", SERVER1)] {
        let rows = system.flows_with(node, &[system.workload(name).v4(), to]).unwrap();
        assert!(!rows.is_empty(), "{node} tells of {name}'s flow");
    }
}

/// C3: changes of the topology leave the connections and bindings alone that they are not about.
#[test]
fn c3_changes_keep_connections_and_bindings() {
    let mut topology = with_outside();
    let mut system = System::start(&topology).unwrap();
    let _services = furnish(&system);
    let (mut connections, bindings) = (Connections::open(&system), Bindings::open(&system));
    let ping = system.host("vm2").start_ping(SERVER2, 400, &["-i", "0.01"]).unwrap();
    let mut step = |topology: &Topology, what: &str| {
        system.apply(topology).unwrap();
        connections.check(what);
        bindings.check(&system, what);
    };
    topology.ports.push(standard_port("vm7", "web", 17, "node-a"));
    topology.ports.push(standard_port("vm8", "db", 18, "node-b"));
    step(&topology, "after ports were added");
    topology.networks.insert(0, Network::new("other", &[("other4", "10.0.9.0/24", "10.0.9.1")]));
    topology.router_mut("r1").interfaces.push("other4".to_owned());
    step(&topology, "after a network was added to the router");
    topology.floating_ips.push(FloatingIp::new("203.0.113.57", "vm7"));
    step(&topology, "after a floating IP was added");
    topology.add_group("new", &["{ direction: egress }"]);
    topology.put_into("vm8", &["new"]);
    step(&topology, "after a security group was added");
    topology.router_mut("r1").routes.push("{ destination: 198.18.99.0/24, nexthop: blackhole }".to_owned());
    step(&topology, "after a route was added");
    topology.floating_ips.pop();
    topology.ports.retain(|port| port.name != "vm7" && port.name != "vm8");
    step(&topology, "after all that was taken away again");
    let ping = ping.finish(SOON).unwrap();
    assert!(ping.is_clean(), "{}", ping.summary());
}

// ---- C8.

/// Entries of the flow tables: so few that a flood fills them in no time.
const FLOWS: u32 = 4096;
/// Packets of a flood: many times that.
const FLOOD: u32 = 30_000;
/// What is not answered is remembered so long as there is room, which does not depend on [`FLOWS`].
const TRANSIENT: usize = 65_536;
/// Ports of server1 and vm4 that say nothing at all.
const SILENT: std::ops::Range<u16> = 3000..4000;

/// From a workload to somebody behind its router.
fn towards(from: &Workload, to: &str) -> Addressing {
    Addressing {
        from: from.spec_mac(),
        to: from.gateway_mac(false).unwrap(),
        source: from.ip(false),
        destination: ip(to),
        ttl: 64,
    }
}

/// Runs a flood out of vm3 while connections of others go on, old ones and new ones, and are not slowed to a
/// crawl.
fn flooded(system: &System, what: &str, frames: impl Iterator<Item = Vec<u8>> + Send) {
    let (vm3, over) = (system.workload("vm3"), AtomicBool::new(false));
    let mut connections = Connections::open(system);
    let bindings = Bindings::open(system);
    let ping = system.host("vm2").start_ping(SERVER2, 100, &["-i", "0.02"]).unwrap();
    let sent = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let sent = vm3.flood(frames).unwrap();
            over.store(true, Ordering::SeqCst);
            sent
        });
        let mut rounds = 0;
        while !over.load(Ordering::SeqCst) || rounds == 0 {
            connections.check(what);
            rounds += 1;
        }
        flood.join().unwrap()
    });
    assert!(sent > u64::from(FLOOD / 2), "{what}: only {sent} went");
    connections.check(what);
    bindings.check(system, what);
    let ping = ping.finish(SOON).unwrap();
    assert!(ping.lost() * 50 <= ping.sent, "{what}: {}", ping.summary());
    // New ones begin as ever.
    for (from, to) in [("vm2", SERVER1), ("vm4", "10.0.2.16"), ("outside1", OF_VM1)] {
        Talk::open(system.host(from), at(to, 22), None, PATIENCE)
            .and_then(|mut talk| talk.exchange(1000))
            .unwrap_or_else(|error| panic!("{from} to {to} after {what}: {error:#}"));
    }
    for node in ["node-a", "node-b"] {
        for (map, most) in [("FLOWS", FLOWS as usize), ("TRANSIENT", TRANSIENT)] {
            let entries = system.entries(node, map).unwrap();
            assert!(entries <= most, "{what}: {entries} in {map} of {node}");
        }
    }
}

fn c8_syn_flood(system: &System) {
    let way = towards(system.workload("vm3"), SERVER1);
    let local = towards(system.workload("vm3"), "10.0.1.14");
    let frames = (0..3 * FLOOD).map(|i| {
        let way = if i % 2 == 0 { &way } else { &local };
        way.tcp_syn((i / 1000) as u16, SILENT.start + (i % 1000) as u16)
    });
    flooded(system, "a SYN flood", frames);
}

fn c8_udp_flood(system: &System) {
    let vm3 = system.workload("vm3");
    let ways = [SERVER2, "10.0.1.14", "10.0.1.11", OF_VM5].map(|to| towards(vm3, to));
    let frames = (0..FLOOD).map(|i| ways[i as usize % 4].udp((i / 60) as u16, 1000 + i as u16, b"flood"));
    flooded(system, "a UDP flood to random ports", frames);
}

fn c8_fragment_flood(system: &System) {
    let whole = towards(system.workload("vm3"), SERVER1).udp(1, 7, &noise(592));
    let frames = (0..FLOOD).map(|i| piece(&whole, i, 8 * (i as usize % 3), &whole[34..234], true));
    flooded(system, "a flood of fragments", frames);
}

fn c8_arp_flood(system: &System) {
    let vm3 = system.workload("vm3");
    let mac = vm3.spec_mac();
    let IpAddr::V4(own) = vm3.ip(false) else { unreachable!() };
    let frames = (0..FLOOD).map(|i| {
        let target = std::net::Ipv4Addr::new(10, 0, 2, (i % 254) as u8 + 1);
        Arp::request(mac, own, target).frame(mac, BROADCAST)
    });
    flooded(system, "an ARP flood", frames);
}

fn c8_flood_of_next_hops(system: &System) {
    // Every address of the external network, none of which answers.
    let vm3 = system.workload("vm3");
    let ways: Vec<Addressing> = (110..250).map(|last| towards_hop(vm3, last)).collect();
    let frames = (0..FLOOD).map(|i| ways[i as usize % ways.len()].udp((i / 100) as u16, 7, b"flood"));
    flooded(system, "a flood to next hops nobody has", frames);
}

fn towards_hop(vm3: &Workload, last: u8) -> Addressing {
    static GATEWAY: std::sync::OnceLock<Mac> = std::sync::OnceLock::new();
    let to = *GATEWAY.get_or_init(|| vm3.gateway_mac(false).unwrap());
    let destination = std::net::Ipv4Addr::new(203, 0, 113, last).into();
    Addressing { from: vm3.spec_mac(), to, source: vm3.ip(false), destination, ttl: 64 }
}

const FLOODS: &[Check<System>] = &[
    ("C8 SYN flood", c8_syn_flood),
    ("C8 UDP flood", c8_udp_flood),
    ("C8 fragment flood", c8_fragment_flood),
    ("C8 ARP flood", c8_arp_flood),
    ("C8 a flood of next hops", c8_flood_of_next_hops),
];

/// C8: floods from one port: others' connections go on, and memory stays bounded.
#[test]
fn c8_floods_disturb_nobody_else() {
    let options = AgentOptions { flow_entries: Some(FLOWS), ..AgentOptions::default() };
    let system = System::start_with(&with_outside(), &options).unwrap();
    let _services = furnish(&system);
    for name in ["server1", "vm4"] {
        let (first, last) = (SILENT.start, SILENT.end - 1);
        let rules = format!(
            "table inet silent {{ chain ingress_rules {{ type filter hook input priority 0;\n\
             tcp dport {first}-{last} drop\n}}\n}}\n"
        );
        system.host(name).netns().nft(&rules).unwrap();
    }
    check_all(&system, FLOODS);
}

// ---- L4.

/// The address that moves.
const VIP: [&str; 2] = ["10.0.1.100", "fd00:1::64"];
/// Its floating IP.
const OF_VIP: &str = "203.0.113.70";

/// vm1 and vm2 on node-a, vm4 on node-b may have the address; it is a port of its own, bound nowhere, so that it
/// can have a floating IP, as one has it with Neutron.
fn with_a_vip() -> Topology {
    let mut topology = with_outside();
    for name in ["vm1", "vm2", "vm4"] {
        let pairs = format!("allowed_address_pairs: [{{ ip: {} }}, {{ ip: \"{}\" }}]", VIP[0], VIP[1]);
        topology.port_mut(name).extra.push(pairs);
    }
    topology.ports.push(Port {
        name: "vip".to_owned(),
        network: "web".to_owned(),
        mac: "02:00:00:00:01:64".to_owned(),
        fixed_ips: VIP.map(str::to_owned).to_vec(),
        ..Port::default()
    });
    topology.floating_ips.push(FloatingIp::new(OF_VIP, "vip"));
    topology
}

/// Gives the address to one workload, which announces it as keepalived does.
fn take(system: &System, owner: &str) {
    for name in ["vm1", "vm2", "vm4"] {
        for address in VIP {
            // Whoever has it loses it.
            let _ = system.host(name).run(&format!("ip address del {address}/32 dev eth0"));
            let _ = system.host(name).run(&format!("ip address del {address}/128 dev eth0"));
        }
    }
    let workload = system.workload(owner);
    workload.run(&format!("ip address add {}/32 dev eth0", VIP[0])).unwrap();
    workload.run(&format!("ip address add {}/128 dev eth0 nodad", VIP[1])).unwrap();
    announce(workload);
}

/// A gratuitous ARP, as request and as reply, and an unsolicited neighbour advertisement.
fn announce(workload: &Workload) {
    let mac = workload.spec_mac();
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (ip(VIP[0]), ip(VIP[1])) else { unreachable!() };
    let request = Arp::request(mac, v4, v4);
    workload.raw_send(&request.frame(mac, BROADCAST)).unwrap();
    workload.raw_send(&Arp { operation: 2, target: BROADCAST, ..request }.frame(mac, BROADCAST)).unwrap();
    let everybody = Addressing {
        from: mac,
        to: [0x33, 0x33, 0, 0, 0, 1],
        source: v6.into(),
        destination: ip("ff02::1"),
        ttl: 255,
    };
    workload.raw_send(&everybody.neighbour(136, v6, 2, mac)).unwrap();
}

/// Whether a client's connections to an address arrive at `owner`, and not at another that may have it.
fn goes_to(client: &Host, address: &str, owner: &str) -> bool {
    let connects = |port| {
        let talk = Talk::open(client, at(address, port), None, SILENCE);
        talk.is_ok_and(|mut talk| talk.exchange(100).is_ok())
    };
    // Each tells itself apart by a port that only it serves.
    let own = |name: &str| OWN_PORTS.iter().find(|(other, _)| *other == name).map(|(_, port)| *port);
    own(owner).is_some_and(connects)
        && OWN_PORTS.iter().all(|(name, port)| *name == owner || !connects(*port))
}

const OWN_PORTS: [(&str, u16); 3] = [("vm1", 1001), ("vm2", 1002), ("vm4", 1004)];

/// L4: an address moves between ports by announcement: on the node, to the other node and back; clients of every
/// kind follow.
#[test]
fn l4_a_vip_moves_and_everybody_follows() {
    let system = System::start(&with_a_vip()).unwrap();
    let mut services = furnish(&system);
    for (name, port) in OWN_PORTS {
        services.add(system.host(name), &[port]).unwrap();
    }
    // A client on the network on either node; the owners are all there are, so add none: clients are the other
    // owners, routed ones on both nodes, and one outside.
    for owner in ["vm1", "vm4", "vm2", "vm1"] {
        take(&system, owner);
        for client in ["vm1", "vm2", "vm4", "vm3", "vm5", "vm6"].into_iter().filter(|name| *name != owner) {
            for is_v6 in FAMILIES {
                let address = VIP[usize::from(is_v6)];
                wait::until(&format!("{client} follows {address} to {owner}"), PATIENCE, || {
                    Ok(goes_to(system.host(client), address, owner))
                })
                .unwrap();
            }
        }
        for client in ["outside1", "server1", "vm6"] {
            wait::until(&format!("{client} follows {OF_VIP} to {owner}"), PATIENCE, || {
                Ok(goes_to(system.host(client), OF_VIP, owner))
            })
            .unwrap();
        }
        let talk = Talk::open(system.host("outside1"), at(OF_VIP, 7), None, PATIENCE).unwrap();
        assert_eq!(talk.seen().ip(), ip("203.0.113.101"));
    }
    // Who may not have it does not get it, however loudly it says so.
    let before = system.dropped("node-a", "spoofed_arp").unwrap();
    announce(system.workload("vm3"));
    for client in ["vm2", "vm4", "vm5"] {
        assert!(goes_to(system.host(client), VIP[0], "vm1"), "{client}");
    }
    assert!(system.dropped("node-a", "spoofed_arp").unwrap() > before);
    let router = Probe::udp(ip(SERVER1), 7).send(system.host("vm2")).unwrap().seen(ip(SERVER1));
    assert_eq!(router.map(|seen| seen.ip()), Some(ip(ROUTER)));
}
