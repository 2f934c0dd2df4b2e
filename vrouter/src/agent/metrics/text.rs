//! As Prometheus reads it: the text format, version 0.0.4.

use std::{borrow::Cow, fmt::Write as _};

use super::collect::{Family, Kind};

/// What may stand between quotes.
fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['\\', '"', '\n']) {
        return text.into();
    }
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
}

/// All of them. A counter's name ends with `_total`.
pub fn render(families: &[Family]) -> String {
    let mut out = String::new();
    for Family { name, help, kind, rows } in families {
        let (suffix, kind) = match kind {
            Kind::Counter => ("_total", "counter"),
            Kind::Gauge => ("", "gauge"),
        };
        // To a string: it does not fail.
        let _ = writeln!(out, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}");
        for (labels, value) in rows {
            out += name;
            out += suffix;
            if !labels.is_empty() {
                let labels = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value)));
                let _ = write!(out, "{{{}}}", labels.collect::<Vec<_>>().join(","));
            }
            let _ = writeln!(out, " {value}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_with_their_help_and_hostile_names_stay_in_their_quotes() {
        let families = [
            Family {
                name: "vrouter_dropped_packets",
                help: "Packets dropped",
                kind: Kind::Counter,
                rows: vec![(vec![("reason", "no_route".to_owned())], 3.0)],
            },
            Family {
                name: "vrouter_port_up",
                help: "Whether it is up",
                kind: Kind::Gauge,
                rows: vec![(vec![("port", "a\"} 1\nb\\".to_owned()), ("n", "1".to_owned())], 1.5)],
            },
            Family { name: "vrouter_x", help: "X", kind: Kind::Gauge, rows: vec![(vec![], 1e15)] },
        ];
        let expected = "# HELP vrouter_dropped_packets_total Packets dropped\n\
             # TYPE vrouter_dropped_packets_total counter\n\
             vrouter_dropped_packets_total{reason=\"no_route\"} 3\n\
             # HELP vrouter_port_up Whether it is up\n\
             # TYPE vrouter_port_up gauge\n\
             vrouter_port_up{port=\"a\\\"} 1\\nb\\\\\",n=\"1\"} 1.5\n\
             # HELP vrouter_x X\n\
             # TYPE vrouter_x gauge\n\
             vrouter_x 1000000000000000\n";
        assert_eq!(render(&families), expected);
    }
}
