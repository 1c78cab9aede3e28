//! The command line's side of the control socket.

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// Asks the node behind `socket`; an error that it answers is an error here.
pub fn call<T: DeserializeOwned>(socket: &Path, method: Method, path: &str, timeout: Duration) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let ask = ask(socket, method, path);
        match tokio::time::timeout(timeout, ask).await {
            Ok(r) => r,
            Err(_) => bail!("{}: no answer within {timeout:?}; see the node's log", socket.display()),
        }
    })
}

/// Reads a stream of the node behind `socket`, piece by piece, to its end.
pub fn stream(socket: &Path, path: &str, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (response, _connection) = send(socket, Method::GET, path, "text/event-stream").await?;
        let mut body = well(response).await?;
        while let Some(frame) = body.frame().await {
            if let Some(piece) = frame.context("the node ended the conversation")?.data_ref() {
                each(piece)?;
            }
        }
        Ok(())
    })
}

async fn ask<T: DeserializeOwned>(socket: &Path, method: Method, path: &str) -> Result<T> {
    let (response, _connection) = send(socket, method, path, "application/json").await?;
    let body = well(response).await?.collect().await?.to_bytes();
    understood(&body)
}

/// What a node said.
pub fn understood<T: DeserializeOwned>(said: &[u8]) -> Result<T> {
    serde_json::from_slice(said)
        .context("the node answers what this nasd does not understand: is it of another version?")
}

/// The connection behind an answer; dropped it ends.
struct Connection(tokio::task::JoinHandle<hyper::Result<()>>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    accept: &str,
) -> Result<(Response<Incoming>, Connection)> {
    let stream = tokio::net::UnixStream::connect(socket).await.with_context(|| {
        format!("{}: no nasd answers here; is it running, and is this its control socket?", socket.display())
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = Connection(tokio::spawn(connection));
    let request = Request::builder().method(method).uri(path).header("host", "nasd").header("accept", accept);
    let request = request.body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.context("the node ended the conversation")?;
    Ok((response, connection))
}

/// What an answer brings; an error that the node answers is an error here.
async fn well(response: Response<Incoming>) -> Result<Incoming> {
    if response.status().is_success() {
        return Ok(response.into_body());
    }
    let body = response.into_body().collect().await?.to_bytes();
    let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    match value.get("error").and_then(Value::as_str) {
        Some(why) => bail!("{why}"),
        None => bail!("the node answers {}", String::from_utf8_lossy(&body)),
    }
}
