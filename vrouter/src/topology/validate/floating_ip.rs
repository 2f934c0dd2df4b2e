//! Floating IPs and port forwardings.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::Check;
use crate::topology::decode::{Kind, label_of};
use crate::topology::model::FloatingIp;
use crate::topology::ranges::{Overlapping, edge};
use crate::topology::yaml::Step;

impl Check<'_, '_> {
    pub(super) fn floating_ips(&mut self) {
        let mut lines: HashMap<IpAddr, usize> = HashMap::new();
        let mut bound: HashMap<&str, IpAddr> = HashMap::new();
        for (i, floating_ip) in self.topology.floating_ips.iter().enumerate() {
            let address = floating_ip.address;
            let object = label_of(Kind::FloatingIp, address);
            let line = self.line(Kind::FloatingIp, i, &[Step::Field("address")]);
            if let Some(first) = lines.get(&address) {
                let message = format!("the address is in line {first} already");
                let remedy = "keep one; several port forwardings are one list under one address";
                self.report(line, object, message, remedy);
                continue;
            }
            lines.insert(address, line);
            let external = self.external_network(address, line, &object);
            if let Some(name) = &floating_ip.port {
                let line = self.line(Kind::FloatingIp, i, &[Step::Field("port")]);
                if let Some(other) = bound.get(name.as_str()) {
                    let message = format!("port {name} has the floating ip {other} already");
                    self.report(
                        line,
                        object,
                        message,
                        "bind one address to a port; share by port_forwardings",
                    );
                    continue;
                }
                bound.insert(name, address);
                self.target(name, external, line, &object);
            }
            self.forwardings(i, floating_ip, external, &object);
        }
    }

    fn forwardings(&mut self, index: usize, floating_ip: &FloatingIp, external: Option<usize>, object: &str) {
        let mut seen = HashSet::new();
        for (i, forwarding) in floating_ip.port_forwardings.iter().enumerate() {
            let object = format!("{object} port_forwardings[{i}]");
            let line_of = |key| [Step::Field("port_forwardings"), Step::Item(i), Step::Field(key)];
            if !seen.insert((forwarding.protocol, forwarding.external_port)) {
                let protocol = if forwarding.protocol == 6 { "tcp" } else { "udp" };
                let line = self.line(Kind::FloatingIp, index, &line_of("external_port"));
                let message = format!("{protocol} port {} is forwarded already", forwarding.external_port);
                self.report(line, object, message, "use another external_port");
                continue;
            }
            let line = self.line(Kind::FloatingIp, index, &line_of("port"));
            self.target(&forwarding.port, external, line, &object);
        }
    }

    /// The external network that a floating IP is an address of, if it may be one.
    fn external_network(&mut self, address: IpAddr, line: usize, object: &str) -> Option<usize> {
        let place = match self.external_ranges.find(address) {
            Ok(Some((_, place))) => place,
            Err(Overlapping) => return None,
            Ok(None) => {
                // An external network that could not be read may be the one.
                if self.decoded.broken[Kind::Network].is_empty() {
                    self.report(
                        line,
                        object,
                        format!("{address} is outside every subnet of every external network"),
                        "use an address of a subnet of a network with `external: true`",
                    );
                }
                return None;
            }
        };
        let (network, subnet) = (self.subnets[place].network, self.subnet(place));
        let taken = if let Some(router) = self.gateway_addresses.get(&(network, address)) {
            format!("the gateway address of router {}", self.topology.routers[*router].name)
        } else if subnet.gateway == Some(address) {
            format!("the next router's address of subnet {}", subnet.name)
        } else if let Some(edge) = edge(subnet.cidr, address) {
            format!("the {edge} of subnet {}", subnet.name)
        } else {
            return Some(network);
        };
        let message = format!("{address} is {taken}");
        self.report(line, object, message, format!("use another address of {}", subnet.cidr));
        None
    }

    /// Checks the port that traffic to a floating IP ends at.
    fn target(&mut self, name: &str, external: Option<usize>, line: usize, object: &str) {
        let Some(port) = self.resolve(Kind::Port, name, line, &object) else { return };
        let port = &self.topology.ports[port];
        if !port.fixed_ips.iter().any(IpAddr::is_ipv4) {
            let message = format!("port {name} has no IPv4 address to translate to");
            self.report(line, object, message, "give the port an IPv4 fixed ip");
            return;
        }
        let (Some(external), Some(network)) =
            (external, self.names[Kind::Network].get(port.network.as_str()).copied())
        else {
            return;
        };
        // Not to be blamed: a port on an external network, an address in no subnet, a router nobody could read.
        let mut places = Vec::new();
        for address in port.fixed_ips.iter().filter(|address| address.is_ipv4()) {
            match self.ranges[network].find(*address) {
                Ok(Some((_, place))) => places.push(place),
                Ok(None) | Err(Overlapping) => return,
            }
        }
        if self.network(network).external
            || !self.routers_are_known
            || places.iter().any(|place| self.reaches.contains(&(*place, external)))
        {
            return;
        }
        let external = &self.network(external).name;
        self.report(
            line,
            object,
            format!("port {name}'s network {} has no router with a gateway on {external}", port.network),
            format!("give a router an interface on it and a gateway on {external}"),
        );
    }
}
