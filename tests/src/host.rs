//! One machine of a lab: a namespace with an interface, and what a person would type there.

use std::fmt::Display;
use std::net::IpAddr;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::frame::{Addressing, Arp, BROADCAST, Mac, multicast_mac, solicited_node};
use crate::{Capture, Netns, Ping, Process, RunningPing, Sniffer, packet};

/// A namespace seen through its interface `eth0`.
#[derive(Clone, Debug)]
pub struct Host {
    name: String,
    netns: Netns,
}

/// An entry of the kernel's neighbour (ARP, ND) table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Neighbour {
    /// The address that was asked for.
    pub dst: String,
    /// The answer, if there was one.
    pub lladdr: Option<String>,
    /// `REACHABLE`, `STALE`, `FAILED`...
    pub state: Vec<String>,
}

impl Host {
    /// The interface of every host.
    pub const INTERFACE: &str = "eth0";

    /// A host called `name` in a namespace that exists.
    pub fn new(name: &str, netns: Netns) -> Self {
        Self { name: name.to_owned(), netns }
    }

    /// Its name in the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// See [`Netns::command`].
    pub fn command(&self, program: &str) -> Command {
        self.netns.command(program)
    }

    /// See [`Netns::run`].
    pub fn run(&self, line: &str) -> Result<String> {
        self.netns.run(line)
    }

    /// See [`Netns::output`].
    pub fn output(&self, line: &str) -> Result<Output> {
        self.netns.output(line)
    }

    /// Starts a command in the background and collects what it prints; it ends with the handle.
    pub fn spawn(&self, line: &str) -> Result<Process> {
        Process::spawn(&mut self.netns.words(line)?)
    }

    /// Sends `count` echo requests, ten a second, each waiting a second for its reply; `extra` arguments come
    /// last and so win: `&["-i", "0.01"]`.
    pub fn ping(&self, destination: impl Display, count: u32, extra: &[&str]) -> Result<Ping> {
        let mut command = self.ping_command(&destination, count, extra);
        let output = command.output().context("cannot run ping; is iputils-ping installed?")?;
        Ping::from_output(&output).with_context(|| format!("{} pings {destination}", self.name))
    }

    /// Like [`Host::ping`], in the background.
    pub fn start_ping(&self, destination: impl Display, count: u32, extra: &[&str]) -> Result<RunningPing> {
        Ok(RunningPing::new(Process::spawn(&mut self.ping_command(&destination, count, extra))?))
    }

    fn ping_command(&self, destination: &impl Display, count: u32, extra: &[&str]) -> Command {
        let mut command = self.command("ping");
        command.args(["-n", "-i", "0.1", "-W", "1", "-c", &count.to_string()]);
        command.args(extra).arg(destination.to_string());
        command
    }

    /// Its neighbour table, IPv4 and IPv6.
    pub fn neighbours(&self) -> Result<Vec<Neighbour>> {
        let json = self.run(&format!("ip -j neigh show dev {}", Self::INTERFACE))?;
        serde_json::from_str(&json).with_context(|| format!("ip's JSON is not as expected: {json}"))
    }

    /// Empties its neighbour table.
    pub fn flush_neighbours(&self) -> Result<()> {
        self.netns.ip(&[format!("neigh flush dev {}", Self::INTERFACE)])
    }

    /// Captures with tcpdump from now on, with a filter of its language or an empty one.
    pub fn capture(&self, filter: &str) -> Result<Capture> {
        self.capture_on(Self::INTERFACE, filter)
    }

    /// Like [`Host::capture`], on another interface of the namespace.
    pub fn capture_on(&self, interface: &str, filter: &str) -> Result<Capture> {
        Capture::start(&self.netns, interface, filter)
            .with_context(|| format!("cannot capture on {interface} of {}", self.name))
    }

    /// Sends a frame exactly as given.
    pub fn raw_send(&self, frame: &[u8]) -> Result<()> {
        self.raw_send_on(Self::INTERFACE, frame)
    }

    /// Sends frames as fast as it goes; tells how many went.
    pub fn flood(&self, frames: impl Iterator<Item = Vec<u8>> + Send) -> Result<u64> {
        packet::flood(&self.netns, Self::INTERFACE, frames)
    }

    /// Asks by ARP or ND who has an address, and returns every answer that comes in time: nobody, one, or, if
    /// something is wrong, several. Announcements that nobody asked for do not count. `own` is the asker's address of the same family.
    pub fn who_has(&self, own: IpAddr, target: IpAddr, time: Duration) -> Result<Vec<Mac>> {
        let (mac, sniffer) = (self.mac()?, self.sniff()?);
        match (own, target) {
            (IpAddr::V4(own), IpAddr::V4(target)) => {
                self.raw_send(&Arp::request(mac, own, target).frame(mac, BROADCAST))?;
                let frames = sniffer.collect(time, |_| true)?;
                let answers = frames.iter().filter_map(|frame| Arp::read(frame));
                let answers =
                    answers.filter(|arp| (arp.operation, arp.sender_ip, arp.target_ip) == (2, target, own));
                Ok(answers.map(|arp| arp.sender).collect())
            }
            (IpAddr::V6(_), IpAddr::V6(target)) => {
                let group = solicited_node(target);
                let to = multicast_mac(group);
                let asking = Addressing { from: mac, to, source: own, destination: group.into(), ttl: 255 };
                self.raw_send(&asking.neighbour(135, target, 1, mac))?;
                // A solicited advertisement of it, with its link-layer address behind it.
                let is_answer = |frame: &[u8]| {
                    frame.get(12..14) == Some(&[0x86, 0xdd])
                        && frame.get(54) == Some(&136)
                        && frame.get(58).is_some_and(|flags| flags & 0x40 != 0)
                        && frame.get(62..78) == Some(&target.octets()[..])
                };
                let frames = sniffer.collect(time, is_answer)?;
                frames.iter().map(|frame| Ok(frame.get(80..86).context("no option")?.try_into()?)).collect()
            }
            _ => bail!("{own} and {target} are of two families"),
        }
    }

    /// Like [`Host::raw_send`], on another interface of the namespace.
    pub fn raw_send_on(&self, interface: &str, frame: &[u8]) -> Result<()> {
        packet::send(&self.netns, interface, frame)
    }

    /// Receives frames from now on.
    pub fn sniff(&self) -> Result<Sniffer> {
        self.sniff_on(Self::INTERFACE)
    }

    /// Like [`Host::sniff`], on another interface of the namespace.
    pub fn sniff_on(&self, interface: &str) -> Result<Sniffer> {
        Sniffer::open(&self.netns, interface)
    }

    /// Makes its frames look as on a wire: see [`Netns::offloads_off`].
    pub fn offloads_off(&self) -> Result<()> {
        self.netns.offloads_off(Self::INTERFACE)
    }

    /// The hardware address of its interface.
    pub fn mac(&self) -> Result<[u8; 6]> {
        let json = self.run(&format!("ip -j link show dev {}", Self::INTERFACE))?;
        let links: serde_json::Value = serde_json::from_str(&json)?;
        let text = links[0]["address"].as_str().context("the interface has no hardware address")?;
        parse_mac(text)
    }
}

/// `02:00:00:00:01:0b` as bytes.
pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("`{text}` is not a hardware address"))?;
    bytes.try_into().ok().with_context(|| format!("`{text}` is not a hardware address"))
}
