//! What a client says (RFC 8415, 8 and 21).

use std::net::Ipv6Addr;

use crate::agent::services::service::Refused;

pub const SOLICIT: u8 = 1;
pub const ADVERTISE: u8 = 2;
pub const REQUEST: u8 = 3;
pub const CONFIRM: u8 = 4;
pub const RENEW: u8 = 5;
pub const REBIND: u8 = 6;
pub const REPLY: u8 = 7;
pub const RELEASE: u8 = 8;
pub const DECLINE: u8 = 9;
pub const RECONFIGURE: u8 = 10;
pub const INFORMATION_REQUEST: u8 = 11;
pub const RELAY_FORWARD: u8 = 12;
pub const RELAY_REPLY: u8 = 13;

pub const CLIENT: u16 = 1;
pub const SERVER: u16 = 2;
pub const IA_NA: u16 = 3;
pub const IA_TA: u16 = 4;
pub const IA_ADDRESS: u16 = 5;
pub const OPTION_REQUEST: u16 = 6;
pub const PREFERENCE: u16 = 7;
pub const STATUS: u16 = 13;
pub const RAPID_COMMIT: u16 = 14;
pub const DNS: u16 = 23;
pub const IA_PD: u16 = 25;

/// RFC 8415, 11.1.
const DUID: std::ops::RangeInclusive<usize> = 3..=130;
/// More identity associations than any client has.
const ASSOCIATIONS_MAX: usize = 16;
/// Addresses in one.
const ADDRESSES_MAX: usize = 64;

/// An identity association of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Association {
    /// `IA_NA`, `IA_TA` or `IA_PD`.
    pub kind: u16,
    pub id: [u8; 4],
    /// What the client has, or would have.
    pub addresses: Vec<Ipv6Addr>,
}

/// A message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `SOLICIT` and its siblings.
    pub kind: u8,
    pub transaction: [u8; 3],
    pub client: Option<Vec<u8>>,
    pub server: Option<Vec<u8>>,
    pub associations: Vec<Association>,
    /// The options it asks for.
    pub wanted: Vec<u16>,
    pub rapid_commit: bool,
}

impl Message {
    /// Reads what a UDP datagram carries. Everything that contradicts itself is refused.
    pub fn read(bytes: &[u8]) -> Result<Self, Refused> {
        let &[kind, a, b, c, ref options @ ..] = bytes else { return Err(Refused("message_truncated")) };
        match kind {
            SOLICIT | REQUEST..=REBIND | RELEASE | DECLINE | INFORMATION_REQUEST => {}
            ADVERTISE | REPLY | RECONFIGURE | RELAY_REPLY => return Err(Refused("servers_message")),
            RELAY_FORWARD => return Err(Refused("relayed")),
            _ => return Err(Refused::MALFORMED),
        }
        let mut message = Self {
            kind,
            transaction: [a, b, c],
            client: None,
            server: None,
            associations: Vec::new(),
            wanted: Vec::new(),
            rapid_commit: false,
        };
        each(options, |code, value| {
            match code {
                CLIENT => message.client = Some(duid(value, message.client.is_some())?),
                SERVER => message.server = Some(duid(value, message.server.is_some())?),
                IA_NA | IA_TA | IA_PD => message.associations.push(association(code, value)?),
                OPTION_REQUEST if value.len() % 2 == 0 => {
                    let codes = value.chunks_exact(2).map(|code| u16::from_be_bytes([code[0], code[1]]));
                    message.wanted.extend(codes);
                }
                OPTION_REQUEST => return Err(Refused("options_malformed")),
                RAPID_COMMIT => message.rapid_commit = true,
                _ => {}
            }
            if message.associations.len() > ASSOCIATIONS_MAX {
                Err(Refused("options_malformed"))
            } else {
                Ok(())
            }
        })?;
        Ok(message)
    }
}

/// Walks options.
fn each(mut bytes: &[u8], mut take: impl FnMut(u16, &[u8]) -> Result<(), Refused>) -> Result<(), Refused> {
    while let &[a, b, c, d, ref rest @ ..] = bytes {
        let (code, len) = (u16::from_be_bytes([a, b]), usize::from(u16::from_be_bytes([c, d])));
        let (value, rest) = rest.split_at_checked(len).ok_or(Refused("options_truncated"))?;
        take(code, value)?;
        bytes = rest;
    }
    if bytes.is_empty() { Ok(()) } else { Err(Refused("options_truncated")) }
}

fn duid(value: &[u8], again: bool) -> Result<Vec<u8>, Refused> {
    if again || !DUID.contains(&value.len()) {
        return Err(Refused("options_malformed"));
    }
    Ok(value.to_vec())
}

fn association(kind: u16, value: &[u8]) -> Result<Association, Refused> {
    // What identifies it, and two times where it is not temporary.
    let head = if kind == IA_TA { 4 } else { 12 };
    let (head, options) = value.split_at_checked(head).ok_or(Refused("options_truncated"))?;
    let mut addresses = Vec::new();
    each(options, |code, value| {
        if code != IA_ADDRESS {
            return Ok(());
        }
        let address: [u8; 16] = value
            .get(..24)
            .and_then(|value| value[..16].try_into().ok())
            .ok_or(Refused("options_truncated"))?;
        addresses.push(address.into());
        if addresses.len() > ADDRESSES_MAX { Err(Refused("options_malformed")) } else { Ok(()) }
    })?;
    Ok(Association { kind, id: [head[0], head[1], head[2], head[3]], addresses })
}
