//! Change and failure: agents that die, topologies that change, interfaces and underlays that come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde_json::Value;
use vrouter_tests::topology::{Network, Router, Topology, standard, standard_port};
use vrouter_tests::{Agent, AgentOptions, Host, Lab, TcpLoad, UdpLoad, wait};

/// Programs are verified anew at each start, which takes its time on a busy machine.
const START: Duration = Duration::from_secs(60);
/// For what takes an agent a moment.
const SOON: Duration = Duration::from_secs(60);

/// The standard lab with an agent on each node, ready.
fn standard_lab(topology: &Topology) -> (Lab, Agent, Agent) {
    let lab = Lab::builder().topology(topology).build().unwrap();
    let mut agents =
        ["node-a", "node-b"].map(|node| lab.start_agent(node, &AgentOptions::default()).unwrap());
    agents.iter_mut().for_each(|agent| agent.wait_ready(START).unwrap());
    let [a, b] = agents;
    (lab, a, b)
}

/// Pings of every kind of way, at intervals of 5 ms: from vm1, to the same network and routed, on the node
/// and to the other one.
const WAYS: [&str; 4] = ["10.0.2.13", "10.0.1.14", "10.0.2.15", "fd00:2::f"];

/// Streams that run over a whole test.
struct Load {
    udp: Vec<UdpLoad>,
    tcp: Vec<TcpLoad>,
}

impl Load {
    fn start(lab: &Lab) -> Self {
        let [vm1, vm3, vm4, vm5] = ["vm1", "vm3", "vm4", "vm5"].map(|name| lab.workload(name));
        let load = Self {
            udp: vec![
                UdpLoad::start(vm1, vm3, vm3.v4()).unwrap(),
                UdpLoad::start(vm5, vm1, vm1.v4()).unwrap(),
                UdpLoad::start(vm4, vm1, vm1.v6()).unwrap(),
            ],
            tcp: vec![
                TcpLoad::start(vm1, vm3, vm3.v4()).unwrap(),
                TcpLoad::start(vm1, vm5, vm5.v6()).unwrap(),
            ],
        };
        load.udp.iter().for_each(|udp| udp.wait_for_more(10).unwrap());
        load
    }

    /// Nothing was lost, nothing came twice, nothing was changed on the way.
    fn finish(self) {
        self.udp.iter().for_each(|udp| udp.wait_for_more(10).unwrap());
        for udp in self.udp {
            let datagrams = udp.finish().unwrap();
            assert!(datagrams.is_clean(), "{datagrams:?}");
        }
        for tcp in self.tcp {
            assert!(tcp.finish().unwrap() > 0);
        }
    }
}

/// What is in force: epoch and digest.
fn in_force(agent: &Agent) -> (u64, String) {
    let status = agent.status().unwrap();
    let in_force = &status["in_force"];
    (in_force["epoch"].as_u64().unwrap(), in_force["digest"].as_str().unwrap().to_owned())
}

/// The number after a word of a map dump's value: `packets 12`.
fn number(value: &str, word: &str) -> u64 {
    let mut words = value.split_whitespace().skip_while(|other| *other != word).skip(1);
    words.next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {word} in {value}"))
}

/// The entries of UDP from an address to an address and port.
fn flows_to<'a>(
    flows: &'a BTreeMap<String, String>,
    to: &str,
) -> impl Iterator<Item = (&'a String, &'a String)> {
    let end = format!("> {to}");
    flows.iter().filter(move |(key, _)| key.contains("proto 17") && key.ends_with(&end))
}

/// Waits until what the topology file says is in force and differs from `before`; returns the digest.
fn wait_for_change(agent: &mut Agent, before: &str) -> String {
    let status = agent.wait_for_status(SOON, "bring the changed topology in force", |status| {
        let digest = &status["in_force"]["digest"];
        *digest != before
            && status["wanted"]["digest"] == *digest
            && status["wanted"]["problems"] == Value::Array(vec![])
    });
    status.unwrap()["in_force"]["digest"].as_str().unwrap().to_owned()
}

/// Waits until a ping is answered.
fn wait_for_reply(from: &Host, to: &str) {
    wait::until(&format!("{} reaches {to}", from.name()), SOON, || Ok(from.ping(to, 1, &[])?.is_clean()))
        .unwrap();
}

/// Waits until a ping is not answered, but refused with a message that contains `complaint`.
fn wait_for_refusal(from: &Host, to: &str, complaint: &str) {
    wait::until(&format!("{} is refused {to}: {complaint}", from.name()), SOON, || {
        let ping = from.ping(to, 1, &[])?;
        Ok(ping.received == 0 && ping.complaints.iter().any(|line| line.contains(complaint)))
    })
    .unwrap();
}

