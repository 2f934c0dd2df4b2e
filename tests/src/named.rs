//! Servers that say who they are, to tell which member of a pool served.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::Host;

/// How often a server looks whether it is to end.
const TICK: Duration = Duration::from_millis(50);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// A server of a host, over TCP and UDP. It ends with the handle, and so do its connections.
///
/// Each connection, and each datagram, is told `NAME ADDRESS PORT`: the host's name, and the client as it sees it. Then
/// each line of a connection comes back.
#[derive(Debug)]
pub struct Named {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Named {
    /// Starts one at a port.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        // Both families at once.
        let open = || -> std::io::Result<_> { Ok((TcpListener::bind(any)?, UdpSocket::bind(any)?)) };
        let (tcp, udp) =
            host.netns().enter(open)?.with_context(|| format!("{} cannot serve {port}", host.name()))?;
        tcp.set_nonblocking(true)?;
        udp.set_read_timeout(Some(TICK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (name, ended) = (host.name().to_owned(), Arc::clone(&stop));
        let streams = std::thread::spawn(move || serve_streams(&tcp, &name, &ended));
        let (name, ended) = (host.name().to_owned(), Arc::clone(&stop));
        let datagrams = std::thread::spawn(move || serve_datagrams(&udp, &name, &ended));
        Ok(Self { stop, threads: vec![streams, datagrams] })
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn greeting(name: &str, client: SocketAddr) -> String {
    format!("{name} {} {}\n", client.ip().to_canonical(), client.port())
}

fn serve_streams(listener: &TcpListener, name: &str, stop: &Arc<AtomicBool>) {
    let mut threads = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((stream, client)) => {
                let (greeting, stop) = (greeting(name, client), Arc::clone(stop));
                threads.push(std::thread::spawn(move || {
                    let _ = serve_stream(stream, &greeting, &stop);
                }));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    threads.into_iter().for_each(|thread| drop(thread.join()));
}

fn serve_stream(mut stream: TcpStream, greeting: &str, stop: &AtomicBool) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TICK))?;
    stream.write_all(greeting.as_bytes())?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while !stop.load(Ordering::SeqCst) {
        match lines.read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => {
                stream.write_all(line.as_bytes())?;
                line.clear();
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn serve_datagrams(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut bytes = [0; 2048];
    while !stop.load(Ordering::SeqCst) {
        if let Ok((_, client)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(greeting(name, client).as_bytes(), client);
        }
    }
}

/// Who served, and the client as it was seen.
fn read_greeting(line: &str) -> Result<(String, SocketAddr)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [name, address, port] = words[..] else { bail!("no greeting: {line:?}") };
    Ok((name.to_owned(), SocketAddr::new(address.parse()?, port.parse()?)))
}

/// A connection to one of them.
#[derive(Debug)]
pub struct Served {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
    /// The server's name.
    pub by: String,
    /// The client, as the server sees it.
    pub seen: SocketAddr,
}

impl Served {
    /// Connects and hears who it is.
    pub fn open(from: &Host, to: SocketAddr) -> Result<Self> {
        let stream = from.netns().enter(|| TcpStream::connect_timeout(&to, PATIENCE))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut lines = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let (by, seen) = read_greeting(&line)?;
        Ok(Self { stream, lines, by, seen })
    }

    /// Whether it still answers.
    pub fn echo(&mut self) -> Result<()> {
        self.stream.write_all(b"still there?\n")?;
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        if line == "still there?\n" { Ok(()) } else { bail!("hung up: {line:?}") }
    }
}

/// Asks by a datagram, from a port of one's choice if it is not 0.
pub fn ask(from: &Host, source_port: u16, to: SocketAddr) -> Result<(String, SocketAddr)> {
    let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { [0, 0, 0, 0].into() };
    let socket = from.netns().enter(|| UdpSocket::bind((any, source_port)))??;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"who are you?")?;
    let mut bytes = [0; 2048];
    let length = socket.recv(&mut bytes).with_context(|| format!("{to} does not answer"))?;
    read_greeting(std::str::from_utf8(&bytes[..length])?)
}
