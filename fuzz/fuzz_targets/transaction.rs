//! Any bytes as a transaction file, as a transaction from the wire, and as a payload: nothing panics, and whatever is
//! taken for a transaction is one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nasd_volume::op::Ops;
use nasd_volume::txn::{Header, Txn};

fuzz_target!(|data: &[u8]| {
    let _ = Header::parse(data);
    if let Ok(txn) = Txn::from_file(data.to_vec()) {
        let _ = txn.check_ops();
    }
    if let Ok(txn) = Txn::from_wire(data.to_vec()) {
        assert_eq!(txn.bytes(), data);
        let _ = txn.check_ops();
    }
    // What decodes encodes to the same bytes.
    let mut again = Vec::new();
    let mut whole = true;
    for op in Ops::new(data) {
        match op {
            Ok(op) => op.encode(&mut again),
            Err(_) => whole = false,
        }
    }
    if whole {
        assert_eq!(again, data);
    }
});
