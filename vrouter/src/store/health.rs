//! What nodes say of the members they check, shared by all.
//!
//! ```text
//! health/<node>/words          {"schema": 1, "down": {"web": {"m2": "HTTP 503 3 times"}}}
//! health/<node>/words/<part>   the same, if there is much to say
//! health/<node>/alive          with its agent's lease
//! ```
//!
//! Only members that are down are named: what is well costs nothing. How much that is not is kept, `health/words.rs` says.
//! Words outlive the agent, so that everybody, also who starts later, knows that a node has spoken and is silent now. The
//! lease is not returned when an agent ends in order: one that starts again soon was never missed.
//!
//! A node says that it is there when it checks what is in force ([`Own`]). One whose data path an earlier agent left, and
//! which carries what comes, says so at once, with what was said last, and has a while to come to it.
//!
//! A thread and a connection of its own, made when there is something to say or to hear. Whatever happens to it, what
//! was heard last counts.

mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use etcd_client::{EventType, PutOptions, Txn, TxnOp, WatchOptions, WatchStream};
use tokio::sync::watch;

use super::{
    client::{Store, bounded, end_of, explained, is_denied},
    config::StoreConfig,
    follow::{BACKOFF, LEASE_RENEWAL, Lease, PROGRESS, jitter},
    keys::{HealthKey, Keys},
};
pub(super) use words::Kept;
pub use words::{Health, NodeHealth, Words};

/// How long a node may be silent: an agent that starts again is to have its programs verified meanwhile, on a busy machine.
const LEASE_SECONDS: i64 = 15;
/// The shortest time between two words: what happens meanwhile is said at once.
const WORDS: Duration = Duration::from_millis(50);
/// Bytes of words in a second, in the long run: etcd keeps all of them for a while, and every node hears them.
const PACE: f64 = 2e6;
/// How long an agent that starts speaks for the data path it found in force, without checking anything yet.
const UNCHECKED: Duration = Duration::from_secs(60);
/// How long to wait when this node's user may not do what is needed.
const DENIED: Duration = Duration::from_secs(60);

/// What a node has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    pub words: Words,
    /// What the node said last is in them: till then they replace nothing.
    pub is_remembered: bool,
    /// They are of the members of what is in force.
    pub is_checked: bool,
}

/// Starts to say what there is to say for `node`, and to tell what the others say, in the network namespace of the calling
/// thread. `is_in_force`: an earlier agent's data path carries what comes. `recall`: whom to tell what the node said last,
/// if that is not remembered.
pub fn start(
    config: StoreConfig,
    node: String,
    is_in_force: bool,
    own: watch::Receiver<Own>,
    recall: watch::Sender<Option<Words>>,
    tell: watch::Sender<Arc<Health>>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
    std::thread::Builder::new()
        .name("health-store".to_owned())
        .spawn(move || {
            let (known, health) = (BTreeMap::new(), Health::new());
            let unchecked = is_in_force.then(|| Instant::now() + UNCHECKED);
            let follow = Follow { config, node, unchecked, own, recall, tell, known, health };
            runtime.block_on(follow.run());
        })
        .context("cannot start the thread that shares members' health")?;
    Ok(())
}

/// Its own side.
struct Follow {
    config: StoreConfig,
    node: String,
    /// Till when it may speak without checking.
    unchecked: Option<Instant>,
    own: watch::Receiver<Own>,
    recall: watch::Sender<Option<Words>>,
    tell: watch::Sender<Arc<Health>>,
    /// What is in etcd, by node.
    known: BTreeMap<String, Kept>,
    /// What that says of the others.
    health: Health,
}

