//! The machine itself: rights, FUSE, the mount point, the clock, the port, the programs to call.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::{TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use rustix::fs::Access;

use super::{Finding, mounts, within};

/// The first second of 2024: no clock that runs is before it.
const YEAR_2024: i64 = 1_704_067_200;

pub(super) fn root() -> Finding {
    if rustix::process::geteuid().is_root() {
        Finding::ok("root", "running as root")
    } else {
        let text = "not running as root, which mounting, file owners and `trusted.` attributes need; run nasd with sudo or as a system service";
        Finding::fail("root", text)
    }
}

pub(super) fn fuse_device() -> Finding {
    let opened = File::options().read(true).write(true).open("/dev/fuse");
    match opened {
        Ok(_) => Finding::ok("fuse", "/dev/fuse can be opened"),
        Err(e) if e.kind() == ErrorKind::NotFound => Finding::fail(
            "fuse",
            "there is no /dev/fuse; run `modprobe fuse`, or give the container --device /dev/fuse --cap-add SYS_ADMIN",
        ),
        Err(e) => Finding::fail(
            "fuse",
            format!(
                "/dev/fuse cannot be opened: {e}; run as root, or give the container --device /dev/fuse --cap-add SYS_ADMIN"
            ),
        ),
    }
}

pub(super) fn mount_point(path: &Path) -> Finding {
    const CHECK: &str = "mount";
    let shown = path.display();
    let mounts = match mounts::all() {
        Ok(mounts) => mounts,
        Err(e) => {
            let text = format!("/proc/self/mountinfo cannot be read: {e}; mount /proc");
            return Finding::fail(CHECK, text);
        }
    };
    if let Some(mount) = mounts::at(&mounts, &real_path(path)) {
        let is_fuse = mount.fstype.starts_with("fuse");
        let is_nasd = is_fuse && (mount.fstype.contains("nasd") || mount.source.contains("nasd"));
        let own = path.to_path_buf();
        let answer = within(Duration::from_secs(2), move || fs::metadata(own));
        return match answer {
            Some(Err(e)) if is_fuse && is_not_connected(&e) => Finding::warn(
                CHECK,
                format!("{shown} is a dead FUSE mount; nothing to do: `nasd run` takes it down"),
            ),
            None => Finding::fail(
                CHECK,
                format!(
                    "{shown} is a mount ({}) that does not answer; stop the process that serves it, then `umount -l {shown}`",
                    mount.fstype
                ),
            ),
            Some(_) if is_nasd => Finding::warn(
                CHECK,
                format!("{shown} is mounted: nasd is running already; stop it before you start another"),
            ),
            Some(_) => Finding::fail(
                CHECK,
                format!(
                    "{shown} is already a mount ({} of {}); unmount it, or choose another mount point",
                    mount.fstype, mount.source
                ),
            ),
        };
    }
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Finding::ok(CHECK, format!("{shown} is an empty directory")),
        Ok(false) => {
            Finding::fail(CHECK, format!("{shown} is not empty; empty it, or choose another mount point"))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            Finding::fail(CHECK, format!("{shown} does not exist; run `mkdir -p {shown}`"))
        }
        Err(e) => {
            Finding::fail(CHECK, format!("{shown} cannot be read as a directory: {e}; choose a directory"))
        }
    }
}

/// The path as the kernel lists it: without symbolic links.
fn real_path(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| {
        // The last part may be a mount that is dead, or may not be there.
        let parent = path.parent().and_then(|p| fs::canonicalize(p).ok());
        match (parent, path.file_name()) {
            (Some(parent), Some(name)) => parent.join(name),
            _ => path.to_path_buf(),
        }
    })
}

fn is_not_connected(e: &io::Error) -> bool {
    e.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error())
}

/// `log` is the log directory; it need not be there.
pub(super) fn clock(log: &Path, now: SystemTime) -> Finding {
    const CHECK: &str = "clock";
    let now = DateTime::<Utc>::from(now);
    let shown = now.format("%Y-%m-%d %H:%M:%S UTC");
    if now.timestamp() < YEAR_2024 {
        let text = format!("it is said to be {shown}; set the clock, and let NTP keep it");
        return Finding::fail(CHECK, text);
    }
    match newest_timestamp(log) {
        Some(newest) if newest > now => Finding::warn(
            CHECK,
            format!(
                "it is said to be {shown}, {} behind the newest transaction in {}; set the clock (order is kept, but names will not tell the time)",
                show(newest - now),
                log.display()
            ),
        ),
        _ => Finding::ok(CHECK, format!("it is {shown}")),
    }
}

fn show(behind: TimeDelta) -> String {
    let seconds = u64::try_from(behind.num_seconds()).unwrap_or(0);
    if seconds == 0 {
        return "less than a second".to_owned();
    }
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// The timestamp of the newest name such as `20261123T045757.123456789Z-0000000000000042.txn`.
/// Names are as wide as each other, so the greatest is the newest.
fn newest_timestamp(log: &Path) -> Option<DateTime<Utc>> {
    fs::read_dir(log).ok()?.filter_map(|entry| timestamp(entry.ok()?.file_name().to_str()?)).max()
}

fn timestamp(name: &str) -> Option<DateTime<Utc>> {
    let (timestamp, _) = name.strip_suffix(".txn")?.split_once('-')?;
    NaiveDateTime::parse_from_str(timestamp, "%Y%m%dT%H%M%S%.9fZ").ok().map(|t| t.and_utc())
}

pub(super) fn listen(address: &str) -> Finding {
    const CHECK: &str = "listen";
    let addresses = match address.to_socket_addrs() {
        Ok(addresses) => addresses,
        Err(e) => {
            let text = format!("{address} is no address of this machine: {e}; correct `listen`");
            return Finding::fail(CHECK, text);
        }
    };
    for one in addresses {
        match TcpListener::bind(one) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::AddrInUse => {
                let text = format!(
                    "{one} is in use: is nasd already running? If not, find who is with `ss -ltnp`, or change `listen`"
                );
                return Finding::warn(CHECK, text);
            }
            Err(e) => {
                let text = format!("{one} cannot be listened on: {e}; correct `listen`");
                return Finding::fail(CHECK, text);
            }
        }
    }
    Finding::ok(CHECK, format!("{address} can be listened on"))
}

