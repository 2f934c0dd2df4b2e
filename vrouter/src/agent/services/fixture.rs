//! Ports for tests of services.

use std::collections::HashMap;

use proptest::{arbitrary::any, collection::vec, strategy::Strategy};

use crate::{
    compile::{self, Compiled, Interface, Served, Surroundings},
    identities::Identities,
    topology,
};

/// `vm1` is on interface 11, `vm2` on 12, and so on.
pub const DOCUMENT: &str = r#"
networks:
  - name: web
    vni: 1001
    mtu: 1400
    subnets:
      - name: web4
        cidr: 10.0.1.0/24
        gateway: 10.0.1.1
        dns: [10.0.1.2, 9.9.9.9]
        lease_time: 3600
        host_routes: [{ destination: 192.168.0.0/17, nexthop: 10.0.1.7 }]
        dhcp_options: [{ name: ntp-server, value: "10.0.1.3, 10.0.1.4" }, { name: domain-name, value: example.org }]
      - name: web6
        cidr: "fd00:1::/64"
        gateway: "fd00:1::1"
        dns: ["fd00:1::2"]
        ipv6_mode: dhcpv6-stateful
        lease_time: 7200
        dhcp_options: [{ name: domain-search, value: example.org }]
  - name: db
    vni: 1002
    subnets:
      - { name: db4, cidr: 10.0.2.0/24 }
      - { name: db6, cidr: "fd00:2::/64", ipv6_mode: slaac }
  - name: cache
    vni: 1003
    subnets:
      - { name: cache4, cidr: 10.0.3.0/24, dhcp: false }
      - { name: cache6, cidr: "fd00:3::/64", gateway: "fd00:3::1", ipv6_mode: dhcpv6-stateless, dns: ["fd00:3::2"] }
routers:
  - { name: r1, interfaces: [web4, web6, cache6] }
ports:
  - { name: vm1, network: web, mac: "02:00:00:00:01:0b", fixed_ips: [10.0.1.11, "fd00:1::11"], node: a, interface: tap1,
      dhcp_options: [{ name: domain-name, value: vm.example.org }, { code: 224, value: "hex:0a0b" }] }
  - { name: vm2, network: web, mac: "02:00:00:00:01:0c", node: a, interface: tap2 }
  - { name: vm3, network: db, mac: "02:00:00:00:02:0b", fixed_ips: [10.0.2.11, "fd00:2::ff:fe00:20b"], node: a,
      interface: tap3 }
  - { name: vm4, network: cache, mac: "02:00:00:00:03:0b", fixed_ips: [10.0.3.11, "fd00:3::ff:fe00:30b"], node: a,
      interface: tap4 }
nodes:
  - { name: a, vtep: 192.0.2.1 }
"#;

/// The ports of a document, with the metadata service or without.
pub fn served(document: &str, metadata: bool) -> Served {
    compiled(document, metadata).served
}

/// All of it.
pub fn compiled(document: &str, metadata: bool) -> Compiled {
    let topology = topology::parse("test.yaml", document).unwrap_or_else(|problems| panic!("{problems}"));
    let interfaces: HashMap<_, _> =
        (1..=4).map(|i| (format!("tap{i}"), Interface { index: 10 + i, peer: false })).collect();
    let around = Surroundings {
        node: "a".to_owned(),
        interfaces,
        underlay_mtu: 1500,
        metadata,
        ..Surroundings::default()
    };
    compile::compile(&topology, &around, &mut Identities::default()).unwrap()
}

/// Lines that something writes into the log.
pub fn logged(something: impl FnOnce()) -> Vec<String> {
    let (writer, lines) = std::sync::mpsc::channel();
    let make = move || Line(writer.clone());
    let subscriber = tracing_subscriber::fmt().with_writer(make).with_ansi(false).finish();
    tracing::subscriber::with_default(subscriber, something);
    lines.try_iter().collect()
}

struct Line(std::sync::mpsc::Sender<String>);

impl std::io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // One call for each line.
        self.0.send(String::from_utf8_lossy(bytes).into_owned()).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What may have become of good bytes: some changed, cut off, put in, or all of it anything.
pub fn damaged(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<proptest::sample::Index>(), any::<u8>()), 0..8);
    let more = vec(any::<u8>(), 0..400);
    (changes, any::<proptest::sample::Index>(), more, 0..4_u8).prop_map(move |(changes, at, more, how)| {
        let mut bytes = good.clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let at = at.index(bytes.len() + 1);
        match how {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..at, more)),
            2 => bytes.extend(more),
            _ => {}
        }
        bytes
    })
}
