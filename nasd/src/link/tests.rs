use super::*;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(20);

struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// All of them have the same name, as all made by `nasd cert ca` do.
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("ca.pem"), pem).unwrap();
        let issuer = Issuer::new(params, key);
        Self { dir, issuer }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        std::fs::write(self.path(&format!("{name}.pem")), pem).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// A node that trusts `trusts`.
    fn context(&self, trusts: &Authority, name: &str) -> TlsContext {
        let cert = self.path(&format!("{name}.pem"));
        let key = self.path(&format!("{name}.key"));
        TlsContext::new(&trusts.path("ca.pem"), &cert, &key).unwrap()
    }

    fn node(&self, name: &str) -> TlsContext {
        self.issue(name, |_| {});
        self.context(self, name)
    }
}

type Made = Result<Link, LinkError>;

/// What the connecting and the accepting side get.
fn meet(from: &TlsContext, to: &TlsContext, name: &str, timeout: Duration) -> (Made, Made) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::scope(|s| {
        let accepted = s.spawn(|| to.accept(listener.accept().unwrap().0, timeout));
        let connected = from.connect(&address, name, timeout);
        (connected, accepted.join().unwrap())
    })
}

fn pair_with(timeout: Duration) -> (Arc<Link>, Arc<Link>) {
    let authority = Authority::new();
    let (a, b) = (authority.node("nas-a"), authority.node("nas-b"));
    let (connected, accepted) = meet(&a, &b, "nas-b", timeout);
    (Arc::new(connected.unwrap()), Arc::new(accepted.unwrap()))
}

fn pair() -> (Arc<Link>, Arc<Link>) {
    pair_with(TIMEOUT)
}

fn body(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect()
}

/// Fails instead of hanging.
fn within<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    thread::spawn(move || done.send(work()));
    wait.recv_timeout(Duration::from_secs(60)).expect("it hangs, or has failed")
}

/// Sends bytes that are not a frame.
fn send_raw(link: &Link, bytes: &[u8]) {
    let mut outgoing = link.outgoing.lock();
    let mut slices = [IoSlice::new(bytes)];
    link.send_all(&mut outgoing, &mut slices).unwrap();
}

#[track_caller]
fn assert_says<T: std::fmt::Debug>(result: &Result<T, LinkError>, what: &[&str]) {
    let message = result.as_ref().unwrap_err().to_string();
    println!("{message}");
    for what in what {
        assert!(message.contains(what), "{message:?} has no {what:?}");
    }
}

#[test]
fn names_and_addresses() {
    let (a, b) = pair();
    assert_eq!(a.peer_name(), "nas-b");
    assert_eq!(b.peer_name(), "nas-a");
    assert!(a.peer_address().starts_with("127.0.0.1:"));
    assert!(b.peer_address().starts_with("127.0.0.1:"));
    assert!(a.socket.nodelay().unwrap() && b.socket.nodelay().unwrap());
}

#[test]
fn round_trip_of_all_sizes_in_both_directions_at_once() {
    let sizes = [0, 1, 8 << 10, 1 << 20, 60 << 20, 0, 3];
    let (a, b) = pair();
    let threads: Vec<_> = [(&a, 1), (&b, 2)]
        .into_iter()
        .flat_map(|(link, seed)| {
            let sender = Arc::clone(link);
            let receiver = Arc::clone(link);
            [
                thread::spawn(move || {
                    for (i, size) in sizes.into_iter().enumerate() {
                        let body = body(size, seed);
                        let (front, back) = body.split_at(size / 3);
                        sender.send(i as u8, &[front, &[], back]).unwrap();
                    }
                }),
                thread::spawn(move || {
                    for (i, size) in sizes.into_iter().enumerate() {
                        let frame = receiver.recv().unwrap();
                        assert_eq!(frame.kind, i as u8);
                        assert!(frame.body == body(size, 3 - seed), "frame {i}");
                    }
                }),
            ]
        })
        .collect();
    within(move || threads.into_iter().for_each(|t| t.join().unwrap()));
}

