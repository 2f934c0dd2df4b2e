//! `vrouter map-dump`: every pinned map, decoded with names, from the pins alone.

use std::{fmt::Write, net::Ipv4Addr, path::Path, process::ExitCode};

use anyhow::{Result, bail};
use serde::Serialize;
use vrouter_common::{
    flow::{EXIT_PORT, EXIT_TUNNEL, FROM_PORT, Flow, FlowKey},
    reason::{DropReason, Event},
    tables::*,
};

use super::{
    InstanceArgs,
    show::{View, ip, prefix, route_kind},
};
use crate::{
    counters::Counters, data_path::PINNED_MAPS, identities::Identities, kernel::Map, output::OutputArgs,
    topology::model::Mac,
};

/// Print pinned maps, decoded
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// One map; without it, all
    pub map: Option<String>,
    #[command(flatten)]
    pub instance: InstanceArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Serialize)]
struct Dump {
    map: String,
    entries: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    /// `in force`, or `other`: of the bank no packet reads. Empty where there are no banks.
    #[serde(skip_serializing_if = "str::is_empty")]
    bank: &'static str,
    key: String,
    value: String,
}

/// Prints them.
pub fn run(args: &Args) -> Result<ExitCode> {
    let maps = args.instance.pins()?.maps();
    let wanted: Vec<&str> = match &args.map {
        None => PINNED_MAPS.to_vec(),
        Some(name) => match PINNED_MAPS.iter().find(|known| known.eq_ignore_ascii_case(name)) {
            Some(known) => vec![known],
            None => bail!("no map {name}; there are: {}", PINNED_MAPS.join(", ")),
        },
    };
    let banks = crate::banks::Maps::open(&maps)?;
    let commit = banks.commit()?;
    let names = Identities::read(&Map::open(&maps, "NAMES")?)?;
    let bank = commit.bank();
    let views = [bank, bank ^ 1]
        .map(|bank| -> Result<View> { Ok(View { image: banks.read(bank)?, names: names.clone() }) });
    let [in_force, other] = views;
    let dumper = Dumper { maps: &maps, commit, views: [in_force?, other?] };
    let mut dumps = Vec::new();
    for name in wanted {
        dumps.push(Dump { map: name.to_owned(), entries: dumper.entries(name)? });
    }
    args.output.print(&dumps, |dumps| {
        let mut out = String::new();
        for dump in dumps {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{} ({} entries)", dump.map, dump.entries.len());
            for entry in &dump.entries {
                let bank = if entry.bank == "other" { "(not in force) " } else { "" };
                let _ = writeln!(out, "  {bank}{} -> {}", entry.key, entry.value);
            }
        }
        out
    })?;
    Ok(ExitCode::SUCCESS)
}

struct Dumper<'a> {
    maps: &'a Path,
    commit: Commit,
    /// In force, and the other bank.
    views: [View; 2],
}

fn entry(key: impl ToString, value: impl ToString) -> Entry {
    Entry { bank: "", key: key.to_string(), value: value.to_string() }
}

