//! `pg_wal` onto a volume and off it again.
//!
//! At every instant `pg_wal` is either the old one, whole, or the new one, whole and durable: one exchange of two
//! names turns one into the other. Whatever interrupts, doing it again completes it. Nothing on the volume is
//! removed that is not a copy of our own by its name: a `pg_wal` that is there may be another cluster's.

use std::fs;
use std::io;
use std::os::unix::fs::{lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::cluster::Cluster;
use super::copy::{Copied, copy_tree, is_empty_dir, same_tree};
use super::error::{Context, PostgresError};
use super::files::{remove_file, sync_parent, with_suffix};
use crate::process::place_of;

/// Puts the WAL of a stopped cluster on the volume that is mounted at `mount`, into its directory `dir_in_mount`, and
/// says what was done. The cluster was shut down in order, and nothing else is in that directory.
pub fn adopt(cluster: &Cluster, mount: &Path, dir_in_mount: &str) -> Result<Vec<String>, PostgresError> {
    let mut done = Vec::new();
    refuse_running(cluster)?;
    let link = cluster.wal_path();
    let wal = mount.join(dir_in_mount);
    if leads_to(&link, &wal) {
        done.push(format!("{} leads to {} already", link.display(), wal.display()));
    } else {
        let control = cluster.control()?;
        if !control.shut_down() {
            let data_dir = cluster.data_dir().to_path_buf();
            return Err(PostgresError::NotShutDown { data_dir, state: control.state });
        }
        let source = fs::canonicalize(&link).with("looking at", &link)?;
        bring(&source, &wal, &mut done)?;
        exchange_for_link(cluster, &link, &wal)?;
        done.push(format!("{} leads to {}", link.display(), wal.display()));
    }
    remove_old(&old_wal(&link), &mut done)?;
    if cluster.write_settings()? {
        let names: Vec<_> =
            super::settings().iter().map(|(name, value, _)| format!("{name} = {value}")).collect();
        done.push(format!("postgresql.auto.conf has {}", names.join(", ")));
    }
    Ok(done)
}

/// Takes the WAL of a stopped cluster back from the volume that is mounted at `mount`, and says what was done. What it
/// was on the volume is removed, unless the volume is read-only here.
pub fn release(cluster: &Cluster, mount: &Path, dir_in_mount: &str) -> Result<Vec<String>, PostgresError> {
    let mut done = Vec::new();
    refuse_running(cluster)?;
    let link = cluster.wal_path();
    let wal = mount.join(dir_in_mount);
    // A copy in the making, or, after the exchange, the link: then what is on the volume is still to be removed.
    let aside = with_suffix(&link, ".nasd-release");
    if link.is_symlink() {
        if !leads_to(&link, &wal) {
            let target = cluster.wal_link()?;
            return Err(PostgresError::OtherLink { link, target, wanted: wal });
        }
        remove(&aside)?;
        let copied = copy_tree(&wal, &aside)?;
        exchange(&aside, &link)?;
        done.push(format!("{} is a directory again, with {}", link.display(), say(copied)));
    } else {
        done.push(format!("{} is a directory already", link.display()));
    }
    if aside.is_symlink() {
        remove_from_volume(&wal, &mut done)?;
        remove(&aside)?;
        sync_parent(&aside)?;
    }
    remove_if_writable(&with_suffix(&wal, GIVEN_UP))?;
    if cluster.remove_settings()? {
        done.push("postgresql.auto.conf is without nasd's settings".to_owned());
    }
    Ok(done)
}

/// Behind the name of a directory on the volume that is a copy in the making.
const DRAFT: &str = ".nasd-new";
/// Behind that of one that is given up.
const GIVEN_UP: &str = ".nasd-old";

/// What `pg_wal` was before the exchange; until then the link that it will be.
fn old_wal(link: &Path) -> PathBuf {
    with_suffix(link, ".nasd-adopt")
}

fn refuse_running(cluster: &Cluster) -> Result<(), PostgresError> {
    match cluster.in_use() {
        Some(postmaster) => {
            Err(PostgresError::Running { data_dir: cluster.data_dir().to_path_buf(), pid: postmaster.pid() })
        }
        None => Ok(()),
    }
}

/// Whether the link leads there, by whatever path.
fn leads_to(link: &Path, wal: &Path) -> bool {
    link.is_symlink()
        && (fs::read_link(link).is_ok_and(|target| target == wal)
            || place_of(link).is_ok_and(|there| place_of(wal).is_ok_and(|here| there == here)))
}

/// Has the WAL on the volume, whole and durable, under its name.
fn bring(source: &Path, wal: &Path, done: &mut Vec<String>) -> Result<(), PostgresError> {
    if wal.exists() && !is_empty_dir(wal)? {
        // Ours, when we were interrupted here and the cluster has not run since.
        if same_tree(source, wal)? {
            done.push(format!("{} holds the WAL already", wal.display()));
            return Ok(());
        }
        return Err(PostgresError::NotEmpty(wal.to_path_buf()));
    }
    let draft = with_suffix(wal, DRAFT);
    remove(&draft)?;
    let copied = copy_tree(source, &draft)?;
    fs::rename(&draft, wal).with("renaming to", wal)?;
    sync_parent(wal)?;
    done.push(format!("{} holds {}", wal.display(), say(copied)));
    Ok(())
}

fn exchange_for_link(cluster: &Cluster, link: &Path, wal: &Path) -> Result<(), PostgresError> {
    let aside = old_wal(link);
    // A directory here is a pg_wal of before: somebody has put a third one into its place meanwhile.
    if aside.is_dir() && !aside.is_symlink() {
        return Err(PostgresError::NotEmpty(aside));
    }
    remove_file(&aside)?;
    symlink(wal, &aside).with("making", &aside)?;
    let owner = cluster.owner()?;
    lchown(&aside, Some(owner.uid), Some(owner.gid)).with("giving to the database", &aside)?;
    exchange(&aside, link)
}

fn exchange(a: &Path, b: &Path) -> Result<(), PostgresError> {
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).with("exchanging with its like", b)?;
    sync_parent(b)
}

