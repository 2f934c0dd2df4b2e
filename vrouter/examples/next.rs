//! A vrouter whose maps have another layout, for the test that upgrades to one.

use std::process::ExitCode;

fn main() -> ExitCode {
    vrouter::cli::run()
}
