//! `vrouter web` in a real browser: what the page shows is what is there, and what happens.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use vrouter_tests::topology::{Network, Port, Topology, with_outside};
use vrouter_tests::{Browser, Process, Services, System, Talk, UdpLoad};

const SOON: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(10);
const HOSTILE: &str = "<marquee>vm7";
const DROPS: &str = "document.getElementById('drops').innerText";
const FLOWS: &str = "document.getElementById('flows').innerText";
const PAGE: &str = "document.body.innerText";
/// Where the picture of the documentation is put if this is set: `UPDATE_IMAGES=1 cargo test ... --test web`.
const UPDATE: &str = "UPDATE_IMAGES";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The standard lab with a port of a name that would be markup, and one that nobody reaches.
fn topology() -> Topology {
    let mut topology = with_outside();
    topology.ports.push(Port {
        name: HOSTILE.to_owned(),
        network: "web".to_owned(),
        mac: "02:00:00:00:01:77".to_owned(),
        fixed_ips: vec!["10.0.1.77".to_owned()],
        ..Port::default()
    });
    topology.add_group("closed", &["{ direction: egress }"]);
    topology.put_into("vm3", &["closed"]);
    topology
}

/// How many packets the page says were dropped for a reason.
fn dropped(browser: &mut Browser, reason: &str) -> u64 {
    let found =
        format!("document.querySelector('#drops [data-reason=\"{reason}\"]')?.dataset.packets ?? '0'");
    browser.value(&found).unwrap().as_str().unwrap().parse().unwrap()
}

