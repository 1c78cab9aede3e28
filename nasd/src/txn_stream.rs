//! Transactions on their way to a peer that follows: what both ends know is left out, and the rest is one compressed
//! stream, so that a transaction finds what it has in common with those before it.
//!
//! A frame is a tag (0: a new stream begins, 1: it goes on), the length of what follows uncompressed (LEB128), and the
//! next bytes of a zstd stream, flushed. Uncompressed that is a form byte and
//!
//! * 0, whole: the transaction as its file begins: header and stored payload;
//! * 1, the successor of the one before it in the stream: flags (1 more parts follow, 2 lz4, 4 converge; LEB128 as all
//!   numbers here), the difference of the epochs, of the timestamps, the length of the payload uncompressed, the number
//!   of operations, the first 8 bytes of its hash, and the stored payload. The receiver puts the header together, and
//!   computes the hash: it must begin so.

use nasd_volume::txn::{Header, Successor, Txn, TxnError};
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, Operation, OutBuffer};

/// The fastest: what matters here is that the stream remembers.
const LEVEL: i32 = 1;
/// How far back it remembers, as a power of two: 1 MiB. It is memory on both ends.
const WINDOW_LOG: u32 = 20;
/// A form byte and a whole transaction of the largest size.
const MOST: usize = 1 + nasd_volume::txn::HEADER_LEN + nasd_volume::txn::MAX_PAYLOAD as usize;

const NEW: u8 = 0;
const GOES_ON: u8 = 1;
const WHOLE: u8 = 0;
const SUCCESSOR: u8 = 1;

/// The sending end.
pub struct Packer {
    stream: Encoder<'static>,
    /// The last one in the stream.
    last: Option<Header>,
    plain: Vec<u8>,
    frame: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("last", &self.last).finish_non_exhaustive()
    }
}

/// The receiving end.
#[derive(Default)]
pub struct Unpacker {
    stream: Option<Decoder<'static>>,
    last: Option<Header>,
}

fn put(buf: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        buf.push(n as u8 | 0x80);
        n >>= 7;
    }
    buf.push(n as u8);
}

fn take(buf: &mut &[u8]) -> Result<u64, TxnError> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = buf.split_first().ok_or(TxnError::Damaged("it is cut short on the wire"))?;
        *buf = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(n);
        }
    }
    Err(TxnError::Damaged("a number on the wire is too long"))
}

impl Packer {
    /// The beginning of a stream.
    ///
    /// # Errors
    /// No memory.
    pub fn new() -> std::io::Result<Packer> {
        let mut stream = Encoder::new(LEVEL)?;
        stream.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
        // TLS checks what arrives, and the hash does.
        stream.set_parameter(CParameter::ChecksumFlag(false))?;
        Ok(Packer { stream, last: None, plain: Vec::new(), frame: Vec::new() })
    }

    /// The body of the frame that carries `txn`. It must be sent, and in this order.
    ///
    /// # Errors
    /// No memory.
    pub fn pack(&mut self, txn: &Txn) -> std::io::Result<&[u8]> {
        let h = &txn.header;
        let payload = &txn.bytes()[nasd_volume::txn::HEADER_LEN..];
        self.plain.clear();
        match self.last.as_ref().and_then(|last| h.as_successor(last)) {
            Some(s) => {
                self.plain.push(SUCCESSOR);
                let flags = u64::from(s.continues) | u64::from(s.lz4) << 1 | u64::from(s.converge) << 2;
                for n in [flags, s.epochs, s.nanos, s.raw_len, s.ops.into()] {
                    put(&mut self.plain, n);
                }
                self.plain.extend_from_slice(&h.position.hash.0[..8]);
                self.plain.extend_from_slice(payload);
            }
            None => {
                self.plain.push(WHOLE);
                self.plain.extend_from_slice(txn.bytes());
            }
        }
        self.frame.clear();
        self.frame.push(if self.last.is_none() { NEW } else { GOES_ON });
        put(&mut self.frame, self.plain.len() as u64);
        self.compress()?;
        self.last = Some(*h);
        Ok(&self.frame)
    }

