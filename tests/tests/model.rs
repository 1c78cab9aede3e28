//! Random operations on the mount of a pair and, in parallel, on a plain directory: each has the same result, and after
//! each commit the mount, the plain directory and the secondary's replica are equal.
//!
//! A failure prints its seed and the operations before it; `NASD_SEED=… cargo test --test model NAME` does the same
//! again.
#![allow(clippy::unwrap_used)]

use memmap2::MmapMut;
use nasd_tests::snapshot::{Entry, assert_equal, assert_same, snapshot};
use nasd_tests::{Node, Pair, Setup, long};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{
    self as rfs, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, XattrFlags,
};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

type Name = String;

/// One operation; paths are relative to the directory that it is done in.
#[derive(Debug, Clone)]
enum Op {
    Create {
        path: Name,
        mode: u32,
        exclusive: bool,
        truncate: bool,
        data: Vec<u8>,
    },
    Write {
        path: Name,
        offset: u64,
        data: Vec<u8>,
        flags: OFlags,
    },
    Append {
        path: Name,
        data: Vec<u8>,
    },
    Truncate {
        path: Name,
        size: u64,
    },
    Fallocate {
        path: Name,
        mode: FallocateFlags,
        offset: u64,
        len: u64,
    },
    MapWrite {
        path: Name,
        offset: usize,
        data: Vec<u8>,
    },
    CopyRange {
        from: Name,
        to: Name,
        from_offset: u64,
        to_offset: u64,
        len: usize,
    },
    Rename {
        from: Name,
        to: Name,
        flags: RenameFlags,
    },
    Link {
        from: Name,
        to: Name,
    },
    Symlink {
        target: Name,
        path: Name,
    },
    Mknod {
        path: Name,
        kind: FileType,
        mode: u32,
        dev: u64,
    },
    Mkdir {
        path: Name,
        mode: u32,
    },
    Unlink {
        path: Name,
    },
    Rmdir {
        path: Name,
    },
    Chmod {
        path: Name,
        mode: u32,
    },
    Chown {
        path: Name,
        uid: Option<u32>,
        gid: Option<u32>,
        follow: bool,
    },
    Utimens {
        path: Name,
        atime: Option<i64>,
        mtime: Option<i64>,
        follow: bool,
    },
    SetXattr {
        path: Name,
        name: String,
        value: Vec<u8>,
        flags: XattrFlags,
    },
    RemoveXattr {
        path: Name,
        name: String,
    },
    Read {
        path: Name,
    },
    List {
        path: Name,
    },
    /// Keeps it open.
    Open {
        path: Name,
    },
    HandleWrite {
        handle: usize,
        offset: u64,
        data: Vec<u8>,
    },
    HandleTruncate {
        handle: usize,
        size: u64,
    },
    HandleChmod {
        handle: usize,
        mode: u32,
    },
    HandleRead {
        handle: usize,
    },
    Close {
        handle: usize,
    },
}

/// What an operation gave, to be compared.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Bytes(Vec<u8>),
    Times([i64; 4]),
    Opened,
}

/// A directory that operations are done in, with the files that are kept open.
struct World {
    root: PathBuf,
    open: Vec<File>,
}

fn errno(e: std::io::Error) -> Errno {
    Errno::from_io_error(&e).unwrap_or(Errno::IO)
}

/// Never waits for the other end of a FIFO.
const NOW: OFlags = OFlags::NONBLOCK.union(OFlags::CLOEXEC);

impl World {
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn file(&self, path: &str, flags: OFlags) -> Result<File, Errno> {
        Ok(rfs::open(self.at(path), flags | NOW, Mode::empty())?.into())
    }

