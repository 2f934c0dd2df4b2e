//! `cargo xtask test`: every check there is, from nothing, the same for people and machines.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ebpf_build::Toolchain;
use vrouter_tests::{clean, require_root};

use crate::{report, repository, setup};

/// Run all checks: format, lints, documentation, unit tests, labs.
#[derive(clap::Args)]
pub struct Args {
    /// Run only tests whose name contains this.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Leave out format, lints and documentation.
    #[arg(long)]
    no_lint: bool,
}

/// How many labs to have at once, unless RUST_TEST_THREADS says otherwise.
const LABS_AT_ONCE: &str = "2";

/// Runs everything in order and stops at the first failure.
pub fn run(args: Args) -> Result<()> {
    require_root()?;
    setup::ensure(if args.no_lint { setup::Needs::LABS } else { setup::Needs::ALL })?;
    let mut steps = Steps::default();
    let result = run_steps(&args, &mut steps);
    clean::remove_shared_directories();
    println!("\n{}", steps.summary());
    result
}

fn run_steps(args: &Args, steps: &mut Steps) -> Result<()> {
    let filter = args.filter.as_deref();
    if !args.no_lint {
        lint(steps)?;
    }
    steps.cargo("build vrouter", "build -p vrouter")?;
    let mut unit_tests = repository::cargo("test --workspace --exclude vrouter-tests");
    steps.command("unit tests", unit_tests.args(filter))?;
    let mut lab_tests = repository::cargo("test -p vrouter-tests");
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        lab_tests.env("RUST_TEST_THREADS", LABS_AT_ONCE);
    }
    steps.command("labs", lab_tests.args(filter))
}

fn lint(steps: &mut Steps) -> Result<()> {
    let manifest = repository::ebpf_manifest();
    steps.cargo("format", "fmt --check")?;
    let format = format!("fmt --check --manifest-path {}/Cargo.toml", ebpf_build::PACKAGE);
    steps.cargo("format of the eBPF crate", &format)?;

    let toolchain = Toolchain::detect()?;
    if toolchain.clippy_driver().is_some() {
        let target_dir = repository::ebpf_target_dir()?;
        for features in [&[][..], &["trace"]] {
            let name =
                format!("lints of the eBPF crate{}", if features.is_empty() { "" } else { ", tracing" });
            steps.run(&name, || ebpf_build::clippy(&toolchain, &manifest, &target_dir, features))?;
        }
    } else {
        steps.skip("lints of the eBPF crate", "its compiler has no clippy here");
    }
    steps.cargo("lints", "clippy --workspace --all-targets -- -D warnings")?;
    let mut documentation = repository::cargo("doc --workspace --no-deps");
    steps.command("documentation", documentation.env("RUSTDOCFLAGS", "-Dwarnings"))
}

/// What has been done so far, and how long it took.
#[derive(Default)]
struct Steps {
    done: Vec<(String, Outcome)>,
}

enum Outcome {
    Passed(Duration),
    Failed(Duration),
    Skipped(&'static str),
}

impl Steps {
    fn cargo(&mut self, name: &str, arguments: &str) -> Result<()> {
        self.command(name, &mut repository::cargo(arguments))
    }

    fn command(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let name = format!("{name}: {}", repository::describe(command));
        self.run(&name, || repository::run(command))
    }

    fn run(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("\n== {name}");
        let start = Instant::now();
        let result = work();
        let time = start.elapsed();
        let outcome = if result.is_ok() { Outcome::Passed(time) } else { Outcome::Failed(time) };
        println!("== {outcome}");
        self.done.push((name.to_owned(), outcome));
        result.with_context(|| format!("the step \"{name}\" failed"))
    }

    fn skip(&mut self, name: &str, reason: &'static str) {
        println!("\n== {name}\n== skipped: {reason}");
        self.done.push((name.to_owned(), Outcome::Skipped(reason)));
    }

    fn summary(&self) -> String {
        let rows: Vec<[String; 2]> =
            self.done.iter().map(|(name, outcome)| [outcome.to_string(), name.clone()]).collect();
        report::table(["outcome", "step"], &rows)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Passed(time) => write!(f, "passed in {}", report::duration(*time)),
            Self::Failed(time) => write!(f, "FAILED after {}", report::duration(*time)),
            Self::Skipped(reason) => write!(f, "skipped: {reason}"),
        }
    }
}
