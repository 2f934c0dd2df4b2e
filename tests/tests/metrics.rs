//! Metrics as Prometheus finds them, and what is made of them: alerts and a dashboard.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use vrouter_tests::topology::{standard, with_edge};
use vrouter_tests::{AgentOptions, Probe, Services, System, wait};

const SOON: Duration = Duration::from_secs(20);
const AT: &str = "127.0.0.1:9476";

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging")
}

/// What curl gets on the node.
fn scrape(system: &System, node: &str) -> String {
    system
        .node(node)
        .netns()
        .run(&format!("curl --silent --show-error --max-time 5 http://{AT}/metrics"))
        .unwrap()
}

fn value(text: &str, row: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(row)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {row} in\n{text}")).trim().parse().unwrap()
}

/// Names of metrics in a text, as rows or as parts of an expression.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("vrouter_")).map(str::to_owned).collect()
}

fn promtool(arguments: &[&str], input: Option<&str>) -> (bool, String) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(packaging().join("prometheus"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().expect("promtool");
    process.stdin.take().unwrap().write_all(input.unwrap_or("").as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn alerts_load_and_fire_when_they_should() {
    for arguments in [&["check", "rules", "vrouter.rules.yml"][..], &["test", "rules", "vrouter.tests.yml"]] {
        let (ok, text) = promtool(arguments, None);
        assert!(ok && text.contains("SUCCESS"), "{arguments:?}: {text}");
    }
    let (ok, text) = promtool(&["check", "config", "--syntax-only", "prometheus.yml"], None);
    assert!(ok, "{text}");
}

/// What the data path counts is what is served; who asks slowly keeps nobody waiting.
#[test]
fn metrics_say_what_happened_however_many_ask() {
    let mut system = System::start(&with_edge()).unwrap();
    let _services = Services::everywhere(&system, &[7]).unwrap();
    for node in ["node-a", "gw-1"] {
        system.node(node).netns().ip(&["link set lo up"]).unwrap();
        wait::until("metrics are served", SOON, || {
            Ok(system
                .node(node)
                .netns()
                .output(&format!("curl --silent http://{AT}/metrics"))?
                .status
                .success())
        })
        .unwrap();
    }
    let drops = |text: &str, reason: &str| {
        value(text, &format!("vrouter_dropped_packets_total{{reason=\"{reason}\"}}"))
    };
    let before = scrape(&system, "node-a");
    // Five packets of a source that vm2 does not have, and a conversation.
    let (own, gateway) =
        (system.workload("vm2").spec_mac(), system.workload("vm2").gateway_mac(false).unwrap());
    for port in 0..5 {
        let spoofed = etherparse::PacketBuilder::ethernet2(own, gateway)
            .ipv4([10, 0, 1, 200], [10, 0, 2, 13], 64)
            .udp(999, 1000 + port);
        let mut frame = Vec::new();
        spoofed.write(&mut frame, &[0; 20]).unwrap();
        system.host("vm2").raw_send(&frame).unwrap();
    }
    let to = "10.0.2.15".parse().unwrap();
    assert!(Probe::udp(to, 7).send(system.host("vm1")).unwrap().seen(to).is_some());
    wait::until("five are counted", SOON, || {
        Ok(drops(&scrape(&system, "node-a"), "spoofed_ip") - drops(&before, "spoofed_ip") == 5.0)
    })
    .unwrap();
    let after = scrape(&system, "node-a");
    assert_eq!(drops(&after, "policy_ingress"), drops(&before, "policy_ingress"));
    let received = |text: &str| value(text, "vrouter_port_receive_packets_total{port=\"vm2\"}");
    assert!(received(&after) >= received(&before) + 5.0);
    assert_eq!(value(&after, "vrouter_topology_in_force"), 1.0);
    assert_eq!(value(&after, "vrouter_ports{state=\"up\"}"), 3.0);
    wait::until("gateways are up", SOON, || {
        let text = scrape(&system, "node-a");
        Ok(["gw-1", "gw-2"].iter().all(|gateway| {
            value(&text, &format!("vrouter_gateway_up{{network=\"public\",gateway=\"{gateway}\"}}")) == 1.0
        }))
    })
    .unwrap();

    // A connection that is translated, found by a pass through the tables.
    let server = "198.51.100.10".parse().unwrap();
    wait::until("it is counted", SOON, || {
        drop(Probe::udp(server, 7).from_port(4000).send(system.host("vm2"))?);
        Ok(scrape(&system, "node-a")
            .contains("vrouter_snat_connections{router=\"r1\",address=\"203.0.113.10\"}"))
    })
    .unwrap();
    let after = scrape(&system, "node-a");
    assert!(value(&after, "vrouter_snat_ports_needed{router=\"r1\",address=\"203.0.113.10\"}") >= 1.0);

    // Prometheus reads it, and everything that alerts and panels name is there (or is of what this lab has not).
    let edge = scrape(&system, "gw-1");
    for text in [&after, &edge] {
        let (ok, said) = promtool(&["check", "metrics"], Some(text));
        assert!(ok, "{said}");
    }
    let served = names(&format!("{after}{edge}"));
    let elsewhere: BTreeSet<String> = [
        "vrouter_etcd_connected",
        "vrouter_topology_revision_in_force",
        "vrouter_bgp_session_established",
        "vrouter_member_up",
    ]
    .map(str::to_owned)
    .into();
    let rules = std::fs::read_to_string(packaging().join("prometheus/vrouter.rules.yml")).unwrap();
    let dashboard = std::fs::read_to_string(packaging().join("grafana/vrouter.json")).unwrap();
    let parsed: Value = serde_json::from_str(&dashboard).unwrap();
    assert!(parsed["panels"].as_array().unwrap().len() > 20);
    for (what, text) in [("the rules", rules), ("the dashboard", dashboard)] {
        let unknown: Vec<_> = names(&text)
            .into_iter()
            .filter(|name| !served.contains(name) && !elsewhere.contains(name))
            .collect();
        assert_eq!(unknown, Vec::<String>::new(), "{what}");
    }

    // Two hundred clients that say nothing, as many as there are places and more: who asks gets an answer, and the agent
    // notices nothing.
    let slow: Vec<_> = system
        .node("node-a")
        .netns()
        .enter(|| (0..200).filter_map(|_| TcpStream::connect(AT).ok()).collect::<Vec<_>>())
        .unwrap();
    assert!(slow.len() >= 100, "{}", slow.len());
    std::thread::sleep(Duration::from_secs(2));
    for _ in 0..3 {
        assert!(scrape(&system, "node-a").contains("vrouter_agent_info"));
    }
    let asked = Instant::now();
    system.agent("node-a").status().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    drop(slow);

    // Counters of the data path go on where they were, whatever becomes of the agent.
    system.agent_mut("node-a").kill9();
    system.agent_mut("node-a").restart().unwrap();
    system.agent_mut("node-a").wait_ready(SOON).unwrap();
    wait::until("metrics are served again", SOON, || {
        Ok(system
            .node("node-a")
            .netns()
            .output(&format!("curl --silent http://{AT}/metrics"))?
            .status
            .success())
    })
    .unwrap();
    assert!(drops(&scrape(&system, "node-a"), "spoofed_ip") >= drops(&after, "spoofed_ip"));
}

/// Each connection that ended is written down, by name, once on each node it went through.
#[test]
fn connections_that_ended_are_recorded() {
    let directory = std::env::temp_dir().join(format!("vrouter-records-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("flows.jsonl");
    let mut extra = vec!["--flow-records".to_owned(), file.display().to_string()];
    for timeout in ["udp=1", "tcp_time_wait=1", "tcp_close=1", "tcp_last_ack=1", "tcp_fin_wait=1"] {
        extra.extend(["--timeout".to_owned(), timeout.to_owned()]);
    }
    let options = AgentOptions { extra, ..AgentOptions::default() };
    let system = System::start_with(&standard(), &options).unwrap();
    let _services = Services::everywhere(&system, &[7]).unwrap();
    let to = "10.0.2.15".parse().unwrap();
    assert!(Probe::udp(to, 7).from_port(4321).send(system.host("vm1")).unwrap().seen(to).is_some());
    vrouter_tests::sockets::tcp_exchange(system.host("vm1"), system.host("vm5"), to, 5000).unwrap();
    let records = || -> Vec<Value> {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let of = |node: &str, protocol: &str| -> Vec<Value> {
        records().into_iter().filter(|it| it["node"] == node && it["protocol"] == protocol).collect()
    };
    wait::until("both nodes have told of both", SOON, || {
        Ok(["node-a", "node-b"].iter().all(|node| of(node, "udp").len() == 1 && !of(node, "tcp").is_empty()))
    })
    .unwrap();
    let udp = &of("node-a", "udp")[0];
    assert_eq!(
        udp["original"],
        serde_json::json!({"src": "10.0.1.11", "dst": "10.0.2.15", "sport": 4321, "dport": 7})
    );
    assert_eq!((&udp["from"]["port"], &udp["to"]["node"]), (&"vm1".into(), &"node-b".into()));
    assert_eq!((&udp["original_packets"], &udp["reply_packets"]), (&1.into(), &1.into()));
    assert_eq!(
        (&udp["ended"], &udp["network"], &udp["network_out"]),
        (&"idle".into(), &"web".into(), &"db".into())
    );
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let (start, end) = (udp["start"].as_f64().unwrap(), udp["end"].as_f64().unwrap());
    assert!(start <= end + 0.1 && end <= now && start > now - 60.0, "{udp}");
    let tcp = &of("node-b", "tcp")[0];
    assert_eq!((&tcp["ended"], &tcp["to"]["port"]), (&"closed".into(), &"vm5".into()));
    assert!(tcp["original_bytes"].as_u64() > Some(5000), "{tcp}");
    wait::until("the agent says so", SOON, || {
        let records = system.agent("node-a").status()?["agent"]["flow_records"].clone();
        Ok(records["lost"] == 0 && records["written"].as_u64() >= Some(2))
    })
    .unwrap();
    std::fs::remove_dir_all(directory).unwrap();
}
