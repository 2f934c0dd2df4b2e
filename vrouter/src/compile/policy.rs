//! Security groups into two tries: which set of remotes an address is in (its class), and what each set of
//! groups (a policy) allows from or to each class.
//!
//! Addresses are partitioned by the remotes that rules name: for every prefix of any remote the class is the
//! set of all remotes that hold it. So a packet asks for the class of one address, and then for the class's
//! rules and for those that hold for any remote, however many groups, members and rules there are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Result, anyhow};
use ipnet::IpNet;
use vrouter_common::{
    addr::{Be16, Ip},
    tables::*,
    wire::{PROTO_ICMP, PROTO_ICMPV6},
};

use super::Compiler;
use crate::topology::{
    digest128,
    model::{self, Direction, EtherFamily, Port, Remote, SecurityGroup, Topology},
};

/// What a bank of the rules' map holds.
const ENTRIES_MAX: usize = 1 << 21;
/// Longer names are cut, or replaced by a digest: the names map holds 255 bytes.
const NAME_MAX: usize = 200;
/// Bits of [`Expanded::families`] and [`Class::families`].
const V4: u8 = 1;
const V6: u8 = 2;

/// The policies of this node's ports.
#[derive(Default)]
pub(super) struct Policies<'a> {
    /// Policy numbers by sorted group names.
    numbers: BTreeMap<Vec<&'a str>, u32>,
}

/// A rule as entries of the trie, without policy and class.
struct Expanded {
    number: u32,
    stateful: bool,
    ingress: bool,
    families: u8,
    /// `None`: any.
    remote: Option<usize>,
    matches: Vec<Match>,
}

/// Protocol, port and how many bits of both count, as [`RuleKey::prefix_len`] counts them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Match {
    bits: u32,
    proto: u8,
    port: u16,
}

impl<'a> Compiler<'a> {
    /// The policy of a port of this node: 0 if no group is to be asked.
    pub(super) fn policy(&mut self, port: &'a Port) -> Result<u32> {
        if !port.port_security || port.security_groups.is_empty() {
            return Ok(0);
        }
        let groups: BTreeSet<&str> = port.security_groups.iter().map(String::as_str).collect();
        let groups: Vec<&str> = groups.into_iter().collect();
        if let Some(&number) = self.policies.numbers.get(&groups) {
            return Ok(number);
        }
        let number = self.id(NAME_POLICY, &set_name(&groups))?;
        self.policies.numbers.insert(groups, number);
        Ok(number)
    }

    /// Compiles the rules of all policies that were asked for.
    pub(super) fn rules(&mut self) -> Result<()> {
        let policies = std::mem::take(&mut self.policies).numbers;
        let topology = self.topology;
        let by_name: HashMap<&str, &SecurityGroup> =
            topology.security_groups.iter().map(|group| (group.name.as_str(), group)).collect();
        let mut remotes = Remotes::default();
        // In the order of names, so that of two rules that say the same the same one is named everywhere.
        let mut rules = Vec::new();
        let mut rules_of: HashMap<&str, std::ops::Range<usize>> = HashMap::new();
        let groups: BTreeSet<&str> = policies.keys().flatten().copied().collect();
        for name in groups {
            let Some(group) = by_name.get(name) else { continue };
            let first = rules.len();
            for (position, rule) in group.rules.iter().enumerate() {
                let number = self.id(NAME_RULE, &rule_name(name, position))?;
                rules.push(Expanded::new(rule, number, group.stateful, &mut remotes));
            }
            rules_of.insert(name, first..rules.len());
        }
        // Policies and their rules by remote.
        let mut by_remote: Vec<BTreeMap<u32, Vec<usize>>> = vec![BTreeMap::new(); remotes.all.len()];
        for (groups, &policy) in &policies {
            let mut any = Vec::new();
            for rule in groups.iter().filter_map(|name| rules_of.get(name)).cloned().flatten() {
                match rules[rule].remote {
                    None => any.push(rule),
                    Some(remote) => by_remote[remote].entry(policy).or_default().push(rule),
                }
            }
            self.rules_of_class(policy, 0, V4 | V6, any.iter().map(|&rule| &rules[rule]))?;
        }
        for Class { number: class, set, families } in self.classes(&remotes)? {
            let mut of_policy: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
            for (&policy, rules) in set.iter().flat_map(|&remote| &by_remote[remote]) {
                of_policy.entry(policy).or_default().extend(rules);
            }
            for (policy, mut of_class) in of_policy {
                of_class.sort_unstable();
                self.rules_of_class(policy, class, families, of_class.iter().map(|&rule| &rules[rule]))?;
            }
        }
        Ok(())
    }

