//! Marks: files of a volume that each hold a number that only grows, changed in different ways, and what the transactions
//! in a log directory say that they are. Whoever looks at a mount can say so how far it is.

use nasd_volume::FileId;
use nasd_volume::op::{Op, Ops};
use nasd_volume::txn::Txn;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// A record of the file that is appended to, and the length of the others.
pub const RECORD: usize = 16;
/// The number of each mark.
pub type Marks = [u64; 5];
/// Changes a mark on the mount to the next number, durably.
pub type Change = fn(&Path, u64);

/// How each is changed: by appending, by writing over it, by a rename over it, by a new file, by its time.
pub const CHANGES: [Change; 5] = [append, overwrite, rename, create, touch];

fn number(n: u64) -> String {
    format!("{n:0RECORD$}")
}

/// Makes all of them, with the number 0, durably.
pub fn make(mount: &Path) {
    fs::create_dir(mount.join("created")).unwrap();
    for name in ["overwritten", "renamed", "created/0"] {
        fs::write(mount.join(name), number(0)).unwrap();
    }
    File::create(mount.join("appended")).unwrap();
    File::create(mount.join("touched")).unwrap();
    touch(mount, 0);
}

fn append(mount: &Path, n: u64) {
    let mut file = File::options().append(true).open(mount.join("appended")).unwrap();
    file.write_all(number(n).as_bytes()).unwrap();
    file.sync_data().unwrap();
}

fn overwrite(mount: &Path, n: u64) {
    let file = File::options().write(true).open(mount.join("overwritten")).unwrap();
    file.write_all_at(number(n).as_bytes(), 0).unwrap();
    file.sync_data().unwrap();
}

fn rename(mount: &Path, n: u64) {
    let new = mount.join("new");
    fs::write(&new, number(n)).unwrap();
    fs::rename(&new, mount.join("renamed")).unwrap();
    File::open(mount).unwrap().sync_all().unwrap();
}

fn create(mount: &Path, n: u64) {
    let dir = mount.join("created");
    let file = File::create(dir.join(n.to_string())).unwrap();
    fs::remove_file(dir.join((n - 1).to_string())).unwrap();
    file.sync_all().unwrap();
}

fn touch(mount: &Path, n: u64) {
    let time = Timespec { tv_sec: n as i64, tv_nsec: 0 };
    let path = mount.join("touched");
    utimensat(CWD, &path, &Timestamps { last_access: time, last_modification: time }, AtFlags::empty())
        .unwrap();
    File::open(path).unwrap().sync_all().unwrap();
}

/// What a mount shows now. `appended` is that file, open.
pub fn look(mount: &Path, appended: &File) -> Marks {
    let text = |name: &str| loop {
        match fs::read_to_string(mount.join(name)) {
            // Replaced twice between the look at its name and the opening: the kernel asks again once only.
            Err(e) if e.kind() == ErrorKind::StaleNetworkFileHandle => {}
            text => break text.unwrap(),
        }
    };
    let created = fs::read_dir(mount.join("created")).unwrap();
    let created = created.map(|e| e.unwrap().file_name().into_string().unwrap().parse::<u64>().unwrap());
    let records = appended.metadata().unwrap().size() / RECORD as u64;
    if let Some(last) = records.checked_sub(1) {
        let mut record = [0; RECORD];
        appended.read_exact_at(&mut record, last * RECORD as u64).unwrap();
        assert_eq!(String::from_utf8_lossy(&record), number(records), "the last record is whole");
    }
    [
        records,
        text("overwritten").parse().unwrap(),
        text("renamed").parse().unwrap(),
        created.max().unwrap(),
        fs::metadata(mount.join("touched")).unwrap().mtime() as u64,
    ]
}

/// Files, as the operations of transactions make them.
#[derive(Default)]
struct Files {
    names: HashMap<(FileId, Vec<u8>), FileId>,
    bytes: HashMap<FileId, Vec<u8>>,
    times: HashMap<FileId, u64>,
}

impl Files {
    fn apply(&mut self, op: &Op<'_>) {
        match *op {
            Op::Create { parent, id, name, .. } | Op::Link { parent, id, name } => {
                self.names.insert((parent, name.to_vec()), id);
            }
            Op::Remove { parent, name, .. } => drop(self.names.remove(&(parent, name.to_vec()))),
            Op::Rename { parent, new_parent, id, name, new_name } => {
                self.names.remove(&(parent, name.to_vec()));
                self.names.insert((new_parent, new_name.to_vec()), id);
            }
            Op::Write { id, offset, data } => {
                let (at, bytes) = (offset as usize, self.bytes.entry(id).or_default());
                bytes.resize(bytes.len().max(at + data.len()), 0);
                bytes[at..at + data.len()].copy_from_slice(data);
            }
            Op::Truncate { id, size } => self.bytes.entry(id).or_default().resize(size as usize, 0),
            Op::Times { id, mtime, .. } => drop(self.times.insert(id, mtime.secs as u64)),
            _ => {}
        }
    }

    fn id(&self, name: &str) -> Option<FileId> {
        self.names.get(&(FileId::ROOT, name.as_bytes().to_vec())).copied()
    }

    /// None before all of them are made.
    fn marks(&self) -> Option<Marks> {
        let bytes = |name: &str| Some(self.bytes.get(&self.id(name)?).map_or(&[][..], Vec::as_slice));
        let number = |name: &str| std::str::from_utf8(bytes(name)?).ok()?.parse::<u64>().ok();
        let dir = self.id("created")?;
        let created = self.names.keys().filter(|(parent, _)| *parent == dir);
        let created = created.filter_map(|(_, name)| std::str::from_utf8(name).ok()?.parse().ok());
        Some([
            (bytes("appended")?.len() / RECORD) as u64,
            number("overwritten")?,
            number("renamed")?,
            created.max()?,
            *self.times.get(&self.id("touched")?)?,
        ])
    }
}

/// The marks behind each whole transaction of a log directory that nothing was pruned from; from the one on that has them
/// all.
pub fn logged(log: &Path) -> BTreeMap<u64, Marks> {
    let mut all: Vec<Txn> = fs::read_dir(log)
        .unwrap()
        .map(|entry| Txn::from_file(fs::read(entry.unwrap().path()).unwrap()).unwrap())
        .collect();
    all.sort_by_key(|txn| txn.header.position.seq);
    assert!(all.windows(2).all(|two| two[0].header.position.hash == two[1].header.prev), "one chain");
    let (mut files, mut marks) = (Files::default(), BTreeMap::new());
    for txn in &all {
        for op in Ops::new(&txn.payload().unwrap()) {
            files.apply(&op.unwrap());
        }
        if let (false, Some(now)) = (txn.header.continues, files.marks()) {
            marks.insert(txn.header.position.seq, now);
        }
    }
    marks
}
