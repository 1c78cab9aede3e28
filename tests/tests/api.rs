//! The control API: on the socket and over TLS, as its document says, to those who may.
#![allow(clippy::unwrap_used)]
#![allow(clippy::float_cmp)] // Counters of a text format: whole numbers.

use jsonschema::Validator;
use nasd_tests::http::{self, Answer, Client, TOKEN, bearer, over_socket};
use nasd_tests::{Node, Pair, Setup, eventually, nasd, put};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Both nodes reached over the network, too.
struct Open {
    pair: Pair,
    addresses: [String; 2],
    pki: PathBuf,
}

impl Open {
    fn new(setup: &Setup) -> Open {
        let pair = Pair::new(setup);
        let addresses = [&pair.a, &pair.b].map(http::open);
        let pki = pair.dir.path().join("pki");
        Open { pair, addresses, pki }
    }

    fn start(setup: &Setup) -> Open {
        let mut open = Open::new(setup);
        open.pair.b.start();
        open.pair.a.start();
        open.pair.a.wait_for("primary", "in-sync");
        open.pair.b.wait_for("secondary", "in-sync");
        open
    }

    /// Asks by each way in, which have to agree; the answer.
    fn by_all_ways(&self, name: &str, path: &str) -> Answer {
        let (node, address) = match name {
            "a" => (&self.pair.a, &self.addresses[0]),
            _ => (&self.pair.b, &self.addresses[1]),
        };
        let token = Client::new(&self.pki, None).ask(address, name, "GET", path, &bearer(TOKEN)).unwrap();
        let certificate = Client::new(&self.pki, Some("b")).ask(address, name, "GET", path, "").unwrap();
        let socket = over_socket(node, "GET", path);
        assert_eq!(
            [token.code, certificate.code],
            [socket.code; 2],
            "{path}: {token:?} {certificate:?} {socket:?}"
        );
        socket
    }

    fn health(&self, name: &str) -> [u16; 3] {
        ["/healthz", "/primary", "/secondary"].map(|path| self.by_all_ways(name, path).code)
    }
}

fn degrade() -> Setup {
    Setup { replication: "peer_timeout = \"1s\"".to_owned(), ..Setup::default() }
}

#[test]
fn load_balancers_see_who_serves() {
    let mut open = Open::start(&degrade());
    assert_eq!(open.health("a"), [200, 200, 503]);
    assert_eq!(open.health("b"), [200, 503, 200]);
    let body = open.by_all_ways("b", "/primary").json();
    assert_eq!(
        body,
        json!({"role": "secondary", "state": "in-sync", "epoch": open.pair.b.status()["epoch"]})
    );

    open.pair.b.kill();
    put(open.pair.a.path("file"), b"alone");
    open.pair.a.wait_for("primary", "degraded");
    assert_eq!(open.health("a"), [200, 200, 503]);

    // A secondary that follows nobody shows what may be old.
    open.pair.a.kill();
    open.pair.b.start();
    open.pair.b.wait_status("without a primary", |s| s["following"].is_null() && s["state"] != "starting");
    assert_eq!(open.health("b"), [200, 503, 503]);
}

#[test]
fn a_node_that_is_stopping_is_not_well() {
    let setup = Setup {
        replication: "peer_timeout = \"1s\"\non_peer_loss = \"suspend\"".to_owned(),
        ..Setup::default()
    };
    let mut open = Open::start(&setup);
    open.pair.b.kill();
    open.pair.a.wait_status("without its peer", |s| s["peers"][0]["state"] != "in-sync");
    // What nobody has on disk yet keeps the end waiting for a while.
    std::fs::write(open.pair.a.path("file"), b"not synced").unwrap();
    let config = open.pair.a.config.clone();
    let stop = std::thread::spawn(move || nasd(&["stop", "--config", config.to_str().unwrap()]));
    eventually("it is stopping", || (over_socket(&open.pair.a, "GET", "/healthz").code == 503).then_some(()));
    assert_eq!(open.health("a"), [503, 503, 503]);
    open.pair.a.wait_exit();
    assert!(stop.join().unwrap().status.success());
}

