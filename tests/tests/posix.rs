//! The volume is a POSIX filesystem: the public test suites give the same results on the mount as on the filesystem
//! below it.
#![allow(clippy::unwrap_used)]

use nasd_tests::snapshot::assert_equal;
use nasd_tests::{Pair, tools};
use rustix::fs::{self as rfs, CWD, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Excluded on both: the tests that remount the filesystem read-only (`allow_remount`), because a FUSE mount is not
/// remounted by its source and type. These are thirteen, `erofs_*`; [`a_secondary_refuses_every_change`] checks EROFS
/// instead, where a volume is really read-only.
///
/// `rename_ctime`, `utime_now`, `utimensat` and `posix_fallocate` are optional for POSIX and switched on.
/// `naptime` has to be longer than the steps of the kernel's clock for time stamps, 4 ms: a smaller one on a busy
/// machine gives false failures.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.03
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Each test's result by its name.
fn pjdfstest(bin: &Path, config: &Path, dir: &Path) -> BTreeMap<String, String> {
    let out = Command::new(bin)
        .arg("-c")
        .arg(config)
        .arg("-p")
        .arg(dir)
        .args(["-s", "/dev/shm"])
        .env("NO_COLOR", "1")
        .env("RUST_BACKTRACE", "0")
        // Its messages on standard error are those of the panics that it counts as failures.
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let mut results = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [name, result @ ("ok" | "skipped" | "FAILED")] = words[..] {
            results.insert(name.to_owned(), result.to_owned());
        }
    }
    let summary = text.lines().find(|l| l.contains("Summary")).unwrap_or("no summary");
    println!("pjdfstest on {}: {summary}", dir.display());
    if results.values().any(|r| r == "FAILED") {
        println!("{text}");
    }
    results
}

/// Skipped on the mount only, by pjdfstest itself: it asks pathconf(3) for `LINK_MAX`, which the C library answers from
/// a table of filesystems that FUSE is not in. [`a_file_has_as_many_names_as_the_filesystem_below_allows`] does without.
const NOT_ON_FUSE: [&str; 1] = ["link::link_count_max"];

#[test]
fn pjdfstest_gives_the_same_results_as_on_the_filesystem_below() {
    let Some(tools) = tools::posix_tools() else { return };
    let pair = Pair::start();
    let config = pair.dir.path().join("pjdfstest.toml");
    std::fs::write(&config, PJDFSTEST).unwrap();
    // pjdfstest 0.2.2 panics where the path has one of certain lengths: 4095 less the directory less its own two
    // names of eleven must not be a multiple of 127.
    let below = pair.dir.path().join("below");
    std::fs::create_dir(&below).unwrap();
    for dir in [&below, &pair.a.mount] {
        assert_ne!((4095 - 22 - dir.as_os_str().len()) % 127, 0, "{}: choose another length", dir.display());
    }
    let bin = tools.join("pjdfstest");
    let want = pjdfstest(&bin, &config, &below);
    let mut got = pjdfstest(&bin, &config, &pair.a.mount);
    for name in NOT_ON_FUSE {
        assert_eq!(got.insert(name.to_owned(), want[name].clone()).as_deref(), Some("skipped"), "{name}");
    }
    assert!(want.len() > 300, "only {} tests ran", want.len());
    let different: Vec<_> = want.iter().filter(|(name, r)| got.get(*name) != Some(r)).collect();
    assert!(different.is_empty(), "not as on the filesystem below: {different:?}");
    assert_eq!(want.len(), got.len());
    let skipped: Vec<_> = got.iter().filter(|(_, r)| *r == "skipped").map(|(name, _)| name).collect();
    assert!(skipped.iter().all(|n| n.contains("erofs")), "without a reason: {skipped:?}");
    assert!(got.values().all(|r| r != "FAILED"));
    pair.sync_and_settle();
    assert_equal("replica", &pair.a.data(), &pair.b.data());
}

/// Everything that fsx can do. The weights are about even, except those of calls that take long.
const FSX: &str = r"
flen = 400000
[opsize]
max = 70000
[weights]
close_open = 2
invalidate = 1
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 5
punch_hole = 5
sendfile = 5
posix_fadvise = 2
copy_file_range = 5
";

