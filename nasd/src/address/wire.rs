//! Ethernet frames out of and into one interface, past the host's own addresses, routes and firewall.

use std::fmt;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, SockFilter, Socket, Type};

/// A header of Ethernet: destination, source, type.
pub(super) const HEADER: usize = 14;

/// An address of Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let bytes: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.write_str(&bytes.join(":"))
    }
}

/// `header` and `payload` as one frame.
pub(super) fn frame(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to.0, &from.0, &ethertype.to_be_bytes()[..], payload].concat()
}

/// A packet socket that is bound to one interface and one type of frames.
#[derive(Debug)]
pub(super) struct Wire(Socket);

impl Wire {
    /// What does not pass `filter` is not received; an empty one lets everything pass.
    pub(super) fn open(index: u32, ethertype: u16, filter: &[SockFilter]) -> io::Result<Wire> {
        // Protocol 0 receives nothing before it is bound: nothing gets in before the filter is there.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        if !filter.is_empty() {
            socket.attach_filter(filter)?;
        }
        socket.bind(&place(index, ethertype)?)?;
        Ok(Wire(socket))
    }

    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.0.send(frame).map(drop)
    }

    /// The next frame, cut off at the end of `buffer`; none when `deadline` comes first.
    pub(super) fn receive<'a>(
        &self,
        buffer: &'a mut [u8],
        deadline: Instant,
    ) -> io::Result<Option<&'a [u8]>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Zero would mean for ever.
            self.0.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match (&self.0).read(buffer) {
                Ok(n) => return Ok(Some(&buffer[..n])),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// The address of a packet socket, packet(7); no crate here builds one.
fn place(index: u32, ethertype: u16) -> io::Result<SockAddr> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the storage is large enough and aligned for any address; a whole sockaddr_ll is written to it, and its
    // family and length say so.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            storage.cast::<libc::sockaddr_ll>().write(address);
            *len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}
