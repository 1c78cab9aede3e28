//! An agent on a host that mounts a share: its programs hear of every transaction, whatever dies on the way.
#![allow(clippy::unwrap_used)]

use nasd_tests::agent::Agent;
use nasd_tests::cluster::{Cluster, ClusterSetup};
use nasd_tests::http::{self, Client, TOKEN, bearer};
use nasd_tests::lab::Lab;
use nasd_tests::{Node, Pair, Setup, eventually, eventually_within, put};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A program that keeps which paths it was told.
struct Ear(PathBuf);

impl Ear {
    fn new(dir: &Path) -> Ear {
        let ear = Ear(dir.join("told"));
        std::fs::write(ear.program(), format!("#!/bin/sh\nexec cat >> {}\n", ear.0.display())).unwrap();
        std::fs::set_permissions(ear.program(), std::fs::Permissions::from_mode(0o755)).unwrap();
        ear
    }

    fn program(&self) -> PathBuf {
        self.0.with_extension("sh")
    }

    fn rule(&self) -> String {
        format!("[[notify]]\npaths = [\"**\"]\nexec = \"{}\"\n", self.program().display())
    }

    fn heard(&self) -> BTreeSet<String> {
        std::fs::read_to_string(&self.0).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Waits until every one of these was told.
    fn wait(&self, names: &[String]) {
        let missing = || {
            let heard = self.heard();
            names.iter().filter(|n| !heard.contains(*n)).cloned().collect::<Vec<_>>()
        };
        let end = Instant::now() + Duration::from_secs(30);
        while !missing().is_empty() {
            assert!(Instant::now() < end, "never told: {:?}", missing());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

struct World {
    pair: Pair,
    addresses: [String; 2],
    pki: PathBuf,
    ear: Ear,
    written: Vec<String>,
}

impl World {
    fn start() -> World {
        let mut pair =
            Pair::new(&Setup { replication: "peer_timeout = \"1s\"".to_owned(), ..Setup::default() });
        let addresses = [&pair.a, &pair.b].map(http::open);
        let pki = pair.dir.path().join("pki");
        let ear = Ear::new(pair.dir.path());
        pair.b.start();
        pair.a.start();
        pair.a.wait_for("primary", "in-sync");
        pair.b.wait_for("secondary", "in-sync");
        World { pair, addresses, pki, ear, written: Vec::new() }
    }

    fn agent(&self, notify: &str) -> Agent {
        Agent::new(self.pair.dir.path(), &self.pki, &self.addresses, notify)
    }

    /// Commits some files, each on its own.
    fn write(&mut self, on: usize, n: usize) {
        for _ in 0..n {
            let name = format!("file-{}", self.written.len());
            let node: &Node = [&self.pair.a, &self.pair.b][on];
            put(node.path(&name), b"x");
            self.written.push(name);
        }
    }

    /// How long an fsync on the primary takes, with the disks of both nodes: the median of `n`, or none when they hang.
    fn median_commit(&self, n: u32) -> Duration {
        let (tx, times) = mpsc::channel();
        let path = self.pair.a.path("measured");
        // Not here: were it held up, nobody would say so.
        std::thread::spawn(move || (0..n).try_for_each(|i| tx.send(put(&path, i.to_string()))));
        let mut times: Vec<Duration> =
            (0..n).map(|_| times.recv_timeout(Duration::from_secs(20)).expect("commits go on")).collect();
        times.sort();
        times[times.len() / 2]
    }

    fn wait(&self) {
        self.ear.wait(&self.written);
    }
}

fn follows(agent: &Agent, times: usize) {
    eventually("the agent follows", || (agent.log_text().matches("follows ").count() >= times).then_some(()));
}

#[test]
fn command_signal_and_webhook_work_at_the_agent() {
    let mut w = World::start();
    // Counts its signals.
    let signals = w.pair.dir.path().join("signals");
    let pid_file = w.pair.dir.path().join("pid");
    let script = format!(
        "trap 'echo x >> {}' HUP; echo $$ > {}; while :; do sleep 0.05; done",
        signals.display(),
        pid_file.display()
    );
    let mut trapper = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
    eventually("the program is there", || {
        std::fs::read_to_string(&pid_file).ok().filter(|t| t.ends_with('\n'))
    });
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", server.local_addr().unwrap());
    let (tx, posts) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = server.accept() {
            let mut text = String::new();
            let mut piece = [0; 4096];
            // One request a connection: it ends with the JSON.
            while !text.contains("\r\n\r\n") || !text.trim_end().ends_with(['}', ']']) {
                match stream.read(&mut piece) {
                    Ok(n) if n > 0 => text += &String::from_utf8_lossy(&piece[..n]),
                    _ => break,
                }
            }
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
            let _ = tx.send(text);
        }
    });
    let rules = format!(
        "{}[[notify]]\npaths = [\"**\"]\nsignal = \"HUP\"\npid_file = \"{}\"\n[[notify]]\npaths = [\"**\"]\nstates = [\"role\", \"sync\"]\nwebhook = \"{url}\"\n",
        w.ear.rule(),
        pid_file.display(),
    );
    let mut agent = w.agent(&rules);
    agent.start();
    follows(&agent, 1);
    w.write(0, 5);
    w.wait();
    eventually("a signal", || std::fs::read_to_string(&signals).ok());
    let mut said = String::new();
    eventually("the webhook has all", || {
        said.extend(posts.try_iter());
        w.written.iter().all(|n| said.contains(&format!("\"{n}\""))).then_some(())
    });
    trapper.kill().unwrap();
    trapper.wait().unwrap();
    assert_eq!(agent.stop(), Some(0), "{}", agent.log_text());
}

#[test]
fn nothing_is_missed_when_agent_and_nodes_are_killed() {
    let mut w = World::start();
    let mut agent = w.agent(&w.ear.rule());
    agent.start();
    follows(&agent, 1);
    for round in 0..3 {
        w.write(0, 10);
        agent.kill();
        // Nobody listens meanwhile.
        w.write(0, 10);
        agent.start();
        w.write(0, 5);
        // The node that it follows.
        w.pair.a.kill();
        w.pair.a.start();
        w.pair.a.wait_for("primary", "in-sync");
        w.write(0, 5);
        // Both at once.
        agent.kill();
        w.pair.a.kill();
        w.pair.a.start();
        w.pair.a.wait_for("primary", "in-sync");
        w.write(0, 5);
        agent.start();
        w.wait();
        println!("round {round}: {} files", w.written.len());
    }
    // What was told is not told again by a restart in order.
    eventually("all of it is kept", || {
        (kept(&w) == w.pair.a.status()["seq"].as_u64().unwrap()).then_some(())
    });
    assert_eq!(agent.stop(), Some(0));
    let before = std::fs::metadata(&w.ear.0).unwrap().len();
    agent.start();
    let times = agent.log_text().matches("follows ").count();
    follows(&agent, times + 1);
    w.write(0, 1);
    w.wait();
    let name = w.written.last().unwrap();
    let told = std::fs::read_to_string(&w.ear.0).unwrap().split_off(before as usize);
    assert!(told.lines().all(|l| l == name || l.is_empty()), "{told}");
}

#[test]
fn the_other_node_is_followed_after_a_failover() {
    let mut w = World::start();
    let mut agent = w.agent(&w.ear.rule());
    agent.start();
    follows(&agent, 1);
    w.write(0, 20);
    w.pair.a.kill();
    w.pair.b.cli(&["promote"]);
    w.write(1, 20);
    w.wait();
    assert!(agent.log_text().contains(&w.addresses[1]), "{}", agent.log_text());
    // And while it is away: the old one comes back, and the new one is gone.
    agent.kill();
    w.pair.a.start();
    w.pair.b.wait_for("primary", "in-sync");
    w.write(1, 10);
    w.pair.b.cli(&["switchover"]);
    w.pair.a.wait_for("primary", "in-sync");
    w.write(0, 10);
    agent.start();
    w.write(0, 5);
    w.wait();
}

/// What the agent has kept: the number of the transaction that all rules have told.
fn kept(w: &World) -> u64 {
    let text = std::fs::read_to_string(w.pair.dir.path().join("agent/state")).unwrap();
    text.split([' ', '.']).nth(1).unwrap().parse().unwrap()
}

#[test]
fn what_a_successor_has_instead_of_a_lost_history_is_told() {
    let mut w = World::start();
    let said = w.pair.dir.path().join("said");
    let program = said.with_extension("sh");
    std::fs::write(&program, format!("#!/bin/sh\necho \"$NASD_SEQ $NASD_REASON\" >> {}\n", said.display()))
        .unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let told_of_states = format!("[[notify]]\nstates = [\"sync\"]\nexec = \"{}\"\n", program.display());
    // The second wants nothing that is changed before the failover: of what is lost it has only heard how far it went.
    let late_dir = w.pair.dir.path().join("late");
    std::fs::create_dir(&late_dir).unwrap();
    let late = Ear::new(&late_dir);
    let late_rule = late.rule().replace("**", "late-*");
    let mut agent = w.agent(&(w.ear.rule() + &told_of_states));
    let mut late_agent = Agent::new(&late_dir, &w.pki, &w.addresses, &late_rule);
    agent.start();
    late_agent.start();
    follows(&agent, 1);
    follows(&late_agent, 1);
    w.write(0, 5);
    w.wait();
    let both_have = w.pair.a.status()["seq"].as_u64().unwrap();
    w.pair.b.kill();
    w.pair.a.wait_for("primary", "degraded");
    // Nobody but a and the agents ever has these.
    w.write(0, 10);
    w.wait();
    let lost = w.pair.a.status()["seq"].as_u64().unwrap();
    let late_state = late_dir.join("agent/state");
    eventually("both keep that they have them", || {
        let text = std::fs::read_to_string(&late_state).ok()?;
        let late: u64 = text.split([' ', '.']).nth(1)?.parse().ok()?;
        (kept(&w) == lost && late == lost).then_some(())
    });
    agent.kill();
    late_agent.kill();
    w.pair.a.kill();
    w.pair.b.start();
    w.pair.b.wait_for("secondary", "outdated");
    w.pair.b.cli(&["promote", "--force"]);
    // Under the same numbers, and beyond.
    for n in 0..10 {
        put(w.pair.b.path(&format!("late-{n}")), b"x");
    }
    w.write(1, 10);
    assert!(w.pair.b.status()["seq"].as_u64().unwrap() > lost);
    agent.start();
    late_agent.start();
    w.wait();
    late.wait(&(0..10).map(|n| format!("late-{n}")).collect::<Vec<_>>());
    let forks = || {
        let said = std::fs::read_to_string(&said).unwrap_or_default();
        said.lines().filter(|l| l.contains("goes on behind")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(forks().len(), 1, "{:?}", forks());
    let from: u64 = forks()[0].split(' ').next().unwrap().parse().unwrap();
    assert!((both_have..lost).contains(&from), "{from} is not the fork: {both_have} to {lost}");
    // The other one follows, and is what is asked first: it has the same history.
    w.pair.a.start();
    w.pair.b.wait_for("primary", "in-sync");
    agent.kill();
    w.write(1, 5);
    agent.start();
    w.wait();
    assert_eq!(forks().len(), 1, "one history: {:?}", forks());
}

#[test]
fn an_agent_needs_a_certificate() {
    let w = World::start();
    let agent = w.agent(&w.ear.rule());
    let other = tempfile::tempdir().unwrap();
    let dir = other.path().to_str().unwrap();
    for args in [&["cert", "ca", "--dir", dir][..], &["cert", "node", "--dir", dir, "--name", "db-1"]] {
        assert!(nasd_tests::nasd(args).status.success());
    }
    let text = std::fs::read_to_string(&agent.config).unwrap();
    let pki = w.pki.display();
    std::fs::write(&agent.config, text.replace(&format!("{pki}/db-1"), &format!("{dir}/db-1"))).unwrap();
    let mut agent = agent;
    agent.start();
    eventually("it is refused", || agent.log_text().contains("alert").then_some(()));
    assert!(!agent.log_text().contains("follows"), "{}", agent.log_text());
    assert_eq!(agent.stop(), Some(0));
}

/// One line with the remedy at its end, and exit code 2; no node is asked.
#[test]
fn an_agent_that_can_not_be_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (pki, base) = (dir.path().join("pki"), dir.path().to_str().unwrap());
    let at = pki.to_str().unwrap();
    for args in [&["cert", "ca", "--dir", at][..], &["cert", "node", "--dir", at, "--name", "other"]] {
        assert!(nasd_tests::nasd(args).status.success());
    }
    let rule = "[[notify]]\npaths = [\"**\"]\nexec = \"/bin/true\"\n";
    let agent = Agent::new(dir.path(), &pki, &["127.0.0.1:1".to_owned()], rule);
    let config = agent.config.to_str().unwrap();
    let good = std::fs::read_to_string(config).unwrap();
    std::fs::create_dir_all(format!("{base}/agent")).unwrap();
    std::fs::write(format!("{base}/foreign"), "something else\n").unwrap();
    let state = format!("{base}/agent/state");
    for (from, to, file, remedy) in [
        ("/db-1.pem", "/gone.pem", "/gone.pem: cannot read it", "`nasd cert` makes such files"),
        ("/ca.pem", "/other.key", "/other.key: there is no certificate", "make a new one with `nasd cert`"),
        ("/db-1.key", "/other.key", "KeyMismatch", "name two that belong together in [tls]"),
        (
            &state,
            &format!("{base}/foreign"),
            "/foreign: this is no agent's",
            "correct `state_file` in [agent]",
        ),
        (&state, base, "Is a directory", "or its directory's permissions"),
        (&state, &format!("{base}/gone/state"), "", ""),
        ("[agent]", "[agents]", "agent.toml:1: unknown key `agents`", "`notify`"),
        ("timeout = \"3s\"", "timeout = \"1s\"", "timeout is below 3s", "choose from 3s to 1h"),
    ] {
        assert!(good.contains(from), "{from}");
        std::fs::write(config, good.replace(from, to)).unwrap();
        let mut child = Command::new(nasd_tests::node::binary());
        child.args(["agent", "--config", config]).stdin(Stdio::null()).stdout(Stdio::null());
        if remedy.is_empty() {
            // The directory is made: nothing is wrong, and it waits for its server.
            let mut child = child.stderr(Stdio::piped()).spawn().unwrap();
            let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
            assert!(said.next().unwrap().unwrap().contains("connecting"), "{to}");
            child.kill().unwrap();
            child.wait().unwrap();
            continue;
        }
        let out = child.output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(2), "{to}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(
            said.starts_with("nasd: ") && said.contains(file) && said.trim_end().ends_with(remedy),
            "{said}"
        );
    }
}

#[test]
fn a_cut_network_is_noticed_and_nothing_is_missed() {
    let Some(lab) = Lab::new("a_cut_network_is_noticed_and_nothing_is_missed", &["a", "b", "db"]) else {
        return;
    };
    let setup = ClusterSetup { no_address: true, ..ClusterSetup::default() };
    let mut cluster = Cluster::new(&lab, &["a", "b"], &setup);
    let addresses: Vec<String> =
        cluster.nodes.iter().map(|n| http::open_at(n, &lab.ip(&n.name), 7601)).collect();
    cluster.start();
    let dir = cluster.dir.path();
    let ear = Ear::new(dir);
    let mut agent = Agent::new(dir, &dir.join("pki"), &addresses, &ear.rule());
    agent.netns = Some(lab.netns("db"));
    agent.start();
    follows(&agent, 1);
    let mut names = Vec::new();
    let mut write = |n: usize| {
        for _ in 0..n {
            let name = format!("file-{}", names.len());
            put(cluster.nodes[0].path(&name), b"x");
            names.push(name);
        }
        names.clone()
    };
    ear.wait(&write(5));
    // Nothing is heard of the primary any more: no end of a connection either.
    lab.cut("a", "db");
    let names = write(5);
    let cut = Instant::now();
    eventually_within(Duration::from_secs(10), "the other node is followed", || {
        (agent.log_text().matches("follows ").count() >= 2).then_some(())
    });
    println!("the other node is followed after {:?}", cut.elapsed());
    ear.wait(&names);
    // From nobody; then from all again.
    lab.cut("b", "db");
    let names = write(5);
    eventually("the agent says so", || agent.log_text().contains("nothing heard of it for").then_some(()));
    lab.heal();
    ear.wait(&names);
    assert_eq!(agent.stop(), Some(0));
}

/// How often a reader that stands still is told of all its files: more than the sockets between take.
const TOLD_OF_ALL: u32 = 100;

#[test]
fn a_thousand_streams_and_health_beside_them() {
    let mut w = World::start();
    let client = Client::new(&w.pki, Some("b"));
    w.median_commit(200);
    let before = w.median_commit(200);
    let stream = |path: &str| {
        let mut stream = client.connect(&w.addresses[0], "a").unwrap();
        write!(
            stream,
            "GET /v1/events?since=0&path={path} HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n"
        )
        .unwrap();
        stream.flush().unwrap();
        stream
    };
    // It never reads, and is told the most; it holds up nobody.
    let deaf = stream("**");
    let mut streams: Vec<_> = (1..1000).map(|_| stream("{file-*,measured}")).collect();
    let many: Vec<_> = (0..200).map(|n| w.pair.a.path(&format!("{n:0>250}"))).collect();
    for file in &many {
        std::fs::write(file, "x").unwrap();
    }
    for round in 0..TOLD_OF_ALL {
        for file in &many {
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600 + (round & 1))).unwrap();
        }
        put(w.pair.a.path("round"), round.to_string());
    }
    let beside = w.median_commit(400);
    w.write(0, 3);
    for stream in &mut streams {
        let mut text = String::new();
        while !text.contains(&format!("\"{}\"", w.written[2])) {
            let mut piece = [0; 4096];
            let n = stream.read(&mut piece).unwrap();
            assert!(n > 0, "it ends: {text}");
            text += &String::from_utf8_lossy(&piece[..n]);
        }
    }
    let answer =
        Client::new(&w.pki, None).ask(&w.addresses[0], "a", "GET", "/primary", &bearer(TOKEN)).unwrap();
    assert_eq!(answer.code, 200);
    drop((deaf, streams));
    let alone = before.min(w.median_commit(200));
    println!("a commit: {alone:?} alone, {beside:?} beside 1,000 streams");
    // The streams have their share of the processors; no commit waits for one of them.
    assert!(
        beside < alone * 20 + Duration::from_millis(10),
        "{alone:?} alone, {beside:?} beside 1,000 streams"
    );
    let start = Instant::now();
    w.pair.a.stop();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
