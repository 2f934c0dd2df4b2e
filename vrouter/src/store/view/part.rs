//! Which objects are for the node: the closure from its ports and external interfaces.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use ipnet::IpNet;

use super::{Item, View};
use crate::{
    store::keys::ObjectName,
    topology::{
        Carriers, Kind, Parts, Single,
        model::{DEFAULT_GROUP, LoadBalancer, Network, Node, Port, Remote, Router, SecurityGroup},
    },
};

/// What the node's part is made of.
#[derive(Debug, Default)]
pub struct Part {
    /// Every object in it.
    pub names: HashSet<ObjectName>,
    /// Referred to, and not there.
    missing: HashSet<ObjectName>,
    /// Networks of which every port is in it.
    pub networks: HashSet<String>,
    /// External networks of which every router and floating IP is in it.
    pub externals: HashSet<String>,
    /// Their subnets.
    external_ranges: Vec<IpNet>,
    /// Groups of which every member is in it.
    members: HashSet<String>,
    /// The networks of the subnets in it.
    subnets: HashMap<String, String>,
}

impl Part {
    /// The object that a problem is about, by what the problem calls it.
    pub fn blamed(&self, label: &str) -> Option<ObjectName> {
        let mut kinds: Vec<Kind> = Kind::objects().chain([Kind::Subnet]).collect();
        // `port` begins no other kind's noun, but be sure: the longest first.
        kinds.sort_by_key(|kind| std::cmp::Reverse(kind.noun().len()));
        let (kind, rest) = kinds
            .into_iter()
            .find_map(|kind| Some((kind, label.strip_prefix(kind.noun())?.strip_prefix(' ')?)))?;
        // Names have no spaces; what follows is a part of the object.
        let name = rest.split(' ').next()?;
        if kind == Kind::Subnet {
            return Some(ObjectName::new(Kind::Network, self.subnets.get(name)?.as_str()));
        }
        Some(ObjectName::new(kind, name))
    }
}

/// The part while it is collected.
struct Collector<'v> {
    view: &'v View,
    earlier: &'v HashSet<ObjectName>,
    left_out: &'v HashSet<ObjectName>,
    part: Part,
    networks: BTreeMap<&'v str, (&'v Network, bool)>,
    routers: BTreeMap<&'v str, &'v Router>,
    ports: BTreeMap<&'v str, &'v Port>,
    balancers: BTreeMap<&'v str, &'v LoadBalancer>,
}

impl View {
    /// What is to be used of an object.
    fn used(
        &self,
        name: &ObjectName,
        earlier: &HashSet<ObjectName>,
        left_out: &HashSet<ObjectName>,
    ) -> Option<&Arc<Item>> {
        if left_out.contains(name) {
            return None;
        }
        let entry = self.objects.get(name)?;
        if earlier.contains(name) { entry.good.as_ref() } else { entry.best() }
    }

    /// The part as it is now: with `earlier` versions of some objects, and some `left_out`.
    pub(super) fn collect(
        &self,
        earlier: &HashSet<ObjectName>,
        left_out: &HashSet<ObjectName>,
    ) -> (Part, Parts) {
        let mut collector = Collector {
            view: self,
            earlier,
            left_out,
            part: Part::default(),
            networks: BTreeMap::new(),
            routers: BTreeMap::new(),
            ports: BTreeMap::new(),
            balancers: BTreeMap::new(),
        };
        collector.reach();
        collector.outside();
        collector.ports();
        collector.balancers();
        collector.finish()
    }

