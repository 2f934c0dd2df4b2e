//! The `vrouter` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    vrouter::cli::run()
}
