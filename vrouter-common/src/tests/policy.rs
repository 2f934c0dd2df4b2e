//! Security groups (behaviours P1-P5).

use core::net::IpAddr;

use super::{fixture::*, world::*};
use crate::{
    addr::Be16,
    flow::ROLE_NONE,
    memory::{Entry, Verdict},
    policy,
    reason::DropReason,
    tables::*,
    wire::*,
};

/// A rule for a host, in the packets' family.
#[derive(Clone, Copy, Debug)]
struct Allow {
    host: Host,
    direction: u8,
    class: u32,
    proto: u8,
    /// Destination port or ICMP type and code, and how many bits of it count.
    port: (u16, u32),
    flags: u32,
}

const OUT: u8 = 0;
const IN: u8 = RULE_INGRESS;

impl Allow {
    fn any(host: Host, direction: u8, flags: u32) -> Self {
        Self { host, direction, class: 0, proto: 0, port: (0, 0), flags }
    }

    fn port(host: Host, direction: u8, proto: u8, port: u16, flags: u32) -> Self {
        Self { host, direction, class: 0, proto, port: (port, 16), flags }
    }

    fn key(&self, f: Family) -> RuleKey {
        let prefix_len = if self.proto == 0 { RuleKey::ANY_BITS } else { RuleKey::PROTO_BITS + self.port.1 };
        RuleKey {
            prefix_len,
            policy: Scoped::new(0, self.host.ifindex),
            class: self.class,
            direction: self.direction | if f == Family::V6 { RULE_V6 } else { 0 },
            proto: self.proto,
            port: Be16::new(self.port.0),
        }
    }
}

fn allow(world: &mut World, f: Family, rule: Allow) {
    for tables in &mut world.nodes {
        tables.image.rules.insert(rule.key(f), Rule { rule: rule.host.ifindex, flags: rule.flags });
    }
}

fn revoke(world: &mut World, f: Family, rule: Allow) {
    for tables in &mut world.nodes {
        tables.image.rules.remove(&rule.key(f)).expect("no such rule");
    }
    decide_again(world);
}

fn decide_again(world: &mut World) {
    for tables in &mut world.nodes {
        tables.commit.epoch += 2;
        for network in [A, B, C, PUBLIC] {
            tables.revisions.insert(network, tables.commit.epoch);
        }
    }
}

/// Every host its own policy, with no rules.
fn closed() -> World {
    let mut world = World::new(0);
    for tables in &mut world.nodes {
        tables.image.rules.clear();
        for (key, binding) in &mut tables.image.bindings {
            binding.policy = key.ifindex.id();
        }
    }
    world
}

/// A class of remote addresses: `len` in the family's own terms.
fn class(world: &mut World, prefix: IpAddr, len: u32, class: u32) {
    let bits = if prefix.is_ipv4() { len + 96 } else { len };
    let key =
        ClassKey { prefix_len: ClassKey::FIXED_BITS + bits, bank: Scoped::new(0, 0), ip: prefix.into() };
    for tables in &mut world.nodes {
        tables.image.classes.insert(key, class);
    }
}

/// What becomes of a packet from a host to another's fixed IP.
fn try_send(world: &World, f: Family, from_host: Host, to: Host, l4: L4) -> Result<Vec<u8>, DropReason> {
    let frame = from(f, End::Inside(from_host), to.ip(f)).l4(l4).frame();
    match world.send(End::Inside(from_host), &frame) {
        Arrived::Port(host, frame) => {
            assert_eq!(host, to);
            Ok(frame)
        }
        Arrived::Else(_, Verdict::Dropped(reason)) => Err(reason),
        other => panic!("{other:?}"),
    }
}

fn tcp(sport: u16, dport: u16, flags: u8) -> L4 {
    L4::Tcp { sport, dport, seq: 1, ack: 1, flags, payload: vec![1, 2, 3] }
}

fn udp(sport: u16, dport: u16) -> L4 {
    L4::Udp { sport, dport, payload: vec![1, 2, 3] }
}

fn proto_icmp(f: Family) -> u8 {
    if f == Family::V4 { PROTO_ICMP } else { PROTO_ICMPV6 }
}

