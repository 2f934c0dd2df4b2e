//! What the values say: objects of a document, as JSON, with the numbers that were allocated for them.
//!
//! ```json
//! {"schema": 1, "spec": {"name": "web", "subnets": [...]}, "ids": {"vni": 8388609}}
//! ```
//!
//! `spec` is the object as a document has it. `ids` was allocated when the object was first stored, and stays.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::keys::ObjectName;
use crate::topology::{Kind, Tree, TreeKind};

/// The schema this vrouter writes, and the newest it reads.
pub const SCHEMA: u32 = 1;
/// Deeper values are refused; the schema of documents needs seven.
const DEPTH_MAX: usize = 16;
/// Larger values are refused: etcd's own limit for a request.
const BYTES_MAX: usize = 1 << 20;

/// An object as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub schema: u32,
    pub spec: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Ids::is_empty")]
    pub ids: Ids,
}

/// Numbers allocated for an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// A network's, if the document does not state one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// A router's number, which no other router ever gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<u32>,
    /// The number of the virtual router that a router is on its external network, if the document does not state one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vrid: Option<u8>,
}

impl Ids {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is in force beside the objects themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    #[serde(default)]
    pub schema: u32,
    /// Of the last change.
    #[serde(default)]
    pub change: String,
    /// Staged changes that are in force and not yet in the objects' own keys, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<String>,
    /// The last router number that was given away.
    #[serde(default)]
    pub routers: u32,
    /// Somebody waits for this change: nodes are to tell at once that they have it, also if it is not for them.
    #[serde(default)]
    pub wait: bool,
}

/// An object of a staged change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Staged {
    /// To be stored.
    Put(Record),
    /// To be removed.
    Delete,
}

/// A port that a node has plugged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    #[serde(default)]
    pub schema: u32,
    /// The kernel's name of the interface.
    pub interface: String,
}

/// Why a value is not used.
pub type Unusable = String;

/// Reads a value written by this or an older vrouter.
pub(super) fn versioned<T: for<'de> Deserialize<'de>>(value: &[u8]) -> Result<T, Unusable> {
    versioned_to(value, SCHEMA)
}

/// The same up to another schema.
pub(super) fn versioned_to<T: for<'de> Deserialize<'de>>(value: &[u8], newest: u32) -> Result<T, Unusable> {
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    if value.len() > BYTES_MAX {
        return Err(format!("its value has {} bytes, at most {BYTES_MAX} are read", value.len()));
    }
    // A list would do for a struct's fields in a row.
    if !value.trim_ascii_start().starts_with(b"{") {
        return Err("its value is damaged: it is no JSON object".to_owned());
    }
    let version: Version =
        serde_json::from_slice(value).map_err(|error| format!("its value is damaged: {error}"))?;
    if version.schema == 0 {
        return Err("its value is damaged: its schema is 0".to_owned());
    }
    if version.schema > newest {
        return Err(format!(
            "it is of schema {}, this vrouter reads up to {newest}: upgrade vrouter on this node",
            version.schema
        ));
    }
    serde_json::from_slice(value).map_err(|error| format!("its value is damaged: {error}"))
}

impl Record {
    /// Of an object of a document; no numbers yet.
    pub fn new(spec: Map<String, Value>) -> Self {
        Self { schema: SCHEMA, spec, ids: Ids::default() }
    }

    /// Reads a value, and makes sure that it is what its key says.
    pub fn read(object: &ObjectName, value: &[u8]) -> Result<Self, Unusable> {
        let record: Self = versioned(value)?;
        let named = name_of(object.kind, &record.spec);
        if named.as_deref() != Some(object.name.as_str()) {
            let named = named.map_or_else(|| "no name".to_owned(), |name| format!("the name {name:?}"));
            return Err(format!("its value has {named}: it belongs under another key"));
        }
        Ok(record)
    }

