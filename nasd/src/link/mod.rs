//! The link between two nodes: frames over mutual TLS 1.3 over TCP, in both directions at once.
//!
//! It is blocking on purpose. A frame is encrypted and written by the thread that calls
//! [`Link::send`], as a commit waits for every hand-over between threads; one other thread sits in
//! [`Link::recv`].
//!
//! # Locks
//!
//! rustls has one object for both directions, so both need the lock on it. Three locks:
//!
//! - `incoming`: held by the one receiver, all through `recv`.
//! - `outgoing`: held by a sender, all through `send`. It makes the order of the records on the wire
//!   the order in which they were encrypted: **ciphertext is taken out of `conn` only under
//!   `outgoing`**, and all ciphertext that was taken out before is written before it.
//! - `conn`: the rustls connection; held for encryption and decryption only.
//!
//! Order: `incoming` before `conn`; `outgoing` before `conn`. A receiver never *waits* for
//! `outgoing`, and nobody who holds `outgoing` or `conn` takes `incoming`.
//!
//! **No system call that may wait is made under `conn`, and a receiver waits for nothing but bytes
//! to read and `conn`.** So a sender that is stuck in write(2), because the peer's socket is full,
//! stops only other senders: the receivers of both nodes go on emptying the sockets, and the senders
//! get on. What rustls itself wants to say while receiving (key updates, alerts) is written by the
//! receiver only if `outgoing` is free and without waiting; otherwise by the sender that holds it, or
//! by the next one (see [`Link::flush`]).

mod frame;
mod tls;

use std::io::{self, BufRead, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustls::Connection;

#[cfg(test)]
pub use frame::MAX_FRAME;
pub use frame::{Frame, FrameDecoder, FrameError};
pub use tls::TlsContext;

/// How many bytes of a frame are encrypted before they are written: the most that a sender keeps in
/// memory, and the longest that it keeps the receiver from the connection.
const CHUNK: usize = 128 * 1024;

/// How many bytes the receiver reads at once.
const READ: usize = 128 * 1024;

/// How long [`Link::shutdown`] waits for a frame that is being written, and again for what was
/// written to arrive.
const LINGER: Duration = Duration::from_millis(250);

/// What can go wrong with a link. Each message names the peer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The link is over; also after any other error, with that error as the reason.
    #[error("the link to {peer} is closed: {reason}")]
    Closed {
        /// Its address.
        peer: String,
        /// Who closed it, and why if known.
        reason: String,
    },
    /// The peer did not answer, or did not take what was sent, in time.
    #[error("{peer}: {doing} took longer than {after:?}; check the network and the peer")]
    Timeout {
        /// Its address.
        peer: String,
        /// What took so long.
        doing: &'static str,
        /// The limit.
        after: Duration,
    },
    /// The peer is not who it should be, or does not take us for who we are.
    #[error("{peer}: {reason}; {remedy}")]
    Tls {
        /// Its address.
        peer: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// The operating system.
    #[error("{peer}: {doing}: {error}; {}", remedy(error))]
    Io {
        /// Its address.
        peer: String,
        /// What failed.
        doing: &'static str,
        /// How.
        error: io::Error,
    },
    /// The peer, although it has a good certificate, sends no proper frames; or one for it is too large.
    #[error("{peer}: malformed frame: {error}; check that both nodes run the same version of nasd")]
    Malformed {
        /// Its address.
        peer: String,
        /// What is wrong.
        error: FrameError,
    },
    /// A certificate or a key of this node cannot be used.
    #[error("{}: {reason}; {remedy}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: String,
    },
}

