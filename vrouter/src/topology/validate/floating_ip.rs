//! Floating IPs and port forwardings.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::Check;
use crate::topology::decode::{Kind, label_of};
use crate::topology::model::{FloatingIp, Port};
use crate::topology::ranges::{Overlapping, same_family, unusable};
use crate::topology::yaml::Step;
use crate::topology::{Balancers, Translators};

impl<'a> Check<'a, '_> {
    pub(super) fn floating_ips(&mut self) {
        let translators = Translators::of(self.topology);
        let balancers = Balancers::of(self.topology);
        let mut lines: HashMap<IpAddr, usize> = HashMap::new();
        let mut bound: HashMap<(&str, IpAddr), IpAddr> = HashMap::new();
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
                let Some((port, inside)) = self.target(i, name, line, &object) else { continue };
                if let Some(other) = bound.get(&(name.as_str(), inside)) {
                    let message = format!("{inside} of port {name} has the floating ip {other} already");
                    let remedy = "bind one address to each fixed ip; share by port_forwardings";
                    self.report(line, object, message, remedy);
                    continue;
                }
                bound.insert((name, inside), address);
                self.translator(&translators, port, inside, external, line, &object);
            }
            if let Some(name) = &floating_ip.load_balancer {
                self.balanced(i, floating_ip, name, external, &balancers, &object);
            }
            self.forwardings(i, floating_ip, external, &translators, &object);
        }
    }

    /// A floating IP that leads to a VIP.
    fn balanced(
        &mut self,
        index: usize,
        floating_ip: &FloatingIp,
        name: &str,
        external: Option<usize>,
        balancers: &Balancers<'_>,
        object: &str,
    ) {
        let line = self.line(Kind::FloatingIp, index, &[Step::Field("load_balancer")]);
        let Some(balancer) = self.resolve(Kind::LoadBalancer, name, line, &object) else { return };
        let balancer = &self.topology.load_balancers[balancer];
        let family = if floating_ip.address.is_ipv6() { "IPv6" } else { "IPv4" };
        let Some(vip) = floating_ip.vip(balancer) else {
            let message = format!("load balancer {name} has no {family} VIP to translate to");
            self.report(line, object, message, format!("give it an {family} address in vip_addresses"));
            return;
        };
        let Some(external) = external.filter(|_| self.routers_are_known) else { return };
        let external = self.network(external);
        // Without a router the load balancer itself is to blame.
        let Some(router) = balancers.router(&balancer.network, vip) else { return };
        let gateway = router.gateway.as_ref().filter(|gateway| gateway.network == external.name);
        if gateway.is_none_or(|gateway| gateway.address(vip.is_ipv6()).is_none()) {
            let message = format!(
                "router {}, which balances for the VIP {vip}, has no {family} gateway on {}",
                router.name, external.name
            );
            self.report(line, object, message, format!("give router {} one", router.name));
        }
    }

    fn forwardings(
        &mut self,
        index: usize,
        floating_ip: &FloatingIp,
        external: Option<usize>,
        translators: &Translators<'_>,
        object: &str,
    ) {
        let mut seen = HashSet::new();
        let mut first: Option<(&str, &str)> = None;
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
            let name = forwarding.port.as_str();
            let line = self.line(Kind::FloatingIp, index, &line_of("port"));
            let Some((port, inside)) = self.target(index, name, line, &object) else { continue };
            let router = self.translator(translators, port, inside, external, line, &object);
            match (router, first) {
                (Some(router), Some((other_port, other))) if router != other => {
                    let message =
                        format!("port {name} is behind router {router}, port {other_port} behind {other}");
                    let remedy =
                        "use an address of its own for each router: one router answers for an address";
                    self.report(line, object, message, remedy);
                }
                (Some(router), None) => first = Some((name, router)),
                _ => {}
            }
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
        } else if let Some(what) = unusable(subnet.cidr, address) {
            format!("the {what} of subnet {}", subnet.name)
        } else {
            return Some(network);
        };
        let message = format!("{address} is {taken}");
        self.report(line, object, message, format!("use another address of {}", subnet.cidr));
        None
    }

    /// The port that traffic to a floating IP ends at, and which of its addresses.
    fn target(&mut self, index: usize, name: &str, line: usize, object: &str) -> Option<(&'a Port, IpAddr)> {
        let port = self.resolve(Kind::Port, name, line, &object)?;
        let (port, floating_ip) = (&self.topology.ports[port], &self.topology.floating_ips[index]);
        let family = if floating_ip.address.is_ipv6() { "IPv6" } else { "IPv4" };
        if let Some(fixed_ip) = floating_ip.fixed_ip {
            let wrong = if !same_family(fixed_ip, floating_ip.address) {
                format!("{fixed_ip} is not of the family of {}", floating_ip.address)
            } else if !port.fixed_ips.contains(&fixed_ip) {
                format!("{fixed_ip} is no fixed ip of port {name}")
            } else {
                return Some((port, fixed_ip));
            };
            let line = self.line(Kind::FloatingIp, index, &[Step::Field("fixed_ip")]);
            let remedy = match port.first_ip(floating_ip.address.is_ipv6()) {
                Some(first) => format!("write one of the port's {family} addresses, like {first}"),
                None => format!("give the port an {family} fixed ip"),
            };
            self.report(line, object, wrong, remedy);
            return None;
        }
        let inside = floating_ip.inside(port);
        if inside.is_none() {
            let message = format!("port {name} has no {family} address to translate to");
            self.report(line, object, message, format!("give the port an {family} fixed ip"));
        }
        inside.map(|inside| (port, inside))
    }

    /// The router between a port's address and an external network; its absence is reported.
    fn translator<'t>(
        &mut self,
        translators: &Translators<'t>,
        port: &Port,
        inside: IpAddr,
        external: Option<usize>,
        line: usize,
        object: &str,
    ) -> Option<&'t str> {
        let network = self.names[Kind::Network].get(port.network.as_str()).copied()?;
        let external = self.network(external?);
        // Not to be blamed: a port on an external network, an address in no subnet, a router nobody could read.
        if self.network(network).external || !self.routers_are_known {
            return None;
        }
        let subnet = translators.subnet(&port.network, inside)?;
        let family = if inside.is_ipv6() { "IPv6" } else { "IPv4" };
        let (message, remedy) = match translators.between(&subnet.name, &external.name) {
            None => (
                format!(
                    "port {}'s network {} has no router with a gateway on {}",
                    port.name, port.network, external.name
                ),
                format!("give a router an interface on it and a gateway on {}", external.name),
            ),
            Some(router) if router.gateway.as_ref()?.address(inside.is_ipv6()).is_none() => (
                format!("router {} has no {family} address on {}", router.name, external.name),
                format!("add an {family} address to its gateway: `address: [ …, … ]`"),
            ),
            Some(router) => return Some(&router.name),
        };
        self.report(line, object, message, remedy);
        None
    }
}
