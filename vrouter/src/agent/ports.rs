//! Ports of routers' external addresses, where nodes lease them in blocks: how many this node needs, and which it can
//! do without.
//!
//! A router that a port of this node is behind needs a block. Connections to different destinations share ports, so
//! what counts is how many go to one: when those have three quarters of the ports, another block is asked for, before
//! the first is exhausted. A block too many is retired: new connections get no ports of it, and when the last that
//! has one ended it is returned.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use vrouter_common::tables::SNAT_BLOCK;

use super::flows::SnatUse;
use crate::{
    compile::{Shares, Translated},
    store::blocks::{Claim, Claims, Holders},
};

/// How long a block has to be too many before it is retired.
const SUPERFLUOUS: Duration = Duration::from_secs(60);

/// See the module.
pub struct Ports {
    claims: watch::Sender<Claims>,
    receiver: watch::Receiver<Arc<Holders>>,
    holders: Arc<Holders>,
    /// Blocks that new connections get no ports of, and how many passes had ended when that came in force. `None`: it
    /// is not in force yet.
    retiring: BTreeMap<(String, u32), Option<u64>>,
    /// Those of them that were said to be idle: they are as good as returned.
    offered: BTreeSet<(String, u32)>,
    /// Since when a router has had more blocks than it needs.
    superfluous: BTreeMap<String, Instant>,
    /// How long that may be.
    patience: Duration,
}

impl Ports {
    /// With what the follower of the store knows, and is to know.
    pub fn new(claims: watch::Sender<Claims>, mut receiver: watch::Receiver<Arc<Holders>>) -> Self {
        let holders = receiver.borrow_and_update().clone();
        Self {
            claims,
            receiver,
            holders,
            retiring: BTreeMap::new(),
            offered: BTreeSet::new(),
            superfluous: BTreeMap::new(),
            patience: SUPERFLUOUS,
        }
    }

    /// Tells of other holders.
    pub fn holders(&self) -> watch::Receiver<Arc<Holders>> {
        self.receiver.clone()
    }

    /// Waits for them, where there are any to wait for.
    pub async fn changed(holders: &mut Option<watch::Receiver<Arc<Holders>>>) {
        let changed = match holders {
            Some(holders) => holders.changed().await.is_ok(),
            None => false,
        };
        if !changed {
            std::future::pending().await
        }
    }

    /// Takes note of them.
    pub fn take(&mut self, node: &str) {
        self.holders = self.receiver.borrow_and_update().clone();
        let holders = self.holders.clone();
        let is_own = |router: &String, block: &u32| {
            holders.get(router).and_then(|of| of.get(block)).is_some_and(|holder| holder == node)
        };
        self.retiring.retain(|(router, block), _| is_own(router, block));
        self.offered.retain(|(router, block)| is_own(router, block));
    }

    /// For the compiler.
    pub fn shares(&self) -> Shares {
        Shares { holders: self.holders.clone(), retiring: self.retiring.keys().cloned().collect() }
    }

    fn own(&self, node: &str, router: &str) -> BTreeSet<u32> {
        let of = self.holders.get(router).into_iter().flatten();
        of.filter(|(_, holder)| *holder == node).map(|(block, _)| *block).collect()
    }

    /// A block for each router that is needed and has none, at once, not after a pass through the flow tables. True:
    /// one that retired is used again, which the compiler has to hear.
    pub fn claim_first(&mut self, node: &str, translated: &BTreeMap<String, Translated>) -> bool {
        self.claims.send_if_modified(|claims| {
            let before = claims.clone();
            for (router, it) in translated.iter().filter(|(_, it)| it.is_needed) {
                let claim = claims.entry(router.clone()).or_default();
                claim.wanted = claim.wanted.max(1);
                claim.range = it.blocks;
            }
            *claims != before
        });
        // A router that is needed again does not go without.
        let before = self.retiring.len();
        for (router, _) in translated.iter().filter(|(_, it)| it.is_needed) {
            let own = self.own(node, router);
            if own.iter().all(|block| self.retiring.contains_key(&(router.clone(), *block))) {
                let offered = &self.offered;
                self.retiring.retain(|block, _| block.0 != *router || offered.contains(block));
            }
        }
        self.retiring.len() != before
    }

    /// What [`shares`](Self::shares) said last is in force: no connection that begins from here on gets a port of what
    /// retires.
    pub fn confirm(&mut self, passes: u64) {
        self.retiring.values_mut().for_each(|since| *since = since.or(Some(passes)));
    }

