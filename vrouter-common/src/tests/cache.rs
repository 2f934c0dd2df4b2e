//! The flow table: what is kept, and when it is not used.

use super::fixture::*;
use crate::{
    memory::{self, Entry, MemoryPacket, MemoryTables, Verdict},
    reason::{DropReason, Event},
    tables::*,
};

fn misses(tables: &MemoryTables) -> u64 {
    tables.events.borrow().get(&Event::FlowMiss).copied().unwrap_or(0)
}

#[test]
fn a_flow_is_decided_once_and_counted_after() {
    for f in BOTH {
        for dst in [(1, 12), (1, 13), (2, 11), (2, 12), (6, 11), (6, 12)] {
            let tables = tables();
            let frame = Pkt::udp(f, (1, 11), dst).frame();
            for n in 1..=5_u64 {
                sent(run(&tables, Entry::Port(WEB1), &frame));
                let flows = tables.transients();
                assert_eq!((flows.len(), misses(&tables)), (1, 1));
                let (key, flow) = flows[0];
                assert_eq!((key.zone, key.sport.get(), key.dport.get()), (WEB1, 40000, 53));
                assert_eq!((flow.network, flow.epoch, flow.packets), (WEB, 2, n));
                assert_eq!(flow.bytes, n * frame.len() as u64);
            }
        }
    }
}

#[test]
fn a_changed_network_has_its_flows_decided_again() {
    for f in BOTH {
        let frame = Pkt::udp(f, (1, 11), (2, 11)).frame();
        let mut tables = tables();
        sent(run(&tables, Entry::Port(WEB1), &frame));
        // The other port takes the address over; until the revision says so, the flow stands.
        let key = AddressKey::new(0, DB, ip(f, 2, 11).into());
        let remote = tables.image.fdb[&FdbKey::new(0, DB, port_mac(2, 12))];
        tables.image.addresses.insert(key, remote);
        assert_eq!(sent(run(&tables, Entry::Port(WEB1), &frame)).0, DB1);
        // A network it does not concern.
        tables.revisions.insert(ISLAND, 4);
        assert_eq!(sent(run(&tables, Entry::Port(WEB1), &frame)).0, DB1);
        tables.commit.epoch = 4;
        tables.revisions.insert(WEB, 4);
        for _ in 0..2 {
            assert_eq!(sent(run(&tables, Entry::Port(WEB1), &frame)).0, UPLINK);
        }
        let flows = tables.transients();
        assert_eq!((flows.len(), flows[0].1.epoch, misses(&tables)), (1, 4, 2));
        // And a revoked one is dropped at once.
        tables.commit.epoch = 6;
        tables.revisions.insert(WEB, 6);
        tables.image.routes.clear();
        answered(run(&tables, Entry::Port(WEB1), &frame));
    }
}

#[test]
fn a_tunnelled_flow_is_decided_again_too() {
    for f in BOTH {
        let mut tables = tables();
        let frame = vxlan(VTEP2, 1001, &Pkt::udp(f, (1, 13), (1, 11)).frame());
        sent(run(&tables, Entry::Uplink, &frame));
        tables.image.vteps.clear();
        sent(run(&tables, Entry::Uplink, &frame));
        tables.commit.epoch = 4;
        tables.revisions.insert(WEB, 4);
        let verdict = run(&tables, Entry::Uplink, &frame);
        assert_eq!(verdict, Verdict::Dropped(DropReason::VtepUnknown));
    }
}

