//! The `vrouter` command line.

use std::{io::IsTerminal, process::ExitCode};

use crate::commands::{
    agent, apply, completions, conntrack, flows, get, map_dump, show, status, top, trace, validate,
};
use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

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
    Top(top::Args),
    MapDump(map_dump::Args),
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
        Command::Top(args) => top::run(&args),
        Command::MapDump(args) => map_dump::run(&args),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => completions::man(&args, Cli::command()),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("vrouter: {error:#}");
        ExitCode::FAILURE
    })
}

/// Logs go to stderr: for people on a terminal, as JSON otherwise. `RUST_LOG` chooses what.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if terminal {
        builder.with_target(false).with_ansi(std::env::var_os("NO_COLOR").is_none()).init();
    } else {
        builder.json().init();
    }
}
