//! Against the kernel, in network namespaces of their own. They have to run as root.

use std::fs::File;
use std::future::Future;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);
const NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const FAR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

/// Runs a test in a thread with a network namespace of its own, which goes away with the thread.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("cannot make a network namespace");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            ip("link set lo up");
            test().await;
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the namespace of the calling thread.
fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split_whitespace()));
}

fn run(command: &mut Command) {
    let output = command.output().expect("cannot run ip");
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The namespace at the other end of a veth pair, kept by a process that only waits.
struct Peer {
    keeper: Child,
}

impl Peer {
    fn new() -> Self {
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::null());
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                Ok(unshare(CloneFlags::CLONE_NEWNET)?)
            });
        }
        Self { keeper: command.spawn().expect("cannot start sleep") }
    }

    fn ip(&self, arguments: &str) {
        let namespace = File::open(format!("/proc/{}/ns/net", self.keeper.id())).unwrap();
        let mut command = Command::new("ip");
        command.args(arguments.split_whitespace());
        // SAFETY: between fork and exec only a system call is made.
        unsafe {
            command.pre_exec(move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?));
        }
        run(&mut command);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.keeper.kill().ok();
        self.keeper.wait().ok();
    }
}

/// `near` with [`NEAR`] here, connected to `far` with [`FAR`] there.
fn pair() -> Peer {
    let peer = Peer::new();
    ip("link add near address 02:00:00:00:00:01 mtu 1400 type veth peer name far address 02:00:00:00:00:02");
    ip(&format!("link set far netns {}", peer.keeper.id()));
    ip("address add 192.0.2.1/24 dev near");
    ip("link set near up");
    peer.ip("address add 192.0.2.2/24 dev far");
    peer.ip("link set far up");
    peer
}

async fn link(netlink: &Netlink, name: &str) -> Option<Link> {
    netlink.links().await.unwrap().into_iter().find(|link| link.name == name)
}

async fn index(netlink: &Netlink, name: &str) -> u32 {
    link(netlink, name).await.unwrap_or_else(|| panic!("no link {name}")).index
}

/// Asks again until the answer is the right one.
async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "it does not come to be: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads changes until one is right.
async fn see(changes: &mut Changes, what: &str, right: impl Fn(&Change) -> bool) -> Change {
    let mut seen = Vec::new();
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            let change = changes.next().await.expect("the changes ended");
            if right(&change) {
                return change;
            }
            seen.push(change);
        }
    });
    match found.await {
        Ok(change) => change,
        Err(_) => panic!("no change about {what} in {seen:?}"),
    }
}

/// Reads the changes until none has come for a while.
async fn settle(changes: &mut Changes) {
    while tokio::time::timeout(Duration::from_millis(300), changes.next()).await.is_ok() {}
}

#[test]
fn links_and_addresses() {
    in_namespace(|| async {
        let (netlink, _changes) = Netlink::new().unwrap();
        let peer = pair();
        ip("tuntap add tunnel mode tun");
        ip("link add overlay type vxlan id 7 dstport 4789 local 192.0.2.1");
        ip("address add 198.51.100.1 peer 198.51.100.9/32 dev tunnel");

        let near = eventually("near has a carrier", || async {
            link(&netlink, "near").await.filter(|link| link.carrier)
        })
        .await;
        assert_eq!(near.mac, [2, 0, 0, 0, 0, 1]);
        assert_eq!(near.mtu, 1400);
        assert!(near.up);
        assert_eq!(near.kind.as_deref(), Some("veth"));

        let tunnel = link(&netlink, "tunnel").await.unwrap();
        assert_eq!((tunnel.mac, tunnel.up, tunnel.kind.as_deref()), ([0; 6], false, Some("tun")));
        assert_eq!(link(&netlink, "overlay").await.unwrap().kind.as_deref(), Some("vxlan"));
        assert_eq!(link(&netlink, "lo").await.unwrap().kind, None);
        assert_eq!(link(&netlink, "far").await, None);

        let addresses = netlink.addresses_v4().await.unwrap();
        assert!(addresses.contains(&(near.index, NEAR, 24)), "{addresses:?}");
        assert!(addresses.contains(&(tunnel.index, Ipv4Addr::new(198, 51, 100, 1), 32)), "{addresses:?}");

        peer.ip("link set far down");
        let near = eventually("near has no carrier", || async {
            link(&netlink, "near").await.filter(|link| !link.carrier)
        })
        .await;
        assert!(near.up);
    });
}

