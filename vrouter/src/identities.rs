//! Numbers for names: assigned once, kept in the pinned names map, so that adding or removing an object
//! never renumbers another, and an agent that restarts goes on with the same numbers.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use vrouter_common::tables::{
    LISTENERS_MAX, NAME_LISTENER, NAME_MEMBER, NAME_NETWORK, NAME_NODE, NAME_POOL, NETWORKS_MAX, NODES_MAX,
    Name, NameKey, POOL_MEMBERS_MAX, POOLS_MAX, Scoped,
};

use crate::kernel::Map;

/// The numbers of one instance.
#[derive(Clone, Debug, Default)]
pub struct Identities {
    by_name: BTreeMap<(u32, String), u32>,
    by_id: BTreeMap<(u32, u32), String>,
    /// By kind: no number below this is free.
    taken_below: BTreeMap<u32, u32>,
}

impl Identities {
    /// Reads what earlier agents assigned.
    pub fn read(names: &Map<NameKey, Name>) -> Result<Self> {
        let mut identities = Self::default();
        for (key, name) in names.entries()? {
            identities.insert(key.kind, key.id, name_to_string(&name));
        }
        Ok(identities)
    }

    fn insert(&mut self, kind: u32, id: u32, name: String) {
        self.by_name.insert((kind, name.clone()), id);
        self.by_id.insert((kind, id), name);
    }

    /// The number of a name, assigning the lowest free one if it has none. Numbers start at 1.
    pub fn id(&mut self, kind: u32, name: &str) -> Result<u32> {
        if let Some(&id) = self.by_name.get(&(kind, name.to_owned())) {
            return Ok(id);
        }
        let mut id = self.taken_below.get(&kind).copied().unwrap_or(1);
        for &(_, taken) in self.by_id.range((kind, id)..=(kind, u32::MAX)).map(|(key, _)| key) {
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
        self.insert(kind, id, name.to_owned());
        self.taken_below.insert(kind, id + 1);
        Ok(id)
    }

    /// The name of a number.
    pub fn name(&self, kind: u32, id: u32) -> Option<&str> {
        self.by_id.get(&(kind, id)).map(String::as_str)
    }

    /// Gives a name a number of one's choice.
    #[cfg(test)]
    pub fn put(&mut self, kind: u32, id: u32, name: &str) {
        self.insert(kind, id, name.to_owned());
    }

    /// The number of a name, if it has one.
    pub fn number(&self, kind: u32, name: &str) -> Option<u32> {
        self.by_name.get(&(kind, name.to_owned())).copied()
    }

    /// Forgets what is not in `used` (kind and number).
    pub fn retain(&mut self, used: &BTreeSet<(u32, u32)>) {
        self.taken_below.clear();
        self.by_id.retain(|key, _| used.contains(key));
        self.by_name.retain(|(kind, _), id| used.contains(&(*kind, *id)));
    }

    /// Numbers (with their kinds) that stand for something else in `before`, or for nothing.
    pub fn fresh<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = (u32, u32)> + 'a {
        let numbers = self.by_id.iter().filter(|(key, name)| before.by_id.get(key) != Some(name));
        numbers.map(|(key, _)| *key)
    }

    /// Writes what `self` has and `before` has not; removes the opposite.
    pub fn write(&self, before: &Self, names: &Map<NameKey, Name>) -> Result<()> {
        for (&(kind, id), name) in &self.by_id {
            if before.by_id.get(&(kind, id)) != Some(name) {
                names.set(&NameKey { kind, id }, &string_to_name(name))?;
            }
        }
        for &(kind, id) in before.by_id.keys() {
            if !self.by_id.contains_key(&(kind, id)) {
                names.remove(&NameKey { kind, id })?;
            }
        }
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
    use vrouter_common::tables::NAME_PORT;

    use super::*;

    #[test]
    fn a_number_stays_with_its_name_and_gaps_are_filled() {
        let mut ids = Identities::default();
        let a = ids.id(NAME_PORT, "a").unwrap();
        let b = ids.id(NAME_PORT, "b").unwrap();
        let c = ids.id(NAME_PORT, "c").unwrap();
        assert_eq!((a, b, c), (1, 2, 3));
        ids.retain(&BTreeSet::from([(NAME_PORT, a), (NAME_PORT, c)]));
        assert_eq!(ids.id(NAME_PORT, "c").unwrap(), c);
        assert_eq!(ids.id(NAME_PORT, "d").unwrap(), b, "the gap is filled");
        assert_eq!(ids.name(NAME_PORT, c), Some("c"));
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
