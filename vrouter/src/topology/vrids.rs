//! The numbers of virtual routers (RFC 5798) on external networks: 1 to 255, each once on its network.
//!
//! What the document states counts. The others get a number derived from the router's name, or, if that is taken
//! by one that comes before it by name, the next that is free: in a file, adding a router may so renumber another,
//! which then announces itself anew. In etcd a number is given once, and stays.

use std::collections::{HashMap, HashSet};

use super::identity::{FNV_OFFSET, fnv1a};
use super::model::Topology;

/// Numbers by router.
pub struct Vrids<'t>(HashMap<&'t str, u8>);

impl<'t> Vrids<'t> {
    /// Of a document.
    pub fn of(topology: &'t Topology) -> Self {
        let mut routers: Vec<_> = topology
            .routers
            .iter()
            .filter_map(|router| Some((router.name.as_str(), router.gateway.as_ref()?)))
            .collect();
        // Stated ones first.
        routers.sort_by_key(|&(name, gateway)| (gateway.vrrp.vrid.is_none(), name));
        let (mut taken, mut vrids) = (HashSet::new(), HashMap::new());
        for (name, gateway) in routers {
            let mut is_free = |vrid: u8| taken.insert((gateway.network.as_str(), vrid));
            let vrid = match gateway.vrrp.vrid {
                Some(vrid) => Some(vrid).filter(|&vrid| is_free(vrid)),
                None => derive_vrid(name, &mut is_free),
            };
            vrids.extend(vrid.map(|vrid| (name, vrid)));
        }
        Self(vrids)
    }

    /// A router's. `None`: there are more than 255 on its network.
    #[must_use]
    pub fn get(&self, router: &str) -> Option<u8> {
        self.0.get(router).copied()
    }
}

/// A number for a router: by its name, or the next after it that `is_free`.
pub fn derive_vrid(router: &str, mut is_free: impl FnMut(u8) -> bool) -> Option<u8> {
    let hash = fnv1a(FNV_OFFSET, router.as_bytes());
    let first = ((hash ^ hash >> 32) % 255) as u8;
    (0..255).map(|i| ((u16::from(first) + i) % 255 + 1) as u8).find(|&vrid| is_free(vrid))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::super::parse;
    use super::*;

    fn document(routers: &[(usize, Option<u8>)]) -> Topology {
        let mut text =
            "networks:\n  - { name: out, external: true, subnets: [{ name: out4, cidr: 203.0.0.0/16 }] }\n\
                        routers:\n"
                .to_owned();
        for (at, (i, vrid)) in routers.iter().enumerate() {
            let vrrp = vrid.map_or(String::new(), |vrid| format!(", vrrp: {{ vrid: {vrid} }}"));
            let address = format!("203.0.{}.{}", 1 + at / 200, 1 + at % 200);
            writeln!(text, "  - {{ name: r{i}, gateway: {{ network: out, address: {address}{vrrp} }} }}")
                .unwrap();
        }
        parse("x", &text).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// Changing this renumbers live virtual routers.
    #[test]
    fn derived_numbers_never_change() {
        assert_eq!(
            ["r1", "r2", "tenant-a"].map(|name| derive_vrid(name, |_| true)),
            [DERIVED[0], DERIVED[1], DERIVED[2]]
        );
    }
    const DERIVED: [Option<u8>; 3] = [Some(165), Some(197), Some(117)];

    #[test]
    fn every_router_has_its_own_as_far_as_there_are_any() {
        let some: Vec<(usize, Option<u8>)> = (0..300).map(|i| (i, (i == 299).then_some(7))).collect();
        let topology = document(&some);
        let vrids = Vrids::of(&topology);
        let mut given: Vec<u8> =
            topology.routers.iter().filter_map(|router| vrids.get(&router.name)).collect();
        given.sort_unstable();
        assert_eq!(given, (1..=255).collect::<Vec<u8>>());
        assert_eq!(vrids.get("r299"), Some(7), "what is stated");
        // The order in the document does not matter.
        let mut turned: Vec<_> = (0..100).map(|i| (i, None)).collect();
        let topology = document(&turned);
        let straight: Vec<_> = (0..100).map(|i| Vrids::of(&topology).get(&format!("r{i}"))).collect();
        turned.reverse();
        let topology = document(&turned);
        let vrids = Vrids::of(&topology);
        assert_eq!((0..100).map(|i| vrids.get(&format!("r{i}"))).collect::<Vec<_>>(), straight);
    }
}
