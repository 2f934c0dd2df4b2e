//! What a node has to compile: the networks its ports are on, what routers connect to them, and the routers
//! it speaks for to the outside.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;

use super::Surroundings;
use crate::topology::{
    Rendezvous,
    model::{Network, Topology},
};

/// The names of what is compiled.
pub(super) struct Scope<'a> {
    networks: HashSet<&'a str>,
    externals: HashSet<&'a str>,
    routers: HashSet<&'a str>,
    /// The node that answers for a router's addresses outside, by router, of all routers with a gateway.
    owners: HashMap<&'a str, &'a str>,
}

impl<'a> Scope<'a> {
    pub(super) fn new(
        topology: &'a Topology,
        subnets: &HashMap<&'a str, (&'a Network, IpNet)>,
        around: &Surroundings,
    ) -> Self {
        let owners = owners(topology);
        // With the networks each router joins.
        let routers: Vec<_> = topology
            .routers
            .iter()
            .map(|router| {
                let networks: Vec<&str> = router
                    .interfaces
                    .iter()
                    .filter_map(|interface| subnets.get(interface.subnet.as_str()))
                    .filter(|(network, _)| !network.external)
                    .map(|(network, _)| network.name.as_str())
                    .collect();
                // What comes from outside for the router comes in here.
                let speaks = router.gateway.as_ref().is_some_and(|gateway| {
                    around.externals.contains_key(&gateway.network)
                        || owners.get(router.name.as_str()) == Some(&around.node.as_str())
                });
                (router, networks, speaks)
            })
            .collect();
        let local = topology.ports.iter().filter(|port| port.node.as_deref() == Some(around.node.as_str()));
        let mut networks: HashSet<&str> = local.map(|port| port.network.as_str()).collect();
        for (_, joined, _) in routers.iter().filter(|(_, _, speaks)| *speaks) {
            networks.extend(joined);
        }
        // What routers connect to them, from one to the next.
        let mut routers_on: HashMap<&str, Vec<&[&str]>> = HashMap::new();
        for (_, joined, _) in &routers {
            for name in joined {
                routers_on.entry(name).or_default().push(joined);
            }
        }
        let mut next: Vec<&str> = networks.iter().copied().collect();
        while let Some(name) = next.pop() {
            // Each once: of two networks on one router, the second finds nothing new.
            for &joined in routers_on.remove(name).iter().flatten().copied().flatten() {
                if networks.insert(joined) {
                    next.push(joined);
                }
            }
        }
        let mut scope = Self { networks, externals: HashSet::new(), routers: HashSet::new(), owners };
        for (router, joined, speaks) in &routers {
            if *speaks || joined.iter().any(|name| scope.networks.contains(name)) {
                scope.routers.insert(&router.name);
                scope.externals.extend(router.gateway.as_ref().map(|gateway| gateway.network.as_str()));
            }
        }
        let here = topology.networks.iter().map(|network| network.name.as_str());
        scope.externals.extend(here.filter(|name| around.externals.contains_key(*name)));
        scope
    }

    pub(super) fn has_network(&self, network: &Network) -> bool {
        let names = if network.external { &self.externals } else { &self.networks };
        names.contains(network.name.as_str())
    }

    pub(super) fn has_router(&self, name: &str) -> bool {
        self.routers.contains(name)
    }

    /// The node that answers for a router outside.
    pub(super) fn owner(&self, router: &str) -> Option<&'a str> {
        self.owners.get(router).copied()
    }
}

/// Each gateway's owner: one of the nodes that are to carry external traffic, or of all if none is.
fn owners(topology: &Topology) -> HashMap<&str, &str> {
    let any = topology.nodes.iter().any(|node| node.gateway);
    let names: Vec<&str> =
        topology.nodes.iter().filter(|node| node.gateway || !any).map(|node| node.name.as_str()).collect();
    let nodes = Rendezvous::among(names.iter().copied());
    let with_gateway = topology.routers.iter().filter(|router| router.gateway.is_some());
    with_gateway
        .filter_map(|router| Some((router.name.as_str(), names[nodes.owner(&router.name, 0)?])))
        .collect()
}
