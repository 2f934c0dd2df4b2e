//! DHCP over IPv6 (RFC 8415), answered from the topology: addresses where a subnet is `dhcpv6-stateful`, and what
//! else there is to know where it is that or `dhcpv6-stateless`.

pub mod answer;
pub mod message;

use std::{net::Ipv6Addr, sync::Arc, time::Instant};

use vrouter_common::wire::ETH_LEN;

use super::{
    call,
    datagram::{self, Ends},
    seldom::Seldom,
    sender::FrameSender,
    service::{Asker, DECLINED, Kind, Refused, Service},
};
use crate::compile::{
    Served,
    served::{ServedPort, link_local_of},
};
use message::Message;

/// See the module.
#[derive(Debug, Default)]
pub struct Dhcpv6 {
    declined: Seldom,
}

impl Service for Dhcpv6 {
    fn kinds(&self) -> &'static [Kind] {
        &[Kind::Dhcpv6]
    }

    fn answer(
        &mut self,
        asker: &Asker<'_>,
        frame: &[u8],
        sender: &FrameSender,
        now: Instant,
    ) -> Result<&'static str, Refused> {
        let (name, frame) = answer_frame(asker.port, frame)?;
        if name == DECLINED && self.declined.may(asker.ifindex, now) {
            tracing::warn!(
                port = %asker.port.name,
                "the workload declines its address: somebody else on network {} answers for it",
                asker.port.network.name
            );
        }
        sender.send(asker.ifindex, &frame).map_err(|_| Refused::NOT_SENT)?;
        Ok(name)
    }

    fn follow(&mut self, served: &Arc<Served>, _now: Instant) {
        self.declined.follow(served);
    }
}

/// The answer to a frame, and its name.
pub fn answer_frame(port: &ServedPort, frame: &[u8]) -> Result<(&'static str, Vec<u8>), Refused> {
    let (source, mac) = sender_of(frame).ok_or(Refused::MALFORMED)?;
    if !source.is_unicast_link_local() {
        return Err(Refused("not_link_local"));
    }
    let asked = Message::read(call::datagram(frame)?)?;
    let reply = answer::answer(port, &asked)?;
    let own = answer::leases(port);
    let mut named = asked.associations.iter().flat_map(|association| &association.addresses);
    let declines =
        asked.kind == message::DECLINE && named.any(|named| own.iter().any(|(own, _)| own == named));
    let subnet = port.network.subnets.iter().find(|subnet| subnet.ipv6_mode.is_some());
    let router = subnet.and_then(|subnet| port.network.router_of(subnet));
    let (src_mac, src) = match router {
        Some(router) => (router.mac, router.link_local),
        None => (port.network.service_mac, link_local_of(port.network.service_mac)),
    };
    let ends = Ends { src_mac, dst_mac: mac, src, dst: source };
    let name = if declines { DECLINED } else { reply.name() };
    Ok((name, datagram::udp_v6(&ends, 547, 546, &reply.bytes)))
}

/// The addresses an IPv6 frame came from.
pub fn sender_of(frame: &[u8]) -> Option<(Ipv6Addr, [u8; 6])> {
    let mac = frame.get(6..12)?.try_into().ok()?;
    let source: [u8; 16] = frame.get(ETH_LEN + 8..ETH_LEN + 24)?.try_into().ok()?;
    Some((source.into(), mac))
}
