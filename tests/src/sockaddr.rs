//! Socket addresses and options as the kernel wants them.

use std::io::Error;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};
use std::time::Duration;

/// A socket of the calling thread's namespace, for IPv4 or IPv6.
pub(crate) fn socket(is_v6: bool, kind: libc::c_int, protocol: libc::c_int) -> std::io::Result<OwnedFd> {
    let family = if is_v6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: no pointers are involved.
    let descriptor = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if descriptor < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Sets an option whose value is a number.
pub(crate) fn set(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> std::io::Result<()> {
    set_raw(socket, level, name, &value)
}

/// Bounds how long accepting and receiving (`SO_RCVTIMEO`) or connecting (`SO_SNDTIMEO`) may take.
pub(crate) fn set_timeout(
    socket: &impl AsRawFd,
    name: libc::c_int,
    timeout: Duration,
) -> std::io::Result<()> {
    let value =
        libc::timeval { tv_sec: timeout.as_secs().cast_signed(), tv_usec: timeout.subsec_micros().into() };
    set_raw(socket, libc::SOL_SOCKET, name, &value)
}

fn set_raw<T>(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> std::io::Result<()> {
    // SAFETY: the pointer and the length are those of `value`, which outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if set < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Room for an address of either family.
pub(crate) fn storage() -> libc::sockaddr_storage {
    // SAFETY: a plain C struct for which zero is a valid value.
    unsafe { zeroed() }
}

/// Binds a socket.
pub(crate) fn bind(socket: &impl AsRawFd, address: SocketAddr) -> std::io::Result<()> {
    let (address, length) = encode(address);
    // SAFETY: the pointer and the length are those of `address`, which outlives the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Connects a socket.
pub(crate) fn connect(socket: &impl AsRawFd, address: SocketAddr) -> std::io::Result<()> {
    let (address, length) = encode(address);
    // SAFETY: the pointer and the length are those of `address`, which outlives the call.
    let connected = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if connected < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Sends a datagram.
pub(crate) fn send_to(socket: &impl AsRawFd, data: &[u8], address: SocketAddr) -> std::io::Result<()> {
    let (address, length) = encode(address);
    // SAFETY: the pointers and lengths are those of `data` and `address`, which outlive the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            0,
            (&raw const address).cast(),
            length,
        )
    };
    if sent < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// What the kernel calls an address.
pub(crate) fn encode(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    let mut encoded = storage();
    let length = match address {
        SocketAddr::V4(address) => {
            // SAFETY: the storage is large enough and aligned for every kind of address.
            let v4 = unsafe { &mut *(&raw mut encoded).cast::<libc::sockaddr_in>() };
            v4.sin_family = libc::AF_INET as u16;
            v4.sin_port = address.port().to_be();
            v4.sin_addr.s_addr = u32::from(*address.ip()).to_be();
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(address) => {
            // SAFETY: as above.
            let v6 = unsafe { &mut *(&raw mut encoded).cast::<libc::sockaddr_in6>() };
            v6.sin6_family = libc::AF_INET6 as u16;
            v6.sin6_port = address.port().to_be();
            v6.sin6_addr.s6_addr = address.ip().octets();
            size_of::<libc::sockaddr_in6>()
        }
    };
    (encoded, length as libc::socklen_t)
}

/// The address the kernel has filled in, if it has.
pub(crate) fn decode(encoded: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(encoded.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says what the storage, large and aligned enough, holds.
            let v4 = unsafe { &*std::ptr::from_ref(encoded).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*std::ptr::from_ref(encoded).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddr::new(IpAddr::V6(ip), u16::from_be(v6.sin6_port)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        for text in ["203.0.113.10:4321", "[2001:db8:ff::10]:7"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(decode(&encode(address).0), Some(address));
        }
        assert_eq!(decode(&storage()), None);
    }
}
