//! Writing one transaction file so that it is durable, with as few writes to the disk as the filesystem allows.
//!
//! Overwriting blocks that a file has already needs two things of the disk: the bytes, and a flush of its cache.
//! `fdatasync` of that file may do more. On ext4 without a journal, for example, it also writes the block of the inode
//! (whose modification time changed) and the directory's (in which it was renamed), one after the other: three writes and
//! three waits instead of one. Nothing of that is needed to find the transaction again, so where it is safe ([`InPlace`])
//! the bytes go straight to the disk (`O_DIRECT`), and the flush is asked for through another file that has nothing of its
//! own to write.

use crate::crashsafe;
use crate::txn::Txn;
use rustix::fs::{self, AtFlags, StatxFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files of the log are whole numbers of these.
const PAGE: usize = 4096;
static ZEROS: [u8; PAGE] = [0; PAGE];

/// The directory, beside `spare/`, of the file through which a flush is asked for.
const FLUSH_DIR: &str = "flush";
/// Inodes that may share a block on the disk: 4096 bytes, 128 each.
const NEIGHBOURS: u64 = 32;

/// Files to make in search of such a block.
const MADE_AT_MOST: u64 = 16 * NEIGHBOURS;

/// ext2, ext3 and ext4: statfs(2).
const EXT_MAGIC: u64 = 0xEF53;

/// Blocks of the log's files can be overwritten in place, and this file's fdatasync flushes the disk.
///
/// Where that is so:
/// * The filesystem is ext4, which overwrites written blocks where they are. Not one that may put them elsewhere, where
///   the new place is metadata: btrfs always, XFS after a `cp --reflink` of the log. There a plain `fdatasync` is right.
/// * `statx` says that direct I/O is direct: with `data=journal` or encryption it is buffered under another name.
#[derive(Debug)]
pub(crate) struct InPlace {
    flush: File,
}

impl InPlace {
    /// Finds out; makes the flush file if need be. `None`: transactions are written with `fdatasync`.
    pub(crate) fn probe(state_dir: &Path) -> std::io::Result<Option<InPlace>> {
        if fs::statfs(state_dir)?.f_type as u64 != EXT_MAGIC {
            return Ok(None);
        }
        let flush = flush_file(state_dir)?;
        // From here on it is clean and stays so.
        flush.sync_all()?;
        let direct = fs::statx(&flush, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
        let aligned = |n: u32| n > 0 && PAGE.is_multiple_of(n as usize);
        let fit = direct.stx_mask & StatxFlags::DIOALIGN.bits() != 0
            && aligned(direct.stx_dio_mem_align)
            && aligned(direct.stx_dio_offset_align);
        Ok(fit.then_some(InPlace { flush }))
    }
}

/// A file that nobody ever changes, and whose inode shares its block on the disk with others of that kind only: ext4
/// without a journal writes that block with each fdatasync if any inode in it has changed.
fn flush_file(state_dir: &Path) -> std::io::Result<File> {
    let dir = state_dir.join(FLUSH_DIR);
    std::fs::create_dir_all(&dir)?;
    let mut files = inodes(&dir)?;
    // Mostly the first files lie together; where many were removed before, later ones do.
    let mut made = 0;
    while whole_block(&files).is_none() && made < MADE_AT_MOST {
        for n in made..made + 2 * NEIGHBOURS {
            File::create(dir.join(n.to_string()))?;
        }
        made += 2 * NEIGHBOURS;
        files = inodes(&dir)?;
    }
    // Among inodes that do not lie together any one will do: it is only slower.
    let any = files.keys().next().map(|&inode| block_of(inode));
    let block = whole_block(&files).or(any);
    let (ours, rest): (Vec<_>, Vec<_>) =
        files.iter().partition(|(inode, _)| Some(block_of(**inode)) == block);
    for (_, path) in rest {
        std::fs::remove_file(path)?;
    }
    File::open(ours.first().map_or(dir.as_path(), |(_, path)| path.as_path()))
}

fn inodes(dir: &Path) -> std::io::Result<BTreeMap<u64, PathBuf>> {
    std::fs::read_dir(dir)?.map(|entry| entry.map(|e| (e.ino(), e.path()))).collect()
}

/// Inodes are numbered from 1, in the order in which they lie on the disk.
fn block_of(inode: u64) -> u64 {
    inode.saturating_sub(1) / NEIGHBOURS
}

fn whole_block(files: &BTreeMap<u64, PathBuf>) -> Option<u64> {
    let mut of_block: BTreeMap<u64, u64> = BTreeMap::new();
    for &inode in files.keys() {
        *of_block.entry(block_of(inode)).or_default() += 1;
    }
    of_block.into_iter().find(|&(_, n)| n == NEIGHBOURS).map(|(block, _)| block)
}

/// A file that the next transaction is written to.
#[derive(Debug)]
pub struct Slot {
    pub(crate) file: OwnedFd,
    pub(crate) name: String,
    pub(crate) len: u64,
    /// Set if all its blocks have been written and made durable before, and `file` is open for direct I/O.
    pub(crate) in_place: Option<Arc<InPlace>>,
}

impl Slot {
    /// Writes the transaction with its padding and makes it durable.
    ///
    /// # Errors
    /// After an error nothing is known of what is on the disk: the caller must not acknowledge anything any more.
    pub fn write_synced(&self, txn: &Txn) -> Result<(), Errno> {
        self.write(txn)?;
        Slot::sync([self])
    }

    /// Writes the transaction with its padding.
    ///
    /// # Errors
    /// As [`Slot::write_synced`].
    pub(crate) fn write(&self, txn: &Txn) -> Result<(), Errno> {
        match &self.in_place {
            Some(_) => self.write_direct(txn.bytes()),
            None => self.write_buffered(txn.bytes()),
        }
    }

    /// Makes what was written to all of them durable, with one flush for those that are overwritten in place.
    ///
    /// # Errors
    /// As [`Slot::write_synced`].
    pub(crate) fn sync<'a>(slots: impl IntoIterator<Item = &'a Slot>) -> Result<(), Errno> {
        // The order matters: the flush covers what the disk had taken before it.
        let mut flush = None;
        for slot in slots {
            match &slot.in_place {
                Some(disk) => flush = Some(disk),
                None => fs::fdatasync(&slot.file)?,
            }
        }
        flush.map_or(Ok(()), |disk| fs::fdatasync(&disk.flush))
    }

    fn write_direct(&self, bytes: &[u8]) -> Result<(), Errno> {
        let len = self.len as usize;
        let mut buf = vec![0; len + PAGE];
        let from = buf.as_ptr().align_offset(PAGE);
        let page = buf.get_mut(from..from + len).ok_or(Errno::INVAL)?;
        page.get_mut(..bytes.len()).ok_or(Errno::FBIG)?.copy_from_slice(bytes);
        crashsafe::write_all_at(&self.file, page, 0)
    }

    fn write_buffered(&self, bytes: &[u8]) -> Result<(), Errno> {
        let mut iov = vec![IoSlice::new(bytes)];
        let mut pad = self.len - bytes.len() as u64;
        while pad > 0 && iov.len() < 512 {
            let n = pad.min(PAGE as u64);
            iov.push(IoSlice::new(&ZEROS[..n as usize]));
            pad -= n;
        }
        let mut done = rustix::io::pwritev(&self.file, &iov, 0)? as u64;
        if done < bytes.len() as u64 {
            crashsafe::write_all_at(&self.file, &bytes[done as usize..], done)?;
            done = bytes.len() as u64;
        }
        while done < self.len {
            let n = (self.len - done).min(PAGE as u64);
            crashsafe::write_all_at(&self.file, &ZEROS[..n as usize], done)?;
            done += n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Position, VolumeId};
    use crate::log::{Log, Retention};
    use crate::txn::Seal;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    fn write(log: &Log, n: u64) -> Result<bool, Box<dyn std::error::Error>> {
        let seal = Seal {
            volume: VolumeId([7; 16]),
            prev: log.tail(),
            epoch: 1,
            timestamp: i64::try_from(n)? * 10 + log.tail_timestamp(),
            continues: false,
            converge: false,
            ops: 0,
        };
        let txn = Arc::new(Txn::seal(&seal, &[]));
        let slot = log.slot(txn.header.file_len)?;
        let in_place = slot.in_place.is_some();
        slot.write_synced(&txn)?;
        log.publish(slot, txn)?;
        Ok(in_place)
    }

    /// Only blocks that this process knows to be on the disk are overwritten in place: not those of a new file, nor what
    /// a start found, of which a crash may have lost the allocation.
    #[test]
    fn in_place_only_what_is_known_to_be_there() -> Outcome {
        let dir = tempfile::tempdir()?;
        let (log, _) = Log::open(dir.path(), VolumeId([7; 16]), Position::genesis(VolumeId([7; 16])))?;
        if InPlace::probe(dir.path())?.is_none() {
            println!(
                "skipped: {} is not on ext4, where blocks are overwritten in place",
                dir.path().display()
            );
            return Ok(());
        }
        assert!(!write(&log, 1)?, "a new file");
        log.stock()?;
        for n in 2..100 {
            assert!(write(&log, n)?, "a spare made here");
        }
        // Everything aged: what is recycled was durable.
        let all = Retention { age: 0, bytes: 0, files: 0 };
        log.prune(&all, i64::MAX, log.tail().seq, u64::MAX, u64::MAX)?;
        assert!(write(&log, 100)?);
        let tail = log.tail();
        drop(log);

        // All of them lie beside each other again.
        let (log, _) = Log::open(dir.path(), VolumeId([7; 16]), tail)?;
        log.prune(&all, i64::MAX, tail.seq - 1, u64::MAX, u64::MAX)?;
        assert_eq!(
            log.read(tail.seq)?.header.position,
            tail,
            "what went around the page cache is read through it"
        );
        log.stock()?;
        // The spares that a start finds are taken last: those made since are at the top.
        let recovered = log.stats().spare_files;
        let in_place = (0..recovered).map(|n| write(&log, 101 + n)).collect::<Result<Vec<bool>, _>>()?;
        assert!(in_place.contains(&false), "spares of an earlier run");
        Ok(())
    }

    /// Without a journal a flush writes the block that holds the file's inode, if it has changed.
    #[test]
    fn nobody_shares_the_block_of_the_flush_file() -> Outcome {
        let dir = tempfile::tempdir()?;
        let first = flush_file(dir.path())?;
        let files = inodes(&dir.path().join(FLUSH_DIR))?;
        let Some(block) = whole_block(&files) else {
            println!("skipped: new inodes do not lie together here");
            return Ok(());
        };
        assert_eq!(files.len() as u64, NEIGHBOURS);
        assert_eq!(block_of(fs::fstat(&first)?.st_ino), block);
        // Found again, not made again.
        flush_file(dir.path())?;
        assert_eq!(inodes(&dir.path().join(FLUSH_DIR))?, files);
        Ok(())
    }
}
