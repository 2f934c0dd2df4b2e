//! Compiles a topology for one node: a pure function from names to what the data path looks up.
//!
//! Only what this node needs is compiled: the networks its ports are on, and everything routers connect to
//! them. Everything is in terms of [`Image`], the same structure the in-memory decision runs on.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context, Result};
use ipnet::IpNet;
use vrouter_common::{
    addr::{Be32, Ip},
    memory::Image,
    tables::*,
    wire::OVERLAY_OVERHEAD,
};

use crate::{
    identities::Identities,
    topology::{
        derive_router_mac,
        model::{Hook, Network, Port, RouteTarget, Router, Topology},
    },
};

/// What the compiler must know of the node besides the topology.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// This node's name.
    pub node: String,
    /// Interface indexes by name, as they are now.
    pub interfaces: HashMap<String, u32>,
    /// The underlay's MTU: the smallest of the uplinks'.
    pub underlay_mtu: u32,
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
    /// The other nodes.
    pub peers: BTreeMap<u32, Ipv4Addr>,
    /// Every number in use, by kind.
    pub used: BTreeSet<(u32, u32)>,
}

/// Compiles `topology`, which was validated, for the node of `around`.
pub fn compile(topology: &Topology, around: &Surroundings, ids: &mut Identities) -> Result<Compiled> {
    let mut compiler = Compiler::new(topology, around, ids)?;
    compiler.nodes()?;
    for network in compiler.needed.clone() {
        compiler.network(network)?;
    }
    for router in &topology.routers {
        compiler.router(router)?;
    }
    for port in &topology.ports {
        compiler.port(port)?;
    }
    compiler.floods();
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
    needed: Vec<&'a Network>,
    needed_names: HashSet<&'a str>,
    /// Receivers of broadcasts by network: interfaces by port number, and nodes.
    flood_ports: BTreeMap<u32, BTreeMap<u32, u32>>,
    flood_nodes: BTreeMap<u32, BTreeSet<u32>>,
    out: Compiled,
}

