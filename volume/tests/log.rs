//! The log directory: what is appended is there after any restart, and what does not belong to the chain never is.
#![allow(missing_docs, clippy::unwrap_used)]

use nasd_volume::log::{Log, LogError, Recovered, Retention};
use nasd_volume::op::Op;
use nasd_volume::txn::{Seal, Txn, file_name};
use nasd_volume::{FileId, Position, VolumeId};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const VOLUME: VolumeId = VolumeId(*b"the volume's id.");

fn open(dir: &Path, checkpoint: Position) -> (Log, Recovered) {
    Log::open(dir, VOLUME, checkpoint).unwrap()
}

fn genesis() -> Position {
    Position::genesis(VOLUME)
}

fn txn(volume: VolumeId, prev: Position, epoch: u64, len: usize) -> Txn {
    let mut data = vec![0; len];
    // Not compressible: the file's length follows.
    blake3::Hasher::new().update(&prev.seq.to_le_bytes()).finalize_xof().fill(&mut data);
    let mut payload = Vec::new();
    Op::Write { id: FileId(9), offset: 0, data: &data }.encode(&mut payload);
    let timestamp = 1_795_409_877_000_000_000 + prev.seq as i64;
    Txn::seal(&Seal { volume, prev, epoch, timestamp, continues: false, converge: false, ops: 1 }, &payload)
}

fn append(log: &Log, len: usize) -> Arc<Txn> {
    let t = Arc::new(txn(VOLUME, log.tail(), 1, len));
    log.check_next(&t.header).unwrap();
    let slot = log.slot(t.header.file_len).unwrap();
    slot.write_synced(&t).unwrap();
    log.publish(slot, Arc::clone(&t)).unwrap();
    t
}

/// A log of ten with files of several lengths.
fn ten() -> (tempfile::TempDir, Vec<Arc<Txn>>) {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), genesis());
    let txns = (0..10).map(|i| append(&log, [100, 5000, 9000][i % 3])).collect();
    (dir, txns)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn path(dir: &Path, t: &Txn) -> PathBuf {
    dir.join("log").join(t.header.file_name())
}

/// Transactions 1..=n are there and readable, in order, and nothing else is.
fn holds(dir: &Path, log: &Log, txns: &[Arc<Txn>]) {
    assert_eq!(log.tail(), txns.last().map_or(genesis(), |t| t.header.position));
    for t in txns {
        let p = t.header.position;
        assert_eq!(log.entry(p.seq).unwrap().position, p);
        assert_eq!(log.position(p.seq), Some(p));
        assert_eq!(log.read(p.seq).unwrap().bytes(), t.bytes());
        assert_eq!(log.path_of(p.seq).unwrap(), path(dir, t));
    }
    let want: Vec<_> = txns.iter().map(|t| t.header.file_name()).collect();
    assert_eq!(names(&dir.join("log")), want);
    assert_eq!(log.stats().files, txns.len() as u64);
    assert_eq!(log.stats().bytes, txns.iter().map(|t| t.header.file_len).sum::<u64>());
}

const NOTHING: Retention = Retention { age: 0, bytes: 0, files: 0 };

#[test]
fn what_is_appended_is_there_after_a_restart_from_any_checkpoint() {
    let (dir, txns) = ten();
    for checkpoint in std::iter::once(genesis()).chain(txns.iter().map(|t| t.header.position)) {
        let (log, recovered) = open(dir.path(), checkpoint);
        assert!(recovered.set_aside.is_empty());
        holds(dir.path(), &log, &txns);
        assert_eq!(log.tail_timestamp(), txns[9].header.timestamp);
        assert_eq!(log.positions().len(), 11);
    }
    let (log, _) = open(dir.path(), genesis());
    assert!(log.read(11).is_err() && log.entry(0).is_none() && log.position(0).is_some());
    assert_eq!(log.behind(10), (0, None));
    assert_eq!(log.behind(8).1, Some(txns[8].header.timestamp));
    assert_eq!(log.behind(8).0, txns[8..].iter().map(|t| t.bytes().len() as u64).sum::<u64>());
}

