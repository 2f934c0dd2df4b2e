//! The page without a kernel: a source that is made up, and real connections.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use vrouter_common::reason::DropReason;

use super::{
    guard::Guard,
    layout::{self, DRAWN_MAX, Drawing, OPEN_UP_TO, View, Wish},
    nodes::Nodes,
    objects::{Leg, Network, Node, Objects, Port, Router},
    pages::{self, App},
    sampler::Sampler,
    source::{Look, Source},
    trace::{Ran, Run, Tracer},
};
use crate::{clock::Ticks, counters::Tally, http};

const HOSTILE: &str = "<img_src=x_onerror=alert(1)>&\"'";

/// Two networks on one router with a way out, `ports` on each, dealt out to three nodes.
fn objects(ports: usize) -> Objects {
    let network = |name: &str, external| Network { name: name.to_owned(), vni: 7, mtu: 1450, external };
    let leg = |name: &str, external| Leg { network: name.to_owned(), external, ..Leg::default() };
    let mut objects = Objects {
        epoch: 2,
        node: "node-0".to_owned(),
        networks: vec![network("web", false), network("db", false), network("public", true)],
        routers: vec![Router {
            name: "r1".to_owned(),
            legs: vec![leg("web", false), leg("db", false), leg("public", true)],
        }],
        nodes: (0..3).map(|i| Node { name: format!("node-{i}"), vtep: format!("192.0.2.{i}") }).collect(),
        ..Objects::default()
    };
    for network in ["web", "db"] {
        objects.ports.extend((0..ports).map(|i| Port {
            name: if i == 0 { format!("{HOSTILE}{network}") } else { format!("{network}{i}") },
            network: network.to_owned(),
            addresses: vec![format!("10.0.{}.{}", i / 250, i % 250)],
            node: Some(format!("node-{}", i % 3)),
            place: if i % 3 == 0 { "here" } else { "remote" },
            ..Port::default()
        }));
    }
    objects.sort();
    objects
}

fn draw(ports: usize, view: View, open: &[&str], show: &[&str]) -> Drawing {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    layout::draw(&objects(ports), &Wish { view, open: set(open), show: set(show) })
}

fn count(drawing: &Drawing, kind: &str) -> usize {
    drawing.boxes.iter().filter(|it| it.kind == kind).count()
}

#[test]
fn layers_are_one_under_the_other_and_nothing_covers_another() {
    for (ports, open) in [(5, vec![]), (200, vec!["web", "db"]), (1000, vec!["web"])] {
        let drawing = draw(ports, View::Networks, &open, &[]);
        assert_eq!(drawing, draw(ports, View::Networks, &open, &[]), "the same each time");
        let place = |kind: &str, name: &str| {
            let found = drawing.boxes.iter().find(|it| it.kind == kind && it.name == name);
            found.unwrap_or_else(|| panic!("no {kind} {name}"))
        };
        let [public, r1, web] = [place("network", "public"), place("router", "r1"), place("network", "web")];
        assert!(public.y + public.h < r1.y && r1.y + r1.h < web.y);
        assert_eq!(drawing.lines.len(), 3);
        for line in &drawing.lines {
            assert!(drawing.boxes[line.from].y < drawing.boxes[line.to].y);
        }
        // Ports lie in groups, all else lies beside each other.
        let solid: Vec<_> = drawing.boxes.iter().filter(|it| it.kind != "group").collect();
        for (i, a) in solid.iter().enumerate() {
            assert!(a.x + a.w <= drawing.width && a.y + a.h <= drawing.height, "{a:?}");
            for b in &solid[i + 1..] {
                let apart = a.x + a.w <= b.x || b.x + b.w <= a.x || a.y + a.h <= b.y || b.y + b.h <= a.y;
                assert!(apart, "{} {:?} covers {} {:?}", a.name, (a.x, a.y, a.w), b.name, (b.x, b.y, b.w));
            }
        }
    }
}