#[test]
fn a_flow_holds_for_its_own_frames_alone() {
    for f in BOTH {
        let tables = tables();
        let pkt = Pkt::udp(f, (1, 16), (2, 11));
        sent(run(&tables, Entry::Port(WEB_OPEN), &pkt.frame()));
        assert_eq!(misses(&tables), 1);
        // Another source; then the flow is that one's.
        let mut other = pkt.clone();
        other.src_mac = [2, 9, 9, 9, 9, 9];
        sent(run(&tables, Entry::Port(WEB_OPEN), &other.frame()));
        assert_eq!(misses(&tables), 2);
        // Another destination: switched, not routed.
        let switched = pkt.clone().via(port_mac(1, 12));
        let (ifindex, out) = sent(run(&tables, Entry::Port(WEB_OPEN), &switched.frame()));
        assert_eq!((ifindex, out, misses(&tables)), (WEB2, switched.frame(), 3));
        let group = pkt.clone().via(BROADCAST);
        let verdict = run(&tables, Entry::Port(WEB_OPEN), &group.frame());
        assert_eq!(verdict.flooded(), Some(WEB));
        // A TTL that would end; larger than may leave.
        sent(run(&tables, Entry::Port(WEB_OPEN), &pkt.frame()));
        let before = misses(&tables);
        answered(run(&tables, Entry::Port(WEB_OPEN), &pkt.clone().ttl(1).frame()));
        answered(run(&tables, Entry::Port(WEB_OPEN), &pkt.clone().sized(1401).frame()));
        assert_eq!(misses(&tables), before + 2);
        sent(run(&tables, Entry::Port(WEB_OPEN), &pkt.ttl(2).frame()));
        assert_eq!(misses(&tables), before + 2);
    }
}

#[test]
fn a_tunnelled_flow_holds_for_its_own_node_alone() {
    for f in BOTH {
        let tables = tables();
        let inner = Pkt::udp(f, (1, 13), (1, 11)).frame();
        for (n, vtep) in [[192, 0, 2, 2], [192, 0, 2, 3], [192, 0, 2, 2]].into_iter().enumerate() {
            for _ in 0..2 {
                assert_eq!(sent(run(&tables, Entry::Uplink, &vxlan(vtep, 1001, &inner))).0, WEB1);
                assert_eq!(misses(&tables), n as u64 + 1);
            }
        }
    }
}

#[test]
fn a_full_table_forwards_all_the_same() {
    for f in BOTH {
        let mut tables = tables();
        tables.flows_disabled = true;
        let frame = Pkt::udp(f, (1, 11), (2, 11)).frame();
        for n in 1..=3 {
            assert_eq!(sent(run(&tables, Entry::Port(WEB1), &frame)).0, DB1);
            assert_eq!(tables.events.borrow()[&Event::FlowNotStored], n);
        }
    }
}

/// One packet at the XDP hook of a port: whether its flow decided it, and where it went.
fn at_xdp(tables: &MemoryTables, ifindex: u32, frame: &[u8]) -> (bool, Option<(u32, Vec<u8>)>) {
    let before = misses(tables);
    let sent = memory::run_xdp(tables, Entry::Port(ifindex), MemoryPacket::new(frame)).unwrap();
    (misses(tables) == before, sent)
}

#[test]
fn xdp_leaves_a_flow_to_tc_whole_and_uncounted_unless_its_exit_takes_frames() {
    for f in BOTH {
        for dst in [(1, 12), (1, 13), (2, 11), (2, 12), (6, 11)] {
            let tables = tables();
            let frame = Pkt::udp(f, (1, 11), dst).frame();
            assert_eq!(at_xdp(&tables, WEB1, &frame), (false, None));
            assert!(tables.transients().is_empty(), "what is left to TC is remembered there");
            sent(run(&tables, Entry::Port(WEB1), &frame));
            assert_eq!(at_xdp(&tables, WEB1, &frame), (true, None));
            assert_eq!((misses(&tables), tables.transients()[0].1.packets), (2, 1));
        }
    }
}

#[test]
fn xdp_sends_what_tc_would_where_the_exit_takes_frames() {
    for f in BOTH {
        for dst in [(1, 12), (1, 13), (2, 11), (2, 12), (6, 11)] {
            let mut tables = tables();
            for station in tables.image.fdb.values_mut().chain(tables.image.addresses.values_mut()) {
                if station.place == PLACE_LOCAL {
                    station.place = PLACE_LOCAL_FRAMES;
                }
            }
            for way in tables.underlay.values_mut() {
                way.flags |= UNDERLAY_FRAMES;
            }
            let frame = Pkt::udp(f, (1, 11), dst).frame();
            let expected = sent(run(&tables, Entry::Port(WEB1), &frame));
            assert_eq!(at_xdp(&tables, WEB1, &frame), (true, Some(expected.clone())));
            tables.revisions.insert(WEB, 4);
            tables.commit.epoch = 4;
            assert_eq!(at_xdp(&tables, WEB1, &frame), (false, Some(expected)));
            assert_eq!(tables.transients()[0].1.packets, 1);
        }
    }
}