#[test]
fn only_the_next_is_taken() {
    let (dir, txns) = ten();
    let (log, _) = open(dir.path(), genesis());
    let tail = log.tail();
    let other = VolumeId(*b"another volume's");
    let refused = [
        txns[9].header,
        txns[3].header,
        txn(VOLUME, Position { seq: 11, ..tail }, 1, 10).header,
        txn(VOLUME, Position { hash: genesis().hash, ..tail }, 1, 10).header,
        txn(VOLUME, tail, 0, 10).header,
        txn(other, tail, 1, 10).header,
    ];
    for h in refused {
        assert!(matches!(log.check_next(&h), Err(LogError::NotNext { .. })), "{h:?}");
    }
    log.check_next(&txn(VOLUME, tail, 2, 10).header).unwrap();
}

#[test]
fn aged_files_are_overwritten_by_later_ones() {
    let (dir, txns) = ten();
    let (log, _) = open(dir.path(), genesis());
    // Nothing behind the checkpoint goes, by no limit.
    assert_eq!(log.prune(&NOTHING, i64::MAX, 0, 100, u64::MAX).unwrap(), 0);
    // By age, nothing that a peer lacks.
    let age = Retention { age: 0, bytes: u64::MAX, files: u64::MAX };
    assert_eq!(log.prune(&age, i64::MAX, 10, 3, u64::MAX).unwrap(), 2);
    // By number and bytes, even that.
    let files = Retention { age: i64::MAX, bytes: u64::MAX, files: 6 };
    assert_eq!(log.prune(&files, 0, 10, 0, u64::MAX).unwrap(), 2);
    let bytes = Retention { age: i64::MAX, bytes: log.stats().bytes - 1, files: u64::MAX };
    assert_eq!(log.prune(&bytes, 0, 10, 0, u64::MAX).unwrap(), 1);
    assert_eq!(log.stats().spare_files, 5);
    assert!(log.entry(5).is_none());
    assert_eq!(
        log.position(5).map(|p| p.hash),
        Some(txns[4].header.position.hash),
        "the one before the oldest"
    );
    let inodes =
        |dir: &Path| -> Vec<u64> { std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().ino()).collect() };
    let spare = inodes(&dir.path().join("spare"));
    let new = append(&log, 100);
    let ino = std::fs::metadata(path(dir.path(), &new)).unwrap().ino();
    assert!(spare.contains(&ino), "a spare was taken");
    assert_eq!(log.stats().spare_files, 4);
    let mut all = txns[5..].to_vec();
    all.push(new);
    holds(dir.path(), &log, &all);
    drop(log);
    // A spare that still holds its old transaction comes back at a restart: the chain says that it belongs to it.
    let (log, recovered) = open(dir.path(), txns[9].header.position);
    assert!(recovered.set_aside.is_empty());
    holds(dir.path(), &log, &[txns[4..5].to_vec(), all].concat());
}

#[test]
fn spares_of_an_earlier_process_with_the_same_id_do_not_collide() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), genesis());
    let mut txns: Vec<_> = (0..40).map(|_| append(&log, 100)).collect();
    log.prune(&NOTHING, i64::MAX, 35, 100, u64::MAX).unwrap();
    txns.drain(..35);
    log.top_up().unwrap();
    drop(log);
    for name in names(&dir.path().join("spare")) {
        std::fs::write(dir.path().join("spare").join(name), [0; 4096]).unwrap();
    }
    let spares = names(&dir.path().join("spare")).len() as u64;
    assert!(spares >= 35);
    for _ in 0..5 {
        let (log, _) = open(dir.path(), txns[0].header.position);
        assert_eq!(log.stats().spare_files, spares, "none was lost");
        assert_eq!(names(&dir.path().join("spare")).len() as u64, spares);
        log.top_up().unwrap();
        // New ones of another length, beside the old ones.
        for _ in 0..3 {
            drop(log.slot(40960).unwrap());
        }
        log.top_up().unwrap();
        drop(log);
        for name in names(&dir.path().join("spare")).iter().filter(|n| n.starts_with("40960-")) {
            std::fs::remove_file(dir.path().join("spare").join(name)).unwrap();
        }
    }
}

#[test]
fn a_torn_end_is_set_aside() {
    for (cut, what) in [(true, "shorter"), (false, "not all written")] {
        let (dir, txns) = ten();
        let last = path(dir.path(), &txns[9]);
        let mut bytes = std::fs::read(&last).unwrap();
        if cut {
            bytes.truncate(200);
        } else {
            bytes[180..].fill(0);
        }
        std::fs::write(&last, bytes).unwrap();
        let (log, recovered) = open(dir.path(), txns[4].header.position);
        assert_eq!(recovered.set_aside, [txns[9].header.file_name()], "{what}");
        holds(dir.path(), &log, &txns[..9]);
        assert_eq!(names(&dir.path().join("diverged")), [txns[9].header.file_name()]);
        // And the log goes on in its place.
        append(&log, 100);
        assert_eq!(log.tail().seq, 10);
    }
}

