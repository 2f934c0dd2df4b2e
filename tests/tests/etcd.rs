//! Issue "many nodes": the topology in a real etcd cluster of three members, agents that may die at any moment.

use std::io::Write as _;
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use vrouter_tests::agent::vrouter_binary;
use vrouter_tests::etcd::{self, WRITER};
use vrouter_tests::topology::{Topology, standard, standard_port, with_edge};
use vrouter_tests::{Agent, Cluster, Lab, Probe, Services, Sessions, TcpLoad, UdpLoad, wait};

/// Programs are verified anew at each start, which takes its time on a busy machine.
const START: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(30);
const NODES: [&str; 2] = ["node-a", "node-b"];

/// A lab whose topology is in etcd.
struct Many {
    agents: Vec<Agent>,
    cluster: Cluster,
    lab: Lab,
}

impl Many {
    /// The standard lab, with `topology` stored and in force.
    fn start(topology: &Topology, secured: bool) -> Self {
        let lab = etcd::hosts(Lab::builder().topology(topology)).build().unwrap();
        let nodes: Vec<&str> = topology.nodes.iter().map(|node| node.name.as_str()).collect();
        let cluster = Cluster::start(&lab, &nodes, secured).unwrap();
        let mut many = Self { agents: Vec::new(), cluster, lab };
        many.apply(topology, &[]);
        let agents = nodes
            .iter()
            .map(|node| many.lab.start_agent(node, &many.cluster.agent(&many.lab, node)).unwrap());
        many.agents = agents.collect();
        many.agents.iter_mut().for_each(|agent| agent.wait_ready(START).unwrap());
        many
    }

