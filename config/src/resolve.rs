//! From what was typed to what it means: defaults, ranges, and what must fit together.

use std::fmt::{Debug, Display};
use std::net::Ipv6Addr;
use std::ops::{Range, RangeInclusive};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use crate::error::Mistake;
use crate::notify;
use crate::raw;
use crate::resolved::{
    CommitMode, Config, Log, Node, OnPeerLoss, Peer, Postgresql, Replication, Role, Tls, Volume, WatchMode,
    Watcher,
};
use crate::units::{format_duration, format_size, parse_duration, parse_size};

/// Where a node listens for its peers, if not said otherwise.
const PORT: u16 = 7400;
const DEFAULT_COMMIT_INTERVAL: Duration = Duration::from_secs(1);
const DEFAULT_PEER_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_RETAIN_FOR: Duration = Duration::from_secs(600);
const DEFAULT_RETAIN_BYTES: u64 = 4 << 30;
const DEFAULT_RETAIN_FILES: u64 = 20_000;
const DEFAULT_POLL_INTERVAL: Duration = Duration::from_millis(100);
const DEFAULT_HOLD_BYTES: u64 = 8 << 30;
const DEFAULT_NOTIFY_EVERY: Duration = Duration::from_secs(1);

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// `sun_path` of a Unix socket's address holds 108 bytes, the last of them zero.
const SOCKET_PATH_BYTES: usize = 107;

pub(crate) type Result<T> = std::result::Result<T, Mistake>;

pub(crate) fn resolve(raw: raw::Document) -> Result<Config> {
    let node_at = place(raw.node.as_ref());
    let volume_at = place(raw.volume.as_ref());
    let raw_node = raw.node.ok_or_else(|| {
        let remedy = "add [node] with name = \"nas-a\" and state_dir = \"/var/lib/nasd\"";
        Mistake::new(0..0, "there is no [node]", remedy)
    })?;
    let raw_volume = raw.volume.ok_or_else(|| {
        let remedy = "add [volume] with mount = \"/srv/nas\"";
        Mistake::new(0..0, "there is no [volume]", remedy)
    })?;

    let raw_node = raw_node.into_inner();
    // Kept for what concerns two keys at once; where one has its default, its section is the place.
    let control_at = raw_node.control.as_ref().map(Spanned::span);
    let mount_at = raw_volume.get_ref().mount.as_ref().map(Spanned::span);
    let node = resolve_node(raw_node, &node_at)?;
    let mount = required_path(raw_volume.into_inner().mount, "mount", "[volume]", &volume_at)?;
    let mount_at = mount_at.unwrap_or(volume_at);

    if mount.starts_with(&node.state_dir) || node.state_dir.starts_with(&mount) {
        return Err(Mistake::new(
            mount_at,
            format!(
                "mount {} and state_dir {} lie one in the other",
                mount.display(),
                node.state_dir.display()
            ),
            "choose two directories side by side",
        ));
    }
    outside(&node.control, "control", &mount, &control_at.unwrap_or(node_at))?;

    let postgresql = raw.postgresql.map(|p| resolve_postgresql(p, &mount)).transpose()?;
    let peers = resolve_peers(raw.peer.as_slice(), &node.name)?;
    let tls = raw.tls.map(|t| resolve_tls(t, |typed, key| apart(typed, key, &mount))).transpose()?;
    if let (Some(peer), None) = (raw.peer.first(), &tls) {
        return Err(Mistake::new(
            peer.span(),
            "there is a [[peer]] but no [tls]",
            "add [tls] with ca, cert and key (`nasd cert` makes the files)",
        ));
    }

    let api = raw.api.map(|a| crate::api::resolve(a, tls.as_ref(), &node.listen, &mount)).transpose()?;
    let failover = crate::failover::resolve(raw.failover, peers.len(), &mount)?;
    Ok(Config {
        node,
        volume: Volume { mount },
        replication: resolve_replication(raw.replication)?,
        log: resolve_log(raw.log)?,
        peers,
        tls,
        api,
        watcher: resolve_watcher(raw.watcher)?,
        notify: raw.notify.into_iter().map(notify::resolve).collect::<Result<_>>()?,
        postgresql,
        failover,
    })
}