pub(super) fn executable(path: &Path) -> Finding {
    const CHECK: &str = "notify";
    let shown = path.display();
    match fs::metadata(path) {
        Err(e) => Finding::fail(CHECK, format!("{shown} cannot be run: {e}; install it, or correct `exec`")),
        Ok(metadata) if !metadata.is_file() => {
            Finding::fail(CHECK, format!("{shown} is not a file; name a program in `exec`"))
        }
        Ok(_) if rustix::fs::access(path, Access::EXEC_OK).is_err() => {
            Finding::fail(CHECK, format!("{shown} is not executable; run `chmod +x {shown}`"))
        }
        Ok(_) => Finding::ok(CHECK, format!("{shown} can be run")),
    }
}

/// The file with a webhook's token.
pub(super) fn readable(path: &Path, key: &str) -> Finding {
    const CHECK: &str = "notify";
    match fs::read(path) {
        Ok(_) => Finding::ok(CHECK, format!("{} can be read", path.display())),
        Err(e) => Finding::fail(
            CHECK,
            format!("{} can't be read: {e}; put it there, or correct `{key}`", path.display()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_mount_point_is_an_empty_directory() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path();
        let level = |path: &Path| mount_point(path).level;
        assert_eq!(level(dir), Level::Ok);
        assert_eq!(level(&dir.join("missing")), Level::Fail);
        fs::write(dir.join("file"), "").expect("writable");
        assert_eq!(level(dir), Level::Fail);
        assert_eq!(level(&dir.join("file")), Level::Fail);
        // A mount is found behind a link too.
        symlink("/proc", dir.join("link")).expect("writable");
        let found = mount_point(&dir.join("link"));
        assert_eq!(found.level, Level::Fail);
        assert!(found.text.contains("is already a mount (proc of "), "{found}");
    }

    /// A FUSE mount that nobody serves, as long as the device is open, and dead when it is closed.
    fn fuse_mount(point: &Path) -> Option<File> {
        use std::os::fd::AsRawFd;
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.ok()?;
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
        let options = std::ffi::CString::new(options).expect("no zero");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("nasd", point, "fuse", flags, options.as_c_str()).ok()?;
        Some(device)
    }

    #[test]
    fn a_mount_that_hangs_fails_and_a_dead_one_is_a_warning() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let Some(device) = fuse_mount(dir.path()) else {
            eprintln!("skipped: may not mount here");
            return;
        };
        let hangs = mount_point(dir.path());
        drop(device);
        let dead = mount_point(dir.path());
        let unmounted = rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH);
        assert_eq!(unmounted, Ok(()));
        assert_eq!(hangs.level, Level::Fail, "{hangs}");
        assert!(hangs.text.contains(" that does not answer; "), "{hangs}");
        assert_eq!(dead.level, Level::Warn, "{dead}");
        assert!(dead.text.contains(" is a dead FUSE mount; "), "{dead}");
        assert_eq!(mount_point(dir.path()).level, Level::Ok);
    }

    #[test]
    fn a_clock_runs_and_is_not_behind_the_log() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = dir.path().join("log");
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(clock(&log, at(0)).level, Level::Fail);
        assert_eq!(clock(&log, at(1_800_000_000)).level, Level::Ok);
        fs::create_dir(&log).expect("writable");
        // The second 1_800_000_000 is 2027-01-15 08:00:00.
        for name in [
            "20270115T080100.000000001Z-0000000000000042.txn",
            "20270115T075900.000000001Z-0000000000000041.txn",
            "29990115T075900.000000001Z-0000000000000041.tmp",
            "rubbish-1.txn",
        ] {
            fs::write(log.join(name), "").expect("writable");
        }
        let behind = clock(&log, at(1_800_000_000));
        assert_eq!(behind.level, Level::Warn);
        assert!(behind.text.contains(", 1m behind the newest "), "{behind}");
        assert_eq!(clock(&log, at(1_800_000_061)).level, Level::Ok);
    }

    #[test]
    fn a_port_in_use_is_a_warning() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        assert_eq!(listen(&address).level, Level::Warn);
        drop(listener);
        assert_eq!(listen(&address).level, Level::Ok);
        // A documentation address, never ours.
        assert_eq!(listen("192.0.2.1:7400").level, Level::Fail);
    }

    #[test]
    fn a_program_is_there_and_executable() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("tell");
        assert_eq!(executable(&path).level, Level::Fail);
        assert_eq!(executable(dir.path()).level, Level::Fail);
        fs::write(&path, "#!/bin/sh\n").expect("writable");
        assert!(executable(&path).text.contains("chmod +x"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
        assert_eq!(executable(&path).level, Level::Ok);
    }
}
