//! Ways for made frames: put in at one end, counted at the other.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::Ipv4Addr,
    os::fd::OwnedFd,
    time::Duration,
};

use anyhow::{Result, bail};
use vrouter_tests::{Host, Lab, Workload};

use super::{
    bpf::{Attached, Hook},
    frames::{DESTINATION_PORT, End, Generator, Shape, Varied},
    linux::Lane,
};

/// Outside addresses of established flows, from here up.
pub const FAR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Outside addresses of flows that are always new.
pub const FAR_NEW: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);
/// Nobody's address.
const SPOOFED: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 250);
const UPSTREAM: &str = "203.0.113.1";
const GATEWAY: &str = "10.0.1.1";
const ASKED: Duration = Duration::from_millis(200);
/// Times all flows are gone through at the most, until every one is established.
const PASSES_MAX: u32 = 8;
/// The least frames of a look whether they are.
const LOOK: u32 = 20_000;
/// Frames that must come out for a measurement to mean something.
const LEAST: u64 = 10_000;

/// A way for made frames.
pub struct Path {
    /// Where they are put in.
    pub near: End,
    /// Where they come out.
    pub far: End,
    /// What they are.
    pub shape: Shape,
    /// What is measured hands them on as frames, or as socket buffers: where the ends take them.
    pub hook: Hook,
    generator: Generator,
    /// A program between the ends, if that is what is measured.
    _attached: Option<Attached>,
}

/// What counts and drops frames where they come out: one on each interface.
#[derive(Default)]
pub struct Sinks(BTreeMap<(String, String), Attached>);

impl Sinks {
    /// Puts one at the end of a path, if there is none.
    pub fn put(&mut self, path: &Path) -> Result<()> {
        let key = (path.far.netns.name().to_owned(), path.far.interface.clone());
        if let Entry::Vacant(place) = self.0.entry(key) {
            place.insert(path.far.sink(path.hook)?);
        }
        Ok(())
    }
}

impl Path {
    fn new(near: End, far: End, hook: Hook, shape: Shape, attached: Option<Attached>) -> Result<Self> {
        let generator = Generator::new(&near, &shape)?;
        Ok(Self { near, far, shape, hook, generator, _attached: attached })
    }

    /// From a workload on `web` to another, routed.
    pub fn routed(lab: &Lab, from: &str, to: &str) -> Result<Self> {
        let (from, to) = (lab.workload(from), lab.workload(to));
        take_frames(lab, from)?;
        let shape = from_workload(from, to.v4().parse()?)?;
        Self::new(End::of(from), End::of(to), hook_of(from), shape, None)
    }

    /// From a workload on `web` to addresses behind another, from `dst` up.
    pub fn through(lab: &Lab, from: &str, to: &str, dst: Ipv4Addr) -> Result<Self> {
        let (from, to) = (lab.workload(from), lab.workload(to));
        take_frames(lab, from)?;
        Self::new(End::of(from), End::of(to), hook_of(from), from_workload(from, dst)?, None)
    }

    /// From a workload on `web` to a VIP on `web`, which a member serves. `from_any`: not from its own address, but
    /// from those from that one up.
    pub fn balanced(
        lab: &Lab,
        from: &str,
        vip: &str,
        member: &str,
        from_any: Option<Ipv4Addr>,
    ) -> Result<Self> {
        let (from, member) = (lab.workload(from), lab.workload(member));
        take_frames(lab, from)?;
        take_frames(lab, member)?;
        let mut shape = from_workload(from, vip.parse()?)?;
        if let Some(src) = from_any {
            (shape.src, shape.varied) = (src, Varied::Source);
        }
        Self::new(End::of(from), End::of(member), hook_of(from), shape, None)
    }

    /// Through Linux that balances, from addresses from `src` up.
    pub fn linux_balanced(lane: &Lane, vip: &str, src: Ipv4Addr) -> Result<Self> {
        lane.resolve()?;
        let shape = Shape { src, varied: Varied::Source, ..lane.shape(vip.parse()?)? };
        Self::new(End::of(&lane.from), End::of(&lane.to), Hook::Tc, shape, None)
    }