    /// After a pass through the flow tables: claims what is needed; whether another topology has to be compiled,
    /// because a block retires.
    pub fn claim(
        &mut self,
        node: &str,
        translated: &BTreeMap<String, Translated>,
        used: &[SnatUse],
        passes: u64,
    ) -> bool {
        let now = Instant::now();
        let mut claims = Claims::new();
        let before: BTreeSet<_> = self.retiring.keys().cloned().collect();
        let with_leases = self.holders.iter().filter(|(_, of)| of.values().any(|holder| holder == node));
        let routers: BTreeSet<String> =
            translated.keys().cloned().chain(with_leases.map(|(router, _)| router.clone())).collect();
        for router in routers {
            let own = self.own(node, &router);
            let Some(it) = translated.get(&router) else {
                // The router is gone from here, and its connections with it. Should it return, it takes others.
                for block in &own {
                    self.retiring.insert((router.clone(), *block), Some(passes));
                    self.offered.insert((router.clone(), *block));
                }
                let range = (0, u16::MAX.into());
                claims.insert(router, Claim { wanted: 0, range, idle: own });
                continue;
            };
            let uses: Vec<&SnatUse> = used.iter().filter(|it_is| it_is.router_id == it.router_id).collect();
            let most = uses.iter().map(|it_is| it_is.most).max().unwrap_or(0);
            let busy: BTreeSet<u32> = uses.iter().flat_map(|it_is| it_is.blocks.iter().copied()).collect();
            let (first, last) = it.blocks;
            let is_of_range = |block: &u32| (first..=last).contains(block);
            let needed = if it.is_needed { needed(most) } else { 0 };
            let key = |block: &u32| (router.clone(), *block);
            let mut working: BTreeSet<u32> = own
                .iter()
                .filter(|block| is_of_range(block) && !self.retiring.contains_key(&key(block)))
                .copied()
                .collect();
            // What retires is needed again.
            for block in own.iter().filter(|block| is_of_range(block)) {
                if (working.len() as u32) < needed
                    && !self.offered.contains(&key(block))
                    && self.retiring.remove(&key(block)).is_some()
                {
                    working.insert(*block);
                }
            }
            if working.len() as u32 <= needed {
                self.superfluous.remove(&router);
            } else if *self.superfluous.entry(router.clone()).or_insert(now) + self.patience <= now {
                // One without connections, if there is one; the last first.
                let idle = working.iter().rev().find(|block| !busy.contains(block));
                if let Some(block) = idle.or(working.last()) {
                    self.retiring.insert(key(block), None);
                }
                self.superfluous.remove(&router);
            }
            // Outside of what the configuration gives.
            for block in own.iter().filter(|block| !is_of_range(block)) {
                self.retiring.entry(key(block)).or_insert(None);
            }
            let retiring = own.iter().filter(|block| self.retiring.contains_key(&key(block)));
            // Found without connections by a pass that began when it was out of use.
            let (idle, kept): (BTreeSet<u32>, BTreeSet<u32>) = retiring.copied().partition(|block| {
                self.offered.contains(&key(block))
                    || !busy.contains(block)
                        && self.retiring[&key(block)].is_some_and(|since| passes >= since + 2)
            });
            self.offered.extend(idle.iter().map(key));
            let wanted = needed + kept.len() as u32;
            claims.insert(router, Claim { wanted, range: it.blocks, idle });
        }
        self.claims.send_if_modified(|now| {
            let differs = *now != claims;
            *now = claims;
            differs
        });
        !before.iter().eq(self.retiring.keys())
    }
}

