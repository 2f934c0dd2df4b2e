//! A workload that is a stack itself, the service's thread, and a small server on loopback.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, TcpListener},
    sync::mpsc as sync_mpsc,
    sync::{Mutex, PoisonError},
};

use smoltcp::{iface::SocketHandle, socket::tcp::State};

use super::{client::signature, config::MetadataTable, guest::ADDRESSES, *};
use crate::agent::services::{
    frame::{Received, wrap},
    stack::Stack,
};

const WORKLOAD: [u8; 6] = [2, 0, 0, 0, 0, 9];
const SERVICE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SECRET: &[u8] = b"open sesame";
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that answers each connection's request with what `answer` makes of it.
fn server(answer: impl Fn(&str) -> Vec<u8> + std::marker::Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = Vec::new();
            let mut bytes = [0; 4096];
            let is_whole = |request: &[u8]| {
                let text = String::from_utf8_lossy(request).into_owned();
                let Some(end) = text.find("\r\n\r\n") else { return false };
                let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
                text.len() >= end + 4 + length.map_or(0, |it| it.parse::<usize>().expect("a number"))
            };
            while !is_whole(&request) {
                let read = stream.read(&mut bytes).expect("a request");
                assert_ne!(read, 0, "a whole request");
                request.extend(&bytes[..read]);
            }
            // Whoever asked may be gone.
            let _ = stream.write_all(&answer(&String::from_utf8_lossy(&request)));
        }
    });
    url
}

/// A server that shows the request.
fn mirror() -> String {
    server(|request| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{request}", request.len())
            .into()
    })
}

/// A server that takes connections and never answers.
#[derive(Clone, Default)]
struct Hung(Arc<Mutex<Held>>);

/// Connections that it holds: now, at the most at once, and all that ever asked for something.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    now: usize,
    most: usize,
    asked: usize,
}

impl Hung {
    fn start() -> (Self, String) {
        let (hung, listener) = (Self::default(), TcpListener::bind("127.0.0.1:0").expect("a port"));
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let held = hung.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, held) = (stream.expect("a connection"), held.clone());
                held.note(|held| (held.now, held.most) = (held.now + 1, held.most.max(held.now + 1)));
                std::thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    let mut has_asked = false;
                    while let Ok(1..) = stream.read(&mut bytes) {
                        held.note(|held| held.asked += usize::from(!has_asked));
                        has_asked = true;
                    }
                    held.note(|held| held.now -= 1);
                });
            }
        });
        (hung, url)
    }

    fn note(&self, change: impl FnOnce(&mut Held)) -> Held {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut held);
        *held
    }

    fn held(&self) -> Held {
        self.note(|_| ())
    }
}

/// The service, and what it sends.
struct Service {
    metadata: Metadata,
    tally: Tally,
    frames: sync_mpsc::Receiver<(u32, Vec<u8>)>,
}

impl Service {
    fn new(url: &str, clients: &[(u32, Client)]) -> Self {
        let args = config::MetadataArgs { server: Some(url.to_owned()), shared_secret_file: None };
        let config =
            MetadataConfig::new(args, MetadataTable::default()).expect("in order").expect("a server");
        let config = MetadataConfig { secret: Some(SECRET.to_vec()), ..config };
        let (sender, frames) = sync_mpsc::channel();
        let send = Box::new(move |ifindex, frame: &[u8]| {
            sender.send((ifindex, frame.to_vec())).map_err(io::Error::other)
        });
        let tally = Tally::of(&config);
        let metadata = Metadata::start(config, tally.clone(), send).expect("started");
        metadata
            .follow(clients.iter().map(|(ifindex, client)| (*ifindex, Arc::new(client.clone()))).collect());
        Self { metadata, tally, frames }
    }
}

