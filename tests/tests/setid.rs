//! Set-id bits go when somebody else than root changes the content.
#![allow(clippy::unwrap_used)]

use nasd_tests::{Pair, put};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

#[test]
fn fallocate_and_copy_file_range_take_set_id_bits() {
    let pair = Pair::start();
    put(pair.a.path("source"), vec![1; 8192]);
    for (what, command) in [
        ("fallocate", &["fallocate", "-l", "65536"][..]),
        ("copy_file_range", &["xfs_io", "-c", "copy_range source"]),
    ] {
        let file = pair.a.path(what);
        put(&file, "x");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o6777)).unwrap();
        let out = Command::new(command[0])
            .args(&command[1..])
            .arg(what)
            .current_dir(&pair.a.mount)
            .uid(65534)
            .output();
        match out {
            Ok(out) => assert!(out.status.success(), "{what}: {out:?}"),
            Err(e) => {
                println!("{what} not tried: {}: {e}", command[0]);
                continue;
            }
        }
        assert!(file.metadata().unwrap().len() >= 8192, "{what}");
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o777, "{what}: {mode:o}");
    }
    put(pair.a.path("last"), "seals it all");
    pair.in_sync_and_equal();
}
