//! The metadata service: a workload's HTTP request to 169.254.169.254 or fe80::a9fe:a9fe reaches the configured server
//! with headers that say which port it comes from, as Neutron's agents do it.
//!
//! A thread of its own, with everything that waits: connections of workloads, which end in stacks in user space
//! ([`guest`]), and requests to the server. Whoever hands over frames never waits for it: what it cannot take is lost,
//! counted, and sent again by the workload's TCP.
//!
//! | module | does |
//! |---|---|
//! | [`config`] | reads where the server is |
//! | [`client`] | who asks, and what proves it |
//! | [`guests`], [`guest`] | connections, from frames to bytes |
//! | [`converse`] | one connection's request and answer |
//! | [`head`] | reads a request's head, and what of it goes on |
//! | [`forward`] | asks the server |
//! | [`service`] | hands frames to the thread |
//! | [`refusal`] | what a workload is told instead |
//! | [`counts`] | counts |

pub mod client;
pub mod config;
pub mod converse;
pub mod counts;
pub mod forward;
pub mod guest;
pub mod guests;
pub mod head;
pub mod refusal;
pub mod service;

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};

use client::Client;
use config::MetadataConfig;
use converse::converse;
use counts::Tally;
use forward::Forward;
use guest::{Opened, Wants};
use guests::Guests;
pub use service::{MetadataService, Setup};

/// Frames that wait for the thread.
const FRAMES: usize = 4096;
/// How long it sleeps at the most.
const IDLE: Duration = Duration::from_secs(3600);
/// Threads that look up the server's name.
const RESOLVERS: usize = 2;

/// Sends a frame by an interface.
pub type Send = Box<dyn Fn(u32, &[u8]) -> io::Result<()> + std::marker::Send>;
/// Ports that are served, by interface.
pub type Clients = HashMap<u32, Arc<Client>>;

/// The thread, from outside. Dropped, it ends.
pub struct Metadata {
    frames: mpsc::Sender<(u32, Vec<u8>)>,
    clients: watch::Sender<Arc<Clients>>,
}

impl Metadata {
    /// Starts it, in the network namespace of the calling thread.
    pub fn start(config: MetadataConfig, tally: Tally, send: Send) -> Result<Self> {
        let forward = Arc::new(Forward::new(config)?);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(RESOLVERS)
            .enable_all()
            .build()
            .context("tokio")?;
        let (frames, received) = mpsc::channel(FRAMES);
        let (clients, followed) = watch::channel(Arc::new(Clients::new()));
        std::thread::Builder::new()
            .name("vr-metadata".to_owned())
            .spawn(move || runtime.block_on(run(received, followed, forward, tally, send)))
            .context("cannot start the thread for metadata")?;
        Ok(Self { frames, clients })
    }

    /// Tells whom to serve.
    pub fn follow(&self, clients: Clients) {
        self.clients.send_replace(Arc::new(clients));
    }

    /// Whether there is nobody to hand anything to, which is a defect.
    pub fn has_ended(&self) -> bool {
        self.frames.is_closed()
    }

    /// Hands over a frame of a port; whether there was room.
    pub fn receive(&self, ifindex: u32, frame: &[u8]) -> bool {
        self.frames.try_send((ifindex, frame.to_vec())).is_ok()
    }
}

/// Runs until nobody hands over anything any more.
async fn run(
    mut frames: mpsc::Receiver<(u32, Vec<u8>)>,
    mut clients: watch::Receiver<Arc<Clients>>,
    forward: Arc<Forward>,
    tally: Tally,
    send: Send,
) {
    let mut guests = Guests::default();
    let woken = guests.woken();
    let mut served = clients.borrow_and_update().clone();
    loop {
        let wake = guests.next_due().unwrap_or_else(|| Instant::now() + IDLE);
        let mut all = Vec::new();
        tokio::select! {
            // Whom to serve is known before what he sends.
            biased;
            changed = clients.changed() => {
                if changed.is_err() {
                    return;
                }
                served = clients.borrow_and_update().clone();
                guests.retain(&served);
            }
            frame = frames.recv() => {
                let Some((ifindex, frame)) = frame else { return };
                let mut wants = Wants::default();
                let result = match served.get(&ifindex) {
                    Some(client) => guests.receive(ifindex, client, &frame, Instant::now(), &mut wants),
                    None => Err("not_served"),
                };
                if let Err(reason) = result {
                    tally.refused(reason);
                }
                all.push((ifindex, wants));
            }
            () = woken.wait() => {}
            () = sleep_until(wake.into()) => {}
        }
        guests.work(Instant::now(), |ifindex, wants| all.push((ifindex, wants)));
        for (ifindex, wants) in all {
            for frame in wants.frames {
                match send(ifindex, &frame) {
                    Ok(()) => tally.sent(frame.len()),
                    // TCP tries again.
                    Err(_) => tally.refused("not_sent"),
                }
            }
            wants.opened.into_iter().for_each(|opened| talk(opened, &forward, &tally));
        }
        tally.connections(guests.connections());
    }
}

fn talk(opened: Opened, forward: &Arc<Forward>, tally: &Tally) {
    let (forward, tally) = (forward.clone(), tally.clone());
    tokio::spawn(async move { converse(opened, &forward, &tally).await });
}

#[cfg(test)]
mod tests;
