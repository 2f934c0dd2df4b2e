//! `cargo xtask demo`: two nodes that route real traffic, shown step by step.

mod edge;
mod many;
mod services;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use vrouter_tests::{
    Agent, AgentOptions, Cluster, Host, Lab, Ping, Workload, clean, require_root, tools, topology,
};

use crate::{report, repository, setup};

/// Build two nodes in network namespaces and show traffic crossing them.
#[derive(clap::Args)]
pub struct Args {
    /// Leave the lab up, to look around in it.
    #[arg(long)]
    keep: bool,
    /// Many nodes instead: the topology in an etcd cluster of three, three nodes, and members and agents that die.
    #[arg(long)]
    etcd: bool,
    /// The edge instead: gateways that carry for nodes without an interface outside, one of which dies under load.
    #[arg(long, conflicts_with = "etcd")]
    edge: bool,
    /// What tenants need instead: DHCP, a load balancer, and a member of it that dies under load.
    #[arg(long, conflicts_with_all = ["etcd", "edge"])]
    services: bool,
    /// Remove every trace of a lab that was kept, and do nothing else.
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
}

/// The demo's lab has a fixed name, so that it can be found again.
const PREFIX: &str = "vrdemo";

/// Builds the lab, shows the traffic, sums up.
pub fn run(args: Args) -> Result<()> {
    require_root()?;
    if args.clean {
        return remove_kept();
    }
    let start = Instant::now();
    setup::ensure(setup::Needs::LABS)?;
    let vrouter = build_vrouter()?;

    // The build runs before this: an interrupted cargo has nothing of ours to remove.
    clean::remove_on_signal(PREFIX)?;
    if clean::exists(PREFIX) {
        say("A lab of an earlier demo is still up; it is replaced.");
        clean::remove(PREFIX)?;
    }
    if args.etcd {
        return many::run(&vrouter, args.keep);
    }
    if args.edge {
        return edge::run(&vrouter, args.keep);
    }
    if args.services {
        return services::run(&vrouter, args.keep);
    }
    let lab = build_lab(&vrouter)?;
    let mut agents = start_agents(&lab)?;
    let mut demo = Demo { lab: &lab, proofs: Vec::new() };
    demo.reach();
    demo.traceroute();
    demo.throughput();
    demo.floating_ip();
    demo.snat(&agents[0]);
    demo.refused(&agents[0]);
    demo.path_mtu();
    demo.survive(&mut agents[0]);
    let is_proved = demo.sum_up(start.elapsed());

    if !is_proved {
        for agent in &agents {
            println!("\nThe log of the agent of {}:\n{}", agent.node().name(), agent.log());
        }
    }
    if args.keep {
        explain(&lab, &vrouter);
        agents.into_iter().for_each(Agent::keep);
        lab.keep();
    } else {
        drop(agents);
        drop(lab);
        clean::remove_shared_directories();
        println!(
            "\nThe lab is gone again. `cargo xtask demo --keep` leaves it up, with commands to look around."
        );
    }
    if !is_proved {
        bail!("not everything worked; see the table");
    }
    Ok(())
}

fn remove_kept() -> Result<()> {
    let was_there = clean::exists(PREFIX);
    clean::remove(PREFIX)?;
    clean::sweep_stale()?;
    clean::remove_shared_directories();
    println!("{}", if was_there { "The lab is gone." } else { "There was no lab." });
    Ok(())
}

/// Builds the release, unless `VROUTER_BIN` names a program to show instead.
fn build_vrouter() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("VROUTER_BIN") {
        return Ok(PathBuf::from(path));
    }
    say("Building the eBPF programs and vrouter, which embeds them.");
    let mut build = repository::cargo("build --release -p vrouter");
    type_in("", &repository::describe(&build));
    repository::run(&mut build)?;
    Ok(repository::target_dir()?.join("release/vrouter"))
}

