//! The pair of compose.yaml in a Docker engine of our own: it fails over, and loses nothing.
#![allow(clippy::unwrap_used)]

use nasd_tests::caller::{Answer, Caller, Session};
use nasd_tests::docker::{Engine, HOST, PASSWORD};
use nasd_tests::node::binary;
use nasd_tests::{eventually_within, long};
use postgres::NoTls;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
/// Of PostgreSQL in db-a and in db-b, on the engine's host.
const PORTS: [u16; 2] = [5441, 5442];
const SERVICES: [&str; 4] = ["nas-a", "nas-b", "db-a", "db-b"];

/// A block of the guide, as it is typed.
fn block(section: &str, n: usize) -> String {
    let guide = include_str!("../../docs/docker.md");
    let section = guide.split("\n## ").find(|s| s.lines().next() == Some(section)).unwrap();
    section.split("```sh\n").nth(n + 1).unwrap().split("```").next().unwrap().to_owned()
}

fn container(service: &str) -> String {
    format!("nasd_{service}_1")
}

fn connect(port: u16) -> Option<postgres::Client> {
    let mut config = postgres::Config::new();
    config.host("127.0.0.1").port(port).user("postgres").password(PASSWORD).dbname("postgres");
    config.connect_timeout(Duration::from_secs(1)).tcp_user_timeout(Duration::from_secs(2));
    config.connect(NoTls).ok()
}

/// A connection to the primary.
struct Rows(postgres::Client);

impl Rows {
    fn dial() -> Option<Rows> {
        PORTS.iter().find_map(|&port| {
            let mut client = connect(port)?;
            // What a client asks that connects with `target_session_attrs=read-write`.
            let read_only: String = client.query_one("SHOW transaction_read_only", &[]).ok()?.get(0);
            // A primary that was cut off answers no commit.
            client.batch_execute("SET statement_timeout = '2s'").ok()?;
            (read_only == "off").then_some(Rows(client))
        })
    }
}

impl Session for Rows {
    fn write(&mut self, number: u64) -> bool {
        self.0.execute("INSERT INTO numbered VALUES ($1)", &[&(number as i64)]).is_ok()
    }
}

struct World {
    client: Option<Caller>,
    engine: Engine,
}

impl World {
    fn status(&self, nas: &str) -> Option<Value> {
        let out = self.engine.docker(&["exec", &container(nas), "nasd", "status", "--json"]);
        serde_json::from_slice(&out.stdout).ok()
    }

    fn wait_node(&self, nas: &str, role: &str, states: &[&str]) {
        eventually_within(MINUTE, &format!("{nas} is {role}"), || {
            let s = self.status(nas)?;
            (s["role"] == role && states.iter().any(|w| s["state"] == *w)).then_some(())
        });
    }

    fn health(&self, service: &str) -> String {
        self.engine.says(&["inspect", "--format", "{{.State.Health.Status}}", &container(service)])
    }

    fn wait_health(&self, service: &str, health: &str) {
        eventually_within(2 * MINUTE, &format!("{service} is {health}"), || {
            (self.health(service) == health).then_some(())
        });
    }

