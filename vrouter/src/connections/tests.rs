//! Legs as the data path leaves them, and what is made of them.

use std::{net::IpAddr, time::Duration};

use vrouter_common::{
    addr::{Be16, Ip, Macs},
    flow::*,
    tables::*,
    wire::*,
};

use super::{
    conntrack,
    filter::{Filter, FilterArgs},
    names::{End, Names},
    *,
};
use crate::clock::Ticks;

const HZ: u32 = 250;
/// The counter went past zero a minute ago: most of what is tested spans that.
const NOW: u32 = 60 * HZ;

/// A tick some seconds ago.
fn ago(seconds: u32) -> u32 {
    NOW.wrapping_sub(seconds * HZ)
}

pub fn judge() -> Judge {
    Judge {
        ticks: Ticks { now: NOW, per_second: HZ },
        timeouts: Timeouts::default(),
        decision_idle: Duration::from_secs(300),
    }
}

fn ip(text: &str) -> Ip {
    text.parse::<IpAddr>().expect("an address").into()
}

/// A connection from a port of this node whose source is translated, or not.
fn connection(proto: u8, from: (&str, u16), to: (&str, u16), outside: (&str, u16)) -> Flows {
    let key = FlowKey {
        src: ip(from.0),
        dst: ip(to.0),
        zone: 11,
        sport: Be16::new(from.1),
        dport: Be16::new(to.1),
        proto,
        from: FROM_PORT,
        zero: 0,
    };
    let flow = Flow {
        tag: key.tag(),
        tag_end: key.tag(),
        epoch: 1,
        network: 1,
        network_out: 9,
        src: ip(outside.0),
        dst: key.dst,
        sport: Be16::new(outside.1),
        dport: key.dport,
        peer_zone: 5000,
        peer_from: FROM_NETWORK,
        role: ROLE_ORIGINAL,
        seen: NOW,
        created: ago(100),
        packets: 3,
        bytes: 300,
        exit: EXIT_EXTERNAL,
        target: 4,
        hops: 1,
        rule: 6,
        router: if from == outside { 0 } else { 7 },
        flags: if from == outside { 0 } else { FLOW_NAT | FLOW_SNAT },
        ..Flow::default()
    };
    let reply_key = flow.peer_key(&key);
    let back = match proto {
        PROTO_ICMP => (key.sport, Be16::new(0)),
        PROTO_ICMPV6 => (key.sport, Be16::new(0x8100)),
        _ => (key.dport, key.sport),
    };
    let reply = Flow {
        tag: reply_key.tag(),
        tag_end: reply_key.tag(),
        network: 9,
        network_out: 1,
        src: key.dst,
        dst: key.src,
        sport: back.0,
        dport: back.1,
        peer_zone: 11,
        peer_from: FROM_PORT,
        role: ROLE_REPLY,
        exit: EXIT_PORT,
        target: 11,
        packets: 2,
        bytes: 200,
        ..flow
    };
    Flows::Connection {
        original: Leg { key, flow, table: Table::Flows },
        reply: Leg { key: reply_key, flow: reply, table: Table::Flows },
    }
}

/// A TCP connection of which these flags were seen; none: never used.
pub fn tcp(there: u8, back: u8) -> Flows {
    let mut flows = connection(PROTO_TCP, ("10.0.1.10", 40000), ("8.8.8.8", 443), ("203.0.113.10", 40001));
    if let Flows::Connection { original, reply } = &mut flows {
        original.flow.tcp_flags = there;
        reply.flow.tcp_flags = back;
        if back == 0 {
            unanswered(reply);
        }
    }
    flows
}

/// A translated UDP connection.
pub fn snat(router: u32, address: &str, port: u16) -> Flows {
    let mut flows = connection(PROTO_UDP, ("10.0.1.10", 5000), ("8.8.8.8", 53), (address, port));
    if let Flows::Connection { original, .. } = &mut flows {
        original.flow.router = router;
    }
    flows
}

fn unanswered(reply: &mut Leg) {
    reply.flow = Flow { epoch: 0, packets: 0, bytes: 0, ..reply.flow };
}

