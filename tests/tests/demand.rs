//! `nasd notify` on the primary: consumers look when it is typed, and find everything that was committed before.
#![allow(clippy::unwrap_used)]

use nasd_tests::cluster::{Cluster, ClusterSetup};
use nasd_tests::lab::Lab;
use nasd_tests::{Node, eventually, put};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const ROUNDS: usize = 5;
const FILES: usize = 40;

/// A consumer that writes down what the mount shows at the moment when it is told.
fn consumer(node: &Node) {
    let base = node.mount.parent().unwrap();
    let at = base.join("look");
    let new = base.join("look.new");
    std::fs::write(
        &new,
        format!(
            "#!/bin/sh\ncd {}\nls mnt > \"now\" && mv now \"seen-$NASD_KIND-$NASD_REASON\"\n",
            base.display()
        ),
    )
    .unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    // By a child: were it open for writing here, another test's fork could keep it so.
    assert!(std::process::Command::new("mv").args([&new, &at]).status().unwrap().success());
}

fn seen(node: &Node, reason: &str) -> String {
    let file = node.mount.parent().unwrap().join(format!("seen-demand-{reason}"));
    eventually(&format!("the consumer of {} is told of {reason}", node.name), || {
        std::fs::read_to_string(&file).ok()
    })
}

/// a feeds b, and b feeds c, which a does not know.
#[test]
fn whoever_is_told_reads_all_that_was_committed_before_while_commits_go_on() {
    let Some(lab) = Lab::new("demand", &["a", "b", "c"]) else { return };
    let setup = ClusterSetup {
        no_address: true,
        peers: vec![("a", "b"), ("b", "c")],
        failover: "[[notify]]\npaths = [\"**\"]\nevery = \"on-demand\"\nexec = \"{base}/look\"\n".to_owned(),
        ..ClusterSetup::default()
    };
    let mut cluster = Cluster::new(&lab, &["a", "b", "c"], &setup);
    let [a, b, c] = &mut cluster.nodes[..] else { unreachable!() };
    for node in [&*a, &*b, &*c] {
        consumer(node);
    }
    b.start();
    a.start();
    a.wait_for("primary", "in-sync");
    c.start();
    c.wait_status("fed by b", |s| s["following"] == "b");
    let seq = a.status()["seq"].to_string();
    eventually("c has what there is", || {
        c.try_cli(&["wait", "--seq", &seq, "--timeout", "1s"]).status.success().then_some(())
    });
    let (over, commits) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|s| {
        s.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let n = commits.fetch_add(1, Ordering::SeqCst);
                put(a.path("busy"), n.to_string());
            }
        });
        for round in 0..ROUNDS {
            for n in 0..FILES {
                put(a.path(&format!("{round}-{n}")), "x");
            }
            let before = commits.load(Ordering::SeqCst);
            assert_eq!(a.cli(&["notify", "--reason", &format!("round{round}")]), "b: told\n");
            // It comes by the link of the peers, of b as well.
            for node in [&*b, &*c] {
                let seen = seen(node, &format!("round{round}"));
                for n in 0..FILES {
                    let name = format!("{round}-{n}");
                    assert!(seen.lines().any(|l| l == name), "{}: {name} is not in {seen}", node.name);
                }
            }
            eventually("commits go on", || (commits.load(Ordering::SeqCst) > before + 2).then_some(()));
        }
        over.store(true, Ordering::SeqCst);
    });
    println!("{} commits beside {ROUNDS} rounds", commits.load(Ordering::SeqCst));
    // Typed elsewhere it is refused, and nobody is told.
    for node in [&*b, &*c] {
        let said = node.refused(&["notify", "--reason", "elsewhere"]);
        assert!(said.contains("only the primary has its peers notified: type this there"), "{said}");
    }
    let demands = c.cli(&["events", "--state", "demand", "--since", "0.0"]);
    assert!(demands.lines().count() == ROUNDS && !demands.contains("elsewhere"), "{demands}");
    // Who can't be reached is named.
    b.kill();
    let out = a.try_cli(&["notify"]);
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.code() == Some(1) && said.starts_with("b: not told: "), "{said}");
}
