//! The secondary's side of a volume: it sees each transaction file appear in the log directory, has
//! it applied in order ([`watch`]), and tells consumers what happens ([`feed`], [`notify`]).
//!
//! What it knows of a database is in a module of its own: [`postgresql`].
//!
//! The crate knows neither the format of a transaction nor how one is applied: its owner says so
//! through the trait [`Apply`].

mod command;
mod counters;
pub mod event;
pub mod feed;
mod filter;
mod journal;
mod known;
mod name;
pub mod notify;
mod paced;
pub mod postgresql;
mod process;
mod source;
mod wake;
pub mod watch;

pub use command::{CommandError, run_program};
pub use event::{Cursor, Event, Kind, Since};
pub use feed::{Feed, History, Interest, NewsGuard, Past, Subscription};
pub use filter::{Filter, FilterError};
pub use journal::{Journal, JournalError, Kept};
pub use name::parse_name;
pub use notify::{Every, Notifier, NotifyError, NotifyRule, NotifyStats, Way, Webhook, WebhookError};
pub use paced::Paced;
pub use watch::{Apply, ApplyError, Mode, WatchError, WatchStats, Watcher, spawn};
