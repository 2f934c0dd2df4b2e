//! Router advertisements (RFC 4861, RFC 8106): to each port by itself, now and then, and when it asks.

pub mod advert;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv6Addr,
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
use advert::{Advert, LIFETIME, Prefix};

/// RFC 4861, 6.2.1: between two unsolicited ones.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(200), Duration::from_secs(600));
/// The first ones come sooner (6.2.4), the very first at once: a port that was plugged or that is to know something
/// else should not wait.
const SOON: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
const INITIAL: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(16));
const INITIAL_COUNT: u32 = 3;

/// How long prefixes and DNS servers are taken back. A host keeps a prefix's address for two hours at the most, and uses
/// it for nothing new (RFC 4862, 5.5.3); a server it would use for its whole lifetime. One that did not listen at first,
/// as a paused one, hears it later.
const WITHDRAWN: Duration = Duration::from_secs(LIFETIME as u64);
/// How many of each are at once, the last ones: an advertisement must fit a packet.
const WITHDRAWN_MAX: usize = 16;

// RFC 8106, 5.1: who misses two still knows.
const _: () = assert!(LIFETIME as u64 >= 3 * INTERVAL.1.as_secs());

/// What a port is told.
struct Told {
    adverts: Vec<Advert>,
    /// Advertised before, and not any more: to be taken back.
    gone: Vec<Advert>,
    /// Prefixes that were advertised and are not any more, as they are taken back, and until when.
    withdrawn: Vec<(Prefix, Instant)>,
    /// DNS servers likewise.
    servers_gone: Vec<ServerGone>,
    due: Instant,
    /// How many are still to come sooner.
    initial: u32,
}

/// A DNS server that was advertised and is not any more.
#[derive(Clone, Copy)]
struct ServerGone {
    server: Ipv6Addr,
    /// Who told it: some hosts keep servers by router.
    by: Ipv6Addr,
    until: Instant,
}

impl Told {
    /// What is to be sent.
    fn all(&self) -> impl Iterator<Item = Advert> {
        let mut all: Vec<_> = self.gone.iter().chain(&self.adverts).cloned().collect();
        for gone in &self.servers_gone {
            let by = all.iter().position(|advert| advert.source == gone.by).unwrap_or(0);
            if let Some(advert) = all.get_mut(by)
                && !advert.dns_gone.contains(&gone.server)
            {
                advert.dns_gone.push(gone.server);
            }
        }
        // By the first one: hosts do not look who says it.
        if let Some(first) = all.first_mut() {
            first.prefixes.extend(self.withdrawn.iter().map(|(prefix, _)| *prefix));
        }
        all.into_iter()
    }

    /// Prefixes that are to be taken back of `before` if this is advertised now.
    fn withdrawn(before: Option<&Self>, adverts: &[Advert], now: Instant) -> Vec<(Prefix, Instant)> {
        let Some(before) = before else { return Vec::new() };
        let told: Vec<_> = prefixes(adverts).collect();
        let mut withdrawn: Vec<(Prefix, Instant)> = Vec::new();
        let left = prefixes(&before.adverts).map(|prefix| (prefix, now + WITHDRAWN));
        for (prefix, until) in left.chain(before.withdrawn.iter().copied()) {
            if let Some(prefix) = prefix.withdrawn(&told)
                && until > now
                && !withdrawn.iter().any(|(known, _)| *known == prefix)
            {
                withdrawn.push((prefix, until));
            }
        }
        withdrawn.truncate(WITHDRAWN_MAX);
        withdrawn
    }

    /// DNS servers likewise.
    fn servers_gone(before: Option<&Self>, adverts: &[Advert], now: Instant) -> Vec<ServerGone> {
        let Some(before) = before else { return Vec::new() };
        let left = before.adverts.iter().flat_map(|advert| {
            let gone =
                |server: &Ipv6Addr| ServerGone { server: *server, by: advert.source, until: now + WITHDRAWN };
            advert.dns.iter().map(gone)
        });
        let mut servers: Vec<ServerGone> = Vec::new();
        for gone in left.chain(before.servers_gone.iter().copied()) {
            let is_told = adverts.iter().any(|advert| advert.dns.contains(&gone.server));
            let is_known = servers.iter().any(|known| (known.server, known.by) == (gone.server, gone.by));
            if gone.until > now && !is_told && !is_known {
                servers.push(gone);
            }
        }
        servers.truncate(WITHDRAWN_MAX);
        servers
    }
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
        let Some(told) = self.told.get(&asker.ifindex) else { return Err(Refused::NOT_SERVED) };
        let asking = sender_of(frame).filter(|(source, _)| source.is_unicast_link_local());
        for advert in told.all() {
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
            let withdrawn = Told::withdrawn(before, &adverts, now);
            let servers_gone = Told::servers_gone(before, &adverts, now);
            let initial = INITIAL_COUNT;
            self.told.insert(ifindex, Told { adverts, gone, withdrawn, servers_gone, due, initial });
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
            told.withdrawn.retain(|(_, until)| *until > now);
            told.servers_gone.retain(|gone| gone.until > now);
            for advert in told.all() {
                let sent = sender.send(ifindex, &advert.frame(None)).is_ok();
                done.push((Kind::Router, if sent { "periodic" } else { Refused::NOT_SENT.0 }));
            }
            // As often as anything new is told: one alone may be lost, or not even be sent.
            let is_said = told.initial == 0;
            let is_over = told.withdrawn.is_empty() && told.servers_gone.is_empty();
            match (told.adverts.is_empty(), is_over) {
                (true, true) if is_said => {
                    self.told.remove(&ifindex);
                    continue;
                }
                // Who has left takes back what it told as long as there is nobody else to do it.
                (true, _) => {}
                (false, _) if is_said => told.gone.clear(),
                (false, _) => {}
            }
            let within = if told.initial > 0 { INITIAL } else { INTERVAL };
            told.initial = told.initial.saturating_sub(1);
            self.schedule(ifindex, within, now);
        }
        done
    }
}

fn prefixes(adverts: &[Advert]) -> impl Iterator<Item = Prefix> {
    adverts.iter().flat_map(|advert| advert.prefixes.iter().copied())
}

/// A time between two, by chance: nodes and ports must not advertise in step.
fn between((least, most): (Duration, Duration)) -> Duration {
    let chance = f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX);
    least + (most - least).mul_f64(chance)
}

#[cfg(test)]
mod tests;
