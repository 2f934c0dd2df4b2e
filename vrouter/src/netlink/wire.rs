//! The messages as they travel: what carries a request and its answers, and the few fields that are read
//! without the full decoders, so that a link of a kind they do not know is still seen.

use std::collections::VecDeque;
use std::convert::Infallible;

use netlink_packet_core::{
    DecodeError, NLMSG_ALIGNTO, NLMSG_OVERRUN, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkPayload, NetlinkSerializable, NlaBuffer, NlasIterator, Parseable, parse_string, parse_u32,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};

use super::{Change, Link};

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

/// The type of a message and what follows its header, not decoded.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    pub kind: u16,
    pub body: Vec<u8>,
}

impl From<&RouteNetlinkMessage> for Raw {
    fn from(message: &RouteNetlinkMessage) -> Self {
        let mut body = vec![0; message.buffer_len()];
        message.serialize(&mut body);
        Self { kind: message.message_type(), body }
    }
}

impl From<Raw> for NetlinkPayload<Raw> {
    fn from(message: Raw) -> Self {
        Self::InnerMessage(message)
    }
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}

/// A `RTM_NEWLINK` or `RTM_DELLINK` message.
pub(super) struct LinkMessage {
    pub link: Link,
    /// Another family than `AF_UNSPEC` carries what a protocol has to say about the link, such as a bridge
    /// about its port: a `RTM_DELLINK` of it does not mean that the link is gone.
    pub family: u8,
}

impl LinkMessage {
    /// `struct ifinfomsg`.
    const HEADER: usize = 16;

    pub fn parse(body: &[u8]) -> Result<Self, DecodeError> {
        let Some((header, attributes)) = body.split_at_checked(Self::HEADER) else {
            return Err(DecodeError::buffer_too_small(body.len(), Self::HEADER));
        };
        let flags = parse_u32(&header[8..12])?;
        let mut link = Link {
            index: parse_u32(&header[4..8])?,
            name: String::new(),
            mac: [0; 6],
            mtu: 0,
            up: flags & libc::IFF_UP as u32 != 0,
            carrier: flags & libc::IFF_LOWER_UP as u32 != 0,
            kind: None,
            paired_elsewhere: false,
        };
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            match attribute.kind() {
                libc::IFLA_IFNAME => link.name = parse_string(attribute.value())?,
                // Links that are not Ethernet have addresses of other lengths, or none.
                libc::IFLA_ADDRESS => link.mac = attribute.value().try_into().unwrap_or_default(),
                libc::IFLA_MTU => link.mtu = parse_u32(attribute.value())?,
                // Only there if the namespace is another one.
                libc::IFLA_LINK_NETNSID => link.paired_elsewhere = true,
                libc::IFLA_LINKINFO => link.kind = link_kind(&attribute)?,
                _ => {}
            }
        }
        if link.name.is_empty() {
            return Err(DecodeError::from(format!("link {} has no name", link.index)));
        }
        Ok(Self { link, family: header[0] })
    }

    fn is_about_the_link(&self) -> bool {
        self.family == libc::AF_UNSPEC as u8
    }
}

fn link_kind(info: &NlaBuffer<&[u8]>) -> Result<Option<String>, DecodeError> {
    for attribute in NlasIterator::new(info.value()) {
        let attribute = attribute?;
        if attribute.kind() == libc::IFLA_INFO_KIND {
            return parse_string(attribute.value()).map(Some);
        }
    }
    Ok(None)
}

/// Appends the changes that a datagram of notifications announces.
///
/// What cannot be read is not passed over: something has changed, and only looking again will tell what.
pub(super) fn changes(mut datagram: &[u8], into: &mut VecDeque<Change>) {
    while !datagram.is_empty() {
        let Ok(message) = NetlinkBuffer::new_checked(datagram) else {
            push(into, Change::Lost);
            return;
        };
        match change(message.message_type(), message.payload()) {
            Ok(Some(change)) => push(into, change),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(kind = message.message_type(), %error, "unreadable netlink notification");
                push(into, Change::Lost);
            }
        }
        let length = (message.length() as usize).next_multiple_of(usize::from(NLMSG_ALIGNTO));
        datagram = datagram.get(length..).unwrap_or_default();
    }
}

/// Flushing a table announces each of its entries: one of equal changes in a row is enough.
pub(super) fn push(into: &mut VecDeque<Change>, change: Change) {
    if into.back() != Some(&change) {
        into.push_back(change);
    }
}

fn change(kind: u16, body: &[u8]) -> Result<Option<Change>, DecodeError> {
    Ok(match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            let message = LinkMessage::parse(body)?;
            let gone = kind == libc::RTM_DELLINK && message.is_about_the_link();
            Some(Change::Link { name: message.link.name, index: message.link.index, gone })
        }
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            // IPv6 neighbours and the entries of bridges and VXLANs come to the same group.
            if body.first().copied() != Some(libc::AF_INET as u8) {
                return Ok(None);
            }
            let message = NeighbourMessage::parse(body)?;
            destination_v4(&message)
                .map(|address| Change::Neighbour { ifindex: message.header.ifindex, address })
        }
        libc::RTM_NEWROUTE
        | libc::RTM_DELROUTE
        | libc::RTM_NEWADDR
        | libc::RTM_DELADDR
        | libc::RTM_NEWRULE
        | libc::RTM_DELRULE
        | RTM_NEWNEXTHOP
        | RTM_DELNEXTHOP => Some(Change::RouteOrAddress),
        NLMSG_OVERRUN => Some(Change::Lost),
        _ => None,
    })
}

/// The address a neighbour entry is for.
pub(super) fn destination_v4(message: &NeighbourMessage) -> Option<std::net::Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}