fn client(instance: &str) -> Client {
    Client {
        port: format!("port of {instance}"),
        instance: instance.to_owned(),
        project: Some(format!("project of {instance}")),
        network: "net".to_owned(),
        mtu: 1450,
        addresses: vec![address("10.0.0.9")],
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A workload's end of a connection.
struct Workload {
    ifindex: u32,
    stack: Stack,
    handle: SocketHandle,
    heard: Vec<u8>,
}

impl Workload {
    fn new(ifindex: u32, from: &str, port: u16) -> Self {
        let now = Instant::now();
        let from = address(from);
        let mut stack = Stack::new(&[from], 1500, u64::from(port), now);
        let handle = stack.tcp(64 << 10);
        let to = ADDRESSES[usize::from(from.is_ipv6())];
        assert!(stack.connect(handle, (from, port), (to, 80)));
        Self { ifindex, stack, handle, heard: Vec::new() }
    }

    /// Says something, and hears everything until the connection ends.
    fn ask(&mut self, service: &Service, request: &str) -> String {
        let (start, mut unsaid) = (Instant::now(), request.as_bytes());
        loop {
            self.step(service);
            let socket = self.stack.socket(self.handle);
            if socket.can_send() && !unsaid.is_empty() {
                let said = socket.send_slice(unsaid).expect("room");
                unsaid = &unsaid[said..];
            }
            if matches!(socket.state(), State::CloseWait) && !socket.can_recv() {
                socket.close();
            }
            if !socket.is_open() || socket.state() == State::LastAck {
                self.step(service);
                return String::from_utf8_lossy(&self.heard).into_owned();
            }
            assert!(start.elapsed() < PATIENCE, "no end after {} bytes", self.heard.len());
        }
    }

    /// Its segments are refused, and it hears nothing of it.
    fn is_refused(&mut self, service: &Service, reason: &str) {
        let count = || service.tally.status().refused.get(reason).copied().unwrap_or_default();
        let (start, before) = (Instant::now(), count());
        while count() == before {
            self.step(service);
            assert!(start.elapsed() < PATIENCE, "{reason}");
        }
        for _ in 0..50 {
            self.step(service);
        }
        assert!(self.stack.socket(self.handle).state() == State::SynSent, "{reason} at {}", self.ifindex);
    }

    /// Sends and hears once.
    fn step(&mut self, service: &Service) {
        self.stack.poll(Instant::now());
        while let Some(packet) = self.stack.transmit() {
            let frame = wrap(SERVICE, WORKLOAD, &packet);
            assert!(frame.len() <= 2048, "the data path does not hand over {} bytes", frame.len());
            assert!(service.metadata.receive(self.ifindex, &frame));
        }
        // What another port's connection is still told is not for this one.
        if let Ok((ifindex, frame)) = service.frames.recv_timeout(Duration::from_millis(1))
            && ifindex == self.ifindex
        {
            let received = Received::parse(&frame).expect("a frame in order");
            assert_eq!((received.to, received.from), (WORKLOAD, SERVICE));
            self.stack.receive(received.packet);
        }
        self.stack.poll(Instant::now());
        let socket = self.stack.socket(self.handle);
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), self.heard.extend(&*bytes))).expect("bytes");
        }
    }
}

const GET: &str = "GET /openstack/latest HTTP/1.1\r\nHost: 169.254.169.254\r\nX-Instance-ID: forged\r\nX_Tenant_ID: \
    forged\r\nAccept: */*\r\n\r\n";

#[test]
fn the_server_is_told_who_asks_and_believes_nothing_else() {
    let service = Service::new(&mirror(), &[(7, client("vm1"))]);
    for from in ["10.0.0.9", "fe80::9"] {
        let answer = Workload::new(7, from, 40000).ask(&service, GET);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\nconnection: close"), "{head}");
        let mut lines: Vec<&str> = body.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.remove(0), "GET /openstack/latest HTTP/1.1");
        lines.retain(|line| !line.starts_with("host: 127.0.0.1:"));
        lines.sort_unstable();
        let signature = signature(SECRET, "vm1");
        let expected = [
            "accept: */*".to_owned(),
            format!("x-forwarded-for: {from}"),
            format!("x-instance-id-signature: {signature}"),
            "x-instance-id: vm1".to_owned(),
            "x-neutron-network-id: net".to_owned(),
            "x-tenant-id: project of vm1".to_owned(),
        ];
        assert_eq!(lines, expected);
    }
    assert_eq!(service.tally.status().answered.get("2xx"), Some(&2));
}

#[test]
fn a_body_goes_to_the_server_and_what_follows_it_does_not() {
    let service = Service::new(&mirror(), &[(7, client("vm1"))]);
    let body = "b".repeat(60_000);
    let request = format!(
        "POST /password HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 60000\r\n\r\n{body}GET /second \
         HTTP/1.1\r\nHost: a\r\n\r\n"
    );
    let answer = Workload::new(7, "10.0.0.9", 40001).ask(&service, &request);
    assert!(answer.contains("HTTP/1.1 200 OK\r\n"));
    assert!(
        answer.ends_with(&format!("\r\n\r\n{body}")),
        "the request as the server saw it ends with its body"
    );
}

