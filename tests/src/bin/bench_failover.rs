//! `make bench-failover`: how long clients wait when the primary is killed, and when the roles are swapped in order.

use std::process::ExitCode;

fn main() -> ExitCode {
    nasd_tests::supervise::supervised("nasd-bench-failover-", |_| nasd_tests::failovers::bench())
}
