//! What routers are to the outside: their gateways, floating IPs, port forwardings, and who has which ports of
//! their addresses.
//!
//! Every node works out by itself which node does what, from names alone, and all come to the same result:
//!
//! - a router's own addresses, addresses with port forwardings, and floating IPs of ports on nodes without an
//!   interface on the network, are answered for by one of the router's gateways: the only one, or the master of
//!   their virtual router (RFC 5798); on a routed network, by all;
//! - another floating IP by the node of its port;
//! - each block of ports of a router's IPv4 address belongs to one node, which uses it for SNAT.

use std::{collections::HashMap, net::IpAddr};

use anyhow::Result;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use vrouter_common::{
    addr::{Be16, Be32, Ip},
    tables::*,
};

use super::{Compiler, GatewayPeer, Translated, VirtualRouter, Where};
use crate::topology::{
    Rendezvous, derive_external_mac, derive_router_mac,
    model::{FloatingIp, LoadBalancer, Network, Port, Router, RouterGateway},
};

/// What translates for a port, as seen from one external network.
struct Inside<'a> {
    router: &'a Router,
    router_id: u32,
    port_id: u32,
    network_id: u32,
    address: Ip,
    place: Where<'a>,
}

impl<'a> Compiler<'a> {
    /// A router's leg on its external network, with the routes to its subnets.
    pub(super) fn gateway_leg(
        &mut self,
        router: &'a Router,
        router_id: u32,
        gateway: &RouterGateway,
        connected: &mut Vec<(IpNet, u32)>,
    ) -> Result<()> {
        let Some(&network) = self.networks.get(gateway.network.as_str()) else { return Ok(()) };
        let network_id = self.id(NAME_NETWORK, &network.name)?;
        let between_nodes = derive_external_mac(&router.name, &network.name, &self.around.node).0;
        let interface = self.around.externals.get(&network.name);
        // On a routed network who sends is known by the interface's address, which others learned by BGP.
        let own = interface.and_then(|interface| interface.mac).filter(|_| network.routed);
        let mac = own.unwrap_or(between_nodes);
        let link_local = Ip::link_local_of(mac);
        let address = |ipv6| gateway.address(ipv6).map(Ip::from);
        let blocks = self.snat_blocks(router, router_id, network_id, gateway)?;
        let snat = gateway.snat && address(false).is_some();
        let role = self.role(router, network);
        let owned = match role {
            Role::Alone => LEG_OWNED,
            Role::Shared(_) if self.around.liveness.mastered.contains(&router.name) => LEG_OWNED | LEG_SHARED,
            Role::Shared(_) => LEG_SHARED,
            Role::Routed => LEG_OWNED | LEG_SHARED,
            Role::None => 0,
        };
        let leg = RouterLeg {
            vni: network.vni,
            mtu: self.mtu(network),
            mac,
            flags: LEG_EXTERNAL | if snat { LEG_SNAT } else { 0 } | owned,
            v4: address(false).unwrap_or(Ip::UNSPECIFIED),
            v6: address(true).unwrap_or(link_local),
            snat_blocks: blocks,
            tunnel_mac: derive_router_mac(&router.name, &network.name).0,
            zero: 0,
        };
        self.out
            .image
            .router_legs
            .insert(RouterLegKey { router: Scoped::new(0, router_id), network: network_id }, leg);
        let station = here(mac, STATION_ROUTER, router_id);
        for mac in [between_nodes, leg.tunnel_mac] {
            self.out.image.fdb.insert(FdbKey::new(0, network_id, mac), station);
        }
        if own.is_some() {
            // The link-local address of it is the node's.
            let all = here(mac, STATION_ROUTER, ROUTER_BY_DESTINATION);
            self.out.image.fdb.insert(FdbKey::new(0, network_id, mac), all);
        } else {
            let station = if network.routed { unasked(station) } else { station };
            self.out.image.addresses.insert(AddressKey::new(0, network_id, link_local), station);
            self.own_address(router_id, link_local, 0);
        }
        for address in &gateway.addresses {
            self.own_address(router_id, Ip::from(*address), network_id);
        }
        if let Role::Shared(vrid) = role {
            self.virtual_router(router, (router_id, mac), (network, network_id), gateway, vrid);
        }
        // On a routed network nobody is on the link but routers.
        for subnet in network.subnets.iter().filter(|_| !network.routed) {
            if gateway.address(subnet.cidr.addr().is_ipv6()).is_some() {
                connected.push((subnet.cidr, network_id));
                self.connected(router_id, network_id, subnet.cidr);
            }
        }
        Ok(())
    }