#[test]
fn a_mebibyte_arrives_whole_with_a_length_and_in_chunks() {
    let content: String = (0..1_u32 << 17).map(|i| format!("{i:07}\n")).collect();
    let url = {
        let content = content.clone();
        server(move |request| {
            let head = match request.starts_with("GET /length") {
                true => format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    content.len()
                ),
                false => "HTTP/1.0 200 OK\r\n\r\n".to_owned(),
            };
            [head.as_bytes(), content.as_bytes()].concat()
        })
    };
    let service = Service::new(&url, &[(7, client("vm1"))]);
    let ask = |path: &str, port| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = Workload::new(7, "10.0.0.9", port).ask(&service, &request);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head.to_owned(), body.to_owned())
    };
    let (head, body) = ask("/length", 40000);
    assert!(head.contains("content-length: 1048576\r\n"), "{head}");
    assert!(body == content, "{} bytes", body.len());
    let (head, mut rest) = ask("/chunks", 40001);
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    let mut joined = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").expect("a chunk");
        let size = usize::from_str_radix(size, 16).expect("its size");
        if size == 0 {
            break;
        }
        joined.push_str(&after[..size]);
        rest = after[size + 2..].to_owned();
    }
    assert!(joined == content, "{} bytes", joined.len());
}

#[test]
fn without_a_server_there_is_an_answer_at_once_that_says_so() {
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let service = Service::new(&format!("http://{closed}"), &[(7, client("vm1"))]);
    let start = Instant::now();
    let answer = Workload::new(7, "10.0.0.9", 40000).ask(&service, GET);
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    assert!(answer.contains("cannot be reached from this node"), "{answer}");
    // A server may take 60 s to begin; a busy machine takes some for this.
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(service.tally.status().refused.get("server_unreachable"), Some(&1));
}

