//! Compiles a topology for one node: a pure function from names to what the data path looks up.
//!
//! Only what this node needs is compiled (see `scope`): the networks its ports are on, everything routers
//! connect to them, and what the node is to the outside. Everything is in terms of [`Image`], the same
//! structure the in-memory decision runs on.

mod balancer;
mod external;
mod health;
mod policy;
mod router;
mod scope;
pub mod served;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv6Net};
use serde::Serialize;
use vrouter_common::{
    addr::{Be32, Ip},
    memory::Image,
    tables::*,
    wire::OVERLAY_OVERHEAD,
};

use crate::{
    identities::Identities,
    netlink::Link,
    store::blocks::Holders,
    topology::{
        Balancers, Carriers, Rendezvous, Translators, Vrids,
        model::{Hook, Network, Node, Port, Topology},
    },
};
pub use balancer::Kept;
pub use external::virtual_mac;
pub use health::MonitoredMember;
use policy::Policies;
use scope::Scope;
pub use served::Served;

/// What the compiler must know of the node besides the topology.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// This node's name.
    pub node: String,
    /// Interfaces by name, as they are now.
    pub interfaces: HashMap<String, Interface>,
    /// The underlay's MTU: the smallest of the uplinks'.
    pub underlay_mtu: u32,
    /// This node's interfaces on external networks, by the network's name.
    pub externals: BTreeMap<String, ExternalInterface>,
    /// What is known of others at the moment.
    pub liveness: Liveness,
    /// Whose ports of routers' addresses are whose. `None`: every node works it out by itself.
    pub shares: Option<Shares>,
    /// Routes that a routing daemon has learned, by the external network their next hops are on.
    pub learned: BTreeMap<String, BTreeMap<IpNet, Vec<IpAddr>>>,
    /// Whether this node answers requests for metadata.
    pub metadata: bool,
}

/// Whose ports of routers' addresses are whose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    pub holders: Arc<Holders>,
    /// Blocks of this node's own that no new connection is to get a port of: router and block.
    pub retiring: BTreeSet<(String, u32)>,
}

/// A router that this node translates for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    pub router_id: u32,
    /// Its address outside.
    pub address: Ipv4Addr,
    /// The blocks there are, inclusive.
    pub blocks: (u32, u32),
    /// This node has a port behind it.
    pub is_needed: bool,
}

/// What is known of others at the moment. It changes without the topology.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Liveness {
    /// Nodes that do not carry for an external network, though they are to: its name and theirs.
    pub dead_gateways: BTreeSet<(String, String)>,
    /// Next hops that do not answer: a network's name and the address.
    pub dead_nexthops: BTreeSet<(String, IpAddr)>,
    /// Routers this node is the master of.
    pub mastered: BTreeSet<String>,
    /// Members of pools, and what their health monitors say; one that is not here has none, or nothing is known yet.
    pub members: BTreeMap<(String, String), MemberHealth>,
}

/// What is known of a member of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberHealth {
    /// It serves.
    #[default]
    Up,
    /// It does not.
    Down,
    /// Nobody says any more: its node, or the agent there, is gone.
    Lost,
}

/// An interface of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// It is one end of a veth whose other end is in another network namespace: what is for it can be handed to
    /// the other end at once (`bpf_redirect_peer`), past this end's queue.
    pub peer: bool,
}

impl Interface {
    /// What there is to know of a link.
    pub fn of(link: &Link) -> Self {
        Self { index: link.index, peer: link.kind.as_deref() == Some("veth") && link.paired_elsewhere }
    }
}

/// An interface on an external network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExternalInterface {
    /// `None`: the interface does not exist at the moment.
    pub ifindex: Option<u32>,
    /// Its MTU, as long as it exists.
    pub mtu: Option<u32>,
    /// Its hardware address, as long as it exists.
    pub mac: Option<[u8; 6]>,
}

