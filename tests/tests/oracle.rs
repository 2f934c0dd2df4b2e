//! Linux as the oracle: the same topology built from bridges, namespaces and nftables, the same conversations
//! through both, and what each end observes compared.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use vrouter_tests::topology::{Topology, with_outside};
use vrouter_tests::{Lab, Linux, Outcome, Probe, Services, System, Talk};

/// What nobody answers is given up after this long.
const SILENCE: Duration = Duration::from_millis(1500);
/// Linux asks three times for a neighbour, a second apart, before it says that a host is unreachable.
const RESOLUTION: Duration = Duration::from_secs(6);
/// Every host serves here.
const SERVED: [u16; 3] = [7, 22, 53];
/// Nobody serves here.
const CLOSED: u16 = 9;
/// How many conversations go on at once.
const AT_ONCE: usize = 48;
/// And how many of those that are asked again.
const FEW: usize = 6;

/// Where the worlds differ on purpose. Nothing else may differ, and each of these must be seen.
const INTENDED: &[Intended] = &[
    Intended {
        what: "a router's own error about a floating IP",
        why: "comes from the router's address, as from any router; conntrack makes it come from the floating IP, so \
              that traceroute shows the destination at a router's place",
        applies: |case, linux, vrouter| {
            let Some(address) = FLOATING.iter().find(|address| case.ends_with(*address)) else {
                return false;
            };
            ["10.0.1.1", "10.0.2.1", ROUTER].iter().any(|own| {
                let (theirs, ours) = (format!("from {address}"), format!("from {own}"));
                linux.starts_with("icmp ")
                    && linux.contains(&theirs)
                    && linux.replace(&theirs, &ours) == vrouter
            })
        },
    },
    Intended {
        what: "a TTL of 2 from inside to a floating IP",
        why: "the packet leaves by the gateway and comes in by it again: the router is passed twice, as if another \
              had the floating IP, so that it makes no difference where it is",
        applies: |case, linux, vrouter| {
            FLOATING.iter().any(|address| case.ends_with(address))
                && case.starts_with("vm")
                && case.contains(" ttl 2 ")
                && linux.starts_with("answer")
                && vrouter == format!("icmp 11/0 from {ROUTER}")
        },
    },
    Intended {
        what: "a ping in fragments to the router itself",
        why: "is not put together: no memory for those who send only parts",
        applies: |case, linux, vrouter| {
            let is_large = case.contains("fragmented ping") || case.contains("ping") && is_fragmented(case);
            let is_routers = [ROUTER, SHARED].iter().any(|address| case.ends_with(address));
            is_large && is_routers && linux.starts_with("answer") && vrouter == "silence"
        },
    },
];

/// A difference between the worlds.
struct Intended {
    /// In which conversations.
    what: &'static str,
    /// Why vrouter's way is the better one.
    why: &'static str,
    /// Whether what was observed in a conversation (its name, Linux, vrouter) is that.
    applies: fn(&str, &str, &str) -> bool,
}

const ROUTER: &str = "203.0.113.10";
const SHARED: &str = "203.0.113.60";
const FLOATING: [&str; 2] = ["203.0.113.51", "203.0.113.55"];

/// Whether a random conversation's packets are larger than the network inside.
fn is_fragmented(case: &str) -> bool {
    ["length 1900", "length 5000"].iter().any(|length| case.contains(length))
}

const INSIDE: [&str; 6] = ["vm1", "vm2", "vm3", "vm4", "vm5", "vm6"];
const OUTSIDE: [&str; 4] = ["outside1", "server1", "server2", "narrow"];

