use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use etherparse::{SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::{
    super::{Dhcp, frame_of, read},
    *,
};
use crate::{
    agent::services::{
        datagram::{self, Ends},
        fixture::{DOCUMENT, damaged, logged, served},
        sender::FrameSender,
        service::{Asker, Kind, Service},
        tally::Tally,
    },
    compile::Served,
};

const MAC: [u8; 6] = [2, 0, 0, 0, 1, 0xb];
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const GATEWAY: [u8; 4] = [10, 0, 1, 1];

/// What a client sends.
fn message(kind: u8, client: [u8; 4], options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0];
    bytes.extend(client);
    bytes.resize(28, 0);
    bytes.extend(MAC);
    bytes.resize(236, 0);
    bytes.extend(COOKIE);
    bytes.extend([MESSAGE_TYPE, 1, kind]);
    for (code, value) in options {
        bytes.extend([*code, value.len() as u8]);
        bytes.extend(*value);
    }
    bytes.push(END);
    bytes
}

/// An answer as a client reads it.
#[derive(Debug)]
struct Heard {
    bytes: Vec<u8>,
    options: BTreeMap<u8, Vec<u8>>,
}

impl Heard {
    fn of(bytes: Vec<u8>) -> Self {
        assert!(bytes.len() >= MESSAGE_MIN && bytes[..4] == [2, 1, 6, 0] && bytes[236..240] == COOKIE);
        let (mut at, mut options) = (240, BTreeMap::new());
        while bytes[at] != END {
            let value = bytes[at + 2..at + 2 + usize::from(bytes[at + 1])].to_vec();
            at += 2 + value.len();
            assert_eq!(options.insert(bytes[at - 2 - value.len()], value), None, "twice");
        }
        Self { bytes, options }
    }

    fn kind(&self) -> u8 {
        self.options[&MESSAGE_TYPE][0]
    }

    fn address(&self) -> &[u8] {
        &self.bytes[16..20]
    }
}

fn ask(served: &Served, port: u32, bytes: &[u8]) -> Result<Option<Heard>, Refused> {
    let asked = Message::read(bytes)?;
    Ok(answer(&served[&port], &asked)?.map(|reply| Heard::of(reply.write(&asked).bytes)))
}

fn heard(served: &Served, port: u32, bytes: &[u8]) -> Heard {
    ask(served, port, bytes).unwrap().expect("an answer")
}

#[test]
fn an_offer_says_what_the_topology_says() {
    let served = served(DOCUMENT, true);
    let offer = heard(&served, 11, &message(DISCOVER, [0; 4], &[]));
    assert_eq!((offer.kind(), offer.address()), (OFFER, &[10, 0, 1, 11][..]));
    assert_eq!(offer.bytes[4..8], [0xde, 0xad, 0xbe, 0xef]);
    let seconds = |seconds: u32| seconds.to_be_bytes().to_vec();
    let routes =
        [&[0, 10, 0, 1, 1][..], &[32, 169, 254, 169, 254, 10, 0, 1, 1], &[17, 192, 168, 0, 10, 0, 1, 7]]
            .concat();
    let expected = BTreeMap::from([
        (MESSAGE_TYPE, vec![OFFER]),
        (SERVER, GATEWAY.to_vec()),
        (LEASE_TIME, seconds(3600)),
        (RENEWAL, seconds(1800)),
        (REBINDING, seconds(3150)),
        (MASK, vec![255, 255, 255, 0]),
        (BROADCAST, vec![10, 0, 1, 255]),
        (ROUTER, GATEWAY.to_vec()),
        (DNS, vec![10, 0, 1, 2, 9, 9, 9, 9]),
        (MTU, 1400_u16.to_be_bytes().to_vec()),
        (CLASSLESS_ROUTES, routes.clone()),
        (CLASSLESS_ROUTES_MS, routes),
        (HOST_NAME, b"vm1".to_vec()),
        (42, vec![10, 0, 1, 3, 10, 0, 1, 4]),
        // The port's own.
        (15, b"vm.example.org".to_vec()),
        (224, vec![0xa, 0xb]),
    ]);
    assert_eq!(offer.options, expected);
}

