//! Keeps a node's view current, and tells etcd how the node is.
//!
//! A thread of its own: whatever etcd does, the agent goes on. Connections come and go; each begins with making sure
//! that what is known is what etcd has (by its head at that revision, or by comparing everything), then follows the
//! changes one revision after another. Nothing is ever forgotten because etcd cannot be reached.

mod cache;
mod leases;
mod mirror;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use etcd_client::{
    Compare, CompareOp, EventType, GetOptions, LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp,
    WatchOptions, WatchStream,
};
use serde::Serialize;
use tokio::sync::{mpsc, watch};

use super::{
    blocks::{Claims, Held, Holders, Lease as BlockLease, Step},
    client::{Store, bounded, end_of, explained, is_compacted, is_denied, is_other_history},
    config::StoreConfig,
    keys::ObjectName,
    report::{NodeState, PortState},
    view::{Assembled, View},
};
use crate::topology::{Kind, Problems, model::Topology};
use cache::Cache;
pub use leases::Leases;
use mirror::{Event, Mirror};

/// How long a node's state outlives its agent.
const LEASE_SECONDS: i64 = 10;
pub(super) const LEASE_RENEWAL: Duration = Duration::from_secs(3);
/// How long to wait after a failed connection, at first and at most.
pub(super) const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How often the member is asked how far it is, and how long it may say nothing.
pub(super) const PROGRESS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(15));
/// How often everything is compared with what etcd has, whatever was followed: about.
const COMPARISON: Duration = Duration::from_secs(600);
/// When a node tells that it has a change that is not for it, and for which nobody waits.
const LAZY: Duration = Duration::from_secs(5);
/// The shortest time between two states.
const STATES: Duration = Duration::from_millis(20);

/// What is followed, for whom.
pub struct Options {
    pub config: StoreConfig,
    pub node: String,
    /// The networks of the node's external interfaces; `None`: the topology's only one.
    pub externals: Vec<Option<String>>,
    /// Where the last good part is kept for the next start. `None`: nowhere.
    pub cache: Option<PathBuf>,
}

/// A new version of the node's part.
#[derive(Debug)]
pub struct News {
    /// The revision it is of.
    pub revision: i64,
    /// `None`: what is in force is to stay.
    pub topology: Option<Arc<Topology>>,
    /// What is left out, or stays as it was, and why.
    pub skipped: Problems,
    /// It is what the last agent had: etcd was not asked yet.
    pub remembered: bool,
}

/// What the agent has in force, for the others to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Of the last [`News`] that came in force.
    pub revision: i64,
    pub vtep: Option<String>,
    pub problems: Vec<String>,
    pub ports: Vec<PortState>,
}

/// How it stands between the agent and etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LinkState {
    /// The members that are asked.
    pub endpoints: Vec<String>,
    pub connected: bool,
    /// Why not.
    pub error: Option<String>,
    /// The last change that was seen.
    pub revision: i64,
    /// The revision of the last part of the topology that the agent was told.
    pub sent: i64,
    /// Objects etcd has.
    pub objects: usize,
    /// Seconds since 1970 when it was connected or lost last.
    pub since: u64,
    /// Times everything had to be compared.
    pub comparisons: u64,
}

impl LinkState {
    /// The revision in force, if this is the one of the last part that came in force: changes after it that are not
    /// for this node are, too.
    pub fn in_force(&self, applied: i64) -> i64 {
        if applied < self.sent || self.revision == 0 { applied } else { self.revision }
    }
}

/// The same, always current.
#[derive(Clone, Debug, Default)]
pub struct Link(Arc<Mutex<LinkState>>);

impl Link {
    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it is now.
    pub fn state(&self) -> LinkState {
        self.lock().clone()
    }
}

/// Follows, in a thread of its own.
pub struct Follower {
    pub news: mpsc::UnboundedReceiver<News>,
    /// To be kept current.
    pub report: watch::Sender<Report>,
    /// What this node needs of routers' ports; to be kept current.
    pub claims: watch::Sender<Claims>,
    /// Whose they are, as far as it concerns this node.
    pub holders: watch::Receiver<Arc<Holders>>,
    link: Link,
}

