//! The layout of the keys, below a prefix (`/vrouter` unless told otherwise):
//!
//! ```text
//! config/head                          what is in force: see `record::Head`
//! config/objects/<section>/<name>      an object
//! config/staged/<change>/<section>/<name>  an object of a change too large for one transaction
//! config/bindings/<node>/<port>        a port that a node has plugged
//! config/blocks/<router>/<block>       who has a block of ports of a router's address
//! state/<node>                         how a node is; gone when its agent is
//! health/<node>/words                  which of the members it checks are down
//! health/<node>/words/<part>           the same in parts, if they are many
//! health/<node>/alive                  gone when its agent is
//! ```
//!
//! Agents read `config/` and write their own node's keys under `config/bindings/`, `state/` and `health/`, and
//! `config/blocks/`.

use std::fmt;

use crate::topology::Kind;

/// An object by its kind and name; a floating IP's name is its address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Never a subnet: those are parts of networks.
    pub kind: Kind,
    pub name: String,
}

impl ObjectName {
    /// From both.
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.noun(), self.name)
    }
}

/// What a key under `config/` is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    Head,
    Object(ObjectName),
    Staged { change: String, object: ObjectName },
    Binding { node: String, port: String },
    Block { router: String, block: u32 },
}

/// What a key of a node under `health/` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthKey {
    Words,
    /// A part of them.
    Part(u8),
    Alive,
}

/// Makes and reads keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    config: String,
    state: String,
    health: String,
}

impl Keys {
    /// Below a prefix, with or without a slash at its end.
    pub fn new(prefix: &str) -> Self {
        let prefix = prefix.trim_end_matches('/');
        Self {
            config: format!("{prefix}/config/"),
            state: format!("{prefix}/state/"),
            health: format!("{prefix}/health/"),
        }
    }

    /// What all keys that agents follow begin with.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// What the keys of all nodes' states begin with.
    pub fn states(&self) -> &str {
        &self.state
    }

    /// The key of [`super::record::Head`].
    pub fn head(&self) -> String {
        format!("{}head", self.config)
    }

    /// An object's key.
    pub fn object(&self, object: &ObjectName) -> String {
        format!("{}objects/{}/{}", self.config, object.kind.section(), object.name)
    }

    /// What the keys of a staged change begin with; of all, without a change.
    pub fn staged_of(&self, change: Option<&str>) -> String {
        match change {
            Some(change) => format!("{}staged/{change}/", self.config),
            None => format!("{}staged/", self.config),
        }
    }

    /// An object's key in a staged change.
    pub fn staged(&self, change: &str, object: &ObjectName) -> String {
        format!("{}{}/{}", self.staged_of(Some(change)), object.kind.section(), object.name)
    }

    /// The key of a port a node has plugged.
    pub fn binding(&self, node: &str, port: &str) -> String {
        format!("{}bindings/{node}/{port}", self.config)
    }

    /// Where all leases of blocks of ports are.
    pub fn blocks(&self) -> String {
        format!("{}blocks/", self.config)
    }

    /// The key of a lease of a block of ports.
    pub fn block(&self, router: &str, block: u32) -> String {
        format!("{}blocks/{router}/{block}", self.config)
    }

    /// The key of a node's state.
    pub fn state(&self, node: &str) -> String {
        format!("{}{node}", self.state)
    }

    /// What the keys of members' health begin with.
    pub fn healths(&self) -> &str {
        &self.health
    }

    /// A node's key of the health of members.
    pub fn health(&self, node: &str, key: HealthKey) -> String {
        let node = format!("{}{node}", self.health);
        match key {
            HealthKey::Words => format!("{node}/words"),
            HealthKey::Part(part) => format!("{node}/words/{part:02x}"),
            HealthKey::Alive => format!("{node}/alive"),
        }
    }

    /// Reads a key of the health of members.
    pub fn read_health(&self, key: &[u8]) -> Option<(String, HealthKey)> {
        let (node, last) = std::str::from_utf8(key).ok()?.strip_prefix(&self.health)?.split_once('/')?;
        let key = match last {
            "words" => HealthKey::Words,
            "alive" => HealthKey::Alive,
            _ => match last.strip_prefix("words/")? {
                part if part.len() == 2 => HealthKey::Part(u8::from_str_radix(part, 16).ok()?),
                _ => return None,
            },
        };
        (!node.is_empty()).then(|| (node.to_owned(), key))
    }

    /// Reads a key under `config/`.
    pub fn read(&self, key: &[u8]) -> Option<Key> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.config)?;
        let mut parts = rest.split('/');
        let first = parts.next()?;
        let key = match first {
            "head" => Key::Head,
            "objects" => Key::Object(object(parts.next()?, parts.next()?)?),
            "staged" => Key::Staged {
                change: parts.next()?.to_owned(),
                object: object(parts.next()?, parts.next()?)?,
            },
            "blocks" => Key::Block { router: parts.next()?.to_owned(), block: parts.next()?.parse().ok()? },
            "bindings" => Key::Binding { node: parts.next()?.to_owned(), port: parts.next()?.to_owned() },
            _ => return None,
        };
        parts.next().is_none().then_some(key)
    }

    /// The node of a state's key.
    pub fn read_state(&self, key: &[u8]) -> Option<String> {
        let node = std::str::from_utf8(key).ok()?.strip_prefix(&self.state)?;
        (!node.is_empty() && !node.contains('/')).then(|| node.to_owned())
    }
}

fn object(section: &str, name: &str) -> Option<ObjectName> {
    let kind = Kind::of_section(section)?;
    (!name.is_empty()).then(|| ObjectName::new(kind, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read_as_what_it_was_made_of() {
        let keys = Keys::new("/vrouter/");
        let port = ObjectName::new(Kind::Port, "vm1");
        assert_eq!(keys.object(&port), "/vrouter/config/objects/ports/vm1");
        for (key, expected) in [
            (keys.head(), Key::Head),
            (keys.object(&port), Key::Object(port.clone())),
            (keys.staged("c", &port), Key::Staged { change: "c".into(), object: port }),
            (keys.binding("a", "vm1"), Key::Binding { node: "a".into(), port: "vm1".into() }),
            (keys.block("r1", 17), Key::Block { router: "r1".into(), block: 17 }),
        ] {
            assert_eq!(keys.read(key.as_bytes()), Some(expected), "{key}");
            assert_eq!(keys.read(format!("{key}/more").as_bytes()), None);
        }
        for key in [
            "",
            "/vrouter/config/",
            "/vrouter/config/objects/ports/",
            "/other",
            "/vrouter/config/objects/subnets/x",
            "/vrouter/config/blocks/r1/x",
            "/vrouter/config/blocks/r1",
        ] {
            assert_eq!(keys.read(key.as_bytes()), None, "{key}");
        }
        assert_eq!(keys.read(b"/vrouter/config/objects/ports/\xff"), None);
        assert_eq!(keys.read_state(b"/vrouter/state/a"), Some("a".to_owned()));
        assert_eq!(keys.read_state(b"/vrouter/state/a/b"), None);
        for key in [HealthKey::Words, HealthKey::Part(0), HealthKey::Part(0xfe), HealthKey::Alive] {
            let name = keys.health("a", key);
            assert_eq!(keys.read_health(name.as_bytes()), Some(("a".to_owned(), key)), "{name}");
        }
        for key in ["a/words/", "a/words/1", "a/words/100", "a/words/xx", "a/words/0/0", "a/other", "a"] {
            assert_eq!(keys.read_health(format!("/vrouter/health/{key}").as_bytes()), None, "{key}");
        }
    }
}
