//! The background thread that announces the address for as long as it is held.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nasd_config::VirtualAddress;

use super::{AddressError, add, failed, look, neighbours};

/// When the address is announced, after it was taken: announcements are not acknowledged, and one may be lost.
const FIRST: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(300), Duration::from_secs(1)];
/// And from then on this often: the kernel of a frozen former primary answers for it at any time.
const EVERY: Duration = Duration::from_secs(2);

/// A running thread; it has ended when this is dropped.
#[derive(Debug)]
pub(super) struct Announcer {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Announcer {
    pub(super) fn start(config: &VirtualAddress) -> io::Result<Announcer> {
        let (stop, stopped) = channel();
        let config = config.clone();
        let work = move || announce_until(&stopped, &config);
        let thread = std::thread::Builder::new().name("nasd-address".to_owned()).spawn(work)?;
        Ok(Announcer { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It panics nowhere; if it did, it said so, and it has ended.
            let _ = thread.join();
        }
    }
}

fn announce_until(stopped: &Receiver<()>, config: &VirtualAddress) {
    let start = Instant::now();
    let mut first = FIRST.iter().map(|after| start + *after);
    let mut complaint = None;
    loop {
        let next = first.next().unwrap_or_else(|| Instant::now() + EVERY);
        let wait = next.saturating_duration_since(Instant::now());
        if stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        // Said once, not every two seconds.
        let said = announce(config).err().map(|e| e.to_string());
        match (&said, &complaint) {
            (Some(text), _) if said != complaint => tracing::warn!("{text}"),
            (None, Some(_)) => tracing::info!(address = %config.address, "announced again"),
            _ => {}
        }
        complaint = said;
    }
}

/// Everything is looked up anew: an interface can get another index, another MAC address, or lose the address when it
/// goes down and up, or when a network manager takes away what it does not know.
fn announce(config: &VirtualAddress) -> Result<(), AddressError> {
    let link = look(config)?;
    if !link.up {
        return Err(AddressError::Down { interface: config.interface.clone() });
    }
    if !link.holds() {
        add(config, &link)?;
        let (address, interface) = (config.address, &config.interface);
        tracing::warn!(%address, interface, "somebody took the virtual address away; it is back");
    }
    let Some(mac) = link.mac else { return Ok(()) };
    neighbours::announce(&link, mac, config.address).map_err(failed(config, "announcing"))
}
