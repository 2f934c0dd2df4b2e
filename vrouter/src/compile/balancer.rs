//! Load balancers: listeners, pools, and which member has which slots.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use vrouter_common::{
    addr::{Be16, Ip},
    tables::*,
};

use super::{Compiler, MemberHealth};
use crate::topology::{
    Balancers, derive_external_mac, derive_router_mac, digest128, fnv1a_of,
    model::{FloatingIp, LoadBalancer, Network, Pool, Router},
};

/// A pool as it was compiled for a family.
#[derive(Clone, Copy)]
struct Compiled {
    id: u32,
    slots: u32,
    /// Somebody takes new connections.
    takes: bool,
}

impl<'a> Compiler<'a> {
    /// All load balancers on this node's networks. Ports are compiled: who is where is known.
    pub(super) fn balancers(&mut self) -> Result<()> {
        let topology = self.topology;
        if topology.load_balancers.is_empty() {
            return Ok(());
        }
        let balancers = Balancers::of(topology);
        let pools: HashMap<&str, &Pool> =
            topology.pools.iter().map(|pool| (pool.name.as_str(), pool)).collect();
        DEALT.lock().unwrap_or_else(PoisonError::into_inner).turn();
        let mut done = HashMap::new();
        for balancer in &topology.load_balancers {
            let Some(&network) = self.networks.get(balancer.network.as_str()) else { continue };
            if network.external || !self.scope.has_network(network) {
                continue;
            }
            let network_id = self.id(NAME_NETWORK, &network.name)?;
            for &vip in &balancer.vip_addresses {
                let Some(router) = balancers.router(&network.name, vip) else { continue };
                let router_id = self.id(NAME_ROUTER, &router.name)?;
                let mac = derive_router_mac(&router.name, &network.name).0;
                let station =
                    Station { mac, kind: STATION_VIP, place: PLACE_EVERYWHERE, at: 0, owner: router_id };
                self.out.image.addresses.insert(AddressKey::new(0, network_id, Ip::from(vip)), station);
                for listener in &balancer.listeners {
                    let pool = pools
                        .get(listener.default_pool.as_str())
                        .with_context(|| format!("there is no pool {}", listener.default_pool))?;
                    let name = bounded(format!("{}/{}", balancer.name, listener.name));
                    let number = self.id(NAME_LISTENER, &name)?;
                    let key = (listener.default_pool.as_str(), vip.is_ipv6(), router_id);
                    let compiled = match done.get(&key) {
                        Some(compiled) => *compiled,
                        None => {
                            let compiled = self.pool(pool, vip.is_ipv6(), router, router_id, &balancers)?;
                            done.insert(key, compiled);
                            compiled
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
                        router: router_id,
                    };
                    self.out.image.listeners.insert(key, value);
                }
            }
        }
        Ok(())
    }

    /// The members of a family, and their slots. For each router that balances to it: what passes packets on is that
    /// router's, and so is the network that its members are found on.
    fn pool(
        &mut self,
        pool: &Pool,
        ipv6: bool,
        router: &Router,
        router_id: u32,
        balancers: &Balancers<'a>,
    ) -> Result<Compiled> {
        let family = if ipv6 { "ipv6" } else { "ipv4" };
        let id = self.id(NAME_POOL, &bounded(format!("{} {family} {}", pool.name, router.name)))?;
        let external = match &router.gateway {
            Some(gateway) => self.networks.get(gateway.network.as_str()).copied(),
            None => None,
        };
        let external = match external.filter(|network| self.scope.has_network(network)) {
            Some(network) => Some((network, self.id(NAME_NETWORK, &network.name)?)),
            None => None,
        };
        // What passes packets on to a member names the router that translates for it, too.
        let behind = format!("pool {} {}", pool.name, router.name);
        let said = &self.around.liveness.members;
        let health = |member: &str| {
            // Most pools have no monitor.
            let is_asked = pool.health_monitor.is_some() && !said.is_empty();
            let health = is_asked.then(|| said.get(&(pool.name.clone(), member.to_owned()))).flatten();
            health.copied().unwrap_or(MemberHealth::Up)
        };
        let members: Vec<_> = pool.members.iter().filter(|it| it.address.is_ipv6() == ipv6).collect();
        // Of members nobody speaks for any more, some may serve: better those than none.
        let any_up = members
            .iter()
            .any(|it| it.weight > 0 && it.admin_state_up && health(&it.name) == MemberHealth::Up);
        let mut candidates = Vec::new();
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
                    weight: member.weight.max(1),
                    leaves: member.weight == 0 || !usable,
                });
            }
            let Some(network) = balancers.network_of(router, member.address) else { continue };
            if on.is_none_or(|(name, _)| name != network.name) {
                on = Some((network.name.as_str(), self.id(NAME_NETWORK, &network.name)?));
            }
            let Some((_, network_id)) = on else { continue };
            let up = member.admin_state_up && member.weight > 0 && usable;
            let mac = external
                .map_or([0; 6], |(network, _)| derive_external_mac(&behind, &network.name, &member.name).0);
            let value = PoolMember {
                ip: Ip::from(member.address),
                network: network_id,
                port: Be16::new(member.protocol_port),
                flags: if up { MEMBER_UP } else { 0 }
                    | if health == MemberHealth::Down { MEMBER_DOWN } else { 0 },
                number: self.id(NAME_MEMBER, &name)?,
                mac,
                zero: 0,
            };
            let index = index as u32;
            let image = &mut self.out.image;
            image.pool_members.insert(PoolMemberKey { pool: Scoped::new(0, id), index }, value);
            if member.admin_state_up {
                image.pool_members_at.insert(PoolMemberAt::new(0, id, value.ip, value.port), index);
            }
            if let Some((_, external_id)) = external {
                let at = image.addresses.get(&AddressKey::new(0, network_id, value.ip));
                if at.is_none_or(|station| station.place != PLACE_REMOTE) {
                    let station = Station {
                        mac,
                        kind: STATION_MEMBER,
                        place: PLACE_EVERYWHERE,
                        at: index,
                        owner: router_id,
                    };
                    image.fdb.insert(FdbKey::new(0, external_id, mac), station);
                }
                if member.admin_state_up {
                    image.pool_members_at.insert(PoolMemberAt::mac(0, id, mac), index);
                }
            }
        }
        let slots = DEALT.lock().unwrap_or_else(PoisonError::into_inner).slots(candidates);
        for (chunk, slots) in slots.as_chunks().0.iter().enumerate() {
            let key = PoolSlotsKey { pool: Scoped::new(0, id), chunk: chunk as u32 };
            self.out.image.pool_slots.insert(key, PoolSlots(*slots));
        }
        let takes = slots.first().is_some_and(|slot| slot.member != SLOT_NOBODY);
        Ok(Compiled { id, slots: slots.len() as u32, takes })
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

/// Slots that were dealt out before: of most pools nothing changes, and they take by far the most time. What two
/// compilations in a row did not ask for is forgotten.
#[derive(Default)]
struct Dealt {
    now: HashMap<Vec<Candidate>, Arc<[Slot]>>,
    before: HashMap<Vec<Candidate>, Arc<[Slot]>>,
}

static DEALT: LazyLock<Mutex<Dealt>> = LazyLock::new(Mutex::default);

impl Dealt {
    /// Another compilation begins.
    fn turn(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    fn slots(&mut self, candidates: Vec<Candidate>) -> Arc<[Slot]> {
        let slots = match self.now.get(&candidates) {
            Some(slots) => return Arc::clone(slots),
            None => self.before.remove(&candidates).unwrap_or_else(|| slots(&candidates).into()),
        };
        self.now.insert(candidates, Arc::clone(&slots));
        slots
    }
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
