//! Entries of the flow tables and of the table of fragments.

use std::net::{IpAddr, Ipv4Addr};

use vrouter_common::{
    flow::*,
    tables::{Fragment, FragmentKey, NAME_NETWORK, NAME_NODE, NAME_ROUTER, NAME_RULE},
};

use super::entry::{Entry, Fields, fields};
use crate::{commands::show::View, topology::model::Mac};

/// A leg or a remembered decision.
pub fn entry(view: &View, key: &FlowKey, flow: &Flow) -> Entry {
    let named = |kind: u32, id: u32| (id != 0).then(|| view.name(kind, id));
    let translated = (flow.flags & FLOW_NAT != 0).then(|| {
        let [src, dst] = [flow.src, flow.dst].map(IpAddr::from);
        format!("{src}:{} > {dst}:{}", flow.sport.get(), flow.dport.get())
    });
    let peer = (flow.role != ROLE_NONE).then(|| place(flow.peer_from, flow.peer_zone));
    let flags: Vec<&str> = [
        (FLOW_FRAMES, "frames"),
        (FLOW_NAT, "nat"),
        (FLOW_STATEFUL_OUT, "stateful_out"),
        (FLOW_STATEFUL_IN, "stateful_in"),
        (FLOW_SNAT, "snat"),
    ]
    .into_iter()
    .filter(|(flag, _)| flow.flags & flag != 0)
    .map(|(_, name)| name)
    .collect();
    let value = fields![
        to: match flow.exit {
            EXIT_PORT => "ifindex",
            EXIT_TUNNEL => "node",
            EXIT_EXTERNAL => "hop",
            _ => "unknown",
        },
        target: if flow.exit == EXIT_TUNNEL {
            view.name(NAME_NODE, flow.target)
        } else {
            flow.target.to_string()
        },
        vni: (flow.exit == EXIT_TUNNEL).then_some(flow.vni),
        hops: flow.hops,
        src_mac: Mac(flow.out_macs.src()),
        dst_mac: Mac(flow.out_macs.dst()),
        in_src_mac: Mac(flow.in_macs.src()),
        in_dst_mac: Mac(flow.in_macs.dst()),
        in_vtep: (flow.in_vtep.get() != 0).then(|| Ipv4Addr::from_bits(flow.in_vtep.get())),
        epoch: flow.epoch,
        packets: flow.packets,
        bytes: flow.bytes,
        role: match flow.role {
            ROLE_NONE => "none",
            ROLE_ORIGINAL => "original",
            ROLE_REPLY => "reply",
            _ => "unknown",
        },
        network: named(NAME_NETWORK, flow.network),
        network_out: named(NAME_NETWORK, flow.network_out),
        mtu: flow.mtu,
        flags: flags,
        tcp_flags: tcp_flags(flow.tcp_flags),
        translated: translated,
        peer_in: peer,
        router: named(NAME_ROUTER, flow.router),
        rule: named(NAME_RULE, flow.rule),
        seen: flow.seen,
        created: flow.created,
    ];
    let text = format!(
        "from {} proto {} {}:{} > {}:{}",
        place(key.from, key.zone),
        key.proto,
        IpAddr::from(key.src),
        key.sport.get(),
        IpAddr::from(key.dst),
        key.dport.get()
    );
    let key = fields![
        from: from(key.from),
        zone: key.zone,
        proto: key.proto,
        src: IpAddr::from(key.src),
        sport: key.sport.get(),
        dst: IpAddr::from(key.dst),
        dport: key.dport.get(),
    ];
    Entry { key_text: Some(text), ..Entry::new(key, value) }
}

/// A datagram that comes in pieces.
pub fn fragment(key: &FragmentKey, fragment: &Fragment) -> Entry {
    let key: Fields = fields![
        from: from(key.from),
        zone: key.zone,
        proto: key.proto,
        src: IpAddr::from(key.src),
        dst: IpAddr::from(key.dst),
        id: u32::from_be(key.id),
    ];
    Entry::new(key, fields![sport: fragment.sport.get(), dport: fragment.dport.get(), end: fragment.end])
}

fn from(from: u8) -> &'static str {
    match from {
        FROM_PORT => "ifindex",
        FROM_NETWORK => "vni",
        FROM_BLOCK => "block vni",
        _ => "unknown",
    }
}

fn place(kind: u8, zone: u32) -> String {
    format!("{} {zone}", from(kind))
}

fn tcp_flags(flags: u8) -> Vec<&'static str> {
    use vrouter_common::wire::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
    [(TCP_SYN, "syn"), (TCP_ACK, "ack"), (TCP_FIN, "fin"), (TCP_RST, "rst")]
        .into_iter()
        .filter(|(flag, _)| flags & flag != 0)
        .map(|(_, name)| name)
        .collect()
}
