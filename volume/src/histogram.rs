//! Latencies by stage, cheap enough for every commit.

use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SUB: usize = 16;
const BUCKETS: usize = 32 * SUB;

/// Counts durations in buckets of 6 % width, from 1 µs to over an hour.
#[derive(Debug)]
pub struct Histogram(Box<[AtomicU64]>);

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

/// What a histogram says, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
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
        self.0[bucket(us)].fetch_add(1, Ordering::Relaxed);
    }

    /// Median, 99th percentile and maximum of what was counted so far.
    pub fn summary(&self) -> Summary {
        let counts: Vec<u64> = self.0.iter().map(|c| c.load(Ordering::Relaxed)).collect();
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
}
