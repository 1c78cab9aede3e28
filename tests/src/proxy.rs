//! A bad network between two nodes: a TCP proxy that can delay, throttle, cut and swallow.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct Knobs {
    target: Mutex<String>,
    delay_ms: AtomicU64,
    /// Bytes a second; 0: no limit.
    rate: AtomicU64,
    /// Bytes until every connection is cut; negative: never.
    cut_after: AtomicI64,
    swallow: AtomicBool,
    /// Bytes so far.
    passed: AtomicU64,
    /// Cuts so far.
    cuts: AtomicU64,
}

/// A proxy to a node's port.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Where it listens.
    pub address: String,
    knobs: Arc<Knobs>,
}

impl Proxy {
    /// A proxy that passes everything on, once it knows where to.
    pub fn start() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let knobs = Arc::new(Knobs { cut_after: AtomicI64::new(-1), ..Knobs::default() });
        let k = Arc::clone(&knobs);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let target = k.target.lock().unwrap().clone();
                let Ok(far) = TcpStream::connect(&target) else { continue };
                for s in [&near, &far] {
                    s.set_nodelay(true).unwrap();
                }
                for (from, to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                    let k = Arc::clone(&k);
                    std::thread::spawn(move || carry(&k, from, to));
                }
            }
        });
        Proxy { address, knobs }
    }

    /// Where it leads.
    pub fn lead_to(&self, address: &str) {
        address.clone_into(&mut self.knobs.target.lock().unwrap());
    }

    /// Every piece arrives this much later.
    pub fn delay(&self, ms: u64) {
        self.knobs.delay_ms.store(ms, Ordering::SeqCst);
    }

    /// At most so many bytes a second in each direction of each connection; 0: as many as come.
    pub fn throttle(&self, rate: u64) {
        self.knobs.rate.store(rate, Ordering::SeqCst);
    }

    /// Cuts whatever connection carries the last of these many further bytes.
    pub fn cut_after(&self, bytes: i64) {
        self.knobs.cut_after.store(bytes, Ordering::SeqCst);
    }

    /// Connections stay, and nothing arrives any more. What was swallowed is lost.
    pub fn swallow(&self, on: bool) {
        self.knobs.swallow.store(on, Ordering::SeqCst);
    }

    /// Bytes passed on so far.
    pub fn passed(&self) -> u64 {
        self.knobs.passed.load(Ordering::SeqCst)
    }

    /// Cuts so far.
    pub fn cuts(&self) -> u64 {
        self.knobs.cuts.load(Ordering::SeqCst)
    }
}

fn carry(k: &Knobs, mut from: TcpStream, mut to: TcpStream) {
    // What arrives is passed on by another thread, so that a delay does not lower the rate.
    let (tx, rx) = std::sync::mpsc::sync_channel::<(Instant, Vec<u8>)>(1024);
    let back = from.try_clone().unwrap();
    std::thread::scope(|s| {
        s.spawn(move || {
            for (due, bytes) in rx {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let rate = k.rate.load(Ordering::SeqCst);
                if rate > 0 {
                    std::thread::sleep(Duration::from_secs_f64(bytes.len() as f64 / rate as f64));
                }
                if k.swallow.load(Ordering::SeqCst) {
                    continue;
                }
                let left = k.cut_after.load(Ordering::SeqCst);
                let cut = left >= 0 && left < bytes.len() as i64;
                let part = if cut { &bytes[..left as usize] } else { &bytes[..] };
                if left >= 0 {
                    k.cut_after.store(if cut { -1 } else { left - bytes.len() as i64 }, Ordering::SeqCst);
                }
                k.passed.fetch_add(part.len() as u64, Ordering::SeqCst);
                if to.write_all(part).is_err() || cut {
                    k.cuts.fetch_add(u64::from(cut), Ordering::SeqCst);
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
            let _ = back.shutdown(Shutdown::Both);
        });
        let mut buf = vec![0; 16 << 10];
        while let Ok(n @ 1..) = from.read(&mut buf) {
            let due = Instant::now() + Duration::from_millis(k.delay_ms.load(Ordering::SeqCst));
            if tx.send((due, buf[..n].to_vec())).is_err() {
                break;
            }
        }
        drop(tx);
    });
}
