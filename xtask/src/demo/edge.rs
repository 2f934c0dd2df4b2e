//! `cargo xtask demo --edge`: two gateways carry for two nodes that have no interface outside. The one that does is
//! killed, cut off and returns under load; a plot shows what the sessions noticed.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use vrouter_tests::{Agent, AgentOptions, Lab, Probe, Report, Services, Sessions, topology, wait};

use super::{Demo, Finding, PREFIX, end, say, type_in};
use crate::repository;

const NODES: [&str; 4] = ["node-a", "node-b", "gw-1", "gw-2"];
const GATEWAYS: [&str; 2] = ["gw-1", "gw-2"];
const SERVER: &str = "198.51.100.10";
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two things that happen.
const PAUSE: Duration = Duration::from_secs(3);
/// Kind, who opens the sessions, to whom.
const KINDS: [(&str, &str, &str); 3] = [
    ("SNAT", "vm4", SERVER),
    ("floating IP, out", "vm1", SERVER),
    ("floating IP, in", "server1", "203.0.113.51"),
];
const TCP: usize = 40;
const UDP: usize = 10;

/// Builds the lab, shows it, sums up; whether everything was as claimed.
pub fn run(vrouter: &Path, keep: bool) -> Result<()> {
    let start = Instant::now();
    say("Making the lab: two nodes that have no interface outside, and two gateways.");
    println!(
        "
      node-a 192.0.2.1   vm1 (floating IP 203.0.113.51) vm2 vm3        no interface outside
      node-b 192.0.2.2   vm4 vm5 vm6 (SNAT by r1, 203.0.113.10)        no interface outside
      gw-1   192.0.2.3   gw-2 192.0.2.4                                gateways, no workloads
                           |    external network 203.0.113.0/24
                           gw 203.0.113.1 --- server1 198.51.100.10

    Nodes translate, each with blocks of ports of its own; gateways pass on, and keep nothing of a connection."
    );
    let lab = Lab::builder().prefix(PREFIX).topology(&topology::with_edge()).vrouter(vrouter).build()?;
    say("Starting one agent per node.");
    let mut shown = Shown { lab: &lab, agents: Vec::new() };
    for node in NODES {
        let agent = lab.start_agent(node, &AgentOptions::default())?;
        let external = if lab.node(node).is_outside() { " --external public=ext0" } else { "" };
        type_in(node, &format!("vrouter agent --node {node} --uplink eth0{external} --topology ..."));
        shown.agents.push(agent);
    }
    shown.agents.iter_mut().try_for_each(|agent| agent.wait_ready(PATIENCE))?;
    let mut demo = Demo { lab: &lab, proofs: Vec::new() };

    say("The gateways agree by VRRP (RFC 5798) who answers for the router's addresses; the other waits.");
    let [first, other] = shown.ranked()?;
    let masters =
        shown.gateways(first).map(|text| (text.contains("master"), format!("{first} is the master")));
    demo.prove("one gateway answers", masters);
    say(
        "A node without an interface outside asks both gateways all the time, and spreads its flows over those that answer.",
    );
    let ways = shown
        .gateways("node-b")
        .map(|text| (text.matches(" up ").count() == 2, "both carry for node-b".to_owned()));
    demo.prove("a node knows who carries", ways);

    let _services = Services::everywhere(&lab, &[7])?;
    say("vm4 and vm1 reach a server beyond; the server sees the router's address and the floating IP.");
    demo.prove("out by the gateways", shown.reach());

    say(&format!(
        "{} sessions run: {} TCP and {} UDP of each kind, a message each 40 ms. Meanwhile {first} has a bad day.",
        KINDS.len() * (TCP + UDP),
        TCP,
        UDP
    ));
    let day = shown.bad_day(first, other)?;
    let path = repository::target_dir()?.join("demo/edge.svg");
    plot(&path, &day).context("cannot draw the plot")?;
    for (kind, it) in &day.kinds {
        println!(
            "    {kind:<17} longest pause: UDP {:>4} ms, TCP {:>4} ms (with its retransmissions); {} datagrams unanswered",
            it.longest_udp.as_millis(),
            it.longest_tcp.as_millis(),
            it.unanswered
        );
    }
    println!("    The rate over time: {}", path.display());
    let lost: Vec<&String> = day.kinds.iter().flat_map(|(_, it)| &it.lost).collect();
    let sessions: usize = day.kinds.iter().map(|(_, it)| it.sessions.0 + it.sessions.1).sum();
    let longest = day.kinds.iter().map(|(_, it)| it.longest_udp).max().unwrap_or_default();
    demo.prove(
        "no session is lost",
        Ok((lost.is_empty(), format!("{} of {sessions}", sessions - lost.len()))),
    );
    demo.prove(
        "an outage below a second",
        Ok((longest < Duration::from_secs(1), format!("the longest was {} ms", longest.as_millis()))),
    );
    demo.prove(
        "a dead agent is not noticed",
        Ok((day.lost_by_agent == 0, "0 datagrams unanswered".to_owned())),
    );
    say(
        "What a gateway has kept of all this: the ways to blocks of 1024 ports, which the configuration bounds.",
    );
    demo.prove("gateways keep no connections", shown.kept());

    let is_proved = demo.sum_up(start.elapsed());
    let binary = vrouter.display();
    let look =
        format!("nsenter --net=/run/netns/{PREFIX}-gw-1 {binary} show gateways --instance {PREFIX}-gw-1");
    let agents = shown.agents;
    end(is_proved, keep.then_some(&*look), "--edge", agents, None, lab)
}

