//! What every handler answers with when it can't, and takes its parameters by.

use crate::node::RoleError;
use axum::Json;
use axum::extract::{FromRequestParts, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

/// Why something was not done.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// In a sentence, with what to do.
    pub error: String,
}

/// An answer that is no success.
pub struct Refusal(pub StatusCode, pub String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(Problem { error: self.1 })).into_response()
    }
}

impl From<RoleError> for Refusal {
    fn from(e: RoleError) -> Refusal {
        Refusal(StatusCode::CONFLICT, e.to_string())
    }
}

/// The parameters in a request's query.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Params<T>, Refusal> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Params(params)),
            Err(e) => Err(Refusal(StatusCode::BAD_REQUEST, format!("{e}; see /v1/openapi.json"))),
        }
    }
}

/// Runs what waits for disks and peers off the runtime's own thread.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RoleError> + Send + 'static,
) -> Result<Json<T>, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(Json(done?)),
        Err(e) => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, e.to_string())),
    }
}
