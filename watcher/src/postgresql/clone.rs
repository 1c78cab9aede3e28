//! A standby made from a running primary.
//!
//! `pg_basebackup` copies the data files; the WAL is on the volume already. The copy is made beside the data directory
//! and gets its name when it is complete and durable, so that a cluster that is there is always a whole one.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::backup_label::BackupLabel;
use super::cluster::Cluster;
use super::copy::{clear_dir, is_empty_dir};
use super::error::{Context, PostgresError};
use super::files::{self, sync_dir, sync_parent, with_suffix};
use super::program::{Program, account};
use super::server::LOG;
use crate::process::place_of;

/// How long WAL that the primary has may be on its way to the volume here.
const ON_ITS_WAY: Duration = Duration::from_secs(10);

/// Of whom a clone is made, and where its WAL is.
#[derive(Clone, Debug)]
pub struct CloneOptions {
    /// The primary, as libpq's connection string says it: `host=… user=…`. That user may replicate.
    pub from: String,
    /// The directory with the WAL on the volume that is mounted here.
    pub wal_target: PathBuf,
}

/// Makes this cluster a clone of the primary, to be started as a standby, and says what was done. Its data directory is
/// not there yet, or empty. `progress` gets each line that `pg_basebackup` says. It takes as long as copying takes.
pub fn clone_from(
    cluster: &Cluster,
    options: &CloneOptions,
    progress: impl FnMut(&str),
) -> Result<Vec<String>, PostgresError> {
    let account = account(cluster.user())?;
    let target = target(cluster.data_dir())?;
    let wal = &options.wal_target;
    let there = fs::metadata(wal).with("looking at", wal)?;
    if there.uid() != account.uid.as_raw() {
        return Err(PostgresError::Owner {
            path: wal.clone(),
            owner: there.uid(),
            user: cluster.user().to_owned(),
            uid: account.uid.as_raw(),
        });
    }
    let draft = Draft::new(with_suffix(&target, ".nasd-clone"))?;
    let ids = (Some(account.uid.as_raw()), Some(account.gid.as_raw()));
    lchown(&draft.path, ids.0, ids.1).with("giving to the database", &draft.path)?;
    // PostgreSQL refuses a directory that others may enter, and an earlier clone may have made this one.
    let private = fs::Permissions::from_mode(0o700);
    fs::set_permissions(&draft.path, private).with("setting the mode of", &draft.path)?;

    Program::as_user_while_we_live(&cluster.program("pg_basebackup")?, cluster.user())?
        .args(["--wal-method=none", "--checkpoint=fast", "--progress", "--verbose", "--no-password", "-D"])
        .arg(&draft.path)
        .arg("-d")
        .arg(&options.from)
        .run_telling(progress)?;

    let copy = cluster.at(draft.path.clone());
    let control = copy.control()?;
    let label = read_label(&copy.file("backup_label"))?;
    // Before it gets its name: without this it would wait for its WAL for ever.
    check_wal(wal, &label, control.system_id)?;
    let link = copy.wal_path();
    fs::remove_dir_all(&link).with("removing", &link)?;
    symlink(wal, &link).with("making", &link)?;
    lchown(&link, ids.0, ids.1).with("giving to the database", &link)?;
    // The primary's, which would seem to be what the clone said.
    files::remove_file(&copy.file(LOG))?;
    copy.remove_foreign_settings()?;
    copy.write_settings()?;
    files::write_durably(&copy.file("standby.signal"), b"", copy.owner()?)?;
    sync_dir(&draft.path)?;
    draft.keep_as(&target)?;

    let mut done = vec![
        format!("{} is a clone of cluster {}", target.display(), control.system_id),
        format!("it starts at WAL segment {}, which is in {}", label.file, wal.display()),
    ];
    if let Err(missing) = cluster.configuration() {
        done.push(format!("before it is started: {missing}"));
    }
    Ok(done)
}

/// How far the copy is, if that is what a line of `pg_basebackup` says: bytes copied, and bytes that it expects in all.
pub fn copied(line: &str) -> Option<(u64, u64)> {
    let (done, total) = line.split_once(" kB (")?.0.split_once('/')?;
    let bytes = |kib: &str| kib.trim().parse::<u64>().ok()?.checked_mul(1024);
    Some((bytes(done)?, bytes(total)?))
}