fn echo(f: Family, reply: bool) -> L4 {
    let kind = match (f, reply) {
        (Family::V4, false) => ICMP_ECHO,
        (Family::V4, true) => ICMP_ECHO_REPLY,
        (Family::V6, false) => ICMPV6_ECHO,
        (Family::V6, true) => ICMPV6_ECHO_REPLY,
    };
    L4::Icmp { kind, code: 0, rest: [1, 2, 0, 1], payload: vec![1, 2, 3] }
}

/// A client and a server: on one network and across a router, on one node and two.
const PAIRS: [(Host, Host); 4] = [(A2, A5), (A2, A4), (A2, C1), (C1, A4)];

#[test]
fn p1_a_port_receives_nothing_without_a_rule_and_sends_nothing_without_one() {
    for f in BOTH {
        for (client, server) in PAIRS {
            let mut world = closed();
            let kinds = [tcp(1500, 80, TCP_SYN), tcp(1500, 80, TCP_ACK), udp(1500, 80), echo(f, false)];
            for l4 in &kinds {
                let refused = try_send(&world, f, client, server, l4.clone());
                assert_eq!(refused, Err(DropReason::PolicyEgress));
            }
            allow(&mut world, f, Allow::any(client, OUT, RULE_STATEFUL));
            for l4 in kinds {
                let refused = try_send(&world, f, client, server, l4);
                assert_eq!(refused, Err(DropReason::PolicyIngress));
            }
        }
    }
}

#[test]
fn p1_answers_pass_and_nothing_else_does() {
    for f in BOTH {
        for (client, server) in PAIRS {
            for (ask, answer, proto, port) in [
                (tcp(1500, 80, TCP_SYN), tcp(80, 1500, TCP_SYN | TCP_ACK), PROTO_TCP, 80),
                (udp(1500, 53), udp(53, 1500), PROTO_UDP, 53),
                (echo(f, false), echo(f, true), proto_icmp(f), if f == Family::V4 { 0x0800 } else { 0x8000 }),
            ] {
                let mut world = closed();
                allow(&mut world, f, Allow::any(client, OUT, RULE_STATEFUL));
                allow(&mut world, f, Allow::port(server, IN, proto, port, RULE_STATEFUL));
                // Nobody has asked.
                let refused = try_send(&world, f, server, client, answer.clone());
                assert_eq!(refused, Err(DropReason::PolicyEgress), "{proto}");
                for _ in 0..3 {
                    try_send(&world, f, client, server, ask.clone()).unwrap();
                    try_send(&world, f, server, client, answer.clone()).unwrap();
                }
                // From another port, or by another protocol.
                let others = [tcp(81, 1500, TCP_ACK), udp(81, 1500), udp(53, 1501)];
                for other in others {
                    let refused = try_send(&world, f, server, client, other);
                    assert_eq!(refused, Err(DropReason::PolicyEgress));
                }
                // With all that may be sent, it still is not received.
                allow(&mut world, f, Allow::any(server, OUT, RULE_STATEFUL));
                decide_again(&mut world);
                let refused = try_send(&world, f, server, client, udp(81, 1500));
                assert_eq!(refused, Err(DropReason::PolicyIngress));
                try_send(&world, f, server, client, answer).unwrap();
                let rule = |node: usize, flag: u32| {
                    let (answered, _) = legs(&world.nodes[node]);
                    assert!(answered.iter().all(|leg| leg.1.rule == flag), "the rule that allowed it");
                };
                if client.node != server.node {
                    rule(client.node, client.ifindex);
                    rule(server.node, server.ifindex);
                }
            }
        }
    }
}

/// An ICMP error about a packet that was received.
fn error_about(f: Family, received: &[u8]) -> L4 {
    let head = if f == Family::V4 { IPV4_LEN } else { IPV6_LEN };
    let kind = if f == Family::V4 { ICMP_UNREACHABLE } else { ICMPV6_UNREACHABLE };
    let code = if f == Family::V4 { 3 } else { 4 };
    let payload = received[ETH_LEN..ETH_LEN + head + 8].to_vec();
    L4::Icmp { kind, code, rest: [0; 4], payload }
}

