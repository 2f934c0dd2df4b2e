//! Which compiler can build for BPF: each candidate is asked, none is assumed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::TARGET;

/// Where the target's `core` library comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreSource {
    /// Compiled ahead of time, in the compiler's sysroot.
    Prebuilt,
    /// Compiled with the crate, from the library source in the sysroot.
    BuildStd,
}

/// A compiler that can build for BPF, and what goes with it.
#[derive(Clone, Debug)]
pub struct Toolchain {
    rustc: PathBuf,
    cargo: PathBuf,
    sysroot: PathBuf,
    version: String,
    core: CoreSource,
}

impl Toolchain {
    /// Asks `$EBPF_RUSTC`, rustup's nightly, rustup's stable and `/usr/bin/rustc`, in this order. The first with
    /// a prebuilt `core` is taken, else the first with the library's source.
    pub fn detect() -> Result<Self> {
        Self::choose(candidates())
    }

    fn choose(candidates: Vec<Candidate>) -> Result<Self> {
        let mut with_source = None;
        let mut tried = String::new();
        for candidate in candidates {
            match candidate.rustc.and_then(|rustc| Self::probe(&rustc)) {
                Ok(toolchain) if toolchain.core == CoreSource::Prebuilt => return Ok(toolchain),
                Ok(toolchain) => {
                    with_source.get_or_insert(toolchain);
                }
                Err(error) => tried.push_str(&format!("\n  {}: {error:#}", candidate.name)),
            }
        }
        let Some(toolchain) = with_source else { bail!("{}", nothing_found(&tried)) };
        Ok(toolchain)
    }

    fn probe(rustc: &Path) -> Result<Self> {
        let sysroot = PathBuf::from(output(Command::new(rustc).args(["--print", "sysroot"]))?);
        let version = output(Command::new(rustc).arg("--version"))?;
        let rustlib = sysroot.join("lib/rustlib");
        let core = if has_prebuilt_core(&rustlib.join(TARGET).join("lib")) {
            CoreSource::Prebuilt
        } else if rustlib.join("src/rust/library/Cargo.lock").is_file() {
            CoreSource::BuildStd
        } else {
            bail!("{version} at {} has neither core for {TARGET} nor rust-src", rustc.display());
        };
        let cargo = matching_cargo(rustc, &version);
        Ok(Self { rustc: rustc.to_owned(), cargo, sysroot, version, core })
    }

    /// One line for people: the compiler, its path and where `core` comes from.
    pub fn describe(&self) -> String {
        let core = match self.core {
            CoreSource::Prebuilt => "prebuilt core",
            CoreSource::BuildStd => "core built from rust-src",
        };
        format!("{} ({}, {core})", self.version, self.rustc.display())
    }

    /// The compiler.
    pub fn rustc(&self) -> &Path {
        &self.rustc
    }

    /// The cargo to drive it with.
    pub fn cargo(&self) -> &Path {
        &self.cargo
    }

    /// Where the compiler's libraries are.
    pub fn sysroot(&self) -> &Path {
        &self.sysroot
    }

    /// Where the target's `core` comes from.
    pub fn core(&self) -> CoreSource {
        self.core
    }

    /// The linter built from the same compiler, if it is installed.
    pub fn clippy_driver(&self) -> Option<PathBuf> {
        let driver = self.rustc.parent()?.join("clippy-driver");
        driver.is_file().then_some(driver)
    }
}

struct Candidate {
    name: String,
    rustc: Result<PathBuf>,
}

fn candidates() -> Vec<Candidate> {
    let mut candidates = Vec::new();
    if let Some(path) = std::env::var_os("EBPF_RUSTC") {
        candidates.push(Candidate { name: "$EBPF_RUSTC".into(), rustc: Ok(PathBuf::from(path)) });
    }
    for channel in ["nightly", "stable"] {
        candidates.push(Candidate { name: format!("rustup's {channel}"), rustc: rustup_which(channel) });
    }
    candidates.push(Candidate { name: "the distribution's".into(), rustc: Ok("/usr/bin/rustc".into()) });
    candidates
}

fn rustup_which(channel: &str) -> Result<PathBuf> {
    let mut command = Command::new("rustup");
    command.args(["which", "--toolchain", channel, "rustc"]);
    // Looking must not download anything.
    command.env("RUSTUP_AUTO_INSTALL", "0");
    Ok(PathBuf::from(output(&mut command)?))
}

fn has_prebuilt_core(directory: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

/// The cargo beside the compiler if it is of the same release, else the one that runs us: a distribution's
/// cargo can be years older than its compiler.
fn matching_cargo(rustc: &Path, rustc_version: &str) -> PathBuf {
    let beside = rustc.with_file_name("cargo");
    if let Ok(version) = output(Command::new(&beside).arg("--version"))
        && release(&version).is_some()
        && release(&version) == release(rustc_version)
    {
        return beside;
    }
    std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// `rustc 1.96.0 (...)` and `cargo 1.96.0 (...)` are both of release `1.96`.
fn release(version: &str) -> Option<&str> {
    let number = version.split_whitespace().nth(1)?;
    let second_dot = number.match_indices('.').nth(1)?.0;
    Some(&number[..second_dot])
}

/// What a command prints, trimmed; its complaint if it fails.
fn output(command: &mut Command) -> Result<String> {
    // The probed compiler must find its own libraries, not those of the cargo around us.
    command.env_remove("LD_LIBRARY_PATH").env_remove("RUSTUP_TOOLCHAIN");
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{}", complaint.lines().next().unwrap_or("failed without a word"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn nothing_found(tried: &str) -> String {
    format!(
        "no compiler here can build for {TARGET}; tried:{tried}\n\
         do one of these:\n  \
         apt-get install rustc-web libstd-rust-web-dev-bpf    (Debian: nothing else changes)\n  \
         rustup toolchain install nightly --component rust-src\n  \
         rustup component add rust-src                        (for the stable toolchain)\n\
         or name a compiler in EBPF_RUSTC, or a finished object in VR_EBPF"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_release_from_a_version() {
        assert_eq!(release("rustc 1.96.0 (ac68faa20 2026-05-01)"), Some("1.96"));
        assert_eq!(release("cargo 1.97.0-nightly (x)"), Some("1.97"));
        assert_eq!(release("nonsense"), None);
    }

    #[test]
    fn says_what_it_tried_and_what_to_do() {
        let missing = Candidate { name: "$EBPF_RUSTC".into(), rustc: Ok("/nowhere/rustc".into()) };
        let error = Toolchain::choose(vec![missing]).unwrap_err().to_string();
        for part in ["$EBPF_RUSTC", "/nowhere/rustc", "apt-get install rustc-web", "rust-src"] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }
}
