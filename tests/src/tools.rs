//! Test programs from outside, installed on demand.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Where `tests/install-tools.sh` has put the POSIX test suites; `None`, with one printed line, when it could not.
pub fn posix_tools() -> Option<PathBuf> {
    installed("install-tools.sh", "pjdfstest and fsx")
}

/// The Python in which `tests/install-smbprotocol.sh` has put an SMB client; `None`, with one printed line, when it could not.
pub fn smb_python() -> Option<PathBuf> {
    installed("install-smbprotocol.sh", "smbprotocol")
}

/// The path that a script prints once it has installed what it is for.
fn installed(script: &str, what: &str) -> Option<PathBuf> {
    let script = format!("{}/{script}", env!("CARGO_MANIFEST_DIR"));
    // The flags of this build are not theirs.
    let out = Command::new(&script)
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .stderr(Stdio::piped())
        .output();
    let why = match out {
        Ok(out) if out.status.success() => {
            return Some(String::from_utf8(out.stdout).unwrap().trim_end().into());
        }
        Ok(out) => {
            String::from_utf8_lossy(&out.stderr).lines().last().unwrap_or("no reason given").to_owned()
        }
        Err(e) => e.to_string(),
    };
    println!("skipped: {what} can't be installed by {script}: {why}");
    None
}