#[test]
fn p1_errors_about_a_connection_pass_and_others_do_not() {
    for f in BOTH {
        for (client, server) in PAIRS {
            let mut world = closed();
            allow(&mut world, f, Allow::any(client, OUT, RULE_STATEFUL));
            allow(&mut world, f, Allow::port(server, IN, PROTO_UDP, 53, RULE_STATEFUL));
            let received = try_send(&world, f, client, server, udp(1500, 53)).unwrap();
            // Neither end has a rule for ICMP.
            let error = error_about(f, &received);
            let got = try_send(&world, f, server, client, error.clone()).unwrap();
            assert_eq!(read(&got).l4[8..], received[ETH_LEN..ETH_LEN + read(&got).l4.len() - 8]);
            // Still unanswered: an error is no answer.
            assert_eq!(connections(&world.nodes[client.node]), (0, 1));
            // About another connection, about the same but sent to somebody else, cut shorter.
            let mut about = received.clone();
            let port_at = if f == Family::V4 { 34 } else { 54 };
            about[port_at + 1] ^= 1;
            let unrelated = error_about(f, &about);
            let refused = try_send(&world, f, server, client, unrelated.clone());
            assert_eq!(refused, Err(DropReason::PolicyEgress));
            let mut short = error.clone();
            if let L4::Icmp { payload, .. } = &mut short {
                payload.truncate(payload.len() - 1);
            }
            assert_eq!(try_send(&world, f, server, client, short), Err(DropReason::PolicyEgress));
            // A rule that keeps connections does not let an error about none of them through.
            let icmp = Allow { port: (0, 0), ..Allow::port(server, OUT, proto_icmp(f), 0, RULE_STATEFUL) };
            allow(&mut world, f, icmp);
            decide_again(&mut world);
            let refused = try_send(&world, f, server, client, unrelated.clone());
            assert_eq!(refused, Err(DropReason::IcmpUnrelated));
            // One that keeps none does.
            allow(&mut world, f, Allow { flags: 0, ..icmp });
            allow(&mut world, f, Allow { host: client, direction: IN, flags: 0, ..icmp });
            try_send(&world, f, server, client, unrelated).unwrap();
        }
    }
}

#[test]
fn p2_rules_match_protocol_ports_types_and_remotes() {
    for f in BOTH {
        let icmp = proto_icmp(f);
        let (request, other) = if f == Family::V4 { (0x0800, 0x0d00) } else { (0x8000, 0x8b00) };
        // Ports 80-87: three bits less; type alone: eight bits less.
        let cases = [
            (PROTO_TCP, (80, 13), PROTO_TCP, vec![80, 83, 87], vec![79, 88, 0, 65535]),
            (PROTO_TCP, (0, 0), PROTO_TCP, vec![0, 1, 80, 65535], vec![]),
            (PROTO_UDP, (53, 16), PROTO_UDP, vec![53], vec![52, 54]),
            (PROTO_TCP, (53, 16), PROTO_UDP, vec![], vec![53]),
            (0, (0, 0), PROTO_UDP, vec![1, 53], vec![]),
            (icmp, (request, 16), icmp, vec![request], vec![request + 1, other]),
            (icmp, (request, 8), icmp, vec![request, request + 3], vec![other]),
            (icmp, (0, 0), icmp, vec![request, other], vec![]),
        ];
        for (proto, port, sent_as, pass, refused) in cases {
            let mut world = closed();
            allow(&mut world, f, Allow::any(A2, OUT, RULE_STATEFUL));
            allow(&mut world, f, Allow { proto, port, ..Allow::any(C1, IN, RULE_STATEFUL) });
            let l4 = |port: u16| match sent_as {
                PROTO_TCP => tcp(1500, port, TCP_SYN),
                PROTO_UDP => udp(1500, port),
                _ => L4::Icmp {
                    kind: (port >> 8) as u8,
                    code: port as u8,
                    rest: [0, 1, 0, 1],
                    payload: vec![0; 16],
                },
            };
            for port in pass {
                try_send(&world, f, A2, C1, l4(port)).unwrap();
            }
            for port in refused {
                assert_eq!(try_send(&world, f, A2, C1, l4(port)), Err(DropReason::PolicyIngress), "{port}");
            }
            // A rule is of one family.
            let other = if f == Family::V4 { Family::V6 } else { Family::V4 };
            allow(&mut world, other, Allow::any(A2, OUT, RULE_STATEFUL));
            let refused = try_send(&world, other, A2, C1, udp(1500, 53));
            assert_eq!(refused, Err(DropReason::PolicyIngress));
        }
    }
}

