//! `vrouter show`: what this node compiled, in the topology's names, read from the pins.

pub mod acl;
pub mod dhcp;
pub mod gateways;
pub mod lb;
pub mod nat;

use std::{collections::BTreeMap, net::IpAddr, path::Path, process::ExitCode};

use anyhow::Result;
use serde::Serialize;
use vrouter_common::{addr::Ip, memory::Image, reason::DropReason, reason::Event, tables::*};

use super::InstanceArgs;
use crate::{
    counters::Counters,
    identities::Identities,
    kernel::Map,
    output::{OutputArgs, table},
    topology::model::Mac,
};

/// Show what this node compiled
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[arg(value_enum)]
    pub what: What,
    /// Of acl: one port
    pub name: Option<String>,
    #[command(flatten)]
    pub instance: InstanceArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Kinds of things to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// Routing tables of the routers
    Routes,
    /// Ports, local and remote
    Ports,
    /// Addresses answered by ARP and ND
    Arp,
    /// Networks with their VNIs
    Networks,
    /// Hardware addresses
    Fdb,
    /// Ways to the other nodes
    Underlay,
    /// Floating IPs, port forwardings, shared addresses with this node's ports
    Nat,
    /// Load balancers: listeners, members, and what they serve
    Lb,
    /// What this node's ports are told by DHCP and router advertisements
    Dhcp,
    /// Rules of this node's ports
    Acl,
    /// Who carries for which router outside, and by whom this node goes out
    Gateways,
    /// Next hops on external networks
    Hops,
    /// Dropped packets by reason
    Drops,
    /// Everything else that is counted
    Events,
}

/// Prints it.
pub fn run(args: &Args) -> Result<ExitCode> {
    if let (Some(name), false) = (&args.name, args.what == What::Acl) {
        eprintln!("vrouter: {name}: only `vrouter show acl` takes a name, that of a port");
        return Ok(ExitCode::from(2));
    }
    let maps = args.instance.pins()?.maps();
    let banks = crate::banks::Maps::open(&maps)?;
    let names = Identities::read(&Map::open(&maps, "NAMES")?)?;
    let view = View { image: banks.read(banks.commit()?.bank())?, names };
    let out = &args.output;
    match args.what {
        What::Routes => out.print(&view.routes(), |rows| {
            table(
                ["router", "destination", "kind", "nexthop", "network"],
                rows.iter().map(|row| {
                    [&row.router, &row.destination, row.kind, &row.nexthop, &row.network]
                        .map(ToString::to_string)
                }),
            )
        }),
        What::Ports => out.print(&view.ports(), |rows| {
            table(
                ["port", "network", "mac", "addresses", "place"],
                rows.iter().map(|row| {
                    [&row.port, &row.network, &row.mac, &row.addresses.join(","), &row.place]
                        .map(ToString::to_string)
                }),
            )
        }),
        What::Arp => out.print(&view.arp(), |rows| {
            table(
                ["network", "address", "mac", "owner", "place"],
                rows.iter().map(|row| {
                    [&row.network, &row.address, &row.mac, &row.owner, &row.place].map(ToString::to_string)
                }),
            )
        }),
        What::Fdb => out.print(&view.fdb(), |rows| {
            table(
                ["network", "mac", "owner", "place"],
                rows.iter()
                    .map(|row| [&row.network, &row.mac, &row.owner, &row.place].map(ToString::to_string)),
            )
        }),
        What::Networks => out.print(&view.networks(), |rows| {
            table(
                ["network", "vni", "mtu"],
                rows.iter().map(|row| [row.network.clone(), row.vni.to_string(), row.mtu.to_string()]),
            )
        }),
        What::Underlay => {
            let underlay: Map<u32, Underlay> = Map::open(&maps, "UNDERLAY")?;
            let ways = underlay.entries()?.into_iter().filter(|(_, way)| way.dst.get() != 0);
            let rows: Vec<_> =
                ways.map(|(node, way)| crate::agent::peer_status(node, &way, &view.names)).collect();
            out.print(&rows, |rows| {
                table(
                    ["node", "vtep", "state", "nexthop", "mac", "ifindex"],
                    rows.iter().map(|row| {
                        [&row.node, &row.vtep, row.state, &row.nexthop, &row.mac, &row.ifindex.to_string()]
                            .map(ToString::to_string)
                    }),
                )
            })
        }
        What::Gateways => {
            let report = gateways::report(&view, &maps, &crate::agent::run_dir(&args.instance.instance))?;
            out.print(&report, gateways::for_people)
        }
        What::Nat => out.print(&nat::report(&view, &maps)?, nat::for_people),
        What::Lb => out.print(&lb::report(&view, &maps)?, lb::for_people),
        What::Dhcp => {
            let told = dhcp::told(&crate::agent::run_dir(&args.instance.instance))?;
            out.print(&told, |told| dhcp::for_people(told))
        }
        What::Acl => out.print(&acl::acl(&view, args.name.as_deref())?, |acls| acl::for_people(acls)),
        What::Hops => out.print(&hops(&view, &maps)?, |rows| {
            table(
                ["network", "address", "state", "mac", "ifindex", "asked by"],
                rows.iter().map(|row| {
                    [
                        row.network.clone(),
                        row.address.to_string(),
                        row.state.to_owned(),
                        row.mac.clone(),
                        row.ifindex.to_string(),
                        row.router.clone(),
                    ]
                }),
            )
        }),
        What::Drops => out.print(&drops(&Counters::open(&maps)?)?, |rows| {
            table(
                ["reason", "packets", "bytes", "meaning"],
                rows.iter().filter(|row| row.packets > 0).map(|row| {
                    [
                        row.reason.to_owned(),
                        row.packets.to_string(),
                        row.bytes.to_string(),
                        row.meaning.to_owned(),
                    ]
                }),
            )
        }),
        What::Events => out.print(&events(&Counters::open(&maps)?)?, |rows| {
            table(
                ["event", "count", "meaning"],
                rows.iter().map(|row| [row.event.to_owned(), row.count.to_string(), row.meaning.to_owned()]),
            )
        }),
    }?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct DropRow {
    reason: &'static str,
    packets: u64,
    bytes: u64,
    meaning: &'static str,
}

fn drops(counters: &Counters) -> Result<Vec<DropRow>> {
    DropReason::ALL
        .iter()
        .map(|&reason| {
            let tally = counters.drops(reason)?;
            Ok(DropRow {
                reason: reason.name(),
                packets: tally.packets,
                bytes: tally.bytes,
                meaning: reason.describe().trim(),
            })
        })
        .collect()
}

#[derive(Serialize)]
struct EventRow {
    event: &'static str,
    count: u64,
    meaning: &'static str,
}

fn events(counters: &Counters) -> Result<Vec<EventRow>> {
    Event::ALL
        .iter()
        .map(|&event| {
            Ok(EventRow {
                event: event.name(),
                count: counters.event(event)?,
                meaning: event.describe().trim(),
            })
        })
        .collect()
}

#[derive(Serialize)]
struct HopRow {
    hop: u32,
    network: String,
    address: IpAddr,
    state: &'static str,
    mac: String,
    ifindex: u32,
    /// The router whose address it was asked from.
    router: String,
}

/// What is known of a next hop on an external network.
pub fn hop_state(hop: &Hop) -> &'static str {
    match hop.flags {
        flags if flags & HOP_RESOLVED != 0 => "resolved",
        flags if flags & HOP_FAILED != 0 => "failed",
        _ => "resolving",
    }
}