#[test]
fn nobody_comes_in_without_token_or_certificate() {
    let open = Open::start(&Setup::default());
    let address = &open.addresses[0];
    let stranger = Client::new(&open.pki, None);
    for path in ["/healthz", "/primary", "/metrics", "/v1/status", "/v1/openapi.json", "/nowhere"] {
        for wrong in [
            String::new(),
            bearer(""),
            bearer(&TOKEN[1..]),
            bearer(&format!("{TOKEN}0")),
            "Authorization: Basic eDp5\r\n".to_owned(),
        ] {
            let answer = stranger.ask(address, "a", "GET", path, &wrong).unwrap();
            assert_eq!(answer.code, 401, "{path} {wrong} {answer:?}");
            assert!(answer.header("www-authenticate").unwrap().starts_with("bearer"), "{answer:?}");
            assert!(!answer.body.contains("epoch"), "{answer:?}");
        }
    }
    let promoted = stranger.ask(address, "a", "POST", "/v1/promote?force=true", "").unwrap();
    assert_eq!(promoted.code, 401);

    // Plain HTTP, with the token and without.
    for headers in [String::new(), bearer(TOKEN)] {
        let mut plain = TcpStream::connect(address).unwrap();
        let answer = http::ask(&mut plain, "GET", "/healthz", &headers);
        assert!(answer.is_err(), "{answer:?}");
    }

    // A certificate that somebody else signed is worse than none: with the token it is refused as well.
    let other = tempfile::tempdir().unwrap();
    let dir = other.path().to_str().unwrap();
    for args in [&["cert", "ca", "--dir", dir][..], &["cert", "node", "--dir", dir, "--name", "b"]] {
        assert!(nasd(args).status.success());
    }
    let foreign = Client::showing(&open.pki, Some((other.path(), "b")));
    let answer = foreign.ask(address, "a", "GET", "/healthz", &bearer(TOKEN));
    assert!(answer.is_err(), "{answer:?}");

    // And a client sees that this is not the node that it wanted.
    let other_name = stranger.ask(address, "b", "GET", "/healthz", &bearer(TOKEN));
    assert!(other_name.is_err(), "{other_name:?}");
}

#[test]
fn a_new_token_counts_at_once() {
    let open = Open::start(&Setup::default());
    let client = Client::new(&open.pki, None);
    let code =
        |token: &str| client.ask(&open.addresses[0], "a", "GET", "/healthz", &bearer(token)).unwrap().code;
    assert_eq!(code(TOKEN), 200);
    std::fs::write(http::token_file(&open.pair.a), "a-new-token-of-ours").unwrap();
    assert_eq!((code(TOKEN), code("a-new-token-of-ours")), (401, 200));
}

#[test]
fn a_token_that_others_can_read_is_refused_at_the_start() {
    let mut open = Open::new(&Setup::default());
    let token = http::token_file(&open.pair.a);
    let mode =
        |mode| std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o644);
    let said = open.pair.a.wrong();
    assert!(said.contains("a.token") && said.contains("chmod 600"), "{said}");
    mode(0o600);
    std::fs::write(&token, "short").unwrap();
    let said = open.pair.a.wrong();
    assert!(said.contains("openssl rand -hex 32"), "{said}");
}

#[test]
fn who_is_slow_holds_up_nobody() {
    let open = Open::start(&Setup::default());
    let address = &open.addresses[0];
    let client = Client::new(&open.pki, Some("b"));
    // Handshakes and requests that never end, by the dozen.
    let mut dead: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(address).unwrap()).collect();
    dead.iter_mut().take(25).for_each(|s| s.write_all(&[22, 3, 1]).unwrap());
    let mut half: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = client.connect(address, "a").unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost:").unwrap();
            stream.flush().unwrap();
            stream
        })
        .collect();
    for _ in 0..20 {
        let start = Instant::now();
        assert_eq!(client.ask(address, "a", "GET", "/healthz", "").unwrap().code, 200);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
    // Their time is limited: the node hangs up.
    let mut rest = Vec::new();
    assert!(matches!(dead[49].read(&mut [0; 1]), Ok(0) | Err(_)));
    let _ = half[49].read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("200"), "{rest:?}");
    // Endless headers are not taken.
    let mut long = client.connect(address, "a").unwrap();
    let _ = long.write_all(b"GET / HTTP/1.1\r\n");
    let line = [b'x'; 1 << 10];
    let taken = (0..1000).take_while(|_| long.write_all(&line).is_ok()).count();
    let mut said = Vec::new();
    let _ = long.read_to_end(&mut said);
    assert!(taken < 1000 || String::from_utf8_lossy(&said).contains(" 431 "), "{taken} {said:?}");
}

