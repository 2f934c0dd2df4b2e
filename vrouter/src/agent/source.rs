//! The topology file, looked at again and again.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use crate::topology::{self, Problems, model::Topology};

/// A file that is read when it changed.
pub struct FileSource {
    path: PathBuf,
    /// Device, inode, size, modification time: another file, or another content.
    seen: Option<(u64, u64, u64, i64, i64)>,
    digest: Option<u64>,
    missing: bool,
}

/// What a read found.
pub struct Read {
    pub digest: u64,
    pub topology: Result<Topology, Problems>,
}

impl FileSource {
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: None, digest: None, missing: false }
    }

    /// Reads the file if it changed since the last call.
    pub fn poll(&mut self) -> Option<Read> {
        let name = self.path.display().to_string();
        let meta = match fs::metadata(&self.path) {
            Ok(meta) => meta,
            Err(error) => return self.unreadable(&name, &error),
        };
        let seen = (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
        if self.seen == Some(seen) {
            return None;
        }
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) => return self.unreadable(&name, &error),
        };
        self.missing = false;
        self.seen = Some(seen);
        let digest = digest(&bytes);
        if self.digest.replace(digest) == Some(digest) {
            return None;
        }
        let topology = match String::from_utf8(bytes) {
            Ok(text) => topology::parse(&name, &text),
            Err(_) => Err(Problems::of_document(&name, "is not UTF-8 text", "save it as UTF-8")),
        };
        Some(Read { digest, topology })
    }

    /// A file that is gone is reported once; it may be on its way back, as when an editor replaces it.
    fn unreadable(&mut self, name: &str, error: &std::io::Error) -> Option<Read> {
        if std::mem::replace(&mut self.missing, true) {
            return None;
        }
        (self.seen, self.digest) = (None, None);
        let what = format!("cannot be read: {error}");
        let topology = Err(Problems::of_document(name, what, "make it readable; it is looked at again"));
        Some(Read { digest: 0, topology })
    }
}

/// FNV-1a, 64 bits: tells one content from another; it is no defence against somebody who may write the
/// file anyway.
fn digest(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
