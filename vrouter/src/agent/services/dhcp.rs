//! DHCP over IPv4 (RFC 2131), answered from the topology.
//!
//! There is no lease to keep: a port's address is what the topology says, as long as it says so. So an answer is a
//! function of the port and the message ([`answer::answer`]), the same whichever agent gives it.

pub mod answer;
pub mod message;

use std::{net::Ipv4Addr, sync::Arc, time::Instant};

use super::{
    call,
    datagram::{self, Ends},
    seldom::Seldom,
    sender::FrameSender,
    service::{Asker, DECLINED, Kind, Refused, Service},
    tally::Tally,
};
use crate::compile::Served;
use answer::Reply;
use message::Message;

/// See the module.
#[derive(Debug)]
pub struct Dhcp {
    tally: Tally,
    declined: Seldom,
}

impl Dhcp {
    /// `tally`: where to count what is beside a message's outcome.
    pub fn new(tally: Tally) -> Self {
        Self { tally, declined: Seldom::default() }
    }
}

impl Service for Dhcp {
    fn kinds(&self) -> &'static [Kind] {
        &[Kind::Dhcp]
    }

    fn answer(
        &mut self,
        asker: &Asker<'_>,
        frame: &[u8],
        sender: &FrameSender,
        now: Instant,
    ) -> Result<&'static str, Refused> {
        let message = read(frame)?;
        let Some(reply) = answer::answer(asker.port, &message)? else {
            if message.kind != message::DECLINE {
                return Ok("released");
            }
            if self.declined.may(asker.ifindex, now) {
                tracing::warn!(
                    port = %asker.port.name,
                    "the workload declines its address {}: somebody else on network {} answers for it",
                    message.requested.unwrap_or(Ipv4Addr::UNSPECIFIED),
                    asker.port.network.name
                );
            }
            return Ok(DECLINED);
        };
        let written = reply.write(&message);
        let frame = frame_of(&message, &reply, &written.bytes);
        if written.left_out > 0 {
            self.tally.count(Kind::Dhcp.name(), "options_left_out");
        }
        sender.send(asker.ifindex, &frame).map_err(|_| Refused::NOT_SENT)?;
        Ok(reply.name())
    }

    fn follow(&mut self, served: &Arc<Served>, _now: Instant) {
        self.declined.follow(served);
    }
}

/// The message in a frame.
pub fn read(frame: &[u8]) -> Result<Message, Refused> {
    Message::read(call::datagram(frame)?)
}

/// The frame of an answer: to whom it goes is RFC 2131, 4.1.
pub fn frame_of(message: &Message, reply: &Reply, written: &[u8]) -> Vec<u8> {
    let everybody = ([0xff; 6], Ipv4Addr::BROADCAST);
    let (dst_mac, dst) = if reply.kind == message::NAK {
        everybody
    } else if !message.client.is_unspecified() {
        (message.mac, message.client)
    } else if message.broadcast {
        everybody
    } else {
        (message.mac, reply.address)
    };
    let ends = Ends { src_mac: reply.server_mac, dst_mac, src: reply.server, dst };
    datagram::udp_v4(&ends, 67, 68, written)
}
