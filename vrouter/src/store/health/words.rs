//! What a node says, and how that is kept in keys of bounded size.
//!
//! What is short is one value, `words`. What is long is in parts, each member in the one that its name says: a change
//! rewrites a part, whatever else is down, and `words` says no more than that they count. Parts are not told from one
//! another by readers, who put together what they find.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    store::{
        keys::HealthKey,
        record::{SCHEMA, Unusable, versioned_to},
    },
    topology::fnv1a_of,
};

/// The schema of `words` that is in parts: who knows no parts does not take it for the word that all is well.
const SCHEMA_OF_PARTS: u32 = 2;
/// Bytes from which on words are in parts, and below which they are no more.
const LONG: usize = 256 << 10;
const SHORT: usize = LONG / 2;
/// What a transaction may write: etcd takes 128 operations and 1.5 MiB, the longest part is below 1 MiB.
const OPERATIONS: usize = 100;
const BYTES: usize = 1 << 20;

/// What a node says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    pub schema: u32,
    /// Why members are down, by pool and name.
    #[serde(default)]
    pub down: BTreeMap<String, BTreeMap<String, String>>,
}

/// What is known of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHealth {
    /// `None`: it has said nothing yet.
    pub words: Option<Words>,
    /// Whether its agent runs.
    pub alive: bool,
}

/// What is known, by node.
pub type Health = BTreeMap<String, NodeHealth>;

impl Default for Words {
    fn default() -> Self {
        Self { schema: SCHEMA, down: BTreeMap::new() }
    }
}

/// A key's value: words, a part of them, or that they are in parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Text {
    #[serde(flatten)]
    words: Words,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    parts: bool,
}

/// A node's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    words: Option<Text>,
    parts: BTreeMap<u8, Text>,
    alive: bool,
}

/// Keys that get a value, or go, in one transaction.
pub type Step = Vec<(HealthKey, Option<Vec<u8>>)>;

/// Bytes that a step writes.
pub fn bytes(step: &Step) -> usize {
    step.iter().filter_map(|(_, value)| value.as_ref()).map(Vec::len).sum()
}

impl Kept {
    /// As a node keeps what it says; `before`: how it is kept so far.
    pub fn of(words: &Words, before: &Self) -> Self {
        let whole = Text { words: words.clone(), parts: false };
        let is_in_parts = before.words.as_ref().is_some_and(|text| text.parts);
        let alive = before.alive;
        if whole.bytes().len() <= if is_in_parts { SHORT } else { LONG } {
            return Self { words: Some(whole), parts: BTreeMap::new(), alive };
        }
        let mut parts: BTreeMap<u8, Text> = BTreeMap::new();
        for (pool, down) in &words.down {
            for (member, why) in down {
                let empty = || Text { words: Words::default(), parts: false };
                let part = parts.entry(fnv1a_of(&[pool, member]) as u8).or_insert_with(empty);
                part.words.down.entry(pool.clone()).or_default().insert(member.clone(), why.clone());
            }
        }
        let words = Words { schema: SCHEMA_OF_PARTS, ..Words::default() };
        Self { words: Some(Text { words, parts: true }), parts, alive }
    }

    /// How to come from this to what is wanted, one transaction after the other: no member that was and is down is taken for
    /// up meanwhile. `begins`: the node is to be taken for one that speaks by then.
    pub fn steps(&self, wanted: &Self, begins: bool) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        // Before they count, or each by itself.
        for (part, text) in wanted.parts.iter().filter(|(part, text)| self.parts.get(*part) != Some(*text)) {
            let value = text.bytes();
            match steps.last_mut() {
                Some(step) if step.len() < OPERATIONS && bytes(step) + value.len() <= BYTES => {
                    step.push((HealthKey::Part(*part), Some(value)));
                }
                _ => steps.push(vec![(HealthKey::Part(*part), Some(value))]),
            }
        }
        // At once: nobody is to take what was said before for what is so, nor the node for silent.
        let alive = begins.then(|| (HealthKey::Alive, Some(b"{}".to_vec())));
        let words = (self.words != wanted.words).then(|| wanted.words.as_ref().map(Text::bytes));
        steps.push(alive.into_iter().chain(words.map(|value| (HealthKey::Words, value))).collect());
        // When they count no more.
        let gone = self.parts.keys().filter(|part| !wanted.parts.contains_key(part));
        let gone: Step = gone.map(|part| (HealthKey::Part(*part), None)).collect();
        steps.extend(gone.chunks(OPERATIONS).map(<[_]>::to_vec));
        steps.retain(|step| !step.is_empty());
        steps
    }

    /// Notes a key's value, or that it is gone. What cannot be read changes nothing: what was said before counts.
    pub fn note(&mut self, key: HealthKey, value: Option<&[u8]>) -> Result<(), Unusable> {
        match (key, value) {
            (HealthKey::Alive, value) => self.alive = value.is_some(),
            (HealthKey::Words, Some(value)) => self.words = Some(Text::read(value)?),
            (HealthKey::Words, None) => self.words = None,
            (HealthKey::Part(part), Some(value)) => drop(self.parts.insert(part, Text::read(value)?)),
            (HealthKey::Part(part), None) => drop(self.parts.remove(&part)),
        }
        Ok(())
    }

    /// What they say.
    pub fn health(&self) -> NodeHealth {
        let words = self.words.as_ref().map(|text| {
            let mut words = Words { down: text.words.down.clone(), ..Words::default() };
            // What is left of parts that count no more says nothing.
            for part in self.parts.values().filter(|_| text.parts) {
                for (pool, down) in &part.words.down {
                    words.down.entry(pool.clone()).or_default().extend(down.clone());
                }
            }
            words
        });
        NodeHealth { words, alive: self.alive }
    }
}

