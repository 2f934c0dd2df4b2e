//! Tables and durations for people.

use std::time::Duration;

/// Left-aligned columns, two blanks between them, under a head and a rule.
pub fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let rules = widths.map(|width| "-".repeat(width));
    let mut lines = vec![line(head), line(rules.each_ref().map(String::as_str))];
    lines.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    lines.join("\n")
}

/// `0.4 s`, `12 s`, `3 min 20 s`.
pub fn duration(duration: Duration) -> String {
    match duration.as_secs() {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        seconds @ 10..120 => format!("{seconds} s"),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

/// `12.3 Gb/s`, `830 Mb/s`.
pub fn rate(bits_per_second: f64) -> String {
    if bits_per_second >= 1e9 {
        format!("{:.1} Gb/s", bits_per_second / 1e9)
    } else {
        format!("{:.0} Mb/s", bits_per_second / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["one".to_owned(), "ok".to_owned()], ["two and more".to_owned(), "FAILED".to_owned()]];
        let expected = "claim         \n------------  ------\none           ok\ntwo and more  FAILED";
        assert_eq!(table(["claim", ""], &rows), expected.replace("claim         ", "claim"));
    }

    #[test]
    fn words_for_numbers() {
        assert_eq!(duration(Duration::from_millis(420)), "0.4 s");
        assert_eq!(duration(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(rate(8.34e8), "834 Mb/s");
        assert_eq!(rate(1.234e10), "12.3 Gb/s");
    }
}
