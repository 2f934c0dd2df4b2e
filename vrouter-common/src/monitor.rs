//! What `vrouter monitor` and the data path say to each other: records in one direction, what is wanted in the other.

use crate::{
    addr::{Be16, Be32, Ip},
    flow::FlowKey,
};

/// A packet was dropped.
pub const MONITOR_DROP: u32 = 1;
/// A flow began.
pub const MONITOR_NEW: u32 = 2;
/// A flow was forgotten after its time.
pub const MONITOR_CLOSED: u32 = 4;
/// A flow that is translated began, or was forgotten.
pub const MONITOR_NAT: u32 = 8;
/// A rule allowed a flow, or none did.
pub const MONITOR_POLICY: u32 = 16;

/// Nothing but the packet and its interface.
pub const MONITOR_KNOWN_NOTHING: u32 = 0;
/// Where it came in.
pub const MONITOR_KNOWN_PLACE: u32 = 1;
/// What its headers say.
pub const MONITOR_KNOWN_PACKET: u32 = 2;
/// What was decided, as far as it came.
pub const MONITOR_KNOWN_DECISION: u32 = 3;

/// Something that happened. [`Self::captured`] bytes of the packet follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MonitorRecord {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time: u64,
    /// Of a flow that ends: packets of the direction of [`Self::key`].
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets of the other direction.
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
    /// Where it came in ([`MONITOR_KNOWN_PLACE`]), addresses and ports ([`MONITOR_KNOWN_PACKET`]).
    pub key: FlowKey,
    /// Source address as translated so far ([`MONITOR_KNOWN_DECISION`], like all that follows up to `rule`).
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// Number of the network it came in on.
    pub network: u32,
    /// Number of the network it was to leave on.
    pub network_out: u32,
    /// As in [`crate::flow::Flow::target`].
    pub target: u32,
    /// Number of the router that translates.
    pub router: u32,
    /// Number of the rule that allowed it.
    pub rule: u32,
    /// `MONITOR_DROP` and its siblings: all that it is.
    pub kinds: u32,
    /// Interface the packet came in by.
    pub ifindex: u32,
    /// The node that sent it, else 0.
    pub vtep: Be32,
    /// Offset of the inner frame.
    pub at: u32,
    /// Bytes of the packet.
    pub len: u32,
    /// Bytes of it behind this record.
    pub captured: u32,
    /// Of a flow that ends: how long it lasted, in ticks.
    pub ticks: u32,
    /// [`crate::reason::DropReason`], or 0.
    pub reason: u8,
    /// `MONITOR_KNOWN_*`.
    pub known: u8,
    /// `EXIT_*`, or 0.
    pub exit: u8,
    /// `ROLE_*`.
    pub role: u8,
    /// Handled by XDP.
    pub xdp: u8,
    /// Zero.
    pub zero: [u8; 3],
}
const _: () = assert!(size_of::<MonitorRecord>() == 5 * 8 + 44 + 2 * 16 + 2 * 2 + 12 * 4 + 8);

/// Bytes of a packet that a record carries at the most.
pub const MONITOR_CAPTURE_MAX: usize = 256;

/// A record and a packet's beginning.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MonitorScratch {
    /// The record.
    pub record: MonitorRecord,
    /// The packet.
    pub packet: [u8; MONITOR_CAPTURE_MAX],
}
const _: () = assert!(size_of::<MonitorScratch>() == size_of::<MonitorRecord>() + MONITOR_CAPTURE_MAX);

/// A range of addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MonitorRange {
    /// Its bits.
    pub ip: Ip,
    /// Which of them count.
    pub mask: Ip,
}

impl MonitorRange {
    /// Whether an address is in it.
    #[inline(always)]
    pub const fn contains(&self, ip: &Ip) -> bool {
        let (is, want, mask) = (&ip.0, &self.ip.0, &self.mask.0);
        (is[0] ^ want[0]) & mask[0]
            | (is[1] ^ want[1]) & mask[1]
            | (is[2] ^ want[2]) & mask[2]
            | (is[3] ^ want[3]) & mask[3]
            == 0
    }
}

/// Ranges a listener can give.
pub const MONITOR_RANGES: usize = 4;

/// What a listener wants to hear. It may be more than that: user space looks again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MonitorSet {
    /// CLOCK_MONOTONIC, nanoseconds: whoever listens puts it off again and again. 0: nobody does.
    pub deadline: u64,
    /// By drop reason, a bit each.
    pub reasons: [u64; 4],
    /// Only packets with an address in one of these, or of `ifindex`.
    pub ranges: [MonitorRange; MONITOR_RANGES],
    /// How many of them are given. Neither ranges nor an interface: all packets.
    pub range_count: u32,
    /// Only packets from or to this interface, or of `ranges`; 0: not given.
    pub ifindex: u32,
    /// `MONITOR_DROP` and its siblings.
    pub kinds: u32,
    /// One of so many.
    pub sample: u32,
    /// Bytes of each packet.
    pub capture: u32,
    /// Only this protocol; [`MONITOR_ANY`]: all.
    pub proto: u32,
    /// Only packets from or to this port; 0: all.
    pub l4port: Be16,
    /// Zero.
    pub zero: [u16; 3],
}
const _: () = assert!(size_of::<MonitorSet>() == 8 + 32 + MONITOR_RANGES * 32 + 6 * 4 + 8);

/// [`MonitorSet::proto`]: all protocols.
pub const MONITOR_ANY: u32 = 256;

/// How many were wanted.
pub const MONITOR_COUNT_WANTED: u32 = 0;
/// Those of them that sampling left out.
pub const MONITOR_COUNT_SKIPPED: u32 = 1;
/// Those that found the ring full.
pub const MONITOR_COUNT_LOST: u32 = 2;
/// Counters there are.
pub const MONITOR_COUNTS: u32 = 3;

