//! What nodes say of the members they check, shared by all.
//!
//! ```text
//! health/<node>/words   {"schema": 1, "down": {"web": {"m2": "HTTP 503 3 times"}}}
//! health/<node>/alive   with its agent's lease
//! ```
//!
//! Only members that are down are named: what is well costs nothing. The words outlive the agent, so that everybody,
//! also who starts later, knows that a node has spoken and is silent now. The lease is not returned when an agent ends
//! in order: one that starts again soon was never missed.
//!
//! A thread and a connection of its own, made when there is something to say or to hear. Whatever happens to it, what
//! was heard last counts.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use etcd_client::{EventType, PutOptions, Txn, TxnOp, WatchOptions, WatchStream};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    client::{Store, bounded, end_of, explained, is_denied},
    config::StoreConfig,
    follow::{BACKOFF, LEASE_RENEWAL, Lease, PROGRESS, jitter},
    keys::HealthKey,
    record::{SCHEMA, Unusable, versioned},
};

/// How long a node may be silent: an agent that starts again is to have its programs verified meanwhile, on a busy machine.
const LEASE_SECONDS: i64 = 15;
/// The shortest time between two words: what happens meanwhile is said at once.
const WORDS: Duration = Duration::from_millis(50);
/// How long to wait when this node's user may not do what is needed.
const DENIED: Duration = Duration::from_secs(60);

/// What a node says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    pub schema: u32,
    /// Why members are down, by pool and name.
    #[serde(default)]
    pub down: BTreeMap<String, BTreeMap<String, String>>,
}

/// What is known of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHealth {
    /// `None`: it has said nothing yet.
    pub words: Option<Words>,
    /// Whether its agent runs.
    pub alive: bool,
}

/// What is known, by node.
pub type Health = BTreeMap<String, NodeHealth>;

impl Default for Words {
    fn default() -> Self {
        Self { schema: SCHEMA, down: BTreeMap::new() }
    }
}

impl Words {
    /// Reads a value.
    pub fn read(value: &[u8]) -> Result<Self, Unusable> {
        versioned(value)
    }

    /// As they are written.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

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
            let follow = Follow { config, node, words, tell, known: Health::new() };
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
    known: Health,
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
        let mut said = known.get(&self.node).and_then(|it| it.words.clone());
        // Who did not hear of it for a while knows no better than those who did.
        self.known = known;
        self.tell();
        let mut stream = self.watch(&store, revision).await?;
        let mut lease = Lease::grant(&mut store, LEASE_SECONDS).await?;
        self.begin(&mut store, &lease, &mut said).await?;
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
                    let mut differs = false;
                    for event in message.events() {
                        differs |= self.take(store.keys(), event);
                    }
                    if differs {
                        self.tell();
                    }
                }
                changed = self.words.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.say(&mut store, &mut said).await?;
                    tokio::time::sleep(WORDS).await;
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

    /// Both keys at once: nobody is to take what was said before for what is so, nor this node for silent.
    async fn begin(&mut self, store: &mut Store, lease: &Lease, said: &mut Option<Words>) -> Result<()> {
        let words = self.words.borrow_and_update().clone();
        let [alive, key] =
            [HealthKey::Alive, HealthKey::Words].map(|key| store.keys().health(&self.node, key));
        let options = PutOptions::new().with_lease(lease.id());
        let mut puts = vec![TxnOp::put(alive, "{}", Some(options))];
        if said.as_ref() != Some(&words) {
            puts.push(TxnOp::put(key, words.bytes(), None));
        }
        bounded(store.client().txn(Txn::new().and_then(puts))).await.context("cannot write to etcd")?;
        *said = Some(words);
        Ok(())
    }

    async fn say(&mut self, store: &mut Store, said: &mut Option<Words>) -> Result<()> {
        let words = self.words.borrow_and_update().clone();
        if said.as_ref() != Some(&words) {
            let key = store.keys().health(&self.node, HealthKey::Words);
            bounded(store.client().put(key, words.bytes(), None)).await.context("cannot write to etcd")?;
            *said = Some(words);
        }
        Ok(())
    }

    /// Takes what happened to a key; whether it says anything new.
    fn take(&mut self, keys: &super::keys::Keys, event: &etcd_client::Event) -> bool {
        let Some(kv) = event.kv() else { return false };
        let value = (event.event_type() == EventType::Put).then(|| kv.value());
        note(keys, &mut self.known, kv.key(), value)
    }

    fn tell(&self) {
        let others: Health = self
            .known
            .iter()
            .filter(|(node, _)| **node != self.node)
            .map(|(node, health)| (node.clone(), health.clone()))
            .collect();
        self.tell.send_if_modified(|told| {
            let differs = **told != others;
            if differs {
                *told = Arc::new(others);
            }
            differs
        });
    }
}

/// Notes a key's value, or that it is gone; whether that is new.
pub(super) fn note(keys: &super::keys::Keys, health: &mut Health, key: &[u8], value: Option<&[u8]>) -> bool {
    let Some((node, key)) = keys.read_health(key) else { return false };
    let of = health.entry(node.clone()).or_default();
    let before = of.clone();
    match key {
        HealthKey::Alive => of.alive = value.is_some(),
        HealthKey::Words => match value.map(Words::read) {
            Some(Ok(words)) => of.words = Some(words),
            // What was said before counts.
            Some(Err(wrong)) => tracing::warn!(%node, "what it says of members' health is not used: {wrong}"),
            None => of.words = None,
        },
    }
    *of != before
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::keys::Keys;

    #[test]
    fn words_stay_when_their_node_is_gone_and_damaged_ones_are_not_taken() {
        let keys = Keys::new("/vrouter");
        let (alive, words) = (keys.health("a", HealthKey::Alive), keys.health("a", HealthKey::Words));
        let mut health = Health::new();
        let mut note = |key: &str, value: Option<&[u8]>| note(&keys, &mut health, key.as_bytes(), value);
        let said = br#"{"schema":1,"down":{"web":{"m2":"refused"}},"later":7}"#;
        assert!(note(&words, Some(said)) && !note(&words, Some(said)) && note(&alive, Some(b"{}")));
        for wrong in [&b"no"[..], br#"{"schema":9}"#, br#"{"schema":1,"down":[]}"#, b"[1,{}]"] {
            assert!(!note(&words, Some(wrong)));
        }
        assert!(note(&alive, None));
        assert!(!note("/vrouter/health/a", Some(b"{}")) && !note("/vrouter/health/a/b/words", Some(b"{}")));
        let down = BTreeMap::from([("m2".to_owned(), "refused".to_owned())]);
        let words = Words { down: BTreeMap::from([("web".to_owned(), down)]), ..Words::default() };
        assert_eq!(health, Health::from([("a".to_owned(), NodeHealth { words: Some(words), alive: false })]));
    }
}
