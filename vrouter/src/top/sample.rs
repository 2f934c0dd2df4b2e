//! What two reads of the pins say: what is shown, and what `--output json` prints.

use serde::Serialize;

use super::{
    fleet::Told,
    sheet::{Sheet, Traffic},
};
use crate::{commands::status::Summary, counters::Tally, rates::index::Index};

/// One sample. Rates are per second, over `interval_seconds`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    /// When it was taken, in seconds since 1970.
    pub at_seconds: u64,
    pub instance: String,
    pub node: String,
    pub epoch: u32,
    pub status: Summary,
    /// The time between the two reads; none for the first, which measures nothing.
    pub interval_seconds: Option<f64>,
    /// How long reading took.
    pub read_seconds: f64,
    /// Everything this node forwarded, each packet once.
    pub packets_per_second: f64,
    pub bits_per_second: f64,
    pub dropped_per_second: f64,
    /// Packets without a flow entry, which had to be decided.
    pub decided_per_second: f64,
    /// Connections.
    pub flows: u64,
    pub ports: Vec<PortRow>,
    pub routers: Vec<RouterRow>,
    /// Reasons for which something was ever dropped.
    pub drops: Vec<DropRow>,
    pub tables: Vec<TableRow>,
    pub nodes: Vec<NodeRow>,
    /// Why etcd does not say how other nodes are, if it is asked.
    pub etcd_error: Option<String>,
    /// What this node's own interfaces on external networks carried.
    pub outside: Rates,
}

/// Traffic both ways: of a port as the workload sees it, of a node or what is outside as this node does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    pub tx_packets_per_second: f64,
    pub tx_bits_per_second: f64,
    pub rx_packets_per_second: f64,
    pub rx_bits_per_second: f64,
    pub flows: u64,
}

/// A port of this node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PortRow {
    pub port: String,
    pub network: String,
    pub ifindex: u32,
    #[serde(flatten)]
    pub rates: Rates,
}

/// A router, as far as this node does its work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouterRow {
    pub router: String,
    pub packets_per_second: f64,
    pub bits_per_second: f64,
    pub flows: u64,
    /// Ports of its external address in use here, of the protocol that uses most, and how many are this node's.
    pub nat_ports_used: u32,
    pub nat_ports: u32,
    pub nat_blocks: u32,
}

/// A reason for dropping packets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DropRow {
    pub reason: &'static str,
    pub packets_per_second: f64,
    pub bits_per_second: f64,
    /// Since the maps were made.
    pub packets: u64,
    pub description: &'static str,
}

/// A table of limited size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableRow {
    pub table: &'static str,
    pub entries: u64,
    pub entries_max: u64,
    /// `normal`, `high` or `critical`; of a table that forgets the least recently used, `full` if it does.
    pub pressure: &'static str,
    pub holds: &'static str,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeRow {
    pub node: String,
    pub vtep: String,
    /// The way to it: `resolved`, `resolving` or `unreachable`.
    pub state: &'static str,
    #[serde(flatten)]
    pub rates: Rates,
    /// What it says of itself in etcd, if that is asked.
    pub told: Option<NodeTold>,
}

/// What a node says of itself in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeTold {
    /// Revisions of the topology.
    pub in_force: i64,
    pub wanted: i64,
    pub health: String,
}

/// Turns what was counted into rates.
#[derive(Clone, Copy, Debug)]
pub struct PerSecond(f64);

impl PerSecond {
    /// Over this many seconds; over none, everything is zero.
    pub fn over(seconds: Option<f64>) -> Self {
        Self(seconds.filter(|&seconds| seconds > 0.0).map_or(0.0, f64::recip))
    }

    /// A rate, to a tenth.
    pub fn rate(self, count: u64) -> f64 {
        tenths(count as f64 * self.0)
    }

    fn bits(self, tally: Tally) -> f64 {
        tenths(tally.bytes as f64 * 8.0 * self.0)
    }

