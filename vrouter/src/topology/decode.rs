//! The tree to objects, every problem noted, none stopping the reading.
//!
//! An object with a problem that matters to others is left out of the result, and its name is remembered as
//! broken: what refers to it is not to blame. Rules that need only one object are checked here; those between
//! objects in `validate`.

mod balancer;
mod dhcp;
mod health;
mod network;
mod port;
mod router;
mod security;

use std::{collections::HashSet, sync::Arc};

use super::model::{
    self, AddressGroup, DEFAULT_GROUP, FloatingIp, LoadBalancer, Network, Pool, Port, Remote, Router,
    SecurityGroup, Topology,
};
use super::object::Object;
use super::problem::Problems;
use super::scalar;
use super::yaml::{Node, NodeKind};
use router::Gateways;

/// What could be read of a document.
#[derive(Default)]
pub struct Decoded<'t> {
    /// The objects fit for the rules between objects; those with a minor problem of their own are among
    /// them, so this is the document's meaning only if there was no problem at all. A router interface whose subnet does not exist holds an unspecified address.
    pub topology: Topology,
    /// For each network: whether its VNI is derived from its name.
    pub derived_vni: Vec<bool>,
    /// Per kind, the tree each sound object came from, for the lines of its parts.
    pub nodes: PerKind<Vec<&'t Node>>,
    pub broken: PerKind<Broken>,
}

/// Objects that were read one by one, to be put together.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// With whether the VNI is derived from the name.
    pub networks: Vec<(Network, bool)>,
    /// Of which interfaces may have unspecified addresses: those of their subnets' gateways.
    pub routers: Vec<Router>,
    pub security_groups: Vec<SecurityGroup>,
    pub address_groups: Vec<AddressGroup>,
    pub ports: Vec<Port>,
    pub floating_ips: Vec<FloatingIp>,
    pub load_balancers: Vec<LoadBalancer>,
    pub pools: Vec<Arc<Pool>>,
    pub nodes: Vec<model::Node>,
}

/// One object, read by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Single {
    /// With whether the VNI is derived from the name.
    Network(Network, bool),
    /// Interfaces that have their subnets' gateway addresses hold unspecified ones.
    Router(Router),
    SecurityGroup(SecurityGroup),
    AddressGroup(AddressGroup),
    Port(Port),
    FloatingIp(FloatingIp),
    LoadBalancer(LoadBalancer),
    Pool(Arc<Pool>),
    Node(model::Node),
}

/// Reads an object by itself. `None`, or a problem: it is not in order.
pub fn read_one(kind: Kind, node: &Node, problems: &mut Problems) -> Option<Single> {
    let label = label(node, kind, || kind.noun().to_owned());
    let mut object = Object::open(node, label, kind.fields(), problems)?;
    let object = &mut object;
    Some(match kind {
        Kind::Network => {
            let (network, derived) = network::network(object)?;
            Single::Network(network, derived)
        }
        Kind::Subnet => return None,
        Kind::Router => Single::Router(router::router(object, &Gateways::unknown())?),
        Kind::SecurityGroup => Single::SecurityGroup(security::group(object)?),
        Kind::AddressGroup => Single::AddressGroup(security::address_group(object)?),
        Kind::Port => Single::Port(port::port(object)?),
        Kind::FloatingIp => Single::FloatingIp(port::floating_ip(object)?),
        Kind::LoadBalancer => Single::LoadBalancer(balancer::load_balancer(object)?),
        Kind::Pool => Single::Pool(Arc::new(balancer::pool(object)?)),
        Kind::Node => Single::Node(port::node(object)?),
    })
}

/// The objects of a kind that are in the document but could not be read.
#[derive(Default)]
pub struct Broken {
    names: HashSet<String>,
    /// Some have no readable name, so that nothing can be said to be missing.
    unnamed: bool,
}

/// The kinds of objects that have names of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Kind {
    Network,
    Subnet,
    Router,
    SecurityGroup,
    AddressGroup,
    Port,
    FloatingIp,
    LoadBalancer,
    Pool,
    Node,
}

/// One value per kind.
#[derive(Default)]
pub struct PerKind<T>([T; 10]);

impl Kind {
    const ALL: [Self; 10] = [
        Self::Network,
        Self::Subnet,
        Self::Router,
        Self::SecurityGroup,
        Self::AddressGroup,
        Self::Port,
        Self::FloatingIp,
        Self::LoadBalancer,
        Self::Pool,
        Self::Node,
    ];

