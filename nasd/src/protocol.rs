//! What two nodes say to each other over a [`Link`](crate::link::Link).
//!
//! The node that dials asks; the node that was dialled answers. A primary dials each of its peers and sends them
//! transactions over that connection; whoever wants to know something of a peer dials as well. Frames:
//!
//! | kind | from | body |
//! | --- | --- | --- |
//! | 1 | both | a [`Message`], postcard |
//! | 2 | both | one transaction: header and stored payload |
//! | 3 | dialler | operations of a copy: their number (u32) and their bytes |
//! | 4 | dialled | an [`Ack`], 28 bytes little-endian |

use crate::link::{Frame, Link, LinkError};
use nasd_volume::compare::Item;
use nasd_volume::{Hash, Position, Role, VolumeId};
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;
use std::time::Duration;

/// The version of what this module describes; a hello says it. Two nodes speak the lower one of theirs, so that they can
/// be upgraded one after the other; more than one version apart they refuse each other.
///
/// | version | what came with it |
/// | ---: | --- |
/// | 1 | everything but: |
/// | 2 | `Notify`, `Notified` |
pub const VERSION: u32 = 2;

/// The first version that has `Notify`.
pub const NOTIFY: u32 = 2;

/// The version that this node says. `NASD_PROTOCOL` in the environment makes it one version back: for tests, and for a
/// newer node that must not yet say what the older one would not understand.
pub fn spoken() -> u32 {
    static SPOKEN: OnceLock<u32> = OnceLock::new();
    let asked = || std::env::var("NASD_PROTOCOL").ok()?.parse().ok();
    *SPOKEN.get_or_init(|| asked().map_or(VERSION, |v: u32| v.clamp(VERSION - 1, VERSION)))
}

/// Frame kinds.
pub mod kind {
    pub const MESSAGE: u8 = 1;
    pub const TXN: u8 = 2;
    pub const COPY_OPS: u8 = 3;
    pub const ACK: u8 = 4;
    pub const STREAM: u8 = 5;
}

/// Who a node is and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    pub name: String,
    /// None: it waits for its first copy.
    pub volume: Option<VolumeId>,
    pub role: Role,
    /// Whether it serves writers now.
    pub serving: bool,
    pub epoch: u64,
    /// The end of its log.
    pub tail: Position,
    pub applied: u64,
    /// Its files are between two states.
    pub needs_copy: bool,
    /// As a secondary: it may be promoted.
    pub in_sync: bool,
    /// Why it can't follow at the moment: no space, for example.
    pub trouble: Option<String>,
    /// Whom it follows.
    pub following: Option<String>,
}

/// Everything but transactions, operations of a copy, and acknowledgements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// First in both directions.
    Hello(Hello),
    /// The request is not met; the text says why and what to do. The link ends.
    Refuse(String),
    /// Which positions does your log hold?
    AskPositions,
    /// Sequence numbers and hashes, oldest first.
    Positions(Vec<(u64, Hash)>),
    /// Send me your transactions from this number on.
    Fetch(u64),
    /// That was the last.
    FetchEnd,
    /// I am primary of `epoch`: give up what lies behind `fork` and take transactions from me.
    Follow {
        epoch: u64,
        fork: Option<Position>,
        /// Answer when a transaction has arrived, before it is durable.
        ack_received: bool,
        /// Answer at once when a transaction is applied.
        ack_applied: bool,
        /// I am not the primary but follow it, through these nodes; the primary first. Empty: I am.
        via: Vec<String>,
    },
    /// Ready to take transactions behind this position, or a copy.
    Following { tail: Position, needs_copy: bool },
    /// You are (not) needed for every acknowledgement from now on: you may (not) be promoted.
    InSync(bool),
    /// The word was written down.
    InSyncNoted(bool),
    /// A copy begins: it leads to a state at or behind `base`.
    CopyBegin { volume: VolumeId, base: Position, timestamp: i64 },
    /// What I have; many of these.
    Manifest(Vec<Item>),
    /// That was all, as of this applied number.
    ManifestEnd(u64),
    /// The copy is whole once everything up to here is applied.
    CopyEnd(Position),
    /// It is.
    CopyDone,
    /// What do you have, at or behind this applied number? Applying stands still until the answer is out.
    AskManifest(u64),
    /// Become primary of this epoch: I have stopped.
    Promote { epoch: u64 },
    /// I am.
    Promoted,
    /// Hand over to the node that asks.
    AskSwitchover,
    /// Done.
    SwitchoverDone,
    /// I am primary of this epoch and there; on a way that carries nothing else.
    Heartbeat { epoch: u64 },
    /// I am about to become primary of this epoch. Take nothing more of an older one, and say where your log ends.
    Prepare { epoch: u64 },
    /// Done: the end of the log.
    Prepared(Position),
    /// Are you there? Microseconds of the asker's clock.
    Ping(u64),
    /// Yes; the same number.
    Pong(u64),
    /// Tell your consumers, once you show everything up to `seq`, and answer with the number.
    Notify { id: u64, seq: u64, text: String },
    /// Done.
    Notified { id: u64 },
}

