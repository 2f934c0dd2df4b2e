//! Text for a screen of a given width: names that come from outside cannot break it, numbers fit their columns.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

pub use crate::output::plain;

/// The columns a text takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// As much of a plain text as fits, with a mark where something is missing; filled up with blanks.
pub fn fit(text: &str, room: usize, to_the_right: bool) -> String {
    let text = cut(text, room);
    let blanks = " ".repeat(room.saturating_sub(width(&text)));
    if to_the_right { blanks + &text } else { text + &blanks }
}

/// As much of a plain text as fits.
pub fn cut(text: &str, room: usize) -> String {
    if width(text) <= room {
        return text.to_owned();
    }
    let mut cut = String::new();
    let mut taken = 0;
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if taken + wide + 1 > room {
            break;
        }
        cut.push(c);
        taken += wide;
    }
    if room > 0 {
        cut.push('~');
    }
    cut
}

/// A number in at most 5 characters up to a thousand quadrillions: `0`, `3.2`, `312`, `12.3k`, `4.56G`.
pub fn short(value: f64) -> String {
    if !value.is_finite() || value < 0.05 {
        return "0".to_owned();
    }
    let mut scaled = value;
    for unit in ["", "k", "M", "G", "T", "P"] {
        if scaled < 999.5 {
            return match (unit, scaled) {
                ("", ..9.95) => trimmed(format!("{scaled:.1}")),
                ("", _) => format!("{scaled:.0}"),
                (_, ..9.995) => format!("{scaled:.2}{unit}"),
                (_, ..99.95) => format!("{scaled:.1}{unit}"),
                _ => format!("{scaled:.0}{unit}"),
            };
        }
        scaled /= 1000.0;
    }
    format!("{scaled:.0}E")
}

fn trimmed(text: String) -> String {
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// A duration from milliseconds to minutes.
pub fn seconds(value: f64) -> String {
    match value {
        ..0.9995 => format!("{:.0} ms", value * 1000.0),
        ..99.95 => format!("{value:.1} s"),
        _ => format!("{value:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_says_so_and_fills_its_room_exactly() {
        for (text, room, fitted) in [
            ("vm1", 5, "vm1  "),
            ("vm1", 3, "vm1"),
            ("vm123", 3, "vm~"),
            ("名前名前", 8, "名前名前"),
            ("名前名前", 7, "名前名~"),
            ("名前名前", 6, "名前~ "),
            ("名前", 1, "~"),
            ("x", 0, ""),
        ] {
            assert_eq!(fit(text, room, false), fitted);
            assert_eq!(width(&fit(text, room, true)), room, "{text} in {room}");
        }
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (-1.0, "0"),
            (f64::NAN, "0"),
            (0.5, "0.5"),
            (3.0, "3"),
            (9.96, "10"),
            (312.4, "312"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (12_345.0, "12.3k"),
            (123_456.0, "123k"),
            (999_999.0, "1.00M"),
            (32_900_000_000.0, "32.9G"),
        ] {
            assert_eq!(short(value), text, "{value}");
        }
        assert!(short(u64::MAX as f64).len() <= 5);
        assert_eq!([seconds(0.0123), seconds(1.0), seconds(120.0)], ["12 ms", "1.0 s", "120 s"]);
    }
}
