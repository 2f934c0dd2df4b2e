//! Router interfaces, gateways and static routes.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Check;
use crate::topology::decode::{Kind, label_of};
use crate::topology::model::{RouteTarget, Router, StaticRoute};
use crate::topology::ranges::{Overlapping, RangeIndex, listing, same_family, unusable};
use crate::topology::yaml::Step;

/// What one router is connected to, gathered while its parts are checked.
#[derive(Default)]
struct Legs {
    /// Places of the subnets of its interfaces.
    subnets: Vec<usize>,
    /// Places of the subnets of its external network that are of a family it has an address of there.
    outside: Vec<usize>,
    own_addresses: HashSet<IpAddr>,
    /// All subnets it has a leg on, those of the external network first.
    connected: RangeIndex,
    /// Everything it refers to is known, so that what is not here is missing.
    complete: bool,
}

impl Check<'_, '_> {
    pub(super) fn routers(&mut self) {
        self.routers_are_known =
            self.decoded.broken[Kind::Router].is_empty() && !self.twins[Kind::Router].contains(&true);
        // Routes need them; whether they are in order is looked at later.
        for (i, balancer) in self.topology.load_balancers.iter().enumerate() {
            if let Some(&network) = self.names[Kind::Network].get(balancer.network.as_str()) {
                self.vips.extend(balancer.vip_addresses.iter().map(|vip| ((network, *vip), i)));
            }
        }
        for (i, router) in self.topology.routers.iter().enumerate() {
            if self.is_twin(Kind::Router, i) {
                continue;
            }
            let mut legs = Legs { complete: true, ..Legs::default() };
            self.interfaces(i, router, &mut legs);
            self.router_gateway(i, router, &mut legs);
            legs.connected = self.connected(&legs);
            self.router_overlaps(i, router, &legs.connected);
            self.routes(i, router, &legs);
            self.routers_are_known &= legs.complete;
        }
    }

    fn interfaces(&mut self, index: usize, router: &Router, legs: &mut Legs) {
        let object = label_of(Kind::Router, &router.name);
        let mut seen = HashSet::new();
        for interface in &router.interfaces {
            let line = interface.line;
            let Some(place) = self.resolve(Kind::Subnet, &interface.subnet, line, &object) else {
                legs.complete = false;
                continue;
            };
            let network_index = self.subnets[place].network;
            let (network, subnet) = (self.network(network_index), self.subnet(place));
            let (name, address) = (&interface.subnet, interface.address);
            if !seen.insert(place) {
                let message = format!("subnet {name} is listed twice");
                self.report(line, object.clone(), message, "keep one of the two");
                continue;
            }
            if network.external {
                legs.complete = false;
                self.report(
                    line,
                    object.clone(),
                    format!("subnet {name} is on the external network {}", network.name),
                    format!("write `gateway: {{ network: {}, address: … }}` instead", network.name),
                );
                continue;
            }
            legs.subnets.push(place);
            legs.own_addresses.insert(address);
            if !subnet.cidr.contains(&address) {
                let message = format!("{address} is outside {} of subnet {name}", subnet.cidr);
                self.report(line, object.clone(), message, format!("use an address of {}", subnet.cidr));
                continue;
            }
            if let Some(what) = unusable(subnet.cidr, address) {
                let message = format!("{address} is the {what} of subnet {name}");
                self.report(line, object.clone(), message, format!("use another address of {}", subnet.cidr));
                continue;
            }
            match self.router_addresses.entry((network_index, address)) {
                Entry::Vacant(free) => {
                    free.insert(index);
                }
                Entry::Occupied(taken) => {
                    let other = &self.topology.routers[*taken.get()].name;
                    let message =
                        format!("{address} on network {} is router {other}'s already", network.name);
                    let remedy = format!("write `{{ subnet: {name}, address: … }}` with a free address");
                    self.report(line, object.clone(), message, remedy);
                }
            }
        }
    }

