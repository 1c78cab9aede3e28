//! A transaction's file in the log directory, as `.nasd/log/` shows it.
//!
//! The log overwrites aged files with later transactions. A file is the transaction's for as long as the log's index has
//! it; so whoever reads looks there afterwards, and what was read before is not another transaction's.

use std::fs::File;
use std::ops::RangeInclusive;

use fuser::Errno;
use nasd_volume::log::{Entry, Log};
use nasd_volume::{Volume, crashsafe};
use tracing::warn;

/// The transactions that can be read through the mount: each change is there before its transaction is.
pub(super) fn shown(volume: &Volume) -> RangeInclusive<u64> {
    1..=volume.applied().seq
}

/// The transaction of this name, if it is shown.
pub(super) fn named(volume: &Volume, name: &[u8]) -> Option<Entry> {
    let seq = nasd_volume::txn::seq_of_name(name)?;
    let entry = numbered(volume, seq)?;
    (entry.file_name().as_bytes() == name).then_some(entry)
}

/// The transaction of this number, if it is shown.
pub(super) fn numbered(volume: &Volume, seq: u64) -> Option<Entry> {
    volume.log.entry(seq).filter(|_| shown(volume).contains(&seq))
}

/// A transaction's file, open.
#[derive(Debug)]
pub(super) struct TxnFile {
    file: File,
    entry: Entry,
}

impl TxnFile {
    /// # Errors
    /// ESTALE if the log does not have it any more.
    pub(super) fn open(log: &Log, entry: Entry) -> Result<Self, Errno> {
        let path = log.dir().join(entry.file_name());
        let file = File::open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Errno::ESTALE,
            _ => {
                warn!("{}: {error}", path.display());
                Errno::EIO
            }
        })?;
        let txn = Self { file, entry };
        txn.is_still_in(log)?;
        Ok(txn)
    }

    /// # Errors
    /// ESTALE if the log does not have it any more: then nothing that was read means anything.
    pub(super) fn read(&self, log: &Log, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let count = crashsafe::read_full_at(&self.file, buffer, offset)
            .map_err(|error| Errno::from_i32(error.raw_os_error()))?;
        self.is_still_in(log)?;
        Ok(count)
    }

    /// A rewind may have put another one of the same number in its place.
    fn is_still_in(&self, log: &Log) -> Result<(), Errno> {
        let position = self.entry.position;
        let now = log.entry(position.seq).map(|entry| entry.position);
        if now == Some(position) { Ok(()) } else { Err(Errno::ESTALE) }
    }
}
