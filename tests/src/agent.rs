//! A `vrouter agent` on a node of a lab.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::outside::EXTERNAL_INTERFACE;
use crate::{Host, Lab, Node, Process};

/// See [`Agent::alone`].
#[derive(Debug)]
pub struct Alone {
    at: PathBuf,
    root: tempfile::TempDir,
}

impl Alone {
    /// What to say to `--bpffs`.
    pub fn bpffs(&self) -> String {
        self.root.path().display().to_string()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if let Err(error) = nix::mount::umount(&self.at) {
            eprintln!("cannot unmount {}: {error}", self.at.display());
        }
    }
}

/// How an agent is to be started.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// `--topology`; the lab's own file if not given.
    pub topology: Option<PathBuf>,
    /// Arguments that say how etcd is reached, instead of a file.
    pub etcd: Option<Vec<String>>,
    /// `--flow-entries`.
    pub flow_entries: Option<u32>,
    /// `--uplink-hook`: `auto`, `tc` or `xdp`.
    pub uplink_hook: Option<String>,
    /// Further arguments.
    pub extra: Vec<String>,
    /// The program; see [`vrouter_binary`] for the default.
    pub binary: Option<PathBuf>,
}

/// An agent, running or not. Dropping it kills the process; what it has pinned goes with the lab.
#[derive(Debug)]
pub struct Agent {
    node: Node,
    instance: String,
    binary: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    process: Option<Process>,
}

impl Agent {
    pub(crate) fn start(lab: &Lab, node: &Node, options: AgentOptions) -> Result<Self> {
        let binary = options.binary.map_or_else(vrouter_binary, Ok)?;
        let instance = format!("{}-{}", lab.prefix(), node.name());
        let topology = options.topology.unwrap_or_else(|| lab.topology_path());
        let mut arguments: Vec<String> =
            ["agent", "--node", node.name(), "--instance", &instance, "--uplink", Host::INTERFACE]
                .map(str::to_owned)
                .to_vec();
        match options.etcd {
            Some(etcd) => arguments.extend(etcd),
            None => arguments.extend(["--topology".to_owned(), topology.display().to_string()]),
        }
        if let Some(network) = lab.external_network().filter(|_| node.is_outside()) {
            arguments.extend(["--external".to_owned(), format!("{network}={EXTERNAL_INTERFACE}")]);
        }
        if let Some(entries) = options.flow_entries {
            arguments.extend(["--flow-entries".to_owned(), entries.to_string()]);
        }
        if let Some(hook) = options.uplink_hook {
            arguments.extend(["--uplink-hook".to_owned(), hook]);
        }
        arguments.extend(options.extra);
        let log = lab.directory().join(format!("{}.log", node.name()));
        let mut agent = Self { node: node.clone(), instance, binary, arguments, log, process: None };
        agent.restart()?;
        Ok(agent)
    }

