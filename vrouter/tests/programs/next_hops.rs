//! The agent's half of next hops, over the kernel's maps and real interfaces: what a slot goes through, and what
//! is sent when. What the data path would hand over is made up here.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use vrouter::{
    agent::external::{
        External as NextHops, NextHopsStatus, Outside,
        slots::{FlowTables, Search, Slots},
        upcall::{Held, Message},
        worker::Worker,
    },
    kernel::{Map, Stack},
};
use vrouter_common::{
    addr::{Ip, Macs},
    flow::{EXIT_EXTERNAL, EXIT_PORT, Flow, FlowKey},
    memory::Image,
    plan::{Answer, ICMP_ERROR},
    tables::*,
};

use crate::{
    harness::{FLOW_ENTRIES, World, in_namespace},
    topology,
};

const NETWORK: u32 = 5;
const ROUTER: u32 = 1;
const VNI: u32 = 5000;
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
const HOP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];
const WORKLOAD: [u8; 6] = [2, 0, 0, 0, 1, 0x0a];
const INSIDE: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn ip(text: &str) -> Ip {
    Ip::from(text.parse::<IpAddr>().expect("an address"))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The maps as the data path uses them.
struct Maps {
    index: Map<HopKey, u32>,
    hops: Map<u32, Hop>,
    free: Stack<u32>,
    transient: Map<FlowKey, Flow>,
    flows: Map<FlowKey, Flow>,
}

impl Maps {
    fn open(world: &World) -> Self {
        let maps = world.pins().maps();
        Self {
            index: Map::open(&maps, "HOP_INDEX").expect("HOP_INDEX"),
            hops: Map::open(&maps, "HOPS").expect("HOPS"),
            free: Stack::open(&maps, "FREE_HOPS").expect("FREE_HOPS"),
            transient: Map::open(&maps, "TRANSIENT").expect("TRANSIENT"),
            flows: Map::open(&maps, "FLOWS").expect("FLOWS"),
        }
    }

    /// Makes a next hop as the data path does.
    fn new_hop(&self, address: &str, ifindex: u32) -> u32 {
        let index = self.free.pop().expect("FREE_HOPS").expect("a free slot");
        let key = HopKey { network: NETWORK, ip: ip(address) };
        let hop =
            Hop { flags: HOP_USED, ifindex, network: NETWORK, ip: key.ip, router: ROUTER, ..Hop::default() };
        self.hops.set(&index, &hop).expect("HOPS");
        assert!(self.index.set_new(&key, &index).expect("HOP_INDEX"));
        index
    }

    fn change(&self, index: u32, change: impl Fn(&mut Hop)) {
        let mut hop = self.hop(index);
        change(&mut hop);
        self.hops.set(&index, &hop).expect("HOPS");
    }

    fn hop(&self, index: u32) -> Hop {
        self.hops.lookup(&index).expect("HOPS").expect("a slot")
    }

    fn linked(&self) -> BTreeSet<u32> {
        self.index.entries().expect("HOP_INDEX").into_iter().map(|(_, index)| index).collect()
    }

    /// Takes everything from the stack.
    fn drain(&self) -> Vec<u32> {
        std::iter::from_fn(|| self.free.pop().expect("FREE_HOPS")).collect()
    }

    /// Takes everything, and puts it back in its order.
    fn free(&self) -> Vec<u32> {
        let free = self.drain();
        for index in free.iter().rev() {
            self.free.push(index).expect("FREE_HOPS");
        }
        free
    }
}

/// A flow to a next hop, of its own key.
fn flow_to(index: u32) -> (FlowKey, Flow) {
    let key = FlowKey { zone: index, ..FlowKey::default() };
    (key, Flow { exit: EXIT_EXTERNAL, target: index, ..Flow::default() })
}

fn search(world: &World) -> BTreeSet<u32> {
    let tables = FlowTables::open(&world.pins().maps()).expect("the flow tables");
    let mut search = Search::default();
    loop {
        if let Some(found) = search.go_on(&tables, 3).expect("a search") {
            return found;
        }
    }
}

fn with_slots(test: impl FnOnce(&World, &Maps) + Send + 'static) {
    in_namespace(|| {
        let world = World::new(FLOW_ENTRIES);
        let maps = Maps::open(&world);
        test(&world, &maps);
    });
}

fn open_slots(world: &World) -> Slots {
    Slots::open(&world.pins().maps()).expect("the slots")
}

#[test]
fn every_slot_is_free_once_whatever_happened_before() {
    with_slots(|world, maps| {
        let all: Vec<u32> = (0..HOPS_MAX).collect();
        open_slots(world);
        assert_eq!(maps.free(), all, "at first, the lowest on top");
        open_slots(world);
        assert_eq!(maps.free(), all, "again: nothing is pushed twice");
        let (a, b) = (maps.new_hop("203.0.113.1", 9), maps.new_hop("2001:db8::1", 9));
        assert_eq!((a, b), (0, 1));
        // An agent died before it pushed one, and another before it pushed what it had taken.
        let lost = maps.free.pop().expect("FREE_HOPS");
        assert_eq!(lost, Some(2));
        open_slots(world);
        let mut free = maps.free();
        free.sort_unstable();
        assert_eq!(free, all[2..], "all but those in use");
        maps.drain();
        open_slots(world);
        assert_eq!(maps.free(), all[2..]);
        assert_eq!(maps.linked(), BTreeSet::from([a, b]));
    });
}

#[test]
fn a_slot_is_given_back_after_two_searches_and_never_while_a_flow_refers_to_it() {
    with_slots(|world, maps| {
        let mut slots = open_slots(world);
        let wanted = maps.new_hop("203.0.113.1", 9);
        let (idle, late) = (maps.new_hop("203.0.113.2", 9), maps.new_hop("203.0.113.3", 9));
        let (key, flow) = flow_to(wanted);
        maps.flows.set(&key, &flow).expect("FLOWS");
        let port = Flow { exit: EXIT_PORT, target: idle, ..Flow::default() };
        maps.flows.set(&FlowKey { zone: 99, ..key }, &port).expect("FLOWS");
        assert_eq!(search(world), BTreeSet::from([wanted]), "a port of the same number is no next hop");

        assert_eq!(slots.part(&search(world), &[wanted, idle, late]).expect("part"), 0);
        assert_eq!(maps.linked(), BTreeSet::from([wanted]), "no new flow finds them");
        assert_eq!(maps.free().len() as u32, HOPS_MAX - 3, "but a program may just store one");
        assert!(slots.is_any_parting());
        let (key, flow) = flow_to(late);
        maps.transient.set(&key, &flow).expect("TRANSIENT");

        assert_eq!(slots.part(&search(world), &[]).expect("part"), 1);
        assert_eq!(maps.linked(), BTreeSet::from([wanted, late]), "that one did");
        assert_eq!(maps.hop(idle), Hop::default());
        assert_eq!(maps.free().first(), Some(&idle));
        assert!(!slots.is_any_parting());
        // And it is given out again.
        assert_eq!(maps.new_hop("203.0.113.4", 9), idle);
    });
}

#[test]
fn what_a_dead_agent_parted_from_is_found_and_not_given_back_twice() {
    with_slots(|world, maps| {
        let mut slots = open_slots(world);
        let (orphan, referred) = (maps.new_hop("203.0.113.1", 9), maps.new_hop("203.0.113.2", 9));
        let (key, flow) = flow_to(referred);
        slots.part(&BTreeSet::new(), &[orphan, referred]).expect("part");
        maps.flows.set(&key, &flow).expect("FLOWS");
        drop(slots);
        // The data path lost a race for a key, and gave a slot back as it was.
        let lost = maps.free.pop().expect("FREE_HOPS").expect("a slot");
        maps.change(lost, |hop| hop.flags = HOP_USED);
        let mut slots = open_slots(world);
        maps.free.push(&lost).expect("FREE_HOPS");

        assert_eq!(slots.part(&search(world), &[]).expect("part"), 1);
        let mut free = maps.free();
        let len = free.len();
        free.sort_unstable();
        free.dedup();
        assert_eq!(free.len(), len, "one was pushed twice");
        assert!(free.contains(&orphan) && free.contains(&lost) && !free.contains(&referred));
        assert_eq!(free.len() as u32, HOPS_MAX - 1);
        assert_eq!(maps.linked(), BTreeSet::from([referred]), "back in the index");
        assert!(!slots.is_any_parting());
    });
}

#[test]
fn a_slot_whose_key_was_given_out_again_follows_the_new_one() {
    with_slots(|world, maps| {
        let mut slots = open_slots(world);
        let old = maps.new_hop("203.0.113.1", 9);
        slots.part(&BTreeSet::new(), &[old]).expect("part");
        let new = maps.new_hop("203.0.113.1", 9);
        maps.change(new, |hop| (hop.flags, hop.mac, hop.confirmed) = (HOP_USED | HOP_RESOLVED, HOP_MAC, 7));
        slots.part(&BTreeSet::from([old, new]), &[]).expect("part");
        assert_eq!(maps.hop(old), maps.hop(new));
        assert_eq!(maps.linked(), BTreeSet::from([new]));
        assert!(slots.is_any_parting());
        assert_eq!(slots.part(&BTreeSet::from([new]), &[]).expect("part"), 1, "its flows ended");
        assert_eq!(maps.free().first(), Some(&old));
    });
}

#[test]
fn what_is_marked_respects_what_was_learned_meanwhile() {
    with_slots(|world, maps| {
        let slots = open_slots(world);
        let index = maps.new_hop("203.0.113.1", 9);
        let seen = maps.hop(index);
        slots.note_asked(index, 41).expect("asked");
        assert_eq!(maps.hop(index).asked, 41);
        maps.change(index, |hop| {
            (hop.flags, hop.mac, hop.confirmed) = (HOP_USED | HOP_RESOLVED, HOP_MAC, 50)
        });
        let learned = maps.hop(index);
        slots.fail(index, &seen).expect("fail");
        slots.note_asked(index, 99).expect("asked");
        assert_eq!(maps.hop(index), learned, "it answered in time");
        slots.fail(index, &learned).expect("fail");
        assert_eq!(maps.hop(index).flags, HOP_USED | HOP_FAILED);
        // A free slot is nothing to be written to.
        for free in [100, HOPS_MAX, u32::MAX] {
            slots.fail(free, &Hop::default()).expect("fail");
            slots.note_asked(free, 1).expect("asked");
            slots.move_to(free, 3).expect("move");
        }
        assert_eq!(maps.hop(100), Hop::default());
    });
}

/// Reads what was sent out of an interface, at the other end of its pair.
struct Wire(OwnedFd);

impl Wire {
    fn open(interface: &str) -> Self {
        use nix::sys::socket::{
            AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, SockaddrLike, bind, socket,
        };
        let ifindex = nix::net::if_::if_nametoindex(interface).expect("the other end") as i32;
        let fd =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, Some(SockProtocol::EthAll))
                .expect("a packet socket");
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: ifindex,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: a `sockaddr_ll` of its own length.
        let address = unsafe {
            LinkAddr::from_raw((&raw const address).cast(), Some(size_of::<libc::sockaddr_ll>() as u32))
        };
        bind(fd.as_raw_fd(), &address.expect("an address")).expect("bind");
        Self(fd)
    }

    /// Everything that came since the last look. Sending over a veth is done when the call returns, receiving a
    /// moment later.
    fn frames(&self) -> Vec<Vec<u8>> {
        std::thread::sleep(Duration::from_millis(20));
        let mut frames = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(len) = nix::unistd::read(&self.0, &mut buffer) {
            frames.push(buffer[..len].to_vec());
        }
        frames
    }
}

