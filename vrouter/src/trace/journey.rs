//! Follows a packet from node to node.

use std::{
    cell::OnceCell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use vrouter_common::{
    addr::{Be32, Ip},
    reason::{DropReason, Event},
    tables::*,
    traced::{Leaves, What},
    wire::{OUTER_LEN, VXLAN_PORT},
};

use super::{
    Entry, Run, Source, World, computed, live,
    packet::{Payload, Request},
    steps::{self, Object, Said},
};
use crate::{data_path::Pins, topology::model::Topology};

/// Nodes a packet may pass: from a workload to a gateway, to another node, and one for good measure.
const NODES: usize = 6;
/// Who sends from outside, if nobody is named.
const SOMEBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// `delivered`, `tunnelled`, `sent_outside`, `answered`, `dropped`, `flooded`, `kernel`, `waits` or `fragmented`.
    pub kind: &'static str,
    /// A drop reason's name.
    pub reason: Option<&'static str>,
    pub text: String,
}

/// On one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hop {
    pub node: String,
    pub source: Source,
    pub entry: String,
    pub steps: Vec<Said>,
    /// What was changed in the frame.
    pub rewrites: Vec<String>,
    pub verdict: Verdict,
}

/// From where it came in to where it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Journey {
    /// The packet, as it came in.
    pub packet: String,
    pub hops: Vec<Hop>,
    pub verdict: Verdict,
    /// What it passed, in order.
    pub path: Vec<Object>,
}

/// Where it comes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// From a workload.
    Port(String),
    /// From outside, on an external network.
    Outside(String),
}

/// Where nodes are found.
pub struct Worlds {
    /// Pins of the node at hand; `None`: everything is computed.
    pub pins: Option<(PathBuf, String)>,
    /// What nodes without pins on this machine are computed from, and where that is to be had when it is needed.
    pub topology: OnceCell<Topology>,
    pub fetch: Option<Fetch>,
    /// Where a computed trace begins, from outside.
    pub node: Option<String>,
    /// As if nothing were known of flows.
    pub afresh: bool,
}

/// Gets the topology.
pub type Fetch = Box<dyn Fn() -> Result<Topology>>;

/// What comes after.
enum Next {
    Nothing,
    /// Another node's uplink gets this frame.
    Node(Ipv4Addr, Vec<u8>),
}

impl Worlds {
    /// Follows a packet that is written down.
    pub fn follow(&self, start: &Start, request: &Request) -> Result<Journey> {
        let (world, entry, network) = self.begin(start)?;
        let frame = frame(&world, start, entry, network, request)?;
        self.go(world, start, entry, frame)
    }

    /// Follows a frame.
    pub fn follow_frame(&self, start: &Start, frame: Vec<u8>) -> Result<Journey> {
        let (world, entry, _) = self.begin(start)?;
        self.go(world, start, entry, frame)
    }

    fn begin(&self, start: &Start) -> Result<(World, Entry, u32)> {
        match start {
            Start::Port(name) => {
                let world = match (&self.pins, self.topology.get()) {
                    (Some((bpffs, instance)), _) => live::world(bpffs, instance)?,
                    (None, Some(topology)) => computed::world(topology, node_of(topology, name)?)?,
                    (None, None) => bail!("neither a data path nor a topology to trace on"),
                };
                let (ifindex, network) = port(&world, name)?;
                Ok((world, Entry::Port(ifindex), network))
            }
            Start::Outside(name) => {
                let world = match (&self.pins, self.topology.get()) {
                    (Some((bpffs, instance)), _) => live::world(bpffs, instance)?,
                    (None, Some(topology)) => computed::world(topology, self.outermost(topology, name)?)?,
                    (None, None) => bail!("neither a data path nor a topology to trace on"),
                };
                let (ifindex, network) = external(&world, name)?;
                Ok((world, Entry::External(ifindex), network))
            }
        }
    }

