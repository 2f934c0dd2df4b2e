//! Topology documents for labs: a small model to start from and change, printed as YAML.

use std::fmt;

/// A topology document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The `networks:` of the document.
    pub networks: Vec<Network>,
    /// The `routers:`.
    pub routers: Vec<Router>,
    /// The `security_groups:`, beside [`OPEN_GROUP`].
    pub security_groups: Vec<SecurityGroup>,
    /// The `address_groups:`.
    pub address_groups: Vec<AddressGroup>,
    /// The `ports:`; a lab makes a workload for each that is bound to a node.
    pub ports: Vec<Port>,
    /// The `floating_ips:`.
    pub floating_ips: Vec<FloatingIp>,
    /// The `load_balancers:`, each as it is written.
    pub load_balancers: Vec<String>,
    /// The `pools:`, each as it is written.
    pub pools: Vec<String>,
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
    /// Whether it is reached through the nodes' external interfaces; a lab makes what is there.
    pub external: bool,
    /// Whether it is external and routed: the lab has a link to each gateway there, and BGP.
    pub routed: bool,
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
    /// Further fields, whole: `ipv6_mode: slaac`.
    pub extra: Vec<String>,
}

/// A router.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Router {
    /// Its name.
    pub name: String,
    /// Subnet names, or whole entries: `{ subnet: web4, address: 10.0.1.254 }`.
    pub interfaces: Vec<String>,
    /// Its leg on an external network.
    pub gateway: Option<Gateway>,
    /// Whole entries: `{ destination: 10.99.0.0/16, nexthop: 10.0.2.9 }`.
    pub routes: Vec<String>,
}

/// A router's leg on an external network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// The network's name.
    pub network: String,
    /// The router's addresses there, at most one of each family.
    pub addresses: Vec<String>,
    /// Whether what has no floating IP gets the router's address, if it is to be said.
    pub snat: Option<bool>,
    /// The ports of the address that may be used, if they are to be given: `1024-65535`.
    pub snat_ports: Option<String>,
    /// How its gateways agree, whole: `{ vrid: 7, preempt: false }`.
    pub vrrp: Option<String>,
}

/// A security group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityGroup {
    /// Its name.
    pub name: String,
    /// Whether it says `stateful: false`.
    pub stateless: bool,
    /// Its rules, whole: `{ direction: ingress, protocol: tcp, ports: 80-443 }`.
    pub rules: Vec<String>,
}

/// An address group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressGroup {
    /// Its name.
    pub name: String,
    /// Its ranges.
    pub addresses: Vec<String>,
}

/// A floating IP: a whole address for a port, or single ports of it for several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FloatingIp {
    /// The address outside.
    pub address: String,
    /// The port that has the whole address; empty if it is shared or nobody's.
    pub port: String,
    /// The load balancer whose VIP it leads to; empty if none.
    pub load_balancer: String,
    /// The ports it is shared by.
    pub forwardings: Vec<Forwarding>,
}

/// One port of an address outside that leads to a port of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The port outside.
    pub external: u16,
    /// The port (of the topology) it leads to.
    pub port: String,
    /// The port of the workload.
    pub internal: u16,
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
    /// Its security groups; not given: [`OPEN_GROUP`] alone.
    pub security_groups: Option<Vec<String>>,
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
    /// Whether it may carry external traffic for others.
    pub gateway: bool,
    /// Whether it has no interface on the external network; a lab gives it none.
    pub is_inside: bool,
}

/// The group every port is in that names no other; it lets everything through, so that only tests of policy speak of policy.
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
        ..Topology::default()
    }
}

