//! What of the topology matters here: this node's interfaces on external networks, who its routers are there,
//! and which addresses it answers for.

use std::collections::{BTreeMap, BTreeSet};

use vrouter_common::{
    addr::{Be16, Ip},
    memory::Image,
    tables::{
        Commit, MasterKey, NETWORK_EXTERNAL, NatKey, PLACE_EVERYWHERE, PLACE_LEARNED, PLACE_SHARED,
        RouterLeg, STATION_FLOATING, STATION_ROUTER,
    },
};

/// An address of an external network: network number and address.
pub type Address = (u32, Ip);

/// An address this node answers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    pub mac: [u8; 6],
    pub ifindex: u32,
    /// It is a router's own, not a floating IP.
    pub router: bool,
}

/// Everything outside, as a compiled topology has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// Interfaces by network number.
    interfaces: BTreeMap<u32, u32>,
    /// Routers' legs by network and router number.
    legs: BTreeMap<(u32, u32), RouterLeg>,
    owned: BTreeMap<Address, Owned>,
    /// Addresses that it answers for as the master of a virtual router.
    shared: BTreeMap<Address, (MasterKey, Owned)>,
    /// Next hops that others can stand in for.
    watched: BTreeSet<Address>,
}

impl Outside {
    /// Picks it out.
    /// `held`: addresses of ports bound nowhere that workloads of this node claim, by network number.
    /// `watched`: next hops that others can stand in for.
    pub fn of(image: &Image, commit: &Commit, held: &BTreeSet<Address>, watched: &BTreeSet<Address>) -> Self {
        let external = image.networks.iter().filter(|(_, network)| network.flags & NETWORK_EXTERNAL != 0);
        let interfaces: BTreeMap<u32, u32> = external
            .filter_map(|(key, network)| Some((key.network.id(), commit.external(network.vni)?.ifindex)))
            .collect();
        let legs = image
            .router_legs
            .iter()
            .filter(|(key, _)| interfaces.contains_key(&key.network))
            .map(|(key, leg)| ((key.network, key.router.id()), *leg))
            .collect();
        let owned = image
            .addresses
            .iter()
            .filter(|(key, station)| match station.place {
                PLACE_EVERYWHERE => matches!(station.kind, STATION_ROUTER | STATION_FLOATING),
                PLACE_LEARNED => {
                    let port = Be16::new(0);
                    let nat = NatKey { network: key.network, ip: key.ip, port, proto: 0, zero: 0 };
                    let nat = image.nat.get(&nat);
                    nat.is_some_and(|nat| held.contains(&(nat.inside_network, nat.inside)))
                }
                _ => false,
            })
            .filter_map(|(key, station)| {
                let network = key.network.id();
                let ifindex = *interfaces.get(&network)?;
                let router = station.kind == STATION_ROUTER;
                Some(((network, key.ip), Owned { mac: station.mac, ifindex, router }))
            })
            .collect();
        let shared = image.addresses.iter().filter(|(_, station)| station.place == PLACE_SHARED);
        let shared = shared.filter_map(|(key, station)| {
            let network = key.network.id();
            let master = MasterKey::new(network, station.at as u8, !key.ip.is_v4());
            let router = station.kind == STATION_ROUTER;
            let owned = Owned { mac: station.mac, ifindex: *interfaces.get(&network)?, router };
            Some(((network, key.ip), (master, owned)))
        });
        let shared = shared.collect();
        let watched =
            watched.iter().filter(|(network, _)| interfaces.contains_key(network)).copied().collect();
        Self { interfaces, legs, owned, shared, watched }
    }

    /// This node's interface on a network.
    pub fn interface(&self, network: u32) -> Option<u32> {
        self.interfaces.get(&network).copied()
    }

    /// Hardware address and address that a request for `target` comes from: the router's that wanted it first,
    /// or, if that is gone, any other's.
    pub fn asker(&self, network: u32, router: u32, target: Ip) -> Option<([u8; 6], Ip)> {
        let others = || self.legs.range((network, 0)..=(network, u32::MAX)).map(|(_, leg)| leg).next();
        let leg = self.legs.get(&(network, router)).or_else(others)?;
        // As the data path asks: nobody may learn an address from it that another node answers for.
        let source = match target.is_v4() {
            true if leg.speaks_for_itself() => leg.v4,
            true => Ip::V4_UNSPECIFIED,
            false => Ip::link_local_of(leg.mac),
        };
        Some((leg.mac, source))
    }

    /// The addresses this node answers for, as the master of some virtual routers.
    pub fn owned(&self, mastered: &BTreeSet<MasterKey>) -> BTreeMap<Address, Owned> {
        let mut owned = self.owned.clone();
        let shared = self.shared.iter().filter(|(_, (key, _))| mastered.contains(key));
        owned.extend(shared.map(|(address, (_, is))| (*address, *is)));
        owned
    }

