//! The third vote.
pub mod record;