    fn compress(&mut self) -> std::io::Result<()> {
        let mut from = 0;
        loop {
            let at = self.frame.len();
            // Room for what does not shrink, and for the ends of blocks.
            self.frame.resize(at + (self.plain.len() - from) + 1024, 0);
            let mut out = OutBuffer::around_pos(&mut self.frame[..], at);
            let mut input = zstd::stream::raw::InBuffer::around(&self.plain[from..]);
            if input.src.is_empty() {
                let left = self.stream.flush(&mut out)?;
                let end = out.pos();
                self.frame.truncate(end);
                if left == 0 {
                    return Ok(());
                }
                continue;
            }
            self.stream.run(&mut input, &mut out)?;
            from += input.pos;
            let end = out.pos();
            self.frame.truncate(end);
        }
    }
}

impl Unpacker {
    /// The transaction in the body of the next frame.
    ///
    /// # Errors
    /// When it is none, or not the next. Nothing more can be read from the stream then.
    pub fn unpack(&mut self, body: &[u8]) -> Result<Txn, TxnError> {
        let damaged = |what| Err(TxnError::Damaged(what));
        let Some((&tag, mut rest)) = body.split_first() else { return damaged("an empty frame") };
        match tag {
            NEW => *self = Unpacker { stream: Some(decoder()?), last: None },
            GOES_ON => {}
            _ => return damaged("an unknown tag on the wire"),
        }
        let len = usize::try_from(take(&mut rest)?).unwrap_or(usize::MAX);
        let Some(stream) = self.stream.as_mut().filter(|_| len <= MOST) else {
            return damaged("it is too long, or its stream was never begun");
        };
        let plain = decompress(stream, rest, len)?;
        let txn = match plain.split_first() {
            Some((&WHOLE, bytes)) => Txn::from_wire(bytes.to_vec())?,
            Some((&SUCCESSOR, bytes)) => self.successor(bytes)?,
            _ => return damaged("an unknown form on the wire"),
        };
        self.last = Some(txn.header);
        Ok(txn)
    }

    fn successor(&self, mut bytes: &[u8]) -> Result<Txn, TxnError> {
        let Some(last) = &self.last else {
            return Err(TxnError::Damaged("it follows on one that was never sent"));
        };
        let mut number = || take(&mut bytes);
        let flags = number()?;
        let s = Successor {
            continues: flags & 1 != 0,
            lz4: flags & 2 != 0,
            converge: flags & 4 != 0,
            epochs: number()?,
            nanos: number()?,
            raw_len: number()?,
            ops: u32::try_from(number()?).map_err(|_| TxnError::Damaged("too many operations"))?,
        };
        let Some((hash, payload)) = bytes.split_first_chunk::<8>().filter(|_| flags < 8) else {
            return Err(TxnError::Damaged("it is cut short on the wire"));
        };
        let txn = Txn::succeed(last, &s, payload)?;
        if txn.header.position.hash.0[..8] != hash[..] {
            return Err(TxnError::Damaged("the hash does not match"));
        }
        Ok(txn)
    }
}

fn decoder() -> Result<Decoder<'static>, TxnError> {
    let made = Decoder::new().and_then(|mut d| {
        d.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        Ok(d)
    });
    made.map_err(|_| TxnError::Damaged("no memory to decompress it"))
}