    /// Next hops that others can stand in for, and a router there to ask for them.
    pub fn watched(&self) -> impl Iterator<Item = (Address, u32, u32)> {
        self.watched.iter().filter_map(|&(network, ip)| {
            let ifindex = self.interface(network)?;
            let (&(_, router), _) = self.legs.range((network, 0)..=(network, u32::MAX)).next()?;
            Some(((network, ip), ifindex, router))
        })
    }
}

#[cfg(test)]
pub mod tests {
    use std::net::IpAddr;

    use vrouter_common::tables::*;

    use super::*;

    pub const NETWORK: u32 = 5;
    pub const ROUTER: u32 = 1;
    pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
    const VNI: u32 = 5000;

    pub fn ip(text: &str) -> Ip {
        Ip::from(text.parse::<IpAddr>().expect("an address"))
    }

    /// One external network with one router and addresses of every kind, and a network that is not external.
    pub fn image() -> Image {
        let mut image = Image::default();
        for (network, vni, flags) in
            [(NETWORK, VNI, NETWORK_EXTERNAL), (6, 6000, 0), (7, 7000, NETWORK_EXTERNAL)]
        {
            let value = Network { vni, mtu: 1500, flags };
            image.networks.insert(NetworkKey { network: Scoped::new(0, network) }, value);
            let leg = RouterLeg {
                vni,
                mtu: 1500,
                mac: MAC,
                flags: LEG_EXTERNAL,
                v4: ip("203.0.113.10"),
                v6: ip("2001:db8::10"),
                snat_blocks: 0,
                tunnel_mac: [0; 6],
                zero: 0,
            };
            image.router_legs.insert(RouterLegKey { router: Scoped::new(0, ROUTER), network }, leg);
            for (address, kind, place) in [
                ("203.0.113.10", STATION_ROUTER, PLACE_EVERYWHERE),
                ("203.0.113.50", STATION_FLOATING, PLACE_EVERYWHERE),
                ("203.0.113.51", STATION_FLOATING, PLACE_REMOTE),
                ("203.0.113.60", STATION_PORT, PLACE_LOCAL),
            ] {
                let station = Station { mac: MAC, kind, place, at: 0, owner: ROUTER };
                image.addresses.insert(AddressKey::new(0, network, ip(address)), station);
            }
        }
        image
    }

    pub fn commit(ifindex: u32) -> Commit {
        let mut commit = Commit::default();
        commit.externals[0] = External { ifindex, vni: VNI, flags: 0 };
        commit
    }

    #[test]
    fn only_what_this_node_answers_for_on_its_own_interfaces_is_owned() {
        let outside = Outside::of(&image(), &commit(9), &BTreeSet::new(), &BTreeSet::new());
        let owned: Vec<_> = outside
            .owned(&BTreeSet::new())
            .iter()
            .map(|(&(network, ip), owned)| (network, ip, *owned))
            .collect();
        let of = |router| Owned { mac: MAC, ifindex: 9, router };
        assert_eq!(
            owned,
            [(NETWORK, ip("203.0.113.10"), of(true)), (NETWORK, ip("203.0.113.50"), of(false))]
        );
        assert_eq!(
            (outside.interface(NETWORK), outside.interface(6), outside.interface(7)),
            (Some(9), None, None)
        );
    }

    #[test]
    fn what_is_shared_is_owned_by_the_master() {
        let mut image = image();
        let shared = ip("203.0.113.20");
        let station = Station { mac: MAC, kind: STATION_ROUTER, place: PLACE_SHARED, at: 7, owner: ROUTER };
        image.addresses.insert(AddressKey::new(0, NETWORK, shared), station);
        let outside = Outside::of(&image, &commit(9), &BTreeSet::new(), &BTreeSet::new());
        let owns = |mastered: &[MasterKey]| {
            outside.owned(&mastered.iter().copied().collect()).contains_key(&(NETWORK, shared))
        };
        assert!(owns(&[MasterKey::new(NETWORK, 7, false)]));
        assert!(!owns(&[]));
        assert!(!owns(&[MasterKey::new(NETWORK, 7, true), MasterKey::new(NETWORK, 8, false)]));
    }

    #[test]
    fn requests_come_from_the_router_that_asked_or_another() {
        let outside = Outside::of(&image(), &commit(9), &BTreeSet::new(), &BTreeSet::new());
        let (v4, v6) = (ip("203.0.113.1"), ip("2001:db8::1"));
        assert_eq!(outside.asker(NETWORK, ROUTER, v4), Some((MAC, Ip::V4_UNSPECIFIED)), "another node's");
        assert_eq!(outside.asker(NETWORK, ROUTER, v6), Some((MAC, Ip::link_local_of(MAC))));
        let mut image = image();
        for leg in image.router_legs.values_mut() {
            leg.flags |= LEG_OWNED;
        }
        let outside = Outside::of(&image, &commit(9), &BTreeSet::new(), &BTreeSet::new());
        assert_eq!(outside.asker(NETWORK, ROUTER, v4), Some((MAC, ip("203.0.113.10"))));
        assert_eq!(outside.asker(NETWORK, 77, v4), Some((MAC, ip("203.0.113.10"))), "that router is gone");
        assert_eq!(outside.asker(6, ROUTER, v4), None, "not external");
    }
}