    fn apply(&mut self, op: &Op) -> Result<Outcome, Errno> {
        match op {
            Op::Create { path, mode, exclusive, truncate, data } => {
                let mut flags = OFlags::CREATE | OFlags::RDWR | NOW;
                flags.set(OFlags::EXCL, *exclusive);
                flags.set(OFlags::TRUNC, *truncate);
                let file: File = rfs::open(self.at(path), flags, Mode::from(*mode))?.into();
                if !file.metadata().map_err(errno)?.is_file() {
                    return Ok(Outcome::Opened);
                }
                (&file).write_all(data).map_err(errno)?;
            }
            Op::Write { path, offset, data, flags } => {
                let file = self.file(path, OFlags::WRONLY | *flags)?;
                file.write_all_at(data, *offset).map_err(errno)?;
            }
            Op::Append { path, data } => {
                let mut file = self.file(path, OFlags::WRONLY | OFlags::APPEND)?;
                file.write_all(data).map_err(errno)?;
            }
            Op::Truncate { path, size } => {
                self.file(path, OFlags::WRONLY)?.set_len(*size).map_err(errno)?;
            }
            Op::Fallocate { path, mode, offset, len } => {
                rfs::fallocate(self.file(path, OFlags::WRONLY)?, *mode, *offset, *len)?;
            }
            Op::MapWrite { path, offset, data } => {
                let file = self.file(path, OFlags::RDWR)?;
                let meta = file.metadata().map_err(errno)?;
                if !meta.is_file() || (meta.len() as usize) < offset + data.len() {
                    return Ok(Outcome::Opened);
                }
                // SAFETY: nobody truncates the file while it is mapped: this test is its only user.
                let mut map = unsafe { MmapMut::map_mut(&file) }.map_err(errno)?;
                map[*offset..offset + data.len()].copy_from_slice(data);
                map.flush().map_err(errno)?;
            }
            Op::CopyRange { from, to, from_offset, to_offset, len } => {
                let (from, to) = (self.file(from, OFlags::RDONLY)?, self.file(to, OFlags::WRONLY)?);
                let (mut a, mut b) = (*from_offset, *to_offset);
                let mut left = *len;
                while left > 0 {
                    match rfs::copy_file_range(&from, Some(&mut a), &to, Some(&mut b), left)? {
                        0 => break,
                        n => left -= n,
                    }
                }
            }
            Op::Rename { from, to, flags } => {
                rfs::renameat_with(CWD, self.at(from), CWD, self.at(to), *flags)?;
            }
            Op::Link { from, to } => rfs::linkat(CWD, self.at(from), CWD, self.at(to), AtFlags::empty())?,
            Op::Symlink { target, path } => rfs::symlink(target, self.at(path))?,
            Op::Mknod { path, kind, mode, dev } => {
                rfs::mknodat(CWD, self.at(path), *kind, Mode::from(*mode), *dev)?;
            }
            Op::Mkdir { path, mode } => rfs::mkdir(self.at(path), Mode::from(*mode))?,
            Op::Unlink { path } => rfs::unlink(self.at(path))?,
            Op::Rmdir { path } => rfs::rmdir(self.at(path))?,
            Op::Chmod { path, mode } => rfs::chmod(self.at(path), Mode::from(*mode))?,
            Op::Chown { path, uid, gid, follow } => {
                let flags = if *follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
                let (uid, gid) = (uid.map(rfs::Uid::from_raw), gid.map(rfs::Gid::from_raw));
                rfs::chownat(CWD, self.at(path), uid, gid, flags)?;
            }
            Op::Utimens { path, atime, mtime, follow } => {
                let flags = if *follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
                let spec = |t: &Option<i64>| match t {
                    Some(t) => rfs::Timespec { tv_sec: *t, tv_nsec: t % 1_000_000_000 },
                    None => rfs::Timespec { tv_sec: 0, tv_nsec: rfs::UTIME_OMIT },
                };
                let times = rfs::Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
                rfs::utimensat(CWD, self.at(path), &times, flags)?;
                let m = if *follow { self.at(path).metadata() } else { self.at(path).symlink_metadata() };
                let m = m.map_err(errno)?;
                let set = |t: &Option<i64>, secs, nanos| if t.is_some() { (secs, nanos) } else { (0, 0) };
                let (a, m) = (set(atime, m.atime(), m.atime_nsec()), set(mtime, m.mtime(), m.mtime_nsec()));
                return Ok(Outcome::Times([a.0, a.1, m.0, m.1]));
            }
            Op::SetXattr { path, name, value, flags } => {
                rfs::lsetxattr(self.at(path), name.as_str(), value, *flags)?;
            }
            Op::RemoveXattr { path, name } => rfs::lremovexattr(self.at(path), name.as_str())?,
            Op::Read { path } => {
                let mut file = self.file(path, OFlags::RDONLY)?;
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).map_err(errno)?;
                return Ok(Outcome::Bytes(bytes));
            }
            Op::List { path } => {
                let mut names: Vec<String> = std::fs::read_dir(self.at(path))
                    .map_err(errno)?
                    .map(|e| e.unwrap().file_name().into_string().unwrap())
                    .collect();
                names.sort();
                return Ok(Outcome::Bytes(names.join("/").into_bytes()));
            }
            Op::Open { path } => {
                let file = self.file(path, OFlags::RDWR)?;
                if file.metadata().map_err(errno)?.is_file() {
                    self.open.push(file);
                }
                return Ok(Outcome::Opened);
            }
            Op::HandleWrite { handle, offset, data } => {
                self.open[*handle].write_all_at(data, *offset).map_err(errno)?;
            }
            Op::HandleTruncate { handle, size } => self.open[*handle].set_len(*size).map_err(errno)?,
            Op::HandleChmod { handle, mode } => rfs::fchmod(&self.open[*handle], Mode::from(*mode))?,
            Op::HandleRead { handle } => {
                let file = &self.open[*handle];
                let m = file.metadata().map_err(errno)?;
                let mut bytes = vec![0; m.len() as usize];
                file.read_exact_at(&mut bytes, 0).map_err(errno)?;
                bytes.extend(m.mode().to_le_bytes());
                bytes.extend(m.nlink().to_le_bytes());
                return Ok(Outcome::Bytes(bytes));
            }
            Op::Close { handle } => drop(self.open.remove(*handle)),
        }
        Ok(Outcome::Done)
    }
}

