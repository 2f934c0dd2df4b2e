//! At most so many per second.

use std::time::Instant;

/// A bucket of tokens that holds one second's worth.
#[derive(Clone, Debug)]
pub struct Pace {
    per_second: u32,
    tokens: f64,
    refilled: Option<Instant>,
}

impl Pace {
    /// Full.
    pub fn new(per_second: u32) -> Self {
        Self { per_second, tokens: f64::from(per_second), refilled: None }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let most = f64::from(self.per_second);
        if let Some(refilled) = self.refilled {
            let passed = now.saturating_duration_since(refilled).as_secs_f64();
            self.tokens = (self.tokens + passed * most).min(most);
        }
        self.refilled = Some(now.max(self.refilled.unwrap_or(now)));
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn gives_one_second_s_worth_at_once_and_then_its_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(100);
        let taken = |pace: &mut Pace, at| (0..1000).filter(|_| pace.take(at)).count();
        assert_eq!(taken(&mut pace, start), 100);
        assert_eq!(taken(&mut pace, start + Duration::from_millis(10)), 1);
        assert_eq!(taken(&mut pace, start + Duration::from_millis(510)), 50);
        assert_eq!(taken(&mut pace, start + Duration::from_secs(3600)), 100, "no more than a second's worth");
        assert_eq!(taken(&mut pace, start), 0, "time does not go back");
    }
}
