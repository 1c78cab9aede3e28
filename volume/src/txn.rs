//! The transaction file, byte by byte. `docs/format.md` is the same for people.
//!
//! ```text
//! offset size
//!   0     8   magic "NASDTXN\0"
//!   8     2   format version, 1
//!  10     2   flags: 1 = more parts of the transaction follow, 2 = payload is lz4, 4 = converge
//!  12     4   header length, 152
//!  16    16   volume identity
//!  32     8   epoch
//!  40     8   sequence number
//!  48     8   timestamp, nanoseconds since 1970 UTC
//!  56     8   payload length as stored
//!  64     8   payload length uncompressed
//!  72     8   file length
//!  80     4   number of operations
//!  84     4   zero
//!  88    32   hash of the predecessor
//! 120    32   hash: blake3 over bytes 0..120 and the stored payload
//! 152     …   payload: operations (see `op`)
//!   …     …   zeros up to the file length
//! ```
//!
//! The hash covers all that means something, the file length included, and what follows must be zero:
//! so every flipped byte and every truncation of the file is found. The lengths are few (see
//! [`file_len_for`]) so that an aged file can be overwritten in place by a later transaction.

use crate::ids::{Hash, Position, VolumeId};
use crate::op::{OpError, Ops};
use std::borrow::Cow;

/// The first bytes of every transaction file.
pub const MAGIC: &[u8; 8] = b"NASDTXN\0";
/// The version of the format that this code writes and reads.
pub const VERSION: u16 = 1;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 152;
/// The largest payload, stored or uncompressed, in bytes. Larger transactions are cut into parts.
pub const MAX_PAYLOAD: u64 = 64 << 20;
/// Payloads from this size on are compressed when that makes them smaller. Smaller ones fit into a page or four either way,
/// and on the wire they are part of a stream that compresses better what is not compressed yet.
const COMPRESS_FROM: usize = 16 << 10;

const FLAG_CONTINUES: u16 = 1;
const FLAG_LZ4: u16 = 2;
const FLAG_CONVERGE: u16 = 4;

/// Why bytes are not a transaction of this volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TxnError {
    /// Not a transaction file at all.
    #[error("not a transaction file: the magic bytes are missing")]
    Magic,
    /// A format that this version does not know.
    #[error("format version {0} is not known to this nasd; upgrade it")]
    Version(u16),
    /// Torn or damaged.
    #[error("damaged: {0}; it is not applied, the peer's copy replaces it")]
    Damaged(&'static str),
    /// Whole, but of another volume.
    #[error("it belongs to volume {0}")]
    Foreign(VolumeId),
    /// Whole, but its operations are not.
    #[error(transparent)]
    Op(#[from] OpError),
}

/// What a transaction's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The volume.
    pub volume: VolumeId,
    /// Epoch, sequence number and chain hash.
    pub position: Position,
    /// The chain hash of the transaction before it.
    pub prev: Hash,
    /// Nanoseconds since 1970 UTC; never below the predecessor's.
    pub timestamp: i64,
    /// More parts of the same transaction follow; nothing is applied before the last is there.
    pub continues: bool,
    /// The operations describe a state, not steps from the predecessor: applied leniently, as in a redo.
    pub converge: bool,
    /// Whether the payload is compressed.
    pub lz4: bool,
    /// Bytes of payload in the file.
    pub payload_len: u64,
    /// Bytes of payload uncompressed.
    pub raw_len: u64,
    /// Length of the file.
    pub file_len: u64,
    /// How many operations.
    pub ops: u32,
}

fn le<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    let mut a = [0; N];
    a.copy_from_slice(&b[at..at + N]);
    a
}

