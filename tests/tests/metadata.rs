//! Metadata: what a workload asks 169.254.169.254 and fe80::a9fe:a9fe for reaches a server with headers that say who it
//! is. Real agents, `curl` in the workloads, and a server on the node that shows what it was asked.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use vrouter_tests::frame::contains;
use vrouter_tests::system::{Check, check_all};
use vrouter_tests::topology::{Network, NodeEntry, Port, Router, Topology, standard_port};
use vrouter_tests::{AgentOptions, Lab, Mirror, System, Workload};

const PATIENCE: Duration = Duration::from_secs(10);
/// What must not come has this long to come.
const MOMENT: Duration = Duration::from_millis(200);
/// An answer that waits for nobody comes sooner, with all that `curl` takes to start: servers may take 60 s.
const AT_ONCE: Duration = Duration::from_secs(10);
const SERVER: &str = "127.0.0.1:8775";
const SECRET: &str = "open sesame";
const V4: &str = "http://169.254.169.254";
const V6: &str = "http://[fe80::a9fe:a9fe%25eth0]";
/// Connections a port may have (see docs/design/metadata.md).
const CONNECTIONS: u64 = 16;

/// Two tenants with the same addresses, and a network without a router.
///
/// ```text
/// node-a   vm1 red 10.0.1.11 fd00:1::b   vm2 blue 10.0.1.11 fd00:1::b   vm3 alone 10.0.1.13
/// node-b   vm4 red 10.0.1.14 fd00:1::e
/// ```
fn topology() -> Topology {
    let subnets = |name: &str| [format!("{name}4"), format!("{name}6")];
    let network = |name: &str| {
        let [v4, v6] = subnets(name);
        Network::new(name, &[(&v4, "10.0.1.0/24", "10.0.1.1"), (&v6, "fd00:1::/64", "fd00:1::1")])
    };
    let router = |name: &str, network: &str| {
        let subnets = subnets(network);
        Router::new(name, &subnets.each_ref().map(String::as_str))
    };
    let port = |name: &str, network: &str, number: u8, node: &str| Port {
        network: network.to_owned(),
        ..standard_port(name, "web", number, node)
    };
    let mut topology = Topology {
        networks: vec![
            network("red"),
            network("blue"),
            Network::new("alone", &[("alone4", "10.0.1.0/24", "")]),
        ],
        routers: vec![router("r-red", "red"), router("r-blue", "blue")],
        ports: vec![
            port("vm1", "red", 11, "node-a"),
            port("vm2", "blue", 11, "node-a"),
            Port { fixed_ips: vec!["10.0.1.13".to_owned()], ..port("vm3", "alone", 13, "node-a") },
            port("vm4", "red", 14, "node-b"),
        ],
        nodes: vec![NodeEntry::new("node-a", "192.0.2.1"), NodeEntry::new("node-b", "192.0.2.2")],
        ..Topology::default()
    };
    for (port, device, project) in [("vm1", "b7a5-red", "red-team"), ("vm2", "b7a5-blue", "blue-team")] {
        topology.port_mut(port).extra = vec![format!("device_id: {device}"), format!("project: {project}")];
    }
    topology
}

struct Metadata {
    // Before the lab.
    _server: Mirror,
    system: System,
}

impl Metadata {
    fn start() -> Self {
        let topology = topology();
        let lab = Lab::builder().topology(&topology).build().unwrap();
        let secret = lab.directory().join("secret");
        std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
        let extra = ["--metadata-server", &format!("http://{SERVER}"), "--metadata-secret-file"];
        let mut extra: Vec<String> = extra.map(str::to_owned).to_vec();
        extra.push(secret.display().to_string());
        let options = AgentOptions { extra, ..AgentOptions::default() };
        let agents =
            ["node-a", "node-b"].map(|node| (node.to_owned(), lab.start_agent(node, &options).unwrap()));
        let system = System::adopt(BTreeMap::from(agents), lab).unwrap();
        // As DHCP would tell it.
        system.workload("vm3").netns().ip(&["route add 169.254.169.254 dev eth0"]).unwrap();
        let server = Mirror::start(system.node("node-a").netns(), address()).unwrap();
        Self { system, _server: server }
    }

    fn vm(&self, name: &str) -> &Workload {
        self.system.workload(name)
    }

    fn status(&self) -> serde_json::Value {
        self.system.agent("node-a").status().unwrap()["agent"]["metadata"].clone()
    }
}

fn address() -> SocketAddr {
    SERVER.parse().unwrap()
}

/// The status, and what came with it.
fn curl(vm: &Workload, arguments: &str) -> (u16, String) {
    let line =
        format!("curl --silent --show-error --globoff --max-time 30 --write-out %{{http_code}} {arguments}");
    let text = vm.run(&line).unwrap();
    let (body, status) = text.split_at(text.len() - 3);
    (status.parse().unwrap(), body.to_owned())
}

