//! What the tests of this crate share: random operations, a replica, and a walker that knows nothing of nasd.

// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::format_push_string)]

use nasd_volume::state::StateFile;
use nasd_volume::txn::Txn;
use nasd_volume::volume::{OpenError, Opened, lock_state_dir, new_state};
use nasd_volume::{
    Access, Caller, FileId, Hold, Kind, OpenFile, Role, SetAttr, SetTime, Time, Volume, VolumeId,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Test cases: a few by default, many with `NASD_TEST_LONG=1` (or that many times as many).
/// `failed` is the file that failures are kept in.
pub fn cases(n: u32, failed: &'static str) -> ProptestConfig {
    let factor = match std::env::var("NASD_TEST_LONG") {
        Ok(v) => v.parse::<u32>().map_or(20, |f| if f <= 1 { 20 } else { f }),
        Err(_) => 1,
    };
    let regressions = Box::new(proptest::test_runner::FileFailurePersistence::Direct(failed));
    ProptestConfig {
        cases: n * factor,
        max_shrink_iters: 3000,
        failure_persistence: Some(regressions),
        ..ProptestConfig::default()
    }
}

// ---- the walker ---------------------------------------------------------------------------------------------

/// What one name stands for.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    pub kind: char,
    pub mode: u32,
    pub owner: (u32, u32),
    pub nlink: u64,
    pub mtime: (i64, i64),
    pub rdev: u64,
    pub target: Option<PathBuf>,
    /// The first path of the same inode.
    pub same_as: PathBuf,
    /// `trusted.nasd.id` among them.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    pub content: Vec<u8>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hash = blake3::hash(&self.content).to_hex();
        write!(
            f,
            "{} {:o} {:?} nlink {} mtime {:?} rdev {} -> {:?} same as {:?} size {} hash {} {:?}",
            self.kind,
            self.mode,
            self.owner,
            self.nlink,
            self.mtime,
            self.rdev,
            self.target,
            self.same_as,
            self.content.len(),
            &hash[..8],
            self.xattrs,
        )
    }
}

pub type Snapshot = BTreeMap<PathBuf, Seen>;

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let n = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..n].split(|&b| b == 0).filter(|n| !n.is_empty());
    names
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0; 64 << 10];
            let n = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..]).unwrap();
            value.truncate(n);
            (name, value)
        })
        .collect()
}

/// Everything that is below `dir`, with `dir` itself under the empty path.
pub fn snapshot(dir: &Path) -> Snapshot {
    let mut seen = Snapshot::new();
    let mut first: HashMap<u64, PathBuf> = HashMap::new();
    for e in walkdir::WalkDir::new(dir).sort_by_file_name() {
        let e = e.unwrap();
        let rel = e.path().strip_prefix(dir).unwrap().to_owned();
        let m = std::fs::symlink_metadata(e.path()).unwrap();
        let t = m.file_type();
        let kind = match () {
            () if t.is_dir() => 'd',
            () if t.is_symlink() => 'l',
            () if t.is_fifo() => 'p',
            () if t.is_socket() => 's',
            () if t.is_char_device() => 'c',
            () if t.is_block_device() => 'b',
            () => '-',
        };
        let entry = Seen {
            kind,
            mode: m.mode(),
            owner: (m.uid(), m.gid()),
            nlink: m.nlink(),
            mtime: (m.mtime(), m.mtime_nsec()),
            rdev: m.rdev(),
            target: t.is_symlink().then(|| std::fs::read_link(e.path()).unwrap()),
            same_as: first.entry(m.ino()).or_insert_with(|| rel.clone()).clone(),
            xattrs: xattrs(e.path()),
            content: if kind == '-' { std::fs::read(e.path()).unwrap() } else { Vec::new() },
        };
        seen.insert(rel, entry);
    }
    seen
}

/// The lines in which two snapshots differ; empty when they are equal.
pub fn difference(want: &Snapshot, got: &Snapshot) -> String {
    let mut out = String::new();
    for path in want.keys().chain(got.keys().filter(|p| !want.contains_key(*p))) {
        let (w, g) = (want.get(path), got.get(path));
        if w != g {
            out += &format!("{}:\n  want {w:?}\n  got  {g:?}\n", path.display());
            if let (Some(w), Some(g)) = (w, g)
                && let Some(at) = w.content.iter().zip(&g.content).position(|(a, b)| a != b)
            {
                out +=
                    &format!("  first different byte {at}: want {} got {}\n", w.content[at], g.content[at]);
            }
        }
    }
    out
}

