//! Agents without a kernel, for `cargo xtask bench --control`: they follow a topology in etcd and compile their parts
//! of it as real ones do, and are told apart from those only by what they do not write into maps.
//!
//! One process plays the writer and all nodes, so that it can tell how long a change takes to come in force.
//! Prints one JSON object.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use etcd_client::{Compare, CompareOp, Txn, TxnOp, WatchOptions};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use vrouter::{
    compile::{self, Surroundings},
    identities::Identities,
    store::{
        Store, StoreArgs, StoreConfig,
        blocks::{Claims, Holders},
        client::{bounded, end_of},
        config::StoreTable,
        follow::{Follow, Leases, Link, News, Options, Report},
        keys::{Keys, ObjectName},
        record::{Binding, Head, Record},
    },
    topology::Kind,
};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    store: StoreArgs,
    /// Store the topology first.
    #[arg(long)]
    fill: bool,
    /// Networks of the topology.
    #[arg(long, default_value_t = 100)]
    networks: u32,
    /// Ports of each network.
    #[arg(long, default_value_t = 100)]
    ports: u32,
    /// Nodes of the topology.
    #[arg(long, default_value_t = 1000)]
    nodes: u32,
    /// Nodes that are played.
    #[arg(long, default_value_t = 1)]
    agents: u32,
    /// Further clients that watch and do nothing with it.
    #[arg(long, default_value_t = 0)]
    watchers: u32,
    /// Changes to measure.
    #[arg(long, default_value_t = 200)]
    changes: u32,
    /// Seconds of writing as fast as possible.
    #[arg(long, default_value_t = 3)]
    writing: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt().with_env_filter("warn").with_writer(std::io::stderr).init();
    let config =
        StoreConfig::new(args.store.clone(), StoreTable::default())?.context("name etcd with --etcd")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(run(&args, &config))?;
    println!("{outcome}");
    // What is still followed is not waited for.
    std::process::exit(0);
}

/// The node that has a port. Ports of a network are on ten nodes, and a node with ports has some of ten networks.
fn node_of(args: &Args, network: u32, port: u32) -> u32 {
    (network / 10 * 10 + port % 10) * (args.nodes / args.networks).max(1) % args.nodes
}

fn mac(network: u32, port: u32) -> String {
    format!("02:{:02x}:{:02x}:{:02x}:00:{:02x}", network >> 16, network >> 8 & 255, network & 255, port)
}

fn port(args: &Args, network: u32, number: u32, variant: u32) -> Value {
    json!({
        "name": format!("port{network}-{number}"), "network": format!("net{network}"), "mac": mac(network, number),
        "fixed_ips": [format!("10.{}.{}.{}", network >> 8 & 255, network & 255, 10 + number)],
        "security_groups": [format!("group{}", network % 100)],
        "allowed_address_pairs": [{ "ip": format!("10.{}.{}.{}", network >> 8 & 255, network & 255, 200 + variant % 50) }],
        "node": format!("node{}", node_of(args, network, number)), "interface": format!("tap-{network}-{number}"),
    })
}

fn value(object: Value) -> Vec<u8> {
    Record::new(object.as_object().cloned().unwrap_or_default()).bytes()
}

/// Stores a topology: networks of ports, five to a router.
async fn fill(args: &Args, store: &mut Store) -> Result<f64> {
    let start = Instant::now();
    let keys = store.keys().clone();
    let mut batch = Vec::new();
    let mut put = async |kind: Kind, object: Value, flush: bool| -> Result<()> {
        if let Some(name) = object.get("name").and_then(Value::as_str) {
            batch.push(TxnOp::put(keys.object(&ObjectName::new(kind, name)), value(object), None));
        }
        if batch.len() >= 100 || flush && !batch.is_empty() {
            bounded(store.client().txn(Txn::new().and_then(std::mem::take(&mut batch)))).await?;
        }
        Ok(())
    };
    for node in 0..args.nodes {
        let vtep = format!("172.16.{}.{}", node >> 8, node & 255);
        put(Kind::Node, json!({ "name": format!("node{node}"), "vtep": vtep }), false).await?;
    }
    for group in 0..100 {
        let name = format!("group{group}");
        let rules = json!([{ "direction": "egress" }, { "direction": "ingress", "protocol": "tcp", "ports": "22-80" }]);
        put(Kind::SecurityGroup, json!({ "name": name, "rules": rules }), false).await?;
    }
    for network in 0..args.networks {
        let prefix = format!("10.{}.{}", network >> 8 & 255, network & 255);
        let subnets = json!([{ "name": format!("sub{network}"), "cidr": format!("{prefix}.0/24"), "gateway": format!("{prefix}.1") }]);
        let name = format!("net{network}");
        put(Kind::Network, json!({ "name": name, "vni": 1000 + network, "subnets": subnets }), false).await?;
        for number in 0..args.ports {
            put(Kind::Port, port(args, network, number, 0), false).await?;
        }
    }
    for router in 0..args.networks.div_ceil(5) {
        let subnets: Vec<_> =
            (router * 5..args.networks.min(router * 5 + 5)).map(|it| format!("sub{it}")).collect();
        put(Kind::Router, json!({ "name": format!("router{router}"), "interfaces": subnets }), false).await?;
    }
    put(Kind::Node, Value::Null, true).await?;
    let head = Head { schema: 1, change: "filled".to_owned(), ..Head::default() };
    bounded(store.client().put(keys.head(), head.bytes(), None)).await?;
    Ok(start.elapsed().as_secs_f64())
}