    /// From where the engine's ports are.
    fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let lab = self.engine.lab();
        std::thread::scope(|s| {
            let work = || {
                lab.move_to(HOST);
                work()
            };
            s.spawn(work).join().unwrap()
        })
    }

    /// What the PostgreSQL of this port has.
    fn rows(&self, port: u16) -> Option<BTreeSet<i64>> {
        self.on_host(|| {
            let rows = connect(port)?.query("SELECT n FROM numbered", &[]).ok()?;
            Some(rows.iter().map(|r| r.get(0)).collect())
        })
    }

    fn client(&self) -> &Caller {
        self.client.as_ref().expect("it works")
    }

    /// All that was acknowledged is there.
    fn check(&self, port: u16, acked: &[Answer]) {
        let rows = eventually_within(MINUTE, "the primary answers", || self.rows(port));
        let missing: Vec<u64> =
            acked.iter().map(|a| a.number).filter(|n| !rows.contains(&(*n as i64))).collect();
        assert!(missing.is_empty(), "acknowledged and lost: {missing:?} of {}", acked.len());
    }

    /// `old` is gone; the other one has everything, and goes on.
    fn taken_over(&self, old: usize, since: Instant) {
        let new = 1 - old;
        self.wait_node(SERVICES[new], "primary", &["degraded", "in-sync"]);
        self.client().first_since(since);
        self.client().wait_more(50);
        let pause = self.client().longest_pause_since(since);
        println!("{} took over: {pause:?} without an answer", SERVICES[new]);
        self.check(PORTS[new], &self.client().answers());
        // In the containers of the databases every client finds the primary, by the environment.
        let psql = ["exec", &container("db-b"), "psql", "-Atc", "SHOW transaction_read_only"];
        assert_eq!(self.engine.says(&psql), "off");
    }

    /// `old` is back, and follows, its database too.
    fn follows(&self, old: usize) {
        self.wait_node(SERVICES[old], "secondary", &["in-sync"]);
        self.wait_node(SERVICES[1 - old], "primary", &["in-sync"]);
        let database = container(SERVICES[2 + old]);
        eventually_within(MINUTE, &format!("{database} runs a standby"), || {
            let log = self.engine.docker(&["logs", "--tail", "1", &database]);
            String::from_utf8_lossy(&log.stderr).ends_with("PostgreSQL runs as standby\n").then_some(())
        });
        self.wait_health(SERVICES[2 + old], "healthy");
    }

    /// Both have the same rows, all that were acknowledged among them.
    fn equal(&self, acked: &[Answer]) {
        self.check(PORTS[0], acked);
        eventually_within(MINUTE, "both have the same rows", || {
            (self.rows(PORTS[0])? == self.rows(PORTS[1])?).then_some(())
        });
    }
}

fn up(test: &str, nasd: Option<&Path>) -> Option<World> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("docker");
    let start = Instant::now();
    let engine = Engine::new(test, &cache, nasd)?;
    println!("images after {:?}", start.elapsed());
    engine.compose(&["up", "--detach"]);
    let mut w = World { client: None, engine };
    assert!(["starting", "healthy"].contains(&w.health("db-b").as_str()));
    for service in SERVICES {
        w.wait_health(service, "healthy");
    }
    w.wait_node("nas-a", "primary", &["in-sync"]);
    println!("a pair after {:?}", start.elapsed());
    let made =
        w.on_host(|| Rows::dial().unwrap().0.batch_execute("CREATE TABLE numbered (n bigint PRIMARY KEY)"));
    made.unwrap();
    w.client = Some(Caller::start(w.engine.lab(), HOST, "rows", Rows::dial));
    w.client().wait_more(50);
    Some(w)
}

#[test]
fn a_pair_in_containers_loses_nothing() {
    let Some(mut w) = up("docker", Some(&binary())) else { return };
    assert_eq!(w.engine.mounts().len(), 2, "the mounts are seen outside: {:?}", w.engine.mounts());

    // A container that is killed, the node in it.
    let since = Instant::now();
    w.engine.says(&["kill", &container("nas-a")]);
    w.taken_over(0, since);
    // Its database does not run on a mount that is dead.
    w.wait_health("db-a", "unhealthy");
    w.engine.says(&["start", &container("nas-a")]);
    w.follows(0);

    // One that is cut off.
    let since = Instant::now();
    w.engine.says(&["network", "disconnect", "nasd_nas", &container("nas-b")]);
    w.taken_over(1, since);
    w.wait_node("nas-b", "secondary", &["disconnected", "outdated"]);
    w.engine.says(&["network", "connect", "--alias", "nas-b", "nasd_nas", &container("nas-b")]);
    w.follows(1);

    // Both get another image, one after the other, while the client works. Of the guide's commands one is not typed here:
    // the one that compiles.
    let new =
        "printf 'FROM nasd-postgres\nLABEL upgraded=yes\n' | docker build --quiet --tag nasd-postgres -";
    let upgrade = block("Upgrading", 0).replace("docker-compose build\n", &format!("{new}\n"));
    assert!(upgrade.contains(new));
    let since = Instant::now();
    println!("{}", w.engine.types(&upgrade));
    w.follows(1);
    w.client().wait_more(50);
    w.engine.types(&block("Stopping", 0));
    w.follows(0);
    w.client().wait_more(50);
    w.engine.types(&upgrade.replace("nas-b", "nas-a").replace("db-b", "db-a"));
    w.follows(0);
    w.client().wait_more(50);
    println!("upgraded: {:?} without an answer at most", w.client().longest_pause_since(since));
    for service in SERVICES {
        let label = "{{index .Config.Labels \"upgraded\"}}";
        assert_eq!(w.engine.says(&["inspect", "--format", label, &container(service)]), "yes", "{service}");
    }
    // And back, by the same commands.
    w.engine.types(&block("Stopping", 0).replace("db-a", "db-b").replace("nas-a", "nas-b"));
    w.follows(1);
    let acked = w.client.take().unwrap().finish();
    w.equal(&acked);
    let ask =
        block("How clients find the primary", 0).replace("/srv/nasd", w.engine.shared().to_str().unwrap());
    w.engine.types(&ask.replace("curl ", "curl --fail --silent --show-error "));

    // All stop in order, and start again with nothing to mend.
    let start = Instant::now();
    w.engine.compose(&["stop"]);
    println!("{} acknowledged; stopped after {:?}", acked.len(), start.elapsed());
    for service in SERVICES {
        let code = w.engine.says(&["inspect", "--format", "{{.State.ExitCode}}", &container(service)]);
        assert_eq!(code, "0", "{service}");
    }
    assert_eq!(w.engine.mounts(), Vec::<String>::new());
    let stopped = w.engine.says(&["inspect", "--format", "{{.State.FinishedAt}}", &container("nas-b")]);
    w.engine.compose(&["up", "--detach"]);
    w.follows(1);
    w.wait_health("db-a", "healthy");
    for nas in ["nas-a", "nas-b"] {
        let log = w.engine.docker(&["logs", "--since", &stopped, &container(nas)]);
        let log = String::from_utf8_lossy(&log.stderr).into_owned();
        assert!(log.contains("mounted at"), "{log}");
        for word in ["redid", "unclean", "dead mount", "set aside"] {
            assert!(!log.contains(word), "{nas}: {word}: {log}");
        }
    }
    w.equal(&acked);
    w.engine.compose(&["stop"]);
    a_node_alone(&w.engine);
}

