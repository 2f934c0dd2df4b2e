use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::{
    advert::{adverts, check_solicitation},
    *,
};
use crate::agent::services::{
    datagram::{self, Ends},
    fixture::{DOCUMENT, damaged, served},
};

fn solicitation(source: &str, options: &[u8]) -> Vec<u8> {
    let routers: Ipv6Addr = "ff02::2".parse().unwrap();
    let ends = Ends {
        src_mac: [2, 0, 0, 0, 1, 0xb],
        dst_mac: datagram::multicast_mac(routers),
        src: source.parse().unwrap(),
        dst: routers,
    };
    datagram::nd(&ends, &[&[133, 0, 0, 0, 0, 0, 0, 0][..], options].concat())
}

#[test]
fn each_mode_is_advertised_as_it_is() {
    let served = served(DOCUMENT, false);
    let one = |port: u32| {
        let mut adverts = adverts(&served[&port]);
        assert_eq!(adverts.len(), 1);
        adverts.remove(0)
    };
    let (stateful, slaac, stateless) = (one(11), one(13), one(14));
    assert_eq!((stateful.managed, stateful.other, stateful.prefixes[0].autonomous), (true, true, false));
    assert_eq!((slaac.managed, slaac.other, slaac.prefixes[0].autonomous), (false, false, true));
    assert_eq!((stateless.managed, stateless.other, stateless.prefixes[0].autonomous), (false, true, true));
    assert_eq!((stateful.lifetime, slaac.lifetime, stateless.lifetime), (LIFETIME, 0, LIFETIME));
    assert_eq!(stateful.mtu, 1400);
    let router = &served[&11].network.routers[0];
    assert_eq!((stateful.source, stateful.mac), (router.link_local, router.mac));
    assert_eq!(slaac.mac, served[&13].network.service_mac, "where there is no router");
}

/// Without an agent there is no next advertisement, and the data path goes on.
#[test]
fn a_prefix_lasts_as_long_as_its_router() {
    for (seconds, lasts) in [(60, 9000), (9001, 9001)] {
        let document = DOCUMENT.replace("lease_time: 7200", &format!("lease_time: {seconds}"));
        assert_eq!(adverts(&served(&document, false)[&11])[0].prefixes[0].seconds, lasts);
    }
}

#[test]
fn a_dns_server_of_several_subnets_is_told_once() {
    const CACHE4: &str = "{ name: cache4, cidr: 10.0.3.0/24, dhcp: false }";
    let servers = |servers: std::ops::Range<u32>| {
        let servers: Vec<_> = servers.map(|i| format!("\"fd00:3::{i:x}\"")).collect();
        let more = format!(
            "{CACHE4}\n      - {{ name: more6, cidr: \"fd00:4::/64\", ipv6_mode: slaac, dns: [{}] }}",
            servers.join(", ")
        );
        let served = served(&DOCUMENT.replace(CACHE4, &more), false);
        adverts(&served[&14])[0].dns.clone()
    };
    let [first, second] = ["fd00:3::2", "fd00:3::3"].map(|it| it.parse::<Ipv6Addr>().unwrap());
    assert_eq!(servers(2..4), [first, second]);
    assert_eq!(servers(3..19).len(), 16, "no more than there is room for");
}

#[test]
fn a_port_makes_an_address_of_a_prefix_only_if_it_may_use_it() {
    const VM3: &str = "fixed_ips: [10.0.2.11, \"fd00:2::ff:fe00:20b\"]";
    for (instead, autonomous) in [
        (VM3, true),
        ("fixed_ips: [10.0.2.11]", false),
        ("fixed_ips: [10.0.2.11], port_security: false", true),
        ("fixed_ips: [10.0.2.11], allowed_address_pairs: [{ ip: \"fd00:2::/64\" }]", true),
        ("fixed_ips: [10.0.2.11], allowed_address_pairs: [{ ip: \"fd00:2::ff:fe00:20b\" }]", true),
        (
            "fixed_ips: [10.0.2.11], allowed_address_pairs: [{ ip: \"fd00:2::17\" }, { ip: \"fd00:9::/64\" }]",
            false,
        ),
        (
            "fixed_ips: [10.0.2.11], allowed_address_pairs: [{ ip: \"fd00:2::/64\", mac: \"02:00:00:00:02:77\" }]",
            false,
        ),
    ] {
        let adverts = adverts(&served(&DOCUMENT.replace(VM3, instead), false)[&13]);
        let prefix = adverts[0].prefixes[0];
        assert_eq!(
            (prefix.net.to_string(), prefix.autonomous),
            ("fd00:2::/64".to_owned(), autonomous),
            "{instead}"
        );
    }
}

