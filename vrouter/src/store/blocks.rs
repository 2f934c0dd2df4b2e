//! Blocks of ports of routers' external addresses, leased by nodes: one key each, made only if there is none, so that
//! no block is ever two nodes'.
//!
//! ```text
//! config/blocks/<router>/<block>   {"schema": 1, "node": "node-a"}
//! ```
//!
//! A node takes a block before it needs it, and returns it when no connection has a port of it any more. Leases do not
//! run out: translations live in the node's kernel whatever its agent or etcd do. What a node had that is gone for
//! good (it is no longer in the topology), whoever needs one takes over, by a transaction that holds only if neither
//! the topology nor the lease has changed since.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::record::{SCHEMA, Unusable, versioned};
use crate::topology::Rendezvous;

/// Who has which blocks of which router.
pub type Holders = BTreeMap<String, BTreeMap<u32, String>>;

/// What a node needs of a router.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// How many blocks it is to have.
    pub wanted: u32,
    /// The blocks there are, inclusive.
    pub range: (u32, u32),
    /// Those of its own that no connection has a port of, and none will: whoever says so uses them no more until they
    /// were returned and taken again.
    pub idle: BTreeSet<u32>,
}

/// What a node needs, by router.
pub type Claims = BTreeMap<String, Claim>;

/// The value of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub schema: u32,
    pub node: String,
}

impl Lease {
    /// To a node.
    pub fn new(node: &str) -> Self {
        Self { schema: SCHEMA, node: node.to_owned() }
    }

    /// Reads a value.
    pub fn read(value: &[u8]) -> Result<Self, Unusable> {
        versioned(value)
    }

    /// As it is written.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A lease as it is stored. One that cannot be read is nobody's to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub node: Result<String, Unusable>,
    /// When it was written.
    pub revision: i64,
}

/// What a node does next about a router's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Takes one that is nobody's.
    Take(u32),
    /// Takes over one of a node that is gone, as it was written at that revision.
    TakeOver(u32, i64),
    /// Returns one, as it was written at that revision.
    Return(u32, i64),
}

