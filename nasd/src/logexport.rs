//! `nasd log export`: takes transactions apart, so that somebody can fish out of them what was set aside.
//!
//! In the new directory: `transactions.jsonl` with a line for each transaction; for each of them `NAME.jsonl` with its
//! operations in order; and for each write `NAME.N.bin` with its bytes, N being the operation's number. No name from a
//! transaction becomes the name of a file here.

use crate::logtool::files;
use anyhow::{Context, Result, bail};
use nasd_volume::FileId;
use nasd_volume::log::read_txn_file;
use nasd_volume::op::{Op, Ops};
use nasd_volume::txn::{Txn, rfc3339};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// No path is deeper: names that lead around in a circle come from another history.
const DEEPEST: usize = 2048;

/// The names that the exported transactions tell of. A file that was there before them has none.
#[derive(Debug, Default)]
struct Names(HashMap<FileId, Vec<(FileId, Vec<u8>)>>);

impl Names {
    fn add(&mut self, parent: FileId, name: &[u8], id: FileId) {
        let links = self.0.entry(id).or_default();
        // The last one is the one that is shown.
        links.retain(|l| (l.0, l.1.as_slice()) != (parent, name));
        links.push((parent, name.to_owned()));
    }

    fn remove(&mut self, parent: FileId, name: &[u8], id: FileId) {
        if let Some(links) = self.0.get_mut(&id) {
            links.retain(|l| (l.0, l.1.as_slice()) != (parent, name));
        }
    }

    /// The path below the mount, as far as it is known.
    fn path(&self, mut id: FileId) -> Option<String> {
        let mut parts: Vec<&[u8]> = Vec::new();
        while id != FileId::ROOT {
            let (parent, name) = self.0.get(&id)?.last()?;
            parts.push(name);
            if parts.len() > DEEPEST {
                return None;
            }
            id = *parent;
        }
        parts.reverse();
        Some(String::from_utf8_lossy(&parts.join(&b'/')).into_owned())
    }

    /// What an operation says of names. Called before its line is written, but for a removal.
    fn learn(&mut self, op: &Op<'_>) {
        match *op {
            // Removed: so the file stood there, whoever gave it the name.
            Op::Create { parent, id, name, .. }
            | Op::Link { parent, id, name }
            | Op::Remove { parent, id, name } => self.add(parent, name, id),
            Op::Rename { parent, new_parent, id, name, new_name } => {
                self.remove(parent, name, id);
                self.add(new_parent, new_name, id);
            }
            Op::Exchange { parent, id, other_parent, other_id, name, other_name } => {
                self.remove(parent, name, id);
                self.remove(other_parent, other_name, other_id);
                self.add(other_parent, other_name, id);
                self.add(parent, name, other_id);
            }
            _ => {}
        }
    }