/// A sequence that can be had again: the seed is printed, and taken from `VROUTER_TEST_SEED` if that is set.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let given = std::env::var("VROUTER_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |age| age.as_millis() as u64)
        });
        println!("VROUTER_TEST_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[test]
fn c1_killed_at_random_points_an_agent_costs_no_packet_and_no_flow() {
    let (lab, mut a, mut b) = standard_lab(&standard());
    let mut random = Random::new();
    let vm1 = lab.workload("vm1");
    for way in WAYS {
        wait_for_reply(vm1, way);
    }
    let load = Load::start(&lab);
    let before = [in_force(&a), in_force(&b)];
    for round in 0..6 {
        let flows = a.flows().unwrap();
        let pings = WAYS.map(|way| vm1.start_ping(way, 200, &["-i", "0.005"]).unwrap());
        for agent in [&mut a, &mut b] {
            agent.kill9();
            agent.restart().unwrap();
            // Anywhere between its first instruction and well after it is ready.
            std::thread::sleep(Duration::from_millis(random.below(400)));
            agent.kill9();
            agent.restart().unwrap();
        }
        for ping in pings {
            let ping = ping.finish(START).unwrap();
            assert!(ping.is_clean(), "round {round}: {}", ping.output);
        }
        [&mut a, &mut b].into_iter().for_each(|agent| agent.wait_ready(START).unwrap());
        assert_eq!([in_force(&a), in_force(&b)], before, "round {round}");
        load.udp.iter().for_each(|udp| udp.wait_for_more(10).unwrap());
        let after = a.flows().unwrap();
        // Those of UDP and ICMP that nobody uses any more may have expired.
        let tcp: Vec<&String> = flows.keys().filter(|key| key.contains(" proto 6 ")).collect();
        assert!(!tcp.is_empty(), "round {round}: no TCP among {} flows", flows.len());
        for key in tcp {
            assert!(after.contains_key(key), "round {round}: {key} is gone");
        }
        for (key, value) in flows_to(&flows, &format!("10.0.2.13:{}", load.udp[0].ports().1)) {
            assert_eq!(number(value, "epoch"), number(&after[key], "epoch"));
            assert!(number(value, "packets") < number(&after[key], "packets"), "{key}: {}", after[key]);
        }
    }
    load.finish();
}

#[test]
fn c1_killed_while_it_applies_changes_an_agent_costs_no_packet() {
    let mut topology = standard();
    let (lab, mut a, _b) = standard_lab(&topology);
    let mut random = Random::new();
    let load = Load::start(&lab);
    for round in 0..6_u8 {
        // Many entries of a network that is on this node, so that an apply takes a while.
        topology.ports.retain(|port| !port.name.starts_with("many"));
        topology.ports.extend((20..220).map(|number| {
            let mut port = standard_port(&format!("many{number}"), "db", number, "node-b");
            port.mac = format!("02:00:00:{round:02x}:02:{number:02x}");
            port
        }));
        let (_, before) = in_force(&a);
        lab.write_topology(&topology).unwrap();
        // The file is looked at every quarter of a second.
        std::thread::sleep(Duration::from_millis(random.below(350)));
        a.kill9();
        // Whatever was reached, what is pinned is whole and answers.
        let ports = a.json(&["show", "ports"]).unwrap();
        let many = ports
            .as_array()
            .unwrap()
            .iter()
            .filter(|port| port["port"].as_str().is_some_and(|name| name.starts_with("many")));
        let generations: BTreeSet<&str> = many.map(|port| &port["mac"].as_str().unwrap()[9..11]).collect();
        assert!(generations.len() <= 1, "round {round}: a mixture of {generations:?} is in force");
        a.restart().unwrap();
        wait_for_change(&mut a, &before);
        load.udp.iter().for_each(|udp| udp.wait_for_more(5).unwrap());
    }
    assert_eq!(a.json(&["show", "ports"]).unwrap().as_array().unwrap().len(), 206);
    load.finish();
}

#[test]
fn c1_stopped_it_leaves_everything_forwarding_and_visible() {
    let (lab, mut a, mut b) = standard_lab(&standard());
    let vm1 = lab.workload("vm1");
    let load = Load::start(&lab);
    let pings = WAYS.map(|way| vm1.start_ping(way, 200, &["-i", "0.005"]).unwrap());
    let before = in_force(&a);
    a.stop().unwrap();
    b.stop().unwrap();
    for ping in pings {
        let ping = ping.finish(START).unwrap();
        assert!(ping.is_clean(), "{}", ping.output);
    }
    // New flows too, and answers by the data path itself.
    vm1.flush_neighbours().unwrap();
    for way in ["10.0.2.16", "fd00:2::10", "10.0.1.12", "10.0.1.1"] {
        let ping = vm1.ping(way, 3, &[]).unwrap();
        assert!(ping.is_clean(), "{}", ping.output);
    }

    let status = a.vrouter(&["status"]).unwrap();
    assert_eq!(status.status.code(), Some(1));
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(text.contains("no agent is running"), "{text}");
    assert_eq!(in_force(&a), before);
    assert_eq!(a.status().unwrap()["agent"]["alive"], false);
    for arguments in [&["show", "routes"][..], &["show", "ports"], &["show", "drops"], &["map-dump"]] {
        let output = a.vrouter(arguments).unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert!(a.flows().unwrap().keys().any(|key| key.contains("> 10.0.2.16:")), "decided with no agent");
    load.finish();
}

/// Link pins by name: the inode, and the kernel's link and program.
fn links(agent: &Agent) -> BTreeMap<PathBuf, (u64, u64, u64)> {
    let directory = Path::new("/sys/fs/bpf/vrouter").join(agent.instance()).join("links");
    let entries = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            let line = format!("bpftool --json link show pinned {}", path.display());
            let link: Value = serde_json::from_str(&agent.node().run(&line).unwrap()).unwrap();
            let link = link.as_array().map_or(&link, |links| &links[0]).clone();
            let inode = fs::symlink_metadata(&path).unwrap().ino();
            (path, (inode, link["id"].as_u64().unwrap(), link["prog_id"].as_u64().unwrap()))
        })
        .collect()
}

