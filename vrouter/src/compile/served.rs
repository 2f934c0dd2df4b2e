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

    /// Whether DHCP over IPv4 is answered.
    #[must_use]
    pub fn has_dhcp(&self) -> bool {
        self.subnets.iter().any(|subnet| subnet.dhcp && !subnet.cidr.addr().is_ipv6())
    }

    /// Whether routers are advertised, and DHCP over IPv6 is answered.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.subnets.iter().any(|subnet| subnet.ipv6_mode.is_some())
    }
}

impl ServedPort {
    /// Its addresses with the subnets they are of.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, &Subnet)> {
        self.fixed_ips.iter().filter_map(|address| {
            Some((*address, self.network.subnets.iter().find(|subnet| subnet.cidr.contains(address))?))
        })
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
        let flags = [
            (served.has_dhcp(), BINDING_DHCP),
            (served.has_ipv6(), BINDING_DHCPV6),
            (metadata, BINDING_METADATA),
            (monitored, BINDING_MONITORED),
        ];
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

/// The link-local address made of a hardware address.
#[must_use]
pub fn link_local_of(mac: [u8; 6]) -> Ipv6Addr {
    match IpAddr::from(Ip::link_local_of(mac)) {
        IpAddr::V6(address) => address,
        IpAddr::V4(address) => address.to_ipv6_mapped(),
    }
}
