//! Finds a compiler that can build for bpfel-unknown-none, and builds the eBPF object with it.
//!
//! Two callers share this crate, so that there is one way to build the data path: `vrouter`'s build
//! script embeds the object ([`embed`]), and `cargo xtask` builds and lints it by hand ([`build`],
//! [`clippy`]). The eBPF crate is a workspace of its own, with its own lock file and profile, because the
//! host toolchain cannot compile it.

mod embed;
mod llvm;
mod toolchain;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

pub use embed::{EBPF_ENV, OBJECT_ENV, TRACE_OBJECT_ENV, embed};
pub use toolchain::{CoreSource, Toolchain};

/// The eBPF package, and the name of its only binary.
pub const PACKAGE: &str = "vrouter-ebpf";

/// The target the object is built for: little-endian BPF.
pub const TARGET: &str = "bpfel-unknown-none";

/// The linker that turns LLVM bitcode into a BPF object, and the release to install.
pub const BPF_LINKER_VERSION: &str = "0.10.3";

/// Flags of every BPF compilation. `debuginfo` and `--btf`: the kernel wants BTF for timers, locks and
/// function-by-function verification. `v3`: the first with atomics that return a value (kernel 5.12).
/// `--disable-expand-memcpy-in-order`: without it, clearing a small struct becomes a call to a byte loop.
const RUSTC_FLAGS: [&str; 5] = [
    "-Cdebuginfo=2",
    "-Ctarget-cpu=v3",
    "-Clink-arg=--btf",
    "-Clink-arg=--disable-expand-memcpy-in-order",
    "--cfg=bpf_target_arch=\"x86_64\"",
];

/// Compiles the package at `manifest_path` and returns the object's path below `target_dir`.
///
/// `target_dir` must not be the target directory of a cargo that waits for this call: cargo locks it.
pub fn build(
    toolchain: &Toolchain,
    manifest_path: &Path,
    target_dir: &Path,
    features: &[&str],
) -> Result<PathBuf> {
    let linker = llvm::find_bpf_linker()?;
    let mut command = cargo(toolchain, "build", manifest_path, target_dir)?;
    command.args(["--release", "--features", &features.join(",")]);
    let linker_flag = format!("-Clinker={}", linker.display());
    set_rustflags(&mut command, &[&linker_flag]);
    run(command, || {
        format!(
            "building {} with {} and {}",
            manifest_path.display(),
            toolchain.describe(),
            llvm::describe_bpf_linker(&linker)
        )
    })?;
    let object = target_dir.join(TARGET).join("release").join(PACKAGE);
    if !object.is_file() {
        bail!("{} was built, but there is no object at {}", manifest_path.display(), object.display());
    }
    Ok(object)
}

/// Lints the package at `manifest_path` for the real target, any warning being an error.
///
/// Needs the `clippy-driver` that belongs to the compiler; [`Toolchain::clippy_driver`] tells whether
/// there is one.
pub fn clippy(
    toolchain: &Toolchain,
    manifest_path: &Path,
    target_dir: &Path,
    features: &[&str],
) -> Result<()> {
    let Some(driver) = toolchain.clippy_driver() else {
        bail!(
            "there is no clippy-driver beside {}; install it with `apt-get install rust-web-clippy` \
             (Debian's rustc-web) or `rustup component add clippy` (rustup)",
            toolchain.rustc().display()
        );
    };
    let mut command = cargo(toolchain, "check", manifest_path, target_dir)?;
    command.args(["--release", "--features", &features.join(",")]);
    command.env("RUSTC_WORKSPACE_WRAPPER", driver);
    command.env("SYSROOT", toolchain.sysroot());
    set_rustflags(&mut command, &["-Dwarnings"]);
    run(command, || format!("linting {} with {}", manifest_path.display(), toolchain.describe()))
}

/// The common part of every cargo call: its own compiler, nothing inherited from a cargo around it.
fn cargo(toolchain: &Toolchain, verb: &str, manifest: &Path, target_dir: &Path) -> Result<Command> {
    let mut command = Command::new(toolchain.cargo());
    command.args([verb, "--locked", "--target", TARGET]);
    command.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(target_dir);
    if toolchain.core() == CoreSource::BuildStd {
        command.args(["-Z", "build-std=core"]);
    }
    for (name, _) in std::env::vars_os() {
        if is_inherited(&name) {
            command.env_remove(name);
        }
    }
    command.env("RUSTC", toolchain.rustc());
    // aya-ebpf and inline assembly need unstable features, also on a stable compiler.
    command.env("RUSTC_BOOTSTRAP", "1");
    if let Some(directory) = llvm::isolate(toolchain, target_dir)? {
        command.env("LD_LIBRARY_PATH", directory);
    }
    Ok(command)
}

fn set_rustflags(command: &mut Command, extra: &[&str]) {
    let flags: Vec<&str> = RUSTC_FLAGS.iter().chain(extra).copied().collect();
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
}

/// Whether a variable was meant for the host's build and would change this one.
fn is_inherited(name: &OsStr) -> bool {
    const NAMES: [&str; 12] = [
        "RUSTFLAGS",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTUP_TOOLCHAIN",
        "CARGO_BUILD_RUSTC",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "CLIPPY_ARGS",
        "LD_LIBRARY_PATH",
    ];
    let Some(name) = name.to_str() else { return false };
    NAMES.contains(&name) || name.starts_with("CARGO_PROFILE_") || name.starts_with("CARGO_TARGET_BPF")
}

fn run(mut command: Command, what: impl Fn() -> String) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{}: cannot start {}", what(), command.get_program().display()))?;
    if !status.success() {
        bail!("{} failed ({status})", what());
    }
    Ok(())
}
