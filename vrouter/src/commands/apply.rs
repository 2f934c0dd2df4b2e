//! `vrouter apply`, `delete` and `diff`: change the topology in etcd, or see what would change.

use std::{fmt::Write as _, io::IsTerminal as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Map, Value};

use super::store::{self, StoreCommand};
use crate::{
    output::{OutputArgs, plain_lines},
    store::{
        Store,
        change::{self, Plan, Progress, Step, Wish},
        keys::ObjectName,
        record::Record,
    },
    topology::{self, Kind},
};

/// How a change is waited for.
#[derive(clap::Args, Clone, Debug)]
pub struct WaitArgs {
    /// Return when every node that runs has it in force
    #[arg(long)]
    pub wait: bool,
    /// How long to wait for them
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "wait")]
    pub timeout: u64,
}

/// Store a document's objects in etcd: all of them or none
#[derive(clap::Args, Clone, Debug)]
pub struct ApplyArgs {
    /// The document, in YAML or JSON; `-` reads standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: PathBuf,
    /// Remove every object that is not in the document
    #[arg(long)]
    pub prune: bool,
    /// Only if the last change is this revision, as `vrouter diff` told it
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<i64>,
    #[command(flatten)]
    pub wait: WaitArgs,
    #[command(flatten)]
    pub store: StoreCommand,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Remove objects from etcd: all of them or none, and only if nothing refers to them
#[derive(clap::Args, Clone, Debug)]
pub struct DeleteArgs {
    /// What they are: network, router, security-group, address-group, port, floating-ip, node
    #[arg(value_parser = store::kind)]
    pub kind: Kind,
    /// Their names; a floating IP's is its address
    #[arg(required = true)]
    pub names: Vec<String>,
    #[command(flatten)]
    pub wait: WaitArgs,
    #[command(flatten)]
    pub store: StoreCommand,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Show what `vrouter apply` would change; exits with 1 if anything
#[derive(clap::Args, Clone, Debug)]
pub struct DiffArgs {
    /// The document, in YAML or JSON; `-` reads standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: PathBuf,
    /// As if with `apply --prune`
    #[arg(long)]
    pub prune: bool,
    #[command(flatten)]
    pub store: StoreCommand,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What a command did, or would do.
#[derive(Serialize)]
struct Outcome {
    /// The revision it is in force from; of `diff`: of the last change.
    revision: i64,
    changes: Vec<Changed>,
    /// Where it is in force, if that was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<Progress>,
}

/// One object's change.
#[derive(Serialize)]
struct Changed {
    kind: &'static str,
    name: String,
    /// `added`, `changed` or `removed`.
    change: &'static str,
    /// Fields that differ: before and after, null where there is none.
    fields: Map<String, Value>,
}

/// `vrouter apply`
pub fn apply(args: ApplyArgs) -> Result<ExitCode> {
    let (name, document) = topology::load_tree(&args.file)?;
    let wish = Wish::Apply { file: &name, document: &document, prune: args.prune };
    // What is wrong with it by itself needs no etcd to be found.
    if args.prune {
        topology::check(&name, &document)?;
    }
    run(&args.store, &wish, args.revision, &args.wait, args.output)
}

/// `vrouter delete`
pub fn delete(args: DeleteArgs) -> Result<ExitCode> {
    let names: Vec<_> = args.names.iter().map(|name| ObjectName::new(args.kind, name)).collect();
    run(&args.store, &Wish::Delete(&names), None, &args.wait, args.output)
}

fn run(
    store: &StoreCommand,
    wish: &Wish<'_>,
    expected: Option<i64>,
    wait: &WaitArgs,
    output: OutputArgs,
) -> Result<ExitCode> {
    store.run(async |store, _| {
        let done = change::change(store, wish, expected, wait.wait).await?;
        let nodes = if wait.wait {
            Some(wait_for(store, &done.plan.nodes, done.revision, wait.timeout).await?)
        } else {
            None
        };
        let late = nodes.as_ref().is_some_and(|nodes| !nodes.behind.is_empty());
        let outcome = Outcome { revision: done.revision, changes: changed(&done.plan), nodes };
        output.print(&outcome, |outcome| plain_lines(&for_people(outcome, "nothing to change")))?;
        Ok(if late { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    })
}

async fn wait_for(store: &mut Store, nodes: &[String], revision: i64, seconds: u64) -> Result<Progress> {
    let terminal = std::io::stderr().is_terminal();
    let mut last = String::new();
    let progress = change::wait(store, nodes, revision, Duration::from_secs(seconds), |progress| {
        let text = format!("in force on {} of {} nodes", progress.in_force.len(), nodes.len());
        if terminal && text != last {
            eprint!("\r{text} ");
            last = text;
        }
    })
    .await;
    if terminal {
        eprintln!();
    }
    progress.context("it is written; how far the nodes are cannot be seen")
}

/// `vrouter diff`
pub fn diff(args: DiffArgs) -> Result<ExitCode> {
    let (name, document) = topology::load_tree(&args.file)?;
    args.store.run(async |store, _| {
        let snapshot = store.snapshot().await?;
        let wish = Wish::Apply { file: &name, document: &document, prune: args.prune };
        let plan = change::plan(store.keys(), &snapshot, &wish)?;
        let (_, revision) = snapshot
            .head(store.keys())
            .map_err(|wrong| anyhow::anyhow!("the topology's head in etcd: {wrong}"))?;
        let outcome = Outcome { revision, changes: changed(&plan), nodes: None };
        args.output.print(&outcome, |outcome| plain_lines(&for_people(outcome, "no difference")))?;
        Ok(if plan.steps.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

fn changed(plan: &Plan) -> Vec<Changed> {
    let describe = |step: &Step| {
        let change = match (&step.before, &step.after) {
            (_, None) => "removed",
            (None, Some(_)) => "added",
            (Some(_), Some(_)) => "changed",
        };
        let fields = if change == "changed" {
            differences(step.before.as_ref(), step.after.as_ref())
        } else {
            Map::new()
        };
        Changed { kind: step.object.kind.noun(), name: step.object.name.clone(), change, fields }
    };
    plan.steps.iter().map(describe).collect()
}

fn differences(before: Option<&Record>, after: Option<&Record>) -> Map<String, Value> {
    let fields = |record: Option<&Record>| record.map(|record| record.spec.clone()).unwrap_or_default();
    let (before, after) = (fields(before), fields(after));
    let names = before.keys().chain(after.keys().filter(|name| !before.contains_key(*name)));
    names
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| {
            let value = |fields: &Map<String, Value>| fields.get(name).cloned().unwrap_or(Value::Null);
            (name.clone(), serde_json::json!({ "before": value(&before), "after": value(&after) }))
        })
        .collect()
}

fn for_people(outcome: &Outcome, nothing: &str) -> String {
    let mut text = String::new();
    for Changed { kind, name, change, fields } in &outcome.changes {
        let sign = match *change {
            "added" => '+',
            "removed" => '-',
            _ => '~',
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{sign} {kind} {name}");
        for (field, values) in fields {
            let _ =
                writeln!(text, "    {field}: {} -> {}", shown(&values["before"]), shown(&values["after"]));
        }
    }
    if outcome.changes.is_empty() {
        let _ = writeln!(text, "{nothing}");
    }
    let _ = writeln!(text, "revision {}", outcome.revision);
    if let Some(nodes) = &outcome.nodes {
        let _ = writeln!(text, "in force on {}", listed(&nodes.in_force));
        for (node, state) in &nodes.behind {
            let problems = if state.problems.is_empty() {
                String::new()
            } else {
                format!(": {}", state.problems.join("; "))
            };
            let _ = writeln!(text, "not in force on {node}, which has revision {}{problems}", state.in_force);
        }
        if !nodes.absent.is_empty() {
            let _ = writeln!(text, "no agent runs on {}", listed(&nodes.absent));
        }
    }
    text
}

fn listed(names: &[String]) -> String {
    const SHOWN: usize = 20;
    match names {
        [] => "no node".to_owned(),
        _ if names.len() <= SHOWN => names.join(", "),
        _ => format!("{} and {} more", names[..SHOWN].join(", "), names.len() - SHOWN),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "(none)".to_owned(),
        value => value.to_string(),
    }
}

/// Plug a port into an interface of a node, or out, without changing the topology's objects
#[derive(clap::Args, Clone, Debug)]
pub struct PortArgs {
    #[command(subcommand)]
    command: PortCommand,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum PortCommand {
    /// Say that a port is at an interface of this node
    Bind(BindArgs),
    /// Say that a port is not on this node any more
    Unbind(UnbindArgs),
}

#[derive(clap::Args, Clone, Debug)]
struct BindArgs {
    /// The port
    port: String,
    /// The kernel interface
    #[arg(long)]
    interface: String,
    /// The node [default: this one, as configured]
    #[arg(long)]
    node: Option<String>,
    /// Return when the node has it in force
    #[arg(long)]
    wait: bool,
    /// How long to wait for it
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "wait")]
    timeout: u64,
    #[command(flatten)]
    store: StoreCommand,
}

#[derive(clap::Args, Clone, Debug)]
struct UnbindArgs {
    /// The port
    port: String,
    /// The node [default: this one, as configured]
    #[arg(long)]
    node: Option<String>,
    #[command(flatten)]
    store: StoreCommand,
}

/// `vrouter port`
pub fn port(args: PortArgs) -> Result<ExitCode> {
    match args.command {
        PortCommand::Bind(args) => args.store.run(async |store, configured| {
            let node = this_node(args.node.clone(), configured)?;
            let revision = super::store::bind(store, &node, &args.port, &args.interface).await?;
            println!("port {} is bound to {} on {node}, revision {revision}", args.port, args.interface);
            if !args.wait {
                return Ok(ExitCode::SUCCESS);
            }
            let progress = wait_for(store, std::slice::from_ref(&node), revision, args.timeout).await?;
            if progress.in_force.is_empty() {
                bail!("it is not in force on {node} after {} seconds", args.timeout);
            }
            Ok(ExitCode::SUCCESS)
        }),
        PortCommand::Unbind(args) => args.store.run(async |store, configured| {
            let node = this_node(args.node.clone(), configured)?;
            super::store::unbind(store, &node, &args.port).await?;
            println!("port {} is not bound on {node} any more", args.port);
            Ok(ExitCode::SUCCESS)
        }),
    }
}

fn this_node(given: Option<String>, configured: Option<&str>) -> Result<String> {
    match given.or(configured.map(str::to_owned)) {
        Some(node) => Ok(node),
        None => {
            let name = nix::unistd::gethostname().context("cannot read the host name; give --node")?;
            Ok(name.to_string_lossy().into_owned())
        }
    }
}
