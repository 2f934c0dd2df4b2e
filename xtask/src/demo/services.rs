//! `cargo xtask demo --services`: what a tenant's network needs to live. A workload boots by DHCP, reaches a VIP over
//! three members, and does not notice for long that one of them dies.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use vrouter_tests::{
    Agent, Cluster, Host, Lab, Process, etcd,
    topology::{self, Topology},
    wait,
};

use super::{Demo, Finding, PREFIX, end, say, type_in};
use crate::report;

const NODES: [&str; 2] = ["node-a", "node-b"];
const MEMBERS: [&str; 3] = ["vm2", "vm4", "vm6"];
/// The one that dies.
const VICTIM: &str = "vm4";
const VIP: &str = "10.0.1.200";
const URL: &str = "http://10.0.1.200/";
const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(30);
/// Two checks half a second apart, and what the last may take.
const DETECTION: Duration = Duration::from_millis(2 * 500 + 400);
/// Between two requests under load.
const PACE: Duration = Duration::from_millis(20);

/// What udhcpc does with what it was given.
const CONFIGURE: &str = r#"#!/bin/sh
case "$1" in
bound|renew)
    ip address replace "$ip/$mask" dev "$interface"
    [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
    for hop in $router; do ip route replace default via "$hop" dev "$interface"; done
    echo "$1: $ip/$mask router $router mtu $mtu lease $lease${dns:+ dns $dns}"
    ;;
esac
"#;

/// Builds the lab, shows it, sums up; whether everything was as claimed.
pub fn run(vrouter: &Path, keep: bool) -> Result<()> {
    let start = Instant::now();
    say("Making the lab: two nodes, a load balancer with three members, and a workload without an address.");
    println!(
        "
      node-a 192.0.2.1   vm1 (boots)   vm2 web, a member
      node-b 192.0.2.2   vm4 web, a member   vm6 db, a member
      VIP {VIP} tcp 80 -> port {PORT} of the members, each asked GET / twice a second by its own node

    There is no DHCP server, no balancer and no monitoring host: every node does all of it for its own workloads."
    );
    let topology = topology();
    let lab = etcd::hosts(Lab::builder().prefix(PREFIX).topology(&topology).vrouter(vrouter)).build()?;
    let cluster = Cluster::start(&lab, &NODES, false)?;
    let mut shown = Shown { lab: &lab, agents: Vec::new(), servers: BTreeMap::new() };
    let mut command = lab.node("node-a").netns().command(vrouter);
    command.args(["apply", "-f", &lab.topology_path().display().to_string()]);
    let stored = command.args(cluster.arguments(etcd::WRITER)).output()?;
    if !stored.status.success() {
        bail!("vrouter apply: {}", String::from_utf8_lossy(&stored.stderr).trim());
    }
    for node in NODES {
        let mut agent = lab.start_agent(node, &cluster.agent(&lab, node))?;
        type_in(node, &format!("vrouter agent --node {node} --uplink eth0 --etcd ..."));
        agent.wait_ready(Duration::from_secs(60))?;
        shown.agents.push(agent);
    }
    let mut demo = Demo { lab: &lab, proofs: Vec::new() };

    say(
        "vm1 is plugged in and knows nothing. It asks for an address, as a virtual machine does when it boots.",
    );
    demo.prove("a workload boots by DHCP", shown.boot());

    say("The members serve their names. Each node checks its own; all know by etcd what the others say.");
    for member in MEMBERS {
        shown.serve(member)?;
    }
    let up = MEMBERS.iter().try_for_each(|member| shown.wait_for(member, "up"));
    demo.prove("members are up", up.and_then(|()| shown.show_lb(3)));

    say(
        "vm1 asks the VIP thirty times. Its own node chooses a member for each connection, and sends it there.",
    );
    demo.prove("a VIP over three members", shown.ask());

    say(&format!("vm1 asks every {} ms. {VICTIM}'s server is killed meanwhile.", PACE.as_millis()));
    demo.prove("a member dies", shown.die());
    say("It is started again, and is served to as soon as it was well twice.");
    let back = shown.serve(VICTIM).and_then(|()| shown.wait_for(VICTIM, "up")).and_then(|()| shown.ask());
    demo.prove("a member returns", back);

    say("All three die: who asks is refused at once, instead of waiting for nobody.");
    demo.prove("nobody there is said", shown.refused());

    let is_proved = demo.sum_up(start.elapsed());
    let binary = vrouter.display();
    let look =
        format!("nsenter --net=/run/netns/{PREFIX}-node-a {binary} show lb --instance {PREFIX}-node-a");
    let agents = shown.agents;
    end(is_proved, keep.then_some(&*look), "--services", agents, Some(cluster), lab)
}

/// The standard lab, and the load balancer.
fn topology() -> Topology {
    let mut topology = topology::standard();
    topology.load_balancers = vec![format!(
        "{{ name: shop, network: web, vip_addresses: [{VIP}], listeners: \
         [{{ name: http, protocol: tcp, protocol_port: 80, default_pool: shop }}] }}"
    )];
    let members = [("vm2", "10.0.1.12"), ("vm4", "10.0.1.14"), ("vm6", "10.0.2.16")]
        .map(|(name, address)| format!("{{ name: {name}, address: {address}, protocol_port: {PORT} }}"));
    topology.pools = vec![format!(
        "{{ name: shop, members: [{}], health_monitor: {{ type: http, delay: 0.5, timeout: 0.4, max_retries: 2, \
         max_retries_down: 2, url_path: / }} }}",
        members.join(", ")
    )];
    topology
}

struct Shown<'a> {
    lab: &'a Lab,
    agents: Vec<Agent>,
    servers: BTreeMap<&'static str, Process>,
}

