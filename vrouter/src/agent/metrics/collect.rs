//! What is measured. Labels are names of the topology, drop reasons and the like: as many as the node has ports, routers,
//! peers and gateways, never as many as there are flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use serde_json::Value;
use vrouter_common::{
    reason::{DropReason, Event},
    tables::{Commit, Listener, ListenerKey, NAME_LISTENER, NAT_TRIES_BUCKETS, Name, NameKey},
};

use super::interface_counters;
use crate::{
    agent::{services::metadata::counts::Tally, status::AgentStatus},
    compile::MemberHealth,
    counters::{Balanced, Counters},
    data_path::{self, Pins},
    identities::name_to_string,
    kernel::{Map, PerCpu},
};

/// Whether it only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

/// Labels, and a value.
pub type Row = (Vec<(&'static str, String)>, f64);

/// A metric with all its labels. A counter's name gets `_total` when it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub rows: Vec<Row>,
}

#[derive(Default)]
struct Families(Vec<Family>);

impl Families {
    fn add(&mut self, kind: Kind, name: &'static str, help: &'static str, rows: Vec<Row>) {
        if !rows.is_empty() {
            self.0.push(Family { name, help, kind, rows });
        }
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.add(Kind::Gauge, name, help, vec![(vec![], value)]);
    }

    fn counter(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.add(Kind::Counter, name, help, vec![(vec![], value)]);
    }
}

fn row<const N: usize>(labels: [(&'static str, &str); N], value: f64) -> Row {
    (labels.into_iter().map(|(key, value)| (key, value.to_owned())).collect(), value)
}

fn is(flag: bool) -> f64 {
    if flag { 1.0 } else { 0.0 }
}

/// A name, and what it is about.
const STATES: [&str; 4] = ["up", "no_carrier", "down", "missing"];

/// Everything, now.
pub fn families(status: &AgentStatus, pins: &Pins, instance: &str) -> Vec<Family> {
    let mut out = Families::default();
    let info =
        row([("version", status.version), ("node", &status.node), ("vrouter_instance", instance)], 1.0);
    out.add(Kind::Gauge, "vrouter_agent_info", "Version, node and instance of the agent", vec![info]);
    pinned(&mut out, status, pins);
    balanced(&mut out, pins);
    topology(&mut out, status);
    flows(&mut out, status);
    interfaces(&mut out, status);
    edge(&mut out, status);
    outside(&mut out, status);
    metadata(&mut out, status);
    health(&mut out, status);
    out.0
}

/// What the data path counts, whoever runs.
fn pinned(out: &mut Families, status: &AgentStatus, pins: &Pins) {
    let maps = pins.maps();
    if let Ok(counters) = Counters::open(&maps) {
        let tallies: Vec<_> = DropReason::ALL
            .iter()
            .filter_map(|&reason| Some((reason.name(), counters.drops(reason).ok()?)))
            .collect();
        let by_reason = |value: fn(&crate::counters::Tally) -> u64| {
            tallies.iter().map(|(name, tally)| row([("reason", name)], value(tally) as f64)).collect()
        };
        let packets = by_reason(|tally| tally.packets);
        out.add(Kind::Counter, "vrouter_dropped_packets", "Packets dropped, by reason", packets);
        let bytes = by_reason(|tally| tally.bytes);
        out.add(Kind::Counter, "vrouter_dropped_bytes", "Bytes of packets dropped, by reason", bytes);
        let events = Event::ALL
            .iter()
            .filter_map(|&event| Some(row([("event", event.name())], counters.event(event).ok()? as f64)));
        out.add(Kind::Counter, "vrouter_events", "What the data path counts besides drops", events.collect());
    }
    if let Ok(tries) = PerCpu::<u64>::open(&maps, "NAT_TRIES") {
        let buckets = (0..NAT_TRIES_BUCKETS).filter_map(|bucket| {
            let count: u64 = tries.values(bucket).ok()?.iter().sum();
            let most = if bucket + 1 == NAT_TRIES_BUCKETS {
                "none_free".to_owned()
            } else {
                (1_u64 << bucket).to_string()
            };
            Some(row([("most", &most)], count as f64))
        });
        let help =
            "Translations, by the most ports that were tried for one (1, 2, 3-4, 5-8...; none_free: in vain)";
        out.add(Kind::Counter, "vrouter_snat_tries", help, buckets.collect());
    }
    let commit = Map::<u32, Commit>::open(&maps, "COMMIT").and_then(|map| map.lookup(&0));
    if let Ok(Some(commit)) = commit {
        out.counter("vrouter_topology_applies", "Applies so far: the epoch", f64::from(commit.epoch));
        let applied = commit.applied_at_seconds as f64;
        out.gauge(
            "vrouter_topology_applied_timestamp_seconds",
            "When the topology in force was applied",
            applied,
        );
        let wanted = status.wanted.as_ref().map(|wanted| wanted.digest.clone());
        let in_force = wanted.is_some_and(|wanted| wanted == format!("{:016x}", commit.digest));
        let help = "Whether the topology that was read last is in force";
        out.gauge("vrouter_topology_in_force", help, is(in_force));
        if let Some(store) = &status.store {
            let revision = store.state().in_force(i64::try_from(commit.digest).unwrap_or(0));
            let help = "etcd's revision in force: everything up to it that is for this node";
            out.gauge("vrouter_topology_revision_in_force", help, revision as f64);
        }
    }
    let runs: Vec<_> = data_path::programs(pins)
        .into_iter()
        .filter_map(|(name, ..)| Some((data_path::run_time(pins, &name)?, name)))
        .collect();
    let help = "Time in each program, while kernel.bpf_stats_enabled is set";
    let seconds = runs.iter().map(|((time, _), name)| row([("program", name)], time.as_secs_f64()));
    out.add(Kind::Counter, "vrouter_program_run_seconds", help, seconds.collect());
    let help = "Runs of each program, while kernel.bpf_stats_enabled is set";
    let counts = runs.iter().map(|((_, runs), name)| row([("program", name)], *runs as f64));
    out.add(Kind::Counter, "vrouter_program_runs", help, counts.collect());
}

fn topology(out: &mut Families, status: &AgentStatus) {
    let wanted = status.wanted.as_ref();
    let problems = wanted.map_or(0, |wanted| wanted.problems.len());
    out.gauge(
        "vrouter_topology_problems",
        "What is wrong with the topology that was read last",
        problems as f64,
    );
    let warnings = wanted.map_or(0, |wanted| wanted.warnings.len());
    out.gauge(
        "vrouter_topology_warnings",
        "What the topology asks of this node and it cannot give",
        warnings as f64,
    );
    out.gauge("vrouter_apply_failed", "Whether the last apply failed", is(status.error.is_some()));
    let Some(store) = status.store.as_ref().map(crate::store::follow::Link::state) else { return };
    out.gauge("vrouter_etcd_connected", "Whether etcd answers", is(store.connected));
    out.gauge("vrouter_etcd_revision", "The last revision that was seen", store.revision as f64);
    out.gauge("vrouter_etcd_objects", "Objects etcd has", store.objects as f64);
    out.gauge(
        "vrouter_etcd_since_timestamp_seconds",
        "When it was connected or lost last",
        store.since as f64,
    );
}

fn flows(out: &mut Families, status: &AgentStatus) {
    let Some(flows) = &status.flows else { return };
    let tables = [("flows", &flows.flows), ("transient", &flows.transient)];
    let each = |value: fn(u64, u64) -> f64| {
        tables
            .iter()
            .map(|(name, table)| row([("table", name)], value(table.entries, table.entries_max)))
            .collect()
    };
    out.add(
        Kind::Gauge,
        "vrouter_table_entries",
        "Entries of the flow tables",
        each(|entries, _| entries as f64),
    );
    out.add(Kind::Gauge, "vrouter_table_entries_max", "The most they take", each(|_, most| most as f64));
    let pressure = each(|entries, most| entries as f64 / most.max(1) as f64);
    out.add(Kind::Gauge, "vrouter_table_pressure_ratio", "How full they are, 0 to 1", pressure);
    let states = flows.states.iter().map(|(state, count)| row([("state", state)], *count as f64));
    out.add(Kind::Gauge, "vrouter_connections", "Connections by state", states.collect());
    out.counter("vrouter_flows_expired", "Flows forgotten since the agent started", flows.expired as f64);
    let by_address = |value: fn(&crate::agent::flows::SnatUse) -> f64| {
        let rows = flows
            .snat
            .iter()
            .map(|it| row([("router", &it.router), ("address", &it.address.to_string())], value(it)));
        rows.collect()
    };
    let connections = by_address(|it| it.flows as f64);
    out.add(
        Kind::Gauge,
        "vrouter_snat_connections",
        "Connections with a port of a router's address",
        connections,
    );
    let help = "The most of them to one destination: as many ports are needed";
    out.add(Kind::Gauge, "vrouter_snat_ports_needed", help, by_address(|it| f64::from(it.most)));
    let blocks = by_address(|it| it.blocks.len() as f64);
    out.add(Kind::Gauge, "vrouter_snat_blocks_used", "Blocks of 1024 ports that they have ports of", blocks);
    if let Some(records) = &status.flow_records {
        out.counter(
            "vrouter_flow_records_written",
            "Records of connections that ended",
            records.written as f64,
        );
        out.counter("vrouter_flow_records_lost", "Records that were not written", records.lost as f64);
    }
    let pass = flows.pass_milliseconds as f64 / 1000.0;
    out.gauge("vrouter_flow_pass_seconds", "How long the last pass through the flow tables took", pass);
}

/// Requests of workloads for metadata, if this node has a server to put them to.
fn metadata(out: &mut Families, status: &AgentStatus) {
    let Some(metadata) = status.metadata.as_ref().map(Tally::status) else { return };
    let answered = metadata.answered.iter().map(|(status, count)| row([("status", status)], *count as f64));
    let help = "Requests of workloads that the metadata server answered, by its status";
    out.add(Kind::Counter, "vrouter_metadata_answered", help, answered.collect());
    let refused = metadata.refused.iter().map(|(reason, count)| row([("reason", reason)], *count as f64));
    let help = "Requests, connections and segments to the metadata service that were refused here, by reason";
    out.add(Kind::Counter, "vrouter_metadata_refused", help, refused.collect());
    let help = "Bytes sent to workloads by the metadata service";
    out.counter("vrouter_metadata_sent_bytes", help, metadata.bytes as f64);
    let help = "Connections of workloads to the metadata service";
    out.gauge("vrouter_metadata_connections", help, metadata.connections as f64);
}

fn interfaces(out: &mut Families, status: &AgentStatus) {
    let ports = STATES.iter().map(|state| {
        let count = status.ports.iter().filter(|port| port.state == *state).count();
        row([("state", state)], count as f64)
    });
    out.add(
        Kind::Gauge,
        "vrouter_ports",
        "Ports bound to this node, by their interface's state",
        ports.collect(),
    );
    let up = status
        .ports
        .iter()
        .map(|port| row([("port", &port.name), ("interface", &port.interface)], is(port.state == "up")));
    out.add(Kind::Gauge, "vrouter_port_up", "Whether a port's interface is up", up.collect());
    let uplinks = status.uplinks.iter().map(|it| ("uplink", it));
    let externals = status.externals.iter().map(|it| ("external", &it.interface));
    let others: Vec<_> = uplinks.chain(externals).collect();
    let up = others.iter().map(|(kind, it)| row([("kind", kind), ("interface", &it.name)], is(it.up)));
    out.add(
        Kind::Gauge,
        "vrouter_interface_up",
        "Whether an uplink or external interface is up",
        up.collect(),
    );
    let counted = fs::read_to_string(interface_counters()).map(|text| counted(&text)).unwrap_or_default();
    let ports = || status.ports.iter().filter_map(|port| Some((port, counted.get(port.interface.as_str())?)));
    let help = "Bytes that came from a port's workload";
    let bytes = ports().map(|(port, counts)| row([("port", &port.name)], counts.received.0));
    out.add(Kind::Counter, "vrouter_port_receive_bytes", help, bytes.collect());
    let help = "Packets that came from a port's workload";
    let packets = ports().map(|(port, counts)| row([("port", &port.name)], counts.received.1));
    out.add(Kind::Counter, "vrouter_port_receive_packets", help, packets.collect());
    let others = || others.iter().filter_map(|(_, it)| Some((&it.name, counted.get(it.name.as_str())?)));
    type Of = fn(&Counts) -> f64;
    let wanted: [(&'static str, &'static str, Of); 4] = [
        ("vrouter_interface_receive_bytes", "Bytes received by an uplink or external interface", |it| {
            it.received.0
        }),
        ("vrouter_interface_receive_packets", "Packets received by it", |it| it.received.1),
        ("vrouter_interface_transmit_bytes", "Bytes sent by an uplink or external interface", |it| it.sent.0),
        ("vrouter_interface_transmit_packets", "Packets sent by it", |it| it.sent.1),
    ];
    for (name, help, value) in wanted {
        let rows = others().map(|(interface, counts)| row([("interface", interface)], value(counts)));
        out.add(Kind::Counter, name, help, rows.collect());
    }
}

/// Bytes and packets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    received: (f64, f64),
    sent: (f64, f64),
}

/// Reads `/proc/net/dev`: two lines of heading, then `name: bytes packets errs drop fifo frame compressed multicast`
/// received, and as many sent.
fn counted(text: &str) -> BTreeMap<String, Counts> {
    let lines = text.lines().skip(2).filter_map(|line| {
        let (name, rest) = line.rsplit_once(':')?;
        let numbers: Vec<f64> = rest.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let counts = Counts {
            received: (*numbers.first()?, *numbers.get(1)?),
            sent: (*numbers.get(8)?, *numbers.get(9)?),
        };
        Some((name.trim().to_owned(), counts))
    });
    lines.collect()
}

fn edge(out: &mut Families, status: &AgentStatus) {
    let peers = status.peers.iter().map(|peer| row([("peer", &peer.node)], is(peer.state == "resolved")));
    out.add(
        Kind::Gauge,
        "vrouter_peer_reachable",
        "Whether another node is reached over the underlay",
        peers.collect(),
    );
    let gateways = status.edge.gateways.iter().map(|gateway| {
        row([("network", &gateway.network), ("gateway", &gateway.node)], is(gateway.state == "up"))
    });
    let help = "Whether a gateway that this node depends on carries for it";
    out.add(Kind::Gauge, "vrouter_gateway_up", help, gateways.collect());
    let routers = || status.edge.virtual_routers.iter();
    let label = |it: &crate::agent::edge::VirtualRouterStatus, value| {
        row([("router", &it.router), ("network", &it.network), ("family", it.family)], value)
    };
    let master = routers().map(|it| label(it, is(it.state == "master")));
    out.add(
        Kind::Gauge,
        "vrouter_virtual_router_master",
        "Whether this node is the master",
        master.collect(),
    );
    let off = routers().map(|it| label(it, is(it.state == "off")));
    let help = "Whether this node cannot take part, though it is to";
    out.add(Kind::Gauge, "vrouter_virtual_router_off", help, off.collect());
    let transitions = routers().map(|it| label(it, it.transitions as f64));
    let help = "Times this node became or ceased to be the master";
    out.add(Kind::Counter, "vrouter_virtual_router_transitions", help, transitions.collect());
    let sessions = status.bgp.peers.iter().map(|peer| {
        row([("peer", &peer.address), ("asn", &peer.asn.to_string())], is(peer.state == "Established"))
    });
    out.add(
        Kind::Gauge,
        "vrouter_bgp_session_established",
        "Whether a BGP session is up",
        sessions.collect(),
    );
    let learned =
        status.bgp.learned.iter().map(|(network, count)| row([("network", network)], *count as f64));
    out.add(
        Kind::Gauge,
        "vrouter_bgp_routes_learned",
        "Routes learned on a routed network",
        learned.collect(),
    );
    if !status.bgp.announced.is_empty() {
        let announced = status.bgp.announced.len() as f64;
        out.gauge("vrouter_bgp_addresses_announced", "Addresses announced", announced);
    }
}

/// New connections of load balancers.
fn balanced(out: &mut Families, pins: &Pins) {
    let maps = pins.maps();
    let (Ok(counts), Ok(names)) = (Balanced::open(&maps), Map::<NameKey, Name>::open(&maps, "NAMES")) else {
        return;
    };
    let Ok(listeners) = Map::<ListenerKey, Listener>::open(&maps, "LISTENERS").and_then(|it| it.entries())
    else {
        return;
    };
    let name = |number| names.lookup(&NameKey { kind: NAME_LISTENER, id: number }).ok().flatten();
    let count = |number| counts.listeners.lookup(&number).ok().flatten();
    let rows = connections(listeners.into_iter().map(|(_, listener)| listener), name, count);
    let help = "New connections to listeners of load balancers, of this node's clients and, from outside, its members";
    out.add(Kind::Counter, "vrouter_lb_connections", help, rows);
}

/// What listeners have counted, each of which may be there several times: for each VIP, in each bank.
fn connections(
    listeners: impl Iterator<Item = Listener>,
    name: impl Fn(u32) -> Option<Name>,
    count: impl Fn(u32) -> Option<u64>,
) -> Vec<Row> {
    let numbers: BTreeSet<u32> = listeners.map(|listener| listener.number).collect();
    // Who has no name any more is of the bank that is not in force.
    let named = numbers.into_iter().filter_map(|number| Some((number, name_to_string(&name(number)?))));
    named
        .map(|(number, name)| row([("listener", &*name)], count(number).unwrap_or_default() as f64))
        .collect()
}

fn health(out: &mut Families, status: &AgentStatus) {
    let members = || status.health.members.iter();
    let label = |it: &crate::agent::health::MemberStatus, value| {
        row([("pool", &*it.pool), ("member", &*it.member)], value)
    };
    let up = members().map(|it| label(it, is(it.state != "down")));
    let help = "Whether a member of a pool that this node checks is used";
    out.add(Kind::Gauge, "vrouter_member_up", help, up.collect());
    type Of = fn(&crate::agent::health::MemberStatus) -> u64;
    let results: [(&str, Of); 3] = [("good", |it| it.good), ("bad", |it| it.bad), ("void", |it| it.void)];
    let checks = members().flat_map(|it| {
        results.map(|(result, of)| {
            row([("pool", &*it.pool), ("member", &*it.member), ("result", result)], of(it) as f64)
        })
    });
    let help = "Checks of members, by result (void: could not be made)";
    out.add(Kind::Counter, "vrouter_member_checks", help, checks.collect());
    let others = [("down", MemberHealth::Down), ("lost", MemberHealth::Lost)].map(|(state, which)| {
        let count = status.health.others.iter().filter(|it| it.state == which).count();
        row([("state", state)], count as f64)
    });
    let help = "Members that other nodes check and that are not up (lost: the node is silent)";
    out.add(Kind::Gauge, "vrouter_members_elsewhere", help, others.to_vec());
    out.counter(
        "vrouter_member_frames_unsent",
        "Frames of checks that could not be sent",
        status.health.unsent as f64,
    );
}

fn outside(out: &mut Families, status: &AgentStatus) {
    let hops = status.next_hops.hops;
    let states = [("resolved", hops.resolved), ("waiting", hops.waiting), ("failed", hops.failed)];
    let states = states.map(|(state, count)| row([("state", state)], count as f64));
    out.add(Kind::Gauge, "vrouter_next_hops", "Next hops on external networks, by state", states.to_vec());
    let packets = status.next_hops.packets;
    out.gauge("vrouter_next_hop_packets_waiting", "Packets that wait for a next hop", packets.waiting as f64);
    let outcomes = [("sent", packets.sent), ("answered", packets.answered), ("lost", packets.lost)];
    let outcomes = outcomes.map(|(outcome, count)| row([("outcome", outcome)], count as f64));
    let help = "Packets that waited for a next hop, by what became of them";
    out.add(Kind::Counter, "vrouter_next_hop_packets", help, outcomes.to_vec());
    let counts = status.services.counts();
    let messages = counts.iter().flat_map(|(service, outcomes)| {
        outcomes
            .iter()
            .map(|(outcome, count)| row([("service", *service), ("outcome", *outcome)], *count as f64))
    });
    let help = "What workloads asked this node's services (DHCP, router advertisements, metadata), by what came of it";
    out.add(Kind::Counter, "vrouter_service_messages", help, messages.collect());
    let notes = count_notes(status);
    out.gauge("vrouter_complaints", "What does not work: vrouter status says it in words", notes as f64);
}

/// Everything with a note is something somebody should look at.
fn count_notes(status: &AgentStatus) -> usize {
    fn walk(value: &Value) -> usize {
        match value {
            Value::Object(fields) => fields
                .iter()
                .map(|(key, value)| usize::from(key == "note" && value.is_string()) + walk(value))
                .sum(),
            Value::Array(items) => items.iter().map(walk).sum(),
            _ => 0,
        }
    }
    let status = serde_json::to_value(status).unwrap_or_default();
    walk(&status) + status["edge"]["notes"].as_array().map_or(0, Vec::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listener_has_a_row_however_numbers_are_spread() {
        let listener = |number| Listener { number, ..Listener::default() };
        let name = |number: u32| {
            let mut bytes = [0; 256];
            bytes[..2].copy_from_slice(&[b'l', b'0' + (number % 10) as u8]);
            (number != 4).then_some(Name { bytes })
        };
        let rows = connections([7, 1, 65535, 7, 4].map(listener).into_iter(), name, |it| Some(u64::from(it)));
        let rows: Vec<(&str, f64)> = rows.iter().map(|(labels, value)| (&*labels[0].1, *value)).collect();
        assert_eq!(rows, [("l1", 1.0), ("l7", 7.0), ("l5", 65535.0)]);
    }

    #[test]
    fn the_kernels_list_of_interfaces_is_read() {
        let text = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0\ntap-vm1: 4096 7 0 0 0 0 0 0 8192 9 0 0 0 0 0 0\nbroken: 1\n";
        let counted = counted(text);
        assert_eq!(counted["tap-vm1"], Counts { received: (4096.0, 7.0), sent: (8192.0, 9.0) });
        assert_eq!(counted.keys().collect::<Vec<_>>(), ["lo", "tap-vm1"]);
    }
}
