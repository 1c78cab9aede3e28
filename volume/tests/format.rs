//! The transaction file: no damage goes unseen, no input makes the decoder panic, and version 1 is read for ever.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::cases;
use nasd_volume::op::{Op, Ops, is_entry_name};
use nasd_volume::txn::{
    HEADER_LEN, Header, MAGIC, MAX_PAYLOAD, Seal, Txn, file_len_for, file_name, seq_of_name,
};
use nasd_volume::{FileId, Kind, Position, Time, VolumeId};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;

const FAILED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/format.txt");

/// Knows the largest allocation of each thread.
struct Largest;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    // A thread that is going away has nothing to note any more.
    let _ = LARGEST.try_with(|l| l.set(l.get().max(size)));
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(ptr, layout, size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Largest = Largest;

fn seal(ops: u32) -> Seal {
    let volume = VolumeId(*b"0123456789abcdef");
    Seal {
        volume,
        prev: Position { seq: 41, epoch: 3, ..Position::genesis(volume) },
        epoch: 3,
        timestamp: 1_795_409_877_123_456_789,
        continues: false,
        converge: false,
        ops,
    }
}

fn txn(ops: &[Op<'_>]) -> Txn {
    let mut payload = Vec::new();
    for op in ops {
        op.encode(&mut payload);
    }
    Txn::seal(&seal(ops.len() as u32), &payload)
}

fn file_of(t: &Txn) -> Vec<u8> {
    let mut bytes = t.bytes().to_vec();
    bytes.resize(t.header.file_len as usize, 0);
    bytes
}

/// A small one, and one that is compressed.
fn samples() -> [Txn; 2] {
    let id = FileId(FileId::first_of_epoch(3) + 7);
    let small = txn(&[
        Op::Create {
            parent: FileId::ROOT,
            id,
            kind: Kind::File,
            mode: 0o640,
            uid: 26,
            gid: 26,
            rdev: 0,
            name: b"000000010000000000000001",
            target: b"",
        },
        Op::Write { id, offset: 8192, data: b"a page" },
    ]);
    let compressed = txn(&[Op::Write { id, offset: 0, data: &vec![b'x'; 20_000] }]);
    assert!(!small.header.lz4 && compressed.header.lz4);
    [small, compressed]
}

#[test]
fn every_flip_of_a_file_is_found() {
    for t in samples() {
        let good = file_of(&t);
        assert_eq!(good.len(), 4096, "with padding");
        Txn::from_file(good.clone()).unwrap().check_ops().unwrap();
        for i in 0..good.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[i] ^= flip;
                assert!(Txn::from_file(bad).is_err(), "byte {i} ^ {flip:#x}");
            }
        }
    }
}

#[test]
fn every_other_length_of_a_file_is_found() {
    for t in samples() {
        let good = file_of(&t);
        for n in 0..good.len() {
            assert!(Txn::from_file(good[..n].to_vec()).is_err(), "{n} bytes");
        }
        for more in [1, 4096] {
            let mut bad = good.clone();
            bad.resize(good.len() + more, 0);
            assert!(Txn::from_file(bad).is_err(), "{more} bytes more");
        }
    }
}

#[test]
fn every_flip_and_every_other_length_on_the_wire_is_found() {
    for t in samples() {
        let good = t.bytes();
        Txn::from_wire(good.to_vec()).unwrap();
        for i in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.to_vec();
                bad[i] ^= 1 << bit;
                assert!(Txn::from_wire(bad).is_err(), "bit {bit} of byte {i}");
            }
            assert!(Txn::from_wire(good[..i].to_vec()).is_err(), "{i} bytes");
        }
        let mut bad = good.to_vec();
        bad.push(0);
        assert!(Txn::from_wire(bad).is_err(), "one byte more");
    }
}

