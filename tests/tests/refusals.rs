//! What is refused: documents that are not in order, machines that lack something, commands used wrongly.
//! Each refusal names what is wrong and what to do, and changes nothing.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use vrouter_tests::agent::vrouter_binary;
use vrouter_tests::topology::{Topology, standard};
use vrouter_tests::{Agent, AgentOptions, Lab, Node, Process, wait};

const START: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(60);

/// A document in order, whose lines the cases below change.
const GOOD: &str = r#"networks:
  - name: web
    vni: 1001
    subnets:
      - { name: web4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }
  - name: db
    vni: 1002
    subnets:
      - { name: db4, cidr: 10.0.2.0/24, gateway: 10.0.2.1 }
routers:
  - name: r1
    interfaces: [web4, db4]
    routes:
      - { destination: 10.99.0.0/16, nexthop: 10.0.2.9 }
security_groups:
  - name: sg
    rules:
      - { direction: ingress, protocol: tcp, ports: 80-443, remote: 0.0.0.0/0 }
ports:
  - name: vm1
    network: web
    mac: "02:00:00:00:01:0b"
    fixed_ips: [10.0.1.11]
    security_groups: [sg]
    node: node-a
    interface: tap-vm1
  - name: vm2
    network: web
    mac: "02:00:00:00:01:0c"
    fixed_ips: [10.0.1.12]
    node: node-a
    interface: tap-vm2
nodes:
  - { name: node-a, vtep: 192.0.2.1 }
  - { name: node-b, vtep: 192.0.2.2 }
"#;

/// A way to get the document wrong.
struct Case {
    what: &'static str,
    /// A part of one line, and what it becomes.
    change: (&'static str, &'static str),
    /// The object that is to blame.
    object: &'static str,
    /// A word the message or the remedy cannot do without.
    names: &'static str,
}

const fn case(
    what: &'static str,
    from: &'static str,
    to: &'static str,
    object: &'static str,
    names: &'static str,
) -> Case {
    Case { what, change: (from, to), object, names }
}

const CASES: &[Case] = &[
    case("unknown field", "    vni: 1001", "    vnid: 1001", "network web", "vnid"),
    case(
        "unknown field of a flow mapping",
        "vtep: 192.0.2.2 }",
        "vtep: 192.0.2.2, vtap: 1 }",
        "node node-b",
        "vtap",
    ),
    case(
        "unknown section",
        "security_groups:\n  - name: sg",
        "security_grups:\n  - name: sg",
        "document",
        "security_grups",
    ),
    case("duplicate key", "    vni: 1001", "    vni: 1001\n    vni: 1003", "document", "vni"),
    case(
        "missing field",
        "    network: web\n    mac: \"02:00:00:00:01:0c\"",
        "    mac: \"02:00:00:00:01:0c\"",
        "port vm2",
        "network",
    ),
    case(
        "dangling network",
        "    network: web\n    mac: \"02:00:00:00:01:0c\"",
        "    network: wob\n    mac: \"02:00:00:00:01:0c\"",
        "port vm2",
        "wob",
    ),
    case("dangling subnet", "[web4, db4]", "[web4, db5]", "router r1", "db5"),
    case("dangling security group", "security_groups: [sg]", "security_groups: [sog]", "port vm1", "sog"),
    case(
        "dangling node",
        "    node: node-a\n    interface: tap-vm2",
        "    node: hypervisor-7\n    interface: tap-vm2",
        "port vm2",
        "hypervisor-7",
    ),
    case(
        "overlapping subnets on a router",
        "10.0.2.0/24, gateway: 10.0.2.1",
        "10.0.0.0/16, gateway: 10.0.2.1",
        "router r1",
        "10.0.1.0/24",
    ),
    case("duplicate MAC", "02:00:00:00:01:0c", "02:00:00:00:01:0b", "port vm2", "02:00:00:00:01:0b"),
    case("duplicate IP", "[10.0.1.12]", "[10.0.1.11]", "port vm2", "10.0.1.11"),
    case("the router's IP", "[10.0.1.12]", "[10.0.1.1]", "port vm2", "10.0.1.1"),
    case("address outside", "[10.0.1.12]", "[10.0.3.12]", "port vm2", "10.0.3.12"),
    case("gateway outside", "gateway: 10.0.1.1 }", "gateway: 10.0.7.1 }", "subnet web4", "10.0.7.1"),
    case("next hop nowhere", "nexthop: 10.0.2.9", "nexthop: 10.0.3.9", "router r1", "10.0.3.9"),
    case("VNI clash", "vni: 1002", "vni: 1001", "network db", "1001"),
    case("VNI out of range", "vni: 1002", "vni: 16777216", "network db", "16777216"),
    case("range reversed", "ports: 80-443", "ports: 443-80", "security group sg", "443"),
    case("name taken", "  - name: vm2", "  - name: vm1", "port vm1", "vm1"),
    case("VTEP taken", "vtep: 192.0.2.2", "vtep: 192.0.2.1", "node node-b", "192.0.2.1"),
    case("interface taken", "interface: tap-vm2", "interface: tap-vm1", "port vm2", "tap-vm1"),
    case("no CIDR", "cidr: 10.0.2.0/24", "cidr: 10.0.2.0/33", "subnet db4", "10.0.2.0/33"),
    case("host bits set", "cidr: 10.0.2.0/24", "cidr: 10.0.2.7/24", "subnet db4", "10.0.2.7/24"),
    case("no MAC", "02:00:00:00:01:0c", "02:00:00:00:01", "port vm2", "02:00:00:00:01"),
    case("group MAC", "02:00:00:00:01:0c", "03:00:00:00:01:0c", "port vm2", "03:00:00:00:01:0c"),
    case("no protocol", "protocol: tcp", "protocol: tpc", "security group sg", "tpc"),
];