pub fn data_of(v: &Volume) -> Snapshot {
    snapshot(&v.state_dir().join("data"))
}

// ---- volumes ------------------------------------------------------------------------------------------------

/// A secondary at the beginning of the history of volume `id`.
pub fn secondary(dir: &Path, id: VolumeId) -> Arc<Volume> {
    secondary_holding(dir, id, None)
}

/// The same with somebody who needs what the primary removes.
pub fn secondary_holding(dir: &Path, id: VolumeId, hold: Option<Arc<dyn Hold>>) -> Arc<Volume> {
    let lock = lock_state_dir(dir).unwrap();
    let mut state = new_state(Some(id), Role::Secondary);
    state.needs_copy = false;
    let state = StateFile::create(dir, state).unwrap();
    let v = Volume::open_holding(dir, lock, state, id, hold).unwrap().volume;
    v.set_access(Access::ReadOnly);
    v
}

/// Opens what is in `dir` already.
pub fn reopen(dir: &Path) -> Opened {
    reopen_holding(dir, None)
}

/// The same with somebody who needs what the primary removes.
pub fn reopen_holding(dir: &Path, hold: Option<Arc<dyn Hold>>) -> Opened {
    // A child that another test has forked and that has not come to its exec yet holds the lock of a volume that was
    // closed meanwhile.
    let lock = loop {
        match lock_state_dir(dir) {
            Ok(lock) => break lock,
            Err(OpenError::Busy(_)) => std::thread::sleep(std::time::Duration::from_millis(1)),
            Err(e) => panic!("{e}"),
        }
    };
    let state = StateFile::open(dir).unwrap().unwrap();
    let id = state.get().volume.unwrap();
    Volume::open_holding(dir, lock, state, id, hold).unwrap()
}

/// Gives `to` every transaction of `from` that it lacks, and applies what is whole.
pub fn follow(from: &Volume, to: &Volume) {
    receive(from, to);
    while to.apply_next(false).unwrap().is_some() {}
}

/// Gives `to` every transaction of `from` that it lacks.
pub fn receive(from: &Volume, to: &Volume) {
    for seq in to.log.tail().seq + 1..=from.log.tail().seq {
        let txn = from.log.read(seq).unwrap();
        let txn = Txn::from_wire(txn.bytes().to_vec()).unwrap();
        to.store(txn).unwrap().publish();
    }
}

/// `cp -a`: with extended attributes, links, times and devices.
pub fn copy_tree(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").arg("--").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

// ---- random operations --------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
pub enum Action {
    Create { dir: u8, name: u8, mode: u32 },
    Mkdir { dir: u8, name: u8, mode: u32 },
    Symlink { dir: u8, name: u8, target: u8 },
    Mknod { dir: u8, name: u8, kind: u8 },
    Write { file: u8, offset: u32, len: u32, fill: u8 },
    WriteOpen { open: u8, offset: u32, len: u32, fill: u8 },
    Truncate { file: u8, size: u32 },
    Allocate { file: u8, mode: u8, offset: u32, len: u32 },
    Rename { from: u8, dir: u8, name: u8, noreplace: bool },
    RenameOver { from: u8, to: u8 },
    Exchange { a: u8, b: u8 },
    Link { file: u8, dir: u8, name: u8 },
    Remove { at: u8 },
    Chmod { at: u8, mode: u32 },
    Chown { at: u8, uid: u8, gid: u8 },
    Utimens { at: u8, secs: i32, nanos: u32 },
    SetXattr { at: u8, name: u8, len: u16, fill: u8 },
    RemoveXattr { at: u8, name: u8 },
    Acl { at: u8, default: bool, perm: u8 },
    RemoveAcl { at: u8, default: bool },
    Open { file: u8 },
    Close { open: u8 },
    Copy { from: u8, to: u8, offset: u32 },
    Commit,
}

/// Mostly near the beginning, near block borders, or sparse.
fn offset() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..5000, 60_000u32..70_000, 0u32..300_000]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..100, 0u32..9000, 0u32..70_000]
}

