//! `vrouter monitor`: drops and flows as they happen, with names and reasons; what it costs when nobody listens, and
//! when a listener does not keep up.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use vrouter_tests::frame::Addressing;
use vrouter_tests::system::{Check, check_all};
use vrouter_tests::topology::{Network, Port, Router, Topology, with_outside};
use vrouter_tests::{AgentOptions, Probe, Process, System};

const NODE: &str = "node-a";
const PATIENCE: Duration = Duration::from_secs(20);
/// The listener's lease, and some.
const LEASE: Duration = Duration::from_millis(3500);
const SERVER1: &str = "198.51.100.10";
const ROUTER: &str = "203.0.113.10";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// vm3 accepts nothing; vm7 is behind a router that leads nowhere.
fn topology() -> Topology {
    let mut topology = with_outside().on_one_node();
    topology.add_group("closed", &["{ direction: egress }"]);
    topology.put_into("vm3", &["closed"]);
    topology.networks.insert(0, Network::new("lone", &[("lone4", "10.0.9.0/24", "10.0.9.1")]));
    topology.routers.push(Router::new("r2", &["lone4"]));
    topology.ports.push(Port {
        name: "vm7".to_owned(),
        network: "lone".to_owned(),
        mac: "02:00:00:00:09:11".to_owned(),
        fixed_ips: vec!["10.0.9.17".to_owned()],
        security_groups: None,
        node: NODE.to_owned(),
        interface: "tap-vm7".to_owned(),
        extra: Vec::new(),
    });
    topology
}

/// A `vrouter monitor` at work.
struct Monitor(Process);

impl Monitor {
    fn start(system: &System, arguments: &[&str]) -> Self {
        let agent = system.agent(NODE);
        let mut process = Process::spawn(&mut agent.command(&[&["monitor"], arguments].concat())).unwrap();
        process.wait_for_text("listening", PATIENCE).unwrap();
        Self(process)
    }

