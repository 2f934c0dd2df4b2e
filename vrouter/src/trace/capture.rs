//! Frames of a capture file.

use std::io::{Cursor, Read};

use anyhow::{Context, Result, bail};
use pcap_file::{
    DataLink,
    pcap::PcapReader,
    pcapng::{Block, PcapNgReader},
};

/// A capture is read as a whole: what is larger is cut by who makes it (`tcpdump -c`, `editcap`).
const BYTES_MAX: u64 = 256 << 20;
/// A pcapng section header, in both byte orders alike.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// The first frames of a capture, in pcap or pcapng. All of them have to be whole Ethernet frames.
pub fn frames(input: impl Read, most: usize) -> Result<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    input.take(BYTES_MAX + 1).read_to_end(&mut bytes).context("cannot read it")?;
    if bytes.len() as u64 > BYTES_MAX {
        bail!("it has more than {} MiB: cut it with `editcap -c`", BYTES_MAX >> 20);
    }
    let frames = if bytes.starts_with(&PCAPNG) { of_pcapng(bytes, most) } else { of_pcap(bytes, most) }?;
    if frames.is_empty() {
        bail!("there is no packet in it");
    }
    Ok(frames)
}

fn of_pcap(bytes: Vec<u8>, most: usize) -> Result<Vec<Vec<u8>>> {
    let mut reader = PcapReader::new(Cursor::new(bytes)).context("it is neither pcap nor pcapng")?;
    check(reader.header().datalink)?;
    let mut frames = Vec::new();
    while frames.len() < most
        && let Some(packet) = reader.next_packet()
    {
        let number = frames.len() + 1;
        let packet = packet.with_context(|| format!("packet {number} is damaged"))?;
        whole(number, packet.data.len(), packet.orig_len)?;
        frames.push(packet.data.into_owned());
    }
    Ok(frames)
}

fn of_pcapng(bytes: Vec<u8>, most: usize) -> Result<Vec<Vec<u8>>> {
    let mut reader = PcapNgReader::new(Cursor::new(bytes)).context("it is no pcapng")?;
    let mut frames = Vec::new();
    let mut links = Vec::new();
    while frames.len() < most
        && let Some(block) = reader.next_block()
    {
        let number = frames.len() + 1;
        match block.with_context(|| format!("the block after packet {} is damaged", number - 1))? {
            Block::SectionHeader(_) => links.clear(),
            Block::InterfaceDescription(interface) => links.push(interface.linktype),
            Block::EnhancedPacket(packet) => {
                let link = links.get(packet.interface_id as usize);
                check(
                    *link.with_context(|| format!("packet {number} is of an interface that is not there"))?,
                )?;
                whole(number, packet.data.len(), packet.original_len)?;
                frames.push(packet.data.into_owned());
            }
            _ => {}
        }
    }
    Ok(frames)
}

fn check(link: DataLink) -> Result<()> {
    if link != DataLink::ETHERNET {
        bail!(
            "it is of link type {link:?}: only Ethernet captures hold what the data path sees (capture on the port's interface)"
        );
    }
    Ok(())
}

fn whole(number: usize, length: usize, original: u32) -> Result<()> {
    if (length as u64) < u64::from(original) {
        bail!(
            "packet {number} was cut to {length} of {original} bytes: capture whole packets (`tcpdump -s 0`)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};

    use super::*;

    fn pcap(link: DataLink, packets: &[(&[u8], u32)]) -> Vec<u8> {
        let header = PcapHeader { datalink: link, ..PcapHeader::default() };
        let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
        for (data, original) in packets {
            writer.write_packet(&PcapPacket::new(std::time::Duration::ZERO, *original, data)).unwrap();
        }
        writer.into_writer()
    }

    #[test]
    fn whole_ethernet_frames_are_taken_and_nothing_else() {
        let good = pcap(DataLink::ETHERNET, &[(&[1; 60], 60), (&[2; 60], 60), (&[3; 60], 60)]);
        assert_eq!(frames(&good[..], 2).unwrap(), [vec![1; 60], vec![2; 60]]);
        let said = |bytes: &[u8]| format!("{:#}", frames(bytes, 9).expect_err("refused"));
        assert!(said(&pcap(DataLink::RAW, &[(&[1; 60], 60)])).contains("link type"));
        assert!(
            said(&pcap(DataLink::ETHERNET, &[(&[1; 60], 60), (&[1; 60], 1500)])).contains("packet 2 was cut")
        );
        assert!(said(&pcap(DataLink::ETHERNET, &[])).contains("no packet"));
        assert!(said(&good[..good.len() - 5]).contains("packet 3"));
        assert!(said(b"").contains("neither"));
        assert!(said(b"not a capture at all, but long enough").contains("neither"));
        assert!(said(&[&PCAPNG[..], &[0xff; 40]].concat()).contains("no pcapng"));
    }
}