    /// The node at which a computed trace from outside begins.
    fn outermost<'t>(&'t self, topology: &'t Topology, network: &str) -> Result<&'t str> {
        if let Some(node) = &self.node {
            return Ok(node);
        }
        let reaching = || topology.nodes.iter().filter(|node| node.reaches(network));
        let node = reaching().find(|node| node.gateway).or_else(|| reaching().next());
        node.map(|node| node.name.as_str())
            .with_context(|| format!("no node of the topology reaches network {network}"))
    }

    /// The node that has a VTEP: of this machine, or computed. `prefix`: what instances' names have before nodes'.
    fn node(&self, from: &World, prefix: Option<&str>, vtep: Ipv4Addr) -> Result<Option<World>> {
        let key = VtepKey { bank: Scoped::new(0, 0), addr: Be32::new(vtep.to_bits()) };
        let name = from.image.vteps.get(&key).and_then(|node| from.names.name(NAME_NODE, *node));
        if let (Some((bpffs, _)), Some(prefix), Some(name)) = (&self.pins, prefix, name) {
            let instance = format!("{prefix}{name}");
            if is_at(&Pins::new(bpffs, &instance), vtep) {
                return live::world(bpffs, &instance).map(Some);
            }
        }
        if let (None, Some(fetch)) = (self.topology.get(), &self.fetch) {
            let fetched = fetch()?;
            drop(self.topology.set(fetched));
        }
        let Some(topology) = self.topology.get() else { return Ok(None) };
        match topology.nodes.iter().find(|node| node.vtep == vtep) {
            Some(node) => computed::world(topology, &node.name).map(Some),
            None => Ok(None),
        }
    }

    fn go(&self, mut world: World, start: &Start, mut entry: Entry, mut frame: Vec<u8>) -> Result<Journey> {
        // Labs have many nodes on one machine, each an instance that is called after it.
        let own = self.pins.as_ref().map(|(_, instance)| instance.as_str());
        let prefix = own.and_then(|own| own.strip_suffix(world.node.as_str())).map(str::to_owned);
        let packet = summary(&frame);
        let mut journey =
            Journey { packet, hops: Vec::new(), verdict: Verdict::new("kernel", ""), path: Vec::new() };
        let mut at = match start {
            Start::Port(name) => format!("port {name}"),
            Start::Outside(name) => format!("outside, on network {name}"),
        };
        loop {
            let run = world.run(entry, &frame, self.afresh)?;
            let steps = steps::describe(&world, entry, &run);
            let (verdict, next) = conclude(&world, &run);
            journey.light(Object { kind: "node", name: world.node.clone() });
            steps.iter().filter(|step| step.found).flat_map(|step| &step.objects).for_each(|object| {
                journey.light(object.clone());
            });
            journey.hops.push(Hop {
                node: world.node.clone(),
                source: world.source,
                entry: at,
                steps,
                rewrites: rewrites(&frame, entry, &run.frame, &verdict),
                verdict: verdict.clone(),
            });
            journey.verdict = verdict;
            let Next::Node(vtep, outer) = next else { return Ok(journey) };
            if journey.hops.len() >= NODES {
                journey.verdict.text += "; it is not followed further: it goes in circles";
                return Ok(journey);
            }
            let found = match self.node(&world, prefix.as_deref(), vtep) {
                Ok(Some(found)) => found,
                Ok(None) => {
                    journey.verdict.text += &format!(
                        "; what {vtep} does is not known here: give --topology, or trace it on that node"
                    );
                    return Ok(journey);
                }
                // What was found so far is worth something.
                Err(error) => {
                    journey.verdict.text += &format!("; what {vtep} does cannot be computed: {error:#}");
                    return Ok(journey);
                }
            };
            at = format!("tunnel from {}", world.node);
            (world, entry, frame) = (found, Entry::Uplink, outer);
        }
    }
}

impl Journey {
    fn light(&mut self, object: Object) {
        if !self.path.contains(&object) {
            self.path.push(object);
        }
    }
}

