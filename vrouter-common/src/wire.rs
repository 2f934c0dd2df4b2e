//! Numbers that stand on the wire.
#![allow(missing_docs, reason = "the names are the protocols' own")]

/// Bytes of an Ethernet header.
pub const ETH_LEN: usize = 14;
pub const IPV4_LEN: usize = 20;
pub const IPV6_LEN: usize = 40;
/// ARP for IPv4 over Ethernet.
pub const ARP_LEN: usize = 28;
/// Outer Ethernet + IPv4 + UDP + VXLAN.
pub const OUTER_LEN: usize = 50;
/// What VXLAN over IPv4 takes from the underlay's MTU: outer IPv4 + UDP + VXLAN + inner Ethernet.
pub const OVERLAY_OVERHEAD: u16 = 50;
/// RFC 7348.
pub const VXLAN_PORT: u16 = 4789;
/// The first byte of routers' hardware addresses, and of no other that is made up here: locally administered.
pub const ROUTER_MAC: u8 = 0x0e;

pub const DHCP_SERVER: u16 = 67;
pub const DHCP_CLIENT: u16 = 68;
pub const DHCPV6_SERVER: u16 = 547;
pub const DHCPV6_CLIENT: u16 = 546;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_VLAN: u16 = 0x8100;
pub const ETHERTYPE_QINQ: u16 = 0x88a8;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

pub const PROTO_HOPOPTS: u8 = 0;
pub const PROTO_ICMP: u8 = 1;
pub const PROTO_TCP: u8 = 6;
pub const PROTO_UDP: u8 = 17;
pub const PROTO_ROUTING: u8 = 43;
pub const PROTO_FRAGMENT: u8 = 44;
pub const PROTO_AH: u8 = 51;
pub const PROTO_ICMPV6: u8 = 58;
/// VRRP (RFC 5798).
pub const PROTO_VRRP: u8 = 112;
pub const PROTO_DSTOPTS: u8 = 60;
pub const PROTO_SCTP: u8 = 132;

pub const ICMP_ECHO_REPLY: u8 = 0;
pub const ICMP_UNREACHABLE: u8 = 3;
pub const ICMP_SOURCE_QUENCH: u8 = 4;
pub const ICMP_REDIRECT: u8 = 5;
pub const ICMP_ECHO: u8 = 8;
pub const ICMP_TIME_EXCEEDED: u8 = 11;
pub const ICMP_PARAMETER_PROBLEM: u8 = 12;

pub const ICMPV6_UNREACHABLE: u8 = 1;
pub const ICMPV6_TOO_BIG: u8 = 2;
pub const ICMPV6_TIME_EXCEEDED: u8 = 3;
pub const ICMPV6_PARAMETER_PROBLEM: u8 = 4;
pub const ICMPV6_ECHO: u8 = 128;
pub const ICMPV6_ECHO_REPLY: u8 = 129;
pub const ND_ROUTER_SOLICIT: u8 = 133;
pub const ND_ROUTER_ADVERT: u8 = 134;
pub const ND_NEIGHBOR_SOLICIT: u8 = 135;
pub const ND_NEIGHBOR_ADVERT: u8 = 136;
pub const ND_REDIRECT: u8 = 137;

pub const TCP_FIN: u8 = 1;
pub const TCP_SYN: u8 = 2;
pub const TCP_RST: u8 = 4;
pub const TCP_ACK: u8 = 16;
