//! What a directory holds, for comparing two: an oracle that knows nothing of nasd.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// One file, as a comparison sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Bytes, of a regular file.
    pub content: Vec<u8>,
    /// Of a symbolic link.
    pub target: Vec<u8>,
    /// Of a device.
    pub rdev: u64,
    /// Seconds and nanoseconds; of a symbolic link and of a special file as well.
    pub mtime: (i64, i64),
    /// Extended attributes, without nasd's own.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first of its names in this snapshot: equal for hard links of one file.
    pub same_as: Vec<u8>,
}

/// Everything below `root`, by path.
pub fn snapshot(root: &Path) -> BTreeMap<Vec<u8>, Entry> {
    let mut all = BTreeMap::new();
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for e in walkdir::WalkDir::new(root).sort_by_file_name() {
        let e = e.unwrap();
        let path = e.path().strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let m = e.path().symlink_metadata().unwrap();
        let t = m.file_type();
        let same_as = first.entry(m.ino()).or_insert_with(|| path.clone()).clone();
        let device = t.is_char_device() || t.is_block_device();
        let entry = Entry {
            mode: m.mode(),
            owner: (m.uid(), m.gid()),
            content: if t.is_file() { std::fs::read(e.path()).unwrap() } else { Vec::new() },
            target: if t.is_symlink() {
                std::fs::read_link(e.path()).unwrap().as_os_str().as_bytes().to_vec()
            } else {
                Vec::new()
            },
            rdev: if device { m.rdev() } else { 0 },
            mtime: (m.mtime(), m.mtime_nsec()),
            xattrs: xattrs(e.path()),
            same_as,
        };
        all.insert(path, entry);
    }
    all
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let Ok(n) = rustix::fs::llistxattr(path, &mut names) else { return BTreeMap::new() };
    names.truncate(n);
    let mut all = BTreeMap::new();
    for name in names.split(|&b| b == 0).filter(|n| !n.is_empty() && *n != b"trusted.nasd.id") {
        let mut value = vec![0; 65536];
        let n = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value).unwrap();
        value.truncate(n);
        all.insert(name.to_vec(), value);
    }
    all
}

/// Panics with the first differences of two trees.
pub fn assert_equal(what: &str, left: &Path, right: &Path) {
    let what = format!("{what}: {} and {}", left.display(), right.display());
    assert_same(&what, &snapshot(left), &snapshot(right));
}

/// Panics with the first differences of two snapshots.
pub fn assert_same(what: &str, l: &BTreeMap<Vec<u8>, Entry>, r: &BTreeMap<Vec<u8>, Entry>) {
    if l == r {
        return;
    }
    let mut lines = Vec::new();
    let text = |p: &[u8]| String::from_utf8_lossy(p).into_owned();
    for path in l.keys().chain(r.keys().filter(|p| !l.contains_key(*p))) {
        match (l.get(path), r.get(path)) {
            (Some(a), Some(b)) if a != b => {
                let content = if a.content == b.content { "same content" } else { "other content" };
                let short = |e: &Entry| Entry { content: Vec::new(), ..e.clone() };
                let sizes = (a.content.len(), b.content.len());
                lines.push(format!(
                    "{}: {content} {sizes:?}\n  {:?}\n  {:?}",
                    text(path),
                    short(a),
                    short(b)
                ));
            }
            (Some(_), None) => lines.push(format!("{}: only left", text(path))),
            (None, Some(_)) => lines.push(format!("{}: only right", text(path))),
            _ => {}
        }
        if lines.len() >= 10 {
            break;
        }
    }
    panic!("{what} differ:\n{}", lines.join("\n"));
}
