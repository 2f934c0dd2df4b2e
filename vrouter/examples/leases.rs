//! Nodes without a kernel that lease ports of one router's address from one etcd, all at once, want more and less,
//! and go for good: for the test that no block is ever two nodes'.
//!
//! Two witnesses watch: one follows every write of a lease in etcd's history; the other is told by the nodes what
//! they believe to have, at the moment they do. Prints one JSON object.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use etcd_client::{EventType, TxnOp, WatchOptions};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use vrouter::{
    store::{
        Store, StoreArgs, StoreConfig,
        blocks::{Claim, Claims, Holders, Lease},
        change::{self, Wish},
        client::{bounded, end_of},
        config::StoreTable,
        follow::{Follow, Leases, Link, Options, Report},
        keys::{Key, Keys, ObjectName},
        record::{Head, Record},
    },
    topology::Kind,
};

const ROUTER: &str = "r1";

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    store: StoreArgs,
    /// Nodes that are played.
    #[arg(long, default_value_t = 20)]
    nodes: u32,
    /// Blocks there are: fewer than are wanted.
    #[arg(long, default_value_t = 16)]
    blocks: u32,
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// What the nodes want at random follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 33) % u64::from(limit.max(1))) as u32
    }
}

/// What the nodes believe to have.
#[derive(Default)]
struct Witness {
    own: BTreeMap<u32, BTreeSet<u32>>,
    gone: BTreeSet<u32>,
    violations: Vec<String>,
    most: usize,
}

impl Witness {
    fn told(&mut self, node: u32, blocks: BTreeSet<u32>) {
        for (other, theirs) in
            self.own.iter().filter(|(other, _)| **other != node && !self.gone.contains(other))
        {
            for block in blocks.intersection(theirs) {
                self.violations.push(format!("block {block}: node{node} and node{other} believe to have it"));
            }
        }
        self.own.insert(node, blocks);
        self.most = self.most.max(self.own.values().map(BTreeSet::len).sum());
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt().with_env_filter("error").with_writer(std::io::stderr).init();
    let config =
        StoreConfig::new(args.store.clone(), StoreTable::default())?.context("name etcd with --etcd")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("{}", runtime.block_on(run(&args, &config))?);
    // What is still followed is not waited for.
    std::process::exit(0);
}

fn value(object: &Value) -> Vec<u8> {
    Record::new(object.as_object().cloned().unwrap_or_default()).bytes()
}

async fn fill(args: &Args, store: &mut Store) -> Result<()> {
    let keys = store.keys().clone();
    let mut objects = vec![
        (
            Kind::Network,
            json!({ "name": "public", "external": true, "subnets": [{ "name": "public4", "cidr": "203.0.113.0/24" }] }),
        ),
        (
            Kind::Router,
            json!({ "name": ROUTER, "gateway": { "network": "public", "address": "203.0.113.10" } }),
        ),
    ];
    for node in 0..args.nodes {
        objects.push((
            Kind::Node,
            json!({ "name": format!("node{node}"), "vtep": format!("172.16.0.{}", node + 1) }),
        ));
    }
    for (kind, object) in objects {
        let name = object["name"].as_str().unwrap_or_default().to_owned();
        bounded(store.client().put(keys.object(&ObjectName::new(kind, name)), value(&object), None)).await?;
    }
    let head = Head { schema: 1, change: "filled".to_owned(), ..Head::default() };
    bounded(store.client().put(keys.head(), head.bytes(), None)).await?;
    Ok(())
}

/// A node: its claims, and what it was told.
struct Played {
    claims: watch::Sender<Claims>,
    task: tokio::task::JoinHandle<()>,
}

fn play(args: &Args, config: &StoreConfig, node: u32, witness: &Arc<Mutex<Witness>>) -> Played {
    let name = format!("node{node}");
    let (tell, mut news) = mpsc::unbounded_channel();
    let (report, reports) = watch::channel(Report::default());
    let (claims, claimed) = watch::channel(Claims::new());
    let (tell_holders, mut holders) = watch::channel(Arc::new(Holders::new()));
    let options = Options {
        config: config.clone(),
        node: name.clone(),
        externals: vec![Some("public".to_owned())],
        cache: None,
    };
    let follow = Follow::new(options, tell, reports, Leases::new(claimed, tell_holders), Link::default());
    tokio::spawn(follow.run());
    tokio::spawn(async move { while news.recv().await.is_some() {} });
    let (seen, range) = (witness.clone(), (1, args.blocks));
    let sender = claims.clone();
    let mut random = Random(args.seed ^ u64::from(node) << 32);
    let task = tokio::spawn(async move {
        let _report = report;
        let (mut wanted, mut offered) = (1, BTreeSet::new());
        let mut turn = tokio::time::interval(Duration::from_millis(u64::from(50 + random.below(100))));
        loop {
            tokio::select! {
                changed = holders.changed() => if changed.is_err() { return },
                _ = turn.tick() => wanted = random.below(4),
            }
            let own: BTreeSet<u32> = holders
                .borrow_and_update()
                .get(ROUTER)
                .into_iter()
                .flatten()
                .filter(|(_, holder)| **holder == name)
                .map(|(block, _)| *block)
                .collect();
            // What is too much it stops using before it says that it is idle, and for good.
            offered.retain(|block| own.contains(block));
            let kept: BTreeSet<u32> = own.difference(&offered).copied().take(wanted as usize).collect();
            offered.extend(own.difference(&kept));
            let idle = offered.clone();
            if let Ok(mut witness) = seen.lock() {
                witness.told(node, kept);
            }
            sender.send_replace(Claims::from([(ROUTER.to_owned(), Claim { wanted, range, idle })]));
        }
    });
    Played { claims, task }
}

/// Follows every write of a lease: none may replace another's, unless that node is gone.
async fn follow_history(store: Store, keys: Keys, gone: Arc<Mutex<Witness>>, from: i64) -> Result<()> {
    let prefix = format!("{}blocks/", keys.config());
    let options = WatchOptions::new().with_range(end_of(&prefix)).with_start_revision(from);
    let mut stream = store.watcher().watch(prefix, Some(options)).await?;
    let mut holders: BTreeMap<u32, String> = BTreeMap::new();
    while let Some(message) = stream.message().await? {
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            let Some(Key::Block { block, .. }) = keys.read(kv.key()) else { continue };
            if event.event_type() == EventType::Delete {
                holders.remove(&block);
                continue;
            }
            let new = Lease::read(kv.value()).map_err(anyhow::Error::msg)?.node;
            let before = holders.insert(block, new.clone());
            let Ok(mut witness) = gone.lock() else { continue };
            if let Some(before) = before {
                let is_gone = witness.gone.iter().any(|node| before == format!("node{node}"));
                if !is_gone {
                    witness.violations.push(format!("block {block} went from {before} to {new}"));
                }
            }
        }
    }
    Ok(())
}