fn mode() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0u32..0o1000, 1 => 0u32..0o10000]
}

pub fn action() -> impl Strategy<Value = Action> {
    let b = any::<u8>;
    // Few names, so that they collide.
    let n = || 0u8..5;
    prop_oneof![
        8 => (b(), n(), mode()).prop_map(|(dir, name, mode)| Action::Create { dir, name, mode }),
        8 => (b(), n(), mode()).prop_map(|(dir, name, mode)| Action::Mkdir { dir, name, mode }),
        2 => (b(), n(), 0u8..4).prop_map(|(dir, name, target)| Action::Symlink { dir, name, target }),
        2 => (b(), n(), 0u8..4).prop_map(|(dir, name, kind)| Action::Mknod { dir, name, kind }),
        8 => (b(), offset(), len(), b()).prop_map(|(file, offset, len, fill)| Action::Write { file, offset, len, fill }),
        2 => (b(), offset(), len(), b())
            .prop_map(|(open, offset, len, fill)| Action::WriteOpen { open, offset, len, fill }),
        3 => (b(), offset()).prop_map(|(file, size)| Action::Truncate { file, size }),
        3 => (b(), 0u8..6, offset(), len())
            .prop_map(|(file, mode, offset, len)| Action::Allocate { file, mode, offset, len }),
        10 => (b(), b(), n(), any::<bool>())
            .prop_map(|(from, dir, name, noreplace)| Action::Rename { from, dir, name, noreplace }),
        6 => (b(), b()).prop_map(|(from, to)| Action::RenameOver { from, to }),
        5 => (b(), b()).prop_map(|(a, b)| Action::Exchange { a, b }),
        6 => (b(), b(), n()).prop_map(|(file, dir, name)| Action::Link { file, dir, name }),
        9 => b().prop_map(|at| Action::Remove { at }),
        2 => (b(), mode()).prop_map(|(at, mode)| Action::Chmod { at, mode }),
        2 => (b(), 0u8..3, 0u8..3).prop_map(|(at, uid, gid)| Action::Chown { at, uid, gid }),
        2 => (b(), any::<i32>(), 0u32..1_000_000_000).prop_map(|(at, secs, nanos)| Action::Utimens { at, secs, nanos }),
        3 => (b(), 0u8..3, 0u16..600, b()).prop_map(|(at, name, len, fill)| Action::SetXattr { at, name, len, fill }),
        1 => (b(), 0u8..3).prop_map(|(at, name)| Action::RemoveXattr { at, name }),
        2 => (b(), any::<bool>(), 0u8..8).prop_map(|(at, default, perm)| Action::Acl { at, default, perm }),
        1 => (b(), any::<bool>()).prop_map(|(at, default)| Action::RemoveAcl { at, default }),
        2 => b().prop_map(|file| Action::Open { file }),
        1 => b().prop_map(|open| Action::Close { open }),
        1 => (b(), b(), offset()).prop_map(|(from, to, offset)| Action::Copy { from, to, offset }),
        4 => Just(Action::Commit),
    ]
}

pub fn actions(n: usize) -> impl Strategy<Value = Vec<Action>> {
    proptest::collection::vec(action(), 0..n)
}

struct Place {
    parent: FileId,
    name: Vec<u8>,
    id: FileId,
    kind: Kind,
}

/// Runs actions on a volume through its filesystem calls.
pub struct World {
    pub v: Arc<Volume>,
    opens: Vec<Arc<OpenFile>>,
}

const ROOT: Caller = Caller { uid: 0, gid: 0 };

fn name(n: u8) -> [u8; 1] {
    [b'a' + n]
}

fn xattr_name(n: u8) -> &'static [u8] {
    [&b"user.one"[..], b"trusted.two", b"security.three"][n as usize % 3]
}

/// An access list of five entries, in the form that the kernel takes.
pub fn acl(perm: u8) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    let perm = u16::from(perm);
    for (tag, perm, id) in [
        (1u16, 7u16, u32::MAX),
        (2, perm, 1234),
        (4, 5, u32::MAX),
        (0x10, perm, u32::MAX),
        (0x20, 1, u32::MAX),
    ] {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&perm.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    }
    out
}

