//! `vrouter show gateways`: who carries for which router outside, and why; and by whom this node goes out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use vrouter_common::{addr::Ip, tables::*};

use super::View;
use crate::{
    agent,
    compile::virtual_mac,
    kernel::Map,
    output::table,
    topology::{derive_external_mac, model::Mac},
};

/// Everything about gateways, as this node sees it.
#[derive(Serialize)]
pub struct GatewaysReport {
    /// Without an agent what it said last holds, until another node takes over.
    agent: bool,
    routers: Vec<RouterRow>,
    /// Gateways of the external networks that this node has no interface on.
    way_out: Vec<WayRow>,
    /// Sessions of the daemon that announces routed networks' addresses.
    bgp_peers: Vec<Value>,
}

#[derive(Serialize)]
struct RouterRow {
    router: String,
    network: String,
    address: IpAddr,
    /// `alone`, `vrrp`, `bgp`, or `remote`: this node is none of its gateways.
    mode: &'static str,
    vrid: Option<u8>,
    mac: String,
    /// Nodes; `None`: nobody that this node knows of.
    carried_by: Option<String>,
    /// `master`, `backup`, `off`, `carries` or nothing.
    this_node: &'static str,
    priority: Option<u8>,
    preempt: Option<bool>,
    down_ms: Option<u64>,
    gateways: Vec<String>,
    transitions: Option<u64>,
    since_seconds: Option<u64>,
    why: String,
}

#[derive(Serialize)]
struct WayRow {
    network: String,
    node: String,
    vtep: String,
    /// `up`, `down`, `admin_down` or `unknown`.
    state: String,
    /// Of a hundred flows, how many go by it.
    share_percent: u32,
    rtt_us: Option<u64>,
    transitions: Option<u64>,
    since_seconds: Option<u64>,
}

/// Reads it from the pins, and asks the agent for what only that knows.
pub fn report(view: &View, maps: &Path, run_dir: &Path) -> Result<GatewaysReport> {
    let answer = agent::ask(run_dir, "status");
    let told = answer.as_ref().unwrap_or(&Value::Null);
    let masters: BTreeMap<MasterKey, Master> = Map::open(maps, "MASTERS")?.entries()?.into_iter().collect();
    let mut routers = Vec::new();
    for (key, station) in &view.image.addresses {
        let network = key.network.id();
        let value = view.image.networks.get(&NetworkKey { network: Scoped::new(0, network) });
        let is_external = value.is_some_and(|network| network.flags & NETWORK_EXTERNAL != 0);
        if is_external && station.kind == STATION_ROUTER && !key.ip.is_v6_link_local() {
            let is_routed = value.is_some_and(|network| network.flags & NETWORK_ROUTED != 0);
            routers.push(row(view, network, key.ip, station, is_routed, told, &masters));
        }
    }
    routers.sort_by(|a, b| (&a.router, &a.network, a.address).cmp(&(&b.router, &b.network, b.address)));
    let peers = told["bgp"]["peers"].as_array().cloned().unwrap_or_default();
    Ok(GatewaysReport {
        agent: answer.is_some(),
        routers,
        way_out: way_out(view, &told["edge"]),
        bgp_peers: peers,
    })
}

