//! `nasd setup`: two nodes become a pair by a code that is used once, with somebody on the wire between them.
#![allow(clippy::unwrap_used)]

use nasd_tests::node::{binary, free_port};
use nasd_tests::{Node, eventually, put};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

/// A directory that stands for a host.
struct Host {
    name: &'static str,
    dir: PathBuf,
    listen: String,
}

impl Host {
    fn new(base: &Path, name: &'static str, ip: &str) -> Host {
        let dir = base.join(name);
        fs::create_dir(&dir).unwrap();
        Host { name, dir, listen: format!("{ip}:{}", free_port()) }
    }

    /// Where everything of this host goes, as options.
    fn place(&self) -> Vec<String> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        ["--name", self.name, "--instance", self.name, "--dir", &path("etc"), "--mount", &path("mnt")]
            .into_iter()
            .chain(["--state-dir", &path("state"), "--listen", &self.listen])
            .map(str::to_owned)
            .collect()
    }

    fn etc(&self) -> PathBuf {
        self.dir.join("etc")
    }

    fn node(&self) -> Node {
        let config = self.etc().join(format!("{}.toml", self.name));
        Node::of(self.name, config, self.dir.join("state"), self.dir.join("mnt"), &self.listen)
    }

    /// `nasd setup`, which then waits for another one.
    fn set_up(&self, more: &[&str]) -> Waiting {
        let place = self.place();
        let args = place.iter().map(String::as_str).chain(["--yes", "--pair-on", "127.0.0.1:0"]);
        Waiting::start(&args.chain(more.iter().copied()).collect::<Vec<_>>())
    }

    /// `nasd setup pair` of what is set up.
    fn pair_again(&self, pair_on: &str) -> Waiting {
        let config = self.node().config.display().to_string();
        Waiting::start(&["pair", "--config", &config, "--pair-on", pair_on])
    }

    fn join(&self, target: &str, code: &str) -> Output {
        let place = self.place();
        let args = ["setup", "join", target, "--code", code, "--address", &self.listen];
        Command::new(binary()).args(args).args(place).output().unwrap()
    }

    /// It must fail; what it says.
    fn can_not_join(&self, target: &str, code: &str) -> String {
        let out = self.join(target, code);
        assert_eq!(out.status.code(), Some(1));
        assert!(!self.etc().exists() || fs::read_dir(self.etc()).unwrap().count() == 0, "nothing half done");
        String::from_utf8(out.stderr).unwrap()
    }
}

/// A node that waits for another one.
struct Waiting {
    child: Child,
    target: String,
    code: String,
}

impl Waiting {
    fn start(args: &[&str]) -> Waiting {
        let mut child = Command::new(binary())
            .arg("setup")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let join = lines.find(|l| l.trim_start().starts_with("nasd setup join"));
        let Some(join) = join else {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            child.wait().unwrap();
            panic!("it does not wait: {said}");
        };
        // What it says later must not stop it.
        thread::spawn(move || lines.for_each(drop));
        let words: Vec<&str> = join.split_whitespace().collect();
        Waiting { child, target: words[3].to_owned(), code: words[5].to_owned() }
    }

