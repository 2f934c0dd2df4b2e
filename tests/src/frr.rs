//! Debian's FRR in a namespace: zebra, bgpd and bfdd.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::{Netns, Process, wait};

const DAEMONS: &str = "/usr/lib/frr";
const START: Duration = Duration::from_secs(20);

/// The daemons of one namespace. They end with the handle.
#[derive(Debug)]
pub struct Frr {
    netns: Netns,
    directory: PathBuf,
    daemons: Vec<(&'static str, Process)>,
}

impl Frr {
    /// Starts them with a configuration; their sockets are in `directory`.
    pub fn start(netns: &Netns, directory: &Path, bgp: &str) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        for (name, text) in [("zebra", ""), ("bgpd", bgp), ("bfdd", "")] {
            std::fs::write(directory.join(format!("{name}.conf")), format!("hostname {name}\n{text}"))?;
        }
        // They give up being root.
        let owner = std::process::Command::new("chown").args(["-R", "frr:frr"]).arg(directory).status()?;
        if !owner.success() {
            bail!("cannot give {} to the user frr: is FRR installed?", directory.display());
        }
        let mut frr = Self { netns: netns.clone(), directory: directory.to_owned(), daemons: Vec::new() };
        ["zebra", "bfdd", "bgpd"].into_iter().try_for_each(|name| frr.start_daemon(name))?;
        Ok(frr)
    }

    /// Starts one of them, as it was.
    pub fn start_daemon(&mut self, name: &'static str) -> Result<()> {
        let file = |extension: &str| self.directory.join(format!("{name}.{extension}")).display().to_string();
        let directory = self.directory.display().to_string();
        let mut command = self.netns.command(Path::new(DAEMONS).join(name));
        command.args(["-P", "0", "--log", "stdout"]);
        command.args(["-f", &file("conf"), "-i", &file("pid"), "--vty_socket", &directory]);
        command.args(["-z", &format!("{directory}/zserv.api")]);
        if name == "bfdd" {
            command.args(["--bfdctl", &format!("{directory}/bfdd.sock")]);
        }
        let mut process = Process::spawn(&mut command)?;
        let socket = self.directory.join(format!("{name}.vty"));
        wait::until(&format!("{name} listens"), START, || {
            if !process.is_running() {
                bail!("{name} ended: {}", process.printed());
            }
            Ok(socket.exists())
        })?;
        self.daemons.push((name, process));
        Ok(())
    }

    /// Kills one of them.
    pub fn kill(&mut self, name: &str) {
        self.daemons.retain_mut(|(other, process)| {
            let is_it = *other == name;
            if is_it {
                process.kill();
            }
            !is_it
        });
        let _ = std::fs::remove_file(self.directory.join(format!("{name}.vty")));
    }

    /// Where its sockets are.
    pub fn sockets(&self) -> &Path {
        &self.directory
    }

    /// What vtysh prints for a command.
    pub fn vtysh(&self, line: &str) -> Result<String> {
        let mut command = self.netns.command("vtysh");
        let output = command.arg("--vty_socket").arg(&self.directory).args(["-c", line]).output();
        let output = output.context("cannot run vtysh")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