    /// Whether an object that changed is in the node's part, or may be now.
    pub(super) fn concerns(&self, name: &ObjectName) -> bool {
        let part = &self.part;
        if name.kind == Kind::Node
            || part.names.contains(name)
            || part.missing.contains(name)
            || self.unusable.contains(name)
        {
            return true;
        }
        let Some(item) = self.objects.get(name).and_then(|entry| entry.best()) else { return false };
        match &item.says {
            Single::Port(port) => {
                self.index.place_of(&port.name) == Some(self.node.as_str())
                    || part.networks.contains(&port.network)
                    || port.security_groups.iter().any(|group| part.members.contains(group))
            }
            Single::Network(network, _) => {
                network.external && !self.externals.is_empty()
                    || network.subnets.iter().any(|subnet| {
                        self.index
                            .routers_on_subnet
                            .to(&subnet.name)
                            .any(|router| part.names.contains(&ObjectName::new(Kind::Router, router)))
                    })
            }
            Single::Router(router) => {
                let joins =
                    |network: &str| part.networks.contains(network) || part.externals.contains(network);
                let mut subnets = router.interfaces.iter();
                subnets.any(|interface| self.index.networks_with_subnet.to(&interface.subnet).any(joins))
                    || router
                        .gateway
                        .as_ref()
                        .is_some_and(|gateway| part.externals.contains(&gateway.network))
                    || self.speaks(router)
            }
            Single::FloatingIp(floating) => {
                part.external_ranges.iter().any(|range| range.contains(&floating.address))
            }
            Single::LoadBalancer(balancer) => part.networks.contains(&balancer.network),
            // One that is used is in the part already, or missing.
            Single::Pool(_) | Single::SecurityGroup(_) | Single::AddressGroup(_) | Single::Node(_) => false,
        }
    }

    /// The nodes in their best versions.
    fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.index.nodes.iter().filter_map(|name| {
            match &self.objects.get(&ObjectName::new(Kind::Node, name.as_str()))?.best()?.says {
                Single::Node(node) => Some(node),
                _ => None,
            }
        })
    }

    /// Whether what is outside may come to this node for a router.
    fn speaks(&self, router: &Router) -> bool {
        let Some(gateway) = &router.gateway else { return false };
        if self.own_externals().any(|network| network == gateway.network) {
            return true;
        }
        // Most nodes are no gateways: no need to rank them.
        let is_able = |node: &Node| node.name == self.node && node.reaches(&gateway.network);
        if !self.nodes().any(is_able) {
            return false;
        }
        let carriers = Carriers::of(self.nodes(), [gateway.network.as_str()]);
        carriers.of_router(&router.name, &gateway.network).contains(&self.node.as_str())
    }

    /// The networks of this node's external interfaces.
    fn own_externals(&self) -> impl Iterator<Item = &str> {
        let only =
            if self.index.external_networks.len() == 1 { self.index.external_networks.first() } else { None };
        self.externals.iter().filter_map(move |network| network.as_ref().or(only)).map(String::as_str)
    }
}

