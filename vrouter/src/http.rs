//! Connections: no more than so many, none for long. Who comes when there are enough is told so at once; who is
//! slow to ask, or to take the answer, is cut off.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// A request's head must come within this, on a new connection and after each answer.
const HEAD: Duration = Duration::from_secs(10);
/// A connection ends after this, and at once if there is nothing under way; browsers make another.
const LIFE: Duration = Duration::from_secs(60);
/// What is under way then has so long.
const LAST: Duration = Duration::from_secs(15);
const HEADERS_MAX: usize = 64;
const BUFFER_MAX: usize = 32 << 10;
/// Connections being refused at once; more are closed without a word.
const REFUSED_AT_ONCE: usize = 64;
const REFUSAL: Duration = Duration::from_secs(1);
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 40\r\nRetry-After: 5\r\nConnection: close\r\n\r\ntoo many clients: try again in a moment\n";

/// Serves for ever.
pub async fn serve(listener: TcpListener, pages: Router, clients: usize) -> Result<()> {
    let (places, refusals) = (Arc::new(Semaphore::new(clients)), Arc::new(Semaphore::new(REFUSED_AT_ONCE)));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of file descriptors, most likely: those who hold them are cut off soon.
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                let pages = pages.clone();
                tokio::spawn(async move {
                    talk(stream, pages).await;
                    drop(place);
                });
            }
            Err(_) => {
                if let Ok(turn) = Arc::clone(&refusals).try_acquire_owned() {
                    tokio::spawn(async move {
                        // Whether it is heard is not our concern.
                        let _ = tokio::time::timeout(REFUSAL, refuse(stream)).await;
                        drop(turn);
                    });
                }
            }
        }
    }
}

async fn talk(stream: TcpStream, pages: Router) {
    stream.set_nodelay(true).ok();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_headers(HEADERS_MAX).max_buf_size(BUFFER_MAX);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(pages));
    tokio::pin!(connection);
    let ended = tokio::time::timeout(LIFE, connection.as_mut()).await;
    if ended.is_err() {
        connection.as_mut().graceful_shutdown();
        // Dropped then, whatever it does.
        let _ = tokio::time::timeout(LAST, connection).await;
    }
}

/// Says that there are enough. What was asked is taken first: closed with something unread, the answer would be
/// lost.
async fn refuse(mut stream: TcpStream) -> std::io::Result<()> {
    let mut asked = [0; 4096];
    if stream.read(&mut asked).await? == 0 {
        return Ok(());
    }
    stream.write_all(TOO_MANY).await?;
    stream.shutdown().await
}
