//! Copies to every receiver of a network. A test run sends them for real: they are caught where they arrive.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use crate::{frames::*, harness::*, topology::*};

/// What arrives at an interface.
struct Tap(OwnedFd);

impl Tap {
    /// Listens at the other end of an interface.
    fn behind(interface: &str) -> Self {
        let every_protocol = (libc::ETH_P_ALL as u16).to_be();
        let name = format!("{interface}x");
        let ifindex = nix::net::if_::if_nametoindex(&*name).expect("an interface");
        // SAFETY: a system call of scalars.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                every_protocol.into(),
            )
        };
        assert!(fd >= 0, "cannot listen: {}", io::Error::last_os_error());
        // SAFETY: just opened, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain integers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = every_protocol;
        address.sll_ifindex = ifindex as i32;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: an address of the length given.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
        assert_eq!(bound, 0, "cannot listen at {name}: {}", io::Error::last_os_error());
        Self(socket)
    }

    /// What has arrived; waits a little for the first frame, and less for one that should not come.
    fn frames(&self, wanted: bool) -> Vec<Vec<u8>> {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, alive during the call.
        unsafe { libc::poll(&raw mut poll, 1, if wanted { 5000 } else { 20 }) };
        let mut frames = Vec::new();
        loop {
            let mut frame = vec![0; 2048];
            // SAFETY: a buffer of the length given.
            let len = unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
            let Ok(len) = usize::try_from(len) else { return frames };
            frame.truncate(len);
            frames.push(frame);
        }
    }
}

/// Runs a frame that is flooded, and compares what every interface got.
fn check(world: &World, name: &str, at: &str, frame: &[u8], copies: &[(&str, Vec<u8>)]) {
    let taps: Vec<(&str, Tap)> =
        INTERFACES.iter().map(|&interface| (interface, Tap::behind(interface))).collect();
    let (ran, counts) = world.run_counted(Via::Xdp, at, frame);
    assert_eq!(ran, Ran { verdict: XDP_PASS, frame: frame.to_vec() }, "{name}: XDP leaves it to TC");
    let inner = if at == UPLINK { &frame[50..] } else { frame };
    assert_eq!(counts, left_by_xdp(inner), "{name}: XDP's counters");
    let (ran, counts) = world.run_counted(Via::Tc, at, frame);
    assert_eq!(ran.verdict, TC_ACT_SHOT, "{name}: the original is not needed any more");
    assert_eq!(counts, Counts::from([("flow_miss", 1), ("frame_flooded", 1)]), "{name}: TC's counters");
    for (interface, tap) in taps {
        let wanted = copies.iter().find(|(receiver, _)| *receiver == interface).map(|(_, copy)| copy);
        let got = tap.frames(wanted.is_some());
        assert_eq!(got.len(), usize::from(wanted.is_some()), "{name}: copies at {interface}: {got:02x?}");
        if let Some(wanted) = wanted {
            assert_frame(&format!("{name}, at {interface}"), &got[0], wanted);
        }
    }
    assert!(world.flow_entries().is_empty(), "{name}: floods are no flows");
}

fn flooded() -> [(&'static str, Vec<u8>); 4] {
    let mac = port_mac(11);
    let dhcp = Packet {
        src: Ipv4Addr::UNSPECIFIED.into(),
        dst_mac: BROADCAST,
        ..Packet::routed(11, Ipv4Addr::BROADCAST)
    };
    let mdns = Packet {
        dst_mac: [0x33, 0x33, 0, 0, 0, 0xfb],
        ..Packet::routed(11, std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb))
    };
    [
        ("ARP for an unknown address", arp_request(11, v4(1, 99))),
        ("an ARP announcement", arp(BROADCAST, mac, 1, (mac, port_v4(11)), ([0; 6], port_v4(11)))),
        ("IPv4 broadcast", dhcp.transport(Transport::Udp { sport: 68, dport: 67 }).build()),
        ("IPv6 multicast", mdns.build()),
    ]
}

#[test]
fn from_a_port_to_the_others_and_to_the_nodes() {
    with_world(|world| {
        for (name, frame) in flooded() {
            // By the Ethernet addresses alone: what is flooded need not have ports.
            let word = |at: usize| u32::from_ne_bytes(frame[at..at + 4].try_into().expect("four"));
            let sport = vrouter_common::tunnel::outer_sport(word(8) ^ word(4)).get();
            let mut copies: Vec<_> = ["p12", "p13", "p19"].map(|port| (port, frame.clone())).into();
            copies.push((UPLINK, leaving(2, sport, vni(1), &frame)));
            check(world, name, "p11", &frame, &copies);
        }
    });
}

#[test]
fn from_a_node_to_the_ports_only() {
    with_world(|world| {
        for (name, mut frame) in flooded() {
            // Sent by a port of the other node.
            frame[11] = 15;
            let copies = ["p11", "p12", "p13", "p19"].map(|port| (port, frame.clone()));
            check(world, name, UPLINK, &arriving(2, vni(1), &frame), &copies);
        }
    });
}

#[test]
fn a_network_on_no_other_node() {
    with_world(|world| {
        let frame = arp_request(41, v4(4, 99));
        check(world, "ARP", "p41", &frame, &[("p42", frame.clone())]);
    });
}

#[test]
fn a_node_out_of_reach_is_counted() {
    with_world(|world| {
        let way = underlay(&world.ifindexes)[&3];
        world.underlay.set(&2, &way).expect("UNDERLAY");
        let frame = arp_request(11, v4(1, 99));
        let (_, counts) = world.run_counted(Via::Tc, "p11", &frame);
        assert_eq!(
            counts,
            Counts::from([("flow_miss", 1), ("frame_flooded", 1), ("underlay_unreachable", 1)])
        );
    });
}
