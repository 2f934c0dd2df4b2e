//! The other side of an external network: a router upstream, hosts beside it and servers behind it.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::{Host, Netns};

/// The bridge nodes' external interfaces, the hosts outside and the router upstream are on.
pub const EXTERNAL_BRIDGE: &str = "extbr";
/// A node's interface on the external network. It has no address: what speaks there is vrouter.
pub const EXTERNAL_INTERFACE: &str = "ext0";
/// The bridge of the servers.
const SERVER_BRIDGE: &str = "srvbr";
/// MTU of the link to `narrow`.
pub const NARROW_MTU: u32 = 1300;

/// What is outside.
///
/// ```text
///  node-a ext0   node-b ext0   outside1 .101   outside2 .102
///       |             |             |               |
///  +--- port1 ------- port2 ------ out1 ---------- out2 ---+   namespace PREFIX-internet
///  |  extbr     203.0.113.0/24  2001:db8:ff::/64           |
///  +------------------------- gw -------------------------+
///                              |
///                         eth0 | 203.0.113.1  2001:db8:ff::1
///                             gw  (forwards)
///   eth1 198.51.100.1 2001:db8:aa::1 |        | eth2 198.51.101.1 2001:db8:ab::1, MTU 1300
///              +---------------------+        +----- narrow 198.51.101.10 2001:db8:ab::10
///            srvbr
///              |---- server1 198.51.100.10 2001:db8:aa::10
///              |---- server2 198.51.100.20 2001:db8:aa::20
/// ```
///
/// To `gw`, 198.18.0.0/16 and 2001:db8:18::/48 are unreachable, 198.19.0.0/16 and 2001:db8:19::/48
/// prohibited. Nothing out there knows a way to the inside but those that [`Outside::route_inside`] gives.
#[derive(Clone, Debug)]
pub struct Outside {
    switch: Netns,
    network: String,
    hosts: BTreeMap<String, Host>,
}

/// Hosts on the external network itself: name, port of the bridge, number.
const BESIDE: [(&str, &str, u8); 2] = [("outside1", "out1", 101), ("outside2", "out2", 102)];
/// Hosts behind `gw`: name, port of the bridge, number.
const BEHIND: [(&str, &str, u8); 2] = [("server1", "srv1", 10), ("server2", "srv2", 20)];

impl Outside {
    /// Makes what is outside of the external network called `network`; nodes are wired to it afterwards.
    pub(crate) fn build(prefix: &str, network: &str, mtu: u32) -> Result<Self> {
        let switch = Netns::create(&format!("{prefix}-internet"))?;
        switch.set_sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        switch.ip(&[EXTERNAL_BRIDGE, SERVER_BRIDGE].map(|bridge| {
            format!("link add {bridge} mtu {mtu} type bridge mcast_snooping 0\nlink set {bridge} up")
        }))?;
        let mut outside = Self { switch, network: network.to_owned(), hosts: BTreeMap::new() };

        let gw = outside.add(prefix, "gw")?;
        outside.wire(&gw, "eth0", "gw", EXTERNAL_BRIDGE, mtu)?;
        outside.wire(&gw, "eth1", "gwsrv", SERVER_BRIDGE, mtu)?;
        let narrow = outside.add(prefix, "narrow")?;
        gw.ip(&[
            format!(
                "link add eth2 mtu {NARROW_MTU} type veth peer name eth0 mtu {NARROW_MTU} netns {}",
                narrow.name()
            ),
            "link set eth2 up".to_owned(),
        ])?;
        for (interface, v4, v6) in [
            ("eth0", "203.0.113.1", "2001:db8:ff::1"),
            ("eth1", "198.51.100.1", "2001:db8:aa::1"),
            ("eth2", "198.51.101.1", "2001:db8:ab::1"),
        ] {
            gw.ip(&[
                format!("address add {v4}/24 dev {interface}"),
                format!("address add {v6}/64 dev {interface} nodad"),
            ])?;
            gw.set_sysctl(&format!("ipv4/conf/{interface}/send_redirects"), "0")?;
        }
        gw.set_sysctl("ipv4/conf/all/send_redirects", "0")?;
        gw.set_sysctl("ipv4/ip_forward", "1")?;
        gw.set_sysctl("ipv6/conf/all/forwarding", "1")?;
        // Not by routes: the kernel answers for those a few times a second at the most.
        gw.ip(&["route add 198.18.0.0/15 via 198.51.101.10"])?;
        for range in ["2001:db8:18::/48", "2001:db8:19::/48"] {
            gw.run(&format!("ip -6 route add {range} via 2001:db8:ab::10"))?;
        }
        gw.nft(
            "table inet upstream { chain forward { type filter hook forward priority 0;\n\
             ip daddr 198.18.0.0/16 reject with icmp type net-unreachable\n\
             ip daddr 198.19.0.0/16 reject with icmp type admin-prohibited\n\
             ip6 daddr 2001:db8:18::/48 reject with icmpv6 type no-route\n\
             ip6 daddr 2001:db8:19::/48 reject with icmpv6 type admin-prohibited\n}\n}\n",
        )?;

        narrow.ip(&["link set eth0 up"])?;
        address(&narrow, "198.51.101", "2001:db8:ab:", 10)?;
        for (name, port, number) in BESIDE {
            let netns = outside.add(prefix, name)?;
            outside.wire(&netns, "eth0", port, EXTERNAL_BRIDGE, mtu)?;
            address(&netns, "203.0.113", "2001:db8:ff:", number)?;
        }
        for (name, port, number) in BEHIND {
            let netns = outside.add(prefix, name)?;
            outside.wire(&netns, "eth0", port, SERVER_BRIDGE, mtu)?;
            address(&netns, "198.51.100", "2001:db8:aa:", number)?;
        }
        Ok(outside)
    }

