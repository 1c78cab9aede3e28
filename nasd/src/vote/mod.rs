//! The third vote.
pub mod record;
mod store;
pub use record::{Denied, Record, RecordError};
pub use store::{Put, Store, Versioned, VoteError};
