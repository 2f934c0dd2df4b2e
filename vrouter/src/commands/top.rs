//! `vrouter top`: rates by port, router, drop reason, table and node, full screen or sample by sample.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use crossterm::event::{self, Event};
use nix::sys::signal::{SigSet, Signal};

use super::{InstanceArgs, flows::hung_up_is_fine, store::StoreCommand};
use crate::{
    config,
    output::{Format, OutputArgs},
    top::{
        fleet::Fleet,
        grid::Order,
        sample::Sample,
        sampler::{Sampler, pace},
        screen::{After, Screen},
        views::{self, View},
    },
};

/// How soon a signal or a new sample is seen.
const GLANCE: Duration = Duration::from_millis(50);

/// Show rates by port, router, drop reason, table and node, full screen
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Print samples one after the other instead: what happens anyway if this is no terminal, or with JSON
    #[arg(long, short)]
    batch: bool,
    /// End after so many samples; without it, when told to
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    iterations: Option<u64>,
    /// Seconds between two reads; more if reading would take more than a tenth of the time
    #[arg(long, short = 'd', value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    interval: Duration,
    /// What to show: full screen the first, otherwise the only
    #[arg(long)]
    view: Option<View>,
    /// Only rows with this in a name
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    #[command(flatten)]
    instance: InstanceArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    store: StoreCommand,
}

/// Shows the screen, or prints.
pub fn run(args: &Args) -> Result<ExitCode> {
    let sampler = Sampler::open(&args.instance, fleet(args)?)?;
    let is_terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    if args.batch || args.output.output == Format::Json || !is_terminal || is_dumb {
        hung_up_is_fine(print(args, sampler))?;
    } else {
        show(args, sampler)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Other nodes are asked how they are if the flags or this node's configuration say where etcd is.
fn fleet(args: &Args) -> Result<Option<Fleet>> {
    let is_asked_for = !args.store.store.endpoints.is_empty() || args.store.config.is_some();
    match config::store(args.store.store.clone(), args.store.config.as_deref()) {
        Ok((config, _)) => Fleet::follow(config).map(Some),
        Err(error) if is_asked_for => Err(error),
        Err(_) => Ok(None),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    if !(0.1..=3600.0).contains(&seconds) {
        return Err("give 0.1 to 3600 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Prints samples: tables, or a line of JSON each.
fn print(args: &Args, mut sampler: Sampler) -> Result<()> {
    let mut start = Instant::now();
    sampler.read()?;
    let mut printed = 0;
    while args.iterations.is_none_or(|most| printed < most) {
        thread::sleep(pace(args.interval, start.elapsed()).saturating_sub(start.elapsed()));
        start = Instant::now();
        let mut sample = sampler.read()?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        match args.output.output {
            Format::Json => {
                views::keep(&mut sample, args.view, args.filter.as_deref().unwrap_or(""));
                serde_json::to_writer(&mut out, &sample)?;
                writeln!(out)?;
            }
            Format::Table => out.write_all(tables(args, &sample, printed > 0).as_bytes())?,
        }
        out.flush()?;
        printed += 1;
    }
    Ok(())
}

fn tables(args: &Args, sample: &Sample, is_later: bool) -> String {
    let (title, health, totals) = (views::title(sample), views::health(sample), views::totals(sample));
    let mut out = format!("{}{title}\n{health}\n{totals}\n", if is_later { "\n" } else { "" });
    for view in View::ALL.into_iter().filter(|&view| args.view.is_none_or(|wanted| wanted == view)) {
        let mut grid = view.grid(sample);
        grid.filter(args.filter.as_deref().unwrap_or(""));
        grid.sort(Order::default());
        out += &format!("\n{}\n{}", view.name(), grid.print());
    }
    out
}

/// The full screen. Samples are taken beside it, so that keys are answered while a large table is read.
fn show(args: &Args, sampler: Sampler) -> Result<()> {
    // Blocked in every thread, and asked for: a terminal is always left as it was found.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    let paused = Arc::new(AtomicBool::new(false));
    let (tell, told) = sync_channel(1);
    let sampling = thread::Builder::new().name("sampler".to_owned()).spawn({
        let (interval, paused) = (args.interval, Arc::clone(&paused));
        move || sample(sampler, interval, &paused, &tell)
    });
    sampling.context("cannot start a thread")?;
    let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut screen = Screen::new(color, args.view.unwrap_or_default(), args.filter.as_deref().unwrap_or(""));
    let mut terminal = Terminal::enter()?;
    let shown = interact(&mut terminal, &mut screen, &told, &paused, args.iterations, &signals);
    drop(terminal);
    shown
}

/// Until told to end.
fn interact(
    terminal: &mut Terminal,
    screen: &mut Screen,
    told: &Receiver<Result<Sample>>,
    paused: &AtomicBool,
    most: Option<u64>,
    signals: &SigSet,
) -> Result<()> {
    let mut left = most;
    let mut is_stale = true;
    loop {
        loop {
            match told.try_recv() {
                Ok(sample) => {
                    let sample = sample?;
                    if left == Some(0) {
                        return Ok(());
                    }
                    if sample.interval_seconds.is_some() {
                        left = left.map(|left| left - 1);
                    }
                    screen.take(sample);
                    is_stale = true;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    bail!("reading the data path's maps has ended unexpectedly")
                }
            }
        }
        if std::mem::take(&mut is_stale) {
            terminal.0.draw(|frame| screen.draw(frame)).context("cannot draw")?;
        }
        if is_pending(signals) {
            return Ok(());
        }
        if !event::poll(GLANCE).context("cannot read the keyboard")? {
            continue;
        }
        is_stale = true;
        match event::read().context("cannot read the keyboard")? {
            Event::Key(key) => match screen.key(&key) {
                After::End => return Ok(()),
                After::Redraw => terminal.forget()?,
                After::Nothing => paused.store(screen.is_paused(), Ordering::Relaxed),
            },
            Event::Resize(..) => terminal.forget()?,
            _ => {}
        }
    }
}

/// Whether one of these blocked signals has come.
fn is_pending(signals: &SigSet) -> bool {
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a set and a time that outlive the call; what came need not be told in detail.
    unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), &raw const at_once) > 0 }
}

/// Takes samples until nobody wants them.
fn sample(mut sampler: Sampler, interval: Duration, paused: &AtomicBool, tell: &SyncSender<Result<Sample>>) {
    loop {
        let start = Instant::now();
        let sample = sampler.read();
        let took = start.elapsed();
        let is_over = sample.is_err();
        if tell.send(sample).is_err() || is_over {
            return;
        }
        thread::sleep(pace(interval, took).saturating_sub(start.elapsed()));
        while paused.load(Ordering::Relaxed) {
            thread::sleep(GLANCE);
        }
    }
}

/// The terminal while it is ours. It is given back whatever happens: at the end, on an error, on a panic.
struct Terminal(ratatui::DefaultTerminal);

impl Terminal {
    fn enter() -> Result<Self> {
        // With a hook for panics that gives the terminal back before it says what happened.
        Ok(Self(ratatui::try_init().context("cannot use this terminal; --batch prints without it")?))
    }

    /// Lets the next drawing be of everything. (Not by `clear`, which asks the terminal where its cursor is, and
    /// fails if that does not answer in time.)
    fn forget(&mut self) -> Result<()> {
        let size = self.0.size().context("cannot ask the terminal for its size")?;
        self.0.resize(size.into()).context("cannot draw")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
        // The cursor is hidden while it is drawn.
        let _ = self.0.show_cursor();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_numbers_within_reason() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "0.01", "3601", "NaN", "inf", "soon", ""] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
    }
}
