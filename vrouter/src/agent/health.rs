//! The health of members of pools: this node checks those behind its own ports, and hears of the others by etcd.
//!
//! A thread of its own, so that checks begin and end in time whatever else the agent does. It is told which members are
//! this node's ([`Health::follow`]) and given what they answer ([`Health::ear`]); it tells what is down. There is no
//! leader: whoever hosts a member knows first, and nobody else can tell a dead workload from a broken way to it.
//!
//! | module | does |
//! |---|---|
//! | [`machine`] | a member's state: rise and fall, when it is checked |
//! | [`probe`] | one check: what is sent, what an answer means |
//! | [`checker`] | all members: whose turn it is, whose answer a frame is |
//! | [`service`] | hands over what members answer |
//! | [`shared`] | what is known of all members, from what the nodes say |
//! | [`memory`] | what was known last, for the next agent |

pub mod checker;
pub mod machine;
pub mod memory;
pub mod probe;
pub mod service;
pub mod shared;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};

use checker::Checker;
pub use checker::MemberStatus;
use memory::Memory;
use shared::{Index, Spoken};

use super::services::FrameSender;
use crate::{
    compile::{MemberHealth, MonitoredMember},
    config::AgentConfig,
    store::{
        StoreConfig,
        health::{self, Own, Words},
    },
    topology::model::Topology,
};

/// Frames that wait for the thread. What does not fit is repeated by whoever sent it.
const WAITING: usize = 4096;
/// How often the status is renewed.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);

/// How it goes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HealthStatus {
    /// The members this node checks.
    pub members: Vec<MemberStatus>,
    /// Members of other nodes that are not up, as their nodes say.
    pub others: Vec<OtherStatus>,
    /// Frames that could not be sent.
    pub unsent: u64,
}

/// A member that another node checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OtherStatus {
    pub pool: String,
    pub member: String,
    pub node: String,
    /// `down`, or `lost`: its node is silent.
    pub state: MemberHealth,
    pub reason: Option<String>,
}

/// Who is told how it goes.
pub type Tell = Arc<dyn Fn(Vec<MemberStatus>, u64) + Send + Sync>;

/// A frame that a port sent to a service of this node: the interface's number, and the frame.
pub type Frame = (u32, Vec<u8>);

/// The thread, from outside.
pub struct Health {
    node: String,
    store: Option<StoreConfig>,
    memory: Memory,
    /// `None`: not known yet.
    wanted: watch::Sender<Option<Arc<Vec<MonitoredMember>>>>,
    frames: mpsc::Sender<Frame>,
    own: watch::Receiver<Own>,
    others: watch::Receiver<Arc<health::Health>>,
    /// The thread that shares, as long as it was not needed.
    share: Option<Share>,
    /// Of the members of which something is said.
    index: Index,
    not_up: BTreeMap<shared::MemberName, MemberHealth>,
}

/// What the thread that shares is started with.
struct Share {
    others: watch::Sender<Arc<health::Health>>,
    /// What this node said last, if it has to be asked for.
    recall: watch::Sender<Option<Words>>,
    /// An earlier agent's data path is in force.
    is_in_force: bool,
}

impl Health {
    /// Starts to check. `memory`: the file where what is known is kept for the next agent. `is_in_force`: the data path of
    /// an earlier agent carries what comes.
    pub fn start(config: &AgentConfig, memory: PathBuf, is_in_force: bool, tell: Tell) -> Result<Self> {
        let memory = Memory::new(memory);
        let mut known = memory.load();
        let remembered = known.remove(&config.node).and_then(|it| it.words);
        let is_remembered = remembered.is_some();
        let words = remembered.unwrap_or_default();
        let checker = Checker::new(words.clone());
        let (tell_own, own) = watch::channel(Own { words, is_remembered, is_checked: false });
        let (tell_others, others) = watch::channel(Arc::new(known));
        let (recall, recalled) = watch::channel(None);
        let (wanted, wants) = watch::channel(None);
        let (frames, ear) = mpsc::channel(WAITING);
        let socket = FrameSender::open()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
        // It inherits the network namespace.
        std::thread::Builder::new()
            .name("vr-health".to_owned())
            .spawn(move || runtime.block_on(run(checker, socket, wants, ear, recalled, tell_own, tell)))
            .map_err(|error| anyhow!("cannot start a thread: {error}"))?;
        Ok(Self {
            node: config.node.clone(),
            store: config.store.clone(),
            memory,
            wanted,
            frames,
            own,
            others,
            share: Some(Share { others: tell_others, recall, is_in_force }),
            index: Index::default(),
            not_up: BTreeMap::new(),
        })
    }