impl Case {
    /// The document, and the lines among which the problem is.
    fn document(&self) -> (String, std::ops::RangeInclusive<usize>) {
        let (from, to) = self.change;
        let at = GOOD.find(from).unwrap_or_else(|| panic!("{}: `{from}` is not in the document", self.what));
        let document = GOOD.replacen(from, to, 1);
        let first = 1 + GOOD[..at].matches('\n').count();
        (document, first..=first + to.matches('\n').count())
    }
}

/// Whether a problem is of an object or of a part of it: `security group sg rules[0]`.
fn is_object(problem: &Value, object: &str) -> bool {
    problem["object"]
        .as_str()
        .is_some_and(|found| found == object || found.starts_with(&format!("{object} ")))
}

fn vrouter(arguments: &[&str]) -> Output {
    Command::new(vrouter_binary().unwrap()).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{}", stderr(output)))
}

/// A directory with a file.
fn file(name: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    (directory, path)
}

#[test]
fn validate_takes_what_is_in_order() {
    let (_directory, path) = file("good.yaml", GOOD);
    let path = path.to_str().unwrap();
    let output = vrouter(&["validate", path]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = vrouter(&["validate", path, "--output", "json"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(json(&output)["ok"], true);
    // What labs use, too.
    let (_directory, path) = file("standard.yaml", standard().to_string());
    assert_eq!(vrouter(&["validate", path.to_str().unwrap()]).status.code(), Some(0));
}

#[test]
fn validate_refuses_each_kind_of_mistake_with_place_object_and_remedy() {
    let mut failures = Vec::new();
    for case in CASES {
        let (document, lines) = case.document();
        let (_directory, path) = file("bad.yaml", &document);
        let path = path.to_str().unwrap();
        let (text, structured) =
            (vrouter(&["validate", path]), vrouter(&["validate", path, "--output", "json"]));
        let mut wrong = |what: String| failures.push(format!("{}: {what}", case.what));
        if (text.status.code(), structured.status.code()) != (Some(1), Some(1)) {
            wrong("not refused with exit code 1".to_owned());
            continue;
        }
        let report = json(&structured);
        let problems = report["problems"].as_array().cloned().unwrap_or_default();
        let text = stderr(&text);
        let is_it =
            |problem: &&Value| is_object(problem, case.object) && problem.to_string().contains(case.names);
        let Some(problem) = problems.iter().find(is_it) else {
            wrong(format!("no problem of {} names {}: {report:#}", case.object, case.names));
            continue;
        };
        if problems.len() != 1 {
            wrong(format!("one mistake, several problems: {report:#}"));
        }
        let line = problem["line"].as_u64().unwrap_or_default() as usize;
        // Between objects either may be named; a router's subnets overlap where the router lists them.
        let elsewhere = case.object == "router r1" && line == 12;
        if !lines.contains(&line) && !elsewhere && problem["object"] != "port vm2" {
            wrong(format!("in line {line}, not in {lines:?}: {problem}"));
        }
        if problem["remedy"].as_str().is_none_or(|remedy| remedy.len() < 5) {
            wrong(format!("no remedy: {problem}"));
        }
        for part in [
            format!("{path}:{line}: "),
            case.object.to_owned(),
            problem["remedy"].as_str().unwrap_or("?").to_owned(),
        ] {
            if !text.contains(&part) {
                wrong(format!("`{part}` is not in the text: {text}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Mistakes that do not hide each other.
fn many_mistakes() -> (String, [&'static Case; 6]) {
    let picked = [
        "dangling security group",
        "VNI clash",
        "duplicate IP",
        "range reversed",
        "VTEP taken",
        "next hop nowhere",
    ];
    let picked = picked.map(|what| CASES.iter().find(|case| case.what == what).unwrap());
    let document =
        picked.iter().fold(GOOD.to_owned(), |text, case| text.replacen(case.change.0, case.change.1, 1));
    (document, picked)
}

#[test]
fn validate_reports_all_mistakes_at_once() {
    let (document, picked) = many_mistakes();
    let (_directory, path) = file("bad.yaml", document);
    let output = vrouter(&["validate", path.to_str().unwrap(), "--output", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let problems = json(&output)["problems"].as_array().unwrap().clone();
    for case in picked {
        assert!(
            problems
                .iter()
                .any(|problem| is_object(problem, case.object) && problem.to_string().contains(case.names)),
            "{} is not in {problems:#?}",
            case.what
        );
    }
    let lines: Vec<u64> = problems.iter().map(|problem| problem["line"].as_u64().unwrap()).collect();
    assert!(lines.is_sorted(), "in the order of the document: {lines:?}");
}

/// The two-workload node of [`GOOD`], with a ready agent.
fn small_lab() -> (Lab, Agent) {
    let topology = Topology { ports: standard().ports.into_iter().take(3).collect(), ..standard() };
    let lab = Lab::builder().topology(&topology).build().unwrap();
    let mut agent = lab.start_agent("node-a", &AgentOptions::default()).unwrap();
    agent.wait_ready(START).unwrap();
    (lab, agent)
}

fn wait_for_problems(agent: &mut Agent, text: &str) -> Value {
    agent
        .wait_for_status(SOON, &format!("refuse the file: {text}"), |status| {
            status["wanted"]["problems"].as_array().is_some_and(|problems| !problems.is_empty())
                && status["wanted"]["problems"].to_string().contains(text)
        })
        .unwrap()
}

#[test]
fn a_running_agent_refuses_the_same_and_goes_on_as_before() {
    let (lab, mut agent) = small_lab();
    let good = fs::read_to_string(lab.topology_path()).unwrap();
    let vm1 = lab.workload("vm1");
    wait::until("vm1 reaches vm3", SOON, || Ok(vm1.ping("10.0.2.13", 1, &[])?.is_clean())).unwrap();
    let before = agent.status().unwrap()["in_force"].clone();
    let ping = vm1.start_ping("10.0.2.13", 1000, &["-i", "0.005"]).unwrap();

    let picked = [
        "unknown field",
        "dangling network",
        "overlapping subnets on a router",
        "duplicate MAC",
        "address outside",
        "VNI clash",
        "range reversed",
    ];
    for case in picked.map(|what| CASES.iter().find(|case| case.what == what).unwrap()) {
        lab.write_topology(case.document().0).unwrap();
        let status = wait_for_problems(&mut agent, case.names);
        assert_eq!(status["in_force"], before, "{}", case.what);
        assert_eq!(status["healthy"], false);
        assert!(status["complaints"].to_string().contains("the last good one stays in force"), "{status}");
        assert!(is_object(&status["wanted"]["problems"][0], case.object), "{status}");
        assert!(status["wanted"]["problems"][0]["line"].as_u64() > Some(0));
    }
    let (document, picked) = many_mistakes();
    lab.write_topology(document).unwrap();
    let status = wait_for_problems(&mut agent, picked[0].names);
    assert!(status["wanted"]["problems"].as_array().unwrap().len() >= picked.len());
    assert_eq!(status["in_force"], before);
    let output = agent.vrouter(&["status"]).unwrap();
    assert_eq!(output.status.code(), Some(1));

    // Not even gone.
    fs::remove_file(lab.topology_path()).unwrap();
    let status = wait_for_problems(&mut agent, "cannot be read");
    assert_eq!(status["in_force"], before);

    lab.write_topology(good).unwrap();
    agent.wait_ready(SOON).unwrap();
    let status = agent
        .wait_for_status(SOON, "be well", |status| status["wanted"]["problems"] == Value::Array(vec![]))
        .unwrap();
    assert_eq!(status["in_force"]["epoch"], before["epoch"], "the same document: nothing to do");
    let ping = ping.finish(START).unwrap();
    assert!(ping.is_clean(), "{}", ping.output);
}

/// Runs an agent that is expected to give up at once; what it printed, and its exit code.
fn failing_agent(node: &Node, arguments: &[&str]) -> (String, Option<i32>) {
    let mut command = node.command(vrouter_binary().unwrap().to_str().unwrap());
    let mut process = Process::spawn(command.arg("agent").args(arguments)).unwrap();
    let status = process.wait(START).unwrap_or_else(|error| panic!("{arguments:?}: {error:#}"));
    (process.printed(), status.code())
}

#[test]
fn an_agent_says_what_the_machine_lacks() {
    let lab = Lab::builder().node("node-a").build().unwrap();
    let node = lab.node("node-a");
    lab.write_topology(GOOD).unwrap();
    let topology = lab.topology_path().display().to_string();
    let instance = format!("{}-refused", lab.prefix());
    let base = ["--node", "node-a", "--instance", &instance, "--topology", &topology];
    let refuses = |extra: &[&str], parts: &[&str]| {
        let (printed, code) = failing_agent(node, &[&base, extra].concat());
        assert_eq!(code, Some(1), "{extra:?}: {printed}");
        for part in parts {
            assert!(printed.contains(part), "{extra:?}: `{part}` is not in: {printed}");
        }
        assert!(!printed.contains("panicked"), "{printed}");
    };
    refuses(&[], &["no uplink given", "--uplink"]);
    refuses(&["--uplink", "eth7"], &["uplink eth7 does not exist", "there are: ", "eth0", "lo"]);
    node.netns().ip(&["link set eth0 mtu 600"]).unwrap();
    refuses(&["--uplink", "eth0"], &["uplink eth0 has MTU 600", "626", "ip link set eth0 mtu"]);
    node.netns().ip(&["link set eth0 mtu 1500"]).unwrap();

    let (_directory, config) = file("node.toml", "uplinks = [\"eth0\"]\nuplinc = 1\n");
    refuses(&["--config", config.to_str().unwrap()], &["node.toml", "uplinc", "2"]);
    fs::write(&config, "uplinks = [\"eth0\"\n[[[").unwrap();
    refuses(&["--config", config.to_str().unwrap()], &["node.toml is not in order"]);
    refuses(&["--config", "/nowhere/node.toml"], &["cannot read /nowhere/node.toml", "No such file"]);
    assert!(!Path::new("/sys/fs/bpf/vrouter").join(&instance).exists(), "nothing was pinned");

    for name in ["../x", "", ".hidden", "a/b", "a b", &"x".repeat(65)] {
        let (printed, code) = failing_agent(node, &["--uplink", "eth0", "--instance", name]);
        assert_eq!(code, Some(1), "{name}: {printed}");
        assert!(printed.contains("letters, digits"), "{name}: {printed}");
        let output = vrouter(&["status", "--instance", name]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("letters, digits"), "{}", stderr(&output));
    }

    // Not root. The program is copied to where everybody may read it.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = directory.path().join("vrouter");
    fs::copy(vrouter_binary().unwrap(), &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let good = directory.path().join("good.yaml");
    fs::write(&good, GOOD).unwrap();
    fs::set_permissions(&good, fs::Permissions::from_mode(0o644)).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let output = Command::new(&binary)
            .args(arguments)
            .uid(65534)
            .gid(65534)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (output.status.code(), stderr(&output))
    };
    for arguments in [&["agent", "--uplink", "eth0"][..], &["status"], &["show", "ports"], &["map-dump"]] {
        let (code, printed) = as_nobody(arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {printed}");
        assert!(printed.contains("needs root") && printed.contains("sudo"), "{arguments:?}: {printed}");
    }
    let (code, printed) = as_nobody(&["validate", good.to_str().unwrap()]);
    assert_eq!(code, Some(0), "validating needs no privileges: {printed}");
}

#[test]
fn a_second_agent_of_an_instance_is_refused_and_the_first_goes_on() {
    let (lab, mut agent) = small_lab();
    let topology = lab.topology_path().display().to_string();
    let instance = agent.instance().to_owned();
    let before = agent.status().unwrap();
    let (printed, code) = failing_agent(
        lab.node("node-a"),
        &[
            "--node",
            "node-a",
            "--instance",
            &instance,
            "--uplink",
            "eth0",
            "--topology",
            &topology,
            "--discard-state",
        ],
    );
    assert_eq!(code, Some(1), "{printed}");
    assert!(
        printed.contains("another agent of this instance is running") && printed.contains("--instance"),
        "{printed}"
    );
    assert!(agent.is_running());
    let after = agent.status().unwrap();
    for key in ["in_force", "programs"] {
        assert_eq!(before[key], after[key], "its state was not even discarded");
    }
    assert!(lab.workload("vm1").ping("10.0.2.13", 3, &[]).unwrap().is_clean());
}

#[test]
fn a_topology_that_does_not_fit_the_node_is_refused() {
    let (lab, mut agent) = small_lab();
    let before = agent.status().unwrap()["in_force"].clone();
    let good = fs::read_to_string(lab.topology_path()).unwrap();

    let large = good.replace("- name: web\n", "- name: web\n    mtu: 1460\n");
    lab.write_topology(&large).unwrap();
    let status = wait_for_problems(&mut agent, "1460");
    let problem = &status["wanted"]["problems"][0];
    assert_eq!(problem["object"], "network web");
    let line = problem["line"].as_u64().unwrap();
    assert!((2..=3).contains(&line), "{problem}");
    assert!(problem["remedy"].as_str().unwrap().contains("1450"), "{problem}");
    assert_eq!(status["in_force"], before);
    // It is in order by itself: only this node cannot have it.
    let path = lab.topology_path().display().to_string();
    assert_eq!(vrouter(&["validate", &path]).status.code(), Some(0));

    let elsewhere = good.replace("node-a", "node-x");
    lab.write_topology(&elsewhere).unwrap();
    let status = wait_for_problems(&mut agent, "this node is not in the topology");
    let problem = &status["wanted"]["problems"][0];
    assert_eq!(problem["object"], "node node-a");
    assert!(problem["remedy"].as_str().unwrap().contains("node-x"), "the names there are: {problem}");
    assert_eq!(status["in_force"], before);
    assert!(lab.workload("vm1").ping("10.0.2.13", 3, &[]).unwrap().is_clean());

    // What could not be had can be had when the underlay changes, once the document is looked at again.
    lab.write_topology(&good).unwrap();
    agent.wait_ready(SOON).unwrap();
}

#[test]
fn wrong_usage_is_told_from_refusal() {
    for arguments in [
        &["--frobnicate"][..],
        &["frobnicate"],
        &["agent", "--frobnicate"],
        &["agent", "--flow-entries", "0"],
        &["agent", "--flow-entries", "many"],
        &["agent", "--uplink-hook", "ebpf"],
        &["agent", "surplus"],
        &["validate"],
        &["validate", "x", "--output", "xml"],
        &["show"],
        &["show", "everything"],
        &["status", "--frobnicate"],
        &["map-dump", "FLOWS", "COMMIT"],
        &["completions", "ksh93"],
        &["man"],
        &[],
    ] {
        let output = vrouter(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        let printed = stderr(&output);
        assert!(printed.contains("Usage") || printed.contains("--help"), "{arguments:?}: {printed}");
    }
    for arguments in [&["--help"][..], &["--version"], &["agent", "--help"], &["help", "show"]] {
        assert_eq!(vrouter(arguments).status.code(), Some(0), "{arguments:?}");
    }
    for arguments in [&["status"][..], &["show", "routes"], &["map-dump"]] {
        let output = vrouter(&[arguments, &["--instance", "nobody-has-this"]].concat());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let printed = stderr(&output);
        assert!(
            printed.contains("no data path of instance nobody-has-this") && printed.contains("--instance"),
            "{printed}"
        );
    }
    let output = vrouter(&["validate", "/nowhere/topology.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nowhere/topology.yaml"), "{}", stderr(&output));
    assert_eq!(vrouter(&["validate", "/"]).status.code(), Some(1));
}

#[test]
fn everything_that_prints_prints_json() {
    let (_lab, agent) = small_lab();
    for what in ["routes", "ports", "arp", "networks", "fdb", "underlay", "drops", "events"] {
        let shown = agent.json(&["show", what]).unwrap();
        let rows = shown.as_array().unwrap_or_else(|| panic!("show {what}: {shown}"));
        assert!(!rows.is_empty() && rows.iter().all(Value::is_object), "show {what}: {shown}");
        let output = agent.vrouter(&["show", what]).unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(!String::from_utf8_lossy(&output.stdout).contains('\u{1b}'), "no colours into a pipe");
    }
    let all = agent.json(&["map-dump"]).unwrap();
    for dump in all.as_array().unwrap() {
        let name = dump["map"].as_str().unwrap();
        assert_eq!(agent.json(&["map-dump", name]).unwrap()[0]["map"], name);
        assert!(dump["entries"].is_array());
    }
    assert_eq!(agent.json(&["map-dump", "commit"]).unwrap()[0]["map"], "COMMIT", "in either case");
    assert_eq!(agent.status().unwrap()["instance"], agent.instance());
    let output = agent.vrouter(&["map-dump", "NOTHING"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("no map NOTHING") && stderr(&output).contains("FLOWS"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn completions_and_man_pages_are_written() {
    for shell in ["bash", "zsh", "fish"] {
        let output = vrouter(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&output.stdout).contains("map-dump"));
        if shell == "bash" {
            let (_directory, path) = file("vrouter.bash", &output.stdout);
            assert!(Command::new("bash").arg("-n").arg(&path).status().unwrap().success());
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let man = directory.path().join("man1");
    let output = vrouter(&["man", man.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for page in ["vrouter.1", "vrouter-agent.1", "vrouter-map-dump.1"] {
        assert!(fs::read_to_string(man.join(page)).unwrap().contains(".TH"), "{page}");
    }
}

/// Documents somebody would write to do harm.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let mut state = 1_u32;
    let mut noise = |length: usize| -> Vec<u8> {
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..length).map(next).collect()
    };
    let bomb: String =
        (1..30).map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}, *a{0}]\n", i - 1)).collect();
    vec![
        ("noise", noise(10 << 20)),
        ("printable noise", noise(10 << 20).into_iter().map(|byte| b' ' + byte % 95).collect()),
        ("NUL bytes", vec![0; 1 << 20]),
        ("NUL bytes in between", GOOD.replace("web4", "web\0").into_bytes()),
        ("brackets", vec![b'['; 10 << 20]),
        ("nested mappings", b"{a: ".repeat(1 << 20)),
        ("nested sequences", b"- ".repeat(1 << 20)),
        ("an alias bomb", format!("a0: &a0 [x, x, x, x]\n{bomb}").into_bytes()),
        ("one long line", vec![b'x'; 10 << 20]),
        ("a million names", (0..1_000_000).flat_map(|i| format!("k{i}: 1\n").into_bytes()).collect()),
    ]
}

#[test]
fn validate_refuses_hostile_documents_quickly_and_within_bounds() {
    let binary = vrouter_binary().unwrap();
    for (what, content) in hostile() {
        let (_directory, path) = file("hostile.yaml", &content);
        // 1.5 GiB of address space: far more than a document of this size may need.
        let script = "ulimit -v 1572864 && exec \"$0\" validate \"$1\" --output json";
        let started = Instant::now();
        let output = Command::new("sh").args(["-c", script]).arg(&binary).arg(&path).output().unwrap();
        let took = started.elapsed();
        assert_eq!(output.status.code(), Some(1), "{what}: {}", stderr(&output));
        assert_eq!(json(&output)["ok"], false, "{what}");
        assert!(took < Duration::from_secs(20), "{what}: {took:?}");
        assert!(output.stdout.len() < 4 << 20, "{what}: a report of {} bytes", output.stdout.len());
    }
}

/// The most memory the agent has had, in KiB.
fn peak_memory(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.id().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_running_agent_survives_hostile_documents() {
    let (lab, mut agent) = small_lab();
    let vm1 = lab.workload("vm1");
    wait::until("vm1 reaches vm3", SOON, || Ok(vm1.ping("10.0.2.13", 1, &[])?.is_clean())).unwrap();
    let good = fs::read_to_string(lab.topology_path()).unwrap();
    let before = agent.status().unwrap()["in_force"].clone();
    let ping = vm1.start_ping("10.0.2.13", 1500, &["-i", "0.005"]).unwrap();
    let mut digest = before["digest"].clone();
    for (what, content) in hostile() {
        let new = lab.directory().join("hostile");
        fs::write(&new, content).unwrap();
        fs::rename(&new, lab.topology_path()).unwrap();
        let status = agent
            .wait_for_status(START, &format!("refuse {what}"), |status| {
                status["wanted"]["digest"] != digest
                    && status["wanted"]["problems"].as_array().is_some_and(|problems| !problems.is_empty())
            })
            .unwrap();
        assert_eq!(status["in_force"], before, "{what}");
        digest = status["wanted"]["digest"].clone();
    }
    // A file without an end, and one that never has anything to read.
    for (what, make) in [("an endless file", "ln -s /dev/zero"), ("a pipe", "mkfifo")] {
        fs::remove_file(lab.topology_path()).unwrap();
        let line = format!("{make} {}", lab.topology_path().display());
        lab.node("node-a").run(&line).unwrap();
        let status = agent
            .wait_for_status(SOON, &format!("refuse {what}"), |status| {
                status["wanted"]["problems"].to_string().contains("file")
                    && status["wanted"]["problems"][0]["message"]
                        .as_str()
                        .is_some_and(|text| text.contains("cannot be read"))
            })
            .unwrap();
        assert_eq!(status["in_force"], before, "{what}");
    }
    assert!(peak_memory(&agent) < 1_500_000, "{} KiB", peak_memory(&agent));
    fs::remove_file(lab.topology_path()).unwrap();
    lab.write_topology(good).unwrap();
    agent.wait_ready(SOON).unwrap();
    let ping = ping.finish(START).unwrap();
    assert!(ping.is_clean(), "{}", ping.output);
}

#[test]
fn the_control_socket_is_roots_and_bears_abuse() {
    let (lab, mut agent) = small_lab();
    let path = Path::new("/run/vrouter").join(agent.instance()).join("agent.sock");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let before = agent.status().unwrap()["in_force"].clone();

    let idle: Vec<UnixStream> = (0..200).map(|_| UnixStream::connect(&path).unwrap()).collect();
    for garbage in
        [&b"\xff\xfe\x00\x01\n"[..], &[b'x'; 100_000], b"\n\n\n", b"status status\n", b"{\"a\": [", b""]
    {
        let mut stream = UnixStream::connect(&path).unwrap();
        // It may have hung up by now.
        let _ = stream.write_all(garbage);
    }
    let status = agent.status().unwrap();
    assert_eq!(status["agent"]["alive"], true, "it answers beside 200 that say nothing");
    drop(idle);

    // More than it may have open files: it must be back when they are gone.
    let set = format!("prlimit --pid {} --nofile=256:256", agent.id().unwrap());
    lab.node("node-a").run(&set).unwrap();
    let mut many: Vec<UnixStream> = Vec::new();
    for _ in 0..400 {
        many.push(UnixStream::connect(&path).unwrap());
    }
    wait::until("the agent has had enough", SOON, || {
        let open = fs::read_dir(format!("/proc/{}/fd", agent.id().unwrap()))?.count();
        Ok(open >= 256)
    })
    .unwrap();
    assert!(agent.is_running());
    drop(many);
    agent.wait_ready(SOON).unwrap();
    assert_eq!(agent.status().unwrap()["in_force"], before);
    assert!(lab.workload("vm1").ping("10.0.2.13", 3, &[]).unwrap().is_clean());
}

#[test]
fn an_uplink_without_native_xdp_gets_tc_alone_and_says_so() {
    let mut topology = standard();
    // What a port does in XDP has to go through TC to get out there.
    for name in ["vm2", "vm3", "vm4"] {
        topology.port_mut(name).extra.push("hook: xdp".to_owned());
    }
    let lab = Lab::builder().topology(&topology).build().unwrap();
    // A veth takes frames from XDP only if its other end has NAPI, which GRO switches on.
    for name in ["vm2", "vm3", "vm4"] {
        lab.workload(name).run("ethtool -K eth0 gro on").unwrap();
    }
    lab.underlay().run(&format!("ethtool -K {} gro on", lab.node("node-b").underlay_port())).unwrap();
    // The uplink of node-a is a bridge, as on many hosts; bridges have no native XDP.
    lab.node("node-a")
        .netns()
        .ip(&[
            "link set eth0 down",
            "link set eth0 name phys0",
            "link add eth0 type bridge",
            "link set phys0 master eth0",
            "address flush dev phys0",
            "address add 192.0.2.1/24 dev eth0",
            "link set phys0 up",
            "link set eth0 up",
        ])
        .unwrap();
    let mut a = lab.start_agent("node-a", &AgentOptions::default()).unwrap();
    // On a veth pair native XDP is to be had, if asked for.
    let xdp = AgentOptions { uplink_hook: Some("xdp".to_owned()), ..AgentOptions::default() };
    let mut b = lab.start_agent("node-b", &xdp).unwrap();
    [&mut a, &mut b].into_iter().for_each(|agent| agent.wait_ready(START).unwrap());
    let note = a.status().unwrap()["agent"]["uplinks"][0]["warning"].clone();
    assert!(
        note.as_str()
            .is_some_and(|note| note.contains("eth0 has no native XDP") && note.contains("TC alone")),
        "{note}"
    );
    assert!(a.log().contains("eth0 has no native XDP"), "{}", a.log());
    let status = b.status().unwrap();
    assert_eq!(
        (&status["agent"]["uplinks"][0]["note"], &status["agent"]["uplinks"][0]["xdp"]),
        (&Value::Null, &Value::Bool(true))
    );
    assert!(lab.node("node-b").run("ip link show dev eth0").unwrap().contains("xdp"), "native");

    let vm1 = lab.workload("vm1");
    for (vm, to) in ["vm1", "vm2"]
        .into_iter()
        .flat_map(|vm| ["10.0.1.14", "10.0.2.15", "fd00:2::f", "10.0.2.13"].map(|to| (vm, to)))
    {
        let from = lab.workload(vm);
        wait::until(&format!("{vm} reaches {to}"), SOON, || Ok(from.ping(to, 1, &[])?.is_clean())).unwrap();
        let ping = from.ping(to, 5, &["-i", "0.02"]).unwrap();
        assert!(ping.is_clean(), "{}", ping.output);
    }

    assert_eq!(a.status().unwrap()["agent"]["uplinks"][0]["xdp"], false);
    // Asked for where there is none, it is a complaint.
    a.stop().unwrap();
    let mut a = lab.start_agent("node-a", &xdp).unwrap();
    a.wait_ready(START).unwrap();
    let status = a.status().unwrap();
    assert_eq!(status["healthy"], false);
    assert!(status["complaints"].to_string().contains("hook tc"), "{status}");
    assert!(vm1.ping("10.0.1.14", 3, &[]).unwrap().is_clean());
}
