//! Text to typed values: numbers, names, addresses, ranges. Each refusal says what to write instead.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::model::{Direction, EtherFamily, Hook, Mac};
use super::yaml::{Node, NodeKind};

/// Why a value cannot be read. The message continues a sentence that starts with the field's name.
#[derive(Debug)]
pub struct Fault {
    pub message: String,
    pub remedy: String,
}

impl Fault {
    pub fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into() }
    }
}

/// Somebody else's text, made safe for a terminal and short enough for a line.
pub fn quote(text: &str) -> String {
    const SHOWN: usize = 64;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// A single value of any kind.
pub fn text(node: &Node) -> Result<&str, Fault> {
    match &node.kind {
        NodeKind::Scalar { text, .. } => Ok(text),
        NodeKind::Sequence(_) => {
            Err(Fault::new("is a list where one value is expected", "write the value without brackets"))
        }
        NodeKind::Mapping(_) => {
            Err(Fault::new("is a mapping where one value is expected", "write the value alone"))
        }
    }
}

/// An object's name, or a reference to one.
pub fn name(node: &Node) -> Result<String, Fault> {
    const MAX_NAME: usize = 255;
    let text = text(node)?;
    let wrong = if text.is_empty() {
        "is empty"
    } else if text.len() > MAX_NAME {
        "is longer than 255 bytes"
    } else if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        "holds a space or a control character"
    } else if text.contains('/') {
        "holds a `/`"
    } else {
        return Ok(text.to_owned());
    };
    Err(Fault::new(
        format!("{} {wrong}", quote(text)),
        "use 1 to 255 bytes without spaces, control characters and `/`",
    ))
}

/// A kernel interface's name, by the rule of the kernel's `dev_valid_name`.
pub fn interface_name(node: &Node) -> Result<String, Fault> {
    // IFNAMSIZ is 16, the terminating zero included.
    const MAX_INTERFACE_NAME: usize = 15;
    let text = text(node)?;
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if (1..=MAX_INTERFACE_NAME).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.contains(forbidden)
    {
        return Ok(text.to_owned());
    }
    Err(Fault::new(
        format!("{} cannot be a kernel interface's name", quote(text)),
        "use 1 to 15 bytes without spaces, `/` and `:`, as `ip link` shows it",
    ))
}

/// `true` or `false`.
pub fn boolean(node: &Node) -> Result<bool, Fault> {
    match text(node)? {
        "true" | "True" | "TRUE" => Ok(true),
        "false" | "False" | "FALSE" => Ok(false),
        other => {
            Err(Fault::new(format!("{} is neither true nor false", quote(other)), "write `true` or `false`"))
        }
    }
}

/// A decimal number from `LOW` to `HIGH`.
pub fn number<const LOW: u32, const HIGH: u32>(node: &Node) -> Result<u32, Fault> {
    let text = text(node)?;
    let remedy = format!("write a number from {LOW} to {HIGH}");
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Fault::new(format!("{} is not a whole number", quote(text)), remedy));
    }
    match text.parse() {
        Ok(number) if (LOW..=HIGH).contains(&number) => Ok(number),
        _ => Err(Fault::new(format!("{} is not from {LOW} to {HIGH}", quote(text)), remedy)),
    }
}

/// A number that fits 16 bits, of which the caller names the range.
pub fn number16<const LOW: u32, const HIGH: u32>(node: &Node) -> Result<u16, Fault> {
    let number = number::<LOW, HIGH>(node)?;
    u16::try_from(number).map_err(|_| Fault::new(format!("{number} is too large"), "write at most 65535"))
}

/// A number from 0 to 255.
pub fn number8(node: &Node) -> Result<u8, Fault> {
    let number = number::<0, 255>(node)?;
    u8::try_from(number).map_err(|_| Fault::new(format!("{number} is too large"), "write at most 255"))
}

