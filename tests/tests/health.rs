//! Health monitors: members that die leave on every node within their detection time, and return; nodes and agents
//! that die take nobody out who serves.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use vrouter_tests::agent::vrouter_binary;
use vrouter_tests::etcd::{self, WRITER};
use vrouter_tests::topology::standard;
use vrouter_tests::{Agent, Cluster, Host, Lab, wait};

const START: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(20);
const NODES: [&str; 2] = ["node-a", "node-b"];
/// Of the monitors below: three checks half a second apart, and what the last may take.
const DETECTION: Duration = Duration::from_millis(3 * 500 + 400);
/// What a machine that does everything else, too, may add to it. How many checks it took is looked at, too.
const SLACK: Duration = Duration::from_secs(8);
/// A node's lease, what etcd takes to end it, and a renewal.
const LEASE: Duration = Duration::from_secs(15 + 2 + 3);

/// m1 is vm2 on node-a; m2 is vm4 and m3 is vm5 (on the other network), both on node-b.
const BALANCED: &str = r#"
load_balancers:
  - name: lb
    network: web
    vip_addresses: [10.0.1.200]
    listeners:
      - { name: http, protocol: tcp, protocol_port: 80, default_pool: http }
      - { name: tcp, protocol: tcp, protocol_port: 81, default_pool: tcp }
      - { name: ping, protocol: udp, protocol_port: 82, default_pool: ping }
  - name: lb6
    network: web
    vip_addresses: ["fd00:1::200"]
    listeners: [{ name: http, protocol: tcp, protocol_port: 80, default_pool: http6 }]
pools:
  - name: http
    health_monitor: { type: http, delay: 0.5, timeout: 0.4, max_retries: 2, max_retries_down: 3, url_path: /health,
                      expected_codes: 200-299 }
    members:
      - { name: m1, address: 10.0.1.12, protocol_port: 8000 }
      - { name: m2, address: 10.0.1.14, protocol_port: 8000 }
      - { name: m3, address: 10.0.2.15, protocol_port: 8000 }
  - name: tcp
    health_monitor: { type: tcp, delay: 0.5, timeout: 0.4, max_retries: 2, max_retries_down: 3, monitor_port: 8000 }
    members:
      - { name: m2, address: 10.0.1.14, protocol_port: 9 }
  - name: ping
    health_monitor: { type: ping, delay: 0.5, timeout: 0.4, max_retries: 2, max_retries_down: 3 }
    members:
      - { name: m3, address: 10.0.2.15, protocol_port: 53 }
  - name: http6
    health_monitor: { type: http, delay: 0.5, timeout: 0.4, max_retries: 2, max_retries_down: 3 }
    members:
      - { name: m1, address: "fd00:1::c", protocol_port: 8000 }
      - { name: m3, address: "fd00:2::f", protocol_port: 8000 }
"#;

/// 500, and twice 200, again and again, for each family: an answer that is late is one more bad check in a row, and not the
/// third.
const UNSTEADY: u16 = 0;

/// An HTTP server that answers with a status that may change, and its name. It ends with the handle.
struct Server {
    status: Arc<AtomicU16>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(host: &Host) -> Self {
        // IPv4, too.
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8000));
        let listener = host.netns().enter(|| TcpListener::bind(any)).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (status, stop) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicBool::new(false)));
        let (answered, ended, name) = (status.clone(), stop.clone(), host.name().to_owned());
        let thread = std::thread::spawn(move || serve(&listener, &answered, &ended, &name));
        Self { status, stop, thread: Some(thread) }
    }

    fn answer_with(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, status: &AtomicU16, stop: &AtomicBool, name: &str) {
    let mut turns = [0_u8; 2];
    while !stop.load(Ordering::SeqCst) {
        let Ok((mut client, peer)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let _ = client.set_nonblocking(false);
        let _ = client.set_read_timeout(Some(Duration::from_millis(500)));
        let mut request = [0; 1024];
        let read = client.read(&mut request).unwrap_or(0);
        if read > 0 {
            let mut status = status.load(Ordering::SeqCst);
            if status == UNSTEADY {
                let turn = &mut turns[usize::from(peer.ip().to_canonical().is_ipv4())];
                status = if *turn == 0 { 500 } else { 200 };
                *turn = (*turn + 1) % 3;
            }
            let answer = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{name}",
                name.len()
            );
            let _ = client.write_all(answer.as_bytes());
        }
    }
}

