//! One packet, and all that comes of it: the answer, or the ICMP error with its source, type, code and MTU.

use std::fmt;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::service::{self, RETURN};
use crate::sockets::noise;
use crate::{Host, sockaddr};

/// A datagram to a server of [`Services`](crate::Services), or a ping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    destination: SocketAddr,
    is_ping: bool,
    source_port: u16,
    ttl: Option<u8>,
    dont_fragment: bool,
    length: usize,
    returned: bool,
    timeout: Duration,
}

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// An answer, its source, and whom the server saw (pings: nothing is known of that).
    Answer {
        /// Whom it came from.
        from: IpAddr,
        /// Whom the server saw.
        seen: Option<SocketAddr>,
        /// Whether all that was sent arrived unchanged, there and back.
        intact: bool,
    },
    /// An ICMP error.
    Error(IcmpError),
    /// The sender's own kernel refused to send it.
    Refused(String),
    /// Nothing in time.
    Silence,
}

/// An ICMP error as the sender's kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IcmpError {
    /// Who sent it.
    pub source: IpAddr,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// The MTU, if it is about that, else 0.
    pub mtu: u32,
}

impl Probe {
    /// A datagram.
    pub fn udp(destination: IpAddr, port: u16) -> Self {
        Self {
            destination: SocketAddr::new(destination, port),
            is_ping: false,
            source_port: 0,
            ttl: None,
            dont_fragment: false,
            length: 64,
            returned: false,
            timeout: Duration::from_secs(2),
        }
    }

    /// An echo request.
    pub fn ping(destination: IpAddr) -> Self {
        Self { is_ping: true, ..Self::udp(destination, 0) }
    }

    /// From this port (a ping: with this identifier).
    pub fn from_port(self, source_port: u16) -> Self {
        Self { source_port, ..self }
    }

    /// With this TTL or hop limit.
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl: Some(ttl), ..self }
    }

    /// Not to be fragmented, neither by the sender, nor (IPv4) on the way.
    pub fn dont_fragment(self) -> Self {
        Self { dont_fragment: true, ..self }
    }

    /// With a payload of that many bytes.
    pub fn length(self, length: usize) -> Self {
        Self { length, ..self }
    }

    /// The server is to send all of it back.
    pub fn returned(self) -> Self {
        Self { returned: true, ..self }
    }

    /// Waits so long.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sends it once and waits for what comes.
    pub fn send(&self, host: &Host) -> Result<Outcome> {
        let outcome = host.netns().enter(|| self.try_send())?;
        outcome.with_context(|| format!("{} sends {self:?}", host.name()))
    }

    fn try_send(&self) -> std::io::Result<Outcome> {
        let socket = self.open()?;
        let data = self.data();
        if let Err(error) = sockaddr::send_to(&socket, &data, self.destination) {
            return Ok(Outcome::Refused(reason(&error)));
        }
        let deadline = Instant::now() + self.timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Outcome::Silence);
            }
            wait(&socket, left)?;
            if let Some(error) = take_error(&socket)? {
                return Ok(Outcome::Error(error));
            }
            let mut buffer = vec![0; 1 << 16];
            if let Some((length, from)) = receive(&socket, &mut buffer)? {
                return Ok(self.judge(&data, &buffer[..length], from));
            }
        }
    }

    fn open(&self) -> std::io::Result<OwnedFd> {
        let is_v6 = self.destination.is_ipv6();
        let protocol = match (self.is_ping, is_v6) {
            (true, false) => libc::IPPROTO_ICMP,
            (true, true) => libc::IPPROTO_ICMPV6,
            (false, _) => libc::IPPROTO_UDP,
        };
        if self.is_ping {
            // Without it nobody may have a socket for pings.
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
        }
        let socket = sockaddr::socket(is_v6, libc::SOCK_DGRAM, protocol)?;
        // As told, whatever was learned about the path before: PROBE is 3, OMIT 5, in both families.
        let (level, recverr, discover, hops) = if is_v6 {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, libc::IPV6_MTU_DISCOVER, libc::IPV6_UNICAST_HOPS)
        } else {
            (libc::IPPROTO_IP, libc::IP_RECVERR, libc::IP_MTU_DISCOVER, libc::IP_TTL)
        };
        sockaddr::set(&socket, level, recverr, 1)?;
        sockaddr::set(&socket, level, discover, if self.dont_fragment { 3 } else { 5 })?;
        if let Some(ttl) = self.ttl {
            sockaddr::set(&socket, level, hops, ttl.into())?;
        }
        let any: IpAddr = if is_v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        // The last probe's socket from this port may live on in a child of this process that is just being made: until
        // it runs its program, it has a copy of everything that is open.
        let mut tries = 0;
        while let Err(error) = sockaddr::bind(&socket, SocketAddr::new(any, self.source_port)) {
            tries += 1;
            if error.kind() != std::io::ErrorKind::AddrInUse || tries > 100 {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(socket)
    }

    fn data(&self) -> Vec<u8> {
        let mut data = noise(self.length);
        if self.is_ping {
            // Type, code, and what the kernel fills in.
            let kind = if self.destination.is_ipv6() { 128 } else { 8 };
            data.splice(0..0, [kind, 0, 0, 0, 0, 0, 0, 1]);
        } else if let Some(first) = data.first_mut() {
            *first = if self.returned { RETURN } else { b'-' };
        }
        data
    }

    fn judge(&self, sent: &[u8], came: &[u8], from: SocketAddr) -> Outcome {
        let from = from.ip();
        if self.is_ping {
            return Outcome::Answer { from, seen: None, intact: came.get(8..) == sent.get(8..) };
        }
        let (line, rest) = match came.iter().position(|&byte| byte == b'\n') {
            Some(end) => (&came[..end], Some(&came[end + 1..])),
            None => (came, None),
        };
        let line = String::from_utf8_lossy(line);
        let words: Vec<&str> = line.split(' ').collect();
        let [ip, port, length, hash] = words[..] else {
            return Outcome::Answer { from, seen: None, intact: false };
        };
        let seen = ip.parse().ok().zip(port.parse().ok()).map(|(ip, port)| SocketAddr::new(ip, port));
        let arrived = length == sent.len().to_string() && hash == format!("{:016x}", service::hash(sent));
        let returned = rest == self.returned.then_some(sent);
        Outcome::Answer { from, seen, intact: arrived && returned }
    }
}

