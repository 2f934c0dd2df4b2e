//! Behaviour L8: workloads are told what the topology says, by clients as they are used: dhclient, udhcpc, dhcpcd
//! and the kernel.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use serde_json::Value;
use vrouter_tests::frame::{Addressing, BROADCAST, contains, multicast_mac, open_vxlan};
use vrouter_tests::system::{Check, check_all};
use vrouter_tests::topology::{self, Topology};
use vrouter_tests::{System, Workload, wait};

const PATIENCE: Duration = Duration::from_secs(20);

/// The standard lab. `web` has an MTU of its own and DHCP over either family, `db` smaller packets and SLAAC.
///
/// ```text
/// vm1 10.0.1.11 fd00:1::b   vm2 10.0.1.12 fd00:1::c   vm4 10.0.1.14 fd00:1::e   web, MTU 1400
/// vm3, vm5, vm6 10.0.2.13, 15, 16, and what their hardware addresses make of fd00:2::/64   db, MTU 1300
/// ```
fn topology() -> Topology {
    let mut topology = topology::standard();
    let web = topology.network_mut("web");
    web.mtu = Some(1400);
    web.subnets[0].extra = [
        "dns: [10.0.1.2, 9.9.9.9]",
        "lease_time: 600",
        "host_routes: [{ destination: 192.168.0.0/17, nexthop: 10.0.1.12 }]",
        "dhcp_options: [{ name: ntp-server, value: 10.0.1.3 }, { name: domain-name, value: example.org }]",
    ]
    .map(str::to_owned)
    .to_vec();
    web.subnets[1].extra = ["dns: [\"fd00:1::2\"]", "ipv6_mode: dhcpv6-stateful"].map(str::to_owned).to_vec();
    let db = topology.network_mut("db");
    db.mtu = Some(1300);
    db.subnets[1].extra = ["dns: [\"fd00:2::2\"]", "ipv6_mode: slaac"].map(str::to_owned).to_vec();
    for port in topology.ports.iter_mut().filter(|port| port.network == "db") {
        let number: u8 = port.fixed_ips[0].rsplit('.').next().unwrap().parse().unwrap();
        port.fixed_ips[1] = format!("fd00:2::ff:fe00:2{number:02x}");
    }
    topology.port_mut("vm1").extra.push("dhcp_options: [{ code: 224, value: \"hex:0a0b\" }]".to_owned());
    topology
}

/// Takes its addresses and routes from a workload, but for the link-local ones.
fn forget(workload: &Workload) {
    for line in
        ["-4 address flush dev eth0", "-6 address flush dev eth0 scope global", "-4 route flush table main"]
    {
        workload.run(&format!("ip {line}")).unwrap();
    }
    workload.run("ip link set eth0 mtu 1450").unwrap();
}

/// How long a script may take: longer than what it waits for, on a slow machine.
const SCRIPT_SECONDS: &str = "120";