fn build_lab(vrouter: &Path) -> Result<Lab> {
    say("Making the lab: two nodes, each with three workloads, and a world outside.");
    println!(
        "
      node-a 192.0.2.1                         node-b 192.0.2.2
      vm1 web 10.0.1.11  fd00:1::b             vm4 web 10.0.1.14  fd00:1::e
      vm2 web 10.0.1.12  fd00:1::c             vm5 db  10.0.2.15  fd00:2::f
      vm3 db  10.0.2.13  fd00:2::d             vm6 db  10.0.2.16  fd00:2::10
          |           |                            |           |
          |           +--------- underlay ---------+           |
          +------------- external network 203.0.113.0/24 ------+
                                  |
      outside1 203.0.113.101      gw 203.0.113.1 --- server1 198.51.100.10
                                                 --- narrow 198.51.101.10 (MTU 1300)

      router r1, on both nodes: web 10.0.1.1 fd00:1::1, db 10.0.2.1 fd00:2::1, outside 203.0.113.10
      floating IP 203.0.113.51: vm1, whose security group lets in TCP port 80 and pings

    Each of them is a network namespace: a network stack of its own, with veth pairs as wires.
    Nothing but vrouter joins the workloads to each other and to outside: no bridge, no address and no route
    on the nodes."
    );
    let lab = Lab::builder().prefix(PREFIX).topology(&demo_topology()).vrouter(vrouter).build()?;
    println!("    The topology the agents read: {}", lab.topology_path().display());
    Ok(lab)
}

/// The standard lab with a way out, and policy for the port that has a floating IP.
fn demo_topology() -> topology::Topology {
    let mut topology = topology::with_outside();
    topology.add_group(
        "web-sg",
        &[
            "{ direction: ingress, protocol: tcp, ports: 80 }",
            "{ direction: ingress, protocol: icmp }",
            "{ direction: egress }",
        ],
    );
    topology.put_into("vm1", &["web-sg"]);
    topology
}

fn start_agents(lab: &Lab) -> Result<Vec<Agent>> {
    say(
        "Starting one agent per node. It loads the programs, attaches them and compiles the topology into maps.",
    );
    let mut agents = Vec::new();
    for node in lab.nodes() {
        let start = Instant::now();
        let mut agent = lab.start_agent(node.name(), &AgentOptions::default())?;
        let topology = lab.topology_path();
        type_in(
            node.name(),
            &format!(
                "vrouter agent --node {} --instance {} --uplink eth0 --external public=ext0 --topology {}",
                node.name(),
                agent.instance(),
                topology.display()
            ),
        );
        agent.wait_ready(Duration::from_secs(60))?;
        println!("    ready after {}", report::duration(start.elapsed()));
        agents.push(agent);
    }
    Ok(agents)
}

/// What was shown so far.
struct Demo<'lab> {
    lab: &'lab Lab,
    proofs: Vec<Proof>,
}

struct Proof {
    claim: &'static str,
    evidence: String,
    is_proved: bool,
}

/// What a check found, and whether it is what was claimed.
type Finding = (bool, String);

impl<'lab> Demo<'lab> {
    fn reach(&mut self) {
        let (vm1, vm2, vm3) = (self.workload("vm1"), self.workload("vm2"), self.workload("vm3"));
        let (vm4, vm5) = (self.workload("vm4"), self.workload("vm5"));

        say("vm1 pings vm2: the same network, the same node. The frame goes from port to port.");
        self.prove("same network, same node", ping_both(vm1, vm2.v4(), vm2.v6()));
        say(
            "vm1 pings vm4: the same network, another node. The frame crosses the underlay in a VXLAN tunnel.",
        );
        let across = self.watch_tunnel(|| ping_both(vm1, vm4.v4(), vm4.v6()));
        self.prove("same network, across nodes", across);
        say(
            "vm1 pings vm3: another network, the same node. The router is in node-a's kernel, so it never leaves.",
        );
        self.prove("routed, same node", ping_both(vm1, vm3.v4(), vm3.v6()));
        say(
            "vm1 pings vm5: another network, another node. Routed where it enters, then straight to vm5's node.",
        );
        let across = self.watch_tunnel(|| ping_both(vm1, vm5.v4(), vm5.v6()));
        self.prove("routed, across nodes", across);
        say("vm1 pings its gateway. There is no such interface anywhere: the program answers.");
        self.prove("the router answers", ping_both(vm1, "10.0.1.1", "fd00:1::1"));
    }

    fn traceroute(&mut self) {
        let (vm1, vm5) = (self.workload("vm1"), self.workload("vm5"));
        say("vm1 traces the route to vm5: one hop, the router, also across two nodes.");
        let traced =
            trace(vm1, "10.0.1.1", vm5.v4()).and_then(|v4| Ok(join(v4, trace(vm1, "fd00:1::1", vm5.v6())?)));
        self.prove("traceroute shows the router, once", traced);
    }

    fn throughput(&mut self) {
        let (vm1, vm3, vm5) = (self.workload("vm1"), self.workload("vm3"), self.workload("vm5"));
        say("One TCP stream from vm1 to vm3: routed on one node.");
        self.prove("TCP, routed on one node", stream_both(vm1, vm3));
        say("One TCP stream from vm1 to vm5: routed, then through the tunnel.");
        self.prove("TCP, routed across nodes", stream_both(vm1, vm5));
    }

