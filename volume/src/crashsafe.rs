//! fsync and rename: what makes a small file or a directory entry durable, in one place.

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Opens a directory for use as the base of `*at` calls and for [`sync_dir`].
pub fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Makes the entries of `dir` durable: creations, renames and removals that happened before the call.
pub fn sync_dir(dir: impl AsFd) -> Result<(), Errno> {
    fs::fsync(dir)
}

/// Replaces the file `name` in `dir` by `bytes`: after a crash it is wholly the old or wholly the new.
///
/// The order is what makes it so: contents durable first, then the rename, then the directory. When it returns
/// the new contents are durable.
pub fn write_atomic(dir: impl AsFd, name: &str, bytes: &[u8]) -> Result<(), Errno> {
    let temporary = format!("{name}.new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = fs::openat(&dir, temporary.as_str(), flags, Mode::from(0o600))?;
    write_all_at(&file, bytes, 0)?;
    fs::fsync(&file)?;
    fs::renameat(&dir, temporary.as_str(), &dir, name)?;
    sync_dir(&dir)
}

/// `pwrite(2)` until all is written.
pub fn write_all_at(file: impl AsFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&file, bytes, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                bytes = &bytes[n..];
                at += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// `pread(2)` until `buf` is full or the file ends; returns how much was read.
pub fn read_full_at(file: impl AsFd, buf: &mut [u8], at: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < buf.len() {
        match rustix::io::pread(&file, &mut buf[done..], at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Copies the content of a file into an empty one; what is zero stays a hole.
pub fn copy_all(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    let mut buf = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        let n = read_full_at(&from, &mut buf, at)?;
        if n == 0 {
            break;
        }
        if buf[..n].iter().any(|&b| b != 0) {
            write_all_at(&to, &buf[..n], at)?;
        }
        at += n as u64;
    }
    fs::ftruncate(&to, at)
}

/// The whole file `name` in `dir`.
pub fn read_file(dir: impl AsFd, name: &str) -> Result<Vec<u8>, Errno> {
    let file = fs::openat(&dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let len = fs::fstat(&file)?.st_size as usize;
    let mut bytes = vec![0; len];
    let n = read_full_at(&file, &mut bytes, 0)?;
    bytes.truncate(n);
    Ok(bytes)
}

/// Whether `name` exists in `dir`, not following links.
pub fn exists(dir: impl AsFd, name: &str) -> Result<bool, Errno> {
    match fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}
