//! `vrouter trace`, run for the page: by this very program, in a process of its own, so that whatever a packet does
//! to it the page goes on; a few at once, each for a bounded time.

use std::{future::Future, path::PathBuf, pin::Pin, process::Stdio, time::Duration};

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{io::AsyncReadExt, process::Command, sync::Semaphore};

const TIMEOUT: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 4;
const OUTPUT_MAX: u64 = 4 << 20;
const PACKET_MAX: usize = 4096;
const NAME_MAX: usize = 255;

/// What is to be traced.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The port it comes from.
    pub port: String,
    /// As `vrouter trace` reads it.
    pub packet: String,
    /// As if nothing were known of its flow.
    #[serde(default)]
    pub afresh: bool,
}

/// Why there is no trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The request cannot be meant.
    Wrong(String),
    /// Too many at once.
    Busy,
    /// The command said so, or did not answer.
    Failed(String),
}

/// How the command is run: exit status and both outputs. Tests have another.
pub trait Run: Send + Sync {
    /// Runs it with these arguments.
    fn run(&self, arguments: Vec<String>) -> Pin<Box<dyn Future<Output = std::io::Result<Ran>> + Send + '_>>;
}

/// What a command did.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    pub ok: bool,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// A program's file.
pub struct Program(pub PathBuf);

impl Run for Program {
    fn run(&self, arguments: Vec<String>) -> Pin<Box<dyn Future<Output = std::io::Result<Ran>> + Send + '_>> {
        Box::pin(async move {
            let mut command = Command::new(&self.0);
            command.args(arguments).env("NO_COLOR", "1").stdin(Stdio::null());
            // Given up, by timeout or because nobody waits any more, it ends.
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
            let mut child = command.spawn()?;
            let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
                return Err(std::io::Error::other("no pipes"));
            };
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let (mut stdout, mut stderr) = (stdout.take(OUTPUT_MAX), stderr.take(OUTPUT_MAX));
            tokio::try_join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err))?;
            // Who says more than that is not waited for: its pipe is closed.
            drop((stdout, stderr));
            Ok(Ran { ok: child.wait().await?.success(), stdout: out, stderr: err })
        })
    }
}

/// Runs traces.
pub struct Tracer {
    run: Box<dyn Run>,
    /// Which instance, and what else it is told each time.
    arguments: Vec<String>,
    turns: Semaphore,
    timeout: Duration,
}

impl Tracer {
    /// With a way to run the command, and arguments of each run.
    pub fn new(run: impl Run + 'static, arguments: Vec<String>) -> Self {
        Self { run: Box::new(run), arguments, turns: Semaphore::new(AT_ONCE), timeout: TIMEOUT }
    }

    /// With less patience, for tests.
    #[cfg(test)]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Traces; gives the command's JSON as it is.
    pub async fn trace(&self, request: &Request) -> Result<Box<RawValue>, Refusal> {
        check(request)?;
        let _turn = self.turns.try_acquire().map_err(|_| Refusal::Busy)?;
        let mut arguments = vec!["trace".to_owned()];
        arguments.extend(self.arguments.iter().cloned());
        // Glued together, so that a name that begins with a dash is a name.
        arguments.push(format!("--port={}", request.port));
        arguments.extend(request.afresh.then(|| "--afresh".to_owned()));
        arguments.extend(["--output=json".to_owned(), "--".to_owned(), request.packet.clone()]);
        let ran = match tokio::time::timeout(self.timeout, self.run.run(arguments)).await {
            Err(_) => {
                let seconds = self.timeout.as_secs();
                return Err(Refusal::Failed(format!("`vrouter trace` gave no answer in {seconds} s")));
            }
            Ok(Err(error)) => {
                return Err(Refusal::Failed(format!("trace is not available: cannot run it: {error}")));
            }
            Ok(Ok(ran)) => ran,
        };
        let stderr = String::from_utf8_lossy(&ran.stderr);
        let said = stderr.trim();
        let said = said.strip_prefix("vrouter: ").unwrap_or(said);
        if !ran.ok {
            let why = if said.is_empty() { "it failed and did not say why" } else { said };
            return Err(Refusal::Failed(format!("trace is not available: {why}")));
        }
        let text = String::from_utf8(ran.stdout).ok().and_then(|text| RawValue::from_string(text).ok());
        text.ok_or_else(|| Refusal::Failed(format!("`vrouter trace` printed no JSON. {said}")))
    }
}

fn check(request: &Request) -> Result<(), Refusal> {
    let wrong = |text: &str| Err(Refusal::Wrong(text.to_owned()));
    let Request { port, packet, .. } = request;
    if port.is_empty() || port.len() > NAME_MAX || port.chars().any(char::is_control) {
        return wrong("port: write the name of a port of this node");
    }
    if packet.trim().is_empty() || packet.len() > PACKET_MAX || packet.chars().any(char::is_control) {
        return wrong("packet: write one as for `vrouter trace`: tcp 10.0.1.10:40000 > 10.0.2.20:5432");
    }
    Ok(())
}
