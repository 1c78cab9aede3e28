//! The address that goes with the role of primary: clients follow it, not the machine.
//!
//! Who is primary is decided elsewhere; here the decision is carried out on one network interface. Adding an address is
//! not enough: clients have the former primary's MAC address in their neighbour cache, and send to it for minutes.
//! So whoever takes the address announces it, and goes on announcing it, because the former primary may be frozen:
//! its kernel then still has the address and answers for it.

mod announcer;
mod arp;
mod link;
mod ndp;
mod neighbours;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::net::IpAddr;

use nasd_config::VirtualAddress;
use parking_lot::Mutex;

use announcer::Announcer;
use link::Link;

/// What can go wrong with the virtual address. Each message names the interface and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// No interface has the configured name.
    #[error(
        "there is no network interface {interface}; write one of those that `ip link` lists into [failover]"
    )]
    NoInterface {
        /// Its name.
        interface: String,
    },
    /// An address on it would reach nobody.
    #[error("the network interface {interface} is down; `ip link set {interface} up`")]
    Down {
        /// Its name.
        interface: String,
    },
    /// The operating system refused.
    #[error("{doing} {address} on {interface}: {error}; {}", remedy(error, interface, *address))]
    System {
        /// What was tried.
        doing: &'static str,
        /// The virtual address.
        address: IpAddr,
        /// The interface's name.
        interface: String,
        /// What the system says.
        error: io::Error,
    },
}

fn remedy(error: &io::Error, interface: &str, address: IpAddr) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "run nasd as root, or with CAP_NET_ADMIN and CAP_NET_RAW".to_owned(),
        // What the kernel says when it is told to have no IPv6 there.
        Some(libc::EACCES) if address.is_ipv6() => {
            format!("if IPv6 is off there: `sysctl net.ipv6.conf.{interface}.disable_ipv6=0`")
        }
        _ => format!("look at `ip address show dev {interface}`"),
    }
}

/// The address that goes with the role of primary.
///
/// All methods block, for milliseconds; [`rival`](VirtualIp::rival) for 200 ms. None may be called inside an async runtime.
/// They act in the network namespace of the calling thread. When this is dropped, the announcements end and the
/// address stays: an operator's restart of nasd is no failover.
#[derive(Debug)]
pub struct VirtualIp {
    config: VirtualAddress,
    /// There while the address is announced. Locked by whoever changes anything, so that a `give_up` is never
    /// overtaken by a `take`.
    announcer: Mutex<Option<Announcer>>,
}

impl VirtualIp {
    /// Nothing happens yet.
    pub fn new(config: &VirtualAddress) -> VirtualIp {
        VirtualIp { config: config.clone(), announcer: Mutex::new(None) }
    }

    /// Adds the address to the interface unless it is there, and announces it: at once, and from then on in the background.
    /// Fine if it was taken already: it is announced anew.
    ///
    /// Nobody is asked before whether another host has it: the votes decided who is primary, clients wait, and the answer
    /// would change nothing. See [`rival`](VirtualIp::rival). When the announcement could not be sent the error comes when
    /// the address is there, and the background thread tries on.
    pub fn take(&self) -> Result<(), AddressError> {
        let mut announcer = self.announcer.lock();
        let link = look(&self.config)?;
        if !link.up {
            return Err(AddressError::Down { interface: self.config.interface.clone() });
        }
        add(&self.config, &link)?;
        let Some(mac) = link.mac else { return Ok(()) };
        let announced = neighbours::announce(&link, mac, self.config.address);
        *announcer = None; // The former one, if any, ends before the next begins.
        *announcer = Some(Announcer::start(&self.config).map_err(failed(&self.config, "announcing"))?);
        announced.map_err(failed(&self.config, "announcing"))
    }

    /// Which other host has the address, as a MAC address: the operator should hear of it. Takes 200 ms if there is none.
    pub fn rival(&self) -> Result<Option<String>, AddressError> {
        let link = look(&self.config)?;
        let Some(mac) = link.mac else { return Ok(None) };
        let other = neighbours::probe(&link, mac, self.config.address);
        let other = other.map_err(failed(&self.config, "asking for"))?;
        // With IPv6 everybody hears the answer, and may follow it. Not when the address was given up meanwhile.
        let announcer = self.announcer.lock();
        if other.is_some() && announcer.is_some() {
            neighbours::announce(&link, mac, self.config.address)
                .map_err(failed(&self.config, "announcing"))?;
        }
        Ok(other.map(|mac| mac.to_string()))
    }

    /// Ends the announcements and removes the address from the interface, whatever its prefix length there.
    /// Whether it was there: if not, that is fine. For a node's start, too: a killed nasd leaves the address behind.
    pub fn give_up(&self) -> Result<bool, AddressError> {
        let mut announcer = self.announcer.lock();
        *announcer = None;
        let link = look(&self.config)?;
        link.remove(&self.config.interface).map_err(failed(&self.config, "removing"))?;
        Ok(link.holds())
    }

    /// Whether the interface has the address.
    pub fn held(&self) -> Result<bool, AddressError> {
        Ok(look(&self.config)?.holds())
    }
}

fn look(config: &VirtualAddress) -> Result<Link, AddressError> {
    Link::find(&config.interface, config.address)
        .map_err(failed(config, "looking for"))?
        .ok_or_else(|| AddressError::NoInterface { interface: config.interface.clone() })
}

fn add(config: &VirtualAddress, link: &Link) -> Result<(), AddressError> {
    if link.holds() {
        return Ok(());
    }
    link.add(config.address, config.prefix_len).map_err(failed(config, "adding"))
}

fn failed(config: &VirtualAddress, doing: &'static str) -> impl FnOnce(io::Error) -> AddressError {
    let (address, interface) = (config.address, config.interface.clone());
    move |error| AddressError::System { doing, address, interface, error }
}