impl Header {
    /// Reads a header without checking its hash.
    ///
    /// # Errors
    /// When the bytes can't be a header of this version or its lengths contradict each other.
    pub fn parse(b: &[u8]) -> Result<Header, TxnError> {
        if b.len() < 10 || &b[..8] != MAGIC {
            return Err(TxnError::Magic);
        }
        let version = u16::from_le_bytes(le(b, 8));
        if version != VERSION {
            return Err(TxnError::Version(version));
        }
        if b.len() < HEADER_LEN {
            return Err(TxnError::Damaged("the header is cut short"));
        }
        let flags = u16::from_le_bytes(le(b, 10));
        let u64_at = |at| u64::from_le_bytes(le(b, at));
        let h = Header {
            volume: VolumeId(le(b, 16)),
            position: Position { epoch: u64_at(32), seq: u64_at(40), hash: Hash(le(b, 120)) },
            prev: Hash(le(b, 88)),
            timestamp: u64_at(48) as i64,
            continues: flags & FLAG_CONTINUES != 0,
            lz4: flags & FLAG_LZ4 != 0,
            converge: flags & FLAG_CONVERGE != 0,
            payload_len: u64_at(56),
            raw_len: u64_at(64),
            file_len: u64_at(72),
            ops: u32::from_le_bytes(le(b, 80)),
        };
        let fits = h.payload_len <= MAX_PAYLOAD
            && h.raw_len <= MAX_PAYLOAD
            && h.file_len >= HEADER_LEN as u64 + h.payload_len
            && h.file_len <= 2 * (MAX_PAYLOAD + HEADER_LEN as u64)
            && (h.lz4 || h.raw_len == h.payload_len);
        let header_len = u32::from_le_bytes(le(b, 12));
        if !fits || header_len as usize != HEADER_LEN || flags & !7 != 0 || le(b, 84) != [0; 4] {
            return Err(TxnError::Damaged("the header contradicts itself"));
        }
        Ok(h)
    }

    fn write(&self, b: &mut [u8]) {
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        let flag = |on, bit| if on { bit } else { 0 };
        let flags = flag(self.continues, FLAG_CONTINUES)
            | flag(self.lz4, FLAG_LZ4)
            | flag(self.converge, FLAG_CONVERGE);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(10, &flags.to_le_bytes());
        put(12, &(HEADER_LEN as u32).to_le_bytes());
        put(16, &self.volume.0);
        put(32, &self.position.epoch.to_le_bytes());
        put(40, &self.position.seq.to_le_bytes());
        put(48, &self.timestamp.to_le_bytes());
        put(56, &self.payload_len.to_le_bytes());
        put(64, &self.raw_len.to_le_bytes());
        put(72, &self.file_len.to_le_bytes());
        put(80, &self.ops.to_le_bytes());
        put(84, &[0; 4]);
        put(88, &self.prev.0);
        put(120, &self.position.hash.0);
    }

    /// The file's name in the log directory.
    pub fn file_name(&self) -> String {
        file_name(self.timestamp, self.position.seq)
    }
}

/// The name of a transaction: `20261123T045757.123456789Z-0000000000000042.txn`.
pub fn file_name(timestamp: i64, seq: u64) -> String {
    let t = chrono::DateTime::from_timestamp_nanos(timestamp);
    format!("{}-{seq:016}.txn", t.format("%Y%m%dT%H%M%S.%9fZ"))
}

/// The timestamp as people and scripts read it: `2026-11-23T04:57:57.123456789Z`.
pub fn rfc3339(timestamp: i64) -> String {
    let t = chrono::DateTime::from_timestamp_nanos(timestamp);
    t.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true)
}

/// The sequence number in a transaction file's name.
pub fn seq_of_name(name: &[u8]) -> Option<u64> {
    let stem = std::str::from_utf8(name).ok()?.strip_suffix(".txn")?;
    let (time, seq) = stem.rsplit_once('-')?;
    (time.len() == 26 && seq.len() >= 16 && seq.bytes().all(|b| b.is_ascii_digit())).then_some(())?;
    seq.parse().ok()
}

/// How long the file for `len` bytes of header and payload is.
///
/// Steps of 4 KiB up to 16 KiB, then two steps per doubling: few enough that aged files fit new transactions,
/// fine enough that at most a third of a larger file is padding.
pub fn file_len_for(len: u64) -> u64 {
    let pages = len.div_ceil(4096).max(1);
    let rounded = if pages <= 4 {
        pages
    } else {
        let power = (pages - 1).ilog2();
        let half = 1 << (power - 1);
        pages.div_ceil(half) * half
    };
    rounded * 4096
}