#[test]
fn c1_an_upgrade_replaces_the_programs_in_their_places() {
    let (lab, mut a, _b) = standard_lab(&standard());
    let load = Load::start(&lab);
    let (before, programs, old) = (in_force(&a), a.status().unwrap()["programs"].clone(), links(&a));
    assert_eq!(old.len(), 4, "three workloads and an uplink: {old:?}");

    let newer = lab.directory().join("vrouter-newer");
    fs::copy(a.binary(), &newer).unwrap();
    let pings = WAYS.map(|way| lab.workload("vm1").start_ping(way, 200, &["-i", "0.005"]).unwrap());
    a.stop().unwrap();
    let mut upgraded =
        lab.start_agent("node-a", &AgentOptions { binary: Some(newer), ..AgentOptions::default() }).unwrap();
    upgraded.wait_ready(START).unwrap();

    assert_eq!(in_force(&upgraded), before);
    let ids = |programs: &Value| -> Vec<u64> {
        programs.as_array().unwrap().iter().map(|program| program["id"].as_u64().unwrap()).collect()
    };
    let (programs, new_programs) = (ids(&programs), ids(&upgraded.status().unwrap()["programs"]));
    assert_eq!(programs.len(), new_programs.len());
    assert!(new_programs.iter().all(|id| !programs.contains(id)), "{programs:?}, then {new_programs:?}");
    let new = links(&upgraded);
    assert!(new.keys().eq(old.keys()));
    for (path, (inode, link, program)) in &old {
        let (new_inode, new_link, new_program) = new[path];
        assert_eq!((new_inode, new_link), (*inode, *link), "{}: the pin stays", path.display());
        assert_ne!(new_program, *program, "{}: the program does not", path.display());
        assert!(new_programs.contains(&new_program));
    }
    for ping in pings {
        let ping = ping.finish(START).unwrap();
        assert!(ping.is_clean(), "{}", ping.output);
    }
    load.finish();
}

/// A vrouter whose maps have another layout, built here.
fn with_another_layout() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(root).args([
        "build",
        "-p",
        "vrouter",
        "--example",
        "next",
        "--features",
        "next-layout",
    ]);
    let output = build.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // <target>/<profile>/deps/change-<hash>
    let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    profile.join("examples/next")
}

#[test]
fn c1_an_upgrade_to_another_layout_refuses_before_it_touches_anything() {
    let next = with_another_layout();
    let (lab, mut a, _b) = standard_lab(&standard());
    let load = Load::start(&lab);
    let (before, programs, attached) = (in_force(&a), a.status().unwrap()["programs"].clone(), links(&a));
    let pings = WAYS.map(|way| lab.workload("vm1").start_ping(way, 200, &["-i", "0.005"]).unwrap());
    a.stop().unwrap();
    let options = AgentOptions { binary: Some(next.clone()), ..AgentOptions::default() };
    let mut upgraded = lab.start_agent("node-a", &options).unwrap();
    wait::until("the new version ends", SOON, || Ok(!upgraded.is_running())).unwrap();
    let log = upgraded.log();
    assert!(log.contains("the pinned state has schema 3, this vrouter knows 4"), "{log}");
    assert!(log.contains("--discard-state"), "{log}");
    drop(upgraded);
    assert_eq!(a.status().unwrap()["programs"], programs);
    assert_eq!(links(&a), attached);
    a.restart().unwrap();
    a.wait_ready(START).unwrap();
    assert_eq!(in_force(&a), before);
    for ping in pings {
        let ping = ping.finish(START).unwrap();
        assert!(ping.is_clean(), "{}", ping.output);
    }
    load.finish();

    // Told to start afresh, it does.
    a.stop().unwrap();
    let options = AgentOptions {
        binary: Some(next),
        extra: vec!["--discard-state".to_owned()],
        ..AgentOptions::default()
    };
    let mut upgraded = lab.start_agent("node-a", &options).unwrap();
    upgraded.wait_ready(START).unwrap();
    for way in WAYS {
        wait_for_reply(lab.workload("vm1"), way);
    }
}

