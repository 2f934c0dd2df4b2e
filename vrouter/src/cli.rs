//! The `vrouter` command line.

use std::{io::IsTerminal, process::ExitCode};

use crate::{
    commands::{
        agent, apply, completions, conntrack, flows, get, map_dump, monitor, show, status, top, trace,
        validate, web,
    },
    output::plain_lines,
};
use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// A distributed virtual router whose data path is eBPF
#[derive(Parser)]
#[command(name = "vrouter", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Agent(agent::Args),
    Validate(validate::Args),
    Apply(apply::ApplyArgs),
    Get(get::GetArgs),
    Delete(apply::DeleteArgs),
    Diff(apply::DiffArgs),
    Export(get::ExportArgs),
    Port(apply::PortArgs),
    Status(status::Args),
    Show(show::Args),
    Flows(flows::Args),
    Trace(trace::Args),
    Conntrack(conntrack::Args),
    Monitor(monitor::Args),
    Top(top::Args),
    MapDump(map_dump::Args),
    Web(web::Args),
    Completions(completions::Args),
    Man(completions::ManArgs),
}

/// Does what the command line says.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    let outcome = match cli.command {
        Command::Agent(args) => agent::run(args),
        Command::Validate(args) => validate::run(args),
        Command::Apply(args) => apply::apply(args),
        Command::Get(args) => get::get(args),
        Command::Delete(args) => apply::delete(args),
        Command::Diff(args) => apply::diff(args),
        Command::Export(args) => get::export(args),
        Command::Port(args) => apply::port(args),
        Command::Status(args) => status::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Flows(args) => flows::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Conntrack(args) => conntrack::run(&args),
        Command::Monitor(args) => monitor::run(&args),
        Command::Top(args) => top::run(&args),
        Command::MapDump(args) => map_dump::run(&args),
        Command::Web(args) => web::run(args),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => completions::man(&args, Cli::command()),
    };
    outcome.unwrap_or_else(|error| {
        // It may quote what others wrote.
        eprintln!("vrouter: {}", plain_lines(&format!("{error:#}")));
        ExitCode::FAILURE
    })
}

/// Logs go to stderr: for people on a terminal, with their fields to the journal if that is what stderr is, as JSON
/// otherwise. `RUST_LOG` chooses what.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    let stderr = nix::sys::stat::fstat(std::io::stderr()).ok().map(|about| (about.st_dev, about.st_ino));
    let stream = std::env::var("JOURNAL_STREAM").ok();
    if is_journal(stream.as_deref(), stderr)
        && let Ok(journal) = tracing_journald::layer()
    {
        tracing_subscriber::registry().with(filter).with(journal).init();
        return;
    }
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if terminal {
        builder.with_target(false).with_ansi(std::env::var_os("NO_COLOR").is_none()).init();
    } else {
        builder.json().init();
    }
}

/// Whether `JOURNAL_STREAM`, as systemd sets it (device and inode), is about this stderr, and not that of a parent.
fn is_journal(stream: Option<&str>, stderr: Option<(u64, u64)>) -> bool {
    let said = stream.and_then(|stream| {
        let (device, inode) = stream.split_once(':')?;
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    });
    said.is_some() && said == stderr
}

#[cfg(test)]
mod tests {
    use super::is_journal;

    #[test]
    fn fields_go_to_the_journal_only_where_stderr_does() {
        assert!(is_journal(Some("9:1234"), Some((9, 1234))));
        for (stream, stderr) in [
            (None, Some((9, 1234))),
            (Some("9:1235"), Some((9, 1234))),
            (Some("8:1234"), Some((9, 1234))),
            (Some("9"), Some((9, 1234))),
            (Some("nine:1234"), Some((9, 1234))),
            (Some("9:1234"), None),
        ] {
            assert!(!is_journal(stream, stderr), "{stream:?} {stderr:?}");
        }
    }
}