/// A whole transaction: header and stored payload, without the padding. What the wire carries.
#[derive(Debug, Clone)]
pub struct Txn {
    /// The parsed header.
    pub header: Header,
    bytes: Vec<u8>,
}

/// What a transaction is sealed with.
#[derive(Debug, Clone, Copy)]
pub struct Seal {
    /// The volume.
    pub volume: VolumeId,
    /// The transaction before it.
    pub prev: Position,
    /// The epoch it is sealed in.
    pub epoch: u64,
    /// Nanoseconds since 1970 UTC.
    pub timestamp: i64,
    /// See [`Header::continues`].
    pub continues: bool,
    /// See [`Header::converge`].
    pub converge: bool,
    /// How many operations the payload has.
    pub ops: u32,
}

impl Txn {
    /// Seals `payload` (encoded operations, at most [`MAX_PAYLOAD`] bytes) as the successor of `seal.prev`.
    pub fn seal(seal: &Seal, payload: &[u8]) -> Txn {
        let mut bytes = vec![0; HEADER_LEN];
        let mut lz4 = false;
        if payload.len() >= COMPRESS_FROM {
            let bound = lz4_flex::block::get_maximum_output_size(payload.len());
            bytes.resize(HEADER_LEN + bound, 0);
            if let Ok(n) = lz4_flex::block::compress_into(payload, &mut bytes[HEADER_LEN..])
                && n < payload.len() - payload.len() / 16
            {
                bytes.truncate(HEADER_LEN + n);
                lz4 = true;
            } else {
                bytes.truncate(HEADER_LEN);
            }
        }
        if !lz4 {
            bytes.extend_from_slice(payload);
        }
        let mut header = Header {
            volume: seal.volume,
            position: Position { epoch: seal.epoch, seq: seal.prev.seq + 1, hash: Hash::default() },
            prev: seal.prev.hash,
            timestamp: seal.timestamp,
            continues: seal.continues,
            converge: seal.converge,
            lz4,
            payload_len: (bytes.len() - HEADER_LEN) as u64,
            raw_len: payload.len() as u64,
            file_len: file_len_for(bytes.len() as u64),
            ops: seal.ops,
        };
        header.write(&mut bytes);
        header.position.hash = hash_of(&bytes);
        header.write(&mut bytes);
        Txn { header, bytes }
    }

    /// Header and payload, as they go over the wire and to the front of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes what came over the wire: exactly header and payload.
    ///
    /// # Errors
    /// When it is not a whole, undamaged transaction.
    pub fn from_wire(bytes: Vec<u8>) -> Result<Txn, TxnError> {
        let header = Header::parse(&bytes)?;
        if bytes.len() as u64 != HEADER_LEN as u64 + header.payload_len {
            return Err(TxnError::Damaged("the payload is cut short or too long"));
        }
        if hash_of(&bytes) != header.position.hash {
            return Err(TxnError::Damaged("the hash does not match"));
        }
        Ok(Txn { header, bytes })
    }

    /// Takes what a file holds: header, payload, zeros.
    ///
    /// # Errors
    /// When it is not a whole, undamaged transaction of exactly its length.
    pub fn from_file(mut bytes: Vec<u8>) -> Result<Txn, TxnError> {
        let header = Header::parse(&bytes)?;
        if bytes.len() as u64 != header.file_len {
            return Err(TxnError::Damaged("the file's length is not what its header says"));
        }
        let end = HEADER_LEN + header.payload_len as usize;
        if bytes[end..].iter().any(|&b| b != 0) {
            return Err(TxnError::Damaged("bytes after the payload are not zero"));
        }
        bytes.truncate(end);
        Txn::from_wire(bytes)
    }

