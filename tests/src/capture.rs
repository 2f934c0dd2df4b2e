//! Frames as tcpdump sees them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use crate::{Netns, Process};

/// A tcpdump at work. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    /// Has no name, so there is nothing to remove.
    file: File,
}

impl Capture {
    /// Starts tcpdump with a filter (may be empty) and returns when it listens.
    pub(crate) fn start(netns: &Netns, interface: &str, filter: &str) -> Result<Self> {
        let file = tempfile::tempfile().context("cannot create a temporary file")?;
        let mut command = netns.command("tcpdump");
        command.args(["-i", interface, "-n", "-U", "--immediate-mode", "-s", "0", "-Z", "root", "-w", "-"]);
        command.args(filter.split_whitespace());
        let mut tcpdump = Process::spawn_with_stdout(&mut command, file.try_clone()?)?;
        tcpdump.wait_for_text("listening on", Duration::from_secs(10))?;
        Ok(Self { tcpdump, file })
    }

    /// The frames so far, each whole, in the order they were seen.
    pub fn frames(&self) -> Result<Vec<Vec<u8>>> {
        let length = usize::try_from(self.file.metadata()?.len())?;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, 0).context("cannot read the capture")?;
        parse_pcap(&bytes)
    }

    /// Waits until a frame satisfies `wanted`, and returns the first that does.
    pub fn wait_for(&self, timeout: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let deadline = Instant::now() + timeout;
        loop {
            let frames = self.frames()?;
            if let Some(frame) = frames.iter().find(|frame| wanted(frame)) {
                return Ok(frame.clone());
            }
            if Instant::now() > deadline {
                bail!("no such frame in {timeout:?}, but {} others", frames.len());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the capture and returns all its frames.
    pub fn stop(mut self) -> Result<Vec<Vec<u8>>> {
        // What has arrived must also have been read: tcpdump drops what is queued when it is interrupted.
        std::thread::sleep(Duration::from_millis(100));
        self.tcpdump.signal(Signal::SIGINT)?;
        self.tcpdump.wait(Duration::from_secs(5))?;
        self.frames()
    }
}

const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
const LINKTYPE_ETHERNET: u32 = 1;

/// The frames of a pcap file in either byte order. A last record still being written is left out.
pub fn parse_pcap(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let Some((header, mut rest)) = bytes.split_at_checked(FILE_HEADER) else { return Ok(Vec::new()) };
    let word = |bytes: &[u8], at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    // In microseconds, or in nanoseconds.
    let from_bytes: fn([u8; 4]) -> u32 = match word(header, 0) {
        [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1] => u32::from_le_bytes,
        [0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d] => u32::from_be_bytes,
        other => bail!("not a pcap file: it starts with {other:02x?}"),
    };
    let linktype = from_bytes(word(header, 20)) & 0xffff;
    if linktype != LINKTYPE_ETHERNET {
        bail!("the capture is not of Ethernet frames, but of link type {linktype}");
    }
    let mut frames = Vec::new();
    while let Some((record, tail)) = rest.split_at_checked(RECORD_HEADER) {
        let captured = from_bytes(word(record, 8)) as usize;
        let Some((frame, tail)) = tail.split_at_checked(captured) else { break };
        frames.push(frame.to_vec());
        rest = tail;
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(magic: [u8; 4], word: fn(u32) -> [u8; 4], frames: &[&[u8]]) -> Vec<u8> {
        let mut bytes = magic.to_vec();
        bytes.extend([0; 16]);
        bytes.extend(word(LINKTYPE_ETHERNET));
        for frame in frames {
            let length = word(frame.len() as u32);
            bytes.extend([[0; 4], [0; 4], length, length].concat());
            bytes.extend(*frame);
        }
        bytes
    }

    #[test]
    fn reads_both_byte_orders() {
        let frames: [&[u8]; 2] = [&[1, 2, 3], &[4; 60]];
        for bytes in [
            file([0xd4, 0xc3, 0xb2, 0xa1], u32::to_le_bytes, &frames),
            file([0xa1, 0xb2, 0x3c, 0x4d], u32::to_be_bytes, &frames),
        ] {
            assert_eq!(parse_pcap(&bytes).unwrap(), frames);
        }
    }

    #[test]
    fn leaves_out_an_unfinished_record() {
        let bytes = file([0xd4, 0xc3, 0xb2, 0xa1], u32::to_le_bytes, &[&[1, 2, 3], &[4; 60]]);
        for length in 0..bytes.len() {
            let frames = parse_pcap(&bytes[..length]).unwrap();
            assert!(frames.len() < 2, "{length}");
        }
    }

    #[test]
    fn refuses_what_is_no_capture_of_frames() {
        assert!(parse_pcap(&[0; 24]).is_err());
        let mut bytes = file([0xd4, 0xc3, 0xb2, 0xa1], u32::to_le_bytes, &[]);
        bytes[20] = 113; // Linux "cooked"
        assert!(parse_pcap(&bytes).unwrap_err().to_string().contains("113"));
    }
}