    /// The kinds of what a document lists: all but subnets, which are parts of networks.
    pub fn objects() -> impl DoubleEndedIterator<Item = Self> + Clone {
        Self::ALL.into_iter().filter(|kind| *kind != Self::Subnet)
    }

    /// The kind that a document lists in a section.
    pub fn of_section(section: &str) -> Option<Self> {
        Self::objects().find(|kind| kind.section() == section)
    }

    /// The fields an object of it may have, the one that names it first.
    pub fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Network => network::FIELDS,
            Self::Subnet => network::SUBNET_FIELDS,
            Self::Router => router::FIELDS,
            Self::SecurityGroup => security::GROUP_FIELDS,
            Self::AddressGroup => security::ADDRESS_GROUP_FIELDS,
            Self::Port => port::PORT_FIELDS,
            Self::FloatingIp => port::FLOATING_IP_FIELDS,
            Self::LoadBalancer => balancer::FIELDS,
            Self::Pool => balancer::POOL_FIELDS,
            Self::Node => port::NODE_FIELDS,
        }
    }

    /// What people call one.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Subnet => "subnet",
            Self::Router => "router",
            Self::SecurityGroup => "security group",
            Self::AddressGroup => "address group",
            Self::Port => "port",
            Self::FloatingIp => "floating ip",
            Self::LoadBalancer => "load balancer",
            Self::Pool => "pool",
            Self::Node => "node",
        }
    }

    /// The field that holds the objects.
    pub fn section(self) -> &'static str {
        match self {
            Self::Network => "networks",
            Self::Subnet => "subnets",
            Self::Router => "routers",
            Self::SecurityGroup => "security_groups",
            Self::AddressGroup => "address_groups",
            Self::Port => "ports",
            Self::FloatingIp => "floating_ips",
            Self::LoadBalancer => "load_balancers",
            Self::Pool => "pools",
            Self::Node => "nodes",
        }
    }

    /// The field that names the object.
    pub fn name_field(self) -> &'static str {
        if self == Self::FloatingIp { "address" } else { "name" }
    }
}

impl<T> std::ops::Index<Kind> for PerKind<T> {
    type Output = T;

    fn index(&self, kind: Kind) -> &T {
        &self.0[kind as usize]
    }
}

impl<T> std::ops::IndexMut<Kind> for PerKind<T> {
    fn index_mut(&mut self, kind: Kind) -> &mut T {
        &mut self.0[kind as usize]
    }
}

impl Broken {
    /// Whether a missing `name` may be one of these.
    pub fn may_be(&self, name: &str) -> bool {
        self.unnamed || self.names.contains(name)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        !self.unnamed && self.names.is_empty()
    }

    fn add(&mut self, node: &Node, name_field: &str) {
        match node.field(name_field).map(scalar::name) {
            Some(Ok(name)) => {
                self.names.insert(name);
            }
            _ => self.unnamed = true,
        }
    }
}

/// Reads the objects of `root`.
pub fn decode<'t>(root: &'t Node, problems: &mut Problems) -> Decoded<'t> {
    let mut decoded = Decoded::default();
    // Duplicate keys were noted before; whatever they hid cannot be called missing.
    let hidden = problems.count();
    let known: Vec<&str> = Kind::objects().map(Kind::section).collect();
    let Some(mut document) = Object::open(root, "document".to_owned(), &known, problems) else {
        return decoded;
    };
    if hidden > 0 || !document.is_sound() {
        Kind::ALL.into_iter().for_each(|kind| decoded.broken[kind].unnamed = true);
    }
    decoded.read(&mut document);
    decoded
}

impl<'t> Decoded<'t> {
    fn read(&mut self, document: &mut Object<'t, '_>) {
        for (network, derived) in self.section(document, Kind::Network, network::FIELDS, network::network) {
            self.topology.networks.push(network);
            self.derived_vni.push(derived);
        }
        let gateways = Gateways::of(&self.topology.networks);
        self.topology.routers =
            self.section(document, Kind::Router, router::FIELDS, |object| router::router(object, &gateways));
        self.topology.security_groups =
            self.section(document, Kind::SecurityGroup, security::GROUP_FIELDS, security::group);
        self.topology.address_groups = self.section(
            document,
            Kind::AddressGroup,
            security::ADDRESS_GROUP_FIELDS,
            security::address_group,
        );
        self.topology.ports = self.section(document, Kind::Port, port::PORT_FIELDS, port::port);
        self.topology.floating_ips =
            self.section(document, Kind::FloatingIp, port::FLOATING_IP_FIELDS, port::floating_ip);
        self.topology.load_balancers =
            self.section(document, Kind::LoadBalancer, balancer::FIELDS, balancer::load_balancer);
        self.topology.pools = self.section(document, Kind::Pool, balancer::POOL_FIELDS, |object| {
            balancer::pool(object).map(Arc::new)
        });
        self.topology.nodes = self.section(document, Kind::Node, port::NODE_FIELDS, port::node);
        self.add_default_group();
    }