    /// The name its pins and run-time files are under.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The node it runs on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The file its log goes to, over all its restarts.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Its process id, if it was started and not ended by this handle.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Lets nobody write to a map of it any more, until its pins are removed: what is to come in force next cannot.
    pub fn freeze_map(&self, name: &str) -> Result<()> {
        /// Of the kernel's `enum bpf_cmd`, and the sizes of their attributes.
        const BPF_OBJ_GET: i64 = 7;
        const BPF_MAP_FREEZE: i64 = 22;
        let path = format!("{}/{}/maps/{name}", crate::clean::PINS, self.instance);
        let failed = || format!("cannot freeze {path}: {}", std::io::Error::last_os_error());
        let pathname = std::ffi::CString::new(path.clone())?;
        let attribute = [pathname.as_ptr() as u64, 0];
        // SAFETY: the attribute is a path that lives on, a descriptor and flags that are zero.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, attribute.as_ptr(), 16) };
        ensure!(fd >= 0, failed());
        // SAFETY: it was opened just now, and nobody else has it.
        let map = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let attribute = map.as_raw_fd();
        // SAFETY: the attribute is the descriptor.
        let frozen = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_FREEZE, &raw const attribute, 4) };
        ensure!(frozen == 0, failed());
        Ok(())
    }

    /// Ends it by SIGKILL: it gets no chance to clean up.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Ends it and leaves nothing of it, as a node that reboots does.
    pub fn crash(&mut self) -> Result<()> {
        self.kill9();
        for at in [crate::clean::PINS, crate::clean::RUNTIME] {
            let left = Path::new(at).join(&self.instance);
            std::fs::remove_dir_all(&left).with_context(|| format!("cannot remove {}", left.display()))?;
        }
        Ok(())
    }

    /// Ends it by SIGTERM and waits for it to go.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.signal(Signal::SIGTERM)?;
        process.wait(Duration::from_secs(10)).with_context(|| self.log_tail())?;
        Ok(())
    }

    /// Starts it again with the same arguments, after stopping it if it runs.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot open {}", self.log.display()))?;
        let mut command = self.node.netns().command(&self.binary);
        command.args(&self.arguments).stdout(log.try_clone()?).stderr(log);
        self.process = Some(Process::spawn_as_is(&mut command)?);
        Ok(())
    }

    /// Waits until it is alive and what it was asked for is in force.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<()> {
        self.wait_for_status(timeout, "be ready", is_ready).map(drop)
    }

    /// Waits until the JSON of `vrouter status` satisfies `wanted`, and returns it; `what` is for the message.
    pub fn wait_for_status(
        &mut self,
        timeout: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.status();
            match status {
                Ok(status) if wanted(&status) => return Ok(status),
                _ if !self.is_running() => {
                    bail!(
                        "the agent of {} has ended before it could {what}; {}",
                        self.node.name(),
                        self.log_tail()
                    );
                }
                status if Instant::now() > deadline => {
                    let status =
                        status.map_or_else(|error| format!("{error:#}"), |status| status.to_string());
                    bail!(
                        "the agent of {} did not {what} in {timeout:?}; status: {status}; {}",
                        self.node.name(),
                        self.log_tail()
                    );
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// The JSON of `vrouter status`, also when that exits with 1 because something needs attention.
    pub fn status(&self) -> Result<Value> {
        let output = self.vrouter(&["status", "--output", "json"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`vrouter status`: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Packets dropped for a reason so far.
    pub fn drops(&self, reason: &str) -> Result<u64> {
        let rows = self.json(&["show", "drops"])?;
        let row = rows.as_array().into_iter().flatten().find(|row| row["reason"] == reason);
        row.and_then(|row| row["packets"].as_u64()).with_context(|| format!("no drop reason {reason}"))
    }

    /// Keys and values of both flow tables, as `vrouter map-dump` words them.
    pub fn flows(&self) -> Result<BTreeMap<String, String>> {
        let mut flows = BTreeMap::new();
        // Flows move from the second table to the first: read this way round, none is missed.
        for table in ["TRANSIENT", "FLOWS"] {
            let output = self.vrouter(&["map-dump", table])?;
            if !output.status.success() {
                bail!("`vrouter map-dump {table}`: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            let text = String::from_utf8_lossy(&output.stdout);
            let entries = text.lines().filter_map(|line| line.trim().split_once(" -> "));
            flows.extend(entries.map(|(key, value)| (key.to_owned(), value.to_owned())));
        }
        Ok(flows)
    }

    /// Runs another subcommand on this instance, in the node's namespace.
    pub fn vrouter(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments).output().with_context(|| format!("cannot run {}", self.binary.display()))
    }

    /// Like [`Agent::vrouter`], with `--output json`, and an error if it fails.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.vrouter(&[arguments, &["--output", "json"]].concat())?;
        let name = arguments.join(" ");
        if !output.status.success() {
            bail!("`vrouter {name}`: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!("`vrouter {name}` printed no JSON: {}", String::from_utf8_lossy(&output.stdout).trim())
        })
    }

    /// The command of another subcommand on this instance.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.node.netns().command(&self.binary);
        command.args(arguments).args(["--instance", &self.instance]).stdin(Stdio::null());
        command
    }

    /// A view of bpffs in which this instance is alone, as on a machine of its own: for `--bpffs`.
    pub fn alone(&self) -> Result<Alone> {
        let root = tempfile::tempdir().context("cannot make a directory")?;
        let at = root.path().join("vrouter").join(&self.instance);
        std::fs::create_dir_all(&at).with_context(|| format!("cannot make {}", at.display()))?;
        let pins = Path::new(crate::clean::PINS).join(&self.instance);
        let flags = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(&pins), &at, None::<&str>, flags, None::<&str>)
            .with_context(|| format!("cannot mount {} at {}", pins.display(), at.display()))?;
        Ok(Alone { at, root })
    }

    /// The program it runs.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Lets it run on after the handle is gone.
    pub fn keep(mut self) {
        if let Some(process) = self.process.take() {
            process.detach();
        }
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n  ");
        format!("the end of its log:\n  {tail}")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            // The lab's directory goes away with the lab, so this is the last chance to see it.
            eprintln!("{}: {}", self.instance, self.log_tail());
            if let Ok(counted) = self.vrouter(&["show", "drops"]) {
                let counted = String::from_utf8_lossy(&counted.stdout).into_owned();
                eprintln!("{}: what it dropped:\n{counted}", self.instance);
            }
        }
    }
}

/// `$VROUTER_BIN`, or the `vrouter` of the profile this program was built with.
pub fn vrouter_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("VROUTER_BIN") {
        return Ok(PathBuf::from(path));
    }
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    // <target>/<profile>/xtask or <target>/<profile>/deps/lab-<hash>
    let found = program.ancestors().skip(1).take(2).map(|directory| directory.join("vrouter"));
    let mut found = found.filter(|path| path.is_file());
    found.next().with_context(|| {
        format!(
            "there is no vrouter beside {}: run `cargo build -p vrouter`, or name one in VROUTER_BIN",
            program.display()
        )
    })
}

fn is_ready(status: &Value) -> bool {
    let digest = &status["in_force"]["digest"];
    status["in_force"]["epoch"].as_u64().is_some_and(|epoch| epoch >= 1)
        && status["agent"]["alive"] == true
        && !digest.is_null()
        && status["wanted"]["digest"] == *digest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ready_means_alive_and_in_force() {
        let ready = json!({"agent": {"alive": true}, "in_force": {"epoch": 1, "digest": "d"}, "wanted": {"digest": "d"}});
        assert!(is_ready(&ready));
        for (pointer, value) in [
            ("/agent/alive", json!(false)),
            ("/in_force/epoch", json!(0)),
            ("/wanted/digest", json!("e")),
            ("/in_force/digest", Value::Null),
        ] {
            let mut status = ready.clone();
            *status.pointer_mut(pointer).unwrap() = value;
            assert!(!is_ready(&status), "{pointer}");
        }
    }
}