    fn forget(&mut self, op: &Op<'_>) {
        if let Op::Remove { parent, id, name } = *op {
            self.remove(parent, name, id);
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The name of an operation, the file that it is about, and its other fields.
fn fields(op: &Op<'_>) -> (&'static str, Option<FileId>, Value) {
    match *op {
        Op::Create { parent, id, kind, mode, uid, gid, rdev, name, target } => (
            "create",
            Some(id),
            json!({"parent": parent.to_string(), "name": text(name), "kind": format!("{kind:?}").to_lowercase(),
                "mode": mode, "uid": uid, "gid": gid, "rdev": rdev, "target": text(target)}),
        ),
        Op::Link { parent, id, name } => {
            ("link", Some(id), json!({"parent": parent.to_string(), "name": text(name)}))
        }
        Op::Remove { parent, id, name } => {
            ("remove", Some(id), json!({"parent": parent.to_string(), "name": text(name)}))
        }
        Op::Rename { parent, new_parent, id, name, new_name } => (
            "rename",
            Some(id),
            json!({"parent": parent.to_string(), "name": text(name),
                "new_parent": new_parent.to_string(), "new_name": text(new_name)}),
        ),
        Op::Exchange { parent, id, other_parent, other_id, name, other_name } => (
            "exchange",
            Some(id),
            json!({"parent": parent.to_string(), "name": text(name), "other_file": other_id.to_string(),
                "other_parent": other_parent.to_string(), "other_name": text(other_name)}),
        ),
        Op::Write { id, offset, data } => {
            ("write", Some(id), json!({"offset": offset, "length": data.len()}))
        }
        Op::Truncate { id, size } => ("truncate", Some(id), json!({"size": size})),
        Op::Allocate { id, mode, offset, len } => {
            ("allocate", Some(id), json!({"mode": mode, "offset": offset, "length": len}))
        }
        Op::Mode { id, mode } => ("mode", Some(id), json!({"mode": mode})),
        Op::Owner { id, uid, gid } => ("owner", Some(id), json!({"uid": uid, "gid": gid})),
        Op::Times { id, atime, mtime } => (
            "times",
            Some(id),
            json!({"atime": [atime.secs, i64::from(atime.nanos)], "mtime": [mtime.secs, i64::from(mtime.nanos)]}),
        ),
        Op::SetXattr { id, name, value } => {
            ("attribute", Some(id), json!({"name": text(name), "value": text(value)}))
        }
        Op::RemoveXattr { id, name } => ("attribute-removed", Some(id), json!({"name": text(name)})),
        Op::EpochStart { node } => ("epoch", None, json!({"node": text(node)})),
    }
}

fn create(path: &Path) -> Result<File> {
    File::create_new(path).with_context(|| format!("{}: can't be written; is there space?", path.display()))
}

/// An empty directory, for its owner only: what is exported may be anything.
fn prepare(to: &Path) -> Result<()> {
    match std::fs::read_dir(to).map(Iterator::count) {
        Ok(0) => Ok(()),
        Ok(_) => {
            bail!("{}: is not empty; name an empty directory, or one that is not there yet", to.display())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(to)
            .with_context(|| format!("{}: can't be created", to.display())),
        Err(e) => Err(e).with_context(|| format!("{}: is no directory to export to", to.display())),
    }
}

/// One transaction; returns how many writes it has, and their bytes.
fn transaction(txn: &Txn, name: &str, to: &Path, names: &mut Names) -> Result<(u64, u64)> {
    let (mut writes, mut bytes) = (0, 0);
    let payload = txn.payload()?;
    let mut lines = BufWriter::new(create(&to.join(format!("{name}.jsonl")))?);
    for (n, op) in Ops::new(&payload).enumerate() {
        let op = op?;
        names.learn(&op);
        let (what, id, more) = fields(&op);
        let mut line = json!({"n": n, "op": what});
        if let Some(id) = id {
            line["file"] = json!(id.to_string());
            line["path"] = json!(names.path(id));
        }
        for (k, v) in more.as_object().into_iter().flatten() {
            line[k] = v.clone();
        }
        if let Op::Write { data, .. } = op {
            let file = format!("{name}.{n}.bin");
            create(&to.join(&file))?.write_all(data)?;
            line["data"] = json!(file);
            writes += 1;
            bytes += data.len() as u64;
        }
        names.forget(&op);
        writeln!(lines, "{line}")?;
    }
    lines.flush()?;
    Ok((writes, bytes))
}

/// Exports what `path` is or holds. Returns whether all of it was readable.
pub fn export(path: &Path, to: &Path) -> Result<bool> {
    let files = files(path)?;
    prepare(to)?;
    let mut index = BufWriter::new(create(&to.join("transactions.jsonl"))?);
    let mut names = Names::default();
    let (mut good, mut bad, mut writes, mut bytes) = (0, 0, 0, 0);
    for file in files {
        let name = file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let txn = match read_txn_file(&file) {
            Ok(txn) => txn,
            Err(e) => {
                bad += 1;
                println!("{e}");
                writeln!(index, "{}", json!({"file": name, "error": e.to_string()}))?;
                continue;
            }
        };
        let h = &txn.header;
        let line = json!({
            "file": name, "seq": h.position.seq, "epoch": h.position.epoch, "timestamp": rfc3339(h.timestamp),
            "hash": h.position.hash.to_string(), "prev": h.prev.to_string(), "operations": h.ops,
            "part": h.continues, "state": h.converge,
        });
        writeln!(index, "{line}")?;
        let (w, b) = transaction(&txn, &name, to, &mut names)
            .with_context(|| format!("{}: exporting it to {}", file.display(), to.display()))?;
        good += 1;
        writes += w;
        bytes += b;
    }
    index.flush()?;
    println!(
        "{good} transactions with {writes} writes, {bytes} bytes, in {}; {bad} unreadable",
        to.display()
    );
    Ok(bad == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nasd_volume::op::Kind;

    fn id(n: u64) -> FileId {
        FileId(n)
    }

    fn made(names: &mut Names, parent: u64, n: u64, name: &str) {
        names.learn(&Op::Create {
            parent: id(parent),
            id: id(n),
            kind: Kind::Dir,
            mode: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            name: name.as_bytes(),
            target: b"",
        });
    }

    #[test]
    fn paths_follow_the_names_as_far_as_they_are_told() {
        let mut names = Names::default();
        made(&mut names, 1, 10, "d");
        made(&mut names, 10, 11, "f");
        made(&mut names, 99, 12, "g");
        assert_eq!(names.path(id(11)).as_deref(), Some("d/f"));
        assert_eq!(names.path(id(12)), None, "what it stands in was there before");
        names.learn(&Op::Rename {
            parent: id(10),
            new_parent: id(1),
            id: id(11),
            name: b"f",
            new_name: b"h",
        });
        assert_eq!(names.path(id(11)).as_deref(), Some("h"));
        // A file that was there before gets known by its removal.
        let removal = Op::Remove { parent: id(10), id: id(50), name: b"old" };
        names.learn(&removal);
        assert_eq!(names.path(id(50)).as_deref(), Some("d/old"));
        names.forget(&removal);
        assert_eq!(names.path(id(50)), None);
    }

    #[test]
    fn names_in_a_circle_are_no_path() {
        let mut names = Names::default();
        made(&mut names, 11, 10, "a");
        made(&mut names, 10, 11, "b");
        assert_eq!(names.path(id(10)), None);
    }

    #[test]
    fn two_that_change_places() {
        let mut names = Names::default();
        made(&mut names, 1, 10, "a");
        names.learn(&Op::Exchange {
            parent: id(1),
            id: id(10),
            other_parent: id(1),
            other_id: id(20),
            name: b"a",
            other_name: b"b",
        });
        assert_eq!((names.path(id(10)), names.path(id(20))), (Some("b".into()), Some("a".into())));
    }
}
