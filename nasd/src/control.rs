//! The control API on the node's socket: what the command line asks.

use crate::eventapi;
use crate::node::{Node, RoleError};
use crate::status::{Status, status};
use axum::extract::{FromRef, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::Notify;

/// How long answers may take once the node has stopped.
const LAST_WORDS: Duration = Duration::from_secs(2);

type Reply = (StatusCode, Json<Value>);

#[derive(Clone)]
struct App {
    node: Arc<Node>,
    stop: Arc<Notify>,
}

impl FromRef<App> for Arc<Node> {
    fn from_ref(app: &App) -> Arc<Node> {
        Arc::clone(&app.node)
    }
}

/// Opens the socket. One that a dead nasd left behind is replaced.
pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_err() {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let listener = UnixListener::bind(path)?;
    // Whoever may control a node may promote it: root only.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until `stop` is notified.
pub async fn serve(listener: UnixListener, node: Arc<Node>, stop: Arc<Notify>) -> std::io::Result<()> {
    let app = App { node, stop: Arc::clone(&stop) };
    let router = Router::new()
        .route("/v1/status", get(|State(a): State<App>| async move { Json::<Status>(status(&a.node)) }))
        .route("/healthz", get(|State(a): State<App>| async move { word(&a, |s| s.state != "stopping") }))
        .route("/primary", get(|State(a): State<App>| async move { word(&a, |s| serves(s, "primary")) }))
        .route("/secondary", get(|State(a): State<App>| async move { word(&a, |s| serves(s, "secondary")) }))
        .route("/v1/promote", post(promote))
        .route("/v1/switchover", post(switchover))
        .route("/v1/verify", post(verify))
        .route("/v1/stop", post(stop_node))
        .merge(eventapi::routes())
        .with_state(app);
    let ended = Arc::new(Notify::new());
    let end = Arc::clone(&ended);
    let served = axum::serve(listener, router).with_graceful_shutdown(async move {
        stop.notified().await;
        end.notify_one();
    });
    // Whoever reads events and does not take them is not waited for.
    tokio::select! {
        r = served => r,
        () = async { ended.notified().await; tokio::time::sleep(LAST_WORDS).await } => Ok(()),
    }
}

/// For load balancers and monitors, which look at the code: 200, or 503 and how the node is.
fn word(a: &App, well: impl FnOnce(&Status) -> bool) -> Reply {
    let s = status(&a.node);
    let code = if well(&s) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({ "role": s.role, "state": s.state, "epoch": s.epoch })))
}

/// Whether the node has this role and does what belongs to it: a primary takes writes, a secondary shows what it follows.
fn serves(s: &Status, role: &str) -> bool {
    let word = s.state.as_str();
    s.role == role
        && match role {
            "primary" => matches!(word, "in-sync" | "degraded" | "stand-alone"),
            _ => matches!(word, "in-sync" | "catch-up"),
        }
}

#[derive(Deserialize)]
struct How {
    #[serde(default)]
    force: bool,
    /// Only say what would happen.
    #[serde(default)]
    plan: bool,
}

/// Runs what waits for disks and peers off the runtime's own thread.
async fn blocking<T: Serialize + Send + 'static>(
    work: impl FnOnce() -> Result<T, RoleError> + Send + 'static,
) -> Reply {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(v)) => (StatusCode::OK, Json(json!(v))),
        Ok(Err(e)) => (StatusCode::CONFLICT, Json(json!({ "error": e.to_string() }))),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "error": e.to_string() }))),
    }
}

fn steps(steps: crate::node::Steps) -> Value {
    json!(
        steps
            .into_iter()
            .map(|(what, took)| json!({"step": what, "ms": took.as_secs_f64() * 1e3}))
            .collect::<Vec<_>>()
    )
}

async fn promote(State(a): State<App>, Query(q): Query<How>) -> Reply {
    if q.plan {
        return blocking(move || Ok(a.node.plan_promotion(q.force))).await;
    }
    blocking(move || a.node.promote(q.force).map(steps)).await
}

async fn switchover(State(a): State<App>, Query(q): Query<How>) -> Reply {
    if q.plan {
        return blocking(move || Ok(a.node.plan_switchover())).await;
    }
    blocking(move || a.node.switchover(None).map(steps)).await
}

async fn verify(State(a): State<App>) -> Reply {
    blocking(move || a.node.verify()).await
}

async fn stop_node(State(a): State<App>) -> Json<Value> {
    let node = Arc::clone(&a.node);
    // The answer comes when everything is sealed and unmounted; then the socket goes.
    let _ = tokio::task::spawn_blocking(move || node.stop()).await;
    a.stop.notify_one();
    Json(json!({}))
}