/// A virtual router (RFC 5798) of an external network, of one family, that this node may be the master of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VirtualRouter {
    /// The router's name and number.
    pub router: String,
    pub router_id: u32,
    /// The external network's name and number.
    pub network: String,
    pub network_id: u32,
    pub vrid: u8,
    pub ipv6: bool,
    /// The better, the higher: 254 at the most.
    pub priority: u8,
    /// In the order they are announced in; over IPv6 a link-local one first.
    pub addresses: Vec<IpAddr>,
    pub interval_ms: u32,
    pub preempt: bool,
    /// The hardware address of this node's leg, and the link-local address made of it.
    pub mac: [u8; 6],
    /// All that may be the master, the first to be it first.
    pub carriers: Vec<String>,
}

/// Another node that carries for an external network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayPeer {
    pub network: String,
    pub vni: u32,
    pub node: String,
    pub vtep: Ipv4Addr,
}

/// A port of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalPort {
    pub name: String,
    pub interface: String,
    /// `None`: the interface does not exist at the moment.
    pub ifindex: Option<u32>,
    pub xdp: bool,
}

/// The outcome.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    pub image: Image,
    pub local_ports: Vec<LocalPort>,
    /// This node's number.
    pub node: u32,
    pub vtep: Option<Ipv4Addr>,
    /// Largest L3 packet the tunnels carry.
    pub overlay_mtu: u32,
    /// The external interfaces that exist; whether XDP is attached to them is for the agent to add.
    pub externals: Vec<External>,
    /// What the document asks of this node that it cannot give.
    pub warnings: Vec<String>,
    /// The other nodes.
    pub peers: BTreeMap<u32, Ipv4Addr>,
    /// Addresses of routed external networks that this node carries: to be announced.
    pub announced: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Routers with SNAT, by name.
    pub translated: BTreeMap<String, Translated>,
    /// The virtual routers this node takes part in.
    pub virtual_routers: Vec<VirtualRouter>,
    /// The gateways this node depends on: those of the external networks that it has no interface on.
    pub gateways: Vec<GatewayPeer>,
    /// The external networks this node is to carry for, and their VNIs.
    pub carried: BTreeMap<String, u32>,
    /// Next hops of routes that have several, on external networks: network number and address.
    pub watched: BTreeSet<(u32, Ip)>,
    /// Members of pools that this node checks.
    pub monitored: Vec<MonitoredMember>,
    /// What the services of this node are to know of its ports, by interface.
    pub served: Served,
    /// Every number in use, by kind, but for those of pools' members, which the image has.
    pub used: BTreeSet<(u32, u32)>,
}

/// Compiles `topology`, which was validated, for the node of `around`.
pub fn compile(topology: &Topology, around: &Surroundings, ids: &mut Identities) -> Result<Compiled> {
    let mut compiler = Compiler::new(topology, around, ids);
    compiler.nodes()?;
    for network in &topology.networks {
        compiler.network(network)?;
    }
    for router in &topology.routers {
        compiler.router(router)?;
    }
    compiler.outside()?;
    compiler.gateways()?;
    compiler.monitored();
    for port in &topology.ports {
        compiler.port(port)?;
    }
    compiler.balancers()?;
    compiler.services()?;
    compiler.hear_claims()?;
    compiler.floods();
    compiler.rules()?;
    compiler.warn();
    Ok(compiler.out)
}

struct Compiler<'a> {
    topology: &'a Topology,
    around: &'a Surroundings,
    ids: &'a mut Identities,
    networks: HashMap<&'a str, &'a Network>,
    /// Network of a subnet, and the subnet's range.
    subnets: HashMap<&'a str, (&'a Network, IpNet)>,
    nodes: HashMap<&'a str, u32>,
    node_of: HashMap<&'a str, &'a Node>,
    scope: Scope<'a>,
    translators: Translators<'a>,
    /// Who balances, if anybody does.
    balancers: Option<Balancers<'a>>,
    /// Who can carry, by external network.
    carriers: Carriers<'a>,
    vrids: Vrids<'a>,
    /// Ports by network and address, if a route asked for it.
    port_at: Option<HashMap<(&'a str, IpAddr), &'a Port>>,
    /// Who of all nodes has which ports for SNAT; positions are those in the topology.
    sharing: Rendezvous,
    policies: Policies<'a>,
    /// Interfaces of this node behind which are members that it checks.
    asked: HashSet<&'a str>,
    /// Routers with SNAT for which this node has no ports.
    without_ports: Vec<&'a str>,
    /// External networks this node is to carry for, without an interface on them.
    off_network: Vec<&'a str>,
    /// External networks it has an interface on, which the topology does not know.
    superfluous: Vec<&'a str>,
    /// Routed networks with more routes than are used.
    crowded: Vec<&'a str>,
    /// Routers' addresses by subnet, if a service asked for them.
    legs: Option<HashMap<&'a str, Vec<(&'a str, IpAddr)>>>,
    /// What services are to know of each network with ports here.
    served_networks: HashMap<&'a str, Arc<served::ServedNetwork>>,
    /// Receivers of broadcasts by network: interfaces by port number, and nodes.
    flood_ports: BTreeMap<u32, BTreeMap<u32, u32>>,
    flood_nodes: BTreeMap<u32, BTreeSet<u32>>,
    out: Compiled,
}