    /// Of objects that were read one by one.
    pub fn of_parts(parts: Parts, problems: &mut Problems) -> Self {
        let Parts {
            networks,
            mut routers,
            security_groups,
            address_groups,
            ports,
            floating_ips,
            load_balancers,
            pools,
            nodes,
        } = parts;
        let (networks, derived_vni): (Vec<_>, Vec<_>) = networks.into_iter().unzip();
        let gateways = Gateways::of(&networks);
        for router in &mut routers {
            gateways.fill_in(router, problems);
        }
        let topology = Topology {
            networks,
            routers,
            security_groups,
            address_groups,
            ports,
            floating_ips,
            load_balancers,
            pools,
            nodes,
        };
        let mut decoded = Self { topology, derived_vni, ..Self::default() };
        decoded.add_default_group();
        decoded
    }

    /// The group `default` is there even if the document does not define it, as soon as somebody refers to it.
    fn add_default_group(&mut self) {
        let topology = &self.topology;
        let by_port = |group: &String| group == DEFAULT_GROUP;
        let referred_to = topology.ports.iter().any(|port| port.security_groups.iter().any(by_port))
            || topology
                .security_groups
                .iter()
                .flat_map(|group| &group.rules)
                .any(|rule| matches!(&rule.remote, Some(Remote::Group(name)) if name == DEFAULT_GROUP));
        let defined = topology.security_groups.iter().any(|group| group.name == DEFAULT_GROUP)
            || self.broken[Kind::SecurityGroup].may_be(DEFAULT_GROUP);
        if referred_to && !defined {
            // Last, so that the positions of the others stay those of their trees.
            self.topology.security_groups.push(SecurityGroup::implicit_default());
        }
    }

    /// Reads the objects of one kind, keeping those that are sound.
    fn section<T>(
        &mut self,
        document: &mut Object<'t, '_>,
        kind: Kind,
        known: &[&str],
        read: impl Fn(&mut Object<'t, '_>) -> Option<T>,
    ) -> Vec<T> {
        let mut values = Vec::new();
        for (i, node) in document.items(kind.section()).iter().enumerate() {
            let label = label(node, kind, || format!("{}[{i}]", kind.section()));
            let sound = Object::open(node, label, known, document.problems()).and_then(|mut object| {
                let value = read(&mut object)?;
                object.is_sound().then_some(value)
            });
            match sound {
                Some(value) => {
                    values.push(value);
                    self.nodes[kind].push(node);
                }
                None => self.note_broken(node, kind),
            }
        }
        if document.value(kind.section()).is_some_and(|node| !matches!(node.kind, NodeKind::Sequence(_))) {
            self.broken[kind].unnamed = true;
        }
        values
    }

    /// Notes an object that is elsewhere and could not be read.
    pub fn add_broken(&mut self, kind: Kind, name: &str) {
        self.broken[kind].names.insert(name.to_owned());
        if kind == Kind::Network {
            self.broken[Kind::Subnet].unnamed = true;
        }
    }

    fn note_broken(&mut self, node: &Node, kind: Kind) {
        self.broken[kind].add(node, kind.name_field());
        if kind != Kind::Network {
            return;
        }
        match node.field(Kind::Subnet.section()).map(|node| &node.kind) {
            Some(NodeKind::Sequence(subnets)) => {
                subnets.iter().for_each(|subnet| self.broken[Kind::Subnet].add(subnet, "name"));
            }
            // `subnet:` for `subnets:`, or no list.
            _ => self.broken[Kind::Subnet].unnamed = true,
        }
    }
}

/// What problems call the object: by its name if it has one, otherwise by its place.
fn label(node: &Node, kind: Kind, place: impl FnOnce() -> String) -> String {
    match node.field(kind.name_field()).map(scalar::name) {
        Some(Ok(name)) => format!("{} {name}", kind.noun()),
        _ => place(),
    }
}

/// The label of an object of `kind` that is called `name`.
pub fn label_of(kind: Kind, name: impl std::fmt::Display) -> String {
    format!("{} {name}", kind.noun())
}
