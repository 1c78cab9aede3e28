//! `agent.toml`: what an agent may say, and what it means.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use crate::api;
use crate::error::Mistake;
use crate::notify::{self, Notify};
use crate::raw::{self, Amount, Text};
use crate::resolve::{HOUR, Result, absolute, connectable, duration, node_name, required, resolve_tls};
use crate::resolved::Tls;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// The servers say more often that they are there.
const SHORTEST_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    agent: Option<Spanned<RawAgent>>,
    tls: Option<Spanned<raw::Tls>>,
    #[serde(default)]
    notify: Vec<Spanned<raw::Notify>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAgent {
    name: Text,
    servers: Option<Spanned<Vec<Spanned<String>>>>,
    state_file: Text,
    timeout: Amount,
}

/// An agent's whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// How its log calls it. Required.
    pub name: String,
    /// Where nodes answer, `HOST:PORT`: at least one. Each is followed until it fails.
    pub servers: Vec<String>,
    /// Where it keeps how far it is; absolute. Required.
    pub state_file: PathBuf,
    /// A server that is silent for so long is gone: 3 s to 1 h. Default 5 s.
    pub timeout: Duration,
    /// `[tls]`: the volume's authority, and the agent's certificate, which that signed. Required.
    pub tls: Tls,
    /// `[[notify]]`: whom it tells; at least one.
    pub notify: Vec<Notify>,
}

pub(crate) fn resolve(raw: Document) -> Result<AgentConfig> {
    let missing = |what: &str, remedy: &str| Mistake::new(0..0, format!("there is no {what}"), remedy);
    let raw_agent = raw.agent.ok_or_else(|| {
        missing("[agent]", "add [agent] with name = \"db-1\", servers = [\"nas-a:7601\"] and state_file = \"/var/lib/nasd-agent/state\"")
    })?;
    let raw_tls = raw.tls.ok_or_else(|| {
        missing("[tls]", "add [tls] with ca, cert and key (`nasd cert node` makes the files)")
    })?;
    if raw.notify.is_empty() {
        return Err(missing("[[notify]]", "add one: an agent is there to tell somebody"));
    }
    let at = raw_agent.span();
    let raw_agent = raw_agent.into_inner();
    let typed_servers = required(raw_agent.servers, "servers", "[agent]", &at)?;
    if typed_servers.get_ref().is_empty() {
        return Err(Mistake::new(
            typed_servers.span(),
            "servers is empty",
            "write for example [\"nas-a:7601\", \"nas-b:7601\"]",
        ));
    }
    let remedy = "write the port of `listen` in the node's [api], for example 7601";
    let servers = typed_servers
        .into_inner()
        .iter()
        .map(|typed| connectable(typed, "servers", api::PORT, remedy))
        .collect::<Result<_>>()?;
    Ok(AgentConfig {
        name: node_name(&required(raw_agent.name, "name", "[agent]", &at)?)?,
        servers,
        state_file: absolute(&required(raw_agent.state_file, "state_file", "[agent]", &at)?, "state_file")?,
        timeout: duration(raw_agent.timeout, "timeout", DEFAULT_TIMEOUT, SHORTEST_TIMEOUT..=HOUR)?,
        tls: resolve_tls(raw_tls, absolute)?,
        notify: raw.notify.into_iter().map(notify::resolve).collect::<Result<_>>()?,
    })
}