/// The worker, and a clock that runs as fast as the test likes.
struct Lab<'a> {
    worker: Worker,
    maps: &'a Maps,
    outside: Wire,
    port: Wire,
    external: u32,
    port_ifindex: u32,
    now: Instant,
}

fn image() -> Image {
    let mut image = Image::default();
    let network = Network { vni: VNI, mtu: 1500, flags: NETWORK_EXTERNAL };
    image.networks.insert(NetworkKey { network: Scoped::new(0, NETWORK) }, network);
    let leg = RouterLeg {
        vni: VNI,
        mtu: 1500,
        mac: ROUTER_MAC,
        flags: LEG_EXTERNAL | LEG_OWNED,
        v4: ip("203.0.113.10"),
        v6: ip("2001:db8::10"),
        snat_blocks: 0,
        tunnel_mac: [0; 6],
        zero: 0,
    };
    image.router_legs.insert(RouterLegKey { router: Scoped::new(0, ROUTER), network: NETWORK }, leg);
    for (address, kind, place) in [
        ("203.0.113.10", STATION_ROUTER, PLACE_EVERYWHERE),
        ("2001:db8::50", STATION_FLOATING, PLACE_EVERYWHERE),
        ("203.0.113.51", STATION_FLOATING, PLACE_REMOTE),
    ] {
        let station = Station { mac: ROUTER_MAC, kind, place, at: 0, owner: ROUTER };
        image.addresses.insert(AddressKey::new(0, NETWORK, ip(address)), station);
    }
    image
}

