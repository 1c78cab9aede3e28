//! The state directory: whether it can hold a volume, how fast, and how much of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{XattrFlags, lsetxattr, setxattr, statvfs};

use super::{Finding, mounts};

/// With less, the log cannot even turn over once.
const LEAST_SPACE: u64 = 64 << 20;

/// Slower than any disk that a database should commit to.
const SLOW: Duration = Duration::from_millis(20);

/// Each `fsync` of the volume is at least one such write.
const BLOCK: [u8; 8192] = [0x5a; 8192];
const SYNCS: usize = 20;

/// Checks `state_dir`, or the directory that it will be made in. `retain_bytes` is how large the log
/// may grow.
pub(super) fn check(state_dir: &Path, retain_bytes: u64) -> Vec<Finding> {
    let base = existing(state_dir);
    let mut findings = Vec::new();
    // Gone, with all that is in it, at the end of the check.
    let probe = tempfile::Builder::new().prefix(".nasd-doctor-").tempdir_in(&base);
    match probe {
        Ok(probe) => {
            findings.push(writable(state_dir, &base, probe.path()));
            findings.push(xattrs(&base, probe.path()));
            findings.push(fdatasync(&base, probe.path()));
        }
        Err(e) => findings.push(Finding::fail(
            "state_dir",
            format!("{} cannot be written: {e}; run as root, or choose another state_dir", base.display()),
        )),
    }
    findings.push(space(&base, retain_bytes));
    findings.push(filesystem(&base));
    findings
}

/// `path`, or the nearest directory above it that is there.
fn existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|p| p.exists());
    found.unwrap_or(Path::new("/")).to_path_buf()
}

fn writable(state_dir: &Path, base: &Path, probe: &Path) -> Finding {
    let renamed =
        fs::write(probe.join("old"), BLOCK).and_then(|()| fs::rename(probe.join("old"), probe.join("new")));
    let shown = state_dir.display();
    match renamed {
        Ok(()) if state_dir == base => Finding::ok("state_dir", format!("{shown} is writable")),
        Ok(()) => Finding::ok("state_dir", format!("{shown} can be made in {}", base.display())),
        Err(e) => Finding::fail(
            "state_dir",
            format!("a file in {shown} cannot be written and renamed: {e}; choose another state_dir"),
        ),
    }
}

/// A file's id is kept with it in a `trusted.` attribute, the only sort that a symbolic link may have.
fn xattrs(base: &Path, probe: &Path) -> Finding {
    const NAME: &str = "trusted.nasd.doctor";
    let file = probe.join("file");
    let link = probe.join("link");
    let prepared = File::create(&file).and_then(|_| symlink("nowhere", &link));
    let tries: [(&str, rustix::io::Result<()>); 3] = [
        ("files", setxattr(&file, NAME, b"x", XattrFlags::empty())),
        ("directories", setxattr(probe, NAME, b"x", XattrFlags::empty())),
        ("symbolic links", lsetxattr(&link, NAME, b"x", XattrFlags::empty())),
    ];
    let failed = prepared.err().map(|e| ("files and links", e)).or_else(|| {
        let failed = tries.into_iter().find_map(|(what, r)| Some((what, r.err()?)));
        failed.map(|(what, e)| (what, io::Error::from(e)))
    });
    match failed {
        None => Finding::ok("xattrs", "files, directories and symbolic links take `trusted.` attributes"),
        Some((what, e)) => Finding::fail(
            "xattrs",
            format!(
                "{what} in {} take no `trusted.` attributes: {e}; run as root (a container needs CAP_SYS_ADMIN), on ext4, XFS or btrfs",
                base.display()
            ),
        ),
    }
}

fn fdatasync(base: &Path, probe: &Path) -> Finding {
    let shown = base.display();
    match median_fdatasync(&probe.join("syncs")) {
        Ok(median) => {
            let text = format!(
                "8 KiB appended and synced in {} µs (median of {SYNCS}) in {shown}",
                median.as_micros()
            );
            if median > SLOW {
                let remedy = "every commit waits for it; use a disk with a protected write cache, or an SSD";
                Finding::warn("fdatasync", format!("{text}; {remedy}"))
            } else {
                Finding::ok("fdatasync", text)
            }
        }
        Err(e) => Finding::fail(
            "fdatasync",
            format!("a file in {shown} cannot be synced: {e}; choose another state_dir"),
        ),
    }
}

fn median_fdatasync(path: &Path) -> io::Result<Duration> {
    let mut file = File::create(path)?;
    let mut times = [Duration::ZERO; SYNCS];
    for time in &mut times {
        let start = Instant::now();
        file.write_all(&BLOCK)?;
        file.sync_data()?;
        *time = start.elapsed();
    }
    times.sort_unstable();
    Ok(times[SYNCS / 2])
}

fn space(base: &Path, retain_bytes: u64) -> Finding {
    match statvfs(base) {
        Ok(stat) => judge_space(base, stat.f_bavail.saturating_mul(stat.f_frsize), retain_bytes),
        Err(e) => Finding::fail(
            "space",
            format!(
                "the free space of {} cannot be asked for: {e}; choose another state_dir",
                base.display()
            ),
        ),
    }
}

