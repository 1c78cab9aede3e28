//! What a right nasd.toml means.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nasd_config::notify::{Every, Way};
use nasd_config::{
    Api, CommitMode, Config, Etcd, Failover, FailoverMode, Log, Node, Notify, OnPeerLoss, Peer, Postgresql,
    Replication, Role, Tls, VirtualAddress, Volume, WatchMode, Watcher, load, parse,
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
required = 2

[log]
retain_for = "2h"
retain_bytes = "512MiB"
retain_files = 16

[[peer]]
name = "nas-b"
address = "nas-b:7400"
heartbeat_addresses = ["10.1.0.2:7400", "[fd00::2]:7400"]

[[peer]]
name = "nas-c.example.com"
address = "10.0.0.3:7401"

[tls]
ca = "/etc/nasd/ca.pem"
cert = "/etc/nasd/nas-a.pem"
key = "/etc/nasd/nas-a.key"

[api]
listen = "10.0.0.1:7443"
token_file = "/etc/nasd/api.token"
cert = "/etc/nasd/api.pem"
key = "/etc/nasd/api.key"

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

[[notify]]
states = ["role", "sync"]
signal = "USR1"
pid_file = "/run/db.pid"

[[notify]]
paths = ["**"]
states = ["demand"]
every = "on-demand"
webhook = "https://db.example.com/on-new-log"
ca = "/etc/nasd/webhook-ca.pem"
token_file = "/etc/nasd/webhook.token"

[[notify]]
paths = ["pg_wal/**"]
postgresql = "/var/lib/postgresql/15/other"

[postgresql]
data_dir = "/var/lib/postgresql/15/main"
bin_dir = "/usr/lib/postgresql/15/bin"
user = "pg"
manage = false
hold_bytes = "2GiB"
notify_every = "0s"

[failover]
mode = "etcd"
timeout = "3s"
interval = "500ms"
auto_failback = true
virtual_address = "192.0.2.10/24"
interface = "eth0"
on_role_change = "/usr/local/bin/on-role-change"

[failover.etcd]
endpoints = ["https://etcd-1:2379", "https://[fd00::9]:2379"]
prefix = "/volumes/"
ca = "/etc/nasd/etcd-ca.pem"
cert = "/etc/nasd/etcd.pem"
key = "/etc/nasd/etcd.key"
user = "nasd"
password_file = "/etc/nasd/etcd.password"
"#;

/// What stands in the place of `[failover]` and all below it, in `WHOLE`.
const HEARTBEAT: &str = r#"[failover]
mode = "heartbeat"
timeout = "200ms"
fence_exec = "/usr/local/bin/fence"
virtual_address = "2001:db8::10/64"
interface = "bond0.12"
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
            required: 2,
        },
        log: Log { retain_for: Duration::from_secs(7200), retain_bytes: 512 << 20, retain_files: 16 },
        peers: vec![
            Peer {
                name: "nas-b".to_owned(),
                address: "nas-b:7400".to_owned(),
                heartbeat_addresses: vec!["10.1.0.2:7400".to_owned(), "[fd00::2]:7400".to_owned()],
            },
            Peer {
                name: "nas-c.example.com".to_owned(),
                address: "10.0.0.3:7401".to_owned(),
                heartbeat_addresses: vec![],
            },
        ],
        tls: Some(Tls {
            ca: PathBuf::from("/etc/nasd/ca.pem"),
            cert: PathBuf::from("/etc/nasd/nas-a.pem"),
            key: PathBuf::from("/etc/nasd/nas-a.key"),
        }),
        api: Some(Api {
            listen: "10.0.0.1:7443".to_owned(),
            token_file: Some(PathBuf::from("/etc/nasd/api.token")),
            ca: Some(PathBuf::from("/etc/nasd/ca.pem")),
            cert: PathBuf::from("/etc/nasd/api.pem"),
            key: PathBuf::from("/etc/nasd/api.key"),
        }),
        watcher: Watcher { mode: WatchMode::Poll, poll_interval: Duration::from_millis(10) },
        notify: vec![
            Notify {
                paths: vec!["pg_wal/**".to_owned(), "*.{log,journal}".to_owned()],
                states: vec![],
                every: Every::Spell(Duration::from_millis(50)),
                way: Way::Exec(PathBuf::from("/usr/local/bin/on-new-log")),
            },
            Notify {
                paths: vec!["**".to_owned()],
                states: vec![],
                every: Every::Spell(Duration::ZERO),
                way: Way::Exec(PathBuf::from("/bin/with \"quotes\"")),
            },
            Notify {
                paths: vec![],
                states: vec!["role".to_owned(), "sync".to_owned()],
                every: Every::Spell(Duration::ZERO),
                way: Way::Signal { signal: "USR1".to_owned(), pid_file: PathBuf::from("/run/db.pid") },
            },
            Notify {
                paths: vec!["**".to_owned()],
                states: vec!["demand".to_owned()],
                every: Every::OnDemand,
                way: Way::Webhook {
                    url: "https://db.example.com/on-new-log".to_owned(),
                    ca: Some(PathBuf::from("/etc/nasd/webhook-ca.pem")),
                    token_file: Some(PathBuf::from("/etc/nasd/webhook.token")),
                },
            },
            Notify {
                paths: vec!["pg_wal/**".to_owned()],
                states: vec![],
                every: Every::Spell(Duration::ZERO),
                way: Way::Postgresql(PathBuf::from("/var/lib/postgresql/15/other")),
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
        failover: Failover {
            mode: FailoverMode::Etcd,
            timeout: Duration::from_secs(3),
            interval: Duration::from_millis(500),
            fence_exec: None,
            auto_failback: true,
            virtual_address: Some(VirtualAddress {
                address: IpAddr::from([192, 0, 2, 10]),
                prefix_len: 24,
                interface: "eth0".to_owned(),
            }),
            on_role_change: Some(PathBuf::from("/usr/local/bin/on-role-change")),
            etcd: Some(Etcd {
                endpoints: vec!["https://etcd-1:2379".to_owned(), "https://[fd00::9]:2379".to_owned()],
                prefix: "/volumes".to_owned(),
                ca: Some(PathBuf::from("/etc/nasd/etcd-ca.pem")),
                cert: Some((PathBuf::from("/etc/nasd/etcd.pem"), PathBuf::from("/etc/nasd/etcd.key"))),
                user: Some(("nasd".to_owned(), PathBuf::from("/etc/nasd/etcd.password"))),
            }),
        },
    }
}

