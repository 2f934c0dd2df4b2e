//! Writes a compiled topology into the kernel's maps, so that a packet sees the old one or the new one.
//!
//! Two banks hold two topologies; the parity of the commit's epoch says which one packets read. An apply
//!
//! 1. waits until no packet reads the other bank any more (it was in force before the last apply),
//! 2. writes there the difference between what it holds and what is wanted,
//! 3. raises the revision of every network whose reachability the change touches,
//! 4. publishes the commit.
//!
//! Dying anywhere before 4 leaves the old topology in force; before 3 flows keep their entries, after it
//! they are decided again under whichever topology is in force. The writes grow with the change, and with the one
//! before it, which the other bank has not seen, unless there was time to [even out](Banks::even_out).

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use aya::Pod;
use vrouter_common::{
    addr::{Be32, Ip},
    memory::{Image, PoolImage},
    tables::*,
};

use crate::kernel::{self, Map};

/// A key of a banked table.
pub trait Banked: Copy + Ord {
    /// Which bank it is in.
    fn bank(&self) -> u32;
    /// The same key in another bank.
    fn in_bank(self, bank: u32) -> Self;
}

macro_rules! banked {
    ($($key:ty: $field:ident),+ $(,)?) => { $(
        impl Banked for $key {
            fn bank(&self) -> u32 {
                self.$field.bank()
            }
            fn in_bank(mut self, bank: u32) -> Self {
                self.$field = Scoped::new(bank, self.$field.id());
                self
            }
        }
    )+ };
}

banked!(
    BindingKey: ifindex, NetworkKey: network, VniKey: vni, VtepKey: bank, FdbKey: network,
    AddressKey: network, AllowedKey: port, RouteKey: router, RouterLegKey: router, FloodKey: network,
    NatKey: network, FloatingKey: router, SnatBlockKey: router, SnatOwnerKey: network, GatewayKey: network,
    MemberKey: group, ListenerKey: network, PoolSlotsKey: pool, PoolMemberKey: pool, PoolMemberAt: pool,
    ClassKey: bank,
    RuleKey: policy,
);

/// The pinned maps of the compiled topology.
pub struct Maps {
    commit: Map<u32, Commit>,
    revisions: Map<u32, u32>,
    bindings: Map<BindingKey, Binding>,
    networks: Map<NetworkKey, Network>,
    vnis: Map<VniKey, u32>,
    vteps: Map<VtepKey, u32>,
    fdb: Map<FdbKey, Station>,
    addresses: Map<AddressKey, Station>,
    allowed: Map<AllowedKey, u32>,
    routes: Map<RouteKey, Route>,
    router_legs: Map<RouterLegKey, RouterLeg>,
    floods: Map<FloodKey, Flood>,
    nat: Map<NatKey, Nat>,
    floating: Map<FloatingKey, Floating>,
    snat_blocks: Map<SnatBlockKey, SnatBlock>,
    snat_owners: Map<SnatOwnerKey, SnatOwner>,
    gateways: Map<GatewayKey, u32>,
    members: Map<MemberKey, Member>,
    listeners: Map<ListenerKey, Listener>,
    pool_slots: Map<PoolSlotsKey, PoolSlots>,
    pool_members: Map<PoolMemberKey, PoolMember>,
    pool_members_at: Map<PoolMemberAt, u32>,
    classes: Map<ClassKey, u32>,
    rules: Map<RuleKey, Rule>,
}

impl Maps {
    /// Opens the pins in `maps`.
    pub fn open(maps: &Path) -> Result<Self> {
        Ok(Self {
            commit: Map::open(maps, "COMMIT")?,
            revisions: Map::open(maps, "REVISIONS")?,
            bindings: Map::open(maps, "BINDINGS")?,
            networks: Map::open(maps, "NETWORKS")?,
            vnis: Map::open(maps, "VNIS")?,
            vteps: Map::open(maps, "VTEPS")?,
            fdb: Map::open(maps, "FDB")?,
            addresses: Map::open(maps, "ADDRESSES")?,
            allowed: Map::open(maps, "ALLOWED")?,
            routes: Map::open(maps, "ROUTES")?,
            router_legs: Map::open(maps, "ROUTER_LEGS")?,
            floods: Map::open(maps, "FLOODS")?,
            nat: Map::open(maps, "NAT")?,
            floating: Map::open(maps, "FLOATING")?,
            snat_blocks: Map::open(maps, "SNAT_BLOCKS")?,
            snat_owners: Map::open(maps, "SNAT_OWNERS")?,
            gateways: Map::open(maps, "GATEWAYS")?,
            members: Map::open(maps, "MEMBERS")?,
            listeners: Map::open(maps, "LISTENERS")?,
            pool_slots: Map::open(maps, "POOL_SLOTS")?,
            pool_members: Map::open(maps, "POOL_MEMBERS")?,
            pool_members_at: Map::open(maps, "MEMBERS_AT")?,
            classes: Map::open(maps, "CLASSES")?,
            rules: Map::open(maps, "RULES")?,
        })
    }

