//! The resolved configuration as a `nasd.toml`.

use std::fmt;
use std::path::Path;

use crate::notify::{Every, Notify, Way};
use crate::resolved::{Config, Failover};
use crate::units::{format_duration, format_size};

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "[node]")?;
        writeln!(f, "name = {}", quoted(&self.node.name))?;
        writeln!(f, "state_dir = {}", quoted_path(&self.node.state_dir))?;
        writeln!(f, "initial_role = \"{}\"", self.node.initial_role)?;
        writeln!(f, "listen = {}", quoted(&self.node.listen))?;
        writeln!(f, "control = {}", quoted_path(&self.node.control))?;

        writeln!(f, "\n[volume]")?;
        writeln!(f, "mount = {}", quoted_path(&self.volume.mount))?;

        let replication = &self.replication;
        let commit_interval = format_duration(replication.commit_interval);
        let peer_timeout = format_duration(replication.peer_timeout);
        writeln!(f, "\n[replication]")?;
        writeln!(f, "commit = \"{}\"", replication.commit)?;
        writeln!(f, "commit_interval = \"{commit_interval}\"")?;
        writeln!(f, "on_peer_loss = \"{}\"", replication.on_peer_loss)?;
        writeln!(f, "peer_timeout = \"{peer_timeout}\"")?;
        writeln!(f, "required = {}", replication.required)?;

        let retain_for = format_duration(self.log.retain_for);
        let retain_bytes = format_size(self.log.retain_bytes);
        writeln!(f, "\n[log]")?;
        writeln!(f, "retain_for = \"{retain_for}\"")?;
        writeln!(f, "retain_bytes = \"{retain_bytes}\"")?;
        writeln!(f, "retain_files = {}", self.log.retain_files)?;

        for peer in &self.peers {
            writeln!(f, "\n[[peer]]")?;
            writeln!(f, "name = {}", quoted(&peer.name))?;
            writeln!(f, "address = {}", quoted(&peer.address))?;
            writeln!(f, "heartbeat_addresses = {}", quoted_list(&peer.heartbeat_addresses))?;
        }

        if let Some(tls) = &self.tls {
            writeln!(f, "\n[tls]")?;
            writeln!(f, "ca = {}", quoted_path(&tls.ca))?;
            writeln!(f, "cert = {}", quoted_path(&tls.cert))?;
            writeln!(f, "key = {}", quoted_path(&tls.key))?;
        }

        if let Some(api) = &self.api {
            writeln!(f, "\n[api]")?;
            writeln!(f, "listen = {}", quoted(&api.listen))?;
            if let Some(token_file) = &api.token_file {
                writeln!(f, "token_file = {}", quoted_path(token_file))?;
            }
            writeln!(f, "cert = {}", quoted_path(&api.cert))?;
            writeln!(f, "key = {}", quoted_path(&api.key))?;
        }

        let poll_interval = format_duration(self.watcher.poll_interval);
        writeln!(f, "\n[watcher]")?;
        writeln!(f, "mode = \"{}\"", self.watcher.mode)?;
        writeln!(f, "poll_interval = \"{poll_interval}\"")?;

        for notify in &self.notify {
            show_notify(notify, f)?;
        }

        if let Some(postgresql) = &self.postgresql {
            writeln!(f, "\n[postgresql]")?;
            writeln!(f, "data_dir = {}", quoted_path(&postgresql.data_dir))?;
            if let Some(bin_dir) = &postgresql.bin_dir {
                writeln!(f, "bin_dir = {}", quoted_path(bin_dir))?;
            }
            writeln!(f, "user = {}", quoted(&postgresql.user))?;
            writeln!(f, "manage = {}", postgresql.manage)?;
            writeln!(f, "hold_bytes = \"{}\"", format_size(postgresql.hold_bytes))?;
            writeln!(f, "notify_every = \"{}\"", format_duration(postgresql.notify_every))?;
        }
        show_failover(&self.failover, f)
    }
}

fn show_notify(notify: &Notify, f: &mut fmt::Formatter) -> fmt::Result {
    writeln!(f, "\n[[notify]]")?;
    for (key, list) in [("paths", &notify.paths), ("states", &notify.states)] {
        if !list.is_empty() {
            writeln!(f, "{key} = {}", quoted_list(list))?;
        }
    }
    match notify.every {
        Every::Spell(every) => writeln!(f, "every = \"{}\"", format_duration(every))?,
        Every::OnDemand => writeln!(f, "every = \"on-demand\"")?,
    }
    match &notify.way {
        Way::Exec(exec) => writeln!(f, "exec = {}", quoted_path(exec)),
        Way::Signal { signal, pid_file } => {
            writeln!(f, "signal = \"{signal}\"")?;
            writeln!(f, "pid_file = {}", quoted_path(pid_file))
        }
        Way::Webhook { url, ca, token_file } => {
            writeln!(f, "webhook = {}", quoted(url))?;
            if let Some(path) = ca {
                writeln!(f, "ca = {}", quoted_path(path))?;
            }
            match token_file {
                Some(path) => writeln!(f, "token_file = {}", quoted_path(path)),
                None => Ok(()),
            }
        }
        Way::Postgresql(data_dir) => writeln!(f, "postgresql = {}", quoted_path(data_dir)),
    }
}

fn show_failover(failover: &Failover, f: &mut fmt::Formatter) -> fmt::Result {
    writeln!(f, "\n[failover]")?;
    writeln!(f, "mode = \"{}\"", failover.mode)?;
    writeln!(f, "timeout = \"{}\"", format_duration(failover.timeout))?;
    writeln!(f, "interval = \"{}\"", format_duration(failover.interval))?;
    if let Some(exec) = &failover.fence_exec {
        writeln!(f, "fence_exec = {}", quoted_path(exec))?;
    }
    writeln!(f, "auto_failback = {}", failover.auto_failback)?;
    if let Some(address) = &failover.virtual_address {
        writeln!(f, "virtual_address = \"{address}\"")?;
        writeln!(f, "interface = {}", quoted(&address.interface))?;
    }
    if let Some(exec) = &failover.on_role_change {
        writeln!(f, "on_role_change = {}", quoted_path(exec))?;
    }
    if let Some(etcd) = &failover.etcd {
        writeln!(f, "\n[failover.etcd]")?;
        writeln!(f, "endpoints = {}", quoted_list(&etcd.endpoints))?;
        writeln!(f, "prefix = {}", quoted(&etcd.prefix))?;
        if let Some(ca) = &etcd.ca {
            writeln!(f, "ca = {}", quoted_path(ca))?;
        }
        if let Some((cert, key)) = &etcd.cert {
            writeln!(f, "cert = {}", quoted_path(cert))?;
            writeln!(f, "key = {}", quoted_path(key))?;
        }
        if let Some((user, password_file)) = &etcd.user {
            writeln!(f, "user = {}", quoted(user))?;
            writeln!(f, "password_file = {}", quoted_path(password_file))?;
        }
    }
    Ok(())
}

fn quoted_list(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|t| quoted(t)).collect();
    format!("[{}]", texts.join(", "))
}

/// A TOML string; the library knows the escapes.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// A path came out of a TOML string, so it is UTF-8 and nothing is lost here.
fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}
