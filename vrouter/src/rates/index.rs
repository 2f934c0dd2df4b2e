//! Whose packets a flow entry's are: the topology in force, as sums need it.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use anyhow::Result;
use vrouter_common::{addr::Be32, flow::Flow, tables::*};

use crate::{
    banks,
    connections::{Names, names::in_bank},
    identities::Identities,
};

/// Read from the pins when a topology comes in force, and kept as long as it is.
#[derive(Default)]
pub struct Index {
    /// Under which commit it was read.
    pub epoch: u32,
    /// And when that was published: new maps begin with the same epochs.
    pub applied_at_seconds: u64,
    /// This node's number.
    pub node: u32,
    pub identities: Identities,
    /// By interface.
    pub ports: BTreeMap<u32, Port>,
    pub routers: BTreeMap<u32, Router>,
    /// Routers by network and hardware address there.
    legs: HashMap<(u32, [u8; 6]), Vec<u32>>,
    vteps: HashMap<Be32, u32>,
}

/// A port of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub network: String,
}

/// A router of the topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Router {
    pub name: String,
    /// Ports of its external address that are this node's.
    pub nat_ports: u32,
    pub nat_blocks: u32,
}

impl Index {
    /// Reads the pins. A commit meanwhile makes it begin again: the bank it reads from may be written to.
    pub fn read(maps: &Path) -> Result<Self> {
        const TRIES: u32 = 5;
        let banks = banks::Maps::open(maps)?;
        for _ in 1..TRIES {
            let commit = banks.commit()?;
            let index = Self::read_bank(maps, &commit)?;
            if banks.commit()?.epoch == commit.epoch {
                return Ok(index);
            }
        }
        // Commits follow each other so fast that some name will be a number: no reason to show nothing.
        Self::read_bank(maps, &banks.commit()?)
    }

    fn read_bank(maps: &Path, commit: &Commit) -> Result<Self> {
        let names = Names::read(maps)?;
        let bank = commit.bank();
        let legs = in_bank(maps, "ROUTER_LEGS", bank, |key: &RouterLegKey, leg: RouterLeg| {
            ((key.router.id(), key.network), leg)
        })?;
        let blocks = in_bank(maps, "SNAT_BLOCKS", bank, |key: &SnatBlockKey, block: SnatBlock| {
            ((key.router.id(), key.network, key.slot), block)
        })?;
        let name = |kind, id| names.name(kind, id).unwrap_or_else(|| format!("#{id}"));
        let mut index = Self {
            epoch: commit.epoch,
            applied_at_seconds: commit.applied_at_seconds,
            node: commit.node,
            ports: names
                .bindings
                .iter()
                .map(|(&ifindex, binding)| {
                    let port = Port {
                        name: name(NAME_PORT, binding.port),
                        network: name(NAME_NETWORK, binding.network),
                    };
                    (ifindex, port)
                })
                .collect(),
            vteps: names.vteps.clone(),
            ..Self::default()
        };
        for (&(router, network), leg) in &legs {
            let on_leg = index.legs.entry((network, leg.mac)).or_default();
            if !on_leg.contains(&router) {
                on_leg.push(router);
            }
            let known = index.routers.entry(router).or_insert_with(|| Router {
                name: name(NAME_ROUTER, router),
                nat_ports: 0,
                nat_blocks: 0,
            });
            if leg.flags & LEG_SNAT != 0 {
                for slot in 0..leg.snat_blocks.min(u32::from(u16::MAX)) {
                    if let Some(block) = blocks.get(&(router, network, slot)) {
                        known.nat_ports += u32::from(block.last.saturating_sub(block.first)) + 1;
                        known.nat_blocks += 1;
                    }
                }
            }
        }
        index.identities = names.identities;
        Ok(index)
    }

    /// The routers an entry's packets pass first and last, each once; those between are not in the entry.
    pub fn routers_of(&self, flow: &Flow, mut tell: impl FnMut(u32)) {
        let at = |network: u32, mac: [u8; 6]| {
            let routers = if flow.hops > 0 { self.legs.get(&(network, mac)) } else { None };
            routers.map_or(&[][..], Vec::as_slice)
        };
        let first = at(flow.network, flow.in_macs.dst());
        let last = at(flow.network_out, flow.out_macs.src());
        if flow.router != 0 {
            tell(flow.router);
        }
        for (i, &router) in first.iter().enumerate() {
            if router != flow.router && !first[..i].contains(&router) {
                tell(router);
            }
        }
        for (i, &router) in last.iter().enumerate() {
            if router != flow.router && !first.contains(&router) && !last[..i].contains(&router) {
                tell(router);
            }
        }
    }

    /// The node a tunnel's packets come from.
    pub fn node_of(&self, vtep: Be32) -> Option<u32> {
        self.vteps.get(&vtep).copied()
    }

    /// Whether it is what this commit published.
    pub fn is_of(&self, commit: &Commit) -> bool {
        (self.epoch, self.applied_at_seconds) == (commit.epoch, commit.applied_at_seconds)
    }

    /// A name, or the number of what has none.
    pub fn name(&self, kind: u32, id: u32) -> String {
        self.identities.name(kind, id).map_or_else(|| format!("#{id}"), str::to_owned)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use vrouter_common::addr::Macs;

    use super::*;

    /// vm1 at interface 7 and vm2 at 8 on `web`, router r1 (3) between networks 1 and 2, node-b (5) at 192.0.2.2.
    pub fn index() -> Index {
        let mut identities = Identities::default();
        for (kind, id, name) in [(NAME_NODE, 4, "node-a"), (NAME_NODE, 5, "node-b")] {
            identities.put(kind, id, name);
        }
        let port = |name: &str| Port { name: name.to_owned(), network: "web".to_owned() };
        Index {
            epoch: 1,
            applied_at_seconds: 0,
            node: 4,
            identities,
            ports: BTreeMap::from([(7, port("vm1")), (8, port("vm2"))]),
            routers: BTreeMap::from([(3, Router { name: "r1".to_owned(), nat_ports: 1024, nat_blocks: 1 })]),
            legs: HashMap::from([((1, [2; 6]), vec![3]), ((2, [2; 6]), vec![3])]),
            vteps: HashMap::from([(Be32::new(0xc000_0202), 5)]),
        }
    }

    #[test]
    fn a_router_passed_first_and_last_is_told_of_once() {
        let index = index();
        let told = |flow: &Flow| {
            let mut told = Vec::new();
            index.routers_of(flow, |router| told.push(router));
            told
        };
        let routed = Flow {
            hops: 1,
            network: 1,
            network_out: 2,
            in_macs: Macs::new([2; 6], [9; 6]),
            out_macs: Macs::new([9; 6], [2; 6]),
            ..Flow::default()
        };
        assert_eq!(told(&routed), [3]);
        assert_eq!(told(&Flow { router: 3, ..routed }), [3]);
        assert_eq!(told(&Flow { router: 9, ..routed }), [9, 3]);
        assert!(told(&Flow { hops: 0, ..routed }).is_empty(), "switched");
    }
}
