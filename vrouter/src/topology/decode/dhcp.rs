//! What workloads are told by DHCP and router advertisements.

use std::{collections::HashSet, net::IpAddr};

use ipnet::IpNet;

use crate::topology::model::{DhcpOption, HostRoute, Ipv6Mode, LEASE_TIME};
use crate::topology::object::Object;
use crate::topology::scalar::{self, Fault, quote};
use crate::topology::yaml::Node;

const HOST_ROUTE_FIELDS: &[&str] = &["destination", "nexthop"];
const SUBNET_OPTION_FIELDS: &[&str] = &["name", "code", "value"];
const PORT_OPTION_FIELDS: &[&str] = &["name", "code", "value", "ip_version"];
/// What a subnet says of it.
const FIELDS: [&str; 5] = ["dhcp", "lease_time", "host_routes", "dhcp_options", "ipv6_mode"];

/// A client renews at half of it: shorter ones are noise. A year.
const LEASE_MIN: u32 = 60;
const LEASE_MAX: u32 = 31_536_000;
/// A DHCPv4 option's length is one byte.
const VALUE_MAX: usize = 255;
/// Host routes that fit an option of 255 bytes whatever their prefixes, beside the two the server adds.
const HOST_ROUTES_MAX: usize = 25;
/// SLAAC takes prefixes of this length alone (RFC 4862 with RFC 2464).
const SLAAC_PREFIX: u8 = 64;

/// How an option's value is written, and sent.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Text,
    /// One or more, separated by commas.
    Addresses,
    /// Domain names, separated by commas, sent as RFC 1035 has them.
    Domains,
    /// Four bytes.
    Number,
}

/// Options that go by a name, which are the names Neutron and dnsmasq have for them.
const NAMED_V4: [(&str, u16, Form); 16] = [
    ("time-offset", 2, Form::Number),
    ("time-server", 4, Form::Addresses),
    ("log-server", 7, Form::Addresses),
    ("hostname", 12, Form::Text),
    ("domain-name", 15, Form::Text),
    ("root-path", 17, Form::Text),
    ("nis-domain", 40, Form::Text),
    ("nis-server", 41, Form::Addresses),
    ("ntp-server", 42, Form::Addresses),
    ("netbios-ns", 44, Form::Addresses),
    ("tftp-server", 66, Form::Text),
    ("bootfile-name", 67, Form::Text),
    ("smtp-server", 69, Form::Addresses),
    ("domain-search", 119, Form::Domains),
    ("tftp-server-address", 150, Form::Addresses),
    ("wpad", 252, Form::Text),
];
const NAMED_V6: [(&str, u16, Form); 4] = [
    ("domain-search", 24, Form::Domains),
    ("sntp-server", 31, Form::Addresses),
    ("bootfile-url", 59, Form::Text),
    ("posix-timezone", 41, Form::Text),
];

/// What a subnet says.
pub struct Fields {
    pub dhcp: bool,
    pub lease_time: u32,
    pub host_routes: Vec<HostRoute>,
    pub dhcp_options: Vec<DhcpOption>,
    pub ipv6_mode: Option<Ipv6Mode>,
}

