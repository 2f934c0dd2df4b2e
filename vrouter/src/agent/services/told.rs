//! What each port of this node is told: for `vrouter show dhcp`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{dhcp::answer::leases, router::advert::adverts};
use crate::{
    compile::{Served, served::ServedPort},
    topology::model::Ipv6Mode,
};

/// An address of a port, and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub port: String,
    pub interface: String,
    pub network: String,
    pub address: IpAddr,
    /// `dhcp`, `dhcpv6-stateful`, `dhcpv6-stateless`, `slaac`, or `none`: nobody tells it.
    pub how: String,
    /// Who answers, or advertises.
    pub server: Option<IpAddr>,
    pub gateway: Option<IpAddr>,
    pub mtu: u32,
    pub dns: Vec<IpAddr>,
    pub lease_time: u32,
    /// Classless routes: destination and next hop.
    pub routes: Vec<(String, IpAddr)>,
    /// Codes of further options.
    pub options: Vec<u16>,
}

/// All of it, by port.
pub fn told(served: &Served) -> Vec<Told> {
    let mut told: Vec<_> = served.values().flat_map(of_port).collect();
    told.sort_by(|a, b| (&a.port, a.address).cmp(&(&b.port, b.address)));
    told
}

fn of_port(port: &ServedPort) -> Vec<Told> {
    let by_dhcp: Vec<_> = leases(port).collect();
    let adverts = adverts(port);
    let of = |(address, subnet): (IpAddr, &crate::topology::model::Subnet)| {
        let lease = by_dhcp.iter().find(|lease| IpAddr::V4(lease.address) == address);
        let router = port.network.router_of(subnet);
        let advert =
            adverts.iter().find(|advert| router.is_none_or(|router| router.link_local == advert.source));
        let how = match (lease, subnet.ipv6_mode) {
            (Some(_), _) => "dhcp",
            (_, Some(Ipv6Mode::Stateful)) => "dhcpv6-stateful",
            (_, Some(Ipv6Mode::Stateless)) => "dhcpv6-stateless",
            (_, Some(Ipv6Mode::Slaac)) => "slaac",
            (None, None) => "none",
        };
        let options = port.dhcp_options.iter().chain(&subnet.dhcp_options);
        let mut options: Vec<u16> =
            options.filter(|option| option.ipv6 == address.is_ipv6()).map(|option| option.code).collect();
        options.sort_unstable();
        options.dedup();
        let advertised = advert.filter(|_| subnet.ipv6_mode.is_some());
        let gateway = match advertised {
            Some(advert) => (advert.lifetime > 0).then_some(IpAddr::V6(advert.source)),
            None => subnet.gateway,
        };
        let server = lease.map(|lease| IpAddr::V4(lease.server));
        let routes = lease.into_iter().flat_map(|lease| &lease.routes);
        Told {
            port: port.name.clone(),
            interface: port.interface.clone(),
            network: port.network.name.clone(),
            address,
            how: how.to_owned(),
            server: server.or(advertised.map(|advert| IpAddr::V6(advert.source))),
            gateway,
            mtu: port.network.mtu,
            dns: subnet.dns.clone(),
            lease_time: subnet.lease_time,
            routes: routes.map(|(net, nexthop)| (net.to_string(), IpAddr::V4(*nexthop))).collect(),
            options,
        }
    };
    port.addresses().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::services::fixture::{DOCUMENT, served};

    #[test]
    fn every_address_is_told_how_it_is_given() {
        let told = told(&served(DOCUMENT, false));
        let how: Vec<_> = told.iter().map(|told| (&*told.port, told.address.is_ipv6(), &*told.how)).collect();
        let expected = [
            ("vm1", false, "dhcp"),
            ("vm1", true, "dhcpv6-stateful"),
            ("vm3", false, "dhcp"),
            ("vm3", true, "slaac"),
            ("vm4", false, "none"),
            ("vm4", true, "dhcpv6-stateless"),
        ];
        assert_eq!(how, expected);
        assert_eq!(told[0].options, [15, 42, 224]);
        assert_eq!(told[0].server.unwrap().to_string(), "10.0.1.1");
        assert_eq!(told[3].gateway, None, "no router");
        assert_eq!(told[0].routes.len(), 2);
    }
}
