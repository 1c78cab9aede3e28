//! The smallest service that needs a log: it appends what a client sends to a file on the volume and answers when `fsync`
//! has returned. One runs beside each node; clients find the primary's by the virtual address, or try all of them.

use crate::lab::{Lab, enter};
use crate::{Node, eventually};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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

/// A client that writes numbers, one after the other, until it is stopped. What is not answered in time is given up, and the
/// next number is sent over a new connection.
#[derive(Debug)]
pub struct Client {
    name: String,
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    thread: Option<JoinHandle<Acked>>,
}

/// What a client was answered.
#[derive(Debug, Default)]
pub struct Acked {
    name: String,
    /// The numbers.
    pub numbers: Vec<u64>,
    /// The longest time between two of them.
    pub longest: Duration,
}

impl Client {
    /// On `host`, to these addresses in turn.
    pub fn start(lab: &Arc<Lab>, host: &str, name: &str, to: &[String]) -> Client {
        let stop = Arc::new(AtomicBool::new(false));
        let acked = Arc::new(AtomicU64::new(0));
        let to: Vec<SocketAddr> = to.iter().map(|ip| format!("{ip}:{PORT}").parse().unwrap()).collect();
        let work = {
            let (lab, host, name) = (Arc::clone(lab), host.to_owned(), name.to_owned());
            let (stop, acked) = (Arc::clone(&stop), Arc::clone(&acked));
            move || {
                lab.move_to(&host);
                let file = name.clone();
                let mut all = Acked { name, ..Acked::default() };
                let (mut number, mut last) = (0, Instant::now());
                for address in to.iter().cycle() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let mut answered = |n: u64| {
                        if !all.numbers.is_empty() {
                            all.longest = all.longest.max(last.elapsed());
                        }
                        last = Instant::now();
                        all.numbers.push(n);
                        acked.fetch_add(1, Ordering::SeqCst);
                    };
                    // It is down, or not primary: the next one.
                    let _ = write_to(address, &file, &stop, &mut number, &mut answered);
                    std::thread::sleep(Duration::from_millis(5));
                }
                all
            }
        };
        Client { name: name.to_owned(), stop, acked, thread: Some(std::thread::spawn(work)) }
    }

    /// Waits until so many more were answered.
    pub fn wait_more(&self, more: u64) {
        let from = self.acked.load(Ordering::SeqCst);
        eventually(&format!("client {}: {more} more", self.name), || {
            (self.acked.load(Ordering::SeqCst) >= from + more).then_some(())
        });
    }

    /// How many were answered so far.
    pub fn count(&self) -> u64 {
        self.acked.load(Ordering::SeqCst)
    }

    /// Stops it.
    pub fn finish(mut self) -> Acked {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn write_to(
    to: &SocketAddr,
    file: &str,
    stop: &AtomicBool,
    number: &mut u64,
    answered: &mut impl FnMut(u64),
) -> std::io::Result<()> {
    let socket = TcpStream::connect_timeout(to, Duration::from_millis(200))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut answers = BufReader::new(&socket).lines();
    while !stop.load(Ordering::SeqCst) {
        // Each number is sent once: what was not answered may be there or not.
        *number += 1;
        writeln!(&socket, "{file} {number}")?;
        match answers.next() {
            Some(Ok(line)) if line == format!("ok {number}") => answered(*number),
            Some(Err(e)) => return Err(e),
            _ => return Ok(()),
        }
    }
    Ok(())
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
