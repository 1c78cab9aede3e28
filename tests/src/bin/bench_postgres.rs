//! `make bench-postgres`: PostgreSQL with its log in two places, by nasd and by others, side by side in one run.

use std::process::ExitCode;

fn main() -> ExitCode {
    nasd_tests::supervise::supervised("nasd-bench-postgres-", nasd_tests::pgbench::bench)
}
