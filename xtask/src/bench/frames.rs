//! Frames made in the kernel, and the tiny XDP programs around them, by `bpf(2)` alone: a dozen
//! instructions are easier to trust when they are written out.

use std::{
    ffi::CString,
    fs, io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use vrouter_tests::{Host, Netns};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 4;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;
const BATCH: u32 = 64;
/// One call of the kernel; short, so that the length of a measurement is kept.
const FRAMES_PER_CALL: u32 = 200_000;
/// 64 bytes on the wire: without the frame check sequence.
const FRAME_LEN: usize = 60;
/// Ethernet, IPv4, UDP.
const HEADER_LEN: usize = 42;

/// One BPF instruction.
#[repr(C)]
#[derive(Clone, Copy)]
struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn insn(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Insn {
    Insn { code, registers: src << 4 | dst, offset, immediate }
}

const XDP_DROP: i32 = 1;
const EXIT: Insn = insn(0x95, 0, 0, 0, 0);

const fn mov_imm(dst: u8, immediate: i32) -> Insn {
    insn(0xb7, dst, 0, 0, immediate)
}

/// Drops every frame.
fn drop_program() -> Vec<Insn> {
    vec![mov_imm(0, XDP_DROP), EXIT]
}

/// Writes `bytes` (a multiple of four) over the start of every frame, and redirects it to an interface.
fn rewrite_program(bytes: &[u8], ifindex: u32) -> Vec<Insn> {
    let len = i32::try_from(bytes.len()).unwrap_or(0);
    let words = bytes.chunks_exact(4).map(|word| i32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    let stores: Vec<Insn> =
        (0_i16..).step_by(4).zip(words).map(|(at, word)| insn(0x62, 2, 0, at, word)).collect();
    let mut program = vec![
        insn(0x61, 2, 1, 0, 0),   // r2 = ctx->data
        insn(0x61, 3, 1, 4, 0),   // r3 = ctx->data_end
        insn(0xbf, 4, 2, 0, 0),   // r4 = r2
        insn(0x07, 4, 0, 0, len), // r4 += len
        // if r4 > r3 goto the end
        insn(0x2d, 4, 3, i16::try_from(stores.len()).unwrap_or(0) + 4, 0),
    ];
    program.extend(stores);
    program.extend([
        mov_imm(1, ifindex as i32),
        mov_imm(2, 0),
        insn(0x85, 0, 0, 0, 23), // bpf_redirect
        EXIT,
        mov_imm(0, XDP_DROP),
        EXIT,
    ]);
    program
}

fn bpf(command: libc::c_long, attr: &mut [u64; 18]) -> io::Result<i64> {
    // SAFETY: the attribute is a zero-padded block larger than any the kernel knows; what it points to
    // outlives the call in every caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn two(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn load(program: &[Insn]) -> Result<OwnedFd> {
    let license = CString::new("GPL")?;
    let mut log = vec![0_u8; 65_536];
    let mut attr = [0; 18];
    attr[0] = two(BPF_PROG_TYPE_XDP, u32::try_from(program.len())?);
    attr[1] = program.as_ptr() as u64;
    attr[2] = license.as_ptr() as u64;
    attr[3] = two(1, u32::try_from(log.len())?);
    attr[4] = log.as_mut_ptr() as u64;
    let fd = bpf(BPF_PROG_LOAD, &mut attr).with_context(|| {
        let end = log.iter().position(|&byte| byte == 0).unwrap_or(0);
        format!("the kernel refused a measuring program:\n{}", String::from_utf8_lossy(&log[..end]))
    })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}

/// An XDP program on an interface for as long as this lives.
pub struct Attached {
    _link: OwnedFd,
}

impl Attached {
    fn new(netns: &Netns, interface: &str, program: &[Insn]) -> Result<Self> {
        let program = load(program)?;
        let link = netns.enter(|| -> Result<OwnedFd> {
            let mut attr = [0; 18];
            attr[0] = two(u32::try_from(program.as_raw_fd())?, ifindex(interface)?);
            attr[1] = two(BPF_XDP, XDP_FLAGS_DRV_MODE);
            let fd = bpf(BPF_LINK_CREATE, &mut attr)
                .with_context(|| format!("cannot attach a measuring program to {interface}"))?;
            // SAFETY: the kernel just made this descriptor for us.
            Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
        })??;
        Ok(Self { _link: link })
    }

    /// Counts and drops what arrives at a host.
    pub fn sink(host: &Host) -> Result<Self> {
        Self::new(host.netns(), Host::INTERFACE, &drop_program())
    }

    /// Sends what arrives at `from` out of `to`, with new hardware addresses and nothing else.
    pub fn redirect(netns: &Netns, from: &str, to: &str, destination: [u8; 6]) -> Result<Self> {
        let target = netns.enter(|| ifindex(to))??;
        let macs = [destination, [2, 0, 0, 0, 0, 1]].concat();
        Self::new(netns, from, &rewrite_program(&macs, target))
    }
}

/// Makes frames and sends them into a host's interface.
pub struct Generator {
    program: OwnedFd,
    frame: Vec<u8>,
}

impl Generator {
    /// UDP from `src` to `dst`, to the hardware address `gateway`.
    pub fn new(host: &Host, gateway: [u8; 6], src: Ipv4Addr, dst: Ipv4Addr) -> Result<Self> {
        let mut frame = vec![0_u8; FRAME_LEN];
        frame[0..6].copy_from_slice(&gateway);
        frame[6..12].copy_from_slice(&host.mac()?);
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        let total = u16::try_from(FRAME_LEN - 14)?;
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame[22] = 64;
        frame[23] = 17;
        frame[26..30].copy_from_slice(&src.octets());
        frame[30..34].copy_from_slice(&dst.octets());
        let sum: u32 =
            frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        frame[34..38].copy_from_slice(&[0x30, 0x39, 0x30, 0x3a]);
        frame[38..40].copy_from_slice(&(total - 20).to_be_bytes());
        // Frames are recycled as they came back, so the whole header is written every time.
        let target = host.netns().enter(|| ifindex(Host::INTERFACE))??;
        let program = load(&rewrite_program(&frame[..HEADER_LEN + 2], target))?;
        Ok(Self { program, frame })
    }

    /// Makes frames on one core for about `length`; returns how long it took.
    pub fn run(&self, host: &Host, length: Duration) -> Result<Duration> {
        host.netns().enter(|| -> Result<Duration> {
            pin_to_one_core()?;
            let start = Instant::now();
            while start.elapsed() < length {
                self.call()?;
            }
            Ok(start.elapsed())
        })?
    }

    fn call(&self) -> Result<()> {
        let mut attr = [0; 18];
        attr[0] = two(u32::try_from(self.program.as_raw_fd())?, 0);
        attr[1] = two(u32::try_from(self.frame.len())?, 0);
        attr[2] = self.frame.as_ptr() as u64;
        attr[4] = two(FRAMES_PER_CALL, 0);
        // ctx_in, ctx_out at 6 and 7; flags and cpu at 8; batch size at 9.
        attr[8] = two(BPF_F_TEST_XDP_LIVE_FRAMES, 0);
        attr[9] = two(BATCH, 0);
        bpf(BPF_PROG_TEST_RUN, &mut attr).context("cannot make frames (BPF_F_TEST_XDP_LIVE_FRAMES)")?;
        Ok(())
    }
}

fn pin_to_one_core() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).context("cannot stay on one core")
}

fn ifindex(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("no interface {name}"))
}

/// Frames a host's interface has received.
pub fn received(host: &Host) -> Result<u64> {
    let line = host.netns().enter(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
    let prefix = format!("{}:", Host::INTERFACE);
    let counters =
        line.lines().find_map(|line| line.trim_start().strip_prefix(&prefix)).context("no eth0")?;
    Ok(counters.split_whitespace().nth(1).context("no counter")?.parse()?)
}
