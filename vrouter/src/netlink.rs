//! The kernel's links, addresses, routes and neighbours, through rtnetlink.
//!
//! [`Netlink`] asks, [`Changes`] tells when to ask again. They use a socket each: a notification carries the
//! sequence number of the request that caused it, whoever made that, so on one socket it could be taken for
//! the answer to a request of our own.
//!
//! Both belong to the network namespace that the thread which made them was in at that time.

pub mod routes;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload, Parseable,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage, link};
use rtnetlink::MulticastGroup;
use rtnetlink::proto::{ConnectionHandle, new_connection};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};

use wire::{LinkMessage, Raw};

/// How long the kernel may take until the next message of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a dump is begun again because what it lists changed meanwhile.
const DUMP_ATTEMPTS: usize = 5;
/// The notifications that may wait to be read, in bytes as the kernel accounts for them.
const NOTIFICATION_BUFFER: libc::c_int = 8 << 20;
/// More than the kernel puts into one datagram.
const DATAGRAM: usize = 64 << 10;

/// What can alter the answers of [`Netlink`]. Rules and next hop objects decide about routes too.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Nexthop,
];

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number, which it keeps when it is renamed.
    pub index: u32,
    /// Its name at present.
    pub name: String,
    /// Its Ethernet address; zero when it has none, as a tunnel.
    pub mac: [u8; 6],
    /// The largest packet it takes, in bytes, without the link-layer header.
    pub mtu: u32,
    /// Whether it is set up by the administrator.
    pub up: bool,
    /// Whether the layer below is up: the cable is plugged, the other end of a veth pair is up.
    pub carrier: bool,
    /// What made it, such as `veth`, `tun` or `vxlan`; `None` for hardware and the loopback.
    pub kind: Option<String>,
    /// What it is paired with, such as the other end of a veth, is in another network namespace.
    pub paired_elsewhere: bool,
}

/// How the host would send a packet to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteTo {
    /// The interface it leaves through.
    pub ifindex: u32,
    /// The router it is handed to; `None` when the destination is on the link itself.
    pub gateway: Option<Ipv4Addr>,
    /// The source address the host would choose.
    pub source: Option<Ipv4Addr>,
    /// The destination is an address of this host.
    pub local: bool,
    /// The path's MTU, when the route sets one or path MTU discovery found one below the link's.
    pub mtu: Option<u32>,
}

/// A neighbour whose link-layer address is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// The kernel itself would send to this address.
    pub usable: bool,
    /// Set by the administrator and never resolved.
    pub permanent: bool,
}

/// Something that changed. It says what to look at again, not what it has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A link was added, altered, renamed or removed.
    ///
    /// The kernel drops the routes through a link that goes down without announcing them one by one, so
    /// routes are to be looked at again as well.
    Link {
        /// Its name, the new one after it was renamed.
        name: String,
        /// Its number.
        index: u32,
        /// It was removed, or moved to another namespace.
        gone: bool,
    },
    /// An entry for this neighbour was added, altered or removed.
    Neighbour {
        /// The interface the entry is for.
        ifindex: u32,
        /// The neighbour's address.
        address: Ipv4Addr,
    },
    /// The IPv4 routes, the rules that select among them, or the addresses of a link changed.
    RouteOrAddress,
    /// Notifications were missed: everything is to be looked at again.
    Lost,
}

/// Asks the kernel about the network of one namespace.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: ConnectionHandle<Raw>,
}

impl Netlink {
    /// Connects to the network namespace of the calling thread, and subscribes to its changes.
    ///
    /// Whatever changes after this returns is announced, so state that is read afterwards is either current
    /// or followed by an announcement. Must be called within a tokio runtime.
    pub fn new() -> Result<(Self, Changes)> {
        let changes =
            Changes::subscribe(NOTIFICATION_BUFFER).context("cannot subscribe to the kernel's network")?;
        let (mut connection, handle, _) =
            new_connection(NETLINK_ROUTE).context("cannot open a netlink socket")?;
        // Without them, the end of an answer looks the same as the end of the connection.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        tokio::spawn(connection);
        Ok((Self { handle }, changes))
    }