#[test]
fn four_senders_at_once_and_key_updates_among_them() {
    let (a, b) = pair();
    within(move || {
        thread::scope(|s| {
            for link in [&a, &b] {
                for sender in 0..4u8 {
                    s.spawn(move || {
                        for i in 0..300u32 {
                            if i % 20 == u32::from(sender) {
                                link.conn.lock().refresh_traffic_keys().unwrap();
                            }
                            let body = body(i as usize * 97, sender);
                            link.send(sender, &[&i.to_le_bytes(), &body]).unwrap();
                        }
                    });
                }
                s.spawn(move || {
                    let mut next = [0u32; 4];
                    for _ in 0..1200 {
                        let frame = link.recv().unwrap();
                        let sender = frame.kind as usize;
                        let i = next[sender];
                        assert_eq!(frame.body[..4], i.to_le_bytes());
                        assert!(frame.body[4..] == body(i as usize * 97, frame.kind));
                        next[sender] += 1;
                    }
                });
            }
        });
    });
}

#[test]
fn what_rustls_says_while_receiving_waits_for_no_sender() {
    let (a, b) = pair_with(Duration::from_secs(10));
    // b's sender is stuck, since a reads nothing; all the same b must answer and go on reading.
    let stuck = Arc::clone(&b);
    let sender = thread::spawn(move || stuck.send(1, &[&body(32 << 20, 0)]));
    thread::sleep(Duration::from_millis(300));
    within(move || {
        for i in 0..50 {
            a.conn.lock().refresh_traffic_keys().unwrap();
            a.send(i, &[b"x"]).unwrap();
            assert_eq!(b.recv().unwrap().kind, i);
        }
        // It gets on when a reads at last, with the answers in between.
        assert_eq!(a.recv().unwrap().body.len(), 32 << 20);
        b.send(2, &[]).unwrap();
        assert_eq!(a.recv().unwrap().kind, 2);
    });
    sender.join().unwrap().unwrap();
}

#[test]
fn a_peer_that_takes_nothing_ends_the_link() {
    let (a, b) = pair_with(Duration::from_secs(1));
    let reader = Arc::clone(&a);
    let reader = thread::spawn(move || reader.recv());
    let sent = within(move || (a.send(1, &[&body(60 << 20, 0)]), a.send(1, &[])));
    assert!(matches!(sent.0, Err(LinkError::Timeout { .. })));
    assert_says(&sent.0, &["127.0.0.1:", "sending", "1s"]);
    assert_says(&sent.1, &["closed", "sending"]);
    assert_says(&reader.join().unwrap(), &["closed", "sending"]);
    assert_says(&b.recv(), &["in the middle of a frame"]);
}

#[test]
fn another_authority_is_refused_on_both_sides() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    ours.issue("nas-a", |_| {});
    theirs.issue("nas-b", |_| {});
    // Each trusts its own: the connecting side refuses first.
    let (connected, accepted) =
        meet(&ours.context(&ours, "nas-a"), &theirs.context(&theirs, "nas-b"), "nas-b", TIMEOUT);
    assert!(matches!(connected, Err(LinkError::Tls { .. })));
    assert!(matches!(accepted, Err(LinkError::Tls { .. })));
    assert_says(&connected, &["127.0.0.1:", "unknown", "ca.pem"]);
    assert_says(&accepted, &["127.0.0.1:", "does not accept", "nas-b.pem"]);
    // The connecting side accepts the other, but isn't accepted.
    let (connected, accepted) =
        meet(&ours.context(&theirs, "nas-a"), &theirs.context(&theirs, "nas-b"), "nas-b", TIMEOUT);
    assert_says(&connected, &["127.0.0.1:", "does not accept", "nas-a.pem"]);
    assert_says(&accepted, &["127.0.0.1:", "unknown", "ca.pem"]);
}