#[test]
fn names_parse_back() {
    assert_eq!(file_name(1_795_409_877_123_456_789, 42), "20261123T045757.123456789Z-0000000000000042.txn");
    for seq in [0, 1, 42, 9_999_999_999_999_999, u64::MAX] {
        for timestamp in [0, 1, 1_795_409_877_123_456_789, i64::MAX] {
            assert_eq!(seq_of_name(file_name(timestamp, seq).as_bytes()), Some(seq));
        }
    }
    for bad in [
        "",
        ".txn",
        "x.txn",
        "20261123T045757.123456789Z-42.txn",
        "20261123T045757.123456789Z-000000000000004x.txn",
    ] {
        assert_eq!(seq_of_name(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn names_sort_as_sequences_do() {
    let names: Vec<_> = (1..200u64).map(|s| file_name(1_795_409_877_999_999_900 + s as i64, s)).collect();
    assert!(names.is_sorted());
}

#[test]
fn file_lengths_are_few_and_fit() {
    let mut lengths = BTreeSet::new();
    let mut last = 0;
    let top = MAX_PAYLOAD + HEADER_LEN as u64;
    let mut len = 0;
    while len <= top {
        for len in len.saturating_sub(1)..=(len + 1).min(top) {
            let file = file_len_for(len);
            assert!(file >= len && file >= last && file.is_multiple_of(4096), "{len}: {file}");
            assert!(file <= 16384 || file - len <= file / 3, "{len}: {file} is too much");
            last = file;
            lengths.insert(file);
        }
        len += 4096;
    }
    assert!(lengths.len() <= 40, "{}", lengths.len());
}

/// The files under `tests/golden` were written once, by the first nasd: later ones read them.
#[test]
fn version_1_is_read_for_ever() {
    let [small, _] = samples();
    let id = FileId(FileId::first_of_epoch(3) + 7);
    let compressed = txn(&[Op::Write { id, offset: 0, data: &[b'x'; 3000] }]);
    for (name, want) in [("v1-small.hex", small), ("v1-lz4.hex", compressed)] {
        let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        let hex = std::fs::read_to_string(path).unwrap();
        let hex: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let mut bytes: Vec<u8> =
            hex.chunks(2).map(|c| u8::from_str_radix(std::str::from_utf8(c).unwrap(), 16).unwrap()).collect();
        // What the file holds behind these is zeros.
        bytes.resize(4096, 0);
        let got = Txn::from_file(bytes).unwrap();
        got.check_ops().unwrap();
        assert_eq!(got.payload().unwrap(), want.payload().unwrap());
        assert_eq!(got.header.position.seq, 42);
        assert_eq!(got.header.timestamp, 1_795_409_877_123_456_789);
        assert_eq!(got.header.prev, want.header.prev);
        // What is compressed, and how well, may change; without it the bytes are the same.
        if !got.header.lz4 {
            assert_eq!(got.bytes(), want.bytes());
        }
    }
}

// ---- arbitrary operations -----------------------------------------------------------------------------------

/// An operation that owns what it names.
#[derive(Debug, Clone)]
struct Fields {
    tag: u8,
    ids: [u64; 4],
    kind: u8,
    numbers: [u64; 3],
    names: [Vec<u8>; 2],
    data: Vec<u8>,
    nanos: [u32; 2],
}

impl Fields {
    fn op(&self) -> Op<'_> {
        let id = |n: usize| FileId(if matches!(self.ids[n], 0 | 2) { 1 } else { self.ids[n] });
        let kind = [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::Char, Kind::Block]
            [self.kind as usize % 7];
        let name = |n: usize| if is_entry_name(&self.names[n]) { &self.names[n][..] } else { b"n" };
        let n32 = |n: usize| self.numbers[n] as u32;
        match self.tag % 14 + 1 {
            1 => Op::Create {
                parent: id(0),
                id: id(1),
                kind,
                mode: n32(0),
                uid: n32(1),
                gid: n32(2),
                rdev: self.numbers[0],
                name: name(0),
                target: if kind == Kind::Symlink { name(1) } else { b"" },
            },
            2 => Op::Link { parent: id(0), id: id(1), name: name(0) },
            3 => Op::Remove { parent: id(0), id: id(1), name: name(0) },
            4 => Op::Rename { parent: id(0), new_parent: id(1), id: id(2), name: name(0), new_name: name(1) },
            5 => Op::Exchange {
                parent: id(0),
                id: id(1),
                other_parent: id(2),
                other_id: id(3),
                name: name(0),
                other_name: name(1),
            },
            6 => Op::Write { id: id(0), offset: self.numbers[0], data: &self.data },
            7 => Op::Truncate { id: id(0), size: self.numbers[0] },
            8 => Op::Allocate { id: id(0), mode: n32(0), offset: self.numbers[1], len: self.numbers[2] },
            9 => Op::Mode { id: id(0), mode: n32(0) },
            10 => Op::Owner { id: id(0), uid: n32(0), gid: n32(1) },
            11 => {
                let time = |n: usize| Time { secs: self.numbers[n] as i64, nanos: self.nanos[n] };
                Op::Times { id: id(0), atime: time(0), mtime: time(1) }
            }
            12 => Op::SetXattr { id: id(0), name: name(0), value: &self.data },
            13 => Op::RemoveXattr { id: id(0), name: name(0) },
            _ => Op::EpochStart { node: &self.names[0] },
        }
    }
}

fn fields() -> impl Strategy<Value = Fields> {
    let bytes = |n| proptest::collection::vec(any::<u8>(), 0..n);
    let nanos = 0u32..1_000_000_000;
    (
        any::<u8>(),
        any::<[u64; 4]>(),
        any::<u8>(),
        any::<[u64; 3]>(),
        [bytes(300), bytes(300)],
        bytes(3000),
        [nanos.clone(), nanos],
    )
        .prop_map(|(tag, ids, kind, numbers, names, data, nanos)| Fields {
            tag,
            ids,
            kind,
            numbers,
            names,
            data,
            nanos,
        })
}

/// Whatever it is, it is refused or read; never a panic, nor a large allocation.
fn decode(bytes: &[u8]) {
    let _ = Header::parse(bytes);
    Ops::new(bytes).for_each(drop);
    for t in [Txn::from_wire(bytes.to_vec()), Txn::from_file(bytes.to_vec())].into_iter().flatten() {
        let _ = t.payload();
        let _ = t.check_ops();
    }
}

proptest! {
    #![proptest_config(cases(500, FAILED))]

    #[test]
    fn operations_come_back(all in proptest::collection::vec(fields(), 0..20)) {
        let ops: Vec<Op<'_>> = all.iter().map(Fields::op).collect();
        let t = txn(&ops);
        let t = Txn::from_file(file_of(&t)).unwrap();
        t.check_ops().unwrap();
        let payload = t.payload().unwrap();
        let back: Vec<Op<'_>> = Ops::new(&payload).map(Result::unwrap).collect();
        prop_assert_eq!(back, ops);
    }

    #[test]
    fn anything_is_refused_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        decode(&bytes);
        // The same behind the first bytes of a transaction file.
        let mut headed = MAGIC.to_vec();
        headed.extend_from_slice(&[1, 0]);
        headed.extend_from_slice(&bytes);
        decode(&headed);
    }

    #[test]
    fn a_damaged_payload_is_refused_without_harm(
        all in proptest::collection::vec(fields(), 1..6), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        raw_len in any::<u64>(), ops in any::<u32>(), lz4 in any::<bool>(),
    ) {
        // Damage under a hash that is right, as only an authenticated peer can send it.
        let mut payload = Vec::new();
        for f in &all {
            f.op().encode(&mut payload);
        }
        let i = at.index(payload.len());
        payload[i] = byte;
        let t = Txn::seal(&seal(ops), &payload);
        let mut bytes = t.bytes().to_vec();
        let i = HEADER_LEN + at.index(bytes.len() - HEADER_LEN);
        bytes[i] = byte;
        if lz4 {
            bytes[10] |= 2;
            bytes[64..72].copy_from_slice(&raw_len.to_le_bytes());
        }
        rehash(&mut bytes);
        decode(&bytes);
    }
}

fn rehash(bytes: &mut [u8]) {
    let mut h = blake3::Hasher::new();
    h.update(&bytes[..120]).update(&bytes[HEADER_LEN..]);
    let hash = h.finalize();
    bytes[120..152].copy_from_slice(hash.as_bytes());
}

#[test]
fn a_small_file_that_promises_much_costs_little() {
    // The largest length that the format allows, from a few bytes.
    for raw_len in [MAX_PAYLOAD, MAX_PAYLOAD + 1, u64::MAX] {
        for field in [56, 64, 72] {
            let [_, t] = samples();
            let mut bytes = file_of(&t);
            bytes[field..field + 8].copy_from_slice(&raw_len.to_le_bytes());
            let end = t.bytes().len();
            rehash(&mut bytes[..end]);
            LARGEST.set(0);
            decode(&bytes);
            decode(&bytes[..end]);
            let largest = LARGEST.get();
            assert!(largest <= 64 << 20, "field {field} = {raw_len}: {largest} bytes at once");
        }
    }
}
