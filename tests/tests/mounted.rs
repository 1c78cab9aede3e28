//! A node that says that it serves has its mount: whoever waits for it and then writes does not write below it.
#![allow(clippy::unwrap_used)]

use nasd_tests::{Node, Pair, eventually, put};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// What a FUSE mount says of its kind.
const FUSE: i64 = 0x6573_5546;

/// Asks until the node says that it is primary and takes writes, and looks at its mount point at once. Over one
/// connection and without a rest: otherwise the mount would be there meanwhile.
fn has_its_mount_once_it_serves(node: &Node) {
    let path = node.mount.with_file_name("nasd.sock");
    let mut socket = eventually("it takes connections", || UnixStream::connect(&path).ok());
    let mut answers = BufReader::new(socket.try_clone().unwrap());
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        socket.write_all(b"GET /primary HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let at = head.len();
            assert!(answers.read_line(&mut head).unwrap() > 0, "{head}");
            if let Some(n) = head[at..].to_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().unwrap();
            }
        }
        if head.contains(" 200 ") {
            let found = rustix::fs::statfs(&node.mount);
            assert!(found.as_ref().is_ok_and(|s| s.f_type == FUSE), "{}: {found:?}", node.name);
            return;
        }
        answers.read_exact(&mut vec![0; length]).unwrap();
        assert!(Instant::now() < end, "{} does not serve: {head}", node.name);
    }
}

#[test]
fn a_primary_that_takes_writes_has_its_mount() {
    let mut pair = Pair::start();
    for n in 0..10 {
        put(pair.a.path("x"), n.to_string());
        // Killed, it is compared with its peer before it serves, and so in sync with it by then.
        pair.a.kill();
        pair.a.start();
        has_its_mount_once_it_serves(&pair.a);
    }
}
