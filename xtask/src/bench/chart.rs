//! The chart: a bar for each median, a line for the spread, rows of one unit on one scale.

use std::{collections::BTreeMap, fmt::Write as _};

use super::record::{Row, value};

const WIDTH: u32 = 900;
const LEFT: u32 = 170;
const RIGHT: u32 = 170;
const LINE: u32 = 22;
const BAR: u32 = 14;
const OURS: &str = "#2b6cb0";
const THEIRS: &str = "#a0aec0";
const MISSED: &str = "#c05621";

/// Draws it as SVG.
pub fn draw(rows: &[Row], conditions: &BTreeMap<&'static str, String>) -> String {
    let mut units: Vec<&str> = Vec::new();
    for row in rows {
        if !units.contains(&row.unit) {
            units.push(row.unit);
        }
    }
    let mut body = String::new();
    let mut y = 30;
    let _ = writeln!(
        body,
        "<text x='10' y='{y}' font-size='13'>{}, kernel {}, {} run</text>",
        escape(&conditions["cpu"]),
        escape(&conditions["kernel"]),
        escape(&conditions["run"])
    );
    for unit in units {
        y += 2 * LINE;
        let _ = writeln!(body, "<text x='{LEFT}' y='{y}' font-weight='bold'>{}</text>", escape(unit));
        let rows = rows.iter().filter(|row| row.unit == unit);
        let largest = rows.clone().map(|row| row.max).fold(f64::MIN_POSITIVE, f64::max);
        let scale = f64::from(WIDTH - LEFT - RIGHT) / largest;
        for row in rows {
            y += LINE;
            bar(&mut body, row, y, scale);
        }
    }
    y += LINE;
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{y}' viewBox='0 0 {WIDTH} {y}' \
         font-family='sans-serif' font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n{body}</svg>\n"
    )
}

fn bar(body: &mut String, row: &Row, y: u32, scale: f64) {
    let right = |number: f64| f64::from(LEFT) + (number * scale).max(0.0);
    let colour = match row.met {
        Some(false) => MISSED,
        _ if is_peer(&row.id) => THEIRS,
        _ => OURS,
    };
    let (middle, top) = (y - BAR / 2 + 2, y - BAR + 2);
    let mark = if row.met == Some(false) { " (target missed)" } else { "" };
    let _ = writeln!(
        body,
        "<text x='{}' y='{y}' text-anchor='end'>{}</text>\
         <rect x='{LEFT}' y='{top}' width='{:.1}' height='{BAR}' fill='{colour}'/>\
         <line x1='{:.1}' x2='{:.1}' y1='{middle}' y2='{middle}' stroke='black'/>\
         <text x='{:.1}' y='{y}'>{}{mark}</text>",
        LEFT - 8,
        escape(&row.id),
        right(row.median) - f64::from(LEFT),
        right(row.min),
        right(row.max),
        right(row.max) + 6.0,
        escape(&value(row.median, row.unit)),
    );
}

/// Whether a row is there to be compared with.
fn is_peer(id: &str) -> bool {
    ["bare_", "hash_", "one_hash", "linux_", "direct_"].iter().any(|start| id.starts_with(start))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::{Label, Record};

    #[test]
    fn draws_every_row_on_its_units_scale() {
        let row = |id: &str, unit, values: &[f64]| {
            let label =
                Label { id: id.to_owned(), unit, what: String::new(), peers: Vec::new(), demand: None };
            Row::new(label, values.to_vec())
        };
        let rows = vec![
            row("a<b", "Mpps", &[1.0, 2.0, 4.0]),
            row("linux_x", "Mpps", &[1.0]),
            row("c", "ns", &[80.0]),
        ];
        let directory = std::env::temp_dir().join(format!("vr-chart-{}", std::process::id()));
        let [_, path] = Record::new(true, rows).write(&directory).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        std::fs::remove_dir_all(directory).unwrap();
        assert!(svg.contains("a&lt;b"), "{svg}");
        // 560 wide: 2 of 4, 1 of 4, 80 of 80.
        for width in ["width='280.0'", "width='140.0'", "width='560.0'"] {
            assert!(svg.contains(width), "{width} is not in {svg}");
        }
        assert_eq!(svg.matches("<rect").count(), 1 + 3);
    }
}