#[test]
fn p2_p3_remotes_are_classes_and_follow_their_members() {
    for f in BOTH {
        for (client, server) in PAIRS {
            let mut world = closed();
            allow(&mut world, f, Allow::any(client, OUT, RULE_STATEFUL));
            allow(&mut world, f, Allow { class: 7, ..Allow::any(server, IN, RULE_STATEFUL) });
            let try_it = |world: &World| try_send(world, f, client, server, udp(1500, 53)).map(|_| ());
            assert_eq!(try_it(&world), Err(DropReason::PolicyIngress));
            // Its subnet is in another class; itself in the right one; then no more.
            class(&mut world, ip(f, client.network, 0), subnet_len(f), 6);
            decide_again(&mut world);
            assert_eq!(try_it(&world), Err(DropReason::PolicyIngress));
            class(&mut world, client.ip(f), full(client.ip(f)), 7);
            assert_eq!(try_it(&world), Ok(()), "at once");
            assert_eq!(try_it(&world), Ok(()));
            try_send(&world, f, server, client, udp(53, 1500)).unwrap();
            class(&mut world, client.ip(f), full(client.ip(f)), 6);
            decide_again(&mut world);
            assert_eq!(try_it(&world), Err(DropReason::PolicyIngress), "a live flow, too");
            // And the answers of what was allowed by it.
            let refused = try_send(&world, f, server, client, udp(53, 1500));
            assert_eq!(refused, Err(DropReason::PolicyIngress));
        }
        // Egress: the remote is the destination.
        let mut world = closed();
        class(&mut world, C1.ip(f), full(C1.ip(f)), 7);
        allow(&mut world, f, Allow { class: 7, ..Allow::any(A2, OUT, RULE_STATEFUL) });
        for host in [C1, A5] {
            allow(&mut world, f, Allow::any(host, IN, RULE_STATEFUL));
        }
        try_send(&world, f, A2, C1, udp(1500, 53)).unwrap();
        assert_eq!(try_send(&world, f, A2, A5, udp(1500, 53)), Err(DropReason::PolicyEgress));
    }
}

#[test]
fn p3_a_rule_that_is_revoked_ends_what_it_allowed_both_ways() {
    for f in BOTH {
        for (client, server) in PAIRS {
            for at_client in [true, false] {
                // Whoever speaks next.
                for client_first in [true, false] {
                    let mut world = closed();
                    let out = Allow::any(client, OUT, RULE_STATEFUL);
                    let into = Allow::port(server, IN, PROTO_TCP, 80, RULE_STATEFUL);
                    allow(&mut world, f, out);
                    allow(&mut world, f, into);
                    let ask = |world: &World| {
                        try_send(world, f, client, server, tcp(1500, 80, TCP_ACK)).map(|_| ())
                    };
                    let answer = |world: &World| {
                        try_send(world, f, server, client, tcp(80, 1500, TCP_ACK)).map(|_| ())
                    };
                    for _ in 0..2 {
                        ask(&world).unwrap();
                        answer(&world).unwrap();
                    }
                    // A change that does not concern it.
                    decide_again(&mut world);
                    ask(&world).unwrap();
                    answer(&world).unwrap();
                    let (rule, reason) = if at_client {
                        (out, DropReason::PolicyEgress)
                    } else {
                        (into, DropReason::PolicyIngress)
                    };
                    revoke(&mut world, f, rule);
                    for n in 0..4 {
                        let got = if (n % 2 == 0) == client_first { ask(&world) } else { answer(&world) };
                        assert_eq!(got, Err(reason), "{client_first} {n}");
                    }
                    // Allowed again, it goes on.
                    allow(&mut world, f, rule);
                    ask(&world).unwrap();
                    answer(&world).unwrap();
                }
            }
        }
    }
}

#[test]
fn p4_the_receiving_port_is_asked_for_what_other_nodes_send() {
    for f in BOTH {
        let mut world = closed();
        allow(&mut world, f, Allow::port(A4, IN, PROTO_UDP, 53, RULE_STATEFUL));
        // Another node's packet, whatever was checked there.
        let inner = from(f, End::Inside(A2), A4.ip(f)).l4(udp(1500, 54)).frame();
        let mut outer = vxlan([192, 0, 2, 1], 1000 + A, &inner);
        outer[30..34].copy_from_slice(&[192, 0, 2, 2]);
        fix_ipv4(&mut outer);
        let verdict = run(&world.nodes[1], Entry::Uplink, &outer);
        assert_eq!(verdict, Verdict::Dropped(DropReason::PolicyIngress));
        // In the middle of a connection that nobody here remembers: as rules say.
        allow(&mut world, f, Allow::any(A2, OUT, RULE_STATEFUL));
        let refused = try_send(&world, f, A2, A4, tcp(1500, 80, TCP_ACK));
        assert_eq!(refused, Err(DropReason::PolicyIngress));
        allow(&mut world, f, Allow::port(A4, IN, PROTO_TCP, 80, RULE_STATEFUL));
        try_send(&world, f, A2, A4, tcp(1500, 80, TCP_ACK)).unwrap();
        try_send(&world, f, A4, A2, tcp(80, 1500, TCP_ACK)).unwrap();
        assert_eq!(connections(&world.nodes[1]), (1, 0));
    }
}