    /// Everything else is behind the gateways of the subnets that the router has an address of.
    pub(super) fn default_routes(
        &mut self,
        router: &Router,
        router_id: u32,
        gateway: &RouterGateway,
    ) -> Result<()> {
        let Some(&network) = self.networks.get(gateway.network.as_str()) else { return Ok(()) };
        let network_id = self.id(NAME_NETWORK, &network.name)?;
        self.learned_routes(router, router_id, network, network_id)?;
        for address in &gateway.addresses {
            let subnet = network.subnets.iter().find(|subnet| subnet.cidr.contains(address));
            if let Some(nexthop) = subnet.and_then(|subnet| subnet.gateway) {
                let everything = match address.is_ipv6() {
                    true => IpNet::from(Ipv6Net::default()),
                    false => IpNet::from(Ipv4Net::default()),
                };
                let via = Route { kind: ROUTE_VIA, network: network_id, nexthop: Ip::from(nexthop) };
                self.route(router_id, everything, via);
            }
        }
        Ok(())
    }

    /// What a routing daemon has learned on a routed network; a node without an interface there has all of it behind
    /// the gateways.
    fn learned_routes(
        &mut self,
        router: &Router,
        router_id: u32,
        network: &Network,
        network_id: u32,
    ) -> Result<()> {
        /// More is for routers that forward the world's traffic.
        const MOST: usize = 1000;
        if !network.routed || router.gateway.as_ref().is_none_or(|gateway| gateway.addresses.is_empty()) {
            return Ok(());
        }
        let interface = self.around.externals.get(&network.name);
        if interface.is_none_or(|interface| interface.ifindex.is_none()) {
            for everything in [IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())] {
                let via = Route { kind: ROUTE_VIA, network: network_id, nexthop: Ip::UNSPECIFIED };
                self.route(router_id, everything, via);
            }
            return Ok(());
        }
        let around = self.around;
        let Some(learned) = around.learned.get(&network.name) else { return Ok(()) };
        if learned.len() > MOST && !self.crowded.contains(&network.name.as_str()) {
            self.crowded.push(&self.networks[network.name.as_str()].name);
        }
        // Shorter ones first: what is left out is covered by them, or was not reachable anyway.
        let mut routes: Vec<(&IpNet, &Vec<IpAddr>)> = learned.iter().collect();
        routes.sort_by_key(|(destination, _)| destination.prefix_len());
        for (destination, nexthops) in routes.into_iter().take(MOST) {
            match nexthops[..] {
                [] => {}
                [nexthop] => {
                    let via = Route { kind: ROUTE_VIA, network: network_id, nexthop: Ip::from(nexthop) };
                    self.route(router_id, *destination, via);
                }
                _ => {
                    let name = format!("{} {destination}", network.name);
                    let on: Vec<(u32, IpAddr)> =
                        nexthops.iter().map(|nexthop| (network_id, *nexthop)).collect();
                    let group = self.group(&name, &on)?;
                    let multi = Route { kind: ROUTE_MULTI, network: group, nexthop: Ip::UNSPECIFIED };
                    self.route(router_id, *destination, multi);
                }
            }
        }
        Ok(())
    }

    /// Shares the ports of a router's address out; returns how many slots this node has.
    fn snat_blocks(
        &mut self,
        router: &'a Router,
        router_id: u32,
        network_id: u32,
        gateway: &RouterGateway,
    ) -> Result<u32> {
        let mut slot = 0;
        let (first, last) = gateway.snat_ports;
        if let (true, Some(IpAddr::V4(address))) = (gateway.snat, gateway.address(false)) {
            let translated = Translated {
                router_id,
                address,
                blocks: (u32::from(first) / SNAT_BLOCK, u32::from(last) / SNAT_BLOCK),
                is_needed: self.scope.is_near(&router.name),
            };
            self.out.translated.insert(router.name.clone(), translated);
        }
        let retiring = |block| {
            let shares = self.around.shares.as_ref();
            shares.is_some_and(|shares| shares.retiring.contains(&(router.name.clone(), block)))
        };
        for (block, owner) in self.block_owners(router, gateway)? {
            if matches!(owner, Where::Here) && !retiring(block) {
                let start = (block * SNAT_BLOCK) as u16;
                let end = start + (SNAT_BLOCK - 1) as u16;
                let key = SnatBlockKey { router: Scoped::new(0, router_id), network: network_id, slot };
                let block = SnatBlock { first: start.max(first), last: end.min(last) };
                self.out.image.snat_blocks.insert(key, block);
                slot += 1;
            }
        }
        // What is leased comes when it is needed.
        let is_fixed = self.around.shares.is_none();
        if is_fixed && gateway.snat && gateway.address(false).is_some() && slot == 0 {
            self.without_ports.push(&router.name);
        }
        Ok(slot)
    }

    /// Says which routers are of no use to this node's ports.
    pub(super) fn warn(&mut self) {
        const LISTED: usize = 4;
        for name in &self.off_network {
            self.out.warnings.push(format!(
                "network {name}: the topology has this node among its gateways, and the agent has no interface on it: start \
                 the agent with --external {name}=INTERFACE, or write `external_networks: [...]` without it for the node"
            ));
        }
        for name in &self.crowded {
            self.out.warnings.push(format!(
                "network {name}: more than 1000 routes are learned there, and those with the longest prefixes are not used: \
                 have the routing daemon accept a default route, or summaries"
            ));
        }
        for name in &self.superfluous {
            self.out.warnings.push(format!(
                "network {name}: the agent has an interface on it, and by the topology the node has none, so that others \
                 carry for it: add the network to the node's external_networks, or start the agent without the interface"
            ));
        }
        let names = &self.without_ports;
        let (routers, more) = match names[..] {
            [] => return,
            [_] => ("router", String::new()),
            _ if names.len() <= LISTED => ("routers", String::new()),
            _ => ("routers", format!(" and {} more", names.len() - LISTED)),
        };
        self.out.warnings.push(format!(
            "{routers} {}{more}: of the ports of the external address no block of {SNAT_BLOCK} is this node's, so that its \
             workloads reach outside by floating ips alone; widen snat_ports, or use more routers",
            names[..names.len().min(LISTED)].join(", ")
        ));
    }

    /// The blocks of ports that SNAT may use, and whose they are.
    fn block_owners(&self, router: &Router, gateway: &RouterGateway) -> Result<Vec<(u32, Where<'a>)>> {
        if !gateway.snat || gateway.address(false).is_none() {
            return Ok(Vec::new());
        }
        let (first, last) = gateway.snat_ports;
        let blocks = u32::from(first) / SNAT_BLOCK..u32::from(last) / SNAT_BLOCK + 1;
        if let Some(shares) = &self.around.shares {
            let held = shares.holders.get(&router.name);
            // Of a node that is gone: nobody's.
            let is_known = |node: &&str| self.node_of.contains_key(node);
            let owned = blocks.filter_map(|block| {
                let node = held?.get(&block).map(String::as_str).filter(is_known)?;
                Some((block, self.node_of.get_key_value(node).map(|(name, _)| *name)?))
            });
            return owned.map(|(block, node)| Ok((block, self.node(node)?))).collect();
        }
        // Part 0 of a router is its ownership.
        let owners = self.sharing.shares(&router.name, blocks.start + 1..blocks.end + 1);
        blocks.zip(owners).map(|(block, at)| Ok((block, self.node(&self.topology.nodes[at].name)?))).collect()
    }

    /// What is to be known of addresses on the external networks, whoever's they are.
    pub(super) fn outside(&mut self) -> Result<()> {
        let topology = self.topology;
        for (name, interface) in &self.around.externals {
            let Some(&network) = self.networks.get(name.as_str()) else { continue };
            if let Some(ifindex) = interface.ifindex.filter(|_| network.external) {
                self.out.externals.push(External { ifindex, vni: network.vni, flags: 0 });
            }
        }
        for router in &topology.routers {
            if let Some(gateway) = &router.gateway {
                self.gateway_addresses(router, gateway)?;
            }
        }
        if topology.floating_ips.is_empty() {
            return Ok(());
        }
        let ports: HashMap<&str, &Port> =
            topology.ports.iter().map(|port| (port.name.as_str(), port)).collect();
        let balancers: HashMap<&str, &LoadBalancer> =
            topology.load_balancers.iter().map(|it| (it.name.as_str(), it)).collect();
        for floating_ip in &topology.floating_ips {
            let Some(network) = self.translators.external(floating_ip.address) else { continue };
            if !self.scope.has_network(network) {
                continue;
            }
            let network_id = self.id(NAME_NETWORK, &network.name)?;
            if let Some(balancer) = &floating_ip.load_balancer {
                if let Some(&balancer) = balancers.get(balancer.as_str()) {
                    self.balanced(floating_ip, balancer, network, network_id)?;
                }
                continue;
            }
            match floating_ip.port.as_ref().and_then(|name| ports.get(name.as_str())) {
                Some(port) => self.floating_ip(floating_ip, port, network, network_id)?,
                None => self.port_forwardings(floating_ip, &ports, network, network_id)?,
            }
        }
        Ok(())
    }

    fn gateway_addresses(&mut self, router: &'a Router, gateway: &RouterGateway) -> Result<()> {
        let Some(&network) = self.networks.get(gateway.network.as_str()) else { return Ok(()) };
        if !self.scope.has_network(network) || self.scope.carriers(&router.name).is_empty() {
            return Ok(());
        }
        let network_id = self.id(NAME_NETWORK, &network.name)?;
        let router_id = self.id(NAME_ROUTER, &router.name)?;
        for address in &gateway.addresses {
            let station = self.carried(STATION_ROUTER, router, router_id, network, address.is_ipv6())?;
            self.out.image.addresses.insert(AddressKey::new(0, network_id, Ip::from(*address)), station);
        }
        let Some(address) = gateway.address(false) else { return Ok(()) };
        for (block, owner) in self.block_owners(router, gateway)? {
            if let Where::There(node, name) = owner {
                let mac = derive_external_mac(&router.name, &network.name, name).0;
                let key = SnatOwnerKey {
                    network: Scoped::new(0, network_id),
                    ip: Be32::from_memory(Ip::from(address).0[3]),
                    block,
                };
                self.out.image.snat_owners.insert(key, SnatOwner { node, mac, zero: 0 });
            }
        }
        Ok(())
    }

    /// Somebody of a router's on an external network, as seen from here.
    fn station(
        &self,
        kind: u8,
        router: &Router,
        router_id: u32,
        network: &Network,
        place: Where<'a>,
    ) -> Station {
        let mac_of = |node: &str| derive_external_mac(&router.name, &network.name, node).0;
        match place {
            Where::Here if network.routed => unasked(here(mac_of(&self.around.node), kind, router_id)),
            Where::Here => here(mac_of(&self.around.node), kind, router_id),
            Where::There(at, node) => {
                Station { mac: mac_of(node), kind, place: PLACE_REMOTE, at, owner: router_id }
            }
            Where::Nowhere => Station { mac: [0; 6], kind, place: PLACE_UNBOUND, at: 0, owner: router_id },
        }
    }

    /// What this node is to a router outside.
    fn role(&self, router: &Router, network: &Network) -> Role {
        let carriers = self.scope.carriers(&router.name);
        let here = carriers.contains(&self.around.node.as_str());
        match (network.routed, carriers.len()) {
            _ if !here => Role::None,
            (true, _) => Role::Routed,
            (false, 1) => Role::Alone,
            // Without a number to agree by, the first.
            (false, _) => match self.vrids.get(&router.name) {
                Some(vrid) => Role::Shared(vrid),
                None if carriers.first() == Some(&self.around.node.as_str()) => Role::Alone,
                None => Role::None,
            },
        }
    }

    /// Whether a node has an interface on an external network.
    fn reaches(&self, node: &str, network: &Network) -> bool {
        self.node_of.get(node).is_some_and(|node| node.reaches(&network.name))
    }

    /// Somebody who is carried for, on an external network, by whichever gateway does it at the moment.
    pub(super) fn carried(
        &self,
        kind: u8,
        router: &Router,
        router_id: u32,
        network: &Network,
        ipv6: bool,
    ) -> Result<Station> {
        Ok(match self.role(router, network) {
            Role::Alone | Role::Routed => self.station(kind, router, router_id, network, Where::Here),
            Role::Shared(vrid) => Station {
                mac: virtual_mac(vrid, ipv6),
                kind,
                place: PLACE_SHARED,
                at: u32::from(vrid),
                owner: router_id,
            },
            Role::None => {
                let dead = &self.around.liveness.dead_gateways;
                let is_alive = |name: &&&str| !dead.contains(&(network.name.clone(), (**name).to_owned()));
                let carriers = self.scope.carriers(&router.name);
                match carriers.iter().find(is_alive).or(carriers.first()) {
                    Some(name) => self.station(kind, router, router_id, network, self.node(name)?),
                    None => self.station(kind, router, router_id, network, Where::Nowhere),
                }
            }
        })
    }

    /// The virtual routers, one of each family, by which the gateways agree who answers for the addresses of a router.
    fn virtual_router(
        &mut self,
        router: &Router,
        (router_id, leg_mac): (u32, [u8; 6]),
        (network, network_id): (&Network, u32),
        gateway: &RouterGateway,
        vrid: u8,
    ) {
        let carriers = self.scope.carriers(&router.name).to_vec();
        let rank = carriers.iter().position(|name| *name == self.around.node).unwrap_or(carriers.len());
        for address in &gateway.addresses {
            let ipv6 = address.is_ipv6();
            let mac = virtual_mac(vrid, ipv6);
            let station = Station {
                mac,
                kind: STATION_ROUTER,
                place: PLACE_SHARED,
                at: u32::from(vrid),
                owner: router_id,
            };
            self.out.image.fdb.insert(FdbKey::new(0, network_id, mac), station);
            let mut addresses = vec![*address];
            if ipv6 {
                // RFC 5798, 5.2.9: a link-local address comes first.
                let link_local = Ip::link_local_of(mac);
                addresses.insert(0, IpAddr::from(link_local));
                self.out.image.addresses.insert(AddressKey::new(0, network_id, link_local), station);
                self.own_address(router_id, link_local, 0);
            }
            self.out.virtual_routers.push(VirtualRouter {
                router: router.name.clone(),
                router_id,
                network: network.name.clone(),
                network_id,
                vrid,
                ipv6,
                priority: PRIORITY_FIRST.saturating_sub(PRIORITY_STEP * rank as u8),
                addresses,
                interval_ms: gateway.vrrp.interval_ms,
                preempt: gateway.vrrp.preempt,
                mac: leg_mac,
                carriers: carriers.iter().map(|&name| name.to_owned()).collect(),
            });
        }
    }

    /// By whom this node reaches the external networks on which it has no interface.
    pub(super) fn gateways(&mut self) -> Result<()> {
        let topology = self.topology;
        for network in topology.networks.iter().filter(|network| network.external) {
            if !self.scope.has_network(network) {
                continue;
            }
            let on: Vec<&'a str> = self.carriers.on(&network.name).to_vec();
            if network.routed && self.around.externals.contains_key(&network.name) {
                let network_id = self.id(NAME_NETWORK, &network.name)?;
                let own = self.out.image.addresses.iter().filter(|(key, station)| {
                    key.network.id() == network_id
                        && station.place == PLACE_SHARED
                        && !key.ip.is_v6_link_local()
                });
                let own = own.map(|(key, _)| IpAddr::from(key.ip)).collect();
                self.out.announced.insert(network.name.clone(), own);
            }
            let has_interface = self.around.externals.contains_key(&network.name);
            if on.contains(&self.around.node.as_str()) {
                if has_interface {
                    self.out.carried.insert(network.name.clone(), network.vni);
                } else {
                    self.off_network.push(&network.name);
                }
            }
            if has_interface && !self.reaches(&self.around.node, network) {
                self.superfluous.push(&network.name);
            }
            let interface = self.around.externals.get(&network.name);
            if interface.is_some_and(|interface| interface.ifindex.is_some()) {
                continue;
            }
            let others: Vec<&'a str> = on.iter().copied().filter(|name| *name != self.around.node).collect();
            if others.is_empty() {
                continue;
            }
            for &name in &others {
                let vtep = self.node_of.get(name).map(|node| node.vtep);
                self.out.gateways.extend(vtep.map(|vtep| GatewayPeer {
                    network: network.name.clone(),
                    vni: network.vni,
                    node: name.to_owned(),
                    vtep,
                }));
            }
            // If none seems to be alive, it may be this node that hears nothing: better to try than not.
            let dead = &self.around.liveness.dead_gateways;
            let is_alive = |name: &&&str| !dead.contains(&(network.name.clone(), (**name).to_owned()));
            let alive: Vec<&'a str> = others.iter().filter(is_alive).copied().collect();
            let usable = if alive.is_empty() { others } else { alive };
            let network_id = self.id(NAME_NETWORK, &network.name)?;
            let shares = Rendezvous::among(usable.iter().copied());
            for slot in 0..SLOTS {
                let Some(at) = shares.owner(&network.name, slot) else { continue };
                if let Where::There(node, _) = self.node(usable[at])? {
                    let key = GatewayKey { network: Scoped::new(0, network_id), slot };
                    self.out.image.gateways.insert(key, node);
                }
            }
        }
        Ok(())
    }

    fn floating_ip(
        &mut self,
        floating_ip: &FloatingIp,
        port: &'a Port,
        network: &'a Network,
        network_id: u32,
    ) -> Result<()> {
        let Some(inside) = self.inside(floating_ip, port, network)? else { return Ok(()) };
        let outside = Ip::from(floating_ip.address);
        let mut station =
            self.station(STATION_FLOATING, inside.router, inside.router_id, network, inside.place);
        if let Where::There(_, name) = inside.place
            && !self.reaches(name, network)
        {
            let (router, router_id) = (inside.router, inside.router_id);
            station =
                self.carried(STATION_FLOATING, router, router_id, network, floating_ip.address.is_ipv6())?;
        }
        if station.place == PLACE_UNBOUND {
            // Whoever holds the fixed ip: this node, if that is here.
            let here = self.station(STATION_FLOATING, inside.router, inside.router_id, network, Where::Here);
            station = Station { place: PLACE_LEARNED, ..here };
        }
        self.out.image.addresses.insert(AddressKey::new(0, network_id, outside), station);
        if self.scope.has_router(&inside.router.name) {
            let key = FloatingKey { router: Scoped::new(0, inside.router_id), ip: inside.address };
            self.out.image.floating.insert(key, Floating { ip: outside });
        }
        self.nat(network, network_id, outside, (0, 0), &inside, 0);
        Ok(())
    }

    fn port_forwardings(
        &mut self,
        floating_ip: &FloatingIp,
        ports: &HashMap<&str, &'a Port>,
        network: &'a Network,
        network_id: u32,
    ) -> Result<()> {
        let outside = Ip::from(floating_ip.address);
        let mut router = None;
        for forwarding in &floating_ip.port_forwardings {
            let Some(port) = ports.get(forwarding.port.as_str()) else { continue };
            let Some(inside) = self.inside(floating_ip, port, network)? else { continue };
            router = router.or(Some((inside.router, inside.router_id)));
            let at = (forwarding.external_port, forwarding.protocol);
            self.nat(network, network_id, outside, at, &inside, forwarding.internal_port);
        }
        // Without forwardings the address is nobody's.
        let Some((router, router_id)) = router else { return Ok(()) };
        let station =
            self.carried(STATION_FLOATING, router, router_id, network, floating_ip.address.is_ipv6())?;
        self.out.image.addresses.insert(AddressKey::new(0, network_id, outside), station);
        if self.scope.has_router(&router.name) {
            self.own_address(router_id, outside, network_id);
        }
        Ok(())
    }

    /// Who translates between a port and an external network.
    fn inside(
        &mut self,
        floating_ip: &FloatingIp,
        port: &'a Port,
        network: &Network,
    ) -> Result<Option<Inside<'a>>> {
        let Some(address) = floating_ip.inside(port) else { return Ok(None) };
        let Some(subnet) = self.translators.subnet(&port.network, address) else { return Ok(None) };
        let Some(router) = self.translators.between(&subnet.name, &network.name) else { return Ok(None) };
        let place = match (&port.node, &port.interface) {
            (Some(node), Some(_)) => self.node(node)?,
            _ => Where::Nowhere,
        };
        Ok(Some(Inside {
            router,
            router_id: self.id(NAME_ROUTER, &router.name)?,
            port_id: self.id(NAME_PORT, &port.name)?,
            network_id: self.id(NAME_NETWORK, &port.network)?,
            address: Ip::from(address),
            place,
        }))
    }

    /// Leads an address outside, or a port and protocol of it, to a workload: one that is bound nowhere, to
    /// whoever claims its address.
    fn nat(
        &mut self,
        network: &Network,
        network_id: u32,
        outside: Ip,
        (port, proto): (u16, u8),
        inside: &Inside<'a>,
        inside_port: u16,
    ) {
        let mac_on = |node: &str| derive_external_mac(&inside.router.name, &network.name, node).0;
        let (node, mac) = match inside.place {
            Where::Here => (0, mac_on(&self.around.node)),
            Where::There(node, name) => (node, mac_on(name)),
            Where::Nowhere => (NODE_LEARNED, derive_router_mac(&inside.router.name, &network.name).0),
        };
        let key = NatKey {
            network: Scoped::new(0, network_id),
            ip: outside,
            port: Be16::new(port),
            proto,
            zero: 0,
        };
        let value = Nat {
            inside: inside.address,
            router: inside.router_id,
            port: inside.port_id,
            node,
            inside_port: Be16::new(inside_port),
            inside_network: inside.network_id,
            mac,
        };
        self.out.image.nat.insert(key, value);
    }
}

/// On a routed network: of an address that nobody asks for on the link. No virtual router has this number.
fn unasked(station: Station) -> Station {
    Station { place: PLACE_SHARED, at: 0, ..station }
}

/// What a node is to a router outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It does not answer for it.
    None,
    /// It alone does.
    Alone,
    /// It does if it is the master of the virtual router of this number.
    Shared(u8),
    /// It does, as every gateway; nobody asks who has an address.
    Routed,
}

/// The priority of a router's first gateway; 255 is for who has the address anyway (RFC 5798, 5.2.4).
const PRIORITY_FIRST: u8 = 250;
/// And how much less each further one has.
const PRIORITY_STEP: u8 = 10;

/// A virtual router's hardware address (RFC 5798, 7.3).
pub fn virtual_mac(vrid: u8, ipv6: bool) -> [u8; 6] {
    [0, 0, 0x5e, 0, if ipv6 { 2 } else { 1 }, vrid]
}

fn here(mac: [u8; 6], kind: u8, owner: u32) -> Station {
    Station { mac, kind, place: PLACE_EVERYWHERE, at: 0, owner }
}