/// Where the clone will be: what a link leads to, and nothing or an empty directory that can be replaced.
fn target(data_dir: &Path) -> Result<PathBuf, PostgresError> {
    let target = match fs::canonicalize(data_dir) {
        Ok(target) => target,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(data_dir.to_path_buf()),
        Err(e) => return Err(e).with("looking at", data_dir),
    };
    if !is_empty_dir(&target)? {
        return Err(PostgresError::NotEmpty(target));
    }
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).with("looking at", path);
    match target.parent() {
        Some(parent) if device(parent)? == device(&target)? => Ok(target),
        _ => Err(PostgresError::MountPoint(target)),
    }
}

/// A directory in the making, which nobody else fills. It is removed when it is not kept.
struct Draft {
    path: PathBuf,
    lock: File,
    kept: bool,
}

impl Draft {
    /// What an earlier one left behind is removed.
    fn new(path: PathBuf) -> Result<Draft, PostgresError> {
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e).with("making", &path)?,
            _ => {}
        }
        let lock = File::open(&path).with("opening", &path)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(PostgresError::Cloning(path)),
            other => other.with("locking", &path)?,
        }
        // Another one may have been completed between these two, and what we hold has its final name.
        let ours = lock.metadata().map(|meta| (meta.dev(), meta.ino())).with("looking at", &path)?;
        if place_of(&path).ok() != Some(ours) {
            return Err(PostgresError::Cloning(path));
        }
        clear_dir(&path)?;
        Ok(Draft { path, lock, kept: false })
    }

    fn keep_as(mut self, target: &Path) -> Result<(), PostgresError> {
        fs::rename(&self.path, target).with("renaming to", target)?;
        self.kept = true;
        sync_parent(target)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // What can't be removed now the next clone removes.
        if !self.kept {
            let _ = fs::remove_dir_all(&self.path);
        }
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

fn read_label(path: &Path) -> Result<BackupLabel, PostgresError> {
    let text = fs::read(path).with("reading", path)?;
    BackupLabel::parse(&String::from_utf8_lossy(&text))
        .map_err(|why| PostgresError::Damaged { path: path.to_path_buf(), why })
}

/// Looks whether the WAL that the clone begins with is on the volume here, and is of the same cluster.
fn check_wal(wal: &Path, label: &BackupLabel, clone: u64) -> Result<(), PostgresError> {
    let path = wal.join(&label.file);
    let deadline = Instant::now() + ON_ITS_WAY;
    let file = loop {
        match File::open(&path) {
            Ok(file) => break file,
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with("reading", &path),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Err(_) => {
                return Err(PostgresError::NoWal { segment: label.file.clone(), wal: wal.to_path_buf() });
            }
        }
    };
    let mut head = [0; 32];
    file.read_exact_at(&mut head, 0).with("reading", &path)?;
    match cluster_of_wal(&head) {
        Some(found) if found == clone => Ok(()),
        Some(found) => Err(PostgresError::Foreign { clone, found, wal: wal.to_path_buf() }),
        None => {
            Err(PostgresError::Damaged { path, why: "it does not begin as a WAL segment does".to_owned() })
        }
    }
}

/// The system identifier in the head of a segment. It is where it was since PostgreSQL 9.3, in the machine's byte order.
fn cluster_of_wal(head: &[u8; 32]) -> Option<u64> {
    const LONG_HEADER: u16 = 2;
    let info = u16::from_ne_bytes([head[2], head[3]]);
    let id = head.last_chunk::<8>()?;
    (info & LONG_HEADER != 0).then(|| u64::from_ne_bytes(*id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_progress_is_understood() {
        let line = " 4321/56789 kB (7%), 0/1 tablespace (...stgresql/15/main/base/1/2 kB (1)";
        assert_eq!(copied(line), Some((4321 * 1024, 56789 * 1024)));
        for other in
            ["pg_basebackup: checkpoint completed", "12/x kB (", "", "99999999999999999999/1 kB (1%)"]
        {
            assert_eq!(copied(other), None, "{other}");
        }
    }
}
