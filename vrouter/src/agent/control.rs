//! The control socket: `<run dir>/agent.sock`, for root alone. One line asks, one JSON line answers.

use std::{
    fs,
    future::Future,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    sync::watch,
};

use super::{
    services::told::told,
    status::{self, AgentStatus},
};
use crate::compile::Served;

const SOCKET: &str = "agent.sock";
/// A request is a word; more is nobody we talk to.
const REQUEST_MAX: u64 = 256;
const PATIENCE: Duration = Duration::from_secs(2);
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

type Serving = Pin<Box<dyn Future<Output = Result<()>>>>;

/// Listens; the returned future serves for ever.
pub fn listen(
    run_dir: &Path,
    status: Arc<Mutex<AgentStatus>>,
    served: watch::Receiver<Arc<Served>>,
) -> Result<Serving> {
    let path = run_dir.join(SOCKET);
    fs::remove_file(&path).ok();
    let listener =
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(Box::pin(async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                // Out of file descriptors, most likely: those who hold them are hung up on soon.
                Err(error) => {
                    tracing::warn!("control socket: {error}");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let (status, served) = (status.clone(), served.clone());
            tokio::spawn(async move {
                let (read, mut write) = stream.into_split();
                let mut line = String::new();
                let mut reader = tokio::io::BufReader::new(read.take(REQUEST_MAX));
                let asked = tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await;
                if !matches!(asked, Ok(Ok(_))) {
                    return;
                }
                let answer = match line.trim() {
                    "status" => serde_json::to_string(&*status::lock(&status)).unwrap_or_default(),
                    "dhcp" => {
                        let served = served.borrow().clone();
                        serde_json::to_string(&told(&served)).unwrap_or_default()
                    }
                    _ => r#"{"error":"unknown request"}"#.to_owned(),
                };
                // An asker that went away is no concern of ours.
                let _ =
                    tokio::time::timeout(PATIENCE, write.write_all(format!("{answer}\n").as_bytes())).await;
            });
        }
    }))
}

/// Asks a running agent; `None`: none is running.
pub fn ask(run_dir: &Path, request: &str) -> Option<serde_json::Value> {
    let mut stream = UnixStream::connect(run_dir.join(SOCKET)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(format!("{request}\n").as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}
