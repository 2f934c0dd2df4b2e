//! `vrouter show dhcp`: what the ports of this node are told by DHCP and router advertisements.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{
    agent::{self, services::told::Told},
    output::table,
};

/// Asks the agent, who alone answers workloads.
pub fn told(run_dir: &Path) -> Result<Vec<Told>> {
    match agent::ask(run_dir, "dhcp") {
        None => bail!(
            "no agent is running, so that nobody answers DHCP at the moment; start it: systemctl start vrouter"
        ),
        Some(answer) => match serde_json::from_value(answer) {
            Ok(told) => Ok(told),
            Err(_) => bail!("the agent is of an earlier version, which answers no DHCP; restart it"),
        },
    }
}

/// As a table.
pub fn for_people(rows: &[Told]) -> String {
    let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(",");
    table(
        [
            "port", "network", "address", "how", "server", "gateway", "mtu", "dns", "lease", "routes",
            "options",
        ],
        rows.iter().map(|row| {
            [
                row.port.clone(),
                row.network.clone(),
                row.address.to_string(),
                row.how.clone(),
                row.server.map_or_else(String::new, |server| server.to_string()),
                row.gateway.map_or_else(String::new, |gateway| gateway.to_string()),
                row.mtu.to_string(),
                list(&mut row.dns.iter().map(ToString::to_string)),
                format!("{} s", row.lease_time),
                list(&mut row.routes.iter().map(|(net, nexthop)| format!("{net}>{nexthop}"))),
                list(&mut row.options.iter().map(ToString::to_string)),
            ]
        }),
    )
}
