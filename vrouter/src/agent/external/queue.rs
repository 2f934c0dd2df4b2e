//! Packets that wait for their next hop: few for each, not many in all, the oldest give way.

use std::collections::{BTreeMap, VecDeque};

/// Packets that wait for one next hop: as many as Linux's `unres_qlen` has.
const PER_HOP: usize = 101;
/// Packets that wait.
const IN_ALL: usize = 4096;

/// The queues, by index of the next hop.
#[derive(Debug)]
pub struct Queue<P> {
    waiting: BTreeMap<u32, VecDeque<(u64, P)>>,
    /// Which next hop each packet waits for, in order of arrival.
    order: BTreeMap<u64, u32>,
    arrived: u64,
}

impl<P> Queue<P> {
    /// Nobody waits.
    pub fn new() -> Self {
        Self { waiting: BTreeMap::new(), order: BTreeMap::new(), arrived: 0 }
    }

    /// Adds a packet; returns the one that had to give way.
    pub fn push(&mut self, hop: u32, packet: P) -> Option<P> {
        let full = self.waiting.get(&hop).is_some_and(|waiting| waiting.len() >= PER_HOP);
        let gone = if full {
            self.pop(hop)
        } else if self.order.len() >= IN_ALL {
            self.order.first_key_value().map(|(_, &oldest)| oldest).and_then(|oldest| self.pop(oldest))
        } else {
            None
        };
        self.order.insert(self.arrived, hop);
        self.waiting.entry(hop).or_default().push_back((self.arrived, packet));
        self.arrived += 1;
        gone
    }

    /// Takes the oldest packet of a next hop.
    fn pop(&mut self, hop: u32) -> Option<P> {
        let waiting = self.waiting.get_mut(&hop)?;
        let (arrived, packet) = waiting.pop_front()?;
        if waiting.is_empty() {
            self.waiting.remove(&hop);
        }
        self.order.remove(&arrived);
        Some(packet)
    }

    /// Takes all packets of a next hop, in order of arrival.
    pub fn take(&mut self, hop: u32) -> Vec<P> {
        let waiting = self.waiting.remove(&hop).unwrap_or_default();
        waiting
            .into_iter()
            .map(|(arrived, packet)| {
                self.order.remove(&arrived);
                packet
            })
            .collect()
    }

    /// Whether any packet waits for a next hop.
    pub fn waits(&self, hop: u32) -> bool {
        self.waiting.contains_key(&hop)
    }

    /// Packets that wait.
    pub fn len(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_leave_in_the_order_they_came() {
        let mut queue = Queue::new();
        for packet in 0..5 {
            assert_eq!(queue.push(packet % 2, packet), None);
        }
        assert_eq!(queue.take(0), [0, 2, 4]);
        assert!(queue.take(0).is_empty());
        assert!(queue.waits(1) && !queue.waits(0));
        assert_eq!(queue.take(1), [1, 3]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn the_oldest_of_a_next_hop_gives_way() {
        let mut queue = Queue::new();
        queue.push(7, 100);
        let count = PER_HOP as u32;
        for packet in 0..count {
            assert_eq!(queue.push(1, packet), None);
        }
        assert_eq!(queue.push(1, count), Some(0), "its own oldest, not the oldest of all");
        assert_eq!(queue.take(1), (1..=count).collect::<Vec<_>>());
        assert_eq!(queue.take(7), [100]);
    }

    #[test]
    fn the_oldest_of_all_gives_way() {
        let mut queue = Queue::new();
        for hop in 0..IN_ALL as u32 {
            assert_eq!(queue.push(hop, hop), None);
        }
        assert_eq!(queue.push(5000, 5000), Some(0));
        assert_eq!(queue.push(5001, 5001), Some(1));
        assert_eq!(queue.len(), IN_ALL);
        assert!(!queue.waits(0) && !queue.waits(1) && queue.waits(2));
        // A queue that is full itself takes from itself.
        let mut queue = Queue::new();
        for packet in 0..IN_ALL as u32 + 100 {
            queue.push(packet / 8, packet);
        }
        assert_eq!(queue.len(), IN_ALL);
    }
}