#[test]
fn a_file_whose_rename_was_lost_is_found() {
    for name in ["4096-0.1", "anything"] {
        let (dir, txns) = ten();
        for t in &txns[8..] {
            let to = dir.path().join("spare").join(format!("{name}{}", t.header.position.seq));
            std::fs::rename(path(dir.path(), t), to).unwrap();
        }
        let (log, recovered) = open(dir.path(), txns[4].header.position);
        assert!(recovered.set_aside.is_empty());
        holds(dir.path(), &log, &txns);
        assert!(names(&dir.path().join("spare")).is_empty());
    }
}

#[test]
fn a_recycled_file_under_its_old_name_is_found() {
    let (dir, txns) = ten();
    // The file of transaction 1 was pruned, written with 10, and neither rename reached the disk.
    std::fs::remove_file(path(dir.path(), &txns[0])).unwrap();
    std::fs::rename(path(dir.path(), &txns[9]), path(dir.path(), &txns[0])).unwrap();
    let (log, recovered) = open(dir.path(), txns[4].header.position);
    assert!(recovered.set_aside.is_empty());
    holds(dir.path(), &log, &txns[1..]);
}

#[test]
fn a_recycled_file_that_is_half_written_under_its_old_name_is_a_spare() {
    let (dir, txns) = ten();
    let first = path(dir.path(), &txns[0]);
    let mut bytes = std::fs::read(&first).unwrap();
    bytes[..160].copy_from_slice(&txn(VOLUME, txns[9].header.position, 1, 100).bytes()[..160]);
    std::fs::write(&first, bytes).unwrap();
    let (log, recovered) = open(dir.path(), txns[4].header.position);
    assert!(recovered.set_aside.is_empty());
    holds(dir.path(), &log, &txns[1..]);
    assert_eq!(log.stats().spare_files, 1);
}

#[test]
fn a_hole_ends_the_chain() {
    let (dir, txns) = ten();
    std::fs::remove_file(path(dir.path(), &txns[6])).unwrap();
    let (log, recovered) = open(dir.path(), txns[4].header.position);
    let mut aside = recovered.set_aside;
    aside.sort();
    assert_eq!(aside, [7, 8, 9].map(|i| txns[i].header.file_name()), "what follows belongs to nothing");
    holds(dir.path(), &log, &txns[..6]);
    assert_eq!(names(&dir.path().join("diverged")), aside);
}

#[test]
fn a_foreign_file_is_set_aside() {
    let (dir, txns) = ten();
    let other = VolumeId(*b"another volume's");
    // It would continue the chain if it were of this volume.
    let foreign = txn(other, txns[9].header.position, 1, 100);
    let mut bytes = foreign.bytes().to_vec();
    bytes.resize(foreign.header.file_len as usize, 0);
    std::fs::write(path(dir.path(), &foreign), &bytes).unwrap();
    std::fs::write(dir.path().join("log/notes.txt"), "an operator's").unwrap();
    let (log, recovered) = open(dir.path(), txns[4].header.position);
    assert_eq!(recovered.set_aside.len(), 2);
    holds(dir.path(), &log, &txns);
    assert_eq!(std::fs::read(dir.path().join("diverged/notes.txt")).unwrap(), b"an operator's");
}

#[test]
fn a_directory_in_the_log_does_no_harm() {
    let (dir, txns) = ten();
    std::fs::create_dir(dir.path().join("log/lost+found")).unwrap();
    std::fs::create_dir(dir.path().join("spare/lost+found")).unwrap();
    let (log, _) = open(dir.path(), txns[4].header.position);
    assert_eq!(log.tail(), txns[9].header.position);
}

#[test]
fn a_damaged_file_before_the_checkpoint_is_found_when_it_is_read() {
    for at in [48, 60, 90, 155] {
        let (dir, txns) = ten();
        let file = path(dir.path(), &txns[2]);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[at] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let (log, _) = open(dir.path(), txns[4].header.position);
        assert_eq!(log.tail(), txns[9].header.position, "byte {at}");
        assert!(log.read(3).is_err(), "byte {at}");
        for seq in 4..=10 {
            log.read(seq).unwrap();
        }
    }
}

