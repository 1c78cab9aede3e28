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
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustls::Connection;

use crate::credentials::CredentialsError;

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
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
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
mod tests;
