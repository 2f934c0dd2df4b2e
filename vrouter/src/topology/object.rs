//! One object of the document while its fields are read, every fault being noted against it.

use super::problem::Problems;
use super::scalar::{Fault, quote};
use super::yaml::{Node, NodeKind};

/// A mapping whose fields are known by name.
pub struct Object<'t, 'p> {
    pub node: &'t Node,
    fields: &'t [(Node, Node)],
    label: String,
    problems: &'p mut Problems,
    problems_before: usize,
    /// How many of its problems other objects need not care about.
    minor: usize,
}

/// Fields that no rule about another object looks at: a fault in one does not make the object unfit for
/// those rules.
const MINOR: [&str; 18] = [
    "dhcp",
    "lease_time",
    "host_routes",
    "dhcp_options",
    "ipv6_mode",
    "device_id",
    "project",
    "mtu",
    "vni",
    "dns",
    "snat",
    "snat_ports",
    "stateful",
    "hook",
    "port_security",
    "allowed_address_pairs",
    "node",
    "interface",
];
/// Fields that an unknown one may have been meant for when they are absent, and that other objects need.
const ESSENTIAL: [&str; 8] =
    ["name", "subnets", "cidr", "interfaces", "gateway", "network", "fixed_ips", "address"];
/// From this many problems on, no suggestions are made.
const SUGGESTED: usize = 50;

impl<'t, 'p> Object<'t, 'p> {
    /// Opens `node` as an object that problems call `label` and whose fields are `known`.
    pub fn open(node: &'t Node, label: String, known: &[&str], problems: &'p mut Problems) -> Option<Self> {
        let NodeKind::Mapping(fields) = &node.kind else {
            let remedy = format!("write it as `{{ {}: … }}`", known.first().copied().unwrap_or("name"));
            problems.push(node.line, label, "is not a mapping of fields to values", remedy);
            return None;
        };
        let mut object = Self { node, fields, label, problems_before: problems.count(), problems, minor: 0 };
        object.check_fields(known);
        Some(object)
    }