#[test]
fn expired_misnamed_and_one_sided_certificates_are_refused() {
    let authority = Authority::new();
    let good = authority.node("good");
    authority.issue("old", |p| p.not_after = date_time_ymd(2001, 1, 1));
    let old = authority.context(&authority, "old");
    authority.issue("early", |p| p.not_before = date_time_ymd(2500, 1, 1));
    let early = authority.context(&authority, "early");
    authority.issue("server", |p| p.extended_key_usages.truncate(1));
    let server = authority.context(&authority, "server");

    let (connected, accepted) = meet(&good, &old, "old", TIMEOUT);
    assert_says(&connected, &["its certificate has expired", "nasd cert"]);
    assert_says(&accepted, &["this node's certificate", "not valid now"]);
    let (connected, accepted) = meet(&old, &good, "good", TIMEOUT);
    assert_says(&connected, &["old.pem is not valid now"]);
    assert_says(&accepted, &["its certificate has expired"]);
    let (connected, _) = meet(&good, &early, "early", TIMEOUT);
    assert_says(&connected, &["not valid yet", "clocks"]);
    let (connected, _) = meet(&good, &good, "nas-b", TIMEOUT);
    assert_says(&connected, &["not for the node \"nas-b\"", "good"]);
    let (_, accepted) = meet(&server, &good, "good", TIMEOUT);
    assert_says(&accepted, &["client and server authentication"]);

    assert_eq!(good.own_name(), "good");
    good.check_own().unwrap();
    assert_says(&old.check_own(), &["old.pem", "expired"]);
    assert_says(&server.check_own(), &["server.pem", "authentication"]);
}

#[test]
fn no_client_certificate_is_refused() {
    let authority = Authority::new();
    let node = authority.node("nas-b");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let ca = std::fs::read(authority.path("ca.pem")).unwrap();
    let client = thread::spawn(move || {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "nas-b".try_into().unwrap();
        let conn = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = rustls::StreamOwned::new(conn, std::net::TcpStream::connect(address).unwrap());
        stream.read(&mut [0; 10]).unwrap_err().to_string()
    });
    let accepted = node.accept(listener.accept().unwrap().0, TIMEOUT);
    assert_says(&accepted, &["127.0.0.1:", "it has no certificate"]);
    assert!(client.join().unwrap().contains("CertificateRequired"));
}

#[test]
fn strangers_do_no_harm() {
    let authority = Authority::new();
    let node = authority.node("nas-b");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stranger = |bytes: &[u8]| {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(bytes).unwrap();
        let start = Instant::now();
        let accepted = node.accept(listener.accept().unwrap().0, Duration::from_millis(800));
        assert!(start.elapsed() < Duration::from_secs(5));
        accepted
    };
    let not_tls = stranger(b"GET / HTTP/1.1\r\nHost: nas-b\r\n\r\n");
    assert_says(&not_tls, &["not TLS", "address and port"]);
    assert_says(&stranger(&vec![0; 100_000]), &["not TLS"]);
    assert_says(&stranger(&body(100_000, 7)), &["TLS"]);
    let silent = stranger(b"");
    assert!(matches!(silent, Err(LinkError::Timeout { .. })));
    assert_says(&stranger(b"\x16\x03\x01\x02\x00\x01"), &["longer than"]);

    // And a server that is none of ours.
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let connected = node.connect(&closed, "nas-a", TIMEOUT);
    assert_says(&connected, &[&closed, "check that nasd runs there"]);
    let connected = node.connect(&address.to_string(), "nas-a", Duration::from_millis(200));
    assert!(matches!(connected, Err(LinkError::Timeout { .. })));
    assert_says(&node.connect("nas-a", "nas-a", TIMEOUT), &["nas-a"]);
    assert_says(&node.connect(&closed, "no name", TIMEOUT), &["no name"]);
}

#[test]
fn credentials_that_cannot_be_used() {
    let authority = Authority::new();
    authority.issue("a", |_| {});
    authority.issue("b", |_| {});
    let new = |ca: &str, cert: &str, key: &str| {
        let path = |file| authority.path(file);
        TlsContext::new(&path(ca), &path(cert), &path(key)).map(drop)
    };
    new("ca.pem", "a.pem", "a.key").unwrap();
    assert_says(&new("none", "a.pem", "a.key"), &["none: cannot read"]);
    assert_says(&new("a.key", "a.pem", "a.key"), &["a.key: there is no"]);
    assert_says(&new("ca.pem", "a.pem", "a.pem"), &["a.pem: no private key"]);
    assert_says(&new("ca.pem", "a.pem", "b.key"), &["a.pem", "b.key"]);
    std::fs::write(authority.path("bad.pem"), b"-----BEGIN CERTIFICATE-----\n!\n").unwrap();
    assert_says(&new("bad.pem", "a.pem", "a.key"), &["bad.pem"]);
    assert!(TlsContext::new(Path::new("/"), Path::new("/"), Path::new("/")).is_err());
}