/// The MAC of one station.
pub fn mac(node: &Node) -> Result<Mac, Fault> {
    const REMEDY: &str = "write six pairs of hex digits, like 02:00:00:00:01:0a";
    let text = text(node)?;
    let Some(mac) = parse_mac(text) else {
        return Err(Fault::new(format!("{} is not a MAC address", quote(text)), REMEDY));
    };
    let wrong = if mac.0 == [0xff; 6] {
        "is the broadcast address"
    } else if mac.0[0] & 1 == 1 {
        "is a multicast address"
    } else if mac.0 == [0; 6] {
        "is all zero"
    } else {
        return Ok(mac);
    };
    Err(Fault::new(format!("{mac} {wrong}"), "use a unicast address, like 02:00:00:00:01:0a"))
}

impl std::str::FromStr for Mac {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        parse_mac(text).ok_or(())
    }
}

fn parse_mac(text: &str) -> Option<Mac> {
    let mut bytes = [0; 6];
    let mut pairs = text.split([':', '-']);
    for byte in &mut bytes {
        let pair = pairs.next()?;
        if pair.len() != 2 || !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    pairs.next().is_none().then_some(Mac(bytes))
}

/// The address of one host.
pub fn host(node: &Node) -> Result<IpAddr, Fault> {
    let text = text(node)?;
    let Ok(address) = text.parse::<IpAddr>() else {
        let remedy = if text.contains('/') {
            "write the address without a prefix length"
        } else {
            "write an IPv4 or IPv6 address"
        };
        return Err(Fault::new(format!("{} is not an IP address", quote(text)), remedy));
    };
    match reserved(IpNet::from(address)) {
        Some(what) => {
            Err(Fault::new(format!("{address} is {what}"), "use a unicast address that can be routed"))
        }
        None => Ok(address),
    }
}

/// The IPv4 address of one host.
pub fn host4(node: &Node) -> Result<Ipv4Addr, Fault> {
    match host(node)? {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => {
            Err(Fault::new(format!("{address} is an IPv6 address"), "write an IPv4 address"))
        }
    }
}

/// A range as `ADDRESS/LENGTH`, or one address.
pub fn range(node: &Node) -> Result<IpNet, Fault> {
    let text = text(node)?;
    let range = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => parse_cidr(text)?,
    };
    if let IpNet::V6(v6) = range
        && let (Some(address), Some(length)) = (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96))
    {
        return Err(Fault::new(
            format!("{range} is of IPv4-mapped addresses, which never travel"),
            format!("write {address}/{length}"),
        ));
    }
    Ok(range)
}

/// A range that hosts may live in, as `ADDRESS/LENGTH`.
pub fn subnet_range(node: &Node) -> Result<IpNet, Fault> {
    let text = text(node)?;
    if let Ok(address) = text.parse::<IpAddr>() {
        let example = if address.is_ipv4() { 24 } else { 64 };
        return Err(Fault::new(
            format!("{address} has no prefix length"),
            format!("write the range, like {}", truncated(address, example)),
        ));
    }
    let cidr = parse_cidr(text)?;
    match reserved(cidr) {
        Some(what) => Err(Fault::new(
            format!("{cidr} is or holds {what}"),
            "use a range of unicast addresses that can be routed",
        )),
        None => Ok(cidr),
    }
}

fn parse_cidr(text: &str) -> Result<IpNet, Fault> {
    let Ok(cidr) = text.parse::<IpNet>() else {
        return Err(Fault::new(
            format!("{} is not an address range", quote(text)),
            "write ADDRESS/LENGTH, like 10.0.1.0/24 or fd00:1::/64",
        ));
    };
    if cidr.addr() != cidr.network() {
        let meant = cidr.trunc();
        return Err(Fault::new(
            format!("{cidr} has host bits set"),
            format!("write {meant} for the range, or {} for the one address", IpNet::from(cidr.addr())),
        ));
    }
    Ok(cidr)
}

/// The range of `length` that `address` lies in.
fn truncated(address: IpAddr, length: u8) -> String {
    IpNet::new(address, length).map_or_else(|_| address.to_string(), |net| net.trunc().to_string())
}