fn remove_old(old: &Path, done: &mut Vec<String>) -> Result<(), PostgresError> {
    if old.is_symlink() {
        // It was on another disk: whose that is we can't know.
        let target = fs::read_link(old).with("reading the link", old)?;
        done.push(format!("{} is not used any more; remove it when you like", target.display()));
    } else if old.exists() {
        done.push("the old pg_wal is removed".to_owned());
    }
    remove(old)?;
    sync_parent(old)
}

/// Removes the WAL from the volume, in one step as far as names go: once it has lost its name, somebody else's may get it.
fn remove_from_volume(wal: &Path, done: &mut Vec<String>) -> Result<(), PostgresError> {
    let given_up = with_suffix(wal, GIVEN_UP);
    // When that is there the step was done before.
    if given_up.exists() || !wal.exists() {
        return Ok(());
    }
    match fs::rename(wal, &given_up) {
        Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            done.push(format!("{} stays: the volume is read-only here", wal.display()));
            Ok(())
        }
        other => {
            other.with("renaming", wal)?;
            sync_parent(wal)?;
            done.push(format!("{} is removed", wal.display()));
            Ok(())
        }
    }
}

fn remove_if_writable(path: &Path) -> Result<(), PostgresError> {
    match remove(path) {
        Err(PostgresError::Io { source, .. }) if source.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        other => other,
    }
}

/// Removes whatever has this name; a link itself, never what it leads to.
fn remove(path: &Path) -> Result<(), PostgresError> {
    if path.is_dir() && !path.is_symlink() {
        fs::remove_dir_all(path).with("removing", path)
    } else {
        remove_file(path)
    }
}

fn say(copied: Copied) -> String {
    format!("{} files, {} MiB", copied.files, copied.bytes >> 20)
}
