//! One echo request, and what answers it.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use smoltcp::wire::IpProtocol;

use super::{Failure, Target};
use crate::agent::services::frame::{Received, wrap};

const HOPS: u8 = 64;
const SEQUENCE: u16 = 1;
const ECHO_REPLY: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;

/// A ping under way.
pub struct Ping {
    ident: u16,
    /// What the member has to send back.
    content: [u8; 8],
    is_sent: bool,
    is_answered: bool,
}

impl Ping {
    pub fn new(ident: u16, seed: u64) -> Self {
        Self { ident, content: seed.to_be_bytes(), is_sent: false, is_answered: false }
    }

    /// Whose answer a packet would be.
    pub fn ident(received: &Received<'_>) -> Option<u16> {
        let reply = match received.protocol {
            IpProtocol::Icmp => ECHO_REPLY,
            IpProtocol::Icmpv6 => ECHO_REPLY_V6,
            _ => return None,
        };
        let header = received.payload.get(..8).filter(|header| header[..2] == [reply, 0])?;
        Some(u16::from_be_bytes([header[4], header[5]]))
    }

    /// Takes what may be the answer; whether it is.
    pub fn receive(&mut self, received: &Received<'_>) -> bool {
        let sequence = received.payload.get(6..8) == Some(&SEQUENCE.to_be_bytes());
        let is = sequence && received.payload.get(8..) == Some(&self.content);
        self.is_answered |= is;
        is
    }

    pub fn work(&mut self, target: &Target, out: &mut Vec<Vec<u8>>) -> Option<Result<(), Failure>> {
        if self.is_answered {
            return Some(Ok(()));
        }
        if !std::mem::replace(&mut self.is_sent, true) {
            let packet = self.packet(target)?;
            out.push(wrap(target.member_mac, target.source_mac, &packet));
        }
        None
    }

    fn packet(&self, target: &Target) -> Option<Vec<u8>> {
        let mut packet = Vec::new();
        match (target.source, target.member) {
            (IpAddr::V4(source), IpAddr::V4(member)) => {
                PacketBuilder::ipv4(source.octets(), member.octets(), HOPS)
                    .icmpv4_echo_request(self.ident, SEQUENCE)
                    .write(&mut packet, &self.content)
            }
            (IpAddr::V6(source), IpAddr::V6(member)) => {
                PacketBuilder::ipv6(source.octets(), member.octets(), HOPS)
                    .icmpv6_echo_request(self.ident, SEQUENCE)
                    .write(&mut packet, &self.content)
            }
            // Refused before.
            _ => return None,
        }
        // Into memory, and short.
        .ok()?;
        Some(packet)
    }
}