/// The headers of a request that the server has shown.
fn headers(request: &str) -> BTreeMap<&str, &str> {
    let lines = request.lines().skip(1).take_while(|line| !line.is_empty());
    lines.map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{line}"))).collect()
}

fn signature(instance: &str) -> String {
    let line = format!("printf %s {instance} | openssl dgst -sha256 -hmac '{SECRET}' -r");
    let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_once(' ').unwrap().0.to_owned()
}

/// Each is seen as itself, with the same addresses as another, with a router and without, over IPv4 and IPv6.
fn who_asks_is_told(lab: &Metadata) {
    for (vm, instance, project, network) in [
        ("vm1", "b7a5-red", Some("red-team"), "red"),
        ("vm2", "b7a5-blue", Some("blue-team"), "blue"),
        ("vm3", "vm3", None, "alone"),
    ] {
        for base in [V4, V6] {
            let vm = lab.vm(vm);
            let (status, request) = curl(vm, &format!("{base}/openstack/latest/meta_data.json?a=b"));
            assert_eq!(status, 200, "{}: {request}", vm.name());
            assert!(
                request.starts_with("GET /openstack/latest/meta_data.json?a=b HTTP/1.1\r\n"),
                "{request}"
            );
            let told = headers(&request);
            assert_eq!(told.get("x-instance-id"), Some(&instance));
            assert_eq!(told.get("x-instance-id-signature"), Some(&&*signature(instance)));
            assert_eq!(told.get("x-tenant-id").copied(), project);
            assert_eq!(told.get("x-neutron-network-id"), Some(&network));
            assert_eq!(told.get("host"), Some(&SERVER));
            let from = told["x-forwarded-for"];
            if base == V4 {
                assert_eq!(from, vm.v4());
            } else {
                assert!(from.starts_with("fe80::"), "{from}");
            }
        }
    }
}

/// What a workload says of itself is not believed, however it is written.
fn forgeries_do_not_arrive(lab: &Metadata) {
    let forged =
        ["X-Instance-ID", "x_instance_id", "X-Instance-ID-Signature", "X-Tenant-ID", "X-Forwarded-For"];
    let forged = forged.map(|name| format!("-H {name}:forged")).join(" ");
    let others =
        "-H X-Metadata-Provider:forged -H X-Neutron-Router-ID:forged -H Forwarded:forged -H X-Token:honest";
    let (status, request) = curl(lab.vm("vm1"), &format!("{forged} {others} {V4}/"));
    assert_eq!(status, 200, "{request}");
    assert!(!request.contains("forged"), "{request}");
    let told = headers(&request);
    assert_eq!((told["x-instance-id"], told["x-token"]), ("b7a5-red", "honest"));
}

/// A mebibyte comes, and a body of 60000 bytes goes through a kernel that leaves cutting to its network card.
fn much_arrives_whole(lab: &Metadata) {
    let vm = lab.vm("vm1");
    for base in [V4, V6] {
        let started = Instant::now();
        let (status, body) = curl(vm, &format!("{base}/large"));
        assert_eq!(status, 200);
        assert!(body.as_bytes() == Mirror::large(), "{} bytes", body.len());
        println!("a mebibyte in {} ms", started.elapsed().as_millis());
        let file = lab.system.directory().join("body");
        let content: String = (0..6000).map(|line| format!("{line:09}\n")).collect();
        std::fs::write(&file, &content).unwrap();
        let (status, request) = curl(vm, &format!("--data-binary @{} {base}/password", file.display()));
        assert_eq!(status, 200, "{request}");
        assert!(request.ends_with(&format!("\r\n\r\n{content}")), "{} bytes", request.len());
    }
}

/// Refusals say what is wrong, and a server's own answer goes through.
fn refusals_say_why(lab: &Metadata) {
    let vm = lab.vm("vm1");
    for (arguments, status, words) in [
        (format!("-H Transfer-Encoding:chunked -d x {V4}/"), 411, "must say Content-Length"),
        (format!("-H Content-Length:70000 -d x {V4}/"), 413, "larger than 64 KiB"),
        (format!("-X CONNECT {V4}/"), 405, "does not take CONNECT"),
        (format!("{V4}/forbidden"), 403, "no\n"),
    ] {
        let (got, body) = curl(vm, &arguments);
        assert_eq!(got, status, "{arguments}: {body}");
        assert!(body.contains(words), "{arguments}: {body}");
    }
    let log = lab.system.agent("node-a").log();
    assert!(log.contains("answers 403: is the shared secret"), "the operator is told");
}

/// A server that is down is said at once; here: that of node-b, which has none.
fn a_server_that_is_down_is_said(lab: &Metadata) {
    let started = Instant::now();
    let (status, body) = curl(lab.vm("vm4"), &format!("{V4}/"));
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("cannot be reached from this node"), "{body}");
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    let log = lab.system.agent("node-b").log();
    assert!(log.contains(&format!("metadata server http://{SERVER}")), "the operator is told");
}