impl Shown<'_> {
    fn guest(&self) -> &Host {
        self.lab.workload("vm1")
    }

    fn boot(&self) -> Result<Finding> {
        let guest = self.guest();
        guest.run("ip address flush dev eth0")?;
        guest.run("ip -4 route flush dev eth0")?;
        let script = self.lab.directory().join("configure");
        fs::write(&script, CONFIGURE)?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))?;
        type_in("vm1", "udhcpc -i eth0");
        let said = guest.run(&format!("busybox udhcpc -i eth0 -n -q -f -s {} -O mtu", script.display()))?;
        said.lines().for_each(|line| println!("    {line}"));
        let address = guest.run("ip -4 -o address show dev eth0")?;
        let pinged = guest.ping("10.0.2.16", 3, &[])?;
        let is_right = address.contains("10.0.1.11/24") && pinged.is_clean();
        Ok((is_right, "10.0.1.11/24, and routed to the other node".to_owned()))
    }

    /// Starts a member's server, which says its name.
    fn serve(&mut self, member: &'static str) -> Result<()> {
        let directory = self.lab.directory().join(member);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("index.html"), format!("{member}\n"))?;
        let line = format!("busybox httpd -f -p {PORT} -h {}", directory.display());
        self.servers.insert(member, self.lab.workload(member).spawn(&line)?);
        Ok(())
    }

    /// Waits until node-a says that of a member.
    fn wait_for(&self, member: &str, state: &str) -> Result<()> {
        let agent = self.agents.first().context("no agent")?;
        let name = format!("shop/{member}");
        wait::until(&format!("{member} is {state}"), PATIENCE, || {
            let report = agent.json(&["show", "lb"])?;
            let members = report["listeners"][0]["members"].as_array().cloned().unwrap_or_default();
            Ok(members.iter().any(|it| it["member"] == *name && it["state"] == state))
        })
    }

    fn show_lb(&self, up: usize) -> Result<Finding> {
        type_in("node-a", "vrouter show lb");
        let output = self.agents.first().context("no agent")?.vrouter(&["show", "lb"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().for_each(|line| println!("    {line}"));
        let found = text.lines().filter(|line| line.contains("shop/vm") && line.contains(" up ")).count();
        Ok((found == up, format!("{found} of 3")))
    }

    fn ask(&self) -> Result<Finding> {
        type_in("vm1", &format!("curl {URL}      # thirty times"));
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..30 {
            *counts.entry(fetch(self.guest())?).or_default() += 1;
        }
        let said: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!("    answered by: {}", said.join(", "));
        Ok((counts.len() == 3, said.join(", ")))
    }

    fn die(&mut self) -> Result<Finding> {
        let (start, stop) = (Instant::now(), AtomicBool::new(false));
        let guest = self.lab.workload("vm1");
        let (requests, failures, killed) = std::thread::scope(|scope| -> Result<_> {
            let load = scope.spawn(|| {
                let (mut requests, mut failures) = (0_u32, Vec::new());
                while !stop.load(Ordering::SeqCst) {
                    let begun = start.elapsed();
                    requests += 1;
                    if fetch(guest).is_err() {
                        failures.push(begun);
                    }
                    std::thread::sleep(PACE);
                }
                (requests, failures)
            });
            std::thread::sleep(Duration::from_secs(2));
            // Its process, and with it the socket: connections are refused from now on.
            let killed = start.elapsed();
            drop(self.servers.remove(VICTIM));
            std::thread::sleep(Duration::from_secs(5));
            stop.store(true, Ordering::SeqCst);
            let (requests, failures) = load.join().ok().context("the load panicked")?;
            Ok((requests, failures, killed))
        })?;
        let last = failures.last().map(|at| at.saturating_sub(killed));
        println!(
            "    {requests} requests, {} failed, the last {} after the server died; its death is detected after {} ms at the most",
            failures.len(),
            last.map_or("none".to_owned(), |last| format!("{} ms", last.as_millis())),
            DETECTION.as_millis()
        );
        // One that was under way is cut off, too.
        let early = failures.iter().filter(|at| **at + PACE * 5 < killed).count();
        let is_in_time = last.is_none_or(|last| last <= DETECTION);
        let (_, said) = self.show_lb(2)?;
        Ok((
            early == 0 && is_in_time,
            format!("{} of {requests} failed, all in time; {said} up", failures.len()),
        ))
    }

    fn refused(&mut self) -> Result<Finding> {
        self.servers.clear();
        wait::until("nobody is up", PATIENCE, || {
            let report = self.agents.first().context("no agent")?.json(&["show", "lb"])?;
            Ok(report["listeners"][0]["state"] == "no member")
        })?;
        let before = Instant::now();
        let failed = fetch(self.guest()).err().context("somebody answered")?;
        let took = before.elapsed();
        println!("    {failed:#}");
        Ok((took < Duration::from_millis(500), format!("refused after {}", report::duration(took))))
    }
}

/// What a request to the VIP is answered.
fn fetch(from: &Host) -> Result<String> {
    let output = from.output(&format!("curl --silent --show-error --max-time 1 {URL}"))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
