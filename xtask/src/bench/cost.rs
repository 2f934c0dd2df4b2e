//! What a program costs by itself: run again and again on one packet, in one place, with everything in the
//! caches.

use std::{os::fd::OwnedFd, time::Duration};

use anyhow::{Result, bail};
use vrouter_tests::Netns;

use super::{
    bpf::{self, Map},
    frames::{Shape, stay_on_one_core},
    programs,
};

const XDP_REDIRECT: u32 = 4;
/// Runs of one call of the kernel.
const PER_CALL: u32 = 200_000;

/// A program to be timed: called by one that first makes the packet what it was.
pub struct Timed {
    wrapped: Wrapped,
    empty: Wrapped,
    netns: Netns,
    interface: String,
    frame: Vec<u8>,
}

struct Wrapped {
    program: OwnedFd,
    // The kernel forgets what is in an array of programs when nobody has it open.
    _called: Map,
}

impl Wrapped {
    fn new(called: &OwnedFd, frame: &[u8]) -> Result<Self> {
        let map = Map::programs(called)?;
        Ok(Self { program: bpf::load(&programs::wrapper(frame, &map))?, _called: map })
    }
}

impl Timed {
    /// A program that redirects packets of a shape which come in by an interface of a namespace.
    pub fn new(program: &OwnedFd, shape: &Shape, netns: &Netns, interface: &str) -> Result<Self> {
        let frame = shape.frame();
        let empty = bpf::load(&programs::empty())?;
        Ok(Self {
            wrapped: Wrapped::new(program, &frame)?,
            empty: Wrapped::new(&empty, &frame)?,
            netns: netns.clone(),
            interface: interface.to_owned(),
            frame,
        })
    }

    /// Nanoseconds of a run, without those of an empty program.
    pub fn measure(&self, length: Duration) -> Result<f64> {
        let whole = self.average(&self.wrapped, length / 2, XDP_REDIRECT)?;
        let empty = self.average(&self.empty, length / 2, programs::EMPTY_VERDICT)?;
        Ok(whole - empty)
    }

    fn average(&self, wrapped: &Wrapped, length: Duration, expected: u32) -> Result<f64> {
        self.netns.enter(|| {
            stay_on_one_core()?;
            let ifindex = bpf::ifindex(&self.interface)?;
            let (mut times, mut spent) = (Vec::new(), Duration::ZERO);
            while spent < length || times.is_empty() {
                let (verdict, time) = bpf::run_dry(&wrapped.program, &self.frame, PER_CALL, ifindex)?;
                if verdict != expected {
                    bail!("a program that is timed ended with {verdict}, not {expected}");
                }
                spent += time * PER_CALL;
                times.push(time.as_nanos() as f64);
            }
            Ok(times.iter().sum::<f64>() / times.len() as f64)
        })?
    }
}