/// A hundred connections that never come about hinder neither others nor their own port.
fn half_open_connections_hinder_nobody(lab: &Metadata) {
    let vm = lab.vm("vm1");
    // Its kernel would reset what it did not open.
    vm.netns()
        .nft(
            "table inet half { chain heard { type filter hook input priority 0; tcp dport 20000-20099 drop\n}\n}",
        )
        .unwrap();
    let (from, to) = (vm.spec_mac(), vm.gateway_mac(false).unwrap());
    let source: Ipv4Addr = vm.v4().parse().unwrap();
    let before = lab.status()["refused"].clone();
    let opening = (20000..20100).map(|port| {
        let builder = PacketBuilder::ethernet2(from, to).ipv4(source.octets(), [169, 254, 169, 254], 64);
        let mut frame = Vec::new();
        builder.tcp(port, 80, 1, 64240).syn().write(&mut frame, &[]).unwrap();
        frame
    });
    // They last for 5 s, which a busy machine may take to look: then there are new ones.
    let started = Instant::now();
    let held = || lab.status()["connections"].as_u64().unwrap();
    loop {
        vm.flood(opening.clone()).unwrap();
        if held() >= CONNECTIONS {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{}", lab.status());
    }
    for name in ["vm2", "vm1"] {
        let started = Instant::now();
        assert_eq!(curl(lab.vm(name), &format!("{V4}/")).0, 200, "{name}");
        assert!(started.elapsed() < AT_ONCE, "{name}: {:?}", started.elapsed());
    }
    let status = lab.status();
    let connections = status["connections"].as_u64().unwrap();
    assert!(connections < 2 * CONNECTIONS, "{status}");
    assert_eq!(status["refused"]["too_many_connections"], before["too_many_connections"], "{status}");
    vm.netns().nft("delete table inet half").unwrap();
}

/// Nothing of it leaves the node: not from a network without router, nor from one that others have ports on.
fn nothing_is_on_the_underlay(lab: &Metadata) {
    let sniffer = lab.system.sniff_underlay("node-a").unwrap();
    for (vm, base) in [("vm1", V4), ("vm1", V6), ("vm3", V4)] {
        assert_eq!(curl(lab.vm(vm), &format!("{base}/quiet")).0, 200);
    }
    // It does hear what leaves the node.
    assert!(lab.vm("vm1").ping("10.0.1.14", 1, &["-p", "a5c3a5c3"]).unwrap().is_clean());
    let mut heard = Vec::new();
    while !heard.last().is_some_and(|frame: &Vec<u8>| contains(frame, b"\xa5\xc3\xa5\xc3")) {
        heard.push(sniffer.next(PATIENCE).unwrap().expect("the ping"));
    }
    heard.extend(sniffer.collect(MOMENT, |_| true).unwrap());
    for frame in heard {
        let is_ours = contains(&frame, &[169, 254, 169, 254]) || contains(&frame, &[0xa9, 0xfe, 0xa9, 0xfe]);
        assert!(!is_ours && !contains(&frame, b"/quiet"), "on the underlay: {frame:02x?}");
    }
}

/// What was asked and refused is counted.
fn it_is_counted(lab: &Metadata) {
    let status = lab.status();
    assert_eq!((&status["server"], &status["signed"]), (&format!("http://{SERVER}").into(), &true.into()));
    for (what, least) in
        [("/answered/2xx", 10), ("/answered/4xx", 1), ("/refused/bad_method", 1), ("/bytes", 2 << 20)]
    {
        let count = status.pointer(what).and_then(serde_json::Value::as_u64);
        assert!(count.is_some_and(|count| count >= least), "{what}: {status}");
    }
    let output = lab.system.agent("node-a").vrouter(&["status"]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&format!("metadata   http://{SERVER}; ")), "{text}");
    let metrics =
        lab.system.node("node-a").netns().run("curl --silent http://127.0.0.1:9476/metrics").unwrap();
    for row in
        ["answered_total{status=\"2xx\"} ", "refused_total{reason=\"bad_method\"} 1", "sent_bytes_total "]
    {
        assert!(metrics.contains(&format!("vrouter_metadata_{row}")), "{row}: {metrics}");
    }
}

#[test]
fn workloads_reach_the_metadata_server_as_themselves() {
    let lab = Metadata::start();
    let checks: &[Check<Metadata>] = &[
        ("who asks is told", who_asks_is_told),
        ("forgeries do not arrive", forgeries_do_not_arrive),
        ("much arrives whole", much_arrives_whole),
        ("refusals say why", refusals_say_why),
        ("a server that is down is said", a_server_that_is_down_is_said),
        ("half-open connections hinder nobody", half_open_connections_hinder_nobody),
        ("nothing is on the underlay", nothing_is_on_the_underlay),
        ("it is counted", it_is_counted),
    ];
    check_all(&lab, checks);
}
