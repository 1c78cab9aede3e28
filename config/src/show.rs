//! The resolved configuration as a `nasd.toml`.

use std::fmt;
use std::path::Path;

use crate::resolved::Config;
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
        }

        if let Some(tls) = &self.tls {
            writeln!(f, "\n[tls]")?;
            writeln!(f, "ca = {}", quoted_path(&tls.ca))?;
            writeln!(f, "cert = {}", quoted_path(&tls.cert))?;
            writeln!(f, "key = {}", quoted_path(&tls.key))?;
        }

        let poll_interval = format_duration(self.watcher.poll_interval);
        writeln!(f, "\n[watcher]")?;
        writeln!(f, "mode = \"{}\"", self.watcher.mode)?;
        writeln!(f, "poll_interval = \"{poll_interval}\"")?;

        for notify in &self.notify {
            let paths: Vec<String> = notify.paths.iter().map(|p| quoted(p)).collect();
            writeln!(f, "\n[[notify]]")?;
            writeln!(f, "paths = [{}]", paths.join(", "))?;
            writeln!(f, "every = \"{}\"", format_duration(notify.every))?;
            writeln!(f, "exec = {}", quoted_path(&notify.exec))?;
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
        Ok(())
    }
}

/// A TOML string; the library knows the escapes.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// A path came out of a TOML string, so it is UTF-8 and nothing is lost here.
fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}
