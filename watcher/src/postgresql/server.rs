//! Starting, promoting and stopping the server.

use std::fs::{self, DirBuilder, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cluster::Cluster;
use super::error::{Context, PostgresError};
use super::files::{self, Stamp};
use super::postmaster::Postmaster;
use super::program::{Program, one_line};
use crate::process::{self, Process, wait_any};

/// The server's log when nobody else has a place for it.
pub(super) const LOG: &str = "log/nasd.log";

/// How often is looked whether a server is as far as it should be. `pg_ctl` looks every 100 ms.
const LOOK: Duration = Duration::from_millis(5);

/// The server kills its own processes 5 s after it was told to end at once.
const IMMEDIATE: Duration = Duration::from_secs(6);

/// How long killed processes may take to be gone.
const KILLED: Duration = Duration::from_secs(5);

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Connections are cut, a checkpoint is made; the next start has nothing to recover.
    Fast,
    /// At once, as by a crash: the next start recovers.
    Immediate,
}

/// As far as a server should come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goal {
    Ready,
    Replaying,
}

impl Goal {
    fn wanted(self) -> &'static str {
        match self {
            Goal::Ready => "accept connections",
            Goal::Replaying => "replay",
        }
    }
}

impl Cluster {
    /// Starts it as a standby, whatever it was. A server that runs already is left as it is.
    ///
    /// Ok is: it accepts connections, or it has begun to replay. A standby accepts no connections before it has
    /// replayed what its data files need, which can take as long as it likes and needs WAL that may still be on its
    /// way; `pg_ctl start -w` would wait for that.
    pub fn start_standby(&self, timeout: Duration) -> Result<(), PostgresError> {
        if !self.exists() {
            return Err(PostgresError::NoCluster(self.data_dir().to_path_buf()));
        }
        if !self.is_standby() {
            if let Some(postmaster) = self.running() {
                return Err(PostgresError::Running {
                    data_dir: self.data_dir().to_path_buf(),
                    pid: postmaster.pid(),
                });
            }
            files::write_durably(&self.file("standby.signal"), b"", self.owner()?)?;
        }
        self.start(Goal::Replaying, timeout)
    }

    /// Starts it as the primary and waits until it accepts connections. One that is a standby, as a promotion that was
    /// interrupted leaves it, is started as such and promoted: only so its WAL gets a timeline of its own.
    pub fn start_primary(&self, timeout: Duration) -> Result<(), PostgresError> {
        let deadline = after(timeout);
        if !self.exists() {
            return Err(PostgresError::NoCluster(self.data_dir().to_path_buf()));
        }
        if self.is_standby() {
            self.start(Goal::Replaying, timeout)?;
            return self.promote(deadline.saturating_duration_since(Instant::now()));
        }
        self.start(Goal::Ready, timeout)
    }

    /// Makes a running standby the primary, and returns when it writes. One that is the primary already is left so.
    ///
    /// As `pg_ctl promote` does: a file tells the server why it gets a signal. The process that replays ends when it
    /// is done, so its end is waited for; `pg_ctl` looks every 100 ms.
    pub fn promote(&self, timeout: Duration) -> Result<(), PostgresError> {
        const WANTED: &str = "write as the primary";
        let deadline = after(timeout);
        let log = self.log_mark();
        let postmaster =
            self.running().ok_or_else(|| PostgresError::NotRunning(self.data_dir().to_path_buf()))?;
        let signal_file = self.file("promote");
        let mut told: Option<Process> = None;
        loop {
            if !self.is_standby() && self.control()?.in_production() {
                return Ok(());
            }
            let now = Instant::now();
            if postmaster.ended_by(now) {
                return Err(self.died(WANTED, &log));
            }
            if now >= deadline {
                return Err(self.not_yet(WANTED, timeout, &log));
            }
            // A server removes the file when it starts, before anything replays. So it is written when something does,
            // and again should it be another.
            if told.as_ref().is_none_or(|startup| startup.ended_by(Some(now))) {
                told = None;
                if let Some(startup) = postmaster.startup() {
                    // Not durable: the next server removes it unread.
                    files::remove_file(&signal_file)?;
                    File::create_new(&signal_file).with("making", &signal_file)?;
                    // It can only be gone, which the next round sees.
                    let _ = postmaster.signal(Signal::USR1);
                    told = Some(startup);
                }
            }
            match &told {
                Some(startup) => {
                    wait_any(
                        &[startup.as_fd(), postmaster.process().as_fd()],
                        Some(deadline.min(now + LOOK)),
                    );
                }
                None => std::thread::sleep(LOOK),
            }
        }
    }

