//! Draws the screen, whatever size it has.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Paragraph, Sparkline},
};

use super::{HISTORY_SECONDS, Mode, Screen};
use crate::top::{
    grid::{Grid, Order},
    text,
    views::{self, View},
};

/// Below this height rows matter more than the past.
const SPARKLINE_FROM_HEIGHT: u16 = 18;
const SPARKLINE_HEIGHT: u16 = 3;

const HELP: [&str; 17] = [
    "1-5, tab, arrows  ports, routers, drops, tables, nodes",
    "<  >              sort by the column to the left, right",
    "r                 reverse the order",
    "/                 show only rows with a text; Esc: all",
    "up, down, PgUp, PgDn, Home, End   more rows",
    "space             hold what is shown",
    "Ctrl-L            draw the screen again",
    "q, Ctrl-C         end",
    "",
    "TX is what a port sent, RX what it received; of a node,",
    "what went to it and came from it by tunnels. P/S: packets,",
    "B/S: bits per second, of frames as they came in. FLOWS:",
    "connections. What a device merged to one super-packet",
    "is one packet. Without a column chosen the busiest rows",
    "come first. ARP, floods and answers are in no flow.",
    "",
    "any key: back",
];

struct Look {
    has_color: bool,
}

impl Look {
    fn heading(&self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    fn chosen(&self) -> Style {
        Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
    }

    fn bad(&self) -> Style {
        let style = Style::new().add_modifier(Modifier::BOLD);
        if self.has_color { style.fg(Color::Red) } else { style }
    }

    fn good(&self) -> Style {
        if self.has_color { Style::new().fg(Color::Green) } else { Style::new() }
    }

    fn quiet(&self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }
}

impl Screen {
    /// Draws it.
    pub fn draw(&mut self, frame: &mut Frame) {
        let look = Look { has_color: self.has_color };
        let area = frame.area();
        let width = usize::from(area.width);
        let sparkline = if area.height >= SPARKLINE_FROM_HEIGHT { SPARKLINE_HEIGHT } else { 0 };
        let [head, past, tabs, body, foot] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(sparkline),
            Constraint::Length(1),
            Constraint::Min(1),
            Constraint::Length(1),
        ])
        .areas(area);
        self.draw_head(frame, head, &look);
        if sparkline > 0 {
            self.draw_past(frame, past, &look);
        }
        frame.render_widget(Paragraph::new(self.tabs(&look)), tabs);
        if self.mode == Mode::Help {
            frame.render_widget(
                Paragraph::new(HELP.map(|line| Line::raw(text::cut(line, width))).to_vec()),
                body,
            );
        } else {
            self.draw_table(frame, body, &look);
        }
        let keys = match self.mode {
            Mode::Filter => format!("/{}_   Enter: keep, Esc: all rows", text::plain(&self.filter)),
            _ => "q quit  ? help  1-5 view  < > sort  r reverse  / filter  space hold".to_owned(),
        };
        frame.render_widget(
            Paragraph::new(Line::styled(text::fit(&keys, width, false), look.heading())),
            foot,
        );
    }

    fn draw_head(&self, frame: &mut Frame, area: Rect, look: &Look) {
        let width = usize::from(area.width);
        let line = |text: &str, style: Style| Line::styled(text::cut(text, width), style);
        let lines = match &self.sample {
            None => vec![line("vrouter top: measuring", Style::new())],
            Some(sample) => {
                let held = if self.is_paused { "HELD  " } else { "" };
                let health = if sample.status.healthy { look.good() } else { look.bad() };
                vec![
                    line(&views::title(sample), Style::new().add_modifier(Modifier::BOLD)),
                    line(&views::health(sample), health),
                    line(&format!("{held}{}", views::totals(sample)), Style::new()),
                ]
            }
        };
        frame.render_widget(Paragraph::new(lines), area);
    }

    /// The last minute, a column a second or more.
    fn draw_past(&self, frame: &mut Frame, area: Rect, look: &Look) {
        let rates = self.by_second();
        let most = rates.iter().copied().max().unwrap_or(0);
        let [label, chart] = Layout::horizontal([Constraint::Length(14), Constraint::Min(1)]).areas(area);
        let lines = vec![
            Line::styled(format!("{:>6} p/s max", text::short(most as f64)), look.quiet()),
            Line::raw(""),
            Line::styled(format!("last {HISTORY_SECONDS} s"), look.quiet()),
        ];
        frame.render_widget(Paragraph::new(lines), label);
        let room = usize::from(chart.width);
        let shown = &rates[rates.len().saturating_sub(room)..];
        frame.render_widget(Sparkline::default().data(shown).max(most.max(1)), chart);
    }

    fn tabs(&self, look: &Look) -> Line<'static> {
        let mut spans = Vec::new();
        for view in View::ALL {
            let style = if view == self.view { look.heading() } else { Style::new() };
            spans.push(Span::styled(format!("{} {}", view.index() + 1, view.name()), style));
            spans.push(Span::raw("  "));
        }
        if !self.filter.is_empty() {
            spans.push(Span::raw(format!("only: {}", text::plain(&self.filter))));
        }
        Line::from(spans)
    }

    fn draw_table(&mut self, frame: &mut Frame, area: Rect, look: &Look) {
        let view = self.view.index();
        let Some(sample) = &self.sample else { return };
        let grid = self.grid(sample);
        let columns = grid.fit(usize::from(area.width));
        let room = usize::from(area.height).saturating_sub(1);
        self.page = room.max(1);
        self.tops[view] = self.tops[view].min(grid.rows.len().saturating_sub(room));
        let mut lines = vec![heading(&grid, &columns, self.orders[view], look)];
        let rows = grid.rows.iter().enumerate().skip(self.tops[view]).take(room);
        lines.extend(rows.map(|(i, row)| {
            Line::styled(grid.row(i, &columns), if row.is_bad { look.bad() } else { Style::new() })
        }));
        if grid.rows.is_empty() {
            lines.push(Line::raw(match (self.view, self.filter.is_empty()) {
                (_, false) => "no row has this in a name; Esc shows all",
                (View::Drops, _) => "nothing was dropped",
                _ => "none",
            }));
        }
        frame.render_widget(Paragraph::new(lines), area);
    }
}

/// The columns' names; the one that rows are sorted by stands out, with its direction.
fn heading(grid: &Grid, columns: &[(usize, usize)], order: Order, look: &Look) -> Line<'static> {
    let mut spans = Vec::new();
    for (at, &(column, width)) in columns.iter().enumerate() {
        if at > 0 {
            spans.push(Span::raw(" "));
        }
        let is_chosen = order.column == Some(column);
        let is_number = grid.columns[column].kind == crate::top::grid::Kind::Number;
        let name = text::fit(grid.columns[column].name, width, is_number);
        spans.push(Span::styled(name, if is_chosen { look.chosen() } else { look.quiet() }));
    }
    Line::from(spans)
}
