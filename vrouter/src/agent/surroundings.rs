//! What changes without the topology: which gateways live, who is the master of a virtual router, which next hops
//! answer, what a routing daemon has learned, whose ports are whose. Each of these compiles anew and commits what
//! differs, and what comes of it is told to the edge, the daemon and the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use vrouter_common::{
    addr::Ip,
    tables::{MasterKey, NAME_NETWORK},
};

use super::{
    Agent, UNLEARNED, bgp,
    edge::{self, Participant},
    external, status,
};
use crate::{
    banks::Touch,
    compile::{self, Liveness},
    config::ExternalConfig,
    data_path::Hook,
    netlink::Link,
    topology::model::Network,
};

impl Agent {
    /// Tells the edge what it is to be: what is in force says. As long as this agent has brought nothing in force,
    /// what an earlier one said stands.
    pub(super) async fn follow_edge(&mut self) {
        if self.programmed.is_none() {
            return;
        }
        let addresses = if self.compiled.virtual_routers.is_empty() {
            Vec::new()
        } else {
            self.netlink.addresses_v4().await.unwrap_or_default()
        };
        let participants = self.compiled.virtual_routers.iter().map(|router| {
            let config = self.config_of(&router.network);
            let link = config.and_then(|config| self.links.iter().find(|link| link.name == config.interface));
            let of_interface = addresses
                .iter()
                .find(|(index, ..)| link.is_some_and(|link| link.index == *index))
                .map(|(_, address, _)| *address);
            let source = match router.ipv6 {
                true => IpAddr::from(Ip::link_local_of(router.mac)),
                false => of_interface.or(self.compiled.vtep).unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
            };
            let hindrance = match (config, link) {
                (None, _) => Some(format!("this node has no interface on network {}", router.network)),
                (Some(config), None) => Some(format!("interface {} does not exist", config.interface)),
                (Some(_), Some(link)) => self.hindrance(link),
            };
            let ifindex = link.map(|link| link.index);
            Participant { router: router.clone(), ifindex, source, hindrance }
        });
        let participants: Vec<_> = participants.collect();
        let in_service = self.compiled.carried.iter().filter(|(network, _)| {
            let link = self
                .config_of(network)
                .and_then(|config| self.links.iter().find(|link| link.name == config.interface));
            let is_well = link.is_some_and(|link| self.hindrance(link).is_none());
            is_well && self.has_way_out(network)
        });
        self.edge.follow(edge::Wanted {
            in_service: in_service.map(|(_, vni)| *vni).collect(),
            participants,
            vtep: self.compiled.vtep,
            peers: self.compiled.peers.values().copied().collect(),
            gateways: self.compiled.gateways.clone(),
            probe_interval: self.config.gateway_probe,
        });
    }

    /// Why an external interface is of no use.
    fn hindrance(&self, link: &Link) -> Option<String> {
        let name = &link.name;
        if !link.up || !link.carrier {
            return Some(format!("interface {name} is down"));
        }
        let is_attached = self.data_path.attached().contains(&(link.index, Hook::TcExternal));
        (!is_attached).then(|| format!("no program is attached to interface {name}"))
    }

    /// The interface on an external network, as configured.
    fn config_of(&self, network: &str) -> Option<&ExternalConfig> {
        // One that names none is on the only one there is.
        self.config
            .externals
            .iter()
            .find(|config| config.network.as_deref().is_none_or(|named| named == network))
    }

    /// Whether a gateway knows a way on: on a routed network, by what it learned.
    fn has_way_out(&self, network: &str) -> bool {
        let Some((topology, _)) = &self.topology else { return false };
        let Some(network) = topology.networks.iter().find(|it| it.name == network) else { return false };
        let is_learned =
            self.learned_routes.contains_key(&network.name) && !self.unlearned.contains_key(&network.name);
        !network.routed || is_learned || network.subnets.iter().any(|subnet| subnet.gateway.is_some())
    }

    /// The routed networks that this node has an interface on, by that.
    fn routed(&self) -> BTreeMap<u32, String> {
        let Some((topology, _)) = &self.topology else { return BTreeMap::new() };
        let routed = topology.networks.iter().filter(|network| network.routed);
        let of = |network: &Network| {
            let name = &self.config_of(&network.name)?.interface;
            let link = self.links.iter().find(|link| link.name == *name)?;
            Some((link.index, network.name.clone()))
        };
        routed.filter_map(of).collect()
    }

    /// Takes what a routing daemon has learned, and has it used.
    pub(super) async fn follow_routes(&mut self) {
        let before = self.unlearned.keys().cloned().collect::<Vec<_>>();
        if self.learn().await {
            self.commit(&Touch::Changed).await;
        } else if !before.iter().eq(self.unlearned.keys()) {
            self.follow_edge().await;
        }
    }