fn hops(view: &View, maps: &Path) -> Result<Vec<HopRow>> {
    let map: Map<u32, Hop> = Map::open(maps, "HOPS")?;
    let used = map.entries()?.into_iter().filter(|(_, hop)| hop.flags & HOP_USED != 0);
    let mut rows: Vec<_> = used
        .map(|(index, hop)| HopRow {
            hop: index,
            network: view.name(NAME_NETWORK, hop.network),
            address: hop.ip.into(),
            state: hop_state(&hop),
            mac: if hop.flags & HOP_RESOLVED != 0 { Mac(hop.mac).to_string() } else { String::new() },
            ifindex: hop.ifindex,
            router: view.name(NAME_ROUTER, hop.router),
        })
        .collect();
    rows.sort_by(|a, b| (&a.network, a.address).cmp(&(&b.network, b.address)));
    Ok(rows)
}

/// A compiled topology with its names.
pub struct View {
    pub image: Image,
    pub names: Identities,
}

#[derive(Serialize)]
pub struct RouteRow {
    router: String,
    destination: String,
    kind: &'static str,
    nexthop: String,
    network: String,
}

#[derive(Serialize)]
pub struct PortRow {
    port: String,
    network: String,
    mac: String,
    addresses: Vec<String>,
    place: String,
}

#[derive(Serialize)]
pub struct ArpRow {
    network: String,
    address: String,
    mac: String,
    owner: String,
    place: String,
}

#[derive(Serialize)]
pub struct FdbRow {
    network: String,
    mac: String,
    owner: String,
    place: String,
}

#[derive(Serialize)]
pub struct NetworkRow {
    network: String,
    vni: u32,
    mtu: u32,
}

/// An address for people.
pub fn ip(ip: Ip) -> String {
    IpAddr::from(ip).to_string()
}

/// A prefix of the mapped space for people.
pub fn prefix(address: Ip, len: u32) -> String {
    let len = if address.is_v4() && len >= 96 { len - 96 } else { len };
    format!("{}/{len}", ip(address))
}

/// `ROUTE_*` for people.
pub fn route_kind(kind: u32) -> &'static str {
    match kind {
        ROUTE_CONNECTED => "connected",
        ROUTE_VIA => "via",
        ROUTE_SELF => "self",
        ROUTE_BLACKHOLE => "blackhole",
        ROUTE_UNREACHABLE => "unreachable",
        ROUTE_BROADCAST => "broadcast",
        ROUTE_NONE => "none",
        ROUTE_MULTI => "multipath",
        _ => "unknown",
    }
}

impl View {
    /// A name, or the number of what has none.
    pub fn name(&self, kind: u32, id: u32) -> String {
        self.names.name(kind, id).map_or_else(|| format!("#{id}"), str::to_owned)
    }