    /// The state in force.
    pub fn commit(&self) -> Result<Commit> {
        let commit = self.commit.lookup(&0)?.context("the commit map has no entry")?;
        check_schema(&commit)?;
        Ok(commit)
    }

    /// What a bank holds, keys in bank 0.
    pub fn read(&self, bank: u32) -> Result<Image> {
        fn table<K: Pod + Banked, V: Pod>(map: &Map<K, V>, bank: u32) -> Result<BTreeMap<K, V>> {
            let mut table = BTreeMap::new();
            for key in map.keys()?.into_iter().filter(|key| key.bank() == bank) {
                if let Some(value) = map.lookup(&key)? {
                    table.insert(key.in_bank(0), value);
                }
            }
            Ok(table)
        }
        let mut image = Image {
            bindings: table(&self.bindings, bank)?,
            networks: table(&self.networks, bank)?,
            vnis: table(&self.vnis, bank)?,
            vteps: table(&self.vteps, bank)?,
            fdb: table(&self.fdb, bank)?,
            addresses: table(&self.addresses, bank)?,
            allowed: table(&self.allowed, bank)?,
            routes: table(&self.routes, bank)?,
            router_legs: table(&self.router_legs, bank)?,
            floods: table(&self.floods, bank)?,
            nat: table(&self.nat, bank)?,
            floating: table(&self.floating, bank)?,
            snat_blocks: table(&self.snat_blocks, bank)?,
            snat_owners: table(&self.snat_owners, bank)?,
            gateways: table(&self.gateways, bank)?,
            members: table(&self.members, bank)?,
            listeners: table(&self.listeners, bank)?,
            pools: BTreeMap::new(),
            classes: table(&self.classes, bank)?,
            rules: table(&self.rules, bank)?,
        };
        for (key, slots) in table(&self.pool_slots, bank)? {
            image.pool_mut(key.pool.id()).slots.insert(key, slots);
        }
        // A member's station says whose it is by its hardware address.
        let mut pool_of = BTreeMap::new();
        for (key, member) in table(&self.pool_members, bank)? {
            pool_of.insert(member.mac, key.pool.id());
            image.pool_mut(key.pool.id()).members.insert(key, member);
        }
        for (key, index) in table(&self.pool_members_at, bank)? {
            image.pool_mut(key.pool.id()).members_at.insert(key, index);
        }
        let of_members = |key: &FdbKey, station: &Station| {
            (station.kind == STATION_MEMBER).then(|| pool_of.get(&key.mac)).flatten().copied()
        };
        for (key, station) in std::mem::take(&mut image.fdb) {
            match of_members(&key, &station) {
                Some(pool) => drop(image.pool_mut(pool).stations.insert(key, station)),
                None => drop(image.fdb.insert(key, station)),
            }
        }
        Ok(image)
    }

    /// Writes what `new` has and `old` has not into `bank`, and removes the opposite; returns the number
    /// of writes.
    fn write(&self, bank: u32, old: &Image, new: &Image) -> Result<usize> {
        fn table<K: Pod + Banked, V: Pod + PartialEq>(
            map: &Map<K, V>,
            bank: u32,
            old: &BTreeMap<K, V>,
            new: &BTreeMap<K, V>,
        ) -> Result<usize> {
            Ok(Step::Remove.write(map, bank, old, new)? + Step::Set.write(map, bank, old, new)?)
        }
        // Destructured, so that a table added to the image cannot be forgotten here.
        let Image {
            bindings,
            networks,
            vnis,
            vteps,
            fdb,
            addresses,
            allowed,
            routes,
            router_legs,
            floods,
            nat,
            floating,
            snat_blocks,
            snat_owners,
            gateways,
            members,
            listeners,
            pools,
            classes,
            rules,
        } = new;
        // Members' stations are in the table of all others: what goes must not take along what has come.
        let gone = self.write_pools(Step::Remove, bank, &old.pools, pools)?;
        Ok(gone
            + table(&self.bindings, bank, &old.bindings, bindings)?
            + table(&self.networks, bank, &old.networks, networks)?
            + table(&self.vnis, bank, &old.vnis, vnis)?
            + table(&self.vteps, bank, &old.vteps, vteps)?
            + table(&self.fdb, bank, &old.fdb, fdb)?
            + table(&self.addresses, bank, &old.addresses, addresses)?
            + table(&self.allowed, bank, &old.allowed, allowed)?
            + table(&self.routes, bank, &old.routes, routes)?
            + table(&self.router_legs, bank, &old.router_legs, router_legs)?
            + table(&self.floods, bank, &old.floods, floods)?
            + table(&self.nat, bank, &old.nat, nat)?
            + table(&self.floating, bank, &old.floating, floating)?
            + table(&self.snat_blocks, bank, &old.snat_blocks, snat_blocks)?
            + table(&self.snat_owners, bank, &old.snat_owners, snat_owners)?
            + table(&self.gateways, bank, &old.gateways, gateways)?
            + table(&self.members, bank, &old.members, members)?
            + table(&self.listeners, bank, &old.listeners, listeners)?
            + self.write_pools(Step::Set, bank, &old.pools, pools)?
            + table(&self.classes, bank, &old.classes, classes)?
            + table(&self.rules, bank, &old.rules, rules)?)
    }

