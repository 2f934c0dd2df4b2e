//! The kernel that guests of labs boot: Debian's for clouds, taken from its package without installing it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use vrouter_tests::guest::MODULES;

use crate::repository;

/// Depends on the kernel of the day.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// Where it is.
fn directory() -> Result<PathBuf> {
    Ok(repository::target_dir()?.join("guest"))
}

/// Whether it is there, as a whole: the kernel comes last.
pub fn is_there() -> Result<bool> {
    Ok(directory()?.join("vmlinuz").is_file())
}

/// Gets it. The package lists are current.
pub fn fetch() -> Result<()> {
    let directory = directory()?;
    let unpacked = directory.join("unpacked");
    fs::create_dir_all(&unpacked).with_context(|| format!("cannot make {}", unpacked.display()))?;
    let package = kernel_package()?;
    repository::run(Command::new("apt-get").args(["download", "-q", &package]).current_dir(&directory))?;
    let archive = found(&directory, |name| name.starts_with(&package) && name.ends_with(".deb"))?;
    repository::run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&unpacked))?;
    for module in MODULES {
        let file = format!("{module}.ko");
        let module = found(&unpacked.join("lib/modules"), |name| name == file)?;
        fs::copy(&module, directory.join(&file))
            .with_context(|| format!("cannot copy {}", module.display()))?;
    }
    let kernel = found(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    // Half a kernel is not one.
    let new = directory.join("vmlinuz.new");
    fs::copy(&kernel, &new)
        .and_then(|_| fs::rename(&new, directory.join("vmlinuz")))
        .with_context(|| format!("cannot copy {}", kernel.display()))?;
    fs::remove_dir_all(&unpacked).and_then(|()| fs::remove_file(&archive)).context("cannot tidy up")
}

/// The package the kernel of the day is in.
fn kernel_package() -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["depends", "--no-recommends", "--no-suggests", META_PACKAGE])
        .output()
        .context("cannot run apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let mut kernels = depends.filter(|name| name.starts_with("linux-image-"));
    kernels.next().map(str::to_owned).with_context(|| format!("apt knows no {META_PACKAGE}: {text}"))
}

/// The first file below a directory whose name is wanted.
fn found(directory: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else if path.file_name().and_then(|name| name.to_str()).is_some_and(&is_wanted) {
                return Ok(path);
            }
        }
    }
    bail!("the kernel's package is not as expected: nothing found in {}", directory.display())
}