fn with(mut flows: Flows, change: impl FnOnce(&mut Flow, &mut Flow)) -> Flows {
    if let Flows::Connection { original, reply } = &mut flows {
        change(&mut original.flow, &mut reply.flow);
    }
    flows
}

#[test]
fn each_leg_leads_to_the_other() {
    for flows in [
        tcp(TCP_SYN, 0),
        snat(1, "203.0.113.1", 1024),
        connection(PROTO_TCP, ("fd00:1::a", 1), ("fd00:2::b", 2), ("fd00:1::a", 1)),
        connection(PROTO_ICMP, ("10.0.1.10", 77), ("8.8.8.8", 0x0800), ("203.0.113.10", 1024)),
        connection(PROTO_ICMPV6, ("fd00:1::a", 77), ("fd00:2::b", 0x8000), ("fd00:1::a", 77)),
        connection(47, ("10.0.1.10", 0), ("10.0.2.10", 0), ("10.0.1.10", 0)),
    ] {
        let Flows::Connection { original, reply } = flows else { unreachable!() };
        assert_eq!(original.peer_key(), reply.key);
        assert_eq!(reply.peer_key(), original.key);
        assert!(original.is_paired_with(&reply) && reply.is_paired_with(&original));
        assert!(!original.is_paired_with(&original), "a leg is not its own other half");
        let mut stranger = reply;
        stranger.flow.dport = Be16::new(9);
        assert!(!original.is_paired_with(&stranger));
    }
    let echo = connection(PROTO_ICMP, ("10.0.1.10", 77), ("8.8.8.8", 0x0800), ("203.0.113.10", 1024));
    let reply = echo.reply_key();
    assert_eq!((reply.sport.get(), reply.dport.get()), (1024, 0), "the identifier stays, the type turns");
}

#[test]
fn tcp_states_are_those_of_nf_conntrack() {
    use State::*;
    const SYN: u8 = TCP_SYN;
    const ACK: u8 = TCP_ACK;
    const FIN: u8 = TCP_FIN;
    const RST: u8 = TCP_RST;
    let judge = judge();
    // Flags there and back; seconds since each spoke last; state, its timeout, replied, assured.
    for (there, back, seen, state, timeout, replied, assured) in [
        (SYN, 0, [5, 5], SynSent, 120, false, false),
        (SYN, SYN | ACK, [5, 5], SynRecv, 60, true, false),
        (SYN, SYN, [5, 5], SynSent2, 120, true, false),
        (SYN, ACK, [5, 5], SynSent, 120, true, false),
        (SYN | ACK, SYN | ACK, [5, 5], Established, 432_000, true, true),
        // Picked up in the middle.
        (ACK, ACK, [5, 5], Established, 432_000, true, true),
        (ACK, 0, [5, 5], Established, 300, false, false),
        (SYN | ACK, 0, [5, 5], Established, 300, false, false),
        // The client closes; the server acknowledges; closes, too.
        (SYN | ACK | FIN, SYN | ACK, [5, 9], FinWait, 120, true, true),
        (SYN | ACK | FIN, SYN | ACK, [5, 5], CloseWait, 60, true, true),
        (SYN | ACK | FIN, SYN | ACK, [9, 5], CloseWait, 60, true, true),
        (SYN | ACK | FIN, SYN | ACK | FIN, [5, 5], TimeWait, 120, true, true),
        // The server closes first.
        (SYN | ACK, SYN | ACK | FIN, [9, 5], FinWait, 120, true, true),
        (SYN | ACK, SYN | ACK | FIN, [5, 9], CloseWait, 60, true, true),
        // One goes on repeating its FIN.
        (SYN | ACK | FIN, SYN | ACK | FIN, [5, 9], LastAck, 30, true, true),
        (SYN | ACK | FIN, SYN | ACK | FIN, [9, 5], LastAck, 30, true, true),
        // A FIN that nobody answers.
        (ACK | FIN, 0, [5, 5], FinWait, 120, false, false),
        // Refused; reset by either.
        (SYN, RST | ACK, [5, 5], Close, 10, true, false),
        (SYN | ACK, SYN | ACK | RST, [5, 5], Close, 10, true, true),
        (SYN | ACK | RST | FIN, SYN | ACK | FIN, [5, 5], Close, 10, true, true),
    ] {
        let flows = with(tcp(there, back), |original, reply| {
            (original.seen, reply.seen) = (ago(seen[0]), ago(seen[1]));
        });
        let standing = judge.standing(&flows);
        let name = format!("{there:#04x} {back:#04x} {seen:?}");
        assert_eq!(standing.state, state, "{name}");
        assert_eq!(
            (standing.timeout.as_secs(), standing.replied, standing.assured),
            (timeout, replied, assured),
            "{name}"
        );
        assert_eq!(standing.idle, Duration::from_secs(5), "{name}: the later of both");
        assert_eq!(standing.remaining().as_secs(), timeout - 5, "{name}");
        assert_eq!(standing.age, Duration::from_secs(100), "{name}");
    }
}