impl Follower {
    /// Starts, in the network namespace of the calling thread.
    pub fn start(options: Options) -> Result<Self> {
        let (tell, news) = mpsc::unbounded_channel();
        let (report, reports) = watch::channel(Report::default());
        let (claims, claimed) = watch::channel(Claims::default());
        let (tell_holders, holders) = watch::channel(Arc::default());
        let link = LinkState { endpoints: options.config.endpoints.clone(), ..LinkState::default() };
        let link = Link(Arc::new(Mutex::new(link)));
        let shared = link.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                let leases = Leases::new(claimed, tell_holders);
                let follow = Follow::new(options, tell, reports, leases, shared);
                runtime.block_on(follow.run());
            })
            .context("cannot start the thread that follows etcd")?;
        Ok(Self { news, report, claims, holders, link })
    }

    /// How it stands with etcd.
    pub fn link(&self) -> Link {
        self.link.clone()
    }
}

/// Whether etcd is what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum History {
    /// It had then what is known of then.
    Same,
    /// It had something else: a backup was restored.
    Other,
    /// Nothing is known, or etcd knows no more.
    Unknown,
}

/// The follower's own side.
pub struct Follow {
    options: Options,
    tell: mpsc::UnboundedSender<News>,
    reports: watch::Receiver<Report>,
    leases: Leases,
    link: Link,
    view: View,
    mirror: Mirror,
    cache: Cache,
    /// The revision of what the last agent had.
    remembered: i64,
    /// What others were told last, and when.
    told: Option<NodeState>,
    told_at: Instant,
    /// When they are to be told again.
    tell_at: Option<Instant>,
    started: u64,
}

impl Follow {
    /// Ready to [`run`](Self::run).
    pub fn new(
        options: Options,
        tell: mpsc::UnboundedSender<News>,
        reports: watch::Receiver<Report>,
        leases: Leases,
        link: Link,
    ) -> Self {
        let view = View::new(&options.node, options.externals.clone());
        let mirror = Mirror::new(options.config.keys.clone());
        let cache = Cache::new(options.cache.clone());
        let told_at = Instant::now();
        Self {
            options,
            tell,
            reports,
            leases,
            link,
            view,
            mirror,
            cache,
            remembered: 0,
            told: None,
            told_at,
            tell_at: None,
            started: now(),
        }
    }