    fn floating_ip(&mut self) {
        let (vm1, outside1) = (self.workload("vm1"), self.lab.host("outside1"));
        say(
            "outside1 pings vm1's floating IP. vm1's own node answers for it, and outside sees nothing else.",
        );
        let found = watch(vm1, "icmp", || ping(outside1, "203.0.113.51")).map(|(found, seen)| {
            let inside = seen.iter().filter(|line| line.contains("203.0.113.101 > 10.0.1.11")).count();
            join(found, (inside > 0, "vm1 sees it arrive at 10.0.1.11".to_owned()))
        });
        self.prove("floating IP", found);
        say("outside1 traces the route to it, with pings: the router, then vm1, by its floating IP.");
        type_in(outside1.name(), "traceroute -n -I 203.0.113.51");
        let traced = tools::traceroute_icmp(outside1, "203.0.113.51")
            .map(|traced| traced_by(traced, "203.0.113.10", "203.0.113.51"));
        self.prove("traceroute through a floating IP", traced);
    }

    fn snat(&mut self, agent: &Agent) {
        let (vm2, server1) = (self.workload("vm2"), self.lab.host("server1"));
        say("vm2 has no floating IP. It pings server1, which sees the router's address.");
        let found = watch(server1, "icmp", || ping(vm2, "198.51.100.10")).and_then(|(found, seen)| {
            let by_router = seen.iter().filter(|line| line.contains("203.0.113.10 > 198.51.100.10")).count();
            let flows = show(agent, &["flows", "--address", "198.51.100.10"])?;
            show(agent, &["show", "nat"])?;
            let known = flows.contains("203.0.113.10");
            Ok(join(found, (by_router > 0 && known, "server1 sees 203.0.113.10".to_owned())))
        });
        self.prove("SNAT", found);
    }

    fn refused(&mut self, agent: &Agent) {
        let outside1 = self.lab.host("outside1");
        say(
            "outside1 tries TCP port 22 of vm1, which no rule lets in, and asks node-a why nothing came back.",
        );
        let found = agent.drops("policy_ingress").and_then(|before| {
            let line = "nc -z -w 2 203.0.113.51 22";
            type_in(outside1.name(), line);
            let connected = outside1.output(line)?.status.success();
            println!("    {}", if connected { "connected" } else { "no answer within 2 seconds" });
            show(agent, &["show", "drops"])?;
            println!("    Why? The same packet on trial, from outside:");
            let packet = "tcp 203.0.113.101:40000 > 203.0.113.51:22";
            show(agent, &["trace", "--external", "public", packet])?;
            let dropped = agent.drops("policy_ingress")? - before;
            let evidence = format!("policy_ingress counted {dropped}");
            Ok((!connected && dropped > 0, evidence))
        });
        self.prove("a refused connection has a reason", found);
    }

    fn path_mtu(&mut self) {
        let vm2 = self.workload("vm2");
        say(
            "vm2 sends 1400 bytes to narrow, whose link takes 1300. The router there says so to the router's \
             address; vm2 must hear it, as if there were no translation.",
        );
        let line = "ping -M do -s 1372 -c 2 198.51.101.10";
        type_in(vm2.name(), line);
        let found = vm2.output(line).map(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines().skip(1).take(2).for_each(|line| println!("    {line}"));
            (text.contains("mtu = 1300") || text.contains("mtu=1300"), "vm2 hears: MTU 1300".to_owned())
        });
        self.prove("path MTU discovery through SNAT", found);
    }

    fn survive(&mut self, agent: &mut Agent) {
        say("The agent of node-a is killed while vm1 pings vm5 every 10 ms, and started again later.");
        let survived = ping_through_restart(self.workload("vm1"), self.workload("vm5").v4(), agent);
        self.prove("no packet lost when the agent dies", survived);
    }

    /// Runs a check and counts the tunnelled frames that cross node-a's wire meanwhile.
    fn watch_tunnel(&self, check: impl FnOnce() -> Result<Finding>) -> Result<Finding> {
        let node = self.lab.node("node-a");
        let underlay = Host::new("underlay", self.lab.underlay().clone());
        type_in("underlay", &format!("tcpdump -i {} {VXLAN}", node.underlay_port()));
        let capture = underlay.capture_on(node.underlay_port(), VXLAN)?;
        let found = check()?;
        let frames = capture.stop()?.len();
        println!("    {frames} VXLAN frames on the underlay");
        Ok(join(found, (frames >= FRAMES_OF_PINGS, format!("{frames} VXLAN frames seen"))))
    }

    fn prove(&mut self, claim: &'static str, found: Result<Finding>) {
        // An interrupted check has proved nothing either way.
        clean::stop_if_interrupted();
        let (is_proved, evidence) = found.unwrap_or_else(|error| {
            println!("    {error:#}");
            (false, "an error, see above".to_owned())
        });
        println!("    => {}", verdict(is_proved));
        self.proofs.push(Proof { claim, evidence, is_proved });
    }

    fn workload(&self, name: &str) -> &'lab Workload {
        self.lab.workload(name)
    }

    fn sum_up(&self, time: Duration) -> bool {
        let rows: Vec<[String; 3]> = self
            .proofs
            .iter()
            .map(|Proof { claim, evidence, is_proved }| {
                [(*claim).to_owned(), evidence.clone(), verdict(*is_proved).to_owned()]
            })
            .collect();
        println!("\nWhat was shown, in {}:\n", report::duration(time));
        println!("{}", report::table(["claim", "evidence", ""], &rows));
        self.proofs.iter().all(|proof| proof.is_proved)
    }
}

