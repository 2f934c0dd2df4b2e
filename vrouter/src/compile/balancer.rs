//! Load balancers: listeners, pools, and which member has which slots.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    sync::{Arc, LazyLock},
};

use anyhow::{Context, Result};
use ipnet::IpNet;
use vrouter_common::{
    addr::{Be16, Ip},
    memory::PoolImage,
    tables::*,
};

use super::{Compiler, MemberHealth};
use crate::topology::{
    Balancers, derive_external_mac, derive_router_mac, digest128, fnv1a_of,
    model::{FloatingIp, LoadBalancer, Member, Network, Pool, Router},
};

/// A pool as it was compiled for a family.
#[derive(Clone, Debug)]
struct Compiled {
    id: u32,
    slots: u32,
    /// Somebody takes new connections.
    takes: bool,
    image: Arc<PoolImage>,
}

/// Pools as the last compilation left them. A change concerns few of them: the others are taken as they are, without a
/// look at their members. What they hold are numbers of the [`Identities`](crate::identities::Identities) they are kept
/// with.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// By number.
    pools: HashMap<u32, (Ingredients, Compiled)>,
    /// The addresses that were on other nodes then.
    remote: Vec<AddressKey>,
}

/// From what was kept to what is to be.
struct Keeping {
    before: Kept,
    /// Addresses that came to other nodes since, or left them.
    moved: HashSet<AddressKey>,
    now: Kept,
}

impl Keeping {
    fn new(before: Kept, remote: Vec<AddressKey>) -> Self {
        let moved = if before.remote == remote {
            HashSet::new()
        } else {
            let [was, is] = [&before.remote, &remote].map(|list| list.iter().collect::<HashSet<_>>());
            was.symmetric_difference(&is).map(|key| **key).collect()
        };
        Self { before, moved, now: Kept { pools: HashMap::new(), remote } }
    }

    /// A pool as it was, if it is made of the same now.
    fn get(&self, id: u32, ingredients: &Ingredients) -> Option<&Compiled> {
        let at = |member: &PoolMember| AddressKey::new(0, member.network, member.ip);
        let (made_of, compiled) = self.before.pools.get(&id)?;
        let has_moved = !self.moved.is_empty()
            && compiled.image.members.values().any(|member| self.moved.contains(&at(member)));
        (!has_moved && made_of.are(ingredients)).then_some(compiled)
    }
}

/// All that a compiled pool is made of, beside the addresses on other nodes.
#[derive(Clone, Debug)]
struct Ingredients {
    pool: Arc<Pool>,
    /// Number of the router.
    router: u32,
    legs: Arc<[Leg]>,
    /// Number of the router's external network, if this node has it.
    external: Option<u32>,
    /// Members that are not up.
    health: Vec<(String, MemberHealth)>,
}

impl Ingredients {
    fn are(&self, other: &Self) -> bool {
        let Self { pool, router, legs, external, health } = other;
        (self.router, self.external, &self.health) == (*router, *external, health)
            && self.legs == *legs
            && (Arc::ptr_eq(&self.pool, pool) || has_same_members(&self.pool, pool))
    }
}

/// A subnet that a router is on: its range, the number of its network, whether that is external.
type Leg = (IpNet, u32, bool);

/// A router that balances.
#[derive(Clone)]
struct Balancing<'a> {
    router: &'a Router,
    id: u32,
    legs: Arc<[Leg]>,
    external: Option<(&'a Network, u32)>,
}

