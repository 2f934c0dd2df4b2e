//! The lab itself: underlay, nodes, workloads.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::clean::{self, LabDirectory};
use crate::host::parse_mac;
use crate::topology::Topology;
use crate::{Agent, AgentOptions, Host, Netns, Outside, require_root};

/// The bridge in the underlay's namespace.
pub const UNDERLAY_BRIDGE: &str = "br0";

/// What a lab is to be made of.
#[derive(Clone, Debug)]
pub struct LabBuilder {
    prefix: Option<String>,
    mtu: u32,
    nodes: Vec<String>,
    /// Those of them without an interface on the external network.
    inside: Vec<String>,
    workloads: Vec<WorkloadSpec>,
    foreign: Vec<(String, u8)>,
    external: Option<String>,
    topology: Option<String>,
    vrouter: Option<PathBuf>,
}

/// A workload: a namespace whose `eth0` is the other end of an interface on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadSpec {
    /// Its name in the lab.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// The interface's name on the node.
    pub tap: String,
    /// Its hardware address.
    pub mac: String,
    /// Its addresses, with prefix length, IPv4 and IPv6.
    pub addresses: Vec<String>,
    /// Its default gateways, at most one of each family.
    pub gateways: Vec<String>,
    /// Its MTU.
    pub mtu: u32,
    /// It processes packets: its port has XDP.
    pub xdp: bool,
}

/// A running lab. Dropping it removes every trace of it.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    directory: LabDirectory,
    underlay: Netns,
    nodes: BTreeMap<String, Node>,
    workloads: BTreeMap<String, Workload>,
    foreign: BTreeMap<String, Host>,
    outside: Option<Outside>,
    vrouter: Option<PathBuf>,
    is_kept: bool,
}

/// A compute node: a [`Host`] whose `eth0` is on the underlay and whose other interfaces lead to workloads.
#[derive(Clone, Debug)]
pub struct Node {
    host: Host,
    address: String,
    underlay_port: String,
    external_port: Option<String>,
}

/// A workload: a [`Host`] that can also be unplugged.
#[derive(Clone, Debug)]
pub struct Workload {
    host: Host,
    node: Netns,
    spec: WorkloadSpec,
}

impl Lab {
    /// An empty lab to be filled.
    pub fn builder() -> LabBuilder {
        LabBuilder {
            prefix: None,
            mtu: 1500,
            nodes: Vec::new(),
            inside: Vec::new(),
            workloads: Vec::new(),
            foreign: Vec::new(),
            external: None,
            topology: None,
            vrouter: None,
        }
    }

    /// What the names of everything in this lab start with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Its directory: topology and logs.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The namespace of the underlay: every node's and foreign host's wire ends in its [`UNDERLAY_BRIDGE`].
    pub fn underlay(&self) -> &Netns {
        &self.underlay
    }

    /// The node called `name`.
    ///
    /// # Panics
    /// If there is none; so do the other lookups by name.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.get(name).unwrap_or_else(|| panic!("the lab has no node {name}"))
    }

    /// The workload called `name`.
    pub fn workload(&self, name: &str) -> &Workload {
        self.workloads.get(name).unwrap_or_else(|| panic!("the lab has no workload {name}"))
    }

    /// The foreign host called `name`.
    pub fn foreign(&self, name: &str) -> &Host {
        self.foreign.get(name).unwrap_or_else(|| panic!("the lab has no foreign host {name}"))
    }

    /// What is on the other side of the external network.
    ///
    /// # Panics
    /// If the lab has none.
    pub fn outside(&self) -> &Outside {
        self.outside.as_ref().expect("the lab has no external network")
    }

    /// The external network's name, if there is one.
    pub fn external_network(&self) -> Option<&str> {
        self.outside.as_ref().map(Outside::network)
    }

    /// A machine by its name: a workload, or one outside, or a foreign host.
    ///
    /// # Panics
    /// If there is none.
    pub fn host(&self, name: &str) -> &Host {
        let outside = || self.outside.as_ref().and_then(|outside| outside.hosts().get(name));
        let workload = self.workloads.get(name).map(|workload| &workload.host);
        let found = workload.or_else(outside).or_else(|| self.foreign.get(name));
        found.unwrap_or_else(|| panic!("the lab has no host {name}"))
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// All workloads, by name.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.workloads.values()
    }

    /// The topology file all agents of the lab read, unless told otherwise.
    pub fn topology_path(&self) -> PathBuf {
        self.directory().join("topology.yaml")
    }

    /// Replaces the topology file atomically.
    pub fn write_topology(&self, topology: impl Display) -> Result<()> {
        let path = self.topology_path();
        let new = self.directory().join(".topology.yaml.new");
        std::fs::write(&new, topology.to_string())
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Starts an agent on a node; see [`Agent::wait_ready`] for when it is at work.
    pub fn start_agent(&self, node: &str, options: &AgentOptions) -> Result<Agent> {
        let mut options = options.clone();
        options.binary = options.binary.or_else(|| self.vrouter.clone());
        Agent::start(self, self.node(node), options)
    }

    /// Leaves the lab as it is; [`clean::remove`] removes it by its prefix.
    pub fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        if let Err(error) = clean::remove(&self.prefix) {
            eprintln!("{error:#}");
        }
    }
}

