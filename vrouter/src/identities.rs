//! Numbers for names: assigned once, kept in the pinned names map, so that adding or removing an object
//! never renumbers another, and an agent that restarts goes on with the same numbers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use anyhow::{Result, bail};
use vrouter_common::{
    memory::PoolImage,
    tables::{
        LISTENERS_MAX, NAME_LISTENER, NAME_MEMBER, NAME_NETWORK, NAME_NODE, NAME_POOL, NETWORKS_MAX,
        NODES_MAX, Name, NameKey, POOL_MEMBERS_MAX, POOLS_MAX, Scoped,
    },
};

use crate::{compile::Kept, kernel::Map};

/// The numbers of one instance.
///
/// There may be hundreds of thousands, of which a change concerns few: what was given and taken since they were
/// written last is kept in lists of its own, so that nothing has to be compared.
#[derive(Clone, Debug, Default)]
pub struct Identities {
    kinds: BTreeMap<u32, Numbers>,
    /// Kind and number: given, and not written yet.
    given: BTreeSet<(u32, u32)>,
    /// Taken back, and not removed yet.
    taken: BTreeSet<(u32, u32)>,
    /// Parts of the last compilation that hold such numbers.
    pub(crate) kept: Kept,
    members: Members,
}

/// How often members of pools are used: most pools are the same from one change to the next, and are not looked into.
#[derive(Clone, Debug, Default)]
struct Members {
    /// What is counted.
    pools: BTreeMap<u32, Arc<PoolImage>>,
    /// By member number.
    uses: Vec<u32>,
    /// Members that are used.
    used: usize,
}

impl Members {
    /// Counts these pools instead of those before.
    fn count(&mut self, pools: &BTreeMap<u32, Arc<PoolImage>>) {
        let is_in = |pools: &BTreeMap<u32, Arc<PoolImage>>, id: &u32, pool: &Arc<PoolImage>| {
            pools.get(id).is_some_and(|other| Arc::ptr_eq(other, pool))
        };
        let gone: Vec<u32> =
            self.pools.iter().filter(|(id, pool)| !is_in(pools, id, pool)).map(|(id, _)| *id).collect();
        let come: Vec<_> = pools.iter().filter(|(id, pool)| !is_in(&self.pools, id, pool)).collect();
        for pool in gone.iter().filter_map(|id| self.pools.remove(id)) {
            for member in pool.members.values() {
                let uses = &mut self.uses[member.number as usize];
                *uses -= 1;
                self.used -= usize::from(*uses == 0);
            }
        }
        for (id, pool) in come {
            for member in pool.members.values() {
                let number = member.number as usize;
                if self.uses.len() <= number {
                    self.uses.resize(number + 1, 0);
                }
                self.used += usize::from(self.uses[number] == 0);
                self.uses[number] += 1;
            }
            self.pools.insert(*id, Arc::clone(pool));
        }
    }

    fn uses(&self, number: u32) -> bool {
        self.uses.get(number as usize).is_some_and(|uses| *uses > 0)
    }
}

/// The numbers of one kind.
#[derive(Clone, Debug, Default)]
struct Numbers {
    by_name: HashMap<Arc<str>, u32>,
    by_id: BTreeMap<u32, Arc<str>>,
    /// No number below this is free.
    taken_below: u32,
}

/// What was given and not written at a moment: to take back what is given later.
#[derive(Clone, Debug)]
pub struct Mark(BTreeSet<(u32, u32)>);

impl Identities {
    /// Reads what earlier agents assigned.
    pub fn read(names: &Map<NameKey, Name>) -> Result<Self> {
        let mut identities = Self::default();
        for (key, name) in names.entries()? {
            identities.insert(key.kind, key.id, name_to_string(&name));
        }
        Ok(identities)
    }

    fn insert(&mut self, kind: u32, id: u32, name: impl Into<Arc<str>>) {
        let name = name.into();
        let numbers = self.kinds.entry(kind).or_default();
        numbers.by_name.insert(Arc::clone(&name), id);
        numbers.by_id.insert(id, name);
    }