#[test]
fn a_node_is_stopped_on_its_socket_only() {
    let mut open = Open::start(&Setup::default());
    let client = Client::new(&open.pki, Some("b"));
    let answer = client.ask(&open.addresses[0], "a", "POST", "/v1/stop", "").unwrap();
    assert_eq!(answer.code, 403, "{answer:?}");
    assert!(answer.body.contains("nasd stop"), "{answer:?}");
    assert!(open.pair.a.runs());
    assert_eq!(over_socket(&open.pair.a, "POST", "/v1/stop").code, 200);
    open.pair.a.wait_exit();
}

// ---- the document --------------------------------------------------------------------------------------------------

fn printed() -> Value {
    let out = nasd(&["openapi"]);
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn the_document_in_the_repository_is_that_of_the_program() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/openapi.json");
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(kept, printed(), "write it anew: nasd openapi > docs/openapi.json");
}

/// Path, method, code and content type.
type Case = (String, String, u16, String);

/// What an answer may be, and what checks its body if that is JSON.
struct Contract(BTreeMap<Case, Option<Validator>>);

impl Contract {
    fn read(document: &Value) -> Contract {
        let mut document = document.clone();
        // What is not described may not be there.
        for schema in document["components"]["schemas"].as_object_mut().unwrap().values_mut() {
            if schema["properties"].is_object() {
                schema["additionalProperties"] = json!(false);
            }
        }
        let mut all = BTreeMap::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                for (code, response) in operation["responses"].as_object().unwrap() {
                    for (kind, media) in response["content"].as_object().unwrap() {
                        let validator = (kind != "text/plain").then(|| {
                            let mut schema = media["schema"].clone();
                            schema["components"] = document["components"].clone();
                            jsonschema::draft202012::new(&schema).unwrap()
                        });
                        let code = code.parse().unwrap();
                        all.insert((path.clone(), method.to_uppercase(), code, kind.clone()), validator);
                    }
                }
            }
        }
        Contract(all)
    }

    fn check(&self, method: &str, path: &str, answer: &Answer) -> Case {
        let bare = path.split('?').next().unwrap().to_owned();
        let kind = answer.header("content-type").unwrap_or_default().split(';').next().unwrap();
        let key = (bare, method.to_owned(), answer.code, kind.to_owned());
        let validator = self.0.get(&key).unwrap_or_else(|| panic!("not described: {key:?}: {answer:?}"));
        if let Some(validator) = validator {
            let body = answer.json();
            let wrong: Vec<String> =
                validator.iter_errors(&body).map(|e| format!("{e} at {}", e.instance_path())).collect();
            assert!(wrong.is_empty(), "{key:?}: {wrong:?}\n{body:#}");
        }
        key
    }
}

/// A stream's head, and as its body the first event.
fn first_event(stream: &mut (impl Read + Write), path: &str) -> Answer {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n").unwrap();
    stream.flush().unwrap();
    let mut text = String::new();
    loop {
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece).unwrap();
        assert!(n > 0, "it ends: {text}");
        text += &String::from_utf8_lossy(&piece[..n]);
        let event = text.split_once("\ndata: ").and_then(|(_, rest)| rest.split_once('\n'));
        if let Some((event, _)) = event {
            let head = text.split("\r\n\r\n").next().unwrap().to_lowercase();
            return Answer { code: 200, head, body: event.to_owned() };
        }
    }
}