impl LinkError {
    fn io(peer: &str, doing: &'static str, error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
        let peer = peer.to_owned();
        match error.kind() {
            ConnectionReset | BrokenPipe | NotConnected => Self::Closed {
                peer,
                reason: format!("the other end is gone ({doing}: {error}); check that nasd runs there"),
            },
            _ => Self::Io { peer, doing, error },
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "check that nasd runs there and listens on this address and port",
        io::ErrorKind::NotFound => "correct the address",
        _ => "check the address, the network, and that nasd runs there",
    }
}

/// A link to one peer whose certificate has been checked, and which has checked ours.
///
/// Share it in an `Arc`: any thread may send, one thread receives. Dropping it closes it as
/// [`Link::shutdown`] does.
pub struct Link {
    socket: TcpStream,
    peer_address: String,
    peer_name: String,
    /// How long a sender waits for the peer to take anything at all.
    timeout: Duration,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outgoing>,
    conn: Mutex<Connection>,
    /// rustls has something to say that nobody has taken out of `conn` yet.
    flush_wanted: AtomicBool,
    /// Set once, with the first reason: nothing is sent any more.
    over: OnceLock<String>,
}

/// What the receiver keeps.
struct Incoming {
    ciphertext: Box<[u8]>,
    decoder: FrameDecoder,
    /// Why nothing comes after the frames in `decoder`.
    end: Option<LinkError>,
    /// What the socket is set to; saves a system call for each receive.
    read_timeout: Option<Duration>,
}

/// Ciphertext on its way from the connection to the socket.
///
/// Invariant: when `outgoing` is free, what is left in here is of rustls itself (a piece of a key
/// update or of an alert), never of a frame, unless the link is over: a frame is written before
/// `send` returns.
#[derive(Default)]
struct Outgoing {
    ciphertext: Vec<u8>,
    written: usize,
}

impl Link {
    /// After the handshake, which has left no plaintext in `conn`.
    fn new(
        mut conn: Connection,
        socket: TcpStream,
        peer_address: String,
        peer_name: String,
        timeout: Duration,
    ) -> Result<Self, LinkError> {
        // `send` takes the ciphertext out after each chunk, so this is the size of a chunk.
        conn.set_buffer_limit(Some(CHUNK));
        // A timeout of zero would mean none at all.
        let timeout = timeout.max(Duration::from_millis(1));
        socket
            .set_write_timeout(Some(timeout))
            .and_then(|()| socket.set_read_timeout(None))
            .map_err(|e| LinkError::io(&peer_address, "setting it up", e))?;
        Ok(Self {
            socket,
            peer_address,
            peer_name,
            timeout,
            incoming: Mutex::new(Incoming {
                ciphertext: vec![0; READ].into_boxed_slice(),
                decoder: FrameDecoder::new(),
                end: None,
                read_timeout: None,
            }),
            outgoing: Mutex::default(),
            conn: Mutex::new(conn),
            flush_wanted: AtomicBool::new(false),
            over: OnceLock::new(),
        })
    }

    /// The common name of the peer's certificate.
    pub fn peer_name(&self) -> &str {
        &self.peer_name
    }

    /// The peer's address: as given to `connect`, or where the connection came from.
    pub fn peer_address(&self) -> &str {
        &self.peer_address
    }

    /// Sends one frame, whose body is the concatenation of `parts`. It returns when the operating
    /// system has all of it, which says nothing about the peer.
    ///
    /// Fails if the peer takes nothing for as long as the timeout that the link was made with; after
    /// any error but one of a frame that is too large the link is over. What the peer had sent until
    /// then can still be received; it may say why.
    pub fn send(&self, kind: u8, parts: &[&[u8]]) -> Result<(), LinkError> {
        let length = parts.iter().map(|p| p.len()).sum();
        let header = frame::header(kind, length)
            .map_err(|error| LinkError::Malformed { peer: self.peer_address.clone(), error })?;
        let mut slices: Vec<IoSlice> =
            std::iter::once(&header[..]).chain(parts.iter().copied()).map(IoSlice::new).collect();

        let sent = {
            let mut outgoing = self.outgoing.lock();
            if self.over.get().is_some() {
                return Err(self.closed());
            }
            // On failure the link is over before the next sender gets the lock: half a frame is
            // followed by nothing.
            self.send_all(&mut outgoing, &mut slices).map_err(|e| self.fail(e))
        };
        // The receiver may have found the lock taken.
        self.flush();
        sent
    }

