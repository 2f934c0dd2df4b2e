//! Sockets of hosts, for what no tool says exactly.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::Host;

const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to `server`'s `address`, sends `length` bytes each way, and fails unless they arrive unchanged.
pub fn tcp_exchange(client: &Host, server: &Host, address: IpAddr, length: usize) -> Result<()> {
    let listener = server.netns().enter(|| TcpListener::bind((address, 0)))??;
    let destination = listener.local_addr()?;
    let stream = client.netns().enter(|| TcpStream::connect_timeout(&destination, PATIENCE))?;
    let stream = stream.with_context(|| format!("{} cannot connect to {destination}", client.name()))?;
    let (peer, _) = listener.accept()?;
    transfer(&stream, &peer, length).with_context(|| format!("{} to {destination}", client.name()))?;
    transfer(&peer, &stream, length).with_context(|| format!("{destination} to {}", client.name()))
}

fn transfer(from: &TcpStream, to: &TcpStream, length: usize) -> Result<()> {
    let sent = noise(length);
    from.set_write_timeout(Some(PATIENCE))?;
    to.set_read_timeout(Some(PATIENCE))?;
    let mut received = vec![0; length];
    std::thread::scope(|scope| -> Result<()> {
        let (mut from, mut to) = (from, to);
        let sent = &sent;
        let writer = scope.spawn(move || from.write_all(sent));
        to.read_exact(&mut received).context("cannot receive")?;
        writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("cannot send")
    })?;
    ensure!(sent == received, "what was received is not what was sent");
    Ok(())
}

/// Bytes without a pattern, always the same (xorshift).
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(length.div_ceil(8)).flatten().take(length).collect()
}

/// How long a TCP connection to an address takes to be refused; an error if anything else happens.
pub fn tcp_refused(client: &Host, destination: SocketAddr) -> Result<Duration> {
    let started = Instant::now();
    match client.netns().enter(|| TcpStream::connect_timeout(&destination, PATIENCE))? {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(started.elapsed()),
        other => bail!("{} connecting to {destination}: {other:?}", client.name()),
    }
}

/// How long a UDP datagram to an address takes to be refused; an error if anything else happens.
pub fn udp_refused(client: &Host, destination: SocketAddr) -> Result<Duration> {
    let socket = udp_socket(client, destination.is_ipv6())?;
    socket.connect(destination)?;
    let started = Instant::now();
    socket.send(b"anybody?")?;
    match socket.recv(&mut [0; 16]) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(started.elapsed()),
        other => bail!("{} sending to {destination}: {other:?}", client.name()),
    }
}

/// Sends a datagram to `server`'s `address`, which must receive it from `source`, unchanged.
pub fn udp_exchange(
    client: &Host,
    source: IpAddr,
    server: &Host,
    address: IpAddr,
    data: &[u8],
) -> Result<()> {
    let listener = server.netns().enter(|| UdpSocket::bind((address, 0)))??;
    listener.set_read_timeout(Some(PATIENCE))?;
    let destination = listener.local_addr()?;
    udp_socket(client, address.is_ipv6())?.send_to(data, destination)?;
    let mut buffer = vec![0; data.len() + 1];
    let (length, from) = listener.recv_from(&mut buffer)?;
    ensure!(from.ip() == source, "it comes from {from}, not {source}");
    ensure!(&buffer[..length] == data, "what was received is not what was sent");
    Ok(())
}

/// A UDP socket of a host.
pub fn udp_socket(host: &Host, is_v6: bool) -> Result<UdpSocket> {
    let any = if is_v6 { "[::]:0" } else { "0.0.0.0:0" };
    let socket = host.netns().enter(|| UdpSocket::bind(any))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}
