//! The steps that every story has: what happens to the pair, whatever the database.

use super::PATIENCE;
use super::stage::{Node, Stage};
use super::writer::Writer;
use crate::api::Step;
use crate::verify::Verified;
use anyhow::{Context, Result, bail};
use hyper::Method;
use std::time::{Duration, Instant};

/// Does `first`, and waits until `primary` and `secondary` are what their names say, and in sync.
pub fn in_sync(
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

/// Shows for `time`, each second, what `tell` has to say.
pub fn watch(
    stage: &Stage,
    writer: &Writer,
    time: Duration,
    mut tell: impl FnMut() -> Result<String>,
) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_secs(1).min(end - Instant::now()));
        if writer.has_ended() {
            // Its own error says more: `stop` tells it.
            break;
        }
        stage.say_live(format_args!("{}", tell()?));
    }
    stage.end_live();
    Ok(())
}

/// How fast a number grows.
pub struct Rate {
    then: (Instant, u64),
}

impl Rate {
    pub fn from(n: u64) -> Rate {
        Rate { then: (Instant::now(), n) }
    }

    /// In a second, since the last time.
    pub fn until(&mut self, n: u64) -> f64 {
        let then = std::mem::replace(&mut self.then, (Instant::now(), n));
        n.saturating_sub(then.1) as f64 / (self.then.0 - then.0).as_secs_f64()
    }
}

pub fn take_over(stage: &Stage, secondary: &Node, died: Instant) -> Result<()> {
    let steps: Vec<Step> = secondary
        .call(Method::POST, "/v1/promote?force=false")
        .with_context(|| format!("promoting {}", secondary.name))?;
    let after = died.elapsed();
    stage.say(format_args!("{} is promoted:", secondary.name));
    tell_steps(stage, &steps);
    stage.say(format_args!("{} is writable {} after the kill", secondary.mount.display(), ms(after)));
    Ok(())
}

pub fn switch_over(stage: &Stage, to: &Node) -> Result<()> {
    let steps: Vec<Step> =
        to.call(Method::POST, "/v1/switchover").with_context(|| format!("switching over to {}", to.name))?;
    stage.say(format_args!("{} gets its role back, in order:", to.name));
    tell_steps(stage, &steps);
    Ok(())
}

fn tell_steps(stage: &Stage, steps: &[Step]) {
    for Step { step, ms } in steps {
        stage.say(format_args!("  {ms:7.1} ms  {step}"));
    }
}

/// Compares the files of both nodes byte by byte.
pub fn compare(stage: &Stage, primary: &Node) -> Result<()> {
    let all: Vec<Verified> = primary
        .call(Method::POST, "/v1/verify")
        .with_context(|| format!("comparing {} with its peer", primary.name))?;
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

/// Leaves the pair running and says where, or stops it in order.
pub fn leave(stage: &Stage, primary: &Node, secondary: &Node) -> Result<()> {
    if stage.keeps() {
        stage.tell_what_is_where();
        return Ok(());
    }
    stage.stop(primary)?;
    stage.stop(secondary)
}

pub fn ms(d: Duration) -> String {
    format!("{:.0} ms", d.as_secs_f64() * 1e3)
}
