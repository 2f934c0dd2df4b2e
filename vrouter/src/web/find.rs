//! Objects and flows by what somebody types.

use anyhow::{Result, bail};
use clap::Parser;
use serde::Serialize;

use super::{
    objects::{Objects, Port},
    sampler::Snapshot,
};
use crate::connections::{Row, filter::FilterArgs};

/// What is typed is no book.
pub const TEXT_MAX: usize = 512;
/// Objects and flows told of.
const FOUND_MAX: usize = 200;

/// An object that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    pub kind: &'static str,
    pub name: String,
    /// What people know it by.
    pub detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Of a port, for a trace.
    pub addresses: Vec<String>,
}

/// Objects in which every word of a text is found, those first whose name begins with it.
pub fn objects(objects: &Objects, text: &str) -> Result<Vec<Found>> {
    let text = check(text)?.to_lowercase();
    let words: Vec<_> = text.split_whitespace().collect();
    let ports = objects.ports.iter().map(of_port);
    let networks = objects.networks.iter().map(|network| Found {
        kind: "network",
        name: network.name.clone(),
        detail: format!(
            "{}VNI {}, MTU {}",
            if network.external { "external, " } else { "" },
            network.vni,
            network.mtu
        ),
        network: None,
        node: None,
        addresses: Vec::new(),
    });
    let routers = objects.routers.iter().map(|router| {
        let legs = router.legs.iter().map(|leg| format!("{} {}", leg.network, leg.addresses.join(" ")));
        Found {
            kind: "router",
            name: router.name.clone(),
            detail: legs.collect::<Vec<_>>().join(", "),
            network: None,
            node: None,
            addresses: Vec::new(),
        }
    });
    let nodes = objects.nodes.iter().map(|node| Found {
        kind: "node",
        name: node.name.clone(),
        detail: format!("VTEP {}", node.vtep),
        network: None,
        node: None,
        addresses: Vec::new(),
    });
    let mut found: Vec<_> = routers
        .chain(networks)
        .chain(nodes)
        .chain(ports)
        .filter(|it| {
            let place = [&it.network, &it.node].map(|it| it.as_deref().unwrap_or_default());
            let all =
                format!("{} {} {} {} {}", it.kind, it.name, it.detail, place[0], place[1]).to_lowercase();
            words.iter().all(|word| all.contains(word))
        })
        .collect();
    found.sort_by_key(|it| {
        let name = it.name.to_lowercase();
        (name != text, !name.starts_with(&text))
    });
    found.truncate(FOUND_MAX);
    Ok(found)
}

/// A port, as it is found.
pub fn of_port(port: &Port) -> Found {
    let outside =
        if port.outside.is_empty() { String::new() } else { format!(" ({})", port.outside.join(", ")) };
    Found {
        kind: "port",
        name: port.name.clone(),
        detail: format!("{} {}{outside}", port.addresses.join(" "), port.mac),
        network: Some(port.network.clone()),
        node: port.node.clone(),
        addresses: port.addresses.clone(),
    }
}

/// Flows that were found.
#[derive(Clone, Debug, Serialize)]
pub struct FlowsFound {
    /// The look they are of.
    pub sample: u64,
    pub flows: Vec<Row>,
    /// How many there are of them.
    pub matching: usize,
    /// How many were looked through.
    pub known: usize,
    /// Whether these were all.
    pub complete: bool,
}

/// What `vrouter flows` takes, without its own flags.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Flags {
    #[command(flatten)]
    filter: FilterArgs,
}

/// Reads `--port vm1 --proto tcp` as `vrouter flows` does; `port=vm1` is the same in fewer keys, and other words are
/// such that have to be in a flow somewhere.
fn filter(text: &str) -> Result<(FilterArgs, Vec<String>)> {
    let (mut flags, mut words) = (Vec::new(), Vec::new());
    let mut tokens = check(text)?.split_whitespace();
    while let Some(token) = tokens.next() {
        let is_assignment = token.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        match token {
            "--nat" | "--all" => flags.push(token.to_owned()),
            flag if flag.starts_with("--") && flag.contains('=') => flags.push(flag.to_owned()),
            flag if flag.starts_with("--") => {
                flags.push(flag.to_owned());
                flags.extend(tokens.next().map(str::to_owned));
            }
            _ if is_assignment => flags.push(format!("--{token}")),
            word => words.push(word.to_lowercase()),
        }
    }
    match Flags::try_parse_from(&flags) {
        Ok(Flags { filter }) => Ok((filter, words)),
        Err(error) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            bail!(
                "{first}. A filter is written as for `vrouter flows`: --port NAME, --network, --address, --l4port, \
                 --proto, --state, --router, --nat, --all; or port=NAME; or words that are in the flow"
            )
        }
    }
}

/// Flows that a text means, from the last look; no map is read for it.
pub fn flows(snapshot: &Snapshot, text: &str) -> Result<FlowsFound> {
    let look = &snapshot.look;
    let (filter, words) = filter(text)?;
    let filter = filter
        .resolve_with(&look.names, |port| Ok(look.objects.traces.get(&port).cloned().unwrap_or_default()))?;
    let (mut flows, mut matching) = (Vec::new(), 0);
    for (connection, standing) in &look.flows {
        if !filter.matches(connection, standing, &look.names) {
            continue;
        }
        // Words need the row; without, only those that are told of are put in names.
        if words.is_empty() && flows.len() >= FOUND_MAX {
            matching += 1;
            continue;
        }
        let row = Row::new(connection, standing, &look.names);
        if words.is_empty() || has(&row, &words) {
            matching += 1;
            if flows.len() < FOUND_MAX {
                flows.push(row);
            }
        }
    }
    Ok(FlowsFound {
        sample: snapshot.number,
        flows,
        matching,
        known: look.flows.len(),
        complete: look.complete,
    })
}

fn has(row: &Row, words: &[String]) -> bool {
    let Row { protocol, state, from, to, network, network_out, router, rule, .. } = row;
    let names = [network, network_out, router, rule].map(|name| name.as_deref().unwrap_or_default());
    let tuples = format!("{} {}", row.original.for_people(), row.translation());
    let ends = format!("{} {}", from.for_people(), to.for_people());
    let all = format!("{protocol} {state} {tuples} {ends} {}", names.join(" ")).to_lowercase();
    words.iter().all(|word| all.contains(word))
}

fn check(text: &str) -> Result<&str> {
    if text.len() > TEXT_MAX {
        bail!("the text has {} bytes: write at most {TEXT_MAX}", text.len());
    }
    Ok(text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_written_as_for_the_command_or_shorter() {
        let (args, words) = filter("--port vm1 --proto tcp --nat Established").expect("a filter");
        assert_eq!((args.port.as_deref(), args.proto, args.nat), (Some("vm1"), Some(6), true));
        assert_eq!(words, ["established"]);
        let (args, words) = filter(" port=vm1 proto=udp 10.0.0.1:53 ").expect("a filter");
        assert_eq!((args.port.as_deref(), args.proto), (Some("vm1"), Some(17)));
        assert_eq!(words, ["10.0.0.1:53"]);
        for (text, complaint) in [
            ("--count 1", "unexpected argument '--count'"),
            ("--proto tpc", "tpc"),
            ("--port", "--port"),
            ("prot=tcp", "unexpected argument '--prot'"),
        ] {
            let Err(error) = filter(text) else { panic!("{text} is taken") };
            assert!(error.to_string().contains(complaint), "{text}: {error}");
        }
        assert!(filter(&"x".repeat(TEXT_MAX + 1)).is_err());
    }
}