    fn send_all(&self, outgoing: &mut Outgoing, mut rest: &mut [IoSlice]) -> Result<(), LinkError> {
        while !rest.is_empty() {
            {
                let mut conn = self.conn.lock();
                // First, as the limit on rustls' buffer is a limit on what is in there already.
                outgoing.take_from(&mut conn);
                let n = conn
                    .writer()
                    .write_vectored(rest)
                    .map_err(|e| LinkError::io(&self.peer_address, "encrypting", e))?;
                outgoing.take_from(&mut conn);
                IoSlice::advance_slices(&mut rest, n);
            }
            self.write(outgoing)?;
        }
        Ok(())
    }

    /// Writes all ciphertext, waiting for the peer to take it.
    fn write(&self, outgoing: &mut Outgoing) -> Result<(), LinkError> {
        while !outgoing.left().is_empty() {
            match (&self.socket).write(outgoing.left()) {
                Ok(n) => outgoing.advance(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_timeout(&e) => {
                    return Err(LinkError::Timeout {
                        peer: self.peer_address.clone(),
                        doing: "sending",
                        after: self.timeout,
                    });
                }
                Err(e) => return Err(LinkError::io(&self.peer_address, "sending", e)),
            }
        }
        Ok(())
    }

    /// Writes as much as the socket takes at once. Errors are left to those who send frames.
    fn write_some(&self, outgoing: &mut Outgoing) {
        while !outgoing.left().is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, outgoing.left(), flags) {
                Ok(n) => outgoing.advance(n),
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Writes what rustls wants to say, without waiting: for `outgoing` nor for the peer.
    ///
    /// Nothing is forgotten: who sets `flush_wanted` and finds `outgoing` taken leaves it to the
    /// holder, who comes here after letting go. With the fences, one of the two sees the other's
    /// doing. What the socket does not take at once stays in `outgoing` for the next to write; it is
    /// nothing that the peer waits for.
    fn flush(&self) {
        fence(Ordering::SeqCst);
        while self.flush_wanted.load(Ordering::SeqCst) {
            {
                let Some(mut outgoing) = self.outgoing.try_lock() else {
                    return;
                };
                self.flush_wanted.store(false, Ordering::SeqCst);
                outgoing.take_from(&mut self.conn.lock());
                self.write_some(&mut outgoing);
            }
            fence(Ordering::SeqCst);
        }
    }

    /// The next frame; waits for it as long as it takes. Call it from one thread.
    ///
    /// When the link ends, the frames that arrived before come first, then the error.
    pub fn recv(&self) -> Result<Frame, LinkError> {
        loop {
            if let Some(frame) = self.receive(None)? {
                return Ok(frame);
            }
        }
    }

    /// The next frame, or `None` if it is not here in time; what has arrived of it is kept. Call it
    /// from the thread that calls [`Link::recv`]. The operating system rounds the time up by some
    /// milliseconds; with none, it doesn't wait at all.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Option<Frame>, LinkError> {
        self.receive(Some(timeout))
    }

    /// The next frame if it is of this kind and has arrived with the last one; without a system call.
    pub fn recv_ready(&self, kind: u8) -> Option<Frame> {
        self.incoming.lock().decoder.pop_kind(kind)
    }

    fn receive(&self, timeout: Option<Duration>) -> Result<Option<Frame>, LinkError> {
        let mut incoming = self.incoming.lock();
        let incoming = &mut *incoming;
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        // At first as it was given, which saves setting it on the socket each time.
        let mut wait = timeout;
        loop {
            match incoming.decoder.pop() {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => {}
                Err(error) => {
                    return Err(self.fail(LinkError::Malformed { peer: self.peer_address.clone(), error }));
                }
            }
            if let Some(end) = incoming.end.take() {
                // Should it be called again, it comes here again: the socket is shut down.
                return Err(self.fail(end));
            }
            match self.read(incoming, wait) {
                Ok(0) => {
                    let place =
                        if incoming.decoder.is_between_frames() { "" } else { " in the middle of a frame" };
                    incoming.end = Some(self.closed_because(format!(
                        "the other end hung up{place} without a word: it was killed, or the network was cut"
                    )));
                }
                Ok(n) => self.decrypt(incoming, n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_timeout(&e) => {
                    if timeout.is_some() {
                        return Ok(None);
                    }
                }
                Err(e) => incoming.end = Some(LinkError::io(&self.peer_address, "receiving", e)),
            }
            // What has been read last is looked at once more, without waiting.
            wait = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        }
    }

    /// Reads ciphertext. Waits without any lock but `incoming`.
    fn read(&self, incoming: &mut Incoming, wait: Option<Duration>) -> io::Result<usize> {
        if wait == Some(Duration::ZERO) {
            let (n, _) = rustix::net::recv(&self.socket, &mut incoming.ciphertext[..], RecvFlags::DONTWAIT)?;
            return Ok(n);
        }
        if wait != incoming.read_timeout {
            self.socket.set_read_timeout(wait)?;
            incoming.read_timeout = wait;
        }
        (&self.socket).read(&mut incoming.ciphertext)
    }

    /// Hands `n` bytes of ciphertext to rustls and what comes out of them to the decoder.
    fn decrypt(&self, incoming: &mut Incoming, n: usize) {
        let (fed, wants_write) = {
            let mut conn = self.conn.lock();
            let fed = feed(&mut conn, &incoming.ciphertext[..n], |plaintext| {
                incoming.decoder.push(plaintext);
            });
            (fed, conn.wants_write())
        };
        if wants_write {
            self.flush_wanted.store(true, Ordering::SeqCst);
            self.flush();
        }
        match fed {
            Ok(Fed::More) => {}
            Ok(Fed::Closed) => {
                incoming.end = Some(self.closed_because("the other end closed it".to_owned()));
            }
            Err(e) => {
                incoming.end = Some(LinkError::Tls {
                    peer: self.peer_address.clone(),
                    reason: format!("TLS failed: {e}"),
                    remedy:
                        "see the log of the other end; if both say nothing more, the network damages data"
                            .to_owned(),
                });
            }
        }
    }

    /// Ends the link: tells the peer (TLS close_notify), lets what was sent arrive for a quarter of a
    /// second, then closes the socket in both directions. A blocked `recv` or `send` returns
    /// [`LinkError::Closed`]. From any thread, as often as you like.
    pub fn shutdown(&self) {
        if self.over.set("it was shut down here".to_owned()).is_err() {
            return;
        }
        // No new frame begins now. One that is being written gets its chance, but not for longer:
        // the peer may take nothing any more.
        if let Some(mut outgoing) = self.outgoing.try_lock_for(LINGER) {
            {
                let mut conn = self.conn.lock();
                conn.send_close_notify();
                outgoing.take_from(&mut conn);
            }
            self.write_some(&mut outgoing);
        }
        // Closing for reading as well makes the kernel answer further data with a reset, which throws
        // away what is still on its way to the peer: the last frame, which may say why.
        let until = Instant::now() + LINGER;
        while self.unsent_hint().is_some_and(|n| n > 0) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// How many bytes (of ciphertext) the operating system holds that the peer's has not
    /// acknowledged yet; `None` where that cannot be told.
    pub fn unsent_hint(&self) -> Option<usize> {
        unsent(&self.socket)
    }

    /// Ends the link for an error; returns what to tell the caller about it.
    fn fail(&self, error: LinkError) -> LinkError {
        let reason = match &error {
            LinkError::Closed { reason, .. } => reason.clone(),
            error => error.to_string(),
        };
        if self.over.set(reason).is_ok() {
            let _ = self.socket.shutdown(Shutdown::Both);
            return error;
        }
        match error {
            // That follows from how the link ended, which says more.
            LinkError::Closed { .. } | LinkError::Io { .. } | LinkError::Timeout { .. } => self.closed(),
            error => error,
        }
    }

    fn closed(&self) -> LinkError {
        self.closed_because(self.over.get().cloned().unwrap_or_default())
    }

    fn closed_because(&self, reason: String) -> LinkError {
        LinkError::Closed { peer: self.peer_address.clone(), reason }
    }

    /// What made rustls give up, if it did.
    fn tls_error(&self) -> Option<rustls::Error> {
        self.conn.lock().process_new_packets().err()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("peer_name", &self.peer_name)
            .field("peer_address", &self.peer_address)
            .field("over", &self.over.get())
            .finish_non_exhaustive()
    }
}

impl Outgoing {
    /// Takes all ciphertext out of the connection, behind what is still here.
    fn take_from(&mut self, conn: &mut Connection) {
        // Writing to memory doesn't fail; should rustls ever fail here, the loop must still end.
        while conn.wants_write() && conn.write_tls(&mut self.ciphertext).is_ok_and(|n| n > 0) {}
    }

    fn left(&self) -> &[u8] {
        &self.ciphertext[self.written..]
    }

    fn advance(&mut self, n: usize) {
        self.written += n;
        if self.written == self.ciphertext.len() {
            self.ciphertext.clear();
            self.written = 0;
        }
    }
}

/// What [`feed`] has found.
enum Fed {
    /// There may be more.
    More,
    /// The peer has sent its last byte and said so.
    Closed,
}

/// Hands ciphertext to rustls, piece by piece as it takes it, and the plaintext that comes out to
/// `take`. On an error too, all plaintext that came before it has been taken.
fn feed(
    conn: &mut Connection,
    mut ciphertext: &[u8],
    mut take: impl FnMut(&[u8]),
) -> Result<Fed, rustls::Error> {
    while !ciphertext.is_empty() {
        // Its buffers are never full here, as all is taken out each time.
        let n = conn.read_tls(&mut ciphertext).map_err(|e| rustls::Error::General(e.to_string()))?;
        let processed = conn.process_new_packets();
        let mut reader = conn.reader();
        // Ends with an error (there is no more for now) or with an empty piece (close_notify).
        while let Ok(plaintext) = reader.fill_buf() {
            let n = plaintext.len();
            if n == 0 {
                break;
            }
            take(plaintext);
            reader.consume(n);
        }
        // It takes nothing behind a close_notify.
        if processed?.peer_has_closed() || n == 0 {
            return Ok(Fed::Closed);
        }
    }
    Ok(Fed::More)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// SIOCOUTQ. Linux has other numbers for it on MIPS, PowerPC and SPARC.
#[cfg(not(any(
    target_arch = "mips",
    target_arch = "mips64",
    target_arch = "powerpc",
    target_arch = "powerpc64",
    target_arch = "sparc",
    target_arch = "sparc64"
)))]
fn unsent(socket: &TcpStream) -> Option<usize> {
    use std::ffi::c_int;
    const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
    // SAFETY: SIOCOUTQ is a valid opcode and writes one C int (tcp(7)).
    let get = unsafe { rustix::ioctl::Getter::<SIOCOUTQ, c_int>::new() };
    // SAFETY: `get` describes this opcode truly, as said above; the socket is open.
    let unsent = unsafe { rustix::ioctl::ioctl(socket, get) };
    unsent.ok().and_then(|n| usize::try_from(n).ok())
}

#[cfg(any(
    target_arch = "mips",
    target_arch = "mips64",
    target_arch = "powerpc",
    target_arch = "powerpc64",
    target_arch = "sparc",
    target_arch = "sparc64"
))]
fn unsent(_: &TcpStream) -> Option<usize> {
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::path::Path;
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
        for (length, says) in
            [(u32::MAX, "4294967295 bytes"), (MAX_FRAME as u32 + 1, "limit"), (0, "zero bytes")]
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
}
