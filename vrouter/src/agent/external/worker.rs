//! The thread: reads what the data path hands over, and does what [`Hops`], [`Announcer`] and [`Slots`] say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use tokio::sync::watch;
use vrouter_common::{
    flow::{EXIT_EXTERNAL, EXIT_PORT, EXIT_TUNNEL, Flow},
    tables::{HOP_FAILED, HOP_RESOLVED, HOP_USED, Hop, HopKey, MasterKey, Underlay},
};

use super::{
    Tell,
    announce::Announcer,
    frames,
    hops::{Hops, Readiness, Seen, Step},
    outside::{Address, Outside},
    pace::Pace,
    queue::Queue,
    rewrite::{self, Output, Way},
    sender::Sender,
    slots::{FlowTables, Search, Slots},
    status::NextHopsStatus,
    upcall::{self, Held, Message},
};
use crate::{
    clock::{Clock, Ticks},
    data_path::Pins,
    kernel::Map,
};

/// Records read before everything else gets its turn.
const RECORDS: usize = 256;
/// Next hops looked at before everything else gets its turn.
const STEPS: usize = 256;
/// Announcements sent in a second.
const ANNOUNCEMENTS: u32 = 500;
/// Requests sent in a second.
const REQUESTS: u32 = 1000;
/// Packets taken to wait in a second: a workload that sends to nobody must not keep this thread busy.
const TAKEN: u32 = 20_000;
/// Packets cut in a second.
const CUT: u32 = 2000;
/// How long a request waits if there were too many.
const REQUEST_DELAY: Duration = Duration::from_millis(100);
/// How often the index is compared with what is known here.
const LIST_INTERVAL: Duration = Duration::from_secs(1);
/// Between two searches of the flow tables if slots wait to be free, and if none does.
const SEARCH_INTERVAL: Duration = Duration::from_secs(30);
const SEARCH_INTERVAL_IDLE: Duration = Duration::from_secs(120);
/// Batches of flows gone through before everything else gets its turn: some milliseconds.
const SEARCH_BATCHES: usize = 16;
/// Between two turns while there is work; shorter sleeps are not worth it.
const TURN: Duration = Duration::from_millis(5);
/// How often the status is renewed.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);

/// Everything the thread owns.
pub struct Worker {
    ring: Option<RingBuf<MapData>>,
    /// Networks on which addresses moved, until the agent has taken note.
    moved: watch::Sender<BTreeSet<u32>>,
    clock: Clock,
    /// Read at the beginning of each turn.
    ticks: Ticks,
    slots: Slots,
    flows: FlowTables,
    underlay: Map<u32, Underlay>,
    sender: Sender,
    outside: Arc<Outside>,
    hops: Hops,
    queue: Queue<Held>,
    announcer: Announcer,
    /// Virtual routers this node is the master of.
    mastered: BTreeSet<MasterKey>,
    /// Watched next hops, by index.
    watched: BTreeMap<u32, Address>,
    /// Watched next hops that do not answer.
    failed: watch::Sender<BTreeSet<Address>>,
    announcements: Pace,
    requests: Pace,
    taken: Pace,
    cut: Pace,
    list_due: Instant,
    search_due: Instant,
    search: Option<(Instant, Search)>,
    counts: NextHopsStatus,
    publisher: Tell,
    status_due: Instant,
    complaint: Option<String>,
}

