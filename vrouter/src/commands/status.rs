//! `vrouter status`: what is wanted, what is in force, and how the parts are. Without an agent it says what
//! the pins say.

use std::{fmt::Write, process::ExitCode};

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use vrouter_common::{
    reason::{DropReason, Event},
    tables::{NAME_NODE, UNDERLAY_ROUTED, Underlay},
};

use super::InstanceArgs;
use crate::{
    agent::{self, PeerStatus},
    counters::Counters,
    identities::Identities,
    kernel::Map,
    output::OutputArgs,
};

/// Show the node, its uplinks, programs, and the topology wanted and in force
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    pub instance: InstanceArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Serialize)]
struct Status {
    instance: String,
    node: String,
    agent: Value,
    wanted: Value,
    in_force: InForce,
    programs: Vec<Program>,
    peers: Vec<PeerStatus>,
    flow_entries_max: u32,
    dropped_packets: u64,
    counters: std::collections::BTreeMap<&'static str, u64>,
    healthy: bool,
    complaints: Vec<String>,
}

#[derive(Serialize)]
struct InForce {
    epoch: u32,
    digest: String,
    applied_at_seconds: u64,
}

#[derive(Serialize)]
struct Program {
    name: String,
    id: u32,
    verified_instructions: Option<u32>,
}