/// The standard lab with a way out: [`standard`], the external network `public`, and on it r1 with SNAT, and
/// floating IPs. What is on the other side is drawn at [`Outside`](crate::outside::Outside).
///
/// ```text
/// r1    203.0.113.10 2001:db8:ff::10
/// vm1   203.0.113.51                     vm5   203.0.113.55
/// 203.0.113.60   tcp 2222 -> vm3 22   tcp 2226 -> vm6 22   udp 5353 -> vm6 53
/// ```
pub fn with_outside() -> Topology {
    let mut topology = standard();
    let mut public = Network::new(
        "public",
        &[("public4", "203.0.113.0/24", "203.0.113.1"), ("public6", "2001:db8:ff::/64", "2001:db8:ff::1")],
    );
    public.external = true;
    topology.networks.push(public);
    topology.router_mut("r1").gateway = Some(Gateway {
        network: "public".to_owned(),
        addresses: vec!["203.0.113.10".to_owned(), "2001:db8:ff::10".to_owned()],
        snat: Some(true),
        snat_ports: None,
        vrrp: None,
    });
    topology.floating_ips = vec![
        FloatingIp::new("203.0.113.51", "vm1"),
        FloatingIp::new("203.0.113.55", "vm5"),
        FloatingIp::shared(
            "203.0.113.60",
            &[("tcp", 2222, "vm3", 22), ("tcp", 2226, "vm6", 22), ("udp", 5353, "vm6", 53)],
        ),
    ];
    topology.nodes[1].gateway = true;
    topology
}

/// The lab of the edge: workloads on two nodes without an interface outside, and two gateways.
///
/// ```text
/// node-a   vm1 vm2 vm3   no interface on public      gw-1, gw-2   gateways
/// node-b   vm4 vm5 vm6   no interface on public
/// ```
///
/// Addresses outside are those of [`with_outside`].
pub fn with_edge() -> Topology {
    let mut topology = with_outside();
    for node in &mut topology.nodes {
        (node.gateway, node.is_inside) = (false, true);
    }
    for (name, vtep) in [("gw-1", "192.0.2.3"), ("gw-2", "192.0.2.4")] {
        topology.nodes.push(NodeEntry { gateway: true, ..NodeEntry::new(name, vtep) });
    }
    topology
}

/// A port of the standard lab's networks: number 11 on `web` has 02:00:00:00:01:0b, 10.0.1.11 and fd00:1::b.
pub fn standard_port(name: &str, network: &str, number: u8, node: &str) -> Port {
    let third = if network == "web" { 1 } else { 2 };
    Port {
        name: name.to_owned(),
        network: network.to_owned(),
        mac: format!("02:00:00:00:{third:02x}:{number:02x}"),
        fixed_ips: vec![format!("10.0.{third}.{number}"), format!("fd00:{third}::{number:x}")],
        security_groups: None,
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

    /// The security group called `name`, to be changed.
    ///
    /// # Panics
    /// If there is none.
    pub fn group_mut(&mut self, name: &str) -> &mut SecurityGroup {
        self.security_groups
            .iter_mut()
            .find(|group| group.name == name)
            .unwrap_or_else(|| panic!("no security group {name}"))
    }

    /// The floating IP of that address, to be changed.
    ///
    /// # Panics
    /// If there is none.
    pub fn floating_mut(&mut self, address: &str) -> &mut FloatingIp {
        self.floating_ips
            .iter_mut()
            .find(|floating| floating.address == address)
            .unwrap_or_else(|| panic!("no floating IP {address}"))
    }

    /// Adds a security group with these rules.
    pub fn add_group(&mut self, name: &str, rules: &[&str]) {
        self.security_groups.push(SecurityGroup::new(name, rules));
    }

    /// Puts a port into these security groups and no other.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn put_into(&mut self, port: &str, groups: &[&str]) {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        self.port_mut(port).security_groups = Some(groups);
    }

    /// The same with everything on its first node alone.
    pub fn on_one_node(mut self) -> Self {
        self.nodes.truncate(1);
        let first = self.nodes[0].name.clone();
        for port in self.ports.iter_mut().filter(|port| !port.node.is_empty()) {
            port.node.clone_from(&first);
        }
        self
    }

    /// The external network, if there is one.
    pub fn external(&self) -> Option<&Network> {
        self.networks.iter().find(|network| network.external)
    }
}

impl Network {
    /// A network with subnets given as (name, range, gateway); an empty gateway is none.
    pub fn new(name: &str, subnets: &[(&str, &str, &str)]) -> Self {
        let subnets = subnets.iter().map(|&(name, cidr, gateway)| Subnet {
            name: name.to_owned(),
            cidr: cidr.to_owned(),
            gateway: (!gateway.is_empty()).then(|| gateway.to_owned()),
            extra: Vec::new(),
        });
        Self {
            name: name.to_owned(),
            vni: None,
            mtu: None,
            external: false,
            routed: false,
            subnets: subnets.collect(),
        }
    }
}