impl Text {
    fn read(value: &[u8]) -> Result<Self, Unusable> {
        versioned_to(value, SCHEMA_OF_PARTS)
    }

    fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many members down, in pools of a hundred, with names as OpenStack gives them.
    fn down(members: usize) -> Words {
        let mut words = Words::default();
        for number in 0..members {
            let pool = format!("5a1e7c3e-0000-4000-8000-{:012}", number / 100);
            let member = format!("c0ffee00-0000-4000-9000-{number:012}");
            words.down.entry(pool).or_default().insert(member, "connection refused 3 times".to_owned());
        }
        words
    }

    /// What a reader makes of it, after each transaction.
    fn followed(kept: &Kept, steps: &[Step]) -> Vec<Words> {
        let mut reader = kept.clone();
        let after = |step: &Step| {
            assert!(
                step.len() <= 128 && bytes(step) <= 1 << 20,
                "{} keys, {} bytes",
                step.len(),
                bytes(step)
            );
            for (key, value) in step {
                reader.note(*key, value.as_deref()).expect("readable");
            }
            reader.health().words.unwrap_or_default()
        };
        steps.iter().map(after).collect()
    }

    fn names(words: &Words) -> std::collections::BTreeSet<(&str, &str)> {
        words
            .down
            .iter()
            .flat_map(|(pool, down)| down.keys().map(move |member| (pool.as_str(), member.as_str())))
            .collect()
    }

    #[test]
    fn a_hundred_thousand_members_may_be_down_and_none_is_taken_for_up_in_between() {
        let mut kept = Kept::default();
        let mut before = Words::default();
        let mut one_less = down(100_000);
        one_less.down.values_mut().next().expect("a pool").pop_first();
        for words in [Words::default(), down(20), down(100_000), one_less, down(2_000), down(1_000), down(0)]
        {
            let wanted = Kept::of(&words, &kept);
            let steps = kept.steps(&wanted, false);
            let (was, is) = (names(&before), names(&words));
            let stays: Vec<_> = was.intersection(&is).collect();
            let seen = followed(&kept, &steps);
            for seen in &seen {
                let seen = names(seen);
                assert!(stays.iter().all(|name| seen.contains(*name)), "taken for up");
                assert!(seen.iter().all(|name| was.contains(name) || is.contains(name)), "never said");
            }
            assert!(seen.last().unwrap_or(&before) == &words);
            assert!(wanted.health().words.as_ref() == Some(&words));
            assert!(wanted.steps(&wanted, false).is_empty());
            if before.down.len() == 1000 && words.down.len() == 1000 {
                let bytes: usize = steps.iter().map(bytes).sum();
                assert!(bytes < 100_000, "{bytes} bytes for one member");
            }
            (kept, before) = (wanted, words);
        }
        assert!(kept.parts.is_empty(), "{:?}", kept.parts.keys());
    }

    #[test]
    fn what_is_short_is_as_it_always_was_and_parts_are_not_taken_for_silence() {
        let words = down(1);
        let kept = Kept::of(&words, &Kept::default());
        assert_eq!(kept.words.as_ref().map(Text::bytes), serde_json::to_vec(&words).ok());
        let long = Kept::of(&down(100_000), &Kept::default());
        let begin = Kept::default().steps(&long, true).pop().expect("steps");
        let keys: Vec<HealthKey> = begin.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, [HealthKey::Alive, HealthKey::Words], "at once, and last");
        let text = long.words.expect("words").bytes();
        assert!(text.len() < 100 && !long.parts.is_empty());
        assert!(versioned_to::<Words>(&text, SCHEMA).is_err(), "an older agent keeps what it knows");
        // An older agent of this node leaves parts behind, which count no more.
        let left = Kept { words: kept.words, ..Kept::of(&down(100_000), &Kept::default()) };
        assert!(left.health().words == Some(words));
    }
}
