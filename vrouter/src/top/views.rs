//! The five tables of a sample.

use super::{
    grid::{Cell, Column, Grid, Kind, Row},
    sample::{NodeTold, Rates, Sample},
    text,
};

/// What is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum View {
    /// Ports of this node: packets and bits each way, flows
    #[default]
    Ports,
    /// Routers: what passes, flows, ports of their addresses in use
    Routers,
    /// Why packets are dropped
    Drops,
    /// How full tables are
    Tables,
    /// Other nodes: the ways to them, and what goes there
    Nodes,
}

impl View {
    /// All, in order of their keys.
    pub const ALL: [Self; 5] = [Self::Ports, Self::Routers, Self::Drops, Self::Tables, Self::Nodes];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ports => "ports",
            Self::Routers => "routers",
            Self::Drops => "drops",
            Self::Tables => "tables",
            Self::Nodes => "nodes",
        }
    }

    /// Which it is of [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The one after it (or before), round.
    pub fn step(self, forward: bool) -> Self {
        let count = Self::ALL.len();
        Self::ALL[(self.index() + if forward { 1 } else { count - 1 }) % count]
    }

    /// Its table.
    pub fn grid(self, sample: &Sample) -> Grid {
        match self {
            Self::Ports => ports(sample),
            Self::Routers => routers(sample),
            Self::Drops => drops(sample),
            Self::Tables => tables(sample),
            Self::Nodes => nodes(sample),
        }
    }
}

const fn column(name: &'static str, width: usize, goes: u8, kind: Kind) -> Column {
    Column { name, width, goes, kind }
}

const BOTH_WAYS: [Column; 5] = [
    column("TX P/S", 7, 0, Kind::Number),
    column("TX B/S", 7, 0, Kind::Number),
    column("RX P/S", 7, 0, Kind::Number),
    column("RX B/S", 7, 0, Kind::Number),
    column("FLOWS", 7, 1, Kind::Number),
];

fn both_ways(rates: &Rates) -> [Cell; 5] {
    [
        Cell::short(rates.tx_packets_per_second),
        Cell::short(rates.tx_bits_per_second),
        Cell::short(rates.rx_packets_per_second),
        Cell::short(rates.rx_bits_per_second),
        Cell::whole(rates.flows),
    ]
}

fn ports(sample: &Sample) -> Grid {
    let first = [column("PORT", 16, 0, Kind::Name), column("NETWORK", 12, 2, Kind::Name)];
    let rows = sample.ports.iter().map(|row| Row {
        cells: [Cell::name(&row.port), Cell::name(&row.network)]
            .into_iter()
            .chain(both_ways(&row.rates))
            .collect(),
        weight: row.rates.bits(),
        is_bad: false,
    });
    Grid { columns: first.into_iter().chain(BOTH_WAYS).collect(), wide: 0, rows: rows.collect() }
}

fn routers(sample: &Sample) -> Grid {
    let rows = sample.routers.iter().map(|row| {
        let (used, all) = (row.nat_ports_used, row.nat_ports);
        let percent = if all == 0 { 0.0 } else { f64::from(used) * 100.0 / f64::from(all) };
        let number = |text: String| if all == 0 { "-".to_owned() } else { text };
        Row {
            cells: vec![
                Cell::name(&row.router),
                Cell::short(row.packets_per_second),
                Cell::short(row.bits_per_second),
                Cell::whole(row.flows),
                Cell::Number(used.into(), number(format!("{used}/{all}"))),
                Cell::Number(percent, number(format!("{percent:.0}%"))),
                Cell::whole(row.nat_blocks.into()),
            ],
            weight: row.bits_per_second,
            is_bad: all > 0 && percent >= 95.0,
        }
    });
    Grid {
        columns: vec![
            column("ROUTER", 16, 0, Kind::Name),
            column("P/S", 7, 0, Kind::Number),
            column("B/S", 7, 0, Kind::Number),
            column("FLOWS", 7, 1, Kind::Number),
            column("NAT PORTS", 11, 0, Kind::Number),
            column("USED", 5, 2, Kind::Number),
            column("BLOCKS", 6, 3, Kind::Number),
        ],
        wide: 0,
        rows: rows.collect(),
    }
}

fn drops(sample: &Sample) -> Grid {
    let rows = sample.drops.iter().map(|row| Row {
        cells: vec![
            Cell::name(row.reason),
            Cell::short(row.packets_per_second),
            Cell::short(row.bits_per_second),
            Cell::whole(row.packets),
            Cell::name(row.description),
        ],
        weight: row.packets_per_second,
        is_bad: row.packets_per_second > 0.0,
    });
    Grid {
        columns: vec![
            column("REASON", 23, 0, Kind::Name),
            column("P/S", 6, 0, Kind::Number),
            column("B/S", 6, 3, Kind::Number),
            column("TOTAL", 10, 0, Kind::Number),
            column("WHY", 12, 2, Kind::Name),
        ],
        wide: 4,
        rows: rows.collect(),
    }
}

