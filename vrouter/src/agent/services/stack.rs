//! TCP/IP of one end in user space: packets in, packets out, and a clock.
//!
//! The agent has no interface with an address in a tenant's network, and tenants' addresses overlap. So each port
//! that needs one gets a stack of its own. It never sees hardware addresses: who owns it takes
//! packets out of frames and puts them into frames ([`super::frame`]).

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp,
    time::Instant as Clock,
    wire::{HardwareAddress, IpCidr},
};

/// Bytes that a peer may send before it hears more: so that no frame of its is larger than what the data path hands
/// over (2048 bytes with all headers), even if its kernel leaves cutting to its network card.
pub const WINDOW: usize = 1900;
/// The least any network has to carry (RFC 8200, 5).
const MTU_MIN: u16 = 1280;
/// What most networks carry: there is no gain in more.
const MTU_MAX: u16 = 1500;

/// A stack with sockets.
pub struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    queues: Queues,
    start: Instant,
}

impl Stack {
    /// One that has these addresses, at most one of each family. `seed`: not to be guessed.
    pub fn new(addresses: &[IpAddr], mtu: u32, seed: u64, now: Instant) -> Self {
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX).clamp(MTU_MIN, MTU_MAX);
        let mut queues = Queues { mtu: usize::from(mtu), ..Queues::default() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut queues, Clock::ZERO);
        interface.update_ip_addrs(|known| {
            for &address in addresses {
                let length = if address.is_ipv4() { 32 } else { 128 };
                // There is room for two.
                let _ = known.push(IpCidr::new(address.into(), length));
            }
        });
        // Whoever is behind them: every peer is reached over the one link.
        for &address in addresses {
            match address {
                IpAddr::V4(address) => {
                    let _ = interface.routes_mut().add_default_ipv4_route(address);
                }
                IpAddr::V6(address) => {
                    let _ = interface.routes_mut().add_default_ipv6_route(address);
                }
            }
        }
        Self { interface, sockets: SocketSet::new(Vec::new()), queues, start: now }
    }

    /// Adds a TCP socket; `send`: bytes it holds until they are acknowledged.
    pub fn tcp(&mut self, send: usize) -> SocketHandle {
        let mut socket =
            tcp::Socket::new(tcp::SocketBuffer::new(vec![0; WINDOW]), tcp::SocketBuffer::new(vec![0; send]));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        self.sockets.add(socket)
    }

    /// Adds a socket that waits for one connection to a port.
    pub fn listen(&mut self, port: u16, send: usize) -> SocketHandle {
        let handle = self.tcp(send);
        // A new socket, a port that is not 0.
        let _ = self.socket(handle).listen(port);
        handle
    }

    /// Has a socket connect; whether it could be tried.
    #[cfg(test)]
    pub fn connect(&mut self, handle: SocketHandle, from: (IpAddr, u16), to: (IpAddr, u16)) -> bool {
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        let local = smoltcp::wire::IpListenEndpoint { addr: Some(from.0.into()), port: from.1 };
        socket
            .connect(self.interface.context(), smoltcp::wire::IpEndpoint::new(to.0.into(), to.1), local)
            .is_ok()
    }

    /// A socket.
    pub fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Forgets a socket, with all it holds.
    pub fn remove(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
    }

    /// Takes a packet, from its IP header on; it has its effect with the next [`Self::poll`].
    pub fn receive(&mut self, packet: &[u8]) {
        self.queues.received.push_back(packet.to_vec());
    }

    /// Does what is to be done now.
    pub fn poll(&mut self, now: Instant) {
        let now = self.clock(now);
        self.interface.poll(now, &mut self.queues, &mut self.sockets);
    }

    /// The next packet to be sent.
    pub fn transmit(&mut self) -> Option<Vec<u8>> {
        self.queues.sent.pop_front()
    }

    /// When to poll next, if nothing comes before; `None`: not at all.
    pub fn next_due(&mut self, now: Instant) -> Option<Instant> {
        let due = self.interface.poll_at(self.clock(now), &self.sockets)?;
        let micros = u64::try_from(due.total_micros()).unwrap_or_default();
        Some((self.start + Duration::from_micros(micros)).max(now))
    }

    fn clock(&self, now: Instant) -> Clock {
        let micros = now.saturating_duration_since(self.start).as_micros();
        Clock::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}

/// What stands between the stack and the frames.
#[derive(Default)]
struct Queues {
    received: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
    mtu: usize,
}

impl Device for Queues {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _: Clock) -> Option<(Arrived, Leaving<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Arrived(packet), Leaving(&mut self.sent)))
    }

    fn transmit(&mut self, _: Clock) -> Option<Leaving<'_>> {
        Some(Leaving(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // A workload's kernel may leave its TCP checksums to a network card there is none of.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

struct Arrived(Vec<u8>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Leaving<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}
