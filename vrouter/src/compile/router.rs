//! Routers: their legs on networks, and their routes.

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;
use vrouter_common::{addr::Ip, tables::*};

use super::{ALL_V4_LEN, Compiler, mapped_prefix_len};
use crate::topology::{
    Rendezvous, derive_router_mac,
    model::{Network, Port, RouteTarget, Router, StaticRoute},
};

impl<'a> Compiler<'a> {
    pub(super) fn router(&mut self, router: &'a Router) -> Result<()> {
        if !self.scope.has_router(&router.name) {
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
        if let Some(gateway) = &router.gateway {
            self.gateway_leg(router, router_id, gateway, &mut connected)?;
        }
        for route in &router.routes {
            self.static_route(router, router_id, route, &connected)?;
        }
        if let Some(gateway) = &router.gateway {
            self.default_routes(router, router_id, gateway)?;
        }
        self.keep_families_apart(router_id);
        Ok(())
    }

    /// In the trie IPv4 lies inside of `::/0`, and of a few longer prefixes: none of them is a route to it.
    fn keep_families_apart(&mut self, router_id: u32) {
        let all_v4 = RouteKey {
            prefix_len: RouteKey::FIXED_BITS + ALL_V4_LEN,
            router: Scoped::new(0, router_id),
            dst: Ip::V4_UNSPECIFIED,
        };
        let around = (0..ALL_V4_LEN).map(|len| RouteKey {
            prefix_len: RouteKey::FIXED_BITS + len,
            // Up to the bits that say "IPv4", its addresses begin with zeroes.
            dst: if len > 80 {
                Ip([0, 0, (u32::MAX << (96 - len) & 0xffff).to_be(), 0])
            } else {
                Ip::UNSPECIFIED
            },
            ..all_v4
        });
        if around.into_iter().any(|key| self.out.image.routes.contains_key(&key)) {
            let none = Route { kind: ROUTE_NONE, network: 0, nexthop: Ip::UNSPECIFIED };
            self.out.image.routes.entry(all_v4).or_insert(none);
        }
    }

    fn static_route(
        &mut self,
        router: &Router,
        router_id: u32,
        route: &StaticRoute,
        connected: &[(IpNet, u32)],
    ) -> Result<()> {
        let nexthops = match &route.target {
            RouteTarget::Blackhole | RouteTarget::Unreachable => {
                let kind =
                    if route.target == RouteTarget::Blackhole { ROUTE_BLACKHOLE } else { ROUTE_UNREACHABLE };
                self.route(
                    router_id,
                    route.destination,
                    Route { kind, network: 0, nexthop: Ip::UNSPECIFIED },
                );
                return Ok(());
            }
            RouteTarget::Nexthops(nexthops) => nexthops,
        };
        // Validation refuses what is on no network of the router.
        let on = |nexthop: &IpAddr| {
            let (_, network) = connected.iter().find(|(cidr, _)| cidr.contains(nexthop))?;
            Some((*network, *nexthop))
        };
        let nexthops: Vec<(u32, IpAddr)> = nexthops.iter().filter_map(on).collect();
        match nexthops[..] {
            [] => {}
            [(network, nexthop)] => {
                let via = Route { kind: ROUTE_VIA, network, nexthop: Ip::from(nexthop) };
                self.route(router_id, route.destination, via);
            }
            _ => {
                let name = format!("{} {}", router.name, route.destination);
                let group = self.group(&name, &nexthops)?;
                let multi = Route { kind: ROUTE_MULTI, network: group, nexthop: Ip::UNSPECIFIED };
                self.route(router_id, route.destination, multi);
            }
        }
        Ok(())
    }

    /// Deals the slots of a group of next hops out to those that are alive. Every node does it alike, as far as it
    /// knows the same of them.
    pub(super) fn group(&mut self, name: &str, nexthops: &[(u32, IpAddr)]) -> Result<u32> {
        let group = self.id(NAME_GROUP, name)?;
        let mut alive = Vec::new();
        for &(network, nexthop) in nexthops {
            if self.is_external(network) {
                self.out.watched.insert((network, Ip::from(nexthop)));
            }
            if self.is_alive(network, nexthop)? {
                alive.push((network, nexthop));
            }
        }
        // If none is, each says for itself why it cannot be reached.
        let usable = if alive.is_empty() { nexthops } else { &alive };
        let names: Vec<String> = usable.iter().map(|(_, nexthop)| nexthop.to_string()).collect();
        let shares = Rendezvous::among(names.iter().map(String::as_str));
        for slot in 0..SLOTS {
            let Some(at) = shares.owner(name, slot) else { continue };
            let (network, nexthop) = usable[at];
            let key = MemberKey { group: Scoped::new(0, group), slot };
            self.out.image.members.insert(key, Member { network, nexthop: Ip::from(nexthop) });
        }
        Ok(group)
    }

    fn is_external(&self, network: u32) -> bool {
        let key = NetworkKey { network: Scoped::new(0, network) };
        self.out.image.networks.get(&key).is_some_and(|network| network.flags & NETWORK_EXTERNAL != 0)
    }

    /// Whether a next hop is known to be of no use: it does not answer, its port is bound nowhere or unplugged, or
    /// the node of its port is gone.
    fn is_alive(&mut self, network: u32, nexthop: IpAddr) -> Result<bool> {
        let Some(name) = self.ids.name(NAME_NETWORK, network).map(str::to_owned) else { return Ok(true) };
        if self.around.liveness.dead_nexthops.contains(&(name.clone(), nexthop)) {
            return Ok(false);
        }
        let topology = self.topology;
        let ports = self.port_at.get_or_insert_with(|| {
            let of =
                |port: &'a Port| port.fixed_ips.iter().map(move |ip| ((port.network.as_str(), *ip), port));
            topology.ports.iter().flat_map(of).collect()
        });
        let Some(&port) = ports.get(&(name.as_str(), nexthop)) else { return Ok(true) };
        Ok(match (&port.node, &port.interface) {
            (Some(node), Some(interface)) if *node == self.around.node => {
                self.around.interfaces.contains_key(interface)
            }
            (Some(_), Some(_)) => true,
            _ => false,
        })
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
            tunnel_mac: [0; 6],
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
            self.own_address(router_id, ip, 0);
        }
        self.connected(router_id, network_id, cidr);
    }

