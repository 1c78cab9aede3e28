//! Every mistake is one line that names the place and the remedy.

use std::path::Path;

use nasd_config::{parse, parse_agent};

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
        "7: unknown key `comit`; remove or correct it: here may stand one of `commit`, `commit_interval`, `on_peer_loss`, `peer_timeout`, `required`",
    ),
    (
        "[watcher]",
        "[wacher]",
        "20: unknown key `wacher`; remove or correct it: here may stand one of `node`, `volume`, `replication`, `log`, `peer`, `tls`, `api`, `watcher`, `notify`, `postgresql`, `failover`",
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
        "16: unknown key `adress`; remove or correct it: here may stand one of `name`, `address`, `heartbeat_addresses`",
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
    (
        "paths = [\"pg_wal/**\"]\n",
        "",
        "22: [[notify]] has neither paths nor states; add paths = [\"**\"] to it for every transaction, or states = [\"role\", …]",
    ),
    (
        "exec = \"/usr/local/bin/on-new-log\"\n",
        "",
        "22: [[notify]] does not say how; add one of exec, signal with pid_file, webhook, or postgresql to it",
    ),
    // Whom a node tells.
    (
        "exec = \"/usr/local/bin/on-new-log\"",
        "exec = \"/bin/true\"\nwebhook = \"http://localhost\"",
        "22: [[notify]] has both exec and webhook; give each its own [[notify]]",
    ),
    (
        "exec = \"/usr/local/bin/on-new-log\"",
        "signal = \"HUP\"",
        "25: [[notify]] has signal but no pid_file; add pid_file = … to it",
    ),
    (
        "exec = \"/usr/local/bin/on-new-log\"",
        "signal = \"KILL\"\npid_file = \"/run/x.pid\"",
        "25: signal: \"KILL\" is no signal that is known; choose from HUP, INT, USR1, USR2, ALRM, TERM, CONT, URG, WINCH",
    ),
    (
        "exec = \"/usr/local/bin/on-new-log\"",
        "exec = \"/bin/true\"\npid_file = \"/run/x.pid\"",
        "26: [[notify]] has pid_file but no signal; add signal = … to it, or remove pid_file",
    ),
    (
        "exec = \"/usr/local/bin/on-new-log\"",
        "exec = \"/bin/true\"\ntoken_file = \"/etc/token\"",
        "26: [[notify]] has token_file but no webhook; add webhook = … to it, or remove token_file",
    ),
    (
        "exec = \"/usr/local/bin/on-new-log\"",
        "webhook = \"http://x\"\nca = \"/etc/ca.pem\"",
        "26: ca is for https, and the webhook is http; write webhook = \"https://…\", or remove ca",
    ),
    (
        "exec = \"/usr/local/bin/on-new-log\"",
        "webhook = \"https://x\"\nca = \"ca.pem\"",
        "26: ca = \"ca.pem\" is not an absolute path; write the whole path from `/` on, without `..`",
    ),
    (
        "exec = \"/usr/local/bin/on-new-log\"",
        "exec = \"/bin/true\"\nca = \"/etc/ca.pem\"",
        "26: [[notify]] has ca but no webhook; add webhook = … to it, or remove ca",
    ),
    (
        "exec = \"/usr/local/bin/on-new-log\"",
        "webhook = \"ftp://x\"",
        "25: webhook = \"ftp://x\" is no address of an HTTP server; write for example \"https://db-b.example.com/on-new-log\"",
    ),
    (
        "exec = \"/usr/local/bin/on-new-log\"",
        "postgresql = \"data\"",
        "25: postgresql = \"data\" is not an absolute path; write the whole path from `/` on, without `..`",
    ),
    (
        "paths = [\"pg_wal/**\"]",
        "states = [\"role\", \"data\"]",
        "23: states: \"data\" is no state that is known; choose from role, link, sync, disk, mount, etcd, database, demand",
    ),
    (
        "paths = [\"pg_wal/**\"]",
        "states = []",
        "23: states is empty; name what to hear of, for example [\"role\"]",
    ),
    (
        "every = \"0s\"",
        "every = \"on demand\"",
        "24: every = \"on demand\" is no duration: expected number at 0; write for example \"100ms\", \"5s\" or \"10m\"",
    ),
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
        "peer_timeout = \"5s\"",
        "peer_timeout = \"5s\"\nrequired = 0",
        "10: required is below 1; choose from 1 to 16",
    ),
    (
        "peer_timeout = \"5s\"",
        "peer_timeout = \"5s\"\nrequired = 17",
        "10: required is above 16; choose from 1 to 16",
    ),
    (
        "address = \"nas-b:7400\"",
        "address = \"nas-b:7400\"\nheartbeat_addresses = [\"10.1.0.2:7400\",\n\"10.2.0.2\"]",
        "17: heartbeat_addresses = \"10.2.0.2\" is not HOST:PORT; write for example \"nas-b:7400\", \"10.0.0.2:7400\" or \"[fd00::2]:7400\"",
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

/// What is added at the end of `RIGHT`, which has 28 lines, and the error then.
const FAILOVER: &[(&str, &str)] = &[
    (
        "[failover]\nmod = \"manual\"",
        "30: unknown key `mod`; remove or correct it: here may stand one of `mode`, `timeout`, `interval`, `fence_exec`, `auto_failback`, `virtual_address`, `interface`, `on_role_change`, `etcd`",
    ),
    ("[failover]\nmode = \"vote\"", "30: unknown value \"vote\"; write one of `manual`, `heartbeat`, `etcd`"),
    // Times.
    ("[failover]\ntimeout = \"199ms\"", "30: timeout is below 200ms; choose from 200ms to 1h"),
    ("[failover]\ntimeout = \"61m\"", "30: timeout is above 1h; choose from 200ms to 1h"),
    (
        "[failover]\ninterval = \"9ms\"",
        "30: interval is below 10ms; choose from 10ms to 3s 333ms 333us 333ns",
    ),
    (
        "[failover]\ntimeout = \"3s\"\ninterval = \"1001ms\"",
        "31: interval is above 1s; choose from 10ms to 1s",
    ),
    // Programs.
    (
        "[failover]\nmode = \"heartbeat\"\nfence_exec = \"fence\"",
        "31: fence_exec = \"fence\" is not an absolute path; write the whole path from `/` on, without `..`",
    ),
    (
        "[failover]\nmode = \"heartbeat\"\nfence_exec = \"/srv/nas/fence\"",
        "31: fence_exec /srv/nas/fence lies inside the mount /srv/nas; put it elsewhere",
    ),
    (
        "[failover]\nfence_exec = \"/bin/fence\"",
        "30: fence_exec is for mode = \"heartbeat\", and the mode is \"manual\"; leave it out, or set the mode",
    ),
    (
        "[failover]\non_role_change = \"/srv/nas/x\"",
        "30: on_role_change /srv/nas/x lies inside the mount /srv/nas; put it elsewhere",
    ),
    // The address.
    (
        "[failover]\nvirtual_address = \"192.0.2.10/24\"",
        "30: virtual_address without an interface; add interface = \"eth0\", or what `ip link` calls it",
    ),
    (
        "[failover]\ninterface = \"eth0\"",
        "30: interface without a virtual_address; add virtual_address = \"192.0.2.10/24\"",
    ),
    (
        "[failover]\ninterface = \"a name of 16 by\"\nvirtual_address = \"192.0.2.10/24\"",
        "30: interface = \"a name of 16 by\" can't be the name of a network interface; write what `ip link` calls it, for example \"eth0\"",
    ),
    (
        "[failover]\ninterface = \"sixteen-bytes-01\"\nvirtual_address = \"192.0.2.10/24\"",
        "30: interface = \"sixteen-bytes-01\" can't be the name of a network interface; write what `ip link` calls it, for example \"eth0\"",
    ),
    // etcd.
    (
        "[failover]\nmode = \"etcd\"",
        "30: mode = \"etcd\" without [failover.etcd]; add [failover.etcd] with endpoints = [\"http://HOST:2379\"]",
    ),
    (
        "[failover.etcd]\nendpoints = [\"http://etcd-1:2379\"]",
        "29: there is [failover.etcd] and the mode is \"manual\"; set mode = \"etcd\" in [failover], or leave it out",
    ),
];

/// What is added below `[failover]` with mode etcd and `[failover.etcd]`, so from line 32 on, and the error then.
const ETCD: &[(&str, &str)] = &[
    ("", "31: [failover.etcd] has no endpoints; add endpoints = … to it"),
    ("endpoints = []", "32: endpoints is empty; write for example [\"http://etcd-1:2379\"]"),
    (
        "endpoints = [\n\"http://a:2379\",\n\"b:2379\"]",
        "34: the endpoint \"b:2379\" is not http://HOST:PORT; write for example \"http://etcd-1:2379\", all with http or all with https",
    ),
    (
        "endpoints = [\"https://a:2379\", \"http://b:2379\"]",
        "32: the endpoint \"http://b:2379\" is not https://HOST:PORT; write for example \"http://etcd-1:2379\", all with http or all with https",
    ),
    (
        "endpoints = [\"http://a\"]",
        "32: the endpoint \"http://a\" is not http://HOST:PORT; write for example \"http://etcd-1:2379\", all with http or all with https",
    ),
    (
        "endpoints = [\"http://a:2379/v3\"]",
        "32: the endpoint \"http://a:2379/v3\" is not http://HOST:PORT; write for example \"http://etcd-1:2379\", all with http or all with https",
    ),
    (
        "endpoints = [\"http://a:1\"]\nca = \"/etc/ca.pem\"",
        "33: ca is for https, and the endpoints are http; write https:// endpoints",
    ),
    (
        "endpoints = [\"https://a:1\"]\nca = \"/srv/nas/ca.pem\"",
        "33: ca /srv/nas/ca.pem lies inside the mount /srv/nas; put it elsewhere",
    ),
    (
        "endpoints = [\"https://a:1\"]\ncert = \"/etc/cert.pem\"",
        "31: [failover.etcd] has one of cert and key; write both or none",
    ),
    (
        "endpoints = [\"http://a:1\"]\nuser = \"nasd\"",
        "31: [failover.etcd] has one of user and password_file; write both or none",
    ),
    (
        "endpoints = [\"http://a:1\"]\nuser = \"nasd\"\npassword_file = \"secret\"",
        "34: password_file = \"secret\" is not an absolute path; write the whole path from `/` on, without `..`",
    ),
    (
        "endpoints = [\"http://a:1\"]\nprefix = \"/\"",
        "33: prefix = \"/\" can't begin the name of a key; write for example \"/nasd\"",
    ),
];

/// What is added below `[api]` at the end of `RIGHT`, so from line 30 on, and the error then.
const API: &[(&str, &str)] = &[
    (
        "token = \"secret\"",
        "30: unknown key `token`; remove or correct it: here may stand one of `listen`, `token_file`, `cert`, `key`",
    ),
    ("listen = 7601", "30: integer `7601` cannot stand here; write a string"),
    (
        "listen = \"7601\"",
        "30: listen = \"7601\" is not HOST:PORT; write for example \"nas-b:7601\", \"10.0.0.2:7601\" or \"[fd00::2]:7601\"",
    ),
    (
        "listen = \"[::1:7601\"",
        "30: listen = \"[::1:7601\" is not HOST:PORT; write for example \"nas-b:7601\", \"10.0.0.2:7601\" or \"[fd00::2]:7601\"",
    ),
    (
        "listen = \"0.0.0.0:0\"",
        "30: listen = \"0.0.0.0:0\" has no port to connect to; write the port that clients connect to, for example 7601",
    ),
    (
        "token_file = \"api.token\"",
        "30: token_file = \"api.token\" is not an absolute path; write the whole path from `/` on, without `..`",
    ),
    (
        "token_file = \"/srv/nas/api.token\"",
        "30: token_file /srv/nas/api.token lies inside the mount /srv/nas; put it elsewhere",
    ),
    ("cert = \"/etc/nasd/api.pem\"", "29: [api] has no key; add key = … to it"),
    ("key = \"/etc/nasd/api.key\"", "29: [api] has no cert; add cert = … to it"),
    (
        "cert = \"api.pem\"\nkey = \"/etc/nasd/api.key\"",
        "30: cert = \"api.pem\" is not an absolute path; write the whole path from `/` on, without `..`",
    ),
    (
        "cert = \"/etc/nasd/api.pem\"\nkey = \"/srv/nas/api.key\"",
        "31: key /srv/nas/api.key lies inside the mount /srv/nas; put it elsewhere",
    ),
    (
        "listen = \"0.0.0.0:7400\"",
        "30: listen = \"0.0.0.0:7400\" is where [node] listens for its peers; choose another port for [api], for example 7601",
    ),
];

/// The same below `[api]` of a volume alone, which has no `[tls]`: from line 6 on.
const API_ALONE: &[(&str, &str)] = &[
    (
        "",
        "6: [api] has no token_file, and without [tls] nobody can show a certificate: it would refuse everybody; add token_file = \"/etc/nasd/api.token\" to it",
    ),
    (
        "cert = \"/c\"\nkey = \"/k\"",
        "6: [api] has no token_file, and without [tls] nobody can show a certificate: it would refuse everybody; add token_file = \"/etc/nasd/api.token\" to it",
    ),
    ("token_file = \"/t\"", "6: [api] has no cert; add cert = … to it"),
    ("token_file = \"/t\"\ncert = \"/c\"", "6: [api] has no key; add key = … to it"),
];

/// A right configuration of an agent.
const AGENT: &str = r#"[agent]
name = "db-1"
servers = ["nas-a:7601", "nas-b:7601"]
state_file = "/var/lib/nasd-agent/state"
timeout = "5s"
[tls]
ca = "/etc/nasd/ca.pem"
cert = "/etc/nasd/db-1.pem"
key = "/etc/nasd/db-1.key"
[[notify]]
paths = ["pg_wal/**"]
exec = "/usr/local/bin/on-new-log"
"#;

/// What is replaced in `AGENT`, by what, and the error then.
const AGENT_CASES: &[(&str, &str, &str)] = &[
    (
        "[agent]",
        "[agnt]",
        "1: unknown key `agnt`; remove or correct it: here may stand one of `agent`, `tls`, `notify`",
    ),
    (
        "[agent]\nname = \"db-1\"\nservers = [\"nas-a:7601\", \"nas-b:7601\"]\nstate_file = \"/var/lib/nasd-agent/state\"\ntimeout = \"5s\"\n",
        "",
        "1: there is no [agent]; add [agent] with name = \"db-1\", servers = [\"nas-a:7601\"] and state_file = \"/var/lib/nasd-agent/state\"",
    ),
    (
        "[tls]\nca = \"/etc/nasd/ca.pem\"\ncert = \"/etc/nasd/db-1.pem\"\nkey = \"/etc/nasd/db-1.key\"\n",
        "",
        "1: there is no [tls]; add [tls] with ca, cert and key (`nasd cert node` makes the files)",
    ),
    (
        "[[notify]]\npaths = [\"pg_wal/**\"]\nexec = \"/usr/local/bin/on-new-log\"\n",
        "",
        "1: there is no [[notify]]; add one: an agent is there to tell somebody",
    ),
    ("name = \"db-1\"\n", "", "1: [agent] has no name; add name = … to it"),
    (
        "name = \"db-1\"",
        "name = \"db 1\"",
        "2: name = \"db 1\" cannot stand in a certificate; write it like a host name: letters, digits and `-`, at most 63, a letter first",
    ),
    (
        "name = \"db-1\"",
        "name = \"db-1\"\nserver = \"nas-a:7601\"",
        "3: unknown key `server`; remove or correct it: here may stand one of `name`, `servers`, `state_file`, `timeout`",
    ),
    ("servers = [\"nas-a:7601\", \"nas-b:7601\"]\n", "", "1: [agent] has no servers; add servers = … to it"),
    (
        "[\"nas-a:7601\", \"nas-b:7601\"]",
        "[]",
        "3: servers is empty; write for example [\"nas-a:7601\", \"nas-b:7601\"]",
    ),
    (
        "[\"nas-a:7601\", \"nas-b:7601\"]",
        "\"nas-a:7601\"",
        "3: string \"nas-a:7601\" cannot stand here; write a list in square brackets, [\"…\", \"…\"]",
    ),
    (
        "[\"nas-a:7601\", \"nas-b:7601\"]",
        "[\"nas-a:7601\",\n\"https://nas-b:7601\"]",
        "4: servers = \"https://nas-b:7601\" is not HOST:PORT; write for example \"nas-b:7601\", \"10.0.0.2:7601\" or \"[fd00::2]:7601\"",
    ),
    (
        "\"nas-b:7601\"",
        "\"nas-b\"",
        "3: servers = \"nas-b\" is not HOST:PORT; write for example \"nas-b:7601\", \"10.0.0.2:7601\" or \"[fd00::2]:7601\"",
    ),
    (
        "\"nas-b:7601\"",
        "\"nas-b:0\"",
        "3: servers = \"nas-b:0\" has no port to connect to; write the port of `listen` in the node's [api], for example 7601",
    ),
    (
        "state_file = \"/var/lib/nasd-agent/state\"\n",
        "",
        "1: [agent] has no state_file; add state_file = … to it",
    ),
    (
        "\"/var/lib/nasd-agent/state\"",
        "\"state\"",
        "4: state_file = \"state\" is not an absolute path; write the whole path from `/` on, without `..`",
    ),
    ("timeout = \"5s\"", "timeout = \"2s\"", "5: timeout is below 3s; choose from 3s to 1h"),
    ("timeout = \"5s\"", "timeout = \"2h\"", "5: timeout is above 1h; choose from 3s to 1h"),
    (
        "timeout = \"5s\"",
        "timeout = 5",
        "5: timeout = \"5\" is no duration: time unit needed, for example 5sec or 5ms; write for example \"100ms\", \"5s\" or \"10m\"",
    ),
    ("key = \"/etc/nasd/db-1.key\"\n", "", "6: [tls] has no key; add key = … to it"),
    (
        "\"/etc/nasd/db-1.pem\"",
        "\"db-1.pem\"",
        "8: cert = \"db-1.pem\" is not an absolute path; write the whole path from `/` on, without `..`",
    ),
    (
        "exec = \"/usr/local/bin/on-new-log\"\n",
        "",
        "10: [[notify]] does not say how; add one of exec, signal with pid_file, webhook, or postgresql to it",
    ),
    (
        "exec = \"/usr/local/bin/on-new-log\"",
        "exec = \"on-new-log\"",
        "12: exec = \"on-new-log\" is not an absolute path; write the whole path from `/` on, without `..`",
    ),
    (
        "[tls]",
        "[volume]\nmount = \"/srv/nas\"\n[tls]",
        "6: unknown key `volume`; remove or correct it: here may stand one of `agent`, `tls`, `notify`",
    ),
];

#[test]
fn every_mistake_about_the_api_has_place_and_remedy() {
    let alone = "[node]\nname = \"a\"\nstate_dir = \"/s\"\n[volume]\nmount = \"/m\"\n";
    let cases = API.iter().map(|(typed, expected)| (RIGHT, typed, expected));
    let cases = cases.chain(API_ALONE.iter().map(|(typed, expected)| (alone, typed, expected)));
    let mut failures = Vec::new();
    for (base, typed, expected) in cases {
        let found = said(&format!("{base}[api]\n{typed}\n"));
        if found != format!("/etc/n.toml:{expected}") {
            failures.push(format!("{typed:?}\n  wanted {expected}\n  found  {found}"));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn every_mistake_of_an_agent_has_place_and_remedy() {
    parse_agent(AGENT, Path::new("agent.toml")).expect("it is right");
    let mut failures = Vec::new();
    for (old, new, expected) in AGENT_CASES {
        assert!(AGENT.contains(old), "the case {old:?} replaces nothing");
        let text = AGENT.replacen(old, new, 1);
        let found = parse_agent(&text, Path::new("agent.toml"));
        let found = found.map_or_else(|e| e.to_string(), |_| "(no error)".to_owned());
        if found != format!("agent.toml:{expected}") {
            failures.push(format!("{old:?} -> {new:?}\n  wanted {expected}\n  found  {found}"));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

fn said(text: &str) -> String {
    parse(text, Path::new("/etc/n.toml")).map_or_else(|e| e.to_string(), |_| "(no error)".to_owned())
}

#[test]
fn every_mistake_about_failover_has_place_and_remedy() {
    assert_eq!(RIGHT.lines().count(), 28);
    let etcd = |(typed, expected): &(&str, &'static str)| {
        (format!("[failover]\nmode = \"etcd\"\n[failover.etcd]\n{typed}"), *expected)
    };
    let cases = FAILOVER.iter().map(|(typed, expected)| ((*typed).to_owned(), *expected));
    for (typed, expected) in cases.chain(ETCD.iter().map(etcd)) {
        assert_eq!(said(&format!("{RIGHT}{typed}\n")), format!("/etc/n.toml:{expected}"), "{typed}");
    }
}

#[test]
fn an_address_of_no_host_is_refused() {
    for typed in [
        "192.0.2.10",
        "192.0.2.10/0",
        "192.0.2.10/33",
        "192.0.2/24",
        "0.0.0.0/8",
        "127.0.0.1/8",
        "224.0.0.1/4",
        "2001:db8::10/129",
        "::/64",
        "::1/128",
        "ff02::1/16",
        "eth0/24",
    ] {
        let text = format!("{RIGHT}[failover]\nvirtual_address = \"{typed}\"\ninterface = \"eth0\"\n");
        let expected = format!(
            "/etc/n.toml:30: virtual_address = \"{typed}\" is no address of a host with its network; write for example \"192.0.2.10/24\" or \"2001:db8::10/64\""
        );
        assert_eq!(said(&text), expected);
    }
}

#[test]
fn a_failover_needs_a_peer() {
    for mode in ["heartbeat", "etcd"] {
        let text = format!(
            "[node]\nname = \"a\"\nstate_dir = \"/s\"\n[volume]\nmount = \"/m\"\n[failover]\nmode = \"{mode}\"\n"
        );
        let expected = format!(
            "/etc/n.toml:7: mode = \"{mode}\" without a [[peer]]: there is nobody to take over; add the other node as [[peer]], or leave the mode out"
        );
        assert_eq!(said(&text), expected);
    }
}

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
