//! What two looks say about what goes on: packets and bits per second, by object.

use std::collections::BTreeMap;

use serde::Serialize;
use vrouter_common::{
    flow::{EXIT_PORT, EXIT_TUNNEL, FROM_PORT},
    tables::{NAME_NETWORK, NAME_NODE, NAME_PORT, NAME_ROUTER},
};

use super::source::Look;
use crate::{counters::Tally, rates::meter::Meter};

/// Objects with rates that are told of, the busiest first.
const TOLD_MAX: usize = 500;

/// How busy an object is. Of a port: what its workload sends, and receives; of a network: what comes in on it, and
/// leaves on it; of a node: what comes from it, and goes to it; of a router: what passes, all of it as `sent`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Busy {
    pub kind: &'static str,
    pub name: String,
    pub sent: Rate,
    pub received: Rate,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rate {
    pub packets: f64,
    pub bits: f64,
}

impl Rate {
    fn over(tally: Tally, seconds: f64) -> Self {
        Self { packets: tally.packets as f64 / seconds, bits: tally.bytes as f64 * 8.0 / seconds }
    }
}

/// Rates by object since the look before, the busiest first. Of a meter that knows nothing yet: none.
pub fn busy(meter: &mut Meter, look: &Look, seconds: f64) -> Vec<Busy> {
    let Look { names, index, .. } = look;
    let mut sums: BTreeMap<(u32, u32), (Tally, Tally)> = BTreeMap::new();
    meter.begin(look.ticks);
    for leg in look.flows.iter().flat_map(|(flows, _)| flows.legs()) {
        let grown = meter.note(&leg.key, &leg.flow).tally;
        if grown.packets == 0 {
            continue;
        }
        let flow = &leg.flow;
        let port = |ifindex: &u32| names.bindings.get(ifindex).map(|binding| (NAME_PORT, binding.port));
        let from = match leg.key.from {
            FROM_PORT => port(&leg.key.zone),
            _ => index.node_of(flow.in_vtep).map(|node| (NAME_NODE, node)),
        };
        let to = match flow.exit {
            EXIT_PORT => port(&flow.target),
            EXIT_TUNNEL => Some((NAME_NODE, flow.target)),
            _ => None,
        };
        index.routers_of(flow, |router| sums.entry((NAME_ROUTER, router)).or_default().0 += grown);
        for object in from.into_iter().chain([(NAME_NETWORK, flow.network)]) {
            sums.entry(object).or_default().0 += grown;
        }
        for object in to.into_iter().chain([(NAME_NETWORK, flow.network_out)]) {
            sums.entry(object).or_default().1 += grown;
        }
    }
    meter.end();
    let seconds = seconds.max(f64::EPSILON);
    let named = sums.into_iter().filter_map(|((kind, id), (sent, received))| {
        let name = names.name(kind, id)?;
        let kind = match kind {
            NAME_NETWORK => "network",
            NAME_ROUTER => "router",
            NAME_NODE => "node",
            _ => "port",
        };
        Some(Busy { kind, name, sent: Rate::over(sent, seconds), received: Rate::over(received, seconds) })
    });
    let mut told: Vec<_> = named.collect();
    let bits = |busy: &Busy| busy.sent.bits + busy.received.bits;
    told.sort_by(|a, b| bits(b).total_cmp(&bits(a)));
    told.truncate(TOLD_MAX);
    told
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vrouter_common::{
        addr::Macs,
        flow::{Flow, FlowKey, ROLE_ORIGINAL},
        tables::Binding,
    };

    use super::*;
    use crate::{
        clock::Ticks,
        connections::{Flows, Leg, Names, Table},
        rates::index,
    };

    /// vm1 sends through r1 to node-b; so many packets so far, at that second.
    fn look(second: u32, packets: u64) -> Look {
        let flow = Flow {
            exit: EXIT_TUNNEL,
            target: 5,
            hops: 1,
            network: 1,
            network_out: 2,
            in_macs: Macs::new([2; 6], [9; 6]),
            role: ROLE_ORIGINAL,
            packets,
            bytes: packets * 100,
            ..Flow::default()
        };
        let key = FlowKey { zone: 7, from: FROM_PORT, ..FlowKey::default() };
        let flows = Flows::Half(Leg { table: Table::Flows, key, flow });
        let mut names = Names::default();
        for (kind, id, name) in [
            (NAME_PORT, 1, "vm1"),
            (NAME_NODE, 5, "node-b"),
            (NAME_ROUTER, 3, "r1"),
            (NAME_NETWORK, 1, "web"),
            (NAME_NETWORK, 2, "db"),
        ] {
            names.identities.put(kind, id, name);
        }
        names.bindings.insert(7, Binding { port: 1, network: 1, ..Binding::default() });
        let ticks = Ticks { now: second * 250, per_second: 250 };
        let standing = crate::connections::tests::judge().standing(&flows);
        Look {
            names: Arc::new(names),
            index: Arc::new(index::tests::index()),
            ticks,
            flows: vec![(flows, standing)],
            ..Look::empty()
        }
    }

    #[test]
    fn what_was_counted_since_the_look_before_is_everybodys_who_had_it() {
        let mut meter = Meter::default();
        assert!(busy(&mut meter, &look(1000, 7000), 1.0).is_empty(), "long ago, for all that is known");
        let busy = busy(&mut meter, &look(1002, 7020), 2.0);
        let rate = Rate { packets: 10.0, bits: 8000.0 };
        let told: Vec<(&str, &str, Rate, Rate)> =
            busy.iter().map(|it| (it.kind, it.name.as_str(), it.sent, it.received)).collect();
        let none = Rate::default();
        assert_eq!(told.len(), 5, "{told:?}");
        for expected in [
            ("port", "vm1", rate, none),
            ("router", "r1", rate, none),
            ("node", "node-b", none, rate),
            ("network", "web", rate, none),
            ("network", "db", none, rate),
        ] {
            assert!(told.contains(&expected), "{expected:?} in {told:?}");
        }
    }
}