fn resolve_node(raw: raw::Node, at: &Range<usize>) -> Result<Node> {
    let name = required(raw.name, "name", "[node]", at)?;
    let name = node_name(&name)?;
    let state_dir_at = raw.state_dir.as_ref().map(Spanned::span);
    let state_dir = required_path(raw.state_dir, "state_dir", "[node]", at)?;
    let listen = match raw.listen {
        Some(listen) => host_and_port(&listen, "listen", PORT)?,
        None => format!("0.0.0.0:{PORT}"),
    };
    let control_at = raw.control.as_ref().map(Spanned::span).or(state_dir_at);
    let control = match raw.control {
        Some(control) => absolute(&control, "control")?,
        None => state_dir.join("nasd.sock"),
    };
    let bytes = control.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES {
        return Err(Mistake::new(
            control_at.unwrap_or_else(|| at.clone()),
            format!("the path of the control socket has {bytes} bytes"),
            format!("set control in [node] to a path of at most {SOCKET_PATH_BYTES} bytes"),
        ));
    }
    Ok(Node { name, state_dir, initial_role: raw.initial_role.unwrap_or(Role::Primary), listen, control })
}

fn resolve_replication(raw: raw::Replication) -> Result<Replication> {
    Ok(Replication {
        commit: raw.commit.unwrap_or(CommitMode::Durable),
        commit_interval: duration(
            raw.commit_interval,
            "commit_interval",
            DEFAULT_COMMIT_INTERVAL,
            Duration::from_millis(10)..=HOUR,
        )?,
        on_peer_loss: raw.on_peer_loss.unwrap_or(OnPeerLoss::Degrade),
        required: match raw.required {
            None => 1,
            Some(typed) => {
                let n = usize::try_from(*typed.get_ref()).unwrap_or(0);
                in_range("required", typed.span(), n, 1..=16, usize::to_string)?
            }
        },
        peer_timeout: duration(
            raw.peer_timeout,
            "peer_timeout",
            DEFAULT_PEER_TIMEOUT,
            Duration::from_millis(100)..=HOUR,
        )?,
    })
}

fn resolve_log(raw: raw::Log) -> Result<Log> {
    let retain_bytes = size(raw.retain_bytes, "retain_bytes", DEFAULT_RETAIN_BYTES)?;
    let retain_files = match raw.retain_files {
        None => DEFAULT_RETAIN_FILES,
        Some(typed) => {
            // A negative number is as far below the range as zero.
            let files = u64::try_from(*typed.get_ref()).unwrap_or(0);
            in_range("retain_files", typed.span(), files, 16..=1_000_000_000, u64::to_string)?
        }
    };
    Ok(Log {
        retain_for: duration(raw.retain_for, "retain_for", DEFAULT_RETAIN_FOR, Duration::ZERO..=DAY * 3650)?,
        retain_bytes,
        retain_files,
    })
}

fn resolve_peers(raw: &[Spanned<raw::Peer>], own_name: &str) -> Result<Vec<Peer>> {
    let mut peers: Vec<Peer> = Vec::new();
    for typed in raw {
        let at = typed.span();
        let typed = typed.get_ref();
        let typed_name = required(typed.name.clone(), "name", "[[peer]]", &at)?;
        let name = node_name(&typed_name)?;
        // Names are compared as TLS compares them.
        if name.eq_ignore_ascii_case(own_name) {
            return Err(Mistake::new(
                typed_name.span(),
                format!("the peer {name:?} has this node's own name"),
                "list only the other nodes",
            ));
        }
        if peers.iter().any(|p| p.name.eq_ignore_ascii_case(&name)) {
            return Err(Mistake::new(
                typed_name.span(),
                format!("there are two peers named {name:?}"),
                "give each node a name of its own",
            ));
        }
        let typed_address = required(typed.address.clone(), "address", "[[peer]]", &at)?;
        let address = connectable(
            &typed_address,
            "address",
            PORT,
            "write the port of the peer's `listen`, for example 7400",
        )?;
        if let Some(other) = peers.iter().find(|p| p.address == address) {
            return Err(Mistake::new(
                typed_address.span(),
                format!("the peers {:?} and {name:?} have one address", other.name),
                "give each its own",
            ));
        }
        let mut heartbeat_addresses = Vec::new();
        for other in typed.heartbeat_addresses.iter().flatten() {
            heartbeat_addresses.push(host_and_port(other, "heartbeat_addresses", PORT)?);
        }
        peers.push(Peer { name, address, heartbeat_addresses });
    }
    Ok(peers)
}

