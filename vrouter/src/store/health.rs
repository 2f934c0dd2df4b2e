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
/// How long to wait when this node's user may not do what is needed.
const DENIED: Duration = Duration::from_secs(60);

/// Starts to say `words` for `node`, and to tell what the others say, in the network namespace of the calling thread.
pub fn start(
    config: StoreConfig,
    node: String,
    words: watch::Receiver<Words>,
    tell: watch::Sender<Arc<Health>>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
    std::thread::Builder::new()
        .name("health-store".to_owned())
        .spawn(move || {
            let (known, health) = (BTreeMap::new(), Health::new());
            let follow = Follow { config, node, words, tell, known, health };
            runtime.block_on(follow.run());
        })
        .context("cannot start the thread that shares members' health")?;
    Ok(())
}

/// Its own side.
struct Follow {
    config: StoreConfig,
    node: String,
    words: watch::Receiver<Words>,
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
        // Who did not hear of it for a while knows no better than those who did.
        self.health.clear();
        let nodes = known.keys().cloned().collect();
        self.known = known;
        self.tell(&nodes);
        let mut stream = self.watch(&store, revision).await?;
        let mut lease = Lease::grant(&mut store, LEASE_SECONDS).await?;
        let mut quiet = self.say(&mut store, &mut lease, &mut said, true).await?;
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
                changed = next(&mut self.words, quiet) => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    quiet = self.say(&mut store, &mut lease, &mut said, false).await?;
                }
                _ = renewal.tick() => lease.renew().await?,
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

    /// Says what there is to say, and, if it `begins`, that this node is there; when there may be more.
    async fn say(
        &mut self,
        store: &mut Store,
        lease: &mut Lease,
        said: &mut Kept,
        begins: bool,
    ) -> Result<Instant> {
        let wanted = Kept::of(&self.words.borrow_and_update(), said);
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

/// Waits for something to say, and until it may be said.
async fn next(words: &mut watch::Receiver<Words>, quiet: Instant) -> Result<(), watch::error::RecvError> {
    tokio::time::sleep_until(quiet.into()).await;
    words.changed().await
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
