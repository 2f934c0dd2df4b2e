//! A real guest: Debian's kernel in qemu at a tap, which leases its address, hears router advertisements, pings,
//! fetches a page over the overlay, and its metadata.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use vrouter_tests::topology::standard;
use vrouter_tests::{AgentOptions, Guest, Host, Lab};

const START: Duration = Duration::from_secs(60);
/// Booting takes eight seconds if nothing else wants the processors.
const BOOT: Duration = Duration::from_secs(180);
const MAC: &str = "02:00:00:00:05:4d";
/// Both made of the MAC, as SLAAC makes them.
const V6: &str = "fd00:5::ff:fe00:54d";

/// A network as a cloud has one: addresses by DHCP and SLAAC, a name server, a route of its own.
const NETWORK: &str = r#"networks:
  - name: guests
    subnets:
      - { name: guests4, cidr: 10.0.5.0/24, gateway: 10.0.5.1, dns: [10.0.5.2], lease_time: 3600,
          host_routes: [{ destination: 10.99.0.0/16, nexthop: 10.0.5.9 }] }
      - { name: guests6, cidr: "fd00:5::/64", gateway: "fd00:5::1", ipv6_mode: slaac }
"#;
const PORT: &str = r#"ports:
  - { name: guest, network: guests, device_id: instance-7, mac: "02:00:00:00:05:4d", fixed_ips: [10.0.5.77, "fd00:5::ff:fe00:54d"],
      security_groups: [open], node: node-a, interface: tap-guest }
"#;

/// What the guest runs. `vm5` is on the other node, on another network.
const SCRIPT: &str = r#"
echo "== lease"
udhcpc -i eth0 -f -n -q -t 20 -T 2 -O mtu -O staticroutes -s /leased 2>&1
echo "== v4"; ip -4 address show dev eth0
echo "== routes"; ip route
echo "== mtu"; cat /sys/class/net/eth0/mtu
echo "== dns"; cat /etc/resolv.conf
for i in 1 2 3 4 5 6 7 8 9 10; do ip -6 address show dev eth0 scope global | grep -q inet6 && break; sleep 1; done
sleep 2
echo "== v6"; ip -6 address show dev eth0; ip -6 route
echo "== ping"
for address in 10.0.5.1 10.0.2.15 fd00:5::1 fd00:2::f; do
    ping -c 3 -W 5 $address | grep -q ' 0% packet loss' && echo "$address answers"
done
echo "== metadata"; timeout 30 wget -q -O - http://169.254.169.254/latest/meta-data/instance-id
echo "== fetch"
timeout 30 wget -q -O /page http://10.0.2.15:8000/ && wc -c < /page && md5sum < /page
timeout 30 wget -q -O - http://[fd00:2::f]:8000/ | md5sum
"#;

/// Serves two connections a page so long that it takes many segments; who asked.
fn serve(host: &Host, page: Vec<u8>) -> std::thread::JoinHandle<Vec<IpAddr>> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8000));
    let listener = host.netns().enter(|| TcpListener::bind(any)).unwrap().unwrap();
    std::thread::spawn(move || {
        let clients = (0..2).map(|_| {
            let (mut client, from) = listener.accept().unwrap();
            let _ = client.read(&mut [0; 1024]).unwrap();
            write!(client, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", page.len()).unwrap();
            client.write_all(&page).unwrap();
            from.ip().to_canonical()
        });
        clients.collect()
    })
}

/// Tells one client of a metadata server whom the node says it is.
fn serve_metadata(node: &Host) -> std::thread::JoinHandle<()> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8775));
    let listener = node.netns().enter(|| TcpListener::bind(any)).unwrap().unwrap();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let (mut instance, mut reader) = (String::new(), BufReader::new(client));
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap() <= 2 {
                break;
            }
            let (name, value) = line.trim().split_once(": ").unwrap_or_default();
            if name.eq_ignore_ascii_case("X-Instance-ID") {
                value.clone_into(&mut instance);
            }
        }
        let body = format!("you are {instance}\n");
        write!(reader.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    })
}

/// What the script printed after a heading.
fn section<'c>(console: &'c str, heading: &str) -> &'c str {
    let (_, rest) = console
        .split_once(&format!("== {heading}\n"))
        .unwrap_or_else(|| panic!("the guest did not come to {heading}: {console}"));
    rest.split("\n== ").next().unwrap_or(rest)
}

#[test]
fn a_guest_leases_its_address_pings_and_fetches() {
    let topology = standard();
    let lab = Lab::builder().topology(&topology).build().unwrap();
    let document = topology
        .to_string()
        .replacen("networks:\n", NETWORK, 1)
        .replacen("ports:\n", PORT, 1)
        .replacen("web6, db4, db6]", "web6, db4, db6, guests4, guests6]", 1);
    lab.write_topology(&document).unwrap();
    let secret = lab.directory().join("secret");
    std::fs::write(&secret, "of the lab\n").unwrap();
    let extra = ["--metadata-server", "http://192.0.2.1:8775", "--metadata-secret-file"].map(str::to_owned);
    let extra = [&extra[..], &[secret.display().to_string()]].concat();
    let options = AgentOptions { extra, ..AgentOptions::default() };
    let metadata = serve_metadata(lab.node("node-a"));
    let mut agents = ["node-a", "node-b"].map(|node| lab.start_agent(node, &options).unwrap());
    agents.iter_mut().for_each(|agent| agent.wait_ready(START).unwrap());
    let page: Vec<u8> = (0..300_000_u32).map(|at| b'a' + (at % 23) as u8).collect();
    std::fs::write(lab.directory().join("page"), &page).unwrap();
    let sum = lab.node("node-a").run(&format!("md5sum {}", lab.directory().join("page").display())).unwrap();
    let sum = sum.split_whitespace().next().unwrap();
    let server = serve(lab.workload("vm5"), page);

    let node = lab.node("node-a").netns();
    let guest = Guest::boot(node, "tap-guest", MAC, lab.directory(), SCRIPT).unwrap();
    let console = guest.finish(BOOT).unwrap();
    let has = |heading: &str, words: &[&str]| {
        let said = section(&console, heading);
        for word in words {
            assert!(said.contains(word), "{heading}: no {word} in:\n{said}\n\nall of it:\n{console}");
        }
    };
    has("lease", &["leased 10.0.5.77/24 for 3600 s"]);
    has("v4", &["inet 10.0.5.77/24"]);
    has("routes", &["default via 10.0.5.1 dev eth0", "10.99.0.0/16 via 10.0.5.9 dev eth0"]);
    has("mtu", &["1450"]);
    has("dns", &["nameserver 10.0.5.2"]);
    has("v6", &[&format!("inet6 {V6}/64"), "default via fe80::"]);
    let answers = ["10.0.5.1", "10.0.2.15", "fd00:5::1", "fd00:2::f"].map(|it| format!("{it} answers"));
    has("ping", &answers.iter().map(String::as_str).collect::<Vec<_>>());
    has("metadata", &["you are instance-7"]);
    has("fetch", &["300000", sum]);
    assert_eq!(section(&console, "fetch").matches(sum).count(), 2, "over IPv6, too:\n{console}");
    metadata.join().unwrap();
    assert_eq!(server.join().unwrap(), ["10.0.5.77", V6].map(|it| it.parse::<IpAddr>().unwrap()));
}
