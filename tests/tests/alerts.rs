//! docs/alerts.yml: Prometheus takes it, and a pair's own metrics make the alerts fire that should, and no others.
#![allow(clippy::unwrap_used)]

use nasd_tests::{Pair, Setup, eventually, http, put};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

fn rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/alerts.yml")
}

/// What stands behind `word` in the rules.
fn every(word: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(rules()).unwrap();
    text.split(word)
        .skip(1)
        .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned())
        .collect()
}

/// Which alerts fire when a node says this for five minutes.
fn firing(metrics: &str) -> BTreeSet<String> {
    let dir = tempfile::tempdir().unwrap();
    let mut test =
        format!("rule_files: [{}]\ntests:\n  - interval: 10s\n    input_series:\n", rules().display());
    for line in metrics.lines().filter(|l| !l.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let series = match series.strip_suffix('}') {
            Some(with) => format!("{with},instance=\"a\",job=\"nasd\"}}"),
            None => format!("{series}{{instance=\"a\",job=\"nasd\"}}"),
        };
        writeln!(test, "      - {{ series: '{series}', values: '{value}x40' }}").unwrap();
    }
    test += "    alert_rule_test:\n";
    for alert in every("alert: ") {
        writeln!(test, "      - {{ eval_time: 5m, alertname: {alert}, exp_alerts: [] }}").unwrap();
    }
    let file = dir.path().join("test.yml");
    std::fs::write(&file, test).unwrap();
    // Those that fire are those that it complains of: none is expected.
    let out = Command::new("promtool").args(["test", "rules"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    let fire: BTreeSet<String> =
        every("alert: ").into_iter().filter(|a| said.contains(&format!("alertname: {a},"))).collect();
    assert_eq!(out.status.success(), fire.is_empty(), "{said}");
    fire
}

#[test]
fn every_metric_and_every_word_of_the_guide_is_there() {
    let source = include_str!("../../nasd/src/api/metrics.rs");
    for metric in every("nasd_") {
        let name = metric.trim_end_matches("_bucket");
        assert!(source.contains(&format!("\"nasd_{name}\"")), "there is no nasd_{name}");
    }
    let guide = include_str!("../../docs/operations.md");
    for alert in every("alert: ") {
        assert!(
            guide.contains(&format!("| `{alert}` |")),
            "docs/operations.md does not say what to do about {alert}"
        );
    }
}

#[test]
fn alerts_fire_by_what_a_node_says() {
    match Command::new("promtool").args(["check", "rules"]).arg(rules()).output() {
        Ok(out) => assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr)),
        Err(e) => return println!("skipped: {e}: apt-get install prometheus"),
    }
    let mut pair =
        Pair::start_with(&Setup { replication: "peer_timeout = \"1s\"".to_owned(), ..Setup::default() });
    put(pair.a.path("file"), "x");
    pair.in_sync_and_equal();
    let metrics = |node: &nasd_tests::Node| http::over_socket(node, "GET", "/metrics").body;
    assert_eq!(firing(&metrics(&pair.a)), BTreeSet::new());

    pair.b.kill();
    pair.a.wait_for("primary", "degraded");
    put(pair.a.path("file"), "more");
    let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    eventually("what is new is some time old", || {
        let said = metrics(&pair.a);
        let age = said.lines().find_map(|l| l.strip_prefix("nasd_exposure_seconds "))?.parse::<f64>().ok()?;
        (age > 10.0).then_some(())
    });
    let fire = firing(&metrics(&pair.a));
    assert_eq!(fire, names(&["NasdExposed", "NasdPeerLags", "NasdPeerOut"]));

    // Of two, one that follows nobody: together with a primary that is well, and alone.
    pair.a.kill();
    pair.b.start();
    pair.b
        .wait_status("it has nobody to follow", |s| s["state"] == "disconnected" || s["state"] == "outdated");
    assert_eq!(firing(&metrics(&pair.b)), names(&["NasdCannotFollow", "NasdNotOnePrimary"]));
}
