//! How a command prints: for people or for programs.

use std::io::Write;

use clap::{Args, ValueEnum};
use comfy_table::Table;
use serde::Serialize;

/// The options of every command that prints.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct OutputArgs {
    /// How to print the result
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Format,
}

/// The forms a result is printed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs: one JSON object
    Json,
}

impl OutputArgs {
    /// Prints `value` for programs, or what `table` makes of it for people.
    pub fn print<T: Serialize>(&self, value: &T, table: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        let text = match self.output {
            Format::Json => serde_json::to_string_pretty(value)?,
            Format::Table => table(value),
        };
        let mut stdout = std::io::stdout().lock();
        match writeln!(stdout, "{}", text.trim_end()) {
            // Whoever read us has enough: `vrouter … | head`.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            result => Ok(result?),
        }
    }
}

/// A table without lines, as `ip` and `bridge` print.
pub fn table<const N: usize>(headings: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::TableStyle::new());
    table.set_header(headings.map(str::to_uppercase));
    let mut empty = true;
    for row in rows {
        empty = false;
        table.add_row(row);
    }
    if empty {
        return "none".to_owned();
    }
    // Every line starts with the padding of its first cell.
    let lines: Vec<_> = table.lines().map(|line| line.get(1..).unwrap_or("").trim_end().to_owned()).collect();
    lines.join("\n")
}