/// Blocks for so many connections to one destination: a quarter of the ports is to be free.
fn needed(most: u32) -> u32 {
    (most * 4).div_ceil(SNAT_BLOCK * 3).max(1)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const NODE: &str = "a";

    struct World {
        ports: Ports,
        tell: watch::Sender<Arc<Holders>>,
        claims: watch::Receiver<Claims>,
        translated: BTreeMap<String, Translated>,
        passes: u64,
        /// Whether what is compiled comes in force.
        commits: bool,
    }

    impl World {
        fn new() -> Self {
            let (tell, holders) = watch::channel(Arc::default());
            let (sender, claims) = watch::channel(Claims::new());
            let mut ports = Ports::new(sender, holders);
            ports.patience = Duration::ZERO;
            let router =
                Translated { router_id: 7, address: Ipv4Addr::LOCALHOST, blocks: (1, 63), is_needed: true };
            let translated = BTreeMap::from([("r1".to_owned(), router)]);
            Self { ports, tell, claims, translated, passes: 0, commits: true }
        }

        fn hold(&mut self, blocks: &[u32]) {
            let of = blocks.iter().map(|block| (*block, NODE.to_owned())).chain([(60, "b".to_owned())]);
            self.tell.send_replace(Arc::new(Holders::from([("r1".to_owned(), of.collect())])));
            self.ports.take(NODE);
        }

        /// After a pass that found so many connections to one server, with ports of these blocks.
        fn pass(&mut self, most: u32, blocks: &[u32]) -> (Claim, bool) {
            self.passes += 1;
            let used = SnatUse {
                router_id: 7,
                router: String::new(),
                address: IpAddr::from([127, 0, 0, 1]),
                flows: u64::from(most),
                most,
                blocks: blocks.to_vec(),
            };
            let changed = self.ports.claim(NODE, &self.translated, &[used], self.passes);
            if changed && self.commits {
                self.ports.confirm(self.passes);
            }
            (self.claims.borrow().get("r1").cloned().unwrap_or_default(), changed)
        }

        fn retiring(&self) -> Vec<u32> {
            self.ports.shares().retiring.iter().map(|(_, block)| *block).collect()
        }
    }

    #[test]
    fn another_block_is_asked_for_before_the_first_is_exhausted() {
        let mut world = World::new();
        world.ports.claim_first(NODE, &world.translated);
        assert_eq!(world.claims.borrow()["r1"].wanted, 1);
        world.hold(&[5]);
        assert_eq!(world.pass(768, &[5]).0.wanted, 1);
        assert_eq!(world.pass(769, &[5]).0.wanted, 2);
        world.hold(&[5, 9]);
        assert_eq!(world.pass(1536, &[5, 9]).0.wanted, 2);
        assert_eq!(world.pass(5000, &[5, 9]).0.wanted, 7);
    }

    #[test]
    fn one_too_many_is_retired_and_returned_when_its_last_connection_ended() {
        let mut world = World::new();
        world.hold(&[5, 9]);
        // Too many from here on; then retired: the one without connections.
        let (claim, changed) = world.pass(10, &[9]);
        assert!(changed && claim.idle.is_empty(), "{claim:?}");
        assert_eq!((world.retiring(), claim.wanted), (vec![5], 2), "it is kept until it is known to be idle");
        world.pass(10, &[9]);
        let (claim, changed) = world.pass(10, &[9]);
        assert_eq!((claim.wanted, claim.idle, changed), (1, BTreeSet::from([5]), false));
        world.hold(&[9]);
        assert!(world.retiring().is_empty());
        // The last one has connections: not while it is needed.
        assert_eq!(world.pass(10, &[9]).0.wanted, 1);
        // No port of this node is behind the router any more.
        world.translated.get_mut("r1").unwrap().is_needed = false;
        world.pass(10, &[9]);
        assert_eq!(world.retiring(), [9]);
        for _ in 0..5 {
            let (claim, _) = world.pass(1, &[9]);
            assert_eq!((claim.wanted, claim.idle.len()), (1, 0), "a connection lives");
        }
        let (claim, _) = world.pass(0, &[]);
        assert_eq!((claim.wanted, claim.idle), (0, BTreeSet::from([9])));
        // Needed again: what was said to be idle is returned all the same, since somebody may have acted on it.
        world.translated.get_mut("r1").unwrap().is_needed = true;
        let (claim, _) = world.pass(0, &[]);
        assert_eq!((claim.wanted, claim.idle, world.retiring()), (1, BTreeSet::from([9]), vec![9]));
        world.hold(&[11]);
        assert_eq!((world.pass(0, &[]).0.wanted, world.retiring().len()), (1, 0));
        // What only retires is simply used again.
        world.translated.get_mut("r1").unwrap().is_needed = false;
        world.pass(1, &[11]);
        assert_eq!(world.retiring(), [11]);
        world.translated.get_mut("r1").unwrap().is_needed = true;
        let (claim, changed) = world.pass(1, &[11]);
        assert_eq!((claim.wanted, changed, world.retiring().len()), (1, true, 0));
    }

    #[test]
    fn what_retires_is_idle_only_when_that_is_in_force() {
        let mut world = World::new();
        world.hold(&[5, 9]);
        world.commits = false;
        let (_, changed) = world.pass(10, &[9]);
        assert!(changed);
        for _ in 0..5 {
            // The old tables give out its ports.
            assert_eq!(world.pass(10, &[9]).0.idle, BTreeSet::new());
        }
        world.ports.confirm(world.passes);
        assert_eq!(world.pass(10, &[9]).0.idle, BTreeSet::new());
        assert_eq!(world.pass(10, &[9]).0.idle, BTreeSet::from([5]));
    }

    #[test]
    fn a_router_that_is_needed_again_has_ports_at_once() {
        let mut world = World::new();
        world.hold(&[5]);
        world.translated.get_mut("r1").unwrap().is_needed = false;
        world.pass(1, &[5]);
        assert_eq!(world.retiring(), [5]);
        world.translated.get_mut("r1").unwrap().is_needed = true;
        assert!(world.ports.claim_first(NODE, &world.translated), "it is to be compiled again");
        assert_eq!(world.retiring(), [0; 0]);
        assert!(!world.ports.claim_first(NODE, &world.translated));
        // Not what was said to be idle.
        world.translated.get_mut("r1").unwrap().is_needed = false;
        (0..3).for_each(|_| drop(world.pass(0, &[])));
        world.translated.get_mut("r1").unwrap().is_needed = true;
        assert!(!world.ports.claim_first(NODE, &world.translated));
        assert_eq!(world.retiring(), [5]);
    }

    #[test]
    fn what_is_left_of_a_router_that_is_gone_is_returned() {
        let mut world = World::new();
        world.hold(&[5, 9]);
        world.translated.clear();
        let (claim, _) = world.pass(10, &[5]);
        assert_eq!((claim.wanted, claim.idle), (0, BTreeSet::from([5, 9])));
        assert_eq!(world.retiring(), [5, 9], "they are not used again");
    }
}
