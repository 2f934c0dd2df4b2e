//! Who is in the flow tables: counted while they are walked.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Serialize;
use vrouter_common::{
    addr::{Be16, Ip},
    flow::{FLOW_SNAT, tuple_hash},
    tables::SNAT_BLOCK,
};

use crate::connections::{Flows, Standing, State, Table};

/// What one pass saw and left.
#[derive(Clone, Debug, Default)]
pub struct Census {
    entries: BTreeMap<Table, u64>,
    states: BTreeMap<State, u64>,
    /// By router and address outside.
    snat: BTreeMap<(u32, Ip), Crowd>,
    pub expired: u64,
}

/// Destinations are told apart by as many buckets: those that share one are taken for one, which errs towards more.
const BUCKETS: usize = 4096;

/// Who has ports of an address.
#[derive(Clone, Debug, Default)]
struct Crowd {
    flows: u64,
    /// Blocks of which a connection has a port: a bit each.
    blocks: u64,
    /// Connections by destination: each needs a port that no other to the same one has.
    destinations: Vec<u32>,
}

/// Ports of a router's external address that this node's connections have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnatUse {
    /// Router number; status gives it its name.
    #[serde(skip)]
    pub router_id: u32,
    pub router: String,
    pub address: IpAddr,
    /// Connections: two to different servers may share a port.
    pub flows: u64,
    /// The most to one destination, as far as those can be told apart: as many ports are needed.
    pub most: u32,
    /// Blocks of which a connection has a port.
    pub blocks: Vec<u32>,
}

impl Census {
    /// Counts a batch.
    pub fn add_entries(&mut self, table: Table, entries: u64) {
        *self.entries.entry(table).or_default() += entries;
    }

    /// Counts what stays.
    pub fn note(&mut self, flows: &Flows, standing: &Standing) {
        *self.states.entry(standing.state).or_default() += 1;
        if let Some(original) = flows.original()
            && original.flow.flags & FLOW_SNAT != 0
        {
            let crowd = self.snat.entry((original.flow.router, original.flow.src)).or_default();
            crowd.flows += 1;
            crowd.blocks |= 1 << (u32::from(original.flow.sport.get()) / SNAT_BLOCK);
            crowd.destinations.resize(BUCKETS, 0);
            let to = tuple_hash(
                &Ip::UNSPECIFIED,
                &original.flow.dst,
                Be16::new(0),
                original.flow.dport,
                original.key.proto,
            );
            crowd.destinations[to as usize % BUCKETS] += 1;
        }
    }

    /// Entries that were in a table.
    pub fn entries(&self, table: Table) -> u64 {
        self.entries.get(&table).copied().unwrap_or(0)
    }

    /// Connections by state.
    pub fn states(&self) -> BTreeMap<&'static str, u64> {
        self.states.iter().map(|(state, &count)| (state.name(), count)).collect()
    }

    /// Ports in use.
    pub fn snat(&self) -> Vec<SnatUse> {
        let uses = self.snat.iter().map(|(&(router_id, address), crowd)| SnatUse {
            router_id,
            router: String::new(),
            address: address.into(),
            flows: crowd.flows,
            most: crowd.destinations.iter().copied().max().unwrap_or(0),
            blocks: (0..64).filter(|block| crowd.blocks >> block & 1 == 1).collect(),
        });
        uses.collect()
    }
}

#[cfg(test)]
mod tests {
    use vrouter_common::flow::FLOW_NAT;

    use super::*;
    use crate::connections::tests::{judge, snat};

    #[test]
    fn ports_are_counted_by_router_and_address_once_for_each_connection() {
        let mut census = Census::default();
        let judge = judge();
        for flows in
            [snat(7, "203.0.113.10", 1024), snat(7, "203.0.113.10", 1025), snat(8, "203.0.113.10", 1)]
        {
            census.note(&flows, &judge.standing(&flows));
        }
        let mut plain = snat(7, "203.0.113.10", 9);
        if let Flows::Connection { original, .. } = &mut plain {
            original.flow.flags = FLOW_NAT;
        }
        census.note(&plain, &judge.standing(&plain));
        let uses: Vec<_> = census.snat().into_iter().map(|use_| (use_.router_id, use_.flows)).collect();
        assert_eq!(uses, [(7, 2), (8, 1)]);
        let first = &census.snat()[0];
        assert_eq!((first.most, &first.blocks[..]), (2, &[1][..]), "both to one server");
        assert_eq!(census.states().values().sum::<u64>(), 4);
    }
}
