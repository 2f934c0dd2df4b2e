//! Connections: no more than so many, none for long. Who comes when there are enough takes the place of who has been
//! silent for longest; if nobody is silent he is told so at once. Who is slow to ask, or to take the answer, is cut off.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use anyhow::Result;
use axum::Router;
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
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
/// Who was silent for so long gives way to who comes; a browser that asks each second is not silent.
const SILENT: Duration = Duration::from_millis(1500);
/// How long that takes at most.
const LEAVING: Duration = Duration::from_millis(200);
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 40\r\nRetry-After: 5\r\nConnection: close\r\n\r\ntoo many clients: try again in a moment\n";

/// A connection's place.
struct Seat {
    /// Since when nothing was asked; `None`: an answer is being made.
    silent: Mutex<Option<Instant>>,
    /// Another needs it more.
    leave: Notify,
}

impl Seat {
    fn new() -> Self {
        Self { silent: Mutex::new(Some(Instant::now())), leave: Notify::new() }
    }

    fn set(&self, silent: Option<Instant>) {
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner) = silent;
    }

    fn silent(&self) -> Option<Instant> {
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has the connection leave that was silent for longest, if one was for long enough.
fn make_room(seats: &mut Vec<Weak<Seat>>) -> bool {
    seats.retain(|seat| seat.strong_count() > 0);
    let taken = seats.iter().filter_map(Weak::upgrade);
    let silent = taken.filter_map(|seat| Some((seat.silent()?, seat)));
    let longest = silent.min_by_key(|(since, _)| *since).filter(|(since, _)| since.elapsed() >= SILENT);
    longest.inspect(|(_, seat)| seat.leave.notify_one()).is_some()
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, pages: Router, clients: usize) -> Result<()> {
    let (places, refusals) = (Arc::new(Semaphore::new(clients)), Arc::new(Semaphore::new(REFUSED_AT_ONCE)));
    let mut seats = Vec::new();
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
        let mut place = Arc::clone(&places).try_acquire_owned().ok();
        if place.is_none() && make_room(&mut seats) {
            let free = Arc::clone(&places).acquire_owned();
            place = tokio::time::timeout(LEAVING, free).await.ok().and_then(Result::ok);
        }
        match place {
            Some(place) => {
                let (pages, seat) = (pages.clone(), Arc::new(Seat::new()));
                seats.retain(|seat: &Weak<Seat>| seat.strong_count() > 0);
                seats.push(Arc::downgrade(&seat));
                tokio::spawn(async move {
                    tokio::select! {
                        () = talk(stream, pages, &seat) => {}
                        () = seat.leave.notified() => {}
                    }
                    drop(place);
                });
            }
            None => {
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

async fn talk(stream: TcpStream, pages: Router, seat: &Arc<Seat>) {
    stream.set_nodelay(true).ok();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_headers(HEADERS_MAX).max_buf_size(BUFFER_MAX);
    let (pages, seat) = (TowerToHyperService::new(pages), Arc::clone(seat));
    let service = service_fn(move |request| {
        seat.set(None);
        let (answer, seat) = (pages.call(request), Arc::clone(&seat));
        async move {
            let answer = answer.await;
            // Who takes it slowly is as one who is silent.
            seat.set(Some(Instant::now()));
            answer
        }
    });
    let connection = http.serve_connection(TokioIo::new(stream), service);
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
