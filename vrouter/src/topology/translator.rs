//! Which router translates between a workload and an external network. Every node must give the same answer,
//! so it depends on nothing but the document's content.

use std::collections::HashMap;
use std::net::IpAddr;

use super::model::{Network, Router, Subnet, Topology};
use super::ranges::RangeIndex;

/// The routers of a topology, by what they join.
pub struct Translators<'t> {
    subnets: Vec<&'t Subnet>,
    /// By network: its subnets, standing for positions in `subnets`.
    ranges: HashMap<&'t str, RangeIndex>,
    /// The subnets of all external networks, standing for positions of networks.
    external: RangeIndex,
    networks: &'t [Network],
    /// By subnet and external network, the router that comes first.
    routers: HashMap<(&'t str, &'t str), (Rank<'t>, &'t Router)>,
}

/// Of several routers the least of these counts: one with an address of the family outside, one that is the
/// gateway of the subnet, the first by name.
type Rank<'t> = (bool, bool, &'t str);

impl<'t> Translators<'t> {
    pub fn of(topology: &'t Topology) -> Self {
        let mut subnets = Vec::new();
        let mut ranges = HashMap::new();
        for network in &topology.networks {
            let first = subnets.len();
            subnets.extend(&network.subnets);
            let cidrs = network.subnets.iter().enumerate().map(|(i, subnet)| (subnet.cidr, first + i));
            ranges.entry(network.name.as_str()).or_insert_with(|| RangeIndex::of(cidrs));
        }
        let mut by_name: HashMap<&str, &Subnet> = HashMap::new();
        for subnet in &subnets {
            by_name.entry(&subnet.name).or_insert(subnet);
        }
        let mut routers: HashMap<(&str, &str), (Rank<'_>, &Router)> = HashMap::new();
        for router in &topology.routers {
            let Some(gateway) = &router.gateway else { continue };
            for interface in &router.interfaces {
                let Some(subnet) = by_name.get(interface.subnet.as_str()) else { continue };
                let outside = gateway.address(subnet.cidr.addr().is_ipv6());
                let rank =
                    (outside.is_none(), subnet.gateway != Some(interface.address), router.name.as_str());
                let best = routers.entry((&subnet.name, &gateway.network)).or_insert((rank, router));
                if rank < best.0 {
                    *best = (rank, router);
                }
            }
        }
        let external = topology.networks.iter().enumerate().filter(|(_, network)| network.external);
        let external = external.flat_map(|(i, network)| network.subnets.iter().map(move |s| (s.cidr, i)));
        Self { subnets, ranges, external: RangeIndex::of(external), networks: &topology.networks, routers }
    }

    /// The subnet of a network that holds an address.
    pub fn subnet(&self, network: &str, address: IpAddr) -> Option<&'t Subnet> {
        let (_, place) = self.ranges.get(network)?.find(address).ok()??;
        Some(self.subnets[place])
    }

    /// The external network that an address is of.
    pub fn external(&self, address: IpAddr) -> Option<&'t Network> {
        let (_, network) = self.external.find(address).ok()??;
        Some(&self.networks[network])
    }

    /// The router that translates between a subnet and an external network. It may lack an address of the
    /// subnet's family there, but then every other does.
    pub fn between(&self, subnet: &str, external: &str) -> Option<&'t Router> {
        self.routers.get(&(subnet, external)).map(|(_, router)| *router)
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    const DOCUMENT: &str = r#"
networks:
  - { name: in, subnets: [{ name: in4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }, { name: in6, cidr: "fd00:1::/64", gateway: "fd00:1::1" }] }
  - { name: out, external: true, subnets: [{ name: out4, cidr: 192.0.2.0/24 }, { name: out6, cidr: "2001:db8::/64" }] }
  - { name: other, external: true, subnets: [{ name: other4, cidr: 198.51.100.0/24 }] }
routers:
  - { name: a, interfaces: [{ subnet: in4, address: 10.0.1.2 }, in6], gateway: { network: out, address: 192.0.2.2 } }
  - { name: b, interfaces: [{ subnet: in6, address: "fd00:1::2" }], gateway: { network: out, address: "2001:db8::2" } }
  - { name: c, interfaces: [in4], gateway: { network: out, address: 192.0.2.3 } }
  - { name: d, interfaces: [{ subnet: in4, address: 10.0.1.4 }], gateway: { network: other, address: 198.51.100.4 } }
"#;

    #[test]
    fn the_subnets_gateway_comes_first_and_the_family_before_it() {
        let topology = parse("x", DOCUMENT).unwrap_or_else(|problems| panic!("{problems}"));
        let translators = Translators::of(&topology);
        let router =
            |subnet, external| translators.between(subnet, external).map(|router| router.name.as_str());
        assert_eq!(router("in4", "out"), Some("c"), "it is the gateway; a is only the first by name");
        assert_eq!(router("in6", "out"), Some("b"), "a is the gateway, but has no IPv6 address outside");
        assert_eq!(router("in4", "other"), Some("d"));
        assert_eq!(router("in6", "other"), None);
        let subnet = translators.subnet("in", IpAddr::from([10, 0, 1, 9]));
        assert_eq!(subnet.map(|subnet| subnet.name.as_str()), Some("in4"));
        assert_eq!(translators.subnet("in", IpAddr::from([10, 0, 2, 9])), None);
    }
}
