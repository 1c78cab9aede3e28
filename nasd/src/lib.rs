//! The daemon and the command line: peers, roles, failover, control API.
//!
//! A library only so that fuzz targets and benchmarks can reach into it; its interface is the command line.

mod address;
mod agent;
mod api;
mod apply;
mod bell;
mod boot;
mod cert;
pub mod cli;
mod client;
mod consumers;
mod copy;
mod credentials;
mod database;
#[doc(hidden)]
pub mod decide;
mod demand;
mod demo;
mod diverged;
mod doctor;
mod eventcli;
mod events;
#[doc(hidden)]
pub mod failover;
mod hook;
mod housekeeping;
#[doc(hidden)]
pub mod link;
mod logexport;
mod logtool;
mod node;
mod office;
mod oneline;
mod peers;
mod plan;
mod progress;
#[doc(hidden)]
pub mod protocol;
mod relay;
mod run;
mod serve;
mod setup;
mod signals;
mod special;
mod sse;
mod status;
mod supervision;
mod switchover;
mod telling;
mod terms;
pub mod txn_stream;
mod verify;
#[doc(hidden)]
pub mod vote;
mod watch;
