//! Raw frames in and out of an interface, through AF_PACKET.

use std::io::{Error, ErrorKind};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::Netns;

/// Sends one Ethernet frame out of an interface, exactly as given.
pub(crate) fn send(netns: &Netns, interface: &str, frame: &[u8]) -> Result<()> {
    let sent = netns.enter(|| {
        // Protocol 0: this socket receives nothing.
        let (socket, address) = open(interface, 0)?;
        // SAFETY: the pointers and lengths are those of `frame` and `address`, which outlive the call.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 { Err(Error::last_os_error()) } else { Ok(()) }
    })?;
    sent.with_context(|| format!("cannot send {} bytes out of {interface} in {}", frame.len(), netns.name()))
}

/// Sends frames one after the other as fast as the interface takes them; tells how many it took.
pub(crate) fn flood(
    netns: &Netns,
    interface: &str,
    frames: impl Iterator<Item = Vec<u8>> + Send,
) -> Result<u64> {
    let sent = netns.enter(|| -> std::io::Result<u64> {
        let (socket, address) = open(interface, 0)?;
        let mut taken = 0;
        for frame in frames {
            // SAFETY: the pointers and lengths are those of `frame` and `address`, which outlive the call.
            let sent = unsafe {
                libc::sendto(
                    socket.as_raw_fd(),
                    frame.as_ptr().cast(),
                    frame.len(),
                    0,
                    (&raw const address).cast(),
                    size_of::<libc::sockaddr_ll>() as libc::socklen_t,
                )
            };
            match Error::last_os_error() {
                _ if sent >= 0 => taken += 1,
                // The interface is busy: that one is lost, as in any flood.
                error if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                error => return Err(error),
            }
        }
        Ok(taken)
    })?;
    sent.with_context(|| format!("cannot send out of {interface} in {}", netns.name()))
}

/// Receives what arrives at an interface, from the moment it was made; what the interface's owner sends is
/// left out. A VLAN tag the kernel has taken off is put back.
#[derive(Debug)]
pub struct Sniffer {
    socket: OwnedFd,
    name: String,
}

impl Sniffer {
    pub(crate) fn open(netns: &Netns, interface: &str) -> Result<Self> {
        let name = format!("{interface} in {}", netns.name());
        let socket = netns.enter(|| -> std::io::Result<OwnedFd> {
            let (socket, address) = open(interface, libc::ETH_P_ALL as u16)?;
            set_option(&socket, libc::PACKET_AUXDATA)?;
            // SAFETY: the pointer and the length are those of `address`, which outlives the call.
            let bound = unsafe {
                libc::bind(
                    socket.as_raw_fd(),
                    (&raw const address).cast(),
                    size_of::<libc::sockaddr_ll>() as libc::socklen_t,
                )
            };
            if bound < 0 { Err(Error::last_os_error()) } else { Ok(socket) }
        })?;
        Ok(Self { socket: socket.with_context(|| format!("cannot listen at {name}"))?, name })
    }

    /// The next frame, or `None` if none comes in time.
    pub fn next(&self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + timeout;
        loop {
            if !self.is_readable(deadline.saturating_duration_since(Instant::now()))? {
                return Ok(None);
            }
            if let Some(frame) = self.receive()? {
                return Ok(Some(frame));
            }
        }
    }

    /// The first frame that satisfies `wanted`. Earlier ones are gone.
    pub fn expect(&self, timeout: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let deadline = Instant::now() + timeout;
        let mut others = 0;
        while let Some(frame) = self.next(deadline.saturating_duration_since(Instant::now()))? {
            if wanted(&frame) {
                return Ok(frame);
            }
            others += 1;
        }
        bail!("no such frame at {} in {timeout:?}, but {others} others", self.name)
    }

    /// All frames that satisfy `wanted` and arrive in time; waits the whole time.
    pub fn collect(&self, time: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + time;
        let mut frames = Vec::new();
        while let Some(frame) = self.next(deadline.saturating_duration_since(Instant::now()))? {
            if wanted(&frame) {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    fn is_readable(&self, timeout: Duration) -> Result<bool> {
        let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // Rounded up: a wait of half a millisecond must not become none.
        let milliseconds = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // SAFETY: one pollfd, which outlives the call.
        match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
            0 => Ok(false),
            1.. => Ok(true),
            _ => match Error::last_os_error() {
                error if error.kind() == ErrorKind::Interrupted => Ok(true),
                error => Err(error).with_context(|| format!("cannot wait at {}", self.name)),
            },
        }
    }

    /// One frame, if it is one that arrived.
    fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0_u8; 1 << 16];
        // SAFETY: all of these are plain C structs for which zero is a valid value.
        let (mut address, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { (zeroed(), zeroed()) };
        let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut control = [0_u64; 16]; // u64: aligned as a cmsghdr must be
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: every pointer in `message` is to a local that outlives the call, with its length.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        if length < 0 {
            return match Error::last_os_error() {
                error if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
                error => Err(error).with_context(|| format!("cannot receive at {}", self.name)),
            };
        }
        if address.sll_pkttype == libc::PACKET_OUTGOING {
            return Ok(None);
        }
        buffer.truncate(length.cast_unsigned());
        if let Some([tpid, tci]) = vlan_tag(&message)
            && buffer.len() >= 12
        {
            buffer.splice(12..12, [tpid.to_be_bytes(), tci.to_be_bytes()].concat());
        }
        Ok(Some(buffer))
    }
}

/// The VLAN tag (TPID, TCI) the kernel took off the frame of a received message.
fn vlan_tag(message: &libc::msghdr) -> Option<[u16; 2]> {
    // SAFETY: the kernel has filled in `message`, whose control buffer still lives.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole header in the control buffer.
        let control = unsafe { &*header };
        if (control.cmsg_level, control.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
            // SAFETY: the kernel puts a tpacket_auxdata behind a header of this type.
            let aux: libc::tpacket_auxdata =
                unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
            let is_tagged = aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
            return is_tagged.then_some([aux.tp_vlan_tpid, aux.tp_vlan_tci]);
        }
        // SAFETY: as for CMSG_FIRSTHDR; `header` is one it or this returned.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

/// A packet socket of the calling thread's namespace, and the address of the interface.
fn open(interface: &str, protocol: u16) -> std::io::Result<(OwnedFd, libc::sockaddr_ll)> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    // SAFETY: no pointers are involved. Protocol 0: nothing is received before `bind` names one.
    let descriptor = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if descriptor < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // SAFETY: a plain C struct for which zero is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.cast_signed();
    Ok((socket, address))
}

fn set_option(socket: &OwnedFd, option: libc::c_int) -> std::io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length are those of `on`, which outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if set < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}