impl World {
    pub fn new(v: Arc<Volume>) -> World {
        World { v, opens: Vec::new() }
    }

    fn places(&self) -> Vec<Place> {
        let mut out = Vec::new();
        let mut dirs = vec![FileId::ROOT];
        while let Some(parent) = dirs.pop() {
            for e in self.v.readdir(parent).unwrap() {
                if e.name == b"." || e.name == b".." {
                    continue;
                }
                if e.kind == Kind::Dir {
                    dirs.push(e.id);
                }
                out.push(Place { parent, name: e.name, id: e.id, kind: e.kind });
            }
        }
        out
    }

    fn dir(&self, n: u8) -> FileId {
        let mut dirs = vec![FileId::ROOT];
        dirs.extend(self.places().iter().filter(|p| p.kind == Kind::Dir).map(|p| p.id));
        dirs[n as usize % dirs.len()]
    }

    fn at(&self, n: u8, only: impl Fn(Kind) -> bool) -> Option<Place> {
        let mut all = self.places();
        all.retain(|p| only(p.kind));
        let len = all.len();
        (len > 0).then(|| all.swap_remove(n as usize % len))
    }

    fn file(&self, n: u8) -> Option<FileId> {
        Some(self.at(n, |k| k == Kind::File)?.id)
    }

    /// Any file, the root too.
    fn any(&self, n: u8) -> FileId {
        if n % 16 == 15 { FileId::ROOT } else { self.at(n, |_| true).map_or(FileId::ROOT, |p| p.id) }
    }

    fn with_file(&self, n: u8, f: impl FnOnce(&OpenFile)) {
        if let Some(id) = self.file(n) {
            let open = self.v.open(ROOT, id, 2).unwrap();
            f(&open);
            self.v.release(open);
        }
    }

