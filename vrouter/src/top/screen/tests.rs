use ratatui::{Terminal, backend::TestBackend, style::Color};

use super::*;
use crate::{
    commands::status::Summary,
    top::{
        sample::{DropRow, NodeRow, NodeTold, PortRow, Rates, RouterRow, TableRow},
        text,
    },
};

fn rates(packets: f64) -> Rates {
    Rates {
        tx_packets_per_second: packets,
        tx_bits_per_second: packets * 800.0,
        rx_packets_per_second: packets / 2.0,
        rx_bits_per_second: packets * 400.0,
        flows: 3,
    }
}

fn port(name: &str, packets: f64) -> PortRow {
    PortRow { port: name.to_owned(), network: "web".to_owned(), ifindex: 7, rates: rates(packets) }
}

fn sample() -> Sample {
    Sample {
        at_seconds: 1_000_000,
        instance: "default".to_owned(),
        node: "node-a".to_owned(),
        epoch: 5,
        status: Summary {
            agent: true,
            wanted: Some("revision 12".to_owned()),
            in_force: Some("revision 11".to_owned()),
            healthy: false,
            complaints: vec!["the wanted topology is not in force yet".to_owned()],
        },
        interval_seconds: Some(1.0),
        read_seconds: 0.004,
        packets_per_second: 1550.0,
        bits_per_second: 1_240_000.0,
        dropped_per_second: 12.0,
        decided_per_second: 2.0,
        flows: 6,
        ports: vec![port("vm1", 500.0), port("vm2", 1000.0), port("vm3", 0.0)],
        routers: vec![RouterRow {
            router: "r1".to_owned(),
            packets_per_second: 1500.0,
            bits_per_second: 1_200_000.0,
            flows: 4,
            nat_ports_used: 512,
            nat_ports: 1024,
            nat_blocks: 1,
        }],
        drops: vec![DropRow {
            reason: "spoofed_ip",
            packets_per_second: 12.0,
            bits_per_second: 9600.0,
            packets: 480,
            description: "The source address is neither the port's nor an allowed address pair's.",
        }],
        tables: vec![TableRow {
            table: "FLOWS",
            entries: 250_000,
            entries_max: 262_144,
            pressure: "critical",
            holds: "answered connections, two entries each",
        }],
        nodes: vec![NodeRow {
            node: "node-b".to_owned(),
            vtep: "192.0.2.2".to_owned(),
            state: "unreachable",
            rates: rates(250.0),
            told: None,
        }],
        etcd_error: None,
        outside: Rates::default(),
    }
}

fn screen() -> Screen {
    let mut screen = Screen::new(true, View::Ports, "");
    screen.take(sample());
    screen
}

fn press(screen: &mut Screen, keys: &str) -> After {
    let mut after = After::Nothing;
    for c in keys.chars() {
        let code = match c {
            '\n' => KeyCode::Enter,
            '\t' => KeyCode::Tab,
            '\x1b' => KeyCode::Esc,
            c => KeyCode::Char(c),
        };
        after = screen.key(&KeyEvent::new(code, KeyModifiers::NONE));
    }
    after
}

/// What is on a screen of a size, line by line.
fn drawn(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory");
    terminal.draw(|frame| screen.draw(frame)).expect("memory");
    let buffer = terminal.backend().buffer();
    let line = |y| {
        let mut line = String::new();
        let mut x = 0;
        while x < width {
            let symbol = buffer[(x, y)].symbol();
            line += symbol;
            x += text::width(symbol).max(1) as u16;
        }
        line.trim_end().to_owned()
    };
    (0..height).map(line).collect()
}

#[test]
fn eighty_columns_show_who_and_how_much() {
    let lines = drawn(&mut screen(), 80, 24);
    assert_eq!(lines[0], "node-a (default): revision 11 in force, revision 12 wanted");
    assert_eq!(lines[1], "attention: the wanted topology is not in force yet");
    assert!(
        lines[2].starts_with("1.55k p/s  1.24Mb/s  drops 12/s  decided 2/s  6 flows  every 1.0 s"),
        "{}",
        lines[2]
    );
    assert!(lines[3].contains("p/s max"), "{}", lines[3]);
    assert_eq!(lines[6], "1 ports  2 routers  3 drops  4 tables  5 nodes");
    assert_eq!(
        lines[7..11],
        [
            "PORT                        NETWORK       TX P/S  TX B/S  RX P/S  RX B/S   FLOWS",
            "vm2                         web            1.00k    800k     500    400k       3",
            "vm1                         web              500    400k     250    200k       3",
            "vm3                         web                0       0       0       0       3",
        ]
    );
    assert!(lines[23].starts_with("q quit  ? help"), "{}", lines[23]);
}

