//! `vrouter show lb`: VIPs, their listeners, the members that serve them, and what this node has balanced.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::Path,
};

use anyhow::Result;
use serde::Serialize;
use vrouter_common::{addr::Ip, tables::*};

use super::View;
use crate::{
    connections::{FlowTables, row::protocol},
    counters::Balanced,
    kernel::Map,
    output::table,
};

/// All listeners on this node's networks.
#[derive(Serialize)]
pub struct LbReport {
    listeners: Vec<ListenerRow>,
}

/// A listener at one VIP. Counters are of what this node balanced: a client's node, or, of clients outside, that of
/// the member.
#[derive(Serialize)]
struct ListenerRow {
    /// `load balancer/listener`.
    listener: String,
    vip: IpAddr,
    /// Addresses outside that lead to it.
    floating_ips: Vec<IpAddr>,
    network: String,
    protocol: String,
    port: u16,
    pool: String,
    router: String,
    /// `up`; `no member`; or `down`, by `admin_state_up`.
    state: &'static str,
    session_persistence: Option<&'static str>,
    /// New connections since the data path was first loaded, of all its VIPs.
    connections: u64,
    active: u64,
    members: Vec<MemberRow>,
}

#[derive(Serialize)]
struct MemberRow {
    member: String,
    address: IpAddr,
    port: u16,
    network: String,
    /// `here`, a node, or `unknown`.
    node: String,
    /// `up`; `down`, by its health monitor; `lost`: its node is silent; `draining`: takes nothing new.
    state: &'static str,
    /// Its part of the slots, in percent.
    share: f64,
    /// New connections since the data path was first loaded, of all listeners.
    connections: u64,
    /// Connections there are by this listener, and what they have carried.
    active: u64,
    packets_in: u64,
    bytes_in: u64,
    packets_out: u64,
    bytes_out: u64,
}

/// What connections carry.
#[derive(Clone, Copy, Default)]
struct Carried {
    active: u64,
    into: (u64, u64),
    out: (u64, u64),
}

/// A listener's key without its network, with its router: what a connection says of it.
type Served = (u32, Ip, u16, u8);

/// Collects it.
pub fn report(view: &View, maps: &Path) -> Result<LbReport> {
    let image = &view.image;
    let mut floating: BTreeMap<(u32, Ip), Vec<Ip>> = BTreeMap::new();
    // Of an address outside: the router that balances, which need not be the one that translates the client, and the VIP.
    let mut vip_of: HashMap<Ip, (u32, Ip)> = HashMap::new();
    for (key, nat) in image.nat.iter().filter(|(_, nat)| nat.node == NODE_BALANCED) {
        floating.entry((nat.inside_network, nat.inside)).or_default().push(key.ip);
        vip_of.insert(key.ip, (nat.router, nat.inside));
    }
    let mut carried: HashMap<(Served, Ip, u16), Carried> = HashMap::new();
    if !image.listeners.is_empty() {
        FlowTables::open(maps)?.for_each(|flows| {
            let Some(leg) = flows.original().filter(|leg| leg.key.dst != leg.flow.dst) else { return Ok(()) };
            let to = vip_of.get(&leg.key.dst).copied();
            let (router, vip) = to.unwrap_or((leg.flow.router, leg.key.dst));
            let served = (router, vip, leg.key.dport.get(), leg.key.proto);
            let carried = carried.entry((served, leg.flow.dst, leg.flow.dport.get())).or_default();
            carried.active += 1;
            carried.into.0 += leg.flow.packets;
            carried.into.1 += leg.flow.bytes;
            if let Some(reply) = flows.reply() {
                carried.out.0 += reply.flow.packets;
                carried.out.1 += reply.flow.bytes;
            }
            Ok(())
        })?;
    }
    let Balanced { listeners: by_listener, members: by_member } = Balanced::open(maps)?;
    let listeners = image.listeners.iter().map(|(key, listener)| {
        let served = (listener.router, key.ip, key.port.get(), key.proto);
        let members = members(view, listener, &by_member, |ip, port| {
            carried.get(&(served, ip, port)).copied().unwrap_or_default()
        })?;
        let floating_ips = floating.get(&(key.network.id(), key.ip)).into_iter().flatten();
        Ok(ListenerRow {
            listener: view.name(NAME_LISTENER, listener.number),
            vip: key.ip.into(),
            floating_ips: floating_ips.map(|&ip| ip.into()).collect(),
            network: view.name(NAME_NETWORK, key.network.id()),
            protocol: protocol(key.proto).map_or_else(|| key.proto.to_string(), str::to_owned),
            port: key.port.get(),
            // Its number's name says family and router, too.
            pool: view.name(NAME_POOL, listener.pool).split(' ').next().unwrap_or_default().to_owned(),
            router: view.name(NAME_ROUTER, listener.router),
            state: match listener {
                Listener { flags, .. } if flags & LISTENER_DOWN != 0 => "down",
                Listener { flags, .. } if flags & LISTENER_EMPTY != 0 => "no member",
                _ => "up",
            },
            session_persistence: (listener.flags & LISTENER_SOURCE_IP != 0).then_some("source_ip"),
            connections: by_listener.lookup(&listener.number)?.unwrap_or_default(),
            active: members.iter().map(|member| member.active).sum(),
            members,
        })
    });
    Ok(LbReport { listeners: listeners.collect::<Result<_>>()? })
}