    /// Reads what a routing daemon has learned; whether there is anything new.
    pub(super) async fn learn(&mut self) -> bool {
        let routed = self.routed();
        if routed.is_empty() && self.learned_routes.is_empty() {
            return false;
        }
        match bgp::learned(&self.netlink, &routed).await {
            Ok(mut learned) => {
                self.unlearned.retain(|network, _| !learned.contains_key(network));
                for (network, routes) in &self.learned_routes {
                    if learned.contains_key(network) || !routed.values().any(|name| name == network) {
                        continue;
                    }
                    if self.unlearned.entry(network.clone()).or_insert_with(Instant::now).elapsed()
                        < UNLEARNED
                    {
                        learned.insert(network.clone(), routes.clone());
                    }
                }
                let is_news = learned != self.learned_routes;
                self.learned_routes = learned;
                is_news
            }
            Err(error) => {
                self.complain("routes", format!("cannot read what was learned: {error:#}"));
                false
            }
        }
    }

    /// Has announced what this node carries, as far as it can.
    pub(super) async fn announce(&mut self) {
        if self.programmed.is_none() {
            return;
        }
        let mut wanted = BTreeSet::new();
        for (network, addresses) in &self.compiled.announced {
            let link = self
                .config_of(network)
                .and_then(|config| self.links.iter().find(|link| link.name == config.interface));
            if link.is_some_and(|link| self.hindrance(link).is_none()) {
                wanted.extend(addresses);
            }
        }
        let is_any = !wanted.is_empty() || !status::lock(&self.status).bgp.announced.is_empty();
        // What an earlier agent had announced has to go, too.
        if (is_any || !self.announced_once)
            && let Err(error) = bgp::announce(&self.netlink, &wanted).await
        {
            return self.complain("announce", format!("{error:#}"));
        }
        self.announced_once = true;
        let mut status = status::lock(&self.status);
        status.bgp.announced = wanted;
        status.bgp.learned =
            self.learned_routes.iter().map(|(network, routes)| (network.clone(), routes.len())).collect();
    }

    /// Asks the routing daemon how its sessions are, if this node needs it. It answers in its own time.
    pub(super) fn ask_daemon(&self) {
        if self.routed().is_empty() {
            let mut status = status::lock(&self.status);
            (status.bgp.peers, status.bgp.note) = (Vec::new(), None);
            return;
        }
        let (sockets, told) = (self.config.frr_sockets.clone(), self.status.clone());
        tokio::task::spawn_local(async move {
            let peers = bgp::peers(sockets).await;
            let note = bgp::judge(&peers);
            let mut status = status::lock(&told);
            if let (Some(text), true) = (&note, note != status.bgp.note) {
                tracing::warn!("BGP: {text}");
            }
            status.bgp.note = note;
            status.bgp.peers = peers.unwrap_or_default();
        });
    }

    /// Another gateway died or lives again, or this node is the master of other virtual routers.
    pub(super) async fn follow_found(&mut self, found: edge::Found) {
        let is_mastered = |router: &&compile::VirtualRouter| {
            found.mastered.contains(&MasterKey::new(router.network_id, router.vrid, router.ipv6))
        };
        let mastered = self.compiled.virtual_routers.iter().filter(is_mastered);
        let now = Liveness {
            mastered: mastered.map(|router| router.router.clone()).collect(),
            dead_gateways: found.dead,
            ..self.liveness.clone()
        };
        // Flows go on as they were decided. Those decided while it was the master end here.
        let before = std::mem::replace(&mut self.lingering, found.lingering);
        let ended = before.difference(&self.lingering).filter(|key| !found.mastered.contains(key));
        let networks: BTreeSet<u32> = ended.map(|key| key.network).collect();
        if !networks.is_empty() {
            self.liveness = now;
            return self.commit(&Touch::Networks(networks)).await;
        }
        self.live(now).await;
    }

    /// Next hops that others can stand in for died, or live again.
    pub(super) async fn follow_failed(&mut self, failed: &BTreeSet<external::outside::Address>) {
        let named = failed.iter().filter_map(|&(network, ip)| {
            Some((self.identities.name(NAME_NETWORK, network)?.to_owned(), IpAddr::from(ip)))
        });
        let now = Liveness { dead_nexthops: named.collect(), ..self.liveness.clone() };
        self.live(now).await;
    }

    /// Members of pools died, or live again.
    pub(super) async fn follow_health(&mut self) {
        let Some((topology, _)) = &self.topology else { return };
        let now = Liveness { members: self.health.not_up(topology), ..self.liveness.clone() };
        status::lock(&self.status).health.others = self.health.others();
        self.live(now).await;
    }

    /// Ports of routers' addresses are others' now.
    pub(super) async fn follow_holders(&mut self) {
        self.commit(&Touch::Changed).await;
    }

    /// Claims what ports are needed, as the last pass through the flow tables has it.
    pub(super) async fn claim(&mut self) {
        let Some(ports) = &mut self.ports else { return };
        // Who knows of nothing needs nothing, and would return it all.
        if self.programmed.is_none() {
            return;
        }
        let flows = self.flows.status();
        let (passes, used) = (self.flows.passes(), &flows.snat);
        if ports.claim(&self.config.node, &self.compiled.translated, used, passes) {
            self.commit(&Touch::Changed).await;
        }
    }

    async fn live(&mut self, now: Liveness) {
        if self.liveness != now {
            self.liveness = now;
            self.commit(&Touch::Changed).await;
        }
    }
}
