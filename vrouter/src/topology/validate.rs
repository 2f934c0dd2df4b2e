//! The rules between objects, all checked, each wrong thing reported once.
//!
//! Where a reference leads nowhere, what depends on it is not judged; the same holds for objects with a name
//! that is taken already, and for whatever refers to an object that could not be read. Everything is looked
//! up in indexes built on the way, so the work grows with the document and not with its square.

pub mod balancer;
mod floating_ip;
mod network;
mod port;
mod router;
mod security;

use std::collections::HashMap;
use std::fmt::Display;
use std::net::IpAddr;

use super::decode::{Decoded, Kind, PerKind, label_of};
use super::model::{Network, Node, Subnet, Topology};
use super::object::suggestion;
use super::problem::Problems;
use super::ranges::{RangeIndex, listing};
use super::scalar::quote;
use super::yaml::Step;
use port::Taken;

/// Checks what was decoded.
pub fn validate(decoded: &Decoded<'_>, problems: &mut Problems) {
    let mut check = Check {
        topology: &decoded.topology,
        decoded,
        problems,
        names: PerKind::default(),
        twins: PerKind::default(),
        subnets: Vec::new(),
        ranges: Vec::new(),
        external_ranges: RangeIndex::default(),
        router_addresses: HashMap::new(),
        gateway_addresses: HashMap::new(),
        vips: HashMap::new(),
        vrids: HashMap::new(),
        routers_are_known: false,
    };
    check.names();
    check.networks();
    check.nodes();
    check.routers();
    check.security_groups();
    let taken = check.ports();
    check.load_balancers(&taken);
    check.floating_ips();
}

/// What is known while checking. Objects are referred to by their position in the topology.
struct Check<'a, 'p> {
    topology: &'a Topology,
    decoded: &'a Decoded<'a>,
    problems: &'p mut Problems,
    /// The first object of each name.
    names: PerKind<HashMap<&'a str, usize>>,
    /// For each object: whether its name was taken already.
    twins: PerKind<Vec<bool>>,
    /// All subnets of all networks; what `names[Kind::Subnet]` points into.
    subnets: Vec<Place>,
    /// For each network: its subnets.
    ranges: Vec<RangeIndex>,
    /// The subnets of all external networks.
    external_ranges: RangeIndex,
    /// Who holds an address on a network: router interfaces.
    router_addresses: HashMap<(usize, IpAddr), usize>,
    /// Who holds an address on a network: router gateways.
    gateway_addresses: HashMap<(usize, IpAddr), usize>,
    /// Who holds an address on a network: load balancers.
    vips: HashMap<(usize, IpAddr), usize>,
    /// Who has a VRID on a network, of those that state one.
    vrids: HashMap<(usize, u8), usize>,
    /// Every router and what it refers to could be read, so that what is not in `reaches` is not joined.
    routers_are_known: bool,
}

/// A subnet, as the position of its network and its own there.
#[derive(Clone, Copy)]
struct Place {
    network: usize,
    subnet: usize,
}

