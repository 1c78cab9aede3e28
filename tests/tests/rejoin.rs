//! What an old primary keeps when it comes back.
#![allow(clippy::unwrap_used)]

use nasd_tests::Pair;
use std::fs;
use std::path::Path;

fn commit(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::File::open(path).unwrap().sync_all().unwrap();
}

#[test]
fn what_both_nodes_have_is_not_set_aside() {
    let mut pair = Pair::start();
    for i in 0..20 {
        commit(&pair.a.path("x"), &i.to_string());
    }
    pair.settle();
    pair.a.kill();
    pair.b.cli(&["promote"]);
    commit(&pair.b.path("x"), "more");
    pair.a.start();
    let status = pair.a.wait_for("secondary", "in-sync");
    assert_eq!(status["diverged_files"], 0, "{}", pair.a.log_text());
    // The log of before goes on: nothing is missing in the middle.
    let log = pair.a.state_dir.join("log");
    let verified = pair.a.cli(&["wait", "--seq", &pair.b.status()["seq"].to_string()]);
    assert_eq!(verified, "");
    let out = nasd_tests::node::nasd(&["log", "verify", log.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}");
    assert!(text.ends_with(" 0 bad\n"), "{text}");
    let count: u64 = text.lines().last().and_then(|l| l.split(' ').next()).unwrap().parse().unwrap();
    assert_eq!(count, pair.b.status()["seq"].as_u64().unwrap(), "{text}");
}