#[test]
fn other_protocols_are_unreplied_replied_or_assured() {
    use State::{Assured, Replied, Unreplied};
    let judge = judge();
    // Protocol, answered, created and last seen (seconds ago); state, timeout.
    for (proto, answered, created, seen, state, timeout) in [
        (PROTO_UDP, false, 10, 0, Unreplied, 30),
        (PROTO_UDP, true, 1, 0, Replied, 30),
        // Both packets within two seconds, long ago: a query, not a stream.
        (PROTO_UDP, true, 20, 19, Replied, 30),
        (PROTO_UDP, true, 10, 0, Assured, 120),
        (PROTO_UDP, true, 100, 90, Assured, 120),
        (PROTO_ICMP, false, 10, 0, Unreplied, 30),
        (PROTO_ICMP, true, 100, 0, Replied, 30),
        (PROTO_ICMPV6, true, 100, 0, Replied, 30),
        (47, false, 10, 0, Unreplied, 600),
        (PROTO_SCTP, true, 100, 0, Replied, 600),
    ] {
        let flows = connection(proto, ("10.0.1.10", 77), ("10.0.2.2", 0x0800), ("10.0.1.10", 77));
        let mut flows = with(flows, |original, reply| {
            (original.created, reply.created) = (ago(created), ago(created));
            (original.seen, reply.seen) = (ago(seen), ago(seen));
        });
        if let (false, Flows::Connection { reply, .. }) = (answered, &mut flows) {
            unanswered(reply);
        }
        let standing = judge.standing(&flows);
        let name = format!("protocol {proto} answered {answered} {created} {seen}");
        assert_eq!((standing.state, standing.timeout.as_secs()), (state, timeout), "{name}");
        assert_eq!((standing.replied, standing.assured), (answered, state == Assured), "{name}");
    }
}

#[test]
fn what_is_over_is_over_only_when_both_directions_are_silent() {
    let judge = judge();
    const OPEN: u8 = TCP_SYN | TCP_ACK;
    for (there, back, over) in [
        (432_001, 431_999, false),
        (431_999, 432_001, false),
        (432_000, 432_000, true),
        // 17 days at 250 ticks per second: beyond half of the counter.
        (2_000_000, 9_000_000, true),
        (9_000_000, 0, false),
    ] {
        let flows = with(tcp(OPEN, OPEN), |original, reply| {
            (original.seen, reply.seen) = (ago(there), ago(back));
        });
        assert_eq!(judge.standing(&flows).is_over(), over, "{there} {back}");
    }
}

