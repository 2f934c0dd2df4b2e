//! The edge: nodes without an interface outside, gateways that carry for them and may go at any moment (behaviours N7,
//! N9, C7), virtual routers beside Debian's keepalived.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;
use vrouter_tests::frame::Frame;
use vrouter_tests::topology::{Topology, with_edge};
use vrouter_tests::{Agent, AgentOptions, Frr, Host, Lab, Probe, Report, Services, Sessions, System, wait};

const SOON: Duration = Duration::from_secs(20);
const MOMENT: Duration = Duration::from_millis(200);
const ROUTER: &str = "203.0.113.10";
const ROUTER6: &str = "2001:db8:ff::10";
const OF_VM1: &str = "203.0.113.51";
const SHARED: &str = "203.0.113.60";
const OUTSIDE1: &str = "203.0.113.101";
const OUTSIDE1_6: &str = "2001:db8:ff::101";
const SERVER1: &str = "198.51.100.10";
const GATEWAYS: [&str; 2] = ["gw-1", "gw-2"];
/// What a failover may take at default settings.
const OUTAGE: Duration = Duration::from_secs(1);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(text), port)
}

/// The virtual routers a node takes part in.
fn virtual_routers(agent: &Agent) -> Vec<Value> {
    let status = agent.status().unwrap();
    status["agent"]["edge"]["virtual_routers"].as_array().cloned().unwrap_or_default()
}

/// Whether a node is the master of all its virtual routers.
fn is_master(agent: &Agent) -> bool {
    let all = virtual_routers(agent);
    !all.is_empty() && all.iter().all(|it| it["state"] == "master")
}

/// Waits until a gateway is the master of everything, and no other of any.
#[track_caller]
fn wait_for_master(system: &System, name: &str, others: &[&str]) {
    wait::until(&format!("{name} alone is master"), SOON, || {
        let is_idle =
            |other: &&str| virtual_routers(system.agent(other)).iter().all(|it| it["state"] != "master");
        Ok(is_master(system.agent(name)) && others.iter().all(is_idle))
    })
    .unwrap();
}

/// The better of the two gateways and the other, when the better one is the master.
#[track_caller]
fn ranked(system: &System) -> [&'static str; 2] {
    let priority = |name: &str| virtual_routers(system.agent(name))[0]["priority"].as_u64().unwrap();
    let [one, two] = GATEWAYS;
    let [first, other] = if priority(one) > priority(two) { [one, two] } else { [two, one] };
    wait_for_master(system, first, &[other]);
    [first, other]
}

/// Waits until a node knows that the gateways are as expected.
#[track_caller]
fn wait_for_gateways(system: &mut System, node: &str, expected: &[(&str, &str)]) {
    let wanted = |status: &Value| {
        let all = status["agent"]["edge"]["gateways"].as_array().cloned().unwrap_or_default();
        expected.iter().all(|(name, state)| all.iter().any(|it| it["node"] == *name && it["state"] == *state))
    };
    let what = format!("see {expected:?}");
    system.agent_mut(node).wait_for_status(SOON, &what, wanted).unwrap();
}

/// Who answers for an address outside.
fn owners(host: &Host, own: &str, target: &str) -> Vec<[u8; 6]> {
    host.who_has(ip(own), ip(target), MOMENT).unwrap()
}

/// Waits until workloads reach a server outside: the first packets of a cold lab make the next hops.
#[track_caller]
fn wait_for_way_out(system: &System, workloads: &[&str], server: &str) {
    wait::until("the way out is open", SOON, || {
        Ok(workloads.iter().all(|vm| {
            Probe::udp(ip(server), 7).send(system.host(vm)).is_ok_and(|it| it.seen(ip(server)).is_some())
        }))
    })
    .unwrap();
}

fn edge() -> System {
    let mut system = System::start(&with_edge()).unwrap();
    for node in ["node-a", "node-b"] {
        wait_for_gateways(&mut system, node, &[("gw-1", "up"), ("gw-2", "up")]);
    }
    ranked(&system);
    system
}

/// N1, N2, N5, N6 through gateways; what they keep does not grow with connections.
#[test]
fn n9_nodes_without_a_way_out_are_carried_by_gateways_that_keep_nothing() {
    let system = edge();
    let services = Services::everywhere(&system, &[7, 22, 53]).unwrap();
    let seen = |from: &str, to: &str, probe: &Probe| {
        let outcome = probe.send(system.host(from)).unwrap();
        outcome.seen(ip(to)).unwrap_or_else(|| panic!("{from} to {to}: {outcome}"))
    };
    wait_for_way_out(&system, &["vm1", "vm2", "vm4", "vm5"], SERVER1);
    for (vm, expected) in [("vm1", OF_VM1), ("vm2", ROUTER), ("vm4", ROUTER), ("vm5", "203.0.113.55")] {
        for to in [SERVER1, OUTSIDE1] {
            assert_eq!(seen(vm, to, &Probe::udp(ip(to), 7)).ip(), ip(expected), "{vm} to {to}");
            let ping = Probe::ping(ip(to)).send(system.host(vm)).unwrap();
            assert!(ping.is_answer(ip(to)), "{vm} pings {to}: {ping}");
        }
    }
    // From outside, to a whole address and to a port of one.
    for from in ["outside1", "server1"] {
        assert!(
            Probe::udp(ip(OF_VM1), 7).send(system.host(from)).unwrap().seen(ip(OF_VM1)).is_some(),
            "{from}"
        );
        let ping = Probe::ping(ip(OF_VM1)).send(system.host(from)).unwrap();
        assert!(ping.is_answer(ip(OF_VM1)), "{ping}");
        assert!(
            Probe::udp(ip(SHARED), 5353).send(system.host(from)).unwrap().seen(ip(SHARED)).is_some(),
            "{from}"
        );
    }
    // Outside sees one owner of each address, with the virtual hardware address.
    let outside1 = system.host("outside1");
    for (own, address) in [(OUTSIDE1, ROUTER), (OUTSIDE1, OF_VM1), (OUTSIDE1, SHARED), (OUTSIDE1_6, ROUTER6)]
    {
        let macs = owners(outside1, own, address);
        let [mac] = macs[..] else { panic!("{address}: {macs:?}") };
        assert_eq!(mac[..5], [0, 0, 0x5e, 0, if address.contains(':') { 2 } else { 1 }], "{address}");
    }
    // Traceroute from outside shows the router once.
    let trace = system.host("server1").run(&format!("traceroute -n -q 1 -w 2 -m 6 {OF_VM1}")).unwrap();
    let hops: Vec<&str> = trace.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(hops, ["198.51.100.1", ROUTER, OF_VM1], "{trace}");
    // A large packet is refused at the sender with what the tunnel to the gateway carries.
    let large = system.host("server1").ping(OF_VM1, 2, &["-M", "do", "-s", "1440", "-W", "1"]).unwrap();
    assert!(large.received < 2 && large.complaints.iter().any(|line| line.contains("1450")), "{large:?}");

    // Two hundred connections more: the gateways have the same entries as before.
    let entries = |map: &str| GATEWAYS.map(|name| system.entries(name, map).unwrap());
    let before = (entries("FLOWS"), entries("TRANSIENT"));
    for round in 0..100 {
        for vm in ["vm1", "vm4"] {
            let udp = Probe::udp(ip(SERVER1), 7).from_port(30_000 + round);
            assert!(
                udp.send(system.host(vm)).unwrap().seen(ip(SERVER1)).is_some(),
                "{vm}: connection {round}"
            );
        }
    }
    let after = (entries("FLOWS"), entries("TRANSIENT"));
    assert_eq!((before.0, after.0), ([0, 0], [0, 0]), "connections on gateways");
    // The ways to blocks of 1024 ports of an address, which the configuration bounds; no connection's.
    for name in GATEWAYS {
        let flows = system.agent(name).flows().unwrap();
        let others: Vec<_> =
            flows.keys().filter(|key| !key.contains("proto 0") || !key.contains("from block")).collect();
        assert_eq!(others, [""; 0], "{name}");
        assert!(flows.len() <= 64 * 4, "{before:?} {after:?}");
    }
    drop(services);
}

