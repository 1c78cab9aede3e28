//! Subscribers that are no part of nasd: a client of the event stream, and a server for webhooks.

use crate::Node;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// A stream of events over a control socket; the server's chunks are taken apart by hand.
#[derive(Debug)]
pub struct Stream {
    reader: BufReader<UnixStream>,
    id: String,
}

impl Stream {
    /// Asks for the stream, and reads the first thing that it says: it is open then.
    pub fn open(socket: &Path, query: &str, last_event_id: Option<&str>) -> Stream {
        let mut s = UnixStream::connect(socket).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let last = last_event_id.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        write!(s, "GET /v1/events?{query} HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n{last}\r\n")
            .unwrap();
        let mut stream = Stream { reader: BufReader::new(s), id: String::new() };
        let mut line = String::new();
        stream.reader.read_line(&mut line).unwrap();
        assert!(line.contains(" 200 "), "{line}");
        while stream.id.is_empty() {
            stream.line().expect("the stream has begun");
        }
        stream
    }

    /// The next line, if there is one.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        if let Some(id) = line.strip_prefix("id: ") {
            id.trim().clone_into(&mut self.id);
        }
        Some(line)
    }

    /// The next event; none when the stream has ended.
    pub fn try_event(&mut self) -> Option<Value> {
        loop {
            // The sizes of chunks and blank lines are none of ours.
            if let Some(json) = self.line()?.strip_prefix("data: ") {
                return Some(serde_json::from_str(json).unwrap());
            }
        }
    }

    /// The next event.
    pub fn event(&mut self) -> Value {
        self.try_event().expect("the stream goes on")
    }

    /// Reads until it is told of this transaction; all of which it was told.
    pub fn read_until(&mut self, seq: u64) -> BTreeSet<u64> {
        let mut told = BTreeSet::new();
        while !told.contains(&seq) {
            let event = self.event();
            assert_ne!(event["kind"], "gap", "{event}");
            if event["kind"] == "data" {
                told.insert(event["seq"].as_u64().unwrap());
            }
        }
        told
    }

    /// Where it is.
    pub fn last_id(&self) -> String {
        self.id.clone()
    }
}

/// A change of state that a node tells of.
#[derive(Debug, PartialEq, Eq)]
#[allow(missing_docs)] // As in the event.
pub struct Change {
    pub kind: String,
    pub old: String,
    pub new: String,
}

/// The changes that a node tells of, oldest first. Of the kinds that are one part each, every event says what it was and
/// what it is.
pub fn changes(node: &Node) -> Vec<Change> {
    let kinds = ["role", "link", "sync", "disk", "mount", "etcd", "database"];
    let args: Vec<&str> = kinds.iter().flat_map(|kind| ["--state", kind]).collect();
    let all = node.try_cli(&[&["events", "--json", "--since", "0.0"][..], &args].concat());
    let events = String::from_utf8_lossy(&all.stdout).into_owned();
    let mut changes = Vec::new();
    for line in events.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| event[key].as_str().map(str::to_owned);
        let kind = text("kind").unwrap();
        match (text("old"), text("new")) {
            _ if kind == "gap" => panic!("{event}"),
            (Some(old), Some(new)) => changes.push(Change { kind, old, new }),
            _ => assert!(!["disk", "mount", "etcd", "database"].contains(&kind.as_str()), "{event}"),
        }
    }
    changes
}

type Answer = Box<dyn Fn(usize) -> u16 + Send + Sync>;

/// An HTTP server that takes events.
pub struct Webhook {
    /// Its address.
    pub url: String,
    posts: Receiver<(String, Vec<Value>)>,
    headers: std::cell::RefCell<Vec<String>>,
    over: Arc<AtomicBool>,
    address: std::net::SocketAddr,
}

impl Webhook {
    /// Starts it. `answer` gets the number of the request, and says what to answer.
    pub fn start(answer: impl Fn(usize) -> u16 + Send + Sync + 'static) -> Webhook {
        Webhook::with(None, answer)
    }

    /// The same with TLS: this certificate and key of a directory.
    pub fn with_tls(
        dir: &Path,
        name: &str,
        answer: impl Fn(usize) -> u16 + Send + Sync + 'static,
    ) -> Webhook {
        let chain = CertificateDer::pem_file_iter(dir.join(format!("{name}.pem"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = builder.unwrap().with_no_client_auth();
        let config = config.with_single_cert(chain.map(Result::unwrap).collect(), key).unwrap();
        Webhook::with(Some(Arc::new(config)), answer)
    }

    fn with(
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(usize) -> u16 + Send + Sync + 'static,
    ) -> Webhook {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (tx, posts) = channel();
        let over = Arc::new(AtomicBool::new(false));
        let (ended, answer): (_, Arc<Answer>) = (Arc::clone(&over), Arc::new(Box::new(answer)));
        std::thread::spawn(move || {
            let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
            for socket in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (tx, answer, count) = (tx.clone(), Arc::clone(&answer), Arc::clone(&count));
                let (socket, tls) = (socket.unwrap(), tls.clone());
                std::thread::spawn(move || match tls {
                    None => serve(socket, &tx, &answer, &count),
                    Some(tls) => {
                        let connection = ServerConnection::new(tls).unwrap();
                        serve(StreamOwned::new(connection, socket), &tx, &answer, &count)
                    }
                });
            }
        });
        let headers = std::cell::RefCell::default();
        Webhook { url: format!("{scheme}://{address}/hook"), posts, headers, over, address }
    }

    /// The events that were taken since the last call.
    pub fn events(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for (headers, events) in self.posts.try_iter() {
            self.headers.borrow_mut().push(headers);
            all.extend(events);
        }
        all
    }

    /// Waits for the next request; whether there was one.
    pub fn wait(&self) -> bool {
        self.posts.recv().is_ok()
    }

    /// The headers of all requests that [`Webhook::events`] gave.
    pub fn headers(&self) -> Vec<String> {
        self.headers.borrow().clone()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // It sits in `accept`.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    socket: impl Read + Write,
    tx: &Sender<(String, Vec<Value>)>,
    status_of: &Answer,
    count: &std::sync::atomic::AtomicUsize,
) {
    let mut reader = BufReader::new(socket);
    loop {
        let (mut headers, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(n) if n > 0 => {}
                _ => return,
            }
            if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
            headers.push_str(&line);
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let status = status_of(count.fetch_add(1, Ordering::SeqCst));
        if (200..300).contains(&status) {
            // The test may have ended.
            let _ = tx.send((headers, serde_json::from_slice(&body).unwrap()));
        }
        // In one piece: the next would wait until the client has acknowledged it.
        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
        let socket = reader.get_mut();
        if socket.write_all(answer.as_bytes()).and_then(|()| socket.flush()).is_err() {
            return;
        }
    }
}
