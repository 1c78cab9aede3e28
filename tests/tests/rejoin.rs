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

#[test]
fn what_was_set_aside_can_be_taken_apart() {
    let mut pair = Pair::start();
    let kept = pair.a.path("kept");
    commit(&kept, "both have this");
    pair.settle();
    pair.b.kill();
    // Acknowledged by a alone, then given up for what b goes on with.
    fs::create_dir(pair.a.path("dir")).unwrap();
    let bytes: Vec<u8> = (0..20_000_u32).flat_map(|i| (i * 7919).to_le_bytes()).collect();
    fs::write(pair.a.path("dir/alone"), &bytes).unwrap();
    fs::File::open(pair.a.path("dir/alone")).unwrap().sync_all().unwrap();
    commit(&kept, "only a has this");
    pair.a.kill();
    pair.b.start();
    pair.b.wait_for("secondary", "outdated");
    pair.b.cli(&["promote", "--force"]);
    pair.a.start();
    let status = pair.a.wait_for("secondary", "in-sync");
    let diverged = &status["diverged"];
    let dir = pair.a.state_dir.join("diverged");
    assert_eq!(diverged["files"], status["diverged_files"]);
    assert!(
        diverged["files"].as_u64().unwrap() > 0 && diverged["bytes"].as_u64().unwrap() > 0,
        "{diverged:#}"
    );
    assert_eq!(diverged["path"], dir.to_str().unwrap());
    assert!(diverged["newest"].as_str().unwrap().ends_with('Z'), "{diverged:#}");
    assert!(pair.a.cli(&["status"]).contains("nasd log export "), "it says how to look at it");

    let dir = dir.to_str().unwrap();
    let list = nasd_tests::nasd(&["log", "list", dir]);
    assert!(list.status.success());
    assert_eq!(
        String::from_utf8_lossy(&list.stdout).lines().count() as u64,
        diverged["files"].as_u64().unwrap()
    );
    let to = pair.dir.path().join("export");
    let export = |to: &Path| nasd_tests::nasd(&["log", "export", dir, "--to", to.to_str().unwrap()]);
    let out = export(&to);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // The file is put together again from its writes, in order.
    let json = |path: &Path| -> Vec<serde_json::Value> {
        fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    let mut found = vec![0; bytes.len()];
    let mut texts = Vec::new();
    for txn in json(&to.join("transactions.jsonl")) {
        for op in json(&to.join(format!("{}.jsonl", txn["file"].as_str().unwrap()))) {
            if op["op"] != "write" {
                continue;
            }
            let data = fs::read(to.join(op["data"].as_str().unwrap())).unwrap();
            assert_eq!(op["length"], data.len());
            if op["path"] == "dir/alone" {
                let at = op["offset"].as_u64().unwrap() as usize;
                found[at..at + data.len()].copy_from_slice(&data);
            }
            texts.push(data);
        }
    }
    assert_eq!(found, bytes);
    assert!(texts.iter().any(|t| t == b"only a has this"));
    // What is there already stays as it is.
    let again = export(&to);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("is not empty"));
}