impl<'a> Check<'a, '_> {
    /// Fills the name indexes and reports names that are taken.
    fn names(&mut self) {
        let topology = self.topology;
        self.index(Kind::Network, topology.networks.iter().map(|o| (o.name.as_str(), o.line)));
        self.index(Kind::Router, topology.routers.iter().map(|o| (o.name.as_str(), o.line)));
        self.index(Kind::SecurityGroup, topology.security_groups.iter().map(|o| (o.name.as_str(), o.line)));
        self.index(Kind::AddressGroup, topology.address_groups.iter().map(|o| (o.name.as_str(), o.line)));
        self.index(Kind::Port, topology.ports.iter().map(|o| (o.name.as_str(), o.line)));
        self.index(Kind::LoadBalancer, topology.load_balancers.iter().map(|o| (o.name.as_str(), o.line)));
        self.index(Kind::Pool, topology.pools.iter().map(|o| (o.name.as_str(), o.line)));
        self.index(Kind::Node, topology.nodes.iter().map(|o| (o.name.as_str(), o.line)));
        self.index_subnets();
    }

    fn index(&mut self, kind: Kind, objects: impl Iterator<Item = (&'a str, usize)>) {
        let mut lines = Vec::new();
        for (i, (name, line)) in objects.enumerate() {
            lines.push(line);
            let first = *self.names[kind].entry(name).or_insert(i);
            self.twins[kind].push(first != i);
            if first != i {
                self.report_twin(kind, name, self.line(kind, i, &[Step::Field("name")]), lines[first]);
            }
        }
    }

    fn index_subnets(&mut self) {
        for (network, owner) in self.topology.networks.iter().enumerate() {
            for (subnet, Subnet { name, line, .. }) in owner.subnets.iter().enumerate() {
                let place = self.subnets.len();
                let first = *self.names[Kind::Subnet].entry(name).or_insert(place);
                self.twins[Kind::Subnet].push(first != place);
                self.subnets.push(Place { network, subnet });
                // A copied network brings copied subnets; its own name is what to change first.
                if first != place && !self.twins[Kind::Network][network] {
                    let first_line = self.subnet(first).line;
                    self.report_twin(Kind::Subnet, name, *line, first_line);
                }
            }
        }
    }

    fn report_twin(&mut self, kind: Kind, name: &str, line: usize, first_line: usize) {
        self.report(
            line,
            label_of(kind, name),
            format!("the name is taken by the {} in line {first_line}", kind.noun()),
            "give one of them another name",
        );
    }

    /// The object that `name` refers to. `None`: there is none, which is reported unless it is there and
    /// only could not be read.
    fn resolve(&mut self, kind: Kind, name: &str, line: usize, by: &dyn Display) -> Option<usize> {
        if let Some(found) = self.names[kind].get(name) {
            return Some(*found);
        }
        if !self.decoded.broken[kind].may_be(name) {
            let known = self.names[kind].keys().copied();
            let remedy = match suggestion(name, known, self.problems) {
                Some(near) => format!("did you mean {}?", quote(near)),
                None if kind == Kind::Subnet => "add it to a network, or use another".to_owned(),
                None => format!("add it to `{}`, or use another", kind.section()),
            };
            self.report(line, by.to_string(), format!("there is no {}", label_of(kind, name)), remedy);
        }
        None
    }

    fn report(
        &mut self,
        line: usize,
        object: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problems.push(line, object, message, remedy);
    }

    /// The line of a part of an object.
    fn line(&self, kind: Kind, index: usize, path: &[Step<'_>]) -> usize {
        self.decoded.nodes[kind].get(index).map_or(0, |node| node.line_of(path))
    }

    fn is_twin(&self, kind: Kind, index: usize) -> bool {
        self.twins[kind].get(index).copied().unwrap_or_default()
    }

    fn network(&self, index: usize) -> &'a Network {
        &self.topology.networks[index]
    }

    fn subnet(&self, place: usize) -> &'a Subnet {
        let Place { network, subnet } = self.subnets[place];
        &self.topology.networks[network].subnets[subnet]
    }

    /// The problem of an address that is in no subnet of its network, and its remedy.
    fn outside(&self, address: IpAddr, network: usize) -> (String, String) {
        let network = self.network(network);
        let remedy = if network.subnets.is_empty() {
            "give the network a subnet that holds it".to_owned()
        } else {
            format!("use an address of {}", listing(network.subnets.iter().map(|subnet| &subnet.cidr)))
        };
        (format!("{address} is outside every subnet of network {}", network.name), remedy)
    }

    /// Nodes have one rule of their own.
    fn external_networks(&mut self, index: usize, node: &Node) {
        let object = label_of(Kind::Node, &node.name);
        for (item, name) in node.external_networks.iter().flatten().enumerate() {
            let path = [Step::Field("external_networks"), Step::Item(item)];
            let line = self.line(Kind::Node, index, &path);
            let Some(network) = self.resolve(Kind::Network, name, line, &object) else { continue };
            if !self.network(network).external {
                let message = format!("network {name} is not external");
                let remedy = "leave it out: every node reaches the networks of its ports";
                self.report(line, object.clone(), message, remedy);
            }
        }
    }

    fn nodes(&mut self) {
        let mut vteps = HashMap::new();
        for (i, node) in self.topology.nodes.iter().enumerate() {
            if self.is_twin(Kind::Node, i) {
                continue;
            }
            if let Some(other) = vteps.insert(node.vtep, &node.name) {
                self.report(
                    self.line(Kind::Node, i, &[Step::Field("vtep")]),
                    label_of(Kind::Node, &node.name),
                    format!("the VTEP {} is node {other}'s too", node.vtep),
                    "give each node its own underlay address",
                );
            }
            self.external_networks(i, node);
        }
    }
}