    /// Writes what a policy allows for a class.
    fn rules_of_class<'r>(
        &mut self,
        policy: u32,
        class: u32,
        families: u8,
        rules: impl Iterator<Item = &'r Expanded>,
    ) -> Result<()> {
        let mut entries: HashMap<(u8, Match), Rule> = HashMap::new();
        let (mut any_stateful, mut any_stateless) = (false, false);
        for rule in rules {
            any_stateful |= rule.stateful;
            any_stateless |= !rule.stateful;
            let flags = if rule.stateful { RULE_STATEFUL } else { 0 };
            for (family, bit) in [(V4, 0), (V6, RULE_V6)] {
                if families & rule.families & family == 0 {
                    continue;
                }
                let direction = bit | if rule.ingress { RULE_INGRESS } else { 0 };
                for &matched in &rule.matches {
                    let new = Rule { rule: rule.number, flags: 0 };
                    entries.entry((direction, matched)).or_insert(new).flags |= flags;
                }
            }
        }
        if self.out.image.rules.len() + entries.len() > ENTRIES_MAX {
            return Err(too_many());
        }
        // The trie returns the longest match alone: if a shorter one is stateful, so is it.
        let mixed = any_stateful && any_stateless;
        for (&(direction, matched), &rule) in &entries {
            let covering = || {
                matched
                    .covering()
                    .filter_map(|shorter| entries.get(&(direction, shorter)))
                    .map(|rule| rule.flags)
            };
            let flags =
                if mixed { covering().fold(rule.flags, |flags, more| flags | more) } else { rule.flags };
            let key = RuleKey {
                prefix_len: matched.bits,
                policy: Scoped::new(0, policy),
                class,
                direction,
                proto: matched.proto,
                port: Be16::new(matched.port),
            };
            self.out.image.rules.insert(key, Rule { flags, ..rule });
        }
        Ok(())
    }

    /// Writes the classes of all prefixes; returns the classes.
    fn classes(&mut self, remotes: &Remotes<'_>) -> Result<Vec<Class>> {
        let mut prefixes = remotes.prefixes(self.topology);
        prefixes.sort_unstable();
        let mut sets = Sets::default();
        // The prefixes around the one at hand, with their sets.
        let mut around: Vec<(Prefix, usize)> = Vec::new();
        let mut outside_v4 = 0;
        let mut entries: Vec<(Prefix, usize)> = Vec::new();
        for same in prefixes.chunk_by(|(a, _), (b, _)| a == b) {
            let prefix = same[0].0;
            while around.last().is_some_and(|(outer, _)| !outer.holds(&prefix)) {
                around.pop();
            }
            let parent = around.last().map_or(0, |&(_, set)| set);
            let set = sets.with(parent, same.iter().map(|&(_, remote)| remote));
            // Every remote in a set has a rule, or several: it would end there.
            if sets.members > ENTRIES_MAX {
                return Err(too_many());
            }
            if set != parent {
                entries.push((prefix, set));
            }
            if prefix.holds_v4() {
                outside_v4 = set;
            }
            around.push((prefix, set));
        }
        // IPv4 lies inside of IPv6's space, but is in no IPv6 prefix.
        if outside_v4 != 0 && !entries.iter().any(|(prefix, _)| *prefix == Prefix::ALL_V4) {
            entries.push((Prefix::ALL_V4, 0));
        }
        let mut numbers = vec![None; sets.all.len()];
        numbers[0] = Some(0);
        let mut families = vec![0; sets.all.len()];
        for (prefix, set) in entries {
            let class = match numbers[set] {
                Some(class) => class,
                None => {
                    let labels = sets.all[set].iter().map(|&remote| remotes.all[remote].label.as_str());
                    let labels: BTreeSet<&str> = labels.collect();
                    let labels: Vec<&str> = labels.into_iter().collect();
                    *numbers[set].insert(self.id(NAME_CLASS, &set_name(&labels))?)
                }
            };
            families[set] |= if prefix.v6 { V6 } else { V4 };
            self.out.image.classes.insert(prefix.key(), class);
        }
        let all = sets.all.into_iter().zip(families).zip(numbers).skip(1);
        Ok(all
            .filter_map(|((set, families), number)| Some(Class { number: number?, set, families }))
            .collect())
    }
}