/// A valid ACL in the kernel's format: for its owner, user 1, its group, a mask, and others.
fn acl(rng: &mut StdRng, with_user: bool) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let entries: &[(u16, u32)] = if with_user {
        &[(1, NOBODY), (2, 1), (4, NOBODY), (0x10, NOBODY), (0x20, NOBODY)]
    } else {
        &[(1, NOBODY), (4, NOBODY), (0x20, NOBODY)]
    };
    for (tag, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rng.random_range(0..8u16).to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// The offsets and lengths of content stay below this.
const SPAN: u64 = 150_000;

/// Where random choices come from, and the paths that there are at the moment.
struct Choice {
    rng: StdRng,
    paths: Vec<Name>,
    dirs: Vec<Name>,
}

impl Choice {
    /// A path; mostly of something that is there.
    fn there(&mut self) -> Name {
        if self.paths.is_empty() || self.rng.random_bool(0.1) {
            return self.fresh();
        }
        self.paths[self.rng.random_range(0..self.paths.len())].clone()
    }

    /// A path; mostly of something that is not there. Few names, so that they meet.
    fn fresh(&mut self) -> Name {
        let name = ["a", "b", "c", "d", "e", "f", "g"][self.rng.random_range(0..7)];
        if self.dirs.is_empty() || self.rng.random_bool(0.3) {
            return name.to_owned();
        }
        let dir = &self.dirs[self.rng.random_range(0..self.dirs.len())];
        format!("{dir}/{name}")
    }
}

/// What there is, and the directories among it, without going through symbolic links.
fn paths(root: &Path) -> (Vec<Name>, Vec<Name>) {
    let (mut all, mut dirs) = (Vec::new(), Vec::new());
    for e in walkdir::WalkDir::new(root).min_depth(1).max_depth(6).sort_by_file_name() {
        let e = e.unwrap();
        let name = e.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        if e.file_type().is_dir() {
            dirs.push(name.clone());
        }
        all.push(name);
    }
    (all, dirs)
}

fn mode(rng: &mut StdRng) -> u32 {
    // With set-id and sticky bits now and then.
    rng.random_range(0..0o1000) | if rng.random_bool(0.2) { rng.random_range(0..8u32) << 9 } else { 0 }
}

fn bytes(rng: &mut StdRng) -> Vec<u8> {
    let n = if rng.random_bool(0.2) { rng.random_range(0..40_000) } else { rng.random_range(0..300) };
    // Repetitions, so that writes often change little.
    let value = rng.random_range(0..4u8);
    (0..n).map(|i| if i % 64 == 0 { rng.random_range(0..4) } else { value }).collect()
}

fn some_id(rng: &mut StdRng) -> Option<u32> {
    [None, Some(0), Some(1), Some(1000), Some(4_000_000)][rng.random_range(0..5)]
}

fn some_time(rng: &mut StdRng) -> Option<i64> {
    // All of the year 2001, by which a comparison knows them; see `known_times`.
    rng.random_bool(0.7).then(|| rng.random_range(980_000_000..1_000_000_000))
}

fn xattr(rng: &mut StdRng) -> (String, Vec<u8>) {
    match rng.random_range(0..6) {
        0 => ("system.posix_acl_access".to_owned(), acl(rng, true)),
        1 => ("system.posix_acl_access".to_owned(), acl(rng, false)),
        2 => ("system.posix_acl_default".to_owned(), acl(rng, true)),
        3 => ("trusted.x".to_owned(), vec![3; rng.random_range(0..50)]),
        n => (format!("user.{n}"), vec![7; rng.random_range(0..300)]),
    }
}

fn any_op(choice: &mut Choice, handles: usize) -> Op {
    let handle = |rng: &mut StdRng| rng.random_range(0..handles);
    loop {
        let (there, there_too, fresh) = (choice.there(), choice.there(), choice.fresh());
        let rng = &mut choice.rng;
        return match rng.random_range(0..33) {
            0..=3 => Op::Create {
                path: fresh,
                mode: mode(rng),
                exclusive: rng.random(),
                truncate: rng.random(),
                data: bytes(rng),
            },
            4..=5 => Op::Write {
                path: there,
                offset: rng.random_range(0..SPAN),
                data: bytes(rng),
                flags: [OFlags::empty(), OFlags::empty(), OFlags::SYNC, OFlags::DSYNC]
                    [rng.random_range(0..4)],
            },
            6 => Op::Append { path: there, data: bytes(rng) },
            7 => Op::Truncate { path: there, size: rng.random_range(0..SPAN) },
            8 => Op::Fallocate {
                path: there,
                mode: [
                    FallocateFlags::empty(),
                    FallocateFlags::KEEP_SIZE,
                    FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE,
                    FallocateFlags::ZERO_RANGE,
                    FallocateFlags::KEEP_SIZE | FallocateFlags::ZERO_RANGE,
                ][rng.random_range(0..5)],
                offset: rng.random_range(0..SPAN),
                len: rng.random_range(1..SPAN),
            },
            9 => Op::MapWrite { path: there, offset: rng.random_range(0..9000), data: bytes(rng) },
            10 => Op::CopyRange {
                from: there,
                to: there_too,
                from_offset: rng.random_range(0..SPAN),
                to_offset: rng.random_range(0..SPAN),
                len: rng.random_range(0..SPAN as usize),
            },
            11..=14 => Op::Rename {
                to: if rng.random() { there_too } else { fresh },
                from: there,
                flags: [
                    RenameFlags::empty(),
                    RenameFlags::empty(),
                    RenameFlags::NOREPLACE,
                    RenameFlags::EXCHANGE,
                ][rng.random_range(0..4)],
            },
            15..=16 => Op::Link { from: there, to: fresh },
            17 => Op::Symlink { target: there, path: fresh },
            18 => {
                let (kind, dev) = [
                    (FileType::Fifo, 0),
                    (FileType::Socket, 0),
                    (FileType::CharacterDevice, rfs::makedev(1, 3)),
                    (FileType::BlockDevice, rfs::makedev(240, 70_000)),
                    (FileType::RegularFile, 0),
                ][rng.random_range(0..5)];
                Op::Mknod { path: fresh, kind, mode: mode(rng), dev }
            }
            19..=21 => Op::Mkdir { path: fresh, mode: mode(rng) },
            22..=23 => Op::Unlink { path: there },
            24 => Op::Rmdir { path: there },
            25 => Op::Chmod { path: there, mode: mode(rng) },
            26 => Op::Chown { path: there, uid: some_id(rng), gid: some_id(rng), follow: rng.random() },
            27 => {
                let (atime, mtime) = (some_time(rng), some_time(rng));
                Op::Utimens { path: there, atime, mtime, follow: rng.random() }
            }
            28 => {
                let (name, value) = xattr(rng);
                let flags =
                    [XattrFlags::empty(), XattrFlags::empty(), XattrFlags::CREATE, XattrFlags::REPLACE];
                Op::SetXattr { path: there, name, value, flags: flags[rng.random_range(0..4)] }
            }
            29 => Op::RemoveXattr { path: there, name: xattr(rng).0 },
            30 => {
                if rng.random() {
                    Op::Read { path: there }
                } else {
                    Op::List { path: there }
                }
            }
            31 if handles < 4 => Op::Open { path: there },
            32 if handles > 0 => match rng.random_range(0..6) {
                0 | 1 => Op::HandleWrite {
                    handle: handle(rng),
                    offset: rng.random_range(0..SPAN),
                    data: bytes(rng),
                },
                2 => Op::HandleTruncate { handle: handle(rng), size: rng.random_range(0..SPAN) },
                3 => Op::HandleChmod { handle: handle(rng), mode: mode(rng) },
                4 => Op::HandleRead { handle: handle(rng) },
                _ => Op::Close { handle: handle(rng) },
            },
            _ => continue,
        };
    }
}

/// A snapshot without the times that the clock gave: two directories that are changed one after the other differ in
/// them. Those that a program set stay.
fn known_times(root: &Path) -> BTreeMap<Vec<u8>, Entry> {
    let mut all = snapshot(root);
    for e in all.values_mut().filter(|e| !(980_000_000..1_000_000_000).contains(&e.mtime.0)) {
        e.mtime = (0, 0);
    }
    all
}

/// Everything written so far is committed, by one of the ways that there are.
fn commit(rng: &mut StdRng, world: &World) {
    let any = world.open.first().filter(|_| rng.random());
    match any {
        Some(file) if rng.random() => file.sync_data().unwrap(),
        Some(file) => file.sync_all().unwrap(),
        None => File::open(&world.root).unwrap().sync_all().unwrap(),
    }
}

fn settle(primary: &Node, secondary: &Node) {
    let seq = primary.status()["seq"].as_u64().unwrap();
    secondary.cli(&["wait", "--seq", &seq.to_string(), "--timeout", "20s"]);
}

fn wait_pair(primary: &Node, secondary: &Node) {
    primary.wait_for("primary", "in-sync");
    secondary.wait_for("secondary", "in-sync");
}

fn check_equal(what: &str, plain: &Path, primary: &Node, secondary: &Node) {
    settle(primary, secondary);
    assert_same(
        &format!("{what}: the plain directory and the mount"),
        &known_times(plain),
        &known_times(&primary.mount),
    );
    assert_equal(&format!("{what}: the replica"), &primary.data(), &secondary.data());
    assert_equal(&format!("{what}: the secondary's mount"), &secondary.data(), &secondary.mount);
}

/// Prints what led to a panic.
struct Story {
    seed: u64,
    ops: Vec<String>,
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.ops.len().saturating_sub(80);
            println!("NASD_SEED={} after {} operations, the last:", self.seed, self.ops.len());
            self.ops[from..].iter().for_each(|op| println!("  {op}"));
        }
    }
}