    /// Runs a command as `user`, with something to read.
    fn command_as(&self, user: &str, arguments: &[&str], input: &str) -> Output {
        let mut command = self.lab.node("node-a").netns().command(vrouter_binary().unwrap());
        command.args(arguments).args(self.cluster.arguments(user));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It may end without reading.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn command(&self, arguments: &[&str], input: &str) -> Output {
        self.command_as(WRITER, arguments, input)
    }

    /// Runs a command that must succeed; its JSON.
    fn json(&self, arguments: &[&str], input: &str) -> Value {
        let output = self.command(&[arguments, &["--output", "json"]].concat(), input);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Stores a topology.
    fn apply(&self, topology: &Topology, extra: &[&str]) -> Value {
        self.json(&[&["apply", "-f", "-"], extra].concat(), &topology.to_string())
    }

    /// Stores it and waits until all have it.
    fn apply_and_wait(&self, topology: &Topology) -> Value {
        self.apply(topology, &["--prune", "--wait"])
    }

    fn agent(&self, node: &str) -> &Agent {
        self.agents.iter().find(|agent| agent.node().name() == node).unwrap()
    }

    /// Names of the ports a node has compiled.
    fn ports(&self, node: &str) -> Vec<String> {
        let ports = self.agent(node).json(&["show", "ports"]).unwrap();
        let names = ports.as_array().unwrap().iter().map(|port| port["port"].as_str().unwrap().to_owned());
        names.collect()
    }

    /// Waits until a node says of itself something that satisfies `wanted`.
    fn wait_for_problem(&self, node: &str, text: &str) {
        wait::until(&format!("{node} names: {text}"), SOON, || {
            let status = self.agent(node).status()?;
            Ok(status["wanted"]["problems"].to_string().contains(text))
        })
        .unwrap();
    }

    fn wait_until_sound(&self, node: &str) {
        wait::until(&format!("{node} has no problem"), SOON, || {
            Ok(self.agent(node).status()?["wanted"]["problems"] == json!([]))
        })
        .unwrap();
    }

    /// The key of an object.
    fn key(&self, section: &str, name: &str) -> String {
        format!("{}/config/objects/{section}/{name}", self.cluster.prefix())
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Traffic of every kind of way, of which nothing may be lost: numbered datagrams each 2 ms, TCP, pings each 1 ms.
struct Load {
    udp: Vec<UdpLoad>,
    tcp: Vec<TcpLoad>,
}

impl Load {
    fn start(lab: &Lab) -> Self {
        let [vm2, vm3, vm4, vm5] = ["vm2", "vm3", "vm4", "vm5"].map(|name| lab.workload(name));
        let load = Self {
            udp: vec![
                UdpLoad::start(vm2, vm3, vm3.v4()).unwrap(),
                UdpLoad::start(vm5, vm2, vm2.v4()).unwrap(),
                UdpLoad::start(vm4, vm2, vm2.v6()).unwrap(),
            ],
            tcp: vec![
                TcpLoad::start(vm2, vm3, vm3.v4()).unwrap(),
                TcpLoad::start(vm2, vm5, vm5.v6()).unwrap(),
            ],
        };
        load.udp.iter().for_each(|udp| udp.wait_for_more(10).unwrap());
        load
    }

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

/// The topology with a port `late` that the agents have no interface for.
fn with_a_late_port() -> Topology {
    let mut topology = standard();
    topology.ports.push(standard_port("late", "web", 77, "node-b"));
    topology
}

/// What an operator does, with TLS and users: apply, get, diff, export, delete, and what is refused.
#[test]
fn the_topology_is_changed_by_commands_and_every_node_tells_that_it_has_it() {
    let many = Many::start(&standard(), true);
    let vm1 = many.lab.workload("vm1");
    for way in ["10.0.2.13", "10.0.1.14", "10.0.2.15", "fd00:2::f"] {
        wait::until(way, SOON, || Ok(vm1.ping(way, 1, &[])?.is_clean())).unwrap();
    }
    // A trace goes on to a node of another machine by what etcd has.
    let alone = many.agents[0].alone().unwrap();
    let arguments = many.cluster.arguments(WRITER);
    let mut trace = vec!["trace", "--bpffs", "", "--port", "vm1", "udp > 10.0.2.15:7"];
    let bpffs = alone.bpffs();
    trace[2] = &bpffs;
    trace.extend(arguments.iter().map(String::as_str));
    let journey = many.agents[0].json(&trace).unwrap();
    assert_eq!(
        (&journey["hops"][1]["node"], &journey["hops"][1]["source"]),
        (&json!("node-b"), &json!("computed"))
    );
    assert_eq!(journey["verdict"]["kind"], "delivered", "{journey:#}");
    drop(alone);
    let load = Load::start(&many.lab);

    // Nothing to change is said, and changes nothing.
    let same = many.apply_and_wait(&standard());
    assert_eq!(same["changes"], json!([]));
    let done = many.apply_and_wait(&with_a_late_port());
    assert_eq!(done["changes"], json!([{ "kind": "port", "name": "late", "change": "added", "fields": {} }]));
    assert_eq!(done["nodes"], json!({ "in_force": NODES, "behind": {}, "absent": [] }));
    for node in NODES {
        assert!(many.ports(node).contains(&"late".to_owned()), "in force on {node} when apply returns");
    }

    let late = &many.json(&["get", "port", "late"], "")[0];
    assert_eq!(late["spec"]["fixed_ips"], json!(["10.0.1.77", "fd00:1::4d"]));
    assert_eq!(late["revision"], done["revision"]);
    let vnis: Vec<Value> = many
        .json(&["get", "networks"], "")
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["ids"]["vni"].clone())
        .collect();
    assert!(vnis.iter().all(|vni| vni.as_u64().is_some_and(|vni| vni >= 0x80_0000)), "{vnis:?}");
    assert_eq!(many.json(&["get", "router", "r1"], "")[0]["ids"]["router"], 1);
    for node in many.json(&["get", "nodes"], "").as_array().unwrap() {
        assert_eq!(node["state"]["health"], "ok", "{node}");
        assert_eq!(node["state"]["in_force"], done["revision"], "{node}");
        assert_eq!(node["state"]["vtep"], node["spec"]["vtep"], "{node}");
        let missing = u64::from(node["name"] == "node-b");
        assert_eq!(node["state"]["ports_missing"], missing, "{node}");
    }

    // What differs is shown field by field, and exits with 1.
    let mut changed = with_a_late_port();
    changed.port_mut("late").fixed_ips = vec!["10.0.1.78".to_owned()];
    let diff = many.command(&["diff", "-f", "-", "--output", "json"], &changed.to_string());
    assert_eq!(diff.status.code(), Some(1), "{}", said(&diff));
    let diff: Value = serde_json::from_slice(&diff.stdout).unwrap();
    assert_eq!(diff["changes"][0]["fields"]["fixed_ips"]["after"], json!(["10.0.1.78"]));
    let same = many.command(&["diff", "-f", "-", "--prune"], &with_a_late_port().to_string());
    assert_eq!(same.status.code(), Some(0), "{}", said(&same));

    // What is exported is the same topology.
    let exported = many.command(&["export"], "");
    assert!(exported.status.success(), "{}", said(&exported));
    let exported = String::from_utf8(exported.stdout).unwrap();
    let same = many.command(&["diff", "-f", "-", "--prune"], &exported);
    assert!(said(&same).contains("vni"), "numbers are stated: {}", said(&same));

    // Refused, with the reason, and nothing of it done.
    let refused = |arguments: &[&str], input: &str, reasons: &[&str]| {
        let output = many.command(arguments, input);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", said(&output));
        for reason in reasons {
            assert!(said(&output).contains(reason), "{arguments:?}: {reason}: {}", said(&output));
        }
    };
    refused(&["delete", "network", "web"], "", &["there is no network web", "port vm1 (as stored)"]);
    refused(&["delete", "port", "nobody"], "", &["there is no port nobody"]);
    refused(&["get", "port", "nobody"], "", &["there is no port nobody"]);
    let twice = "ports:\n  - { name: x1, network: web, mac: 02:00:00:00:09:01, fixed_ips: [10.0.1.90] }\n  - { name: x2, network: web, mac: 02:00:00:00:09:02, fixed_ips: [10.0.1.11] }\n";
    refused(&["apply", "-f", "-"], twice, &["standard input:3:", "10.0.1.11", "mend:"]);
    refused(&["get", "port", "x1"], "", &["there is no port x1"]);
    refused(&["apply", "-f", "-", "--revision", "1"], &standard().to_string(), &["was changed since"]);
    // A node's agent may read the topology, and not change it.
    let output = many.command_as("vrouter-node-a", &["apply", "-f", "-"], &standard().to_string());
    // The same document without `late` changes nothing, so ask for a change.
    assert!(output.status.success(), "{}", said(&output));
    let output = many.command_as("vrouter-node-a", &["delete", "port", "late"], "");
    assert!(said(&output).contains("permission denied"), "{}", said(&output));
    let output = many.command_as(
        "vrouter-node-b",
        &["port", "bind", "vm1", "--interface", "tap1", "--node", "node-a"],
        "",
    );
    assert!(said(&output).contains("permission denied"), "{}", said(&output));
    let wrong = many.lab.directory().join("wrong-password");
    std::fs::write(&wrong, "not-it").unwrap();
    let output = many.command(&["get", "ports", "--etcd-password-file", wrong.to_str().unwrap()], "");
    assert_eq!(output.status.code(), Some(2), "given twice: {}", said(&output));

    let gone = many.json(&["delete", "port", "late", "--wait"], "");
    assert_eq!(gone["changes"][0]["change"], "removed");
    for node in NODES {
        assert!(!many.ports(node).contains(&"late".to_owned()), "{node}");
        let log = many.agent(node).log();
        assert!(!log.contains("password-of"), "a secret is in the log of {node}");
    }
    // Numbers stay with their names: a network that is stored again gets its own.
    let again: Vec<Value> = many
        .json(&["get", "networks"], "")
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["ids"]["vni"].clone())
        .collect();
    assert_eq!(again, vnis);
    load.finish();
}

/// C1 to C6 with real processes: members and agents are killed, etcd is compacted, frozen, gone for long, restored
/// from an old backup. Traffic sees nothing of it.
#[test]
fn whatever_happens_to_etcd_and_the_agents_traffic_goes_on() {
    let mut many = Many::start(&standard(), false);
    let mut random = Random::new();
    let load = Load::start(&many.lab);
    let vm1 = many.lab.workload("vm1").clone();
    let backup = many.cluster.backup().unwrap();

    // Each member in turn, then whichever leads.
    for round in 0..4_u8 {
        let pings =
            ["10.0.2.13", "10.0.2.15"].map(|way| vm1.start_ping(way, 2000, &["-i", "0.001"]).unwrap());
        // A member and an agent, at some moment, while a change is applied.
        let member = if round < 3 { usize::from(round) } else { many.cluster.leader().unwrap() };
        let agent = usize::from(round % 2 == 1);
        std::thread::sleep(Duration::from_millis(random.below(300)));
        many.agents[agent].kill9();
        many.cluster.kill([member]);
        many.agents[agent].restart().unwrap();
        let mut topology = standard();
        topology.ports.push(standard_port(&format!("late{round}"), "web", 80 + round, "node-b"));
        let done = many.apply_and_wait(&topology);
        assert_eq!(done["nodes"]["behind"], json!({}), "{done}");
        many.cluster.restart([member]).unwrap();
        many.cluster.wait_healthy().unwrap();
        many.agents[agent].wait_ready(START).unwrap();
        for ping in pings {
            let ping = ping.finish(START).unwrap();
            assert!(ping.is_clean(), "round {round}: {}", ping.summary());
        }
    }

    // Missed revisions, compacted away: an agent that was away compares.
    many.agents[0].kill9();
    for number in 0..20 {
        let mut topology = standard();
        topology.ports.push(standard_port("late", "web", 90 + number, "node-b"));
        many.apply(&topology, &["--prune"]);
    }
    let revision = many.json(&["get", "port", "late"], "")[0]["revision"].to_string();
    many.cluster.etcdctl(&["compact", &revision]).unwrap();
    many.agents[0].restart().unwrap();
    many.agents[0].wait_ready(START).unwrap();
    let late = |many: &Many| {
        let ports = many.agent("node-a").json(&["show", "ports"]).unwrap();
        let ports = ports.as_array().unwrap().clone();
        ports.iter().find(|port| port["port"] == "late").map(|port| port["addresses"].to_string())
    };
    wait::until("the last change is in force", SOON, || {
        Ok(late(&many).is_some_and(|addresses| addresses.contains("10.0.1.109")))
    })
    .unwrap();

    // Frozen, as behind a disk that hangs; then all gone, longer than leases and patience last.
    many.cluster.freeze(true).unwrap();
    std::thread::sleep(Duration::from_secs(8));
    many.cluster.freeze(false).unwrap();
    many.cluster.wait_healthy().unwrap();
    many.cluster.kill(0..3);
    wait::until("the agent says that etcd is gone", SOON, || {
        Ok(many.agent("node-a").status()?["agent"]["store"]["connected"] == false)
    })
    .unwrap();
    let status = many.agent("node-a").vrouter(&["status"]).unwrap();
    assert!(said(&status).contains("etcd cannot be reached"), "{}", said(&status));

    // An agent that starts now keeps what is in force, and follows the kernel: a port that comes back is attached.
    many.agents[1].kill9();
    many.agents[1].restart().unwrap();
    many.agents[1].wait_ready(START).unwrap();
    let vm6 = many.lab.workload("vm6").clone();
    vm6.unplug().unwrap();
    wait::until("vm6 is unplugged", SOON, || Ok(!vm1.ping(vm6.v4(), 1, &["-W", "0.2"])?.is_clean())).unwrap();
    vm6.plug().unwrap();
    wait::until("vm6 is back", SOON, || Ok(vm1.ping(vm6.v4(), 1, &["-W", "0.2"])?.is_clean())).unwrap();

    // Restored from the backup of the beginning: `late` was never there.
    many.cluster.restore(&backup).unwrap();
    wait::until("what the backup has is in force", SOON, || {
        Ok(late(&many).is_none() && many.agent("node-a").status()?["agent"]["store"]["connected"] == true)
    })
    .unwrap();
    let done = many.apply_and_wait(&with_a_late_port());
    assert_eq!(done["nodes"]["in_force"], json!(NODES), "{done}");
    load.finish();
}

/// Values that a person or a newer version wrote: named, skipped with what depends on them, the last good in force.
#[test]
fn values_that_cannot_be_used_are_named_and_the_last_good_stays() {
    let mut many = Many::start(&standard(), false);
    let load = Load::start(&many.lab);
    let ports = many.ports("node-a");
    let key = many.key("networks", "db");
    let good = many.cluster.etcdctl(&["get", "--print-value-only", &key]).unwrap();
    let cases = [
        (r#"{"schema":2,"spec":{"name":"db"}}"#, "schema 2, this vrouter reads up to 1"),
        ("{{", "damaged"),
        ("", "damaged"),
        (r#"{"schema":1,"spec":{"name":"other"}}"#, "belongs under another key"),
        (r#"{"schema":1,"spec":{"name":"db","subnets":7}}"#, "subnets is not a list"),
        // By itself in order, against the rules with the others.
        (
            r#"{"schema":1,"spec":{"name":"db","vni":9000001,"subnets":[{"name":"db4","cidr":"10.0.1.0/24","gateway":"10.0.1.1"},{"name":"db6","cidr":"fd00:2::/64","gateway":"fd00:2::1"}]}}"#,
            "is the same range as",
        ),
    ];
    for (value, problem) in cases {
        many.cluster.etcdctl(&["put", &key, value]).unwrap();
        NODES.iter().for_each(|node| many.wait_for_problem(node, problem));
        assert_eq!(many.ports("node-a"), ports, "{value}");
        let nodes = many.json(&["get", "nodes"], "");
        wait::until("all see it", SOON, || {
            Ok(many
                .json(&["get", "nodes"], "")
                .as_array()
                .unwrap()
                .iter()
                .all(|node| node["state"]["health"] == "degraded"))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {nodes}"));
        // Also after a restart: the last good is kept.
        if problem == "damaged" {
            many.agents[0].kill9();
            many.agents[0].restart().unwrap();
            many.agents[0].wait_ready(START).unwrap();
            many.wait_for_problem("node-a", problem);
            assert_eq!(many.ports("node-a"), ports, "after a restart");
        }
        many.cluster.etcdctl(&["put", &key, good.trim()]).unwrap();
        NODES.iter().for_each(|node| many.wait_until_sound(node));
    }

    // Gone by hand, while others need it.
    many.cluster.etcdctl(&["del", &key]).unwrap();
    many.wait_for_problem("node-a", "is gone from etcd, but others still need it");
    assert_eq!(many.ports("node-a"), ports);
    many.cluster.etcdctl(&["put", &key, good.trim()]).unwrap();
    many.wait_until_sound("node-a");

    // A new one that never was good is left out, and what depends on it.
    many.cluster.etcdctl(&["put", &many.key("networks", "new"), "{}"]).unwrap();
    let port = r#"{"schema":1,"spec":{"name":"newport","network":"new","mac":"02:00:00:00:07:01","node":"node-a","interface":"tap-new"}}"#;
    many.cluster.etcdctl(&["put", &many.key("ports", "newport"), port]).unwrap();
    many.wait_for_problem("node-a", "port newport");
    assert_eq!(many.ports("node-a"), ports);
    // Nothing is written over what cannot be understood; naming it anew mends it.
    let output = many.command(&["apply", "-f", "-"], &with_a_late_port().to_string());
    assert!(said(&output).contains("network new in etcd cannot be used"), "{}", said(&output));
    let output = many.command(&["delete", "network", "new"], "");
    assert!(said(&output).contains("port newport (as stored): there is no network new"), "{}", said(&output));
    many.json(&["delete", "port", "newport"], "");
    many.json(&["delete", "network", "new", "--wait"], "");
    NODES.iter().for_each(|node| many.wait_until_sound(node));

    // The head itself: everything stays.
    let head = format!("{}/config/head", many.cluster.prefix());
    let good = many.cluster.etcdctl(&["get", "--print-value-only", &head]).unwrap();
    for (value, problem) in [(r#"{"schema":9}"#, "schema 9"), ("[]", "damaged")] {
        many.cluster.etcdctl(&["put", &head, value]).unwrap();
        many.wait_for_problem("node-b", problem);
    }
    many.cluster.etcdctl(&["del", &head]).unwrap();
    many.wait_for_problem("node-b", "there is no topology in etcd");
    assert_eq!(many.ports("node-a"), ports);
    many.cluster.etcdctl(&["put", &head, good.trim()]).unwrap();
    NODES.iter().for_each(|node| many.wait_until_sound(node));
    load.finish();
}

/// A port is plugged at run time, moves to another node, and keeps its connections.
#[test]
fn a_port_is_bound_at_run_time_and_moves_with_its_connections() {
    let mut topology = standard();
    let vm1 = topology.port_mut("vm1").clone();
    let many = {
        // The lab plugs it on node-a; the topology does not say where it is.
        let many = Many::start(&topology, false);
        topology.port_mut("vm1").node = String::new();
        many.apply_and_wait(&topology);
        many
    };
    let (client, mover) = (many.lab.workload("vm5").clone(), many.lab.workload("vm1").clone());
    wait::until("vm1 is nowhere", SOON, || Ok(!client.ping(mover.v4(), 1, &["-W", "0.2"])?.is_clean()))
        .unwrap();
    let bound = many
        .command(&["port", "bind", "vm1", "--interface", &vm1.interface, "--node", "node-a", "--wait"], "");
    assert!(bound.status.success(), "{}", said(&bound));
    assert!(client.ping(mover.v4(), 3, &[]).unwrap().is_clean(), "in force when bind returns");
    let refused = many.command(&["port", "bind", "nobody", "--interface", "tap9", "--node", "node-a"], "");
    assert!(said(&refused).contains("there is no port nobody"), "{}", said(&refused));
    let refused = many.command(&["port", "bind", "vm1", "--interface", "no/name", "--node", "node-a"], "");
    assert!(said(&refused).contains("cannot be a kernel interface's name"), "{}", said(&refused));

    let load = TcpLoad::start(&mover, &client, client.v4()).unwrap();
    let to_it = TcpLoad::start(&client, &mover, mover.v4()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    // It moves: gone from node-a, and there on node-b, with the same namespace behind it.
    mover.unplug().unwrap();
    mover.plug_on(many.lab.node("node-b")).unwrap();
    let bound = many
        .command(&["port", "bind", "vm1", "--interface", &vm1.interface, "--node", "node-b", "--wait"], "");
    assert!(bound.status.success(), "{}", said(&bound));
    let unbound = many.command(&["port", "unbind", "vm1", "--node", "node-a"], "");
    assert!(unbound.status.success(), "{}", said(&unbound));
    wait::until("vm1 answers on node-b", SOON, || Ok(client.ping(mover.v4(), 1, &["-W", "0.2"])?.is_clean()))
        .unwrap();
    let node = many.agent("node-b").json(&["show", "ports"]).unwrap();
    assert!(
        node.as_array()
            .unwrap()
            .iter()
            .any(|port| port["port"] == "vm1" && port["place"].to_string().contains("here")),
        "{node}"
    );
    std::thread::sleep(Duration::from_secs(2));
    assert!(load.finish().unwrap() > 0, "its connection went on");
    assert!(to_it.finish().unwrap() > 0, "the connection to it went on");
    let output = many.command(&["port", "unbind", "vm1", "--node", "node-a"], "");
    assert!(said(&output).contains("is not bound on node-a"), "{}", said(&output));
}

/// Writers that are many at once, that are too large for a transaction, that die in the middle: what is stored is
/// always one of the topologies that somebody wanted, whole.
#[test]
fn changes_are_whole_whoever_writes_and_whatever_ends_them() {
    let many = Many::start(&standard(), false);
    let mut random = Random::new();
    let generation = |number: u8| {
        let mut topology = standard();
        // More than the 128 operations of a transaction.
        topology.ports.extend((20..220).map(|last| {
            let mut port = standard_port(&format!("many{last}"), "db", last, "node-b");
            port.mac = format!("02:00:00:{number:02x}:02:{last:02x}");
            port
        }));
        topology
    };
    let stored = |many: &Many| -> Vec<String> {
        let ports = many.json(&["get", "ports"], "");
        let ports = ports
            .as_array()
            .unwrap()
            .iter()
            .filter(|port| port["name"].as_str().unwrap().starts_with("many"));
        ports.map(|port| port["spec"]["mac"].as_str().unwrap()[9..11].to_owned()).collect()
    };
    many.apply_and_wait(&generation(0));
    assert_eq!(stored(&many).len(), 200);
    for number in 1..8_u8 {
        let file = many.lab.directory().join("generation.yaml");
        std::fs::write(&file, generation(number).to_string()).unwrap();
        let mut command = many.lab.node("node-a").netns().command(vrouter_binary().unwrap());
        command.args(["apply", "-f", file.to_str().unwrap()]).args(many.cluster.arguments(WRITER));
        let mut writer = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(random.below(600)));
        writer.kill().unwrap();
        writer.wait().unwrap();
        let seen = stored(&many);
        assert_eq!(seen.len(), 200);
        assert!(seen.iter().all(|generation| *generation == seen[0]), "round {number}: a mixture: {seen:?}");
        wait::until("the nodes have what is stored", SOON, || {
            let ports = many.agent("node-a").json(&["show", "ports"])?;
            let ports = ports
                .as_array()
                .unwrap()
                .iter()
                .filter(|port| port["port"].as_str().unwrap().starts_with("many"));
            let generations: Vec<String> =
                ports.map(|port| port["mac"].as_str().unwrap()[9..11].to_owned()).collect();
            assert!(
                generations.iter().all(|generation| *generation == generations[0]),
                "a mixture is in force"
            );
            Ok(generations.len() == 200 && generations[0] == seen[0])
        })
        .unwrap();
    }
    // What was left staged is tidied up by the next who writes.
    many.apply_and_wait(&generation(9));
    assert!(stored(&many).iter().all(|generation| generation == "09"));
    let head = many
        .cluster
        .etcdctl(&["get", "--print-value-only", &format!("{}/config/head", many.cluster.prefix())])
        .unwrap();
    assert!(!head.contains("pending"), "{head}");

    // Ten at once, each adds its own: none is lost, and each says so.
    let writers: Vec<_> = (0..10_u8)
        .map(|number| {
            let document = format!(
                "ports:\n  - {{ name: own{number}, network: web, mac: 02:00:00:00:08:{number:02x}, fixed_ips: [10.0.1.{}] }}\n",
                200 + number
            );
            let file = many.lab.directory().join(format!("own{number}.yaml"));
            std::fs::write(&file, document).unwrap();
            let mut command = many.lab.node("node-a").netns().command(vrouter_binary().unwrap());
            command.args(["apply", "-f", file.to_str().unwrap()]).args(many.cluster.arguments(WRITER));
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for writer in writers {
        let output = writer.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    let ports = many.json(&["get", "ports"], "");
    let own =
        ports.as_array().unwrap().iter().filter(|port| port["name"].as_str().unwrap().starts_with("own"));
    assert_eq!(own.count(), 10);
}

// ---- ports of routers' addresses ----

impl Many {
    /// Who has which block of r1's ports, by etcd.
    fn leases(&self) -> std::collections::BTreeMap<u16, String> {
        let prefix = format!("{}/config/blocks/r1/", self.cluster.prefix());
        let listed = self.cluster.etcdctl(&["get", "--prefix", &prefix]).unwrap();
        let lines: Vec<&str> = listed.lines().collect();
        let leases = lines.chunks(2).map(|pair| {
            let block = pair[0].rsplit('/').next().unwrap().parse().unwrap();
            let lease: Value = serde_json::from_str(pair[1]).unwrap();
            (block, lease["node"].as_str().unwrap().to_owned())
        });
        leases.collect()
    }

    /// etcd's revision.
    fn revision(&self) -> u64 {
        let answer = self.cluster.etcdctl(&["get", "nothing", "--write-out", "json"]).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        answer["header"]["revision"].as_u64().unwrap()
    }

    fn blocks_of(&self, node: &str) -> Vec<u16> {
        self.leases().into_iter().filter(|(_, holder)| holder == node).map(|(block, _)| block).collect()
    }

    /// The port outside that a packet of a workload gets; `None`: it is not answered.
    fn port_of(&self, vm: &str, from: u16) -> Option<u16> {
        let to: std::net::IpAddr = "198.51.100.10".parse().unwrap();
        let outcome = Probe::udp(to, 7).from_port(from).send(self.lab.host(vm)).unwrap();
        outcome.seen(to).map(|seen| seen.port())
    }
}

/// N1, N8, N9: each node leases ports as it needs them, more before they run out, and nobody has another's.
#[test]
fn n9_ports_are_leased_and_returned_through_etcd() {
    let mut topology = with_edge();
    // Three blocks for two nodes with workloads.
    topology.router_mut("r1").gateway.as_mut().unwrap().snat_ports = Some("1024-4095".to_owned());
    let mut many = Many::start(&topology, true);
    let _services = Services::everywhere(&many.lab, &[7]).unwrap();
    wait::until("each node has a block", SOON, || {
        Ok(NODES.iter().all(|node| many.blocks_of(node).len() == 1) && many.leases().len() == 2)
    })
    .unwrap();
    let backup = many.cluster.backup().unwrap();
    for (vm, node) in [("vm2", "node-a"), ("vm4", "node-b")] {
        wait::until(&format!("{vm} reaches outside"), SOON, || Ok(many.port_of(vm, 4000).is_some())).unwrap();
        let blocks = many.blocks_of(node);
        for from in 4000..4020 {
            let port = many.port_of(vm, from).unwrap();
            assert!(blocks.contains(&(port / 1024)), "{vm}: port {port} is not of {blocks:?}");
        }
    }
    // 800 connections to one server: three quarters of a block are used, and another is leased meanwhile.
    let server = "198.51.100.10:7".parse().unwrap();
    let crowd = Sessions::start(many.lab.host("vm4"), server, 0, 800).unwrap();
    wait::until("node-b has a second block", SOON, || Ok(many.blocks_of("node-b").len() == 2)).unwrap();
    let more = Sessions::start(many.lab.host("vm4"), server, 0, 400).unwrap();
    more.wait_for_more(400).unwrap();
    assert_eq!((crowd.finish().unwrap().lost, more.finish().unwrap().lost), (vec![], vec![]));
    // The backup is restored, in which node-b has one block alone and all else is the same; many writes later nobody
    // sees by a revision that etcd went back. node-b is slow to return, and node-a, which starts anew, needs more.
    let (before, known) = (many.leases(), many.revision());
    let slow = nix::unistd::Pid::from_raw(many.agents[1].id().unwrap() as i32);
    nix::sys::signal::kill(slow, nix::sys::signal::Signal::SIGSTOP).unwrap();
    many.agents[0].kill9();
    many.cluster.restore(&backup).unwrap();
    assert_eq!(many.blocks_of("node-b").len(), 1);
    while many.revision() <= known + 10 {
        many.cluster.etcdctl(&["put", "junk", "more"]).unwrap();
    }
    let crowd = Sessions::start(many.lab.host("vm2"), server, 0, 800).unwrap();
    many.agents[0].restart().unwrap();
    many.agents[0].wait_ready(START).unwrap();
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(many.blocks_of("node-a").len(), 1, "what may be another's is not taken");
    nix::sys::signal::kill(slow, nix::sys::signal::Signal::SIGCONT).unwrap();
    wait::until("node-b has taken its block again", SOON, || Ok(many.leases() == before)).unwrap();
    std::thread::sleep(Duration::from_secs(15));
    assert_eq!(many.leases(), before);
    assert!(crowd.finish().unwrap().lost.is_empty());
    // An agent that starts anew, without etcd, goes on with its ports.
    let used = many.port_of("vm2", 4001).unwrap();
    many.cluster.kill(0..3);
    many.agents[0].kill9();
    many.agents[0].restart().unwrap();
    wait::until("node-a is at work without etcd", START, || {
        let status = many.agents[0].status()?;
        Ok(status["agent"]["alive"] == true && status["in_force"]["epoch"].as_u64() > Some(0))
    })
    .unwrap();
    assert_eq!(many.port_of("vm2", 4001), Some(used), "the same connection");
    assert!(many.port_of("vm2", 4999).is_some(), "a new one");
    many.cluster.restart(0..3).unwrap();
    many.cluster.wait_healthy().unwrap();
    many.agents[0].wait_ready(START).unwrap();
    // etcd loses the leases while no agent runs: they are taken again, none by another.
    let before = many.leases();
    let prefix = format!("{}/config/blocks/", many.cluster.prefix());
    many.agents.iter_mut().for_each(Agent::kill9);
    many.cluster.etcdctl(&["del", "--prefix", &prefix]).unwrap();
    for agent in &mut many.agents {
        agent.restart().unwrap();
        agent.wait_ready(START).unwrap();
    }
    wait::until("the leases are as they were", SOON, || Ok(many.leases() == before)).unwrap();
    // node-a goes for good: its block is free for who needs it.
    for port in ["vm1", "vm2", "vm3"] {
        topology.port_mut(port).node.clear();
    }
    topology.nodes.retain(|node| node.name != "node-a");
    many.agents[0].kill9();
    many.agents.remove(0);
    many.apply(&topology, &["--prune"]);
    let crowd = Sessions::start(many.lab.host("vm4"), server, 0, 1600).unwrap();
    wait::until("node-b has all three blocks", SOON, || Ok(many.blocks_of("node-b").len() == 3)).unwrap();
    drop(crowd);
}

/// Twenty nodes lease from sixteen blocks, want more and less, and go for good, all at once.
#[test]
fn n9_no_block_is_ever_given_twice() {
    let mut build = std::process::Command::new("cargo");
    build.args(["build", "-p", "vrouter", "--example", "leases"]);
    let output = build.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    let lab = etcd::hosts(Lab::builder().node("node-a")).build().unwrap();
    let cluster = Cluster::start(&lab, &[], false).unwrap();
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    println!("seed {seed}");
    let mut command = lab.node("node-a").netns().command(profile.join("examples/leases"));
    command.args(cluster.arguments(WRITER)).args(["--seed", &seed.to_string()]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("{told}");
    assert_eq!(told["violations"], json!([]));
    // It was no idle test.
    assert!(told["writes"].as_u64() > Some(200) && told["deleted_nodes"].as_u64() > Some(3), "{told}");
    // How many depends on the seed and on how busy the machine is; nine of sixteen were seen.
    assert!(told["most_blocks_at_once"].as_u64() > Some(6), "{told}");
}
