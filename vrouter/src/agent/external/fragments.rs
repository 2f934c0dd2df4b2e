//! Cuts an IPv4 packet (RFC 791, 3.2). What is cut may be a fragment itself.

use std::fmt;

use vrouter_common::{checksum, wire::IPV4_LEN};

use super::frames::{put16, sum};

const MORE: u16 = 0x2000;
const DONT: u16 = 0x4000;
const OFFSET: u16 = 0x1fff;
/// An option with this bit goes into every fragment.
const COPIED: u8 = 0x80;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;

/// Why a packet cannot be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncuttable {
    /// Not IPv4, or its header contradicts itself.
    Malformed,
    /// Its sender does not want it.
    DontFragment,
    /// Not even eight bytes fit behind the header.
    MtuTooSmall,
}

impl fmt::Display for Uncuttable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "the IPv4 header is malformed",
            Self::DontFragment => "its sender forbids it",
            Self::MtuTooSmall => "the MTU leaves no room for data",
        })
    }
}

impl std::error::Error for Uncuttable {}

/// Cuts a packet, from its IP header to its end, into packets of at most `mtu` bytes. One that fits stays as it
/// is.
pub fn cut(packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, Uncuttable> {
    let header_len = header_len(packet)?;
    if packet.len() <= mtu {
        return Ok(vec![packet.to_vec()]);
    }
    let (header, data) = packet.split_at(header_len);
    let word = u16::from_be_bytes([header[6], header[7]]);
    if word & DONT != 0 {
        return Err(Uncuttable::DontFragment);
    }
    let later_header = later_header(header)?;
    let (offset, is_last) = (usize::from(word & OFFSET) * 8, word & MORE == 0);
    let mut fragments = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let header = if at == 0 { header } else { &later_header };
        let room = mtu.saturating_sub(header.len()) / 8 * 8;
        if room == 0 {
            return Err(Uncuttable::MtuTooSmall);
        }
        let end = data.len().min(at + room);
        if offset + end > usize::from(u16::MAX) {
            return Err(Uncuttable::Malformed);
        }
        let more = if end < data.len() || !is_last { MORE } else { 0 };
        fragments.push(fragment(header, more | ((offset + at) / 8) as u16, &data[at..end]));
        at = end;
    }
    Ok(fragments)
}

fn header_len(packet: &[u8]) -> Result<usize, Uncuttable> {
    let first = *packet.first().ok_or(Uncuttable::Malformed)?;
    let len = usize::from(first & 15) * 4;
    if first >> 4 != 4 || len < IPV4_LEN || packet.len() < len {
        return Err(Uncuttable::Malformed);
    }
    if usize::from(u16::from_be_bytes([packet[2], packet[3]])) != packet.len() {
        return Err(Uncuttable::Malformed);
    }
    Ok(len)
}

/// The header of every fragment but the first: with the options that are copied.
fn later_header(header: &[u8]) -> Result<Vec<u8>, Uncuttable> {
    let mut later = header[..IPV4_LEN].to_vec();
    let mut options = &header[IPV4_LEN..];
    while let Some(&kind) = options.first() {
        let len = match kind {
            END_OF_OPTIONS => break,
            NO_OPERATION => 1,
            _ => {
                let len = options.get(1).map_or(0, |&len| usize::from(len));
                if len < 2 || len > options.len() {
                    return Err(Uncuttable::Malformed);
                }
                len
            }
        };
        if kind & COPIED != 0 {
            later.extend(&options[..len]);
        }
        options = &options[len..];
    }
    later.resize(later.len().next_multiple_of(4), END_OF_OPTIONS);
    later[0] = 0x40 | (later.len() / 4) as u8;
    Ok(later)
}

fn fragment(header: &[u8], word: u16, data: &[u8]) -> Vec<u8> {
    let mut packet = [header, data].concat();
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[6..8].copy_from_slice(&word.to_be_bytes());
    packet[10..12].fill(0);
    let sum = sum(&packet[..header.len()]);
    put16(&mut packet, 10, checksum::finish(sum));
    packet
}

#[cfg(test)]
mod tests {
    use etherparse::{
        IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv4Options, SlicedPacket, defrag::IpDefragPool,
    };
    use proptest::prelude::*;

    use super::*;

    /// A packet with `len` bytes of data that all differ from their neighbours.
    fn packet(len: usize, options: &[u8]) -> Vec<u8> {
        let data: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
        let mut header =
            Ipv4Header::new(len as u16, 61, IpNumber::UDP, [10, 0, 1, 10], [198, 51, 100, 7]).expect("short");
        header.identification = 0x1234;
        header.dont_fragment = false;
        header.options = Ipv4Options::try_from(options).expect("options");
        header.set_payload_len(len).expect("short");
        header.header_checksum = header.calc_header_checksum();
        [header.to_bytes().to_vec(), data].concat()
    }

    /// What the receiver makes of them: etherparse's reassembly.
    fn reassembled(fragments: &[Vec<u8>]) -> Vec<u8> {
        let mut pool = IpDefragPool::<(), ()>::new();
        let mut whole = None;
        for fragment in fragments {
            let sliced = SlicedPacket::from_ip(fragment).expect("a packet");
            if let Some(done) = pool.process_sliced_packet(&sliced, (), ()).expect("reassembly") {
                assert!(whole.is_none(), "twice whole");
                whole = Some(done.payload);
            }
        }
        whole.expect("something is missing")
    }