/// Nothing that vm1 sends arrives at its neighbours.
fn assert_nothing_is_delivered(lab: &Lab) {
    let vm1 = lab.workload("vm1");
    let targets = ["vm2", "vm3", "vm4"].map(|name| lab.workload(name));
    let sniffers = targets.map(|target| target.sniff().unwrap());
    let underlay = Host::new("underlay", lab.underlay().clone());
    let wires = ["node-a", "node-b"]
        .map(|node| underlay.capture_on(lab.node(node).underlay_port(), "udp port 4789").unwrap());
    for target in targets {
        for address in [target.v4(), target.v6()] {
            assert_eq!(vm1.ping(address, 3, &["-i", "0.01", "-W", "0.2"]).map_or(0, |ping| ping.received), 0);
        }
        // Also without ARP.
        let frame = [lab.workload(target.name()).mac().unwrap(), vm1.mac().unwrap()].concat();
        vm1.raw_send(&[&frame[..], &[0x88, 0xb5], &[7; 46]].concat()).unwrap();
    }
    for sniffer in sniffers {
        let from_vm1 = |frame: &[u8]| frame.get(6..12) == Some(&[2, 0, 0, 0, 1, 0x0b][..]);
        assert_eq!(sniffer.collect(Duration::from_millis(100), from_vm1).unwrap(), Vec::<Vec<u8>>::new());
    }
    for wire in wires {
        assert_eq!(wire.stop().unwrap(), Vec::<Vec<u8>>::new(), "encapsulated");
    }
}

#[test]
fn c2_nothing_is_delivered_before_a_topology_is_in_force() {
    let topology = standard();
    let lab = Lab::builder().topology(&topology).build().unwrap();
    // One node finds no file, the other one with errors.
    fs::remove_file(lab.topology_path()).unwrap();
    let broken = lab.directory().join("broken.yaml");
    fs::write(&broken, topology.to_string().replace("network: web", "network: wob")).unwrap();
    let mut a = lab.start_agent("node-a", &AgentOptions::default()).unwrap();
    let options = AgentOptions { topology: Some(broken.clone()), ..AgentOptions::default() };
    let mut b = lab.start_agent("node-b", &options).unwrap();
    for (agent, text) in [(&mut a, "cannot be read"), (&mut b, "wob")] {
        let status = agent
            .wait_for_status(START, "say what is wrong", |status| {
                status["wanted"]["problems"].as_array().is_some_and(|problems| !problems.is_empty())
            })
            .unwrap();
        assert_eq!(status["in_force"]["epoch"], 0);
        assert_eq!(status["healthy"], false);
        assert!(status["wanted"]["problems"].to_string().contains(text), "{status}");
    }
    assert_nothing_is_delivered(&lab);

    lab.write_topology(&topology).unwrap();
    fs::write(&broken, topology.to_string()).unwrap();
    [&mut a, &mut b].into_iter().for_each(|agent| agent.wait_ready(SOON).unwrap());
    for way in WAYS {
        wait_for_reply(lab.workload("vm1"), way);
    }

    // What was in force stays so over a restart, whatever the file says by then.
    fs::write(lab.topology_path(), "networks: [").unwrap();
    let before = in_force(&a);
    a.restart().unwrap();
    a.wait_for_status(START, "refuse the file", |status| {
        status["wanted"]["problems"].as_array().is_some_and(|p| !p.is_empty())
    })
    .unwrap();
    assert_eq!(in_force(&a), before);
    for way in WAYS {
        assert!(lab.workload("vm1").ping(way, 2, &[]).unwrap().is_clean());
    }

    // Unless the state is thrown away.
    a.stop().unwrap();
    let discard = AgentOptions { extra: vec!["--discard-state".to_owned()], ..AgentOptions::default() };
    let mut a = lab.start_agent("node-a", &discard).unwrap();
    a.wait_for_status(START, "start with nothing", |status| {
        status["in_force"]["epoch"] == 0 && status["agent"]["alive"] == true
    })
    .unwrap();
    assert!(a.flows().unwrap().is_empty());
    assert_nothing_is_delivered(&lab);
    lab.write_topology(&topology).unwrap();
    a.wait_ready(SOON).unwrap();
    for way in WAYS {
        wait_for_reply(lab.workload("vm1"), way);
    }
}

