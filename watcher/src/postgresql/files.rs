//! Files that outlive a crash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::error::{Context, PostgresError};

/// Whose a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    /// The one of this file or directory.
    pub fn of(path: &Path) -> Result<Owner, PostgresError> {
        let meta = fs::metadata(path).with("looking at", path)?;
        Ok(Owner { uid: meta.uid(), gid: meta.gid() })
    }
}

/// Puts a file there, or other contents into it, so that after a crash it is the old one or the new one.
pub(super) fn write_durably(path: &Path, contents: &[u8], owner: Owner) -> Result<(), PostgresError> {
    let temporary = with_suffix(path, ".nasd-new");
    remove_file(&temporary)?;
    // The directory is the database's own, and whoever may write there must not lead us elsewhere: no link is followed.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .with("making", &temporary)?;
    fchown(&file, Some(owner.uid), Some(owner.gid)).with("giving to the database", &temporary)?;
    file.write_all(contents).and_then(|()| file.sync_all()).with("writing", &temporary)?;
    fs::rename(&temporary, path).with("replacing", path)?;
    sync_parent(path)
}

/// Removes a file; that there is none is as good.
pub(super) fn remove_file(path: &Path) -> Result<(), PostgresError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).with("removing", path),
        _ => Ok(()),
    }
}

/// Makes names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), PostgresError> {
    File::open(path).and_then(|dir| dir.sync_all()).with("syncing", path)
}

/// Makes the name of a file durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), PostgresError> {
    path.parent().map_or(Ok(()), sync_dir)
}

/// What is there, but None when nothing is.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, PostgresError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with("reading", path),
    }
}

/// The path with something behind its last name.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// For how long a second change may leave a file's time as it was: the kernel's clock for files ticks this slowly,
/// with room to spare.
const TICK: Duration = Duration::from_millis(30);

/// By what it is seen that a file has changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    seconds: i64,
    nanoseconds: i64,
    size: u64,
    inode: u64,
    /// It is so young that the next change might not be seen: what was read is not to be kept. No part of what is
    /// compared, since it says when we looked and nothing of the file.
    young: bool,
}

impl PartialEq for Stamp {
    fn eq(&self, other: &Stamp) -> bool {
        let parts = |stamp: &Stamp| (stamp.seconds, stamp.nanoseconds, stamp.size, stamp.inode);
        parts(self) == parts(other)
    }
}

impl Stamp {
    /// The file's, or None when there is none.
    pub fn of(path: &Path) -> Result<Option<Stamp>, PostgresError> {
        match fs::metadata(path) {
            Ok(meta) => {
                let age = meta.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
                Ok(Some(Stamp {
                    seconds: meta.mtime(),
                    nanoseconds: meta.mtime_nsec(),
                    size: meta.len(),
                    inode: meta.ino(),
                    young: age.is_none_or(|age| age < TICK),
                }))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with("looking at", path),
        }
    }

    /// Whether what is read now may be kept for as long as the stamp is the same.
    pub fn keeps(&self) -> bool {
        !self.young
    }

    /// When the file was last changed, in seconds since 1970.
    pub fn seconds(&self) -> i64 {
        self.seconds
    }
}
