//! The same jobs done by Linux: routes, forwarding and kernel VXLAN, in namespaces of the lab.

use anyhow::{Context as _, Result};
use vrouter_tests::{Host, Lab, Netns, host::parse_mac};

pub const DIRECT_B: &str = "10.9.0.2";
pub const H2: &str = "10.8.2.2";
pub const H3: &str = "10.8.3.3";
pub const B1: &str = "10.7.1.2";
pub const B2: &str = "10.7.2.2";
pub const F1: &str = "10.6.1.2";
pub const F2: &str = "10.6.2.2";

/// Two Linux nodes joined like the vrouter ones, with hosts behind them.
pub struct LinuxLab {
    near: Netns,
    hosts: Vec<Host>,
    direct: [Host; 2],
}

impl LinuxLab {
    /// Makes it. The namespaces carry the lab's prefix and go with it.
    pub fn new(lab: &Lab) -> Result<Self> {
        let name = |part: &str| format!("{}-l{part}", lab.prefix());
        let [near, far] = [Netns::create(&name("near"))?, Netns::create(&name("far"))?];
        near.ip(&[format!("link add eth0 mtu 1500 type veth peer name eth0 mtu 1500 netns {}", far.name())])?;
        near.ip(&["address add 198.51.100.1/24 dev eth0", "link set eth0 up"])?;
        far.ip(&["address add 198.51.100.2/24 dev eth0", "link set eth0 up"])?;
        near.set_sysctl("ipv4/ip_forward", "1")?;

        let mut hosts = Vec::new();
        // Routed by `near` between subnets of their own.
        for (host, third, address) in [
            ("h1", "10.8.1", "10.8.1.2"),
            ("h2", "10.8.2", H2),
            ("f1", "10.6.1", F1),
            ("f2", "10.6.2", F2),
            ("b1", "10.7.1", B1),
            ("b2", "10.7.2", B2),
        ] {
            let netns = Netns::create(&name(host))?;
            wire(&near, &netns, host)?;
            near.ip(&[format!("address add {third}.1/24 dev tap-{host}")])?;
            netns.ip(&[
                format!("address add {address}/24 dev eth0"),
                format!("route add default via {third}.1"),
            ])?;
            hosts.push(Host::new(host, netns));
        }
        // A subnet stretched over both nodes by kernel VXLAN; `near` is its gateway.
        let netns = Netns::create(&name("h3"))?;
        wire(&far, &netns, "h3")?;
        for (node, local, remote) in
            [(&near, "198.51.100.1", "198.51.100.2"), (&far, "198.51.100.2", "198.51.100.1")]
        {
            node.ip(&[
                "link add br0 mtu 1450 type bridge".to_owned(),
                format!("link add vxlan0 mtu 1450 type vxlan id 77 local {local} remote {remote} dstport 4789 dev eth0"),
                "link set vxlan0 master br0 up".to_owned(),
                "link set br0 up".to_owned(),
            ])?;
        }
        near.ip(&["address add 10.8.3.1/24 dev br0"])?;
        far.ip(&["link set tap-h3 master br0"])?;
        netns.ip(&[format!("address add {H3}/24 dev eth0"), "route add default via 10.8.3.1".to_owned()])?;
        hosts.push(Host::new("h3", netns));

        let [a, b] = [Netns::create(&name("da"))?, Netns::create(&name("db"))?];
        a.ip(&[format!("link add eth0 mtu 1450 type veth peer name eth0 mtu 1450 netns {}", b.name())])?;
        a.ip(&["address add 10.9.0.1/24 dev eth0", "link set eth0 up"])?;
        b.ip(&[format!("address add {DIRECT_B}/24 dev eth0"), "link set eth0 up".to_owned()])?;
        Ok(Self { near, hosts, direct: [Host::new("direct-a", a), Host::new("direct-b", b)] })
    }

    /// The node that routes.
    pub fn router(&self) -> &Netns {
        &self.near
    }

    /// A host.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name() == name).unwrap_or_else(|| panic!("no host {name}"))
    }

    /// One end of the bare veth pair.
    pub fn direct_a(&self) -> &Host {
        &self.direct[0]
    }

    /// The other end.
    pub fn direct_b(&self) -> &Host {
        &self.direct[1]
    }

    /// A host's hardware address, as `ip` writes it.
    pub fn mac_text(&self, host: &Host) -> Result<String> {
        Ok(host.mac()?.map(|byte| format!("{byte:02x}")).join(":"))
    }

    /// The hardware address of an interface of the router.
    pub fn mac_of(&self, interface: &str) -> Result<[u8; 6]> {
        let line = self.near.run(&format!("ip -o link show {interface}"))?;
        let mac = line.split("link/ether ").nth(1).and_then(|rest| rest.split_whitespace().next());
        parse_mac(mac.context("no hardware address")?)
    }
}

fn wire(node: &Netns, host: &Netns, name: &str) -> Result<()> {
    node.ip(&[
        format!("link add tap-{name} mtu 1450 type veth peer name eth0 mtu 1450 netns {}", host.name()),
        format!("link set tap-{name} up"),
    ])?;
    host.ip(&["link set eth0 up"])
}
