//! `nasd demo`: a pair on this machine, a database on it, and a primary that dies in mid-write.
//!
//! The story is [`story`], step by step. [`stage`] holds what has to be taken down whatever happens: the processes,
//! the mounts, the temporary directory. [`database`] writes rows and knows which of them were acknowledged.

mod database;
mod stage;

use crate::status::Status;
use anyhow::{Context, Result, bail};
use database::{Database, Writer};
use hyper::Method;
use serde_json::Value;
use stage::{Node, Stage};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How long a change of role or a resync may take here. Mostly it is milliseconds; this is for a machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the demo. Fails when anything did not hold.
pub fn run(seconds: u64, keep: bool) -> Result<()> {
    let stage = Stage::set(keep)?;
    let played = story(&stage, Duration::from_secs(seconds));
    stage.wait_if_interrupted();
    if played.is_err() {
        stage.tell_last_words();
    }
    if !keep {
        stage.say(format_args!("taking everything down"));
    }
    stage.clear();
    played
}

fn story(stage: &Stage, time: Duration) -> Result<()> {
    let (a, b) = (&stage.a, &stage.b);
    stage.say(format_args!("a pair on this machine, in {}", stage.path().display()));
    in_sync(stage, a, b, || {
        stage.start(b)?;
        stage.start(a)
    })?;

    let first = Database::create(&a.mount.join("demo.db"))?;
    stage.say(format_args!(
        "SQLite on {}: WAL mode, synchronous=FULL, a COMMIT for each row",
        a.mount.display()
    ));
    let writer = Writer::start(first)?;
    watch(stage, a, &writer, time)?;

    let (died, acknowledged) = kill_in_mid_write(stage, a, writer)?;
    take_over(stage, b, died)?;
    let second = check(stage, b, acknowledged, "after the failover")?;

    let writer = Writer::start(second)?;
    watch(stage, b, &writer, time / 2)?;
    stage.say(format_args!("{} comes back, while {} goes on writing", a.name, b.name));
    in_sync(stage, b, a, || stage.start(a))?;
    watch(stage, b, &writer, time / 2)?;
    let acknowledged = writer.stop()?;

    switch_over(stage, a)?;
    in_sync(stage, a, b, || Ok(()))?;
    let third = check(stage, a, acknowledged, "after the switchover")?;
    let writer = Writer::start(third)?;
    watch(stage, a, &writer, Duration::from_secs(1))?;
    let rows = writer.stop()?;
    compare(stage, a)?;

    if stage.keeps() {
        stage.tell_what_is_where();
    } else {
        stage.stop(a)?;
        stage.stop(b)?;
    }
    stage.say(format_args!("all held: {rows} rows were acknowledged, none is lost"));
    Ok(())
}

/// Does `first`, and waits until `primary` and `secondary` are what their names say, and in sync.
fn in_sync(
    stage: &Stage,
    primary: &Node,
    secondary: &Node,
    first: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let start = Instant::now();
    first()?;
    for (node, role) in [(primary, "primary"), (secondary, "secondary")] {
        let last = stage.wait_for(node, PATIENCE, |s| s.role == role && s.state == "in-sync")?;
        if let Err(s) = last {
            bail!(
                "{} is {}, {} ({}) and not {role}, in-sync after {PATIENCE:?}; see {}, with --keep",
                node.name,
                s.role,
                s.state,
                s.detail,
                node.log.display()
            );
        }
    }
    let epoch = primary.status()?.epoch;
    stage.say(format_args!(
        "{} is primary of epoch {epoch}, {} is in sync with it: took {}",
        primary.name,
        secondary.name,
        ms(start.elapsed())
    ));
    Ok(())
}

/// Shows for `time` how fast rows are committed and how far the secondary is behind.
fn watch(stage: &Stage, primary: &Node, writer: &Writer, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    let mut then = (Instant::now(), writer.acknowledged());
    while Instant::now() < end {
        std::thread::sleep(Duration::from_secs(1).min(end - Instant::now()));
        if writer.has_ended() {
            // Its own error says more: `stop` tells it.
            break;
        }
        let now = (Instant::now(), writer.acknowledged());
        let rate = (now.1 - then.1) as f64 / (now.0 - then.0).as_secs_f64();
        then = now;
        stage.say_live(format_args!("{rate:6.0} commits/s, {}", behind(&primary.status()?)));
    }
    stage.end_live();
    Ok(())
}