/// RFC 4861, 4.2 and 4.6; RFC 8106, 5.1.
#[test]
fn the_bytes_are_where_they_belong() {
    let served = served(DOCUMENT, false);
    let frame = adverts(&served[&14])[0].frame(None);
    let router = &served[&14].network.routers[0];
    assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(frame[21], 255, "hop limit");
    let message = &frame[54..];
    assert_eq!((message[0], message[1], message[4], message[5]), (134, 0, 64, 0x40));
    assert_eq!(message[6..8], 9000_u16.to_be_bytes(), "RFC 4861's most");
    assert_eq!(message[16..24], [&[1, 1][..], &router.mac].concat());
    assert_eq!(message[24..32], [&[5, 1, 0, 0][..], &1450_u32.to_be_bytes()].concat());
    let day = 86_400_u32.to_be_bytes();
    let net: Ipv6Addr = "fd00:3::".parse().unwrap();
    assert_eq!(message[32..64], [&[3, 4, 64, 0xc0][..], &day, &day, &[0; 4], &net.octets()].concat());
    let dns: Ipv6Addr = "fd00:3::2".parse().unwrap();
    assert_eq!(message[64..], [&[25, 3, 0, 0][..], &9000_u32.to_be_bytes(), &dns.octets()].concat());
}

#[test]
fn advertisements_come_soon_then_now_and_then_and_are_taken_back() {
    let sender = FrameSender::open().unwrap();
    let (mut router, start) = (Router::default(), Instant::now());
    let all = Arc::new(served(DOCUMENT, false));
    router.follow(&all, start);
    // vm2 is on the same network: all four ports.
    assert_eq!((router.told.len(), router.queue.len()), (4, 4));
    let first = router.next_due().unwrap();
    assert!(first > start && first < start + SOON.1);
    let mut now = start;
    let mut times: BTreeMap<u32, Vec<Duration>> = BTreeMap::new();
    while now < start + Duration::from_secs(3600) {
        now = router.next_due().unwrap();
        let before: Vec<_> = router.queue.iter().filter(|(due, _)| *due <= now).copied().collect();
        router.work(&sender, now);
        for (due, port) in before {
            times.entry(port).or_default().push(due - start);
        }
    }
    for times in times.values() {
        let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps[..3].iter().all(|gap| *gap >= INITIAL.0 && *gap <= INITIAL.1), "{gaps:?}");
        assert!(gaps[3..].iter().all(|gap| *gap >= INTERVAL.0 && *gap <= INTERVAL.1), "{gaps:?}");
    }
    // The same again is no news.
    let due = router.next_due();
    router.follow(&Arc::new(served(DOCUMENT, false)), now);
    assert_eq!(router.next_due(), due);
    // The router leaves one network, and another is not advertised any more.
    let changed = DOCUMENT.replace(", cache6]", "]").replace(", ipv6_mode: slaac", "");
    router.follow(&Arc::new(served(&changed, false)), now);
    let told = &router.told[&14];
    assert_eq!((told.gone.len(), told.gone[0].lifetime, told.adverts[0].lifetime), (1, 0, 0));
    assert_ne!(told.gone[0].source, told.adverts[0].source);
    assert_eq!(router.told[&13].gone.len(), 1);
    // Nothing is ever sent here: there is no such interface. What is taken back is so no less often than it was told.
    let mut count = 0;
    while !router.told[&14].gone.is_empty() {
        let due = router.told[&14].due;
        assert!(due <= now + SOON.1 + INITIAL.1 * INITIAL_COUNT);
        router.work(&sender, due);
        count += 1;
    }
    assert_eq!(count, 1 + INITIAL_COUNT);
    // Whose prefix is taken back has to be told for longer.
    assert_eq!(router.told[&13].gone.len(), 1);
    let end = now + WITHDRAWN + INTERVAL.1;
    while router.told.contains_key(&13) {
        assert!(router.next_due().unwrap() <= end);
        router.work(&sender, router.next_due().unwrap());
    }
    router.follow(&Arc::new(Served::new()), now);
    assert!(router.told.is_empty() && router.queue.is_empty());
}

