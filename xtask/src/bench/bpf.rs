//! `bpf(2)` by hand, as far as measuring needs it.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use vrouter_tests::Netns;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_F_XDP_HAS_FRAGS: u32 = 32;
const XDP_FLAGS_DRV_MODE: u32 = 4;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;
/// Frames the kernel makes at once; a veth queues 256.
const BATCH: u32 = 64;

/// One BPF instruction.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// An instruction from its fields.
pub const fn insn(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Insn {
    Insn { code, registers: src << 4 | dst, offset, immediate }
}

fn bpf(command: libc::c_long, attr: &mut [u64; 18]) -> io::Result<i64> {
    // SAFETY: the attribute is a zero-padded block larger than any the kernel knows; what it points to
    // outlives the call in every caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(command: libc::c_long, attr: &mut [u64; 18]) -> Result<OwnedFd> {
    let fd = i32::try_from(bpf(command, attr)?)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn two(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd() as u32
}

/// A map.
pub struct Map(OwnedFd);

impl Map {
    fn create(kind: u32, key: usize, value: usize, entries: u32) -> Result<Self> {
        let mut attr = [0; 18];
        attr[0] = two(kind, u32::try_from(key)?);
        attr[1] = two(u32::try_from(value)?, entries);
        let map = descriptor(BPF_MAP_CREATE, &mut attr)
            .with_context(|| format!("cannot create a map of {entries} entries for measuring"))?;
        Ok(Self(map))
    }

    /// An array of one value.
    pub fn value(value: usize) -> Result<Self> {
        Self::create(BPF_MAP_TYPE_ARRAY, 4, value, 1)
    }

    /// A preallocated hash.
    pub fn hash(key: usize, value: usize, entries: u32) -> Result<Self> {
        Self::create(BPF_MAP_TYPE_HASH, key, value, entries)
    }

    /// Programs to call; `program` is the only one.
    pub fn programs(program: &OwnedFd) -> Result<Self> {
        let map = Self::create(BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)?;
        map.set(&number(program).to_ne_bytes()).context("the program cannot be called by a measuring one")?;
        Ok(map)
    }

    /// The number programs know it by while they are loaded.
    pub fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Sets the first entry.
    pub fn set(&self, value: &[u8]) -> Result<()> {
        let key = 0_u32;
        let mut attr = [0; 18];
        attr[0] = two(number(&self.0), 0);
        attr[1] = &raw const key as u64;
        attr[2] = value.as_ptr() as u64;
        bpf(BPF_MAP_UPDATE_ELEM, &mut attr)?;
        Ok(())
    }

    /// Adds entries, keys and values each in a row.
    pub fn fill(&self, keys: &[u8], values: &[u8], count: u32) -> Result<()> {
        let mut attr = [0; 18];
        attr[2] = keys.as_ptr() as u64;
        attr[3] = values.as_ptr() as u64;
        attr[4] = two(count, number(&self.0));
        bpf(BPF_MAP_UPDATE_BATCH, &mut attr)
            .with_context(|| format!("cannot add {count} entries to a measuring map"))?;
        Ok(())
    }
}

/// Where programs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Native XDP: frames.
    Xdp,
    /// TC ingress: socket buffers.
    Tc,
}

/// Loads an XDP program.
pub fn load(program: &[Insn]) -> Result<OwnedFd> {
    load_for(Hook::Xdp, program)
}

/// Loads a program.
pub fn load_for(hook: Hook, program: &[Insn]) -> Result<OwnedFd> {
    let (kind, flags, attach) = match hook {
        // As vrouter's programs are, so that they can be called.
        Hook::Xdp => (BPF_PROG_TYPE_XDP, BPF_F_XDP_HAS_FRAGS, BPF_XDP),
        Hook::Tc => (BPF_PROG_TYPE_SCHED_CLS, 0, 0),
    };
    let license = CString::new("GPL")?;
    let mut log = vec![0_u8; 65_536];
    let mut attr = [0; 18];
    attr[0] = two(kind, u32::try_from(program.len())?);
    attr[1] = program.as_ptr() as u64;
    attr[2] = license.as_ptr() as u64;
    attr[3] = two(1, u32::try_from(log.len())?);
    attr[4] = log.as_mut_ptr() as u64;
    attr[5] = two(0, flags);
    attr[8] = two(0, attach);
    descriptor(BPF_PROG_LOAD, &mut attr).with_context(|| {
        let end = log.iter().position(|&byte| byte == 0).unwrap_or(0);
        format!("the kernel refused a measuring program:\n{}", String::from_utf8_lossy(&log[..end]))
    })
}

/// Opens a pinned program.
pub fn pinned(path: &Path) -> Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut attr = [0; 18];
    attr[0] = name.as_ptr() as u64;
    descriptor(BPF_OBJ_GET, &mut attr).with_context(|| format!("cannot open the program {}", path.display()))
}