impl<'a> Compiler<'a> {
    /// All load balancers on this node's networks. Ports are compiled: who is where is known.
    pub(super) fn balancers(&mut self) -> Result<()> {
        let topology = self.topology;
        let before = std::mem::take(&mut self.ids.kept);
        if topology.load_balancers.is_empty() {
            return Ok(());
        }
        let balancers = Balancers::of(topology);
        let pools: HashMap<&str, &Arc<Pool>> =
            topology.pools.iter().map(|pool| (pool.name.as_str(), pool)).collect();
        let addresses = self.out.image.addresses.iter();
        let remote = addresses.filter(|(_, it)| it.place == PLACE_REMOTE).map(|(key, _)| *key).collect();
        let mut keeping = Keeping::new(before, remote);
        let (mut done, mut routers) = (HashMap::new(), HashMap::new());
        for balancer in &topology.load_balancers {
            let Some(&network) = self.networks.get(balancer.network.as_str()) else { continue };
            if network.external || !self.scope.has_network(network) {
                continue;
            }
            let network_id = self.id(NAME_NETWORK, &network.name)?;
            for &vip in &balancer.vip_addresses {
                let Some(router) = balancers.router(&network.name, vip) else { continue };
                let by = match routers.entry(router.name.as_str()) {
                    Entry::Occupied(entry) => Balancing::clone(entry.get()),
                    Entry::Vacant(entry) => entry.insert(self.balancing(router)?).clone(),
                };
                let mac = derive_router_mac(&router.name, &network.name).0;
                let station =
                    Station { mac, kind: STATION_VIP, place: PLACE_EVERYWHERE, at: 0, owner: by.id };
                self.out.image.addresses.insert(AddressKey::new(0, network_id, Ip::from(vip)), station);
                for listener in &balancer.listeners {
                    let pool = pools
                        .get(listener.default_pool.as_str())
                        .with_context(|| format!("there is no pool {}", listener.default_pool))?;
                    let name = bounded(format!("{}/{}", balancer.name, listener.name));
                    let number = self.id(NAME_LISTENER, &name)?;
                    let key = (listener.default_pool.as_str(), vip.is_ipv6(), by.id);
                    let compiled = match done.entry(key) {
                        Entry::Occupied(entry) => entry.into_mut(),
                        Entry::Vacant(entry) => {
                            entry.insert(self.kept_pool(pool, key.1, &by, &balancers, &mut keeping)?)
                        }
                    };
                    let down = !balancer.admin_state_up || !listener.admin_state_up;
                    let key = ListenerKey {
                        network: Scoped::new(0, network_id),
                        ip: Ip::from(vip),
                        port: Be16::new(listener.protocol_port),
                        proto: listener.protocol,
                        zero: 0,
                    };
                    let value = Listener {
                        pool: compiled.id,
                        slots: compiled.slots,
                        flags: if down { LISTENER_DOWN } else { 0 }
                            | if compiled.takes { 0 } else { LISTENER_EMPTY }
                            | if pool.source_ip { LISTENER_SOURCE_IP } else { 0 },
                        number,
                        router: by.id,
                    };
                    self.out.image.listeners.insert(key, value);
                }
            }
        }
        self.ids.kept = keeping.now;
        Ok(())
    }