    /// The number of a name, assigning the lowest free one if it has none. Numbers start at 1.
    pub fn id(&mut self, kind: u32, name: &str) -> Result<u32> {
        let numbers = self.kinds.entry(kind).or_default();
        if let Some(&id) = numbers.by_name.get(name) {
            return Ok(id);
        }
        let mut id = numbers.taken_below.max(1);
        for &taken in numbers.by_id.range(id..).map(|(id, _)| id) {
            if taken != id {
                break;
            }
            id += 1;
        }
        let (limit, what) = match kind {
            NAME_NETWORK => (NETWORKS_MAX, "networks"),
            NAME_NODE => (NODES_MAX, "nodes"),
            NAME_LISTENER => (LISTENERS_MAX, "listeners"),
            NAME_POOL => (POOLS_MAX, "pools"),
            NAME_MEMBER => (POOL_MEMBERS_MAX, "members of pools"),
            _ => (Scoped::ID_LIMIT - 1, "objects"),
        };
        if id >= limit {
            bail!("{name}: an instance can hold at most {} {what}", limit - 1);
        }
        numbers.taken_below = id + 1;
        self.insert(kind, id, name);
        self.taken.remove(&(kind, id));
        self.given.insert((kind, id));
        Ok(id)
    }

    /// The name of a number.
    pub fn name(&self, kind: u32, id: u32) -> Option<&str> {
        self.kinds.get(&kind)?.by_id.get(&id).map(|name| &**name)
    }

    /// Gives a name a number of one's choice.
    #[cfg(test)]
    pub fn put(&mut self, kind: u32, id: u32, name: &str) {
        self.insert(kind, id, name);
    }

    /// The number of a name, if it has one.
    pub fn number(&self, kind: u32, name: &str) -> Option<u32> {
        self.kinds.get(&kind)?.by_name.get(name).copied()
    }

    /// Before something that may fail: see [`Self::take_back`].
    pub fn mark(&self) -> Mark {
        Mark(self.given.clone())
    }

    /// Takes numbers back that were given since.
    pub fn take_back(&mut self, mark: &Mark) {
        for (kind, id) in self.given.difference(&mark.0).copied().collect::<Vec<_>>() {
            self.forget(kind, id);
        }
        self.kept = Kept::default();
    }

    fn forget(&mut self, kind: u32, id: u32) {
        let Some(numbers) = self.kinds.get_mut(&kind) else { return };
        if let Some(name) = numbers.by_id.remove(&id) {
            numbers.by_name.remove(&name);
            numbers.taken_below = numbers.taken_below.min(id);
        }
        self.given.remove(&(kind, id));
        // It may be in the map whether it was written or not: somebody had it before.
        self.taken.insert((kind, id));
    }

    /// Forgets what is not in `used` (kind and number), nor one of the members of `pools`.
    pub fn retain(&mut self, used: &BTreeSet<(u32, u32)>, pools: &BTreeMap<u32, Arc<PoolImage>>) {
        self.members.count(pools);
        for kind in self.kinds.keys().copied().collect::<Vec<_>>() {
            let all = &self.kinds[&kind].by_id;
            let of_kind = || used.range((kind, 0)..=(kind, u32::MAX)).map(|(_, id)| *id);
            // Of members pools speak alone.
            let count = if kind == NAME_MEMBER { self.members.used } else { of_kind().count() };
            // Whatever is used is here: if it is as many, it is all.
            if count == all.len() {
                continue;
            }
            let is_used: HashSet<u32> = of_kind().collect();
            let is_unused = |id: &u32| match kind {
                NAME_MEMBER => !self.members.uses(*id),
                _ => !is_used.contains(id),
            };
            for id in all.keys().copied().filter(is_unused).collect::<Vec<_>>() {
                self.forget(kind, id);
            }
        }
    }

    /// Numbers (with their kinds) that were given since they were written last.
    pub fn fresh(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.given.iter().copied()
    }