struct Shown<'a> {
    lab: &'a Lab,
    agents: Vec<Agent>,
}

/// What happened, and what the sessions noticed.
struct Day {
    kinds: Vec<(&'static str, Report)>,
    /// Answers in each step, of each kind.
    timelines: Vec<(&'static str, Vec<u32>)>,
    /// When what happened, since the sessions began.
    events: Vec<(Duration, String)>,
    /// Unanswered until only an agent had died.
    lost_by_agent: u64,
}

impl Shown<'_> {
    fn agent(&mut self, node: &str) -> Result<&mut Agent> {
        let found = self.agents.iter_mut().find(|agent| agent.node().name() == node);
        found.with_context(|| format!("no agent on {node}"))
    }

    fn routers(&mut self, node: &str) -> Result<Vec<serde_json::Value>> {
        let status = self.agent(node)?.status()?;
        Ok(status["agent"]["edge"]["virtual_routers"].as_array().cloned().unwrap_or_default())
    }

    fn is_master(&mut self, node: &str) -> bool {
        self.routers(node).is_ok_and(|all| !all.is_empty() && all.iter().all(|it| it["state"] == "master"))
    }

    fn wait_for_master(&mut self, node: &str) -> Result<()> {
        wait::until(&format!("{node} is the master"), PATIENCE, || Ok(self.is_master(node)))
    }

    /// The better gateway and the other, when the better one is the master.
    fn ranked(&mut self) -> Result<[&'static str; 2]> {
        let mut ranked = GATEWAYS;
        let priority = |shown: &mut Self, node: &str| -> Result<u64> {
            wait::until("the virtual routers are there", PATIENCE, || Ok(!shown.routers(node)?.is_empty()))?;
            Ok(shown.routers(node)?[0]["priority"].as_u64().unwrap_or(0))
        };
        if priority(self, ranked[0])? < priority(self, ranked[1])? {
            ranked.reverse();
        }
        self.wait_for_master(ranked[0])?;
        Ok(ranked)
    }

    fn gateways(&mut self, node: &str) -> Result<String> {
        if !GATEWAYS.contains(&node) {
            self.agent(node)?.wait_for_status(PATIENCE, "hear from both gateways", |status| {
                let all = status["agent"]["edge"]["gateways"].as_array().cloned().unwrap_or_default();
                all.len() == 2 && all.iter().all(|it| it["state"] == "up")
            })?;
        }
        type_in(node, "vrouter show gateways");
        let output = self.agent(node)?.vrouter(&["show", "gateways"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().for_each(|line| println!("    {line}"));
        Ok(text)
    }

    fn reach(&self) -> Result<Finding> {
        let mut found = (true, String::new());
        for (vm, expected) in [("vm4", "203.0.113.10"), ("vm1", "203.0.113.51")] {
            let server = SERVER.parse()?;
            let mut seen = None;
            wait::until(&format!("{vm} reaches {SERVER}"), PATIENCE, || {
                seen = Probe::udp(server, 7).send(self.lab.host(vm))?.seen(server);
                Ok(seen.is_some())
            })?;
            let seen = seen.map(|seen| seen.ip().to_string()).unwrap_or_default();
            println!("    {vm} is seen by {SERVER} as {seen}");
            found.0 &= seen == expected;
            let _ = write!(found.1, "{}{vm} as {seen}", if found.1.is_empty() { "" } else { ", " });
        }
        Ok(found)
    }

    fn bad_day(&mut self, first: &str, other: &str) -> Result<Day> {
        let lab = self.lab;
        let begin = Instant::now();
        let mut running = Vec::new();
        for (kind, from, to) in KINDS {
            let to = SocketAddr::new(to.parse()?, 7);
            running.push((kind, begin.elapsed(), Sessions::start(lab.host(from), to, TCP, UDP)?));
        }
        let mut events = Vec::new();
        let mut happens = |text: String| {
            println!("    {:>5.1} s  {text}", begin.elapsed().as_secs_f64());
            events.push((begin.elapsed(), text));
        };
        let (node, underlay, switch) =
            (lab.node(first), lab.underlay().clone(), lab.outside().switch().clone());
        let (port, external) = (node.underlay_port().to_owned(), node.external_port().to_owned());
        std::thread::sleep(PAUSE);
        happens(format!("kill -9: the agent of {first}"));
        self.agent(first)?.kill9();
        self.wait_for_master(other)?;
        std::thread::sleep(PAUSE);
        let lost_by_agent = running.iter().map(|(_, _, sessions)| sessions.unanswered()).sum();
        happens(format!("the agent of {first} starts again"));
        self.agent(first)?.restart()?;
        self.agent(first)?.wait_ready(PATIENCE)?;
        self.wait_for_master(first)?;
        std::thread::sleep(PAUSE);
        happens(format!("{first} is cut off: both its links are down"));
        underlay.ip(&[format!("link set {port} down")])?;
        switch.ip(&[format!("link set {external} down")])?;
        self.wait_for_master(other)?;
        std::thread::sleep(PAUSE);
        happens(format!("{first} is back"));
        underlay.ip(&[format!("link set {port} up")])?;
        switch.ip(&[format!("link set {external} up")])?;
        self.wait_for_master(first)?;
        std::thread::sleep(PAUSE);
        let mut day = Day { kinds: Vec::new(), timelines: Vec::new(), events, lost_by_agent };
        for (kind, began, sessions) in running {
            // On one clock.
            let late = (began.as_millis() / Sessions::step().as_millis()) as usize;
            let mut timeline = vec![0; late];
            timeline.extend(sessions.timeline());
            day.timelines.push((kind, timeline));
            day.kinds.push((kind, sessions.finish()?));
        }
        Ok(day)
    }

    fn kept(&mut self) -> Result<Finding> {
        let mut all = 0;
        let mut others = 0;
        for name in GATEWAYS {
            let flows = self.agent(name)?.flows()?;
            all += flows.len();
            others += flows.keys().filter(|key| !key.contains("from block")).count();
            println!("    {name}: {} entries", flows.len());
        }
        Ok((others == 0, format!("{all} ways to blocks, {others} of connections")))
    }
}

/// Draws answers a second over time, and what happened when.
fn plot(path: &PathBuf, day: &Day) -> Result<()> {
    const WIDTH: f64 = 1000.0;
    const HEIGHT: f64 = 420.0;
    const LEFT: f64 = 60.0;
    const TOP: f64 = 60.0;
    const BOTTOM: f64 = 40.0;
    const COLOURS: [&str; 3] = ["#2b6cb0", "#2f855a", "#c05621"];
    let step = Sessions::step().as_secs_f64();
    let steps = day.timelines.iter().map(|(_, line)| line.len()).max().unwrap_or(1).max(1);
    let seconds = steps as f64 * step;
    // Over a fifth of a second: a session says something each 40 ms.
    let smooth = |line: &[u32], at: usize| {
        let window = &line[at.saturating_sub(3)..=at.min(line.len() - 1)];
        f64::from(window.iter().sum::<u32>()) / (window.len() as f64 * step)
    };
    let most = day
        .timelines
        .iter()
        .flat_map(|(_, line)| (0..line.len()).map(|at| smooth(line, at)))
        .fold(1.0, f64::max);
    let x = |second: f64| LEFT + (WIDTH - LEFT - 20.0) * second / seconds;
    let y = |rate: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / most;
    let mut body = String::new();
    for part in 0..=4 {
        let rate = most * f64::from(part) / 4.0;
        let at = y(rate);
        let _ = writeln!(
            body,
            "<line x1='{LEFT}' x2='{:.0}' y1='{at:.1}' y2='{at:.1}' stroke='#e2e8f0'/>\
             <text x='{:.0}' y='{:.1}' text-anchor='end'>{rate:.0}</text>",
            WIDTH - 20.0,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for second in (0..=seconds as u32).step_by(2) {
        let _ = writeln!(
            body,
            "<text x='{:.1}' y='{:.0}' text-anchor='middle'>{second} s</text>",
            x(f64::from(second)),
            HEIGHT - BOTTOM + 18.0
        );
    }
    for (i, (at, text)) in day.events.iter().enumerate() {
        let at = x(at.as_secs_f64());
        let _ = writeln!(
            body,
            "<line x1='{at:.1}' x2='{at:.1}' y1='{TOP}' y2='{:.0}' stroke='#718096' stroke-dasharray='4'/>\
             <text x='{:.1}' y='{:.0}'>{}</text>",
            HEIGHT - BOTTOM,
            at + 3.0,
            TOP + 12.0 + 14.0 * f64::from(u32::try_from(i % 2).unwrap_or(0)),
            text.replace('&', "&amp;").replace('<', "&lt;")
        );
    }
    for (i, (kind, line)) in day.timelines.iter().enumerate() {
        let points: Vec<String> = (0..line.len())
            .map(|at| format!("{:.1},{:.1}", x(at as f64 * step), y(smooth(line, at))))
            .collect();
        let colour = COLOURS[i % COLOURS.len()];
        let _ = writeln!(
            body,
            "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='1.5'/>\
             <text x='{:.0}' y='24' fill='{colour}' font-weight='bold'>{kind}</text>",
            points.join(" "),
            LEFT + 160.0 * i as f64
        );
    }
    let _ = writeln!(
        body,
        "<text x='{LEFT}' y='44'>answers a second, {} sessions of each kind</text>",
        TCP + UDP
    );
    let svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{HEIGHT}' viewBox='0 0 {WIDTH} {HEIGHT}' \
         font-family='sans-serif' font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n{body}</svg>\n"
    );
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, svg)?;
    Ok(())
}
