//! The same topology built from Linux alone: bridges for networks, a namespace with nftables for each router.
//! What vrouter does is compared with what this does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Deref;

use anyhow::{Context as _, Result, bail};

use crate::outside::EXTERNAL_INTERFACE;
use crate::topology::{NodeEntry, OPEN_GROUP, Port, Router, Topology};
use crate::{Host, Lab, Netns};

/// The node that holds the bridges.
const NODE: &str = "linux";
/// The MTU of networks that state none, as vrouter has it on an underlay of 1500.
const MTU: u32 = 1450;
/// The MTU of the wire outside.
const EXTERNAL_MTU: u32 = 1500;

/// A lab whose machines are joined by Linux: every workload is on one node whose bridges are the networks;
/// routers are namespaces `PREFIX-NAME` between them.
///
/// Security groups are nftables in the workloads: a packet that is refused has come all the way to the port, and
/// one that must not leave does not leave.
#[derive(Debug)]
pub struct Linux {
    lab: Lab,
    routers: BTreeMap<String, Host>,
}

impl Linux {
    /// Builds it.
    pub fn start(topology: &Topology) -> Result<Self> {
        let mut flat = topology.clone();
        flat.nodes = vec![NodeEntry::new(NODE, "192.0.2.1")];
        for port in flat.ports.iter_mut().filter(|port| !port.node.is_empty()) {
            port.node = NODE.to_owned();
        }
        let lab = Lab::builder().topology(&flat).build()?;
        let mut linux = Self { lab, routers: BTreeMap::new() };
        linux.bridge(topology)?;
        for router in &topology.routers {
            linux.route(topology, router).with_context(|| format!("the router {}", router.name))?;
        }
        for port in topology.ports.iter().filter(|port| !port.node.is_empty()) {
            linux.guard(topology, port).with_context(|| format!("the port {}", port.name))?;
        }
        Ok(linux)
    }

    /// The router called `name`.
    ///
    /// # Panics
    /// If there is none.
    pub fn router(&self, name: &str) -> &Host {
        self.routers.get(name).unwrap_or_else(|| panic!("there is no router {name}"))
    }

    fn node(&self) -> &Netns {
        self.lab.node(NODE).netns()
    }

    fn bridge(&self, topology: &Topology) -> Result<()> {
        for network in &topology.networks {
            let (bridge, mtu) = (bridge(&network.name), self.mtu(topology, &network.name));
            self.node().ip(&[
                format!("link add {bridge} mtu {mtu} type bridge mcast_snooping 0"),
                format!("link set {bridge} up"),
            ])?;
            self.node().set_sysctl(&format!("ipv6/conf/{bridge}/disable_ipv6"), "1")?;
            if network.external {
                self.node().ip(&[format!("link set {EXTERNAL_INTERFACE} master {bridge}")])?;
            }
        }
        for port in topology.ports.iter().filter(|port| !port.node.is_empty()) {
            self.node().ip(&[format!("link set {} master {}", port.interface, bridge(&port.network))])?;
        }
        Ok(())
    }

    fn mtu(&self, topology: &Topology, network: &str) -> u32 {
        let network = topology.networks.iter().find(|other| other.name == network);
        let default = if network.is_some_and(|network| network.external) { EXTERNAL_MTU } else { MTU };
        network.and_then(|network| network.mtu).unwrap_or(default)
    }

    fn route(&mut self, topology: &Topology, router: &Router) -> Result<()> {
        let netns = Netns::create(&format!("{}-{}", self.lab.prefix(), router.name))?;
        netns.speak_at_once()?;
        netns.set_sysctl("ipv4/ip_forward", "1")?;
        netns.set_sysctl("ipv4/conf/all/send_redirects", "0")?;
        netns.set_sysctl("ipv6/conf/all/forwarding", "1")?;
        let host = Host::new(&router.name, netns.clone());
        let legs = legs(topology, router)?;
        for (index, (network, addresses)) in legs.iter().enumerate() {
            let mtu = self.mtu(topology, network);
            let port = format!("{}-{index}", router.name);
            self.node().ip(&[
                format!(
                    "link add {port} mtu {mtu} type veth peer name {network} mtu {mtu} netns {}",
                    netns.name()
                ),
                format!("link set {port} master {}", bridge(network)),
                format!("link set {port} up"),
            ])?;
            netns.ip(&[format!("link set {network} up")])?;
            // What the router itself says looks as on a wire.
            netns.offloads_off(network)?;
            for address in addresses {
                let no_detection = if address.contains(':') { " nodad" } else { "" };
                netns.ip(&[format!("address add {address} dev {network}{no_detection}")])?;
            }
            netns.set_sysctl(&format!("ipv4/conf/{network}/send_redirects"), "0")?;
            netns.set_sysctl(&format!("ipv4/conf/{network}/rp_filter"), "0")?;
            // An error comes from the address of the interface where its cause came in, as vrouter's do.
            netns.set_sysctl("ipv4/icmp_errors_use_inbound_ifaddr", "1")?;
        }
        if let Some(gateway) = &router.gateway {
            let network = topology.networks.iter().find(|network| network.name == gateway.network);
            for subnet in network.into_iter().flat_map(|network| &network.subnets) {
                let is_v6 = subnet.cidr.contains(':');
                if let Some(upstream) = &subnet.gateway
                    && gateway.addresses.iter().any(|address| address.contains(':') == is_v6)
                {
                    let family = if is_v6 { "-6 " } else { "" };
                    netns.run(&format!("ip {family}route add default via {upstream}"))?;
                }
            }
            netns.nft(&translation(topology, router)?)?;
        }
        for route in &router.routes {
            netns.run(&static_route(route)?)?;
        }
        self.routers.insert(router.name.clone(), host);
        Ok(())
    }

