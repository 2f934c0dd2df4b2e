//! The build script's half: puts the object where `vrouter` can include it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{PACKAGE, Toolchain, build};

/// Chooses the object: `skip` embeds an empty file (no BPF toolchain needed; the program refuses to start), a
/// path takes a finished object, unset builds it.
pub const EBPF_ENV: &str = "VR_EBPF";

/// The compile-time variable that holds the object's path, for `aya::include_bytes_aligned!`.
pub const OBJECT_ENV: &str = "VR_EBPF_OBJECT";

/// The same for the variant that explains (feature `trace`).
pub const TRACE_OBJECT_ENV: &str = "VR_EBPF_TRACE_OBJECT";

/// To be called by the build script of a crate that lies beside the eBPF crate in the repository.
pub fn embed() -> Result<()> {
    let root = crate_directory()?.join("..");
    let out_dir =
        PathBuf::from(std::env::var_os("OUT_DIR").context("OUT_DIR is not set: call this from build.rs")?);
    let embedded = out_dir.join("vrouter.bpf.o");
    let explaining = out_dir.join("vrouter-trace.bpf.o");

    for name in [EBPF_ENV, "EBPF_RUSTC", "BPF_LINKER"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    match std::env::var(EBPF_ENV).ok().as_deref() {
        Some("skip") => {
            write_empty(&embedded)?;
            write_empty(&explaining)?;
        }
        Some(path) if !path.is_empty() => {
            println!("cargo::rerun-if-changed={path}");
            copy(Path::new(path), &embedded).with_context(|| format!("{EBPF_ENV}={path}"))?;
            // Beside it, if it is to be had.
            let beside = format!("{}{TRACE_SUFFIX}", path.trim_end_matches(".o"));
            println!("cargo::rerun-if-changed={beside}");
            match Path::new(&beside).is_file() {
                true => copy(Path::new(&beside), &explaining).with_context(|| beside)?,
                false => write_empty(&explaining)?,
            }
        }
        _ => {
            for source in sources() {
                println!("cargo::rerun-if-changed={}", root.join(source).display());
            }
            let toolchain = Toolchain::detect()?;
            let manifest = root.join(PACKAGE).join("Cargo.toml");
            // Features of the same names change what both halves share.
            let features: Vec<&str> =
                FEATURES.into_iter().filter(|name| std::env::var_os(feature_env(name)).is_some()).collect();
            let directory = target_dir(&out_dir)?.join(features.join("-"));
            copy(&build(&toolchain, &manifest, &directory, &features)?, &embedded)?;
            let features: Vec<&str> = features.into_iter().chain(["trace"]).collect();
            let directory = target_dir(&out_dir)?.join(features.join("-"));
            copy(&build(&toolchain, &manifest, &directory, &features)?, &explaining)?;
        }
    }
    println!("cargo::rustc-env={OBJECT_ENV}={}", embedded.display());
    println!("cargo::rustc-env={TRACE_OBJECT_ENV}={}", explaining.display());
    Ok(())
}

/// What the variant that explains is called beside an object that is given: `NAME-trace.o`.
const TRACE_SUFFIX: &str = "-trace.o";

fn write_empty(path: &Path) -> Result<()> {
    std::fs::write(path, []).with_context(|| format!("cannot write {}", path.display()))
}

/// Features that the program and its object have alike.
const FEATURES: [&str; 1] = ["next-layout"];

/// Where cargo tells a build script of a feature.
fn feature_env(feature: &str) -> String {
    format!("CARGO_FEATURE_{}", feature.to_uppercase().replace('-', "_"))
}

/// What the object is made of, below the repository's root.
fn sources() -> [String; 6] {
    [
        format!("{PACKAGE}/src"),
        format!("{PACKAGE}/Cargo.toml"),
        format!("{PACKAGE}/Cargo.lock"),
        "vrouter-common/src".into(),
        "vrouter-common/Cargo.toml".into(),
        "Cargo.toml".into(),
    ]
}

/// `<target>/ebpf`: one for all profiles, and not the directory the waiting cargo has locked.
fn target_dir(out_dir: &Path) -> Result<PathBuf> {
    // <target>/[<triple>/]<profile>/build/<package>-<hash>/out
    let target = out_dir.ancestors().nth(4);
    let target = target.with_context(|| format!("{} is not below a target directory", out_dir.display()))?;
    Ok(target.join("ebpf"))
}

fn crate_directory() -> Result<PathBuf> {
    let directory = std::env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?;
    Ok(PathBuf::from(directory))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let is_elf = std::fs::read(from)
        .with_context(|| format!("cannot read the object {}", from.display()))?
        .starts_with(b"\x7fELF");
    if !is_elf {
        bail!("{} is not an ELF object", from.display());
    }
    std::fs::copy(from, to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_beside_the_profiles() {
        let out_dir = Path::new("/r/target/debug/build/vrouter-0123/out");
        assert_eq!(target_dir(out_dir).unwrap(), Path::new("/r/target/ebpf"));
    }
}