/// The standard lab and a network of its own beside it, with a port on each node.
fn with_another_network() -> Topology {
    let mut topology = standard();
    topology.networks.push(Network::new("other", &[("other4", "10.0.9.0/24", "10.0.9.1")]));
    topology.routers.push(Router::new("r9", &["other4"]));
    for (name, number, node) in [("vm7", 7, "node-a"), ("vm8", 8, "node-a"), ("vm9", 9, "node-b")] {
        let mut port = standard_port(name, "db", number, node);
        port.network = "other".to_owned();
        port.mac = format!("02:00:00:00:09:{number:02x}");
        port.fixed_ips = vec![format!("10.0.9.{number}")];
        topology.ports.push(port);
    }
    topology
}

#[test]
fn c3_changes_under_load_lose_nothing_and_leave_other_flows_alone() {
    let base = with_another_network();
    let (lab, mut a, mut b) = standard_lab(&base);
    let load = Load::start(&lab);
    let [vm7, vm8, vm9] = ["vm7", "vm8", "vm9"].map(|name| lab.workload(name));
    let others = [UdpLoad::start(vm7, vm8, vm8.v4()).unwrap(), UdpLoad::start(vm7, vm9, vm9.v4()).unwrap()];
    // A stream nobody answers is for the fast path from its 64th packet on.
    let streams = others.iter().chain(&load.udp);
    streams.for_each(|udp| udp.wait_for_more(100).unwrap());
    let pings = [("vm1", "10.0.2.13"), ("vm1", "10.0.2.15"), ("vm7", "10.0.9.8"), ("vm7", "10.0.9.9")]
        .map(|(from, to)| lab.workload(from).start_ping(to, 3000, &["-i", "0.005"]).unwrap());
    let before = a.flows().unwrap();

    let (mut digest, mut topology) = (in_force(&a).1, base.clone());
    for round in 0..50_u8 {
        match round % 5 {
            0 => {
                let mut port = standard_port(&format!("new{round}"), "web", 100 + round, "node-b");
                port.node.clear();
                topology.ports.push(port);
            }
            1 => topology
                .router_mut("r1")
                .routes
                .push(format!("{{ destination: 10.99.{round}.0/24, nexthop: 10.0.2.15 }}")),
            2 => topology.networks.push(Network::new(
                &format!("extra{round}"),
                &[(&format!("e{round}"), &format!("10.7.{round}.0/24"), "")],
            )),
            3 => topology.ports.retain(|port| !port.name.starts_with("new")),
            _ => {
                topology.router_mut("r1").routes.clear();
                topology.networks.retain(|network| !network.name.starts_with("extra"));
            }
        }
        // Both ways in which editors and tools write files. A comment makes each content its own.
        let text = format!("# {round}\n{topology}");
        if round % 2 == 0 {
            lab.write_topology(&text)
        } else {
            fs::write(lab.topology_path(), &text).context("write")
        }
        .unwrap();
        digest = wait_for_change(&mut a, &digest);
    }
    b.wait_ready(SOON).unwrap();
    others.iter().for_each(|udp| udp.wait_for_more(10).unwrap());
    load.udp.iter().for_each(|udp| udp.wait_for_more(10).unwrap());

    let after = a.flows().unwrap();
    let ports = others.each_ref().map(|udp| udp.ports().1);
    for address in [format!("10.0.9.8:{}", ports[0]), format!("10.0.9.9:{}", ports[1])] {
        let mut flows = flows_to(&before, &address).peekable();
        assert!(flows.peek().is_some(), "no flow to {address} in {before:?}");
        for (key, value) in flows {
            assert_eq!(number(value, "epoch"), number(&after[key], "epoch"), "not disturbed: {key}");
            assert!(number(value, "packets") < number(&after[key], "packets"));
        }
    }
    for (key, value) in flows_to(&before, &format!("10.0.2.13:{}", load.udp[0].ports().1)) {
        assert!(
            number(value, "epoch") < number(&after[key], "epoch"),
            "decided again: {key}: {}",
            after[key]
        );
    }
    for ping in pings {
        let ping = ping.finish(START).unwrap();
        assert!(ping.is_clean(), "{}", ping.summary());
    }
    for udp in others {
        let datagrams = udp.finish().unwrap();
        assert!(datagrams.is_clean(), "{datagrams:?}");
    }
    load.finish();
}

