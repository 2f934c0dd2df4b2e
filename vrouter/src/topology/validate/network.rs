//! VNIs, and the subnets of a network among each other.

use std::collections::HashMap;

use super::Check;
use crate::topology::decode::{Kind, label_of};
use crate::topology::ranges::overlaps;
use crate::topology::yaml::Step;

impl Check<'_, '_> {
    pub(super) fn networks(&mut self) {
        self.vnis();
        let mut next_place = 0;
        for index in 0..self.topology.networks.len() {
            let count = self.network(index).subnets.len();
            self.network_subnets(index, (next_place..next_place + count).collect());
            next_place += count;
        }
    }

    fn vnis(&mut self) {
        let mut users: HashMap<u32, usize> = HashMap::new();
        for (i, network) in self.topology.networks.iter().enumerate() {
            if self.is_twin(Kind::Network, i) {
                continue;
            }
            let Some(first) = users.insert(network.vni, i) else { continue };
            let (here, there) = (self.decoded.derived_vni[i], self.decoded.derived_vni[first]);
            let other = &self.network(first).name;
            let origin = |derived| if derived { "derived from its name" } else { "written" };
            let message = format!(
                "the VNI {}, {}, is network {other}'s too, {} there",
                network.vni,
                origin(here),
                origin(there)
            );
            let remedy = if here || there {
                "give one of them an explicit `vni`"
            } else {
                "give one of them another `vni`"
            };
            let line = self.line(Kind::Network, i, &[Step::Field("vni")]);
            self.report(line, label_of(Kind::Network, &network.name), message, remedy);
        }
    }

    /// Looks for overlaps within a network, and orders its subnets (at `places`) for look-ups.
    fn network_subnets(&mut self, index: usize, mut places: Vec<usize>) {
        let cidrs: Vec<_> = places.iter().map(|place| self.subnet(self.subnets[*place]).cidr).collect();
        let found = overlaps(&cidrs);
        for (inner, outer) in &found {
            // A copied subnet overlaps until it has a name and a range of its own: one thing at a time.
            if self.is_twin(Kind::Subnet, places[*inner]) || self.is_twin(Kind::Subnet, places[*outer]) {
                continue;
            }
            let subnet = self.subnet(self.subnets[places[*inner]]);
            let other = self.subnet(self.subnets[places[*outer]]);
            let path = [
                Step::Field("subnets"),
                Step::Item(self.subnets[places[*inner]].subnet),
                Step::Field("cidr"),
            ];
            self.report(
                self.line(Kind::Network, index, &path),
                label_of(Kind::Subnet, &subnet.name),
                format!(
                    "{} overlaps {} of subnet {} on the same network",
                    subnet.cidr, other.cidr, other.name
                ),
                "use a range of its own for each subnet",
            );
        }
        places.sort_by_key(|place| self.subnet(self.subnets[*place]).cidr.network());
        self.ranges.push(found.is_empty().then_some(places));
    }
}