fn tables(sample: &Sample) -> Grid {
    let rows = sample.tables.iter().map(|row| {
        let percent = row.entries as f64 * 100.0 / row.entries_max.max(1) as f64;
        Row {
            cells: vec![
                Cell::name(row.table),
                Cell::whole(row.entries),
                Cell::whole(row.entries_max),
                Cell::Number(percent, format!("{percent:.0}%")),
                Cell::name(row.pressure),
                Cell::name(row.holds),
            ],
            weight: percent,
            is_bad: matches!(row.pressure, "high" | "critical"),
        }
    });
    Grid {
        columns: vec![
            column("TABLE", 12, 0, Kind::Name),
            column("ENTRIES", 9, 0, Kind::Number),
            column("CAPACITY", 9, 0, Kind::Number),
            column("FULL", 5, 0, Kind::Number),
            column("PRESSURE", 8, 1, Kind::Name),
            column("HOLDS", 20, 2, Kind::Name),
        ],
        wide: 5,
        rows: rows.collect(),
    }
}

fn nodes(sample: &Sample) -> Grid {
    let first = [
        column("NODE", 14, 0, Kind::Name),
        column("VTEP", 15, 4, Kind::Name),
        column("STATE", 11, 2, Kind::Name),
    ];
    // What etcd says, if it is asked.
    let is_told = sample.etcd_error.is_some() || sample.nodes.iter().any(|row| row.told.is_some());
    let told = [column("REVISION", 8, 3, Kind::Number), column("HEALTH", 8, 1, Kind::Name)];
    let told = told.into_iter().filter(|_| is_told);
    let both_ways = BOTH_WAYS.map(|column| Column { goes: if column.goes > 0 { 5 } else { 0 }, ..column });
    let row = |name: Cell, vtep: &str, state: &str, rates: &Rates, told: Option<&NodeTold>| {
        let health = told.map_or("", |told| told.health.as_str());
        let revision = told.map_or(Cell::Number(0.0, "?".to_owned()), |told| {
            let behind = if told.in_force < told.wanted { "<" } else { "" };
            Cell::Number(told.in_force as f64, format!("{behind}{}", told.in_force))
        });
        let told = [revision, Cell::name(health)].into_iter().filter(|_| is_told);
        let named = [name, Cell::name(vtep), Cell::name(state)].into_iter();
        Row {
            cells: named.chain(crate::top::views::both_ways(rates)).chain(told).collect(),
            weight: rates.bits(),
            is_bad: state == "unreachable" || health == "degraded",
        }
    };
    let nodes = sample
        .nodes
        .iter()
        .map(|it| row(Cell::name(&it.node), &it.vtep, it.state, &it.rates, it.told.as_ref()));
    // What no node is called: names have no spaces.
    let outside = std::iter::once(row(Cell::name("external networks"), "", "", &sample.outside, None));
    let outside = outside.filter(|_| sample.outside != Rates::default());
    Grid {
        columns: first.into_iter().chain(both_ways).chain(told).collect(),
        wide: 0,
        rows: nodes.chain(outside).collect(),
    }
}

/// Who this is, and how it is: the first line of a screen, and of a sample that is printed.
pub fn title(sample: &Sample) -> String {
    let status = &sample.status;
    let in_force = status.in_force.as_deref().unwrap_or("nothing");
    let topology = match &status.wanted {
        Some(wanted) if Some(wanted) == status.in_force.as_ref() => format!("{in_force} in force"),
        Some(wanted) => format!("{in_force} in force, {wanted} wanted"),
        None => format!("{in_force} in force"),
    };
    let agent = if status.agent { "" } else { ", no agent" };
    text::plain(&format!("{} ({}): {topology}{agent}", sample.node, sample.instance))
}

/// The second line: how much.
pub fn totals(sample: &Sample) -> String {
    let Some(interval) = sample.interval_seconds else {
        return format!("measuring: rates come with the second look; {} flows", sample.flows);
    };
    format!(
        "{} p/s  {}b/s  drops {}/s  decided {}/s  {} flows  every {}, read in {}",
        text::short(sample.packets_per_second),
        text::short(sample.bits_per_second),
        text::short(sample.dropped_per_second),
        text::short(sample.decided_per_second),
        sample.flows,
        text::seconds(interval),
        text::seconds(sample.read_seconds),
    )
}

/// Health in a line.
pub fn health(sample: &Sample) -> String {
    let complaints = &sample.status.complaints;
    match complaints.first() {
        _ if sample.etcd_error.is_some() && sample.status.healthy => {
            let error = sample.etcd_error.as_deref().unwrap_or_default();
            text::plain(&format!("health: good here; how other nodes are is not known: {error}"))
        }
        _ if sample.status.healthy => "health: good".to_owned(),
        None => "health: needs attention".to_owned(),
        Some(first) => {
            let more = if complaints.len() > 1 {
                format!(" (and {} more)", complaints.len() - 1)
            } else {
                String::new()
            };
            text::plain(&format!("attention: {first}{more}"))
        }
    }
}

/// Leaves only what is wanted of a sample: one view's rows, and those with a text in their name.
pub fn keep(sample: &mut Sample, view: Option<View>, filter: &str) {
    let filter = filter.to_lowercase();
    let is_wanted =
        |of: View, name: &str| view.is_none_or(|view| view == of) && name.to_lowercase().contains(&filter);
    sample.ports.retain(|row| is_wanted(View::Ports, &row.port));
    sample.routers.retain(|row| is_wanted(View::Routers, &row.router));
    sample.drops.retain(|row| is_wanted(View::Drops, row.reason));
    sample.tables.retain(|row| is_wanted(View::Tables, row.table));
    sample.nodes.retain(|row| is_wanted(View::Nodes, &row.node));
}