#[test]
fn fsx_finds_nothing_and_the_replica_follows() {
    let Some(tools) = tools::posix_tools() else { return };
    let (seeds, steps) = if nasd_tests::long() { (40, "20000") } else { (6, "3000") };
    let pair = Pair::start();
    let config = pair.dir.path().join("fsx.toml");
    std::fs::write(&config, FSX).unwrap();
    for seed in 1..=seeds {
        let file = pair.a.path(&format!("fsx-{seed}"));
        let out = Command::new(tools.join("fsx"))
            .args(["-q", "-N", steps, "-S", &seed.to_string(), "-P"])
            .arg(pair.dir.path())
            .arg("-f")
            .arg(&config)
            .arg(&file)
            .current_dir(&pair.a.mount)
            .output()
            .unwrap();
        let text = [&out.stdout[..], &out.stderr].concat();
        assert!(out.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&text));
        // What fsx itself did not sync is shipped with any fsync.
        std::fs::File::open(&file).unwrap().sync_all().unwrap();
        pair.settle();
        assert_equal(&format!("seed {seed}"), &pair.a.data(), &pair.b.data());
        std::fs::remove_file(&file).unwrap();
    }
    println!("fsx: {seeds} seeds, {steps} operations each");
}

#[test]
fn a_file_has_as_many_names_as_the_filesystem_below_allows() {
    // Twice 65000 of them take a while.
    if !nasd_tests::long() {
        return;
    }
    let pair = Pair::start();
    let below = pair.dir.path().join("below");
    std::fs::create_dir(&below).unwrap();
    let names = |dir: &Path| {
        let file = dir.join("file");
        std::fs::write(&file, b"").unwrap();
        // More than ext4 allows, which is 65000; XFS allows more than anybody can wait for.
        (1..66_000)
            .find_map(|n| Some((n, std::fs::hard_link(&file, dir.join(n.to_string())).err()?.raw_os_error())))
    };
    let want = names(&below);
    assert_eq!(names(&pair.a.mount), want);
    pair.sync_and_settle();
    assert_equal("replica", &pair.a.data(), &pair.b.data());
}

#[test]
fn a_secondary_refuses_every_change() {
    let pair = Pair::start();
    let on_a = |name: &str| pair.a.path(name);
    std::fs::write(on_a("file"), b"x").unwrap();
    std::fs::create_dir(on_a("dir")).unwrap();
    std::os::unix::fs::symlink("file", on_a("link")).unwrap();
    std::fs::File::open(on_a("file")).unwrap().sync_all().unwrap();
    pair.settle();
    let at = |name: &str| pair.b.path(name);
    let mode = Mode::from(0o600);
    let create = OFlags::CREATE | OFlags::WRONLY;
    let times = rfs::Timestamps {
        last_access: rfs::Timespec { tv_sec: 1, tv_nsec: 0 },
        last_modification: rfs::Timespec { tv_sec: 1, tv_nsec: 0 },
    };
    let fifo = rfs::FileType::Fifo;
    let uid = Some(rfs::Uid::from_raw(1));
    let all: [(&str, Result<(), Errno>); 16] = [
        ("open to write", rfs::open(at("file"), OFlags::WRONLY, mode).map(drop)),
        ("open to truncate", rfs::open(at("file"), OFlags::RDWR | OFlags::TRUNC, mode).map(drop)),
        ("create", rfs::open(at("new"), create, mode).map(drop)),
        ("mkdir", rfs::mkdir(at("new"), mode)),
        ("mkfifo", rfs::mknodat(CWD, at("new"), fifo, mode, 0)),
        ("symlink", rfs::symlink("x", at("new"))),
        ("link", rfs::link(at("file"), at("new"))),
        ("rename", rfs::rename(at("file"), at("new"))),
        ("rename onto", rfs::renameat_with(CWD, at("file"), CWD, at("link"), RenameFlags::EXCHANGE)),
        ("unlink", rfs::unlink(at("file"))),
        ("rmdir", rfs::rmdir(at("dir"))),
        ("chmod", rfs::chmod(at("file"), mode)),
        ("lchown", rfs::chownat(CWD, at("link"), uid, None, rfs::AtFlags::SYMLINK_NOFOLLOW)),
        ("chown", rfs::chown(at("file"), uid, None)),
        ("utimensat", rfs::utimensat(CWD, at("file"), &times, rfs::AtFlags::empty())),
        ("setxattr", rfs::setxattr(at("file"), "user.x", b"x", XattrFlags::empty())),
    ];
    for (what, result) in all {
        assert_eq!(result, Err(Errno::ROFS), "{what}");
    }
    assert_eq!(std::fs::read(at("file")).unwrap(), b"x");
    assert_equal("replica", &pair.a.data(), &pair.b.data());
}