/// Reads it.
pub fn subnet(object: &mut Object<'_, '_>, cidr: IpNet) -> Fields {
    let ipv6 = cidr.addr().is_ipv6();
    let dhcp = object.optional("dhcp", scalar::boolean);
    let lease_time = object.optional("lease_time", scalar::number::<LEASE_MIN, LEASE_MAX>);
    let host_routes = object.children("host_routes", HOST_ROUTE_FIELDS, host_route);
    let ipv6_mode = object.optional("ipv6_mode", ipv6_mode);
    let dhcp_options = options(object, Some(ipv6));
    if ipv6 && !host_routes.is_empty() {
        object.about("host_routes", |object| {
            let remedy = "leave them out: over IPv6 routers are advertised, and DHCP tells no routes";
            object.problem(object.line("host_routes"), "host_routes are told over IPv4 alone", remedy);
        });
    }
    if host_routes.len() > HOST_ROUTES_MAX {
        object.about("host_routes", |object| {
            let message = format!("{} host_routes do not fit a DHCP option", host_routes.len());
            let remedy = format!("write at most {HOST_ROUTES_MAX}; more belong to the router");
            object.problem(object.line("host_routes"), message, remedy);
        });
    }
    let mut destinations = HashSet::new();
    for route in &host_routes {
        if !destinations.insert(route.destination) {
            object.about("host_routes", |object| {
                object.problem(
                    route.line,
                    format!("{} is given twice", route.destination),
                    "keep one of the two: a workload follows one route to a destination",
                );
            });
        }
    }
    for route in host_routes.iter().filter(|route| !ipv6 && !cidr.contains(&IpAddr::V4(route.nexthop))) {
        object.about("host_routes", |object| {
            let message =
                format!("the next hop {} of {} is outside {cidr}", route.nexthop, route.destination);
            object.problem(route.line, message, "use an address that workloads reach on the subnet itself");
        });
    }
    if !ipv6 && ipv6_mode.is_some() {
        object.about("ipv6_mode", |object| {
            let message = format!("ipv6_mode is given, and {cidr} is IPv4");
            object.problem(
                object.line("ipv6_mode"),
                message,
                "leave it out, or write `dhcp: true` or `false`",
            );
        });
    }
    // Of a mode that could not be read nothing is said.
    let is_asked = matches!(ipv6_mode, Some(Ipv6Mode::Stateful | Ipv6Mode::Stateless));
    if ipv6
        && !dhcp_options.is_empty()
        && !is_asked
        && ipv6_mode.is_some() == object.value("ipv6_mode").is_some()
    {
        object.about("dhcp_options", |object| {
            let message = match ipv6_mode {
                Some(_) => "dhcp_options are given, and with slaac nobody asks for them",
                None => "dhcp_options are given, and without ipv6_mode nobody answers DHCP",
            };
            let remedy = "write `ipv6_mode: dhcpv6-stateless` or `dhcpv6-stateful`, or leave them out";
            object.problem(object.line("dhcp_options"), message, remedy);
        });
    }
    if ipv6 && dhcp == Some(true) && ipv6_mode.is_none() {
        object.about("dhcp", |object| {
            let remedy = "write `ipv6_mode: slaac`, `dhcpv6-stateful` or `dhcpv6-stateless`";
            object.problem(object.line("dhcp"), "dhcp alone does not say how, over IPv6", remedy);
        });
    }
    if ipv6 && dhcp == Some(false) && ipv6_mode.is_some() {
        object.about("dhcp", |object| {
            object.problem(
                object.line("dhcp"),
                "dhcp is false, and ipv6_mode is given",
                "keep one of the two",
            );
        });
    }
    if let (Some(mode @ (Ipv6Mode::Slaac | Ipv6Mode::Stateless)), true) = (ipv6_mode, ipv6)
        && cidr.prefix_len() != SLAAC_PREFIX
    {
        object.about("ipv6_mode", |object| {
            let mode = if mode == Ipv6Mode::Slaac { "slaac" } else { "dhcpv6-stateless" };
            let message = format!("{mode} needs a /{SLAAC_PREFIX}, and {cidr} is none");
            let remedy = format!("use a /{SLAAC_PREFIX}, or `ipv6_mode: dhcpv6-stateful`");
            object.problem(object.line("ipv6_mode"), message, remedy);
        });
    }
    Fields {
        dhcp: dhcp.unwrap_or(true),
        lease_time: lease_time.unwrap_or(LEASE_TIME),
        host_routes,
        dhcp_options,
        ipv6_mode,
    }
}

/// Outside, others are asked.
pub fn refuse_outside(object: &mut Object<'_, '_>) {
    for field in FIELDS {
        if object.value(field).is_some() && !(field == "dhcp" && is_false(object, field)) {
            object.about(field, |object| {
                let message = format!("{field} is given on an external network, which has no ports");
                object.problem(object.line(field), message, "leave it out");
            });
        }
    }
}

