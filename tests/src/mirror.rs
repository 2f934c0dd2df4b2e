//! A server that shows requests to whoever makes them: what stands where a cloud has its metadata server.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{Netns, sockaddr};

/// How often the server looks whether it is to end.
const TICK: Duration = Duration::from_millis(200);
/// How long a client may be silent before it is hung up on.
const PATIENCE: Duration = Duration::from_secs(20);
/// What `/large` is.
const LARGE: usize = 1 << 20;

/// The server. A request is answered with a copy of itself, one for `/large` with [`Mirror::large`], one for `/forbidden`
/// with a status of 403. It ends with the handle.
#[derive(Debug)]
pub struct Mirror {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Mirror {
    /// Starts it in a namespace.
    pub fn start(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let listener = netns.enter(|| TcpListener::bind(address))?;
        let listener = listener.with_context(|| format!("cannot serve at {address} in {}", netns.name()))?;
        sockaddr::set_timeout(&listener, libc::SO_RCVTIMEO, TICK)?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let Ok((stream, _)) = listener.accept() else { continue };
                // Who hangs up is answered no more.
                std::thread::spawn(move || drop(serve(stream)));
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    /// What it answers to `/large`: a mebibyte, no two lines the same.
    pub fn large() -> Vec<u8> {
        (0..LARGE / 16).flat_map(|line| format!("{line:015}\n").into_bytes()).collect()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A server has nothing to panic about.
            let _ = thread.join();
        }
    }
}

/// Answers one request.
fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    while !is_whole(&request) {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => request.extend(&buffer[..length]),
        }
    }
    let (status, body) = match () {
        () if request.starts_with(b"GET /large ") => ("200 OK", Mirror::large()),
        () if request.starts_with(b"GET /forbidden ") => ("403 Forbidden", b"no\n".to_vec()),
        () => ("200 OK", request),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)?;
    stream.shutdown(Shutdown::Write)
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_ascii_lowercase();
    let Some((head, _)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    request.len() >= head.len() + 4 + length.unwrap_or(0)
}