fn judge_space(base: &Path, free: u64, retain_bytes: u64) -> Finding {
    let text = format!("{} has {} MiB free", base.display(), free >> 20);
    // The log and what is kept for reuse; the volume's own files come on top.
    let wanted = retain_bytes.saturating_mul(2);
    if free < LEAST_SPACE {
        let least = LEAST_SPACE >> 20;
        Finding::fail("space", format!("{text}, less than {least}; free some"))
    } else if free < wanted {
        let text = format!(
            "{text}, less than twice retain_bytes ({} MiB); free some, or lower retain_bytes in [log]",
            wanted >> 20
        );
        Finding::warn("space", text)
    } else {
        Finding::ok("space", text)
    }
}

fn filesystem(base: &Path) -> Finding {
    const CHECK: &str = "filesystem";
    let real = fs::canonicalize(base).unwrap_or_else(|_| base.to_path_buf());
    let shown = base.display();
    match mounts::all() {
        Ok(mounts) => match mounts::around(&mounts, &real) {
            Some(mount) => judge_filesystem(base, &mount.fstype, ext4_options(&real).as_deref()),
            None => Finding::warn(
                CHECK,
                format!("the mount of {shown} is not listed; see that it is a local disk"),
            ),
        },
        Err(e) => Finding::warn(CHECK, format!("/proc/self/mountinfo cannot be read: {e}; mount /proc")),
    }
}

/// What the kernel says of the ext4 that `path` lies on.
fn ext4_options(path: &Path) -> Option<String> {
    let device = rustix::fs::stat(path).ok()?.st_dev;
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let name = fs::canonicalize(Path::new("/sys/dev/block").join(number)).ok()?;
    fs::read_to_string(Path::new("/proc/fs/ext4").join(name.file_name()?).join("options")).ok()
}

fn judge_filesystem(base: &Path, fstype: &str, ext4_options: Option<&str>) -> Finding {
    const CHECK: &str = "filesystem";
    let shown = base.display();
    let problem = match fstype {
        "tmpfs" | "ramfs" => "which forgets everything when the machine stops",
        "overlay" | "aufs" => "which goes away with its container; mount a volume there",
        "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "virtiofs" | "ceph" => {
            "which another machine serves: if it is away, so is every commit"
        }
        _ if fstype.starts_with("fuse") => "which another process serves",
        // The mode of its journal is listed, whatever it is.
        "ext4" if ext4_options.is_some_and(|o| !o.lines().any(|l| l.starts_with("data="))) => {
            "without a journal: a power cut can damage it (tune2fs -O has_journal adds one)"
        }
        _ => return Finding::ok(CHECK, format!("{shown} is on {fstype}")),
    };
    Finding::warn(CHECK, format!("{shown} is on {fstype}, {problem}; use a local ext4 or XFS"))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn nothing_is_left_behind() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let findings = check(&dir.path().join("not/yet/there"), 0);
        assert_eq!(findings[0].level, Level::Ok, "{}", findings[0]);
        assert!(findings[0].text.contains(" can be made in "), "{}", findings[0]);
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_state_dir_that_is_a_file_fails() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("file");
        fs::write(&path, "").expect("writable");
        let finding = &check(&path, 0)[0];
        assert_eq!(finding.level, Level::Fail, "{finding}");
    }

    #[test]
    fn what_cannot_be_probed_fails() {
        // Nothing can be made in procfs, whoever asks.
        let finding = xattrs(Path::new("/proc/self"), Path::new("/proc/self"));
        assert_eq!(finding.level, Level::Fail, "{finding}");
    }

    #[test]
    fn space_is_judged_by_the_log() {
        let level = |free, retain| judge_space(Path::new("/x"), free, retain).level;
        assert_eq!(level(63 << 20, 0), Level::Fail);
        assert_eq!(level(64 << 20, 1 << 20), Level::Ok);
        assert_eq!(level(8 << 30, 4 << 30), Level::Ok);
        assert_eq!(level((8 << 30) - 1, 4 << 30), Level::Warn);
        assert_eq!(level(1 << 40, u64::MAX), Level::Warn);
    }

    #[test]
    fn what_is_no_local_disk_is_a_warning() {
        let level = |fstype| judge_filesystem(Path::new("/x"), fstype, None).level;
        for fstype in ["ext4", "xfs", "btrfs", "zfs", "fusectl"] {
            let expected = if fstype == "fusectl" { Level::Warn } else { Level::Ok };
            assert_eq!(level(fstype), expected, "{fstype}");
        }
        for fstype in ["tmpfs", "overlay", "nfs4", "fuse.sshfs", "fuseblk"] {
            assert_eq!(level(fstype), Level::Warn, "{fstype}");
        }
        let ext4 = |options| judge_filesystem(Path::new("/x"), "ext4", Some(options)).level;
        assert_eq!(ext4("rw\ndelalloc\ndata=ordered\ncommit=5\n"), Level::Ok);
        assert_eq!(ext4("rw\ndelalloc\nnojournal_checksum\ncommit=5\n"), Level::Warn);
    }
}
