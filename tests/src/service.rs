//! What hosts serve: they tell every client whom they see, and give back what they are sent.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::sockets::noise;
use crate::{Host, Lab, sockaddr};

/// How often a server looks whether it is to end.
const TICK: Duration = Duration::from_millis(200);
/// How long a client may be silent before it is hung up on.
const PATIENCE: Duration = Duration::from_secs(60);

/// The servers of some hosts, over TCP and UDP, IPv4 and IPv6. They end with the handle.
///
/// A datagram is answered by `ADDRESS PORT LENGTH HASH`, of the client as the server sees it and of what came;
/// one that begins with [`RETURN`] gets a whole copy after it. A connection begins with a line `ADDRESS PORT`
/// from the server; then every byte comes back.
#[derive(Debug)]
pub struct Services {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// The first byte of a datagram that wants to be sent back.
pub const RETURN: u8 = b'R';

impl Services {
    /// Starts servers at these ports of a host.
    pub fn start(host: &Host, ports: &[u16]) -> Result<Self> {
        let mut services = Self { stop: Arc::default(), threads: Vec::new() };
        services.add(host, ports)?;
        Ok(services)
    }

    /// Starts servers at these ports of every workload and everybody outside.
    pub fn everywhere(lab: &Lab, ports: &[u16]) -> Result<Self> {
        let mut services = Self { stop: Arc::default(), threads: Vec::new() };
        let outside = lab.external_network().map(|_| lab.outside().hosts().values());
        lab.workloads().try_for_each(|workload| services.add(workload, ports))?;
        outside.into_iter().flatten().try_for_each(|host| services.add(host, ports))?;
        Ok(services)
    }

    /// Starts servers at these ports of another host.
    pub fn add(&mut self, host: &Host, ports: &[u16]) -> Result<()> {
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        for (port, any) in ports.iter().flat_map(|&port| any.map(|any| (port, any))) {
            let what = || format!("{} cannot serve {any} port {port}", host.name());
            let (tcp, udp) = host.netns().enter(|| listen(any, port))?.with_context(what)?;
            let stop = Arc::clone(&self.stop);
            self.threads.push(std::thread::spawn(move || serve_udp(&udp, &stop)));
            let stop = Arc::clone(&self.stop);
            self.threads.push(std::thread::spawn(move || serve_tcp(&tcp, &stop)));
        }
        Ok(())
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // A server has nothing to panic about.
            let _ = thread.join();
        }
    }
}

fn listen(any: IpAddr, port: u16) -> std::io::Result<(TcpListener, UdpSocket)> {
    let only = |socket| sockaddr::set(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).map(|()| socket);
    let open = |kind| sockaddr::socket(any.is_ipv6(), kind, 0);
    let (tcp, udp) = (open(libc::SOCK_STREAM)?, open(libc::SOCK_DGRAM)?);
    let (tcp, udp) = if any.is_ipv6() { (only(tcp)?, only(udp)?) } else { (tcp, udp) };
    sockaddr::set(&tcp, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    for socket in [&tcp, &udp] {
        sockaddr::bind(socket, SocketAddr::new(any, port))?;
        sockaddr::set_timeout(socket, libc::SO_RCVTIMEO, TICK)?;
    }
    // An answer may have to be cut: it has no DF.
    if any.is_ipv4() {
        sockaddr::set(&udp, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
    }
    // SAFETY: the descriptor is open; it was bound above.
    if unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&tcp), 1024) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok((tcp.into(), udp.into()))
}

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::SeqCst) {
        // Nothing for a while, or an ICMP error about an answer.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let data = &buffer[..length];
        let mut answer =
            format!("{} {} {length} {:016x}", client.ip(), client.port(), hash(data)).into_bytes();
        if data.first() == Some(&RETURN) {
            answer.push(b'\n');
            answer.extend(data);
        }
        // Who cannot be answered hears nothing, which is for the client to notice.
        let _ = socket.send_to(&answer, client);
    }
}

