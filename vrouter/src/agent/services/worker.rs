//! The thread: finds whose a frame is and which service answers it, and lets services work.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};

use super::{
    call,
    sender::FrameSender,
    service::{Asker, Kind, Refused, Service},
    tally::Tally,
};
use crate::compile::Served;

/// Frames taken before everything else gets its turn.
const RECORDS: usize = 256;
/// How long it sleeps at the most.
const IDLE: Duration = Duration::from_secs(3600);

/// What a port may still send to a kind of service.
#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// Everything the thread owns.
pub struct Worker {
    services: Vec<Box<dyn Service>>,
    served: Arc<Served>,
    buckets: BTreeMap<(u32, Kind), Bucket>,
    sender: FrameSender,
    tally: Tally,
}

impl Worker {
    pub fn new(services: Vec<Box<dyn Service>>, sender: FrameSender, tally: Tally) -> Self {
        Self { services, served: Arc::new(Served::new()), buckets: BTreeMap::new(), sender, tally }
    }

    /// These are the ports now.
    pub fn follow(&mut self, served: Arc<Served>, now: Instant) {
        self.buckets.retain(|(ifindex, _), _| served.contains_key(ifindex));
        for service in &mut self.services {
            service.follow(&served, now);
        }
        self.served = served;
    }

    /// When there is something to do even if nobody asks.
    pub fn next_due(&self, now: Instant) -> Instant {
        self.services.iter().filter_map(|service| service.next_due()).min().unwrap_or(now + IDLE)
    }

    /// Takes what the data path handed over; whether there may be more.
    pub fn drain(&mut self, ring: &mut RingBuf<MapData>, now: Instant) -> bool {
        for _ in 0..RECORDS {
            let Some(record) = ring.next() else { return false };
            match call::read(&record) {
                Some((ifindex, frame)) => self.take(ifindex, frame, now),
                None => self.tally.count("unknown", Refused::MALFORMED.0),
            }
        }
        true
    }

    /// Has a frame answered.
    fn take(&mut self, ifindex: u32, frame: &[u8], now: Instant) {
        let Some(kind) = call::kind(frame) else {
            return self.tally.count("unknown", Refused::MALFORMED.0);
        };
        let served = self.served.clone();
        let outcome = match served.get(&ifindex) {
            None => Err(Refused::NOT_SERVED),
            Some(_) if !self.may(ifindex, kind, now) => Err(Refused::TOO_MANY),
            Some(port) => match self.services.iter_mut().find(|service| service.kinds().contains(&kind)) {
                Some(service) => service.answer(&Asker { ifindex, port, kind }, frame, &self.sender, now),
                None => Err(Refused::NOT_SERVED),
            },
        };
        let outcome = outcome.unwrap_or_else(|Refused(reason)| reason);
        self.tally.count(kind.name(), outcome);
    }

    /// Whether a port may have one more frame looked at.
    fn may(&mut self, ifindex: u32, kind: Kind, now: Instant) -> bool {
        let (rate, burst) = kind.pace();
        let full = Bucket { tokens: f64::from(burst), filled: now };
        let bucket = self.buckets.entry((ifindex, kind)).or_insert(full);
        let gained = now.saturating_duration_since(bucket.filled).as_secs_f64() * f64::from(rate);
        bucket.tokens = (bucket.tokens + gained).min(f64::from(burst));
        bucket.filled = now;
        let may = bucket.tokens >= 1.0;
        if may {
            bucket.tokens -= 1.0;
        }
        may
    }

    /// Lets services do what is due.
    pub fn work(&mut self, now: Instant) {
        for service in &mut self.services {
            if service.next_due().is_none_or(|due| due > now) {
                continue;
            }
            for (kind, outcome) in service.work(&self.sender, now) {
                self.tally.count(kind.name(), outcome);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_sends_too_much_is_refused_and_others_are_not() {
        let mut worker = Worker::new(Vec::new(), FrameSender::open().unwrap(), Tally::default());
        let start = Instant::now();
        let (rate, burst) = Kind::Dhcp.pace();
        let allowed =
            |worker: &mut Worker, port, now| (0..1000).filter(|_| worker.may(port, Kind::Dhcp, now)).count();
        assert_eq!(allowed(&mut worker, 1, start), burst as usize);
        assert_eq!(allowed(&mut worker, 2, start), burst as usize, "another port has its own share");
        assert_eq!(allowed(&mut worker, 1, start + Duration::from_secs(1)), rate as usize);
        assert_eq!(allowed(&mut worker, 1, start + Duration::from_secs(3600)), burst as usize);
        worker.follow(Arc::new(Served::new()), start);
        assert!(worker.buckets.is_empty(), "nothing is kept of ports that are gone");
    }
}