impl Verdict {
    fn new(kind: &'static str, text: impl Into<String>) -> Self {
        Self { kind, reason: None, text: text.into() }
    }
}

fn is_at(pins: &Pins, vtep: Ipv4Addr) -> bool {
    let commit = || crate::banks::Maps::open(&pins.maps())?.commit();
    pins.exist()
        && commit().is_ok_and(|commit: Commit| commit.epoch != 0 && commit.vtep.get() == vtep.to_bits())
}

fn node_of<'t>(topology: &'t Topology, port: &str) -> Result<&'t str> {
    let Some(found) = topology.ports.iter().find(|it| it.name == port) else {
        bail!("the topology has no port {port}");
    };
    match &found.node {
        Some(node) if found.interface.is_some() => Ok(node),
        Some(node) => bail!("port {port} is on {node}, but names no interface there: nothing comes from it"),
        None => bail!("port {port} is bound to no node: nothing comes from it"),
    }
}

/// Interface and network of a port of this node.
fn port(world: &World, name: &str) -> Result<(u32, u32)> {
    let Some(number) = world.names.number(NAME_PORT, name) else {
        bail!("{} knows no port {name}; `vrouter show ports` lists those it knows", world.node);
    };
    let bound = world.image.bindings.iter().find(|(_, binding)| binding.port == number);
    if let Some((key, binding)) = bound {
        return Ok((key.ifindex.id(), binding.network));
    }
    let station = world.image.fdb.values().find(|it| it.kind == STATION_PORT && it.owner == number);
    match station.map(|station| (station.place, station.at)) {
        Some((PLACE_REMOTE, node)) => {
            let node = world.name(NAME_NODE, node);
            bail!(
                "port {name} is on {node}, not on {}: trace it there, or compute it with --topology alone",
                world.node
            )
        }
        Some((PLACE_UNPLUGGED, _)) => {
            bail!("port {name} is bound to {}, but its interface is missing: plug it in", world.node)
        }
        Some((PLACE_UNBOUND, _)) => bail!("port {name} is bound to no node: nothing comes from it"),
        _ => bail!("port {name} has no interface on {}", world.node),
    }
}

/// Interface and number of an external network.
fn external(world: &World, name: &str) -> Result<(u32, u32)> {
    let known = world.names.number(NAME_NETWORK, name).and_then(|number| {
        Some((number, world.image.networks.get(&NetworkKey { network: Scoped::new(0, number) })?))
    });
    let Some((number, network)) = known else {
        bail!("{} knows no network {name}; `vrouter show networks` lists those it knows", world.node)
    };
    if network.flags & NETWORK_EXTERNAL == 0 {
        bail!("network {name} is no external network: start at one of its ports, with --port");
    }
    match world.commit.external(network.vni) {
        Some(external) => Ok((external.ifindex, number)),
        None => bail!("{} has no interface on network {name}: trace it on a node that has", world.node),
    }
}

/// The frame a workload, or somebody outside, would write.
fn frame(world: &World, start: &Start, entry: Entry, network: u32, request: &Request) -> Result<Vec<u8>> {
    let (dst, is_v6) = match &request.what {
        Payload::Ip(ip) => (Some(ip.dst), ip.dst.is_ipv6()),
        _ => (None, false),
    };
    let (mac, src) = match entry {
        Entry::Port(ifindex) => {
            let binding = world.image.bindings[&BindingKey { ifindex: Scoped::new(0, ifindex) }];
            (binding.mac, own_address(world, binding.port, network, is_v6))
        }
        _ => (SOMEBODY, None),
    };
    let says_itself = match &request.what {
        Payload::Ip(ip) => ip.src.is_some(),
        Payload::Arp(_) => false,
        Payload::Frame(_) => true,
    };
    let src = match src {
        Some(src) => src,
        None if says_itself && is_v6 => Ipv6Addr::UNSPECIFIED.into(),
        None if says_itself => Ipv4Addr::UNSPECIFIED.into(),
        None => bail!(
            "{} has no {} address of its own: write 'ADDRESS > ...'",
            match start {
                Start::Port(name) => format!("port {name}"),
                Start::Outside(_) => "whoever sends from outside".to_owned(),
            },
            if is_v6 { "IPv6" } else { "IPv4" }
        ),
    };
    let to = match (request.to, dst) {
        (None, Some(dst)) => next_mac(world, network, dst)?,
        _ => [0xff; 6],
    };
    request.frame(mac, to, src)
}

