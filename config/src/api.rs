//! `[api]`: from what was typed to what it means.

use std::path::Path;

use toml::Spanned;

use crate::error::Mistake;
use crate::raw;
use crate::resolve::{Result, apart, connectable, required};
use crate::resolved::{Api, Tls};

/// Where the API is, if not said otherwise.
pub(crate) const PORT: u16 = 7601;

pub(crate) fn resolve(
    raw: Spanned<raw::Api>,
    tls: Option<&Tls>,
    node_listen: &str,
    mount: &Path,
) -> Result<Api> {
    let at = raw.span();
    let raw = raw.into_inner();
    let listen = match raw.listen {
        Some(typed) => {
            let remedy = "write the port that clients connect to, for example 7601";
            let address = connectable(&typed, "listen", PORT, remedy)?;
            if address == node_listen {
                return Err(Mistake::new(
                    typed.span(),
                    format!("listen = {address:?} is where [node] listens for its peers"),
                    "choose another port for [api], for example 7601",
                ));
            }
            address
        }
        None => format!("0.0.0.0:{PORT}"),
    };
    let token_file = raw.token_file.map(|typed| apart(&typed, "token_file", mount)).transpose()?;
    if token_file.is_none() && tls.is_none() {
        return Err(Mistake::new(
            at,
            "[api] has no token_file, and without [tls] nobody can show a certificate: it would refuse everybody",
            "add token_file = \"/etc/nasd/api.token\" to it",
        ));
    }
    let own = |key: &str, typed: raw::Text| apart(&required(typed, key, "[api]", &at)?, key, mount);
    let (cert, key) = match (raw.cert, raw.key, tls) {
        (None, None, Some(tls)) => (tls.cert.clone(), tls.key.clone()),
        (cert, key, _) => (own("cert", cert)?, own("key", key)?),
    };
    Ok(Api { listen, token_file, ca: tls.map(|t| t.ca.clone()), cert, key })
}
