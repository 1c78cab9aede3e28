//! Three hosts in one Ethernet, each a network namespace: two nodes and a client, whose end is the switch.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::address::link::{all, ask};
use crate::address::wire::Mac;

/// What is waited for takes milliseconds; this is for a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
pub enum Host {
    A,
    B,
    Client,
}
use Host::{A, B, Client};

impl Host {
    const ALL: [Host; 3] = [A, B, Client];

    /// The addresses of its own in the one network.
    fn own(self) -> [String; 2] {
        let n = self as u8 + 1;
        [format!("198.51.100.{n}"), format!("2001:db8::{n}")]
    }
}

/// The namespaces; they are removed when this is dropped.
pub struct Net(String);

impl Net {
    /// None, and a line that says why, where no namespaces can be made.
    pub fn new() -> Option<Net> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let net = Net(format!("nasd-{}-{n}", std::process::id()));
        match net.build() {
            Ok(()) => Some(net),
            Err(reason) => {
                println!("no network namespaces here, nothing tried: {reason}");
                None
            }
        }
    }

    fn build(&self) -> Result<(), String> {
        let [a, b, client] = Host::ALL.map(|h| self.name(h));
        for name in [&a, &b, &client] {
            ip(&format!("netns add {name}"))?;
        }
        ip(&format!("-n {client} link add eth0 type bridge mcast_snooping 0"))?;
        ip(&format!("-n {client} link set eth0 up"))?;
        for (name, port) in [(&a, "port-a"), (&b, "port-b")] {
            ip(&format!("-n {name} link add eth0 type veth peer name {port} netns {client}"))?;
            ip(&format!("-n {client} link set {port} master eth0 up"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
        }
        for host in Host::ALL {
            let [v4, v6] = host.own();
            ip(&format!("-n {} address add {v4}/24 dev eth0", self.name(host)))?;
            ip(&format!("-n {} address add {v6}/64 dev eth0 nodad", self.name(host)))?;
        }
        for host in [A, B] {
            for own in host.own() {
                self.until("the network is up", || self.client_reaches(own.parse().expect("an address")));
            }
        }
        Ok(())
    }

    fn name(&self, host: Host) -> String {
        let letter = match host {
            A => "a",
            B => "b",
            Client => "c",
        };
        format!("{}-{letter}", self.0)
    }

    /// `ip` with these words on `host`.
    pub fn ip(&self, host: Host, words: &str) -> String {
        ip(&format!("-n {} {words}", self.name(host))).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Does `work` in a thread of its own on `host`.
    pub fn on<T: Send>(&self, host: Host, work: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.name(host))).expect("it was made");
        std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root");
                work()
            });
            work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Whether the kernel of whoever has `address` answers the client, by refusing a connection.
    pub fn client_reaches(&self, address: IpAddr) -> bool {
        let to = SocketAddr::new(address, 9);
        let refused = |e: std::io::Error| e.kind() == std::io::ErrorKind::ConnectionRefused;
        self.on(Client, || TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_err_and(refused))
    }

    /// What the client's neighbour cache says about `address`.
    pub fn client_knows(&self, address: IpAddr) -> Option<(Mac, NeighbourState)> {
        let neighbours = self.on(Client, || {
            ask(async |kernel| all(kernel.neighbours().get().execute()).await).expect("the kernel answers")
        });
        let wanted = match address {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        };
        let is_it = |a: &NeighbourAttribute| matches!(a, NeighbourAttribute::Destination(d) if *d == wanted);
        let entry = neighbours.into_iter().find(|n| n.attributes.iter().any(is_it))?;
        let mac = entry.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::LinkLayerAddress(bytes) => Some(Mac(bytes.as_slice().try_into().ok()?)),
            _ => None,
        })?;
        Some((mac, entry.header.state))
    }

    /// Waits for `condition`; how long it took.
    pub fn until(&self, what: &str, condition: impl Fn() -> bool) -> Duration {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < DEADLINE, "not in {DEADLINE:?}: {what}");
            std::thread::yield_now();
        }
        start.elapsed()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in Host::ALL {
            // Those that could not be made can't be removed.
            let _ = ip(&format!("netns delete {}", self.name(host)));
        }
    }
}

fn ip(words: &str) -> Result<String, String> {
    let done =
        Command::new("ip").args(words.split(' ')).output().map_err(|e| format!("ip (iproute2): {e}"))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    Err(format!("ip {words}: {}", String::from_utf8_lossy(&done.stderr).trim()))
}