    /// Lists the links.
    pub async fn links(&self) -> Result<Vec<Link>> {
        let mut request = link::LinkMessage::default();
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let answer = self.dump(&RouteNetlinkMessage::GetLink(request)).await.context("cannot list links")?;
        answer
            .iter()
            .filter(|message| message.kind == libc::RTM_NEWLINK)
            .map(|message| Ok(LinkMessage::parse(&message.body).context("unreadable link")?.link))
            .collect()
    }

    /// Lists the IPv4 addresses of this host, each with the index of its link and the length of its prefix.
    pub async fn addresses_v4(&self) -> Result<Vec<(u32, Ipv4Addr, u8)>> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let answer =
            self.dump(&RouteNetlinkMessage::GetAddress(request)).await.context("cannot list addresses")?;
        let mut addresses = Vec::with_capacity(answer.len());
        for message in answer.iter().filter(|message| message.kind == libc::RTM_NEWADDR) {
            let message = AddressMessage::parse(&message.body[..]).context("unreadable address")?;
            // On a point-to-point link the attribute named "address" is the peer's.
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            });
            if let Some(local) = local {
                addresses.push((message.header.index, local, message.header.prefix_len));
            }
        }
        Ok(addresses)
    }

    /// Asks how the host would send to `dst`; `None` when it would not.
    pub async fn route_to(&self, dst: Ipv4Addr) -> Result<Option<RouteTo>> {
        let mut request = RouteMessage::default();
        request.header = RouteHeader {
            address_family: AddressFamily::Inet,
            destination_prefix_length: 32,
            ..RouteHeader::default()
        };
        request.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(dst)));
        let answer = match self.request(&RouteNetlinkMessage::GetRoute(request), NLM_F_REQUEST).await {
            Ok(answer) => answer,
            Err(error) if is_no_route(&error) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot look up the route to {dst}")),
        };
        let answer = answer
            .iter()
            .find(|message| message.kind == libc::RTM_NEWROUTE)
            .with_context(|| format!("no answer about the route to {dst}"))?;
        let route =
            RouteMessage::parse(&answer.body[..]).with_context(|| format!("unreadable route to {dst}"))?;
        read_route(&route).with_context(|| format!("cannot use the route to {dst}"))
    }

    /// Lists the IPv4 neighbours that have a link-layer address, by link and address.
    pub async fn neighbours_v4(&self) -> Result<HashMap<(u32, Ipv4Addr), Neighbour>> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Inet;
        let answer = self
            .dump(&RouteNetlinkMessage::GetNeighbour(request))
            .await
            .context("cannot list the neighbours")?;
        let mut neighbours = HashMap::new();
        for message in answer.iter().filter(|message| message.kind == libc::RTM_NEWNEIGH) {
            let message = NeighbourMessage::parse(&message.body[..]).context("unreadable neighbour")?;
            if let (Some(address), Some(mac)) = (wire::destination_v4(&message), link_address(&message)) {
                let state = u16::from(message.header.state);
                let neighbour = Neighbour {
                    mac,
                    usable: state & NUD_USABLE != 0,
                    permanent: state & libc::NUD_PERMANENT != 0,
                };
                neighbours.insert((message.header.ifindex, address), neighbour);
            }
        }
        Ok(neighbours)
    }

    /// Has the kernel resolve a neighbour and keep it resolved, as `ip neigh replace … managed` does.
    ///
    /// Kernels before 5.16 resolve it once; the caller then has to ask again when the entry goes away. An
    /// entry that the administrator or a control plane maintains is left as it is.
    pub async fn resolve(&self, ifindex: u32, nexthop: Ipv4Addr) -> Result<()> {
        let context = || format!("cannot have neighbour {nexthop} on link {ifindex} resolved");
        // An entry that is told to be used turns from permanent to unresolved.
        if self.neighbour(ifindex, nexthop).await.with_context(context)?.is_some_and(|it| is_maintained(&it))
        {
            return Ok(());
        }
        let mut request = neighbour_request(ifindex, nexthop);
        request.header.flags = NeighbourFlags::Use;
        let unmanaged = RouteNetlinkMessage::NewNeighbour(request.clone());
        request.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        let managed = RouteNetlinkMessage::NewNeighbour(request);

        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
        match self.request(&managed, flags).await {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.request(&unmanaged, flags).await.with_context(context)?;
            }
            answer => {
                answer.with_context(context)?;
            }
        }
        Ok(())
    }

    /// Has the kernel no longer keep a neighbour resolved that [`resolve`](Self::resolve) was called for.
    ///
    /// The entry stays until the kernel has no more use for it.
    pub async fn unmanage(&self, ifindex: u32, nexthop: Ipv4Addr) -> Result<()> {
        let context = || format!("cannot give up neighbour {nexthop} on link {ifindex}");
        match self.neighbour(ifindex, nexthop).await.with_context(context)? {
            Some(entry) if is_managed(&entry) && !is_maintained(&entry) => {}
            _ => return Ok(()),
        }
        // What a request does not set is cleared, so being used clears being managed.
        let mut request = neighbour_request(ifindex, nexthop);
        request.header.flags = NeighbourFlags::Use;
        match self.request(&RouteNetlinkMessage::NewNeighbour(request), NLM_F_REQUEST | NLM_F_ACK).await {
            Err(error) if is_no_entry(&error) => Ok(()),
            answer => answer.map(drop).with_context(context),
        }
    }

    /// The entry of one neighbour, whether or not it is resolved.
    async fn neighbour(&self, ifindex: u32, address: Ipv4Addr) -> Result<Option<NeighbourMessage>> {
        let request = RouteNetlinkMessage::GetNeighbour(neighbour_request(ifindex, address));
        let answer = match self.request(&request, NLM_F_REQUEST).await {
            Ok(answer) => answer,
            Err(error) if is_no_entry(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        answer
            .iter()
            .find(|message| message.kind == libc::RTM_NEWNEIGH)
            .map(|message| NeighbourMessage::parse(&message.body[..]).context("unreadable neighbour"))
            .transpose()
    }

    /// Lists all there is of something, again when it changed while it was listed.
    async fn dump(&self, message: &RouteNetlinkMessage) -> io::Result<Vec<Raw>> {
        let mut attempt = 1;
        loop {
            let answer = self.exchange(message, NLM_F_REQUEST | NLM_F_DUMP).await?;
            // What keeps changing is announced, and then looked at again.
            if !answer.interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(answer.messages);
            }
            attempt += 1;
        }
    }

    async fn request(&self, message: &RouteNetlinkMessage, flags: u16) -> io::Result<Vec<Raw>> {
        Ok(self.exchange(message, flags).await?.messages)
    }

    async fn exchange(&self, message: &RouteNetlinkMessage, flags: u16) -> io::Result<Answer> {
        let mut request = NetlinkMessage::from(Raw::from(message));
        request.header.flags = flags;
        let closed = || io::Error::new(io::ErrorKind::BrokenPipe, "the netlink connection is closed");
        let mut replies = self.handle.request(request, SocketAddr::new(0, 0)).map_err(|_| closed())?;

        let mut answer = Answer { messages: Vec::new(), interrupted: false };
        loop {
            let reply = tokio::time::timeout(ANSWER_TIMEOUT, replies.next())
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer"))?
                .ok_or_else(closed)?;
            answer.interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
            match reply.payload {
                NetlinkPayload::InnerMessage(inner) => {
                    answer.messages.push(inner);
                    if (reply.header.flags & NLM_F_MULTIPART) | (flags & NLM_F_ACK) == 0 {
                        return Ok(answer);
                    }
                }
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) => return Ok(answer),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => return Ok(answer),
                NetlinkPayload::Overrun(_) => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
                _ => {}
            }
        }
    }
}

