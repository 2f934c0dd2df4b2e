//! What the services of this node (DHCP, router advertisements, metadata, health monitors) are to know of the
//! ports that are plugged here.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use anyhow::Result;
use ipnet::{IpNet, Ipv6Net};
use vrouter_common::{addr::Ip, service, tables::*};

use super::Compiler;
use crate::topology::{
    derive_router_mac, derive_service_mac,
    model::{DhcpOption, Network, Port, Subnet},
};

/// Ports by interface.
pub type Served = BTreeMap<u32, ServedPort>;

/// A port of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedPort {
    pub name: String,
    pub interface: String,
    pub mac: [u8; 6],
    pub fixed_ips: Vec<IpAddr>,
    /// What it may send from beside these, with its own hardware address. `None`: anything.
    pub allowed: Option<Vec<IpNet>>,
    pub dhcp_options: Vec<DhcpOption>,
    pub device_id: Option<String>,
    pub project: Option<String>,
    /// Whether its requests for metadata are answered.
    pub metadata: bool,
    /// Whether it is asked for its health.
    pub monitored: bool,
    pub network: Arc<ServedNetwork>,
}

/// The network it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedNetwork {
    pub name: String,
    pub mtu: u32,
    /// The hardware address of the services themselves.
    pub service_mac: [u8; 6],
    pub subnets: Vec<Subnet>,
    /// The routers on it.
    pub routers: Vec<ServedRouter>,
}

/// A router's leg on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedRouter {
    pub name: String,
    pub mac: [u8; 6],
    pub link_local: Ipv6Addr,
    pub addresses: Vec<IpAddr>,
}

impl ServedNetwork {
    /// The router that holds a subnet's gateway address.
    #[must_use]
    pub fn router_of(&self, subnet: &Subnet) -> Option<&ServedRouter> {
        let gateway = subnet.gateway?;
        self.routers.iter().find(|router| router.addresses.contains(&gateway))
    }

    /// Whether DHCP over IPv4 is answered on it.
    #[must_use]
    pub fn has_dhcp(&self) -> bool {
        self.subnets.iter().any(tells_ipv4)
    }
}

impl ServedPort {
    /// Its addresses with the subnets they are of.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, &Subnet)> {
        self.fixed_ips.iter().filter_map(|address| {
            Some((*address, self.network.subnets.iter().find(|subnet| subnet.cidr.contains(address))?))
        })
    }

    /// Whether DHCP over IPv4 is answered: some subnet of its network has that, and not all its addresses are of others.
    #[must_use]
    pub fn has_dhcp(&self) -> bool {
        self.is_told(tells_ipv4, IpAddr::is_ipv4)
    }

    /// Whether routers are advertised, and DHCP over IPv6 is answered: likewise.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.is_told(|subnet| subnet.ipv6_mode.is_some(), IpAddr::is_ipv6)
    }

    /// Whether a family's addresses are told to it by the services: some subnet of its network has that, and not all
    /// the addresses it has are of others, whose owner has said that they come from elsewhere.
    fn is_told(&self, tells: impl Fn(&Subnet) -> bool, is_of_family: impl Fn(&IpAddr) -> bool) -> bool {
        let mut own = self.addresses().filter(|(address, _)| is_of_family(address)).peekable();
        match own.peek() {
            Some(_) => own.any(|(_, subnet)| tells(subnet)),
            None => self.network.subnets.iter().any(tells),
        }
    }

    /// Whether what it sends passes from the address it makes of a prefix and its hardware address (RFC 4862).
    #[must_use]
    pub fn may_make_address(&self, prefix: Ipv6Net) -> bool {
        const INTERFACE: u128 = u64::MAX as u128;
        let interface = link_local_of(self.mac).to_bits() & INTERFACE;
        let made = IpAddr::V6(Ipv6Addr::from_bits(prefix.network().to_bits() | interface));
        let Some(allowed) = &self.allowed else { return true };
        self.fixed_ips.contains(&made) || allowed.iter().any(|range| range.contains(&made))
    }
}

impl<'a> Compiler<'a> {
    /// Notes a port that is plugged here; which services answer it, as `BINDING_*`.
    pub(super) fn serve(&mut self, port: &'a Port, network: &'a Network, ifindex: u32) -> u16 {
        let served = self.served_network(network);
        let (metadata, monitored) = (self.around.metadata, self.is_monitored(port));
        let own_pairs =
            port.allowed_address_pairs.iter().filter(|pair| pair.mac.is_none_or(|mac| mac == port.mac));
        let allowed = port.port_security.then(|| own_pairs.map(|pair| pair.ip).collect());
        let port = ServedPort {
            name: port.name.clone(),
            interface: port.interface.clone().unwrap_or_default(),
            mac: port.mac.0,
            fixed_ips: port.fixed_ips.clone(),
            allowed,
            dhcp_options: port.dhcp_options.clone(),
            device_id: port.device_id.clone(),
            project: port.project.clone(),
            metadata,
            monitored,
            network: served,
        };
        let flags = [
            (port.has_dhcp(), BINDING_DHCP),
            (port.has_ipv6(), BINDING_DHCPV6),
            (metadata, BINDING_METADATA),
            (monitored, BINDING_MONITORED),
        ];
        self.out.served.insert(ifindex, port);
        flags.into_iter().filter(|(is, _)| *is).map(|(_, flag)| flag).sum()
    }