impl<'a> Compiler<'a> {
    fn new(topology: &'a Topology, around: &'a Surroundings, ids: &'a mut Identities) -> Result<Self> {
        let networks: HashMap<_, _> =
            topology.networks.iter().map(|network| (network.name.as_str(), network)).collect();
        let subnets: HashMap<_, _> = topology
            .networks
            .iter()
            .flat_map(|network| {
                network.subnets.iter().map(move |subnet| (subnet.name.as_str(), (network, subnet.cidr)))
            })
            .collect();
        let needed_names = reachable(topology, &subnets, &around.node);
        let needed = topology
            .networks
            .iter()
            .filter(|network| !network.external && needed_names.contains(network.name.as_str()))
            .collect();
        Ok(Self {
            topology,
            around,
            ids,
            networks,
            subnets,
            nodes: HashMap::new(),
            needed,
            needed_names,
            flood_ports: BTreeMap::new(),
            flood_nodes: BTreeMap::new(),
            out: Compiled::default(),
        })
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

    fn mtu(&self, network: &Network) -> u32 {
        let most =
            self.around.underlay_mtu.saturating_sub(u32::from(OVERLAY_OVERHEAD)).min(u32::from(u16::MAX));
        network.mtu.map_or(most, u32::from)
    }

    fn network(&mut self, network: &'a Network) -> Result<()> {
        let id = self.id(NAME_NETWORK, &network.name)?;
        let scoped = Scoped::new(0, id);
        let value = vrouter_common::tables::Network { vni: network.vni, mtu: self.mtu(network), flags: 0 };
        self.out.image.networks.insert(NetworkKey { network: scoped }, value);
        self.out.image.vnis.insert(VniKey { vni: Scoped::new(0, network.vni) }, id);
        Ok(())
    }

    fn router(&mut self, router: &Router) -> Result<()> {
        let on_needed = |compiler: &Self, subnet: &str| {
            compiler.subnets.get(subnet).is_some_and(|(network, _)| {
                !network.external && compiler.needed_names.contains(network.name.as_str())
            })
        };
        if !router.interfaces.iter().any(|interface| on_needed(self, &interface.subnet)) {
            return Ok(());
        }
        let router_id = self.id(NAME_ROUTER, &router.name)?;
        let mut connected = Vec::new();
        for interface in &router.interfaces {
            let Some(&(network, cidr)) = self.subnets.get(interface.subnet.as_str()) else { continue };
            let network_id = self.id(NAME_NETWORK, &network.name)?;
            connected.push((cidr, network_id));
            self.router_interface(router, router_id, network, network_id, cidr, interface.address);
        }
        for route in &router.routes {
            let (kind, nexthop) = match &route.target {
                RouteTarget::Blackhole => (ROUTE_BLACKHOLE, None),
                RouteTarget::Unreachable => (ROUTE_UNREACHABLE, None),
                RouteTarget::Nexthops(nexthops) => (ROUTE_VIA, nexthops.first().copied()),
            };
            let network = match nexthop {
                None => 0,
                Some(nexthop) => match connected.iter().find(|(cidr, _)| cidr.contains(&nexthop)) {
                    Some(&(_, network)) => network,
                    // Through the router's gateway: external networks are not forwarded to yet.
                    None => continue,
                },
            };
            let nexthop = nexthop.map_or(Ip::UNSPECIFIED, Ip::from);
            self.route(router_id, route.destination, Route { kind, network, nexthop });
        }
        Ok(())
    }

    fn router_interface(
        &mut self,
        router: &Router,
        router_id: u32,
        network: &Network,
        network_id: u32,
        cidr: IpNet,
        address: IpAddr,
    ) {
        let mac = derive_router_mac(&router.name, &network.name).0;
        let mtu = self.mtu(network);
        let link_local = Ip::link_local_of(mac);
        let key = RouterLegKey { router: Scoped::new(0, router_id), network: network_id };
        let leg = self.out.image.router_legs.entry(key).or_insert(RouterLeg {
            vni: network.vni,
            mtu,
            mac,
            flags: 0,
            v4: Ip::UNSPECIFIED,
            v6: link_local,
            snat_blocks: 0,
            zero: 0,
        });
        let ip = Ip::from(address);
        if ip.is_v4() {
            if leg.v4 == Ip::UNSPECIFIED {
                leg.v4 = ip;
            }
        } else if leg.v6 == link_local {
            leg.v6 = ip;
        }
        let station = Station { mac, kind: STATION_ROUTER, place: PLACE_EVERYWHERE, at: 0, owner: router_id };
        self.out.image.fdb.insert(FdbKey::new(0, network_id, mac), station);
        for ip in [ip, link_local] {
            self.out.image.addresses.insert(AddressKey::new(0, network_id, ip), station);
            let key = RouteKey::lookup(0, router_id, ip);
            self.out
                .image
                .routes
                .insert(key, Route { kind: ROUTE_SELF, network: 0, nexthop: Ip::UNSPECIFIED });
        }
        let connected = Route { kind: ROUTE_CONNECTED, network: network_id, nexthop: Ip::UNSPECIFIED };
        self.route(router_id, cidr, connected);
        if let IpNet::V4(cidr) = cidr
            && cidr.prefix_len() <= 30
        {
            for edge in [cidr.network(), cidr.broadcast()] {
                let key = RouteKey::lookup(0, router_id, Ip::from(IpAddr::V4(edge)));
                let broadcast =
                    Route { kind: ROUTE_BROADCAST, network: network_id, nexthop: Ip::UNSPECIFIED };
                self.out.image.routes.entry(key).or_insert(broadcast);
            }
        }
    }

    fn route(&mut self, router: u32, destination: IpNet, route: Route) {
        let key = RouteKey {
            prefix_len: RouteKey::FIXED_BITS + mapped_prefix_len(&destination),
            router: Scoped::new(0, router),
            dst: Ip::from(destination.network()),
        };
        // An address of the router's own wins over a static route to it.
        self.out.image.routes.entry(key).or_insert(route);
    }

    fn port(&mut self, port: &'a Port) -> Result<()> {
        let Some(&network) = self.networks.get(port.network.as_str()) else { return Ok(()) };
        if network.external || !self.needed_names.contains(network.name.as_str()) {
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
        if matches!(place, PLACE_LOCAL | PLACE_LOCAL_FRAMES) {
            self.allowed(port, port_id, link_local);
        }
        Ok(())
    }

    /// Where a port is; binds it if it is here.
    fn place(&mut self, port: &Port, port_id: u32, network: &Network, network_id: u32) -> Result<(u8, u32)> {
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
        let ifindex = self.around.interfaces.get(interface).copied();
        let xdp = port.hook == Hook::Xdp;
        self.out.local_ports.push(LocalPort {
            name: port.name.clone(),
            interface: interface.clone(),
            ifindex,
            xdp,
        });
        let Some(ifindex) = ifindex else {
            return Ok((PLACE_UNPLUGGED, 0));
        };
        let flags = if port.port_security { 0 } else { BINDING_NO_SECURITY };
        let mtu = self.mtu(network);
        let binding = Binding {
            port: port_id,
            network: network_id,
            vni: network.vni,
            mtu,
            mac: port.mac.0,
            flags,
            policy: 0,
        };
        self.out.image.bindings.insert(BindingKey { ifindex: Scoped::new(0, ifindex) }, binding);
        self.flood_ports.entry(network_id).or_default().insert(port_id, ifindex);
        Ok((if xdp { PLACE_LOCAL_FRAMES } else { PLACE_LOCAL }, ifindex))
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
            allow(mac, Ip::from(pair.ip.network()), mapped_prefix_len(&pair.ip));
        }
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

/// The networks `node`'s ports are on, and those that routers connect to them.
fn reachable<'a>(
    topology: &'a Topology,
    subnets: &HashMap<&'a str, (&'a Network, IpNet)>,
    node: &str,
) -> HashSet<&'a str> {
    let mut reached: HashSet<&str> = topology
        .ports
        .iter()
        .filter(|port| port.node.as_deref() == Some(node))
        .map(|port| port.network.as_str())
        .collect();
    let router_networks: Vec<Vec<&str>> = topology
        .routers
        .iter()
        .map(|router| {
            router
                .interfaces
                .iter()
                .filter_map(|interface| subnets.get(interface.subnet.as_str()))
                .filter(|(network, _)| !network.external)
                .map(|(network, _)| network.name.as_str())
                .collect()
        })
        .collect();
    loop {
        let before = reached.len();
        for networks in &router_networks {
            if networks.iter().any(|name| reached.contains(name)) {
                reached.extend(networks.iter().copied());
            }
        }
        if reached.len() == before {
            return reached;
        }
    }
}

#[cfg(test)]
mod tests;
