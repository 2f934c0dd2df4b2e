//! `vrouter show nat`: what is translated on this node, and how many ports of its blocks are in use.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use anyhow::Result;
use serde::Serialize;
use vrouter_common::{addr::Ip, flow::FLOW_SNAT, tables::*};

use super::View;
use crate::{
    connections::{FlowTables, row::protocol},
    kernel::PerCpu,
    output::table,
};

/// Everything about translation.
#[derive(Serialize)]
pub struct NatReport {
    floating_ips: Vec<FloatingRow>,
    port_forwardings: Vec<ForwardingRow>,
    snat: Vec<SnatRow>,
    /// How many ports had to be tried for connections that share an address.
    tries: Vec<TriesRow>,
}

#[derive(Serialize)]
struct FloatingRow {
    network: String,
    address: IpAddr,
    fixed_ip: IpAddr,
    port: String,
    router: String,
    /// `here`, or the node that translates.
    node: String,
}

#[derive(Serialize)]
struct ForwardingRow {
    network: String,
    address: IpAddr,
    protocol: String,
    external_port: u16,
    fixed_ip: IpAddr,
    internal_port: u16,
    port: String,
    router: String,
    node: String,
}

#[derive(Serialize)]
struct SnatRow {
    router: String,
    network: String,
    address: IpAddr,
    /// Whether what outside sends to the address arrives at this node.
    owned: bool,
    /// Ports this node may use.
    blocks: Vec<String>,
    ports: u32,
    /// Connections that have one, and different ports they have: two to different servers may share one.
    flows: u64,
    ports_in_use: usize,
}

#[derive(Serialize)]
struct TriesRow {
    ports_tried: &'static str,
    count: u64,
}

/// A bucket of the histogram.
pub fn tries_name(bucket: u32) -> &'static str {
    const NAMES: [&str; NAT_TRIES_BUCKETS as usize] =
        ["1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65-128", "none free"];
    NAMES.get(bucket as usize).copied().unwrap_or("unknown")
}

/// What connections have of an address.
#[derive(Default)]
struct InUse {
    flows: u64,
    ports: BTreeSet<(u8, u16)>,
}

/// Collects it.
pub fn report(view: &View, maps: &Path) -> Result<NatReport> {
    let mut in_use: BTreeMap<(u32, Ip), InUse> = BTreeMap::new();
    FlowTables::open(maps)?.for_each(|flows| {
        if let Some(leg) = flows.original().filter(|leg| leg.flow.flags & FLOW_SNAT != 0) {
            let of_address = in_use.entry((leg.flow.router, leg.flow.src)).or_default();
            of_address.flows += 1;
            of_address.ports.insert((leg.key.proto, leg.flow.sport.get()));
        }
        Ok(())
    })?;
    let tries: PerCpu<u64> = PerCpu::open(maps, "NAT_TRIES")?;
    let tries = (0..NAT_TRIES_BUCKETS)
        .map(|bucket| {
            Ok(TriesRow { ports_tried: tries_name(bucket), count: tries.values(bucket)?.iter().sum() })
        })
        .collect::<Result<_>>()?;
    let node = |nat: &Nat| if nat.node == 0 { "here".to_owned() } else { view.name(NAME_NODE, nat.node) };
    // Those of VIPs are in `show lb`.
    let nat = || view.image.nat.iter().filter(|(_, nat)| nat.node != NODE_BALANCED);
    let floating_ips = nat().filter(|(key, _)| key.proto == 0).map(|(key, nat)| FloatingRow {
        network: view.name(NAME_NETWORK, key.network.id()),
        address: key.ip.into(),
        fixed_ip: nat.inside.into(),
        port: view.name(NAME_PORT, nat.port),
        router: view.name(NAME_ROUTER, nat.router),
        node: node(nat),
    });
    let port_forwardings = nat().filter(|(key, _)| key.proto != 0).map(|(key, nat)| ForwardingRow {
        network: view.name(NAME_NETWORK, key.network.id()),
        address: key.ip.into(),
        protocol: protocol(key.proto).map_or_else(|| key.proto.to_string(), str::to_owned),
        external_port: key.port.get(),
        fixed_ip: nat.inside.into(),
        internal_port: nat.inside_port.get(),
        port: view.name(NAME_PORT, nat.port),
        router: view.name(NAME_ROUTER, nat.router),
        node: node(nat),
    });
    let legs = view.image.router_legs.iter().filter(|(_, leg)| leg.flags & LEG_SNAT != 0);
    let snat = legs.map(|(key, leg)| {
        let blocks: Vec<SnatBlock> = (0..leg.snat_blocks)
            .filter_map(|slot| {
                let key = SnatBlockKey { router: key.router, network: key.network, slot };
                view.image.snat_blocks.get(&key).copied()
            })
            .collect();
        let in_use = in_use.get(&(key.router.id(), leg.v4));
        SnatRow {
            router: view.name(NAME_ROUTER, key.router.id()),
            network: view.name(NAME_NETWORK, key.network),
            address: leg.v4.into(),
            owned: leg.flags & LEG_OWNED != 0,
            ports: blocks.iter().map(|block| u32::from(block.last.saturating_sub(block.first)) + 1).sum(),
            blocks: ranges(&blocks),
            flows: in_use.map_or(0, |in_use| in_use.flows),
            ports_in_use: in_use.map_or(0, |in_use| in_use.ports.len()),
        }
    });
    Ok(NatReport {
        floating_ips: floating_ips.collect(),
        port_forwardings: port_forwardings.collect(),
        snat: snat.collect(),
        tries,
    })
}

