//! What other tools say: traceroute and iperf3.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::Host;

/// The hops to a destination, one entry per TTL: who answered, or `None` for a star.
pub fn traceroute(host: &Host, destination: impl Display) -> Result<(Vec<Option<String>>, String)> {
    trace(host, &destination.to_string())
}

/// The same with pings, for those who let nothing else in.
pub fn traceroute_icmp(host: &Host, destination: impl Display) -> Result<(Vec<Option<String>>, String)> {
    trace(host, &format!("-I {destination}"))
}

fn trace(host: &Host, arguments: &str) -> Result<(Vec<Option<String>>, String)> {
    let output = host.run(&format!("traceroute -n -q 1 -w 2 -m 8 {arguments}"))?;
    Ok((parse_traceroute(&output), output))
}

fn parse_traceroute(output: &str) -> Vec<Option<String>> {
    output
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            words.next()?.parse::<u8>().ok()?; // the header has no number
            let hop = words.next()?;
            Some((hop != "*").then(|| hop.to_owned()))
        })
        .collect()
}

/// What an iperf3 run measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throughput {
    /// As the receiver counted it.
    pub bits_per_second: f64,
    /// Segments the sender sent again.
    pub retransmits: u64,
}

/// One TCP stream from `client` to `server`'s address `destination`; `extra` are further options of the client.
pub fn iperf3(
    client: &Host,
    server: &Host,
    destination: impl Display,
    seconds: u32,
    extra: &[&str],
) -> Result<Throughput> {
    let mut listener = server.spawn("iperf3 --server --one-off --forceflush")?;
    listener.wait_for_text("listening", Duration::from_secs(5))?;
    let mut command = client.command("iperf3");
    command.args(["--client", &destination.to_string(), "--time", &seconds.to_string()]);
    command.args(["--connect-timeout", "3000", "--json"]).args(extra);
    let output = command.output().context("cannot run iperf3; is it installed?")?;
    parse_iperf3(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("iperf3 from {} to {} ({destination})", client.name(), server.name()))
}

fn parse_iperf3(json: &str) -> Result<Throughput> {
    let report: Value =
        serde_json::from_str(json).with_context(|| format!("iperf3 printed no JSON: {json}"))?;
    if let Some(error) = report["error"].as_str() {
        bail!("{error}");
    }
    let bits_per_second = report["end"]["sum_received"]["bits_per_second"].as_f64();
    let bits_per_second = bits_per_second.context("iperf3's report has no end.sum_received")?;
    Ok(Throughput {
        bits_per_second,
        retransmits: report["end"]["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_hops_and_stars() {
        let output = "traceroute to 10.0.2.13 (10.0.2.13), 8 hops max, 60 byte packets\n \
                      1  10.0.1.1  0.052 ms\n 2  *\n 3  fd00:2::d  0.071 ms\n";
        let hops = [Some("10.0.1.1".to_owned()), None, Some("fd00:2::d".to_owned())];
        assert_eq!(parse_traceroute(output), hops);
    }

    #[test]
    fn reads_throughput_or_the_error() {
        let report = r#"{"end":{"sum_sent":{"retransmits":3},"sum_received":{"bits_per_second":1.5e9}}}"#;
        assert_eq!(parse_iperf3(report).unwrap(), Throughput { bits_per_second: 1.5e9, retransmits: 3 });
        let error = parse_iperf3(r#"{"error":"unable to connect to server"}"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"));
    }
}
