//! What is answered: a function of the port and the message (RFC 8415, 18.3).

use std::net::{IpAddr, Ipv6Addr};

use super::message::*;
use crate::{agent::services::service::Refused, compile::served::ServedPort, topology::model::Ipv6Mode};

const SUCCESS: u16 = 0;
const NO_ADDRESSES: u16 = 2;
const NO_BINDING: u16 = 3;
const NOT_ON_LINK: u16 = 4;
const NO_PREFIXES: u16 = 6;

/// A message, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub bytes: Vec<u8>,
}

impl Reply {
    fn begin(kind: u8, asked: &Message, port: &ServedPort) -> Self {
        let mut reply = Self { bytes: vec![kind] };
        reply.bytes.extend(asked.transaction);
        if let Some(client) = &asked.client {
            reply.option(CLIENT, client);
        }
        reply.option(SERVER, &duid(port));
        reply
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        self.bytes.extend(option(code, value));
    }

    /// The name in output and metrics.
    pub fn name(&self) -> &'static str {
        if self.bytes.first() == Some(&ADVERTISE) { "advertise" } else { "reply" }
    }
}

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = code.to_be_bytes().to_vec();
    bytes.extend((value.len() as u16).to_be_bytes());
    bytes.extend(value);
    bytes
}

fn status(code: u16, text: &str) -> Vec<u8> {
    option(STATUS, &[&code.to_be_bytes(), text.as_bytes()].concat())
}

/// The server's identifier: DUID-LL (RFC 8415, 11.4) of the services' hardware address, which is the same on every
/// node and never changes as long as the network has its name.
pub fn duid(port: &ServedPort) -> Vec<u8> {
    [&[0, 3, 0, 1][..], &port.network.service_mac].concat()
}

/// The addresses a port is given, and for how many seconds.
pub fn leases(port: &ServedPort) -> Vec<(Ipv6Addr, u32)> {
    let stateful = port.addresses().filter_map(|(address, subnet)| match address {
        IpAddr::V6(address) if subnet.ipv6_mode == Some(Ipv6Mode::Stateful) => {
            Some((address, subnet.lease_time))
        }
        _ => None,
    });
    stateful.collect()
}

/// Answers a message of a port.
pub fn answer(port: &ServedPort, asked: &Message) -> Result<Reply, Refused> {
    let modes = || port.network.subnets.iter().filter_map(|subnet| subnet.ipv6_mode);
    if !port.has_ipv6() || !modes().any(|mode| mode != Ipv6Mode::Slaac) {
        return Err(Refused::NOT_SERVED);
    }
    // RFC 8415, 16: who must say who it is, and whom it means.
    let is_ours = asked.server.as_ref().map(|server| *server == duid(port));
    match (asked.kind, is_ours) {
        (_, Some(false)) => return Err(Refused("for_another_server")),
        (SOLICIT | CONFIRM | REBIND, Some(true)) | (REQUEST | RENEW | RELEASE | DECLINE, None) => {
            return Err(Refused("options_malformed"));
        }
        _ => {}
    }
    if asked.client.is_none() && asked.kind != INFORMATION_REQUEST {
        return Err(Refused("options_malformed"));
    }
    match asked.kind {
        SOLICIT => {
            let kind = if asked.rapid_commit { REPLY } else { ADVERTISE };
            let mut reply = Reply::begin(kind, asked, port);
            if asked.rapid_commit {
                reply.option(RAPID_COMMIT, &[]);
            } else {
                // There is no other server to wait for.
                reply.option(PREFERENCE, &[255]);
            }
            associate(&mut reply, port, asked);
            Ok(reply)
        }
        REQUEST | RENEW | REBIND => {
            let mut reply = Reply::begin(REPLY, asked, port);
            associate(&mut reply, port, asked);
            Ok(reply)
        }
        CONFIRM => {
            let mut addresses = asked.associations.iter().flat_map(|association| &association.addresses);
            if addresses.clone().next().is_none() {
                return Err(Refused("options_malformed"));
            }
            // What is on this link and another's is dropped: a client is better off asking anew than keeping it.
            let is_own = |wanted: &Ipv6Addr| port.addresses().any(|(own, _)| own == IpAddr::V6(*wanted));
            let mut reply = Reply::begin(REPLY, asked, port);
            reply.bytes.extend(match addresses.all(is_own) {
                true => status(SUCCESS, "on this link"),
                false => status(NOT_ON_LINK, "not an address of this port"),
            });
            Ok(reply)
        }
        RELEASE | DECLINE => {
            let mut reply = Reply::begin(REPLY, asked, port);
            reply.bytes.extend(status(SUCCESS, "noted"));
            let own = leases(port);
            for association in &asked.associations {
                let is_own = |address: &Ipv6Addr| own.iter().any(|(own, _)| own == address);
                if association.kind != IA_NA || !association.addresses.iter().any(is_own) {
                    let unknown = status(NO_BINDING, "not an address of this port");
                    reply.bytes.extend(in_association(association, 0, 0, &unknown));
                }
            }
            Ok(reply)
        }
        _ => {
            let mut reply = Reply::begin(REPLY, asked, port);
            describe(&mut reply, port, asked);
            Ok(reply)
        }
    }
}