impl Dumper<'_> {
    fn entries(&self, name: &str) -> Result<Vec<Entry>> {
        Ok(match name {
            "COMMIT" => vec![self.commit()],
            "REVISIONS" => self.revisions()?,
            "FLOWS" => self.flows()?,
            "UNDERLAY" => self.underlay()?,
            "DROPS" => self.drops()?,
            "EVENTS" => self.events()?,
            "NAMES" => self.names()?,
            "CLOCK" => self.clock()?,
            _ => self.banked(name),
        })
    }

    fn view(&self) -> &View {
        &self.views[0]
    }

    fn commit(&self) -> Entry {
        let commit = &self.commit;
        entry(
            "state",
            format!(
                "epoch {} bank {} schema {} node {} vtep {} digest {:016x} applied at {}",
                commit.epoch,
                commit.bank(),
                commit.schema,
                self.view().name(NAME_NODE, commit.node),
                Ipv4Addr::from_bits(commit.vtep.get()),
                commit.digest,
                commit.applied_at_seconds
            ),
        )
    }

    fn revisions(&self) -> Result<Vec<Entry>> {
        let map: Map<u32, u32> = Map::open(self.maps, "REVISIONS")?;
        let changed = map.entries()?.into_iter().filter(|&(_, revision)| revision != 0);
        Ok(changed
            .map(|(network, revision)| {
                entry(
                    format!("network {}", self.view().name(NAME_NETWORK, network)),
                    format!("epoch {revision}"),
                )
            })
            .collect())
    }

    fn flows(&self) -> Result<Vec<Entry>> {
        let map: Map<FlowKey, Flow> = Map::open(self.maps, "FLOWS")?;
        Ok(map.entries()?.iter().map(|(key, flow)| entry(self.flow_key(key), self.flow(flow))).collect())
    }

    fn flow_key(&self, key: &FlowKey) -> String {
        let from =
            if key.from == FROM_PORT { format!("ifindex {}", key.zone) } else { format!("vni {}", key.zone) };
        format!(
            "from {from} proto {} {}:{} > {}:{}",
            key.proto,
            ip(key.src),
            key.sport.get(),
            ip(key.dst),
            key.dport.get()
        )
    }

    fn flow(&self, flow: &Flow) -> String {
        let exit = match flow.exit {
            EXIT_PORT => format!("ifindex {}", flow.target),
            EXIT_TUNNEL => format!("node {} vni {}", self.view().name(NAME_NODE, flow.target), flow.vni),
            other => format!("exit {other}"),
        };
        format!(
            "to {exit} hops {} as {} > {} epoch {} packets {} bytes {}",
            flow.hops,
            Mac(flow.out_macs.src()),
            Mac(flow.out_macs.dst()),
            flow.epoch,
            flow.packets,
            flow.bytes
        )
    }

    fn underlay(&self) -> Result<Vec<Entry>> {
        let map: Map<u32, Underlay> = Map::open(self.maps, "UNDERLAY")?;
        let ways = map.entries()?.into_iter().filter(|(_, way)| way.dst.get() != 0);
        Ok(ways
            .map(|(node, way)| {
                let value = format!(
                    "vtep {} via {} ifindex {} {} > {} mtu {} flags {:#x}",
                    Ipv4Addr::from_bits(way.dst.get()),
                    Ipv4Addr::from_bits(way.nexthop.get()),
                    way.ifindex,
                    Mac(way.macs.src()),
                    Mac(way.macs.dst()),
                    way.mtu,
                    way.flags
                );
                entry(format!("node {}", self.view().name(NAME_NODE, node)), value)
            })
            .collect())
    }

    fn drops(&self) -> Result<Vec<Entry>> {
        let counters = Counters::open(self.maps)?;
        DropReason::ALL
            .iter()
            .map(|&reason| {
                let tally = counters.drops(reason)?;
                Ok(entry(reason.name(), format!("{} packets, {} bytes", tally.packets, tally.bytes)))
            })
            .collect()
    }

    fn events(&self) -> Result<Vec<Entry>> {
        let counters = Counters::open(self.maps)?;
        Event::ALL.iter().map(|&event| Ok(entry(event.name(), counters.event(event)?))).collect()
    }

    fn names(&self) -> Result<Vec<Entry>> {
        let map: Map<NameKey, Name> = Map::open(self.maps, "NAMES")?;
        let mut keys = map.keys()?;
        keys.sort_unstable();
        let kind = |kind| match kind {
            NAME_NETWORK => "network",
            NAME_ROUTER => "router",
            NAME_PORT => "port",
            NAME_NODE => "node",
            _ => "unknown",
        };
        Ok(keys
            .iter()
            .map(|key| entry(format!("{} {}", kind(key.kind), key.id), self.view().name(key.kind, key.id)))
            .collect())
    }

    fn clock(&self) -> Result<Vec<Entry>> {
        let map: Map<u32, u64> = Map::open(self.maps, "CLOCK")?;
        Ok(vec![entry("ticks", map.lookup(&0)?.unwrap_or(0))])
    }

    /// The tables of the compiled topology, both banks.
    fn banked(&self, name: &str) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (view, bank) in self.views.iter().zip(["in force", "other"]) {
            let before = entries.len();
            bank_entries(view, name, &mut entries);
            for entry in &mut entries[before..] {
                entry.bank = bank;
            }
        }
        entries
    }
}

