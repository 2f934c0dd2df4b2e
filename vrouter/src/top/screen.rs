//! The full screen: what keys do, and how it is drawn.

mod draw;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    grid::{Grid, Order},
    sample::Sample,
    views::View,
};

/// How far back the sparkline goes.
const HISTORY_SECONDS: u64 = 60;
/// Characters of a filter: as many as a name may have.
const FILTER_MAX: usize = 255;

/// Everything that is on the screen.
pub struct Screen {
    sample: Option<Sample>,
    /// Seconds since 1970 and packets per second.
    history: VecDeque<(u64, f64)>,
    view: View,
    /// By view.
    orders: [Order; View::ALL.len()],
    /// First row shown, by view.
    tops: [usize; View::ALL.len()],
    filter: String,
    mode: Mode,
    is_paused: bool,
    has_color: bool,
    /// Rows there was room for when it was drawn last.
    page: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Table,
    /// A filter is being typed.
    Filter,
    Help,
}

/// What is to be done after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Nothing,
    /// Everything is drawn again: something else may have written to the terminal.
    Redraw,
    End,
}

impl Screen {
    /// Before the first sample.
    pub fn new(has_color: bool, view: View, filter: &str) -> Self {
        Self {
            sample: None,
            history: VecDeque::new(),
            view,
            orders: [Order::default(); View::ALL.len()],
            tops: [0; View::ALL.len()],
            filter: filter.chars().take(FILTER_MAX).collect(),
            mode: Mode::Table,
            is_paused: false,
            has_color,
            page: 1,
        }
    }

    /// Whether what is shown is to stay.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Takes a sample. While paused, what is shown stays.
    pub fn take(&mut self, sample: Sample) {
        if sample.interval_seconds.is_some() {
            self.history.push_back((sample.at_seconds, sample.packets_per_second));
            let begin = sample.at_seconds.saturating_sub(HISTORY_SECONDS);
            // A clock that was set back makes a new beginning.
            self.history.retain(|&(at, _)| at > begin && at <= sample.at_seconds);
        }
        if !self.is_paused || self.sample.is_none() {
            self.sample = Some(sample);
        }
    }

    /// Does what a key says.
    pub fn key(&mut self, key: &KeyEvent) -> After {
        if key.kind == KeyEventKind::Release {
            return After::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => After::End,
                KeyCode::Char('l') => After::Redraw,
                KeyCode::Char('u') if self.mode == Mode::Filter => {
                    self.filter.clear();
                    After::Nothing
                }
                _ => After::Nothing,
            };
        }
        match self.mode {
            Mode::Filter => self.type_filter(key.code),
            Mode::Help => match key.code {
                KeyCode::Char('q') => return After::End,
                _ => self.mode = Mode::Table,
            },
            Mode::Table => return self.command(key.code),
        }
        After::Nothing
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.mode = Mode::Table,
            KeyCode::Esc => {
                self.filter.clear();
                self.mode = Mode::Table;
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if self.filter.chars().count() < FILTER_MAX => self.filter.push(c),
            _ => {}
        }
        self.tops = Default::default();
    }

    fn command(&mut self, code: KeyCode) -> After {
        let view = self.view.index();
        match code {
            KeyCode::Char('q') => return After::End,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.mode = Mode::Help,
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char(' ' | 'p') => self.is_paused = !self.is_paused,
            KeyCode::Char(digit @ '1'..='5') => {
                let wanted = digit.to_digit(10).and_then(|digit| View::ALL.get(digit as usize - 1));
                self.view = wanted.copied().unwrap_or(self.view);
            }
            KeyCode::Tab | KeyCode::Right => self.view = self.view.step(true),
            KeyCode::BackTab | KeyCode::Left => self.view = self.view.step(false),
            KeyCode::Char(c @ ('<' | '>' | ',' | '.')) => {
                let columns = self.sample.as_ref().map_or(0, |sample| self.view.grid(sample).columns.len());
                self.orders[view] = self.orders[view].step(columns, matches!(c, '>' | '.'));
            }
            KeyCode::Char('r') => self.orders[view].is_reversed ^= true,
            KeyCode::Down | KeyCode::Char('j') => self.tops[view] = self.tops[view].saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.tops[view] = self.tops[view].saturating_sub(1),
            KeyCode::PageDown => self.tops[view] = self.tops[view].saturating_add(self.page),
            KeyCode::PageUp => self.tops[view] = self.tops[view].saturating_sub(self.page),
            KeyCode::Home | KeyCode::Char('g') => self.tops[view] = 0,
            KeyCode::End | KeyCode::Char('G') => self.tops[view] = usize::MAX,
            _ => {}
        }
        After::Nothing
    }

    /// The table at hand: filtered and in order.
    fn grid(&self, sample: &Sample) -> Grid {
        let mut grid = self.view.grid(sample);
        grid.filter(&self.filter);
        grid.sort(self.orders[self.view.index()]);
        grid
    }

    /// Packets per second in each of the last seconds, the oldest first. Where reads are further apart, a value
    /// stands for all the seconds since the one before.
    fn by_second(&self) -> Vec<u64> {
        let Some(&(end, _)) = self.history.back() else { return Vec::new() };
        let begin = (end + 1).saturating_sub(HISTORY_SECONDS);
        (begin..=end)
            .map(|second| {
                let at = self.history.iter().find(|(at, _)| *at >= second);
                let is_measured = self.history.front().is_some_and(|(first, _)| *first <= second);
                at.filter(|_| is_measured).map_or(0, |(_, rate)| *rate as u64)
            })
            .collect()
    }
}