/// Runs a check while a host's packets are captured; what tcpdump would print of them.
fn watch(
    host: &Host,
    filter: &str,
    check: impl FnOnce() -> Result<Finding>,
) -> Result<(Finding, Vec<String>)> {
    type_in(host.name(), &format!("tcpdump -n {filter}"));
    let capture = host.capture(filter)?;
    let found = check()?;
    let mut lines = Vec::new();
    for frame in capture.stop()? {
        // IPv4: source and destination behind the Ethernet header.
        if frame.len() >= 34 && frame[12..14] == [8, 0] {
            let address = |at: usize| {
                std::net::Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap_or_default())
            };
            lines.push(format!("{} > {}", address(26), address(30)));
        }
    }
    lines.dedup();
    lines.iter().take(2).for_each(|line| println!("    {}: {line}", host.name()));
    Ok((found, lines))
}

/// What the operator of a node would type, and read.
fn show(agent: &Agent, arguments: &[&str]) -> Result<String> {
    type_in(agent.node().name(), &format!("vrouter {} --instance {}", arguments.join(" "), agent.instance()));
    let output = agent.vrouter(arguments)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().take(24).for_each(|line| println!("    {line}"));
    Ok(text)
}

/// Requests of each `ping`.
const PINGS: u32 = 3;
/// Requests and replies of one `ping` by IPv4 and one by IPv6.
const FRAMES_OF_PINGS: usize = 2 * 2 * PINGS as usize;
const VXLAN: &str = "udp port 4789";
/// A stream slower than this crawls from one retransmission to the next.
const SLOWEST_STREAM: f64 = 50e6;

fn ping_both(from: &Workload, v4: &str, v6: &str) -> Result<Finding> {
    Ok(join(ping(from, v4)?, ping(from, v6)?))
}

fn ping(from: &Host, destination: &str) -> Result<Finding> {
    type_in(from.name(), &format!("ping -c {PINGS} {destination}"));
    let ping = from.ping(destination, PINGS, &[])?;
    println!("    {}", ping.summary());
    Ok((ping.is_clean(), evidence(family(destination), &ping)))
}

fn evidence(what: &str, ping: &Ping) -> String {
    format!("{what} {}/{}", ping.received, ping.sent)
}

fn trace(from: &Host, router: &str, destination: &str) -> Result<Finding> {
    type_in(from.name(), &format!("traceroute -n {destination}"));
    Ok(traced_by(tools::traceroute(from, destination)?, router, destination))
}

fn traced_by((hops, output): (Vec<Option<String>>, String), router: &str, destination: &str) -> Finding {
    output.lines().skip(1).for_each(|line| println!("    {line}"));
    let hops: Vec<String> = hops.into_iter().map(|hop| hop.unwrap_or_else(|| "*".to_owned())).collect();
    (hops == [router, destination], hops.join(" > "))
}

fn stream_both(from: &Workload, to: &Workload) -> Result<Finding> {
    Ok(join(stream(from, to, to.v4())?, stream(from, to, to.v6())?))
}

fn stream(from: &Workload, to: &Workload, destination: &str) -> Result<Finding> {
    type_in(to.name(), "iperf3 -s");
    type_in(from.name(), &format!("iperf3 -c {destination} -t 2"));
    let throughput = tools::iperf3(from, to, destination, 2, &[])?;
    let rate = report::rate(throughput.bits_per_second);
    println!("    {rate}, {} segments sent again", throughput.retransmits);
    Ok((throughput.bits_per_second >= SLOWEST_STREAM, format!("{} {rate}", family(destination))))
}