    /// Stops it. Nothing that runs is fine. What is not stopped in time is stopped at once, and if that takes too
    /// long as well, killed with all its processes.
    pub fn stop(&self, how: Stop, timeout: Duration) -> Result<(), PostgresError> {
        let Some(postmaster) = self.running() else { return Ok(()) };
        let mut signals = vec![(Signal::QUIT, IMMEDIATE.max(timeout))];
        if how == Stop::Fast {
            signals = vec![(Signal::INT, timeout), (Signal::QUIT, IMMEDIATE)];
        }
        for (signal, timeout) in signals {
            // It can only be gone.
            let _ = postmaster.signal(signal);
            if postmaster.ended_by(after(timeout)) {
                return Ok(());
            }
        }
        self.kill()
    }

    /// Kills the server and all its processes, those that are started meanwhile too: what a crash of the machine does
    /// to them. Nothing that runs is fine.
    pub fn kill(&self) -> Result<(), PostgresError> {
        let deadline = Instant::now() + KILLED;
        let postmaster = self.running();
        if let Some(postmaster) = &postmaster {
            // It can only be gone.
            let _ = postmaster.signal(Signal::KILL);
        }
        self.kill_family(deadline)?;
        if postmaster.is_none_or(|postmaster| postmaster.ended_by(deadline)) {
            Ok(())
        } else {
            Err(self.undead())
        }
    }

    fn undead(&self) -> PostgresError {
        PostgresError::Undead(self.data_dir().to_path_buf())
    }

    fn kill_family(&self, deadline: Instant) -> Result<(), PostgresError> {
        loop {
            let family = self.family()?;
            if family.is_empty() {
                return Ok(());
            }
            for process in &family {
                let _ = process.signal(Signal::KILL);
            }
            for process in &family {
                if !process.ended_by(Some(deadline)) {
                    return Err(self.undead());
                }
                process.reap();
            }
        }
    }

    fn start(&self, goal: Goal, timeout: Duration) -> Result<(), PostgresError> {
        let deadline = after(timeout);
        let log = self.log_mark();
        if let Some(postmaster) = self.running() {
            return self.wait_for(&postmaster, goal, deadline, timeout, &log);
        }
        self.forget_dead()?;
        let before = Stamp::of(&self.control_file())?;
        let mut waiter = self.pg_ctl_start(goal, timeout)?.start()?;
        loop {
            if let Some(postmaster) = self.running()
                && (reached(goal, &postmaster) || (goal == Goal::Replaying && self.replays_since(before)?))
            {
                // Only pg_ctl, which waits for more than we do: the server is in a session of its own.
                waiter.kill();
                return Ok(());
            }
            let now = Instant::now();
            match waiter.wait(Some(deadline.min(now + LOOK)))? {
                Some(status) if status.success() => return Ok(()),
                Some(_) => {
                    return Err(PostgresError::NotStarted {
                        data_dir: self.data_dir().to_path_buf(),
                        said: waiter.last_words(),
                        log: log.since(),
                    });
                }
                None if now < deadline => {}
                None => {
                    waiter.kill();
                    return Err(self.not_yet(goal.wanted(), timeout, &log));
                }
            }
        }
    }

    /// A server that was started before.
    fn wait_for(
        &self,
        first: &Postmaster,
        goal: Goal,
        deadline: Instant,
        timeout: Duration,
        log: &LogMark,
    ) -> Result<(), PostgresError> {
        loop {
            // Its status is a line in a file.
            if let Some(postmaster) = self.running()
                && (reached(goal, &postmaster)
                    || (goal == Goal::Replaying && self.replays_under(&postmaster)?))
            {
                return Ok(());
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(self.not_yet(goal.wanted(), timeout, log));
            }
            if first.ended_by(deadline.min(now + LOOK)) {
                return Err(self.died(goal.wanted(), log));
            }
        }
    }

    /// Whether recovery was noted in `pg_control` after it was as given. That is when all is checked that can keep a
    /// recovery from beginning, and the title of the process that replays says so earlier.
    fn replays_since(&self, before: Option<Stamp>) -> Result<bool, PostgresError> {
        Ok(Stamp::of(&self.control_file())? != before && self.control()?.in_recovery())
    }

    fn replays_under(&self, postmaster: &Postmaster) -> Result<bool, PostgresError> {
        let stamp = Stamp::of(&self.control_file())?;
        Ok(stamp.is_some_and(|stamp| stamp.seconds() >= postmaster.started())
            && self.control()?.in_recovery())
    }

    /// Clears away what a server left that was killed: its processes, and its files if its parent has not let go of its
    /// number. PostgreSQL takes either for a server that is alive and does not start.
    ///
    /// Processes that wait for a lock never learn that their server is gone. In a container process 1 may be slow to let
    /// go of a number or never do so, or is nasd itself.
    fn forget_dead(&self) -> Result<(), PostgresError> {
        let path = self.file("postmaster.pid");
        let noted = files::read(&path)?.unwrap_or_default();
        let Some(number) = first_number(&noted) else { return Ok(()) };
        // Whoever is just starting has written its number there.
        if self.running().is_none() {
            self.kill_family(Instant::now() + KILLED)?;
        }
        let Some(dead) = Process::find_dead(number) else { return Ok(()) };
        dead.reap();
        let mut lines =
            noted.split(|byte| *byte == b'\n').skip(3).filter_map(|line| std::str::from_utf8(line).ok());
        if let (Some(port), Some(dir)) = (lines.next(), lines.next()) {
            let lock = Path::new(dir).join(format!(".s.PGSQL.{port}.lock"));
            if !dir.is_empty() && files::read(&lock)?.and_then(|lock| first_number(&lock)) == Some(dead.pid())
            {
                files::remove_file(&lock)?;
            }
        }
        files::remove_file(&path)
    }

