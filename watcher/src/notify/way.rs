//! The ways in which a consumer is told.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Signal;

use crate::command::{self, CommandError};
use crate::notify::notice::Notice;
use crate::notify::signal::{SignalError, Target};
use crate::notify::webhook::{Poster, Webhook, WebhookError};
use crate::postgresql::{Cluster, Waker, Woke};

/// How a consumer is told.
#[derive(Debug, Clone)]
pub enum Way {
    /// A program is run.
    Command(PathBuf),
    /// A process gets a signal.
    Signal {
        /// Which.
        signal: Signal,
        /// Where the number of the process is; read at each time.
        pid_file: PathBuf,
    },
    /// A server gets a POST.
    Webhook(Webhook),
    /// The process of a PostgreSQL standby that replays is woken.
    Postgresql(Cluster),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Way::Command(exec) => write!(f, "{}", exec.display()),
            Way::Signal { pid_file, .. } => write!(f, "signal to {}", pid_file.display()),
            Way::Webhook(hook) => f.write_str(&hook.url),
            Way::Postgresql(cluster) => write!(f, "postgresql in {}", cluster.data_dir().display()),
        }
    }
}

/// A consumer was not told, or did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TellError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Signal(#[from] SignalError),
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    #[error("the startup process of {0} can't be signalled: {1}; run as root, or as its user")]
    Postgresql(String, Errno),
}

impl TellError {
    /// Whether the consumer heard of it all the same: what it makes of it is its own business, and it is not told again.
    pub fn was_told(&self) -> bool {
        matches!(
            self,
            TellError::Command(
                CommandError::Status { .. } | CommandError::TooLong { .. } | CommandError::Wait { .. }
            )
        )
    }
}

/// A [`Way`] and what it needs to have at hand.
pub(crate) enum Teller {
    Command(PathBuf),
    Signal { signal: Signal, pid_file: PathBuf, target: Target },
    Webhook(Poster),
    Postgresql { name: String, waker: Waker },
}

impl Teller {
    pub fn new(way: Way) -> Teller {
        let name = way.to_string();
        match way {
            Way::Command(exec) => Teller::Command(exec),
            Way::Signal { signal, pid_file } => {
                Teller::Signal { signal, pid_file, target: Target::default() }
            }
            Way::Webhook(hook) => Teller::Webhook(Poster::new(hook)),
            Way::Postgresql(cluster) => Teller::Postgresql { name, waker: Waker::new(cluster) },
        }
    }

    /// Whether it tells each event, not only the newest.
    pub fn lists(&self) -> bool {
        matches!(self, Teller::Webhook(_))
    }

    /// Tells, within `limit`; `over` sleeps as long as it is told to, and says whether this is the end. Returns whether
    /// there was anybody to tell.
    pub fn tell(
        &mut self,
        notice: &Notice,
        limit: Duration,
        over: impl Fn(Duration) -> bool,
    ) -> Result<bool, TellError> {
        match self {
            Teller::Command(exec) => command::run(exec, notice, limit)?,
            Teller::Signal { signal, pid_file, target } => target.signal(pid_file, *signal)?,
            Teller::Webhook(poster) => {
                let now = Instant::now();
                poster.tell(&notice.events, now.checked_add(limit).unwrap_or(now), over)?;
            }
            Teller::Postgresql { name, waker } => match waker.wake() {
                Woke::Told => {}
                // What is there when it begins to replay it reads unasked.
                Woke::NotReplaying | Woke::NotRunning => return Ok(false),
                Woke::Refused(e) => return Err(TellError::Postgresql(name.clone(), e)),
            },
        }
        Ok(true)
    }
}
