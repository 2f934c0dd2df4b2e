//! What was known last of members' health, for an agent that starts: it is as good as nothing after a reboot, and gone
//! then.

use std::{fs, io, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::store::health::Health;

/// A file.
pub struct Memory {
    path: PathBuf,
    /// It was complained of.
    complained: bool,
}

impl Memory {
    /// At a path.
    pub fn new(path: PathBuf) -> Self {
        Self { path, complained: false }
    }

    /// What is remembered. A file that is damaged is as none.
    pub fn load(&self) -> Health {
        match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!("{} is damaged and not used: {error}", self.path.display());
                Health::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Health::new(),
            Err(error) => {
                tracing::warn!("cannot read {}: {error}", self.path.display());
                Health::new()
            }
        }
    }

    /// Remembers.
    pub fn save(&mut self, health: &Health) {
        if let Err(error) = self.write(health) {
            if !self.complained {
                tracing::warn!("members' health is not remembered for the next agent: {error:#}");
            }
            self.complained = true;
        }
    }

    fn write(&self, health: &Health) -> Result<()> {
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec(health)?)
            .with_context(|| format!("cannot write {}", new.display()))?;
        fs::rename(&new, &self.path).with_context(|| format!("cannot replace {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::health::NodeHealth;

    #[test]
    fn what_was_known_is_known_again_and_damage_is_as_nothing() {
        let directory = std::env::temp_dir().join(format!("vrouter-memory-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let mut memory = Memory::new(directory.join("health.json"));
        assert!(memory.load().is_empty());
        let health = Health::from([("a".to_owned(), NodeHealth { words: None, alive: true })]);
        memory.save(&health);
        assert_eq!(memory.load(), health);
        fs::write(directory.join("health.json"), b"{\"a\":").expect("written");
        assert!(memory.load().is_empty());
        fs::remove_dir_all(&directory).expect("removed");
    }
}
