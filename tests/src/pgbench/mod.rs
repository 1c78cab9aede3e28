//! `make bench-postgres`: what it costs PostgreSQL to have its log in two places, by nasd and by others.
//!
//! Everything runs on one machine. One set-up is under load at a time, the others idle. Each load visits all set-ups
//! before the next, and each round begins with another one, so that a machine whose speed drifts changes all alike.

mod cluster;
mod gluster;
mod load;
pub mod meter;
mod side;
mod table;

use crate::stats::env;
use cluster::run;
use load::{Workload, load};
use side::Side;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use table::Cost;

const CLIENTS: [usize; 3] = [1, 8, 32];

struct Options {
    scale: usize,
    rounds: usize,
    seconds: usize,
    /// MiB of log before the checkpoint of the warm-up: segments to be used again by the rounds.
    log_mib: usize,
    only: Option<String>,
}

impl Options {
    fn from_env() -> Options {
        let quick = env("QUICK", 0) != 0;
        let or = |name, full, less| env(name, if quick { less } else { full });
        let scale = or("SCALE", 50, 5);
        Options {
            scale,
            rounds: or("ROUNDS", 5, 3),
            seconds: or("PG_SECONDS", 10, 1),
            log_mib: scale * 30,
            only: std::env::var("SETUPS").ok(),
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|o| o.split(',').any(|s| s == name))
    }
}

fn sides(options: &Options, dir: &Path) -> Vec<Side> {
    let start = Instant::now();
    let template = side::template(dir, options.scale);
    eprintln!("{:?}: template, scale {}", start.elapsed(), options.scale);
    let mut sides = Vec::new();
    let new: [(&str, fn(&Path, &Path) -> Result<Side, String>); 5] = [
        ("plain", |d, t| Ok(Side::plain(d, t))),
        ("streaming", |d, t| Ok(Side::streaming(d, t))),
        ("receivewal", |d, t| Ok(Side::receive(d, t))),
        ("gluster", Side::gluster),
        ("nasd", |d, t| Ok(Side::nasd(d, t))),
    ];
    for (name, new) in new.into_iter().filter(|(name, _)| options.wants(name)) {
        match new(dir, &template) {
            Ok(side) => {
                side.warm_up(options.log_mib);
                eprintln!("{:?}: {}", start.elapsed(), side.name);
                sides.push(side);
            }
            Err(why) => println!("skipped: {name}: {why}\n"),
        }
    }
    sides
}

/// One load on one set-up.
fn cell(side: &Side, dir: &Path, what: Workload, clients: usize, seconds: usize, seed: usize) -> Cost {
    side.wait_ready();
    // What the load before has left behind it does not pay for.
    run(Command::new("sync").arg("-f").arg(dir));
    let (cpu, sent, wal) = (side.cpu(), side.sent(), side.primary.wal_bytes());
    let seen = load(&side.primary, dir, what, clients, seconds, seed);
    let wal = (side.primary.wal_bytes() - wal) as f64;
    // What is on its way belongs to it.
    side.wait_ready();
    let used = side.cpu();
    let sent = side.sent().zip(sent).map(|(now, before)| {
        (now.checked_sub(before).expect("a connection lasts for a cell") as f64) / seen.transactions
    });
    let cpu =
        [used.database - cpu.database, used.near - cpu.near, used.far - cpu.far, used.standby - cpu.standby];
    let per = 1e4 / seen.transactions;
    Cost {
        tps: seen.tps,
        p50: seen.p50,
        p99: seen.p99,
        wal: wal / seen.transactions,
        sent,
        cpu: cpu.map(|c| c * per),
    }
}

fn first_line(mut command: Command) -> String {
    run(&mut command).lines().next().unwrap_or_default().to_owned()
}

fn describe(options: &Options, dir: &Path) {
    let mut uname = Command::new("uname");
    uname.arg("-sr");
    let mut fs = Command::new("findmnt");
    fs.args(["-n", "-o", "FSTYPE", "-T"]).arg(dir);
    let mut version = cluster::program("postgres");
    version.arg("--version");
    println!(
        "{}, {}, {} processors, {} below everything; scale {}, {} rounds of {} s each.\n",
        first_line(version),
        first_line(uname),
        std::thread::available_parallelism().map_or(0, usize::from),
        first_line(fs),
        options.scale,
        options.rounds,
        options.seconds
    );
    println!(
        "Warmed up by {} MiB of log, a checkpoint (the only one before the last table), a lock on one row of every page and a run of 8 \
         clients for {} s; autovacuum off, data checksums on, fillfactor 90. CPU: processor seconds for 10,000 \
         transactions.\n",
        options.log_mib,
        options.seconds * 2
    );
}

/// Runs all and prints the tables.
pub fn bench(dir: &Path) {
    let options = Options::from_env();
    let start = Instant::now();
    let sides = sides(&options, dir);
    describe(&options, dir);
    for side in &sides {
        cell(side, dir, Workload::TpcB, 8, options.seconds * 2, 1000);
    }
    let mut loads: Vec<(Workload, usize)> = Vec::new();
    for what in [Workload::SimpleUpdate, Workload::TpcB] {
        loads.extend(CLIENTS.map(|clients| (what, clients)));
    }
    loads.push((Workload::Noise, 8));
    let mut costs = vec![vec![Vec::new(); sides.len()]; loads.len()];
    for round in 0..options.rounds {
        for (l, &(what, clients)) in loads.iter().enumerate() {
            for i in 0..sides.len() {
                let s = (round + i) % sides.len();
                if what == Workload::Noise && !sides[s].counts_bytes() {
                    continue;
                }
                costs[l][s].push(cell(&sides[s], dir, what, clients, options.seconds, round));
            }
        }
        eprintln!("{:?}: round {} of {}", start.elapsed(), round + 1, options.rounds);
    }
    // At the end, since whole pages would be in what follows.
    loads.push((Workload::FullPages, 8));
    costs.push(vec![Vec::new(); sides.len()]);
    for round in 0..options.rounds {
        for i in 0..sides.len() {
            let s = (round + i) % sides.len();
            if sides[s].counts_bytes() {
                sides[s].primary.sql("checkpoint");
                let cost = cell(&sides[s], dir, Workload::FullPages, 8, options.seconds, round);
                costs[loads.len() - 1][s].push(cost);
            }
        }
    }
    for ((what, clients), costs) in loads.iter().zip(&costs) {
        let s = if *clients == 1 { "" } else { "s" };
        println!("{}, {clients} client{s}:\n\n{}", what.name(), table::head());
        for (side, costs) in sides.iter().zip(costs).filter(|(_, c)| !c.is_empty()) {
            println!("{}", table::row(side.name, costs));
        }
        println!();
    }
    sides.iter().for_each(Side::check);
    eprintln!("{:?}: done; each standby has the rows of its primary", start.elapsed());
}
