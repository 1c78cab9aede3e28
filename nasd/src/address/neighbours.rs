//! Asking the network who has the address, and telling it: by ARP or by neighbour discovery.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::link::Link;
use super::wire::{Mac, Wire};
use super::{arp, ndp};

/// How often it is asked, and how long an answer may take each time. RFC 5227 takes seconds; this is a failover, and in the
/// networks that nasd is for an answer takes less than a millisecond.
const PROBES: usize = 2;
const PATIENCE: Duration = Duration::from_millis(100);

/// Longer than any answer.
const BUFFER: usize = 2048;

/// Who else has `address`, if somebody answers in time.
pub(super) fn probe(link: &Link, mac: Mac, address: IpAddr) -> io::Result<Option<Mac>> {
    let (wire, question) = match address {
        IpAddr::V4(ip) => (Wire::open(link.index, arp::ETHERTYPE, &[])?, arp::probe(mac, ip)),
        IpAddr::V6(ip) => {
            (Wire::open(link.index, ndp::ETHERTYPE, &ndp::filter())?, ndp::solicitation(mac, ip))
        }
    };
    let mut buffer = [0; BUFFER];
    for _ in 0..PROBES {
        let deadline = Instant::now() + PATIENCE;
        wire.send(&question)?;
        while let Some(frame) = wire.receive(&mut buffer, deadline)? {
            let who = match address {
                IpAddr::V4(ip) => arp::holder(frame, ip),
                IpAddr::V6(ip) => ndp::holder(frame, ip),
            };
            if who.is_some_and(|mac| !link.own.contains(&mac)) {
                return Ok(who);
            }
        }
    }
    Ok(None)
}

/// Tells everybody that `address` is at `mac`.
pub(super) fn announce(link: &Link, mac: Mac, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(ip) => {
            let wire = Wire::open(link.index, arp::ETHERTYPE, &[])?;
            arp::announcements(mac, ip).iter().try_for_each(|frame| wire.send(frame))
        }
        IpAddr::V6(ip) => {
            Wire::open(link.index, ndp::ETHERTYPE, &ndp::filter())?.send(&ndp::advertisement(mac, ip))
        }
    }
}
