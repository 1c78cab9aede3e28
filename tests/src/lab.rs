//! Hosts of our own: network namespaces on one bridge, whose cables can be cut one way or both, or made to lose packets.

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Hosts on a bridge. They are gone with this value.
#[derive(Debug)]
pub struct Lab {
    id: String,
    hosts: Vec<String>,
}

/// A program in a network namespace: the same process, the same mounts.
pub fn enter(netns: &str, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{netns}")).arg("--").arg(program);
    command
}

fn run(line: &str) -> Result<(), String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let out = Command::new(words[0]).args(&words[1..]).output().map_err(|e| format!("{line}: {e}"))?;
    if out.status.success() {
        Ok(())
    } else {
        Err(format!("{line}: {}", String::from_utf8_lossy(&out.stderr)))
    }
}

impl Lab {
    /// Hosts with these names: the first has 10.77.0.1, and so on. `None`, with a line that says why, where there can be none.
    pub fn new(test: &str, hosts: &[&str]) -> Option<Lab> {
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let id = format!("nasd{}-{number}", std::process::id());
        let lab = Lab { id, hosts: hosts.iter().map(|h| (*h).to_owned()).collect() };
        if let Err(e) = run(&format!("ip netns add {}", lab.netns("switch"))) {
            println!("{test}: skipped: no network namespaces here: {e}");
            return None;
        }
        lab.build().unwrap();
        Some(lab)
    }

    fn build(&self) -> Result<(), String> {
        let switch = self.netns("switch");
        run(&format!("ip -n {switch} link add bridge type bridge"))?;
        run(&format!("ip -n {switch} link set dev bridge up"))?;
        for (i, host) in self.hosts.iter().enumerate() {
            let netns = self.netns(host);
            run(&format!("ip netns add {netns}"))?;
            run(&format!("ip -n {netns} link add eth0 type veth peer name {host} netns {switch}"))?;
            run(&format!("ip -n {netns} addr add 10.77.0.{}/24 dev eth0", i + 1))?;
            run(&format!("ip -n {netns} addr add 10.78.0.{}/24 dev eth0", i + 1))?;
            run(&format!("ip -n {netns} link set dev eth0 up"))?;
            run(&format!("ip -n {netns} link set dev lo up"))?;
            run(&format!("ip -n {switch} link set dev {host} master bridge up"))?;
        }
        self.nft("add table bridge lab")?;
        self.nft("add chain bridge lab cut { type filter hook forward priority 0 ; policy accept ; }")
    }

    fn nft(&self, what: &str) -> Result<(), String> {
        run(&format!("nsenter --net=/run/netns/{} nft {what}", self.netns("switch")))
    }

    /// The namespace of a host.
    pub fn netns(&self, host: &str) -> String {
        format!("{}-{host}", self.id)
    }

    /// A host's address.
    pub fn ip(&self, host: &str) -> String {
        let i = self.hosts.iter().position(|h| h == host).expect("a host of this lab");
        format!("10.77.0.{}", i + 1)
    }

    /// Its address in another network, whose cable [`Lab::cut_first_network`] does not cut.
    pub fn other_ip(&self, host: &str) -> String {
        self.ip(host).replace("10.77.", "10.78.")
    }

    /// The first network is cut for all; the other one is whole.
    pub fn cut_first_network(&self) {
        self.nft("add rule bridge lab cut ip daddr 10.77.0.0/24 drop").unwrap();
        self.nft("add rule bridge lab cut arp daddr ip 10.77.0.0/24 drop").unwrap();
    }

    /// Nothing gets from one to the other any more.
    pub fn cut_one_way(&self, from: &str, to: &str) {
        self.nft(&format!("add rule bridge lab cut iifname {from} oifname {to} drop")).unwrap();
    }

    /// Nothing gets either way between the two.
    pub fn cut(&self, one: &str, other: &str) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// So many percent of all packets are lost.
    pub fn lose(&self, percent: u32) {
        self.nft(&format!("add rule bridge lab cut numgen random mod 100 < {percent} drop")).unwrap();
    }

    /// All cables are whole again.
    pub fn heal(&self) {
        self.nft("flush chain bridge lab cut").unwrap();
    }

    /// The power of a host's network: down is what a host without power looks like to others.
    pub fn power(&self, host: &str, up: bool) {
        let state = if up { "up" } else { "down" };
        run(&format!("ip -n {} link set dev {host} {state}", self.netns("switch"))).unwrap();
    }

    /// Whether a host's interface has this address.
    pub fn has_address(&self, host: &str, ip: &str) -> bool {
        let args = ["-n", &self.netns(host), "-brief", "address", "show", "to", ip];
        let out = Command::new("ip").args(args).output().unwrap();
        !out.stdout.is_empty()
    }

    /// Moves the calling thread to a host.
    pub fn move_to(&self, host: &str) {
        let path = format!("/run/netns/{}", self.netns(host));
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network)).unwrap();
    }
}

/// Removes the hosts of a process that did not live to do it.
pub fn clear(pid: u32) {
    let prefix = format!("nasd{pid}-");
    for host in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        if let Some(name) = host.file_name().to_str().filter(|n| n.starts_with(&prefix)) {
            // It can only be gone.
            let _ = run(&format!("ip netns del {name}"));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in self.hosts.iter().map(String::as_str).chain(["switch"]) {
            // What was not built can't be removed.
            let _ = run(&format!("ip netns del {}", self.netns(host)));
        }
    }
}
