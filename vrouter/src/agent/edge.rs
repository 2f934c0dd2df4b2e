//! The edge: which virtual routers this node is the master of (VRRP, RFC 5798), and which gateways carry for it
//! (seamless BFD, RFC 7880).
//!
//! A thread of its own: whatever else the agent does, a master announces itself in time, and a gateway answers. It is
//! told what is wanted ([`Edge::follow`]), tells what it found ([`Found`]), and writes one map, from which the data
//! path sees whether to answer for a virtual router.
//!
//! | module | does |
//! |---|---|
//! | [`machine`] | a virtual router's states, without clock or sockets |
//! | [`vrrp`], [`sbfd`] | what is on the wire |
//! | [`routers`] | the virtual routers: sockets, machines, the map |
//! | [`probes`] | the gateways: who answers |

pub mod machine;
pub mod probes;
pub mod routers;
pub mod sbfd;
pub mod vrrp;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use tokio::{sync::watch, time::sleep_until};
use vrouter_common::tables::MasterKey;

use crate::{
    compile::{GatewayPeer, VirtualRouter},
    data_path::Pins,
};
use probes::Probes;
use routers::Routers;

/// How often the status is renewed.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);
/// What is heard before everything else gets its turn: whoever floods this thread must not keep a master silent.
const STREAK: u32 = 256;
/// How often what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A virtual router this node takes part in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Participant {
    pub router: VirtualRouter,
    /// `None`: the interface does not exist.
    pub ifindex: Option<u32>,
    /// Who announces: an address of the interface, or else one that no other node has.
    pub source: IpAddr,
    /// Why it must not be the master at the moment.
    pub hindrance: Option<String>,
}

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub participants: Vec<Participant>,
    /// The address that gateways are asked from, and asked at.
    pub vtep: Option<Ipv4Addr>,
    /// Those that may ask.
    pub peers: BTreeSet<Ipv4Addr>,
    pub gateways: Vec<GatewayPeer>,
    /// The VNIs of the external networks this node carries for.
    pub in_service: BTreeSet<u32>,
    /// Between two questions to a gateway; it is dead after three without an answer.
    pub probe_interval: Duration,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The virtual routers this node is the master of.
    pub mastered: BTreeSet<MasterKey>,
    /// Those it was the master of until just now: what is still sent to it is carried.
    pub lingering: BTreeSet<MasterKey>,
    /// Gateways that do not carry: external network and node.
    pub dead: BTreeSet<(String, String)>,
}

/// A virtual router, for people.
#[derive(Clone, Debug, Serialize)]
pub struct VirtualRouterStatus {
    pub router: String,
    pub network: String,
    pub vrid: u8,
    pub family: &'static str,
    /// `master`, `backup` or `off`.
    pub state: &'static str,
    pub priority: u8,
    /// Who announced itself last as the master, if it is another.
    pub master: Option<IpAddr>,
    pub master_priority: Option<u8>,
    pub addresses: Vec<IpAddr>,
    pub interval_ms: u32,
    /// After which silence a backup takes over.
    pub down_ms: u64,
    pub preempt: bool,
    /// In the order in which they are to be master.
    pub gateways: Vec<String>,
    /// Why it is off, or what is wrong.
    pub note: Option<String>,
    pub since_seconds: u64,
    pub transitions: u64,
    /// Announcements that did not count, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

/// A gateway this node depends on, for people.
#[derive(Clone, Debug, Serialize)]
pub struct GatewayStatus {
    pub network: String,
    pub node: String,
    pub vtep: Ipv4Addr,
    /// `up`, `down` (no answer), `admin_down` (it answers that it does not carry) or `unknown`.
    pub state: &'static str,
    pub since_seconds: u64,
    pub transitions: u64,
    /// Microseconds of the last answer.
    pub rtt_us: Option<u64>,
}

/// How it is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EdgeStatus {
    pub virtual_routers: Vec<VirtualRouterStatus>,
    pub gateways: Vec<GatewayStatus>,
    /// What does not work.
    pub notes: Vec<String>,
}

/// Who is told how it is.
pub type Tell = Arc<dyn Fn(EdgeStatus) + Send + Sync>;

/// The thread, from outside. It ends when this is dropped.
pub struct Edge {
    pins: Pins,
    wanted: watch::Sender<Arc<Wanted>>,
    found: watch::Sender<Found>,
    tell: Tell,
    thread: Option<JoinHandle<()>>,
}

impl Edge {
    /// Starts it.
    pub fn start(pins: &Pins, tell: Tell) -> Result<Self> {
        let (wanted, found) = (watch::Sender::default(), watch::Sender::default());
        let mut edge = Self { pins: pins.clone(), wanted, found, tell, thread: None };
        edge.spawn()?;
        Ok(edge)
    }

