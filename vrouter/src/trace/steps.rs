//! What was looked up, in names.

use std::net::Ipv4Addr;

use serde::Serialize;
use vrouter_common::{
    addr::Ip,
    flow::*,
    reason::{DropReason, Event},
    tables::*,
    traced::{Copied, What},
    wire::{PROTO_ICMP, PROTO_ICMPV6},
};

use super::{Entry, Run, Step, World};
use crate::{connections::row::protocol, topology::model::Mac};

/// Something of the topology that a step was about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Object {
    pub kind: &'static str,
    pub name: String,
}

/// A step, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Said {
    pub text: String,
    /// Where it was looked up.
    pub table: &'static str,
    /// Whether there was what was looked for.
    pub found: bool,
    pub objects: Vec<Object>,
}

/// All steps worth a word.
pub fn describe(world: &World, entry: Entry, run: &Run) -> Vec<Said> {
    let speaker = Speaker { world, entry };
    let mut said: Vec<Said> = Vec::new();
    let mut seen: Vec<&Step> = Vec::new();
    let mut class = None;
    for (at, step) in run.steps.iter().enumerate() {
        if step.what == What::Class {
            class = step.value::<u32>();
        }
        // Asked twice, answered twice; and what is asked for the second time in other words.
        if seen.contains(&step) || !step.found && is_idle(step, &run.steps[at + 1..], &seen) {
            continue;
        }
        seen.push(step);
        // Once ports are tried, a flow that is found has one that is looked for.
        let tries = seen.iter().any(|step| step.what == What::SnatBlock);
        let words = if tries && step.found { speaker.taken(step) } else { None };
        let Some((text, objects)) = words.or_else(|| speaker.say(step, class)) else { continue };
        if !step.found && said.iter().any(|said| said.text == text) {
            continue;
        }
        said.push(Said { text, table: table(step.what), found: step.found, objects });
    }
    said
}

/// Whether it says nothing that something was not found, because it is looked for elsewhere.
fn is_idle(step: &Step, after: &[Step], before: &[&Step]) -> bool {
    match step.what {
        // A rule of the remote's class, then one of any remote.
        What::Rule => after.first().is_some_and(|next| next.what == What::Rule),
        // One table, then the other; later, whether a port is another's.
        What::Flow => after.first().is_some_and(|next| next.what == What::Transient),
        What::Transient => before.iter().any(|step| step.what == What::Binding || step.what == What::Vni),
        // Whether it is on the node, then where it is outside.
        What::Address | What::Fdb => after.iter().any(|next| {
            use What::{Address, Fdb, Hop, HopIndex, Nat, SnatOwner, Store};
            matches!(next.what, Address | Fdb | Hop | HopIndex | Nat | SnatOwner | Store)
        }),
        What::HopIndex => true,
        _ => false,
    }
}

fn table(what: What) -> &'static str {
    match what {
        What::Flow => "FLOWS",
        What::Transient => "TRANSIENT",
        What::Binding => "BINDINGS",
        What::Network => "NETWORKS",
        What::Vni => "VNIS",
        What::Vtep => "VTEPS",
        What::Fdb => "FDB",
        What::Address => "ADDRESSES",
        What::Allowed => "ALLOWED",
        What::Route => "ROUTES",
        What::RouterLeg => "ROUTER_LEGS",
        What::Underlay => "UNDERLAY",
        What::Nat => "NAT",
        What::Floating => "FLOATING",
        What::SnatBlock => "SNAT_BLOCKS",
        What::SnatOwner => "SNAT_OWNERS",
        What::Gateway => "GATEWAYS",
        What::Member => "MEMBERS",
        What::Listener => "LISTENERS",
        What::PoolSlots => "POOL_SLOTS",
        What::PoolMember => "POOL_MEMBERS",
        What::PoolMemberAt => "MEMBERS_AT",
        What::Master | What::Carries => "MASTERS",
        What::Class => "CLASSES",
        What::Rule => "RULES",
        What::Learned => "LEARNED",
        What::HopIndex => "HOP_INDEX",
        What::Hop => "HOPS",
        What::Fragment => "FRAGMENTS",
        What::Store => "FLOWS",
        What::Drop => "DROPS",
        What::Event => "EVENTS",
        What::Leave | What::Copy => "",
    }
}

