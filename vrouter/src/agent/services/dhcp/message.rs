//! What a client says: a BOOTP message with DHCP options (RFC 2131, 2; RFC 2132; RFC 3396).

use std::{collections::BTreeMap, net::Ipv4Addr};

use crate::agent::services::service::Refused;

pub const DISCOVER: u8 = 1;
pub const OFFER: u8 = 2;
pub const REQUEST: u8 = 3;
pub const DECLINE: u8 = 4;
pub const ACK: u8 = 5;
pub const NAK: u8 = 6;
pub const RELEASE: u8 = 7;
pub const INFORM: u8 = 8;

pub const MASK: u8 = 1;
pub const ROUTER: u8 = 3;
pub const DNS: u8 = 6;
pub const HOST_NAME: u8 = 12;
pub const MTU: u8 = 26;
pub const BROADCAST: u8 = 28;
pub const REQUESTED_ADDRESS: u8 = 50;
pub const LEASE_TIME: u8 = 51;
pub const OVERLOAD: u8 = 52;
pub const MESSAGE_TYPE: u8 = 53;
pub const SERVER: u8 = 54;
pub const PARAMETERS: u8 = 55;
pub const TEXT: u8 = 56;
pub const MAX_SIZE: u8 = 57;
pub const RENEWAL: u8 = 58;
pub const REBINDING: u8 = 59;
pub const CLIENT: u8 = 61;
pub const TFTP_SERVER: u8 = 66;
pub const CLASSLESS_ROUTES: u8 = 121;
/// What Windows asked for before there was the other.
pub const CLASSLESS_ROUTES_MS: u8 = 249;
/// RFC 5859.
pub const TFTP_SERVER_ADDRESS: u8 = 150;
pub const PAD: u8 = 0;
pub const END: u8 = 255;

/// Between BOOTP's fields and the options.
pub const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Bytes before the options.
pub const FIXED_LEN: usize = 240;
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;

/// A message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `DISCOVER` and its siblings.
    pub kind: u8,
    pub transaction: [u8; 4],
    /// The answer is to be sent to everybody.
    pub broadcast: bool,
    /// The address the client has, or none (`ciaddr`).
    pub client: Ipv4Addr,
    pub mac: [u8; 6],
    /// The address it asks for.
    pub requested: Option<Ipv4Addr>,
    /// The server it means.
    pub server: Option<Ipv4Addr>,
    /// The options it asks for; `None`: it does not say.
    pub parameters: Option<Vec<u8>>,
    /// What it calls itself.
    pub identifier: Option<Vec<u8>>,
    /// The longest message it takes, as an IP packet.
    pub max_size: usize,
}

impl Message {
    /// Reads what a UDP datagram carries. Everything that contradicts itself is refused.
    pub fn read(bytes: &[u8]) -> Result<Self, Refused> {
        const BOOT_REQUEST: u8 = 1;
        const ETHERNET: [u8; 2] = [1, 6];
        let fixed = bytes.get(..FIXED_LEN).ok_or(Refused("message_truncated"))?;
        if fixed[0] != BOOT_REQUEST || fixed[1..3] != ETHERNET || fixed[236..240] != COOKIE {
            return Err(Refused::MALFORMED);
        }
        let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
        if fixed[3] != 0 || !address(24).is_unspecified() {
            return Err(Refused("relayed"));
        }
        let mut options = BTreeMap::new();
        gather(&bytes[FIXED_LEN..], &mut options)?;
        // RFC 2131, 4.1: the file field before the name.
        match options.remove(&OVERLOAD).as_deref() {
            None => {}
            Some([1]) => gather(&fixed[FILE], &mut options)?,
            Some([2]) => gather(&fixed[SNAME], &mut options)?,
            Some([3]) => {
                gather(&fixed[FILE], &mut options)?;
                gather(&fixed[SNAME], &mut options)?;
            }
            Some(_) => return Err(Refused("options_malformed")),
        }
        let ip = |code: u8| match options.get(&code).map(Vec::as_slice) {
            None => Ok(None),
            Some(&[a, b, c, d]) => Ok(Some(Ipv4Addr::new(a, b, c, d))),
            Some(_) => Err(Refused("options_malformed")),
        };
        let kind = match options.get(&MESSAGE_TYPE).map(Vec::as_slice) {
            Some(&[kind @ (DISCOVER | REQUEST | DECLINE | RELEASE | INFORM)]) => kind,
            Some(&[OFFER | ACK | NAK]) => return Err(Refused("servers_message")),
            Some(_) => return Err(Refused("options_malformed")),
            None => return Err(Refused("bootp")),
        };
        let max_size = match options.get(&MAX_SIZE).map(Vec::as_slice) {
            None => super::answer::SIZE_MIN,
            Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])).max(super::answer::SIZE_MIN),
            Some(_) => return Err(Refused("options_malformed")),
        };
        let identifier = options.get(&CLIENT).cloned();
        if identifier.as_ref().is_some_and(|identifier| identifier.len() < 2 || identifier.len() > 255) {
            return Err(Refused("options_malformed"));
        }
        Ok(Self {
            kind,
            transaction: [fixed[4], fixed[5], fixed[6], fixed[7]],
            broadcast: fixed[10] & 0x80 != 0,
            client: address(12),
            mac: [fixed[28], fixed[29], fixed[30], fixed[31], fixed[32], fixed[33]],
            requested: ip(REQUESTED_ADDRESS)?,
            server: ip(SERVER)?,
            parameters: options.get(&PARAMETERS).cloned(),
            identifier,
            max_size,
        })
    }

    /// Whether it asks for an option. Who does not say asks for all.
    pub fn asks_for(&self, code: u8) -> bool {
        self.parameters.as_ref().is_none_or(|parameters| parameters.contains(&code))
    }
}

/// Reads options up to their end. One that comes in pieces is put together (RFC 3396).
fn gather(mut bytes: &[u8], options: &mut BTreeMap<u8, Vec<u8>>) -> Result<(), Refused> {
    loop {
        match bytes {
            [PAD, rest @ ..] => bytes = rest,
            [END, ..] => return Ok(()),
            [code, len, rest @ ..] if rest.len() >= usize::from(*len) => {
                let (value, rest) = rest.split_at(usize::from(*len));
                options.entry(*code).or_default().extend(value);
                bytes = rest;
            }
            _ => return Err(Refused("options_truncated")),
        }
    }
}