    /// From a workload on `web` to addresses outside, from `to` up.
    pub fn outward(lab: &Lab, from: &str, to: Ipv4Addr) -> Result<Self> {
        let from = lab.workload(from);
        take_frames(lab, from)?;
        resolve_upstream(from)?;
        Self::new(End::of(from), outside(lab, from), hook_of(from), from_workload(from, to)?, None)
    }

    /// From a workload on `web` with a source address that is not its own: nothing comes out.
    pub fn spoofed(lab: &Lab, from: &str) -> Result<Self> {
        let from = lab.workload(from);
        take_frames(lab, from)?;
        let shape = Shape { src: SPOOFED, ..from_workload(from, FAR)? };
        Self::new(End::of(from), End::of(from), hook_of(from), shape, None)
    }

    /// From addresses outside, from [`FAR`] up, to a workload's floating IP.
    pub fn inward(lab: &Lab, floating: &str, to: &str) -> Result<Self> {
        let to = lab.workload(to);
        take_frames(lab, to)?;
        resolve_upstream(to)?;
        let hosts = lab.outside().hosts();
        let shape = Shape {
            to_mac: who_has(&hosts["outside1"], "203.0.113.101", floating)?,
            from_mac: hosts["gw"].mac()?,
            src: FAR,
            dst: floating.parse()?,
            dport: DESTINATION_PORT,
            varied: Varied::Source,
        };
        Self::new(outside(lab, to), End::of(to), hook_of(to), shape, None)
    }

    /// Through Linux, forwarding to addresses from `to` up.
    pub fn linux(lane: &Lane, to: Ipv4Addr) -> Result<Self> {
        // Whose interface drops everything cannot answer for its address again.
        lane.resolve()?;
        Self::new(End::of(&lane.from), End::of(&lane.to), Hook::Tc, lane.shape(to)?, None)
    }

    /// Through an XDP program that redirects, which `program` loads for frames of a shape and the indexes of
    /// the interfaces they come in and leave by.
    pub fn program(
        lane: &Lane,
        to: Ipv4Addr,
        program: impl FnOnce(&Shape, u32, u32) -> Result<OwnedFd>,
    ) -> Result<Self> {
        let shape = lane.shape(to)?;
        let program = program(&shape, lane.ifindex(&lane.from)?, lane.ifindex(&lane.to)?)?;
        let attached = Attached::new(&lane.router, &Lane::interface_of(&lane.from), &program)?;
        Self::new(End::of(&lane.from), End::of(&lane.to), Hook::Xdp, shape, Some(attached))
    }

    /// Through an XDP program that sends frames back.
    pub fn back(lane: &Lane, program: impl FnOnce() -> Result<OwnedFd>) -> Result<Self> {
        let shape = lane.shape(FAR)?;
        let attached = Attached::new(&lane.router, &Lane::interface_of(&lane.from), &program()?)?;
        Self::new(End::of(&lane.from), End::of(&lane.from), Hook::Xdp, shape, Some(attached))
    }

    /// From addresses outside to a port of the router's address that another node has: in by a node's external
    /// interface, out on its underlay.
    pub fn transit(lab: &Lab, node: &str, router: &str, dport: u16) -> Result<Self> {
        let node = lab.node(node);
        let hosts = lab.outside().hosts();
        let near = End { netns: lab.outside().switch().clone(), interface: node.external_port().to_owned() };
        let far = End { netns: lab.underlay().clone(), interface: node.underlay_port().to_owned() };
        let shape = Shape {
            to_mac: who_has(&hosts["outside1"], "203.0.113.101", router)?,
            from_mac: hosts["gw"].mac()?,
            src: FAR,
            dst: router.parse()?,
            dport,
            varied: Varied::Source,
        };
        near.netns.run(&format!("ethtool -K {} gro on", near.interface))?;
        Self::new(near, far, Hook::Xdp, shape, None)
    }

