//! The virtual address on real interfaces, in network namespaces.

mod net;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use nasd_config::VirtualAddress;
use rtnetlink::packet_route::neighbour::NeighbourState;

use super::link::Link;
use super::wire::Mac;
use super::{AddressError, VirtualIp};
use net::Host::{self, A, B, Client};
use net::Net;

const V4: &str = "198.51.100.10/24";
const V6: &str = "2001:db8::10/64";
const BOTH: [&str; 2] = [V4, V6];

/// A frozen primary's kernel is outshouted at the latest by the next announcement.
const NEXT_ANNOUNCEMENT: Duration = Duration::from_secs(2);

fn config(address: &str, interface: &str) -> VirtualAddress {
    let (ip, prefix_len) = address.split_once('/').expect("ADDRESS/LENGTH");
    VirtualAddress {
        address: ip.parse().expect("an address"),
        prefix_len: prefix_len.parse().expect("a length"),
        interface: interface.to_owned(),
    }
}

fn ip_of(address: &str) -> IpAddr {
    config(address, "eth0").address
}

fn eth0(address: &str) -> VirtualIp {
    VirtualIp::new(&config(address, "eth0"))
}

fn mac(net: &Net, host: Host) -> Mac {
    let link = net.on(host, || Link::find("eth0", ip_of(V4)).expect("the kernel answers"));
    link.expect("it is there").mac.expect("Ethernet")
}

/// As a node does: takes it, and then asks who else has it.
fn take(net: &Net, host: Host, it: &VirtualIp) -> Option<String> {
    net.on(host, || it.take().and_then(|()| it.rival())).unwrap_or_else(|e| panic!("{e}"))
}

fn give_up(net: &Net, host: Host, it: &VirtualIp) -> bool {
    net.on(host, || it.give_up()).unwrap_or_else(|e| panic!("{e}"))
}

