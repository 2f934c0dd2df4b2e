//! What the data path hands over: a record of the ring buffer, and the packet in it.

use vrouter_common::{
    tables::{UPCALL_FRAGMENT, UPCALL_FRAME_MAX, UPCALL_MOVED, UPCALL_RESOLVED, UPCALL_WAIT, Upcall},
    wire::{ETH_LEN, OUTER_LEN},
};

/// A packet that was decided, and is to be sent by the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What was decided.
    pub upcall: Upcall,
    /// The frame as it came in.
    pub frame: Vec<u8>,
}

impl Held {
    /// Whether it came in by a tunnel, and still has its outer headers.
    pub fn tunnelled(&self) -> bool {
        self.upcall.at != 0
    }
}

/// What the data path has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A packet waits for its next hop.
    Wait(Held),
    /// A packet is to be cut.
    Fragment(Held),
    /// A next hop answered.
    Resolved(u32),
    /// On a network of this number an address is claimed by somebody else than before.
    Moved(u32),
}

/// Reads a record; `None`: it is none of ours.
pub fn read(record: &[u8]) -> Option<Message> {
    let (head, rest) = record.split_at_checked(size_of::<Upcall>())?;
    // SAFETY: as many bytes as an `Upcall` has, any of which are one (Pod); they may lie anywhere.
    let upcall = unsafe { std::ptr::read_unaligned(head.as_ptr().cast::<Upcall>()) };
    if upcall.kind == UPCALL_RESOLVED {
        return Some(Message::Resolved(upcall.hop));
    }
    if upcall.kind == UPCALL_MOVED {
        return Some(Message::Moved(upcall.hop));
    }
    let (len, at) = (upcall.len as usize, upcall.at as usize);
    if len > UPCALL_FRAME_MAX || !matches!(at, 0 | OUTER_LEN) || len < at + ETH_LEN {
        return None;
    }
    let held = Held { upcall, frame: rest.get(..len)?.to_vec() };
    match upcall.kind {
        UPCALL_WAIT => Some(Message::Wait(held)),
        UPCALL_FRAGMENT => Some(Message::Fragment(held)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(upcall: &Upcall, frame: &[u8]) -> Vec<u8> {
        let at = std::ptr::from_ref(upcall).cast::<u8>();
        // SAFETY: the bytes of a struct without padding (asserted where it is defined).
        let mut bytes = unsafe { std::slice::from_raw_parts(at, size_of::<Upcall>()) }.to_vec();
        bytes.extend(frame);
        bytes
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let frame: Vec<u8> = (0..100).collect();
        let mut padded = frame.clone();
        padded.resize(UPCALL_FRAME_MAX, 0xee);
        let upcall = Upcall { kind: UPCALL_WAIT, hop: 3, len: 100, ifindex: 9, ..Upcall::default() };
        let held = Held { upcall, frame: frame.clone() };
        assert_eq!(read(&record(&upcall, &padded)), Some(Message::Wait(held.clone())));
        let upcall = Upcall { kind: UPCALL_FRAGMENT, at: OUTER_LEN as u32, ..upcall };
        let held = Held { upcall, ..held };
        assert!(held.tunnelled());
        // Wherever it lies.
        let shifted = [vec![0], record(&upcall, &padded)].concat();
        assert_eq!(read(&shifted[1..]), Some(Message::Fragment(held)));
        let upcall = Upcall { kind: UPCALL_RESOLVED, hop: 77, ..Upcall::default() };
        assert_eq!(read(&record(&upcall, &[])), Some(Message::Resolved(77)));
    }

    #[test]
    fn records_that_contradict_themselves_are_refused() {
        let good = Upcall { kind: UPCALL_WAIT, len: 100, ..Upcall::default() };
        assert!(read(&record(&good, &[0; 100])).is_some());
        assert_eq!(read(&record(&good, &[0; 99])), None, "shorter than it says");
        assert_eq!(read(&record(&good, &[])[..199]), None);
        assert_eq!(read(&[]), None);
        for bad in [
            Upcall { kind: 0, ..good },
            Upcall { kind: 9, ..good },
            Upcall { len: UPCALL_FRAME_MAX as u32 + 1, ..good },
            Upcall { len: u32::MAX, ..good },
            Upcall { len: 13, ..good },
            Upcall { at: 1, ..good },
            Upcall { at: u32::MAX, ..good },
            Upcall { at: OUTER_LEN as u32, len: OUTER_LEN as u32 + 13, ..good },
        ] {
            assert_eq!(read(&record(&bad, &[0; 4096])), None, "{bad:?}");
        }
    }
}