fn carriers(topology: &Topology) -> Carriers<'_> {
    let external = topology.networks.iter().filter(|network| network.external);
    Carriers::of(&topology.nodes, external.map(|network| network.name.as_str()))
}

/// Where something is done that every node could do.
#[derive(Clone, Copy)]
enum Where<'a> {
    Here,
    /// On the node of this number and name.
    There(u32, &'a str),
    Nowhere,
}

impl<'a> Compiler<'a> {
    fn new(topology: &'a Topology, around: &'a Surroundings, ids: &'a mut Identities) -> Self {
        let networks: HashMap<_, _> =
            topology.networks.iter().map(|network| (network.name.as_str(), network)).collect();
        let subnets: HashMap<_, _> = topology
            .networks
            .iter()
            .flat_map(|network| {
                network.subnets.iter().map(move |subnet| (subnet.name.as_str(), (network, subnet.cidr)))
            })
            .collect();
        let carriers = carriers(topology);
        let scope = Scope::new(topology, &subnets, around, &carriers);
        Self {
            topology,
            around,
            ids,
            networks,
            subnets,
            nodes: HashMap::new(),
            node_of: topology.nodes.iter().map(|node| (node.name.as_str(), node)).collect(),
            scope,
            translators: Translators::of(topology),
            balancers: None,
            carriers,
            vrids: Vrids::of(topology),
            port_at: None,
            sharing: Rendezvous::among(topology.nodes.iter().map(|node| node.name.as_str())),
            policies: Policies::default(),
            asked: HashSet::new(),
            without_ports: Vec::new(),
            off_network: Vec::new(),
            superfluous: Vec::new(),
            crowded: Vec::new(),
            legs: None,
            served_networks: HashMap::new(),
            flood_ports: BTreeMap::new(),
            flood_nodes: BTreeMap::new(),
            out: Compiled { overlay_mtu: overlay_mtu(around), ..Compiled::default() },
        }
    }

    fn id(&mut self, kind: u32, name: &str) -> Result<u32> {
        let id = self.ids.id(kind, name)?;
        self.out.used.insert((kind, id));
        Ok(id)
    }

    fn nodes(&mut self) -> Result<()> {
        for node in &self.topology.nodes {
            let id = self.id(NAME_NODE, &node.name)?;
            self.nodes.insert(&node.name, id);
            if node.name == self.around.node {
                self.out.node = id;
                self.out.vtep = Some(node.vtep);
            } else {
                self.out.peers.insert(id, node.vtep);
                let key = VtepKey { bank: Scoped::new(0, 0), addr: Be32::new(node.vtep.to_bits()) };
                self.out.image.vteps.insert(key, id);
            }
        }
        Ok(())
    }