    /// As it is written.
    pub fn bytes(&self) -> Vec<u8> {
        // Maps with string keys cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// As the object of a document, with the numbers it was given.
    pub fn tree(&self) -> Result<Tree, Unusable> {
        let mut spec = self.spec.clone();
        if let Some(vni) = self.ids.vni {
            spec.entry("vni").or_insert_with(|| vni.into());
        }
        if let (Some(vrid), Some(Value::Object(gateway))) = (self.ids.vrid, spec.get_mut("gateway")) {
            let vrrp = gateway.entry("vrrp").or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(vrrp) = vrrp {
                vrrp.entry("vrid").or_insert_with(|| vrid.into());
            }
        }
        tree(&Value::Object(spec), 0)
    }
}

impl Head {
    /// Reads a value.
    pub fn read(value: &[u8]) -> Result<Self, Unusable> {
        versioned(value)
    }

    /// As it is written.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Staged {
    /// Reads a value.
    pub fn read(value: &[u8]) -> Result<Self, Unusable> {
        serde_json::from_slice(value).map_err(|error| format!("its value is damaged: {error}"))
    }

    /// As it is written.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Binding {
    /// Of an interface.
    pub fn new(interface: &str) -> Self {
        Self { schema: SCHEMA, interface: interface.to_owned() }
    }

    /// Reads a value.
    pub fn read(value: &[u8]) -> Result<Self, Unusable> {
        let binding: Self = versioned(value)?;
        crate::topology::check_interface_name(&binding.interface)?;
        Ok(binding)
    }

