use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{
    super::{Dhcpv6, answer_frame},
    *,
};
use crate::{
    agent::services::{
        datagram::{self, Ends, multicast_mac},
        fixture::{DOCUMENT, damaged, logged, served},
        sender::FrameSender,
        service::{Asker, Kind, Service},
    },
    compile::Served,
};

const CLIENT_ID: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 1, 0xb];
const OWN: &str = "fd00:1::11";

fn served_once() -> &'static Served {
    static SERVED: std::sync::OnceLock<Served> = std::sync::OnceLock::new();
    SERVED.get_or_init(|| served(DOCUMENT, false))
}

fn message(kind: u8, options: &[Vec<u8>]) -> Vec<u8> {
    [&[kind, 1, 2, 3][..], &option(CLIENT, &CLIENT_ID), &options.concat()].concat()
}

fn server() -> Vec<u8> {
    option(SERVER, &duid(&served_once()[&11]))
}

fn wants(codes: &[u16]) -> Vec<u8> {
    option(OPTION_REQUEST, &codes.iter().flat_map(|code| code.to_be_bytes()).collect::<Vec<_>>())
}

fn ia(kind: u16, addresses: &[&str]) -> Vec<u8> {
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    let association = Association { kind, id: *b"abcd", addresses };
    let inner: Vec<u8> = association.addresses.iter().flat_map(|it| address(*it, 1)).collect();
    in_association(&association, 0, 0, &inner)
}

/// The options of an answer, and of the one association in it.
fn options(bytes: &[u8]) -> BTreeMap<u16, Vec<u8>> {
    let (mut at, mut options) = (0, BTreeMap::new());
    while at < bytes.len() {
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let (code, len) = (word(at), usize::from(word(at + 2)));
        options.insert(code, bytes[at + 4..at + 4 + len].to_vec());
        at += 4 + len;
    }
    options
}

fn ask(port: u32, bytes: &[u8]) -> Result<(u8, BTreeMap<u16, Vec<u8>>), Refused> {
    let reply = answer(&served_once()[&port], &Message::read(bytes)?)?.bytes;
    assert_eq!(reply[1..4], [1, 2, 3]);
    Ok((reply[0], options(&reply[4..])))
}

fn given(options_of_reply: &BTreeMap<u16, Vec<u8>>) -> (Option<Ipv6Addr>, Option<u32>, Option<u16>) {
    let inner = options(&options_of_reply[&IA_NA][12..]);
    let address = inner.get(&IA_ADDRESS).map(|it| Ipv6Addr::from(<[u8; 16]>::try_from(&it[..16]).unwrap()));
    let valid = inner.get(&IA_ADDRESS).map(|it| u32::from_be_bytes(it[20..24].try_into().unwrap()));
    (address, valid, inner.get(&STATUS).map(|it| u16::from_be_bytes([it[0], it[1]])))
}

#[test]
fn a_port_gets_its_address_and_what_it_asks_for() {
    let own: Ipv6Addr = OWN.parse().unwrap();
    let asked = [ia(IA_NA, &[]), wants(&[DNS, 24])];
    let (kind, offered) = ask(11, &message(SOLICIT, &asked)).unwrap();
    assert_eq!((kind, given(&offered)), (ADVERTISE, (Some(own), Some(7200), None)));
    assert_eq!(offered[&CLIENT], CLIENT_ID);
    assert_eq!(offered[&SERVER], duid(&served_once()[&11]));
    assert_eq!(offered[&DNS], "fd00:1::2".parse::<Ipv6Addr>().unwrap().octets());
    assert_eq!(offered[&24], *b"\x07example\x03org\0");
    // T1 and T2.
    assert_eq!(offered[&IA_NA][4..12], [3600_u32.to_be_bytes(), 5760_u32.to_be_bytes()].concat());
    let (kind, reply) = ask(11, &message(SOLICIT, &[ia(IA_NA, &[]), option(RAPID_COMMIT, &[])])).unwrap();
    assert_eq!((kind, given(&reply).0, reply.contains_key(&RAPID_COMMIT)), (REPLY, Some(own), true));
    assert!(!reply.contains_key(&DNS), "nobody asked");
    for kind in [REQUEST, RENEW] {
        let (answer, reply) = ask(11, &message(kind, &[server(), ia(IA_NA, &[OWN])])).unwrap();
        assert_eq!((answer, given(&reply)), (REPLY, (Some(own), Some(7200), None)));
    }
    assert_eq!(given(&ask(11, &message(REBIND, &[ia(IA_NA, &[OWN])])).unwrap().1).0, Some(own));
}

