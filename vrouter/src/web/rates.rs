//! What two looks say about what goes on: packets and bits per second, by object.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use vrouter_common::{
    flow::{EXIT_PORT, EXIT_TUNNEL, FROM_PORT, FlowKey},
    tables::{NAME_NETWORK, NAME_NODE, NAME_PORT, NAME_ROUTER},
};

use crate::connections::{Flows, Leg, Names, Standing};

/// Objects with rates that are told of, the busiest first.
const TOLD_MAX: usize = 500;

/// What a flow entry had counted: when it was made, packets, bytes.
type Counted = (u32, u64, u64);

/// What was counted at one look.
#[derive(Default)]
pub struct Marks(HashMap<FlowKey, Counted>);

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
    fn add(&mut self, packets: f64, bits: f64) {
        self.packets += packets;
        self.bits += bits;
    }
}

impl Marks {
    /// Remembers what a look says.
    pub fn of(flows: &[(Flows, Standing)]) -> Self {
        let legs = flows.iter().flat_map(|(flows, _)| flows.legs());
        Self(legs.map(|leg| (leg.key, (leg.flow.created, leg.flow.packets, leg.flow.bytes))).collect())
    }

    /// What a leg has counted since. One that was not there, or is another by now, has counted all of it since.
    fn since(&self, leg: &Leg) -> (u64, u64) {
        let now = (leg.flow.packets, leg.flow.bytes);
        match self.0.get(&leg.key) {
            Some(&(created, packets, bytes)) if created == leg.flow.created && packets <= now.0 => {
                (now.0 - packets, now.1.saturating_sub(bytes))
            }
            _ => now,
        }
    }

    /// Rates by object, the busiest first.
    pub fn rates(&self, flows: &[(Flows, Standing)], names: &Names, seconds: f64) -> Vec<Busy> {
        let legs_of_routers: HashMap<(u32, [u8; 6]), u32> =
            names.legs.iter().map(|(&(router, network), &mac)| ((network, mac), router)).collect();
        let mut busy: BTreeMap<(u32, u32), (Rate, Rate)> = BTreeMap::new();
        for leg in flows.iter().flat_map(|(flows, _)| flows.legs()) {
            let (packets, bytes) = self.since(leg);
            if packets == 0 || seconds <= 0.0 {
                continue;
            }
            let (packets, bits) = (packets as f64 / seconds, bytes as f64 * 8.0 / seconds);
            let flow = &leg.flow;
            let binding =
                |ifindex: &u32| names.bindings.get(ifindex).map(|binding| (NAME_PORT, binding.port));
            let from = match leg.key.from {
                FROM_PORT => binding(&leg.key.zone),
                _ => names.vteps.get(&flow.in_vtep).map(|&node| (NAME_NODE, node)),
            };
            let to = match flow.exit {
                EXIT_PORT => binding(&flow.target),
                EXIT_TUNNEL => Some((NAME_NODE, flow.target)),
                _ => None,
            };
            let mut routers = [
                Some(flow.router),
                legs_of_routers.get(&(flow.network, flow.in_macs.dst())).copied(),
                legs_of_routers.get(&(flow.network_out, flow.out_macs.src())).copied(),
            ]
            .map(|router| router.filter(|&router| router != 0 && flow.hops > 0));
            routers.sort_unstable();
            let mut last = None;
            for router in routers.into_iter().flatten() {
                if last.replace(router) != Some(router) {
                    busy.entry((NAME_ROUTER, router)).or_default().0.add(packets, bits);
                }
            }
            for object in from.into_iter().chain([(NAME_NETWORK, flow.network)]) {
                busy.entry(object).or_default().0.add(packets, bits);
            }
            for object in to.into_iter().chain([(NAME_NETWORK, flow.network_out)]) {
                busy.entry(object).or_default().1.add(packets, bits);
            }
        }
        let mut told: Vec<_> = busy
            .into_iter()
            .filter_map(|((kind, id), (sent, received))| {
                let name = names.name(kind, id)?;
                let kind = match kind {
                    NAME_NETWORK => "network",
                    NAME_ROUTER => "router",
                    NAME_NODE => "node",
                    _ => "port",
                };
                Some(Busy { kind, name, sent, received })
            })
            .collect();
        let bits = |busy: &Busy| busy.sent.bits + busy.received.bits;
        told.sort_by(|a, b| bits(b).total_cmp(&bits(a)));
        told.truncate(TOLD_MAX);
        told
    }
}
