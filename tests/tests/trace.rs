//! `vrouter trace` beside the data path it speaks of: it says what happens, and changes nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use vrouter_tests::topology::{Network, Router, Topology, standard_port, with_edge};
use vrouter_tests::{AgentOptions, Lab, Probe, Services, System, wait};

const SOON: Duration = Duration::from_secs(20);
const SERVER: &str = "198.51.100.10";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn trace(system: &System, node: &str, arguments: &[&str]) -> Value {
    let all: Vec<&str> = ["trace"].iter().chain(arguments).copied().collect();
    system.agent(node).json(&all).unwrap_or_else(|error| panic!("{arguments:?}: {error:#}"))
}

fn verdict(journey: &Value) -> (String, String, String) {
    let last = journey["hops"].as_array().unwrap().last().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    (text(&last["node"]), text(&journey["verdict"]["kind"]), text(&journey["verdict"]["reason"]))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Everything a packet may change on a node.
#[derive(Debug, PartialEq)]
struct State {
    drops: BTreeMap<String, u64>,
    events: BTreeMap<String, u64>,
    flows: Vec<Value>,
    next_hops: usize,
    claims: usize,
}

impl State {
    fn of(system: &System, node: &str) -> Self {
        let mut flows = system.flows_with(node, &[]).unwrap();
        // What goes by itself.
        for flow in &mut flows {
            for field in ["age_seconds", "idle_seconds", "timeout_seconds"] {
                flow.as_object_mut().unwrap().remove(field);
            }
        }
        // Gateways ask each other, and the kernel answers.
        let mut events = system.events(node).unwrap();
        events.remove("to_kernel");
        let entries = |map| system.entries(node, map).unwrap();
        Self {
            drops: system.drops(node).unwrap(),
            events,
            flows,
            next_hops: entries("HOP_INDEX"),
            claims: entries("LEARNED"),
        }
    }

    /// Whether all connections, next hops and claims were there before; else what was not.
    fn has_nothing_new_since(&self, before: &Self) -> Result<(), String> {
        let tuples =
            |state: &Self| -> Vec<Value> { state.flows.iter().map(|it| it["original"].clone()).collect() };
        let known = tuples(before);
        if let Some(new) = tuples(self).into_iter().find(|tuple| !known.contains(tuple)) {
            return Err(format!("there is a new connection: {new}"));
        }
        if self.next_hops > before.next_hops || self.claims > before.claims {
            return Err(format!("{before:?} has become {self:?}"));
        }
        Ok(())
    }
}

/// What it says is what happens, in the kernel and computed; nothing is stored, counted or sent.
#[test]
fn a_trace_says_what_happens_and_changes_nothing() {
    let system = System::start(&with_edge()).unwrap();
    let _services = Services::everywhere(&system, &[7]).unwrap();
    let topology = system.topology_path().display().to_string();
    let cases = [
        // From, to, where it ends and how; whether it is answered.
        ("vm1", "10.0.1.12", "node-a", "delivered", "", true),
        ("vm1", "10.0.2.15", "node-b", "delivered", "", true),
        ("vm2", SERVER, "gw", "sent_outside", "", true),
        ("vm1", SERVER, "gw", "sent_outside", "", true),
        ("vm4", "fd00:2::d", "node-a", "delivered", "", true),
        ("vm1", "10.0.2.99", "node-a", "answered", "next_hop_unknown", false),
        ("vm1", "10.0.1.1", "node-a", "answered", "router_port_unreachable", false),
    ];
    // The first packets outside make the next hop known, to both gateways: flows are shared out.
    wait::until("the way out is open", SOON, || {
        let seen = ["vm1", "vm2"].iter().all(|vm| {
            Probe::udp(ip(SERVER), 7).send(system.host(vm)).is_ok_and(|it| it.seen(ip(SERVER)).is_some())
        });
        Ok(seen
            && ["gw-1", "gw-2"].iter().all(|gw| system.entries(gw, "HOP_INDEX").is_ok_and(|hops| hops > 0)))
    })
    .unwrap();
    for (vm, to, node, kind, reason, answered) in cases {
        let from = if vm == "vm4" { "node-b" } else { "node-a" };
        let target = if to.contains(':') { format!("[{to}]:7") } else { format!("{to}:7") };
        let packet = format!("udp > {target}");
        let sniffers: Vec<_> = [to, SERVER]
            .iter()
            .filter_map(|to| system.workloads().find(|it| it.v4() == *to || it.v6() == *to))
            .map(|workload| workload.sniff().unwrap())
            .collect();
        // Nothing is added, the first time least of all. What was there may go by itself meanwhile, or a guest may say
        // something: not each time.
        let (mut live, mut again) = (Value::Null, Value::Null);
        let changed: Vec<_> = (0..4)
            .map_while(|_| {
                let before = State::of(&system, from);
                live = trace(&system, from, &["--port", vm, &packet]);
                again = trace(&system, from, &["--port", vm, "--afresh", &packet]);
                let after = State::of(&system, from);
                after.has_nothing_new_since(&before).unwrap_or_else(|what| panic!("{packet}: {what}"));
                (after != before).then_some((before, after))
            })
            .collect();
        assert!(changed.len() < 4, "{packet}: {changed:?}");
        for sniffer in &sniffers {
            let udp = |bytes: &[u8]| bytes.get(23) == Some(&17) || bytes.get(20) == Some(&17);
            assert!(sniffer.expect(Duration::from_millis(50), udp).is_err(), "{packet} was sent");
        }
        let computed = trace(&system, from, &["--what-if", &topology, "--port", vm, &packet]);
        for journey in [&live, &again, &computed] {
            let (at, how, why) = verdict(journey);
            assert!(at.starts_with(node), "{packet}: {journey:#}");
            assert_eq!((how.as_str(), why.as_str()), (kind, reason), "{packet}: {journey:#}");
        }
        assert!(live["hops"].as_array().unwrap().iter().all(|hop| hop["source"] == "live"), "{live:#}");
        assert!(computed["hops"].as_array().unwrap().iter().all(|hop| hop["source"] == "computed"));
        let outcome = Probe::udp(ip(to), 7).send(system.host(vm)).unwrap();
        assert_eq!(outcome.seen(ip(to)).is_some(), answered, "{packet}: {outcome}");
    }
    // What it rewrites is what arrives: the translated source.
    let outcome = Probe::udp(ip(SERVER), 7).from_port(4000).send(system.host("vm2")).unwrap();
    let seen = outcome.seen(ip(SERVER)).unwrap();
    let journey = trace(&system, "node-a", &["--port", "vm2", "udp 10.0.1.12:4000 > 198.51.100.10:7"]);
    let rewrites = journey["hops"][0]["rewrites"].to_string();
    assert!(rewrites.contains(&format!("becomes {seen}")), "{seen}: {rewrites}");
    assert!(rewrites.contains("TTL 64 becomes 63"), "{rewrites}");
    let path: Vec<&str> =
        journey["path"].as_array().unwrap().iter().filter_map(|object| object["name"].as_str()).collect();
    for name in ["vm2", "web", "r1", "public", "node-a"] {
        assert!(path.contains(&name), "{path:?}");
    }

    // A broadcast: who would get a copy, and nobody does.
    let vm2 = system.workload("vm2").sniff().unwrap();
    let broadcast = "udp 10.0.1.11 > 10.0.1.255:9 to ff:ff:ff:ff:ff:ff";
    for arguments in
        [&["--port", "vm1", broadcast][..], &["--what-if", &topology, "--port", "vm1", broadcast]]
    {
        let journey = trace(&system, "node-a", arguments);
        assert_eq!(verdict(&journey).1, "flooded");
        let steps = journey["hops"][0]["steps"].as_array().unwrap();
        let texts = steps.iter().filter_map(|step| step["text"].as_str()?.strip_prefix("a copy goes to "));
        assert_eq!(texts.collect::<Vec<_>>(), ["port vm2", "node node-b"], "{arguments:?}");
    }
    let to_nine = |bytes: &[u8]| bytes.get(36..38) == Some(&[0, 9]);
    assert!(vm2.expect(Duration::from_millis(100), to_nine).is_err(), "it was sent");

    // Nodes on other machines are computed, if there is something to compute them from.
    let alone = system.agent("node-a").alone().unwrap();
    let bpffs = alone.bpffs();
    let far = ["--bpffs", &bpffs, "--port", "vm1", "udp > 10.0.2.15:7"];
    let journey = trace(&system, "node-a", &far);
    assert_eq!(verdict(&journey).1, "tunnelled");
    assert!(journey["verdict"]["text"].as_str().unwrap().contains("give --topology"), "{journey:#}");
    let journey = trace(&system, "node-a", &[&["--topology", &topology][..], &far].concat());
    assert_eq!(verdict(&journey), ("node-b".to_owned(), "delivered".to_owned(), String::new()));
    assert_eq!(
        (&journey["hops"][0]["source"], &journey["hops"][1]["source"]),
        (&Value::from("live"), &Value::from("computed"))
    );

    // What cannot be traced is said.
    let refused = |arguments: &[&str]| {
        let output = system.agent("node-a").vrouter(arguments).unwrap();
        assert!(!output.status.success(), "{arguments:?}: {}", said(&output));
        said(&output)
    };
    for (arguments, why) in [
        (&["trace", "--port", "nobody", "icmp > 10.0.1.1"][..], "knows no port nobody"),
        (&["trace", "--port", "vm4", "icmp > 10.0.1.1"], "port vm4 is on node-b"),
        (&["trace", "--port", "vm1", "icmp > 10.0.1.1000"], "10.0.1.1000"),
        (&["trace", "--external", "web", "icmp 1.1.1.1 > 10.0.1.1"], "no external network"),
        (&["trace", "--external", "public", "icmp 1.1.1.1 > 203.0.113.51"], "no interface on network public"),
        (&["trace", "--port", "vm1", "--pcap", "/dev/null"], "neither pcap nor pcapng"),
        (&["trace", "--port", "vm1", "--what-if", "/nowhere.yaml", "icmp > 10.0.1.1"], "/nowhere.yaml"),
        (&["trace", "icmp > 10.0.1.1"], "--port"),
    ] {
        let text = refused(arguments);
        assert!(text.contains(why), "{arguments:?}: {text}");
    }
    // Without privileges, on a topology alone.
    let directory = readable(&system);
    let file = format!("{directory}/topology.yaml");
    std::fs::copy(&topology, &file).unwrap();
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    let binary = format!("{directory}/vrouter");
    std::fs::copy(system.agent("node-a").binary(), &binary).unwrap();
    let output =
        command.args([&binary, "trace", "--what-if", &file, "--port", "vm1", "udp > 10.0.2.15:7"]).output();
    let output = output.unwrap();
    assert!(said(&output).contains("= delivered to port vm5"), "{}", said(&output));
    std::fs::remove_dir_all(directory).unwrap();
}

/// A directory that everybody can read.
fn readable(system: &System) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let path = format!("/tmp/{}-trace", system.prefix());
    std::fs::create_dir_all(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A lab in which nearly everything is wrong.
fn with_faults() -> Topology {
    let mut topology = with_edge();
    // A router without a way to the other one's networks.
    topology.networks.push(Network::new("lab", &[("lab4", "10.0.3.0/24", "10.0.3.1")]));
    topology.routers.push(Router::new("r2", &["lab4"]));
    let mut vm7 = standard_port("vm7", "web", 17, "node-a");
    (vm7.network, vm7.fixed_ips) = ("lab".to_owned(), vec!["10.0.3.17".to_owned()]);
    topology.ports.push(vm7);
    // The group of web servers, on a server of another kind.
    topology.add_group(
        "web-only",
        &["{ direction: ingress, protocol: tcp, ports: 80 }", "{ direction: egress }"],
    );
    topology.put_into("vm5", &["web-only"]);
    let r1 = topology.router_mut("r1");
    r1.routes.push("{ destination: 10.50.0.0/16, nexthop: 10.0.2.99 }".to_owned());
    r1.gateway.as_mut().unwrap().snat_ports = Some("1024-1033".to_owned());
    topology.network_mut("db").mtu = Some(1300);
    topology
}

/// Each fault is found by one command.
#[test]
fn ten_planted_faults_are_each_found_by_one_command() {
    let topology = with_faults();
    let lab = Lab::builder().topology(&topology).build().unwrap();
    // VNI mismatch: node-b follows a document that somebody has edited.
    let mut edited = topology.clone();
    edited.network_mut("web").vni = Some(777);
    let other = lab.directory().join("edited.yaml");
    std::fs::write(&other, edited.to_string()).unwrap();
    let mut agents = BTreeMap::new();
    for node in ["node-a", "node-b", "gw-1", "gw-2"] {
        let topology = (node == "node-b").then(|| other.clone());
        let options = AgentOptions { topology, ..AgentOptions::default() };
        agents.insert(node.to_owned(), lab.start_agent(node, &options).unwrap());
    }
    let mut system = System::adopt(agents, lab).unwrap();
    let _services = Services::everywhere(&system, &[7]).unwrap();
    let run = |system: &System, node: &str, arguments: &[&str]| {
        said(&system.agent(node).vrouter(arguments).unwrap())
    };
    let found = |system: &System, node: &str, arguments: &[&str], expected: &[&str]| {
        let text = run(system, node, arguments);
        for word in expected {
            assert!(text.contains(word), "{arguments:?} does not say {word:?}:\n{text}");
        }
    };

    // 1. The wrong group.
    let wrong_group = ["trace", "--port", "vm1", "udp > 10.0.2.15:7"];
    found(
        &system,
        "node-a",
        &wrong_group,
        &[
            "node-b: from tunnel from node-a",
            "security groups web-only, ingress: no rule allows udp port 7",
            "= dropped: policy_ingress",
        ],
    );
    assert!(Probe::udp(ip("10.0.2.15"), 7).send(system.host("vm1")).unwrap().seen(ip("10.0.2.15")).is_none());

    // 2. A missing route.
    found(
        &system,
        "node-a",
        &["trace", "--port", "vm7", "icmp > 10.0.1.11"],
        &["router r2 has no route to 10.0.1.11", "no_route"],
    );

    // 3. A guest that spoofs: what it sends, as it was captured.
    let capture = system.directory().join("guest.pcap").display().to_string();
    let netns = system.node("node-a").netns().clone();
    let mut dump = netns.command("tcpdump");
    dump.args(["-i", "tap-vm2", "-c", "1", "-w", &capture, "udp port 999"]);
    let mut dump = vrouter_tests::Process::spawn(&mut dump).unwrap();
    dump.wait_for_text("listening on", SOON).unwrap();
    let gateway = system.workload("vm2").gateway_mac(false).unwrap();
    let own = system.workload("vm2").spec_mac();
    let spoofed = etherparse::PacketBuilder::ethernet2(own, gateway)
        .ipv4([10, 0, 1, 200], [10, 0, 2, 13], 64)
        .udp(999, 999);
    let mut frame = Vec::new();
    spoofed.write(&mut frame, &[0; 20]).unwrap();
    system.host("vm2").raw_send(&frame).unwrap();
    dump.wait(SOON).unwrap();
    found(
        &system,
        "node-a",
        &["trace", "--port", "vm2", "--pcap", &capture],
        &["packet 1", "port vm2 may not send from 10.0.1.200", "spoofed_ip"],
    );

    // 4. What is too large for the next network.
    found(
        &system,
        "node-a",
        &["trace", "--port", "vm1", "udp > 10.0.2.13:7 length 1350"],
        &["too_big", "refused with an ICMP error"],
    );

    // 5. A next hop that nobody is.
    found(
        &system,
        "node-a",
        &["trace", "--port", "vm1", "icmp > 10.50.1.1"],
        &["goes via 10.0.2.99 on network db [10.50.0.0/16]", "next_hop_unknown"],
    );

    // 6. No ports left for SNAT: one node has ten, the other none.
    let vm_of = |node: &str| if node == "node-a" { "vm2" } else { "vm4" };
    let owner = ["node-a", "node-b"].into_iter().find(|node| {
        let text = run(&system, node, &["trace", "--port", vm_of(node), "udp > 198.51.100.10:7"]);
        !text.contains("snat_exhausted")
    });
    let owner = owner.expect("one node has ports");
    let other = if owner == "node-a" { "node-b" } else { "node-a" };
    let exhausted = |node: &str| ["trace", "--port", vm_of(node), "udp > 198.51.100.10:7"];
    found(
        &system,
        other,
        &exhausted(other),
        &["snat_exhausted", "No port of the router's external address is free"],
    );
    let mut from = 5000;
    wait::until("all its ports are in use", SOON, || {
        for _ in 0..10 {
            from += 1;
            let probe = Probe::udp(ip(SERVER), 7).from_port(from).timeout(Duration::from_millis(300));
            drop(probe.send(system.host(vm_of(owner)))?);
        }
        Ok(run(&system, owner, &exhausted(owner)).contains("snat_exhausted"))
    })
    .unwrap();
    found(&system, owner, &exhausted(owner), &["is another connection's", "snat_exhausted"]);

    // 7. A dead gateway.
    system.agent_mut("gw-1").kill9();
    system
        .agent_mut("node-a")
        .wait_for_status(SOON, "see that gw-1 is dead", |status| {
            let all = status["agent"]["edge"]["gateways"].as_array().cloned().unwrap_or_default();
            all.iter().any(|it| it["node"] == "gw-1" && it["state"] == "down")
        })
        .unwrap();
    let gateways = run(&system, "node-a", &["show", "gateways"]);
    assert!(gateways.lines().any(|line| line.contains("gw-1") && line.contains("down")), "{gateways}");
    found(&system, "node-a", &["status"], &["gw-1"]);

    // 8. Two nodes that do not agree on a network's VNI.
    found(
        &system,
        "node-a",
        &["trace", "--port", "vm1", "udp > 10.0.1.14:7"],
        &["sent through the tunnel to node-b", "no network of this node has VNI", "vni_unknown"],
    );

    // 9. An interface that is down.
    netns.ip(&["link set tap-vm3 down"]).unwrap();
    system
        .agent_mut("node-a")
        .wait_for_status(SOON, "see that an interface is down", |status| {
            status["agent"]["ports"].as_array().unwrap().iter().any(|port| port["state"] == "down")
        })
        .unwrap();
    found(
        &system,
        "node-a",
        &["trace", "--port", "vm1", "udp > 10.0.2.13:7"],
        &["sent to port vm3, whose interface is down"],
    );
    found(&system, "node-a", &["status"], &["port vm3: interface tap-vm3 is down"]);

    // 10. A binding to a node where the workload is no more.
    system.workload("vm6").unplug().unwrap();
    system
        .agent_mut("node-b")
        .wait_for_status(SOON, "see that an interface is gone", |status| {
            status["agent"]["ports"].as_array().unwrap().iter().any(|port| port["state"] == "missing")
        })
        .unwrap();
    found(
        &system,
        "node-a",
        &["trace", "--port", "vm1", "udp > 10.0.2.16:7"],
        &["node-b: from tunnel from node-a", "port_unplugged"],
    );
}
