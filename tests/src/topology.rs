//! Topology documents for labs: a small model to start from and change, printed as YAML.

use std::fmt;

/// A topology document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The `networks:` of the document.
    pub networks: Vec<Network>,
    /// The `routers:`.
    pub routers: Vec<Router>,
    /// The `ports:`; a lab makes a workload for each that is bound to a node.
    pub ports: Vec<Port>,
    /// The `nodes:`.
    pub nodes: Vec<NodeEntry>,
}

/// A network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its VNI, if it is to be given.
    pub vni: Option<u32>,
    /// Its MTU, if it is to be given.
    pub mtu: Option<u32>,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
}

/// A subnet of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subnet {
    /// Its name.
    pub name: String,
    /// Its range: `10.0.1.0/24`.
    pub cidr: String,
    /// The router's address in it, if there is a router.
    pub gateway: Option<String>,
}

/// A router.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Router {
    /// Its name.
    pub name: String,
    /// Subnet names, or whole entries: `{ subnet: web4, address: 10.0.1.254 }`.
    pub interfaces: Vec<String>,
    /// Whole entries: `{ destination: 10.99.0.0/16, nexthop: 10.0.2.9 }`.
    pub routes: Vec<String>,
}

/// A port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Its name, and that of its workload in a lab.
    pub name: String,
    /// Its network's name.
    pub network: String,
    /// Its hardware address.
    pub mac: String,
    /// Its addresses, without prefix length.
    pub fixed_ips: Vec<String>,
    /// The node it is bound to.
    pub node: String,
    /// Its interface there.
    pub interface: String,
    /// Further keys with their values, each a line of YAML: `port_security: false`.
    pub extra: Vec<String>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeEntry {
    /// Its name.
    pub name: String,
    /// Its tunnel address.
    pub vtep: String,
}

/// The group every port is in; it lets everything through, so that only tests of policy speak of policy.
pub const OPEN_GROUP: &str = "open";

/// The lab of the demo: two nodes with three workloads each, two networks, one router that joins them.
///
/// ```text
/// node-a   vm1 web 10.0.1.11 fd00:1::b   vm2 web 10.0.1.12 fd00:1::c   vm3 db 10.0.2.13 fd00:2::d
/// node-b   vm4 web 10.0.1.14 fd00:1::e   vm5 db 10.0.2.15 fd00:2::f    vm6 db 10.0.2.16 fd00:2::10
/// ```
pub fn standard() -> Topology {
    Topology {
        networks: vec![
            Network::new("web", &[("web4", "10.0.1.0/24", "10.0.1.1"), ("web6", "fd00:1::/64", "fd00:1::1")]),
            Network::new("db", &[("db4", "10.0.2.0/24", "10.0.2.1"), ("db6", "fd00:2::/64", "fd00:2::1")]),
        ],
        routers: vec![Router::new("r1", &["web4", "web6", "db4", "db6"])],
        ports: vec![
            standard_port("vm1", "web", 11, "node-a"),
            standard_port("vm2", "web", 12, "node-a"),
            standard_port("vm3", "db", 13, "node-a"),
            standard_port("vm4", "web", 14, "node-b"),
            standard_port("vm5", "db", 15, "node-b"),
            standard_port("vm6", "db", 16, "node-b"),
        ],
        nodes: vec![NodeEntry::new("node-a", "192.0.2.1"), NodeEntry::new("node-b", "192.0.2.2")],
    }
}

/// A port of the standard lab's networks: number 11 on `web` has 02:00:00:00:01:0b, 10.0.1.11 and fd00:1::b.
pub fn standard_port(name: &str, network: &str, number: u8, node: &str) -> Port {
    let third = if network == "web" { 1 } else { 2 };
    Port {
        name: name.to_owned(),
        network: network.to_owned(),
        mac: format!("02:00:00:00:{third:02x}:{number:02x}"),
        fixed_ips: vec![format!("10.0.{third}.{number}"), format!("fd00:{third}::{number:x}")],
        node: node.to_owned(),
        interface: format!("tap-{name}"),
        extra: Vec::new(),
    }
}

impl Topology {
    /// The port called `name`, to be changed.
    ///
    /// # Panics
    /// If there is none.
    pub fn port_mut(&mut self, name: &str) -> &mut Port {
        self.ports.iter_mut().find(|port| port.name == name).unwrap_or_else(|| panic!("no port {name}"))
    }

    /// The network called `name`, to be changed.
    ///
    /// # Panics
    /// If there is none.
    pub fn network_mut(&mut self, name: &str) -> &mut Network {
        self.networks
            .iter_mut()
            .find(|network| network.name == name)
            .unwrap_or_else(|| panic!("no network {name}"))
    }

    /// The router called `name`, to be changed.
    ///
    /// # Panics
    /// If there is none.
    pub fn router_mut(&mut self, name: &str) -> &mut Router {
        self.routers
            .iter_mut()
            .find(|router| router.name == name)
            .unwrap_or_else(|| panic!("no router {name}"))
    }
}

