//! Routes that others keep in the kernel (a routing daemon's), and those that are kept there for it.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, Parseable as _};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
        RouteVia,
    },
};

use super::Netlink;

/// What a BGP daemon's routes are marked with (`proto bgp`).
pub const BGP: u8 = 186;
/// What this agent's are marked with: no daemon has this number (`/etc/iproute2/rt_protos`).
pub const OWN: u8 = 118;
/// Of two routes to one destination the kernel takes the one with the lower number: anybody's but this agent's.
const OWN_METRIC: u32 = 1 << 20;

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Learned {
    pub destination: IpNet,
    /// Interfaces and next hops; over IPv6 mostly link-local ones.
    pub nexthops: Vec<(u32, IpAddr)>,
}

impl Netlink {
    /// The routes of the main table with a protocol's mark.
    pub async fn routes(&self, protocol: u8) -> Result<Vec<Learned>> {
        let mut routes = Vec::new();
        for message in self.main_table(protocol).await? {
            let Some(destination) = destination(&message) else { continue };
            let nexthops = nexthops(&message);
            if !nexthops.is_empty() {
                routes.push(Learned { destination, nexthops });
            }
        }
        routes.sort();
        Ok(routes)
    }

    /// The addresses that this agent has a routing daemon announce.
    pub async fn announced(&self) -> Result<BTreeSet<IpAddr>> {
        let own = self.main_table(OWN).await?;
        let blackholes = own.iter().filter(|message| message.header.kind == RouteType::BlackHole);
        let whole = blackholes.filter_map(destination).filter(|net| net.prefix_len() == net.max_prefix_len());
        Ok(whole.map(|net| net.addr()).collect())
    }

    /// Has a routing daemon that redistributes the kernel's routes announce an address: by a route to nowhere, which
    /// no packet takes, since the data path has it before the kernel looks.
    pub async fn announce(&self, address: IpAddr) -> Result<()> {
        let request = RouteNetlinkMessage::NewRoute(own_route(address));
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        match self.request(&request, flags).await {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            answer => answer.map(drop).with_context(|| format!("cannot add a route to announce {address}")),
        }
    }

    /// Has it announced no more.
    pub async fn withdraw(&self, address: IpAddr) -> Result<()> {
        let request = RouteNetlinkMessage::DelRoute(own_route(address));
        match self.request(&request, NLM_F_REQUEST | NLM_F_ACK).await {
            Err(error) if is_gone(&error) => Ok(()),
            answer => {
                answer.map(drop).with_context(|| format!("cannot remove the route that announces {address}"))
            }
        }
    }

    async fn main_table(&self, protocol: u8) -> Result<Vec<RouteMessage>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let answer =
                self.dump(&RouteNetlinkMessage::GetRoute(request)).await.context("cannot list the routes")?;
            for message in answer.iter().filter(|message| message.kind == libc::RTM_NEWROUTE) {
                // What is not understood is no route of ours, nor one that could be used.
                let Ok(route) = RouteMessage::parse(&message.body[..]) else { continue };
                if route.header.protocol == RouteProtocol::from(protocol) && is_main(&route) {
                    routes.push(route);
                }
            }
        }
        Ok(routes)
    }
}

fn is_main(route: &RouteMessage) -> bool {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or(u32::from(route.header.table)) == u32::from(libc::RT_TABLE_MAIN)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

fn own_route(address: IpAddr) -> RouteMessage {
    let mut route = RouteMessage::default();
    let (family, len, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, 32, RouteAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(address)),
    };
    route.header = RouteHeader {
        address_family: family,
        destination_prefix_length: len,
        table: libc::RT_TABLE_MAIN,
        protocol: RouteProtocol::from(OWN),
        scope: RouteScope::Universe,
        kind: RouteType::BlackHole,
        ..RouteHeader::default()
    };
    route.attributes.push(RouteAttribute::Destination(destination));
    route.attributes.push(RouteAttribute::Priority(OWN_METRIC));
    route
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn destination(message: &RouteMessage) -> Option<IpNet> {
    let found = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => address_of(address),
        _ => None,
    });
    // The default route has none.
    let address = found.or(match message.header.address_family {
        AddressFamily::Inet => Some(Ipv4Addr::UNSPECIFIED.into()),
        AddressFamily::Inet6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    })?;
    IpNet::new(address, message.header.destination_prefix_length).ok()
}

fn nexthops(message: &RouteMessage) -> Vec<(u32, IpAddr)> {
    let gateway = |attributes: &[RouteAttribute]| {
        attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => address_of(address),
            RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
            _ => None,
        })
    };
    let mut nexthops = Vec::new();
    let oif = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    nexthops.extend(oif.zip(gateway(&message.attributes)));
    for attribute in &message.attributes {
        if let RouteAttribute::MultiPath(several) = attribute {
            nexthops
                .extend(several.iter().filter_map(|it| Some((it.interface_index, gateway(&it.attributes)?))));
        }
    }
    nexthops
}
