//! HAProxy and Prometheus with what docs/operations.md and docs/alerts.yml give them, through a failover.
#![allow(clippy::unwrap_used)]

use nasd_tests::cluster::{Cluster, ClusterSetup};
use nasd_tests::etcd::{Etcd, EtcdSetup};
use nasd_tests::http::{self, TOKEN};
use nasd_tests::lab::{Lab, enter};
use nasd_tests::{eventually, eventually_within, put};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const NODES: [&str; 2] = ["nas-a", "nas-b"];

fn document(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(root.join("docs").join(name)).unwrap()
}

/// A block of the document that begins so.
fn snippet(language: &str, begins: &str) -> String {
    let text = document("operations.md");
    let fence = format!("```{language}\n");
    let mut blocks = text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.find(|b| b.starts_with(begins)).unwrap_or_else(|| panic!("no {language} with {begins}")).to_owned()
}

/// The text with everything that is of another place there replaced by what is of this one.
fn here(text: String, places: &[(&str, String)]) -> String {
    places.iter().fold(text, |text, (there, here)| {
        assert!(text.contains(there), "{there} is not in {text}");
        text.replace(there, here)
    })
}

/// Whether the program is installed; says so if it is not.
fn available(test: &str, program: &str, package: &str) -> bool {
    let there =
        Command::new(program).arg(if program == "haproxy" { "-v" } else { "--version" }).output().is_ok();
    if !there {
        println!("{test}: skipped: there is no {program} (apt-get install {package})");
    }
    there
}

/// A server that is gone with this value.
struct Server(Child, PathBuf);