#[test]
fn an_oversize_or_empty_frame_is_refused_after_the_good_ones() {
    for (length, says) in [(u32::MAX, "4294967295 bytes"), (MAX_FRAME as u32 + 1, "limit"), (0, "zero bytes")]
    {
        let (a, b) = pair();
        a.send(5, &[b"good"]).unwrap();
        send_raw(&a, &length.to_le_bytes());
        assert_eq!(b.recv().unwrap().body, b"good");
        let refused = b.recv();
        assert!(matches!(refused, Err(LinkError::Malformed { .. })));
        assert_says(&refused, &["127.0.0.1:", says]);
        assert!(b.recv().is_err());
        assert!(matches!(b.send(1, &[]), Err(LinkError::Closed { .. })));
        assert!(a.recv().is_err());
    }
    // Here it is found before anything is sent, and the link goes on.
    let (a, b) = pair();
    let large = vec![0; MAX_FRAME];
    assert!(matches!(a.send(1, &[&large]), Err(LinkError::Malformed { .. })));
    a.send(2, &[]).unwrap();
    assert_eq!(b.recv().unwrap().kind, 2);
}

#[test]
fn shutdown_wakes_the_receiver_and_tells_the_peer() {
    let (a, b) = pair();
    let reader = Arc::clone(&a);
    let reader = thread::spawn(move || reader.recv());
    thread::sleep(Duration::from_millis(50));
    a.send(9, &[b"the reason"]).unwrap();
    let start = Instant::now();
    a.shutdown();
    a.shutdown();
    let woken = within(move || reader.join().unwrap());
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(matches!(woken, Err(LinkError::Closed { .. })));
    assert_says(&woken, &["shut down here"]);
    assert_says(&a.send(1, &[]), &["shut down here"]);
    assert_eq!(b.recv().unwrap().body, b"the reason");
    assert_says(&b.recv(), &["the other end closed it"]);
    assert_says(&b.recv(), &["the other end closed it"]);
    assert_says(&b.send(1, &[]), &["the other end closed it"]);
}

#[test]
fn the_last_frame_arrives_although_the_peer_is_sending() {
    for _ in 0..20 {
        let (a, b) = pair();
        let sender = Arc::clone(&b);
        let sender = thread::spawn(move || while sender.send(1, &[&vec![0; 30_000]]).is_ok() {});
        for _ in 0..10 {
            a.recv().unwrap();
        }
        a.send(9, &[b"the reason"]).unwrap();
        drop(a);
        assert_eq!(b.recv().unwrap().body, b"the reason");
        assert!(b.recv().is_err());
        sender.join().unwrap();
    }
}

#[test]
fn shutdown_ends_a_sender_that_is_stuck() {
    let (a, _b) = pair();
    let sender = Arc::clone(&a);
    let sender = thread::spawn(move || sender.send(1, &[&body(60 << 20, 0)]));
    within({
        let a = Arc::clone(&a);
        move || {
            // Stuck: there is something, and it doesn't get less.
            let mut before = 0;
            loop {
                let now = a.unsent_hint().unwrap();
                if now > 0 && now == before {
                    break;
                }
                before = now;
                thread::sleep(Duration::from_millis(100));
            }
        }
    });
    a.shutdown();
    assert_says(&within(move || sender.join().unwrap()), &["shut down here"]);
}