#[test]
fn what_is_not_the_ports_is_not_given() {
    // The other address ends at once; the last one of several is what is looked at here.
    let renewed = ask(11, &message(RENEW, &[server(), ia(IA_NA, &["fd00:1::12"])])).unwrap().1;
    assert_eq!(given(&renewed), (Some("fd00:1::12".parse().unwrap()), Some(0), None));
    let (_, none) = ask(12, &message(SOLICIT, &[ia(IA_NA, &[])])).unwrap();
    assert_eq!(given(&none), (None, None, Some(NO_ADDRESSES)));
    let (_, unknown) = ask(12, &message(REBIND, &[ia(IA_NA, &[OWN])])).unwrap();
    assert_eq!(given(&unknown), (Some(OWN.parse().unwrap()), Some(0), Some(NO_BINDING)));
    let (_, reply) = ask(11, &message(SOLICIT, &[ia(IA_PD, &[]), ia(IA_TA, &[])])).unwrap();
    assert_eq!(options(&reply[&IA_PD][12..])[&STATUS][..2], NO_PREFIXES.to_be_bytes());
    assert_eq!(options(&reply[&IA_TA][4..])[&STATUS][..2], NO_ADDRESSES.to_be_bytes());
    // fd00:1::12 is of the same subnet.
    for (addresses, status) in [
        (&[OWN][..], SUCCESS),
        (&["fd00:1::12"], NOT_ON_LINK),
        (&[OWN, "fd00:1::12"], NOT_ON_LINK),
        (&["fd00:9::11"], NOT_ON_LINK),
    ] {
        let (_, reply) = ask(11, &message(CONFIRM, &[ia(IA_NA, addresses)])).unwrap();
        assert_eq!(reply[&STATUS][..2], status.to_be_bytes(), "{addresses:?}");
    }
    for kind in [RELEASE, DECLINE] {
        let (_, reply) = ask(11, &message(kind, &[server(), ia(IA_NA, &["fd00:1::12"])])).unwrap();
        assert_eq!(given(&reply).2, Some(NO_BINDING));
        let (_, reply) = ask(11, &message(kind, &[server(), ia(IA_NA, &[OWN])])).unwrap();
        assert!(reply[&STATUS][..2] == SUCCESS.to_be_bytes() && !reply.contains_key(&IA_NA));
    }
}

#[test]
fn modes_differ() {
    let inform = [&[INFORMATION_REQUEST, 1, 2, 3][..], &wants(&[DNS])].concat();
    let dns = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets().to_vec();
    assert_eq!(ask(11, &inform).unwrap().1[&DNS], dns("fd00:1::2"));
    const DB: &str = "  - name: db\n";
    let more = "      - { name: more6, cidr: \"fd00:4::/64\", ipv6_mode: slaac, dns: [\"fd00:1::2\"] }\n";
    let shared = served(&DOCUMENT.replace(DB, &format!("{more}{DB}")), false);
    let reply = answer(&shared[&11], &Message::read(&inform).unwrap()).unwrap().bytes;
    assert_eq!(options(&reply[4..])[&DNS], dns("fd00:1::2"), "once, though two subnets have it");
    assert_eq!(ask(13, &inform), Err(Refused::NOT_SERVED), "slaac");
    assert_eq!(ask(14, &inform).unwrap().1[&DNS], dns("fd00:3::2"), "stateless");
    let (_, none) = ask(14, &message(SOLICIT, &[ia(IA_NA, &[])])).unwrap();
    assert_eq!(given(&none), (None, None, Some(NO_ADDRESSES)), "addresses are not given there");
}

