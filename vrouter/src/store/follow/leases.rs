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
/// How long another's quicker hand is remembered.
const BUSY: Duration = Duration::from_secs(2);
/// After etcd was found to have another history than what was followed, nobody takes a block before everybody has
/// said again what he has.
const SETTLE: Duration = Duration::from_secs(5);
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
    /// Others were quicker.
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

    /// Everything was compared. `followed`: something was known before, and etcd may have gone back behind it.
    pub fn compared(&mut self, node: &str, held: &BTreeMap<String, BTreeMap<u32, Held>>, followed: bool) {
        let now = Instant::now();
        let is_there = |(router, block): &Block| held.get(router).is_some_and(|of| of.contains_key(block));
        let own = self.told.iter().flat_map(|(router, blocks)| {
            blocks
                .iter()
                .filter(|(_, holder)| *holder == node)
                .map(move |(block, _)| (router.clone(), *block))
        });
        self.lost = own.filter(|block| !is_there(block) && !self.given_up.contains(block)).collect();
        if !self.lost.is_empty() {
            tracing::warn!(
                blocks = self.lost.len(),
                "etcd has lost leases of ports that this node has: they are leased again"
            );
        }
        if followed {
            self.not_before = now + SETTLE;
        }
        self.due = Some(now);
    }

    /// Tells whose blocks are whose of the routers that are for this node, if that has changed; whether it has.
    pub fn tell(
        &mut self,
        node: &str,
        held: &BTreeMap<String, BTreeMap<u32, Held>>,
        is_for_it: impl Fn(&str) -> bool,
    ) -> bool {
        let now = Instant::now();
        self.fresh.retain(|_, ready| *ready > now);
        self.given_up.retain(|(router, block)| {
            held.get(router).and_then(|of| of.get(block)).is_some_and(|held| held.node.as_deref() == Ok(node))
        });
        let mut holders = Holders::new();
        for (router, blocks) in held.iter().filter(|(router, _)| is_for_it(router)) {
            for (block, held) in blocks {
                let key = (router.clone(), *block);
                // One that cannot be read is somebody's, and nobody knows whose.
                let Ok(holder) = &held.node else { continue };
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
        if let Some((router, block)) = self.lost.pop_first() {
            let is_free = held.get(&router).is_none_or(|of| !of.contains_key(&block));
            self.due = Some(now);
            if is_free {
                return Some((router, Step::Take(block)));
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
    pub fn done(&mut self, router: &str, block: u32, is_taken: bool) {
        self.complaint = None;
        let key = (router.to_owned(), block);
        let is_known = self.told.get(router).is_some_and(|of| of.contains_key(&block));
        if is_taken && !is_known {
            self.fresh.insert(key, Instant::now() + UNUSED);
        }
    }

    /// It is returned: not to be used from here on.
    pub fn give_up(&mut self, router: &str, block: u32) {
        self.given_up.insert((router.to_owned(), block));
    }

    /// Another was quicker.
    pub fn lost(&mut self, router: &str, block: u32) {
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
