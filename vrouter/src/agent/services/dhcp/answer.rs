//! What is answered: a function of the port and the message.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use vrouter_common::service::METADATA_V4;

use super::message::*;
use crate::{
    agent::services::service::Refused,
    compile::served::{ServedNetwork, ServedPort},
    topology::model::Subnet,
};

/// What every client takes (RFC 2131, 2), as an IP packet.
pub const SIZE_MIN: usize = 576;
/// What a client's interface takes before it hears of a larger MTU.
const SIZE_MAX: usize = 1500;
/// What some clients insist on (RFC 1542, 2.1).
const MESSAGE_MIN: usize = 300;
const IP_AND_UDP: usize = 28;

/// Who answers on networks where no router has the subnet's gateway address.
const SERVICE: Ipv4Addr = Ipv4Addr::new(METADATA_V4[0], METADATA_V4[1], METADATA_V4[2], METADATA_V4[3]);

/// An address of a port, and everything that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease<'p> {
    pub address: Ipv4Addr,
    pub cidr: Ipv4Net,
    pub subnet: &'p Subnet,
    pub server: Ipv4Addr,
    pub server_mac: [u8; 6],
    pub gateway: Option<Ipv4Addr>,
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// `OFFER`, `ACK` or `NAK`.
    pub kind: u8,
    /// What is given, or none.
    pub address: Ipv4Addr,
    pub server: Ipv4Addr,
    pub server_mac: [u8; 6],
    /// Where to boot from (`siaddr`), or none.
    pub boot_server: Ipv4Addr,
    /// What the network carries.
    pub mtu: usize,
    /// The more needed first.
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Reply {
    /// The name in output and metrics.
    pub const fn name(&self) -> &'static str {
        match self.kind {
            OFFER => "offer",
            ACK => "ack",
            _ => "nak",
        }
    }

    /// The message. Options that would make it longer than the client takes are left out, the last ones first.
    pub fn write(&self, asked: &Message) -> Written {
        const BOOT_REPLY: u8 = 2;
        let mut bytes = vec![BOOT_REPLY, 1, 6, 0];
        bytes.extend(asked.transaction);
        bytes.extend([0, 0, if asked.broadcast { 0x80 } else { 0 }, 0]);
        let client = if self.kind == ACK { asked.client } else { Ipv4Addr::UNSPECIFIED };
        for address in [client, self.address, self.boot_server, Ipv4Addr::UNSPECIFIED] {
            bytes.extend(address.octets());
        }
        bytes.extend(asked.mac);
        bytes.resize(FIXED_LEN - COOKIE.len(), 0);
        bytes.extend(COOKIE);
        let most = asked.max_size.min(SIZE_MAX).min(self.mtu.max(SIZE_MIN)) - IP_AND_UDP - 1;
        let mut left_out = 0;
        for (code, value) in &self.options {
            if let Ok(len) = u8::try_from(value.len())
                && bytes.len() + 2 + value.len() <= most
            {
                bytes.extend([*code, len]);
                bytes.extend(value);
            } else {
                left_out += 1;
            }
        }
        bytes.push(END);
        bytes.resize(bytes.len().max(MESSAGE_MIN), 0);
        Written { bytes, left_out }
    }
}

/// An answer as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub bytes: Vec<u8>,
    /// Options that were asked for and are not in it.
    pub left_out: usize,
}

/// The addresses a port is given, the first one first.
pub fn leases(port: &ServedPort) -> impl Iterator<Item = Lease<'_>> {
    port.addresses().filter_map(|(address, subnet)| match (address, subnet.cidr) {
        (IpAddr::V4(address), IpNet::V4(cidr)) if subnet.dhcp => {
            let (server, server_mac) = server(&port.network, Some(subnet));
            let gateway = subnet.gateway.and_then(|gateway| match gateway {
                IpAddr::V4(gateway) => Some(gateway),
                IpAddr::V6(_) => None,
            });
            let routes = routes(port, subnet, gateway);
            Some(Lease { address, cidr, subnet, server, server_mac, gateway, routes })
        }
        _ => None,
    })
}

