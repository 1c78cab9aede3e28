//! Who is told what by a commit, and what is on the disk all the same.
#![allow(missing_docs, clippy::unwrap_used)]

use nasd_volume::commit::{Alone, Nobody};
use nasd_volume::{Caller, FileId, FsError, Volume};
use std::sync::Arc;

const ROOT: Caller = Caller { uid: 0, gid: 0 };

#[test]
fn who_has_ceased_to_be_primary_seals_and_tells_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let volume = Volume::create_at(dir.path()).unwrap();
    volume.set_replicator(Arc::new(Nobody));
    let (_, open) = volume.create(ROOT, FileId::ROOT, b"f", 0o600, 0, 0).unwrap();
    let write = |bytes: &[u8]| volume.write(&open, 0, bytes, false).unwrap();

    write(b"committed");
    let before = volume.log.tail().seq;
    assert_eq!(volume.commit_and_wait(), Err(FsError::Stopped));
    assert_eq!(volume.log.tail().seq, before + 1, "it is in the log for whoever looks for it there");
    assert_eq!(volume.commit_and_wait(), Err(FsError::Stopped), "also when nothing new is pending");

    write(b"sealed");
    assert_eq!(volume.seal(), Ok(()));
    assert_eq!((volume.log.tail().seq, volume.pending_bytes()), (before + 2, 0));
    assert_eq!(volume.commit_and_wait(), Err(FsError::Stopped));

    // The next term.
    volume.set_replicator(Arc::new(Alone));
    volume.begin_epoch(2);
    assert_eq!(volume.commit_and_wait(), Ok(()));
    volume.release(open);
}
