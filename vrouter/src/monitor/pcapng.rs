//! Packets with what became of them, in a file that Wireshark opens: an interface for each place where packets came in,
//! and a comment on each packet.

use std::{
    borrow::Cow,
    collections::HashMap,
    io::Write,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use pcap_file::{
    DataLink,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};

use super::told::Told;

/// [`InterfaceDescriptionOption::IfTsResol`]: nanoseconds.
const NANOSECONDS: u8 = 9;

/// A file of packets.
pub struct Writer<W: Write> {
    pcapng: PcapNgWriter<W>,
    /// Numbers of the interfaces so far.
    interfaces: HashMap<String, u32>,
    snaplen: u32,
}

impl<W: Write> Writer<W> {
    /// Begins a file with up to `snaplen` bytes of each packet.
    pub fn new(out: W, snaplen: u32) -> Result<Self> {
        let pcapng = PcapNgWriter::new(out).context("cannot write the capture")?;
        Ok(Self { pcapng, interfaces: HashMap::new(), snaplen })
    }

    /// Adds a packet of `length` bytes, of which there are some.
    pub fn add(&mut self, told: &Told, time: SystemTime, packet: &[u8], length: u32) -> Result<()> {
        let interface_id = self.interface(told)?;
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO),
            original_len: length.max(packet.len() as u32),
            data: Cow::Borrowed(packet),
            options: vec![EnhancedPacketOption::Comment(Cow::Owned(comment(told)))],
        };
        self.pcapng.write_pcapng_block(block).context("cannot write the capture")?;
        Ok(())
    }

    fn interface(&mut self, told: &Told) -> Result<u32> {
        let place = told.place();
        if let Some(&id) = self.interfaces.get(&place) {
            return Ok(id);
        }
        let described = match (&told.from.network, &told.interface) {
            (Some(network), Some(interface)) => format!("network {network}, interface {interface}"),
            (_, interface) => format!("interface {}", interface.as_deref().unwrap_or("unknown")),
        };
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.snaplen,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(&place)),
                InterfaceDescriptionOption::IfDescription(Cow::Owned(described)),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        self.pcapng.write_pcapng_block(block).context("cannot write the capture")?;
        let id = self.interfaces.len() as u32;
        self.interfaces.insert(place, id);
        Ok(id)
    }

    /// Hands on what is buffered.
    pub fn flush(&mut self) -> Result<()> {
        self.pcapng.get_mut().flush().context("cannot write the capture")
    }
}

fn comment(told: &Told) -> String {
    format!("{} ({})", told.outcome(), told.way())
}