#[test]
fn many_ports_are_a_number_until_they_are_asked_for() {
    assert_eq!(count(&draw(OPEN_UP_TO, View::Networks, &[], &[]), "port"), 2 * OPEN_UP_TO);

    let closed = draw(1000, View::Networks, &[], &[]);
    assert_eq!((count(&closed, "port"), count(&closed, "group")), (0, 6));
    let web = closed.boxes.iter().find(|it| it.kind == "network" && it.name == "web").expect("web");
    assert_eq!((web.ports, web.can_toggle, web.is_open), (1000, true, false));
    let groups = closed.boxes.iter().filter(|it| it.kind == "group");
    assert_eq!(
        groups.map(|it| (it.ports, it.hidden)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        (2000, 2000)
    );

    let open = draw(1000, View::Networks, &["web"], &["db17"]);
    assert_eq!(
        count(&open, "port"),
        3 * DRAWN_MAX + 1,
        "some of web's on each node, and the one that is wanted"
    );
    // What is wanted is among those that are drawn, wherever it is in the order.
    let open = draw(1000, View::Networks, &["web"], &["web999"]);
    assert!(open.boxes.iter().any(|it| it.kind == "port" && it.name == "web999"));

    let nodes = draw(1000, View::Nodes, &[], &["web3"]);
    assert_eq!((count(&nodes, "node"), count(&nodes, "group"), count(&nodes, "port")), (3, 6, 1));
}

/// Drops rise by ten at each look, which are counted.
struct Made(Arc<AtomicU64>);

impl Source for Made {
    fn look(&mut self) -> Result<Look> {
        let looks = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Look {
            objects: Arc::new(objects(3)),
            names: Arc::default(),
            index: Arc::default(),
            ticks: Ticks { now: 0, per_second: 250 },
            flows: Vec::new(),
            complete: true,
            drops: vec![(DropReason::PolicyIngress, Tally { packets: 10 * looks, bytes: 0 })],
            status: json!({ "healthy": true, "complaints": [], "agent": {}, "in_force": { "digest": "0f" } }),
        })
    }
}

/// The same, until looks fail.
struct Broken(Made);

impl Source for Broken {
    fn look(&mut self) -> Result<Look> {
        let look = self.0.look()?;
        anyhow::ensure!(self.0.0.load(Ordering::Relaxed) < 3, "the maps are gone");
        Ok(look)
    }
}

/// A command that takes its time and says what it was told.
struct Echo(Duration);

impl Run for Echo {
    fn run(
        &self,
        arguments: Vec<String>,
    ) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<Ran>> + Send + '_>> {
        Box::pin(async move {
            tokio::time::sleep(self.0).await;
            let packet = arguments.last().cloned().unwrap_or_default();
            Ok(match packet.as_str() {
                "nonsense" => Ran { stderr: b"vrouter: no packet: nonsense\n".to_vec(), ..Ran::default() },
                _ => Ran { ok: true, stdout: json!(arguments).to_string().into_bytes(), ..Ran::default() },
            })
        })
    }
}

/// A page at work, and how often it has looked.
async fn start(clients: usize, token: Option<&str>, trace: Echo) -> (SocketAddr, Arc<AtomicU64>) {
    let looks = Arc::new(AtomicU64::new(0));
    (start_on(Made(Arc::clone(&looks)), clients, token, trace).await, looks)
}

async fn start_on(
    source: impl Source + 'static,
    clients: usize,
    token: Option<&str>,
    trace: Echo,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let at = listener.local_addr().expect("an address");
    let guard = Guard::new(at, token.map(str::to_owned), Vec::new()).expect("a guard");
    let sampler = Sampler::start(source, Duration::from_millis(100)).expect("a sampler");
    let tracer = Tracer::new(trace, vec!["--instance=i".to_owned()]).with_timeout(Duration::from_secs(2));
    let app = App::new(guard, sampler, Nodes::default(), tracer);
    tokio::spawn(http::serve(listener, pages::router(app), clients));
    at
}

