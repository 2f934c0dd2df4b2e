//! A real browser without a screen: headless Chromium, driven by the DevTools protocol over two pipes.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use serde_json::{Value, json};

use crate::{Netns, Process};

const PROGRAM: &str = "chromium";
const ANSWER: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(100);
/// Where Chromium expects the pipes: it reads the first and writes the second.
const ITS_PIPES: [i32; 2] = [3, 4];
const FLAGS: [&str; 9] = [
    "--headless=new",
    "--remote-debugging-pipe",
    // It runs as root, and shows nothing but our own page.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
];

/// A page in a browser. Dropping it ends the browser.
#[derive(Debug)]
pub struct Browser {
    _process: Process,
    _profile: tempfile::TempDir,
    to: File,
    from: Receiver<Value>,
    session: Option<String>,
    last: u64,
    /// What went wrong in the page: exceptions, and errors on its console.
    complaints: Vec<String>,
}

impl Browser {
    /// Starts one in a namespace, with an empty page of this size.
    pub fn start(netns: &Netns, width: u32, height: u32) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let (its_input, to) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (from, its_output) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let pipes = [high(&its_input)?, high(&its_output)?];
        drop((its_input, its_output));
        let mut command = netns.command(OsStr::new(PROGRAM));
        command.args(FLAGS).arg(format!("--user-data-dir={}", profile.path().display()));
        command.arg(format!("--window-size={width},{height}")).arg("about:blank").env("HOME", profile.path());
        let numbers = pipes.each_ref().map(|pipe| pipe.as_raw_fd());
        let give = move || {
            for (pipe, at) in numbers.into_iter().zip(ITS_PIPES) {
                // SAFETY: one system call; what has that number in the child is no concern of its new program.
                if unsafe { libc::dup2(pipe, at) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: between fork and exec it makes system calls alone, which neither allocate nor lock.
        unsafe { command.pre_exec(give) };
        let process = Process::spawn(&mut command).context("is the package chromium installed?")?;
        drop(pipes);
        let (sender, receiver) = channel();
        let from = BufReader::new(File::from(from));
        // It ends with the pipe, which ends with the browser.
        std::thread::spawn(move || {
            let messages = from.split(0).map_while(std::result::Result::ok);
            for message in messages.filter_map(|it| serde_json::from_slice::<Value>(&it).ok()) {
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let mut browser = Self {
            _process: process,
            _profile: profile,
            to: File::from(to),
            from: receiver,
            session: None,
            last: 0,
            complaints: Vec::new(),
        };
        let target =
            browser.call("Target.createTarget", json!({ "url": "about:blank" }))?["targetId"].clone();
        let attached =
            browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }))?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        browser.call("Emulation.setDeviceMetricsOverride", size)?;
        Ok(browser)
    }

    /// Goes to an address.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let gone = self.call("Page.navigate", json!({ "url": url }))?;
        match gone["errorText"].as_str() {
            Some(error) => bail!("{url}: {error}"),
            None => Ok(()),
        }
    }

    /// The value of an expression in the page.
    pub fn value(&mut self, expression: &str) -> Result<Value> {
        let wish = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", wish)?;
        match answer["exceptionDetails"].as_object() {
            Some(details) => bail!("`{expression}`: {}", Value::Object(details.clone())),
            None => Ok(answer["result"]["value"].clone()),
        }
    }

    /// Waits until an expression is true in the page; a failure says what `shown`, another, is then.
    pub fn wait_for(&mut self, expression: &str, timeout: Duration, shown: &str) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            if self.value(expression)? == true {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("`{expression}` is not so after {timeout:?}; the page: {}", self.value(shown)?);
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// Clicks on the middle of the element a selector finds, as a mouse does.
    pub fn click(&mut self, selector: &str) -> Result<()> {
        let place = self.value(&format!(
            "(() => {{ const box = document.querySelector({}).getBoundingClientRect(); \
             return [box.x + box.width / 2, box.y + box.height / 2]; }})()",
            json!(selector)
        ))?;
        for kind in ["mousePressed", "mouseReleased"] {
            let click =
                json!({ "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", click)?;
        }
        Ok(())
    }

    /// Replaces what is in the input a selector finds, as if it were typed.
    pub fn fill(&mut self, selector: &str, text: &str) -> Result<()> {
        self.value(&format!(
            "(() => {{ const it = document.querySelector({}); it.focus(); it.select(); }})()",
            json!(selector)
        ))?;
        self.call("Input.insertText", json!({ "text": text })).map(drop)
    }

    /// A picture of the page, as PNG.
    pub fn screenshot(&mut self) -> Result<Vec<u8>> {
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        let text = picture["data"].as_str().context("there is no picture")?;
        Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
    }

    /// What went wrong in the page so far.
    pub fn complaints(&mut self) -> Result<&[String]> {
        // What has happened has been told of before this is answered.
        self.value("0")?;
        Ok(&self.complaints)
    }

    fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).context("the browser has ended")?;
        let deadline = Instant::now() + ANSWER;
        loop {
            let told = match self.from.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(told) => told,
                Err(RecvTimeoutError::Timeout) => bail!("{method}: no answer from the browser in {ANSWER:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("{method}: the browser has ended"),
            };
            if told["id"] == self.last {
                return match told.get("error") {
                    Some(error) => bail!("{method}: {error}"),
                    None => Ok(told["result"].clone()),
                };
            }
            self.note(&told);
        }
    }

    fn note(&mut self, told: &Value) {
        let parameters = &told["params"];
        let is_bad = match told["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => parameters["type"] == "error",
            Some("Log.entryAdded") => parameters["entry"]["level"] == "error",
            _ => false,
        };
        if is_bad {
            self.complaints.push(parameters.to_string());
        }
    }
}

/// A number that is none of [`ITS_PIPES`].
fn high(pipe: &OwnedFd) -> Result<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: the descriptor is open.
    let fd = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) };
    anyhow::ensure!(fd >= 0, "cannot duplicate a pipe: {}", std::io::Error::last_os_error());
    // SAFETY: it was opened just now, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