/// The guide's `docker run`, and an address that goes with the role.
fn a_node_alone(engine: &Engine) {
    let dir = engine.shared().join("alone");
    let [etc, state, srv] = ["etc", "state", "srv"].map(|d| dir.join(d));
    for d in [&etc, &state, &srv.join("nas")] {
        std::fs::create_dir_all(d).unwrap();
    }
    let subnet = "{{(index .IPAM.Config 0).Subnet}}";
    let subnet = engine.says(&["network", "inspect", "--format", subnet, "nasd_nas"]);
    let address = format!("{}.200", subnet.rsplit_once('.').unwrap().0);
    let config = format!(
        "[node]\nname = \"alone\"\nstate_dir = \"/var/lib/nasd\"\ninitial_role = \"primary\"\n[volume]\nmount = \"/srv/nas\"\n\
         [failover]\nvirtual_address = \"{address}/24\"\ninterface = \"eth0\"\n"
    );
    std::fs::write(etc.join("nasd.toml"), config).unwrap();
    let typed = block("What is there", 0);
    let (_, run) = typed.split_once("docker build -t nasd .\n").unwrap();
    let run = run
        .replace("/etc/nasd:/", &format!("{}:/", etc.display()))
        .replace("/var/lib/nasd:/", &format!("{}:/", state.display()))
        .replace("/srv:/", &format!("{}:/", srv.display()))
        // The engine has no network but those that are made.
        .replace("docker run", "docker run --network nasd_nas --cap-add NET_ADMIN --cap-add NET_RAW");
    engine.types(&run);
    eventually_within(MINUTE, "the node is healthy", || {
        let health = engine.says(&["inspect", "--format", "{{.State.Health.Status}}", "nas"]);
        (health == "healthy").then_some(())
    });
    assert!(engine.mounts().iter().any(|m| m.ends_with("/alone/srv/nas")), "{:?}", engine.mounts());
    let addresses = engine.says(&["exec", "nas", "cat", "/proc/net/fib_trie"]);
    assert!(addresses.contains(&format!("-- {address}\n")), "no {address} in {addresses}");
    engine.says(&["exec", "nas", "sh", "-ec", "echo x >/srv/nas/x; sync /srv/nas/x"]);
    engine.says(&["stop", "nas"]);
    assert_eq!(engine.says(&["inspect", "--format", "{{.State.ExitCode}}", "nas"]), "0");
    assert_eq!(std::fs::read_to_string(state.join("data/x")).unwrap(), "x\n");
}

#[test]
fn the_dockerfile_compiles_what_runs() {
    if !long() {
        println!("the_dockerfile_compiles_what_runs: skipped: takes minutes; NASD_TEST_LONG=1");
        return;
    }
    let Some(w) = up("docker-build", None) else { return };
    w.equal(&w.client().answers());
}