impl Follow {
    /// Until the agent ends.
    async fn run(mut self) {
        let mut backoff = BACKOFF.0;
        let mut complaint = String::new();
        while !self.tell.is_closed() {
            let started = Instant::now();
            let Err(error) = self.session().await else { return };
            let denied = is_denied(&error);
            let mut text = format!("{error:#}");
            if denied {
                text += "; run `packaging/etcd/roles.sh init` and `roles.sh node` for this node again";
            }
            if text != complaint {
                tracing::warn!("members' health is not shared: {text}; what was heard last counts");
                complaint = text;
            }
            if started.elapsed() > BACKOFF.1 {
                (backoff, complaint) = (BACKOFF.0, String::new());
            }
            let pause = if denied { DENIED } else { backoff };
            tokio::time::sleep(pause.mul_f64(0.5 + jitter(&self.node))).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// One connection; ends well only with the agent.
    async fn session(&mut self) -> Result<()> {
        let mut store = Store::connect(&self.config).await?;
        let (revision, known) = store.health().await?;
        let mut said = known.get(&self.node).cloned().unwrap_or_default();
        if !self.own.borrow().is_remembered {
            self.recall.send_replace(Some(said.health().words.unwrap_or_default()));
        }
        // Who did not hear of it for a while knows no better than those who did.
        self.health.clear();
        let nodes = known.keys().cloned().collect();
        self.known = known;
        self.tell(&nodes);
        let mut stream = self.watch(&store, revision).await?;
        let mut lease = None;
        let mut quiet = self.say(&mut store, &mut lease, &mut said).await?;
        let mut renewal = tokio::time::interval(LEASE_RENEWAL);
        let mut progress = tokio::time::interval(PROGRESS.0);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                message = stream.message() => {
                    heard = Instant::now();
                    let Some(message) = message.map_err(explained)? else { bail!("the watch ended") };
                    if message.canceled() || message.compact_revision() > 0 {
                        bail!("the watch was cancelled: {}", message.cancel_reason());
                    }
                    let events = message.events().iter();
                    let nodes: BTreeSet<String> =
                        events.filter_map(|event| self.take(store.keys(), event)).collect();
                    self.tell(&nodes);
                }
                changed = next(&mut self.own, quiet) => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    quiet = self.say(&mut store, &mut lease, &mut said).await?;
                }
                _ = renewal.tick() => match &mut lease {
                    Some(lease) if self.may_speak() => lease.renew().await?,
                    // What is left of it runs out; whoever speaks again begins anew.
                    _ => lease = None,
                },
                _ = progress.tick() => {
                    if heard.elapsed() > PROGRESS.1 {
                        bail!("the watch says nothing any more");
                    }
                    stream.request_progress().await.map_err(explained)?;
                }
                () = self.tell.closed() => return Ok(()),
            }
        }
    }

    async fn watch(&self, store: &Store, revision: i64) -> Result<WatchStream> {
        let prefix = store.keys().healths().to_owned();
        let options = WatchOptions::new().with_range(end_of(&prefix)).with_start_revision(revision + 1);
        bounded(store.watcher().watch(prefix, Some(options))).await.context("cannot watch etcd")
    }

    fn may_speak(&self) -> bool {
        may_speak(&self.own.borrow(), self.unchecked, Instant::now())
    }

    /// Says what there is to say, and, without a `lease`, that this node is there; when there may be more.
    async fn say(
        &mut self,
        store: &mut Store,
        lease: &mut Option<Lease>,
        said: &mut Kept,
    ) -> Result<Instant> {
        let own = self.own.borrow_and_update().clone();
        if !may_speak(&own, self.unchecked, Instant::now()) {
            return Ok(Instant::now() + WORDS);
        }
        let wanted = wanted(&own, said);
        let begins = lease.is_none();
        let lease = match lease {
            Some(lease) => lease,
            None => lease.insert(Lease::grant(store, LEASE_SECONDS).await?),
        };
        let steps = said.steps(&wanted, begins);
        let pause =
            WORDS + Duration::from_secs_f64(steps.iter().map(words::bytes).sum::<usize>() as f64 / PACE);
        for (number, step) in steps.into_iter().enumerate() {
            if number > 0 {
                // There may be many.
                lease.renew().await?;
            }
            let operations = step.into_iter().map(|(key, value)| {
                let name = store.keys().health(&self.node, key);
                let lease = (key == HealthKey::Alive).then(|| PutOptions::new().with_lease(lease.id()));
                match value {
                    Some(value) => TxnOp::put(name, value, lease),
                    None => TxnOp::delete(name, None),
                }
            });
            let txn = Txn::new().and_then(operations.collect::<Vec<_>>());
            bounded(store.client().txn(txn)).await.context("cannot write to etcd")?;
        }
        *said = wanted;
        Ok(Instant::now() + pause)
    }

    /// Takes what happened to a key; of which node it says anything new.
    fn take(&mut self, keys: &Keys, event: &etcd_client::Event) -> Option<String> {
        let kv = event.kv()?;
        let value = (event.event_type() == EventType::Put).then(|| kv.value());
        note(keys, &mut self.known, kv.key(), value)
    }

    /// Tells what is known, of which that of these nodes may be new.
    fn tell(&mut self, nodes: &BTreeSet<String>) {
        for node in nodes.iter().filter(|node| **node != self.node) {
            let health = self.known.get(node).map(Kept::health).unwrap_or_default();
            self.health.insert(node.clone(), health);
        }
        self.tell.send_if_modified(|told| {
            let differs = **told != self.health;
            if differs {
                *told = Arc::new(self.health.clone());
            }
            differs
        });
    }
}

