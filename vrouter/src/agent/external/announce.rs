//! When to tell an external network that an address is here: three times, a second apart, for every address
//! that is new here or has another hardware address or interface (RFC 5227, 2.3; RFC 4861, 7.2.6).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::outside::{Address, Owned};

/// Announcements of an address.
const TIMES: u32 = 3;
/// Between two announcements of an address.
const INTERVAL: Duration = Duration::from_secs(1);
/// Until the next attempt if one could not be sent.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
struct Pending {
    owned: Owned,
    left: u32,
    due: Instant,
}

/// What is still to be announced.
#[derive(Debug, Default)]
pub struct Announcer {
    owned: BTreeMap<Address, Owned>,
    pending: BTreeMap<Address, Pending>,
    timers: BTreeSet<(Instant, Address)>,
}

impl Announcer {
    /// From now on these addresses are here, and no others.
    pub fn follow(&mut self, owned: &BTreeMap<Address, Owned>, now: Instant) {
        let gone: Vec<_> =
            self.pending.keys().filter(|address| !owned.contains_key(address)).copied().collect();
        for address in gone {
            self.cancel(address);
        }
        for (&address, &is) in owned {
            if self.owned.get(&address) != Some(&is) {
                self.cancel(address);
                self.schedule(address, Pending { owned: is, left: TIMES, due: now });
            }
        }
        self.owned.clone_from(owned);
    }

    /// The next address whose time has come.
    pub fn next(&mut self, now: Instant) -> Option<(Address, Owned)> {
        let &(due, address) = self.timers.first().filter(|(due, _)| *due <= now)?;
        self.timers.remove(&(due, address));
        let mut pending = self.pending.remove(&address)?;
        let owned = pending.owned;
        pending.left -= 1;
        if pending.left > 0 {
            // From now, not from when it was due: an announcement that had to wait is not followed at once.
            pending.due = now + INTERVAL;
            self.schedule(address, pending);
        }
        Some((address, owned))
    }

    /// It could not be sent (the interface is down): begins again later.
    pub fn put_off(&mut self, address: Address, owned: Owned, now: Instant) {
        self.cancel(address);
        self.schedule(address, Pending { owned, left: TIMES, due: now + RETRY });
    }

    /// When the next one's time comes.
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|&(due, _)| due)
    }

    fn schedule(&mut self, address: Address, pending: Pending) {
        self.timers.insert((pending.due, address));
        self.pending.insert(address, pending);
    }

    fn cancel(&mut self, address: Address) {
        if let Some(pending) = self.pending.remove(&address) {
            self.timers.remove(&(pending.due, address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::outside::tests::ip, *};

    fn owned(addresses: &[(&str, u8, u32)]) -> BTreeMap<Address, Owned> {
        addresses
            .iter()
            .map(|&(address, mac, ifindex)| {
                ((5, ip(address)), Owned { mac: [2, 0, 0, 0, 0, mac], ifindex, router: false })
            })
            .collect()
    }

    /// What is announced at a moment: the addresses' last bytes.
    fn announced(announcer: &mut Announcer, now: Instant) -> Vec<u8> {
        let next = || announcer.next(now).map(|((_, ip), _)| ip.0[3].to_ne_bytes()[3]);
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn what_is_new_is_announced_three_times() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut announcer = Announcer::default();
        announcer.follow(&owned(&[("10.0.0.1", 1, 9), ("10.0.0.2", 2, 9)]), start);
        assert_eq!(announced(&mut announcer, start), [1, 2]);
        assert!(announced(&mut announcer, at(999)).is_empty());
        assert_eq!(announced(&mut announcer, at(1000)), [1, 2]);
        assert_eq!(announced(&mut announcer, at(2000)), [1, 2]);
        assert!(announced(&mut announcer, at(60_000)).is_empty());
        assert_eq!(announcer.next_due(), None);
    }

    #[test]
    fn only_what_changed_is_announced_again() {
        let start = Instant::now();
        let mut announcer = Announcer::default();
        announcer.follow(&owned(&[("10.0.0.1", 1, 9), ("10.0.0.2", 2, 9), ("10.0.0.3", 3, 9)]), start);
        let later = start + Duration::from_secs(10);
        for second in 0..3 {
            announced(&mut announcer, start + Duration::from_secs(second));
        }
        // The same; another hardware address; another interface; and a new one.
        let changed =
            owned(&[("10.0.0.1", 1, 9), ("10.0.0.2", 7, 9), ("10.0.0.3", 3, 8), ("10.0.0.4", 4, 9)]);
        announcer.follow(&changed, later);
        assert_eq!(announced(&mut announcer, later), [2, 3, 4]);
        announcer.follow(&changed, later);
        assert!(announced(&mut announcer, later).is_empty(), "nothing changed");
    }

    #[test]
    fn what_left_is_never_announced_again() {
        let start = Instant::now();
        let mut announcer = Announcer::default();
        announcer.follow(&owned(&[("10.0.0.1", 1, 9), ("10.0.0.2", 2, 9)]), start);
        assert_eq!(announced(&mut announcer, start), [1, 2]);
        announcer.follow(&owned(&[("10.0.0.2", 2, 9)]), start);
        assert_eq!(announced(&mut announcer, start + Duration::from_secs(1)), [2]);
        // It is back: that is new again.
        announcer
            .follow(&owned(&[("10.0.0.1", 1, 9), ("10.0.0.2", 2, 9)]), start + Duration::from_millis(1500));
        assert_eq!(announced(&mut announcer, start + Duration::from_millis(1500)), [1]);
    }

    #[test]
    fn what_cannot_be_sent_is_tried_again_from_the_beginning() {
        let start = Instant::now();
        let mut announcer = Announcer::default();
        announcer.follow(&owned(&[("10.0.0.1", 1, 9)]), start);
        announced(&mut announcer, start);
        let second = start + Duration::from_secs(1);
        let (address, is) = announcer.next(second).expect("the second");
        announcer.put_off(address, is, second);
        assert_eq!(announcer.next_due(), Some(second + RETRY));
        let again = |at| second + RETRY + Duration::from_secs(at);
        for at in 0..3 {
            assert_eq!(announced(&mut announcer, again(at)), [1]);
        }
        assert_eq!(announcer.next_due(), None);
    }

    #[test]
    fn a_change_while_announcing_begins_again_with_what_is() {
        let start = Instant::now();
        let mut announcer = Announcer::default();
        announcer.follow(&owned(&[("10.0.0.1", 1, 9)]), start);
        announced(&mut announcer, start);
        let second = start + Duration::from_secs(1);
        announcer.follow(&owned(&[("10.0.0.1", 6, 9)]), second);
        for again in 0..3 {
            let (_, is) = announcer.next(second + Duration::from_secs(again)).expect("three times");
            assert_eq!(is.mac[5], 6, "never the old one");
        }
        assert_eq!(announcer.next_due(), None);
    }
}
