//! VXLAN from the underlay.

use super::fixture::*;
use crate::{
    addr::Be32,
    memory::{Entry, Verdict},
    reason::{DropReason, Event},
    wire::*,
};

fn inner_frame(f: Family) -> Vec<u8> {
    Pkt::udp(f, (1, 13), (1, 11)).frame()
}

#[track_caller]
fn verdict(frame: &[u8]) -> Verdict {
    run(&tables(), Entry::Uplink, frame)
}

#[test]
fn l7_an_unknown_vtep_is_refused() {
    for f in BOTH {
        let tables = tables();
        let inner = inner_frame(f);
        // The flow of a known one is there, and does not help.
        sent(run(&tables, Entry::Uplink, &vxlan(VTEP2, 1001, &inner)));
        for vtep in [[192, 0, 2, 99], VTEP1, [0; 4], [255; 4]] {
            let verdict = run(&tables, Entry::Uplink, &vxlan(vtep, 1001, &inner));
            assert_eq!(verdict, Verdict::Dropped(DropReason::VtepUnknown));
            let group = Pkt::udp(f, (1, 13), (1, 11)).via(BROADCAST).frame();
            let verdict = run(&tables, Entry::Uplink, &vxlan(vtep, 1001, &group));
            assert_eq!(verdict, Verdict::Dropped(DropReason::VtepUnknown));
        }
    }
}

#[test]
fn l7_an_unknown_vni_is_refused() {
    for vni in [0, 999, 1009, 0xff_ffff] {
        let frame = vxlan(VTEP2, vni, &inner_frame(Family::V4));
        assert_eq!(verdict(&frame), Verdict::Dropped(DropReason::VniUnknown));
    }
}

#[test]
fn l7_a_bad_header_is_refused() {
    let good = vxlan(VTEP2, 1001, &inner_frame(Family::V4));
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bad = good.clone();
        change(&mut bad);
        fix_ipv4(&mut bad);
        bad
    };
    let bad = [
        // No VNI in it.
        changed(&|b| b[42] = 0),
        changed(&|b| b[42] = 0xf7),
        // Lengths that contradict each other or hold no frame.
        changed(&|b| b[38..40].copy_from_slice(&29_u16.to_be_bytes())),
        changed(&|b| b[16..18].copy_from_slice(&40_u16.to_be_bytes())),
        changed(&|b| b[38..40].copy_from_slice(&[0xff, 0xff])),
        // The first of two fragments.
        changed(&|b| b[20] = 0x20),
        // Options.
        {
            let mut bad = good.clone();
            bad[14] = 0x46;
            bad.splice(34..34, [1, 1, 1, 0]);
            bad[17] += 4;
            fix_ipv4(&mut bad);
            bad
        },
    ];
    for frame in bad {
        assert_eq!(verdict(&frame), Verdict::Dropped(DropReason::VxlanMalformed));
    }
    // Reserved bits are ignored (RFC 7348, 5).
    sent(verdict(&changed(&|b| b[43..46].fill(0xff))));
    for len in 42..OUTER_LEN + ETH_LEN {
        assert_eq!(verdict(&good[..len]), Verdict::Dropped(DropReason::VxlanMalformed), "{len}");
    }
    for len in OUTER_LEN + ETH_LEN..good.len() {
        assert_eq!(verdict(&good[..len]), Verdict::Dropped(DropReason::FrameTruncated), "{len}");
    }
}

#[test]
fn l7_what_is_not_vxlan_for_this_node_is_the_kernels() {
    let good = vxlan(VTEP2, 1001, &inner_frame(Family::V4));
    let changed = |at: usize, bytes: &[u8]| {
        let mut other = good.clone();
        other[at..at + bytes.len()].copy_from_slice(bytes);
        fix_ipv4(&mut other);
        other
    };
    let others = [
        changed(36, &4790_u16.to_be_bytes()),
        changed(30, &[192, 0, 2, 77]),
        changed(23, &[PROTO_TCP]),
        changed(12, &ETHERTYPE_IPV6.to_be_bytes()),
        changed(12, &ETHERTYPE_ARP.to_be_bytes()),
        // A later fragment has no ports.
        changed(20, &[0, 1]),
        good[..41].to_vec(),
        vec![],
    ];
    let tables = tables();
    for (i, frame) in others.iter().enumerate() {
        assert_eq!(run(&tables, Entry::Uplink, frame), Verdict::Passed, "{i}");
    }
    assert_eq!(tables.events.borrow()[&Event::ToKernel], others.len() as u64);
}

#[test]
fn l7_without_a_vtep_nothing_is_a_tunnel() {
    let mut tables = tables();
    tables.commit.vtep = Be32::new(0);
    let mut frame = vxlan(VTEP2, 1001, &inner_frame(Family::V4));
    assert_eq!(run(&tables, Entry::Uplink, &frame), Verdict::Passed);
    frame[30..34].fill(0);
    fix_ipv4(&mut frame);
    assert_eq!(run(&tables, Entry::Uplink, &frame), Verdict::Passed);
}

#[test]
fn l7_a_bad_inner_frame_is_refused() {
    for (change, reason) in [
        ((14_usize, 0x55_u8), DropReason::Ipv4Malformed),
        ((24, 0), DropReason::Ipv4Checksum),
        ((12, 0x12), DropReason::EthertypeUnknown),
        ((6, 3), DropReason::EthernetSource),
    ] {
        let mut inner = inner_frame(Family::V4);
        inner[change.0] = change.1;
        assert_eq!(verdict(&vxlan(VTEP2, 1001, &inner)), Verdict::Dropped(reason));
    }
}