#[test]
fn a_half_goes_soon_and_a_decision_by_its_own_time() {
    let judge = judge();
    let half = |flows: &Flows, original: bool, seconds| {
        let mut leg = *if original { flows.original() } else { flows.reply() }.expect("a leg");
        leg.flow.seen = ago(seconds);
        Flows::Half(leg)
    };
    let open = tcp(TCP_SYN | TCP_ACK, TCP_SYN | TCP_ACK);
    for (flows, seconds, state, over) in [
        (half(&open, true, 9), 10, State::Half, false),
        (half(&open, true, 10), 10, State::Half, true),
        (half(&open, false, 10), 10, State::Half, true),
        (half(&snat(1, "203.0.113.1", 2), true, 29), 30, State::Half, false),
    ] {
        let standing = judge.standing(&flows);
        assert_eq!((standing.state, standing.timeout.as_secs(), standing.is_over()), (state, seconds, over));
    }
    let mut decision = *open.first();
    decision.flow.role = ROLE_NONE;
    for (seconds, over) in [(299, false), (300, true)] {
        decision.flow.seen = ago(seconds);
        let standing = judge.standing(&Flows::Decision(decision));
        assert_eq!((standing.state, standing.is_over()), (State::Stateless, over));
    }
}

#[test]
fn configured_timeouts_are_those_that_count() {
    let mut judge = judge();
    judge.timeouts.set(Timeout::TcpTimeWait, 3).expect("a timeout");
    assert_eq!(judge.timeouts.shortest(), Duration::from_secs(3));
    let both = TCP_SYN | TCP_ACK | TCP_FIN;
    let flows = with(tcp(both, both), |original, reply| (original.seen, reply.seen) = (ago(3), ago(3)));
    assert!(judge.standing(&flows).is_over());
    assert!(judge.timeouts.set(Timeout::Udp, 0).is_err());
    assert!(judge.timeouts.set(Timeout::Udp, Timeouts::SECONDS_MAX + 1).is_err());
    let json = serde_json::to_value(&judge.timeouts).expect("JSON");
    assert_eq!(json["tcp_time_wait"], 3);
    assert_eq!(serde_json::from_value::<Timeouts>(json).expect("timeouts"), judge.timeouts);
}

#[test]
fn lines_are_those_of_conntrack() {
    let judge = judge();
    let line = |flows: &Flows| conntrack::line(flows, &judge.standing(flows), 1001).expect("a connection");
    let open = TCP_SYN | TCP_ACK;
    let established = with(tcp(open, open), |original, _| original.seen = ago(0));
    assert_eq!(
        line(&established),
        "tcp      6 432000 ESTABLISHED src=10.0.1.10 dst=8.8.8.8 sport=40000 dport=443 packets=3 bytes=300 \
         src=8.8.8.8 dst=203.0.113.10 sport=443 dport=40001 packets=2 bytes=200 [ASSURED] mark=0 zone=1001 use=1"
    );
    assert_eq!(
        line(&with(tcp(TCP_SYN, 0), |original, reply| (original.seen, reply.seen) = (ago(1), ago(1)))),
        "tcp      6 119 SYN_SENT src=10.0.1.10 dst=8.8.8.8 sport=40000 dport=443 packets=3 bytes=300 \
         [UNREPLIED] src=8.8.8.8 dst=203.0.113.10 sport=443 dport=40001 packets=0 bytes=0 mark=0 zone=1001 use=1"
    );
    assert_eq!(
        line(&snat(7, "203.0.113.10", 1024)),
        "udp      17 120 src=10.0.1.10 dst=8.8.8.8 sport=5000 dport=53 packets=3 bytes=300 \
         src=8.8.8.8 dst=203.0.113.10 sport=53 dport=1024 packets=2 bytes=200 [ASSURED] mark=0 zone=1001 use=1"
    );
    assert_eq!(
        line(&connection(PROTO_ICMP, ("10.0.1.10", 77), ("8.8.8.8", 0x0800), ("203.0.113.10", 1024))),
        "icmp     1 30 src=10.0.1.10 dst=8.8.8.8 type=8 code=0 id=77 packets=3 bytes=300 \
         src=8.8.8.8 dst=203.0.113.10 type=0 code=0 id=1024 packets=2 bytes=200 mark=0 zone=1001 use=1"
    );
    assert_eq!(
        line(&connection(PROTO_ICMPV6, ("fd00:1::a", 77), ("fd00:2::b", 0x8000), ("fd00:1::a", 77))),
        "icmpv6   58 30 src=fd00:1::a dst=fd00:2::b type=128 code=0 id=77 packets=3 bytes=300 \
         src=fd00:2::b dst=fd00:1::a type=129 code=0 id=77 packets=2 bytes=200 mark=0 zone=1001 use=1"
    );
    assert_eq!(
        line(&connection(89, ("10.0.1.10", 0), ("10.0.2.2", 0), ("10.0.1.10", 0))),
        "unknown  89 600 src=10.0.1.10 dst=10.0.2.2 packets=3 bytes=300 \
         src=10.0.2.2 dst=10.0.1.10 packets=2 bytes=200 mark=0 zone=1001 use=1"
    );
    let mut decision = *established.first();
    decision.flow.role = ROLE_NONE;
    let decision = Flows::Decision(decision);
    assert_eq!(conntrack::line(&decision, &judge.standing(&decision), 1), None);
}