    fn guard(&self, topology: &Topology, port: &Port) -> Result<()> {
        let Some(groups) = &port.security_groups else { return Ok(()) };
        let mut directions = [String::new(), String::new()];
        for name in groups {
            if name == OPEN_GROUP {
                directions.iter_mut().for_each(|rules| rules.push_str("accept\n"));
                continue;
            }
            let group = topology.security_groups.iter().find(|group| group.name == *name);
            for rule in &group.with_context(|| format!("there is no security group {name}"))?.rules {
                let fields = fields(rule)?;
                let is_ingress = fields.get("direction").is_some_and(|direction| direction == "ingress");
                let [ingress, egress] = &mut directions;
                let rules = if is_ingress { ingress } else { egress };
                writeln!(rules, "{}", matches(topology, &fields, is_ingress)?)?;
            }
        }
        let [ingress, egress] = directions;
        // Neighbour discovery and what the loopback does is no business of a security group.
        let always = "iif lo accept\n\
                      ct state established,related accept\n\
                      icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept\n";
        let text = format!(
            "table inet guard {{\n\
             chain ingress_rules {{ type filter hook input priority 0; policy drop;\n{always}{ingress}}}\n\
             chain egress_rules {{ type filter hook output priority 0; policy drop;\n{}{egress}}}\n}}\n",
            always.replace("iif", "oif")
        );
        self.lab.workload(&port.name).netns().nft(&text)
    }
}