    /// A step of writing pools.
    fn write_pools(&self, step: Step, bank: u32, old: &Pools, new: &Pools) -> Result<usize> {
        let mut writes = 0;
        for (_, old, new) in differences(old, new) {
            let (old, new) = (old.map_or(&NO_POOL, Arc::as_ref), new.map_or(&NO_POOL, Arc::as_ref));
            let PoolImage { slots, members, members_at, stations } = new;
            writes += step.write(&self.pool_slots, bank, &old.slots, slots)?
                + step.write(&self.pool_members, bank, &old.members, members)?
                + step.write(&self.pool_members_at, bank, &old.members_at, members_at)?
                + step.write(&self.fdb, bank, &old.stations, stations)?;
        }
        Ok(writes)
    }
}

type Pools = BTreeMap<u32, Arc<PoolImage>>;

/// What stands for a pool that is not there.
static NO_POOL: PoolImage = PoolImage {
    slots: BTreeMap::new(),
    members: BTreeMap::new(),
    members_at: BTreeMap::new(),
    stations: BTreeMap::new(),
};

/// What is written of a table at a time. First what goes: there may be no room for more.
#[derive(Clone, Copy)]
enum Step {
    Remove,
    Set,
}

impl Step {
    /// Brings `bank` of a table nearer from `old` to `new`; returns the number of writes.
    fn write<K: Pod + Banked, V: Pod + PartialEq>(
        self,
        map: &Map<K, V>,
        bank: u32,
        old: &BTreeMap<K, V>,
        new: &BTreeMap<K, V>,
    ) -> Result<usize> {
        let mut writes = 0;
        for (key, _, new) in differences(old, new) {
            match (self, new) {
                (Self::Remove, None) => map.remove(&key.in_bank(bank))?,
                (Self::Set, Some(value)) => map.set(&key.in_bank(bank), value)?,
                _ => continue,
            }
            writes += 1;
        }
        Ok(writes)
    }
}

/// Which flows are decided again whatever changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touch {
    /// None.
    Changed,
    /// Those of these networks.
    Networks(BTreeSet<u32>),
    /// All.
    All,
}

/// What an apply did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The epoch in force.
    pub epoch: u32,
    /// Entries written or removed.
    pub writes: usize,
    /// Networks whose flows are decided again.
    pub networks: usize,
}

/// What is published with a topology: of the [`Commit`], the caller's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// This node's number.
    pub node: u32,
    /// This node's VTEP address.
    pub vtep: u32,
    /// Digest of the document.
    pub digest: u64,
    /// Largest L3 packet the tunnels carry.
    pub overlay_mtu: u32,
    /// This node's interfaces on external networks.
    pub externals: [External; EXTERNALS_MAX],
}

/// The two banks, and what they hold.
pub struct Banks {
    maps: Maps,
    commit: Commit,
    images: [Image; 2],
    /// No packet reads the bank that is not in force.
    unread: bool,
}

impl Banks {
    /// Opens the pins and reads what earlier agents left.
    pub fn open(maps: &Path) -> Result<Self> {
        let maps = Maps::open(maps)?;
        let commit = maps.commit()?;
        let images = [maps.read(0)?, maps.read(1)?];
        Ok(Self { maps, commit, images, unread: false })
    }

    /// The state in force.
    pub fn commit(&self) -> &Commit {
        &self.commit
    }

    /// The compiled topology in force.
    pub fn in_force(&self) -> &Image {
        &self.images[self.commit.bank() as usize]
    }