/// `path` says where the files may be.
pub(crate) fn resolve_tls(
    raw: Spanned<raw::Tls>,
    path: impl Fn(&Spanned<String>, &str) -> Result<PathBuf>,
) -> Result<Tls> {
    let at = raw.span();
    let raw = raw.into_inner();
    let file = |typed: raw::Text, key: &str| path(&required(typed, key, "[tls]", &at)?, key);
    Ok(Tls { ca: file(raw.ca, "ca")?, cert: file(raw.cert, "cert")?, key: file(raw.key, "key")? })
}

fn resolve_watcher(raw: raw::Watcher) -> Result<Watcher> {
    Ok(Watcher {
        mode: raw.mode.unwrap_or(WatchMode::Inotify),
        poll_interval: duration(
            raw.poll_interval,
            "poll_interval",
            DEFAULT_POLL_INTERVAL,
            Duration::from_millis(1)..=Duration::from_secs(60),
        )?,
    })
}

fn resolve_postgresql(raw: Spanned<raw::Postgresql>, mount: &Path) -> Result<Postgresql> {
    let at = raw.span();
    let raw = raw.into_inner();
    let data_dir = required(raw.data_dir, "data_dir", "[postgresql]", &at)?;
    let data_dir_at = data_dir.span();
    let data_dir = absolute(&data_dir, "data_dir")?;
    // Only the log is on the volume: a standby writes its data files, and its mount is read-only.
    outside(&data_dir, "data_dir", mount, &data_dir_at)?;
    let user = raw.user.map_or_else(|| "postgres".to_owned(), Spanned::into_inner);
    Ok(Postgresql {
        data_dir,
        bin_dir: raw.bin_dir.map(|typed| absolute(&typed, "bin_dir")).transpose()?,
        user,
        manage: raw.manage.unwrap_or(true),
        hold_bytes: size(raw.hold_bytes, "hold_bytes", DEFAULT_HOLD_BYTES)?,
        notify_every: duration(raw.notify_every, "notify_every", DEFAULT_NOTIFY_EVERY, Duration::ZERO..=DAY)?,
    })
}

/// Whether a node can be called so: a name that can stand in a certificate, as a host name and,
/// being at most 63 characters long, as the common name; each part between dots begins with a letter.
pub fn is_node_name(name: &str) -> bool {
    let label_is_good = |label: &str| {
        label.starts_with(|c: char| c.is_ascii_alphabetic())
            && label.ends_with(|c: char| c.is_ascii_alphanumeric())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    name.len() <= 63 && name.split('.').all(label_is_good)
}

pub(crate) fn node_name(typed: &Spanned<String>) -> Result<String> {
    let name = typed.get_ref();
    if is_node_name(name) {
        return Ok(name.clone());
    }
    Err(Mistake::new(
        typed.span(),
        format!("name = {name:?} cannot stand in a certificate"),
        "write it like a host name: letters, digits and `-`, at most 63, a letter first",
    ))
}

/// `HOST:PORT`, where HOST is a name, an IPv4 address, or an IPv6 address in brackets.
/// `usual` is the port of the example.
pub(crate) fn host_and_port(typed: &Spanned<String>, key: &str, usual: u16) -> Result<String> {
    let text = typed.get_ref();
    let is_good = text.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host_is_good = match bracketed {
            Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            }
        };
        // `parse` would take a sign.
        host_is_good && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
    });
    if is_good {
        return Ok(text.clone());
    }
    Err(Mistake::new(
        typed.span(),
        format!("{key} = {text:?} is not HOST:PORT"),
        format!("write for example \"nas-b:{usual}\", \"10.0.0.2:{usual}\" or \"[fd00::2]:{usual}\""),
    ))
}