impl Deref for Linux {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

fn bridge(network: &str) -> String {
    format!("br-{network}")
}

/// A router's addresses with prefix lengths, by network.
fn legs(topology: &Topology, router: &Router) -> Result<BTreeMap<String, Vec<String>>> {
    let mut legs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let subnets = || {
        let networks = topology.networks.iter();
        networks.flat_map(|network| network.subnets.iter().map(move |subnet| (network, subnet)))
    };
    for interface in &router.interfaces {
        let given = if interface.starts_with('{') { fields(interface)? } else { BTreeMap::new() };
        let name = given.get("subnet").unwrap_or(interface);
        let found = subnets().find(|(_, subnet)| subnet.name == *name);
        let (network, subnet) = found.with_context(|| format!("there is no subnet {name}"))?;
        let address = given.get("address").or(subnet.gateway.as_ref());
        let address = address.with_context(|| format!("no address on {name}"))?;
        legs.entry(network.name.clone()).or_default().push(with_length(address, &subnet.cidr));
    }
    if let Some(gateway) = &router.gateway {
        let leg = legs.entry(gateway.network.clone()).or_default();
        for address in &gateway.addresses {
            let same = |cidr: &str| cidr.contains(':') == address.contains(':');
            let found =
                subnets().find(|(network, subnet)| network.name == gateway.network && same(&subnet.cidr));
            let (_, subnet) = found.with_context(|| format!("no subnet for {address}"))?;
            leg.push(with_length(address, &subnet.cidr));
        }
        let inside: Vec<&str> = legs.keys().map(String::as_str).collect();
        let mine = |port: &str| {
            let port = topology.ports.iter().find(|other| other.name == port);
            port.is_some_and(|port| inside.contains(&port.network.as_str()))
        };
        let floating = topology.floating_ips.iter().filter(|floating| {
            mine(&floating.port) || floating.forwardings.iter().any(|forwarding| mine(&forwarding.port))
        });
        let floating: Vec<String> = floating.map(|floating| format!("{}/32", floating.address)).collect();
        legs.entry(gateway.network.clone()).or_default().extend(floating);
    }
    Ok(legs)
}

fn with_length(address: &str, cidr: &str) -> String {
    format!("{address}/{}", cidr.split_once('/').map_or("", |(_, length)| length))
}

/// The translations of a router as nftables: floating IPs, port forwardings, and SNAT for the rest.
fn translation(topology: &Topology, router: &Router) -> Result<String> {
    let gateway = router.gateway.as_ref().context("it has no gateway")?;
    let outer = &gateway.network;
    let inside: Vec<String> =
        legs(topology, router)?.into_keys().filter(|network| network != outer).collect();
    let fixed = |name: &str| -> Option<&str> {
        let port = topology.ports.iter().find(|port| port.name == name)?;
        let ip = port.fixed_ips.iter().find(|ip| !ip.contains(':'))?;
        inside.contains(&port.network).then_some(ip)
    };
    let (mut to, mut from) = (String::new(), String::new());
    for floating in &topology.floating_ips {
        let address = &floating.address;
        if let Some(fixed) = fixed(&floating.port) {
            writeln!(to, "ip daddr {address} dnat to {fixed}")?;
            writeln!(from, "ip saddr {fixed} snat to {address}")?;
        }
        for forwarding in &floating.forwardings {
            if let Some(fixed) = fixed(&forwarding.port) {
                let (protocol, outside, inside) =
                    (&forwarding.protocol, forwarding.external, forwarding.internal);
                writeln!(to, "ip daddr {address} {protocol} dport {outside} dnat to {fixed}:{inside}")?;
            }
        }
    }
    let own = gateway.addresses.iter().find(|address| !address.contains(':'));
    if let Some(own) = own
        && gateway.snat != Some(false)
    {
        writeln!(from, "snat to {own}")?;
    }
    // What came from outside keeps its source. What goes out, or back in through an address outside, gets one
    // of outside: a peer must never see an inside address that it could not answer through the router.
    Ok(format!(
        "table ip translation {{\n\
         chain marking {{ type filter hook prerouting priority -150; iifname \"{outer}\" meta mark set 1; }}\n\
         chain inward {{ type nat hook prerouting priority -100;\n{to}}}\n\
         chain leaves {{\n{from}}}\n\
         chain outward {{ type nat hook postrouting priority 100;\n\
         meta mark 1 accept\n\
         oifname \"{outer}\" jump leaves\n\
         ct status dnat jump leaves\n}}\n}}\n"
    ))
}

/// What a rule of a security group matches, as nftables; ends in `accept`.
fn matches(topology: &Topology, fields: &BTreeMap<String, String>, is_ingress: bool) -> Result<String> {
    let side = if is_ingress { "saddr" } else { "daddr" };
    let remotes = remotes(topology, fields)?;
    let mut families: Vec<&str> = match fields.get("ethertype").map(String::as_str) {
        Some("ipv4") => vec!["ip"],
        Some("ipv6") => vec!["ip6"],
        _ => vec!["ip", "ip6"],
    };
    let protocol = fields.get("protocol").map(String::as_str).filter(|protocol| *protocol != "any");
    match protocol {
        // `icmp` in a rule for IPv6 is ICMPv6, and else it is IPv4's.
        Some("icmp") if families != ["ip6"] => families.retain(|family| *family == "ip"),
        Some("icmpv6") => families.retain(|family| *family == "ip6"),
        _ => {}
    }
    let mut lines = String::new();
    for family in families {
        let family_of = |range: &str| if range.contains(':') { "ip6" } else { "ip" };
        let mut line = match &remotes {
            None => format!("meta nfproto {}", if family == "ip" { "ipv4" } else { "ipv6" }),
            Some(remotes) => {
                let ranges: Vec<&str> = remotes
                    .iter()
                    .map(String::as_str)
                    .filter(|range| family_of(range) == family && !range.ends_with("/0"))
                    .collect();
                let any = remotes.iter().any(|range| family_of(range) == family && range.ends_with("/0"));
                match (any, ranges.is_empty()) {
                    (true, _) => format!("meta nfproto {}", if family == "ip" { "ipv4" } else { "ipv6" }),
                    (false, true) => continue,
                    (false, false) => format!("{family} {side} {{ {} }}", ranges.join(", ")),
                }
            }
        };
        match protocol {
            None => {}
            Some("icmp" | "icmpv6") => {
                let name = if family == "ip" { "icmp" } else { "icmpv6" };
                match fields.get("icmp_type") {
                    Some(kind) => write!(line, " {name} type {kind}")?,
                    None => write!(line, " meta l4proto {name}")?,
                }
                if let Some(code) = fields.get("icmp_code") {
                    write!(line, " {name} code {code}")?;
                }
            }
            Some(protocol) => match fields.get("ports") {
                Some(ports) => write!(line, " {protocol} dport {ports}")?,
                None => write!(line, " meta l4proto {protocol}")?,
            },
        }
        writeln!(lines, "{line} accept")?;
    }
    Ok(lines)
}

/// The ranges a rule is about; `None`: any.
fn remotes(topology: &Topology, fields: &BTreeMap<String, String>) -> Result<Option<Vec<String>>> {
    if let Some(range) = fields.get("remote") {
        return Ok(Some(vec![range.clone()]));
    }
    if let Some(name) = fields.get("remote_address_group") {
        let group = topology.address_groups.iter().find(|group| group.name == *name);
        let group = group.with_context(|| format!("there is no address group {name}"))?;
        return Ok(Some(group.addresses.clone()));
    }
    let Some(name) = fields.get("remote_group") else { return Ok(None) };
    let open = [OPEN_GROUP.to_owned()];
    let members =
        topology.ports.iter().filter(|port| port.security_groups.as_deref().unwrap_or(&open).contains(name));
    Ok(Some(members.flat_map(|port| port.fixed_ips.iter().cloned()).collect()))
}

/// `{ destination: 10.9.0.0/16, nexthop: 10.0.2.9 }` as a command.
fn static_route(route: &str) -> Result<String> {
    let fields = fields(route)?;
    let (Some(destination), Some(nexthop)) = (fields.get("destination"), fields.get("nexthop")) else {
        bail!("no destination or next hop in {route}");
    };
    let family = if destination.contains(':') { "-6 " } else { "" };
    Ok(match nexthop.as_str() {
        "blackhole" | "unreachable" => format!("ip {family}route add {nexthop} {destination}"),
        _ => format!("ip {family}route add {destination} via {nexthop}"),
    })
}

/// The fields of a flat mapping in one line, without quotation marks.
fn fields(line: &str) -> Result<BTreeMap<String, String>> {
    let inner = line.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let inner = inner.with_context(|| format!("not a mapping in one line: {line}"))?;
    let field = |part: &str| {
        let (key, value) = part.trim().split_once(": ").with_context(|| format!("{part} in {line}"))?;
        Ok((key.to_owned(), value.trim().trim_matches('"').to_owned()))
    };
    inner.split(", ").map(field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{AddressGroup, with_outside};

    fn rule(topology: &Topology, rule: &str) -> String {
        let fields = fields(rule).unwrap();
        let is_ingress = fields["direction"] == "ingress";
        matches(topology, &fields, is_ingress).unwrap()
    }

    #[test]
    fn rules_become_what_nftables_reads() {
        let mut topology = with_outside();
        topology.put_into("vm2", &["friends"]);
        topology.put_into("vm5", &["friends"]);
        topology.address_groups.push(AddressGroup::new("offices", &["198.51.100.0/24", "2001:db8::/32"]));
        for (text, expected) in [
            ("{ direction: egress }", "meta nfproto ipv4 accept\nmeta nfproto ipv6 accept\n"),
            (
                "{ direction: ingress, protocol: tcp, ports: 80-443, remote: 10.0.0.0/8 }",
                "ip saddr { 10.0.0.0/8 } tcp dport 80-443 accept\n",
            ),
            (
                "{ direction: ingress, protocol: icmp, icmp_type: 8, icmp_code: 0, remote: 0.0.0.0/0 }",
                "meta nfproto ipv4 icmp type 8 icmp code 0 accept\n",
            ),
            (
                "{ direction: egress, protocol: udp, remote_address_group: offices }",
                "ip daddr { 198.51.100.0/24 } meta l4proto udp accept\n\
                 ip6 daddr { 2001:db8::/32 } meta l4proto udp accept\n",
            ),
            (
                "{ direction: ingress, remote_group: friends }",
                "ip saddr { 10.0.1.12, 10.0.2.15 } accept\nip6 saddr { fd00:1::c, fd00:2::f } accept\n",
            ),
            (
                "{ direction: ingress, protocol: icmp, ethertype: ipv6 }",
                "meta nfproto ipv6 meta l4proto icmpv6 accept\n",
            ),
        ] {
            assert_eq!(rule(&topology, text), expected, "{text}");
        }
    }

    #[test]
    fn a_router_has_its_addresses_and_its_floating_ips() {
        let topology = with_outside();
        let legs = legs(&topology, &topology.routers[0]).unwrap();
        assert_eq!(legs["web"], ["10.0.1.1/24", "fd00:1::1/64"]);
        assert_eq!(
            legs["public"],
            [
                "203.0.113.10/24",
                "2001:db8:ff::10/64",
                "203.0.113.51/32",
                "203.0.113.55/32",
                "203.0.113.60/32"
            ]
        );
    }
}