fn read(text: &str) -> Config {
    parse(text, Path::new("nasd.toml")).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn every_key_is_read() {
    assert_eq!(read(WHOLE), whole());
}

/// The same by heartbeats, which is for two nodes.
fn with_heartbeat() -> String {
    let second = "[[peer]]\nname = \"nas-c.example.com\"\naddress = \"10.0.0.3:7401\"\n";
    with_failover(HEARTBEAT).replace(second, "")
}

/// `WHOLE` with another `[failover]`.
fn with_failover(failover: &str) -> String {
    let before = WHOLE.split("[failover]").next().expect("split gives one at least");
    before.to_owned() + failover
}

#[test]
fn a_heartbeat_has_its_fence_and_a_tenth_of_the_timeout() {
    let expected = Failover {
        mode: FailoverMode::Heartbeat,
        timeout: Duration::from_millis(200),
        interval: Duration::from_millis(20),
        fence_exec: Some(PathBuf::from("/usr/local/bin/fence")),
        auto_failback: false,
        virtual_address: Some(VirtualAddress {
            address: "2001:db8::10".parse().expect("an address"),
            prefix_len: 64,
            interface: "bond0.12".to_owned(),
        }),
        on_role_change: None,
        etcd: None,
    };
    assert_eq!(read(&with_heartbeat()).failover, expected);
}

#[test]
fn an_etcd_needs_no_more_than_its_endpoints() {
    let text = "[failover]\nmode = 'etcd'\n[failover.etcd]\nendpoints = ['http://127.0.0.1:2379']\n";
    let expected = Etcd {
        endpoints: vec!["http://127.0.0.1:2379".to_owned()],
        prefix: "/nasd".to_owned(),
        ca: None,
        cert: None,
        user: None,
    };
    assert_eq!(read(&with_failover(text)).failover.etcd, Some(expected));
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
            required: 1,
        },
        log: Log { retain_for: Duration::from_secs(600), retain_bytes: 4 << 30, retain_files: 20_000 },
        peers: vec![],
        tls: None,
        api: None,
        watcher: Watcher { mode: WatchMode::Inotify, poll_interval: Duration::from_millis(100) },
        notify: vec![],
        postgresql: None,
        failover: Failover {
            mode: FailoverMode::Manual,
            timeout: Duration::from_secs(10),
            interval: Duration::from_secs(1),
            fence_exec: None,
            auto_failback: false,
            virtual_address: None,
            on_role_change: None,
            etcd: None,
        },
    };
    assert_eq!(read(SMALLEST), expected);
}

#[test]
fn the_api_shows_the_certificate_of_the_peers_link() {
    let text = WHOLE.replace("cert = \"/etc/nasd/api.pem\"\nkey = \"/etc/nasd/api.key\"\n", "");
    let text = text.replace("listen = \"10.0.0.1:7443\"\ntoken_file = \"/etc/nasd/api.token\"\n", "");
    let expected = Api {
        listen: "0.0.0.0:7601".to_owned(),
        token_file: None,
        ca: Some(PathBuf::from("/etc/nasd/ca.pem")),
        cert: PathBuf::from("/etc/nasd/nas-a.pem"),
        key: PathBuf::from("/etc/nasd/nas-a.key"),
    };
    assert_eq!(read(&text).api, Some(expected));
}

#[test]
fn a_volume_alone_has_an_api_with_a_certificate_of_its_own() {
    let api = "[api]\ntoken_file = '/t'\ncert = '/c'\nkey = '/k'\n";
    let api = read(&(SMALLEST.to_owned() + api)).api.expect("it has one");
    assert_eq!((api.ca, api.cert, api.key), (None, PathBuf::from("/c"), PathBuf::from("/k")));
}

#[test]
fn what_is_printed_reads_the_same() {
    for text in [WHOLE.to_owned(), SMALLEST.to_owned(), with_heartbeat()] {
        let config = read(&text);
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
    let etcd = config.failover.etcd.as_mut().expect("WHOLE has it");
    (etcd.ca, etcd.cert, etcd.user) = (None, None, None);
    assert_eq!(read(&config.to_string()), config);
    config.failover.etcd = None;
    config.peers.truncate(1);
    for mode in [FailoverMode::Manual, FailoverMode::Heartbeat] {
        config.failover.mode = mode;
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
        "required = 1",
        "mode = \"manual\"",
        "timeout = \"10s\"",
        "interval = \"1s\"",
        "auto_failback = false",
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
