//! A table that can be sorted, filtered, and shown in any width.

use std::cmp::Ordering;

use super::text;

/// Between two columns.
const GAP: usize = 1;

/// What a column is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    /// How wide it is, or at least is for the one that takes what is left.
    pub width: usize,
    /// Columns with a higher number go first when there is no room; those with 0 stay.
    pub goes: u8,
    pub kind: Kind,
}

/// How a column is aligned, and sorted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Name,
    Number,
}

/// One place of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Text(String),
    /// A value, and how it is shown.
    Number(f64, String),
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub cells: Vec<Cell>,
    /// How busy it is: what rows are sorted by unless a column is chosen.
    pub weight: f64,
    /// Something about it needs a person.
    pub is_bad: bool,
}

/// A table. The first column is the rows' name.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    pub columns: Vec<Column>,
    /// The column that takes the room that is left.
    pub wide: usize,
    pub rows: Vec<Row>,
}

/// The order of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// A column, or the busiest first.
    pub column: Option<usize>,
    pub is_reversed: bool,
}

impl Cell {
    /// A number that is shown short.
    pub fn short(value: f64) -> Self {
        Self::Number(value, text::short(value))
    }

    /// A number that is shown whole.
    pub fn whole(value: u64) -> Self {
        Self::Number(value as f64, value.to_string())
    }

    /// A text that nothing is known of: names come from outside.
    pub fn name(name: &str) -> Self {
        Self::Text(text::plain(name))
    }

    /// As it is shown.
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Number(_, text) => text,
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Number(a, _), Self::Number(b, _)) => a.total_cmp(b),
            _ => self.text().cmp(other.text()),
        }
    }
}

impl Order {
    /// The next column to the right (or left), round by "busiest first".
    pub fn step(self, columns: usize, to_the_right: bool) -> Self {
        let column = match (self.column, to_the_right) {
            (None, true) => Some(0),
            (None, false) => columns.checked_sub(1),
            (Some(column), true) => Some(column + 1).filter(|&next| next < columns),
            (Some(column), false) => column.checked_sub(1),
        };
        Self { column, is_reversed: false }
    }
}

impl Grid {
    /// Puts rows in order: texts ascending, numbers the largest first. Rows that are alike stay in the order of
    /// their names.
    pub fn sort(&mut self, order: Order) {
        self.rows.sort_by(|a, b| {
            let by_name = || match (a.cells.first(), b.cells.first()) {
                (Some(a), Some(b)) => a.compare(b),
                _ => Ordering::Equal,
            };
            let column = order.column.filter(|&column| column < self.columns.len());
            let first = match column {
                None => b.weight.total_cmp(&a.weight),
                Some(column) => match (a.cells.get(column), b.cells.get(column)) {
                    (Some(a @ Cell::Number(..)), Some(b)) => b.compare(a),
                    (Some(a), Some(b)) => a.compare(b),
                    _ => Ordering::Equal,
                },
            };
            let first = if order.is_reversed { first.reverse() } else { first };
            first.then_with(by_name)
        });
    }

    /// Leaves only rows of which a text contains another, whatever the case.
    pub fn filter(&mut self, wanted: &str) {
        let wanted = wanted.to_lowercase();
        self.rows.retain(|row| {
            let mut texts = row.cells.iter().filter(|cell| matches!(cell, Cell::Text(_)));
            wanted.is_empty() || texts.any(|cell| cell.text().to_lowercase().contains(&wanted))
        });
    }

    /// The columns that there is room for, and how wide each is.
    pub fn fit(&self, room: usize) -> Vec<(usize, usize)> {
        let mut columns: Vec<(usize, usize)> =
            self.columns.iter().enumerate().map(|(i, column)| (i, column.width)).collect();
        let needed = |columns: &[(usize, usize)]| -> usize {
            columns.iter().map(|(_, width)| width + GAP).sum::<usize>().saturating_sub(GAP)
        };
        while needed(&columns) > room && columns.len() > 1 {
            let goes = |&(at, &(column, _)): &(usize, &(usize, usize))| (self.columns[column].goes, at);
            let last = columns.iter().enumerate().skip(1).max_by_key(goes).map(|(at, _)| at);
            match last.filter(|&at| self.columns[columns[at].0].goes > 0) {
                Some(at) => drop(columns.remove(at)),
                // None is left that may go: the last gives way all the same, before a line breaks.
                None if needed(&columns) - columns[0].1 + 4 > room => drop(columns.pop()),
                None => break,
            }
        }
        let used = needed(&columns);
        let wide = columns.iter().position(|&(column, _)| column == self.wide).unwrap_or(0);
        if let Some((_, width)) = columns.get_mut(wide) {
            *width = (*width + room.saturating_sub(used)).saturating_sub(used.saturating_sub(room));
        }
        columns
    }

