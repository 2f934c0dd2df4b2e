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
//! they are decided again under whichever topology is in force. The writes grow with the change.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use aya::Pod;
use vrouter_common::{addr::Be32, memory::Image, tables::*};

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
    NatKey: network, FloatingKey: router, SnatBlockKey: router, SnatOwnerKey: network, ClassKey: bank,
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
            classes: Map::open(maps, "CLASSES")?,
            rules: Map::open(maps, "RULES")?,
        })
    }

    /// The state in force.
    pub fn commit(&self) -> Result<Commit> {
        let commit = self.commit.lookup(&0)?.context("the commit map has no entry")?;
        if commit.epoch != 0 && commit.schema != SCHEMA {
            bail!(
                "the pinned state has schema {}, this vrouter knows {SCHEMA}: run the version that made it, or \
                 `vrouter agent --discard-state` to start afresh (traffic stops while it does)",
                commit.schema
            );
        }
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
        Ok(Image {
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
            classes: table(&self.classes, bank)?,
            rules: table(&self.rules, bank)?,
        })
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
            let mut writes = 0;
            for key in old.keys().filter(|key| !new.contains_key(key)) {
                map.remove(&key.in_bank(bank))?;
                writes += 1;
            }
            for (key, value) in new {
                if old.get(key) != Some(value) {
                    map.set(&key.in_bank(bank), value)?;
                    writes += 1;
                }
            }
            Ok(writes)
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
            classes,
            rules,
        } = new;
        Ok(table(&self.bindings, bank, &old.bindings, bindings)?
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
            + table(&self.classes, bank, &old.classes, classes)?
            + table(&self.rules, bank, &old.rules, rules)?)
    }
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

/// The two banks, and what they hold.
pub struct Banks {
    maps: Maps,
    commit: Commit,
    images: [Image; 2],
}

impl Banks {
    /// Opens the pins and reads what earlier agents left.
    pub fn open(maps: &Path) -> Result<Self> {
        let maps = Maps::open(maps)?;
        let commit = maps.commit()?;
        let images = [maps.read(0)?, maps.read(1)?];
        Ok(Self { maps, commit, images })
    }

    /// The state in force.
    pub fn commit(&self) -> &Commit {
        &self.commit
    }

    /// The compiled topology in force.
    pub fn in_force(&self) -> &Image {
        &self.images[self.commit.bank() as usize]
    }

    /// Makes `wanted` the topology in force. `touch_all`: every flow is decided again.
    pub fn apply(
        &mut self,
        wanted: Image,
        node: u32,
        vtep: u32,
        digest: u64,
        touch_all: bool,
    ) -> Result<Applied> {
        let vtep = Be32::new(vtep);
        let unchanged = self.commit.epoch != 0 && *self.in_force() == wanted && !touch_all;
        let mut commit = Commit { vtep, schema: SCHEMA, node, digest, ..self.commit };
        if unchanged {
            if commit != self.commit {
                self.maps.commit.set(&0, &commit)?;
                self.commit = commit;
            }
            return Ok(Applied { epoch: commit.epoch, writes: 0, networks: 0 });
        }
        let epoch = self.commit.epoch.checked_add(1).context("the epoch ran out")?;
        let bank = (epoch & 1) as usize;
        kernel::wait_for_readers()?;
        let writes = match self.maps.write(epoch & 1, &self.images[bank], &wanted) {
            Ok(writes) => writes,
            Err(error) => {
                // Half written, but read by nobody: what is there must be known for the next try.
                self.images[bank] = self.maps.read(epoch & 1)?;
                return Err(error);
            }
        };
        self.images[bank] = wanted;
        let touched = touched(&self.images[bank ^ 1], &self.images[bank], touch_all);
        for &network in &touched {
            self.maps.revisions.set(&network, &epoch)?;
        }
        commit.epoch = epoch;
        commit.applied_at_seconds =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        self.maps.commit.set(&0, &commit)?;
        self.commit = commit;
        Ok(Applied { epoch, writes, networks: touched.len() })
    }
}

