//! What a right nasd.toml means.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nasd_config::{
    CommitMode, Config, Log, Node, Notify, OnPeerLoss, Peer, Postgresql, Replication, Role, Tls, Volume,
    WatchMode, Watcher, load, parse,
};

/// The example of the user contract, in which nearly every key has its default.
const WHOLE: &str = r#"
[node]
name = "nas-a"
state_dir = "/var/lib/nasd"
initial_role = "secondary"
listen = "[::]:7400"
control = "/run/nasd.sock"

[volume]
mount = "/srv/nas"

[replication]
commit = "apply"
commit_interval = "250ms"
on_peer_loss = "suspend"
peer_timeout = "1m 30s"

[log]
retain_for = "2h"
retain_bytes = "512MiB"
retain_files = 16

[[peer]]
name = "nas-b"
address = "nas-b:7400"

[[peer]]
name = "nas-c.example.com"
address = "10.0.0.3:7401"

[tls]
ca = "/etc/nasd/ca.pem"
cert = "/etc/nasd/nas-a.pem"
key = "/etc/nasd/nas-a.key"

[watcher]
mode = "poll"
poll_interval = "10ms"

[[notify]]
paths = ["pg_wal/**", "*.{log,journal}"]
every = "50ms"
exec = "/usr/local/bin/on-new-log"

[[notify]]
paths = ["**"]
exec = "/bin/with \"quotes\""

[postgresql]
data_dir = "/var/lib/postgresql/15/main"
bin_dir = "/usr/lib/postgresql/15/bin"
user = "pg"
manage = false
hold_bytes = "2GiB"
notify_every = "0s"
"#;

const SMALLEST: &str = "
[node]
name = 'nas-a'
state_dir = '/var/lib/nasd/'
[volume]
mount = '/srv//nas'
";

fn whole() -> Config {
    Config {
        node: Node {
            name: "nas-a".to_owned(),
            state_dir: PathBuf::from("/var/lib/nasd"),
            initial_role: Role::Secondary,
            listen: "[::]:7400".to_owned(),
            control: PathBuf::from("/run/nasd.sock"),
        },
        volume: Volume { mount: PathBuf::from("/srv/nas") },
        replication: Replication {
            commit: CommitMode::Apply,
            commit_interval: Duration::from_millis(250),
            on_peer_loss: OnPeerLoss::Suspend,
            peer_timeout: Duration::from_secs(90),
        },
        log: Log { retain_for: Duration::from_secs(7200), retain_bytes: 512 << 20, retain_files: 16 },
        peers: vec![
            Peer { name: "nas-b".to_owned(), address: "nas-b:7400".to_owned() },
            Peer { name: "nas-c.example.com".to_owned(), address: "10.0.0.3:7401".to_owned() },
        ],
        tls: Some(Tls {
            ca: PathBuf::from("/etc/nasd/ca.pem"),
            cert: PathBuf::from("/etc/nasd/nas-a.pem"),
            key: PathBuf::from("/etc/nasd/nas-a.key"),
        }),
        watcher: Watcher { mode: WatchMode::Poll, poll_interval: Duration::from_millis(10) },
        notify: vec![
            Notify {
                paths: vec!["pg_wal/**".to_owned(), "*.{log,journal}".to_owned()],
                every: Duration::from_millis(50),
                exec: PathBuf::from("/usr/local/bin/on-new-log"),
            },
            Notify {
                paths: vec!["**".to_owned()],
                every: Duration::ZERO,
                exec: PathBuf::from("/bin/with \"quotes\""),
            },
        ],
        postgresql: Some(Postgresql {
            data_dir: PathBuf::from("/var/lib/postgresql/15/main"),
            bin_dir: Some(PathBuf::from("/usr/lib/postgresql/15/bin")),
            user: "pg".to_owned(),
            manage: false,
            hold_bytes: 2 << 30,
            notify_every: Duration::ZERO,
        }),
    }
}

