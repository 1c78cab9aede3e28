//! Any bytes from a peer: frames come out the same however they arrive, and no frame panics the decoder.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nasd::link::FrameDecoder;
use nasd::protocol::decode;

fuzz_target!(|data: &[u8]| {
    let mut whole = FrameDecoder::new();
    whole.push(data);
    let mut bytewise = FrameDecoder::new();
    let mut pieces = Vec::new();
    for b in data {
        bytewise.push(std::slice::from_ref(b));
        while let Ok(Some(frame)) = bytewise.pop() {
            pieces.push((frame.kind, frame.body));
        }
    }
    let mut n = 0;
    while let Ok(Some(frame)) = whole.pop() {
        assert_eq!(pieces[n], (frame.kind, frame.body.clone()));
        n += 1;
        let _ = decode(frame);
    }
});