#[test]
fn every_answer_is_as_the_document_says() {
    let mut open = Open::start(&Setup {
        replication: "peer_timeout = \"1s\"\non_peer_loss = \"suspend\"".to_owned(),
        ..Setup::default()
    });
    put(open.pair.a.path("file"), b"something");
    let served = over_socket(&open.pair.a, "GET", "/v1/openapi.json").json();
    assert_eq!(served, printed());
    let contract = Contract::read(&served);
    let mut seen = BTreeSet::new();

    let stranger = Client::new(&open.pki, None);
    for (path, method, ..) in contract.0.keys() {
        let answer = stranger.ask(&open.addresses[0], "a", method, path, "").unwrap();
        assert_eq!(answer.code, 401);
        seen.insert(contract.check(method, path, &answer));
    }
    let known = Client::new(&open.pki, Some("b"));
    let addresses = open.addresses.clone();
    let try_one = |i: usize, method: &str, path: &str, code: u16| {
        let answer = known.ask(&addresses[i], ["a", "b"][i], method, path, "").unwrap();
        assert_eq!(answer.code, code, "{path}: {answer:?}");
        contract.check(method, path, &answer)
    };
    for (method, path, code) in [
        ("GET", "/healthz", 200),
        ("GET", "/primary", 200),
        ("GET", "/secondary", 503),
        ("GET", "/metrics", 200),
        ("GET", "/v1/status", 200),
        ("GET", "/v1/openapi.json", 200),
        ("GET", "/v1/wait?seq=1", 200),
        ("GET", "/v1/wait?seq=1000000&timeout_ms=10", 200),
        ("GET", "/v1/wait?after=0", 200),
        ("GET", "/v1/wait", 400),
        ("GET", "/v1/events", 200),
        ("GET", "/v1/events?since=0&path=**&state=role&limit=3", 200),
        ("GET", "/v1/events?state=weather", 400),
        ("POST", "/v1/notify?reason=look", 200),
        ("POST", "/v1/notify?resaon=look", 400),
        ("GET", "/v1/wait?seq=all", 400),
        ("POST", "/v1/promote?plan=true", 200),
        ("POST", "/v1/promote?plan=perhaps", 400),
        ("POST", "/v1/promote", 409),
        ("POST", "/v1/switchover?plan=true", 200),
        ("POST", "/v1/switchover?plan=7", 400),
        ("POST", "/v1/verify", 200),
        ("POST", "/v1/stop", 403),
    ] {
        seen.insert(try_one(0, method, path, code));
    }
    for (method, path, code) in [
        ("GET", "/secondary", 200),
        ("GET", "/primary", 503),
        ("GET", "/v1/status", 200),
        ("POST", "/v1/promote?plan=true", 200),
        ("POST", "/v1/verify", 409),
        ("POST", "/v1/notify", 409),
        ("POST", "/v1/switchover", 200),
    ] {
        seen.insert(try_one(1, method, path, code));
    }
    let mut stream = known.connect(&open.addresses[0], "a").unwrap();
    let event = first_event(&mut stream, "/v1/events?since=0&path=**");
    seen.insert(contract.check("GET", "/v1/events", &event));
    open.pair.b.wait_for("primary", "in-sync");
    open.pair.a.kill();
    open.pair.b.wait_status("without its peer", |s| s["peers"][0]["state"] != "in-sync");
    seen.insert(try_one(1, "POST", "/v1/switchover", 409));
    // It takes a while to stop, since it waits for its peer.
    std::fs::write(open.pair.b.path("file"), b"not synced").unwrap();
    let config = open.pair.b.config.clone();
    let stop = std::thread::spawn(move || nasd(&["stop", "--config", config.to_str().unwrap()]));
    eventually("it is stopping", || (over_socket(&open.pair.b, "GET", "/healthz").code == 503).then_some(()));
    seen.insert(try_one(1, "GET", "/healthz", 503));
    open.pair.b.wait_exit();
    stop.join().unwrap();
    open.pair.a.start();
    open.pair.a.wait_status("there", |_| true);
    let stopped = over_socket(&open.pair.a, "POST", "/v1/stop");
    seen.insert(contract.check("POST", "/v1/stop", &stopped));
    open.pair.a.wait_exit();

    let missing: Vec<_> = contract.0.keys().filter(|k| !seen.contains(*k)).collect();
    assert!(missing.is_empty(), "described and never seen: {missing:?}");
}

#[test]
fn what_there_is_not_is_said_in_json() {
    let pair = Pair::start();
    for (method, path, code) in
        [("GET", "/nowhere", 404), ("GET", "/v1/promote", 405), ("POST", "/v1/status", 405)]
    {
        let answer = over_socket(&pair.a, method, path);
        assert_eq!(answer.code, code, "{answer:?}");
        assert!(answer.json()["error"].is_string(), "{answer:?}");
    }
}

// ---- metrics -------------------------------------------------------------------------------------------------------

/// Each sample by its name and labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines.map(|l| l.rsplit_once(' ').unwrap()).map(|(k, v)| (k.to_owned(), v.parse().unwrap())).collect()
}

