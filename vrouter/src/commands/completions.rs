//! `vrouter completions` and `vrouter man`: generated from the commands themselves.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};

/// Print completions for a shell
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    pub shell: clap_complete::Shell,
}

/// Prints them.
pub fn run(args: &Args, mut command: clap::Command) -> Result<ExitCode> {
    clap_complete::generate(args.shell, &mut command, "vrouter", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}

/// Write the man pages into a directory
#[derive(clap::Args, Clone, Debug)]
pub struct ManArgs {
    pub directory: PathBuf,
}

/// Writes them.
pub fn man(args: &ManArgs, command: clap::Command) -> Result<ExitCode> {
    fs::create_dir_all(&args.directory)
        .with_context(|| format!("cannot create {}", args.directory.display()))?;
    clap_mangen::generate_to(command, &args.directory)
        .with_context(|| format!("cannot write to {}", args.directory.display()))?;
    Ok(ExitCode::SUCCESS)
}
