//! What a node tells the service manager: the test is one, with a socket and a watchdog.
#![allow(clippy::unwrap_used)]

use nasd_tests::image::Image;
use nasd_tests::{Pair, Setup, eventually, put};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(2);

struct Manager {
    socket: UnixDatagram,
    env: [(&'static str, String); 2],
}

impl Manager {
    fn new(dir: &Path) -> Manager {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let env =
            [("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", LIMIT.as_micros().to_string())];
        Manager { socket, env }
    }

    fn env(&self) -> Vec<(&str, &str)> {
        self.env.iter().map(|(k, v)| (*k, v.as_str())).collect()
    }

    /// The next message; none within the time of the watchdog.
    fn next(&self) -> Option<String> {
        let mut buf = [0; 4096];
        let n = self.socket.recv(&mut buf).ok()?;
        Some(String::from_utf8(buf[..n].to_vec()).unwrap().trim_end().to_owned())
    }

    /// Waits for this message.
    fn wait_for(&self, message: &str) {
        eventually(message, || (self.next()? == message).then_some(()));
    }

    /// Waits for all of these, in any order.
    fn wait_for_all(&self, messages: &[&str]) {
        let mut left = messages.to_vec();
        eventually(&format!("{messages:?}"), || {
            let message = self.next()?;
            left.retain(|m| *m != message);
            left.is_empty().then_some(())
        });
    }

    /// The node is fed so many times more, and never too late.
    fn lives_on(&self, times: usize) {
        let mut last = Instant::now();
        let mut left = times;
        while left > 0 {
            let message = self.next();
            assert!(last.elapsed() < LIMIT, "the watchdog would have bitten; last: {message:?}");
            if message.as_deref() == Some("WATCHDOG=1") {
                last = Instant::now();
                left -= 1;
            }
        }
    }
}

#[test]
fn it_serves_it_lives_while_it_waits_and_it_stops() {
    let mut pair = Pair::new(&Setup {
        replication: "on_peer_loss = \"suspend\"\npeer_timeout = \"1s\"".to_owned(),
        ..Setup::default()
    });
    let manager = Manager::new(pair.dir.path());
    pair.a.start_with_env(&manager.env());
    manager.wait_for_all(&["READY=1", "STATUS=primary, suspended: fsync waits for b"]);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(mounts.contains(pair.a.mount.to_str().unwrap()), "ready is: mounted");
    pair.b.start();
    manager.wait_for("STATUS=primary, in-sync");
    manager.lives_on(5);

    // An fsync that waits for the peer is no reason to be killed.
    pair.b.kill();
    pair.a.wait_for("primary", "suspended");
    let path = pair.a.path("x");
    let writer = std::thread::spawn(move || put(path, b"x"));
    manager.lives_on(20);
    assert!(!writer.is_finished());
    pair.b.start();
    writer.join().unwrap();
    manager.wait_for("STATUS=primary, in-sync");

    pair.a.cli(&["stop"]);
    manager.wait_for("STOPPING=1");
    pair.a.wait_exit();
}

#[test]
fn a_node_that_waits_for_its_first_copy_is_ready() {
    let mut pair = Pair::new(&Setup::default());
    let manager = Manager::new(pair.dir.path());
    pair.b.start_with_env(&manager.env());
    let status = "STATUS=secondary, connecting: has no volume yet: waits for a primary to copy from";
    manager.wait_for_all(&["READY=1", status]);
}

/// A disk that does not answer any more: the threads that go on by themselves prove nothing.
#[test]
fn a_node_whose_disk_hangs_does_not_live() {
    let dir = tempfile::tempdir().unwrap();
    let image = match Image::ext4(dir.path(), "disk", 256) {
        Ok(image) => image,
        Err(e) => {
            println!("skipped: no disk of its own that could hang: {e}");
            return;
        }
    };
    let state_dirs = Some([image.path.join("a"), dir.path().join("b")]);
    let mut pair = Pair::new(&Setup { state_dirs, ..Setup::default() });
    let manager = Manager::new(pair.dir.path());
    pair.b.start();
    pair.a.start_with_env(&manager.env());
    manager.wait_for("STATUS=primary, in-sync");
    manager.lives_on(5);
    let frozen = Frozen::new(&image.path);
    let path = pair.a.path("x");
    let writer = std::thread::spawn(move || put(path, b"x"));
    eventually("the watchdog is fed no more", || {
        let silent = Instant::now();
        while let Some(message) = manager.next() {
            if message == "WATCHDOG=1" {
                return None;
            }
            if silent.elapsed() > LIMIT {
                break;
            }
        }
        Some(())
    });
    drop(frozen);
    writer.join().unwrap();
    manager.wait_for("WATCHDOG=1");
}

/// A filesystem that lets every write wait.
struct Frozen<'a>(&'a Path);

impl Frozen<'_> {
    fn new(path: &Path) -> Frozen<'_> {
        assert!(Command::new("fsfreeze").arg("--freeze").arg(path).status().unwrap().success());
        Frozen(path)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        Command::new("fsfreeze").arg("--unfreeze").arg(self.0).status().unwrap();
    }
}