/// The whole of an answer.
struct Answer {
    messages: Vec<Raw>,
    /// What a dump lists changed meanwhile: it may be in it twice, or missing.
    interrupted: bool,
}

const NUD_USABLE: u16 = libc::NUD_REACHABLE
    | libc::NUD_STALE
    | libc::NUD_DELAY
    | libc::NUD_PROBE
    | libc::NUD_PERMANENT
    | libc::NUD_NOARP;

fn neighbour_request(ifindex: u32, address: Ipv4Addr) -> NeighbourMessage {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Inet;
    request.header.ifindex = ifindex;
    request.header.state = NeighbourState::None;
    request.header.kind = RouteType::Unspec;
    request.attributes.push(NeighbourAttribute::Destination(address.into()));
    request
}

fn link_address(message: &NeighbourMessage) -> Option<[u8; 6]> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(address) => address[..].try_into().ok(),
        _ => None,
    })
}

fn is_managed(entry: &NeighbourMessage) -> bool {
    entry.attributes.iter().any(|attribute| match attribute {
        NeighbourAttribute::ExtFlags(flags) => flags.contains(NeighbourExtFlags::Managed),
        _ => false,
    })
}

/// Somebody else sets this entry, and does not leave it to the kernel to resolve.
fn is_maintained(entry: &NeighbourMessage) -> bool {
    u16::from(entry.header.state) & (libc::NUD_PERMANENT | libc::NUD_NOARP) != 0
        || entry.header.flags.contains(NeighbourFlags::ExtLearned)
}