/// A class that some prefix has.
struct Class {
    number: u32,
    /// Its remotes.
    set: Vec<usize>,
    /// Of its prefixes.
    families: u8,
}

impl Expanded {
    fn new<'a>(rule: &'a model::Rule, number: u32, stateful: bool, remotes: &mut Remotes<'a>) -> Self {
        let remote = match &rule.remote {
            None => None,
            Some(Remote::Cidr(cidr)) if cidr.prefix_len() == 0 => None,
            Some(remote) => Some(remotes.number(remote)),
        };
        Self {
            number,
            stateful,
            ingress: rule.direction == Direction::Ingress,
            families: families(rule),
            remote,
            matches: matches(rule),
        }
    }
}

/// The families a rule is for: what it says, and otherwise what its remote or its protocol is of.
fn families(rule: &model::Rule) -> u8 {
    match (rule.ethertype, &rule.remote, rule.protocol) {
        (Some(EtherFamily::Ipv4), _, _) => V4,
        (Some(EtherFamily::Ipv6), _, _) => V6,
        (None, Some(Remote::Cidr(IpNet::V4(_))), _) => V4,
        (None, Some(Remote::Cidr(IpNet::V6(_))), _) => V6,
        (None, _, Some(PROTO_ICMP)) => V4,
        (None, _, Some(PROTO_ICMPV6)) => V6,
        _ => V4 | V6,
    }
}

/// What a rule allows by protocol and ports.
fn matches(rule: &model::Rule) -> Vec<Match> {
    let Some(proto) = rule.protocol else {
        return vec![Match { bits: RuleKey::ANY_BITS, proto: 0, port: 0 }];
    };
    let exactly = |bits, port| Match { bits: RuleKey::PROTO_BITS + bits, proto, port };
    match (rule.ports, rule.icmp_code) {
        (None, _) => vec![exactly(0, 0)],
        // Type and code are two bytes in the port's place.
        (Some((kind, _)), Some(code)) if is_icmp(proto) => vec![exactly(16, kind << 8 | u16::from(code))],
        (Some((kind, _)), None) if is_icmp(proto) => vec![exactly(8, kind << 8)],
        (Some((low, high)), _) => {
            port_prefixes(low, high).into_iter().map(|(port, bits)| exactly(bits, port)).collect()
        }
    }
}

fn is_icmp(proto: u8) -> bool {
    matches!(proto, PROTO_ICMP | PROTO_ICMPV6)
}

/// The fewest prefixes (with their lengths) that make up a range of ports: at most 30.
fn port_prefixes(low: u16, high: u16) -> Vec<(u16, u32)> {
    let mut prefixes = Vec::new();
    let mut next = u32::from(low);
    let end = u32::from(high) + 1;
    while next < end {
        let aligned = if next == 0 { 16 } else { next.trailing_zeros().min(16) };
        let fits = (end - next).ilog2();
        let size = aligned.min(fits);
        prefixes.push((next as u16, 16 - size));
        next += 1 << size;
    }
    prefixes
}