/// How far the dialled node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ack {
    pub received: u64,
    pub durable: u64,
    pub applied: u64,
    /// How long the last write and `fdatasync` took, in microseconds.
    pub fsync_us: u32,
}

impl Ack {
    /// With what a later frame says. Two threads of the other node send acknowledgements, so one may be overtaken by a
    /// newer one: nothing in it takes back what that said.
    #[must_use]
    pub fn and(self, later: Ack) -> Ack {
        Ack {
            received: self.received.max(later.received),
            durable: self.durable.max(later.durable),
            applied: self.applied.max(later.applied),
            fsync_us: later.fsync_us,
        }
    }

    fn to_bytes(self) -> [u8; 28] {
        let mut b = [0; 28];
        b[..8].copy_from_slice(&self.received.to_le_bytes());
        b[8..16].copy_from_slice(&self.durable.to_le_bytes());
        b[16..24].copy_from_slice(&self.applied.to_le_bytes());
        b[24..].copy_from_slice(&self.fsync_us.to_le_bytes());
        b
    }

    fn from_bytes(b: &[u8]) -> Option<Ack> {
        let b: &[u8; 28] = b.try_into().ok()?;
        let n = |at: usize| {
            let mut a = [0; 8];
            a.copy_from_slice(&b[at..at + 8]);
            u64::from_le_bytes(a)
        };
        let fsync_us = u32::from_le_bytes([b[24], b[25], b[26], b[27]]);
        Some(Ack { received: n(0), durable: n(8), applied: n(16), fsync_us })
    }
}

/// A frame, understood.
#[derive(Debug)]
pub enum Incoming {
    Message(Box<Message>),
    Txn(Vec<u8>),
    /// The next of a stream of transactions: see `txn_stream`.
    Stream(Vec<u8>),
    CopyOps(u32, Vec<u8>),
    Ack(Ack),
}

/// The conversation failed.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(
        "{peer} sent what nobody of version {VERSION} sends ({what}); check that both nodes run the same nasd"
    )]
    Malformed { peer: String, what: &'static str },
    #[error(
        "{peer} speaks version {theirs} of the protocol, this node {VERSION}: they may be one apart; run the same nasd on both"
    )]
    Version { peer: String, theirs: u32 },
    #[error("{peer} refuses: {why}")]
    Refused { peer: String, why: String },
    #[error("{peer} answers {got}, not {want}; check that both nodes run the same nasd")]
    Unexpected { peer: String, got: String, want: &'static str },
}

/// Decodes a frame. Pure: the fuzz target drives it.
pub fn decode(frame: Frame) -> Result<Incoming, &'static str> {
    match frame.kind {
        kind::MESSAGE => match postcard::take_from_bytes::<Message>(&frame.body) {
            Ok((m, [])) => Ok(Incoming::Message(Box::new(m))),
            Ok(_) => Err("a message with bytes behind it"),
            Err(_) => Err("a message that can't be read"),
        },
        kind::TXN => Ok(Incoming::Txn(frame.body)),
        kind::STREAM => Ok(Incoming::Stream(frame.body)),
        kind::COPY_OPS => {
            let (n, ops) = frame.body.split_first_chunk::<4>().ok_or("operations without a number")?;
            Ok(Incoming::CopyOps(u32::from_le_bytes(*n), ops.to_vec()))
        }
        kind::ACK => {
            Ack::from_bytes(&frame.body).map(Incoming::Ack).ok_or("an acknowledgement of another size")
        }
        _ => Err("a frame of an unknown kind"),
    }
}