/// Whether a node may say that it is there; `unchecked`: till when it may without checking.
fn may_speak(own: &Own, unchecked: Option<Instant>, now: Instant) -> bool {
    own.is_checked && own.is_remembered || unchecked.is_some_and(|until| now < until)
}

/// What is to be kept of a node that speaks. What it said last is not replaced by who does not know of it.
fn wanted(own: &Own, said: &Kept) -> Kept {
    if own.is_remembered { Kept::of(&own.words, said) } else { said.clone() }
}

/// Waits for something to say, and until it may be said.
async fn next(own: &mut watch::Receiver<Own>, quiet: Instant) -> Result<(), watch::error::RecvError> {
    tokio::time::sleep_until(quiet.into()).await;
    own.changed().await
}

/// Notes a key's value, or that it is gone; of which node that may be new.
pub(super) fn note(
    keys: &Keys,
    known: &mut BTreeMap<String, Kept>,
    key: &[u8],
    value: Option<&[u8]>,
) -> Option<String> {
    let (node, key) = keys.read_health(key)?;
    if let Err(wrong) = known.entry(node.clone()).or_default().note(key, value) {
        tracing::warn!(%node, "what it says of members' health is not used: {wrong}");
        return None;
    }
    Some(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::keys::Keys;

    /// Or others would send to members that a node, back from a reboot, does not reach yet, or knows to be down.
    #[test]
    fn a_node_is_there_when_it_checks_what_is_in_force_and_knows_what_it_said() {
        let down = BTreeMap::from([("m2".to_owned(), "refused".to_owned())]);
        let words = Words { down: BTreeMap::from([("web".to_owned(), down)]), ..Words::default() };
        let said = Kept::of(&words, &Kept::default());
        let now = Instant::now();
        let own = |is_remembered, is_checked| Own { is_remembered, is_checked, ..Own::default() };
        for (is_remembered, is_checked) in [(false, false), (false, true), (true, false), (true, true)] {
            let own = own(is_remembered, is_checked);
            let may = [None, Some(now), Some(now + UNCHECKED)].map(|until| may_speak(&own, until, now));
            let always = is_remembered && is_checked;
            assert_eq!(may, [always, always, true], "{own:?}");
            let steps = said.steps(&wanted(&own, &said), true);
            let keys: Vec<HealthKey> = steps.iter().flatten().map(|(key, _)| *key).collect();
            let words = is_remembered.then_some(HealthKey::Words);
            assert_eq!(keys, [HealthKey::Alive].into_iter().chain(words).collect::<Vec<_>>(), "{own:?}");
        }
        // One that never spoke.
        let first = Kept::default();
        assert_eq!(first.steps(&wanted(&own(true, true), &first), true).concat().len(), 2);
    }

    #[test]
    fn words_stay_when_their_node_is_gone_and_damaged_ones_are_not_taken() {
        let keys = Keys::new("/vrouter");
        let (alive, words) = (keys.health("a", HealthKey::Alive), keys.health("a", HealthKey::Words));
        let mut known = BTreeMap::new();
        let mut note =
            |key: &str, value: Option<&[u8]>| note(&keys, &mut known, key.as_bytes(), value).is_some();
        let said = br#"{"schema":1,"down":{"web":{"m2":"refused"}},"later":7}"#;
        assert!(note(&words, Some(said)) && note(&alive, Some(b"{}")));
        for wrong in [&b"no"[..], br#"{"schema":9}"#, br#"{"schema":1,"down":[]}"#, b"[1,{}]"] {
            assert!(!note(&words, Some(wrong)));
        }
        assert!(note(&alive, None));
        assert!(!note("/vrouter/health/a", Some(b"{}")) && !note("/vrouter/health/a/b/words", Some(b"{}")));
        let health: Health = known.into_iter().map(|(node, kept)| (node, kept.health())).collect();
        let down = BTreeMap::from([("m2".to_owned(), "refused".to_owned())]);
        let words = Words { down: BTreeMap::from([("web".to_owned(), down)]), ..Words::default() };
        assert_eq!(health, Health::from([("a".to_owned(), NodeHealth { words: Some(words), alive: false })]));
    }
}
