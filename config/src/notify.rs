//! `[[notify]]`: consumers, of what they are told, when and how.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use crate::error::Mistake;
use crate::raw;
use crate::resolve::{DAY, Result, absolute, duration};

/// The parts of a node whose state somebody can subscribe to.
pub const STATES: [&str; 8] = ["role", "link", "sync", "disk", "mount", "etcd", "database", "demand"];

/// The signals that a process can be notified by.
pub const SIGNALS: [&str; 9] = ["HUP", "INT", "USR1", "USR2", "ALRM", "TERM", "CONT", "URG", "WINCH"];

/// What a rule that is told at the primary's instruction has in the place of a duration.
const ON_DEMAND: &str = "on-demand";

/// `[[notify]]`: whom a node tells, of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    /// Globs, relative to the mount: of transactions that change such a path.
    pub paths: Vec<String>,
    /// Of changes of these of [`STATES`]. At least one of both is not empty.
    pub states: Vec<String>,
    /// When.
    pub every: Every,
    /// How.
    pub way: Way,
}

/// When a consumer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// At most this often: up to 1 day; zero (the default) means at each event.
    Spell(Duration),
    /// When somebody types `nasd notify` on the primary.
    OnDemand,
}

/// How a consumer is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// A program is run; absolute.
    Exec(PathBuf),
    /// A process gets a signal.
    Signal {
        /// One of [`SIGNALS`].
        signal: String,
        /// Where the number of the process is; absolute.
        pid_file: PathBuf,
    },
    /// A server gets a POST.
    Webhook {
        /// `http://` or `https://`.
        url: String,
        /// Where the authorities are that may have signed its certificate, if not those that the machine trusts; absolute.
        ca: Option<PathBuf>,
        /// Where the token is that goes with it; absolute.
        token_file: Option<PathBuf>,
    },
    /// The standby of this data directory is woken; absolute.
    Postgresql(PathBuf),
}

pub(crate) fn resolve(raw: Spanned<raw::Notify>) -> Result<Notify> {
    let at = raw.span();
    let raw = raw.into_inner();
    let paths = list(raw.paths, "paths", "name what to watch, for example [\"**\"] for everything", glob)?;
    let states = list(raw.states, "states", "name what to hear of, for example [\"role\"]", state)?;
    if paths.is_empty() && states.is_empty() {
        return Err(Mistake::new(
            at,
            "[[notify]] has neither paths nor states",
            "add paths = [\"**\"] to it for every transaction, or states = [\"role\", …]",
        ));
    }
    let every = match raw.every {
        Some(typed) if typed.get_ref().0 == ON_DEMAND => Every::OnDemand,
        typed => Every::Spell(duration(typed, "every", Duration::ZERO, Duration::ZERO..=DAY)?),
    };
    let way = way(
        raw.exec,
        (raw.signal, raw.pid_file),
        (raw.webhook, raw.ca, raw.token_file),
        raw.postgresql,
        &at,
    )?;
    Ok(Notify { paths, states, every, way })
}

fn list(
    typed: Option<Spanned<Vec<Spanned<String>>>>,
    key: &str,
    remedy: &str,
    check: fn(Spanned<String>) -> Result<String>,
) -> Result<Vec<String>> {
    let Some(typed) = typed else { return Ok(Vec::new()) };
    if typed.get_ref().is_empty() {
        return Err(Mistake::new(typed.span(), format!("{key} is empty"), remedy));
    }
    typed.into_inner().into_iter().map(check).collect()
}

fn glob(typed: Spanned<String>) -> Result<String> {
    let at = typed.span();
    let pattern = typed.into_inner();
    if pattern.is_empty() || pattern.starts_with('/') {
        return Err(Mistake::new(
            at,
            format!("the pattern {pattern:?} can never match"),
            "write it relative to the mount, for example \"pg_wal/**\"",
        ));
    }
    match globset::Glob::new(&pattern) {
        Ok(_) => Ok(pattern),
        Err(e) => Err(Mistake::new(
            at,
            format!("the pattern {pattern:?} is wrong: {}", e.kind()),
            "write for example \"pg_wal/**\"",
        )),
    }
}

