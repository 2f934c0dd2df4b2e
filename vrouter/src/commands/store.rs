//! What the commands that speak to etcd share.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use crate::{
    config,
    store::{
        Store, StoreArgs,
        client::{bounded, patient},
        keys::ObjectName,
        record::Binding,
    },
    topology::{self, Kind},
};

/// Where etcd is.
#[derive(clap::Args, Clone, Debug)]
pub struct StoreCommand {
    /// Node configuration file, whose table [etcd] says how etcd is reached
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub store: StoreArgs,
}

impl StoreCommand {
    /// Connects, and does something with the connection and the configured node's name.
    pub fn run(
        &self,
        act: impl AsyncFnOnce(&mut Store, Option<&str>) -> Result<ExitCode>,
    ) -> Result<ExitCode> {
        let (config, node) = config::store(self.store.clone(), self.config.as_deref())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
        runtime.block_on(async {
            let mut store = patient(async || Store::connect_to_all(&config).await).await?;
            act(&mut store, node.as_deref()).await
        })
    }
}

/// Reads a kind as people write it: `port`, `ports`, `floating-ip`, `floating_ips`.
pub fn kind(text: &str) -> Result<Kind, String> {
    let plain = text.to_ascii_lowercase().replace(['-', ' '], "_");
    let found =
        Kind::objects().find(|kind| plain == kind.section() || plain == kind.noun().replace(' ', "_"));
    found.ok_or_else(|| {
        let nouns: Vec<String> = Kind::objects().map(|kind| kind.noun().replace(' ', "-")).collect();
        format!("write one of {}", nouns.join(", "))
    })
}

/// Says that a node has a port at an interface.
pub async fn bind(store: &mut Store, node: &str, port: &str, interface: &str) -> Result<i64> {
    topology::check_interface_name(interface).map_err(anyhow::Error::msg)?;
    check_name(node)?;
    let keys = store.keys().clone();
    let object = keys.object(&ObjectName::new(Kind::Port, port));
    let staged = store.snapshot_of(&object).await?;
    if staged.is_none()
        && !store.snapshot().await?.objects(&keys)?.contains_key(&ObjectName::new(Kind::Port, port))
    {
        bail!("there is no port {port}; `vrouter get ports` lists what there is");
    }
    let put = TxnOp::put(keys.binding(node, port), Binding::new(interface).bytes(), None);
    let transaction = Txn::new().and_then([put]);
    let answer = patient(async || bounded(store.client().txn(transaction.clone())).await);
    let answer = answer.await.context("cannot write to etcd")?;
    Ok(answer.header().map_or(0, etcd_client::ResponseHeader::revision))
}

/// Says that a node has it no more.
pub async fn unbind(store: &mut Store, node: &str, port: &str) -> Result<()> {
    check_name(node)?;
    let key = store.keys().binding(node, port);
    let there = Compare::mod_revision(key.as_str(), CompareOp::Greater, 0);
    let transaction = Txn::new().when([there]).and_then([TxnOp::delete(key, None)]);
    let answer = bounded(store.client().txn(transaction)).await.context("cannot write to etcd")?;
    if !answer.succeeded() {
        bail!("port {port} is not bound on {node} by `vrouter port bind`");
    }
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.contains('/') || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        bail!("{name:?} cannot be a node's name: use one without spaces and `/`");
    }
    Ok(())
}
