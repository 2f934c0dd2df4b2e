//! Router advertisements (RFC 4861, RFC 8106): to each port by itself, now and then, and when it asks.

pub mod advert;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    call,
    dhcpv6::sender_of,
    sender::FrameSender,
    service::{Asker, Kind, Refused, Service},
};
use crate::compile::Served;
use advert::{Advert, LIFETIME};

/// RFC 4861, 6.2.1: between two unsolicited ones.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(200), Duration::from_secs(600));
/// The first ones come sooner (6.2.4), the very first at once: a port that was plugged or that is to know something
/// else should not wait.
const SOON: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
const INITIAL: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(16));
const INITIAL_COUNT: u32 = 3;

const _: () = assert!(LIFETIME as u64 == 3 * INTERVAL.1.as_secs());

/// What a port is told.
struct Told {
    adverts: Vec<Advert>,
    /// Advertised before, and not any more: to be taken back.
    gone: Vec<Advert>,
    due: Instant,
    /// How many are still to come sooner.
    initial: u32,
}

/// See the module.
#[derive(Default)]
pub struct Router {
    told: BTreeMap<u32, Told>,
    queue: BTreeSet<(Instant, u32)>,
}

impl Router {
    fn schedule(&mut self, ifindex: u32, within: (Duration, Duration), now: Instant) {
        let Some(told) = self.told.get_mut(&ifindex) else { return };
        self.queue.remove(&(told.due, ifindex));
        told.due = now + between(within);
        self.queue.insert((told.due, ifindex));
    }
}

impl Service for Router {
    fn kinds(&self) -> &'static [Kind] {
        &[Kind::Router]
    }

    fn answer(
        &mut self,
        asker: &Asker<'_>,
        frame: &[u8],
        sender: &FrameSender,
        _now: Instant,
    ) -> Result<&'static str, Refused> {
        advert::check_solicitation(frame)?;
        let transport = call::transport(frame).ok_or(Refused::MALFORMED)?;
        if transport.fragment {
            return Err(Refused::FRAGMENT);
        }
        let adverts = advert::adverts(asker.port);
        if adverts.is_empty() {
            return Err(Refused::NOT_SERVED);
        }
        let asking = sender_of(frame).filter(|(source, _)| source.is_unicast_link_local());
        for advert in adverts {
            sender.send(asker.ifindex, &advert.frame(asking)).map_err(|_| Refused::NOT_SENT)?;
        }
        Ok("solicited")
    }

    fn follow(&mut self, served: &Arc<Served>, now: Instant) {
        let gone: Vec<u32> = self.told.keys().copied().filter(|port| !served.contains_key(port)).collect();
        for ifindex in gone {
            if let Some(told) = self.told.remove(&ifindex) {
                self.queue.remove(&(told.due, ifindex));
            }
        }
        for (&ifindex, port) in served.iter() {
            let adverts = advert::adverts(port);
            let before = self.told.get(&ifindex);
            if before.map_or(adverts.is_empty(), |told| told.adverts == adverts) {
                continue;
            }
            // Who is not heard of any more has to be taken back, or a default route stays that leads nowhere.
            let is_there = |gone: &&Advert| adverts.iter().any(|advert| advert.source == gone.source);
            let known = before.map(|told| told.adverts.iter().chain(&told.gone));
            let gone: Vec<_> = known
                .into_iter()
                .flatten()
                .filter(|advert| !is_there(advert))
                .map(Advert::farewell)
                .collect();
            let due = before.map_or(now, |told| told.due);
            self.told.insert(ifindex, Told { adverts, gone, due, initial: INITIAL_COUNT });
            self.schedule(ifindex, SOON, now);
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.queue.first().map(|(due, _)| *due)
    }

    fn work(&mut self, sender: &FrameSender, now: Instant) -> Vec<(Kind, &'static str)> {
        let mut done = Vec::new();
        while let Some(&(due, ifindex)) = self.queue.first()
            && due <= now
        {
            self.queue.pop_first();
            let Some(told) = self.told.get_mut(&ifindex) else { continue };
            for advert in std::mem::take(&mut told.gone).iter().chain(&told.adverts) {
                let sent = sender.send(ifindex, &advert.frame(None)).is_ok();
                done.push((Kind::Router, if sent { "periodic" } else { Refused::NOT_SENT.0 }));
            }
            if told.adverts.is_empty() {
                self.told.remove(&ifindex);
                continue;
            }
            let within = if told.initial > 0 { INITIAL } else { INTERVAL };
            told.initial = told.initial.saturating_sub(1);
            self.schedule(ifindex, within, now);
        }
        done
    }
}

/// A time between two, by chance: nodes and ports must not advertise in step.
fn between((least, most): (Duration, Duration)) -> Duration {
    let chance = f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX);
    least + (most - least).mul_f64(chance)
}

#[cfg(test)]
mod tests;