impl Worker {
    /// Opens the pins and the sockets, in the network namespace of the calling thread. `outside`: what is in
    /// force already. It is not announced: that is for what is wanted.
    pub fn open(
        pins: &Pins,
        outside: Arc<Outside>,
        publisher: Tell,
        moved: watch::Sender<BTreeSet<u32>>,
        failed: watch::Sender<BTreeSet<Address>>,
    ) -> Result<Self> {
        let maps = pins.maps();
        let path = maps.join("UPCALLS");
        let ring = MapData::from_pin(&path)
            .and_then(|data| RingBuf::try_from(aya::maps::Map::RingBuf(data)))
            .with_context(|| format!("cannot open the pinned ring buffer {}", path.display()))?;
        let now = Instant::now();
        let clock = Clock::open(pins)?;
        let ticks = clock.read()?;
        Ok(Self {
            ring: Some(ring),
            moved,
            clock,
            ticks,
            slots: Slots::open(&maps)?,
            flows: FlowTables::open(&maps)?,
            underlay: Map::open(&maps, "UNDERLAY")?,
            sender: Sender::open()?,
            outside,
            hops: Hops::default(),
            queue: Queue::new(),
            announcer: Announcer::default(),
            mastered: BTreeSet::new(),
            watched: BTreeMap::new(),
            failed,
            announcements: Pace::new(ANNOUNCEMENTS),
            requests: Pace::new(REQUESTS),
            taken: Pace::new(TAKEN),
            cut: Pace::new(CUT),
            list_due: now,
            search_due: now + SEARCH_INTERVAL,
            search: None,
            counts: NextHopsStatus::default(),
            publisher,
            status_due: now,
            complaint: None,
        })
    }

    /// The ring buffer, for whoever waits for it. It is taken once.
    pub fn take_ring(&mut self) -> Option<RingBuf<MapData>> {
        self.ring.take()
    }

    /// Takes some records; whether there may be more.
    pub fn drain(&mut self, ring: &mut RingBuf<MapData>, now: Instant) -> bool {
        self.read_clock(now);
        for _ in 0..RECORDS {
            let Some(record) = ring.next() else { return false };
            let message = upcall::read(&record);
            // What is behind it in the ring may be written over from here on.
            drop(record);
            match message {
                Some(message) => self.take(message, now),
                None => self.counts.packets.lost += 1,
            }
        }
        true
    }

    /// Another topology is in force: what is new here is announced, next hops follow their interfaces.
    pub fn follow(&mut self, outside: Arc<Outside>, now: Instant) {
        self.read_clock(now);
        self.announcer.follow(&outside.owned(&self.mastered), now);
        self.outside = outside;
        let outcome = self.watch(now);
        self.tell("make next hops", outcome);
        for index in self.hops.indexes().collect::<Vec<_>>() {
            if let Some((_, seen)) = self.look(index, now) {
                self.settle(index, seen, now);
            }
        }
    }

    /// This node is the master of other virtual routers: what is new here is announced.
    pub fn master(&mut self, mastered: BTreeSet<MasterKey>, now: Instant) {
        self.mastered = mastered;
        self.announcer.follow(&self.outside.owned(&self.mastered), now);
    }

    /// Makes the next hops that others can stand in for, whether packets ask for them or not.
    fn watch(&mut self, now: Instant) -> Result<()> {
        let mut watched = BTreeMap::new();
        for (address, ifindex, router) in self.outside.watched() {
            let key = HopKey { network: address.0, ip: address.1 };
            if let Some(index) = self.slots.make(&key, ifindex, router, self.ticks.now)? {
                watched.insert(index, address);
            }
        }
        self.watched = watched;
        self.hops.watch(self.watched.keys().copied().collect(), now);
        self.discover(now)
    }

    /// Tells which of them do not answer.
    fn tell_failed(&mut self) {
        if self.watched.is_empty() && self.failed.borrow().is_empty() {
            return;
        }
        let failed: BTreeSet<Address> = self
            .watched
            .iter()
            .filter(|(index, _)| self.slots.hop(**index).is_ok_and(|hop| hop.flags & HOP_FAILED != 0))
            .map(|(_, address)| *address)
            .collect();
        self.failed.send_if_modified(|told| {
            let differs = *told != failed;
            *told = failed;
            differs
        });
    }