/// Neighbouring blocks as one range.
fn ranges(blocks: &[SnatBlock]) -> Vec<String> {
    let mut sorted: Vec<_> = blocks.iter().map(|block| (block.first, block.last)).collect();
    sorted.sort_unstable();
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for (first, last) in sorted {
        match ranges.last_mut() {
            Some(before) if u32::from(before.1) + 1 == u32::from(first) => before.1 = last,
            _ => ranges.push((first, last)),
        }
    }
    ranges.into_iter().map(|(first, last)| format!("{first}-{last}")).collect()
}

/// Ranges as one cell: what does not fit is counted, and whole in JSON.
fn first_of(ranges: &[String]) -> String {
    const SHOWN: usize = 3;
    match ranges.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{} and {more} more", ranges[..SHOWN].join(",")),
        _ => ranges.join(","),
    }
}

/// For people.
pub fn for_people(report: &NatReport) -> String {
    let floating = table(
        ["floating ip", "network", "fixed ip", "port", "router", "node"],
        report.floating_ips.iter().map(|row| {
            [
                row.address.to_string(),
                row.network.clone(),
                row.fixed_ip.to_string(),
                row.port.clone(),
                row.router.clone(),
                row.node.clone(),
            ]
        }),
    );
    let forwardings = table(
        ["address", "protocol", "external", "fixed ip", "internal", "port", "router", "node"],
        report.port_forwardings.iter().map(|row| {
            [
                row.address.to_string(),
                row.protocol.clone(),
                row.external_port.to_string(),
                row.fixed_ip.to_string(),
                row.internal_port.to_string(),
                row.port.clone(),
                row.router.clone(),
                row.node.clone(),
            ]
        }),
    );
    let snat = table(
        ["router", "network", "address", "owned", "blocks", "ports", "in use", "flows"],
        report.snat.iter().map(|row| {
            [
                row.router.clone(),
                row.network.clone(),
                row.address.to_string(),
                if row.owned { "here" } else { "elsewhere" }.to_owned(),
                first_of(&row.blocks),
                row.ports.to_string(),
                row.ports_in_use.to_string(),
                row.flows.to_string(),
            ]
        }),
    );
    let tries = table(
        ["ports tried", "connections"],
        report
            .tries
            .iter()
            .filter(|row| row.count > 0)
            .map(|row| [row.ports_tried.to_owned(), row.count.to_string()]),
    );
    format!(
        "floating IPs\n{floating}\n\nport forwardings\n{forwardings}\n\nshared addresses (SNAT)\n{snat}\n\nports tried\n{tries}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_blocks_are_one_range() {
        let blocks = [(2048, 3071), (1024, 2047), (64512, 65535), (8192, 9215)]
            .map(|(first, last)| SnatBlock { first, last });
        assert_eq!(ranges(&blocks), ["1024-3071", "8192-9215", "64512-65535"]);
        assert!(ranges(&[]).is_empty());
        let many: Vec<String> = ["1-2", "4-5", "7-8", "10-11"].map(str::to_owned).into();
        assert_eq!(first_of(&many), "1-2,4-5,7-8 and 1 more");
        assert_eq!(first_of(&many[..3]), "1-2,4-5,7-8");
    }
}
