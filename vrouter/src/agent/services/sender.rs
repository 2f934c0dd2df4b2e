//! Sends frames to ports.

use std::{io, sync::Arc};

use anyhow::{Context, Result};
use socket2::Socket;

use crate::agent::frame_socket;

/// The shortest frame there is on Ethernet, without its check sequence: shorter ones are padded with zeros.
const FRAME_MIN: usize = 60;

/// A socket that receives nothing. Anybody may have a copy.
#[derive(Clone)]
pub struct FrameSender(Arc<Socket>);

impl FrameSender {
    /// Opens it in the network namespace of the calling thread.
    pub fn open() -> Result<Self> {
        let socket = frame_socket::open().context(
            "cannot open a packet socket; the agent needs CAP_NET_RAW to answer workloads: run it as root",
        )?;
        Ok(Self(Arc::new(socket)))
    }

    /// Sends a frame out of a port's interface, to the workload. Nobody's rules are asked, and nothing is looked up.
    pub fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let ethertype = frame.get(12..14).ok_or(io::ErrorKind::InvalidInput)?;
        let to = frame_socket::address(ifindex, [ethertype[0], ethertype[1]]);
        if frame.len() >= FRAME_MIN {
            return self.0.send_to(frame, &to).map(drop);
        }
        let mut padded = frame.to_vec();
        padded.resize(FRAME_MIN, 0);
        self.0.send_to(&padded, &to).map(drop)
    }
}
