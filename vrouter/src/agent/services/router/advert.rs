//! What is advertised to a port, byte by byte.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use vrouter_common::wire::{ETH_LEN, IPV6_LEN, ND_ROUTER_ADVERT, ND_ROUTER_SOLICIT};

use crate::{
    agent::services::{
        call,
        datagram::{self, Ends},
        service::Refused,
    },
    compile::served::{ServedPort, link_local_of},
    topology::model::{DNS_MAX, Ipv6Mode, Subnet},
};

/// Seconds that a router and DNS servers are good for: the most there may be (RFC 4861, 6.2.1), since the data path goes
/// on when no agent advertises.
pub const LIFETIME: u16 = 9000;
const HOP_LIMIT: u8 = 64;
const MANAGED: u8 = 0x80;
const OTHER: u8 = 0x40;
const ON_LINK: u8 = 0x80;
const AUTONOMOUS: u8 = 0x40;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A prefix of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub net: Ipv6Net,
    /// Its addresses are reached without a router.
    pub on_link: bool,
    /// The port makes its address of it.
    pub autonomous: bool,
    pub seconds: u32,
}

impl Prefix {
    /// What takes it back as far as it is not among what is advertised now. `None`: nothing is to be taken back.
    pub fn withdrawn(&self, now: &[Self]) -> Option<Self> {
        let with = |on_link, autonomous| Some(Self { net: self.net, on_link, autonomous, seconds: 0 });
        match now.iter().find(|now| now.net == self.net) {
            None => with(true, self.autonomous),
            Some(now) if self.autonomous && !now.autonomous => with(false, true),
            Some(_) => None,
        }
    }
}

/// An advertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    pub source: Ipv6Addr,
    pub mac: [u8; 6],
    /// Seconds it is a default router for; 0: it is none.
    pub lifetime: u16,
    /// Addresses are given by DHCP.
    pub managed: bool,
    /// There is more to be asked by DHCP.
    pub other: bool,
    pub mtu: u32,
    pub prefixes: Vec<Prefix>,
    pub dns: Vec<Ipv6Addr>,
    /// DNS servers that are none any more.
    pub dns_gone: Vec<Ipv6Addr>,
}

impl Advert {
    /// The same router, which is none any more.
    pub fn farewell(&self) -> Self {
        Self { lifetime: 0, prefixes: Vec::new(), dns: Vec::new(), ..self.clone() }
    }

    /// The frame, to who asks or to everybody on the port.
    pub fn frame(&self, to: Option<(Ipv6Addr, [u8; 6])>) -> Vec<u8> {
        let (dst, dst_mac) = to.unwrap_or((ALL_NODES, datagram::multicast_mac(ALL_NODES)));
        let ends = Ends { src_mac: self.mac, dst_mac, src: self.source, dst };
        datagram::nd(&ends, &self.message())
    }

