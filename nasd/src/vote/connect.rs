//! A connection to one member of etcd, authenticated, with nothing of it left over from the one before.

use std::fs;
use std::path::Path;

use etcd_client::{Channel, Client, ConnectOptions};
use nasd_config::Etcd;
use tonic::transport::Endpoint;

use super::tls::{Objection, Tls};
use super::{Versioned, VoteError, versioned};

/// One that has answered, or is about to be asked.
#[derive(Clone)]
pub struct Member {
    pub endpoint: String,
    pub client: Client,
    /// What TLS had against it, perhaps after it was connected.
    objection: Objection,
}

impl Member {
    /// Connects to `endpoint`, which is one of those in `config`, and logs in.
    ///
    /// Certificates and password are read each time: they may have been renewed. It has no limit of time: its caller
    /// has.
    ///
    /// One connection to one member, and not the client's own balancing: that keeps members that are dead, and there is
    /// no saying which of them a request is given to.
    pub async fn connect(config: &Etcd, endpoint: &str) -> Result<Self, VoteError> {
        let there = Endpoint::from_shared(endpoint.to_owned()).map_err(|e| {
            VoteError::refused(endpoint, e.to_string(), "correct it in [failover.etcd] endpoints")
        })?;
        // A member that has lost its leader says so, instead of having us wait for the next one. A login that has
        // expired is not renewed by the client, which would do it with the password that it was given once.
        let mut options = ConnectOptions::new().with_require_leader(true);
        if let Some((user, file)) = &config.user {
            options = options.with_user(user, password(endpoint, file)?);
        }
        let objection = Objection::default();
        let channel = if endpoint.starts_with("https:") {
            let tls = Tls::new(config, endpoint, objection.clone())?;
            there.connect_with_connector(tls.connector()).await
        } else {
            there.connect().await
        };
        let channel = channel.map_err(|e| {
            objection.explain(endpoint).unwrap_or_else(|| VoteError::from_transport(endpoint, &e))
        })?;
        let client = Client::from_channel(Channel::Tonic(channel), Some(options)).await;
        let client = client.map_err(|e| {
            objection.explain(endpoint).unwrap_or_else(|| VoteError::from_client(endpoint, &e))
        })?;
        Ok(Self { endpoint: endpoint.to_owned(), client, objection })
    }

    /// What it has under `key`.
    pub async fn read(&mut self, key: &str) -> Result<Versioned, VoteError> {
        let found = self.client.get(key, None).await;
        found.map(versioned).map_err(|e| {
            let objection = self.objection.explain(&self.endpoint);
            objection.unwrap_or_else(|| VoteError::from_client(&self.endpoint, &e))
        })
    }
}

fn password(endpoint: &str, file: &Path) -> Result<String, VoteError> {
    let text = fs::read_to_string(file)
        .map_err(|e| unreadable(endpoint, file, &e, "`password_file` in [failover.etcd]"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

pub fn unreadable(endpoint: &str, path: &Path, error: &dyn std::fmt::Display, what: &str) -> VoteError {
    VoteError::refused(
        endpoint,
        format!("cannot read {}, which is needed for it: {error}", path.display()),
        format!("correct {what}, or the file"),
    )
}