/// The networks whose flows a change may concern: those it names, and all that routers connect to them,
/// before or after.
fn touched(old: &Image, new: &Image, all: bool) -> BTreeSet<u32> {
    fn changed<'a, K: Ord, V: PartialEq>(
        old: &'a BTreeMap<K, V>,
        new: &'a BTreeMap<K, V>,
    ) -> impl Iterator<Item = (&'a K, &'a V)> {
        let gone = old.iter().filter(|(key, value)| new.get(key) != Some(value));
        gone.chain(new.iter().filter(|(key, value)| old.get(key) != Some(value)))
    }
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
    touched.extend(changed(&old.addresses, &new.addresses).map(|(key, _)| key.network.id()));
    touched.extend(changed(&old.router_legs, &new.router_legs).map(|(key, _)| key.network));
    let ports: BTreeSet<u32> = changed(&old.allowed, &new.allowed).map(|(key, _)| key.port.id()).collect();
    let routers: BTreeSet<u32> = changed(&old.routes, &new.routes).map(|(key, _)| key.router.id()).collect();
    for image in images {
        touched.extend(
            image
                .bindings
                .values()
                .filter(|binding| ports.contains(&binding.port))
                .map(|binding| binding.network),
        );
        touched.extend(
            image.router_legs.keys().filter(|key| routers.contains(&key.router.id())).map(|key| key.network),
        );
    }
    // What is flooded is not in the flow table: changes of the lists touch no flow.
    if !touched.is_empty() {
        let mut networks_of: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for key in images.iter().flat_map(|image| image.router_legs.keys()) {
            networks_of.entry(key.router.id()).or_default().insert(key.network);
        }
        loop {
            let before = touched.len();
            for networks in networks_of.values() {
                if !networks.is_disjoint(&touched) {
                    touched.extend(networks.iter().copied());
                }
            }
            if touched.len() == before {
                break;
            }
            // Each round adds at least one network, so this ends.
        }
    }
    touched
}

#[cfg(test)]
mod tests {
    use vrouter_common::addr::Ip;

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

    /// Networks 1 and 2 on router 1, 3 and 4 on router 2, 5 alone.
    fn image() -> Image {
        let mut image = Image::default();
        for network in 1..=5 {
            let value = Network { vni: network, mtu: 1450, flags: 0 };
            image.networks.insert(NetworkKey { network: Scoped::new(0, network) }, value);
        }
        for (router, network) in [(1, 1), (1, 2), (2, 3), (2, 4)] {
            leg(&mut image, router, network);
        }
        image
    }

    fn station() -> Station {
        Station { mac: [2, 0, 0, 0, 0, 1], kind: STATION_PORT, place: PLACE_LOCAL, at: 7, owner: 1 }
    }

    #[test]
    fn a_change_touches_what_routers_connect_and_nothing_else() {
        let old = image();
        let mut new = image();
        new.addresses.insert(AddressKey::new(0, 1, Ip::default()), station());
        assert_eq!(touched(&old, &new, false), BTreeSet::from([1, 2]));
        assert_eq!(touched(&new, &old, false), BTreeSet::from([1, 2]), "removing touches the same");
        assert_eq!(touched(&old, &old, false), BTreeSet::new());
    }

    #[test]
    fn joining_and_parting_touches_both_sides() {
        let old = image();
        let mut new = image();
        leg(&mut new, 2, 1);
        assert_eq!(touched(&old, &new, false), BTreeSet::from([1, 2, 3, 4]));
        assert_eq!(touched(&new, &old, false), BTreeSet::from([1, 2, 3, 4]));
    }

    #[test]
    fn a_route_touches_its_routers_networks() {
        let old = image();
        let mut new = image();
        let route = Route { kind: ROUTE_BLACKHOLE, network: 0, nexthop: Ip::default() };
        new.routes.insert(RouteKey::lookup(0, 2, Ip::default()), route);
        assert_eq!(touched(&old, &new, false), BTreeSet::from([3, 4]));
    }

    #[test]
    fn a_vtep_touches_everything_and_a_flooding_list_nothing() {
        let old = image();
        let mut new = image();
        new.vteps.insert(VtepKey { bank: Scoped::new(0, 0), addr: Be32::new(1) }, 1);
        assert_eq!(touched(&old, &new, false).len(), 5);
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