    /// Makes flows established: every one is answered from the other end. `undecided` counts the packets that
    /// what is measured could not forward by what it knows.
    pub fn establish(&self, flows: u32, undecided: impl Fn() -> Result<u64>) -> Result<()> {
        self.generator.take(0, u64::from(flows))?;
        for pass in 1..=PASSES_MAX {
            {
                let _answers = self.far.reflector(self.hook)?;
                let _drops = self.near.sink(self.hook)?;
                self.generator.make(flows)?;
            }
            if pass > 1 {
                let _drops = self.far.sink(self.hook)?;
                let before = undecided()?;
                self.generator.take(0, u64::from(flows))?;
                let look = flows.max(LOOK);
                self.generator.make(look)?;
                let more = undecided()? - before;
                if more <= u64::from(look / 100) {
                    return Ok(());
                }
            }
        }
        bail!("{flows} flows from {} are not established after {PASSES_MAX} tries", self.near.netns.name())
    }

    /// From now on `flows` flows from number `first` on, in turns.
    pub fn take(&self, first: u64, flows: u64) -> Result<()> {
        self.generator.take(first, flows)
    }

    /// Million frames per second that were dropped, which `dropped` counts.
    pub fn measure_drops(&self, length: Duration, dropped: impl Fn() -> Result<u64>) -> Result<f64> {
        let before = dropped()?;
        let elapsed = self.generator.run(length)?;
        let count = dropped()? - before;
        if count < LEAST {
            bail!("of a flood of frames only {count} were dropped");
        }
        Ok(count as f64 / elapsed.as_secs_f64() / 1e6)
    }

    /// Million frames per second that came out.
    pub fn measure(&self, length: Duration) -> Result<f64> {
        let before = self.far.received()?;
        let elapsed = self.generator.run(length)?;
        let count = self.far.received()? - before;
        if count < LEAST {
            bail!("of a flood of frames only {count} came out at {}", self.far.netns.name());
        }
        Ok(count as f64 / elapsed.as_secs_f64() / 1e6)
    }
}

/// Where a workload's port has vrouter.
fn hook_of(workload: &Workload) -> Hook {
    if workload.spec().xdp { Hook::Xdp } else { Hook::Tc }
}

/// The other end of the external interface of a workload's node.
fn outside(lab: &Lab, workload: &Workload) -> End {
    let port = lab.node(&workload.spec().node).external_port();
    End { netns: lab.outside().switch().clone(), interface: port.to_owned() }
}

fn from_workload(from: &Workload, dst: Ipv4Addr) -> Result<Shape> {
    Ok(Shape {
        to_mac: who_has(from, from.v4(), GATEWAY)?,
        from_mac: from.mac()?,
        src: from.v4().parse()?,
        dst,
        dport: DESTINATION_PORT,
        varied: Varied::Destination,
    })
}

fn who_has(host: &Host, own: &str, target: &str) -> Result<[u8; 6]> {
    let answers = host.who_has(own.parse()?, target.parse()?, ASKED)?;
    match answers[..] {
        [answer] => Ok(answer),
        _ => bail!("{} asked for {target} and got {} answers, not one", host.name(), answers.len()),
    }
}

/// Has the node find the next hop outside.
fn resolve_upstream(from: &Workload) -> Result<()> {
    let ping = from.ping(UPSTREAM, 5, &[])?;
    if ping.received == 0 {
        bail!("{} does not reach {UPSTREAM}:\n{}", from.name(), ping.output);
    }
    Ok(())
}

/// Frames handed to a veth need NAPI behind it, which is what GRO makes: on both sides of a workload's
/// interface, and outside.
pub fn take_frames(lab: &Lab, workload: &Workload) -> Result<()> {
    let spec = workload.spec();
    let tap = End { netns: lab.node(&spec.node).netns().clone(), interface: spec.tap.clone() };
    let outside = lab.external_network().map(|_| outside(lab, workload));
    for End { netns, interface } in [tap, End::of(workload)].into_iter().chain(outside) {
        netns.run(&format!("ethtool -K {interface} gro on"))?;
    }
    Ok(())
}