fn is_false(object: &Object<'_, '_>, field: &str) -> bool {
    object.value(field).is_some_and(|node| scalar::boolean(node).is_ok_and(|value| !value))
}

fn ipv6_mode(node: &Node) -> Result<Ipv6Mode, Fault> {
    Ok(match scalar::text(node)? {
        "slaac" => Ipv6Mode::Slaac,
        "dhcpv6-stateful" => Ipv6Mode::Stateful,
        "dhcpv6-stateless" => Ipv6Mode::Stateless,
        other => {
            let remedy = "write `slaac`, `dhcpv6-stateful` or `dhcpv6-stateless`";
            return Err(Fault::new(format!("{} is no such mode", quote(other)), remedy));
        }
    })
}

fn host_route(object: &mut Object<'_, '_>) -> Option<HostRoute> {
    let destination = object.required("destination", scalar::range);
    let nexthop = object.required("nexthop", scalar::host);
    let line = object.node.line;
    match (destination?, nexthop?) {
        (IpNet::V4(destination), IpAddr::V4(nexthop)) if destination.prefix_len() > 0 => {
            Some(HostRoute { destination, nexthop, line })
        }
        (IpNet::V4(_), IpAddr::V4(_)) => {
            object.problem(line, "is a default route", "write it as the subnet's `gateway`");
            None
        }
        _ => {
            object.problem(line, "is not IPv4", "leave it out: over IPv6 DHCP tells no routes");
            None
        }
    }
}

/// Reads options: a subnet's, of the subnet's family, or a port's.
pub fn options(object: &mut Object<'_, '_>, ipv6: Option<bool>) -> Vec<DhcpOption> {
    let known = if ipv6.is_some() { SUBNET_OPTION_FIELDS } else { PORT_OPTION_FIELDS };
    let options = object.children("dhcp_options", known, |child| option(child, ipv6));
    let mut seen = HashSet::new();
    for option in &options {
        if !seen.insert((option.ipv6, option.code)) {
            object.about("dhcp_options", |object| {
                let message = format!("DHCP option {} is given twice", option.code);
                object.problem(option.line, message, "keep one of the two");
            });
        }
    }
    options
}

fn option(object: &mut Object<'_, '_>, ipv6: Option<bool>) -> Option<DhcpOption> {
    let version = object.optional("ip_version", scalar::number::<4, 6>);
    if version == Some(5) {
        object.problem(object.line("ip_version"), "ip_version is 5", "write 4 or 6");
        return None;
    }
    let ipv6 = ipv6.unwrap_or(version == Some(6));
    let named: &[_] = if ipv6 { &NAMED_V6 } else { &NAMED_V4 };
    let name = object.optional("name", scalar::text);
    let code = object.optional("code", scalar::number16::<1, 65535>);
    let line = object.node.line;
    let (code, form) = match (name, code) {
        (Some(name), None) => match named.iter().find(|(known, ..)| *known == name) {
            Some((_, code, form)) => (*code, Some(*form)),
            None => {
                let known: Vec<_> = named.iter().map(|(known, ..)| *known).collect();
                let remedy = format!("use one of {}, or `code: …` and `value: hex:…`", known.join(", "));
                object.problem(line, format!("{} is no DHCP option known by name", quote(name)), remedy);
                return None;
            }
        },
        (None, Some(code)) => {
            (code, named.iter().find(|(_, known, _)| *known == code).map(|(.., form)| *form))
        }
        _ => {
            object.problem(line, "needs either a name or a code", "write `name: ntp-server` or `code: 42`");
            return None;
        }
    };
    if let Some(remedy) = computed(code, ipv6) {
        object.problem(line, format!("DHCP option {code} is the server's own"), remedy);
        return None;
    }
    if !ipv6 && code > 254 {
        object.problem(
            line,
            format!("there is no DHCP option {code} over IPv4"),
            "write a code from 1 to 254",
        );
        return None;
    }
    let value = object.required("value", |node| value(node, form, ipv6))?;
    Some(DhcpOption { code, ipv6, value, line })
}