#[test]
fn a_cut_and_a_damaged_byte() {
    let (a, b) = pair();
    a.send(1, &[b"before"]).unwrap();
    a.socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(b.recv().unwrap().body, b"before");
    assert_says(&b.recv(), &["without a word"]);

    let (a, b) = pair();
    a.send(1, &[b"before"]).unwrap();
    let record = [&[0x17, 3, 3, 0, 40][..], &[1; 40]].concat();
    (&a.socket).write_all(&record).unwrap();
    assert_eq!(b.recv().unwrap().body, b"before");
    assert!(matches!(b.recv(), Err(LinkError::Tls { .. })));
    // b says so.
    assert_says(&a.recv(), &["BadRecordMac"]);
}

#[test]
fn receiving_with_a_time_limit() {
    let (a, b) = pair();
    let none = Duration::ZERO;
    let some = Duration::from_millis(30);
    assert_eq!(b.recv_timeout(none).unwrap(), None);
    let start = Instant::now();
    assert_eq!(b.recv_timeout(some).unwrap(), None);
    assert!(start.elapsed() >= some);
    assert!(start.elapsed() < Duration::from_secs(5));
    // In two pieces.
    let header = frame::header(3, 4).unwrap();
    send_raw(&a, &[&header[..], b"ab"].concat());
    assert_eq!(b.recv_timeout(some).unwrap(), None);
    send_raw(&a, b"cd");
    let frame = b.recv_timeout(TIMEOUT).unwrap().unwrap();
    assert_eq!((frame.kind, &frame.body[..]), (3, &b"abcd"[..]));
    a.send(4, &[]).unwrap();
    a.send(5, &[]).unwrap();
    assert_eq!(b.recv().unwrap().kind, 4);
    assert_eq!(b.recv_timeout(none).unwrap().unwrap().kind, 5);
    assert_eq!(b.recv_timeout(Duration::MAX.min(some)).unwrap(), None);
    a.send(6, &[]).unwrap();
    assert_eq!(b.recv_timeout(Duration::MAX).unwrap().unwrap().kind, 6);
}

/// `cargo test --release link::tests::speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed() {
    const ROUNDS: usize = 20_000;
    fn median(mut round: impl FnMut()) -> (f64, f64) {
        let mut times: Vec<_> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                round();
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        let us = |i: usize| times[i].as_secs_f64() * 1e6;
        (us(ROUNDS / 2), us(ROUNDS * 99 / 100))
    }

    let request = body(8 << 10, 1);
    let (a, b) = pair();
    let answering = thread::spawn(move || {
        while let Ok(frame) = b.recv() {
            b.send(2, &[&frame.body[..32]]).unwrap();
        }
    });
    let (link, link99) = median(|| {
        a.send(1, &[&request[..100], &request[100..]]).unwrap();
        assert_eq!(a.recv().unwrap().body.len(), 32);
    });
    a.shutdown();
    answering.join().unwrap();

    // The same over bare TCP.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut b = listener.accept().unwrap().0;
    a.set_nodelay(true).unwrap();
    b.set_nodelay(true).unwrap();
    let answering = thread::spawn(move || {
        let mut buffer = [0; 8 << 10];
        while b.read_exact(&mut buffer).is_ok() {
            b.write_all(&buffer[..32]).unwrap();
        }
    });
    let (tcp, tcp99) = median(|| {
        a.write_all(&request).unwrap();
        a.read_exact(&mut [0; 32]).unwrap();
    });
    drop(a);
    answering.join().unwrap();
    println!(
        "8 KiB there, 32 B back, p50 / p99: link {link:.1} / {link99:.1} us, bare TCP {tcp:.1} / {tcp99:.1} us"
    );

    for (size, count) in [(8 << 10, 100_000), (1 << 20, 1500), (60 << 20, 25)] {
        let (a, b) = pair();
        let start = Instant::now();
        let receiver = thread::spawn(move || {
            for _ in 0..count {
                b.recv().unwrap();
            }
        });
        let body = body(size, 0);
        for _ in 0..count {
            a.send(1, &[&body]).unwrap();
        }
        receiver.join().unwrap();
        let rate = (size * count) as f64 / start.elapsed().as_secs_f64() / 1e6;
        println!("frames of {size} bytes: {rate:.0} MB/s");
    }
}
