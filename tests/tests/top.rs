//! `vrouter top`: rates of traffic that is known, with and without an agent, and a screen on a real terminal.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vrouter_tests::agent::vrouter_binary;
use vrouter_tests::etcd::{self, WRITER};
use vrouter_tests::frame::Addressing;
use vrouter_tests::sockets::udp_socket;
use vrouter_tests::topology::standard;
use vrouter_tests::{Cluster, Lab, System, Terminal, wait};

const SOON: Duration = Duration::from_secs(20);
/// Datagrams a second: routed on the node, to the other node, and spoofed.
const ROUTED: f64 = 200.0;
const REMOTE: f64 = 100.0;
const SPOOFED: f64 = 50.0;
const PAYLOAD: usize = 458;
/// With the headers of UDP, IPv4 and Ethernet.
const FRAME: usize = PAYLOAD + 8 + 20 + 14;

/// Does something so many times a second, until dropped. What was missed is made up for.
struct Steady {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Steady {
    fn start(per_second: f64, mut act: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            let mut done = 0.0;
            while !stopped.load(Ordering::Relaxed) {
                while done < start.elapsed().as_secs_f64() * per_second {
                    act();
                    done += 1.0;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it did wrong shows in what is measured.
            let _ = thread.join();
        }
    }
}

/// vm1 to vm3 by the router, vm2 to vm4 by a tunnel, and what vm2 sends with a source that is not its own.
fn traffic(system: &System) -> (Vec<Steady>, Vec<UdpSocket>) {
    let mut receivers = Vec::new();
    let mut load = |from: &str, to: &str, per_second: f64| {
        let receiver = udp_socket(system.host(to), false).unwrap();
        let sender = udp_socket(system.host(from), false).unwrap();
        let port = receiver.local_addr().unwrap().port();
        sender.connect((system.workload(to).v4(), port)).unwrap();
        receivers.push(receiver);
        Steady::start(per_second, move || drop(sender.send(&[0; PAYLOAD])))
    };
    let mut loads = vec![load("vm1", "vm3", ROUTED), load("vm2", "vm4", REMOTE)];
    let spoofed = Addressing {
        from: system.workload("vm2").spec_mac(),
        to: system.workload("vm1").spec_mac(),
        source: "10.0.1.99".parse().unwrap(),
        destination: system.workload("vm1").ip(false),
        ttl: 64,
    };
    let frame = spoofed.udp(1, 2, b"spoofed");
    let vm2 = system.host("vm2").clone();
    loads.push(Steady::start(SPOOFED, move || drop(vm2.raw_send(&frame))));
    (loads, receivers)
}

/// So many samples, a line each.
fn samples(system: &System, count: usize) -> Vec<Value> {
    let count_word = count.to_string();
    let arguments = ["top", "--batch", "-n", &count_word, "--output", "json"];
    let output = system.agent("node-a").vrouter(&arguments).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let samples: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(samples.len(), count, "a line each");
    samples
}

/// A number of a row, on average over samples.
fn average(samples: &[Value], list: &str, name: (&str, &str), field: &str) -> f64 {
    let of_sample = |sample: &Value| {
        let rows = sample[list].as_array().unwrap().iter();
        let row = rows.clone().find(|row| row[name.0] == name.1);
        row.unwrap_or_else(|| panic!("no {name:?} in {sample}"))[field].as_f64().unwrap()
    };
    samples.iter().map(of_sample).sum::<f64>() / samples.len() as f64
}

fn check_rates(samples: &[Value], when: &str) {
    for (list, name, field, expected) in [
        ("ports", ("port", "vm1"), "tx_packets_per_second", ROUTED),
        ("ports", ("port", "vm1"), "tx_bits_per_second", ROUTED * FRAME as f64 * 8.0),
        ("ports", ("port", "vm3"), "rx_packets_per_second", ROUTED),
        ("ports", ("port", "vm2"), "tx_packets_per_second", REMOTE),
        ("routers", ("router", "r1"), "packets_per_second", ROUTED),
        ("routers", ("router", "r1"), "bits_per_second", ROUTED * FRAME as f64 * 8.0),
        ("nodes", ("node", "node-b"), "tx_packets_per_second", REMOTE),
        ("drops", ("reason", "spoofed_ip"), "packets_per_second", SPOOFED),
    ] {
        let measured = average(samples, list, name, field);
        let error = (measured - expected).abs() / expected;
        assert!(error < 0.2, "{when}: {} has {field} {measured}, not {expected}", name.1);
    }
    for (list, name, field) in [
        ("ports", ("port", "vm3"), "tx_packets_per_second"),
        ("nodes", ("node", "node-b"), "rx_packets_per_second"),
    ] {
        let measured = average(samples, list, name, field);
        assert!(measured < 5.0, "{when}: {} has {field} {measured}, though it was silent", name.1);
    }
    for sample in samples {
        let total = sample["packets_per_second"].as_f64().unwrap();
        assert!(total < (ROUTED + REMOTE) * 1.5, "{when}: each packet once, not {total}");
    }
}

#[test]
fn rates_are_those_of_the_traffic_with_and_without_an_agent() {
    let mut system = System::start(&standard()).unwrap();
    let (loads, _receivers) = traffic(&system);
    // Long enough for streams nobody answers to move to the other table while they are measured.
    wait::until("flows", SOON, || {
        Ok(system.entries("node-a", "TRANSIENT")? + system.entries("node-a", "FLOWS")? >= 2)
    })
    .unwrap();
    let measured = samples(&system, 3);
    check_rates(&measured, "with an agent");
    let last = &measured[2];
    assert_eq!((&last["node"], &last["status"]["agent"]), (&"node-a".into(), &true.into()));
    assert_eq!(last["status"]["wanted"], last["status"]["in_force"]);
    assert!(
        last["status"]["in_force"].is_string() && last["interval_seconds"].as_f64().unwrap() >= 0.9,
        "{last}"
    );
    let flows = last["tables"].as_array().unwrap().iter().find(|row| row["table"] == "FLOWS").unwrap();
    assert!(flows["entries"].as_u64().unwrap() >= 4 && flows["pressure"] == "normal", "{flows}");

    // A topology that comes in force meanwhile makes flows be decided again: no rate jumps.
    let mut topology = standard();
    topology.ports.push(vrouter_tests::topology::standard_port("vm7", "web", 17, "node-a"));
    let instance = system.agent("node-a").command(&["top", "-b", "-n", "3", "-o", "json"]);
    let changing = std::thread::spawn(move || { instance }.output().unwrap());
    system.apply(&topology).unwrap();
    let output = changing.join().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let changed: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for sample in &changed {
        let total = sample["packets_per_second"].as_f64().unwrap();
        // Senders that had to wait for a CPU catch up; whole counters would be thousands.
        assert!((30.0..1000.0).contains(&total), "while the topology changes: {total} p/s");
    }

    system.agent_mut("node-a").kill9();
    let measured = samples(&system, 2);
    check_rates(&measured, "without an agent");
    assert_eq!(measured[1]["status"]["agent"], false);
    drop(loads);
    let output =
        system.agent("node-a").vrouter(&["top", "-n", "1", "--view", "ports", "--filter", "vm1"]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with("vm")).collect();
    assert!(rows.len() == 1 && rows[0].starts_with("vm1 "), "a pipe gets plain tables: {text}");
    assert!(text.contains("no agent") && !text.contains('\x1b'), "{text}");
}

/// Lines and columns the cursor was sent to.
fn places(written: &str) -> Vec<(u16, u16)> {
    let moves = written.split("\x1b[").skip(1);
    moves
        .filter_map(|rest| {
            let (place, _) = rest.split_once('H')?;
            let (row, column) = place.split_once(';')?;
            Some((row.parse().ok()?, column.parse().ok()?))
        })
        .collect()
}

#[test]
fn a_terminal_shows_it_and_is_given_back() {
    let system = System::start(&standard().on_one_node()).unwrap();
    let (_loads, _receivers) = traffic(&system);
    let agent = system.agent("node-a");
    let begin = Instant::now();
    let mut terminal = Terminal::spawn(&mut agent.command(&["top"]), 80, 24).unwrap();
    terminal.wait_for("measuring", 0, SOON).unwrap();
    terminal.wait_for("vm1", 0, SOON).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "the first screen comes at once");
    assert!(!terminal.is_cooked().unwrap());
    terminal.wait_for("p/s max", 0, SOON).unwrap();
    let shown = terminal.written().len();
    terminal.press("3").unwrap();
    terminal.wait_for("spoofed_ip", shown, SOON).unwrap();
    terminal.press("1").unwrap();
    terminal.wait_for("NETWORK", shown, SOON).unwrap();
    let small = terminal.written().len();
    terminal.resize(60, 20).unwrap();
    terminal.wait_for("vm3", small, SOON).unwrap();
    // With Ctrl-L, since only what changes is written else, and PORT and ROUTER share a letter.
    terminal.press("2\x0c").unwrap();
    terminal.wait_for("ROUTER", small, SOON).unwrap();
    let after = terminal.written()[small..].to_owned();
    // What was under way when the size changed comes before everything is drawn again.
    let (_, after) = after.split_once("\x1b[2J").expect("all is drawn again");
    for (row, column) in places(after) {
        assert!(row <= 20 && column <= 60, "the cursor was sent to {row};{column} on a screen of 60x20");
    }
    terminal.press("q").unwrap();
    assert!(terminal.wait(SOON).unwrap().success());
    check_given_back(&terminal);