/// An address of a port, of a family.
fn own_address(world: &World, port: u32, network: u32, is_v6: bool) -> Option<IpAddr> {
    let own = world.image.addresses.iter().filter(|(key, station)| {
        key.network.id() == network && station.kind == STATION_PORT && station.owner == port
    });
    let own = own.map(|(key, _)| key.ip).filter(|ip| ip.is_v4() != is_v6);
    // A global one first.
    own.min_by_key(Ip::is_v6_link_local).map(IpAddr::from)
}

/// Whose hardware address a host would write: its neighbour's, or that of its router.
fn next_mac(world: &World, network: u32, dst: IpAddr) -> Result<[u8; 6]> {
    match dst {
        IpAddr::V4(ip) if ip.is_broadcast() => return Ok([0xff; 6]),
        IpAddr::V4(ip) if ip.is_multicast() => {
            let [_, b, c, d] = ip.octets();
            return Ok([0x01, 0, 0x5e, b & 0x7f, c, d]);
        }
        IpAddr::V6(ip) if ip.is_multicast() => {
            let [.., a, b, c, d] = ip.octets();
            return Ok([0x33, 0x33, a, b, c, d]);
        }
        _ => {}
    }
    if let Some(station) = world.image.addresses.get(&AddressKey::new(0, network, Ip::from(dst))) {
        return Ok(station.mac);
    }
    let legs = world.image.router_legs.iter().filter(|(key, _)| key.network == network);
    // The one that has an address of the family, by number.
    let speaks = |leg: &&RouterLeg| if dst.is_ipv6() { leg.v6 } else { leg.v4 } != Ip::UNSPECIFIED;
    let leg = legs.map(|(_, leg)| leg).find(speaks);
    leg.map(|leg| leg.mac).with_context(|| {
        format!(
            "{dst} is not on network {}, which has no router either: nobody to send it to; write 'to MAC' behind the packet",
            world.name(NAME_NETWORK, network)
        )
    })
}

