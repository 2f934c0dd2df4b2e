//! A connection as `conntrack -L` prints it with `nf_conntrack_acct` on (libnetfilter_conntrack,
//! `snprintf_default.c`), for tools that read that.

use std::fmt::Write;

use vrouter_common::{
    flow::FlowKey,
    wire::{PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP},
};

use super::{
    legs::{Flows, Leg},
    row::protocol,
    state::Standing,
};

/// The line. `zone`: the VNI of the network it came in on. `None`: it is no connection.
pub fn line(flows: &Flows, standing: &Standing, zone: u32) -> Option<String> {
    if !flows.is_tracked() {
        return None;
    }
    let original = flows.original_key();
    let name = protocol(original.proto).unwrap_or("unknown");
    let mut out = format!("{name:<8} {} {} ", original.proto, standing.remaining().as_secs());
    // Writing to a string cannot fail.
    if original.proto == PROTO_TCP {
        let state = if matches!(flows, Flows::Half(_)) { "NONE" } else { standing.state.name() };
        let _ = write!(out, "{state} ");
    }
    direction(&mut out, &original, flows.original());
    if !standing.replied {
        out += "[UNREPLIED] ";
    }
    direction(&mut out, &flows.reply_key(), flows.reply());
    if standing.assured {
        out += "[ASSURED] ";
    }
    let _ = write!(out, "mark=0 zone={zone} use=1");
    Some(out)
}

fn direction(out: &mut String, key: &FlowKey, leg: Option<&Leg>) {
    let [src, dst] = [key.src, key.dst].map(std::net::IpAddr::from);
    let _ = write!(out, "src={src} dst={dst} ");
    match key.proto {
        PROTO_TCP | PROTO_UDP | PROTO_SCTP => {
            let _ = write!(out, "sport={} dport={} ", key.sport.get(), key.dport.get());
        }
        PROTO_ICMP | PROTO_ICMPV6 => {
            let [kind, code] = key.dport.get().to_be_bytes();
            let _ = write!(out, "type={kind} code={code} id={} ", key.sport.get());
        }
        _ => {}
    }
    let (packets, bytes) = leg.map_or((0, 0), |leg| (leg.flow.packets, leg.flow.bytes));
    let _ = write!(out, "packets={packets} bytes={bytes} ");
}