fn held(net: &Net, host: Host, it: &VirtualIp) -> bool {
    net.on(host, || it.held()).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn the_client_follows_without_asking() {
    let Some(net) = Net::new() else { return };
    let (mac_a, mac_b) = (mac(&net, A), mac(&net, B));
    for address in BOTH {
        let ip = ip_of(address);
        let (a, b) = (eth0(address), eth0(address));
        assert!(!net.client_reaches(ip), "{ip} before anybody has it");

        assert_eq!(take(&net, A, &a), None);
        net.until("the client reaches A", || net.client_reaches(ip));
        assert_eq!(net.client_knows(ip).map(|(mac, _)| mac), Some(mac_a), "{ip}");

        assert!(give_up(&net, A, &a));
        assert_eq!(take(&net, B, &b), None);
        let is_b = || net.client_knows(ip).is_some_and(|(mac, _)| mac == mac_b);
        let after = net.until("the client knows B", is_b);
        assert!(after < Duration::from_millis(100), "{ip}: {after:?}");
        // An answer to a question of its own would have made it reachable.
        assert_eq!(net.client_knows(ip), Some((mac_b, NeighbourState::Stale)), "{ip}");
        assert!(net.client_reaches(ip), "{ip} at B");
        assert!(give_up(&net, B, &b));
    }
}

#[test]
fn who_else_has_it_is_told_and_it_is_taken_all_the_same() {
    let Some(net) = Net::new() else { return };
    let (mac_a, mac_b) = (mac(&net, A), mac(&net, B));
    for address in BOTH {
        let ip = ip_of(address);
        let (a, b) = (eth0(address), eth0(address));
        let start = Instant::now();
        assert_eq!(take(&net, A, &a), None);
        let nobody = start.elapsed();
        assert!(nobody >= Duration::from_millis(200), "two questions of 100 ms: {nobody:?}");
        assert!(give_up(&net, A, &a));
        let start = Instant::now();
        net.on(A, || a.take()).unwrap_or_else(|e| panic!("{e}"));
        let taken = start.elapsed();
        assert!(taken < Duration::from_millis(100), "clients do not wait for the questions: {taken:?}");

        let start = Instant::now();
        assert_eq!(take(&net, B, &b), Some(mac_a.to_string()));
        let somebody = start.elapsed();
        println!("{ip}: taken in {nobody:?}, and in {somebody:?} when somebody answers");
        assert!(somebody < nobody, "an answer ends it: {somebody:?}");
        assert!(held(&net, B, &b));
        let shown = net.ip(B, &format!("address show to {ip}"));
        assert!(!shown.contains("tentative") && !shown.contains("dadfailed"), "usable at once: {shown}");
        assert_eq!(take(&net, A, &a), Some(mac_b.to_string()), "the other way round");
    }
}

#[test]
fn a_frozen_primary_loses_the_client_again_and_again() {
    let Some(net) = Net::new() else { return };
    let (mac_a, mac_b) = (mac(&net, A), mac(&net, B));
    for address in BOTH {
        let ip = ip_of(address);
        // A's nasd doesn't run, its kernel does.
        let nodad = if ip.is_ipv6() { " nodad" } else { "" };
        net.ip(A, &format!("address add {address} dev eth0{nodad}"));
        let b = eth0(address);
        assert_eq!(take(&net, B, &b), Some(mac_a.to_string()));
        for _ in 0..2 {
            net.ip(Client, &format!("neighbour replace {ip} lladdr {mac_a} dev eth0 nud stale"));
            let is_b = || net.client_knows(ip).is_some_and(|(mac, _)| mac == mac_b);
            let after = net.until("B is announced again", is_b);
            assert!(after < 2 * NEXT_ANNOUNCEMENT, "{ip}: {after:?}");
        }
    }
}

#[test]
fn taking_and_giving_up_twice_is_fine() {
    let Some(net) = Net::new() else { return };
    for address in BOTH {
        let it = eth0(address);
        assert!(!give_up(&net, A, &it), "{address} was never there");
        assert!(!held(&net, A, &it));
        for _ in 0..2 {
            assert_eq!(take(&net, A, &it), None, "{address}");
            assert!(held(&net, A, &it));
        }
        let shown = net.ip(A, "address show dev eth0");
        assert_eq!(shown.matches(&format!("{address} ")).count(), 1, "{shown}");
        assert!(give_up(&net, A, &it));
        assert!(!give_up(&net, A, &it));
        assert!(!held(&net, A, &it));
        let shown = net.ip(A, "address show dev eth0");
        assert!(!shown.contains(address), "{shown}");
        for own in ["198.51.100.1/24", "2001:db8::1/64"] {
            assert!(shown.contains(own), "the host's own addresses stay: {shown}");
        }
    }
}

#[test]
fn what_a_killed_nasd_left_is_removed_whatever_its_length() {
    let Some(net) = Net::new() else { return };
    net.ip(A, "address add 198.51.100.10/32 dev eth0");
    net.ip(A, "address add 198.51.100.10/25 dev eth0");
    net.ip(A, "address add 2001:db8::10/128 dev eth0 nodad");
    for address in BOTH {
        assert!(held(&net, A, &eth0(address)));
        assert!(give_up(&net, A, &eth0(address)));
        assert!(!held(&net, A, &eth0(address)));
    }
}

/// Linux takes the others of a network away with the oldest.
#[test]
fn the_hosts_own_address_stays_when_it_is_the_younger_one() {
    let Some(net) = Net::new() else { return };
    net.ip(A, "address flush dev eth0 scope global");
    let it = eth0(V4);
    assert_eq!(take(&net, A, &it), None);
    net.ip(A, "address add 198.51.100.1/24 dev eth0");
    net.ip(A, "route add default via 198.51.100.2");
    assert!(give_up(&net, A, &it));
    let shown = net.ip(A, "address show dev eth0");
    assert!(shown.contains("198.51.100.1/24"), "{shown}");
    let routes = net.ip(A, "route show");
    assert!(routes.contains("default via 198.51.100.2"), "{routes}");
}

#[test]
fn what_somebody_takes_away_comes_back_while_it_is_held() {
    let Some(net) = Net::new() else { return };
    let all = BOTH.map(eth0);
    for (address, it) in BOTH.iter().zip(&all) {
        assert_eq!(take(&net, A, it), None);
        net.ip(A, &format!("address delete {address} dev eth0"));
        net.until("it is back", || held(&net, A, it));
    }
    // IPv6 addresses go when the interface does.
    net.ip(A, "link set eth0 down");
    net.ip(A, "link set eth0 up");
    for (address, it) in BOTH.iter().zip(&all) {
        net.until("it is back and reached", || held(&net, A, it) && net.client_reaches(ip_of(address)));
        assert!(give_up(&net, A, it));
    }
}

/// Connections that the host opens would be cut off with the role.
#[test]
fn the_host_calls_from_its_own_address() {
    let Some(net) = Net::new() else { return };
    for (address, to, own) in [(V4, "198.51.100.3:9", "198.51.100.1"), (V6, "[2001:db8::3]:9", "2001:db8::1")]
    {
        let it = eth0(address);
        assert_eq!(take(&net, A, &it), None);
        let any = if ip_of(address).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let from = net.on(A, || {
            let socket = std::net::UdpSocket::bind(any).expect("a port is free");
            socket.connect(to).expect("there is a route");
            socket.local_addr().expect("it is bound").ip()
        });
        assert_eq!(from.to_string(), own);
    }
}

#[test]
fn loopback_has_nobody_to_tell() {
    let Some(net) = Net::new() else { return };
    net.ip(A, "link set lo up");
    for address in ["192.0.2.10/32", "2001:db8:1::10/128"] {
        let it = VirtualIp::new(&config(address, "lo"));
        let start = Instant::now();
        assert_eq!(take(&net, A, &it), None);
        assert!(start.elapsed() < Duration::from_millis(200), "nobody is asked: {:?}", start.elapsed());
        assert_eq!(take(&net, A, &it), None);
        assert!(held(&net, A, &it));
        assert!(give_up(&net, A, &it));
        assert!(!give_up(&net, A, &it));
    }
}

#[test]
fn an_interface_that_can_not_have_it_is_named_with_the_remedy() {
    let Some(net) = Net::new() else { return };
    let none = VirtualIp::new(&config(V4, "eth7"));
    let expected =
        "there is no network interface eth7; write one of those that `ip link` lists into [failover]";
    for e in [
        net.on(A, || none.take()).expect_err("there is none"),
        net.on(A, || none.give_up()).expect_err("there is none"),
        net.on(A, || none.held()).expect_err("there is none"),
    ] {
        assert!(matches!(e, AddressError::NoInterface { .. }), "{e:?}");
        assert_eq!(e.to_string(), expected);
    }

    net.ip(A, "link set eth0 down");
    for address in BOTH {
        let it = eth0(address);
        let e = net.on(A, || it.take()).expect_err("it is down");
        assert_eq!(e.to_string(), "the network interface eth0 is down; `ip link set eth0 up`");
        assert!(!held(&net, A, &it));
        assert!(!give_up(&net, A, &it), "nothing to do is fine on any interface");
    }

    net.ip(A, "link set eth0 up");
    let file = "/proc/sys/net/ipv6/conf/eth0/disable_ipv6";
    net.on(A, || std::fs::write(file, "1")).expect("root");
    let e = net.on(A, || eth0(V6).take()).expect_err("IPv6 is off").to_string();
    assert!(e.starts_with("adding 2001:db8::10 on eth0: Permission denied"), "{e}");
    assert!(e.ends_with("if IPv6 is off there: `sysctl net.ipv6.conf.eth0.disable_ipv6=0`"), "{e}");
}