/// Head and body of an answer.
async fn ask(at: SocketAddr, head: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect(at).await.expect("a connection");
    let request = format!("{head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    (head.to_owned(), body.to_owned())
}

async fn get(at: SocketAddr, path: &str) -> (String, String) {
    ask(at, &format!("GET {path} HTTP/1.1\r\nHost: {at}"), "").await
}

async fn trace(at: SocketAddr, port: &str, packet: &str) -> (String, Value) {
    let head = format!("POST /api/trace HTTP/1.1\r\nHost: {at}\r\nContent-Type: application/json");
    let (head, body) = ask(at, &head, &json!({ "port": port, "packet": packet }).to_string()).await;
    (head, serde_json::from_str(&body).expect("JSON"))
}

#[tokio::test]
async fn answers_are_those_of_the_last_look_and_no_other_site_can_use_them() {
    let (at, _) = start(16, None, Echo(Duration::ZERO)).await;
    let (head, page) = get(at, "/").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    for (name, value) in [
        ("content-security-policy", "default-src 'none'; script-src 'self'"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert!(head.contains(&format!("{name}: {value}")), "{head}");
    }
    // The policy would forbid them.
    assert!(!page.contains("<style") && !page.contains(" style=") && !page.contains("<script>"), "{page}");

    let (head, live) = get(at, "/api/live").await;
    let live: Value = serde_json::from_str(&live).expect("JSON");
    assert_eq!((&live["node"], &live["drops"][0]["reason"]), (&json!("node-0"), &json!("policy_ingress")));
    assert!(head.contains("etag: "), "{head}");
    // What is there already is not sent again.
    let (head, _) = get(at, "/api/drawing").await;
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("a tag");
    let again = format!("GET /api/drawing HTTP/1.1\r\nHost: {at}\r\nIf-None-Match: {tag}");
    let (head, body) = ask(at, &again, "").await;
    assert!(head.starts_with("HTTP/1.1 304") && body.is_empty(), "{head}");

    // Names are data, whatever is in them.
    let (head, drawing) = get(at, "/api/drawing").await;
    assert!(head.contains("content-type: application/json"), "{head}");
    assert!(drawing.contains(&json!(format!("{HOSTILE}web")).to_string()), "{drawing}");
    let (_, found) = get(at, "/api/objects?text=onerror%20db").await;
    let found: Value = serde_json::from_str(&found).expect("JSON");
    assert_eq!(found[0]["name"], format!("{HOSTILE}db"));

    for (path, status) in [
        ("/nothing", "404"),
        ("/api/trace", "405"),
        ("/api/drawing?view=all", "400"),
        ("/api/drawing?wish=%7B%22opn%22:[]%7D", "400"),
        ("/api/flows?text=--proto%20tpc", "400"),
        ("/api/flows?text=", "200"),
        ("/../Cargo.toml", "404"),
    ] {
        let (head, _) = get(at, path).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {head}");
    }
    let (head, _) = ask(at, "GET /api/live HTTP/1.1\r\nHost: evil.example", "").await;
    assert!(head.starts_with("HTTP/1.1 421"), "{head}");
}

#[tokio::test]
async fn without_the_token_nothing_is_said() {
    let (at, _) = start(16, Some("0123456789abcdef"), Echo(Duration::ZERO)).await;
    for path in ["/", "/main.js", "/api/live", "/?token=0123456789abcdeX"] {
        let (head, body) = get(at, path).await;
        assert!(head.starts_with("HTTP/1.1 401") && !body.contains("node-0"), "{path}: {head}");
    }
    let (head, _) = get(at, "/?token=0123456789abcdef").await;
    assert!(head.starts_with("HTTP/1.1 303") && head.contains("location: /\r\n"), "{head}");
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
    let cookie = cookie.split(';').next().expect("a cookie");
    let (head, _) = ask(at, &format!("GET /api/live HTTP/1.1\r\nHost: {at}\r\nCookie: {cookie}"), "").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[tokio::test]
async fn a_trace_is_run_as_a_command_and_its_complaint_is_passed_on() {
    let (at, _) = start(16, None, Echo(Duration::ZERO)).await;
    let (_, told) = trace(at, "--what-if=/etc/shadow", "tcp > 10.0.2.20:5432").await;
    let expected = [
        "trace",
        "--instance=i",
        "--port=--what-if=/etc/shadow",
        "--output=json",
        "--",
        "tcp > 10.0.2.20:5432",
    ];
    assert_eq!(told, json!(expected), "names are no flags");
    let (head, told) = trace(at, "vm1", "nonsense").await;
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert_eq!(told["error"], "trace is not available: no packet: nonsense");
    for (port, packet) in [("", "tcp > 10.0.2.20:1"), ("vm1", " "), ("vm1", "tcp\n> 10.0.2.20:1")] {
        assert!(trace(at, port, packet).await.0.starts_with("HTTP/1.1 400"), "{port:?} {packet:?}");
    }
    let foreign = format!("POST /api/trace HTTP/1.1\r\nHost: {at}\r\nContent-Type: text/plain");
    let (head, _) = ask(at, &foreign, r#"{"port":"vm1","packet":"icmp > 10.0.2.20"}"#).await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
}

#[tokio::test]
async fn traces_are_few_at_once_and_none_takes_for_ever() {
    let (at, _) = start(64, None, Echo(Duration::from_secs(60))).await;
    let begin = Instant::now();
    let answers = futures::future::join_all((0..10).map(|_| trace(at, "vm1", "icmp > 10.0.2.20"))).await;
    let with = |status: &str| answers.iter().filter(|(head, _)| head.contains(status)).count();
    assert_eq!((with(" 502 "), with(" 503 ")), (4, 6), "{answers:?}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn while_looks_fail_answers_are_not_kept() {
    let at = start_on(Broken(Made(Arc::default())), 16, None, Echo(Duration::ZERO)).await;
    let began = Instant::now();
    let (head, live) = loop {
        let (head, live) = get(at, "/api/live").await;
        let live: Value = serde_json::from_str(&live).expect("JSON");
        if !live["error"].is_null() {
            break (head, live);
        }
        assert!(began.elapsed() < Duration::from_secs(10), "looks fail");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(live["error"], "the maps are gone");
    // The nodes' states and why looks fail change, whatever a browser has already.
    assert!(!head.contains("etag: "), "{head}");
}

/// The looks in a second.
async fn looks_in_a_second(looks: &AtomicU64) -> u64 {
    let before = looks.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    looks.load(Ordering::Relaxed) - before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_is_sent_away_quickly_and_changes_nothing_for_the_maps() {
    const CLIENTS: usize = 50;
    const CROWD: usize = 400;
    let (at, looks) = start(CLIENTS, None, Echo(Duration::ZERO)).await;
    get(at, "/api/live").await;
    let alone = looks_in_a_second(&looks).await;

    // As many as there are places ask again and again, and keep their connections.
    let clients = (0..CLIENTS).map(|_| async move {
        let mut stream = TcpStream::connect(at).await.expect("a connection");
        let request = format!("GET /api/live HTTP/1.1\r\nHost: {at}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut answer = [0; 16384];
        let length = stream.read(&mut answer).await.expect("an answer");
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
        stream
    });
    let mut clients: Vec<_> = futures::future::join_all(clients).await;
    let asking = tokio::spawn(async move {
        let request = format!("GET /api/live HTTP/1.1\r\nHost: {at}\r\n\r\n");
        let mut answer = [0; 16384];
        loop {
            for client in &mut clients {
                client.write_all(request.as_bytes()).await.expect("a request");
                assert!(client.read(&mut answer).await.expect("an answer") > 0);
            }
        }
    });
    // The rest is told so at once, or its connection is closed.
    let refused = (0..CROWD).map(|_| async move {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(at).await.expect("a connection");
        let mut answer = Vec::new();
        let asked =
            stream.write_all(format!("GET /api/live HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes()).await;
        let heard = asked.is_ok() && stream.read_to_end(&mut answer).await.is_ok();
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
        (heard && answer.starts_with(b"HTTP/1.1 503"), begin.elapsed())
    });
    let refused = futures::future::join_all(refused).await;
    let told = refused.iter().filter(|(told, _)| *told).count();
    let slowest = refused.iter().map(|(_, took)| *took).max().expect("some");
    assert!(told >= 64, "only {told} of {CROWD} were told");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");

    let crowded = looks_in_a_second(&looks).await;
    asking.abort();
    assert!(alone >= 5 && crowded <= alone + 2, "{alone} looks a second, {crowded} in a crowd");
}

#[tokio::test]
async fn who_is_slow_to_ask_is_cut_off() {
    let (at, _) = start(1, None, Echo(Duration::ZERO)).await;
    let mut slow = TcpStream::connect(at).await.expect("a connection");
    slow.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ").await.expect("a part of a request");
    let begin = Instant::now();
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).await.ok();
    let took = begin.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(20)).contains(&took), "{took:?}");
    let (head, _) = get(at, "/").await;
    assert!(head.starts_with("HTTP/1.1 200"), "the place is free again: {head}");
}