impl Node {
    /// Its address on the underlay.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The other end of its wire, an interface in [`Lab::underlay`].
    pub fn underlay_port(&self) -> &str {
        &self.underlay_port
    }

    /// The other end of its external interface, in the namespace of [`Outside::switch`].
    ///
    /// # Panics
    /// If it has none.
    pub fn external_port(&self) -> &str {
        self.external_port.as_deref().expect("the node is on no external network")
    }

    /// Whether it has an interface on the external network.
    pub fn is_outside(&self) -> bool {
        self.external_port.is_some()
    }
}

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Workload {
    /// What it was made from.
    pub fn spec(&self) -> &WorkloadSpec {
        &self.spec
    }

    /// Its first address of a family, without prefix length.
    ///
    /// # Panics
    /// If it has none.
    pub fn address(&self, is_v6: bool) -> &str {
        let found = self.spec.addresses.iter().find(|address| address.contains(':') == is_v6);
        let found = found.unwrap_or_else(|| panic!("{} has no address of that family", self.spec.name));
        found.split('/').next().unwrap_or(found)
    }

    /// The same as an address.
    ///
    /// # Panics
    /// If it has none.
    pub fn ip(&self, is_v6: bool) -> IpAddr {
        self.address(is_v6).parse().unwrap_or_else(|_| panic!("{} has a malformed address", self.spec.name))
    }

    /// The hardware address ARP or ND gives it for its gateway.
    pub fn gateway_mac(&self, is_v6: bool) -> Result<[u8; 6]> {
        let gateway = self.spec.gateways.iter().find(|gateway| gateway.contains(':') == is_v6);
        let gateway: IpAddr = gateway.context("it has no gateway of that family")?.parse()?;
        let answers = self.who_has(self.ip(is_v6), gateway, std::time::Duration::from_millis(200))?;
        match answers[..] {
            [mac] => Ok(mac),
            _ => bail!("{} gets {} answers for its gateway {gateway}", self.spec.name, answers.len()),
        }
    }

    /// The hardware address it was made with.
    ///
    /// # Panics
    /// If that is malformed.
    pub fn spec_mac(&self) -> [u8; 6] {
        parse_mac(&self.spec.mac).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> &str {
        self.address(false)
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> &str {
        self.address(true)
    }

    /// Deletes its interface, both ends.
    pub fn unplug(&self) -> Result<()> {
        self.node.ip(&[format!("link delete {}", self.spec.tap)])
    }

    /// Makes its interface, both ends, with its addresses and routes.
    pub fn plug(&self) -> Result<()> {
        self.plug_into(&self.node)
    }

    /// The same on another node.
    pub fn plug_on(&self, node: &Node) -> Result<()> {
        self.plug_into(node.netns())
    }

    fn plug_into(&self, node: &Netns) -> Result<()> {
        let WorkloadSpec { tap, mac, addresses, gateways, mtu, .. } = &self.spec;
        let peer = self.netns();
        node.ip(&[format!(
            "link add {tap} mtu {mtu} type veth peer name eth0 mtu {mtu} address {mac} netns {}",
            peer.name()
        )])?;
        // Here the node is a wire: its own stack must not speak on it.
        node.set_sysctl(&format!("ipv6/conf/{tap}/disable_ipv6"), "1")?;
        node.ip(&[format!("link set {tap} up")])?;

        let mut lines = vec!["link set eth0 up".to_owned()];
        for address in addresses {
            let no_detection = if address.contains(':') { " nodad" } else { "" };
            lines.push(format!("address add {address} dev eth0{no_detection}"));
        }
        for gateway in gateways {
            let family = if gateway.contains(':') { "-6 " } else { "" };
            lines.push(format!("{family}route add default via {gateway} dev eth0"));
        }
        // A batch has one family for all its lines, so IPv6 routes go apart.
        let (v6, others): (Vec<String>, Vec<String>) =
            lines.into_iter().partition(|line| line.starts_with("-6"));
        peer.ip(&others)?;
        v6.iter().try_for_each(|line| peer.run(&format!("ip {line}")).map(drop))
    }
}

impl Deref for Workload {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl LabBuilder {
    /// Names the lab. Unnamed, it is named after the process, and removed by [`clean::sweep_stale`] should the
    /// process die; named, it is only removed by name.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.to_owned());
        self
    }

    /// The underlay's MTU, 1500 unless given.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// Adds a node. The first has the address 192.0.2.1, the second 192.0.2.2...
    pub fn node(mut self, name: &str) -> Self {
        self.nodes.push(name.to_owned());
        self
    }

    /// Adds a workload.
    pub fn workload(mut self, spec: WorkloadSpec) -> Self {
        self.workloads.push(spec);
        self
    }

    /// Adds a host on the underlay that is not a node, with the address 192.0.2.`number`.
    pub fn foreign(mut self, name: &str, number: u8) -> Self {
        self.foreign.push((name.to_owned(), number));
        self
    }

    /// Adds an external network with what is behind it (see [`Outside`]), and an interface of each node on it.
    pub fn outside(mut self, network: &str) -> Self {
        self.external = Some(network.to_owned());
        self
    }

    /// Adds the nodes of a topology, a workload for each of its bound ports, what is outside if it has an
    /// external network, and writes the document to the lab's topology file. The nodes' VTEPs must be 192.0.2.1, 192.0.2.2... in this order.
    pub fn topology(mut self, topology: &Topology) -> Self {
        self.nodes.extend(topology.nodes.iter().map(|node| node.name.clone()));
        let inside = topology.nodes.iter().filter(|node| node.is_inside);
        self.inside.extend(inside.map(|node| node.name.clone()));
        let bound = topology.ports.iter().filter(|port| !port.node.is_empty());
        self.workloads.extend(bound.map(|port| WorkloadSpec::from_port(topology, port)));
        self.external = topology.external().map(|network| network.name.clone()).or(self.external);
        self.topology = Some(topology.to_string());
        self
    }

    /// The `vrouter` to run, instead of the one beside this program.
    pub fn vrouter(mut self, binary: &Path) -> Self {
        self.vrouter = Some(binary.to_owned());
        self
    }

    /// Builds the lab. If that fails half-way, what was made is removed.
    pub fn build(self) -> Result<Lab> {
        require_root()?;
        clean::sweep_stale()?;
        let prefix = self.prefix.clone().unwrap_or_else(fresh_prefix);
        if clean::exists(&prefix) {
            bail!("there is a lab called {prefix} already");
        }
        let directory = LabDirectory::create(&prefix)?;
        // From here on `Drop` cleans up.
        let mut lab = Lab {
            underlay: Netns::create(&format!("{prefix}-underlay"))
                .inspect_err(|_| drop(clean::remove(&prefix)))?,
            prefix,
            directory,
            nodes: BTreeMap::new(),
            workloads: BTreeMap::new(),
            foreign: BTreeMap::new(),
            outside: None,
            vrouter: self.vrouter.clone(),
            is_kept: false,
        };
        self.fill(&mut lab).with_context(|| format!("cannot build the lab {}", lab.prefix))?;
        Ok(lab)
    }

    fn fill(self, lab: &mut Lab) -> Result<()> {
        let underlay = lab.underlay.clone();
        underlay.set_sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        underlay.ip(&[
            format!("link add {UNDERLAY_BRIDGE} mtu {} type bridge mcast_snooping 0", self.mtu),
            format!("link set {UNDERLAY_BRIDGE} up"),
        ])?;
        if let Some(network) = &self.external {
            lab.outside = Some(Outside::build(&lab.prefix, network, self.mtu)?);
        }
        for (name, number) in self.nodes.iter().zip(1_u8..) {
            let (host, address, underlay_port) = self.wire(lab, name, number)?;
            host.netns().set_sysctl("ipv4/ip_forward", "0")?;
            let outside = lab.outside.as_ref().filter(|_| !self.inside.contains(name));
            let external_port = outside.map(|outside| {
                outside.wire_node(host.netns(), number, self.mtu).map(|()| Outside::port_of(number))
            });
            let external_port = external_port.transpose()?;
            lab.nodes.insert(name.clone(), Node { host, address, underlay_port, external_port });
        }
        for (name, number) in &self.foreign {
            let (host, ..) = self.wire(lab, name, *number)?;
            lab.foreign.insert(name.clone(), host);
        }
        for spec in self.workloads {
            let Some(node) = lab.nodes.get(&spec.node) else {
                bail!("the workload {} is on {}, which is not a node of the lab", spec.name, spec.node);
            };
            let netns = Netns::create(&format!("{}-{}", lab.prefix, spec.name))?;
            netns.speak_at_once()?;
            let node = node.netns().clone();
            let workload = Workload { host: Host::new(&spec.name, netns), node, spec };
            workload.plug().with_context(|| format!("the workload {}", workload.spec.name))?;
            lab.workloads.insert(workload.spec.name.clone(), workload);
        }
        if let Some(topology) = self.topology {
            lab.write_topology(topology)?;
        }
        Ok(())
    }

    /// Makes a namespace with its `eth0` on the underlay's bridge.
    fn wire(&self, lab: &Lab, name: &str, number: u8) -> Result<(Host, String, String)> {
        let netns = Netns::create(&format!("{}-{name}", lab.prefix))?;
        let address = format!("192.0.2.{number}");
        let port = format!("port{number}");
        let mtu = self.mtu;
        lab.underlay.ip(&[
            format!("link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", netns.name()),
            format!("link set {port} master {UNDERLAY_BRIDGE}"),
            format!("link set {port} up"),
        ])?;
        netns.set_sysctl("ipv6/conf/eth0/disable_ipv6", "1")?;
        netns.ip(&[format!("address add {address}/24 dev eth0"), "link set eth0 up".to_owned()])?;
        Ok((Host::new(name, netns), address, port))
    }
}

impl WorkloadSpec {
    /// A workload without addresses, on an interface `tap-NAME` of MTU 1450.
    pub fn new(name: &str, node: &str, mac: &str) -> Self {
        Self {
            name: name.to_owned(),
            node: node.to_owned(),
            tap: format!("tap-{name}"),
            mac: mac.to_owned(),
            addresses: Vec::new(),
            gateways: Vec::new(),
            mtu: 1450,
            xdp: false,
        }
    }

    /// Adds an address with prefix length.
    pub fn address(mut self, address: &str) -> Self {
        self.addresses.push(address.to_owned());
        self
    }

    /// Adds a default gateway.
    pub fn gateway(mut self, gateway: &str) -> Self {
        self.gateways.push(gateway.to_owned());
        self
    }

    /// The workload of a port: its addresses, with the prefix lengths and gateways of its network's subnets.
    fn from_port(topology: &Topology, port: &crate::topology::Port) -> Self {
        let mut spec = Self::new(&port.name, &port.node, &port.mac);
        spec.tap.clone_from(&port.interface);
        spec.xdp = port.extra.iter().any(|line| line == "hook: xdp");
        let network = topology.networks.iter().find(|network| network.name == port.network);
        spec.mtu = network.and_then(|network| network.mtu).unwrap_or(spec.mtu);
        for ip in &port.fixed_ips {
            let subnet = network.and_then(|network| {
                let mut subnets = network.subnets.iter();
                subnets.find(|subnet| contains(&subnet.cidr, ip))
            });
            let length = subnet.and_then(|subnet| subnet.cidr.split_once('/')).map(|(_, length)| length);
            let whole = if ip.contains(':') { "128" } else { "32" };
            spec.addresses.push(format!("{ip}/{}", length.unwrap_or(whole)));
            let gateway = subnet.and_then(|subnet| subnet.gateway.clone());
            let has_gateway = spec.gateways.iter().any(|other| other.contains(':') == ip.contains(':'));
            spec.gateways.extend(gateway.filter(|_| !has_gateway));
        }
        spec
    }
}

/// Whether an address is in a range, both as text; false if either is not what it should be.
fn contains(cidr: &str, ip: &str) -> bool {
    let bits = |text: &str| match text.parse().ok()? {
        std::net::IpAddr::V4(ip) => Some((u128::from(ip.to_bits()) << 96, false)),
        std::net::IpAddr::V6(ip) => Some((ip.to_bits(), true)),
    };
    let Some((base, length)) = cidr.split_once('/') else { return false };
    let (Some((base, is_v6)), Some((ip, ip_is_v6)), Ok(length)) =
        (bits(base), bits(ip), length.parse::<u32>())
    else {
        return false;
    };
    let shift = 128 - length.min(128);
    is_v6 == ip_is_v6 && (base ^ ip).checked_shr(shift).unwrap_or(0) == 0
}

/// Two labs of one process differ in the serial number.
fn fresh_prefix() -> String {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    format!("vr{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology;

    #[test]
    fn tells_what_a_range_contains() {
        assert!(contains("10.0.1.0/24", "10.0.1.255"));
        assert!(!contains("10.0.1.0/24", "10.0.2.0"));
        assert!(contains("fd00:1::/64", "fd00:1::b"));
        assert!(!contains("fd00:1::/64", "fd00:2::b"));
        assert!(contains("0.0.0.0/0", "203.0.113.9"));
        assert!(!contains("0.0.0.0/0", "::1"));
        assert!(!contains("10.0.1.0", "10.0.1.0"));
    }

    #[test]
    fn a_port_becomes_a_workload() {
        let topology = topology::standard();
        let spec = WorkloadSpec::from_port(&topology, &topology.ports[2]);
        assert_eq!(spec.tap, "tap-vm3");
        assert_eq!(spec.addresses, ["10.0.2.13/24", "fd00:2::d/64"]);
        assert_eq!(spec.gateways, ["10.0.2.1", "fd00:2::1"]);
    }
}