/// A drop reason of a step.
pub fn reason(step: &Step) -> Option<DropReason> {
    let number: u32 = (step.what == What::Drop).then(|| step.key()).flatten()?;
    DropReason::ALL.iter().copied().find(|reason| *reason as u32 == number)
}

/// An event of a step.
pub fn event(step: &Step) -> Option<Event> {
    let number: u32 = (step.what == What::Event).then(|| step.key()).flatten()?;
    Event::ALL.iter().copied().find(|event| *event as u32 == number)
}

struct Speaker<'w> {
    world: &'w World,
    entry: Entry,
}

type Words = (String, Vec<Object>);

impl Speaker<'_> {
    fn name(&self, kind: u32, id: u32) -> String {
        self.world.name(kind, id)
    }

    fn object(&self, kind: u32, id: u32) -> Object {
        let what = match kind {
            NAME_NETWORK => "network",
            NAME_ROUTER => "router",
            NAME_PORT => "port",
            _ => "node",
        };
        Object { kind: what, name: self.name(kind, id) }
    }

    fn say(&self, step: &Step, class: Option<u32>) -> Option<Words> {
        match step.what {
            What::Flow | What::Transient => self.flow(step),
            What::Binding => self.binding(step),
            What::Vni => self.vni(step),
            What::Vtep => self.vtep(step),
            What::Fdb | What::Address | What::Learned => self.station(step),
            What::Allowed => self.allowed(step),
            What::Route => self.route(step),
            What::RouterLeg => self.leg(step),
            What::Underlay => self.underlay(step),
            What::Nat => self.nat(step),
            What::Floating => self.floating(step),
            What::SnatBlock => self.block(step),
            What::SnatOwner => self.owner(step),
            What::Gateway => self.gateway(step),
            What::Member => self.member(step),
            What::Listener => self.listener(step),
            What::PoolMember => self.pool_member(step),
            What::Master | What::Carries => self.master(step),
            What::Rule => self.rule(step, class),
            What::HopIndex | What::Hop => self.hop(step),
            What::Fragment => self.fragment(step),
            What::Store => self.store(step),
            What::Copy => self.copy(step),
            What::PoolSlots
            | What::PoolMemberAt
            | What::Class
            | What::Network
            | What::Event
            | What::Drop
            | What::Leave => None,
        }
    }

    fn flow(&self, step: &Step) -> Option<Words> {
        let Some(flow) = step.value::<Flow>() else {
            return Some(("no flow entry: decided as the first packet of a flow".to_owned(), vec![]));
        };
        let key: FlowKey = step.key()?;
        let what = match (step.what, flow.role, flow.epoch) {
            (_, _, 0) => "the reply of a connection that is known, the first one",
            (What::Transient, ROLE_NONE, _) => "a remembered decision",
            (What::Transient, ..) => "a connection that was not answered yet",
            (_, ROLE_REPLY, _) => "replies of an established connection",
            _ => "an established connection",
        };
        let mut text = format!("{what}: {} packets so far", flow.packets);
        if flow.epoch != 0 {
            text += &format!(", decided at epoch {}", flow.epoch);
        }
        if flow.flags & FLOW_NAT != 0 {
            text += &format!("; {}", translation(&key, &flow));
        }
        Some((text, self.decided(&key, &flow)))
    }

    /// What an entry's packets pass, as far as it is in the entry: routers between the first and the last are not.
    fn decided(&self, key: &FlowKey, flow: &Flow) -> Vec<Object> {
        let network = self.object(NAME_NETWORK, flow.network);
        if flow.epoch == 0 {
            return vec![network];
        }
        let port = |ifindex: u32| {
            let key = BindingKey { ifindex: Scoped::new(0, ifindex) };
            Some(self.object(NAME_PORT, self.world.image.bindings.get(&key)?.port))
        };
        let router_at = |network: u32, mac: [u8; 6]| {
            let mut legs = self.world.image.router_legs.iter().filter(|_| flow.hops > 0);
            let found = legs.find(|(key, leg)| key.network == network && leg.mac == mac);
            found.map(|(key, _)| self.object(NAME_ROUTER, key.router.id()))
        };
        let from = if key.from == FROM_PORT { port(key.zone) } else { None };
        let to = if flow.exit == EXIT_PORT { port(flow.target) } else { None };
        let routers = [
            router_at(flow.network, flow.in_macs.dst()),
            (flow.router != 0).then(|| self.object(NAME_ROUTER, flow.router)),
            router_at(flow.network_out, flow.out_macs.src()),
        ];
        let out = (flow.network_out != 0).then(|| self.object(NAME_NETWORK, flow.network_out));
        let way = from.into_iter().chain([network]).chain(routers.into_iter().flatten()).chain(out).chain(to);
        way.collect()
    }

    /// A connection that has the port that was tried.
    fn taken(&self, step: &Step) -> Option<Words> {
        let is_flow = matches!(step.what, What::Flow | What::Transient);
        let (key, flow): (FlowKey, Flow) = is_flow.then(|| Some((step.key()?, step.value()?))).flatten()?;
        let (port, whose) = (key.dport.get(), end(flow.dst, flow.dport.get(), key.proto));
        Some((format!("port {port} of {} is another connection's, that of {whose}", key.dst), vec![]))
    }

    fn interface(&self, ifindex: u32) -> String {
        self.world.interfaces.get(&ifindex).cloned().unwrap_or_else(|| format!("interface {ifindex}"))
    }

    fn binding(&self, step: &Step) -> Option<Words> {
        let key: BindingKey = step.key()?;
        let ifindex = key.ifindex.id();
        let Some(binding) = step.value::<Binding>() else {
            return Some((format!("{} is bound to no port", self.interface(ifindex)), vec![]));
        };
        let (port, network) =
            (self.object(NAME_PORT, binding.port), self.object(NAME_NETWORK, binding.network));
        let security = if binding.flags & BINDING_NO_SECURITY != 0 { ", port security off" } else { "" };
        let (verb, objects) = if self.entry == Entry::Port(ifindex) {
            ("comes from", vec![port.clone(), network.clone()])
        } else {
            ("is for", vec![network.clone(), port.clone()])
        };
        Some((format!("{verb} port {} on network {}{security}", port.name, network.name), objects))
    }

    fn vni(&self, step: &Step) -> Option<Words> {
        let vni = step.key::<VniKey>()?.vni.id();
        Some(match step.value::<u32>() {
            Some(network) => {
                let network = self.object(NAME_NETWORK, network);
                (format!("VNI {vni} is network {}", network.name), vec![network])
            }
            None => (format!("no network of this node has VNI {vni}"), vec![]),
        })
    }

    fn vtep(&self, step: &Step) -> Option<Words> {
        let vtep = Ipv4Addr::from_bits(step.key::<VtepKey>()?.addr.get());
        Some(match step.value::<u32>() {
            Some(node) => (format!("comes from {} ({vtep})", self.name(NAME_NODE, node)), vec![]),
            None => (format!("{vtep} is the VTEP of no node"), vec![]),
        })
    }

    fn station(&self, step: &Step) -> Option<Words> {
        let (network, who, station) = match step.what {
            What::Fdb => {
                let key: FdbKey = step.key()?;
                (key.network.id(), Mac(key.mac).to_string(), step.value::<Station>())
            }
            What::Address => {
                let key: AddressKey = step.key()?;
                (key.network.id(), key.ip.to_string(), step.value::<Station>())
            }
            _ => {
                let key: LearnedKey = step.key()?;
                // What nobody claimed says nothing.
                let learned: Learned = step.value()?;
                let who = match key.ip.0 {
                    [u32::MAX, u32::MAX, ..] => "the hardware address".to_owned(),
                    _ => key.ip.to_string(),
                };
                (key.network, who, Some(learned.station))
            }
        };
        let on = self.object(NAME_NETWORK, network);
        let Some(station) = station else {
            return Some((format!("nobody on network {} has {who}", on.name), vec![on]));
        };
        let (owner, object) = match station.kind {
            STATION_ROUTER if station.owner == ROUTER_BY_DESTINATION => {
                ("this node's interface".to_owned(), None)
            }
            STATION_ROUTER => {
                let router = self.object(NAME_ROUTER, station.owner);
                (format!("router {}", router.name), Some(router))
            }
            STATION_FLOATING => {
                let router = self.object(NAME_ROUTER, station.owner);
                (format!("a floating IP of router {}", router.name), Some(router))
            }
            STATION_SERVICE => ("the services of this node".to_owned(), None),
            STATION_VIP => {
                let router = self.object(NAME_ROUTER, station.owner);
                (format!("a VIP, balanced by router {}", router.name), Some(router))
            }
            STATION_MEMBER => {
                let router = self.object(NAME_ROUTER, station.owner);
                (format!("a pool's member, behind router {}", router.name), Some(router))
            }
            _ => {
                let port = self.object(NAME_PORT, station.owner);
                (format!("port {}", port.name), Some(port))
            }
        };
        let place = match station.place {
            PLACE_REMOTE => format!(" on {}", self.name(NAME_NODE, station.at)),
            PLACE_UNPLUGGED => " whose interface is missing on this node".to_owned(),
            PLACE_UNBOUND => " which is bound to no node".to_owned(),
            PLACE_LEARNED => " whose port is bound to no node".to_owned(),
            PLACE_SHARED => format!(", shared by gateways (VRID {})", station.at),
            _ if station.kind == STATION_PORT => " on this node".to_owned(),
            _ => String::new(),
        };
        let verb = if step.what == What::Learned { "is claimed by" } else { "is" };
        Some((
            format!("{who} on network {} {verb} {owner}{place}", on.name),
            [Some(on), object].into_iter().flatten().collect(),
        ))
    }

    fn allowed(&self, step: &Step) -> Option<Words> {
        let key: AllowedKey = step.key()?;
        let port = self.object(NAME_PORT, key.port.id());
        let verb = if step.found { "may" } else { "may not" };
        Some((format!("port {} {verb} send from {} with {}", port.name, key.ip, Mac(key.mac)), vec![]))
    }

    /// The prefix that matched: the trie tells the value alone.
    fn prefix(&self, router: u32, ip: Ip) -> Option<String> {
        let covers = |key: &&RouteKey| {
            let bits = key.prefix_len.saturating_sub(RouteKey::FIXED_BITS);
            key.router.id() == router && common_bits(key.dst, ip) >= bits
        };
        let best = self.world.image.routes.keys().filter(covers).max_by_key(|key| key.prefix_len)?;
        Some(prefix(best.dst, best.prefix_len.saturating_sub(RouteKey::FIXED_BITS)))
    }

    fn route(&self, step: &Step) -> Option<Words> {
        let key: RouteKey = step.key()?;
        let router = self.object(NAME_ROUTER, key.router.id());
        let Some(route) = step.value::<Route>() else {
            return Some((format!("router {} has no route to {}", router.name, key.dst), vec![router]));
        };
        let matched = self.prefix(key.router.id(), key.dst).unwrap_or_else(|| key.dst.to_string());
        let network = || self.object(NAME_NETWORK, route.network);
        let (what, leads_to) = match route.kind {
            ROUTE_CONNECTED => (format!("is on network {}", network().name), Some(network())),
            ROUTE_VIA if route.nexthop == Ip::UNSPECIFIED => {
                (format!("goes by the gateways of network {}", network().name), Some(network()))
            }
            ROUTE_VIA => {
                (format!("goes via {} on network {}", route.nexthop, network().name), Some(network()))
            }
            ROUTE_SELF => ("is the router's own address".to_owned(), None),
            ROUTE_BLACKHOLE => ("is a blackhole".to_owned(), None),
            ROUTE_UNREACHABLE => ("is unreachable, by a route that says so".to_owned(), None),
            ROUTE_BROADCAST => (format!("is the broadcast address of network {}", network().name), None),
            ROUTE_MULTI => {
                let group = self.name(NAME_GROUP, route.network);
                (format!("goes by one of several next hops ({group})"), None)
            }
            _ => ("has no route".to_owned(), None),
        };
        let text = format!("router {}: {} {what} [{matched}]", router.name, key.dst);
        Some((text, [Some(router), leads_to].into_iter().flatten().collect()))
    }

    fn leg(&self, step: &Step) -> Option<Words> {
        let key: RouterLegKey = step.key()?;
        let (router, network) =
            (self.object(NAME_ROUTER, key.router.id()), self.object(NAME_NETWORK, key.network));
        (!step.found).then(|| {
            (
                format!("router {} has no interface on network {}", router.name, network.name),
                vec![router, network],
            )
        })
    }

    fn underlay(&self, step: &Step) -> Option<Words> {
        let node = self.object(NAME_NODE, step.key::<u32>()?);
        let way: Underlay = step.value()?;
        let to = Ipv4Addr::from_bits(way.dst.get());
        let how = match (way.flags & UNDERLAY_ROUTED != 0, way.flags & UNDERLAY_RESOLVED != 0) {
            (true, true) => "resolved".to_owned(),
            (true, false) => {
                format!("its neighbour {} is not resolved yet", Ipv4Addr::from_bits(way.nexthop.get()))
            }
            _ => "there is no route to it over the underlay".to_owned(),
        };
        Some((format!("{} is reached at {to}: {how}", node.name), vec![node]))
    }

    fn nat(&self, step: &Step) -> Option<Words> {
        let key: NatKey = step.key()?;
        let nat: Nat = step.value()?;
        let port = self.object(NAME_PORT, nat.port);
        let at = match nat.node {
            0 => "on this node".to_owned(),
            NODE_LEARNED => "bound to no node".to_owned(),
            node => format!("on {}", self.name(NAME_NODE, node)),
        };
        let router = self.object(NAME_ROUTER, nat.router);
        if nat.node == NODE_BALANCED {
            return Some((format!("{} is the floating IP of VIP {}", key.ip, nat.inside), vec![router]));
        }
        let text = if key.port.get() == 0 {
            format!("{} is the floating IP of port {} ({}), {at}", key.ip, port.name, nat.inside)
        } else {
            let (from, to) = (key.port.get(), nat.inside_port.get());
            format!(
                "{} port {from} is forwarded to port {} ({} port {to}), {at}",
                key.ip, port.name, nat.inside
            )
        };
        Some((text, vec![router]))
    }

    fn floating(&self, step: &Step) -> Option<Words> {
        let key: FloatingKey = step.key()?;
        let floating: Floating = step.value()?;
        let router = self.object(NAME_ROUTER, key.router.id());
        Some((
            format!("router {}: {} has the floating IP {}", router.name, key.ip, floating.ip),
            vec![router],
        ))
    }

    fn block(&self, step: &Step) -> Option<Words> {
        let key: SnatBlockKey = step.key()?;
        let router = self.object(NAME_ROUTER, key.router.id());
        Some(match step.value::<SnatBlock>() {
            Some(block) => (
                format!(
                    "this node translates with ports {}-{} of router {}",
                    block.first, block.last, router.name
                ),
                vec![router],
            ),
            None => (format!("this node has no ports of router {}", router.name), vec![router]),
        })
    }

    fn owner(&self, step: &Step) -> Option<Words> {
        let key: SnatOwnerKey = step.key()?;
        let owner: SnatOwner = step.value()?;
        let (first, address) = (key.block * SNAT_BLOCK, Ipv4Addr::from_bits(key.ip.get()));
        let node = self.object(NAME_NODE, owner.node);
        Some((
            format!("ports {first}-{} of {address} are {}'s", first + SNAT_BLOCK - 1, node.name),
            vec![node],
        ))
    }

    fn gateway(&self, step: &Step) -> Option<Words> {
        let key: GatewayKey = step.key()?;
        let network = self.object(NAME_NETWORK, key.network.id());
        Some(match step.value::<u32>() {
            Some(node) => {
                let node = self.object(NAME_NODE, node);
                (
                    format!(
                        "this node has no interface on network {}: gateway {} carries for it",
                        network.name, node.name
                    ),
                    vec![network, node],
                )
            }
            None => (
                format!("this node has no interface on network {}, and there is no gateway", network.name),
                vec![network],
            ),
        })
    }

    fn member(&self, step: &Step) -> Option<Words> {
        let member: Member = step.value()?;
        let network = self.object(NAME_NETWORK, member.network);
        Some((
            format!("this flow's next hop is {} on network {}", member.nexthop, network.name),
            vec![network],
        ))
    }

    fn listener(&self, step: &Step) -> Option<Words> {
        let key: ListenerKey = step.key()?;
        let to = format!("{} port {}", protocol(key.proto).unwrap_or("protocol"), key.port.get());
        let Some(listener) = step.value::<Listener>() else {
            return Some((format!("nothing listens at VIP {} on {to}", key.ip), vec![]));
        };
        let (name, pool) =
            (self.object(NAME_LISTENER, listener.number), self.object(NAME_POOL, listener.pool));
        let how = match listener {
            Listener { flags, .. } if flags & LISTENER_DOWN != 0 => " is administratively down".to_owned(),
            Listener { flags, .. } if flags & LISTENER_EMPTY != 0 => {
                format!(": pool {}, of which no member takes connections", pool.name)
            }
            Listener { flags, .. } if flags & LISTENER_SOURCE_IP != 0 => {
                format!(": pool {}, by the client's address", pool.name)
            }
            _ => format!(": pool {}", pool.name),
        };
        Some((format!("VIP {}, {to}: listener {}{how}", key.ip, name.name), vec![name, pool]))
    }

    fn pool_member(&self, step: &Step) -> Option<Words> {
        let member: PoolMember = step.value()?;
        let name = self.object(NAME_MEMBER, member.number);
        let how = match member.flags {
            flags if flags & MEMBER_LOST != 0 => ", whose node is silent",
            flags if flags & MEMBER_DOWN != 0 => ", which is down",
            flags if flags & MEMBER_UP == 0 => ", which takes nothing new",
            _ => "",
        };
        let at = format!("{} port {}", member.ip, member.port.get());
        Some((format!("member {} at {at}{how}", name.name), vec![name]))
    }

    fn master(&self, step: &Step) -> Option<Words> {
        let key: MasterKey = step.key()?;
        let network = self.name(NAME_NETWORK, key.network);
        let verb = match (step.what, step.found) {
            (What::Master, true) => "is the master",
            (What::Master, false) => "is not the master",
            (_, true) => "carries as the master",
            (_, false) => "is not the master: another gateway carries",
        };
        Some((format!("this node {verb} (VRID {} on network {network})", key.vrid), vec![]))
    }

    fn rule(&self, step: &Step, class: Option<u32>) -> Option<Words> {
        let key: RuleKey = step.key()?;
        let direction = if key.direction & RULE_INGRESS != 0 { "ingress" } else { "egress" };
        let groups = match key.policy.id() {
            0 => "no security group".to_owned(),
            policy => format!("security groups {}", self.name(NAME_POLICY, policy)),
        };
        if let Some(rule) = step.value::<Rule>() {
            let replies =
                if rule.flags & RULE_STATEFUL != 0 { "and its replies" } else { "but not its replies" };
            let name = self.name(NAME_RULE, rule.rule);
            return Some((format!("{groups}, {direction}: rule {name} allows it, {replies}"), vec![]));
        }
        let what = match key.proto {
            PROTO_ICMP | PROTO_ICMPV6 => {
                let [kind, code] = key.port.get().to_be_bytes();
                format!("ICMP type {kind} code {code}")
            }
            proto => {
                let name = protocol(proto).map_or_else(|| format!("protocol {proto}"), str::to_owned);
                if key.port.get() == 0 { name } else { format!("{name} port {}", key.port.get()) }
            }
        };
        let remote = match class {
            Some(class) if class != 0 => format!(", which rules know as {}", self.name(NAME_CLASS, class)),
            _ => ", which no rule names".to_owned(),
        };
        let side = if key.direction & RULE_INGRESS != 0 { "from the sender" } else { "to the receiver" };
        Some((format!("{groups}, {direction}: no rule allows {what} {side}{remote}"), vec![]))
    }

    fn hop(&self, step: &Step) -> Option<Words> {
        if step.what == What::HopIndex {
            let key: HopKey = step.key()?;
            let text = format!(
                "next hop {} on network {} was not used yet",
                key.ip,
                self.name(NAME_NETWORK, key.network)
            );
            return (!step.found).then_some((text, vec![]));
        }
        let hop: Hop = step.value()?;
        let state = match hop.flags {
            flags if flags & HOP_RESOLVED != 0 => format!("is {}", Mac(hop.mac)),
            flags if flags & HOP_FAILED != 0 => "does not answer".to_owned(),
            _ => "is not resolved yet".to_owned(),
        };
        let network = self.object(NAME_NETWORK, hop.network);
        Some((format!("next hop {} on network {} {state}", hop.ip, network.name), vec![network]))
    }

    fn fragment(&self, step: &Step) -> Option<Words> {
        let text = match step.value::<Fragment>() {
            Some(first) => format!(
                "a later fragment: its first had ports {} and {}",
                first.sport.get(),
                first.dport.get()
            ),
            None => "a fragment of a datagram of which nothing is known".to_owned(),
        };
        Some((text, vec![]))
    }

    fn store(&self, step: &Step) -> Option<Words> {
        let (key, flow): (FlowKey, Flow) = (step.key()?, step.value()?);
        if !step.found {
            return Some((
                format!("port {} is another connection's: the next one is tried", key.dport.get()),
                vec![],
            ));
        }
        // The replies' entry says the same the other way round.
        if flow.role == ROLE_REPLY || flow.flags & FLOW_NAT == 0 {
            return None;
        }
        let router = self.object(NAME_ROUTER, flow.router);
        Some((format!("router {} translates: {}", router.name, translation(&key, &flow)), vec![router]))
    }

    fn copy(&self, step: &Step) -> Option<Words> {
        let Copied { ifindex, node } = step.key()?;
        let object = match node {
            0 => {
                let key = BindingKey { ifindex: Scoped::new(0, ifindex) };
                self.object(NAME_PORT, self.world.image.bindings.get(&key)?.port)
            }
            node => self.object(NAME_NODE, node),
        };
        Some((format!("a copy goes to {} {}", object.kind, object.name), vec![object]))
    }
}

