//! Sends frames by interfaces, and what is for other nodes by the kernel's own routes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::rewrite::Output;

/// Two sockets; nothing is received by them, and nobody waits for them.
pub struct Sender {
    frames: Socket,
    datagrams: Socket,
}

impl Sender {
    /// Opens them in the network namespace of the calling thread.
    pub fn open() -> Result<Self> {
        const NEEDS: &str =
            "the agent needs CAP_NET_RAW to send packets that waited for a next hop: run it as root";
        // Protocol 0: receives nothing.
        let frames = Socket::new(Domain::PACKET, Type::RAW, None)
            .with_context(|| format!("cannot open a packet socket; {NEEDS}"))?;
        let datagrams = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))
            .with_context(|| format!("cannot open a raw socket; {NEEDS}"))?;
        for socket in [&frames, &datagrams] {
            socket.set_nonblocking(true).context("cannot make a socket non-blocking")?;
        }
        Ok(Self { frames, datagrams })
    }

    /// Sends what was made of a packet.
    pub fn send(&self, output: &Output) -> io::Result<()> {
        match output {
            Output::Frame { ifindex, frame } => self.frame(*ifindex, frame),
            Output::Datagram { dst, packet } => {
                let to = SocketAddrV4::new(Ipv4Addr::from_bits(dst.get()), 0);
                self.datagrams.send_to(packet, &SockAddr::from(to)).map(drop)
            }
        }
    }

    /// Sends a frame by an interface.
    pub fn frame(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let ethertype = frame.get(12..14).ok_or(io::ErrorKind::InvalidInput)?;
        self.frames.send_to(frame, &link(ifindex, [ethertype[0], ethertype[1]])).map(drop)
    }
}

/// The address of an interface.
fn link(ifindex: u32, ethertype: [u8; 2]) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage has room for every address of the kernel's, and all zeros are one.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = u16::from_ne_bytes(ethertype);
    link.sll_ifindex = ifindex as i32;
    // SAFETY: the storage holds a `sockaddr_ll`, whose length this is.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
