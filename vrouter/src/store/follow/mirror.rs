//! What etcd has, as far as more is needed of it than the view keeps: the head, staged changes, the revision.

use std::collections::{BTreeMap, HashSet};

use crate::store::{
    blocks::{Held, Lease},
    client::Snapshot,
    keys::{Key, Keys, ObjectName},
    record::{Head, Staged, Unusable},
    view::{Change, View},
};

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub key: Vec<u8>,
    /// `None`: it is gone.
    pub value: Option<Vec<u8>>,
    pub revision: i64,
}

/// See the module.
pub struct Mirror {
    keys: Keys,
    /// Everything up to here is known.
    revision: i64,
    /// The last of them that was about the topology.
    seen: i64,
    /// Whether what is known was followed without a gap.
    sure: bool,
    head: Option<Vec<u8>>,
    pending: Vec<String>,
    unusable: Option<Unusable>,
    /// Of every staged change: its objects' values.
    staged: BTreeMap<String, BTreeMap<ObjectName, Vec<u8>>>,
    /// Leases of blocks of ports, by router and block.
    blocks: BTreeMap<String, BTreeMap<u32, Held>>,
    /// Leases that this node has written itself, and the revisions of that: they may be ahead of the rest.
    written: BTreeMap<(String, u32), i64>,
    /// The revision the head was written at.
    head_revision: i64,
}

impl Mirror {
    /// Of nothing.
    pub fn new(keys: Keys) -> Self {
        Self {
            keys,
            revision: 0,
            seen: 0,
            sure: false,
            head: None,
            pending: Vec::new(),
            unusable: None,
            staged: BTreeMap::new(),
            blocks: BTreeMap::new(),
            written: BTreeMap::new(),
            head_revision: 0,
        }
    }

    /// Leases of blocks of ports, by router and block.
    pub fn blocks(&self) -> &BTreeMap<String, BTreeMap<u32, Held>> {
        &self.blocks
    }

    /// The revision the head was written at.
    pub fn head_revision(&self) -> i64 {
        self.head_revision
    }

    /// This node has written a lease, or deleted one.
    pub fn wrote_block(&mut self, router: String, block: u32, held: Option<Held>, revision: i64) {
        self.written.insert((router.clone(), block), revision);
        self.set_block(router, block, held);
    }

    /// A lease was written, or is gone.
    fn set_block(&mut self, router: String, block: u32, held: Option<Held>) {
        let of_router = self.blocks.entry(router.clone()).or_default();
        match held {
            Some(held) => drop(of_router.insert(block, held)),
            None => drop(of_router.remove(&block)),
        }
        if of_router.is_empty() {
            self.blocks.remove(&router);
        }
    }

    /// Everything up to here is known.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The last change of the topology.
    pub fn seen(&self) -> i64 {
        self.seen
    }

    /// Whether it is only to be made sure that nothing else happened.
    pub fn is_sure(&self) -> bool {
        self.sure
    }

    /// Everything is to be compared.
    pub fn doubt(&mut self) {
        self.sure = false;
    }

    /// Whether this is the head as it is known.
    pub fn has_head(&self, value: Option<&[u8]>) -> bool {
        self.head.as_deref() == value
    }