/// RFC 2131, 4.3.1: what boots by a file's name asks there for it.
#[test]
fn who_boots_is_told_where_from() {
    const OWN: &str = "dhcp_options: [{ name: domain-name, value: vm";
    for (options, boot_server) in [
        ("{ name: tftp-server-address, value: \"10.0.1.5, 10.0.1.6\" }", [10, 0, 1, 5]),
        ("{ name: tftp-server, value: 10.0.1.7 }", [10, 0, 1, 7]),
        (
            "{ name: tftp-server, value: 10.0.1.7 }, { name: tftp-server-address, value: 10.0.1.5 }",
            [10, 0, 1, 5],
        ),
        ("{ name: tftp-server, value: boot.example.org }", [0; 4]),
        ("{ code: 150, value: \"hex:0a00\" }, { name: tftp-server, value: 10.0.1.7 }", [10, 0, 1, 7]),
        ("{ name: bootfile-name, value: pxelinux.0 }", [0; 4]),
    ] {
        let own = OWN.replace("[{", &format!("[{options}, {{"));
        let served = served(&DOCUMENT.replacen(OWN, &own, 1), false);
        let of = |asked: &[u8]| heard(&served, 11, asked).bytes[20..24].to_vec();
        assert_eq!(of(&message(DISCOVER, [0; 4], &[])), boot_server, "{options}");
        // Also who does not ask for the options.
        let little = [(50, &[10, 0, 1, 11][..]), (PARAMETERS, &[ROUTER])];
        assert_eq!(of(&message(REQUEST, [0; 4], &little)), boot_server, "{options}");
        assert_eq!(of(&message(REQUEST, [0; 4], &[(50, &[10, 0, 1, 12])])), [0; 4], "a refusal");
    }
}

#[test]
fn who_asks_for_little_gets_little() {
    let served = served(DOCUMENT, false);
    let asked =
        message(REQUEST, [0; 4], &[(50, &[10, 0, 1, 11]), (PARAMETERS, &[ROUTER]), (CLIENT, &[1, 2, 3])]);
    let ack = heard(&served, 11, &asked);
    assert_eq!(ack.kind(), ACK);
    let codes: Vec<u8> = ack.options.keys().copied().collect();
    assert_eq!(codes, [MASK, ROUTER, MTU, LEASE_TIME, MESSAGE_TYPE, SERVER, RENEWAL, REBINDING, CLIENT]);
    assert_eq!(ack.options[&CLIENT], [1, 2, 3], "RFC 6842");
}

/// RFC 2131, 4.3.2.
#[test]
fn requests_for_what_is_the_ports_are_acknowledged_and_others_are_not() {
    let served = served(DOCUMENT, false);
    let (own, other): ([u8; 4], [u8; 4]) = ([10, 0, 1, 11], [10, 0, 1, 12]);
    let cases: [(&str, Vec<u8>, u8); 7] = [
        ("selecting", message(REQUEST, [0; 4], &[(SERVER, &GATEWAY), (50, &own)]), ACK),
        ("selecting another's", message(REQUEST, [0; 4], &[(SERVER, &GATEWAY), (50, &other)]), NAK),
        ("rebooting", message(REQUEST, [0; 4], &[(50, &own)]), ACK),
        ("rebooting elsewhere", message(REQUEST, [0; 4], &[(50, &[192, 0, 2, 7])]), NAK),
        ("renewing", message(REQUEST, own, &[]), ACK),
        ("renewing another's", message(REQUEST, other, &[]), NAK),
        ("asking beside it", message(INFORM, own, &[]), ACK),
    ];
    for (what, asked, kind) in cases {
        let answer = heard(&served, 11, &asked);
        assert_eq!(answer.kind(), kind, "{what}");
        let given = if kind == ACK && what != "asking beside it" { own } else { [0; 4] };
        assert_eq!(answer.address(), given, "{what}");
        assert_eq!(answer.options.contains_key(&LEASE_TIME), given == own, "{what}");
    }
    let offered = heard(&served, 11, &message(DISCOVER, [0; 4], &[(50, &other)]));
    assert_eq!(offered.address(), own, "who wishes for another's is offered its own");
    // A port without an address has none to ask for.
    let of_vm2 = |mut bytes: Vec<u8>| {
        bytes[33] = 0xc;
        bytes
    };
    assert_eq!(heard(&served, 12, &of_vm2(message(REQUEST, [0; 4], &[(50, &own)]))).kind(), NAK);
    for (port, asked, reason) in [
        (12, of_vm2(message(DISCOVER, [0; 4], &[])), "no_address"),
        (12, message(DISCOVER, [0; 4], &[]), "foreign_hardware_address"),
        (11, message(REQUEST, [0; 4], &[(SERVER, &[10, 0, 1, 9]), (50, &own)]), "for_another_server"),
        (11, message(REQUEST, [0; 4], &[(SERVER, &GATEWAY)]), "options_malformed"),
        (11, message(REQUEST, [0; 4], &[]), "options_malformed"),
        (11, message(INFORM, other, &[]), "not_its_address"),
        (14, message(DISCOVER, [0; 4], &[]), "not_served"),
    ] {
        assert_eq!(ask(&served, port, &asked).unwrap_err(), Refused(reason), "{asked:?}");
    }
    for (kind, client, options) in
        [(RELEASE, own, &[(SERVER, &GATEWAY[..])][..]), (DECLINE, [0; 4], &[(SERVER, &GATEWAY), (50, &own)])]
    {
        assert!(ask(&served, 11, &message(kind, client, options)).unwrap().is_none());
    }
}