impl Match {
    /// The shorter matches that hold this one.
    fn covering(self) -> impl Iterator<Item = Self> {
        let any =
            (self.bits > RuleKey::ANY_BITS).then_some(Self { bits: RuleKey::ANY_BITS, proto: 0, port: 0 });
        let shorter = (RuleKey::PROTO_BITS..self.bits).map(move |bits| {
            let mask = (u32::from(u16::MAX) << (RuleKey::ALL_BITS - bits)) as u16;
            Self { bits, proto: self.proto, port: self.port & mask }
        });
        any.into_iter().chain(shorter)
    }
}

/// What rules name as the other end.
#[derive(Default)]
struct Remotes<'a> {
    all: Vec<Named<'a>>,
    numbers: HashMap<String, usize>,
}

struct Named<'a> {
    label: String,
    remote: &'a Remote,
}

impl<'a> Remotes<'a> {
    fn number(&mut self, remote: &'a Remote) -> usize {
        let label = match remote {
            Remote::Cidr(cidr) => format!("cidr:{cidr}"),
            Remote::Group(name) => format!("group:{name}"),
            Remote::AddressGroup(name) => format!("addresses:{name}"),
        };
        *self.numbers.entry(label.clone()).or_insert_with(|| {
            self.all.push(Named { label, remote });
            self.all.len() - 1
        })
    }

    /// Every prefix with the remote it belongs to.
    fn prefixes(&self, topology: &Topology) -> Vec<(Prefix, usize)> {
        let mut prefixes = Vec::new();
        let mut groups: HashMap<&str, usize> = HashMap::new();
        let mut address_groups: HashMap<&str, usize> = HashMap::new();
        for (number, named) in self.all.iter().enumerate() {
            match named.remote {
                Remote::Cidr(cidr) => prefixes.push((Prefix::from(*cidr), number)),
                Remote::Group(name) => {
                    groups.insert(name, number);
                }
                Remote::AddressGroup(name) => {
                    address_groups.insert(name, number);
                }
            }
        }
        for group in &topology.address_groups {
            let Some(&number) = address_groups.get(group.name.as_str()) else { continue };
            prefixes.extend(group.addresses.iter().map(|&net| (Prefix::from(net), number)));
        }
        if !groups.is_empty() {
            for port in topology.ports.iter().filter(|port| port.port_security) {
                for number in port.security_groups.iter().filter_map(|group| groups.get(group.as_str())) {
                    let pairs = port.allowed_address_pairs.iter().map(|pair| pair.ip);
                    let addresses = port.fixed_ips.iter().copied().map(IpNet::from).chain(pairs);
                    prefixes.extend(addresses.map(|net| (Prefix::from(net), *number)));
                }
            }
        }
        // An IPv6 prefix of IPv4-mapped addresses holds nothing that travels on a wire.
        prefixes.retain(|(prefix, _)| !(prefix.v6 && prefix.len >= 96 && Prefix::ALL_V4.holds_bits(prefix)));
        prefixes
    }
}

/// A prefix in the space that holds IPv4 as mapped addresses. In the order of the tree: a prefix comes right
/// before those inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix {
    v6: bool,
    bits: u128,
    len: u32,
}

impl Prefix {
    const ALL_V4: Self = Self { v6: false, bits: 0xffff_0000_0000, len: 96 };

    fn holds_bits(&self, other: &Self) -> bool {
        self.len <= other.len && (self.len == 0 || (self.bits ^ other.bits) >> (128 - self.len) == 0)
    }

    fn holds(&self, other: &Self) -> bool {
        self.v6 == other.v6 && self.holds_bits(other)
    }

    /// Whether it is an IPv6 prefix around all of IPv4.
    fn holds_v4(&self) -> bool {
        self.v6 && self.holds_bits(&Self::ALL_V4)
    }

