//! Background processes that end with their handle.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::clean;

/// A process in a group of its own. Dropping the handle kills the whole group and reaps the process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    line: String,
    /// Standard output and standard error, as they came.
    printed: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
    is_detached: bool,
}

impl Process {
    /// Starts a command and collects what it prints.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        Self::spawn_with_stdout(command, Stdio::piped())
    }

    /// Starts a command whose standard output goes elsewhere, and collects its standard error.
    pub fn spawn_with_stdout(command: &mut Command, stdout: impl Into<Stdio>) -> Result<Self> {
        command.stdout(stdout).stderr(Stdio::piped());
        let mut process = Self::spawn_as_is(command)?;
        let stdout = process.child.stdout.take().map(|pipe| process.collect(pipe));
        let stderr = process.child.stderr.take().map(|pipe| process.collect(pipe));
        process.readers.extend(stdout.into_iter().chain(stderr));
        Ok(process)
    }

    /// Starts a command with its output left as the caller set it.
    pub fn spawn_as_is(command: &mut Command) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;
        clean::stop_if_interrupted();
        let line = format!("{command:?}").replace('"', "");
        let child = command.stdin(Stdio::null()).process_group(0).spawn();
        let child = child.with_context(|| format!("cannot start `{line}`"))?;
        Ok(Self { child, line, printed: Arc::default(), readers: Vec::new(), is_detached: false })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, standard output and standard error.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&self.printed.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it has printed `text`.
    pub fn wait_for_text(&mut self, text: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let is_running = self.is_running();
            if self.printed().contains(text) {
                return Ok(());
            }
            if !is_running || Instant::now() > deadline {
                bail!(
                    "`{}` did not print \"{text}\" in {timeout:?}, but: {}",
                    self.line,
                    self.printed().trim()
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until it ends by itself; what it printed is complete then.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.join_readers();
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("`{}` still runs after {timeout:?}; it printed: {}", self.line, self.printed().trim());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal to the process and its children.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Not yet reaped, or the number could be somebody else's by now.
        if self.is_running() {
            killpg(self.group(), signal)
                .with_context(|| format!("cannot send {signal} to `{}`", self.line))?;
        }
        Ok(())
    }

    /// Kills the whole group and reaps the process.
    pub fn kill(&mut self) {
        if self.is_running() {
            // The only failure is that it has just ended.
            let _ = killpg(self.group(), Signal::SIGKILL);
            let _ = self.child.wait();
            self.join_readers();
        }
    }

    /// Lets it run on after the handle is gone.
    pub fn detach(mut self) {
        self.is_detached = true;
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn collect(&self, mut pipe: impl Read + Send + 'static) -> JoinHandle<()> {
        let printed = Arc::clone(&self.printed);
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                printed.lock().unwrap_or_else(PoisonError::into_inner).extend(&buffer[..length]);
            }
        })
    }

    fn join_readers(&mut self) {
        for reader in self.readers.drain(..) {
            // A reader has nothing to panic about.
            let _ = reader.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_detached {
            self.kill();
        }
    }
}
