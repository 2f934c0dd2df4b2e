//! The topology as objects: what a document says after it was read and found to be in order.
//!
//! Every object carries `line`, where its definition starts in the document (1-based), so that later
//! stages can still point at it. Cross-references are names. The nouns are Neutron's and Octavia's.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::IpNet;
use serde::Serialize;

/// A hardware address, printed `02:00:00:00:01:0a`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "String")]
pub struct Mac(pub [u8; 6]);

/// The whole document. Objects are in document order; names are unique per kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Topology {
    pub networks: Vec<Network>,
    pub routers: Vec<Router>,
    pub security_groups: Vec<SecurityGroup>,
    pub address_groups: Vec<AddressGroup>,
    pub ports: Vec<Port>,
    pub floating_ips: Vec<FloatingIp>,
    pub load_balancers: Vec<LoadBalancer>,
    /// Shared: there are thousands, of many members each.
    pub pools: Vec<Arc<Pool>>,
    pub nodes: Vec<Node>,
}

/// An L2 segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Network {
    pub name: String,
    /// 1 to 2^24-1, always set after reading: written in the document, or derived from the name
    /// (see [`super::derive_vni`]).
    pub vni: u32,
    /// Largest L3 packet in bytes; `None`: the underlay's MTU less the encapsulation.
    pub mtu: Option<u16>,
    /// Reached through each node's external interface instead of the overlay.
    pub external: bool,
    /// An external network that is routed: nobody asks there who has an address, routers outside are told by BGP.
    pub routed: bool,
    pub subnets: Vec<Subnet>,
    pub line: usize,
}

/// An address range on a network. Subnet names are unique over all networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Subnet {
    pub name: String,
    /// Host bits are zero.
    pub cidr: IpNet,
    /// The router interface's address in this subnet.
    pub gateway: Option<IpAddr>,
    pub dns: Vec<IpAddr>,
    /// IPv4: whether the nodes answer DHCP. On external networks and over IPv6 it means nothing.
    pub dhcp: bool,
    /// Seconds.
    pub lease_time: u32,
    /// Told by DHCP over IPv4, beside the default route.
    pub host_routes: Vec<HostRoute>,
    pub dhcp_options: Vec<DhcpOption>,
    /// IPv6: how workloads get their addresses; `None`: they are not told, and no router is advertised.
    pub ipv6_mode: Option<Ipv6Mode>,
    pub line: usize,
}

/// DNS servers that a subnet may have: hosts ask the first three or so, and an advertisement must fit a packet.
pub const DNS_MAX: usize = 16;

/// Seconds that an address is given for, where the document does not say.
pub const LEASE_TIME: u32 = 86_400;

/// How workloads on an IPv6 subnet get their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ipv6Mode {
    /// From the prefix that router advertisements tell.
    Slaac,
    /// By DHCP.
    #[serde(rename = "dhcpv6-stateful")]
    Stateful,
    /// From the prefix, and everything else by DHCP.
    #[serde(rename = "dhcpv6-stateless")]
    Stateless,
}

/// A route that workloads are told of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct HostRoute {
    pub destination: ipnet::Ipv4Net,
    pub nexthop: Ipv4Addr,
    pub line: usize,
}

/// Something workloads are told by DHCP that follows from nothing else here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct DhcpOption {
    pub code: u16,
    pub ipv6: bool,
    /// As it is sent.
    #[serde(serialize_with = "hex")]
    pub value: Vec<u8>,
    pub line: usize,
}

fn hex<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    serializer.serialize_str(&format!("hex:{digits}"))
}

/// A distributed router: present on every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Router {
    pub name: String,
    /// One interface per subnet, holding `address`.
    pub interfaces: Vec<RouterInterface>,
    pub gateway: Option<RouterGateway>,
    pub routes: Vec<StaticRoute>,
    pub line: usize,
}

/// A router's leg on a subnet. In the document a subnet's name alone means: with the subnet's gateway
/// address; `{ subnet: NAME, address: ADDR }` gives another (two routers on one subnet).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouterInterface {
    pub subnet: String,
    pub address: IpAddr,
    pub line: usize,
}

