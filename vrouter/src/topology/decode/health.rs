//! Health monitors of pools.

use crate::topology::model::{HealthCheck, HealthMonitor};
use crate::topology::object::Object;
use crate::topology::scalar::{self, Fault, quote};
use crate::topology::yaml::{Node, NodeKind};

pub const FIELDS: &[&str] = &[
    "type",
    "delay",
    "timeout",
    "max_retries",
    "max_retries_down",
    "http_method",
    "url_path",
    "expected_codes",
    "monitor_port",
];
/// What only a check by HTTP has.
const HTTP_FIELDS: [&str; 3] = ["http_method", "url_path", "expected_codes"];

/// Octavia's default for what it lets one leave out.
const RETRIES: u8 = 3;
/// In milliseconds: what a busy node can still keep, and what is no monitoring any more.
const SECONDS: (u32, u32) = (100, 3_600_000);
const PATH_MAX: usize = 255;
const CODES_MAX: usize = 32;

pub fn health_monitor(object: &mut Object<'_, '_>) -> Option<HealthMonitor> {
    let kind = object.required("type", check);
    let delay = object.required("delay", seconds);
    let timeout = object.required("timeout", seconds);
    let max_retries = object.optional("max_retries", retries).unwrap_or(RETRIES);
    let max_retries_down = object.optional("max_retries_down", retries).unwrap_or(RETRIES);
    let http_method = object.optional("http_method", method).unwrap_or_else(|| "GET".to_owned());
    let url_path = object.optional("url_path", path).unwrap_or_else(|| "/".to_owned());
    let expected_codes = object.optional("expected_codes", codes).unwrap_or_else(|| vec![(200, 200)]);
    let monitor_port = object.optional("monitor_port", scalar::number16::<1, 65535>);
    if let (Some(delay), Some(timeout)) = (delay, timeout)
        && timeout > delay
    {
        object.problem(
            object.line("timeout"),
            format!("timeout {} is longer than delay {}", in_seconds(timeout), in_seconds(delay)),
            format!(
                "write a timeout of at most {}, or a longer delay: a check ends before the next begins",
                in_seconds(delay)
            ),
        );
    }
    if let Some(kind) = kind {
        suits(object, kind);
    }
    Some(HealthMonitor {
        kind: kind?,
        delay_ms: delay?,
        timeout_ms: timeout?,
        max_retries,
        max_retries_down,
        http_method,
        url_path,
        expected_codes,
        monitor_port,
        line: object.node.line,
    })
}

/// Notes fields that say nothing for this kind of check.
fn suits(object: &mut Object<'_, '_>, kind: HealthCheck) {
    let name = match kind {
        HealthCheck::Http => return,
        HealthCheck::Tcp => "tcp",
        HealthCheck::Ping => "ping",
    };
    for field in HTTP_FIELDS {
        if let Some(given) = object.value(field) {
            let message = format!("{field} is given, and a monitor of type {name} asks nothing by HTTP");
            object.problem(given.line, message, format!("leave {field} out, or write `type: http`"));
        }
    }
    if kind == HealthCheck::Ping
        && let Some(given) = object.value("monitor_port")
    {
        let remedy = "leave monitor_port out, or write `type: tcp`";
        object.problem(given.line, "monitor_port is given, and ICMP has no ports", remedy);
    }
}

fn check(node: &Node) -> Result<HealthCheck, Fault> {
    match scalar::text(node)? {
        "tcp" | "TCP" => Ok(HealthCheck::Tcp),
        "http" | "HTTP" => Ok(HealthCheck::Http),
        "ping" | "PING" => Ok(HealthCheck::Ping),
        other => Err(Fault::new(
            format!("{} is no type of health monitor", quote(other)),
            "write `tcp`, `http` or `ping`; what speaks TLS is monitored by `tcp`",
        )),
    }
}

/// Decimal seconds, as milliseconds.
fn seconds(node: &Node) -> Result<u32, Fault> {
    let text = scalar::text(node)?;
    let (low, high) = (in_seconds(SECONDS.0), in_seconds(SECONDS.1));
    let remedy = format!("write seconds from {low} to {high}, with at most three decimals, like 5 or 0.5");
    let Some(milliseconds) = milliseconds(text) else {
        return Err(Fault::new(format!("{} is not a number of seconds", quote(text)), remedy));
    };
    if !(SECONDS.0..=SECONDS.1).contains(&milliseconds) {
        return Err(Fault::new(format!("{} is not from {low} to {high}", quote(text)), remedy));
    }
    Ok(milliseconds)
}