/// A program on an interface for as long as this lives.
pub struct Attached {
    _link: OwnedFd,
}

impl Attached {
    /// Attaches an XDP program, native.
    pub fn new(netns: &Netns, interface: &str, program: &OwnedFd) -> Result<Self> {
        Self::at(Hook::Xdp, netns, interface, program)
    }

    /// Attaches a program.
    pub fn at(hook: Hook, netns: &Netns, interface: &str, program: &OwnedFd) -> Result<Self> {
        let (kind, flags) = match hook {
            Hook::Xdp => (BPF_XDP, XDP_FLAGS_DRV_MODE),
            Hook::Tc => (BPF_TCX_INGRESS, 0),
        };
        let link = netns.enter(|| -> Result<OwnedFd> {
            let mut attr = [0; 18];
            attr[0] = two(number(program), ifindex(interface)?);
            attr[1] = two(kind, flags);
            descriptor(BPF_LINK_CREATE, &mut attr)
                .with_context(|| format!("cannot attach a measuring program to {interface}"))
        })??;
        Ok(Self { _link: link })
    }
}

/// Runs a program on `count` frames that it sends on their way.
pub fn run_live(program: &OwnedFd, frame: &[u8], count: u32) -> Result<()> {
    let mut attr = test_run(program, frame, count)?;
    // ctx_in, ctx_out at 6 and 7; flags and cpu at 8; batch size at 9.
    attr[8] = two(BPF_F_TEST_XDP_LIVE_FRAMES, 0);
    attr[9] = two(BATCH, 0);
    bpf(BPF_PROG_TEST_RUN, &mut attr).context("cannot make frames (BPF_F_TEST_XDP_LIVE_FRAMES)")?;
    Ok(())
}

/// Runs a program `count` times on one buffer, as if it came in by an interface (of the namespace the caller
/// is in); returns its last verdict and the average time.
pub fn run_dry(program: &OwnedFd, frame: &[u8], count: u32, ifindex: u32) -> Result<(u32, Duration)> {
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, u32::try_from(frame.len())?, 0, ifindex, 0, 0];
    let mut attr = test_run(program, frame, count)?;
    attr[5] = two(u32::try_from(size_of_val(&context))?, 0);
    attr[6] = context.as_ptr() as u64;
    bpf(BPF_PROG_TEST_RUN, &mut attr).context("cannot run a program for its time (BPF_PROG_TEST_RUN)")?;
    Ok(((attr[0] >> 32) as u32, Duration::from_nanos(attr[4] >> 32)))
}

fn test_run(program: &OwnedFd, frame: &[u8], count: u32) -> Result<[u64; 18]> {
    let mut attr = [0; 18];
    attr[0] = two(number(program), 0);
    attr[1] = two(u32::try_from(frame.len())?, 0);
    attr[2] = frame.as_ptr() as u64;
    attr[4] = two(count, 0);
    Ok(attr)
}

/// An interface's index, in the namespace the caller is in.
pub fn ifindex(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("no interface {name}"))
}
