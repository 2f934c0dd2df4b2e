//! A connection in the topology's names, for people and for programs.

use std::net::IpAddr;

use serde::Serialize;
use vrouter_common::{
    flow::{FLOW_NAT, FlowKey},
    tables::{NAME_NETWORK, NAME_ROUTER, NAME_RULE},
    wire::{PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP},
};

use super::{
    legs::{Flows, Leg, Table},
    names::{End, Names},
    state::Standing,
};

/// A connection or a remembered decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// `connection`, `half` (a leg whose other half is gone) or `decision`.
    pub kind: &'static str,
    pub protocol: String,
    pub state: &'static str,
    pub replied: bool,
    pub assured: bool,
    /// Packets of the original direction as they come in.
    pub original: Tuple,
    /// Packets of the replies as they come in.
    pub reply: Option<Tuple>,
    /// Whether the two are not just each other reversed.
    pub translated: bool,
    pub from: End,
    pub to: End,
    pub network: Option<String>,
    pub network_out: Option<String>,
    /// The router that translates.
    pub router: Option<String>,
    /// The rule that allowed it.
    pub rule: Option<String>,
    pub original_packets: u64,
    pub original_bytes: u64,
    pub reply_packets: u64,
    pub reply_bytes: u64,
    pub age_seconds: u64,
    pub idle_seconds: u64,
    pub timeout_seconds: u64,
    pub table: Table,
}

/// Addresses and ports, or what stands in their place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tuple {
    pub src: IpAddr,
    pub dst: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    #[serde(rename = "code", skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u16>,
}

/// A protocol's name, as `conntrack` has them.
pub fn protocol(proto: u8) -> Option<&'static str> {
    Some(match proto {
        PROTO_TCP => "tcp",
        PROTO_UDP => "udp",
        PROTO_ICMP => "icmp",
        PROTO_ICMPV6 => "icmpv6",
        PROTO_SCTP => "sctp",
        33 => "dccp",
        47 => "gre",
        136 => "udplite",
        _ => return None,
    })
}

/// Whether a protocol's ports are in the key.
pub fn has_ports(key: &FlowKey) -> bool {
    !matches!(key.proto, PROTO_ICMP | PROTO_ICMPV6) && key.sport.get() | key.dport.get() != 0
}

impl Tuple {
    /// Of a key.
    pub fn new(key: &FlowKey) -> Self {
        let mut tuple = Self {
            src: key.src.into(),
            dst: key.dst.into(),
            sport: None,
            dport: None,
            icmp_type: None,
            icmp_code: None,
            id: None,
        };
        if matches!(key.proto, PROTO_ICMP | PROTO_ICMPV6) {
            let [kind, code] = key.dport.get().to_be_bytes();
            (tuple.icmp_type, tuple.icmp_code) = (Some(kind), Some(code));
            tuple.id = Some(key.sport.get());
        } else if has_ports(key) {
            (tuple.sport, tuple.dport) = (Some(key.sport.get()), Some(key.dport.get()));
        }
        tuple
    }

    /// The source with its port.
    pub fn source(&self) -> String {
        endpoint(self.src, self.sport)
    }

    /// The destination with its port.
    pub fn destination(&self) -> String {
        endpoint(self.dst, self.dport)
    }

    /// For people.
    pub fn for_people(&self) -> String {
        let way = format!("{} > {}", self.source(), self.destination());
        match (self.icmp_type, self.icmp_code, self.id) {
            (Some(kind), Some(code), Some(id)) => format!("{way} type {kind} code {code} id {id}"),
            _ => way,
        }
    }
}

fn endpoint(address: IpAddr, port: Option<u16>) -> String {
    match (address, port) {
        (_, None) => address.to_string(),
        (IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
        (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
    }
}

impl Row {
    /// Puts names to it.
    pub fn new(flows: &Flows, standing: &Standing, names: &Names) -> Self {
        let first = flows.first();
        let (from, to) = match (flows.original(), flows.reply()) {
            (Some(original), _) => {
                (names.source(&original.key, &original.flow), names.destination(&original.flow))
            }
            // Seen from its other end.
            (None, Some(reply)) => (names.destination(&reply.flow), names.source(&reply.key, &reply.flow)),
            (None, None) => (End::default(), End::default()),
        };
        let (network, network_out) = match flows.original() {
            Some(original) => (original.flow.network, original.flow.network_out),
            None => (first.flow.network_out, first.flow.network),
        };
        let packets = |leg: Option<&Leg>| leg.map_or((0, 0), |leg| (leg.flow.packets, leg.flow.bytes));
        let (original_packets, original_bytes) = packets(flows.original());
        let (reply_packets, reply_bytes) = packets(flows.reply());
        let key = flows.original_key();
        Self {
            kind: match flows {
                Flows::Connection { .. } => "connection",
                Flows::Half(_) => "half",
                Flows::Decision(_) => "decision",
            },
            protocol: protocol(key.proto).map_or_else(|| key.proto.to_string(), str::to_owned),
            state: standing.state.name(),
            replied: standing.replied,
            assured: standing.assured,
            original: Tuple::new(&key),
            reply: flows.is_tracked().then(|| Tuple::new(&flows.reply_key())),
            translated: first.flow.flags & FLOW_NAT != 0,
            from,
            to,
            network: names.name(NAME_NETWORK, network),
            network_out: names.name(NAME_NETWORK, network_out),
            router: names.name(NAME_ROUTER, first.flow.router),
            rule: names.name(NAME_RULE, first.flow.rule),
            original_packets,
            original_bytes,
            reply_packets,
            reply_bytes,
            age_seconds: standing.age.as_secs(),
            idle_seconds: standing.idle.as_secs(),
            timeout_seconds: standing.remaining().as_secs(),
            table: first.table,
        }
    }

    /// What translation makes of the original direction: only what differs.
    pub fn translation(&self) -> String {
        let Some(reply) = self.reply.as_ref().filter(|_| self.translated) else { return String::new() };
        let mut changes = Vec::new();
        if (reply.dst, reply.dport) != (self.original.src, self.original.sport) {
            changes.push(format!("src {}", reply.destination()));
        }
        if (reply.src, reply.sport) != (self.original.dst, self.original.dport) {
            changes.push(format!("dst {}", reply.source()));
        }
        if reply.id != self.original.id {
            changes.push(format!("id {}", reply.id.unwrap_or(0)));
        }
        changes.join(" ")
    }
}