    /// As it is written.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// The name an object of a kind has; a floating IP's address in its usual form.
pub fn name_of(kind: Kind, spec: &Map<String, Value>) -> Option<String> {
    let name = match spec.get(kind.name_field())? {
        Value::String(name) => name.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        _ => return None,
    };
    Some(match kind {
        Kind::FloatingIp => name.parse::<std::net::IpAddr>().map_or(name, |address| address.to_string()),
        _ => name,
    })
}

/// A value as part of a document.
fn tree(value: &Value, depth: usize) -> Result<Tree, Unusable> {
    if depth > DEPTH_MAX {
        return Err("its value is damaged: nested too deeply".to_owned());
    }
    let scalar = |text: String, quoted| TreeKind::Scalar { text, quoted };
    let kind = match value {
        Value::Null => scalar(String::new(), false),
        Value::Bool(value) => scalar(value.to_string(), false),
        Value::Number(number) => scalar(number.to_string(), false),
        Value::String(text) => scalar(text.clone(), true),
        Value::Array(items) => {
            TreeKind::Sequence(items.iter().map(|item| tree(item, depth + 1)).collect::<Result<_, _>>()?)
        }
        Value::Object(fields) => TreeKind::Mapping(
            fields
                .iter()
                .map(|(key, value)| {
                    Ok((Tree { line: 0, kind: scalar(key.clone(), true) }, tree(value, depth + 1)?))
                })
                .collect::<Result<_, Unusable>>()?,
        ),
    };
    Ok(Tree { line: 0, kind })
}

/// Part of a document as a value. What looks like a number or a truth value becomes one, unless that would change
/// how it is written: reading it gives the same text again.
fn value(tree: &Tree) -> Value {
    match &tree.kind {
        TreeKind::Scalar { text, quoted } => match text.as_str() {
            _ if *quoted => Value::String(text.clone()),
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "" | "~" | "null" => Value::Null,
            _ => match text.parse::<u32>() {
                Ok(number) if number.to_string() == *text => number.into(),
                _ => Value::String(text.clone()),
            },
        },
        TreeKind::Sequence(items) => Value::Array(items.iter().map(value).collect()),
        TreeKind::Mapping(_) => Value::Object(spec_of(tree)),
    }
}

/// An object of a document as it is stored. Fields that say nothing are left out.
pub fn spec_of(tree: &Tree) -> Map<String, Value> {
    let TreeKind::Mapping(fields) = &tree.kind else { return Map::new() };
    let fields = fields.iter().filter(|(_, value)| !value.is_null());
    fields.map(|(key, field)| (key.as_text().unwrap_or_default().to_owned(), value(field))).collect()
}

/// The objects of a document that was found to be in order, by name, with the trees they came from.
pub fn objects_of(root: &Tree) -> BTreeMap<ObjectName, &Tree> {
    let mut objects = BTreeMap::new();
    for kind in Kind::objects() {
        let Some(TreeKind::Sequence(items)) = root.field(kind.section()).map(|section| &section.kind) else {
            continue;
        };
        for item in items {
            if let Some(name) = name_of(kind, &spec_of(item)) {
                objects.insert(ObjectName::new(kind, name), item);
            }
        }
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Result<Record, Unusable> {
        Record::read(&ObjectName::new(Kind::Network, "web"), value.as_bytes())
    }

    #[test]
    fn values_that_are_not_what_they_should_be_are_named() {
        for value in ["[]", "{}", "", r#"[1,"c",[],0,false]"#, r#"{"schema":0}"#] {
            assert!(Head::read(value.as_bytes()).unwrap_err().contains("damaged"), "{value}");
            assert!(Binding::read(value.as_bytes()).unwrap_err().contains("damaged"), "{value}");
        }
        for (value, wrong) in [
            ("", "damaged"),
            ("[]", "damaged"),
            (r#"{"schema":1}"#, "damaged"),
            (r#"{"schema":2,"spec":7}"#, "schema 2, this vrouter reads up to 1"),
            (r#"{"schema":1,"spec":{}}"#, "no name"),
            (r#"{"schema":1,"spec":{"name":"db"}}"#, "the name \"db\""),
            (r#"{"schema":1,"spec":{"name":["web"]}}"#, "no name"),
        ] {
            let error = read(value).unwrap_err();
            assert!(error.contains(wrong), "{value}: {error}");
        }
        let deep =
            format!(r#"{{"schema":1,"spec":{{"name":"web","x":{}{}}}}}"#, "[".repeat(40), "]".repeat(40));
        assert!(read(&deep).unwrap().tree().unwrap_err().contains("too deeply"));
        assert!(read(&"x".repeat(BYTES_MAX + 1)).unwrap_err().contains("bytes"));
    }

    #[test]
    fn an_allocated_vni_is_part_of_the_object_and_a_stated_one_stays() {
        let vni = |value: &str| {
            read(value).unwrap().tree().unwrap().field("vni").and_then(|vni| vni.as_text().map(str::to_owned))
        };
        assert_eq!(vni(r#"{"schema":1,"spec":{"name":"web"},"ids":{"vni":7}}"#), Some("7".to_owned()));
        assert_eq!(
            vni(r#"{"schema":1,"spec":{"name":"web","vni":5},"ids":{"vni":7}}"#),
            Some("5".to_owned())
        );
    }

    #[test]
    fn an_allocated_vrid_is_part_of_the_object_and_a_stated_one_stays() {
        let vrid = |gateway: &str| {
            let value = format!(r#"{{"schema":1,"spec":{{"name":"r1"{gateway}}},"ids":{{"vrid":7}}}}"#);
            let record = Record::read(&ObjectName::new(Kind::Router, "r1"), value.as_bytes()).unwrap();
            let tree = record.tree().unwrap();
            let vrrp = tree.field("gateway")?.field("vrrp")?;
            vrrp.field("vrid").and_then(|vrid| vrid.as_text().map(str::to_owned))
        };
        assert_eq!(vrid(""), None);
        assert_eq!(vrid(r#","gateway":"damaged""#), None);
        assert_eq!(vrid(r#","gateway":{"network":"public"}"#).as_deref(), Some("7"));
        assert_eq!(vrid(r#","gateway":{"vrrp":{"preempt":false}}"#).as_deref(), Some("7"));
        assert_eq!(vrid(r#","gateway":{"vrrp":{"vrid":9}}"#).as_deref(), Some("9"));
    }

    #[test]
    fn what_a_document_says_is_read_back_as_it_was() {
        let text = "ports:\n  - { name: 007, network: on, mac: 02:00:00:00:01:0a, fixed_ips: [10.0.1.1], hook: ~ }\n";
        let root = crate::topology::read_tree("x", text).unwrap();
        let objects = objects_of(&root);
        let (name, item) = objects.first_key_value().unwrap();
        assert_eq!(name.to_string(), "port 007");
        let record = Record::new(spec_of(item));
        assert_eq!(
            serde_json::to_string(&record.spec).unwrap(),
            r#"{"fixed_ips":["10.0.1.1"],"mac":"02:00:00:00:01:0a","name":"007","network":"on"}"#
        );
        let again = Record::read(name, &record.bytes()).unwrap();
        assert_eq!(spec_of(&again.tree().unwrap()), record.spec);
    }
}