    /// Makes `wanted` the topology in force. `touch`: which flows are decided again, beside those the change
    /// concerns.
    pub fn apply(&mut self, wanted: Image, published: &Published, touch: &Touch) -> Result<Applied> {
        let &Published { node, vtep, digest, overlay_mtu, externals } = published;
        let mut commit = Commit {
            vtep: Be32::new(vtep),
            schema: SCHEMA,
            node,
            digest,
            overlay_mtu,
            externals,
            ..self.commit
        };
        // Flows have the tunnels' room, and which networks this node reaches itself, built in.
        let touch_all = *touch == Touch::All || overlay_mtu != self.commit.overlay_mtu;
        let moved = moved(&self.commit.externals, &externals);
        let unchanged = self.commit.epoch != 0
            && *self.in_force() == wanted
            && *touch == Touch::Changed
            && !touch_all
            && moved.is_empty();
        if unchanged {
            if commit != self.commit {
                self.maps.commit.set(&0, &commit)?;
                self.commit = commit;
            }
            return Ok(Applied { epoch: commit.epoch, writes: 0, networks: 0 });
        }
        let epoch = self.commit.epoch.checked_add(1).context("the epoch ran out")?;
        let bank = (epoch & 1) as usize;
        let writes = self.bring(bank, wanted)?;
        let (old, new) = (&self.images[bank ^ 1], &self.images[bank]);
        let mut touched = touched(old, new, touch_all);
        if let Touch::Networks(networks) = touch {
            touched.extend(networks);
        }
        for image in [old, new] {
            touched
                .extend(moved.iter().filter_map(|&vni| image.vnis.get(&VniKey { vni: Scoped::new(0, vni) })));
        }
        for &network in &touched {
            self.maps.revisions.set(&network, &epoch)?;
        }
        commit.epoch = epoch;
        commit.applied_at_seconds =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        self.unread = false;
        self.maps.commit.set(&0, &commit)?;
        self.commit = commit;
        Ok(Applied { epoch, writes, networks: touched.len() })
    }

    /// Brings the bank that is not in force to what is, so that the next apply has to write its own change alone, and to wait
    /// for nobody. For a moment at which there is nothing else to do; returns the number of writes.
    pub fn even_out(&mut self) -> Result<usize> {
        let other = (self.commit.bank() ^ 1) as usize;
        if self.commit.epoch == 0 || self.images[other] == *self.in_force() {
            return Ok(0);
        }
        self.bring(other, self.in_force().clone())
    }

    /// Brings the bank that is not in force to `wanted`.
    fn bring(&mut self, bank: usize, wanted: Image) -> Result<usize> {
        if !self.unread {
            kernel::wait_for_readers()?;
            self.unread = true;
        }
        match self.maps.write(bank as u32, &self.images[bank], &wanted) {
            Ok(writes) => {
                self.images[bank] = wanted;
                Ok(writes)
            }
            Err(error) => {
                // Half written, but read by nobody: what is there must be known for the next try.
                self.images[bank] = self.maps.read(bank as u32)?;
                Err(error)
            }
        }
    }
}

/// The VNIs of the external networks whose interface came, went or is another.
fn moved(old: &[External; EXTERNALS_MAX], new: &[External; EXTERNALS_MAX]) -> BTreeSet<u32> {
    let missing_in =
        |externals: &[External], external: &External| external.ifindex != 0 && !externals.contains(external);
    let gone = old.iter().filter(|external| missing_in(new, external));
    gone.chain(new.iter().filter(|external| missing_in(old, external))).map(|external| external.vni).collect()
}