    /// Does what is due.
    pub fn work(&mut self, now: Instant) {
        self.read_clock(now);
        self.announce(now);
        for index in self.hops.due(now, STEPS) {
            let outcome = self.step(index, now);
            if outcome.is_err() {
                self.hops.postpone(index, now + LIST_INTERVAL);
            }
            self.tell("look after a next hop", outcome);
        }
        if self.list_due <= now {
            self.list_due = now + LIST_INTERVAL;
            let outcome = self.discover(now);
            self.tell("list next hops", outcome);
        }
        self.tell_failed();
        self.search(now);
        self.publish(now);
    }

    /// When there is something to be done again.
    pub fn next_due(&self, now: Instant) -> Instant {
        let search = if self.search.is_some() { now } else { self.search_due };
        let dues = [self.hops.next_due(), self.announcer.next_due(), Some(search), Some(self.list_due)];
        dues.into_iter().flatten().min().unwrap_or(now).max(now + TURN)
    }

    /// How it is.
    pub fn status(&self) -> &NextHopsStatus {
        &self.counts
    }

    /// Does what the data path asks for.
    pub fn take(&mut self, message: Message, now: Instant) {
        match message {
            Message::Resolved(index) => match self.look(index, now) {
                // Somebody wrote over what was learned, most likely this thread: once more.
                Some((_, Seen::Unresolved(_) | Seen::Failed)) => self.hops.restart(index, now),
                Some((_, seen)) => self.settle(index, seen, now),
                None => {}
            },
            Message::Moved(network) => self.moved.send_modify(|networks| {
                networks.insert(network);
            }),
            Message::Wait(held) => {
                if self.taken.take(now) {
                    self.arrive(held, now);
                } else {
                    self.counts.packets.lost += 1;
                }
            }
            Message::Fragment(held) => {
                if self.cut.take(now) {
                    self.counts.cut.packets += 1;
                    self.arrive(held, now);
                } else {
                    self.counts.cut.refused += 1;
                }
            }
        }
    }

    fn arrive(&mut self, held: Held, now: Instant) {
        let Flow { exit, target, .. } = held.upcall.flow;
        match exit {
            EXIT_PORT => self.send(&held, &Way::Port(target)),
            EXIT_TUNNEL => match self.underlay.lookup(&target) {
                Ok(Some(way)) => self.send(&held, &Way::Tunnel(way)),
                Ok(None) => self.counts.packets.lost += 1,
                Err(error) => {
                    self.counts.packets.lost += 1;
                    self.tell("read the underlay", Err(error));
                }
            },
            EXIT_EXTERNAL => self.arrive_for(target, held, now),
            _ => self.counts.packets.lost += 1,
        }
    }

    fn arrive_for(&mut self, index: u32, held: Held, now: Instant) {
        let Some((hop, seen)) = self.look(index, now) else {
            self.counts.packets.lost += 1;
            return;
        };
        match self.hops.arrive(index, seen, now) {
            Readiness::Ready => {
                // Those before it first.
                self.settle(index, seen, now);
                self.send(&held, &Way::External(hop));
            }
            Readiness::Wait => {
                if self.queue.push(index, held).is_some() {
                    self.counts.packets.lost += 1;
                }
            }
            Readiness::Failed => self.answer(&held),
        }
    }

    /// What the map says of a next hop. One whose network has another interface now is moved to it.
    fn look(&mut self, index: u32, now: Instant) -> Option<(Hop, Seen)> {
        let outcome = self.try_look(index);
        match outcome {
            Ok((hop, seen, moved)) => {
                if moved && self.hops.contains(index) {
                    self.hops.restart(index, now);
                }
                Some((hop, seen))
            }
            Err(error) => {
                self.tell("look at a next hop", Err(error));
                None
            }
        }
    }

    fn try_look(&mut self, index: u32) -> Result<(Hop, Seen, bool)> {
        let mut hop = self.slots.hop(index)?;
        if hop.flags & HOP_USED == 0 {
            return Ok((hop, Seen::Unused, false));
        }
        let Some(ifindex) = self.outside.interface(hop.network) else {
            return Ok((hop, Seen::Unreachable, false));
        };
        let moved = hop.ifindex != ifindex;
        if moved {
            self.slots.move_to(index, ifindex)?;
            hop = self.slots.hop(index)?;
        }
        Ok((hop, seen(&hop, self.ticks), moved))
    }