/// Who answers at a VIP.
fn ask(client: &Host, vip: &str) -> std::io::Result<String> {
    let vip: SocketAddr = vip.parse().expect("a VIP");
    client
        .netns()
        .enter(|| {
            let mut connection = TcpStream::connect_timeout(&vip, Duration::from_secs(2))?;
            connection.set_read_timeout(Some(Duration::from_secs(2)))?;
            connection.write_all(b"GET / HTTP/1.1\r\nHost: vip\r\n\r\n")?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer)?;
            Ok(answer.lines().last().unwrap_or_default().to_owned())
        })
        .expect("the namespace")
}

struct World {
    agents: Vec<Agent>,
    cluster: Cluster,
    lab: Lab,
}

impl World {
    fn start(balanced: &str) -> Self {
        let topology = standard();
        let lab = etcd::hosts(Lab::builder().topology(&topology)).build().unwrap();
        let cluster = Cluster::start(&lab, &NODES, true).unwrap();
        let mut world = Self { agents: Vec::new(), cluster, lab };
        world.apply(&format!("{topology}{balanced}"));
        let agents = NODES
            .iter()
            .map(|node| world.lab.start_agent(node, &world.cluster.agent(&world.lab, node)).unwrap())
            .collect();
        world.agents = agents;
        world.agents.iter_mut().for_each(|agent| agent.wait_ready(START).unwrap());
        world
    }

