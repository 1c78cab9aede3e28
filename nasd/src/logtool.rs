//! `nasd log`: looks at transaction files, offline, wherever they lie.

use anyhow::{Context, Result};
use nasd_volume::log::read_txn_file;
use nasd_volume::op::{Op, Ops};
use nasd_volume::txn::{Txn, rfc3339, seq_of_name};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The number of a transaction in a directory, also of one that was set aside beside another of its name: `….txn.1`.
fn seq_of(name: &[u8]) -> Option<u64> {
    seq_of_name(name).or_else(|| {
        let dot = name.iter().rposition(|&b| b == b'.')?;
        name[dot + 1..].iter().all(u8::is_ascii_digit).then(|| seq_of_name(&name[..dot]))?
    })
}

/// The transaction files that `path` is or holds, by sequence number.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = BTreeMap::new();
    let entries = std::fs::read_dir(path)
        .with_context(|| format!("{}: no such log directory or file", path.display()))?;
    for entry in entries {
        let entry = entry?;
        if let Some(seq) = seq_of(entry.file_name().as_encoded_bytes()) {
            found.insert((seq, entry.file_name()), entry.path());
        }
    }
    if found.is_empty() {
        anyhow::bail!(
            "{}: no transaction files here; the log directory is STATE_DIR/log, and what was set aside is in \
             STATE_DIR/diverged",
            path.display()
        );
    }
    Ok(found.into_values().collect())
}

fn line(txn: &Txn) -> String {
    let h = &txn.header;
    let flags = [(h.continues, " part"), (h.converge, " state"), (h.lz4, " lz4")];
    let flags: String = flags.iter().filter(|f| f.0).map(|f| f.1).collect();
    format!(
        "{:>10}  epoch {:<4} {}  {:>5} operations  {:>9} bytes{flags}",
        h.position.seq,
        h.position.epoch,
        rfc3339(h.timestamp),
        h.ops,
        txn.bytes().len()
    )
}

/// One line a transaction. Returns whether all were readable.
pub fn list(path: &Path) -> Result<bool> {
    let mut good = true;
    for file in files(path)? {
        match read_txn_file(&file) {
            Ok(txn) => println!("{}", line(&txn)),
            Err(e) => {
                good = false;
                println!("{e}");
            }
        }
    }
    Ok(good)
}

/// Every operation.
pub fn show(path: &Path) -> Result<bool> {
    let mut good = true;
    for file in files(path)? {
        let txn = match read_txn_file(&file) {
            Ok(t) => t,
            Err(e) => {
                good = false;
                println!("{e}");
                continue;
            }
        };
        println!("{}\n  hash {}\n  prev {}", line(&txn), txn.header.position.hash, txn.header.prev);
        for op in Ops::new(&txn.payload()?) {
            println!("  {}", describe(&op?));
        }
    }
    Ok(good)
}

/// Whether every file is whole and the chain has no gap.
pub fn verify(path: &Path) -> Result<bool> {
    let mut bad = 0;
    let mut n = 0;
    let mut last: Option<nasd_volume::txn::Header> = None;
    for file in files(path)? {
        n += 1;
        let checked = read_txn_file(&file).map_err(|e| e.to_string()).and_then(|t| {
            t.check_ops().map_err(|e| format!("{}: {e}", file.display()))?;
            Ok(t)
        });
        match checked {
            Ok(txn) => {
                let h = txn.header;
                if let Some(l) = last
                    && (h.position.seq != l.position.seq + 1 || h.prev != l.position.hash)
                {
                    bad += 1;
                    println!(
                        "{}: does not follow transaction {}; one is missing or foreign",
                        file.display(),
                        l.position.seq
                    );
                }
                last = Some(h);
            }
            Err(e) => {
                bad += 1;
                println!("{e}");
            }
        }
    }
    println!("{n} transactions, {bad} bad");
    Ok(bad == 0)
}

fn text(b: &[u8]) -> String {
    String::from_utf8_lossy(b).escape_debug().to_string()
}

fn describe(op: &Op<'_>) -> String {
    match *op {
        Op::Create { parent, id, kind, mode, uid, gid, name, target, .. } => {
            let target = if target.is_empty() { String::new() } else { format!(" -> {}", text(target)) };
            format!("create {kind:?} {id} at {parent}/{}{target} mode {mode:o} owner {uid}:{gid}", text(name))
        }
        Op::Link { parent, id, name } => format!("link {id} at {parent}/{}", text(name)),
        Op::Remove { parent, id, name } => format!("remove {id} at {parent}/{}", text(name)),
        Op::Rename { parent, new_parent, id, name, new_name } => {
            format!("rename {id} from {parent}/{} to {new_parent}/{}", text(name), text(new_name))
        }
        Op::Exchange { parent, id, other_parent, other_id, name, other_name } => format!(
            "exchange {id} at {parent}/{} with {other_id} at {other_parent}/{}",
            text(name),
            text(other_name)
        ),
        Op::Write { id, offset, data } => format!("write {id} at {offset}, {} bytes", data.len()),
        Op::Truncate { id, size } => format!("truncate {id} to {size}"),
        Op::Allocate { id, mode, offset, len } => {
            format!("allocate {id} at {offset}, {len} bytes, mode {mode:x}")
        }
        Op::Mode { id, mode } => format!("mode {id} {mode:o}"),
        Op::Owner { id, uid, gid } => format!("owner {id} {uid}:{gid}"),
        Op::Times { id, atime, mtime } => {
            format!(
                "times {id} atime {}.{:09} mtime {}.{:09}",
                atime.secs, atime.nanos, mtime.secs, mtime.nanos
            )
        }
        Op::SetXattr { id, name, value } => {
            format!("attribute {id} {} = {} bytes", text(name), value.len())
        }
        Op::RemoveXattr { id, name } => format!("attribute {id} {} removed", text(name)),
        Op::EpochStart { node } => format!("epoch starts on {}", text(node)),
    }
}