/// `ADDRESS:PORT`, or the address alone where there are no ports.
fn end(ip: Ip, port: u16, proto: u8) -> String {
    match protocol(proto) {
        Some("tcp" | "udp") => std::net::SocketAddr::new(std::net::IpAddr::from(ip), port).to_string(),
        _ => ip.to_string(),
    }
}

fn translation(key: &FlowKey, flow: &Flow) -> String {
    let before = |ip, port| end(ip, port, key.proto);
    let (src, dst) = (before(key.src, key.sport.get()), before(key.dst, key.dport.get()));
    let (new_src, new_dst) = (before(flow.src, flow.sport.get()), before(flow.dst, flow.dport.get()));
    let mut parts = Vec::new();
    if src != new_src {
        parts.push(format!("source {src} becomes {new_src}"));
    }
    if dst != new_dst {
        parts.push(format!("destination {dst} becomes {new_dst}"));
    }
    if parts.is_empty() { "the identifier changes".to_owned() } else { parts.join(", ") }
}

fn common_bits(a: Ip, b: Ip) -> u32 {
    let mut bits = 0;
    for (a, b) in a.0.iter().zip(b.0) {
        let same = (u32::from_be(*a) ^ u32::from_be(b)).leading_zeros();
        bits += same;
        if same < 32 {
            break;
        }
    }
    bits
}

fn prefix(ip: Ip, bits: u32) -> String {
    // IPv4 lies in the last 32 bits.
    if ip.is_v4() && bits >= 96 { format!("{ip}/{}", bits - 96) } else { format!("{ip}/{bits}") }
}