    /// Writes what was given, and removes what was taken back.
    pub fn write(&mut self, names: &Map<NameKey, Name>) -> Result<()> {
        for &(kind, id) in &self.given {
            if let Some(name) = self.kinds.get(&kind).and_then(|numbers| numbers.by_id.get(&id)) {
                names.set(&NameKey { kind, id }, &string_to_name(name))?;
            }
        }
        self.given.clear();
        for &(kind, id) in &self.taken {
            names.remove(&NameKey { kind, id })?;
        }
        self.taken.clear();
        Ok(())
    }
}

/// As text.
pub fn name_to_string(name: &Name) -> String {
    let end = name.bytes.iter().position(|&byte| byte == 0).unwrap_or(name.bytes.len());
    String::from_utf8_lossy(&name.bytes[..end]).into_owned()
}

fn string_to_name(text: &str) -> Name {
    let mut bytes = [0; 256];
    let mut len = text.len().min(255);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
    Name { bytes }
}

#[cfg(test)]
mod tests {
    use vrouter_common::tables::{self, NAME_PORT};

    use super::*;

    #[test]
    fn a_number_stays_with_its_name_and_gaps_are_filled() {
        let mut ids = Identities::default();
        let a = ids.id(NAME_PORT, "a").unwrap();
        let b = ids.id(NAME_PORT, "b").unwrap();
        let c = ids.id(NAME_PORT, "c").unwrap();
        assert_eq!((a, b, c), (1, 2, 3));
        let used = BTreeSet::from([(NAME_PORT, a), (NAME_PORT, c)]);
        ids.retain(&used, &BTreeMap::new());
        assert_eq!(ids.id(NAME_PORT, "c").unwrap(), c);
        assert_eq!(ids.id(NAME_PORT, "d").unwrap(), b, "the gap is filled");
        assert_eq!(ids.name(NAME_PORT, c), Some("c"));
        assert_eq!(ids.fresh().count(), 3, "a, c, d");
    }

    #[test]
    fn members_of_pools_are_used_by_their_pools() {
        let mut ids = Identities::default();
        let member = |number| {
            let ip = vrouter_common::addr::Ip::default();
            let port = vrouter_common::addr::Be16::new(80);
            tables::PoolMember { ip, network: 1, port, flags: 0, number, mac: [0; 6], zero: 0 }
        };
        let pool = |numbers: &[u32]| {
            let keys = (0..).map(|index| tables::PoolMemberKey { pool: Scoped::new(0, 1), index });
            let members = keys.zip(numbers.iter().map(|&number| member(number))).collect();
            Arc::new(PoolImage { members, ..PoolImage::default() })
        };
        for (name, number) in [("a", 1), ("b", 2), ("c", 3)] {
            assert_eq!(ids.id(NAME_MEMBER, name).unwrap(), number);
        }
        let has = |ids: &Identities| [1, 2, 3].map(|id| ids.name(NAME_MEMBER, id).is_some());
        // Two routers balance to the same ones.
        ids.retain(&BTreeSet::new(), &BTreeMap::from([(1, pool(&[1, 2, 3])), (2, pool(&[1, 2, 3]))]));
        assert_eq!(has(&ids), [true; 3]);
        ids.retain(&BTreeSet::new(), &BTreeMap::from([(1, pool(&[1, 2])), (2, pool(&[1]))]));
        assert_eq!(has(&ids), [true, true, false]);
    }

    #[test]
    fn what_failed_takes_no_numbers() {
        let mut ids = Identities::default();
        ids.id(NAME_PORT, "a").unwrap();
        let mark = ids.mark();
        ids.id(NAME_PORT, "b").unwrap();
        ids.take_back(&mark);
        assert_eq!(ids.number(NAME_PORT, "b"), None);
        assert_eq!(ids.id(NAME_PORT, "c").unwrap(), 2);
    }

    #[test]
    fn the_number_of_networks_is_bounded() {
        let mut ids = Identities::default();
        for i in 1..NODES_MAX {
            assert_eq!(ids.id(NAME_NODE, &format!("n{i}")).unwrap(), i);
        }
        assert!(ids.id(NAME_NODE, "one more").is_err());
    }
}