/// What a range overlaps that no workload, router or node may have.
fn reserved(range: IpNet) -> Option<&'static str> {
    let overlaps4 = |net: Ipv4Net, octet: u8, length: u8| {
        Ipv4Net::new(Ipv4Addr::new(octet, 0, 0, 0), length)
            .is_ok_and(|other| other.contains(&net) || net.contains(&other))
    };
    let overlaps6 = |net: Ipv6Net, segments: [u16; 8], length: u8| {
        Ipv6Net::new(segments.into(), length).is_ok_and(|other| other.contains(&net) || net.contains(&other))
    };
    match range {
        IpNet::V4(net) => [
            (0, 8, "of 0.0.0.0/8, which means no address"),
            (127, 8, "a loopback address"),
            (224, 4, "a multicast address"),
            (240, 4, "of 240.0.0.0/4, which is reserved"),
        ]
        .into_iter()
        .find_map(|(octet, length, what)| overlaps4(net, octet, length).then_some(what)),
        IpNet::V6(net) => [
            ([0; 8], 96, "of ::/96, which is unspecified or loopback"),
            ([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, "an IPv4-mapped address"),
            ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "a link-local address"),
            ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "a multicast address"),
        ]
        .into_iter()
        .find_map(|(segments, length, what)| overlaps6(net, segments, length).then_some(what)),
    }
}

/// `ingress` or `egress`.
pub fn direction(node: &Node) -> Result<Direction, Fault> {
    match text(node)? {
        "ingress" => Ok(Direction::Ingress),
        "egress" => Ok(Direction::Egress),
        other => Err(Fault::new(
            format!("{} is not a direction", quote(other)),
            "write `ingress` (to the port) or `egress` (from it)",
        )),
    }
}

/// `ipv4` or `ipv6`.
pub fn ethertype(node: &Node) -> Result<EtherFamily, Fault> {
    match text(node)? {
        "ipv4" | "IPv4" => Ok(EtherFamily::Ipv4),
        "ipv6" | "IPv6" => Ok(EtherFamily::Ipv6),
        other => Err(Fault::new(
            format!("{} is not an ethertype", quote(other)),
            "write `ipv4` or `ipv6`, or leave it out for both",
        )),
    }
}

/// `tc` or `xdp`.
pub fn hook(node: &Node) -> Result<Hook, Fault> {
    match text(node)? {
        "tc" => Ok(Hook::Tc),
        "xdp" => Ok(Hook::Xdp),
        other => Err(Fault::new(format!("{} is not a hook", quote(other)), "write `tc` or `xdp`")),
    }
}

/// A protocol by name or number; `None`: any.
pub fn protocol(node: &Node) -> Result<Option<u8>, Fault> {
    let text = text(node)?;
    Ok(match text {
        "any" => None,
        "icmp" => Some(1),
        "tcp" => Some(6),
        "udp" => Some(17),
        "icmpv6" | "ipv6-icmp" => Some(58),
        "sctp" => Some(132),
        _ => match text.parse::<u8>() {
            Ok(number) if text.bytes().all(|byte| byte.is_ascii_digit()) => Some(number),
            _ => {
                return Err(Fault::new(
                    format!("{} is not a protocol", quote(text)),
                    "write tcp, udp, icmp, icmpv6, sctp, any, or a number from 0 to 255",
                ));
            }
        },
    })
}

/// The protocol of a port forwarding.
pub fn forwarded_protocol(node: &Node) -> Result<u8, Fault> {
    match text(node)? {
        "tcp" | "6" => Ok(6),
        "udp" | "17" => Ok(17),
        other => {
            Err(Fault::new(format!("{} cannot be forwarded by port", quote(other)), "write `tcp` or `udp`"))
        }
    }
}

/// `80` or `80-443`.
pub fn port_range(node: &Node) -> Result<(u16, u16), Fault> {
    const REMEDY: &str = "write one port, like 80, or a range, like 80-443";
    let text = text(node)?;
    let port = |text: &str| {
        let text = text.trim();
        text.parse::<u16>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (port(low), port(high)) {
        (Some(low), Some(high)) if low > high => Err(Fault::new(
            format!("{low}-{high} is reversed"),
            format!("write the lower port first: {high}-{low}"),
        )),
        (Some(low), Some(high)) => Ok((low, high)),
        _ => Err(Fault::new(format!("{} is not a range of ports from 0 to 65535", quote(text)), REMEDY)),
    }
}