    /// Something else is wanted.
    pub fn follow(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|now| {
            let differs = **now != wanted;
            if differs {
                *now = Arc::new(wanted);
            }
            differs
        });
    }

    /// What it finds.
    pub fn found(&self) -> watch::Receiver<Found> {
        self.found.subscribe()
    }

    /// Starts the thread again should it have ended, which is a defect.
    pub fn ensure(&mut self) -> Result<()> {
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        tracing::error!("the thread for gateways has ended; starting it again");
        self.spawn()
    }

    /// Gives up what this node is the master of, so that another takes over at once, and ends.
    pub fn stop(mut self) {
        drop(std::mem::take(&mut self.wanted));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn spawn(&mut self) -> Result<()> {
        let (pins, wanted) = (self.pins.clone(), told(&self.wanted));
        let (found, tell) = (self.found.clone(), self.tell.clone());
        // It inherits the network namespace.
        let thread = std::thread::Builder::new().name("vr-edge".to_owned()).spawn(move || {
            if let Err(error) = run(&pins, wanted, &found, &tell) {
                tracing::error!("gateways: {error:#}");
            }
        });
        self.thread = Some(thread.map_err(|error| anyhow!("cannot start a thread: {error}"))?);
        Ok(())
    }
}

/// For a thread that starts: what is wanted is news to it, also if another thread has heard of it. As long as nobody
/// wanted anything, what an earlier agent wanted stays.
fn told(wanted: &watch::Sender<Arc<Wanted>>) -> watch::Receiver<Arc<Wanted>> {
    let mut receiver = wanted.subscribe();
    if **wanted.borrow() != Wanted::default() {
        receiver.mark_changed();
    }
    receiver
}

/// Runs until nobody wants anything any more.
fn run(
    pins: &Pins,
    mut wanted: watch::Receiver<Arc<Wanted>>,
    found: &watch::Sender<Found>,
    tell: &Tell,
) -> Result<()> {
    hurry();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
    runtime.block_on(async {
        let mut routers = Routers::open(pins)?;
        let mut probes = Probes::default();
        let (mut status_due, mut retry_due) = (Instant::now(), Instant::now());
        let mut streak = 0;
        loop {
            let dues = [routers.due(), probes.due(), Some(status_due.min(retry_due))];
            let due = dues.into_iter().flatten().min().unwrap_or(status_due);
            tokio::select! {
                // What was heard counts before the time that has run out.
                biased;
                changed = wanted.changed() => {
                    if changed.is_err() {
                        routers.resign();
                        return Ok(());
                    }
                    let now = wanted.borrow_and_update().clone();
                    routers.follow(&now.participants, Instant::now());
                    probes.follow(&now, Instant::now()).await;
                    status_due = Instant::now();
                }
                heard = routers.hear(), if streak < STREAK => {
                    streak += 1;
                    routers.take(heard, Instant::now());
                }
                answer = probes.hear(), if streak < STREAK => {
                    streak += 1;
                    probes.take(answer, Instant::now());
                }
                () = sleep_until(if streak < STREAK { due } else { Instant::now() }.into()) => {
                    streak = 0;
                    let late = Instant::now().saturating_duration_since(due);
                    if late > Duration::from_millis(20) {
                        // This thread was held up. What came meanwhile has to be read first.
                        for _ in 0..10 {
                            tokio::task::yield_now().await;
                        }
                        while let Some(heard) = routers.heard_already() {
                            routers.take(heard, Instant::now());
                        }
                        probes.forgive(late);
                    }
                    routers.tick(Instant::now());
                    probes.tick(Instant::now()).await;
                }
            }
            let now = Instant::now();
            if retry_due <= now {
                retry_due = now + RETRY;
                routers.retry();
                probes.retry().await;
            }
            let mut is_news = false;
            found.send_if_modified(|found| {
                let (mastered, lingering) = (routers.mastered(), routers.lingering());
                let now = Found { mastered, lingering, dead: probes.dead() };
                is_news = *found != now;
                if is_news {
                    *found = now;
                }
                is_news
            });
            if is_news || status_due <= now {
                status_due = now + STATUS_INTERVAL;
                let notes = routers.notes().chain(probes.notes()).collect();
                let (virtual_routers, gateways) = (routers.status(now), probes.status(now));
                tell(EdgeStatus { virtual_routers, gateways, notes });
            }
        }
    })
}

/// Before other work on a busy node: an announcement that comes too late moves a router.
fn hurry() {
    const NICE: libc::c_int = -15;
    // SAFETY: plain values. On Linux it is the calling thread's; without the right it stays as it is.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_started_again_hears_what_is_wanted() {
        let wanted = watch::Sender::<Arc<Wanted>>::default();
        assert!(!told(&wanted).has_changed().unwrap(), "an earlier agent's routers would go");
        let mut first = told(&wanted);
        wanted.send_replace(Arc::new(Wanted { in_service: BTreeSet::from([5]), ..Wanted::default() }));
        assert_eq!(first.borrow_and_update().in_service.len(), 1);
        assert!(told(&wanted).has_changed().unwrap());
    }
}
