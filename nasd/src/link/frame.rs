//! Frames: how the bytes of a link are cut into messages.
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | length of all that follows, little endian: 1 to [`MAX_FRAME`] |
//! | 1 | kind |
//! | length - 1 | body |
//!
//! There is no checksum: TLS authenticates every record.

use std::collections::VecDeque;

/// The largest length a frame may announce (kind and body): a body of 64 MiB and some room for the
/// fields around it.
pub const MAX_FRAME: usize = 64 * 1024 * 1024 + 4096;

/// What stands before the body: length and kind.
pub const HEADER: usize = 5;

/// How far ahead of the bytes that have arrived a body's buffer may be allocated. A peer that
/// announces 64 MiB and sends nothing costs this much address space, not 64 MiB. Large enough for
/// growth by steps to be cheap (an allocator moves pages of this size, not bytes).
const AHEAD: usize = 4 * 1024 * 1024;

/// One message of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is; its meaning is the application's.
    pub kind: u8,
    /// The rest.
    pub body: Vec<u8>,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length of zero: not even a kind.
    #[error("a frame of zero bytes, where at least the kind must be")]
    Empty,
    /// A length over [`MAX_FRAME`].
    #[error("a frame of {0} bytes, where {MAX_FRAME} is the limit")]
    TooLarge(usize),
}

