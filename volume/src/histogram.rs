//! Latencies by stage, cheap enough for every commit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SUB: usize = 16;
const BUCKETS: usize = 32 * SUB;

/// Counts durations in buckets of 6 % width, from 1 µs to over an hour.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    /// Nanoseconds; wraps.
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }
}

/// What a histogram says, in microseconds.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    /// How many were counted.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// The largest bucket with an entry.
    pub max: u64,
}

/// What a histogram says to a monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cumulative {
    /// How many were shorter than this, for growing durations: each twice the one before, from 16 µs to 16.8 s.
    pub below: Vec<(Duration, u64)>,
    /// How many were counted.
    pub count: u64,
    /// All of them together.
    pub sum: Duration,
}

fn bucket(us: u64) -> usize {
    if us < SUB as u64 {
        return us as usize;
    }
    let power = us.ilog2() as usize;
    let sub = (us >> (power - 4)) as usize - SUB;
    ((power - 3) * SUB + sub).min(BUCKETS - 1)
}

fn value(bucket: usize) -> u64 {
    if bucket < SUB {
        return bucket as u64;
    }
    let power = bucket / SUB + 3;
    ((SUB + bucket % SUB) as u64) << (power - 4)
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, d: Duration) {
        let us = u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(us)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(d.as_nanos() as u64, Ordering::Relaxed);
    }

    fn counts(&self) -> Vec<u64> {
        self.buckets.iter().map(|c| c.load(Ordering::Relaxed)).collect()
    }

    /// What was counted so far, for a monitor.
    pub fn cumulative(&self) -> Cumulative {
        let counts = self.counts();
        let below = |power: u32| {
            let end = 1 << power;
            (Duration::from_micros(end), counts[..bucket(end)].iter().sum())
        };
        Cumulative {
            below: (4..=24).map(below).collect(),
            count: counts.iter().sum(),
            sum: Duration::from_nanos(self.sum.load(Ordering::Relaxed)),
        }
    }

    /// Median, 99th percentile and maximum of what was counted so far.
    pub fn summary(&self) -> Summary {
        let counts = self.counts();
        let count: u64 = counts.iter().sum();
        let at = |share: f64| {
            let mut left = (count as f64 * share).ceil() as u64;
            for (i, n) in counts.iter().enumerate() {
                if *n >= left && left > 0 {
                    return value(i);
                }
                left = left.saturating_sub(*n);
            }
            0
        };
        let max = counts.iter().rposition(|&n| n > 0).map_or(0, value);
        Summary { count, p50: at(0.5), p99: at(0.99), max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_bucket() {
        let h = Histogram::default();
        for us in 1..=1000 {
            h.record(Duration::from_micros(us));
        }
        let s = h.summary();
        assert_eq!(s.count, 1000);
        assert!((470..=500).contains(&s.p50), "{}", s.p50);
        assert!((930..=990).contains(&s.p99), "{}", s.p99);
        for b in 0..BUCKETS {
            assert_eq!(bucket(value(b)), b);
        }
    }

    #[test]
    fn a_monitor_gets_what_was_counted() {
        let h = Histogram::default();
        let all = [3, 15, 16, 31, 32, 1000, 1023, 1024, 20_000_000].map(Duration::from_micros);
        for d in all {
            h.record(d);
        }
        let c = h.cumulative();
        assert_eq!((c.count, c.sum), (9, all.iter().sum()));
        for (end, n) in &c.below {
            assert_eq!(*n, all.iter().filter(|d| *d < end).count() as u64, "{end:?}");
        }
    }
}
