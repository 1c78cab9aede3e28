//! Copies of directories that are durable when they are there, and their removal.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown, symlink,
};
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::error::{Context, PostgresError};
use super::files::sync_dir;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    pub files: u64,
    pub bytes: u64,
}

/// Copies a directory to where nothing is, with owners and modes. All of it is durable afterwards but its name.
pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<Copied, PostgresError> {
    let mut copied = Copied::default();
    let mut dirs = Vec::new();
    for entry in WalkDir::new(from).sort_by_file_name() {
        let entry = entry.map_err(walk_error)?;
        let target = below(entry.path(), from, to);
        let meta = entry.metadata().map_err(walk_error)?;
        let (uid, gid) = (Some(meta.uid()), Some(meta.gid()));
        let mode = meta.mode() & 0o7777;
        if meta.is_dir() {
            DirBuilder::new().mode(0o700).create(&target).with("making", &target)?;
            lchown(&target, uid, gid).with("giving to its owner", &target)?;
            fs::set_permissions(&target, fs::Permissions::from_mode(mode))
                .with("setting the mode of", &target)?;
            dirs.push(target);
        } else if meta.is_file() {
            let mut source = File::open(entry.path()).with("reading", entry.path())?;
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&target)
                .with("making", &target)?;
            fchown(&file, uid, gid).with("giving to its owner", &target)?;
            file.set_permissions(fs::Permissions::from_mode(mode)).with("setting the mode of", &target)?;
            copied.bytes += io::copy(&mut source, &mut file).with("copying to", &target)?;
            file.sync_all().with("syncing", &target)?;
            copied.files += 1;
        } else if meta.is_symlink() {
            let link = fs::read_link(entry.path()).with("reading the link", entry.path())?;
            symlink(link, &target).with("making", &target)?;
            lchown(&target, uid, gid).with("giving to its owner", &target)?;
        } else {
            return Err(PostgresError::OddFile(entry.path().to_path_buf()));
        }
    }
    // When all names are there.
    dirs.iter().rev().try_for_each(|dir| sync_dir(dir))?;
    Ok(copied)
}

/// Whether both directories hold the same names with the same contents.
pub(super) fn same_tree(a: &Path, b: &Path) -> Result<bool, PostgresError> {
    let list = |root: &Path| {
        let entries = WalkDir::new(root).sort_by_file_name().into_iter();
        entries.collect::<Result<Vec<_>, _>>().map_err(walk_error)
    };
    let (in_a, in_b) = (list(a)?, list(b)?);
    if in_a.len() != in_b.len() {
        return Ok(false);
    }
    for (x, y) in in_a.iter().zip(&in_b) {
        let same = below(x.path(), a, b) == y.path()
            && x.file_type() == y.file_type()
            && (!x.file_type().is_file() || same_file(x.path(), y.path())?);
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

fn same_file(a: &Path, b: &Path) -> Result<bool, PostgresError> {
    let open = |path: &Path| File::open(path).with("reading", path);
    let (mut file_a, mut file_b) = (open(a)?, open(b)?);
    let size = |file: &File, path: &Path| file.metadata().map(|meta| meta.len()).with("reading", path);
    if size(&file_a, a)? != size(&file_b, b)? {
        return Ok(false);
    }
    let (mut block_a, mut block_b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let got_a = fill(&mut file_a, &mut block_a).with("reading", a)?;
        let got_b = fill(&mut file_b, &mut block_b).with("reading", b)?;
        if block_a[..got_a] != block_b[..got_b] {
            return Ok(false);
        }
        if got_a == 0 {
            return Ok(true);
        }
    }
}

/// Reads until the block is full or the file at its end.
fn fill(file: &mut File, block: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < block.len() {
        match file.read(&mut block[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

/// Whether there is nothing in it.
pub(super) fn is_empty_dir(path: &Path) -> Result<bool, PostgresError> {
    Ok(fs::read_dir(path).with("reading", path)?.next().is_none())
}

/// Empties a directory that stays.
pub(super) fn clear_dir(path: &Path) -> Result<(), PostgresError> {
    for entry in fs::read_dir(path).with("reading", path)? {
        let entry = entry.with("reading", path)?;
        let is_dir = entry.file_type().with("looking at", entry.path())?.is_dir();
        let removed = if is_dir { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        removed.with("removing", entry.path())?;
    }
    Ok(())
}

fn below(path: &Path, from: &Path, to: &Path) -> PathBuf {
    // The walk began at `from`, so what it gives is below.
    match path.strip_prefix(from) {
        Ok(rest) if rest.as_os_str().is_empty() => to.to_path_buf(),
        Ok(rest) => to.join(rest),
        Err(_) => to.to_path_buf(),
    }
}

fn walk_error(e: walkdir::Error) -> PostgresError {
    let path = e.path().unwrap_or(Path::new("(a directory)")).to_path_buf();
    // There is none only for a loop of links, and links are not followed.
    let source = e.into_io_error().unwrap_or_else(|| io::Error::other("a loop of links"));
    PostgresError::Io { what: "reading", path, source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_and_a_changed_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("archive_status")).unwrap();
        fs::write(from.join("000000010000000000000001"), vec![7; 3 << 20]).unwrap();
        fs::write(from.join("archive_status/x"), "").unwrap();
        fs::set_permissions(from.join("archive_status"), fs::Permissions::from_mode(0o750)).unwrap();
        symlink("nowhere", from.join("link")).unwrap();
        assert_eq!(copy_tree(&from, &to).unwrap(), Copied { files: 2, bytes: 3 << 20 });
        assert!(same_tree(&from, &to).unwrap());
        assert_eq!(fs::metadata(to.join("archive_status")).unwrap().mode() & 0o7777, 0o750);
        assert!(copy_tree(&from, &to).is_err(), "something is there");

        let mut other = vec![7; 3 << 20];
        other[2 << 20] = 8;
        fs::write(to.join("000000010000000000000001"), other).unwrap();
        assert!(!same_tree(&from, &to).unwrap());
        clear_dir(&to).unwrap();
        assert!(is_empty_dir(&to).unwrap());
        assert!(!same_tree(&from, &to).unwrap());
    }
}
