//! The lab itself, with nothing but Linux in it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::Duration;

use vrouter_tests::{Lab, LabBuilder, Netns, WorkloadSpec, clean};

fn two_nodes() -> LabBuilder {
    Lab::builder()
        .node("node-a")
        .node("node-b")
        .foreign("ext", 50)
        .workload(
            WorkloadSpec::new("vm1", "node-a", "02:00:00:00:01:0b")
                .address("10.0.1.11/24")
                .address("fd00:1::b/64")
                .gateway("10.0.1.1")
                .gateway("fd00:1::1"),
        )
        .workload(
            WorkloadSpec::new("vm2", "node-a", "02:00:00:00:01:0c")
                .address("10.0.1.12/24")
                .address("fd00:1::c/64"),
        )
}

/// Joins the two workloads by a bridge, which is what the tests of vrouter must not have.
fn bridge_workloads(node: &Netns) {
    node.ip(&[
        "link add br0 type bridge",
        "link set br0 up",
        "link set tap-vm1 master br0",
        "link set tap-vm2 master br0",
    ])
    .unwrap();
}

/// An Ethernet frame of an experimental type from vm1 to vm2, with an optional VLAN tag.
fn frame(tag: &[u8], payload: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 1, 0x0c, 2, 0, 0, 0, 1, 0x0b];
    frame.extend(tag);
    frame.extend([0x88, 0xb5]);
    frame.extend([payload; 46]);
    frame
}

#[test]
fn nodes_and_foreign_hosts_reach_each_other_over_the_underlay() {
    let lab = two_nodes().mtu(1600).build().unwrap();
    let node = lab.node("node-a");
    assert!(node.ping(lab.node("node-b").address(), 3, &[]).unwrap().is_clean());
    assert!(node.ping("192.0.2.50", 1, &["-M", "do", "-s", "1572"]).unwrap().is_clean(), "the MTU is 1600");
    let neighbours = node.neighbours().unwrap();
    assert!(neighbours.iter().any(|neighbour| neighbour.dst == "192.0.2.2" && neighbour.lladdr.is_some()));
    // Nobody has this address.
    let ping = node.ping("192.0.2.99", 1, &[]).unwrap();
    assert_eq!((ping.sent, ping.received), (1, 0));
}

#[test]
fn workloads_have_the_addresses_they_were_given_and_no_other_way_to_each_other() {
    let lab = two_nodes().build().unwrap();
    let (vm1, vm2) = (lab.workload("vm1"), lab.workload("vm2"));
    assert_eq!(vm1.mac().unwrap(), [2, 0, 0, 0, 1, 0x0b]);
    assert!(vm1.run("ip route").unwrap().contains("default via 10.0.1.1 dev eth0"));
    assert!(vm1.run("ip -6 route").unwrap().contains("default via fd00:1::1 dev eth0"));
    assert_eq!(vm1.ping(vm2.v4(), 1, &[]).unwrap().received, 0);

    bridge_workloads(lab.node("node-a").netns());
    assert!(vm1.ping(vm2.v4(), 2, &[]).unwrap().is_clean());
    assert!(vm1.ping(vm2.v6(), 2, &[]).unwrap().is_clean());

    vm1.unplug().unwrap();
    assert!(vm1.mac().is_err());
    vm1.plug().unwrap();
    lab.node("node-a").netns().ip(&["link set tap-vm1 master br0"]).unwrap();
    assert!(vm1.ping(vm2.v6(), 2, &[]).unwrap().is_clean());
}

#[test]
fn frames_sent_are_the_frames_received() {
    let lab = two_nodes().build().unwrap();
    bridge_workloads(lab.node("node-a").netns());
    let (vm1, vm2) = (lab.workload("vm1"), lab.workload("vm2"));
    vm1.offloads_off().unwrap();
    let sniffer = vm2.sniff().unwrap();
    let own = vm1.sniff().unwrap();
    let capture = vm2.capture("ether proto 0x88b5").unwrap();
    let is_ours = |frame: &[u8]| frame.windows(2).any(|bytes| bytes == [0x88, 0xb5]);

    let plain = frame(&[], 1);
    let tagged = frame(&[0x81, 0x00, 0x20, 0x07], 2);
    vm1.raw_send(&plain).unwrap();
    vm1.raw_send(&tagged).unwrap();

    let timeout = Duration::from_secs(2);
    assert_eq!(sniffer.expect(timeout, is_ours).unwrap(), plain);
    assert_eq!(sniffer.expect(timeout, is_ours).unwrap(), tagged);
    assert!(own.collect(Duration::from_millis(100), is_ours).unwrap().is_empty(), "the sender's own frames");
    assert_eq!(capture.wait_for(timeout, is_ours).unwrap(), plain);
    assert_eq!(capture.stop().unwrap(), [plain, tagged]);
}

#[test]
fn nothing_is_left_after_a_drop_or_a_panic() {
    let lab = two_nodes().build().unwrap();
    let prefix = lab.prefix().to_owned();
    assert_eq!(clean::namespaces(&prefix).len(), 6);
    let mut sleeper = lab.node("node-a").spawn("sleep 1000").unwrap();
    drop(lab);
    assert!(!clean::exists(&prefix));
    assert!(!sleeper.wait(Duration::from_secs(1)).unwrap().success(), "what runs in a lab ends with it");

    let mut prefix = String::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let lab = two_nodes().build().unwrap();
        prefix = lab.prefix().to_owned();
        assert!(clean::exists(&prefix));
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert!(!prefix.is_empty() && !clean::exists(&prefix));

    // Nor of one that could not be built.
    let prefix = format!("vrfail{}", std::process::id());
    let impossible = WorkloadSpec::new("vm9", "node-z", "02:00:00:00:01:0b");
    let error = two_nodes().prefix(&prefix).workload(impossible).build().unwrap_err();
    assert!(format!("{error:#}").contains("node-z"), "{error:#}");
    assert!(!clean::exists(&prefix));
}

#[test]
fn a_lab_whose_process_died_is_swept_and_a_living_one_is_not() {
    let living = Lab::builder().node("node-a").build().unwrap();
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .args(["--exact", "abandons_a_lab", "--ignored", "--nocapture"])
        .env("ABANDON_A_LAB", "1")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let prefix = printed.lines().find_map(|line| Some(line.split_once("abandoned ")?.1.to_owned())).unwrap();
    clean::sweep_stale().unwrap();
    assert!(!clean::exists(&prefix), "{prefix}");
    assert!(clean::exists(living.prefix()));
    assert!(living.node("node-a").ping("192.0.2.1", 1, &[]).unwrap().is_clean());
}

#[test]
#[ignore = "is the process that dies in a_lab_whose_process_died_is_swept_and_a_living_one_is_not"]
fn abandons_a_lab() {
    if std::env::var_os("ABANDON_A_LAB").is_none() {
        return;
    }
    let lab = two_nodes().build().unwrap();
    println!("abandoned {}", lab.prefix());
    // No destructor runs.
    std::process::abort();
}