/// The version in a hello. It stands first, whatever another version has behind it.
fn version_of_hello(frame: &Frame) -> Option<u32> {
    let (message, version) = postcard::take_from_bytes::<(u32, u32)>(&frame.body).ok()?.0;
    // The place of `Hello` in [`Message`]; that of `Refuse` stays, too, so that the other side can read why.
    (frame.kind == kind::MESSAGE && message == 0).then_some(version)
}

/// Decodes a frame of `link`.
pub fn understand(link: &Link, frame: Frame) -> Result<Incoming, ProtocolError> {
    match version_of_hello(&frame) {
        Some(theirs) if theirs.abs_diff(VERSION) > 1 => {
            return Err(ProtocolError::Version { peer: peer_of(link), theirs });
        }
        // What a newer one says behind the fields that are known here is for its equals.
        Some(theirs) if theirs > VERSION => {
            let hello = postcard::take_from_bytes::<Message>(&frame.body);
            let (hello, _) =
                hello.map_err(|_| ProtocolError::Malformed { peer: peer_of(link), what: "a hello" })?;
            return Ok(Incoming::Message(Box::new(hello)));
        }
        _ => {}
    }
    decode(frame).map_err(|what| ProtocolError::Malformed { peer: peer_of(link), what })
}

fn peer_of(link: &Link) -> String {
    format!("{} ({})", link.peer_name(), link.peer_address())
}

/// Sends a message.
pub fn say(link: &Link, message: &Message) -> Result<(), ProtocolError> {
    let body = postcard::to_stdvec(message).map_err(|_| ProtocolError::Malformed {
        peer: "this node".to_owned(),
        what: "a message that can't be written",
    })?;
    Ok(link.send(kind::MESSAGE, &[&body])?)
}

/// Sends an acknowledgement.
pub fn ack(link: &Link, ack: Ack) -> Result<(), LinkError> {
    link.send(kind::ACK, &[&ack.to_bytes()])
}

/// An answer that is none of those expected: a refusal is told as such.
pub fn unexpected(link: &Link, got: Incoming, want: &'static str) -> ProtocolError {
    let peer = peer_of(link);
    match got {
        Incoming::Message(m) => match *m {
            Message::Refuse(why) => ProtocolError::Refused { peer, why },
            other => {
                let mut got = format!("{other:?}");
                got.truncate(40);
                ProtocolError::Unexpected { peer, got, want }
            }
        },
        other => {
            let got = match other {
                Incoming::Txn(_) => "with a transaction",
                Incoming::CopyOps(..) => "with operations",
                _ => "with an acknowledgement",
            };
            ProtocolError::Unexpected { peer, got: got.to_owned(), want }
        }
    }
}

/// How long an answer may take that needs no copying or comparing.
const ANSWER: Duration = Duration::from_secs(30);

/// Waits for a message, passing over acknowledgements and pongs.
pub fn hear(link: &Link, want: &'static str) -> Result<Message, ProtocolError> {
    loop {
        let Some(frame) = link.recv_timeout(ANSWER)? else {
            let got = format!("nothing for {ANSWER:?}");
            return Err(ProtocolError::Unexpected { peer: peer_of(link), got, want });
        };
        match understand(link, frame)? {
            Incoming::Message(m) if matches!(*m, Message::Pong(_)) => {}
            Incoming::Message(m) => match *m {
                Message::Refuse(why) => {
                    return Err(ProtocolError::Refused { peer: peer_of(link), why });
                }
                m => return Ok(m),
            },
            Incoming::Ack(_) => {}
            other => return Err(unexpected(link, other, want)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn acks_round_trip() {
        let a = Ack { received: 3, durable: 2, applied: 1, fsync_us: 99 };
        assert_eq!(Ack::from_bytes(&a.to_bytes()), Some(a));
        assert_eq!(Ack::from_bytes(&[0; 27]), None);
    }

    #[test]
    fn an_overtaken_ack_takes_nothing_back() {
        let newer = Ack { received: 7, durable: 7, applied: 6, fsync_us: 50 };
        let overtaken = Ack { received: 6, durable: 6, applied: 7, fsync_us: 40 };
        assert_eq!(newer.and(overtaken), Ack { applied: 7, fsync_us: 40, ..newer });
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_decoder(kind in 0u8..6, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(Frame { kind, body });
        }
    }
}
