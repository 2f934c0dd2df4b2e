//! Ports on their networks and nodes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::Check;
use crate::topology::decode::{Kind, label_of};
use crate::topology::model::{Ipv6Mode, Mac, Port};
use crate::topology::ranges::unusable;
use crate::topology::yaml::Step;

/// Who has what already; values are ports.
#[derive(Default)]
pub(super) struct Taken<'a> {
    macs: HashMap<(usize, Mac), usize>,
    pub(super) addresses: HashMap<(usize, IpAddr), usize>,
    interfaces: HashMap<(&'a str, &'a str), usize>,
}

impl<'a> Check<'a, '_> {
    /// Returns what they have.
    pub(super) fn ports(&mut self) -> Taken<'a> {
        let mut taken = Taken::default();
        for (i, port) in self.topology.ports.iter().enumerate() {
            if self.is_twin(Kind::Port, i) {
                continue;
            }
            let object = label_of(Kind::Port, &port.name);
            let line = self.line(Kind::Port, i, &[Step::Field("network")]);
            if let Some(network) = self.resolve(Kind::Network, &port.network, line, &object) {
                self.on_network(i, port, network, &object, &mut taken);
            }
            for (position, group) in port.security_groups.iter().enumerate() {
                let path = [Step::Field("security_groups"), Step::Item(position)];
                // Naming it costs a walk through the tree: only when something is to be said.
                if !self.names[Kind::SecurityGroup].contains_key(group.as_str()) {
                    let line = self.line(Kind::Port, i, &path);
                    self.resolve(Kind::SecurityGroup, group, line, &object);
                }
            }
            if let (Some(node), Some(interface)) = (&port.node, &port.interface) {
                let line = self.line(Kind::Port, i, &[Step::Field("node")]);
                if self.resolve(Kind::Node, node, line, &object).is_some() {
                    self.on_node(i, node, interface, &object, &mut taken.interfaces);
                }
            }
        }
        taken
    }

    fn on_network(&mut self, index: usize, port: &Port, network: usize, object: &str, taken: &mut Taken<'_>) {
        if self.network(network).external {
            self.report(
                self.line(Kind::Port, index, &[Step::Field("network")]),
                object,
                format!("network {} is external, and has no ports", port.network),
                "put the port on another network and give it a floating ip",
            );
            return;
        }
        match taken.macs.entry((network, port.mac)) {
            Entry::Vacant(free) => {
                free.insert(index);
            }
            Entry::Occupied(other) => {
                let other = &self.topology.ports[*other.get()].name;
                let message =
                    format!("the MAC {} is port {other}'s already on network {}", port.mac, port.network);
                let line = self.line(Kind::Port, index, &[Step::Field("mac")]);
                self.report(line, object, message, "give each port on a network its own MAC");
            }
        }
        for (position, address) in port.fixed_ips.iter().copied().enumerate() {
            if let Some((message, remedy)) = self.fixed_ip(index, network, address, &mut taken.addresses) {
                let path = [Step::Field("fixed_ips"), Step::Item(position)];
                self.report(self.line(Kind::Port, index, &path), object, message, remedy);
            }
        }
    }

    /// What is wrong with a port's address on its network.
    fn fixed_ip(
        &self,
        index: usize,
        network: usize,
        address: IpAddr,
        taken: &mut HashMap<(usize, IpAddr), usize>,
    ) -> Option<(String, String)> {
        let name = &self.network(network).name;
        match taken.entry((network, address)) {
            Entry::Vacant(free) => {
                free.insert(index);
            }
            Entry::Occupied(other) if *other.get() == index => {
                return Some((format!("{address} is listed twice"), "keep one of the two".to_owned()));
            }
            Entry::Occupied(other) => {
                let other = &self.topology.ports[*other.get()].name;
                let message = format!("{address} is port {other}'s already on network {name}");
                return Some((message, "give each port on a network its own address".to_owned()));
            }
        }
        if let Some(router) = self.router_addresses.get(&(network, address)) {
            let router = &self.topology.routers[*router].name;
            let message = format!("{address} is router {router}'s address on network {name}");
            return Some((message, "use another address of the subnet".to_owned()));
        }
        let Some((_, place)) = self.ranges[network].find(address).ok()? else {
            return Some(self.outside(address, network));
        };
        let subnet = self.subnet(place);
        if let (Some(Ipv6Mode::Slaac | Ipv6Mode::Stateless), IpAddr::V6(given)) = (subnet.ipv6_mode, address)
        {
            let made = interface_address(subnet.cidr, self.topology.ports[index].mac);
            if made != Some(given) {
                let message =
                    format!("{given} is not the address that subnet {} and the MAC make", subnet.name);
                let remedy = match made {
                    Some(made) => format!("write {made}, or `ipv6_mode: dhcpv6-stateful` to the subnet"),
                    None => "write `ipv6_mode: dhcpv6-stateful` to the subnet".to_owned(),
                };
                return Some((message, remedy));
            }
        }
        let what =
            if subnet.gateway == Some(address) { Some("gateway") } else { unusable(subnet.cidr, address) };
        what.map(|what| {
            let message = format!("{address} is the {what} of subnet {}", subnet.name);
            (message, format!("use another address of {}", subnet.cidr))
        })
    }

    fn on_node<'n>(
        &mut self,
        index: usize,
        node: &'n str,
        interface: &'n str,
        object: &str,
        taken: &mut HashMap<(&'n str, &'n str), usize>,
    ) {
        match taken.entry((node, interface)) {
            Entry::Vacant(free) => {
                free.insert(index);
            }
            Entry::Occupied(other) => {
                let other = &self.topology.ports[*other.get()].name;
                let message = format!("the interface {interface} on node {node} is port {other}'s already");
                let line = self.line(Kind::Port, index, &[Step::Field("interface")]);
                self.report(line, object, message, "give each port its own interface");
            }
        }
    }
}

/// The address a host makes of a prefix and its MAC (RFC 4862 with RFC 2464). `None`: the prefix is no /64.
fn interface_address(cidr: IpNet, mac: Mac) -> Option<Ipv6Addr> {
    let IpNet::V6(cidr) = cidr else { return None };
    let [a, b, c, d, e, f] = mac.0;
    let interface = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    (cidr.prefix_len() == 64).then(|| Ipv6Addr::from_bits(cidr.network().to_bits() | u128::from(interface)))
}