/// What a run came to.
fn conclude(world: &World, run: &Run) -> (Verdict, Next) {
    let events: Vec<Event> = run.steps.iter().filter_map(steps::event).collect();
    let refused = run.steps.iter().find_map(steps::reason);
    let has = |event| events.contains(&event);
    let leaves =
        run.steps.iter().rev().find(|step| step.what == What::Leave).and_then(|step| step.key::<Leaves>());
    let answers = [
        (Event::ArpAnswered, "an ARP reply"),
        (Event::NdAnswered, "a neighbour advertisement"),
        (Event::EchoAnswered, "an echo reply"),
        (Event::ErrorSent, "an ICMP error or a TCP reset"),
    ];
    if let Some((_, what)) = answers.into_iter().find(|(event, _)| has(*event)) {
        let text = match refused {
            Some(reason) => format!("refused with {what}: {}: {}", reason.name(), reason.describe().trim()),
            None => format!("answered with {what}"),
        };
        let verdict = Verdict { reason: refused.map(DropReason::name), ..Verdict::new("answered", text) };
        return (verdict, Next::Nothing);
    }
    // Before what was refused: that may be one receiver's copy.
    if has(Event::FrameFlooded) {
        let copies = run.steps.iter().filter(|step| step.what == What::Copy).count();
        let none = run.steps.iter().filter(|step| steps::reason(step).is_some()).count();
        let mut text = format!("flooded: {copies} receivers");
        if let Some(reason) = refused {
            text +=
                &format!(", and {none} that get no copy: {}: {}", reason.name(), reason.describe().trim());
        }
        return (Verdict::new("flooded", text), Next::Nothing);
    }
    if let Some(reason) = refused {
        let text = format!("dropped: {}: {}", reason.name(), reason.describe().trim());
        let verdict = Verdict { reason: Some(reason.name()), ..Verdict::new("dropped", text) };
        return (verdict, Next::Nothing);
    }
    if has(Event::HopQueued) {
        let text = "waits until its next hop answers, which is being asked";
        return (Verdict::new("waits", text), Next::Nothing);
    }
    if has(Event::FragmentQueued) {
        return (Verdict::new("fragmented", "cut into fragments, which are sent on"), Next::Nothing);
    }
    if has(Event::ServiceQueued) {
        let text = "handed to this node's agent, which answers: it is for a service of the node";
        return (Verdict::new("served", text), Next::Nothing);
    }
    let Some(leaves) = leaves else {
        return (
            Verdict::new("kernel", "left to the kernel: it is not for the virtual network"),
            Next::Nothing,
        );
    };
    let key = BindingKey { ifindex: Scoped::new(0, leaves.ifindex) };
    if let Some(binding) = world.image.bindings.get(&key) {
        let port = world.name(NAME_PORT, binding.port);
        let verdict = match world.down.contains(&port) {
            true => Verdict {
                reason: Some("interface_down"),
                ..Verdict::new(
                    "dropped",
                    format!("sent to port {port}, whose interface is down: the kernel drops it there"),
                )
            },
            false => Verdict::new("delivered", format!("delivered to port {port}")),
        };
        return (verdict, Next::Nothing);
    }
    if let Some(vtep) = outer_destination(&run.frame) {
        let key = VtepKey { bank: Scoped::new(0, 0), addr: Be32::new(vtep.to_bits()) };
        if let Some(node) = world.image.vteps.get(&key) {
            let node = world.name(NAME_NODE, *node);
            let text = format!("sent through the tunnel to {node} ({vtep})");
            return (Verdict::new("tunnelled", text), Next::Node(vtep, run.frame.clone()));
        }
    }
    let by = world.commit.externals.iter().find(|external| external.ifindex == leaves.ifindex);
    let network = by.and_then(|external| world.image.vnis.get(&VniKey { vni: Scoped::new(0, external.vni) }));
    let text = match network {
        Some(network) => format!("sent outside, on network {}", world.name(NAME_NETWORK, *network)),
        None => format!("sent by interface {}", leaves.ifindex),
    };
    (Verdict::new("sent_outside", text), Next::Nothing)
}

/// The outer destination of a VXLAN packet.
fn outer_destination(frame: &[u8]) -> Option<Ipv4Addr> {
    let header = frame.get(..OUTER_LEN)?;
    let is_vxlan = header[12..14] == [8, 0]
        && header[14] == 0x45
        && header[23] == 17
        && header[36..38] == VXLAN_PORT.to_be_bytes();
    is_vxlan.then(|| Ipv4Addr::new(header[30], header[31], header[32], header[33]))
}

/// The frame inside, if there is an outer one.
fn inner(frame: &[u8]) -> &[u8] {
    match outer_destination(frame) {
        Some(_) => frame.get(OUTER_LEN..).unwrap_or(frame),
        None => frame,
    }
}

/// What was changed on the way.
fn rewrites(before: &[u8], entry: Entry, after: &[u8], verdict: &Verdict) -> Vec<String> {
    if !matches!(verdict.kind, "delivered" | "tunnelled" | "sent_outside") {
        return Vec::new();
    }
    let before = if entry == Entry::Uplink { inner(before) } else { before };
    let (Some(old), Some(new)) = (Fields::of(before), Fields::of(inner(after))) else { return Vec::new() };
    let mut changes = Vec::new();
    let mut note = |what: &str, old: String, new: String| {
        if old != new {
            changes.push(format!("{what} {old} becomes {new}"));
        }
    };
    note("source hardware address", old.from, new.from);
    note("destination hardware address", old.to, new.to);
    note("source", old.src, new.src);
    note("destination", old.dst, new.dst);
    note("TTL", old.ttl, new.ttl);
    changes
}

