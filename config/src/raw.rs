//! What was typed: the file key by key, nothing checked but its shape.
//!
//! Everything is optional here, even what is required, so that `resolve` can name what is missing in
//! its own words; and everything remembers its place in the text.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use crate::resolved::{CommitMode, FailoverMode, OnPeerLoss, Role, WatchMode};

pub(crate) type Text = Option<Spanned<String>>;
pub(crate) type Amount = Option<Spanned<Quantity>>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    pub node: Option<Spanned<Node>>,
    pub volume: Option<Spanned<Volume>>,
    #[serde(default)]
    pub replication: Replication,
    #[serde(default)]
    pub log: Log,
    #[serde(default)]
    pub peer: Vec<Spanned<Peer>>,
    pub tls: Option<Spanned<Tls>>,
    pub api: Option<Spanned<Api>>,
    #[serde(default)]
    pub watcher: Watcher,
    #[serde(default)]
    pub notify: Vec<Spanned<Notify>>,
    pub postgresql: Option<Spanned<Postgresql>>,
    pub failover: Option<Spanned<Failover>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Node {
    pub name: Text,
    pub state_dir: Text,
    pub initial_role: Option<Role>,
    pub listen: Text,
    pub control: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Volume {
    pub mount: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Replication {
    pub commit: Option<CommitMode>,
    pub commit_interval: Amount,
    pub on_peer_loss: Option<OnPeerLoss>,
    pub peer_timeout: Amount,
    pub required: Option<Spanned<i64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_field_names)] // The names are the file's.
pub(crate) struct Log {
    pub retain_for: Amount,
    pub retain_bytes: Amount,
    pub retain_files: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peer {
    pub name: Text,
    pub address: Text,
    pub heartbeat_addresses: Option<Vec<Spanned<String>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    pub ca: Text,
    pub cert: Text,
    pub key: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Api {
    pub listen: Text,
    pub token_file: Text,
    pub cert: Text,
    pub key: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Watcher {
    pub mode: Option<WatchMode>,
    pub poll_interval: Amount,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Notify {
    pub paths: Option<Spanned<Vec<Spanned<String>>>>,
    pub states: Option<Spanned<Vec<Spanned<String>>>>,
    pub every: Amount,
    pub exec: Text,
    pub signal: Text,
    pub pid_file: Text,
    pub webhook: Text,
    pub ca: Text,
    pub token_file: Text,
    pub postgresql: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Postgresql {
    pub data_dir: Text,
    pub bin_dir: Text,
    pub user: Text,
    pub manage: Option<bool>,
    pub hold_bytes: Amount,
    pub notify_every: Amount,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failover {
    pub mode: Option<Spanned<FailoverMode>>,
    pub timeout: Amount,
    pub interval: Amount,
    pub fence_exec: Text,
    pub auto_failback: Option<bool>,
    pub virtual_address: Text,
    pub interface: Text,
    pub on_role_change: Text,
    pub etcd: Option<Spanned<Etcd>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Etcd {
    pub endpoints: Option<Spanned<Vec<Spanned<String>>>>,
    pub prefix: Text,
    pub ca: Text,
    pub cert: Text,
    pub key: Text,
    pub user: Text,
    pub password_file: Text,
}

/// A duration or a size: a string with a unit, or a plain number, kept as it was written.
#[derive(Debug)]
pub(crate) struct Quantity(pub String);

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number with its unit in quotes, such as \"10s\" or \"4GiB\"")
            }

            fn visit_str<E: de::Error>(self, v: &str) -> Result<Quantity, E> {
                Ok(Quantity(v.to_owned()))
            }

            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Quantity, E> {
                Ok(Quantity(v.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
