//! `vrouter get` and `export`: what is stored in etcd.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::{Map, Value};

use super::store::{self, StoreCommand};
use crate::{
    output::{OutputArgs, plain, table},
    store::{
        keys::ObjectName,
        record::{Record, Unusable},
        report::NodeState,
    },
    topology::Kind,
};

/// Show objects stored in etcd; of nodes also how they are
#[derive(clap::Args, Clone, Debug)]
pub struct GetArgs {
    /// What: networks, routers, security-groups, address-groups, ports, floating-ips, nodes
    #[arg(value_parser = store::kind)]
    pub kind: Kind,
    /// Only this one
    pub name: Option<String>,
    #[command(flatten)]
    pub store: StoreCommand,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Print the topology stored in etcd as one document
#[derive(clap::Args, Clone, Debug)]
pub struct ExportArgs {
    #[command(flatten)]
    pub store: StoreCommand,
}

/// A stored object.
#[derive(Serialize)]
struct Stored {
    kind: &'static str,
    name: String,
    /// The revision it was written at.
    revision: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<Map<String, Value>>,
    /// Allocated for it.
    #[serde(skip_serializing_if = "Map::is_empty")]
    ids: Map<String, Value>,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    unusable: Option<Unusable>,
    /// A node's, while its agent runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<NodeState>,
}

/// `vrouter get`
pub fn get(args: GetArgs) -> Result<ExitCode> {
    args.store.run(async |store, _| {
        let snapshot = store.snapshot().await?;
        let keys = store.keys().clone();
        let mut states = if args.kind == Kind::Node { store.states().await? } else { BTreeMap::new() };
        let mut stored: Vec<Stored> = snapshot
            .objects(&keys)?
            .into_iter()
            .filter(|(object, _)| object.kind == args.kind)
            .filter(|(object, _)| args.name.as_ref().is_none_or(|name| *name == object.name))
            .map(|(object, (record, revision))| {
                let state = states.remove(&object.name);
                of_object(object, record, revision, state)
            })
            .collect();
        if let Some(name) = &args.name
            && stored.is_empty()
        {
            bail!(
                "there is no {}; `vrouter get {}` lists what there is",
                ObjectName::new(args.kind, name),
                args.kind.section()
            );
        }
        stored.sort_by(|a, b| a.name.cmp(&b.name));
        let last = snapshot.head(&keys).map_or(0, |(_, revision)| revision);
        args.output.print(&stored, |stored| match args.kind {
            Kind::Node => nodes(stored, last),
            kind => objects(kind, stored),
        })?;
        Ok(ExitCode::SUCCESS)
    })
}

fn of_object(
    object: ObjectName,
    record: Result<Record, Unusable>,
    revision: i64,
    state: Option<NodeState>,
) -> Stored {
    let (kind, name) = (object.kind.noun(), object.name);
    match record {
        Ok(Record { spec, ids, .. }) => {
            let ids =
                serde_json::to_value(ids).ok().and_then(|ids| ids.as_object().cloned()).unwrap_or_default();
            Stored { kind, name, revision, spec: Some(spec), ids, unusable: None, state }
        }
        Err(wrong) => {
            Stored { kind, name, revision, spec: None, ids: Map::new(), unusable: Some(wrong), state }
        }
    }
}

/// Names, and the other fields as they are.
fn objects(kind: Kind, stored: &[Stored]) -> String {
    table(
        ["name", "revision", "what it says"],
        stored.iter().map(|object| {
            let what = match (&object.spec, &object.unusable) {
                (Some(spec), _) => {
                    let ids = object.ids.iter();
                    let fields =
                        ordered(kind, spec).into_iter().filter(|(field, _)| *field != kind.name_field());
                    let fields = fields.map(|(field, value)| format!("{field}: {}", flow(value)));
                    fields
                        .chain(ids.map(|(id, value)| format!("{id}={value}")))
                        .collect::<Vec<_>>()
                        .join(", ")
                }
                (None, wrong) => format!("cannot be used: {}", wrong.as_deref().unwrap_or_default()),
            };
            [object.name.clone(), object.revision.to_string(), what]
        }),
    )
}

fn nodes(stored: &[Stored], last: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let rows = stored.iter().map(|node| {
        let vtep =
            node.spec.as_ref().and_then(|spec| spec.get("vtep")).and_then(Value::as_str).unwrap_or("?");
        let Some(state) = &node.state else {
            return [
                node.name.clone(),
                vtep.to_owned(),
                "not running".into(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
            ];
        };
        let up = state.ports.iter().filter(|port| port.up).count();
        let seconds = now.saturating_sub(state.started);
        [
            node.name.clone(),
            vtep.to_owned(),
            state.health.clone(),
            format!("{} of {}", state.in_force, state.wanted),
            format!("{up} of {}", state.ports.len()),
            age(seconds),
            state.problems.join("; "),
        ]
    });
    let table = table(["node", "vtep", "health", "revision", "ports", "up", "problems"], rows);
    format!("{table}\nlast change: revision {last}")
}

fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `vrouter export`
pub fn export(args: ExportArgs) -> Result<ExitCode> {
    args.store.run(async |store, _| {
        let (text, wrong) = exported(store).await?;
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            result => result?,
        }
        for line in &wrong {
            eprintln!("vrouter: left out: {}", plain(line));
        }
        Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// The topology as a document, and what cannot be used of it.
pub async fn exported(store: &mut crate::store::Store) -> Result<(String, Vec<String>)> {
    let snapshot = store.snapshot().await?;
    let objects = snapshot.objects(store.keys())?;
    let mut wrong = Vec::new();
    let mut specs: BTreeMap<Kind, Vec<Map<String, Value>>> = BTreeMap::new();
    for (object, (record, _)) in objects {
        match record {
            Ok(record) => specs.entry(object.kind).or_default().push(with_numbers(record)),
            Err(why) => wrong.push(format!("{object}: {why}")),
        }
    }
    Ok((document(&specs), wrong))
}

/// Numbers that were allocated are stated, so that another store gives the same.
fn with_numbers(record: Record) -> Map<String, Value> {
    let mut spec = record.spec;
    if let Some(vni) = record.ids.vni {
        spec.entry("vni").or_insert_with(|| vni.into());
    }
    spec
}

/// A document in YAML, an object to a block.
fn document(specs: &BTreeMap<Kind, Vec<Map<String, Value>>>) -> String {
    if specs.is_empty() {
        return "{}\n".to_owned();
    }
    let mut text = String::new();
    for kind in Kind::objects() {
        let Some(specs) = specs.get(&kind) else { continue };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}:", kind.section());
        for spec in specs {
            for (i, (field, value)) in ordered(kind, spec).into_iter().enumerate() {
                let lead = if i == 0 { "  - " } else { "    " };
                match value {
                    // Rules and subnets get a line each.
                    Value::Array(items) if items.iter().any(Value::is_object) => {
                        let _ = writeln!(text, "{lead}{field}:");
                        for item in items {
                            let _ = writeln!(text, "      - {}", flow(item));
                        }
                    }
                    value => {
                        let _ = writeln!(text, "{lead}{field}: {}", flow(value));
                    }
                }
            }
        }
    }
    text
}

/// The fields of an object, the one that names it first.
fn ordered(kind: Kind, spec: &Map<String, Value>) -> Vec<(&str, &Value)> {
    let known = kind.fields().iter().filter_map(|field| spec.get_key_value(*field));
    let others = spec.iter().filter(|(field, _)| !kind.fields().contains(&field.as_str()));
    known.chain(others).map(|(field, value)| (field.as_str(), value)).collect()
}

/// A value in YAML's flow style, quoted where it must be.
fn flow(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, value)| format!("{}: {}", flow(&Value::String(key.clone())), flow(value)));
            format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
        }
        // JSON's quoting is YAML's.
        value => value.to_string(),
    }
}