/// The bytes before a body of `body` bytes.
pub fn header(kind: u8, body: usize) -> Result<[u8; HEADER], FrameError> {
    let length = body.saturating_add(1);
    if length > MAX_FRAME {
        return Err(FrameError::TooLarge(length));
    }
    let mut header = [kind; HEADER];
    header[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(header)
}

/// Cuts a stream of bytes into frames, whatever pieces it arrives in.
///
/// It holds the frames not yet taken and the one that is arriving. For that one it never allocates
/// more than what has arrived plus 4 MiB (and never more than its length).
#[derive(Debug, Default)]
pub struct FrameDecoder {
    ready: VecDeque<Frame>,
    /// Invariant: only the first `header_filled` bytes count.
    header: [u8; HEADER],
    header_filled: usize,
    /// The frame whose header is complete. Invariant: `body.len() < body_length`.
    body: Vec<u8>,
    body_length: usize,
    /// Set for good: after a wrong length nobody knows where the next frame begins.
    broken: Option<FrameError>,
}

impl FrameDecoder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream. Once a length was wrong they are thrown away.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.broken.is_none() {
            if self.header_filled < HEADER {
                let n = bytes.len().min(HEADER - self.header_filled);
                self.header[self.header_filled..self.header_filled + n].copy_from_slice(&bytes[..n]);
                self.header_filled += n;
                bytes = &bytes[n..];
                // The length is judged as soon as it is there, before the kind.
                if self.header_filled >= 4 {
                    match self.announced() {
                        Ok(length) => self.body_length = length - 1,
                        Err(e) => self.broken = Some(e),
                    }
                }
            } else {
                let n = bytes.len().min(self.body_length - self.body.len());
                self.reserve(n);
                self.body.extend_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
            }
            if self.broken.is_none() && self.header_filled == HEADER && self.body.len() == self.body_length {
                self.header_filled = 0;
                self.ready.push_back(Frame { kind: self.header[4], body: std::mem::take(&mut self.body) });
            }
        }
    }

    /// The next complete frame; `None` if more bytes are needed. A wrong length is reported after the
    /// frames that came before it, then every time.
    pub fn pop(&mut self) -> Result<Option<Frame>, FrameError> {
        match (self.ready.pop_front(), self.broken) {
            (Some(frame), _) => Ok(Some(frame)),
            (None, Some(e)) => Err(e),
            (None, None) => Ok(None),
        }
    }

    /// The next complete frame, if there is one and it is of this kind.
    pub fn pop_kind(&mut self, kind: u8) -> Option<Frame> {
        if self.ready.front()?.kind == kind { self.ready.pop_front() } else { None }
    }

    /// Whether the stream may end here: no frame has begun and not arrived.
    pub fn is_between_frames(&self) -> bool {
        self.header_filled == 0
    }

    fn announced(&self) -> Result<usize, FrameError> {
        let [a, b, c, d, _] = self.header;
        match u32::from_le_bytes([a, b, c, d]) as usize {
            0 => Err(FrameError::Empty),
            length if length > MAX_FRAME => Err(FrameError::TooLarge(length)),
            length => Ok(length),
        }
    }

    /// Makes room for `n` more bytes of the body, and for some that have not arrived, as the type's
    /// documentation promises.
    fn reserve(&mut self, n: usize) {
        let needed = self.body.len() + n;
        if needed > self.body.capacity() {
            let capacity = self.body_length.min(needed + AHEAD);
            self.body.reserve_exact(capacity - self.body.len());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(frames: &[Frame]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for frame in frames {
            bytes.extend(header(frame.kind, frame.body.len()).unwrap());
            bytes.extend(&frame.body);
        }
        bytes
    }

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let frame = (any::<u8>(), prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(kind, body)| Frame { kind, body });
        prop::collection::vec(frame, 0..8)
    }

    fn all(decoder: &mut FrameDecoder) -> (Vec<Frame>, Option<FrameError>) {
        let mut frames = Vec::new();
        loop {
            match decoder.pop() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, None),
                Err(e) => return (frames, Some(e)),
            }
        }
    }

    proptest! {
        #[test]
        fn every_split_gives_the_same_frames(frames in frames(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
            let bytes = encode(&frames);
            let mut cuts: Vec<_> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut decoder = FrameDecoder::new();
            for cut in cuts.windows(2) {
                decoder.push(&bytes[cut[0]..cut[1]]);
            }
            prop_assert!(decoder.is_between_frames());
            prop_assert_eq!(all(&mut decoder), (frames, None));
        }

        #[test]
        fn garbage_gives_the_same_in_one_piece_and_byte_by_byte(bytes in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => Just(1), 1 => any::<u8>()], 0..400)) {
            let mut whole = FrameDecoder::new();
            whole.push(&bytes);
            let mut single = FrameDecoder::new();
            for byte in &bytes {
                single.push(std::slice::from_ref(byte));
                prop_assert!(single.body.capacity() <= single.body.len() + AHEAD);
            }
            prop_assert_eq!(all(&mut whole), all(&mut single));
        }
    }

    #[test]
    fn every_single_cut_of_a_stream() {
        let frames: Vec<_> = [0, 1, 2, 40].map(|n| Frame { kind: n, body: vec![n; n as usize] }).into();
        let bytes = encode(&frames);
        for cut in 0..=bytes.len() {
            let mut decoder = FrameDecoder::new();
            decoder.push(&bytes[..cut]);
            let (mut got, error) = all(&mut decoder);
            assert_eq!(error, None);
            decoder.push(&bytes[cut..]);
            got.extend(all(&mut decoder).0);
            assert_eq!(got, frames, "cut at {cut}");
        }
    }

    #[test]
    fn wrong_lengths_are_refused_after_the_good_frames() {
        let good = Frame { kind: 7, body: b"good".to_vec() };
        for (length, error) in [
            (0, FrameError::Empty),
            (MAX_FRAME as u32 + 1, FrameError::TooLarge(MAX_FRAME + 1)),
            (u32::MAX, FrameError::TooLarge(u32::MAX as usize)),
        ] {
            let mut bytes = encode(std::slice::from_ref(&good));
            bytes.extend(length.to_le_bytes());
            let mut decoder = FrameDecoder::new();
            decoder.push(&bytes);
            // What follows is not read as a frame.
            decoder.push(&encode(std::slice::from_ref(&good)));
            assert_eq!(all(&mut decoder), (vec![good.clone()], Some(error)));
            assert_eq!(decoder.pop(), Err(error));
            assert_eq!(decoder.body.capacity(), 0);
        }
        assert_eq!(header(1, MAX_FRAME), Err(FrameError::TooLarge(MAX_FRAME + 1)));
        assert!(header(1, MAX_FRAME - 1).is_ok());
    }

    #[test]
    fn an_announced_length_allocates_little() {
        let mut decoder = FrameDecoder::new();
        decoder.push(&header(1, MAX_FRAME - 1).unwrap());
        assert_eq!(decoder.body.capacity(), 0);
        let piece = vec![3; 1 << 20];
        let mut left = MAX_FRAME - 1;
        while left > 0 {
            assert_eq!(decoder.pop(), Ok(None));
            let n = left.min(piece.len());
            decoder.push(&piece[..n]);
            left -= n;
            assert!(decoder.body.capacity() <= decoder.body.len() + AHEAD);
            assert!(decoder.body.capacity() < MAX_FRAME);
        }
        let frame = decoder.pop().unwrap().unwrap();
        assert_eq!(frame.body.len(), MAX_FRAME - 1);
    }
}
