//! Services of the node for its own workloads: DHCP, router advertisements, metadata, health monitors.
//!
//! A thread of its own. The data path hands it what a workload sends to a service ([`vrouter_common::service`]);
//! it finds the port by the interface, and the service by what the frame is. A service answers with frames by
//! the same interface. It is told which ports there are ([`Services::follow`]); nothing is pinned, and nothing is
//! remembered that could not be worked out again: an agent that is not there for seconds costs a workload another
//! try.
//!
//! | module | does |
//! |---|---|
//! | [`call`] | reads what the data path hands over, and tells which service it is for |
//! | [`service`] | what a service is |
//! | [`dhcp`], [`dhcpv6`], [`router`] | DHCP over either family, router advertisements |
//! | [`metadata`] | requests of workloads to the metadata server |
//! | [`stack`], [`frame`] | TCP/IP in user space |
//! | [`seldom`] | keeps the log short |
//! | [`sender`] | sends frames to ports |
//! | [`tally`] | counts |
//! | [`told`] | what each port is told, for people |
//! | [`worker`] | the thread's loop |

pub mod call;
mod datagram;
pub mod dhcp;
pub mod dhcpv6;
#[cfg(test)]
pub(crate) mod fixture;
pub mod frame;
pub mod metadata;
pub mod router;
pub mod seldom;
pub mod sender;
pub mod service;
pub mod stack;
pub mod tally;
pub mod told;
pub mod worker;

use std::{sync::Arc, thread::JoinHandle, time::Instant};

use anyhow::{Context, Result, anyhow};
use aya::maps::{MapData, RingBuf};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, watch},
    time::sleep_until,
};

pub use sender::FrameSender;
pub use service::{Asker, Kind, Refused, Service};
pub use tally::Tally;
use worker::Worker;

use super::health;
use crate::{compile::Served, data_path::Pins};

/// The thread, from outside.
pub struct Services {
    pins: Pins,
    served: watch::Sender<Arc<Served>>,
    tally: Tally,
    answers: mpsc::Sender<health::Frame>,
    metadata: Option<metadata::Setup>,
    thread: Option<JoinHandle<()>>,
}

impl Services {
    /// Starts it, in the network namespace of the calling thread. It serves nobody until it is told whom.
    ///
    /// `answers`: where to put what members of pools answer. `metadata`: the server that requests for it go to.
    pub fn start(
        pins: &Pins,
        tally: Tally,
        answers: mpsc::Sender<health::Frame>,
        metadata: Option<metadata::Setup>,
    ) -> Result<Self> {
        let served = watch::Sender::new(Arc::new(Served::new()));
        let mut services = Self { pins: pins.clone(), served, tally, answers, metadata, thread: None };
        services.spawn()?;
        Ok(services)
    }

    /// Tells which ports there are.
    pub fn follow(&self, served: &Served) {
        if **self.served.borrow() == *served {
            return;
        }
        self.served.send_replace(Arc::new(served.clone()));
    }

    /// Which ports there are.
    pub fn served(&self) -> watch::Receiver<Arc<Served>> {
        self.served.subscribe()
    }

    /// Starts the thread again should it have ended, which is a defect.
    pub fn ensure(&mut self) -> Result<()> {
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        tracing::error!("the thread for services has ended; starting it again");
        self.spawn()
    }

    fn spawn(&mut self) -> Result<()> {
        let path = self.pins.maps().join("SERVICES");
        let map = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let ring = RingBuf::try_from(aya::maps::Map::RingBuf(map)).context("SERVICES")?;
        let sender = FrameSender::open()?;
        let services = self.services(&sender)?;
        let mut served = self.served.subscribe();
        served.mark_changed();
        let worker = Worker::new(services, sender, self.tally.clone());
        let thread = std::thread::Builder::new().name("vr-services".to_owned()).spawn(move || {
            if let Err(error) = run(worker, ring, served) {
                tracing::error!("services: {error:#}");
            }
        });
        self.thread = Some(thread.map_err(|error| anyhow!("cannot start a thread: {error}"))?);
        Ok(())
    }

    /// What is served.
    fn services(&self, sender: &FrameSender) -> Result<Vec<Box<dyn Service>>> {
        let mut services: Vec<Box<dyn Service>> = vec![
            Box::new(health::service::Answers(self.answers.clone())),
            Box::new(dhcp::Dhcp::new(self.tally.clone())),
            Box::new(dhcpv6::Dhcpv6::default()),
            Box::<router::Router>::default(),
        ];
        if let Some(setup) = &self.metadata {
            services.push(Box::new(metadata::MetadataService::start(setup, sender)?));
        }
        Ok(services)
    }
}

/// Runs until nobody wants anything any more.
fn run(mut worker: Worker, ring: RingBuf<MapData>, mut served: watch::Receiver<Arc<Served>>) -> Result<()> {
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
                changed = served.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let now_served = served.borrow_and_update().clone();
                    worker.follow(now_served, Instant::now());
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