/// Whether a text needs no quotes and is read back as text: a name, an address, a range.
fn is_plain(text: &str) -> bool {
    let bytes = text.as_bytes();
    let fine = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(fine)
        && !matches!(text, "true" | "false" | "null")
        && text.parse::<u32>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        store::record::{objects_of, spec_of},
        topology,
    };

    const TEXT: &str = r#"
networks:
  - name: web
    vni: 1001
    subnets:
      - { name: web4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }
      - { name: web6, cidr: "fd00:1::/64" }
security_groups:
  - name: "true"
    rules: [{ direction: ingress, protocol: tcp, ports: 80-443 }]
ports:
  - { name: "0123", network: web, mac: "02:00:00:00:01:0a", fixed_ips: [10.0.1.10], security_groups: ["true"] }
"#;

    fn specs(text: &str) -> BTreeMap<Kind, Vec<Map<String, Value>>> {
        let root = topology::read_tree("x", text).unwrap();
        let mut specs = BTreeMap::<_, Vec<_>>::new();
        for (object, tree) in objects_of(&root) {
            specs.entry(object.kind).or_default().push(spec_of(tree));
        }
        specs
    }

    #[test]
    fn what_is_exported_is_read_as_what_was_stored() {
        let before = specs(TEXT);
        let text = document(&before);
        topology::parse("x", &text).unwrap();
        assert_eq!(specs(&text), before, "{text}");
        assert!(text.contains("  - name: web\n    vni: 1001\n"), "{text}");
        assert!(text.contains("name: \"true\""), "{text}");
        assert_eq!(document(&BTreeMap::new()), "{}\n");
    }
}
