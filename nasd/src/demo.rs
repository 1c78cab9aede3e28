//! `nasd demo`: a pair on this machine, a database on it, and a primary that dies in mid-write.
//!
//! [`sqlite`] and [`postgres`] are the two stories, step by step; the steps that they share are in [`pair`]. [`stage`]
//! holds what has to be taken down whatever happens: the processes, the mounts, the temporary directory. [`writer`]
//! commits row after row and knows which of them were acknowledged, and [`rows`] looks for these afterwards.

mod children;
mod pair;
mod postgres;
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

/// Whose log is on the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    Sqlite,
    Postgres,
}

/// Runs the demo. Fails when anything did not hold.
pub fn run(database: Database, seconds: u64, keep: bool) -> Result<()> {
    let time = Duration::from_secs(seconds);
    let (stage, story): (Stage, fn(&Stage, Duration) -> Result<()>) = match database {
        Database::Sqlite => (Stage::set(keep, |_| String::new())?, sqlite::story),
        Database::Postgres => {
            // Before anything is made.
            postgres::look_ahead()?;
            (Stage::set(keep, postgres::section)?, postgres::story)
        }
    };
    let played = story(&stage, time);
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