fn ping_through_restart(from: &Workload, destination: &str, agent: &mut Agent) -> Result<Finding> {
    const COUNT: u32 = 500;
    type_in(from.name(), &format!("ping -i 0.01 -c {COUNT} {destination}"));
    let ping = from.start_ping(destination, COUNT, &["-i", "0.01"])?;
    std::thread::sleep(Duration::from_millis(1500));
    let id = agent.id().context("the agent is not running")?;
    type_in(agent.node().name(), &format!("kill -9 {id}"));
    agent.kill9();
    let killed = Instant::now();
    std::thread::sleep(Duration::from_millis(1500));
    let absence = report::duration(killed.elapsed());
    type_in(agent.node().name(), "vrouter agent ...    (as before)");
    agent.restart()?;
    agent.wait_ready(Duration::from_secs(60))?;
    println!("    dead for {absence}, ready again {} after the kill", report::duration(killed.elapsed()));
    let ping = ping.finish(Duration::from_secs(60))?;
    println!("    {}", ping.summary());
    Ok((ping.is_clean(), format!("{}, agent dead for {absence}", evidence("replies", &ping))))
}

/// Two findings as one.
fn join((first, one): Finding, (second, other): Finding) -> Finding {
    (first && second, format!("{one}, {other}"))
}

fn family(address: &str) -> &'static str {
    if address.contains(':') { "v6" } else { "v4" }
}

fn verdict(is_proved: bool) -> &'static str {
    if is_proved { "ok" } else { "FAILED" }
}

/// How to look around in a lab that is kept.
fn explain(lab: &Lab, vrouter: &Path) {
    let vrouter = vrouter.display();
    let inside = |name: &str| format!("nsenter --net=/run/netns/{}-{name}", lab.prefix());
    let instance = format!("{}-node-a", lab.prefix());
    let rows: Vec<[String; 2]> = [
        ("be a workload", format!("{} ping 10.0.2.15", inside("vm1"))),
        ("see the tunnel", format!("{} tcpdump -n -i eth0 {VXLAN}", inside("node-a"))),
        ("what is in force", format!("{vrouter} status --instance {instance}")),
        ("what the node compiled", format!("{vrouter} show ports --instance {instance}")),
        ("the maps themselves", format!("{vrouter} map-dump --instance {instance}")),
        ("see connections", format!("{vrouter} flows --instance {instance}")),
        ("the same as conntrack -L", format!("{vrouter} conntrack --instance {instance}")),
        ("see translation", format!("{vrouter} show nat --instance {instance}")),
        ("see policy", format!("{vrouter} show acl --instance {instance}")),
        ("ask why", format!("{vrouter} trace --instance {instance} --port vm1 'tcp > 10.0.2.15:22'")),
        ("change what runs", format!("editor {}", lab.topology_path().display())),
        ("the agent's log", format!("less {}", lab.directory().join("node-a.log").display())),
        ("remove it all", "cargo xtask demo --clean".to_owned()),
    ]
    .map(|(purpose, command)| [purpose.to_owned(), command])
    .to_vec();
    println!("\nThe lab stays up, agents included. To look around:\n");
    println!("{}", report::table(["to", "type"], &rows));
}

/// How to end it.
/// Ends a demo of another kind: with the agents' logs if not everything worked, and without a trace, unless the lab is
/// to be `kept`, with a command to begin looking around with.
fn end(
    is_proved: bool,
    kept: Option<&str>,
    option: &str,
    agents: Vec<Agent>,
    cluster: Option<Cluster>,
    lab: Lab,
) -> Result<()> {
    if !is_proved {
        for agent in &agents {
            println!("\nThe log of the agent of {}:\n{}", agent.node().name(), agent.log());
        }
    }
    if let Some(look) = kept {
        println!("\nThe lab stays up, with all that runs in it. To look around:\n\n    {look}");
        explain_removal();
        agents.into_iter().for_each(Agent::keep);
        cluster.into_iter().for_each(Cluster::keep);
        lab.keep();
    } else {
        drop((agents, cluster));
        drop(lab);
        clean::remove_shared_directories();
        println!("\nThe lab is gone again. `cargo xtask demo {option} --keep` leaves it up.");
    }
    if !is_proved {
        bail!("not everything worked; see the table");
    }
    Ok(())
}

fn explain_removal() {
    println!("    cargo xtask demo --clean        removes it all");
}

/// Announces a step.
fn say(what: &str) {
    println!("\n* {what}");
}

/// Shows a command as it is typed on a host of the lab.
fn type_in(host: &str, command: &str) {
    println!("    {host}$ {command}");
}