/// Prints it. Exit code 1 if something needs a person.
pub fn run(args: &Args) -> Result<ExitCode> {
    let status = collect(&args.instance)?;
    args.output.print(&status, for_people)?;
    Ok(if status.healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Status in a few words, for commands that show it beside something else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Whether an agent runs.
    pub agent: bool,
    /// The topology wanted, if an agent says which.
    pub wanted: Option<String>,
    /// The topology in force.
    pub in_force: Option<String>,
    pub healthy: bool,
    pub complaints: Vec<String>,
}

/// Collects it.
pub fn summary(instance: &InstanceArgs) -> Result<Summary> {
    let status = collect(instance)?;
    Ok(Summary {
        agent: status.agent["pid"].is_u64(),
        wanted: status.wanted["digest"].as_str().map(|digest| status.version(digest)),
        in_force: (status.in_force.epoch > 0).then(|| status.version(&status.in_force.digest)),
        healthy: status.healthy,
        complaints: status.complaints,
    })
}

/// What `--output json` prints.
pub fn json(instance: &InstanceArgs) -> Result<Value> {
    Ok(serde_json::to_value(collect(instance)?)?)
}

fn collect(instance: &InstanceArgs) -> Result<Status> {
    let pins = instance.pins()?;
    let maps = pins.maps();
    let commit = crate::banks::Maps::open(&maps)?.commit()?;
    let identities = Identities::read(&Map::open(&maps, "NAMES")?)?;
    let agent = agent::ask(&agent::run_dir(&instance.instance), "status");
    let underlay: Map<u32, Underlay> = Map::open(&maps, "UNDERLAY")?;
    let ways = underlay.entries()?.into_iter().filter(|(_, way)| way.dst.get() != 0);
    let peers: Vec<_> = ways.map(|(node, way)| agent::peer_status(node, &way, &identities)).collect();
    let unreachable =
        underlay.entries()?.iter().any(|(_, way)| way.dst.get() != 0 && way.flags & UNDERLAY_ROUTED == 0);
    let flows: Map<vrouter_common::flow::FlowKey, vrouter_common::flow::Flow> = Map::open(&maps, "FLOWS")?;
    let counters = Counters::open(&maps)?;
    let digest = format!("{:016x}", commit.digest);
    let mut complaints = Vec::new();
    let wanted = agent.as_ref().map_or(Value::Null, |agent| agent["wanted"].clone());
    match &agent {
        None => complaints
            .push("no agent is running; what is pinned goes on forwarding, but follows no change".to_owned()),
        Some(agent) => {
            let problems = wanted["problems"].as_array().map_or(0, Vec::len);
            if problems > 0 {
                complaints.push(if agent["store"].is_null() {
                    format!("the topology file has {problems} problem(s); the last good one stays in force")
                } else {
                    format!(
                        "{problems} problem(s) with the topology in etcd (see the agent's log, or --output json); what \
                         was good stays in force"
                    )
                });
            } else if wanted["digest"].as_str().is_some_and(|wanted| wanted != digest) {
                complaints.push("the wanted topology is not in force yet".to_owned());
            }
            if agent["store"]["connected"] == false {
                complaints.push(format!(
                    "etcd cannot be reached, what is in force stays: {}",
                    agent["store"]["error"].as_str().unwrap_or("the first connection is being made")
                ));
            }
            if let Some(error) = agent["error"].as_str() {
                complaints.push(format!("the last apply failed: {error}"));
            }
            for port in
                agent["ports"].as_array().into_iter().flatten().filter(|port| port["ifindex"].is_null())
            {
                complaints.push(format!(
                    "port {}: interface {} is missing",
                    text(&port["name"]),
                    text(&port["interface"])
                ));
            }
            for port in agent["ports"].as_array().into_iter().flatten().filter(|port| port["state"] == "down")
            {
                let (name, interface) = (text(&port["name"]), text(&port["interface"]));
                complaints.push(format!(
                    "port {name}: interface {interface} is down, so that nothing reaches it: `ip link set {interface} up`"
                ));
            }
            let flows = &agent["flows"]["flows"];
            if flows["pressure"] == "critical" {
                complaints.push(format!(
                    "the table of answered flows is nearly full ({} of {}): new connections will be refused. Raise \
                     flow_entries (and start once with --discard-state), lower [timeouts], or see who has them \
                     with vrouter flows --count --port NAME",
                    flows["entries"], flows["entries_max"]
                ));
            }
            if let Some(note) = agent["flow_records"]["note"].as_str() {
                complaints.push(note.to_owned());
            }
            let interfaces = [&agent["uplinks"], &agent["externals"]];
            let interfaces = interfaces.into_iter().filter_map(Value::as_array).flatten();
            for note in interfaces.filter_map(|interface| interface["note"].as_str()) {
                complaints.push(note.to_owned());
            }
            complaints.extend(edge_complaints(&agent["edge"]));
            if let Some(note) = agent["bgp"]["note"].as_str() {
                complaints.push(format!("BGP: {note}"));
            }
        }
    }
    if unreachable {
        complaints.push("some node is unreachable over the underlay (see peers)".to_owned());
    }
    let programs = crate::data_path::programs(&pins)
        .into_iter()
        .map(|(name, id, verified_instructions)| Program { name, id, verified_instructions })
        .collect();
    Ok(Status {
        instance: instance.instance.clone(),
        node: identities.name(NAME_NODE, commit.node).unwrap_or("?").to_owned(),
        agent: agent.unwrap_or_else(|| serde_json::json!({ "alive": false })),
        wanted,
        in_force: InForce { epoch: commit.epoch, digest, applied_at_seconds: commit.applied_at_seconds },
        programs,
        peers,
        flow_entries_max: flows.max_entries(),
        dropped_packets: DropReason::ALL
            .iter()
            .map(|&reason| counters.drops(reason).map_or(0, |tally| tally.packets))
            .sum(),
        counters: Event::ALL
            .iter()
            .filter_map(|&event| Some((event.name(), counters.event(event).ok()?)))
            .collect(),
        healthy: complaints.is_empty(),
        complaints,
    })
}

/// What is wrong with gateways, as far as this node is concerned.
fn edge_complaints(edge: &Value) -> Vec<String> {
    let mut complaints: Vec<String> = Vec::new();
    let list = |key: &str| edge[key].as_array().cloned().unwrap_or_default();
    complaints.extend(list("notes").iter().filter_map(|note| note.as_str().map(str::to_owned)));
    for it in list("virtual_routers") {
        if let Some(note) = it["note"].as_str() {
            // Once for both families.
            let text = format!("router {}, VRID {}: {note}", text(&it["router"]), it["vrid"]);
            if complaints.last() != Some(&text) {
                complaints.push(text);
            }
        }
    }
    for it in list("gateways").iter().filter(|it| it["state"] == "down" || it["state"] == "admin_down") {
        let how = if it["state"] == "down" { "does not answer" } else { "says that it does not carry" };
        complaints.push(format!("gateway {} of network {} {how}", text(&it["node"]), text(&it["network"])));
    }
    complaints
}

impl Status {
    /// A topology in words: by its digest, or by the revision of etcd that stands in its place.
    fn version(&self, digest: &str) -> String {
        match u64::from_str_radix(digest, 16) {
            Ok(revision) if !self.agent["store"].is_null() => format!("revision {revision}"),
            _ => format!("topology {digest}"),
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// The metadata server, if there is one.
fn metadata(told: &Value) -> Option<String> {
    let server = told["server"].as_str()?;
    let counts = |key: &str| told[key].as_object().cloned().unwrap_or_default();
    let list = |key: &str| {
        let parts = counts(key).into_iter().map(|(name, count)| format!("{name} {count}"));
        parts.collect::<Vec<_>>().join(", ")
    };
    let signed = if told["signed"] == true { "" } else { ", not signed" };
    let mut text = format!("{server}{signed}; {} connections", told["connections"]);
    for key in ["answered", "refused"].into_iter().filter(|key| !counts(key).is_empty()) {
        let _ = write!(text, "; {key}: {}", list(key));
    }
    Some(text)
}

/// Next hops on external networks, if there are any.
/// Members of pools, in few words.
fn members(told: &Value) -> Option<String> {
    let count = |list: &str, state: &str| {
        told[list].as_array().into_iter().flatten().filter(|it| it["state"] == state).count()
    };
    let [up, down, unknown] = ["up", "down", "unknown"].map(|state| count("members", state));
    let elsewhere = ["down", "lost"].map(|state| count("others", state));
    if up + down + unknown + elsewhere[0] + elsewhere[1] == 0 {
        return None;
    }
    Some(format!(
        "checked here: {up} up, {down} down, {unknown} not checked yet; on other nodes {} down, {} lost",
        elsewhere[0], elsewhere[1]
    ))
}

fn next_hops(told: &Value) -> Option<String> {
    let count = |part: &str, name: &str| told[part][name].as_u64().unwrap_or(0);
    let [resolved, waiting, failed] = ["resolved", "waiting", "failed"].map(|state| count("hops", state));
    if resolved + waiting + failed == 0 {
        return None;
    }
    Some(format!(
        "{resolved} resolved, {waiting} asked for, {failed} silent; {} packets wait, {} waited and were sent, {} \
         answered, {} lost",
        count("packets", "waiting"),
        count("packets", "sent"),
        count("packets", "answered"),
        count("packets", "lost"),
    ))
}

fn for_people(status: &Status) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<11}{value}");
    };
    line("node", format!("{} (instance {})", status.node, status.instance));
    match status.agent["pid"].as_u64() {
        Some(pid) => line("agent", format!("running, pid {pid}, version {}", text(&status.agent["version"]))),
        None => line("agent", "not running".to_owned()),
    }
    line(
        "wanted",
        match status.wanted["digest"].as_str() {
            Some(digest) => format!("{} from {}", status.version(digest), text(&status.agent["topology"])),
            None => "unknown".to_owned(),
        },
    );
    line(
        "in force",
        match status.in_force.epoch {
            0 => "nothing yet".to_owned(),
            epoch => format!("{}, epoch {epoch}", status.version(&status.in_force.digest)),
        },
    );
    let store = &status.agent["store"];
    if !store.is_null() {
        let known = format!("{} objects, last change revision {}", store["objects"], store["revision"]);
        line(
            "etcd",
            format!("{}, {known}", if store["connected"] == true { "connected" } else { "not connected" }),
        );
    }
    let interface = |interface: &Value| {
        if interface["ifindex"].is_null() {
            return format!("{} missing", text(&interface["name"]));
        }
        let hook = if interface["xdp"].as_bool() == Some(true) { "xdp and tc" } else { "tc" };
        let state = if interface["up"].as_bool() == Some(true) { "up" } else { "down" };
        format!("{} {state} mtu {} {hook}", text(&interface["name"]), interface["mtu"])
    };
    for uplink in status.agent["uplinks"].as_array().into_iter().flatten() {
        line("uplink", interface(uplink));
    }
    for external in status.agent["externals"].as_array().into_iter().flatten() {
        line("external", format!("{} on {}", interface(external), text(&external["network"])));
    }
    for peer in &status.peers {
        line(
            "peer",
            format!("{} {} {} via {} ({})", peer.node, peer.vtep, peer.state, peer.nexthop, peer.mac),
        );
    }
    if let Some(ports) = status.agent["ports"].as_array() {
        let attached = ports.iter().filter(|port| !port["ifindex"].is_null()).count();
        line("ports", format!("{attached} of {} attached", ports.len()));
    }
    if let Some(metadata) = metadata(&status.agent["metadata"]) {
        line("metadata", metadata);
    }
    if let Some(hops) = next_hops(&status.agent["next_hops"]) {
        line("next hops", hops);
    }
    if let Some(members) = members(&status.agent["health"]) {
        line("members", members);
    }
    match &status.agent["flows"] {
        Value::Null => line("flows", format!("at most {}", status.flow_entries_max)),
        flows => flow_lines(flows, &mut line),
    }
    line("dropped", format!("{} packets (vrouter show drops)", status.dropped_packets));
    for warning in status.wanted["warnings"].as_array().into_iter().flatten() {
        line("warning", text(warning).to_owned());
    }
    let interfaces = [&status.agent["uplinks"], &status.agent["externals"]];
    let interfaces = interfaces.into_iter().filter_map(Value::as_array).flatten();
    for warning in interfaces.filter_map(|interface| interface["warning"].as_str()) {
        line("warning", warning.to_owned());
    }
    for complaint in &status.complaints {
        line("attention", complaint.clone());
    }
    line("health", if status.healthy { "good" } else { "needs attention" }.to_owned());
    out
}

/// What the agent's last pass through the flow tables found.
fn flow_lines(flows: &Value, line: &mut impl FnMut(&str, String)) {
    let table = |table: &Value| {
        let pressure = match table["pressure"].as_str() {
            None | Some("normal") => String::new(),
            Some(pressure) => format!(" ({pressure})"),
        };
        format!("{} of {}{pressure}", table["entries"], table["entries_max"])
    };
    line(
        "flows",
        format!(
            "entries: answered {}, transient {}; expired {}",
            table(&flows["flows"]),
            table(&flows["transient"]),
            flows["expired"]
        ),
    );
    let states = flows["states"].as_object().into_iter().flatten();
    let states: Vec<_> = states.map(|(state, count)| format!("{count} {state}")).collect();
    if !states.is_empty() {
        line("", states.join(", "));
    }
    for snat in flows["snat"].as_array().into_iter().flatten() {
        line(
            "snat",
            format!("{} {}: {} flows", text(&snat["router"]), text(&snat["address"]), snat["flows"]),
        );
    }
}