fn outside(ifindex: u32) -> Arc<Outside> {
    let mut commit = Commit::default();
    commit.externals[0] = External { ifindex, vni: VNI, flags: 0 };
    Arc::new(Outside::of(&image(), &commit, &BTreeSet::new(), &BTreeSet::new()))
}

fn with_lab(test: impl FnOnce(&mut Lab) + Send + 'static) {
    in_namespace(|| {
        let mut world = World::new(FLOW_ENTRIES);
        // Redirected frames would be in the way of those that are looked for.
        let problems = world.data_path.attach(&Default::default());
        assert!(problems.is_empty());
        let maps = Maps::open(&world);
        let (external, port_ifindex) =
            (world.ifindex(topology::UPLINK), world.ifindex(topology::INTERFACES[0]));
        assert_ne!(external, port_ifindex);
        let worker = Worker::open(
            world.pins(),
            outside(external),
            Arc::new(|_| {}),
            Default::default(),
            Default::default(),
        )
        .expect("a worker opens its pins");
        let mut lab = Lab {
            worker,
            maps: &maps,
            outside: Wire::open(&format!("{}x", topology::UPLINK)),
            port: Wire::open(&format!("{}x", topology::INTERFACES[0])),
            external,
            port_ifindex,
            now: Instant::now(),
        };
        test(&mut lab);
    });
}

