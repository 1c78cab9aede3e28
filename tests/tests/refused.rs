//! What a node refuses: one clear line with the remedy, exit code 2, nothing changed; and peers without harm.
#![allow(clippy::unwrap_used)]

use nasd::link::TlsContext;
use nasd::protocol::{self, Incoming, Message, kind};
use nasd_tests::image::Image;
use nasd_tests::snapshot::snapshot;
use nasd_tests::{Node, Pair, Setup, eventually, nasd, put};
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::time::Duration;

fn quick() -> Setup {
    Setup { replication: "peer_timeout = \"1s\"".to_owned(), ..Setup::default() }
}

/// Starts `node` again and again, each time with one thing wrong.
fn wrong_config(node: &mut Node, from: &str, to: &str, says: &[&str]) {
    let good = fs::read_to_string(&node.config).unwrap();
    node.edit_config(from, to);
    let line = node.wrong();
    for s in says {
        assert!(line.contains(s), "{to}: {s} is not in: {line}");
    }
    fs::write(&node.config, good).unwrap();
}

#[test]
fn bad_configurations() {
    let mut pair = Pair::new(&quick());
    let a = &mut pair.a;
    let line = |text: &str, what: &str| {
        let n = text.lines().position(|l| l.contains(what)).unwrap() + 1;
        format!("a.toml:{n}")
    };
    let good = fs::read_to_string(&a.config).unwrap();
    wrong_config(
        a,
        "initial_role = \"primary\"",
        "initial_role = \"boss\"",
        &["boss", &line(&good, "initial_role")],
    );
    wrong_config(
        a,
        "peer_timeout = \"1s\"",
        "peer_timeout = \"soon\"",
        &["soon", &line(&good, "peer_timeout")],
    );
    wrong_config(
        a,
        "peer_timeout = \"1s\"",
        "peer_time = \"1s\"",
        &["peer_time", &line(&good, "peer_timeout")],
    );
    wrong_config(a, "[volume]", "[volumes]", &["volumes", &line(&good, "[volume]")]);
    wrong_config(a, "a.key", "nothing.key", &["nothing.key"]);
    wrong_config(a, "ca.pem", "nothing.pem", &["nothing.pem"]);
    wrong_config(a, "[node]", "[node", &["a.toml:1"]);
    assert!(!a.state_dir.exists(), "nothing was changed");
    let out = nasd(&["run", "--config", "/nowhere/nasd.toml"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("/nowhere/nasd.toml"));
}

#[test]
fn mount_points_that_are_taken() {
    let mut pair = Pair::new(&quick());
    let a = &mut pair.a;
    fs::write(a.path("mine"), "precious").unwrap();
    let line = a.wrong();
    assert!(line.contains("not empty"), "{line}");
    assert_eq!(fs::read(a.path("mine")).unwrap(), b"precious");
    fs::remove_file(a.path("mine")).unwrap();
    fs::remove_dir(&a.mount).unwrap();
    let line = a.wrong();
    assert!(line.contains("mkdir"), "{line}");
    fs::create_dir(&a.mount).unwrap();
    assert!(!a.state_dir.exists(), "nothing was changed");
    a.start();
    a.wait_for("primary", "degraded");
    put(a.path("x"), "x");
    // Everything its own but the mount.
    let b = &mut pair.b;
    let text = fs::read_to_string(&b.config).unwrap();
    b.edit_config(b.mount.to_str().unwrap(), a.mount.to_str().unwrap());
    let line = b.wrong();
    assert!(line.contains("already mounted or served"), "{line}");
    assert!(!b.state_dir.exists());
    // Everything its own but the state directory.
    fs::write(&b.config, &text).unwrap();
    b.edit_config(b.state_dir.to_str().unwrap(), a.state_dir.to_str().unwrap());
    let line = b.wrong();
    assert!(line.contains("another nasd uses this state directory"), "{line}");
    // Everything its own but the port.
    fs::write(&b.config, &text).unwrap();
    b.edit_config(&format!("listen = \"{}\"", b.listen), &format!("listen = \"{}\"", a.listen));
    let line = b.wrong();
    assert!(line.contains("can't listen here"), "{line}");
    fs::write(&b.config, &text).unwrap();
    b.edit_config("b/nasd.sock", "a/nasd.sock");
    let line = b.wrong();
    assert!(line.contains("control"), "{line}");
    fs::write(&b.config, &text).unwrap();
    put(pair.a.path("y"), "y");
    pair.b.start();
    pair.in_sync_and_equal();
}

#[test]
fn a_corrupt_state_file() {
    let mut pair = Pair::new(&quick());
    let a = &mut pair.a;
    a.start();
    a.wait_for("primary", "degraded");
    put(a.path("x"), "x");
    a.stop();
    let file = fs::File::options().write(true).open(a.state_dir.join("state")).unwrap();
    file.write_all_at(b"!", 100).unwrap();
    let before = snapshot(&a.state_dir);
    let line = a.wrong();
    assert!(line.contains("state") && line.contains("checksum") && line.contains("secondary"), "{line}");
    assert_eq!(snapshot(&a.state_dir), before, "nothing was changed");
}

#[test]
fn a_state_directory_without_trusted_attributes() {
    let dir = tempfile::tempdir().unwrap();
    let image = match Image::ramfs(dir.path(), "ram") {
        Ok(image) => image,
        Err(e) => return println!("not tried: no filesystem without extended attributes here: {e}"),
    };
    let state_dirs = Some([image.path.join("a"), image.path.join("b")]);
    let mut pair = Pair::new(&Setup { state_dirs, ..quick() });
    let line = pair.a.wrong();
    assert!(line.contains("trusted extended attributes") && line.contains("ext4"), "{line}");
    assert!(!pair.a.state_dir.join("state").exists(), "no state is left behind");
}

#[test]
fn certificates_of_another_authority() {
    let mut pair = Pair::new(&quick());
    let pki = pair.dir.path().join("other");
    fs::create_dir(&pki).unwrap();
    let dir = pki.to_str().unwrap();
    nasd(&["cert", "ca", "--dir", dir]);
    nasd(&["cert", "node", "--dir", dir, "--name", "b"]);
    let text = fs::read_to_string(&pair.b.config).unwrap();
    pair.b.edit_config("/pki/", "/other/");
    pair.a.start();
    pair.b.start();
    let a = pair.a.wait_status("has a reason", |s| {
        s["peers"][0]["reason"].as_str().is_some_and(|r| r.contains("certificate"))
    });
    assert_eq!(a["peers"][0]["state"], "connecting", "{a:#}");
    println!("a says: {}", a["peers"][0]["reason"]);
    eventually("b says why", || pair.b.log_text().contains("certificate").then_some(()));
    assert!(pair.b.status()["volume"].is_null(), "nothing of it got through");
    pair.b.stop();
    fs::write(&pair.b.config, text).unwrap();
    pair.b.start();
    pair.in_sync_and_equal();
}

#[test]
fn a_peer_of_another_volume_and_an_unknown_one() {
    let mut pair = Pair::new(&quick());
    pair.b.edit_config("initial_role = \"secondary\"", "initial_role = \"primary\"");
    pair.a.start();
    pair.a.wait_for("primary", "degraded");
    put(pair.a.path("mine"), "a");
    // Its first start: no peer is asked whether it may.
    pair.b.start();
    pair.b.wait_for("primary", "degraded");
    put(pair.b.path("mine"), "b");
    for node in [&pair.a, &pair.b] {
        let s = node.wait_status("has a reason", |s| {
            s["peers"][0]["reason"].as_str().is_some_and(|r| r.contains("volume"))
        });
        assert!(s["peers"][0]["reason"].as_str().unwrap().contains("empty state directory"), "{s:#}");
        assert_eq!(fs::read_to_string(node.path("mine")).unwrap(), node.name, "nothing was taken over");
    }
    pair.b.stop();
    // The remedy that it names; and a node that does not know a.
    fs::remove_dir_all(&pair.b.state_dir).unwrap();
    pair.b.edit_config("initial_role = \"primary\"", "initial_role = \"secondary\"");
    pair.b.edit_config("name = \"a\"", "name = \"c\"");
    pair.b.start();
    pair.a.wait_status("is refused", |s| {
        s["peers"][0]["reason"].as_str().is_some_and(|r| r.contains("is not a [[peer]]"))
    });
    assert!(pair.b.log_text().contains("a is not a [[peer]]"), "{}", pair.b.log_text());
    pair.b.stop();
    pair.b.edit_config("name = \"c\"", "name = \"a\"");
    pair.b.start();
    pair.in_sync_and_equal();
}

#[test]
fn garbage_on_the_port_harms_nobody() {
    let pair = Pair::start_with(&quick());
    let garbage: Vec<u8> = (0..40_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut open = Vec::new();
    for node in [&pair.a, &pair.b] {
        for n in [0, 1, 5, 600, 40_000] {
            let mut s = std::net::TcpStream::connect(&node.listen).unwrap();
            // It may hang up in the middle.
            let _ = s.write_all(&garbage[..n]);
            // A ClientHello's first bytes and then nothing.
            let mut half = std::net::TcpStream::connect(&node.listen).unwrap();
            let _ = half.write_all(&[0x16, 3, 1, 2, 0, 1]);
            open.push(half);
        }
    }
    // More than it takes at once, kept open.
    for _ in 0..100 {
        open.push(std::net::TcpStream::connect(&pair.b.listen).unwrap());
    }
    put(pair.a.path("x"), "x");
    pair.in_sync_and_equal();
    // A link that has to be made anew while those hang on: they are given up in time.
    pair.b.freeze();
    put(pair.a.path("y"), "y");
    pair.b.thaw();
    pair.in_sync_and_equal();
}

#[test]
fn a_dead_mount_is_taken_down() {
    let mut pair = Pair::start_with(&quick());
    put(pair.a.path("x"), "x");
    for _ in 0..3 {
        // Cached by the kernel: a look at it does not tell.
        fs::metadata(&pair.a.mount).unwrap();
        pair.a.kill();
        pair.a.start();
        pair.a.wait_for("primary", "in-sync");
    }
    assert!(pair.a.log_text().contains("dead mount"));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(mounts.matches(pair.a.mount.to_str().unwrap()).count(), 1);
    assert_eq!(fs::read(pair.a.path("x")).unwrap(), b"x");
}

/// What `name` could say if it ran another program: a link with its certificate.
fn credentials(pair: &Pair, name: &str) -> TlsContext {
    let file = |f: &str| pair.dir.path().join("pki").join(f);
    TlsContext::new(&file("ca.pem"), &file(&format!("{name}.pem")), &file(&format!("{name}.key"))).unwrap()
}

/// The beginning of a hello of another version: the rest nobody here can know.
fn hello_of(version: u8) -> [u8; 6] {
    [0, version, 0xff, 0xff, 0xff, 0xff]
}

#[test]
fn another_version_and_frames_that_nobody_sends() {
    let mut pair = Pair::start_with(&quick());
    put(pair.a.path("x"), "x");
    let timeout = Duration::from_secs(5);
    // A dialler of another version, and of none.
    let tls = credentials(&pair, "a");
    for (kind, body, says) in [
        (kind::MESSAGE, &hello_of(4)[..], "a (127.0.0.1:{}) speaks version 4 of the protocol, this node 2"),
        (kind::MESSAGE, &hello_of(3)[..], "what nobody of version 2 sends"),
        (kind::MESSAGE, &[0, 2, 0xff, 0xff], "what nobody of version 2 sends"),
        (kind::MESSAGE, &[], "what nobody of version 2 sends"),
        (kind::TXN, &[7; 300], "a hello"),
        (99, b"x", "a frame of an unknown kind"),
    ] {
        let link = tls.connect(&pair.b.listen, "b", timeout).unwrap();
        link.send(kind, &[body]).unwrap();
        let answer = link.recv();
        if body == hello_of(4) {
            let Incoming::Message(m) = protocol::understand(&link, answer.unwrap()).unwrap() else {
                panic!()
            };
            let Message::Refuse(why) = *m else { panic!("{m:?}") };
            assert!(why.contains("version 4") && why.contains("run the same nasd on both"), "{why}");
        } else {
            assert!(answer.is_err(), "{kind}: it hangs up: {answer:?}");
        }
        let says = says.split("{}").last().unwrap();
        eventually("b says why", || pair.b.log_text().contains(says).then_some(()));
    }
    put(pair.a.path("y"), "y");
    pair.in_sync_and_equal();

    // A peer that answers in another version.
    pair.b.stop();
    let tls = credentials(&pair, "b");
    let listener = TcpListener::bind(&pair.b.listen).unwrap();
    let (socket, _) = listener.accept().unwrap();
    let link = tls.accept(socket, timeout).unwrap();
    link.recv().unwrap();
    link.send(kind::MESSAGE, &[&hello_of(7)]).unwrap();
    pair.a.wait_status("says why", |s| {
        s["peers"][0]["reason"]
            .as_str()
            .is_some_and(|r| r.contains("speaks version 7 of the protocol, this node 2"))
    });
    drop((link, listener));
    pair.b.start();
    pair.in_sync_and_equal();
}

/// With one thing wrong about the files or the place of its API a node does not start.
#[test]
fn an_api_that_can_not_be_had() {
    let mut pair = Pair::new(&quick());
    let address = nasd_tests::http::open(&pair.a);
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    let token_file = nasd_tests::http::token_file(&pair.a);
    let name = token_file.file_name().unwrap().to_str().unwrap();
    for (from, to, says) in [
        (
            address.as_str(),
            taken.as_str(),
            &[taken.as_str(), "in use", "choose another `listen` in [api]"][..],
        ),
        ("a-api.pem", "gone.pem", &["gone.pem: cannot read it", "correct the path in"]),
        ("a-api.key", "b.key", &["a-api.pem", "b.key", "name two that belong together in [api] or [tls]"]),
        (name, "gone.token", &["gone.token: the token can't be read", "correct `token_file`"]),
    ] {
        wrong_config(&mut pair.a, from, to, says);
    }
    for content in ["", "\n0123456789abcdef0123456789abcdef", "short"] {
        fs::write(&token_file, content).unwrap();
        let line = pair.a.wrong();
        assert!(line.contains(name) && line.contains("make one with `openssl rand -hex 32`"), "{line}");
    }
    fs::write(&token_file, nasd_tests::http::TOKEN).unwrap();
    pair.a.start();
    pair.a.wait_status("primary", |s| s["role"] == "primary");
}
