//! The one thread that looks at the maps: at its own rate, while anybody asks, and never for more than a small
//! part of a processor.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::sync::watch;
use vrouter_common::reason::DropReason;

use super::{
    rates::{self, Busy},
    source::{Look, Source},
};
use crate::{
    clock::Ticks,
    rates::meter::{Meter, since},
};

/// A look takes at most one part in this many of a processor's time.
const SHARE: u32 = 20;
/// After nobody asked for so long, nothing is looked at.
const REST_AFTER: Duration = Duration::from_secs(15);
/// How long somebody who asks waits for the first look, or the first after a rest.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known, until the next look.
#[derive(Clone)]
pub struct Snapshot {
    /// Counts looks.
    pub number: u64,
    pub look: Look,
    pub drops: Vec<Drops>,
    /// `None`: there is nothing recent to compare with yet.
    pub busy: Option<Vec<Busy>>,
    /// When it was, in milliseconds since 1970.
    pub at_ms: u64,
    /// How long it took.
    pub took: Duration,
    /// How long it is until the next.
    pub every: Duration,
    /// Why later looks fail; the rest is what was seen before.
    pub error: Option<String>,
    looked: Instant,
}

/// Packets dropped for a reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drops {
    pub reason: &'static str,
    pub meaning: &'static str,
    pub packets: u64,
    /// Since the last look.
    pub per_second: f64,
}

/// The thread, as those see it who ask. It ends with its process.
pub struct Sampler {
    news: watch::Receiver<Option<Arc<Snapshot>>>,
    asked: Arc<Asked>,
}

struct Asked {
    last: Mutex<Instant>,
    wake: Condvar,
}

impl Asked {
    fn last(&self) -> MutexGuard<'_, Instant> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rest(&self) {
        let last = self.last();
        drop(self.wake.wait_while(last, |last| last.elapsed() > REST_AFTER));
    }
}

impl Sampler {
    /// Starts it.
    pub fn start(mut source: impl Source + 'static, every: Duration) -> Result<Self> {
        let (sender, news) = watch::channel(None);
        let asked = Arc::new(Asked { last: Mutex::new(Instant::now()), wake: Condvar::new() });
        let of_thread = Arc::clone(&asked);
        let thread = std::thread::Builder::new().name("sampler".to_owned());
        let work = move || {
            let mut meter = None;
            while !sender.is_closed() {
                of_thread.rest();
                let before = sender.borrow().clone();
                let next = next(&mut source, before.as_deref(), &mut meter, every);
                let pause = next.every;
                sender.send_replace(Some(Arc::new(next)));
                std::thread::sleep(pause);
            }
        };
        thread.spawn(work).context("cannot start the thread that looks at the maps")?;
        Ok(Self { news, asked })
    }

    /// What is known; waits for it if there was a rest.
    pub async fn latest(&self) -> Result<Arc<Snapshot>> {
        *self.asked.last() = Instant::now();
        self.asked.wake.notify_all();
        let mut news = self.news.clone();
        let fresh = |snapshot: &Option<Arc<Snapshot>>| {
            snapshot.as_ref().is_some_and(|it| it.looked.elapsed() < it.every * 3 + Duration::from_secs(1))
        };
        match tokio::time::timeout(PATIENCE, news.wait_for(fresh)).await {
            Ok(Ok(snapshot)) => match &*snapshot {
                Some(snapshot) if snapshot.number > 0 => Ok(Arc::clone(snapshot)),
                Some(snapshot) => bail!("{}", snapshot.error.as_deref().unwrap_or("nothing was seen yet")),
                None => bail!("nothing was seen yet"),
            },
            Ok(Err(_)) => bail!("the thread that looks at the maps has ended: restart `vrouter web`"),
            Err(_) => bail!("looking at the maps takes longer than {} s: try again", PATIENCE.as_secs()),
        }
    }
}

/// Looks, and compares with what was seen before.
fn next(
    source: &mut impl Source,
    before: Option<&Snapshot>,
    meter: &mut Option<(Instant, Meter)>,
    every: Duration,
) -> Snapshot {
    let begin = Instant::now();
    let look = source.look();
    let took = begin.elapsed();
    let every = every.max(took * SHARE);
    let number = before.map_or(0, |before| before.number);
    let look = match look {
        Ok(look) => look,
        Err(error) => {
            let error = Some(format!("{error:#}"));
            tracing::debug!("looking at the maps: {}", error.as_deref().unwrap_or_default());
            *meter = None;
            let empty = || Snapshot {
                number: 0,
                look: Look::empty(),
                drops: Vec::new(),
                busy: None,
                at_ms: now_ms(),
                took,
                every,
                error: None,
                looked: begin,
            };
            let before = before.cloned().unwrap_or_else(empty);
            return Snapshot { busy: None, error, every, looked: begin, ..before };
        }
    };
    let old = meter.take().filter(|(then, _)| then.elapsed() < every * 3 + took);
    let seconds = old.as_ref().map(|(then, _)| (begin - *then).as_secs_f64());
    let mut since_then = old.map_or_else(Meter::default, |(_, meter)| meter);
    // The first look says where counters are.
    let counted = rates::busy(&mut since_then, &look, seconds.unwrap_or(1.0));
    let busy = seconds.map(|_| counted);
    let drops = look.drops.iter().map(|&(reason, tally)| {
        let last = before.and_then(|before| before.packets(reason));
        let risen = last.map_or(0, |last| since(last, tally.packets));
        Drops {
            reason: reason.name(),
            meaning: reason.describe().trim(),
            packets: tally.packets,
            per_second: seconds.map_or(0.0, |seconds| risen as f64 / seconds.max(f64::EPSILON)),
        }
    });
    let drops = drops.collect();
    *meter = Some((begin, since_then));
    Snapshot {
        number: number + 1,
        look,
        drops,
        busy,
        at_ms: now_ms(),
        took,
        every,
        error: None,
        looked: begin,
    }
}

impl Snapshot {
    fn packets(&self, reason: DropReason) -> Option<u64> {
        self.look.drops.iter().find(|(it, _)| *it == reason).map(|(_, tally)| tally.packets)
    }
}

impl Look {
    pub(super) fn empty() -> Self {
        Self {
            objects: Arc::default(),
            names: Arc::default(),
            index: Arc::default(),
            ticks: Ticks { now: 0, per_second: 1 },
            flows: Vec::new(),
            complete: true,
            drops: Vec::new(),
            status: serde_json::Value::Null,
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