    /// Does for the packets that wait for a next hop what it is time for.
    fn settle(&mut self, index: u32, seen: Seen, now: Instant) {
        match self.hops.observe(index, seen, now) {
            Readiness::Wait => {}
            Readiness::Ready => {
                for held in self.queue.take(index) {
                    match self.slots.hop(index) {
                        Ok(hop) if hop.flags & HOP_RESOLVED != 0 => self.send(&held, &Way::External(hop)),
                        _ => self.counts.packets.lost += 1,
                    }
                }
            }
            Readiness::Failed => {
                for held in self.queue.take(index) {
                    self.answer(&held);
                }
            }
        }
    }

    fn step(&mut self, index: u32, now: Instant) -> Result<()> {
        if !self.requests.take(now) {
            self.hops.postpone(index, now + REQUEST_DELAY);
            return Ok(());
        }
        let (hop, seen) = self.look(index, now).context("it cannot be read")?;
        match self.hops.step(index, seen, now) {
            Step::Nothing => {}
            Step::Ask | Step::Probe => self.ask(index, &hop, None)?,
            Step::AskKnown => self.ask(index, &hop, Some(hop.mac))?,
            Step::Fail => self.slots.fail(index, &hop)?,
        }
        // Resolved or failed, nobody waits any longer.
        let (_, seen) = self.look(index, now).context("it cannot be read")?;
        match seen {
            Seen::Unresolved(_) => {}
            Seen::Unused => self.lose(index),
            _ if self.queue.waits(index) => self.settle(index, seen, now),
            _ => {}
        }
        Ok(())
    }

    /// Without it, ages are those of the turn before.
    fn read_clock(&mut self, now: Instant) {
        // Where time is made up, ticks go with it.
        let ahead = now.saturating_duration_since(Instant::now());
        match self.clock.read() {
            Ok(Ticks { now, per_second }) => {
                let ahead = (ahead.as_millis() * u128::from(per_second) / 1000) as u32;
                self.ticks = Ticks { now: now.wrapping_add(ahead), per_second };
            }
            Err(error) => self.tell("read the clock", Err(error)),
        }
    }

    fn ask(&mut self, index: u32, hop: &Hop, to: Option<[u8; 6]>) -> Result<()> {
        // Without any router there, nobody can ask: it fails in its time.
        let Some((mac, source)) = self.outside.asker(hop.network, hop.router, hop.ip) else { return Ok(()) };
        self.slots.note_asked(index, self.ticks.now)?;
        let frame = frames::request(mac, source, hop.ip, to);
        // An interface that is down or gone is like a network where nobody answers.
        if self.sender.frame(hop.ifindex, &frame).is_ok() {
            self.counts.requests += 1;
        }
        Ok(())
    }

    fn send(&mut self, held: &Held, way: &Way) {
        let outputs = match rewrite::outputs(held, way) {
            Ok(outputs) => outputs,
            Err(error) => {
                tracing::debug!(%error, ?way, "a packet cannot be sent");
                self.counts.packets.lost += 1;
                return;
            }
        };
        let mut sent = true;
        for output in &outputs {
            sent &= self.put(output);
        }
        if outputs.len() > 1 {
            self.counts.cut.fragments += outputs.len() as u64;
        }
        if sent {
            self.counts.packets.sent += 1;
        } else {
            self.counts.packets.lost += 1;
        }
    }

