//! `vrouter flows`: live connections in the topology's names, read from the pins: listed, counted, watched,
//! deleted.

use std::{
    collections::HashMap,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, bail};
use serde::Serialize;
use vrouter_common::flow::FlowKey;

use super::{InstanceArgs, columns::Columns};
use crate::{
    agent,
    clock::{Clock, Ticks},
    config,
    connections::{
        FlowTables, Flows, Judge, Names, Row, Standing, Timeouts,
        filter::{Filter, FilterArgs},
    },
    data_path::Pins,
    output::{Format, OutputArgs},
};

/// Show live flows: connections with names, state, translation, bytes and age
#[derive(clap::Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Action {
    /// Forget flows, whatever they are doing: their next packet is decided as a first one
    Delete(DeleteArgs),
}

/// What to list, and how.
#[derive(clap::Args, Clone, Debug)]
struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Print only how many there are
    #[arg(long, conflicts_with = "watch")]
    count: bool,
    /// Print at most this many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Look again every so many seconds; into a pipe, print what is new or has another state
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    watch: Option<u32>,
    #[command(flatten)]
    instance: InstanceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(clap::Args, Clone, Debug)]
struct DeleteArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Everything: needed if no filter is given
    #[arg(long)]
    all_flows: bool,
    #[command(flatten)]
    instance: InstanceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Lists, counts, watches or deletes.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.action {
        Some(Action::Delete(args)) => delete(args)?,
        None => list(&args.list)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What every look at the flow tables needs.
pub struct Looker {
    maps: PathBuf,
    tables: FlowTables,
    clock: Clock,
    timeouts: Timeouts,
    decision_idle: Duration,
}

impl Looker {
    /// Opens the pins. Timeouts are the running agent's, or what its configuration file says.
    pub fn open(instance: &InstanceArgs) -> Result<Self> {
        let pins: Pins = instance.pins()?;
        let maps = pins.maps();
        let (timeouts, idle_seconds) = timeouts(&instance.instance);
        Ok(Self {
            tables: FlowTables::open(&maps)?,
            clock: Clock::open(&pins)?,
            maps,
            timeouts,
            decision_idle: Duration::from_secs(u64::from(idle_seconds)),
        })
    }

    /// The clock of flow entries.
    pub fn ticks(&self) -> Result<Ticks> {
        self.clock.read()
    }

    /// Where the pinned maps are.
    pub fn maps(&self) -> &Path {
        &self.maps
    }

    /// Tells of every connection that is meant, until `tell` has enough (false).
    pub fn look(
        &self,
        names: &Names,
        filter: &Filter,
        mut tell: impl FnMut(&Flows, &Standing) -> Result<bool>,
    ) -> Result<()> {
        let judge = Judge {
            ticks: self.clock.read()?,
            timeouts: self.timeouts.clone(),
            decision_idle: self.decision_idle,
        };
        let mut walk = crate::connections::tables::Walk::new();
        let mut enough = false;
        while !enough {
            let step = self.tables.step(
                &mut walk,
                |_| true,
                |flows| {
                    if enough {
                        return Ok(());
                    }
                    let standing = judge.standing(flows);
                    if filter.matches(flows, &standing, names) {
                        enough = !tell(flows, &standing)?;
                    }
                    Ok(())
                },
            )?;
            if step.is_none() {
                break;
            }
        }
        Ok(())
    }
}

fn timeouts(instance: &str) -> (Timeouts, u32) {
    let of_agent = || {
        let status = agent::ask(&agent::run_dir(instance), "status")?;
        let timeouts = serde_json::from_value(status["timeouts"].clone()).ok()?;
        let idle_seconds = u32::try_from(status["flow_idle_seconds"].as_u64()?).ok()?;
        Some((timeouts, idle_seconds))
    };
    of_agent().unwrap_or_else(config::timeouts_of_file)
}

fn list(args: &ListArgs) -> Result<()> {
    let looker = Looker::open(&args.instance)?;
    if let Some(seconds) = args.watch {
        return watch(args, &looker, Duration::from_secs(u64::from(seconds)));
    }
    let names = Names::read(looker.maps())?;
    let filter = args.filter.resolve(&names, looker.maps())?;
    if args.count {
        #[derive(Serialize)]
        struct Count {
            count: u64,
        }
        let mut count = 0;
        looker.look(&names, &filter, |_, _| {
            count += 1;
            Ok(args.limit.is_none_or(|limit| count < limit))
        })?;
        return args.output.print(&Count { count }, |count| count.count.to_string());
    }
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let printed = match args.output.output {
        Format::Table => print_table(args, &looker, &names, &filter, args.limit, &mut out),
        Format::Json => print_json(args, &looker, &names, &filter, &mut out),
    };
    hung_up_is_fine(printed.and_then(|()| Ok(out.flush()?)))
}

fn print_table(
    args: &ListArgs,
    looker: &Looker,
    names: &Names,
    filter: &Filter,
    limit: Option<u64>,
    out: &mut impl Write,
) -> Result<()> {
    let mut columns = Columns::new(HEADINGS);
    let (mut shown, mut more) = (0, false);
    looker.look(names, filter, |flows, standing| {
        if limit.is_some_and(|limit| shown >= limit) {
            more = true;
            return Ok(false);
        }
        shown += 1;
        columns.add(cells(&Row::new(flows, standing, names)), out)?;
        Ok(true)
    })?;
    columns.finish(out)?;
    if more && args.limit.is_some() {
        eprintln!("vrouter: there are more than {shown}; --count says how many");
    }
    Ok(())
}

/// One array, an object on each line, however many there are.
fn print_json(
    args: &ListArgs,
    looker: &Looker,
    names: &Names,
    filter: &Filter,
    out: &mut impl Write,
) -> Result<()> {
    let mut shown = 0;
    write!(out, "[")?;
    looker.look(names, filter, |flows, standing| {
        write!(out, "{}\n  ", if shown == 0 { "" } else { "," })?;
        serde_json::to_writer(&mut *out, &Row::new(flows, standing, names))?;
        shown += 1;
        Ok(args.limit.is_none_or(|limit| shown < limit))
    })?;
    writeln!(out, "{}]", if shown == 0 { "" } else { "\n" })?;
    Ok(())
}

const HEADINGS: [&str; 12] = [
    "proto",
    "state",
    "original",
    "translated",
    "from",
    "to",
    "packets",
    "bytes",
    "age",
    "idle",
    "left",
    "rule",
];

fn cells(row: &Row) -> [String; 12] {
    let both = |there: u64, back: u64| format!("{there}/{back}");
    [
        row.protocol.clone(),
        row.state.to_owned(),
        row.original.for_people(),
        row.translation(),
        row.from.for_people(),
        row.to.for_people(),
        both(row.original_packets, row.reply_packets),
        both(row.original_bytes, row.reply_bytes),
        duration(row.age_seconds),
        duration(row.idle_seconds),
        duration(row.timeout_seconds),
        row.rule.clone().unwrap_or_default(),
    ]
}

/// Seconds in two units at most.
fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// On a terminal the screen is drawn again; otherwise lines are only added.
fn watch(args: &ListArgs, looker: &Looker, every: Duration) -> Result<()> {
    let stdout = std::io::stdout();
    let redraw = stdout.is_terminal() && args.output.output == Format::Table;
    let mut known: HashMap<FlowKey, (u32, &'static str)> = HashMap::new();
    loop {
        // Names change with the topology.
        let names = Names::read(looker.maps())?;
        let filter = args.filter.resolve(&names, looker.maps())?;
        let mut out = std::io::BufWriter::new(stdout.lock());
        let round = if redraw {
            // As many as fit, less the headings and the line the cursor is on.
            let fits =
                args.limit.unwrap_or_else(|| u64::from(terminal_rows(&stdout)).saturating_sub(2).max(1));
            write!(out, "\x1b[H\x1b[2J").map_err(Into::into).and_then(|()| {
                print_table(
                    &ListArgs { limit: None, ..args.clone() },
                    looker,
                    &names,
                    &filter,
                    Some(fits),
                    &mut out,
                )
            })
        } else {
            append(args, looker, &names, &filter, &mut known, &mut out)
        };
        if let Err(error) = round.and_then(|()| Ok(out.flush()?)) {
            return hung_up_is_fine(Err(error));
        }
        drop(out);
        if is_hung_up_within(&stdout, every) {
            return Ok(());
        }
    }
}

/// Waits, but no longer than there is a reader: there may be nothing to write to it for hours.
pub(super) fn is_hung_up_within(out: &impl std::os::fd::AsRawFd, time: Duration) -> bool {
    let mut poll = libc::pollfd { fd: out.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one descriptor, which outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, time.as_millis() as libc::c_int) };
    poll.revents & libc::POLLERR != 0
}

/// Prints what is new or has another state than in the last round.
fn append(
    args: &ListArgs,
    looker: &Looker,
    names: &Names,
    filter: &Filter,
    known: &mut HashMap<FlowKey, (u32, &'static str)>,
    out: &mut impl Write,
) -> Result<()> {
    let mut seen = HashMap::new();
    let mut columns = Columns::new(HEADINGS);
    if !known.is_empty() {
        columns.omit_headings();
    }
    looker.look(names, filter, |flows, standing| {
        let (key, mark) = (flows.original_key(), (flows.first().flow.created, standing.state.name()));
        if known.get(&key) != Some(&mark) && seen.get(&key) != Some(&mark) {
            let row = Row::new(flows, standing, names);
            match args.output.output {
                Format::Table => columns.add(cells(&row), out)?,
                Format::Json => {
                    serde_json::to_writer(&mut *out, &row)?;
                    writeln!(out)?;
                }
            }
        }
        seen.insert(key, mark);
        Ok(args.limit.is_none_or(|limit| (seen.len() as u64) < limit))
    })?;
    if args.output.output == Format::Table && columns.has_rows() {
        columns.finish(out)?;
    }
    *known = seen;
    Ok(())
}

fn terminal_rows(terminal: &impl std::os::fd::AsRawFd) -> u16 {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request fills a winsize, which outlives the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if result == 0 && size.ws_row > 0 { size.ws_row } else { 24 }
}

/// Whoever read us has enough: `vrouter flows | head`.
pub fn hung_up_is_fine(result: Result<()>) -> Result<()> {
    let hung_up = |error: &anyhow::Error| {
        let kind = |error: &(dyn std::error::Error + 'static)| {
            let io = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            io.or_else(|| {
                error.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind)
            })
        };
        error.chain().any(|error| kind(error) == Some(std::io::ErrorKind::BrokenPipe))
    };
    match result {
        Err(error) if hung_up(&error) => Ok(()),
        result => result,
    }
}

fn delete(args: &DeleteArgs) -> Result<()> {
    if args.filter.is_empty() && !args.all_flows {
        bail!(
            "say which flows: give a filter (--port, --address, ...), or --all-flows if you mean all of them"
        );
    }
    if !args.filter.is_empty() && args.all_flows {
        bail!("--all-flows and a filter contradict each other: give one of them");
    }
    #[derive(Default, Serialize)]
    struct Deleted {
        connections: u64,
        decisions: u64,
    }
    let looker = Looker::open(&args.instance)?;
    let names = Names::read(looker.maps())?;
    let filter = args.filter.resolve(&names, looker.maps())?;
    let mut deleted = Deleted::default();
    looker.look(&names, &filter, |flows, _| {
        looker.tables.remove(flows)?;
        *(if flows.is_tracked() { &mut deleted.connections } else { &mut deleted.decisions }) += 1;
        Ok(true)
    })?;
    args.output.print(&deleted, |deleted| match (deleted.connections, deleted.decisions) {
        (connections, 0) => format!("{connections} connections deleted"),
        (connections, decisions) => {
            format!("{connections} connections and {decisions} remembered decisions deleted")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m00s"),
            (3599, "59m59s"),
            (3600, "1h00m"),
            (86_399, "23h59m"),
            (432_000, "5d00h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn a_reader_that_hangs_up_is_no_failure() {
        let broken = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(hung_up_is_fine(Err(broken().into())).is_ok());
        assert!(hung_up_is_fine(Err(serde_json::Error::io(broken()).into())).is_ok());
        assert!(hung_up_is_fine(Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into())).is_err());
    }
}
