//! Frames made in the kernel, and where they are counted.

use std::{
    fs,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use vrouter_tests::{Host, Netns};

use super::{
    bpf::{self, Attached, Hook, Map},
    programs::{self, FIRST_PORT, PORTS, Turns},
};

/// Frames of the first call of the kernel, which tells how many the next should make.
const FIRST_CALL: u32 = 100_000;
/// 64 bytes on the wire: without the frame check sequence.
const FRAME_LEN: usize = 60;
/// The destination port of flows, unless it matters.
pub const DESTINATION_PORT: u16 = 12_346;
const UDP: u8 = 17;

/// An end of a link that is ours: frames are put in here, or come out.
#[derive(Clone)]
pub struct End {
    /// Its namespace.
    pub netns: Netns,
    /// Its name there.
    pub interface: String,
}

impl End {
    /// A host's interface.
    pub fn of(host: &Host) -> Self {
        Self { netns: host.netns().clone(), interface: Host::INTERFACE.to_owned() }
    }

    /// Drops what arrives.
    pub fn sink(&self, hook: Hook) -> Result<Attached> {
        let program = bpf::load_for(hook, &programs::sink(hook))?;
        Attached::at(hook, &self.netns, &self.interface, &program)
    }

    /// Answers what arrives.
    pub fn reflector(&self, hook: Hook) -> Result<Attached> {
        let ifindex = self.netns.enter(|| bpf::ifindex(&self.interface))??;
        let program = bpf::load_for(hook, &programs::reflector(hook, ifindex))?;
        Attached::at(hook, &self.netns, &self.interface, &program)
    }

    /// Frames that arrived.
    pub fn received(&self) -> Result<u64> {
        let lines = self.netns.enter(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        let prefix = format!("{}:", self.interface);
        let counters = lines.lines().find_map(|line| line.trim_start().strip_prefix(&prefix));
        let counters = counters.with_context(|| format!("no interface {}", self.interface))?;
        Ok(counters.split_whitespace().nth(1).context("no counter")?.parse()?)
    }
}

/// What tells flows apart, beside the source port.
#[derive(Clone, Copy)]
pub enum Varied {
    /// The source address.
    Source,
    /// The destination address.
    Destination,
}

/// What the frames are: UDP from `src` to `dst`; flow 0 has the addresses as they are, later ones count up.
#[derive(Clone, Copy)]
pub struct Shape {
    pub to_mac: [u8; 6],
    pub from_mac: [u8; 6],
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub dport: u16,
    pub varied: Varied,
}

impl Shape {
    /// The frame of the first flow, with valid checksums.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = vec![0_u8; FRAME_LEN];
        frame[0..6].copy_from_slice(&self.to_mac);
        frame[6..12].copy_from_slice(&self.from_mac);
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        let total = (FRAME_LEN - 14) as u16;
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame[22] = 64;
        frame[23] = UDP;
        frame[26..30].copy_from_slice(&self.src.octets());
        frame[30..34].copy_from_slice(&self.dst.octets());
        frame[34..36].copy_from_slice(&FIRST_PORT.to_be_bytes());
        frame[36..38].copy_from_slice(&self.dport.to_be_bytes());
        frame[38..40].copy_from_slice(&(total - 20).to_be_bytes());
        // What differs between flows is there twice, the second time inverted: so the sums are the same.
        let low = match self.varied {
            Varied::Source => [frame[28], frame[29]],
            Varied::Destination => [frame[32], frame[33]],
        };
        let inverted = low.map(|byte| !byte);
        frame[18..20].copy_from_slice(&inverted);
        frame[42..44].copy_from_slice(&inverted);
        frame[44..46].copy_from_slice(&(!FIRST_PORT).to_be_bytes());
        let sum = checksum(&frame[14..34], 0);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        let addresses = frame[26..34].chunks(2).map(word).sum::<u32>();
        let sum = checksum(&frame[34..], addresses + u32::from(UDP) + u32::from(total - 20));
        frame[40..42].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// Addresses and source port of a flow.
    pub fn flow(&self, number: u32) -> ([u8; 4], [u8; 4], u16) {
        let (mut src, mut dst) = (self.src, self.dst);
        let up = |address: Ipv4Addr| Ipv4Addr::from_bits(address.to_bits() + number / PORTS);
        match self.varied {
            Varied::Source => src = up(src),
            Varied::Destination => dst = up(dst),
        }
        (src.octets(), dst.octets(), FIRST_PORT + (number % PORTS) as u16)
    }
}

fn word(pair: &[u8]) -> u32 {
    u32::from(u16::from_be_bytes([pair[0], pair[1]]))
}

/// The internet checksum of an even number of bytes.
fn checksum(bytes: &[u8], more: u32) -> u16 {
    let sum = more + bytes.chunks(2).map(word).sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// Makes frames of many flows and sends them out of one end of a link, so that they arrive at the other.
pub struct Generator {
    program: OwnedFd,
    turns: Map,
    frame: Vec<u8>,
    netns: Netns,
    /// Frames per second, as of the last run.
    rate: AtomicU32,
}

impl Generator {
    /// Frames of a shape, out of `end`.
    pub fn new(end: &End, shape: &Shape) -> Result<Self> {
        let frame = shape.frame();
        let turns = Map::value(Turns::LEN)?;
        let target = end.netns.enter(|| bpf::ifindex(&end.interface))??;
        let varied = match shape.varied {
            Varied::Source => programs::SRC,
            Varied::Destination => programs::DST,
        };
        let program = bpf::load(&programs::generate(&frame, varied, &turns, target))?;
        Ok(Self { program, turns, frame, netns: end.netns.clone(), rate: AtomicU32::new(0) })
    }

    /// From now on `flows` flows from number `first` on, in turns.
    pub fn take(&self, first: u64, flows: u64) -> Result<()> {
        self.turns.set(&Turns { next: first, end: first + flows, start: first }.bytes())
    }

    /// Makes frames on one core for about `length`; returns how long it took. In one call of the kernel, if it
    /// is known how many there will be: to begin and end one takes milliseconds.
    pub fn run(&self, length: Duration) -> Result<Duration> {
        let rate = f64::from(self.rate.load(Ordering::Relaxed));
        let (elapsed, made) = self.on_one_core(|| {
            let start = Instant::now();
            let (mut elapsed, mut made) = (Duration::ZERO, 0_u32);
            // Nine tenths are near enough.
            while elapsed < length * 9 / 10 {
                let rate = if made > 0 { f64::from(made) / elapsed.as_secs_f64() } else { rate };
                let frames = (rate * (length - elapsed).as_secs_f64()) as u32;
                let frames = frames.max(FIRST_CALL);
                bpf::run_live(&self.program, &self.frame, frames)?;
                made += frames;
                elapsed = start.elapsed();
            }
            Ok((elapsed, made))
        })?;
        self.rate.store((f64::from(made) / elapsed.as_secs_f64()) as u32, Ordering::Relaxed);
        Ok(elapsed)
    }

    /// Makes that many frames.
    pub fn make(&self, frames: u32) -> Result<()> {
        self.on_one_core(|| bpf::run_live(&self.program, &self.frame, frames))
    }

    fn on_one_core<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.netns.enter(|| {
            stay_on_one_core()?;
            work()
        })?
    }
}

/// Keeps the calling thread on the first core.
pub fn stay_on_one_core() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).context("cannot stay on one core")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(varied: Varied) -> Shape {
        Shape {
            to_mac: [2, 0, 0, 0, 0, 1],
            from_mac: [2, 0, 0, 0, 0, 2],
            src: Ipv4Addr::new(10, 0, 1, 21),
            dst: Ipv4Addr::new(198, 18, 0, 0),
            dport: DESTINATION_PORT,
            varied,
        }
    }

    /// As the program writes it.
    fn frame_of(shape: &Shape, number: u32) -> Vec<u8> {
        let mut frame = shape.frame();
        let (src, dst, port) = shape.flow(number);
        frame[26..30].copy_from_slice(&src);
        frame[30..34].copy_from_slice(&dst);
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        let low = match shape.varied {
            Varied::Source => [!src[2], !src[3]],
            Varied::Destination => [!dst[2], !dst[3]],
        };
        frame[18..20].copy_from_slice(&low);
        frame[42..44].copy_from_slice(&low);
        frame[44..46].copy_from_slice(&(!port).to_be_bytes());
        frame
    }

    #[test]
    fn checksums_hold_for_every_flow() {
        for varied in [Varied::Source, Varied::Destination] {
            let shape = shape(varied);
            for number in [0, 1, 1023, 1024, 64_000, 999_999, 60_000_000] {
                let frame = frame_of(&shape, number);
                assert_eq!(checksum(&frame[14..34], 0), 0, "IPv4, flow {number}");
                let addresses = frame[26..34].chunks(2).map(word).sum::<u32>();
                let pseudo = addresses + u32::from(UDP) + word(&frame[38..40]);
                assert_eq!(checksum(&frame[34..], pseudo), 0, "UDP, flow {number}");
            }
        }
    }

    #[test]
    fn flows_differ() {
        let shape = shape(Varied::Destination);
        assert_eq!(shape.flow(0), ([10, 0, 1, 21], [198, 18, 0, 0], FIRST_PORT));
        assert_eq!(shape.flow(1025), ([10, 0, 1, 21], [198, 18, 0, 1], FIRST_PORT + 1));
    }
}