impl Router {
    /// A router with interfaces at the gateway addresses of these subnets.
    pub fn new(name: &str, subnets: &[&str]) -> Self {
        let interfaces = subnets.iter().map(|&subnet| subnet.to_owned()).collect();
        Self { name: name.to_owned(), interfaces, gateway: None, routes: Vec::new() }
    }
}

impl NodeEntry {
    /// A node with its tunnel address.
    pub fn new(name: &str, vtep: &str) -> Self {
        Self { name: name.to_owned(), vtep: vtep.to_owned(), gateway: false, is_inside: false }
    }
}

impl SecurityGroup {
    /// A group with these rules.
    pub fn new(name: &str, rules: &[&str]) -> Self {
        let rules = rules.iter().map(|&rule| rule.to_owned()).collect();
        Self { name: name.to_owned(), stateless: false, rules }
    }
}

impl AddressGroup {
    /// A group of these ranges.
    pub fn new(name: &str, addresses: &[&str]) -> Self {
        let addresses = addresses.iter().map(|&range| range.to_owned()).collect();
        Self { name: name.to_owned(), addresses }
    }
}

impl FloatingIp {
    /// An address for a port.
    pub fn new(address: &str, port: &str) -> Self {
        Self { address: address.to_owned(), port: port.to_owned(), ..Self::default() }
    }

    /// An address shared by (protocol, port outside, port, port of the workload).
    pub fn shared(address: &str, forwardings: &[(&str, u16, &str, u16)]) -> Self {
        let forwardings = forwardings.iter().map(|&(protocol, external, port, internal)| Forwarding {
            protocol: protocol.to_owned(),
            external,
            port: port.to_owned(),
            internal,
        });
        Self { address: address.to_owned(), forwardings: forwardings.collect(), ..Self::default() }
    }

    /// An address for the VIP of a load balancer.
    pub fn balanced(address: &str, load_balancer: &str) -> Self {
        Self { address: address.to_owned(), load_balancer: load_balancer.to_owned(), ..Self::default() }
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
        self.security_groups.iter().try_for_each(|group| write!(f, "{group}"))?;
        if !self.address_groups.is_empty() {
            writeln!(f, "address_groups:")?;
        }
        for AddressGroup { name, addresses } in &self.address_groups {
            writeln!(f, "  - {{ name: {name}, addresses: [{}] }}", quoted(addresses))?;
        }
        if !self.ports.is_empty() {
            writeln!(f, "ports:")?;
            self.ports.iter().try_for_each(|port| write!(f, "{port}"))?;
        }
        if !self.floating_ips.is_empty() {
            writeln!(f, "floating_ips:")?;
            self.floating_ips.iter().try_for_each(|floating| write!(f, "{floating}"))?;
        }
        for (section, entries) in [("load_balancers", &self.load_balancers), ("pools", &self.pools)] {
            if !entries.is_empty() {
                writeln!(f, "{section}:")?;
                entries.iter().try_for_each(|entry| writeln!(f, "  - {entry}"))?;
            }
        }
        if !self.nodes.is_empty() {
            writeln!(f, "nodes:")?;
        }
        self.nodes.iter().try_for_each(|NodeEntry { name, vtep, gateway, is_inside }| {
            let gateway = if *gateway { ", gateway: true" } else { "" };
            let networks = if *is_inside { ", external_networks: []" } else { "" };
            writeln!(f, "  - {{ name: {name}, vtep: {vtep}{gateway}{networks} }}")
        })
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
        if self.external {
            writeln!(f, "    external: true")?;
        }
        if self.routed {
            writeln!(f, "    routed: true")?;
        }
        writeln!(f, "    subnets:")?;
        for Subnet { name, cidr, gateway, extra } in &self.subnets {
            write!(f, "      - {{ name: {name}, cidr: \"{cidr}\"")?;
            if let Some(gateway) = gateway {
                write!(f, ", gateway: \"{gateway}\"")?;
            }
            extra.iter().try_for_each(|field| write!(f, ", {field}"))?;
            writeln!(f, " }}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  - name: {}", self.name)?;
        writeln!(f, "    interfaces: [{}]", self.interfaces.join(", "))?;
        if let Some(gateway) = &self.gateway {
            writeln!(f, "    gateway: {gateway}")?;
        }
        if !self.routes.is_empty() {
            writeln!(f, "    routes:")?;
        }
        self.routes.iter().try_for_each(|route| writeln!(f, "      - {route}"))
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ network: {}, address: ", self.network)?;
        match &self.addresses[..] {
            [address] => write!(f, "\"{address}\"")?,
            addresses => write!(f, "[{}]", quoted(addresses))?,
        }
        if let Some(snat) = self.snat {
            write!(f, ", snat: {snat}")?;
        }
        if let Some(ports) = &self.snat_ports {
            write!(f, ", snat_ports: {ports}")?;
        }
        if let Some(vrrp) = &self.vrrp {
            write!(f, ", vrrp: {vrrp}")?;
        }
        write!(f, " }}")
    }
}

impl fmt::Display for SecurityGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  - name: {}", self.name)?;
        if self.stateless {
            writeln!(f, "    stateful: false")?;
        }
        let none = if self.rules.is_empty() { " []" } else { "" };
        writeln!(f, "    rules:{none}")?;
        self.rules.iter().try_for_each(|rule| writeln!(f, "      - {rule}"))
    }
}

