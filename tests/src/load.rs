//! Traffic that goes on while something else happens, and that knows of every packet what became of it.

use std::hash::{DefaultHasher, Hasher as _};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{Netns, Workload};

/// Between two datagrams of [`UdpLoad`], and between two writes of [`TcpLoad`].
const INTERVAL: Duration = Duration::from_millis(2);
/// How long what is under way may take to arrive.
const DRAIN: Duration = Duration::from_secs(10);
/// A receiver that does not get the CPU for a while must not lose what the network delivered.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// Numbered datagrams from one workload to another, until stopped.
#[derive(Debug)]
pub struct UdpLoad {
    name: String,
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU32>,
    sender: Option<JoinHandle<Result<u32>>>,
    receiver: Option<JoinHandle<Result<Vec<u32>>>>,
    ports: (u16, u16),
}

/// What became of the datagrams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Datagrams {
    /// How many were sent.
    pub sent: u32,
    /// Numbers that never arrived.
    pub lost: Vec<u32>,
    /// How many arrived more than once.
    pub duplicates: u32,
}

impl UdpLoad {
    /// Starts sending to an address of `to`.
    pub fn start(from: &Workload, to: &Workload, address: &str) -> Result<Self> {
        let address: IpAddr = address.parse()?;
        let receiver = bind_udp(to.netns(), address)?;
        let any: IpAddr = if address.is_ipv6() { [0_u16; 8].into() } else { [0_u8; 4].into() };
        let sender = bind_udp(from.netns(), any)?;
        let ports = (sender.local_addr()?.port(), receiver.local_addr()?.port());
        sender.connect(receiver.local_addr()?).context("cannot connect")?;
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        Ok(Self {
            name: format!("UDP from {} to {address}", from.name()),
            sender: Some(std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || send_datagrams(&sender, &stop)
            })),
            receiver: Some(std::thread::spawn({
                let (stop, received) = (Arc::clone(&stop), Arc::clone(&received));
                move || receive_datagrams(&receiver, &stop, &received)
            })),
            stop,
            received,
            ports,
        })
    }

    /// Source and destination port.
    pub fn ports(&self) -> (u16, u16) {
        self.ports
    }

    /// Waits until `count` more datagrams have arrived.
    pub fn wait_for_more(&self, count: u32) -> Result<()> {
        let wanted = self.received.load(Ordering::Relaxed) + count;
        let deadline = Instant::now() + DRAIN;
        while self.received.load(Ordering::Relaxed) < wanted {
            if Instant::now() > deadline {
                bail!("{}: nothing arrives", self.name);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Stops sending, waits for what is under way, and tells what became of each datagram.
    pub fn finish(mut self) -> Result<Datagrams> {
        let seen = self.received.load(Ordering::Relaxed);
        self.stop.store(true, Ordering::SeqCst);
        let sent = join(self.sender.take()).with_context(|| self.name.clone())?;
        let numbers = join(self.receiver.take()).with_context(|| self.name.clone())?;
        let mut times = vec![0_u32; sent as usize];
        for number in numbers {
            if let Some(times) = times.get_mut(number as usize) {
                *times += 1;
            }
        }
        let lost = (0..sent).filter(|&number| times[number as usize] == 0).collect();
        let duplicates = times.iter().map(|times| times.saturating_sub(1)).sum();
        if sent < seen {
            bail!("{}: more arrived than was sent", self.name);
        }
        Ok(Datagrams { sent, lost, duplicates })
    }
}

impl Drop for UdpLoad {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Datagrams {
    /// Whether there were some, and each arrived once.
    pub fn is_clean(&self) -> bool {
        self.sent > 0 && self.lost.is_empty() && self.duplicates == 0
    }
}

fn bind_udp(netns: &Netns, address: IpAddr) -> Result<UdpSocket> {
    let socket = netns.enter(|| UdpSocket::bind(SocketAddr::new(address, 0)))?;
    let socket = socket.with_context(|| format!("cannot bind {address} in {}", netns.name()))?;
    let size = RECEIVE_BUFFER;
    // SAFETY: the pointer and the length are those of `size`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context("cannot enlarge the receive buffer");
    }
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    Ok(socket)
}

/// Returns how many it has sent.
fn send_datagrams(socket: &UdpSocket, stop: &AtomicBool) -> Result<u32> {
    let mut number = 0_u32;
    while !stop.load(Ordering::SeqCst) {
        // An ICMP error shows as an error of a later send: that datagram was not sent, and the one that was
        // refused is missing at the receiver.
        if socket.send(&number.to_be_bytes()).is_ok() {
            number += 1;
        }
        std::thread::sleep(INTERVAL);
    }
    // Says how many there were; sent until it must have arrived, as it may get lost like any other.
    for _ in 0..20 {
        let _ = socket.send(&[&u32::MAX.to_be_bytes()[..], &number.to_be_bytes()].concat());
        std::thread::sleep(INTERVAL);
    }
    Ok(number)
}

/// Returns the numbers that arrived, in order of arrival.
fn receive_datagrams(socket: &UdpSocket, stop: &AtomicBool, received: &AtomicU32) -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    let mut buffer = [0; 64];
    let mut deadline = None;
    let mut total = None;
    loop {
        match socket.recv(&mut buffer) {
            Ok(4) => {
                numbers.push(u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]));
                received.fetch_add(1, Ordering::Relaxed);
            }
            Ok(8) => total = Some(u32::from_be_bytes([buffer[4], buffer[5], buffer[6], buffer[7]])),
            Ok(_) => {}
            // Quiet for a moment after the end was announced: what was under way has arrived, or never will.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if total.is_some() {
                    return Ok(numbers);
                }
            }
            Err(error) => return Err(error).context("cannot receive"),
        }
        if stop.load(Ordering::SeqCst) {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + DRAIN);
            if Instant::now() > deadline {
                return Ok(numbers);
            }
        }
    }
}