    fn key(&self) -> ClassKey {
        let ip = if self.v6 {
            IpAddr::V6(Ipv6Addr::from_bits(self.bits))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits(self.bits as u32))
        };
        ClassKey { prefix_len: ClassKey::FIXED_BITS + self.len, bank: Scoped::new(0, 0), ip: Ip::from(ip) }
    }
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Self {
        match net {
            IpNet::V4(net) => Self {
                v6: false,
                bits: Self::ALL_V4.bits | u128::from(net.network().to_bits()),
                len: 96 + u32::from(net.prefix_len()),
            },
            IpNet::V6(net) => {
                Self { v6: true, bits: net.network().to_bits(), len: u32::from(net.prefix_len()) }
            }
        }
    }
}

/// Sets of remotes, each once; number 0 is the empty one.
struct Sets {
    all: Vec<Vec<usize>>,
    /// Of all together.
    members: usize,
    numbers: HashMap<Vec<usize>, usize>,
}

impl Default for Sets {
    fn default() -> Self {
        Self { all: vec![Vec::new()], members: 0, numbers: HashMap::from([(Vec::new(), 0)]) }
    }
}

impl Sets {
    /// The set of `parent` and `more`.
    fn with(&mut self, parent: usize, more: impl Iterator<Item = usize>) -> usize {
        let mut set = self.all[parent].clone();
        set.extend(more);
        set.sort_unstable();
        set.dedup();
        if let Some(&number) = self.numbers.get(&set) {
            return number;
        }
        let number = self.all.len();
        self.members += set.len();
        self.all.push(set.clone());
        self.numbers.insert(set, number);
        number
    }
}

fn too_many() -> anyhow::Error {
    anyhow!(
        "the security groups of this node's ports come to more than {ENTRIES_MAX} entries: each rule counts once for every \
         set of remotes that overlaps its own; use fewer overlapping remotes, or wider port ranges"
    )
}

/// The name of a set: its members' names if that is short and tells it apart, otherwise a digest.
fn set_name(sorted: &[&str]) -> String {
    let len = sorted.iter().map(|name| name.len() + 1).sum::<usize>();
    if len <= NAME_MAX && !sorted.iter().any(|name| name.contains('+')) {
        return sorted.join("+");
    }
    // No name in a topology holds a slash where this has one.
    format!("digest/{}", digest128(sorted.iter().copied()))
}

fn rule_name(group: &str, position: usize) -> String {
    if group.len() <= NAME_MAX {
        return format!("{group} rule {position}");
    }
    format!("digest/{} rule {position}", digest128([group]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports_become_the_fewest_prefixes() {
        assert_eq!(port_prefixes(0, 65535), [(0, 0)]);
        assert_eq!(port_prefixes(80, 80), [(80, 16)]);
        assert_eq!(port_prefixes(80, 83), [(80, 14)]);
        assert_eq!(port_prefixes(1, 4), [(1, 16), (2, 15), (4, 16)]);
        assert_eq!(port_prefixes(65535, 65535), [(65535, 16)]);
        assert_eq!(port_prefixes(1, 65534).len(), 30);
    }

    #[test]
    fn ranges_of_ports_hold_what_they_should() {
        for (low, high) in [(0, 0), (1, 65534), (443, 8443), (32768, 65535), (1023, 1025), (0, 1023)] {
            let prefixes = port_prefixes(low, high);
            for port in 0..=u16::MAX {
                let holding = prefixes
                    .iter()
                    .filter(|(first, bits)| *bits == 0 || (port ^ first) >> (16 - bits) == 0)
                    .count();
                assert_eq!(holding, usize::from((low..=high).contains(&port)), "{port} in {low}-{high}");
            }
        }
    }

    #[test]
    fn names_of_sets_tell_them_apart() {
        assert_eq!(set_name(&["a", "b"]), "a+b");
        assert!(set_name(&["a+b"]).starts_with("digest/"), "it is not the set of a and b");
        let (long, longer) = ("x".repeat(150), "y".repeat(150));
        let name = set_name(&[&long, &longer]);
        assert_eq!(name.len(), "digest/".len() + 32);
        assert_ne!(name, set_name(&[&longer, &long]));
        assert!(rule_name(&"z".repeat(255), 9999).len() <= NAME_MAX);
    }
}