impl MonitorSet {
    /// Whether what a record says is wanted, apart from sampling.
    #[inline(always)]
    pub fn wants(&self, record: &MonitorRecord) -> bool {
        if self.kinds & record.kinds == 0 {
            return false;
        }
        let reason = record.reason as usize;
        if reason != 0 && self.reasons[(reason / 64) & 3] >> (reason & 63) & 1 == 0 {
            return false;
        }
        if (record.known as u32) < MONITOR_KNOWN_PACKET {
            // User space reads the packet.
            return true;
        }
        let key = &record.key;
        if self.proto != MONITOR_ANY && self.proto != key.proto as u32 {
            return false;
        }
        if self.l4port.memory() != 0 {
            let port = self.l4port;
            let known = record.known as u32 == MONITOR_KNOWN_DECISION;
            if port != key.sport
                && port != key.dport
                && !(known && (port == record.sport || port == record.dport))
            {
                return false;
            }
        }
        self.covers(record)
    }

    #[inline(always)]
    fn covers(&self, record: &MonitorRecord) -> bool {
        use crate::flow::EXIT_PORT;
        if self.ifindex == 0 && self.range_count == 0 {
            return true;
        }
        if self.ifindex != 0
            && (self.ifindex == record.ifindex || record.exit == EXIT_PORT && self.ifindex == record.target)
        {
            return true;
        }
        let mut i = 0;
        while i < MONITOR_RANGES {
            if i as u32 >= self.range_count {
                return false;
            }
            let range = &self.ranges[i];
            if range.contains(&record.key.src)
                || range.contains(&record.key.dst)
                || range.contains(&record.src)
                || range.contains(&record.dst)
            {
                return true;
            }
            i += 1;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::{flow::EXIT_PORT, reason::DropReason};

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().expect("an address").into()
    }

    fn everything() -> MonitorSet {
        MonitorSet {
            reasons: [u64::MAX; 4],
            kinds: MONITOR_DROP,
            proto: MONITOR_ANY,
            ..MonitorSet::default()
        }
    }

    fn drop_of(src: &str, dst: &str) -> MonitorRecord {
        let key = FlowKey {
            src: ip(src),
            dst: ip(dst),
            sport: Be16::new(1000),
            dport: Be16::new(53),
            proto: 17,
            ..FlowKey::default()
        };
        MonitorRecord {
            key,
            kinds: MONITOR_DROP,
            reason: DropReason::FragmentTooLong as u8,
            known: MONITOR_KNOWN_DECISION as u8,
            ..MonitorRecord::default()
        }
    }

    #[test]
    fn each_filter_leaves_out_what_it_is_about() {
        let record = drop_of("10.0.1.11", "10.0.2.13");
        assert!(everything().wants(&record));
        let reason = DropReason::FragmentTooLong as usize;
        let mut others = [u64::MAX; 4];
        others[reason / 64] &= !(1 << (reason % 64));
        let range = |address: &str, bits: u32| MonitorSet {
            ranges: [
                MonitorRange {
                    ip: ip(address),
                    mask: Ip([u32::MAX, u32::MAX, u32::MAX, (!0_u32 << (32 - bits)).to_be()]),
                },
                MonitorRange::default(),
                MonitorRange::default(),
                MonitorRange::default(),
            ],
            range_count: 1,
            ..everything()
        };
        let on = |set: MonitorSet, ifindex: u32| MonitorSet { ifindex, ..set };
        let record = MonitorRecord { ifindex: 7, target: 9, exit: EXIT_PORT, ..record };
        for (what, set, wanted) in [
            ("another kind", MonitorSet { kinds: MONITOR_NEW, ..everything() }, false),
            ("another reason", MonitorSet { reasons: others, ..everything() }, false),
            ("its protocol", MonitorSet { proto: 17, ..everything() }, true),
            ("another protocol", MonitorSet { proto: 6, ..everything() }, false),
            ("its port", MonitorSet { l4port: Be16::new(53), ..everything() }, true),
            ("another port", MonitorSet { l4port: Be16::new(54), ..everything() }, false),
            ("its source", range("10.0.1.0", 24), true),
            ("its destination", range("10.0.2.12", 31), true),
            ("another range", range("10.0.3.0", 24), false),
            ("where it came in", on(everything(), 7), true),
            ("where it goes", on(everything(), 9), true),
            ("another interface", on(everything(), 8), false),
            ("either is enough", on(range("10.0.1.0", 24), 8), true),
        ] {
            assert_eq!(set.wants(&record), wanted, "{what}");
        }
    }

    #[test]
    fn what_the_data_path_has_not_read_is_left_to_user_space() {
        let set = MonitorSet { proto: 6, l4port: Be16::new(80), ifindex: 9, ..everything() };
        let record = MonitorRecord { known: MONITOR_KNOWN_PLACE as u8, ..drop_of("10.0.1.11", "10.0.2.13") };
        assert!(set.wants(&record));
        assert!(!MonitorSet { reasons: [0; 4], ..set }.wants(&record));
    }

    #[test]
    fn a_translated_address_counts() {
        let record = MonitorRecord { src: ip("203.0.113.10"), ..drop_of("10.0.1.11", "198.51.100.10") };
        let mut set = MonitorSet { range_count: 1, ..everything() };
        set.ranges[0] = MonitorRange { ip: ip("203.0.113.10"), mask: Ip([u32::MAX; 4]) };
        assert!(set.wants(&record));
        assert!(!set.wants(&drop_of("10.0.1.11", "198.51.100.10")));
    }
}