fn serve_tcp(listener: &TcpListener, stop: &Arc<AtomicBool>) {
    let mut clients = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let Ok((stream, client)) = listener.accept() else { continue };
        let stop = Arc::clone(stop);
        clients.push(std::thread::spawn(move || drop(serve_client(stream, client, &stop))));
    }
    for client in clients {
        let _ = client.join();
    }
}

fn serve_client(mut stream: TcpStream, client: SocketAddr, stop: &AtomicBool) -> std::io::Result<()> {
    stream.set_read_timeout(Some(TICK))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("{} {}\n", client.ip(), client.port()).as_bytes())?;
    let mut buffer = vec![0; 1 << 16];
    let mut heard = Instant::now();
    while !stop.load(Ordering::SeqCst) && heard.elapsed() < PATIENCE {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                stream.write_all(&buffer[..length])?;
                heard = Instant::now();
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// FNV-1a: short, and the same in both ends.
pub(crate) fn hash(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A connection to a server of [`Services`].
#[derive(Debug)]
pub struct Talk {
    stream: TcpStream,
    seen: SocketAddr,
}

impl Talk {
    /// Connects, from a port of its own choice or a given one, and hears whom the server sees.
    pub fn open(host: &Host, destination: SocketAddr, port: Option<u16>, timeout: Duration) -> Result<Self> {
        let stream = host.netns().enter(|| connect(destination, port, timeout))?;
        let name = || format!("{} to {destination}", host.name());
        let mut stream = stream.with_context(name)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let (mut line, mut byte) = (Vec::new(), [0]);
        while byte != *b"\n" {
            stream.read_exact(&mut byte).with_context(name)?;
            line.push(byte[0]);
        }
        let line = String::from_utf8(line)?;
        let seen = line
            .trim()
            .split_once(' ')
            .and_then(|(ip, port)| Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?)));
        let seen = seen.with_context(|| format!("{}: no server of ours says `{line}`", name()))?;
        Ok(Self { stream, seen })
    }

    /// Whom the server sees.
    pub fn seen(&self) -> SocketAddr {
        self.seen
    }

    /// The client's own port.
    pub fn port(&self) -> Result<u16> {
        Ok(self.stream.local_addr()?.port())
    }

    /// Sends bytes and receives them back unchanged; tells how long that took.
    pub fn exchange(&mut self, length: usize) -> Result<Duration> {
        let sent = noise(length);
        let started = Instant::now();
        let mut back = vec![0; length];
        // Both at once: neither end can hold it all.
        std::thread::scope(|scope| -> Result<()> {
            let mut writer = &self.stream;
            let sent = &sent;
            let writing = scope.spawn(move || writer.write_all(sent));
            (&self.stream).read_exact(&mut back).context("what was sent does not come back")?;
            writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("cannot send")
        })?;
        ensure!(sent == back, "what comes back is not what was sent");
        Ok(started.elapsed())
    }

    /// Nothing gets through: what is sent does not come back in this time.
    pub fn is_cut(&mut self, time: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(time))?;
        // If it was reset, sending fails, which is as good.
        let _ = self.stream.write_all(b"anybody?");
        match self.stream.read(&mut [0; 64]) {
            Ok(length @ 1..) => bail!("{length} bytes come back"),
            _ => Ok(()),
        }
    }
}

/// A TCP connection of the calling thread's namespace.
pub(crate) fn connect(
    destination: SocketAddr,
    port: Option<u16>,
    timeout: Duration,
) -> std::io::Result<TcpStream> {
    let socket = sockaddr::socket(destination.is_ipv6(), libc::SOCK_STREAM, 0)?;
    if let Some(port) = port {
        sockaddr::set(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        let any: IpAddr =
            if destination.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        sockaddr::bind(&socket, SocketAddr::new(any, port))?;
    }
    sockaddr::set_timeout(&socket, libc::SO_SNDTIMEO, timeout)?;
    sockaddr::connect(&socket, destination)?;
    Ok(socket.into())
}