#[test]
fn who_declines_is_heard_once_a_minute_and_of_its_own_address_alone() {
    let served = served(DOCUMENT, false);
    let sender = FrameSender::open().unwrap();
    let (mut dhcp, start) = (Dhcp::new(Tally::default()), Instant::now());
    let mut decline = |address: [u8; 4], after: u64| {
        let ends = Ends { src_mac: MAC, dst_mac: [0xff; 6], src: ANY, dst: Ipv4Addr::BROADCAST };
        let frame = datagram::udp_v4(&ends, 68, 67, &message(DECLINE, [0; 4], &[(50, &address)]));
        let asker = Asker { ifindex: 11, port: &served[&11], kind: Kind::Dhcp };
        dhcp.answer(&asker, &frame, &sender, start + Duration::from_secs(after))
    };
    let lines = logged(|| {
        for second in 0..100 {
            assert_eq!(decline([10, 0, 1, 12], second), Err(Refused("not_its_address")));
        }
    });
    assert!(lines.is_empty(), "{lines:?}");
    let lines = logged(|| {
        for second in 0..100 {
            assert_eq!(decline([10, 0, 1, 11], second), Ok("declined"));
        }
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].contains("declines its address 10.0.1.11") && lines[0].contains("port=vm1"),
        "{lines:?}"
    );
}

#[test]
fn without_a_router_the_services_themselves_answer() {
    for metadata in [false, true] {
        let served = served(DOCUMENT, metadata);
        let lease = leases(&served[&13]).next().unwrap();
        assert_eq!(lease.server, SERVICE);
        assert_eq!(lease.server_mac, served[&13].network.service_mac);
        // On the link: nobody leads there.
        let on_link = (Ipv4Net::from(SERVICE), ANY);
        assert_eq!(lease.routes, if metadata { vec![on_link] } else { vec![] });
        assert!(leases(&served[&14]).next().is_none(), "a subnet without DHCP");
    }
}

