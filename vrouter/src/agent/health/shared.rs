//! What is known of all members, put together from what the nodes say.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::{
    compile::MemberHealth,
    store::health::{Health, Words},
    topology::{
        model::{Pool, Topology},
        monitored,
    },
};

/// A member by its pool and name.
pub type MemberName = (String, String);

/// Pools of which nodes say something; `None`: who fell silent says something of all.
pub fn spoken_of<'w>(own: &'w Words, others: &'w Health) -> Option<HashSet<&'w str>> {
    if others.values().any(|other| other.words.is_some() && !other.alive) {
        return None;
    }
    let words = others.values().filter_map(|other| other.words.as_ref()).chain([own]);
    Some(words.flat_map(|words| words.down.keys().map(String::as_str)).collect())
}

/// The members whose health somebody finds out, by the node that does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index(BTreeMap<String, BTreeSet<MemberName>>);

impl Index {
    /// Of some pools of a topology; `None`: of all.
    pub fn of(topology: &Topology, pools: Option<&HashSet<&str>>) -> Self {
        let mut by_node: BTreeMap<String, BTreeSet<MemberName>> = BTreeMap::new();
        let is_asked = |pool: &Pool| pools.is_none_or(|pools| pools.contains(pool.name.as_str()));
        for it in monitored(topology, is_asked, |port| port.node.is_some()) {
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
    fn silence_is_about_every_pool() {
        let of = |names: &[&'static str]| Some(names.iter().copied().collect::<HashSet<_>>());
        assert_eq!(spoken_of(&Words::default(), &Health::new()), of(&[]));
        assert_eq!(spoken_of(&down(&["m1"]), &Health::new()), of(&["web"]));
        let other = |words, alive| Health::from([("b".to_owned(), NodeHealth { words, alive })]);
        assert_eq!(spoken_of(&Words::default(), &other(Some(down(&["m1"])), true)), of(&["web"]));
        assert_eq!(spoken_of(&Words::default(), &other(Some(Words::default()), false)), None);
        assert_eq!(spoken_of(&Words::default(), &other(None, false)), of(&[]), "it has not begun");
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
