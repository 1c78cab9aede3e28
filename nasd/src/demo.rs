//! `nasd demo`: a pair on this machine, a database on it, and a primary that dies in mid-write.
//!
//! [`sqlite`] is the story, step by step; the steps that are not the database's are in [`pair`]. [`stage`]
//! holds what has to be taken down whatever happens: the processes, the mounts, the temporary directory. [`writer`]
//! commits row after row and knows which of them were acknowledged, and [`rows`] looks for these afterwards.

mod children;
mod pair;
mod rows;
mod sqlite;
mod stage;
mod teller;
mod writer;

use anyhow::Result;
use stage::Stage;
use std::time::Duration;

/// How long a change of role or a resync may take here. Mostly it is milliseconds; this is for a machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the demo. Fails when anything did not hold.
pub fn run(seconds: u64, keep: bool) -> Result<()> {
    let stage = Stage::set(keep, |_| String::new())?;
    let played = sqlite::story(&stage, Duration::from_secs(seconds));
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