    /// Where to put what ports send to a router's address: TCP, and answers to pings.
    pub fn ear(&self) -> mpsc::Sender<Frame> {
        self.frames.clone()
    }

    /// Another topology is wanted.
    pub fn topology(&mut self, topology: &Topology) {
        let mut listeners = topology.load_balancers.iter().flat_map(|it| &it.listeners);
        let monitored: HashSet<&str> = topology
            .pools
            .iter()
            .filter(|pool| pool.health_monitor.is_some())
            .map(|pool| pool.name.as_str())
            .collect();
        let is_needed = listeners.any(|it| monitored.contains(it.default_pool.as_str()));
        if let (true, Some(store)) = (is_needed, &self.store)
            && let Some(Share { others, recall, is_in_force }) = self.share.take()
        {
            let (node, own) = (self.node.clone(), self.own.clone());
            let started = health::start(store.clone(), node, is_in_force, own, recall, others);
            if let Err(error) = started {
                tracing::error!("{error:#}");
            }
        }
    }

    /// What is in force: these members are this node's to check.
    pub fn follow(&self, monitored: &[MonitoredMember]) {
        self.wanted.send_if_modified(|wanted| {
            let differs = wanted.as_ref().is_none_or(|wanted| wanted[..] != *monitored);
            if differs {
                *wanted = Some(Arc::new(monitored.to_vec()));
            }
            differs
        });
    }

    /// Tells when there is something new for [`not_up`](Self::not_up).
    pub fn changes(&self) -> Changes {
        Changes { own: self.own.clone(), others: self.others.clone() }
    }

    /// Members of a topology that are not up.
    pub fn not_up(&mut self, topology: &Topology) -> BTreeMap<shared::MemberName, MemberHealth> {
        let (own, others) = (self.own.borrow().words.clone(), self.others.borrow().clone());
        // Mostly all is well, and nobody need be found among a hundred thousand.
        let index = Index::of(topology, &Spoken::of(&own, &others));
        let before = std::mem::replace(&mut self.index, index);
        let not_up = self.index.not_up(&self.node, &own, &others);
        if not_up != self.not_up {
            log(&self.news(&before, &not_up, topology));
            self.not_up.clone_from(&not_up);
            let mut known = health::Health::clone(&others);
            known.insert(self.node.clone(), health::NodeHealth { words: Some(own), alive: true });
            self.memory.save(&known);
        }
        not_up
    }

    /// Other nodes' members that are not up.
    pub fn others(&self) -> Vec<OtherStatus> {
        let others = self.others.borrow().clone();
        let of = |((pool, member), state): (&shared::MemberName, &MemberHealth)| {
            let node = self.index.checker(&(pool.clone(), member.clone()))?;
            let words = others.get(node).and_then(|it| it.words.as_ref());
            let reason = words.and_then(|words| words.down.get(pool)?.get(member)).cloned();
            let (pool, member, node) = (pool.clone(), member.clone(), node.to_owned());
            (node != self.node).then_some(OtherStatus { pool, member, node, state: *state, reason })
        };
        self.not_up.iter().filter_map(of).collect()
    }

    /// What others say that is new; this node's own members are told of where they are checked. `before`: the index so far,
    /// since of a pool that is well again nobody says anything.
    fn news(
        &self,
        before: &Index,
        now: &BTreeMap<shared::MemberName, MemberHealth>,
        topology: &Topology,
    ) -> Vec<OtherStatus> {
        let state = |of: &BTreeMap<shared::MemberName, MemberHealth>, name: &shared::MemberName| {
            of.get(name).copied().unwrap_or_default()
        };
        let monitored = topology.pools.iter().filter(|pool| pool.health_monitor.is_some());
        let monitored: HashMap<&str, _> = monitored.map(|pool| (pool.name.as_str(), &pool.members)).collect();
        // Who is gone is not up.
        let is_there = |(pool, member): &shared::MemberName| {
            monitored.get(pool.as_str()).is_some_and(|members| members.iter().any(|it| it.name == *member))
        };
        let names: BTreeSet<_> = self.not_up.keys().chain(now.keys()).collect();
        let of = |name: &shared::MemberName| {
            let node = self.index.checker(name).or_else(|| before.checker(name))?.to_owned();
            let ((pool, member), state) = (name.clone(), state(now, name));
            (node != self.node).then_some(OtherStatus { pool, member, node, state, reason: None })
        };
        let news = names.into_iter().filter(|name| state(&self.not_up, name) != state(now, name));
        news.filter(|name| is_there(name)).filter_map(of).collect()
    }
}