/// The same with a port that can be connected to.
pub(crate) fn connectable(typed: &Spanned<String>, key: &str, usual: u16, remedy: &str) -> Result<String> {
    let address = host_and_port(typed, key, usual)?;
    if address.ends_with(":0") {
        return Err(Mistake::new(
            typed.span(),
            format!("{key} = {address:?} has no port to connect to"),
            remedy,
        ));
    }
    Ok(address)
}

fn required_path(typed: raw::Text, key: &str, section: &str, section_at: &Range<usize>) -> Result<PathBuf> {
    absolute(&required(typed, key, section, section_at)?, key)
}

pub(crate) fn required<T>(
    typed: Option<Spanned<T>>,
    key: &str,
    section: &str,
    section_at: &Range<usize>,
) -> Result<Spanned<T>> {
    typed.ok_or_else(|| {
        Mistake::new(section_at.clone(), format!("{section} has no {key}"), format!("add {key} = … to it"))
    })
}

/// An absolute path without `..`, so that one path lies in another exactly when it begins with it.
pub(crate) fn absolute(typed: &Spanned<String>, key: &str) -> Result<PathBuf> {
    let text = typed.get_ref();
    let path = Path::new(text);
    let climbs = path.components().any(|c| c == Component::ParentDir);
    if !path.is_absolute() || climbs || text.contains(char::is_control) {
        return Err(Mistake::new(
            typed.span(),
            format!("{key} = {text:?} is not an absolute path"),
            "write the whole path from `/` on, without `..`",
        ));
    }
    Ok(path.components().collect())
}

/// What nasd needs before it serves the mount cannot lie in it.
pub(crate) fn outside(path: &Path, key: &str, mount: &Path, at: &Range<usize>) -> Result<()> {
    if path.starts_with(mount) {
        return Err(Mistake::new(
            at.clone(),
            format!("{key} {} lies inside the mount {}", path.display(), mount.display()),
            "put it elsewhere",
        ));
    }
    Ok(())
}

/// What is needed when the volume does not answer can't lie on it.
pub(crate) fn apart(typed: &Spanned<String>, key: &str, mount: &Path) -> Result<PathBuf> {
    let path = absolute(typed, key)?;
    outside(&path, key, mount, &typed.span())?;
    Ok(path)
}

pub(crate) fn duration(
    typed: raw::Amount,
    key: &str,
    default: Duration,
    range: RangeInclusive<Duration>,
) -> Result<Duration> {
    let Some(typed) = typed else {
        return Ok(default);
    };
    let text = &typed.get_ref().0;
    let value = parse_duration(text).map_err(|reason| {
        Mistake::new(
            typed.span(),
            format!("{key} = {text:?} is no duration: {reason}"),
            "write for example \"100ms\", \"5s\" or \"10m\"",
        )
    })?;
    in_range(key, typed.span(), value, range, |d| format_duration(*d))
}

fn size(typed: raw::Amount, key: &str, default: u64) -> Result<u64> {
    let Some(typed) = typed else {
        return Ok(default);
    };
    let text = &typed.get_ref().0;
    let bytes = parse_size(text).map_err(|reason| {
        Mistake::new(
            typed.span(),
            format!("{key} = {text:?} is no size: {reason}"),
            "write for example \"4GiB\" or \"512MiB\"",
        )
    })?;
    in_range(key, typed.span(), bytes, 1 << 20..=1 << 60, |b| format_size(*b))
}

fn in_range<T: PartialOrd + Debug, S: Display>(
    key: &str,
    at: Range<usize>,
    value: T,
    range: RangeInclusive<T>,
    show: impl Fn(&T) -> S,
) -> Result<T> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (low, high) = (show(range.start()), show(range.end()));
    let side = if value < *range.start() { format!("below {low}") } else { format!("above {high}") };
    Err(Mistake::new(at, format!("{key} is {side}"), format!("choose from {low} to {high}")))
}

fn place<T>(typed: Option<&Spanned<T>>) -> Range<usize> {
    typed.map_or(0..0, Spanned::span)
}