#[test]
fn p5_without_state_no_connection_is_kept_and_answers_need_a_rule() {
    for f in BOTH {
        for (client, server) in PAIRS {
            let mut world = closed();
            for rule in [
                Allow::any(client, OUT, 0),
                Allow::port(server, IN, PROTO_TCP, 80, 0),
                Allow::any(server, OUT, 0),
            ] {
                allow(&mut world, f, rule);
            }
            let ask = tcp(1500, 80, TCP_SYN);
            let answer = tcp(80, 1500, TCP_SYN | TCP_ACK);
            for _ in 0..2 {
                try_send(&world, f, client, server, ask.clone()).unwrap();
                let refused = try_send(&world, f, server, client, answer.clone());
                assert_eq!(refused, Err(DropReason::PolicyIngress));
            }
            allow(&mut world, f, Allow::any(client, IN, 0));
            for _ in 0..2 {
                try_send(&world, f, client, server, ask.clone()).unwrap();
                try_send(&world, f, server, client, answer.clone()).unwrap();
                // A reset of nothing, too.
                try_send(&world, f, client, server, tcp(1600, 80, TCP_RST)).unwrap();
            }
            for tables in &world.nodes {
                assert!(tables.flows().is_empty());
                assert!(tables.transients().iter().all(|flow| flow.1.role == ROLE_NONE));
            }
        }
    }
}

#[test]
fn p5_each_end_is_stateful_by_its_own_rule() {
    for f in BOTH {
        for (client, server) in PAIRS {
            let ask = tcp(1500, 80, TCP_SYN);
            let answer = tcp(80, 1500, TCP_SYN | TCP_ACK);
            // Only the server's rule keeps state: the client needs one for answers.
            let mut world = closed();
            allow(&mut world, f, Allow::any(client, OUT, 0));
            allow(&mut world, f, Allow::port(server, IN, PROTO_TCP, 80, RULE_STATEFUL));
            try_send(&world, f, client, server, ask.clone()).unwrap();
            let refused = try_send(&world, f, server, client, answer.clone());
            assert_eq!(refused, Err(DropReason::PolicyIngress));
            allow(&mut world, f, Allow::any(client, IN, 0));
            decide_again(&mut world);
            try_send(&world, f, server, client, answer.clone()).unwrap();
            // Only the client's does: the server needs one to send them.
            let mut world = closed();
            allow(&mut world, f, Allow::any(client, OUT, RULE_STATEFUL));
            allow(&mut world, f, Allow::port(server, IN, PROTO_TCP, 80, 0));
            try_send(&world, f, client, server, ask).unwrap();
            let refused = try_send(&world, f, server, client, answer.clone());
            assert_eq!(refused, Err(DropReason::PolicyEgress));
            allow(&mut world, f, Allow::any(server, OUT, 0));
            decide_again(&mut world);
            try_send(&world, f, server, client, answer).unwrap();
        }
    }
}

#[test]
fn p5_of_two_rules_the_one_that_keeps_state_counts() {
    for f in BOTH {
        for (of_class, of_any) in [(0, RULE_STATEFUL), (RULE_STATEFUL, 0)] {
            let mut world = closed();
            class(&mut world, A2.ip(f), full(A2.ip(f)), 7);
            allow(&mut world, f, Allow { class: 7, ..Allow::any(C1, IN, of_class) });
            allow(&mut world, f, Allow::any(C1, IN, of_any));
            let tuple = crate::flow::Tuple {
                src: A2.ip(f).into(),
                dst: C1.ip(f).into(),
                proto: PROTO_UDP,
                v6: f == Family::V6,
                ..Default::default()
            };
            let rule = policy::allows(&world.nodes[0], 0, C1.ifindex, IN, &tuple).unwrap();
            assert_eq!(rule.flags, RULE_STATEFUL);
        }
    }
}