impl Server {
    fn start(netns: &str, program: &str, args: &[&str], log: PathBuf) -> Server {
        let out = fs::File::create(&log).unwrap();
        let mut command = enter(netns, Path::new(program));
        let child = command.args(args).stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        Server(child.spawn().unwrap(), log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("---- {}\n{}", self.1.display(), fs::read_to_string(&self.1).unwrap_or_default());
        }
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The tool's own opinion of a file.
fn approved(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {said}");
    assert!(!said.to_lowercase().contains("warning"), "{program} {args:?}: {said}");
}

struct World {
    cluster: Cluster,
    _etcd: Etcd,
    lab: Lab,
}

impl World {
    /// Two nodes that fail over by themselves, with an API each, and `ops`, where the tools are.
    fn new(test: &str) -> Option<World> {
        let lab = Lab::new(test, &["nas-a", "nas-b", "e", "ops"])?;
        let (ip, netns) = (Some(lab.ip("e")), Some(lab.netns("e")));
        let etcd = Etcd::with(EtcdSetup { ip, netns, ..EtcdSetup::default() });
        let setup = ClusterSetup {
            replication: "peer_timeout = \"500ms\"".to_owned(),
            failover: format!(
                "mode = \"etcd\"\ntimeout = \"1s\"\n[failover.etcd]\nendpoints = [\"{}\"]\n\
                 [[notify]]\npaths = [\"**\"]\nexec = \"/bin/true\"\n",
                etcd.endpoint()
            ),
            no_address: true,
            ..ClusterSetup::default()
        };
        let mut cluster = Cluster::new(&lab, &NODES, &setup);
        for node in &cluster.nodes {
            http::open_at(node, &lab.ip(&node.name), 7601);
        }
        cluster.start();
        Some(World { cluster, _etcd: etcd, lab })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.cluster.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.file(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn ca(&self) -> String {
        self.file("pki/ca.pem").to_str().unwrap().to_owned()
    }

    /// In place of a database: says on which node it is, and holds on.
    fn database(&self, name: &'static str) {
        let (tx, ready) = std::sync::mpsc::channel();
        std::thread::scope(|s| {
            s.spawn(|| {
                self.lab.move_to(name);
                tx.send(TcpListener::bind("0.0.0.0:5432").unwrap()).unwrap();
            });
        });
        let listener = ready.recv().unwrap();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                std::thread::spawn(move || {
                    // Whoever is gone asks no more.
                    let _ = socket.write_all(name.as_bytes());
                    let _ = socket.read(&mut [0]);
                });
            }
        });
    }
}

/// Where the load balancer sends somebody, and the connection. On the thread's host.
fn sent_to(address: &str) -> Option<(String, TcpStream)> {
    let mut socket = TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut name = [0; 5];
    socket.read_exact(&mut name).ok()?;
    Some((String::from_utf8(name.to_vec()).unwrap(), socket))
}

#[test]
fn haproxy_sends_everybody_to_the_primary_through_a_failover() {
    let test = "haproxy_sends_everybody_to_the_primary_through_a_failover";
    if !available(test, "haproxy", "haproxy") {
        return;
    }
    let Some(mut w) = World::new("haproxy") else { return };
    let text = here(
        snippet("haproxy", "frontend nas\n"),
        &[
            ("10.0.0.1", w.lab.ip("nas-a")),
            ("10.0.0.2", w.lab.ip("nas-b")),
            ("/etc/haproxy/nasd-ca.pem", w.ca()),
            ("0123456789abcdef0123456789abcdef", TOKEN.to_owned()),
        ],
    );
    // What Debian's file has besides logging.
    let defaults = "defaults\n    mode http\n    timeout connect 5000\n    timeout client 50000\n    timeout server 50000\n";
    let config = w.write("haproxy.cfg", &format!("{defaults}\n{text}"));
    approved("haproxy", &["-c", "-f", &config]);
    for name in NODES {
        w.database(name);
    }
    let netns = w.lab.netns("ops");
    let _haproxy = Server::start(&netns, "haproxy", &["-db", "-f", &config], w.file("haproxy.log"));
    std::thread::scope(|s| {
        s.spawn(|| {
            w.lab.move_to("ops");
            // In turn to all that it takes for the primary: right after its start that may be both.
            let at = |wanted: &str| {
                let right = || sent_to("127.0.0.1:5432").filter(|(name, _)| name == wanted);
                eventually(&format!("everybody is sent to {wanted}"), || {
                    (0..4).map(|_| right()).collect::<Option<Vec<_>>>()?.pop().map(|(_, socket)| socket)
                })
            };
            let mut open = at("nas-a");
            w.cluster.nodes[0].kill();
            let _now = at("nas-b");
            // Who was connected to the old primary is let go, and comes again.
            assert_eq!(open.read(&mut [0]).unwrap_or(0), 0);
            w.cluster.nodes[0].start();
            assert_eq!(w.cluster.whole(), 1);
            for _ in 0..20 {
                assert_eq!(sent_to("127.0.0.1:5432").unwrap().0, "nas-b", "never to a secondary");
            }
            w.cluster.nodes[0].cli(&["switchover"]);
            let _now = at("nas-a");
        });
    });
}

#[test]
fn prometheus_reads_both_nodes_and_its_rules_notice_a_dead_one() {
    let test = "prometheus_reads_both_nodes_and_its_rules_notice_a_dead_one";
    if !available(test, "prometheus", "prometheus") {
        return;
    }
    let Some(mut w) = World::new("prometheus") else { return };
    let rules = w.write("alerts.yml", &document("alerts.yml"));
    let text = here(
        snippet("yaml", "rule_files:"),
        &[
            ("/etc/prometheus/nasd-alerts.yml", rules.clone()),
            ("/etc/prometheus/nasd.token", w.write("nasd.token", TOKEN)),
            ("/etc/prometheus/nasd-ca.pem", w.ca()),
            ("nas-a:7601", format!("{}:7601", w.lab.ip("nas-a"))),
            ("nas-b:7601", format!("{}:7601", w.lab.ip("nas-b"))),
        ],
    );
    let often = "global: { scrape_interval: 500ms, evaluation_interval: 500ms }\n";
    let config = w.write("prometheus.yml", &format!("{often}{text}"));
    approved("promtool", &["check", "config", &config]);
    approved("promtool", &["check", "rules", &rules]);
    let netns = w.lab.netns("ops");
    let data = w.file("prometheus");
    let args = [
        "--config.file",
        &config,
        "--storage.tsdb.path",
        data.to_str().unwrap(),
        "--web.listen-address",
        "127.0.0.1:9090",
    ];
    let _prometheus = Server::start(&netns, "prometheus", &args, w.file("prometheus.log"));
    // The values of a query.
    let ask = |query: &str| -> Option<Vec<f64>> {
        let out = enter(&netns, Path::new("promtool"))
            .args(["query", "instant", "-o", "json", "http://127.0.0.1:9090", query])
            .output()
            .unwrap();
        let found: Value = serde_json::from_slice(&out.stdout).ok()?;
        let value = |v: &Value| v["value"][1].as_str().unwrap().parse().unwrap();
        Some(found.as_array()?.iter().map(value).collect())
    };
    let becomes = |query: &str, wanted: &[f64]| {
        eventually_within(Duration::from_secs(20), &format!("{query} is {wanted:?}"), || {
            ask(query).filter(|found| found == wanted)
        });
    };
    put(w.cluster.nodes[0].path("x"), "x");
    becomes("sum(up{job=\"nasd\"})", &[2.0]);
    becomes("sum(nasd_role{role=\"primary\"})", &[1.0]);
    // Whatever the rules ask for is there.
    let mut asked = 0;
    for name in fs::read_to_string(&rules).unwrap().split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        if name.starts_with("nasd_") {
            asked += 1;
            eventually(&format!("{name} is told"), || ask(name).filter(|found| !found.is_empty()));
        }
    }
    assert!(asked >= 7, "only {asked} rules");
    // Pending is enough: what is to be so for a minute is not waited for.
    let alerts = |name: &str| format!("ALERTS{{alertname=\"{name}\"}} == 1");
    for quiet in ["NasdNotOnePrimary", "NasdExposed", "NasdPeerOut", "NasdEtcdAway"] {
        becomes(&alerts(quiet), &[]);
    }
    w.cluster.nodes[0].kill();
    assert_eq!(w.cluster.successor(0, Duration::from_secs(20)), 1);
    put(w.cluster.nodes[1].path("y"), "on one machine only");
    becomes("up{job=\"nasd\"} == 0", &[0.0]);
    becomes(&alerts("NasdExposed"), &[1.0]);
    becomes(&alerts("NasdPeerOut"), &[1.0]);
    becomes("sum(nasd_role{role=\"primary\"})", &[1.0]);
    w.cluster.nodes[1].kill();
    becomes(&alerts("NasdDown"), &[1.0, 1.0]);
}