/// What people look at in a frame.
struct Fields {
    from: String,
    to: String,
    protocol: String,
    src: String,
    dst: String,
    ttl: String,
}

impl Fields {
    fn of(frame: &[u8]) -> Option<Self> {
        use etherparse::{NetSlice, SlicedPacket, TransportSlice};
        let read = SlicedPacket::from_ethernet(frame).ok()?;
        let mac =
            |bytes: &[u8]| crate::topology::model::Mac(bytes.try_into().unwrap_or_default()).to_string();
        let (src, dst, ttl): (IpAddr, IpAddr, u8) = match read.net.as_ref()? {
            NetSlice::Ipv4(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.header().ttl())
            }
            NetSlice::Ipv6(ip) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
                ip.header().hop_limit(),
            ),
            NetSlice::Arp(_) => return None,
        };
        let (protocol, ports) = match read.transport.as_ref() {
            Some(TransportSlice::Tcp(tcp)) => ("tcp", Some((tcp.source_port(), tcp.destination_port()))),
            Some(TransportSlice::Udp(udp)) => ("udp", Some((udp.source_port(), udp.destination_port()))),
            Some(TransportSlice::Icmpv4(_)) => ("icmp", None),
            Some(TransportSlice::Icmpv6(_)) => ("icmpv6", None),
            _ => ("ip", None),
        };
        let end = |ip: IpAddr, port: Option<u16>| match port {
            Some(port) => std::net::SocketAddr::new(ip, port).to_string(),
            None => ip.to_string(),
        };
        Some(Self {
            from: mac(frame.get(6..12)?),
            to: mac(frame.get(..6)?),
            protocol: protocol.to_owned(),
            src: end(src, ports.map(|(port, _)| port)),
            dst: end(dst, ports.map(|(_, port)| port)),
            ttl: ttl.to_string(),
        })
    }
}