    /// All server processes of this cluster.
    fn family(&self) -> Result<Vec<Process>, PostgresError> {
        let place = process::place_of(self.data_dir()).with("looking at", self.data_dir())?;
        let is_ours = |pid| process::is_server_in(pid, place);
        Ok(process::all().filter_map(|pid| Process::find(pid, is_ours)).collect())
    }

    fn pg_ctl_start(&self, goal: Goal, timeout: Duration) -> Result<Program, PostgresError> {
        let configuration = self.configuration()?;
        let log = self.log_file();
        if let Some(dir) = log.parent()
            && !dir.exists()
        {
            let owner = self.owner()?;
            DirBuilder::new().mode(0o700).create(dir).with("making", dir)?;
            std::os::unix::fs::lchown(dir, Some(owner.uid), Some(owner.gid))
                .with("giving to the database", dir)?;
        }
        // A second more, so that it is we who decide that it took too long.
        let seconds = timeout.as_secs().saturating_add(2).min(1 << 30).to_string();
        let mut program = Program::as_user(&self.program("pg_ctl")?, self.user())?
            .args(["start", "-w", "-s", "-t", &seconds, "-D"])
            .arg(self.data_dir())
            .arg("-l")
            .arg(log);
        // pg_ctl hands these to a shell.
        let mut options = std::ffi::OsString::new();
        if goal == Goal::Replaying {
            // Whatever is configured: a standby reads the volume, into which it could not write what it gets elsewhere.
            options.push("-c primary_conninfo= -c restore_command= ");
        }
        if let Some(known) = configuration {
            options.push("-c config_file='");
            options.push(quoted(&known.config));
            options.push("'");
        }
        if !options.is_empty() {
            program = program.arg("-o").arg(options);
        }
        Ok(program)
    }

    /// Where the server's standard output goes, which is all that it says unless it collects its log itself: where
    /// Debian's tools put it if they know this cluster, so that it is found and rotated, or else beside what it collects.
    pub fn log_file(&self) -> PathBuf {
        let debian = self.configuration().ok().flatten().map(|known| known.log());
        let debian = debian.filter(|log| log.parent().is_some_and(Path::is_dir));
        debian.unwrap_or_else(|| self.file(LOG))
    }

    fn log_mark(&self) -> LogMark {
        let path = self.log_file();
        let from = fs::metadata(&path).map_or(0, |meta| meta.len());
        LogMark { path, from }
    }

    fn died(&self, wanted: &'static str, log: &LogMark) -> PostgresError {
        PostgresError::Died { data_dir: self.data_dir().to_path_buf(), wanted, log: log.since() }
    }

    fn not_yet(&self, wanted: &'static str, after: Duration, log: &LogMark) -> PostgresError {
        PostgresError::NotYet { data_dir: self.data_dir().to_path_buf(), wanted, after, log: log.since() }
    }
}

/// When this will have passed; what is as good as never, in a year.
fn after(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(Duration::from_secs(365 * 24 * 3600))
}

fn reached(goal: Goal, postmaster: &Postmaster) -> bool {
    match goal {
        Goal::Ready => postmaster.is_ready(),
        Goal::Replaying => postmaster.is_ready_or_replays(),
    }
}

/// What is in the first line of a lock file.
fn first_number(file: &[u8]) -> Option<i32> {
    let line = file.split(|byte| *byte == b'\n').next()?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

/// For between the single quotes of a shell.
fn quoted(path: &Path) -> std::ffi::OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut quoted = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            byte => quoted.push(*byte),
        }
    }
    std::ffi::OsString::from_vec(quoted)
}

/// A place in the server's log.
struct LogMark {
    path: PathBuf,
    from: u64,
}

impl LogMark {
    /// The last lines that were written since.
    fn since(&self) -> String {
        const TAIL: u64 = 4096;
        let Ok(file) = File::open(&self.path) else {
            return format!("({} is not there)", self.path.display());
        };
        let end = file.metadata().map_or(0, |meta| meta.len());
        let from = self.from.max(end.saturating_sub(TAIL)).min(end);
        let mut tail = vec![0; (end - from) as usize];
        let got = file.read_at(&mut tail, from).unwrap_or(0);
        one_line(&tail[..got])
    }
}
