//! The table that one hash lookup is measured in: as large and as full as vrouter's.

use anyhow::Result;

use super::{
    bpf::Map,
    frames::{DESTINATION_PORT, Shape},
    programs::{self, KEY_LEN, VALUE_LEN},
};

/// Entries of the flow tables of up to 64 k flows.
pub const SMALL: u32 = 1 << 20;
/// Entries of the flow tables of 1 M flows.
pub const LARGE: u32 = 1 << 21;
/// Entries added at once.
const CHUNK: u32 = 1 << 14;

/// A table with the flows of a shape that come in by `zone` and leave by `exit`, and `others` times as many
/// which no frame asks for.
pub fn filled(entries: u32, flows: u32, others: u32, shape: &Shape, zone: u32, exit: u32) -> Result<Map> {
    let table = Map::hash(KEY_LEN, VALUE_LEN, entries)?;
    let mut value = [0; VALUE_LEN];
    value[0..4].copy_from_slice(&exit.to_ne_bytes());
    // Whoever takes the frames drops them, whomever they are for.
    value[4..16].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    for other in 0..=others {
        let mut first = 0;
        while first < flows {
            let count = CHUNK.min(flows - first);
            let mut keys = Vec::with_capacity(count as usize * KEY_LEN);
            for number in first..first + count {
                let (src, dst, sport) = shape.flow(number);
                // Zones are interface indexes: none has one so large.
                let zone = if other == 0 { zone } else { u32::MAX - other };
                keys.extend(programs::key(src, dst, zone, sport, DESTINATION_PORT));
            }
            table.fill(&keys, &value.repeat(count as usize), count)?;
            first += count;
        }
    }
    Ok(table)
}
