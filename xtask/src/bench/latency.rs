//! Requests and responses: one byte there, one byte back, over one TCP connection, one at a time.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::{TimeVal, TimeValLike as _},
};
use vrouter_tests::Host;

/// Exchanges before it counts.
const WARM_UP: u32 = 500;
/// Fewer say nothing about one in a hundred.
const LEAST: usize = 1000;

/// Microseconds that half of the exchanges, and all but one in a hundred, took at the most.
#[derive(Clone, Copy)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
}

/// Exchanges bytes between two hosts for `length`.
pub fn measure(from: &Host, to: &Host, address: &str, length: Duration) -> Result<Latency> {
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| to.netns().enter(|| serve(tell)));
        let port = told.recv().context("the server did not come up")?;
        let to = SocketAddr::new(address.parse()?, port);
        let times = from.netns().enter(|| ask(to, length))?;
        server.join().map_err(|_| anyhow::anyhow!("the server panicked"))???;
        Ok(sum_up(times?))
    })
}

fn serve(tell: mpsc::Sender<u16>) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", 0))?;
    tell.send(listener.local_addr()?.port())?;
    drop(tell);
    // A client that cannot connect must not leave this waiting.
    setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
    let (mut stream, _) = listener.accept().context("nobody connected")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Nanoseconds of each exchange.
fn ask(to: SocketAddr, length: Duration) -> Result<Vec<u64>> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))
        .with_context(|| format!("cannot connect to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut exchange = || -> Result<u64> {
        let start = Instant::now();
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        Ok(u64::try_from(start.elapsed().as_nanos())?)
    };
    for _ in 0..WARM_UP {
        exchange()?;
    }
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < length {
        times.push(exchange()?);
    }
    if times.len() < LEAST {
        bail!("only {} exchanges with {to} in {length:?}", times.len());
    }
    Ok(times)
}

fn sum_up(mut times: Vec<u64>) -> Latency {
    times.sort_unstable();
    let at = |share: usize| times[times.len() * share / 100] as f64 / 1000.0;
    Latency { p50: at(50), p99: at(99) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        let Latency { p50, p99 } = sum_up((0..1000).rev().map(|n| n * 1000).collect());
        assert_eq!((p50, p99), (500.0, 990.0));
    }
}