/// N7: a floating IP moves to a port on another node: new connections follow at once, outside sees the same owner.
#[test]
fn n7_a_floating_ip_moves_to_another_node_behind_gateways() {
    let mut system = edge();
    let _services = Services::everywhere(&system, &[7]).unwrap();
    let outside1 = system.host("outside1");
    wait::until("vm1 is reached", SOON, || {
        Ok(Probe::udp(ip(OF_VM1), 7).send(outside1)?.seen(ip(OF_VM1)).is_some())
    })
    .unwrap();
    let before = owners(outside1, OUTSIDE1, OF_VM1);
    let mut topology = with_edge();
    topology.floating_mut(OF_VM1).port = "vm4".to_owned();
    let sniffers = ["vm1", "vm4"].map(|vm| system.host(vm).sniff().unwrap());
    system.apply(&topology).unwrap();
    let outside1 = system.host("outside1");
    for port in 5000..5010 {
        let probe = Probe::udp(ip(OF_VM1), 7).from_port(port);
        assert!(probe.send(outside1).unwrap().seen(ip(OF_VM1)).is_some(), "{port}");
    }
    let is_from_outside = |bytes: &[u8]| bytes.get(26..30) == Some(&[203, 0, 113, 101]);
    let [old, new] = sniffers.map(|sniffer| sniffer.collect(MOMENT, is_from_outside).unwrap().len());
    assert!(old == 0 && new >= 10, "vm1 got {old}, vm4 {new}");
    assert_eq!(owners(outside1, OUTSIDE1, OF_VM1), before);
    // Outwards, too: vm1 has the router's address now, vm4 the floating IP.
    for (vm, expected) in [("vm1", ROUTER), ("vm4", OF_VM1)] {
        let seen = Probe::udp(ip(OUTSIDE1), 7).send(system.host(vm)).unwrap().seen(ip(OUTSIDE1));
        assert_eq!(seen.map(|seen| seen.ip()), Some(ip(expected)), "{vm}");
    }
}

/// The time until another gateway is master follows from the interval; an agent whose topology is refused is never.
#[test]
fn c7_failover_is_as_fast_as_is_asked_for_and_only_the_fit_take_part() {
    let mut topology = with_edge();
    topology.router_mut("r1").gateway.as_mut().unwrap().vrrp = Some("{ interval_ms: 20 }".to_owned());
    let lab = Lab::builder().topology(&topology).build().unwrap();
    let unfit = lab.directory().join("unfit.yaml");
    std::fs::write(&unfit, topology.to_string().replace("vtep: 192.0.2.4", "vtep: nowhere")).unwrap();
    let mut gw1 = lab.start_agent("gw-1", &AgentOptions::default()).unwrap();
    let options = AgentOptions { topology: Some(unfit.clone()), ..AgentOptions::default() };
    let mut gw2 = lab.start_agent("gw-2", &options).unwrap();
    gw1.wait_ready(SOON * 3).unwrap();
    wait::until("gw-1 is master", SOON, || Ok(is_master(&gw1))).unwrap();
    gw2.wait_for_status(SOON, "refuse its topology", |status| {
        status["wanted"]["problems"].as_array().is_some_and(|problems| !problems.is_empty())
    })
    .unwrap();
    assert_eq!(virtual_routers(&gw2), Vec::<Value>::new());
    // Its topology is mended: it takes part.
    std::fs::write(&unfit, topology.to_string()).unwrap();
    let both = [&gw1, &gw2];
    wait::until("both take part, one is master", SOON, || {
        Ok(both.iter().filter(|agent| is_master(agent)).count() == 1
            && both.iter().all(|agent| virtual_routers(agent).len() == 2))
    })
    .unwrap();
    let [first, other] = if is_master(&gw1) { [&gw1, &gw2] } else { [&gw2, &gw1] };
    let external = first.node().external_port().to_owned();
    let (switch, outside1) = (lab.outside().switch().clone(), lab.host("outside1"));
    // As outside sees it: who announces the virtual router.
    let sniffer = outside1.sniff().unwrap();
    let cut = Instant::now();
    switch.ip(&[format!("link set {external} down")]).unwrap();
    let source = other.node().address().parse::<std::net::Ipv4Addr>().unwrap().octets();
    let is_other = |bytes: &[u8]| bytes.get(23) == Some(&112) && bytes.get(26..30) == Some(&source[..]);
    sniffer.expect(SOON, is_other).unwrap();
    println!("interval 20 ms: the other gateway announced itself {:?} after the cut", cut.elapsed());
}

/// Frames of both ends of a gateway's way, exact: TTL, hardware addresses, every checksum.
#[test]
fn n9_what_a_gateway_sends_is_exact() {
    let system = edge();
    let _services = Services::everywhere(&system, &[7]).unwrap();
    let outside1 = system.host("outside1");
    outside1.offloads_off().unwrap();
    for vm in ["vm1", "vm4"] {
        system.host(vm).offloads_off().unwrap();
    }
    wait_for_way_out(&system, &["vm1", "vm4"], OUTSIDE1);
    for (vm, address) in [("vm1", OF_VM1), ("vm4", ROUTER)] {
        let sniffer = outside1.sniff().unwrap();
        let udp = Probe::udp(ip(OUTSIDE1), 7).from_port(4444).length(333);
        let inside = system.host(vm).sniff().unwrap();
        assert!(udp.send(system.host(vm)).unwrap().seen(ip(OUTSIDE1)).is_some());
        let is_udp = |bytes: &[u8]| bytes.get(12..14) == Some(&[8, 0]) && bytes.get(23) == Some(&17);
        let request = Frame::check(&sniffer.expect(SOON, is_udp).unwrap()).unwrap();
        let packet = request.packet.unwrap();
        assert_eq!((packet.source, packet.ttl), (ip(address), 63), "{vm}");
        let answer = inside
            .expect(SOON, |bytes| is_udp(bytes) && bytes.get(26..30) == Some(&[203, 0, 113, 101]))
            .unwrap();
        let answer = Frame::check(&answer).unwrap().packet.unwrap();
        assert_eq!((answer.destination, answer.ttl), (system.workload(vm).ip(false), 63), "{vm}");
    }
}