#[test]
fn the_page_shows_what_is_there_and_what_happens() {
    let mut system = System::start(&topology()).unwrap();
    let _services = Services::everywhere(&system, &[7]).unwrap();
    let file = format!("--topology={}", system.topology_path().display());
    let mut command = system.agent("node-a").command(&["web", "--every=1", &file]);
    let mut web = Process::spawn(&mut command).unwrap();
    web.wait_for_text("open http://127.0.0.1:8480/", SOON).unwrap();
    let mut browser = Browser::start(system.node("node-a").netns(), 1280, 800).unwrap();
    browser.open("http://127.0.0.1:8480/").unwrap();

    // Everything of the topology is drawn, under the kind it is; a name is a text, whatever is in it.
    for (kind, names) in [
        ("router", vec!["r1"]),
        ("network", vec!["web", "db", "public"]),
        ("port", vec!["vm1", "vm2", "vm3", "vm4", "vm5", "vm6", HOSTILE]),
    ] {
        for name in names {
            let found = format!("[data-kind=\"{kind}\"][data-name=\"{name}\"] .name");
            let drawn = format!("document.querySelector('{found}')?.textContent === {name:?}");
            browser.wait_for(&drawn, SOON, PAGE).unwrap();
        }
    }
    assert_eq!(browser.value("document.querySelectorAll('marquee').length").unwrap(), 0);
    browser.wait_for("document.querySelectorAll('#drawing line').length === 3", SOON, PAGE).unwrap();
    browser.wait_for("document.getElementById('health').textContent === 'healthy'", SOON, PAGE).unwrap();
    let nodes = "document.getElementById('nodes').innerText";
    browser
        .wait_for(
            &format!("{nodes}.includes('node-a (this)') && {nodes}.includes('way resolved')"),
            SOON,
            PAGE,
        )
        .unwrap();

    // What is dropped now is counted on the page soon, with its reason.
    let before = dropped(&mut browser, "policy_ingress");
    let (refused, vm1) = (SocketAddr::new(ip("10.0.2.13"), 7), system.host("vm1"));
    Talk::open(vm1, refused, None, Duration::from_millis(500)).unwrap_err();
    let counted = system.dropped("node-a", "policy_ingress").unwrap();
    assert!(counted > before, "nothing was dropped");
    let shown = format!(
        "Number(document.querySelector('#drops [data-reason=policy_ingress]')?.dataset.packets) >= {counted}"
    );
    browser.wait_for(&shown, SOON, DROPS).unwrap();

    // Flows are found as by `vrouter flows`, and by words; what is wrong with a filter is said.
    let talk = Talk::open(vm1, SocketAddr::new(ip("10.0.2.15"), 7), None, PATIENCE).unwrap();
    let mut other =
        Talk::open(system.host("vm2"), SocketAddr::new(ip("198.51.100.10"), 7), None, PATIENCE).unwrap();
    other.exchange(1000).unwrap();
    let flow = format!("10.0.1.11:{}", talk.port().unwrap());
    for filter in ["--port vm1 --proto tcp", "port=vm1", &format!("established {flow}")] {
        browser.fill("#flows-text", filter).unwrap();
        let found = format!("{FLOWS}.includes('{flow} > 10.0.2.15:7') && !{FLOWS}.includes('198.51.100.10')");
        browser.wait_for(&found, SOON, FLOWS).unwrap();
    }
    browser.fill("#flows-text", "--network wbe").unwrap();
    let complaint = "document.getElementById('flows-error').innerText";
    browser.wait_for(&format!("{complaint}.includes('there is no network wbe')"), SOON, complaint).unwrap();
    browser.fill("#flows-text", "port=vm1").unwrap();
    browser.wait_for(&format!("{FLOWS}.includes('{flow}')"), SOON, FLOWS).unwrap();

    // Its rates are on the drawing while it sends.
    let load = UdpLoad::start(system.workload("vm1"), system.workload("vm5"), "10.0.2.15").unwrap();
    for (kind, name) in [("network", "web"), ("router", "r1"), ("network", "db")] {
        let rate =
            format!("document.querySelector('[data-kind={kind}][data-name={name}] .rate').textContent");
        browser.wait_for(&format!("{rate}.endsWith('b/s')"), SOON, &rate).unwrap();
    }
    let busy = "document.querySelector('[data-kind=port][data-name=vm1]').classList.contains('busy')";
    browser.wait_for(busy, SOON, PAGE).unwrap();

    // A click on a flow traces it: the steps are listed, and the way is lit.
    browser.click("#flows tbody tr").unwrap();
    let verdict = "document.getElementById('trace-verdict').innerText";
    browser.wait_for(&format!("{verdict}.startsWith('delivered')"), SOON, verdict).unwrap();
    let steps = "document.querySelectorAll('#trace-hops li').length";
    browser.wait_for(&format!("{steps} > 1"), SOON, PAGE).unwrap();
    for (kind, name) in [("port", "vm1"), ("network", "web"), ("router", "r1"), ("port", "vm5")] {
        let lit = format!(
            "document.querySelector('[data-kind={kind}][data-name={name}]').classList.contains('lit')"
        );
        let path = "import('/drawing.js').then((it) => JSON.stringify(it.state.path))";
        browser.wait_for(&lit, SOON, path).unwrap();
    }
    save_picture(&mut browser);
    drop(load);

    // What is dropped is said to be, with its reason; what cannot be traced is, too.
    for (port, packet, said) in [
        ("vm1", "tcp > 10.0.2.13:7", "policy_ingress"),
        ("vm1", "nonsense", "trace is not available"),
        ("vm9", "icmp > 10.0.2.15", "vm9"),
    ] {
        browser.fill("#trace-port", port).unwrap();
        browser.fill("#trace-packet", packet).unwrap();
        browser.click("#trace-go").unwrap();
        browser.wait_for(&format!("{verdict}.includes('{said}')"), SOON, verdict).unwrap();
    }

    // Objects are found by address, and the node view has all of them.
    browser.fill("#find-text", "10.0.1.77").unwrap();
    let found = "document.getElementById('found').innerText";
    browser.wait_for(&format!("{found}.includes('{HOSTILE}')"), SOON, found).unwrap();
    browser.click("#found button").unwrap();
    let about = "document.getElementById('about').innerText";
    browser.wait_for(&format!("{about}.includes('02:00:00:00:01:77')"), SOON, about).unwrap();
    browser.click("#view-nodes").unwrap();
    let nodes = "document.querySelectorAll('[data-kind=node]').length === 3 && \
                 document.querySelectorAll('[data-kind=port]').length === 7";
    browser.wait_for(nodes, SOON, PAGE).unwrap();
    assert_eq!(browser.value("document.querySelectorAll('marquee').length").unwrap(), 0);

    // A topology that comes in force is drawn, a thousand ports as a number, until somebody wants them.
    let mut many = topology();
    many.networks.push(Network::new("big", &[("big4", "10.9.0.0/16", "10.9.0.1")]));
    many.router_mut("r1").interfaces.push("big4".to_owned());
    many.ports.extend((0..1000_u32).map(|i| Port {
        name: format!("big{i}"),
        network: "big".to_owned(),
        mac: format!("02:00:00:09:{:02x}:{:02x}", i / 256, i % 256),
        fixed_ips: vec![format!("10.9.{}.{}", 1 + i / 250, 1 + i % 250)],
        ..Port::default()
    }));
    system.apply(&many).unwrap();
    browser.click("#view-networks").unwrap();
    let drawn = "document.querySelectorAll('[data-kind=port][data-name^=big]').length";
    let big = "document.querySelector('[data-kind=network][data-name=big]')?.textContent ?? ''";
    browser.wait_for(&format!("({big}).includes('1000 ports') && {drawn} === 0"), SOON, PAGE).unwrap();
    browser.fill("#find-text", "10.9.4.28").unwrap();
    browser.wait_for(&format!("{found}.includes('big777')"), SOON, found).unwrap();
    browser.click("#found button").unwrap();
    let chosen = "document.querySelector('[data-kind=port][data-name=big777]')?.classList.contains('chosen')";
    browser.wait_for(&format!("{chosen} && {drawn} === 1"), SOON, drawn).unwrap();
    browser.value("document.querySelector('[data-kind=network][data-name=big]').dispatchEvent(new MouseEvent('click'))").unwrap();
    browser.wait_for(&format!("{drawn} === 240"), SOON, drawn).unwrap();

    // The two refused traces and the refused filter are answers with an error's status, which the browser notes;
    // there is nothing else.
    let complaints = browser.complaints().unwrap();
    let unexpected: Vec<_> = complaints
        .iter()
        .filter(|it| !(it.contains("/api/trace") || it.contains("/api/flows")) || !it.contains("\"network\""))
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
}

/// Taken once, by hand: the same lab never gives the same bytes.
fn save_picture(browser: &mut Browser) {
    let picture = browser.screenshot().unwrap();
    assert!(picture.starts_with(b"\x89PNG"), "no picture");
    if std::env::var_os(UPDATE).is_some() {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/images");
        std::fs::create_dir_all(&images).unwrap();
        std::fs::write(images.join("web.png"), picture).unwrap();
    }
}
