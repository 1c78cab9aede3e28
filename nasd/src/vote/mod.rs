//! The third vote: one small record in etcd says who is primary, and is changed by compare-and-swap only.
//!
//! [`record`] says which changes are allowed and does no I/O; [`Store`] reads and writes the record and does not know
//! what is in it. Whoever uses both reads, decides, and writes on the condition that nothing has changed meanwhile.

mod connect;
mod driver;
mod error;
mod members;
pub mod record;
mod store;
mod tls;

use store::versioned;

pub use error::VoteError;
pub use record::{Denied, Record, RecordError};
pub use store::{Put, Store, Versioned};