impl Network {
    /// A network with subnets given as (name, range, gateway); an empty gateway is none.
    pub fn new(name: &str, subnets: &[(&str, &str, &str)]) -> Self {
        let subnets = subnets.iter().map(|&(name, cidr, gateway)| Subnet {
            name: name.to_owned(),
            cidr: cidr.to_owned(),
            gateway: (!gateway.is_empty()).then(|| gateway.to_owned()),
        });
        Self { name: name.to_owned(), vni: None, mtu: None, subnets: subnets.collect() }
    }
}

impl Router {
    /// A router with interfaces at the gateway addresses of these subnets.
    pub fn new(name: &str, subnets: &[&str]) -> Self {
        let interfaces = subnets.iter().map(|&subnet| subnet.to_owned()).collect();
        Self { name: name.to_owned(), interfaces, routes: Vec::new() }
    }
}

impl NodeEntry {
    /// A node with its tunnel address.
    pub fn new(name: &str, vtep: &str) -> Self {
        Self { name: name.to_owned(), vtep: vtep.to_owned() }
    }
}

/// As YAML. Addresses are quoted: `fd00::` or `10:20` would not be text otherwise.
impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.networks.is_empty() {
            writeln!(f, "networks:")?;
            self.networks.iter().try_for_each(|network| write!(f, "{network}"))?;
        }
        if !self.routers.is_empty() {
            writeln!(f, "routers:")?;
            self.routers.iter().try_for_each(|router| write!(f, "{router}"))?;
        }
        writeln!(f, "security_groups:")?;
        writeln!(f, "  - name: {OPEN_GROUP}")?;
        writeln!(f, "    rules:")?;
        writeln!(f, "      - {{ direction: ingress }}")?;
        writeln!(f, "      - {{ direction: egress }}")?;
        if !self.ports.is_empty() {
            writeln!(f, "ports:")?;
            self.ports.iter().try_for_each(|port| write!(f, "{port}"))?;
        }
        if !self.nodes.is_empty() {
            writeln!(f, "nodes:")?;
        }
        self.nodes
            .iter()
            .try_for_each(|node| writeln!(f, "  - {{ name: {}, vtep: {} }}", node.name, node.vtep))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  - name: {}", self.name)?;
        if let Some(vni) = self.vni {
            writeln!(f, "    vni: {vni}")?;
        }
        if let Some(mtu) = self.mtu {
            writeln!(f, "    mtu: {mtu}")?;
        }
        writeln!(f, "    subnets:")?;
        for Subnet { name, cidr, gateway } in &self.subnets {
            write!(f, "      - {{ name: {name}, cidr: \"{cidr}\"")?;
            if let Some(gateway) = gateway {
                write!(f, ", gateway: \"{gateway}\"")?;
            }
            writeln!(f, " }}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  - name: {}", self.name)?;
        writeln!(f, "    interfaces: [{}]", self.interfaces.join(", "))?;
        if !self.routes.is_empty() {
            writeln!(f, "    routes:")?;
        }
        self.routes.iter().try_for_each(|route| writeln!(f, "      - {route}"))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  - name: {}", self.name)?;
        writeln!(f, "    network: {}", self.network)?;
        writeln!(f, "    mac: \"{}\"", self.mac)?;
        let fixed_ips: Vec<String> = self.fixed_ips.iter().map(|ip| format!("\"{ip}\"")).collect();
        writeln!(f, "    fixed_ips: [{}]", fixed_ips.join(", "))?;
        writeln!(f, "    security_groups: [{OPEN_GROUP}]")?;
        if !self.node.is_empty() {
            writeln!(f, "    node: {}", self.node)?;
            writeln!(f, "    interface: {}", self.interface)?;
        }
        self.extra.iter().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_lab_has_the_addresses_it_promises() {
        let topology = standard();
        let last = topology.ports.last().unwrap();
        assert_eq!(last.mac, "02:00:00:00:02:10");
        assert_eq!(last.fixed_ips, ["10.0.2.16", "fd00:2::10"]);
    }

    #[test]
    fn prints_yaml() {
        let mut topology = standard();
        topology.router_mut("r1").routes.push("{ destination: 10.9.0.0/16, nexthop: blackhole }".into());
        topology.port_mut("vm1").extra.push("port_security: false".into());
        topology.network_mut("web").vni = Some(1001);
        let yaml = topology.to_string();
        for part in [
            "networks:\n  - name: web\n    vni: 1001\n    subnets:\n      - { name: web4, cidr: \"10.0.1.0/24\", gateway: \"10.0.1.1\" }\n",
            "    interfaces: [web4, web6, db4, db6]\n    routes:\n      - { destination: 10.9.0.0/16, nexthop: blackhole }\n",
            "    fixed_ips: [\"10.0.1.11\", \"fd00:1::b\"]\n    security_groups: [open]\n    node: node-a\n    interface: tap-vm1\n    port_security: false\n",
            "nodes:\n  - { name: node-a, vtep: 192.0.2.1 }\n",
        ] {
            assert!(yaml.contains(part), "{part}\nis not in:\n{yaml}");
        }
    }
}
