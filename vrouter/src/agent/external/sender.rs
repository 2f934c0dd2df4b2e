//! Sends frames by interfaces, and what is for other nodes by the kernel's own routes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::rewrite::Output;
use crate::agent::frame_socket;

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
        let frames = frame_socket::open().with_context(|| format!("cannot open a packet socket; {NEEDS}"))?;
        let datagrams = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))
            .with_context(|| format!("cannot open a raw socket; {NEEDS}"))?;
        datagrams.set_nonblocking(true).context("cannot make a socket non-blocking")?;
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
        self.frames.send_to(frame, &frame_socket::address(ifindex, [ethertype[0], ethertype[1]])).map(drop)
    }
}