impl Lab<'_> {
    /// Lets time pass, doing everything when it is due.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            self.worker.work(self.now);
            let next = self.worker.next_due(self.now);
            if next > until {
                break;
            }
            self.now = next;
        }
        self.now = until;
    }

    fn new_hop(&self, address: &str) -> u32 {
        self.maps.new_hop(address, self.external)
    }

    /// A packet from the port, of `len` bytes of data, which the data path could not send.
    fn held(&self, hop: u32, ident: u16, len: usize) -> Held {
        let mut frame = Vec::new();
        let builder = etherparse::PacketBuilder::ethernet2(WORKLOAD, INSIDE).ipv4(
            [10, 0, 1, 10],
            [198, 51, 100, 7],
            64,
        );
        builder.udp(ident, 53).write(&mut frame, &vec![0x5a; len]).expect("short");
        // May be cut.
        frame[20] = 0;
        frame[24..26].fill(0);
        let sum = frame[14..34]
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum::<u32>();
        let sum = (sum & 0xffff) + (sum >> 16);
        frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        let flow = Flow {
            exit: EXIT_EXTERNAL,
            target: hop,
            hops: 1,
            mtu: 1500,
            out_macs: Macs::new([0; 6], ROUTER_MAC),
            ..Flow::default()
        };
        let answer = Answer {
            kind: ICMP_ERROR,
            icmp_type: 3,
            icmp_code: 1,
            source: ip("10.0.1.1"),
            ..Answer::default()
        };
        let upcall = Upcall {
            kind: UPCALL_WAIT,
            hop,
            len: frame.len() as u32,
            ifindex: self.port_ifindex,
            flow,
            answer,
            ..Upcall::default()
        };
        Held { upcall, frame }
    }

    fn wait(&mut self, hop: u32, ident: u16) {
        let held = self.held(hop, ident, 10);
        self.worker.take(Message::Wait(held), self.now);
    }

    /// The next hop answers, as the data path would note it.
    fn learn(&mut self, hop: u32) {
        let now = last_asked(self.maps, hop);
        self.maps.change(hop, |hop| {
            (hop.flags, hop.mac, hop.confirmed) = (HOP_USED | HOP_RESOLVED, HOP_MAC, now);
        });
        self.worker.take(Message::Resolved(hop), self.now);
    }
}

