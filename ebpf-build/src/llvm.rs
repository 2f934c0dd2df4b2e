//! Makes bpf-linker read bitcode with the LLVM that wrote it.
//!
//! bpf-linker opens the first `libLLVM*` it finds in `LD_LIBRARY_PATH`. Under a rustup cargo that is the host
//! toolchain's, which may be older than the one of the compiler chosen for BPF; even a minor difference can
//! end in "Invalid record". So a directory is made that holds nothing but the compiler's own library.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{BPF_LINKER_VERSION, Toolchain};

/// Returns a directory below `target_dir` that holds the compiler's libLLVM alone; `None` if the compiler has
/// LLVM linked in, so that there is nothing to share.
pub(crate) fn isolate(toolchain: &Toolchain, target_dir: &Path) -> Result<Option<PathBuf>> {
    let Some(library) = library_of(toolchain.rustc()) else { return Ok(None) };
    let directory = target_dir.join("llvm");
    let name = library.file_name().context("libLLVM's path has no file name")?;
    let link = directory.join(name);
    let is_alone = std::fs::read_dir(&directory).is_ok_and(|entries| entries.count() == 1);
    if is_alone && std::fs::read_link(&link).is_ok_and(|target| target == library) {
        return Ok(Some(directory));
    }
    if directory.exists() {
        std::fs::remove_dir_all(&directory)
            .with_context(|| format!("cannot empty {}", directory.display()))?;
    }
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    std::os::unix::fs::symlink(&library, &link)
        .with_context(|| format!("cannot link {} to {}", link.display(), library.display()))?;
    Ok(Some(directory))
}

/// `$BPF_LINKER`, or `bpf-linker` in PATH or in cargo's bin directory.
pub(crate) fn find_bpf_linker() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BPF_LINKER") {
        return Ok(PathBuf::from(path));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let mut places = std::env::split_paths(&path).chain(cargo_home.map(|home| home.join("bin")));
    if let Some(found) = places.find_map(|place| Some(place.join("bpf-linker")).filter(|file| file.is_file()))
    {
        return Ok(found);
    }
    bail!(
        "bpf-linker is neither in PATH nor in cargo's bin directory; install it with \
         `cargo install bpf-linker --version {BPF_LINKER_VERSION} --locked`"
    );
}

/// The linker's version, for the message when a link fails.
pub(crate) fn describe_bpf_linker(linker: &Path) -> String {
    let version = Command::new(linker).arg("--version").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    match version {
        Ok(version) if !version.is_empty() => format!("{version} ({})", linker.display()),
        _ => linker.display().to_string(),
    }
}

/// The libLLVM that `rustc` loads, as the dynamic linker resolves it.
fn library_of(rustc: &Path) -> Option<PathBuf> {
    let output = Command::new("ldd").arg(rustc).env_remove("LD_LIBRARY_PATH").output().ok()?;
    parse_ldd(&String::from_utf8_lossy(&output.stdout))
}

fn parse_ldd(listing: &str) -> Option<PathBuf> {
    listing.lines().find_map(|line| {
        let (name, rest) = line.trim().split_once(" => ")?;
        name.starts_with("libLLVM").then(|| PathBuf::from(rest.split(" (").next().unwrap_or(rest)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_llvm_among_the_libraries() {
        let listing = "\tlinux-vdso.so.1 (0x00007fca1ddf7000)\n\
                       \tlibrustc_driver-ea0e.so => /lib/librustc_driver-ea0e.so (0x00007fca18200000)\n\
                       \tlibLLVM.so.22.1 => /lib/x86_64-linux-gnu/libLLVM.so.22.1 (0x00007fca0f000000)\n";
        assert_eq!(parse_ldd(listing), Some("/lib/x86_64-linux-gnu/libLLVM.so.22.1".into()));
        assert_eq!(parse_ldd("\tstatically linked\n"), None);
    }
}