    /// The node of that name, as this one sees it.
    fn node(&self, name: &'a str) -> Result<Where<'a>> {
        if name == self.around.node {
            return Ok(Where::Here);
        }
        let id = *self.nodes.get(name).with_context(|| format!("there is no node {name}"))?;
        Ok(Where::There(id, name))
    }

    fn mtu(&self, network: &Network) -> u32 {
        let most = if network.external {
            let interface = self.around.externals.get(&network.name).and_then(|interface| interface.mtu);
            interface.unwrap_or(ETHERNET_MTU).min(u32::from(u16::MAX))
        } else {
            self.out.overlay_mtu
        };
        network.mtu.map_or(most, u32::from)
    }

    fn network(&mut self, network: &'a Network) -> Result<()> {
        if !self.scope.has_network(network) {
            return Ok(());
        }
        let id = self.id(NAME_NETWORK, &network.name)?;
        let scoped = Scoped::new(0, id);
        let external = if network.external { NETWORK_EXTERNAL } else { 0 };
        let flags = external | if network.routed { NETWORK_ROUTED } else { 0 };
        let value = vrouter_common::tables::Network { vni: network.vni, mtu: self.mtu(network), flags };
        self.out.image.networks.insert(NetworkKey { network: scoped }, value);
        self.out.image.vnis.insert(VniKey { vni: Scoped::new(0, network.vni) }, id);
        Ok(())
    }

    fn port(&mut self, port: &'a Port) -> Result<()> {
        let Some(&network) = self.networks.get(port.network.as_str()) else { return Ok(()) };
        if network.external || !self.scope.has_network(network) {
            return Ok(());
        }
        let network_id = self.id(NAME_NETWORK, &network.name)?;
        let port_id = self.id(NAME_PORT, &port.name)?;
        let (place, at) = self.place(port, port_id, network, network_id)?;
        let station = Station { mac: port.mac.0, kind: STATION_PORT, place, at, owner: port_id };
        self.out.image.fdb.insert(FdbKey::new(0, network_id, port.mac.0), station);
        let link_local = Ip::link_local_of(port.mac.0);
        for ip in port.fixed_ips.iter().copied().map(Ip::from).chain([link_local]) {
            self.out.image.addresses.insert(AddressKey::new(0, network_id, ip), station);
        }
        if station.is_here() {
            self.allowed(port, port_id, link_local);
        }
        Ok(())
    }

    /// Where a port is; binds it if it is here.
    fn place(
        &mut self,
        port: &'a Port,
        port_id: u32,
        network: &'a Network,
        network_id: u32,
    ) -> Result<(u8, u32)> {
        let (Some(node), Some(interface)) = (&port.node, &port.interface) else {
            return Ok((PLACE_UNBOUND, 0));
        };
        if *node != self.around.node {
            let id = *self
                .nodes
                .get(node.as_str())
                .with_context(|| format!("port {}: no node {node}", port.name))?;
            self.flood_nodes.entry(network_id).or_default().insert(id);
            return Ok((PLACE_REMOTE, id));
        }
        let plugged = self.around.interfaces.get(interface).copied();
        let xdp = port.hook == Hook::Xdp;
        self.out.local_ports.push(LocalPort {
            name: port.name.clone(),
            interface: interface.clone(),
            ifindex: plugged.map(|interface| interface.index),
            xdp,
        });
        let Some(Interface { index: ifindex, peer }) = plugged else {
            return Ok((PLACE_UNPLUGGED, 0));
        };
        let secured = if port.port_security { 0 } else { BINDING_NO_SECURITY };
        let flags = secured | self.serve(port, network, ifindex);
        let mtu = self.mtu(network);
        let binding = Binding {
            port: port_id,
            network: network_id,
            vni: network.vni,
            mtu,
            mac: port.mac.0,
            flags,
            policy: self.policy(port)?,
        };
        self.out.image.bindings.insert(BindingKey { ifindex: Scoped::new(0, ifindex) }, binding);
        self.flood_ports.entry(network_id).or_default().insert(port_id, ifindex);
        let place = match (xdp, peer) {
            // A packet processor's own programs see what comes in: nothing goes past them.
            (true, _) => PLACE_LOCAL_FRAMES,
            (false, true) => PLACE_LOCAL_PEER,
            (false, false) => PLACE_LOCAL,
        };
        Ok((place, ifindex))
    }

    fn allowed(&mut self, port: &Port, port_id: u32, link_local: Ip) {
        let mut allow = |mac: [u8; 6], ip: Ip, prefix_len: u32| {
            let key = AllowedKey {
                prefix_len: AllowedKey::FIXED_BITS + prefix_len,
                port: Scoped::new(0, port_id),
                mac,
                zero: 0,
                ip,
            };
            self.out.image.allowed.insert(key, 1);
        };
        for ip in port.fixed_ips.iter().copied().map(Ip::from).chain([link_local]) {
            allow(port.mac.0, ip, 128);
        }
        for pair in &port.allowed_address_pairs {
            let mac = pair.mac.unwrap_or(port.mac).0;
            for range in without_mapped(pair.ip) {
                allow(mac, Ip::from(range.network()), mapped_prefix_len(&range));
            }
        }
    }

    /// Addresses that whoever claims them has (of allowed address pairs, of ports bound nowhere) must be heard of
    /// on every node that routes to them, also where the network has no port.
    fn hear_claims(&mut self) -> Result<()> {
        let topology = self.topology;
        let mut hearers: BTreeSet<u32> = self.flood_nodes.values().flatten().copied().collect();
        for router in &topology.routers {
            if !self.scope.has_router(&router.name) {
                continue;
            }
            for carrier in self.scope.carriers(&router.name).to_vec() {
                if let Where::There(node, _) = self.node(carrier)? {
                    hearers.insert(node);
                }
            }
        }
        for port in &topology.ports {
            let claimed = !port.allowed_address_pairs.is_empty() || port.node.is_none();
            if claimed
                && let Some(&network) = self.networks.get(port.network.as_str())
                && !network.external
                && self.scope.has_network(network)
            {
                let network_id = self.id(NAME_NETWORK, &network.name)?;
                self.flood_nodes.entry(network_id).or_default().extend(&hearers);
            }
        }
        Ok(())
    }

    fn floods(&mut self) {
        for (&network, ports) in &self.flood_ports {
            let receivers = ports.iter().map(|(&port, &ifindex)| (FLOOD_LOCAL | (port + 1), ifindex));
            list(&mut self.out.image.floods, network, FLOOD_LOCAL, receivers);
        }
        for (&network, nodes) in &self.flood_nodes {
            let receivers = nodes.iter().map(|&node| (FLOOD_REMOTE | (node + 1), node));
            list(&mut self.out.image.floods, network, FLOOD_REMOTE, receivers);
        }
    }
}

/// Chains `receivers` (the cursor after each, and what it is) from `first` on.
fn list(
    floods: &mut BTreeMap<FloodKey, Flood>,
    network: u32,
    first: u32,
    receivers: impl Iterator<Item = (u32, u32)>,
) {
    let mut cursor = first;
    let mut last = None;
    for (next, at) in receivers {
        let key = FloodKey { network: Scoped::new(0, network), cursor };
        floods.insert(key, Flood { next, at });
        last = Some(key);
        cursor = next;
    }
    if let Some(last) = last.and_then(|key| floods.get_mut(&key)) {
        last.next = FLOOD_END;
    }
}

/// A prefix's length in the 128-bit space that holds IPv4 as mapped addresses.
fn mapped_prefix_len(net: &IpNet) -> u32 {
    match net {
        IpNet::V4(net) => 96 + u32::from(net.prefix_len()),
        IpNet::V6(net) => u32::from(net.prefix_len()),
    }
}

/// The length of the prefix that holds IPv4 as mapped addresses.
const ALL_V4_LEN: u32 = 96;

/// The range without the IPv4-mapped addresses that an IPv6 one such as `::/0` holds: nobody means IPv4 by it.
fn without_mapped(range: IpNet) -> Vec<IpNet> {
    let IpNet::V6(range) = range else { return vec![range] };
    let mapped = Ipv6Net::new_assert(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), ALL_V4_LEN as u8);
    if mapped.contains(&range) {
        return Vec::new();
    }
    if !range.contains(&mapped) {
        return vec![IpNet::V6(range)];
    }
    // On the way down to the mapped ones, everything that branches off.
    let branches = (range.prefix_len() + 1..=mapped.prefix_len()).map(|len| {
        let beside = mapped.addr().to_bits() ^ 1 << (128 - u32::from(len));
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(beside), len).trunc())
    });
    branches.collect()
}

fn overlay_mtu(around: &Surroundings) -> u32 {
    around.underlay_mtu.saturating_sub(u32::from(OVERLAY_OVERHEAD)).min(u32::from(u16::MAX))
}

/// Where nothing else is known.
const ETHERNET_MTU: u32 = 1500;

#[cfg(test)]
mod tests;