impl Outcome {
    /// Whom the server saw, if all arrived unchanged and the answer came from `expected`.
    pub fn seen(&self, expected: IpAddr) -> Option<SocketAddr> {
        match *self {
            Self::Answer { from, seen, intact: true } if from == expected => seen,
            _ => None,
        }
    }

    /// Whether it is an unspoilt answer from there.
    pub fn is_answer(&self, expected: IpAddr) -> bool {
        matches!(*self, Self::Answer { from, intact: true, .. } if from == expected)
    }

    /// The ICMP error, if it is one.
    pub fn error(&self) -> Option<IcmpError> {
        if let Self::Error(error) = self { Some(*error) } else { None }
    }
}

/// What does not depend on chance: ports are left out.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer { from, seen, intact } => {
                write!(f, "answer from {from}")?;
                if let Some(seen) = seen {
                    write!(f, " to {}", seen.ip())?;
                }
                write!(f, "{}", if *intact { "" } else { ", spoilt" })
            }
            Self::Error(error) => write!(f, "{error}"),
            Self::Refused(reason) => write!(f, "not sent: {reason}"),
            Self::Silence => write!(f, "silence"),
        }
    }
}

impl fmt::Display for IcmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "icmp {}/{} from {}", self.kind, self.code, self.source)?;
        if self.mtu == 0 { Ok(()) } else { write!(f, " mtu {}", self.mtu) }
    }
}

/// The name of a socket's error, the same in every run.
pub fn reason(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "refused".to_owned(),
        Some(libc::ENETUNREACH) => "network unreachable".to_owned(),
        Some(libc::EHOSTUNREACH) => "host unreachable".to_owned(),
        Some(libc::EACCES | libc::EPERM) => "prohibited".to_owned(),
        Some(libc::EMSGSIZE) => "too big".to_owned(),
        // `SO_SNDTIMEO` ends a connect with the first.
        Some(libc::EINPROGRESS | libc::ETIMEDOUT | libc::EAGAIN) => "silence".to_owned(),
        _ => error.to_string(),
    }
}

fn wait(socket: &OwnedFd, timeout: Duration) -> std::io::Result<()> {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let milliseconds = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    // SAFETY: one pollfd, which outlives the call.
    match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
        0.. => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> std::io::Result<Option<(usize, SocketAddr)>> {
    let mut address = sockaddr::storage();
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: the pointers and lengths are those of `buffer` and `address`, which outlive the call.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            (&raw mut address).cast(),
            &raw mut length,
        )
    };
    // An error here is the one that the error queue explains, taken before or the next time round.
    let from = usize::try_from(received).ok().zip(sockaddr::decode(&address));
    Ok(from)
}

/// The next ICMP error of the socket's error queue.
fn take_error(socket: &OwnedFd) -> std::io::Result<Option<IcmpError>> {
    let mut buffer = vec![0_u8; 1 << 16];
    // SAFETY: a plain C struct for which zero is a valid value.
    let mut message: libc::msghdr = unsafe { zeroed() };
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = [0_u64; 64]; // u64: aligned as a cmsghdr must be
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: every pointer in `message` is to a local that outlives the call, with its length.
    if unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) } < 0 {
        return Ok(None);
    }
    // SAFETY: the kernel has filled in `message`, whose control buffer still lives.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole header in the control buffer.
        let control = unsafe { &*header };
        let is_error = matches!(
            (control.cmsg_level, control.cmsg_type),
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        );
        if is_error {
            // SAFETY: the kernel puts a sock_extended_err behind such a header, and an address behind that.
            let (error, address) = unsafe {
                let error = libc::CMSG_DATA(header).cast::<libc::sock_extended_err>();
                (error.read_unaligned(), read_offender(error.add(1).cast(), control.cmsg_len))
            };
            if error.ee_origin >= libc::SO_EE_ORIGIN_ICMP
                && let Some(source) = address
            {
                let is_mtu = matches!((source.is_ipv6(), error.ee_type), (false, 3) | (true, 2));
                return Ok(Some(IcmpError {
                    source: source.ip(),
                    kind: error.ee_type,
                    code: error.ee_code,
                    mtu: if is_mtu { error.ee_info } else { 0 },
                }));
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR; `header` is one it or this returned.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(None)
}

/// The address behind an error, as much of it as the control message holds.
///
/// # Safety
/// `at` must be where a control message of `length` bytes, header included, has its second half.
unsafe fn read_offender(at: *const u8, length: usize) -> Option<SocketAddr> {
    let mut address = sockaddr::storage();
    // SAFETY: no pointers are involved.
    let before = unsafe { libc::CMSG_LEN(size_of::<libc::sock_extended_err>() as u32) } as usize;
    let room = length.saturating_sub(before).min(size_of_val(&address));
    // SAFETY: `room` bytes are left in the message and fit the storage.
    unsafe { std::ptr::copy_nonoverlapping(at, (&raw mut address).cast(), room) };
    sockaddr::decode(&address)
}