fn read(text: &str) -> Config {
    parse(text, Path::new("nasd.toml")).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn every_key_is_read() {
    assert_eq!(read(WHOLE), whole());
}

#[test]
fn what_is_not_said_has_its_default() {
    let expected = Config {
        node: Node {
            name: "nas-a".to_owned(),
            state_dir: PathBuf::from("/var/lib/nasd"),
            initial_role: Role::Primary,
            listen: "0.0.0.0:7400".to_owned(),
            control: PathBuf::from("/var/lib/nasd/nasd.sock"),
        },
        volume: Volume { mount: PathBuf::from("/srv/nas") },
        replication: Replication {
            commit: CommitMode::Durable,
            commit_interval: Duration::from_secs(1),
            on_peer_loss: OnPeerLoss::Degrade,
            peer_timeout: Duration::from_secs(5),
        },
        log: Log { retain_for: Duration::from_secs(600), retain_bytes: 4 << 30, retain_files: 20_000 },
        peers: vec![],
        tls: None,
        watcher: Watcher { mode: WatchMode::Inotify, poll_interval: Duration::from_millis(100) },
        notify: vec![],
        postgresql: None,
    };
    assert_eq!(read(SMALLEST), expected);
}

#[test]
fn what_is_printed_reads_the_same() {
    for text in [WHOLE, SMALLEST] {
        let config = read(text);
        assert_eq!(read(&config.to_string()), config, "{config}");
    }
    let mut config = whole();
    for role in [Role::Primary, Role::Secondary] {
        config.node.initial_role = role;
        assert_eq!(read(&config.to_string()), config);
    }
    for mode in [CommitMode::Async, CommitMode::Receive, CommitMode::Durable, CommitMode::Apply] {
        config.replication.commit = mode;
        assert_eq!(read(&config.to_string()), config);
    }
    for loss in [OnPeerLoss::Degrade, OnPeerLoss::Suspend] {
        config.replication.on_peer_loss = loss;
        assert_eq!(read(&config.to_string()), config);
    }
    for mode in [WatchMode::Inotify, WatchMode::Poll] {
        config.watcher.mode = mode;
        assert_eq!(read(&config.to_string()), config);
    }
}

#[test]
fn every_default_is_shown() {
    let shown = read(SMALLEST).to_string();
    for line in [
        "initial_role = \"primary\"",
        "listen = \"0.0.0.0:7400\"",
        "control = \"/var/lib/nasd/nasd.sock\"",
        "commit = \"durable\"",
        "commit_interval = \"1s\"",
        "on_peer_loss = \"degrade\"",
        "peer_timeout = \"5s\"",
        "retain_for = \"10m\"",
        "retain_bytes = \"4GiB\"",
        "retain_files = 20000",
        "mode = \"inotify\"",
        "poll_interval = \"100ms\"",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line} not in\n{shown}");
    }
}

#[test]
fn a_plain_number_is_a_size_in_bytes() {
    let text = SMALLEST.to_owned() + "[log]\nretain_bytes = 1048576\nretain_for = '0s'\n";
    let config = read(&text);
    assert_eq!(config.log.retain_bytes, 1 << 20);
    assert_eq!(config.log.retain_for, Duration::ZERO);
}

#[test]
fn a_file_is_loaded() {
    let path = std::env::temp_dir().join(format!("nasd-config-{}.toml", std::process::id()));
    std::fs::write(&path, WHOLE).expect("the temporary directory is writable");
    let loaded = load(&path);
    std::fs::write(&path, b"[node]\nname = \"\xff\"\n").expect("it still is");
    let garbled = load(&path);
    std::fs::remove_file(&path).expect("it was just written");

    assert_eq!(loaded.expect("it is right"), whole());
    let garbled = garbled.expect_err("it is not text").to_string();
    let expected = format!("{}:2: this is not UTF-8 text; save the file as UTF-8", path.display());
    assert_eq!(garbled, expected);
    let missing = load(&path).expect_err("it was removed").to_string();
    assert!(missing.contains("cannot be read: No such file"), "{missing}");
}
