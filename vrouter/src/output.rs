//! How a command prints: for people or for programs.

use std::io::Write;

use clap::{Args, ValueEnum};
use comfy_table::Table;
use serde::Serialize;
use unicode_width::UnicodeWidthChar as _;

/// What stands for characters that would move the cursor, turn the line round or take no room.
const STAND_IN: char = '?';

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

/// A text without anything a terminal could take for more than a character: control characters, such as those of
/// escape sequences; marks that change the direction of what follows; and what has no width.
pub fn plain(text: &str) -> String {
    let is_direction =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let plain = |c: char| {
        let is_hidden = c.is_control() || is_direction(c) || c.width().unwrap_or(0) == 0;
        if is_hidden { STAND_IN } else { c }
    };
    text.chars().map(plain).collect()
}

/// The same, of each line.
pub fn plain_lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// A table without lines, as `ip` and `bridge` print. What is in its cells may be others' words.
pub fn table<const N: usize>(headings: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::TableStyle::new());
    table.set_header(headings.map(str::to_uppercase));
    let mut empty = true;
    for row in rows {
        empty = false;
        table.add_row(row.map(|cell| plain(&cell)));
    }
    if empty {
        return "none".to_owned();
    }
    // Every line starts with the padding of its first cell.
    let lines: Vec<_> = table.lines().map(|line| line.get(1..).unwrap_or("").trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_reaches_the_terminal_as_more_than_a_character() {
        assert_eq!(plain("vm\x1b[2J\r\n\t\u{9b}1m"), "vm?[2J????1m");
        assert_eq!(plain("a\u{202e}b\u{200b}c\u{0}"), "a?b?c?");
        assert_eq!(plain("e\u{301}\u{301}\u{301}"), "e???");
        assert_eq!(plain("größe 名前"), "größe 名前");
        assert_eq!(plain_lines("a\x1b\n\rb"), "a?\n?b");
        let told = table(["node", "health"], [["a\nb".to_owned(), "ok\x1b]0;x\x07".to_owned()]]);
        assert_eq!(told, "NODE  HEALTH\na?b   ok?]0;x?");
    }
}