fn row(
    view: &View,
    network: u32,
    ip: Ip,
    station: &Station,
    is_routed: bool,
    told: &Value,
    masters: &BTreeMap<MasterKey, Master>,
) -> RouterRow {
    let edge = &told["edge"];
    let note = told["bgp"]["note"].as_str();
    let announced: BTreeSet<IpAddr> = told["bgp"]["announced"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|address| address.as_str()?.parse().ok())
        .collect();
    let mut row = RouterRow {
        router: view.name(NAME_ROUTER, station.owner),
        network: view.name(NAME_NETWORK, network),
        address: ip.into(),
        mode: "alone",
        vrid: None,
        mac: Mac(station.mac).to_string(),
        carried_by: Some("this node".to_owned()),
        this_node: "carries",
        priority: None,
        preempt: None,
        down_ms: None,
        gateways: Vec::new(),
        transitions: None,
        since_seconds: None,
        why: "it is the only gateway".to_owned(),
    };
    match station.place {
        PLACE_SHARED if is_routed => {
            (row.mode, row.carried_by) = ("bgp", Some("every gateway".to_owned()));
            let is_announced = announced.contains(&row.address);
            row.this_node = if is_announced { "announced" } else { "withdrawn" };
            row.why = match (is_announced, note) {
                (true, None) => "routers outside choose among those that announce it".to_owned(),
                (true, Some(note)) => format!("routers outside choose among those that announce it; {note}"),
                (false, Some(note)) => note.to_owned(),
                (false, None) => "its interface is down, or nothing is in force there".to_owned(),
            };
        }
        PLACE_EVERYWHERE => {}
        PLACE_REMOTE => {
            (row.mode, row.this_node) = ("remote", "");
            row.carried_by = Some(view.name(NAME_NODE, station.at));
            row.why = "this node is none of its gateways; seen from here, the first that lives".to_owned();
        }
        PLACE_SHARED => shared(view, network, ip, station, edge, masters, &mut row),
        _ => {
            (row.carried_by, row.this_node) = (None, "");
            row.why = "no node has an interface on the network".to_owned();
        }
    }
    row
}

