//! What refers to what, kept as objects come and go.

use std::collections::{BTreeSet, HashMap};

use crate::{
    store::keys::ObjectName,
    topology::{Kind, Single},
};

/// A set of names for each name. None is empty.
#[derive(Debug, Default)]
pub struct Relation(HashMap<String, BTreeSet<String>>);

impl Relation {
    fn add(&mut self, to: &str, from: &str) {
        self.0.entry(to.to_owned()).or_default().insert(from.to_owned());
    }

    fn remove(&mut self, to: &str, from: &str) {
        if let Some(names) = self.0.get_mut(to) {
            names.remove(from);
            if names.is_empty() {
                self.0.remove(to);
            }
        }
    }

    /// The names that refer to one.
    pub fn to(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }
}

/// All of it. Names of objects of which one kind refers to another.
#[derive(Debug, Default)]
pub struct Index {
    pub ports_on_node: Relation,
    pub ports_on_network: Relation,
    pub ports_in_group: Relation,
    pub networks_with_subnet: Relation,
    pub routers_on_subnet: Relation,
    pub routers_to_network: Relation,
    pub balancers_on_network: Relation,
    pub balancers_to_pool: Relation,
    pub nodes: BTreeSet<String>,
    pub floating_ips: BTreeSet<String>,
    pub external_networks: BTreeSet<String>,
    pub routers_with_gateway: BTreeSet<String>,
    /// Where each port is.
    places: HashMap<String, String>,
}

impl Index {
    /// Takes note of an object.
    pub fn add(&mut self, name: &ObjectName, says: &Single) {
        self.each(name, says, Relation::add, |set, name| {
            set.insert(name.to_owned());
        });
    }

    /// Forgets it again.
    pub fn remove(&mut self, name: &ObjectName, says: &Single) {
        self.each(name, says, Relation::remove, |set, name| {
            set.remove(name);
        });
    }

    fn each(
        &mut self,
        object: &ObjectName,
        says: &Single,
        relate: fn(&mut Relation, &str, &str),
        count: fn(&mut BTreeSet<String>, &str),
    ) {
        let name = object.name.as_str();
        match says {
            Single::Network(network, _) => {
                for subnet in &network.subnets {
                    relate(&mut self.networks_with_subnet, &subnet.name, name);
                }
                if network.external {
                    count(&mut self.external_networks, name);
                }
            }
            Single::Router(router) => {
                for interface in &router.interfaces {
                    relate(&mut self.routers_on_subnet, &interface.subnet, name);
                }
                if let Some(gateway) = &router.gateway {
                    relate(&mut self.routers_to_network, &gateway.network, name);
                    count(&mut self.routers_with_gateway, name);
                }
            }
            Single::Port(port) => {
                relate(&mut self.ports_on_network, &port.network, name);
                for group in &port.security_groups {
                    relate(&mut self.ports_in_group, group, name);
                }
            }
            Single::FloatingIp(_) => count(&mut self.floating_ips, name),
            Single::LoadBalancer(balancer) => {
                relate(&mut self.balancers_on_network, &balancer.network, name);
                for listener in &balancer.listeners {
                    relate(&mut self.balancers_to_pool, &listener.default_pool, name);
                }
            }
            Single::Pool(_) => {}
            Single::Node(_) => count(&mut self.nodes, name),
            Single::SecurityGroup(_) | Single::AddressGroup(_) => {}
        }
        debug_assert_ne!(object.kind, Kind::Subnet, "subnets are parts of networks");
    }

    /// Notes where a port is.
    pub fn bind(&mut self, port: &str, node: Option<String>) {
        let before = match &node {
            Some(node) => self.places.insert(port.to_owned(), node.clone()),
            None => self.places.remove(port),
        };
        if before == node {
            return;
        }
        if let Some(before) = before {
            self.ports_on_node.remove(&before, port);
        }
        if let Some(node) = node {
            self.ports_on_node.add(&node, port);
        }
    }

    /// Where a port is.
    pub fn place_of(&self, port: &str) -> Option<&str> {
        self.places.get(port).map(String::as_str)
    }
}