/// Addresses that lead somewhere or nowhere, as anybody may try them.
const TARGETS: [&str; 30] = [
    // Inside.
    "10.0.1.11",
    "10.0.1.12",
    "10.0.2.13",
    "10.0.1.14",
    "10.0.2.15",
    "10.0.2.16",
    "fd00:1::b",
    "fd00:1::c",
    "fd00:2::d",
    "fd00:1::e",
    "fd00:2::f",
    "fd00:2::10",
    // Floating, shared, and the router's own.
    "203.0.113.51",
    "203.0.113.55",
    "203.0.113.60",
    "203.0.113.10",
    // Outside.
    "203.0.113.101",
    "198.51.100.10",
    "198.51.100.20",
    "198.51.101.10",
    "203.0.113.1",
    "2001:db8:ff::101",
    "2001:db8:aa::10",
    "2001:db8:aa::20",
    "2001:db8:ab::10",
    "2001:db8:ff::1",
    // No way there, on the way.
    "198.18.0.1",
    "198.19.0.1",
    "2001:db8:18::1",
    "2001:db8:19::1",
];

/// What `gw` refuses.
const REFUSED: [&str; 4] = ["198.18.", "198.19.", "2001:db8:18:", "2001:db8:19:"];

/// Security groups on two of the workloads, so that policy has a say.
fn topology() -> Topology {
    let mut topology = with_outside();
    topology.add_group(
        "guarded",
        &[
            "{ direction: ingress, protocol: tcp, ports: 7, remote: 10.0.0.0/8 }",
            "{ direction: ingress, protocol: udp, ports: 7-9, remote: 10.0.1.0/24 }",
            "{ direction: ingress, protocol: udp, ports: 7, remote: \"fd00:1::/64\" }",
            "{ direction: ingress, protocol: tcp, ports: 22 }",
            "{ direction: ingress, protocol: icmp, icmp_type: 8 }",
            "{ direction: egress }",
        ],
    );
    topology.add_group(
        "talker",
        &[
            "{ direction: egress, protocol: udp, remote: 198.51.100.0/24 }",
            "{ direction: egress, protocol: tcp, ports: 7-22, remote: 0.0.0.0/0 }",
            "{ direction: egress, protocol: icmp }",
            "{ direction: egress, protocol: udp, ports: 7, remote: \"2001:db8::/32\" }",
            "{ direction: egress, protocol: icmpv6, icmp_type: 128 }",
        ],
    );
    topology.put_into("vm3", &["guarded"]);
    topology.put_into("vm2", &["talker"]);
    topology
}

/// One conversation.
#[derive(Clone, Debug)]
struct Case {
    name: String,
    from: &'static str,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Probe(Probe),
    Connect(SocketAddr),
}

impl Case {
    fn probe(from: &'static str, target: &str, how: &str, probe: Probe) -> Self {
        Self { name: format!("{from} {how} {target}"), from, what: What::Probe(probe.timeout(SILENCE)) }
    }

    fn connect(from: &'static str, target: &str, port: u16) -> Self {
        let to = SocketAddr::new(ip(target), port);
        Self { name: format!("{from} tcp {port} {target}"), from, what: What::Connect(to) }
    }

    fn patiently(mut self) -> Self {
        if let What::Probe(probe) = self.what {
            self.what = What::Probe(probe.timeout(RESOLUTION));
        }
        self
    }

