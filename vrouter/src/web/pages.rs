//! Requests and answers. Everything the page is made of is in this program; nothing comes from elsewhere, and the
//! browser is told to take nothing from elsewhere.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Query, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Semaphore;

use super::{
    find,
    guard::{Guard, Judgement},
    layout::{self, View, Wish},
    nodes::Nodes,
    sampler::{Sampler, Snapshot},
    trace::{self, Refusal, Tracer},
};

/// Requests being worked on at once.
const AT_ONCE: usize = 64;
/// Of these, searches and drawings, which take a processor.
const WORKING: usize = 2;
const BODY_MAX: usize = 8 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Objects somebody can ask to be opened or shown in one drawing.
const NAMES_MAX: usize = 64;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page's files: path, type, text.
const FILES: &[(&str, &str, &str)] = &[
    ("/", "text/html; charset=utf-8", include_str!("static/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("static/style.css")),
    ("/icon.svg", "image/svg+xml", include_str!("static/icon.svg")),
    ("/main.js", "text/javascript; charset=utf-8", include_str!("static/main.js")),
    ("/ask.js", "text/javascript; charset=utf-8", include_str!("static/ask.js")),
    ("/drawing.js", "text/javascript; charset=utf-8", include_str!("static/drawing.js")),
    ("/live.js", "text/javascript; charset=utf-8", include_str!("static/live.js")),
    ("/search.js", "text/javascript; charset=utf-8", include_str!("static/search.js")),
    ("/trace.js", "text/javascript; charset=utf-8", include_str!("static/trace.js")),
];

/// What requests are answered from.
pub struct App {
    pub guard: Guard,
    pub sampler: Sampler,
    pub nodes: Nodes,
    pub tracer: Tracer,
    requests: Semaphore,
    work: Arc<Semaphore>,
}

type Shared = State<Arc<App>>;

impl App {
    /// Of its parts.
    pub fn new(guard: Guard, sampler: Sampler, nodes: Nodes, tracer: Tracer) -> Arc<Self> {
        let (requests, work) = (Semaphore::new(AT_ONCE), Arc::new(Semaphore::new(WORKING)));
        Arc::new(Self { guard, sampler, nodes, tracer, requests, work })
    }
}

/// All pages.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new()
        .route("/api/drawing", get(drawing))
        .route("/api/live", get(live))
        .route("/api/objects", get(objects))
        .route("/api/flows", get(flows))
        .route("/api/trace", post(trace));
    for &(path, kind, text) in FILES {
        router = router.route(path, get(move |headers: HeaderMap| async move { file(&headers, kind, text) }));
    }
    let guarded = middleware::from_fn_with_state(Arc::clone(&app), admit);
    router
        .fallback(async || error(StatusCode::NOT_FOUND, "there is no such page"))
        .layer(guarded)
        .with_state(app)
}

/// Who may not ask is told so; who may has a turn, and gets an answer that no other site can use.
async fn admit(State(app): Shared, request: Request, next: Next) -> Response {
    let judgement = app.guard.judge(request.headers(), request.uri().query());
    let mut answer = match (judgement, app.requests.try_acquire()) {
        (Judgement::WrongHost, _) => error(
            StatusCode::MISDIRECTED_REQUEST,
            "this page does not go by that name: use its address, or start it with --host NAME",
        ),
        (Judgement::Stranger, _) => error(
            StatusCode::UNAUTHORIZED,
            "show the token: open this address with ?token=TOKEN, or send Authorization: Bearer TOKEN",
        ),
        (Judgement::Login, _) => login(&app.guard),
        (Judgement::Welcome, Err(_)) => {
            error(StatusCode::SERVICE_UNAVAILABLE, "too many requests: try again in a moment")
        }
        (Judgement::Welcome, Ok(_turn)) => next.run(request).await,
    };
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    answer
}

/// The token goes out of the address, where others would see it.
fn login(guard: &Guard) -> Response {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SEE_OTHER;
    answer.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/"));
    if let Ok(cookie) = HeaderValue::from_str(&guard.set_cookie()) {
        answer.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    answer
}

fn error(status: StatusCode, text: &str) -> Response {
    body(status, "application/json", json!({ "error": text }).to_string())
}

fn body(status: StatusCode, kind: &'static str, text: impl Into<Body>) -> Response {
    let mut answer = Response::new(text.into());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// Nothing, if who asks has it already.
fn tagged(headers: &HeaderMap, tag: &str, answer: impl FnOnce() -> Response) -> Response {
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut known = known.flat_map(|value| value.split(',')).map(|it| it.trim().trim_start_matches("W/"));
    let mut answer = if known.any(|it| it == tag) {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        answer
    } else {
        answer()
    };
    if let Ok(tag) = HeaderValue::from_str(tag) {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    answer
}

/// The files of one version of this program never change.
fn file(headers: &HeaderMap, kind: &'static str, text: &'static str) -> Response {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    tagged(headers, &format!("\"{hash:016x}\""), || body(StatusCode::OK, kind, text))
}

fn as_json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => body(StatusCode::OK, "application/json", text),
        Err(wrong) => error(StatusCode::INTERNAL_SERVER_ERROR, &wrong.to_string()),
    }
}

fn unavailable(why: &anyhow::Error) -> Response {
    error(StatusCode::SERVICE_UNAVAILABLE, &format!("{why:#}"))
}

/// Does what takes a processor, in a thread that others do not wait for, a few at once.
async fn work(turns: &Arc<Semaphore>, task: impl FnOnce() -> Response + Send + 'static) -> Response {
    let Ok(turn) = Arc::clone(turns).acquire_owned().await else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the page is being stopped");
    };
    // The turn is the task's: it is done, or waits for a thread, also when who asked has hung up and this is dropped.
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        task()
    })
    .await;
    done.unwrap_or_else(|_| error(StatusCode::INTERNAL_SERVER_ERROR, "this request failed; see the log"))
}

