//! The command line's side of the control socket.

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// Asks the node behind `socket`; an error that it answers is an error here.
pub fn call(socket: &Path, method: Method, path: &str, timeout: Duration) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let ask = ask(socket, method, path);
        match tokio::time::timeout(timeout, ask).await {
            Ok(r) => r,
            Err(_) => bail!("{}: no answer within {timeout:?}; see the node's log", socket.display()),
        }
    })
}

async fn ask(socket: &Path, method: Method, path: &str) -> Result<Value> {
    let stream = tokio::net::UnixStream::connect(socket).await.with_context(|| {
        format!("{}: no nasd answers here; is it running, and is this its control socket?", socket.display())
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request =
        Request::builder().method(method).uri(path).header("host", "nasd").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.context("the node ended the conversation")?;
    let ok = response.status().is_success();
    let body = response.into_body().collect().await?.to_bytes();
    driver.abort();
    let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    if ok {
        return Ok(value);
    }
    match value.get("error").and_then(Value::as_str) {
        Some(why) => bail!("{why}"),
        None => bail!("the node answers {}", String::from_utf8_lossy(&body)),
    }
}