#[test]
fn sixty_columns_drop_columns_and_not_rows() {
    let lines = drawn(&mut screen(), 60, 20);
    let heading = lines.iter().find(|line| line.starts_with("PORT")).expect("a heading");
    assert!(
        !heading.contains("NETWORK") && heading.contains("RX B/S") && heading.contains("FLOWS"),
        "{heading}"
    );
    assert!(lines.iter().any(|line| line.starts_with("vm3 ")));
    assert!(lines[0].starts_with("node-a (default): revision 11"));
}

#[test]
fn no_size_is_too_small_to_be_drawn() {
    for (width, height) in [(1, 1), (2, 30), (10, 3), (20, 5), (60, 7), (300, 100)] {
        let mut screen = screen();
        for keys in ["", "2", "3", "4", "5", "?"] {
            press(&mut screen, keys);
            drawn(&mut screen, width, height);
        }
    }
}

#[test]
fn every_view_has_its_key() {
    for (keys, expected) in [
        ("2", "r1 "),
        ("3", "spoofed_ip "),
        ("4", "FLOWS "),
        ("5", "node-b "),
        ("\t\t", "spoofed_ip "),
        ("51", "vm2 "),
    ] {
        let mut screen = screen();
        press(&mut screen, keys);
        let lines = drawn(&mut screen, 80, 24);
        assert!(lines[8].starts_with(expected), "{keys:?}: {}", lines[8]);
    }
    let mut screen = screen();
    press(&mut screen, "2");
    assert!(drawn(&mut screen, 80, 24)[8].contains("512/1024   50%"));
    press(&mut screen, "3");
    let line = &drawn(&mut screen, 80, 24)[8];
    assert!(line.contains("12") && line.contains("480") && line.contains("The source address is"), "{line}");
}

#[test]
fn what_nodes_say_of_themselves_is_shown_if_etcd_is_asked() {
    let mut screen = screen();
    press(&mut screen, "5");
    assert!(!drawn(&mut screen, 80, 24)[7].contains("HEALTH"));
    let mut told = sample();
    let health = "degraded".to_owned();
    told.nodes[0].told = Some(NodeTold { in_force: 41, wanted: 42, health });
    screen.take(told);
    let lines = drawn(&mut screen, 80, 24);
    assert!(lines[7].contains("REVISION HEALTH"), "{}", lines[7]);
    assert!(lines[8].starts_with("node-b ") && lines[8].ends_with("<41 degraded"), "{}", lines[8]);
    let lines = drawn(&mut screen, 60, 20);
    assert!(
        lines.iter().any(|line| line.starts_with("node-b ") && line.ends_with(" degraded")),
        "{lines:#?}"
    );
}

#[test]
fn the_first_screen_says_that_it_measures() {
    let mut screen = Screen::new(true, View::Ports, "");
    assert!(drawn(&mut screen, 80, 24)[0].contains("measuring"));
    screen.take(Sample { interval_seconds: None, ..sample() });
    let lines = drawn(&mut screen, 80, 24);
    assert!(lines[2].starts_with("measuring"), "{}", lines[2]);
    assert!(lines[8].starts_with("vm"), "names are there at once");
}

#[test]
fn rows_are_sorted_and_reversed_by_keys() {
    let first = |keys: &str| {
        let mut screen = screen();
        press(&mut screen, keys);
        drawn(&mut screen, 80, 24)[8].split(' ').next().map(str::to_owned).expect("a word")
    };
    assert_eq!(first(""), "vm2", "the busiest");
    assert_eq!(first("r"), "vm3");
    assert_eq!(first(">"), "vm1", "by name");
    assert_eq!(first(">r"), "vm3");
    assert_eq!(first(">>>"), "vm2", "by packets sent");
    assert_eq!(first("<<<<<<<"), "vm1", "round to the name");
}

#[test]
fn a_filter_is_typed_kept_and_taken_away() {
    let mut screen = screen();
    press(&mut screen, "/VM1q");
    assert!(drawn(&mut screen, 80, 24)[23].starts_with("/VM1q_"), "a q in a filter is no command");
    screen.key(&KeyEvent::new(KeyCode::Backspace, KeyModifiers::NONE));
    press(&mut screen, "\n");
    let lines = drawn(&mut screen, 80, 24);
    assert!(
        lines[6].ends_with("only: VM1") && lines[8].starts_with("vm1") && lines[9].is_empty(),
        "{lines:?}"
    );
    press(&mut screen, "/nobody\n");
    assert!(drawn(&mut screen, 80, 24)[8].starts_with("no row has this"));
    press(&mut screen, "\x1b");
    assert!(drawn(&mut screen, 80, 24)[10].starts_with("vm3"));
}

