//! This node's side of leasing blocks of ports: what is wanted, what was told, and when to try again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::store::blocks::{Claims, Held, Holders, Step, next_step};

/// What gateways get to hear of a new block, before its ports are used.
const UNUSED: Duration = Duration::from_millis(500);
/// How long it is remembered that a transaction did not hold: another was quicker, or this node knew too little.
const BUSY: Duration = Duration::from_secs(2);
/// After etcd was found to have gone back (a restored backup), nobody takes a block before everybody has taken again
/// what he has. Longer than anybody needs to be connected again.
const SETTLE: Duration = Duration::from_secs(20);
/// Until the next try if there is no block left, or etcd refuses.
const RETRY: Duration = Duration::from_secs(5);

type Block = (String, u32);

/// See the module.
pub struct Leases {
    claims: watch::Receiver<Claims>,
    holders: watch::Sender<Arc<Holders>>,
    /// What was told last.
    told: Arc<Holders>,
    /// New ones, and from when on they may be used.
    fresh: BTreeMap<Block, Instant>,
    /// What just failed.
    busy: BTreeMap<Block, Instant>,
    /// Had before etcd lost them: to be taken again.
    lost: BTreeSet<Block>,
    /// Returned, and perhaps not yet heard of.
    given_up: BTreeSet<Block>,
    not_before: Instant,
    due: Option<Instant>,
    complaint: Option<String>,
}

impl Leases {
    /// Of nothing.
    pub fn new(claims: watch::Receiver<Claims>, holders: watch::Sender<Arc<Holders>>) -> Self {
        let now = Instant::now();
        Self {
            claims,
            holders,
            told: Arc::default(),
            fresh: BTreeMap::new(),
            busy: BTreeMap::new(),
            lost: BTreeSet::new(),
            given_up: BTreeSet::new(),
            not_before: now,
            due: Some(now),
            complaint: None,
        }
    }

    /// What the last agent knew.
    pub fn remember(&mut self, blocks: Holders) {
        self.told = Arc::new(blocks);
        self.holders.send_replace(self.told.clone());
    }

    /// What was told last.
    pub fn told(&self) -> &Holders {
        &self.told
    }

    /// Waits for other claims.
    pub async fn changed(&mut self) {
        match self.claims.changed().await {
            Ok(()) => self.due = Some(Instant::now()),
            Err(_) => std::future::pending().await,
        }
    }

    /// When there may be something to be done.
    pub fn due(&self) -> Option<Instant> {
        self.due.into_iter().chain(self.fresh.values().copied()).min()
    }

    /// Whether etcd does not have all the leases that were told last.
    pub fn misses(&self, held: &BTreeMap<String, BTreeMap<u32, Held>>) -> bool {
        let mut told = self
            .told
            .iter()
            .flat_map(|(router, blocks)| blocks.keys().map(move |block| (router.clone(), *block)));
        told.any(|block| !is_there(held, &block) && !self.given_up.contains(&block))
    }

    /// Everything was compared. `went_back`: etcd has not all that it had.
    pub fn compared(&mut self, node: &str, held: &BTreeMap<String, BTreeMap<u32, Held>>, went_back: bool) {
        let now = Instant::now();
        self.note_lost(node, held);
        if went_back {
            self.not_before = now + SETTLE;
        }
        self.due = Some(now);
    }

    /// What this node has and did not return is its own, whatever became of its lease: it takes it again.
    fn note_lost(&mut self, node: &str, held: &BTreeMap<String, BTreeMap<u32, Held>>) {
        let before = self.lost.len();
        for (router, blocks) in self.told.iter() {
            for (block, _) in blocks.iter().filter(|(_, holder)| *holder == node) {
                let key = (router.clone(), *block);
                if !is_there(held, &key) && !self.given_up.contains(&key) {
                    self.lost.insert(key);
                }
            }
        }
        if self.lost.len() > before {
            tracing::warn!(
                blocks = self.lost.len(),
                "etcd has lost leases of ports that this node has: they are leased again"
            );
            // Others have perhaps lost theirs, too.
            self.not_before = Instant::now() + SETTLE;
        }
    }

