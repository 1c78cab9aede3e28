//! What a new primary says of how it became one.

use crate::Node;
use std::time::{Duration, SystemTime};

/// When it had taken over, how long that took, and the steps as it tells them.
#[derive(Debug)]
pub struct Story {
    /// It had, by the clock of the machine.
    pub done: SystemTime,
    /// Since its decision.
    pub took: Duration,
    /// Each step with its time.
    pub steps: String,
}

impl Story {
    /// The last one of a node, if it was told since `from`.
    pub fn last(node: &Node, from: SystemTime) -> Option<Story> {
        let log = node.log_text();
        let line = log.lines().rfind(|l| l.contains("took over in "))?;
        let done = time(line.split_whitespace().next()?, from)?;
        let (_, told) = line.split_once("took over in ")?;
        let (ms, steps) = told.split_once(" ms: ")?;
        let took = Duration::from_millis(ms.parse().ok()?);
        (done >= from).then(|| Story { done, took, steps: steps.replace(" kind=Role", "") })
    }
}

/// A line's time of day, `2026-01-31T12:34:56.123456Z`, on the day of `near`: no failover takes half a day.
fn time(text: &str, near: SystemTime) -> Option<SystemTime> {
    const DAY: f64 = 86400.0;
    let (_, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let of_day = clock.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))?;
    let near = near.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs_f64();
    let days = ((near - of_day) / DAY).round();
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(days * DAY + of_day))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_day_is_that_of_the_nearest_day() {
        let at = |seconds: f64| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds);
        let noon = at(20.0 * 86400.0 + 12.0 * 3600.0);
        let read = time("1970-01-21T12:00:01.500000Z", noon).unwrap();
        assert_eq!(read.duration_since(noon).unwrap(), Duration::from_millis(1500));
        let before_midnight = at(20.0 * 86400.0 - 1.0);
        let read = time("1970-01-21T00:00:01Z", before_midnight).unwrap();
        assert_eq!(read.duration_since(before_midnight).unwrap(), Duration::from_secs(2));
        assert!(time("nonsense", noon).is_none());
    }
}