/// A moment that is now, near enough: the tick of the last request.
fn last_asked(maps: &Maps, hop: u32) -> u32 {
    maps.hop(hop).asked
}

/// What a frame is, in a word.
fn kind(frame: &[u8]) -> String {
    match (&frame[12..14], frame.get(23), frame.get(54)) {
        ([8, 6], ..) if frame[28..32] == frame[38..42] => "announcement".to_owned(),
        ([8, 6], ..) if frame[0] == 0xff => format!("who has {}", frame[41]),
        ([8, 6], ..) => format!("are you {}", frame[41]),
        ([8, 0], Some(17), _) => format!("udp {}", u16::from_be_bytes([frame[34], frame[35]])),
        ([8, 0], Some(1), _) => format!("icmp {} {}", frame[34], frame[35]),
        ([0x86, 0xdd], _, Some(135)) => "solicitation".to_owned(),
        ([0x86, 0xdd], _, Some(136)) => "advertisement".to_owned(),
        _ => format!("{frame:02x?}"),
    }
}

fn kinds(wire: &Wire) -> Vec<String> {
    wire.frames().iter().map(|frame| kind(frame)).collect()
}

#[test]
fn packets_wait_until_the_next_hop_answers_and_leave_in_order() {
    with_lab(|lab| {
        let hop = lab.new_hop("203.0.113.1");
        for ident in 1..=3 {
            lab.wait(hop, ident);
        }
        lab.pass(Duration::from_millis(1500));
        assert_eq!(kinds(&lab.outside), ["who has 1", "who has 1"]);
        assert_ne!(lab.maps.hop(hop).asked, 0, "the data path need not ask");
        lab.learn(hop);
        let frames = lab.outside.frames();
        assert_eq!(frames.iter().map(|frame| kind(frame)).collect::<Vec<_>>(), ["udp 1", "udp 2", "udp 3"]);
        for frame in &frames {
            assert_eq!((&frame[..6], &frame[6..12], frame[22]), (&HOP_MAC[..], &ROUTER_MAC[..], 63));
        }
        // What comes after it leaves at once.
        lab.wait(hop, 4);
        assert_eq!(kinds(&lab.outside), ["udp 4"]);
        assert_eq!(kinds(&lab.port), Vec::<String>::new(), "its sender hears nothing");
        lab.pass(seconds(1));
        let status = lab.worker.status();
        assert_eq!((status.packets.sent, status.packets.lost, status.packets.waiting), (4, 0, 0));
        assert_eq!((status.hops.resolved, status.hops.waiting, status.hops.failed), (1, 0, 0));
        assert_eq!(status.requests, 2);
    });
}

#[test]
fn an_answer_whose_notice_was_lost_is_found() {
    with_lab(|lab| {
        let hop = lab.new_hop("203.0.113.1");
        lab.wait(hop, 1);
        lab.pass(Duration::from_millis(500));
        assert_eq!(kinds(&lab.outside), ["who has 1"]);
        let now = last_asked(lab.maps, hop);
        lab.maps.change(hop, |hop| {
            (hop.flags, hop.mac, hop.confirmed) = (HOP_USED | HOP_RESOLVED, HOP_MAC, now);
        });
        lab.pass(seconds(1));
        assert_eq!(kinds(&lab.outside), ["udp 1"]);
    });
}

#[test]
fn three_requests_in_vain_and_every_sender_is_told() {
    with_lab(|lab| {
        let hop = lab.new_hop("203.0.113.1");
        for ident in 1..=103 {
            lab.wait(hop, ident);
        }
        lab.pass(Duration::from_millis(3100));
        assert_eq!(kinds(&lab.outside), ["who has 1"; 3]);
        let frames = lab.port.frames();
        assert_eq!(frames.iter().map(|frame| kind(frame)).collect::<Vec<_>>(), ["icmp 3 1"; 101]);
        let quoted: Vec<u16> =
            frames.iter().map(|frame| u16::from_be_bytes([frame[62], frame[63]])).collect();
        assert_eq!(quoted, (3..=103).collect::<Vec<_>>(), "the first two had to give way");
        assert_eq!(frames[0][..12], [WORKLOAD, INSIDE].concat());
        assert_eq!(lab.maps.hop(hop).flags, HOP_USED | HOP_FAILED);
        // From now on it is answered at once, and the next hop probed every three seconds.
        lab.wait(hop, 200);
        assert_eq!(kinds(&lab.port), ["icmp 3 1"]);
        lab.pass(Duration::from_millis(6500));
        assert_eq!(kinds(&lab.outside), ["who has 1"; 2]);
        let status = lab.worker.status();
        assert_eq!((status.packets.answered, status.packets.lost, status.hops.failed), (102, 2, 1));
        // Then it is back.
        lab.learn(hop);
        lab.wait(hop, 201);
        assert_eq!(kinds(&lab.outside), ["udp 201"]);
    });
}