/// The networks whose flows a change may concern. A flow is checked against the revisions of the network it
/// comes in on and of the one it leaves on. So
///
/// - what is said of stations on a network touches that network;
/// - rules touch the networks of this node's ports whose policies they are of;
/// - what is said of a router touches every network it is on, and everything that is behind those: a packet
///   may pass several routers, and neither end of its flow need be on the one that changed.
///
/// A flow through an external network ends there, or at a workload behind the next router, whose networks
/// that router's changes touch: external networks are touched, but what else is on them is not.
fn touched(old: &Image, new: &Image, all: bool) -> BTreeSet<u32> {
    let mut touched = BTreeSet::new();
    let images = [old, new];
    let everything = || images.iter().flat_map(|image| image.networks.keys().map(|key| key.network.id()));
    if all || changed(&old.vteps, &new.vteps).next().is_some() {
        return everything().collect();
    }
    touched.extend(changed(&old.bindings, &new.bindings).map(|(_, binding)| binding.network));
    touched.extend(changed(&old.networks, &new.networks).map(|(key, _)| key.network.id()));
    touched.extend(changed(&old.vnis, &new.vnis).map(|(_, &network)| network));
    touched.extend(changed(&old.fdb, &new.fdb).map(|(key, _)| key.network.id()));
    for (_, old, new) in differences(&old.pools, &new.pools) {
        let [old, new] = [old, new].map(|pool| &pool.map_or(&NO_POOL, Arc::as_ref).stations);
        touched.extend(changed(old, new).map(|(key, _)| key.network.id()));
    }
    touched.extend(changed(&old.addresses, &new.addresses).map(|(key, _)| key.network.id()));
    touched.extend(changed(&old.snat_owners, &new.snat_owners).map(|(key, _)| key.network.id()));
    touched.extend(changed(&old.gateways, &new.gateways).map(|(key, _)| key.network.id()));
    let ports: BTreeSet<u32> = changed(&old.allowed, &new.allowed).map(|(key, _)| key.port.id()).collect();
    let policies = touched_policies(old, new);
    for image in images {
        let bindings = image.bindings.values();
        let concerned = bindings
            .filter(|binding| ports.contains(&binding.port) || policies.contains(&binding.policy))
            .map(|binding| binding.network);
        touched.extend(concerned);
    }
    touched.extend(changed(&old.nat, &new.nat).map(|(key, _)| key.network.id()));
    let mut routers: BTreeSet<u32> = BTreeSet::new();
    routers.extend(changed(&old.routes, &new.routes).map(|(key, _)| key.router.id()));
    let groups: BTreeSet<u32> = changed(&old.members, &new.members).map(|(key, _)| key.group.id()).collect();
    for image in images {
        let routes = image.routes.iter();
        let through =
            routes.filter(|(_, route)| route.kind == ROUTE_MULTI && groups.contains(&route.network));
        routers.extend(through.map(|(key, _)| key.router.id()));
    }
    routers.extend(balancing(old, new));
    routers.extend(changed(&old.router_legs, &new.router_legs).map(|(key, _)| key.router.id()));
    routers.extend(changed(&old.nat, &new.nat).map(|(_, nat)| nat.router));
    routers.extend(changed(&old.floating, &new.floating).map(|(key, _)| key.router.id()));
    routers.extend(changed(&old.snat_blocks, &new.snat_blocks).map(|(key, _)| key.router.id()));
    touched.extend(behind(&images, routers));
    // What is flooded is not in the flow table: changes of the lists touch no flow.
    touched
}

/// The routers that balance otherwise: flows from outside that are passed on end on the external network, so it is
/// all that is behind those.
fn balancing(old: &Image, new: &Image) -> BTreeSet<u32> {
    let mut routers: BTreeSet<u32> =
        changed(&old.listeners, &new.listeners).map(|(_, listener)| listener.router).collect();
    let mut pools: BTreeSet<u32> = differences(&old.pools, &new.pools).map(|(pool, ..)| *pool).collect();
    // Whose member is on another node now: what is passed on to it leaves by the external network.
    let moved: BTreeSet<(u32, Ip)> =
        changed(&old.addresses, &new.addresses).map(|(key, _)| (key.network.id(), key.ip)).collect();
    if !moved.is_empty() {
        for image in [old, new] {
            let is_there = |member: &PoolMember| moved.contains(&(member.network, member.ip));
            let there = image.pools.iter().filter(|(_, pool)| pool.members.values().any(is_there));
            pools.extend(there.map(|(pool, _)| *pool));
        }
    }
    for image in [old, new] {
        let listeners = image.listeners.values();
        routers.extend(listeners.filter(|it| pools.contains(&it.pool)).map(|listener| listener.router));
    }
    routers
}

/// The entries that only one of the two has, or that differ.
fn changed<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    differences(old, new)
        .flat_map(|(key, old, new)| old.into_iter().chain(new).map(move |value| (key, value)))
}

/// The keys at which two tables differ, in order, and what each has there.
fn differences<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (old.peek(), new.peek()) {
                (Some((old, _)), Some((new, _))) => old.cmp(new),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return None,
            };
            match order {
                Ordering::Less => return old.next().map(|(key, value)| (key, Some(value), None)),
                Ordering::Greater => return new.next().map(|(key, value)| (key, None, Some(value))),
                Ordering::Equal => {
                    let ((key, before), (_, after)) = (old.next()?, new.next()?);
                    if before != after {
                        return Some((key, Some(before), Some(after)));
                    }
                }
            }
        }
    })
}