    /// Whether this node asks a port for its health.
    fn is_monitored(&self, port: &Port) -> bool {
        port.interface.as_ref().is_some_and(|interface| self.asked.contains(interface.as_str()))
    }

    fn served_network(&mut self, network: &'a Network) -> Arc<ServedNetwork> {
        if let Some(served) = self.served_networks.get(network.name.as_str()) {
            return served.clone();
        }
        let topology = self.topology;
        let legs = self.legs.get_or_insert_with(|| {
            let mut legs: HashMap<&str, Vec<_>> = HashMap::new();
            for router in &topology.routers {
                for interface in &router.interfaces {
                    legs.entry(&interface.subnet).or_default().push((&*router.name, interface.address));
                }
            }
            legs
        });
        let mut routers: BTreeMap<&str, ServedRouter> = BTreeMap::new();
        for &(router, address) in network.subnets.iter().filter_map(|it| legs.get(&*it.name)).flatten() {
            let mac = derive_router_mac(router, &network.name).0;
            let served = routers.entry(router).or_insert_with(|| ServedRouter {
                name: router.to_owned(),
                mac,
                link_local: link_local_of(mac),
                addresses: Vec::new(),
            });
            served.addresses.push(address);
        }
        let served = Arc::new(ServedNetwork {
            name: network.name.clone(),
            mtu: self.mtu(network),
            service_mac: derive_service_mac(&network.name).0,
            subnets: network.subnets.clone(),
            routers: routers.into_values().collect(),
        });
        self.served_networks.insert(&network.name, served.clone());
        served
    }

    /// The addresses of services, on every network that has ports here.
    pub(super) fn services(&mut self) -> Result<()> {
        let networks: Vec<_> = self.served_networks.values().cloned().collect();
        for network in networks {
            let id = self.id(NAME_NETWORK, &network.name)?;
            // A client renews where it was given its address.
            let v4 = self.around.metadata || network.has_dhcp();
            let v6 = self.around.metadata;
            if !v4 && !v6 {
                continue;
            }
            let mac = network.service_mac;
            let station = Station { mac, kind: STATION_SERVICE, place: PLACE_EVERYWHERE, at: 0, owner: 0 };
            self.out.image.fdb.insert(FdbKey::new(0, id, mac), station);
            let addresses = [(v4, service::METADATA_IP_V4), (v6, service::METADATA_IP_V6)];
            for (_, ip) in addresses.into_iter().filter(|(is, _)| *is) {
                self.out.image.addresses.insert(AddressKey::new(0, id, ip), station);
            }
        }
        Ok(())
    }
}

fn tells_ipv4(subnet: &Subnet) -> bool {
    subnet.dhcp && !subnet.cidr.addr().is_ipv6()
}

/// The link-local address made of a hardware address.
#[must_use]
pub fn link_local_of(mac: [u8; 6]) -> Ipv6Addr {
    match IpAddr::from(Ip::link_local_of(mac)) {
        IpAddr::V6(address) => address,
        IpAddr::V4(address) => address.to_ipv6_mapped(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::services::{
        fixture::{DOCUMENT, compiled},
        router::advert::adverts,
    };

    /// What a port's binding says, with these addresses on a network where one subnet of each family is told by the
    /// services and another is not.
    fn flags(fixed_ips: &str) -> u16 {
        const CACHE4: &str = "{ name: cache4, cidr: 10.0.3.0/24, dhcp: false }";
        const VM4: &str = "10.0.3.11, \"fd00:3::ff:fe00:30b\"";
        let more = format!(
            "{CACHE4}\n      - {{ name: told4, cidr: 10.0.4.0/24 }}\n      - {{ name: cache7, cidr: \"fd00:4::/64\" }}"
        );
        let document = DOCUMENT.replace(VM4, fixed_ips).replace(CACHE4, &more);
        let compiled = compiled(&document, false);
        let served = &compiled.served[&14];
        let flags = compiled.image.bindings[&BindingKey { ifindex: Scoped::new(0, 14) }].flags;
        assert_eq!(!adverts(served).is_empty(), flags & BINDING_DHCPV6 != 0, "{fixed_ips}");
        flags
    }

    #[test]
    fn a_port_whose_addresses_come_from_elsewhere_is_not_told() {
        const BOTH: u16 = BINDING_DHCP | BINDING_DHCPV6;
        for (fixed_ips, told) in [
            ("10.0.4.11, \"fd00:3::ff:fe00:30b\"", BOTH),
            ("10.0.3.11, \"fd00:3::ff:fe00:30b\"", BINDING_DHCPV6),
            ("10.0.4.11, \"fd00:4::11\"", BINDING_DHCP),
            ("10.0.3.11, \"fd00:4::11\"", 0),
            ("10.0.3.11, 10.0.4.11, \"fd00:4::11\", \"fd00:3::ff:fe00:30b\"", BOTH),
            // It has none of that family: what it says is kept from others, and refused.
            ("10.0.3.11", BINDING_DHCPV6),
            ("\"fd00:4::11\"", BINDING_DHCP),
            ("", BOTH),
        ] {
            assert_eq!(flags(fixed_ips), told, "{fixed_ips}");
        }
    }
}