#[test]
fn what_came_by_a_tunnel_or_must_not_be_answered_is_only_counted() {
    with_lab(|lab| {
        let hop = lab.new_hop("203.0.113.1");
        lab.maps.change(hop, |hop| hop.flags = HOP_USED | HOP_FAILED);
        let mut tunnelled = lab.held(hop, 1, 10);
        tunnelled.frame.splice(0..0, [0x11; 50]);
        (tunnelled.upcall.at, tunnelled.upcall.len) = (50, tunnelled.frame.len() as u32);
        let mut mute = lab.held(hop, 2, 10);
        mute.upcall.answer = Answer::default();
        for held in [tunnelled, mute] {
            lab.worker.take(Message::Wait(held), lab.now);
        }
        assert_eq!(kinds(&lab.port), Vec::<String>::new());
        assert_eq!(lab.worker.status().packets.lost, 2);
        // Of a slot that is free, or is none.
        for nobody in [77, HOPS_MAX, u32::MAX] {
            lab.wait(nobody, 1);
        }
        assert_eq!(lab.worker.status().packets.answered, 3, "the sender is told");
    });
}

#[test]
fn a_next_hop_nobody_handed_over_is_found_and_asked_for() {
    with_lab(|lab| {
        lab.new_hop("203.0.113.1");
        let v6 = lab.new_hop("2001:db8::1");
        lab.pass(seconds(5));
        let mut kinds = kinds(&lab.outside);
        kinds.sort();
        assert_eq!(
            kinds,
            ["solicitation", "solicitation", "solicitation", "who has 1", "who has 1", "who has 1"]
        );
        assert_eq!(lab.maps.hop(v6).flags, HOP_USED | HOP_FAILED);
    });
}

#[test]
fn slots_nobody_wants_become_free() {
    with_lab(|lab| {
        let (failed, wanted) = (lab.new_hop("203.0.113.1"), lab.new_hop("203.0.113.2"));
        let (key, flow) = flow_to(wanted);
        lab.maps.transient.set(&key, &flow).expect("TRANSIENT");
        lab.pass(seconds(100));
        assert_eq!(lab.maps.linked(), BTreeSet::from([wanted]));
        assert_eq!(lab.maps.free().first(), Some(&failed));
        // Its address can be tried again from the beginning.
        let again = lab.new_hop("203.0.113.1");
        lab.outside.frames();
        lab.wait(again, 1);
        lab.pass(Duration::from_millis(500));
        assert!(kinds(&lab.outside).contains(&"who has 1".to_owned()));
    });
}

#[test]
fn next_hops_follow_their_network_to_another_interface() {
    with_lab(|lab| {
        let hop = lab.new_hop("203.0.113.1");
        lab.wait(hop, 1);
        lab.learn(hop);
        lab.outside.frames();
        // The external interface is another from now on: here, the port's.
        lab.worker.follow(outside(lab.port_ifindex), lab.now);
        lab.pass(Duration::from_millis(100));
        let moved = lab.maps.hop(hop);
        assert_eq!((moved.ifindex, moved.flags), (lab.port_ifindex, HOP_USED));
        assert!(kinds(&lab.port).contains(&"who has 1".to_owned()));
        assert_eq!(kinds(&lab.outside), Vec::<String>::new());
        // And then there is none.
        lab.worker.follow(Arc::new(Outside::default()), lab.now);
        lab.pass(seconds(2));
        assert_eq!(lab.maps.hop(hop).flags, HOP_USED | HOP_FAILED, "whoever sends is told at once");
    });
}