    /// Until nobody wants the news any more.
    pub async fn run(mut self) {
        self.recall();
        let mut backoff = BACKOFF.0;
        let mut complaint = String::new();
        while !self.tell.is_closed() {
            let started = Instant::now();
            let outcome = self.session().await;
            if self.tell.is_closed() {
                return;
            }
            let Err(error) = outcome else { continue };
            let error = format!("{error:#}");
            if error != complaint {
                tracing::warn!("{error}; what is in force stays in force, and it is tried again");
                complaint.clone_from(&error);
            }
            self.lost(error);
            if started.elapsed() > BACKOFF.1 {
                (backoff, complaint) = (BACKOFF.0, String::new());
            }
            // Not all nodes at once.
            tokio::time::sleep(backoff.mul_f64(0.5 + jitter(&self.options.node))).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// What the last agent on this node had in force.
    fn recall(&mut self) {
        let Some(remembered) = self.cache.load() else { return };
        for (name, raw) in &remembered.objects {
            self.view.remember(name.clone(), raw);
        }
        self.view.apply(remembered.bindings);
        self.remembered = remembered.revision;
        self.leases.remember(remembered.blocks);
        if let Some(Assembled { topology: Some(topology), .. }) = self.view.assemble() {
            let news = News {
                revision: remembered.revision,
                topology: Some(topology),
                skipped: Problems::new("etcd"),
                remembered: true,
            };
            tracing::info!(
                revision = remembered.revision,
                "until etcd answers, the topology is what the last agent had in force"
            );
            drop(self.tell.send(news));
        }
    }

    /// One connection, until it fails.
    async fn session(&mut self) -> Result<()> {
        let mut store = Store::connect(&self.options.config).await?;
        self.catch_up(&mut store).await?;
        let mut stream = self.watch(&store).await?;
        self.connected();
        self.assemble();
        self.tell_holders();
        let mut lease = Lease::grant(&mut store, LEASE_SECONDS).await?;
        self.told = None;
        self.tell_at = Some(Instant::now());
        let mut renewal = tokio::time::interval(LEASE_RENEWAL);
        let mut progress = tokio::time::interval(PROGRESS.0);
        let compare_after = COMPARISON.mul_f64(0.5 + jitter(&self.options.node));
        let compare_at = tokio::time::Instant::now() + compare_after;
        let mut heard = Instant::now();
        loop {
            let tell_at = self.tell_at.map(|at| at.max(self.told_at + STATES));
            let lease_at = self.leases.due();
            tokio::select! {
                message = stream.message() => {
                    heard = Instant::now();
                    let Some(message) = message.map_err(explained)? else { bail!("the watch ended") };
                    if message.compact_revision() > 0 {
                        self.mirror.doubt();
                        bail!("what changed meanwhile was compacted away: everything is compared");
                    }
                    if message.canceled() {
                        bail!("the watch was cancelled: {}", message.cancel_reason());
                    }
                    let events = message.events().iter().filter_map(event).collect();
                    self.take(events);
                }
                changed = self.reports.changed() => {
                    if changed.is_err() {
                        // The agent ends in order.
                        lease.revoke(&mut store).await;
                        return Ok(());
                    }
                    self.tell_at = Some(Instant::now());
                }
                () = self.leases.changed() => {}
                () = until(lease_at) => self.lease_blocks(&mut store).await?,
                () = until(tell_at) => self.publish(&mut store, &lease).await?,
                _ = renewal.tick() => lease.renew().await?,
                _ = progress.tick() => {
                    if heard.elapsed() > PROGRESS.1 {
                        bail!("the watch says nothing any more");
                    }
                    stream.request_progress().await.map_err(explained)?;
                    self.write_cache();
                }
                () = tokio::time::sleep_until(compare_at) => {
                    // A new connection compares.
                    self.mirror.doubt();
                    return Ok(());
                }
                () = self.tell.closed() => {
                    lease.revoke(&mut store).await;
                    return Ok(());
                }
            }
        }
    }

    /// Makes sure that what is known is what etcd had at that revision, or reads everything and takes what differs.
    async fn catch_up(&mut self, store: &mut Store) -> Result<()> {
        let history = self.history(store).await?;
        if self.mirror.is_sure() && history == History::Same {
            return Ok(());
        }
        let snapshot = store.snapshot().await?;
        let (known, head) = (self.mirror.revision().max(self.remembered), self.mirror.head_revision());
        let changes = self.mirror.compare(&snapshot, &self.view);
        let went_back = match history {
            History::Same => false,
            History::Other => true,
            History::Unknown => {
                snapshot.revision < known
                    || self.mirror.head_revision() < head
                    || self.leases.misses(self.mirror.blocks())
            }
        };
        self.leases.compared(&self.options.node, self.mirror.blocks(), went_back);
        let (revision, differ) = (snapshot.revision, changes.len());
        self.view.apply(changes);
        let mut link = self.link.lock();
        link.comparisons += 1;
        drop(link);
        tracing::info!(revision, differ, went_back, objects = self.view.len(), "compared with etcd");
        Ok(())
    }

    /// Whether etcd's history leads on from what is known: a cluster that was restored from a backup has another. The
    /// head and the leases tell: whatever else is written changes the head, too.
    async fn history(&mut self, store: &mut Store) -> Result<History> {
        let revision = self.mirror.revision();
        if revision == 0 {
            return Ok(History::Unknown);
        }
        let (head, blocks) = (store.keys().head(), store.keys().blocks());
        let then = GetOptions::new().with_revision(revision);
        let leases = then.clone().with_range(end_of(&blocks)).with_keys_only();
        let (mut kv, mut of_leases) = (store.kv(), store.kv());
        let answers =
            tokio::try_join!(bounded(kv.get(head, Some(then))), bounded(of_leases.get(blocks, Some(leases))));
        let (head, leases) = match answers {
            Ok(answers) => answers,
            Err(error) if is_compacted(&error) => return Ok(History::Unknown),
            // Of the future: etcd is behind what is known.
            Err(error) if is_other_history(&error) => return Ok(History::Other),
            Err(error) => return Err(error),
        };
        let has_head = self.mirror.has_head(head.kvs().first().map(etcd_client::KeyValue::value));
        let leases = leases.kvs().iter().map(|kv| (kv.key(), kv.mod_revision()));
        Ok(if has_head && self.mirror.has_leases(leases) { History::Same } else { History::Other })
    }

    async fn watch(&self, store: &Store) -> Result<WatchStream> {
        let prefix = store.keys().config().to_owned();
        let options =
            WatchOptions::new().with_range(end_of(&prefix)).with_start_revision(self.mirror.revision() + 1);
        bounded(store.watcher().watch(prefix, Some(options)))
            .await
            .context("cannot watch the topology in etcd")
    }

    /// Takes what a message of the watch says, revision by revision.
    fn take(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let mut by_revision: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
        for event in events {
            by_revision.entry(event.revision).or_default().push(event);
        }
        let mut urgent = false;
        for (revision, events) in by_revision {
            urgent |= self.mirror.take(revision, events, &mut self.view);
        }
        let concerned = self.assemble();
        self.tell_holders();
        let at = if concerned || urgent {
            Instant::now()
        } else {
            Instant::now() + LAZY.mul_f64(jitter(&self.options.node))
        };
        self.tell_at = Some(self.tell_at.map_or(at, |before| before.min(at)));
        let mut link = self.link.lock();
        (link.revision, link.objects) = (self.mirror.seen(), self.view.len());
    }

    /// Tells the agent, if there is anything new for it; whether there was.
    fn assemble(&mut self) -> bool {
        if let Some(why) = self.mirror.unusable() {
            // Afterwards the agent is to hear that all is well again.
            self.view.look_again();
            let mut skipped = Problems::new("etcd");
            skipped.push(0, "the topology", why, "what is in force stays in force until it can be read");
            drop(self.tell.send(News {
                revision: self.mirror.seen(),
                topology: None,
                skipped,
                remembered: false,
            }));
            return true;
        }
        let Some(Assembled { topology, skipped }) = self.view.assemble() else { return false };
        if topology.is_some() {
            let mut link = self.link.lock();
            (link.revision, link.sent) = (self.mirror.seen(), self.mirror.seen());
            drop(link);
            self.cache.mark();
        }
        // Before it: what is compiled of a topology has to know whose ports are whose.
        self.tell_holders();
        drop(self.tell.send(News { revision: self.mirror.seen(), topology, skipped, remembered: false }));
        true
    }

    /// Tells the others how this node is.
    async fn publish(&mut self, store: &mut Store, lease: &Lease) -> Result<()> {
        self.tell_at = None;
        let report = self.reports.borrow_and_update().clone();
        let seen = self.mirror.seen();
        let in_force = {
            let mut link = self.link.lock();
            link.revision = seen;
            link.in_force(report.revision)
        };
        let (ports, missing): (Vec<_>, Vec<_>) = report.ports.into_iter().partition(|port| port.up);
        let ports_missing = u32::try_from(missing.len()).unwrap_or(u32::MAX);
        let state = NodeState {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            wanted: seen,
            in_force,
            vtep: report.vtep,
            health: if report.problems.is_empty() { "ok" } else { "degraded" }.to_owned(),
            problems: report.problems,
            ports: ports.into_iter().chain(missing).collect(),
            ports_missing,
            started: self.started,
        };
        if self.told.as_ref() == Some(&state) {
            return Ok(());
        }
        let key = store.keys().state(&self.options.node);
        let options = PutOptions::new().with_lease(lease.id);
        bounded(store.client().put(key, state.bytes(), Some(options)))
            .await
            .context("cannot tell etcd how this node is")?;
        self.told = Some(state);
        self.told_at = Instant::now();
        self.write_cache();
        Ok(())
    }

    fn write_cache(&mut self) {
        self.cache.write_if_due(self.mirror.revision(), &self.view, self.leases.told());
    }

    /// Tells the agent whose ports are whose, of the routers in its part.
    fn tell_holders(&mut self) {
        let is_for_it = |router: &str| self.view.has(&ObjectName::new(Kind::Router, router));
        if self.leases.tell(&self.options.node, self.mirror.blocks(), is_for_it) {
            self.cache.hurry();
            self.write_cache();
        }
    }

    /// Takes and returns blocks of ports, one at a time.
    async fn lease_blocks(&mut self, store: &mut Store) -> Result<()> {
        let view = &self.view;
        let is_gone = |node: &str| !view.has_any(&ObjectName::new(Kind::Node, node));
        let Some((router, step)) = self.leases.next(&self.options.node, self.mirror.blocks(), is_gone) else {
            // What was new may be used by now.
            self.tell_holders();
            return Ok(());
        };
        let node = self.options.node.clone();
        let put = |key: &str| TxnOp::put(key, BlockLease::new(&node).bytes(), None);
        let (block, transaction) = match step {
            Step::Take(block) => {
                let key = store.keys().block(&router, block);
                let when = [Compare::create_revision(key.as_str(), CompareOp::Equal, 0)];
                (block, Txn::new().when(when).and_then([put(&key)]))
            }
            Step::TakeOver(block, revision) => {
                let (key, head) = (store.keys().block(&router, block), store.keys().head());
                let when = [
                    Compare::mod_revision(key.as_str(), CompareOp::Equal, revision),
                    // That the node is gone is known of this topology.
                    Compare::mod_revision(head, CompareOp::Equal, self.mirror.head_revision()),
                ];
                (block, Txn::new().when(when).and_then([put(&key)]))
            }
            Step::Return(block, revision) => {
                let key = store.keys().block(&router, block);
                let when = [Compare::mod_revision(key.as_str(), CompareOp::Equal, revision)];
                // From here on it is not this node's, whatever is heard of the transaction, also after a restart.
                self.leases.give_up(&router, block);
                self.tell_holders();
                (block, Txn::new().when(when).and_then([TxnOp::delete(key, None)]))
            }
        };
        match bounded(store.client().txn(transaction)).await {
            Ok(answer) => {
                let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
                let done = answer.succeeded();
                tracing::info!(%router, block, ?step, done, "ports of a router's address");
                if done {
                    let held = matches!(step, Step::Take(_) | Step::TakeOver(..))
                        .then(|| Held { node: Ok(node), revision });
                    self.leases.done(&self.options.node, &router, block, held.is_some());
                    self.mirror.wrote_block(router, block, held, revision);
                } else {
                    self.leases.failed(&router, block);
                }
                self.tell_holders();
                Ok(())
            }
            Err(error) if is_denied(&error) => {
                self.leases.denied(&error);
                Ok(())
            }
            Err(error) => Err(error).context("cannot lease ports of a router's address"),
        }
    }

    fn connected(&mut self) {
        let mut link = self.link.lock();
        (link.connected, link.error, link.since) = (true, None, now());
        (link.revision, link.objects) = (self.mirror.seen(), self.view.len());
        tracing::info!(revision = link.revision, objects = link.objects, "following etcd");
    }

    fn lost(&mut self, error: String) {
        let mut link = self.link.lock();
        if link.connected {
            link.since = now();
        }
        (link.connected, link.error) = (false, Some(error));
    }
}

fn event(event: &etcd_client::Event) -> Option<Event> {
    let kv = event.kv()?;
    let value = (event.event_type() == EventType::Put).then(|| kv.value().to_vec());
    Some(Event { key: kv.key().to_vec(), value, revision: kv.mod_revision() })
}

/// Never, without a time.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// From 0 to 1: another number each time, and other ones on other nodes.
pub(super) fn jitter(node: &str) -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    let hash = RandomState::new().hash_one(node);
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What ends with the agent.
pub(super) struct Lease {
    id: i64,
    keeper: LeaseKeeper,
    stream: LeaseKeepAliveStream,
}

impl Lease {
    pub(super) async fn grant(store: &mut Store, seconds: i64) -> Result<Self> {
        let context = "cannot get a lease from etcd";
        let id = bounded(store.client().lease_grant(seconds, None)).await.context(context)?.id();
        let (keeper, stream) = bounded(store.client().lease_keep_alive(id)).await.context(context)?;
        Ok(Self { id, keeper, stream })
    }

    pub(super) fn id(&self) -> i64 {
        self.id
    }

    pub(super) async fn renew(&mut self) -> Result<()> {
        let context = "cannot renew the lease";
        bounded(self.keeper.keep_alive()).await.context(context)?;
        match bounded(self.stream.message()).await.context(context)? {
            Some(answer) if answer.ttl() > 0 => Ok(()),
            _ => bail!("the lease ran out"),
        }
    }

    /// A failure is of no consequence: it runs out.
    async fn revoke(&self, store: &mut Store) {
        drop(bounded(store.client().lease_revoke(self.id)).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_others_is_in_force_once_what_is_for_this_node_is() {
        let link = |revision, sent| LinkState { revision, sent, ..LinkState::default() };
        assert_eq!(link(9, 5).in_force(5), 9, "6 to 9 are for others");
        assert_eq!(link(9, 9).in_force(5), 5, "9 is for this node, and is not in force");
        assert_eq!(link(9, 0).in_force(5), 9, "what was remembered is what etcd has");
        assert_eq!(link(0, 0).in_force(5), 5, "etcd was not asked yet");
    }
}