    fn balancing(&mut self, router: &'a Router) -> Result<Balancing<'a>> {
        let id = self.id(NAME_ROUTER, &router.name)?;
        let external = match &router.gateway {
            Some(gateway) => self.networks.get(gateway.network.as_str()).copied(),
            None => None,
        };
        let external = match external.filter(|network| self.scope.has_network(network)) {
            Some(network) => Some((network, self.id(NAME_NETWORK, &network.name)?)),
            None => None,
        };
        let mut legs = Vec::new();
        for interface in &router.interfaces {
            let Some(&(network, range)) = self.subnets.get(interface.subnet.as_str()) else { continue };
            legs.push((range, self.id(NAME_NETWORK, &network.name)?, network.external));
        }
        Ok(Balancing { router, id, legs: legs.into(), external })
    }

    /// A pool as it was compiled last, if nothing it is made of has changed; else compiled.
    fn kept_pool(
        &mut self,
        pool: &Arc<Pool>,
        ipv6: bool,
        by: &Balancing<'a>,
        balancers: &Balancers<'a>,
        keeping: &mut Keeping,
    ) -> Result<Compiled> {
        let family = if ipv6 { "ipv6" } else { "ipv4" };
        let id = self.id(NAME_POOL, &bounded(format!("{} {family} {}", pool.name, by.router.name)))?;
        let ingredients = Ingredients {
            pool: Arc::clone(pool),
            router: by.id,
            legs: Arc::clone(&by.legs),
            external: by.external.map(|(_, id)| id),
            health: self.not_up(pool),
        };
        let compiled = match keeping.get(id, &ingredients) {
            Some(compiled) => compiled.clone(),
            None => self.pool(id, ipv6, by, balancers, &ingredients)?,
        };
        self.out.image.pools.insert(id, Arc::clone(&compiled.image));
        keeping.now.pools.insert(id, (ingredients, compiled.clone()));
        Ok(compiled)
    }

    /// Members that are not up, of a pool with a monitor.
    fn not_up(&self, pool: &Pool) -> Vec<(String, MemberHealth)> {
        let said = &self.around.liveness.members;
        if pool.health_monitor.is_none() || said.is_empty() {
            return Vec::new();
        }
        let of_pool = said.range((pool.name.clone(), String::new())..);
        let of_pool = of_pool.take_while(|((name, _), _)| *name == pool.name);
        of_pool.map(|((_, member), health)| (member.clone(), *health)).collect()
    }

    /// The members of a family, and their slots. For each router that balances to it: what passes packets on is that
    /// router's, and so is the network that its members are found on.
    fn pool(
        &mut self,
        id: u32,
        ipv6: bool,
        by: &Balancing<'a>,
        balancers: &Balancers<'a>,
        ingredients: &Ingredients,
    ) -> Result<Compiled> {
        let pool = &ingredients.pool;
        // What passes packets on to a member names the router that translates for it, too.
        let behind = format!("pool {} {}", pool.name, by.router.name);
        let said: HashMap<&str, MemberHealth> =
            ingredients.health.iter().map(|(member, health)| (member.as_str(), *health)).collect();
        let health = |member: &str| said.get(member).copied().unwrap_or(MemberHealth::Up);
        let members: Vec<_> = pool.members.iter().filter(|it| it.address.is_ipv6() == ipv6).collect();
        // Of members nobody speaks for any more, some may serve: better those than none.
        let any_up = members
            .iter()
            .any(|it| it.weight > 0 && it.admin_state_up && health(&it.name) == MemberHealth::Up);
        // What weight a member had that is draining is not known: in most pools, that of the others.
        let heaviest = members.iter().filter(|it| it.admin_state_up).map(|it| it.weight).max().unwrap_or(1);
        let mut candidates = Vec::new();
        let mut image = PoolImage::default();
        // The network of the member before.
        let mut on: Option<(&str, u32)> = None;
        for (index, member) in members.iter().enumerate() {
            let health = health(&member.name);
            let usable = health == MemberHealth::Up || health == MemberHealth::Lost && !any_up;
            let name = bounded(format!("{}/{}", pool.name, member.name));
            if member.admin_state_up {
                candidates.push(Candidate {
                    index: index as u16,
                    hash: fnv1a_of(&[&pool.name, &member.name]),
                    weight: if member.weight == 0 { heaviest.max(1) } else { member.weight },
                    leaves: member.weight == 0 || !usable,
                });
            }
            let Some(network) = balancers.network_of(by.router, member.address) else { continue };
            if on.is_none_or(|(name, _)| name != network.name) {
                on = Some((network.name.as_str(), self.id(NAME_NETWORK, &network.name)?));
            }
            let Some((_, network_id)) = on else { continue };
            let up = member.admin_state_up && member.weight > 0 && usable;
            let mac = by
                .external
                .map_or([0; 6], |(network, _)| derive_external_mac(&behind, &network.name, &member.name).0);
            let value = PoolMember {
                ip: Ip::from(member.address),
                network: network_id,
                port: Be16::new(member.protocol_port),
                flags: if up { MEMBER_UP } else { 0 }
                    | if usable { 0 } else { MEMBER_DOWN }
                    | if health == MemberHealth::Lost { MEMBER_LOST } else { 0 },
                // Whether it is used says the image.
                number: self.ids.id(NAME_MEMBER, &name)?,
                mac,
                zero: 0,
            };
            let index = index as u32;
            image.members.insert(PoolMemberKey { pool: Scoped::new(0, id), index }, value);
            if member.admin_state_up {
                image.members_at.insert(PoolMemberAt::new(0, id, value.ip, value.port), index);
            }
            if let Some((_, external_id)) = by.external {
                let at = self.out.image.addresses.get(&AddressKey::new(0, network_id, value.ip));
                if at.is_none_or(|station| station.place != PLACE_REMOTE) {
                    let station = Station {
                        mac,
                        kind: STATION_MEMBER,
                        place: PLACE_EVERYWHERE,
                        at: index,
                        owner: by.id,
                    };
                    image.stations.insert(FdbKey::new(0, external_id, mac), station);
                }
                if member.admin_state_up {
                    image.members_at.insert(PoolMemberAt::mac(0, id, mac), index);
                }
            }
        }
        let slots = slots(&candidates);
        for (chunk, slots) in slots.as_chunks().0.iter().enumerate() {
            let key = PoolSlotsKey { pool: Scoped::new(0, id), chunk: chunk as u32 };
            image.slots.insert(key, PoolSlots(*slots));
        }
        let takes = slots.first().is_some_and(|slot| slot.member != SLOT_NOBODY);
        Ok(Compiled { id, slots: slots.len() as u32, takes, image: Arc::new(image) })
    }

    /// A floating IP that leads to a VIP. Whichever gateway its packets come to passes them on to the nodes of members.
    pub(super) fn balanced(
        &mut self,
        floating_ip: &FloatingIp,
        balancer: &'a LoadBalancer,
        network: &'a Network,
        network_id: u32,
    ) -> Result<()> {
        let topology = self.topology;
        let balancers = self.balancers.get_or_insert_with(|| Balancers::of(topology));
        let Some(vip) = floating_ip.vip(balancer) else { return Ok(()) };
        let Some(router) = balancers.router(&balancer.network, vip) else { return Ok(()) };
        if !self.scope.has_router(&router.name) {
            return Ok(());
        }
        let router_id = self.id(NAME_ROUTER, &router.name)?;
        let inside_network = self.id(NAME_NETWORK, &balancer.network)?;
        let outside = Ip::from(floating_ip.address);
        let station = self.carried(STATION_FLOATING, router, router_id, network, vip.is_ipv6())?;
        self.out.image.addresses.insert(AddressKey::new(0, network_id, outside), station);
        self.own_address(router_id, outside, network_id);
        let key = NatKey {
            network: Scoped::new(0, network_id),
            ip: outside,
            port: Be16::new(0),
            proto: 0,
            zero: 0,
        };
        let nat = Nat {
            inside: Ip::from(vip),
            router: router_id,
            port: 0,
            node: NODE_BALANCED,
            inside_network,
            inside_port: Be16::new(0),
            mac: derive_router_mac(&router.name, &network.name).0,
        };
        self.out.image.nat.insert(key, nat);
        Ok(())
    }
}

/// Wherever in the document they are.
fn has_same_members(a: &Pool, b: &Pool) -> bool {
    let is_same = |(a, b): (&Member, &Member)| {
        let Member { name, address, protocol_port, weight, admin_state_up, line: _ } = a;
        (name, address) == (&b.name, &b.address)
            && (protocol_port, weight) == (&b.protocol_port, &b.weight)
            && *admin_state_up == b.admin_state_up
    };
    a.name == b.name && a.members.len() == b.members.len() && a.members.iter().zip(&b.members).all(is_same)
}

/// A name made of names, which must fit a pin: the end of one that is too long is its digest.
fn bounded(mut name: String) -> String {
    const MOST: usize = 255;
    if name.len() > MOST {
        let digest = digest128([name.as_str()]);
        let mut end = MOST - digest.len() - 1;
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
        name = format!("{name}~{digest}");
    }
    name
}

/// A member that may have slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Candidate {
    index: u16,
    hash: u64,
    weight: u16,
    /// Takes nothing new.
    leaves: bool,
}

