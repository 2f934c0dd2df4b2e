//! `vrouter show acl`: the rules in force for the ports of this node, as they were compiled.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::Serialize;
use vrouter_common::{
    tables::*,
    wire::{PROTO_ICMP, PROTO_ICMPV6},
};

use super::{View, prefix};
use crate::{connections::row::protocol, output::table};

/// Members of a class that are named one by one.
const MEMBERS_SHOWN: usize = 8;

/// A port's rules.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Acl {
    port: String,
    /// Its security groups.
    groups: String,
    /// `false`: everything passes, both ways.
    port_security: bool,
    rules: Vec<AclRule>,
}

/// What is allowed; everything else is not.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct AclRule {
    direction: &'static str,
    family: &'static str,
    protocol: String,
    /// Destination ports, or ICMP types and codes. Empty: all.
    ports: Vec<String>,
    remote: String,
    /// Some of the addresses the remote is.
    members: Vec<String>,
    members_total: usize,
    rule: String,
    stateful: bool,
}

/// `ingress` or `egress`.
pub fn direction(key: &RuleKey) -> &'static str {
    if key.direction & RULE_INGRESS != 0 { "ingress" } else { "egress" }
}

/// `ipv4` or `ipv6`.
pub fn family(key: &RuleKey) -> &'static str {
    if key.direction & RULE_V6 != 0 { "ipv6" } else { "ipv4" }
}

/// The ports (ICMP: types and codes) an entry is for, first and last; `None`: all.
pub fn port_range(key: &RuleKey) -> Option<(u16, u16)> {
    let bits = key.prefix_len.checked_sub(RuleKey::PROTO_BITS).filter(|&bits| bits > 0)?.min(16);
    let others = u16::MAX.checked_shr(bits).unwrap_or(0);
    Some((key.port.get() & !others, key.port.get() | others))
}

/// The rules of the ports here, or of one.
pub fn acl(view: &View, name: Option<&str>) -> Result<Vec<Acl>> {
    let mut acls: Vec<_> = view
        .image
        .bindings
        .values()
        .map(|binding| (view.name(NAME_PORT, binding.port), binding))
        .filter(|(port, _)| name.is_none_or(|name| name == port))
        .map(|(port, binding)| Acl {
            port,
            groups: if binding.policy == 0 { String::new() } else { view.name(NAME_POLICY, binding.policy) },
            port_security: binding.flags & BINDING_NO_SECURITY == 0,
            rules: rules(view, binding.policy),
        })
        .collect();
    if let (Some(name), true) = (name, acls.is_empty()) {
        bail!("no port {name} is plugged in on this node; `vrouter show ports` says where ports are");
    }
    acls.sort_by(|a, b| a.port.cmp(&b.port));
    Ok(acls)
}

/// The trie's entries, put together again: a range of ports is several.
fn rules(view: &View, policy: u32) -> Vec<AclRule> {
    type Group = (u8, Option<u8>, u32, u32, u32);
    let mut groups: BTreeMap<Group, Vec<(u16, u16)>> = BTreeMap::new();
    for (key, rule) in view.image.rules.iter().filter(|(key, _)| key.policy.id() == policy) {
        let proto = (key.prefix_len >= RuleKey::PROTO_BITS).then_some(key.proto);
        let group = (key.direction, proto, key.class, rule.rule, rule.flags);
        groups.entry(group).or_default().extend(port_range(key));
    }
    let rules = groups.into_iter().map(|((direction_bits, proto, class, rule, flags), ranges)| {
        let key = RuleKey {
            prefix_len: 0,
            policy: Scoped::new(0, policy),
            class,
            direction: direction_bits,
            proto: proto.unwrap_or(0),
            port: Default::default(),
        };
        let (members, members_total) = members(view, class);
        AclRule {
            direction: direction(&key),
            family: family(&key),
            protocol: match proto {
                None => "any".to_owned(),
                Some(proto) => protocol(proto).map_or_else(|| proto.to_string(), str::to_owned),
            },
            ports: merged(ranges).into_iter().map(|range| range_text(proto, range)).collect(),
            remote: if class == 0 { "any".to_owned() } else { view.name(NAME_CLASS, class) },
            members,
            members_total,
            rule: view.name(NAME_RULE, rule),
            stateful: flags & RULE_STATEFUL != 0,
        }
    });
    rules.collect()
}

fn members(view: &View, class: u32) -> (Vec<String>, usize) {
    if class == 0 {
        return (Vec::new(), 0);
    }
    let prefixes = || view.image.classes.iter().filter(|&(_, &of)| of == class).map(|(key, _)| key);
    let shown = prefixes()
        .take(MEMBERS_SHOWN)
        .map(|key| prefix(key.ip, key.prefix_len.saturating_sub(ClassKey::FIXED_BITS)));
    (shown.collect(), prefixes().count())
}

fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn range_text(proto: Option<u8>, (first, last): (u16, u16)) -> String {
    if matches!(proto, Some(PROTO_ICMP | PROTO_ICMPV6)) {
        let ([from, code], [to, last_code]) = (first.to_be_bytes(), last.to_be_bytes());
        return match (from == to, code, last_code) {
            (true, 0, 255) => format!("type {from}"),
            (true, ..) if code == last_code => format!("type {from} code {code}"),
            (true, ..) => format!("type {from} codes {code}-{last_code}"),
            (false, ..) => format!("types {from}-{to}"),
        };
    }
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// For people.
pub fn for_people(acls: &[Acl]) -> String {
    let mut out = String::new();
    for acl in acls {
        let groups = match (acl.port_security, acl.groups.as_str()) {
            (false, _) => "port security is off: everything passes",
            (true, "") => "no security group: nothing passes",
            (true, groups) => groups,
        };
        out += &format!("port {}: {groups}\n", acl.port);
        if !acl.port_security || acl.rules.is_empty() {
            out += "\n";
            continue;
        }
        let rows = acl.rules.iter().map(|rule| {
            let remote = match (rule.members.len(), rule.members_total) {
                (_, 0) => rule.remote.clone(),
                (shown, total) if shown < total => {
                    format!("{} ({}, and {} more)", rule.remote, rule.members.join(" "), total - shown)
                }
                _ => format!("{} ({})", rule.remote, rule.members.join(" ")),
            };
            let ports = if rule.ports.is_empty() { "any".to_owned() } else { rule.ports.join(",") };
            [
                rule.direction.to_owned(),
                rule.family.to_owned(),
                rule.protocol.clone(),
                ports,
                remote,
                rule.rule.clone(),
                if rule.stateful { "stateful" } else { "stateless" }.to_owned(),
            ]
        });
        out += &table(["direction", "family", "protocol", "ports", "remote", "rule", "replies"], rows);
        out += "\n\n";
    }
    if out.is_empty() { "no port is plugged in on this node".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use vrouter_common::{
        addr::{Be16, Ip},
        memory::Image,
    };

    use super::*;
    use crate::identities::Identities;

    fn key(prefix_len: u32, class: u32, direction: u8, proto: u8, port: u16) -> RuleKey {
        RuleKey { prefix_len, policy: Scoped::new(0, 5), class, direction, proto, port: Be16::new(port) }
    }

    #[test]
    fn entries_of_the_trie_are_put_together_to_rules() {
        let mut image = Image::default();
        let binding = Binding { port: 1, network: 1, vni: 1, mtu: 1, mac: [0; 6], flags: 0, policy: 5 };
        image.bindings.insert(BindingKey { ifindex: Scoped::new(0, 7) }, binding);
        let stateful = |rule| Rule { rule, flags: RULE_STATEFUL };
        // 80-443, as prefixes.
        for (bits, port) in [
            (12, 80),
            (11, 96),
            (9, 128),
            (10, 256),
            (11, 320),
            (11, 352),
            (11, 384),
            (12, 416),
            (13, 432),
            (14, 440),
        ] {
            image.rules.insert(key(80 + bits, 0, RULE_INGRESS, 6, port), stateful(1));
        }
        image.rules.insert(key(88, 3, RULE_INGRESS | RULE_V6, PROTO_ICMPV6, 0x8000), stateful(2));
        image.rules.insert(key(96, 3, RULE_INGRESS, PROTO_ICMP, 0x0303), stateful(2));
        image.rules.insert(key(72, 0, 0, 0, 0), Rule { rule: 3, flags: 0 });
        image.rules.insert(RuleKey { policy: Scoped::new(0, 6), ..key(72, 0, 0, 0, 0) }, stateful(4));
        for last in 1..=10 {
            let ip = Ip::from(std::net::IpAddr::from([10, 0, 0, last]));
            image.classes.insert(ClassKey { prefix_len: 32 + 128, bank: Scoped::new(0, 0), ip }, 3);
        }
        let mut names = Identities::default();
        for (kind, id, name) in
            [(NAME_PORT, 1, "vm1"), (NAME_POLICY, 5, "web-sg"), (NAME_CLASS, 3, "group web-sg")]
        {
            names.put(kind, id, name);
        }
        let view = View { image, names };
        let acls = acl(&view, Some("vm1")).expect("rules");
        let said: Vec<_> = acls[0]
            .rules
            .iter()
            .map(|rule| {
                (
                    rule.direction,
                    rule.family,
                    rule.protocol.as_str(),
                    rule.ports.join(","),
                    rule.remote.as_str(),
                )
            })
            .collect();
        assert_eq!(
            said,
            [
                ("egress", "ipv4", "any", String::new(), "any"),
                ("ingress", "ipv4", "icmp", "type 3 code 3".to_owned(), "group web-sg"),
                ("ingress", "ipv4", "tcp", "80-443".to_owned(), "any"),
                ("ingress", "ipv6", "icmpv6", "type 128".to_owned(), "group web-sg"),
            ]
        );
        assert_eq!((acls[0].rules[1].members.len(), acls[0].rules[1].members_total), (MEMBERS_SHOWN, 10));
        assert!(!acls[0].rules[0].stateful && acls[0].rules[1].stateful);
        let text = for_people(&acls);
        assert!(text.contains("port vm1: web-sg") && text.contains("10.0.0.8/32, and 2 more"), "{text}");
        assert!(acl(&view, Some("vm2")).expect_err("no port").to_string().contains("no port vm2"));
    }
}