    /// Tells whose blocks are whose of the routers that are for this node, and which are its own of all others, if that
    /// has changed; whether it has.
    pub fn tell(
        &mut self,
        node: &str,
        held: &BTreeMap<String, BTreeMap<u32, Held>>,
        is_for_it: impl Fn(&str) -> bool,
    ) -> bool {
        let now = Instant::now();
        self.note_lost(node, held);
        self.fresh.retain(|_, ready| *ready > now);
        self.given_up.retain(|(router, block)| {
            held.get(router).and_then(|of| of.get(block)).is_some_and(|held| held.node.as_deref() == Ok(node))
        });
        let mut holders = Holders::new();
        for (router, blocks) in held {
            let is_for_it = is_for_it(router);
            for (block, held) in blocks {
                let key = (router.clone(), *block);
                // One that cannot be read is somebody's, and nobody knows whose.
                let Ok(holder) = &held.node else { continue };
                if !is_for_it && holder != node {
                    continue;
                }
                let is_not_yet =
                    holder == node && (self.fresh.contains_key(&key) || self.given_up.contains(&key));
                if !is_not_yet {
                    holders.entry(key.0).or_default().insert(*block, holder.clone());
                }
            }
        }
        // What etcd has lost stays until it is another's.
        for (router, block) in &self.lost {
            holders.entry(router.clone()).or_default().entry(*block).or_insert_with(|| node.to_owned());
        }
        if *self.told == holders {
            return false;
        }
        self.due = Some(now);
        self.told = Arc::new(holders);
        self.holders.send_replace(self.told.clone());
        true
    }

    /// What to do next.
    pub fn next(
        &mut self,
        node: &str,
        held: &BTreeMap<String, BTreeMap<u32, Held>>,
        is_gone: impl Fn(&str) -> bool,
    ) -> Option<(String, Step)> {
        let now = Instant::now();
        self.due = None;
        // Something fresh has ripened: it is for `tell`.
        self.busy.retain(|_, until| *until > now);
        let is_free = |(router, block): &Block| held.get(router).is_none_or(|of| !of.contains_key(block));
        self.lost.retain(&is_free);
        if let Some((router, block)) = self.lost.first().cloned() {
            self.due = Some(now);
            return Some((router, Step::Take(block)));
        }
        // The answer to its return was lost, and so was the return.
        for (router, block) in &self.given_up {
            if self.busy.contains_key(&(router.clone(), *block)) {
                continue;
            }
            if let Some(there) = held.get(router).and_then(|of| of.get(block))
                && there.node.as_deref() == Ok(node)
            {
                self.due = Some(now);
                return Some((router.clone(), Step::Return(*block, there.revision)));
            }
        }
        let claims = self.claims.borrow().clone();
        let nothing = BTreeMap::new();
        for (router, claim) in &claims {
            let of_router = held.get(router).unwrap_or(&nothing);
            let busy = self.busy.keys().filter(|(of, _)| of == router).map(|(_, block)| *block).collect();
            match next_step(node, router, claim, of_router, &busy, &is_gone) {
                Some(Step::Take(_) | Step::TakeOver(..)) if now < self.not_before => {
                    self.due = Some(self.not_before);
                }
                Some(step) => {
                    self.due = Some(now);
                    return Some((router.clone(), step));
                }
                None => {
                    let own = of_router.values().filter(|held| held.node.as_deref() == Ok(node)).count();
                    if (own as u32) < claim.wanted {
                        self.due = Some(self.due.map_or(now + RETRY, |due| due.min(now + RETRY)));
                    }
                }
            }
        }
        None
    }

    /// A transaction succeeded.
    pub fn done(&mut self, node: &str, router: &str, block: u32, is_taken: bool) {
        self.complaint = None;
        let key = (router.to_owned(), block);
        self.lost.remove(&key);
        let holder = self.told.get(router).and_then(|of| of.get(&block));
        if is_taken && holder.is_none_or(|holder| holder != node) {
            self.fresh.insert(key, Instant::now() + UNUSED);
        }
    }

    /// It is returned: not to be used from here on.
    pub fn give_up(&mut self, router: &str, block: u32) {
        self.given_up.insert((router.to_owned(), block));
    }

    /// A transaction did not hold: another was quicker, or this node knew too little.
    pub fn failed(&mut self, router: &str, block: u32) {
        self.lost.remove(&(router.to_owned(), block));
        self.busy.insert((router.to_owned(), block), Instant::now() + BUSY);
    }

