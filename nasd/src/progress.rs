//! Long work under way: how much of it is done, how fast, and how long it takes still.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The pace is that of the last so many seconds: what was fast or slow before says little of what is left.
const WINDOW: Duration = Duration::from_secs(10);
/// Samples of it are so far apart at least.
const APART: Duration = Duration::from_millis(250);

/// What an operator is told of one work.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProgressStatus {
    /// In words.
    pub what: String,
    /// In `unit`; never more than `total`.
    pub done: u64,
    /// None where nobody can know.
    pub total: Option<u64>,
    pub unit: String,
    /// Of the last seconds.
    pub bytes_per_second: u64,
    /// None while the total or the pace is not known.
    pub seconds_left: Option<f64>,
}

/// All work under way in this node.
#[derive(Debug, Default)]
pub struct Progress(Mutex<Vec<Arc<Inner>>>);

/// One work; it is under way until this is dropped.
#[derive(Debug)]
pub struct Work<'a> {
    all: &'a Progress,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    what: String,
    total: Option<u64>,
    meter: Mutex<Meter>,
}

impl Progress {
    /// Begins a work of so many bytes, if anybody knows how many.
    pub fn begin(&self, what: impl Into<String>, total: Option<u64>) -> Work<'_> {
        let inner =
            Arc::new(Inner { what: what.into(), total, meter: Mutex::new(Meter::new(Instant::now())) });
        self.0.lock().push(Arc::clone(&inner));
        Work { all: self, inner }
    }

    /// What is under way, the oldest first.
    pub fn status(&self) -> Vec<ProgressStatus> {
        let now = Instant::now();
        self.0.lock().iter().map(|w| w.status(now)).collect()
    }
}

impl Work<'_> {
    /// So many more bytes are done.
    pub fn step(&self, bytes: u64) {
        self.inner.meter.lock().add(Instant::now(), bytes);
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.all.0.lock().retain(|w| !Arc::ptr_eq(w, &self.inner));
    }
}

impl Inner {
    fn status(&self, now: Instant) -> ProgressStatus {
        let (done, pace) = {
            let meter = self.meter.lock();
            (meter.done, meter.pace(now))
        };
        // Files grow while they are gone through.
        let total = self.total.map(|t| t.max(done));
        let per_second = pace.unwrap_or(0.0);
        ProgressStatus {
            what: self.what.clone(),
            done,
            total,
            unit: "bytes".to_owned(),
            bytes_per_second: per_second as u64,
            seconds_left: seconds_left(done, total, per_second),
        }
    }
}

/// At this pace; none where nothing moves or nobody knows how much there is.
fn seconds_left(done: u64, total: Option<u64>, per_second: f64) -> Option<f64> {
    let left = total?.saturating_sub(done) as f64;
    (per_second > 0.0).then(|| left / per_second)
}

/// How much is done, and how fast of late.
#[derive(Debug)]
struct Meter {
    done: u64,
    samples: VecDeque<(Instant, u64)>,
}

impl Meter {
    fn new(now: Instant) -> Meter {
        Meter { done: 0, samples: VecDeque::from([(now, 0)]) }
    }

    fn add(&mut self, now: Instant, n: u64) {
        self.done += n;
        if self.samples.back().is_none_or(|(at, _)| now.duration_since(*at) >= APART) {
            self.samples.push_back((now, self.done));
        }
        // One sample from before the window stays: the pace is measured from there.
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// A second; none before a first moment has passed.
    fn pace(&self, now: Instant) -> Option<f64> {
        let (at, then) = self.samples.front()?;
        let seconds = now.duration_since(*at).as_secs_f64();
        (seconds >= APART.as_secs_f64()).then(|| (self.done - then) as f64 / seconds)
    }
}

impl ProgressStatus {
    /// One line for people.
    pub fn line(&self) -> String {
        let mut line = format!("{}: {}", self.what, size(self.done));
        // Writing to a string can't fail.
        if let Some(total) = self.total {
            let _ = write!(line, " of {} ({} %)", size(total), percent(self.done, total));
        }
        let _ = write!(line, ", {}/s", size(self.bytes_per_second));
        if let Some(seconds) = self.seconds_left {
            let whole = Duration::from_secs(seconds.min(1e9).ceil() as u64);
            let _ = write!(line, ", {} left", humantime::format_duration(whole));
        }
        line
    }
}

/// Of nothing all is done.
fn percent(done: u64, total: u64) -> u64 {
    if total == 0 { 100 } else { (u128::from(done) * 100 / u128::from(total)) as u64 }
}

/// Bytes as people read them: three digits or four.
pub fn size(bytes: u64) -> String {
    let mut n = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if n < 1000.0 {
            let digits = usize::from(unit != "B" && n < 100.0);
            return format!("{n:.digits$} {unit}");
        }
        n /= 1024.0;
    }
    format!("{n:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        assert_eq!(meter.pace(start), None);
        for tenth in 1..=1000 {
            // 100 a second, then 10.
            let n = if tenth <= 500 { 10 } else { 1 };
            meter.add(start + Duration::from_millis(100 * tenth), n);
        }
        let pace = meter.pace(start + Duration::from_secs(100)).expect("it moves");
        assert!((9.9..10.1).contains(&pace), "{pace}");
        // What stands still gets slower and slower.
        let later = meter.pace(start + Duration::from_secs(200)).expect("it moved");
        assert!(later < 1.0, "{later}");
        assert!(meter.samples.len() < 50);
    }

    #[test]
    fn what_nobody_knows_is_not_made_up() {
        assert_eq!(seconds_left(5, None, 10.0), None);
        assert_eq!(seconds_left(5, Some(10), 0.0), None);
        assert_eq!(seconds_left(5, Some(10), 2.5), Some(2.0));
        assert_eq!(seconds_left(12, Some(10), 1.0), Some(0.0));
    }

    #[test]
    fn what_grows_is_never_more_than_done() {
        let progress = Progress::default();
        let work = progress.begin("a copy", Some(100));
        work.step(60);
        let s = &progress.status()[0];
        assert_eq!((s.done, s.total), (60, Some(100)));
        // More than there was at the beginning.
        work.step(50);
        let s = &progress.status()[0];
        assert_eq!((s.done, s.total), (110, Some(110)));
        drop(work);
        assert!(progress.status().is_empty());
    }

    #[test]
    fn a_line_says_what_is_known() {
        let mut s = ProgressStatus {
            what: "full copy to b".to_owned(),
            done: 1 << 29,
            total: Some(3 << 30),
            unit: "bytes".to_owned(),
            bytes_per_second: 100 << 20,
            seconds_left: Some(25.6),
        };
        assert_eq!(s.line(), "full copy to b: 512 MiB of 3.0 GiB (16 %), 100 MiB/s, 26s left");
        (s.total, s.seconds_left) = (None, None);
        assert_eq!(s.line(), "full copy to b: 512 MiB, 100 MiB/s");
        assert_eq!(percent(0, 0), 100);
    }
}
