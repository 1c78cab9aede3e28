//! The smallest service that needs a log: it appends what a client sends to a file on the volume and answers when `fsync`
//! has returned. One runs beside each node; clients find the primary's by the virtual address, or try all of them.

use crate::Node;
use crate::caller::{Caller, Session, longest_pause};
use crate::lab::{Lab, enter};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Where it listens, on all addresses of its host.
pub const PORT: u16 = 9000;

/// The service's own process: see `src/bin/journal.rs`.
#[derive(Debug)]
pub struct Journal(Child);

impl Journal {
    /// Beside a node.
    pub fn start(node: &Node) -> Journal {
        let me = std::env::current_exe().unwrap();
        let program = me.ancestors().skip(1).take(2).map(|d| d.join("journal")).find(|p| p.is_file());
        let program = program.expect("`journal` is built: cargo build --workspace --all-targets");
        let mut command = match &node.netns {
            Some(netns) => enter(netns, &program),
            None => Command::new(&program),
        };
        Journal(command.arg(&node.mount).stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // One that waits for a frozen node's answer is gone when that is.
        let _ = self.0.kill();
        let _ = self.0.try_wait();
    }
}

/// What the process does: serves until it is killed.
pub fn serve(mount: &Path) {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    for socket in listener.incoming().flatten() {
        let mount = mount.to_owned();
        std::thread::spawn(move || {
            // A client that goes away ends it.
            let _ = converse(&mount, &socket);
        });
    }
}

fn append(mount: &Path, name: &str, id: &str) -> std::io::Result<()> {
    let dir = std::fs::File::open(mount)?;
    let above = std::fs::metadata(mount.join(".."))?;
    if dir.metadata()?.dev() == above.dev() {
        // Not into the directory below, which nobody sees afterwards and which would keep nasd from mounting.
        return Err(std::io::Error::other("nothing is mounted"));
    }
    let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    let mut file = std::fs::File::options().create(true).append(true).open(path)?;
    file.write_all(format!("{id}\n").as_bytes())?;
    file.sync_data()
}

fn converse(mount: &Path, socket: &TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut answer = socket;
    for line in BufReader::new(socket).lines() {
        let line = line?;
        let (name, id) = line.split_once(' ').unwrap_or((&line, ""));
        let stored = append(mount, name, id);
        match stored {
            Ok(()) => writeln!(answer, "ok {id}")?,
            // Read-only, stopped, gone: another node is primary now, or will be.
            Err(e) => return writeln!(answer, "no {e}"),
        }
    }
    Ok(())
}

/// A client of it that writes numbers until it is stopped. What is not answered in time is given up, and the next number is
/// sent over a new connection.
#[derive(Debug)]
pub struct Client {
    name: String,
    caller: Caller,
}

/// What a client was answered.
#[derive(Debug)]
pub struct Acked {
    name: String,
    /// The numbers.
    pub numbers: Vec<u64>,
    /// The longest time between two of them.
    pub longest: Duration,
}

/// A connection to it; the numbers go to a file of this name.
#[derive(Debug)]
pub struct Conversation {
    socket: TcpStream,
    answers: Lines<BufReader<TcpStream>>,
    file: String,
}

impl Conversation {
    /// Where it listens on this host.
    pub fn address(ip: &str) -> SocketAddr {
        format!("{ip}:{PORT}").parse().unwrap()
    }

    /// Connects; an answer that takes longer than `patience` is none.
    pub fn begin(to: &SocketAddr, file: &str, patience: Duration) -> std::io::Result<Conversation> {
        let socket = TcpStream::connect_timeout(to, Duration::from_millis(100))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(patience))?;
        let answers = BufReader::new(socket.try_clone()?).lines();
        Ok(Conversation { socket, answers, file: file.to_owned() })
    }
}

impl Session for Conversation {
    fn write(&mut self, number: u64) -> bool {
        writeln!(self.socket, "{} {number}", self.file).is_ok()
            && self.answers.next().is_some_and(|line| line.is_ok_and(|line| line == format!("ok {number}")))
    }
}

impl Client {
    /// On `host`, to these addresses in turn.
    pub fn start(lab: &Arc<Lab>, host: &str, name: &str, to: &[String]) -> Client {
        let to: Vec<SocketAddr> = to.iter().map(|ip| Conversation::address(ip)).collect();
        let (file, mut turn) = (name.to_owned(), 0);
        let dial = move || {
            // The one before is down, or not primary: the next one.
            turn += 1;
            Conversation::begin(&to[turn % to.len()], &file, Duration::from_millis(500)).ok()
        };
        Client { name: name.to_owned(), caller: Caller::start(lab, host, name, dial) }
    }

    /// What it was told so far, and when.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Waits until so many more were answered.
    pub fn wait_more(&self, more: u64) {
        self.caller.wait_more(more);
    }

    /// How many were answered so far.
    pub fn count(&self) -> u64 {
        self.caller.count()
    }

    /// Stops it.
    pub fn finish(self) -> Acked {
        let answers = self.caller.finish();
        let numbers = answers.iter().map(|a| a.number).collect();
        Acked { name: self.name, numbers, longest: longest_pause(&answers) }
    }
}

impl Acked {
    /// Everything that was answered is on this mount.
    pub fn check(&self, mount: &Path) {
        let path: PathBuf = mount.join(&self.name);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let there: BTreeSet<u64> = text.lines().filter_map(|l| l.parse().ok()).collect();
        let missing: Vec<_> = self.numbers.iter().filter(|n| !there.contains(n)).collect();
        assert!(
            missing.is_empty(),
            "{}: acknowledged and lost: {missing:?} of {}",
            path.display(),
            self.numbers.len()
        );
    }
}
