//! The rows: what each measures, beside what, and how much of that it should reach.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use vrouter_tests::{Host, tools};

use super::{
    Extra, bpf, control,
    cost::Timed,
    latency,
    linux::{self, LINUX_VIP, Lane, LinuxLab},
    path::{self, FAR, FAR_NEW, Path, Sinks},
    programs,
    record::{
        Demand::{self, Least, Most},
        Label,
    },
    scale, table,
    vrouter::{FLOATING, FLOATING_OF_VM3, Gateway, VIP, Vrouter},
};
use crate::report;

/// Numbers of flows, and what rows call them.
const SIZES: [(&str, u32); 4] = [("1", 1), ("1k", 1_000), ("64k", 64_000), ("1m", 1_000_000)];
/// The most flows of a table that is not for a million.
const SMALL_MAX: u32 = 64_000;
/// Flows between two ports: the ports of one address.
const ROUTED: u32 = 1_000;
/// More new flows than all rounds take.
const NEW: u64 = 60_000_000;
/// Flows of one table of node-a beside those that a row asks for: three ports have flows of two legs each.
const OTHERS: u32 = 5;

/// Rows that need nodes with little and with much.
pub const SCALE: [&str; 4] = ["scale_hit", "scale_hit_10", "scale_miss", "scale_miss_10"];
/// Rows that need a node with many ports.
pub const CONTROL: [&str; 3] = ["control_start", "control_change", "agent_memory"];

/// Rows that need a node with many load balancers.
pub const BALANCERS: [&str; 2] = ["control_lb_start", "control_lb_change"];
/// The same, with the topology in etcd.
pub const BALANCERS_IN_ETCD: &str = "control_lb_etcd";

/// Rows of established connections.
struct Kind {
    id: &'static str,
    what: &'static str,
    /// The port of the rows with a small table, which is on node-a, and the one with a large.
    ports: [&'static str; 2],
    large_node: &'static str,
}

const KINDS: &[Kind] = &[
    Kind {
        id: "xdp_snat",
        what: "SNAT, XDP port to XDP external interface",
        ports: ["xsnat", "xsnat1m"],
        large_node: "node-b",
    },
    Kind {
        id: "xdp_fip",
        what: "floating IP, XDP external interface to XDP port",
        ports: ["xfip", "xfip1m"],
        large_node: "node-c",
    },
    Kind {
        id: "tc_snat",
        what: "SNAT, TC port to external interface",
        ports: ["tsnat", "tsnat1m"],
        large_node: "node-d",
    },
];

/// One thing that is measured.
pub struct Subject<'a> {
    pub label: Label,
    pub measure: Box<dyn Fn(Duration) -> Result<f64> + 'a>,
}

/// The rows that are wanted, ready to be measured.
pub fn subjects<'a>(
    wants: &dyn Fn(&str) -> bool,
    vrouter: &'a Vrouter,
    linux: &'a LinuxLab,
    extra: &'a Extra,
) -> Result<Vec<Subject<'a>>> {
    let mut rows = Rows { wants, vrouter, linux, extra, sinks: Vec::new(), subjects: Vec::new() };
    rows.plain()?;
    rows.lookups()?;
    for kind in KINDS {
        rows.connections(kind)?;
    }
    rows.policy()?;
    rows.transit()?;
    rows.nftables()?;
    rows.new_flows()?;
    rows.balancing()?;
    rows.drops()?;
    rows.costs()?;
    rows.scale()?;
    rows.streams()?;
    rows.latencies();
    rows.memory();
    rows.control();
    rows.finish()
}

struct Rows<'a, 'w> {
    wants: &'w dyn Fn(&str) -> bool,
    vrouter: &'a Vrouter,
    linux: &'a LinuxLab,
    extra: &'a Extra,
    /// Paths whose ends get sinks once everything is established: until then the ends answer.
    sinks: Vec<Rc<Path>>,
    subjects: Vec<Subject<'a>>,
}

