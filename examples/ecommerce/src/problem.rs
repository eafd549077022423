//! One way to say no: problem details (RFC 9457), whoever says it.

use axum::{
    body::to_bytes,
    http::{
        StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::{error::Error, fmt};

const KIND: &str = "application/problem+json";
/// How much of a refusal that is no problem yet is handed on.
const LONGEST_DETAIL: usize = 4096;

/// A no, and why.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    detail: String,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    pub fn not_found(detail: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// It was understood, and is not done.
    pub fn refused(detail: &str) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Error for Problem {}

/// Also after a commit that was not answered: so the caller must not take it for "nothing happened".
impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the database: {error}"))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, detail } = self;
        let body = json!({ "title": status.canonical_reason(), "status": status.as_u16(), "detail": detail });
        let mut response = (status, [(CONTENT_TYPE, KIND)], body.to_string()).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, 1.into());
        }
        response
    }
}

/// Makes a problem of what the framework says by itself: no such path or method, a body or a query that cannot be read.
pub async fn of_every_refusal(response: Response) -> Response {
    let status = response.status();
    let refused = status.is_client_error() || status.is_server_error();
    if !refused || response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == KIND) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let said = to_bytes(body, LONGEST_DETAIL).await.unwrap_or_default();
    let detail = match String::from_utf8_lossy(&said).into_owned() {
        said if said.is_empty() => status.canonical_reason().unwrap_or_default().into(),
        said => said,
    };
    let mut problem = Problem::new(status, detail).into_response();
    // Such as `Allow`.
    parts.headers.remove(CONTENT_TYPE);
    parts.headers.remove(CONTENT_LENGTH);
    problem.headers_mut().extend(parts.headers);
    problem
}