    fn apply(&self, document: &str) {
        let mut command = self.lab.node("node-a").netns().command(vrouter_binary().unwrap());
        command.args(["apply", "-f", "-"]).args(self.cluster.arguments(WRITER));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(document.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn agent(&self, node: &str) -> &Agent {
        self.agents.iter().find(|agent| agent.node().name() == node).unwrap()
    }

    fn agent_mut(&mut self, node: &str) -> &mut Agent {
        self.agents.iter_mut().find(|agent| agent.node().name() == node).unwrap()
    }

    fn health(&self, node: &str) -> Value {
        self.agent(node).status().unwrap()["agent"]["health"].clone()
    }

    /// Members that a node knows not to be up, by pool and name, with how they are.
    fn not_up(&self, node: &str) -> BTreeMap<String, String> {
        let health = self.health(node);
        let listed =
            ["members", "others"].into_iter().flat_map(|list| health[list].as_array().unwrap().iter());
        let named = listed.map(|it| {
            let name = format!("{}/{}", it["pool"].as_str().unwrap(), it["member"].as_str().unwrap());
            (name, it["state"].as_str().unwrap().to_owned())
        });
        named.filter(|(_, state)| state != "up").collect()
    }

    /// Waits until every node knows exactly these not to be up; how long it took.
    fn wait_for(&self, what: &str, expected: &[(&str, &str)], most: Duration) -> Duration {
        let expected: BTreeMap<String, String> =
            expected.iter().map(|(name, state)| ((*name).to_owned(), (*state).to_owned())).collect();
        let begun = Instant::now();
        let mut seen = Vec::new();
        let running: Vec<&str> = self.running();
        wait::until(what, most, || {
            seen = running.iter().map(|node| self.not_up(node)).collect();
            Ok(seen.iter().all(|not_up| *not_up == expected))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {seen:?}"));
        begun.elapsed()
    }

    fn running(&self) -> Vec<&str> {
        self.agents.iter().filter(|agent| agent.id().is_some()).map(|agent| agent.node().name()).collect()
    }

    /// Who answers at a VIP in forty tries from a workload.
    fn answers(&self, client: &str, vip: &str) -> BTreeSet<String> {
        (0..40)
            .map(|_| ask(self.lab.workload(client), vip).unwrap_or_else(|error| error.to_string()))
            .collect()
    }

    fn log_of(&self, node: &str) -> String {
        self.agent(node).log()
    }
}

fn names(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(|name| (*name).to_owned()).collect()
}

const VIP: &str = "10.0.1.200:80";
const VIP6: &str = "[fd00:1::200]:80";

#[test]
fn members_leave_when_they_die_and_return_when_they_are_well() {
    let mut world = World::start(BALANCED);
    let lab = &world.lab;
    let mut servers: BTreeMap<&str, Server> =
        ["vm2", "vm4", "vm5"].map(|name| (name, Server::start(lab.workload(name)))).into();
    let all = &["vm2", "vm4", "vm5"];

    // Who checks whom: each node its own.
    world.wait_for("all members are well", &[], SOON);
    let checked = |node: &str| world.health(node)["members"].as_array().unwrap().len();
    wait::until("each node checks its own", SOON, || Ok((checked("node-a"), checked("node-b")) == (2, 5)))
        .unwrap();
    for client in ["vm1", "vm6"] {
        assert_eq!(world.answers(client, VIP), names(all), "{client}");
        assert_eq!(world.answers(client, VIP6), names(&["vm2", "vm5"]), "{client}");
    }

    // A server that is killed leaves on both nodes, within its detection time; by HTTP, by TCP.
    drop(servers.remove("vm4"));
    let took = world.wait_for("vm4 leaves", &[("http/m2", "down"), ("tcp/m2", "down")], DETECTION + SLACK);
    eprintln!("a killed server left everywhere after {took:?}, its detection time is {DETECTION:?}");
    for client in ["vm1", "vm6"] {
        assert_eq!(world.answers(client, VIP), names(&["vm2", "vm5"]), "{client}");
    }
    assert!(world.log_of("node-b").contains("pool http member m2: down: connection refused 3 times"));
    let refused = ask(world.lab.workload("vm1"), "10.0.1.200:81").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "all members are down: {refused}");
    servers.insert("vm4", Server::start(world.lab.workload("vm4")));
    world.wait_for("vm4 returns", &[], SOON);
    assert_eq!(world.answers("vm1", VIP), names(all));
    assert!(world.log_of("node-a").contains("node-b says: pool http member m2: up"));

    // Another status than is expected, and no answer to pings.
    servers["vm5"].answer_with(503);
    world.lab.workload("vm5").netns().set_sysctl("ipv4/icmp_echo_ignore_all", "1").unwrap();
    let expected = [("http/m3", "down"), ("http6/m3", "down"), ("ping/m3", "down")];
    world.wait_for("vm5 leaves", &expected, DETECTION + SLACK);
    let reasons: BTreeSet<String> = world.health("node-a")["others"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["reason"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(reasons, names(&["HTTP 503 3 times", "no answer to the ping 3 times"]), "told to others");
    assert_eq!(world.answers("vm6", VIP), names(&["vm2", "vm4"]));
    servers["vm5"].answer_with(204);
    world.lab.workload("vm5").netns().set_sysctl("ipv4/icmp_echo_ignore_all", "0").unwrap();
    // 204 is expected of one pool and not of the other.
    world.wait_for("vm5 returns to one", &[("http6/m3", "down")], SOON);
    servers["vm5"].answer_with(200);
    world.wait_for("vm5 returns", &[], SOON);

    // One that is now well and now not does not leave.
    let bad = |world: &World| -> Vec<u64> {
        let health = world.health("node-a");
        health["members"].as_array().unwrap().iter().map(|it| it["bad"].as_u64().unwrap()).collect()
    };
    let before = bad(&world);
    servers["vm2"].answer_with(UNSTEADY);
    wait::until("bad checks", 2 * SOON, || {
        assert_eq!(world.not_up("node-a"), BTreeMap::new(), "held by fall");
        Ok(bad(&world).iter().zip(&before).all(|(now, before)| *now >= before + 3))
    })
    .unwrap();
    servers["vm2"].answer_with(200);

    // An interface that is gone says enough.
    world.lab.workload("vm5").unplug().unwrap();
    world.wait_for("vm5 is unplugged", &expected, SOON);
    assert!(world.log_of("node-b").contains("pool ping member m3: down: interface tap-vm5 does not exist"));
    world.lab.workload("vm5").plug().unwrap();
    world.wait_for("vm5 is plugged again", &[], SOON);

    // An agent that starts again takes nobody out, and knows what its predecessor knew.
    drop(servers.remove("vm4"));
    let down = [("http/m2", "down"), ("tcp/m2", "down")];
    world.wait_for("vm4 leaves again", &down, DETECTION + SLACK);
    // In order, so that what it had leased it returns.
    world.agent_mut("node-b").stop().unwrap();
    world.agent_mut("node-b").restart().unwrap();
    world.agent_mut("node-b").wait_ready(START).unwrap();
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        let not_up = world.not_up("node-a");
        assert_eq!(not_up.keys().collect::<Vec<_>>(), ["http/m2", "tcp/m2"], "{not_up:?}");
    }
    world.wait_for("the same as before", &down, SOON);
    assert!(!world.log_of("node-a").contains("is silent"));

    // Nor does a node that comes back from a reboot bring back who was down: it knows what others heard of it.
    world.agent_mut("node-b").crash().unwrap();
    world.agent_mut("node-b").restart().unwrap();
    let begun = Instant::now();
    let checks_all = |world: &World| {
        let members = |it: Value| it["agent"]["health"]["members"].as_array().map(Vec::len);
        world.agent("node-b").status().is_ok_and(|status| members(status) == Some(5))
    };
    let mut checked = None;
    while checked.is_none_or(|since: Instant| since.elapsed() < Duration::from_secs(3)) {
        assert!(begun.elapsed() < START, "node-b does not come back");
        let not_up = world.not_up("node-a");
        assert!(down.iter().all(|(name, _)| not_up.contains_key(*name)), "{not_up:?}");
        if checked.is_none() && checks_all(&world) {
            checked = Some(Instant::now());
        }
    }
    world.agent_mut("node-b").wait_ready(START).unwrap();
    world.wait_for("the same after the reboot", &down, SOON);
    servers.insert("vm4", Server::start(world.lab.workload("vm4")));
    world.wait_for("vm4 returns again", &[], SOON);

    // A node that is silent loses its members, as long as there are others.
    world.agent_mut("node-b").kill9();
    let lost: Vec<(&str, &str)> =
        ["http/m2", "http/m3", "http6/m3", "ping/m3", "tcp/m2"].map(|it| (it, "lost")).into();
    let took = world.wait_for("node-b is silent", &lost, LEASE + SLACK);
    eprintln!("the members of a silent node left after {took:?}");
    assert_eq!(world.answers("vm1", VIP), names(&["vm2"]));
    assert_eq!(world.answers("vm1", VIP6), names(&["vm2"]));
    drop(servers.remove("vm2"));
    let mut both = lost.clone();
    both.extend([("http/m1", "down"), ("http6/m1", "down")]);
    world.wait_for("nobody is left", &both, DETECTION + SLACK);
    assert_eq!(world.answers("vm1", VIP), names(&["vm4", "vm5"]), "better lost ones than none");
    world.agent_mut("node-b").restart().unwrap();
    world.agent_mut("node-b").wait_ready(START).unwrap();
    world.wait_for("node-b is back", &[("http/m1", "down"), ("http6/m1", "down")], SOON);

    // Without etcd, what is known stays, and what a node finds itself counts.
    world.cluster.kill(0..3);
    servers.insert("vm2", Server::start(world.lab.workload("vm2")));
    wait::until("vm2 returns without etcd", SOON, || Ok(world.not_up("node-a").is_empty())).unwrap();
    assert_eq!(world.answers("vm1", VIP), names(all));
}

/// Members behind vm5 in so many pools, whose names alone are more than a value of etcd may have: 1.5 MiB.
fn many(pools: usize) -> String {
    const MEMBERS: usize = 500;
    let mut text =
        "load_balancers:\n  - name: lb\n    network: web\n    vip_addresses: [10.0.1.200]\n    listeners:\n"
            .to_owned();
    for pool in 0..pools {
        let port = 1000 + pool;
        text += &format!(
            "      - {{ name: l{pool}, protocol: tcp, protocol_port: {port}, default_pool: p{pool} }}\n"
        );
    }
    text += "pools:\n";
    for pool in 0..pools {
        text += &format!(
            "  - name: p{pool}\n    health_monitor: {{ type: tcp, delay: 60, timeout: 10 }}\n    members:\n"
        );
        for member in 0..MEMBERS {
            let name = format!("member-{member:0>200}");
            text +=
                &format!("      - {{ name: {name}, address: 10.0.2.15, protocol_port: {} }}\n", 1 + member);
        }
    }
    text
}

#[test]
fn more_members_may_be_down_than_fit_one_value_of_etcd() {
    const POOLS: usize = 20;
    const LONG: Duration = Duration::from_secs(90);
    // Two and a half megabytes in one change.
    let mut world = World::start(&many(POOLS));
    let hears_of = |world: &World, members: usize| {
        let mut seen = 0;
        wait::until("node-a hears of them", LONG, || {
            let health = world.health("node-a");
            let others = health["others"].as_array().map(Vec::as_slice).unwrap_or_default();
            seen = others.iter().filter(|it| it["state"] == "down").count();
            Ok(seen == members && others.len() == members)
        })
        .unwrap_or_else(|error| panic!("{error:#}: {seen} of {members}"));
    };
    let parts = |world: &World| {
        let prefix = format!("{}/health/node-b/words/", world.cluster.prefix());
        world
            .cluster
            .etcdctl(&["get", "--prefix", "--keys-only", &prefix])
            .unwrap()
            .split_whitespace()
            .count()
    };
    // All at once.
    world.lab.workload("vm5").unplug().unwrap();
    hears_of(&world, POOLS * 500);
    assert!(parts(&world) > 0);
    assert!(!world.log_of("node-b").contains("is not shared"), "{}", world.log_of("node-b"));
    // Who starts later, and who starts again.
    for node in NODES {
        world.agent_mut(node).kill9();
        world.agent_mut(node).restart().unwrap();
        world.agent_mut(node).wait_ready(START).unwrap();
        hears_of(&world, POOLS * 500);
    }
    // What is short again is in one value.
    world.apply(&format!("{}{}", standard(), many(1)));
    hears_of(&world, 500);
    wait::until("parts are gone", SOON, || Ok(parts(&world) == 0)).unwrap();
}
