//! Routed external networks: addresses that are announced by a BGP daemon (FRR), and what it has learned.
//!
//! The kernel's main table is all there is between the two. What this node carries is there as routes of protocol 118
//! to nowhere, for `redistribute kernel`; what the daemon learned it puts there with `proto bgp`. So nothing is lost
//! when either restarts, any daemon that speaks to the kernel will do, and what is announced does not depend on an
//! agent being alive. How the daemon's sessions are is asked for people alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;

use crate::netlink::{Netlink, routes};

/// How often the daemon is asked how its sessions are.
pub const ASK_INTERVAL: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// How it is, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BgpStatus {
    /// Addresses that are announced.
    pub announced: BTreeSet<IpAddr>,
    /// Routes that were learned, by external network.
    pub learned: BTreeMap<String, usize>,
    pub peers: Vec<PeerStatus>,
    /// What does not work.
    pub note: Option<String>,
}

/// A session of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    pub address: String,
    pub asn: u64,
    /// As FRR calls it: `Established`, `Active`, `Connect`...
    pub state: String,
    pub prefixes: u64,
}

/// What has been learned, by external network.
pub type Learned = BTreeMap<String, BTreeMap<IpNet, Vec<IpAddr>>>;

/// Reads what has been learned on the interfaces of external networks.
pub async fn learned(netlink: &Netlink, networks: &BTreeMap<u32, String>) -> Result<Learned> {
    let mut learned = Learned::new();
    for route in netlink.routes(routes::BGP).await? {
        for (ifindex, nexthop) in route.nexthops {
            if let Some(network) = networks.get(&ifindex) {
                let of_network = learned.entry(network.clone()).or_default();
                of_network.entry(route.destination).or_default().push(nexthop);
            }
        }
    }
    for nexthops in learned.values_mut().flat_map(BTreeMap::values_mut) {
        nexthops.sort_unstable();
        nexthops.dedup();
    }
    Ok(learned)
}

/// Makes what is announced what it has to be.
pub async fn announce(netlink: &Netlink, wanted: &BTreeSet<IpAddr>) -> Result<()> {
    let announced = netlink.announced().await?;
    for address in announced.difference(wanted) {
        netlink.withdraw(*address).await?;
        tracing::info!(%address, "no longer announced");
    }
    for address in wanted.difference(&announced) {
        netlink.announce(*address).await?;
        tracing::info!(%address, "announced");
    }
    Ok(())
}

/// Asks FRR how its sessions are. `sockets`: where its daemons listen, if not where they do by default.
pub async fn peers(sockets: Option<PathBuf>) -> Result<Vec<PeerStatus>> {
    let mut command = tokio::process::Command::new("vtysh");
    if let Some(sockets) = &sockets {
        command.arg("--vty_socket").arg(sockets);
    }
    command.args(["-c", "show bgp summary json"]).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(ANSWER_TIMEOUT, command.output()).await {
        Ok(output) => output.context("cannot run vtysh: is FRR installed?")?,
        Err(_) => bail!("FRR does not answer within {} seconds", ANSWER_TIMEOUT.as_secs()),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        let said =
            error.lines().chain(text.lines()).find(|line| !line.trim().is_empty()).unwrap_or("no word");
        bail!("FRR's bgpd does not run or cannot be asked: {}", said.trim());
    }
    read_summary(&text)
}

/// Reads `show bgp summary json`: by address family, peers by address.
fn read_summary(text: &str) -> Result<Vec<PeerStatus>> {
    let value: Value = match text.find('{') {
        Some(start) => serde_json::from_str(&text[start..]).context("FRR's answer cannot be read")?,
        None => bail!("FRR's bgpd does not run: {}", text.lines().next().unwrap_or("it says nothing")),
    };
    let mut peers: BTreeMap<String, PeerStatus> = BTreeMap::new();
    for family in value.as_object().into_iter().flat_map(|families| families.values()) {
        for (address, peer) in family["peers"].as_object().into_iter().flatten() {
            let known = peers.entry(address.clone()).or_insert_with(|| PeerStatus {
                address: address.clone(),
                asn: peer["remoteAs"].as_u64().unwrap_or(0),
                state: peer["state"].as_str().unwrap_or("unknown").to_owned(),
                prefixes: 0,
            });
            known.prefixes += peer["pfxRcd"].as_u64().unwrap_or(0);
        }
    }
    Ok(peers.into_values().collect())
}

/// What is to be said of the sessions.
pub fn judge(peers: &Result<Vec<PeerStatus>>) -> Option<String> {
    match peers {
        Err(error) => Some(format!("{error:#}: what was announced and learned last stays in force")),
        Ok(peers) if peers.is_empty() => Some("bgpd has no neighbour: configure one".to_owned()),
        Ok(peers) if peers.iter().all(|peer| peer.state != "Established") => {
            let states: Vec<String> =
                peers.iter().map(|peer| format!("{} is {}", peer.address, peer.state)).collect();
            Some(format!("no session of bgpd is established: {}", states.join(", ")))
        }
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_read_and_judged() {
        let text = r#"{"ipv4Unicast":{"as":65001,"peers":{"100.64.0.254":{"remoteAs":65000,"state":"Established","pfxRcd":2}}},
            "ipv6Unicast":{"peers":{"100.64.0.254":{"remoteAs":65000,"state":"Established","pfxRcd":1}}}}"#;
        let peers = read_summary(text).unwrap();
        let expected = PeerStatus {
            address: "100.64.0.254".to_owned(),
            asn: 65000,
            state: "Established".to_owned(),
            prefixes: 3,
        };
        assert_eq!(peers, std::slice::from_ref(&expected));
        assert_eq!(judge(&Ok(peers)), None);
        let down = PeerStatus { state: "Active".to_owned(), ..expected };
        assert!(judge(&Ok(vec![down])).unwrap().contains("100.64.0.254 is Active"));
        assert!(judge(&Ok(Vec::new())).unwrap().contains("no neighbour"));
        assert!(read_summary("{}").unwrap().is_empty());
        for noise in ["", "bgpd is not running\n", "{", "[]"] {
            let outcome = read_summary(noise);
            assert!(outcome.is_err() || judge(&outcome).is_some(), "{noise}");
        }
    }
}