/// Port 3 (vm1) is interface 11, on network 1 (web); router 7 (r1) leads to network 9 (public).
fn names() -> Names {
    let mut names = Names::default();
    for (kind, id, name) in [
        (NAME_NETWORK, 1, "web"),
        (NAME_NETWORK, 9, "public"),
        (NAME_ROUTER, 7, "r1"),
        (NAME_ROUTER, 8, "r2"),
        (NAME_PORT, 3, "vm1"),
        (NAME_PORT, 4, "vm2"),
        (NAME_NODE, 2, "node-b"),
        (NAME_RULE, 6, "web-sg egress any"),
    ] {
        names.identities.put(kind, id, name);
    }
    let binding = Binding { port: 3, network: 1, vni: 1001, mtu: 1450, mac: [2; 6], flags: 0, policy: 0 };
    names.bindings.insert(11, binding);
    names.vnis.insert(5000, 9);
    names.vteps.insert(vrouter_common::addr::Be32::new(0xc000_0202), 2);
    names.legs.insert((8, 1), [0xee; 6]);
    names.hops.insert(4, Hop { ip: ip("203.0.113.1"), network: 9, flags: HOP_USED, ..Hop::default() });
    names
}

#[test]
fn a_row_says_it_in_names() {
    let (judge, names) = (judge(), names());
    let flows = tcp(TCP_SYN | TCP_ACK, TCP_SYN | TCP_ACK);
    let row = Row::new(&flows, &judge.standing(&flows), &names);
    assert_eq!(row.from.for_people(), "vm1");
    assert_eq!(row.to.for_people(), "public via 203.0.113.1");
    assert_eq!(row.original.for_people(), "10.0.1.10:40000 > 8.8.8.8:443");
    assert_eq!(row.translation(), "src 203.0.113.10:40001");
    assert_eq!((row.router.as_deref(), row.rule.as_deref()), (Some("r1"), Some("web-sg egress any")));
    assert_eq!((row.original_packets, row.reply_bytes, row.kind), (3, 200, "connection"));

    // Seen from its replies alone, it is the same connection.
    let half = Flows::Half(*flows.reply().expect("a reply"));
    let row = Row::new(&half, &judge.standing(&half), &names);
    assert_eq!(row.original.for_people(), "10.0.1.10:40000 > 8.8.8.8:443");
    assert_eq!((row.from.for_people().as_str(), row.to.for_people().as_str()), ("vm1", "public"));
    assert_eq!((row.original_packets, row.reply_packets, row.kind), (0, 2, "half"));

    let echo = connection(PROTO_ICMP, ("10.0.1.10", 77), ("8.8.8.8", 0x0800), ("203.0.113.10", 1024));
    let row = Row::new(&echo, &judge.standing(&echo), &names);
    assert_eq!(row.original.for_people(), "10.0.1.10 > 8.8.8.8 type 8 code 0 id 77");
    assert_eq!(row.translation(), "src 203.0.113.10 id 1024");

    let arriving = with(tcp(TCP_SYN, 0), |original, _| {
        (original.exit, original.target) = (EXIT_TUNNEL, 2);
    });
    assert_eq!(Row::new(&arriving, &judge.standing(&arriving), &names).to.for_people(), "node-b");
    let unknown = with(tcp(TCP_SYN, 0), |original, _| (original.exit, original.target) = (EXIT_PORT, 99));
    assert_eq!(Row::new(&unknown, &judge.standing(&unknown), &names).to.for_people(), "ifindex 99");
    let mut key = *flows.reply().expect("a reply");
    key.flow.in_vtep = vrouter_common::addr::Be32::new(0xc000_0202);
    let source = names.source(&key.key, &key.flow);
    assert_eq!(source, End { network: Some("public".into()), node: Some("node-b".into()), ..End::default() });
}