fn metrics(node: &Node) -> BTreeMap<String, f64> {
    let answer = over_socket(node, "GET", "/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    promtool(&answer.body);
    samples(&answer.body)
}

/// Prometheus' own opinion.
fn promtool(text: &str) {
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) => {
            return println!("the metrics are not checked by promtool: {e}; install the package prometheus");
        }
    };
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.trim().is_empty(), "{said}\n{text}");
}

#[test]
fn metrics_say_what_the_status_says() {
    let setup =
        Setup { more: "[[notify]]\npaths = [\"**\"]\nexec = \"/bin/true\"\n".to_owned(), ..Setup::default() };
    let pair = Pair::start_with(&setup);
    for i in 0..20 {
        put(pair.a.path(&format!("file-{i}")), b"something");
    }
    pair.settle();
    eventually("the rule has told", || {
        (metrics(&pair.b)["nasd_notifications_sent_total{rule=\"1\",way=\"/bin/true\"}"] > 0.0).then_some(())
    });
    for node in [&pair.a, &pair.b] {
        // Both at one time: nothing was written between them.
        let (m, s) = eventually("a quiet moment", || {
            let (before, m, s) = (node.status(), metrics(node), node.status());
            ["seq", "events", "log", "peers"].iter().all(|k| before[*k] == s[*k]).then_some((m, s))
        });
        let is = |name: &str, value: &Value| {
            let value = value.as_f64().or(value.as_bool().map(f64::from)).unwrap();
            assert_eq!(m.get(name), Some(&value), "{name} of {}: {m:#?}", node.name);
        };
        for (name, key) in [
            ("nasd_epoch", "epoch"),
            ("nasd_seq", "seq"),
            ("nasd_applied_seq", "applied_seq"),
            ("nasd_received_seq", "received_seq"),
            ("nasd_durable_seq", "durable_seq"),
            ("nasd_in_sync", "in_sync"),
            ("nasd_files", "files"),
            ("nasd_diverged_files", "diverged_files"),
        ] {
            is(name, &s[key]);
        }
        for (name, key) in
            [("nasd_log_files", "files"), ("nasd_log_bytes", "bytes"), ("nasd_spare_files", "spare_files")]
        {
            is(name, &s["log"][key]);
        }
        for key in ["transactions", "bytes", "seconds"] {
            is(&format!("nasd_exposure_{key}"), &s["exposure"][key]);
        }
        for (kind, n) in s["events"].as_object().unwrap() {
            is(&format!("nasd_events_total{{kind=\"{kind}\"}}"), n);
        }
        for role in ["primary", "secondary"] {
            is(&format!("nasd_role{{role=\"{role}\"}}"), &json!(s["role"] == role));
        }
        is(&format!("nasd_state{{state=\"{}\"}}", s["state"].as_str().unwrap()), &json!(true));
        for p in s["peers"].as_array().unwrap() {
            let peer = p["name"].as_str().unwrap();
            for key in [
                "in_set",
                "received_seq",
                "durable_seq",
                "lag_transactions",
                "lag_bytes",
                "lag_seconds",
                "copied_bytes",
            ] {
                is(&format!("nasd_peer_{key}{{peer=\"{peer}\"}}"), &p[key]);
            }
        }
    }
    let (m, s) = (metrics(&pair.a), pair.a.status());
    for stage in ["fuse", "seal", "slot", "ship", "local", "wait"] {
        let count = m[&format!("nasd_commit_stage_seconds_count{{stage=\"{stage}\"}}")];
        assert_eq!(count, s["commit_us"][stage]["count"].as_f64().unwrap(), "{stage}");
        assert!(count >= 20.0, "{stage}: {count}");
    }
    let count = |stage: &str| m[&format!("nasd_commit_stage_seconds_count{{stage=\"{stage}\",peer=\"b\"}}")];
    let sum = |stage: &str| m[&format!("nasd_commit_stage_seconds_sum{{stage=\"{stage}\",peer=\"b\"}}")];
    assert!(count("wire") >= 20.0 && count("peer") == count("wire"), "{m:#?}");
    assert!(sum("wire") > 0.0 && sum("peer") > 0.0, "{m:#?}");
    assert_eq!(m["nasd_commit_seconds_bucket{le=\"+Inf\"}"], m["nasd_commit_seconds_count"]);
}