/// Who answers. A client sends its renewals there, so it is somebody whose hardware address it can learn: the
/// router, or else the services' own address.
fn server(network: &ServedNetwork, subnet: Option<&Subnet>) -> (Ipv4Addr, [u8; 6]) {
    let router = subnet.and_then(|subnet| Some((subnet.gateway?, network.router_of(subnet)?)));
    match router {
        Some((IpAddr::V4(gateway), router)) => (gateway, router.mac),
        _ => (SERVICE, network.service_mac),
    }
}

/// Classless routes (RFC 3442). Whoever takes them ignores the router option, so that the default route is among
/// them. The metadata service is on the link where there is no gateway to it.
fn routes(port: &ServedPort, subnet: &Subnet, gateway: Option<Ipv4Addr>) -> Vec<(Ipv4Net, Ipv4Addr)> {
    let host = subnet.host_routes.iter().map(|route| (route.destination, route.nexthop));
    let mut routes: Vec<_> = host.collect();
    let metadata = Ipv4Net::from(SERVICE);
    if port.metadata && !routes.iter().any(|(destination, _)| *destination == metadata) {
        let by = gateway.filter(|_| port.network.router_of(subnet).is_some());
        routes.insert(0, (metadata, by.unwrap_or(Ipv4Addr::UNSPECIFIED)));
    }
    if let Some(gateway) = gateway
        && !routes.is_empty()
    {
        routes.insert(0, (Ipv4Net::default(), gateway));
    }
    routes
}

/// Answers a message of a port. `Ok(None)`: it is noted, and no answer is due.
pub fn answer(port: &ServedPort, asked: &Message) -> Result<Option<Reply>, Refused> {
    if !port.has_dhcp() {
        return Err(Refused::NOT_SERVED);
    }
    if asked.mac != port.mac {
        return Err(Refused("foreign_hardware_address"));
    }
    let own = |wanted: Ipv4Addr| leases(port).find(|lease| lease.address == wanted);
    match asked.kind {
        DISCOVER => {
            let lease = asked.requested.and_then(own).or_else(|| leases(port).next());
            lease.map(|lease| Some(give(port, asked, &lease, OFFER))).ok_or(Refused("no_address"))
        }
        REQUEST => request(port, asked).map(Some),
        INFORM => match own(asked.client) {
            Some(lease) => Ok(Some(give(port, asked, &lease, ACK))),
            None => Err(Refused("not_its_address")),
        },
        DECLINE => match asked.requested {
            Some(declined) if own(declined).is_some() => Ok(None),
            Some(_) => Err(Refused("not_its_address")),
            None => Err(Refused("options_malformed")),
        },
        _ => Ok(None),
    }
}

/// RFC 2131, 4.3.2.
fn request(port: &ServedPort, asked: &Message) -> Result<Reply, Refused> {
    let wanted = match (asked.server, asked.requested) {
        // It took an offer: ours, or another server's.
        (Some(_), Some(requested)) => requested,
        (Some(_), None) => return Err(Refused("options_malformed")),
        // It was here before.
        (None, Some(requested)) if asked.client.is_unspecified() => requested,
        // It renews, or asks whoever is there.
        (None, None) if !asked.client.is_unspecified() => asked.client,
        _ => return Err(Refused("options_malformed")),
    };
    let lease = leases(port).find(|lease| lease.address == wanted);
    let first = leases(port).next();
    let (id, mac) = match lease.as_ref().or(first.as_ref()) {
        Some(lease) => (lease.server, lease.server_mac),
        None => server(&port.network, None),
    };
    if asked.server.is_some_and(|server| server != id) {
        return Err(Refused("for_another_server"));
    }
    Ok(match lease {
        Some(lease) => give(port, asked, &lease, ACK),
        None => refuse(port, asked, id, mac),
    })
}

/// It may not have that address.
fn refuse(port: &ServedPort, asked: &Message, server: Ipv4Addr, server_mac: [u8; 6]) -> Reply {
    let mut options = vec![(MESSAGE_TYPE, vec![NAK]), (SERVER, server.octets().to_vec())];
    options.extend(asked.identifier.clone().map(|identifier| (CLIENT, identifier)));
    options.push((TEXT, b"not the address of this port".to_vec()));
    let (none, mtu) = (Ipv4Addr::UNSPECIFIED, mtu(port));
    Reply { kind: NAK, address: none, server, server_mac, boot_server: none, mtu, options }
}