    fn header(fragment: &[u8]) -> Ipv4HeaderSlice<'_> {
        let header = Ipv4HeaderSlice::from_slice(fragment).expect("a header");
        assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum(), "the checksum");
        assert_eq!(usize::from(header.total_len()), fragment.len());
        header
    }

    #[test]
    fn odd_sizes_are_cut_at_multiples_of_eight() {
        let packet = packet(1473, &[]);
        let fragments = cut(&packet, 999).expect("cuttable");
        let sizes: Vec<_> = fragments.iter().map(Vec::len).collect();
        assert_eq!(sizes, [20 + 976, 20 + 497]);
        let (first, last) = (header(&fragments[0]), header(&fragments[1]));
        assert!(first.more_fragments() && !last.more_fragments());
        assert_eq!((first.fragments_offset().value(), last.fragments_offset().value()), (0, 976 / 8));
        for part in [&first, &last] {
            assert_eq!((part.identification(), part.ttl(), part.dont_fragment()), (0x1234, 61, false));
            assert_eq!((part.source(), part.destination()), ([10, 0, 1, 10], [198, 51, 100, 7]));
        }
        assert_eq!(reassembled(&fragments), packet[20..]);
    }

    #[test]
    fn options_with_the_copy_bit_go_into_all_and_others_into_the_first() {
        // Record route (not copied), no operation, router alert (copied, RFC 2113), timestamp (not copied).
        let options =
            [7, 7, 4, 0, 0, 0, 0, 1, 148, 4, 0, 0, 68, 8, 5, 0, 0, 0, 0, 0, END_OF_OPTIONS, 0, 0, 0];
        let packet = packet(500, &options);
        let fragments = cut(&packet, 200).expect("cuttable");
        assert_eq!(header(&fragments[0]).options(), options);
        assert!(fragments.len() > 2);
        for fragment in &fragments[1..] {
            assert_eq!(header(fragment).options(), [148, 4, 0, 0]);
        }
        assert_eq!(reassembled(&fragments), packet[44..]);
        // Three bytes of option are filled up.
        let packet = super::tests::packet(500, &[130, 3, 9, 1]);
        for fragment in &cut(&packet, 200).expect("cuttable")[1..] {
            assert_eq!(header(fragment).options(), [130, 3, 9, END_OF_OPTIONS]);
        }
    }

    #[test]
    fn a_fragment_is_cut_in_its_place() {
        let packet = packet(3000, &[]);
        let coarse = cut(&packet, 1500).expect("cuttable");
        let fine: Vec<_> = coarse.iter().flat_map(|part| cut(part, 576).expect("cuttable")).collect();
        assert!(fine.len() > coarse.len());
        assert!(fine.iter().all(|part| part.len() <= 576));
        assert_eq!(fine.iter().filter(|part| !header(part).more_fragments()).count(), 1);
        assert_eq!(reassembled(&fine), packet[20..]);
    }

    #[test]
    fn what_fits_stays_and_what_cannot_be_cut_is_refused() {
        let fits = packet(100, &[]);
        assert_eq!(cut(&fits, 120), Ok(vec![fits.clone()]));
        assert_eq!(cut(&fits, 119).map(|fragments| fragments.len()), Ok(2));
        assert_eq!(cut(&fits, 27), Err(Uncuttable::MtuTooSmall));
        assert_eq!(cut(&fits, 28).map(|fragments| fragments.len()), Ok(13));
        let mut dont = fits.clone();
        dont[6] = 0x40;
        assert_eq!(cut(&dont, 119), Err(Uncuttable::DontFragment));
        assert_eq!(cut(&fits[..100], 60), Err(Uncuttable::Malformed), "shorter than it says");
        assert_eq!(cut(&[], 60), Err(Uncuttable::Malformed));
        let mut option = packet(100, &[148, 4, 0, 0]);
        option[21] = 5;
        assert_eq!(cut(&option, 60), Err(Uncuttable::Malformed), "an option longer than the header");
        let mut beyond = fits;
        beyond[6..8].copy_from_slice(&0x1ff8_u16.to_be_bytes());
        assert_eq!(cut(&beyond, 60), Err(Uncuttable::Malformed), "an offset beyond 65535");
    }

    proptest! {
        #[test]
        fn whatever_is_cut_is_whole_again(len in 9_usize..4000, mtu in 68_usize..1600, alert: bool) {
            let options: &[u8] = if alert { &[148, 4, 0, 0] } else { &[] };
            let packet = packet(len, options);
            let fragments = cut(&packet, mtu).expect("cuttable");
            prop_assert!(fragments.iter().all(|fragment| fragment.len() <= mtu));
            if fragments.len() > 1 {
                prop_assert_eq!(reassembled(&fragments), &packet[20 + options.len()..]);
            } else {
                prop_assert_eq!(&fragments[0], &packet);
            }
        }
    }
}