fn bank_entries(view: &View, name: &str, out: &mut Vec<Entry>) {
    let image = &view.image;
    let network = |id: u32| format!("network {}", view.name(NAME_NETWORK, id));
    let station = |station: &Station| {
        let (kind, name) =
            if station.kind == STATION_ROUTER { ("router", NAME_ROUTER) } else { ("port", NAME_PORT) };
        format!(
            "{kind} {} mac {} at {}",
            view.name(name, station.owner),
            Mac(station.mac),
            view.place(station)
        )
    };
    match name {
        "BINDINGS" => out.extend(image.bindings.iter().map(|(key, binding)| {
            let value = format!(
                "port {} {} vni {} mtu {} mac {} flags {:#x}",
                view.name(NAME_PORT, binding.port),
                network(binding.network),
                binding.vni,
                binding.mtu,
                Mac(binding.mac),
                binding.flags
            );
            entry(format!("ifindex {}", key.ifindex.id()), value)
        })),
        "NETWORKS" => out.extend(image.networks.iter().map(|(key, value)| {
            entry(network(key.network.id()), format!("vni {} mtu {}", value.vni, value.mtu))
        })),
        "VNIS" => {
            out.extend(
                image.vnis.iter().map(|(key, &value)| entry(format!("vni {}", key.vni.id()), network(value))),
            );
        }
        "VTEPS" => out.extend(image.vteps.iter().map(|(key, &node)| {
            entry(Ipv4Addr::from_bits(key.addr.get()), format!("node {}", view.name(NAME_NODE, node)))
        })),
        "FDB" => out.extend(image.fdb.iter().map(|(key, value)| {
            entry(format!("{} {}", network(key.network.id()), Mac(key.mac)), station(value))
        })),
        "ADDRESSES" => out.extend(image.addresses.iter().map(|(key, value)| {
            entry(format!("{} {}", network(key.network.id()), ip(key.ip)), station(value))
        })),
        "ALLOWED" => out.extend(image.allowed.keys().map(|key| {
            let from = prefix(key.ip, key.prefix_len - AllowedKey::FIXED_BITS);
            entry(format!("port {} {} {from}", view.name(NAME_PORT, key.port.id()), Mac(key.mac)), "allowed")
        })),
        "ROUTES" => out.extend(image.routes.iter().map(|(key, route)| {
            let to = prefix(key.dst, key.prefix_len - RouteKey::FIXED_BITS);
            let mut value = route_kind(route.kind).to_owned();
            if route.kind == ROUTE_VIA {
                value += &format!(" {}", ip(route.nexthop));
            }
            if route.network != 0 {
                value += &format!(" {}", network(route.network));
            }
            entry(format!("router {} {to}", view.name(NAME_ROUTER, key.router.id())), value)
        })),
        "ROUTER_LEGS" => out.extend(image.router_legs.iter().map(|(key, leg)| {
            let value =
                format!("mac {} {} {} vni {} mtu {}", Mac(leg.mac), ip(leg.v4), ip(leg.v6), leg.vni, leg.mtu);
            entry(
                format!("router {} {}", view.name(NAME_ROUTER, key.router.id()), network(key.network)),
                value,
            )
        })),
        "FLOODS" => out.extend(image.floods.iter().map(|(key, flood)| {
            let at = if key.cursor >= FLOOD_REMOTE {
                format!("node {}", view.name(NAME_NODE, flood.at))
            } else {
                format!("ifindex {}", flood.at)
            };
            let next = if flood.next == FLOOD_END { "end".to_owned() } else { format!("{:#x}", flood.next) };
            entry(
                format!("{} cursor {:#x}", network(key.network.id()), key.cursor),
                format!("{at} next {next}"),
            )
        })),
        _ => {}
    }
}