    /// One line: the names of the columns.
    pub fn heading(&self, columns: &[(usize, usize)]) -> String {
        self.line(columns, |column| self.columns[column].name)
    }

    /// One line: a row.
    pub fn row(&self, row: usize, columns: &[(usize, usize)]) -> String {
        self.line(columns, |column| self.rows[row].cells.get(column).map_or("", Cell::text))
    }

    fn line<'a>(&'a self, columns: &[(usize, usize)], cell: impl Fn(usize) -> &'a str) -> String {
        let cells: Vec<String> = columns
            .iter()
            .map(|&(column, width)| text::fit(cell(column), width, self.columns[column].kind == Kind::Number))
            .collect();
        cells.join(&" ".repeat(GAP))
    }

    /// As a plain table: every column as wide as its widest cell.
    pub fn print(&self) -> String {
        if self.rows.is_empty() {
            return "none\n".to_owned();
        }
        let widest = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.cells.get(column));
            let cells = cells.map(|cell| text::width(cell.text())).max().unwrap_or(0);
            cells.max(text::width(self.columns[column].name))
        };
        let columns: Vec<_> = (0..self.columns.len()).map(|column| (column, widest(column))).collect();
        let rows = (0..self.rows.len()).map(|row| self.row(row, &columns));
        std::iter::once(self.heading(&columns))
            .chain(rows)
            .map(|line| line.trim_end().to_owned() + "\n")
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(rows: &[(&str, f64, f64)]) -> Grid {
        let column = |name, width, goes, kind| Column { name, width, goes, kind };
        Grid {
            columns: vec![
                column("PORT", 10, 0, Kind::Name),
                column("NETWORK", 10, 2, Kind::Name),
                column("P/S", 6, 0, Kind::Number),
                column("FLOWS", 6, 1, Kind::Number),
            ],
            wide: 0,
            rows: rows
                .iter()
                .map(|&(name, rate, flows)| Row {
                    cells: vec![Cell::name(name), Cell::name("web"), Cell::short(rate), Cell::short(flows)],
                    weight: rate,
                    is_bad: false,
                })
                .collect(),
        }
    }

    fn names(grid: &Grid) -> Vec<&str> {
        grid.rows.iter().map(|row| row.cells[0].text()).collect()
    }

    #[test]
    fn rows_are_in_order_of_any_column() {
        let mut grid = grid(&[("b", 9.0, 1.0), ("a", 10.0, 1.0), ("c", 9.0, 70.0)]);
        for (column, is_reversed, expected) in [
            (None, false, ["a", "b", "c"]),
            (None, true, ["b", "c", "a"]),
            (Some(0), false, ["a", "b", "c"]),
            (Some(0), true, ["c", "b", "a"]),
            (Some(3), false, ["c", "a", "b"]),
            (Some(99), false, ["a", "b", "c"]),
        ] {
            grid.sort(Order { column, is_reversed });
            assert_eq!(names(&grid), expected, "{column:?} {is_reversed}");
        }
    }

    #[test]
    fn columns_are_chosen_round_and_round() {
        let mut order = Order::default();
        let mut right = Vec::new();
        for _ in 0..3 {
            order = order.step(2, true);
            right.push(order.column);
        }
        assert_eq!(right, [Some(0), Some(1), None]);
        assert_eq!(Order::default().step(2, false).column, Some(1));
    }

    #[test]
    fn a_filter_looks_at_texts_alone() {
        let mut grid = grid(&[("vm1", 5.0, 1.0), ("VM2", 1.0, 1.0), ("other", 5.0, 5.0)]);
        grid.filter("vM");
        assert_eq!(names(&grid), ["vm1", "VM2"]);
        grid.filter("5");
        assert!(grid.rows.is_empty());
    }

    #[test]
    fn columns_go_by_rank_and_lines_are_never_wider_than_the_room() {
        let grid = grid(&[("a name that is much longer than its column", 1e9, 3.0)]);
        let shown = |room| grid.fit(room).iter().map(|(column, _)| *column).collect::<Vec<_>>();
        assert_eq!(shown(80), [0, 1, 2, 3]);
        assert_eq!(shown(34), [0, 2, 3], "the network goes first");
        assert_eq!(shown(20), [0, 2]);
        assert_eq!(shown(8), [0]);
        for room in 0..100 {
            let columns = grid.fit(room);
            for line in [grid.heading(&columns), grid.row(0, &columns)] {
                assert!(text::width(&line) <= room, "{line:?} in {room}");
            }
            if room > 40 {
                assert_eq!(text::width(&grid.row(0, &columns)), room, "all of it is used");
            }
        }
    }

    #[test]
    fn a_plain_table_is_whole() {
        assert_eq!(
            grid(&[("vm1", 1234.0, 2.0)]).print(),
            "PORT NETWORK   P/S FLOWS\nvm1  web     1.23k     2\n"
        );
        assert_eq!(grid(&[]).print(), "none\n");
    }
}
