//! What is known of all members, put together from what the nodes say.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::{
    compile::MemberHealth,
    store::health::{Health, Words},
    topology::{
        model::{Port, Topology},
        monitored,
    },
};

/// A member by its pool and name.
pub type MemberName = (String, String);

/// Of what nodes say something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spoken<'w> {
    /// Pools that are named.
    pools: HashSet<&'w str>,
    /// Who fell silent says something of all members behind its ports, if it has any: what it said stays in etcd when it
    /// is long gone.
    silent: HashSet<&'w str>,
}

impl<'w> Spoken<'w> {
    /// By the words of this node, and of the others.
    pub fn of(own: &'w Words, others: &'w Health) -> Self {
        let mut spoken = Self { pools: own.down.keys().map(String::as_str).collect(), ..Self::default() };
        for (node, other) in others {
            match &other.words {
                Some(words) if other.alive => spoken.pools.extend(words.down.keys().map(String::as_str)),
                Some(_) => drop(spoken.silent.insert(node)),
                None => {}
            }
        }
        spoken
    }
}

/// The members whose health somebody finds out, by the node that does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index(BTreeMap<String, BTreeSet<MemberName>>);

impl Index {
    /// Of the pools of a topology of which something is said.
    pub fn of(topology: &Topology, spoken: &Spoken<'_>) -> Self {
        let mut pools = spoken.pools.clone();
        if !spoken.silent.is_empty() {
            let is_silent = |port: &Port| port.node.as_deref().is_some_and(|it| spoken.silent.contains(it));
            pools.extend(monitored(topology, |_| true, is_silent).iter().map(|it| it.pool.name.as_str()));
        }
        let mut by_node: BTreeMap<String, BTreeSet<MemberName>> = BTreeMap::new();
        let is_asked = |port: &Port| port.node.is_some();
        for it in monitored(topology, |pool| pools.contains(pool.name.as_str()), is_asked) {
            if let Some(node) = &it.port.node {
                let name = (it.pool.name.clone(), it.member.name.clone());
                by_node.entry(node.clone()).or_default().insert(name);
            }
        }
        Self(by_node)
    }

    /// Members that are not up. A node's own words are what it knows itself, whatever others have heard.
    pub fn not_up(&self, node: &str, own: &Words, others: &Health) -> BTreeMap<MemberName, MemberHealth> {
        let mut not_up = BTreeMap::new();
        for (checker, members) in &self.0 {
            let (words, alive) = if checker == node {
                (own, true)
            } else {
                // Who has said nothing yet has just begun: that must take nobody out.
                let Some(health) = others.get(checker) else { continue };
                let Some(words) = &health.words else { continue };
                (words, health.alive)
            };
            if !alive {
                not_up.extend(members.iter().map(|name| (name.clone(), MemberHealth::Lost)));
            }
            for (pool, down) in &words.down {
                let names = down.keys().map(|member| (pool.clone(), member.clone()));
                // A member that has moved is another's to speak of.
                not_up.extend(names.filter(|name| members.contains(name)).map(|it| (it, MemberHealth::Down)));
            }
        }
        not_up
    }