    fn owner(&self, station: &Station) -> String {
        match station.kind {
            STATION_ROUTER => format!("router {}", self.name(NAME_ROUTER, station.owner)),
            STATION_FLOATING => format!("floating IP of router {}", self.name(NAME_ROUTER, station.owner)),
            STATION_SERVICE => "services of the node".to_owned(),
            STATION_VIP => format!("VIP of router {}", self.name(NAME_ROUTER, station.owner)),
            STATION_MEMBER => format!("pool member of router {}", self.name(NAME_ROUTER, station.owner)),
            _ => format!("port {}", self.name(NAME_PORT, station.owner)),
        }
    }

    /// Where a station is, for people.
    pub fn place(&self, station: &Station) -> String {
        match station.place {
            PLACE_EVERYWHERE => "everywhere".to_owned(),
            PLACE_LOCAL | PLACE_LOCAL_PEER => format!("here, ifindex {}", station.at),
            PLACE_LOCAL_FRAMES => format!("here, ifindex {} (xdp)", station.at),
            PLACE_REMOTE => self.name(NAME_NODE, station.at),
            PLACE_SHARED if station.at == 0 => "every gateway".to_owned(),
            PLACE_SHARED => format!("the master of VRID {}", station.at),
            PLACE_UNPLUGGED => "here, interface missing".to_owned(),
            _ => "unbound".to_owned(),
        }
    }

    fn routes(&self) -> Vec<RouteRow> {
        let routes = self.image.routes.iter().map(|(key, route)| RouteRow {
            router: self.name(NAME_ROUTER, key.router.id()),
            destination: prefix(key.dst, key.prefix_len - RouteKey::FIXED_BITS),
            kind: route_kind(route.kind),
            nexthop: match route.kind {
                ROUTE_VIA => ip(route.nexthop),
                ROUTE_MULTI => self.members(route.network).0,
                _ => String::new(),
            },
            network: match (route.kind, route.network) {
                (ROUTE_MULTI, group) => self.members(group).1,
                (_, 0) => String::new(),
                (_, network) => self.name(NAME_NETWORK, network),
            },
        });
        let mut routes: Vec<_> = routes.collect();
        routes.sort_by(|a, b| (&a.router, &a.destination).cmp(&(&b.router, &b.destination)));
        routes
    }

    /// The next hops of a group with their shares of its flows, and their networks.
    fn members(&self, group: u32) -> (String, String) {
        let mut slots: BTreeMap<(u32, IpAddr), u32> = BTreeMap::new();
        let all = |slot| MemberKey { group: Scoped::new(0, group), slot };
        for (_, member) in self.image.members.range(all(0)..=all(u32::MAX)) {
            *slots.entry((member.network, IpAddr::from(member.nexthop))).or_default() += 1;
        }
        let hops: Vec<_> = slots
            .iter()
            .map(|((_, nexthop), share)| format!("{nexthop} ({} %)", share * 100 / SLOTS))
            .collect();
        let networks: std::collections::BTreeSet<_> =
            slots.keys().map(|(network, _)| self.name(NAME_NETWORK, *network)).collect();
        (hops.join(", "), Vec::from_iter(networks).join(", "))
    }

    fn ports(&self) -> Vec<PortRow> {
        let mut addresses: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (key, station) in self.image.addresses.iter().filter(|(_, station)| station.kind == STATION_PORT)
        {
            if !key.ip.is_v6_link_local() {
                addresses.entry(station.owner).or_default().push(ip(key.ip));
            }
        }
        let ports = self.image.fdb.iter().filter(|(_, station)| station.kind == STATION_PORT);
        let ports = ports.map(|(key, station)| PortRow {
            port: self.name(NAME_PORT, station.owner),
            network: self.name(NAME_NETWORK, key.network.id()),
            mac: Mac(key.mac).to_string(),
            addresses: addresses.get(&station.owner).cloned().unwrap_or_default(),
            place: self.place(station),
        });
        let mut ports: Vec<_> = ports.collect();
        ports.sort_by(|a, b| a.port.cmp(&b.port));
        ports
    }

    fn arp(&self) -> Vec<ArpRow> {
        let rows = self.image.addresses.iter().map(|(key, station)| ArpRow {
            network: self.name(NAME_NETWORK, key.network.id()),
            address: ip(key.ip),
            mac: Mac(station.mac).to_string(),
            owner: self.owner(station),
            place: self.place(station),
        });
        rows.collect()
    }

    fn fdb(&self) -> Vec<FdbRow> {
        let rows = self.image.stations().map(|(key, station)| FdbRow {
            network: self.name(NAME_NETWORK, key.network.id()),
            mac: Mac(key.mac).to_string(),
            owner: self.owner(station),
            place: self.place(station),
        });
        rows.collect()
    }

    fn networks(&self) -> Vec<NetworkRow> {
        let rows = self.image.networks.iter().map(|(key, network)| NetworkRow {
            network: self.name(NAME_NETWORK, key.network.id()),
            vni: network.vni,
            mtu: network.mtu,
        });
        rows.collect()
    }
}