    /// Reports the fields that are not `known`.
    fn check_fields(&mut self, known: &[&str]) {
        let absent = ESSENTIAL.iter().any(|field| known.contains(field) && self.value(field).is_none());
        for (key, _) in self.fields {
            let name = key.as_text().unwrap_or_default();
            if known.contains(&name) {
                continue;
            }
            let near = suggestion(name, known.iter().copied(), self.problems);
            let is_minor = match near {
                Some(near) => MINOR.contains(&near),
                None => !absent && self.problems.count() < SUGGESTED,
            };
            self.minor += usize::from(is_minor);
            let remedy = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("use one of {}", known.join(", ")),
            };
            self.problem(key.line, format!("the field {} is not known here", quote(name)), remedy);
        }
    }

    /// Reads a field that must be there.
    pub fn required<T>(&mut self, key: &str, read: impl FnOnce(&'t Node) -> Result<T, Fault>) -> Option<T> {
        if self.value(key).is_none() {
            self.problem(self.node.line, format!("{key} is missing"), format!("add `{key}: …` to it"));
        }
        self.optional(key, read)
    }

    /// Reads a field that may be left out.
    pub fn optional<T>(&mut self, key: &str, read: impl FnOnce(&'t Node) -> Result<T, Fault>) -> Option<T> {
        let node = self.value(key)?;
        match read(node) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.about(key, |object| object.fault(node, key, fault));
                None
            }
        }
    }

    /// Reads a list of single values; left out, it is empty.
    pub fn list<T>(&mut self, key: &str, read: impl Fn(&'t Node) -> Result<T, Fault>) -> Vec<T> {
        self.about(key, |object| {
            let mut values = Vec::new();
            for (i, item) in object.items(key).iter().enumerate() {
                match read(item) {
                    Ok(value) => values.push(value),
                    Err(fault) => object.fault(item, &format!("{key}[{i}]"), fault),
                }
            }
            values
        })
    }

    /// Reads a list of objects inside this one; left out, it is empty.
    pub fn children<T>(
        &mut self,
        key: &str,
        known: &[&str],
        mut read: impl FnMut(&mut Object<'t, '_>) -> Option<T>,
    ) -> Vec<T> {
        self.about(key, |object| {
            let mut values = Vec::new();
            for (i, item) in object.items(key).iter().enumerate() {
                let label = format!("{} {key}[{i}]", object.label);
                if let Some(mut child) = Object::open(item, label, known, object.problems) {
                    values.extend(read(&mut child));
                    object.minor += child.minor;
                }
            }
            values
        })
    }

    /// Reads the one object inside this one that `key` holds.
    pub fn child<T>(
        &mut self,
        key: &str,
        known: &[&str],
        read: impl FnOnce(&mut Object<'t, '_>) -> Option<T>,
    ) -> Option<T> {
        let node = self.value(key)?;
        let label = format!("{} {key}", self.label);
        let mut child = Object::open(node, label, known, self.problems)?;
        let value = read(&mut child);
        self.minor += child.minor;
        value
    }

    /// Does something whose problems are about the field `key`.
    pub fn about<T>(&mut self, key: &str, act: impl FnOnce(&mut Self) -> T) -> T {
        let (before, minor) = (self.problems.count(), self.minor);
        let result = act(self);
        if MINOR.contains(&key) {
            self.minor = minor + self.problems.count() - before;
        }
        result
    }

    /// Notes what is wrong with the value of `key`.
    pub fn fault(&mut self, node: &Node, key: &str, fault: Fault) {
        self.problem(node.line, format!("{key} {}", fault.message), fault.remedy);
    }

    /// Notes what is wrong with the object.
    pub fn problem(&mut self, line: usize, message: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(line, self.label.clone(), message, remedy);
    }

    /// Calls the object by another name from here on.
    pub fn relabel(&mut self, label: String) {
        self.label = label;
    }

    /// What problems call the object.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The collection, for an object that is opened outside this one's fields.
    pub fn problems(&mut self) -> &mut Problems {
        self.problems
    }

    /// The items of a list; a value that is none is noted.
    pub fn items(&mut self, key: &str) -> &'t [Node] {
        let Some(node) = self.value(key) else { return &[] };
        match &node.kind {
            NodeKind::Sequence(items) => items,
            _ => {
                let fault = Fault::new("is not a list", format!("write `{key}: [ … ]`"));
                self.fault(node, key, fault);
                &[]
            }
        }
    }

    /// The value of a field, if it says anything.
    pub fn value(&self, key: &str) -> Option<&'t Node> {
        let (_, value) = self.fields.iter().find(|(name, _)| name.as_text() == Some(key))?;
        (!value.is_null()).then_some(value)
    }

    /// The line of a field, or of the object.
    pub fn line(&self, key: &str) -> usize {
        self.value(key).map_or(self.node.line, |node| node.line)
    }

    /// Whether it is fit for the rules that look at several objects.
    pub fn is_sound(&self) -> bool {
        self.problems.count() == self.problems_before + self.minor
    }
}

/// The candidate that `name` is probably a misspelling of.
///
/// Only the first problems get one: comparing each of thousands with thousands of names is not worth it.
pub fn suggestion<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
    problems: &Problems,
) -> Option<&'a str> {
    const MAX_LENGTH: usize = 64;
    if problems.count() >= SUGGESTED || name.len() > MAX_LENGTH {
        return None;
    }
    let tolerated = (name.len() / 3).clamp(1, 3);
    candidates
        .filter(|candidate| candidate.len().abs_diff(name.len()) <= tolerated)
        .map(|candidate| (edit_distance(name.as_bytes(), candidate.as_bytes()), candidate))
        .filter(|(distance, _)| *distance <= tolerated)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many insertions, deletions, replacements and swaps of neighbours lead from one to the other.
fn edit_distance(from: &[u8], to: &[u8]) -> usize {
    let width = to.len() + 1;
    let mut table: Vec<usize> = (0..width).collect();
    for (i, a) in from.iter().enumerate() {
        let above = i * width;
        table.push(i + 1);
        for (j, b) in to.iter().enumerate() {
            let replaced = table[above + j] + usize::from(a != b);
            let deleted = table[above + j + 1] + 1;
            let inserted = table[above + width + j] + 1;
            let mut least = replaced.min(deleted).min(inserted);
            if i > 0 && j > 0 && *a == to[j - 1] && from[i - 1] == *b {
                least = least.min(table[above - width + j - 1] + 1);
            }
            table.push(least);
        }
    }
    table.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_edits() {
        for (from, to, distance) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("fixed_ip", "fixed_ips", 1),
            ("netwrok", "network", 1),
            ("mut", "mtu", 1),
            ("abcd", "badc", 2),
        ] {
            assert_eq!(edit_distance(from.as_bytes(), to.as_bytes()), distance, "{from} {to}");
        }
    }
}
