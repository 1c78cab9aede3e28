//! What a load costs beside time: processor time of processes, and bytes of connections.

use std::fs;
use std::process::Command;

/// Fields of `/proc/PID/stat` behind the name.
fn stat(pid: u32) -> Option<Vec<u64>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = stat.rsplit(')').next()?.split_whitespace().skip(1);
    Some(fields.map(|f| f.parse().unwrap_or(0)).collect())
}

/// Every process with its parent.
pub fn processes() -> Vec<(u32, u32)> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| Some((pid, stat(pid)?[0] as u32))).collect()
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Processor time of a process.
pub fn cpu_seconds(pid: u32) -> f64 {
    seconds(stat(pid).unwrap()[10..12].iter().sum())
}

/// Processor time of a process and its children, those that have ended included.
pub fn family_cpu_seconds(pid: u32) -> f64 {
    let children = processes().into_iter().filter(|&(_, parent)| parent == pid).map(|(child, _)| child);
    let all = std::iter::once(pid).chain(children);
    seconds(all.filter_map(stat).map(|s| s[10..14].iter().sum::<u64>()).sum())
}

/// One end of a TCP connection.
#[derive(Debug)]
pub struct Socket {
    /// Port on its side.
    pub local: u16,
    /// Port on the other.
    pub peer: u16,
    /// Who has it open, as `ss` says it.
    users: String,
    /// What the other side has confirmed.
    pub acked: u64,
}

impl Socket {
    /// Whether this process has it open.
    pub fn is_of(&self, pid: u32) -> bool {
        self.users.contains(&format!("pid={pid},"))
    }
}

/// The connections that there are; in the network namespace of a process, if one is given.
pub fn sockets(namespace_of: Option<u32>) -> Vec<Socket> {
    lines("-tnpiHO", namespace_of).iter().filter_map(|l| socket(l)).collect()
}

/// The ports on which a process of another network namespace listens.
pub fn listens(pid: u32) -> Vec<u16> {
    let of = format!("pid={pid},");
    let lines = lines("-tlnpHO", Some(pid));
    lines.iter().filter(|l| l.contains(&of)).filter_map(|l| port(l.split_whitespace().nth(3)?)).collect()
}

fn lines(options: &str, namespace_of: Option<u32>) -> Vec<String> {
    let mut command = match namespace_of {
        Some(pid) => {
            let mut c = Command::new("nsenter");
            c.arg(format!("--net=/proc/{pid}/ns/net")).arg("ss");
            c
        }
        None => Command::new("ss"),
    };
    let out = command.arg(options).output().unwrap();
    assert!(out.status.success(), "ss: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}

fn port(address: &str) -> Option<u16> {
    address.rsplit(':').next()?.parse().ok()
}

/// State, two queues, both addresses, and then words.
fn socket(line: &str) -> Option<Socket> {
    let mut words = line.split_whitespace().skip(3);
    let (local, peer) = (port(words.next()?)?, port(words.next()?)?);
    let mut socket = Socket { local, peer, users: String::new(), acked: 0 };
    for word in words {
        if word.starts_with("users:") {
            socket.users = word.to_owned();
        } else if let Some(n) = word.strip_prefix("bytes_acked:") {
            socket.acked = n.parse().ok()?;
        }
    }
    Some(socket)
}

#[test]
fn reads_a_line_of_ss() {
    let line = r#"ESTAB 0 48 127.0.0.1:7400 127.0.0.1:49142 users:(("nasd",pid=28,fd=26)) cubic bytes_sent:70 bytes_acked:69 lost:1"#;
    let s = socket(line).unwrap();
    assert_eq!((s.local, s.peer, s.acked), (7400, 49142, 69));
    assert!(s.is_of(28) && !s.is_of(8));
    assert_eq!(socket("ESTAB 0 0 [::1]:7400 [::1]:1").unwrap().acked, 0);
}
