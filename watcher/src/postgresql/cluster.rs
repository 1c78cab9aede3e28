//! One cluster: where it is, what it is, what it needs.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::backup_label::BackupLabel;
use super::control::Control;
use super::debian::{self, Known};
use super::error::{Context, PostgresError};
use super::files::{self, Owner, Stamp};
use super::program::{Program, account};
use super::wal::Need;

/// How long a program may take that reads a few files.
const SHORT: Duration = Duration::from_secs(30);

/// A PostgreSQL cluster on this machine: a data directory, the programs that belong to it, and the user that they run
/// as. Clones are the same cluster and share what they know of it.
#[derive(Clone, Debug)]
pub struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    data_dir: PathBuf,
    bin_dir: Option<PathBuf>,
    user: String,
    config_root: PathBuf,
    /// The last `pg_control` that was read. Held while it is read, so that many who ask read it once.
    control: Mutex<Option<(Stamp, Control)>>,
    /// The last answer to what is needed. Taken before `control`.
    need: Mutex<Option<((Stamp, Option<Stamp>), Need)>>,
}

impl Cluster {
    /// A cluster that is in this directory, or will be. `bin_dir` is where its programs are, if that is not to be found
    /// out; `user` is whom they run as. Nothing is looked at yet.
    pub fn new(data_dir: PathBuf, bin_dir: Option<PathBuf>, user: String) -> Cluster {
        Cluster(Arc::new(Inner {
            data_dir,
            bin_dir,
            user,
            config_root: debian::CONFIG_ROOT.into(),
            control: Mutex::default(),
            need: Mutex::default(),
        }))
    }

    /// The same cluster, its configuration to be looked for below another directory than `/etc/postgresql`.
    #[must_use]
    pub fn with_config_root(&self, root: PathBuf) -> Cluster {
        self.but(self.0.data_dir.clone(), root)
    }

    /// One in another directory that is otherwise alike.
    pub(super) fn at(&self, data_dir: PathBuf) -> Cluster {
        self.but(data_dir, self.0.config_root.clone())
    }

    fn but(&self, data_dir: PathBuf, config_root: PathBuf) -> Cluster {
        let Inner { bin_dir, user, .. } = &*self.0;
        Cluster(Arc::new(Inner {
            data_dir,
            bin_dir: bin_dir.clone(),
            user: user.clone(),
            config_root,
            control: Mutex::default(),
            need: Mutex::default(),
        }))
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.0.data_dir
    }

    /// Whom its programs run as.
    pub fn user(&self) -> &str {
        &self.0.user
    }

    /// Gives a directory to whom its programs run as, and to that user's group.
    pub fn give(&self, dir: &Path) -> Result<(), PostgresError> {
        let account = account(self.user())?;
        std::os::unix::fs::chown(dir, Some(account.uid.as_raw()), Some(account.gid.as_raw()))
            .with("giving to the database", dir)
    }

    /// Where its programs are: as given, or where the packages of its version put them, or what `pg_config` says. Before
    /// there is a cluster it is the version that its configuration is for, or the newest that is installed.
    pub fn bin_dir(&self) -> Result<PathBuf, PostgresError> {
        if let Some(dir) = &self.0.bin_dir {
            return Ok(dir.clone());
        }
        let version =
            files::read(&self.file("PG_VERSION"))?.map(|text| OsString::from_vec(text.trim_ascii().into()));
        let version = version.or_else(|| self.known().map(|known| known.version));
        let found = match version {
            Some(version) => places(&version).into_iter().find(|dir| has_server(dir)),
            None => newest(),
        };
        let found = found.or_else(|| {
            let dir = Program::new(Path::new("pg_config")).arg("--bindir").run(SHORT).ok()?;
            Some(PathBuf::from(OsString::from_vec(dir.trim_ascii().into()))).filter(|dir| has_server(dir))
        });
        found.ok_or_else(|| PostgresError::NoPrograms(self.0.data_dir.clone()))
    }

    /// Whether there is a complete cluster. One that is being cloned gets its name when it is complete.
    pub fn exists(&self) -> bool {
        self.control_file().is_file()
    }

    /// What the cluster knows of itself. Asking again costs a look at the file's time.
    pub fn control(&self) -> Result<Control, PostgresError> {
        let path = self.control_file();
        let mut last = self.0.control.lock();
        let mut why = String::new();
        // PostgreSQL overwrites the file in place, and whoever reads it meanwhile gets a torn one.
        for attempt in 0..10 {
            let stamp = Stamp::of(&path)?.ok_or_else(|| PostgresError::NoCluster(self.0.data_dir.clone()))?;
            if let Some((of, control)) = &*last
                && *of == stamp
            {
                return Ok(control.clone());
            }
            *last = None;
            let program = Program::new(&self.program("pg_controldata")?).arg("-D").arg(&self.0.data_dir);
            match Control::parse(&String::from_utf8_lossy(&program.run(SHORT)?)) {
                Ok(control) => {
                    if stamp.keeps() && Stamp::of(&path)? == Some(stamp) {
                        *last = Some((stamp, control.clone()));
                    }
                    return Ok(control);
                }
                Err(reason) => why = reason,
            }
            std::thread::sleep(Duration::from_millis(1 << attempt.min(5)));
        }
        Err(PostgresError::Damaged { path, why })
    }