    /// What the sender observes, and through the answer what the receiver did.
    fn run(&self, lab: &Lab) -> Result<String> {
        let host = lab.host(self.from);
        match &self.what {
            What::Probe(probe) => Ok(match probe.send(host)? {
                // Linux's security groups are in the sender's own kernel, which says so; on a wire one hears
                // nothing.
                Outcome::Refused(reason) if reason == "prohibited" => Outcome::Silence.to_string(),
                outcome => outcome.to_string(),
            }),
            What::Connect(to) => Ok(match Talk::open(host, *to, None, SILENCE) {
                Ok(mut talk) => match talk.exchange(20_000) {
                    Ok(_) => format!("connected as {}", talk.seen().ip()),
                    Err(error) => format!("connected as {}, then {error:#}", talk.seen().ip()),
                },
                Err(error) => match error.downcast_ref::<std::io::Error>() {
                    Some(error) => vrouter_tests::probe::reason(error),
                    None => format!("{error:#}"),
                },
            }),
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The conversations every change must get right, in words.
fn scripted() -> Vec<Case> {
    let mut cases = Vec::new();
    let udp = |target: &str, port| Probe::udp(ip(target), port);
    let ping = |target: &str| Probe::ping(ip(target));
    let pairs: Vec<(&'static str, &str)> = [
        // Out: with a floating IP, with the router's, under policy; near and far; both families.
        ("vm1", "203.0.113.101"),
        ("vm1", "198.51.100.10"),
        ("vm4", "198.51.100.20"),
        ("vm5", "198.51.100.10"),
        ("vm2", "198.51.100.10"),
        ("vm6", "203.0.113.101"),
        ("vm1", "2001:db8:aa::10"),
        ("vm4", "2001:db8:ff::101"),
        ("vm2", "2001:db8:aa::10"),
        // In, from near and far.
        ("outside1", "203.0.113.51"),
        ("server1", "203.0.113.51"),
        ("outside1", "203.0.113.55"),
        ("server1", "203.0.113.55"),
        ("server1", "fd00:1::b"),
        ("outside1", "fd00:2::f"),
        ("outside1", "fd00:2::d"),
        ("outside1", "10.0.1.14"),
        // Through an address outside and back in.
        ("vm1", "203.0.113.55"),
        ("vm1", "203.0.113.51"),
        ("vm5", "203.0.113.51"),
        ("vm4", "203.0.113.51"),
        ("vm6", "203.0.113.55"),
        ("vm2", "203.0.113.55"),
        // East-west.
        ("vm1", "10.0.2.15"),
        ("vm1", "10.0.2.13"),
        ("vm5", "10.0.1.12"),
        ("vm4", "fd00:2::d"),
        ("vm6", "fd00:1::e"),
        // The router itself, and the next.
        ("outside1", "203.0.113.10"),
        ("vm1", "203.0.113.10"),
        ("vm4", "203.0.113.1"),
    ]
    .to_vec();
    for (from, target) in pairs {
        cases.push(Case::probe(from, target, "udp 7", udp(target, 7)));
        cases.push(Case::probe(from, target, "udp closed", udp(target, CLOSED)));
        cases.push(Case::probe(from, target, "ping", ping(target)));
        cases.push(Case::connect(from, target, 7));
        cases.push(Case::connect(from, target, CLOSED));
        for ttl in 1..=3 {
            cases.push(Case::probe(from, target, &format!("udp ttl {ttl}"), udp(target, 7).ttl(ttl)));
            cases.push(Case::probe(from, target, &format!("ping ttl {ttl}"), ping(target).ttl(ttl)));
        }
        let pieces = udp(target, 7).length(4000).returned();
        cases.push(Case::probe(from, target, "fragments", pieces));
        cases.push(Case::probe(from, target, "fragmented ping", ping(target).length(4000)));
        cases.push(Case::probe(from, target, "whole 1400", udp(target, 7).length(1400).dont_fragment()));
    }
    for (from, target, port) in [
        ("outside1", "203.0.113.60", 2222),
        ("server1", "203.0.113.60", 2226),
        ("server1", "203.0.113.60", 2223),
        ("vm1", "203.0.113.60", 2222),
        ("vm4", "203.0.113.60", 2226),
    ] {
        cases.push(Case::connect(from, target, port));
    }
    for (from, port) in [("server1", 5353), ("outside1", 5354), ("vm1", 5353)] {
        let how = format!("udp {port}");
        cases.push(Case::probe(from, "203.0.113.60", &how, udp("203.0.113.60", port)));
    }
    // Larger than the way: from the inside, from the outside, through every kind of translation.
    for (from, target) in [
        ("vm1", "198.51.101.10"),
        ("vm4", "198.51.101.10"),
        ("vm5", "2001:db8:ab::10"),
        ("narrow", "203.0.113.51"),
    ] {
        for length in [1200, 1273, 1400] {
            let whole = udp(target, 7).length(length).dont_fragment();
            cases.push(Case::probe(from, target, &format!("whole {length}"), whole));
            let whole = ping(target).length(length).dont_fragment();
            cases.push(Case::probe(from, target, &format!("whole ping {length}"), whole));
        }
        cases.push(Case::probe(from, target, "udp 1400 in pieces", udp(target, 7).length(1400).returned()));
        cases.push(Case::connect(from, target, 7));
    }
    for target in ["203.0.113.51", "203.0.113.55", "fd00:1::b", "10.0.2.16"] {
        let whole = udp(target, 7).length(1450).dont_fragment();
        cases.push(Case::probe("outside1", target, "whole 1450", whole));
        cases.push(Case::connect("outside1", target, 7));
    }
    // Nobody there.
    for from in ["vm1", "vm4", "server1"] {
        for target in ["198.18.0.1", "198.19.0.1", "2001:db8:18::1", "2001:db8:19::1"] {
            cases.push(Case::probe(from, target, "udp 7", udp(target, 7)));
            cases.push(Case::connect(from, target, 7));
        }
    }
    for (from, target) in [
        ("vm1", "203.0.113.99"),
        ("vm4", "203.0.113.98"),
        ("vm4", "2001:db8:ff::99"),
        ("vm1", "198.51.100.99"),
        ("vm6", "198.51.100.98"),
        ("vm1", "2001:db8:aa::99"),
        ("vm1", "10.0.2.99"),
        ("vm4", "fd00:2::99"),
        ("outside1", "10.0.2.98"),
    ] {
        cases.push(Case::probe(from, target, "udp 7", udp(target, 7)).patiently());
    }
    cases
}

/// Conversations nobody thought of, the same for the same seed.
fn random(seed: u64, count: usize) -> Vec<Case> {
    let mut state = seed;
    let mut below = move |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    let everybody: Vec<&'static str> = INSIDE.into_iter().chain(OUTSIDE).collect();
    let mut cases = BTreeMap::new();
    while cases.len() < count {
        let (from, target) = (everybody[below(everybody.len())], TARGETS[below(TARGETS.len())]);
        let port = [7, 22, 53, CLOSED, 2222, 5353][below(6)];
        let case = if below(4) == 0 {
            Case::connect(from, target, port)
        } else {
            let is_ping = below(3) == 0;
            let mut probe = if is_ping { Probe::ping(ip(target)) } else { Probe::udp(ip(target), port) };
            let mut how = if is_ping { "ping".to_owned() } else { format!("udp {port}") };
            if below(3) == 0 {
                let ttl = 1 + below(4) as u8;
                probe = probe.ttl(ttl);
                let _ = write!(how, " ttl {ttl}");
            }
            let length = [0, 1, 64, 600, 1200, 1273, 1400, 1422, 1900, 5000][below(10)].max(1);
            probe = probe.length(length);
            let _ = write!(how, " length {length}");
            if below(3) == 0 && length <= 1400 {
                probe = probe.dont_fragment();
                how.push_str(" whole");
            }
            if below(2) == 0 && !is_ping {
                probe = probe.returned();
                how.push_str(" returned");
            }
            if length > 1400 && REFUSED.iter().any(|start| target.starts_with(start)) {
                // `gw` says nothing about fragments whose checksum it cannot verify; Linux's router puts them
                // together for it.
                continue;
            }
            Case::probe(from, target, &how, probe)
        };
        cases.insert(case.name.clone(), case);
    }
    cases.into_values().collect()
}

/// Runs them, many at once, and tells what was observed by name.
fn observe(lab: &Lab, cases: &[Case], at_once: usize) -> BTreeMap<String, String> {
    for name in ["gw"].into_iter().chain(INSIDE).chain(OUTSIDE) {
        // Nobody's path MTU, neighbours or redirects of before.
        lab.host(name).run("ip route flush cache").unwrap();
        lab.host(name).run("ip -6 route flush cache").unwrap();
    }
    let (next, observed) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = case.run(lab).unwrap_or_else(|error| format!("failed: {error:#}"));
                    observed.lock().unwrap().insert(case.name.clone(), outcome);
                }
            });
        }
    });
    observed.into_inner().unwrap()
}