/// What to do instead, for options that follow from the rest of the topology or from the protocol itself: told
/// otherwise, a workload would be told what is not so.
fn computed(code: u16, ipv6: bool) -> Option<&'static str> {
    if ipv6 {
        return match code {
            1..=9 | 11..=20 | 25 | 26 | 32 | 39 => Some("leave it out"),
            23 => Some("write the subnet's `dns`"),
            _ => None,
        };
    }
    match code {
        1 | 28 => Some("it follows from the subnet's `cidr`"),
        3 => Some("write the subnet's `gateway`"),
        6 => Some("write the subnet's `dns`"),
        26 => Some("write the network's `mtu`"),
        33 | 121 | 249 => Some("write the subnet's `host_routes`"),
        51 | 58 | 59 => Some("write the subnet's `lease_time`"),
        50 | 52..=57 | 61 | 82 | 255 => Some("leave it out"),
        _ => None,
    }
}

fn value(node: &Node, form: Option<Form>, ipv6: bool) -> Result<Vec<u8>, Fault> {
    let text = scalar::text(node)?;
    let bytes = match (text.strip_prefix("hex:"), form) {
        (Some(digits), _) => hex(digits)?,
        (None, None) => {
            return Err(Fault::new(
                format!("{} is for an option of unknown form", quote(text)),
                "write its bytes as `hex:0a0b0c`",
            ));
        }
        (None, Some(Form::Text)) => printable(text)?.as_bytes().to_vec(),
        (None, Some(Form::Number)) => number(text)?,
        (None, Some(Form::Addresses)) => addresses(text, ipv6)?,
        (None, Some(Form::Domains)) => domains(text)?,
    };
    match bytes.len() {
        0 => Err(Fault::new("is empty", "write what is to be sent")),
        1..=VALUE_MAX => Ok(bytes),
        len => Err(Fault::new(format!("takes {len} bytes"), format!("write at most {VALUE_MAX}"))),
    }
}

fn hex(digits: &str) -> Result<Vec<u8>, Fault> {
    let digits: Vec<char> = digits.chars().filter(|c| *c != ':').collect();
    let byte = |pair: &[char]| Some((pair.first()?.to_digit(16)? << 4 | pair.get(1)?.to_digit(16)?) as u8);
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    bytes.ok_or_else(|| Fault::new("is not a whole number of hexadecimal bytes", "write it as `hex:0a0b0c`"))
}

fn printable(text: &str) -> Result<&str, Fault> {
    if text.chars().any(char::is_control) {
        return Err(Fault::new("holds a control character", "write its bytes as `hex:…`"));
    }
    Ok(text)
}

fn number(text: &str) -> Result<Vec<u8>, Fault> {
    let number: i32 = text.parse().map_err(|_| {
        Fault::new(format!("{} is not a whole number", quote(text)), "write a number of seconds")
    })?;
    Ok(number.to_be_bytes().to_vec())
}

fn addresses(text: &str, ipv6: bool) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    for word in text.split(',').map(str::trim) {
        match word.parse() {
            Ok(IpAddr::V4(address)) if !ipv6 => bytes.extend(address.octets()),
            Ok(IpAddr::V6(address)) if ipv6 => bytes.extend(address.octets()),
            _ => {
                let family = if ipv6 { "an IPv6" } else { "an IPv4" };
                let remedy = "write addresses, separated by commas";
                return Err(Fault::new(format!("{} is not {family} address", quote(word)), remedy));
            }
        }
    }
    Ok(bytes)
}

/// Each name as RFC 1035, 3.1 has it, without compression.
fn domains(text: &str) -> Result<Vec<u8>, Fault> {
    const LABEL_MAX: usize = 63;
    let mut bytes = Vec::new();
    for domain in text.split(',').map(str::trim) {
        for label in domain.trim_end_matches('.').split('.') {
            let is_plain = label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_');
            if label.is_empty() || label.len() > LABEL_MAX || !is_plain {
                let remedy = "write domains like `example.org`, separated by commas";
                return Err(Fault::new(format!("{} is not a domain's name", quote(domain)), remedy));
            }
            bytes.push(label.len() as u8);
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
    }
    Ok(bytes)
}
