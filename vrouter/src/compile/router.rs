//! Routers: their legs on networks, and their routes.

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;
use vrouter_common::{addr::Ip, tables::*};

use super::{ALL_V4_LEN, Compiler, mapped_prefix_len};
use crate::topology::{
    derive_router_mac,
    model::{Network, RouteTarget, Router, StaticRoute},
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
            self.static_route(router_id, route, &connected);
        }
        if let Some(gateway) = &router.gateway {
            self.default_routes(router_id, gateway)?;
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

    fn static_route(&mut self, router_id: u32, route: &StaticRoute, connected: &[(IpNet, u32)]) {
        let (kind, nexthop) = match &route.target {
            RouteTarget::Blackhole => (ROUTE_BLACKHOLE, None),
            RouteTarget::Unreachable => (ROUTE_UNREACHABLE, None),
            RouteTarget::Nexthops(nexthops) => (ROUTE_VIA, nexthops.first().copied()),
        };
        let network = match nexthop {
            None => 0,
            Some(nexthop) => match connected.iter().find(|(cidr, _)| cidr.contains(&nexthop)) {
                Some(&(_, network)) => network,
                // Validation refuses it.
                None => return,
            },
        };
        let nexthop = nexthop.map_or(Ip::UNSPECIFIED, Ip::from);
        self.route(router_id, route.destination, Route { kind, network, nexthop });
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
