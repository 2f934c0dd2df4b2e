//! `cargo xtask setup`: installs what is missing on a Debian machine, and nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use ebpf_build::{BPF_LINKER_VERSION, Toolchain};

use crate::{guest, repository};

/// Install what building, testing and showing vrouter needs, if it is missing.
#[derive(clap::Args)]
pub struct Args {}

/// What a command is going to do, and so what has to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Networks and traffic: the tools labs call.
    labs: bool,
    /// rustfmt, clippy for the host, clippy for BPF.
    lints: bool,
}

impl Needs {
    /// Building alone.
    pub const BUILD: Self = Self { labs: false, lints: false };
    /// Building, and running labs.
    pub const LABS: Self = Self { labs: true, lints: false };
    /// Everything.
    pub const ALL: Self = Self { labs: true, lints: true };
}

/// A Debian package, and a file or command that tells it is there.
struct Package {
    name: &'static str,
    provides: &'static str,
}

const fn package(name: &'static str, provides: &'static str) -> Package {
    Package { name, provides }
}

/// To link anything for the host. Who reads this has them, or `cargo xtask` could not have been built.
const BUILD_PACKAGES: [Package; 5] = [
    package("gcc", "cc"),
    package("libc6-dev", "/usr/include/stdio.h"),
    // The client of etcd is generated from its protocol's description.
    package("protobuf-compiler", "protoc"),
    package("libprotobuf-dev", "/usr/include/google/protobuf/descriptor.proto"),
    package("ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
];

const LAB_PACKAGES: &[Package] = &[
    package("iproute2", "ip"),
    package("util-linux", "nsenter"),
    package("iputils-ping", "ping"),
    package("iputils-arping", "arping"),
    package("traceroute", "traceroute"),
    package("iperf3", "iperf3"),
    package("netcat-openbsd", "nc"),
    package("tcpdump", "tcpdump"),
    package("tshark", "tshark"),
    package("ethtool", "ethtool"),
    package("procps", "sysctl"),
    package("nftables", "nft"),
    package("bpftool", "bpftool"),
    package("etcd-server", "etcd"),
    package("etcd-client", "etcdctl"),
    package("openssl", "openssl"),
    package("curl", "curl"),
    // For promtool.
    package("prometheus", "promtool"),
    package("keepalived", "keepalived"),
    package("isc-dhcp-client", "dhclient"),
    package("udhcpc", "udhcpc"),
    package("dhcpcd-base", "dhcpcd"),
    package("frr", "/usr/lib/frr/bgpd"),
    package("chromium", "chromium"),
    // A virtual machine, and what runs in it.
    package("qemu-system-x86", "qemu-system-x86_64"),
    package("busybox-static", "/bin/busybox"),
];

/// A compiler with `core` for BPF. Debian keeps it for Firefox.
const BPF_COMPILER: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
const BPF_CLIPPY: &str = "rust-web-clippy";

/// Installs everything.
pub fn run(Args {}: Args) -> Result<()> {
    ensure(Needs::ALL)?;
    println!("setup: everything is there");
    println!("setup: eBPF is compiled by {}", Toolchain::detect()?.describe());
    Ok(())
}

/// Installs what is missing; silent and quick if nothing is.
pub fn ensure(needs: Needs) -> Result<()> {
    let mut apt = Apt::default();
    let packages = BUILD_PACKAGES.iter().chain(LAB_PACKAGES.iter().filter(|_| needs.labs));
    let missing: Vec<&str> =
        packages.filter(|package| !package.is_there()).map(|package| package.name).collect();
    if !missing.is_empty() {
        apt.install(&missing)?;
    }
    let toolchain = ensure_bpf_compiler(&mut apt)?;
    ensure_bpf_linker()?;
    if needs.labs && !guest::is_there()? {
        apt.update();
        say("the kernel of virtual machines in labs: apt-get download (27 MB)");
        guest::fetch().context("cannot get a kernel for virtual machines")?;
    }
    if needs.lints {
        ensure_rustup_component("rustfmt", "fmt")?;
        ensure_rustup_component("clippy", "clippy")?;
        ensure_bpf_clippy(&mut apt, &toolchain);
    }
    Ok(())
}

fn ensure_bpf_compiler(apt: &mut Apt) -> Result<Toolchain> {
    if let Ok(toolchain) = Toolchain::detect() {
        return Ok(toolchain);
    }
    say("no compiler for BPF yet");
    if let Err(error) = apt.install(&BPF_COMPILER) {
        warn(&format!("{error:#}"));
        say("trying the library source for rustup's stable instead: rustup component add rust-src");
        // What is still missing then, and all remedies, is in the error of the second look.
        let added = repository::run(Command::new("rustup").args(["component", "add", "rust-src"]));
        added.unwrap_or_else(|error| warn(&format!("{error:#}")));
    }
    Toolchain::detect()
}

fn ensure_bpf_linker() -> Result<()> {
    if std::env::var_os("BPF_LINKER").is_some() || bpf_linker_version().as_deref() == Some(BPF_LINKER_VERSION)
    {
        return Ok(());
    }
    let found =
        bpf_linker_version().map_or_else(|| "none".to_owned(), |version| format!("version {version}"));
    say(&format!("bpf-linker {BPF_LINKER_VERSION} is needed, found {found}: cargo install (some minutes)"));
    let install = format!("install bpf-linker --version {BPF_LINKER_VERSION} --locked");
    repository::run(&mut repository::cargo(&install))
        .context("cannot install bpf-linker; another version can be named in BPF_LINKER")
}

fn bpf_linker_version() -> Option<String> {
    let linker = find("bpf-linker")?;
    let output = Command::new(linker).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1)?.to_owned())
}

