//! Which router balances for a VIP. Every node must give the same answer, so it depends on nothing but the
//! document's content.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::model::{Network, Router, Subnet, Topology};
use super::ranges::RangeIndex;

/// The routers of a topology, by the subnets they are on.
pub struct Balancers<'t> {
    subnets: Vec<(&'t Network, &'t Subnet)>,
    /// By network: its subnets, standing for positions in `subnets`.
    ranges: HashMap<&'t str, RangeIndex>,
    /// By router: the subnets it is on.
    joined: HashMap<&'t str, RangeIndex>,
    /// By subnet: the router that comes first.
    routers: HashMap<&'t str, (Rank<'t>, &'t Router)>,
}

/// Of several routers the least of these counts: the one that is the gateway of the subnet, the first by name.
type Rank<'t> = (bool, &'t str);

impl<'t> Balancers<'t> {
    pub fn of(topology: &'t Topology) -> Self {
        let mut subnets = Vec::new();
        let mut ranges = HashMap::new();
        let mut by_name: HashMap<&str, usize> = HashMap::new();
        for network in &topology.networks {
            let first = subnets.len();
            subnets.extend(network.subnets.iter().map(|subnet| (network, subnet)));
            let cidrs = network.subnets.iter().enumerate().map(|(i, subnet)| (subnet.cidr, first + i));
            ranges.entry(network.name.as_str()).or_insert_with(|| RangeIndex::of(cidrs));
        }
        for (at, (_, subnet)) in subnets.iter().enumerate() {
            by_name.entry(&subnet.name).or_insert(at);
        }
        let mut routers: HashMap<&str, (Rank<'_>, &Router)> = HashMap::new();
        let mut joined = HashMap::new();
        for router in &topology.routers {
            let mut on = Vec::new();
            for interface in &router.interfaces {
                let Some(&at) = by_name.get(interface.subnet.as_str()) else { continue };
                let (_, subnet) = subnets[at];
                on.push((subnet.cidr, at));
                let rank = (subnet.gateway != Some(interface.address), router.name.as_str());
                let best = routers.entry(&subnet.name).or_insert((rank, router));
                if rank < best.0 {
                    *best = (rank, router);
                }
            }
            joined.insert(router.name.as_str(), RangeIndex::of(on));
        }
        Self { subnets, ranges, joined, routers }
    }

    /// The subnet of a network that holds an address.
    pub fn subnet(&self, network: &str, address: IpAddr) -> Option<&'t Subnet> {
        let (_, at) = self.ranges.get(network)?.find(address).ok()??;
        Some(self.subnets[at].1)
    }

    /// The router that balances for a VIP on a network.
    pub fn router(&self, network: &str, vip: IpAddr) -> Option<&'t Router> {
        let subnet = self.subnet(network, vip)?;
        self.routers.get(subnet.name.as_str()).map(|(_, router)| *router)
    }

    /// Whether subnets of a router overlap, so that nobody can tell which one an address is of.
    pub fn is_ambiguous(&self, router: &Router) -> bool {
        self.joined.get(router.name.as_str()).is_some_and(|index| !index.overlaps.is_empty())
    }

    /// The network, joined by a router, that an address is of. External ones hold no members.
    pub fn network_of(&self, router: &Router, address: IpAddr) -> Option<&'t Network> {
        self.reach(router).network_of(address)
    }

    /// The networks that a router joins, for more than one question.
    pub fn reach(&self, router: &Router) -> Reach<'_, 't> {
        Reach { balancers: self, joined: self.joined.get(router.name.as_str()), last: None }
    }
}

/// The networks that a router joins.
pub struct Reach<'b, 't> {
    balancers: &'b Balancers<'t>,
    joined: Option<&'b RangeIndex>,
    /// Where the last address was: that is where the next one is, most of the time.
    last: Option<(IpNet, Option<&'t Network>)>,
}

impl<'t> Reach<'_, 't> {
    /// The one that an address is of. External ones hold no members.
    pub fn network_of(&mut self, address: IpAddr) -> Option<&'t Network> {
        match self.last {
            Some((range, network)) if range.contains(&address) => network,
            _ => {
                let (range, at) = self.joined?.find(address).ok()??;
                let network = Some(self.balancers.subnets[at].0).filter(|network| !network.external);
                self.last = Some((range, network));
                network
            }
        }
    }
}