#[test]
fn what_is_here_is_announced_and_nothing_else() {
    with_lab(|lab| {
        lab.pass(seconds(3));
        assert_eq!(kinds(&lab.outside), Vec::<String>::new(), "what was found in force is not announced");
        lab.worker.follow(outside(lab.external), lab.now);
        lab.pass(Duration::from_millis(100));
        assert_eq!(kinds(&lab.outside), ["announcement", "advertisement"]);
        lab.pass(seconds(5));
        assert_eq!(kinds(&lab.outside).len(), 4);
        assert_eq!(lab.worker.status().announcements, 6);
        lab.worker.follow(outside(lab.external), lab.now);
        lab.pass(seconds(5));
        assert_eq!(kinds(&lab.outside), Vec::<String>::new(), "nothing is new");
    });
}

#[test]
fn the_thread_does_what_it_is_told_and_says_how_it_is() {
    in_namespace(|| {
        let world = World::new(FLOW_ENTRIES);
        let wire = Wire::open(&format!("{}x", topology::UPLINK));
        let told = Arc::new(Mutex::new(NextHopsStatus::default()));
        let tell = told.clone();
        let found = Outside::default();
        let tell = Arc::new(move |status: &NextHopsStatus| *tell.lock().expect("status") = status.clone());
        let mut next_hops =
            NextHops::start(world.pins(), found, tokio::sync::watch::Sender::default().subscribe(), tell)
                .expect("a thread");
        let external = world.ifindex(topology::UPLINK);
        next_hops.follow((*outside(external)).clone());
        let maps = Maps::open(&world);
        let mut kinds = Vec::new();
        let deadline = Instant::now() + seconds(20);
        // It knows the network as soon as it announces what is here.
        while Instant::now() < deadline && kinds.is_empty() {
            kinds.extend(wire.frames().iter().map(|frame| kind(frame)));
        }
        let hop = maps.new_hop("203.0.113.1", external);
        while Instant::now() < deadline && maps.hop(hop).flags & HOP_FAILED == 0 {
            kinds.extend(wire.frames().iter().map(|frame| kind(frame)));
        }
        assert_eq!(maps.hop(hop).flags, HOP_USED | HOP_FAILED, "{kinds:?}");
        // On a busy machine all of it may have happened since.
        kinds.extend(wire.frames().iter().map(|frame| kind(frame)));
        kinds.sort();
        kinds.dedup();
        assert_eq!(kinds, ["advertisement", "announcement", "who has 1"]);
        while Instant::now() < deadline && told.lock().expect("status").hops.failed == 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
        let status = told.lock().expect("status").clone();
        assert_eq!((status.hops.failed, status.announcements, status.error), (1, 6, None));
        assert!(status.requests >= 3, "{} requests", status.requests);
        next_hops.ensure().expect("it runs");
    });
}

#[test]
fn a_packet_too_large_is_cut_even_if_it_has_to_wait() {
    with_lab(|lab| {
        let hop = lab.new_hop("203.0.113.1");
        let mut held = lab.held(hop, 9, 1400);
        (held.upcall.kind, held.upcall.flow.mtu) = (UPCALL_FRAGMENT, 600);
        lab.worker.take(Message::Fragment(held.clone()), lab.now);
        lab.pass(Duration::from_millis(100));
        assert_eq!(kinds(&lab.outside), ["who has 1"]);
        lab.learn(hop);
        let lengths: Vec<usize> = lab.outside.frames().iter().map(Vec::len).collect();
        assert_eq!(lengths, [14 + 20 + 576, 14 + 20 + 576, 14 + 20 + 256]);
        // To a port there is nothing to wait for.
        (held.upcall.flow.exit, held.upcall.flow.target) = (EXIT_PORT, lab.port_ifindex);
        lab.worker.take(Message::Fragment(held.clone()), lab.now);
        assert_eq!(lab.port.frames().len(), 3);
        // Two thousand in a second, no more.
        for _ in 0..2100 {
            lab.worker.take(Message::Fragment(held.clone()), lab.now);
        }
        let cut = lab.worker.status().cut;
        assert_eq!((cut.packets, cut.refused), (2001, 101), "the bucket was full again");
    });
}