impl fmt::Display for FloatingIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  - address: \"{}\"", self.address)?;
        if !self.port.is_empty() {
            writeln!(f, "    port: {}", self.port)?;
        }
        if !self.load_balancer.is_empty() {
            writeln!(f, "    load_balancer: {}", self.load_balancer)?;
        }
        if !self.forwardings.is_empty() {
            writeln!(f, "    port_forwardings:")?;
        }
        self.forwardings.iter().try_for_each(|Forwarding { protocol, external, port, internal }| {
            writeln!(
                f,
                "      - {{ protocol: {protocol}, external_port: {external}, port: {port}, internal_port: {internal} }}"
            )
        })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  - name: {}", self.name)?;
        writeln!(f, "    network: {}", self.network)?;
        writeln!(f, "    mac: \"{}\"", self.mac)?;
        writeln!(f, "    fixed_ips: [{}]", quoted(&self.fixed_ips))?;
        match &self.security_groups {
            None => writeln!(f, "    security_groups: [{OPEN_GROUP}]")?,
            Some(groups) => writeln!(f, "    security_groups: [{}]", groups.join(", "))?,
        }
        if !self.node.is_empty() {
            writeln!(f, "    node: {}", self.node)?;
            writeln!(f, "    interface: {}", self.interface)?;
        }
        self.extra.iter().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

fn quoted(texts: &[String]) -> String {
    texts.iter().map(|text| format!("\"{text}\"")).collect::<Vec<_>>().join(", ")
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

    #[test]
    fn prints_what_leads_outside() {
        let mut topology = with_outside();
        topology.add_group("web-sg", &["{ direction: ingress, protocol: tcp, ports: 80-443 }"]);
        topology.add_group("none", &[]);
        topology.group_mut("none").stateless = true;
        topology.address_groups.push(AddressGroup::new("offices", &["198.51.100.0/24", "2001:db8:aa::/64"]));
        topology.put_into("vm2", &["web-sg", "none"]);
        topology.router_mut("r1").gateway.as_mut().unwrap().snat_ports = Some("2048-4095".to_owned());
        let yaml = topology.to_string();
        for part in [
            "  - name: public\n    external: true\n    subnets:\n",
            "    gateway: { network: public, address: [\"203.0.113.10\", \"2001:db8:ff::10\"], snat: true, snat_ports: 2048-4095 }\n",
            "  - name: web-sg\n    rules:\n      - { direction: ingress, protocol: tcp, ports: 80-443 }\n",
            "  - name: none\n    stateful: false\n    rules: []\n",
            "address_groups:\n  - { name: offices, addresses: [\"198.51.100.0/24\", \"2001:db8:aa::/64\"] }\n",
            "    security_groups: [web-sg, none]\n",
            "floating_ips:\n  - address: \"203.0.113.51\"\n    port: vm1\n",
            "      - { protocol: udp, external_port: 5353, port: vm6, internal_port: 53 }\n",
            "  - { name: node-b, vtep: 192.0.2.2, gateway: true }\n",
        ] {
            assert!(yaml.contains(part), "{part}\nis not in:\n{yaml}");
        }
    }
}