    fn put(&self, output: &Output) -> bool {
        match self.sender.send(output) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "a packet was not sent");
                false
            }
        }
    }

    fn answer(&mut self, held: &Held) {
        let answered = rewrite::refusal(held)
            .is_some_and(|frame| self.sender.frame(held.upcall.ifindex, &frame).is_ok());
        if answered {
            self.counts.packets.answered += 1;
        } else {
            self.counts.packets.lost += 1;
        }
    }

    /// The slot is gone; what waited for it is lost.
    fn lose(&mut self, index: u32) {
        self.counts.packets.lost += self.queue.take(index).len() as u64;
    }

    fn announce(&mut self, now: Instant) {
        while self.announcer.next_due().is_some_and(|due| due <= now) && self.announcements.take(now) {
            let Some((address, owned)) = self.announcer.next(now) else { break };
            let frame = frames::announcement(owned.mac, address.1, owned.router);
            match self.sender.frame(owned.ifindex, &frame) {
                Ok(()) => self.counts.announcements += 1,
                Err(error) => {
                    self.announcer.put_off(address, owned, now);
                    self.tell("announce an address", Err(error));
                }
            }
        }
    }

    /// Finds next hops whose packets never arrived here: the ring buffer was full, or no agent was running.
    fn discover(&mut self, now: Instant) -> Result<()> {
        let mut linked = self.slots.list()?;
        linked.retain(|(_, index)| !self.hops.contains(*index));
        for (_, index) in linked {
            if let Some((_, seen)) = self.look(index, now) {
                self.hops.observe(index, seen, now);
            }
        }
        Ok(())
    }

    /// Searches the flow tables for next hops by small steps, then lets go of those nobody wants.
    fn search(&mut self, now: Instant) {
        if self.search.is_none() {
            if self.search_due > now {
                return;
            }
            self.search_due = now + SEARCH_INTERVAL;
            if self.hops.is_empty() && !self.slots.is_any_parting() {
                return;
            }
            self.search = Some((now, Search::default()));
        }
        let Some((began, search)) = &mut self.search else { return };
        let began = *began;
        match search.go_on(&self.flows, SEARCH_BATCHES) {
            Ok(None) => {}
            Ok(Some(referenced)) => {
                self.search = None;
                let outcome = self.let_go(&referenced, began);
                let failed = self.hops.tally().failed > 0;
                let is_idle = !failed && !self.slots.is_any_parting();
                self.search_due = began + if is_idle { SEARCH_INTERVAL_IDLE } else { SEARCH_INTERVAL };
                self.tell("free next hops", outcome);
            }
            Err(error) => {
                self.search = None;
                self.search_due = now + SEARCH_INTERVAL;
                self.tell("search the flows for next hops", Err(error));
            }
        }
    }

    fn let_go(&mut self, referenced: &BTreeSet<u32>, began: Instant) -> Result<()> {
        self.hops.note_referenced(referenced, began);
        let mut unwanted = self.hops.unwanted(began);
        unwanted.retain(|&index| !self.queue.waits(index));
        let freed = self.slots.part(referenced, &unwanted)?;
        for &index in &unwanted {
            self.hops.forget(index);
        }
        if freed > 0 {
            tracing::debug!(freed, "next hops forgotten");
        }
        Ok(())
    }

    fn publish(&mut self, now: Instant) {
        if self.status_due > now {
            return;
        }
        self.status_due = now + STATUS_INTERVAL;
        self.counts.hops = self.hops.tally().into();
        self.counts.packets.waiting = self.queue.len();
        (self.publisher)(&self.counts);
    }

    /// Says once what does not work.
    fn tell<E: Display>(&mut self, what: &str, outcome: Result<(), E>) {
        let Err(error) = outcome else { return };
        let complaint = format!("external networks: cannot {what}: {error:#}");
        if self.complaint.as_ref() != Some(&complaint) {
            tracing::warn!("{complaint}");
            self.counts.error = Some(complaint.clone());
            self.complaint = Some(complaint);
        }
    }
}

/// What the map says, in terms of the state machine.
fn seen(hop: &Hop, ticks: Ticks) -> Seen {
    if hop.flags & HOP_RESOLVED != 0 {
        Seen::Resolved(ticks.age(hop.confirmed))
    } else if hop.flags & HOP_FAILED != 0 {
        Seen::Failed
    } else {
        Seen::Unresolved((hop.asked != 0).then(|| ticks.age(hop.asked)))
    }
}
