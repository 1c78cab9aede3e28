//! Running PostgreSQL's programs.
//!
//! `pg_ctl` refuses root, which nasd has to be. Of the ways to become the database's user `setpriv` (util-linux, in
//! every Debian) is the plainest: it sets user, group and supplementary groups (Debian's server reads its TLS key
//! as a member of `ssl-cert`) and turns into the program. `runuser` and `su` would open a PAM session, write it to
//! the system's log each time, and stay in between as a second process; the standard library sets no groups.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::User;
use rustix::fs::{MemfdFlags, memfd_create};

use super::cluster::Cluster;
use super::error::PostgresError;
use crate::process::Process;

/// How much of what a program says goes into an error.
const LAST_WORDS: usize = 2000;
const LAST_LINES: usize = 6;

/// A program that is about to be run.
pub(super) struct Program {
    command: Command,
    name: String,
}

/// The user in the system's database.
pub(super) fn account(user: &str) -> Result<User, PostgresError> {
    User::from_name(user).ok().flatten().ok_or_else(|| PostgresError::NoUser(user.to_owned()))
}

impl Cluster {
    /// One of this cluster's programs, which runs as its user and not longer than the thread that starts it. It has
    /// nothing of our environment, and no standard input unless it is given one.
    pub fn command(&self, program: &str) -> Result<Command, PostgresError> {
        Ok(Program::as_user_while_we_live(&self.program(program)?, self.user())?.command)
    }
}

impl Program {
    /// One that runs as we do.
    pub fn new(exec: &Path) -> Program {
        Program::of(Command::new(exec), exec)
    }

    /// One that runs as this user.
    pub fn as_user(exec: &Path, user: &str) -> Result<Program, PostgresError> {
        Program::become_user(exec, user, &[])
    }

    /// One that runs as this user, and not longer than the thread that waits for it.
    pub fn as_user_while_we_live(exec: &Path, user: &str) -> Result<Program, PostgresError> {
        Program::become_user(exec, user, &["--pdeathsig=TERM".to_owned()])
    }

    fn become_user(exec: &Path, user: &str, options: &[String]) -> Result<Program, PostgresError> {
        let account = account(user)?;
        let euid = rustix::process::geteuid();
        let mut options = options.to_vec();
        if euid.as_raw() != account.uid.as_raw() {
            if !euid.is_root() {
                return Err(PostgresError::NotRoot(user.to_owned()));
            }
            options.push(format!("--reuid={}", account.uid));
            options.push(format!("--regid={}", account.gid));
            options.push("--init-groups".to_owned());
        }
        let mut program = if options.is_empty() {
            Program::new(exec)
        } else {
            let mut command = Command::new("setpriv");
            command.args(options).arg("--").arg(exec);
            Program::of(command, exec)
        };
        program.command.env("HOME", account.dir).env("USER", user).env("LOGNAME", user);
        Ok(program)
    }

    fn of(mut command: Command, exec: &Path) -> Program {
        let path = std::env::var_os("PATH");
        let path =
            path.unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
        command
            // Whatever PGDATA or PGHOST nasd was started with is not meant for this cluster.
            .env_clear()
            .env("PATH", path)
            // The output is read, by us and then by whoever gets the error.
            .env("LC_ALL", "C")
            .current_dir("/")
            // A signal from the terminal to nasd is none to the database.
            .process_group(0)
            .stdin(Stdio::null());
        Program { command, name: exec.file_name().unwrap_or(exec.as_os_str()).display().to_string() }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Program {
        self.command.arg(arg);
        self
    }

    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Program {
        self.command.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Program {
        self.command.env(name, value);
        self
    }

    /// Runs it to its end and gives what it printed; an end in failure is an error.
    pub fn run(self, limit: Duration) -> Result<Vec<u8>, PostgresError> {
        let mut run = self.start()?;
        match run.wait(Instant::now().checked_add(limit))? {
            Some(status) if status.success() => Ok(read(&run.stdout)),
            Some(status) => Err(run.failed(status)),
            None => {
                run.kill();
                Err(PostgresError::TooLong { limit, said: run.last_words(), program: run.name })
            }
        }
    }

    /// Starts it.
    pub fn start(mut self) -> Result<Run, PostgresError> {
        let failed = |source| PostgresError::Exec { program: self.name.clone(), source };
        // Files in memory, not pipes: nobody has to read them meanwhile, and a daemon that was left behind with one
        // open holds nobody up.
        let (stdout, stdout_end) = output().map_err(failed)?;
        let (stderr, stderr_end) = output().map_err(failed)?;
        let child = self.command.stdout(stdout_end).stderr(stderr_end).spawn().map_err(failed)?;
        let process = Process::find(child.id().cast_signed(), |_| true);
        Ok(Run { process, child, name: self.name, stdout, stderr })
    }

    /// Runs it, and tells each line of its standard error when it comes.
    pub fn run_telling(mut self, mut tell: impl FnMut(&str)) -> Result<(), PostgresError> {
        use std::io::BufRead;
        let failed = |source| PostgresError::Exec { program: self.name.clone(), source };
        let mut child = self.command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
        let mut last = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            // Progress ends in a carriage return only, and names in it may be of any encoding.
            for part in io::BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                for line in part.split(|byte| *byte == b'\r').map(<[u8]>::trim_ascii) {
                    if !line.is_empty() {
                        let line = String::from_utf8_lossy(line);
                        last.extend_from_slice(line.as_bytes());
                        last.push(b'\n');
                        tell(&line);
                    }
                }
                last.drain(..last.len().saturating_sub(LAST_WORDS));
            }
        }
        let status = child.wait().map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        Err(PostgresError::Failed { program: self.name, status, said: one_line(&last) })
    }
}

/// A program that runs.
pub(super) struct Run {
    child: Child,
    process: Option<Process>,
    name: String,
    stdout: File,
    stderr: File,
}

impl Run {
    /// Waits for its end, but not beyond the deadline.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<Option<ExitStatus>, PostgresError> {
        // None has ended already.
        if self.process.as_ref().is_some_and(|process| !process.ended_by(deadline)) {
            return Ok(None);
        }
        let status = self.child.wait();
        status.map(Some).map_err(|source| PostgresError::Exec { program: self.name.clone(), source })
    }

    /// Kills it, and nothing that it has left behind.
    pub fn kill(&mut self) {
        // Fails only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The error that it ended with.
    pub fn failed(&self, status: ExitStatus) -> PostgresError {
        PostgresError::Failed { program: self.name.clone(), status, said: self.last_words() }
    }

    /// What it has said, in one line.
    pub fn last_words(&self) -> String {
        let mut said = read(&self.stdout);
        said.extend(read(&self.stderr));
        one_line(&said)
    }
}

/// A file in memory, and the end of it that a program gets.
fn output() -> io::Result<(File, File)> {
    let file = File::from(memfd_create("nasd-output", MemfdFlags::CLOEXEC)?);
    let end = file.try_clone()?;
    Ok((file, end))
}

/// What is in such a file. The position in it is the program's.
fn read(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().map_or(0, |meta| meta.len()) as usize];
    let got = file.read_at(&mut bytes, 0).unwrap_or(0);
    bytes.truncate(got);
    bytes
}

/// The last lines, as one.
pub(super) fn one_line(text: &[u8]) -> String {
    let text = &text[text.len().saturating_sub(LAST_WORDS)..];
    let text = String::from_utf8_lossy(text);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.len() {
        0 => "(nothing)".to_owned(),
        all => lines[all.saturating_sub(LAST_LINES)..].join(" | "),
    }
}
