//! Sums of one read of the flow tables: by port, router and node.

use std::collections::{BTreeMap, HashMap};

use vrouter_common::{
    addr::Ip,
    flow::{EXIT_EXTERNAL, EXIT_PORT, EXIT_TUNNEL, FLOW_SNAT, FROM_PORT, Flow, FlowKey, ROLE_ORIGINAL},
};

use crate::{
    connections::Table,
    counters::Tally,
    rates::{index::Index, meter::Growth},
};

/// Packets in both directions, as the one they are counted for sees them, and connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// What it sent; of a node or what is outside: what was sent to it.
    pub tx: Tally,
    /// What it received; of a node or what is outside: what came from it.
    pub rx: Tally,
    pub flows: u64,
}

/// What a router passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    pub tally: Tally,
    pub flows: u64,
}

/// The sums.
#[derive(Default)]
pub struct Sheet {
    /// By interface.
    pub ports: BTreeMap<u32, Traffic>,
    /// By router number.
    pub routers: BTreeMap<u32, Passed>,
    /// By node number.
    pub nodes: BTreeMap<u32, Traffic>,
    /// External networks, by this node's own interfaces.
    pub outside: Traffic,
    /// Everything, each packet once.
    pub total: Tally,
    /// Connections.
    pub flows: u64,
    /// Entries by table.
    pub entries: BTreeMap<Table, u64>,
    /// Ports in use by router, address outside and protocol: a bit each.
    nat: HashMap<(u32, Ip, u8), Vec<u64>>,
}

impl Sheet {
    /// Adds what is new of an entry.
    pub fn add(&mut self, index: &Index, table: Table, key: &FlowKey, flow: &Flow, growth: &Growth) {
        *self.entries.entry(table).or_default() += 1;
        let Growth { tally, is_first } = *growth;
        let flows = u64::from(is_first && flow.role == ROLE_ORIGINAL);
        self.total += tally;
        self.flows += flows;
        let mut came_from = None;
        if key.from == FROM_PORT {
            let port = self.ports.entry(key.zone).or_default();
            port.tx += tally;
            port.flows += flows;
            came_from = Some(key.zone);
        } else if flow.in_vtep.get() == 0 {
            self.outside.rx += tally;
            self.outside.flows += flows;
        } else if let Some(node) = index.node_of(flow.in_vtep) {
            let node = self.nodes.entry(node).or_default();
            node.rx += tally;
            node.flows += flows;
        }
        match flow.exit {
            EXIT_PORT => {
                let port = self.ports.entry(flow.target).or_default();
                port.rx += tally;
                port.flows += if came_from == Some(flow.target) { 0 } else { flows };
            }
            EXIT_TUNNEL => {
                let node = self.nodes.entry(flow.target).or_default();
                node.tx += tally;
                node.flows += flows;
            }
            EXIT_EXTERNAL => {
                self.outside.tx += tally;
                self.outside.flows += flows;
            }
            _ => {}
        }
        index.routers_of(flow, |router| {
            let router = self.routers.entry(router).or_default();
            router.tally += tally;
            router.flows += flows;
        });
        if flows > 0 && flow.flags & FLOW_SNAT != 0 {
            let ports = self.nat.entry((flow.router, flow.src, key.proto));
            let ports = ports.or_insert_with(|| vec![0; 1 << 10]);
            let port = usize::from(flow.sport.get());
            ports[port / 64] |= 1 << (port % 64);
        }
    }

    /// The ports of its address outside that a router's connections have here, of the protocol that has most.
    pub fn nat_ports(&self, router: u32) -> u32 {
        let of_router = self.nat.iter().filter(|((of, ..), _)| *of == router);
        of_router.map(|(_, ports)| ports.iter().map(|word| word.count_ones()).sum()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use vrouter_common::{
        addr::{Be16, Be32, Macs},
        flow::{FROM_NETWORK, ROLE_REPLY},
    };

    use super::*;
    use crate::rates::index::tests::index;

    fn grown(packets: u64) -> Growth {
        Growth { tally: Tally { packets, bytes: packets * 100 }, is_first: true }
    }

    fn add(sheet: &mut Sheet, key: FlowKey, flow: Flow, packets: u64) {
        sheet.add(&index(), Table::Flows, &key, &flow, &grown(packets));
    }

    #[test]
    fn a_packet_between_two_ports_is_one_that_the_one_sent_and_the_other_received() {
        let mut sheet = Sheet::default();
        let from = FlowKey { zone: 7, from: FROM_PORT, ..FlowKey::default() };
        let to = Flow { exit: EXIT_PORT, target: 8, role: ROLE_ORIGINAL, ..Flow::default() };
        add(&mut sheet, from, to, 10);
        add(&mut sheet, FlowKey { zone: 8, ..from }, Flow { target: 7, role: ROLE_REPLY, ..to }, 3);
        assert_eq!((sheet.ports[&7].tx.packets, sheet.ports[&7].rx.packets), (10, 3));
        assert_eq!((sheet.ports[&8].tx.packets, sheet.ports[&8].rx.packets), (3, 10));
        assert_eq!(
            (sheet.ports[&7].flows, sheet.ports[&8].flows, sheet.flows),
            (1, 1, 1),
            "two legs, one flow"
        );
        assert_eq!((sheet.total.packets, sheet.total.bytes), (13, 1300));
        assert_eq!(sheet.entries[&Table::Flows], 2);
        assert!(sheet.routers.is_empty());
    }

    #[test]
    fn tunnels_count_for_nodes_and_external_interfaces_for_outside() {
        let mut sheet = Sheet::default();
        let port = FlowKey { zone: 7, from: FROM_PORT, ..FlowKey::default() };
        let network = FlowKey { zone: 1001, from: FROM_NETWORK, ..FlowKey::default() };
        let to_port = Flow { exit: EXIT_PORT, target: 7, ..Flow::default() };
        add(&mut sheet, port, Flow { exit: EXIT_TUNNEL, target: 5, ..Flow::default() }, 4);
        add(&mut sheet, network, Flow { in_vtep: Be32::new(0xc000_0202), ..to_port }, 5);
        add(&mut sheet, network, to_port, 6);
        add(&mut sheet, port, Flow { exit: EXIT_EXTERNAL, target: 1, ..Flow::default() }, 7);
        assert_eq!((sheet.nodes[&5].tx.packets, sheet.nodes[&5].rx.packets), (4, 5));
        assert_eq!((sheet.outside.tx.packets, sheet.outside.rx.packets), (7, 6));
        assert_eq!((sheet.ports[&7].tx.packets, sheet.ports[&7].rx.packets), (11, 11));
    }

    #[test]
    fn a_router_counts_what_it_passes_and_the_ports_it_gave_once_each() {
        let mut sheet = Sheet::default();
        let out = Flow {
            hops: 1,
            network: 1,
            in_macs: Macs::new([2; 6], [9; 6]),
            exit: EXIT_EXTERNAL,
            role: ROLE_ORIGINAL,
            flags: FLOW_SNAT,
            router: 3,
            ..Flow::default()
        };
        for (proto, port) in [(17, 1024), (17, 1024), (17, 1025), (6, 1024)] {
            let key = FlowKey { zone: 7, proto, ..FlowKey::default() };
            add(&mut sheet, key, Flow { sport: Be16::new(port), ..out }, 2);
        }
        assert_eq!(sheet.routers[&3], Passed { tally: Tally { packets: 8, bytes: 800 }, flows: 4 });
        assert_eq!(sheet.nat_ports(3), 2, "of UDP, two connections share one");
        assert_eq!(sheet.nat_ports(4), 0);
    }
}
