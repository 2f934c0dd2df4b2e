//! What ports may send and receive, by the compiled tries and by reading the rules one by one.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use vrouter_common::addr::Be16;

use super::*;
use crate::topology::model::{
    AddressGroup, AllowedAddressPair, Direction, EtherFamily, Mac, Node, Remote, Rule, SecurityGroup, Subnet,
};

/// A packet as rules see it: from (ingress) or to (egress) the other end.
#[derive(Clone, Copy, Debug)]
struct Asked {
    ingress: bool,
    remote: IpAddr,
    proto: u8,
    /// ICMP: type and code.
    port: u16,
}

/// The compiled policies.
struct Policies {
    tables: MemoryTables,
    ids: Identities,
}

impl Policies {
    fn new(topology: &Topology) -> Self {
        let interfaces = (1..=8).map(|index| (format!("tap{index}"), Interface { index, peer: false }));
        let around = Surroundings {
            metadata: false,
            node: "a".to_owned(),
            interfaces: interfaces.collect(),
            underlay_mtu: 1500,
            externals: BTreeMap::new(),
            liveness: Default::default(),
            shares: None,
            learned: Default::default(),
        };
        let mut ids = Identities::default();
        let mut tables = MemoryTables::default();
        tables.image = compile(topology, &around, &mut ids).unwrap().image;
        Self { tables, ids }
    }

    fn of(document: &str) -> Self {
        Self::new(&topology::parse("test.yaml", document).unwrap_or_else(|problems| panic!("{problems}")))
    }

    /// The rules that are found, by the same lookups a packet makes: its class's and those for any remote.
    fn found(&self, ifindex: u32, asked: &Asked) -> Vec<vrouter_common::tables::Rule> {
        let binding = self.tables.binding(&BindingKey { ifindex: Scoped::new(0, ifindex) }).expect("a port");
        let prefix_len = ClassKey::FIXED_BITS + 128;
        let key = ClassKey { prefix_len, bank: Scoped::new(0, 0), ip: Ip::from(asked.remote) };
        let class = self.tables.class(&key);
        let family = if asked.remote.is_ipv6() { RULE_V6 } else { 0 };
        let lookup = |class| {
            self.tables.rule(&RuleKey {
                prefix_len: RuleKey::ALL_BITS,
                policy: Scoped::new(0, binding.policy),
                class,
                direction: family | if asked.ingress { RULE_INGRESS } else { 0 },
                proto: asked.proto,
                port: Be16::new(asked.port),
            })
        };
        let classes: &[u32] = if class == 0 { &[0] } else { &[class, 0] };
        classes.iter().filter_map(|&class| lookup(class)).copied().collect()
    }

    /// Whether it is allowed, and if so, with its replies.
    fn allows(&self, ifindex: u32, asked: &Asked) -> Option<bool> {
        let found = self.found(ifindex, asked);
        (!found.is_empty()).then(|| found.iter().any(|rule| rule.flags & RULE_STATEFUL != 0))
    }
}

fn tcp(ingress: bool, remote: &str, port: u16) -> Asked {
    Asked { ingress, remote: remote.parse().unwrap(), proto: 6, port }
}

const DOCUMENT: &str = r#"
networks:
  - name: web
    vni: 1
    subnets:
      - { name: web4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }
      - { name: web6, cidr: "fd00:1::/64", gateway: "fd00:1::1" }
security_groups:
  - name: web-sg
    rules:
      - { direction: ingress, protocol: tcp, ports: 80-443, remote: 0.0.0.0/0 }
      - { direction: ingress, protocol: tcp, ports: 400-500, remote: 10.0.0.0/8 }
      - { direction: ingress, protocol: tcp, remote: 10.9.0.0/16 }
      - { direction: ingress, remote_group: web-sg }
      - { direction: ingress, protocol: icmp, icmp_type: 8, icmp_code: 0 }
      - { direction: ingress, protocol: icmp, ethertype: ipv6, icmp_type: 128 }
      - { direction: egress, remote_address_group: corp }
  - name: fast
    stateful: false
    rules:
      - { direction: ingress, protocol: tcp, ports: 443, remote: 10.9.1.0/24 }
      - { direction: ingress, protocol: udp }
address_groups:
  - { name: corp, addresses: [192.0.2.0/24, "2001:db8::/32"] }