fn state(typed: Spanned<String>) -> Result<String> {
    one_of(typed, "states", "state", &STATES)
}

fn one_of(typed: Spanned<String>, key: &str, what: &str, all: &[&str]) -> Result<String> {
    if all.contains(&typed.get_ref().as_str()) {
        return Ok(typed.into_inner());
    }
    let wrong = format!("{key}: {:?} is no {what} that is known", typed.get_ref());
    Err(Mistake::new(typed.span(), wrong, format!("choose from {}", all.join(", "))))
}

/// Exactly one way, with what belongs to it.
fn way(
    exec: raw::Text,
    (signal, pid_file): (raw::Text, raw::Text),
    (webhook, ca, token_file): (raw::Text, raw::Text, raw::Text),
    postgresql: raw::Text,
    at: &Range<usize>,
) -> Result<Way> {
    let ways = [("exec", &exec), ("signal", &signal), ("webhook", &webhook), ("postgresql", &postgresql)];
    let given: Vec<&str> = ways.iter().filter(|(_, way)| way.is_some()).map(|(key, _)| *key).collect();
    if let [one, other, ..] = given[..] {
        return Err(Mistake::new(
            at.clone(),
            format!("[[notify]] has both {one} and {other}"),
            "give each its own [[notify]]",
        ));
    }
    let belongs =
        [("pid_file", &pid_file, "signal"), ("ca", &ca, "webhook"), ("token_file", &token_file, "webhook")];
    for (key, typed, to) in belongs {
        if let Some(typed) = typed
            && given != [to]
        {
            let what = format!("[[notify]] has {key} but no {to}");
            return Err(Mistake::new(typed.span(), what, format!("add {to} = … to it, or remove {key}")));
        }
    }
    Ok(match (exec, signal, webhook, postgresql) {
        (Some(exec), ..) => Way::Exec(absolute(&exec, "exec")?),
        (_, Some(signal), ..) => {
            let Some(pid_file) = pid_file else {
                return Err(Mistake::new(
                    signal.span(),
                    "[[notify]] has signal but no pid_file",
                    "add pid_file = … to it",
                ));
            };
            let pid_file = absolute(&pid_file, "pid_file")?;
            Way::Signal { signal: one_of(signal, "signal", "signal", &SIGNALS)?, pid_file }
        }
        (.., Some(url), _) => {
            let token_file = token_file.map(|typed| absolute(&typed, "token_file")).transpose()?;
            let url = http(url)?;
            if let Some(ca) = ca.as_ref().filter(|_| url.starts_with("http:")) {
                let what = "ca is for https, and the webhook is http";
                return Err(Mistake::new(ca.span(), what, "write webhook = \"https://…\", or remove ca"));
            }
            let ca = ca.map(|typed| absolute(&typed, "ca")).transpose()?;
            Way::Webhook { url, ca, token_file }
        }
        (.., Some(data_dir)) => Way::Postgresql(absolute(&data_dir, "postgresql")?),
        _ => {
            return Err(Mistake::new(
                at.clone(),
                "[[notify]] does not say how",
                "add one of exec, signal with pid_file, webhook, or postgresql to it",
            ));
        }
    })
}

fn http(typed: Spanned<String>) -> Result<String> {
    let url = typed.get_ref();
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    if rest.is_some_and(|rest| {
        !rest.is_empty() && !rest.starts_with('/') && url.chars().all(|c| c.is_ascii_graphic())
    }) {
        return Ok(typed.into_inner());
    }
    Err(Mistake::new(
        typed.span(),
        format!("webhook = {url:?} is no address of an HTTP server"),
        "write for example \"https://db-b.example.com/on-new-log\"",
    ))
}