/// A node that is played: when its part was compiled last, and for which revision.
struct Played {
    done: watch::Receiver<(i64, Instant)>,
    /// From its start until its part was compiled first.
    synced: Duration,
    compiled_ports: usize,
}

/// Starts a node.
async fn play(config: &StoreConfig, node: u32, compile_time: Arc<AtomicU64>) -> Result<Played> {
    let name = format!("node{node}");
    let (tell, mut news) = mpsc::unbounded_channel::<News>();
    let (report, reports) = watch::channel(Report::default());
    let options = Options { config: config.clone(), node: name.clone(), externals: Vec::new(), cache: None };
    let start = Instant::now();
    let (claims, (tell_holders, holders)) =
        (watch::channel(Claims::new()), watch::channel(Arc::new(Holders::new())));
    let leases = Leases::new(claims.1, tell_holders);
    tokio::spawn(Follow::new(options, tell, reports, leases, Link::default()).run());
    let (told, mut done) = watch::channel((0, start));
    tokio::spawn(async move {
        let mut identities = Identities::default();
        // Nobody claims ports here, as long as this is there.
        let _leases = (claims.0, holders);
        while let Some(News { revision, topology, skipped, .. }) = news.recv().await {
            if !skipped.is_empty() {
                eprintln!("{name}: {skipped}");
            }
            let Some(topology) = topology else { continue };
            let interfaces = topology.ports.iter().filter(|port| port.node.as_ref() == Some(&name));
            let interfaces = interfaces.filter_map(|port| port.interface.clone()).zip(10..);
            let interfaces: HashMap<_, _> = interfaces
                .map(|(interface, index)| (interface, compile::Interface { index, peer: true }))
                .collect();
            let around = Surroundings {
                metadata: false,
                node: name.clone(),
                interfaces,
                underlay_mtu: 1500,
                ..Surroundings::default()
            };
            let before = Instant::now();
            match compile::compile(&topology, &around, &mut identities) {
                Ok(compiled) => {
                    let micros = u64::try_from(before.elapsed().as_micros()).unwrap_or(u64::MAX);
                    compile_time.fetch_add(micros, Ordering::Relaxed);
                    let count = i64::try_from(compiled.image.fdb.len()).unwrap_or(0).max(1);
                    report.send_modify(|report| report.revision = revision);
                    // Until the first look the count of stations stands in the revision's place.
                    told.send_modify(|told| {
                        *told = (if told.0 == 0 { -count } else { revision }, Instant::now())
                    });
                }
                Err(error) => eprintln!("{name}: {error:#}"),
            }
        }
    });
    let compiled =
        tokio::time::timeout(Duration::from_secs(120), done.wait_for(|(count, _)| *count != 0)).await;
    let (count, at) = *compiled.context("a node is not ready after two minutes")??;
    Ok(Played { synced: at - start, compiled_ports: usize::try_from(-count).unwrap_or(0), done })
}