ports:
  - { name: vm1, network: web, mac: "02:00:00:00:01:0b", fixed_ips: [10.0.1.11], security_groups: [web-sg], node: a, interface: tap1 }
  - { name: vm2, network: web, mac: "02:00:00:00:01:0c", fixed_ips: [10.0.1.12, "fd00:1::c"], security_groups: [fast, web-sg], node: a, interface: tap2,
      allowed_address_pairs: [{ ip: 10.77.0.0/16 }] }
  - { name: vm3, network: web, mac: "02:00:00:00:01:0d", fixed_ips: [10.0.1.13], node: a, interface: tap3 }
  - { name: vm4, network: web, mac: "02:00:00:00:01:0e", fixed_ips: [10.0.1.14], security_groups: [], node: a, interface: tap4 }
  - { name: vm5, network: web, mac: "02:00:00:00:01:0f", fixed_ips: [10.0.1.15], port_security: false, node: a, interface: tap5 }
  - { name: far, network: web, mac: "02:00:00:00:01:10", fixed_ips: [10.0.1.16], security_groups: [web-sg], node: b, interface: tap1 }
  - { name: open, network: web, mac: "02:00:00:00:01:11", fixed_ips: [10.0.1.17], security_groups: [web-sg], port_security: false, node: b, interface: tap2 }
  - { name: other, network: web, mac: "02:00:00:00:01:12", fixed_ips: [10.0.1.18], node: b, interface: tap3 }
nodes:
  - { name: a, vtep: 192.0.2.1 }
  - { name: b, vtep: 192.0.2.2 }
"#;

#[test]
fn rules_allow_what_they_say() {
    let policies = Policies::of(DOCUMENT);
    let vm1 = |asked: Asked| policies.allows(1, &asked).is_some();
    // P1: nothing in but what rules say.
    assert!(!vm1(tcp(true, "198.51.100.1", 79)) && !vm1(tcp(true, "198.51.100.1", 444)));
    assert!(vm1(tcp(true, "198.51.100.1", 80)) && vm1(tcp(true, "198.51.100.1", 443)));
    assert!(!vm1(Asked { proto: 17, ..tcp(true, "198.51.100.1", 80) }), "another protocol");
    assert!(!vm1(tcp(true, "2001:db8::1", 80)), "the rule is IPv4's");
    // Ranges of ports overlap, and so do remotes.
    assert!(vm1(tcp(true, "10.1.1.1", 450)) && vm1(tcp(true, "10.1.1.1", 100)));
    assert!(!vm1(tcp(true, "10.1.1.1", 501)));
    assert!(
        vm1(tcp(true, "10.9.1.1", 501)) && vm1(tcp(true, "10.9.1.1", 450)) && vm1(tcp(true, "10.9.1.1", 80))
    );
    // Members of the group: addresses and pairs, wherever they are; not those without port security.
    for (remote, allowed) in [
        ("10.0.1.11", true),
        ("10.0.1.12", true),
        ("fd00:1::c", true),
        ("10.77.3.4", true),
        ("10.0.1.16", true),
        ("10.0.1.17", false),
        ("10.0.1.18", false),
        ("fd00:1::d", false),
    ] {
        assert_eq!(vm1(Asked { proto: 17, ..tcp(true, remote, 7) }), allowed, "{remote}");
    }
    // ICMP by type and code; each family's own.
    let icmp = |remote, proto, kind: u16, code| vm1(Asked { proto, ..tcp(true, remote, kind << 8 | code) });
    assert!(
        icmp("198.51.100.1", 1, 8, 0) && !icmp("198.51.100.1", 1, 8, 1) && !icmp("198.51.100.1", 1, 0, 0)
    );
    assert!(icmp("2001:db8::1", 58, 128, 0) && icmp("2001:db8::1", 58, 128, 77));
    assert!(
        !icmp("2001:db8::1", 58, 129, 0)
            && !icmp("2001:db8::1", 1, 8, 0)
            && !icmp("198.51.100.1", 58, 128, 0)
    );
    // Egress to an address group.
    assert!(vm1(tcp(false, "192.0.2.9", 1)) && vm1(tcp(false, "2001:db8::9", 1)));
    assert!(!vm1(tcp(false, "192.0.3.9", 1)) && !vm1(tcp(true, "192.0.2.9", 1)));
}

