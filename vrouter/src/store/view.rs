//! What one node makes of the objects: those that are for it, as a topology in which every rule holds.
//!
//! All objects are kept, read once each, with indexes of what refers to what. The node's part is what can be reached
//! from its ports and its external interfaces: their networks, what routers connect to them, the ports there, the
//! members of the groups its policies name, the floating IPs of external networks it reaches. A change of anything
//! else costs nothing but keeping it. Only the part is checked and compiled.
//!
//! An object that cannot be used (damaged, of a newer schema, against the rules) is left out with everything that
//! depends on it, and named. Where an earlier version of it was in force, that stays instead.

mod index;
mod part;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{
    keys::ObjectName,
    record::{Binding, Record, Unusable},
};
use crate::topology::{
    self, Kind, Problem, Problems, Single,
    model::{Port, Remote, Topology},
};
use index::Index;
use part::Part;

/// Rounds of leaving out what is wrong, each of which may show what else depends on it.
const ROUNDS: usize = 16;

/// What happened to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An object has this value; `None`: it is gone.
    Object(ObjectName, Option<Vec<u8>>),
    /// A node says it has this port plugged, at that revision; `None`: not any more.
    Binding { port: String, node: String, value: Option<(Vec<u8>, i64)> },
}

/// An object, read.
#[derive(Debug)]
pub struct Item {
    /// As it is stored.
    pub raw: Box<[u8]>,
    /// What it says. A router's interface that has its subnet's gateway address holds an unspecified one.
    pub says: Single,
}

/// A value that cannot be used: why, and the value.
type Damaged = (Unusable, Box<[u8]>);

/// Versions of an object.
#[derive(Debug, Default)]
struct Entry {
    /// As it is stored now. `None`: it is gone.
    current: Option<Result<Arc<Item>, Damaged>>,
    /// As it was last in force on this node.
    good: Option<Arc<Item>>,
}

impl Entry {
    /// What is to be used: what is stored, or what was in force before it could not be used.
    fn best(&self) -> Option<&Arc<Item>> {
        match &self.current {
            Some(Ok(item)) => Some(item),
            Some(Err(_)) | None => self.good.as_ref(),
        }
    }

    /// What is found by what it refers to. What is gone is only found by its name, where another still needs it; but
    /// networks are named by their subnets.
    fn found(&self, kind: Kind) -> Option<&Arc<Item>> {
        if self.current.is_some() || kind == Kind::Network { self.best() } else { None }
    }

    /// Another version was in force before.
    fn is_changed(&self) -> bool {
        match (&self.current, &self.good) {
            (Some(Ok(current)), Some(good)) => !Arc::ptr_eq(current, good),
            _ => false,
        }
    }
}

/// A port as a node has it plugged.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plug {
    binding: Result<Binding, Unusable>,
    raw: Vec<u8>,
    revision: i64,
}

/// The node's part, checked.
#[derive(Clone, Debug)]
pub struct Assembled {
    /// `None`: nothing could be made of it, and what is in force is to stay.
    pub topology: Option<Arc<Topology>>,
    /// What is left out, or stays as it was, and why.
    pub skipped: Problems,
}

/// All objects, as one node sees them.
pub struct View {
    node: String,
    /// The networks of the node's external interfaces; `None`: the topology's only external one.
    externals: Vec<Option<String>>,
    objects: HashMap<ObjectName, Entry>,
    /// By port and node.
    plugs: HashMap<String, BTreeMap<String, Plug>>,
    index: Index,
    /// What the last assembly was made of.
    part: Part,
    /// What came of it, while the node's part has no fault.
    last: Option<Arc<Topology>>,
    /// What changed since.
    touched: HashSet<ObjectName>,
    /// Objects that cannot be read, for all to see: there should be none.
    unusable: HashSet<ObjectName>,
    /// What was used last although it is gone: to be forgotten when nobody needs it.
    gone: HashSet<ObjectName>,
    assembled: bool,
}