#[derive(Deserialize)]
struct DrawingQuery {
    #[serde(default)]
    view: View,
    /// JSON: `{"open": [...], "show": [...]}`.
    #[serde(default)]
    wish: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Names {
    open: BTreeSet<String>,
    show: BTreeSet<String>,
}

async fn drawing(State(app): Shared, headers: HeaderMap, Query(query): Query<DrawingQuery>) -> Response {
    let names = match query.wish.as_str() {
        "" => Names::default(),
        text => match serde_json::from_str::<Names>(text) {
            Ok(names) if names.open.len() + names.show.len() <= NAMES_MAX => names,
            Ok(_) => {
                return error(StatusCode::BAD_REQUEST, &format!("wish: name at most {NAMES_MAX} objects"));
            }
            Err(wrong) => return error(StatusCode::BAD_REQUEST, &format!("wish: {wrong}")),
        },
    };
    let snapshot = match app.sampler.latest().await {
        Ok(snapshot) => snapshot,
        Err(why) => return unavailable(&why),
    };
    // A browser keeps one answer for each address, so the wish need not be in it.
    let objects = Arc::clone(&snapshot.look.objects);
    let tag = format!("\"{:x}-{}\"", objects.version, objects.epoch);
    let known = headers.clone();
    work(&app.work, move || {
        tagged(&known, &tag, || {
            as_json(&layout::draw(&objects, &Wish { view: query.view, open: names.open, show: names.show }))
        })
    })
    .await
}

/// What changes all the time.
#[derive(Serialize)]
struct Live<'a> {
    sample: u64,
    at_ms: u64,
    took_ms: u128,
    every_ms: u128,
    /// Looks fail; what is shown is what was seen before.
    error: &'a Option<String>,
    epoch: u32,
    node: &'a str,
    healthy: bool,
    complaints: &'a serde_json::Value,
    in_force: &'a serde_json::Value,
    drops: &'a [super::sampler::Drops],
    busy: &'a Option<Vec<super::rates::Busy>>,
    /// Connections and remembered decisions.
    flows: usize,
    /// Whether these are all.
    complete: bool,
    nodes: Vec<NodeLine>,
    /// Why the other nodes' states are not known.
    nodes_error: Option<String>,
}

/// How a node is.
#[derive(Serialize)]
struct NodeLine {
    name: String,
    vtep: String,
    here: bool,
    /// `ok`, `degraded`, `not running`; or, without etcd, how the way to it is.
    health: String,
    /// Revision in force and wanted, or the digest in force.
    revision: String,
    problems: Vec<String>,
}

fn node_lines(snapshot: &Snapshot, told: Option<&super::nodes::Told>) -> Vec<NodeLine> {
    let (objects, status) = (&snapshot.look.objects, &snapshot.look.status);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let lines = objects.nodes.iter().map(|node| {
        let mut line = NodeLine {
            name: node.name.clone(),
            vtep: node.vtep.clone(),
            here: node.name == objects.node,
            health: "unknown".to_owned(),
            revision: String::new(),
            problems: Vec::new(),
        };
        if line.here {
            line.health = if status["healthy"] == true { "ok" } else { "degraded" }.to_owned();
            let digest = text(&status["in_force"]["digest"]);
            let revision =
                u64::from_str_radix(&digest, 16).ok().filter(|_| !status["agent"]["store"].is_null());
            line.revision =
                revision.map_or_else(|| format!("topology {digest}"), |it| format!("revision {it}"));
            let complaints = status["complaints"].as_array().into_iter().flatten();
            line.problems = complaints.map(text).collect();
        } else if let Some(peer) =
            status["peers"].as_array().into_iter().flatten().find(|peer| peer["node"] == node.name.as_str())
        {
            line.health = format!("way {}", text(&peer["state"]));
        }
        match told.map(|told| (told.states.get(&node.name), &told.error)) {
            Some((Some(state), _)) if !line.here => {
                line.health = state.health.clone();
                line.revision = format!("revision {} of {}", state.in_force, state.wanted);
                line.problems = state.problems.clone();
            }
            Some((None, None)) if !line.here => line.health = "not running".to_owned(),
            _ => {}
        }
        line
    });
    lines.collect()
}

