//! Documents that are large, broken or made to hurt.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;

/// `count` ports, a hundred to a network, with everything a port refers to.
fn generated(count: usize) -> String {
    let mut text = String::from("networks:\n");
    let networks = count.div_ceil(100);
    for n in 0..networks {
        let (high, low) = (n / 256, n % 256);
        let _ = writeln!(
            text,
            "  - {{ name: net{n}, vni: {}, subnets: [{{ name: sub{n}, cidr: 10.{high}.{low}.0/24, gateway: 10.{high}.{low}.1 }}] }}",
            n + 1
        );
    }
    text.push_str("security_groups: [{ name: sg, rules: [{ direction: egress }] }]\nrouters:\n");
    for n in 0..networks {
        let _ = writeln!(text, "  - {{ name: router{n}, interfaces: [sub{n}] }}");
    }
    text.push_str("nodes: [{ name: node-a, vtep: 192.0.2.1 }]\nports:\n");
    for p in 0..count {
        let (n, host) = (p / 100, p % 100 + 10);
        let (high, low) = (n / 256, n % 256);
        let _ = writeln!(
            text,
            "  - name: port{p}\n    network: net{n}\n    mac: 02:00:{high:02x}:{low:02x}:00:{host:02x}\n    \
             fixed_ips: [10.{high}.{low}.{host}]\n    security_groups: [sg]\n    node: node-a\n    interface: tap{p}"
        );
    }
    text
}

#[test]
fn ten_thousand_ports_are_read() {
    let topology = accepted(&generated(10_000));
    assert_eq!((topology.ports.len(), topology.networks.len(), topology.routers.len()), (10_000, 100, 100));
}

#[test]
fn a_large_document_names_its_one_problem() {
    let text = generated(10_000).replace("network: net99\n", "network: net999\n");
    let problems = parse("x", &text).expect_err("net999 is not there");
    assert_eq!(problems.count(), 100);
    let text = generated(10_000).replace("name: port9999\n", "name: port9998\n");
    assert_eq!(parse("x", &text).expect_err("a name twice").count(), 1);
}

#[test]
fn complaints_are_bounded() {
    let text = format!("ports: [{}]", "{},".repeat(100_000));
    let problems = parse("x", &text).expect_err("nothing in them");
    assert_eq!(problems.iter().count(), 1000);
    assert_eq!(problems.count(), 300_000);
    assert!(problems.to_string().ends_with("\nand 299000 more"));
}

#[test]
fn text_made_to_hurt_is_refused() {
    let million = 1_000_000;
    for (what, text) in [
        ("deep lists", "[".repeat(million)),
        ("deep mappings", "{a: ".repeat(million)),
        ("deep block lists", "- ".repeat(million)),
        ("deep keys", "? ".repeat(million)),
        ("many marks", ",".repeat(5 * million)),
        ("many quotes in brackets", format!("[{}", "\"\" ".repeat(3 * million))),
        ("one word", "a".repeat(10 * million)),
        ("one line of colons", ":".repeat(million)),
        ("laughs", "a: &a [x]\nb: [*a, *a]\n".to_owned()),
        ("empty lines", "\n".repeat(million)),
        ("tabs", "\t".repeat(million)),
        ("comments", "#\n".repeat(million)),
        ("indentation", (0..1000).map(|i| format!("{}a:\n", " ".repeat(i))).collect()),
        ("escapes", "\"\\u".repeat(million)),
        ("unknown fields", (0..100_000).map(|i| format!("f{i}: 1\n")).collect()),
    ] {
        assert!(parse("x", &text).is_err(), "{what}");
    }
}

#[test]
fn nesting_is_allowed_to_its_bound_only() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let message = |depth: usize| parse("x", &nested(depth)).expect_err("not a topology").to_string();
    assert!(message(32).contains("is not a mapping"));
    assert!(message(33).contains("deeper than 32"));
}

#[test]
fn messages_hold_no_control_characters() {
    let text = "networks: [{ name: \"a\\e[31m\\n\\0\", mtu: \"\\e]0;x\\a\" }]\n\"\\e[2J\": 1\n";
    let problems = parse("x", text).expect_err("names like these");
    for problem in &problems {
        let all = [&problem.object, &problem.message, &problem.remedy];
        assert!(!all.iter().any(|text| text.contains(char::is_control)), "{problem:?}");
    }
}

/// What appears in documents, so that random text gets past the scanner.
fn fragments() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "networks",
        "name",
        "subnets",
        "cidr",
        "ports",
        "- ",
        ": ",
        "\n",
        "  ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "\"",
        "'",
        "|",
        ">",
        "&a",
        "*a",
        "!t",
        "---",
        "...",
        "%YAML 1.2",
        "#",
        "10.0.0.0/8",
        "::/0",
        "~",
        "\t",
        "\r\n",
        "\u{feff}",
        "\0",
        "é",
        "?",
        "- -",
        "\\",
        "\u{2028}",
        "|2-",
        "%TAG ! x",
        "! ",
        "a",
        "-",
    ]);
    prop::collection::vec(words, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        let _ = parse("x", &text);
    }

    #[test]
    fn arbitrary_fragments_never_panic(text in fragments()) {
        let _ = parse("x", &text);
    }

    #[test]
    fn mutations_never_panic(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..20_usize, fragments()), 1..4),
    ) {
        let mut text: Vec<char> = BASE.chars().collect();
        for (at, length, insertion) in cuts {
            let start = at.index(text.len() + 1);
            let end = (start + length).min(text.len());
            text.splice(start..end, insertion.chars());
        }
        let _ = parse("x", &text.into_iter().collect::<String>());
    }

    #[test]
    fn dropping_lines_never_panics(kept in prop::collection::vec(prop::bool::weighted(0.9), 80)) {
        let lines: Vec<&str> = BASE.lines().zip(kept).filter(|(_, kept)| *kept).map(|(line, _)| line).collect();
        if let Err(problems) = parse("x", &lines.join("\n")) {
            prop_assert!(problems.count() > 0);
            prop_assert!(problems.iter().all(|problem| problem.line <= lines.len() + 1));
        }
    }
}