#[test]
fn p1_resets_of_nothing_are_dropped_where_state_is_kept() {
    for f in BOTH {
        for (client, server) in PAIRS {
            let mut world = closed();
            allow(&mut world, f, Allow::any(client, OUT, RULE_STATEFUL));
            allow(&mut world, f, Allow::any(server, IN, RULE_STATEFUL));
            let reset = tcp(1500, 80, TCP_RST);
            let refused = try_send(&world, f, client, server, reset.clone());
            assert_eq!(refused, Err(DropReason::TcpUnrelated));
            try_send(&world, f, client, server, tcp(1500, 80, TCP_SYN)).unwrap();
            try_send(&world, f, server, client, tcp(80, 1500, TCP_RST | TCP_ACK)).unwrap();
            try_send(&world, f, client, server, reset).unwrap();
        }
    }
}

#[test]
fn p1_what_a_network_needs_to_work_passes_without_rules() {
    let world = closed();
    let me = (A2.mac(), A2.ip(Family::V6));
    let tables = &world.nodes[0];
    let entry = Entry::Port(A2.ifindex);
    // To another port, by unicast: what is exempt arrives, and nothing else.
    let pkt = from(Family::V4, End::Inside(A2), A5.ip(Family::V4));
    let arrives = |pkt: &Pkt| sent(run(tables, entry, &pkt.frame())).0 == A5.ifindex;
    assert_eq!(run(tables, entry, &pkt.ports(68, 69).frame()), Verdict::Dropped(DropReason::PolicyEgress));
    let to = (A5.mac(), A5.ip(Family::V6));
    assert!(arrives(&nd(ND_NEIGHBOR_SOLICIT, me, to, ip(Family::V6, A, 99), Some((1, me.0)))));
    assert!(arrives(&nd(ND_NEIGHBOR_ADVERT, me, to, me.1, Some((2, me.0)))));
    let mut report = from(Family::V6, End::Inside(A2), to.1).icmp(143, 0, &[0; 20]);
    assert!(arrives(&report));
    report = report.icmp(128, 0, &[0; 20]);
    assert_eq!(run(tables, entry, &report.frame()), Verdict::Dropped(DropReason::PolicyEgress));
    let frame = arp(A5.mac(), A2.mac(), 1, (A2.mac(), A2.ip(Family::V4)), ip(Family::V4, A, 99));
    assert_eq!(sent(run(tables, entry, &frame)).0, A5.ifindex);
    assert!(tables.transients().iter().all(|flow| flow.1.role == ROLE_NONE));
}

#[test]
fn p1_dhcp_passes_without_rules_from_clients_and_to_them_on_their_link_alone() {
    for f in BOTH {
        let (client, server, others) =
            if f == Family::V4 { (68, 67, (546, 547)) } else { (546, 547, (68, 67)) };
        // Two servers, without port security as they must be; their clients have no rule.
        let mut world = closed();
        for tables in &mut world.nodes {
            for binding in tables.image.bindings.values_mut() {
                if [A5, C1].iter().any(|host| binding.policy == host.ifindex) {
                    binding.flags |= BINDING_NO_SECURITY;
                }
            }
        }
        let try_udp =
            |from: Host, to: Host, sport, dport| try_send(&world, f, from, to, udp(sport, dport)).map(drop);
        assert_eq!(try_udp(A2, A5, client, server), Ok(()));
        assert_eq!(try_udp(A5, A2, server, client), Ok(()));
        // The same from a server on another node.
        let mut pkt = Pkt::udp(f, (A, 13), (A, 12)).ports(server, client);
        (pkt.src_mac, pkt.dst_mac) = (A3.mac(), A2.mac());
        let arrives =
            |pkt: &Pkt| run(&world.nodes[0], Entry::Uplink, &vxlan([192, 0, 2, 2], 1000 + A, &pkt.frame()));
        assert_eq!(sent(arrives(&pkt)).0, A2.ifindex);
        // But of those that are behind a router of that node: rules are asked.
        pkt.src_mac = router_mac(A, 1);
        assert_eq!(arrives(&pkt), Verdict::Dropped(DropReason::PolicyIngress));
        // What a client does not send, and is not sent.
        let (egress, ingress) = (Err(DropReason::PolicyEgress), Err(DropReason::PolicyIngress));
        for (sport, dport) in [(client, server + 100), (server, server), others] {
            assert_eq!(try_udp(A2, A5, sport, dport), egress, "{sport} to {dport}");
        }
        for (sport, dport) in [(client, server), (server, client + 100), (others.1, others.0)] {
            assert_eq!(try_udp(A5, A2, sport, dport), ingress, "{sport} to {dport}");
        }
        // By a router.
        assert_eq!(try_udp(A2, C1, client, server), egress);
        assert_eq!(try_udp(C1, A2, server, client), ingress);
    }
}