#[test]
fn c3_a_router_interface_that_goes_stops_routing_and_one_that_comes_starts_it() {
    let base = standard();
    let (lab, mut a, mut b) = standard_lab(&base);
    let vm1 = lab.workload("vm1");
    for way in ["10.0.2.13", "10.0.2.15", "fd00:2::d"] {
        wait_for_reply(vm1, way);
    }
    // Never anything but an answer while nothing that concerns these changes.
    let v6 = vm1.start_ping("fd00:2::f", 600, &["-i", "0.005"]).unwrap();
    let same_network = vm1.start_ping("10.0.1.14", 600, &["-i", "0.005"]).unwrap();

    let mut topology = base.clone();
    topology.router_mut("r1").interfaces.retain(|interface| interface != "db4");
    // Read before: what is written is in force within milliseconds.
    let mut digest = in_force(&a).1;
    lab.write_topology(&topology).unwrap();
    digest = wait_for_change(&mut a, &digest);
    b.wait_ready(SOON).unwrap();
    let no_route = a.drops("no_route").unwrap();
    for to in ["10.0.2.13", "10.0.2.15"] {
        let ping = vm1.ping(to, 2, &[]).unwrap();
        assert_eq!(ping.received, 0, "{}", ping.output);
        assert!(
            ping.complaints
                .iter()
                .any(|line| line.contains("From 10.0.1.1") && line.contains("Net Unreachable")),
            "{}",
            ping.output
        );
    }
    assert_eq!(a.drops("no_route").unwrap(), no_route + 4);

    // A file that is not in order changes nothing, however it is not.
    let text = base.to_string();
    let epoch = in_force(&a).0;
    for half in [&text[..text.len() / 2], "", "networks:\n  - name: web\n   vni: 5\n"] {
        fs::write(lab.topology_path(), half).unwrap();
        let status = a
            .wait_for_status(SOON, "refuse half a file", |status| {
                status["wanted"]["digest"] != digest.as_str()
                    && status["wanted"]["problems"].as_array().is_some_and(|problems| !problems.is_empty())
            })
            .unwrap();
        assert_eq!(
            (&status["in_force"]["digest"], &status["in_force"]["epoch"]),
            (&digest.as_str().into(), &epoch.into())
        );
        digest = status["in_force"]["digest"].as_str().unwrap().to_owned();
        assert_eq!(vm1.ping("10.0.2.13", 1, &[]).unwrap().received, 0);
        assert!(vm1.ping("fd00:2::d", 1, &[]).unwrap().is_clean());
    }

    lab.write_topology(&base).unwrap();
    wait_for_change(&mut a, &digest);
    b.wait_ready(SOON).unwrap();
    for way in ["10.0.2.13", "10.0.2.15", "fd00:2::d"] {
        let ping = vm1.ping(way, 2, &[]).unwrap();
        assert!(ping.is_clean(), "{}", ping.output);
    }
    for ping in [v6, same_network] {
        let ping = ping.finish(START).unwrap();
        assert!(ping.is_clean(), "{}", ping.output);
    }
}

#[test]
fn c5_an_interface_that_is_deleted_and_made_again_works_again() {
    let (lab, mut a, mut b) = standard_lab(&standard());
    let vm1 = lab.workload("vm1");
    for (name, agent, address, v6) in
        [("vm3", &mut a, "10.0.2.13", "fd00:2::d"), ("vm5", &mut b, "10.0.2.15", "fd00:2::f")]
    {
        let gone = lab.workload(name);
        wait_for_reply(vm1, address);
        gone.unplug().unwrap();
        let missing = format!("port {name}: interface tap-{name} is missing");
        let complains = |status: &Value| status["complaints"].to_string().contains(&missing);
        let status = agent.wait_for_status(SOON, "miss the interface", complains).unwrap();
        assert_eq!(status["healthy"], false);
        let dropped = agent.drops("port_unplugged").unwrap();
        if name == "vm3" {
            wait_for_refusal(vm1, address, "Destination Host Unreachable");
            wait_for_refusal(vm1, v6, "Address unreachable");
        } else {
            // Its node drops what came through the tunnel: it has no address to answer from.
            for to in [address, v6] {
                assert_eq!(vm1.ping(to, 1, &["-W", "0.3"]).unwrap().received, 0);
            }
        }
        assert!(agent.drops("port_unplugged").unwrap() >= dropped + 2);

        gone.plug().unwrap();
        agent.wait_for_status(SOON, "be well", |status| status["healthy"] == true).unwrap();
        for to in [address, v6] {
            wait_for_reply(vm1, to);
            assert!(vm1.ping(to, 5, &["-i", "0.02"]).unwrap().is_clean());
        }
        // At once, so that the agent hears of both in one breath.
        gone.unplug().unwrap();
        gone.plug().unwrap();
        wait_for_reply(vm1, address);
        wait_for_reply(gone, "10.0.1.11");
    }
}