    /// etcd does not let this node.
    pub fn denied(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        if self.complaint.as_ref() != Some(&text) {
            tracing::error!(
                "{text}: this node may not lease ports of routers' addresses, so that its workloads reach outside by \
                 floating ips alone; run packaging/etcd/roles.sh node for it again"
            );
        }
        self.complaint = Some(text);
        self.due = Some(Instant::now() + RETRY);
    }
}

fn is_there(held: &BTreeMap<String, BTreeMap<u32, Held>>, (router, block): &Block) -> bool {
    held.get(router).is_some_and(|of| of.contains_key(block))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::blocks::Claim;

    const NODE: &str = "a";

    type Stored = BTreeMap<String, BTreeMap<u32, Held>>;

    fn stored(blocks: &[(u32, &str)]) -> Stored {
        let held = |node: &str| Held { node: Ok(node.to_owned()), revision: 5 };
        let of = blocks.iter().map(|(block, node)| (*block, held(node))).collect();
        BTreeMap::from([("r1".to_owned(), of)])
    }

    fn leases(wanted: u32) -> (Leases, watch::Sender<Claims>, watch::Receiver<Arc<Holders>>) {
        let claim = Claim { wanted, range: (1, 9), idle: BTreeSet::new() };
        let (claims, claimed) = watch::channel(Claims::from([("r1".to_owned(), claim)]));
        let (tell, holders) = watch::channel(Arc::default());
        (Leases::new(claimed, tell), claims, holders)
    }

    fn own(holders: &watch::Receiver<Arc<Holders>>) -> Vec<u32> {
        let holders = holders.borrow();
        let of = holders.get("r1").into_iter().flatten();
        of.filter(|(_, holder)| *holder == NODE).map(|(block, _)| *block).collect()
    }

    fn next(leases: &mut Leases, held: &Stored) -> Option<Step> {
        leases.next(NODE, held, |_| false).map(|(_, step)| step)
    }

    #[test]
    fn a_new_block_is_used_when_others_have_heard_of_it() {
        let (mut leases, _claims, holders) = leases(1);
        let Some(Step::Take(block)) = next(&mut leases, &Stored::new()) else { panic!("nothing is taken") };
        leases.done(NODE, "r1", block, true);
        let held = stored(&[(block, NODE)]);
        leases.tell(NODE, &held, |_| true);
        assert_eq!(own(&holders), [0; 0]);
        assert!(leases.due().is_some(), "it looks again");
        std::thread::sleep(UNUSED);
        assert!(leases.tell(NODE, &held, |_| true));
        assert_eq!(own(&holders), [block]);
        assert_eq!(next(&mut leases, &held), None);
    }

    #[test]
    fn a_block_that_is_taken_over_is_used_when_others_have_heard_of_it() {
        let (mut leases, _claims, holders) = leases(1);
        leases.tell(NODE, &stored(&[(4, "gone")]), |_| true);
        leases.done(NODE, "r1", 4, true);
        leases.tell(NODE, &stored(&[(4, NODE)]), |_| true);
        assert_eq!(own(&holders), [0; 0]);
        std::thread::sleep(UNUSED);
        leases.tell(NODE, &stored(&[(4, NODE)]), |_| true);
        assert_eq!(own(&holders), [4]);
    }

    #[test]
    fn what_this_node_has_of_routers_that_are_not_for_it_is_told_to_be_returned() {
        let (mut leases, _claims, holders) = leases(0);
        leases.tell(NODE, &stored(&[(4, NODE), (5, "b")]), |_| false);
        assert_eq!(*holders.borrow().get("r1").unwrap(), BTreeMap::from([(4, NODE.to_owned())]));
    }

    #[test]
    fn nobody_takes_anything_while_others_may_have_what_etcd_lost() {
        let settles = |leases: &Leases| leases.due().is_some_and(|due| due > Instant::now() + SETTLE / 2);
        // It was said so.
        let (mut leases, _claims, _holders) = leases(2);
        leases.tell(NODE, &stored(&[(4, NODE)]), |_| true);
        leases.compared(NODE, &stored(&[(4, NODE)]), true);
        assert_eq!(next(&mut leases, &stored(&[(4, NODE)])), None);
        assert!(settles(&leases));
        // This node's own lease is gone: so may be others'.
        let (mut leases, _claims, _holders) = super::tests::leases(2);
        leases.tell(NODE, &stored(&[(4, NODE)]), |_| true);
        leases.compared(NODE, &Stored::new(), false);
        assert_eq!(next(&mut leases, &Stored::new()), Some(Step::Take(4)), "its own");
        assert_eq!(next(&mut leases, &stored(&[(4, NODE)])), None);
        assert!(settles(&leases));
        // Somebody deleted it.
        let (mut leases, _claims, holders) = super::tests::leases(2);
        leases.tell(NODE, &stored(&[(4, NODE)]), |_| true);
        leases.tell(NODE, &Stored::new(), |_| true);
        assert_eq!(own(&holders), [4]);
        assert_eq!(next(&mut leases, &Stored::new()), Some(Step::Take(4)));
        // Nothing of the kind.
        let (mut leases, _claims, _holders) = super::tests::leases(2);
        leases.tell(NODE, &stored(&[(4, NODE), (5, "b")]), |_| true);
        assert!(leases.misses(&stored(&[(4, NODE)])) && !leases.misses(&stored(&[(4, NODE), (5, "c")])));
        leases.compared(NODE, &stored(&[(4, NODE), (5, "b")]), false);
        assert!(matches!(next(&mut leases, &stored(&[(4, NODE), (5, "b")])), Some(Step::Take(_))));
    }

    #[test]
    fn what_etcd_has_lost_is_used_on_and_taken_again_however_often_that_fails() {
        let (mut leases, _claims, holders) = leases(1);
        leases.tell(NODE, &stored(&[(4, NODE), (5, "b")]), |_| true);
        leases.compared(NODE, &Stored::new(), true);
        leases.tell(NODE, &Stored::new(), |_| true);
        assert_eq!(own(&holders), [4]);
        for _ in 0..3 {
            // The connection fails each time.
            assert_eq!(next(&mut leases, &Stored::new()), Some(Step::Take(4)));
            leases.tell(NODE, &Stored::new(), |_| true);
            assert_eq!(own(&holders), [4]);
        }
        leases.done(NODE, "r1", 4, true);
        leases.tell(NODE, &stored(&[(4, NODE)]), |_| true);
        assert_eq!(own(&holders), [4], "without a pause");
        assert_eq!(next(&mut leases, &stored(&[(4, NODE)])), None);
        // Another has taken it meanwhile: it is that one's.
        leases.compared(NODE, &stored(&[(4, "b")]), true);
        leases.tell(NODE, &stored(&[(4, "b")]), |_| true);
        assert_eq!(own(&holders), [0; 0]);
        assert_eq!(next(&mut leases, &stored(&[(4, "b")])), None);
        assert!(leases.due().is_some_and(|due| due > Instant::now() + SETTLE / 2));
    }

    #[test]
    fn a_return_of_which_nothing_was_heard_is_made_again() {
        let (mut leases, claims, holders) = leases(1);
        let held = stored(&[(4, NODE), (5, NODE)]);
        leases.tell(NODE, &held, |_| true);
        let idle = Claim { wanted: 1, range: (1, 9), idle: BTreeSet::from([5]) };
        claims.send_replace(Claims::from([("r1".to_owned(), idle)]));
        assert_eq!(next(&mut leases, &held), Some(Step::Return(5, 5)));
        leases.give_up("r1", 5);
        leases.tell(NODE, &held, |_| true);
        assert_eq!(own(&holders), [4]);
        // A return that does not hold is not tried without end.
        leases.failed("r1", 5);
        assert_eq!(next(&mut leases, &held), None);
        leases.busy.clear();
        // The agent, told that it is gone, says nothing of it any more.
        claims.send_replace(Claims::from([(
            "r1".to_owned(),
            Claim { wanted: 1, range: (1, 9), ..Claim::default() },
        )]));
        assert_eq!(next(&mut leases, &held), Some(Step::Return(5, 5)));
        leases.tell(NODE, &stored(&[(4, NODE)]), |_| true);
        assert_eq!(next(&mut leases, &stored(&[(4, NODE)])), None);
        assert_eq!(own(&holders), [4]);
    }
}