/// A TCP stream from one workload to another, until stopped; both ends hash what passes.
#[derive(Debug)]
pub struct TcpLoad {
    name: String,
    stop: Arc<AtomicBool>,
    client: Option<JoinHandle<Result<(u64, u64)>>>,
    server: Option<JoinHandle<Result<(u64, u64)>>>,
}

impl TcpLoad {
    /// Connects to an address of `to` and starts sending.
    pub fn start(from: &Workload, to: &Workload, address: &str) -> Result<Self> {
        let address: IpAddr = address.parse()?;
        let name = format!("TCP from {} to {address}", from.name());
        let listener = to.netns().enter(|| TcpListener::bind(SocketAddr::new(address, 0)))?;
        let listener = listener.with_context(|| format!("{name}: cannot listen"))?;
        let at = listener.local_addr()?;
        let client = from.netns().enter(|| TcpStream::connect_timeout(&at, Duration::from_secs(5)))?;
        let client = client.with_context(|| format!("{name}: cannot connect"))?;
        let (server, _) = listener.accept()?;
        client.set_write_timeout(Some(DRAIN))?;
        server.set_read_timeout(Some(DRAIN))?;
        let stop = Arc::new(AtomicBool::new(false));
        Ok(Self {
            name,
            client: Some(std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || send_stream(client, &stop)
            })),
            server: Some(std::thread::spawn(move || receive_stream(server))),
            stop,
        })
    }

    /// Ends the stream and returns its length; an error if what arrived is not what was sent.
    pub fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        let sent = join(self.client.take()).with_context(|| format!("{}, sender", self.name))?;
        let received = join(self.server.take()).with_context(|| format!("{}, receiver", self.name))?;
        if sent != received {
            bail!("{}: (bytes, hash) sent {sent:x?}, received {received:x?}", self.name);
        }
        Ok(sent.0)
    }
}

impl Drop for TcpLoad {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn send_stream(mut stream: TcpStream, stop: &AtomicBool) -> Result<(u64, u64)> {
    let (mut bytes, mut hasher, mut state) = (0, DefaultHasher::new(), 1_u32);
    let mut chunk = [0; 8192];
    while !stop.load(Ordering::SeqCst) {
        for byte in &mut chunk {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        stream.write_all(&chunk).context("cannot send")?;
        hasher.write(&chunk);
        bytes += chunk.len() as u64;
        std::thread::sleep(INTERVAL);
    }
    Ok((bytes, hasher.finish()))
}

fn receive_stream(mut stream: TcpStream) -> Result<(u64, u64)> {
    let (mut bytes, mut all) = (0, Vec::new());
    let mut hasher = DefaultHasher::new();
    let mut buffer = [0; 65536];
    loop {
        match stream.read(&mut buffer).context("cannot receive")? {
            0 => break,
            length => all.extend(&buffer[..length]),
        }
        // The hash depends on how the bytes are cut, so they are cut as the sender cuts them.
        let whole = all.len() - all.len() % 8192;
        for chunk in all[..whole].chunks(8192) {
            hasher.write(chunk);
            bytes += chunk.len() as u64;
        }
        all.drain(..whole);
    }
    Ok((bytes + all.len() as u64, hasher.finish()))
}

fn join<T>(thread: Option<JoinHandle<Result<T>>>) -> Result<T> {
    let thread = thread.context("it was finished already")?;
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
