//! Programs that write to a mount and remember what was promised to them.

use crate::node::Node;
use serde_json::Value;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Writes a file and syncs it.
pub fn try_put(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut f = fs::File::create(path)?;
    f.write_all(content)?;
    f.sync_all()
}

/// Writes a file and syncs it, which must succeed; how long the sync took.
pub fn put(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Duration {
    let mut f = fs::File::create(path).unwrap();
    f.write_all(content.as_ref()).unwrap();
    let start = Instant::now();
    f.sync_all().unwrap();
    start.elapsed()
}

/// The last transaction of a node.
pub fn seq(status: &Value) -> u64 {
    status["seq"].as_u64().unwrap()
}

/// Bytes that can't be taken for those of another number.
pub fn content(n: u64) -> Vec<u8> {
    let len = 100 + (n * 7919 % 9000) as usize;
    (0..len).map(|i| (n.wrapping_mul(31).wrapping_add(i as u64 * 7) % 251) as u8).collect()
}

/// Bytes that no compression makes fewer.
pub fn noise(n: u64, len: usize) -> Vec<u8> {
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// What a [`Writer`] saw.
#[derive(Debug, Default)]
pub struct Written {
    /// Numbers whose file was synced with success.
    pub acknowledged: Vec<u64>,
    /// The longest time between two successes.
    pub longest_pause: Duration,
    /// Error numbers, each once.
    pub errors: Vec<i32>,
}

impl Written {
    /// Every acknowledged file is there and whole.
    pub fn check(&self, root: &Path) {
        for &n in &self.acknowledged {
            let path = file(root, n);
            let found =
                fs::read(&path).unwrap_or_else(|e| panic!("{} was acknowledged: {e}", path.display()));
            assert!(found == content(n), "{} was acknowledged and has other content", path.display());
        }
    }
}

fn file(root: &Path, n: u64) -> PathBuf {
    root.join(format!("w{}", n % 64)).join(format!("{n:06}"))
}

/// Creates a file after the other, each synced, on the first of the mounts where that works; after an error it tries
/// the next mount with the same file.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<Written>>,
}

impl Writer {
    /// Starts it on the mounts of these nodes.
    pub fn start(nodes: &[&Node]) -> Writer {
        Writer::on(nodes.iter().map(|n| n.mount.clone()).collect())
    }

    /// Starts it on these mounts.
    pub fn on(mounts: Vec<PathBuf>) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let (s, c) = (Arc::clone(&stop), Arc::clone(&count));
        let thread = std::thread::spawn(move || {
            let mut written = Written::default();
            let (mut n, mut at, mut last) = (0, 0, Instant::now());
            while !s.load(Ordering::SeqCst) {
                let path = file(&mounts[at % mounts.len()], n);
                let made = match fs::create_dir(path.parent().unwrap()) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    r => r,
                };
                match made.and_then(|()| try_put(&path, &content(n))) {
                    Ok(()) => {
                        written.acknowledged.push(n);
                        written.longest_pause = written.longest_pause.max(last.elapsed());
                        last = Instant::now();
                        n += 1;
                        c.store(n, Ordering::SeqCst);
                    }
                    Err(e) => {
                        let errno = e.raw_os_error().unwrap_or(0);
                        if !written.errors.contains(&errno) {
                            written.errors.push(errno);
                        }
                        at += 1;
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            }
            written
        });
        Writer { stop, count, thread: Some(thread) }
    }

    /// How many files are acknowledged.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Waits for `more` acknowledged files.
    pub fn wait_more(&self, more: u64) {
        let from = self.count();
        crate::eventually_within(Duration::from_secs(60), "the writer gets on", || {
            (self.count() >= from + more).then_some(())
        });
    }

    /// Ends it.
    pub fn finish(mut self) -> Written {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().expect("it runs").join().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