#[test]
fn a_bad_request_is_refused_here() {
    let service = Service::new(&mirror(), &[(7, client("vm1"))]);
    for (port, request, status) in [
        (1, "GET / HTTP/1.1\r\n\r\n", "400 Bad Request"),
        (2, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n", "413 Payload Too Large"),
        (3, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "411 Length Required"),
    ] {
        let answer = Workload::new(7, "10.0.0.9", 40000 + port).ask(&service, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
    }
    assert!(service.tally.status().answered.is_empty());
}

#[test]
fn connections_that_never_come_about_give_way() {
    let service = Service::new(&mirror(), &[(7, client("vm1")), (8, client("vm2"))]);
    for port in 0..100 {
        let mut half = Workload::new(7, "10.0.0.9", 50000 + port);
        half.stack.poll(Instant::now());
        let packet = half.stack.transmit().expect("a SYN");
        assert!(service.metadata.receive(7, &wrap(SERVICE, WORKLOAD, &packet)));
    }
    // What they hear is heard by nobody.
    let (start, mut answered, mut most) = (Instant::now(), BTreeSet::new(), 0);
    while answered.len() < 100 || most < guest::CONNECTIONS {
        if let Ok((_, frame)) = service.frames.recv_timeout(Duration::from_millis(10)) {
            answered.extend(Received::parse(&frame).and_then(|frame| frame.tcp_ports()));
        }
        most = most.max(service.tally.status().connections);
        assert!(start.elapsed() < PATIENCE, "{} answered, {most} at once", answered.len());
    }
    assert_eq!(most, guest::CONNECTIONS);
    for ifindex in [8, 7] {
        let answer = Workload::new(ifindex, "10.0.0.9", 40000).ask(&service, GET);
        assert!(answer.contains(&format!("x-instance-id: vm{}\r\n", ifindex - 6)), "{answer}");
    }
}

/// Who asks and resets, again and again, has no more under way at the server than his connections.
#[test]
fn a_request_ends_with_its_connection() {
    let (server, url) = Hung::start();
    let service = Service::new(&url, &[(7, client("vm1"))]);
    for port in 0..100 {
        let mut workload = Workload::new(7, "10.0.0.9", 50000 + port);
        let (start, mut has_said, before) = (Instant::now(), false, server.held().asked);
        // The first ones reset when the server has the request, the others as soon as it is sent.
        while !has_said || port < 20 && server.held().asked == before {
            workload.step(&service);
            let socket = workload.stack.socket(workload.handle);
            if socket.can_send() && !has_said {
                has_said = socket.send_slice(GET.as_bytes()).expect("room") == GET.len();
            }
            if !socket.is_open() {
                assert!(port >= 20, "one that ended leaves its place to the next");
                break;
            }
            assert!(start.elapsed() < PATIENCE, "connection {port}: {:?}", server.held());
        }
        workload.step(&service);
        workload.stack.socket(workload.handle).abort();
        workload.step(&service);
    }
    let start = Instant::now();
    while server.held().now > 0 || service.tally.status().connections > 0 {
        assert!(start.elapsed() < PATIENCE, "{:?}, {:?}", server.held(), service.tally.status());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(server.held().most <= guest::CONNECTIONS, "{:?}", server.held());
    assert!(service.tally.status().refused.get("abandoned") >= Some(&20), "{:?}", service.tally.status());
}

/// A conversation counts until it is over itself, though its connection is not there any more.
#[test]
fn a_conversation_that_goes_on_keeps_its_place() {
    let now = Instant::now();
    let mut guest = guest::Guest::new(Arc::new(client("vm1")), 1, std::task::Waker::noop().clone(), now);
    let mut conversations = Vec::new();
    let mut connect = |port: u16| {
        let mut stack = Stack::new(&[address("10.0.0.9")], 1500, 1, now);
        let handle = stack.tcp(1 << 10);
        assert!(stack.connect(handle, (address("10.0.0.9"), port), (ADDRESSES[0], 80)));
        let mut opened = Vec::new();
        for abort in [false, false, true] {
            if abort {
                stack.socket(handle).abort();
            }
            stack.poll(now);
            while let Some(packet) = stack.transmit() {
                let frame = wrap(SERVICE, WORKLOAD, &packet);
                let mut wants = Wants::default();
                let received = Received::parse(&frame).expect("a frame in order");
                guest.receive(&received, true, now, &mut wants).ok();
                for frame in wants.frames {
                    stack.receive(Received::parse(&frame).expect("a frame in order").packet);
                }
                opened.extend(wants.opened);
                stack.poll(now);
            }
        }
        (opened.pop(), guest.connections())
    };
    for port in 1..=guest::CONNECTIONS {
        let (opened, held) = connect(port as u16);
        assert_eq!(held, port);
        conversations.push(opened.expect("a connection"));
    }
    assert!(connect(100).0.is_none(), "all places are taken");
    conversations.truncate(10);
    let (opened, held) = connect(101);
    assert!(opened.is_some());
    assert_eq!(held, 11);
}

#[test]
fn who_is_not_who_he_says_or_is_not_served_hears_nothing() {
    let service = Service::new(&mirror(), &[(7, client("vm1"))]);
    for (ifindex, from, reason) in [(7, "10.0.0.10", "foreign_address"), (9, "10.0.0.9", "not_served")] {
        let mut workload = Workload::new(ifindex, from, 40000);
        workload.is_refused(&service, reason);
    }
    service.metadata.follow(Clients::new());
    // Served no more.
    Workload::new(7, "10.0.0.9", 40000).is_refused(&service, "not_served");
}

/// Garbage, and every cut and changed form of a SYN: nothing panics, and a proper request is answered after it.
#[test]
fn whatever_comes_the_next_request_is_answered() {
    let service = Service::new(&mirror(), &[(7, client("vm1"))]);
    let mut workload = Workload::new(7, "10.0.0.9", 50000);
    workload.stack.poll(Instant::now());
    let frame = wrap(SERVICE, WORKLOAD, &workload.stack.transmit().expect("a SYN"));
    let mut handed = 0;
    for at in 0..frame.len() {
        let mut changed = vec![frame[..at].to_vec()];
        for value in [0, 0x7f, 0xff] {
            let mut frame = frame.clone();
            frame[at] = value;
            changed.push(frame);
        }
        for frame in changed {
            while !service.metadata.receive(7, &frame) {
                std::thread::sleep(Duration::from_millis(1));
            }
            handed += 1;
        }
    }
    while service.frames.recv_timeout(Duration::from_millis(200)).is_ok() {}
    assert!(handed > 200);
    let answer = Workload::new(7, "10.0.0.9", 40000).ask(&service, GET);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}