    for end in ["SIGTERM", "Ctrl-C"] {
        let mut terminal = Terminal::spawn(agent.command(&["top"]).env("NO_COLOR", "1"), 80, 24).unwrap();
        terminal.wait_for("vm1", 0, SOON).unwrap();
        match end {
            "SIGTERM" => kill(Pid::from_raw(terminal.id() as i32), Signal::SIGTERM).unwrap(),
            _ => terminal.press("\x03").unwrap(),
        }
        assert!(terminal.wait(SOON).unwrap().success(), "{end}");
        check_given_back(&terminal);
        let written = terminal.written();
        let has_color = (30..=37).any(|color| written.contains(&format!("\x1b[{color}m")));
        assert!(!has_color && !written.contains("\x1b[38;5"), "NO_COLOR: {written:?}");
    }
}

fn check_given_back(terminal: &Terminal) {
    assert!(terminal.is_cooked().unwrap(), "the terminal's modes are as before");
    for sequence in ["\x1b[?1049l", "\x1b[?25h"] {
        terminal.wait_for(sequence, 0, SOON).unwrap();
    }
    let written = terminal.written();
    assert!(written.rfind("\x1b[?1049l") > written.rfind("\x1b[?1049h"), "the screen of before is back");
}

#[test]
fn other_nodes_say_by_etcd_how_they_are() {
    let topology = standard();
    let lab = etcd::hosts(Lab::builder().topology(&topology)).build().unwrap();
    let cluster = Cluster::start(&lab, &["node-a", "node-b"], false).unwrap();
    let mut apply = lab.node("node-a").netns().command(vrouter_binary().unwrap());
    apply.args(["apply", "-f"]).arg(lab.topology_path()).args(cluster.arguments(WRITER));
    lab.write_topology(&topology).unwrap();
    assert!(apply.output().unwrap().status.success());
    let mut agents =
        ["node-a", "node-b"].map(|node| lab.start_agent(node, &cluster.agent(&lab, node)).unwrap());
    for agent in &mut agents {
        agent.wait_ready(Duration::from_secs(60)).unwrap();
    }
    let told = wait::for_some("the other node's health", SOON, || {
        let mut command = agents[0].command(&["top", "-b", "-n", "3", "-o", "json"]);
        let output = command.args(cluster.arguments(WRITER)).output()?;
        let text = String::from_utf8(output.stdout)?;
        let last: Value = serde_json::from_str(text.lines().last().expect("three samples"))?;
        assert!(last["etcd_error"].is_null(), "{last}");
        let told = &last["nodes"][0]["told"];
        assert_eq!(last["nodes"][0]["node"], "node-b");
        Ok((told["health"] == "ok").then(|| told.clone()))
    });
    let told = told.unwrap();
    assert!(told["in_force"].as_i64().unwrap() > 0 && told["in_force"] == told["wanted"], "{told}");
}