    /// The namespace of the bridges.
    pub fn switch(&self) -> &Netns {
        &self.switch
    }

    /// The external network's name in the topology.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// All that is out there, by name.
    pub fn hosts(&self) -> &BTreeMap<String, Host> {
        &self.hosts
    }

    /// The port of a node's external interface on the bridge, for those who listen on the wire.
    pub fn port_of(number: u8) -> String {
        format!("port{number}")
    }

    /// Gives `gw` and those beside it a way to an inside network, as an operator would who wants addresses
    /// that are not translated.
    pub fn route_inside(&self, range: &str, router: &str) -> Result<()> {
        let family = if range.contains(':') { "-6 " } else { "" };
        for name in ["gw", "outside1", "outside2"] {
            self.hosts[name].run(&format!("ip {family}route replace {range} via {router}"))?;
        }
        Ok(())
    }

    /// Gives a node an interface on the external network.
    pub(crate) fn wire_node(&self, node: &Netns, number: u8, mtu: u32) -> Result<()> {
        self.wire(node, EXTERNAL_INTERFACE, &Self::port_of(number), EXTERNAL_BRIDGE, mtu)?;
        node.set_sysctl(&format!("ipv6/conf/{EXTERNAL_INTERFACE}/disable_ipv6"), "1")
    }

    fn add(&mut self, prefix: &str, name: &str) -> Result<Netns> {
        let netns = Netns::create(&format!("{prefix}-{name}"))?;
        netns.speak_at_once()?;
        self.hosts.insert(name.to_owned(), Host::new(name, netns.clone()));
        Ok(netns)
    }

    fn wire(&self, netns: &Netns, interface: &str, port: &str, bridge: &str, mtu: u32) -> Result<()> {
        self.switch.ip(&[
            format!(
                "link add {port} mtu {mtu} type veth peer name {interface} mtu {mtu} netns {}",
                netns.name()
            ),
            format!("link set {port} master {bridge}"),
            format!("link set {port} up"),
        ])?;
        netns.ip(&[format!("link set {interface} up")])
    }
}

/// Gives a host its addresses and `gw` as its way out.
fn address(netns: &Netns, v4: &str, v6: &str, number: u8) -> Result<()> {
    netns.ip(&[
        format!("address add {v4}.{number}/24 dev eth0"),
        format!("address add {v6}:{number}/64 dev eth0 nodad"),
        format!("route add default via {v4}.1"),
    ])?;
    netns.run(&format!("ip -6 route add default via {v6}:1")).map(drop)
}
