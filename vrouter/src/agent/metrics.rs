//! Metrics for Prometheus, served by a thread of its own: however many ask, and however slowly they take the answer, the
//! agent does not notice. A scrape costs a copy of the agent's status and some reads of counters; no table is walked.

mod collect;
mod text;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    Router,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use super::status::{self, AgentStatus};
use crate::{data_path::Pins, http};
pub use collect::{Family, Kind, families};

/// Clients at once: a Prometheus or two, and somebody who looks.
const CLIENTS: usize = 16;
/// How often an address that is not to be had is tried again.
const AGAIN: Duration = Duration::from_secs(5);
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What metrics are made of.
#[derive(Clone)]
pub struct Source {
    pub status: Arc<Mutex<AgentStatus>>,
    pub pins: Pins,
    pub instance: String,
}

/// Serves on an address, in the network namespace of the calling thread. That the address is taken is said, and tried
/// again: an agent runs without metrics rather than not at all.
pub fn start(address: SocketAddr, source: Source) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
    std::thread::Builder::new()
        .name("vr-metrics".to_owned())
        .spawn(move || runtime.block_on(serve(address, source)))
        .context("cannot start the thread for metrics")?;
    Ok(())
}

async fn serve(address: SocketAddr, source: Source) {
    let pages = Router::new()
        .route("/metrics", get(move || answer(source.clone())))
        .route("/", get(async || "vrouter: see /metrics\n"));
    let mut is_said = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !std::mem::replace(&mut is_said, true) {
                    tracing::warn!(
                        "no metrics at {address}: {error}; it is tried again, or give another address with --metrics"
                    );
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    tracing::info!(%address, "metrics");
    if let Err(error) = http::serve(listener, pages, CLIENTS).await {
        tracing::error!("no more metrics: {error:#}");
    }
}

/// Rendered here, one after the other: a task handed to another thread goes on, or waits there, when who asked has hung
/// up, and holds its copy of the status.
async fn answer(source: Source) -> Response {
    // A copy: the agent does not wait for what follows.
    let status = status::lock(&source.status).clone();
    let text = text::render(&families(&status, &source.pins, &source.instance));
    ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response()
}

/// Where the kernel lists interfaces with their counters, for the network namespace of the calling thread's process.
fn interface_counters() -> PathBuf {
    PathBuf::from("/proc/thread-self/net/dev")
}
