//! Load balancers, what they balance to, and the floating IPs that lead to them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use super::{Check, Taken};
use crate::topology::Balancers;
use crate::topology::decode::{Kind, label_of};
use crate::topology::model::{LoadBalancer, Pool};
use crate::topology::ranges::unusable;
use crate::topology::yaml::Step;

/// VIPs, by network (its position) and address, and the load balancers (theirs) they are of.
type Vips = HashMap<usize, BTreeMap<IpAddr, usize>>;

/// Whether a topology in which every rule holds is still one with `new` in the place of its pool `old`, as far as can be
/// told of these two: nothing else has to be looked at. No rule between objects is about anything of a pool but its
/// name and its members' addresses, each by itself and whether there is one of a family: one that `old` has is in order.
pub fn may_replace(old: &Pool, new: &Pool) -> bool {
    let known: HashSet<IpAddr> = old.members.iter().map(|member| member.address).collect();
    let has = |ipv6: bool| new.members.iter().any(|member| member.address.is_ipv6() == ipv6);
    let families = [false, true];
    let had = families.map(|ipv6| known.iter().any(|address| address.is_ipv6() == ipv6));
    old.name == new.name
        && new.members.iter().all(|member| known.contains(&member.address))
        // A VIP's listener needs a member of the VIP's family, or a pool without any.
        && (new.members.is_empty() || families.into_iter().zip(had).all(|(ipv6, had)| !had || has(ipv6)))
}

impl Check<'_, '_> {
    /// Fixed IPs are `taken`.
    pub(super) fn load_balancers(&mut self, taken: &Taken<'_>) {
        let balancers = Balancers::of(self.topology);
        let mut vips = Vips::new();
        for (i, balancer) in self.topology.load_balancers.iter().enumerate() {
            if self.is_twin(Kind::LoadBalancer, i) {
                continue;
            }
            let object = label_of(Kind::LoadBalancer, &balancer.name);
            let line = self.line(Kind::LoadBalancer, i, &[Step::Field("network")]);
            if let Some(network) = self.resolve(Kind::Network, &balancer.network, line, &object) {
                if self.network(network).external {
                    let message = format!("network {} is external, and has no VIPs", balancer.network);
                    let remedy = "put the VIP on another network and give it a floating ip: \
                                  `floating_ips: [{ address: …, load_balancer: … }]`";
                    self.report(line, object, message, remedy);
                    continue;
                }
                for (position, vip) in balancer.vip_addresses.iter().enumerate() {
                    let path = [Step::Field("vip_addresses"), Step::Item(position)];
                    let found = self.vip(i, network, *vip, &mut vips, taken);
                    if let Some((message, remedy)) = found {
                        let line = self.line(Kind::LoadBalancer, i, &path);
                        self.report(line, object.clone(), message, remedy);
                    }
                }
            }
        }
        for (i, balancer) in self.topology.load_balancers.iter().enumerate() {
            if !self.is_twin(Kind::LoadBalancer, i) {
                self.listeners(i, balancer, &balancers, &vips);
            }
        }
    }

    /// What is wrong with a VIP.
    fn vip(
        &self,
        index: usize,
        network: usize,
        vip: IpAddr,
        vips: &mut Vips,
        taken: &Taken<'_>,
    ) -> Option<(String, String)> {
        let name = &self.network(network).name;
        let other = "use another address of the subnet".to_owned();
        let vips = vips.entry(network).or_default();
        if let Some(first) = vips.get(&vip).filter(|first| **first != index) {
            let first = &self.topology.load_balancers[*first].name;
            return Some((format!("{vip} is load balancer {first}'s already on network {name}"), other));
        }
        if let Some(port) = taken.addresses.get(&(network, vip)) {
            let port = &self.topology.ports[*port].name;
            return Some((format!("{vip} is port {port}'s already on network {name}"), other));
        }
        if let Some(what) = self.no_hosts(network, vip) {
            return Some((format!("{vip} is {what}"), other));
        }
        if self.ranges[network].find(vip).ok()?.is_none() {
            return Some(self.outside(vip, network));
        }
        vips.insert(vip, index);
        None
    }