type Peers<'p> = &'p [(&'p str, Option<Demand>)];

impl<'a> Rows<'a, '_> {
    fn wants(&self, id: &str) -> bool {
        (self.wants)(id)
    }

    fn add(
        &mut self,
        id: &str,
        unit: &'static str,
        peers: Peers<'_>,
        what: &str,
        measure: impl Fn(Duration) -> Result<f64> + 'a,
    ) {
        let peers = peers.iter().map(|&(peer, least)| (peer.to_owned(), least)).collect();
        let label = Label { id: id.to_owned(), unit, what: what.to_owned(), peers, demand: None };
        self.subjects.push(Subject { label, measure: Box::new(measure) });
    }

    /// Frames of `flows` flows in turns.
    fn frames(&mut self, id: &str, peers: Peers<'_>, what: &str, path: &Rc<Path>, flows: u32) {
        self.sinks.push(Rc::clone(path));
        let path = Rc::clone(path);
        self.add(id, "Mpps", peers, what, move |length| {
            path.take(0, u64::from(flows))?;
            path.measure(length)
        });
    }

    /// The rows without connections: one flow.
    fn plain(&mut self) -> Result<()> {
        if self.wants("bare_redirect") {
            let path = Path::program(self.linux.lane("bare"), FAR, |_, _, exit| {
                bpf::load(&programs::rewrite(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1], exit))
            })?;
            let what = "XDP: rewrite MACs, redirect; nothing else (the bound)";
            self.frames("bare_redirect", &[], what, &Rc::new(path), 1);
        }
        for (id, from, to, peers, what) in [
            (
                "xdp_local",
                "xdp1",
                "xdp2",
                &[("bare_redirect", None), ("linux_forward", None)][..],
                "vrouter, XDP port to XDP port, routed, no connections",
            ),
            (
                "tc_local",
                "tc1",
                "tc2",
                &[("linux_forward", None)][..],
                "vrouter, TC port to TC port, routed, no connections",
            ),
        ] {
            if self.wants(id) {
                let path = Path::routed(&self.vrouter.lab, from, to)?;
                self.frames(id, peers, what, &Rc::new(path), 1);
            }
        }
        if self.wants("linux_forward") {
            let lane = self.linux.lane("forward");
            let path = Path::linux(lane, lane.far()?)?;
            self.frames("linux_forward", &[], "Linux, veth to veth, ip_forward", &Rc::new(path), 1);
        }
        Ok(())
    }

    /// The sizes of a kind of rows that are wanted, those for a small table and those for a large one.
    fn sizes(&self, kind: &str) -> [Vec<(String, &'static str, u32)>; 2] {
        let sizes = SIZES.map(|(name, flows)| (format!("{kind}_{name}"), name, flows));
        sizes
            .into_iter()
            .filter(|(id, ..)| self.wants(id))
            .partition(|&(.., flows)| flows <= SMALL_MAX)
            .into()
    }

    fn lookups(&mut self) -> Result<()> {
        let [small, large] = self.sizes("hash_redirect");
        for (rows, lane, entries, others) in
            [(small, "hash", table::SMALL, OTHERS), (large, "hash-1m", table::LARGE, 1)]
        {
            let Some(most) = rows.iter().map(|&(.., flows)| flows).max() else { continue };
            let path = Path::program(self.linux.lane(lane), FAR, |shape, enter, exit| {
                let table = table::filled(entries, most, others, shape, enter, exit)?;
                bpf::load(&programs::hash_redirect(&table, enter))
            })?;
            let path = Rc::new(path);
            for (id, name, flows) in rows {
                let what =
                    format!("XDP: one lookup in a hash of {entries} entries, redirect; {}", count(name));
                self.frames(&id, &[], &what, &path, flows);
            }
        }
        Ok(())
    }

    /// Established connections through vrouter.
    fn connections(&mut self, kind: &Kind) -> Result<()> {
        let sizes = self.sizes(kind.id);
        for ((rows, port), node) in sizes.into_iter().zip(kind.ports).zip(["node-a", kind.large_node]) {
            let Some(most) = rows.iter().map(|&(.., flows)| flows).max() else { continue };
            let lab = &self.vrouter.lab;
            let path = match FLOATING.iter().find(|(_, whose)| *whose == port) {
                Some((floating, _)) => Path::inward(lab, floating, port)?,
                None => Path::outward(lab, port, FAR)?,
            };
            self.establish(kind.id, &path, most, || self.vrouter.misses(node))?;
            let path = Rc::new(path);
            for (id, name, flows) in rows {
                let (hash, nft) = (format!("hash_redirect_{name}"), format!("linux_nft_{name}"));
                let peers: Peers<'_> = match (kind.id, name) {
                    ("xdp_snat", "1k") => {
                        &[("bare_redirect", Some(Least(0.8))), (&hash, None), (&nft, Some(Least(4.0)))]
                    }
                    ("xdp_snat", "64k" | "1m") => &[(&hash, Some(Least(0.8))), (&nft, Some(Least(3.0)))],
                    ("xdp_snat" | "xdp_fip", _) => &[(&hash, None), (&nft, None)],
                    _ => &[(&nft, None)],
                };
                let what = format!("vrouter, {}, stateful policy; {}", kind.what, count(name));
                self.frames(&id, peers, &what, &path, flows);
            }
        }
        Ok(())
    }

    fn establish(
        &self,
        id: &str,
        path: &Path,
        flows: u32,
        undecided: impl Fn() -> Result<u64>,
    ) -> Result<()> {
        let start = Instant::now();
        path.establish(flows, undecided).with_context(|| format!("for the rows {id}"))?;
        println!("{id}: {flows} flows are established, {}", report::duration(start.elapsed()));
        Ok(())
    }

    fn policy(&mut self) -> Result<()> {
        let id = "tc_policy";
        if !self.wants(id) {
            return Ok(());
        }
        let path = Path::routed(&self.vrouter.lab, "policy1", "policy2")?;
        self.establish(id, &path, ROUTED, || self.vrouter.misses("node-a"))?;
        let peers: Peers<'_> = &[("linux_forward", Some(Least(1.0))), ("linux_nft_1k", Some(Least(1.5)))];
        let what = "vrouter, TC port to TC port, routed, stateful policy; 1k flows";
        self.frames(id, peers, what, &Rc::new(path), ROUTED);
        Ok(())
    }

    /// What a gateway passes on to the node that has the port.
    fn transit(&mut self) -> Result<()> {
        if self.wants("bare_tx") {
            let path = Path::back(self.linux.lane("tx"), || bpf::load(&programs::send_back()))?;
            let what = "XDP: swap MACs, send back; nothing else";
            self.frames("bare_tx", &[], what, &Rc::new(path), 1);
        }
        if let Some(gateway) = &self.extra.gateway {
            let port = gateway.foreign_port()?;
            let path = Path::transit(&gateway.lab, Gateway::NODE, Gateway::ROUTER, port)?;
            let peers: Peers<'_> = &[("bare_tx", Some(Least(0.7)))];
            let what = "vrouter, gateway: external interface to the node that has the port, VXLAN; 1k flows";
            self.frames("xdp_transit", peers, what, &Rc::new(path), ROUTED);
        }
        Ok(())
    }

    fn nftables(&mut self) -> Result<()> {
        let rows = self.sizes("linux_nft").concat();
        let Some(most) = rows.iter().map(|&(.., flows)| flows).max() else { return Ok(()) };
        let lane = self.linux.lane("nft");
        let path = Path::linux(lane, FAR)?;
        // A packet that belongs to no connection makes one.
        self.establish("linux_nft", &path, most, || lane.connections())?;
        let path = Rc::new(path);
        for (id, name, flows) in rows {
            let what = format!("Linux, conntrack, nftables: SNAT, stateful filter; {}", count(name));
            self.frames(&id, &[], &what, &path, flows);
        }
        Ok(())
    }

    fn new_flows(&mut self) -> Result<()> {
        if self.wants("new_flows") {
            let path = Rc::new(Path::outward(&self.vrouter.lab, "xnew", FAR_NEW)?);
            self.sinks.push(Rc::clone(&path));
            path.take(0, NEW)?;
            let peers: Peers<'_> = &[("linux_new_flows", Some(Least(3.0)))];
            let what = "vrouter: first packets, SNAT, stateful policy, XDP, one core";
            let vrouter = self.vrouter;
            self.add("new_flows", "M/s", peers, what, move |length| {
                let before = vrouter.misses("node-a")?;
                let rate = path.measure(length)?;
                all_new(rate, length, vrouter.misses("node-a")? - before)
            });
        }
        if self.wants("linux_new_flows") {
            let lane = self.linux.lane("nft-new");
            let path = Rc::new(Path::linux(lane, FAR_NEW)?);
            self.sinks.push(Rc::clone(&path));
            path.take(0, NEW)?;
            let what = "Linux: first packets, conntrack, SNAT, stateful filter, one core";
            self.add("linux_new_flows", "M/s", &[], what, move |length| {
                // What it remembers of earlier rounds is no part of this one.
                lane.forget()?;
                let rate = path.measure(length)?;
                all_new(rate, length, lane.connections()?)
            });
        }
        Ok(())
    }

    /// What a load balancer costs: established connections against the same without one, and first packets.
    fn balancing(&mut self) -> Result<()> {
        let lab = &self.vrouter.lab;
        if self.wants("lb_routed") {
            let path = Path::routed(lab, "xlb1", "xlb2")?;
            self.establish("lb_routed", &path, ROUTED, || self.vrouter.misses("node-a"))?;
            let what = "vrouter, XDP port to XDP port, routed, stateful policy; 1k flows";
            self.frames("lb_routed", &[], what, &Rc::new(path), ROUTED);
        }
        if self.wants("lb_established") {
            let path = Path::balanced(lab, "xlb1", VIP, "xlb2", None)?;
            self.establish("lb_established", &path, ROUTED, || self.vrouter.misses("node-a"))?;
            let peers: Peers<'_> = &[("lb_routed", Some(Least(0.95)))];
            self.frames("lb_established", peers, "the same to a VIP", &Rc::new(path), ROUTED);
        }
        if self.wants("lb_new") {
            let path = Rc::new(Path::balanced(lab, "xlbnew", VIP, "xlb2", Some(FAR_NEW))?);
            self.sinks.push(Rc::clone(&path));
            path.take(0, NEW)?;
            let vrouter = self.vrouter;
            let what = "vrouter: first packets to a VIP, stateful policy, XDP, one core";
            self.add("lb_new", "M/s", &[("linux_lb_new", None)], what, move |length| {
                let before = vrouter.misses("node-a")?;
                let rate = path.measure(length)?;
                all_new(rate, length, vrouter.misses("node-a")? - before)
            });
        }
        if self.wants("linux_lb_new") {
            let lane = self.linux.lane("nft-lb");
            let path = Rc::new(Path::linux_balanced(lane, LINUX_VIP, FAR_NEW)?);
            self.sinks.push(Rc::clone(&path));
            path.take(0, NEW)?;
            let what = "Linux: first packets, nftables dnat by jhash, conntrack, stateful filter, one core";
            self.add("linux_lb_new", "M/s", &[], what, move |length| {
                lane.forget()?;
                let rate = path.measure(length)?;
                all_new(rate, length, lane.connections()?)
            });
        }
        Ok(())
    }

    /// Packets that are dropped, with and without somebody who is told of them.
    fn drops(&mut self) -> Result<()> {
        let (vrouter, node) = (self.vrouter, "node-a");
        for (id, what, is_told, peers) in [
            (
                "monitor_off",
                "vrouter: spoofed packets dropped, XDP, one core, nobody listens",
                false,
                &[][..],
            ),
            (
                "monitor_on",
                "the same, vrouter monitor reads as fast as it can",
                true,
                &[("monitor_off", None)][..],
            ),
        ] {
            if self.wants(id) {
                let path = Path::spoofed(&vrouter.lab, "xdp3")?;
                self.add(id, "Mpps", peers, what, move |length| {
                    let _listener = if is_told { Some(vrouter.listener(node)?) } else { None };
                    path.take(0, u64::from(ROUTED))?;
                    path.measure_drops(length, || vrouter.spoofed(node))
                });
            }
        }
        Ok(())
    }

    /// Programs by themselves.
    fn costs(&mut self) -> Result<()> {
        if self.wants("one_hash") {
            let lane = self.linux.lane("hash");
            let (shape, enter) = (lane.shape(FAR)?, lane.ifindex(&lane.from)?);
            let table = table::filled(table::SMALL, 1, 0, &shape, enter, lane.ifindex(&lane.to)?)?;
            let program = bpf::load(&programs::hash_redirect(&table, enter))?;
            let timed = Timed::new(&program, &shape, &lane.router, &Lane::interface_of(&lane.from))?;
            let what = "the program of hash_redirect by itself, one flow, in the caches";
            self.add("one_hash", "ns", &[], what, move |length| timed.measure(length));
        }
        if self.wants("prog_ns") {
            let lab = &self.vrouter.lab;
            let (port, node) = ("xsnat", "node-a");
            let path = Path::outward(lab, port, FAR)?;
            self.establish("prog_ns", &path, 1, || self.vrouter.misses(node))?;
            let program = bpf::pinned(&self.vrouter.pins(node).join("programs/vr_xdp_port"))?;
            let tap = &lab.workload(port).spec().tap;
            let timed = Timed::new(&program, &path.shape, lab.node(node).netns(), tap)?;
            let what = "the program of xdp_snat by itself, one flow, in the caches";
            self.add("prog_ns", "ns", &[("one_hash", Some(Most(2.0)))], what, move |length| {
                timed.measure(length)
            });
        }
        Ok(())
    }

    fn streams(&mut self) -> Result<()> {
        let (lab, linux) = (&self.vrouter.lab, self.linux);
        let (vm1, vm3, vm5) = (lab.workload("vm1"), lab.workload("vm3"), lab.workload("vm5"));
        // Not those of frames, whose ends drop everything.
        let (xdp3, xdp4) = (lab.workload("xdp3"), lab.workload("xdp4"));
        let rows: [(&str, Peers<'_>, &str, &Host, &Host, &str); 7] = [
            (
                "direct_veth",
                &[],
                "one TCP stream over one veth pair",
                linux.direct_a(),
                linux.direct_b(),
                linux::DIRECT_B,
            ),
            (
                "tcp_local",
                &[("direct_veth", Some(Least(0.95))), ("linux_routed", None)],
                "one TCP stream, vrouter, on one node: routed, policy, translated both ways (floating IPs)",
                vm1,
                vm3,
                FLOATING_OF_VM3,
            ),
            (
                "tcp_routed",
                &[("direct_veth", None), ("linux_routed", None)],
                "one TCP stream, vrouter, on one node: routed, policy",
                vm1,
                vm3,
                vm3.v4(),
            ),
            (
                "tcp_xdp_ports",
                &[("tcp_routed", None)],
                "the same between ports with XDP, which leaves what is no frame to TC",
                xdp3,
                xdp4,
                xdp4.v4(),
            ),
            (
                "tcp_vxlan",
                &[("linux_vxlan", Some(Least(1.0)))],
                "one TCP stream, vrouter, routed, across VXLAN",
                vm1,
                vm5,
                vm5.v4(),
            ),
            (
                "linux_routed",
                &[],
                "one TCP stream, Linux, routed on one node",
                linux.host("h1"),
                linux.host("h2"),
                linux::H2,
            ),
            (
                "linux_vxlan",
                &[],
                "one TCP stream, Linux, routed, across kernel VXLAN",
                linux.host("h1"),
                linux.host("h3"),
                linux::H3,
            ),
        ];
        if self.wants("tcp_xdp_ports") {
            for workload in [xdp3, xdp4] {
                path::take_frames(lab, workload)?;
                // A frame cannot say that its checksum is still to be completed.
                workload.netns().run(&format!("ethtool -K {} tx off", Host::INTERFACE))?;
            }
        }
        for (id, peers, what, from, to, address) in rows {
            if self.wants(id) {
                self.add(id, "Gb/s", peers, what, move |length| {
                    let seconds = u32::try_from(length.as_secs()).unwrap_or(1).max(1) * 2;
                    Ok(tools::iperf3(from, to, address, seconds, &[])?.bits_per_second / 1e9)
                });
            }
        }
        Ok(())
    }

    /// The same with little and with much of what does not concern it.
    fn scale(&mut self) -> Result<()> {
        let Some(scales) = &self.extra.scales else { return Ok(()) };
        for (scale, size) in scales.iter().zip(scale::SIZES) {
            let large = size == scale::SIZES[1];
            let [hit, miss] =
                if large { ["scale_hit", "scale_miss"] } else { ["scale_hit_10", "scale_miss_10"] };
            if self.wants(hit) {
                let path = Path::routed(&scale.lab, scale::FROM, scale::TO)?;
                self.establish(hit, &path, ROUTED, || scale.misses())?;
                let peers: Peers<'_> = if large { &[("scale_hit_10", Some(Least(0.95)))] } else { &[] };
                let what = format!("established, {size} rules, routes and ports; 1k flows, XDP");
                self.frames(hit, peers, &what, &Rc::new(path), ROUTED);
            }
            if self.wants(miss) {
                let path = Rc::new(Path::through(&scale.lab, scale::FROM, scale::TO, scale::routed())?);
                self.sinks.push(Rc::clone(&path));
                // Those with little have few addresses: when flows come again, they are long forgotten.
                path.take(0, NEW.min(scale::flows(size)))?;
                let peers: Peers<'_> = if large { &[("scale_miss_10", Some(Least(1.0 / 3.0)))] } else { &[] };
                let what = format!("first packets, {size} rules, routes and ports, XDP");
                self.add(miss, "M/s", peers, &what, move |length| {
                    let before = scale.misses()?;
                    let rate = path.measure(length)?;
                    all_new(rate, length, scale.misses()? - before)
                });
            }
        }
        Ok(())
    }

    fn latencies(&mut self) {
        let (lab, linux) = (&self.vrouter.lab, self.linux);
        let (vm1, vm3, vm5) = (lab.workload("vm1"), lab.workload("vm3"), lab.workload("vm5"));
        type Exchange<'a> = (&'static str, Option<&'static str>, &'static str, [&'a Host; 2], &'a str);
        let rows: [Exchange<'a>; 4] = [
            ("rr_local", Some("linux_rr_local"), "vrouter, routed on one node", [vm1, vm3], vm3.v4()),
            ("rr_vxlan", Some("linux_rr_vxlan"), "vrouter, routed, across VXLAN", [vm1, vm5], vm5.v4()),
            (
                "linux_rr_local",
                None,
                "Linux, routed on one node",
                [linux.host("h1"), linux.host("h2")],
                linux::H2,
            ),
            (
                "linux_rr_vxlan",
                None,
                "Linux, routed, across VXLAN",
                [linux.host("h1"), linux.host("h3")],
                linux::H3,
            ),
        ];
        for (id, peer, what, [from, to], address) in rows {
            let high = format!("{id}_p99");
            if !self.wants(id) {
                continue;
            }
            // Both rows are of one run.
            let last = Rc::new(Cell::new(f64::NAN));
            let peers = peer.map(|peer| [(peer.to_owned(), format!("{peer}_p99"))]);
            let peer = |index: usize| {
                let names = peers.iter().flatten();
                names.map(|(half, most)| [half, most][index].clone()).collect::<Vec<_>>()
            };
            let (half, most) = (peer(0), peer(1));
            let half: Vec<_> = half.iter().map(|peer| (peer.as_str(), Some(Most(1.0)))).collect();
            let most: Vec<_> = most.iter().map(|peer| (peer.as_str(), Some(Most(1.0)))).collect();
            let told = Rc::clone(&last);
            self.add(id, "us", &half, &format!("{what}; one byte and back, median"), move |length| {
                let latency = latency::measure(from, to, address, length)?;
                told.set(latency.p99);
                Ok(latency.p50)
            });
            self.add(&high, "us", &most, &format!("{what}; all but one in a hundred"), move |_| {
                Ok(last.get())
            });
        }
    }

    /// What flows cost in memory: the tables are as they are from the start.
    fn memory(&mut self) {
        for (id, entries, demand, what) in [
            (
                "memory",
                1e6,
                Some(Most(256.0)),
                "kernel memory of 1 M entries of the flow table, one for each direction",
            ),
            ("memory_connections", 2e6, None, "kernel memory of 1 M connections: two entries each"),
        ] {
            if !self.wants(id) {
                continue;
            }
            let path = self.vrouter.pins("node-a").join("maps/FLOWS");
            let share = entries / f64::from(table::SMALL);
            self.add(id, "MiB", &[], what, move |_| Ok(control::map_memory(&path)? * share));
            self.demand(demand);
        }
    }

    fn control(&mut self) {
        if let Some(balancers) = &self.extra.balancers {
            if self.wants("control_lb_start") {
                let what = "1,000 VIPs of 100 members: from an agent's start until all is in force";
                self.add("control_lb_start", "s", &[], what, move |_| balancers.start());
                self.demand(Some(Most(2.0)));
            }
            if self.wants("control_lb_change") {
                let what = "one member's weight changed, until it is in force; all but one in a hundred";
                self.add("control_lb_change", "ms", &[], what, move |_| balancers.change());
                self.demand(Some(Most(20.0)));
            }
        }
        if let Some(balancers) = &self.extra.balancers_in_etcd {
            let what = "the same with the topology in etcd, from before it is stored";
            self.add(BALANCERS_IN_ETCD, "ms", &[], what, move |_| balancers.change());
            self.demand(Some(Most(20.0)));
            let what = "the same, half of the changes";
            self.add("control_lb_etcd_p50", "ms", &[], what, move |_| balancers.within(50));
        }
        let Some(control) = &self.extra.control else { return };
        let what = "100 networks of 100 ports: from an agent's start until all is in force";
        if self.wants("control_start") {
            self.add("control_start", "s", &[], what, move |_| control.start());
            self.demand(Some(Most(2.0)));
        }
        let what = "one rule of them changed, until it is in force; all but one in a hundred";
        if self.wants("control_change") {
            self.add("control_change", "ms", &[], what, move |_| control.change());
            self.demand(Some(Most(20.0)));
        }
        if self.wants("agent_memory") {
            self.add("agent_memory", "MiB", &[], "resident memory of that agent", move |_| {
                control.resident()
            });
            self.demand(Some(Most(100.0)));
        }
    }

    /// Of the row just added.
    fn demand(&mut self, demand: Option<Demand>) {
        if let Some(subject) = self.subjects.last_mut() {
            subject.label.demand = demand;
        }
    }

    /// Puts in what counts the frames. Everything was established before: the ends do not answer any more.
    fn finish(self) -> Result<Vec<Subject<'a>>> {
        let mut sinks = Sinks::default();
        for path in &self.sinks {
            sinks.put(path)?;
        }
        // They stay for as long as there is anything to be measured.
        let sinks = Rc::new(sinks);
        Ok(self
            .subjects
            .into_iter()
            .map(|Subject { label, measure }| {
                let sinks = Rc::clone(&sinks);
                let measure = Box::new(move |length| {
                    let _sinks = &sinks;
                    measure(length)
                });
                Subject { label, measure: measure as Box<dyn Fn(Duration) -> Result<f64> + 'a> }
            })
            .collect())
    }
}

/// A rate of new flows, if there were as many as it says.
fn all_new(rate: f64, length: Duration, flows: u64) -> Result<f64> {
    let least = rate * 1e6 * length.as_secs_f64() * 0.89;
    if (flows as f64) < least {
        bail!("of {least:.0} packets that came out only {flows} were first ones");
    }
    Ok(rate)
}

/// A number of flows in words.
fn count(name: &str) -> String {
    if name == "1" { "1 flow".to_owned() } else { format!("{name} flows") }
}
