//! A full disk, on either side: no harm, a clear word, and all goes on by itself.
#![allow(clippy::unwrap_used)]

use nasd_tests::events::changes;
use nasd_tests::image::Image;
use nasd_tests::writer::noise;
use nasd_tests::{Pair, Setup, eventually, put};
use std::fs;
use std::io::Write;

/// A pair with state directories on small disks of their own; dropped before the disks.
struct Small {
    pair: Pair,
    a: Image,
    b: Image,
    _dir: tempfile::TempDir,
}

fn small() -> Option<Small> {
    let dir = tempfile::Builder::new().prefix("nasd-space-").tempdir().unwrap();
    let images = Image::ext4(dir.path(), "a", 96).and_then(|a| Ok((a, Image::ext4(dir.path(), "b", 96)?)));
    let (a, b) = match images {
        Ok(images) => images,
        Err(e) => {
            println!("not tried: no small disk here: {e}");
            return None;
        }
    };
    let state_dirs = Some([a.path.join("state"), b.path.join("state")]);
    // Little is retained, or the log itself would be what fills the disk.
    let log = "retain_files = 32\nretain_bytes = \"4MiB\"".to_owned();
    let replication = "peer_timeout = \"1s\"".to_owned();
    let pair = Pair::start_with(&Setup { state_dirs, log, replication, ..Setup::default() });
    Some(Small { pair, a, b, _dir: dir })
}

fn try_append(f: &mut fs::File, bytes: &[u8]) -> Result<(), i32> {
    f.write_all(bytes).and_then(|()| f.sync_data()).map_err(|e| e.raw_os_error().unwrap_or(0))
}

#[test]
fn a_full_disk_on_the_primary_is_enospc_and_passes() {
    let Some(small) = small() else { return };
    let pair = &small.pair;
    put(pair.a.path("before"), "safe");
    let ballast = small.a.fill(6 << 20);
    let mut f = fs::File::create(pair.a.path("grows")).unwrap();
    let mut whole = 0;
    let error = loop {
        match try_append(&mut f, &noise(whole, 256 << 10)) {
            Ok(()) => whole += 1,
            Err(e) => break e,
        }
        assert!(whole < 1000, "the disk never gets full");
    };
    println!("ENOSPC after {whole} appends of 256 KiB, {} bytes free", small.a.free());
    assert_eq!(error, 28, "ENOSPC and nothing else");
    // Still primary, still readable, and the peer is not blamed.
    assert_eq!(fs::read(pair.a.path("before")).unwrap(), b"safe");
    assert_eq!(pair.a.status()["role"], "primary");
    fs::remove_file(ballast).unwrap();
    eventually("it goes on by itself", || {
        let mut f = fs::File::create(pair.a.path("after")).ok()?;
        try_append(&mut f, b"after").ok()
    });
    put(pair.a.path("last"), "last");
    pair.in_sync_and_equal();
    let back = fs::read(pair.b.path("grows")).unwrap();
    for n in 0..whole {
        let at = n as usize * (256 << 10);
        assert!(back[at..at + (256 << 10)] == noise(n, 256 << 10), "append {n} was acknowledged");
    }
}

#[test]
fn a_full_disk_on_the_secondary_makes_it_lost_until_there_is_space() {
    let Some(small) = small() else { return };
    let pair = &small.pair;
    let ballast = small.b.fill(5 << 20);
    let mut f = fs::File::create(pair.a.path("grows")).unwrap();
    // More than the secondary can take.
    for n in 0..64 {
        assert_eq!(try_append(&mut f, &noise(n, 256 << 10)), Ok(()), "the primary does not suffer");
    }
    let a = pair.a.wait_status("lost for want of space", |s| {
        s["peers"][0]["state"] == "lost"
            && s["peers"][0]["reason"].as_str().is_some_and(|r| r.contains("space"))
    });
    println!("lost: {}", a["peers"][0]["reason"]);
    put(pair.a.path("meanwhile"), "x");
    assert_eq!(pair.a.status()["state"], "degraded");
    assert_eq!(pair.a.status()["out_of_set"], serde_json::json!(["b"]));
    fs::remove_file(ballast).unwrap();
    pair.in_sync_and_equal();
    let disk = || changes(&pair.b).into_iter().filter(|c| c.kind == "disk").collect::<Vec<_>>();
    eventually("there is space again", || (disk().last()?.new == "ok").then_some(()));
    // Each once, however often the primary tried; beside the log there may be no space to apply what is in it either.
    let words: Vec<_> = disk().into_iter().filter(|c| c.old != c.new).map(|c| [c.old, c.new]).collect();
    assert_eq!(words, [["ok", "full"], ["full", "ok"]]);
}