/// Gateways with XDP outside and on the underlay: what passes them is a frame from one wire to the other.
#[test]
fn n9_gateways_pass_on_in_xdp() {
    let lab = Lab::builder().topology(&with_edge()).build().unwrap();
    // As frames look on real wires: no partial checksums, no super-packets; and veths that take frames from XDP.
    for name in ["vm1", "vm4", "server1", "outside1"] {
        lab.host(name).offloads_off().unwrap();
    }
    for interface in ["eth0", "eth1"] {
        lab.host("gw").netns().offloads_off(interface).unwrap();
    }
    let mut agents = std::collections::BTreeMap::new();
    for node in lab.nodes() {
        node.netns().offloads_off("eth0").unwrap();
        let is_gateway = GATEWAYS.contains(&node.name());
        let options = AgentOptions {
            uplink_hook: is_gateway.then(|| "xdp".to_owned()),
            extra: if is_gateway {
                ["--external-hook", "xdp"].map(str::to_owned).to_vec()
            } else {
                Vec::new()
            },
            ..AgentOptions::default()
        };
        if is_gateway {
            lab.underlay().run(&format!("ethtool -K {} gro on", node.underlay_port())).unwrap();
            let switch = lab.outside().switch();
            switch.run(&format!("ethtool -K {} gro on", node.external_port())).unwrap();
        }
        agents.insert(node.name().to_owned(), lab.start_agent(node.name(), &options).unwrap());
    }
    let mut system = System::adopt(agents, lab).unwrap();
    for node in ["node-a", "node-b"] {
        wait_for_gateways(&mut system, node, &[("gw-1", "up"), ("gw-2", "up")]);
    }
    let [first, _] = ranked(&system);
    for name in GATEWAYS {
        let status = system.agent(name).status().unwrap();
        for kind in ["uplinks", "externals"] {
            assert_eq!(status["agent"][kind][0]["xdp"], true, "{name}: {kind}");
        }
    }
    let _services = Services::everywhere(&system, &[7, 53]).unwrap();
    wait::until("the way out is open", SOON, || {
        Ok(["vm1", "vm4"].iter().all(|vm| {
            (23_000..23_008).all(|port| {
                let probe = Probe::udp(ip(SERVER1), 7).from_port(port);
                probe.send(system.host(vm)).is_ok_and(|it| it.seen(ip(SERVER1)).is_some())
            })
        }))
    })
    .unwrap();
    for (vm, expected) in [("vm1", OF_VM1), ("vm4", ROUTER)] {
        for port in 24_000..24_020 {
            let seen = Probe::udp(ip(SERVER1), 7).from_port(port).length(600).send(system.host(vm)).unwrap();
            assert_eq!(seen.seen(ip(SERVER1)).map(|seen| seen.ip()), Some(ip(expected)), "{vm} from {port}");
        }
        let ping = Probe::ping(ip(SERVER1)).length(1000).send(system.host(vm)).unwrap();
        assert!(ping.is_answer(ip(SERVER1)), "{ping}");
        let sessions = Sessions::start(system.host(vm), at(SERVER1, 7), 10, 10).unwrap();
        sessions.wait_for_more(200).unwrap();
        let report = sessions.finish().unwrap();
        assert_eq!((report.lost.len(), report.unanswered), (0, 0), "{report:?}");
    }
    let inward = Sessions::start(system.host("server1"), at(OF_VM1, 7), 10, 10).unwrap();
    inward.wait_for_more(200).unwrap();
    let report = inward.finish().unwrap();
    assert_eq!((report.lost.len(), report.unanswered), (0, 0), "{report:?}");
    // Outside sees whole frames.
    let sniffer = system.host("server1").sniff().unwrap();
    assert!(
        Probe::udp(ip(SERVER1), 7)
            .from_port(4444)
            .send(system.host("vm4"))
            .unwrap()
            .seen(ip(SERVER1))
            .is_some()
    );
    let is_udp = |bytes: &[u8]| bytes.get(12..14) == Some(&[8, 0]) && bytes.get(23) == Some(&17);
    let packet = Frame::check(&sniffer.expect(SOON, is_udp).unwrap()).unwrap().packet.unwrap();
    assert_eq!((packet.source, packet.ttl), (ip(ROUTER), 62), "through r1 and gw");
    for name in GATEWAYS {
        assert_eq!(system.entries(name, "FLOWS").unwrap(), 0);
        assert_eq!(system.dropped(name, "internal").unwrap(), 0);
    }
    // And without its agent, as in TC.
    let load = Sessions::start(system.host("vm4"), at(SERVER1, 7), 20, 20).unwrap();
    system.agent_mut(first).kill9();
    load.wait_for_more(500).unwrap();
    let report = load.finish().unwrap();
    assert_eq!((report.lost.len(), report.unanswered), (0, 0), "{report:?}");
}

