//! What `ping` says.

use std::process::Output;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::Process;

/// The outcome of a `ping`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ping {
    /// Requests sent.
    pub sent: u32,
    /// Replies received, without duplicates.
    pub received: u32,
    /// Further replies to one request.
    pub duplicates: u32,
    /// ICMP errors received.
    pub errors: u32,
    /// Mean round-trip time in milliseconds, if there was a reply.
    pub average_ms: Option<f64>,
    /// Each ICMP error as `ping` words it: `From 10.0.1.1 icmp_seq=1 Time to live exceeded`.
    pub complaints: Vec<String>,
    /// All that was printed.
    pub output: String,
}

impl Ping {
    /// Requests without a reply.
    pub fn lost(&self) -> u32 {
        self.sent.saturating_sub(self.received)
    }

    /// Whether every request got exactly one reply and nothing else came.
    pub fn is_clean(&self) -> bool {
        self.sent > 0 && self.lost() == 0 && self.duplicates == 0 && self.errors == 0
    }

    /// The line with the counts.
    pub fn summary(&self) -> &str {
        self.output.lines().find(|line| line.contains(" packets transmitted")).unwrap_or("no summary").trim()
    }

    /// Reads what iputils' ping prints. Its exit code is of no interest (1: no reply), unless it never got as
    /// far as counting.
    pub fn parse(output: &str) -> Result<Self> {
        let Some(summary) = output.lines().find(|line| line.contains(" packets transmitted")) else {
            bail!("ping printed no summary: {}", output.trim());
        };
        let mut ping = Self { output: output.to_owned(), ..Self::default() };
        for part in summary.split(", ") {
            let (count, what) = part.split_once(' ').unwrap_or((part, ""));
            let count = count.trim_start_matches('+').parse().ok();
            match (what, count) {
                ("packets transmitted", Some(count)) => ping.sent = count,
                ("received", Some(count)) => ping.received = count,
                ("duplicates", Some(count)) => ping.duplicates = count,
                ("errors", Some(count)) => ping.errors = count,
                _ => {} // the percentage, the time
            }
        }
        ping.complaints =
            output.lines().filter(|line| line.starts_with("From ")).map(str::to_owned).collect();
        ping.average_ms = output
            .lines()
            .find(|line| line.starts_with("rtt "))
            .and_then(|line| line.split(" = ").nth(1)?.split('/').nth(1)?.parse().ok());
        Ok(ping)
    }

    pub(crate) fn from_output(output: &Output) -> Result<Self> {
        let printed = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        Self::parse(&format!("{printed}{complaint}"))
    }
}

/// A `ping` in the background, for what must happen while traffic runs.
#[derive(Debug)]
pub struct RunningPing {
    process: Process,
}

impl RunningPing {
    pub(crate) fn new(process: Process) -> Self {
        Self { process }
    }

    /// Waits until all its requests are sent and answered or given up. It is never cut short, so that no
    /// reply on its way counts as lost.
    pub fn finish(mut self, timeout: Duration) -> Result<Ping> {
        self.process.wait(timeout)?;
        Ping::parse(&self.process.printed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_replies() {
        let ping = Ping::parse(
            "PING 10.0.1.12 (10.0.1.12) 56(84) bytes of data.\n\
             64 bytes from 10.0.1.12: icmp_seq=1 ttl=64 time=0.040 ms\n\n\
             --- 10.0.1.12 ping statistics ---\n\
             3 packets transmitted, 3 received, 0% packet loss, time 204ms\n\
             rtt min/avg/max/mdev = 0.040/0.055/0.070/0.012 ms\n",
        )
        .unwrap();
        assert_eq!((ping.sent, ping.received, ping.lost()), (3, 3, 0));
        assert_eq!(ping.average_ms, Some(0.055));
        assert!(ping.is_clean());
        assert_eq!(ping.summary(), "3 packets transmitted, 3 received, 0% packet loss, time 204ms");
    }

    #[test]
    fn reads_errors_and_duplicates() {
        let ping = Ping::parse(
            "PING 10.9.9.9 (10.9.9.9) 56(84) bytes of data.\n\
             From 10.0.1.1 icmp_seq=1 Destination Net Unreachable\n\n\
             --- 10.9.9.9 ping statistics ---\n\
             4 packets transmitted, 1 received, +2 duplicates, +1 errors, 75% packet loss, time 1001ms\n",
        )
        .unwrap();
        assert_eq!((ping.sent, ping.received, ping.duplicates, ping.errors, ping.lost()), (4, 1, 2, 1, 3));
        assert_eq!(ping.complaints, ["From 10.0.1.1 icmp_seq=1 Destination Net Unreachable"]);
        assert_eq!(ping.average_ms, None);
        assert!(!ping.is_clean());
    }

    #[test]
    fn no_summary_is_an_error() {
        let error = Ping::parse("ping: connect: Network is unreachable\n").unwrap_err();
        assert!(error.to_string().contains("Network is unreachable"));
    }
}