fn ensure_rustup_component(component: &str, subcommand: &str) -> Result<()> {
    let version = repository::cargo(&format!("{subcommand} --version")).output();
    if version.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    say(&format!("rustup component add {component}"));
    repository::run(Command::new("rustup").args(["component", "add", component]))
}

/// Only lints depend on it, so its absence is no reason to stop.
fn ensure_bpf_clippy(apt: &mut Apt, toolchain: &Toolchain) {
    if toolchain.clippy_driver().is_some() {
        return;
    }
    if toolchain.rustc() != Path::new("/usr/bin/rustc") {
        warn(&format!("there is no clippy beside {}", toolchain.rustc().display()));
    } else if let Err(error) = apt.install(&[BPF_CLIPPY]) {
        warn(&format!("the eBPF crate cannot be linted: {error:#}"));
    }
}

/// apt, its lists updated once and only if something is to be installed.
#[derive(Default)]
struct Apt {
    is_updated: bool,
}

impl Apt {
    fn install(&mut self, packages: &[&str]) -> Result<()> {
        let names = packages.join(" ");
        let by_hand = format!("install these by hand: {names}");
        if find("apt-get").is_none() {
            bail!("there is no apt-get here; {by_hand} (the names are Debian's)");
        }
        if !nix::unistd::Uid::effective().is_root() {
            bail!("packages are missing and this is not root; run as root, or {by_hand}");
        }
        self.update();
        say(&format!("apt-get install {names}"));
        let install = ["install", "-y", "-q", "--no-install-recommends"];
        let _quiet = NoServices::new();
        repository::run(apt_get(&install).args(packages)).with_context(|| by_hand)
    }
}

impl Apt {
    fn update(&mut self) {
        if !self.is_updated {
            say("apt-get update");
            // A mirror that does not answer is no obstacle if the packages are cached.
            let updated = repository::run(&mut apt_get(&["update", "-qq"]));
            updated.unwrap_or_else(|error| warn(&format!("{error:#}")));
            self.is_updated = true;
        }
    }
}

/// While it lives, packages that are installed start nothing: tests start their own etcd.
struct NoServices(Option<&'static Path>);

impl NoServices {
    /// Debian's way (invoke-rc.d(8)); a policy that is there already stays.
    fn new() -> Self {
        let policy = Path::new("/usr/sbin/policy-rc.d");
        let made = !policy.exists()
            && fs::write(policy, "#!/bin/sh\nexit 101\n").is_ok()
            && fs::set_permissions(policy, fs::Permissions::from_mode(0o755)).is_ok();
        Self(made.then_some(policy))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = self.0 {
            fs::remove_file(policy).ok();
        }
    }
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

impl Package {
    fn is_there(&self) -> bool {
        if self.provides.starts_with('/') {
            Path::new(self.provides).exists()
        } else {
            find(self.provides).is_some()
        }
    }
}

/// A program in PATH, where root's are even if PATH lacks them, or in cargo's bin directory.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .chain(cargo_home.map(|home| home.join("bin")))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

fn say(what: &str) {
    println!("setup: {what}");
}

fn warn(what: &str) {
    eprintln!("setup: warning: {what}");
}