#[test]
fn c5_an_interface_made_while_no_agent_runs_is_attached_by_the_next() {
    let (lab, mut a, _b) = standard_lab(&standard());
    let (vm1, vm3) = (lab.workload("vm1"), lab.workload("vm3"));
    wait_for_reply(vm1, "10.0.2.13");
    let before = in_force(&a).0;
    a.stop().unwrap();
    vm3.unplug().unwrap();
    vm3.plug().unwrap();
    assert_eq!(vm1.ping("10.0.2.13", 1, &[]).unwrap().received, 0);
    a.restart().unwrap();
    a.wait_for_status(START, "be well", |status| {
        status["healthy"] == true && status["in_force"]["epoch"].as_u64() > Some(before)
    })
    .unwrap();
    wait_for_reply(vm1, "10.0.2.13");
    assert_eq!(links(&a).len(), 4, "no pin is left of the old one");
}

#[test]
fn c5_an_interface_that_is_renamed_or_goes_down_works_when_it_is_back() {
    let (lab, mut a, _b) = standard_lab(&standard());
    let (vm1, node) = (lab.workload("vm1"), lab.node("node-a"));
    let steady = vm1.start_ping("10.0.2.15", 400, &["-i", "0.005"]).unwrap();
    wait_for_reply(vm1, "10.0.2.13");

    let netns = node.netns();
    netns.ip(&["link set tap-vm3 down", "link set tap-vm3 name moved", "link set moved up"]).unwrap();
    let missing = |status: &Value| status["complaints"].to_string().contains("interface tap-vm3 is missing");
    a.wait_for_status(SOON, "miss the interface", missing).unwrap();
    wait_for_refusal(vm1, "10.0.2.13", "Destination Host Unreachable");
    // Under another name it is nobody's: nothing it sends is forwarded.
    assert_eq!(lab.workload("vm3").ping("10.0.2.15", 2, &["-W", "0.3"]).unwrap().received, 0);
    netns.ip(&["link set moved down", "link set moved name tap-vm3", "link set tap-vm3 up"]).unwrap();
    wait_for_reply(vm1, "10.0.2.13");
    a.wait_for_status(SOON, "be well", |status| status["healthy"] == true).unwrap();

    netns.ip(&["link set tap-vm3 down"]).unwrap();
    wait::until("nothing passes an interface that is down", SOON, || {
        Ok(vm1.ping("10.0.2.13", 1, &["-W", "0.3"])?.received == 0)
    })
    .unwrap();
    netns.ip(&["link set tap-vm3 up"]).unwrap();
    wait_for_reply(vm1, "10.0.2.13");
    wait_for_reply(lab.workload("vm3"), "fd00:1::b");
    let steady = steady.finish(START).unwrap();
    assert!(steady.is_clean(), "{}", steady.output);
}

#[test]
fn the_underlay_follows_neighbours() {
    let (lab, mut a, _b) = standard_lab(&standard());
    let (vm1, node_a, node_b) = (lab.workload("vm1"), lab.node("node-a"), lab.node("node-b"));
    wait_for_reply(vm1, "10.0.2.15");
    let resolved = |status: &Value| status["peers"][0]["state"] == "resolved";
    a.wait_for_status(SOON, "resolve its peer", resolved).unwrap();

    // The neighbour is forgotten: nothing is lost while it is asked for again.
    let ping = vm1.start_ping("10.0.2.15", 100, &["-i", "0.005"]).unwrap();
    node_a.flush_neighbours().unwrap();
    let ping = ping.finish(START).unwrap();
    assert!(ping.is_clean(), "{}", ping.output);
    a.wait_for_status(SOON, "resolve its peer", resolved).unwrap();

    // The peer's network card is replaced, and as after a boot it announces itself.
    node_b.netns().ip(&["link set eth0 address 02:00:00:00:b0:0b"]).unwrap();
    node_b.run("arping -c 1 -U -I eth0 -s 192.0.2.2 192.0.2.2").ok();
    a.wait_for_status(SOON, "follow the peer's new hardware address", |status| {
        status["peers"][0]["mac"] == "02:00:00:00:b0:0b" && resolved(status)
    })
    .unwrap();
    let wire = node_b.capture("udp dst port 4789 and dst host 192.0.2.2").unwrap();
    wait_for_reply(vm1, "10.0.2.15");
    let frame = wire.wait_for(SOON, |_| true).unwrap();
    assert_eq!(frame[..6], [2, 0, 0, 0, 0xb0, 0x0b]);
    let ping = vm1.ping("fd00:2::f", 20, &["-i", "0.01"]).unwrap();
    assert!(ping.is_clean(), "{}", ping.output);
}