/// The policies of which a rule changed, or that have rules for a class that an address got or lost.
fn touched_policies(old: &Image, new: &Image) -> BTreeSet<u32> {
    let mut policies: BTreeSet<u32> =
        changed(&old.rules, &new.rules).map(|(key, _)| key.policy.id()).collect();
    let moved: BTreeSet<ClassKey> = changed(&old.classes, &new.classes).map(|(key, _)| *key).collect();
    if moved.is_empty() {
        return policies;
    }
    let mut classes: BTreeSet<u32> = BTreeSet::new();
    for image in [old, new] {
        let lens: BTreeSet<u32> = image.classes.keys().map(|key| key.prefix_len).collect();
        for key in &moved {
            // An entry that is not there leaves its addresses to the next shorter prefix.
            let shorter = lens.range(..=key.prefix_len).rev();
            let class = shorter.copied().find_map(|len| image.classes.get(&cut(key, len)));
            classes.extend(class.filter(|&&class| class != 0).copied());
        }
    }
    for image in [old, new] {
        let rules = image.rules.keys();
        policies.extend(rules.filter(|key| classes.contains(&key.class)).map(|key| key.policy.id()));
    }
    policies
}

/// A prefix cut to a length.
fn cut(key: &ClassKey, prefix_len: u32) -> ClassKey {
    let mut ip = key.ip;
    for (i, word) in ip.0.iter_mut().enumerate() {
        let bits = (prefix_len - ClassKey::FIXED_BITS).saturating_sub(i as u32 * 32).min(32);
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        *word &= mask.to_be();
    }
    ClassKey { prefix_len, ip, ..*key }
}

/// The networks that routers are on, and all that further routers connect to them, before or after.
fn behind(images: &[&Image; 2], routers: BTreeSet<u32>) -> BTreeSet<u32> {
    let is_external = |network: u32| {
        let key = NetworkKey { network: Scoped::new(0, network) };
        images.iter().any(|image| image.networks.get(&key).is_some_and(|n| n.flags & NETWORK_EXTERNAL != 0))
    };
    let (mut networks_of, mut routers_on) = (BTreeMap::new(), BTreeMap::new());
    for key in images.iter().flat_map(|image| image.router_legs.keys()) {
        networks_of.entry(key.router.id()).or_insert_with(BTreeSet::new).insert(key.network);
        routers_on.entry(key.network).or_insert_with(BTreeSet::new).insert(key.router.id());
    }
    let mut found = BTreeSet::new();
    let (mut seen, mut next) = (routers.clone(), Vec::from_iter(routers));
    while let Some(router) = next.pop() {
        for &network in networks_of.get(&router).into_iter().flatten() {
            if found.insert(network) && !is_external(network) {
                let joined = routers_on.get(&network).into_iter().flatten();
                next.extend(joined.copied().filter(|&router| seen.insert(router)));
            }
        }
    }
    found
}

