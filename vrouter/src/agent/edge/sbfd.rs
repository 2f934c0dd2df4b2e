//! Seamless BFD (RFC 7880, RFC 7881): whether a gateway carries, asked by the nodes that need it.
//!
//! An initiator sends control packets (RFC 5880, 4.1) to UDP port 7784 of the gateway's VTEP; the discriminator
//! it asks for is the external network's VNI. A reflector keeps nothing: it turns the packet round, and says whether
//! it is in service for that network.

use std::time::Duration;

/// RFC 7881, 3.
pub const PORT: u16 = 7784;
pub const LEN: usize = 24;
const VERSION: u8 = 1 << 5;
const VERSION_MASK: u8 = 7 << 5;
const STATE_SHIFT: u8 = 6;
const DEMAND: u8 = 1 << 1;
const AUTHENTICATED: u8 = 1 << 2;
const MULTIPOINT: u8 = 1;

/// RFC 5880's states, of which a reflector has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    AdminDown,
    Down,
    Up,
}

/// A control packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    pub state: State,
    /// From an initiator.
    pub demand: bool,
    pub multiplier: u8,
    pub mine: u32,
    pub yours: u32,
    pub interval: Duration,
}

impl Control {
    /// As it is sent.
    pub fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let state = match self.state {
            State::AdminDown => 0,
            State::Down => 1,
            State::Up => 3_u8,
        };
        let micros = u32::try_from(self.interval.as_micros()).unwrap_or(u32::MAX).to_be_bytes();
        bytes[0] = VERSION;
        bytes[1] = state << STATE_SHIFT | if self.demand { DEMAND } else { 0 };
        bytes[2] = self.multiplier;
        bytes[3] = LEN as u8;
        bytes[4..8].copy_from_slice(&self.mine.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.yours.to_be_bytes());
        bytes[12..16].copy_from_slice(&micros);
        bytes[16..20].copy_from_slice(&micros);
        bytes
    }

    /// Reads one; `None`: it is none, or does what is not done here.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let (mine, yours, interval) = (word(4)?, word(8)?, word(12)?);
        let is_whole = bytes.len() >= LEN && bytes[3] as usize == LEN;
        if !is_whole
            || bytes[0] & VERSION_MASK != VERSION
            || bytes[1] & (AUTHENTICATED | MULTIPOINT) != 0
            || bytes[2] == 0
            || mine == 0
        {
            return None;
        }
        let state = match bytes[1] >> STATE_SHIFT {
            0 => State::AdminDown,
            3 => State::Up,
            _ => State::Down,
        };
        let interval = Duration::from_micros(u64::from(interval));
        Some(Self { state, demand: bytes[1] & DEMAND != 0, multiplier: bytes[2], mine, yours, interval })
    }

    /// What a reflector answers. `None`: nothing: it is not an initiator's, or it could go round for ever.
    pub fn reflect(&self, in_service: bool) -> Option<Self> {
        let state = if in_service { State::Up } else { State::AdminDown };
        self.demand.then_some(Self { state, demand: false, mine: self.yours, yours: self.mine, ..*self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Control = Control {
        state: State::Down,
        demand: true,
        multiplier: 3,
        mine: 17,
        yours: 900,
        interval: Duration::from_millis(200),
    };

    #[test]
    fn a_packet_is_as_the_rfc_has_it() {
        let expected: [u8; LEN] =
            [0x20, 0x42, 3, 24, 0, 0, 0, 17, 0, 0, 3, 0x84, 0, 3, 0x0d, 0x40, 0, 3, 0x0d, 0x40, 0, 0, 0, 0];
        assert_eq!(ASKED.bytes(), expected);
        assert_eq!(Control::read(&expected), Some(ASKED));
        for (at, value) in [(0, 0), (0, 0x40), (1, 0x46), (1, 0x43), (2, 0), (3, 23), (3, 25)] {
            let mut wrong = expected;
            wrong[at] = value;
            assert_eq!(Control::read(&wrong), None, "byte {at} is {value}");
        }
        for len in 0..LEN {
            assert_eq!(Control::read(&expected[..len]), None);
        }
    }

    #[test]
    fn a_reflector_says_whether_it_is_in_service_and_answers_no_reflector() {
        let up = ASKED.reflect(true).unwrap();
        assert_eq!((up.state, up.mine, up.yours, up.demand), (State::Up, 900, 17, false));
        assert_eq!(ASKED.reflect(false).unwrap().state, State::AdminDown);
        assert_eq!(up.reflect(true), None);
    }
}