    /// The node that checks a member.
    pub fn checker(&self, name: &MemberName) -> Option<&str> {
        self.0.iter().find(|(_, members)| members.contains(name)).map(|(node, _)| node.as_str())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::store::health::NodeHealth;

    fn name(member: &str) -> MemberName {
        ("web".to_owned(), member.to_owned())
    }

    /// What is said of members of the pool `web`.
    pub fn down(members: &[&str]) -> Words {
        let down = members.iter().map(|member| ((*member).to_owned(), "refused".to_owned())).collect();
        Words { down: BTreeMap::from([("web".to_owned(), down)]), ..Words::default() }
    }

    /// Two pools, each with a member on two of the nodes a, b, c; d has none.
    const DOCUMENT: &str = r#"
networks: [{ name: n, subnets: [{ name: n4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }] }]
routers: [{ name: r, interfaces: [n4] }]
ports:
  - { name: vm1, network: n, mac: "02:00:00:00:01:01", fixed_ips: [10.0.1.11], node: a, interface: tap1 }
  - { name: vm2, network: n, mac: "02:00:00:00:01:02", fixed_ips: [10.0.1.12], node: b, interface: tap2 }
  - { name: vm3, network: n, mac: "02:00:00:00:01:03", fixed_ips: [10.0.1.13], node: c, interface: tap3 }
load_balancers:
  - { name: lb, network: n, vip_addresses: [10.0.1.200], listeners: [
      { name: l1, protocol: tcp, protocol_port: 80, default_pool: web },
      { name: l2, protocol: tcp, protocol_port: 81, default_pool: api }] }
pools:
  - name: web
    health_monitor: { type: ping, delay: 1, timeout: 1 }
    members:
      - { name: m1, address: 10.0.1.11, protocol_port: 80 }
      - { name: m2, address: 10.0.1.12, protocol_port: 80 }
  - name: api
    health_monitor: { type: ping, delay: 1, timeout: 1 }
    members:
      - { name: m2, address: 10.0.1.12, protocol_port: 80 }
      - { name: m3, address: 10.0.1.13, protocol_port: 80 }
nodes: [{ name: a, vtep: 192.0.2.1 }, { name: b, vtep: 192.0.2.2 }, { name: c, vtep: 192.0.2.3 }, { name: d, vtep: 192.0.2.4 }]
"#;

    /// A node long gone must not have all pools looked at with every change.
    #[test]
    fn pools_are_looked_at_of_which_something_is_said_and_those_of_silent_nodes() {
        let topology = crate::topology::parse("test", DOCUMENT).expect("a topology in order");
        let looked_at = |own: &Words, node: &str, words: Option<Words>, alive| {
            let others = Health::from([(node.to_owned(), NodeHealth { words, alive })]);
            let Index(by_node) = Index::of(&topology, &Spoken::of(own, &others));
            let pools: BTreeSet<String> = by_node.into_values().flatten().map(|(pool, _)| pool).collect();
            pools.into_iter().collect::<Vec<_>>()
        };
        let well = || Some(Words::default());
        for (name, own, node, words, alive, expected) in [
            ("all is well", Words::default(), "b", well(), true, &[][..]),
            ("its own word", down(&["m1"]), "b", well(), true, &["web"]),
            ("another's word", Words::default(), "b", Some(down(&["m2"])), true, &["web"]),
            ("it has not begun", Words::default(), "b", None, false, &[]),
            ("silent, with members in one pool", Words::default(), "c", well(), false, &["api"]),
            ("silent, with members in both", Words::default(), "b", well(), false, &["api", "web"]),
            ("silent, without members", Words::default(), "d", Some(down(&["m2"])), false, &[]),
            ("gone", Words::default(), "z", Some(down(&["m2"])), false, &[]),
        ] {
            assert_eq!(looked_at(&own, node, words, alive), expected, "{name}");
        }
        // Of a pool, everybody who checks a member is known.
        let others = Health::from([("c".to_owned(), NodeHealth { words: well(), alive: false })]);
        let index = Index::of(&topology, &Spoken::of(&Words::default(), &others));
        let lost = [(("api".to_owned(), "m3".to_owned()), MemberHealth::Lost)];
        assert_eq!(index.not_up("a", &Words::default(), &others), BTreeMap::from(lost));
        assert_eq!(index.checker(&("api".to_owned(), "m2".to_owned())), Some("b"));
    }

    #[test]
    fn silence_loses_members_only_of_those_who_have_spoken() {
        let of = |members: &[&str]| members.iter().map(|member| name(member)).collect::<BTreeSet<_>>();
        let index = Index(BTreeMap::from([
            ("a".to_owned(), of(&["m1", "m2"])),
            ("b".to_owned(), of(&["m3", "m4"])),
            ("c".to_owned(), of(&["m5"])),
        ]));
        let not_up = |own: &Words, others: &Health| index.not_up("a", own, others);
        assert!(not_up(&Words::default(), &Health::new()).is_empty(), "nobody has said anything");
        // Its own word counts; another's of the same member does not.
        let mut others = Health::from([(
            "b".to_owned(),
            NodeHealth { words: Some(down(&["m3", "m1", "gone"])), alive: true },
        )]);
        others.insert("c".to_owned(), NodeHealth { words: None, alive: true });
        assert_eq!(
            not_up(&down(&["m2"]), &others),
            BTreeMap::from([(name("m2"), MemberHealth::Down), (name("m3"), MemberHealth::Down)])
        );
        // Who was down stays so when its node is silent.
        others.get_mut("b").expect("b").alive = false;
        others.get_mut("c").expect("c").alive = false;
        assert_eq!(
            not_up(&Words::default(), &others),
            BTreeMap::from([(name("m3"), MemberHealth::Down), (name("m4"), MemberHealth::Lost)])
        );
    }
}