/// The entry is not there, or the link it would be on is not.
fn is_no_entry(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// How the kernel says that it would not send to a destination: there is no route, or one of the type
/// unreachable, prohibit (`EACCES`) or blackhole (`EINVAL`).
fn is_no_route(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL))
}

fn read_route(message: &RouteMessage) -> Result<Option<RouteTo>> {
    match message.header.kind {
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => {
            return Ok(None);
        }
        _ => {}
    }
    let mut ifindex = None;
    let mut gateway = None;
    let mut source = None;
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address))
            | RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some(*address),
            RouteAttribute::Via(_) | RouteAttribute::Gateway(_) => {
                bail!("its gateway does not have an IPv4 address")
            }
            RouteAttribute::EncapType(kind) => bail!("it encapsulates packets ({kind:?})"),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Ok(Some(RouteTo {
        ifindex: ifindex.context("it does not tell the interface")?,
        gateway,
        source,
        local: message.header.kind == RouteType::Local,
        mtu,
    }))
}

/// The changes of the network, as they happen.
///
/// They wait in the socket until they are asked for, so an agent that is busy costs a bounded amount of
/// memory, and a [`Change::Lost`] when it was not enough.
pub struct Changes {
    socket: TokioSocket,
    datagram: Vec<u8>,
    pending: VecDeque<Change>,
}

impl Changes {
    fn subscribe(receive_buffer: libc::c_int) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        set_receive_buffer(&socket, receive_buffer)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.socket_ref().add_membership(group as u32)?;
        }
        Ok(Self { socket, datagram: Vec::with_capacity(DATAGRAM), pending: VecDeque::new() })
    }

    /// Waits for the next change; `None` when the socket failed and no more will come.
    ///
    /// A change is not lost when the returned future is dropped before it completes.
    pub async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return Some(change);
            }
            self.datagram.clear();
            match poll_fn(|cx| self.socket.poll_recv_from(cx, &mut self.datagram)).await {
                // Only the kernel is to be believed.
                Ok(sender) if sender.port_number() != 0 => {}
                Ok(_) => wire::changes(&self.datagram, &mut self.pending),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    wire::push(&mut self.pending, Change::Lost);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!(%error, "cannot read the kernel's network notifications");
                    return None;
                }
            }
        }
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").field("pending", &self.pending).finish_non_exhaustive()
    }
}

/// Sets the size of a socket's receive buffer, beyond the system's limit when privileged.
fn set_receive_buffer(socket: &TokioSocket, size: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as the socket is borrowed, and the option's value is an int that
    // is only read, of the length given.
    let forced = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            size_of_val(&size) as libc::socklen_t,
        )
    };
    if forced == 0 { Ok(()) } else { socket.socket_ref().set_rx_buf_sz(size) }
}
