//! What the numbers in flow entries are called, read from the pins.

use std::{collections::HashMap, path::Path};

use anyhow::Result;
use aya::Pod;
use serde::Serialize;
use vrouter_common::{
    addr::{Be32, Ip},
    flow::{EXIT_EXTERNAL, EXIT_PORT, EXIT_TUNNEL, FROM_PORT, Flow, FlowKey},
    tables::*,
};

use crate::{
    banks::{self, Banked},
    identities::Identities,
    kernel::Map,
};

/// The part of a compiled topology that names connections.
#[derive(Default)]
pub struct Names {
    pub identities: Identities,
    pub bindings: HashMap<u32, Binding>,
    pub networks: HashMap<u32, Network>,
    /// Network numbers by VNI.
    pub vnis: HashMap<u32, u32>,
    /// Node numbers by VTEP.
    pub vteps: HashMap<Be32, u32>,
    /// Router's hardware addresses by router and network.
    pub legs: HashMap<(u32, u32), [u8; 6]>,
    pub hops: HashMap<u32, Hop>,
}

/// By what a port is found in flow entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortTraces {
    /// Its interfaces on this node.
    pub interfaces: Vec<u32>,
    /// Its addresses and the numbers of their networks.
    pub addresses: Vec<(u32, Ip)>,
}

/// One end of a connection, as far as this node sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct End {
    /// A workload of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The network on the way to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Another node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// On an external network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nexthop: Option<String>,
}

impl Names {
    /// Reads the pins.
    pub fn read(maps: &Path) -> Result<Self> {
        let bank = banks::Maps::open(maps)?.commit()?.bank();
        let hops: Map<u32, Hop> = Map::open(maps, "HOPS")?;
        Ok(Self {
            identities: Identities::read(&Map::open(maps, "NAMES")?)?,
            bindings: in_bank(maps, "BINDINGS", bank, |key: &BindingKey, binding| {
                (key.ifindex.id(), binding)
            })?,
            networks: in_bank(maps, "NETWORKS", bank, |key: &NetworkKey, network| {
                (key.network.id(), network)
            })?,
            vnis: in_bank(maps, "VNIS", bank, |key: &VniKey, network| (key.vni.id(), network))?,
            vteps: in_bank(maps, "VTEPS", bank, |key: &VtepKey, node| (key.addr, node))?,
            legs: in_bank(maps, "ROUTER_LEGS", bank, |key: &RouterLegKey, leg: RouterLeg| {
                ((key.router.id(), key.network), leg.mac)
            })?,
            hops: hops.entries()?.into_iter().filter(|(_, hop)| hop.flags & HOP_USED != 0).collect(),
        })
    }

    /// A name, or the number of what has none; nothing for 0.
    pub fn name(&self, kind: u32, id: u32) -> Option<String> {
        (id != 0).then(|| self.identities.name(kind, id).map_or_else(|| format!("#{id}"), str::to_owned))
    }

    /// Where packets of a key come from.
    pub fn source(&self, key: &FlowKey, flow: &Flow) -> End {
        if key.from == FROM_PORT {
            return self.port(key.zone, flow.network);
        }
        let network = self.vnis.get(&key.zone).copied().unwrap_or(flow.network);
        let network = self.name(NAME_NETWORK, network).or_else(|| Some(format!("vni {}", key.zone)));
        let node = self.vteps.get(&flow.in_vtep).and_then(|&node| self.name(NAME_NODE, node));
        End { network, node, ..End::default() }
    }

    /// Where packets of an entry go.
    pub fn destination(&self, flow: &Flow) -> End {
        let network = self.name(NAME_NETWORK, flow.network_out);
        match flow.exit {
            EXIT_PORT => self.port(flow.target, flow.network_out),
            EXIT_TUNNEL => End { node: self.name(NAME_NODE, flow.target), network, ..End::default() },
            EXIT_EXTERNAL => {
                let nexthop =
                    self.hops.get(&flow.target).map(|hop| std::net::IpAddr::from(hop.ip).to_string());
                End { nexthop: nexthop.or_else(|| Some("?".to_owned())), network, ..End::default() }
            }
            _ => End { network, ..End::default() },
        }
    }

    fn port(&self, ifindex: u32, network: u32) -> End {
        let port = self.bindings.get(&ifindex).and_then(|binding| self.name(NAME_PORT, binding.port));
        End {
            port: Some(port.unwrap_or_else(|| format!("ifindex {ifindex}"))),
            network: self.name(NAME_NETWORK, network),
            ..End::default()
        }
    }

    /// The routers an entry's packets pass first and last; those between are not in the entry.
    pub fn routers(&self, flow: &Flow) -> impl Iterator<Item = u32> {
        let at = move |network: u32, mac: [u8; 6]| {
            self.legs
                .iter()
                .filter(move |((_, on), leg)| flow.hops > 0 && *on == network && **leg == mac)
                .map(|((router, _), _)| *router)
        };
        let routers: Vec<u32> = std::iter::once(flow.router)
            .filter(|&router| router != 0)
            .chain(at(flow.network, flow.in_macs.dst()))
            .chain(at(flow.network_out, flow.out_macs.src()))
            .collect();
        routers.into_iter()
    }

    /// What a port, wherever it is, leaves in flow entries.
    pub fn traces_of_port(&self, maps: &Path, port: u32) -> Result<PortTraces> {
        let bank = banks::Maps::open(maps)?.commit()?.bank();
        let interfaces =
            self.bindings.iter().filter(|(_, binding)| binding.port == port).map(|(&ifindex, _)| ifindex);
        let addresses = in_bank(maps, "ADDRESSES", bank, |key: &AddressKey, station: Station| {
            ((key.network.id(), key.ip), station)
        })?;
        let addresses = addresses
            .into_iter()
            .filter(|(_, station)| station.kind == STATION_PORT && station.owner == port)
            .map(|(at, _)| at);
        Ok(PortTraces { interfaces: interfaces.collect(), addresses: addresses.collect() })
    }
}

impl End {
    /// In one word or two.
    pub fn for_people(&self) -> String {
        match self {
            Self { port: Some(port), .. } => port.clone(),
            Self { nexthop: Some(nexthop), network: Some(network), .. } => format!("{network} via {nexthop}"),
            Self { node: Some(node), .. } => node.clone(),
            Self { network: Some(network), .. } => network.clone(),
            Self { nexthop, .. } => nexthop.clone().unwrap_or_default(),
        }
    }
}

/// The entries of one bank of a hash.
pub(crate) fn in_bank<K, V, A, B>(
    maps: &Path,
    name: &str,
    bank: u32,
    part: impl Fn(&K, V) -> (A, B),
) -> Result<HashMap<A, B>>
where
    K: Pod + Banked,
    V: Pod,
    A: Eq + std::hash::Hash,
{
    let map: Map<K, V> = Map::open(maps, name)?;
    let mut entries = HashMap::new();
    let mut cursor = crate::kernel::Cursor::new();
    while let Some(batch) = map.next_batch(&mut cursor)? {
        entries.extend(batch.filter(|(key, _)| key.bank() == bank).map(|(key, value)| part(key, *value)));
    }
    Ok(entries)
}