    /// The router itself has an address, which wins over whatever else is said of it.
    pub(super) fn own_address(&mut self, router_id: u32, ip: Ip, external: u32) {
        let route = Route { kind: ROUTE_SELF, network: external, nexthop: Ip::UNSPECIFIED };
        self.out.image.routes.insert(RouteKey::lookup(0, router_id, ip), route);
    }

    /// Routes to a subnet the router has a leg on.
    pub(super) fn connected(&mut self, router_id: u32, network_id: u32, cidr: IpNet) {
        let connected = Route { kind: ROUTE_CONNECTED, network: network_id, nexthop: Ip::UNSPECIFIED };
        self.route(router_id, cidr, connected);
        if let IpNet::V4(cidr) = cidr
            && cidr.prefix_len() <= 30
        {
            for edge in [cidr.network(), cidr.broadcast()] {
                let broadcast = Route { kind: ROUTE_BROADCAST, ..connected };
                self.route(router_id, IpNet::from(IpAddr::V4(edge)), broadcast);
            }
        }
    }

    pub(super) fn route(&mut self, router: u32, destination: IpNet, route: Route) {
        let key = RouteKey {
            prefix_len: RouteKey::FIXED_BITS + mapped_prefix_len(&destination),
            router: Scoped::new(0, router),
            dst: Ip::from(destination.network()),
        };
        // What was said first counts: an address of the router's own wins over a static route to it.
        self.out.image.routes.entry(key).or_insert(route);
    }
}