impl View {
    /// Of a node, with the networks its external interfaces are on.
    pub fn new(node: &str, externals: Vec<Option<String>>) -> Self {
        Self {
            node: node.to_owned(),
            externals,
            objects: HashMap::new(),
            plugs: HashMap::new(),
            index: Index::default(),
            part: Part::default(),
            last: None,
            touched: HashSet::new(),
            unusable: HashSet::new(),
            gone: HashSet::new(),
            assembled: false,
        }
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len() - self.gone.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an object is in the node's part.
    pub fn has(&self, name: &ObjectName) -> bool {
        self.part.names.contains(name)
    }

    /// Whether there is an object, for anybody.
    pub fn has_any(&self, name: &ObjectName) -> bool {
        self.objects.contains_key(name)
    }

    /// The stored values of all objects and plugged ports, for comparing with what etcd has.
    pub fn known(&self) -> impl Iterator<Item = (&ObjectName, &[u8])> {
        self.objects.iter().filter_map(|(name, entry)| {
            let raw: &[u8] = match entry.current.as_ref()? {
                Ok(item) => &item.raw,
                Err((_, raw)) => raw,
            };
            Some((name, raw))
        })
    }

    /// The plugged ports: port, node, value.
    pub fn plugged(&self) -> impl Iterator<Item = (&str, &str, &[u8])> {
        let plugs = self.plugs.iter();
        plugs.flat_map(|(port, nodes)| {
            nodes.iter().map(move |(node, plug)| (port.as_str(), node.as_str(), plug.raw.as_slice()))
        })
    }

    /// The values that are in force on this node, to be kept for the next start.
    pub fn in_force(&self) -> impl Iterator<Item = (&ObjectName, &[u8])> {
        self.part.names.iter().filter_map(|name| {
            let good = self.objects.get(name)?.good.as_ref()?;
            Some((name, &*good.raw))
        })
    }

    /// The plugged ports of the node's part: port, node, value, revision.
    pub fn plugs_in_force(&self) -> impl Iterator<Item = (&str, &str, &[u8], i64)> {
        let ports = self.part.names.iter().filter(|name| name.kind == Kind::Port);
        ports.filter_map(|name| self.plugs.get_key_value(&name.name)).flat_map(|(port, nodes)| {
            nodes
                .iter()
                .map(move |(node, plug)| (port.as_str(), node.as_str(), plug.raw.as_slice(), plug.revision))
        })
    }

    /// Takes a value that an earlier agent had in force: it is used until etcd has another, and after that if the
    /// other cannot be.
    pub fn remember(&mut self, name: ObjectName, raw: &[u8]) {
        if let Ok(item) = read(&name, raw) {
            let entry = self.objects.entry(name.clone()).or_default();
            (entry.current, entry.good) = (Some(Ok(Arc::clone(&item))), Some(item));
            self.reindex(&name, None);
            self.touched.insert(name);
        }
    }

    /// Takes note of changes. They count when [`assemble`](Self::assemble) is called.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            match change {
                Change::Object(name, value) => self.set(name, value),
                Change::Binding { port, node, value } => self.plug(port, node, value),
            }
        }
    }

    fn set(&mut self, name: ObjectName, value: Option<Vec<u8>>) {
        let before = self.objects.get(&name).and_then(|entry| entry.found(name.kind).cloned());
        let entry = self.objects.entry(name.clone()).or_default();
        self.unusable.remove(&name);
        self.gone.remove(&name);
        match value {
            Some(value) => {
                entry.current = Some(read(&name, &value).map_err(|wrong| (wrong, value.into_boxed_slice())));
                if let Some(Err(_)) = &entry.current {
                    self.unusable.insert(name.clone());
                }
            }
            None => {
                entry.current = None;
                if entry.good.is_some() {
                    self.gone.insert(name.clone());
                } else {
                    self.objects.remove(&name);
                }
            }
        }
        self.reindex(&name, before.as_deref());
        self.touched.insert(name);
    }

    /// Notes what refers to what, after an object changed.
    fn reindex(&mut self, name: &ObjectName, before: Option<&Item>) {
        if let Some(before) = before {
            self.index.remove(name, &before.says);
        }
        if let Some(after) = self.objects.get(name).and_then(|entry| entry.found(name.kind)).cloned() {
            self.index.add(name, &after.says);
        }
        if name.kind == Kind::Port {
            self.rebind(&name.name);
        }
    }

    fn plug(&mut self, port: String, node: String, value: Option<(Vec<u8>, i64)>) {
        let nodes = self.plugs.entry(port.clone()).or_default();
        match value {
            Some((raw, revision)) => {
                let binding = Binding::read(&raw);
                nodes.insert(node, Plug { binding, raw, revision });
            }
            None => drop(nodes.remove(&node)),
        }
        if nodes.is_empty() {
            self.plugs.remove(&port);
        }
        self.rebind(&port);
        self.touched.insert(ObjectName::new(Kind::Port, port));
    }

    /// Notes where a port is now.
    fn rebind(&mut self, port: &str) {
        let name = ObjectName::new(Kind::Port, port);
        let node =
            match self.objects.get(&name).and_then(|entry| entry.found(name.kind)).map(|item| &item.says) {
                Some(Single::Port(stated)) => self.place(stated).map(|(node, _)| node.to_owned()),
                _ => None,
            };
        self.index.bind(port, node);
    }

    /// Where a port is: the node and the interface there. A node that the object names is the only one that may
    /// have it; else it is where it was plugged last.
    fn place<'a>(&'a self, port: &'a Port) -> Option<(&'a str, &'a str)> {
        let plugs = self.plugs.get(&port.name);
        let usable = plugs.into_iter().flatten().filter_map(|(node, plug)| {
            let binding = plug.binding.as_ref().ok()?;
            Some((plug.revision, node.as_str(), binding.interface.as_str()))
        });
        if let Some(stated) = &port.node {
            let mut usable = usable;
            let plugged = usable.find(|(_, node, _)| node == stated).map(|(.., interface)| interface);
            return plugged.or(port.interface.as_deref()).map(|interface| (stated.as_str(), interface));
        }
        usable.max_by_key(|(revision, ..)| *revision).map(|(_, node, interface)| (node, interface))
    }

    /// The next assembly is done whatever changed.
    pub fn look_again(&mut self) {
        self.assembled = false;
    }

    /// The node's part, if anything in it changed since the last call.
    pub fn assemble(&mut self) -> Option<Assembled> {
        let touched = std::mem::take(&mut self.touched);
        if self.assembled {
            let concerned: Vec<&ObjectName> = touched.iter().filter(|name| self.concerns(name)).collect();
            let exchanged = if concerned.is_empty() { None } else { self.exchange(&concerned) };
            if concerned.is_empty() || exchanged.is_some() {
                self.forget();
                return exchanged;
            }
        }
        self.assembled = true;
        self.last = None;
        let mut skipped = Problems::new("etcd");
        let mut wrong: Vec<_> = self.unusable.iter().collect();
        wrong.sort();
        for name in wrong {
            if let Some(Some(Err((why, _)))) = self.objects.get(name).map(|entry| &entry.current) {
                skipped.push(0, name.to_string(), why.clone(), self.remedy(name));
            }
        }
        // Against the rules: an earlier version is used, or none.
        let (mut earlier, mut left_out) = (HashSet::new(), HashSet::new());
        for _ in 0..ROUNDS {
            let (part, parts) = self.collect(&earlier, &left_out);
            match topology::assemble("etcd", parts) {
                Ok(topology) => {
                    let topology = Arc::new(topology);
                    self.accept(part, &earlier, &mut skipped);
                    // What mends it may not be named by it: while anything is wrong, look each time.
                    self.assembled = skipped.is_empty();
                    self.last = self.assembled.then(|| Arc::clone(&topology));
                    return Some(Assembled { topology: Some(topology), skipped });
                }
                Err(problems) => {
                    if !self.exclude(&part, &problems, &mut earlier, &mut left_out, &mut skipped) {
                        break;
                    }
                }
            }
        }
        // Nothing could be made of it: what is in force stays.
        self.assembled = false;
        Some(Assembled { topology: None, skipped })
    }

    /// The part as it was, but for pools that changed, where that can break no rule: members come and go, and weights
    /// change, more often than everything else together. `None`: it has to be collected and checked anew.
    fn exchange(&mut self, concerned: &[&ObjectName]) -> Option<Assembled> {
        let mut last = Arc::clone(self.last.as_ref()?);
        let mut pools = Vec::new();
        for name in concerned {
            let Some(Ok(item)) = &self.objects.get(name)?.current else { return None };
            let Single::Pool(new) = &item.says else { return None };
            let at = last.pools.iter().position(|pool| pool.name == new.name)?;
            if !topology::may_replace(&last.pools[at], new) {
                return None;
            }
            pools.push((at, Arc::clone(new), Arc::clone(item)));
        }
        let topology = Arc::make_mut(&mut last);
        for ((at, pool, item), name) in pools.into_iter().zip(concerned) {
            topology.pools[at] = pool;
            self.objects.get_mut(name)?.good = Some(item);
        }
        self.last = Some(Arc::clone(&last));
        Some(Assembled { topology: Some(last), skipped: Problems::new("etcd") })
    }

    /// Leaves out what is wrong, in favour of an earlier version if there is one: of what the problems blame, or of
    /// what that refers to. Whether there is anything to try yet; otherwise the problems are told as they are.
    fn exclude(
        &self,
        part: &Part,
        problems: &Problems,
        earlier: &mut HashSet<ObjectName>,
        left_out: &mut HashSet<ObjectName>,
        skipped: &mut Problems,
    ) -> bool {
        let blamed: Vec<_> =
            problems.iter().filter_map(|problem| Some((part.blamed(&problem.object)?, problem))).collect();
        let mut tell = |name: &ObjectName, problem: &Problem| {
            let about = if problem.object.starts_with(&name.to_string()) {
                problem.object.clone()
            } else {
                format!("{name} (which {} needs)", problem.object)
            };
            skipped.push(0, about, problem.message.clone(), problem.remedy.clone());
        };
        let mut any = false;
        for (name, problem) in &blamed {
            for suspect in self.suspects(name) {
                let changed = self.objects.get(&suspect).is_some_and(Entry::is_changed);
                if changed && earlier.insert(suspect.clone()) {
                    tell(&suspect, problem);
                    any = true;
                }
            }
        }
        if any {
            return true;
        }
        // Rather what never was in force than what was.
        let is_new = |name: &ObjectName| self.objects.get(name).is_none_or(|entry| entry.good.is_none());
        let some_new = blamed.iter().any(|(name, _)| is_new(name) && !left_out.contains(name));
        for (name, problem) in &blamed {
            if (!some_new || is_new(name)) && left_out.insert(name.clone()) {
                tell(name, problem);
                any = true;
            }
        }
        if !any {
            for problem in problems {
                skipped.push(0, problem.object.clone(), problem.message.clone(), problem.remedy.clone());
            }
        }
        any
    }

    /// An object, what it refers to, and what that refers to.
    fn suspects(&self, name: &ObjectName) -> Vec<ObjectName> {
        let mut suspects = vec![name.clone()];
        let mut from = 0;
        for _ in 0..2 {
            let to = suspects.len();
            for at in from..to {
                let Some(item) = self.objects.get(&suspects[at]).and_then(Entry::best) else { continue };
                for name in self.references(&item.says) {
                    if !suspects.contains(&name) {
                        suspects.push(name);
                    }
                }
            }
            from = to;
        }
        suspects
    }

    /// What an object refers to.
    fn references(&self, says: &Single) -> Vec<ObjectName> {
        let named = |kind: Kind, name: &str| ObjectName::new(kind, name);
        match says {
            Single::Router(router) => {
                let subnets =
                    router.interfaces.iter().flat_map(|it| self.index.networks_with_subnet.to(&it.subnet));
                let gateway = router.gateway.iter().map(|gateway| gateway.network.as_str());
                subnets.chain(gateway).map(|network| named(Kind::Network, network)).collect()
            }
            Single::Port(port) => {
                let groups = port.security_groups.iter().map(|group| named(Kind::SecurityGroup, group));
                let node = port.node.iter().map(|node| named(Kind::Node, node));
                groups.chain(node).chain([named(Kind::Network, &port.network)]).collect()
            }
            Single::FloatingIp(floating) => {
                let ports = floating.port.iter().chain(floating.port_forwardings.iter().map(|it| &it.port));
                let balancer = floating.load_balancer.iter().map(|name| named(Kind::LoadBalancer, name));
                ports.map(|port| named(Kind::Port, port)).chain(balancer).collect()
            }
            Single::LoadBalancer(balancer) => {
                let pools = balancer.listeners.iter().map(|it| named(Kind::Pool, &it.default_pool));
                pools.chain([named(Kind::Network, &balancer.network)]).collect()
            }
            Single::SecurityGroup(group) => {
                let remotes = group.rules.iter().filter_map(|rule| match rule.remote.as_ref()? {
                    Remote::Group(name) => Some(named(Kind::SecurityGroup, name)),
                    Remote::AddressGroup(name) => Some(named(Kind::AddressGroup, name)),
                    Remote::Cidr(_) => None,
                });
                remotes.collect()
            }
            Single::Network(..) | Single::AddressGroup(_) | Single::Pool(_) | Single::Node(_) => Vec::new(),
        }
    }

    fn remedy(&self, name: &ObjectName) -> String {
        let stays = self.objects.get(name).is_some_and(|entry| entry.good.is_some());
        let meanwhile =
            if stays { "what was in force stays" } else { "it is left out with what depends on it" };
        format!("apply it anew with `vrouter apply`; until then {meanwhile}")
    }

    /// What was assembled is in order: it is what stays if later versions are not.
    fn accept(&mut self, part: Part, earlier: &HashSet<ObjectName>, skipped: &mut Problems) {
        for name in &part.names {
            let Some(entry) = self.objects.get_mut(name) else { continue };
            match &entry.current {
                Some(Ok(current)) if !earlier.contains(name) => entry.good = Some(Arc::clone(current)),
                None => skipped.push(
                    0,
                    name.to_string(),
                    "is gone from etcd, but others still need it",
                    "store it again, or delete what needs it; until then it stays in force",
                ),
                _ => {}
            }
        }
        self.part = part;
        self.forget();
    }

    /// Forgets what is gone and what nothing in the part needs any more.
    fn forget(&mut self) {
        let gone: Vec<ObjectName> =
            self.gone.iter().filter(|name| !self.part.names.contains(*name)).cloned().collect();
        for name in gone {
            self.gone.remove(&name);
            if let Some(entry) = self.objects.remove(&name)
                && let Some(item) = entry.found(name.kind)
            {
                self.index.remove(&name, &item.says);
            }
        }
    }
}

/// Reads an object by itself.
fn read(name: &ObjectName, value: &[u8]) -> Result<Arc<Item>, Unusable> {
    let record = Record::read(name, value)?;
    let tree = record.tree()?;
    let mut problems = Problems::new("etcd");
    match topology::read_one(name.kind, &tree, &mut problems) {
        Some(says) if problems.is_empty() => Ok(Arc::new(Item { raw: value.into(), says })),
        _ => {
            let first = problems.iter().next();
            Err(first.map_or_else(
                || "it cannot be read".to_owned(),
                |problem| format!("{} ({})", problem.message, problem.remedy),
            ))
        }
    }
}