fn milliseconds(text: &str) -> Option<u32> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(decimals) || decimals.len() > 3 {
        return None;
    }
    // Too many digits are too many seconds.
    let whole = whole.parse::<u32>().unwrap_or(u32::MAX);
    let decimals: u32 = format!("{decimals:0<3}").parse().ok()?;
    Some(whole.saturating_mul(1000).saturating_add(decimals))
}

/// Milliseconds as they are written in a document.
fn in_seconds(milliseconds: u32) -> String {
    format!("{}", f64::from(milliseconds) / 1000.0)
}

/// How many checks in a row, as Octavia bounds it.
fn retries(node: &Node) -> Result<u8, Fault> {
    let number = scalar::number::<1, 10>(node)?;
    u8::try_from(number).map_err(|_| Fault::new(format!("{number} is too large"), "write at most 10"))
}

fn method(node: &Node) -> Result<String, Fault> {
    const METHODS: [&str; 8] = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE"];
    let text = scalar::text(node)?;
    match METHODS.into_iter().find(|method| *method == text) {
        Some(method) => Ok(method.to_owned()),
        None => Err(Fault::new(
            format!("{} is no HTTP method", quote(text)),
            format!("write one of {}", METHODS.join(", ")),
        )),
    }
}

/// It is sent as it is written, so it must not be able to say more than a path.
fn path(node: &Node) -> Result<String, Fault> {
    let text = scalar::text(node)?;
    let (wrong, remedy) = if !text.starts_with('/') {
        ("does not begin with `/`", "write the path alone, like /health")
    } else if text.len() > PATH_MAX {
        ("is longer than 255 bytes", "write a shorter path")
    } else if text.contains('#') {
        ("holds a `#`, and fragments are not sent", "leave it and what follows out, or write %23")
    } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        ("holds a space, a control character, or one that is not ASCII", "write such bytes as %20")
    } else {
        return Ok(text.to_owned());
    };
    Err(Fault::new(format!("{} {wrong}", quote(text)), remedy))
}

/// `200`, `200,202`, `200-299`, mixtures of them, or a list.
fn codes(node: &Node) -> Result<Vec<(u16, u16)>, Fault> {
    let mut ranges = Vec::new();
    match &node.kind {
        NodeKind::Sequence(items) => {
            for item in items {
                ranges.push(code_range(scalar::text(item)?)?);
            }
        }
        _ => {
            for part in scalar::text(node)?.split(',') {
                ranges.push(code_range(part.trim())?);
            }
        }
    }
    if ranges.is_empty() {
        return Err(Fault::new("is an empty list", "write at least one status code, like 200"));
    }
    if ranges.len() > CODES_MAX {
        return Err(Fault::new("has more than 32 codes", "write ranges, like 200-299"));
    }
    Ok(ranges)
}

