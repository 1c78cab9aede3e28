//! What a `nasd.toml` may say.
//!
//! What was typed and what it means are two types: the private module `raw` mirrors the file, key by
//! key, and [`Config`] is the resolved configuration, with every default filled in and every value
//! checked. Nothing else in `nasd` looks at the file.
//!
//! Every mistake is one line, `FILE:LINE: what is wrong; remedy`, see [`ConfigError`]. Printing a
//! [`Config`] gives a `nasd.toml` again, with every default shown.

mod agent;
mod api;
mod error;
mod failover;
pub mod notify;
mod raw;
mod resolve;
mod resolved;
mod show;
mod units;

use std::path::Path;

use serde::de::DeserializeOwned;

pub use agent::AgentConfig;
pub use error::ConfigError;
pub use notify::Notify;
pub use resolve::is_node_name;
pub use resolved::{
    Api, CommitMode, Config, Etcd, Failover, FailoverMode, Log, Node, OnPeerLoss, Peer, Postgresql,
    Replication, Role, Tls, VirtualAddress, Volume, WatchMode, Watcher,
};
pub use units::{format_size, parse_size};

/// Reads and checks the configuration file at `path`.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    parse(&read(path)?, path)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let bytes =
        std::fs::read(path).map_err(|source| ConfigError::Unreadable { file: path.to_path_buf(), source })?;
    String::from_utf8(bytes).map_err(|e| ConfigError::Wrong {
        file: path.to_path_buf(),
        line: error::line_of(e.as_bytes(), e.utf8_error().valid_up_to()),
        what: "this is not UTF-8 text".to_owned(),
        remedy: "save the file as UTF-8".to_owned(),
    })
}

/// Reads and checks an agent's configuration file at `path`.
pub fn load_agent(path: &Path) -> Result<AgentConfig, ConfigError> {
    parse_agent(&read(path)?, path)
}

/// Checks a configuration that was read already; `file` is what errors call it.
pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigError> {
    parse_as(text, file, resolve::resolve)
}

/// The same with an agent's.
pub fn parse_agent(text: &str, file: &Path) -> Result<AgentConfig, ConfigError> {
    parse_as(text, file, agent::resolve)
}

fn parse_as<D: DeserializeOwned, C>(
    text: &str,
    file: &Path,
    resolve: impl FnOnce(D) -> resolve::Result<C>,
) -> Result<C, ConfigError> {
    toml::from_str::<D>(text)
        .map_err(|e| error::Mistake::from_toml(&e))
        .and_then(resolve)
        .map_err(|mistake| mistake.locate(text, file))
}
