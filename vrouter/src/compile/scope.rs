//! What a node has to compile: the networks its ports are on, what routers connect to them, and the routers
//! it speaks for to the outside.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;

use super::Surroundings;
use crate::topology::{
    Carriers,
    model::{Network, Router, Topology},
};

/// The names of what is compiled.
pub(super) struct Scope<'a> {
    networks: HashSet<&'a str>,
    externals: HashSet<&'a str>,
    routers: HashSet<&'a str>,
    /// Routers that a port of this node is behind.
    near: HashSet<&'a str>,
    /// The nodes that may carry for a router outside, the first to do it first, of all routers with a gateway.
    carriers: HashMap<&'a str, Vec<&'a str>>,
}

impl<'a> Scope<'a> {
    pub(super) fn new(
        topology: &'a Topology,
        subnets: &HashMap<&'a str, (&'a Network, IpNet)>,
        around: &Surroundings,
        able: &Carriers<'a>,
    ) -> Self {
        let carriers = carriers(topology, able);
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
                        || carriers[router.name.as_str()].contains(&around.node.as_str())
                });
                (router, networks, speaks)
            })
            .collect();
        let local = topology.ports.iter().filter(|port| port.node.as_deref() == Some(around.node.as_str()));
        let mut networks: HashSet<&str> = local.map(|port| port.network.as_str()).collect();
        let joins: Vec<(&str, &[&str])> =
            routers.iter().map(|(router, joined, _)| (router.name.as_str(), joined.as_slice())).collect();
        let near_networks = reachable(&joins, networks.clone());
        let is_near = |joined: &[&str]| joined.iter().any(|name| near_networks.contains(name));
        let near = joins.iter().filter(|(_, joined)| is_near(joined)).map(|(name, _)| *name).collect();
        for (_, joined, _) in routers.iter().filter(|(_, _, speaks)| *speaks) {
            networks.extend(joined);
        }
        let networks = reachable(&joins, networks);
        let mut scope = Self { networks, externals: HashSet::new(), routers: HashSet::new(), near, carriers };
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

    /// Whether a port of this node is behind a router.
    pub(super) fn is_near(&self, router: &str) -> bool {
        self.near.contains(router)
    }

    pub(super) fn has_router(&self, name: &str) -> bool {
        self.routers.contains(name)
    }

    /// The nodes that may carry for a router outside, the first to do it first.
    pub(super) fn carriers(&self, router: &str) -> &[&'a str] {
        self.carriers.get(router).map_or(&[], Vec::as_slice)
    }
}

/// Networks, and what routers connect to them, from one to the next.
fn reachable<'a>(joins: &[(&'a str, &[&'a str])], mut networks: HashSet<&'a str>) -> HashSet<&'a str> {
    let mut routers_on: HashMap<&str, Vec<&[&'a str]>> = HashMap::new();
    for (_, joined) in joins {
        for name in *joined {
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
    networks
}

fn carriers<'a>(topology: &'a Topology, able: &Carriers<'a>) -> HashMap<&'a str, Vec<&'a str>> {
    let of = |router: &'a Router| Some(able.of_router(&router.name, &router.gateway.as_ref()?.network));
    topology.routers.iter().filter_map(|router| Some((router.name.as_str(), of(router)?))).collect()
}
