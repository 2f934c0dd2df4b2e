//! How near a table is to its end: said once at each level, and once when it is over.

use serde::{Serialize, Serializer};

/// How full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    Normal,
    High,
    Critical,
}

impl Level {
    /// Where it begins.
    pub const fn percent(self) -> u64 {
        match self {
            Self::Normal => 0,
            Self::High => 80,
            Self::Critical => 95,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// A level is left only when it is this much below, so that a table at the edge does not say so at every pass.
const SLACK_PERCENT: u64 = 5;

/// The level a table is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure(Level);

impl Pressure {
    /// The level.
    pub fn level(self) -> Level {
        self.0
    }

    /// The level's name.
    pub const fn name(self) -> &'static str {
        self.0.name()
    }

    /// Takes a count; the new level, if it is another.
    pub fn update(&mut self, entries: u64, most: u64) -> Option<Level> {
        let reaches = |percent: u64| entries * 100 >= most.max(1) * percent;
        let level = [Level::Critical, Level::High].into_iter().find(|&level| {
            let slack = if self.0 >= level { SLACK_PERCENT } else { 0 };
            reaches(level.percent() - slack)
        });
        let level = level.unwrap_or_default();
        (std::mem::replace(&mut self.0, level) != level).then_some(level)
    }
}

impl Serialize for Pressure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_is_said_once_and_left_with_a_margin() {
        let mut pressure = Pressure::default();
        for (entries, said) in [
            (0, None),
            (79, None),
            (80, Some(Level::High)),
            (85, None),
            (76, None),
            (80, None),
            (94, None),
            (95, Some(Level::Critical)),
            (100, None),
            (91, None),
            (89, Some(Level::High)),
            (95, Some(Level::Critical)),
            (74, Some(Level::Normal)),
            (79, None),
            (96, Some(Level::Critical)),
            (0, Some(Level::Normal)),
        ] {
            assert_eq!(pressure.update(entries, 100), said, "at {entries}");
        }
    }
}