#[test]
fn a_wrong_number_in_an_old_header_does_not_shift_the_others() {
    // The headers before the checkpoint are not verified at the start: this one says another number.
    for seq in [0u64, 1, 8, 700] {
        let (dir, txns) = ten();
        for t in &txns[..2] {
            std::fs::remove_file(path(dir.path(), t)).unwrap();
        }
        let file = path(dir.path(), &txns[2]);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[40..48].copy_from_slice(&seq.to_le_bytes());
        std::fs::write(&file, bytes).unwrap();
        let (log, _) = open(dir.path(), txns[4].header.position);
        for t in &txns[3..] {
            assert_eq!(log.read(t.header.position.seq).unwrap().bytes(), t.bytes(), "with {seq}");
        }
        assert!(log.read(3).is_err());
        assert_eq!(
            log.prune(&NOTHING, i64::MAX, 4, 100, u64::MAX).unwrap(),
            1,
            "it is in no one's way: only 4 goes"
        );
    }
}

#[test]
fn of_two_that_follow_only_the_whole_one_counts() {
    let (dir, txns) = ten();
    // A torn copy of transaction 10 lies in front of the whole one, in any order of the directory.
    let bytes = std::fs::read(path(dir.path(), &txns[9])).unwrap();
    let mut torn = bytes.clone();
    torn[170] ^= 1;
    for i in 0..5 {
        std::fs::write(dir.path().join(format!("spare/4096-{i}.7")), &torn).unwrap();
    }
    let (log, _) = open(dir.path(), txns[4].header.position);
    holds(dir.path(), &log, &txns);
}

#[test]
fn what_is_given_up_is_kept_under_diverged() {
    let (dir, txns) = ten();
    let (log, _) = open(dir.path(), genesis());
    assert_eq!(log.set_aside_after(7).unwrap(), 3);
    holds(dir.path(), &log, &txns[..7]);
    assert_eq!(names(&dir.path().join("diverged")), [7, 8, 9].map(|i| txns[i].header.file_name()));
    assert_eq!(log.set_aside_after(7).unwrap(), 0);
    // Another history from there, with the same numbers.
    let t = Arc::new(txn(VOLUME, log.tail(), 2, 200));
    let slot = log.slot(t.header.file_len).unwrap();
    slot.write_synced(&t).unwrap();
    log.publish(slot, Arc::clone(&t)).unwrap();
    drop(log);
    let (log, _) = open(dir.path(), txns[4].header.position);
    let mut all = txns[..7].to_vec();
    all.push(t);
    holds(dir.path(), &log, &all);
}

#[test]
fn a_second_set_aside_does_not_overwrite_the_first() {
    let (dir, txns) = ten();
    // Both have the same number and timestamp, and so the same name.
    for round in 0..3 {
        let (log, _) = open(dir.path(), txns[8].header.position);
        log.set_aside_after(9).unwrap();
        assert_eq!(names(&dir.path().join("diverged")).len(), round + 1);
        append(&log, 300 + round);
    }
}

#[test]
fn a_restart_elsewhere() {
    let (dir, txns) = ten();
    let (log, _) = open(dir.path(), genesis());
    let base = Position { epoch: 5, seq: 1000, hash: txns[0].header.position.hash };
    log.restart_at(base, 1_900_000_000_000_000_000).unwrap();
    assert_eq!((log.tail(), log.stats().files), (base, 0));
    assert_eq!(names(&dir.path().join("diverged")).len(), 10);
    assert!(log.check_next(&txn(VOLUME, base, 5, 10).header).is_err(), "its time is before the base's");
    assert_eq!(log.positions(), [(1000, base.hash)]);
}

#[test]
fn forgotten_ones_are_spares() {
    let (dir, txns) = ten();
    let (log, _) = open(dir.path(), genesis());
    log.forget_up_to(4).unwrap();
    holds(dir.path(), &log, &txns[4..]);
    assert_eq!(log.stats().spare_files, 4);
}

#[test]
fn the_name_is_the_header() {
    let (dir, txns) = ten();
    let h = txns[4].header;
    assert_eq!(h.file_name(), file_name(h.timestamp, h.position.seq));
    let t = nasd_volume::log::read_txn_file(&path(dir.path(), &txns[4])).unwrap();
    assert_eq!(t.header, h);
}