/// The servers of everybody, and the ways an operator has given.
fn furnish(lab: &Lab) -> Services {
    let mut services = Services::start(lab.host("gw"), &SERVED).unwrap();
    for name in INSIDE.into_iter().chain(OUTSIDE) {
        services.add(lab.host(name), &SERVED).unwrap();
    }
    lab.outside().route_inside("fd00::/16", "2001:db8:ff::10").unwrap();
    lab.outside().route_inside("10.0.0.0/16", "203.0.113.10").unwrap();
    // The first large answer over IPv6 would be lost to path MTU discovery, the second not.
    let host = |name: &str, line: &str| lab.host(name).run(&format!("ip -6 route {line} mtu 1450")).unwrap();
    for name in ["outside1", "gw"] {
        host(name, "replace fd00::/16 via 2001:db8:ff::10");
    }
    for name in ["server1", "server2"] {
        host(name, "replace default via 2001:db8:aa::1");
    }
    services
}

/// Every case, the scripted ones first.
fn every_case() -> Vec<Case> {
    let given = std::env::var("VROUTER_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or(1);
    println!("VROUTER_TEST_SEED={seed}");
    [scripted(), random(seed, 300)].concat()
}

/// The differences between two worlds, a line each.
fn differences(
    linux: &BTreeMap<String, String>,
    other: &BTreeMap<String, String>,
) -> Vec<(String, String, String)> {
    assert!(linux.keys().eq(other.keys()), "the same conversations");
    let pairs = linux.iter().map(|(name, observed)| (name, observed, &other[name]));
    let pairs = pairs.filter(|(_, linux, other)| linux != other);
    pairs.map(|(name, linux, other)| (name.clone(), linux.clone(), other.clone())).collect()
}

/// The oracle itself: Linux does what the textbooks say, and the same each time.
#[test]
fn the_oracle_is_sound() {
    let linux = Linux::start(&topology()).unwrap();
    let _services = furnish(&linux);
    let cases = every_case();
    let observed = observe(&linux, &cases, AT_ONCE);
    if std::env::var_os("VROUTER_TEST_PRINT").is_some() {
        observed.iter().for_each(|(name, outcome)| println!("{name}: {outcome}"));
    }
    for (name, expected) in [
        ("vm4 tcp 7 198.51.100.20", "connected as 203.0.113.10"),
        ("vm1 udp 7 198.51.100.10", "answer from 198.51.100.10 to 203.0.113.51"),
        ("vm1 udp 7 2001:db8:aa::10", "answer from 2001:db8:aa::10 to fd00:1::b"),
        ("vm1 udp 7 10.0.2.15", "answer from 10.0.2.15 to 10.0.1.11"),
        ("vm1 udp 7 203.0.113.55", "answer from 203.0.113.55 to 203.0.113.51"),
        ("vm1 udp 7 203.0.113.51", "answer from 203.0.113.51 to 203.0.113.51"),
        ("vm4 udp 7 203.0.113.51", "answer from 203.0.113.51 to 203.0.113.10"),
        ("outside1 udp 7 203.0.113.51", "answer from 203.0.113.51 to 203.0.113.101"),
        ("outside1 udp 7 10.0.1.14", "answer from 10.0.1.14 to 203.0.113.101"),
        ("outside1 udp closed 203.0.113.51", "icmp 3/3 from 203.0.113.51"),
        ("outside1 tcp 9 203.0.113.51", "refused"),
        ("outside1 tcp 2222 203.0.113.60", "connected as 203.0.113.101"),
        ("vm1 ping ttl 1 198.51.100.10", "icmp 11/0 from 10.0.1.1"),
        ("vm1 ping ttl 2 198.51.100.10", "icmp 11/0 from 203.0.113.1"),
        ("vm1 whole 1400 198.51.101.10", "icmp 3/4 from 203.0.113.1 mtu 1300"),
        ("vm5 whole 1400 2001:db8:ab::10", "icmp 2/0 from 2001:db8:ff::1 mtu 1300"),
        ("vm1 udp 7 198.18.0.1", "icmp 3/0 from 203.0.113.1"),
        ("vm1 udp 7 203.0.113.99", "icmp 3/1 from 10.0.1.1"),
        ("vm1 fragments 198.51.100.10", "answer from 198.51.100.10 to 203.0.113.51"),
        ("vm2 udp 7 198.51.100.10", "answer from 198.51.100.10 to 203.0.113.10"),
        ("vm2 udp 7 203.0.113.55", "silence"),
        ("vm5 udp 7 10.0.1.12", "silence"),
        ("outside1 udp 7 fd00:2::d", "silence"),
    ] {
        assert_eq!(observed.get(name).map(String::as_str), Some(expected), "{name}");
    }
    let again = observe(&linux, &cases, AT_ONCE);
    assert_eq!(differences(&observed, &again), [], "the same again");
}

/// The same conversations through vrouter and through Linux.
#[test]
fn two_nodes_do_what_linux_does() {
    compare(&topology());
}

/// And with everything on one node.
#[test]
fn one_node_does_what_linux_does() {
    compare(&topology().on_one_node());
}

fn compare(topology: &Topology) {
    let cases = every_case();
    std::thread::scope(|scope| {
        let linux = scope.spawn(|| {
            let linux = Linux::start(topology).unwrap();
            let services = furnish(&linux);
            let observed = observe(&linux, &cases, AT_ONCE);
            (linux, services, observed)
        });
        let system = System::start(topology).unwrap();
        let _services = furnish(&system);
        let mut vrouter = observe(&system, &cases, AT_ONCE);
        let (linux, _its_services, mut expected) = linux.join().unwrap();
        // Fifty at once may cost Linux a packet: what only it was silent about is asked of both again, calmly.
        let lost = differences(&expected, &vrouter).into_iter().filter(|(_, linux, _)| linux == "silence");
        let lost: Vec<String> = lost.map(|(name, ..)| name).collect();
        let again: Vec<Case> = cases.iter().filter(|case| lost.contains(&case.name)).cloned().collect();
        expected.extend(observe(&linux, &again, FEW));
        vrouter.extend(observe(&system, &again, FEW));
        for node in &topology.nodes {
            assert_eq!(system.drops(&node.name).unwrap()["internal"], 0, "{}", node.name);
        }
        judge(&expected, &vrouter);
    });
}

/// Every difference is one that is meant, and every one that is meant is there.
fn judge(linux: &BTreeMap<String, String>, vrouter: &BTreeMap<String, String>) {
    let mut unexpected = String::new();
    let mut missing: Vec<&str> = INTENDED.iter().map(|intended| intended.what).collect();
    for (name, linux, vrouter) in differences(linux, vrouter) {
        match INTENDED.iter().find(|intended| (intended.applies)(&name, &linux, &vrouter)) {
            Some(intended) => {
                if let Some(at) = missing.iter().position(|what| *what == intended.what) {
                    println!("differs on purpose: {}, which {}", intended.what, intended.why);
                    missing.swap_remove(at);
                }
            }
            None => {
                let _ = writeln!(unexpected, "{name}\n    Linux:   {linux}\n    vrouter: {vrouter}");
            }
        }
    }
    assert!(unexpected.is_empty() && missing.is_empty(), "{unexpected}intended, but not seen: {missing:?}");
}
