//! A program on a terminal of its own: a pseudo-terminal of a given size, and what is written to it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::wait;

/// A running program and its terminal. Dropping it kills the program.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    /// Our end.
    keyboard: File,
    /// The program's end, kept open to see how it was left.
    line: OwnedFd,
    written: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Starts a command on a terminal of so many columns and rows.
    pub fn spawn(command: &mut Command, columns: u16, rows: u16) -> Result<Self> {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let (mut ours, mut theirs) = (-1, -1);
        // SAFETY: both descriptors are filled in; there is no name and no settings to be read.
        let result = unsafe {
            libc::openpty(
                &raw mut ours,
                &raw mut theirs,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                (&raw const size).cast_mut(),
            )
        };
        if result < 0 {
            return Err(std::io::Error::last_os_error()).context("cannot open a pseudo-terminal");
        }
        // SAFETY: they were opened just now, and nobody else has them.
        let (ours, line) = unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
        let stdio = || line.try_clone();
        command.stdin(stdio()?).stdout(stdio()?).stderr(stdio()?).env("TERM", "xterm-256color");
        let own_session = || {
            // SAFETY: two system calls on this process and its standard input.
            let result = unsafe {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0)
            };
            if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed, as these are.
        unsafe { command.pre_exec(own_session) };
        let child = command.spawn().context("cannot start a program on a terminal")?;
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let mut screen = ours.try_clone()?;
        let reader = std::thread::spawn({
            let written = Arc::clone(&written);
            move || {
                let mut buffer = [0; 4096];
                // An error says that nobody has the other end any more.
                while let Ok(length @ 1..) = screen.read(&mut buffer) {
                    written.lock().unwrap_or_else(PoisonError::into_inner).extend(&buffer[..length]);
                }
            }
        });
        Ok(Self { child, keyboard: ours, line, written, reader: Some(reader) })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What was written so far, escape sequences and all.
    pub fn written(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until a text was written after the first `from` bytes.
    pub fn wait_for(&self, text: &str, from: usize, timeout: Duration) -> Result<()> {
        let seen = wait::until(&format!("{text:?} on the terminal"), timeout, || {
            let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(crate::frame::contains(written.get(from..).unwrap_or_default(), text.as_bytes()))
        });
        seen.with_context(|| format!("written: {:?}", self.written()))
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.keyboard.write_all(keys.as_bytes()).context("cannot press a key")
    }

    /// Makes it another size.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the request reads a size, which outlives the call.
        let result = unsafe { libc::ioctl(self.keyboard.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        if result < 0 {
            return Err(std::io::Error::last_os_error()).context("cannot resize a terminal");
        }
        Ok(())
    }

    /// Whether what is typed comes line by line and is shown, as a shell finds it and wants it back.
    pub fn is_cooked(&self) -> Result<bool> {
        // SAFETY: an all-zero termios is a valid one, which the call fills in.
        let (result, modes) = unsafe {
            let mut modes: libc::termios = std::mem::zeroed();
            (libc::tcgetattr(self.line.as_raw_fd(), &raw mut modes), modes)
        };
        if result < 0 {
            return Err(std::io::Error::last_os_error()).context("cannot ask a terminal how it is");
        }
        let wanted = libc::ICANON | libc::ECHO | libc::ISIG;
        Ok(modes.c_lflag & wanted == wanted)
    }

    /// Waits for the program to end.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait::for_some("the program on the terminal to end", timeout, || Ok(child.try_wait()?))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Without the other end the reader's read fails, and it ends by itself; it is not waited for, since this
        // handle holds that end until all its fields are dropped.
        drop(self.reader.take());
    }
}