/// A router's leg on an external network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouterGateway {
    pub network: String,
    /// At most one of each family, at least one.
    pub addresses: Vec<IpAddr>,
    /// What leaves and has no floating IP gets the IPv4 address.
    pub snat: bool,
    /// The ports of the IPv4 address that may be used for it, inclusive.
    pub snat_ports: (u16, u16),
    pub vrrp: Vrrp,
    pub line: usize,
}

/// How several gateway nodes agree on who answers for a router outside (RFC 5798).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Vrrp {
    /// The virtual router's number on the external network; `None`: see [`super::Vrids`].
    pub vrid: Option<u8>,
    /// Between two announcements of the master, in milliseconds, a multiple of 10. It is missed after three and a
    /// bit.
    pub interval_ms: u32,
    /// Whether a better gateway takes over from one that is at work.
    pub preempt: bool,
}

impl Default for Vrrp {
    fn default() -> Self {
        Self { vrid: None, interval_ms: 200, preempt: true }
    }
}

/// An extra route. `nexthop: blackhole` and `nexthop: unreachable` are the kernel's route types.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StaticRoute {
    pub destination: IpNet,
    pub target: RouteTarget,
    pub line: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteTarget {
    /// Several mean equal-cost multipath.
    Nexthops(Vec<IpAddr>),
    Blackhole,
    Unreachable,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SecurityGroup {
    pub name: String,
    pub stateful: bool,
    pub rules: Vec<Rule>,
    /// 0: the document does not define it; it is the group `default` as everybody has it.
    pub line: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Ingress,
    Egress,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    pub direction: Direction,
    /// IP protocol number; `None`: any.
    pub protocol: Option<u8>,
    /// Inclusive destination port range, or ICMP type as `(type, type)`.
    pub ports: Option<(u16, u16)>,
    pub icmp_code: Option<u8>,
    /// `None`: IPv4 and IPv6.
    pub ethertype: Option<EtherFamily>,
    pub remote: Option<Remote>,
    pub line: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EtherFamily {
    Ipv4,
    Ipv6,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Remote {
    Cidr(IpNet),
    Group(String),
    AddressGroup(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AddressGroup {
    pub name: String,
    pub addresses: Vec<IpNet>,
    pub line: usize,
}

/// A workload's NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    pub name: String,
    pub network: String,
    pub mac: Mac,
    pub fixed_ips: Vec<IpAddr>,
    /// Not given: the group `default`, or none without port security. Empty: nothing in, nothing out.
    pub security_groups: Vec<String>,
    /// False: neither anti-spoofing nor security groups on this port.
    pub port_security: bool,
    pub allowed_address_pairs: Vec<AllowedAddressPair>,
    /// The node it is bound to; `None`: unbound.
    pub node: Option<String>,
    /// The kernel interface on that node.
    pub interface: Option<String>,
    pub hook: Hook,
    pub dhcp_options: Vec<DhcpOption>,
    /// The instance it belongs to, as the metadata service is told.
    pub device_id: Option<String>,
    /// The project it belongs to, as the metadata service is told.
    pub project: Option<String>,
    pub line: usize,
}

/// Where a port's program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    #[default]
    Tc,
    /// Native XDP in front of TC, for packet-processing workloads.
    Xdp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AllowedAddressPair {
    /// A single address is a /32 or /128.
    pub ip: IpNet,
    /// `None`: the port's own.
    pub mac: Option<Mac>,
    pub line: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FloatingIp {
    pub address: IpAddr,
    pub port: Option<String>,
    /// Which of the port's addresses it stands for; `None`: the first of its family.
    pub fixed_ip: Option<IpAddr>,
    /// The load balancer whose VIP of the family it stands for.
    pub load_balancer: Option<String>,
    pub port_forwardings: Vec<PortForwarding>,
    pub line: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortForwarding {
    /// IP protocol number: 6 or 17.
    pub protocol: u8,
    pub external_port: u16,
    pub port: String,
    pub internal_port: u16,
    pub line: usize,
}

/// Addresses of a network (VIPs) at which pools of workloads are reached as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoadBalancer {
    pub name: String,
    /// The network the VIPs are on.
    pub network: String,
    /// At most one of each family.
    pub vip_addresses: Vec<IpAddr>,
    /// False: everybody is refused.
    pub admin_state_up: bool,
    pub listeners: Vec<Listener>,
    pub line: usize,
}

/// A protocol and port of the VIPs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listener {
    /// Unique in its load balancer.
    pub name: String,
    /// IP protocol number: 6 or 17.
    pub protocol: u8,
    pub protocol_port: u16,
    pub default_pool: String,
    pub admin_state_up: bool,
    pub line: usize,
}

/// How it is found out whether a pool's members serve. The node that hosts a member asks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HealthMonitor {
    pub kind: HealthCheck,
    /// Between the beginnings of two checks.
    pub delay_ms: u32,
    /// How long an answer may take; shorter than `delay_ms`.
    pub timeout_ms: u32,
    /// Good checks in a row after which a member is up.
    pub max_retries: u8,
    /// Bad checks in a row after which it is down.
    pub max_retries_down: u8,
    pub http_method: String,
    pub url_path: String,
    /// Status codes that are good, as inclusive ranges.
    pub expected_codes: Vec<(u16, u16)>,
    /// Asked instead of the members' ports.
    pub monitor_port: Option<u16>,
    pub line: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthCheck {
    /// A TCP connection is accepted.
    Tcp,
    /// An HTTP request is answered with an expected status.
    Http,
    /// An ICMP echo request is answered.
    Ping,
}

/// Workloads that serve the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pool {
    pub name: String,
    /// Session persistence of type `source_ip`: all connections of a client go to one member.
    pub source_ip: bool,
    pub members: Vec<Member>,
    pub health_monitor: Option<HealthMonitor>,
    pub line: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Unique in its pool.
    pub name: String,
    pub address: IpAddr,
    pub protocol_port: u16,
    /// Its share among the members' weights; 0: nothing new, what there is goes on (draining).
    pub weight: u16,
    /// False: nothing new, and what there is ends.
    pub admin_state_up: bool,
    pub line: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    pub name: String,
    pub vtep: Ipv4Addr,
    /// May carry external traffic for others.
    pub gateway: bool,
    /// The external networks it has an interface on; `None`: all there are.
    pub external_networks: Option<Vec<String>>,
    pub line: usize,
}

impl Node {
    /// Whether it has an interface on an external network.
    #[must_use]
    pub fn reaches(&self, external_network: &str) -> bool {
        self.external_networks.as_ref().is_none_or(|names| names.iter().any(|name| name == external_network))
    }
}

/// The group of ports that name none.
pub const DEFAULT_GROUP: &str = "default";

impl SecurityGroup {
    /// The group [`DEFAULT_GROUP`] of a document that does not define it: everything out, and in what its own
    /// members send, as Neutron makes it for every project.
    #[must_use]
    pub fn implicit_default() -> Self {
        let rule = |direction, remote| Rule {
            direction,
            protocol: None,
            ports: None,
            icmp_code: None,
            ethertype: None,
            remote,
            line: 0,
        };
        let members = Remote::Group(DEFAULT_GROUP.to_owned());
        Self {
            name: DEFAULT_GROUP.to_owned(),
            stateful: true,
            rules: vec![rule(Direction::Egress, None), rule(Direction::Ingress, Some(members))],
            line: 0,
        }
    }
}

impl RouterGateway {
    /// The address of the family.
    #[must_use]
    pub fn address(&self, ipv6: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv6() == ipv6)
    }
}

impl Port {
    /// The first address of a family.
    #[must_use]
    pub fn first_ip(&self, ipv6: bool) -> Option<IpAddr> {
        self.fixed_ips.iter().copied().find(|address| address.is_ipv6() == ipv6)
    }
}

impl FloatingIp {
    /// The VIP of a load balancer that it leads to.
    #[must_use]
    pub fn vip(&self, balancer: &LoadBalancer) -> Option<IpAddr> {
        balancer.vip_addresses.iter().copied().find(|vip| vip.is_ipv6() == self.address.is_ipv6())
    }

    /// The address of `port` that it, or a forwarding of it, leads to.
    #[must_use]
    pub fn inside(&self, port: &Port) -> Option<IpAddr> {
        self.fixed_ip.or_else(|| port.first_ip(self.address.is_ipv6()))
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}