#[test]
fn routes() {
    in_namespace(|| async {
        let (netlink, _changes) = Netlink::new().unwrap();
        let _peer = pair();
        let near = index(&netlink, "near").await;
        let remote = Ipv4Addr::new(203, 0, 113, 7);

        let direct = RouteTo { ifindex: near, gateway: None, source: Some(NEAR), local: false, mtu: None };
        assert_eq!(netlink.route_to(FAR).await.unwrap(), Some(direct.clone()));

        let own = netlink.route_to(NEAR).await.unwrap().unwrap();
        assert!(own.local);
        assert_eq!(own.ifindex, index(&netlink, "lo").await);

        assert_eq!(netlink.route_to(remote).await.unwrap(), None);
        for kind in ["blackhole", "unreachable", "prohibit", "throw"] {
            ip(&format!("route replace {kind} 203.0.113.0/24"));
            assert_eq!(netlink.route_to(remote).await.unwrap(), None, "{kind}");
            ip(&format!("route del {kind} 203.0.113.0/24"));
        }

        ip("route add 203.0.113.0/24 via 192.0.2.2 mtu 1300");
        let routed = RouteTo { gateway: Some(FAR), mtu: Some(1300), ..direct };
        assert_eq!(netlink.route_to(remote).await.unwrap(), Some(routed));

        ip("route replace 203.0.113.0/24 via inet6 fe80::1 dev near");
        let error = netlink.route_to(remote).await.unwrap_err();
        assert!(format!("{error:#}").contains("IPv4 address"), "{error:#}");

        ip("link set near down");
        assert_eq!(netlink.route_to(FAR).await.unwrap(), None);
    });
}

#[test]
fn neighbours_are_resolved() {
    in_namespace(|| async {
        let (netlink, mut changes) = Netlink::new().unwrap();
        let peer = pair();
        let near = index(&netlink, "near").await;
        let neighbour = async |address| netlink.neighbours_v4().await.unwrap().get(&(near, address)).copied();
        let managed =
            async |address| netlink.neighbour(near, address).await.unwrap().is_some_and(|it| is_managed(&it));
        eventually("near has a carrier", || async {
            link(&netlink, "near").await.filter(|link| link.carrier)
        })
        .await;
        settle(&mut changes).await;
        assert_eq!(neighbour(FAR).await, None);

        netlink.resolve(near, FAR).await.unwrap();
        see(&mut changes, "far", |change| *change == Change::Neighbour { ifindex: near, address: FAR }).await;
        let far = eventually("far is resolved", || neighbour(FAR)).await;
        assert_eq!(far, Neighbour { mac: FAR_MAC, usable: true, permanent: false });
        assert!(managed(FAR).await);
        // Again, as an agent does that looks at everything again.
        netlink.resolve(near, FAR).await.unwrap();
        assert!(neighbour(FAR).await.unwrap().usable);

        // A new address of the neighbour is a change.
        settle(&mut changes).await;
        peer.ip("link set far address 02:00:00:00:00:22");
        ip("neighbour change 192.0.2.2 dev near lladdr 02:00:00:00:00:22 nud stale");
        see(&mut changes, "far", |change| *change == Change::Neighbour { ifindex: near, address: FAR }).await;
        assert_eq!(neighbour(FAR).await.unwrap().mac[5], 0x22);

        netlink.unmanage(near, FAR).await.unwrap();
        assert!(!managed(FAR).await);
        assert!(neighbour(FAR).await.unwrap().usable);

        // Nobody there: it does not fail, nor appear.
        let absent = Ipv4Addr::new(192, 0, 2, 77);
        netlink.resolve(near, absent).await.unwrap();
        netlink.resolve(near, absent).await.unwrap();
        assert_eq!(neighbour(absent).await, None);
        assert!(managed(absent).await);
        netlink.unmanage(near, Ipv4Addr::new(192, 0, 2, 78)).await.unwrap();

        // What the administrator or a control plane set stays.
        ip("neighbour add 192.0.2.50 dev near lladdr 02:00:00:00:00:50 nud permanent");
        ip("neighbour add 192.0.2.51 dev near lladdr 02:00:00:00:00:51 nud reachable extern_learn");
        for last in [50, 51] {
            let address = Ipv4Addr::new(192, 0, 2, last);
            let before = neighbour(address).await.unwrap();
            assert_eq!(before.permanent, last == 50);
            netlink.resolve(near, address).await.unwrap();
            netlink.unmanage(near, address).await.unwrap();
            assert_eq!(neighbour(address).await, Some(before));
            assert!(!managed(address).await);
        }

        assert!(netlink.resolve(9999, FAR).await.is_err());
        netlink.unmanage(9999, FAR).await.unwrap();
    });
}