    /// What an address on a network is that neither a workload nor a VIP may have.
    fn no_hosts(&self, network: usize, address: IpAddr) -> Option<String> {
        if let Some(router) = self.router_addresses.get(&(network, address)) {
            let router = &self.topology.routers[*router].name;
            return Some(format!("router {router}'s address on network {}", self.network(network).name));
        }
        let (_, place) = self.ranges[network].find(address).ok()??;
        let subnet = self.subnet(place);
        let is_gateway = subnet.gateway == Some(address);
        let what = if is_gateway { Some("gateway") } else { unusable(subnet.cidr, address) };
        what.map(|what| format!("the {what} of subnet {}", subnet.name))
    }

    fn listeners(&mut self, index: usize, balancer: &LoadBalancer, balancers: &Balancers<'_>, vips: &Vips) {
        let object = label_of(Kind::LoadBalancer, &balancer.name);
        for (position, listener) in balancer.listeners.iter().enumerate() {
            let object = format!("{object} listeners[{position}]");
            let path = [Step::Field("listeners"), Step::Item(position), Step::Field("default_pool")];
            let line = self.line(Kind::LoadBalancer, index, &path);
            let Some(pool) = self.resolve(Kind::Pool, &listener.default_pool, line, &object) else {
                continue;
            };
            let pool = &self.topology.pools[pool];
            for &vip in &balancer.vip_addresses {
                let family = if vip.is_ipv6() { "IPv6" } else { "IPv4" };
                let mut members =
                    pool.members.iter().filter(|member| member.address.is_ipv6() == vip.is_ipv6()).peekable();
                if members.peek().is_none() && !pool.members.is_empty() {
                    let message = format!("pool {} has no {family} member for the VIP {vip}", pool.name);
                    let remedy = format!("give it one, or the load balancer no {family} VIP");
                    self.report(line, object.clone(), message, remedy);
                    continue;
                }
                if !self.routers_are_known {
                    continue;
                }
                let Some(subnet) = balancers.subnet(&balancer.network, vip) else { continue };
                let Some(router) = balancers.router(&balancer.network, vip) else {
                    let message = format!("the VIP {vip} is on subnet {}, which has no router", subnet.name);
                    let remedy = "give a router an interface on it: routers balance, on every node, and one with this \
                                  interface alone is enough";
                    self.report(line, object.clone(), message, remedy);
                    continue;
                };
                let is_ambiguous = balancers.is_ambiguous(router);
                let mut reach = balancers.reach(router);
                // The network of the member before.
                let mut on: Option<(&str, Option<usize>)> = None;
                let wrong = members.find_map(|member| {
                    let Some(network) = reach.network_of(member.address) else {
                        return (!is_ambiguous).then_some((member, None));
                    };
                    if on.is_none_or(|(name, _)| name != network.name) {
                        let index = self.names[Kind::Network].get(network.name.as_str()).copied();
                        on = Some((&network.name, index));
                    }
                    let (_, index) = on?;
                    let index = index?;
                    let what = vip_at(vips, index, member.address).map(|other| {
                        format!("the VIP of load balancer {}", self.topology.load_balancers[other].name)
                    });
                    what.or_else(|| self.no_hosts(index, member.address)).map(|what| (member, Some(what)))
                });
                match wrong {
                    None => {}
                    Some((member, None)) => {
                        let message = format!(
                            "member {} of pool {}: {} is on no network that router {} of the VIP {vip} joins",
                            member.name, pool.name, member.address, router.name
                        );
                        let remedy = format!(
                            "give router {} an interface on the member's subnet, or the member an address of one of \
                             its",
                            router.name
                        );
                        self.report(line, object.clone(), message, remedy);
                    }
                    Some((member, Some(what))) => {
                        let message = format!(
                            "member {} of pool {}: {} is {what}",
                            member.name, pool.name, member.address
                        );
                        let remedy =
                            "name the addresses of workloads: what is balanced once is not balanced again";
                        self.report(line, object.clone(), message, remedy);
                    }
                }
            }
        }
    }
}

/// The load balancer whose VIP an address on a network is.
fn vip_at(vips: &Vips, network: usize, address: IpAddr) -> Option<usize> {
    let vips = vips.get(&network)?;
    // Few are among them, and most are not even near.
    let (first, last) = (vips.first_key_value()?.0, vips.last_key_value()?.0);
    let is_near = (*first..=*last).contains(&address);
    if is_near { vips.get(&address).copied() } else { None }
}