    /// From where on this cluster needs WAL, to start or to go on: from where its latest checkpoint says, or its base
    /// backup if no recovery from it has begun. None when there is no complete cluster: what it will need is not known,
    /// so it is all.
    ///
    /// While nothing changed, asking costs two looks at files' times.
    pub fn needed_from(&self) -> Result<Option<Need>, PostgresError> {
        let label = self.file("backup_label");
        // The label first: it goes when what it says is in pg_control. The other way round both could be missed.
        let label_stamp = Stamp::of(&label)?;
        let Some(control_stamp) = Stamp::of(&self.control_file())? else { return Ok(None) };
        let stamps = (control_stamp, label_stamp);
        let mut last = self.0.need.lock();
        if let Some((of, need)) = &*last
            && *of == stamps
        {
            return Ok(Some(*need));
        }
        let start = match files::read(&label)? {
            Some(text) => BackupLabel::parse(&String::from_utf8_lossy(&text))
                .map(|label| Some(label.start))
                .map_err(|why| PostgresError::Damaged { path: label, why })?,
            None => None,
        };
        let control = self.control()?;
        let from = start.map_or(control.redo, |start| start.min(control.redo));
        let need = Need::from(from, control.segment_bytes);
        let keeps = control_stamp.keeps() && label_stamp.is_none_or(|stamp| stamp.keeps());
        *last = keeps.then_some((stamps, need));
        Ok(Some(need))
    }

    /// Whether it starts as a standby.
    pub fn is_standby(&self) -> bool {
        self.file("standby.signal").exists()
    }

    /// Where its WAL is.
    pub fn wal_link(&self) -> Result<PathBuf, PostgresError> {
        let link = self.wal_path();
        match fs::read_link(&link) {
            // One that is relative starts from where the link is.
            Ok(target) => Ok(self.0.data_dir.join(target)),
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                Err(PostgresError::NoLink(link))
            }
            Err(e) => Err(e).with("reading the link", link),
        }
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.data_dir.join(name)
    }

    pub(super) fn wal_path(&self) -> PathBuf {
        self.file("pg_wal")
    }

    pub(super) fn control_file(&self) -> PathBuf {
        self.file("global/pg_control")
    }

    pub(super) fn program(&self, name: &str) -> Result<PathBuf, PostgresError> {
        Ok(self.bin_dir()?.join(name))
    }

    pub(super) fn owner(&self) -> Result<Owner, PostgresError> {
        Owner::of(&self.0.data_dir)
    }

    /// How Debian's tools know it, if they do.
    pub(super) fn known(&self) -> Option<Known> {
        debian::find(&self.0.config_root, &self.0.data_dir)
    }

    /// The configuration that the server must be told of, or None when it is in the data directory.
    pub(super) fn configuration(&self) -> Result<Option<Known>, PostgresError> {
        if self.file("postgresql.conf").exists() {
            return Ok(None);
        }
        self.known().map(Some).ok_or_else(|| PostgresError::NoConfiguration {
            data_dir: self.0.data_dir.clone(),
            config_root: self.0.config_root.clone(),
        })
    }
}

fn has_server(dir: &Path) -> bool {
    dir.join("postgres").is_file()
}

/// Where Debian's and Red Hat's packages put a version.
fn places(version: &std::ffi::OsStr) -> [PathBuf; 2] {
    let mut red_hat = OsString::from("/usr/pgsql-");
    red_hat.push(version);
    [Path::new("/usr/lib/postgresql").join(version).join("bin"), Path::new(&red_hat).join("bin")]
}

/// The newest version that is installed.
fn newest() -> Option<PathBuf> {
    let names = |dir: &str| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let red_hat = names("/usr").filter_map(|name| {
        name.as_bytes().strip_prefix(b"pgsql-").map(|version| OsString::from_vec(version.to_vec()))
    });
    let mut versions: Vec<u32> = names("/usr/lib/postgresql")
        .chain(red_hat)
        .filter_map(|version| version.to_str()?.parse().ok())
        .collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions.into_iter().flat_map(|version| places(version.to_string().as_ref())).find(|dir| has_server(dir))
}
