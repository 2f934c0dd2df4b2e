//! `vrouter map-dump`: every pinned map, decoded with names, from the pins alone.

mod banked;
mod entry;
mod flow;

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::ExitCode,
};

use anyhow::{Result, bail};
use vrouter_common::{
    flow::{Flow, FlowKey},
    reason::{DropReason, Event},
    tables::*,
};

use super::{InstanceArgs, flows::hung_up_is_fine, show::View};
use crate::{
    counters::Counters,
    data_path::PINNED_MAPS,
    identities::Identities,
    kernel::{Cursor, Map, PerCpu},
    output::{Format, OutputArgs},
    topology::model::Mac,
};
use entry::{Entry, fields};

/// Maps that hold nothing to read: a stack that only gives up what it is relieved of, rings that only one may
/// read, the scratch of `vr_expire`, and what `vrouter monitor` says and is told.
const NOT_DUMPED: &[&str] =
    &["FREE_HOPS", "UPCALLS", "SERVICES", "EXPIRE", "MONITOR", "MONITOR_SET", "MONITOR_COUNT"];

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

/// Where entries go, one by one: a flow table may hold millions.
type Tell<'a> = &'a mut dyn FnMut(Entry) -> Result<()>;

/// Prints them.
pub fn run(args: &Args) -> Result<ExitCode> {
    let maps = args.instance.pins()?.maps();
    let known = || PINNED_MAPS.iter().filter(|name| !NOT_DUMPED.contains(name));
    let wanted: Vec<&str> = match &args.map {
        None => known().copied().collect(),
        Some(name) => match known().find(|known| known.eq_ignore_ascii_case(name)) {
            Some(known) => vec![known],
            None => {
                bail!("no map {name}; there are: {}", known().copied().collect::<Vec<_>>().join(", "))
            }
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
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let printed = match args.output.output {
        Format::Table => print_text(&dumper, &wanted, &mut out),
        Format::Json => print_json(&dumper, &wanted, &mut out),
    };
    hung_up_is_fine(printed.and_then(|()| Ok(out.flush()?)))?;
    Ok(ExitCode::SUCCESS)
}

fn print_text(dumper: &Dumper, names: &[&str], out: &mut impl Write) -> Result<()> {
    for name in names {
        writeln!(out, "{name}")?;
        let mut entries = 0_u64;
        dumper.entries(name, &mut |entry| {
            entries += 1;
            Ok(writeln!(out, "  {entry}")?)
        })?;
        writeln!(out, "  ({entries} entries)")?;
    }
    Ok(())
}

/// An array of maps; an entry on each line.
fn print_json(dumper: &Dumper, names: &[&str], out: &mut impl Write) -> Result<()> {
    for (i, name) in names.iter().enumerate() {
        write!(out, "{}{{\"map\": \"{name}\", \"entries\": [", if i == 0 { "[" } else { ",\n" })?;
        let mut first = true;
        dumper.entries(name, &mut |entry| {
            write!(out, "{}\n  ", if first { "" } else { "," })?;
            first = false;
            Ok(serde_json::to_writer(&mut *out, &entry)?)
        })?;
        write!(out, "]}}")?;
    }
    writeln!(out, "]")?;
    Ok(())
}

struct Dumper<'a> {
    maps: &'a Path,
    commit: Commit,
    /// In force, and the other bank.
    views: [View; 2],
}

impl Dumper<'_> {
    fn entries(&self, name: &str, tell: Tell) -> Result<()> {
        match name {
            "COMMIT" => tell(self.commit()),
            "REVISIONS" => self.each(name, tell, |&network, &revision: &u32| {
                (revision != 0).then(|| {
                    Entry::new(fields![network: self.name(NAME_NETWORK, network)], fields![epoch: revision])
                })
            }),
            "FLOWS" | "TRANSIENT" => self
                .each(name, tell, |key: &FlowKey, value: &Flow| Some(flow::entry(self.view(), key, value))),
            "FRAGMENTS" => {
                self.each(name, tell, |key: &FragmentKey, value: &Fragment| Some(flow::fragment(key, value)))
            }
            "HOP_INDEX" => self.each(name, tell, |key: &HopKey, &index: &u32| {
                let key =
                    fields![network: self.name(NAME_NETWORK, key.network), address: IpAddr::from(key.ip)];
                Some(Entry::new(key, fields![hop: index]))
            }),
            "MASTERS" => self.each(name, tell, |key: &MasterKey, master: &Master| {
                let family = if key.v6 == 0 { "ipv4" } else { "ipv6" };
                let key =
                    fields![network: self.name(NAME_NETWORK, key.network), vrid: key.vrid, family: family];
                let (is_master, silenced) = (master.is_master != 0, master.silenced != 0);
                Some(Entry::new(key, fields![master: is_master, silenced: silenced, until_ns: master.until]))
            }),
            "HOPS" => self.each(name, tell, |&index, hop: &Hop| self.hop(index, hop)),
            "UNDERLAY" => self.each(name, tell, |&node, way: &Underlay| self.way(node, way)),
            "LISTENER_COUNT" => self.counts(name, NAME_LISTENER, tell),
            "MEMBER_COUNT" => self.counts(name, NAME_MEMBER, tell),
            "NAT_TRIES" => self.tries(tell),
            "DROPS" => self.drops(tell),
            "EVENTS" => self.events(tell),
            "NAMES" => self.names(tell),
            "CLOCK" => self.each(name, tell, |_: &u32, &ticks: &u64| {
                Some(Entry::new(fields![clock: "now"], fields![ticks: ticks]))
            }),
            _ => {
                for (view, bank) in self.views.iter().zip(["in force", "other"]) {
                    banked::entries(view, name, &mut |entry| tell(Entry { bank, ..entry }))?;
                }
                Ok(())
            }
        }
    }

    fn each<K: aya::Pod, V: aya::Pod>(
        &self,
        name: &str,
        tell: Tell,
        entry: impl Fn(&K, &V) -> Option<Entry>,
    ) -> Result<()> {
        let map: Map<K, V> = Map::open(self.maps, name)?;
        let mut cursor = Cursor::new();
        while let Some(batch) = map.next_batch(&mut cursor)? {
            for entry in batch.filter_map(|(key, value)| entry(key, value)) {
                tell(entry)?;
            }
        }
        Ok(())
    }

    fn view(&self) -> &View {
        &self.views[0]
    }

    fn name(&self, kind: u32, id: u32) -> String {
        self.view().name(kind, id)
    }

    fn commit(&self) -> Entry {
        let commit = &self.commit;
        let externals: Vec<String> = commit
            .externals
            .iter()
            .filter(|external| external.ifindex != 0)
            .map(|external| {
                format!("ifindex {} vni {} flags {:#x}", external.ifindex, external.vni, external.flags)
            })
            .collect();
        Entry::new(
            fields![commit: "state"],
            fields![
                epoch: commit.epoch,
                bank: commit.bank(),
                schema: commit.schema,
                node: self.name(NAME_NODE, commit.node),
                vtep: Ipv4Addr::from_bits(commit.vtep.get()),
                digest: format!("{:016x}", commit.digest),
                applied_at_seconds: commit.applied_at_seconds,
                overlay_mtu: commit.overlay_mtu,
                externals: externals,
            ],
        )
    }

    fn hop(&self, index: u32, hop: &Hop) -> Option<Entry> {
        (*hop != Hop::default()).then(|| {
            let value = fields![
                network: self.name(NAME_NETWORK, hop.network),
                address: IpAddr::from(hop.ip),
                state: super::show::hop_state(hop),
                mac: Mac(hop.mac),
                ifindex: hop.ifindex,
                router: self.name(NAME_ROUTER, hop.router),
                asked: hop.asked,
                confirmed: hop.confirmed,
                flags: hop.flags,
            ];
            Entry::new(fields![hop: index], value)
        })
    }

    fn way(&self, node: u32, way: &Underlay) -> Option<Entry> {
        (way.dst.get() != 0).then(|| {
            let value = fields![
                vtep: Ipv4Addr::from_bits(way.dst.get()),
                src: Ipv4Addr::from_bits(way.src.get()),
                nexthop: Ipv4Addr::from_bits(way.nexthop.get()),
                ifindex: way.ifindex,
                src_mac: Mac(way.macs.src()),
                dst_mac: Mac(way.macs.dst()),
                mtu: way.mtu,
                flags: way.flags,
            ];
            Entry::new(fields![node: self.name(NAME_NODE, node)], value)
        })
    }

    /// New connections of what has a name.
    fn counts(&self, map: &str, kind: u32, tell: Tell) -> Result<()> {
        self.each(map, tell, |&number: &u32, &count: &u64| {
            (count != 0)
                .then(|| Entry::new(fields![name: self.name(kind, number)], fields![connections: count]))
        })
    }

    fn tries(&self, tell: Tell) -> Result<()> {
        let map: PerCpu<u64> = PerCpu::open(self.maps, "NAT_TRIES")?;
        (0..NAT_TRIES_BUCKETS).try_for_each(|bucket| {
            let count: u64 = map.values(bucket)?.iter().sum();
            tell(Entry::new(
                fields![ports_tried: super::show::nat::tries_name(bucket)],
                fields![count: count],
            ))
        })
    }

    fn drops(&self, tell: Tell) -> Result<()> {
        let counters = Counters::open(self.maps)?;
        DropReason::ALL.iter().try_for_each(|&reason| {
            let tally = counters.drops(reason)?;
            tell(Entry::new(
                fields![reason: reason.name()],
                fields![packets: tally.packets, bytes: tally.bytes],
            ))
        })
    }

    fn events(&self, tell: Tell) -> Result<()> {
        let counters = Counters::open(self.maps)?;
        Event::ALL.iter().try_for_each(|&event| {
            tell(Entry::new(fields![event: event.name()], fields![count: counters.event(event)?]))
        })
    }

    fn names(&self, tell: Tell) -> Result<()> {
        let map: Map<NameKey, Name> = Map::open(self.maps, "NAMES")?;
        let mut keys = map.keys()?;
        keys.sort_unstable();
        let kind = |kind| match kind {
            NAME_NETWORK => "network",
            NAME_ROUTER => "router",
            NAME_PORT => "port",
            NAME_NODE => "node",
            NAME_POLICY => "policy",
            NAME_CLASS => "class",
            NAME_RULE => "rule",
            NAME_GROUP => "next hops",
            NAME_LISTENER => "listener",
            NAME_POOL => "pool",
            NAME_MEMBER => "member",
            _ => "unknown",
        };
        keys.iter().try_for_each(|key| {
            tell(Entry::new(
                fields![kind: kind(key.kind), number: key.id],
                fields![name: self.name(key.kind, key.id)],
            ))
        })
    }
}
