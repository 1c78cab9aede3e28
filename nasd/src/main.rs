//! nasd: a volume whose every fsync is a transaction on two machines.

mod apply;
mod cert;
mod cli;
mod client;
mod control;
mod copy;
mod decide;
mod doctor;
mod events;
mod housekeeping;
mod link;
mod logtool;
mod node;
mod peers;
mod protocol;
mod run;
mod serve;
mod status;
mod verify;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
