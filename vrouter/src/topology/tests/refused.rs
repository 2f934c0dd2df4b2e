//! One row per rule: a change to the base document, and the one problem it must give.

use super::*;

/// What to replace, by what (`§` stands before what the problem points at and is taken out), the object
/// that is blamed, and words of the message or the mend.
pub(super) type Row = (&'static str, &'static str, &'static str, &'static [&'static str]);

#[test]
fn yaml() {
    check(&[
        ("    vni: 1001", "    vni: 1001\n    §vni: 1002", "document", &["\"vni\"", "twice"]),
        ("routers:", "§networks: []\nrouters:", "document", &["\"networks\"", "twice"]),
        ("vni: 1001", "vni: §&a 1001", "document", &["anchors", "write the value out"]),
        ("vni: 1001", "vni: §!!int 1001", "document", &["tag", "without a tag"]),
        ("routers:\n", "§---\nrouters:\n", "document", &["second document"]),
        ("vni: 1001", "§[a, b]: 1001", "document", &["field's name must be a word"]),
        ("routers:", "§]\nrouters:", "document", &["not YAML"]),
        ("vni: 1001\n    mtu", "vni: §1001\n\tmtu", "document", &["not YAML"]),
    ]);
}

#[test]
fn dhcp() {
    const WEB4: &str = "dns: [10.0.1.2]";
    const WEB6: &str = "gateway: \"fd00:1::1\"";
    check(&[
        (WEB4, "lease_time: §5", "subnet web4", &["lease_time", "5", "60"]),
        (WEB4, "dhcp: §maybe", "subnet web4", &["neither true nor false"]),
        (WEB4, "ipv6_mode: §slaac", "subnet web4", &["10.0.1.0/24 is IPv4"]),
        (WEB6, "gateway: \"fd00:1::1\", ipv6_mode: §ra", "subnet web6", &["no such mode", "slaac"]),
        (WEB6, "gateway: \"fd00:1::1\", dhcp: §true", "subnet web6", &["does not say how", "ipv6_mode"]),
        (
            WEB6,
            "gateway: \"fd00:1::1\", host_routes: §[{ destination: 10.9.0.0/16, nexthop: 10.0.1.9 }]",
            "subnet web6",
            &["IPv4 alone"],
        ),
        (
            WEB4,
            "host_routes: [§{ destination: 10.9.0.0/16, nexthop: 10.0.2.9 }]",
            "subnet web4",
            &["10.0.2.9", "outside 10.0.1.0/24"],
        ),
        (
            WEB4,
            "host_routes: [§{ destination: 0.0.0.0/0, nexthop: 10.0.1.9 }]",
            "subnet web4 host_routes[0]",
            &["default route", "`gateway`"],
        ),
        (
            "gateway: 203.0.113.1 ",
            "gateway: 203.0.113.1, lease_time: §600 ",
            "subnet public4",
            &["external network", "leave it out"],
        ),
        (
            WEB4,
            "dhcp_options: [§{ name: ntp, value: 10.0.1.3 }]",
            "subnet web4 dhcp_options[0]",
            &["\"ntp\"", "ntp-server"],
        ),
        (
            WEB4,
            "dhcp_options: [§{ code: 3, value: 10.0.1.9 }]",
            "subnet web4 dhcp_options[0]",
            &["the server's own", "`gateway`"],
        ),
        (
            WEB4,
            "dhcp_options: [{ code: 200, value: §abc }]",
            "subnet web4 dhcp_options[0]",
            &["unknown form", "hex:"],
        ),
        (
            WEB4,
            "dhcp_options: [{ name: ntp-server, value: §\"fd00::1\" }]",
            "subnet web4 dhcp_options[0]",
            &["not an IPv4 address"],
        ),
        (
            WEB4,
            "dhcp_options: [{ code: 200, value: §\"hex:0ab\" }]",
            "subnet web4 dhcp_options[0]",
            &["hexadecimal"],
        ),
        (
            WEB4,
            "host_routes: [{ destination: 10.9.0.0/16, nexthop: 10.0.1.9 },\n          §{ destination: 10.9.0.0/16, nexthop: 10.0.1.8 }]",
            "subnet web4",
            &["10.9.0.0/16", "twice"],
        ),
        (
            "      - { name: web6,",
            "      - { name: more6, cidr: \"fd00:9::/64\", ipv6_mode: slaac, dhcp_options: §[{ name: domain-search, value: example.org }] }
      - { name: web6,",
            "subnet more6",
            &["with slaac nobody asks", "`ipv6_mode: dhcpv6-stateless`"],
        ),
        (
            WEB6,
            "gateway: \"fd00:1::1\", dhcp_options: §[{ name: domain-search, value: example.org }]",
            "subnet web6",
            &["without ipv6_mode", "leave them out"],
        ),
        (
            WEB6,
            "gateway: \"fd00:1::1\", ipv6_mode: §ra, dhcp_options: [{ name: domain-search, value: example.org }]",
            "subnet web6",
            &["no such mode"],
        ),
        (
            WEB4,
            "dns: §[10.0.1.2, 10.0.1.3, 10.0.1.4, 10.0.1.5, 10.0.1.6, 10.0.1.7, 10.0.1.8, 10.0.1.9, 10.0.1.10, 10.0.1.11, 10.0.1.12, \
                10.0.1.13, 10.0.1.14, 10.0.1.15, 10.0.1.16, 10.0.1.17, 10.0.1.18]",
            "subnet web4",
            &["17 DNS servers", "at most 16"],
        ),
    ]);
}

#[test]
fn shapes() {
    check(&[
        (
            "ports:\n  - name: vm1",
            "§port: 1\nports:\n  - name: vm1",
            "document",
            &["\"port\"", "did you mean `ports`?"],
        ),
        ("    mtu: 1450", "    §mut: 1450", "network web", &["\"mut\"", "did you mean `mtu`?"]),
        ("    mtu: 1450", "    §colour: red", "network web", &["\"colour\"", "use one of name, vni"]),
        (
            "{ ip: 10.0.1.100 }",
            "{ §ips: 10.0.1.100, ip: 10.0.1.1 }",
            "port vm1 allowed_address_pairs[0]",
            &["`ip`"],
        ),
        ("  - name: db\n    sub", "  - §sub", "networks[1]", &["name is missing", "add `name: …`"]),
        ("name: db4, ", "§", "network db subnets[0]", &["name is missing"]),
        (
            "- name: vm2\n    network: web\n    mac: 02:00:00:00:01:0b",
            "- §name: vm2\n    network: web",
            "port vm2",
            &["mac is missing"],
        ),
        (
            "- name: vm2\n    network: web\n    mac: 02:00:00:00:01:0b",
            "- §name: vm2\n    network: web\n    mac: ~",
            "port vm2",
            &["mac is missing"],
        ),
        ("name: node-a, vtep: 192.0.2.1 }", "§name: node-a }", "node node-a", &["vtep is missing"]),
        ("mtu: 1450", "mtu: §[1450]", "network web", &["mtu is a list"]),
        ("mtu: 1450", "mtu: §{ a: 1 }", "network web", &["mtu is a mapping"]),
        (
            "fixed_ips: [10.0.1.11]",
            "fixed_ips: §10.0.1.11",
            "port vm2",
            &["fixed_ips is not a list", "[ … ]"],
        ),
        (
            "gateway: { network: public, address: 203.0.113.11 }",
            "gateway: §public",
            "router r2 gateway",
            &["mapping"],
        ),
        ("  - name: r2", "  - §r3\n  - name: r2", "routers[1]", &["not a mapping"]),
        ("name: vm2", "name: §v m2", "ports[1]", &["name \"v m2\" holds a space"]),
        ("name: vm2", "name: §vm/2", "ports[1]", &["holds a `/`"]),
        ("name: vm2", "name: §\"\"", "ports[1]", &["is empty"]),
        ("name: vm2", "name: §\"vm\\0\"", "ports[1]", &["control character"]),
    ]);
    let long = BASE.replace("name: vm2", &format!("name: {}", "x".repeat(256)));
    assert_one("256 bytes", &long, 45, "ports[1]", &["longer than 255"]);
}

#[test]
fn values() {
    check(&[
        ("vni: 1001", "vni: §0", "network web", &["vni \"0\" is not from 1 to 16777215"]),
        ("vni: 1001", "vni: §16777216", "network web", &["16777215"]),
        ("vni: 1001", "vni: §99999999999999999999", "network web", &["16777215"]),
        ("vni: 1001", "vni: §0x10", "network web", &["not a whole number"]),
        ("vni: 1001", "vni: §-1", "network web", &["not a whole number"]),
        ("mtu: 1450", "mtu: §67", "network web", &["68 to 65535"]),
        ("mtu: 1450", "mtu: §65536", "network web", &["68 to 65535"]),
        ("mtu: 1450", "mtu: §1279", "network web", &["1279", "web6", "1280"]),
        ("external: true", "external: §yes", "network public", &["neither true nor false"]),
        ("10.0.1.0/24", "§10.0.1.5/24", "subnet web4", &["host bits", "10.0.1.0/24", "10.0.1.5/32"]),
        ("10.0.1.0/24", "§10.0.1.0/33", "subnet web4", &["not an address range"]),
        ("10.0.1.0/24", "§10.0.1.0", "subnet web4", &["no prefix length", "10.0.1.0/24"]),
        ("10.0.1.0/24", "§web", "subnet web4", &["cidr \"web\""]),
        ("10.0.3.0/24", "§127.0.0.0/16", "subnet lab4", &["loopback"]),
        ("10.0.3.0/24", "§224.1.0.0/16", "subnet lab4", &["multicast"]),
        ("10.0.3.0/24", "§250.0.0.0/8", "subnet lab4", &["reserved"]),
        ("10.0.3.0/24", "§0.0.0.0/0", "subnet lab4", &["no address"]),
        ("10.0.3.0/24", "§\"::/64\"", "subnet lab4", &["::/96"]),
        ("10.0.3.0/24", "§\"::ffff:10.0.3.0/120\"", "subnet lab4", &["IPv4-mapped"]),
        ("10.0.3.0/24", "§\"fe80::/64\"", "subnet lab4", &["link-local"]),
        ("10.0.3.0/24", "§\"ff00::/8\"", "subnet lab4", &["multicast"]),
        ("[10.0.3.3]", "[§10.0.3]", "port vm3", &["fixed_ips[0] \"10.0.3\" is not an IP address"]),
        ("[10.0.3.3]", "[§10.0.3.3/24]", "port vm3", &["without a prefix length"]),
        ("[10.0.3.3]", "[§0.0.0.0]", "port vm3", &["no address"]),
        ("[10.0.3.3]", "[10.0.3.3, §\"::1\"]", "port vm3", &["fixed_ips[1]", "loopback"]),
        ("[10.0.3.3]", "[10.0.3.3, §\"::ffff:10.0.3.3\"]", "port vm3", &["IPv4-mapped"]),
        ("[10.0.3.3]", "[10.0.3.3, §\"fe80::1\"]", "port vm3", &["link-local"]),
        ("02:00:00:00:01:0b", "§02:00:00:00:01", "port vm2", &["not a MAC address", "six pairs"]),
        ("02:00:00:00:01:0b", "§02:00:00:00:01:0g", "port vm2", &["not a MAC address"]),
        ("02:00:00:00:01:0b", "§02:00:00:00:01:+b", "port vm2", &["not a MAC address"]),
        ("02:00:00:00:01:0b", "§01:00:5e:00:00:01", "port vm2", &["multicast"]),
        ("02:00:00:00:01:0b", "§00:00:00:00:00:00", "port vm2", &["all zero"]),
        ("02:00:00:00:01:0b", "§ff:ff:ff:ff:ff:ff", "port vm2", &["broadcast"]),
        ("hook: xdp", "hook: §tcx", "port vm2", &["not a hook"]),
        ("interface: tap-vm2", "interface: §tap-vm2-too-long", "port vm2", &["kernel interface", "15 bytes"]),
        ("interface: tap-vm2", "interface: §..", "port vm2", &["kernel interface"]),
        ("interface: tap-vm2", "interface: §a/b", "port vm2", &["kernel interface"]),
        (
            "{ ip: 10.0.1.100 }",
            "{ ip: §\"::ffff:10.0.0.0/104\" }",
            "port vm1 allowed_address_pairs[0]",
            &["IPv4-mapped", "write 10.0.0.0/8"],
        ),
        ("{ ip: 10.0.1.100 }", "{ ip: §10.0.1.100/24 }", "port vm1 allowed_address_pairs[0]", &["host bits"]),
        (
            "{ ip: 10.0.1.100 }",
            "{ ip: 10.0.1.100, mac: §1 }",
            "port vm1 allowed_address_pairs[0]",
            &["mac \"1\""],
        ),
        ("192.0.2.0/28", "§192.0.2.0/27x", "address group admins", &["addresses[0]", "not an address range"]),
        ("vtep: 192.0.2.1 ", "vtep: §0.0.0.0 ", "node node-a", &["vtep 0.0.0.0"]),
        ("vtep: 192.0.2.1 ", "vtep: §127.0.0.1 ", "node node-a", &["loopback"]),
        ("vtep: 192.0.2.1 ", "vtep: §239.1.1.1 ", "node node-a", &["multicast"]),
        ("vtep: 192.0.2.1 ", "vtep: §255.255.255.255 ", "node node-a", &["reserved"]),
        ("vtep: 192.0.2.1 ", "vtep: §\"2001:db8::1\" ", "node node-a", &["write an IPv4 address"]),
    ]);
}

#[test]
fn networks() {
    check(&[
        ("name: db\n", "name: §web\n", "network web", &["name is taken", "line 2"]),
        ("name: lab4", "§name: web4", "subnet web4", &["name is taken", "line 6"]),
        (
            "      - { name: web6,",
            "      - §{ name: web4, cidr: 10.0.1.0/24 }\n      - { name: web6,",
            "subnet web4",
            &["name is taken", "line 6"],
        ),
        (
            "name: db\n",
            "name: db\n    vni: §1001\n",
            "network db",
            &["1001", "network web's too", "another `vni`"],
        ),
        ("gateway: 10.0.2.1 ", "gateway: §10.0.1.1 ", "subnet db4", &["10.0.1.1", "outside 10.0.2.0/24"]),
        ("gateway: 10.0.2.1 ", "gateway: §10.0.2.0 ", "subnet db4", &["network address"]),
        ("gateway: 10.0.2.1 ", "gateway: §10.0.2.255 ", "subnet db4", &["broadcast address"]),
        ("gateway: 10.0.2.1 ", "gateway: §\"fd00::1\" ", "subnet db4", &["outside"]),
        (
            "routers:\n",
            "  - name: outer\n    external: true\n    subnets: [{ name: o, cidr: §203.0.0.0/16 }]\nrouters:\n",
            "subnet o",
            &["203.0.0.0/16 overlaps 203.0.113.0/24 of subnet public4 of another external network"],
        ),
        ("dns: [10.0.1.2]", "dns: [§\"fd00::2\"]", "subnet web4", &["DNS", "family"]),
        (
            "[{ name: lab4, cidr: 10.0.3.0/24 },",
            "[{ name: lab4, cidr: 10.0.3.0/24 }, { name: lab6, cidr: §10.0.3.0/25 },",
            "subnet lab6",
            &["10.0.3.0/25 overlaps 10.0.3.0/24 of subnet lab4"],
        ),
        (
            "      - { name: web6,",
            "      - { name: web5, cidr: §10.0.1.128/25 }\n      - { name: web6,",
            "subnet web5",
            &["overlaps", "web4", "same network"],
        ),
    ]);
}

#[test]
fn derived_vnis_clash_like_written_ones() {
    let text = BASE.replace("vni: 1001", &format!("vni: {}", derive_vni("db")));
    assert_one(
        "derived",
        &text,
        8,
        "network db",
        &["derived from its name", "network web's", "explicit `vni`"],
    );
    // Two names with one hash, found by trying.
    let (one, two) = colliding_names();
    let text = format!("networks:\n  - {{ name: {one} }}\n  - {{ name: {two} }}\n");
    assert_one(
        "both",
        &text,
        3,
        &format!("network {two}"),
        &["derived", "give one of them an explicit `vni`"],
    );
}

fn colliding_names() -> (String, String) {
    let mut seen = std::collections::HashMap::new();
    for i in 0.. {
        let name = format!("n{i}");
        if let Some(other) = seen.insert(derive_vni(&name), name.clone()) {
            return (other, name);
        }
    }
    unreachable!("there are only so many VNIs")
}

#[test]
fn routers() {
    check(&[
        ("  - name: r2", "  - name: §r1", "router r1", &["name is taken"]),
        ("[web4, web6,", "[web4, §web7,", "router r1", &["no subnet web7", "did you mean \"web"]),
        ("[web4, web6,", "[web4, §elsewhere,", "router r1", &["no subnet elsewhere", "add it to a network"]),
        ("[web4, web6,", "[web4, web6, §web6,", "router r1", &["listed twice"]),
        ("[web4, web6,", "[web4, web6, §lab4,", "router r1", &["no address", "{ subnet: lab4, address: … }"]),
        ("[web4, web6,", "[web4, web6, §public4,", "router r1", &["external", "gateway: { network: public"]),
        ("address: 10.0.1.254", "address: §10.0.2.254", "router r2", &["10.0.2.254 is outside 10.0.1.0/24"]),
        ("address: 10.0.1.254", "address: §10.0.1.0", "router r2", &["network address"]),
        ("address: 10.0.1.254", "address: §10.0.1.255", "router r2", &["broadcast address"]),
        ("address: 10.0.1.254", "address: §10.0.1.1", "router r2", &["router r1's already"]),
        (
            "[{ subnet: web4, address: 10.0.1.254 }]",
            "[§web4]",
            "router r2",
            &["router r1's already", "{ subnet: web4"],
        ),
    ]);
}

#[test]
fn gateways() {
    check(&[
        (
            "network: public, address: 203.0.113.11",
            "network: §pub, address: 203.0.113.11",
            "router r2",
            &["no network pub"],
        ),
        (
            "network: public, address: 203.0.113.11",
            "network: §lab, address: 203.0.113.11",
            "router r2",
            &["not external"],
        ),
        ("address: 203.0.113.11", "address: §203.0.114.11", "router r2", &["outside", "203.0.113.0/24"]),
        ("address: 203.0.113.11", "address: §203.0.113.10", "router r2", &["router r1's already"]),
        ("address: 203.0.113.11", "address: §203.0.113.1", "router r2", &["next router's address"]),
        ("address: 203.0.113.11", "address: §203.0.113.255", "router r2", &["broadcast address"]),
        (", address: 203.0.113.11", "§", "router r2 gateway", &["address is missing"]),
        ("address: 203.0.113.11", "address: §[]", "router r2 gateway", &["empty list", "at least one"]),
        (
            "address: 203.0.113.11",
            "address: [203.0.113.11,\n      §203.0.113.12]",
            "router r2 gateway",
            &["203.0.113.12 is a second IPv4 gateway address", "floating ips"],
        ),
        (
            "address: 203.0.113.11",
            "address: [\"2001:db8::b\",\n      §\"2001:db8::c\"]",
            "router r2 gateway",
            &["second IPv6 gateway address"],
        ),
        (
            "address: 203.0.113.11",
            "address: [203.0.113.11,\n      §\"2001:db8::a\"]",
            "router r2",
            &["2001:db8::a is router r1's already"],
        ),
        (
            "address: 203.0.113.11",
            "address: [203.0.113.11,\n      §\"2001:db9::a\"]",
            "router r2",
            &["2001:db9::a is outside every subnet of network public"],
        ),
        (
            "address: 203.0.113.11",
            "address: [203.0.113.11,\n      §\"2001:db8::1\"]",
            "router r2",
            &["next router's address of subnet public6"],
        ),
        (
            "address: 203.0.113.11",
            "address: [§203.0.113]",
            "router r2 gateway",
            &["address[0]", "IP address"],
        ),
        (
            "snat: true",
            "snat: true, snat_ports: §0-1023",
            "router r1 gateway",
            &["snat_ports starts at 0", "1024-65535"],
        ),
        (
            "snat: true",
            "snat: true, snat_ports: §5000-4000",
            "router r1 gateway",
            &["snat_ports 5000-4000 is reversed", "4000-5000"],
        ),
        ("snat: true", "snat: true, snat_ports: §60000-70000", "router r1 gateway", &["0 to 65535"]),
        ("snat: true", "snat: true, §snat_port: 1", "router r1 gateway", &["did you mean `snat_ports`?"]),
        ("snat: true", "snat: §on", "router r1 gateway", &["neither true nor false"]),
    ]);
}

#[test]
fn overlaps_on_a_router() {
    let with = |cidr: &str, gateway: &str| {
        let lab = format!("cidr: 10.0.3.0/24 }}, {{ name: x, cidr: {cidr}, gateway: {gateway} }},");
        BASE.replace("cidr: 10.0.3.0/24 },", &lab).replace("address: 10.0.2.1 }]", "address: 10.0.2.1 }, x]")
    };
    accepted(&with("10.0.4.0/24", "10.0.4.1"));
    let words = &["10.0.2.0/25 of subnet x", "overlaps 10.0.2.0/24 of subnet db4"];
    assert_one("nested", &with("10.0.2.0/25", "10.0.2.2"), 17, "router r1", words);
    let words = &["subnet x", "the same range", "db4"];
    assert_one("identical", &with("10.0.2.0/24", "10.0.2.2"), 17, "router r1", words);
    let words = &["subnet x", "203.0.113.0/24 of subnet public4"];
    assert_one("external", &with("203.0.113.128/25", "203.0.113.129"), 17, "router r1", words);
}

#[test]
fn routes() {
    check(&[
        (
            "nexthop: 10.0.2.9",
            "nexthop: §10.0.7.9",
            "router r1",
            &["10.0.7.9 is in no subnet", "10.0.1.0/24"],
        ),
        ("nexthops: [10.0.2.9,", "nexthops: [§10.0.7.9,", "router r1", &["10.0.7.9 is in no subnet"]),
        ("nexthops: [10.0.2.9,", "nexthops: [10.0.2.9, §10.0.2.9,", "router r1", &["listed twice"]),
        ("nexthop: 10.0.2.9", "nexthop: §10.0.2.1", "router r1", &["router's own address"]),
        ("nexthop: 10.0.2.9", "nexthop: §203.0.113.10", "router r1", &["router's own address"]),
        ("nexthop: 10.0.2.9", "nexthop: §10.0.2.255", "router r1", &["broadcast address of 10.0.2.0/24"]),
        ("nexthop: 10.0.2.9", "nexthop: §\"fd00:1::9\"", "router r1", &["family of 10.99.0.0/16"]),
        (
            "nexthop: 10.0.2.9",
            "nexthop: §drop",
            "router r1 routes[0]",
            &["\"drop\"", "`blackhole` or `unreachable`"],
        ),
        ("nexthop: 10.0.2.9", "nexthop: §[]", "router r1 routes[0]", &["empty list"]),
        (
            "nexthop: 10.0.2.9",
            "nexthop: 10.0.2.9, nexthops: §[10.0.2.9]",
            "router r1 routes[0]",
            &["both given"],
        ),
        (", nexthop: 10.0.2.9", "§", "router r1 routes[0]", &["nexthop is missing"]),
        (
            "destination: 10.98.0.0/16",
            "destination: §10.99.0.0/16",
            "router r1",
            &["line 20 already", "[a, b]"],
        ),
        ("destination: 10.98.0.0/16", "destination: §10.0.2.0/24", "router r1", &["connected subnet db4"]),
        (
            "destination: 10.98.0.0/16",
            "destination: §203.0.113.0/24",
            "router r1",
            &["connected subnet public4"],
        ),
        ("destination: 10.98.0.0/16", "destination: §10.98.0.1/16", "router r1 routes[1]", &["host bits"]),
    ]);
}

#[test]
fn security_groups() {
    const RULE: &str = "protocol: tcp, ports: 80-443, remote: 0.0.0.0/0";
    const OBJECT: &str = "security group web-sg rules[0]";
    check(&[
        (
            "direction: egress",
            "direction: §out",
            "security group web-sg rules[4]",
            &["`ingress`", "`egress`"],
        ),
        (RULE, "protocol: §tpc", OBJECT, &["not a protocol"]),
        (RULE, "protocol: §256", OBJECT, &["not a protocol"]),
        ("ports: 80-443", "ports: §443-80", OBJECT, &["reversed", "80-443"]),
        ("ports: 80-443", "ports: §80-65536", OBJECT, &["range of ports"]),
        ("ports: 80-443", "ports: §80-90-100", OBJECT, &["range of ports"]),
        (RULE, "ports: §80", OBJECT, &["protocol without ports", "protocol: tcp"]),
        (RULE, "protocol: 47, ports: §80", OBJECT, &["protocol without ports"]),
        (RULE, "protocol: icmp, ports: §8", OBJECT, &["protocol without ports", "icmp_type"]),
        (RULE, "protocol: tcp, icmp_type: §8", OBJECT, &["another protocol", "protocol: icmp"]),
        (RULE, "icmp_code: §8", OBJECT, &["another protocol"]),
        (RULE, "protocol: icmp, icmp_code: §8", OBJECT, &["without icmp_type"]),
        (RULE, "protocol: icmp, icmp_type: §256", OBJECT, &["0 to 255"]),
        (RULE, "ethertype: §ipv6, remote: 10.0.0.0/8", OBJECT, &["ethertype is ipv6 and the remote is ipv4"]),
        (RULE, "ethertype: §ip, remote: 10.0.0.0/8", OBJECT, &["not an ethertype"]),
        (RULE, "protocol: §icmpv6, remote: 10.0.0.0/8", OBJECT, &["ICMPv6 in a rule for IPv4"]),
        (
            RULE,
            "remote: 10.0.0.0/8, remote_group: §web-sg",
            OBJECT,
            &["remote and remote_group are both given"],
        ),
        (RULE, "remote: §10.0.0.1/8", OBJECT, &["host bits"]),
        (
            "remote_group: web-sg",
            "remote_group: §web-gs",
            "security group web-sg rules[1]",
            &["did you mean \"web-sg\"?"],
        ),
        (
            "remote_address_group: admins",
            "remote_address_group: §ops",
            "security group web-sg rules[3]",
            &["no address group ops"],
        ),
        (
            "address_groups:",
            "  - { name: §web-sg }\naddress_groups:",
            "security group web-sg",
            &["name is taken"],
        ),
        ("ports:\n", "  - { name: §admins }\nports:\n", "address group admins", &["name is taken"]),
    ]);
}

#[test]
fn ports() {
    check(&[
        ("name: vm3", "name: §vm1", "port vm1", &["name is taken by the port in line 37"]),
        ("network: lab", "network: §labs", "port vm3", &["no network labs", "did you mean \"lab\"?"]),
        (
            "network: lab\n    mac: 02:00:00:00:01:0c\n    fixed_ips: [10.0.3.3]",
            "network: §public\n    mac: 02:00:00:00:01:0c",
            "port vm3",
            &["external", "floating ip"],
        ),
        (
            "mac: 02:00:00:00:01:0b",
            "mac: §02:00:00:00:01:0A",
            "port vm2",
            &["port vm1's already on network web"],
        ),
        ("fixed_ips: [10.0.1.11]", "fixed_ips: [§10.0.1.10]", "port vm2", &["port vm1's already"]),
        ("fixed_ips: [10.0.1.11]", "fixed_ips: [10.0.1.11, §10.0.1.11]", "port vm2", &["listed twice"]),
        (
            "fixed_ips: [10.0.1.11]",
            "fixed_ips: [10.0.1.11, §10.0.9.5]",
            "port vm2",
            &["10.0.9.5 is outside every subnet"],
        ),
        (
            "fixed_ips: [10.0.1.11]",
            "fixed_ips:\n      - 10.0.1.11\n      - §10.0.1.1",
            "port vm2",
            &["router r1's address"],
        ),
        ("fixed_ips: [10.0.1.11]", "fixed_ips: [§10.0.1.254]", "port vm2", &["router r2's address"]),
        ("[10.0.3.3]", "[§10.0.5.1]", "port vm3", &["10.0.5.1 is the gateway of subnet lab5"]),
        ("fixed_ips: [10.0.1.11]", "fixed_ips: [§10.0.1.0]", "port vm2", &["network address"]),
        ("fixed_ips: [10.0.1.11]", "fixed_ips: [§10.0.1.255]", "port vm2", &["broadcast address"]),
        (
            "security_groups: [web-sg]",
            "security_groups: [web-sg, §web-sgs]",
            "port vm1",
            &["no security group web-sgs"],
        ),
        ("node: node-b", "node: §node-c", "port vm2", &["no node node-c"]),
        (
            "node: node-b\n    interface: tap-vm2",
            "node: §node-b",
            "port vm2",
            &["node is given without interface"],
        ),
        (
            "node: node-b\n    interface: tap-vm2",
            "interface: §tap-vm2",
            "port vm2",
            &["interface is given without node"],
        ),
        (
            "node: node-b\n    interface: tap-vm2",
            "node: node-a\n    interface: §tap-vm1",
            "port vm2",
            &["port vm1's already"],
        ),
    ]);
}

#[test]
fn floating_ips_and_nodes() {
    check(&[
        ("203.0.113.52", "§203.0.113.50", "floating ip 203.0.113.50", &["in line", "already"]),
        (
            "203.0.113.52",
            "§203.0.114.52",
            "floating ip 203.0.114.52",
            &["outside every subnet of every external"],
        ),
        ("203.0.113.52", "§10.0.1.52", "floating ip 10.0.1.52", &["outside every subnet of every external"]),
        ("203.0.113.52", "§203.0.113.1", "floating ip 203.0.113.1", &["next router's address"]),
        ("203.0.113.52", "§203.0.113.0", "floating ip 203.0.113.0", &["network address"]),
        ("203.0.113.52", "§203.0.113.10", "floating ip 203.0.113.10", &["gateway address of router r1"]),
        ("203.0.113.51", "§203.0.113.10", "floating ip 203.0.113.10", &["gateway address of router r1"]),
        ("203.0.113.52", "§\"2001:db8::1\"", "floating ip 2001:db8::1", &["next router's address"]),
        ("203.0.113.52", "§\"2001:db8::a\"", "floating ip 2001:db8::a", &["gateway address of router r1"]),
        (
            "203.0.113.52",
            "§\"2001:db9::1\"",
            "floating ip 2001:db9::1",
            &["outside every subnet of every external"],
        ),
        (
            "203.0.113.52 }",
            "\"2001:db8::52\", port: §vm2 }",
            "floating ip 2001:db8::52",
            &["vm2 has no IPv6 address", "give the port an IPv6 fixed ip"],
        ),
        (
            "203.0.113.52 }",
            "203.0.113.52, port: vm1, fixed_ip: §\"fd00:1::a\" }",
            "floating ip 203.0.113.52",
            &["fd00:1::a is not of the family of 203.0.113.52", "like 10.0.1.10"],
        ),
        (
            "203.0.113.52 }",
            "203.0.113.52, port: vm1, fixed_ip: §10.0.1.11 }",
            "floating ip 203.0.113.52",
            &["10.0.1.11 is no fixed ip of port vm1", "like 10.0.1.10"],
        ),
        (
            "203.0.113.52 }",
            "203.0.113.52, fixed_ip: §10.0.1.11 }",
            "floating ip 203.0.113.52",
            &["fixed_ip is given without port"],
        ),
        (
            "203.0.113.52 }",
            "\"2001:db8::52\", port_forwardings: [{ protocol: tcp, external_port: 80, port: §vm2, internal_port: 80 }] }",
            "floating ip 2001:db8::52 port_forwardings[0]",
            &["vm2 has no IPv6 address"],
        ),
        ("203.0.113.52 }", "203.0.113.52, port: §vm9 }", "floating ip 203.0.113.52", &["no port vm9"]),
        (
            "203.0.113.52 }",
            "203.0.113.52, port: §vm1 }",
            "floating ip 203.0.113.52",
            &["203.0.113.50 already"],
        ),
        (
            "203.0.113.52 }",
            "203.0.113.52, port: §vm3 }",
            "floating ip 203.0.113.52",
            &["lab", "no router with a gateway on public"],
        ),
        (
            "    port_forwardings:\n      -",
            "    port: vm2\n    port_forwardings:\n      §-",
            "floating ip 203.0.113.51",
            &["both given"],
        ),
        (
            "protocol: udp, external_port",
            "§protocol: tcp, external_port",
            "floating ip 203.0.113.51 port_forwardings[1]",
            &["tcp port 2222"],
        ),
        (
            "protocol: udp, external_port",
            "protocol: §sctp, external_port",
            "floating ip 203.0.113.51 port_forwardings[1]",
            &["tcp"],
        ),
        (
            "external_port: 2222, port: vm2",
            "external_port: §0, port: vm2",
            "floating ip 203.0.113.51 port_forwardings[1]",
            &["1 to 65535"],
        ),
        (
            "port: vm2, internal_port: 22 }",
            "port: vm2, internal_port: §0 }",
            "floating ip 203.0.113.51 port_forwardings[1]",
            &["internal_port \"0\" is not from 1 to 65535"],
        ),
        (
            "external_port: 2222, port: vm2",
            "external_port: 2222, port: §vm9",
            "floating ip 203.0.113.51 port_forwardings[1]",
            &["no port vm9"],
        ),
        (
            "gateway: true }",
            "gateway: true }\n  - { name: §node-a, vtep: 192.0.2.9 }",
            "node node-a",
            &["name is taken"],
        ),
        ("vtep: 192.0.2.2", "vtep: §192.0.2.1", "node node-b", &["node node-a's too"]),
    ]);
}

/// 169.254.169.254 is the services', on every network. (fe80::a9fe:a9fe is link-local, which no address may be.)
#[test]
fn the_metadata_service_has_its_address() {
    const LAB4: &str = "{ name: lab4, cidr: 10.0.3.0/24 }";
    const WORDS: &[&str] =
        &["169.254.169.254 is the metadata service's address, and not one of", "another address"];
    let base = BASE.replace(LAB4, &format!("{LAB4}, {{ name: link4, cidr: 169.254.0.0/16 }}"));
    let balancer = "pools:\n  - { name: p, members: [{ name: m, address: 169.254.1.2, protocol_port: 80 }] }\nload_balancers:\n  \
        - { name: lb, network: lab, vip_addresses: [169.254.1.9], listeners: [] }\n";
    let base = base
        .replace("interfaces: [web4,", "interfaces: [{ subnet: link4, address: 169.254.1.1 }, web4,")
        + balancer;
    assert!(parse("topology.yaml", &base).is_ok(), "{:?}", parse("topology.yaml", &base));
    let rows: &[Row] = &[
        ("fixed_ips: [10.0.3.3]", "fixed_ips: [§169.254.169.254]", "port vm3", WORDS),
        ("cidr: 169.254.0.0/16", "cidr: 169.254.0.0/16, gateway: §169.254.169.254", "subnet link4", WORDS),
        ("link4, address: 169.254.1.1 }", "link4, address: §169.254.169.254 }", "router r1", WORDS),
        ("[169.254.1.9]", "[§169.254.169.254]", "load balancer lb", WORDS),
    ];
    for (find, replace, object, words) in rows {
        let (text, line) = edited_in(&base, find, replace);
        assert_one(replace, &text, line.expect("a mark"), object, words);
    }
    let link = "{ name: public4, cidr: 203.0.113.0/24";
    let outside = BASE.replace(link, &format!("{{ name: link4, cidr: 169.254.0.0/16 }}, {link}"));
    let rows: &[Row] = &[
        ("address: 203.0.113.11 }", "address: §169.254.169.254 }", "router r2", WORDS),
        ("address: 203.0.113.52 }", "address: §169.254.169.254 }", "floating ip 169.254.169.254", WORDS),
    ];
    for (find, replace, object, words) in rows {
        let (text, line) = edited_in(&outside, find, replace);
        assert_one(replace, &text, line.expect("a mark"), object, words);
    }
}

#[test]
fn the_edge() {
    let gateway = "gateway: { network: public, address: 203.0.113.11 }";
    let first = "address: [203.0.113.10, \"2001:db8::a\"], snat: true }";
    let text = BASE.replace(first, &first.replace("snat: true", "snat: true, vrrp: { vrid: 7 }"));
    let text = text.replace(gateway, &gateway.replace(" }", ", vrrp: { vrid: 7 } }"));
    assert_one(
        "clash",
        &text,
        25,
        "router r2",
        &["VRID 7 is router r1's on network public", "another `vrid`"],
    );
    let with = "network: public, address: 203.0.113.11 }";
    check(&[
        (
            with,
            "network: public, address: 203.0.113.11, vrrp: { vrid: §0 } }",
            "router r2 gateway vrrp",
            &["not from 1 to 255"],
        ),
        (
            with,
            "network: public, address: 203.0.113.11, vrrp: { interval_ms: §25 } }",
            "router r2 gateway vrrp",
            &["no multiple of 10", "write 30"],
        ),
        (
            with,
            "network: public, address: 203.0.113.11, vrrp: { interval_ms: §5 } }",
            "router r2 gateway vrrp",
            &["10 to 40950"],
        ),
        (
            with,
            "network: public, address: 203.0.113.11, vrrp: { preempt: §no } }",
            "router r2 gateway vrrp",
            &["neither true nor false"],
        ),
        (
            with,
            "network: public, address: 203.0.113.11, vrrp: { §priority: 7 } }",
            "router r2 gateway vrrp",
            &["priority"],
        ),
        (
            "gateway: true }",
            "gateway: true, external_networks: [§pubic] }",
            "node node-b",
            &["no network pubic", "public"],
        ),
        (
            "gateway: true }",
            "gateway: true, external_networks: [§web] }",
            "node node-b",
            &["web is not external"],
        ),
        ("    vni: 1001", "    vni: 1001\n    routed: §true", "network web", &["routed, and not external"]),
    ]);
}

#[test]
fn one_router_answers_for_an_address() {
    // lab gets a router of its own.
    let with = |gateway: &str, floating_ip: &str| {
        let router = format!(
            "  - {{ name: r3, interfaces: [{{ subnet: lab4, address: 10.0.3.1 }}], gateway: {{ network: public, address: {gateway} }} }}\n"
        );
        BASE.replace("security_groups:\n  -", &format!("{router}security_groups:\n  -"))
            .replace("{ address: 203.0.113.52 }", floating_ip)
    };
    accepted(&with("203.0.113.13", "{ address: 203.0.113.52, port: vm3 }"));
    let text = with("203.0.113.13", "{ address: 203.0.113.52 }")
        .replace("port: vm2, internal", "port: vm3, internal");
    let words = &["port vm3 is behind router r3, port vm1 behind r1", "one router answers"];
    assert_one("two routers", &text, 63, "floating ip 203.0.113.51 port_forwardings[1]", words);
    let text = with("\"2001:db8::b\"", "{ address: 203.0.113.52, port: vm3 }");
    let words = &["router r3 has no IPv4 address on public", "add an IPv4 address to its gateway"];
    assert_one("no address", &text, 64, "floating ip 203.0.113.52", words);
}

#[test]
fn one_cause_is_one_problem() {
    check(&[
        // What cannot be read is not missing.
        ("    mtu: 1450", "    mtu: §big", "network web", &["whole number"]),
        ("cidr: 10.0.2.0/24", "cidr: §ten", "subnet db4", &["address range"]),
        ("mac: \"02:00:00:00:01:0a\"", "mac: §1", "port vm1", &["MAC"]),
        ("    external: true", "    external: §1", "network public", &["neither true nor false"]),
        ("subnets: [{ name: db4,", "§subnet: [{ name: db4,", "network db", &["did you mean `subnets`?"]),
        ("  - name: r1", "  - name: §r/1", "routers[0]", &["holds a `/`"]),
        ("networks:", "§network:", "document", &["did you mean `networks`?"]),
        ("ports:\n", "§port:\n", "document", &["did you mean `ports`?"]),
        // What refers to something that is not there is not judged further.
        ("network: web\n    mac: 02", "network: §wed\n    mac: 02", "port vm2", &["no network wed"]),
    ]);
    let at = BASE.find("nodes:").expect("nodes");
    let text = format!("{}nodes: x\n", &BASE[..at]);
    assert_one("no list", &text, 64, "document", &["nodes is not a list"]);
    // A copied object is told apart by its name before all else.
    let vm2 = &BASE[BASE.find("  - name: vm2").expect("vm2")..BASE.find("  - name: vm3").expect("vm3")];
    let text = BASE.replace("floating_ips:\n", &format!("{vm2}floating_ips:\n"));
    assert_one("copied port", &text, 57, "port vm2", &["name is taken"]);
    let web = &BASE[BASE.find("  - name: web").expect("web")..BASE.find("  - name: db").expect("db")];
    let text = BASE.replace("routers:\n", &format!("{web}routers:\n"));
    assert_one("copied network", &text, 15, "network web", &["name is taken"]);
}

#[test]
fn all_problems_come_at_once_in_the_order_of_lines() {
    let mut text = BASE.to_owned();
    let changes = [
        ("cidr: 10.0.3.0/24", "cidr: 10.0.3.1/24"),
        ("nexthop: 10.0.2.9", "nexthop: 10.0.7.9"),
        ("ports: 80-443", "ports: 443-80"),
        ("192.0.2.0/28", "192.0.2.0/99"),
        ("mac: 02:00:00:00:01:0b", "mac: 03:00:00:00:01:0b"),
        ("security_groups: [web-sg]", "security_groups: [other]"),
        ("port: vm1, internal_port: 22", "port: vm8, internal_port: 22"),
        ("vtep: 192.0.2.2", "vtep: 192.0.2.1"),
    ];
    for (find, replace) in changes {
        assert!(text.contains(find), "{find}");
        text = text.replacen(find, replace, 1);
    }
    let problems = parse("topology.yaml", &text).expect_err("eight things wrong");
    let lines: Vec<usize> = problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [11, 20, 29, 35, 41, 47, 61, 66], "{problems}");
}

#[test]
fn a_minor_problem_hides_no_other() {
    for minor in ["mtu: 14", "mut: 1450", "mtu: 1450\n    colour: red\n    external: false\n    gateway: 1"] {
        let text = BASE.replace("mtu: 1450", minor).replace("10.0.1.10, ", "10.0.9.5, ");
        let problems = parse("topology.yaml", &text).expect_err("two things wrong").to_string();
        let both = problems.contains("network web") && problems.contains("port vm1: 10.0.9.5");
        assert!(both, "{minor}:\n{problems}");
    }
    // Where the subnets may be what is misspelt, addresses are not judged.
    let text = BASE.replace("subnets: [{ name: lab4", "ranges: [{ name: lab4");
    assert_one("far off", &text, 11, "network lab", &["\"ranges\"", "use one of"]);
}

/// Changes one thing in the base; also the line of the mark.
fn edited(find: &str, replace: &str) -> (String, Option<usize>) {
    edited_in(BASE, find, replace)
}

pub(super) fn edited_in(base: &str, find: &str, replace: &str) -> (String, Option<usize>) {
    let at = base.find(find).unwrap_or_else(|| panic!("{find:?} is not in the base"));
    let text = base.replacen(find, replace, 1);
    let line = replace.find('§').map(|mark| 1 + text[..at + mark].matches('\n').count());
    (text.replace('§', ""), line)
}

fn check(rows: &[Row]) {
    for (find, replace, object, words) in rows {
        let (text, line) = edited(find, replace);
        let line = line.unwrap_or_else(|| panic!("{replace:?} has no mark"));
        assert_one(replace, &text, line, object, words);
    }
}

pub(super) fn assert_one(what: &str, text: &str, line: usize, object: &str, words: &[&str]) {
    let Err(problems) = parse("topology.yaml", text) else { panic!("{what}: accepted") };
    assert_eq!(problems.count(), 1, "{what}:\n{problems}");
    let problem = problems.iter().next().expect("one");
    assert_eq!((problem.line, problem.object.as_str()), (line, object), "{what}:\n{problems}");
    for word in words {
        let said = problem.message.contains(word) || problem.remedy.contains(word);
        assert!(said, "{what}: no {word:?} in\n{problems}");
    }
    assert!(!problem.remedy.is_empty(), "{what}: no mend");
}