#[test]
fn ports_are_in_the_groups_they_say() {
    let policies = Policies::of(DOCUMENT);
    // The default group: everything out, in from its members.
    assert_eq!(policies.allows(3, &tcp(false, "198.51.100.1", 1)), Some(true));
    assert_eq!(policies.allows(3, &tcp(true, "198.51.100.1", 80)), None);
    assert_eq!(policies.allows(3, &tcp(true, "10.0.1.18", 80)), Some(true));
    // No group: nothing. No port security: no policy to ask.
    assert_eq!(policies.allows(4, &tcp(false, "10.0.1.18", 80)), None);
    let binding = |ifindex| policies.tables.image.bindings[&BindingKey { ifindex: Scoped::new(0, ifindex) }];
    assert_eq!((binding(4).policy, binding(4).flags), (0, BINDING_DHCP));
    assert_eq!((binding(5).policy, binding(5).flags), (0, BINDING_NO_SECURITY | BINDING_DHCP));
    assert_eq!(policies.ids.name(NAME_POLICY, binding(1).policy), Some("web-sg"));
    assert_eq!(policies.ids.name(NAME_POLICY, binding(2).policy), Some("fast+web-sg"));
    let found = policies.found(1, &tcp(true, "198.51.100.1", 80));
    assert_eq!(policies.ids.name(NAME_RULE, found[0].rule), Some("web-sg rule 0"));
    // What no port here is in is not here.
    let rules = policies.tables.image.rules.keys().map(|key| key.policy.id());
    assert_eq!(rules.collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn one_stateful_rule_is_enough() {
    let policies = Policies::of(DOCUMENT);
    let stateful = |asked| policies.allows(2, &asked);
    // Only the stateless group allows it.
    assert_eq!(stateful(Asked { proto: 17, ..tcp(true, "198.51.100.1", 53) }), Some(false));
    // Both: the stateless one by the longer match, and the stateful one by any port, or for any remote.
    assert_eq!(stateful(tcp(true, "10.9.1.1", 443)), Some(true));
    assert_eq!(stateful(Asked { proto: 17, ..tcp(true, "10.0.1.11", 53) }), Some(true));
    // In one class, whatever is the longer.
    let found = policies.found(2, &tcp(true, "10.9.1.1", 443));
    assert!(found[0].flags & RULE_STATEFUL != 0, "the class's own entry says so: {found:?}");
}

#[test]
fn a_member_that_comes_changes_classes_alone() {
    let mut ids = Identities::default();
    let before = compiled(DOCUMENT, &mut ids).image;
    let member = "fixed_ips: [10.0.1.18], node: b";
    let more = DOCUMENT.replace(member, "fixed_ips: [10.0.1.18], security_groups: [web-sg], node: b");
    assert_ne!(more, DOCUMENT);
    let after = compiled(&more, &mut ids).image;
    assert_eq!(before.rules, after.rules);
    assert_ne!(before.classes, after.classes);
    assert_eq!(before.bindings, after.bindings);
}

/// A few hundred lines of luck: small numbers from a big one.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        // Knuth's MMIX generator; the low bits are the weak ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % bound as u64) as usize
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    fn v4(&mut self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.below(2) as u8, 0, self.below(8) as u8)
    }

    fn v6(&mut self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, self.below(2) as u16, 0, 0, 0, 0, 0, self.below(8) as u16)
    }

    /// An address, mostly one that ranges are about.
    fn address(&mut self) -> IpAddr {
        match self.below(8) {
            0 => IpAddr::from([198, 51, 100, 7]),
            1 => "2001:db8::7".parse().unwrap(),
            2..5 => self.v4().into(),
            _ => self.v6().into(),
        }
    }

    fn range(&mut self) -> IpNet {
        let odd = ["::/16", "::/64", "::/96", "::ffff:0:0/96", "::ffff:10.0.0.0/104", "::/1", "8000::/1"];
        match self.below(9) {
            0 => self.of(&odd).parse().unwrap(),
            1..5 => {
                let len = self.of(&[0, 1, 8, 14, 16, 24, 28, 29, 30, 31, 32]);
                Ipv4Net::new(self.v4(), len).unwrap().trunc().into()
            }
            _ => {
                let len = self.of(&[0, 7, 16, 31, 32, 64, 125, 126, 127, 128]);
                Ipv6Net::new(self.v6(), len).unwrap().trunc().into()
            }
        }
    }

    fn port(&mut self) -> u16 {
        self.of(&[0, 1, 2, 7, 8, 79, 80, 81, 255, 256, 442, 443, 1023, 1024, 2048, 2049, 32768, 65534, 65535])
    }

    fn rule(&mut self) -> Rule {
        let remote = match self.below(5) {
            0 => None,
            1 => Some(Remote::Group(format!("g{}", self.below(4)))),
            2 => Some(Remote::AddressGroup(format!("a{}", self.below(3)))),
            _ => Some(Remote::Cidr(self.range())),
        };
        let ethertype = match &remote {
            Some(Remote::Cidr(IpNet::V4(_))) if self.one_in(2) => Some(EtherFamily::Ipv4),
            Some(Remote::Cidr(IpNet::V6(_))) if self.one_in(2) => Some(EtherFamily::Ipv6),
            Some(Remote::Cidr(_)) => None,
            _ => self.of(&[None, None, Some(EtherFamily::Ipv4), Some(EtherFamily::Ipv6)]),
        };
        let is_v6 =
            ethertype == Some(EtherFamily::Ipv6) || matches!(&remote, Some(Remote::Cidr(IpNet::V6(_))));
        let icmp = if is_v6 { 58 } else { 1 };
        let protocol = self.of(&[None, Some(6), Some(6), Some(17), Some(47), Some(icmp)]);
        let (ports, icmp_code) = match protocol {
            Some(6 | 17) if !self.one_in(4) => {
                let (one, two) = (self.port(), self.port());
                (Some((one.min(two), one.max(two))), None)
            }
            Some(1 | 58) => {
                let kind = self.below(3) as u16;
                match self.below(3) {
                    0 => (None, None),
                    1 => (Some((kind, kind)), None),
                    _ => (Some((kind, kind)), Some(self.below(2) as u8)),
                }
            }
            _ => (None, None),
        };
        let direction = self.of(&[Direction::Ingress, Direction::Egress]);
        Rule { direction, protocol, ports, icmp_code, ethertype, remote, line: 1 }
    }

    fn topology(&mut self) -> Topology {
        let subnet = |name: &str, cidr: &str| Subnet {
            name: name.to_owned(),
            cidr: cidr.parse().unwrap(),
            gateway: None,
            dns: Vec::new(),
            dhcp: true,
            lease_time: crate::topology::model::LEASE_TIME,
            host_routes: Vec::new(),
            dhcp_options: Vec::new(),
            ipv6_mode: None,
            line: 1,
        };
        let mut topology = Topology::default();
        topology.networks.push(Network {
            name: "n".to_owned(),
            vni: 1,
            mtu: None,
            routed: false,
            external: false,
            subnets: vec![subnet("n4", "10.0.0.0/8"), subnet("n6", "fd00::/16")],
            line: 1,
        });
        for i in 0..4 {
            let rules = (0..self.below(7)).map(|_| self.rule()).collect();
            topology.security_groups.push(SecurityGroup {
                name: format!("g{i}"),
                stateful: !self.one_in(3),
                rules,
                line: 1,
            });
        }
        for i in 0..3 {
            let addresses = (0..self.below(4)).map(|_| self.range()).collect();
            topology.address_groups.push(AddressGroup { name: format!("a{i}"), addresses, line: 1 });
        }
        for i in 1..=10_u8 {
            let mut security_groups: Vec<String> =
                (0..self.below(3)).map(|_| format!("g{}", self.below(4))).collect();
            if self.one_in(4) {
                security_groups.extend(security_groups.clone());
            }
            let fixed_ips =
                (0..self.below(3)).map(|_| if self.one_in(2) { self.v4().into() } else { self.v6().into() });
            let fixed_ips = fixed_ips.collect();
            let pairs = (0..usize::from(self.one_in(4))).map(|_| AllowedAddressPair {
                ip: self.range(),
                mac: None,
                line: 1,
            });
            let allowed_address_pairs = pairs.collect();
            // Five are here.
            topology.ports.push(Port {
                name: format!("p{i}"),
                network: "n".to_owned(),
                mac: Mac([2, 0, 0, 0, 0, i]),
                fixed_ips,
                security_groups,
                port_security: i <= 5 || !self.one_in(5),
                allowed_address_pairs,
                node: Some(if i <= 5 { "a" } else { "b" }.to_owned()),
                interface: Some(format!("tap{i}")),
                hook: Hook::Tc,
                dhcp_options: Vec::new(),
                device_id: None,
                project: None,
                line: 1,
            });
        }
        for (i, name) in ["a", "b"].into_iter().enumerate() {
            let vtep = Ipv4Addr::new(192, 0, 2, i as u8);
            topology.nodes.push(Node {
                name: name.to_owned(),
                vtep,
                gateway: false,
                external_networks: None,
                line: 1,
            });
        }
        topology
    }

    fn asked(&mut self) -> Asked {
        let remote = self.address();
        let proto = self.of(&[6, 6, 6, 17, 47, 1, 58]);
        let port = match proto {
            1 | 58 => (self.below(3) as u16) << 8 | self.below(3) as u16,
            6 | 17 => self.port(),
            _ => 0,
        };
        Asked { ingress: self.one_in(2), remote, proto, port }
    }
}

