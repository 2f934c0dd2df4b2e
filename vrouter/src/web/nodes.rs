//! How the other nodes are: their states in etcd, if the topology is there, read at one rate whoever asks.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::store::{Store, StoreConfig, report::NodeState};

const EVERY: Duration = Duration::from_secs(5);

/// What etcd says of the nodes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Told {
    /// By node.
    pub states: BTreeMap<String, NodeState>,
    /// Why they are not known, or not any more.
    pub error: Option<String>,
}

/// Followed by a thread of its own; `None`: there is no etcd.
#[derive(Clone, Default)]
pub struct Nodes(Option<Arc<Mutex<Told>>>);

impl Nodes {
    /// Starts to follow them.
    pub fn follow(config: Option<StoreConfig>) -> Result<Self> {
        let Some(config) = config else { return Ok(Self(None)) };
        let told = Arc::new(Mutex::new(Told {
            error: Some("the first connection to etcd is being made".to_owned()),
            ..Told::default()
        }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
        let of_thread = Arc::downgrade(&told);
        let thread = std::thread::Builder::new().name("nodes".to_owned());
        let work = move || {
            let mut store = None;
            while let Some(told) = of_thread.upgrade() {
                let read = runtime.block_on(states(&config, &mut store));
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                match read {
                    Ok(states) => *told = Told { states, error: None },
                    Err(error) => {
                        store = None;
                        told.error = Some(format!("{error:#}"));
                    }
                }
                drop(told);
                std::thread::sleep(EVERY);
            }
        };
        thread.spawn(work).context("cannot start the thread that follows the nodes")?;
        Ok(Self(Some(told)))
    }

    /// What is known; `None`: there is no etcd.
    pub fn told(&self) -> Option<Told> {
        self.0.as_ref().map(|told| told.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

async fn states(config: &StoreConfig, store: &mut Option<Store>) -> Result<BTreeMap<String, NodeState>> {
    let store = match store {
        Some(store) => store,
        None => store.insert(Store::connect_to_all(config).await?),
    };
    store.states().await
}