#[test]
fn messages_that_contradict_themselves_are_refused() {
    let good = message(DISCOVER, [0; 4], &[]);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for (bytes, reason) in [
        (good[..239].to_vec(), "message_truncated"),
        (good[..good.len() - 1].to_vec(), "options_truncated"),
        (good[..good.len() - 2].to_vec(), "options_truncated"),
        (with(0, 2), "malformed"),
        (with(1, 7), "malformed"),
        (with(2, 16), "malformed"),
        (with(236, 0), "malformed"),
        (with(3, 1), "relayed"),
        (with(27, 1), "relayed"),
        (with(242, OFFER), "servers_message"),
        (with(242, 99), "options_malformed"),
        (with(240, 200), "bootp"),
        (message(DISCOVER, [0; 4], &[(50, &[1, 2, 3])]), "options_malformed"),
        (message(DISCOVER, [0; 4], &[(50, &[1; 4]), (50, &[1; 4])]), "options_malformed"),
        (message(DISCOVER, [0; 4], &[(MAX_SIZE, &[1])]), "options_malformed"),
        (message(DISCOVER, [0; 4], &[(OVERLOAD, &[4])]), "options_malformed"),
        (message(DISCOVER, [0; 4], &[(CLIENT, &[1])]), "options_malformed"),
    ] {
        assert_eq!(Message::read(&bytes).unwrap_err(), Refused(reason), "{bytes:?}");
    }
    // Options in the fields that are not needed otherwise.
    let mut overloaded = message(DISCOVER, [0; 4], &[(OVERLOAD, &[3])]);
    overloaded[108..115].copy_from_slice(&[50, 4, 10, 0, 1, 11, END]);
    overloaded[44..49].copy_from_slice(&[MAX_SIZE, 2, 5, 0, END]);
    let read = Message::read(&overloaded).unwrap();
    assert_eq!((read.requested, read.max_size), (Some(Ipv4Addr::new(10, 0, 1, 11)), 1280));
    overloaded[108 + 6] = 0;
    overloaded[235] = 77;
    assert_eq!(Message::read(&overloaded), Err(Refused("options_truncated")));
}

#[test]
fn what_does_not_fit_the_client_is_left_out_and_the_rest_is_whole() {
    let long = "x".repeat(200);
    let extra = format!("dhcp_options: [{{ code: 66, value: {long} }}, {{ code: 67, value: {long} }},");
    let served = served(
        &DOCUMENT.replacen(
            "dhcp_options: [{ name: domain-name, value: vm",
            &format!("{extra} {{ name: domain-name, value: vm"),
            1,
        ),
        true,
    );
    let small = heard(&served, 11, &message(DISCOVER, [0; 4], &[]));
    assert!(small.bytes.len() + IP_AND_UDP <= SIZE_MIN);
    assert!(small.options.contains_key(&MASK) && !small.options.contains_key(&67));
    let large = heard(&served, 11, &message(DISCOVER, [0; 4], &[(MAX_SIZE, &1400_u16.to_be_bytes())]));
    assert!(large.options.contains_key(&66) && large.options.contains_key(&67));
    // It is counted once for each message.
    let tally = Tally::default();
    let mut dhcp = Dhcp::new(tally.clone());
    let asker = Asker { ifindex: u32::MAX, port: &served[&11], kind: Kind::Dhcp };
    for size in [SIZE_MIN as u16, 1400] {
        let message = message(DISCOVER, [0; 4], &[(MAX_SIZE, &size.to_be_bytes())]);
        // There is no such interface to answer by.
        let _ = dhcp.answer(&asker, &frame(&message), &FrameSender::open().unwrap(), Instant::now());
        assert_eq!(tally.counts()["dhcp"]["options_left_out"], 1, "{size}");
    }
}

/// A longer one is not carried, whatever the client takes.
#[test]
fn an_answer_is_no_longer_than_the_networks_mtu() {
    const OWN: &str = "dhcp_options: [{ name: domain-name, value: vm";
    let bytes = "0a".repeat(200);
    let more: String =
        (225..235).map(|code| format!("{{ code: {code}, value: \"hex:{bytes}\" }}, ")).collect();
    let own = OWN.replace("[{", &format!("[{more}{{"));
    let mut served = served(&DOCUMENT.replacen(OWN, &own, 1), false);
    for (mtu, most) in [(1400, 1400), (9000, SIZE_MAX), (500, SIZE_MIN)] {
        let port = served.get_mut(&11).unwrap();
        std::sync::Arc::make_mut(&mut port.network).mtu = mtu;
        let offer = heard(&served, 11, &message(DISCOVER, [0; 4], &[(MAX_SIZE, &1500_u16.to_be_bytes())]));
        let len = offer.bytes.len() + IP_AND_UDP;
        assert!(len <= most && len + 202 > most, "{len} bytes on a network of {mtu}");
    }
}

