//! Which server is asked next, and when.

use std::time::Duration;

/// The first pause when nobody could be asked, and the longest.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// The servers of the configuration.
#[derive(Debug)]
pub struct Servers {
    all: Vec<String>,
    at: usize,
    /// Attempts since one of them was well.
    failed: u32,
}

impl Servers {
    /// At least one.
    pub fn new(all: Vec<String>) -> Servers {
        Servers { all, at: 0, failed: 0 }
    }

    /// Who is asked now.
    pub fn current(&self) -> &str {
        self.all.get(self.at).map_or("", String::as_str)
    }

    /// It answers: it is kept as long as it does.
    pub fn well(&mut self) {
        self.failed = 0;
    }

    /// It does not: the next one is asked, after this pause. None before each was asked once.
    pub fn failed(&mut self) -> Duration {
        let n = u32::try_from(self.all.len()).unwrap_or(u32::MAX).max(1);
        self.at = (self.at + 1) % self.all.len().max(1);
        self.failed = self.failed.saturating_add(1);
        match (self.failed / n, self.failed % n) {
            (0, _) => Duration::ZERO,
            (rounds, 0) => LONGEST.min(SHORTEST * 2_u32.saturating_pow(rounds.min(10) - 1)),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_asked_before_there_is_a_pause() {
        let mut s = Servers::new(vec!["a".to_owned(), "b".to_owned()]);
        let mut pauses = Vec::new();
        let mut asked = Vec::new();
        for _ in 0..6 {
            asked.push(s.current().to_owned());
            pauses.push(s.failed().as_millis());
        }
        assert_eq!(asked, ["a", "b", "a", "b", "a", "b"]);
        assert_eq!(pauses, [0, 100, 0, 200, 0, 400]);
        let longest = (0..100).map(|_| s.failed()).max();
        assert_eq!(longest, Some(LONGEST));
        s.well();
        assert_eq!((s.failed(), s.failed()), (Duration::ZERO, SHORTEST));
    }

    #[test]
    fn one_alone_is_asked_again_after_a_pause() {
        let mut s = Servers::new(vec!["a".to_owned()]);
        assert_eq!([s.failed(), s.failed()], [SHORTEST, SHORTEST * 2]);
        assert_eq!(s.current(), "a");
    }
}
