//! `vrouter monitor`: what the data path drops, and which flows begin and end, as it happens.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, StdoutLock, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use serde::Serialize;

use super::{
    InstanceArgs,
    flows::{hung_up_is_fine, is_hung_up_within},
};
use crate::{
    clock::Clock,
    monitor::{FilterArgs, Listener, Teller, listener::Counts, pcapng::Writer},
    output::{Format, OutputArgs},
};

/// Show drops and flows as they happen, with names and reasons
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    pub filter: FilterArgs,
    /// End after so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after so many seconds
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub seconds: Option<u64>,
    /// Write packets, each with what became of it as a comment, to a pcapng file for Wireshark (-: to standard output)
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    #[command(flatten)]
    pub instance: InstanceArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Between two looks at whether the topology is another.
const REFRESH: Duration = Duration::from_secs(1);
/// The longest nothing is done.
const WAIT: Duration = Duration::from_millis(250);
/// Records after which the lease is looked at.
const RECORDS: u32 = 256;

/// How it went.
#[derive(Debug, Serialize)]
struct Summary {
    what: &'static str,
    /// Printed or written.
    seen: u64,
    #[serde(flatten)]
    counts: Counts,
}

/// Where records go.
enum Sink {
    Lines(BufWriter<StdoutLock<'static>>),
    Json(BufWriter<StdoutLock<'static>>),
    Stdout(Writer<BufWriter<StdoutLock<'static>>>),
    File(Writer<BufWriter<File>>),
}

static ENDED: AtomicBool = AtomicBool::new(false);

extern "C" fn end(_signal: libc::c_int) {
    ENDED.store(true, Ordering::Relaxed);
}

/// Listens until it has enough, or is told to end.
pub fn run(args: &Args) -> Result<ExitCode> {
    let pins = args.instance.pins()?;
    let mut teller = Teller::open(&pins.maps(), Clock::open(&pins)?.read()?.per_second)?;
    let filter = args.filter.resolve(teller.names(), &pins.maps())?;
    let mut sink = Sink::open(args)?;
    let mut listener = Listener::open(&pins, &args.instance.instance, filter.set)?;
    end_at_signals()?;
    eprintln!("vrouter: listening; Ctrl-C ends it");
    let began = Instant::now();
    let over = |seen: u64| {
        ENDED.load(Ordering::Relaxed)
            || args.count.is_some_and(|count| seen >= count)
            || args.seconds.is_some_and(|seconds| began.elapsed() >= Duration::from_secs(seconds))
    };
    let (mut seen, mut lost, mut refresh) = (0, 0, Instant::now() + REFRESH);
    let mut listen = || -> Result<()> {
        while !over(seen) {
            let left = args.seconds.map_or(WAIT, |seconds| {
                Duration::from_secs(seconds).saturating_sub(began.elapsed()).max(Duration::from_millis(1))
            });
            listener.wait(left.min(WAIT))?;
            let mut taken = 0;
            while !over(seen)
                && let Some((record, packet)) = listener.take()
            {
                let time = listener.time(&record);
                let (mut told, keys) = teller.tell(&record, &packet, time);
                let kept = filter.keep(&packet);
                told.set_packet(kept);
                if filter.matches(&told, &keys) && sink.put(&told, time, kept, record.len)? {
                    seen += 1;
                }
                taken += 1;
                if taken % RECORDS == 0 {
                    listener.keep()?;
                }
            }
            sink.flush()?;
            if Instant::now() >= refresh {
                // There may be nothing to write for hours.
                if is_hung_up_within(&std::io::stdout(), Duration::ZERO) {
                    break;
                }
                refresh = Instant::now() + REFRESH;
                listener.check()?;
                teller.refresh()?;
                let counts = listener.counts()?;
                if counts.lost > lost {
                    eprintln!(
                        "vrouter: {} records lost: there are more than can be read",
                        counts.lost - lost
                    );
                    lost = counts.lost;
                }
            }
        }
        Ok(())
    };
    let listened = listen();
    let summary = Summary { what: "summary", seen, counts: listener.counts()? };
    // Before anything is printed, which may take its time.
    drop(listener);
    hung_up_is_fine(listened.and_then(|()| sink.end(&summary)))?;
    Ok(ExitCode::SUCCESS)
}

/// SIGINT and SIGTERM end it in order: without `SA_RESTART`, so that whatever waits is woken.
fn end_at_signals() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot wait for {signal}"))?;
    }
    Ok(())
}

impl Sink {
    fn open(args: &Args) -> Result<Self> {
        let stdout = || BufWriter::new(std::io::stdout().lock());
        let capture = args.filter.capture;
        Ok(match (&args.write, args.output.output) {
            (Some(path), _) if path == Path::new("-") => Self::Stdout(Writer::new(stdout(), capture)?),
            (Some(path), _) => {
                // What workloads send is nobody else's business.
                let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
                let file = file.with_context(|| format!("cannot create {}", path.display()))?;
                Self::File(Writer::new(BufWriter::new(file), capture)?)
            }
            (None, Format::Table) => Self::Lines(stdout()),
            (None, Format::Json) => Self::Json(stdout()),
        })
    }

    /// Whether it took it: what has no packet is in no file of packets.
    fn put(
        &mut self,
        told: &crate::monitor::Told,
        time: std::time::SystemTime,
        packet: &[u8],
        length: u32,
    ) -> Result<bool> {
        match self {
            Self::Lines(out) => writeln!(out, "{}", told.line())?,
            Self::Json(out) => {
                serde_json::to_writer(&mut *out, told)?;
                writeln!(out)?;
            }
            Self::Stdout(_) | Self::File(_) if packet.is_empty() => return Ok(false),
            Self::Stdout(writer) => writer.add(told, time, packet, length)?,
            Self::File(writer) => writer.add(told, time, packet, length)?,
        }
        Ok(true)
    }

    fn flush(&mut self) -> Result<()> {
        match self {
            Self::Lines(out) | Self::Json(out) => Ok(out.flush()?),
            Self::Stdout(writer) => writer.flush(),
            Self::File(writer) => writer.flush(),
        }
    }

    /// Says how it went: programs find it in the last line.
    fn end(mut self, summary: &Summary) -> Result<()> {
        if let Self::Json(out) = &mut self {
            serde_json::to_writer(&mut *out, summary)?;
            writeln!(out)?;
            return self.flush();
        }
        let Summary { seen, counts: Counts { skipped, lost, deaf_milliseconds, .. }, .. } = summary;
        let mut line = format!("vrouter: {seen} seen, {lost} lost");
        if *skipped > 0 {
            line += &format!(", {skipped} left out by sampling");
        }
        if *deaf_milliseconds > 0 {
            line += &format!(", not listening for {deaf_milliseconds} ms (this process was held up)");
        }
        eprintln!("{line}");
        self.flush()
    }
}
