//! The same jobs done by Linux: routes, forwarding, nftables and kernel VXLAN, in namespaces of the lab.

use std::{fs, net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result, bail};
use vrouter_tests::{Host, Lab, Netns, host::parse_mac};

use super::{
    bpf, conntrack,
    frames::{DESTINATION_PORT, Shape, Varied},
};

pub const DIRECT_B: &str = "10.9.0.2";
pub const H2: &str = "10.8.2.2";
pub const H3: &str = "10.8.3.3";
/// What the lane `nft-lb` balances.
pub const LINUX_VIP: &str = "10.7.2.200";
const BENCHMARKING: &str = "198.18.0.0/15";
/// Entries of conntrack's table, and its buckets: enough for every row's flows at once.
const CONNTRACK: [(&str, u64); 2] = [("nf_conntrack_max", 1 << 24), ("nf_conntrack_buckets", 1 << 21)];

/// Two Linux nodes joined like the vrouter ones, with hosts behind them.
pub struct LinuxLab {
    hosts: Vec<Host>,
    direct: [Host; 2],
    lanes: Vec<Lane>,
    _limits: Limits,
}

/// A router between two hosts, for frames.
pub struct Lane {
    /// The router.
    pub router: Netns,
    /// The host whose frames it takes.
    pub from: Host,
    /// The host they go to.
    pub to: Host,
    third: [String; 2],
}

impl LinuxLab {
    /// Makes it. The namespaces carry the lab's prefix and go with it.
    pub fn new(lab: &Lab) -> Result<Self> {
        let name = |part: &str| format!("{}-l{part}", lab.prefix());
        let limits = Limits::raise()?;
        let [near, far] = [Netns::create(&name("near"))?, Netns::create(&name("far"))?];
        near.ip(&[format!("link add eth0 mtu 1500 type veth peer name eth0 mtu 1500 netns {}", far.name())])?;
        near.ip(&["address add 198.51.100.1/24 dev eth0", "link set eth0 up"])?;
        far.ip(&["address add 198.51.100.2/24 dev eth0", "link set eth0 up"])?;
        near.set_sysctl("ipv4/ip_forward", "1")?;

        let mut hosts = Vec::new();
        // Routed by `near` between subnets of their own.
        for (host, third) in [("h1", "10.8.1"), ("h2", "10.8.2")] {
            hosts.push(routed(&near, &name(host), host, third)?);
        }
        let mut lanes = Vec::new();
        for lane in ["bare", "tx", "forward", "hash", "hash-1m", "nft", "nft-new", "nft-lb"] {
            let router = Netns::create(&name(lane))?;
            router.set_sysctl("ipv4/ip_forward", "1")?;
            let third = ["10.7.1", "10.7.2"].map(str::to_owned);
            let from = routed(&router, &name(&format!("{lane}-a")), "a", &third[0])?;
            let to = routed(&router, &name(&format!("{lane}-b")), "b", &third[1])?;
            router.ip(&[format!("route add {BENCHMARKING} via {}.2", third[1])])?;
            if lane == "nft-lb" {
                balance(&router).with_context(|| format!("the namespace {}", router.name()))?;
            } else if lane.starts_with("nft") {
                translate(&router).with_context(|| format!("the namespace {}", router.name()))?;
            }
            lanes.push(Lane { router, from, to, third });
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
        let direct = [Host::new("direct-a", a), Host::new("direct-b", b)];
        Ok(Self { hosts, direct, lanes, _limits: limits })
    }

    /// A host.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name() == name).unwrap_or_else(|| panic!("no host {name}"))
    }

    /// A router for frames.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn lane(&self, name: &str) -> &Lane {
        let mut lanes = self.lanes.iter();
        let suffix = format!("-l{name}");
        lanes.find(|lane| lane.router.name().ends_with(&suffix)).unwrap_or_else(|| panic!("no lane {name}"))
    }

    /// One end of the bare veth pair.
    pub fn direct_a(&self) -> &Host {
        &self.direct[0]
    }

    /// The other end.
    pub fn direct_b(&self) -> &Host {
        &self.direct[1]
    }
}

impl Lane {
    /// The address of the host frames go to.
    pub fn far(&self) -> Result<Ipv4Addr> {
        Ok(format!("{}.2", self.third[1]).parse()?)
    }

    /// The router's interface to one of the hosts.
    pub fn interface_of(host: &Host) -> String {
        format!("tap-{}", host.name())
    }

    /// Its index.
    pub fn ifindex(&self, host: &Host) -> Result<u32> {
        self.router.enter(|| bpf::ifindex(&Self::interface_of(host)))?
    }

    /// Frames to addresses from `to` up.
    pub fn shape(&self, to: Ipv4Addr) -> Result<Shape> {
        let line = self.router.run(&format!("ip -o link show {}", Self::interface_of(&self.from)))?;
        let mac = line.split("link/ether ").nth(1).and_then(|rest| rest.split_whitespace().next());
        Ok(Shape {
            to_mac: parse_mac(mac.context("no hardware address")?)?,
            from_mac: self.from.mac()?,
            src: format!("{}.2", self.third[0]).parse()?,
            dst: to,
            dport: DESTINATION_PORT,
            varied: Varied::Destination,
        })
    }