fn code_range(text: &str) -> Result<(u16, u16), Fault> {
    let code = |text: &str| {
        let text = text.trim();
        let is_number = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|code| is_number && (100..=599).contains(code))
    };
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (code(low), code(high)) {
        (Some(low), Some(high)) if low > high => Err(Fault::new(
            format!("{low}-{high} is reversed"),
            format!("write the lower code first: {high}-{low}"),
        )),
        (Some(low), Some(high)) => Ok((low, high)),
        _ => Err(Fault::new(
            format!("{} is not an HTTP status from 100 to 599", quote(text)),
            "write 200, several like \"200,202\", or a range like 200-299",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::problem::Problems;
    use crate::topology::yaml;

    fn read(text: &str) -> (Option<HealthMonitor>, Problems) {
        let mut problems = Problems::new("test");
        let tree = yaml::read(text, &mut problems).expect("YAML");
        let monitor = Object::open(&tree, "pool web health_monitor".to_owned(), FIELDS, &mut problems)
            .and_then(|mut object| health_monitor(&mut object));
        (monitor, problems)
    }

    #[test]
    fn a_monitor_is_read_with_octavias_defaults() {
        let (monitor, problems) = read("{ type: HTTP, delay: 5, timeout: 2.5 }");
        assert!(problems.is_empty(), "{problems}");
        let expected = HealthMonitor {
            kind: HealthCheck::Http,
            delay_ms: 5000,
            timeout_ms: 2500,
            max_retries: 3,
            max_retries_down: 3,
            http_method: "GET".to_owned(),
            url_path: "/".to_owned(),
            expected_codes: vec![(200, 200)],
            monitor_port: None,
            line: 1,
        };
        assert_eq!(monitor, Some(expected));
    }

    #[test]
    fn codes_are_read_in_every_way_they_are_written() {
        for (written, expected) in [
            ("204", vec![(204, 204)]),
            ("\"200,202\"", vec![(200, 200), (202, 202)]),
            ("\"200, 300-302\"", vec![(200, 200), (300, 302)]),
            ("200-299", vec![(200, 299)]),
            ("[200, 204-206]", vec![(200, 200), (204, 206)]),
        ] {
            let text = format!("{{ type: http, delay: 1, timeout: 1, expected_codes: {written} }}");
            let (monitor, problems) = read(&text);
            assert!(problems.is_empty(), "{written}: {problems}");
            assert_eq!(monitor.expect("a monitor").expected_codes, expected, "{written}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_to_write() {
        const FULL: &str = "type: http, delay: 5, timeout: 2";
        for (given, words) in [
            ("delay: 5, timeout: 2", vec!["type is missing", "`type: …`"]),
            ("type: https, delay: 5, timeout: 2", vec!["\"https\"", "`tcp`, `http` or `ping`"]),
            ("type: tcp, timeout: 2", vec!["delay is missing"]),
            ("type: tcp, delay: 5", vec!["timeout is missing"]),
            (
                "type: tcp, delay: 2, timeout: 2.001",
                vec!["timeout 2.001 is longer than delay 2", "at most 2"],
            ),
            ("type: tcp, delay: 0, timeout: 0.1", vec!["delay \"0\" is not from 0.1 to 3600"]),
            ("type: tcp, delay: 1e3, timeout: 1", vec!["\"1e3\" is not a number of seconds"]),
            ("type: tcp, delay: 1.0001, timeout: 1", vec!["three decimals"]),
            ("type: tcp, delay: 99999999999, timeout: 1", vec!["not from 0.1 to 3600"]),
            ("type: tcp, delay: -1, timeout: 1", vec!["not a number of seconds"]),
            ("type: ping, delay: 5, timeout: 2, monitor_port: 80", vec!["ICMP has no ports"]),
            ("type: tcp, delay: 5, timeout: 2, url_path: /x", vec!["url_path", "type tcp", "`type: http`"]),
            ("type: ping, delay: 5, timeout: 2, expected_codes: 200", vec!["expected_codes", "type ping"]),
        ] {
            refused(given, &words);
        }
        for (field, words) in [
            ("max_retries: 0", vec!["max_retries \"0\"", "from 1 to 10"]),
            ("max_retries_down: 11", vec!["from 1 to 10"]),
            ("http_method: get", vec!["\"get\" is no HTTP method", "GET"]),
            ("url_path: health", vec!["does not begin with `/`"]),
            ("url_path: \"/a b\"", vec!["%20"]),
            ("url_path: \"/a\\r\\nHost: x\"", vec!["control character"]),
            ("url_path: \"/a#b\"", vec!["fragments"]),
            ("expected_codes: 20", vec!["\"20\" is not an HTTP status"]),
            ("expected_codes: 600", vec!["100 to 599"]),
            ("expected_codes: 299-200", vec!["reversed", "200-299"]),
            ("expected_codes: \"200,,201\"", vec!["\"\" is not an HTTP status"]),
            ("expected_codes: []", vec!["empty list"]),
            ("monitor_port: 0", vec!["from 1 to 65535"]),
            ("interval: 3", vec!["\"interval\" is not known here"]),
        ] {
            refused(&format!("{FULL}, {field}"), &words);
        }
    }

    fn refused(given: &str, words: &[&str]) {
        let (_, problems) = read(&format!("{{ {given} }}"));
        assert_eq!(problems.count(), 1, "{given}: {problems}");
        let text = problems.to_string();
        for word in words {
            assert!(text.contains(word), "{given}: no {word} in {text}");
        }
    }
}