/// One that is carried by the master of a virtual router.
fn shared(
    view: &View,
    network: u32,
    ip: Ip,
    station: &Station,
    edge: &Value,
    masters: &BTreeMap<MasterKey, Master>,
    row: &mut RouterRow,
) {
    let (vrid, v6) = (station.at as u8, !ip.is_v4());
    (row.mode, row.vrid, row.mac) = ("vrrp", Some(vrid), Mac(virtual_mac(vrid, v6)).to_string());
    let family = if v6 { "ipv6" } else { "ipv4" };
    let all = edge["virtual_routers"].as_array().into_iter().flatten();
    let found = all.into_iter().find(|it| {
        it["router"] == row.router.as_str() && it["network"] == row.network.as_str() && it["family"] == family
    });
    let Some(it) = found else {
        let speaks = masters.get(&MasterKey::new(network, vrid, v6)).is_some_and(Master::speaks);
        (row.this_node, row.carried_by) =
            if speaks { ("master", Some("this node".to_owned())) } else { ("backup", None) };
        row.why = if speaks {
            "without an agent: it was the master last, and no other has announced itself"
        } else {
            "without an agent it takes over from nobody"
        }
        .to_owned();
        return;
    };
    let number = |key: &str| it[key].as_u64();
    let text = |key: &str| it[key].as_str();
    row.gateways = it["gateways"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    row.priority = number("priority").map(|priority| priority as u8);
    row.preempt = it["preempt"].as_bool();
    (row.down_ms, row.transitions, row.since_seconds) =
        (number("down_ms"), number("transitions"), number("since_seconds"));
    let order = row.gateways.join(", ");
    let other = text("master").and_then(|address| address.parse::<IpAddr>().ok());
    let note = text("note").map_or(String::new(), |note| format!("; {note}"));
    match text("state") {
        Some("master") => {
            row.this_node = "master";
            row.why = format!("priority {} in the order {order}{note}", row.priority.unwrap_or(0));
        }
        Some("backup") => {
            row.this_node = "backup";
            row.carried_by = other.map(|address| name_of(view, row, address));
            row.why = match (other, number("master_priority")) {
                (Some(_), Some(theirs)) => format!(
                    "it announces priority {theirs}, this node has {}{}{note}",
                    row.priority.unwrap_or(0),
                    if row.preempt == Some(false) { ", and nobody preempts" } else { "" }
                ),
                _ => format!("waits {} ms for a master to announce itself{note}", row.down_ms.unwrap_or(0)),
            };
        }
        _ => {
            row.this_node = "off";
            row.carried_by = other.map(|address| name_of(view, row, address));
            row.why = text("note").unwrap_or("it has not begun yet").to_owned();
        }
    }
}

/// The node behind an address that announced itself as the master.
fn name_of(view: &View, row: &RouterRow, address: IpAddr) -> String {
    let by_vtep = view.image.vteps.iter().find(|(key, _)| Ip::v4(key.addr) == Ip::from(address));
    if let Some((_, &node)) = by_vtep {
        return view.name(NAME_NODE, node);
    }
    let of_node = |name: &&String| {
        Ip::link_local_of(derive_external_mac(&row.router, &row.network, name).0) == Ip::from(address)
    };
    match row.gateways.iter().find(of_node) {
        Some(name) => name.clone(),
        None => address.to_string(),
    }
}

fn way_out(view: &View, edge: &Value) -> Vec<WayRow> {
    let mut shares: BTreeMap<(String, String), u32> = BTreeMap::new();
    for (key, &node) in &view.image.gateways {
        let name = (view.name(NAME_NETWORK, key.network.id()), view.name(NAME_NODE, node));
        *shares.entry(name).or_default() += 1;
    }
    let mut rows = Vec::new();
    for it in edge["gateways"].as_array().into_iter().flatten() {
        let text = |key: &str| it[key].as_str().unwrap_or_default().to_owned();
        let (network, node) = (text("network"), text("node"));
        let share = shares.remove(&(network.clone(), node.clone())).unwrap_or(0);
        rows.push(WayRow {
            network,
            node,
            vtep: text("vtep"),
            state: text("state"),
            share_percent: share * 100 / SLOTS,
            rtt_us: it["rtt_us"].as_u64(),
            transitions: it["transitions"].as_u64(),
            since_seconds: it["since_seconds"].as_u64(),
        });
    }
    // Without an agent, what it left.
    rows.extend(shares.into_iter().map(|((network, node), share)| WayRow {
        network,
        node,
        vtep: String::new(),
        state: "unknown".to_owned(),
        share_percent: share * 100 / SLOTS,
        rtt_us: None,
        transitions: None,
        since_seconds: None,
    }));
    rows
}

/// As tables.
pub fn for_people(report: &GatewaysReport) -> String {
    let mut text = String::new();
    if !report.agent {
        text.push_str("no agent is running: what it said last holds\n\n");
    }
    text.push_str(&table(
        ["router", "address", "by", "carried by", "this node", "for", "why"],
        report.routers.iter().map(|row| {
            [
                row.router.clone(),
                format!("{} on {}", row.address, row.network),
                row.vrid.map_or_else(|| row.mode.to_owned(), |vrid| format!("{} {vrid}", row.mode)),
                row.carried_by.clone().unwrap_or_else(|| "-".to_owned()),
                row.this_node.to_owned(),
                row.since_seconds.map_or(String::new(), |seconds| format!("{seconds} s")),
                row.why.clone(),
            ]
        }),
    ));
    if !report.bgp_peers.is_empty() {
        text.push_str("\n\nBGP sessions\n\n");
        text.push_str(&table(
            ["neighbour", "as", "state", "prefixes"],
            report.bgp_peers.iter().map(|peer| {
                let text = |key: &str| peer[key].as_str().unwrap_or_default().to_owned();
                let number = |key: &str| peer[key].as_u64().unwrap_or(0).to_string();
                [text("address"), number("asn"), text("state"), number("prefixes")]
            }),
        ));
    }
    if !report.way_out.is_empty() {
        text.push_str("\n\nThis node has no interface there, and goes by\n\n");
        text.push_str(&table(
            ["network", "gateway", "vtep", "state", "share", "answers in", "for"],
            report.way_out.iter().map(|row| {
                [
                    row.network.clone(),
                    row.node.clone(),
                    row.vtep.clone(),
                    row.state.clone(),
                    format!("{} %", row.share_percent),
                    row.rtt_us.map_or(String::new(), |micros| format!("{micros} us")),
                    row.since_seconds.map_or(String::new(), |seconds| format!("{seconds} s")),
                ]
            }),
        ));
    }
    text
}