fn behind(status: &Status) -> String {
    let Some(peer) = status.peers.first() else {
        return "no secondary".to_owned();
    };
    let how = match peer.state.as_str() {
        "in-sync" => String::new(),
        state => format!(" ({state})"),
    };
    format!(
        "{}{how} is behind by {} transactions, {} bytes; shows all but the last {}",
        peer.name,
        peer.lag_transactions,
        peer.lag_bytes,
        status.seq.saturating_sub(peer.applied_seq)
    )
}

/// SIGKILL, while the writer is somewhere in a transaction. Returns when that was, and the last row whose COMMIT
/// returned.
fn kill_in_mid_write(stage: &Stage, primary: &Node, writer: Writer) -> Result<(Instant, u64)> {
    let pid = stage.kill(primary)?;
    let died = Instant::now();
    let (acknowledged, error) = writer.wait_for_failure()?;
    stage.say(format_args!("{} (process {pid}) was killed with SIGKILL in mid-write", primary.name));
    stage.say(format_args!("row {acknowledged} was the last whose COMMIT returned; the next one: {error}"));
    Ok((died, acknowledged))
}

fn take_over(stage: &Stage, secondary: &Node, died: Instant) -> Result<()> {
    let steps = secondary
        .call(Method::POST, "/v1/promote?force=false")
        .with_context(|| format!("promoting {}", secondary.name))?;
    let after = died.elapsed();
    stage.say(format_args!("{} is promoted:", secondary.name));
    tell_steps(stage, &steps);
    stage.say(format_args!("{} is writable {} after the kill", secondary.mount.display(), ms(after)));
    Ok(())
}

fn switch_over(stage: &Stage, to: &Node) -> Result<()> {
    let steps =
        to.call(Method::POST, "/v1/switchover").with_context(|| format!("switching over to {}", to.name))?;
    stage.say(format_args!("{} gets its role back, in order:", to.name));
    tell_steps(stage, &steps);
    Ok(())
}

fn tell_steps(stage: &Stage, steps: &Value) {
    for s in steps.as_array().into_iter().flatten() {
        let took = s["ms"].as_f64().unwrap_or(0.0);
        stage.say(format_args!("  {took:7.1} ms  {}", s["step"].as_str().unwrap_or("")));
    }
}

/// Opens the database on `node` and looks for every row up to `acknowledged`.
fn check(stage: &Stage, node: &Node, acknowledged: u64, when: &str) -> Result<Database> {
    let database = Database::open(&node.mount.join("demo.db"))?;
    let rows = database.check(acknowledged).with_context(|| format!("on {} {when}", node.name))?;
    stage.say(format_args!(
        "{when}: all {acknowledged} acknowledged rows are on {} ({rows} in all), integrity_check says ok",
        node.name
    ));
    Ok(database)
}

/// Compares the files of both nodes byte by byte.
fn compare(stage: &Stage, primary: &Node) -> Result<()> {
    let answer = primary
        .call(Method::POST, "/v1/verify")
        .with_context(|| format!("comparing {} with its peer", primary.name))?;
    let all: Vec<crate::verify::Verified> = serde_json::from_value(answer)?;
    for v in &all {
        if !v.different.is_empty() {
            bail!("{} and {} differ in {}", primary.name, v.peer, v.different.join(", "));
        }
        stage.say(format_args!(
            "compared with {}: {} files, {} bytes, no difference",
            v.peer, v.files, v.bytes
        ));
    }
    Ok(())
}

fn ms(d: Duration) -> String {
    format!("{:.0} ms", d.as_secs_f64() * 1e3)
}

/// Lines with the time since the start; on a terminal a live line is written over.
struct Teller {
    start: Instant,
    terminal: bool,
    live: bool,
}

impl Teller {
    fn new() -> Teller {
        Teller { start: Instant::now(), terminal: std::io::stdout().is_terminal(), live: false }
    }

    fn line(&mut self, text: std::fmt::Arguments, live: bool) {
        self.end_live();
        let end = if live && self.terminal { "" } else { "\n" };
        // Whoever reads may have gone; the demo goes on to its exit code.
        let mut out = std::io::stdout().lock();
        let _ = write!(out, "{:8.3} s  {text}{end}", self.start.elapsed().as_secs_f64());
        let _ = out.flush();
        self.live = end.is_empty();
    }

    /// The next live line replaces this one.
    fn rewrite(&mut self, text: std::fmt::Arguments) {
        if std::mem::take(&mut self.live) {
            let _ = write!(std::io::stdout().lock(), "\r\x1b[K");
        }
        self.line(text, true);
    }

    fn end_live(&mut self) {
        if std::mem::take(&mut self.live) {
            let _ = writeln!(std::io::stdout().lock());
        }
    }
}