    /// Waits for its end: whether all is well, and what it complained of.
    fn end(mut self) -> (bool, String) {
        let status = eventually("the pairing ends", || self.child.try_wait().unwrap());
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.success(), said)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Somebody on the wire who writes everything down.
struct Eavesdropper {
    address: String,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Eavesdropper {
    fn between(target: &str) -> Eavesdropper {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (target, notes) = (target.to_owned(), Arc::clone(&heard));
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let far = TcpStream::connect(&target).unwrap();
                for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)]
                {
                    let notes = Arc::clone(&notes);
                    thread::spawn(move || {
                        let mut buf = [0; 4096];
                        while let Ok(n @ 1..) = from.read(&mut buf) {
                            notes.lock().unwrap().extend_from_slice(&buf[..n]);
                            if to.write_all(&buf[..n]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(std::net::Shutdown::Write);
                    });
                }
            }
        });
        Eavesdropper { address, heard }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// The same code with another secret: of its 32 digits the last one.
fn with_wrong_secret(code: &str) -> String {
    let (rest, last) = code.split_at(code.len() - 1);
    format!("{rest}{}", if last == "0" { "1" } else { "0" })
}

#[test]
fn two_hosts_become_a_pair_that_replicates() {
    let base = tempfile::tempdir().unwrap();
    let a = Host::new(base.path(), "a", "127.0.0.1");
    let b = Host::new(base.path(), "b", "127.0.0.2");
    let waiting = a.set_up(&["--on-peer-loss", "suspend"]);
    let wire = Eavesdropper::between(&waiting.target);
    // Where peers reach a is not where b joins: somebody is in between.
    let host = waiting.target.split_once(':').unwrap().0;
    assert_eq!(host, "127.0.0.1");
    let out = b.join(&wire.address, &waiting.code);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let code = waiting.code.clone();
    let (well, said) = waiting.end();
    assert!(well, "{said}");

    // Keys are where they were made, and for root alone.
    assert!(!b.etc().join("b/ca.key").exists() && !a.etc().join("a/b.key").exists());
    for key in [a.etc().join("a/ca.key"), a.etc().join("a/a.key"), b.etc().join("b/b.key")] {
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600, "{}", key.display());
    }
    // Nothing of what was exchanged is on the wire as it is.
    let heard = wire.heard.lock().unwrap().clone();
    assert!(heard.len() > 1000, "it heard all of it: {} bytes", heard.len());
    let mut secrets: Vec<Vec<u8>> =
        vec![code.clone().into(), b"CERTIFICATE REQUEST".to_vec(), b"on_peer_loss".to_vec()];
    for file in [b.etc().join("b/b.pem"), b.etc().join("b/b.key"), b.etc().join("b/ca.pem")] {
        let text = fs::read_to_string(file).unwrap();
        secrets.extend(text.lines().filter(|l| l.len() > 20).map(|l| l.as_bytes().to_vec()));
    }
    assert!(secrets.iter().all(|s| !contains(&heard, s)));

    let (mut a, mut b) = (a.node(), b.node());
    for node in [&mut a, &mut b] {
        let all = node.cli(&["check"]);
        assert!(all.contains("on_peer_loss = \"suspend\""), "{all}");
        assert!(node.cli(&["doctor"]).contains("0 to be mended"));
        node.start();
    }
    a.wait_for("primary", "in-sync");
    b.wait_for("secondary", "in-sync");
    for node in [&a, &b] {
        let said = node.cli(&["doctor"]);
        assert!(said.contains("answers, and TLS holds both ways"), "{said}");
    }
    put(a.path("x"), b"replicated");
    let seq = nasd_tests::seq(&a.status()).to_string();
    b.cli(&["wait", "--seq", &seq]);
    assert_eq!(fs::read(b.path("x")).unwrap(), b"replicated");
}

#[test]
fn a_code_is_good_once() {
    let base = tempfile::tempdir().unwrap();
    let a = Host::new(base.path(), "a", "127.0.0.1");
    let [b, c] = ["b", "c"].map(|n| Host::new(base.path(), n, "127.0.0.1"));
    let waiting = a.set_up(&[]);
    let (target, code) = (waiting.target.clone(), waiting.code.clone());
    assert!(b.join(&target, &code).status.success());
    assert!(waiting.end().0);
    assert!(c.can_not_join(&target, &code).contains("no node waits here"));
    // Not even when the same node waits again at the same place.
    let again = a.pair_again(&target);
    assert_ne!(again.code, code);
    assert!(c.can_not_join(&target, &code).contains("is not the node that this code is from"));
    // A name is given once, too; and the code outlives the refusal.
    let double = Host { name: "b", ..Host::new(base.path(), "b2", "127.0.0.1") };
    assert!(double.can_not_join(&target, &again.code).contains("has a node b already"));
    assert!(c.join(&target, &again.code).status.success());
    assert!(again.end().0);
    let all = a.node().cli(&["check"]);
    assert!(all.contains(&b.listen) && all.contains(&c.listen), "{all}");
}

#[test]
fn three_wrong_codes_make_it_void() {
    let base = tempfile::tempdir().unwrap();
    let a = Host::new(base.path(), "a", "127.0.0.1");
    let b = Host::new(base.path(), "b", "127.0.0.1");
    let waiting = a.set_up(&[]);
    let (target, code) = (waiting.target.clone(), waiting.code.clone());
    let wrong = with_wrong_secret(&code);
    for left in [2, 1, 0] {
        let said = b.can_not_join(&target, &wrong);
        assert!(said.contains(&format!("the code is wrong; {left} tries are left")), "{said}");
    }
    let (well, said) = waiting.end();
    assert!(!well && said.contains("3 wrong codes: this one is void"), "{said}");
    assert!(b.can_not_join(&target, &code).contains("no node waits here"));
    assert!(!a.node().cli(&["check"]).contains("[[peer]]"));
    let said = Command::new(binary()).args(["setup", "join", &target, "--code", "8f3k"]).output().unwrap();
    assert_eq!(said.status.code(), Some(2), "not even a code");
}