    fn router_gateway(&mut self, index: usize, router: &Router, legs: &mut Legs) {
        let Some(gateway) = &router.gateway else { return };
        let object = label_of(Kind::Router, &router.name);
        let line_of = |key| [Step::Field("gateway"), Step::Field(key)];
        let line = self.line(Kind::Router, index, &line_of("network"));
        let Some(network_index) = self.resolve(Kind::Network, &gateway.network, line, &object) else {
            legs.complete = false;
            return;
        };
        let network = self.network(network_index);
        if !network.external {
            legs.complete = false;
            self.report(
                line,
                object,
                format!("the gateway's network {} is not external", network.name),
                "use a network with `external: true`, or list its subnet under `interfaces`",
            );
            return;
        }
        if let Some(vrid) = gateway.vrrp.vrid
            && let Some(first) = self.vrids.insert((network_index, vrid), index)
        {
            let other = self.topology.routers[first].name.clone();
            let path = [Step::Field("gateway"), Step::Field("vrrp"), Step::Field("vrid")];
            self.report(
                self.line(Kind::Router, index, &path),
                object.clone(),
                format!("the VRID {vrid} is router {other}'s on network {} already", gateway.network),
                "give one of them another `vrid`, or leave it out: one that is free is taken then",
            );
        }
        let places = self.ranges[network_index].places();
        let is_spoken = |place: &usize| gateway.address(self.subnet(*place).cidr.addr().is_ipv6()).is_some();
        legs.outside = places.filter(is_spoken).collect();
        for (i, address) in gateway.addresses.iter().copied().enumerate() {
            legs.own_addresses.insert(address);
            let path = [Step::Field("gateway"), Step::Field("address"), Step::Item(i)];
            let line = self.line(Kind::Router, index, &path);
            if let Some((message, remedy)) = self.gateway_address(index, network_index, address) {
                self.report(line, object.clone(), message, remedy);
            }
        }
    }

    /// What is wrong with a router's address on its external network.
    fn gateway_address(&mut self, index: usize, network: usize, address: IpAddr) -> Option<(String, String)> {
        let Some((_, place)) = self.ranges[network].find(address).ok()? else {
            return Some(self.outside(address, network));
        };
        let subnet = self.subnet(place);
        let taken = unusable(subnet.cidr, address)
            .or_else(|| (subnet.gateway == Some(address)).then_some("next router's address"));
        if let Some(what) = taken {
            let message = format!("the gateway address {address} is the {what} of subnet {}", subnet.name);
            return Some((message, format!("use another address of {}", subnet.cidr)));
        }
        match self.gateway_addresses.entry((network, address)) {
            Entry::Vacant(free) => {
                free.insert(index);
                None
            }
            Entry::Occupied(taken) => {
                let other = &self.topology.routers[*taken.get()].name;
                let message = format!("the gateway address {address} is router {other}'s already");
                Some((message, "give each router an address of its own".to_owned()))
            }
        }
    }

    fn connected(&self, legs: &Legs) -> RangeIndex {
        self.index_of(legs.outside.iter().chain(&legs.subnets).copied())
    }

    /// Looks for overlaps between the networks a router joins; those within one are the network's own.
    fn router_overlaps(&mut self, index: usize, router: &Router, connected: &RangeIndex) {
        for (later, earlier) in connected.overlaps.iter().copied() {
            if self.subnets[later].network == self.subnets[earlier].network {
                continue;
            }
            let (subnet, other) = (self.subnet(later), self.subnet(earlier));
            let line = router
                .interfaces
                .iter()
                .find(|interface| interface.subnet == subnet.name)
                .map_or_else(|| self.line(Kind::Router, index, &[]), |interface| interface.line);
            let how = if subnet.cidr == other.cidr { "is the same range as" } else { "overlaps" };
            self.report(
                line,
                label_of(Kind::Router, &router.name),
                format!(
                    "{} of subnet {} {how} {} of subnet {}",
                    subnet.cidr, subnet.name, other.cidr, other.name
                ),
                "use one router for each, or give one of the subnets another range",
            );
        }
    }

