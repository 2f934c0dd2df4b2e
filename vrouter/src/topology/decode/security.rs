//! Security groups with their rules, and address groups.

use ipnet::IpNet;

use crate::topology::model::{AddressGroup, EtherFamily, Remote, Rule, SecurityGroup};
use crate::topology::object::Object;
use crate::topology::scalar;

pub const GROUP_FIELDS: &[&str] = &["name", "stateful", "rules"];
pub const ADDRESS_GROUP_FIELDS: &[&str] = &["name", "addresses"];
const RULE_FIELDS: &[&str] = &[
    "direction",
    "protocol",
    "ports",
    "icmp_type",
    "icmp_code",
    "ethertype",
    "remote",
    "remote_group",
    "remote_address_group",
];

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// TCP, UDP, SCTP.
const WITH_PORTS: [u8; 3] = [6, 17, 132];

pub fn group(object: &mut Object<'_, '_>) -> Option<SecurityGroup> {
    let name = object.required("name", scalar::name);
    let stateful = object.optional("stateful", scalar::boolean).unwrap_or(true);
    let rules = object.children("rules", RULE_FIELDS, rule);
    Some(SecurityGroup { name: name?, stateful, rules, line: object.node.line })
}

pub fn address_group(object: &mut Object<'_, '_>) -> Option<AddressGroup> {
    let name = object.required("name", scalar::name);
    let addresses = object.list("addresses", scalar::range);
    Some(AddressGroup { name: name?, addresses, line: object.node.line })
}

fn rule(object: &mut Object<'_, '_>) -> Option<Rule> {
    let direction = object.required("direction", scalar::direction);
    let protocol = object.optional("protocol", scalar::protocol);
    let ethertype = object.optional("ethertype", scalar::ethertype);
    let remote = remote(object);
    let port_range = object.optional("ports", scalar::port_range);
    let icmp_type = object.optional("icmp_type", scalar::number8);
    let icmp_code = object.optional("icmp_code", scalar::number8);
    // Below, fields are compared with each other: one that could not be read would be blamed twice.
    if !object.is_sound() {
        return None;
    }
    let protocol = family_protocol(object, protocol.flatten(), ethertype, remote.as_ref());
    let ports = match icmp_type {
        Some(icmp_type) => Some((u16::from(icmp_type), u16::from(icmp_type))),
        None => port_range,
    };
    check_ports(object, protocol);
    Some(Rule {
        direction: direction?,
        protocol,
        ports,
        icmp_code,
        ethertype,
        remote,
        line: object.node.line,
    })
}

fn remote(object: &mut Object<'_, '_>) -> Option<Remote> {
    const REMOTES: [&str; 3] = ["remote", "remote_group", "remote_address_group"];
    let given: Vec<&str> = REMOTES.into_iter().filter(|key| object.value(key).is_some()).collect();
    if let [first, second, ..] = given[..] {
        let message = format!("{first} and {second} are both given");
        object.problem(object.line(second), message, "keep one of them, and write a rule for each other");
        return None;
    }
    let cidr = object.optional("remote", scalar::range).map(Remote::Cidr);
    let group = object.optional("remote_group", scalar::name).map(Remote::Group);
    let addresses = object.optional("remote_address_group", scalar::name).map(Remote::AddressGroup);
    cidr.or(group).or(addresses)
}

/// Checks that protocol, ethertype and remote are of one family. `icmp` in an IPv6 rule is ICMPv6.
fn family_protocol(
    object: &mut Object<'_, '_>,
    protocol: Option<u8>,
    ethertype: Option<EtherFamily>,
    remote: Option<&Remote>,
) -> Option<u8> {
    let remote_family = match remote {
        Some(Remote::Cidr(IpNet::V4(_))) => Some(EtherFamily::Ipv4),
        Some(Remote::Cidr(IpNet::V6(_))) => Some(EtherFamily::Ipv6),
        _ => None,
    };
    if let (Some(ethertype), Some(remote_family)) = (ethertype, remote_family)
        && ethertype != remote_family
    {
        let (says, is) = (family_name(ethertype), family_name(remote_family));
        object.problem(
            object.line("ethertype"),
            format!("the ethertype is {says} and the remote is {is}"),
            format!("write `ethertype: {is}`, or an {says} range"),
        );
        return protocol;
    }
    match (protocol, ethertype.or(remote_family)) {
        (Some(ICMP), Some(EtherFamily::Ipv6)) => Some(ICMPV6),
        (Some(ICMPV6), Some(EtherFamily::Ipv4)) => {
            object.problem(
                object.line("protocol"),
                "the protocol is ICMPv6 in a rule for IPv4",
                "write `protocol: icmp`, or an IPv6 remote",
            );
            protocol
        }
        _ => protocol,
    }
}

fn check_ports(object: &mut Object<'_, '_>, protocol: Option<u8>) {
    let is_icmp = matches!(protocol, Some(ICMP | ICMPV6));
    let has_ports = protocol.is_some_and(|protocol| WITH_PORTS.contains(&protocol));
    if let Some(ports) = object.value("ports")
        && !has_ports
    {
        let remedy = if is_icmp {
            "write `icmp_type` and `icmp_code` instead"
        } else {
            "write `protocol: tcp`, `udp` or `sctp`, or leave the ports out"
        };
        object.problem(ports.line, "ports are given for a protocol without ports", remedy);
        return;
    }
    let icmp_field = object.value("icmp_type").or_else(|| object.value("icmp_code"));
    if let Some(field) = icmp_field
        && !is_icmp
    {
        let remedy = "write `protocol: icmp` or `icmpv6`, or leave type and code out";
        object.problem(field.line, "an ICMP type or code is given for another protocol", remedy);
    } else if let Some(code) = object.value("icmp_code")
        && object.value("icmp_type").is_none()
    {
        object.problem(code.line, "icmp_code is given without icmp_type", "add `icmp_type: …`");
    }
}

fn family_name(family: EtherFamily) -> &'static str {
    match family {
        EtherFamily::Ipv4 => "ipv4",
        EtherFamily::Ipv6 => "ipv6",
    }
}