#[test]
fn a_code_expires() {
    let base = tempfile::tempdir().unwrap();
    let a = Host::new(base.path(), "a", "127.0.0.1");
    let b = Host::new(base.path(), "b", "127.0.0.1");
    let waiting = a.set_up(&["--valid", "100ms"]);
    let (target, code) = (waiting.target.clone(), waiting.code.clone());
    let (well, said) = waiting.end();
    assert!(!well && said.contains("the code is void"), "{said}");
    assert!(b.can_not_join(&target, &code).contains("no node waits here"));
    // What was set up is there, and waits again when it is asked to.
    let waiting = a.pair_again("127.0.0.1:0");
    assert!(b.join(&waiting.target, &waiting.code).status.success());
    assert!(waiting.end().0);
}

/// Whoever answers in the place of the node that made the code learns nothing: the caller hangs up before it says anything.
#[test]
fn nobody_can_pass_for_the_node_that_made_the_code() {
    let base = tempfile::tempdir().unwrap();
    let [a, mallory] = ["a", "mallory"].map(|n| Host::new(base.path(), n, "127.0.0.1"));
    let b = Host::new(base.path(), "b", "127.0.0.1");
    let (real, false_one) = (a.set_up(&[]), mallory.set_up(&[]));
    for _ in 0..4 {
        let said = b.can_not_join(&false_one.target, &real.code);
        assert!(said.contains("is not the node that this code is from"), "{said}");
    }
    // It heard no code, not even a wrong one: its own is still good.
    assert!(b.join(&false_one.target, &false_one.code).status.success());
    let (well, said) = false_one.end();
    assert!(well && !said.contains("wrong code"), "{said}");
}

/// Noise, silence and hanging up are no tries.
#[test]
fn whoever_does_not_speak_tls_spoils_nothing() {
    let base = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|n| Host::new(base.path(), n, "127.0.0.1"));
    let waiting = a.set_up(&[]);
    for noise in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0x16; 5000]] {
        let mut socket = TcpStream::connect(&waiting.target).unwrap();
        socket.write_all(noise).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        // Until it is hung up upon; a reset is no less an end.
        let _ = socket.read_to_end(&mut Vec::new());
    }
    assert!(b.join(&waiting.target, &waiting.code).status.success());
    assert!(waiting.end().0);
}

#[test]
fn nothing_is_overwritten() {
    let base = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|n| Host::new(base.path(), n, "127.0.0.1"));
    let waiting = a.set_up(&[]);
    for (host, there) in [(&a, "a.toml"), (&b, "b.toml"), (&b, "b")] {
        let path = host.etc().join(there);
        if host.name == "b" {
            fs::create_dir_all(host.etc()).unwrap();
            fs::write(&path, "mine").unwrap();
        }
        let before = fs::read(&path).unwrap();
        let out = if host.name == "a" {
            Command::new(binary()).arg("setup").args(host.place()).arg("--yes").output().unwrap()
        } else {
            host.join(&waiting.target, &waiting.code)
        };
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains("exists and is not overwritten"), "{said}");
        assert_eq!(fs::read(&path).unwrap(), before);
        if host.name == "b" {
            fs::remove_file(&path).unwrap();
        }
    }
    // The code was not used up by what was refused here.
    assert!(b.join(&waiting.target, &waiting.code).status.success());
    assert!(waiting.end().0);
}

#[test]
fn whoever_types_is_asked() {
    let base = tempfile::tempdir().unwrap();
    let a = Host::new(base.path(), "a", "127.0.0.1");
    let mut child = Command::new(binary())
        .args(["setup", "--alone", "--instance", "a", "--dir"])
        .arg(a.etc())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mount = a.dir.join("mnt").display().to_string();
    let state = a.dir.join("state").display().to_string();
    let answers = ["not a name", "a", &mount, &state, &a.listen, "stop", "suspend", "", "none", ""];
    child.stdin.take().unwrap().write_all(answers.join("\n").as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{said}");
    assert!(said.contains("write it like a host name") && said.contains("unknown variant `stop`"), "{said}");
    let mut node = a.node();
    let all = node.cli(&["check"]);
    assert!(all.contains("on_peer_loss = \"suspend\"") && !all.contains("[postgresql]"), "{all}");
    node.start();
    node.wait_for("primary", "stand-alone");
}