    fn both(self, traffic: &Traffic) -> Rates {
        Rates {
            tx_packets_per_second: self.rate(traffic.tx.packets),
            tx_bits_per_second: self.bits(traffic.tx),
            rx_packets_per_second: self.rate(traffic.rx.packets),
            rx_bits_per_second: self.bits(traffic.rx),
            flows: traffic.flows,
        }
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

impl Rates {
    /// Bits both ways: how busy it is.
    pub fn bits(&self) -> f64 {
        self.tx_bits_per_second + self.rx_bits_per_second
    }
}

impl Sample {
    /// Fills in what a read of the flow tables says.
    pub fn add_flows(&mut self, index: &Index, sheet: &Sheet, per_second: PerSecond) {
        self.packets_per_second = per_second.rate(sheet.total.packets);
        self.bits_per_second = per_second.bits(sheet.total);
        self.flows = sheet.flows;
        self.outside = per_second.both(&sheet.outside);
        let nothing = Traffic::default();
        let ports = index.ports.iter().map(|(&ifindex, port)| PortRow {
            port: port.name.clone(),
            network: port.network.clone(),
            ifindex,
            rates: per_second.both(sheet.ports.get(&ifindex).unwrap_or(&nothing)),
        });
        // Flows of a port that is gone go on until they are decided again.
        let gone = sheet.ports.iter().filter(|(ifindex, traffic)| {
            !index.ports.contains_key(ifindex) && traffic.tx.packets + traffic.rx.packets > 0
        });
        let gone = gone.map(|(&ifindex, traffic)| PortRow {
            port: format!("ifindex {ifindex}"),
            network: String::new(),
            ifindex,
            rates: per_second.both(traffic),
        });
        self.ports = ports.chain(gone).collect();
        self.routers = index
            .routers
            .iter()
            .map(|(&number, router)| {
                let passed = sheet.routers.get(&number).copied().unwrap_or_default();
                RouterRow {
                    router: router.name.clone(),
                    packets_per_second: per_second.rate(passed.tally.packets),
                    bits_per_second: per_second.bits(passed.tally),
                    flows: passed.flows,
                    nat_ports_used: sheet.nat_ports(number),
                    nat_ports: router.nat_ports,
                    nat_blocks: router.nat_blocks,
                }
            })
            .collect();
    }

    /// A node's row.
    pub fn add_node(
        &mut self,
        name: String,
        way: (String, &'static str),
        traffic: &Traffic,
        per_second: PerSecond,
    ) {
        let (vtep, state) = way;
        self.nodes.push(NodeRow { node: name, vtep, state, rates: per_second.both(traffic), told: None });
    }

    /// Adds what nodes say of themselves.
    pub fn add_told(&mut self, told: Told) {
        for row in &mut self.nodes {
            row.told = told.states.get(&row.node).map(|state| NodeTold {
                in_force: state.in_force,
                wanted: state.wanted,
                health: state.health.clone(),
            });
        }
        self.etcd_error = told.error;
    }

    /// A reason's row.
    pub fn add_drop(
        &mut self,
        (reason, description): (&'static str, &'static str),
        since: Tally,
        total: Tally,
        per_second: PerSecond,
    ) {
        self.drops.push(DropRow {
            reason,
            packets_per_second: per_second.rate(since.packets),
            bits_per_second: per_second.bits(since),
            packets: total.packets,
            description,
        });
    }
}

#[cfg(test)]
mod tests {
    use vrouter_common::flow::{EXIT_PORT, FROM_PORT, Flow, FlowKey};

    use super::*;
    use crate::{
        connections::Table,
        rates::{index, meter::Growth},
    };

    #[test]
    fn rates_are_what_was_counted_over_the_time_it_took() {
        let index = index::tests::index();
        let mut sheet = Sheet::default();
        let growth = Growth { tally: Tally { packets: 250, bytes: 25_000 }, is_first: true };
        let flow = Flow { exit: EXIT_PORT, target: 99, ..Flow::default() };
        let key = FlowKey { zone: 7, from: FROM_PORT, ..FlowKey::default() };
        sheet.add(&index, Table::Flows, &key, &flow, &growth);
        let mut sample = Sample::default();
        sample.add_flows(&index, &sheet, PerSecond::over(Some(2.5)));
        let names: Vec<_> = sample.ports.iter().map(|row| row.port.as_str()).collect();
        assert_eq!(names, ["vm1", "vm2", "ifindex 99"], "idle ones, too, and one that is gone");
        assert_eq!(sample.ports[0].rates.tx_packets_per_second, 100.0);
        assert_eq!(sample.ports[0].rates.tx_bits_per_second, 80_000.0);
        assert_eq!(sample.ports[1].rates, Rates::default());
        assert_eq!(sample.packets_per_second, 100.0);
        assert_eq!((sample.routers[0].nat_ports, sample.routers[0].flows), (1024, 0));
    }

    #[test]
    fn no_time_makes_no_rate() {
        for seconds in [None, Some(0.0), Some(-1.0)] {
            assert_eq!(PerSecond::over(seconds).rate(1000), 0.0, "{seconds:?}");
        }
    }
}