    fn routes(&mut self, index: usize, router: &Router, legs: &Legs) {
        let mut destinations: HashMap<IpNet, usize> = HashMap::new();
        let connected: HashMap<IpNet, usize> = legs
            .subnets
            .iter()
            .chain(&legs.outside)
            .map(|place| (self.subnet(*place).cidr, *place))
            .collect();
        for (i, route) in router.routes.iter().enumerate() {
            let object = label_of(Kind::Router, &router.name);
            let destination = route.destination;
            let line = self.line(
                Kind::Router,
                index,
                &[Step::Field("routes"), Step::Item(i), Step::Field("destination")],
            );
            if let Some(first) = destinations.get(&destination) {
                let message = format!("there is a route to {destination} in line {first} already");
                self.report(
                    line,
                    object,
                    message,
                    "keep one; several next hops are a list: `nexthop: [a, b]`",
                );
                continue;
            }
            destinations.insert(destination, line);
            if let Some(place) = connected.get(&destination) {
                let name = &self.subnet(*place).name;
                let message = format!("the route to {destination} is the connected subnet {name}");
                self.report(line, object, message, "leave the route out, or route a narrower range");
                continue;
            }
            self.nexthops(index, i, route, &object, legs);
        }
    }

    fn nexthops(&mut self, index: usize, position: usize, route: &StaticRoute, object: &str, legs: &Legs) {
        let RouteTarget::Nexthops(nexthops) = &route.target else { return };
        let mut seen = HashSet::new();
        for (i, nexthop) in nexthops.iter().copied().enumerate() {
            let wrong = if !seen.insert(nexthop) {
                Some((format!("the next hop {nexthop} is listed twice"), "keep one of the two".to_owned()))
            } else if !same_family(nexthop, route.destination.addr()) {
                let message = format!("the next hop {nexthop} is not of the family of {}", route.destination);
                Some((message, "use a next hop of the destination's family".to_owned()))
            } else if legs.own_addresses.contains(&nexthop) {
                let message = format!("the next hop {nexthop} is the router's own address");
                Some((message, "use the address of the router or port that forwards on".to_owned()))
            } else {
                self.unreachable(nexthop, legs)
            };
            if let Some((message, remedy)) = wrong {
                let key = ["nexthop", "nexthops"];
                let line = key
                    .map(|key| {
                        let path =
                            [Step::Field("routes"), Step::Item(position), Step::Field(key), Step::Item(i)];
                        self.line(Kind::Router, index, &path)
                    })
                    .into_iter()
                    .max()
                    .unwrap_or(route.line);
                self.report(line, object, message, remedy);
            }
        }
    }

    /// Why a next hop cannot be on any link of the router.
    fn unreachable(&self, nexthop: IpAddr, legs: &Legs) -> Option<(String, String)> {
        match legs.connected.find(nexthop) {
            Ok(Some((_, place))) if self.network(self.subnets[place].network).routed => {
                let name = &self.network(self.subnets[place].network).name;
                let message = format!(
                    "the next hop {nexthop} is on the routed network {name}, where nobody is on the link"
                );
                Some((message, "leave the route out: what is reached there is learned by BGP".to_owned()))
            }
            Ok(Some((cidr, place))) => {
                if let Some(what) = unusable(cidr, nexthop) {
                    let message = format!("the next hop {nexthop} is the {what} of {cidr}");
                    return Some((message, "use the address of a host".to_owned()));
                }
                let balancer = self.vips.get(&(self.subnets[place].network, nexthop))?;
                let balancer = &self.topology.load_balancers[*balancer].name;
                let message = format!("the next hop {nexthop} is the VIP of load balancer {balancer}");
                let remedy = "use the address of the router or port that forwards on: a VIP forwards nothing";
                Some((message, remedy.to_owned()))
            }
            Ok(None) if legs.complete => {
                let hint = listing(legs.connected.cidrs());
                let remedy = if hint.is_empty() {
                    "add an interface on its subnet".to_owned()
                } else {
                    format!("use an address of {hint}, or add an interface on its subnet")
                };
                Some((format!("the next hop {nexthop} is in no subnet of the router"), remedy))
            }
            Ok(None) | Err(Overlapping) => None,
        }
    }
}
