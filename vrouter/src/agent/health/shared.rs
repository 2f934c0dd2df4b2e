//! What is known of all members, put together from what the nodes say.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    compile::MemberHealth,
    store::health::{Health, Words},
    topology::{model::Topology, monitored},
};

/// A member by its pool and name.
pub type MemberName = (String, String);

/// The members whose health somebody finds out, by the node that does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index(BTreeMap<String, BTreeSet<MemberName>>);

impl Index {
    /// Of a topology.
    pub fn of(topology: &Topology) -> Self {
        let mut by_node: BTreeMap<String, BTreeSet<MemberName>> = BTreeMap::new();
        for it in monitored(topology) {
            if let Some(node) = &it.port.node {
                let name = (it.pool.name.clone(), it.member.name.clone());
                by_node.entry(node.clone()).or_default().insert(name);
            }
        }
        Self(by_node)
    }

    /// Whether there is nothing to find out.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
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
mod tests {
    use super::*;
    use crate::store::health::NodeHealth;

    fn name(member: &str) -> MemberName {
        ("web".to_owned(), member.to_owned())
    }

    fn down(members: &[&str]) -> Words {
        let down = members.iter().map(|member| ((*member).to_owned(), "refused".to_owned())).collect();
        Words { down: BTreeMap::from([("web".to_owned(), down)]), ..Words::default() }
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