/// RFC 4862, 5.5.3: addresses of a prefix that is not told any more would be used for days.
#[test]
fn a_prefix_that_leaves_is_taken_back() {
    const VM3: &str = "fixed_ips: [10.0.2.11, \"fd00:2::ff:fe00:20b\"]";
    let sender = FrameSender::open().unwrap();
    let (mut router, start) = (Router::default(), Instant::now());
    let follow = |router: &mut Router, document: &str, now| {
        router.follow(&Arc::new(served(document, false)), now);
        told(router)
    };
    // What port 13 is told: prefix, flags, whether it lasts.
    fn told(router: &Router) -> Vec<(String, u8, bool)> {
        let frames = router.told[&13].all().map(|advert| advert.frame(None));
        let mut told = Vec::new();
        for frame in frames {
            let mut options = &frame[54 + 16..];
            while let &[kind, len, ..] = options {
                if let (3, &[_, _, length, flags, ..]) = (kind, options) {
                    assert_eq!(options[4..8], options[8..12], "preferred as long as valid");
                    let net = Ipv6Addr::from(<[u8; 16]>::try_from(&options[16..32]).unwrap());
                    told.push((format!("{net}/{length}"), flags, options[4..8] != [0; 4]));
                }
                options = &options[usize::from(len) * 8..];
            }
        }
        told
    }
    let row = |net: &str, flags, lasts| (net.to_owned(), flags, lasts);
    let (old, new) = ("fd00:2::/64", "fd00:5::/64");
    assert_eq!(follow(&mut router, DOCUMENT, start), [row(old, 0xc0, true)]);
    // The port has no address of it any more: the prefix is there, and what the host made of it is not to be used.
    let without = DOCUMENT.replace(VM3, "fixed_ips: [10.0.2.11]");
    assert_eq!(follow(&mut router, &without, start), [row(old, 0x80, true), row(old, 0x40, false)]);
    assert_eq!(follow(&mut router, DOCUMENT, start), [row(old, 0xc0, true)], "as before");
    let renumbered = DOCUMENT.replace("fd00:2::", "fd00:5::");
    let both = [row(new, 0xc0, true), row(old, 0xc0, false)];
    assert_eq!(follow(&mut router, &renumbered, start), both);
    let mut now = start;
    while now < start + WITHDRAWN + INTERVAL.1 {
        assert!(now >= start + WITHDRAWN || told(&router) == both);
        now = router.next_due().unwrap();
        router.work(&sender, now);
    }
    assert_eq!(told(&router), [row(new, 0xc0, true)], "long enough");
    let gone = DOCUMENT.replace("ipv6_mode: slaac", "gateway: \"fd00:2::1\"");
    assert_eq!(follow(&mut router, &gone, now), [row(new, 0xc0, false)], "nobody else tells it");
    assert_eq!(router.told[&13].all().next().unwrap().lifetime, 0);
    // Many come and go.
    for i in 0..100 {
        follow(&mut router, &DOCUMENT.replace("fd00:2::", &format!("fd00:{i}a::")), now);
    }
    assert_eq!(told(&router).len(), 1 + WITHDRAWN_MAX);
    assert!(router.told[&13].all().all(|advert| advert.frame(None).len() <= 1280));
}

