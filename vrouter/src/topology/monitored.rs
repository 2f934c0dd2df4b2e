//! Which port is behind a member that is monitored. Every node must give the same answer, so it depends on nothing but
//! the document's content.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use super::Balancers;
use super::model::{HealthMonitor, Member, Pool, Port, Router, Topology};

/// A member of a pool with a health monitor that a listener uses.
#[derive(Clone, Copy, Debug)]
pub struct Monitored<'t> {
    pub pool: &'t Pool,
    pub member: &'t Member,
    pub monitor: &'t HealthMonitor,
    /// The router that balances to it, from whose leg on `port`'s network it is asked.
    pub router: &'t Router,
    pub port: &'t Port,
}

/// All whose address is a fixed IP of a port; nobody can ask the others. Only those of some `pools`, behind some `ports`:
/// there may be many that the caller does not ask for.
pub fn monitored<'t>(
    topology: &'t Topology,
    pools: impl Fn(&Pool) -> bool,
    ports: impl Fn(&Port) -> bool,
) -> Vec<Monitored<'t>> {
    let mut of_pool: BTreeMap<&str, Vec<&Router>> = BTreeMap::new();
    let monitors = topology.pools.iter().filter_map(|pool| Some((&**pool, pool.health_monitor.as_ref()?)));
    let monitors: Vec<(&Pool, &HealthMonitor)> = monitors.filter(|(pool, _)| pools(pool)).collect();
    if monitors.is_empty() {
        return Vec::new();
    }
    let mut behind: HashMap<(&str, IpAddr), &Port> = HashMap::new();
    for port in topology.ports.iter().filter(|port| ports(port)) {
        behind.extend(port.fixed_ips.iter().map(|ip| ((port.network.as_str(), *ip), port)));
    }
    if behind.is_empty() {
        return Vec::new();
    }
    // On whatever network.
    let addresses: HashSet<IpAddr> = behind.keys().map(|(_, ip)| *ip).collect();
    let sieve = Sieve::of(&addresses);
    let balancers = Balancers::of(topology);
    let is_monitored: HashSet<&str> = monitors.iter().map(|(pool, _)| pool.name.as_str()).collect();
    for balancer in &topology.load_balancers {
        for listener in &balancer.listeners {
            if !is_monitored.contains(listener.default_pool.as_str()) {
                continue;
            }
            let routers = of_pool.entry(&listener.default_pool).or_default();
            for &vip in &balancer.vip_addresses {
                routers.extend(balancers.router(&balancer.network, vip));
            }
        }
    }
    for routers in of_pool.values_mut() {
        // Of several, whichever comes first by name.
        routers.sort_by_key(|router| router.name.as_str());
        routers.dedup_by_key(|router| router.name.as_str());
    }
    let mut found = Vec::new();
    for (pool, monitor) in monitors {
        let Some(routers) = of_pool.get(pool.name.as_str()) else { continue };
        let are_known = |ip: &IpAddr| sieve.may_have(ip) && addresses.contains(ip);
        for member in pool.members.iter().filter(|member| are_known(&member.address)) {
            let port = routers.iter().find_map(|&router| {
                let network = balancers.network_of(router, member.address)?;
                Some((router, *behind.get(&(network.name.as_str(), member.address))?))
            });
            if let Some((router, port)) = port {
                found.push(Monitored { pool, member, monitor, router, port });
            }
        }
    }
    found
}

/// Tells most addresses that are not among some without a hash: a node has few ports, and pools a hundred thousand
/// members. A bit for each value of an address's last two bytes.
struct Sieve(Box<[u64; 1024]>);

impl Sieve {
    fn of<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> Self {
        let mut bits = Box::new([0; 1024]);
        for (word, bit) in addresses.into_iter().map(Self::place) {
            bits[word] |= bit;
        }
        Self(bits)
    }

    fn place(ip: &IpAddr) -> (usize, u64) {
        let last = match ip {
            IpAddr::V4(ip) => ip.to_bits() & 0xffff,
            IpAddr::V6(ip) => (ip.to_bits() & 0xffff) as u32,
        };
        ((last >> 6) as usize, 1 << (last & 63))
    }

    fn may_have(&self, ip: &IpAddr) -> bool {
        let (word, bit) = Self::place(ip);
        self.0[word] & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sieve_lets_through_what_is_there() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let sieve = Sieve::of(&[ip("10.0.1.11"), ip("fd00::ff:fe00:20b"), ip("10.0.255.255")]);
        for (address, may) in [
            ("10.0.1.11", true),
            ("10.9.1.11", true),
            ("10.0.1.12", false),
            ("10.0.2.11", true),
            ("fd00::ff:fe00:20b", true),
            ("fd00::20c", false),
            ("10.0.255.255", true),
            ("10.0.255.254", false),
        ] {
            assert_eq!(sieve.may_have(&ip(address)), may, "{address}");
        }
    }

    const DOCUMENT: &str = r#"
networks:
  - { name: web, subnets: [{ name: web4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }] }
  - { name: db, subnets: [{ name: db4, cidr: 10.0.2.0/24, gateway: 10.0.2.1 }] }
routers:
  - { name: r1, interfaces: [web4, db4] }
ports:
  - { name: vm1, network: web, mac: "02:00:00:00:01:01", fixed_ips: [10.0.1.11], node: a, interface: tap1 }
  - { name: vm2, network: db, mac: "02:00:00:00:01:02", fixed_ips: [10.0.2.12] }
load_balancers:
  - { name: lb, network: web, vip_addresses: [10.0.1.200], listeners: [
      { name: l1, protocol: tcp, protocol_port: 80, default_pool: asked },
      { name: l2, protocol: tcp, protocol_port: 81, default_pool: trusted }] }
pools:
  - name: asked
    health_monitor: { type: ping, delay: 1, timeout: 1 }
    members:
      - { name: m1, address: 10.0.1.11, protocol_port: 80 }
      - { name: m2, address: 10.0.2.12, protocol_port: 80 }
      - { name: m3, address: 10.0.2.13, protocol_port: 80 }
  - { name: trusted, members: [{ name: m1, address: 10.0.1.11, protocol_port: 80 }] }
  - name: idle
    health_monitor: { type: ping, delay: 1, timeout: 1 }
    members: [{ name: m1, address: 10.0.1.11, protocol_port: 80 }]
nodes: [{ name: a, vtep: 192.0.2.1 }]
"#;

    #[test]
    fn members_of_pools_in_use_are_found_by_their_ports() {
        let topology = crate::topology::parse("test", DOCUMENT).expect("a topology in order");
        let names = |found: Vec<Monitored>| -> Vec<[String; 4]> {
            let names = |it: &Monitored| {
                [&it.pool.name, &it.member.name, &it.port.name, &it.router.name].map(Clone::clone)
            };
            found.iter().map(names).collect()
        };
        let (first, second) = (["asked", "m1", "vm1", "r1"], ["asked", "m2", "vm2", "r1"]);
        assert_eq!(names(monitored(&topology, |_| true, |_| true)), [first, second]);
        assert_eq!(names(monitored(&topology, |_| true, |port| port.node.is_some())), [first]);
        assert!(monitored(&topology, |pool| pool.name != "asked", |_| true).is_empty());
    }
}
