//! The topology in force on this node, by names: what is drawn and searched. Read from the pins, so it is what
//! forwards, wherever the topology comes from and whether or not an agent runs.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use serde::Serialize;
use vrouter_common::tables::*;

use crate::{
    banks,
    connections::{
        Names,
        names::{PortTraces, in_bank},
    },
    topology::model::Mac,
};

/// What there is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Objects {
    /// The commit it was read at.
    pub epoch: u32,
    /// No other has it, nor has one of an earlier process: what browsers have kept is known by it.
    #[serde(skip)]
    pub version: u64,
    /// This node's name.
    pub node: String,
    pub networks: Vec<Network>,
    pub routers: Vec<Router>,
    pub ports: Vec<Port>,
    pub nodes: Vec<Node>,
    /// By port number: where its flows are found.
    #[serde(skip)]
    pub traces: HashMap<u32, PortTraces>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Network {
    pub name: String,
    pub vni: u32,
    pub mtu: u32,
    pub external: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Router {
    pub name: String,
    pub legs: Vec<Leg>,
}

/// A router on a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Leg {
    pub network: String,
    pub addresses: Vec<String>,
    pub mac: String,
    pub external: bool,
    pub snat: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Port {
    pub name: String,
    pub network: String,
    pub mac: String,
    pub addresses: Vec<String>,
    /// Floating IPs and forwarded ports that lead to it.
    pub outside: Vec<String>,
    /// `None`: bound nowhere.
    pub node: Option<String>,
    /// `here`, `missing` (its interface), `remote` or `unbound`.
    pub place: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Node {
    pub name: String,
    /// Its tunnel address.
    pub vtep: String,
}

/// Counts from the time when the first was asked for.
fn version() -> u64 {
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        AtomicU64::new(u64::try_from(since.as_micros()).unwrap_or(0))
    });
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Objects {
    /// Reads the bank in force. A commit in between makes it begin again.
    pub fn read(maps: &Path, names: &Names) -> Result<Self> {
        let banks = banks::Maps::open(maps)?;
        for _ in 0..3 {
            let before = banks.commit()?;
            let objects = Self::of_bank(maps, names, &before)?;
            if banks.commit()?.epoch == before.epoch {
                return Ok(objects);
            }
        }
        bail!("the topology changes faster than it can be read; it is shown once it rests")
    }

    fn of_bank(maps: &Path, names: &Names, commit: &Commit) -> Result<Self> {
        let bank = commit.bank();
        let name = |kind, id| names.name(kind, id).unwrap_or_else(|| format!("#{id}"));
        let node = names.name(NAME_NODE, commit.node);
        let own = node.clone().unwrap_or_else(|| "this node".to_owned());

        let mut networks: Vec<_> = names.networks.iter().collect();
        networks.sort_by_key(|(id, _)| **id);
        let networks = networks.into_iter().map(|(&id, network)| Network {
            name: name(NAME_NETWORK, id),
            vni: network.vni,
            mtu: network.mtu,
            external: network.flags & NETWORK_EXTERNAL != 0,
        });

        let mut routers: BTreeMap<u32, Vec<Leg>> = BTreeMap::new();
        let legs = in_bank(maps, "ROUTER_LEGS", bank, |key: &RouterLegKey, leg: RouterLeg| {
            ((key.router.id(), key.network), leg)
        })?;
        for ((router, network), leg) in legs {
            let known = [leg.v4, leg.v6].into_iter().map(IpAddr::from).filter(|ip| !ip.is_unspecified());
            routers.entry(router).or_default().push(Leg {
                network: name(NAME_NETWORK, network),
                addresses: known.map(|ip| ip.to_string()).collect(),
                mac: Mac(leg.mac).to_string(),
                external: leg.flags & LEG_EXTERNAL != 0,
                snat: leg.flags & LEG_SNAT != 0,
            });
        }
        let routers = routers.into_iter().map(|(id, mut legs)| {
            legs.sort();
            Router { name: name(NAME_ROUTER, id), legs }
        });

        let mut ports: BTreeMap<(u32, u32), Port> = BTreeMap::new();
        let mut traces: HashMap<u32, PortTraces> = HashMap::new();
        let stations = in_bank(maps, "FDB", bank, |key: &FdbKey, station: Station| {
            ((key.network.id(), key.mac), station)
        })?;
        for ((network, mac), station) in stations.into_iter().filter(|(_, it)| it.kind == STATION_PORT) {
            let (node, place) = match station.place {
                PLACE_REMOTE => (Some(name(NAME_NODE, station.at)), "remote"),
                PLACE_UNPLUGGED => (Some(own.clone()), "missing"),
                _ if station.is_here() => (Some(own.clone()), "here"),
                _ => (None, "unbound"),
            };
            let port = Port {
                name: name(NAME_PORT, station.owner),
                network: name(NAME_NETWORK, network),
                mac: Mac(mac).to_string(),
                node,
                place,
                ..Port::default()
            };
            ports.insert((network, station.owner), port);
        }
        let addresses = in_bank(maps, "ADDRESSES", bank, |key: &AddressKey, station: Station| {
            ((key.network.id(), key.ip), station)
        })?;
        for ((network, ip), station) in addresses.into_iter().filter(|(_, it)| it.kind == STATION_PORT) {
            traces.entry(station.owner).or_default().addresses.push((network, ip));
            if let Some(port) = ports.get_mut(&(network, station.owner)).filter(|_| !ip.is_v6_link_local()) {
                port.addresses.push(IpAddr::from(ip).to_string());
            }
        }
        for (&ifindex, binding) in &names.bindings {
            traces.entry(binding.port).or_default().interfaces.push(ifindex);
        }
        let outside = in_bank(maps, "NAT", bank, |key: &NatKey, nat: Nat| (*key, nat))?;
        for (key, nat) in outside {
            if let Some(port) = ports.get_mut(&(nat.inside_network, nat.port)) {
                let ip = IpAddr::from(key.ip);
                port.outside.push(match key.port.get() {
                    0 => ip.to_string(),
                    outside => format!("{ip} port {outside} to {}", nat.inside_port.get()),
                });
            }
        }
        let ports = ports.into_values().map(|mut port| {
            port.addresses.sort();
            port.outside.sort();
            port
        });

        let mut nodes: Vec<_> = names
            .vteps
            .iter()
            .map(|(&vtep, &id)| Node {
                name: name(NAME_NODE, id),
                vtep: Ipv4Addr::from_bits(vtep.get()).to_string(),
            })
            .collect();
        if nodes.iter().all(|node| node.name != own) {
            nodes.push(Node { name: own.clone(), vtep: Ipv4Addr::from_bits(commit.vtep.get()).to_string() });
        }
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let mut objects = Self {
            epoch: commit.epoch,
            version: version(),
            node: own,
            networks: networks.collect(),
            routers: routers.collect(),
            ports: ports.collect(),
            nodes,
            traces,
        };
        objects.sort();
        Ok(objects)
    }

    /// By names, as everything that is drawn: numbers depend on what was there before.
    pub fn sort(&mut self) {
        self.networks.sort_by(|a, b| a.name.cmp(&b.name));
        self.routers.sort_by(|a, b| a.name.cmp(&b.name));
        self.ports.sort_by(|a, b| (&a.name, &a.network).cmp(&(&b.name, &b.network)));
    }
}