async fn run(args: &Args, config: &StoreConfig) -> Result<Value> {
    let mut store = Store::connect(config).await?;
    let keys = store.keys().clone();
    let filled = if args.fill { Some(fill(args, &mut store).await?) } else { None };
    let networks = args.networks;

    let compile_time = Arc::new(AtomicU64::new(0));
    let before = resident()?;
    let mut played = HashMap::new();
    for agent in 0..args.agents {
        // Spread over all nodes that have ports.
        let node = node_of(args, agent * (networks / args.agents.max(1)), agent);
        played.insert(node, play(config, node, Arc::clone(&compile_time)).await?);
        if agent % 10 == 9 {
            eprintln!("{} of {} nodes follow, {} MiB", agent + 1, args.agents, resident()? / 1024);
        }
    }
    let mut synced: Vec<f64> = played.values().map(|played| played.synced.as_secs_f64()).collect();
    let memory = (resident()? - before) as f64 / 1024.0 / f64::from(args.agents.max(1));
    let stations = played.values().map(|played| played.compiled_ports).max().unwrap_or(0);

    let seen = Arc::new(AtomicU64::new(0));
    for _ in 0..args.watchers {
        watcher(store.clone(), &keys, Arc::clone(&seen));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;

    compile_time.store(0, Ordering::Relaxed);
    let mut latencies = changes(args, networks, &mut store, &played).await?;
    let compiling = compile_time.load(Ordering::Relaxed) as f64 / 1000.0 / f64::from(args.changes.max(1));
    let writes = writes(args, config).await?;
    Ok(json!({
        "ports": networks * args.ports, "nodes": args.nodes, "agents": args.agents, "watchers": args.watchers,
        "fill_s": filled,
        "sync_s": at(&mut synced, 0.5), "sync_max_s": at(&mut synced, 1.0),
        "memory_mib": memory, "stations": stations,
        "change_p50_ms": at(&mut latencies, 0.5), "change_p99_ms": at(&mut latencies, 0.99),
        "compile_ms": compiling, "writes_per_s": writes,
        "watched_events": seen.load(Ordering::Relaxed),
    }))
}

/// Somebody who watches.
fn watcher(store: Store, keys: &Keys, seen: Arc<AtomicU64>) {
    let prefix = keys.config().to_owned();
    tokio::spawn(async move {
        let options = WatchOptions::new().with_range(end_of(&prefix));
        let mut stream = store.watcher().watch(prefix, Some(options)).await?;
        while let Some(message) = stream.message().await? {
            seen.fetch_add(message.events().len() as u64, Ordering::Relaxed);
        }
        Ok::<_, etcd_client::Error>(())
    });
}

/// Changes a port of a played node, as a writer does that knows the head, and waits until that node has it in force.
async fn changes(
    args: &Args,
    networks: u32,
    store: &mut Store,
    played: &HashMap<u32, Played>,
) -> Result<Vec<f64>> {
    let keys = store.keys().clone();
    let mut latencies = Vec::new();
    let mut candidates = (0..networks).flat_map(|network| (0..args.ports).map(move |port| (network, port)));
    let mut own: Vec<(u32, u32)> = candidates
        .by_ref()
        .filter(|&(network, port)| played.contains_key(&node_of(args, network, port)))
        .collect();
    own.truncate(10_000);
    if own.is_empty() {
        bail!("none of the played nodes has a port");
    }
    for change in 0..args.changes {
        let (network, number) = own[(change as usize * 7919) % own.len()];
        let head = store.snapshot_of(&keys.head()).await?.context("no head")?;
        let mut new = Head::read(&head.value).map_err(anyhow::Error::msg)?;
        new.change = format!("change {change}");
        let object = ObjectName::new(Kind::Port, format!("port{network}-{number}"));
        let mut done = played[&node_of(args, network, number)].done.clone();
        let start = Instant::now();
        let transaction = Txn::new()
            .when([Compare::mod_revision(keys.head(), CompareOp::Equal, head.revision)])
            .and_then([
                TxnOp::put(keys.object(&object), value(port(args, network, number, change + 1)), None),
                TxnOp::put(keys.head(), new.bytes(), None),
            ]);
        let answer = bounded(store.client().txn(transaction)).await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        if !answer.succeeded() {
            bail!("somebody else writes");
        }
        let in_force = done.wait_for(|(compiled, _)| *compiled >= revision);
        let (_, at) =
            *tokio::time::timeout(Duration::from_secs(30), in_force).await.context("not in force")??;
        latencies.push((at - start).as_secs_f64() * 1000.0);
    }
    Ok(latencies)
}

/// Ports plugged by sixteen at once, as fast as etcd takes them.
async fn writes(args: &Args, config: &StoreConfig) -> Result<f64> {
    let ended = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for writer in 0..16_u32 {
        let mut store = Store::connect(config).await?;
        let (ended, count) = (Arc::clone(&ended), Arc::clone(&count));
        tasks.push(tokio::spawn(async move {
            let keys = store.keys().clone();
            let mut number = 0_u32;
            while !ended.load(Ordering::Relaxed) {
                number += 1;
                let key = keys.binding(&format!("nobody{writer}"), &format!("port0-{}", number % 100));
                bounded(store.client().put(key, Binding::new(&format!("tap{number}")).bytes(), None)).await?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, anyhow::Error>(())
        }));
    }
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs(args.writing)).await;
    let rate = count.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    ended.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await??;
    }
    Ok(rate)
}

fn at(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = ((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1));
    values.get(index).copied().unwrap_or(f64::NAN)
}

/// This process's memory in KiB.
fn resident() -> Result<i64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
