//! How other nodes say they are, in etcd. It is asked beside everything else: etcd may not answer, and rates do not wait.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::store::{Store, StoreConfig, report::NodeState};

/// Between two questions.
const EVERY: Duration = Duration::from_secs(5);

/// What etcd said last.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub states: BTreeMap<String, NodeState>,
    /// Why it does not say more, since when it did not.
    pub error: Option<String>,
}

/// A thread that asks, until the program ends.
pub struct Fleet(Arc<Mutex<Told>>);

impl Fleet {
    /// Begins to ask.
    pub fn follow(config: StoreConfig) -> Result<Self> {
        let told = Arc::<Mutex<Told>>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
        let follower = thread::Builder::new().name("etcd".to_owned());
        let shared = Arc::clone(&told);
        let started = follower.spawn(move || runtime.block_on(ask(&config, &shared)));
        started.context("cannot start a thread")?;
        Ok(Self(told))
    }

    /// What is known.
    pub fn told(&self) -> Told {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn ask(config: &StoreConfig, told: &Mutex<Told>) {
    let mut store: Option<Store> = None;
    loop {
        let answer = async {
            if store.is_none() {
                store = Some(Store::connect_to_all(config).await?);
            }
            let store = store.as_mut().context("there is no connection")?;
            store.states().await
        };
        let answer = answer.await;
        {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            match answer {
                Ok(states) => *told = Told { states, error: None },
                // What was said before stays.
                Err(error) => {
                    told.error = Some(format!("{error:#}"));
                    store = None;
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}
