//! What can be asked and told. Whatever changes something is POST.

use super::answer::{Params, Problem, Refusal, blocking};
use super::openapi::{self, Base};
use super::{App, Door, events, health, metrics};
use crate::node::{RoleError, Steps};
use crate::plan::Line;
use crate::status::{Status, status};
use crate::verify::Verified;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use utoipa::{IntoParams, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Every path, each with its description: there is no other way to add one.
pub fn described() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Base::openapi())
        .routes(routes!(say_status))
        .routes(routes!(promote))
        .routes(routes!(switchover))
        .routes(routes!(verify))
        .routes(routes!(stop))
        .routes(routes!(describe))
        .merge(events::routes())
        .merge(health::routes())
        .merge(metrics::routes())
}

/// The same, to be served.
pub fn router(app: App) -> Router {
    let (router, _) = described().split_for_parts();
    router.fallback(nowhere).method_not_allowed_fallback(wrong_method).with_state(app)
}

async fn nowhere() -> Refusal {
    Refusal(StatusCode::NOT_FOUND, "there is no such path; see /v1/openapi.json".to_owned())
}

async fn wrong_method() -> Refusal {
    let why = "not by this method: what changes something is POST, all else GET";
    Refusal(StatusCode::METHOD_NOT_ALLOWED, why.to_owned())
}

/// How the node is: see docs/operations.md.
#[utoipa::path(get, path = "/v1/status", tag = "node", responses(
    (status = 200, description = "how it is", body = Status),
    (status = 401, description = "neither the token nor a certificate", body = Problem),
))]
async fn say_status(State(a): State<App>) -> Json<Status> {
    Json(status(&a.node))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Promoting {
    /// Even when something may be lost.
    #[serde(default)]
    force: bool,
    /// Only say what would happen.
    #[serde(default)]
    plan: bool,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Switching {
    /// Only say what would happen.
    #[serde(default)]
    plan: bool,
}

/// A step of a change of role.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Step {
    pub step: String,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// What was done, or with `plan` what would be.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Change {
    Done(Vec<Step>),
    Plan(Vec<Line>),
}

impl From<Steps> for Change {
    fn from(steps: Steps) -> Change {
        let step = |(step, took): (String, Duration)| Step { step, ms: took.as_secs_f64() * 1e3 };
        Change::Done(steps.into_iter().map(step).collect())
    }
}

/// Makes a secondary the primary.
#[utoipa::path(post, path = "/v1/promote", tag = "node", params(Promoting), responses(
    (status = 200, description = "the steps, or with `plan` what would happen", body = Change),
    (status = 400, description = "a wrong parameter", body = Problem),
    (status = 401, description = "neither the token nor a certificate", body = Problem),
    (status = 409, description = "refused, and why", body = Problem),
))]
async fn promote(State(a): State<App>, Params(q): Params<Promoting>) -> Result<Json<Change>, Refusal> {
    blocking(move || match q.plan {
        true => Ok(Change::Plan(a.node.plan_promotion(q.force))),
        false => a.node.promote(q.force).map(Change::from),
    })
    .await
}

/// Hands the primary's role over, in order.
#[utoipa::path(post, path = "/v1/switchover", tag = "node", params(Switching), responses(
    (status = 200, description = "the steps, or with `plan` what would happen", body = Change),
    (status = 400, description = "a wrong parameter", body = Problem),
    (status = 401, description = "neither the token nor a certificate", body = Problem),
    (status = 409, description = "refused, and why", body = Problem),
))]
async fn switchover(State(a): State<App>, Params(q): Params<Switching>) -> Result<Json<Change>, Refusal> {
    blocking(move || match q.plan {
        true => Ok(Change::Plan(a.node.plan_switchover())),
        false => a.node.switchover(None).map(Change::from),
    })
    .await
}

/// Compares the primary's files with those of each peer in sync.
#[utoipa::path(post, path = "/v1/verify", tag = "node", responses(
    (status = 200, description = "what each comparison gave", body = Vec<Verified>),
    (status = 401, description = "neither the token nor a certificate", body = Problem),
    (status = 409, description = "refused, and why", body = Problem),
))]
async fn verify(State(a): State<App>) -> Result<Json<Vec<Verified>>, Refusal> {
    blocking(move || a.node.verify()).await
}

/// Nothing to say.
#[derive(Debug, Serialize, ToSchema)]
struct Nothing {}

/// Stops the node in order; answers when everything is sealed and unmounted. Only on the control socket: whoever stops a
/// node over the network can't start it again.
#[utoipa::path(post, path = "/v1/stop", tag = "node", responses(
    (status = 200, description = "it is stopped", body = Nothing),
    (status = 401, description = "neither the token nor a certificate", body = Problem),
    (status = 403, description = "asked over the network", body = Problem),
))]
async fn stop(State(a): State<App>) -> Result<Json<Nothing>, Refusal> {
    if a.door == Door::Network {
        let why = "a node is stopped on its control socket only (`nasd stop`): over the network nobody could start it again";
        return Err(Refusal(StatusCode::FORBIDDEN, why.to_owned()));
    }
    let node = Arc::clone(&a.node);
    let stopped = blocking(move || {
        node.stop();
        Ok::<_, RoleError>(Nothing {})
    });
    let answer = stopped.await;
    a.stop.notify_one();
    answer
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "node", responses(
    (status = 200, description = "OpenAPI", body = serde_json::Value, content_type = "application/json"),
    (status = 401, description = "neither the token nor a certificate", body = Problem),
))]
async fn describe() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], openapi::document())
}