#[test]
fn the_underlay_follows_routes() {
    let topology = standard();
    let lab = Lab::builder().topology(&topology).foreign("gw", 50).build().unwrap();
    let mut agents =
        ["node-a", "node-b"].map(|node| lab.start_agent(node, &AgentOptions::default()).unwrap());
    agents.iter_mut().for_each(|agent| agent.wait_ready(START).unwrap());
    let [mut a, _b] = agents;
    let (vm1, node_a, gw) = (lab.workload("vm1"), lab.node("node-a"), lab.foreign("gw"));
    gw.netns().set_sysctl("ipv4/ip_forward", "1").unwrap();
    for name in ["all", "eth0"] {
        gw.netns().set_sysctl(&format!("ipv4/conf/{name}/send_redirects"), "0").unwrap();
    }
    wait_for_reply(vm1, "10.0.2.15");
    assert!(vm1.ping("10.0.2.15", 3, &[]).unwrap().is_clean());

    // Another way, through a gateway.
    let through = gw.capture("udp dst port 4789 and dst host 192.0.2.2").unwrap();
    node_a.netns().ip(&["route add 192.0.2.2/32 via 192.0.2.50"]).unwrap();
    a.wait_for_status(SOON, "follow the route", |status| {
        status["peers"][0]["nexthop"] == "192.0.2.50" && status["peers"][0]["state"] == "resolved"
    })
    .unwrap();
    wait_for_reply(vm1, "10.0.2.15");
    let gw_mac = gw.mac().unwrap();
    through.wait_for(SOON, |frame| frame[..6] == gw_mac).unwrap();
    let ping = vm1.ping("10.0.1.14", 20, &["-i", "0.01"]).unwrap();
    assert!(ping.is_clean(), "{}", ping.output);
    node_a.netns().ip(&["route del 192.0.2.2/32"]).unwrap();
    a.wait_for_status(SOON, "follow the route back", |status| status["peers"][0]["nexthop"] == "192.0.2.2")
        .unwrap();
    wait_for_reply(vm1, "10.0.2.15");

    // No way at all.
    let local = vm1.start_ping("10.0.2.13", 300, &["-i", "0.005"]).unwrap();
    node_a.netns().ip(&["route del 192.0.2.0/24 dev eth0"]).unwrap();
    let status = a
        .wait_for_status(SOON, "see that its peer is unreachable", |status| {
            status["peers"][0]["state"] == "unreachable"
        })
        .unwrap();
    assert_eq!(status["healthy"], false);
    assert!(status["complaints"].to_string().contains("unreachable over the underlay"), "{status}");
    let dropped = a.drops("underlay_unreachable").unwrap();
    assert_eq!(vm1.ping("10.0.2.15", 2, &["-W", "0.3"]).unwrap().received, 0);
    assert!(a.drops("underlay_unreachable").unwrap() >= dropped + 2);
    node_a.netns().ip(&["route add 192.0.2.0/24 dev eth0 src 192.0.2.1"]).unwrap();
    a.wait_for_status(SOON, "be well", |status| status["healthy"] == true).unwrap();
    wait_for_reply(vm1, "10.0.2.15");
    let local = local.finish(START).unwrap();
    assert!(local.is_clean(), "{}", local.output);
}

#[test]
fn two_labs_with_the_same_addresses_do_not_disturb_each_other() -> Result<()> {
    let (first, second) = std::thread::scope(|scope| {
        let builders = [scope.spawn(|| standard_lab(&standard())), scope.spawn(|| standard_lab(&standard()))];
        let [first, second] = builders.map(|thread| thread.join().unwrap());
        (first, second)
    });
    let (lab, mut a, b) = first;
    for way in WAYS {
        wait_for_reply(lab.workload("vm1"), way);
        wait_for_reply(second.0.workload("vm1"), way);
    }
    let load = Load::start(&lab);
    let before = (in_force(&a), in_force(&b), links(&a));
    let elsewhere = second.1.instance().to_owned();
    // The other one changes, loses an agent, and is taken away with everything it had.
    let (other, mut other_a, other_b) = second;
    let mut topology = standard();
    topology.router_mut("r1").interfaces.retain(|interface| interface == "web4");
    let digest = in_force(&other_a).1;
    other.write_topology(&topology)?;
    wait_for_change(&mut other_a, &digest);
    assert_eq!(other.workload("vm1").ping("10.0.2.13", 1, &[])?.received, 0);
    other_a.kill9();
    drop((other_a, other_b, other));
    assert!(!Path::new("/sys/fs/bpf/vrouter").join(elsewhere).exists());
    assert_eq!((in_force(&a), in_force(&b), links(&a)), before);
    a.wait_ready(SOON)?;
    load.finish();
    Ok(())
}