/// Whether a rule allows a packet, by the words of the documentation.
fn matches(topology: &Topology, rule: &Rule, asked: &Asked) -> bool {
    let is_v6 = asked.remote.is_ipv6();
    let family = match rule.ethertype {
        Some(EtherFamily::Ipv4) => !is_v6,
        Some(EtherFamily::Ipv6) => is_v6,
        // Each family has an ICMP of its own.
        None => rule.protocol != Some(if is_v6 { 1 } else { 58 }),
    };
    let protocol = rule.protocol.is_none_or(|protocol| protocol == asked.proto);
    let ports = match (rule.protocol, rule.ports) {
        (Some(1 | 58), Some((kind, _))) => {
            asked.port >> 8 == kind && rule.icmp_code.is_none_or(|code| asked.port & 0xff == u16::from(code))
        }
        (_, Some((low, high))) => (low..=high).contains(&asked.port),
        (_, None) => true,
    };
    let holds = |range: &IpNet| range.contains(&asked.remote);
    let remote = match &rule.remote {
        None => true,
        Some(Remote::Cidr(range)) => holds(range),
        Some(Remote::AddressGroup(name)) => topology.address_group(name).unwrap().addresses.iter().any(holds),
        Some(Remote::Group(name)) => topology
            .ports
            .iter()
            .filter(|port| port.port_security && port.security_groups.contains(name))
            .any(|port| {
                port.fixed_ips.contains(&asked.remote)
                    || port.allowed_address_pairs.iter().any(|pair| holds(&pair.ip))
            }),
    };
    (rule.direction == Direction::Ingress) == asked.ingress && family && protocol && ports && remote
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// The tries say what the rules say, of any packet.
    #[test]
    fn the_tries_and_the_rules_agree(seed in any::<u64>()) {
        let mut random = Random(seed);
        let topology = random.topology();
        let policies = Policies::new(&topology);
        for _ in 0..60 {
            let asked = random.asked();
            let ifindex = 1 + random.below(5) as u32;
            let port = &topology.ports[ifindex as usize - 1];
            let groups = topology.security_groups.iter().filter(|group| port.security_groups.contains(&group.name));
            let allowing: Vec<(String, bool)> = groups
                .flat_map(|group| {
                    let rules = group.rules.iter().enumerate();
                    let allowing = rules.filter(|(_, rule)| matches(&topology, rule, &asked));
                    allowing.map(|(i, _)| (format!("{} rule {i}", group.name), group.stateful))
                })
                .collect();
            let expected = (!allowing.is_empty()).then(|| allowing.iter().any(|(_, stateful)| *stateful));
            prop_assert_eq!(policies.allows(ifindex, &asked), expected, "{:?} at {:?}\n{:#?}", asked, port, topology);
            // Whatever is named did allow it.
            for rule in policies.found(ifindex, &asked) {
                let name = policies.ids.name(NAME_RULE, rule.rule).unwrap();
                prop_assert!(allowing.iter().any(|(allowing, _)| allowing == name), "{} {:?}", name, allowing);
            }
        }
    }
}

