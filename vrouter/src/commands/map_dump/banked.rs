//! The tables of a compiled topology, one bank of them.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use vrouter_common::{addr::Ip, tables::*};

use super::{
    Tell,
    entry::{Entry, Fields, fields},
};
use crate::{
    commands::show::{View, acl, prefix, route_kind},
    topology::model::Mac,
};

/// Tells of the entries of a table.
pub fn entries(view: &View, name: &str, tell: Tell) -> Result<()> {
    let image = &view.image;
    let network = |id: u32| view.name(NAME_NETWORK, id);
    let port = |id: u32| view.name(NAME_PORT, id);
    let router = |id: u32| view.name(NAME_ROUTER, id);
    let node = |id: u32| view.name(NAME_NODE, id);
    let address = |ip: Ip| (ip != Ip::UNSPECIFIED).then(|| IpAddr::from(ip));
    let station = |station: &Station| -> Fields {
        let (kind, owner) = match station.kind {
            STATION_ROUTER => ("router", router(station.owner)),
            STATION_FLOATING => ("floating_ip_of_router", router(station.owner)),
            STATION_SERVICE => ("services", "of every node".to_owned()),
            STATION_VIP => ("vip_of_router", router(station.owner)),
            STATION_MEMBER => ("pool_member_of_router", router(station.owner)),
            _ => ("port", port(station.owner)),
        };
        fields![kind: kind, owner: owner, mac: Mac(station.mac), at: view.place(station)]
    };
    let mut tell = |key: Fields, value: Fields| tell(Entry::new(key, value));
    match name {
        "BINDINGS" => image.bindings.iter().try_for_each(|(key, binding)| {
            tell(
                fields![ifindex: key.ifindex.id()],
                fields![
                    port: port(binding.port),
                    network: network(binding.network),
                    vni: binding.vni,
                    mtu: binding.mtu,
                    mac: Mac(binding.mac),
                    security: binding.flags & BINDING_NO_SECURITY == 0,
                    policy: (binding.policy != 0).then(|| view.name(NAME_POLICY, binding.policy)),
                ],
            )
        }),
        "NETWORKS" => image.networks.iter().try_for_each(|(key, value)| {
            let external = value.flags & NETWORK_EXTERNAL != 0;
            tell(
                fields![network: network(key.network.id())],
                fields![vni: value.vni, mtu: value.mtu, external: external],
            )
        }),
        "VNIS" => image
            .vnis
            .iter()
            .try_for_each(|(key, &id)| tell(fields![vni: key.vni.id()], fields![network: network(id)])),
        "VTEPS" => image.vteps.iter().try_for_each(|(key, &id)| {
            tell(fields![vtep: Ipv4Addr::from_bits(key.addr.get())], fields![node: node(id)])
        }),
        "FDB" => image.stations().try_for_each(|(key, value)| {
            tell(fields![network: network(key.network.id()), mac: Mac(key.mac)], station(value))
        }),
        "ADDRESSES" => image.addresses.iter().try_for_each(|(key, value)| {
            tell(fields![network: network(key.network.id()), address: IpAddr::from(key.ip)], station(value))
        }),
        "ALLOWED" => image.allowed.keys().try_for_each(|key| {
            let range = prefix(key.ip, key.prefix_len.saturating_sub(AllowedKey::FIXED_BITS));
            tell(fields![port: port(key.port.id()), mac: Mac(key.mac), source: range], fields![allowed: true])
        }),
        "ROUTES" => image.routes.iter().try_for_each(|(key, route)| {
            let to = prefix(key.dst, key.prefix_len.saturating_sub(RouteKey::FIXED_BITS));
            tell(
                fields![router: router(key.router.id()), destination: to],
                fields![
                    kind: route_kind(route.kind),
                    nexthop: address(route.nexthop).filter(|_| route.kind == ROUTE_VIA),
                    network: (route.network != 0 && route.kind != ROUTE_MULTI).then(|| network(route.network)),
                    group: (route.kind == ROUTE_MULTI).then_some(route.network),
                ],
            )
        }),
        "ROUTER_LEGS" => image.router_legs.iter().try_for_each(|(key, leg)| {
            tell(
                fields![router: router(key.router.id()), network: network(key.network)],
                fields![
                    mac: Mac(leg.mac),
                    v4: address(leg.v4),
                    v6: address(leg.v6),
                    vni: leg.vni,
                    mtu: leg.mtu,
                    external: leg.flags & LEG_EXTERNAL != 0,
                    snat: leg.flags & LEG_SNAT != 0,
                    owned: leg.flags & LEG_OWNED != 0,
                    snat_blocks: (leg.snat_blocks != 0).then_some(leg.snat_blocks),
                ],
            )
        }),
        "FLOODS" => image.floods.iter().try_for_each(|(key, flood)| {
            let remote = key.cursor >= FLOOD_REMOTE;
            tell(
                fields![network: network(key.network.id()), cursor: key.cursor],
                fields![
                    node: remote.then(|| node(flood.at)),
                    ifindex: (!remote).then_some(flood.at),
                    next: (flood.next != FLOOD_END).then_some(flood.next),
                ],
            )
        }),
        "NAT" => image.nat.iter().try_for_each(|(key, nat)| {
            let forwarding = key.proto != 0;
            tell(
                fields![
                    network: network(key.network.id()),
                    address: IpAddr::from(key.ip),
                    proto: forwarding.then_some(key.proto),
                    outside_port: forwarding.then_some(key.port.get()),
                ],
                fields![
                    inside: IpAddr::from(nat.inside),
                    inside_port: forwarding.then_some(nat.inside_port.get()),
                    router: router(nat.router),
                    port: port(nat.port),
                    node: if nat.node == 0 { "here".to_owned() } else { node(nat.node) },
                    mac: Mac(nat.mac),
                ],
            )
        }),
        "FLOATING" => image.floating.iter().try_for_each(|(key, floating)| {
            tell(
                fields![router: router(key.router.id()), fixed_ip: IpAddr::from(key.ip)],
                fields![floating_ip: IpAddr::from(floating.ip)],
            )
        }),
        "SNAT_BLOCKS" => image.snat_blocks.iter().try_for_each(|(key, block)| {
            tell(
                fields![router: router(key.router.id()), network: network(key.network), slot: key.slot],
                fields![first: block.first, last: block.last],
            )
        }),
        "SNAT_OWNERS" => image.snat_owners.iter().try_for_each(|(key, owner)| {
            let first = key.block * SNAT_BLOCK;
            tell(
                fields![
                    network: network(key.network.id()),
                    address: Ipv4Addr::from_bits(key.ip.get()),
                    block: key.block,
                ],
                fields![
                    ports: format!("{first}-{}", first + (SNAT_BLOCK - 1)),
                    node: node(owner.node),
                    mac: Mac(owner.mac),
                ],
            )
        }),
        "GATEWAYS" => image.gateways.iter().try_for_each(|(key, &id)| {
            tell(fields![network: network(key.network.id()), slot: key.slot], fields![node: node(id)])
        }),
        "MEMBERS" => image.members.iter().try_for_each(|(key, member)| {
            tell(
                fields![group: view.name(NAME_GROUP, key.group.id()), slot: key.slot],
                fields![network: network(member.network), nexthop: IpAddr::from(member.nexthop)],
            )
        }),
        "LISTENERS" => image.listeners.iter().try_for_each(|(key, listener)| {
            tell(
                fields![
                    network: network(key.network.id()),
                    vip: IpAddr::from(key.ip),
                    proto: key.proto,
                    port: key.port.get(),
                ],
                fields![
                    listener: view.name(NAME_LISTENER, listener.number),
                    pool: view.name(NAME_POOL, listener.pool),
                    slots: listener.slots,
                    down: listener.flags & LISTENER_DOWN != 0,
                    source_ip: listener.flags & LISTENER_SOURCE_IP != 0,
                    router: view.name(NAME_ROUTER, listener.router),
                ],
            )
        }),
        "POOL_SLOTS" => image.pools.values().flat_map(|pool| &pool.slots).try_for_each(|(key, slots)| {
            let member = |slot: &Slot| (slot.member != SLOT_NOBODY).then_some(slot.member);
            let other = |slot: &Slot| (slot.other != SLOT_NOBODY).then_some(slot.other & !SLOT_LEAVES);
            tell(
                fields![
                    pool: view.name(NAME_POOL, key.pool.id()),
                    first: key.chunk * SLOTS_IN_CHUNK,
                ],
                fields![
                    members: slots.0.iter().map(member).collect::<Vec<_>>(),
                    others: slots.0.iter().map(other).collect::<Vec<_>>(),
                ],
            )
        }),
        "POOL_MEMBERS" => image.pools.values().flat_map(|pool| &pool.members).try_for_each(|(key, member)| {
            tell(
                fields![pool: view.name(NAME_POOL, key.pool.id()), index: key.index],
                fields![
                    member: view.name(NAME_MEMBER, member.number),
                    address: IpAddr::from(member.ip),
                    port: member.port.get(),
                    network: network(member.network),
                    up: member.flags & MEMBER_UP != 0,
                    down: member.flags & MEMBER_DOWN != 0,
                    lost: member.flags & MEMBER_LOST != 0,
                    mac: Mac(member.mac),
                ],
            )
        }),
        "MEMBERS_AT" => image.pools.values().flat_map(|pool| &pool.members_at).try_for_each(|(key, &index)| {
            tell(
                fields![
                    pool: view.name(NAME_POOL, key.pool.id()),
                    at: IpAddr::from(key.ip),
                    port: key.port.get(),
                ],
                fields![index: index],
            )
        }),
        "CLASSES" => image.classes.iter().try_for_each(|(key, &class)| {
            let range = prefix(key.ip, key.prefix_len.saturating_sub(ClassKey::FIXED_BITS));
            tell(fields![remote: range], fields![class: class, name: view.name(NAME_CLASS, class)])
        }),
        "RULES" => image.rules.iter().try_for_each(|(key, rule)| {
            let ports = acl::port_range(key);
            tell(
                fields![
                    policy: view.name(NAME_POLICY, key.policy.id()),
                    direction: acl::direction(key),
                    family: acl::family(key),
                    class: (key.class != 0).then(|| view.name(NAME_CLASS, key.class)),
                    proto: (key.prefix_len >= RuleKey::PROTO_BITS).then_some(key.proto),
                    first: ports.map(|(first, _)| first),
                    last: ports.map(|(_, last)| last),
                ],
                fields![rule: view.name(NAME_RULE, rule.rule), stateful: rule.flags & RULE_STATEFUL != 0],
            )
        }),
        _ => Ok(()),
    }
}