    /// The encoded operations, uncompressed.
    ///
    /// # Errors
    /// When the compressed payload does not give the length that the header says.
    pub fn payload(&self) -> Result<Cow<'_, [u8]>, TxnError> {
        let stored = &self.bytes[HEADER_LEN..];
        if !self.header.lz4 {
            return Ok(Cow::Borrowed(stored));
        }
        let mut raw = vec![0; self.header.raw_len as usize];
        match lz4_flex::block::decompress_into(stored, &mut raw) {
            Ok(n) if n == raw.len() => Ok(Cow::Owned(raw)),
            _ => Err(TxnError::Damaged("the payload does not decompress")),
        }
    }

    /// Checks every operation and their number.
    ///
    /// # Errors
    /// The first thing wrong.
    pub fn check_ops(&self) -> Result<(), TxnError> {
        let payload = self.payload()?;
        let mut n = 0u32;
        for op in Ops::new(&payload) {
            op?;
            n += 1;
        }
        if n == self.header.ops { Ok(()) } else { Err(TxnError::Damaged("the number of operations")) }
    }
}

/// How a transaction follows on the one before it: all of its header that can't be computed from that and the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Successor {
    /// See [`Header::continues`].
    pub continues: bool,
    /// See [`Header::lz4`].
    pub lz4: bool,
    /// See [`Header::converge`].
    pub converge: bool,
    /// How many epochs later.
    pub epochs: u64,
    /// How many nanoseconds later.
    pub nanos: u64,
    /// See [`Header::raw_len`].
    pub raw_len: u64,
    /// See [`Header::ops`].
    pub ops: u32,
}

impl Header {
    /// How this one follows on `last`, if it does.
    pub fn as_successor(&self, last: &Header) -> Option<Successor> {
        let follows = self.volume == last.volume
            && self.prev == last.position.hash
            && self.position.seq == last.position.seq + 1
            && self.file_len == file_len_for(HEADER_LEN as u64 + self.payload_len);
        let successor = Successor {
            continues: self.continues,
            lz4: self.lz4,
            converge: self.converge,
            epochs: self.position.epoch.checked_sub(last.position.epoch)?,
            nanos: u64::try_from(self.timestamp.checked_sub(last.timestamp)?).ok()?,
            raw_len: self.raw_len,
            ops: self.ops,
        };
        follows.then_some(successor)
    }
}

impl Txn {
    /// Puts together the transaction that follows on `last` so, with this stored payload.
    ///
    /// # Errors
    /// When there can't be such a one.
    pub fn succeed(last: &Header, s: &Successor, payload: &[u8]) -> Result<Txn, TxnError> {
        let too_large = TxnError::Damaged("a number beyond all bounds");
        let timestamp = i64::try_from(s.nanos).ok().and_then(|n| last.timestamp.checked_add(n));
        let position = Position {
            epoch: last.position.epoch.checked_add(s.epochs).ok_or(too_large.clone())?,
            seq: last.position.seq.checked_add(1).ok_or(too_large.clone())?,
            hash: Hash::default(),
        };
        let header = Header {
            volume: last.volume,
            position,
            prev: last.position.hash,
            timestamp: timestamp.ok_or(too_large)?,
            continues: s.continues,
            converge: s.converge,
            lz4: s.lz4,
            payload_len: payload.len() as u64,
            raw_len: s.raw_len,
            file_len: file_len_for((HEADER_LEN + payload.len()) as u64),
            ops: s.ops,
        };
        let mut bytes = vec![0; HEADER_LEN];
        bytes.extend_from_slice(payload);
        header.write(&mut bytes);
        // As for any that comes over the wire.
        let mut header = Header::parse(&bytes)?;
        header.position.hash = hash_of(&bytes);
        header.write(&mut bytes);
        Ok(Txn { header, bytes })
    }
}

fn hash_of(bytes: &[u8]) -> Hash {
    let mut h = blake3::Hasher::new();
    h.update(&bytes[..120]).update(&bytes[HEADER_LEN..]);
    Hash(*h.finalize().as_bytes())
}
