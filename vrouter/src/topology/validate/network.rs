//! VNIs, and the subnets of a network among each other.

use std::collections::HashMap;

use super::{Check, Place};
use crate::topology::decode::{Kind, label_of};
use crate::topology::ranges::RangeIndex;
use crate::topology::yaml::Step;

impl Check<'_, '_> {
    pub(super) fn networks(&mut self) {
        self.vnis();
        let mut external = Vec::new();
        let mut next_place = 0;
        for network in &self.topology.networks {
            let places = next_place..next_place + network.subnets.len();
            next_place = places.end;
            if network.external {
                external.extend(places.clone());
            }
            let ranges = self.index_of(places);
            self.report_overlaps(&ranges, |here, there| here == there);
            self.ranges.push(ranges);
        }
        // A floating ip names no network: its address must tell.
        let ranges = self.index_of(external);
        self.report_overlaps(&ranges, |here, there| here != there);
        self.external_ranges = ranges;
    }

    /// An index of the subnets at `places`.
    pub(super) fn index_of(&self, places: impl IntoIterator<Item = usize>) -> RangeIndex {
        RangeIndex::of(places.into_iter().map(|place| (self.subnet(place).cidr, place)))
    }

    /// Reports subnets that overlap, where their networks are `of_interest`.
    fn report_overlaps(&mut self, ranges: &RangeIndex, of_interest: impl Fn(usize, usize) -> bool) {
        for (later, earlier) in ranges.overlaps.iter().copied() {
            let (Place { network, subnet: item }, other) =
                (self.subnets[later], self.subnets[earlier].network);
            // A copied subnet overlaps until it has a name and a range of its own: one thing at a time.
            if !of_interest(network, other)
                || self.is_twin(Kind::Subnet, later)
                || self.is_twin(Kind::Subnet, earlier)
            {
                continue;
            }
            let (subnet, other) = (self.subnet(later), self.subnet(earlier));
            let path = [Step::Field("subnets"), Step::Item(item), Step::Field("cidr")];
            let networks = if self.subnets[earlier].network == network {
                "on the same network"
            } else {
                "of another external network"
            };
            self.report(
                self.line(Kind::Network, network, &path),
                label_of(Kind::Subnet, &subnet.name),
                format!("{} overlaps {} of subnet {} {networks}", subnet.cidr, other.cidr, other.name),
                "use a range of its own for each subnet",
            );
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
}