fn in_association(association: &Association, renew: u32, rebind: u32, options: &[u8]) -> Vec<u8> {
    let mut value = association.id.to_vec();
    if association.kind != IA_TA {
        value.extend(renew.to_be_bytes());
        value.extend(rebind.to_be_bytes());
    }
    value.extend(options);
    option(association.kind, &value)
}

fn address(address: Ipv6Addr, seconds: u32) -> Vec<u8> {
    let times = [seconds.to_be_bytes(), seconds.to_be_bytes()].concat();
    option(IA_ADDRESS, &[&address.octets()[..], &times].concat())
}

/// Gives a port its addresses: all of them in the first association there is for them. What else a client believes
/// to have ends at once.
fn associate(reply: &mut Reply, port: &ServedPort, asked: &Message) {
    let own = leases(port);
    let is_known = matches!(asked.kind, RENEW | REBIND);
    let mut given = false;
    for association in &asked.associations {
        if association.kind == IA_PD {
            let none = status(NO_PREFIXES, "no prefix is delegated here");
            reply.bytes.extend(in_association(association, 0, 0, &none));
            continue;
        }
        let (mut options, mut shortest) = (Vec::new(), u32::MAX);
        if association.kind == IA_NA && !given && !own.is_empty() {
            given = true;
            for (own, seconds) in &own {
                options.extend(address(*own, *seconds));
                shortest = shortest.min(*seconds);
            }
        } else if is_known {
            options.extend(status(NO_BINDING, "no address is given here"));
        } else {
            options.extend(status(NO_ADDRESSES, "no address is given here"));
        }
        if is_known {
            let foreign = association.addresses.iter();
            for foreign in foreign.filter(|address| !own.iter().any(|(own, _)| own == *address)) {
                options.extend(address(*foreign, 0));
            }
        }
        let (renew, rebind) = if shortest == u32::MAX { (0, 0) } else { (shortest / 2, shortest / 5 * 4) };
        reply.bytes.extend(in_association(association, renew, rebind, &options));
    }
    describe(reply, port, asked);
}

/// What there is to know beside addresses, as far as it is asked for. A port's own options come before its
/// subnet's.
fn describe(reply: &mut Reply, port: &ServedPort, asked: &Message) {
    let subnets = || port.network.subnets.iter().filter(|subnet| subnet.ipv6_mode.is_some());
    if asked.wanted.contains(&DNS) {
        let mut servers: Vec<Ipv6Addr> = Vec::new();
        for server in subnets().flat_map(|subnet| &subnet.dns) {
            if let IpAddr::V6(server) = server
                && !servers.contains(server)
            {
                servers.push(*server);
            }
        }
        if !servers.is_empty() {
            reply.option(DNS, &servers.iter().flat_map(Ipv6Addr::octets).collect::<Vec<u8>>());
        }
    }
    let mut told = vec![DNS];
    let extras = port.dhcp_options.iter().chain(subnets().flat_map(|subnet| &subnet.dhcp_options));
    for extra in extras.filter(|extra| extra.ipv6) {
        if asked.wanted.contains(&extra.code) && !told.contains(&extra.code) {
            told.push(extra.code);
            reply.option(extra.code, &extra.value);
        }
    }
}

#[cfg(test)]
mod tests;