fn log(news: &[OtherStatus]) {
    /// A node that dies has many members.
    const LINES: usize = 10;
    for OtherStatus { pool, member, node, state, .. } in news.iter().take(LINES) {
        let what = match state {
            MemberHealth::Up => "up",
            MemberHealth::Down => "down",
            MemberHealth::Lost => "lost: its node is silent",
        };
        tracing::info!(%pool, %member, %node, "{node} says: pool {pool} member {member}: {what}");
    }
    if news.len() > LINES {
        tracing::info!("and of {} more members of other nodes", news.len() - LINES);
    }
}

/// See [`Health::changes`].
pub struct Changes {
    own: watch::Receiver<Own>,
    others: watch::Receiver<Arc<health::Health>>,
}

impl Changes {
    /// Waits for something new; of one side, if there is nobody on the other any more.
    pub async fn next(&mut self) {
        tokio::select! {
            Ok(()) = self.own.changed() => {}
            Ok(()) = self.others.changed() => {}
            else => std::future::pending().await,
        }
    }
}

/// The thread: until the agent ends.
async fn run(
    mut checker: Checker,
    socket: FrameSender,
    mut wanted: watch::Receiver<Option<Arc<Vec<MonitoredMember>>>>,
    mut frames: mpsc::Receiver<Frame>,
    mut recalled: watch::Receiver<Option<Words>>,
    own: watch::Sender<Own>,
    tell: Tell,
) {
    let (mut out, mut unsent) = (Vec::new(), 0_u64);
    let mut told = Instant::now();
    let Own { mut is_remembered, mut is_checked, .. } = *own.borrow();
    loop {
        let wake = checker.due().unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
        let (mut differs, mut recall) = (false, None);
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = wanted.borrow_and_update().clone();
                if let Some(now) = now {
                    differs |= checker.follow(&now, Instant::now(), &mut out) || !is_checked;
                    is_checked = true;
                    told = Instant::now() - STATUS_INTERVAL;
                }
            }
            Ok(()) = recalled.changed() => {
                let words = recalled.borrow_and_update().clone();
                if let Some(words) = words.filter(|_| !is_remembered) {
                    differs |= checker.recall(words.clone());
                    is_remembered = true;
                    recall = Some(words);
                }
            }
            Some((ifindex, frame)) = frames.recv() => {
                let now = Instant::now();
                differs |= checker.hear(ifindex, &frame, now, &mut out);
            }
            () = sleep_until(wake.into()) => {}
        }
        // What has come counts, however late this thread is.
        for _ in 0..WAITING {
            let Ok((ifindex, frame)) = frames.try_recv() else { break };
            differs |= checker.hear(ifindex, &frame, Instant::now(), &mut out);
        }
        let now = Instant::now();
        differs |= checker.tick(now, &mut out);
        for (ifindex, frame) in out.drain(..) {
            // What cannot be sent is not answered, which is what counts.
            let sent = socket.send(ifindex, &frame);
            unsent += u64::from(sent.is_err());
        }
        own.send_if_modified(|own| {
            let was = (own.is_remembered, own.is_checked);
            (own.is_remembered, own.is_checked) = (is_remembered, is_checked);
            // Without a list it has nothing to say but what was said before.
            let words = if is_checked { differs.then(|| checker.words()) } else { recall };
            let words = words.filter(|words| *words != own.words);
            let is_new = words.is_some() || was != (is_remembered, is_checked);
            own.words = words.unwrap_or_else(|| std::mem::take(&mut own.words));
            is_new
        });
        if differs || now.saturating_duration_since(told) >= STATUS_INTERVAL {
            told = now;
            tell(checker.status(), unsent);
        }
    }
}

#[cfg(test)]
mod tests;