#[test]
fn a_filter_takes_what_it_says_and_nothing_else() {
    let (judge, names) = (judge(), names());
    let flows = tcp(TCP_SYN | TCP_ACK, TCP_SYN | TCP_ACK);
    let plain = with(
        connection(PROTO_UDP, ("10.0.1.10", 5353), ("10.0.2.2", 53), ("10.0.1.10", 5353)),
        |original, reply| {
            // By router 8, as its addresses on the wire say.
            original.in_macs = Macs::new([0xee; 6], [2; 6]);
            (original.network_out, reply.network) = (2, 2);
        },
    );
    let resolve = |args: &FilterArgs| -> anyhow::Result<Filter> {
        args.resolve(&names, std::path::Path::new("/nonexistent"))
    };
    let taken = |args: FilterArgs| {
        let filter = resolve(&args).expect("a filter");
        [&flows, &plain].map(|flows| filter.matches(flows, &judge.standing(flows), &names))
    };
    let some = |name: &str| Some(name.to_owned());
    let range = |text: &str| Some(text.parse().expect("a range"));
    for (args, expected) in [
        (FilterArgs::default(), [true, true]),
        (FilterArgs { proto: Some(PROTO_TCP), ..FilterArgs::default() }, [true, false]),
        (FilterArgs { nat: true, ..FilterArgs::default() }, [true, false]),
        (FilterArgs { state: Some(State::Assured), ..FilterArgs::default() }, [false, true]),
        (FilterArgs { l4port: Some(443), ..FilterArgs::default() }, [true, false]),
        (FilterArgs { l4port: Some(40001), ..FilterArgs::default() }, [true, false]),
        (FilterArgs { l4port: Some(5353), ..FilterArgs::default() }, [false, true]),
        (FilterArgs { address: range("203.0.113.10/32"), ..FilterArgs::default() }, [true, false]),
        (FilterArgs { address: range("10.0.1.0/24"), ..FilterArgs::default() }, [true, true]),
        (FilterArgs { address: range("10.0.2.0/24"), ..FilterArgs::default() }, [false, true]),
        (FilterArgs { address: range("::/0"), ..FilterArgs::default() }, [false, false]),
        (FilterArgs { network: some("web"), ..FilterArgs::default() }, [true, true]),
        (FilterArgs { network: some("public"), ..FilterArgs::default() }, [true, false]),
        (FilterArgs { router: some("r1"), ..FilterArgs::default() }, [true, false]),
        (FilterArgs { router: some("r2"), ..FilterArgs::default() }, [false, true]),
        (FilterArgs { nat: true, proto: Some(PROTO_UDP), ..FilterArgs::default() }, [false, false]),
    ] {
        assert_eq!(taken(args.clone()), expected, "{args:?}");
    }
    let error =
        resolve(&FilterArgs { network: some("wbe"), ..FilterArgs::default() }).expect_err("no network");
    assert!(error.to_string().contains("there is no network wbe"), "{error}");

    let mut decision = *plain.first();
    decision.flow.role = ROLE_NONE;
    let decision = Flows::Decision(decision);
    for (args, expected) in [
        (FilterArgs::default(), false),
        (FilterArgs { all: true, ..FilterArgs::default() }, true),
        (FilterArgs { state: Some(State::Stateless), ..FilterArgs::default() }, true),
        (FilterArgs { all: true, l4port: Some(53), ..FilterArgs::default() }, true),
        (FilterArgs { all: true, l4port: Some(54), ..FilterArgs::default() }, false),
    ] {
        let filter = resolve(&args).expect("a filter");
        assert_eq!(filter.matches(&decision, &judge.standing(&decision), &names), expected, "{args:?}");
    }
}