    /// Whether these are the leases as they were known at [`revision`](Self::revision): keys, and when they were written.
    /// What this node wrote later does not count.
    pub fn has_leases<'k>(&self, stored: impl Iterator<Item = (&'k [u8], i64)>) -> bool {
        let mut stored: BTreeMap<(String, u32), i64> = stored
            .filter_map(|(key, revision)| match self.keys.read(key) {
                Some(Key::Block { router, block }) => Some(((router, block), revision)),
                _ => None,
            })
            .collect();
        let mut known: BTreeMap<(String, u32), i64> = BTreeMap::new();
        for (router, of_router) in &self.blocks {
            known.extend(of_router.iter().map(|(block, held)| ((router.clone(), *block), held.revision)));
        }
        for (lease, _) in self.written.iter().filter(|(_, revision)| **revision > self.revision) {
            stored.remove(lease);
            known.remove(lease);
        }
        stored == known
    }

    /// Why nothing can be made of what etcd has.
    pub fn unusable(&self) -> Option<Unusable> {
        self.unusable.clone()
    }

    /// Takes a snapshot; returns in what the view differs from it.
    pub fn compare(&mut self, snapshot: &Snapshot, view: &View) -> Vec<Change> {
        let mut stored: BTreeMap<ObjectName, &[u8]> = BTreeMap::new();
        let mut plugged: BTreeMap<(String, String), (&[u8], i64)> = BTreeMap::new();
        let (mut head, mut staged) = (None, BTreeMap::<String, BTreeMap<ObjectName, Vec<u8>>>::new());
        let mut seen = 0;
        let mut blocks = Vec::new();
        for (key, raw) in &snapshot.raw {
            let key = self.keys.read(key.as_bytes());
            if !matches!(key, Some(Key::Block { .. })) {
                seen = seen.max(raw.revision);
            }
            match key {
                Some(Key::Head) => (head, self.head_revision) = (Some(raw.value.clone()), raw.revision),
                Some(Key::Block { router, block }) => {
                    blocks.push((router, block, held(&raw.value, raw.revision)));
                }
                Some(Key::Object(object)) => drop(stored.insert(object, &raw.value)),
                Some(Key::Staged { change, object }) => {
                    staged.entry(change).or_default().insert(object, raw.value.clone());
                }
                Some(Key::Binding { node, port }) => {
                    plugged.insert((port, node), (&raw.value, raw.revision));
                }
                None => {}
            }
        }
        (self.revision, self.seen, self.sure, self.staged) = (snapshot.revision, seen, true, staged);
        self.blocks.clear();
        self.written.clear();
        blocks.into_iter().for_each(|(router, block, held)| self.set_block(router, block, Some(held)));
        self.set_head(head);
        if self.unusable.is_some() {
            return Vec::new();
        }
        let mut wanted: BTreeMap<ObjectName, Vec<u8>> =
            stored.into_iter().map(|(object, value)| (object, value.to_vec())).collect();
        for change in &self.pending {
            for (object, value) in self.staged.get(change).into_iter().flatten() {
                match value_of(value) {
                    Some(value) => drop(wanted.insert(object.clone(), value)),
                    None => drop(wanted.remove(object)),
                }
            }
        }
        let mut changes = Vec::new();
        let mut same = HashSet::new();
        for (object, value) in view.known() {
            match wanted.get(object) {
                Some(stored) if stored == value => drop(same.insert(object.clone())),
                Some(_) => {}
                None => changes.push(Change::Object(object.clone(), None)),
            }
        }
        let news = wanted.into_iter().filter(|(object, _)| !same.contains(object));
        changes.extend(news.map(|(object, value)| Change::Object(object, Some(value))));
        for (port, node, value) in view.plugged() {
            let key = (port.to_owned(), node.to_owned());
            match plugged.get(&key) {
                Some((stored, _)) if *stored == value => drop(plugged.remove(&key)),
                Some(_) => {}
                None => changes.push(Change::Binding { port: key.0, node: key.1, value: None }),
            }
        }
        changes.extend(plugged.into_iter().map(|((port, node), (value, revision))| Change::Binding {
            port,
            node,
            value: Some((value.to_vec(), revision)),
        }));
        changes
    }

    /// Takes what happened in one revision; whether somebody waits for it.
    pub fn take(&mut self, revision: i64, events: Vec<Event>, view: &mut View) -> bool {
        self.revision = self.revision.max(revision);
        self.written.retain(|_, written| *written > revision);
        let (mut changes, mut head, mut topology) = (Vec::new(), None, false);
        for Event { key, value, .. } in events {
            match self.keys.read(&key) {
                Some(Key::Block { router, block }) => {
                    let held = value.map(|value| held(&value, revision));
                    self.set_block(router, block, held);
                }
                Some(Key::Head) => {
                    self.head_revision = revision;
                    head = Some(value);
                    topology = true;
                }
                Some(Key::Object(object)) => {
                    topology = true;
                    changes.push(Change::Object(object, value));
                }
                Some(Key::Binding { node, port }) => {
                    topology = true;
                    changes.push(Change::Binding { port, node, value: value.map(|value| (value, revision)) });
                }
                Some(Key::Staged { change, object }) => match value {
                    Some(value) => drop(self.staged.entry(change).or_default().insert(object, value)),
                    None => {
                        if let Some(objects) = self.staged.get_mut(&change) {
                            objects.remove(&object);
                            if objects.is_empty() {
                                self.staged.remove(&change);
                            }
                        }
                    }
                },
                None => {}
            }
        }
        let mut wait = false;
        if let Some(head) = head {
            let before = self.pending.clone();
            wait = self.set_head(head);
            // What was staged is in force now, all of it.
            for change in self.pending.iter().filter(|change| !before.contains(*change)) {
                for (object, value) in self.staged.get(change).into_iter().flatten() {
                    changes.push(Change::Object(object.clone(), value_of(value)));
                }
            }
        }
        if topology {
            self.seen = revision;
        }
        view.apply(changes);
        wait
    }

    /// Notes what the head says; whether somebody waits.
    fn set_head(&mut self, value: Option<Vec<u8>>) -> bool {
        let read = match &value {
            Some(value) => Head::read(value),
            None => {
                Err("there is no topology in etcd under this prefix (`vrouter apply` stores one)".to_owned())
            }
        };
        self.head = value;
        match read {
            Ok(head) => {
                (self.pending, self.unusable) = (head.pending, None);
                head.wait
            }
            Err(wrong) => {
                self.unusable = Some(wrong);
                false
            }
        }
    }
}

