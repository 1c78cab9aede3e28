//! Whether somebody who waits for the answer to a request has been told to stop waiting.
//!
//! The kernel would say so with FUSE_INTERRUPT, which `fuser` 0.18 answers with ENOSYS; then the kernel sends no more of
//! them, and a process that is killed while it waits stays until its answer comes. So `/proc` is asked.

use std::fs;

use rustix::io::Errno;

/// Whether a thread has a signal to handle, or is gone. `pid` is the thread's id, as a request names it.
pub(super) fn is_interrupted(pid: u32) -> bool {
    match fs::read(format!("/proc/{pid}/status")) {
        Ok(status) => has_signal(&status),
        Err(error) => matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::SRCH)),
    }
}

/// Whether a signal is pending, for the thread or its process, that is neither blocked nor ignored: proc(5).
fn has_signal(status: &[u8]) -> bool {
    let mask = |name: &[u8]| {
        let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(name));
        let digits = str::from_utf8(line.unwrap_or_default()).unwrap_or_default().trim();
        u64::from_str_radix(digits, 16).unwrap_or(0)
    };
    let pending = mask(b"SigPnd:") | mask(b"ShdPnd:");
    pending & !mask(b"SigBlk:") & !mask(b"SigIgn:") != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_counts_unless_it_is_blocked_or_ignored() {
        let status = |own: &str, shared: &str, blocked: &str, ignored: &str| {
            format!(
                "Name:\tcat\nSigQ:\t1/2\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\n"
            )
        };
        let (none, kill, term) = ("0000000000000000", "0000000000000100", "0000000000004000");
        for (own, shared, blocked, ignored, expected) in [
            (none, none, none, none, false),
            (kill, none, none, none, true),
            (none, term, none, none, true),
            (none, term, term, none, false),
            (none, term, none, term, false),
            (kill, term, term, none, true),
        ] {
            let status = status(own, shared, blocked, ignored);
            assert_eq!(has_signal(status.as_bytes()), expected, "{status}");
        }
        assert!(!has_signal(b""), "what can't be read interrupts nobody");
    }

    #[test]
    fn whoever_is_gone_does_not_wait() {
        assert!(!is_interrupted(std::process::id()));
        // Above the largest that the kernel gives.
        assert!(is_interrupted(u32::MAX));
    }
}