    fn rows(&self) -> Vec<Value> {
        // Lines that are not whole yet, and what is for people, are no JSON.
        self.0.printed().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a record.
    fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(row) = self.rows().into_iter().find(&wanted) {
                return row;
            }
            assert!(Instant::now() < deadline, "{what} was not told, but:\n{}", self.0.printed());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it: its records, and its last line.
    fn end(mut self) -> (Vec<Value>, Value) {
        self.0.signal(Signal::SIGTERM).unwrap();
        assert!(self.0.wait(PATIENCE).unwrap().success(), "{}", self.0.printed());
        let mut rows = self.rows();
        let summary = rows.pop().expect("a summary");
        assert_eq!(summary["what"], "summary", "{}", self.0.printed());
        (rows, summary)
    }
}

/// A frame of vm1 with a source address that is not its own.
fn spoofed(system: &System) -> Addressing {
    let vm1 = system.workload("vm1");
    Addressing {
        from: vm1.mac().unwrap(),
        to: gateway_mac(system),
        source: ip("10.0.1.99"),
        destination: ip("10.0.2.15"),
        ttl: 64,
    }
}

fn gateway_mac(system: &System) -> [u8; 6] {
    let vm1 = system.workload("vm1");
    let own = ip(vm1.v4());
    vm1.who_has(own, ip("10.0.1.1"), Duration::from_secs(1)).unwrap()[0]
}

/// vm7 sends a datagram to where its router has no route.
fn lost(system: &System, port: u16) {
    Probe::udp(ip(SERVER1), port).timeout(Duration::from_millis(500)).send(system.host("vm7")).unwrap();
}

/// Bytes of the only value of a map, as bpftool prints them.
fn value_of(system: &System, map: &str) -> Value {
    let path = format!("/sys/fs/bpf/vrouter/{}/maps/{map}", system.agent(NODE).instance());
    let output = std::process::Command::new("bpftool")
        .args(["--json", "map", "dump", "pinned", &path])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Planted drops are told with their reasons and the names of both ends.
fn drops_have_reasons_and_names(system: &System) {
    let monitor = Monitor::start(system, &["--drops", "--output", "json"]);
    let vm1 = system.host("vm1");
    vm1.raw_send(&spoofed(system).udp(4001, 53, b"spoofed")).unwrap();
    Probe::udp(ip("10.0.2.13"), 53).from_port(4002).send(vm1).unwrap();
    lost(system, 4003);
    let row = monitor.wait_for("the spoofed address", |row| row["reason"] == "spoofed_ip");
    assert_eq!((&row["original"]["src"], &row["protocol"]), (&"10.0.1.99".into(), &"udp".into()), "{row}");
    assert_eq!((&row["from"]["port"], &row["to"]["port"]), (&"vm1".into(), &"vm5".into()), "{row}");
    assert_eq!(row["interface"], "tap-vm1", "{row}");
    assert!(row["packet"].as_str().unwrap().contains(&hex(b"spoofed")), "{row}");
    let row = monitor.wait_for("the closed group", |row| row["reason"] == "policy_ingress");
    assert_eq!((&row["from"]["port"], &row["to"]["port"]), (&"vm1".into(), &"vm3".into()), "{row}");
    assert_eq!((&row["original"]["sport"], &row["original"]["dport"]), (&4002.into(), &53.into()), "{row}");
    let sentence = row["description"].as_str().unwrap();
    assert_eq!(sentence, "No rule of the receiving port's security groups allows it.");
    let row = monitor.wait_for("the lost route", |row| row["reason"] == "no_route");
    assert_eq!((&row["from"]["port"], &row["original"]["dst"]), (&"vm7".into(), &SERVER1.into()), "{row}");
    let (rows, summary) = monitor.end();
    assert!(rows.iter().all(|row| row["what"] == "dropped"), "{rows:?}");
    assert_eq!((summary["seen"].as_u64(), summary["lost"].as_u64()), (Some(rows.len() as u64), Some(0)));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Flows are told when they begin, with translation and rule, and when they are forgotten, with what they carried.
fn flows_begin_and_end(system: &System) {
    let monitor =
        Monitor::start(system, &["--flows", "--port", "vm2", "--proto", "icmp", "--output", "json"]);
    assert!(system.host("vm2").ping("10.0.2.15", 2, &["-i", "0.1"]).unwrap().is_clean());
    system.host("vm2").ping(SERVER1, 1, &[]).unwrap();
    // Not asked for.
    system.host("vm4").ping("10.0.2.15", 1, &[]).unwrap();
    let row = monitor.wait_for("vm2 to vm5", |row| row["to"]["port"] == "vm5" && row["what"] == "new");
    assert_eq!(row["from"]["port"], "vm2", "{row}");
    assert!(row["rule"].is_string(), "{row}");
    let row = monitor.wait_for("vm2 outside", |row| row["original"]["dst"] == SERVER1);
    assert_eq!((&row["translated"]["src"], &row["router"]), (&ROUTER.into(), &"r1".into()), "{row}");
    let row = monitor.wait_for("its end", |row| row["to"]["port"] == "vm5" && row["what"] == "closed");
    assert_eq!((&row["original_packets"], &row["reply_packets"]), (&2.into(), &2.into()), "{row}");
    let (rows, _) = monitor.end();
    assert!(rows.iter().all(|row| row["from"]["port"] == "vm2" || row["to"]["port"] == "vm2"), "{rows:?}");
}

/// Only what was asked for comes, one of so many; nothing is left uncounted; a second listener is told who the first is.
fn filters_and_samples(system: &System) {
    const SENT: u64 = 400;
    let arguments = ["--reason", "spoofed_ip", "--l4port", "53", "--sample", "10", "--output", "json"];
    let monitor = Monitor::start(system, &arguments);
    let second = system.agent(NODE).vrouter(&["monitor", "--count", "1"]).unwrap();
    let complaint = String::from_utf8_lossy(&second.stderr).into_owned();
    let first = format!("process {}", monitor.0.id());
    assert!(!second.status.success() && complaint.contains(&first), "{complaint}");
    let frame = spoofed(system).udp(4001, 53, b"one of many");
    let other = spoofed(system).udp(4001, 54, b"another port");
    let frames = (0..SENT).flat_map(|_| [frame.clone(), other.clone()]);
    assert_eq!(system.host("vm1").flood(frames).unwrap(), 2 * SENT);
    lost(system, 53);
    std::thread::sleep(Duration::from_millis(500));
    let (rows, summary) = monitor.end();
    let count = |name: &str| summary[name].as_u64().unwrap();
    assert_eq!((count("wanted"), count("lost")), (SENT, 0), "{summary}");
    assert_eq!(count("skipped") + count("seen"), SENT, "{summary}");
    // Each CPU counts for itself.
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    assert!((SENT / 10 - cpus..=SENT / 10 + cpus).contains(&count("seen")), "{summary}");
    assert!(
        rows.iter().all(|row| row["original"]["dport"] == 53 && row["reason"] == "spoofed_ip"),
        "{rows:?}"
    );
}

/// A listener that is stopped costs records, which it is told of, and no packet.
fn a_stopped_reader_loses_records_not_packets(system: &System) {
    const SENT: u64 = 40_000;
    let mut monitor = Monitor::start(system, &["--drops", "--output", "json"]);
    let frame = spoofed(system).udp(4001, 53, &[0x5a; 100]);
    let ping = system.host("vm2").start_ping("10.0.2.15", 200, &["-i", "0.01"]).unwrap();
    monitor.0.signal(Signal::SIGSTOP).unwrap();
    let dropped = system.dropped(NODE, "spoofed_ip").unwrap();
    let sent = system.host("vm1").flood((0..SENT).map(|_| frame.clone())).unwrap();
    let ping = ping.finish(PATIENCE).unwrap();
    assert!(ping.is_clean(), "{}", ping.summary());
    assert_eq!(system.dropped(NODE, "spoofed_ip").unwrap() - dropped, sent, "all were dropped");
    monitor.0.signal(Signal::SIGCONT).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let (rows, summary) = monitor.end();
    let count = |name: &str| summary[name].as_u64().unwrap();
    assert!(count("lost") > 0 && !rows.is_empty(), "{summary}");
    assert_eq!(count("seen") + count("lost"), count("wanted"), "{summary}");
}

/// A listener that was killed is forgotten.
fn a_killed_listener_is_forgotten(system: &System) {
    let mut monitor = Monitor::start(system, &["--drops", "--output", "json"]);
    lost(system, 4005);
    monitor.wait_for("a drop", |row| row["reason"] == "no_route");
    monitor.0.kill();
    let is_on = |system: &System| {
        let set = value_of(system, "MONITOR_SET");
        let bytes = set[0]["value"].as_array().unwrap();
        bytes[..8].iter().any(|byte| byte != "0x00")
    };
    assert!(is_on(system), "nobody has switched it off");
    std::thread::sleep(LEASE);
    let before = value_of(system, "MONITOR_COUNT");
    for _ in 0..3 {
        lost(system, 4006);
    }
    assert_eq!(value_of(system, "MONITOR_COUNT"), before, "nothing is recorded any more");
    assert!(!is_on(system), "the data path has switched it off: one load from now on");
    // And the next one begins afresh.
    let monitor = Monitor::start(system, &["--reason", "no_route", "--output", "json"]);
    lost(system, 4007);
    let row = monitor.wait_for("a drop", |row| row["reason"] == "no_route");
    assert_eq!(row["original"]["dport"], 4007, "nothing of the one before: {row}");
    monitor.end();
}

/// Another program reads what was written: packets, the ports they came from, and what became of them.
fn captures_open_elsewhere(system: &System) {
    let path = system.directory().join("drops.pcapng");
    let file = path.to_str().unwrap();
    let mut monitor = Monitor::start(system, &["--drops", "--write", file, "--count", "2"]);
    system.host("vm1").raw_send(&spoofed(system).udp(4001, 53, &[7; 1000])).unwrap();
    lost(system, 4008);
    assert!(monitor.0.wait(PATIENCE).unwrap().success());
    assert!(monitor.0.printed().contains("2 seen, 0 lost"), "{}", monitor.0.printed());
    let fields = ["frame.interface_name", "frame.len", "frame.cap_len", "udp.dstport", "frame.comment"];
    let mut tshark = std::process::Command::new("tshark");
    tshark.args(["-r", file, "-T", "fields", "-E", "separator=|"]);
    let output = tshark.args(fields.iter().flat_map(|field| ["-e", field])).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split('|').collect()).collect();
    assert_eq!(lines.len(), 2, "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(lines[0][..4], ["vm1", "1042", "128", "53"], "{printed}");
    assert!(lines[0][4].starts_with("dropped: spoofed_ip: The source address is neither"), "{printed}");
    assert!(lines[0][4].ends_with("(vm1 -> vm5)"), "{printed}");
    assert_eq!((lines[1][0], lines[1][3]), ("vm7", "4008"), "{printed}");
    assert!(lines[1][4].starts_with("dropped: no_route: No route"), "{printed}");
}

#[test]
fn what_is_dropped_is_told_with_names_and_reasons() {
    let extra = ["--timeout", "icmp=2"].map(str::to_owned).to_vec();
    let options = AgentOptions { extra, ..AgentOptions::default() };
    let system = System::start_with(&topology(), &options).unwrap();
    let checks: &[Check<System>] = &[
        ("drops have reasons and names", drops_have_reasons_and_names),
        ("flows begin and end", flows_begin_and_end),
        ("filters and samples", filters_and_samples),
        ("a stopped reader loses records, not packets", a_stopped_reader_loses_records_not_packets),
        ("a killed listener is forgotten", a_killed_listener_is_forgotten),
        ("captures open elsewhere", captures_open_elsewhere),
    ];
    check_all(&system, checks);
}