fn members(
    view: &View,
    listener: &Listener,
    by_member: &Map<u32, u64>,
    carried: impl Fn(Ip, u16) -> Carried,
) -> Result<Vec<MemberRow>> {
    let image = &view.image;
    let Some(pool) = image.pools.get(&listener.pool) else { return Ok(Vec::new()) };
    let mut slots: HashMap<u16, u32> = HashMap::new();
    for slot in pool.slots.values().flat_map(|slots| slots.0) {
        *slots.entry(slot.member).or_default() += 1;
    }
    let rows = pool.members.iter().map(|(key, member)| {
        let at = who_is(image.addresses.get(&AddressKey::new(0, member.network, member.ip)));
        let Carried { active, into, out } = carried(member.ip, member.port.get());
        let share = slots.get(&(key.index as u16)).copied().unwrap_or_default();
        Ok(MemberRow {
            member: view.name(NAME_MEMBER, member.number),
            address: member.ip.into(),
            port: member.port.get(),
            network: view.name(NAME_NETWORK, member.network),
            node: match at {
                Some(0) => "here".to_owned(),
                Some(node) => view.name(NAME_NODE, node),
                None => "unknown".to_owned(),
            },
            state: match member.flags {
                flags if flags & MEMBER_LOST != 0 => "lost",
                flags if flags & MEMBER_DOWN != 0 => "down",
                flags if flags & MEMBER_UP != 0 => "up",
                _ => "draining",
            },
            share: f64::from(share) * 100.0 / f64::from(listener.slots.max(1)),
            connections: by_member.lookup(&member.number)?.unwrap_or_default(),
            active,
            packets_in: into.0,
            bytes_in: into.1,
            packets_out: out.0,
            bytes_out: out.1,
        })
    });
    rows.collect()
}

/// The node of a station; 0: this one.
fn who_is(station: Option<&Station>) -> Option<u32> {
    match station {
        Some(station) if station.is_here() => Some(0),
        Some(station) if station.place == PLACE_REMOTE => Some(station.at),
        _ => None,
    }
}

/// For people: each listener, and its members below.
pub fn for_people(report: &LbReport) -> String {
    let mut text = table(
        ["listener", "vip", "floating ip", "protocol", "port", "pool", "state", "connections", "active"],
        report.listeners.iter().map(|row| {
            [
                row.listener.clone(),
                row.vip.to_string(),
                row.floating_ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
                row.protocol.clone(),
                row.port.to_string(),
                row.pool.clone(),
                row.state.to_owned(),
                row.connections.to_string(),
                row.active.to_string(),
            ]
        }),
    );
    if !report.listeners.is_empty() {
        let members = report.listeners.iter().flat_map(|row| row.members.iter().map(move |it| (row, it)));
        text += "\n\n";
        text += &table(
            [
                "listener",
                "member",
                "address",
                "port",
                "node",
                "state",
                "share",
                "connections",
                "active",
                "in",
                "out",
            ],
            members.map(|(row, it)| {
                [
                    row.listener.clone(),
                    it.member.clone(),
                    it.address.to_string(),
                    it.port.to_string(),
                    it.node.clone(),
                    it.state.to_owned(),
                    format!("{:.0}%", it.share),
                    it.connections.to_string(),
                    it.active.to_string(),
                    bytes(it.bytes_in),
                    bytes(it.bytes_out),
                ]
            }),
        );
    }
    text
}

/// 1.5 MB.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
