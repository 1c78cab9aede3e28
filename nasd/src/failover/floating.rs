//! The virtual address goes with the role: taken when the mount is writable, given up before anything else.

use crate::address::VirtualIp;
use crate::events::{Events, Kind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The address of whoever is primary, if the configuration has one.
pub struct Floating {
    ip: Option<Arc<VirtualIp>>,
    name: String,
    wanted: Arc<AtomicBool>,
    /// It is on the interface, as far as this node knows.
    held: Arc<AtomicBool>,
    events: Arc<Events>,
}

impl Floating {
    pub fn new(config: Option<&nasd_config::VirtualAddress>, events: Arc<Events>) -> Floating {
        let name = config.map_or_else(String::new, |c| format!("{c} on {}", c.interface));
        let ip = config.map(|c| Arc::new(VirtualIp::new(c)));
        Floating { ip, name, wanted: Arc::default(), held: Arc::default(), events }
    }

    /// Takes it, on a thread of its own: it goes to the interface at once, and then it is asked whether somebody else has
    /// it, which takes a moment.
    pub fn take(&self) {
        let Some(ip) = self.ip.clone() else { return };
        self.wanted.store(true, Ordering::SeqCst);
        let (wanted, held) = (Arc::clone(&self.wanted), Arc::clone(&self.held));
        let (events, name) = (Arc::clone(&self.events), self.name.clone());
        std::thread::spawn(move || {
            let taken = ip.take();
            held.store(ip.held().unwrap_or(false), Ordering::SeqCst);
            match taken {
                Ok(()) => events.emit(Kind::Role, format!("took the address {name}")),
                Err(e) => events.emit(Kind::Role, format!("the address {name} could not be taken: {e}")),
            }
            // Given up while it was being taken.
            if !wanted.load(Ordering::SeqCst) {
                held.store(false, Ordering::SeqCst);
                let _ = ip.give_up();
                return;
            }
            match ip.rival() {
                Ok(None) => {}
                Ok(Some(other)) => events.emit(
                    Kind::Role,
                    format!("{other} has the address {name} as well; it has to give it up"),
                ),
                Err(e) => tracing::warn!("{e}"),
            }
        });
    }

    /// Gives it up; also what a killed nasd left behind.
    pub fn give_up(&self) {
        let Some(ip) = &self.ip else { return };
        self.wanted.store(false, Ordering::SeqCst);
        self.held.store(false, Ordering::SeqCst);
        match ip.give_up() {
            Ok(true) => self.events.emit(Kind::Role, format!("gave up the address {}", self.name)),
            Ok(false) => {}
            Err(e) => {
                self.events.emit(Kind::Role, format!("the address {} could not be given up: {e}", self.name))
            }
        }
    }

    /// Whether this node has it.
    pub fn holds(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }
}