/// Runs a script in a workload, with files of its own below /etc, /run and /var/lib: clients write there.
fn script(workload: &Workload, script: &str) -> String {
    let own = "set -e; d=$(mktemp -d); cp -a /etc $d/etc; mount --bind $d/etc /etc; : > /etc/resolv.conf
        for at in /run /var/lib; do mount -t tmpfs none $at; done
        mkdir -p /var/lib/dhcp /var/lib/dhcpcd /run/dhcpcd; set +e\n";
    let mut command = workload.command("timeout");
    command.args([
        SCRIPT_SECONDS,
        "unshare",
        "-m",
        "sh",
        "-c",
        &format!("{own}{script}; rm -rf $d 2> /dev/null"),
    ]);
    let output = command.output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn json(workload: &Workload, line: &str) -> Value {
    serde_json::from_str(&workload.run(&format!("ip -j {line}")).unwrap()).unwrap()
}

/// The global addresses of `eth0`, with their prefix lengths.
fn addresses(workload: &Workload, family: &str) -> Vec<String> {
    let found = json(workload, &format!("-{family} address show dev eth0 scope global"));
    let of = |info: &Value| Some(format!("{}/{}", info["local"].as_str()?, info["prefixlen"]));
    found[0]["addr_info"].as_array().into_iter().flatten().filter_map(of).collect()
}

/// Where a destination's route leads: its gateway, or nothing.
fn route(workload: &Workload, family: &str, destination: &str) -> Option<String> {
    let routes = json(workload, &format!("-{family} route show {destination}"));
    routes[0]["gateway"].as_str().map(str::to_owned)
}

fn mtu(workload: &Workload) -> u64 {
    json(workload, "link show dev eth0")[0]["mtu"].as_u64().unwrap()
}

fn has(output: &str, words: &[&str]) {
    for word in words {
        assert!(output.contains(word), "no {word:?} in:\n{output}");
    }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    wait::until(what, PATIENCE, || Ok(is_so())).unwrap();
}

/// What the agent of `node-a` has counted.
fn served(system: &System, service: &str, outcome: &str) -> u64 {
    let status = system.agent("node-a").status().unwrap();
    status["agent"]["services"][service][outcome].as_u64().unwrap_or(0)
}

fn dhclient_gets_everything(system: &System) {
    let vm1 = system.workload("vm1");
    forget(vm1);
    let output = script(
        vm1,
        "dhclient -4 -v -1 eth0; cat /etc/resolv.conf /var/lib/dhcp/*; kill -9 $(cat /run/dhclient*.pid)",
    );
    has(&output, &["DHCPOFFER of 10.0.1.11 from 10.0.1.1", "DHCPACK of 10.0.1.11 from 10.0.1.1"]);
    has(&output, &["nameserver 10.0.1.2", "nameserver 9.9.9.9", "option domain-name \"example.org\""]);
    has(&output, &["option ntp-servers 10.0.1.3", "option dhcp-lease-time 600", "option host-name \"vm1\""]);
    assert_eq!(addresses(vm1, "4"), ["10.0.1.11/24"]);
    assert_eq!(route(vm1, "4", "default").as_deref(), Some("10.0.1.1"));
    assert_eq!(route(vm1, "4", "192.168.0.0/17").as_deref(), Some("10.0.1.12"));
    assert_eq!(mtu(vm1), 1400);
}

/// It was here with another address: it is told no, and gets its own.
fn dhclient_is_refused_anothers(system: &System) {
    let vm2 = system.workload("vm2");
    forget(vm2);
    let before = served(system, "dhcp", "nak");
    let lease = "lease { interface \\\"eth0\\\"; fixed-address 10.0.1.99; option subnet-mask 255.255.255.0; \
        option dhcp-server-identifier 10.0.1.1; renew 1 2037/1/1 0:0:0; rebind 1 2037/1/1 0:0:0; \
        expire 1 2037/1/1 0:0:0; }";
    let output = script(
        vm2,
        &format!(
            "echo \"{lease}\" > /var/lib/dhcp/l; dhclient -4 -v -1 -lf /var/lib/dhcp/l eth0; kill -9 $(cat /run/dhclient*.pid)"
        ),
    );
    has(&output, &["DHCPREQUEST for 10.0.1.99", "DHCPNAK from 10.0.1.1", "DHCPACK of 10.0.1.12"]);
    assert_eq!(addresses(vm2, "4"), ["10.0.1.12/24"]);
    wait_until("a refusal is counted", || served(system, "dhcp", "nak") > before);
}

/// udhcpc prints what it is told; it renews by unicast, and releases.
fn udhcpc_gets_renews_and_releases(system: &System) {
    let vm1 = system.workload("vm1");
    forget(vm1);
    let (acks, released) = (served(system, "dhcp", "ack"), served(system, "dhcp", "released"));
    let output = script(
        vm1,
        "printf '#!/bin/sh\\necho event $1; set; case $1 in bound) ip address add $ip/$mask dev eth0;; esac; echo done $1\\n' > /run/s; \
         chmod +x /run/s; heard() { n=0; until grep -q \"$1\" /run/log || [ $n -gt 300 ]; do n=$((n+1)); sleep 0.1; done; }; \
         udhcpc -f -i eth0 -s /run/s -O staticroutes -O mtu -O 224 -r 10.0.1.99 > /run/log 2>&1 & pid=$!; \
         heard 'done bound'; kill -USR1 $pid; heard 'done renew'; kill -USR2 $pid; heard 'entering released state'; \
         kill $pid; wait; cat /run/log",
    );
    has(&output, &["event bound", "event renew", "entering released state"]);
    has(&output, &["ip='10.0.1.11'", "mask='24'", "router='10.0.1.1'", "dns='10.0.1.2 9.9.9.9'"]);
    has(
        &output,
        &["mtu='1400'", "lease='600'", "serverid='10.0.1.1'", "opt224='0a0b'", "domain='example.org'"],
    );
    has(&output, &["staticroutes='0.0.0.0/0 10.0.1.1 192.168.0.0/17 10.0.1.12'", "broadcast='10.0.1.255'"]);
    // It may have asked twice.
    wait_until("two answers and a release are counted", || {
        served(system, "dhcp", "ack") >= acks + 2 && served(system, "dhcp", "released") > released
    });
}

fn dhcpcd_gets_both_families(system: &System) {
    let vm4 = system.workload("vm4");
    forget(vm4);
    vm4.netns().set_sysctl("ipv6/conf/eth0/accept_ra", "2").unwrap();
    let output = script(
        vm4,
        "printf 'hostname\\noption domain_name_servers, classless_static_routes, interface_mtu\\nia_na 1\\nnoipv4ll\\nnoarp\\npersistent\\n' > /run/c; \
         timeout -k 1 60 dhcpcd -f /run/c -d -B -t 50 eth0 > /run/log 2>&1 & pid=$!; n=0; \
         until ip -4 address show dev eth0 | grep -q 10.0.1.14/24 && ip -4 route | grep -q 192.168.0.0/17 \
         && ip -6 address show dev eth0 | grep -q fd00:1::e/128 || [ $n -gt 500 ]; do n=$((n+1)); sleep 0.1; done; \
         kill $pid; wait; cat /run/log /etc/resolv.conf",
    );
    assert_eq!(addresses(vm4, "4"), ["10.0.1.14/24"], "{output}");
    assert_eq!(route(vm4, "4", "default").as_deref(), Some("10.0.1.1"));
    assert_eq!(route(vm4, "4", "192.168.0.0/17").as_deref(), Some("10.0.1.12"));
    assert!(addresses(vm4, "6").contains(&"fd00:1::e/128".to_owned()), "{:?}", addresses(vm4, "6"));
}

fn dhclient_gets_its_ipv6_address(system: &System) {
    let vm1 = system.workload("vm1");
    forget(vm1);
    let output =
        script(vm1, "dhclient -6 -v -1 eth0; cat /etc/resolv.conf; kill -9 $(cat /run/dhclient*.pid)");
    has(&output, &["RCV: Advertise", "RCV: Reply", "IAADDR fd00:1::b", "nameserver fd00:1::2"]);
    assert_eq!(addresses(vm1, "6"), ["fd00:1::b/128"]);
}

/// The kernel makes its address of what it hears, at the first try.
fn the_kernel_makes_its_address(system: &System) {
    for name in ["vm3", "vm5"] {
        let (workload, own) = (system.workload(name), system.workload(name).v6().to_owned());
        forget(workload);
        workload.run("ip -6 route flush dev eth0 proto static").ok();
        for (key, value) in [("accept_ra", "2"), ("autoconf", "1"), ("addr_gen_mode", "0")] {
            workload.netns().set_sysctl(&format!("ipv6/conf/eth0/{key}"), value).unwrap();
        }
        workload.run("ip link set eth0 down").unwrap();
        let started = Instant::now();
        workload.run("ip link set eth0 up").unwrap();
        let expected = format!("{own}/64");
        while !addresses(workload, "6").contains(&expected) {
            assert!(started.elapsed() < PATIENCE, "{name}: {:?}", addresses(workload, "6"));
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("{name}: an address after {} ms", started.elapsed().as_millis());
        let default = route(workload, "6", "default").unwrap();
        assert!(default.starts_with("fe80::"), "{default}");
        assert_eq!(workload.run("cat /proc/sys/net/ipv6/conf/eth0/mtu").unwrap().trim(), "1300");
        if name == "vm5" {
            let ping = workload.ping("fd00:1::b", 2, &[]).unwrap();
            assert!(ping.is_clean(), "{}", ping.output);
        }
    }
}

/// What was told is what is carried: the largest packet passes each way, and of one byte more its sender is told.
fn the_mtu_is_what_is_carried(system: &System) {
    let (vm1, vm4, vm5) = (system.workload("vm1"), system.workload("vm4"), system.workload("vm5"));
    for workload in [vm1, vm4, vm5] {
        workload.netns().set_sysctl("ipv6/conf/eth0/accept_ra", "2").unwrap();
        // The kernel asks who the router is as soon as it has a link.
        workload.run("ip link set eth0 down").unwrap();
        workload.run("ip link set eth0 up").unwrap();
        let output = script(workload, "udhcpc -f -n -q -T 1 -t 15 -O mtu -i eth0 2>&1");
        has(&output, &["obtained"]);
        if workload.name() == "vm1" {
            let output = script(workload, "dhclient -6 -v -1 eth0; kill -9 $(cat /run/dhclient*.pid)");
            has(&output, &["RCV: Reply"]);
        }
    }
    for (from, to, most, is_v6) in [
        (vm1, vm4, 1400, false),
        (vm4, vm1, 1400, false),
        (vm1, vm5, 1300, false),
        (vm5, vm1, 1300, false),
        (vm1, vm5, 1300, true),
        (vm5, vm1, 1300, true),
    ] {
        let (what, headers) =
            (format!("{} to {}, {is_v6}", from.name(), to.name()), if is_v6 { 48 } else { 28 });
        let fits = (most - headers).to_string();
        let ping = from.ping(to.address(is_v6), 2, &["-M", "do", "-s", &fits]).unwrap();
        assert!(ping.is_clean(), "{what}: {}", ping.output);
        let more = (most - headers + 1).to_string();
        let ping = from.ping(to.address(is_v6), 1, &["-M", "do", "-s", &more]).unwrap();
        let told = [format!("mtu = {most}"), format!("mtu={most}"), format!("mtu: {most}")];
        assert!(
            !ping.is_clean() && told.iter().any(|told| ping.output.contains(told)),
            "{what}: {}",
            ping.output
        );
    }
}

/// Whether a frame, in VXLAN or not, is of DHCP, a router's solicitation or advertisement.
fn is_of_services(frame: &[u8]) -> bool {
    let frame = open_vxlan(frame).map_or(frame, |(_, inner)| inner);
    let port = |at: usize| frame.get(at..at + 2).map(|port| u16::from_be_bytes([port[0], port[1]]));
    match (frame.get(12..14), frame.get(20), frame.get(23)) {
        (Some([8, 0]), _, Some(17)) => matches!(port(34), Some(67 | 68)),
        (Some([0x86, 0xdd]), Some(17), _) => matches!(port(54), Some(546 | 547)),
        (Some([0x86, 0xdd]), Some(58), _) => matches!(frame.get(54), Some(133 | 134)),
        _ => false,
    }
}

/// What is told can be looked up.
fn it_is_shown(system: &System) {
    let told = system.agent("node-a").json(&["show", "dhcp"]).unwrap();
    let of = |address: &str| told.as_array().unwrap().iter().find(|row| row["address"] == address).unwrap();
    assert_eq!((&of("10.0.1.11")["how"], &of("10.0.1.11")["mtu"]), (&"dhcp".into(), &1400.into()));
    assert_eq!(of("fd00:1::b")["how"], "dhcpv6-stateful");
    assert_eq!(of("fd00:2::ff:fe00:20d")["how"], "slaac");
}

/// Nobody else hears what a port asks, nor what it is answered; and no workload answers others.
fn nobody_else_hears(system: &System) {
    let vm1 = system.workload("vm1");
    forget(vm1);
    let listeners = system.listen(&["vm2", "vm4"]).unwrap();
    let listeners = listeners.with("underlay", system.sniff_underlay("node-a").unwrap());
    let output = script(
        vm1,
        "dhclient -4 -v -1 eth0; kill -9 $(cat /run/dhclient*.pid); dhclient -6 -v -1 eth0; kill -9 $(cat /run/dhclient*.pid)",
    );
    has(&output, &["DHCPACK", "RCV: Reply"]);
    let marker = Addressing {
        from: vm1.spec_mac(),
        to: BROADCAST,
        source: vm1.ip(false),
        destination: Ipv4Addr::BROADCAST.into(),
        ttl: 64,
    };
    vm1.raw_send(&marker.udp(9, 9, b"L8 marker")).unwrap();
    // What is advertised to vm2 and vm4 themselves is theirs.
    let mac = vm1.spec_mac();
    let is_leak =
        |frame: &[u8]| is_of_services(frame) && (contains(frame, &mac) || open_vxlan(frame).is_some());
    let heard = listeners.heard(&["vm2", "vm4", "underlay"], b"L8 marker", is_leak).unwrap();
    assert!(heard.values().all(Vec::is_empty), "{heard:?}");
}

fn workloads_serve_nobody(system: &System) {
    let (vm1, vm2) = (system.workload("vm1"), system.workload("vm2"));
    let v4 = |to, destination| Addressing {
        from: vm1.spec_mac(),
        to,
        source: vm1.ip(false),
        destination,
        ttl: 64,
    };
    let all: std::net::Ipv6Addr = "ff02::1".parse().unwrap();
    let local: IpAddr = "fe80::ff:fe00:10b".parse().unwrap();
    let v6 = Addressing {
        from: vm1.spec_mac(),
        to: multicast_mac(all),
        source: local,
        destination: all.into(),
        ttl: 255,
    };
    let sniffer = vm2.sniff().unwrap();
    system
        .expect_drops("node-a", &[("rogue_dhcp", 3), ("rogue_ra", 1)], || {
            vm1.raw_send(&v4(BROADCAST, Ipv4Addr::BROADCAST.into()).udp(67, 68, &[2; 300]))?;
            vm1.raw_send(&v4(vm2.spec_mac(), vm2.ip(false)).udp(67, 68, &[2; 300]))?;
            vm1.raw_send(&v6.udp(547, 546, &[7; 40]))?;
            vm1.raw_send(&v6.icmpv6(134, 0, [64, 0, 7, 8], &[0; 8]))?;
            vm1.raw_send(&v4(BROADCAST, Ipv4Addr::BROADCAST.into()).udp(9, 9, b"rogue marker"))?;
            sniffer.expect(PATIENCE, |frame| contains(frame, b"rogue marker"))
        })
        .unwrap();
}

/// What is no DHCP is refused, counted by its reason; a port that floods is cut off, and others are not.
fn bad_input_is_counted(system: &System) {
    let vm1 = system.workload("vm1");
    let asking = Addressing {
        from: vm1.spec_mac(),
        to: BROADCAST,
        source: Ipv4Addr::UNSPECIFIED.into(),
        destination: Ipv4Addr::BROADCAST.into(),
        ttl: 64,
    };
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
    message.resize(28, 0);
    message.extend(vm1.spec_mac());
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, 1]);
    let cut = [&message[..], &[12, 200, 1]].concat();
    let mut relayed = [&message[..], &[255]].concat();
    relayed[24] = 10;
    for (bytes, reason) in [
        (vec![0; 100], "message_truncated"),
        (cut, "options_truncated"),
        (relayed, "relayed"),
        (vec![1; 300], "malformed"),
    ] {
        let before = served(system, "dhcp", reason);
        vm1.raw_send(&asking.udp(68, 67, &bytes)).unwrap();
        wait_until(reason, || served(system, "dhcp", reason) == before + 1);
    }
    // Refused by the agent, or dropped before it.
    let cut_off = || {
        let dropped = system.drops("node-a").unwrap();
        let dropped = dropped.iter().filter(|(reason, _)| reason.starts_with("service_"));
        served(system, "dhcp", "too_many") + dropped.map(|(_, count)| count).sum::<u64>()
    };
    let before = cut_off();
    let good = asking.udp(68, 67, &[&message[..], &[255]].concat());
    // At once, and far more than it may ask for meanwhile, however slow the machine is.
    vm1.flood(std::iter::repeat_n(good, 5000)).unwrap();
    let vm2 = system.workload("vm2");
    forget(vm2);
    has(&script(vm2, "dhclient -4 -v -1 eth0; kill -9 $(cat /run/dhclient*.pid)"), &["DHCPACK of 10.0.1.12"]);
    wait_until("a hundred are cut off", || cut_off() >= before + 100);
}