async fn run(args: &Args, config: &StoreConfig) -> Result<Value> {
    let mut store = Store::connect(config).await?;
    let keys = store.keys().clone();
    fill(args, &mut store).await?;
    let witness = Arc::new(Mutex::new(Witness::default()));
    let snapshot = store.snapshot().await?;
    tokio::spawn(follow_history(store.clone(), keys.clone(), witness.clone(), snapshot.revision + 1));
    let mut played: BTreeMap<u32, Played> =
        (0..args.nodes).map(|node| (node, play(args, config, node, &witness))).collect();
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let mut random = Random(args.seed);
    let mut deleted = 0;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(700)).await;
        // A node dies, and its operator deletes it; half of all remain.
        if played.len() as u32 > args.nodes / 2 {
            let victim = random.below(args.nodes);
            if let Some(node) = played.remove(&victim) {
                node.task.abort();
                node.claims.send_replace(Claims::new());
                drop(node.claims);
                if let Ok(mut witness) = witness.lock() {
                    witness.gone.insert(victim);
                }
                let names = [ObjectName::new(Kind::Node, format!("node{victim}"))];
                change::change(&mut store, &Wish::Delete(&names), None, false).await?;
                deleted += 1;
            }
        }
        // Somebody's lease is damaged by hand: it is nobody's until it is mended.
        let key = keys.block(ROUTER, args.blocks + 1);
        bounded(store.client().txn(etcd_client::Txn::new().and_then([TxnOp::put(key, "damaged", None)])))
            .await
            .ok();
    }
    let revision = store.snapshot().await?.revision;
    let witness = witness.lock().map_err(|_| anyhow::anyhow!("a witness panicked"))?;
    Ok(json!({
        "violations": witness.violations, "deleted_nodes": deleted, "most_blocks_at_once": witness.most,
        "writes": revision - snapshot.revision, "nodes": args.nodes, "blocks": args.blocks, "seed": args.seed,
    }))
}
