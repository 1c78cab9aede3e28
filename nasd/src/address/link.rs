//! The network interface, as rtnetlink shows and changes it.

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, CacheInfo};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};

use super::wire::Mac;

/// The kernel answers in microseconds, unless the library doesn't understand the answer and waits for another.
const PATIENCE: Duration = Duration::from_secs(5);

/// An interface, and whether an address is on it, at one moment.
#[derive(Debug)]
pub(super) struct Link {
    pub index: u32,
    pub up: bool,
    /// None where nobody asks for addresses: loopback, tunnels, dummies.
    pub mac: Option<Mac>,
    /// The MAC addresses of all interfaces of this host: two in one network answer for each other.
    pub own: Vec<Mac>,
    /// The address as it is there: more than once, if with more than one prefix length.
    held: Vec<AddressMessage>,
    /// Whether other addresses would go with it, see [`Link::remove`].
    has_dependents: bool,
}

impl Link {
    /// None if no interface is called so.
    pub(super) fn find(name: &str, address: IpAddr) -> io::Result<Option<Link>> {
        let (links, addresses) = ask(async |kernel| {
            let links: Vec<LinkMessage> = all(kernel.link().get().execute()).await?;
            let addresses: Vec<AddressMessage> = all(kernel.address().get().execute()).await?;
            Ok((links, addresses))
        })?;
        let Some(link) = links.iter().find(|link| is_called(link, name)) else { return Ok(None) };
        let index = link.header.index;
        let here = addresses.into_iter().filter(|a| a.header.index == index);
        let (held, others): (Vec<_>, Vec<_>) = here.partition(|a| local(a) == Some(address));
        let is_secondary = |a: &AddressMessage| a.header.flags.contains(AddressHeaderFlags::Secondary);
        let has_dependents = address.is_ipv4()
            && held.iter().any(|a| !is_secondary(a))
            && others.iter().any(|a| a.header.family == AddressFamily::Inet && is_secondary(a));
        let flags = link.header.flags;
        let is_asked = link.header.link_layer_type == LinkLayerType::Ether
            && !flags.intersects(LinkFlags::Noarp | LinkFlags::Loopback);
        Ok(Some(Link {
            index,
            up: flags.contains(LinkFlags::Up),
            mac: mac(link).filter(|_| is_asked),
            own: links.iter().filter_map(mac).collect(),
            held,
            has_dependents,
        }))
    }

    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    pub(super) fn add(&self, address: IpAddr, prefix_len: u8) -> io::Result<()> {
        let result = ask(async |kernel| {
            let mut request = kernel.address().add(self.index, address, prefix_len);
            if address.is_ipv6() {
                let message = request.message_mut();
                // Whether somebody has it changes nothing, and is asked afterwards: no wait of a second in which nobody
                // has it.
                message.header.flags |= AddressHeaderFlags::Nodad;
                // Nothing of this host calls from it by itself: what did would be cut off when the role goes, the
                // link to the peer among it.
                let mut times = CacheInfo::default();
                (times.ifa_preferred, times.ifa_valid) = (0, u32::MAX);
                message.attributes.push(AddressAttribute::CacheInfo(times));
            }
            request.execute().await
        });
        unless(result, libc::EEXIST)
    }

    /// Removes the address as often as it is there.
    ///
    /// Linux has one address of each IPv4 network on an interface as the primary one, the oldest, and removes the
    /// others with it, unless it is told to promote the next. So it is told, if the virtual address came to be the
    /// oldest: the host's own addresses must not go with the role.
    pub(super) fn remove(&self, interface: &str) -> io::Result<()> {
        if self.has_dependents {
            let file = format!("/proc/sys/net/ipv4/conf/{interface}/promote_secondaries");
            if let Err(error) = std::fs::write(&file, "1") {
                tracing::warn!(file, %error, "other addresses of the interface may go with the virtual one");
            }
        }
        for address in &self.held {
            let result = ask(async |kernel| kernel.address().del(address.clone()).execute().await);
            unless(result, libc::EADDRNOTAVAIL)?;
        }
        Ok(())
    }
}

/// Somebody else can have done the same in between.
fn unless(result: io::Result<()>, done: i32) -> io::Result<()> {
    result.or_else(|e| if e.raw_os_error() == Some(done) { Ok(()) } else { Err(e) })
}

fn is_called(link: &LinkMessage, name: &str) -> bool {
    link.attributes.iter().any(|a| matches!(a, LinkAttribute::IfName(n) if n == name))
}

fn mac(link: &LinkMessage) -> Option<Mac> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })
}

/// The host's end: on a point-to-point link the other attribute is the peer's.
fn local(message: &AddressMessage) -> Option<IpAddr> {
    let find = |pick: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(pick);
    let own = |a: &AddressAttribute| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None };
    let any = |a: &AddressAttribute| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None };
    find(own).or_else(|| find(any))
}

pub(super) async fn all<T>(
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, rtnetlink::Error> {
    let mut stream = pin!(stream);
    let mut all = Vec::new();
    while let Some(one) = stream.try_next().await? {
        all.push(one);
    }
    Ok(all)
}

/// Runs one conversation with the kernel on this thread, and so in its network namespace.
pub(super) fn ask<T>(talk: impl AsyncFnOnce(Handle) -> Result<T, rtnetlink::Error>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        match tokio::time::timeout(PATIENCE, talk(handle)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(rtnetlink::Error::NetlinkError(error))) => Err(error.to_io()),
            Ok(Err(error)) => Err(io::Error::other(error)),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "rtnetlink gave no answer")),
        }
    })
}
