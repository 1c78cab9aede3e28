//! How long clients wait for a new primary, and what for.

mod story;
mod world;

use crate::postgres::available;
use crate::stats::{env, spread};
use std::time::Duration;
use world::World;

/// Where the time of one failover went, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    /// From the kill to the first acknowledged write.
    pub total: f64,
    /// From the kill to the new primary's decision.
    pub detection: f64,
    /// What the new primary did then, as it says itself.
    pub takeover: f64,
}

impl Parts {
    /// What is neither: the client's way to the new primary. Below zero when it is answered before the new primary is
    /// through with everything.
    fn rest(&self) -> f64 {
        self.total - self.detection - self.takeover
    }
}

fn killed(timeout: &str, database: bool, rounds: usize) -> Option<String> {
    let what = format!("{}, timeout {timeout}", if database { "PostgreSQL" } else { "the volume alone" });
    let mut world = World::new(timeout, database)?;
    let mut all = Vec::new();
    for round in 0..rounds {
        let (parts, told) = world.kill();
        eprintln!(
            "{what}, round {round}: {:.3} s, of it {:.3} s until it was decided: {told}",
            parts.total, parts.detection
        );
        all.push(parts);
        world.mend();
    }
    let column = |f: fn(&Parts) -> f64| spread(&all.iter().map(f).collect::<Vec<_>>(), 2);
    Some(format!(
        "| {what} | {} | {} | {} | {} | {} |",
        column(|p| p.total),
        column(|p| p.detection),
        column(|p| p.takeover),
        column(Parts::rest),
        column(|p| p.total - p.detection),
    ))
}

fn switched(rounds: usize) -> Option<String> {
    let mut world = World::new("10s", false)?;
    let pauses: Vec<f64> = (0..rounds)
        .map(|round| {
            let pause = world.switch_over();
            eprintln!("switchover, round {round}: {pause:?}");
            pause.as_secs_f64()
        })
        .collect();
    Some(format!("Switchover in order, the volume alone: {} s", spread(&pauses, 3)))
}

/// Measures and prints all.
pub fn bench() {
    let rounds = env("ROUNDS", 20);
    let databases: &[bool] = if available("with PostgreSQL") { &[false, true] } else { &[false] };
    let switched = switched(rounds);
    let mut rows = Vec::new();
    let timeouts = std::env::var("TIMEOUTS").unwrap_or_else(|_| "1s 10s".to_owned());
    for timeout in timeouts.split_whitespace() {
        for &database in databases {
            rows.extend(killed(timeout, database, rounds));
        }
    }
    println!("Seconds; medians of {rounds} rounds, with the smallest and the largest.\n");
    println!("| | total | detection | takeover | rest | total less detection |");
    println!("| --- | --- | --- | --- | --- | --- |\n{}\n", rows.join("\n"));
    println!("{}", switched.unwrap_or_default());
}

/// Time enough for clients to be at work again before the next round.
const SETTLED: Duration = Duration::from_millis(500);