/// Exactly `len` bytes, and all of the input.
fn decompress(stream: &mut Decoder<'static>, body: &[u8], len: usize) -> Result<Vec<u8>, TxnError> {
    const WRONG: TxnError = TxnError::Damaged("it does not decompress");
    // A length that lies costs no memory: what is claimed must arrive first.
    let mut plain = Vec::new();
    let mut input = zstd::stream::raw::InBuffer::around(body);
    let mut chunk = vec![0; (64 << 10).min(len + 1)];
    loop {
        let mut out = OutBuffer::around(&mut chunk[..]);
        stream.run(&mut input, &mut out).map_err(|_| WRONG)?;
        let n = out.pos();
        plain.extend_from_slice(&chunk[..n]);
        if plain.len() > len {
            return Err(WRONG);
        }
        if n == 0 && input.pos == body.len() {
            return if plain.len() == len { Ok(plain) } else { Err(WRONG) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nasd_volume::txn::Seal;
    use nasd_volume::{Position, VolumeId};
    use proptest::prelude::*;

    fn seal(prev: Position, timestamp: i64, epoch: u64, payload: &[u8], flags: u8) -> Txn {
        let seal = Seal {
            volume: VolumeId([7; 16]),
            prev,
            epoch,
            timestamp,
            continues: flags & 1 != 0,
            converge: flags & 2 != 0,
            ops: 3,
        };
        Txn::seal(&seal, payload)
    }

    type Step = (Vec<u8>, u32, bool, bool, u8);

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let payload = prop_oneof![
            4 => proptest::collection::vec(any::<u8>(), 0..600),
            1 => (any::<u8>(), 0_usize..100_000).prop_map(|(b, n)| vec![b; n]),
            1 => proptest::collection::vec(any::<u8>(), 20_000..40_000),
        ];
        let step = (payload, any::<u32>(), any::<bool>(), proptest::bool::weighted(0.1), 0_u8..4);
        proptest::collection::vec(step, 1..20)
    }

    fn history(steps: &[Step]) -> Vec<Txn> {
        let mut prev = Position::genesis(VolumeId([7; 16]));
        let (mut epoch, mut time, mut all) = (1, 1_700_000_000_000_000_000, Vec::new());
        for (payload, nanos, next_epoch, gap, flags) in steps {
            epoch += u64::from(*next_epoch);
            time += i64::from(*nanos);
            // After a gap the next one is not the successor of the last one in the stream.
            if *gap {
                prev.seq += 5;
            }
            let txn = seal(prev, time, epoch, payload, *flags);
            prev = txn.header.position;
            all.push(txn);
        }
        all
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_the_same(steps in steps()) {
            let (mut packer, mut unpacker) = (Packer::new()?, Unpacker::default());
            for txn in history(&steps) {
                let frame = packer.pack(&txn)?.to_vec();
                let got = unpacker.unpack(&frame).map_err(|e| TestCaseError::fail(e.to_string()))?;
                prop_assert_eq!(got.bytes(), txn.bytes());
            }
        }

        #[test]
        fn damage_is_found(steps in steps(), at in any::<prop::sample::Index>(), bit in 0_u32..8) {
            let (mut packer, mut unpacker) = (Packer::new()?, Unpacker::default());
            let all = history(&steps);
            let mut intact = true;
            for (i, txn) in all.iter().enumerate() {
                let mut frame = packer.pack(txn)?.to_vec();
                if i == all.len() - 1 {
                    let n = at.index(frame.len());
                    frame[n] ^= 1_u8 << bit;
                    intact = false;
                }
                match unpacker.unpack(&frame) {
                    // Some bits of a compressed stream mean nothing.
                    Ok(got) => prop_assert_eq!(got.bytes(), txn.bytes()),
                    Err(_) => prop_assert!(!intact),
                }
            }
        }

        #[test]
        fn any_bytes_are_harmless(bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..5)) {
            let mut unpacker = Unpacker::default();
            for body in bodies {
                let _ = unpacker.unpack(&body);
            }
        }
    }

    #[test]
    fn alike_transactions_cost_little() -> std::io::Result<()> {
        let payload: Vec<u8> = (0..300_u32).map(|n| (n * n % 251) as u8).collect();
        let (mut packer, mut prev) = (Packer::new()?, Position::genesis(VolumeId([7; 16])));
        let mut sizes = Vec::new();
        for n in 0..10 {
            let txn = seal(prev, 1_700_000_000_000_000_000 + n * 300_000, 1, &payload, 0);
            prev = txn.header.position;
            sizes.push(packer.pack(&txn)?.len());
        }
        assert!(sizes[0] > 300 && sizes[9] < 50, "{sizes:?}");
        Ok(())
    }

    #[test]
    fn a_length_that_lies_is_refused() -> std::io::Result<()> {
        let txn = seal(Position::genesis(VolumeId([7; 16])), 1, 1, b"payload", 0);
        let frame = Packer::new()?.pack(&txn)?.to_vec();
        assert!(Unpacker::default().unpack(&frame).is_ok());
        for len in [0, 1, 200, u64::from(u32::MAX), u64::MAX] {
            let mut lying = vec![NEW];
            put(&mut lying, len);
            let mut rest = &frame[1..];
            take(&mut rest).map_err(std::io::Error::other)?;
            lying.extend_from_slice(rest);
            assert!(Unpacker::default().unpack(&lying).is_err(), "{len}");
        }
        Ok(())
    }
}