/// Refuses the state of another version.
pub fn check_schema(commit: &Commit) -> Result<()> {
    if commit.epoch != 0 && commit.schema != SCHEMA {
        bail!(
            "the pinned state has schema {}, this vrouter knows {SCHEMA}: run the version that made it, or \
             `vrouter agent --discard-state` to start afresh (traffic stops while it does)",
            commit.schema
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vrouter_common::addr::{Be16, Ip};

    use super::*;

    fn leg(image: &mut Image, router: u32, network: u32) {
        let leg = RouterLeg {
            vni: network,
            mtu: 1450,
            mac: [0; 6],
            flags: 0,
            v4: Ip::default(),
            v6: Ip::default(),
            snat_blocks: 0,
            tunnel_mac: [0; 6],
            zero: 0,
        };
        image.router_legs.insert(RouterLegKey { router: Scoped::new(0, router), network }, leg);
    }

    /// Networks 1 and 2 on router 1, 3 and 4 on router 2, 5 alone; 9 is external, both have a gateway on it.
    /// Ports 1 and 2 are on networks 1 and 5, with policies 1 and 2.
    fn image() -> Image {
        let mut image = Image::default();
        for network in [1, 2, 3, 4, 5, 9] {
            let flags = if network == 9 { NETWORK_EXTERNAL } else { 0 };
            let value = Network { vni: network, mtu: 1450, flags };
            image.networks.insert(NetworkKey { network: Scoped::new(0, network) }, value);
            image.vnis.insert(VniKey { vni: Scoped::new(0, network) }, network);
        }
        for (router, network) in [(1, 1), (1, 2), (2, 3), (2, 4), (1, 9), (2, 9)] {
            leg(&mut image, router, network);
        }
        for (port, network) in [(1, 1), (2, 5)] {
            let binding =
                Binding { port, network, vni: network, mtu: 1450, mac: [0; 6], flags: 0, policy: port };
            image.bindings.insert(BindingKey { ifindex: Scoped::new(0, port) }, binding);
        }
        image
    }

    fn address(last: u8) -> Ip {
        Ip::v4(Be32::new(0x0a00_0000 | u32::from(last)))
    }

    fn class(image: &mut Image, last: u8, len: u32, class: u32) {
        let key = ClassKey { prefix_len: 32 + 96 + len, bank: Scoped::new(0, 0), ip: address(last) };
        image.classes.insert(key, class);
    }

    fn rule(image: &mut Image, policy: u32, class: u32, rule: u32) {
        let policy = Scoped::new(0, policy);
        let prefix_len = RuleKey::ANY_BITS;
        let key =
            RuleKey { prefix_len, policy, class, direction: RULE_INGRESS, proto: 0, port: Be16::new(0) };
        image.rules.insert(key, Rule { rule, flags: RULE_STATEFUL });
    }

    /// Both ways: a change touches the same as its undoing.
    fn assert_touched(old: &Image, new: &Image, networks: &[u32]) {
        let networks = networks.iter().copied().collect();
        assert_eq!(touched(old, new, false), networks);
        assert_eq!(touched(new, old, false), networks, "undone");
    }

    fn station() -> Station {
        Station { mac: [2, 0, 0, 0, 0, 1], kind: STATION_PORT, place: PLACE_LOCAL, at: 7, owner: 1 }
    }

    #[test]
    fn a_station_touches_its_network_alone() {
        let old = image();
        let mut new = image();
        new.addresses.insert(AddressKey::new(0, 1, Ip::default()), station());
        assert_touched(&old, &new, &[1]);
        new.fdb.insert(FdbKey::new(0, 5, [2; 6]), station());
        assert_touched(&old, &new, &[1, 5]);
        assert_touched(&old, &old, &[]);
        let mut new = image();
        new.allowed.insert(AllowedKey::lookup(0, 2, [2; 6], address(1)), 1);
        assert_touched(&old, &new, &[5]);
        let mut new = image();
        new.bindings.values_mut().next().expect("a binding").policy = 7;
        assert_touched(&old, &new, &[1]);
    }

    #[test]
    fn joining_and_parting_touches_both_sides() {
        let old = image();
        let mut new = image();
        leg(&mut new, 2, 1);
        assert_touched(&old, &new, &[1, 2, 3, 4, 9]);
    }

    #[test]
    fn a_router_touches_its_networks_and_what_is_behind_them() {
        let route = |image: &mut Image, router| {
            let route = Route { kind: ROUTE_BLACKHOLE, network: 0, nexthop: Ip::default() };
            image.routes.insert(RouteKey::lookup(0, router, Ip::default()), route);
        };
        let old = image();
        let mut new = image();
        route(&mut new, 2);
        // Router 1 is on the external network, too, but what is behind it is not concerned.
        assert_touched(&old, &new, &[3, 4, 9]);
        // Network 2 joins router 1 with a third, which joins 5.
        let mut old = image();
        leg(&mut old, 3, 2);
        leg(&mut old, 3, 5);
        let mut new = old.clone();
        route(&mut new, 3);
        assert_touched(&old, &new, &[1, 2, 5, 9]);
        let mut new = old.clone();
        route(&mut new, 2);
        assert_touched(&old, &new, &[3, 4, 9]);
    }

    #[test]
    fn translation_touches_the_networks_of_its_routers() {
        let old = image();
        let nat = |image: &mut Image, last, router| {
            let key = NatKey {
                network: Scoped::new(0, 9),
                ip: address(last),
                port: Be16::new(0),
                proto: 0,
                zero: 0,
            };
            let inside_port = Be16::new(0);
            let value = Nat {
                inside: address(1),
                router,
                port: 1,
                node: 0,
                inside_network: 1,
                inside_port,
                mac: [0; 6],
            };
            image.nat.insert(key, value);
        };
        let mut new = image();
        nat(&mut new, 7, 1);
        assert_touched(&old, &new, &[1, 2, 9]);
        // A floating IP that goes over to another router.
        let mut other = image();
        nat(&mut other, 7, 2);
        assert_touched(&new, &other, &[1, 2, 3, 4, 9]);
        let mut new = image();
        new.floating
            .insert(FloatingKey { router: Scoped::new(0, 2), ip: address(1) }, Floating { ip: address(7) });
        assert_touched(&old, &new, &[3, 4, 9]);
        let mut new = image();
        let key = SnatBlockKey { router: Scoped::new(0, 1), network: 9, slot: 0 };
        new.snat_blocks.insert(key, SnatBlock { first: 1024, last: 2047 });
        assert_touched(&old, &new, &[1, 2, 9]);
        let mut new = image();
        let key = SnatOwnerKey { network: Scoped::new(0, 9), ip: Be32::new(7), block: 1 };
        new.snat_owners.insert(key, SnatOwner { node: 2, mac: [0; 6], zero: 0 });
        assert_touched(&old, &new, &[9]);
    }

    #[test]
    fn a_rule_touches_the_networks_of_its_policys_ports() {
        let old = image();
        let mut new = image();
        rule(&mut new, 2, 0, 1);
        assert_touched(&old, &new, &[5]);
        let mut other = image();
        rule(&mut other, 2, 0, 2);
        assert_touched(&new, &other, &[5]);
        let mut new = image();
        rule(&mut new, 3, 0, 1);
        assert_touched(&old, &new, &[]);
    }

    #[test]
    fn a_class_touches_the_policies_that_have_rules_for_it() {
        // Policy 1 allows class 1, policy 2 class 2; 10.0.0.0/8 is class 1.
        let mut old = image();
        rule(&mut old, 1, 1, 1);
        rule(&mut old, 2, 2, 1);
        class(&mut old, 0, 8, 1);
        // An address nobody asked for before.
        let mut new = old.clone();
        class(&mut new, 7, 32, 3);
        assert_touched(&old, &new, &[1]);
        // One that leaves class 1 for class 2.
        let mut new = old.clone();
        class(&mut new, 7, 32, 2);
        assert_touched(&old, &new, &[1, 5]);
        // One that leaves class 2 for class 3, within.
        let mut before = new.clone();
        class(&mut before, 8, 30, 2);
        let mut after = before.clone();
        class(&mut after, 8, 30, 3);
        assert_touched(&before, &after, &[5]);
        // Outside of all: from no class to one.
        let mut old = image();
        rule(&mut old, 2, 2, 1);
        let mut new = old.clone();
        class(&mut new, 7, 32, 2);
        assert_touched(&old, &new, &[5]);
    }

    #[test]
    fn prefixes_are_cut_where_they_should_be() {
        let ip = Ip::from(std::net::IpAddr::from([0xffff_u16; 8]));
        let key = ClassKey { prefix_len: 160, bank: Scoped::new(0, 0), ip };
        for len in 0..=128 {
            let bits = if len == 0 { 0 } else { u128::MAX << (128 - len) };
            let expected = Ip::from(std::net::IpAddr::from(bits.to_be_bytes()));
            assert_eq!(cut(&key, 32 + len), ClassKey { prefix_len: 32 + len, ip: expected, ..key });
        }
    }

    #[test]
    fn an_external_interface_that_changes_is_noticed() {
        let none = [External::default(); EXTERNALS_MAX];
        let with = |ifindex, flags| {
            let mut externals = none;
            externals[0] = External { ifindex, vni: 9, flags };
            externals
        };
        assert_eq!(moved(&none, &none), BTreeSet::new());
        assert_eq!(moved(&none, &with(4, 0)), BTreeSet::from([9]));
        assert_eq!(moved(&with(4, 0), &none), BTreeSet::from([9]));
        assert_eq!(moved(&with(4, 0), &with(5, 0)), BTreeSet::from([9]));
        assert_eq!(moved(&with(4, 0), &with(4, EXTERNAL_FRAMES)), BTreeSet::from([9]));
        let mut elsewhere = none;
        elsewhere[3] = External { ifindex: 4, vni: 9, flags: 0 };
        assert_eq!(moved(&with(4, 0), &elsewhere), BTreeSet::new(), "the place in the list says nothing");
    }

    #[test]
    fn a_vtep_touches_everything_and_a_flooding_list_nothing() {
        let old = image();
        let mut new = image();
        new.vteps.insert(VtepKey { bank: Scoped::new(0, 0), addr: Be32::new(1) }, 1);
        assert_eq!(touched(&old, &new, false).len(), 6);
        let mut new = image();
        new.floods
            .insert(FloodKey { network: Scoped::new(0, 1), cursor: 0 }, Flood { next: FLOOD_END, at: 7 });
        assert!(touched(&old, &new, false).is_empty());
    }

    #[test]
    fn keys_keep_their_identity_over_banks() {
        let key = FdbKey::new(0, 77, [1; 6]);
        let other = key.in_bank(1);
        assert_eq!((other.bank(), other.network.id()), (1, 77));
        assert_eq!(other.in_bank(0), key);
    }
}