/// A frame in a line.
fn summary(frame: &[u8]) -> String {
    match Fields::of(inner(frame)) {
        Some(it) => format!(
            "{} {} > {} ttl {} from {} to {}, {} bytes",
            it.protocol,
            it.src,
            it.dst,
            it.ttl,
            it.from,
            it.to,
            frame.len()
        ),
        None => match etherparse::ArpPacketSlice::from_slice(frame.get(14..).unwrap_or_default()) {
            Ok(arp) if frame.get(12..14) == Some(&[8, 6]) => {
                let ip = |bytes: &[u8]| {
                    <[u8; 4]>::try_from(bytes)
                        .map(Ipv4Addr::from)
                        .map_or_else(|_| "?".to_owned(), |ip| ip.to_string())
                };
                let what = if arp.operation() == etherparse::ArpOperation::REQUEST {
                    "asks who has"
                } else {
                    "says that it has"
                };
                let about = if what == "asks who has" {
                    arp.target_protocol_addr()
                } else {
                    arp.sender_protocol_addr()
                };
                format!("arp: {} {what} {}", ip(arp.sender_protocol_addr()), ip(about))
            }
            _ => format!("a frame of {} bytes", frame.len()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{topology, trace::Step};

    const DOCUMENT: &str = r#"
networks:
  - name: web
    subnets: [{ name: web4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }]
routers:
  - { name: r1, interfaces: [web4] }
security_groups:
  - { name: open, rules: [{ direction: ingress }, { direction: egress }] }
ports:
  - { name: vm1, network: web, mac: "02:00:00:00:01:01", fixed_ips: [10.0.1.11], security_groups: [open], node: a, interface: tap1 }
  - { name: vm2, network: web, mac: "02:00:00:00:01:02", fixed_ips: [10.0.1.12], security_groups: [open], node: a, interface: tap2 }
  - { name: vm3, network: web, mac: "02:00:00:00:01:03", fixed_ips: [10.0.1.13], security_groups: [open], node: b, interface: tap3 }
nodes:
  - { name: a, vtep: 192.0.2.1 }
  - { name: b, vtep: 192.0.2.2 }
"#;

    fn follow(packet: &str) -> Journey {
        follow_in(DOCUMENT, packet)
    }

    fn follow_in(document: &str, packet: &str) -> Journey {
        let topology = topology::parse("test", document).unwrap_or_else(|problems| panic!("{problems}"));
        let worlds = Worlds { pins: None, topology: topology.into(), fetch: None, node: None, afresh: false };
        worlds.follow(&Start::Port("vm1".to_owned()), &Request::parse(packet).unwrap()).unwrap()
    }

    #[test]
    fn a_packet_is_followed_to_the_node_where_it_ends() {
        let journey = follow("udp > 10.0.1.13:53");
        assert_eq!(journey.hops.iter().map(|hop| hop.node.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(journey.hops[0].verdict.kind, "tunnelled");
        assert_eq!(
            (journey.verdict.kind, journey.verdict.text.as_str()),
            ("delivered", "delivered to port vm3")
        );
        let names: Vec<&str> = journey.path.iter().map(|object| object.name.as_str()).collect();
        assert_eq!(names, ["a", "vm1", "web", "vm3", "b"]);
    }

    #[test]
    fn a_receiver_that_refuses_its_copy_ends_nobody_elses() {
        let (before, after) = DOCUMENT.split_once("fixed_ips: [10.0.1.12], security_groups: [open]").unwrap();
        let document = format!("{before}fixed_ips: [10.0.1.12], security_groups: []{after}");
        let journey = follow_in(&document, "udp 10.0.1.11 > 10.0.1.255:9 to ff:ff:ff:ff:ff:ff");
        assert_eq!((journey.verdict.kind, journey.verdict.reason), ("flooded", None));
        let text = &journey.verdict.text;
        assert!(text.starts_with("flooded: 1 receivers, and 1 that get no copy: policy_ingress"), "{text}");
        let copies =
            journey.hops[0].steps.iter().filter_map(|step| step.text.strip_prefix("a copy goes to "));
        assert_eq!(copies.collect::<Vec<_>>(), ["node b"]);
    }

    #[test]
    fn those_who_get_a_copy_are_named_whatever_their_numbers_are() {
        let journey = follow("udp 10.0.1.11 > 10.0.1.255:9 to ff:ff:ff:ff:ff:ff");
        assert_eq!(journey.verdict.kind, "flooded");
        let copies: Vec<&str> = journey.hops[0]
            .steps
            .iter()
            .filter_map(|step| step.text.strip_prefix("a copy goes to "))
            .collect();
        assert_eq!(copies, ["port vm2", "node b"]);
        // Numbers of interfaces and of nodes may be the same.
        let step = |ifindex, node| Step {
            what: What::Copy,
            found: true,
            key: [u32::to_ne_bytes(ifindex), u32::to_ne_bytes(node)].concat(),
            value: Vec::new(),
        };
        let topology = topology::parse("test", DOCUMENT).unwrap_or_else(|problems| panic!("{problems}"));
        let mut world = computed::world(&topology, "a").unwrap();
        let node = world.names.number(NAME_NODE, "b").unwrap();
        let vm2 = world.names.number(NAME_PORT, "vm2").unwrap();
        let binding = *world.image.bindings.values().find(|binding| binding.port == vm2).unwrap();
        world.image.bindings.insert(BindingKey { ifindex: Scoped::new(0, node) }, binding);
        let run = Run { steps: vec![step(node, 0), step(0, node)], frame: Vec::new() };
        let said = steps::describe(&world, Entry::Port(1), &run);
        let said: Vec<&str> = said.iter().map(|said| said.text.as_str()).collect();
        assert_eq!(said, ["a copy goes to port vm2", "a copy goes to node b"]);
    }
}
