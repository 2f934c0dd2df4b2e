//! `vrouter trace` beside the data path it speaks of: it says what happens, and changes nothing.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;
use vrouter_tests::topology::with_edge;
use vrouter_tests::{Probe, Services, System, wait};

const SOON: Duration = Duration::from_secs(20);
const SERVER: &str = "198.51.100.10";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn trace(system: &System, node: &str, arguments: &[&str]) -> Value {
    let all: Vec<&str> = ["trace"].iter().chain(arguments).copied().collect();
    system.agent(node).json(&all).unwrap_or_else(|error| panic!("{arguments:?}: {error:#}"))
}

#[test]
fn smoke() {
    let system = System::start(&with_edge()).unwrap();
    let _services = Services::everywhere(&system, &[7]).unwrap();
    for args in [
        &["--port", "vm1", "udp > 10.0.2.15:7"][..],
        &["--port", "vm2", "udp > 198.51.100.10:7"],
        &["--port", "vm2", "icmp > 10.0.1.1"],
        &["--port", "vm2", "arp 10.0.1.1"],
        &["--port", "vm2", "udp 9.9.9.9 > 10.0.1.1:7"],
    ] {
        let all: Vec<&str> = ["trace"].iter().chain(args).copied().collect();
        let output = system.agent("node-a").vrouter(&all).unwrap();
        println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    wait::until("x", SOON, || {
        Ok(Probe::udp(ip(SERVER), 7).from_port(4000).send(system.host("vm2"))?.seen(ip(SERVER)).is_some())
    })
    .unwrap();
    let out = trace(&system, "node-a", &["--port", "vm2", "udp 10.0.1.12:4000 > 198.51.100.10:7"]);
    println!("{out:#}");
}
