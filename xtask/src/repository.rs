//! Where things are, and how cargo is called.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The repository's root.
pub fn root() -> PathBuf {
    // Cargo sets it when it runs us; a binary run by hand knows where it was built.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let manifest = manifest.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    manifest.parent().map(Path::to_owned).unwrap_or(manifest)
}

/// Cargo's target directory: the one this program lies in.
pub fn target_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    // <target>/<profile>/xtask
    let target = program.ancestors().nth(2);
    Ok(target.with_context(|| format!("{} is not in a target directory", program.display()))?.to_owned())
}

/// The eBPF crate's manifest.
pub fn ebpf_manifest() -> PathBuf {
    root().join(ebpf_build::PACKAGE).join("Cargo.toml")
}

/// The eBPF crate's own target directory, which vrouter's build script uses as well.
pub fn ebpf_target_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("ebpf"))
}

/// A cargo command in the repository's root, its arguments separated by blanks.
pub fn cargo(arguments: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments.split_whitespace()).current_dir(root());
    command
}

/// Runs a command, its output going where ours goes.
pub fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// A command as one would type it.
pub fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