fn held(value: &[u8], revision: i64) -> Held {
    Held { node: Lease::read(value).map(|lease| lease.node), revision }
}

/// The value an object has after a staged change. One that is damaged stays for the view to name.
fn value_of(staged: &[u8]) -> Option<Vec<u8>> {
    match Staged::read(staged) {
        Ok(Staged::Put(record)) => Some(record.bytes()),
        Ok(Staged::Delete) => None,
        Err(_) => Some(staged.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_compared_as_they_were_then() {
        let keys = Keys::new("/vrouter");
        let mut mirror = Mirror::new(keys.clone());
        let mut view = View::new("a", vec![None]);
        let lease = |block: u32, revision| Event {
            key: keys.block("r1", block).into_bytes(),
            value: Some(Lease::new("a").bytes()),
            revision,
        };
        mirror.take(5, vec![lease(1, 5)], &mut view);
        mirror.take(6, vec![lease(2, 6)], &mut view);
        let has = |mirror: &Mirror, stored: &[(u32, i64)]| {
            let stored: Vec<_> = stored.iter().map(|(block, at)| (keys.block("r1", *block), *at)).collect();
            mirror.has_leases(stored.iter().map(|(key, at)| (key.as_bytes(), *at)))
        };
        assert!(has(&mirror, &[(1, 5), (2, 6)]));
        // One is missing, was written at another time, or is not known.
        for other in [&[(1, 5)][..], &[(1, 5), (2, 4)], &[(1, 5), (2, 6), (3, 6)]] {
            assert!(!has(&mirror, other), "{other:?}");
        }
        // What this node did is ahead of what it follows.
        let held = Held { node: Ok("a".to_owned()), revision: 9 };
        mirror.wrote_block("r1".to_owned(), 3, Some(held), 9);
        mirror.wrote_block("r1".to_owned(), 1, None, 8);
        assert!(has(&mirror, &[(1, 5), (2, 6)]) && !has(&mirror, &[(1, 5)]));
        mirror.take(9, vec![lease(3, 9)], &mut view);
        assert!(has(&mirror, &[(2, 6), (3, 9)]) && !has(&mirror, &[(1, 5), (2, 6)]));
    }
}