/// What a node does next. `busy`: blocks with which it just failed, not to be tried again at once. `is_gone`: a
/// node is not in the topology.
pub fn next_step(
    node: &str,
    router: &str,
    claim: &Claim,
    held: &BTreeMap<u32, Held>,
    busy: &BTreeSet<u32>,
    is_gone: impl Fn(&str) -> bool,
) -> Option<Step> {
    let is_own = |held: &Held| held.node.as_deref() == Ok(node);
    let own: Vec<u32> = held.iter().filter(|(_, held)| is_own(held)).map(|(block, _)| *block).collect();
    let returned = own.iter().find(|block| claim.idle.contains(block) && !busy.contains(block));
    if let Some(block) = returned {
        return Some(Step::Return(*block, held[block].revision));
    }
    if own.len() as u32 >= claim.wanted {
        return None;
    }
    // Each node has its own order, so that several do not want the same one.
    let (first, last) = claim.range;
    let mut free: Vec<u32> =
        (first..=last).filter(|block| !held.contains_key(block) && !busy.contains(block)).collect();
    let order = Rendezvous::among([node]);
    free.sort_by_cached_key(|block| order.weight(router, *block));
    if let Some(block) = free.first() {
        return Some(Step::Take(*block));
    }
    let orphan = held.iter().find(|(block, held)| {
        (first..=last).contains(block)
            && !busy.contains(block)
            && held.node.as_ref().is_ok_and(|holder| holder != node && is_gone(holder))
    });
    orphan.map(|(block, held)| Step::TakeOver(*block, held.revision))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// etcd, as far as transactions on leases go: a step holds only on what it was decided on.
    #[derive(Default)]
    struct Model {
        leases: BTreeMap<u32, Held>,
        revision: i64,
        gone: BTreeSet<usize>,
    }

    impl Model {
        fn commit(&mut self, node: usize, step: &Step) -> bool {
            self.revision += 1;
            let held = Held { node: Ok(format!("n{node}")), revision: self.revision };
            match step {
                Step::Take(block) => {
                    let is_free = !self.leases.contains_key(block);
                    if is_free {
                        self.leases.insert(*block, held);
                    }
                    is_free
                }
                Step::TakeOver(block, revision) => {
                    let is_same = self.leases.get(block).is_some_and(|held| held.revision == *revision);
                    if is_same {
                        self.leases.insert(*block, held);
                    }
                    is_same
                }
                Step::Return(block, revision) => {
                    let is_same = self.leases.get(block).is_some_and(|held| held.revision == *revision);
                    if is_same {
                        self.leases.remove(block);
                    }
                    is_same
                }
            }
        }
    }

    /// Nodes that see etcd late, and act on what they saw.
    #[derive(Clone, Debug)]
    enum Event {
        Look(usize),
        Want(usize, u32),
        Idle(usize),
        Act(usize),
        Gone(usize),
    }

    const NODES: usize = 5;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0..NODES).prop_map(Event::Look),
            2 => (0..NODES, 0..4_u32).prop_map(|(node, wanted)| Event::Want(node, wanted)),
            1 => (0..NODES).prop_map(Event::Idle),
            6 => (0..NODES).prop_map(Event::Act),
            1 => (1..NODES).prop_map(Event::Gone),
        ]
    }

    proptest! {
        /// However late nodes see what others did: a block is one node's, until that returns it or is gone.
        #[test]
        fn no_block_is_ever_given_twice(events in proptest::collection::vec(event(), 1..300)) {
            let mut etcd = Model::default();
            let mut seen = vec![BTreeMap::new(); NODES];
            let mut claims = vec![Claim { wanted: 1, range: (1, 6), idle: BTreeSet::new() }; NODES];
            // What each believes to have: it may use the ports of these.
            let mut using = vec![BTreeSet::<u32>::new(); NODES];
            for event in events {
                match event {
                    Event::Look(node) => seen[node] = etcd.leases.clone(),
                    Event::Want(node, wanted) => claims[node].wanted = wanted,
                    // It stops using them when it says so.
                    Event::Idle(node) => claims[node].idle.append(&mut using[node]),
                    Event::Gone(node) => drop((etcd.gone.insert(node), using[node].clear())),
                    Event::Act(node) if !etcd.gone.contains(&node) => {
                        let name = format!("n{node}");
                        let gone = etcd.gone.clone();
                        let is_gone = |name: &str| gone.iter().any(|node| name == format!("n{node}"));
                        let step = next_step(&name, "r", &claims[node], &seen[node], &BTreeSet::new(), is_gone);
                        let Some(step) = step else { continue };
                        let done = etcd.commit(node, &step);
                        match step {
                            Step::Take(block) | Step::TakeOver(block, _) if done => {
                                using[node].insert(block);
                                seen[node] = etcd.leases.clone();
                            }
                            Step::Return(block, _) => drop(claims[node].idle.remove(&block)),
                            _ => {}
                        }
                    }
                    Event::Act(_) => {}
                }
                for block in 1..=6 {
                    let users: Vec<usize> = (0..NODES).filter(|node| using[*node].contains(&block)).collect();
                    prop_assert!(users.len() <= 1, "block {block} is used by {users:?}");
                    if let [user] = users[..] {
                        prop_assert_eq!(&etcd.leases[&block].node, &Ok(format!("n{user}")));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_wanted_is_taken_and_what_is_idle_returned() {
        let held = |node: &str, revision| Held { node: Ok(node.to_owned()), revision };
        let nobody = |_: &str| false;
        let busy = BTreeSet::new();
        let mut claim = Claim { wanted: 1, range: (1, 3), idle: BTreeSet::new() };
        let mut leases = BTreeMap::from([(1, held("b", 5)), (2, held("c", 6))]);
        assert_eq!(next_step("a", "r", &claim, &leases, &busy, nobody), Some(Step::Take(3)));
        assert_eq!(
            next_step("a", "r", &claim, &leases, &BTreeSet::from([3]), nobody),
            None,
            "not again at once"
        );
        leases.insert(3, held("a", 7));
        assert_eq!(next_step("a", "r", &claim, &leases, &busy, nobody), None);
        claim.wanted = 2;
        assert_eq!(next_step("a", "r", &claim, &leases, &busy, nobody), None, "there is none");
        let gone = |name: &str| name == "c";
        assert_eq!(next_step("a", "r", &claim, &leases, &busy, gone), Some(Step::TakeOver(2, 6)));
        leases.insert(2, Held { node: Err("damaged".to_owned()), revision: 9 });
        assert_eq!(next_step("a", "r", &claim, &leases, &busy, |_| true), Some(Step::TakeOver(1, 5)));
        // One block more than it needs, but a connection has a port of it.
        claim.wanted = 0;
        assert_eq!(next_step("a", "r", &claim, &leases, &busy, nobody), None);
        claim.idle = BTreeSet::from([3]);
        assert_eq!(next_step("a", "r", &claim, &leases, &busy, nobody), Some(Step::Return(3, 7)));
        assert_eq!(
            next_step("a", "r", &claim, &leases, &BTreeSet::from([3]), nobody),
            None,
            "not again at once"
        );
    }
}
