//! Sockets for whole frames.

use std::io;

use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

/// One that receives nothing until it is bound, in the network namespace of the calling thread. Nobody waits for it.
pub fn open() -> io::Result<Socket> {
    // Protocol 0.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The address of an interface: to send by, or to hear what has that type.
pub fn address(ifindex: u32, ethertype: [u8; 2]) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage has room for every address of the kernel's, and all zeros are one.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = u16::from_ne_bytes(ethertype);
    link.sll_ifindex = ifindex as i32;
    // SAFETY: the storage holds a `sockaddr_ll`, whose length this is.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