/// A document of moderate size whose remotes overlap in millions of ways is refused before it is a problem.
#[test]
fn overlaps_without_end_are_refused() {
    let mut text = String::from(
        "networks: [{ name: n, subnets: [{ name: n4, cidr: 10.0.0.0/8 }] }]\nnodes: [{ name: a, vtep: 192.0.2.1 }]\nsecurity_groups:\n  - name: big\n    rules:\n",
    );
    for i in 0..3000 {
        let _ = writeln!(text, "      - {{ direction: egress, remote_address_group: g{i} }}");
    }
    text += "address_groups:\n";
    for i in 0..3000 {
        let (high, low) = (i / 256, i % 256);
        let _ = writeln!(
            text,
            "  - {{ name: g{i}, addresses: [10.0.0.0/8, 10.0.{high}.{low}, 10.1.{high}.{low}] }}"
        );
    }
    // All of them hold the first range; each of the others is one set more, of all but one.
    text = text.replacen("10.0.0.0/8, 10.0.0.0,", "10.0.0.0,", 1);
    for i in 1..3000 {
        let (high, low) = (i / 256, i % 256);
        let _ = writeln!(text, "  - {{ name: h{i}, addresses: [10.2.{high}.{low}] }}");
    }
    let rules: String =
        (1..3000).map(|i| format!("      - {{ direction: egress, remote_address_group: h{i} }}\n")).collect();
    text = text.replacen("address_groups:\n", &format!("{rules}address_groups:\n"), 1);
    text += "ports:\n  - { name: p, network: n, mac: 02:00:00:00:00:01, fixed_ips: [10.255.0.1], security_groups: [big], node: a, interface: tap1 }\n";
    let topology = topology::parse("big.yaml", &text).unwrap_or_else(|problems| panic!("{problems}"));
    let error = compile(&topology, &around(&[("tap1", 11)]), &mut Identities::default()).unwrap_err();
    assert!(error.to_string().contains("come to more than 2097152 entries"), "{error:#}");
}

