//! What can go wrong with a cluster. Each error is one line that names the thing and the remedy.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// Why something was not done with a PostgreSQL cluster.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresError {
    /// The filesystem refuses.
    #[error("{what} {}: {source}; look at its permissions and its disk", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program of PostgreSQL's or the system's can't be run.
    #[error("cannot run {program}: {source}; install it, or set the directory of PostgreSQL's programs")]
    Exec {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{program} ended with {status}: {said}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last words.
        said: String,
    },
    /// A program did not end.
    #[error(
        "{program} took longer than {limit:?} and was killed: {said}; is PostgreSQL waiting for its disk?"
    )]
    TooLong {
        /// The program.
        program: String,
        /// How long it might.
        limit: Duration,
        /// Its last words.
        said: String,
    },
    /// The system does not know the database's user.
    #[error("there is no user {0} here; name the one that PostgreSQL runs as")]
    NoUser(String),
    /// Becoming another user takes root.
    #[error("only root can run PostgreSQL as user {0}; run nasd as root, or as {0}")]
    NotRoot(String),
    /// PostgreSQL is not found.
    #[error("PostgreSQL's programs for {} are not found; install PostgreSQL, or set the directory of its programs", .0.display())]
    NoPrograms(PathBuf),
    /// No configuration for the server.
    #[error(
        "there is no postgresql.conf for {0}: neither in it nor below {1} with data_directory = '{0}'; \
         make one (pg_createcluster does on Debian), or copy the primary's postgresql.conf and pg_hba.conf into {0}",
        data_dir.display(), config_root.display()
    )]
    NoConfiguration {
        /// The cluster.
        data_dir: PathBuf,
        /// Where Debian keeps configurations.
        config_root: PathBuf,
    },
    /// There is no cluster, or one that is not complete.
    #[error("{} holds no PostgreSQL cluster; make one (initdb), or clone the primary's", .0.display())]
    NoCluster(PathBuf),
    /// A file of the cluster makes no sense.
    #[error("{}: {why}; is it damaged? A standby is cloned again, a primary restored from its backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// `pg_wal` is where initdb put it.
    #[error("{} is no symbolic link: this cluster's WAL is not on the volume; stop PostgreSQL and adopt the cluster", .0.display())]
    NoLink(PathBuf),
    /// `pg_wal` leads elsewhere.
    #[error("{} leads to {} and not to {}; say which volume it is on", link.display(), target.display(), wanted.display())]
    OtherLink {
        /// The link.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
        /// Where it should.
        wanted: PathBuf,
    },
    /// It runs, and must not.
    #[error("PostgreSQL runs in {} (process {pid}); stop it first", data_dir.display())]
    Running {
        /// The cluster.
        data_dir: PathBuf,
        /// Its process.
        pid: i32,
    },
    /// It does not run, and must.
    #[error("PostgreSQL does not run in {}; start it first", .0.display())]
    NotRunning(PathBuf),
    /// It does not start.
    #[error("PostgreSQL did not start in {}: {said}; its log ends with: {log}", data_dir.display())]
    NotStarted {
        /// The cluster.
        data_dir: PathBuf,
        /// What `pg_ctl` said.
        said: String,
        /// The last lines of the server's log.
        log: String,
    },
    /// It runs, but is not as far as it should be.
    #[error(
        "PostgreSQL in {} does not {wanted} yet, after {after:?}; it goes on: wait, or see what it waits for, as WAL that has \
         not arrived; its log ends with: {log}", data_dir.display()
    )]
    NotYet {
        /// The cluster.
        data_dir: PathBuf,
        /// What it should do.
        wanted: &'static str,
        /// How long it had.
        after: Duration,
        /// The last lines of the server's log.
        log: String,
    },
    /// It ended meanwhile.
    #[error("PostgreSQL in {} ended before it could {wanted}; its log ends with: {log}", data_dir.display())]
    Died {
        /// The cluster.
        data_dir: PathBuf,
        /// What it should do.
        wanted: &'static str,
        /// The last lines of the server's log.
        log: String,
    },
    /// A killed process is still there.
    #[error("PostgreSQL in {} was killed and is still there; its processes wait for a disk that does not answer", .0.display())]
    Undead(PathBuf),
    /// It was not shut down in order.
    #[error(
        "the cluster in {} is {state:?} and not shut down in order; start PostgreSQL and stop it, then try again",
        data_dir.display()
    )]
    NotShutDown {
        /// The cluster.
        data_dir: PathBuf,
        /// What it is.
        state: String,
    },
    /// Something is in the way.
    #[error("{} is not empty; move away what is there", .0.display())]
    NotEmpty(PathBuf),
    /// It can't be replaced by a complete one in one step.
    #[error("{} is a mount point; name a directory below it as the data directory", .0.display())]
    MountPoint(PathBuf),
    /// Not all kinds of files can be copied.
    #[error("{} is neither file nor directory nor symbolic link; remove it, PostgreSQL has none such", .0.display())]
    OddFile(PathBuf),
    /// Two clones at a time.
    #[error("{} is being filled by another clone; wait for its end", .0.display())]
    Cloning(PathBuf),
    /// The WAL on the volume can't be read by the database here.
    #[error(
        "{} belongs to user {owner}, but {user} is number {uid} here; give it the same number on all nodes (usermod -u)",
        path.display()
    )]
    Owner {
        /// The directory on the volume.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who should be.
        user: String,
        /// Who that is here.
        uid: u32,
    },
    /// A clone is of no use without the WAL that it starts from.
    #[error(
        "the clone starts at WAL segment {segment}, which is not in {}; is this the volume of that primary, and in sync \
         (nasd status)? Then clone again", wal.display()
    )]
    NoWal {
        /// The file's name.
        segment: String,
        /// Where it should be.
        wal: PathBuf,
    },
    /// The WAL on the volume is of another cluster than the clone.
    #[error(
        "the clone is of cluster {clone}, but the WAL in {} is of cluster {found}; clone from the database whose pg_wal is \
         on this volume", wal.display()
    )]
    Foreign {
        /// The clone's system identifier.
        clone: u64,
        /// That of the WAL.
        found: u64,
        /// Where it is.
        wal: PathBuf,
    },
}

/// Says with what something failed.
pub(super) trait Context<T> {
    fn with(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, PostgresError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn with(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, PostgresError> {
        self.map_err(|e| PostgresError::Io { what, path: path.into(), source: e.into() })
    }
}
