//! All ports that speak to the metadata service at the moment.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    task::{Wake, Waker},
    time::Instant,
};

use tokio::sync::Notify;

use super::{
    client::Client,
    guest::{Guest, Wants},
};
use crate::agent::services::frame::Received;

/// Connections of all ports of a node: each may hold some 50 KiB.
const CONNECTIONS: usize = 2048;

/// The ports; one without a connection is not among them.
#[derive(Default)]
pub struct Guests {
    all: HashMap<u32, Guest>,
    timers: BTreeSet<(Instant, u32)>,
    woken: Arc<Woken>,
    connections: usize,
}

/// Ports whose tasks have taken or given something.
#[derive(Default)]
pub struct Woken {
    ports: Mutex<BTreeSet<u32>>,
    notify: Notify,
}

impl Woken {
    /// Waits until there are some.
    pub async fn wait(&self) {
        self.notify.notified().await;
    }
}

struct WakePort {
    ifindex: u32,
    woken: Arc<Woken>,
}

impl Wake for WakePort {
    fn wake(self: Arc<Self>) {
        self.woken.ports.lock().unwrap_or_else(PoisonError::into_inner).insert(self.ifindex);
        self.woken.notify.notify_one();
    }
}

impl Guests {
    /// Tells when [`Self::work`] is to be called though no time has come.
    pub fn woken(&self) -> Arc<Woken> {
        self.woken.clone()
    }

    /// Connections of all ports.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Takes a frame of a port. `Err`: why it was refused.
    pub fn receive(
        &mut self,
        ifindex: u32,
        client: &Arc<Client>,
        frame: &[u8],
        now: Instant,
        wants: &mut Wants,
    ) -> Result<(), &'static str> {
        let received = Received::parse(frame).ok_or("malformed")?;
        if !self.all.contains_key(&ifindex) {
            let seed = getrandom::u64().map_err(|_| "no_random_numbers")?;
            let waker = Waker::from(Arc::new(WakePort { ifindex, woken: self.woken.clone() }));
            self.all.insert(ifindex, Guest::new(client.clone(), seed, waker, now));
        }
        let Some(guest) = self.all.get_mut(&ifindex) else { return Ok(()) };
        let (before, due, room) = (guest.connections(), guest.due, self.connections < CONNECTIONS);
        let result = guest.receive(&received, room, now, wants);
        self.put_back(ifindex, before, due);
        result
    }

    /// Does what is to be done now: `each` takes what a port wants.
    pub fn work(&mut self, now: Instant, mut each: impl FnMut(u32, Wants)) {
        let mut ports = std::mem::take(&mut *self.woken.ports.lock().unwrap_or_else(PoisonError::into_inner));
        ports.extend(self.timers.iter().take_while(|(due, _)| *due <= now).map(|&(_, ifindex)| ifindex));
        for ifindex in ports {
            let Some(guest) = self.all.get_mut(&ifindex) else { continue };
            let (before, due, mut wants) = (guest.connections(), guest.due, Wants::default());
            guest.work(now, &mut wants);
            self.put_back(ifindex, before, due);
            each(ifindex, wants);
        }
    }

    /// When to work next, if nothing comes before.
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|&(due, _)| due)
    }

    /// Forgets ports that are gone, or are others than they were.
    pub fn retain(&mut self, clients: &HashMap<u32, Arc<Client>>) {
        let gone = self.all.iter().filter(|(ifindex, guest)| clients.get(ifindex) != Some(&guest.client));
        for ifindex in gone.map(|(&ifindex, _)| ifindex).collect::<Vec<_>>() {
            if let Some(guest) = self.all.remove(&ifindex) {
                self.connections -= guest.connections();
                self.timers.remove(&(guest.due, ifindex));
            }
        }
    }

    /// Keeps the books about a port that had so many connections, and was due then.
    fn put_back(&mut self, ifindex: u32, before: usize, due: Instant) {
        let Some(guest) = self.all.get(&ifindex) else { return };
        self.timers.remove(&(due, ifindex));
        self.connections = self.connections - before + guest.connections();
        if guest.connections() == 0 {
            self.all.remove(&ifindex);
        } else {
            self.timers.insert((guest.due, ifindex));
        }
    }
}