/// P6: prints what a large document comes to.
#[test]
fn ten_thousand_rules_and_members_are_compiled() {
    let mut text = String::from(
        "networks: [{ name: n, subnets: [{ name: n4, cidr: 10.0.0.0/8 }] }]\nnodes: [{ name: a, vtep: 192.0.2.1 }]\nsecurity_groups:\n",
    );
    text += "  - { name: members }\n  - name: big\n    rules:\n";
    for i in 0..10_000 {
        let remote = match i % 4 {
            0 => "remote_group: members".to_owned(),
            1 => format!("remote: 10.{}.{}.0/24", i / 256 % 256, i % 256),
            2 => format!("remote: 172.16.{}.{}/32", i / 256, i % 256),
            _ => "remote: 0.0.0.0/0".to_owned(),
        };
        let _ =
            writeln!(text, "      - {{ direction: ingress, protocol: tcp, ports: {i}-{}, {remote} }}", i + 3);
    }
    text += "ports:\n  - { name: p, network: n, mac: 02:00:00:00:00:01, fixed_ips: [10.255.0.1], security_groups: [big], node: a, interface: tap1 }\n";
    for i in 0..10_000 {
        let (high, low) = (i / 200, i % 200 + 1);
        let _ = writeln!(
            text,
            "  - {{ name: p{i}, network: n, mac: \"02:00:00:01:{high:02x}:{low:02x}\", fixed_ips: [10.200.{high}.{low}], security_groups: [members] }}"
        );
    }
    let topology = topology::parse("big.yaml", &text).unwrap_or_else(|problems| panic!("{problems}"));
    let around = around(&[("tap1", 11)]);
    let mut ids = Identities::default();
    let start = Instant::now();
    let out = compile(&topology, &around, &mut ids).unwrap();
    let took = start.elapsed();
    let (rules, classes) = (out.image.rules.len(), out.image.classes.len());
    println!("10000 rules, 10000 members: {rules} entries, {classes} classes' prefixes in {took:?}");
    assert!(classes > 12_000, "members and ranges: {classes}");
    assert!((10_000..150_000).contains(&rules), "{rules}");
    let start = Instant::now();
    assert_eq!(compile(&topology, &around, &mut ids).unwrap().image, out.image);
    println!("again: {:?}", start.elapsed());
}
