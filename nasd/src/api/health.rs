//! For load balancers and monitors, which look at the code: 200, or 503 and how the node is.

use super::App;
use super::answer::Problem;
use crate::status::{Status, status};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// How a node is, in short.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `primary` or `secondary`.
    role: String,
    /// In one word, as in the status.
    state: String,
    epoch: u64,
}

type Reply = (StatusCode, Json<Health>);

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(healthz)).routes(routes!(primary)).routes(routes!(secondary))
}

fn reply(a: &App, well: impl FnOnce(&Status) -> bool) -> Reply {
    let s = status(&a.node);
    let code = if well(&s) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Health { role: s.role, state: s.state, epoch: s.epoch }))
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

/// Whether the node runs.
#[utoipa::path(get, path = "/healthz", tag = "health", responses(
    (status = 200, description = "it runs", body = Health),
    (status = 503, description = "it is stopping", body = Health),
    (status = 401, description = "neither the token nor a certificate", body = Problem),
))]
async fn healthz(State(a): State<App>) -> Reply {
    reply(&a, |s| s.state != "stopping")
}

/// Whether the node is primary and takes writes.
#[utoipa::path(get, path = "/primary", tag = "health", responses(
    (status = 200, description = "it is", body = Health),
    (status = 503, description = "it is not", body = Health),
    (status = 401, description = "neither the token nor a certificate", body = Problem),
))]
async fn primary(State(a): State<App>) -> Reply {
    reply(&a, |s| serves(s, "primary"))
}

/// Whether the node is secondary and shows what it follows.
#[utoipa::path(get, path = "/secondary", tag = "health", responses(
    (status = 200, description = "it is", body = Health),
    (status = 503, description = "it is not", body = Health),
    (status = 401, description = "neither the token nor a certificate", body = Problem),
))]
async fn secondary(State(a): State<App>) -> Reply {
    reply(&a, |s| serves(s, "secondary"))
}
