//! Named network namespaces.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::clean;

/// Where `ip netns` keeps the names.
pub(crate) const NETNS_DIRECTORY: &str = "/run/netns";

/// A handle to a named namespace. It does not own the namespace: [`clean::remove`] deletes by prefix, so
/// that nothing depends on the order in which handles are dropped.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with its loopback up.
    pub fn create(name: &str) -> Result<Self> {
        clean::stop_if_interrupted();
        {
            // The first `ip netns add` on a machine turns /run/netns into a mount; two at once can lose a name.
            let _lock = clean::global_lock()?;
            check(Command::new("ip").args(["netns", "add", name]))?;
        }
        let netns = Self { name: name.to_owned() };
        netns.ip(&["link set lo up"])?;
        Ok(netns)
    }

    /// A handle to a namespace made elsewhere, such as by a lab that was kept.
    pub fn existing(name: &str) -> Result<Self> {
        let netns = Self { name: name.to_owned() };
        if !netns.path().exists() {
            bail!("there is no network namespace {name}");
        }
        Ok(netns)
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, for `nsenter --net=`, which is how a person gets inside.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIRECTORY).join(&self.name)
    }

    /// A command that will run inside. Only the network changes: the mount namespace, and with it bpffs, stays
    /// the host's (`ip netns exec` would mount an empty one). Once it is started it is inside, so that nothing
    /// escapes [`clean::remove`]; with `nsenter` in between there would be a moment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        use std::os::unix::process::CommandExt as _;
        let file = File::open(self.path());
        let mut command = Command::new(program);
        let enter = move || match &file {
            Ok(file) => setns(file, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from),
            Err(error) => Err(std::io::Error::from(error.kind())),
        };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; this is one system call, and
        // neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a command given as words separated by blanks (no quoting) and returns what it printed, or an error
    /// with its complaint if it did not exit with 0.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut command = self.words(line)?;
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run `{line}` in {}", self.name))?;
        if !output.status.success() {
            bail!("`{line}` in {}: {}", self.name, complaint(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Like [`Netns::run`], but hands back whatever the outcome was.
    pub fn output(&self, line: &str) -> Result<Output> {
        self.words(line)?
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run `{line}` in {}", self.name))
    }

    /// The command of a line of words separated by blanks.
    pub(crate) fn words(&self, line: &str) -> Result<Command> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().context("an empty command line")?);
        command.args(words);
        Ok(command)
    }

    /// Runs several `ip` commands inside, in one process, stopping at the first that fails.
    pub fn ip(&self, lines: &[impl AsRef<str>]) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-netns", &self.name, "-batch", "-"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run ip; is iproute2 installed?")?;
        let mut stdin = child.stdin.take().context("ip has no standard input")?;
        for line in lines {
            // A failing line closes the pipe: its complaint is reported below.
            let _ = writeln!(stdin, "{}", line.as_ref());
        }
        drop(stdin);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let lines: Vec<&str> = lines.iter().map(AsRef::as_ref).collect();
            bail!("`ip` in {}: {}\n  {}", self.name, complaint(&output), lines.join("\n  "));
        }
        Ok(())
    }

    /// Reads rules for nftables.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let mut command = self.command("nft");
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot run nft; is nftables installed?")?;
        // Should it end early, its complaint is reported below.
        let _ = child.stdin.take().context("nft has no standard input")?.write_all(rules.as_bytes());
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("nft in {}: {}\n{rules}", self.name, complaint(&output));
        }
        Ok(())
    }

    /// Calls `work` in a thread of its own that has entered the namespace. Sockets it opens stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file =
            File::open(self.path()).with_context(|| format!("cannot open {}", self.path().display()))?;
        let entered = std::thread::scope(|scope| {
            let thread = scope.spawn(|| setns(&file, CloneFlags::CLONE_NEWNET).map(|()| work()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        entered.with_context(|| format!("cannot enter {}", self.name))
    }

    /// Sets a value below /proc/sys/net: `set_sysctl("ipv4/ip_forward", "0")`.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(key);
        self.enter(|| std::fs::write(&path, value))?
            .with_context(|| format!("cannot set {} to {value} in {}", path.display(), self.name))
    }

    /// Addresses work at once and none comes from a router's advertisement; every error is sent, as tests
    /// count.
    pub fn speak_at_once(&self) -> Result<()> {
        for (key, value) in [("accept_dad", "0"), ("dad_transmits", "0"), ("accept_ra", "0")] {
            self.set_sysctl(&format!("ipv6/conf/all/{key}"), value)?;
            self.set_sysctl(&format!("ipv6/conf/default/{key}"), value)?;
        }
        self.set_sysctl("ipv4/icmp_ratelimit", "0")?;
        self.set_sysctl("ipv4/icmp_msgs_burst", "100000")?;
        self.set_sysctl("ipv4/icmp_msgs_per_sec", "1000000")?;
        self.set_sysctl("ipv6/icmp/ratelimit", "0")
    }

    /// Switches off what lets frames on a veth differ from frames on a wire: partial checksums, segments
    /// larger than the MTU, and merging at the receiver.
    pub fn offloads_off(&self, interface: &str) -> Result<()> {
        self.run(&format!("ethtool -K {interface} tx off tso off gso off gro off")).map(drop)
    }
}

/// Runs a command outside of any namespace and fails with its complaint.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let line = format!("{command:?}").replace('"', "");
    let output = command.output().with_context(|| format!("cannot run `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}`: {}", complaint(&output));
    }
    Ok(())
}

fn complaint(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    match stderr.trim() {
        "" => format!("{}: {}", output.status, String::from_utf8_lossy(&output.stdout).trim()),
        stderr => format!("{}: {stderr}", output.status),
    }
}
