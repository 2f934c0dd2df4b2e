//! The metadata service among the others: it hands frames to its own thread, and starts that again should it end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Clients, Metadata, client::Client, config::MetadataConfig, counts::Tally};
use crate::{
    agent::services::{
        sender::FrameSender,
        service::{Asker, Kind, Refused, Service},
    },
    compile::{Served, served::ServedPort},
};

/// How long nothing is served after the thread ended.
const AGAIN: Duration = Duration::from_secs(1);

/// Where the server is, and what is counted.
#[derive(Clone, Debug)]
pub struct Setup {
    pub config: MetadataConfig,
    pub tally: Tally,
}

/// The service.
pub struct MetadataService {
    setup: Setup,
    sender: FrameSender,
    metadata: Metadata,
    started: Instant,
    clients: Clients,
}

impl MetadataService {
    /// Starts it, in the network namespace of the calling thread.
    pub fn start(setup: &Setup, sender: &FrameSender) -> Result<Self> {
        let metadata = thread(setup, sender)?;
        let (setup, sender) = (setup.clone(), sender.clone());
        Ok(Self { setup, sender, metadata, started: Instant::now(), clients: Clients::new() })
    }

    fn start_again(&mut self, now: Instant) {
        if !self.metadata.has_ended() || now.saturating_duration_since(self.started) < AGAIN {
            return;
        }
        self.started = now;
        tracing::error!("the thread for metadata has ended; starting it again");
        match thread(&self.setup, &self.sender) {
            Ok(metadata) => {
                metadata.follow(self.clients.clone());
                self.metadata = metadata;
            }
            Err(error) => tracing::error!("metadata: {error:#}"),
        }
    }
}

fn thread(setup: &Setup, sender: &FrameSender) -> Result<Metadata> {
    let sender = sender.clone();
    let send = Box::new(move |ifindex, frame: &[u8]| sender.send(ifindex, frame));
    Metadata::start(setup.config.clone(), setup.tally.clone(), send)
}

impl Service for MetadataService {
    fn kinds(&self) -> &'static [Kind] {
        &[Kind::Metadata]
    }

    fn answer(
        &mut self,
        asker: &Asker<'_>,
        frame: &[u8],
        _: &FrameSender,
        now: Instant,
    ) -> Result<&'static str, Refused> {
        if !self.clients.contains_key(&asker.ifindex) {
            return Err(Refused::NOT_SERVED);
        }
        if self.metadata.receive(asker.ifindex, frame) {
            return Ok("segment");
        }
        self.start_again(now);
        Err(Refused("busy"))
    }

    fn follow(&mut self, served: &Arc<Served>, _: Instant) {
        let asking = served.iter().filter(|(_, port)| port.metadata);
        self.clients = asking.map(|(&ifindex, port)| (ifindex, Arc::new(client(port)))).collect();
        self.metadata.follow(self.clients.clone());
    }
}

fn client(port: &ServedPort) -> Client {
    Client {
        port: port.name.clone(),
        instance: port.device_id.as_ref().unwrap_or(&port.name).clone(),
        project: port.project.clone(),
        network: port.network.name.clone(),
        mtu: port.network.mtu,
        addresses: port.fixed_ips.clone(),
    }
}
