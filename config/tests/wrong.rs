//! Every mistake is one line that names the place and the remedy.

use std::path::Path;

use nasd_config::parse;

/// A right configuration of one key a line; each case replaces lines of it.
const RIGHT: &str = r#"[node]
name = "nas-a"
state_dir = "/var/lib/nasd"
[volume]
mount = "/srv/nas"
[replication]
commit = "durable"
commit_interval = "1s"
peer_timeout = "5s"
[log]
retain_bytes = "4GiB"
retain_files = 20000
[[peer]]
name = "nas-b"
address = "nas-b:7400"
[tls]
ca = "/etc/nasd/ca.pem"
cert = "/etc/nasd/nas-a.pem"
key = "/etc/nasd/nas-a.key"
[watcher]
poll_interval = "100ms"
[[notify]]
paths = ["pg_wal/**"]
every = "0s"
exec = "/usr/local/bin/on-new-log"
[postgresql]
data_dir = "/var/lib/postgresql/15/main"
hold_bytes = "8GiB"
"#;

/// What is replaced in `RIGHT`, by what, and the error then.
const CASES: &[(&str, &str, &str)] = &[
    // The shape.
    (
        "name = \"nas-a\"",
        "name = nas-a",
        "2: not valid TOML: invalid float, expected `nan`; correct this line (text stands in double quotes)",
    ),
    (
        "name = \"nas-a\"",
        "name = \"nas-a\"\nname = \"nas-a\"",
        "3: not valid TOML: duplicate key; correct this line (text stands in double quotes)",
    ),
    (
        "commit = \"durable\"",
        "comit = \"durable\"",
        "7: unknown key `comit`; remove or correct it: here may stand one of `commit`, `commit_interval`, `on_peer_loss`, `peer_timeout`",
    ),
    (
        "[watcher]",
        "[wacher]",
        "20: unknown key `wacher`; remove or correct it: here may stand one of `node`, `volume`, `replication`, `log`, `peer`, `tls`, `watcher`, `notify`, `postgresql`",
    ),
    (
        "data_dir = \"/var/lib/postgresql/15/main\"",
        "data_dir = \"/srv/nas/main\"",
        "27: data_dir /srv/nas/main lies inside the mount /srv/nas; put it elsewhere",
    ),
    (
        "data_dir = \"/var/lib/postgresql/15/main\"",
        "",
        "26: [postgresql] has no data_dir; add data_dir = … to it",
    ),
    (
        "hold_bytes = \"8GiB\"",
        "hold_bytes = \"1KiB\"",
        "28: hold_bytes is below 1MiB; choose from 1MiB to 1024PiB",
    ),
    (
        "address = \"nas-b:7400\"",
        "address = \"nas-b:7400\"\nadress = 1",
        "16: unknown key `adress`; remove or correct it: here may stand `name` or `address`",
    ),
    (
        "commit = \"durable\"",
        "commit = \"sync\"",
        "7: unknown value \"sync\"; write one of `async`, `receive`, `durable`, `apply`",
    ),
    (
        "state_dir =",
        "initial_role = \"leader\"\nstate_dir =",
        "3: unknown value \"leader\"; write `primary` or `secondary`",
    ),
    ("name = \"nas-a\"", "name = 1", "2: integer `1` cannot stand here; write a string"),
    (
        "commit_interval = \"1s\"",
        "commit_interval = true",
        "8: boolean `true` cannot stand here; write a number with its unit in quotes, such as \"10s\" or \"4GiB\"",
    ),
    (
        "retain_files = 20000",
        "retain_files = \"20000\"",
        "12: string \"20000\" cannot stand here; write a whole number",
    ),
    ("[[peer]]", "[peer]", "13: map cannot stand here; write the section's name in double brackets, [[…]]"),
    (
        "[tls]",
        "[[tls]]",
        "16: map cannot stand here; write a string, or the section's name in single brackets",
    ),
    (
        "address = \"nas-b:7400\"",
        "address = nas-b:7400",
        "15: not valid TOML: invalid float, expected `nan`; correct this line (text stands in double quotes)",
    ),
    // What is missing.
    (
        "[node]\nname = \"nas-a\"\nstate_dir = \"/var/lib/nasd\"\n",
        "",
        "1: there is no [node]; add [node] with name = \"nas-a\" and state_dir = \"/var/lib/nasd\"",
    ),
    (
        "[volume]\nmount = \"/srv/nas\"\n",
        "",
        "1: there is no [volume]; add [volume] with mount = \"/srv/nas\"",
    ),
    ("name = \"nas-a\"\n", "", "1: [node] has no name; add name = … to it"),
    ("state_dir = \"/var/lib/nasd\"\n", "", "1: [node] has no state_dir; add state_dir = … to it"),
    ("mount = \"/srv/nas\"\n", "", "4: [volume] has no mount; add mount = … to it"),
    ("name = \"nas-b\"\n", "", "13: [[peer]] has no name; add name = … to it"),
    ("address = \"nas-b:7400\"\n", "", "13: [[peer]] has no address; add address = … to it"),
    ("key = \"/etc/nasd/nas-a.key\"\n", "", "16: [tls] has no key; add key = … to it"),
    ("paths = [\"pg_wal/**\"]\n", "", "22: [[notify]] has no paths; add paths = … to it"),
    ("exec = \"/usr/local/bin/on-new-log\"\n", "", "22: [[notify]] has no exec; add exec = … to it"),
    (
        "[tls]\nca = \"/etc/nasd/ca.pem\"\ncert = \"/etc/nasd/nas-a.pem\"\nkey = \"/etc/nasd/nas-a.key\"\n",
        "",
        "13: there is a [[peer]] but no [tls]; add [tls] with ca, cert and key (`nasd cert` makes the files)",
    ),
    // Names and addresses.
    (
        "name = \"nas-a\"",
        "name = \"nas a\"",
        "2: name = \"nas a\" cannot stand in a certificate; write it like a host name: letters, digits and `-`, at most 63, a letter first",
    ),
    (
        "name = \"nas-a\"",
        "name = \"\"",
        "2: name = \"\" cannot stand in a certificate; write it like a host name: letters, digits and `-`, at most 63, a letter first",
    ),
    (
        "name = \"nas-b\"",
        "name = \"../b\"",
        "14: name = \"../b\" cannot stand in a certificate; write it like a host name: letters, digits and `-`, at most 63, a letter first",
    ),
    (
        "name = \"nas-b\"",
        "name = \"NAS-A\"",
        "14: the peer \"NAS-A\" has this node's own name; list only the other nodes",
    ),
    (
        "[tls]",
        "[[peer]]\nname = \"nas-b\"\naddress = \"b:1\"\n[tls]",
        "17: there are two peers named \"nas-b\"; give each node a name of its own",
    ),
    (
        "[tls]",
        "[[peer]]\nname = \"nas-c\"\naddress = \"nas-b:7400\"\n[tls]",
        "18: the peers \"nas-b\" and \"nas-c\" have one address; give each its own",
    ),
    (
        "address = \"nas-b:7400\"",
        "address = \"nas-b\"",
        "15: address = \"nas-b\" is not HOST:PORT; write for example \"nas-b:7400\", \"10.0.0.2:7400\" or \"[fd00::2]:7400\"",
    ),
    (
        "address = \"nas-b:7400\"",
        "address = \"fd00::2:7400\"",
        "15: address = \"fd00::2:7400\" is not HOST:PORT; write for example \"nas-b:7400\", \"10.0.0.2:7400\" or \"[fd00::2]:7400\"",
    ),
    (
        "address = \"nas-b:7400\"",
        "address = \"nas-b:70000\"",
        "15: address = \"nas-b:70000\" is not HOST:PORT; write for example \"nas-b:7400\", \"10.0.0.2:7400\" or \"[fd00::2]:7400\"",
    ),
    (
        "address = \"nas-b:7400\"",
        "address = \"nas-b:0\"",
        "15: address = \"nas-b:0\" has no port to connect to; write the port of the peer's `listen`, for example 7400",
    ),
    (
        "state_dir =",
        "listen = \":7400\"\nstate_dir =",
        "3: listen = \":7400\" is not HOST:PORT; write for example \"nas-b:7400\", \"10.0.0.2:7400\" or \"[fd00::2]:7400\"",
    ),
    // Paths.
    (
        "\"/var/lib/nasd\"",
        "\"var/lib/nasd\"",
        "3: state_dir = \"var/lib/nasd\" is not an absolute path; write the whole path from `/` on, without `..`",
    ),
    (
        "\"/srv/nas\"",
        "\"/var/lib/nasd/../nas\"",
        "5: mount = \"/var/lib/nasd/../nas\" is not an absolute path; write the whole path from `/` on, without `..`",
    ),
    (
        "\"/srv/nas\"",
        "\"/srv/\\u0000\"",
        "5: mount = \"/srv/\\0\" is not an absolute path; write the whole path from `/` on, without `..`",
    ),
    (
        "\"/srv/nas\"",
        "\"/var/lib/nasd/mnt\"",
        "5: mount /var/lib/nasd/mnt and state_dir /var/lib/nasd lie one in the other; choose two directories side by side",
    ),
    (
        "\"/srv/nas\"",
        "\"/var/lib\"",
        "5: mount /var/lib and state_dir /var/lib/nasd lie one in the other; choose two directories side by side",
    ),
    (
        "\"/srv/nas\"",
        "\"/var//lib/./nasd/\"",
        "5: mount /var/lib/nasd and state_dir /var/lib/nasd lie one in the other; choose two directories side by side",
    ),
    (
        "state_dir =",
        "control = \"/srv/nas/sock\"\nstate_dir =",
        "3: control /srv/nas/sock lies inside the mount /srv/nas; put it elsewhere",
    ),
    (
        "state_dir =",
        "control = \"/run/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"\nstate_dir =",
        "3: the path of the control socket has 108 bytes; set control in [node] to a path of at most 107 bytes",
    ),
    (
        "\"/etc/nasd/nas-a.key\"",
        "\"/srv/nas/nas-a.key\"",
        "19: key /srv/nas/nas-a.key lies inside the mount /srv/nas; put it elsewhere",
    ),
    (
        "\"/usr/local/bin/on-new-log\"",
        "\"on-new-log\"",
        "25: exec = \"on-new-log\" is not an absolute path; write the whole path from `/` on, without `..`",
    ),
    // Durations, sizes, numbers.
    (
        "commit_interval = \"1s\"",
        "commit_interval = 1",
        "8: commit_interval = \"1\" is no duration: time unit needed, for example 1sec or 1ms; write for example \"100ms\", \"5s\" or \"10m\"",
    ),
    (
        "commit_interval = \"1s\"",
        "commit_interval = \"9ms\"",
        "8: commit_interval is below 10ms; choose from 10ms to 1h",
    ),
    (
        "peer_timeout = \"5s\"",
        "peer_timeout = \"61m\"",
        "9: peer_timeout is above 1h; choose from 100ms to 1h",
    ),
    (
        "poll_interval = \"100ms\"",
        "poll_interval = \"0s\"",
        "21: poll_interval is below 1ms; choose from 1ms to 1m",
    ),
    ("every = \"0s\"", "every = \"2d\"", "24: every is above 1day; choose from 0s to 1day"),
    (
        "retain_bytes = \"4GiB\"",
        "retain_bytes = \"4 gigs\"",
        "11: retain_bytes = \"4 gigs\" is no size: \"gigs\" is no unit of size; write for example \"4GiB\" or \"512MiB\"",
    ),
    (
        "retain_bytes = \"4GiB\"",
        "retain_bytes = 1048575",
        "11: retain_bytes is below 1MiB; choose from 1MiB to 1024PiB",
    ),
    (
        "retain_files = 20000",
        "retain_files = 15",
        "12: retain_files is below 16; choose from 16 to 1000000000",
    ),
    (
        "retain_files = 20000",
        "retain_files = -1",
        "12: retain_files is below 16; choose from 16 to 1000000000",
    ),
    // Patterns.
    ("[\"pg_wal/**\"]", "[]", "23: paths is empty; name what to watch, for example [\"**\"] for everything"),
    (
        "[\"pg_wal/**\"]",
        "[\n\"a\",\n\"[a\"]",
        "25: the pattern \"[a\" is wrong: unclosed character class; missing ']'; write for example \"pg_wal/**\"",
    ),
    (
        "[\"pg_wal/**\"]",
        "[\"/pg_wal/**\"]",
        "23: the pattern \"/pg_wal/**\" can never match; write it relative to the mount, for example \"pg_wal/**\"",
    ),
];

#[test]
fn the_pattern_of_all_cases_is_right() {
    parse(RIGHT, Path::new("n.toml")).expect("it is right");
}

#[test]
fn every_mistake_is_one_line_with_place_and_remedy() {
    let mut failures = Vec::new();
    for (old, new, expected) in CASES {
        assert!(RIGHT.contains(old), "the case {old:?} replaces nothing");
        let text = RIGHT.replacen(old, new, 1);
        let found = match parse(&text, Path::new("/etc/n.toml")) {
            Ok(_) => "(no error)".to_owned(),
            Err(e) => e.to_string(),
        };
        if found != format!("/etc/n.toml:{expected}") {
            failures.push(format!("{old:?} -> {new:?}\n  wanted {expected}\n  found  {found}"));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn an_empty_file_is_no_configuration() {
    for text in ["", "\n", "# nothing\n"] {
        let e = parse(text, Path::new("n.toml")).expect_err("nothing is there");
        assert!(e.to_string().starts_with("n.toml:1: there is no [node]; "), "{e}");
    }
}
