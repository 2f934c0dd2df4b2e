//! Which nodes carry what a router exchanges with an external network. Every node must give the same answer, so
//! it depends on nothing but the document; who of them does it at the moment they agree on by VRRP or BGP.

use std::collections::HashMap;

use super::identity::Rendezvous;
use super::model::Node;

/// The nodes that can carry, by external network.
pub struct Carriers<'t> {
    by_network: HashMap<&'t str, (Vec<&'t str>, Rendezvous)>,
}

impl<'t> Carriers<'t> {
    /// A router's gateways at the most. Those that wait cost nothing, but each has to have a priority of its own.
    const MOST: usize = 8;

    /// Of all nodes and the names of the external networks: those with `gateway: true`, or, if none has it, all
    /// that have an interface there.
    pub fn of(
        nodes: impl IntoIterator<Item = &'t Node>,
        networks: impl IntoIterator<Item = &'t str>,
    ) -> Self {
        let nodes: Vec<&Node> = nodes.into_iter().collect();
        let any = nodes.iter().any(|node| node.gateway);
        let by_network = networks.into_iter().map(|network| {
            let able = nodes.iter().filter(|node| (node.gateway || !any) && node.reaches(network));
            let names: Vec<&str> = able.map(|node| node.name.as_str()).collect();
            let ranks = Rendezvous::among(names.iter().copied());
            (network, (names, ranks))
        });
        Self { by_network: by_network.collect() }
    }

    /// Those of an external network.
    #[must_use]
    pub fn on(&self, network: &str) -> &[&'t str] {
        self.by_network.get(network).map_or(&[], |(names, _)| names)
    }

    /// Those of a router, the first to do it first.
    #[must_use]
    pub fn of_router(&self, router: &str, network: &str) -> Vec<&'t str> {
        let Some((names, ranks)) = self.by_network.get(network) else { return Vec::new() };
        ranks.ranked(router, 0).into_iter().take(Self::MOST).map(|at| names[at]).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn node(name: &str, gateway: bool, networks: Option<&[&str]>) -> Node {
        let external_networks = networks.map(|names| names.iter().map(|&name| name.to_owned()).collect());
        Node { name: name.to_owned(), vtep: Ipv4Addr::LOCALHOST, gateway, external_networks, line: 1 }
    }

    #[test]
    fn gateways_carry_and_without_any_all_that_can() {
        let networks = ["public", "other"];
        let mut nodes =
            vec![node("a", false, None), node("b", false, Some(&["public"])), node("c", false, Some(&[]))];
        let carriers = Carriers::of(&nodes, networks);
        assert_eq!((carriers.on("public"), carriers.on("other")), (&["a", "b"][..], &["a"][..]));
        assert_eq!(carriers.on("unknown"), [""; 0]);
        nodes.push(node("d", true, None));
        nodes.push(node("e", true, Some(&["public"])));
        let carriers = Carriers::of(&nodes, networks);
        assert_eq!((carriers.on("public"), carriers.on("other")), (&["d", "e"][..], &["d"][..]));
        let ranked = carriers.of_router("r1", "public");
        assert_eq!(ranked.len(), 2);
        // Routers are spread.
        let first = (0..100).filter(|i| carriers.of_router(&format!("r{i}"), "public")[0] == "d").count();
        assert!((25..75).contains(&first), "{first}");
    }
}