#[test]
fn p1_nothing_from_outside_passes_without_rules_and_nothing_leaves() {
    let world = closed();
    for f in BOTH {
        let mut pkts: Vec<L4> =
            [(67, 68), (68, 67), (546, 547), (547, 546)].map(|(sport, dport)| udp(sport, dport)).into();
        if f == Family::V6 {
            let kinds = [130, 131, 132, 133, 134, 135, 136, 143];
            pkts.extend(kinds.map(|kind| L4::Icmp { kind, code: 0, rest: [0; 4], payload: vec![0; 20] }));
        }
        for l4 in pkts {
            let what = format!("{l4:?}");
            for ttl in [64, 255] {
                let pkt = from(f, End::Outside, A1.floating(f)).l4(l4.clone()).ttl(ttl);
                let came = world.send(End::Outside, &pkt.frame());
                assert!(!matches!(came, Arrived::Port(..) | Arrived::Outside(..)), "{what}: {came:?}");
                let pkt = from(f, End::Inside(A1), remote(f)).l4(l4.clone()).ttl(ttl);
                let left = world.send(End::Inside(A1), &pkt.frame());
                assert!(!matches!(left, Arrived::Port(..) | Arrived::Outside(..)), "{what}: {left:?}");
            }
        }
    }
}

#[test]
fn p5_without_port_security_there_is_no_policy() {
    for f in BOTH {
        let mut world = closed();
        for tables in &mut world.nodes {
            for binding in tables.image.bindings.values_mut() {
                if binding.policy == A2.ifindex || binding.policy == A4.ifindex {
                    binding.flags |= BINDING_NO_SECURITY;
                }
            }
        }
        for l4 in [udp(1, 2), tcp(1, 2, TCP_RST), echo(f, true)] {
            try_send(&world, f, A2, A4, l4).unwrap();
        }
        assert_eq!(try_send(&world, f, A2, C1, udp(1, 2)), Err(DropReason::PolicyIngress));
    }
}

#[test]
fn p1_policy_sees_the_addresses_its_port_sees_through_translation() {
    for f in BOTH {
        let mut world = closed();
        // Only the remote host, to the fixed IP's port 80.
        class(&mut world, remote(f), full(remote(f)), 7);
        allow(&mut world, f, Allow { class: 7, ..Allow::port(A1, IN, PROTO_TCP, 80, RULE_STATEFUL) });
        let ask = |src: IpAddr, dport| {
            let pkt = from(f, End::Outside, A1.floating(f)).from(src).l4(tcp(1500, dport, TCP_SYN));
            world.send(End::Outside, &pkt.frame())
        };
        assert!(matches!(ask(remote(f), 80), Arrived::Port(A1, _)));
        let refused = Arrived::Else(0, Verdict::Dropped(DropReason::PolicyIngress));
        assert_eq!(ask(beyond(f, 8), 80), refused);
        assert_eq!(ask(remote(f), 81), refused);
        assert_eq!(connections(&world.nodes[0]), (0, 1), "nothing is left of the refused");
        // The answer leaves translated, with no rule of its own.
        let pkt = from(f, End::Inside(A1), remote(f)).l4(tcp(80, 1500, TCP_SYN | TCP_ACK));
        let Arrived::Outside(_, frame) = world.send(End::Inside(A1), &pkt.frame()) else {
            panic!("no answer")
        };
        assert_eq!(read(&frame).src, A1.floating(f));
        let pkt = from(f, End::Inside(A1), remote(f)).l4(tcp(80, 1501, TCP_SYN | TCP_ACK));
        let refused = Arrived::Else(0, Verdict::Dropped(DropReason::PolicyEgress));
        assert_eq!(world.send(End::Inside(A1), &pkt.frame()), refused);
    }
}
