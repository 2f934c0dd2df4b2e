//! The underlay's next hops: what the kernel's own routes and neighbours say, kept in the underlay map.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use vrouter_common::{
    addr::{Be32, Macs},
    tables::{NAME_NODE, UNDERLAY_FRAMES, UNDERLAY_RESOLVED, UNDERLAY_ROUTED, Underlay},
};

use super::status::PeerStatus;
use crate::{
    compile::Compiled,
    data_path::Hook,
    identities::Identities,
    kernel::Map,
    netlink::{Link, Netlink},
    topology::model::Mac,
};

/// How often an unresolved neighbour is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The ways to the other nodes.
pub struct Underlays {
    map: Map<u32, Underlay>,
    ways: BTreeMap<u32, Underlay>,
    asked: HashMap<(u32, Ipv4Addr), Instant>,
}

impl Underlays {
    /// Opens the pin and reads what earlier agents left.
    pub fn open(maps: &Path) -> Result<Self> {
        let map: Map<u32, Underlay> = Map::open(maps, "UNDERLAY")?;
        let ways = map.entries()?.into_iter().filter(|(_, way)| *way != Underlay::default()).collect();
        Ok(Self { map, ways, asked: HashMap::new() })
    }

    /// Writes the ways as they are now. True: whether frames can leave straight from XDP changed, which
    /// flows have stored.
    pub async fn follow(
        &mut self,
        netlink: &Netlink,
        compiled: &Compiled,
        links: &[Link],
        attached: &BTreeSet<(u32, Hook)>,
    ) -> Result<bool> {
        let Some(vtep) = compiled.vtep else { return Ok(false) };
        let neighbours = netlink.neighbours_v4().await?;
        let mut frames_changed = false;
        for (&node, &peer) in &compiled.peers {
            let mut way = Underlay {
                src: Be32::new(vtep.to_bits()),
                dst: Be32::new(peer.to_bits()),
                ..Underlay::default()
            };
            if let Some(route) = netlink.route_to(peer).await?.filter(|route| !route.local) {
                let nexthop = route.gateway.unwrap_or(peer);
                let link = links.iter().find(|link| link.index == route.ifindex);
                way.flags |= UNDERLAY_ROUTED;
                way.ifindex = route.ifindex;
                way.nexthop = Be32::new(nexthop.to_bits());
                way.mtu = route.mtu.or(link.map(|link| link.mtu)).unwrap_or(0);
                if let Some(link) = link {
                    if attached.contains(&(link.index, Hook::XdpUplink)) {
                        way.flags |= UNDERLAY_FRAMES;
                    }
                    match neighbours.get(&(route.ifindex, nexthop)).filter(|neighbour| neighbour.usable) {
                        Some(neighbour) => {
                            way.flags |= UNDERLAY_RESOLVED;
                            way.macs = Macs::new(neighbour.mac, link.mac);
                        }
                        None => self.ask(netlink, route.ifindex, nexthop).await,
                    }
                }
            }
            frames_changed |= self.write(node, way)?;
        }
        let gone: Vec<u32> =
            self.ways.keys().filter(|node| !compiled.peers.contains_key(node)).copied().collect();
        for node in gone {
            self.write(node, Underlay::default())?;
            self.ways.remove(&node);
        }
        Ok(frames_changed)
    }

    fn write(&mut self, node: u32, way: Underlay) -> Result<bool> {
        let old = self.ways.insert(node, way).unwrap_or_default();
        if old == way {
            return Ok(false);
        }
        self.map.set(&node, &way)?;
        Ok(old.flags & UNDERLAY_FRAMES != way.flags & UNDERLAY_FRAMES)
    }

    /// Asks the kernel to resolve a neighbour and to keep it so. Until it has, TC hands packets to the
    /// kernel's neighbour code, which queues them.
    async fn ask(&mut self, netlink: &Netlink, ifindex: u32, nexthop: Ipv4Addr) {
        let now = Instant::now();
        if self.asked.get(&(ifindex, nexthop)).is_some_and(|&at| now.duration_since(at) < ASK_AGAIN) {
            return;
        }
        self.asked.insert((ifindex, nexthop), now);
        if let Err(error) = netlink.resolve(ifindex, nexthop).await {
            tracing::debug!(ifindex, %nexthop, "cannot ask the kernel to resolve: {error:#}");
        }
    }

    /// For people.
    pub fn status(&self, identities: &Identities) -> Vec<PeerStatus> {
        let peers = self.ways.iter().filter(|(_, way)| way.dst != Be32::new(0));
        peers.map(|(&node, way)| peer_status(node, way, identities)).collect()
    }
}

/// One way, for people.
pub fn peer_status(node: u32, way: &Underlay, identities: &Identities) -> PeerStatus {
    PeerStatus {
        node: identities.name(NAME_NODE, node).unwrap_or("?").to_owned(),
        vtep: Ipv4Addr::from_bits(way.dst.get()).to_string(),
        state: match (way.flags & UNDERLAY_ROUTED != 0, way.flags & UNDERLAY_RESOLVED != 0) {
            (true, true) => "resolved",
            (true, false) => "resolving",
            _ => "unreachable",
        },
        ifindex: way.ifindex,
        nexthop: Ipv4Addr::from_bits(way.nexthop.get()).to_string(),
        mac: Mac(way.macs.dst()).to_string(),
    }
}