/// The network is renumbered: the kernel has the new address, and uses the old one no more.
fn a_prefix_that_leaves_is_taken_back(system: &mut System) {
    let mut topology = topology();
    let db = topology.network_mut("db");
    db.subnets[1].cidr = "fd00:22::/64".to_owned();
    db.subnets[1].gateway = Some("fd00:22::1".to_owned());
    for port in topology.ports.iter_mut().filter(|port| port.network == "db") {
        port.fixed_ips[1] = port.fixed_ips[1].replace("fd00:2:", "fd00:22:");
    }
    system.apply(&topology).unwrap();
    let vm5 = system.workload("vm5");
    wait_until("the old address is deprecated, the new one is not", || {
        let found = json(vm5, "-6 address show dev eth0 scope global");
        let infos = found[0]["addr_info"].as_array().unwrap();
        let of = |prefix: &str| {
            infos.iter().find(|info| info["local"].as_str().is_some_and(|local| local.starts_with(prefix)))
        };
        of("fd00:2:").is_some_and(|info| {
            info["preferred_life_time"] == 0 && info["valid_life_time"].as_u64() <= Some(2 * 3600)
        }) && of("fd00:22:").is_some_and(|info| info["preferred_life_time"] != 0)
    });
}

const CHECKS: [Check<System>; 11] = [
    ("shown", it_is_shown),
    ("dhclient", dhclient_gets_everything),
    ("dhclient, refused", dhclient_is_refused_anothers),
    ("udhcpc", udhcpc_gets_renews_and_releases),
    ("dhcpcd", dhcpcd_gets_both_families),
    ("dhclient, IPv6", dhclient_gets_its_ipv6_address),
    ("nobody else hears", nobody_else_hears),
    ("the kernel", the_kernel_makes_its_address),
    ("MTU", the_mtu_is_what_is_carried),
    ("rogues", workloads_serve_nobody),
    ("bad input", bad_input_is_counted),
];

#[test]
fn l8_workloads_are_told_what_the_topology_says() {
    let mut system = System::start(&topology()).unwrap();
    check_all(&system, &CHECKS);
    a_prefix_that_leaves_is_taken_back(&mut system);
}