/// Deals slots out: each goes to the candidate that is the first in the slot's own order of them, if any takes anything
/// new. How many slots there are depends on nothing: in a table of another size everybody's ranks would be others.
///
/// A candidate's place in a slot's order is its rank of the slot, divided by its weight: each ranks all slots, in an
/// order of its own. So a candidate that comes or goes changes nothing between two others. Ranks stand for
/// exponentially distributed numbers, of which the least of several is each one's with a probability in proportion
/// to its weight. Of equal places the lighter comes first, then the first in the document.
fn slots(candidates: &[Candidate]) -> Vec<Slot> {
    let takers = candidates.iter().filter(|candidate| !candidate.leaves).count();
    if candidates.is_empty() {
        return Vec::new();
    }
    let count = POOL_SLOTS_MAX as usize;
    let costs = &*COSTS;
    // Those of one weight come to their ranks at the same time.
    let mut groups: BTreeMap<u16, (usize, Vec<(Candidate, Permutation)>)> = BTreeMap::new();
    for candidate in candidates {
        let rank = Permutation::of(candidate.hash, count);
        groups.entry(candidate.weight).or_default().1.push((*candidate, rank));
    }
    let empty = Slot { member: SLOT_NOBODY, other: SLOT_NOBODY };
    let mut dealt = vec![empty; count];
    // Places for an owner, if anybody takes, and for another candidate, if there is more than one of all.
    let mut open = count * if takers == 0 { 1 } else { takers.min(2) };
    let cost = |weight: u16, rank: usize| costs[rank] / f64::from(weight);
    while open > 0 {
        let next = groups.iter_mut().filter(|(_, (rank, _))| *rank < count);
        let next = next.min_by(|(a, (i, _)), (b, (j, _))| cost(**a, *i).total_cmp(&cost(**b, *j)));
        let Some((_, (rank, group))) = next else { break };
        for (candidate, order) in group.iter() {
            let slot = &mut dealt[order.slot(*rank)];
            let (has_owner, has_other) = (slot.member != SLOT_NOBODY, slot.other != SLOT_NOBODY);
            if candidate.leaves {
                if !has_owner && !has_other {
                    slot.other = candidate.index | SLOT_LEAVES;
                    open -= usize::from(takers != 1);
                }
            } else if !has_owner {
                slot.member = candidate.index;
                open -= 1;
            } else if !has_other {
                slot.other = candidate.index;
                open -= 1;
            }
        }
        *rank += 1;
    }
    dealt
}