    /// Readies the router: it takes frames, and knows its neighbours for good.
    pub fn resolve(&self) -> Result<()> {
        for (host, third) in [&self.from, &self.to].into_iter().zip(&self.third) {
            let interface = Self::interface_of(host);
            let mac = host.mac()?.map(|byte| format!("{byte:02x}")).join(":");
            self.router
                .ip(&[format!("neighbour replace {third}.2 lladdr {mac} dev {interface} nud permanent")])?;
            self.router.run(&format!("ethtool -K {interface} gro on"))?;
        }
        Ok(())
    }

    /// Connections the router tracks.
    pub fn connections(&self) -> Result<u64> {
        let path = "/proc/sys/net/netfilter/nf_conntrack_count";
        let count = self.router.enter(|| fs::read_to_string(path))?;
        Ok(count.with_context(|| format!("cannot read {path}"))?.trim().parse()?)
    }

    /// Forgets them all.
    pub fn forget(&self) -> Result<()> {
        self.router.enter(conntrack::flush)?
    }
}

/// SNAT, a floating IP and a stateful filter, as vrouter has them.
fn translate(router: &Netns) -> Result<()> {
    router.nft(
        "table ip translate {\n\
         chain out { type nat hook postrouting priority srcnat;\n\
         oifname tap-b ip saddr 10.7.1.3 snat to 10.7.2.51\noifname tap-b snat to 10.7.2.1\n}\n\
         chain in { type nat hook prerouting priority dstnat;\n\
         iifname tap-b ip daddr 10.7.2.51 dnat to 10.7.1.3\n}\n}\n\
         table inet guard {\n\
         chain forward { type filter hook forward priority filter; policy drop;\n\
         ct state established,related accept\nct state invalid drop\niifname tap-a accept\nct status dnat accept\n}\n}\n",
    )?;
    for (key, value) in [
        ("nf_conntrack_udp_timeout_stream", "86400"),
        ("nf_conntrack_udp_timeout", "86400"),
        // Real devices have verified the checksum; a veth has not, and conntrack would.
        ("nf_conntrack_checksum", "0"),
    ] {
        router.set_sysctl(&format!("netfilter/{key}"), value)?;
    }
    Ok(())
}

/// An address that is balanced, by a hash, to one member in three entries, as `lb` of the vrouter side has it; and a
/// stateful filter.
fn balance(router: &Netns) -> Result<()> {
    router.nft(&format!(
        "table ip balance {{\n\
         chain in {{ type nat hook prerouting priority dstnat;\n\
         ip daddr {LINUX_VIP} udp dport {DESTINATION_PORT} \
         dnat to jhash ip saddr . udp sport mod 3 map {{ 0 : 10.7.2.2, 1 : 10.7.2.2, 2 : 10.7.2.2 }}\n}}\n}}\n\
         table inet guard {{\n\
         chain forward {{ type filter hook forward priority filter; policy drop;\n\
         ct state established,related accept\nct state invalid drop\nct status dnat accept\n}}\n}}\n"
    ))?;
    router.set_sysctl("netfilter/nf_conntrack_udp_timeout", "86400")?;
    router.set_sysctl("netfilter/nf_conntrack_checksum", "0")
}

/// A host in a subnet of its own, `third`.0/24, behind a router.
fn routed(router: &Netns, namespace: &str, name: &str, third: &str) -> Result<Host> {
    let netns = Netns::create(namespace)?;
    wire(router, &netns, name)?;
    router.ip(&[format!("address add {third}.1/24 dev tap-{name}")])?;
    netns.ip(&[format!("address add {third}.2/24 dev eth0"), format!("route add default via {third}.1")])?;
    Ok(Host::new(name, netns))
}

fn wire(node: &Netns, host: &Netns, name: &str) -> Result<()> {
    node.ip(&[
        format!("link add tap-{name} mtu 1450 type veth peer name eth0 mtu 1450 netns {}", host.name()),
        format!("link set tap-{name} up"),
    ])?;
    host.ip(&["link set eth0 up"])
}

/// The limits of conntrack's table, raised for as long as this lives. The kernel has one for all namespaces.
struct Limits(Vec<(&'static str, u64)>);

impl Limits {
    fn raise() -> Result<Self> {
        let mut limits = Self(Vec::new());
        for (name, wanted) in CONNTRACK {
            let path = Path::new("/proc/sys/net/netfilter").join(name);
            let read = || -> Result<u64> { Ok(fs::read_to_string(&path)?.trim().parse()?) };
            let before = read().with_context(|| {
                format!("cannot read {}: is there conntrack (modprobe nf_conntrack)?", path.display())
            })?;
            if before < wanted {
                fs::write(&path, wanted.to_string())
                    .with_context(|| format!("cannot raise {} to {wanted}", path.display()))?;
                limits.0.push((name, before));
            }
            if read()? < wanted {
                bail!("{} stays at {}, and {wanted} are needed", path.display(), read()?);
            }
        }
        Ok(limits)
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        for (name, before) in self.0.drain(..).rev() {
            let path = Path::new("/proc/sys/net/netfilter").join(name);
            if let Err(error) = fs::write(&path, before.to_string()) {
                eprintln!("{} was {before} and is still raised: {error}", path.display());
            }
        }
    }
}
