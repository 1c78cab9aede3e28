//! What is printed: a Markdown table for each load.

use crate::stats::spread;

/// What one run of one set-up cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Transactions a second.
    pub tps: f64,
    /// Milliseconds.
    pub p50: f64,
    /// Milliseconds.
    pub p99: f64,
    /// Bytes of PostgreSQL's log for each transaction.
    pub wal: f64,
    /// Bytes to the other machine for each transaction.
    pub sent: Option<f64>,
    /// Processor seconds for 10,000 transactions: database, replication here, replication there, standby.
    pub cpu: [f64; 4],
}

/// The head of a table.
pub fn head() -> String {
    let columns = [
        "",
        "TPS",
        "p50, ms",
        "p99, ms",
        "log, B/tx",
        "sent, B/tx",
        "sent / log",
        "CPU database",
        "CPU replication, primary",
        "CPU replication, secondary",
        "CPU standby",
    ];
    format!("| {} |\n|{}", columns.join(" | "), " --- |".repeat(columns.len()))
}

/// The row of a set-up from all its rounds.
pub fn row(name: &str, costs: &[Cost]) -> String {
    let column = |digits: usize, f: &dyn Fn(&Cost) -> Option<f64>| {
        let values: Vec<f64> = costs.iter().filter_map(f).collect();
        // A process that is not there used nothing in any round.
        if values.iter().all(|&v| v == 0.0) { "–".to_owned() } else { spread(&values, digits) }
    };
    let mut cells = vec![
        column(0, &|c| Some(c.tps)),
        column(2, &|c| Some(c.p50)),
        column(2, &|c| Some(c.p99)),
        column(0, &|c| Some(c.wal)),
        column(0, &|c| c.sent),
        column(2, &|c| Some(c.sent? / c.wal)),
    ];
    cells.extend((0..4).map(|i| column(1, &|c| Some(c.cpu[i]))));
    format!("| {name} | {} |", cells.join(" | "))
}
