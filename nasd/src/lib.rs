//! The daemon and the command line: peers, roles, failover, control API.
//!
//! A library only so that fuzz targets and benchmarks can reach into it; its interface is the command line.

mod apply;
mod cert;
pub mod cli;
mod client;
mod control;
mod copy;
mod database;
mod decide;
mod demo;
mod doctor;
mod events;
mod housekeeping;
#[doc(hidden)]
pub mod link;
mod logtool;
mod node;
mod peers;
#[doc(hidden)]
pub mod protocol;
mod run;
mod serve;
mod status;
pub mod txn_stream;
mod verify;
#[doc(hidden)]
pub mod vote;