    fn message(&self) -> Vec<u8> {
        let managed = if self.managed { MANAGED } else { 0 };
        let other = if self.other { OTHER } else { 0 };
        let mut bytes = vec![ND_ROUTER_ADVERT, 0, 0, 0, HOP_LIMIT, managed | other];
        bytes.extend(self.lifetime.to_be_bytes());
        bytes.extend([0; 8]);
        bytes.extend([1, 1]);
        bytes.extend(self.mac);
        bytes.extend([5, 1, 0, 0]);
        bytes.extend(self.mtu.to_be_bytes());
        for prefix in &self.prefixes {
            let on_link = if prefix.on_link { ON_LINK } else { 0 };
            let autonomous = if prefix.autonomous { AUTONOMOUS } else { 0 };
            bytes.extend([3, 4, prefix.net.prefix_len(), on_link | autonomous]);
            bytes.extend(prefix.seconds.to_be_bytes());
            bytes.extend(prefix.seconds.to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(prefix.net.network().octets());
        }
        for (servers, seconds) in [(&self.dns, LIFETIME), (&self.dns_gone, 0)] {
            if let Ok(count @ 1..=100) = u8::try_from(servers.len()) {
                bytes.extend([25, 1 + 2 * count, 0, 0]);
                bytes.extend(u32::from(seconds).to_be_bytes());
                bytes.extend(servers.iter().flat_map(Ipv6Addr::octets));
            }
        }
        bytes
    }
}

/// What is advertised to a port: one for each router that has the gateway address of a subnet. Where there is none,
/// the services themselves tell of the prefixes, and that they are no router.
pub fn adverts(port: &ServedPort) -> Vec<Advert> {
    let network = &port.network;
    if !port.has_ipv6() {
        return Vec::new();
    }
    let told = || network.subnets.iter().filter(|subnet| subnet.ipv6_mode.is_some());
    let advert = |mac: [u8; 6], source: Ipv6Addr, lifetime: u16| Advert {
        source,
        mac,
        lifetime,
        managed: told().any(|subnet| subnet.ipv6_mode == Some(Ipv6Mode::Stateful)),
        other: told().any(|subnet| subnet.ipv6_mode != Some(Ipv6Mode::Slaac)),
        mtu: network.mtu,
        prefixes: Vec::new(),
        dns: Vec::new(),
        dns_gone: Vec::new(),
    };
    let mut adverts: Vec<Advert> = network
        .routers
        .iter()
        .filter(|router| told().any(|subnet| network.router_of(subnet) == Some(router)))
        .map(|router| advert(router.mac, router.link_local, LIFETIME))
        .collect();
    if adverts.is_empty() && told().next().is_some() {
        let mac = network.service_mac;
        adverts.push(advert(mac, link_local_of(mac), 0));
    }
    for subnet in told() {
        let by = network
            .router_of(subnet)
            .and_then(|router| adverts.iter().position(|advert| advert.source == router.link_local));
        // What no router has is told by the first.
        if let Some(advert) = adverts.get_mut(by.unwrap_or(0)) {
            advert.prefixes.extend(prefix(port, subnet));
            for server in &subnet.dns {
                if let IpAddr::V6(server) = server
                    && advert.dns.len() < DNS_MAX
                    && !advert.dns.contains(server)
                {
                    advert.dns.push(*server);
                }
            }
        }
    }
    adverts
}

fn prefix(port: &ServedPort, subnet: &Subnet) -> Option<Prefix> {
    let IpNet::V6(net) = subnet.cidr else { return None };
    let is_slaac = matches!(subnet.ipv6_mode, Some(Ipv6Mode::Slaac | Ipv6Mode::Stateless));
    // A host prefers whatever address it makes: with one that is not the port's it would be heard by nobody.
    let autonomous = is_slaac && port.may_make_address(net);
    // Never over before the next advertisement.
    Some(Prefix { net, on_link: true, autonomous, seconds: subnet.lease_time.max(LIFETIME.into()) })
}

/// RFC 4861, 6.1.1.
pub fn check_solicitation(frame: &[u8]) -> Result<(), Refused> {
    let hop_limit = frame.get(ETH_LEN + 7).ok_or(Refused::MALFORMED)?;
    let source = frame.get(ETH_LEN + 8..ETH_LEN + 24).ok_or(Refused::MALFORMED)?;
    let message = call::transport(frame).ok_or(Refused::MALFORMED)?.bytes;
    let &[ND_ROUTER_SOLICIT, 0, _, _, _, _, _, _, ref options @ ..] = message else {
        return Err(Refused::MALFORMED);
    };
    if *hop_limit != 255 || frame.len() < ETH_LEN + IPV6_LEN {
        return Err(Refused("not_from_the_link"));
    }
    let mut options = options;
    while let &[kind, len, ..] = options {
        const SOURCE_LINK_LAYER: u8 = 1;
        let is_unspecified = source.iter().all(|byte| *byte == 0);
        if len == 0 || kind == SOURCE_LINK_LAYER && is_unspecified {
            return Err(Refused("options_malformed"));
        }
        options = options.get(usize::from(len) * 8..).ok_or(Refused("options_truncated"))?;
    }
    if options.is_empty() { Ok(()) } else { Err(Refused("options_truncated")) }
}