async fn live(State(app): Shared, headers: HeaderMap) -> Response {
    let snapshot = match app.sampler.latest().await {
        Ok(snapshot) => snapshot,
        Err(why) => return unavailable(&why),
    };
    let tag = format!("\"{}-{}\"", snapshot.number, snapshot.at_ms);
    let answer = || {
        let told = app.nodes.told();
        let (look, status) = (&snapshot.look, &snapshot.look.status);
        as_json(&Live {
            sample: snapshot.number,
            at_ms: snapshot.at_ms,
            took_ms: snapshot.took.as_millis(),
            every_ms: snapshot.every.as_millis(),
            error: &snapshot.error,
            epoch: look.objects.epoch,
            node: &look.objects.node,
            healthy: status["healthy"] == true,
            complaints: &status["complaints"],
            in_force: &status["in_force"],
            drops: &snapshot.drops,
            busy: &snapshot.busy,
            flows: look.flows.len(),
            complete: look.complete,
            nodes: node_lines(&snapshot, told.as_ref()),
            nodes_error: told.and_then(|told| told.error),
        })
    };
    // An error is of the moment, and so is the rest of the answer, while the last look stays the same.
    if snapshot.error.is_some() { answer() } else { tagged(&headers, &tag, answer) }
}

#[derive(Deserialize)]
struct TextQuery {
    #[serde(default)]
    text: String,
}

async fn objects(State(app): Shared, Query(TextQuery { text }): Query<TextQuery>) -> Response {
    search(&app, move |snapshot| find::objects(&snapshot.look.objects, &text)).await
}

async fn flows(State(app): Shared, Query(TextQuery { text }): Query<TextQuery>) -> Response {
    search(&app, move |snapshot| find::flows(snapshot, &text)).await
}

async fn search<T: Serialize>(
    app: &App,
    look: impl FnOnce(&Snapshot) -> anyhow::Result<T> + Send + 'static,
) -> Response {
    match app.sampler.latest().await {
        Err(why) => unavailable(&why),
        Ok(snapshot) => {
            work(&app.work, move || match look(&snapshot) {
                Ok(found) => as_json(&found),
                Err(wrong) => error(StatusCode::BAD_REQUEST, &format!("{wrong:#}")),
            })
            .await
        }
    }
}

/// Only from the page itself: another site's form can neither send JSON nor hide where it is from.
async fn trace(State(app): Shared, request: Request) -> Response {
    let headers = request.headers();
    let is_json = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    let is_foreign =
        headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
    if request.method() != Method::POST || !is_json || is_foreign {
        return error(StatusCode::BAD_REQUEST, "send application/json, from the page itself");
    }
    let read = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(request.into_body(), BODY_MAX)).await;
    let Ok(Ok(read)) = read else {
        return error(
            StatusCode::BAD_REQUEST,
            &format!("the request is longer than {BODY_MAX} bytes, or too slow"),
        );
    };
    let request: trace::Request = match serde_json::from_slice(&read) {
        Ok(request) => request,
        Err(wrong) => return error(StatusCode::BAD_REQUEST, &format!("the request: {wrong}")),
    };
    match app.tracer.trace(&request).await {
        Ok(journey) => body(StatusCode::OK, "application/json", journey.get().to_owned()),
        Err(Refusal::Wrong(text)) => error(StatusCode::BAD_REQUEST, &text),
        Err(Refusal::Failed(text)) => error(StatusCode::BAD_GATEWAY, &text),
        Err(Refusal::Busy) => {
            error(StatusCode::SERVICE_UNAVAILABLE, "other traces are being made: try again in a moment")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        task::{Context, Waker},
    };

    use super::*;

    #[tokio::test]
    async fn who_hangs_up_leaves_no_work_behind() {
        let turns = Arc::new(Semaphore::new(WORKING));
        let (begun, (open, gate)) = (Arc::new(AtomicUsize::new(0)), mpsc::channel::<()>());
        let gate = Arc::new(std::sync::Mutex::new(gate));
        // Held by each task from when it is handed over until it is done.
        let held = Arc::new(());
        for _ in 0..200 {
            let (begun, gate, held) = (Arc::clone(&begun), Arc::clone(&gate), Arc::clone(&held));
            let mut request = Box::pin(work(&turns, move || {
                let _held = held;
                begun.fetch_add(1, Ordering::Relaxed);
                // Until the test lets go of the other end.
                let _ = gate.lock().map(|gate| gate.recv());
                Response::default()
            }));
            // Asked, and gone before there is an answer.
            assert!(request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        assert_eq!(Arc::strong_count(&held) - 1, WORKING, "tasks under way or waiting");
        drop(open);
        let answer = tokio::time::timeout(Duration::from_secs(10), work(&turns, Response::default)).await;
        assert_eq!(answer.expect("a turn comes").status(), StatusCode::OK);
        assert!(begun.load(Ordering::Relaxed) <= WORKING);
    }
}
