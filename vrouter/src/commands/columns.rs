//! A table of any length: its columns are as wide as the first rows ask for, and grow when later ones are wider.

use std::io::{Result, Write};

/// Rows that are held back to see how wide they are.
const HELD: usize = 512;

/// Rows on their way out.
pub struct Columns<const N: usize> {
    widths: [usize; N],
    held: Vec<[String; N]>,
    headings: Option<[String; N]>,
    rows: u64,
}

impl<const N: usize> Columns<N> {
    /// A table with these headings.
    pub fn new(headings: [&str; N]) -> Self {
        let headings = headings.map(str::to_uppercase);
        Self { widths: [0; N], held: Vec::new(), headings: Some(headings), rows: 0 }
    }

    /// Without them: it goes on from another.
    pub fn omit_headings(&mut self) {
        self.headings = None;
    }

    /// Whether there is anything in it.
    pub fn has_rows(&self) -> bool {
        self.rows > 0
    }

    /// One more row.
    pub fn add(&mut self, row: [String; N], out: &mut impl Write) -> Result<()> {
        self.rows += 1;
        self.held.push(row);
        if self.held.len() >= HELD { self.flush(out) } else { Ok(()) }
    }

    /// The end.
    pub fn finish(mut self, out: &mut impl Write) -> Result<()> {
        if self.rows == 0 {
            return writeln!(out, "none");
        }
        self.flush(out)
    }

    fn flush(&mut self, out: &mut impl Write) -> Result<()> {
        for row in self.headings.iter().chain(&self.held) {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in self.headings.take().into_iter().chain(self.held.drain(..)) {
            let mut line = String::new();
            for (width, cell) in self.widths.iter().zip(&row) {
                line += &format!("{cell:<width$}  ");
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[[&str; 2]]) -> String {
        let mut columns = Columns::new(["a", "long"]);
        let mut out = Vec::new();
        for row in rows {
            columns.add(row.map(str::to_owned), &mut out).expect("memory");
        }
        columns.finish(&mut out).expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        assert_eq!(table(&[["x", "y"], ["wide", ""]]), "A     LONG\nx     y\nwide\n");
        assert_eq!(table(&[]), "none\n");
    }

    #[test]
    fn later_rows_only_widen() {
        let mut rows = vec![["x", "y"]; HELD];
        rows.push(["wider", "z"]);
        let text = table(&rows);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), HELD + 2);
        assert_eq!((lines[HELD], lines[HELD + 1]), ("x  y", "wider  z"));
    }
}