/// The expected values of the smallest, second smallest, ... of `count` exponentially distributed numbers: sums of
/// quotients, so that every machine comes to the same.
static COSTS: LazyLock<Vec<f64>> = LazyLock::new(|| costs(POOL_SLOTS_MAX as usize));

fn costs(count: usize) -> Vec<f64> {
    let mut sum = 0.0;
    let next = |rank: usize| {
        sum += 1.0 / (count - rank) as f64;
        sum
    };
    (0..count).map(next).collect()
}

/// An order of the numbers below a power of two.
#[derive(Clone, Copy)]
struct Permutation {
    mask: u32,
    half: u32,
    add: u32,
    factors: [u32; 3],
}

impl Permutation {
    fn of(hash: u64, count: usize) -> Self {
        let [a, b] = [hash as u32, (hash >> 32) as u32];
        let half = count.trailing_zeros().div_ceil(2);
        // Odd numbers have inverses modulo a power of two; so does every step below.
        let factors = [a | 1, b.rotate_left(9) | 1, (a ^ 0x9e37_79b8) | 1];
        Self { mask: count as u32 - 1, half, add: b ^ a.rotate_left(16), factors }
    }

    /// The slot that comes at a place.
    fn slot(self, place: usize) -> usize {
        let Self { mask, half, add, factors } = self;
        let mut x = (place as u32).wrapping_add(add) & mask;
        for factor in factors {
            x = x.wrapping_mul(factor) & mask;
            x ^= x >> half;
        }
        x as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn pool(count: u16, change: impl Fn(u16, &mut Candidate)) -> Vec<Candidate> {
        let candidate = |index| {
            let hash = fnv1a_of(&["pool", &format!("m{index}")]);
            let mut candidate = Candidate { index, hash, weight: 1, leaves: false };
            change(index, &mut candidate);
            candidate
        };
        (0..count).map(candidate).collect()
    }

    fn shares(slots: &[Slot]) -> BTreeMap<u16, usize> {
        let mut shares = BTreeMap::new();
        slots.iter().for_each(|slot| *shares.entry(slot.member).or_insert(0) += 1);
        shares
    }

    #[test]
    fn a_permutation_has_every_number_once() {
        for count in [256, 4096] {
            for seed in 0..50 {
                let order = Permutation::of(fnv1a_of(&[&seed.to_string()]), count);
                let all: BTreeSet<usize> = (0..count).map(|place| order.slot(place)).collect();
                assert_eq!((all.len(), all.last()), (count, Some(&(count - 1))), "seed {seed}");
            }
        }
    }

    /// The promise of the whole: what comes or goes takes or leaves its own, and who had it before is known.
    #[test]
    fn only_the_share_of_who_comes_or_goes_moves() {
        for count in [2, 3, 10, 50] {
            let all = pool(count, |_, _| {});
            let with = slots(&all);
            let gone = pool(count, |index, it| it.leaves = index == 1);
            let without = slots(&gone);
            for (before, after) in with.iter().zip(&without) {
                if before.member == 1 {
                    assert_eq!(after.member, before.other, "the next in the slot's order gets it");
                    assert_eq!(after.other, 1 | SLOT_LEAVES, "and who leaves is asked");
                } else {
                    assert_eq!(after.member, before.member);
                }
            }
        }
    }

    /// Printed, and written down in the design: of the slots that move, those of which the one who had it is not asked.
    #[test]
    fn a_weight_that_falls_a_little_costs_little() {
        for (count, before, after, most) in
            [(3, 10, 1, 0.8), (3, 10, 9, 0.1), (10, 10, 1, 0.95), (10, 10, 9, 0.2)]
        {
            let of = |weight| {
                slots(&pool(count, |index, it| it.weight = if index == 0 { weight } else { before }))
            };
            let (was, is) = (of(before), of(after));
            let moved: Vec<_> = was.iter().zip(&is).filter(|(was, is)| was.member != is.member).collect();
            assert!(moved.iter().all(|(was, _)| was.member == 0), "only its own move");
            let wrong = moved.iter().filter(|(was, is)| is.other != was.member).count();
            let part = wrong as f64 / moved.len() as f64;
            println!(
                "{count} members, weight {before} to {after}: {} move, {wrong} of them ask another ({part:.2})",
                moved.len()
            );
            assert!(!moved.is_empty() && part < most, "{count}: {before} to {after}: {part}");
        }
    }

    #[test]
    fn who_comes_takes_from_those_who_are_asked() {
        for count in [1, 2, 4, 8, 16, 32, 63] {
            let (few, more) = (slots(&pool(count, |_, _| {})), slots(&pool(count + 1, |_, _| {})));
            for (before, after) in few.iter().zip(&more) {
                if after.member == count {
                    assert_eq!(after.other, before.member);
                } else {
                    assert_eq!(after.member, before.member);
                }
            }
        }
    }

    #[test]
    fn shares_follow_weights() {
        let slots_of = slots(&pool(3, |index, it| it.weight = [1, 2, 5][index as usize]));
        let shares = shares(&slots_of);
        let part = |index| shares[&index] as f64 / slots_of.len() as f64 * 8.0;
        assert!((0.6..1.4).contains(&part(0)) && (1.5..2.5).contains(&part(1)), "{shares:?}");
        assert!((4.4..5.6).contains(&part(2)), "{shares:?}");
    }

    /// Printed, and written down in the design.
    #[test]
    fn shares_are_about_even() {
        for count in [2_u16, 3, 10, 30, 64, 100] {
            let slots = slots(&pool(count, |_, _| {}));
            let mean = slots.len() as f64 / f64::from(count);
            let shares = shares(&slots);
            assert_eq!(shares.len(), usize::from(count), "everybody gets something");
            let square = shares.values().map(|&it| (it as f64 / mean - 1.0).powi(2)).sum::<f64>();
            let deviation = (square / f64::from(count)).sqrt();
            let most = shares.values().max().map_or(0.0, |&most| most as f64 / mean);
            println!("{count} members, {} slots: deviation {deviation:.3}, most {most:.2}", slots.len());
            assert!(deviation < 0.15 && most < 1.5, "{count}: {deviation} {most}");
        }
    }

    /// Whoever leaves last has his connections, and nothing new.
    #[test]
    fn those_who_leave_are_asked_even_if_nobody_takes() {
        assert!(slots(&[]).is_empty());
        let all = slots(&pool(3, |_, _| {}));
        let gone = slots(&pool(3, |_, it| it.leaves = true));
        for (before, after) in all.iter().zip(&gone) {
            assert_eq!(*after, Slot { member: SLOT_NOBODY, other: before.member | SLOT_LEAVES });
        }
        let one = slots(&pool(1, |_, _| {}));
        assert!(one.iter().all(|slot| *slot == Slot { member: 0, other: SLOT_NOBODY }));
        let one = slots(&pool(2, |index, it| it.leaves = index == 1));
        assert!(
            one.iter().all(|slot| slot.member == 0 && [1 | SLOT_LEAVES, SLOT_NOBODY].contains(&slot.other))
        );
    }

    #[test]
    fn long_names_stay_apart() {
        let long = |end: &str| bounded(format!("{}{end}", "ä".repeat(200)));
        assert!(long("a").len() <= 255 && long("a") != long("b"));
        assert_eq!(bounded("a/b".to_owned()), "a/b");
    }
}