fn short(op: &Op) -> String {
    let mut text = format!("{op:?}");
    if let Some(i) = text.find("data: [") {
        text.truncate(i + 30);
    }
    text
}

/// `kills`: nodes are killed, at the moments when everything is committed and also, the secondary, in between.
fn run(seed: u64, steps: usize, kills: bool) {
    let mut choice = Choice { rng: StdRng::seed_from_u64(seed), paths: Vec::new(), dirs: Vec::new() };
    let setup = Setup {
        replication: "peer_timeout = \"2s\"\non_peer_loss = \"degrade\"".to_owned(),
        ..Setup::default()
    };
    let Pair { a, b, dir } = Pair::start_with(&setup);
    let (mut primary, mut secondary) = (a, b);
    let plain = dir.path().join("plain");
    std::fs::create_dir(&plain).unwrap();
    let mut plain = World { root: plain, open: Vec::new() };
    let mut volume = World { root: primary.mount.clone(), open: Vec::new() };
    let mut story = Story { seed, ops: Vec::new() };
    let mut secondary_is_down = false;
    let mut done: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    for step in 0..steps {
        let op = any_op(&mut choice, plain.open.len());
        let want = plain.apply(&op);
        if want.is_ok() {
            (choice.paths, choice.dirs) = paths(&plain.root);
        }
        let rng = &mut choice.rng;
        story.ops.push(format!("{} -> {:?}", short(&op), want.as_ref().err()));
        let got = volume.apply(&op);
        let kind = short(&op).split_whitespace().next().unwrap_or_default().to_owned();
        done.entry(kind).or_default()[usize::from(want.is_ok())] += 1;
        assert_eq!(want, got, "left: the plain directory, right: the mount: {}", short(&op));
        if kills && !secondary_is_down && rng.random_bool(0.01) {
            story.ops.push("kill the secondary".to_owned());
            secondary.kill();
            secondary_is_down = true;
        }
        if !rng.random_bool(0.05) {
            continue;
        }
        commit(rng, &volume);
        story.ops.push("commit".to_owned());
        if secondary_is_down {
            if rng.random() {
                continue;
            }
            story.ops.push("start the secondary".to_owned());
            secondary.start();
            secondary_is_down = false;
            wait_pair(&primary, &secondary);
        }
        check_equal(&format!("NASD_SEED={seed}, operation {step}"), &plain.root, &primary, &secondary);
        if kills && rng.random_bool(0.3) {
            plain.open.clear();
            volume.open.clear();
            let promote = rng.random();
            story.ops.push(format!("kill the primary, promote: {promote}"));
            primary.kill();
            if promote {
                secondary.cli(&["promote"]);
                primary.start();
                std::mem::swap(&mut primary, &mut secondary);
                volume.root.clone_from(&primary.mount);
            } else {
                primary.start();
            }
            wait_pair(&primary, &secondary);
            check_equal(&format!("NASD_SEED={seed}, killed after {step}"), &plain.root, &primary, &secondary);
        }
    }
    // An operation that never succeeds tests nothing.
    println!("failed and succeeded: {done:?}");
}

fn seeds(default: u64, long_run: u64) -> Vec<u64> {
    if let Ok(seed) = std::env::var("NASD_SEED") {
        return vec![seed.parse().expect("NASD_SEED is a number")];
    }
    let first: u64 = rand::random();
    (0..if long() { long_run } else { default }).map(|i| first.wrapping_add(i)).collect()
}

#[test]
fn random_operations_have_the_results_of_a_plain_directory() {
    for seed in seeds(2, 60) {
        println!("NASD_SEED={seed}");
        run(seed, 1000, false);
    }
}

#[test]
fn random_operations_survive_kills() {
    for seed in seeds(2, 60) {
        println!("NASD_SEED={seed}");
        run(seed, 600, true);
    }
}