/// Sessions of every kind through the gateways.
struct Load {
    kinds: Vec<(&'static str, Sessions)>,
}

/// What it is, who starts it, with whom, over TCP and over UDP.
type Kind = (&'static str, &'static str, &'static str, usize, usize);

/// Through an L2 network, where hosts are beside the routers.
const BESIDE: [Kind; 6] = [
    ("SNAT", "vm4", SERVER1, 40, 10),
    ("SNAT", "vm2", SERVER1, 40, 10),
    ("floating IP, out", "vm1", SERVER1, 40, 10),
    ("floating IP, in", "server1", OF_VM1, 40, 10),
    ("port forwarding", "outside1", SHARED, 0, 10),
    ("SNAT to a host beside", "vm6", OUTSIDE1, 40, 10),
];

/// Through a routed network, where none are.
const BEYOND: [Kind; 5] = [
    ("SNAT", "vm4", SERVER1, 50, 15),
    ("SNAT", "vm2", SERVER1, 50, 15),
    ("floating IP, out", "vm1", SERVER1, 50, 15),
    ("floating IP, in", "server1", OF_VM1, 50, 10),
    ("port forwarding", "server2", SHARED, 0, 5),
];

impl Load {
    fn start(system: &System, kinds: &[Kind]) -> Result<Self> {
        let kinds = kinds.iter().map(|&(kind, from, to, tcp, udp)| {
            let port = if to == SHARED { 5353 } else { 7 };
            Ok((kind, Sessions::start(system.host(from), at(to, port), tcp, udp)?))
        });
        Ok(Self { kinds: kinds.collect::<Result<_>>()? })
    }

    /// Every kind is answered.
    fn flows(&self) {
        for (kind, sessions) in &self.kinds {
            sessions.wait_for_more(20).with_context(|| (*kind).to_owned()).unwrap();
        }
    }

    /// No session was lost; prints what each kind noticed.
    #[track_caller]
    fn finish(self, what: &str) -> Report {
        let mut all = Report::default();
        for (kind, sessions) in self.kinds {
            let report = sessions.finish().unwrap();
            println!(
                "{what}: {kind}: {} TCP sessions, {} UDP flows, longest pause TCP {:?} UDP {:?}, {} datagrams unanswered",
                report.sessions.0,
                report.sessions.1,
                report.longest_tcp,
                report.longest_udp,
                report.unanswered
            );
            all = all.with(&report);
        }
        assert_eq!(all.lost, [""; 0], "{what}: sessions were lost");
        assert_eq!(all.sessions, (200, 60));
        all
    }
}

/// C7: gateways die, are cut off, restart, return, one after the other; no session is lost.
#[test]
fn c7_gateways_come_and_go_under_two_hundred_sessions() {
    let mut system = edge();
    let _services = Services::everywhere(&system, &[7, 53]).unwrap();
    wait_for_way_out(&system, &["vm1", "vm2", "vm4", "vm6"], SERVER1);
    for _ in 0..2 {
        let [first, other] = ranked(&system);
        // The agent dies: its node carries on until the other is there; nothing at all is lost.
        let load = Load::start(&system, &BESIDE).unwrap();
        load.flows();
        system.agent_mut(first).kill9();
        wait_for_master(&system, other, &[]);
        load.flows();
        let report = load.finish(&format!("{first}: agent killed"));
        assert_eq!(report.unanswered, 0, "the data path of a dead agent carries on");
        system.agent_mut(first).restart().unwrap();
        system.agent_mut(first).wait_ready(SOON * 3).unwrap();
        wait_for_gateways(&mut system, "node-a", &[(first, "up"), (other, "up")]);
        wait_for_gateways(&mut system, "node-b", &[(first, "up"), (other, "up")]);
        // It is the better one: it takes over again.
        wait_for_master(&system, first, &[other]);
        // The whole node goes: both its links are cut at once.
        let load = Load::start(&system, &BESIDE).unwrap();
        load.flows();
        let (underlay, port) = (system.underlay().clone(), system.node(first).underlay_port().to_owned());
        let (switch, external) =
            (system.outside().switch().clone(), system.node(first).external_port().to_owned());
        let cut = Instant::now();
        underlay.ip(&[format!("link set {port} down")]).unwrap();
        switch.ip(&[format!("link set {external} down")]).unwrap();
        wait_for_master(&system, other, &[]);
        println!("{first}: cut off, {other} is master after {:?}", cut.elapsed());
        load.flows();
        let report = load.finish(&format!("{first}: node gone"));
        assert!(report.longest_udp < OUTAGE + Duration::from_millis(500), "outage {:?}", report.longest_udp);
        // It was a reboot: nothing is left of it in its kernel. It returns while traffic flows.
        system.agent_mut(first).kill9();
        let pins = std::path::Path::new("/sys/fs/bpf/vrouter").join(system.agent(first).instance());
        std::fs::remove_dir_all(&pins).unwrap();
        let load = Load::start(&system, &BESIDE).unwrap();
        underlay.ip(&[format!("link set {port} up")]).unwrap();
        switch.ip(&[format!("link set {external} up")]).unwrap();
        system.agent_mut(first).restart().unwrap();
        system.agent_mut(first).wait_ready(SOON * 3).unwrap();
        wait_for_gateways(&mut system, "node-a", &[(first, "up"), (other, "up")]);
        wait_for_master(&system, first, &[other]);
        load.flows();
        let report = load.finish(&format!("{first}: node back"));
        assert!(report.longest_udp < OUTAGE, "outage {:?}", report.longest_udp);
        // A clean stop hands over.
        let load = Load::start(&system, &BESIDE).unwrap();
        system.agent_mut(first).stop().unwrap();
        wait_for_master(&system, other, &[]);
        load.flows();
        let report = load.finish(&format!("{first}: agent stopped"));
        assert_eq!(report.unanswered, 0);
        system.agent_mut(first).restart().unwrap();
        system.agent_mut(first).wait_ready(SOON * 3).unwrap();
        wait_for_master(&system, first, &[other]);
        for node in ["node-a", "node-b"] {
            wait_for_gateways(&mut system, node, &[(first, "up"), (other, "up")]);
        }
    }
}

/// Only the interface outside fails: the gateway says so itself, to the nodes and to the other gateway.
#[test]
fn c7_a_gateway_that_loses_its_interface_steps_back_at_once() {
    let mut system = edge();
    let _services = Services::everywhere(&system, &[7, 53]).unwrap();
    let [first, other] = ranked(&system);
    let load = Load::start(&system, &BESIDE).unwrap();
    load.flows();
    system.node(first).netns().ip(&["link set ext0 down"]).unwrap();
    wait_for_gateways(&mut system, "node-a", &[(first, "admin_down"), (other, "up")]);
    wait_for_master(&system, other, &[]);
    let off = virtual_routers(system.agent(first));
    assert!(off.iter().all(|it| it["state"] == "off" && it["note"] == "interface ext0 is down"), "{off:?}");
    load.flows();
    let report = load.finish(&format!("{first}: interface down"));
    assert!(report.longest_udp < OUTAGE + Duration::from_millis(500), "{:?}", report.longest_udp);
    let shown = system.agent(first).vrouter(&["show", "gateways"]).unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("interface ext0 is down"));
    system.node(first).netns().ip(&["link set ext0 up"]).unwrap();
    wait_for_master(&system, first, &[other]);
}

/// A former master carries for three seconds what is still sent to it, of flows that it knows as well; then no more.
#[test]
fn c7_a_former_master_carries_for_a_moment_and_no_longer() {
    let mut topology = with_edge();
    topology.router_mut("r1").gateway.as_mut().unwrap().vrrp = Some("{ vrid: 7 }".to_owned());
    let mut system = System::start(&topology).unwrap();
    wait_for_gateways(&mut system, "node-a", &[("gw-1", "up"), ("gw-2", "up")]);
    let [first, other] = ranked(&system);
    let _services = Services::everywhere(&system, &[7]).unwrap();
    let outside2 = system.host("outside2");
    // It never hears that it is another now.
    let to = format!("{OF_VM1} lladdr 00:00:5e:00:01:07 dev eth0 nud permanent");
    outside2.netns().ip(&[format!("neighbour replace {to}")]).unwrap();
    let is_answered = || {
        let sent = Probe::udp(ip(OF_VM1), 7).from_port(4000).send(outside2);
        sent.unwrap().seen(ip(OF_VM1)).is_some()
    };
    wait::until("the way is open", SOON, || Ok(is_answered())).unwrap();
    let mut better = Keepalived::start(&system, system.host("outside1"), 7, 254, true).unwrap();
    better.process.wait_for_text("Entering MASTER STATE", SOON).unwrap();
    let v4 = |name: &str| virtual_routers(system.agent(name)).into_iter().find(|it| it["family"] == "ipv4");
    wait::until("both are backup", SOON, || {
        Ok([first, other].iter().all(|name| v4(name).is_some_and(|it| it["state"] == "backup")))
    })
    .unwrap();
    let start = Instant::now();
    assert!(is_answered(), "not at once");
    wait::until("it carries no more", SOON, || Ok(!is_answered())).unwrap();
    println!("carried {:?} more", start.elapsed());
    assert!(start.elapsed() > Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(!is_answered());
    // As the master it carries again.
    better.process.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    wait_for_master(&system, first, &[other]);
    wait::until("it carries again", SOON, || Ok(is_answered())).unwrap();
}

/// A master whose agent cannot bring a new topology in force carries by the one that is, and stays master.
#[test]
fn c7_a_topology_that_cannot_come_in_force_moves_nothing() {
    let mut system = edge();
    let _services = Services::everywhere(&system, &[7, 53]).unwrap();
    let [first, other] = ranked(&system);
    let load = Load::start(&system, &BESIDE).unwrap();
    load.flows();
    let before = virtual_routers(system.agent(first))[0]["transitions"].clone();
    // Neither can write what is new.
    for name in GATEWAYS {
        system.agent(name).freeze_map("ROUTES").unwrap();
    }
    let mut topology = with_edge();
    topology.router_mut("r1").routes.push("{ destination: 198.18.0.0/15, nexthop: blackhole }".into());
    system.write_topology(&topology).unwrap();
    for name in GATEWAYS {
        system
            .agent_mut(name)
            .wait_for_status(SOON, "say that it is not in force", |status| {
                !status["agent"]["error"].is_null()
            })
            .unwrap();
    }
    load.flows();
    std::thread::sleep(Duration::from_secs(2));
    let report = load.finish("a topology that cannot come in force");
    assert_eq!(report.unanswered, 0);
    assert!(is_master(system.agent(first)) && !is_master(system.agent(other)));
    assert_eq!(virtual_routers(system.agent(first))[0]["transitions"], before);
}

/// The link between the gateways is cut, and both still reach outside: each part has one announcer, and when it
/// heals there is one again.
#[test]
fn c7_no_split_brain_when_the_link_between_gateways_is_cut() {
    let system = edge();
    let [first, other] = ranked(&system);
    let outside1 = system.host("outside1");
    let switch = system.outside().switch().clone();
    // A wire that loses only announcements: nothing of VRRP passes the bridge.
    switch
        .nft("table bridge cut { chain forward { type filter hook forward priority 0;\nether daddr 01:00:5e:00:00:12 drop\nether daddr 33:33:00:00:00:12 drop\n}\n}\n")
        .unwrap();
    let both = || GATEWAYS.iter().filter(|name| is_master(system.agent(name))).count();
    wait::until("neither hears the other", SOON, || Ok(both() == 2)).unwrap();
    switch.nft("delete table bridge cut\n").unwrap();
    let healed = Instant::now();
    wait_for_master(&system, first, &[other]);
    println!("one master again after {:?}", healed.elapsed());
    let macs: BTreeSet<[u8; 6]> = owners(outside1, OUTSIDE1, ROUTER).into_iter().collect();
    assert_eq!(macs.len(), 1);
    // One answer, not two of the same.
    assert_eq!(owners(outside1, OUTSIDE1, ROUTER).len(), 1);
}

/// C8: whoever floods the wire with announcements that do not count neither moves a router nor silences its master.
#[test]
fn c8_a_flood_of_worthless_announcements_moves_nothing() {
    let system = edge();
    let [first, other] = ranked(&system);
    let transitions = |name: &str| -> Vec<Value> {
        virtual_routers(system.agent(name)).iter().map(|it| it["transitions"].clone()).collect()
    };
    let vrid = virtual_routers(system.agent(first))[0]["vrid"].as_u64().unwrap() as u8;
    let before = (transitions(first), transitions(other));
    // Of the router's VRID, with the highest priority, and a checksum that is wrong; and noise.
    let mut frame = vec![1, 0, 0x5e, 0, 0, 0x12, 2, 0, 0, 0, 0, 9, 8, 0];
    frame.extend([0x45, 0xc0, 0, 32, 0, 0, 0, 0, 255, 112, 0, 0, 203, 0, 113, 101, 224, 0, 0, 18]);
    let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let noise = frame.clone();
    frame.extend([0x31, vrid, 255, 1, 0, 1, 0xde, 0xad, 203, 0, 113, 10]);
    let host = system.host("outside1");
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < Duration::from_secs(4) {
        let frames = (0..5000).map(|i| if i % 4 == 0 { noise.clone() } else { frame.clone() });
        sent += host.flood(frames).unwrap();
    }
    println!("{} announcements a second", sent / 4);
    assert_eq!((transitions(first), transitions(other)), before);
    let told = &virtual_routers(system.agent(first))[0];
    assert!(told["refused"]["checksum"].as_u64() > Some(1000), "{told}");
    assert!(is_master(system.agent(first)));
}

// ---- several next hops ----

/// R2: flows share two next hops outside, each flow one of them; one dies, and is left in time; no session is lost.
/// So it is with workloads as next hops.
#[test]
fn r2_several_next_hops_share_and_a_dead_one_is_left() {
    let mut topology = with_edge();
    // Two hosts beside forward to the servers, and two workloads to nowhere.
    topology.router_mut("r1").routes = vec![
        "{ destination: 198.51.100.0/24, nexthops: [203.0.113.101, 203.0.113.102] }".to_owned(),
        "{ destination: 10.99.0.0/16, nexthops: [10.0.2.13, 10.0.2.16] }".to_owned(),
    ];
    for vm in ["vm3", "vm6"] {
        topology.port_mut(vm).extra.push("port_security: false".to_owned());
        topology.port_mut(vm).security_groups = Some(Vec::new());
    }
    let mut system = System::start(&topology).unwrap();
    for node in ["node-a", "node-b"] {
        wait_for_gateways(&mut system, node, &[("gw-1", "up"), ("gw-2", "up")]);
    }
    ranked(&system);
    let _services = Services::everywhere(&system, &[7]).unwrap();
    let hops = ["outside1", "outside2"].map(|name| system.host(name));
    for host in hops {
        host.netns().set_sysctl("ipv4/ip_forward", "1").unwrap();
        host.netns().set_sysctl("ipv4/conf/all/send_redirects", "0").unwrap();
        host.netns().set_sysctl("ipv4/conf/eth0/send_redirects", "0").unwrap();
    }
    wait::until("the way out is open", SOON, || {
        let seen = |vm| {
            let mut from = 20_000..20_010;
            from.all(|port| {
                let probe = Probe::udp(ip(SERVER1), 7).from_port(port);
                probe.send(system.host(vm)).is_ok_and(|it| it.seen(ip(SERVER1)).is_some())
            })
        };
        Ok(["vm1", "vm4"].into_iter().all(seen))
    })
    .unwrap();
    // Each flow has one way, and both ways have flows.
    let is_for_server = |bytes: &[u8]| {
        bytes.get(12..14) == Some(&[8, 0])
            && bytes.get(30..34) == Some(&[198, 51, 100, 10])
            && bytes.get(23) == Some(&17)
    };
    let sniffers = hops.map(|host| host.sniff().unwrap());
    for round in 0..2 {
        for port in 21_000..21_040 {
            let probe = Probe::udp(ip(SERVER1), 7).from_port(port).length(100 + round);
            assert!(probe.send(system.host("vm4")).unwrap().seen(ip(SERVER1)).is_some(), "{port}");
        }
    }
    let macs = hops.map(|host| host.mac().unwrap());
    let ports = |index: usize| -> BTreeSet<[u8; 2]> {
        let frames =
            sniffers[index].collect(MOMENT, |bytes| is_for_server(bytes) && bytes[..6] == macs[index]);
        frames.unwrap().iter().map(|bytes| [bytes[34], bytes[35]]).collect()
    };
    let (first, second) = (ports(0), ports(1));
    assert!(first.len() > 8 && second.len() > 8, "{} and {}", first.len(), second.len());
    assert_eq!(first.intersection(&second).count(), 0, "a flow takes one way");
    // One dies.
    let load = [("vm4", SERVER1), ("vm1", SERVER1)]
        .map(|(from, to)| Sessions::start(system.host(from), at(to, 7), 50, 20).unwrap());
    hops[1].netns().ip(&["link set eth0 down"]).unwrap();
    wait::until("gw-1 and gw-2 leave it", SOON, || {
        Ok(GATEWAYS.iter().all(|name| {
            let shown = system.agent(name).json(&["show", "routes"]).unwrap_or_default();
            let routes = shown.as_array().cloned().unwrap_or_default();
            routes.iter().any(|route| route["nexthop"] == "203.0.113.101 (100 %)")
        }))
    })
    .unwrap();
    let report = load
        .into_iter()
        .map(|sessions| {
            sessions.wait_for_more(50).unwrap();
            sessions.finish().unwrap()
        })
        .fold(Report::default(), |all, report| all.with(&report));
    println!("a next hop died: longest pause TCP {:?} UDP {:?}", report.longest_tcp, report.longest_udp);
    assert_eq!(report.lost, [""; 0]);
    assert!(report.longest_udp < Duration::from_secs(3), "{:?}", report.longest_udp);
    // It is back, and has its share again.
    hops[1].netns().ip(&["link set eth0 up"]).unwrap();
    hops[1].run("ip route replace default via 203.0.113.1").unwrap();
    wait::until("it is used again", SOON, || {
        let shown = system.agent("gw-1").json(&["show", "routes"])?;
        Ok(shown.to_string().contains("203.0.113.102 ("))
    })
    .unwrap();

    // Workloads as next hops: the one that is unplugged is left by its own node at once.
    let arrived = |vm: &str| {
        let sniffer = system.host(vm).sniff().unwrap();
        for port in 22_000..22_040 {
            let _ = Probe::udp("10.99.1.1".parse().unwrap(), 9)
                .from_port(port)
                .timeout(Duration::from_millis(5))
                .send(system.host("vm1"));
        }
        let frames = sniffer.collect(MOMENT, |bytes| bytes.get(30..34) == Some(&[10, 99, 1, 1])).unwrap();
        frames.iter().map(|bytes| [bytes[34], bytes[35]]).collect::<BTreeSet<_>>().len()
    };
    let (third, sixth) = (arrived("vm3"), arrived("vm6"));
    assert!(third > 8 && sixth > 8 && third + sixth == 40, "{third} and {sixth}");
    system.workload("vm3").unplug().unwrap();
    wait::until("all go to vm6", SOON, || Ok(arrived("vm6") == 40)).unwrap();
}

// ---- keepalived ----

/// Debian's keepalived on a host outside, for the router's addresses.
struct Keepalived {
    process: vrouter_tests::Process,
}

impl Keepalived {
    fn start(lab: &Lab, host: &Host, vrid: u8, priority: u8, preempt: bool) -> Result<Self> {
        let directory = lab.directory();
        let own = ip(OUTSIDE1);
        let nopreempt = if preempt { "" } else { "nopreempt" };
        let config = format!(
            "global_defs {{\n  vrrp_version 3\n  vrrp_garp_master_delay 0\n}}\n\
             vrrp_instance four {{\n  state BACKUP\n  interface eth0\n  virtual_router_id {vrid}\n  priority {priority}\n  \
             advert_int 0.2\n  {nopreempt}\n  mcast_src_ip {own}\n  virtual_ipaddress {{\n    {ROUTER}/32 dev eth0\n  }}\n}}\n"
        );
        let path = directory.join(format!("keepalived-{priority}.conf"));
        std::fs::write(&path, config)?;
        let pid = |name: &str| directory.join(format!("{name}.pid")).display().to_string();
        let mut command = host.command("keepalived");
        command.args(["--dont-fork", "--log-console", "--log-detail", "--vrrp"]);
        command.args(["--use-file", &path.display().to_string()]);
        command.args([
            "--pid",
            &pid("keepalived"),
            "--vrrp_pid",
            &pid("vrrp"),
            "--checkers_pid",
            &pid("checkers"),
        ]);
        Ok(Self { process: vrouter_tests::Process::spawn(&mut command)? })
    }
}

/// One node takes part in a virtual router with keepalived: as its backup, as its master, with and without preemption.
#[test]
fn vrrp_works_with_keepalived() {
    let mut topology: Topology = with_edge();
    topology.router_mut("r1").gateway.as_mut().unwrap().vrrp = Some("{ vrid: 7 }".to_owned());
    let lab = Lab::builder().topology(&topology).build().unwrap();
    // Only one of the two gateways runs.
    let mut gateway = lab.start_agent("gw-1", &AgentOptions::default()).unwrap();
    gateway.wait_ready(SOON * 3).unwrap();
    let v4 = |agent: &Agent| virtual_routers(agent).into_iter().find(|it| it["family"] == "ipv4").unwrap();
    wait::until("gw-1 is master", SOON, || Ok(v4(&gateway)["state"] == "master")).unwrap();
    let own = u8::try_from(v4(&gateway)["priority"].as_u64().unwrap()).unwrap();
    let host = lab.host("outside1");
    let has_address = || Ok(host.run("ip -4 -o address show dev eth0")?.contains(&format!("{ROUTER}/32")));

    // A better one comes: it preempts, and this node is silent.
    let mut better = Keepalived::start(&lab, host, 7, 254, true).unwrap();
    better.process.wait_for_text("Entering MASTER STATE", SOON).unwrap();
    wait::until("gw-1 is backup", SOON, || Ok(v4(&gateway)["state"] == "backup")).unwrap();
    wait::until("keepalived has the address", SOON, has_address).unwrap();
    let told = v4(&gateway);
    assert_eq!(
        (told["master"].as_str(), told["master_priority"].as_u64()),
        (Some(OUTSIDE1), Some(254)),
        "{told}"
    );
    assert!(told["refused"].as_object().unwrap().is_empty(), "{told}");
    assert!(told["note"].is_null(), "{told}");
    let outside2 = lab.host("outside2");
    assert_eq!(owners(outside2, "203.0.113.102", ROUTER), [host.mac().unwrap()]);
    // It gives up: priority 0 is understood at once.
    let stopped = Instant::now();
    better.process.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    wait::until("gw-1 is master again", SOON, || Ok(v4(&gateway)["state"] == "master")).unwrap();
    println!("master {:?} after keepalived was told to stop", stopped.elapsed());
    better.process.wait(SOON).unwrap();
    assert_eq!(owners(outside2, "203.0.113.102", ROUTER), [[0, 0, 0x5e, 0, 1, 7]]);

    // A worse one comes and stays backup: it accepts this node's announcements.
    let mut worse = Keepalived::start(&lab, host, 7, own - 50, true).unwrap();
    worse.process.wait_for_text("Entering BACKUP STATE", SOON).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(!worse.process.printed().contains("Entering MASTER STATE"), "{}", worse.process.printed());
    assert!(!has_address().unwrap());
    assert_eq!(v4(&gateway)["state"], "master");
    // This node goes: keepalived takes over at once, having read the farewell.
    gateway.stop().unwrap();
    worse.process.wait_for_text("Entering MASTER STATE", SOON).unwrap();
    wait::until("keepalived has the address", SOON, has_address).unwrap();
    // Without an agent, the data path has heard the other and is silent.
    assert_eq!(owners(outside2, "203.0.113.102", ROUTER), [host.mac().unwrap()]);
    // It returns and preempts; keepalived yields.
    gateway.restart().unwrap();
    gateway.wait_ready(SOON * 3).unwrap();
    wait::until("gw-1 is master", SOON, || Ok(v4(&gateway)["state"] == "master")).unwrap();
    wait::until("keepalived has yielded", SOON, || Ok(!has_address()?)).unwrap();
    drop(worse);

    // Without preemption a better one that comes later leaves the master alone.
    let before = v4(&gateway)["transitions"].clone();
    let polite = Keepalived::start(&lab, host, 7, 254, false).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(!polite.process.printed().contains("Entering MASTER STATE"), "{}", polite.process.printed());
    assert_eq!((&v4(&gateway)["state"], &v4(&gateway)["transitions"]), (&Value::from("master"), &before));
    drop(polite);
    topology.router_mut("r1").gateway.as_mut().unwrap().vrrp = Some("{ vrid: 7, preempt: false }".to_owned());
    lab.write_topology(&topology).unwrap();
    wait::until("gw-1 does not preempt", SOON, || Ok(v4(&gateway)["preempt"] == false)).unwrap();
    gateway.stop().unwrap();
    let mut low = Keepalived::start(&lab, host, 7, 10, true).unwrap();
    low.process.wait_for_text("Entering MASTER STATE", SOON).unwrap();
    gateway.restart().unwrap();
    gateway.wait_ready(SOON * 3).unwrap();
    wait::until("gw-1 is backup", SOON, || Ok(v4(&gateway)["state"] == "backup")).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(v4(&gateway)["state"], "backup", "it leaves the worse one alone");
    low.process.kill();
    wait::until("gw-1 is master", SOON, || Ok(v4(&gateway)["state"] == "master")).unwrap();
}

// ---- BGP ----

const GW_AS: u32 = 65000;
const OUR_AS: u32 = 65001;

/// The edge with a routed external network: both gateways are neighbours of `gw` upstream, by Debian's FRR.
struct Routed {
    /// Of gw-1, gw-2, and the router upstream.
    frr: Vec<Frr>,
    system: System,
}

impl Routed {
    fn start() -> Self {
        let mut topology = with_edge();
        let public = topology.network_mut("public");
        public.routed = true;
        for subnet in &mut public.subnets {
            subnet.gateway = None;
        }
        let lab = Lab::builder().topology(&topology).build().unwrap();
        // Nobody but routers is on the link, with addresses of its own.
        let upstream = lab.host("gw").netns().clone();
        for line in [
            "address del 203.0.113.1/24 dev eth0",
            "address del 2001:db8:ff::1/64 dev eth0",
            "address add 100.64.0.254/24 dev eth0",
        ] {
            upstream.run(&format!("ip {line}")).unwrap();
        }
        upstream.run("ip -6 address add fd64::254/64 dev eth0 nodad").unwrap();
        // By flow, not by pair of addresses.
        for family in ["ipv4", "ipv6"] {
            upstream.set_sysctl(&format!("{family}/fib_multipath_hash_policy"), "1").unwrap();
        }
        let sockets = |name: &str| lab.directory().join(format!("frr-{name}"));
        let mut frr = Vec::new();
        let mut neighbours = String::new();
        for (name, number) in GATEWAYS.into_iter().zip(1..) {
            let netns = lab.node(name).netns();
            netns.set_sysctl("ipv6/conf/ext0/disable_ipv6", "0").unwrap();
            netns.ip(&[format!("address add 100.64.0.{number}/24 dev ext0")]).unwrap();
            netns.run(&format!("ip -6 address add fd64::{number}/64 dev ext0 nodad")).unwrap();
            let config = format!(
                "router bgp {OUR_AS}\n bgp router-id 100.64.0.{number}\n no bgp ebgp-requires-policy\n \
                 timers bgp 1 3\n neighbor 100.64.0.254 remote-as {GW_AS}\n neighbor 100.64.0.254 bfd\n \
                 neighbor fd64::254 remote-as {GW_AS}\n neighbor fd64::254 bfd\n \
                 address-family ipv4 unicast\n  redistribute kernel route-map VROUTER\n  no neighbor fd64::254 activate\n exit-address-family\n \
                 address-family ipv6 unicast\n  redistribute kernel route-map VROUTER6\n  neighbor fd64::254 activate\n exit-address-family\n\
                 ip prefix-list OURS seq 5 permit 203.0.113.0/24 ge 32\n\
                 ipv6 prefix-list OURS6 seq 5 permit 2001:db8:ff::/64 ge 128\n\
                 route-map VROUTER permit 10\n match ip address prefix-list OURS\n\
                 route-map VROUTER6 permit 10\n match ipv6 address prefix-list OURS6\n"
            );
            frr.push(Frr::start(netns, &sockets(name), &config).unwrap());
            for peer in [format!("100.64.0.{number}"), format!("fd64::{number}")] {
                neighbours += &format!(" neighbor {peer} remote-as {OUR_AS}\n neighbor {peer} bfd\n");
            }
        }
        let config = format!(
            "router bgp {GW_AS}\n bgp router-id 100.64.0.254\n no bgp ebgp-requires-policy\n timers bgp 1 3\n{neighbours} \
             address-family ipv4 unicast\n  neighbor 100.64.0.1 default-originate\n  neighbor 100.64.0.2 default-originate\n  \
             no neighbor fd64::1 activate\n  no neighbor fd64::2 activate\n  maximum-paths 4\n exit-address-family\n \
             address-family ipv6 unicast\n  neighbor fd64::1 activate\n  neighbor fd64::2 activate\n  \
             neighbor fd64::1 default-originate\n  neighbor fd64::2 default-originate\n  maximum-paths 4\n exit-address-family\n"
        );
        frr.push(Frr::start(&upstream, &sockets("gw"), &config).unwrap());
        let mut agents = std::collections::BTreeMap::new();
        for node in ["node-a", "node-b", "gw-1", "gw-2"] {
            let sockets = sockets(node).display().to_string();
            let extra = vec!["--frr-sockets".to_owned(), sockets];
            let options = AgentOptions { extra, ..AgentOptions::default() };
            agents.insert(node.to_owned(), lab.start_agent(node, &options).unwrap());
        }
        let mut system = System::adopt(agents, lab).unwrap();
        for node in ["node-a", "node-b"] {
            wait_for_gateways(&mut system, node, &[("gw-1", "up"), ("gw-2", "up")]);
        }
        let routed = Self { frr, system };
        routed.wait_for_paths(ROUTER, &[1, 2]);
        routed
    }

    /// Waits until the router upstream reaches an address by these gateways, and no others.
    #[track_caller]
    fn wait_for_paths(&self, address: &str, gateways: &[u8]) {
        let upstream = self.system.host("gw");
        wait::until(&format!("{address} is reached by gateways {gateways:?}"), SOON, || {
            let family = if address.contains(':') { "-6" } else { "-4" };
            let shown = upstream.run(&format!("ip {family} route show exact {address}"))?;
            if address.contains(':') {
                // By link-local addresses: as many as there are gateways.
                return Ok(shown.matches("via fe80").count() == gateways.len());
            }
            let is_by = |number: u8| shown.contains(&format!("via 100.64.0.{number} "));
            Ok([1, 2].into_iter().all(|number| is_by(number) == gateways.contains(&number)))
        })
        .unwrap();
    }

    fn bgp(&self, node: &str) -> Value {
        self.system.agent(node).status().unwrap()["agent"]["bgp"].clone()
    }
}

/// C7 by BGP: all gateways carry at once; one dies, is cut off, loses its daemon, and no session is lost.
#[test]
fn c7_routed_networks_are_announced_and_left_by_every_gateway() {
    let mut routed = Routed::start();
    let _services = Services::everywhere(&routed.system, &[7, 53]).unwrap();
    // Everything that is carried is announced, nothing else; what was learned is used.
    for address in [ROUTER, OF_VM1, "203.0.113.55", SHARED, ROUTER6] {
        routed.wait_for_paths(address, &[1, 2]);
    }
    for name in GATEWAYS {
        wait::until("the sessions are known", SOON, || {
            let bgp = routed.bgp(name);
            let up = bgp["peers"].as_array().is_some_and(|peers| {
                peers.len() == 2 && peers.iter().all(|peer| peer["state"] == "Established")
            });
            Ok(up && bgp["note"].is_null() && bgp["learned"]["public"] == 2)
        })
        .unwrap();
        let announced = routed.bgp(name)["announced"].as_array().unwrap().len();
        assert_eq!(announced, 5, "{}", routed.bgp(name));
    }
    let system = &routed.system;
    wait_for_way_out(system, &["vm1", "vm2", "vm4", "vm6"], SERVER1);
    for (vm, expected) in [("vm1", OF_VM1), ("vm2", ROUTER), ("vm4", ROUTER)] {
        let seen = Probe::udp(ip(SERVER1), 7).send(system.host(vm)).unwrap().seen(ip(SERVER1));
        assert_eq!(seen.map(|seen| seen.ip()), Some(ip(expected)), "{vm}");
    }
    for to in [ROUTER, ROUTER6, OF_VM1] {
        let from = system.host("server1");
        let ping = Probe::ping(ip(to)).send(from).unwrap();
        assert!(ping.is_answer(ip(to)), "{to}: {ping}");
    }
    // Nobody is asked on the link for what is announced.
    let on_link = system.host("gw").who_has("100.64.0.254".parse().unwrap(), ip(OF_VM1), MOMENT).unwrap();
    assert_eq!(on_link, Vec::<[u8; 6]>::new());

    // The link-local address of the interface is the node's: its daemon answers there.
    let gw1 = routed.system.node("gw-1").netns();
    let shown = gw1.run("ip -6 -o address show dev ext0 scope link").unwrap();
    let own = shown.split_whitespace().find_map(|word| word.strip_suffix("/64")).unwrap().to_owned();
    let connect = format!("exec 3<>/dev/tcp/{own}%eth0/179");
    let connected = routed.system.host("gw").command("timeout").args(["2", "bash", "-c", &connect]).status();
    assert!(connected.unwrap().success(), "{own}");

    // The daemon of one gateway dies: upstream sends everything to the other, in the middle of sessions.
    let load = Load::start(&routed.system, &BEYOND).unwrap();
    load.flows();
    routed.frr[0].kill("bgpd");
    routed.wait_for_paths(ROUTER, &[2]);
    load.flows();
    let report = load.finish("bgpd of gw-1 killed");
    assert!(report.longest_udp < OUTAGE, "{:?}", report.longest_udp);
    wait::until("gw-1 says so", SOON, || {
        Ok(routed.bgp("gw-1")["note"].as_str().is_some_and(|note| note.contains("bgpd")))
    })
    .unwrap();
    routed.frr[0].start_daemon("bgpd").unwrap();
    routed.wait_for_paths(ROUTER, &[1, 2]);

    // A gateway goes with everything: BFD finds out.
    let load = Load::start(&routed.system, &BEYOND).unwrap();
    load.flows();
    let port = routed.system.node("gw-2").underlay_port().to_owned();
    let external = routed.system.node("gw-2").external_port().to_owned();
    let (underlay, switch) = (routed.system.underlay().clone(), routed.system.outside().switch().clone());
    underlay.ip(&[format!("link set {port} down")]).unwrap();
    switch.ip(&[format!("link set {external} down")]).unwrap();
    routed.wait_for_paths(ROUTER, &[1]);
    load.flows();
    let report = load.finish("gw-2 gone");
    assert!(report.longest_udp < Duration::from_millis(1800), "{:?}", report.longest_udp);
    underlay.ip(&[format!("link set {port} up")]).unwrap();
    switch.ip(&[format!("link set {external} up")]).unwrap();
    routed.wait_for_paths(ROUTER, &[1, 2]);
    for node in ["node-a", "node-b"] {
        wait_for_gateways(&mut routed.system, node, &[("gw-1", "up"), ("gw-2", "up")]);
    }

    // An agent that is killed changes nothing: what it has announced stays.
    let load = Load::start(&routed.system, &BEYOND).unwrap();
    routed.system.agent_mut("gw-1").kill9();
    load.flows();
    std::thread::sleep(Duration::from_secs(2));
    routed.wait_for_paths(ROUTER, &[1, 2]);
    let report = load.finish("agent of gw-1 killed");
    assert_eq!(report.unanswered, 0);
    // Nor does one that starts: it knows at once what was learned, and finds the tables as they have to be. Verifying its
    // programs takes seconds of both CPUs, in which a queue may overflow.
    let load = Load::start(&routed.system, &BEYOND).unwrap();
    load.flows();
    let epoch = |routed: &Routed| routed.system.agent("gw-1").status().unwrap()["in_force"]["epoch"].clone();
    let before = epoch(&routed);
    routed.system.agent_mut("gw-1").restart().unwrap();
    routed.system.agent_mut("gw-1").wait_ready(SOON * 3).unwrap();
    load.flows();
    assert_eq!(epoch(&routed), before);
    std::thread::sleep(Duration::from_secs(2));
    let report = load.finish("agent of gw-1 started");
    assert!(report.longest_udp < OUTAGE, "{:?}", report.longest_udp);

    // What it cannot carry it withdraws; what is no longer in the topology as well.
    let gw1 = routed.system.node("gw-1").netns().clone();
    gw1.ip(&["link set ext0 down"]).unwrap();
    wait::until("gw-1 withdraws", SOON, || Ok(routed.bgp("gw-1")["announced"] == serde_json::json!([])))
        .unwrap();
    routed.wait_for_paths(ROUTER, &[2]);
    gw1.ip(&["link set ext0 up"]).unwrap();
    gw1.run("ip -6 address replace fd64::1/64 dev ext0 nodad").unwrap();
    routed.wait_for_paths(ROUTER, &[1, 2]);
    let mut topology = with_edge();
    let public = topology.network_mut("public");
    public.routed = true;
    public.subnets.iter_mut().for_each(|subnet| subnet.gateway = None);
    topology.floating_ips.retain(|floating| floating.address != OF_VM1);
    routed.system.apply(&topology).unwrap();
    routed.wait_for_paths(OF_VM1, &[]);
    routed.wait_for_paths(ROUTER, &[1, 2]);
}