#[test]
fn changes_are_announced() {
    in_namespace(|| async {
        let (netlink, mut changes) = Netlink::new().unwrap();
        let _peer = pair();
        let index = index(&netlink, "near").await;
        let named = |name: &str, gone| Change::Link { name: name.into(), index, gone };
        see(&mut changes, "near", |change| *change == named("near", false)).await;
        see(&mut changes, "its address", |change| *change == Change::RouteOrAddress).await;
        settle(&mut changes).await;

        ip("link set near down");
        see(&mut changes, "near", |change| *change == named("near", false)).await;
        assert!(!link(&netlink, "near").await.unwrap().up);
        settle(&mut changes).await;

        ip("link set near name close");
        see(&mut changes, "close", |change| *change == named("close", false)).await;
        ip("link set close up");
        settle(&mut changes).await;

        for command in [
            "route add 203.0.113.0/24 dev close",
            "route del 203.0.113.0/24",
            "address add 198.51.100.1/32 dev close",
            "address del 198.51.100.1/32 dev close",
            "rule add from 198.51.100.0/24 prohibit",
            "nexthop add id 7 via 192.0.2.2 dev close",
        ] {
            ip(command);
            see(&mut changes, command, |change| *change == Change::RouteOrAddress).await;
            settle(&mut changes).await;
        }

        // A port that leaves its bridge is announced like a link that goes.
        ip("link add bridge type bridge");
        ip("link set close master bridge");
        ip("link set close nomaster");
        ip("link del bridge");
        let bridge = see(&mut changes, "bridge", |change| {
            assert_ne!(*change, named("close", true), "it only left the bridge");
            matches!(change, Change::Link { name, gone: true, .. } if name == "bridge")
        });
        bridge.await;

        ip("link del close");
        see(&mut changes, "close", |change| *change == named("close", true)).await;
    });
}

#[test]
fn missed_changes_are_announced() {
    in_namespace(|| async {
        let mut changes = Changes::subscribe(4 << 10).unwrap();
        for last in 1..=40 {
            ip(&format!("address add 198.51.100.{last}/32 dev lo"));
        }
        see(&mut changes, "lost messages", |change| *change == Change::Lost).await;
        settle(&mut changes).await;

        ip("address add 192.0.2.1/32 dev lo");
        see(&mut changes, "later ones", |change| *change == Change::RouteOrAddress).await;
    });
}

#[test]
fn requests_answer_side_by_side() {
    in_namespace(|| async {
        let (netlink, _changes) = Netlink::new().unwrap();
        let _peer = pair();
        let near = index(&netlink, "near").await;
        let asked = (0..50u8).map(|_| async {
            let (route, links, none) = tokio::join!(
                netlink.route_to(FAR),
                netlink.links(),
                netlink.route_to(Ipv4Addr::new(203, 0, 113, 1))
            );
            assert_eq!(route.unwrap().unwrap().ifindex, near);
            assert_eq!(links.unwrap().len(), 2);
            assert_eq!(none.unwrap(), None);
        });
        futures::future::join_all(asked).await;
    });
}

#[test]
fn unreadable_notifications_are_not_passed_over() {
    let read = |datagram: &[u8]| {
        let mut changes = VecDeque::new();
        wire::changes(datagram, &mut changes);
        Vec::from(changes)
    };
    let message = |kind: u16, body: &[u8]| {
        let mut message = NetlinkMessage::from(Raw { kind, body: body.to_vec() });
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    };
    assert_eq!(read(&[]), []);
    assert_eq!(read(&[1, 2, 3]), [Change::Lost]);
    assert_eq!(read(&message(libc::RTM_NEWLINK, &[0; 8])), [Change::Lost]);
    assert_eq!(read(&message(libc::RTM_NEWLINK, &[0; 16])), [Change::Lost], "a link without a name");
    assert_eq!(read(&message(libc::RTM_NEWNEIGH, &[libc::AF_INET as u8, 0, 0, 0])), [Change::Lost]);
    assert_eq!(read(&message(libc::RTM_NEWNEIGH, &[libc::AF_INET6 as u8, 0, 0, 0])), []);
    let several = [message(libc::RTM_DELROUTE, &[0; 12]), message(libc::RTM_NEWADDR, &[0; 8])].concat();
    assert_eq!(read(&several), [Change::RouteOrAddress], "equal ones in a row are one");
}