#[test]
fn messages_that_contradict_themselves_are_refused() {
    let other = option(SERVER, &[0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
    for (bytes, reason) in [
        (vec![], "message_truncated"),
        (vec![1, 2, 3], "message_truncated"),
        (message(REPLY, &[]), "servers_message"),
        (message(RELAY_FORWARD, &[]), "relayed"),
        (message(99, &[]), "malformed"),
        (message(SOLICIT, &[vec![0, 3, 0]]), "options_truncated"),
        (message(SOLICIT, &[vec![0, 3, 0, 99, 1]]), "options_truncated"),
        (message(SOLICIT, &[option(IA_NA, &[1; 11])]), "options_truncated"),
        (
            message(SOLICIT, &[option(IA_NA, &[&[1; 12][..], &option(IA_ADDRESS, &[1; 23])].concat())]),
            "options_truncated",
        ),
        (message(SOLICIT, &[option(CLIENT, &CLIENT_ID)]), "options_malformed"),
        (message(SOLICIT, &vec![ia(IA_NA, &[]); 17]), "options_malformed"),
        (message(SOLICIT, &[server()]), "options_malformed"),
        (message(REQUEST, &[ia(IA_NA, &[])]), "options_malformed"),
        (message(REQUEST, &[other, ia(IA_NA, &[])]), "for_another_server"),
        (message(CONFIRM, &[ia(IA_NA, &[])]), "options_malformed"),
        ([SOLICIT, 1, 2, 3].to_vec(), "options_malformed"),
    ] {
        assert_eq!(ask(11, &bytes).unwrap_err(), Refused(reason), "{bytes:?}");
    }
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let servers: Ipv6Addr = "ff02::1:2".parse().unwrap();
    let ends = Ends {
        src_mac: [2, 0, 0, 0, 1, 0xb],
        dst_mac: multicast_mac(servers),
        src: "fe80::ff:fe00:10b".parse().unwrap(),
        dst: servers,
    };
    datagram::udp_v6(&ends, 546, 547, payload)
}

#[test]
fn frames_are_answered_by_the_router() {
    let port = &served_once()[&11];
    let (name, answer) = answer_frame(port, &frame(&message(SOLICIT, &[ia(IA_NA, &[])]))).unwrap();
    assert_eq!(name, "advertise");
    assert_eq!(answer[..12], [&port.mac[..], &port.network.routers[0].mac].concat());
    assert_eq!(answer[22..38], port.network.routers[0].link_local.octets());
    let mut routed = frame(&message(SOLICIT, &[]));
    routed[22] = 0xfd;
    assert_eq!(answer_frame(port, &routed), Err(Refused("not_link_local")));
}

#[test]
fn who_declines_is_heard_once_a_minute_and_of_its_own_address_alone() {
    let sender = FrameSender::open().unwrap();
    let (mut dhcp, start) = (Dhcpv6::default(), Instant::now());
    let asker = Asker { ifindex: u32::MAX, port: &served_once()[&11], kind: Kind::Dhcpv6 };
    for (address, name, count) in [("fd00:1::12", "reply", 0), (OWN, "declined", 2)] {
        let frame = frame(&message(DECLINE, &[server(), ia(IA_NA, &[address])]));
        assert_eq!(answer_frame(asker.port, &frame).unwrap().0, name);
        let lines = logged(|| {
            for second in 0..100 {
                // There is no such interface to answer by.
                let _ = dhcp.answer(&asker, &frame, &sender, start + Duration::from_secs(second));
            }
        });
        assert_eq!(lines.len(), count, "{lines:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, it is refused or answered with something whole.
    #[test]
    fn whatever_comes_it_is_refused_or_answered(
        bytes in damaged(frame(&message(RENEW, &[server(), ia(IA_NA, &[OWN, "fd00:1::12"]), wants(&[DNS, 24])])))
    ) {
        for port in 11..=14 {
            if let Ok((_, frame)) = answer_frame(&served_once()[&port], &bytes) {
                let payload = &frame[62..];
                prop_assert!(payload.len() >= 4 && frame.len() < 4096);
                options(&payload[4..]);
            }
        }
    }
}
