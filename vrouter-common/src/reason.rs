//! Why a packet was dropped, and what else is counted. Names, documentation and metrics derive from here.

macro_rules! counted {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $number:literal => $text:literal,)+ }) => {
        $(#[$meta])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[doc = $doc])+ $variant = $number,)+ }

        impl $name {
            /// Every variant, in ascending order of numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];
            /// One more than the largest number: the length of an array of counters.
            pub const COUNT: u32 = {
                let mut i = 1;
                while i < Self::ALL.len() {
                    assert!((Self::ALL[i - 1] as u32) < Self::ALL[i] as u32, "ascending order");
                    i += 1;
                }
                Self::ALL[i - 1] as u32 + 1
            };

            /// The name in output and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// One sentence for people.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

counted! {
    /// Why a packet went no further. The numbers are part of the pinned maps: they are never reused.
    DropReason {
        /// The frame is shorter than its own headers say.
        FrameTruncated = 1 => "frame_truncated",
        /// The source hardware address is zero or a group address.
        EthernetSource = 2 => "ethernet_source",
        /// The frame carries a VLAN tag; ports are untagged.
        VlanTagged = 3 => "vlan_tagged",
        /// Neither ARP, IPv4 nor IPv6.
        EthertypeUnknown = 4 => "ethertype_unknown",
        /// The IPv4 header contradicts itself or the frame.
        Ipv4Malformed = 5 => "ipv4_malformed",
        /// The IPv4 header checksum is wrong.
        Ipv4Checksum = 6 => "ipv4_checksum",
        /// Loose or strict source routing (RFC 7126: drop).
        Ipv4SourceRoute = 7 => "ipv4_source_route",
        /// The IPv6 header contradicts itself or the frame, or carries an IPv4-mapped address.
        Ipv6Malformed = 8 => "ipv6_malformed",
        /// Too many extension headers, or a type 0 routing header (RFC 5095).
        Ipv6Extension = 9 => "ipv6_extension",
        /// The transport header does not fit the packet.
        TransportTruncated = 10 => "transport_truncated",
        /// An ARP packet that is not Ethernet/IPv4 or has an unknown operation.
        ArpMalformed = 11 => "arp_malformed",
        /// A neighbour discovery packet against RFC 4861's validity rules.
        NdMalformed = 12 => "nd_malformed",

        /// The interface is bound to no port of the topology.
        PortUnknown = 16 => "port_unknown",
        /// The source hardware address is neither the port's nor an allowed address pair's.
        SpoofedMac = 17 => "spoofed_mac",
        /// The source address is neither the port's nor an allowed address pair's.
        SpoofedIp = 18 => "spoofed_ip",
        /// An ARP packet that claims an address the port does not have.
        SpoofedArp = 19 => "spoofed_arp",
        /// A neighbour advertisement or solicitation that claims what the port does not have.
        SpoofedNd = 20 => "spoofed_nd",
        /// A workload answers as a DHCP server.
        RogueDhcp = 21 => "rogue_dhcp",
        /// A workload advertises itself as an IPv6 router, or redirects.
        RogueRa = 22 => "rogue_ra",

        /// No station of the network has this destination hardware address.
        MacUnknown = 32 => "mac_unknown",
        /// The destination port has no interface on its node at the moment.
        PortUnplugged = 33 => "port_unplugged",
        /// The destination port is bound to no node.
        PortUnbound = 34 => "port_unbound",
        /// The destination is the port the packet came from.
        Hairpin = 35 => "hairpin",

        /// TTL or hop limit ended at a router.
        TtlExceeded = 48 => "ttl_exceeded",
        /// No route to the destination.
        NoRoute = 49 => "no_route",
        /// A blackhole route.
        RouteBlackhole = 50 => "route_blackhole",
        /// An unreachable route.
        RouteUnreachable = 51 => "route_unreachable",
        /// Nothing on the connected network has the next hop's address.
        NextHopUnknown = 52 => "next_hop_unknown",
        /// More routers in a row than a packet may pass.
        RouterLoop = 53 => "router_loop",
        /// A source or destination that no router forwards.
        Martian = 54 => "martian",
        /// A link-local address cannot cross a router, nor can neighbour discovery.
        LinkLocalRouted = 55 => "link_local_routed",
        /// Multicast or broadcast sent to a router for forwarding.
        MulticastRouted = 56 => "multicast_routed",
        /// Larger than the next network's MTU.
        TooBig = 57 => "too_big",
        /// For the router itself: UDP, where nothing listens.
        RouterPortUnreachable = 58 => "router_port_unreachable",
        /// For the router itself: TCP, refused with a reset.
        RouterRefused = 59 => "router_refused",
        /// For the router itself: a protocol it does not speak.
        RouterProtocol = 60 => "router_protocol",
        /// For the router itself: an ICMP message it has no use for.
        RouterIgnored = 61 => "router_ignored",
        /// The router has no interface where the packet came in (a topology half removed).
        RouterDetached = 62 => "router_detached",

        /// VXLAN from an address that is no known VTEP.
        VtepUnknown = 80 => "vtep_unknown",
        /// VXLAN with a VNI no network has.
        VniUnknown = 81 => "vni_unknown",
        /// A VXLAN header without a valid VNI, or cut short.
        VxlanMalformed = 82 => "vxlan_malformed",
        /// Arrived through a tunnel for a station that is not on this node.
        TunnelMisdelivered = 83 => "tunnel_misdelivered",
        /// No way over the underlay to the other node at the moment.
        UnderlayUnreachable = 84 => "underlay_unreachable",

        /// The kernel would not make room for a header.
        NoRoom = 96 => "no_room",
        /// A map that must have an entry has none: a defect.
        Internal = 97 => "internal",

        /// No rule of the sending port's security groups allows it.
        PolicyEgress = 112 => "policy_egress",
        /// No rule of the receiving port's security groups allows it.
        PolicyIngress = 113 => "policy_ingress",
        /// An ICMP error about no connection that is known.
        IcmpUnrelated = 114 => "icmp_unrelated",
        /// A TCP reset of no connection that is known.
        TcpUnrelated = 115 => "tcp_unrelated",
        /// The table of answered flows is full; live ones are never given up for new ones.
        FlowTableFull = 116 => "flow_table_full",
        /// The flow's entry was given to another while it was read.
        FlowReused = 117 => "flow_reused",

        /// No port of the router's external address is free for this destination.
        SnatExhausted = 120 => "snat_exhausted",
        /// The translated connection would be the same as another.
        NatClash = 121 => "nat_clash",
        /// A protocol or message that cannot share an address.
        NatProtocol = 122 => "nat_protocol",

        /// This node has no interface on the external network.
        ExternalAbsent = 128 => "external_absent",
        /// The next hop on the external network is being resolved, and no more packets can wait for it.
        HopPending = 129 => "next_hop_pending",
        /// The next hop on the external network does not answer.
        HopUnanswered = 130 => "next_hop_unanswered",
        /// No room for one more next hop.
        HopTableFull = 131 => "next_hop_table_full",

        /// A fragment too short to be told what it belongs to, or that would overwrite a transport header.
        FragmentTiny = 136 => "fragment_tiny",
        /// A fragment that overlaps one before it, or came out of order.
        FragmentOverlap = 137 => "fragment_overlap",
        /// A fragment of a datagram whose first fragment was not seen.
        FragmentUnmatched = 138 => "fragment_unmatched",
        /// Fragments of more than 65535 bytes.
        FragmentTooLong = 139 => "fragment_too_long",

        /// For a service of the node, and its port has its share of what the agent has not taken yet.
        ServiceBusy = 144 => "service_busy",
        /// For a service of the node, and too long to be handed to the agent.
        ServiceTooLong = 145 => "service_too_long",
        /// For the address of the node's services, where nothing listens.
        ServiceUnknown = 146 => "service_unknown",
        /// For a service of the node, and more comes from its port than is looked at.
        ServiceRate = 147 => "service_rate",

        /// No member of the pool takes connections at the moment.
        PoolEmpty = 152 => "pool_empty",
        /// The listener, or its load balancer, is administratively down.
        ListenerDown = 153 => "listener_down",
        /// For a VIP: a port on which nothing listens.
        VipClosed = 154 => "vip_closed",
    }
}

counted! {
    /// What is counted besides drops.
    Event {
        /// A packet had no current flow entry and was decided.
        FlowMiss = 0 => "flow_miss",
        /// A decided flow could not be stored (table full or busy); the packet was forwarded all the same.
        FlowNotStored = 1 => "flow_not_stored",
        /// ARP requests answered.
        ArpAnswered = 2 => "arp_answered",
        /// Neighbour solicitations answered.
        NdAnswered = 3 => "nd_answered",
        /// Echo requests to a router answered.
        EchoAnswered = 4 => "echo_answered",
        /// ICMP errors and TCP resets sent for refused packets.
        ErrorSent = 5 => "error_sent",
        /// Frames flooded.
        FrameFlooded = 6 => "frame_flooded",
        /// Packets of the uplink left to the kernel: not ours.
        ToKernel = 7 => "to_kernel",
        /// Frames XDP left to TC.
        XdpPassed = 8 => "xdp_passed",
        /// Connections answered: their flows moved to the table of answered ones.
        FlowAnswered = 9 => "flow_answered",
        /// Packets handed to the agent to wait for a next hop.
        HopQueued = 10 => "next_hop_queued",
        /// ARP requests and neighbour solicitations sent for next hops.
        HopAsked = 11 => "next_hop_asked",
        /// Next hops resolved.
        HopResolved = 12 => "next_hop_resolved",
        /// ICMP errors and resets not sent, there being too many.
        AnswerLimited = 13 => "answer_limited",
        /// Packets handed to the agent to be cut into fragments.
        FragmentQueued = 14 => "fragment_queued",
        /// Packets for a service of the node (DHCP, router solicitations, metadata) handed to the agent.
        ServiceQueued = 15 => "service_queued",
    }
}