/// Thirteen more routes, twice, leave one byte of 576.
#[test]
fn routes_are_told_twice_only_if_everything_else_is_told() {
    let more: String =
        (0..13).map(|i| format!(", {{ destination: 192.168.255.{i}/32, nexthop: 10.0.1.7 }}")).collect();
    let served =
        served(&DOCUMENT.replacen("nexthop: 10.0.1.7 }", &format!("nexthop: 10.0.1.7 }}{more}"), 1), false);
    let has = |size: u16, code: u8| {
        let size = size.to_be_bytes();
        let asked = message(
            DISCOVER,
            [0; 4],
            &[(MAX_SIZE, &size), (CLIENT, &[1, 2, 3]), (PARAMETERS, &[249, 121, ROUTER, DNS, 42, HOST_NAME])],
        );
        heard(&served, 11, &asked).options.contains_key(&code)
    };
    for code in [ROUTER, DNS, 42, HOST_NAME, CLASSLESS_ROUTES] {
        assert!(has(576, code), "{code}");
    }
    assert!(!has(576, CLASSLESS_ROUTES_MS) && has(700, CLASSLESS_ROUTES_MS));
}

#[test]
fn answers_go_where_the_client_hears_them() {
    let served = served(DOCUMENT, false);
    let own = [10, 0, 1, 11];
    let mut aloud = message(DISCOVER, [0; 4], &[]);
    aloud[10] = 0x80;
    let to = |bytes: &[u8]| {
        let asked = Message::read(bytes).unwrap();
        let reply = answer(&served[&11], &asked).unwrap().unwrap();
        let frame = frame_of(&asked, &reply, &reply.write(&asked).bytes);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        assert!(matches!(&packet.transport, Some(TransportSlice::Udp(udp)) if udp.destination_port() == 68));
        let router = served[&11].network.routers[0].mac;
        assert_eq!((&frame[6..12], &frame[26..30]), (&router[..], &GATEWAY[..]));
        (<[u8; 6]>::try_from(&frame[..6]).unwrap(), <[u8; 4]>::try_from(&frame[30..34]).unwrap())
    };
    assert_eq!(to(&message(DISCOVER, [0; 4], &[])), (MAC, own));
    assert_eq!(to(&aloud), ([0xff; 6], [255; 4]));
    assert_eq!(to(&message(REQUEST, own, &[])), (MAC, own));
    assert_eq!(to(&message(REQUEST, [0; 4], &[(50, &[10, 0, 1, 12])])), ([0xff; 6], [255; 4]), "a refusal");
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let ends = Ends { src_mac: MAC, dst_mac: [0xff; 6], src: ANY, dst: Ipv4Addr::BROADCAST };
    datagram::udp_v4(&ends, 68, 67, payload)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, it is refused or answered with something whole, and what is given is the port's own.
    #[test]
    fn whatever_comes_nothing_is_given_that_is_not_the_ports(
        bytes in damaged(message(REQUEST, [0; 4], &[(50, &[10, 0, 1, 11]), (PARAMETERS, &[1, 3, 6, 121, 26])]))
    ) {
        let served = served_once();
        if let Ok(Some(heard)) = ask(served, 11, &bytes) {
            prop_assert!(heard.address() == [10, 0, 1, 11] || heard.address() == [0; 4]);
            prop_assert!(heard.bytes.len() + IP_AND_UDP <= 1400, "the network's MTU");
        }
    }

    #[test]
    fn whatever_the_frame_it_is_refused_or_read(bytes in damaged(frame(&message(DISCOVER, [0; 4], &[])))) {
        if let Ok(asked) = read(&bytes)
            && let Ok(Some(reply)) = answer(&served_once()[&11], &asked)
        {
            frame_of(&asked, &reply, &reply.write(&asked).bytes);
        }
    }
}

fn served_once() -> &'static Served {
    static SERVED: std::sync::OnceLock<Served> = std::sync::OnceLock::new();
    SERVED.get_or_init(|| served(DOCUMENT, true))
}
