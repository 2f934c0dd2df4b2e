//! Stage 3a: is it for a service of this node? (behaviour L8)
//!
//! Reads: the port's binding, the address table. Writes: nothing. Drops: nothing.
//!
//! What a workload sends to a service of its node goes no further: it is handed to the agent, which answers
//! by the port it came from. So nothing of it reaches another port or the underlay, whether the agent answers
//! or not, and whatever hardware address it was sent to. Which services there are for a port is in its
//! binding; where the node has none, such a packet is forwarded as any other.

use crate::{
    addr::{Be16, Ip},
    parse::Headers,
    plan::Plan,
    tables::*,
    wire::*,
};

/// The metadata service's IPv4 address, 169.254.169.254.
pub const METADATA_V4: [u8; 4] = [169, 254, 169, 254];
/// 169.254.169.254 as this crate has addresses.
pub const METADATA_IP_V4: Ip = Ip([0, 0, 0xffff_u32.to_be(), 0xa9fe_a9fe_u32.to_be()]);
/// fe80::a9fe:a9fe
pub const METADATA_IP_V6: Ip = Ip([0xfe80_0000_u32.to_be(), 0, 0, 0xa9fe_a9fe_u32.to_be()]);
/// The lowest TCP port that a node asks a member for its health from (RFC 6335, 6: dynamic ports). Connections of a member to
/// lower ports of its router are none of its answers.
pub const PROBE_PORT_FIRST: u16 = 49152;
/// The metadata service's TCP port.
pub const METADATA_PORT: u16 = 80;

const DHCP: (u16, u16) = (DHCP_CLIENT, DHCP_SERVER);
const DHCPV6: (u16, u16) = (DHCPV6_CLIENT, DHCPV6_SERVER);

/// Whether a packet is for a service.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asked {
    /// It is not.
    #[default]
    Nothing,
    /// It is, if the port's security groups let it out.
    ByRules,
    /// It is, whatever they say: without it a workload has no address.
    Always,
    /// It is, whatever they say: it may be the answer to what the node itself has asked.
    Probed,
}

/// Whether a packet of `plan.binding`'s port, which may send it, is for a service. Fragments are told by their
/// first one's ports, as everywhere: the agent refuses them.
#[inline(always)]
pub fn asked<T: Tables>(tables: &T, headers: &Headers, plan: &Plan) -> Asked {
    let flags = plan.binding.flags;
    if flags & (BINDING_DHCP | BINDING_DHCPV6 | BINDING_METADATA | BINDING_MONITORED) == 0 {
        return Asked::Nothing;
    }
    let ports = (headers.sport.get(), headers.dport.get());
    let icmp = (headers.dport.get() >> 8) as u8;
    match headers.proto {
        PROTO_UDP if !headers.v6 && ports == DHCP && flags & BINDING_DHCP != 0 => Asked::Always,
        PROTO_UDP if headers.v6 && ports == DHCPV6 && flags & BINDING_DHCPV6 != 0 => Asked::Always,
        PROTO_ICMPV6 if headers.v6 && icmp == ND_ROUTER_SOLICIT && flags & BINDING_DHCPV6 != 0 => {
            Asked::Always
        }
        PROTO_TCP if flags & BINDING_METADATA != 0 && is_metadata(headers) => Asked::ByRules,
        PROTO_TCP if ports.1 >= PROBE_PORT_FIRST && is_probed(tables, headers, plan) => Asked::Probed,
        PROTO_ICMP if !headers.v6 && icmp == ICMP_ECHO_REPLY && is_probed(tables, headers, plan) => {
            Asked::Probed
        }
        PROTO_ICMPV6 if headers.v6 && icmp == ICMPV6_ECHO_REPLY && is_probed(tables, headers, plan) => {
            Asked::Probed
        }
        _ => Asked::Nothing,
    }
}

#[inline(always)]
fn is_metadata(headers: &Headers) -> bool {
    headers.dport == Be16::new(METADATA_PORT)
        && headers.dst == if headers.v6 { METADATA_IP_V6 } else { METADATA_IP_V4 }
}

/// Whether it may be the answer of a member that the node asks for its health: to the address of a router on
/// the member's own network, from which nothing else is ever sent to it but answers to its pings.
#[inline(always)]
fn is_probed<T: Tables>(tables: &T, headers: &Headers, plan: &Plan) -> bool {
    let binding = &plan.binding;
    binding.flags & BINDING_MONITORED != 0
        && tables
            .address(&AddressKey::new(plan.bank, binding.network, headers.dst))
            .is_some_and(|station| station.kind == STATION_ROUTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_what_they_are_called() {
        assert_eq!(METADATA_IP_V4, Ip::from(std::net::IpAddr::from(METADATA_V4)));
        assert_eq!(METADATA_IP_V6.to_string(), "fe80::a9fe:a9fe");
    }
}
