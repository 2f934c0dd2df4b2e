//! External networks: next hops that have to be resolved, packets that wait for them, packets that have to be
//! cut, and announcements of this node's addresses.
//!
//! A thread of its own, so that a packet that waits does not wait for a topology that is being compiled, nor
//! the other way round. It is told what is in force ([`External::follow`]) and tells how it is
//! ([`NextHopsStatus`]); nothing else is shared. Whatever happens to it, packets to resolved next hops go on.
//!
//! | module | does |
//! |---|---|
//! | [`worker`] | the thread's loop: everything below put together |
//! | [`upcall`] | reads what the data path hands over |
//! | [`hops`] | decides what is to be done about a next hop, and when |
//! | `queue` | holds the packets that wait |
//! | [`slots`] | the next hops' maps: what is free, and how a slot gets free |
//! | [`rewrite`], [`fragments`] | make of a packet what is to be sent |
//! | [`frames`] | requests and announcements, byte by byte |
//! | [`announce`] | when an address is announced |
//! | [`outside`] | what of the topology all this needs |

pub mod announce;
pub mod fragments;
pub mod frames;
pub mod hops;
pub mod outside;
mod pace;
mod queue;
pub mod rewrite;
mod sender;
pub mod slots;
mod status;
pub mod upcall;
pub mod worker;

use std::{collections::BTreeSet, sync::Arc, thread::JoinHandle, time::Instant};

use anyhow::{Context, Result, anyhow};
use aya::maps::{MapData, RingBuf};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    time::sleep_until,
};

pub use outside::Outside;
pub use status::{CutStatus, HopsStatus, NextHopsStatus, PacketsStatus};
use worker::Worker;

use super::edge::Found;
use crate::data_path::Pins;

/// Who is told how it is.
pub type Tell = Arc<dyn Fn(&NextHopsStatus) + Send + Sync>;

/// The thread, from outside.
pub struct External {
    pins: Pins,
    /// What is in force; what was found at the start is not announced, and not sent.
    outside: Option<Arc<Outside>>,
    wanted: watch::Sender<Arc<Outside>>,
    moved: watch::Sender<BTreeSet<u32>>,
    failed: watch::Sender<BTreeSet<outside::Address>>,
    found: watch::Receiver<Found>,
    tell: Tell,
    thread: Option<JoinHandle<()>>,
}

impl External {
    /// Starts it. `outside`: what earlier agents left in force; `found`: what this node is the master of.
    pub fn start(pins: &Pins, outside: Outside, found: watch::Receiver<Found>, tell: Tell) -> Result<Self> {
        let outside = Arc::new(outside);
        let mut external = Self {
            pins: pins.clone(),
            outside: None,
            wanted: watch::Sender::new(outside.clone()),
            moved: watch::Sender::default(),
            failed: watch::Sender::default(),
            found,
            tell,
            thread: None,
        };
        external.spawn(outside)?;
        Ok(external)
    }

    /// Another topology is in force, or the same by another agent: what is new here is announced.
    pub fn follow(&mut self, outside: Outside) {
        if self.outside.as_deref() == Some(&outside) {
            return;
        }
        let outside = Arc::new(outside);
        self.outside = Some(outside.clone());
        self.wanted.send_replace(outside);
    }

    /// Tells which of the next hops that others can stand in for do not answer.
    pub fn failed(&self) -> watch::Receiver<BTreeSet<outside::Address>> {
        self.failed.subscribe()
    }

    /// Tells of networks on which an address is claimed by somebody else than before.
    pub fn moves(&self) -> Moves {
        Moves { all: self.moved.clone(), seen: self.moved.subscribe() }
    }

    /// Starts the thread again should it have ended, which is a defect: all it knew is in the maps.
    pub fn ensure(&mut self) -> Result<()> {
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        tracing::error!("the thread for external networks has ended; starting it again");
        let outside = self.wanted.borrow().clone();
        self.spawn(outside)
    }

    fn spawn(&mut self, outside: Arc<Outside>) -> Result<()> {
        let (tell, moved, failed) = (self.tell.clone(), self.moved.clone(), self.failed.clone());
        let mut worker = Worker::open(&self.pins, outside, tell, moved, failed)?;
        let mut found = self.found.clone();
        found.mark_changed();
        let ring = worker.take_ring().context("the ring buffer was taken")?;
        let wanted = self.wanted.subscribe();
        // It inherits the network namespace.
        let thread = std::thread::Builder::new().name("vr-external".to_owned()).spawn(move || {
            if let Err(error) = run(worker, ring, wanted, found) {
                tracing::error!("external networks: {error:#}");
            }
        });
        self.thread = Some(thread.map_err(|error| anyhow!("cannot start a thread: {error}"))?);
        Ok(())
    }
}

/// Where addresses moved.
pub struct Moves {
    all: watch::Sender<BTreeSet<u32>>,
    seen: watch::Receiver<BTreeSet<u32>>,
}

impl Moves {
    /// The networks, as soon as there is one.
    pub async fn next(&mut self) -> BTreeSet<u32> {
        // The sender is in `self`.
        let _ = self.seen.wait_for(|networks| !networks.is_empty()).await;
        self.all.send_replace(BTreeSet::new())
    }
}

/// Runs until nobody wants anything any more.
fn run(
    mut worker: Worker,
    ring: RingBuf<MapData>,
    mut wanted: watch::Receiver<Arc<Outside>>,
    mut found: watch::Receiver<Found>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
    runtime.block_on(async {
        #[expect(
            deprecated,
            reason = "what it warns of cannot happen: a ring buffer keeps its one descriptor"
        )]
        let mut ring =
            AsyncFd::with_interest(ring, Interest::READABLE).context("cannot wait for the data path")?;
        loop {
            let wake = worker.next_due(Instant::now());
            tokio::select! {
                // What is in force first: a next hop on a network that is not known yet is none.
                biased;
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let outside = wanted.borrow_and_update().clone();
                    worker.follow(outside, Instant::now());
                }
                Ok(()) = found.changed() => {
                    let mastered = found.borrow_and_update().mastered.clone();
                    worker.master(mastered, Instant::now());
                }
                ready = ring.readable_mut() => {
                    let mut ready = ready.context("cannot wait for the data path")?;
                    if !worker.drain(ready.get_inner_mut(), Instant::now()) {
                        ready.clear_ready();
                    }
                }
                () = sleep_until(wake.into()) => {}
            }
            worker.work(Instant::now());
        }
    })
}