impl<'v> Collector<'v> {
    fn get(&mut self, kind: Kind, name: &str) -> Option<&'v Single> {
        let name = ObjectName::new(kind, name);
        let Some(item) = self.view.used(&name, self.earlier, self.left_out) else {
            self.part.missing.insert(name);
            return None;
        };
        self.part.names.insert(name);
        Some(&item.says)
    }

    fn network(&mut self, name: &str) -> Option<&'v Network> {
        if let Some((network, _)) = self.networks.get(name) {
            return Some(network);
        }
        match self.get(Kind::Network, name)? {
            Single::Network(network, derived) => {
                self.networks.insert(&network.name, (network, *derived));
                Some(network)
            }
            _ => None,
        }
    }

    fn router(&mut self, name: &str) -> Option<&'v Router> {
        if let Some(router) = self.routers.get(name) {
            return Some(router);
        }
        match self.get(Kind::Router, name)? {
            Single::Router(router) => {
                self.routers.insert(&router.name, router);
                Some(router)
            }
            _ => None,
        }
    }

    fn port(&mut self, name: &str) -> Option<&'v Port> {
        if let Some(port) = self.ports.get(name) {
            return Some(port);
        }
        match self.get(Kind::Port, name)? {
            Single::Port(port) => {
                self.ports.insert(&port.name, port);
                Some(port)
            }
            _ => None,
        }
    }

    /// The networks a router joins.
    fn joined(&mut self, router: &Router) -> Vec<&'v Network> {
        let index = &self.view.index;
        let subnets = router.interfaces.iter().map(|interface| interface.subnet.as_str());
        let names: Vec<&'v str> = subnets.flat_map(|subnet| index.networks_with_subnet.to(subnet)).collect();
        names.into_iter().filter_map(|name| self.network(name)).collect()
    }

    /// The networks of the node's ports, those behind routers it speaks for, and what routers connect to them.
    fn reach(&mut self) {
        let view = self.view;
        let mut next: Vec<&str> = Vec::new();
        for port in view.index.ports_on_node.to(&view.node) {
            if let Some(port) = self.port(port) {
                next.push(&port.network);
            }
        }
        for router in &view.index.routers_with_gateway {
            let name = ObjectName::new(Kind::Router, router.as_str());
            let Some(Single::Router(found)) =
                view.used(&name, self.earlier, self.left_out).map(|item| &item.says)
            else {
                continue;
            };
            if view.speaks(found) {
                self.router(router);
                next.extend(self.joined(found).iter().map(|network| network.name.as_str()));
            }
        }
        while let Some(name) = next.pop() {
            if self.part.networks.contains(name) {
                continue;
            }
            let Some(network) = self.network(name) else { continue };
            if network.external {
                self.part.externals.insert(network.name.clone());
                continue;
            }
            self.part.networks.insert(network.name.clone());
            let subnets = network.subnets.iter();
            let routers: BTreeSet<&str> =
                subnets.flat_map(|subnet| view.index.routers_on_subnet.to(&subnet.name)).collect();
            for router in routers {
                if let Some(router) = self.router(router) {
                    next.extend(self.joined(router).iter().map(|network| network.name.as_str()));
                }
            }
        }
    }

    /// All routers and floating IPs of the external networks that it reaches.
    fn outside(&mut self) {
        let view = self.view;
        let own: Vec<&str> = view.own_externals().collect();
        let gateways = self.routers.values().filter_map(|router| router.gateway.as_ref());
        let externals: BTreeSet<&str> = gateways.map(|gateway| gateway.network.as_str()).chain(own).collect();
        self.part.externals.extend(externals.into_iter().map(str::to_owned));
        for name in self.part.externals.clone() {
            let Some(network) = self.network(&name) else { continue };
            self.part.external_ranges.extend(network.subnets.iter().map(|subnet| subnet.cidr));
            let on = network.subnets.iter().flat_map(|subnet| view.index.routers_on_subnet.to(&subnet.name));
            let routers: BTreeSet<&str> = view.index.routers_to_network.to(&name).chain(on).collect();
            for router in routers {
                self.router(router);
            }
        }
        // What they refer to.
        let routers: Vec<&Router> = self.routers.values().copied().collect();
        for router in routers {
            self.joined(router);
            if let Some(gateway) = &router.gateway {
                self.network(&gateway.network);
            }
        }
    }

    /// The ports of its networks, and of what else it has to know the addresses.
    fn ports(&mut self) {
        let view = self.view;
        for network in self.part.networks.clone() {
            for port in view.index.ports_on_network.to(&network) {
                self.port(port);
            }
        }
        // Members of the groups that the rules of its own ports name.
        let own: BTreeSet<&str> = view
            .index
            .ports_on_node
            .to(&view.node)
            .filter_map(|port| self.ports.get(port))
            .flat_map(|port| port.security_groups.iter().map(String::as_str))
            .collect();
        for group in own {
            let Some(Single::SecurityGroup(group)) = self.get(Kind::SecurityGroup, group) else {
                // Everybody has it; its rules name its own members.
                if group == DEFAULT_GROUP {
                    self.part.members.insert(group.to_owned());
                }
                continue;
            };
            let remotes = group.rules.iter().filter_map(|rule| match &rule.remote {
                Some(Remote::Group(name)) => Some(name.clone()),
                _ => None,
            });
            self.part.members.extend(remotes);
        }
        for group in self.part.members.clone() {
            for port in view.index.ports_in_group.to(&group) {
                self.port(port);
            }
        }
    }

    /// The load balancers on its networks.
    fn balancers(&mut self) {
        let view = self.view;
        for network in self.part.networks.clone() {
            for balancer in view.index.balancers_on_network.to(&network) {
                self.balancer(balancer);
            }
        }
    }

    fn balancer(&mut self, name: &str) {
        if let Some(Single::LoadBalancer(balancer)) = self.get(Kind::LoadBalancer, name) {
            self.balancers.insert(&balancer.name, balancer);
        }
    }

    /// Load balancers whose pools are there, and those.
    fn pools(&mut self, parts: &mut Parts) {
        let mut pools: BTreeSet<&str> = BTreeSet::new();
        for balancer in self.balancers.clone().into_values() {
            self.network(&balancer.network);
            pools.extend(balancer.listeners.iter().map(|listener| listener.default_pool.as_str()));
            parts.load_balancers.push(balancer.clone());
        }
        for pool in pools {
            if let Some(Single::Pool(pool)) = self.get(Kind::Pool, pool) {
                parts.pools.push(pool.clone());
            }
        }
    }

    fn finish(mut self) -> (Part, Parts) {
        let view = self.view;
        let mut parts = Parts::default();
        for name in &view.index.floating_ips {
            let object = ObjectName::new(Kind::FloatingIp, name.as_str());
            let Some(Single::FloatingIp(floating)) =
                view.used(&object, self.earlier, self.left_out).map(|item| &item.says)
            else {
                continue;
            };
            if !self.part.external_ranges.iter().any(|range| range.contains(&floating.address)) {
                continue;
            }
            self.part.names.insert(object);
            for port in floating.port.iter().chain(floating.port_forwardings.iter().map(|it| &it.port)) {
                self.port(port);
            }
            if let Some(balancer) = &floating.load_balancer {
                self.balancer(balancer);
            }
            parts.floating_ips.push(floating.clone());
        }
        let ports: Vec<&Port> = self.ports.values().copied().collect();
        for port in ports {
            self.network(&port.network);
            let place = view.place(port);
            let mut port = port.clone();
            (port.node, port.interface) = match place {
                Some((node, interface)) => (Some(node.to_owned()), Some(interface.to_owned())),
                None => (None, None),
            };
            parts.ports.push(port);
        }
        self.groups(&mut parts);
        self.pools(&mut parts);
        for node in &view.index.nodes {
            if let Some(Single::Node(node)) = self.get(Kind::Node, node) {
                let mut node = node.clone();
                // What is not in the part is of no concern here.
                if let Some(networks) = &mut node.external_networks {
                    networks.retain(|name| self.networks.contains_key(name.as_str()));
                }
                parts.nodes.push(node);
            }
        }
        for (network, derived) in self.networks.values() {
            let subnets = network.subnets.iter();
            self.part.subnets.extend(subnets.map(|subnet| (subnet.name.clone(), network.name.clone())));
            parts.networks.push(((*network).clone(), *derived));
        }
        parts.routers = self.routers.values().map(|router| (*router).clone()).collect();
        (self.part, parts)
    }

    /// Groups of the node's own ports with their rules; of others only that they are there.
    fn groups(&mut self, parts: &mut Parts) {
        let mut own: BTreeSet<&str> = BTreeSet::new();
        let mut others: BTreeSet<&str> = BTreeSet::new();
        for (port, placed) in self.ports.values().zip(&parts.ports) {
            let set =
                if placed.node.as_deref() == Some(self.view.node.as_str()) { &mut own } else { &mut others };
            set.extend(port.security_groups.iter().map(String::as_str));
        }
        let mut address_groups: BTreeSet<&str> = BTreeSet::new();
        for name in &own {
            let Some(Single::SecurityGroup(group)) = self.get(Kind::SecurityGroup, name) else { continue };
            for rule in &group.rules {
                match &rule.remote {
                    Some(Remote::Group(name)) => drop(others.insert(name)),
                    Some(Remote::AddressGroup(name)) => drop(address_groups.insert(name)),
                    _ => {}
                }
            }
            parts.security_groups.push(group.clone());
        }
        for name in others.difference(&own) {
            let Some(Single::SecurityGroup(group)) = self.get(Kind::SecurityGroup, name) else { continue };
            let SecurityGroup { name, stateful, line, .. } = group;
            let group =
                SecurityGroup { name: name.clone(), stateful: *stateful, rules: Vec::new(), line: *line };
            parts.security_groups.push(group);
        }
        for name in address_groups {
            if let Some(Single::AddressGroup(group)) = self.get(Kind::AddressGroup, name) {
                parts.address_groups.push(group.clone());
            }
        }
    }
}
