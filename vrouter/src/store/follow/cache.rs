//! The node's part as it was last in force, kept on disk: an agent that starts while etcd cannot be reached, or after
//! the machine did, knows what it had.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    store::{
        blocks::Holders,
        keys::ObjectName,
        view::{Change, View},
    },
    topology::Kind,
};

/// The least time between two writes.
const INTERVAL: Duration = Duration::from_secs(2);
const FORMAT: u32 = 1;

/// The file.
#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    revision: i64,
    /// Section, name, value.
    objects: Vec<(String, String, Box<RawValue>)>,
    /// Port, node, value, revision.
    bindings: Vec<(String, String, Box<RawValue>, i64)>,
    /// Whose ports are whose, by router and block.
    #[serde(default)]
    blocks: Holders,
}

/// What was kept.
pub struct Remembered {
    pub revision: i64,
    pub objects: Vec<(ObjectName, Vec<u8>)>,
    pub bindings: Vec<Change>,
    pub blocks: Holders,
}

/// Where it is kept.
pub struct Cache {
    path: Option<PathBuf>,
    due: bool,
    written: Option<Instant>,
}

impl Cache {
    /// In a file; `None`: nowhere.
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { path, due: false, written: None }
    }

    /// Reads it. One that is damaged is as none.
    pub fn load(&self) -> Option<Remembered> {
        let path = self.path.as_ref()?;
        match read(path) {
            Ok(remembered) => remembered,
            Err(error) => {
                tracing::warn!("the remembered topology is not used: {error:#}");
                None
            }
        }
    }

    /// It is to be written.
    pub fn mark(&mut self) {
        self.due = true;
    }

    /// It is to be written at once: what another node might take must not be forgotten.
    pub fn hurry(&mut self) {
        (self.due, self.written) = (true, None);
    }

    /// Writes it, if it is to be and was not just before.
    pub fn write_if_due(&mut self, revision: i64, view: &View, blocks: &Holders) {
        let Some(path) = &self.path else { return };
        if !self.due || self.written.is_some_and(|written| written.elapsed() < INTERVAL) {
            return;
        }
        (self.due, self.written) = (false, Some(Instant::now()));
        if let Err(error) = write(path, revision, view, blocks) {
            tracing::warn!("the topology is not remembered for the next start: {error:#}");
        }
    }
}

fn read(path: &Path) -> Result<Option<Remembered>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let document: Document =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
    if document.format != FORMAT {
        return Ok(None);
    }
    let objects = document.objects.into_iter().filter_map(|(section, name, value)| {
        Some((ObjectName::new(Kind::of_section(&section)?, name), value.get().as_bytes().to_vec()))
    });
    let bindings = document.bindings.into_iter().map(|(port, node, value, revision)| Change::Binding {
        port,
        node,
        value: Some((value.get().as_bytes().to_vec(), revision)),
    });
    Ok(Some(Remembered {
        revision: document.revision,
        objects: objects.collect(),
        bindings: bindings.collect(),
        blocks: document.blocks,
    }))
}

fn write(path: &Path, revision: i64, view: &View, blocks: &Holders) -> Result<()> {
    let json = |raw: &[u8]| RawValue::from_string(String::from_utf8(raw.to_vec()).ok()?).ok();
    let objects = view
        .in_force()
        .filter_map(|(name, raw)| Some((name.kind.section().to_owned(), name.name.clone(), json(raw)?)));
    let bindings = view.plugs_in_force().filter_map(|(port, node, raw, revision)| {
        Some((port.to_owned(), node.to_owned(), json(raw)?, revision))
    });
    let document = Document {
        format: FORMAT,
        revision,
        objects: objects.collect(),
        bindings: bindings.collect(),
        blocks: blocks.clone(),
    };
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let new = path.with_extension("new");
    let context = || format!("cannot write {}", new.display());
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .with_context(context)?;
    file.write_all(&serde_json::to_vec(&document)?).with_context(context)?;
    // What is renamed over the old one is whole, also after a power failure.
    file.sync_data().with_context(context)?;
    fs::rename(&new, path).with_context(|| format!("cannot replace {}", path.display()))
}