fn give(port: &ServedPort, asked: &Message, lease: &Lease<'_>, kind: u8) -> Reply {
    let mut options = vec![(MESSAGE_TYPE, vec![kind]), (SERVER, lease.server.octets().to_vec())];
    // RFC 6842.
    options.extend(asked.identifier.clone().map(|identifier| (CLIENT, identifier)));
    let inform = asked.kind == INFORM;
    if !inform {
        let seconds = lease.subnet.lease_time;
        for (code, seconds) in
            [(LEASE_TIME, seconds), (RENEWAL, seconds / 2), (REBINDING, seconds - seconds / 8)]
        {
            options.push((code, seconds.to_be_bytes().to_vec()));
        }
    }
    // Nobody can do without these two: the second as Neutron has it.
    options.push((MASK, lease.cidr.netmask().octets().to_vec()));
    options.push((MTU, u16::try_from(port.network.mtu).unwrap_or(u16::MAX).to_be_bytes().to_vec()));
    let described = described(port, lease);
    let boot_server = boot_server(&described).unwrap_or(Ipv4Addr::UNSPECIFIED);
    options.extend(described.into_iter().filter(|(code, _)| asked.asks_for(*code)));
    let address = if inform { Ipv4Addr::UNSPECIFIED } else { lease.address };
    let (server, server_mac) = (lease.server, lease.server_mac);
    Reply { kind, address, server, server_mac, boot_server, mtu: mtu(port), options }
}

fn mtu(port: &ServedPort) -> usize {
    usize::try_from(port.network.mtu).unwrap_or(usize::MAX)
}

/// Where a client finds the boot file: many look into BOOTP's field alone, and none of them at a name.
fn boot_server(options: &[(u8, Vec<u8>)]) -> Option<Ipv4Addr> {
    let value = |wanted: u8| Some(&*options.iter().find(|(code, _)| *code == wanted)?.1);
    let first = value(TFTP_SERVER_ADDRESS).and_then(|addresses| addresses.first_chunk::<4>());
    let named = || std::str::from_utf8(value(TFTP_SERVER)?).ok()?.trim().parse().ok();
    first.map(|octets| Ipv4Addr::from(*octets)).or_else(named)
}

/// Everything that is told who asks for it. A port's own options come before its subnet's.
fn described(port: &ServedPort, lease: &Lease<'_>) -> Vec<(u8, Vec<u8>)> {
    let mut options = Vec::new();
    let routes = classless(&lease.routes);
    if !routes.is_empty() {
        options.push((CLASSLESS_ROUTES, routes.clone()));
    }
    if let Some(gateway) = lease.gateway {
        options.push((ROUTER, gateway.octets().to_vec()));
    }
    let servers: Vec<u8> = lease.subnet.dns.iter().filter_map(v4).flat_map(|it| it.octets()).collect();
    if !servers.is_empty() {
        options.push((DNS, servers));
    }
    if lease.cidr.prefix_len() <= 30 {
        options.push((BROADCAST, lease.cidr.broadcast().octets().to_vec()));
    }
    for extra in port.dhcp_options.iter().chain(&lease.subnet.dhcp_options).filter(|extra| !extra.ipv6) {
        if let Ok(code) = u8::try_from(extra.code)
            && !options.iter().any(|(known, _)| *known == code)
        {
            options.push((code, extra.value.clone()));
        }
    }
    if is_host_name(&port.name) && !options.iter().any(|(code, _)| *code == HOST_NAME) {
        options.push((HOST_NAME, port.name.as_bytes().to_vec()));
    }
    // The same again must not take the place of anything else.
    if !routes.is_empty() {
        options.push((CLASSLESS_ROUTES_MS, routes));
    }
    options
}

fn v4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    }
}

/// Whether a port's name is a label of a host's (RFC 1123, 2.1).
fn is_host_name(name: &str) -> bool {
    const LABEL_MAX: usize = 63;
    (1..=LABEL_MAX).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn classless(routes: &[(Ipv4Net, Ipv4Addr)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (destination, nexthop) in routes {
        let significant = usize::from(destination.prefix_len().div_ceil(8));
        bytes.push(destination.prefix_len());
        bytes.extend(&destination.network().octets()[..significant]);
        bytes.extend(nexthop.octets());
    }
    bytes
}

#[cfg(test)]
mod tests;