    /// Does it; what POSIX forbids does nothing. True: it was a commit.
    pub fn run(&mut self, action: &Action) -> bool {
        let v = Arc::clone(&self.v);
        // Whatever fails must fail without a trace, and that is what the comparison afterwards says.
        match *action {
            Action::Create { dir, name: n, mode } => {
                let caller = Caller { uid: u32::from(n), gid: u32::from(n) };
                if let Ok((_, open)) = v.create(caller, self.dir(dir), &name(n), mode, 0o022, 0o200) {
                    v.release(open);
                }
            }
            Action::Mkdir { dir, name: n, mode } => {
                let _ = v.mkdir(ROOT, self.dir(dir), &name(n), mode, 0o027);
            }
            Action::Symlink { dir, name: n, target } => {
                let _ = v.symlink(ROOT, self.dir(dir), &name(n), &[b't', b'0' + target]);
            }
            Action::Mknod { dir, name: n, kind } => {
                let (kind, rdev) = [(0o010_000, 0), (0o140_000, 0), (0o020_000, 0x0103), (0o060_000, 0x0701)]
                    [kind as usize % 4];
                let _ = v.mknod(ROOT, self.dir(dir), &name(n), kind | 0o644, 0, rdev);
            }
            Action::Write { file, offset, len, fill } => self.with_file(file, |open| {
                v.write(open, offset.into(), &pattern(len, fill), false).unwrap();
            }),
            Action::WriteOpen { open, offset, len, fill } => {
                if !self.opens.is_empty() {
                    let open = &self.opens[open as usize % self.opens.len()];
                    v.write(open, offset.into(), &pattern(len, fill), true).unwrap();
                }
            }
            Action::Truncate { file, size } => {
                if let Some(id) = self.file(file) {
                    let set = SetAttr { size: Some(size.into()), ..SetAttr::default() };
                    v.setattr(Caller { uid: 7, gid: 7 }, id, &set, None).unwrap();
                }
            }
            Action::Allocate { file, mode, offset, len } => self.with_file(file, |open| {
                // Plain, keep size, punch, zero range with and without keeping the size, collapse (must be refused).
                let mode = [0u32, 1, 3, 0x10, 0x11, 8][mode as usize % 6];
                let (offset, len) = if mode == 8 { (0, 4096) } else { (u64::from(offset), u64::from(len)) };
                let done = v.fallocate(ROOT, open, mode, offset, len);
                assert!(mode != 8 || done.is_err(), "a collapse can't be redone");
            }),
            Action::Rename { from, dir, name: n, noreplace } => {
                if let Some(p) = self.at(from, |_| true) {
                    let _ = v.rename(p.parent, &p.name, self.dir(dir), &name(n), noreplace.into());
                }
            }
            Action::RenameOver { from, to } => {
                if let (Some(a), Some(b)) = (self.at(from, |_| true), self.at(to, |_| true)) {
                    let _ = v.rename(a.parent, &a.name, b.parent, &b.name, 0);
                }
            }
            Action::Exchange { a, b } => {
                if let (Some(a), Some(b)) = (self.at(a, |_| true), self.at(b, |_| true)) {
                    let _ = v.rename(a.parent, &a.name, b.parent, &b.name, 2);
                }
            }
            Action::Link { file, dir, name: n } => {
                if let Some(p) = self.at(file, |k| k != Kind::Dir) {
                    let _ = v.link(p.id, self.dir(dir), &name(n));
                }
            }
            Action::Remove { at } => {
                if let Some(p) = self.at(at, |_| true) {
                    let _ = match p.kind {
                        Kind::Dir => v.rmdir(p.parent, &p.name),
                        _ => v.unlink(p.parent, &p.name),
                    };
                }
            }
            Action::Chmod { at, mode } => {
                let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
                let _ = v.setattr(ROOT, self.any(at), &set, None);
            }
            Action::Chown { at, uid, gid } => {
                let pick = |n: u8| (n > 0).then(|| u32::from(n) * 1000);
                let set = SetAttr { uid: pick(uid), gid: pick(gid), ..SetAttr::default() };
                v.setattr(ROOT, self.any(at), &set, None).unwrap();
            }
            Action::Utimens { at, secs, nanos } => {
                let t = Time { secs: secs.into(), nanos };
                let set =
                    SetAttr { atime: Some(SetTime::Now), mtime: Some(SetTime::At(t)), ..SetAttr::default() };
                v.setattr(ROOT, self.any(at), &set, None).unwrap();
            }
            Action::SetXattr { at, name, len, fill } => {
                let _ = v.setxattr(ROOT, self.any(at), xattr_name(name), &vec![fill; len.into()], 0);
            }
            Action::RemoveXattr { at, name } => {
                let _ = v.removexattr(self.any(at), xattr_name(name));
            }
            Action::Acl { at, default, perm } => {
                let name =
                    if default { &b"system.posix_acl_default"[..] } else { b"system.posix_acl_access" };
                let _ = v.setxattr(ROOT, self.any(at), name, &acl(perm), 0);
            }
            Action::RemoveAcl { at, default } => {
                let name =
                    if default { &b"system.posix_acl_default"[..] } else { b"system.posix_acl_access" };
                let _ = v.removexattr(self.any(at), name);
            }
            Action::Open { file } => {
                if let Some(id) = self.file(file) {
                    self.opens.push(v.open(ROOT, id, 2).unwrap());
                }
            }
            Action::Close { open } => {
                if !self.opens.is_empty() {
                    v.release(self.opens.swap_remove(open as usize % self.opens.len()));
                }
            }
            Action::Copy { from, to, offset } => {
                if let (Some(a), Some(b)) = (self.file(from), self.file(to)) {
                    let (a, b) = (v.open(ROOT, a, 2).unwrap(), v.open(ROOT, b, 2).unwrap());
                    v.copy_file_range(ROOT, &a, 0, &b, offset.into(), 20_000).unwrap();
                    v.release(a);
                    v.release(b);
                }
            }
            Action::Commit => {
                v.commit_and_wait().unwrap();
                return true;
            }
        }
        false
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for open in self.opens.drain(..) {
            self.v.release(open);
        }
    }
}

/// Bytes that compress neither wholly nor not at all, with zeros among them.
pub fn pattern(len: u32, fill: u8) -> Vec<u8> {
    (0..len).map(|i| if i % 7 == 0 { (i / 64) as u8 } else { fill }).collect()
}

/// The permission bits of a path.
pub fn mode_of(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}