/// RFC 8106, 5.1: a server would be asked for as long as it was told to last.
#[test]
fn a_dns_server_that_leaves_is_taken_back() {
    /// What port 14 is told: who says it, how long servers last, which.
    fn told(router: &Router) -> Vec<(Ipv6Addr, u32, Vec<Ipv6Addr>)> {
        let mut told = Vec::new();
        for frame in router.told[&14].all().map(|advert| advert.frame(None)) {
            assert!(frame.len() <= 1280, "{} bytes", frame.len());
            let source = Ipv6Addr::from(<[u8; 16]>::try_from(&frame[22..38]).unwrap());
            let mut options = &frame[54 + 16..];
            while let &[kind, len, ..] = options {
                let (option, rest) = options.split_at(usize::from(len) * 8);
                if kind == 25 {
                    let seconds = u32::from_be_bytes(option[4..8].try_into().unwrap());
                    let servers =
                        option[8..].chunks(16).map(|it| Ipv6Addr::from(<[u8; 16]>::try_from(it).unwrap()));
                    told.push((source, seconds, servers.collect()));
                }
                options = rest;
            }
        }
        told
    }
    let sender = FrameSender::open().unwrap();
    let (mut router, start) = (Router::default(), Instant::now());
    let follow = |router: &mut Router, document: &str, now| {
        router.follow(&Arc::new(served(document, false)), now);
        told(router)
    };
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    let (old, new) = (address("fd00:3::2"), address("fd00:3::4"));
    let r1 = served(DOCUMENT, false)[&14].network.routers[0].link_local;
    assert_eq!(follow(&mut router, DOCUMENT, start), [(r1, 9000, vec![old])]);
    let changed = DOCUMENT.replace("fd00:3::2", "fd00:3::4");
    let both = [(r1, 9000, vec![new]), (r1, 0, vec![old])];
    assert_eq!(follow(&mut router, &changed, start), both);
    assert_eq!(
        follow(&mut router, DOCUMENT, start),
        [(r1, 9000, vec![old]), (r1, 0, vec![new])],
        "as before"
    );
    assert_eq!(follow(&mut router, &changed, start), both);
    let mut now = start;
    while now < start + WITHDRAWN + INTERVAL.1 {
        assert!(now >= start + WITHDRAWN || told(&router) == both);
        now = router.next_due().unwrap();
        router.work(&sender, now);
    }
    assert_eq!(told(&router), [(r1, 9000, vec![new])], "long enough");
    // The router leaves, with its server: who told it takes it back, then who is left.
    let without = changed.replace(", cache6]", "]").replace(", dns: [\"fd00:3::4\"]", "");
    assert_eq!(follow(&mut router, &without, now), [(r1, 0, vec![new])]);
    while !router.told[&14].gone.is_empty() {
        router.work(&sender, router.next_due().unwrap());
    }
    let services = router.told[&14].adverts[0].source;
    assert_eq!(told(&router), [(services, 0, vec![new])]);
    // Many come and go.
    for i in 0..100_u32 {
        let servers: Vec<_> = (0..16).map(|k| format!("\"fd00:3::{:x}\"", 0x100 * (i + 1) + k)).collect();
        let document = DOCUMENT.replace("\"fd00:3::2\"", &servers.join(", "));
        follow(&mut router, &document.replace("fd00:3::", &format!("fd00:{i}a::")), now);
    }
    let counts: Vec<_> =
        told(&router).iter().map(|(_, seconds, servers)| (*seconds, servers.len())).collect();
    assert_eq!(counts, [(9000, 16), (0, WITHDRAWN_MAX)]);
}

#[test]
fn solicitations_against_the_rules_are_refused() {
    const SOURCE: [u8; 8] = [1, 1, 2, 0, 0, 0, 1, 0xb];
    assert_eq!(check_solicitation(&solicitation("fe80::1", &SOURCE)), Ok(()));
    assert_eq!(check_solicitation(&solicitation("::", &[])), Ok(()));
    let mut far = solicitation("fe80::1", &[]);
    far[21] = 254;
    let mut code = solicitation("fe80::1", &[]);
    code[55] = 1;
    for (frame, reason) in [
        (solicitation("::", &SOURCE), "options_malformed"),
        (solicitation("fe80::1", &[1, 0, 0, 0, 0, 0, 0, 0]), "options_malformed"),
        (solicitation("fe80::1", &[1, 2, 0, 0, 0, 0, 0, 0]), "options_truncated"),
        (solicitation("fe80::1", &[1]), "options_truncated"),
        (far, "not_from_the_link"),
        (code, "malformed"),
    ] {
        assert_eq!(check_solicitation(&frame), Err(Refused(reason)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_it_is_refused_or_taken(
        frame in damaged(solicitation("fe80::1", &[1, 1, 2, 0, 0, 0, 1, 0xb, 14, 1, 0, 0, 0, 0, 0, 0]))
    ) {
        let _ = check_solicitation(&frame);
    }
}
