//! The point of no return: after a failed fsync of the log nothing is known of what is on the disk, so nothing may
//! be acknowledged any more. The process stops; its restart finds out what is there.

use std::sync::OnceLock;

static HOOK: OnceLock<fn(&str) -> !> = OnceLock::new();

/// The exit code of a process that stopped itself.
pub const EXIT_CODE: i32 = 70;

/// Replaces what [`stop`] does: for tests.
pub fn set_hook(hook: fn(&str) -> !) {
    let _ = HOOK.set(hook);
}

/// Says why and ends the process at once, without unwinding and without answering anybody.
pub fn stop(why: &str) -> ! {
    tracing::error!("stopping: {why}");
    eprintln!("nasd: stopping: {why}");
    if let Some(hook) = HOOK.get() {
        hook(why)
    }
    std::process::exit(EXIT_CODE)
}