#[test]
fn what_is_held_stays_until_it_is_let_go() {
    let mut screen = screen();
    press(&mut screen, " ");
    assert!(screen.is_paused());
    screen.take(Sample { ports: vec![port("other", 1.0)], ..sample() });
    let lines = drawn(&mut screen, 80, 24);
    assert!(lines[2].starts_with("HELD") && lines[8].starts_with("vm2"), "{lines:?}");
    press(&mut screen, " ");
    screen.take(Sample { ports: vec![port("other", 1.0)], ..sample() });
    assert!(drawn(&mut screen, 80, 24)[8].starts_with("other"));
}

#[test]
fn q_and_ctrl_c_end_it_wherever_it_is() {
    let ctrl = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
    assert_eq!(press(&mut screen(), "q"), After::End);
    assert_eq!(press(&mut screen(), "?q"), After::End);
    for keys in ["", "?", "/x"] {
        let mut screen = screen();
        press(&mut screen, keys);
        assert_eq!(screen.key(&ctrl('c')), After::End, "{keys:?}");
    }
    assert_eq!(screen().key(&ctrl('l')), After::Redraw);
}

#[test]
fn more_rows_than_fit_are_scrolled_and_never_past_the_end() {
    let mut screen = screen();
    screen.take(Sample { ports: (0..100).map(|i| port(&format!("vm{i:03}"), 1.0)).collect(), ..sample() });
    drawn(&mut screen, 80, 24);
    screen.key(&KeyEvent::new(KeyCode::PageDown, KeyModifiers::NONE));
    assert!(drawn(&mut screen, 80, 24)[8].starts_with("vm015"));
    press(&mut screen, "Gj");
    let lines = drawn(&mut screen, 80, 24);
    assert!(lines[22].starts_with("vm099"), "{}", lines[22]);
    assert!(
        drawn(&mut screen, 80, 40)[8 + 30].starts_with("vm099"),
        "a larger screen shows as many as it can"
    );
    press(&mut screen, "g");
    assert!(drawn(&mut screen, 80, 24)[8].starts_with("vm000"));
}

#[test]
fn hostile_names_stay_in_their_column() {
    let mut screen = screen();
    let names = [
        "\x1b[2J\x1b]0;title\x07vm\r\n",
        "\u{202e}left",
        "名前名前名前名前名前名前名前名前名前名前",
        "e\u{301}\u{301}\u{301}",
    ];
    let hostile = Sample {
        node: "node\x1b[31m".to_owned(),
        ports: names.iter().map(|name| port(name, 100.0)).collect(),
        ..sample()
    };
    screen.take(hostile);
    for (width, height) in [(80, 24), (60, 20)] {
        let lines = drawn(&mut screen, width, height);
        let rows: Vec<_> = lines.iter().filter(|line| line.contains("80.0k")).collect();
        assert_eq!(rows.len(), names.len(), "{lines:#?}");
        for row in rows {
            assert!(!row.chars().any(char::is_control), "{row:?}");
            assert_eq!(text::width(row), usize::from(width), "numbers end where they should: {row:?}");
        }
        assert!(lines[0].starts_with("node?[31m"));
    }
}

#[test]
fn without_colour_nothing_is_coloured() {
    let colours = |has_color| {
        let mut screen = Screen::new(has_color, View::Drops, "");
        screen.take(sample());
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("memory");
        terminal.draw(|frame| screen.draw(frame)).expect("memory");
        let cells = terminal.backend().buffer().content();
        cells.iter().filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset).count()
    };
    assert_eq!(colours(false), 0);
    assert!(colours(true) > 0);
}

#[test]
fn the_last_minute_has_a_value_for_each_second() {
    let mut screen = Screen::new(true, View::Ports, "");
    for (at, rate) in [(100, 5.0), (101, 6.0), (105, 10.0)] {
        screen.take(Sample { at_seconds: at, packets_per_second: rate, ..sample() });
    }
    let rates = screen.by_second();
    assert_eq!(rates.len(), 60);
    assert_eq!(rates[53..], [0, 5, 6, 10, 10, 10, 10]);
    screen.take(Sample { at_seconds: 1000, packets_per_second: 1.0, ..sample() });
    assert_eq!(screen.history.len(), 1, "what is older than a minute is gone");
    screen.take(Sample { at_seconds: 50, packets_per_second: 2.0, ..sample() });
    assert_eq!(screen.history.len(), 1, "the clock was set back");
}
